//! Round to nearest: every weight becomes the closest point of its group's grid. Needs no data.
//!
//! For each row and group of `group_size` columns: `q = clamp(round(w / scale) + zero, 0, 2^bits − 1)` with the grid of
//! [`crate::grid::fit_group`].

use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Compressed, Described, GroupStats, LayerMethod, LinearReport, Needs, Weight};
use crate::Result;
use crate::grid::{self, GridSpec, ScaleDtype, Search};
use crate::kernel::gemm::quadratic_form;

/// Round to nearest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rtn {
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
}

impl Default for Rtn {
    fn default() -> Self {
        Self { bits: 4, group_size: 128, symmetric: true, scale_dtype: ScaleDtype::F16, search: Search::None }
    }
}

impl Described for Rtn {
    const NAME: &'static str = "rtn";
    const SUMMARY: &'static str = "rounds every weight to the nearest point of its group's grid; needs no data";
    const PAPER: &'static str = "the uniform quantiser of Frantar et al. 2023, GPTQ, https://arxiv.org/abs/2210.17323";

    fn validate(&self) -> Result<()> {
        self.spec().group_size_for(self.group_size).map(|_| ())
    }
}

impl LayerMethod for Rtn {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn grid(&self) -> Option<GridSpec> {
        Some(self.spec())
    }

    fn compress(&self, group: &mut [Weight<'_>], stats: &GroupStats) -> Result<Vec<Compressed>> {
        group.iter_mut().map(|weight| self.compress_one(weight, stats)).collect()
    }
}

impl Rtn {
    fn spec(&self) -> GridSpec {
        GridSpec {
            bits: self.bits,
            group_size: self.group_size,
            symmetric: self.symmetric,
            scale_dtype: self.scale_dtype,
            search: self.search,
        }
    }

    fn compress_one(&self, weight: &mut Weight<'_>, stats: &GroupStats) -> Result<Compressed> {
        let start = Instant::now();
        super::check(weight, stats)?;
        let (rows, n) = (weight.out_features, weight.in_features);
        let quantised = grid::round_to_nearest(weight.values, rows, n, &self.spec())
            .map_err(|cause| super::in_linear(weight.name, cause))?;
        let mut energy = None;
        if let Some(hessian) = &stats.hessian {
            let whole = quadratic_form(weight.values, hessian, n);
            let mut delta = quantised.dequantize();
            delta.iter_mut().zip(&*weight.values).for_each(|(q, w)| *q -= w);
            energy = Some((quadratic_form(&delta, hessian, n), whole));
        }
        leave_dequantised(&quantised, weight.values);
        let report = LinearReport {
            output_error: energy.and_then(|(lost, whole)| super::share(lost, whole)),
            seconds: start.elapsed().as_secs_f64(),
            ..LinearReport::new(weight.name, Self::NAME)
        };
        Ok(Compressed { weight: quantised.into(), report })
    }
}

/// Writes the dequantised weight over the original.
pub(super) fn leave_dequantised(quantised: &grid::Quantised, values: &mut [f32]) {
    if quantised.in_features > 0 {
        values
            .par_chunks_mut(quantised.in_features)
            .enumerate()
            .for_each(|(row, values)| quantised.dequantize_row(row, values));
    }
}
