//! Probabilities that mean what they say: a temperature, and sets that hold the truth as often as asked.

use super::head::{Choice, probabilities};

/// Temperatures tried lie between this and its inverse.
const COLDEST: f32 = 0.05;

/// The temperature T by which logits / T have the least cost (Guo et al. 2017), by golden section over log T.
pub fn temperature(choice: Choice, logits: &[f32], truths: &[f32], classes: usize) -> f32 {
    if logits.is_empty() {
        return 1.0;
    }
    let cost = |log: f32| {
        let mut scaled: Vec<f32> = logits.iter().map(|y| y / log.exp()).collect();
        super::head::cost(choice, &mut scaled, truths, classes)
    };
    let golden = (5f32.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (COLDEST.ln(), -COLDEST.ln());
    for _ in 0..40 {
        let (a, b) = (high - golden * (high - low), low + golden * (high - low));
        if cost(a) < cost(b) { high = b } else { low = a }
    }
    f32::midpoint(low, high).exp()
}

/// How unlikely the least likely of each model's true classes is, ascending: what [`threshold`] is taken from. A model
/// without classes counts as 0.
pub fn scores(choice: Choice, logits: &[f32], truths: &[f32], classes: usize, temperature: f32) -> Vec<f32> {
    let p = probabilities(choice, logits, classes, temperature);
    let rows = p.chunks_exact(classes).zip(truths.chunks_exact(classes));
    let mut scores: Vec<f32> = rows
        .map(|(p, t)| p.iter().zip(t).filter(|(_, t)| **t > 0.5).fold(0.0, |most, (p, _)| f32::max(most, 1.0 - p)))
        .collect();
    scores.sort_by(f32::total_cmp);
    scores
}

/// The set {c : 1 − p_c ≤ threshold} holds all true classes of a model with at least the chance `coverage`, if the model
/// is drawn as those behind `scores` were (split conformal prediction: Vovk et al. 2005; Sadinle et al. 2019). Too few
/// scores for the coverage give 1, the set of all classes.
pub fn threshold(scores: &[f32], coverage: f64) -> f32 {
    let rank = ((scores.len() + 1) as f64 * coverage).ceil() as usize;
    scores.get(rank.max(1) - 1).copied().unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    #[test]
    fn the_temperature_undoes_a_factor() {
        // Truths drawn from the logits' own probabilities; the logits are then stated three times as large.
        let mut stream = Stream::new(4, "test", 0);
        let (mut logits, mut truths) = (Vec::new(), Vec::new());
        for _ in 0..20_000 {
            let y = stream.between(-2.0, 2.0);
            truths.push(f32::from(u8::from(stream.unit() < 1.0 / (1.0 + (-y).exp()))));
            logits.push(3.0 * y as f32);
        }
        let found = temperature(Choice::Several, &logits, &truths, 10);
        assert!((found - 3.0).abs() < 0.15, "{found}");
    }

    #[test]
    fn the_threshold_is_the_score_of_the_rank_that_the_coverage_asks_for() {
        // Of nine scores, the ⌈10 · coverage⌉-th by size.
        let nine = [0.05, 0.15, 0.25, 0.35, 0.5, 0.6, 0.7, 0.85, 0.95];
        for (coverage, expected) in [
            (0.0, 0.05),
            (0.1, 0.05),
            (0.11, 0.15),
            (0.25, 0.25),
            (0.5, 0.5),
            (0.55, 0.6),
            (0.8, 0.85),
            (0.9, 0.95),
            (0.91, 1.0),
            (1.0, 1.0),
        ] {
            assert_eq!(threshold(&nine, coverage), expected, "{coverage}");
        }
        assert_eq!(threshold(&[], 0.0), 1.0);
    }

    #[test]
    fn a_score_is_that_of_the_least_likely_true_class() {
        /// A few roundings of numbers below 1.
        const MAX_DIFFERENCE: f32 = 1e-6;
        let close = |found: &[f32], expected: &[f32]| {
            let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
            assert!(found.len() == expected.len() && apart.fold(0.0, f32::max) < MAX_DIFFERENCE, "{found:?}");
        };
        // Probabilities 0.9, 0.5 and 0.1, by logits twice as large at a temperature of 2.
        let y = 2.0 * 9f32.ln();
        let truths = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        close(&scores(Choice::Several, &[y, 0.0, -y].repeat(4), &truths, 3, 2.0), &[0.0, 0.1, 0.5, 0.9]);
        // Probabilities 0.7, 0.2 and 0.1.
        let logits = [2.0 * 7f32.ln(), 2.0 * 2f32.ln(), 0.0].repeat(3);
        let truths = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        close(&scores(Choice::One, &logits, &truths, 3, 2.0), &[0.3, 0.8, 0.9]);
    }

    #[test]
    fn sets_cover_as_often_as_asked() {
        let mut stream = Stream::new(5, "test", 0);
        let mut draw = |models: usize| -> (Vec<f32>, Vec<f32>) {
            (0..models * 4)
                .map(|_| {
                    let y = stream.between(-3.0, 3.0);
                    (y as f32, f32::from(u8::from(stream.unit() < 1.0 / (1.0 + (-y).exp()))))
                })
                .unzip()
        };
        let (logits, truths) = draw(500);
        let scores = scores(Choice::Several, &logits, &truths, 4, 1.0);
        for coverage in [0.5, 0.8, 0.9] {
            let threshold = threshold(&scores, coverage);
            let (logits, truths) = draw(4000);
            let covered = logits.chunks_exact(4).zip(truths.chunks_exact(4)).filter(|(y, t)| {
                y.iter().zip(*t).all(|(y, t)| *t < 0.5 || 1.0 - 1.0 / (1.0 + (-y).exp()) <= threshold)
            });
            let share = covered.count() as f64 / 4000.0;
            assert!((share - coverage).abs() < 0.05, "{share} for {coverage}");
        }
        assert_eq!(threshold(&scores[..5], 0.95), 1.0, "five scores cannot say what 95 % needs");
    }
}
