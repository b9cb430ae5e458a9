//! Eight-bit floats: every weight becomes the nearest number of FP8 `e4m3fn` under a shared scale. Needs no data.
//!
//! `scale = max |w| / 448`, rounded to its stored type, over the tensor, the row or a block of 128 × 128; then
//! `q = e4m3(w / scale)`, ties to even, clipped to ±448 (Micikevicius et al. 2022, section 3.2.1; blocks as in DeepSeek-V3,
//! section 3.3).

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Compressed, Described, GroupStats, LayerMethod, Needs, Weight};
use crate::Result;
use crate::grid::ScaleDtype;
use crate::weight::{
    Code,
    float8::{self, Float8Code, Float8Scales},
};

/// Eight-bit floats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fp8 {
    /// The weights that share a scale.
    pub scales: Scales,
    /// What scales are stored as.
    pub scale_dtype: ScaleDtype,
}

/// Which weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scales {
    /// All of them.
    Tensor,
    /// Those of a row.
    Channel,
    /// Blocks of 128 × 128.
    Block,
}

impl Default for Fp8 {
    fn default() -> Self {
        Self { scales: Scales::Channel, scale_dtype: ScaleDtype::F16 }
    }
}

impl Described for Fp8 {
    const NAME: &'static str = "fp8";
    const SUMMARY: &'static str =
        "rounds every weight to an eight-bit float (e4m3) with a scale a tensor, row or block; needs no data";
    const PAPER: &'static str =
        "Micikevicius et al. 2022, FP8 Formats for Deep Learning, https://arxiv.org/abs/2209.05433";
}

impl LayerMethod for Fp8 {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn code(&self, _: usize) -> Result<Code> {
        Ok(Code::Float8(Float8Code { scales: self.layout() }))
    }

    fn compress(&self, group: &mut [Weight<'_>], stats: &GroupStats) -> Result<Vec<Compressed>> {
        let one = |weight: &mut Weight<'_>| {
            let start = Instant::now();
            super::check(weight, stats)?;
            let shape = (weight.out_features, weight.in_features);
            let quantised = float8::quantize(weight.values, shape, self.layout(), self.scale_dtype)
                .map_err(|cause| super::in_linear(weight.name, cause))?;
            Ok(super::finish(weight, quantised.into(), Self::NAME, stats, start))
        };
        group.iter_mut().map(one).collect()
    }
}

impl Fp8 {
    fn layout(&self) -> Float8Scales {
        match self.scales {
            Scales::Tensor => Float8Scales::Tensor,
            Scales::Channel => Float8Scales::Channel,
            Scales::Block => Float8Scales::Block(float8::BLOCK),
        }
    }
}
