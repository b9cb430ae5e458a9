//! Four-bit codes into a table of sixteen numbers, with a scale for each block of consecutive weights: NF4 (Dettmers et
//! al. 2023, "QLoRA", section 3) and FP4, as bitsandbytes stores them.
//!
//! Blocks run through the weight row by row, across the ends of rows. `ŵ = table[code] · absmax`, with the block's largest
//! magnitude `absmax` in f32. With double quantisation (QLoRA, section 3) the mean of all absmax is taken away and what is
//! left is stored in eight bits: `absmax = map[code] · scale + mean`, a scale for every 256, in a map whose numbers lie
//! close near zero (Dettmers 2016, "8-Bit Approximations for Parallelism in Deep Learning").

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Weights of a block.
pub const BLOCK: usize = 64;

/// Block scales that share a scale of their own.
pub const NESTED_BLOCK: usize = 256;

/// Numbers of the map of nested scales.
pub const NESTED_MAP: usize = 256;

/// Four-bit codes into a table, `ŵ = table[code] · absmax`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Table4Code {
    /// The table.
    pub table: Table,
    /// Consecutive weights that share a scale.
    pub block_size: usize,
    /// Block scales are stored in eight bits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub double_quant: bool,
}

/// A table of sixteen numbers from −1 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Table {
    /// Quantiles of the normal distribution, in order.
    Nf4,
    /// A sign, two bits of exponent and one of mantissa, over twelve; in the order of the bits.
    Fp4,
}

/// [`Table::Nf4`]: QLoRA, appendix E.
static NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// [`Table::Fp4`].
static FP4: [f32; 16] = [
    0.0,
    0.0625 / 12.0,
    8.0 / 12.0,
    1.0,
    4.0 / 12.0,
    6.0 / 12.0,
    2.0 / 12.0,
    3.0 / 12.0,
    0.0,
    -0.0625 / 12.0,
    -8.0 / 12.0,
    -1.0,
    -4.0 / 12.0,
    -6.0 / 12.0,
    -2.0 / 12.0,
    -3.0 / 12.0,
];

impl Table {
    /// Its numbers, by code.
    pub fn numbers(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// What files call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }
}

/// The scales of the blocks.
#[derive(Debug, Clone, PartialEq)]
pub enum Absmax {
    /// As they are.
    Plain(Vec<f32>),
    /// In eight bits: `map[code] · scale + offset`.
    Nested {
        /// A code for each block.
        codes: Vec<u8>,
        /// 256 numbers, ascending.
        map: Vec<f32>,
        /// A scale for every [`NESTED_BLOCK`] codes.
        scales: Vec<f32>,
        /// What was taken away before.
        offset: f32,
    },
}

impl Absmax {
    /// The scale of block `block`.
    #[inline]
    fn at(&self, block: usize) -> f32 {
        match self {
            Self::Plain(values) => values[block],
            Self::Nested { codes, map, scales, offset } => {
                map[usize::from(codes[block])] * scales[block / NESTED_BLOCK] + offset
            }
        }
    }

    /// Number of blocks.
    fn len(&self) -> usize {
        match self {
            Self::Plain(values) => values.len(),
            Self::Nested { codes, .. } => codes.len(),
        }
    }
}

/// A weight as codes into a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Table4Weight {
    /// Rows of the weight.
    pub out_features: usize,
    /// Columns of the weight.
    pub in_features: usize,
    /// The table.
    pub table: Table,
    /// Consecutive weights that share a scale.
    pub block_size: usize,
    /// Two codes a byte, the first in the upper half.
    pub packed: Vec<u8>,
    /// A scale for each block.
    pub absmax: Absmax,
}

impl Table4Weight {
    /// The way it is stored.
    pub fn code(&self) -> Table4Code {
        let double_quant = matches!(self.absmax, Absmax::Nested { .. });
        Table4Code { table: self.table, block_size: self.block_size, double_quant }
    }

    /// The code of weight `at`, counted row by row.
    fn code_at(&self, at: usize) -> usize {
        usize::from(self.packed[at / 2] >> (4 - 4 * (at % 2)) & 15)
    }

    /// Row `row` of the weight, `table[code] · absmax` in f32, into `out` (in_features).
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let numbers = self.table.numbers();
        let end = (row + 1) * self.in_features;
        let mut at = row * self.in_features;
        let mut out = &mut out[..self.in_features];
        while at < end {
            let block = at / self.block_size;
            let count = ((block + 1) * self.block_size).min(end) - at;
            let (here, rest) = out.split_at_mut(count);
            let absmax = self.absmax.at(block);
            here.iter_mut().enumerate().for_each(|(i, value)| *value = numbers[self.code_at(at + i)] * absmax);
            (out, at) = (rest, at + count);
        }
    }

    /// What the fields promise and do not hold.
    pub(crate) fn fault(&self) -> Option<String> {
        let weights = self.out_features * self.in_features;
        let blocks = weights.div_ceil(self.block_size.max(1));
        if (self.packed.len(), self.absmax.len()) != (weights.div_ceil(2), blocks) {
            return Some(format!(
                "{} bytes of codes and {} block scales, expected {} and {blocks}",
                self.packed.len(),
                self.absmax.len(),
                weights.div_ceil(2),
            ));
        }
        if let Absmax::Nested { map, scales, .. } = &self.absmax
            && (map.len(), scales.len()) != (NESTED_MAP, blocks.div_ceil(NESTED_BLOCK))
        {
            return Some(format!(
                "a map of {} numbers and {} scales of block scales, expected {NESTED_MAP} and {}",
                map.len(),
                scales.len(),
                blocks.div_ceil(NESTED_BLOCK)
            ));
        }
        let block = (0..blocks).find(|&block| !self.absmax.at(block).is_finite())?;
        Some(format!("the scale of block {block} is {}", self.absmax.at(block)))
    }
}

/// The eight-bit map of nested scales, ascending: zero, one, and for each power of ten from 10⁻⁶ to 1 the middles of
/// 2⁰ to 2⁶ equal parts of [0.1, 1], with both signs (Dettmers 2016, section 2.2). In f32, as bitsandbytes computes it.
pub fn nested_map() -> Vec<f32> {
    let mut map = vec![0.0, 1.0];
    for exponent in 0..7 {
        let parts = 1usize << exponent;
        // torch's linspace: from the nearer end, one product and one sum in f32.
        let step = (1.0f32 - 0.1) / parts as f32;
        let bound = |at: usize| match at < parts.div_ceil(2) {
            true => step.mul_add(at as f32, 0.1),
            false => (-step).mul_add((parts - at) as f32, 1.0),
        };
        let power = 10f64.powi(exponent - 6) as f32;
        for part in 0..parts {
            let middle = (bound(part) + bound(part + 1)) / 2.0;
            map.extend([power * middle, -(power * middle)]);
        }
    }
    map.sort_by(f32::total_cmp);
    map
}

/// The codes of the numbers of `table` nearest to each of `values · inverse`, two a byte, of halves the lower number.
fn encode(values: &[f32], table: Table, scaled: impl Fn(f32) -> f32, codes: &mut [u8]) {
    let numbers = table.numbers();
    let mut order: [u8; 16] = std::array::from_fn(|i| i as u8);
    order.sort_by(|&a, &b| numbers[usize::from(a)].total_cmp(&numbers[usize::from(b)])); // stable
    let bounds: [f32; 15] =
        std::array::from_fn(|i| (numbers[usize::from(order[i])] + numbers[usize::from(order[i + 1])]) / 2.0);
    for (&value, code) in values.iter().zip(codes) {
        let x = scaled(value);
        let rank: u32 = bounds.iter().map(|&bound| u32::from(x > bound)).sum();
        *code = order[rank as usize];
    }
}

/// Quantises `weight` (out, in) to `table` in blocks of `block_size`, its block scales as they are or, `double_quant`, in
/// eight bits. Codes are chosen for the unrounded block scales in either case, as bitsandbytes chooses them.
///
/// # Errors
/// [`Error::Numeric`] for values that are not finite, naming the block.
pub fn quantize(weight: &[f32], shape: (usize, usize), code: Table4Code) -> Result<Table4Weight> {
    /// What bitsandbytes divides by at least.
    const LEAST: f32 = 1e-38;
    let Table4Code { table, block_size, double_quant } = code;
    let blocks: Vec<(f32, Vec<u8>)> = weight
        .par_chunks(block_size)
        .enumerate()
        .map(|(block, values)| {
            let (lo, hi, finite) = crate::grid::extremes(values);
            if !finite {
                return Err(Error::Numeric(format!("block {block} holds a value that is not finite")));
            }
            let absmax = hi.max(-lo);
            let mut codes = vec![0; values.len()];
            if values.len() == block_size {
                let inverse = 1.0 / absmax.max(LEAST);
                encode(values, table, |value| (value * inverse).clamp(-1.0, 1.0), &mut codes);
                return Ok((absmax, codes));
            }
            let absmax = absmax.max(LEAST);
            encode(values, table, |value| (value / absmax).clamp(-1.0, 1.0), &mut codes);
            Ok((absmax, codes))
        })
        .collect::<Result<_>>()?;
    let mut packed = vec![0u8; weight.len().div_ceil(2)];
    let codes = blocks.iter().flat_map(|(_, codes)| codes);
    codes.enumerate().for_each(|(at, &code)| packed[at / 2] |= code << (4 - 4 * (at % 2)));
    if let (1, Some(last)) = (weight.len() % 2, packed.last_mut()) {
        let mut zero = [0];
        encode(&[0.0], table, |value| value, &mut zero);
        *last |= zero[0];
    }
    let absmax: Vec<f32> = blocks.into_iter().map(|(absmax, _)| absmax).collect();
    let absmax = if double_quant { nest(&absmax) } else { Absmax::Plain(absmax) };
    Ok(Table4Weight { out_features: shape.0, in_features: shape.1, table, block_size, packed, absmax })
}

/// Block scales in eight bits: the nearest number of the map, of two as near the lower.
fn nest(absmax: &[f32]) -> Absmax {
    let mean = absmax.iter().map(|&x| f64::from(x)).sum::<f64>() / absmax.len().max(1) as f64;
    let offset = mean as f32;
    let map = nested_map();
    let (mut codes, mut scales) = (Vec::with_capacity(absmax.len()), Vec::new());
    for block in absmax.chunks(NESTED_BLOCK) {
        let scale = block.iter().map(|x| (x - offset).abs()).fold(0.0, f32::max);
        let unit = if scale > 0.0 { scale } else { 1.0 };
        codes.extend(block.iter().map(|x| {
            let x = (x - offset) / unit;
            let above = map.partition_point(|&number| number < x).clamp(1, NESTED_MAP - 1);
            (if x - map[above - 1] <= map[above] - x { above - 1 } else { above }) as u8
        }));
        scales.push(scale);
    }
    Absmax::Nested { codes, map, scales, offset }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::test_values::uniform;

    fn code(table: Table, block_size: usize, double_quant: bool) -> Table4Code {
        Table4Code { table, block_size, double_quant }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_weight_is_its_block_s_scale_times_the_nearest_number(
            rows in 1usize..9,
            columns in 1usize..80,
            block_size in prop::sample::select(vec![32usize, 64, 128]),
            fp4: bool,
            seed: u64,
        ) {
            let table = if fp4 { Table::Fp4 } else { Table::Nf4 };
            let weight = uniform(rows * columns, seed);
            let q = quantize(&weight, (rows, columns), code(table, block_size, false)).unwrap();
            prop_assert_eq!(q.fault(), None);
            let mut found = vec![0.0; rows * columns];
            found.chunks_mut(columns).enumerate().for_each(|(row, out)| q.dequantize_row(row, out));
            for (found, weight) in found.chunks(block_size).zip(weight.chunks(block_size)) {
                let absmax = weight.iter().fold(0f32, |most, x| most.max(x.abs()));
                for (&found, &weight) in found.iter().zip(weight) {
                    let distance = |number: f32| (f64::from(number * absmax) - f64::from(weight)).abs();
                    let least = table.numbers().iter().map(|&n| distance(n)).fold(f64::INFINITY, f64::min);
                    prop_assert!((f64::from(found) - f64::from(weight)).abs() <= least + 1e-6 * f64::from(absmax));
                }
            }
        }
    }

    #[test]
    fn double_quantisation_keeps_the_codes_and_nearly_the_scales() {
        let weight: Vec<f32> = uniform(300 * 192, 3).iter().map(|x| x * 0.04).collect();
        let plain = quantize(&weight, (300, 192), code(Table::Nf4, BLOCK, false)).unwrap();
        let nested = quantize(&weight, (300, 192), code(Table::Nf4, BLOCK, true)).unwrap();
        assert_eq!(plain.packed, nested.packed);
        assert_eq!((nested.fault(), nested.absmax.len()), (None, 900));
        let Absmax::Nested { map, scales, offset, codes } = &nested.absmax else { panic!("not nested") };
        assert_eq!((map.len(), scales.len(), codes.len()), (256, 4, 900));
        for block in 0..900 {
            let (exact, stored) = (plain.absmax.at(block), nested.absmax.at(block));
            let least = map.iter().map(|m| (m * scales[block / 256] + offset - exact).abs()).fold(f32::MAX, f32::min);
            assert!((stored - exact).abs() <= least + 1e-8, "block {block}: {stored} for {exact}");
        }
    }

    #[test]
    fn zeros_odd_counts_and_values_that_are_not_finite() {
        let q = quantize(&[0.0; 64], (1, 64), code(Table::Nf4, 64, true)).unwrap();
        let mut out = [1.0; 64];
        q.dequantize_row(0, &mut out);
        assert_eq!(out, [0.0; 64]);
        let q = quantize(&[1.0, -1.0, 0.5], (1, 3), code(Table::Nf4, 64, false)).unwrap();
        assert_eq!(q.packed, [0xF0, 0xC7]); // the half that is over is the code of zero
        assert!(quantize(&[f32::NAN; 4], (1, 4), code(Table::Nf4, 64, false)).is_err());
    }
}
