//! Number grids: which values a weight may take, and the codes that name them.
//!
//! For one row and one group of input columns, `ŵ = scale · (q − zero)` with `q` in `0..2^bits`
//! (Frantar et al. 2023, "GPTQ", section 2; the IST-DASLab quantiser, with its one-sided symmetric range mended).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

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

/// Shrunken ranges [`Search::Mse`] tries.
const SEARCH_STEPS: usize = 80;

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

/// The scale and the zero point of one group.
///
/// With `lo = min(min x, 0)`, `hi = max(max x, 0)` (−1 and 1 if both are 0; `±max(|lo|, hi)` if symmetric):
/// `scale = (hi − lo) / (2^bits − 1)` rounded to the stored type, `zero = 2^(bits − 1)` if symmetric and else
/// `round(−lo / scale)`, within the codes. The original quantiser mirrors `lo` only if some value is negative, and so wastes
/// half the codes on a group without negatives; here it always does.
///
/// A scale that would round to zero becomes the smallest the type holds; one beyond the type is refused, and so are values
/// that are not finite.
pub fn fit_group(values: &[f32], spec: &GridSpec) -> Result<(f32, u8)> {
    let (lo, hi, finite) = extremes(values);
    if !finite {
        let at = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
        return Err(Error::Numeric(format!("the value {} at place {at} of a group is not finite", values[at])));
    }
    let range = Range::new(lo, hi, spec.symmetric);
    let (scale, zero) = range.grid(spec);
    if scale.is_infinite() {
        return Err(Error::Numeric(format!(
            "values from {lo:e} to {hi:e} need a scale beyond the range of {}",
            spec.scale_dtype.name()
        )));
    }
    let (scale, zero) = match spec.search {
        Search::Mse if lo != 0.0 || hi != 0.0 => least_loss(values, [lo, hi], range, spec),
        _ => (scale, zero),
    };
    Ok((scale, zero as u8))
}

/// What a grid spans.
#[derive(Clone, Copy)]
struct Range {
    lo: f32,
    hi: f32,
}

impl Range {
    fn new(lo: f32, hi: f32, symmetric: bool) -> Self {
        let (lo, hi) = (lo.min(0.0), hi.max(0.0));
        let (lo, hi) = if lo == 0.0 && hi == 0.0 { (-1.0, 1.0) } else { (lo, hi) };
        if symmetric {
            let reach = hi.max(-lo);
            return Self { lo: -reach, hi: reach };
        }
        Self { lo, hi }
    }

    /// The scale, infinite if its type cannot hold it, and the zero point.
    fn grid(self, spec: &GridSpec) -> (f32, f32) {
        let max = f32::from(spec.max_code());
        let rounded = spec.scale_dtype.round((self.hi - self.lo) / max);
        let scale = if rounded == 0.0 { spec.scale_dtype.smallest() } else { rounded };
        if spec.symmetric {
            return (scale, f32::from(spec.middle()));
        }
        (scale, (-self.lo / scale).round_ties_even().clamp(0.0, max))
    }
}

crate::kernel::dispatch! {
    /// The grid of the first shrunken range with the least loss; `extremes` are the smallest and the largest value.
    fn least_loss(values: &[f32], extremes: [f32; 2], range: Range, spec: &GridSpec) -> (f32, f32) = least_loss_body
}

#[inline(always)]
fn least_loss_body(values: &[f32], extremes: [f32; 2], range: Range, spec: &GridSpec) -> (f32, f32) {
    /// Keeps rounding from making the bound exceed the sum it bounds.
    const SLACK: f32 = 0.999;
    let max = f32::from(spec.max_code());
    // All ranges at once, in loops that compile to vector code.
    let mut scales: [f32; SEARCH_STEPS] = std::array::from_fn(|i| 1.0 - i as f32 / 100.0);
    let mut zeros = [f32::from(spec.middle()); SEARCH_STEPS];
    let lows = scales.map(|p| range.lo * p);
    for i in 0..SEARCH_STEPS {
        scales[i] = (range.hi * scales[i] - lows[i]) / max;
    }
    spec.scale_dtype.round_all(&mut scales);
    for scale in &mut scales {
        *scale = if *scale == 0.0 { spec.scale_dtype.smallest() } else { *scale };
    }
    if !spec.symmetric {
        for i in 0..SEARCH_STEPS {
            zeros[i] = (-lows[i] / scales[i]).round_ties_even().max(0.0).min(max);
        }
    }
    // Losses are summed in units of each scale, so that no magnitude of weights under- or overflows, and compared in units
    // of the first. What a range costs the extremes alone rules out most ranges.
    let (scale, zero) = (scales[0], zeros[0]);
    let (mut units, mut bounds) = ([0.0; SEARCH_STEPS], [0.0; SEARCH_STEPS]);
    for i in 0..SEARCH_STEPS {
        units[i] = power_2_4::<3>(scales[i] / scale);
        let lo = extremes[0] / scales[i];
        let lo = power_2_4::<2>(lo - lo.round_ties_even().max(-zeros[i]).min(max - zeros[i]));
        let hi = extremes[1] / scales[i];
        let hi = power_2_4::<2>(hi - hi.round_ties_even().max(-zeros[i]).min(max - zeros[i]));
        bounds[i] = if lo > hi { lo } else { hi } * units[i] * SLACK;
    }
    let mut best = (scale, zero);
    let mut least = clipped_loss(values, scale, zero, max, f32::INFINITY);
    for i in 1..SEARCH_STEPS {
        if bounds[i] < least {
            let loss = clipped_loss(values, scales[i], zeros[i], max, least / units[i]) * units[i];
            if loss < least {
                (least, best) = (loss, (scales[i], zeros[i]));
            }
        }
    }
    best
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

crate::kernel::dispatch! {
    /// The smallest and the largest value (of none: 0 and 0), and whether all are finite.
    pub(crate) fn extremes(values: &[f32]) -> (f32, f32, bool) = extremes_body
}

#[inline(always)]
fn extremes_body(values: &[f32]) -> (f32, f32, bool) {
    let Some(&first) = values.first() else { return (0.0, 0.0, true) };
    let (mut lo, mut hi, mut sick) = ([first; LANES], [first; LANES], [0u32; LANES]);
    let mut chunks = values.chunks_exact(LANES);
    let mut take = |chunk: &[f32]| {
        for (lane, &value) in chunk.iter().enumerate() {
            lo[lane] = if value < lo[lane] { value } else { lo[lane] };
            hi[lane] = if value > hi[lane] { value } else { hi[lane] };
            sick[lane] |= u32::from(value.to_bits() & 0x7F80_0000 == 0x7F80_0000);
        }
    };
    chunks.by_ref().for_each(&mut take);
    take(chunks.remainder());
    let finite = sick.iter().all(|&sick| sick == 0);
    (lo.into_iter().fold(first, f32::min), hi.into_iter().fold(first, f32::max), finite)
}

/// Partial sums of a loss.
const LANES: usize = 16;

/// `Σ |x/scale − (q − zero)|^2.4`, or a partial sum that already exceeds `limit`.
#[inline(always)]
fn clipped_loss(values: &[f32], scale: f32, zero: f32, max: f32, limit: f32) -> f32 {
    /// Values between two looks at the limit.
    const STRIDE: usize = 4 * LANES;
    let inverse = 1.0 / scale;
    // The reciprocal of a subnormal scale may be infinite: then divide.
    let by_division = inverse.is_infinite();
    let (least, most) = (-zero, max - zero);
    let mut sums = [0.0f32; LANES];
    let term = |value: f32| {
        let x = if by_division { value / scale } else { value * inverse };
        power_2_4::<2>(x - x.round_ties_even().max(least).min(most))
    };
    let mut total = 0.0;
    for stride in values.chunks(STRIDE) {
        let mut chunks = stride.chunks_exact(LANES);
        for chunk in chunks.by_ref() {
            for lane in 0..LANES {
                sums[lane] += term(chunk[lane]);
            }
        }
        for (lane, &value) in chunks.remainder().iter().enumerate() {
            sums[lane] += term(value);
        }
        let eight: [f32; 8] = std::array::from_fn(|lane| sums[lane] + sums[lane + 8]);
        let four: [f32; 4] = std::array::from_fn(|lane| eight[lane] + eight[lane + 4]);
        total = (four[0] + four[2]) + (four[1] + four[3]);
        if total > limit {
            break;
        }
    }
    total
}

/// `|x|^2.4` to a relative error of 1.1e-4 for `STEPS` = 2 and of f32 for 3; finite for |x| < 1e15.
///
/// With `u = x²` this is `(u z²)²`, where `z = u^(−1/5)` comes from Newton's iteration `z ← z (6 − u z⁵) / 5`, started
/// from the exponent bits.
#[inline(always)]
fn power_2_4<const STEPS: usize>(x: f32) -> f32 {
    /// `6/5 · 127 · 2²³`, less what makes the first guess best on average.
    const START: f32 = 1_277_920_000.0;
    let u = x * x;
    let guess = (u.to_bits() as i32 as f32).mul_add(-0.2, START);
    // SAFETY: for every i32 `b`, START − b/5 lies within 8.4e8 .. 1.71e9, inside i32.
    let guess: i32 = unsafe { guess.to_int_unchecked() };
    let mut z = f32::from_bits(guess as u32);
    for _ in 0..STEPS {
        let z2 = z * z;
        let z4 = z2 * z2;
        z *= (u * z).mul_add(-0.2 * z4, 1.2);
    }
    let root = u * (z * z);
    root * root
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

/// The scales and zero points, (out_features, groups), of contiguous groups of `weight` (out_features, in_features).
pub fn fit_rows(weight: &[f32], in_features: usize, spec: &GridSpec) -> Result<(Vec<f32>, Vec<u8>)> {
    let group_size = spec.group_size_for(in_features)?;
    if weight.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    assert!(weight.len().is_multiple_of(in_features), "whole rows of {in_features}");
    let groups = in_features / group_size;
    let mut scales = vec![0.0; weight.len() / group_size];
    let mut zeros = vec![0; weight.len() / group_size];
    let failed = weight
        .par_chunks(in_features)
        .zip(scales.par_chunks_mut(groups).zip(zeros.par_chunks_mut(groups)))
        .enumerate()
        .map(|(row, (values, (scales, zeros)))| {
            for (group, values) in values.chunks_exact(group_size).enumerate() {
                match fit_group(values, spec) {
                    Ok((scale, zero)) => (scales[group], zeros[group]) = (scale, zero),
                    Err(cause) => return Some((row, group, cause)),
                }
            }
            None
        })
        .find_first(Option::is_some);
    match failed.flatten() {
        Some((row, group, cause)) => Err(Error::Numeric(format!("row {row}, group {group}: {cause}"))),
        None => Ok((scales, zeros)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::test_values::uniform;

    fn spec(bits: u32, symmetric: bool) -> GridSpec {
        GridSpec { bits, group_size: 0, symmetric, scale_dtype: ScaleDtype::F16, search: Search::None }
    }

    /// The definition, value by value.
    fn naive_fit(values: &[f32], p: f32, spec: &GridSpec) -> (f32, u8) {
        let max = 2f32.powi(spec.bits as i32) - 1.0;
        let mut lo = values.iter().fold(0.0, |a: f32, &b| a.min(b));
        let mut hi = values.iter().fold(0.0, |a: f32, &b| a.max(b));
        if lo == 0.0 && hi == 0.0 {
            (lo, hi) = (-1.0, 1.0);
        }
        if spec.symmetric {
            hi = hi.max(lo.abs());
            lo = -hi;
        }
        let (lo, hi) = (lo * p, hi * p);
        let mut scale = spec.scale_dtype.round((hi - lo) / max);
        if scale == 0.0 {
            scale = spec.scale_dtype.smallest();
        }
        let zero = if spec.symmetric { (max + 1.0) / 2.0 } else { (-lo / scale).round_ties_even().clamp(0.0, max) };
        (scale, zero as u8)
    }

    fn naive_code(value: f32, scale: f32, zero: u8, max: u8) -> u8 {
        ((value / scale).round_ties_even() + f32::from(zero)).max(0.0).min(f32::from(max)) as u8
    }

    fn naive_loss(values: &[f32], scale: f32, zero: u8, max: u8) -> f64 {
        let error = |&x: &f32| {
            let q = naive_code(x, scale, zero, max);
            f64::from(scale) * (f64::from(q) - f64::from(zero)) - f64::from(x)
        };
        values.iter().map(|x| error(x).abs().powf(2.4)).sum()
    }

    fn relative_error(values: &[f32], scale: f32, zero: u8, max: u8) -> f64 {
        let error = |&x: &f32| {
            let q = naive_code(x, scale, zero, max);
            (f64::from(scale * (f32::from(q) - f32::from(zero))) - f64::from(x)).powi(2)
        };
        let energy: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
        (values.iter().map(error).sum::<f64>() / energy).sqrt()
    }

    /// The search compares losses good to 1.1e-4; its choice may cost twice that over the best.
    const SEARCH_SLACK: f64 = 1.0005;

    fn groups() -> impl Strategy<Value = Vec<f32>> {
        let magnitude = proptest::sample::select(vec![1e-30f32, 1e-7, 1e-3, 1.0, 3e4]);
        let sign = proptest::sample::select(vec![(-1.0f32, 1.0f32), (0.0, 1.0), (-1.0, 0.0), (0.3, 0.3)]);
        (1usize..70, magnitude, sign, any::<u64>()).prop_map(|(n, magnitude, (lo, hi), seed)| {
            uniform(n, seed).into_iter().map(|x| magnitude * (lo + (hi - lo) * (x + 1.0) / 2.0).powi(3)).collect()
        })
    }

    fn specs() -> impl Strategy<Value = GridSpec> {
        let dtype = proptest::sample::select(vec![ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F32]);
        (proptest::sample::select(vec![2u32, 3, 4, 8]), any::<bool>(), dtype)
            .prop_map(|(bits, symmetric, scale_dtype)| GridSpec { scale_dtype, ..spec(bits, symmetric) })
    }

    proptest! {
        #[test]
        fn a_fit_matches_the_definition((values, spec) in (groups(), specs())) {
            let (scale, zero) = fit_group(&values, &spec).unwrap();
            prop_assert_eq!((scale, zero), naive_fit(&values, 1.0, &spec));
            let mut codes = vec![0; values.len()];
            quantize_group(&values, scale, zero, spec.max_code(), &mut codes);
            for (&value, &code) in values.iter().zip(&codes) {
                prop_assert_eq!(code, naive_code(value, scale, zero, spec.max_code()));
            }
        }

        #[test]
        fn the_search_finds_the_least_loss((values, spec) in (groups(), specs())) {
            let spec = GridSpec { search: Search::Mse, ..spec };
            let (scale, zero) = fit_group(&values, &spec).unwrap();
            let found = naive_loss(&values, scale, zero, spec.max_code());
            for i in 0..SEARCH_STEPS {
                let (scale, zero) = naive_fit(&values, 1.0 - i as f32 / 100.0, &spec);
                let loss = naive_loss(&values, scale, zero, spec.max_code());
                // Losses of 1e-30^2.4 are compared in f64; a group hit exactly leaves only rounding.
                let rounding = values.len() as f64 * (f64::from(scale) * 1e-4).powf(2.4);
                prop_assert!(found <= loss * SEARCH_SLACK + rounding, "{found:e} but {loss:e} at step {i}");
            }
        }
    }

    #[test]
    fn the_power_is_as_exact_as_it_says() {
        for i in 0..20_000 {
            let x = 1.001f32.powi(i - 10_000);
            let exact = f64::from(x).powf(2.4);
            let error = |approximate: f32| (f64::from(approximate) / exact - 1.0).abs();
            assert!(error(power_2_4::<2>(x)) < 1.1e-4, "{x}: {}", error(power_2_4::<2>(x)));
            assert!(error(power_2_4::<3>(x)) < 2e-6, "{x}: {}", error(power_2_4::<3>(x)));
        }
        assert_eq!(power_2_4::<2>(0.0), 0.0);
    }

    #[test]
    fn scales_are_rounded_as_the_types_round() {
        for i in 0..2_000_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_769));
            for (dtype, expected) in [
                (ScaleDtype::F16, half::f16::from_f32(x).to_f32()),
                (ScaleDtype::Bf16, half::bf16::from_f32(x).to_f32()),
                (ScaleDtype::F32, x),
            ] {
                let rounded = dtype.round(x);
                assert!(rounded.to_bits() == expected.to_bits() || (rounded.is_nan() && x.is_nan()), "{x:e} {dtype:?}");
            }
        }
        for dtype in [ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F32] {
            assert_eq!(dtype.round(dtype.smallest()), dtype.smallest());
            assert_eq!(dtype.round(dtype.smallest() * 0.49), 0.0);
        }
    }

    #[test]
    fn special_groups() {
        let zero_row = [0.0; 8];
        for symmetric in [true, false] {
            let spec = spec(4, symmetric);
            let (scale, zero) = fit_group(&zero_row, &spec).unwrap();
            let mut codes = [0; 8];
            quantize_group(&zero_row, scale, zero, 15, &mut codes);
            assert!(scale > 0.0);
            assert_eq!(codes, [zero; 8], "a zero stays a zero");
            for single in [3.5f32, -3.5] {
                let (scale, zero) = fit_group(&[single], &spec).unwrap();
                assert!(relative_error(&[single], scale, zero, 15) < 0.067, "{single}: half a step of 15");
            }
        }
        assert_eq!(fit_group(&[0.25, 0.5, 0.75], &spec(4, false)).unwrap().1, 0, "all positive");
        assert_eq!(fit_group(&[-0.25, -0.5, -0.75], &spec(4, false)).unwrap().1, 15, "all negative");
    }

    #[test]
    fn a_group_without_negatives_keeps_its_range() {
        let values: Vec<f32> = (0..32).map(|i| (i as f32 + 0.5) / 32.0).collect();
        let (scale, zero) = fit_group(&values, &spec(4, true)).unwrap();
        let ours = relative_error(&values, scale, zero, 15);
        let quirk = relative_error(&values, scale / 2.0, zero, 15); // lo = 0: half the step, the upper half clipped
        assert!(ours < 0.12 && quirk > 0.3, "{ours} against {quirk}");
    }

    #[test]
    fn scales_stay_within_their_type() {
        let tiny = [1e-9f32, -1e-9];
        assert_eq!(fit_group(&tiny, &spec(4, true)).unwrap().0, 2f32.powi(-24));
        let error = fit_group(&[1e6, -1e6], &spec(4, true)).unwrap_err().to_string();
        assert!(error.contains("beyond the range of F16"), "{error}");
        let bf16 = GridSpec { scale_dtype: ScaleDtype::Bf16, ..spec(4, true) };
        assert!(fit_group(&[1e6, -1e6], &bf16).is_ok());
        assert!(fit_group(&[f32::MAX, f32::MIN], &bf16).unwrap_err().to_string().contains("BF16"));
        assert!(fit_group(&[1e-44, -1e-44], &GridSpec { search: Search::Mse, ..bf16 }).is_ok());
    }

    #[test]
    fn values_that_are_not_finite_are_refused_with_their_place() {
        let mut weight = vec![1.0; 4 * 32];
        weight[2 * 32 + 20] = f32::NAN;
        let spec = GridSpec { group_size: 16, ..spec(4, true) };
        let error = round_to_nearest(&weight, 4, 32, &spec).unwrap_err().to_string();
        assert_eq!(error, "row 2, group 1: the value NaN at place 4 of a group is not finite");
    }

    #[test]
    fn a_group_size_that_does_not_divide_is_refused_with_those_that_do() {
        let error = GridSpec { group_size: 128, ..spec(4, true) }.group_size_for(576).unwrap_err().to_string();
        assert!(error.contains("576") && error.contains("16, 32, 48, 64, 96, 144, 192, 288"), "{error}");
        assert!(GridSpec { bits: 5, ..spec(4, true) }.group_size_for(64).is_err());
        assert_eq!(spec(4, true).group_size_for(77).unwrap(), 77);
    }

    #[test]
    fn nearest_codes_dequantize_to_within_half_a_step() {
        let weight = uniform(6 * 64, 9);
        let spec = GridSpec { group_size: 32, ..spec(4, false) };
        let quantised = round_to_nearest(&weight, 6, 64, &spec).unwrap();
        assert_eq!(quantised.scales.len(), 12);
        for (i, (&w, q)) in weight.iter().zip(quantised.dequantize()).enumerate() {
            let scale = quantised.scales[i / 32];
            // Half a step, and half a step more where the rounded zero point shifts the range past an end.
            assert!((w - q).abs() <= scale * 1.01, "element {i}: {w} became {q} on a step of {scale}");
        }
    }
}
