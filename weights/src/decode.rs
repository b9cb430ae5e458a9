//! Element decoding: bytes of any type to f32 and bf16, and the search for values that are not finite.
//!
//! The loops run over fixed-size byte chunks so that the compiler turns them into vector code; bytes on disk need not
//! be aligned.

use half::{bf16, f16, slice::HalfFloatSliceExt};

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

/// Decodes `bytes`, `out.len()` elements of `dtype`, to f32.
pub(crate) fn to_f32(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), String> {
    debug_assert_eq!(dtype.bytes(out.len()), Some(bytes.len()));
    match dtype {
        Dtype::F64 => map(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::F32 => map(bytes, out, f32::from_le_bytes),
        Dtype::F16 => {
            let mut copy = [f16::ZERO; CHUNK];
            for (bytes, out) in bytes.chunks(2 * CHUNK).zip(out.chunks_mut(CHUNK)) {
                let copy = &mut copy[..out.len()];
                map(bytes, copy, f16::from_le_bytes);
                copy.convert_to_f32_slice(out);
            }
        }
        Dtype::Bf16 => map(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        Dtype::F8E4M3 => map(bytes, out, |[b]| F8E4M3[b as usize]),
        // E5M2 is the upper byte of an f16.
        Dtype::F8E5M2 => {
            let mut copy = [f16::ZERO; CHUNK];
            for (bytes, out) in bytes.chunks(CHUNK).zip(out.chunks_mut(CHUNK)) {
                let copy = &mut copy[..out.len()];
                map(bytes, copy, |[b]| f16::from_bits(u16::from(b) << 8));
                copy.convert_to_f32_slice(out);
            }
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
        | Dtype::Q6K => return dequantize(dtype, bytes, out),
    }
    Ok(())
}

/// The blocks of `format::gguf`.
fn dequantize(dtype: Dtype, _bytes: &[u8], _out: &mut [f32]) -> Result<(), String> {
    Err(format!("is stored in {dtype} blocks, which cannot be decoded yet"))
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
        map_slice(copy, out);
    }
    Ok(())
}

/// f32 to bf16, nearest even, in a form that vectorises; a NaN stays one.
fn map_slice(from: &[f32], to: &mut [bf16]) {
    for (to, &from) in to.iter_mut().zip(from) {
        let bits = from.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let nan = bits >> 16 | 0x40;
        *to = bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded } as u16);
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
