//! ggml's blocks as numbers, in the operation order of the `gguf` Python package (0.19), so that every bit agrees.
//!
//! The letters are ggml's: `d` scales, `m`/`dmin` is the minimum, `q` is a code; `qs`/`ql` hold the low bits of the
//! codes and `qh`/`hmask` the high ones. A K-block has 256 codes in sub-blocks of 16 or 32, whose own small scales
//! `sc` are multiplied by `d` first; all arithmetic is f32 and nothing is fused.
//!
//! Layouts: <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>.

use half::{bf16, f16};

use crate::Dtype;

/// Decodes `bytes` of a GGUF tensor into `out`, one f32 for each element.
///
/// Block types need whole blocks; F64 (rounded), F32, F16 and BF16 are decoded too, so that this reads any real-valued
/// tensor a GGUF holds. The bytes need no alignment.
///
/// # Panics
/// If `bytes` is not exactly what `out.len()` elements of `dtype` take, or if GGUF has no such real-valued type: both
/// are mistakes of the caller, as a [`Gguf`](super::Gguf) only hands out tensors whose sizes were checked.
pub fn dequantize(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        dtype.bytes(out.len()),
        Some(bytes.len()),
        "{} elements of {dtype} were asked of other bytes",
        out.len()
    );
    match dtype {
        Dtype::F64 => each(bytes, out, |x: [u8; 8], out: &mut [f32; 1]| out[0] = f64::from_le_bytes(x) as f32),
        Dtype::F32 => each(bytes, out, |x: [u8; 4], out: &mut [f32; 1]| out[0] = f32::from_le_bytes(x)),
        Dtype::F16 => each(bytes, out, |x: [u8; 2], out: &mut [f32; 1]| out[0] = f16::from_le_bytes(x).to_f32()),
        Dtype::Bf16 => each(bytes, out, |x: [u8; 2], out: &mut [f32; 1]| out[0] = bf16::from_le_bytes(x).to_f32()),
        Dtype::Q4_0 => each(bytes, out, q4_0),
        Dtype::Q4_1 => each(bytes, out, q4_1),
        Dtype::Q5_0 => each(bytes, out, q5_0),
        Dtype::Q5_1 => each(bytes, out, q5_1),
        Dtype::Q8_0 => each(bytes, out, q8_0),
        Dtype::Q2K => each(bytes, out, q2_k),
        Dtype::Q3K => each(bytes, out, q3_k),
        Dtype::Q4K => each(bytes, out, q4_k),
        Dtype::Q5K => each(bytes, out, q5_k),
        Dtype::Q6K => each(bytes, out, q6_k),
        _ => panic!("{dtype} is not a real-valued type of GGUF"),
    }
}

/// Runs `decode` over blocks of `B` bytes and `N` elements. The lengths match: the caller has checked them.
fn each<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; B], &mut [f32; N])) {
    let (blocks, outs) = (bytes.as_chunks::<B>().0, out.as_chunks_mut::<N>().0);
    for (block, out) in blocks.iter().zip(outs) {
        decode(*block, out);
    }
}

/// The f16 at byte `at`.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// d f16 · 16 bytes, byte j = code j (low) and code j + 16 (high).
fn q4_0(block: [u8; 18], out: &mut [f32; 32]) {
    let d = half_at(&block, 0);
    for (j, &q) in block[2..].iter().enumerate() {
        out[j] = d * f32::from((q & 15) as i8 - 8);
        out[j + 16] = d * f32::from((q >> 4) as i8 - 8);
    }
}

/// d f16 · m f16 · 16 bytes of nibbles as in [`q4_0`].
fn q4_1(block: [u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(&block, 0), half_at(&block, 2));
    for (j, &q) in block[4..].iter().enumerate() {
        out[j] = d * f32::from(q & 15) + m;
        out[j + 16] = d * f32::from(q >> 4) + m;
    }
}

/// d f16 · qh u32, bit i = fifth bit of code i · 16 bytes of nibbles as in [`q4_0`].
fn q5_0(block: [u8; 22], out: &mut [f32; 32]) {
    let d = half_at(&block, 0);
    let qh = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (j, &q) in block[6..].iter().enumerate() {
        out[j] = d * f32::from(((q & 15) | fifth(qh, j)) as i8 - 16);
        out[j + 16] = d * f32::from(((q >> 4) | fifth(qh, j + 16)) as i8 - 16);
    }
}

/// d f16 · m f16 · qh and nibbles as in [`q5_0`].
fn q5_1(block: [u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(&block, 0), half_at(&block, 2));
    let qh = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for (j, &q) in block[8..].iter().enumerate() {
        out[j] = d * f32::from((q & 15) | fifth(qh, j)) + m;
        out[j + 16] = d * f32::from((q >> 4) | fifth(qh, j + 16)) + m;
    }
}

/// Bit `i` of `qh`, where a code of five bits wants it.
fn fifth(qh: u32, i: usize) -> u8 {
    (((qh >> i) & 1) as u8) << 4
}

/// d f16 · 32 codes i8.
fn q8_0(block: [u8; 34], out: &mut [f32; 32]) {
    let d = half_at(&block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(q as i8) * d;
    }
}

/// 16 bytes scale (low) and minimum (high) of each 16 codes · 64 bytes of codes · d f16 · dmin f16.
/// Each 32 code bytes hold 128 codes: bits 0–1 the first 32, bits 2–3 the next, and so on.
fn q2_k(block: [u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(&block, 80), half_at(&block, 82));
    let qs = &block[16..80];
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (dl, ml) = (d * f32::from(block[group] & 15), dmin * f32::from(block[group] >> 4));
        let (codes, shift) = crumbs(qs, group);
        for (out, &q) in out.iter_mut().zip(codes) {
            *out = dl * f32::from((q >> shift) & 3) - ml;
        }
    }
}

/// Where the 2-bit codes of sub-block `group` (of 16) lie in `qs` (64 bytes): their 16 bytes, and the shift.
fn crumbs(qs: &[u8], group: usize) -> (&[u8], usize) {
    let (half, plane, side) = (group / 8, (group % 8) / 2, group % 2);
    (&qs[half * 32 + side * 16..][..16], plane * 2)
}

/// hmask 32 bytes, bit p of byte j = third bit of code 32 p + j, *inverted* · 64 bytes of 2-bit codes as in [`q2_k`] ·
/// 12 bytes with sixteen 6-bit scales (offset 32) · d f16.
fn q3_k(block: [u8; 110], out: &mut [f32; 256]) {
    let (hmask, qs, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(&block, 108);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = (packed[group % 8] >> (group / 8 * 4)) & 15;
        let high = (packed[8 + group % 4] >> (group / 4 * 2)) & 3;
        let dl = d * f32::from((low | high << 4) as i8 - 32);
        let (codes, shift) = crumbs(qs, group);
        let masks = &hmask[group % 2 * 16..][..16];
        for ((out, &q), &mask) in out.iter_mut().zip(codes).zip(masks) {
            let borrow = if (mask >> (group / 2)) & 1 == 0 { 4 } else { 0 };
            *out = dl * f32::from(((q >> shift) & 3) as i8 - borrow);
        }
    }
}

/// The 6-bit scale and minimum of sub-block `group` (of 8) in the 12 bytes that Q4_K and Q5_K share.
fn scale_min(packed: &[u8], group: usize) -> (f32, f32) {
    let (sc, m) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let (d, m, both) = (packed[group - 4], packed[group], packed[group + 4]);
        ((both & 15) | ((d >> 2) & 48), (both >> 4) | ((m >> 2) & 48))
    };
    (f32::from(sc), f32::from(m))
}

/// d f16 · dmin f16 · 12 bytes of scales and minima · 128 bytes of nibbles: each 32 bytes hold 32 codes low, 32 high.
fn q4_k(block: [u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(&block, 0), half_at(&block, 2));
    let (packed, qs) = (&block[4..16], &block[16..144]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sc, m) = scale_min(packed, group);
        let (dl, ml) = (d * sc, dmin * m);
        let shift = group % 2 * 4;
        for (out, &q) in out.iter_mut().zip(&qs[group / 2 * 32..][..32]) {
            *out = dl * f32::from((q >> shift) & 15) - ml;
        }
    }
}

/// As [`q4_k`], with 32 bytes between scales and nibbles: bit g of byte j = fifth bit of code 32 g + j.
fn q5_k(block: [u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(&block, 0), half_at(&block, 2));
    let (packed, qh, qs) = (&block[4..16], &block[16..48], &block[48..176]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sc, m) = scale_min(packed, group);
        let (dl, ml) = (d * sc, dmin * m);
        let shift = group % 2 * 4;
        for ((out, &q), &h) in out.iter_mut().zip(&qs[group / 2 * 32..][..32]).zip(qh) {
            *out = dl * f32::from(((q >> shift) & 15) | (((h >> group) & 1) << 4)) - ml;
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of high pairs of bits, 16 scales i8, d f16. Each 64 + 32 bytes hold 128 codes
/// (offset 32) in four runs of 32: run r has its nibbles in bytes 32 (r mod 2).., low for r < 2, its pair at bit 2 r.
fn q6_k(block: [u8; 210], out: &mut [f32; 256]) {
    let (ql, qh, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(&block, 208);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let dl = d * f32::from(scales[group] as i8);
        let (half, run, side) = (group / 8, (group % 8) / 2, group % 2 * 16);
        let low = &ql[half * 64 + run % 2 * 32 + side..][..16];
        let high = &qh[half * 32 + side..][..16];
        for ((out, &l), &h) in out.iter_mut().zip(low).zip(high) {
            let q = ((l >> (run / 2 * 4)) & 15) | (((h >> (run * 2)) & 3) << 4);
            *out = dl * f32::from(q as i8 - 32);
        }
    }
}
