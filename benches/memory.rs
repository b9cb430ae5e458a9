//! Peak memory of `compress` as the model grows: it should follow a block, not the model.
//!
//! Synthetic Llama checkpoints (bf16, 1.1 B parameters in full) of few and of all blocks are compressed by GPTQ in child
//! processes; the largest resident set the system saw is printed beside the model's bytes and the program's own forecast.
//!
//!     cargo bench --bench memory [-- --blocks 2,22]

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::{path::Path, process::Command};

use common::Random;
use half::bf16;
use scruple_weights::{CheckpointWriter, Dtype, TensorSpec, WriterOptions};
use serde_json::{Value, json};

const HIDDEN: usize = 2048;
const INTERMEDIATE: usize = 5632;
const HEADS: usize = 32;
const KV_HEADS: usize = 4;
const VOCAB: usize = 32_000;

/// The largest error of the forecast that passes.
const MAX_FORECAST_ERROR: f64 = 0.20;

fn tensors(blocks: usize) -> Vec<(String, Vec<usize>)> {
    let kv = HIDDEN / HEADS * KV_HEADS;
    let mut list = vec![("model.embed_tokens.weight".to_string(), vec![VOCAB, HIDDEN])];
    for block in 0..blocks {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.k_proj", vec![kv, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.v_proj", vec![kv, HIDDEN]),
        ] {
            list.push((format!("model.layers.{block}.{name}.weight"), shape));
        }
    }
    list.push(("model.norm.weight".into(), vec![HIDDEN]));
    list.push(("lm_head.weight".into(), vec![VOCAB, HIDDEN]));
    list
}

/// Writes a checkpoint of `blocks` blocks: normal weights, norms of one.
fn synthesise(folder: &Path, blocks: usize) {
    let list = tensors(blocks);
    let specs = list.iter().map(|(name, shape)| TensorSpec::new(name.clone(), Dtype::Bf16, shape.clone())).collect();
    let mut writer = CheckpointWriter::create(folder, specs, WriterOptions::default()).expect("a new folder");
    // One megabyte of noise, begun at another place for each tensor: sound numbers at the speed of the disk.
    let mut random = Random(7);
    let noise: Vec<u8> = (0..1 << 20).flat_map(|_| bf16::from_f32(random.normal() * 0.02).to_le_bytes()).collect();
    for (index, (name, shape)) in list.iter().enumerate() {
        let bytes = 2 * shape.iter().product::<usize>();
        if shape.len() == 1 {
            writer.write(name, &bf16::ONE.to_le_bytes().repeat(bytes / 2)).expect("room");
            continue;
        }
        let mut offset = 0;
        while offset < bytes {
            let from = (index * 131_072 + offset / 7 * 2) % noise.len();
            let part = &noise[from..noise.len().min(from + bytes - offset)];
            writer.write_at(name, offset as u64, part).expect("room");
            offset += part.len();
        }
    }
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": blocks, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 2048, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    });
    writer.add_file("config.json", config.to_string().as_bytes()).expect("room");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-world");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        writer.copy_file(&fixture.join(name)).expect("the embedded model's tokenizer");
    }
    writer.finish().expect("a written checkpoint");
}

/// Peak resident set of a child, bytes, and its standard output.
fn run(arguments: &[&str]) -> (u64, String) {
    let output = Command::new("/usr/bin/time")
        .args(["-f", "peak %M", env!("CARGO_BIN_EXE_scruple")])
        .args(arguments)
        .output()
        .expect("GNU time is installed");
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{talk}");
    let peak = talk.lines().rev().find_map(|line| line.strip_prefix("peak ")).expect("the line asked for");
    (peak.trim().parse::<u64>().expect("kilobytes") * 1024, String::from_utf8_lossy(&output.stdout).into_owned())
}

fn main() {
    let blocks = common::option("--blocks").unwrap_or_else(|| "2,22".into());
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-world/world_train.txt");
    let text = text.to_str().expect("a UTF-8 path");
    let mut results = Vec::new();
    for blocks in blocks.split(',').map(|n| n.parse::<usize>().expect("numbers of blocks")) {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
        let (model, out) = (folder.path().join("model"), folder.path().join("out"));
        synthesise(&model, blocks);
        let (model, out) = (model.to_str().expect("UTF-8"), out.to_str().expect("UTF-8"));
        let common = ["compress", model, "--calibration", text, "--n-samples", "8", "--seq-len", "256"];
        let (_, plan) = run(&[&common[..], &["--dry-run", "--json"]].concat());
        let plan: Value = serde_json::from_str(&plan).expect("JSON");
        let (peak, _) = run(&[&common[..], &["-o", out]].concat());
        let dense = plan["forecast"]["dense_bytes"].as_u64().expect("a number");
        let forecast = plan["forecast"]["peak_rss_bytes"].as_u64().expect("a number");
        let error = forecast as f64 / peak as f64 - 1.0;
        println!(
            "{blocks} blocks: model {:.0} MB, peak {:.0} MB ({:.2} of the model), forecast {:.0} MB ({:+.0} %)",
            dense as f64 / 1e6,
            peak as f64 / 1e6,
            peak as f64 / dense as f64,
            forecast as f64 / 1e6,
            100.0 * error
        );
        results.push(json!({
            "blocks": blocks, "model_bytes": dense, "peak_rss_bytes": peak, "forecast_bytes": forecast,
            "forecast_within_20_percent": error.abs() <= MAX_FORECAST_ERROR,
        }));
    }
    common::record("memory", json!(results));
}
