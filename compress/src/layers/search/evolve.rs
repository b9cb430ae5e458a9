//! A search by exchanges: one set, many slightly different children, the best of all goes on.
//!
//! After EvoPress (Sieberling et al. 2024): a child exchanges a few layers that are gone for as many that stay, one to
//! three, the fewer the likelier; children are first scored on a part of the text, the better ones on all of it; a parent
//! is only given up for something better.

use std::collections::BTreeSet;

use super::{Found, Removal, Settings, found};
use crate::{Result, data::random::Stream, layers::evaluate::Evaluator};

/// Children of a generation.
const CHILDREN: usize = 32;

/// Of those, how many are scored on everything.
const FINALISTS: usize = 2;

/// Random sets among the starts.
const RANDOM_STARTS: usize = 64;

/// Generations without a better set after which the search ends.
const PATIENCE: usize = 8;

/// The best set of `k` layers, from `starts` and random ones.
pub(super) fn evolve(
    evaluator: &mut Evaluator<'_>,
    k: usize,
    mut starts: Vec<Removal>,
    removable: &[usize],
    settings: &Settings,
) -> Result<Option<Found>> {
    let mut stream = Stream::new(settings.seed, "evolution", k as u64);
    let units = evaluator.corpus().units();
    let part = (units / 8).max(1);
    for _ in 0..RANDOM_STARTS {
        let mut layers = removable.to_vec();
        stream.shuffle(&mut layers);
        starts.push(layers[..k].iter().copied().collect());
    }
    let mut parent = finalists(evaluator, &starts, part, FINALISTS)?;
    let mut best = evaluator.select(&parent, 1, settings.race)?;
    let generations = (k * (removable.len() - k) * 2 / 3).clamp(1, settings.generations);
    let mut idle = 0;
    for _ in 0..generations {
        if removable.len() == k || idle == PATIENCE {
            break;
        }
        let set = best[0].set.clone();
        let children: BTreeSet<Removal> = (0..CHILDREN).map(|_| mutate(&set, removable, &mut stream)).collect();
        let children: Vec<Removal> = children.into_iter().filter(|child| *child != set).collect();
        parent = finalists(evaluator, &children, part, FINALISTS)?;
        parent.push(set.clone());
        best = evaluator.select(&parent, 1, settings.race)?;
        idle = if best[0].set == set { idle + 1 } else { 0 };
    }
    Ok(found(k, &best, settings.race.errors))
}

/// The `count` best of `sets` on the first `part` of the text.
fn finalists(evaluator: &mut Evaluator<'_>, sets: &[Removal], part: usize, count: usize) -> Result<Vec<Removal>> {
    evaluator.ensure(sets, 0..part)?;
    let sets: BTreeSet<&Removal> = sets.iter().collect();
    let mut scored: Vec<(f64, &Removal)> =
        sets.into_iter().map(|set| (evaluator.values(set, 0..part).iter().sum(), set)).collect();
    scored.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(b.1)));
    Ok(scored.into_iter().take(count).map(|(_, set)| set.clone()).collect())
}

/// `set` with one to three layers exchanged.
fn mutate(set: &Removal, removable: &[usize], stream: &mut Stream) -> Removal {
    let others: Vec<usize> = removable.iter().copied().filter(|&layer| !set.contains(layer)).collect();
    let count = (1 + stream.below(3).min(stream.below(3))).min(set.len()).min(others.len());
    let (mut out, mut into) = (set.layers().to_vec(), others);
    stream.shuffle(&mut out);
    stream.shuffle(&mut into);
    out[count..].iter().chain(&into[..count]).copied().collect()
}
