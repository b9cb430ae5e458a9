//! GPTQ: quantises the columns of a weight in turn, letting later columns make up for the errors of earlier ones.
//!
//! For `y = x Wᵀ` with `W` (out, in), calibration inputs `x` and `H = 2/N Σ x xᵀ`, it lowers `tr(Δ H Δᵀ)` (Frantar et al.
//! 2023, eq. 1 and 3) by the greedy sequence of `feedback.rs`, which gives the same codes as the paper's
//! inverse-Hessian form (Chee et al. 2023, theorem 6) for a quarter of the factorisation and no inverse.
//!
//! The Hessian is dampened, and dead inputs are dealt with, as `prepared.rs` says.
//!
//! *Static* groups take their scales from the original weight, so columns may be processed in any order: with activation
//! order (descending diag H) and no group index to store. *Fresh* groups take them from the weights as they stand when the
//! group is reached; with activation order their results carry a group index.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::feedback::{self, Problem};
use super::prepared::{Prepared, check_dampening};
use super::{Compressed, Described, Escalation, GroupStats, LayerMethod, LinearReport, Needs, Weight};
use crate::grid::{self, GridSpec, Quantised, ScaleDtype, Search};
use crate::kernel::gemm::quadratic_form;
use crate::kernel::tile::{PANEL_TILES, TILE};
use crate::{Error, Result};

/// When the scales of a group are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Groups {
    /// Before anything is quantised, from the original weight.
    #[default]
    Static,
    /// When the group is reached, from the weights as they then stand.
    Fresh,
}

/// GPTQ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gptq {
    /// 2, 3, 4 or 8.
    pub bits: u32,
    /// Input columns that share a scale; 0 for one scale a row.
    pub group_size: usize,
    /// Fixed zero points in the middle of the codes.
    pub symmetric: bool,
    /// What scales are stored as.
    pub scale_dtype: ScaleDtype,
    /// How the range of a group is chosen.
    pub search: Search,
    /// Added to diag(H), as a fraction of its mean.
    pub dampening: f64,
    /// When the scales of a group are chosen.
    pub groups: Groups,
    /// Whether columns are processed by descending diag(H) instead of from left to right.
    pub activation_order: bool,
    /// α of asymmetric calibration: 0 is plain GPTQ, 1 makes up for all that the inputs have lost. Linears of routed
    /// experts, whose dense inputs are not gathered, are plain GPTQ at any α, and their records say so.
    pub asymmetric_calibration: f64,
    /// Columns quantised before the others are brought up to date; changes nothing but speed and rounding.
    pub column_block: usize,
}

impl Default for Gptq {
    fn default() -> Self {
        Self {
            bits: 4,
            group_size: 128,
            symmetric: true,
            scale_dtype: ScaleDtype::F16,
            search: Search::Mse,
            dampening: 0.01,
            groups: Groups::Static,
            activation_order: true,
            asymmetric_calibration: 0.0,
            column_block: PANEL_TILES * TILE,
        }
    }
}

impl Described for Gptq {
    const NAME: &'static str = "gptq";
    const SUMMARY: &'static str =
        "rounds column by column, letting later columns make up for the errors of earlier ones";
    const PAPER: &'static str = "Frantar et al. 2023, GPTQ, https://arxiv.org/abs/2210.17323";

    fn validate(&self) -> Result<()> {
        self.spec().group_size_for(self.group_size)?;
        check_dampening(self.dampening)?;
        if !(0.0..=1.0).contains(&self.asymmetric_calibration) {
            return Err(Error::Recipe(format!(
                "the asymmetric calibration is {}, expected a number from 0 to 1",
                self.asymmetric_calibration
            )));
        }
        if self.column_block == 0 {
            return Err(Error::Recipe("the column block is 0, expected at least 1".to_owned()));
        }
        Ok(())
    }
}

impl LayerMethod for Gptq {
    fn needs(&self) -> Needs {
        Needs { hessian: true, cross: self.asymmetric_calibration > 0.0, ..Needs::default() }
    }

    fn grid(&self) -> Option<GridSpec> {
        Some(self.spec())
    }

    fn stores_g_idx(&self) -> bool {
        self.groups == Groups::Fresh && self.activation_order
    }

    fn compress(&self, group: &mut [Weight<'_>], stats: &GroupStats) -> Result<Vec<Compressed>> {
        let Some(first) = group.first() else { return Ok(Vec::new()) };
        let hessian = stats.hessian.as_ref().ok_or_else(|| {
            Error::Model(format!("linear `{}`: GPTQ needs a Hessian, and none was observed", first.name))
        })?;
        for weight in group.iter() {
            super::check(weight, stats)?;
            self.spec().group_size_for(weight.in_features).map_err(|cause| super::in_linear(weight.name, cause))?;
        }
        let start = Instant::now();
        let prepared = self.prepare(hessian, stats.in_features).map_err(|cause| super::in_linear(first.name, cause))?;
        let shared_seconds = start.elapsed().as_secs_f64() / group.len() as f64;
        group
            .iter_mut()
            .map(|weight| {
                let start = Instant::now();
                let energy = quadratic_form(weight.values, hessian, weight.in_features);
                let original = stats.cross.as_ref().filter(|_| self.asymmetric_calibration > 0.0).map(|cross| {
                    let original = weight.values.to_vec();
                    prepared.aim_at_dense(weight, cross, self.asymmetric_calibration as f32);
                    original
                });
                let (quantised, mut error) = self
                    .solve(weight.values, &prepared, weight.keep_zeros)
                    .map_err(|cause| super::in_linear(weight.name, cause))?;
                let mut escalations = prepared.escalations.clone();
                if self.asymmetric_calibration > 0.0 && original.is_none() {
                    escalations.push(Escalation {
                        dampening: prepared.dampening,
                        reason: "what the dense model's experts read is not known, since its tokens may go to others, so \
                                 this is plain GPTQ, without asymmetric calibration"
                            .into(),
                    });
                }
                let mut quantised = quantised;
                if original.is_none()
                    && let Some((rounded, lost)) = self.better_rounded(weight.values, hessian, error)?
                {
                    escalations.push(Escalation {
                        dampening: prepared.dampening,
                        reason: format!(
                            "error feedback would have lost {error:.3e}, more than the {lost:.3e} of rounding to nearest, \
                             so the weights were rounded"
                        ),
                    });
                    (quantised, error) = (rounded, lost);
                }
                super::rtn::leave_dequantised(&quantised, weight.values);
                if let Some(mut delta) = original {
                    delta.iter_mut().zip(&*weight.values).for_each(|(w, q)| *w -= q);
                    error = quadratic_form(&delta, hessian, weight.in_features);
                }
                let report = LinearReport {
                    output_error: super::share(error, energy),
                    dampening: Some(prepared.dampening),
                    escalations,
                    dead_inputs: prepared.dead.len(),
                    seconds: start.elapsed().as_secs_f64() + shared_seconds,
                    ..LinearReport::new(weight.name, Self::NAME)
                };
                Ok(Compressed { weight: quantised.into(), report })
            })
            .collect()
    }
}

impl Gptq {
    fn spec(&self) -> GridSpec {
        GridSpec {
            bits: self.bits,
            group_size: self.group_size,
            symmetric: self.symmetric,
            scale_dtype: self.scale_dtype,
            search: self.search,
        }
    }

    /// The weight rounded to nearest and its `tr(Δ H Δᵀ)`, if that is less than the `error` of feedback: sums of errors
    /// can drive later columns out of their grids, as on Hessians that are nearly singular.
    fn better_rounded(&self, weight: &[f32], hessian: &[f32], error: f64) -> Result<Option<(Quantised, f64)>> {
        if self.stores_g_idx() {
            return Ok(None); // rounding has no groups out of order
        }
        let n = (hessian.len() as f64).sqrt() as usize;
        let rounded = grid::round_to_nearest(weight, weight.len() / n, n, &self.spec())?;
        let mut delta = rounded.dequantize();
        delta.iter_mut().zip(weight).for_each(|(q, w)| *q -= w);
        let lost = quadratic_form(&delta, hessian, n);
        Ok((lost < error).then_some((rounded, lost)))
    }

    /// Orders, dampens and factors `hessian` (n, n).
    ///
    /// Refuses what [`Prepared::new`] does.
    pub fn prepare(&self, hessian: &[f32], n: usize) -> Result<Prepared> {
        Prepared::new(hessian, n, self.dampening, self.activation_order)
    }

    /// Quantises `weight` (rows, n), whose dead columns are set to zero; gives the codes and `tr(Δ H Δᵀ)`. With
    /// `keep_zeros` weights that are zero stay zero, and others make up for them.
    pub fn solve(&self, weight: &mut [f32], prepared: &Prepared, keep_zeros: bool) -> Result<(Quantised, f64)> {
        self.solve_on(weight, prepared, keep_zeros, None)
    }

    /// The same on `fitted` scales and zero points, (rows, groups) each, where they are given: static groups.
    pub(super) fn solve_on(
        &self,
        weight: &mut [f32],
        prepared: &Prepared,
        keep_zeros: bool,
        fitted: Option<(Vec<f32>, Vec<u8>)>,
    ) -> Result<(Quantised, f64)> {
        let n = prepared.order.len();
        let spec = self.spec();
        let group_size = spec.group_size_for(n)?;
        prepared.clear_dead(weight);
        let fitted = match self.groups {
            _ if fitted.is_some() => fitted,
            Groups::Static => Some(grid::fit_rows(weight, n, &spec)?),
            Groups::Fresh => None,
        };
        let groups = match &fitted {
            Some((scales, zeros)) => feedback::Groups::Static { scales, zeros },
            None => feedback::Groups::Fresh,
        };
        let grid = feedback::Grid { spec: &spec, group_size, groups };
        let mut problem = Problem::new(prepared, Some(grid), self.column_block);
        problem.keep_zeros = keep_zeros;
        let solved = feedback::solve(weight, &problem)?;
        let g_idx = self.stores_g_idx().then(|| {
            let mut g_idx = vec![0; n];
            for (position, &column) in prepared.order.iter().enumerate() {
                g_idx[column as usize] = (position / group_size) as u32;
            }
            g_idx
        });
        let (scales, zeros) = fitted.unwrap_or((solved.scales, solved.zeros));
        let quantised = Quantised {
            out_features: weight.len() / n,
            in_features: n,
            bits: self.bits,
            group_size,
            symmetric: self.symmetric,
            scale_dtype: self.scale_dtype,
            codes: solved.codes,
            scales,
            zeros,
            g_idx,
        };
        Ok((quantised, solved.error))
    }
}

#[cfg(test)]
mod tests;
