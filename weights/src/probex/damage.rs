//! Compressed copies of a layer: what a probe meets when the models it reads were made small.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// One way to make a layer small; the result is the decoded layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Damage {
    /// Rounded to the nearest of 2^bits − 1 levels, symmetric, with a scale a row.
    Bits(u32),
    /// The share (in percent) of the smallest elements set to zero, over the whole layer.
    Prune(u32),
}

impl Damage {
    /// `x` (rows of `columns`), made small in place.
    pub fn apply(self, x: &mut [f32], columns: usize) {
        match self {
            Self::Bits(bits) => {
                let top = ((1u32 << (bits - 1)) - 1) as f32;
                for row in x.chunks_exact_mut(columns) {
                    let scale = row.iter().fold(0.0f32, |most, x| most.max(x.abs())) / top;
                    if scale > 0.0 {
                        row.iter_mut().for_each(|x| *x = (*x / scale).round_ties_even() * scale);
                    }
                }
            }
            Self::Prune(percent) => {
                let count = x.len() * percent as usize / 100;
                if count == 0 {
                    return;
                }
                let mut sizes: Vec<f32> = x.iter().map(|x| x.abs()).collect();
                let (_, &mut limit, _) = sizes.select_nth_unstable_by(count - 1, f32::total_cmp);
                // Of elements as large as the limit, the first ones go, so that the count is exact.
                let below = x.iter().filter(|x| x.abs() < limit).count();
                let mut ties = count - below;
                for x in x.iter_mut() {
                    if x.abs() < limit || (x.abs() == limit && ties > 0) {
                        ties -= usize::from(x.abs() == limit);
                        *x = 0.0;
                    }
                }
            }
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bits(bits) => write!(f, "int{bits}"),
            Self::Prune(percent) => write!(f, "prune{percent}"),
        }
    }
}

impl FromStr for Damage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |rest: &str| rest.parse::<u32>().ok();
        if let Some(bits) = text.strip_prefix("int").and_then(number)
            && (2..=16).contains(&bits)
        {
            return Ok(Self::Bits(bits));
        }
        if let Some(percent) = text.strip_prefix("prune").and_then(number)
            && percent < 100
        {
            return Ok(Self::Prune(percent));
        }
        Err(format!("`{text}` is no compression; expected int2 to int16, or prune0 to prune99 (percent)"))
    }
}

impl TryFrom<String> for Damage {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Damage> for String {
    fn from(damage: Damage) -> Self {
        damage.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_rounded_with_scales_of_their_own() {
        let mut x = [7.0, 3.4, -0.4, 0.0, 0.07, 0.0, 0.0, 0.0];
        Damage::Bits(4).apply(&mut x, 4);
        assert_eq!(x, [7.0, 3.0, -0.0, 0.0, 0.07, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn exactly_the_share_is_pruned() {
        let mut x = [1.0, -1.0, 1.0, 1.0, 5.0, 0.5, -3.0, 1.0];
        Damage::Prune(50).apply(&mut x, 4);
        assert_eq!(x, [0.0, 0.0, 0.0, 1.0, 5.0, 0.0, -3.0, 1.0]);
    }

    #[test]
    fn names_are_read_back() {
        for name in ["int8", "int4", "prune50"] {
            assert_eq!(name.parse::<Damage>().unwrap().to_string(), name);
        }
        for wrong in ["int1", "int99", "prune100", "int", "low"] {
            assert!(wrong.parse::<Damage>().is_err(), "{wrong}");
        }
    }
}
