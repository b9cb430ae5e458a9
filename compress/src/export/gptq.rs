//! GPTQ's files, as AutoGPTQ and GPTQModel write them (quantisation of Frantar et al. 2023).
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | `P.qweight` | i32 | (in·b/32, out), a bit stream along the inputs |
//! | `P.qzeros` | i32 | (groups, out·b/32), a bit stream along the outputs |
//! | `P.scales` | f16 | (groups, out) |
//! | `P.g_idx` | i32 | (in), the group of each input column |
//!
//! `checkpoint_format` "gptq" (version 1) stores zero points less one, modulo 2^b; some of its readers add the one
//! without masking, so a zero point of 0 is not safe in it. Symmetric weights, whose zero points are all 2^(b−1), are
//! written as version 1, which every reader knows; asymmetric ones as "gptq_v2", which stores the zero point itself.

use scruple_weights::{Dtype, TensorSpec};
use serde_json::{Map, Value, json};

use super::{
    Error, GptqVersion, Layout, QuantisedModel, Result, Rules, Setting, Source, error, expect_shape, field, flag,
    float_bytes, group_size, on_grid, whole_number, word_bytes, words,
};
use crate::{
    grid::{Quantised, ScaleDtype},
    pack,
    weight::CompressedWeight,
};

pub(super) struct Gptq;

fn version(symmetric: bool) -> GptqVersion {
    if symmetric { GptqVersion::V1 } else { GptqVersion::V2 }
}

impl Rules for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn scale_dtype(&self, _: ScaleDtype) -> ScaleDtype {
        ScaleDtype::F16
    }

    fn check(&self, layout: &Layout) -> Result<(), String> {
        layout.grid()?;
        for (what, features) in [("inputs", layout.in_features), ("outputs", layout.out_features)] {
            if !features.is_multiple_of(32) {
                return Err(format!(
                    "it has {features} {what}, and the format needs a multiple of 32; leave this linear dense, or write \
                     dense"
                ));
            }
        }
        Ok(())
    }

    fn specs(&self, linear: &str, layout: &Layout) -> Vec<TensorSpec> {
        let Ok((grid, groups)) = layout.grid() else { return Vec::new() };
        let bits = grid.bits as usize;
        let spec = |part, dtype, shape| TensorSpec { name: format!("{linear}.{part}"), dtype, shape };
        vec![
            spec("qweight", Dtype::I32, vec![layout.in_features * bits / 32, layout.out_features]),
            spec("qzeros", Dtype::I32, vec![groups, layout.out_features * bits / 32]),
            spec("scales", Dtype::F16, vec![groups, layout.out_features]),
            spec("g_idx", Dtype::I32, vec![layout.in_features]),
        ]
    }

    fn encode(&self, linear: &str, weight: &CompressedWeight, _: ScaleDtype) -> Result<Vec<(String, Vec<u8>)>> {
        let q = on_grid(linear, weight)?;
        let (out, groups) = (q.out_features, q.groups());
        let qweight = pack::pack_rows_transposed(&q.codes, out, q.in_features, q.bits)?;
        let qzeros = pack::pack_zeros(&q.zeros, out, groups, q.bits, version(q.symmetric))?;
        let scales: Vec<f32> = transposed(&q.scales, out, groups);
        let g_idx: Vec<u32> = (0..q.in_features).map(|column| q.group_of(column) as u32).collect();
        let name = |part| format!("{linear}.{part}");
        Ok(vec![
            (name("qweight"), word_bytes(&qweight)),
            (name("qzeros"), word_bytes(&qzeros)),
            (name("scales"), float_bytes(&scales, ScaleDtype::F16)),
            (name("g_idx"), word_bytes(&g_idx)),
        ])
    }

    fn config(&self, model: &QuantisedModel<'_>) -> Result<Option<Value>> {
        let (main, others) = model.majority()?;
        let main = main.setting();
        if let Some((name, _)) = others.iter().find(|(_, layout)| layout.setting().2 != main.2) {
            return Err(Error::Recipe(format!(
                "a GPTQ file stores the zero points of symmetric and asymmetric linears in two ways and cannot hold \
                 both, and `{name}` differs from most; make all symmetric or all asymmetric"
            )));
        }
        let lm_head = model.linears.iter().any(|(name, _)| name == "lm_head");
        let mut dynamic = Map::new();
        for (name, layout) in others {
            let (bits, group_size, symmetric) = layout.setting();
            let setting = json!({ "bits": bits, "group_size": group_size, "sym": symmetric });
            dynamic.insert(format!("+:{}", pattern(name)), setting);
        }
        for name in model.dense.iter().filter(|name| *name != "lm_head") {
            dynamic.insert(format!("-:{}", pattern(name)), json!({}));
        }
        for part in model.beside {
            dynamic.insert(format!("-:.*{}.*", part.replace('.', "\\.")), json!({}));
        }
        let mut config = json!({
            "bits": main.0,
            "group_size": main.1,
            "desc_act": model.has_g_idx(),
            "sym": main.2,
            "lm_head": lm_head,
            "quant_method": "gptq",
            "checkpoint_format": version(main.2),
            "pack_dtype": "int32",
            "true_sequential": model.true_sequential,
            "static_groups": model.activation_order && !model.has_g_idx(),
            "meta": { "quantizer": [concat!("scruple:", env!("CARGO_PKG_VERSION"))] },
        });
        // Readers refuse a share that is not strictly between 0 and 1, and have one of their own where none is given.
        if let Some(dampening) = model.dampening.filter(|&dampening| dampening > 0.0 && dampening < 1.0) {
            config["damp_percent"] = dampening.into();
        }
        if !dynamic.is_empty() {
            config["dynamic"] = dynamic.into();
        }
        Ok(Some(config))
    }

    fn side_files(&self, model: &QuantisedModel<'_>) -> Result<Vec<(String, Value)>> {
        Ok(self.config(model)?.map(|config| ("quantize_config.json".into(), config)).into_iter().collect())
    }

    fn settings(&self, config: &Value) -> Result<(Vec<Setting>, Option<GptqVersion>), String> {
        // Later transformers call the field `format`.
        let format = field(config, "checkpoint_format").or_else(|| field(config, "format"));
        let version = match format.map(|format| format.as_str().unwrap_or("?")) {
            None | Some("gptq") => GptqVersion::V1,
            Some("gptq_v2") => GptqVersion::V2,
            Some(other) => {
                return Err(format!("has checkpoint_format \"{other}\", expected \"gptq\" or \"gptq_v2\""));
            }
        };
        if let Some(words) = field(config, "pack_dtype").filter(|words| words.as_str() != Some("int32")) {
            return Err(format!("has `pack_dtype` {words}, expected \"int32\""));
        }
        let bits = whole_number(config, "bits")?.ok_or("has no `bits`, expected 2, 3, 4 or 8")?;
        let main = Setting {
            bits: u32::try_from(bits).map_err(|_| format!("has `bits` {bits}, expected 2, 3, 4 or 8"))?,
            group_size: group_size(whole_number(config, "group_size")?.unwrap_or(-1))?,
            symmetric: flag(config, "sym", true)?,
        };
        let mut settings = vec![main];
        for (name, own) in field(config, "dynamic").and_then(Value::as_object).into_iter().flatten() {
            if name.starts_with("-:") {
                continue; // left dense, as its tensors show
            }
            settings.push(Setting {
                bits: whole_number(own, "bits")?.map_or(Ok(main.bits), u32::try_from).map_err(|_| "has bits < 0")?,
                group_size: whole_number(own, "group_size")?.map_or(Ok(main.group_size), group_size)?,
                symmetric: flag(own, "sym", main.symmetric)?,
            });
        }
        settings.dedup();
        Ok((settings, Some(version)))
    }

    fn shape(&self, source: &Source<'_>) -> Result<Vec<usize>> {
        // An entry an input in g_idx, a column an output in the codes; where they do not fit, decoding says what is wrong.
        let told = source
            .get("qweight")
            .zip(source.get("g_idx"))
            .and_then(|(codes, g_idx)| super::coded::fitting([*codes.shape().last()?, g_idx.elements()], &codes));
        told.map_or_else(|| self.decode(source).map(|weight| <[usize; 2]>::from(weight.shape()).to_vec()), Ok)
    }

    fn decode(&self, source: &Source<'_>) -> Result<CompressedWeight> {
        // qzeros over scales gives the bits, qweight then the inputs, scales then the group size: the configuration
        // need only agree.
        let (qweight, stream, out_features) = source.matrix("qweight", Dtype::I32)?;
        let (qzeros, groups, zero_words) = source.matrix("qzeros", Dtype::I32)?;
        let main = source.quantization.settings[0].bits;
        let bits = if source.quantization.settings.len() == 1 { main } else { (zero_words * 32 / out_features) as u32 };
        let unit = if bits == 3 { 3 } else { 1 };
        if !matches!(bits, 2 | 3 | 4 | 8) || !stream.is_multiple_of(unit) || !out_features.is_multiple_of(32) {
            let what = format!(
                "has shape {:?}, which does not hold whole runs of {bits}-bit codes and a multiple of 32 outputs",
                qweight.shape()
            );
            return Err(error(&qweight, what));
        }
        let in_features = stream * 32 / bits as usize;
        expect_shape(&qzeros, &[groups, out_features * bits as usize / 32])?;
        if !in_features.is_multiple_of(groups) {
            let what = format!("has {groups} groups for {in_features} inputs, expected a divisor of them");
            return Err(error(&qzeros, what));
        }
        let group_size = in_features / groups;
        let setting = source.setting(bits, group_size, in_features, &qweight)?;
        let (stored_scales, scale_dtype) = source.scales("scales", [groups, out_features])?;
        let scales = transposed(&stored_scales, groups, out_features);
        let version = source.quantization.gptq_version.unwrap_or(GptqVersion::V1);
        let zeros = pack::unpack_zeros(&words(&qzeros), out_features, groups, bits, version)?;
        let middle = 1u8 << (bits - 1);
        if let Some(at) = zeros.iter().position(|&zero| setting.symmetric && zero != middle) {
            let what = format!(
                "holds zero point {} for output {}, expected {middle} since the configuration says `sym`; is \
                 `checkpoint_format` wrong?",
                zeros[at],
                at / groups
            );
            return Err(error(&qzeros, what));
        }
        Ok(CompressedWeight::Grid(Quantised {
            out_features,
            in_features,
            bits,
            group_size,
            symmetric: setting.symmetric,
            scale_dtype,
            codes: pack::unpack_rows_transposed(&words(&qweight), out_features, in_features, bits)?,
            scales,
            zeros,
            g_idx: source.g_idx("g_idx", in_features, group_size)?,
        }))
    }
}

/// A regular expression that matches `name` alone.
fn pattern(name: &str) -> String {
    format!("^{}$", name.replace('.', "\\."))
}

/// (rows, columns) to (columns, rows).
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for column in 0..columns {
        out.extend((0..rows).map(|row| values[row * columns + column]));
    }
    out
}
