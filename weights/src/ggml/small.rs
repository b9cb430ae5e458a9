//! Blocks of 32 values: one scale, or a scale and a minimum, and a code for each value.
//!
//! ```text
//! Q4_0, Q5_0   d = e / −8, e / −16     e: the value of largest magnitude, with its sign (the first of equals)
//!              q = min(15, ⌊x/d + 8.5⌋), min(31, ⌊x/d + 16.5⌋)
//! Q4_1, Q5_1   m = min x, d = (max x − m) / 15, / 31,  q = ⌊(x − m)/d + 0.5⌋
//! Q8_0         d = max |x| / 127,  q = x/d rounded, halves away from zero
//! ```
//!
//! `x/d` is `x · (1/d)` with the f32 of `d`, before it is rounded to the f16 that is stored. A `d` so small that
//! 1/d is infinite has all codes 0, which decode to 0 or to `m` as they should.

use super::{
    half_bits::{f16_bits, is_finite},
    lanes::low_byte,
};
use crate::{Dtype, dispatch};

dispatch! {
    /// Q4_0; false if a scale is beyond f16. So are the others here.
    pub(super) fn q4_0(values: &[f32], out: &mut [u8]) -> bool = signed::<4, 18>
}
dispatch! { pub(super) fn q4_1(values: &[f32], out: &mut [u8]) -> bool = from_least::<4, 20> }
dispatch! { pub(super) fn q5_0(values: &[f32], out: &mut [u8]) -> bool = signed::<5, 22> }
dispatch! { pub(super) fn q5_1(values: &[f32], out: &mut [u8]) -> bool = from_least::<5, 24> }
dispatch! { pub(super) fn q8_0(values: &[f32], out: &mut [u8]) -> bool = q8_0_body }

// No closures below: one that is not inlined is compiled without the instructions that `dispatch!` chose.

/// Q4_0 and Q5_0, whose blocks take `B` bytes.
#[inline(always)]
fn signed<const BITS: usize, const B: usize>(values: &[f32], out: &mut [u8]) -> bool {
    let zero = (1 << (BITS - 1)) as f32;
    let mut held = true;
    for (x, out) in values.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<B>().0) {
        let (d, inverse) = scale(extreme(x) / -zero);
        let mut codes = [0; 32];
        if inverse.is_finite() {
            for i in 0..32 {
                codes[i] = cut(x[i] * inverse + (zero + 0.5), 2.0 * zero - 1.0);
            }
        }
        out[..2].copy_from_slice(&d.to_le_bytes());
        pack::<BITS>(&codes, &mut out[2..]);
        held &= is_finite(d);
    }
    held
}

/// Q4_1 and Q5_1, whose blocks take `B` bytes.
#[inline(always)]
fn from_least<const BITS: usize, const B: usize>(values: &[f32], out: &mut [u8]) -> bool {
    let most = ((1 << BITS) - 1) as f32;
    let mut held = true;
    for (x, out) in values.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<B>().0) {
        let (min, max) = range(x);
        let ((d, inverse), m) = (scale((max - min) / most), f16_bits(min));
        let mut codes = [0; 32];
        if inverse.is_finite() {
            for i in 0..32 {
                codes[i] = cut((x[i] - min) * inverse + 0.5, most);
            }
        }
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..4].copy_from_slice(&m.to_le_bytes());
        pack::<BITS>(&codes, &mut out[4..]);
        held &= is_finite(d) & is_finite(m);
    }
    held
}

#[inline(always)]
fn q8_0_body(values: &[f32], out: &mut [u8]) -> bool {
    let mut held = true;
    for (x, out) in values.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<34>().0) {
        let (d, inverse) = scale(f32::from_bits(largest(x)) / 127.0);
        let mut codes = [0; 32];
        if inverse.is_finite() {
            for i in 0..32 {
                codes[i] = low_byte((x[i] * inverse).round());
            }
        }
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..].copy_from_slice(&codes);
        held &= is_finite(d);
    }
    held
}

/// See [`super::write_integers`].
pub(super) fn write_integers(dtype: Dtype, scale: u16, integers: &[i8; 32], out: &mut [u8]) -> bool {
    let zero = match dtype {
        Dtype::Q4_0 => 8,
        Dtype::Q5_0 => 16,
        Dtype::Q8_0 => 0,
        _ => return false,
    };
    if zero != 0 && integers.iter().any(|&integer| integer < -zero || integer >= zero) {
        return false;
    }
    assert_eq!(out.len(), dtype.block().1, "a block of {dtype}");
    let codes = integers.map(|integer| integer.wrapping_add(zero) as u8);
    out[..2].copy_from_slice(&scale.to_le_bytes());
    match dtype {
        Dtype::Q4_0 => pack::<4>(&codes, &mut out[2..]),
        Dtype::Q5_0 => pack::<5>(&codes, &mut out[2..]),
        _ => out[2..].copy_from_slice(&codes),
    }
    true
}

/// The f16 of a scale, and 1/d (0 for 0).
#[inline(always)]
fn scale(d: f32) -> (u16, f32) {
    (f16_bits(d), if d == 0.0 { 0.0 } else { 1.0 / d })
}

/// The whole part of a number ≥ 0, at most `most`.
#[inline(always)]
fn cut(x: f32, most: f32) -> u8 {
    let whole = x.trunc();
    low_byte(if whole < most { whole } else { most })
}

/// Of codes of five bits first the fifth bits, as a word; then nibbles: byte j holds code j low and code j + 16 high.
#[inline(always)]
fn pack<const BITS: usize>(codes: &[u8; 32], mut out: &mut [u8]) {
    if BITS == 5 {
        let (high, rest) = out.split_at_mut(4);
        for (codes, high) in codes.as_chunks::<8>().0.iter().zip(high) {
            // The multiplication brings bit 0 of byte i to bit 56 + i.
            let fifth = (u64::from_le_bytes(*codes) >> 4) & 0x0101_0101_0101_0101;
            *high = (fifth.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
        }
        out = rest;
    }
    let Some(out) = out.first_chunk_mut::<16>() else { return };
    for j in 0..16 {
        out[j] = (codes[j] & 15) | (codes[j + 16] << 4);
    }
}

/// The largest magnitude. Magnitudes have the order of their bits, and integers may be compared in any order, so
/// these are vector loops.
#[inline(always)]
fn largest(x: &[f32; 32]) -> u32 {
    let mut largest = 0;
    for x in x {
        largest = largest.max(x.to_bits() & 0x7fff_ffff);
    }
    largest
}

/// The value of largest magnitude, with its sign; the first if there are several.
#[inline(always)]
fn extreme(x: &[f32; 32]) -> f32 {
    let (low, high) = ends(x);
    if high > -low {
        high
    } else if -low > high {
        low
    } else {
        // Both signs reach it. Of zeros ggml takes none, and keeps its first guess, which is positive.
        x.iter().copied().find(|value| value.abs() == high && high > 0.0).unwrap_or(0.0)
    }
}

/// An integer of the order that the number of these bits has; twice, the bits again.
#[inline(always)]
fn turn(bits: i32) -> i32 {
    bits ^ (bits >> 31 & 0x7fff_ffff)
}

/// Smallest and largest value. Integers may be compared in any order, so this is a vector loop.
#[inline(always)]
fn ends(x: &[f32; 32]) -> (f32, f32) {
    let (mut low, mut high) = (i32::MAX, i32::MIN);
    for x in x {
        let key = turn(x.to_bits() as i32);
        low = low.min(key);
        high = high.max(key);
    }
    (f32::from_bits(turn(low) as u32), f32::from_bits(turn(high) as u32))
}

/// Smallest and largest value. Of zeros of both signs the first counts: its sign is stored.
#[inline(always)]
fn range(x: &[f32; 32]) -> (f32, f32) {
    let (low, high) = ends(x);
    if low != 0.0 {
        return (low, high);
    }
    let low = x.iter().copied().find(|&value| value == 0.0).unwrap_or(low);
    (low, if high == 0.0 { low } else { high })
}
