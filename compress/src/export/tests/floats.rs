//! Eight-bit floats and codes into tables: written and read back, and every way their files can be wrong.

use super::*;
use crate::weight::{
    float8::{self, Float8Code, Float8Scales, Float8Weight},
    table4::{self, Table, Table4Code, Table4Weight},
};

fn float8((rows, columns): (usize, usize), layout: Float8Scales, dtype: ScaleDtype) -> Float8Weight {
    float8::quantize(&uniform(rows * columns, 7), (rows, columns), layout, dtype).unwrap()
}

fn nf4((rows, columns): (usize, usize), double_quant: bool) -> Table4Weight {
    let code = Table4Code { table: Table::Nf4, block_size: table4::BLOCK, double_quant };
    table4::quantize(&uniform(rows * columns, 8), (rows, columns), code).unwrap()
}

fn tensors(format: Format, weight: &CompressedWeight, dtype: ScaleDtype) -> Tensors {
    let specs = format.specs(LINEAR, &Layout::of(weight, dtype));
    let encoded = format.encode(LINEAR, weight, dtype).unwrap();
    assert_eq!(specs.len(), encoded.len());
    for (spec, (name, bytes)) in specs.iter().zip(&encoded) {
        assert_eq!(&spec.name, name);
        assert_eq!(spec.dtype.bytes(spec.shape.iter().product()), Some(bytes.len()), "{name}");
    }
    specs.into_iter().zip(encoded.into_iter().map(|(_, bytes)| bytes)).collect()
}

/// Written, read back, run: always the same numbers.
fn expect_same(format: Format, weight: &CompressedWeight, dtype: ScaleDtype) {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::of(weight, dtype);
    let tensors = tensors(format, weight, dtype);
    let written: usize = tensors.iter().map(|(_, bytes)| 8 * bytes.len()).sum();
    assert_eq!(format.storage_bits(&layout), written as u64);
    let checkpoint = write(&folder.path().join("model"), &tensors, &config_of(format, layout));
    let quantization = detect(&checkpoint).unwrap().unwrap();
    assert_eq!((quantization.format, quantization.note()), (format, None));
    assert_eq!(&decode(&checkpoint, LINEAR, &quantization).unwrap(), weight);
    let [coded] = &coded(&checkpoint, &quantization).unwrap()[..] else { panic!("one linear") };
    let (rows, columns) = weight.shape();
    assert_eq!((&*coded.linear, &*coded.shape, coded.parts.len()), (LINEAR, &[rows, columns][..], tensors.len()));
    let evaluated = format.linear(weight, None, dtype).unwrap();
    for linear in [load_linear(&checkpoint, LINEAR, Some(&quantization)).unwrap(), evaluated] {
        let values = linear.weight().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values, weight.dequantize());
        assert_eq!((linear.shape(), linear.storage_bits()), (weight.shape(), written as u64));
        for tokens in [1, 9] {
            let x = crate::kernel::tensor::from_vec(uniform(tokens * columns, 5), (tokens, columns)).unwrap();
            let plain = DenseLinear::from_f32(&values, (rows, columns), None).unwrap();
            let [found, expected] =
                [&*linear, &plain as &dyn Linear].map(|l| l.forward(&x).unwrap().to_vec2::<f32>().unwrap());
            for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                assert!((found - expected).abs() <= 1e-4, "{found} for {expected}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn what_was_written_is_read_back(
        rows in 1usize..200,
        columns in 1usize..160,
        layout in prop::sample::select(vec![
            Float8Scales::Tensor, Float8Scales::Channel, Float8Scales::Block(float8::BLOCK),
        ]),
        double_quant: bool,
        dtype in prop::sample::select(vec![ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F32]),
    ) {
        expect_same(Format::CompressedTensors, &float8((rows, columns), layout, dtype).into(), dtype);
        expect_same(Format::Bitsandbytes, &nf4((rows, columns), double_quant).into(), dtype);
    }
}

#[test]
fn formats_say_what_they_store() {
    let codes = [
        Layout { code: Code::Float8(Float8Code { scales: Float8Scales::Channel }), ..layout(4, 64, true) },
        Layout { code: Code::Table4(nf4((2, 64), false).code()), ..layout(4, 64, true) },
        layout(4, 64, true),
    ];
    for format in Format::ALL.into_iter().chain([Format::Fp8, Format::Mxfp4]) {
        for layout in codes {
            let checked = format.check("a.q", &layout);
            assert_eq!(checked.is_ok(), format.stores(layout.code), "{format} {:?}: {checked:?}", layout.code);
        }
    }
    let error = |format: Format, layout: &Layout| format.check("a.q", layout).unwrap_err().to_string();
    let words = error(Format::Bitsandbytes, &codes[2]);
    assert!(
        words.contains("`a.q`") && words.contains("4 bits, groups of 64") && words.contains("method nf4"),
        "{words}"
    );
    assert!(error(Format::Gptq, &codes[0]).contains("fp8, a scale a row"));
    assert!(error(Format::Fp8, &codes[0]).contains("read here, not written"));
    let odd = Layout { code: Code::Float8(Float8Code { scales: Float8Scales::Block([64, 64]) }), ..codes[0] };
    assert!(error(Format::CompressedTensors, &odd).contains("[128, 128], not [64, 64]"));
}

#[test]
fn configurations_have_the_libraries_fields() {
    let fp8 = |scales| Layout { code: Code::Float8(Float8Code { scales }), ..layout(4, 64, true) };
    let linears = [("a.q".to_owned(), fp8(Float8Scales::Block(float8::BLOCK)))];
    let config = Format::CompressedTensors.config(&model(&linears, &[])).unwrap().unwrap();
    assert_eq!(config["format"], "float-quantized");
    assert_eq!(
        config["config_groups"]["group_0"],
        json!({
            "format": "float-quantized", "input_activations": null, "output_activations": null, "targets": ["Linear"],
            "weights": {
                "actorder": null, "block_structure": [128, 128], "dynamic": false, "group_size": null, "num_bits": 8,
                "observer": "minmax", "observer_kwargs": {}, "scale_dtype": null, "strategy": "block",
                "symmetric": true, "type": "float", "zp_dtype": null
            }
        })
    );
    // Two kinds in one file: each names its linears.
    let linears = [("a.q".to_owned(), fp8(Float8Scales::Tensor)), ("a.k".to_owned(), layout(4, 64, true))];
    let config = Format::CompressedTensors.config(&model(&linears, &[])).unwrap().unwrap();
    assert_eq!(config["format"], "mixed-precision");
    assert_eq!(config["config_groups"]["group_0"]["targets"], json!(["a.q"]));
    assert_eq!(config["config_groups"]["group_1"]["format"], "pack-quantized");
    let read = read_config(&config, None).unwrap();
    assert_eq!((read.settings.len(), &read.more.float8[..]), (1, &[Float8Scales::Tensor][..]));

    let code = Code::Table4(nf4((2, 64), true).code());
    let linears = [("a.q".to_owned(), Layout { code, ..layout(4, 64, true) })];
    let config = Format::Bitsandbytes.config(&model(&linears, &["a.k".to_owned()])).unwrap().unwrap();
    for (key, value) in [
        ("quant_method", json!("bitsandbytes")),
        ("load_in_4bit", json!(true)),
        ("bnb_4bit_quant_type", json!("nf4")),
        ("bnb_4bit_compute_dtype", json!("bfloat16")),
        ("bnb_4bit_use_double_quant", json!(true)),
        ("llm_int8_skip_modules", json!(["a.k", "lm_head"])),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    // transformers 5 compares with the start and the end of a name that may or may not begin with `model.`.
    let (dense, beside) = (["language_model.model.layers.0.mlp.gate".to_owned()], ["vision_tower".to_owned()]);
    let parts = QuantisedModel { beside: &beside, ..model(&linears, &dense) };
    let skipped = [
        "language_model.model.layers.0.mlp.gate",
        "model.language_model.layers.0.mlp.gate",
        "vision_tower",
        "model.vision_tower",
        "lm_head",
    ];
    let config = Format::Bitsandbytes.config(&parts).unwrap().unwrap();
    assert_eq!(config["llm_int8_skip_modules"], json!(skipped));
    let plain = Code::Table4(nf4((2, 64), false).code());
    let linears = [linears[0].clone(), ("a.v".to_owned(), Layout { code: plain, ..layout(4, 64, true) })];
    let error = Format::Bitsandbytes.config(&model(&linears, &[])).unwrap_err().to_string();
    assert!(error.contains("`a.v`") && error.contains("alike"), "{error}");
}

#[test]
fn configurations_that_are_not_read_are_named() {
    for (config, words) in [
        (json!({ "quant_method": "bitsandbytes" }), "one of `load_in_4bit`"),
        (json!({ "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "af4" }), "\"af4\""),
        (
            json!({ "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_storage": "float32" }),
            "bnb_4bit_quant_storage",
        ),
        (json!({ "quant_method": "fp8", "fmt": "e5m2" }), "e5m2"),
        (json!({ "quant_method": "fp8", "weight_block_size": [128] }), "two positive numbers"),
        (json!({ "quant_method": "fp8", "weight_block_size": [128, 0] }), "two positive numbers"),
    ] {
        let error = read_config(&config, None).unwrap_err();
        assert!(error.contains(words), "{error}: expected {words}");
    }
}

fn spoil_weight(format: Format, weight: &CompressedWeight, faults: &[Fault]) {
    let config = config_of(format, Layout::of(weight, ScaleDtype::Bf16));
    let folder = tempfile::tempdir().unwrap();
    for (name, fault, words) in faults {
        let mut tensors = tensors(format, weight, ScaleDtype::Bf16);
        fault(&mut tensors);
        let checkpoint = write(&folder.path().join(name), &tensors, &config);
        let quantization = detect(&checkpoint).unwrap().unwrap();
        let error = decode(&checkpoint, LINEAR, &quantization).unwrap_err().to_string();
        for word in words.iter().chain(&[LINEAR]) {
            assert!(error.contains(word), "{name}: `{error}` lacks `{word}`");
        }
        assert!(load_linear(&checkpoint, LINEAR, Some(&quantization)).is_err(), "{name}");
    }
}

#[test]
fn bad_eight_bit_floats_are_refused_by_name() {
    let weight = float8((24, 48), Float8Scales::Channel, ScaleDtype::Bf16).into();
    spoil_weight(
        Format::CompressedTensors,
        &weight,
        &[
            ("no_weight", |t| drop(t.remove(0)), &["weight_packed", "missing"]),
            ("no_scale", |t| drop(t.remove(1)), &[".weight_scale", "missing"]),
            ("weight_u8", |t| t[0].0.dtype = Dtype::U8, &[".weight", "type U8", "F8_E4M3"]),
            ("weight_flat", |t| reshape(t, 0, Dtype::F8E4M3, &[1152]), &[".weight", "two dimensions"]),
            ("weight_empty", |t| reshape(t, 0, Dtype::F8E4M3, &[0, 48]), &[".weight", "[0, 48]"]),
            ("weight_nan", |t| set(t, 0, 50, &[0x7F]), &[".weight", "holds NaN at [1, 2]"]),
            ("scale_shape", |t| reshape(t, 1, Dtype::Bf16, &[23, 1]), &[".weight_scale", "[23, 1]", "[24, 1]"]),
            ("scale_type", |t| reshape(t, 1, Dtype::I32, &[24, 1]), &[".weight_scale", "type I32"]),
            ("scale_nan", |t| set(t, 1, 4, &0x7FC0u16.to_le_bytes()), &[".weight_scale", "holds NaN at [2, 0]"]),
            ("scale_zero", |t| set(t, 1, 4, &[0, 0]), &[".weight_scale", "holds 0 at [2, 0]", "above zero"]),
        ],
    );
}

#[test]
fn bad_nf4_tensors_are_refused_by_name() {
    const STATE: &str = ".weight.quant_state.bitsandbytes__nf4";
    spoil_weight(
        Format::Bitsandbytes,
        &nf4((24, 48), false).into(),
        &[
            ("no_weight", |t| drop(t.remove(0)), &[".weight", "missing"]),
            ("no_absmax", |t| drop(t.remove(1)), &[".weight.absmax", "missing"]),
            ("no_map", |t| drop(t.remove(2)), &[".weight.quant_map", "missing"]),
            ("no_state", |t| drop(t.remove(3)), &[STATE, "missing"]),
            ("weight_i32", |t| reshape(t, 0, Dtype::I32, &[576, 1]), &[".weight", "type I32", "expected U8"]),
            ("weight_short", |t| reshape(t, 0, Dtype::U8, &[575, 1]), &[".weight", "[575, 1]", "[576, 1]"]),
            ("absmax_short", |t| reshape(t, 1, Dtype::F32, &[17]), &[".weight.absmax", "[17]", "[18]"]),
            ("absmax_nan", |t| set(t, 1, 8, &f32::NAN.to_le_bytes()), &[".weight.absmax", "holds NaN at 2"]),
            ("absmax_negative", |t| set(t, 1, 8, &(-1f32).to_le_bytes()), &[".weight.absmax", "holds -1 at 2"]),
            ("map_other", |t| set(t, 2, 4, &0.5f32.to_le_bytes()), &[".quant_map", "table of nf4", "number 1"]),
            ("state_text", |t| set(t, 3, 0, b"}"), &[STATE, "not JSON"]),
            ("state_blocks", |t| replace(t, 3, "\"blocksize\":64", "\"blocksize\":65"), &[STATE, "blocks of 65"]),
            ("state_shape", |t| replace(t, 3, "[24,48]", "[24,49]"), &[".weight", "[576, 1]", "[588, 1]"]),
            ("state_kind", |t| replace(t, 3, "nf4", "fp4"), &[STATE, "quant_type"]),
            ("state_flat", |t| replace(t, 3, "[24,48]", "[24.48]"), &[STATE, "two positive numbers"]),
        ],
    );
    spoil_weight(
        Format::Bitsandbytes,
        &nf4((24, 48), true).into(),
        &[
            ("absmax_f32", |t| reshape(t, 1, Dtype::F32, &[18]), &[".weight.absmax", "type F32", "expected U8"]),
            ("nested_short", |t| reshape(t, 3, Dtype::F32, &[2]), &[".weight.nested_absmax", "[2]", "[1]"]),
            ("nested_map", |t| drop(t.remove(4)), &[".weight.nested_quant_map", "missing"]),
            ("nested_nan", |t| set(t, 4, 0, &f32::NAN.to_le_bytes()), &[".weight.nested_quant_map", "NaN at 0"]),
            ("nested_blocks", |t| replace(t, 5, ":256", ":128"), &[STATE, "nested blocks of 128"]),
            ("no_offset", |t| replace(t, 5, "nested_offset", "nested_offsat"), &[STATE, "nested_offset"]),
        ],
    );
}

/// Puts `to` in place of `from`, which is as long, in the text of tensor `number`.
fn replace(tensors: &mut Tensors, number: usize, from: &str, to: &str) {
    let text = String::from_utf8(tensors[number].1.clone()).unwrap();
    assert!(text.contains(from) && from.len() == to.len(), "{text}");
    tensors[number].1 = text.replacen(from, to, 1).into_bytes();
}

#[test]
fn numbers_that_are_not_what_they_promise_are_not_written() {
    let mut q = float8((3, 8), Float8Scales::Channel, ScaleDtype::Bf16);
    let refused = |q: &Float8Weight, dtype, words: &str| {
        let error = Format::CompressedTensors.encode("a.q", &q.clone().into(), dtype).unwrap_err().to_string();
        assert!(error.contains("`a.q`") && error.contains(words), "{error}");
    };
    refused(&q, ScaleDtype::F16, "type Bf16, expected F16");
    q.codes[9] = 0xFF;
    refused(&q, ScaleDtype::Bf16, "code at [1, 1] is NaN");
    q.codes[9] = 0;
    q.scales[2] = 1e-3;
    refused(&q, ScaleDtype::Bf16, "scale at [2, 0]");
    q.scales.pop();
    refused(&q, ScaleDtype::Bf16, "2 scales, expected 24 and 3");
    let mut q = nf4((3, 64), false);
    q.packed.pop();
    let error = Format::Bitsandbytes.encode("a.q", &q.into(), ScaleDtype::F16).unwrap_err().to_string();
    assert!(error.contains("95 bytes of codes and 3 block scales, expected 96 and 3"), "{error}");
}
