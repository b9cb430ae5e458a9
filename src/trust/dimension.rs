//! What is measured: one file a dimension, and one line in [`DIMENSIONS`].

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

    /// The score of judged items, in the order given; an item may be there more than once (the bootstrap draws with
    /// replacement). `NaN` where the draw says nothing, such as one without any item of a group.
    fn score(&self, judged: &[(&Item, &Outcome)]) -> f64 {
        100.0 * judged.iter().map(|(_, outcome)| outcome.value).sum::<f64>() / judged.len() as f64
    }

    /// The score of a model that knows nothing about these items; absent where no such model is defined.
    fn chance(&self, items: &[Item]) -> Option<f64>;
}

/// Every dimension, in the order reports show them.
pub const DIMENSIONS: &[&dyn Dimension] = &[];

/// The dimension of that name.
pub fn named(name: &str) -> Option<&'static dyn Dimension> {
    DIMENSIONS.iter().copied().find(|dimension| dimension.name() == name)
}
