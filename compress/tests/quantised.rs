//! Weights that other tools have quantised, read as those tools read them: `fixtures/quantised`, made by
//! `fixtures/interop/make_quantised.py`.

use std::path::{Path, PathBuf};

use scruple_compress::{
    export::{self, Format, Layout},
    grid::ScaleDtype,
    weight::{
        CompressedWeight,
        table4::{self, Absmax, Table, Table4Code},
    },
};
use scruple_weights::{Checkpoint, Dtype};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/quantised").join(name)
}

fn expected(name: &str) -> Checkpoint {
    Checkpoint::open(folder(name).join("expected.safetensors")).unwrap()
}

fn stored(name: &str) -> Checkpoint {
    // The folder holds two files of weights; its configuration stands beside both.
    Checkpoint::open(folder(name).join("model.safetensors")).unwrap()
}

fn round(values: &mut [f32], dtype: Dtype) {
    match dtype {
        Dtype::F16 => ScaleDtype::F16.round_slice(values),
        Dtype::Bf16 => ScaleDtype::Bf16.round_slice(values),
        Dtype::F32 => {}
        other => panic!("{other}"),
    }
}

/// Largest relative difference where the other tool multiplies by 1/127 in its own order.
const INT8: f32 = 1e-3;

#[test]
fn every_file_means_what_its_own_library_says() {
    let mut seen = 0;
    for entry in std::fs::read_dir(folder("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let (checkpoint, expected) = (stored(&name), expected(&name));
        let quantization = export::detect(&checkpoint).unwrap().unwrap();
        let coded = export::coded(&checkpoint, &quantization).unwrap();
        assert_eq!(coded.len(), 1, "{name}");
        let view = expected.tensor(&coded[0].name).unwrap();
        assert_eq!(view.shape(), &*coded[0].shape, "{name}");
        assert_eq!(coded[0].parts.len(), checkpoint.tensors().len(), "{name}: every tensor belongs to the linear");
        let slices = 0..coded[0].slices;
        let decode = |slice| coded[0].decode(&checkpoint, &quantization, slice).unwrap().dequantize();
        let mut found: Vec<f32> = slices.flat_map(decode).collect();
        round(&mut found, view.dtype());
        let wanted = view.to_f32().unwrap();
        if name == "bnb-int8" {
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= INT8 * b.abs();
            assert!(found.iter().zip(&wanted).all(close), "{name}");
        } else {
            let differing = found.iter().zip(&wanted).filter(|(a, b)| a != b).count();
            assert_eq!(differing, 0, "{name}: {differing} of {} numbers differ", found.len());
        }
        let says = ["ct-fp8-channel", "fp8-blocks", "fp8-transformers", "bnb-int8"].contains(&&*name);
        assert_eq!(quantization.note().is_some(), says, "{name}: quantised activations are spoken of");
        seen += 1;
    }
    assert_eq!(seen, 15);
}

/// The bytes of NF4 are bitsandbytes' own: codes, block scales, table; double-quantised scales but for what its CPU code
/// rounds to the second-nearest number of its map.
#[test]
fn nf4_bytes_are_the_library_s() {
    const LINEAR: &str = "model.layers.0.mlp.up_proj";
    for (name, double_quant) in [("bnb-nf4", false), ("bnb-nf4-cut", false), ("bnb-nf4-nested", true)] {
        let (checkpoint, expected) = (stored(name), expected(name));
        let dense = expected.tensor("dense").unwrap();
        let &[rows, columns] = dense.shape() else { panic!("{name}") };
        let code = Table4Code { table: Table::Nf4, block_size: table4::BLOCK, double_quant };
        let weight = table4::quantize(&dense.to_f32().unwrap(), (rows, columns), code).unwrap();
        let dtype = if dense.dtype() == Dtype::F32 { ScaleDtype::F32 } else { ScaleDtype::Bf16 };
        let layout = Layout::of(&weight.clone().into(), dtype);
        let specs = Format::Bitsandbytes.specs(LINEAR, &layout);
        for (spec, (part, bytes)) in
            specs.iter().zip(Format::Bitsandbytes.encode(LINEAR, &weight.into(), dtype).unwrap())
        {
            let view = checkpoint.tensor(&part).unwrap();
            if part.contains("quant_state") {
                let [ours, theirs]: [serde_json::Value; 2] =
                    [&bytes[..], view.bytes()].map(|bytes| serde_json::from_slice(bytes).unwrap());
                for (key, value) in theirs.as_object().unwrap() {
                    match value.as_f64().filter(|_| key == "nested_offset") {
                        Some(offset) => assert!((ours[key].as_f64().unwrap() / offset - 1.0).abs() < 1e-6, "{part}"),
                        None => assert_eq!(&ours[key], value, "{name}: {key}"),
                    }
                }
                continue;
            }
            assert_eq!((view.dtype(), view.shape()), (spec.dtype, &*spec.shape), "{name}: {part}");
            let differing = bytes.iter().zip(view.bytes()).filter(|(a, b)| a != b).count();
            let nested = double_quant && (part.ends_with(".absmax") || part.ends_with(".nested_absmax"));
            // The library sums the mean in another order; 3 of 390 codes lie next to the middle of two numbers.
            let most = if nested { bytes.len().div_ceil(64) } else { 0 };
            assert!(differing <= most, "{name}: {differing} bytes of {part} differ");
        }
    }
}

#[test]
fn the_map_of_double_quantisation_is_the_library_s() {
    let checkpoint = stored("bnb-nf4-nested");
    let quantization = export::detect(&checkpoint).unwrap().unwrap();
    let linear = &export::coded(&checkpoint, &quantization).unwrap()[0].linear;
    match export::decode(&checkpoint, linear, &quantization).unwrap() {
        CompressedWeight::Table4(weight) => match weight.absmax {
            Absmax::Nested { map, .. } => assert_eq!(map, table4::nested_map()),
            Absmax::Plain(_) => panic!("its scales are not nested"),
        },
        other => panic!("{:?}", other.code()),
    }
}
