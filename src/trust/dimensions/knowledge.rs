//! Knowledge beside trust: multiple choice, as a measure of what else compression cost.
//!
//! `score = 100 · right / items` over all parts together, as MMLU weighs its subjects by their questions.

use super::super::dimension::{Dimension, Rule};
use super::super::item::{Answer, Item, Outcome};
use super::averages::{expected, mean_value};
use super::likelihood::{LIKELIHOOD, PER_BYTE, blind};
use super::reading::judge_labels;

/// What a model knows of the world; see the file.
#[derive(Debug)]
pub struct Knowledge;

impl Dimension for Knowledge {
    fn name(&self) -> &'static str {
        "knowledge"
    }

    fn rules(&self) -> &'static [Rule] {
        &[LIKELIHOOD, PER_BYTE]
    }

    fn paper(&self) -> &'static str {
        "Hendrycks et al. 2021, Measuring massive multitask language understanding (arXiv:2009.03300)"
    }

    fn judge(&self, rule: Rule, item: &Item, answer: &Answer) -> Outcome {
        judge_labels(rule, item, answer)
    }

    fn score(&self, _: Rule, judged: &[(&Item, &Outcome)]) -> f64 {
        100.0 * mean_value(judged)
    }

    fn chance(&self, rule: Rule, items: &[Item]) -> Option<f64> {
        expected(items, blind, |judged| self.score(rule, judged))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{choice_in, laws_of_accuracy, outcomes};
    use super::*;

    #[test]
    fn questions_weigh_the_same_whatever_their_part() {
        let items = [choice_in("a", 4), choice_in("a", 4), choice_in("a", 4), choice_in("b", 4)];
        let judged = outcomes(&Knowledge, LIKELIHOOD, &items, |at, _| if at < 2 { 0 } else { 1 });
        let pairs: Vec<_> = items.iter().zip(&judged).collect();
        assert_eq!(Knowledge.score(LIKELIHOOD, &pairs), 50.0);
        assert_eq!(
            Knowledge.parts(LIKELIHOOD, &pairs),
            [("a".to_string(), 100.0 * (2.0 / 3.0)), ("b".to_string(), 0.0)]
        );
        assert_eq!(Knowledge.chance(LIKELIHOOD, &items), Some(25.0));
    }

    #[test]
    fn perfect_constant_and_random_models_score_as_they_must() {
        laws_of_accuracy(&Knowledge, "a", 4);
    }
}
