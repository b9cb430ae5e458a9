//! What was done along an edge, read off the exact comparison of its two models, and which of them it leaves for the copy.

use serde::Serialize;

use super::super::{Arrangement, Change, Diff, Rounding, Side, TensorDiff};

/// Share of the weights that must be equal for a training to be one with frozen parts.
const FROZEN: f64 = 0.05;

/// What was done along an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The same values, in the same types.
    Equal,
    /// The same values up to the rounding of a type.
    Retyped,
    /// Trained further in all its weights.
    FineTune,
    /// Trained further with some tensors left as they were.
    FrozenFineTune,
    /// A merged adapter of low rank.
    MergedLora,
    /// Some rows of some tensors changed.
    Rows,
    /// Factors on tensors, rows or columns.
    Rescaled,
    /// Values put on a grid.
    Quantised,
    /// Values set to zero.
    Pruned,
    /// Whole blocks taken out.
    LayersRemoved,
    /// Whole blocks repeated.
    LayersRepeated,
    /// A linear mixture of several models.
    Merge,
    /// Relatives of which nothing more can be said.
    Other,
    /// The two could not be compared.
    Unread,
}

impl Kind {
    /// In words, for pictures and tables.
    pub fn words(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Retyped => "re-typed",
            Self::FineTune => "fine-tuned",
            Self::FrozenFineTune => "fine-tuned, parts frozen",
            Self::MergedLora => "merged LoRA",
            Self::Rows => "some rows changed",
            Self::Rescaled => "rescaled",
            Self::Quantised => "quantised",
            Self::Pruned => "pruned",
            Self::LayersRemoved => "layers removed",
            Self::LayersRepeated => "layers repeated",
            Self::Merge => "merge",
            Self::Other => "related",
            Self::Unread => "not compared",
        }
    }

    /// Training may move moments either way; what rounds, cuts and mixes moves them in its own.
    pub(super) fn is_training(self) -> bool {
        matches!(self, Self::FineTune | Self::FrozenFineTune | Self::MergedLora | Self::Rows)
    }
}

/// What the comparison of A and B says of the edge between them.
#[derive(Debug, Clone)]
pub(super) struct Finding {
    pub kind: Kind,
    /// The side that was made from the other, where what was done cannot be undone.
    pub copy: Option<Side>,
    /// The side that most likely was, where the same traces can come about the other way.
    pub leans: Option<Side>,
    /// The comparison's sentence, in which A and B are the two sides.
    pub sentence: String,
    /// Figures in a few words: a rank, a grid, a share of zeros.
    pub detail: Option<String>,
}

fn weight(tensor: &TensorDiff) -> f64 {
    tensor.shape_b.iter().map(|&n| n as f64).product()
}

fn commonest(words: impl Iterator<Item = (String, f64)>) -> Option<String> {
    let mut sums: std::collections::BTreeMap<String, f64> = std::collections::BTreeMap::new();
    words.for_each(|(word, weight)| *sums.entry(word).or_default() += weight);
    sums.into_iter().max_by(|x, y| x.1.total_cmp(&y.1)).map(|(word, _)| word)
}

/// Reads `diff`, whose A is the model with no fewer blocks.
pub(super) fn read(diff: &Diff) -> Finding {
    let sentence = diff.verdict.sentence.clone();
    let finding = |kind, copy, detail| Finding { kind, copy, leans: None, sentence: sentence.clone(), detail };
    let of = |name: &str| diff.tensors.iter().filter(|tensor| tensor.change.name() == name).collect::<Vec<_>>();
    let lost = |removed: usize| Some(format!("{removed} of {} blocks", diff.blocks.iter().map(|b| b.a).sum::<usize>()));
    let removed: usize = diff.blocks.iter().map(|stack| stack.removed.len()).sum();
    let added: usize = diff.blocks.iter().map(|stack| stack.added.len()).sum();
    if diff.identical {
        return finding(Kind::Equal, None, None);
    }
    if diff.verdict.verdict == "different" || diff.verdict.verdict == "other-training" {
        return finding(Kind::Other, None, None);
    }
    if removed > 0 && added == 0 {
        return finding(Kind::LayersRemoved, Some(Side::B), lost(removed));
    }
    // Of each side, the weights of tensors that are its copies.
    let majority = |sides: &mut dyn Iterator<Item = (Option<Side>, f64)>| {
        let (mut a, mut b) = (0.0, 0.0);
        sides.for_each(|(side, weight)| match side {
            Some(Side::A) => a += weight,
            Some(Side::B) => b += weight,
            None => {}
        });
        match a.total_cmp(&b) {
            std::cmp::Ordering::Greater => Some(Side::A),
            std::cmp::Ordering::Less => Some(Side::B),
            std::cmp::Ordering::Equal => None,
        }
    };
    match diff.verdict.verdict {
        "retyped" => {
            let tensors = of("retyped");
            let side = |tensor: &&TensorDiff| {
                let side = match tensor.change {
                    Change::Retyped { rounding: Rounding::Nearest | Rounding::Truncated } => Some(Side::B),
                    Change::Retyped { rounding: Rounding::Reverse } => Some(Side::A),
                    _ => None,
                };
                (side, weight(tensor))
            };
            let copy = majority(&mut tensors.iter().map(side));
            let stored = |tensor: &&TensorDiff| {
                let to = if copy == Some(Side::A) { &tensor.stored_a } else { &tensor.stored_b };
                (to.clone(), weight(tensor))
            };
            finding(Kind::Retyped, copy, commonest(tensors.iter().map(stored)).filter(|_| copy.is_some()))
        }
        "quantised" => {
            let tensors = of("quantised");
            // Where both are on grids, either may be the other's copy, or both a third one's.
            let side = |tensor: &&TensorDiff| match &tensor.change {
                Change::Quantised { copy, origin: None, .. } => (Some(*copy), weight(tensor)),
                _ => (None, 0.0),
            };
            let bits = |tensor: &&TensorDiff| match &tensor.change {
                Change::Quantised { grid, .. } => Some((format!("{} bits", grid.bits), weight(tensor))),
                _ => None,
            };
            let copy = majority(&mut tensors.iter().map(side));
            let coarser = |tensor: &&TensorDiff| match &tensor.change {
                Change::Quantised { copy, grid, origin: Some(origin), .. } if grid.bits < origin.bits => {
                    (Some(*copy), weight(tensor))
                }
                _ => (None, 0.0),
            };
            let leans = majority(&mut tensors.iter().map(coarser));
            let detail = commonest(tensors.iter().filter_map(bits));
            Finding { leans: leans.filter(|_| copy.is_none()), ..finding(Kind::Quantised, copy, detail) }
        }
        "pruned" => {
            let tensors = of("pruned");
            let side = |tensor: &&TensorDiff| match &tensor.change {
                Change::Pruned { copy, .. } => (Some(*copy), weight(tensor)),
                _ => (None, 0.0),
            };
            let zeros = |tensor: &&TensorDiff| match &tensor.change {
                Change::Pruned { mask, .. } => Some(match mask.n_of_m {
                    Some(pattern) => (format!("{}:{}", pattern.keep, pattern.of), weight(tensor)),
                    None => (format!("{:.0} % zeros", 100.0 * mask.sparsity), weight(tensor)),
                }),
                _ => None,
            };
            let kept = |tensor: &&&TensorDiff| matches!(tensor.change, Change::Pruned { kept_equal: true, .. });
            let all: f64 = tensors.iter().map(|tensor| weight(tensor)).sum();
            let equal = tensors.iter().filter(kept).map(|tensor| weight(tensor)).sum::<f64>() > 0.5 * all;
            let in_rows =
                |tensor: &&TensorDiff| matches!(&tensor.change, Change::Pruned { mask, .. } if mask.is_of_rows());
            let copy = majority(&mut tensors.iter().map(side));
            let detail = commonest(tensors.iter().filter_map(zeros));
            // Where the rest changed too, or nothing but whole rows is zero, the zeros may have been there first and been
            // trained away.
            match equal && !tensors.iter().all(in_rows) {
                true => finding(Kind::Pruned, copy, detail),
                false => Finding { leans: copy, ..finding(Kind::Pruned, None, detail) },
            }
        }
        "low-rank" => {
            let ranks = of("low-rank").into_iter().filter_map(|tensor| match &tensor.change {
                Change::LowRank { spectrum } => Some(spectrum.rank),
                _ => None,
            });
            finding(Kind::MergedLora, None, ranks.max().map(|rank| format!("rank {rank}")))
        }
        "rescaled" => finding(Kind::Rescaled, None, None),
        "rows" => finding(Kind::Rows, None, None),
        "retrained" => {
            let all: f64 = diff.tensors.iter().map(weight).sum();
            let equal = diff.tensors.iter().filter(|tensor| tensor.change.is_equal()).map(weight).sum::<f64>() / all;
            let resized = diff.tensors.iter().any(|t| matches!(t.arrangement, Arrangement::FirstRows { .. }));
            let detail = if resized { Some("other number of rows".into()) } else { None };
            match equal >= FROZEN {
                true => {
                    finding(Kind::FrozenFineTune, None, Some(format!("{:.0} % of the weights frozen", 100.0 * equal)))
                }
                false => finding(Kind::FineTune, None, detail),
            }
        }
        // Equal where both have it, but under other names or with something more.
        "equal" if diff.missing.is_empty() && diff.added.is_empty() => finding(Kind::Equal, None, None),
        _ => finding(Kind::Other, None, None),
    }
}
