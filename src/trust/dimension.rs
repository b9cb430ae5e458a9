//! What is measured: [`dimensions`](super::dimensions), and one line for each in [`DIMENSIONS`].

use super::dimensions::{
    ADVERSARIAL_DEMONSTRATIONS, ADVERSARIAL_ROBUSTNESS, Fairness, Knowledge, MachineEthics, OUT_OF_DISTRIBUTION,
    Privacy, Stereotype, Toxicity,
};
use super::item::{Answer, Item, Outcome};

/// How answers become a score. It is stored with each score, and changes when a score would: numbers compare only under
/// one rule and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Rule {
    /// One word or a few joined by `-`; `likelihood`, or the name of the rule as published.
    pub name: &'static str,
    /// Counts up.
    pub version: u32,
}

/// One dimension of trust (or the knowledge beside it).
///
/// Higher is better, always; scores run from 0 to 100.
pub trait Dimension: std::fmt::Debug + Sync {
    /// One or a few words joined by `-`: `toxicity`, `adversarial-demonstrations`.
    fn name(&self) -> &'static str;

    /// The rules answers can be judged by, the default first.
    fn rules(&self) -> &'static [Rule];

    /// Where the measurement comes from.
    fn paper(&self) -> &'static str;

    /// What a model's answer is worth.
    fn judge(&self, rule: Rule, item: &Item, answer: &Answer) -> Outcome;

    /// The score of items judged by `rule`, in the order given; an item may be there more than once (the bootstrap draws
    /// with replacement). `NaN` where the draw says nothing, such as one without any item of a group.
    fn score(&self, rule: Rule, judged: &[(&Item, &Outcome)]) -> f64;

    /// The score for the bootstrap's draws from `judged`. A score that folds (takes an absolute value, or the distance of the
    /// highest group from the lowest) cannot fall below 0, nor can any draw, so that its interval would leave out 0 whatever
    /// the answers are. Such a one is held open here: signs, and which groups are compared, are those of `judged` in every draw.
    /// By default the score itself.
    fn unfolded<'a>(&'a self, rule: Rule, _: &[(&Item, &Outcome)]) -> Unfolded<'a> {
        Box::new(move |drawn| self.score(rule, drawn))
    }

    /// Figures beside the score, each with its name: by default the score of each part alone. Some dimensions add
    /// differences between parts, which are not scores: their names begin with `effect-`.
    fn parts(&self, rule: Rule, judged: &[(&Item, &Outcome)]) -> Vec<(String, f64)> {
        score_of_parts(self, rule, judged)
    }

    /// The expected score of a model that knows nothing about these items and takes each option equally often; absent
    /// where no such model is defined.
    fn chance(&self, rule: Rule, items: &[Item]) -> Option<f64>;
}

/// A score of draws; see [`Dimension::unfolded`].
pub type Unfolded<'a> = Box<dyn Fn(&[(&Item, &Outcome)]) -> f64 + Sync + 'a>;

/// The score of each part alone, in the order in which the parts appear.
pub fn score_of_parts<D: Dimension + ?Sized>(
    dimension: &D,
    rule: Rule,
    judged: &[(&Item, &Outcome)],
) -> Vec<(String, f64)> {
    let mut parts: Vec<(&str, Vec<(&Item, &Outcome)>)> = Vec::new();
    for &(item, outcome) in judged {
        match parts.iter_mut().find(|(name, _)| *name == item.part) {
            Some((_, part)) => part.push((item, outcome)),
            None => parts.push((&item.part, vec![(item, outcome)])),
        }
    }
    parts.into_iter().map(|(name, part)| (name.to_string(), dimension.score(rule, &part))).collect()
}

/// Every dimension, in the order reports show them.
pub const DIMENSIONS: &[&dyn Dimension] = &[
    &Toxicity,
    &Stereotype,
    &Privacy,
    &Fairness,
    &ADVERSARIAL_ROBUSTNESS,
    &OUT_OF_DISTRIBUTION,
    &ADVERSARIAL_DEMONSTRATIONS,
    &MachineEthics,
    &Knowledge,
];

/// The dimension of that name.
pub fn named(name: &str) -> Option<&'static dyn Dimension> {
    DIMENSIONS.iter().copied().find(|dimension| dimension.name() == name)
}
