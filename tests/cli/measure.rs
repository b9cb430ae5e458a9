//! What is written runs, and what is said of it is so.

use std::{ffi::OsString, fs, path::Path};

use scruple_compress::{
    export,
    model::{Decoder, DecoderConfig, text::Text},
};
use scruple_weights::{Checkpoint, Dtype};
use serde_json::Value;

use crate::{
    arguments, scruple,
    support::{Model, Place, json_file},
};

/// Largest accepted difference between the perplexities of packed weights and of the same numbers stored dense,
/// relative: sums of a few hundred products of f32 taken in another order, through two blocks.
const SAME_NUMBERS: f64 = 1e-5;

/// Largest accepted KL divergence between two models of the same numbers, nats a token: the rounding of probabilities
/// that are summed in f32 from logits that differ in their last bits.
const NO_DIVERGENCE: f64 = 1e-6;

fn perplexity(model: &Path, text: &Path) -> f64 {
    let record = scruple!["eval", model, "--text", text, "--window 64 --json"].json();
    record["perplexity"].as_f64().unwrap_or_else(|| panic!("no perplexity at the top of {record:#}"))
}

fn words(model: &Path) -> Value {
    let record = scruple!["generate", model, "--prompt", "w3 w1 w4".to_string(), "--max-tokens 12 --json"].json();
    assert_eq!(record["tokens"].as_array().unwrap().len(), 12, "{record:#}");
    record["tokens"].clone()
}

/// A dense f32 model of the numbers that the packed model in `packed` holds.
fn unpacked(dense: Model, packed: &Path) -> Model {
    let checkpoint = Checkpoint::open(packed).unwrap();
    let quantization = export::detect(&checkpoint).unwrap().expect("a quantised model");
    let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
    let mut model = dense;
    for (block, spec) in config.blocks.iter().enumerate() {
        for linear in &spec.linears {
            let name = config.linear_name(block, &linear.name);
            let q = export::decode(&checkpoint, &name, &quantization).unwrap();
            model = model.edit(&format!("{name}.weight"), |values| values.copy_from_slice(&q.dequantize()));
        }
    }
    model
}

#[test]
fn packed_models_run_as_the_dense_models_of_their_numbers() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 400);
    let dense_perplexity = perplexity(&model, &text);
    let cases = [
        "--method gptq --bits 4",
        "--method gptq --bits 3",
        "--method gptq --bits 2 --asymmetric",
        "--method gptq --bits 8 --format compressed-tensors",
        "--method rtn --bits 4 --format compressed-tensors --asymmetric",
        "--method rtn --bits 4",
    ];
    for (number, options) in cases.into_iter().enumerate() {
        let packed = place.out(&format!("packed-{number}"));
        let calibration = "--group-size 32 --seq-len 32 --no-speed --calibration";
        scruple!["compress", model, options, calibration, text, "-o", packed].succeeds();
        let dense = unpacked(Model::tiny(), &packed).write(place.path(&format!("dense-{number}")));
        let (a, b) = (perplexity(&packed, &text), perplexity(&dense, &text));
        assert!((a / b - 1.0).abs() < SAME_NUMBERS, "{options}: {a}, dense {b}");
        assert!((a / dense_perplexity - 1.0).abs() > 10.0 * SAME_NUMBERS, "{options} changed nothing");
        assert_eq!(words(&packed), words(&dense), "{options}");
    }
}

#[test]
fn compressed_tensors_and_dense_f32_hold_the_same_numbers() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 200);
    let digests = ["compressed-tensors", "dense"].map(|format| {
        let out = place.out(format);
        scruple!["compress", model, "--method rtn --group-size 32 --format", format, "-o", out, "--no-speed"]
            .succeeds();
        let record = json_file(&out.join("scruple.json"));
        let linears = record["linears"].as_array().unwrap().iter();
        linears.map(|linear| linear["dequantised_sha256"].clone()).collect::<Vec<_>>()
    });
    assert_eq!(digests[0], digests[1]);
    let (packed, dense) = (place.out("compressed-tensors"), place.out("dense"));
    let record = scruple!["eval", packed, "--against", dense, "--text", text, "--json"].json();
    assert!(record["against"]["kl_mean"]["value"].as_f64().unwrap() < NO_DIVERGENCE, "{record:#}");
    assert_eq!(record["against"]["same_top"]["value"], 1.0, "{record:#}");
    assert!(record["bits_per_weight"].as_f64().unwrap() < 5.1, "{record:#}");
}

#[test]
fn the_dry_run_forecasts_the_written_bytes_exactly() {
    let place = Place::new();
    let model = Model::tiny().dtype(Dtype::Bf16).write(place.path("model"));
    for (number, options) in
        ["--bits 2", "--bits 3", "--bits 8", "--bits 4 --format compressed-tensors", "--bits 4 --format dense"]
            .into_iter()
            .enumerate()
    {
        let out = place.out(&number.to_string());
        let compress = |further: &str| {
            scruple!["compress --json --method rtn --group-size 32", model, options, "-o", out, further].json()
        };
        let plan = compress("--dry-run");
        assert!(!out.exists(), "a dry run writes nothing");
        let result = compress("--no-speed");
        let written = Checkpoint::open(&out).unwrap();
        let bytes: usize = written.tensors().map(|tensor| tensor.bytes().len()).sum();
        assert_eq!(plan["forecast"]["output_bytes"], bytes, "{options}");
        assert_eq!(plan["forecast"]["dense_bytes"], Checkpoint::open(&model).unwrap().bytes());
        assert_eq!(plan["forecast"]["bits_per_weight"], result["bits_per_weight"], "{options}");
        let planned = plan["linears"].as_array().unwrap().iter().map(|linear| &linear["storage_bits"]);
        let found = result["linears"].as_array().unwrap().iter().map(|linear| &linear["storage_bits"]);
        assert!(planned.eq(found), "{options}");
        let files: u64 = result["output_bytes"].as_u64().unwrap();
        let on_disk = |name: &String| fs::metadata(out.join(name)).unwrap().len();
        let names = crate::support::names(&out);
        assert_eq!(files, names.iter().filter(|name| *name != "run.json").map(on_disk).sum::<u64>());
    }
}

#[test]
fn a_cached_dense_run_gives_the_figures_of_a_live_one() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 150);
    let out = place.out("out");
    scruple!["compress", model, "--method rtn --group-size 32 -o", out, "--no-speed"].succeeds();
    let cache = place.out("cache");
    let against = |further: &[OsString]| {
        let eval = arguments!["eval", out, "--against", model, "--text", text, "--json"];
        crate::support::run(&[&eval[..], further].concat()).json()["against"].clone()
    };
    let live = against(&[]);
    let cached = arguments!["--dense-cache", cache];
    let first = against(&cached);
    assert_eq!(first, against(&cached), "made and read again");
    // The top 256 of 64 tokens are all of them.
    for key in ["dense_perplexity", "kl_mean", "kl_p99", "same_top"] {
        let number = |record: &Value| record[key].get("value").unwrap_or(&record[key]).as_f64().unwrap();
        let (a, b) = (number(&live), number(&first));
        assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0), "{key}: {a} live, {b} cached");
    }
    let other = place.file("other", crate::support::text(150, 2));
    let run = scruple!["eval", out, "--against", model, "--text", other, "--dense-cache", cache];
    run.refuses(&["cache", "made for another text, window or model"]);
}

/// Probabilities of all tokens where each token of the text but the first is predicted, in windows of 64.
fn probabilities(model: &Path, text: &Path) -> Vec<Vec<f64>> {
    let checkpoint = Checkpoint::open(model).unwrap();
    let decoder = Decoder::open(&checkpoint).unwrap();
    let ids = Text::open(&checkpoint).unwrap().encode(&fs::read_to_string(text).unwrap(), false).unwrap();
    let logits = |ids: &[u32]| decoder.logits(&decoder.hidden_once(ids).unwrap()).unwrap().to_vec2::<f32>().unwrap();
    let of = |row: Vec<f32>| {
        let powers: Vec<f64> = row.into_iter().map(|logit| f64::from(logit).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(|power| power / sum).collect()
    };
    ids[..ids.len() - 1].chunks(64).flat_map(logits).map(of).collect()
}

#[test]
fn a_cache_of_few_tokens_gives_the_divergence_over_them_and_the_rest_as_one() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 150);
    let out = place.out("out");
    scruple!["compress", model, "--method rtn --bits 2 --group-size 32 -o", out, "--no-speed"].succeeds();
    let few = "--window 64 --top-k 8 --json --dense-cache";
    let record = scruple!["eval", out, "--against", model, "--text", text, few, place.out("cache")].json();
    let found = &record["against"];
    assert_eq!((&found["kl_kind"], &record["tokens"]), (&Value::from("top-8"), &Value::from(149)));

    let likeliest = |p: &[f64]| -> Vec<usize> {
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
        order
    };
    let (dense, other) = (probabilities(&model, &text), probabilities(&out, &text));
    assert_eq!((dense.len(), other.len()), (149, 149));
    let (mut kl, mut same) = (0.0, 0.0);
    for (p, q) in dense.iter().zip(&other) {
        let order = likeliest(p);
        let sum = |p: &[f64]| order[8..].iter().map(|&id| p[id]).sum::<f64>();
        let (p_rest, q_rest) = (sum(p), sum(q));
        kl += order[..8].iter().map(|&id| p[id] * (p[id] / q[id]).ln()).sum::<f64>() + p_rest * (p_rest / q_rest).ln();
        same += f64::from(u8::from(order[0] == likeliest(q)[0]));
    }
    for (key, expected) in [("kl_mean", kl / 149.0), ("same_top", same / 149.0)] {
        let value = found[key]["value"].as_f64().unwrap();
        // Kept logarithms are f32.
        assert!((value - expected).abs() < 1e-5, "{key}: {value}, expected {expected}");
    }
}

#[test]
fn a_model_of_a_short_context_is_measured_too() {
    let place = Place::new();
    let model = Model::tiny().config("max_position_embeddings", 3).write(place.path("model"));
    let out = place.out("out");
    let run = scruple!["compress", model, "--method rtn --group-size 32 -o", out].succeeds();
    assert!(run.stdout.contains("decode, tokens/s"), "{run:#?}");
}

#[test]
fn tables_are_data_and_progress_is_talk() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 150);
    let out = place.out("out");
    let run = scruple!["compress", model, "--group-size 32 --calibration", text, "--seq-len 32 -o", out, "--no-speed"]
        .succeeds();
    assert!(run.stderr.contains("the text holds 4 sequences of 32 tokens, 128 were asked for"), "{run:#?}");
    assert!(run.stdout.contains("model.layers.1.mlp.down_proj"), "{run:#?}");
    assert!(run.stdout.contains("verified: 14 linears"), "{run:#?}");
    assert!(fs::read_to_string(out.join("README.md")).unwrap().starts_with("---\nlicense: mit\n"));
    assert_eq!(&fs::read(out.join("errors.png")).unwrap()[..4], b"\x89PNG");
    let methods = scruple!["methods --json"].json();
    assert!(methods.as_array().unwrap().iter().any(|method| method["name"] == "gptq"));
}
