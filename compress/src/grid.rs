//! Number grids: which values a weight may take, and the codes that name them.
//!
//! For one row and one group of input columns, `ŵ = scale · (q − zero)` with `q` in `0..2^bits`
//! (Frantar et al. 2023, "GPTQ", section 2; the IST-DASLab quantiser, with its one-sided symmetric range mended).

mod fit;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub(crate) use self::fit::extremes;
pub use self::fit::{fit_group, fit_rows};
use crate::{Error, Result};

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
        let mut value = [value];
        self.round_all(&mut value);
        value[0]
    }

    /// Every value rounded to this type.
    pub fn round_slice(self, values: &mut [f32]) {
        self.round_all(values);
    }

    /// Rounds every value to this type, in plain arithmetic that compiles to vector code.
    #[inline(always)]
    fn round_all(self, values: &mut [f32]) {
        /// Drops the lowest `BITS` bits, to the nearest, ties to even; infinity and NaN stay what they are.
        #[inline(always)]
        fn shorten<const BITS: u32>(value: f32) -> f32 {
            let word = value.to_bits();
            let half = (1 << (BITS - 1)) - 1 + ((word >> BITS) & 1);
            let short = f32::from_bits(word.wrapping_add(half) & !((1 << BITS) - 1));
            if value.abs() < f32::INFINITY { short } else { value }
        }
        match self {
            Self::F16 => {
                for value in values {
                    let short = shorten::<13>(*value);
                    let short = if short.abs() > 65504.0 { f32::INFINITY.copysign(*value) } else { short };
                    // Below 2⁻¹⁴ an f16 is a multiple of 2⁻²⁴, which is the last place of numbers about one half.
                    let subnormal = ((value.abs() + 0.5) - 0.5).copysign(*value);
                    *value = if value.abs() < 6.103_515_6e-5 { subnormal } else { short };
                }
            }
            Self::Bf16 => values.iter_mut().for_each(|value| *value = shorten::<16>(*value)),
            Self::F32 => {}
        }
    }

    /// The smallest positive value of this type: what a scale that would round to zero becomes.
    pub const fn smallest(self) -> f32 {
        match self {
            Self::F16 => 5.960_464_5e-8,               // 2⁻²⁴
            Self::Bf16 => f32::from_bits(0x0001_0000), // 2⁻¹³³
            Self::F32 => f32::from_bits(1),            // 2⁻¹⁴⁹
        }
    }

    /// The name in safetensors headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F32 => "F32",
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
        let (scales, zeros) = (&self.scales[row * groups..][..groups], &self.zeros[row * groups..][..groups]);
        match &self.g_idx {
            None => {
                let group_size = self.group_size.max(1);
                let of_groups = out.chunks_mut(group_size).zip(codes.chunks(group_size));
                for ((out, codes), (&scale, &zero)) in of_groups.zip(scales.iter().zip(zeros)) {
                    dequantize_group(codes, scale, zero, out);
                }
            }
            Some(g_idx) => {
                for ((value, &code), &group) in out.iter_mut().zip(codes).zip(g_idx) {
                    let group = group as usize;
                    *value = scales[group] * (i32::from(code) - i32::from(zeros[group])) as f32;
                }
            }
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

/// How the range of a group is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Search {
    /// The smallest and the largest value: nothing is clipped.
    None,
    /// Of the shrunken ranges `p · (lo, hi)`, `p = 1 − i/100` for `i < 80`, the first with the least `Σ |ŵ − w|^2.4`
    /// (the IST-DASLab quantiser's `mse` option).
    #[default]
    Mse,
}

/// A uniform grid to be fitted to the groups of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GridSpec {
    /// 2, 3, 4 or 8.
    pub bits: u32,
    /// Input columns that share a scale; 0 for one scale a row.
    pub group_size: usize,
    /// Every zero point is `2^(bits − 1)` and the range reaches as far down as up.
    pub symmetric: bool,
    /// What scales are rounded to before codes are chosen.
    pub scale_dtype: ScaleDtype,
    /// How the range of a group is chosen.
    pub search: Search,
}

impl GridSpec {
    /// The largest code, `2^bits − 1`.
    pub const fn max_code(&self) -> u8 {
        ((1u32 << self.bits) - 1) as u8
    }

    /// The zero point of a symmetric grid.
    pub const fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }

    /// The group size on rows of `in_features`: [`Self::group_size`], or the row where that is 0.
    ///
    /// Refuses widths other than 2, 3, 4 and 8 bits and groups that do not divide the row, naming those that would.
    pub fn group_size_for(&self, in_features: usize) -> Result<usize> {
        if !crate::pack::WIDTHS.contains(&self.bits) {
            return Err(Error::Recipe(format!("{} bits are not on offer, only 2, 3, 4 and 8", self.bits)));
        }
        match self.group_size {
            0 => Ok(in_features),
            size if in_features.is_multiple_of(size) => Ok(size),
            size => {
                let fitting: Vec<String> = (16..=in_features.min(512))
                    .filter(|size| size.is_multiple_of(16) && in_features.is_multiple_of(*size))
                    .map(|size| size.to_string())
                    .collect();
                let fitting = if fitting.is_empty() { String::new() } else { format!("{} or ", fitting.join(", ")) };
                Err(Error::Recipe(format!(
                    "{in_features} input features do not divide into groups of {size}; {fitting}0 (one group a row) would"
                )))
            }
        }
    }

    /// Bits a weight of this shape takes on disk: codes, scales, zero points and, if stored, a 32-bit group index a column.
    pub fn storage_bits(&self, out_features: usize, in_features: usize, g_idx: bool) -> u64 {
        let groups = match self.group_size {
            0 => 1,
            size => in_features.div_ceil(size),
        };
        let codes = out_features as u64 * in_features as u64 * u64::from(self.bits);
        let each = u64::from(self.scale_dtype.bits()) + if self.symmetric { 0 } else { u64::from(self.bits) };
        codes + out_features as u64 * groups as u64 * each + if g_idx { 32 * in_features as u64 } else { 0 }
    }
}

/// The code of `value`: `clamp(round(value / scale) + zero, 0, max)`, halves to even, still as a float.
#[inline(always)]
pub fn code(value: f32, scale: f32, zero: f32, max: f32) -> f32 {
    ((value / scale).round_ties_even() + zero).clamp(0.0, max)
}

crate::kernel::dispatch! {
    /// What the `codes` of one group stand for, `scale · (q − zero)`, into `out` of the same length.
    pub fn dequantize_group(codes: &[u8], scale: f32, zero: u8, out: &mut [f32]) = dequantize_group_body
}

#[inline(always)]
fn dequantize_group_body(codes: &[u8], scale: f32, zero: u8, out: &mut [f32]) {
    for (value, &code) in out.iter_mut().zip(codes) {
        *value = scale * (i32::from(code) - i32::from(zero)) as f32;
    }
}

/// The codes of one group of finite `values` into `codes`.
///
/// # Panics
/// If the lengths differ.
pub fn quantize_group(values: &[f32], scale: f32, zero: u8, max: u8, codes: &mut [u8]) {
    assert_eq!(values.len(), codes.len(), "as many codes as values");
    quantize_values(values, scale, f32::from(zero), f32::from(max), codes);
}

crate::kernel::dispatch! {
    fn quantize_values(values: &[f32], scale: f32, zero: f32, max: f32, codes: &mut [u8]) = quantize_values_body
}

#[inline(always)]
fn quantize_values_body(values: &[f32], scale: f32, zero: f32, max: f32, codes: &mut [u8]) {
    for (&value, stored) in values.iter().zip(codes) {
        *stored = code(value, scale, zero, max) as i32 as u8;
    }
}

/// Quantises every value of `weight` (out_features, in_features) to the nearest point of its group's grid.
///
/// Refuses values that are not finite and scales the type cannot hold, naming the row and group.
pub fn round_to_nearest(weight: &[f32], out_features: usize, in_features: usize, spec: &GridSpec) -> Result<Quantised> {
    let group_size = spec.group_size_for(in_features)?;
    let (scales, zeros) = fit_rows(weight, in_features, spec)?;
    let groups = in_features / group_size.max(1);
    let mut codes = vec![0; weight.len()];
    if !codes.is_empty() {
        codes.par_chunks_mut(in_features).zip(weight.par_chunks(in_features)).enumerate().for_each(
            |(row, (codes, values))| {
                let codes = codes.chunks_exact_mut(group_size);
                for (group, (codes, values)) in codes.zip(values.chunks_exact(group_size)).enumerate() {
                    let at = row * groups + group;
                    quantize_group(values, scales[at], zeros[at], spec.max_code(), codes);
                }
            },
        );
    }
    Ok(Quantised {
        out_features,
        in_features,
        bits: spec.bits,
        group_size,
        symmetric: spec.symmetric,
        scale_dtype: spec.scale_dtype,
        codes,
        scales,
        zeros,
        g_idx: None,
    })
}

#[cfg(test)]
mod tests;
