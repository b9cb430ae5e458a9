//! What each layer does to the residual stream: cheap scores from one forward pass.
//!
//! The stream before layer i is x_i, so x_0 is the embedding and x_L what the last layer leaves, *before* the final norm.
//! (transformers hands out the last state after the norm; scores of the last layer by that state are wrong.)
//!
//! | score | formula | source |
//! |---|---|---|
//! | influence | mean over tokens of 1 − cos(x_i, x_{i+1}) | ShortGPT, Men et al. 2024 |
//! | angular distance d(l, n) | arccos(cos(x_l, x_{l+n})) / π | Gromov et al. 2024, eq. 7 |
//! | relative update | ‖x_{i+1} − x_i‖ / ‖x_i‖ | |
//! | CKA | linear centred kernel alignment of x_i and x_{i+1} | Kornblith et al. 2019 |
//! | attention, MLP | influence of one half of the layer alone | |

use rayon::prelude::*;
use serde::Serialize;

use super::{Removal, sweep::Sequence};
use crate::{
    Result,
    kernel::{activation::dot, gemm::matmul_nt, tensor::with_f32},
    measure::Figure,
    model::{Decoder, decoder::BlockCache},
};

/// Tokens whose states are compared by CKA at most; its cost grows with their square.
const CKA_TOKENS: usize = 512;

/// Angular distances of all windows: from before layer `l` to behind layer `l + n − 1`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(into = "Vec<Vec<f64>>")]
pub struct Angular {
    layers: usize,
    /// Row n − 1 holds the windows of n layers, by their first.
    rows: Vec<Vec<f64>>,
}

impl From<Angular> for Vec<Vec<f64>> {
    fn from(angular: Angular) -> Self {
        angular.rows
    }
}

impl Angular {
    /// The table of `distance(l, n)`.
    pub fn new(layers: usize, distance: impl Fn(usize, usize) -> f64) -> Self {
        let row = |n: usize| (0..=layers - n).map(|l| distance(l, n)).collect();
        Self { layers, rows: (1..=layers).map(row).collect() }
    }

    /// d(l, n): how far the stream turns over the `n` layers from `l` on, 0 to 1.
    pub fn distance(&self, l: usize, n: usize) -> f64 {
        self.rows[n - 1][l]
    }

    /// The window of `n` layers within `removable` that turns the stream least.
    pub fn best_window(&self, removable: &[usize], n: usize) -> Option<Removal> {
        let best = removable.windows(n).min_by(|a, b| {
            // Of equals the deeper.
            self.distance(a[0], n).total_cmp(&self.distance(b[0], n)).then(b[0].cmp(&a[0]))
        });
        best.map(|window| window.iter().copied().collect())
    }

    /// For every k up to `most` the k layers of `removable`, in disjoint windows, that have the least sum of d:
    /// f(i, k) = min(f(i − 1, k), min over n of f(i − n, k − n) + d(i − n, n)). `removable` is a run of neighbours.
    pub fn disjoint_windows(&self, removable: &[usize], most: usize) -> Vec<Removal> {
        let first = removable.first().copied().unwrap_or(0);
        let count = removable.len();
        // (sum, length of the window that ends here; 0 for none)
        let mut best = vec![vec![(f64::INFINITY, 0usize); most + 1]; count + 1];
        for i in 0..=count {
            best[i][0] = (0.0, 0);
            for k in 1..=most.min(i) {
                let mut at = (best[i - 1][k].0, 0);
                for n in 1..=k {
                    let sum = best[i - n][k - n].0 + self.distance(first + i - n, n);
                    if sum < at.0 {
                        at = (sum, n);
                    }
                }
                best[i][k] = at;
            }
        }
        let walk = |k: usize| {
            let (mut i, mut left, mut layers) = (count, k, Vec::new());
            while left > 0 && i > 0 {
                match best[i][left].1 {
                    0 => i -= 1,
                    n => {
                        layers.extend(first + i - n..first + i);
                        (i, left) = (i - n, left - n);
                    }
                }
            }
            layers.into()
        };
        (0..=most).map(walk).collect()
    }
}

/// What one layer does.
#[derive(Debug, Clone, Serialize)]
pub struct LayerScores {
    /// Its number.
    pub layer: usize,
    /// Mean influence over tokens; the standard error is over sequences.
    pub influence: Figure,
    /// Influence on the last token of each sequence.
    pub influence_last: Figure,
    /// Mean ‖x_{i+1} − x_i‖ / ‖x_i‖.
    pub relative_update: Figure,
    /// Linear CKA of the states before and behind it; 1 is alike.
    pub cka: f64,
    /// Influence of its attention alone.
    pub attention: Figure,
    /// Influence of its MLP alone, on what attention leaves.
    pub mlp: Figure,
    /// Root mean square of its linears' weights.
    pub weight_rms: f64,
    /// Place among the groups of layers whose influence cannot be told apart, 0 the least.
    pub group: usize,
}

/// What a scan found.
#[derive(Debug, Clone, Serialize)]
pub struct Scan {
    /// The layers, in order.
    pub layers: Vec<LayerScores>,
    /// Layers by influence, in groups that two standard errors of the paired difference do not part; least first.
    pub groups: Vec<Vec<usize>>,
    /// d(l, n), the mean over tokens.
    pub angular: Angular,
    /// d(l, n) of the last tokens only, as Gromov et al. take it.
    pub angular_last: Angular,
    /// Tokens it was made of.
    pub tokens: usize,
    /// Positions at the beginning of each sequence that were left out.
    pub skipped: usize,
}

/// Sums over the tokens of one sequence.
struct OfSequence {
    influence: Vec<f64>,
    last: Vec<f64>,
    update: Vec<f64>,
    attention: Vec<f64>,
    mlp: Vec<f64>,
    angles: Vec<f64>,
    last_angles: Vec<f64>,
}

fn cosine(a: &[f32], b: &[f32], norm_a: f64, norm_b: f64) -> f64 {
    if norm_a == 0.0 || norm_b == 0.0 {
        return f64::from(u8::from(norm_a == norm_b));
    }
    // Equal states have a cosine of 1, whatever the rounding.
    if a == b { 1.0 } else { (f64::from(dot(a, b)) / (norm_a * norm_b)).clamp(-1.0, 1.0) }
}

fn norms(x: &[f32], hidden: usize) -> Vec<f64> {
    x.par_chunks_exact(hidden).map(|row| f64::from(dot(row, row)).sqrt()).collect()
}

/// Place of window (l, n) in a flat list by n, then l.
fn flat(layers: usize, l: usize, n: usize) -> usize {
    (0..n - 1).map(|m| layers - m).sum::<usize>() + l
}

/// Scores every layer of `model` on `sequences`; the first `skip` positions of each are left out, since the first tokens
/// of a text draw attention as sinks and have states like no other. `weights` also looks at the weights.
///
/// # Errors
/// A token or position that the model does not have.
pub fn scan(
    model: &Decoder,
    sequences: &[Sequence],
    skip: usize,
    weights: bool,
    progress: &mut dyn FnMut(usize),
) -> Result<Scan> {
    let layers = model.blocks().len();
    let hidden = model.config().hidden_size;
    let mut all = Vec::with_capacity(sequences.len());
    // The states of a few tokens of every layer, for CKA.
    let per_sequence = CKA_TOKENS.div_ceil(sequences.len().max(1));
    let mut samples: Vec<Vec<f32>> = vec![Vec::new(); layers + 1];
    let mut tokens = 0;
    for sequence in sequences {
        let length = sequence.ids.len();
        let skip = skip.min(length - 1);
        let mut states = vec![with_f32(&model.embed(&sequence.ids, 0)?, <[f32]>::to_vec)?];
        let (mut attention, mut mlp) = (Vec::new(), Vec::new());
        for block in model.blocks() {
            let x = crate::kernel::tensor::from_vec(states[states.len() - 1].clone(), (length, hidden))?;
            let middle = block.attention_step(&x, &mut BlockCache::default())?;
            // Where both halves read the same stream, the MLP's own step starts from it.
            let alone = block.mlp_step(block.mlp_reads(&x, &middle))?;
            let y = match block.spec().parallel {
                true => block.forward(&x, &mut BlockCache::default())?,
                false => alone.clone(),
            };
            let mean_turn = |from: &candle_core::Tensor, to: &candle_core::Tensor| -> Result<f64> {
                with_f32(from, |from| with_f32(to, |to| mean_turn(from, to, hidden, skip)))?
            };
            attention.push(mean_turn(&x, &middle)?);
            mlp.push(mean_turn(block.mlp_reads(&x, &middle), &alone)?);
            states.push(with_f32(&y, <[f32]>::to_vec)?);
        }
        for (sample, state) in samples.iter_mut().zip(&states) {
            let step = ((length - skip) / per_sequence.max(1)).max(1);
            for row in (skip..length).step_by(step).take(per_sequence) {
                sample.extend_from_slice(&state[row * hidden..][..hidden]);
            }
        }
        all.push(of_sequence(&states, hidden, skip, attention, mlp));
        tokens += length - skip;
        progress(tokens);
    }
    let figure = |value: &dyn Fn(&OfSequence) -> f64| Figure::mean(&all.iter().map(value).collect::<Vec<_>>());
    let mut cka = Vec::with_capacity(layers);
    let mut before = gram(&samples[0], hidden);
    for sample in &samples[1..] {
        let after = gram(sample, hidden);
        cka.push(alignment(&before, &after));
        before = after;
    }
    let groups = groups(&all, layers);
    let mut scores = Vec::with_capacity(layers);
    for layer in 0..layers {
        scores.push(LayerScores {
            layer,
            influence: figure(&|of| of.influence[layer]),
            influence_last: figure(&|of| of.last[layer]),
            relative_update: figure(&|of| of.update[layer]),
            cka: cka[layer],
            attention: figure(&|of| of.attention[layer]),
            mlp: figure(&|of| of.mlp[layer]),
            weight_rms: if weights { weight_rms(model, layer)? } else { 0.0 },
            group: groups.iter().position(|group| group.contains(&layer)).unwrap_or_default(),
        });
    }
    let table = |of: &dyn Fn(&OfSequence) -> &Vec<f64>| {
        Angular::new(layers, |l, n| all.iter().map(|one| of(one)[flat(layers, l, n)]).sum::<f64>() / all.len() as f64)
    };
    let (angular, angular_last) = (table(&|of| &of.angles), table(&|of| &of.last_angles));
    Ok(Scan { layers: scores, groups, angular, angular_last, tokens, skipped: skip })
}

/// Mean of 1 − cos between rows, from row `skip` on.
fn mean_turn(from: &[f32], to: &[f32], hidden: usize, skip: usize) -> f64 {
    let (a, b) = (norms(from, hidden), norms(to, hidden));
    let rows = skip..a.len();
    let turn =
        |row: usize| 1.0 - cosine(&from[row * hidden..][..hidden], &to[row * hidden..][..hidden], a[row], b[row]);
    rows.clone().map(turn).sum::<f64>() / rows.len() as f64
}

fn of_sequence(states: &[Vec<f32>], hidden: usize, skip: usize, attention: Vec<f64>, mlp: Vec<f64>) -> OfSequence {
    let layers = states.len() - 1;
    let norms: Vec<Vec<f64>> = states.iter().map(|state| norms(state, hidden)).collect();
    let tokens = norms[0].len();
    let row = |layer: usize, token: usize| &states[layer][token * hidden..][..hidden];
    let cosine =
        |a: usize, b: usize, token: usize| cosine(row(a, token), row(b, token), norms[a][token], norms[b][token]);
    let mean = |value: &(dyn Fn(usize) -> f64 + Sync)| -> f64 {
        (skip..tokens).map(value).sum::<f64>() / (tokens - skip) as f64
    };
    let update = |layer: usize| {
        mean(&|token| {
            let (x, y) = (row(layer, token), row(layer + 1, token));
            let squares: f64 = x.iter().zip(y).map(|(x, y)| f64::from(y - x).powi(2)).sum();
            squares.sqrt() / norms[layer][token].max(f64::MIN_POSITIVE)
        })
    };
    let windows: Vec<(usize, usize)> = (1..=layers).flat_map(|n| (0..=layers - n).map(move |l| (l, n))).collect();
    let angle = |cosine: f64| cosine.acos() / std::f64::consts::PI;
    OfSequence {
        influence: (0..layers).map(|l| mean(&|token| 1.0 - cosine(l, l + 1, token))).collect(),
        last: (0..layers).map(|l| 1.0 - cosine(l, l + 1, tokens - 1)).collect(),
        update: (0..layers).map(update).collect(),
        attention,
        mlp,
        angles: windows.par_iter().map(|&(l, n)| mean(&|token| angle(cosine(l, l + n, token)))).collect(),
        last_angles: windows.iter().map(|&(l, n)| angle(cosine(l, l + n, tokens - 1))).collect(),
    }
}

/// Centred Gram matrix (rows, rows) of `x` (rows, hidden).
fn gram(x: &[f32], hidden: usize) -> Vec<f64> {
    let rows = x.len() / hidden;
    let mut centred = x.to_vec();
    let mut means = vec![0.0f64; hidden];
    for row in x.chunks_exact(hidden) {
        means.iter_mut().zip(row).for_each(|(mean, &x)| *mean += f64::from(x) / rows as f64);
    }
    for row in centred.chunks_exact_mut(hidden) {
        row.iter_mut().zip(&means).for_each(|(x, &mean)| *x = (f64::from(*x) - mean) as f32);
    }
    let mut gram = vec![0.0; rows * rows];
    matmul_nt(&centred, &centred, &mut gram, rows, rows, hidden);
    gram.into_iter().map(f64::from).collect()
}

/// ⟨K, L⟩ / (‖K‖ ‖L‖) of two centred Gram matrices.
fn alignment(k: &[f64], l: &[f64]) -> f64 {
    let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = (inner(k, k) * inner(l, l)).sqrt();
    if norms == 0.0 { 1.0 } else { inner(k, l) / norms }
}

/// Layers by influence, in groups: a layer joins the group of the least influential one that it cannot be told from.
fn groups(all: &[OfSequence], layers: usize) -> Vec<Vec<usize>> {
    let mean = |layer: usize| all.iter().map(|of| of.influence[layer]).sum::<f64>() / all.len() as f64;
    let mut order: Vec<usize> = (0..layers).collect();
    order.sort_by(|&a, &b| mean(a).total_cmp(&mean(b)).then(b.cmp(&a)));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for layer in order {
        let same = |first: usize| {
            let differences: Vec<f64> = all.iter().map(|of| of.influence[layer] - of.influence[first]).collect();
            let figure = Figure::mean(&differences);
            figure.value - 2.0 * figure.stderr.unwrap_or(0.0) <= 0.0
        };
        match groups.last_mut().filter(|group| same(group[0])) {
            Some(group) => group.push(layer),
            None => groups.push(vec![layer]),
        }
    }
    groups
}

/// Root mean square of the weights of a layer's linears.
fn weight_rms(model: &Decoder, layer: usize) -> Result<f64> {
    let (mut squares, mut count) = (0.0, 0);
    for linear in model.blocks()[layer].all_linears() {
        let (out_features, in_features) = linear.shape();
        with_f32(&linear.weight()?, |weight| squares += weight.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>())?;
        count += out_features * in_features;
    }
    Ok((squares / count.max(1) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disjoint_windows_are_the_best_of_all() {
        let distance = |l: usize, n: usize| (((l * 7 + n * 13) % 11) as f64 + 1.0) * (n as f64).sqrt();
        let angular = Angular::new(9, distance);
        let removable: Vec<usize> = (1..8).collect();
        // Every way to choose windows from left to right.
        fn all(angular: &Angular, at: usize, end: usize, k: usize) -> f64 {
            if k == 0 {
                return 0.0;
            }
            if at >= end {
                return f64::INFINITY;
            }
            let skip = all(angular, at + 1, end, k);
            let take = (1..=k.min(end - at)).map(|n| angular.distance(at, n) + all(angular, at + n, end, k - n));
            take.fold(skip, f64::min)
        }
        for (k, set) in angular.disjoint_windows(&removable, 6).iter().enumerate() {
            assert_eq!(set.len(), k);
            // Neighbouring windows cannot be told from one in the set, so its own best cutting is compared.
            let mut runs: Vec<(usize, usize)> = Vec::new();
            for &layer in set.layers() {
                match runs.last_mut().filter(|(first, n)| first + n == layer) {
                    Some((_, n)) => *n += 1,
                    None => runs.push((layer, 1)),
                }
            }
            let own: f64 = runs.iter().map(|&(first, n)| all(&angular, first, first + n, n)).sum();
            assert!((own - all(&angular, 1, 8, k)).abs() < 1e-9, "{k}: {set}");
        }
    }
}
