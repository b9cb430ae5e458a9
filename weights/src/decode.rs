//! Element decoding: bytes of any type to f32 and bf16, and the search for values that are not finite.
//!
//! The loops run over fixed-size byte chunks so that the compiler turns them into vector code; bytes on disk need not
//! be aligned.

use half::{bf16, f16};

use crate::Dtype;

/// Elements handled at a time where an intermediate copy is needed: a multiple of every block length, small enough
/// that the copy stays in the first-level cache.
const CHUNK: usize = 2048;

/// The f32 of every FP8 E4M3 code, in the `fn` variant: bias 7, no infinities, only S.1111.111 is NaN.
static F8E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let exponent = (code >> 3) & 15;
        let mantissa = code & 7;
        let magnitude = match (exponent, mantissa) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa as f32 / 512.0, // m · 2⁻⁹
            _ => (8 + mantissa) as f32 * f32::from_bits(((exponent + 127 - 10) as u32) << 23), // (8 + m) · 2^(e - 10)
        };
        table[code] = if code & 0x80 == 0 { magnitude } else { -magnitude };
        code += 1;
    }
    table
};

/// The f32 of an eight-bit code with `mantissa_bits` in the `fnuz` variants: no infinities, no negative zero (that code
/// is the only NaN), and a bias one higher than IEEE's rule would give (Noune et al. 2022).
fn fnuz(code: u8, mantissa_bits: u32) -> f32 {
    if code == 0x80 {
        return f32::NAN;
    }
    let bias = 1 << (6 - mantissa_bits); // 8 for E4M3, 16 for E5M2
    let exponent = i32::from(code & 0x7f) >> mantissa_bits;
    let mantissa = i32::from(code) & ((1 << mantissa_bits) - 1);
    let (whole, exponent) = if exponent == 0 { (mantissa, 1) } else { (mantissa + (1 << mantissa_bits), exponent) };
    let magnitude = whole as f32 * 2f32.powi(exponent - bias - mantissa_bits as i32);
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// 2^(code - 127), the scale of a microscaling block; 255 is NaN (OCP MX v1.0, section 5.4.1).
fn e8m0(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(1 << 22), // 2⁻¹²⁷ is subnormal in f32
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// Decodes `bytes`, `out.len()` elements of `dtype`, to f32. Complex numbers and packed elements that mean nothing
/// without their scales are refused with a sentence.
pub(crate) fn to_f32(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), String> {
    debug_assert_eq!(dtype.bytes(out.len()), Some(bytes.len()));
    match dtype {
        Dtype::F64 => map(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::F32 => map(bytes, out, f32::from_le_bytes),
        Dtype::F16 => f16_to_f32(bytes, out),
        Dtype::Bf16 => map(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        Dtype::F8E4M3 => map(bytes, out, |[b]| F8E4M3[b as usize]),
        // E5M2 is the upper byte of an f16.
        Dtype::F8E5M2 => {
            let mut copy = [[0; 2]; CHUNK];
            for (bytes, out) in bytes.chunks(CHUNK).zip(out.chunks_mut(CHUNK)) {
                let copy = &mut copy[..out.len()];
                map(bytes, copy, |[b]| [0, b]);
                f16_to_f32(copy.as_flattened(), out);
            }
        }
        Dtype::F8E4M3Fnuz => map(bytes, out, |[b]| fnuz(b, 3)),
        Dtype::F8E5M2Fnuz => map(bytes, out, |[b]| fnuz(b, 2)),
        Dtype::F8E8M0 => map(bytes, out, |[b]| e8m0(b)),
        Dtype::C64 => {
            return Err("holds complex numbers (C64), which have no real value; take their parts apart first".into());
        }
        Dtype::F6E2M3 | Dtype::F6E3M2 | Dtype::F4 => {
            return Err(format!(
                "holds packed {dtype} elements, whose values depend on the scales of a quantised layer; dequantise the model first"
            ));
        }
        Dtype::I64 => map(bytes, out, |b| i64::from_le_bytes(b) as f32),
        Dtype::I32 => map(bytes, out, |b| i32::from_le_bytes(b) as f32),
        Dtype::I16 => map(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        Dtype::I8 => map(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
        Dtype::U64 => map(bytes, out, |b| u64::from_le_bytes(b) as f32),
        Dtype::U32 => map(bytes, out, |b| u32::from_le_bytes(b) as f32),
        Dtype::U16 => map(bytes, out, |b| f32::from(u16::from_le_bytes(b))),
        Dtype::U8 => map(bytes, out, |[b]| f32::from(b)),
        Dtype::Bool => map(bytes, out, |[b]| f32::from(u8::from(b != 0))),
        Dtype::Q4_0
        | Dtype::Q4_1
        | Dtype::Q5_0
        | Dtype::Q5_1
        | Dtype::Q8_0
        | Dtype::Q2K
        | Dtype::Q3K
        | Dtype::Q4K
        | Dtype::Q5K
        | Dtype::Q6K => crate::format::gguf::dequantize(dtype, bytes, out),
    }
    Ok(())
}

/// Decodes `bytes`, `out.len()` elements of `dtype`, to bf16, rounding to nearest even (by way of f32).
pub(crate) fn to_bf16(dtype: Dtype, bytes: &[u8], out: &mut [bf16]) -> Result<(), String> {
    if dtype == Dtype::Bf16 {
        map(bytes, out, bf16::from_le_bytes);
        return Ok(());
    }
    let mut copy = [0.0; CHUNK];
    for (bytes, out) in chunks(dtype, bytes).zip(out.chunks_mut(CHUNK)) {
        let copy = &mut copy[..out.len()];
        to_f32(dtype, bytes, copy)?;
        round_to_bf16(copy, out);
    }
    Ok(())
}

/// f16 to f32, which is exact.
fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") && std::arch::is_x86_feature_detected!("f16c") {
        // SAFETY: the processor has both features.
        return unsafe { x86::f16_to_f32(bytes, out) };
    }
    f16_to_f32_portable(bytes, out);
}

fn f16_to_f32_portable(bytes: &[u8], out: &mut [f32]) {
    map(bytes, out, |b| f16::from_le_bytes(b).to_f32());
}

/// f32 to bf16, nearest even; a NaN stays one.
fn round_to_bf16(from: &[f32], to: &mut [bf16]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature.
        return unsafe { x86::round_to_bf16(from, to) };
    }
    round_to_bf16_portable(from, to);
}

#[inline(always)] // so that the compiler makes a version of it for the caller's instruction set
fn round_to_bf16_portable(from: &[f32], to: &mut [bf16]) {
    for (to, &from) in to.iter_mut().zip(from) {
        let bits = from.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let nan = bits >> 16 | 0x40;
        *to = bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded } as u16);
    }
}

/// The same functions for wider vectors than every x86 processor has.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};

    use super::bf16;

    #[target_feature(enable = "avx,f16c")]
    pub(super) fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
        let (eights, rest) = out.as_chunks_mut::<8>();
        let (halves, halves_rest) = bytes.as_chunks::<16>();
        for (out, halves) in eights.iter_mut().zip(halves) {
            // SAFETY: 16 bytes are read from an array of 16 bytes and 8 floats are written to an array of 8 floats; both
            // instructions accept any alignment.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast()))) };
        }
        super::f16_to_f32_portable(halves_rest, rest);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn round_to_bf16(from: &[f32], to: &mut [bf16]) {
        super::round_to_bf16_portable(from, to);
    }
}

/// The first element that is no finite f32, with its index.
pub(crate) fn nonfinite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, f32)> {
    if !dtype.is_float() {
        return None;
    }
    let mut copy = [0.0; CHUNK];
    for (index, bytes) in chunks(dtype, bytes).enumerate() {
        // Plain types are judged on their bits: an exponent of all ones.
        let suspect = match dtype {
            // From 2¹²⁷ on an f64 may round to an infinite f32; the decoded value decides.
            Dtype::F64 => any(bytes, |[.., a, b, c, d]: [u8; 8]| {
                u32::from_le_bytes([a, b, c, d]) & 0x7ff0_0000 >= (1023 + 127) << 20
            }),
            Dtype::F32 => any(bytes, |b: [u8; 4]| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
            Dtype::F16 => any(bytes, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
            Dtype::Bf16 => any(bytes, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
            Dtype::F8E4M3 => any(bytes, |[b]: [u8; 1]| b & 0x7f == 0x7f),
            Dtype::F8E5M2 => any(bytes, |[b]: [u8; 1]| b & 0x7c == 0x7c),
            _ => true,
        };
        if !suspect {
            continue;
        }
        let (block, size) = dtype.block();
        let copy = &mut copy[..bytes.len() / size * block];
        to_f32(dtype, bytes, copy).ok()?;
        if let Some(at) = copy.iter().position(|value| !value.is_finite()) {
            return Some((index * CHUNK + at, copy[at]));
        }
    }
    None
}

/// `bytes` in pieces of [`CHUNK`] elements.
fn chunks(dtype: Dtype, bytes: &[u8]) -> std::slice::Chunks<'_, u8> {
    let (block, size) = dtype.block();
    bytes.chunks(CHUNK / block * size)
}

/// Whether any element of `N` bytes satisfies `test`; without an early exit, so that it vectorises.
fn any<const N: usize>(bytes: &[u8], test: impl Fn([u8; N]) -> bool) -> bool {
    bytes.as_chunks().0.iter().fold(false, |found, &b| found | test(b))
}

/// `out[i] = convert(bytes of element i)`.
fn map<const N: usize, T>(bytes: &[u8], out: &mut [T], convert: impl Fn([u8; N]) -> T) {
    for (out, &b) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = convert(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
        let (block, size) = dtype.block();
        let mut out = vec![f32::MAX; bytes.len() / size * block];
        to_f32(dtype, bytes, &mut out).unwrap();
        out
    }

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }

    /// The definition of a small float: sign, exponent with its bias, mantissa.
    fn definition(code: u32, exponent_bits: u32, mantissa_bits: u32) -> f64 {
        let bias = (1i32 << (exponent_bits - 1)) - 1;
        let exponent = (code >> mantissa_bits & ((1 << exponent_bits) - 1)) as i32;
        let mantissa = f64::from(code & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
        let magnitude = match exponent {
            0 => mantissa * 2f64.powi(1 - bias),
            _ => (1.0 + mantissa) * 2f64.powi(exponent - bias),
        };
        if code >> (exponent_bits + mantissa_bits) & 1 == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn every_f8_and_f16_code_agrees_with_the_definition() {
        for code in 0..=255u8 {
            let e4m3 = if code & 0x7f == 0x7f { f32::NAN } else { definition(code.into(), 4, 3) as f32 };
            assert!(same(decode(Dtype::F8E4M3, &[code])[0], e4m3), "{code:#04x}");
            let e5m2 = match code & 0x7f {
                0x7c => f32::INFINITY.copysign(if code & 0x80 == 0 { 1.0 } else { -1.0 }),
                0x7d.. => f32::NAN,
                _ => definition(code.into(), 5, 2) as f32,
            };
            assert!(same(decode(Dtype::F8E5M2, &[code])[0], e5m2), "{code:#04x}");
        }
        let codes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for (code, value) in decode(Dtype::F16, &codes).into_iter().enumerate() {
            let expected = match code & 0x7fff {
                0x7c00 => f32::INFINITY.copysign(if code & 0x8000 == 0 { 1.0 } else { -1.0 }),
                0x7c01.. => f32::NAN,
                _ => definition(code as u32, 5, 10) as f32,
            };
            assert!(same(value, expected), "{code:#06x}: {value} {expected}");
        }
    }

    #[test]
    fn codes_of_the_fnuz_types_and_of_block_scales() {
        for code in 0..=255u8 {
            for (dtype, exponent_bits, mantissa_bits) in [(Dtype::F8E4M3Fnuz, 4, 3), (Dtype::F8E5M2Fnuz, 5, 2)] {
                // One more in the bias halves every value.
                let expected = definition(code.into(), exponent_bits, mantissa_bits) as f32 / 2.0;
                let expected = if code == 0x80 { f32::NAN } else { expected };
                assert!(same(decode(dtype, &[code])[0], expected), "{dtype} {code:#04x}");
            }
            let scale = if code == 255 { f32::NAN } else { 2f64.powi(i32::from(code) - 127) as f32 };
            assert!(same(decode(Dtype::F8E8M0, &[code])[0], scale), "{code:#04x}");
        }
        assert_eq!(nonfinite(Dtype::F8E8M0, &[127, 255]).unwrap().0, 1);
        for dtype in [Dtype::C64, Dtype::F4, Dtype::F6E2M3, Dtype::F6E3M2] {
            let (block, size) = dtype.block();
            assert!(to_f32(dtype, &vec![0; size], &mut vec![0.0; block]).is_err());
            assert_eq!(nonfinite(dtype, &vec![255; 64 * size]), None);
        }
    }

    #[test]
    fn known_codes() {
        // Largest, smallest normal, smallest subnormal of each format (OCP FP8 table 2; IEEE 754).
        assert_eq!(
            decode(Dtype::F8E4M3, &[0x7e, 0x08, 0x01, 0xfe, 0x80]),
            [448.0, 2f32.powi(-6), 2f32.powi(-9), -448.0, -0.0]
        );
        assert_eq!(
            decode(Dtype::F8E5M2, &[0x7b, 0x04, 0x01, 0xfb]),
            [57344.0, 2f32.powi(-14), 2f32.powi(-16), -57344.0]
        );
        assert_eq!(
            decode(Dtype::F16, &[0xff, 0x7b, 0x00, 0x04, 0x01, 0x00]),
            [65504.0, 2f32.powi(-14), 2f32.powi(-24)]
        );
        assert_eq!(
            decode(Dtype::Bf16, &[0x80, 0x3f, 0x49, 0xc0, 0x01, 0x00]),
            [1.0, -3.140625, f32::from_bits(0x10000)]
        );
    }

    #[test]
    fn whole_numbers_and_bools() {
        assert_eq!(decode(Dtype::I8, &[0x80, 0x7f]), [-128.0, 127.0]);
        assert_eq!(decode(Dtype::U8, &[0x80, 0xff]), [128.0, 255.0]);
        assert_eq!(decode(Dtype::Bool, &[0, 1, 2]), [0.0, 1.0, 1.0]);
        assert_eq!(decode(Dtype::I16, &i16::MIN.to_le_bytes()), [-32768.0]);
        assert_eq!(decode(Dtype::U16, &u16::MAX.to_le_bytes()), [65535.0]);
        assert_eq!(decode(Dtype::I32, &i32::MIN.to_le_bytes()), [-2147483648.0]);
        assert_eq!(decode(Dtype::U32, &u32::MAX.to_le_bytes()), [4294967296.0]);
        assert_eq!(decode(Dtype::I64, &(-3i64).to_le_bytes()), [-3.0]);
        assert_eq!(decode(Dtype::U64, &u64::MAX.to_le_bytes()), [2f32.powi(64)]);
        assert_eq!(decode(Dtype::F64, &0.1f64.to_le_bytes()), [0.1]);
    }

    #[test]
    fn rounding_to_bf16_is_that_of_half_on_every_path() {
        let mut seed = 1u32;
        let mut values: Vec<f32> = (0..50_000)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f32::from_bits(seed ^ seed >> 15)
            })
            .collect();
        values.extend([
            0.0,
            -0.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN,
            f32::NAN,
            f32::from_bits(0x7f80_0001),
        ]);
        values.extend(
            (0..=u16::MAX)
                .flat_map(|code| [0x7fff, 0x8000, 0x8001].map(|low| f32::from_bits(u32::from(code) << 16 | low))),
        );
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut fast = vec![bf16::ZERO; values.len()];
        to_bf16(Dtype::F32, &bytes, &mut fast).unwrap();
        let mut portable = fast.clone();
        round_to_bf16_portable(&values, &mut portable);
        for ((value, fast), portable) in values.iter().zip(fast).zip(portable) {
            assert_eq!(fast.to_bits(), bf16::from_f32(*value).to_bits(), "{value}");
            assert_eq!(fast.to_bits(), portable.to_bits(), "{value}");
        }
    }

    #[test]
    fn bf16_is_copied_bit_for_bit() {
        let codes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![bf16::ZERO; 1 << 16];
        to_bf16(Dtype::Bf16, &codes, &mut out).unwrap();
        assert!(out.iter().enumerate().all(|(code, value)| value.to_bits() == code as u16));
    }

    #[test]
    fn finds_the_first_value_that_is_not_finite() {
        let len = 3 * CHUNK + 5;
        for (dtype, finite, bad) in [
            (Dtype::F64, 1e38f64.to_le_bytes().to_vec(), f64::NAN.to_le_bytes().to_vec()),
            (Dtype::F64, 3.4e38f64.to_le_bytes().to_vec(), 1e39f64.to_le_bytes().to_vec()),
            (Dtype::F32, f32::MAX.to_le_bytes().to_vec(), f32::NEG_INFINITY.to_le_bytes().to_vec()),
            (Dtype::F16, f16::MAX.to_le_bytes().to_vec(), f16::INFINITY.to_le_bytes().to_vec()),
            (Dtype::Bf16, bf16::MIN.to_le_bytes().to_vec(), bf16::NAN.to_le_bytes().to_vec()),
            (Dtype::F8E4M3, vec![0xfe], vec![0xff]),
            (Dtype::F8E5M2, vec![0x7b], vec![0xfc]),
        ] {
            let mut bytes = finite.repeat(len);
            assert_eq!(nonfinite(dtype, &bytes), None, "{dtype}");
            for at in [len - 1, 2 * CHUNK, CHUNK - 1, 0] {
                bytes[at * bad.len()..(at + 1) * bad.len()].copy_from_slice(&bad);
                let (index, value) = nonfinite(dtype, &bytes).unwrap();
                assert_eq!((index, value.is_finite()), (at, false), "{dtype}");
            }
        }
        assert_eq!(nonfinite(Dtype::I32, &[0xff; 64]), None);
    }
}
