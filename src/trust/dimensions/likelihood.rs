//! Judging by likelihood: the option that goes on best is the answer.
//!
//! With `ℓ_k` the summed log-likelihood of option `k` after the prompt, the answer is `argmax ℓ_k`, or, under
//! [`PER_BYTE`], `argmax ℓ_k / b_k`, where `b_k` counts the bytes of the option without the blank it begins with: long
//! options then are not less likely for their length alone. Of equals the first is taken, so that an answer is exact.

use super::super::dimension::Rule;
use super::super::item::{Answer, Ask, Item, Outcome};

/// The likeliest option.
pub const LIKELIHOOD: Rule = Rule { name: "likelihood", version: 1 };
/// The likeliest option per byte.
pub const PER_BYTE: Rule = Rule { name: "likelihood-per-byte", version: 1 };

/// How a model weighs the options of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighed {
    /// What the rule compares, one an option: nats, or nats a byte.
    pub scores: Vec<f64>,
    /// The option with the highest; the first of equals.
    pub choice: usize,
    /// `softmax(ℓ)`: probabilities of the options among themselves.
    pub probabilities: Vec<f64>,
}

/// Weighs the options; `None` where the answer does not say one number an option, or says nothing of any (a model whose
/// weights are broken answers `NaN`).
pub fn weigh(rule: Rule, options: &[String], answer: &Answer) -> Option<Weighed> {
    let sums = &answer.log_likelihoods;
    let best = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if sums.len() != options.len() || sums.iter().any(|sum| sum.is_nan()) || !best.is_finite() {
        return None;
    }
    let bytes = |option: &String| option.trim_start().len().max(1) as f64;
    let scores: Vec<f64> = match rule == PER_BYTE {
        true => sums.iter().zip(options).map(|(sum, option)| sum / bytes(option)).collect(),
        false => sums.clone(),
    };
    let weights: Vec<f64> = sums.iter().map(|sum| (sum - best).exp()).collect();
    let total: f64 = weights.iter().sum();
    Some(Weighed { choice: first_of_best(&scores), scores, probabilities: weights.iter().map(|w| w / total).collect() })
}

impl Weighed {
    /// By how much `option` is ahead of the best other: negative where it is not the choice. Absent where there is no such
    /// option, no other, or no finite difference.
    pub fn margin(&self, option: usize) -> Option<f64> {
        let others = self.scores.iter().enumerate().filter(|&(other, _)| other != option).map(|(_, &score)| score);
        let margin = self.scores.get(option)? - others.fold(f64::NEG_INFINITY, f64::max);
        margin.is_finite().then_some(margin)
    }

    /// The place of `option` among all from 1, the likeliest: of equals the first is ahead.
    pub fn rank(&self, option: usize) -> usize {
        let score = self.scores[option];
        let ahead = |(other, &its): (usize, &f64)| its > score || (its == score && other < option);
        1 + self.scores.iter().enumerate().filter(|&pair| ahead(pair)).count()
    }

    /// The outcome with that value, and the margin of `option`.
    pub fn outcome(self, value: f64, option: usize) -> Outcome {
        let margin = self.margin(option);
        Outcome {
            choice: Some(self.choice),
            value,
            refused: false,
            unparsable: false,
            margin,
            probabilities: self.probabilities,
        }
    }
}

/// Worth 1 where the choice is the right option, else 0. An item that has none is unparsable.
pub fn judge_right(rule: Rule, options: &[String], gold: Option<usize>, answer: &Answer) -> Outcome {
    match (weigh(rule, options, answer), gold.filter(|&gold| gold < options.len())) {
        (Some(weighed), Some(gold)) => {
            let value = f64::from(weighed.choice == gold);
            weighed.outcome(value, gold)
        }
        _ => unparsable(),
    }
}

/// Nothing can be read from the answer; worth nothing.
pub fn unparsable() -> Outcome {
    Outcome { choice: None, value: 0.0, refused: false, unparsable: true, margin: None, probabilities: Vec::new() }
}

/// Of a choice, how probable the right one is under equal chances; absent for a text.
pub fn blind(item: &Item) -> Option<f64> {
    match &item.ask {
        Ask::Choose { options, .. } => Some(1.0 / options.len() as f64),
        Ask::Continue { .. } => None,
    }
}

fn first_of_best(scores: &[f64]) -> usize {
    (0..scores.len()).reduce(|best, next| if scores[next] > scores[best] { next } else { best }).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    fn answer(sums: &[f64]) -> Answer {
        Answer { log_likelihoods: sums.to_vec(), tokens: vec![1; sums.len()], text: None }
    }

    #[test]
    fn the_likeliest_is_taken_and_of_equals_the_first() {
        let three = options(&[" a", " b", " c"]);
        let outcome = judge_right(LIKELIHOOD, &three, Some(1), &answer(&[-3.0, -1.0, -1.0]));
        assert_eq!((outcome.choice, outcome.value, outcome.margin), (Some(1), 1.0, Some(0.0)));
        let outcome = judge_right(LIKELIHOOD, &three, Some(2), &answer(&[-3.0, -1.0, -1.0]));
        assert_eq!((outcome.choice, outcome.value, outcome.margin), (Some(1), 0.0, Some(0.0)));
        let outcome = judge_right(LIKELIHOOD, &three, Some(0), &answer(&[-3.0, -1.0, -1.5]));
        assert_eq!((outcome.value, outcome.margin), (0.0, Some(-2.0)));
    }

    #[test]
    fn length_counts_only_under_the_rule_per_byte() {
        // −6 over 6 bytes is less likely a byte than −8 over 16; the blank in front is no byte of the option.
        let two = options(&[" monday", " the last tuesday"]);
        let sums = answer(&[-6.0, -8.0]);
        assert_eq!(weigh(LIKELIHOOD, &two, &sums).unwrap().choice, 0);
        let by_byte = weigh(PER_BYTE, &two, &sums).unwrap();
        assert_eq!((by_byte.choice, by_byte.scores), (1, vec![-1.0, -0.5]));
        assert!((by_byte.probabilities[0] - 1.0 / (1.0 + (-2f64).exp())).abs() < 1e-15, "of the sums, not per byte");
    }

    #[test]
    fn probabilities_are_of_the_options_among_themselves() {
        let weighed = weigh(LIKELIHOOD, &options(&["a", "b"]), &answer(&[-1000.0, -1000.0 - 3f64.ln()])).unwrap();
        assert!((weighed.probabilities[0] - 0.75).abs() < 1e-12 && (weighed.probabilities[1] - 0.25).abs() < 1e-12);
    }

    #[test]
    fn ranks_count_from_the_likeliest() {
        let weighed = weigh(LIKELIHOOD, &options(&["a", "b", "c", "d"]), &answer(&[-2.0, -1.0, -2.0, -9.0])).unwrap();
        assert_eq!((0..4).map(|option| weighed.rank(option)).collect::<Vec<_>>(), [2, 1, 3, 4]);
    }

    #[test]
    fn answers_that_say_nothing_are_unparsable() {
        let two = options(&["a", "b"]);
        for sums in [&[f64::NAN, -1.0][..], &[f64::NEG_INFINITY, f64::NEG_INFINITY], &[-1.0], &[]] {
            assert_eq!(judge_right(LIKELIHOOD, &two, Some(0), &answer(sums)), unparsable(), "{sums:?}");
        }
        assert!(judge_right(LIKELIHOOD, &two, None, &answer(&[-1.0, -2.0])).unparsable, "no right option");
        assert!(judge_right(LIKELIHOOD, &two, Some(2), &answer(&[-1.0, -2.0])).unparsable, "no such option");
        let one_impossible = judge_right(LIKELIHOOD, &two, Some(0), &answer(&[-1.0, f64::NEG_INFINITY]));
        assert_eq!((one_impossible.value, one_impossible.margin), (1.0, None), "a margin is a number");
    }
}
