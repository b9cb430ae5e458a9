//! Numbers as ggml's blocks: the other direction of [`dequantize`](crate::format::gguf::dequantize).
//!
//! ```text
//! values f32 ─ quantize(dtype) ─► blocks of 32 (Q4_0 … Q8_0) or 256 (Q2_K … Q6_K), or plain F32, F16, BF16
//! ```
//!
//! The bytes are those that ggml's own quantiser writes when it has no importance matrix, so a file made here and one
//! made there can be compared byte by byte. That fixes more than the formulas: which of two equal extremes gives the
//! sign, the order of every sum, and where a number is rounded. The loops therefore never split a sum. Where one
//! needs a search (the K types), sixteen sub-blocks are searched side by side, one to a lane, each in the order
//! of the definition.
//!
//! Layouts are documented with the decoders; formulas in `small` (blocks of 32), `with_min` (Q2_K, Q4_K, Q5_K) and
//! `signed` (Q3_K, Q6_K). A scalar twin of each, written for reading, is what the tests hold them to.

use half::bf16;

use crate::{Dtype, decode};

mod half_bits;
mod lanes;
mod small;

mod signed;
mod with_min;

#[cfg(test)]
mod naive;
#[cfg(test)]
mod tests;

/// The types [`quantize`] writes, in ggml's order.
pub const WRITTEN: [Dtype; 13] = [
    Dtype::F32,
    Dtype::F16,
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::Q8_0,
    Dtype::Q2K,
    Dtype::Q3K,
    Dtype::Q4K,
    Dtype::Q5K,
    Dtype::Q6K,
    Dtype::Bf16,
];

/// Encodes `values` (finite, whole blocks) as `dtype` into `out`.
///
/// # Errors
/// The index of the first value that F16 or BF16 cannot hold, or of the first value of the first block whose scale or
/// minimum f16 cannot hold. What stands in `out` then means nothing.
///
/// # Panics
/// If `out` is not exactly what `values` take, or `dtype` is not one of [`WRITTEN`]: both are mistakes of the caller.
pub fn quantize(dtype: Dtype, values: &[f32], out: &mut [u8]) -> Result<(), usize> {
    assert_eq!(dtype.bytes(values.len()), Some(out.len()), "{} values of {dtype} were given other bytes", values.len());
    let encode: fn(&[f32], &mut [u8]) -> bool = match dtype {
        Dtype::F32 => {
            for (value, out) in values.iter().zip(out.as_chunks_mut::<4>().0) {
                *out = value.to_le_bytes();
            }
            return Ok(());
        }
        Dtype::F16 => half_bits::f16,
        Dtype::Bf16 => bf16_bytes,
        Dtype::Q4_0 => small::q4_0,
        Dtype::Q4_1 => small::q4_1,
        Dtype::Q5_0 => small::q5_0,
        Dtype::Q5_1 => small::q5_1,
        Dtype::Q8_0 => small::q8_0,
        Dtype::Q2K => with_min::q2_k,
        Dtype::Q3K => signed::q3_k,
        Dtype::Q4K => with_min::q4_k,
        Dtype::Q5K => with_min::q5_k,
        Dtype::Q6K => signed::q6_k,
        _ => panic!("{dtype} is not written as blocks"),
    };
    if encode(values, out) {
        return Ok(());
    }
    // Something overflowed: find out where, block by block.
    let (block, bytes) = dtype.block();
    let mut blocks = values.chunks_exact(block).zip(out.chunks_exact_mut(bytes));
    Err(blocks.position(|(values, out)| !encode(values, out)).unwrap_or(0) * block)
}

/// Writes a block of 32 numbers `d · integers` as they are: `scale` are the bits of `d` as f16. False, and nothing written,
/// if `dtype` is none of Q4_0, Q5_0 and Q8_0, or cannot hold one of the integers.
///
/// # Panics
/// If `out` is not one block of `dtype`.
pub fn write_integers(dtype: Dtype, scale: u16, integers: &[i8; 32], out: &mut [u8]) -> bool {
    small::write_integers(dtype, scale, integers, out)
}

/// bf16 as stored (little endian) to f32, exactly.
///
/// # Panics
/// If `bytes` are not two for each number of `out`.
pub fn widen_bf16(bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), 2 * out.len(), "bf16 takes two bytes a number");
    let widened = decode::to_f32(Dtype::Bf16, bytes, out);
    debug_assert_eq!(widened, Ok(()), "bf16 is always read");
}

fn bf16_bytes(values: &[f32], out: &mut [u8]) -> bool {
    let mut held = true;
    for (&value, out) in values.iter().zip(out.as_chunks_mut::<2>().0) {
        let half = bf16::from_f32(value);
        held &= half.is_finite() || !value.is_finite();
        *out = half.to_le_bytes();
    }
    held
}
