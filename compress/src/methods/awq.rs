//! AWQ: columns that meet large inputs are made larger before rounding, so that they lose less, and the inputs smaller in
//! turn (Lin et al. 2023).
//!
//! For the linears that share an input `x`, with `x̄_j` the mean of `|x_j|`: of the scales `s_j = x̄_j^r` (*plain*) and
//! `s_j = x̄_j^r / w̄_j^(1−r)` (*duo*; `w̄_j` is the mean over rows of `|w_j|` over its group's largest), `r = i / steps`, the
//! one with the least `Σ ‖x (Q(W s)/s − W)ᵀ‖²` over sampled inputs is taken; `s = 1` is always among them, so the search
//! never ends worse than rounding alone. The loop folds `1/s` into the layer before ([`crate::scaling`]).
//!
//! Then, for each row and group, of the bounds `p · max|w|`, `p = 1 − i/steps` down to one half, the one that changes the
//! group's share of the sampled outputs least clips its weights; queries and keys, whose outputs meet in a product, are
//! left unclipped. What remains is rounded to nearest, or by GPTQ's feedback on the clipped grid.
//!
//! The reference sets a group's range from its own extremes, which shifts a group without negatives by a clamped zero
//! point; here every range reaches zero. Scales are rounded to the stored type before codes are chosen.

use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::gptq::{Gptq, Groups};
use super::{Compressed, Described, GroupStats, LayerMethod, LinearReport, Needs, Scales, Scaling, Weight};
use crate::grid::{self, GridSpec, Quantised, ScaleDtype, Search, fit_group};
use crate::kernel::activation::dot;
use crate::kernel::gemm::{matmul_nt, symmetrize, syrk_accumulate};
use crate::{Error, Result};

/// Which scales of the inputs are tried, the identity beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputScales {
    /// None: the linears are clipped and rounded as they are.
    None,
    /// By the inputs alone.
    Plain,
    /// By inputs and weights.
    Duo,
    /// Both kinds.
    #[default]
    Both,
}

/// How codes are chosen once the grid is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// The nearest point.
    #[default]
    Nearest,
    /// Column by column, later ones making up for earlier ones (GPTQ).
    Gptq,
}

/// AWQ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Awq {
    /// 2, 3, 4 or 8.
    pub bits: u32,
    /// Input columns that share a scale; 0 for one scale a row.
    pub group_size: usize,
    /// Fixed zero points in the middle of the codes.
    pub symmetric: bool,
    /// What scales are stored as.
    pub scale_dtype: ScaleDtype,
    /// Which scales of the inputs are tried.
    pub scales: InputScales,
    /// Steps of the exponent between 0 and 1, and of a bound between 1 and 0.
    pub steps: u32,
    /// Whether a group's range may be cut, down to half.
    pub clip: bool,
    /// How codes are chosen.
    pub rounding: Rounding,
    /// With GPTQ's rounding: added to diag(H), as a fraction of its mean.
    pub dampening: f64,
}

impl Default for Awq {
    fn default() -> Self {
        Self {
            bits: 4,
            group_size: 128,
            symmetric: false,
            scale_dtype: ScaleDtype::F16,
            scales: InputScales::Both,
            steps: 20,
            clip: true,
            rounding: Rounding::Nearest,
            dampening: 0.01,
        }
    }
}

/// The largest number of steps: beyond it neighbours differ by less than the inputs' means are known.
const MOST_STEPS: u32 = 1000;

/// What the references keep exponentiated means and weights' shares apart from zero by.
const SMALLEST_SCALE: f32 = 1e-4;

/// The same of a group's largest weight.
const SMALLEST_WEIGHT: f32 = 1e-6;

/// Rows of a weight looked at together.
const ROWS: usize = 128;

impl Described for Awq {
    const NAME: &'static str = "awq";
    const SUMMARY: &'static str =
        "scales the columns that meet large inputs before rounding, and clips the ranges of groups";
    const PAPER: &'static str = "Lin et al. 2023, AWQ, https://arxiv.org/abs/2306.00978";

    fn validate(&self) -> Result<()> {
        self.spec().group_size_for(self.group_size)?;
        if !(1..=MOST_STEPS).contains(&self.steps) {
            return Err(Error::Recipe(format!("the steps are {}, expected 1 to {MOST_STEPS}", self.steps)));
        }
        self.feedback().validate()
    }
}

impl LayerMethod for Awq {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn parameters(&self) -> toml::Table {
        toml::Table::try_from(self).expect("plain fields make a table")
    }

    fn needs(&self) -> Needs {
        Needs {
            samples: self.clip || self.scales != InputScales::None,
            hessian: self.rounding == Rounding::Gptq,
            ..Needs::default()
        }
    }

    fn grid(&self) -> Option<GridSpec> {
        Some(self.spec())
    }

    fn scaling(&self) -> Option<&dyn Scaling> {
        (self.scales != InputScales::None).then_some(self)
    }

    fn compress(&self, group: &mut [Weight<'_>], stats: &GroupStats) -> Result<Vec<Compressed>> {
        let Some(first) = group.first() else { return Ok(Vec::new()) };
        let n = stats.in_features;
        for weight in group.iter() {
            super::check(weight, stats)?;
            if weight.keep_zeros && self.rounding == Rounding::Gptq {
                return Err(super::in_linear(
                    weight.name,
                    Error::Recipe("AWQ with `rounding = \"gptq\"` would fill pruned weights; use \"nearest\"".into()),
                ));
            }
        }
        let group_size = self.spec().group_size_for(n).map_err(|cause| super::in_linear(first.name, cause))?;
        let start = Instant::now();
        let inputs: Vec<Outputs> = match stats.samples.as_ref().filter(|samples| self.clip && !samples.is_empty()) {
            Some(samples) => (0..n / group_size).map(|g| Outputs::of(samples, n, g * group_size, group_size)).collect(),
            None => Vec::new(),
        };
        let feedback = self.feedback();
        let prepared = match self.rounding {
            Rounding::Nearest => None,
            Rounding::Gptq => {
                let hessian = stats.hessian.as_ref().ok_or_else(|| {
                    Error::Model(format!("linear `{}`: GPTQ's rounding needs a Hessian, none was observed", first.name))
                })?;
                Some(feedback.prepare(hessian, n).map_err(|cause| super::in_linear(first.name, cause))?)
            }
        };
        let shared_seconds = start.elapsed().as_secs_f64() / group.len() as f64;
        group
            .iter_mut()
            .map(|weight| {
                let start = Instant::now();
                let original = weight.values.to_vec();
                let clips = !inputs.is_empty() && !makes_scores(weight.name);
                let mut report = LinearReport::new(weight.name, Self::NAME);
                let quantised = self.quantise(weight.values, clips.then_some(&inputs), n).and_then(|quantised| {
                    let Some(prepared) = &prepared else { return Ok(quantised) };
                    report.dampening = Some(prepared.dampening);
                    report.escalations = prepared.escalations.clone();
                    report.dead_inputs = prepared.dead_inputs();
                    let fitted = (quantised.scales, quantised.zeros);
                    Ok(feedback.solve_on(weight.values, prepared, Some(fitted))?.0)
                });
                let quantised = quantised.map_err(|cause| super::in_linear(weight.name, cause))?;
                super::rtn::leave_dequantised(&quantised, weight.values);
                report.output_error = stats.output_error(&original, weight.values);
                report.seconds = start.elapsed().as_secs_f64() + shared_seconds;
                Ok(Compressed { weight: quantised.into(), report })
            })
            .collect()
    }
}

/// Whether the linear called `name` makes queries or keys, alone or with others.
fn makes_scores(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    ["q_", "k_"].iter().any(|start| last.starts_with(start))
        || ["query", "key", "qkv", "c_attn"].iter().any(|part| last.to_ascii_lowercase().contains(part))
}

/// Inputs, or a part of their columns, in the form in which the energy of outputs is had soonest.
enum Outputs {
    /// Σ x xᵀ, (n, n).
    Gram(Vec<f32>, usize),
    /// (tokens, n).
    Inputs(Vec<f32>, usize),
}

impl Outputs {
    /// Of `columns` columns from `first` of `samples` (tokens, n).
    fn of(samples: &[f32], n: usize, first: usize, columns: usize) -> Self {
        let tokens = samples.len() / n;
        let x: Vec<f32> = samples.chunks_exact(n).flat_map(|row| &row[first..first + columns]).copied().collect();
        if columns > tokens {
            return Self::Inputs(x, columns);
        }
        let mut gram = vec![0.0; columns * columns];
        syrk_accumulate(&x, &mut gram, tokens, columns, 1.0);
        symmetrize(&mut gram, columns);
        Self::Gram(gram, columns)
    }

    /// `Σ_x (x · w)²` for each row of `weight` (rows, n).
    fn energies(&self, weight: &[f32]) -> Vec<f64> {
        let (Self::Gram(x, n) | Self::Inputs(x, n)) = self;
        let (rows, tokens) = (weight.len() / n, x.len() / n);
        let mut outputs = vec![0.0; rows * tokens];
        match self {
            Self::Gram(gram, n) => {
                matmul_nt(weight, gram, &mut outputs, rows, tokens, *n);
                let rows = weight.chunks_exact(*n).zip(outputs.chunks_exact(*n));
                rows.map(|(weight, product)| f64::from(dot(weight, product)).max(0.0)).collect()
            }
            Self::Inputs(x, n) => {
                matmul_nt(x, weight, &mut outputs, tokens, rows, *n);
                let mut sums = vec![0.0; rows];
                for outputs in outputs.chunks_exact(rows) {
                    sums.iter_mut().zip(outputs).for_each(|(sum, y)| *sum += f64::from(*y) * f64::from(*y));
                }
                sums
            }
        }
    }
}

crate::kernel::dispatch! {
    /// `(ŵ(clamp(w · s, ±bound)) / s) − w` by the grid (scale, zero, largest code), for each of `values`; `s` is one where
    /// `scales` is empty.
    fn deviations(values: &[f32], scales: &[f32], bound: f32, grid: [f32; 3], out: &mut [f32]) = deviations_body
}

#[inline(always)]
fn deviations_body(values: &[f32], scales: &[f32], bound: f32, [scale, zero, max]: [f32; 3], out: &mut [f32]) {
    let stored = |w: f32| (grid::code(w.max(-bound).min(bound), scale, zero, max) - zero) * scale;
    if scales.is_empty() {
        for (out, &w) in out.iter_mut().zip(values) {
            *out = stored(w) - w;
        }
    } else {
        for ((out, &w), &s) in out.iter_mut().zip(values).zip(scales) {
            *out = stored(w * s) / s - w;
        }
    }
}

impl Awq {
    fn spec(&self) -> GridSpec {
        GridSpec {
            bits: self.bits,
            group_size: self.group_size,
            symmetric: self.symmetric,
            scale_dtype: self.scale_dtype,
            search: Search::None,
        }
    }

    /// The method that rounds on a given grid by feedback.
    fn feedback(&self) -> Gptq {
        Gptq {
            bits: self.bits,
            group_size: self.group_size,
            symmetric: self.symmetric,
            scale_dtype: self.scale_dtype,
            search: Search::None,
            dampening: self.dampening,
            groups: Groups::Static,
            ..Gptq::default()
        }
    }

    /// Clips `weight` (rows, n), where `inputs` tell the outputs of each group, and rounds it to nearest.
    fn quantise(&self, weight: &[f32], inputs: Option<&Vec<Outputs>>, n: usize) -> Result<Quantised> {
        let spec = self.spec();
        let Some(inputs) = inputs else { return grid::round_to_nearest(weight, weight.len() / n, n, &spec) };
        let group_size = n / inputs.len();
        let mut clipped = weight.to_vec();
        clipped.par_chunks_mut(ROWS * n).try_for_each(|rows| -> Result<()> {
            for (group, outputs) in inputs.iter().enumerate() {
                let columns = group * group_size..(group + 1) * group_size;
                for (bound, row) in self.bounds(rows, columns.clone(), n, outputs)?.into_iter().zip(rows.chunks_mut(n))
                {
                    row[columns.clone()].iter_mut().for_each(|w| *w = w.clamp(-bound, bound));
                }
            }
            Ok(())
        })?;
        grid::round_to_nearest(&clipped, weight.len() / n, n, &spec)
    }

    /// For each of `rows` (rows, n) the bound that changes its outputs by `columns`, one group, least; the first of equals.
    fn bounds(&self, rows: &[f32], columns: std::ops::Range<usize>, n: usize, outputs: &Outputs) -> Result<Vec<f32>> {
        let (spec, width) = (self.spec(), columns.len());
        let tried = (self.steps / 2).max(1) as usize;
        let mut deltas = vec![0.0; rows.len() / n * tried * width];
        let mut clipped = vec![0.0; width];
        let mut bounds = Vec::with_capacity(rows.len() / n * tried);
        for (row, deltas) in rows.chunks_exact(n).zip(deltas.chunks_exact_mut(tried * width)) {
            let values = &row[columns.clone()];
            let largest = values.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
            for (step, delta) in deltas.chunks_exact_mut(width).enumerate() {
                let bound = largest * (1.0 - step as f32 / self.steps as f32);
                clipped.iter_mut().zip(values).for_each(|(out, w)| *out = w.clamp(-bound, bound));
                let (scale, zero) = fit_group(&clipped, &spec)?;
                deviations(values, &[], bound, [scale, f32::from(zero), f32::from(spec.max_code())], delta);
                bounds.push(bound);
            }
        }
        let energies = outputs.energies(&deltas);
        let least =
            |energies: &[f64]| (1..tried).fold(0, |best, i| if energies[i] < energies[best] { i } else { best });
        let rows = energies.chunks_exact(tried).zip(bounds.chunks_exact(tried));
        Ok(rows.map(|(energies, bounds)| bounds[least(energies)]).collect())
    }

    /// `Σ ‖x (Q(W s)/s − W)ᵀ‖²` over the inputs and all of `weights`, where every column of a weight is scaled.
    fn loss(&self, weights: &[&[f32]], scales: &[f32], outputs: &Outputs) -> Result<f64> {
        let (spec, n) = (self.spec(), scales.len());
        let group_size = spec.group_size_for(n)?;
        let max = f32::from(spec.max_code());
        let mut loss = 0.0;
        for rows in weights.iter().flat_map(|weight| weight.chunks(ROWS * n)) {
            let mut deltas = vec![0.0; rows.len()];
            let round = |(row, deltas): (&[f32], &mut [f32])| -> Result<()> {
                let mut scaled = vec![0.0; group_size];
                let groups = row.chunks_exact(group_size).zip(scales.chunks_exact(group_size));
                for ((values, scales), delta) in groups.zip(deltas.chunks_exact_mut(group_size)) {
                    scaled.iter_mut().zip(values.iter().zip(scales)).for_each(|(out, (w, s))| *out = w * s);
                    let (scale, zero) = fit_group(&scaled, &spec)?;
                    deviations(values, scales, f32::INFINITY, [scale, f32::from(zero), max], delta);
                }
                Ok(())
            };
            rows.par_chunks_exact(n).zip(deltas.par_chunks_exact_mut(n)).try_for_each(round)?;
            loss += outputs.energies(&deltas).iter().sum::<f64>();
        }
        Ok(loss)
    }

    /// The mean over all rows of `|w_j|` over the largest of its group, summed within each class of columns and divided by
    /// the class's size.
    fn weight_shares(&self, weights: &[&[f32]], classes: &Classes<'_>) -> Result<Vec<f32>> {
        let n = classes.of_column.len();
        let group_size = self.spec().group_size_for(n)?;
        let mut sums = vec![0.0f64; n];
        let mut rows = 0;
        for row in weights.iter().flat_map(|weight| weight.chunks_exact(n)) {
            rows += 1;
            for (values, sums) in row.chunks_exact(group_size).zip(sums.chunks_exact_mut(group_size)) {
                let largest = values.iter().fold(0.0f32, |largest, w| largest.max(w.abs())) + SMALLEST_WEIGHT;
                sums.iter_mut().zip(values).for_each(|(sum, w)| *sum += f64::from(w.abs() / largest));
            }
        }
        Ok(classes.means(sums.into_iter().map(|sum| sum / f64::from(rows.max(1)))))
    }
}

/// Columns that share a scale.
struct Classes<'a> {
    of_column: &'a [u32],
    sizes: Vec<f64>,
}

impl<'a> Classes<'a> {
    fn new(of_column: &'a [u32]) -> Self {
        let mut sizes = vec![0.0; of_column.iter().max().map_or(0, |&last| last as usize + 1)];
        of_column.iter().for_each(|&class| sizes[class as usize] += 1.0);
        Self { of_column, sizes }
    }

    /// The mean of each class's columns.
    fn means(&self, columns: impl Iterator<Item = f64>) -> Vec<f32> {
        let mut sums = vec![0.0; self.sizes.len()];
        columns.zip(self.of_column).for_each(|(value, &class)| sums[class as usize] += value);
        sums.iter().zip(&self.sizes).map(|(sum, size)| (sum / size) as f32).collect()
    }

    fn columns(&self, scales: &[f32]) -> Vec<f32> {
        self.of_column.iter().map(|&class| scales[class as usize]).collect()
    }
}

/// `x̄^r`, over `w̄^(1−r)` where there is one, divided by the geometric mean of its extremes. A column that met no input at
/// all is scaled like the smallest of the others: its own scale would say nothing but widen the range.
fn candidate(sizes: &[f32], shares: Option<&[f32]>, ratio: f32) -> Vec<f32> {
    let mut scales: Vec<f32> = sizes.iter().map(|x| x.powf(ratio)).collect();
    if let Some(shares) = shares {
        scales.iter_mut().zip(shares).for_each(|(s, w)| *s /= w.powf(1.0 - ratio) + SMALLEST_SCALE);
    }
    let (mut least, mut most) = (f32::INFINITY, 0.0f32);
    for (scale, _) in scales.iter_mut().zip(sizes).filter(|(_, size)| **size > 0.0) {
        *scale = scale.max(SMALLEST_SCALE);
        (least, most) = (least.min(*scale), most.max(*scale));
    }
    if !(least <= most) {
        return vec![1.0; sizes.len()];
    }
    let middle = (least * most).sqrt();
    let seen = |size: f32, scale: f32| if size > 0.0 { scale } else { least };
    let scale = |(size, scale): (&f32, &f32)| seen(*size, *scale) / middle;
    sizes.iter().zip(&scales).map(scale).map(|s| if s.is_finite() && s > 0.0 { s } else { 1.0 }).collect()
}

impl Scaling for Awq {
    fn search(
        &self,
        weights: &[&[f32]],
        stats: &GroupStats,
        classes: &[u32],
        settle: &dyn Fn(&mut [f32]),
    ) -> Result<Scales> {
        let n = stats.in_features;
        let classes = Classes::new(classes);
        let mut best =
            Scales { scales: vec![1.0; classes.sizes.len()], ratio: 0.0, duo: false, error: None, unscaled: None };
        let (Some(samples), Some(sizes)) = (&stats.samples, &stats.magnitudes) else {
            return Err(Error::Model("the search for scales needs samples and mean sizes, none were observed".into()));
        };
        if samples.is_empty() {
            return Ok(best); // no token came by
        }
        let outputs = Outputs::of(samples, n, 0, n);
        let sizes = classes.means(sizes.iter().map(|&size| f64::from(size)));
        let shares = match self.scales {
            InputScales::Duo | InputScales::Both => Some(self.weight_shares(weights, &classes)?),
            InputScales::Plain | InputScales::None => None,
        };
        let unscaled = self.loss(weights, &classes.columns(&best.scales), &outputs)?;
        let mut least = unscaled;
        for step in 0..self.steps {
            let ratio = step as f32 / self.steps as f32;
            let plain = step > 0 && matches!(self.scales, InputScales::Plain | InputScales::Both);
            let plain = plain.then_some(None);
            let duo = shares.as_deref().map(Some);
            for shares in plain.into_iter().chain(duo) {
                let mut scales = candidate(&sizes, shares, ratio);
                settle(&mut scales);
                let loss = self.loss(weights, &classes.columns(&scales), &outputs)?;
                if loss < least {
                    least = loss;
                    best = Scales {
                        scales,
                        ratio: f64::from(step) / f64::from(self.steps),
                        duo: shares.is_some(),
                        ..best
                    };
                }
            }
        }
        let whole: f64 = weights
            .iter()
            .flat_map(|weight| weight.chunks(ROWS * n))
            .map(|rows| outputs.energies(rows).iter().sum::<f64>())
            .sum();
        best.error = super::share(least, whole);
        best.unscaled = super::share(unscaled, whole);
        Ok(best)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::kernel::test_values::uniform;

    /// Of a loss in f64 over that of the choice made in f32, at most: sums of f32 products are good to about 1e-5.
    const SLACK: f64 = 1.0002;

    /// Inputs (tokens, n) of unequal sizes, as `fixtures/interop/make_awq_goldens.py` makes them.
    fn inputs(tokens: usize, n: usize, seed: u64) -> Vec<f32> {
        let size: Vec<f32> = uniform(n, seed + 1).iter().map(|u| (1.1 + u) * (1.1 + u)).map(|s| s * s).collect();
        uniform(tokens * n, seed).iter().enumerate().map(|(at, x)| x * size[at % n]).collect()
    }

    fn stats(x: Vec<f32>, n: usize) -> GroupStats {
        let tokens = x.len() / n;
        let mean =
            |j: usize| (x.iter().skip(j).step_by(n).map(|x| f64::from(x.abs())).sum::<f64>() / tokens as f64) as f32;
        let mut hessian = vec![0.0; n * n];
        syrk_accumulate(&x, &mut hessian, tokens, n, 2.0);
        symmetrize(&mut hessian, n);
        GroupStats {
            in_features: n,
            hessian: Some(hessian),
            magnitudes: Some((0..n).map(mean).collect()),
            samples: Some(x),
            tokens,
            ..GroupStats::default()
        }
    }

    fn classes(n: usize) -> Vec<u32> {
        (0..n as u32).collect()
    }

    fn compress(method: &Awq, name: &str, weight: &[f32], stats: &GroupStats) -> Quantised {
        let mut values = weight.to_vec();
        let (n, rows) = (stats.in_features, weight.len() / stats.in_features);
        let mut group = [Weight { name, out_features: rows, in_features: n, values: &mut values, keep_zeros: false }];
        let done = method.compress(&mut group, stats).unwrap().remove(0);
        done.weight.quantised().expect("codes").clone()
    }

    /// `Σ ‖x δᵀ‖²` in f64, one row at a time.
    fn naive_energy(x: &[f32], delta: &[f64]) -> f64 {
        let n = delta.len();
        x.chunks_exact(n).map(|x| x.iter().zip(delta).map(|(x, d)| f64::from(*x) * d).sum::<f64>().powi(2)).sum()
    }

    /// The weight that a group's values become, by the definition.
    fn naive_group(values: &[f64], bits: u32) -> Vec<f64> {
        let (lo, hi) = values.iter().fold((0.0f64, 0.0f64), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
        let max = 2f64.powi(bits as i32) - 1.0;
        let scale = (hi - lo) / max;
        let zero = (-lo / scale).round_ties_even().clamp(0.0, max);
        values.iter().map(|v| (((v / scale).round_ties_even() + zero).clamp(0.0, max) - zero) * scale).collect()
    }

    fn naive_loss(method: &Awq, weights: &[&[f32]], x: &[f32], scales: &[f32]) -> f64 {
        let n = scales.len();
        let row_loss = |row: &[f32]| {
            let scaled: Vec<f64> = row.iter().zip(scales).map(|(w, s)| f64::from(w * s)).collect();
            let stored: Vec<f64> =
                scaled.chunks(method.group_size).flat_map(|values| naive_group(values, method.bits)).collect();
            let delta = stored.iter().zip(scales).zip(row).map(|((q, s), w)| q / f64::from(*s) - f64::from(*w));
            naive_energy(x, &delta.collect::<Vec<_>>())
        };
        weights.iter().flat_map(|weight| weight.chunks_exact(n)).map(row_loss).sum()
    }

    /// All candidates, by the formulas.
    fn naive_candidates(method: &Awq, weights: &[&[f32]], stats: &GroupStats) -> Vec<Vec<f32>> {
        let n = stats.in_features;
        let sizes = stats.magnitudes.as_ref().unwrap();
        let rows: usize = weights.iter().map(|weight| weight.len() / n).sum();
        let share = |j: usize| {
            let group = j / method.group_size * method.group_size;
            let of = |row: &[f32]| {
                let largest = row[group..][..method.group_size].iter().fold(0.0f32, |a, w| a.max(w.abs()));
                f64::from(row[j].abs() / (largest + 1e-6))
            };
            weights.iter().flat_map(|weight| weight.chunks_exact(n)).map(of).sum::<f64>() / rows as f64
        };
        let shares: Vec<f64> = (0..n).map(share).collect();
        let mut all = vec![vec![1.0; n]];
        for step in 0..method.steps {
            let ratio = f64::from(step) / f64::from(method.steps);
            for duo in [false, true] {
                let scale = |j: usize| {
                    let plain = f64::from(sizes[j]).powf(ratio);
                    (if duo { plain / (shares[j].powf(1.0 - ratio) + 1e-4) } else { plain }).max(1e-4)
                };
                let scales: Vec<f64> = (0..n).map(scale).collect();
                let (lo, hi) = scales.iter().fold((f64::MAX, 0.0f64), |(lo, hi), s| (lo.min(*s), hi.max(*s)));
                all.push(scales.iter().map(|s| (s / (lo * hi).sqrt()) as f32).collect());
            }
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn the_best_of_all_candidates_is_found(seed in 0u64..1000, bits in 3u32..5, tokens in 8usize..60) {
            let n = 32;
            let method = Awq { bits, group_size: 16, scale_dtype: ScaleDtype::F32, ..Awq::default() };
            let stats = stats(inputs(tokens, n, seed), n);
            let (a, b) = (uniform(24 * n, seed + 7), uniform(8 * n, seed + 8));
            let found = method.search(&[&a, &b], &stats, &classes(n), &|_| {}).unwrap();
            let loss = |scales: &[f32]| naive_loss(&method, &[&a, &b], stats.samples.as_ref().unwrap(), scales);
            let all = naive_candidates(&method, &[&a, &b], &stats);
            let least = all.iter().map(|scales| loss(scales)).fold(f64::INFINITY, f64::min);
            prop_assert!(loss(&found.scales) <= least * SLACK, "{} for {least}", loss(&found.scales));
            prop_assert!(loss(&found.scales) <= loss(&all[0]) * SLACK);
            prop_assert!(found.error <= found.unscaled);
        }

        #[test]
        fn the_best_bound_of_each_group_is_found(seed in 0u64..1000, tokens in 4usize..40, bits in 2u32..5) {
            let (n, g) = (48, 16);
            let method =
                Awq { bits, group_size: g, scale_dtype: ScaleDtype::F32, scales: InputScales::None, ..Awq::default() };
            let x = inputs(tokens, n, seed);
            // Cubed: a few weights far out, which clipping is for.
            let weight: Vec<f32> = uniform(6 * n, seed + 7).iter().map(|w| w * w * w).collect();
            let stored = compress(&method, "v_proj", &weight, &stats(x.clone(), n)).dequantize();
            for (row, stored) in weight.chunks(n).zip(stored.chunks(n)) {
                for first in (0..n).step_by(g) {
                    let x: Vec<f32> = x.chunks(n).flat_map(|x| &x[first..first + g]).copied().collect();
                    let values: Vec<f64> = row[first..first + g].iter().map(|w| f64::from(*w)).collect();
                    let error = |stored: &[f64]| {
                        naive_energy(&x, &stored.iter().zip(&values).map(|(q, w)| q - w).collect::<Vec<_>>())
                    };
                    let largest = values.iter().fold(0.0f64, |a, w| a.max(w.abs()));
                    let tried = (0..10).map(|i| largest * (1.0 - f64::from(i) / 20.0));
                    let clipped = tried.map(|b| values.iter().map(|w| w.clamp(-b, b)).collect::<Vec<_>>());
                    let least = clipped.map(|v| error(&naive_group(&v, bits))).fold(f64::INFINITY, f64::min);
                    let found = error(&stored[first..first + g].iter().map(|q| f64::from(*q)).collect::<Vec<_>>());
                    prop_assert!(found <= least * SLACK + 1e-9, "{found} for {least}");
                }
            }
        }
    }

    fn golden() -> Value {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/interop/awq_goldens.json");
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    }

    fn number(value: &Value) -> usize {
        value.as_u64().unwrap() as usize
    }

    /// A case of the goldens: the method, the inputs, and the weights of q, k and v.
    fn case(golden: &Value, case: &Value, scales: InputScales) -> (Awq, GroupStats, Vec<Vec<f32>>) {
        let [tokens, n, rows] = ["tokens", "inputs", "rows"].map(|key| number(&golden[key]));
        let seed = number(&case["seed"]) as u64;
        let method = Awq {
            bits: number(&case["bits"]) as u32,
            group_size: number(&case["group_size"]),
            scale_dtype: ScaleDtype::F32,
            scales,
            ..Awq::default()
        };
        let weights = (0..3).map(|i| uniform(rows * n, seed + 2 + i)).collect();
        (method, stats(inputs(tokens, n, seed), n), weights)
    }

    #[test]
    fn exponents_codes_and_errors_are_those_of_llm_awq() {
        let golden = golden();
        for theirs in golden["llm-awq"].as_array().unwrap() {
            let (method, mut stats, mut weights) = case(&golden, theirs, InputScales::Plain);
            let n = stats.in_features;
            let views: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
            let found = method.search(&views, &stats, &classes(n), &|_| {}).unwrap();
            assert_eq!(Some(found.ratio), theirs["ratio"].as_f64());
            let x = stats.samples.clone().unwrap();
            let original = weights.clone();
            let scaled = |values: &mut [f32], by: fn(&mut f32, f32)| {
                values
                    .chunks_exact_mut(n)
                    .for_each(|row| row.iter_mut().zip(&found.scales).for_each(|(v, s)| by(v, *s)));
            };
            scaled(stats.samples.as_mut().unwrap(), |x, s| *x /= s);
            for ((name, weight), original) in
                ["q_proj", "k_proj", "v_proj"].into_iter().zip(&mut weights).zip(&original)
            {
                scaled(weight, |w, s| *w *= s);
                let q = compress(&method, name, weight, &stats);
                let codes = theirs[name].as_str().unwrap().bytes().map(|c| (c as char).to_digit(16).unwrap() as u8);
                let same = q.codes.iter().zip(codes).filter(|(a, b)| **a == *b).count();
                assert!(same as f64 >= 0.999 * q.codes.len() as f64, "{name}: {same} of {}", q.codes.len());
                let error: f64 = q
                    .dequantize()
                    .chunks(n)
                    .zip(original.chunks(n))
                    .map(|(q, w)| {
                        let delta =
                            q.iter().zip(&found.scales).zip(w).map(|((q, s), w)| f64::from(q / s) - f64::from(*w));
                        naive_energy(&x, &delta.collect::<Vec<_>>())
                    })
                    .sum();
                let theirs = theirs[format!("{name}_error")].as_f64().unwrap();
                assert!(error <= 1.001 * theirs, "{name}: {error} for {theirs}");
            }
        }
    }

    #[test]
    fn exponents_and_losses_are_those_of_llm_compressor() {
        let golden = golden();
        for theirs in golden["llm-compressor"].as_array().unwrap() {
            let (method, stats, weights) = case(&golden, theirs, InputScales::Duo);
            let views: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
            let found = method.search(&views, &stats, &classes(stats.in_features), &|_| {}).unwrap();
            assert_eq!((Some(found.ratio), found.duo), (theirs["ratio"].as_f64(), true));
            let losses: Vec<f64> =
                theirs["losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
            let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
            let gain = found.error.unwrap() / found.unscaled.unwrap();
            assert!((gain / (least / losses[0]) - 1.0).abs() < 1e-3, "{gain} for {}", least / losses[0]);
        }
    }

    #[test]
    fn without_scales_and_clipping_it_rounds_to_nearest() {
        let stats = stats(inputs(20, 64, 3), 64);
        let weight = uniform(16 * 64, 4);
        for symmetric in [false, true] {
            let method = Awq { group_size: 32, symmetric, clip: false, scales: InputScales::None, ..Awq::default() };
            assert!(!method.needs().any() && method.scaling().is_none());
            let expected = grid::round_to_nearest(&weight, 16, 64, &method.spec()).unwrap();
            assert_eq!(compress(&method, "up_proj", &weight, &stats), expected);
            let clipping = Awq { clip: true, ..method.clone() };
            assert_eq!(compress(&clipping, "a.k_proj", &weight, &stats), expected, "keys are not clipped");
            assert_ne!(compress(&clipping, "a.up_proj", &weight, &stats), expected);
        }
    }

    #[test]
    fn what_makes_queries_or_keys_is_told_by_the_last_name() {
        for name in ["a.q_proj", "k_proj", "x.query_key_value", "h.0.attn.c_attn", "a.qkv_proj", "m.Wqkv"] {
            assert!(makes_scores(name), "{name}");
        }
        for name in ["a.v_proj", "block_sparse_moe.experts.0.w1", "mlp.up_proj", "q_former.dense"] {
            assert!(!makes_scores(name), "{name}");
        }
    }

    // The reference shifts such a group by a zero point that it then clamps to 0, and cuts its largest weights off.
    #[test]
    fn a_group_without_negatives_keeps_its_largest_weights() {
        let weight: Vec<f32> = uniform(32, 5).iter().map(|w| 1.5 + 0.5 * w).collect();
        let method = Awq { group_size: 32, clip: false, scales: InputScales::None, ..Awq::default() };
        let stored = compress(&method, "v_proj", &weight, &stats(inputs(8, 32, 1), 32)).dequantize();
        let worst = stored.iter().zip(&weight).map(|(q, w)| (q - w).abs()).fold(0.0, f32::max);
        assert!(worst <= 2.0 / 15.0 / 2.0 + 1e-3, "{worst}");
    }

    #[test]
    fn columns_of_a_class_share_a_scale_and_silent_ones_take_the_smallest() {
        let n = 32;
        let mut x = inputs(40, n, 2);
        x.iter_mut().skip(3).step_by(n).for_each(|x| *x = 0.0);
        let method = Awq { group_size: 16, ..Awq::default() };
        let weight = uniform(16 * n, 9);
        let found = method.search(&[&weight], &stats(x.clone(), n), &classes(n), &|_| {}).unwrap();
        assert!(found.ratio > 0.0 || found.duo);
        assert_eq!(found.scales[3], found.scales.iter().copied().fold(f32::INFINITY, f32::min));
        let halves: Vec<u32> = (0..n as u32).map(|column| column % 16).collect();
        let found = method.search(&[&weight], &stats(x, n), &halves, &|_| {}).unwrap();
        assert_eq!(found.scales.len(), 16);
        let silent = method.search(&[&weight], &stats(vec![0.0; 4 * n], n), &classes(n), &|_| {}).unwrap();
        assert_eq!((silent.scales, silent.error), (vec![1.0; n], None));
        let unseen = GroupStats { samples: Some(Vec::new()), ..stats(inputs(4, n, 2), n) };
        assert_eq!(method.search(&[&weight], &unseen, &classes(n), &|_| {}).unwrap().scales, vec![1.0; n]);
    }

    #[test]
    fn feedback_on_the_clipped_grid_loses_less() {
        let n = 64;
        let stats = stats(inputs(200, n, 6), n);
        let weight = uniform(32 * n, 7);
        let nearest = Awq { bits: 3, group_size: 32, ..Awq::default() };
        let feedback = Awq { rounding: Rounding::Gptq, ..nearest.clone() };
        let [a, b] = [&nearest, &feedback].map(|method| compress(method, "up_proj", &weight, &stats));
        assert_eq!((&a.scales, &a.zeros), (&b.scales, &b.zeros));
        let error = |q: &Quantised| stats.output_error(&weight, &q.dequantize()).unwrap();
        assert!(error(&b) < 0.9 * error(&a), "{} for {}", error(&b), error(&a));
        let mut values = weight.clone();
        let mut group = [Weight { name: "a", out_features: 32, in_features: n, values: &mut values, keep_zeros: true }];
        assert!(feedback.compress(&mut group, &stats).unwrap_err().to_string().contains("pruned"));
    }
}
