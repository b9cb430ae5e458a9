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
                    report.dead_inputs = prepared.dead.len();
                    let fitted = (quantised.scales, quantised.zeros);
                    Ok(feedback.solve_on(weight.values, prepared, weight.keep_zeros, Some(fitted))?.0)
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
    if least > most {
        return vec![1.0; sizes.len()]; // no input came by
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
mod tests;
