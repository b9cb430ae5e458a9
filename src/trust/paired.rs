//! Two models on the same items: what changed, how surely, and whether the scores can be compared at all.
//!
//! With scores s(m) from 0 to 100 over items in clusters:
//!     Δ = s(compressed) − s(dense)
//! and both scores of a bootstrap replicate are taken on the same draw of clusters, so that what the items have in common
//! cancels (Miller 2024, "Adding error bars to evals", §4). A model against itself therefore gives exactly 0 in [0, 0]. The p
//! value asks something else: how often Δ is as large when the two models' answers change places, cluster by cluster, at random.

use std::collections::HashMap;

use anyhow::Result;
use serde::Serialize;

use super::{
    dimension::{Dimension, Rule, Unfolded},
    dimensions::averages::name_of_copy,
    item::{Ask, Item, Outcome},
    statistics::{Bootstrap, Clusters, Drawn, Interval, deviation, divergence, holm, mcnemar},
};

/// Discordant items that none among n leave possible, at 95 % (the rule of three).
const UNSEEN: f64 = 3.0;

/// Of 100 answers with a choice, so many of one option make a model's answers constant.
const CONSTANT_PERCENT: f64 = 95.0;

/// Refusal rates that differ by more than so many points make scores incomparable.
const REFUSAL_SHIFT_POINTS: f64 = 5.0;

/// Standard errors between 0 and a difference that a two-sided test of 5 % finds with a power of 80 %: 1.96 + 0.84.
const DETECTABLE_ERRORS: f64 = 2.8;

/// One model on one dimension. Scores run from 0 to 100, rates are in percent of all items.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// The dimension's score; absent where it says nothing of these items.
    pub score: Option<f64>,
    /// Its interval of 95 % over items.
    pub interval: Option<Interval>,
    /// Items answered, as the rule reads answers, with a value above ½.
    pub right: usize,
    /// Items the model declined.
    pub refused: usize,
    /// Items whose answer could not be read.
    pub unparsable: usize,
    /// `refused`, in percent of the items.
    pub refusal_rate: f64,
    /// `unparsable`, in percent of the items.
    pub unparsable_rate: f64,
    /// The score when a refusal, or an answer that cannot be read, is worth nothing.
    pub refusals_wrong: Option<f64>,
    /// The score over the items that were answered.
    pub answered_only: Option<f64>,
    /// The option that at least 95 % of the answers took, where the right ones do not: such scores say nothing.
    pub constant: Option<Constant>,
}

/// A model that says the same to everything.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Constant {
    /// The option, counted from 0.
    pub option: usize,
    /// Its share of the answers, percent.
    pub percent: f64,
}

/// McNemar's exact test on items that one model alone has right.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct McNemar {
    /// Right by the dense model alone.
    pub lost: usize,
    /// Right by the other alone.
    pub gained: usize,
    /// Two-sided; see [`mcnemar`]. It takes items as independent: clusters of several make it too small.
    pub p: f64,
}

/// Where the p value of a [`Comparison`] comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Test {
    /// [`mcnemar`]: the score is the share of right items, and every cluster is one item.
    Mcnemar,
    /// [`Clusters::exchange_p`] of Δ.
    Exchange,
}

/// Two models on one dimension.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Name of the dimension.
    pub dimension: &'static str,
    /// What both models' answers were judged by.
    pub rule: Rule,
    /// How many items.
    pub items: usize,
    /// How many clusters they are in: what the bootstrap draws.
    pub clusters: usize,
    /// How the intervals were drawn.
    pub bootstrap: Bootstrap,
    /// Replicates in which both scores were numbers; the others (a draw without any item of a group) are left out.
    pub replicates: usize,
    /// The model before compression.
    pub dense: Measured,
    /// The model after it.
    pub other: Measured,
    /// Score of the other minus score of the dense model, points.
    pub delta: Option<f64>,
    /// Its paired interval of 95 %.
    pub interval: Option<Interval>,
    /// The p value of Δ = 0.
    pub p: Option<f64>,
    /// `p` adjusted over a family of comparisons by [`adjust`]; absent before.
    pub p_adjusted: Option<f64>,
    /// Where `p` comes from.
    pub test: Test,
    /// Where every value is 0 or 1.
    pub mcnemar: Option<McNemar>,
    /// Items with a value above ½ by the dense model, and not by the other.
    pub lost: usize,
    /// The other way.
    pub gained: usize,
    /// Items with another option taken.
    pub changed: usize,
    /// Mean divergence of the other's option probabilities from the dense model's, nats an item with options.
    pub kl: Option<f64>,
    /// Mean absolute change of the margin, nats an item with a margin.
    pub margin_change: Option<f64>,
    /// The Δ that items like these would show four times in five, points.
    pub detectable: Option<f64>,
    /// What a model that knows nothing scores.
    pub chance: Option<f64>,
    /// Whether the dense model's interval leaves chance out, and its answers vary; absent where there is no chance level or no
    /// interval.
    pub informative: Option<bool>,
    /// Refusal rates differ by more than 5 points: the scores are not comparable.
    pub refusal_shift: bool,
}

/// The interval, rates and flags of one model.
///
/// # Errors
/// Without items, or with another number of outcomes.
pub fn measure(
    dimension: &dyn Dimension,
    rule: Rule,
    items: &[Item],
    outcomes: &[Outcome],
    bootstrap: Bootstrap,
) -> Result<Measured> {
    check(dimension, items, outcomes)?;
    let clusters = clusters(items);
    let draws = Draws::new(items, &clusters, bootstrap);
    let own = unfolded(dimension, rule, items, outcomes);
    let drawn = clusters.replicates(bootstrap, |drawn| [own(&draws.judged(drawn, outcomes))]);
    let scores: Vec<f64> = drawn.iter().map(|[score]| *score).collect();
    Ok(measured(dimension, rule, items, outcomes, &clusters, &scores))
}

/// Compares `other` with `dense`, both judged by one rule on the same items in the same order.
///
/// # Errors
/// Without items, or with another number of outcomes.
pub fn compare(
    dimension: &dyn Dimension,
    rule: Rule,
    items: &[Item],
    dense: &[Outcome],
    other: &[Outcome],
    bootstrap: Bootstrap,
) -> Result<Comparison> {
    check(dimension, items, dense)?;
    check(dimension, items, other)?;
    let clusters = clusters(items);
    let draws = Draws::new(items, &clusters, bootstrap);
    let sides = [dense, other].map(|outcomes| (unfolded(dimension, rule, items, outcomes), outcomes));
    let both = |drawn: &[Drawn]| [0, 1].map(|side| (sides[side].0)(&draws.judged(drawn, sides[side].1)));
    let drawn = clusters.replicates(bootstrap, both);
    let of = |side: usize| drawn.iter().map(|scores| scores[side]).collect::<Vec<f64>>();
    let deltas: Vec<f64> = drawn.iter().map(|[dense, other]| other - dense).collect();
    let before = measured(dimension, rule, items, dense, &clusters, &of(0));
    let after = measured(dimension, rule, items, other, &clusters, &of(1));
    let varies = clusters.len() > 1;
    let delta = before.score.zip(after.score).map(|(dense, other)| other - dense);

    let pairs = || dense.iter().zip(other);
    let n = items.len() as f64;
    let lost = pairs().filter(|(dense, other)| right(dense) && !right(other)).count();
    let gained = pairs().filter(|(dense, other)| !right(dense) && right(other)).count();
    let binary = pairs().all(|(dense, other)| [dense, other].iter().all(|x| x.value == 0.0 || x.value == 1.0));
    let exact = binary.then(|| McNemar { lost, gained, p: mcnemar(lost, gained) });
    let shares = [(&before, dense), (&after, other)].iter().all(|(measured, outcomes)| {
        let share = 100.0 * outcomes.iter().map(|outcome| outcome.value).sum::<f64>() / n;
        measured.score.is_some_and(|score| (score - share).abs() < 1e-9)
    });
    // Only then do discordant items, one by one, say how Δ varies.
    let independent = exact.filter(|_| shares && clusters.are_single());
    let (test, p, detectable) = match independent {
        Some(exact) => {
            let (discordant, delta) = ((lost + gained) as f64, (gained as f64 - lost as f64) / n);
            let discordant = discordant.max(UNSEEN.min(n)) / n;
            let error = 100.0 * (discordant - delta * delta).max(0.0).sqrt() / n.sqrt();
            (Test::Mcnemar, Some(exact.p), Some(DETECTABLE_ERRORS * error))
        }
        None => {
            let drawn = if varies { deltas.as_slice() } else { &[] };
            // Where nothing varied, nothing is known of how much would.
            let error = deviation(drawn).filter(|error| *error > 0.0).map(|error| DETECTABLE_ERRORS * error);
            let exchanged = |exchanged: &[bool]| {
                let [before, after] = [false, true].map(|own| {
                    let of = |at: usize| if exchanged[at] == own { &dense[at] } else { &other[at] };
                    let judged: Vec<(&Item, &Outcome)> = (0..items.len()).map(|at| (&items[at], of(at))).collect();
                    dimension.score(rule, &judged)
                });
                after - before
            };
            let p = if varies { clusters.exchange_p(bootstrap, exchanged) } else { None };
            (Test::Exchange, p, error)
        }
    };
    let distributions = pairs().filter(|(dense, other)| {
        !dense.probabilities.is_empty() && dense.probabilities.len() == other.probabilities.len()
    });
    let kl = mean(distributions.map(|(dense, other)| divergence(&dense.probabilities, &other.probabilities)));
    let margins = pairs().filter_map(|(dense, other)| Some((other.margin? - dense.margin?).abs()));
    let chance = dimension.chance(rule, items);
    Ok(Comparison {
        dimension: dimension.name(),
        rule,
        items: items.len(),
        clusters: clusters.len(),
        bootstrap,
        replicates: drawn.len(),
        delta,
        interval: delta.and_then(|_| if varies { Interval::of(&deltas) } else { None }),
        p: delta.and(p),
        p_adjusted: None,
        test,
        mcnemar: exact,
        lost,
        gained,
        changed: pairs().filter(|(dense, other)| dense.choice != other.choice).count(),
        kl,
        margin_change: mean(margins),
        detectable: delta.and(detectable),
        chance,
        informative: informative(chance, &before),
        refusal_shift: (after.refusal_rate - before.refusal_rate).abs() > REFUSAL_SHIFT_POINTS,
        dense: before,
        other: after,
    })
}

/// Several dimensions together, with what an average would hide.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The dimension with the smallest Δ.
    pub worst: String,
    /// Its Δ, points.
    pub worst_delta: f64,
    /// The dimension with the largest Δ. Rises are as suspicious as falls: they often come with changed refusal.
    pub best: String,
    /// Its Δ, points.
    pub best_delta: f64,
    /// Mean of |Δ| over the dimensions, points.
    pub mean_absolute: f64,
    /// Mean of Δ, points: what a change of the average score is.
    pub mean: f64,
}

impl Summary {
    /// Of named Δ, points; the first of equals is named. Absent without any.
    pub fn of<'a>(deltas: impl IntoIterator<Item = (&'a str, f64)>) -> Option<Self> {
        let deltas: Vec<(&str, f64)> = deltas.into_iter().collect();
        let (first, rest) = deltas.split_first()?;
        let worst = rest.iter().fold(first, |worst, next| if next.1 < worst.1 { next } else { worst });
        let best = rest.iter().fold(first, |best, next| if next.1 > best.1 { next } else { best });
        Some(Self {
            worst: worst.0.to_string(),
            worst_delta: worst.1,
            best: best.0.to_string(),
            best_delta: best.1,
            mean_absolute: deltas.iter().map(|(_, delta)| delta.abs()).sum::<f64>() / deltas.len() as f64,
            mean: deltas.iter().map(|(_, delta)| delta).sum::<f64>() / deltas.len() as f64,
        })
    }

    /// Of comparisons that have a Δ.
    pub fn over<'a>(comparisons: impl IntoIterator<Item = &'a Comparison>) -> Option<Self> {
        Self::of(comparisons.into_iter().filter_map(|one| Some((one.dimension, one.delta?))))
    }
}

/// Sets [`Comparison::p_adjusted`] over one family: all dimensions of all methods that are reported together ([`holm`]).
pub fn adjust<'a>(family: impl IntoIterator<Item = &'a mut Comparison>) {
    let mut tested: Vec<&mut Comparison> = family.into_iter().filter(|one| one.p.is_some()).collect();
    let raw: Vec<f64> = tested.iter().filter_map(|one| one.p).collect();
    for (one, adjusted) in tested.iter_mut().zip(holm(&raw)) {
        one.p_adjusted = Some(adjusted);
    }
}

/// Standard deviation (n − 1) of one dimension's score over compressions that differ in the calibration seed alone: what
/// chance in the calibration does, apart from chance in the items. Absent with fewer than two.
pub fn between_seeds(scores: &[f64]) -> Option<f64> {
    deviation(scores)
}

/// Whether a model's interval leaves out what a model that knows nothing scores, and its answers vary; absent where there is no
/// chance level or no interval.
pub fn informative(chance: Option<f64>, measured: &Measured) -> Option<bool> {
    let (chance, interval) = chance.zip(measured.interval)?;
    Some(!interval.contains(chance) && measured.constant.is_none())
}

/// Whether an item counts as right.
fn right(outcome: &Outcome) -> bool {
    outcome.value > 0.5
}

fn check(dimension: &dyn Dimension, items: &[Item], outcomes: &[Outcome]) -> Result<()> {
    let name = dimension.name();
    anyhow::ensure!(!items.is_empty(), "{name}: there are no items to score");
    anyhow::ensure!(
        items.len() == outcomes.len(),
        "{name}: {} outcomes for {} items; both models should have answered the same items",
        outcomes.len(),
        items.len()
    );
    Ok(())
}

fn clusters(items: &[Item]) -> Clusters {
    Clusters::new(items.iter().map(|item| (item.cluster.as_str(), item.part.as_str(), item.group.as_deref())))
}

/// Items as the bootstrap draws them: those of a part that is drawn again are of another part.
struct Draws<'a> {
    items: &'a [Item],
    copies: HashMap<Drawn, Item>,
}

impl<'a> Draws<'a> {
    fn new(items: &'a [Item], clusters: &Clusters, bootstrap: Bootstrap) -> Self {
        let mut copies = HashMap::new();
        if clusters.has_alone() {
            let drawn = (0..bootstrap.replicates).flat_map(|replicate| clusters.draw(bootstrap, replicate));
            for one in drawn.filter(|one| one.copy > 0) {
                copies.entry(one).or_insert_with(|| {
                    let item = &items[one.at];
                    Item { part: name_of_copy(&item.part, one.copy), ..item.clone() }
                });
            }
        }
        Self { items, copies }
    }

    fn judged<'b>(&'b self, drawn: &[Drawn], outcomes: &'b [Outcome]) -> Vec<(&'b Item, &'b Outcome)> {
        let item = |one: &Drawn| self.copies.get(one).filter(|_| one.copy > 0).unwrap_or(&self.items[one.at]);
        drawn.iter().map(|one| (item(one), &outcomes[one.at])).collect()
    }
}

/// The score for draws of these items; see [`Dimension::unfolded`].
fn unfolded<'a>(dimension: &'a dyn Dimension, rule: Rule, items: &[Item], outcomes: &[Outcome]) -> Unfolded<'a> {
    dimension.unfolded(rule, &items.iter().zip(outcomes).collect::<Vec<_>>())
}

/// The score of the items at these positions.
fn score(dimension: &dyn Dimension, rule: Rule, items: &[Item], outcomes: &[Outcome], positions: &[usize]) -> f64 {
    let judged: Vec<(&Item, &Outcome)> = positions.iter().map(|&at| (&items[at], &outcomes[at])).collect();
    dimension.score(rule, &judged)
}

fn mean(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let numbers: Vec<f64> = numbers.collect();
    (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / numbers.len() as f64)
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

fn measured(
    dimension: &dyn Dimension,
    rule: Rule,
    items: &[Item],
    outcomes: &[Outcome],
    clusters: &Clusters,
    replicates: &[f64],
) -> Measured {
    let all: Vec<usize> = (0..items.len()).collect();
    let n = items.len() as f64;
    let answered = |outcome: &Outcome| !outcome.refused && !outcome.unparsable;
    let (refused, unparsable) =
        (outcomes.iter().filter(|x| x.refused).count(), outcomes.iter().filter(|x| x.unparsable).count());
    let worthless = |outcome: &Outcome| match answered(outcome) {
        true => outcome.clone(),
        false => Outcome { value: 0.0, choice: None, ..outcome.clone() },
    };
    let wrong: Vec<Outcome> = outcomes.iter().map(worthless).collect();
    let answers: Vec<usize> = all.iter().copied().filter(|&at| answered(&outcomes[at])).collect();
    let of_answered = if answers.is_empty() { f64::NAN } else { score(dimension, rule, items, outcomes, &answers) };
    let score_of_all = finite(score(dimension, rule, items, outcomes, &all));
    let varies = score_of_all.is_some() && clusters.len() > 1;
    Measured {
        score: score_of_all,
        interval: if varies { Interval::of(replicates).map(Interval::of_score) } else { None },
        right: outcomes.iter().filter(|outcome| answered(outcome) && right(outcome)).count(),
        refused,
        unparsable,
        refusal_rate: 100.0 * refused as f64 / n,
        unparsable_rate: 100.0 * unparsable as f64 / n,
        refusals_wrong: finite(score(dimension, rule, items, &wrong, &all)),
        answered_only: finite(of_answered),
        constant: constant(items, outcomes),
    }
}

/// The option that takes nearly all answers to questions with a right one, unless it is nearly always that. Where none is right
/// the options mean what they say, and to take the same is what the score is about.
fn constant(items: &[Item], outcomes: &[Outcome]) -> Option<Constant> {
    let gold = |item: &Item| match &item.ask {
        Ask::Choose { gold, .. } => *gold,
        Ask::Continue { .. } => None,
    };
    let asked = || items.iter().zip(outcomes).filter(|(item, _)| gold(item).is_some());
    let found = commonest(asked().filter_map(|(_, outcome)| outcome.choice))?;
    let expected = commonest(asked().filter_map(|(item, _)| gold(item)));
    let earned = expected.is_some_and(|gold| gold.option == found.option && gold.percent >= CONSTANT_PERCENT);
    (found.percent >= CONSTANT_PERCENT && !earned).then_some(found)
}

/// The option taken most often, the first of equals.
fn commonest(options: impl Iterator<Item = usize>) -> Option<Constant> {
    let mut counts = std::collections::BTreeMap::new();
    for option in options {
        *counts.entry(option).or_insert(0_usize) += 1;
    }
    let total: usize = counts.values().sum();
    let (option, count) = counts.into_iter().rev().max_by_key(|(_, count)| *count)?;
    Some(Constant { option, percent: 100.0 * count as f64 / total as f64 })
}

#[cfg(test)]
pub(crate) mod tests;
