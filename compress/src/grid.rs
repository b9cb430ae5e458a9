//! Number grids: which values a weight may take, and the codes that name them.
//!
//! For one row and one group of input columns, `ŵ = scale · (q − zero)` with `q` in `0..2^bits`
//! (Frantar et al. 2023, "GPTQ", section 2; the IST-DASLab quantiser, with its one-sided symmetric range mended).

use serde::{Deserialize, Serialize};

/// The type scales are stored in; they are rounded to it before codes are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ScaleDtype {
    F16,
    Bf16,
    F32,
}

impl ScaleDtype {
    /// `value` rounded to this type (nearest, ties to even).
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F16 => half::f16::from_f32(value).to_f32(),
            Self::Bf16 => half::bf16::from_f32(value).to_f32(),
            Self::F32 => value,
        }
    }

    /// Bits of one stored scale.
    pub const fn bits(self) -> u32 {
        match self {
            Self::F16 | Self::Bf16 => 16,
            Self::F32 => 32,
        }
    }
}

/// A linear weight as codes on a grid.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    /// Rows of the weight.
    pub out_features: usize,
    /// Columns of the weight.
    pub in_features: usize,
    /// 2, 3, 4 or 8.
    pub bits: u32,
    /// Input columns that share a scale; `in_features` for one scale a row. Divides `in_features`.
    pub group_size: usize,
    /// All zero points are `2^(bits − 1)`.
    pub symmetric: bool,
    /// What `scales` are rounded to.
    pub scale_dtype: ScaleDtype,
    /// Codes, (out_features, in_features), unpacked, in the checkpoint's column order.
    pub codes: Vec<u8>,
    /// Scales, (out_features, groups); finite and > 0.
    pub scales: Vec<f32>,
    /// Zero points, (out_features, groups).
    pub zeros: Vec<u8>,
    /// The group of each column where groups are not contiguous (activation order with fresh groups).
    pub g_idx: Option<Vec<u32>>,
}

impl Quantised {
    /// Groups in a row.
    pub fn groups(&self) -> usize {
        self.in_features / self.group_size
    }

    /// The group column `column` belongs to.
    pub fn group_of(&self, column: usize) -> usize {
        match &self.g_idx {
            Some(g_idx) => g_idx[column] as usize,
            None => column / self.group_size,
        }
    }

    /// Row `row` of the dequantised weight, `scale · (q − zero)` in f32, into `out` (in_features).
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let groups = self.groups();
        let codes = &self.codes[row * self.in_features..][..self.in_features];
        for (column, (value, &code)) in out.iter_mut().zip(codes).enumerate() {
            let group = row * groups + self.group_of(column);
            *value = self.scales[group] * (i32::from(code) - i32::from(self.zeros[group])) as f32;
        }
    }

    /// The dequantised weight, (out_features, in_features).
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.out_features * self.in_features];
        for (row, values) in out.chunks_exact_mut(self.in_features).enumerate() {
            self.dequantize_row(row, values);
        }
        out
    }
}
