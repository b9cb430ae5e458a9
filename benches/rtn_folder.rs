//! Rounding a bf16 checkpoint to packed 4 bits, folder to folder, from the page cache: bytes of bf16 a CPU second.
//!
//!     RAYON_NUM_THREADS=1 cargo bench --bench rtn_folder [-- --blocks 8]
//!
//! Hashing (the proof of what was written) is timed apart. Beside it stands the machine's limit in the same run: reading
//! the source by memory map and writing as many bytes as the result has. The written folder is read back and compared.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::{fs, path::Path};

use common::Random;
use half::bf16;
use scruple_compress::{
    export::{self, Format},
    plan::Plan,
    recipe::{CalibrationRecipe, ExportRecipe, Recipe, StageRecipe},
    sequential,
};
use scruple_weights::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, WriterOptions};
use serde_json::json;

const HIDDEN: usize = 2048;
const INTERMEDIATE: usize = 5632;
const RUNS: usize = 3;

fn synthesise(folder: &Path, blocks: usize) {
    let mut list = vec![("model.embed_tokens.weight".to_string(), vec![256, HIDDEN])];
    for block in 0..blocks {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.k_proj", vec![256, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.v_proj", vec![256, HIDDEN]),
        ] {
            list.push((format!("model.layers.{block}.{name}.weight"), shape));
        }
    }
    list.push(("model.norm.weight".into(), vec![HIDDEN]));
    let specs = list.iter().map(|(name, shape)| TensorSpec::new(name.clone(), Dtype::Bf16, shape.clone())).collect();
    let mut writer = CheckpointWriter::create(folder, specs, WriterOptions::default()).expect("a new folder");
    let mut random = Random(3);
    let noise: Vec<u8> = (0..1 << 20).flat_map(|_| bf16::from_f32(random.normal() * 0.02).to_le_bytes()).collect();
    for (name, shape) in &list {
        let bytes = 2 * shape.iter().product::<usize>();
        for offset in (0..bytes).step_by(noise.len()) {
            writer.write_at(name, offset as u64, &noise[..noise.len().min(bytes - offset)]).expect("room");
        }
    }
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": blocks,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 256, "tie_word_embeddings": true,
    });
    writer.add_file("config.json", config.to_string().as_bytes()).expect("room");
    writer.finish().expect("a written checkpoint");
}

fn main() {
    let blocks: usize = common::option("--blocks").map_or(8, |n| n.parse().expect("a number"));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let model = folder.path().join("model");
    synthesise(&model, blocks);
    let recipe = Recipe {
        layers: None,
        stages: vec![StageRecipe {
            method: "rtn".into(),
            targets: vec!["*".into()],
            ignore: Vec::new(),
            params: toml::from_str("bits = 4\ngroup_size = 128").expect("a table"),
        }],
        calibration: CalibrationRecipe::default(),
        export: ExportRecipe { format: Some(Format::CompressedTensors) },
        budget: None,
    };
    let mut speeds = Vec::new();
    let mut limits = Vec::new();
    for run in 0..RUNS {
        let checkpoint = Checkpoint::open(&model).expect("the model");
        let plan = Plan::new(recipe.clone(), &checkpoint).expect("a plan");
        let out = folder.path().join(format!("out-{run}"));
        let bytes = checkpoint.bytes() as f64;
        let (outcome, seconds) = common::timed(|| {
            let mut writer =
                CheckpointWriter::create(&out, plan.tensors.clone(), WriterOptions::default()).expect("room");
            let outcome =
                sequential::compress(&checkpoint, &plan, None, &mut writer, &mut |_, _, _| ()).expect("rounding");
            writer.add_file("config.json", b"{}").expect("room");
            writer.finish().expect("a written folder");
            outcome
        });
        let apart = outcome.phases.hash;
        let speed = bytes / (seconds - apart) / 1e9;

        // The machine's limit: read every byte of the source, write as many as the result has.
        let written = fs::metadata(out.join("model.safetensors")).expect("the result").len() as usize;
        let (sum, limit_seconds) = common::timed(|| {
            let mut sum = 0u64;
            for view in checkpoint.tensors() {
                sum = view
                    .bytes()
                    .as_chunks::<8>()
                    .0
                    .iter()
                    .fold(sum, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
                view.release();
            }
            let buffer = vec![1u8; 4 << 20];
            let mut file = fs::File::create(folder.path().join("limit")).expect("room");
            for start in (0..written).step_by(buffer.len()) {
                std::io::Write::write_all(&mut file, &buffer[..buffer.len().min(written - start)]).expect("room");
            }
            sum
        });
        assert_ne!(sum, 1, "the sum is used");
        let limit = bytes / limit_seconds / 1e9;
        println!("{speed:.2} GB/s of bf16 a CPU second (hashing {apart:.2} s apart), limit {limit:.2} GB/s");
        speeds.push(speed);
        limits.push(limit);

        // What was written is what was recorded.
        fs::write(
            out.join("config.json"),
            json!({ "quantization_config": plan.quantisation().expect("a configuration").config }).to_string(),
        )
        .expect("room");
        let written = Checkpoint::open(&out).expect("the result");
        let quantization = export::detect(&written).expect("a configuration");
        for record in outcome.linears.iter().step_by(7) {
            let digest = sequential::digest_from_file(&written, &record.report.linear, quantization.as_ref());
            assert_eq!(Some(digest.expect("a linear")), record.dequantised_sha256, "{}", record.report.linear);
        }
        fs::remove_dir_all(&out).expect("the result can be removed");
    }
    let (speed, limit) = (common::median(speeds.clone()), common::median(limits.clone()));
    println!("median {speed:.2} GB/s, {:.0} % of the limit", 100.0 * speed / limit);
    common::record(
        "rtn_folder",
        json!({ "gb_per_cpu_second": speeds, "limit_gb_per_cpu_second": limits, "blocks": blocks }),
    );
}
