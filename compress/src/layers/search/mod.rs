//! Which layers can go: searches over sets, all of them by exact losses of whole sets.
//!
//! | search | how |
//! |---|---|
//! | `greedy` | k times the layer whose removal costs least, given those that are gone (SLEB; Song et al. 2024) |
//! | `window` | the best run of neighbours of every length |
//! | `dp` | disjoint windows with the least sum of angular distances: optimal for that sum, cheap, a start for others |
//! | `beam:W` | the W best sets of every size, greedy's and those of cheap rules among them |
//! | `evolve` | exchanges of layers, kept when they are better (EvoPress; Sieberling et al. 2024) |
//! | `exhaustive` | all sets, where they are few |
//!
//! `+swap` behind a search exchanges single layers of what it found for others as long as that helps.

mod baselines;

mod evolve;

use std::collections::BTreeSet;

use serde::Serialize;

pub use self::baselines::{Baseline, baselines};
use super::{
    Removal,
    evaluate::{Evaluator, Race, Scored},
    scan::Angular,
};
use crate::{Error, Result};

/// Rounds of exchanges at most.
const SWAP_ROUNDS: usize = 4;

/// A way of searching.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// How sets are found.
    pub kind: Kind,
    /// Exchange single layers afterwards.
    pub swap: bool,
}

/// How sets are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Layer by layer.
    Greedy,
    /// Runs of neighbours.
    Window,
    /// Disjoint windows by angular distance.
    Dp,
    /// So many sets of every size.
    Beam(usize),
    /// Exchanges.
    Evolve,
    /// All sets.
    Exhaustive,
}

impl Search {
    /// Reads `greedy`, `window`, `dp`, `beam:4`, `evolve` or `exhaustive`, with or without `+swap`.
    ///
    /// # Errors
    /// Another word.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, swap) = match text.strip_suffix("+swap") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let kind = match name.split_once(':') {
            None => match name {
                "greedy" => Some(Kind::Greedy),
                "window" => Some(Kind::Window),
                "dp" => Some(Kind::Dp),
                "beam" => Some(Kind::Beam(4)),
                "evolve" => Some(Kind::Evolve),
                "exhaustive" => Some(Kind::Exhaustive),
                _ => None,
            },
            Some(("beam", width)) => width.parse().ok().filter(|&width| width > 0).map(Kind::Beam),
            Some(_) => None,
        };
        let kind = kind.ok_or_else(|| {
            Error::Recipe(format!(
                "a search should be greedy, window, dp, beam:WIDTH, evolve or exhaustive, with or without +swap; found `{text}`"
            ))
        })?;
        Ok(Self { kind, swap })
    }

    /// As [`Search::parse`] reads it.
    pub fn name(&self) -> String {
        let name = match self.kind {
            Kind::Greedy => "greedy".into(),
            Kind::Window => "window".into(),
            Kind::Dp => "dp".into(),
            Kind::Beam(width) => format!("beam:{width}"),
            Kind::Evolve => "evolve".into(),
            Kind::Exhaustive => "exhaustive".into(),
        };
        if self.swap { format!("{name}+swap") } else { name }
    }
}

/// What every search goes by.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Sizes of the sets wanted.
    pub sizes: BTreeSet<usize>,
    /// Layers at the beginning that stay.
    pub protect_first: usize,
    /// Layers at the end that stay.
    pub protect_last: usize,
    /// How candidates are dropped.
    pub race: Race,
    /// In greedy and beam, after the first round: only the so many layers that cost least alone.
    pub shortlist: Option<usize>,
    /// Sets that `exhaustive` goes through at most, of one size.
    pub exhaustive_limit: u64,
    /// Generations of `evolve` at most.
    pub generations: usize,
    /// Of everything drawn.
    pub seed: u64,
}

impl Settings {
    /// The layers that may go of `layers`.
    ///
    /// # Errors
    /// If fewer may go than are wanted.
    pub fn removable(&self, layers: usize) -> Result<Vec<usize>> {
        let last = layers.saturating_sub(self.protect_last);
        let removable: Vec<usize> = (self.protect_first.min(last)..last).collect();
        match self.sizes.last() {
            Some(&most) if most <= removable.len() && !self.sizes.contains(&0) => Ok(removable),
            _ => Err(Error::Recipe(format!(
                "of {layers} layers, the first {} and the last {} stay, so 1 to {} can be removed; found {}",
                self.protect_first,
                self.protect_last,
                removable.len(),
                self.sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
            ))),
        }
    }

    fn most(&self) -> usize {
        self.sizes.last().copied().unwrap_or(0)
    }
}

/// The best set of one size that a search found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// Its size.
    pub k: usize,
    /// The set.
    pub removed: Removal,
    /// Its loss on the search's text.
    pub loss: f64,
    /// The standard error of that.
    pub stderr: Option<f64>,
    /// Other sets of the search's last round that cannot be told from it by the paired difference (two standard errors, or
    /// the race's).
    pub ties: Vec<Removal>,
}

/// The best of `scored`, with those that tie with it.
fn found(k: usize, scored: &[Scored], errors: f64) -> Option<Found> {
    let best = scored.first()?;
    let errors = if errors > 0.0 { errors } else { 2.0 };
    let ties = scored[1..].iter().filter(|other| other.units == best.units && other.ties(errors));
    Some(Found {
        k,
        removed: best.set.clone(),
        loss: best.mean,
        stderr: best.stderr,
        ties: ties.map(|other| other.set.clone()).collect(),
    })
}

/// Runs `search`: one set for each size wanted. `starts` are sets known beforehand, of any size, which a beam takes among its
/// own, so that it cannot end behind them.
///
/// # Errors
/// Sizes that do not fit the model, what the model refuses, or more sets than `exhaustive` may go through.
pub fn run(
    evaluator: &mut Evaluator<'_>,
    search: &Search,
    settings: &Settings,
    angular: &Angular,
    starts: &[Removal],
) -> Result<Vec<Found>> {
    let layers = evaluator.model().blocks().len();
    let removable = settings.removable(layers)?;
    let mut all = match search.kind {
        Kind::Greedy => beam(evaluator, 1, settings, &removable, &[])?,
        Kind::Beam(width) => beam(evaluator, width, settings, &removable, starts)?,
        Kind::Window => {
            let windows = |k: usize| removable.windows(k).map(|window| window.iter().copied().collect()).collect();
            each(evaluator, settings, windows)?
        }
        Kind::Dp => {
            let sets = angular.disjoint_windows(&removable, settings.most());
            each(evaluator, settings, |k| vec![sets[k].clone()])?
        }
        Kind::Exhaustive => {
            for &k in &settings.sizes {
                let count = choose(removable.len(), k);
                if count > settings.exhaustive_limit {
                    return Err(Error::Recipe(format!(
                        "there are {count} sets of {k} of {} layers, more than the {} that are gone through; search \
                         otherwise, or raise --exhaustive-limit",
                        removable.len(),
                        settings.exhaustive_limit
                    )));
                }
            }
            each(evaluator, settings, |k| combinations(&removable, k))?
        }
        Kind::Evolve => {
            let greedy = beam(evaluator, 1, settings, &removable, &[])?;
            let dp = angular.disjoint_windows(&removable, settings.most());
            let mut all = Vec::new();
            for &k in &settings.sizes {
                let mut starts: Vec<Removal> =
                    greedy.iter().filter(|found| found.k == k).map(|f| f.removed.clone()).collect();
                starts.push(dp[k].clone());
                starts.extend(removable.windows(k).map(|window| window.iter().copied().collect()));
                all.extend(evolve::evolve(evaluator, k, starts, &removable, settings)?);
            }
            all
        }
    };
    if search.swap {
        for found in &mut all {
            *found = exchange(evaluator, found.clone(), settings, &removable)?;
        }
    }
    all.retain(|found| settings.sizes.contains(&found.k));
    Ok(all)
}

/// The best of the sets that `candidates` gives for each size.
fn each(
    evaluator: &mut Evaluator<'_>,
    settings: &Settings,
    candidates: impl Fn(usize) -> Vec<Removal>,
) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    for &k in &settings.sizes {
        let scored = evaluator.select(&candidates(k), 1, settings.race)?;
        all.extend(found(k, &scored, settings.race.errors));
    }
    Ok(all)
}

/// Round by round the `width` best of `starts` and of the sets kept, and greedy's, each with one more layer gone. A width of 1
/// without starts is greedy.
fn beam(
    evaluator: &mut Evaluator<'_>,
    width: usize,
    settings: &Settings,
    removable: &[usize],
    starts: &[Removal],
) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    let (mut kept, mut greedy) = (vec![Removal::default()], Removal::default());
    let mut pool = removable.to_vec();
    for k in 1..=settings.most() {
        // A plain beam may lose greedy's path, and then end worse than greedy; this one carries it.
        if !kept.contains(&greedy) {
            kept.push(greedy.clone());
        }
        let grow = |set: &Removal| -> Vec<Removal> {
            pool.iter().filter(|&&layer| !set.contains(layer)).map(|&layer| set.with(layer)).collect()
        };
        let mut candidates: BTreeSet<Removal> = kept.iter().flat_map(grow).collect();
        let allowed = |set: &&Removal| set.len() == k && set.layers().iter().all(|layer| removable.contains(layer));
        candidates.extend(starts.iter().filter(allowed).cloned());
        let candidates: Vec<Removal> = candidates.into_iter().collect();
        let scored = evaluator.select(&candidates, width, settings.race)?;
        let whole: Vec<&Scored> = scored.iter().filter(|one| one.units == scored[0].units).collect();
        let children = grow(&greedy);
        let step = whole.iter().find(|one| children.contains(&one.set)).map(|one| one.set.clone());
        greedy = match step {
            Some(step) => step,
            // All of greedy's children lost the race: its own round decides which it is.
            None => evaluator.select(&children, 1, settings.race)?.remove(0).set,
        };
        kept = whole.iter().take(width).map(|one| one.set.clone()).collect();
        if let Some(most) = settings.shortlist.filter(|_| k == 1) {
            let cheapest = scored.iter().flat_map(|one| one.set.layers()).copied();
            pool = cheapest.take(most.max(settings.most())).collect();
            pool.sort_unstable();
        }
        all.extend(found(k, &scored, settings.race.errors));
    }
    Ok(all)
}

/// Exchanges one layer that is gone for one that stays, as long as that helps.
fn exchange(evaluator: &mut Evaluator<'_>, start: Found, settings: &Settings, removable: &[usize]) -> Result<Found> {
    let mut best = start;
    for _ in 0..SWAP_ROUNDS {
        let mut candidates = vec![best.removed.clone()];
        for &out in best.removed.layers() {
            let others = removable.iter().filter(|&&layer| !best.removed.contains(layer));
            candidates.extend(others.map(|&layer| best.removed.without(out).with(layer)));
        }
        let scored = evaluator.select(&candidates, 1, settings.race)?;
        let Some(next) = found(best.k, &scored, settings.race.errors) else { break };
        let better = next.loss < best.loss && next.removed != best.removed;
        best = if better { next } else { Found { ties: next.ties, ..best } };
        if !better {
            break;
        }
    }
    Ok(best)
}

/// n over k, or the largest number there is.
fn choose(n: usize, k: usize) -> u64 {
    (0..k.min(n - k.min(n)) as u64)
        .try_fold(1u64, |c, i| Some(c.checked_mul(n as u64 - i)? / (i + 1)))
        .unwrap_or(u64::MAX)
}

/// All sets of `k` of `layers`.
pub(super) fn combinations(layers: &[usize], k: usize) -> Vec<Removal> {
    fn extend(layers: &[usize], k: usize, chosen: &mut Vec<usize>, all: &mut Vec<Removal>) {
        if k == 0 {
            all.push(chosen.clone().into());
            return;
        }
        for at in 0..=layers.len().saturating_sub(k) {
            if let Some(&layer) = layers.get(at) {
                chosen.push(layer);
                extend(&layers[at + 1..], k - 1, chosen, all);
                chosen.pop();
            }
        }
    }
    let mut all = Vec::new();
    extend(layers, k, &mut Vec::new(), &mut all);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_are_read_as_they_are_written() {
        for name in ["greedy", "window", "dp", "beam:3", "evolve", "exhaustive", "greedy+swap", "beam:2+swap"] {
            assert_eq!(Search::parse(name).unwrap().name(), name);
        }
        for name in ["", "beam:0", "beam:x", "best", "greedy:2", "greedy+swop"] {
            assert!(Search::parse(name).unwrap_err().to_string().contains(&format!("found `{name}`")));
        }
    }

    #[test]
    fn all_sets_are_gone_through_once() {
        let layers = [1, 2, 4, 5, 7];
        for k in 1..=5 {
            let all = combinations(&layers, k);
            assert_eq!(all.len() as u64, choose(5, k));
            assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
            assert!(all.iter().all(|set| set.len() == k));
        }
        assert_eq!(choose(200, 100), u64::MAX);
        assert_eq!(choose(28, 8), 3_108_105);
    }
}
