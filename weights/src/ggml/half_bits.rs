//! f32 to f16 by integer arithmetic, so that the compiler can do many at once.

use crate::dispatch;

/// The bits of the f16 nearest to `value`, ties to even; too large becomes infinite, NaN stays NaN.
#[inline(always)]
pub(super) fn f16_bits(value: f32) -> u16 {
    /// 2⁻¹⁴, the smallest normal f16, and the smallest f32 that rounds to infinity, as bits.
    const NORMAL: u32 = 0x3880_0000;
    const INFINITE: u32 = 0x477f_f000;
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16) & 0x8000, bits & 0x7fff_ffff);
    // The last place of 0.5 is worth 2⁻²⁴, as is a subnormal f16's: the addition rounds to it.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    // The exponents' biases differ by 112; 13 bits go, and the last that stays breaks ties.
    let normal = magnitude.wrapping_add(0xfff).wrapping_add((magnitude >> 13) & 1).wrapping_sub(112 << 23) >> 13;
    let special = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    let rounded = if magnitude < NORMAL { subnormal } else { normal };
    (sign | if magnitude >= INFINITE { special } else { rounded }) as u16
}

/// Whether f16 bits are a finite number.
#[inline(always)]
pub(super) fn is_finite(bits: u16) -> bool {
    bits & 0x7c00 != 0x7c00
}

/// f16 bits as f32: exact.
#[inline(always)]
pub(super) fn wide(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

dispatch! {
    /// Every value as an f16; false if a finite one has become infinite.
    pub(super) fn f16(values: &[f32], out: &mut [u8]) -> bool = f16_body
}

#[inline(always)]
fn f16_body(values: &[f32], out: &mut [u8]) -> bool {
    let mut lost = 0;
    for (&value, out) in values.iter().zip(out.as_chunks_mut::<2>().0) {
        let bits = f16_bits(value);
        lost |= u32::from(!is_finite(bits)) & u32::from(value.is_finite());
        *out = bits.to_le_bytes();
    }
    lost == 0
}
