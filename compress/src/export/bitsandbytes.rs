//! bitsandbytes: NF4 and FP4, the latter only read, and the integers of LLM.int8(), only read.
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | `P.weight` | u8 | (out·in/2, 1): two codes a byte, the first in the upper half |
//! | `P.weight.absmax` | f32, or u8 if nested | (blocks) |
//! | `P.weight.quant_map` | f32 | (16): the table |
//! | `P.weight.nested_absmax` | f32 | (blocks/256); nested only, as the next |
//! | `P.weight.nested_quant_map` | f32 | (256) |
//! | `P.weight.quant_state.bitsandbytes__nf4` | u8 | JSON: shape, block sizes, type, mean of the block scales |
//!
//! and of LLM.int8() `P.weight` i8 (out, in) with `P.SCB` f32 (out): `ŵ = SCB / 127 · q`.

use scruple_weights::{Dtype, TensorSpec, TensorView};
use serde_json::{Value, json};

use super::{
    GptqVersion, Layout, More, QuantisedModel, Result, Rules, Setting, Source, error, expect_shape, field, flag,
    float_bytes,
};
use crate::{
    Error,
    grid::{Quantised, ScaleDtype},
    weight::{
        Code, CompressedWeight,
        table4::{Absmax, BLOCK, NESTED_BLOCK, NESTED_MAP, Table, Table4Code, Table4Weight},
    },
};

/// Block sizes the library knows.
const BLOCKS: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

const NF4_STATE: &str = "weight.quant_state.bitsandbytes__nf4";

const FP4_STATE: &str = "weight.quant_state.bitsandbytes__fp4";

/// The name of the tensor that says what a weight is, by its table.
const fn state_name(table: Table) -> &'static str {
    match table {
        Table::Nf4 => NF4_STATE,
        Table::Fp4 => FP4_STATE,
    }
}

pub(super) struct Bitsandbytes;

impl Rules for Bitsandbytes {
    fn name(&self) -> &'static str {
        "bitsandbytes"
    }

    fn scale_dtype(&self, _: ScaleDtype) -> ScaleDtype {
        ScaleDtype::F32
    }

    fn check(&self, layout: &Layout) -> Result<(), String> {
        match layout.code {
            Code::Table4(Table4Code { table: Table::Nf4, block_size: BLOCK, .. }) => Ok(()),
            code => Err(format!(
                "it is stored as {}, and the format is written with NF4 in blocks of {BLOCK} only; use the method nf4, or \
                 another format",
                code.describe()
            )),
        }
    }

    fn specs(&self, linear: &str, layout: &Layout) -> Vec<TensorSpec> {
        let Code::Table4(code) = layout.code else { return Vec::new() };
        let spec = |part: &str, dtype, shape| TensorSpec { name: format!("{linear}.{part}"), dtype, shape };
        let weights = layout.out_features * layout.in_features;
        let blocks = weights.div_ceil(code.block_size.max(1));
        let absmax = if code.double_quant { Dtype::U8 } else { Dtype::F32 };
        let mut specs = vec![
            spec("weight", Dtype::U8, vec![weights.div_ceil(2), 1]),
            spec("weight.absmax", absmax, vec![blocks]),
            spec("weight.quant_map", Dtype::F32, vec![16]),
        ];
        if code.double_quant {
            specs.push(spec("weight.nested_absmax", Dtype::F32, vec![blocks.div_ceil(NESTED_BLOCK)]));
            specs.push(spec("weight.nested_quant_map", Dtype::F32, vec![NESTED_MAP]));
        }
        let offset = code.double_quant.then_some(0.0);
        let state = state(code, (layout.out_features, layout.in_features), layout.dtype, offset);
        specs.push(spec(state_name(code.table), Dtype::U8, vec![state.len()]));
        specs
    }

    fn encode(&self, linear: &str, weight: &CompressedWeight, dtype: ScaleDtype) -> Result<Vec<(String, Vec<u8>)>> {
        let CompressedWeight::Table4(q) = weight else {
            let found = weight.code().describe();
            return Err(Error::Model(format!("`{linear}` is {found}, expected codes into a table")));
        };
        let name = |part: &str| format!("{linear}.{part}");
        let floats = |values: &[f32]| float_bytes(values, ScaleDtype::F32);
        let map = (name("weight.quant_map"), floats(q.table.numbers()));
        let mut tensors = vec![(name("weight"), q.packed.clone())];
        let offset = match &q.absmax {
            Absmax::Plain(absmax) => {
                tensors.extend([(name("weight.absmax"), floats(absmax)), map]);
                None
            }
            Absmax::Nested { codes, map: nested_map, scales, offset } => {
                tensors.extend([
                    (name("weight.absmax"), codes.clone()),
                    map,
                    (name("weight.nested_absmax"), floats(scales)),
                    (name("weight.nested_quant_map"), floats(nested_map)),
                ]);
                Some(*offset)
            }
        };
        tensors.push((name(state_name(q.table)), state(q.code(), weight.shape(), dtype, offset)));
        Ok(tensors)
    }

    fn config(&self, model: &QuantisedModel<'_>) -> Result<Option<Value>> {
        let (main, others) = model.majority()?;
        let Code::Table4(code) = main.code else {
            return Err(Error::Recipe("a bitsandbytes file holds NF4 only".into()));
        };
        if let Some((name, _)) = others.first() {
            return Err(Error::Recipe(format!(
                "a bitsandbytes file describes all linears by one setting, and `{name}` differs from most; quantise all \
                 alike"
            )));
        }
        let mut skipped = model.dense_names();
        if !skipped.iter().any(|name| name == "lm_head") {
            skipped.push("lm_head".into()); // tied to the embedding, it is still a module of class Linear
        }
        Ok(Some(json!({
            "_load_in_4bit": true,
            "_load_in_8bit": false,
            "bnb_4bit_compute_dtype": torch_name(main.dtype),
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": code.table.name(),
            "bnb_4bit_use_double_quant": code.double_quant,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": skipped,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": true,
            "load_in_8bit": false,
            "quant_method": "bitsandbytes",
        })))
    }

    fn settings(&self, _: &Value) -> Result<(Vec<Setting>, Option<GptqVersion>), String> {
        Ok((Vec::new(), None)) // every linear's tensors tell its own
    }

    fn more(&self, config: &Value) -> Result<More, String> {
        let four = flag(config, "load_in_4bit", false)? || flag(config, "_load_in_4bit", false)?;
        let eight = flag(config, "load_in_8bit", false)? || flag(config, "_load_in_8bit", false)?;
        if four == eight {
            return Err("should have one of `load_in_4bit` and `load_in_8bit`".into());
        }
        if let Some(kind) = field(config, "bnb_4bit_quant_type").filter(|_| four)
            && !matches!(kind.as_str(), Some("nf4" | "fp4"))
        {
            return Err(format!("has `bnb_4bit_quant_type` {kind}, expected \"nf4\" or \"fp4\""));
        }
        if let Some(storage) = field(config, "bnb_4bit_quant_storage").filter(|storage| *storage != "uint8") {
            return Err(format!("has `bnb_4bit_quant_storage` {storage}, which is not read here, only \"uint8\" is"));
        }
        Ok(More { rounds_activations: eight, ..More::default() })
    }

    fn decode(&self, source: &Source<'_>) -> Result<CompressedWeight> {
        if source.get("SCB").is_some() {
            return int8(source);
        }
        let (table, state, shape) = read_state(source)?;
        let fault = |what: String| error(&state.tensor, what);
        let [out_features, in_features] = shape;
        let weights = out_features
            .checked_mul(in_features)
            .ok_or_else(|| fault(format!("has the shape {shape:?}, which no file can hold")))?;
        let weight = source.tensor("weight", Dtype::U8)?;
        expect_shape(&weight, &[weights.div_ceil(2), 1])?;
        let block_size = state.number("blocksize")?;
        if !BLOCKS.contains(&block_size) {
            return Err(fault(format!("has blocks of {block_size}, expected one of {BLOCKS:?}")));
        }
        let blocks = weights.div_ceil(block_size);
        let map = source.tensor("weight.quant_map", Dtype::F32)?;
        expect_shape(&map, &[16])?;
        let differs = |(found, known): (&f32, &f32)| (found - known).abs() > 1e-6 || found.is_nan();
        if let Some(at) = map.to_f32()?.iter().zip(table.numbers()).position(differs) {
            return Err(error(&map, format!("is not the table of {}: number {at} differs", table.name())));
        }
        let finite = |tensor: &TensorView| -> Result<Vec<f32>> {
            let values = tensor.to_f32()?;
            match values.iter().position(|value| !value.is_finite() || *value < 0.0) {
                Some(at) => Err(error(tensor, format!("holds {} at {at}, expected a scale", values[at]))),
                None => Ok(values),
            }
        };
        let absmax = if source.get("weight.nested_absmax").is_none() {
            let absmax = source.tensor("weight.absmax", Dtype::F32)?;
            expect_shape(&absmax, &[blocks])?;
            Absmax::Plain(finite(&absmax)?)
        } else {
            let codes = source.tensor("weight.absmax", Dtype::U8)?;
            expect_shape(&codes, &[blocks])?;
            let nested = state.number("nested_blocksize")?;
            if nested != NESTED_BLOCK {
                return Err(fault(format!("has nested blocks of {nested}, expected {NESTED_BLOCK}")));
            }
            let scales = source.tensor("weight.nested_absmax", Dtype::F32)?;
            expect_shape(&scales, &[blocks.div_ceil(NESTED_BLOCK)])?;
            let map = source.tensor("weight.nested_quant_map", Dtype::F32)?;
            expect_shape(&map, &[NESTED_MAP])?;
            let numbers = map.to_f32()?;
            if let Some(at) = numbers.iter().position(|number| !number.is_finite()) {
                return Err(error(&map, format!("holds {} at {at}, expected a number", numbers[at])));
            }
            let offset = field(&state.fields, "nested_offset").and_then(Value::as_f64).map(|offset| offset as f32);
            let Some(offset) = offset.filter(|offset| offset.is_finite()) else {
                return Err(fault("has no `nested_offset`, expected a number".into()));
            };
            Absmax::Nested { codes: codes.bytes().to_vec(), map: numbers, scales: finite(&scales)?, offset }
        };
        let packed = weight.bytes().to_vec();
        Ok(Table4Weight { out_features, in_features, table, block_size, packed, absmax }.into())
    }

    fn marks(&self) -> &'static [&'static str] {
        &["weight.absmax", "SCB"]
    }

    fn parts(&self) -> &'static [&'static str] {
        &[
            "weight",
            "weight.absmax",
            "weight.quant_map",
            "weight.nested_absmax",
            "weight.nested_quant_map",
            NF4_STATE,
            FP4_STATE,
            "SCB",
            "weight_format",
        ]
    }

    fn shape(&self, source: &Source<'_>) -> Result<Vec<usize>> {
        match source.get("SCB") {
            Some(_) => Ok(source.checkpoint.tensor(&format!("{}.weight", source.linear))?.shape().to_vec()),
            None => Ok(read_state(source)?.2.to_vec()),
        }
    }
}

const fn torch_name(dtype: ScaleDtype) -> &'static str {
    match dtype {
        ScaleDtype::F16 => "float16",
        ScaleDtype::Bf16 => "bfloat16",
        ScaleDtype::F32 => "float32",
    }
}

/// The bytes that say what a weight is. With an `offset` they are as long as with any other: it is not known when the
/// tensors of a file are laid out, and JSON may end in spaces.
fn state(code: Table4Code, shape: (usize, usize), dtype: ScaleDtype, offset: Option<f32>) -> Vec<u8> {
    /// As long as any f32 written as f64 gets.
    const OFFSET_LENGTH: usize = 32;
    let mut fields = json!({
        "quant_type": code.table.name(),
        "blocksize": code.block_size,
        "dtype": torch_name(dtype),
        "shape": [shape.0, shape.1],
    });
    if let Some(offset) = offset {
        fields["nested_blocksize"] = NESTED_BLOCK.into();
        fields["nested_dtype"] = "float32".into();
        let without = fields.to_string().len();
        fields["nested_offset"] = f64::from(offset).into();
        let length = without + ",\"nested_offset\":".len() + OFFSET_LENGTH;
        return format!("{:<length$}", fields.to_string()).into_bytes();
    }
    fields.to_string().into_bytes()
}

/// What a weight's `quant_state` says.
struct State {
    tensor: TensorView,
    fields: Value,
}

impl State {
    fn number(&self, name: &str) -> Result<usize> {
        let number = field(&self.fields, name).and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| error(&self.tensor, format!("has no `{name}`, expected a whole number")))
    }
}

/// The table, the other fields and the shape in `P.weight.quant_state…`.
fn read_state(source: &Source<'_>) -> Result<(Table, State, [usize; 2])> {
    let table = if source.get(state_name(Table::Fp4)).is_some() { Table::Fp4 } else { Table::Nf4 };
    let tensor = source.tensor(state_name(table), Dtype::U8)?;
    let fields: Value = serde_json::from_slice(tensor.bytes())
        .map_err(|cause| error(&tensor, format!("is not JSON as the library writes it: {cause}")))?;
    if field(&fields, "quant_type").and_then(Value::as_str) != Some(table.name()) {
        return Err(error(&tensor, format!("has another `quant_type` than {}", table.name())));
    }
    let side = |at: usize| {
        let side = fields["shape"].get(at).and_then(Value::as_u64).filter(|&side| side > 0);
        side.and_then(|side| usize::try_from(side).ok())
    };
    match (fields["shape"].as_array().map(Vec::len), side(0), side(1)) {
        (Some(2), Some(rows), Some(columns)) => Ok((table, State { tensor, fields }, [rows, columns])),
        _ => Err(error(&tensor, format!("has the shape {}, expected two positive numbers", fields["shape"]))),
    }
}

/// A linear of LLM.int8() as codes on grids, a scale a row.
fn int8(source: &Source<'_>) -> Result<CompressedWeight> {
    let (weight, out_features, in_features) = source.matrix("weight", Dtype::I8)?;
    let tensor = source.tensor("SCB", Dtype::F32)?;
    expect_shape(&tensor, &[out_features])?;
    let mut scales = tensor.to_f32()?;
    for (row, scale) in scales.iter_mut().enumerate() {
        if !(scale.is_finite() && *scale >= 0.0) {
            return Err(error(&tensor, format!("holds {scale} at {row}, expected a scale")));
        }
        // A row of zeros has the scale zero, and its codes are zero.
        *scale = (*scale / 127.0).max(ScaleDtype::F32.smallest());
    }
    Ok(CompressedWeight::Grid(Quantised {
        out_features,
        in_features,
        bits: 8,
        group_size: in_features,
        symmetric: true,
        scale_dtype: ScaleDtype::F32,
        codes: weight.bytes().iter().map(|&byte| byte ^ 0x80).collect(), // two's complement plus 128
        scales,
        zeros: vec![128; out_features],
        g_idx: None,
    }))
}
