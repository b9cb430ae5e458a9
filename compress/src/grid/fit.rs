//! Grids fitted to the values of a group: the range that is spanned, and the search for one that loses less.

use rayon::prelude::*;

use super::{GridSpec, Search};
use crate::{Error, Result};

/// Shrunken ranges [`Search::Mse`] tries.
pub(super) const SEARCH_STEPS: usize = 80;

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
pub(super) fn power_2_4<const STEPS: usize>(x: f32) -> f32 {
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
