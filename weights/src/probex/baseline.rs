//! What a probe has to beat: statistics of all tensors, and spectra, with plain learners on top.
//!
//! StatNN (Unterthiner et al. 2020, "Predicting neural network accuracy from weights"): seven numbers a tensor (minimum,
//! quartiles, maximum, deviation, mean), with a logistic or a boosted model on them.

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::{
    head::{Choice, Texts},
    operand::Operand,
    spec::{Body, Head, Spec},
    train::{Models, Part, Training, train},
};
use crate::{Checkpoint, Result, TensorView, linalg};

/// Singular values taken of a layer.
pub const SINGULAR_VALUES: usize = 16;

/// Numbers a tensor gives.
pub const STATISTICS: usize = 7;

/// Minimum, quartiles, maximum, deviation and mean of each of these tensors, by their names; of an empty one, zeros.
///
/// # Errors
/// If a tensor cannot be decoded, or a statistic of it is no finite number.
pub fn statistics_of(checkpoint: &Checkpoint, names: &BTreeSet<String>) -> Result<Vec<f32>> {
    let mut tensors: Vec<&TensorView> = checkpoint.tensors().filter(|tensor| names.contains(tensor.name())).collect();
    tensors.sort_by(|a, b| a.name().cmp(b.name()));
    let mut out = Vec::with_capacity(tensors.len() * STATISTICS);
    for tensor in tensors {
        let known = out.len();
        let mut x = tensor.to_f32()?;
        if x.is_empty() {
            out.extend([0.0; STATISTICS]);
            continue;
        }
        x.sort_by(f32::total_cmp);
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / x.len() as f64;
        out.extend([0, 1, 2, 3, 4].map(|quarter| {
            let place = (x.len() - 1) as f64 * f64::from(quarter) / 4.0;
            let (below, share) = (x[place as usize], place.fract() as f32);
            below + share * (x[(place as usize + 1).min(x.len() - 1)] - below)
        }));
        out.extend([variance.sqrt() as f32, mean as f32]);
        if let Some(value) = out[known..].iter().find(|value| !value.is_finite()) {
            return Err(
                tensor.error(format!("has a statistic that is {value}; models are told by finite numbers only"))
            );
        }
    }
    Ok(out)
}

/// The largest singular values of a layer, descending; zeros where it has fewer.
pub fn spectrum(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let squares = linalg::squared_singular_values(x, rows, columns).unwrap_or_default();
    let mut out: Vec<f32> = squares.iter().rev().take(SINGULAR_VALUES).map(|square| square.sqrt() as f32).collect();
    out.resize(SINGULAR_VALUES, 0.0);
    out
}

/// Rows of features, each column brought to mean 0 and deviation 1 over the training rows.
pub struct Features {
    values: Vec<f32>,
    width: usize,
}

impl Features {
    /// # Panics
    /// If rows differ in length.
    pub fn new(rows: &[Vec<f32>], training: &[usize]) -> Self {
        let width = rows.first().map_or(0, Vec::len);
        assert!(rows.iter().all(|row| row.len() == width), "rows of features differ in length");
        let mut values: Vec<f32> = rows.concat();
        for column in 0..width {
            let of = |at: &usize| f64::from(rows[*at][column]);
            let mean = training.iter().map(of).sum::<f64>() / training.len().max(1) as f64;
            let variance =
                training.iter().map(|at| (of(at) - mean).powi(2)).sum::<f64>() / training.len().max(1) as f64;
            let deviation = if variance > 0.0 { variance.sqrt() } else { 1.0 };
            for value in values.iter_mut().skip(column).step_by(width) {
                *value = ((f64::from(*value) - mean) / deviation) as f32;
            }
        }
        Self { values, width }
    }

    fn row(&self, at: usize) -> &[f32] {
        &self.values[at * self.width..][..self.width]
    }
}

impl Models for Features {
    fn len(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    fn copies(&self) -> usize {
        1
    }

    fn layer(&self, at: usize, _: usize) -> Operand<'_> {
        Operand::Dense(self.row(at))
    }
}

/// Logits of a logistic model for the models `asked`.
pub fn logistic(
    features: &Features,
    parts: (Part<'_>, Part<'_>),
    choice: Choice,
    seed: u64,
    asked: &[usize],
) -> Vec<f32> {
    let head = Head::Labels { classes: parts.0.classes };
    let spec = Spec { rows: 1, columns: features.width, body: Body::Dense, head };
    let training = Training { rate: 1e-2, decay: 1e-3, seed, ..Training::default() };
    let trained = train((spec, 1.0), features, parts, (Texts::default(), choice), &training, &mut |_, _| {});
    let asked: Vec<Operand<'_>> = asked.iter().map(|&at| features.layer(at, 0)).collect();
    trained.net.look_at(&asked, Texts::default()).0
}

/// Trees a class.
const ROUNDS: usize = 100;
/// Splits from root to leaf.
const DEPTH: usize = 3;
/// Share of a tree that counts.
const SHRINKAGE: f64 = 0.1;
/// Models a leaf holds at least.
const SMALLEST_LEAF: usize = 5;
/// Penalty on leaves.
const PENALTY: f64 = 1.0;

/// A regression tree.
enum Tree {
    Leaf(f64),
    Split { column: usize, below: f32, children: Box<(Tree, Tree)> },
}

impl Tree {
    fn value(&self, row: &[f32]) -> f64 {
        match self {
            Self::Leaf(value) => *value,
            Self::Split { column, below, children } => {
                if row[*column] < *below {
                    children.0.value(row)
                } else {
                    children.1.value(row)
                }
            }
        }
    }

    /// The tree of most gain in the second-order cost (Friedman 2001; Chen and Guestrin 2016, eq. 7), level by level.
    fn grow(features: &Features, members: &[(usize, f64, f64)], depth: usize) -> Self {
        let sums = members.iter().fold((0.0, 0.0), |(g, h), member| (g + member.1, h + member.2));
        let score = |g: f64, h: f64| g * g / (h + PENALTY);
        let mut best: Option<(f64, usize, f32)> = None;
        if depth > 0 && members.len() >= 2 * SMALLEST_LEAF {
            let mut order: Vec<(f32, f64, f64)> = Vec::with_capacity(members.len());
            for column in 0..features.width {
                order.clear();
                order.extend(members.iter().map(|&(at, g, h)| (features.row(at)[column], g, h)));
                order.sort_by(|a, b| a.0.total_cmp(&b.0));
                let (mut g, mut h) = (0.0, 0.0);
                for at in 1..order.len() {
                    (g, h) = (g + order[at - 1].1, h + order[at - 1].2);
                    let splits = order[at].0 > order[at - 1].0;
                    if splits && at >= SMALLEST_LEAF && order.len() - at >= SMALLEST_LEAF {
                        let gain = score(g, h) + score(sums.0 - g, sums.1 - h) - score(sums.0, sums.1);
                        if best.is_none_or(|best| gain > best.0) {
                            best = Some((gain, column, order[at].0));
                        }
                    }
                }
            }
        }
        match best.filter(|best| best.0 > 1e-9) {
            None => Self::Leaf(-sums.0 / (sums.1 + PENALTY)),
            Some((_, column, below)) => {
                let (left, right): (Vec<_>, Vec<_>) =
                    members.iter().partition(|member| features.row(member.0)[column] < below);
                let child = |members: &[(usize, f64, f64)]| Self::grow(features, members, depth - 1);
                Self::Split { column, below, children: Box::new((child(&left), child(&right))) }
            }
        }
    }
}

/// Logits of boosted trees (one model a class, logistic cost) for the models `asked`.
pub fn boosted(features: &Features, train: Part<'_>, asked: &[usize]) -> Vec<f32> {
    let columns: Vec<Vec<f32>> = (0..train.classes)
        .into_par_iter()
        .map(|class| {
            let truth = |at: usize| f64::from(train.truths[at * train.classes + class]);
            let mut known = vec![0.0f64; train.models.len()];
            let mut found = vec![0.0; asked.len()];
            for _ in 0..ROUNDS {
                let members: Vec<(usize, f64, f64)> = train
                    .models
                    .iter()
                    .enumerate()
                    .map(|(at, &model)| {
                        let p = 1.0 / (1.0 + (-known[at]).exp());
                        (model, p - truth(at), p * (1.0 - p))
                    })
                    .collect();
                let tree = Tree::grow(features, &members, DEPTH);
                for (value, &model) in known.iter_mut().zip(train.models) {
                    *value += SHRINKAGE * tree.value(features.row(model));
                }
                for (value, &model) in found.iter_mut().zip(asked) {
                    *value += SHRINKAGE * tree.value(features.row(model));
                }
            }
            found.into_iter().map(|value| value as f32).collect()
        })
        .collect();
    (0..asked.len()).flat_map(|at| columns.iter().map(move |column| column[at])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probex::file::write_arrays;

    #[test]
    fn statistics_are_finite_and_of_the_names_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.safetensors");
        let arrays: [(String, Vec<usize>, &[f32]); 3] = [
            ("own".into(), vec![1], &[9.0]),
            ("shared".into(), vec![2], &[1.0, 3.0]),
            ("wild".into(), vec![2], &[1.0, f32::INFINITY]),
        ];
        write_arrays(&file, &arrays, &Default::default(), false).unwrap();
        let checkpoint = Checkpoint::open(&file).unwrap();
        let of = |name: &str| statistics_of(&checkpoint, &[name.to_string()].into());
        assert_eq!(of("shared").unwrap(), [1.0, 1.5, 2.0, 2.5, 3.0, 1.0, 2.0]);
        let refused = of("wild").unwrap_err().to_string();
        assert!(refused.contains("wild") && refused.contains("statistic"), "{refused}");
    }
}
