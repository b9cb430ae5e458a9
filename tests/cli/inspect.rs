//! What `inspect` says of sound models, of faulty ones, and of those it has to guess about.

use std::fs;

use scruple_weights::Dtype;
use serde_json::Value;

use crate::{
    scruple,
    support::{Model, Place, assert_same_files, names},
};

/// The reasons for which `tensor` is flagged.
fn reasons(report: &Value, tensor: &str) -> Vec<String> {
    let tensors = report["tensors"].as_array().unwrap();
    let entry = tensors.iter().find(|entry| entry["name"] == tensor).unwrap();
    let reason = |flag: &Value| flag["reason"].as_str().unwrap().to_owned();
    entry["flags"].as_array().unwrap().iter().map(reason).collect()
}

#[test]
fn the_embedded_model_is_told_by_its_configuration() {
    let report = scruple!["inspect --json"].json();
    let anatomy = &report["anatomy"];
    assert_eq!(report["model"], "tiny-world");
    assert_eq!(anatomy["family"], serde_json::json!({ "value": "llama", "guess": false }));
    assert_eq!(anatomy["architecture"], "LlamaForCausalLM");
    assert_eq!((&anatomy["blocks"]["value"], &anatomy["heads"]["value"]), (&3.into(), &4.into()));
    assert_eq!(anatomy["tokenizer"]["kind"], "BPE");
    assert_eq!(anatomy["tokenizer"]["vocabulary"], anatomy["vocabulary"]["value"]);
    assert_eq!(anatomy["quantisation"], serde_json::json!([]));

    let text = scruple!["inspect"].succeeds().stdout;
    assert!(text.starts_with("tiny-world: llama (LlamaForCausalLM), 2,033,408 parameters, 4.1 MB"), "{text}");
    assert!(text.contains("model.layers.*.mlp.down_proj.weight"), "{text}");
    let all = scruple!["inspect --all --sort kurtosis"].succeeds().stdout;
    assert!(all.contains("model.layers.2.mlp.down_proj.weight"), "{all}");
}

#[test]
fn without_a_configuration_everything_is_a_guess() {
    let place = Place::new();
    let folder = Model::sized(3, 256, 512).dtype(Dtype::Bf16).write(place.path("model"));
    fs::remove_file(folder.join("config.json")).unwrap();
    let report = scruple!["inspect --json", &folder].json();
    let anatomy = &report["anatomy"];
    assert!(anatomy["family"]["value"].as_str().unwrap().starts_with("llama-like"), "{anatomy}");
    for (fact, value) in [("blocks", 3), ("hidden_size", 256), ("heads", 4), ("kv_heads", 2), ("vocabulary", 64)] {
        assert_eq!(anatomy[fact], serde_json::json!({ "value": value, "guess": true }), "{fact}");
    }
    assert!(scruple!["inspect", &folder].succeeds().stdout.contains("hidden size 256 (guess)"));
}

#[test]
fn planted_faults_are_named() {
    const COLUMNS: usize = 64;
    let place = Place::new();
    let model = Model::sized(6, COLUMNS, 96)
        .set("model.layers.0.self_attn.q_proj.weight", 3 * COLUMNS + 5, f32::NAN)
        .edit("model.layers.1.mlp.up_proj.weight", |w| w[7 * COLUMNS..8 * COLUMNS].fill(0.0))
        .edit("model.layers.2.mlp.up_proj.weight", |w| w.copy_within(2 * COLUMNS..3 * COLUMNS, 40 * COLUMNS))
        .edit("model.layers.3.mlp.gate_proj.weight", |w| w.iter_mut().skip(9).step_by(COLUMNS).for_each(|x| *x *= 30.0))
        .edit("model.layers.4.self_attn.o_proj.weight", |w| w.iter_mut().for_each(|x| *x *= 5.0))
        .edit("model.layers.5.self_attn.v_proj.weight", |w| w[77] *= 50.0);
    let folder = model.write(place.path("model"));
    let report = scruple!["inspect --json -o", place.out("report"), &folder].json();
    for (tensor, expected) in [
        ("model.layers.0.self_attn.q_proj.weight", "1 NaN, the first at [3, 5]"),
        ("model.layers.1.mlp.up_proj.weight", "1 dead row of 96 (7)"),
        ("model.layers.2.mlp.up_proj.weight", "1 row repeats an earlier one (row 40 is 2)"),
        ("model.layers.3.mlp.gate_proj.weight", "1.6 % of the columns carry 9"),
        ("model.layers.4.self_attn.o_proj.weight", ", the median of this kind is"),
        ("model.layers.5.self_attn.v_proj.weight", "kurtosis"),
    ] {
        let reasons = reasons(&report, tensor);
        assert!(reasons.iter().any(|reason| reason.contains(expected)), "{tensor}: {reasons:?}");
    }
    assert_eq!(reasons(&report, "model.layers.4.mlp.up_proj.weight"), Vec::<String>::new());
    let text = scruple!["inspect", &folder].succeeds().stdout;
    let first = text.lines().find(|line| line.contains(": 1 NaN")).unwrap();
    assert!(first.starts_with("model.layers.0.self_attn.q_proj.weight"), "{text}");
}

#[test]
fn tensors_of_the_same_bytes_are_paired() {
    let place = Place::new();
    let model = Model::tiny();
    let embedding = model.tensors[0].2.clone();
    let folder = model.edit("lm_head.weight", |w| w.copy_from_slice(&embedding)).write(place.path("model"));
    let report = scruple!["inspect --json", &folder].json();
    let mut pair: Vec<&str> = report["identical"][0].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    pair.sort();
    assert_eq!(pair, ["lm_head.weight", "model.embed_tokens.weight"]);
}

#[test]
fn records_and_pictures_are_the_same_for_any_number_of_threads() {
    let place = Place::new();
    let (one, two) = (place.out("one"), place.out("two"));
    scruple!["inspect --spectra --threads 1 -o", &one].succeeds();
    scruple!["inspect --spectra --threads 2 -o", &two].succeeds();
    assert_same_files(&one, &two);
    assert_eq!(names(&one), ["health.png", "health.svg", "inspect.json", "run.json"]);
    assert!(fs::read(one.join("health.png")).unwrap().starts_with(b"\x89PNG"));
    for quantity in ["std", "kurtosis", "outliers"] {
        scruple![format!("--plot={quantity}"), "-o", place.out(quantity)].refuses_the_arguments(&["--plot"]);
        scruple!["inspect", format!("--plot={quantity}"), "-o", place.out(quantity)].succeeds();
    }
}

#[test]
fn what_cannot_be_inspected_is_refused_in_a_sentence() {
    let place = Place::new();
    scruple!["inspect", place.path("nothing")].refuses(&["nothing", "cannot open"]);
    scruple!["inspect", place.file("x.safetensors", "<html>")].refuses(&["x.safetensors"]);
    scruple!["inspect --plot alpha"].refuses(&["--spectra"]);
}
