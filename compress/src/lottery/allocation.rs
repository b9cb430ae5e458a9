//! How many blocks each stage keeps.
//!
//! Before training the blocks of one stage are independent draws from one distribution, and every one of them has the same
//! input and output shape. Which of them goes therefore cannot matter beyond chance: what a ticket is worth depends on its
//! allocation. There are few of these, so they can be trained one by one in place of being searched.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Blocks kept, stage by stage; `3-4-3` in words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Allocation(pub Vec<usize>);

/// Most allocations that are listed: more are no longer trained one by one.
const MOST: usize = 10_000;

impl Allocation {
    /// Every way of taking `removed` blocks out of `dense` that leaves each stage at least `minimum`, or what it has; in
    /// rising order of the first stage, then the second.
    ///
    /// # Errors
    /// If there is none, or more than ten thousand.
    pub fn all(dense: &[usize], removed: usize, minimum: usize) -> Result<Vec<Self>> {
        let room: Vec<usize> = dense.iter().map(|&blocks| blocks.saturating_sub(minimum.max(1))).collect();
        let most: usize = room.iter().sum();
        if removed == 0 || removed > most {
            return Err(Error::Recipe(format!(
                "{removed} blocks cannot go: of {} with at least {} a stage, 1 to {most} can",
                Self(dense.to_vec()),
                minimum.max(1)
            )));
        }
        let mut found: Vec<(Vec<usize>, usize)> = vec![(Vec::new(), removed)];
        for (stage, (&blocks, &room_here)) in dense.iter().zip(&room).enumerate() {
            let later: usize = room[stage + 1..].iter().sum();
            let longer = |(kept, left): &(Vec<usize>, usize)| {
                let (kept, left) = (kept.clone(), *left);
                let here = left.saturating_sub(later)..=left.min(room_here);
                here.rev()
                    .map(move |gone| ([kept.clone(), vec![blocks - gone]].concat(), left - gone))
                    .collect::<Vec<_>>()
            };
            found = found.iter().flat_map(longer).collect();
            if found.len() > MOST {
                return Err(Error::Recipe(format!("more than {MOST} allocations; remove fewer blocks")));
            }
        }
        Ok(found.into_iter().map(|(kept, _)| Self(kept)).collect())
    }

    /// The allocation that takes blocks one by one from the stage that has most; of equals, from the earliest.
    ///
    /// # Errors
    /// As [`Self::all`].
    pub fn uniform(dense: &[usize], removed: usize, minimum: usize) -> Result<Self> {
        Self::all(dense, removed, minimum)?;
        let mut kept = dense.to_vec();
        for _ in 0..removed {
            let most = kept.iter().copied().max().unwrap_or(0);
            if let Some(stage) = kept.iter_mut().find(|blocks| **blocks == most) {
                *stage -= 1;
            }
        }
        Ok(Self(kept))
    }

    /// The shallowest of the family.
    pub fn shallowest(dense: &[usize], minimum: usize) -> Self {
        Self(dense.iter().map(|&blocks| blocks.min(minimum.max(1))).collect())
    }

    /// The first so many blocks of each stage.
    pub fn first(&self) -> Vec<Vec<usize>> {
        self.0.iter().map(|&count| (0..count).collect()).collect()
    }

    /// The allocation of these blocks.
    pub fn of(kept: &[Vec<usize>]) -> Self {
        Self(kept.iter().map(Vec::len).collect())
    }

    /// Blocks in all.
    pub fn blocks(&self) -> usize {
        self.0.iter().sum()
    }
}

impl fmt::Display for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(usize::to_string).collect::<Vec<_>>().join("-"))
    }
}

impl FromStr for Allocation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let stages: std::result::Result<Vec<usize>, _> = text.split('-').map(str::parse).collect();
        match stages {
            Ok(stages) if stages.iter().all(|&blocks| blocks > 0) => Ok(Self(stages)),
            _ => Err(Error::Recipe(format!("`{text}` should be blocks of each stage such as 3-4-3"))),
        }
    }
}

impl TryFrom<String> for Allocation {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Allocation> for String {
    fn from(allocation: Allocation) -> Self {
        allocation.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_of_the_papers_nets_are_few() {
        // Counted by hand in the design: 12 ways of taking five blocks of ResNet-32, 46 of taking twelve of ResNet-56.
        let thirty_two = Allocation::all(&[5, 5, 5], 5, 2).unwrap();
        assert_eq!((thirty_two.len(), Allocation::all(&[9, 9, 9], 12, 2).unwrap().len()), (12, 46));
        assert!(
            thirty_two.iter().all(|kept| kept.blocks() == 10 && kept.0.iter().all(|&stage| (2..=5).contains(&stage)))
        );
        assert!(thirty_two.is_sorted() && thirty_two[0].to_string() == "2-3-5");
        // ResNet-20 with two a stage leaves three to take.
        assert_eq!(Allocation::all(&[3, 3, 3], 3, 2).unwrap(), [Allocation::shallowest(&[3, 3, 3], 2)]);
        let error = Allocation::all(&[3, 3, 3], 4, 2).unwrap_err().to_string();
        assert!(error.contains("4 blocks cannot go") && error.contains("1 to 3 can"), "{error}");
        assert!(Allocation::all(&[5, 5, 5], 0, 2).is_err());
    }

    #[test]
    fn uniform_levels_the_stages() {
        for (removed, expected) in [(1, "4-5-5"), (5, "3-3-4"), (9, "2-2-2")] {
            assert_eq!(Allocation::uniform(&[5, 5, 5], removed, 2).unwrap().to_string(), expected);
        }
        assert_eq!(Allocation::uniform(&[2, 5], 1, 2).unwrap().0, [2, 4]);
    }

    #[test]
    fn words_read_back() {
        let allocation: Allocation = "3-4-3".parse().unwrap();
        assert_eq!((allocation.0.as_slice(), allocation.to_string().as_str()), ([3, 4, 3].as_slice(), "3-4-3"));
        assert_eq!(serde_json::to_string(&allocation).unwrap(), "\"3-4-3\"");
        for wrong in ["", "3-", "3-0-1", "a"] {
            assert!(wrong.parse::<Allocation>().is_err(), "{wrong}");
        }
    }
}
