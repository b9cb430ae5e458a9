//! `convert` from containers that are already under Hugging Face names: copied, or in another type.

use std::fs;

use scruple_weights::{Checkpoint, Dtype};

use super::support::{Model, Place, json_file, numbers};
use crate::scruple;

#[test]
fn a_folder_is_copied_bit_for_bit_or_rounded_to_another_type() {
    let place = Place::new();
    let model = Model::tiny().dtype(Dtype::F32).write(place.path("model"));
    let (same, half) = (place.out("same"), place.out("half"));
    scruple!["convert", model, "-o", same].succeeds();
    let (before, after) = (Checkpoint::open(&model).unwrap(), Checkpoint::open(&same).unwrap());
    assert_eq!(before.fingerprint(), after.fingerprint());
    assert_eq!(json_file(&model.join("config.json")), json_file(&same.join("config.json")));
    assert_eq!(fs::read(model.join("tokenizer.json")).unwrap(), fs::read(same.join("tokenizer.json")).unwrap());

    let run = scruple!["convert", model, "-o", half, "--dtype bf16 --json"].succeeds();
    let summary: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        (summary["dtype"].as_str(), summary["tensors"].as_u64()),
        (Some("BF16"), Some(before.tensors().len() as u64))
    );
    let name = "model.layers.0.mlp.up_proj.weight";
    let rounded = numbers(&model, name).into_iter().map(|value| half::bf16::from_f32(value).to_f32());
    assert_eq!(numbers(&half, name), rounded.collect::<Vec<_>>());
    assert_eq!(json_file(&half.join("config.json"))["torch_dtype"], "bfloat16");
}

#[test]
fn a_weight_that_is_not_finite_is_refused_unless_it_is_allowed() {
    let place = Place::new();
    let name = "model.layers.1.self_attn.o_proj.weight";
    let model = Model::tiny().set(name, 37, f32::NEG_INFINITY).write(place.path("model"));
    for dtype in ["", "--dtype f32"] {
        let out = place.out("out");
        scruple!["convert", model, "-o", out, dtype].refuses(&[name, "-inf", "element 37", "--allow-nonfinite"]);
        assert_eq!(place.results(), [""; 0]);
        scruple!["convert", model, "-o", out, dtype, "--allow-nonfinite"].succeeds();
        assert_eq!(numbers(&out, name)[37], f32::NEG_INFINITY);
        fs::remove_dir_all(out).unwrap();
    }
}
