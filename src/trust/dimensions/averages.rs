//! Averages over parts, so that a part with many items does not drown the others.

use std::collections::BTreeMap;

use super::super::item::{Item, Outcome};

/// Judged items of one part.
pub type Judged<'a> = Vec<(&'a Item, &'a Outcome)>;

/// Stands between the name of a part and the number of its copy, where a draw holds the part several times.
const COPY: char = '\u{0}';

/// What a part is called that a draw holds for the (`copy` + 1)th time.
pub fn name_of_copy(part: &str, copy: usize) -> String {
    format!("{part}{COPY}{copy}")
}

/// The part that a copy is of; any other part itself.
pub fn own_name(part: &str) -> &str {
    part.split(COPY).next().unwrap_or(part)
}

/// Whether a part is the condition *without* the perturbation; see [`dimensions`](super).
pub fn is_other_condition(part: &str) -> bool {
    matches!(own_name(part).rsplit('-').next(), Some("clean" | "without" | "base"))
}

/// The judged items by part, in the order of the parts' names.
pub fn by_part<'a>(judged: &[(&'a Item, &'a Outcome)]) -> BTreeMap<&'a str, Judged<'a>> {
    let mut parts: BTreeMap<&str, Judged> = BTreeMap::new();
    for &(item, outcome) in judged {
        parts.entry(&item.part).or_default().push((item, outcome));
    }
    parts
}

/// The parts that make the score: all but the other condition, or all where there is nothing else.
pub fn scored<'a>(judged: &[(&'a Item, &'a Outcome)]) -> BTreeMap<&'a str, Judged<'a>> {
    let mut parts = by_part(judged);
    if parts.keys().any(|part| !is_other_condition(part)) {
        parts.retain(|part, _| !is_other_condition(part));
    }
    parts
}

/// The mean value; `NaN` of nothing.
pub fn mean_value(judged: &[(&Item, &Outcome)]) -> f64 {
    mean(judged.iter().map(|(_, outcome)| outcome.value))
}

/// The mean over the parts that make the score, each measured by `measure`.
pub fn mean_over_parts(judged: &[(&Item, &Outcome)], measure: impl Fn(&[(&Item, &Outcome)]) -> f64) -> f64 {
    mean(scored(judged).into_values().map(|part| measure(&part)))
}

/// What the perturbation takes away: for each part `X` that has an other condition `X-clean`, `X-without` or `X-base` (or,
/// where there is only one other condition, for all parts together), mean value with less mean value without, in points.
pub fn effects(judged: &[(&Item, &Outcome)]) -> Vec<(String, f64)> {
    let parts = by_part(judged);
    let stem = |part: &str| part.rsplit_once('-').map_or(String::new(), |(stem, _)| stem.to_string());
    let mut effects = Vec::new();
    for (other, without) in parts.iter().filter(|(part, _)| is_other_condition(part)) {
        let stem = stem(other);
        let with: Judged = match parts.get(stem.as_str()) {
            Some(with) => with.clone(),
            None if stem.is_empty() => scored(judged).into_values().flatten().collect(),
            None => continue,
        };
        if with.iter().any(|(item, _)| !is_other_condition(&item.part)) {
            let name = if stem.is_empty() { "effect".to_string() } else { format!("effect-{stem}") };
            effects.push((name, 100.0 * (mean_value(&with) - mean_value(without))));
        }
    }
    effects
}

/// The arithmetic mean; `NaN` of nothing.
pub fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { f64::NAN } else { sum / count as f64 }
}

/// The outcome each item would have if it were worth `value`: what chance is measured on.
pub fn worth(value: f64) -> Outcome {
    Outcome { choice: None, value, refused: false, unparsable: false, margin: None, probabilities: Vec::new() }
}

/// What `score` makes of items that are each worth what `blind` says; absent where one has no such worth.
pub fn expected(
    items: &[Item],
    blind: impl Fn(&Item) -> Option<f64>,
    score: impl Fn(&[(&Item, &Outcome)]) -> f64,
) -> Option<f64> {
    let outcomes: Vec<Outcome> = items.iter().map(|item| blind(item).map(worth)).collect::<Option<_>>()?;
    let judged: Vec<(&Item, &Outcome)> = items.iter().zip(&outcomes).collect();
    Some(score(&judged)).filter(|score| !score.is_nan())
}

#[cfg(test)]
mod tests {
    use super::super::testing::choice_in;
    use super::*;

    #[test]
    fn parts_weigh_the_same_and_the_other_condition_is_left_out() {
        let items =
            [choice_in("a", 2), choice_in("a", 2), choice_in("a", 2), choice_in("b", 2), choice_in("a-clean", 2)];
        let outcomes = [1.0, 1.0, 0.0, 0.0, 1.0].map(worth);
        let judged: Vec<_> = items.iter().zip(&outcomes).collect();
        assert_eq!(mean_over_parts(&judged, mean_value), (2.0 / 3.0 + 0.0) / 2.0);
        assert_eq!(mean_over_parts(&judged[4..], mean_value), 1.0, "there is nothing else");
        assert!(mean_over_parts(&[], mean_value).is_nan());
    }

    #[test]
    fn a_part_drawn_twice_counts_twice() {
        let items = [choice_in("a", 2), choice_in("b", 2), choice_in(&name_of_copy("b", 1), 2)];
        let outcomes = [1.0, 0.0, 0.0].map(worth);
        let judged: Vec<_> = items.iter().zip(&outcomes).collect();
        assert!((mean_over_parts(&judged, mean_value) - 1.0 / 3.0).abs() < 1e-12);
        assert!(is_other_condition(&name_of_copy("a-clean", 2)) && !is_other_condition(&name_of_copy("a", 2)));
        assert_eq!((own_name(&name_of_copy("a-clean", 2)), own_name("b")), ("a-clean", "b"));
    }

    #[test]
    fn an_effect_is_with_less_without() {
        let items = [choice_in("a", 2), choice_in("a", 2), choice_in("a-clean", 2), choice_in("b-clean", 2)];
        let outcomes = [1.0, 0.0, 1.0, 0.0].map(worth);
        let judged: Vec<_> = items.iter().zip(&outcomes).collect();
        assert_eq!(effects(&judged), [("effect-a".to_string(), -50.0)]);
        let items = [choice_in("tweet", 2), choice_in("letter", 2), choice_in("base", 2)];
        let outcomes = [1.0, 0.0, 1.0].map(worth);
        let judged: Vec<_> = items.iter().zip(&outcomes).collect();
        assert_eq!(effects(&judged), [("effect".to_string(), -50.0)], "one base for all styles");
    }
}
