//! Eight-bit floats with shared scales: FP8 in its `e4m3fn` form (Micikevicius et al. 2022, "FP8 Formats for Deep
//! Learning", section 3).
//!
//! A code is a sign, four bits of exponent with bias 7 and three of mantissa, from 2⁻⁹ to 448; there is no infinity, and
//! S.1111.111 is NaN. A weight is `ŵ = scale · code`, one scale for all weights, for each row or for each block.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, grid::ScaleDtype};

/// The largest number of the type.
pub const MAX: f32 = 448.0;

/// Rows and columns of a block as other tools cut them (DeepSeek-V3, section 3.3).
pub const BLOCK: [usize; 2] = [128, 128];

/// Eight-bit floats, `ŵ = scale · code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Float8Code {
    /// The weights that share a scale.
    pub scales: Float8Scales,
}

/// Which weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Float8Scales {
    /// All of them.
    Tensor,
    /// Those of a row.
    Channel,
    /// Blocks of (rows, columns), the last of a row or column cut short.
    Block([usize; 2]),
}

impl Float8Scales {
    /// (rows, columns) that share a scale in a weight of `shape` (out, in).
    pub fn block(self, (out_features, in_features): (usize, usize)) -> [usize; 2] {
        match self {
            Self::Tensor => [out_features.max(1), in_features.max(1)],
            Self::Channel => [1, in_features.max(1)],
            Self::Block([rows, columns]) => [rows.max(1), columns.max(1)],
        }
    }

    /// (rows, columns) of the scales of a weight of `shape` (out, in).
    pub fn count(self, shape: (usize, usize)) -> [usize; 2] {
        let [rows, columns] = self.block(shape);
        [shape.0.div_ceil(rows), shape.1.div_ceil(columns)]
    }

    /// What a table calls it.
    pub fn describe(self) -> String {
        match self {
            Self::Tensor => "fp8, a scale a tensor".into(),
            Self::Channel => "fp8, a scale a row".into(),
            Self::Block([rows, columns]) => format!("fp8, blocks of {rows}x{columns}"),
        }
    }
}

/// A weight as eight-bit floats.
#[derive(Debug, Clone, PartialEq)]
pub struct Float8Weight {
    /// Rows of the weight.
    pub out_features: usize,
    /// Columns of the weight.
    pub in_features: usize,
    /// The weights that share a scale.
    pub layout: Float8Scales,
    /// What `scales` are rounded to.
    pub scale_dtype: ScaleDtype,
    /// Codes, (out_features, in_features).
    pub codes: Vec<u8>,
    /// Scales, row by row, as many as [`Float8Scales::count`] says; finite and > 0.
    pub scales: Vec<f32>,
}

impl Float8Weight {
    /// (out_features, in_features).
    pub fn shape(&self) -> (usize, usize) {
        (self.out_features, self.in_features)
    }

    /// Row `row` of the weight, `scale · code` in f32, into `out` (in_features).
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let [rows, columns] = self.layout.block(self.shape());
        let across = self.in_features.div_ceil(columns);
        let codes = &self.codes[row * self.in_features..][..self.in_features];
        let scales = &self.scales[row / rows * across..][..across];
        for ((out, codes), &scale) in out.chunks_mut(columns).zip(codes.chunks(columns)).zip(scales) {
            out.iter_mut().zip(codes).for_each(|(value, &code)| *value = VALUES[usize::from(code)] * scale);
        }
    }

    /// What the fields promise and do not hold.
    pub(crate) fn fault(&self) -> Option<String> {
        let [down, across] = self.layout.count(self.shape());
        let expected = (self.out_features * self.in_features, down * across);
        if (self.codes.len(), self.scales.len()) != expected {
            return Some(format!(
                "{} codes and {} scales, expected {} and {}",
                self.codes.len(),
                self.scales.len(),
                expected.0,
                expected.1
            ));
        }
        if let Some(at) = self.codes.iter().position(|code| code & 0x7F == 0x7F) {
            return Some(format!("the code at [{}, {}] is NaN", at / self.in_features, at % self.in_features));
        }
        let wrong = |&scale: &f32| !(scale.is_finite() && scale > 0.0) || self.scale_dtype.round(scale) != scale;
        let at = self.scales.iter().position(wrong)?;
        Some(format!(
            "the scale at [{}, {}] is {:e}, expected a number above zero that {:?} holds exactly",
            at / across,
            at % across,
            self.scales[at],
            self.scale_dtype
        ))
    }
}

/// The f32 of every code.
pub static VALUES: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = ((code >> 3) & 15, code & 7);
        let magnitude = match (exponent, mantissa) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa as f32 / 512.0, // m · 2⁻⁹
            _ => (8 + mantissa) as f32 * f32::from_bits(((exponent + 127 - 10) as u32) << 23), // (8 + m) · 2^(e − 10)
        };
        table[code] = if code & 0x80 == 0 { magnitude } else { -magnitude };
        code += 1;
    }
    table
};

/// The code of the number nearest to `value`, ties to even; beyond ±[`MAX`] that of the end of the range, and NaN for NaN.
#[inline(always)]
pub fn code(value: f32) -> u8 {
    /// At this size the last place of an f32 is 2⁻⁹, the step of the subnormal codes.
    const STEP: f32 = 16384.0;
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let magnitude = f32::from_bits(value.to_bits() & 0x7FFF_FFFF);
    let clipped = if magnitude > MAX { MAX } else { magnitude };
    let small = (clipped + STEP).to_bits().wrapping_sub(STEP.to_bits());
    let bits = clipped.to_bits();
    let rounded = bits.wrapping_add(0x7_FFFF + ((bits >> 20) & 1)) >> 20;
    let normal = rounded.wrapping_sub((127 - 7) << 3);
    let code = if clipped < 0.015_625 { small } else { normal };
    let code = if magnitude.is_nan() { 0x7F } else { code as u8 };
    code | sign
}

crate::kernel::dispatch! {
    /// The codes of `values / scale`.
    fn encode(values: &[f32], scale: f32, codes: &mut [u8]) = encode_body
}

#[inline(always)]
fn encode_body(values: &[f32], scale: f32, codes: &mut [u8]) {
    for (&value, stored) in values.iter().zip(codes) {
        *stored = code(value / scale);
    }
}

/// The scale of weights whose largest magnitude is `absmax`: `absmax / 448` rounded to `dtype`, the smallest positive
/// number of the type where that is zero, and 1 for weights that are all zero.
pub fn scale(absmax: f32, dtype: ScaleDtype) -> f32 {
    if absmax == 0.0 {
        return 1.0;
    }
    let scale = dtype.round(absmax / MAX);
    if scale == 0.0 { dtype.smallest() } else { scale }
}

/// Rounds `weight` (out, in) to eight-bit floats with scales of type `dtype`, which are rounded before codes are chosen.
///
/// # Errors
/// [`Error::Numeric`] for values that are not finite or a scale beyond its type, naming the block.
pub fn quantize(
    weight: &[f32],
    shape: (usize, usize),
    layout: Float8Scales,
    scale_dtype: ScaleDtype,
) -> Result<Float8Weight> {
    let (out_features, in_features) = shape;
    let [rows, columns] = layout.block(shape);
    let [down, across] = layout.count(shape);
    let mut scales = vec![0.0; down * across];
    let mut codes = vec![0; weight.len()];
    if weight.is_empty() {
        return Ok(Float8Weight { out_features, in_features, layout, scale_dtype, codes, scales });
    }
    let row_extremes: Vec<(f32, bool)> = weight
        .par_chunks(in_features)
        .flat_map_iter(|row| {
            row.chunks(columns).map(|values| {
                let (lo, hi, finite) = crate::grid::extremes(values);
                (hi.max(-lo), finite)
            })
        })
        .collect();
    for (at, scale_of) in scales.iter_mut().enumerate() {
        let (block, column) = (at / across, at % across);
        let mut absmax = 0f32;
        for row in block * rows..((block + 1) * rows).min(out_features) {
            let (largest, finite) = row_extremes[row * across + column];
            if !finite {
                return Err(Error::Numeric(format!("row {row} holds a value that is not finite")));
            }
            absmax = absmax.max(largest);
        }
        *scale_of = scale(absmax, scale_dtype);
        if !scale_of.is_finite() {
            return Err(Error::Numeric(format!(
                "values up to {absmax:e} from row {} on need a scale beyond the range of {}",
                block * rows,
                scale_dtype.name()
            )));
        }
    }
    codes.par_chunks_mut(in_features).zip(weight.par_chunks(in_features)).enumerate().for_each(
        |(row, (codes, values))| {
            let scales = &scales[row / rows * across..][..across];
            for ((codes, values), &scale) in codes.chunks_mut(columns).zip(values.chunks(columns)).zip(scales) {
                encode(values, scale, codes);
            }
        },
    );
    Ok(Float8Weight { out_features, in_features, layout, scale_dtype, codes, scales })
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;
    use scruple_weights::digest::sha256;

    use super::*;

    /// The definition: the nearest number of the type, of two as near the one with the even code.
    fn nearest(value: f32) -> u8 {
        let magnitude = f64::from(value.abs().min(MAX));
        let distance = |code: u8| (f64::from(VALUES[usize::from(code)]) - magnitude).abs();
        let best = (0..0x7F).min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then_with(|| (a & 1).cmp(&(b & 1))));
        best.unwrap() | if value.is_sign_negative() { 0x80 } else { 0 }
    }

    proptest! {
        #[test]
        fn a_code_is_the_nearest_number(mantissa in -1f32..1.0, exponent in -14i32..12) {
            let value = mantissa * 2f32.powi(exponent);
            prop_assert_eq!(code(value), nearest(value), "{}", value);
        }
    }

    #[test]
    fn midpoints_and_ends_round_to_even() {
        for low in 0..0x7E {
            let middle = (VALUES[low] + VALUES[low + 1]) / 2.0;
            for value in [middle, -middle, middle.next_up(), middle.next_down(), VALUES[low]] {
                assert_eq!(code(value), nearest(value), "{value}");
            }
        }
        assert_eq!([448.0, 464.0, 1e9, f32::INFINITY, f32::NEG_INFINITY].map(code), [0x7E, 0x7E, 0x7E, 0x7E, 0xFE]);
        assert_eq!([0.0, -0.0, f32::NAN].map(code), [0x00, 0x80, 0x7F]);
    }

    /// Of every f16 and every bf16 that is a number, clipped to ±448, in the order of their bits. The digests are those of
    /// torch 2.14: `fixtures/interop/make_quantised.py` prints them.
    #[test]
    fn every_half_precision_number_becomes_torch_s_code() {
        let halves = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32());
        let brains = (0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32());
        let codes = |values: &mut dyn Iterator<Item = f32>| -> Vec<u8> {
            values.filter(|value| !value.is_nan()).map(code).collect()
        };
        assert_eq!(sha256(&codes(&mut halves.into_iter())), F16_CODES);
        assert_eq!(sha256(&codes(&mut brains.into_iter())), BF16_CODES);
    }
    const F16_CODES: &str = "2bab2d6fe2a53ccac25ffefef33fe514bd01f212f11da5d39c3e103244de40cc";
    const BF16_CODES: &str = "184d4ece5aff3d3398e6db550e0b2b237c928678f122968604001be75b4a4320";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_weight_is_its_scale_times_the_nearest_number(
            rows in 1usize..9,
            columns in 1usize..40,
            layout in prop::sample::select(vec![
                Float8Scales::Tensor, Float8Scales::Channel, Float8Scales::Block([3, 16]), Float8Scales::Block([128, 128]),
            ]),
            dtype in prop::sample::select(vec![ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F32]),
            size in -3i32..3,
            seed: u64,
        ) {
            let weight: Vec<f32> = crate::kernel::test_values::uniform(rows * columns, seed)
                .into_iter().map(|x| x * 10f32.powi(size)).collect();
            let q = quantize(&weight, (rows, columns), layout, dtype).unwrap();
            prop_assert_eq!(q.fault(), None);
            let [down, across] = layout.block((rows, columns));
            for row in 0..rows {
                let mut found = vec![0.0; columns];
                q.dequantize_row(row, &mut found);
                for column in 0..columns {
                    let (top, left) = (row / down * down, column / across * across);
                    let absmax = (top..(top + down).min(rows))
                        .flat_map(|r| (left..(left + across).min(columns)).map(move |c| (r, c)))
                        .map(|(r, c)| weight[r * columns + c].abs())
                        .fold(0.0, f32::max);
                    let scale = dtype.round(absmax / 448.0);
                    let expected = scale * VALUES[usize::from(nearest(weight[row * columns + column] / scale))];
                    prop_assert_eq!(found[column], expected);
                }
            }
        }
    }

    #[test]
    fn zeros_tiny_numbers_and_what_cannot_be() {
        let q = |weight: &[f32], dtype| quantize(weight, (1, weight.len()), Float8Scales::Tensor, dtype);
        assert_eq!(q(&[0.0, -0.0], ScaleDtype::F16).unwrap().scales, [1.0]);
        assert_eq!(q(&[1e-9, 0.0], ScaleDtype::F16).unwrap().scales, [ScaleDtype::F16.smallest()]);
        let error = q(&[3e8, 1.0], ScaleDtype::F16).unwrap_err().to_string();
        assert!(error.contains("beyond the range of F16"), "{error}");
        assert!(q(&[1.0, f32::NAN], ScaleDtype::F32).is_err());
        assert_eq!(quantize(&[], (0, 4), Float8Scales::Channel, ScaleDtype::F16).unwrap().scales, [0.0; 0]);
    }
}
