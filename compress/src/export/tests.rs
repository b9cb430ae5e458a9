//! Written and read back; and every way a file can be wrong that this crate has met.

use std::path::Path;

use proptest::prelude::*;
use scruple_weights::{Checkpoint, CheckpointWriter, Dtype, WriterOptions};
use serde_json::json;

use super::{read::read_config, *};
use crate::{grid::Quantised, kernel::test_values::uniform, model::linear::Linear};

mod floats;

const LINEAR: &str = "model.layers.0.mlp.up_proj";

fn quantised(
    (out_features, in_features): (usize, usize),
    bits: u32,
    group_size: usize,
    symmetric: bool,
    permuted: bool,
    scale_dtype: ScaleDtype,
) -> Quantised {
    let groups = in_features / group_size;
    let code = |x: f32| ((x + 1.0) / 2.0 * (1u32 << bits) as f32) as u8;
    Quantised {
        out_features,
        in_features,
        bits,
        group_size,
        symmetric,
        scale_dtype,
        codes: uniform(out_features * in_features, 1).into_iter().map(code).collect(),
        scales: uniform(out_features * groups, 2).iter().map(|x| scale_dtype.round(0.02 + 0.01 * x)).collect(),
        zeros: match symmetric {
            true => vec![1 << (bits - 1); out_features * groups],
            false => uniform(out_features * groups, 3).into_iter().map(code).collect(),
        },
        // 5 is coprime to the powers of two and of three used as widths.
        g_idx: (permuted && groups > 1)
            .then(|| (0..in_features).map(|i| ((i * 5 % in_features) / group_size) as u32).collect()),
    }
}

/// The model description of one linear.
fn config_of(format: Format, layout: Layout) -> Value {
    let linears = [(LINEAR.to_owned(), layout)];
    let model = QuantisedModel {
        linears: &linears,
        dense: &[],
        beside: &["vision_tower".into()],
        activation_order: layout.code.grid().is_some_and(|grid| grid.has_g_idx),
        true_sequential: true,
        dampening: Some(0.01),
    };
    json!({ "model_type": "llama", "quantization_config": format.config(&model).unwrap() })
}

type Tensors = Vec<(TensorSpec, Vec<u8>)>;

/// The codes of `weight`.
fn codes(weight: CompressedWeight) -> Quantised {
    match weight {
        CompressedWeight::Grid(q) => q,
        other => panic!("{:?} is not on a grid", other.code()),
    }
}

fn layout_of(q: &Quantised, dtype: ScaleDtype) -> Layout {
    Layout::of(&q.clone().into(), dtype)
}

/// The grid of `layout`, to be changed.
fn grid(layout: &mut Layout) -> &mut GridCode {
    match &mut layout.code {
        Code::Grid(grid) => grid,
        other => panic!("{other:?} is not a grid"),
    }
}

fn tensors_of(format: Format, q: &Quantised, dtype: ScaleDtype) -> Tensors {
    let encoded = format.encode(LINEAR, &q.clone().into(), dtype).unwrap();
    let specs = format.specs(LINEAR, &layout_of(q, dtype));
    assert_eq!(encoded.len(), specs.len());
    let pairs = specs.into_iter().zip(encoded);
    pairs
        .map(|(spec, (name, bytes))| {
            assert_eq!(spec.name, name);
            (spec, bytes)
        })
        .collect()
}

fn write(folder: &Path, tensors: &Tensors, config: &Value) -> Checkpoint {
    let specs = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = CheckpointWriter::create(folder, specs, WriterOptions::default()).unwrap();
    for (spec, bytes) in tensors {
        writer.write(&spec.name, bytes).unwrap();
    }
    writer.add_file("config.json", config.to_string().as_bytes()).unwrap();
    writer.finish().unwrap();
    Checkpoint::open(folder).unwrap()
}

fn words_in(tensors: &Tensors, part: &str) -> Vec<u32> {
    let (_, bytes) = tensors.iter().find(|(spec, _)| spec.name.ends_with(part)).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

#[test]
fn names_are_unique_and_read_back() {
    for format in Format::ALL {
        assert_eq!(format.name().parse::<Format>().unwrap(), format);
        assert_eq!(serde_json::to_value(format).unwrap(), format.name());
    }
    let error = "exl2".parse::<Format>().unwrap_err().to_string();
    let expected =
        "unknown format `exl2`, expected one of `gptq`, `compressed-tensors`, `awq`, `bitsandbytes`, `dense`";
    assert_eq!(error, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_was_written_is_read_back(
        format in prop::sample::select(vec![Format::Gptq, Format::CompressedTensors, Format::Awq]),
        out in 1usize..4,
        groups in 1usize..4,
        group_size in prop::sample::select(vec![32usize, 64, 96, 128]),
        bits in prop::sample::select(vec![2u32, 3, 4, 8]),
        symmetric: bool,
        permuted: bool,
        dtype in prop::sample::select(vec![ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F32]),
    ) {
        let (bits, group_size, out_step) = match format {
            Format::Gptq => (bits, group_size, 32),
            Format::Awq => (4, if group_size == 96 { 16 } else { group_size }, 8),
            _ => (bits.max(4) / 4 * 4, group_size, 32),
        };
        let shape = (out_step * out, groups * group_size);
        let q = quantised(shape, bits, group_size, symmetric, permuted && format == Format::Gptq, format.scale_dtype(dtype));
        let folder = tempfile::tempdir().unwrap();
        let layout = layout_of(&q, dtype);
        let tensors = tensors_of(format, &q, dtype);
        let bits_written: usize = tensors.iter().map(|(_, bytes)| 8 * bytes.len()).sum();
        prop_assert_eq!(format.storage_bits(&layout), bits_written as u64);
        let checkpoint = write(&folder.path().join("model"), &tensors, &config_of(format, layout));
        let quantization = detect(&checkpoint).unwrap().unwrap();
        prop_assert_eq!(quantization.format, format);
        let read = codes(decode(&checkpoint, LINEAR, &quantization).unwrap());
        prop_assert_eq!(&read, &q);
        let linear = load_linear(&checkpoint, LINEAR, Some(&quantization)).unwrap();
        let values = linear.weight().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        prop_assert!(values == q.dequantize());
        prop_assert_eq!(linear.storage_bits(), bits_written as u64);
    }

    #[test]
    fn a_dense_file_holds_the_rounded_weights(bits in prop::sample::select(vec![2u32, 3, 4, 8]), symmetric: bool) {
        for dtype in [ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F32] {
            let q = quantised((3, 20), bits, 5, symmetric, false, dtype);
            let folder = tempfile::tempdir().unwrap();
            let tensors = tensors_of(Format::Dense, &q, dtype);
            let checkpoint = write(&folder.path().join("model"), &tensors, &json!({ "model_type": "llama" }));
            prop_assert_eq!(detect(&checkpoint).unwrap(), None);
            let expected: Vec<f32> = q.dequantize().into_iter().map(|value| dtype.round(value)).collect();
            let evaluated = Format::Dense.linear(&q.clone().into(), None, dtype).unwrap();
            for linear in [load_linear(&checkpoint, LINEAR, None).unwrap(), evaluated] {
                let values = linear.weight().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                prop_assert!(values == expected);
            }
        }
    }
}

// The words AutoGPTQ 0.7 and GPTQModel 7.4 write for the same codes (one row of codes counting up, repeated).
#[test]
fn gptq_words_are_those_of_its_packers() {
    for (bits, word, zero) in [
        (2u32, vec![0xE4E4_E4E4u32, 0xE4E4_E4E4], 0x5555_5555u32),
        (3, vec![0x88FA_C688, 0xC688_FAC6, 0xFAC6_88FA], 0xDB6D_B6DB),
        (4, vec![0x7654_3210, 0xFEDC_BA98, 0x7654_3210, 0xFEDC_BA98], 0x7777_7777),
        (8, (0..8).map(|i| 0x0302_0100 + 0x0404_0404 * i).collect(), 0x7F7F_7F7F),
    ] {
        let mut q = quantised((32, 32), bits, 32, true, false, ScaleDtype::F16);
        for (i, code) in q.codes.iter_mut().enumerate() {
            *code = (i % 32 % (1 << bits)) as u8;
        }
        let tensors = tensors_of(Format::Gptq, &q, ScaleDtype::Bf16);
        let words = words_in(&tensors, ".qweight"); // (32·b/32, 32)
        for (i, word) in word.iter().enumerate() {
            assert_eq!(words[32 * i..][..32], [*word; 32], "{bits} bits");
        }
        assert_eq!(words_in(&tensors, ".qzeros")[0], zero, "{bits} bits");
        assert_eq!(words_in(&tensors, ".g_idx"), [0; 32]);
        q.symmetric = false; // version 2
        let zeros = words_in(&tensors_of(Format::Gptq, &q, ScaleDtype::Bf16), ".qzeros");
        let version_2 = [0, 0, 0xAAAA_AAAA, 0x2492_4924, 0x8888_8888, 0, 0, 0, 0x8080_8080u32][bits as usize];
        assert_eq!(zeros[0], version_2, "{bits} bits");
    }
}

// compressed-tensors 0.19's pack_to_int32 of the signed codes −8..−1.
#[test]
fn compressed_tensors_words_are_those_of_its_packer() {
    let mut q = quantised((8, 8), 4, 8, false, false, ScaleDtype::Bf16);
    for (i, code) in q.codes.iter_mut().enumerate() {
        *code = (i % 8) as u8;
    }
    q.zeros = (0..8).collect();
    let tensors = tensors_of(Format::CompressedTensors, &q, ScaleDtype::Bf16);
    assert_eq!(words_in(&tensors, ".weight_packed"), [0x7654_3210; 8]);
    assert_eq!(words_in(&tensors, ".weight_zero_point"), [0x7654_3210]);
    assert_eq!(words_in(&tensors, ".weight_shape"), [8, 0, 8, 0]);
}

// AutoAWQ's order of eight outputs in a word.
#[test]
fn awq_words_are_those_of_its_packer() {
    let mut q = quantised((8, 16), 4, 16, false, false, ScaleDtype::F16);
    for (i, code) in q.codes.iter_mut().enumerate() {
        *code = (i / 16) as u8; // output i holds i everywhere
    }
    q.zeros = (8..16).collect();
    let tensors = tensors_of(Format::Awq, &q, ScaleDtype::Bf16);
    assert_eq!(words_in(&tensors, ".qweight"), [0x7531_6420; 16]);
    assert_eq!(words_in(&tensors, ".qzeros"), [0xFDB9_ECA8]);
}

#[test]
fn an_awq_configuration_has_the_fields_loaders_read() {
    let linears = [("a.q".to_owned(), layout(4, 64, false)), ("a.k".to_owned(), layout(4, 64, true))];
    let dense = ["a.gate".to_owned(), "lm_head".to_owned()];
    let config = Format::Awq.config(&model(&linears, &dense)).unwrap().unwrap();
    let expected = json!({
        "quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": true, "version": "gemm",
        "modules_to_not_convert": ["a.gate", "lm_head"],
    });
    assert_eq!(config, expected);
    let (dense, beside) = (["model.language_model.gate".to_owned()], ["vision_tower".to_owned()]);
    let parts = QuantisedModel { beside: &beside, ..model(&linears, &dense) };
    assert_eq!(
        Format::Awq.config(&parts).unwrap().unwrap()["modules_to_not_convert"],
        json!(["model.language_model.gate", "language_model.model.gate", "vision_tower", "model.vision_tower"])
    );
    let mixed = [("a".to_owned(), layout(4, 64, false)), ("b".to_owned(), layout(4, 128, false))];
    let error = Format::Awq.config(&model(&mixed, &[])).unwrap_err().to_string();
    assert!(error.contains("`b` has -1 where most have 64"), "{error}");
}

#[test]
fn bad_awq_tensors_are_refused_by_name() {
    spoil(
        Format::Awq,
        &[
            ("no_qweight", |t| drop(t.remove(0)), &[".qweight", "missing"]),
            ("no_qzeros", |t| drop(t.remove(1)), &[".qzeros", "missing"]),
            ("no_scales", |t| drop(t.remove(2)), &[".scales", "missing"]),
            ("qweight_f32", |t| reshape(t, 0, Dtype::F32, &[128, 4]), &[".qweight", "type F32", "expected I32"]),
            ("qweight_flat", |t| reshape(t, 0, Dtype::I32, &[512]), &[".qweight", "[512]", "two dimensions"]),
            ("qweight_empty", |t| reshape(t, 0, Dtype::I32, &[0, 4]), &[".qweight", "[0, 4]"]),
            ("qweight_long", |t| reshape(t, 0, Dtype::I32, &[256, 4]), &["groups of 64", "4 bits in groups of 32"]),
            ("qweight_wide", |t| reshape(t, 0, Dtype::I32, &[128, 8]), &[".qzeros", "expected [4, 8]"]),
            ("qzeros_wide", |t| reshape(t, 1, Dtype::I32, &[4, 8]), &[".qzeros", "[4, 8]", "expected [4, 4]"]),
            ("qzeros_groups", |t| reshape(t, 1, Dtype::I32, &[3, 4]), &[".qzeros", "3 groups for 128 inputs"]),
            ("scales_shape", |t| reshape(t, 2, Dtype::F16, &[32, 4]), &[".scales", "[32, 4]", "expected [4, 32]"]),
            ("scales_type", |t| reshape(t, 2, Dtype::I32, &[4, 32]), &[".scales", "type I32", "expected F16"]),
            ("scale_nan", |t| set(t, 2, 2, &0x7E00u16.to_le_bytes()), &[".scales", "holds NaN at [0, 1]"]),
            ("scale_zero", |t| set(t, 2, 66, &[0, 0]), &[".scales", "holds 0 at [1, 1]", "above zero"]),
        ],
    );
}

#[test]
fn a_version_1_zero_point_wraps_to_zero() {
    let mut q = quantised((32, 32), 4, 32, false, false, ScaleDtype::F16);
    q.zeros.fill(15);
    let layout = layout_of(&q, ScaleDtype::F16);
    let tensors = tensors_of(Format::Gptq, &q, ScaleDtype::F16);
    let mut config = config_of(Format::Gptq, layout);
    config["quantization_config"]["checkpoint_format"] = "gptq".into();
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = write(&folder.path().join("model"), &tensors, &config);
    let quantization = detect(&checkpoint).unwrap().unwrap();
    assert_eq!(codes(decode(&checkpoint, LINEAR, &quantization).unwrap()).zeros, [0; 32]);
}

#[test]
fn an_old_gptq_folder_is_known_by_its_own_configuration() {
    let q = quantised((32, 64), 4, 32, true, false, ScaleDtype::F16);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    write(&path, &tensors_of(Format::Gptq, &q, ScaleDtype::F16), &json!({ "model_type": "llama" }));
    std::fs::write(path.join("quantize_config.json"), r#"{"bits": 4, "group_size": 32, "desc_act": false}"#).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let quantization = detect(&checkpoint).unwrap().unwrap();
    assert_eq!(codes(decode(&checkpoint, LINEAR, &quantization).unwrap()), q);
}

#[test]
fn compressed_tensors_reads_an_order_of_columns_it_does_not_write() {
    let q = quantised((32, 64), 4, 32, true, true, ScaleDtype::F16);
    let error = Format::CompressedTensors.encode(LINEAR, &q.clone().into(), ScaleDtype::F16).unwrap_err().to_string();
    assert!(error.contains("static groups"), "{error}");
    let mut contiguous = q.clone();
    contiguous.g_idx = None;
    let mut tensors = tensors_of(Format::CompressedTensors, &contiguous, ScaleDtype::F16);
    let spec = TensorSpec::new(format!("{LINEAR}.weight_g_idx"), Dtype::I32, [64]);
    tensors.push((spec, word_bytes(q.g_idx.as_ref().unwrap())));
    let config = config_of(Format::CompressedTensors, layout_of(&contiguous, ScaleDtype::F16));
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = write(&folder.path().join("model"), &tensors, &config);
    let quantization = detect(&checkpoint).unwrap().unwrap();
    assert_eq!(codes(decode(&checkpoint, LINEAR, &quantization).unwrap()), q);
}

fn model<'a>(linears: &'a [(String, Layout)], dense: &'a [String]) -> QuantisedModel<'a> {
    QuantisedModel { linears, dense, beside: &[], activation_order: true, true_sequential: true, dampening: Some(0.01) }
}

fn layout(bits: u32, group_size: usize, symmetric: bool) -> Layout {
    let code = Code::Grid(GridCode { bits, group_size, symmetric, has_g_idx: false });
    Layout { out_features: 64, in_features: 128, code, dtype: ScaleDtype::Bf16 }
}

#[test]
fn a_gptq_configuration_has_the_fields_loaders_read() {
    let linears = [("a.q".to_owned(), layout(4, 64, true)), ("a.k".to_owned(), layout(4, 64, true))];
    let config = Format::Gptq.config(&model(&linears, &["lm_head".to_owned()])).unwrap().unwrap();
    let expected = json!({
        "bits": 4, "group_size": 64, "desc_act": false, "sym": true, "lm_head": false, "quant_method": "gptq",
        "checkpoint_format": "gptq", "pack_dtype": "int32", "true_sequential": true, "damp_percent": 0.01,
        "static_groups": true, "meta": { "quantizer": [format!("scruple:{}", env!("CARGO_PKG_VERSION"))] },
    });
    assert_eq!(config, expected);
    assert_eq!(Format::Gptq.side_files(&model(&linears, &[])).unwrap()[0].0, "quantize_config.json");

    let linears = [
        ("a.0.q".to_owned(), layout(4, 64, false)),
        ("a.0.k".to_owned(), layout(8, 128, false)),
        ("a.1.q".to_owned(), layout(4, 64, false)),
    ];
    let config = Format::Gptq.config(&model(&linears, &["a.0.down".to_owned()])).unwrap().unwrap();
    assert_eq!(config["checkpoint_format"], "gptq_v2");
    let dynamic = json!({ r"+:^a\.0\.k$": { "bits": 8, "group_size": -1, "sym": false }, r"-:^a\.0\.down$": {} });
    assert_eq!(config["dynamic"], dynamic);

    // GPTQModel, AutoGPTQ and transformers refuse a dampening that is not strictly between 0 and 1.
    for dampening in [None, Some(0.0), Some(1.0), Some(2.5)] {
        let config = Format::Gptq.config(&QuantisedModel { dampening, ..model(&linears, &[]) }).unwrap().unwrap();
        assert!(config.get("damp_percent").is_none(), "{config:#}");
    }

    let mixed = [("a".to_owned(), layout(4, 64, false)), ("b".to_owned(), layout(4, 64, true))];
    let error = Format::Gptq.config(&model(&mixed, &[])).unwrap_err().to_string();
    assert!(error.contains("`b`") && error.contains("symmetric"), "{error}");
}

#[test]
fn a_compressed_tensors_configuration_has_the_library_s_fields() {
    let linears = [("a.q".to_owned(), layout(4, 64, true))];
    let config = Format::CompressedTensors.config(&model(&linears, &[])).unwrap().unwrap();
    // Saved by llm-compressor 0.14 with compressed-tensors 0.19 for round-to-nearest, symmetric, groups of 64; the
    // observer and `actorder` are ours.
    let expected = json!({
        "config_groups": { "group_0": {
            "format": "pack-quantized", "input_activations": null, "output_activations": null, "targets": ["Linear"],
            "weights": {
                "actorder": "weight", "block_structure": null, "dynamic": false, "group_size": 64, "num_bits": 4,
                "observer": "minmax", "observer_kwargs": {}, "scale_dtype": null, "strategy": "group",
                "symmetric": true, "type": "int", "zp_dtype": null
            }
        } },
        "format": "pack-quantized", "global_compression_ratio": null, "ignore": ["lm_head"], "kv_cache_scheme": null,
        "quant_method": "compressed-tensors", "quantization_status": "compressed", "sparsity_config": {},
        "transform_config": {}, "version": "0.19.0"
    });
    assert_eq!(config, expected);

    let linears = [("a.q".to_owned(), layout(4, 64, true)), ("a.k".to_owned(), layout(8, 128, false))];
    let config = Format::CompressedTensors.config(&model(&linears, &["lm_head".to_owned()])).unwrap().unwrap();
    assert_eq!(config["ignore"], json!(["lm_head"]));
    assert_eq!(config["config_groups"]["group_0"]["targets"], json!(["a.q"]));
    assert_eq!(config["config_groups"]["group_1"]["targets"], json!(["a.k"]));
    assert_eq!(config["config_groups"]["group_0"]["weights"]["actorder"], "weight");
    let per_row = &config["config_groups"]["group_1"]["weights"];
    assert_eq!((&per_row["strategy"], &per_row["actorder"]), (&json!("channel"), &Value::Null));
}

#[test]
fn what_a_format_cannot_hold_is_refused_with_a_way_out() {
    let refused = |format: Format, change: &dyn Fn(&mut Layout), words: &[&str]| {
        let mut layout = layout(4, 64, true);
        change(&mut layout);
        let error = format.check("a.q", &layout).unwrap_err().to_string();
        for word in words.iter().chain(&["`a.q`", format.name()]) {
            assert!(error.contains(word), "{error}: expected {word}");
        }
    };
    refused(
        Format::Gptq,
        &|l| (l.in_features, grid(l).group_size) = (144, 48),
        &["144 inputs", "multiple of 32", "dense"],
    );
    refused(Format::Gptq, &|l| l.out_features = 48, &["48 outputs", "multiple of 32"]);
    refused(Format::Gptq, &|l| l.in_features = 160, &["group size 64", "32, 160 would work"]);
    refused(Format::Dense, &|l| grid(l).group_size = 0, &["group size 0"]);
    refused(Format::Dense, &|l| l.out_features = 0, &["empty"]);
    refused(Format::Gptq, &|l| grid(l).bits = 5, &["5 bits", "2, 3, 4 or 8"]);
    refused(Format::Awq, &|l| grid(l).bits = 8, &["4 bits, not 8", "gptq"]);
    refused(Format::Awq, &|l| l.out_features = 12, &["12 outputs", "multiple of 8"]);
    refused(Format::Awq, &|l| grid(l).has_g_idx = true, &["static groups"]);
    refused(Format::Awq, &|l| (l.in_features, grid(l).group_size) = (96, 48), &["groups are of 48", "16, 32, 64, 128"]);
    refused(Format::CompressedTensors, &|l| grid(l).bits = 3, &["4 or 8 bits, not 3", "gptq"]);
    refused(Format::CompressedTensors, &|l| grid(l).bits = 2, &["not 2"]);
    refused(Format::CompressedTensors, &|l| grid(l).has_g_idx = true, &["static groups"]);
    refused(
        Format::CompressedTensors,
        &|l| (l.in_features, grid(l).group_size) = (12, 4),
        &["12 inputs", "words of 8"],
    );
    let odd = |l: &mut Layout| (l.out_features, grid(l).symmetric) = (12, false);
    refused(Format::CompressedTensors, &odd, &["12 outputs", "symmetrically"]);
}

#[test]
fn codes_that_are_not_what_they_promise_are_refused() {
    let good = quantised((32, 64), 4, 32, false, true, ScaleDtype::F16);
    let refused = |change: &dyn Fn(&mut Quantised), word: &str| {
        let mut q = good.clone();
        change(&mut q);
        let error = Format::Gptq.encode("a.q", &q.into(), ScaleDtype::Bf16).unwrap_err().to_string();
        assert!(error.contains("`a.q`") && error.contains(word), "{error}: expected {word}");
    };
    refused(&|q| q.codes.truncate(2047), "2047 codes");
    refused(&|q| q.codes[65] = 16, "code at [1, 1] is 16");
    refused(&|q| q.zeros[3] = 16, "zero point of row 1 is 16, expected at most 15");
    refused(&|q| q.symmetric = true, "expected 8");
    refused(&|q| q.scales[3] = f32::NAN, "scale of row 1, group 1 is NaN");
    refused(&|q| q.scales[0] = 0.0, "above zero");
    refused(&|q| q.scales[0] = 1e-3, "F16 holds exactly"); // chosen for f32, then rounded by the file
    refused(&|q| q.g_idx.as_mut().unwrap()[0] = 2, "no group 2");
    refused(&|q| q.g_idx.as_mut().unwrap().fill(0), "group 0 has 64 columns");
}

#[test]
fn a_configuration_that_is_not_read_is_named() {
    let read = |format: Format, change: &dyn Fn(&mut Value)| {
        let mut config = config_of(format, layout(4, 64, true))["quantization_config"].clone();
        change(&mut config);
        read_config(&config, None).unwrap_err()
    };
    let group = |config: &mut Value, field: &str, value: Value| config["config_groups"]["group_0"][field] = value;
    let weights = |config: &mut Value, field: &str, value: Value| {
        config["config_groups"]["group_0"]["weights"][field] = value;
    };
    let ct = Format::CompressedTensors;
    for (error, words) in [
        (read(Format::Gptq, &|c| c["quant_method"] = "exl2".into()), "\"exl2\""),
        (read(Format::Awq, &|c| c["version"] = "gemv".into()), "\"gemv\""),
        (read(Format::Awq, &|c| c["bits"] = 3.into()), "`bits` 3"),
        (read(Format::Awq, &|c| c["zero_point"] = false.into()), "`zero_point` false"),
        (read(Format::Awq, &|c| c["group_size"] = json!(null)), "no `group_size`"),
        (read(Format::Gptq, &|c| c["quant_method"] = json!(null)), "no `quant_method`"),
        (read(Format::Gptq, &|c| c["bits"] = 5.into()), "5 bits"),
        (read(Format::Gptq, &|c| c["bits"] = (-4).into()), "`bits` -4"),
        (read(Format::Gptq, &|c| c["bits"] = "4".into()), "expected a whole number"),
        (read(Format::Gptq, &|c| c["bits"] = json!(null)), "no `bits`"),
        (read(Format::Gptq, &|c| c["group_size"] = 0.into()), "`group_size` 0"),
        (read(Format::Gptq, &|c| c["sym"] = 1.into()), "`sym` 1"),
        (read(Format::Gptq, &|c| c["checkpoint_format"] = "marlin".into()), "\"marlin\""),
        (read(Format::Gptq, &|c| c["pack_dtype"] = "int16".into()), "int16"),
        (read(ct, &|c| c["format"] = "marlin-24".into()), "marlin-24"),
        (read(ct, &|c| c["config_groups"] = json!({})), "no `config_groups`"),
        (read(ct, &|c| group(c, "output_activations", json!({ "num_bits": 8 }))), "output_activations"),
        (read(ct, &|c| group(c, "weights", json!(null))), "no `weights`"),
        (read(ct, &|c| weights(c, "type", "float".into())), "floats of 4 bits"),
        (read(ct, &|c| weights(c, "type", "complex".into())), "\"complex\""),
        (read(ct, &|c| weights(c, "strategy", "block".into())), "\"block\""),
        (read(ct, &|c| weights(c, "group_size", json!(null))), "no `group_size`"),
        (read(ct, &|c| weights(c, "num_bits", 1.into())), "1 bits"),
    ] {
        assert!(error.contains(words), "{error}: expected {words}");
    }
}

/// One way to spoil the tensors of a good file, and words its message must have.
type Fault = (&'static str, fn(&mut Tensors), &'static [&'static str]);

fn spoil(format: Format, faults: &[Fault]) {
    let q = quantised((32, 128), 4, 32, false, format == Format::Gptq, ScaleDtype::F16);
    let config = config_of(format, layout_of(&q, ScaleDtype::F16));
    let folder = tempfile::tempdir().unwrap();
    for (name, fault, words) in faults {
        let mut tensors = tensors_of(format, &q, ScaleDtype::F16);
        fault(&mut tensors);
        let checkpoint = write(&folder.path().join(name), &tensors, &config);
        let quantization = detect(&checkpoint).unwrap().unwrap();
        let error = decode(&checkpoint, LINEAR, &quantization).unwrap_err().to_string();
        for word in words.iter().chain(&[LINEAR]) {
            assert!(error.contains(word), "{name}: `{error}` lacks `{word}`");
        }
        assert!(error.contains(&folder.path().join(name).display().to_string()), "{name}: `{error}` names no file");
        assert!(load_linear(&checkpoint, LINEAR, Some(&quantization)).is_err());
    }
}

/// Replaces tensor `number` by zeros of another type or shape.
fn reshape(tensors: &mut Tensors, number: usize, dtype: Dtype, shape: &[usize]) {
    tensors[number].0.dtype = dtype;
    tensors[number].0.shape = shape.to_vec();
    tensors[number].1 = vec![0; dtype.bytes(shape.iter().product()).unwrap()];
}

fn set(tensors: &mut Tensors, number: usize, at: usize, bytes: &[u8]) {
    tensors[number].1[at..][..bytes.len()].copy_from_slice(bytes);
}

#[test]
fn bad_gptq_tensors_are_refused_by_name() {
    spoil(
        Format::Gptq,
        &[
            ("no_qweight", |t| drop(t.remove(0)), &[".qweight", "missing"]),
            ("no_qzeros", |t| drop(t.remove(1)), &[".qzeros", "missing"]),
            ("no_scales", |t| drop(t.remove(2)), &[".scales", "missing"]),
            ("qweight_f32", |t| reshape(t, 0, Dtype::F32, &[16, 32]), &[".qweight", "type F32", "expected I32"]),
            ("qweight_flat", |t| reshape(t, 0, Dtype::I32, &[512]), &[".qweight", "[512]", "two dimensions"]),
            ("qweight_long", |t| reshape(t, 0, Dtype::I32, &[32, 32]), &["groups of 64", "4 bits in groups of 32"]),
            ("qweight_narrow", |t| reshape(t, 0, Dtype::I32, &[16, 8]), &[".qweight", "[16, 8]", "multiple of 32"]),
            ("qzeros_wide", |t| reshape(t, 1, Dtype::I32, &[4, 8]), &[".qzeros", "[4, 8]", "expected [4, 4]"]),
            ("qzeros_groups", |t| reshape(t, 1, Dtype::I32, &[3, 4]), &[".qzeros", "3 groups for 128 inputs"]),
            ("scales_shape", |t| reshape(t, 2, Dtype::F16, &[32, 4]), &[".scales", "[32, 4]", "expected [4, 32]"]),
            ("scales_type", |t| reshape(t, 2, Dtype::I32, &[4, 32]), &[".scales", "type I32", "expected F16"]),
            ("scale_nan", |t| set(t, 2, 2, &0x7E00u16.to_le_bytes()), &[".scales", "holds NaN at [0, 1]"]),
            ("scale_zero", |t| set(t, 2, 66, &[0, 0]), &[".scales", "holds 0 at [1, 1]", "above zero"]),
            ("scale_negative", |t| set(t, 2, 0, &0xBC00u16.to_le_bytes()), &[".scales", "holds -1 at"]),
            ("scale_infinite", |t| set(t, 2, 0, &0x7C00u16.to_le_bytes()), &[".scales", "holds inf at"]),
            ("g_idx_high", |t| set(t, 3, 8, &4u32.to_le_bytes()), &[".g_idx", "column 2", "group 4", "0 to 3"]),
            ("g_idx_negative", |t| set(t, 3, 8, &(-1i32).to_le_bytes()), &[".g_idx", "group -1"]),
            ("g_idx_uneven", |t| set(t, 3, 0, &3u32.to_le_bytes()), &[".g_idx", "31 columns", "expected 32"]),
            ("g_idx_short", |t| reshape(t, 3, Dtype::I32, &[64]), &[".g_idx", "[64]", "expected [128]"]),
            ("g_idx_i64", |t| reshape(t, 3, Dtype::I64, &[128]), &[".g_idx", "type I64", "expected I32"]),
        ],
    );
}

#[test]
fn bad_compressed_tensors_are_refused_by_name() {
    spoil(
        Format::CompressedTensors,
        &[
            ("no_packed", |t| drop(t.remove(0)), &[".weight_packed", "missing"]),
            ("no_scale", |t| drop(t.remove(1)), &[".weight_scale", "missing"]),
            ("no_shape", |t| drop(t.remove(2)), &[".weight_shape", "missing"]),
            ("no_zeros", |t| drop(t.remove(3)), &[".weight_zero_point", "missing"]),
            ("packed_type", |t| reshape(t, 0, Dtype::U8, &[32, 64]), &[".weight_packed", "type U8", "expected I32"]),
            ("packed_short", |t| reshape(t, 0, Dtype::I32, &[32, 15]), &[".weight_packed", "[32, 15]"]),
            ("packed_8", |t| reshape(t, 0, Dtype::I32, &[32, 32]), &["8 bits in groups of 32", "says 4 bits"]),
            ("shape_rows", |t| set(t, 2, 0, &31i64.to_le_bytes()), &[".weight_shape", "[31, 128]"]),
            ("shape_negative", |t| set(t, 2, 8, &(-1i64).to_le_bytes()), &[".weight_shape", "[32, -1]"]),
            ("shape_huge", |t| set(t, 2, 8, &i64::MAX.to_le_bytes()), &[".weight_shape", "9223372036854775807"]),
            ("shape_three", |t| reshape(t, 2, Dtype::I64, &[3]), &[".weight_shape", "[3]", "expected [2]"]),
            ("scale_rows", |t| reshape(t, 1, Dtype::F16, &[16, 4]), &[".weight_scale", "[16, 4]", "[32, groups]"]),
            ("scale_groups", |t| reshape(t, 1, Dtype::F16, &[32, 2]), &["groups of 64", "groups of 32"]),
            ("scale_zeros", |t| reshape(t, 1, Dtype::F16, &[32, 4]), &[".weight_scale", "holds 0 at [0, 0]"]),
            ("zeros_shape", |t| reshape(t, 3, Dtype::I32, &[32, 4]), &[".weight_zero_point", "expected [4, 4]"]),
        ],
    );
}

#[test]
fn zero_points_that_contradict_the_configuration_are_refused() {
    let q = quantised((32, 64), 4, 32, false, false, ScaleDtype::F16);
    for (format, words) in [(Format::Gptq, "expected 8"), (Format::CompressedTensors, "says symmetric")] {
        let mut config = config_of(format, layout_of(&q, ScaleDtype::F16));
        config["quantization_config"]["sym"] = true.into();
        if format == Format::CompressedTensors {
            config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = true.into();
        }
        let folder = tempfile::tempdir().unwrap();
        let tensors = tensors_of(format, &q, ScaleDtype::F16);
        let checkpoint = write(&folder.path().join("model"), &tensors, &config);
        let quantization = detect(&checkpoint).unwrap().unwrap();
        let error = decode(&checkpoint, LINEAR, &quantization).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_mapped_weight_at_an_odd_address_runs() {
    let values = uniform(5 * 33, 4);
    let spec = |name: &str, dtype, shape: &[usize]| TensorSpec::new(name, dtype, shape);
    let tensors = vec![
        (spec("a.odd", Dtype::U8, &[3]), vec![1, 2, 3]),
        (spec(&format!("{LINEAR}.weight"), Dtype::Bf16, &[5, 33]), float_bytes(&values, ScaleDtype::Bf16)),
        (spec(&format!("{LINEAR}.bias"), Dtype::F32, &[5]), float_bytes(&values[..5], ScaleDtype::F32)),
    ];
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = write(&folder.path().join("model"), &tensors, &json!({}));
    let mapped = load_linear(&checkpoint, LINEAR, None).unwrap();
    let view = checkpoint.tensor(&format!("{LINEAR}.weight")).unwrap();
    let copied = DenseLinear::from_view(view, Some(values[..5].to_vec())).unwrap().into_memory();
    assert_eq!((mapped.shape(), mapped.storage_bits()), ((5, 33), 5 * 33 * 16));
    for tokens in [1, 6] {
        let x = crate::kernel::tensor::from_vec(uniform(tokens * 33, 5), (tokens, 33)).unwrap();
        let [mapped, copied] =
            [&*mapped, &copied as &dyn Linear].map(|l| l.forward(&x).unwrap().to_vec2::<f32>().unwrap());
        assert_eq!(mapped, copied);
    }
    let bias = checkpoint.tensor(&format!("{LINEAR}.bias")).unwrap();
    let error = DenseLinear::from_view(bias, None).unwrap_err().to_string();
    assert!(error.contains(".bias") && error.contains("[5]") && error.contains("two dimensions"), "{error}");
}
