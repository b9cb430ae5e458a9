//! SparseGPT: takes the columns of a weight in turn, sets to zero those that cost least, and lets later columns make up for
//! them. With `bits` the weights that stay are rounded to a grid in the same pass.
//!
//! It lowers `tr(Δ H Δᵀ)` for `H = 2/N Σ x xᵀ` as GPTQ does, by the walk of `feedback.rs`, which also derives the score,
//! `w² / [U]_jj²` (Frantar and Alistarh 2023, eq. 3 and section 3.3), from our factor. The mask is chosen adaptively: for
//! every block of `column_block` columns `⌊sparsity · rows · columns⌋` weights, anywhere in the block, on the weights as
//! they stand when the block is reached; or for every group of a pattern, row by row, when the group is reached. Ties go in
//! index order, by row and then by column, so the counts are exact. Dampening and dead inputs are as `prepared.rs` says.
//!
//! Scales are those of the original weight, before anything is pruned.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::feedback::{self, Groups, Problem};
use super::prepared::{Prepared, check_dampening};
use super::{Compressed, Described, GroupStats, Kind, LayerMethod, LinearReport, Needs, Weight};
use crate::grid::{self, GridSpec, Quantised, ScaleDtype, Search};
use crate::kernel::gemm::quadratic_form;
use crate::mask::{Amount, NOfM};
use crate::weight::{Code, GridCode};
use crate::{Error, Result};

/// SparseGPT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SparseGpt {
    /// The fraction set to zero; 0.5 if neither this nor a pattern is given.
    pub sparsity: Option<f64>,
    /// How many of every few neighbours in a row stay, instead of a sparsity.
    pub pattern: Option<NOfM>,
    /// Added to diag(H), as a fraction of its mean.
    pub dampening: f64,
    /// Columns that share a budget, with a sparsity.
    pub column_block: usize,
    /// 2, 3, 4 or 8 to round the weights that stay; without it they stay plain numbers.
    pub bits: Option<u32>,
    /// Input columns that share a scale; 0 for one scale a row; 128 if not given. Of this and the following only with bits.
    pub group_size: Option<usize>,
    /// Fixed zero points in the middle of the codes; true if not given.
    pub symmetric: Option<bool>,
    /// What scales are stored as; f16 if not given.
    pub scale_dtype: Option<ScaleDtype>,
    /// How the range of a group is chosen; mse if not given.
    pub search: Option<Search>,
}

impl Default for SparseGpt {
    fn default() -> Self {
        Self {
            sparsity: None,
            pattern: None,
            dampening: 0.01,
            column_block: 128,
            bits: None,
            group_size: None,
            symmetric: None,
            scale_dtype: None,
            search: None,
        }
    }
}

impl SparseGpt {
    fn amount(&self) -> Result<Amount> {
        Amount::new(self.sparsity, self.pattern)
    }

    fn spec(&self) -> Option<GridSpec> {
        Some(GridSpec {
            bits: self.bits?,
            group_size: self.group_size.unwrap_or(128),
            symmetric: self.symmetric.unwrap_or(true),
            scale_dtype: self.scale_dtype.unwrap_or(ScaleDtype::F16),
            search: self.search.unwrap_or(Search::Mse),
        })
    }

    /// Dampens and factors `hessian` (n, n).
    ///
    /// Refuses what [`Prepared::new`] does.
    pub fn prepare(&self, hessian: &[f32], n: usize) -> Result<Prepared> {
        Prepared::new(hessian, n, self.dampening, false)
    }

    /// Prunes `weight` (rows, n), whose dead columns are set to zero; gives `tr(Δ H Δᵀ)` and, with bits, the codes: then the
    /// weight itself is left as it was. With `keep_zeros` weights that are zero count towards the budget and stay zero.
    pub fn solve(&self, weight: &mut [f32], prepared: &Prepared, keep_zeros: bool) -> Result<(Option<Quantised>, f64)> {
        let n = prepared.order.len();
        let amount = self.amount()?;
        amount.check(n)?;
        prepared.clear_dead(weight);
        let spec = self.spec();
        let fitted = match &spec {
            Some(spec) => Some((spec, spec.group_size_for(n)?, grid::fit_rows(weight, n, spec)?)),
            None => None,
        };
        let grid = fitted.as_ref().map(|(spec, group_size, (scales, zeros))| feedback::Grid {
            spec,
            group_size: *group_size,
            groups: Groups::Static { scales, zeros },
        });
        let mut problem = Problem::new(prepared, grid, self.column_block);
        problem.prune = Some(amount);
        problem.keep_zeros = keep_zeros;
        let rows = weight.len() / n;
        let solved = feedback::solve(weight, &problem)?;
        let quantised = fitted.map(|(spec, group_size, (scales, zeros))| Quantised {
            out_features: rows,
            in_features: n,
            bits: spec.bits,
            group_size,
            symmetric: spec.symmetric,
            scale_dtype: spec.scale_dtype,
            codes: solved.codes,
            scales,
            zeros,
            g_idx: None,
        });
        Ok((quantised, solved.error))
    }
}

impl Described for SparseGpt {
    const NAME: &'static str = "sparsegpt";
    const SUMMARY: &'static str = "sets weights to zero column by column, letting later columns make up for them; with bits it rounds the others too";
    const PAPER: &'static str = "Frantar and Alistarh 2023, SparseGPT, https://arxiv.org/abs/2301.00774";

    fn validate(&self) -> Result<()> {
        self.amount()?;
        check_dampening(self.dampening)?;
        if self.column_block == 0 {
            return Err(Error::Recipe("the column block is 0, expected at least 1".to_owned()));
        }
        match self.spec() {
            Some(spec) => spec.group_size_for(spec.group_size).map(|_| ()),
            None => {
                let given = [
                    ("group_size", self.group_size.is_some()),
                    ("symmetric", self.symmetric.is_some()),
                    ("scale_dtype", self.scale_dtype.is_some()),
                    ("search", self.search.is_some()),
                ];
                match given.iter().find(|(_, given)| *given) {
                    Some((name, _)) => Err(Error::Recipe(format!(
                        "`{name}` is given without `bits`, and weights that are not rounded have no grid; give `bits` too, or \
                         leave it out"
                    ))),
                    None => Ok(()),
                }
            }
        }
    }

    fn filled(&self) -> Self {
        let (sparsity, pattern) = self.amount().unwrap_or(Amount::DEFAULT).parameters();
        let spec = self.spec();
        Self {
            sparsity,
            pattern,
            dampening: self.dampening,
            column_block: self.column_block,
            bits: self.bits,
            group_size: spec.map(|spec| spec.group_size),
            symmetric: spec.map(|spec| spec.symmetric),
            scale_dtype: spec.map(|spec| spec.scale_dtype),
            search: spec.map(|spec| spec.search),
        }
    }
}

impl LayerMethod for SparseGpt {
    fn needs(&self) -> Needs {
        Needs { hessian: true, ..Needs::default() }
    }

    fn kind(&self) -> Kind {
        match self.bits {
            Some(_) => Kind::Quantise,
            None => Kind::Prune,
        }
    }

    fn grid(&self) -> Option<GridSpec> {
        self.spec()
    }

    fn code(&self, in_features: usize) -> Result<Code> {
        self.amount()?.check(in_features)?;
        let Some(grid) = self.spec() else { return Ok(Code::Dense) };
        Ok(Code::Grid(GridCode {
            bits: grid.bits,
            group_size: grid.group_size_for(in_features)?,
            symmetric: grid.symmetric,
            has_g_idx: false,
        }))
    }

    fn compress(&self, group: &mut [Weight<'_>], stats: &GroupStats) -> Result<Vec<Compressed>> {
        let Some(first) = group.first() else { return Ok(Vec::new()) };
        let hessian = stats.hessian.as_ref().ok_or_else(|| {
            Error::Model(format!("linear `{}`: SparseGPT needs a Hessian, and none was observed", first.name))
        })?;
        for weight in group.iter() {
            super::check(weight, stats)?;
            self.code(weight.in_features).map_err(|cause| super::in_linear(weight.name, cause))?;
        }
        let start = Instant::now();
        let prepared = self.prepare(hessian, stats.in_features).map_err(|cause| super::in_linear(first.name, cause))?;
        let shared_seconds = start.elapsed().as_secs_f64() / group.len() as f64;
        group
            .iter_mut()
            .map(|weight| {
                let start = Instant::now();
                let energy = quadratic_form(weight.values, hessian, weight.in_features);
                let (quantised, error) = self
                    .solve(weight.values, &prepared, weight.keep_zeros)
                    .map_err(|cause| super::in_linear(weight.name, cause))?;
                let mut report = LinearReport {
                    output_error: super::share(error, energy),
                    dampening: Some(prepared.dampening),
                    escalations: prepared.escalations.clone(),
                    dead_inputs: prepared.dead.len(),
                    ..LinearReport::new(weight.name, Self::NAME)
                };
                let weight = match quantised {
                    Some(quantised) => {
                        super::rtn::leave_dequantised(&quantised, weight.values);
                        quantised.into()
                    }
                    None => super::plain(weight),
                };
                report.seconds = start.elapsed().as_secs_f64() + shared_seconds;
                Ok(Compressed { weight, report })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::*;

    use super::*;
    use crate::kernel::gemm::{symmetrize, syrk_accumulate};
    use crate::kernel::test_values::uniform;
    use crate::mask;

    /// Square roots of scores that differ by less, in units of the largest beside them, may change places in f32.
    const TIE: f64 = 1e-4;

    /// What weights may differ by in f32, in units of the largest.
    const MAX_DIFFERENCE: f64 = 1e-3;

    /// The same once they are rounded to the same codes: one rounding of code times scale.
    const SAME_CODES: f64 = 1e-6;

    /// `2/t Σ x xᵀ` of `t` correlated inputs of `n` features with unequal sizes.
    fn hessian(n: usize, t: usize, seed: u64) -> Vec<f32> {
        let (z, mix, size) = (uniform(t * n, seed), uniform(n * 8, seed + 1), uniform(n, seed + 2));
        let mut x = vec![0.0; t * n];
        for s in 0..t {
            for j in 0..n {
                let shared: f32 = (0..8.min(n)).map(|k| mix[j * 8 + k] * z[s * n + k]).sum();
                x[s * n + j] = (shared + 0.5 * z[s * n + j]) * size[j].exp();
            }
        }
        let mut h = vec![0.0; n * n];
        syrk_accumulate(&x, &mut h, t, n, 2.0 / t as f32);
        symmetrize(&mut h, n);
        h
    }

    /// `A⁻¹` by Gauss and Jordan.
    fn inverse(a: &[f64], n: usize) -> Vec<f64> {
        let mut left = a.to_vec();
        let mut right: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
        for k in 0..n {
            let pivot = left[k * n + k];
            for j in 0..n {
                left[k * n + j] /= pivot;
                right[k * n + j] /= pivot;
            }
            for i in (0..n).filter(|i| *i != k) {
                let factor = left[i * n + k];
                for j in 0..n {
                    left[i * n + j] -= factor * left[k * n + j];
                    right[i * n + j] -= factor * right[k * n + j];
                }
            }
        }
        right
    }

    /// The definition, one column at a time in f64 with an explicit inverse of the Hessian of the columns to come
    /// (Frantar and Alistarh 2023, eq. 3, section 3.2 and 3.3): the pruned weight, with bits on the grids of the original
    /// one. Where scores all but tie, or two codes are all but as near, `ours` decides, since one choice changes all that
    /// follow it; says what it chose that no tie explains.
    fn by_definition(
        method: &SparseGpt,
        weight: &[f32],
        ours: &[f32],
        h: &[f32],
        n: usize,
        keep_zeros: bool,
    ) -> Result<Vec<f64>, String> {
        let mean = (0..n).map(|j| f64::from(h[j * n + j])).sum::<f64>() / n as f64;
        let damped: Vec<f64> =
            (0..n * n).map(|i| f64::from(h[i]) + if i / n == i % n { mean * method.dampening } else { 0.0 }).collect();
        // By column: row k of the inverse of the Hessian of columns k.. .
        let mut of_rest = inverse(&damped, n);
        let mut rows_of_inverse = Vec::new();
        for k in 0..n {
            let row: Vec<f64> = of_rest[k * n..][..n].to_vec();
            for i in (0..n).filter(|i| *i != k) {
                let factor = of_rest[i * n + k] / row[k];
                (0..n).for_each(|j| of_rest[i * n + j] -= factor * row[j]);
            }
            // Column k has become zero for the rows below, and row k is not looked at again.
            rows_of_inverse.push(row);
        }
        let rows = weight.len() / n;
        let grids = method.spec().map(|spec| (grid::fit_rows(weight, n, &spec).unwrap(), spec));
        let slack = MAX_DIFFERENCE * weight.iter().fold(0.0, |most, w| f64::max(most, f64::from(w.abs())));
        // What a weight that stays becomes.
        let rounded = |target: f64, i: usize| -> f64 {
            let Some(((scales, zeros), spec)) = &grids else { return target };
            let group = i / spec.group_size; // which divides the row
            let (scale, zero) = (f64::from(scales[group]), f64::from(zeros[group]));
            let (least, most) = (-zero, f64::from(spec.max_code()) - zero);
            let on_grid = |value: f64| scale * (value / scale).round_ties_even().clamp(least, most);
            let own = on_grid(f64::from(ours[i]));
            let distance = (own - target.clamp(scale * least, scale * most)).abs();
            if distance <= 0.5 * scale + slack { own } else { on_grid(target) }
        };
        let mut w: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
        let zero: Vec<bool> = weight.iter().map(|&w| keep_zeros && w == 0.0).collect();
        let mut gone = zero.clone();
        // Weights that have to stay zero go first, and count.
        let score = |w: &[f64], row: usize, k: usize| match zero[row * n + k] {
            true => 0.0,
            false => (w[row * n + k].powi(2) / rows_of_inverse[k][k]).max(f64::MIN_POSITIVE),
        };
        let choose = |w: &[f64], gone: &mut [bool], rows: Range<usize>, columns: Range<usize>, count: usize| {
            let mut scored: Vec<(f64, usize)> = rows
                .flat_map(|row| columns.clone().map(move |k| (row, k)))
                .map(|(row, k)| (score(w, row, k).sqrt(), row * n + k))
                .collect();
            scored.sort_by(|a, b| a.0.total_cmp(&b.0)); // stable
            let slack = TIE * scored.last().map_or(0.0, |(largest, _)| *largest);
            let last_in = count.checked_sub(1).map_or(0.0, |last| scored[last].0);
            // Surely gone, then what ties with the last that goes, which is ours to choose from, surely kept.
            let (sure, rest) = scored.split_at(scored.partition_point(|(score, _)| *score < last_in - slack));
            let (tied, kept) = rest.split_at(rest.partition_point(|(score, _)| *score <= last_in + slack));
            // A weight that was zero and stays is also zero in ours: those that had to go come first, in their order. One
            // that stays and is rounded to zero cannot be told from one that goes, nor need it be.
            let most = if grids.is_some() { tied.len() } else { count - sure.len() };
            let chosen: Vec<usize> = tied.iter().map(|(_, i)| *i).filter(|i| ours[*i] == 0.0).take(most).collect();
            if sure.len() + chosen.len() < count {
                return Err(format!("{} of {count} gone from column {columns:?}", sure.len() + chosen.len()));
            }
            if let Some((_, i)) = sure.iter().find(|(_, i)| ours[*i] != 0.0) {
                return Err(format!("weight {i} has a low score and was kept"));
            }
            let went = |i: usize| ours[i] == 0.0 && w[i] != 0.0 && grids.is_none();
            if let Some((_, i)) = kept.iter().find(|(_, i)| went(*i)) {
                return Err(format!("weight {i} has a high score and went"));
            }
            sure.iter().map(|(_, i)| *i).chain(chosen).for_each(|i| gone[i] = true);
            Ok(())
        };
        for k in 0..n {
            match method.amount().unwrap() {
                Amount::Share(share) if k % method.column_block == 0 => {
                    let columns = k..(k + method.column_block).min(n);
                    let count = mask::budget(share, rows * columns.len());
                    choose(&w, &mut gone, 0..rows, columns, count)?;
                }
                Amount::Pattern(pattern) if k % pattern.of() == 0 => {
                    for row in 0..rows {
                        choose(&w, &mut gone, row..row + 1, k..k + pattern.of(), pattern.drop())?;
                    }
                }
                _ => {}
            }
            for row in 0..rows {
                let i = row * n + k;
                let value = if gone[i] { 0.0 } else { rounded(w[i], i) };
                let error = (w[i] - value) / rows_of_inverse[k][k];
                for j in k + 1..n {
                    w[row * n + j] -= error * rows_of_inverse[k][j];
                }
                w[i] = value;
            }
        }
        Ok(w)
    }

    fn prune(method: &SparseGpt, weight: &[f32], h: &[f32], n: usize, keep_zeros: bool) -> (Vec<f32>, LinearReport) {
        let mut values = weight.to_vec();
        let stats = GroupStats { in_features: n, hessian: Some(h.to_vec()), tokens: 1, ..GroupStats::default() };
        let out_features = weight.len() / n;
        let mut group = [Weight { name: "model.w", out_features, in_features: n, values: &mut values, keep_zeros }];
        let done = method.compress(&mut group, &stats).unwrap().remove(0);
        assert_eq!(done.weight.dequantize(), values);
        (values, done.report)
    }

    /// `tr(Δ H Δᵀ)` in f64.
    fn lost(weight: &[f32], result: &[f64], h: &[f32], n: usize) -> f64 {
        let delta: Vec<f64> = weight.iter().zip(result).map(|(w, r)| f64::from(*w) - r).collect();
        let form = |row: &[f64]| -> f64 { (0..n * n).map(|i| row[i / n] * f64::from(h[i]) * row[i % n]).sum() };
        delta.chunks(n).map(form).sum()
    }

    fn amounts() -> impl Strategy<Value = (Option<f64>, Option<NOfM>, usize)> {
        let pattern = |keep, of| NOfM::new(keep, of).unwrap();
        prop_oneof![
            (0.0f64..0.9, 1usize..100).prop_map(|(share, n)| (Some(share), None, n)),
            (1usize..20).prop_map(move |groups| (None, Some(pattern(2, 4)), 4 * groups)),
            (1usize..20).prop_map(move |groups| (None, Some(pattern(1, 2)), 2 * groups)),
            (1usize..10).prop_map(move |groups| (None, Some(pattern(3, 8)), 8 * groups)),
            (1usize..20).prop_map(move |groups| (None, Some(pattern(2, 3)), 3 * groups)),
            (1usize..5).prop_map(move |groups| (None, Some(pattern(5, 20)), 20 * groups)),
        ]
    }

    /// Bits, which of the sizes that divide a row a group has, whether symmetric, and how its range is chosen.
    type GridChoice = Option<(u32, prop::sample::Index, bool, Search)>;

    fn grids() -> impl Strategy<Value = GridChoice> {
        let searches = prop::sample::select(vec![Search::None, Search::Mse]);
        let grid = (prop::sample::select(vec![2u32, 3, 4]), any::<prop::sample::Index>(), any::<bool>(), searches);
        prop_oneof![Just(None), grid.prop_map(Some)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn masks_and_weights_are_those_of_the_definition(
            (sparsity, pattern, n) in amounts(), grid in grids(), rows in 1usize..120, column_block in 1usize..70,
            keep_zeros in any::<bool>(), seed in 0u64..1000,
        ) {
            let mut method = SparseGpt { sparsity, pattern, column_block, ..SparseGpt::default() };
            if let Some((bits, which, symmetric, search)) = grid {
                let sizes: Vec<usize> = (1..=n).filter(|size| n.is_multiple_of(*size)).collect();
                (method.bits, method.group_size) = (Some(bits), Some(*which.get(&sizes)));
                (method.symmetric, method.search) = (Some(symmetric), Some(search));
            }
            let h = hessian(n, 2 * n + 3, seed);
            let mut weight = uniform(rows * n, seed + 7);
            weight.iter_mut().enumerate().filter(|(i, _)| i % 5 == 3).for_each(|(_, w)| *w = 0.0);
            let (ours, report) = prune(&method, &weight, &h, n, keep_zeros);
            let expected = by_definition(&method, &weight, &ours, &h, n, keep_zeros);
            prop_assert!(expected.is_ok(), "{:?}", expected);
            let expected = expected.unwrap();
            let largest = expected.iter().fold(0.0f64, |a, b| a.max(b.abs()));
            for (a, b) in ours.iter().zip(&expected) {
                let most = if grid.is_some() { SAME_CODES } else { MAX_DIFFERENCE };
                prop_assert!((f64::from(*a) - b).abs() <= most * largest, "{} for {}", a, b);
            }
            let wide: Vec<f64> = ours.iter().map(|&w| f64::from(w)).collect();
            let (ours_lost, expected_lost) = (lost(&weight, &wide, &h, n), lost(&weight, &expected, &h, n));
            prop_assert!(ours_lost <= 1.001 * expected_lost + 1e-9, "{} for {}", ours_lost, expected_lost);
            // What is reported is what was lost.
            if let Some(error) = report.output_error {
                let whole = lost(&weight, &vec![0.0; rows * n], &h, n);
                prop_assert!((error * whole - ours_lost).abs() <= 1e-3 * ours_lost + 1e-5 * whole);
            }
            if keep_zeros {
                prop_assert!(weight.iter().zip(&ours).all(|(w, ours)| *w != 0.0 || *ours == 0.0));
            }
        }
    }

    #[test]
    fn it_beats_pruning_without_feedback() {
        let (rows, n) = (96, 256);
        let (h, weight) = (hessian(n, 400, 11), uniform(96 * 256, 12));
        for (sparsity, pattern) in [(Some(0.5), None), (None, Some(NOfM::new(2, 4).unwrap()))] {
            let (_, report) = prune(&SparseGpt { sparsity, pattern, ..SparseGpt::default() }, &weight, &h, n, false);
            let mut plain = weight.clone();
            match pattern {
                Some(pattern) => mask::clear_groups(&mut plain, n, None, pattern),
                None => mask::clear_smallest(&mut plain, rows * n / 2),
            }
            let stats = GroupStats { in_features: n, hessian: Some(h.clone()), ..GroupStats::default() };
            let plain = stats.output_error(&weight, &plain).unwrap();
            let error = report.output_error.unwrap();
            assert!(error < 0.6 * plain, "{error} against {plain}");
        }
    }

    #[test]
    fn pruning_and_rounding_in_one_pass_beats_one_after_the_other_without_feedback() {
        let (rows, n) = (96, 256);
        let (h, weight) = (hessian(n, 400, 21), uniform(96 * 256, 22));
        let joint = SparseGpt { bits: Some(4), group_size: Some(64), ..SparseGpt::default() };
        assert_eq!((joint.kind(), joint.grid().is_some()), (Kind::Quantise, true));
        let (values, report) = prune(&joint, &weight, &h, n, false);
        assert!(values.iter().filter(|w| **w == 0.0).count() >= rows * n / 2);
        let pruned = prune(&SparseGpt::default(), &weight, &h, n, false);
        let spec = joint.spec().unwrap();
        let rounded = grid::round_to_nearest(&pruned.0, rows, n, &spec).unwrap().dequantize();
        let stats = GroupStats { in_features: n, hessian: Some(h.clone()), ..GroupStats::default() };
        let apart = stats.output_error(&weight, &rounded).unwrap();
        let error = report.output_error.unwrap();
        assert!(error < apart && error > pruned.1.output_error.unwrap(), "{error} against {apart}");
        let measured = stats.output_error(&weight, &values).unwrap();
        assert!((error / measured - 1.0).abs() < 1e-3, "{error} for {measured}");
        // Without anything pruned it is GPTQ from left to right.
        let joint = SparseGpt { sparsity: Some(0.0), ..joint };
        let gptq = super::super::gptq::Gptq { group_size: 64, activation_order: false, ..Default::default() };
        let prepared = gptq.prepare(&h, n).unwrap();
        let (expected, _) = gptq.solve(&mut weight.clone(), &prepared, false).unwrap();
        assert_eq!(joint.solve(&mut weight.clone(), &prepared, false).unwrap().0.unwrap().scales, expected.scales);
        let equal = |a: &[f32], b: &[f32]| a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64;
        assert!(equal(&prune(&joint, &weight, &h, n, false).0, &expected.dequantize()) > 0.999);
    }

    #[test]
    fn bytes_do_not_depend_on_the_number_of_threads() {
        let (rows, n) = (900, 96);
        let (h, weight) = (hessian(n, 300, 3), uniform(900 * 96, 4));
        for pattern in [None, Some(NOfM::new(2, 4).unwrap()), Some(NOfM::new(3, 6).unwrap())] {
            let method = SparseGpt { pattern, ..SparseGpt::default() };
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| prune(&method, &weight[..rows * n], &h, n, false).0)
            };
            let one = with(1);
            assert_eq!(one, with(2));
            assert_eq!(one, with(3));
        }
    }

    #[test]
    fn difficult_hessians_finish_finite_with_the_exact_count_and_a_report() {
        let (rows, n) = (10, 96);
        let weight = uniform(rows * n, 2);
        let zeros = |values: &[f32]| values.iter().filter(|w| **w == 0.0).count();
        let deficient = hessian(n, 20, 3);
        let undamped = SparseGpt { dampening: 0.0, ..SparseGpt::default() };
        let (values, report) = prune(&undamped, &weight, &deficient, n, false);
        assert!(!report.escalations.is_empty() && values.iter().all(|w| w.is_finite()));
        assert_eq!(zeros(&values), rows * n / 2);
        let (values, report) = prune(&SparseGpt::default(), &weight, &vec![0.0; n * n], n, false);
        assert!(report.escalations[0].reason.contains("every calibration input was zero"));
        let mut smallest = weight.clone();
        mask::clear_smallest(&mut smallest, rows * n / 2); // one block holds all columns
        assert_eq!(values, smallest);
    }
}
