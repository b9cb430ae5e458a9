//! Tickets of the lottery (Frankle and Carbin 2019) rewound to an early step (Frankle et al. 2020): the strongest way to
//! prune that is known, and the dearest.
//!
//! Train; of the weights that are left, a share goes, the smallest of all first; what stays is set back to what it was at
//! an early step; train again; and so on. A size between two rounds is reached by a round in which fewer go. Each round is
//! a whole run from the early step, one schedule long.

use serde::{Deserialize, Serialize};

use super::{
    contestant::{Measured, competing, sparse_bytes},
    ground::{Ground, start},
    record::Store,
    train::{Course, End, Score, measure, train},
};
use crate::{
    Error, Result,
    nn::{Weights, parametrise::Masked, saliency::highest},
};

/// What a round leaves for the next, and for sizes between the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Round {
    /// Weights left in this round.
    kept: usize,
    score: Score,
    /// The keep masks drawn from its weights: how many each keeps, and a bit a weight that competes, in hexadecimal digits.
    masks: Vec<(usize, String)>,
}

/// Trains tickets of `sizes` weights and measures each, in their order; every run is recorded.
///
/// # Errors
/// If a record cannot be read or written.
pub fn tickets(ground: &Ground, store: &Store<'_>, course: Course, sizes: &[usize]) -> Result<Vec<Measured>> {
    let all = ground.weights();
    let name = |kept: usize| {
        let Course { part, peak, seed, .. } = course;
        format!("lottery-{}-seed{seed}-lr{peak}-kept{kept}", part.name())
    };
    let chain = Chain { ground, course };
    // The early weights, computed when first needed: every run of the chain may be on record.
    let mut early: Option<Option<Weights>> = None;
    let mut mask: Option<Vec<bool>> = None;
    let (mut kept, mut found) = (all, vec![None; sizes.len()]);
    for round in 1.. {
        let share = (1.0 - ground.schooling.pruned_a_round).powi(round);
        let next = ((all as f64 * share).round() as usize).min(kept.saturating_sub(1));
        let below: Vec<usize> = sizes.iter().copied().filter(|&size| size < kept && size >= next).collect();
        let goes_on = sizes.iter().any(|&size| size <= next && size < kept);
        let between = below.iter().copied().filter(|&size| size > next);
        let to_draw: Vec<usize> = between.chain(goes_on.then_some(next)).collect();
        let this = store.once(&name(kept), || chain.round(&mut early, mask.as_deref(), kept, &to_draw))?;
        for (size, found) in sizes.iter().zip(&mut found).filter(|(size, _)| **size == kept) {
            *found = Some((*size, this.score));
        }
        let drawn = |size: usize| -> Result<Option<Vec<bool>>> {
            match this.masks.iter().find(|(kept, _)| *kept == size) {
                Some((_, digits)) => chain.read(digits).map(Some),
                None if this.score.diverged.is_some() => Ok(None),
                None => Err(Error::Recipe(format!(
                    "the record `{}` has no mask of {size} weights: it is of other sizes; give another folder",
                    name(kept)
                ))),
            }
        };
        for &size in below.iter().filter(|&&size| size > next) {
            let branch = drawn(size)?;
            let run = || chain.round(&mut early, branch.as_deref(), size, &[]);
            let score = match &branch {
                Some(_) => store.once(&format!("{}-from{kept}", name(size)), run)?.score,
                None => this.score,
            };
            sizes.iter().zip(&mut found).filter(|(s, _)| **s == size).for_each(|(_, f)| *f = Some((size, score)));
        }
        if !goes_on {
            break;
        }
        let Some(left) = drawn(next)? else {
            // A round that did not end leaves nothing to draw from.
            sizes.iter().zip(&mut found).filter(|(_, f)| f.is_none()).for_each(|(s, f)| *f = Some((*s, this.score)));
            break;
        };
        (mask, kept) = (Some(left), next);
    }
    let measured = |(kept, score)| Measured { values: kept, bytes: sparse_bytes(ground, kept), score };
    Ok(found.into_iter().map(|found| measured(found.expect("every size is that of a round or between two"))).collect())
}

struct Chain<'a> {
    ground: &'a Ground,
    course: Course,
}

impl Chain<'_> {
    /// One round: trains what `mask` leaves, and draws masks of `sizes` from the end. The first round gives the early
    /// weights.
    fn round(
        &self,
        early: &mut Option<Option<Weights>>,
        mask: Option<&[bool]>,
        kept: usize,
        sizes: &[usize],
    ) -> Result<Round> {
        let (ground, course) = (self.ground, self.course);
        let end = match mask {
            None => self.dense()?,
            Some(keep) => {
                if early.is_none() {
                    *early = Some(match self.dense()? {
                        End::Trained { early, .. } => Some(early),
                        End::Diverged(_) => None,
                    });
                }
                let Some(Some(start)) = early.clone() else {
                    return Err(Error::Recipe("a round of the lottery follows one that did not end".into()));
                };
                let masked = Masked::new(keep.to_vec());
                train(ground, &ground.spec, course, start, Some(&masked), 0)?
            }
        };
        let weights = match end {
            End::Trained { weights, early: at_rewind } => {
                if mask.is_none() {
                    *early = Some(Some(at_rewind));
                }
                weights
            }
            End::Diverged(step) => {
                return Ok(Round { kept, score: Score::diverged(ground, course.part, step), masks: Vec::new() });
            }
        };
        let score = measure(ground, &ground.spec, &weights, course.part)?;
        let competing = competing(ground);
        let left: Vec<bool> = match mask {
            Some(mask) => mask.iter().zip(&competing).map(|(kept, competing)| *kept && *competing).collect(),
            None => competing.clone(),
        };
        let sizes_of: Vec<f64> = weights.values.iter().map(|&w| f64::from(w.abs())).collect();
        let masks = sizes.iter().map(|&size| (size, self.write(&highest(&sizes_of, &left, size)))).collect();
        Ok(Round { kept, score, masks })
    }

    fn dense(&self) -> Result<End> {
        let Self { ground, course } = self;
        let start = start(&ground.graph, course.seed);
        train(ground, &ground.spec, *course, start, None, ground.schooling.rewind)
    }

    /// The bits of the weights that compete, four a digit.
    fn write(&self, keep: &[bool]) -> String {
        let competing = competing(self.ground);
        let bits: Vec<bool> =
            keep.iter().zip(competing).filter_map(|(keep, competing)| competing.then_some(*keep)).collect();
        let digit = |bits: &[bool]| bits.iter().enumerate().map(|(at, &bit)| u32::from(bit) << at).sum::<u32>();
        bits.chunks(4).filter_map(|bits| char::from_digit(digit(bits), 16)).collect()
    }

    /// The keep mask of all weights, vectors included, that stay.
    fn read(&self, digits: &str) -> Result<Vec<bool>> {
        let mut keep: Vec<bool> = competing(self.ground).iter().map(|competing| !competing).collect();
        let places: Vec<usize> = (0..keep.len()).filter(|&at| !keep[at]).collect();
        let values: Option<Vec<u32>> = digits.chars().map(|digit| digit.to_digit(16)).collect();
        let Some(values) = values.filter(|values| values.len() == places.len().div_ceil(4)) else {
            return Err(Error::Recipe(format!(
                "a mask of {} digits in the records is not one of {} weights; delete the records",
                digits.len(),
                places.len()
            )));
        };
        places.iter().enumerate().for_each(|(at, &place)| keep[place] = values[at / 4] >> (at % 4) & 1 == 1);
        Ok(keep)
    }
}
