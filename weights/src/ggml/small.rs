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
use crate::dispatch;

dispatch! {
    /// Q4_0; false if a scale is beyond f16. So are the others here.
    pub(super) fn q4_0(values: &[f32], out: &mut [u8]) -> bool = q4_0_body
}
dispatch! { pub(super) fn q4_1(values: &[f32], out: &mut [u8]) -> bool = q4_1_body }
dispatch! { pub(super) fn q5_0(values: &[f32], out: &mut [u8]) -> bool = q5_0_body }
dispatch! { pub(super) fn q5_1(values: &[f32], out: &mut [u8]) -> bool = q5_1_body }
dispatch! { pub(super) fn q8_0(values: &[f32], out: &mut [u8]) -> bool = q8_0_body }

/// Runs `encode` over blocks of 32 values and `B` bytes.
#[inline(always)]
fn each<const B: usize>(values: &[f32], out: &mut [u8], encode: impl Fn(&[f32; 32], &mut [u8; B]) -> bool) -> bool {
    let mut held = true;
    for (values, out) in values.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<B>().0) {
        held &= encode(values, out);
    }
    held
}

#[inline(always)]
fn q4_0_body(values: &[f32], out: &mut [u8]) -> bool {
    each(values, out, |x, out: &mut [u8; 18]| {
        let (d, inverse) = scale(extreme(x) / -8.0);
        out[..2].copy_from_slice(&d.to_le_bytes());
        pack_nibbles(&codes(x, |x| cut(x * inverse + 8.5).min(15), inverse), &mut out[2..]);
        is_finite(d)
    })
}

#[inline(always)]
fn q4_1_body(values: &[f32], out: &mut [u8]) -> bool {
    each(values, out, |x, out: &mut [u8; 20]| {
        let (min, max) = range(x);
        let ((d, inverse), m) = (scale((max - min) / 15.0), f16_bits(min));
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..4].copy_from_slice(&m.to_le_bytes());
        pack_nibbles(&codes(x, |x| cut((x - min) * inverse + 0.5).min(15), inverse), &mut out[4..]);
        is_finite(d) && is_finite(m)
    })
}

#[inline(always)]
fn q5_0_body(values: &[f32], out: &mut [u8]) -> bool {
    each(values, out, |x, out: &mut [u8; 22]| {
        let (d, inverse) = scale(extreme(x) / -16.0);
        let codes = codes(x, |x| cut(x * inverse + 16.5).min(31), inverse);
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..6].copy_from_slice(&fifth_bits(&codes).to_le_bytes());
        pack_nibbles(&codes, &mut out[6..]);
        is_finite(d)
    })
}

#[inline(always)]
fn q5_1_body(values: &[f32], out: &mut [u8]) -> bool {
    each(values, out, |x, out: &mut [u8; 24]| {
        let (min, max) = range(x);
        let ((d, inverse), m) = (scale((max - min) / 31.0), f16_bits(min));
        let codes = codes(x, |x| cut((x - min) * inverse + 0.5), inverse);
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..4].copy_from_slice(&m.to_le_bytes());
        out[4..8].copy_from_slice(&fifth_bits(&codes).to_le_bytes());
        pack_nibbles(&codes, &mut out[8..]);
        is_finite(d) && is_finite(m)
    })
}

#[inline(always)]
fn q8_0_body(values: &[f32], out: &mut [u8]) -> bool {
    each(values, out, |x, out: &mut [u8; 34]| {
        let (d, inverse) = scale(largest(&x.map(f32::abs)) / 127.0);
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..].copy_from_slice(&codes(x, |x| low_byte((x * inverse).round()), inverse));
        is_finite(d)
    })
}

/// The f16 of a scale, and 1/d (0 for 0).
#[inline(always)]
fn scale(d: f32) -> (u16, f32) {
    (f16_bits(d), if d == 0.0 { 0.0 } else { 1.0 / d })
}

/// The codes of a block, all 0 if 1/d is infinite.
#[inline(always)]
fn codes(x: &[f32; 32], code: impl Fn(f32) -> u8, inverse: f32) -> [u8; 32] {
    let mut codes = [0; 32];
    if inverse.is_finite() {
        for (code_out, &x) in codes.iter_mut().zip(x) {
            *code_out = code(x);
        }
    }
    codes
}

/// The whole part of a number from 0 to 255.
#[inline(always)]
fn cut(x: f32) -> u8 {
    low_byte(x.trunc())
}

/// Byte j: code j low, code j + 16 high; of wider codes the low four bits.
#[inline(always)]
fn pack_nibbles(codes: &[u8; 32], out: &mut [u8]) {
    for (j, out) in out.iter_mut().enumerate() {
        *out = (codes[j] & 15) | (codes[j + 16] << 4);
    }
}

/// Bit i: the fifth bit of code i.
#[inline(always)]
fn fifth_bits(codes: &[u8; 32]) -> u32 {
    codes.iter().enumerate().fold(0, |bits, (i, &code)| bits | (u32::from(code >> 4) & 1) << i)
}

/// The largest of 32 numbers, in a tree, which the order does not matter to.
#[inline(always)]
fn largest(x: &[f32; 32]) -> f32 {
    fold(x, |a, b| if b > a { b } else { a })
}

#[inline(always)]
fn fold(x: &[f32; 32], pick: impl Fn(f32, f32) -> f32) -> f32 {
    let mut x = *x;
    let mut half = 16;
    while half > 0 {
        for i in 0..half {
            x[i] = pick(x[i], x[i + half]);
        }
        half /= 2;
    }
    x[0]
}

/// The value of largest magnitude, with its sign; the first if there are several.
#[inline(always)]
fn extreme(x: &[f32; 32]) -> f32 {
    let (low, high) = (fold(x, |a, b| if b < a { b } else { a }), largest(x));
    if high > -low {
        high
    } else if -low > high {
        low
    } else if high == 0.0 {
        0.0
    } else {
        x.iter().copied().find(|value| value.abs() == high).unwrap_or(high)
    }
}

/// Smallest and largest value. Of zeros of both signs the first counts: its sign is stored.
#[inline(always)]
fn range(x: &[f32; 32]) -> (f32, f32) {
    let (low, high) = (fold(x, |a, b| if b < a { b } else { a }), largest(x));
    if low != 0.0 {
        return (low, high);
    }
    let low = x.iter().copied().find(|&value| value == 0.0).unwrap_or(low);
    (low, if high == 0.0 { low } else { high })
}
