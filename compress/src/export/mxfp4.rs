//! The microscaling floats of gpt-oss (`quant_method` "mxfp4"; OCP Microscaling Formats 1.0, section 5). Read, not
//! written.
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | `X_blocks` | u8 | (experts, out, groups, 16): 32 numbers of four bits, the first in the lower half |
//! | `X_scales` | u8 | (experts, out, groups): 2^(code − 127) |
//!
//! A number is E2M1: a sign, two bits of exponent, one of mantissa. `X` is (experts, in, out) in the dense model, each
//! expert's weight transposed.

use scruple_weights::{Dtype, TensorView};

use super::{Result, Rules, Source, error, expect_shape};
use crate::weight::{CompressedWeight, DenseWeight};

pub(super) struct Mxfp4;

/// Numbers that share a scale.
const GROUP: usize = 32;

/// The numbers of E2M1, by code.
static E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

impl Rules for Mxfp4 {
    fn name(&self) -> &'static str {
        "mxfp4"
    }

    fn decode(&self, source: &Source<'_>) -> Result<CompressedWeight> {
        let shape = self.shape(source)?;
        if shape[0] != 1 {
            let what = format!("holds {} experts, which are no single linear", shape[0]);
            return Err(error(&part(source, "blocks")?, what));
        }
        self.decode_slice(source, 0)
    }

    fn marks(&self) -> &'static [&'static str] {
        &["blocks"]
    }

    fn parts(&self) -> &'static [&'static str] {
        &["blocks", "scales"]
    }

    fn joint(&self) -> char {
        '_'
    }

    fn dense_name(&self, linear: &str) -> String {
        linear.into()
    }

    fn shape(&self, source: &Source<'_>) -> Result<Vec<usize>> {
        let blocks = part(source, "blocks")?;
        let &[experts, out, groups, 16] = blocks.shape() else {
            let what = format!("has shape {:?}, expected [experts, out, groups, 16]", blocks.shape());
            return Err(error(&blocks, what));
        };
        expect_shape(&part(source, "scales")?, &[experts, out, groups])?;
        Ok(vec![experts, GROUP * groups, out])
    }

    fn slices(&self, shape: &[usize]) -> usize {
        shape[0]
    }

    fn decode_slice(&self, source: &Source<'_>, slice: usize) -> Result<CompressedWeight> {
        let shape = self.shape(source)?;
        let (inputs, outputs) = (shape[1], shape[2]);
        let (blocks, scales) = (part(source, "blocks")?, part(source, "scales")?);
        let groups = inputs / GROUP;
        let count = outputs * groups;
        let mut values = vec![0.0f32; inputs * outputs];
        let codes = blocks.bytes()[16 * count * slice..][..16 * count].as_chunks::<16>().0;
        for (at, (codes, &scale)) in codes.iter().zip(&scales.bytes()[count * slice..][..count]).enumerate() {
            let (output, group) = (at / groups, at % groups);
            if scale == u8::MAX {
                return Err(error(&scales, format!("holds NaN at [{slice}, {output}, {group}]")));
            }
            // 2^(scale − 127) in f64, where no scale is subnormal.
            let unit = f64::from_bits((u64::from(scale) + 1023 - 127) << 52);
            for (i, &byte) in codes.iter().enumerate() {
                for (half, code) in [byte & 15, byte >> 4].into_iter().enumerate() {
                    let input = GROUP * group + 2 * i + half;
                    values[input * outputs + output] = (f64::from(E2M1[usize::from(code)]) * unit) as f32;
                }
            }
        }
        Ok(DenseWeight { out_features: inputs, in_features: outputs, values }.into())
    }
}

/// `X_{part}`, bytes.
fn part(source: &Source<'_>, part: &str) -> Result<TensorView> {
    let tensor = source.checkpoint.tensor(&format!("{}_{part}", source.linear))?;
    if tensor.dtype() != Dtype::U8 {
        return Err(error(&tensor, format!("has type {}, expected U8", tensor.dtype())));
    }
    Ok(tensor)
}
