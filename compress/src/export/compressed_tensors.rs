//! compressed-tensors, the format of llm-compressor and vLLM: `pack-quantized` for integers, `float-quantized` for FP8;
//! `int-quantized` is read too.
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | `P.weight_packed` | i32 | (out, in·b/32), a bit stream along the inputs |
//! | `P.weight_scale` | the model's | (out, groups) |
//! | `P.weight_shape` | i64 | (2): out, in |
//! | `P.weight_zero_point` | i32 | (out·b/32, groups), a bit stream along the outputs; asymmetric only |
//! | `P.weight_g_idx` | i32 | (in), the group of each input column; read, not written |
//!
//! `float-quantized` has `P.weight` f8_e4m3 (out, in) and `P.weight_scale` (1), (out, 1) or a scale a block;
//! `int-quantized` has `P.weight` i8 (out, in), `P.weight_scale` and, asymmetric, `P.weight_zero_point` i8 of its shape.
//!
//! The library means signed codes, `−2^(b−1) ..`, and stores them plus 2^(b−1), which is our unsigned code; zero points
//! likewise. Releases before 2026 put ten 3-bit codes in a word, later ones pack densely, so only 4 and 8 bit are
//! written; groups of their own order (`actorder: "group"`) have been removed from the library.

use scruple_weights::{Dtype, TensorSpec, TensorView};
use serde_json::{Map, Value, json};

use super::{
    GptqVersion, Layout, More, QuantisedModel, Result, Rules, Setting, Source, element, error, expect_scales,
    expect_shape, field, flag, float_bytes,
    fp8::{block_size, float8_weight},
    group_size, on_grid, other_name, whole_number, word_bytes, words,
};
use crate::{
    grid::{Quantised, ScaleDtype},
    pack,
    weight::{Code, CompressedWeight, Float8Scales, float8},
};

/// The release whose fields the configuration has.
const LIBRARY_VERSION: &str = "0.19.0";

pub(super) struct CompressedTensors;

impl Rules for CompressedTensors {
    fn name(&self) -> &'static str {
        "compressed-tensors"
    }

    fn scale_dtype(&self, dtype: ScaleDtype) -> ScaleDtype {
        dtype
    }

    fn check(&self, layout: &Layout) -> Result<(), String> {
        if let Code::Float8(code) = layout.code {
            return match code.scales {
                Float8Scales::Block(block) if block != float8::BLOCK => {
                    Err(format!("float-quantized is written with blocks of {:?}, not {block:?}", float8::BLOCK))
                }
                _ => Ok(()),
            };
        }
        let (grid, _) = layout.grid()?;
        let bits = grid.bits;
        if !matches!(bits, 4 | 8) {
            return Err(format!(
                "pack-quantized is written with 4 or 8 bits, not {bits}; use those, or the format gptq"
            ));
        }
        if grid.has_g_idx {
            return Err(
                "groups that are not contiguous have been removed from pack-quantized; use static groups, or the \
                        format gptq"
                    .into(),
            );
        }
        let per_word = 32 / bits as usize;
        if !layout.in_features.is_multiple_of(per_word) {
            let (inputs, what) = (layout.in_features, "leave this linear dense");
            return Err(format!("its {inputs} inputs do not fill words of {per_word} codes; {what}"));
        }
        if !grid.symmetric && !layout.out_features.is_multiple_of(per_word) {
            return Err(format!(
                "the zero points of its {} outputs do not fill words of {per_word} codes; quantise it symmetrically",
                layout.out_features
            ));
        }
        Ok(())
    }

    fn specs(&self, linear: &str, layout: &Layout) -> Vec<TensorSpec> {
        let spec = |part, dtype, shape| TensorSpec { name: format!("{linear}.{part}"), dtype, shape };
        if let Code::Float8(code) = layout.code {
            let shape = (layout.out_features, layout.in_features);
            return vec![
                spec("weight", Dtype::F8E4M3, vec![shape.0, shape.1]),
                spec("weight_scale", element(layout.dtype).dtype(), scale_shape(code.scales, shape)),
            ];
        }
        let Ok((grid, groups)) = layout.grid() else { return Vec::new() };
        let bits = grid.bits as usize;
        let mut specs = vec![
            spec("weight_packed", Dtype::I32, vec![layout.out_features, layout.in_features * bits / 32]),
            spec("weight_scale", element(layout.dtype).dtype(), vec![layout.out_features, groups]),
            spec("weight_shape", Dtype::I64, vec![2]),
        ];
        if !grid.symmetric {
            specs.push(spec("weight_zero_point", Dtype::I32, vec![layout.out_features * bits / 32, groups]));
        }
        specs
    }

    fn encode(&self, linear: &str, weight: &CompressedWeight, dtype: ScaleDtype) -> Result<Vec<(String, Vec<u8>)>> {
        let name = |part| format!("{linear}.{part}");
        if let CompressedWeight::Float8(q) = weight {
            return Ok(vec![(name("weight"), q.codes.clone()), (name("weight_scale"), float_bytes(&q.scales, dtype))]);
        }
        let q = on_grid(linear, weight)?;
        let (out, groups) = (q.out_features, q.groups());
        let shape = [out as i64, q.in_features as i64];
        let mut tensors = vec![
            (name("weight_packed"), word_bytes(&pack::pack_rows(&q.codes, out, q.in_features, q.bits)?)),
            (name("weight_scale"), float_bytes(&q.scales, dtype)),
            (name("weight_shape"), shape.into_iter().flat_map(i64::to_le_bytes).collect()),
        ];
        if !q.symmetric {
            let zeros = pack::pack_columns(&q.zeros, out, groups, q.bits)?;
            tensors.push((name("weight_zero_point"), word_bytes(&zeros)));
        }
        Ok(tensors)
    }

    fn config(&self, model: &QuantisedModel<'_>) -> Result<Option<Value>> {
        let (main, others) = model.majority()?;
        let mut groups = Map::new();
        let mut kinds: Vec<(Layout, Vec<&str>)> = Vec::new();
        for (name, layout) in &others {
            let same = |kind: &Layout| kind.kind() == layout.kind();
            match kinds.iter_mut().find(|(kind, _)| same(kind)) {
                Some((_, names)) => names.push(name),
                None => kinds.push((*layout, vec![name])),
            }
        }
        // With one setting the class of module is target enough; with several, each lists its linears.
        let main_targets: Vec<&str> = if kinds.is_empty() {
            vec!["Linear"]
        } else {
            let is_other = |name: &str| others.iter().any(|(other, _)| *other == name);
            model.linears.iter().map(|(name, _)| name.as_str()).filter(|name| !is_other(name)).collect()
        };
        kinds.insert(0, (main, main_targets));
        for (number, (layout, targets)) in kinds.iter().enumerate() {
            groups.insert(format!("group_{number}"), scheme(layout, targets, model.activation_order));
        }
        let mut formats: Vec<&str> = kinds.iter().map(|(layout, _)| format_of(layout)).collect();
        formats.dedup();
        let quantised = |name: &str| model.linears.iter().any(|(linear, _)| linear == name);
        // By a pattern: releases differ in what stands before these names.
        let beside = model.beside.iter().map(|part| format!("re:.*{part}.*"));
        let dense = model.dense.iter().flat_map(|name| [Some(name.clone()), other_name(name)]).flatten();
        let mut ignore: Vec<String> = dense.chain(beside).collect();
        if !quantised("lm_head") && !ignore.iter().any(|name| name == "lm_head") {
            ignore.push("lm_head".into()); // tied to the embedding, it is still a module of class Linear
        }
        Ok(Some(json!({
            "config_groups": groups,
            "format": if let [format] = formats[..] { format } else { "mixed-precision" },
            "global_compression_ratio": null,
            "ignore": ignore,
            "kv_cache_scheme": null,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": LIBRARY_VERSION,
        })))
    }

    fn settings(&self, config: &Value) -> Result<(Vec<Setting>, Option<GptqVersion>), String> {
        expect_format(config)?;
        let mut settings = Vec::new();
        for (name, weights) in weights_of(config)? {
            if !is_float(weights) {
                settings.push(setting(weights).map_err(|what| within(what, name))?);
            }
        }
        settings.dedup();
        Ok((settings, None))
    }

    fn more(&self, config: &Value) -> Result<More, String> {
        let mut more = More::default();
        for (name, weights) in weights_of(config)? {
            if is_float(weights) {
                more.float8.push(float8_scales(weights).map_err(|what| within(what, name))?);
            }
        }
        more.float8.dedup();
        let mut groups = field(config, "config_groups").and_then(Value::as_object).into_iter().flatten();
        more.rounds_activations = groups.any(|(_, group)| field(group, "input_activations").is_some());
        Ok(more)
    }

    fn marks(&self) -> &'static [&'static str] {
        &["weight_packed", "weight_scale"]
    }

    fn parts(&self) -> &'static [&'static str] {
        &[
            "weight",
            "weight_packed",
            "weight_scale",
            "weight_shape",
            "weight_zero_point",
            "weight_g_idx",
            "input_scale",
            "input_zero_point",
            "output_scale",
            "output_zero_point",
        ]
    }

    fn shape(&self, source: &Source<'_>) -> Result<Vec<usize>> {
        if let Some(weight) = source.get("weight") {
            return Ok(weight.shape().to_vec());
        }
        // Where what is said does not fit the codes, decoding says what is wrong.
        let told = source.get("weight_packed").zip(source.get("weight_shape")).and_then(|(codes, shape)| {
            let sides = shape.to_f32().ok().filter(|sides| sides.len() == 2)?;
            super::coded::fitting([sides[0] as usize, sides[1] as usize], &codes)
        });
        told.map_or_else(|| self.decode(source).map(|weight| <[usize; 2]>::from(weight.shape()).to_vec()), Ok)
    }

    fn decode(&self, source: &Source<'_>) -> Result<CompressedWeight> {
        match source.get("weight").filter(|_| source.get("weight_packed").is_none()).map(|view| view.dtype()) {
            Some(Dtype::F8E4M3) => return float8_weight(source, "weight_scale").map(CompressedWeight::Float8),
            Some(Dtype::I8) => return int_quantized(source),
            Some(other) => {
                let weight = source.checkpoint.tensor(&format!("{}.weight", source.linear))?;
                return Err(error(&weight, format!("has type {other} beside a scale, expected F8_E4M3 or I8")));
            }
            None => {}
        }
        let (packed, out_features, row_words) = source.matrix("weight_packed", Dtype::I32)?;
        let shape = source.tensor("weight_shape", Dtype::I64)?;
        expect_shape(&shape, &[2])?;
        let [out, inputs] = [0, 1].map(|i| i64::from_le_bytes(shape.bytes().as_chunks::<8>().0[i]));
        let in_features = usize::try_from(inputs).ok().filter(|&inputs| inputs > 0 && inputs <= 32 * row_words);
        let Some(in_features) = in_features.filter(|_| usize::try_from(out) == Ok(out_features)) else {
            let what = format!(
                "says [{out}, {inputs}], which does not fit `weight_packed` of shape {:?}: expected [{out_features}, …]",
                packed.shape()
            );
            return Err(error(&shape, what));
        };
        let bits = (row_words * 32 / in_features) as u32;
        if !matches!(bits, 2 | 3 | 4 | 8) || pack::words_for(in_features, bits).ok() != Some(row_words) {
            let what = format!(
                "has shape {:?}, expected {in_features} inputs densely packed with 2, 3, 4 or 8 bits into words \
                 (3-bit files of releases before 2026 are packed otherwise: save them again with a later one)",
                packed.shape()
            );
            return Err(error(&packed, what));
        }
        let scale = source.checkpoint.tensor(&format!("{}.weight_scale", source.linear))?;
        let groups = match *scale.shape() {
            [rows, groups] if rows == out_features && groups > 0 && in_features.is_multiple_of(groups) => groups,
            _ => {
                let what = format!(
                    "has shape {:?}, expected [{out_features}, groups] with groups a divisor of {in_features}",
                    scale.shape()
                );
                return Err(error(&scale, what));
            }
        };
        let group_size = in_features / groups;
        let mut setting = source.setting(bits, group_size, in_features, &packed)?;
        let zero_point = source.get("weight_zero_point");
        if source.quantization.settings.len() > 1 {
            setting.symmetric = zero_point.is_none();
        }
        let (scales, scale_dtype) = source.scales("weight_scale", [out_features, groups])?;
        let zeros = match (setting.symmetric, zero_point) {
            (true, None) => vec![1 << (bits - 1); out_features * groups],
            (true, Some(zeros)) => {
                return Err(error(&zeros, "is there, expected none since the configuration says symmetric"));
            }
            (false, _) => {
                let zeros = source.tensor("weight_zero_point", Dtype::I32)?;
                let words_of_column =
                    pack::words_for(out_features, bits).map_err(|why| error(&zeros, why.to_string()))?;
                expect_shape(&zeros, &[words_of_column, groups])?;
                pack::unpack_columns(&words(&zeros), out_features, groups, bits)?
            }
        };
        Ok(CompressedWeight::Grid(Quantised {
            out_features,
            in_features,
            bits,
            group_size,
            symmetric: setting.symmetric,
            scale_dtype,
            codes: pack::unpack_rows(&words(&packed), out_features, in_features, bits)?,
            scales,
            zeros,
            g_idx: source.g_idx("weight_g_idx", in_features, group_size)?,
        }))
    }
}

/// Eight-bit or narrower integers in `P.weight`, a byte each.
fn int_quantized(source: &Source<'_>) -> Result<CompressedWeight> {
    let (weight, out_features, in_features) = source.matrix("weight", Dtype::I8)?;
    let scale = source.checkpoint.tensor(&format!("{}.weight_scale", source.linear))?;
    // One for all, one a row, or one a group of a row.
    let groups = match *scale.shape() {
        [] | [1] => 0,
        [rows] if rows == out_features => 1,
        [rows, groups] if rows == out_features && groups > 0 && in_features.is_multiple_of(groups) => groups,
        _ => {
            let what = format!(
                "has shape {:?}, expected [1], [{out_features}, 1] or [{out_features}, groups] with groups a divisor of \
                 {in_features}",
                scale.shape()
            );
            return Err(error(&scale, what));
        }
    };
    let bits = source.quantization.settings.first().map_or(8, |setting| setting.bits);
    let group_size = in_features / groups.max(1);
    let mut setting = source.setting(bits, group_size, in_features, &scale)?;
    let zero_point = source.get("weight_zero_point");
    if source.quantization.settings.len() > 1 {
        setting.symmetric = zero_point.is_none();
    }
    let each = |values: Vec<f32>| if groups == 0 { vec![values[0]; out_features] } else { values };
    let scale_dtype = match scale.dtype() {
        Dtype::F16 => ScaleDtype::F16,
        Dtype::Bf16 => ScaleDtype::Bf16,
        Dtype::F32 => ScaleDtype::F32,
        other => return Err(error(&scale, format!("has type {other}, expected F16, BF16 or F32"))),
    };
    let scales = scale.to_f32()?;
    expect_scales(&scale, &scales, groups.max(1))?;
    let middle = 1i16 << (bits - 1);
    let unsigned = |tensor: &TensorView| -> Result<Vec<u8>> {
        let codes = tensor.bytes().iter().map(|&byte| i16::from(byte as i8) + middle);
        match codes.clone().position(|code| !(0..2 * middle).contains(&code)) {
            Some(at) => Err(error(tensor, format!("holds {} at {at}, beyond {bits} bits", tensor.bytes()[at] as i8))),
            None => Ok(codes.map(|code| code as u8).collect()),
        }
    };
    let zeros = match (setting.symmetric, zero_point) {
        (true, None) => vec![middle as u8; scales.len()],
        (true, Some(zeros)) => {
            return Err(error(&zeros, "is there, expected none since the configuration says symmetric"));
        }
        (false, _) => {
            let zeros = source.tensor("weight_zero_point", Dtype::I8)?;
            expect_shape(&zeros, scale.shape())?;
            unsigned(&zeros)?
        }
    };
    let zeros = if groups == 0 { vec![zeros[0]; out_features] } else { zeros };
    Ok(CompressedWeight::Grid(Quantised {
        out_features,
        in_features,
        bits,
        group_size,
        symmetric: setting.symmetric,
        scale_dtype,
        codes: unsigned(&weight)?,
        scales: each(scales),
        zeros,
        g_idx: None,
    }))
}

/// What the scales of `layout` are stored as: (1), (out, 1) or (rows of blocks, columns of blocks).
fn scale_shape(layout: Float8Scales, shape: (usize, usize)) -> Vec<usize> {
    match layout {
        Float8Scales::Tensor => vec![1],
        layout => layout.count(shape).to_vec(),
    }
}

fn within(what: String, group: &str) -> String {
    format!("{what} (in config group `{group}`)")
}

/// Refuses a `format` that is not read; whatever holds none is taken for one that is.
fn expect_format(holder: &Value) -> Result<(), String> {
    const READ: [&str; 5] =
        ["pack-quantized", "float-quantized", "int-quantized", "naive-quantized", "mixed-precision"];
    match field(holder, "format").and_then(Value::as_str) {
        Some(format) if !READ.contains(&format) => {
            Err(format!("has format \"{format}\", which is not read here, only \"{}\" are", READ.join("\", \"")))
        }
        _ => Ok(()),
    }
}

/// The name and the `weights` of every config group, at least one.
fn weights_of(config: &Value) -> Result<Vec<(&str, &Value)>, String> {
    let groups = field(config, "config_groups").and_then(Value::as_object);
    let mut all = Vec::new();
    for (name, group) in groups.into_iter().flatten() {
        expect_format(group).map_err(|what| within(what, name))?;
        if field(group, "output_activations").is_some() {
            let what = "quantises output_activations, which is not read here, only weights and their inputs are";
            return Err(within(what.into(), name));
        }
        let weights = field(group, "weights").ok_or_else(|| within("has no `weights`".into(), name))?;
        all.push((name.as_str(), weights));
    }
    if all.is_empty() {
        return Err("has no `config_groups`, expected at least one".into());
    }
    Ok(all)
}

fn is_float(weights: &Value) -> bool {
    field(weights, "type").and_then(Value::as_str) == Some("float")
}

/// How the scales of eight-bit floats are shared out, from the `weights` of a config group.
fn float8_scales(weights: &Value) -> Result<Float8Scales, String> {
    let bits = whole_number(weights, "num_bits")?.unwrap_or(8);
    if bits != 8 {
        return Err(format!(
            "quantises weights to floats of {bits} bits, which are not read here, only those of 8 are"
        ));
    }
    match field(weights, "strategy").and_then(Value::as_str) {
        None | Some("tensor") => Ok(Float8Scales::Tensor),
        Some("channel") => Ok(Float8Scales::Channel),
        Some("block") => {
            let block = field(weights, "block_structure").ok_or("has strategy \"block\" and no `block_structure`")?;
            Ok(Float8Scales::Block(block_size(block)?))
        }
        Some("group") => {
            let size = whole_number(weights, "group_size")?.ok_or("has strategy \"group\" and no `group_size`")?;
            Ok(group_size(size)?.map_or(Float8Scales::Channel, |size| Float8Scales::Block([1, size])))
        }
        Some(other) => Err(format!(
            "has strategy \"{other}\", which is not read here, only \"tensor\", \"channel\", \"group\" and \"block\" are"
        )),
    }
}

/// The compressor of `layout`.
fn format_of(layout: &Layout) -> &'static str {
    if matches!(layout.code, Code::Float8(_)) { "float-quantized" } else { "pack-quantized" }
}

/// One config group: what `targets` are quantised to.
fn scheme(layout: &Layout, targets: &[&str], activation_order: bool) -> Value {
    let (bits, group_size, symmetric) = layout.setting();
    let per_row = group_size < 0;
    if let Code::Float8(code) = layout.code {
        let (strategy, block) = match code.scales {
            Float8Scales::Tensor => ("tensor", Value::Null),
            Float8Scales::Channel => ("channel", Value::Null),
            Float8Scales::Block(block) => ("block", json!(block)),
        };
        return json!({
            "format": format_of(layout),
            "input_activations": null,
            "output_activations": null,
            "targets": targets,
            "weights": {
                "actorder": null,
                "block_structure": block,
                "dynamic": false,
                "group_size": null,
                "num_bits": 8,
                "observer": "minmax",
                "observer_kwargs": {},
                "scale_dtype": null,
                "strategy": strategy,
                "symmetric": true,
                "type": "float",
                "zp_dtype": null,
            },
        });
    }
    json!({
        "format": format_of(layout),
        "input_activations": null,
        "output_activations": null,
        "targets": targets,
        "weights": {
            // Static groups in activation order: the file is the same as without. A row that is one group has no order.
            "actorder": if activation_order && !per_row { Value::from("weight") } else { Value::Null },
            "block_structure": null,
            "dynamic": false,
            "group_size": if per_row { Value::Null } else { group_size.into() },
            "num_bits": bits,
            "observer": "minmax",
            "observer_kwargs": {},
            "scale_dtype": null,
            "strategy": if per_row { "channel" } else { "group" },
            "symmetric": symmetric,
            "type": "int",
            "zp_dtype": if symmetric { Value::Null } else { "torch.int8".into() },
        },
    })
}

/// The setting in the `weights` of a config group.
fn setting(weights: &Value) -> Result<Setting, String> {
    let kind = field(weights, "type").and_then(Value::as_str).unwrap_or("int");
    if kind != "int" {
        return Err(format!("quantises weights to type \"{kind}\", expected \"int\""));
    }
    let bits = whole_number(weights, "num_bits")?.ok_or("has no `num_bits`, expected 4 or 8")?;
    let size = whole_number(weights, "group_size")?;
    let group_size = match field(weights, "strategy").and_then(Value::as_str) {
        Some("channel") => None,
        Some("group") => group_size(size.ok_or("has strategy \"group\" and no `group_size`")?)?,
        None if size.is_some() => group_size(size.unwrap_or(-1))?,
        None | Some("tensor") => None, // one scale, told by its shape
        Some(other) => {
            return Err(format!(
                "has strategy \"{other}\", which is not read here, only \"group\", \"channel\" and \"tensor\" are"
            ));
        }
    };
    Ok(Setting {
        bits: u32::try_from(bits).map_err(|_| format!("has `num_bits` {bits}, expected 4 or 8"))?,
        group_size,
        symmetric: flag(weights, "symmetric", true)?,
    })
}
