//! Model folders whose configuration or tokenizer is wrong, hostile, or belongs to other weights.

use std::fs;

use serde_json::{Value, json};

use super::{Case, Verb};
use crate::support::{Model, names};

/// The files of a tiny model that runs.
pub fn model() -> Vec<(String, Vec<u8>)> {
    let place = tempfile::tempdir().unwrap();
    let folder = Model::tiny().write(place.path().join("model"));
    names(&folder).into_iter().map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

fn replaced(files: &[(String, Vec<u8>)], name: &str, bytes: impl Into<Vec<u8>>) -> Vec<(String, Vec<u8>)> {
    let bytes = bytes.into();
    let others = files.iter().filter(|(known, _)| known != name).cloned();
    others.chain([(name.to_string(), bytes)]).collect()
}

pub fn cases() -> Vec<Case> {
    let files = model();
    let (_, config) = files.iter().find(|(name, _)| name == "config.json").unwrap();
    let config: Value = serde_json::from_slice(config).unwrap();
    let mut cases = Vec::new();
    let mut add = |name: &str, files: Vec<(String, Vec<u8>)>, words: &[&str]| {
        cases.push(Case::folder(format!("config: {name}"), files, words).by(Verb::Generate));
    };

    // The text.
    let deep = "[".repeat(200_000) + &"]".repeat(200_000);
    for (name, text, words) in [
        ("empty", "", "not valid JSON"),
        ("cut", "{\"model_type\": \"lla", "not valid JSON"),
        ("a web page", "<!DOCTYPE html><html></html>", "not valid JSON"),
        ("an LFS pointer", "version https://git-lfs.github.com/spec/v1\nsize 12\n", "not valid JSON"),
        ("deep", &deep, "not valid JSON"),
        ("NaN", "{\"model_type\": NaN}", "not valid JSON"),
        ("a list", "[]", "model_type"),
        ("a number", "7", "model_type"),
        ("an empty object", "{}", "model_type"),
    ] {
        add(name, replaced(&files, "config.json", text), &["config.json", words]);
    }
    add("not UTF-8", replaced(&files, "config.json", b"{\"model_type\": \"\xff\"}".to_vec()), &["config.json"]);
    add(
        "absent",
        files.iter().filter(|(name, _)| name != "config.json").cloned().collect(),
        &["config.json", "missing"],
    );

    // One field.
    let changed = |key: &str, value: &Value| {
        let mut config = config.clone();
        config[key] = value.clone();
        replaced(&files, "config.json", config.to_string())
    };
    let impossible = [
        json!(0),
        json!(-1),
        json!(1.5),
        json!("64"),
        json!([]),
        json!({}),
        json!(true),
        json!(1e300),
        json!(u64::MAX),
    ];
    for key in ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"] {
        for value in &impossible {
            add(&format!("{key} = {value}"), changed(key, value), &["config.json", key]);
        }
        add(&format!("{key} is null"), changed(key, &Value::Null), &["config.json", key]);
    }
    // Sizes that are possible, but not those of the weights: no allocation may follow them.
    for (key, value) in [
        ("hidden_size", 128u64),
        ("hidden_size", 1 << 32),
        ("num_hidden_layers", 3),
        ("num_hidden_layers", 1 << 32),
        ("intermediate_size", 1 << 32),
        ("vocab_size", 1 << 32),
        ("num_attention_heads", 3),
        ("num_attention_heads", 1 << 20),
        ("num_key_value_heads", 3),
        ("head_dim", 7),
        ("head_dim", 1 << 31),
    ] {
        add(&format!("{key} = {value}, unlike the weights"), changed(key, &json!(value)), &[]);
    }
    for (key, value) in [
        ("model_type", json!("not-a-family")),
        ("model_type", json!(7)),
        ("rms_norm_eps", json!(-1.0)),
        ("rms_norm_eps", json!("small")),
        ("rope_theta", json!(0)),
        ("rope_scaling", json!({ "rope_type": "mystery" })),
        ("rope_scaling", json!({ "rope_type": "linear" })),
        ("hidden_act", json!("mystery")),
        ("tie_word_embeddings", json!("yes")),
        ("eos_token_id", json!(-5)),
        ("quantization_config", json!({ "quant_method": "mystery" })),
        ("quantization_config", json!({ "quant_method": "gptq", "bits": 5, "group_size": 32 })),
    ] {
        add(&format!("{key} = {value}"), changed(key, &value), &[]);
    }

    // The tokenizer.
    for (name, text) in [
        ("empty", ""),
        ("cut", "{\"version\": \"1.0\", \"model\""),
        ("an empty object", "{}"),
        ("a web page", "<html></html>"),
        ("deep", &deep),
        ("another kind", r#"{"version":"1.0","model":{"type":"Mystery"}}"#),
    ] {
        add(&format!("tokenizer is {name}"), replaced(&files, "tokenizer.json", text), &["tokenizer.json"]);
    }
    add(
        "no tokenizer",
        files.iter().filter(|(name, _)| name != "tokenizer.json").cloned().collect(),
        &["tokenizer.json"],
    );
    cases.push(Case::folder("config: sound", files, &[]).by(Verb::Generate).accepted());
    cases
}
