//! FP8 as DeepSeek and Qwen publish it and transformers reads it (`quant_method` "fp8"). Read, not written.
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | `P.weight` | f8_e4m3 | (out, in) |
//! | `P.weight_scale_inv` | f32, bf16, f16 or f8_e8m0 | a scale for each block of `weight_block_size`, or one |
//!
//! Whatever its name says, the weight is the code *times* `weight_scale_inv`.

use scruple_weights::Dtype;
use serde_json::Value;

use super::{More, Result, Rules, Source, error, expect_scales, field};
use crate::{
    grid::ScaleDtype,
    weight::{CompressedWeight, Float8Scales, Float8Weight, float8},
};

pub(super) struct Fp8;

impl Rules for Fp8 {
    fn name(&self) -> &'static str {
        "fp8"
    }

    fn more(&self, config: &Value) -> Result<More, String> {
        for key in ["fmt", "weight_fmt"] {
            if let Some(other) =
                field(config, key).filter(|fmt| !matches!(fmt.as_str(), Some("e4m3" | "float8_e4m3fn")))
            {
                return Err(format!("has `{key}` {other}, which is not read here, only \"e4m3\" is"));
            }
        }
        let mut float8 = vec![Float8Scales::Tensor];
        if let Some(block) = field(config, "weight_block_size") {
            float8.insert(0, Float8Scales::Block(block_size(block)?));
        }
        Ok(More { float8, rounds_activations: true })
    }

    fn decode(&self, source: &Source<'_>) -> Result<CompressedWeight> {
        float8_weight(source, "weight_scale_inv").map(CompressedWeight::Float8)
    }

    fn marks(&self) -> &'static [&'static str] {
        &["weight_scale_inv"]
    }

    fn parts(&self) -> &'static [&'static str] {
        &["weight", "weight_scale_inv", "activation_scale", "input_scale"]
    }

    fn shape(&self, source: &Source<'_>) -> Result<Vec<usize>> {
        Ok(source.checkpoint.tensor(&format!("{}.weight", source.linear))?.shape().to_vec())
    }
}

/// (rows, columns) of a block in a configuration.
pub(super) fn block_size(block: &Value) -> Result<[usize; 2], String> {
    let side = |at: usize| block.get(at).and_then(Value::as_u64).filter(|&side| side > 0 && side <= 1 << 24);
    match (block.as_array().map(Vec::len), side(0), side(1)) {
        (Some(2), Some(rows), Some(columns)) => Ok([rows as usize, columns as usize]),
        _ => Err(format!("has blocks of {block}, expected two positive numbers")),
    }
}

/// The eight-bit floats in `P.weight` with the scales in `P.{part}`, shared out as the configuration says.
pub(super) fn float8_weight(source: &Source<'_>, part: &str) -> Result<Float8Weight> {
    let (weight, out_features, in_features) = source.matrix("weight", Dtype::F8E4M3)?;
    let shape = (out_features, in_features);
    let scale = source.checkpoint.tensor(&format!("{}.{part}", source.linear))?;
    let scale_dtype = match scale.dtype() {
        Dtype::F16 => ScaleDtype::F16,
        Dtype::Bf16 => ScaleDtype::Bf16,
        Dtype::F32 | Dtype::F8E8M0 => ScaleDtype::F32,
        other => return Err(error(&scale, format!("has type {other}, expected F32, BF16, F16 or F8_E8M0"))),
    };
    let fits = |layout: &&Float8Scales| match layout {
        Float8Scales::Tensor => matches!(scale.shape(), [] | [1] | [1, 1]),
        Float8Scales::Channel => *scale.shape() == [out_features, 1] || *scale.shape() == [out_features],
        Float8Scales::Block(_) => *scale.shape() == layout.count(shape),
    };
    let known = &source.quantization.more.float8;
    let Some(&layout) = known.iter().find(fits) else {
        let known: Vec<String> = known.iter().map(|layout| format!("{:?}", layout.count(shape))).collect();
        let what = format!(
            "has shape {:?}, expected {} by the configuration",
            scale.shape(),
            if known.is_empty() { "no eight-bit floats".into() } else { known.join(" or ") }
        );
        return Err(error(&scale, what));
    };
    let scales = scale.to_f32()?;
    expect_scales(&scale, &scales, layout.count(shape)[1])?;
    let codes = weight.bytes().to_vec();
    if let Some(at) = codes.iter().position(|&code| float8::VALUES[usize::from(code)].is_nan()) {
        return Err(error(&weight, format!("holds NaN at [{}, {}]", at / in_features, at % in_features)));
    }
    Ok(Float8Weight { out_features, in_features, layout, scale_dtype, codes, scales })
}
