//! Families of other shapes than Llama's, compressed and run as a user does it.

use std::{fs, path::PathBuf};

use serde_json::Value;

use crate::{
    arguments, scruple,
    support::{Model, Place, Run, VOCAB, assert_same_files, copy_folder, json_file, program, tokenizer},
};

/// Largest accepted median KL divergence, nats a token, of a model rounded to 8 bits: a part in 255 of a group's range. A
/// weight in the wrong place, or inputs of another linear, show as 0.1 and more. The mean would tell less: where a
/// rounding sends a token to another expert, its divergence is of another size.
const ROUNDED_TO_8_BITS: f64 = 2e-3;

/// The tiny decoder `name` of the goldens, with a tokenizer of words.
fn model(place: &Place, name: &str) -> PathBuf {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/decoders").join(name);
    let folder = copy_folder(&fixtures, place.path(name));
    fs::remove_file(folder.join("golden.json")).unwrap();
    fs::remove_file(folder.join("config_v4.json")).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer(VOCAB).to_string()).unwrap();
    folder
}

fn compress(place: &Place, name: &str, options: &str) -> (PathBuf, PathBuf, Value) {
    let dense = model(place, name);
    let out = place.out(&format!("{name}-out"));
    let text = place.text("calibration", 1200);
    let usual = "--group-size 8 --seq-len 40 --n-samples 24 --no-speed --json --calibration";
    let result = scruple!["compress", &dense, options, usual, text, "-o", &out].json();
    (dense, out, result)
}

fn divergence(model: &PathBuf, dense: &PathBuf, text: PathBuf) -> f64 {
    let record = scruple!["eval", model, "--window 40 --json --text", text, "--against", dense].json();
    record["against"]["kl_p50"]["value"].as_f64().unwrap_or_else(|| panic!("no divergence in {record:#}"))
}

#[test]
fn every_shape_is_compressed_verified_and_run() {
    for (name, linears) in [
        ("gemma3", 4 * 7),
        ("phi3", 2 * 4),
        ("gpt-neox", 2 * 4),
        ("falcon-new", 2 * 4),
        ("olmo2", 2 * 7),
        ("opt-projected", 2 * 6),
        ("mixtral", 2 * (4 + 4 * 3)),
        ("qwen3-moe", 3 * 4 + 2 * 6 * 3 + 3),
        ("gemma3-vision", 2 * 7),
    ] {
        let place = Place::new();
        let (dense, out, result) = compress(&place, name, "--method gptq --bits 8 --format compressed-tensors");
        assert_eq!(result["linears"].as_array().unwrap().len(), linears, "{name}");
        let check = scruple!["verify", &out, "--against", &dense].succeeds();
        assert!(check.stdout.contains(&format!("{linears} linears")), "{check:#?}");
        let kl = divergence(&out, &dense, place.text("text", 300));
        assert!(kl > 0.0 && kl < ROUNDED_TO_8_BITS, "{name}: {kl} nats a token");
        let made = scruple!["generate", &out, "--prompt", "w3 w1 w4".to_string(), "--max-tokens 5 --json"].json();
        assert!(made["tokens"].as_array().unwrap().len() <= 5, "{made:#}");

        // Right inputs make a method that weighs errors by them better than rounding.
        let four_bits = |method: &str| {
            let out = place.out(method);
            let options = "--bits 4 --group-size 8 --seq-len 40 --n-samples 24 --no-speed --format compressed-tensors";
            let calibration = place.text("calibration", 1200);
            let arguments = arguments!["compress", &dense, options, "--calibration", calibration, "-o", &out];
            let method = arguments!["--method", method];
            Run::of(program().args(arguments).args(method)).succeeds();
            divergence(&out, &dense, place.text("text", 300))
        };
        let (rtn, gptq) = (four_bits("rtn"), four_bits("gptq"));
        assert!(kl < gptq && gptq < rtn, "{name}: {kl} with 8 bits, {gptq} by GPTQ with 4, {rtn} rounded");
    }
}

#[test]
fn scales_are_folded_wherever_each_shape_allows_it() {
    for (name, format, scaled, left) in [
        ("llama-biases", "compressed-tensors", 2 * 4, ""),
        ("gemma3", "compressed-tensors", 4 * 4, ""),
        ("phi3", "compressed-tensors", 2 * 4, ""),
        ("gpt2", "dense", 2 * 3, "activation"),
        ("gpt-neox", "compressed-tensors", 2 * 3, "activation"),
        ("falcon", "compressed-tensors", 2 * 2, "activation"), // one norm for attention and MLP
        ("olmo2", "compressed-tensors", 2 * 2, "no norm stands before it"),
        ("opt", "compressed-tensors", 2 * 4, ""),
        ("mixtral", "compressed-tensors", 2 * (2 + 4), "router"),
    ] {
        let place = Place::new();
        let (dense, out, result) = compress(&place, name, &format!("--method awq --bits 8 --format {format}"));
        assert_eq!(result["scalings"].as_array().unwrap().len(), scaled, "{name}: {:#}", result["unscaled"]);
        let reasons = result["unscaled"].to_string();
        assert!(if left.is_empty() { reasons == "[]" } else { reasons.contains(left) }, "{name}: {reasons}");
        let check = scruple!["verify", &out, "--against", &dense].succeeds();
        let folded = check.stdout.contains("divided by the recorded scales");
        assert_eq!(folded, name != "olmo2", "{name}: {check:#?}"); // its scales are all in linears without a bias
        let kl = divergence(&out, &dense, place.text("text", 300));
        assert!(kl > 0.0 && kl < ROUNDED_TO_8_BITS, "{name}: {kl} nats a token");
    }
}

#[test]
fn weights_stored_the_other_way_are_written_so() {
    let place = Place::new();
    let (dense, out, result) = compress(&place, "gpt2", "--method gptq --bits 8 --format dense");
    assert_eq!(result["linears"].as_array().unwrap().len(), 2 * 4);
    scruple!["verify", &out, "--against", &dense].succeeds();
    let kl = divergence(&out, &dense, place.text("text", 300));
    assert!(kl > 0.0 && kl < ROUNDED_TO_8_BITS, "{kl} nats a token");
    // Its learned positions are fewer than the usual window's.
    let measured = scruple![
        "compress",
        &dense,
        "--method rtn --group-size 8 --format dense --json --text",
        place.text("text", 300),
        "-o",
        place.out("measured"),
    ];
    assert_eq!(measured.json()["evaluation"]["window"], 96);
    let packed = place.out("packed");
    for format in ["compressed-tensors", "gptq"] {
        let refused = scruple!["compress", &dense, "--method rtn --group-size 8 --format", format, "-o", &packed];
        refused.refuses(&["`transformer.h.0.attn.c_attn`", format, "Conv1D", "write dense", "7 more"]);
    }
    assert!(!packed.exists());
}

#[test]
fn what_stands_beside_the_text_part_is_said_to_be_dense() {
    let place = Place::new();
    let (dense, out, _) = compress(&place, "gemma3-vision", "--method rtn --format compressed-tensors");
    let config = json_file(&out.join("config.json"));
    let ignored = ["lm_head", "re:.*multi_modal_projector.*", "re:.*vision_tower.*"];
    assert_eq!(config["quantization_config"]["ignore"], serde_json::json!(ignored));
    assert_eq!(config["vision_config"], json_file(&dense.join("config.json"))["vision_config"]);
}

#[test]
fn every_linear_that_stays_dense_is_said_to_be() {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let place = Place::new();
    let named = Model::tiny().config("model_type", "of-nobody").shape("model.layers.0.mlp.gate.weight", &[4, 64]);
    for (model, expected) in [
        (fixtures.join("decoders/opt-projected"), &["model.decoder.project_in", "model.decoder.project_out"][..]),
        (fixtures.join("encoders/bert"), &["pooler.dense"]),
        (fixtures.join("encoders/bert-classifier"), &["bert.pooler.dense", "classifier"]),
        (fixtures.join("encoders/distilbert-classifier"), &["classifier", "pre_classifier"]),
        (fixtures.join("encoders/roberta-classifier"), &["classifier.dense", "classifier.out_proj"]),
        (fixtures.join("encoders/mpnet"), &["pooler.dense"]),
        (fixtures.join("vision/vit"), &["pooler.dense"]),
        (named.write(place.path("of-nobody")), &["model.layers.0.mlp.gate"]),
    ] {
        let name = model.file_name().unwrap().to_string_lossy().into_owned();
        let out = place.out(&name);
        let options = "--method rtn --bits 8 --group-size 0 --format compressed-tensors --no-speed -o";
        scruple!["compress", &model, options, &out].succeeds();
        let config = json_file(&out.join("config.json"));
        let ignored = config["quantization_config"]["ignore"].as_array().unwrap();
        let mut ignored: Vec<&str> = ignored.iter().map(|name| name.as_str().unwrap()).collect();
        ignored.sort_unstable();
        let mut expected: Vec<&str> = expected.iter().copied().chain(["lm_head"]).collect();
        expected.sort_unstable();
        assert_eq!(ignored, expected, "{name}");
    }
}

#[test]
fn experts_are_calibrated_on_the_tokens_routed_to_them() {
    let place = Place::new();
    let (_, out, _) = compress(&place, "mixtral", "--method gptq --bits 4 --format compressed-tensors");
    let record = json_file(&out.join("scruple.json"));
    let linears = record["linears"].as_array().unwrap();
    let tokens = |name: &str| {
        let of = |linear: &&Value| linear["linear"].as_str().unwrap().ends_with(name);
        linears.iter().filter(of).map(|linear| linear["calibration_tokens"].as_u64().unwrap()).sum::<u64>()
    };
    // Two experts a token, in two blocks.
    for name in [".w1", ".w2", ".w3"] {
        assert_eq!(tokens(name), 2 * 2 * 24 * 40, "{name}");
    }
    let attention = linears.iter().find(|linear| linear["linear"].as_str().unwrap().ends_with("q_proj")).unwrap();
    assert!(attention.get("calibration_tokens").is_none() && attention.get("warning").is_none());
    let routers = ["model.layers.0.block_sparse_moe.gate", "model.layers.1.block_sparse_moe.gate"];
    assert_eq!(record["left_dense"], serde_json::json!(routers));
    let ignored = json_file(&out.join("config.json"))["quantization_config"]["ignore"].clone();
    assert!(routers.iter().all(|router| ignored.as_array().unwrap().contains(&Value::from(*router))), "{ignored}");
}

#[test]
fn experts_that_saw_too_few_tokens_are_named() {
    let place = Place::new();
    let dense = model(&place, "qwen3-moe-raw");
    let text = place.text("short", 30);
    let out = place.out("out");
    let options = "--method gptq --bits 8 --group-size 8 --seq-len 12 --n-samples 1 --no-speed \
                   --format compressed-tensors --calibration";
    let run = scruple!["compress", &dense, options, text, "-o", &out].succeeds();
    assert!(run.stderr.contains("linears of experts saw fewer calibration tokens than they have inputs"), "{run:#?}");
    let record = json_file(&out.join("scruple.json"));
    let warned: Vec<&Value> =
        record["linears"].as_array().unwrap().iter().filter(|linear| linear["warning"].is_string()).collect();
    assert!(!warned.is_empty());
    for linear in warned {
        let tokens = linear["calibration_tokens"].as_u64().unwrap();
        assert!(tokens < 32, "{linear}");
        assert_eq!(tokens == 0, linear["output_error"].is_null(), "{linear}");
    }
    // Even an expert that saw nothing is rounded, not thrown away.
    let kl = divergence(&out, &dense, place.text("text", 300));
    assert!(kl < 10.0 * ROUNDED_TO_8_BITS, "{kl} nats a token");
}

#[test]
fn experts_give_the_same_bytes_with_one_thread_and_two() {
    let place = Place::new();
    let dense = model(&place, "qwen3-moe");
    let text = place.text("calibration", 500);
    let outs = ["1", "2"].map(|threads| {
        let out = place.out(threads);
        let options = "--method gptq --bits 4 --group-size 8 --seq-len 40 --no-speed --format compressed-tensors";
        let arguments = arguments!["compress", &dense, options, "--calibration", &text, "-o", &out];
        Run::of(program().env("RAYON_NUM_THREADS", threads).args(&arguments)).succeeds();
        out
    });
    assert_same_files(&outs[0], &outs[1]);
}
