//! How good probabilities are: accuracy, AUROC, calibration error, exact sets, and the most likely k; with intervals.

use serde::{Deserialize, Serialize};

use super::head::Choice;
use crate::random::Stream;

/// Samples of an interval (Efron 1979, percentiles).
const RESAMPLES: usize = 1000;

/// Losses of accuracy below this are within what drawing models anew changes.
pub const LEAST_LOSS: f64 = 0.015;

/// Bins of the calibration error.
const BINS: usize = 15;

/// A figure and the interval of 95 % that drawing the models anew would give it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The figure.
    pub value: f64,
    /// Its 2.5th percentile over resampled models.
    pub low: f64,
    /// Its 97.5th.
    pub high: f64,
}

/// What is said of probabilities against truths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// Models.
    pub models: usize,
    /// Right decisions: of all (model, class) pairs at 0.5, or of models where one class holds.
    pub accuracy: Figure,
    /// Mean over classes of the chance that a model with the class is scored above one without; none where every class
    /// is held by all models or by none.
    pub auroc: Option<Figure>,
    /// Mean distance between probability and frequency, over 15 bins of equal width.
    pub calibration_error: f64,
    /// Models whose set of classes is found exactly, at 0.5.
    pub exact: Figure,
    /// Share of a model's k classes among its k most likely, where k is known.
    pub top_k: Figure,
}

/// The largest number's place; the first of equal ones.
pub fn largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (at, value) in values.iter().enumerate() {
        if value.total_cmp(&values[best]).is_gt() {
            best = at;
        }
    }
    best
}

/// Places of the `k` largest, largest first; of equal ones the first.
pub fn largest_of(values: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    order.truncate(k);
    order
}

/// Area under the receiver's curve: the chance that a positive is scored above a negative, ties counting half (Mann and
/// Whitney 1947). `None` without both kinds.
pub fn auroc(scores: &[f32], truths: &[bool]) -> Option<f64> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let positives = truths.iter().filter(|truth| **truth).count();
    let negatives = truths.len() - positives;
    if positives == 0 || negatives == 0 {
        return None;
    }
    let (mut ranks, mut start) = (0.0, 0);
    while start < order.len() {
        let same = order[start..].iter().take_while(|&&at| scores[at] == scores[order[start]]).count().max(1);
        let rank = start as f64 + (same as f64 + 1.0) / 2.0;
        ranks += rank * order[start..start + same].iter().filter(|&&at| truths[at]).count() as f64;
        start += same;
    }
    let pairs = positives as f64 * negatives as f64;
    Some((ranks - positives as f64 * (positives as f64 + 1.0) / 2.0) / pairs)
}

/// Probabilities and truths of models, (models, classes) each.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    /// What may hold at once.
    pub choice: Choice,
    /// In 0..1.
    pub probabilities: &'a [f32],
    /// 0 or 1.
    pub truths: &'a [f32],
    /// Columns.
    pub classes: usize,
}

impl Judged<'_> {
    fn rows(&self) -> impl Iterator<Item = (&[f32], &[f32])> {
        self.probabilities.chunks_exact(self.classes).zip(self.truths.chunks_exact(self.classes))
    }

    /// All figures; intervals by drawing models with replacement, by `seed`.
    pub fn figures(&self, seed: u64) -> Figures {
        let accuracies: Vec<f64> = self.rows().map(|(p, t)| accuracy(self.choice, p, t)).collect();
        let exact: Vec<f64> = self
            .rows()
            .map(|(p, t)| match self.choice {
                Choice::Several => f64::from(p.iter().zip(t).all(|(p, t)| (*p > 0.5) == (*t > 0.5))),
                Choice::One => accuracy(self.choice, p, t),
            })
            .collect();
        let top: Vec<f64> = self.rows().map(|(p, t)| top_k(p, t)).collect();
        let models = accuracies.len();
        Figures {
            models,
            accuracy: mean(&accuracies, seed),
            auroc: self.auroc(seed),
            calibration_error: self.calibration_error(),
            exact: mean(&exact, seed),
            top_k: mean(&top, seed),
        }
    }

    /// The mean of the classes' AUROC, for scores that need not be probabilities.
    pub fn auroc(&self, seed: u64) -> Option<Figure> {
        /// AUROC sorts; fewer resamples do.
        const SAMPLES: usize = 200;
        let models = self.probabilities.len() / self.classes;
        let over = |chosen: &[usize]| -> Option<f64> {
            let areas: Vec<f64> = (0..self.classes)
                .filter_map(|class| {
                    let at = |model: &usize| model * self.classes + class;
                    let scores: Vec<f32> = chosen.iter().map(|model| self.probabilities[at(model)]).collect();
                    let truths: Vec<bool> = chosen.iter().map(|model| self.truths[at(model)] > 0.5).collect();
                    auroc(&scores, &truths)
                })
                .collect();
            (!areas.is_empty()).then(|| areas.iter().sum::<f64>() / areas.len() as f64)
        };
        let all: Vec<usize> = (0..models).collect();
        let value = over(&all)?;
        let mut stream = Stream::new(seed, "probe/auroc", 0);
        let mut values: Vec<f64> =
            (0..SAMPLES).filter_map(|_| over(&(0..models).map(|_| stream.below(models)).collect::<Vec<_>>())).collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values.get(((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1)));
        Some(Figure { value, low: *at(0.025).unwrap_or(&value), high: *at(0.975).unwrap_or(&value) })
    }

    fn calibration_error(&self) -> f64 {
        let mut bins = [(0usize, 0.0, 0.0); BINS];
        let mut count = |p: f32, held: bool| {
            let bin = &mut bins[((p * BINS as f32) as usize).min(BINS - 1)];
            *bin = (bin.0 + 1, bin.1 + f64::from(p), bin.2 + f64::from(u8::from(held)));
        };
        match self.choice {
            Choice::Several => {
                self.probabilities.iter().zip(self.truths).for_each(|(&p, &t)| count(p, t > 0.5));
            }
            Choice::One => self.rows().for_each(|(p, t)| {
                let best = largest(p);
                count(p[best], t[best] > 0.5);
            }),
        }
        let all: usize = bins.iter().map(|bin| bin.0).sum();
        bins.iter().map(|&(_, p, held)| (p - held).abs()).sum::<f64>() / all.max(1) as f64
    }
}

fn accuracy(choice: Choice, p: &[f32], t: &[f32]) -> f64 {
    match choice {
        Choice::Several => {
            p.iter().zip(t).filter(|(p, t)| (**p > 0.5) == (**t > 0.5)).count() as f64 / p.len().max(1) as f64
        }
        Choice::One => f64::from(t[largest(p)] > 0.5),
    }
}

fn top_k(p: &[f32], t: &[f32]) -> f64 {
    let k = t.iter().filter(|t| **t > 0.5).count();
    let found = largest_of(p, k).into_iter().filter(|&at| t[at] > 0.5).count();
    if k == 0 { 1.0 } else { found as f64 / k as f64 }
}

/// The mean with its interval.
pub fn mean(values: &[f64], seed: u64) -> Figure {
    let of = |sum: f64| sum / values.len().max(1) as f64;
    let value = of(values.iter().sum());
    let mut stream = Stream::new(seed, "probe/resample", 0);
    let mut means: Vec<f64> = (0..if values.is_empty() { 0 } else { RESAMPLES })
        .map(|_| of((0..values.len()).map(|_| values[stream.below(values.len())]).sum()))
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means.get((RESAMPLES as f64 * share) as usize).copied().unwrap_or(value);
    Figure { value, low: at(0.025), high: at(0.975) }
}

/// The mean of values known for several seeds (seed, model), whose interval draws seeds and models anew.
pub fn mean_over(seeds: &[Vec<f64>], seed: u64) -> Figure {
    let models = seeds.first().map_or(0, Vec::len);
    if seeds.len() < 2 || models == 0 {
        return mean(seeds.first().map_or(&[], Vec::as_slice), seed);
    }
    let averages: Vec<f64> =
        (0..models).map(|at| seeds.iter().map(|row| row[at]).sum::<f64>() / seeds.len() as f64).collect();
    let mut stream = Stream::new(seed, "probe/resample-seeds", 0);
    let mut draws: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let rows: Vec<&Vec<f64>> = (0..seeds.len()).map(|_| &seeds[stream.below(seeds.len())]).collect();
            let drawn = (0..models).map(|_| {
                let at = stream.below(models);
                rows.iter().map(|row| row[at]).sum::<f64>() / rows.len() as f64
            });
            drawn.sum::<f64>() / models as f64
        })
        .collect();
    draws.sort_by(f64::total_cmp);
    let at = |share: f64| draws[(RESAMPLES as f64 * share) as usize];
    Figure { value: averages.iter().sum::<f64>() / models as f64, low: at(0.025), high: at(0.975) }
}

/// How much of what was lost is won back: Σ (after − lost) / Σ (before − lost) over models, with the interval of drawing
/// models anew. `None` where nothing was lost.
pub fn recovered(before: &[f64], lost: &[f64], after: &[f64], seed: u64) -> Option<Figure> {
    let over = |chosen: &[usize]| -> Option<f64> {
        let sum = |a: &[f64], b: &[f64]| chosen.iter().map(|&at| a[at] - b[at]).sum::<f64>();
        let gone = sum(before, lost);
        (gone > 0.0).then(|| sum(after, lost) / gone)
    };
    let models = before.len();
    let gone: f64 = before.iter().zip(lost).map(|(before, lost)| before - lost).sum();
    if gone < LEAST_LOSS * models as f64 {
        return None;
    }
    let value = over(&(0..models).collect::<Vec<_>>())?;
    let mut stream = Stream::new(seed, "probe/resample-shares", 0);
    let mut draws: Vec<f64> =
        (0..RESAMPLES).filter_map(|_| over(&(0..models).map(|_| stream.below(models)).collect::<Vec<_>>())).collect();
    draws.sort_by(f64::total_cmp);
    let at = |share: f64| draws.get((draws.len() as f64 * share) as usize).copied().unwrap_or(value);
    Some(Figure { value, low: at(0.025), high: at(0.975) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_the_share_of_ordered_pairs() {
        // Pairs (positive, negative) by hand: 0.9 > 0.5, 0.9 > 0.1, 0.5 = 0.5, 0.5 > 0.1: 3.5 of 4.
        assert_eq!(auroc(&[0.9, 0.5, 0.5, 0.1], &[true, true, false, false]), Some(0.875));
        assert_eq!(auroc(&[0.1, 0.2], &[true, true]), None);
    }

    #[test]
    fn figures_of_a_small_table() {
        let judged = Judged {
            choice: Choice::Several,
            probabilities: &[0.9, 0.6, 0.1, 0.4, 0.8, 0.2],
            truths: &[1.0, 0.0, 0.0, 1.0, 1.0, 0.0],
            classes: 3,
        };
        let figures = judged.figures(1);
        assert!((figures.accuracy.value - 4.0 / 6.0).abs() < 1e-12, "two of six are wrong: {figures:?}");
        assert_eq!(figures.exact.value, 0.0);
        assert_eq!(figures.top_k.value, 1.0);
        assert!(figures.accuracy.low <= figures.accuracy.value && figures.accuracy.value <= figures.accuracy.high);
        // Each probability alone in its bin: the mean of |p − t|.
        let error = (0.1 + 0.6 + 0.1 + 0.6 + 0.2 + 0.2) / 6.0;
        assert!((figures.calibration_error - error).abs() < 1e-6, "{figures:?}");
        assert_eq!(largest_of(&[0.5, 0.7, 0.5], 2), [1, 0]);
    }

    #[test]
    fn shares_won_back_and_means_over_seeds() {
        let (before, lost, after) = ([1.0, 0.9, 0.8], [0.5, 0.5, 0.8], [0.8, 0.8, 0.7]);
        let share = recovered(&before, &lost, &after, 1).unwrap();
        assert!((share.value - 0.5 / 0.9).abs() < 1e-12 && share.low <= share.value && share.value <= share.high);
        assert_eq!(recovered(&before, &before, &after, 1), None);
        let seeds = [vec![0.9, 0.7], vec![0.7, 0.5]];
        let found = mean_over(&seeds, 3);
        assert!((found.value - 0.7).abs() < 1e-12);
        // Drawing seeds too widens the interval of the averages alone.
        let alone = mean(&[0.8, 0.6], 3);
        assert!(found.low < alone.low && found.high > alone.high, "{found:?} {alone:?}");
    }
}
