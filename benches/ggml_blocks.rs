//! Quantising to ggml's blocks: CPU seconds of one thread, beside ggml's own quantiser on the same rows.
//!
//! ```text
//! cargo bench --bench ggml_blocks -- [--python PYTHON] [--rows 512] [--repeat 5] [--model FILE.safetensors]
//! ```
//!
//! The rows are random, of a weight's size, with a few outliers; `--model` takes those of a model instead (its matrices of
//! whole blocks of 256). With `--python`, an interpreter with llama-cpp-python, `benches/peers/quantize_ggml.py` quantises
//! them too, and every byte is compared before a time counts.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::{fs, path::Path, process::Command};

use common::{Random, flag, option, timed};
use half::bf16;
use scruple_weights::{Checkpoint, Dtype, ggml};
use serde_json::{Value, json};

const COLUMNS: usize = 4096;

fn main() {
    if flag("--test") || flag("--list") {
        return; // run as a test harness: nothing to do
    }
    let rows: usize = option("--rows").map_or(512, |value| value.parse().expect("a number"));
    let repeat: usize = option("--repeat").map_or(5, |value| value.parse().expect("a number"));
    // Rounded to bf16, so that both inputs hold the same numbers.
    let values: Vec<f32> = match option("--model") {
        None => {
            let mut random = Random(7);
            (0..rows * COLUMNS)
                .map(|i| random.normal() * if i % 997 == 0 { 0.3 } else { 0.02 })
                .map(|value| bf16::from_f32(value).to_f32())
                .collect()
        }
        Some(model) => {
            let checkpoint = Checkpoint::open(model).expect("a model");
            let matrices =
                checkpoint.tensors().filter(|view| view.shape().len() == 2 && view.elements() % COLUMNS == 0);
            matrices
                .flat_map(|view| view.to_f32().expect("real numbers"))
                .map(|value| bf16::from_f32(value).to_f32())
                .take(rows * COLUMNS)
                .collect()
        }
    };
    let stored: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
    let types: Vec<Dtype> = ggml::WRITTEN.into_iter().filter(|dtype| dtype.block().0 > 1).collect();

    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let theirs = option("--python").map(|python| peer(&python, scratch.path(), &values, repeat, &types));
    println!("{:.1} M values, one thread", values.len() as f64 / 1e6);
    let mut results = Vec::new();
    for dtype in types {
        let mut out = vec![0; dtype.bytes(values.len()).expect("whole blocks")];
        ggml::quantize(dtype, &values, &mut out).expect("finite weights");
        let equal = theirs.as_ref().map(|_| {
            let path = scratch.path().join(format!("blocks.{dtype}"));
            let theirs = fs::read(path).expect("the peer's blocks");
            let size = dtype.block().1;
            let first = out.chunks(size).zip(theirs.chunks(size)).position(|(ours, theirs)| ours != theirs);
            assert_eq!(
                (first, out.len()),
                (None, theirs.len()),
                "{dtype}: the first block that differs, and the sizes"
            );
            true
        });
        let least = |run: &mut dyn FnMut()| (0..repeat).map(|_| timed(&mut *run).1).fold(f64::MAX, f64::min);
        let from_f32 = least(&mut || ggml::quantize(dtype, &values, &mut out).expect("finite weights"));
        let mut chunk = vec![0.0; COLUMNS];
        let row = dtype.bytes(COLUMNS).expect("whole blocks");
        let from_bf16 = least(&mut || {
            for (stored, out) in stored.chunks(2 * COLUMNS).zip(out.chunks_mut(row)) {
                ggml::widen_bf16(stored, &mut chunk);
                ggml::quantize(dtype, &chunk, out).expect("finite weights");
            }
        });
        let ggml_seconds =
            theirs.as_ref().map(|theirs| theirs["cpu_seconds"][dtype.to_string()].as_f64().expect("seconds"));
        let rate = |seconds: f64| 4.0 * values.len() as f64 / seconds / 1e9;
        print!("  {dtype}: {from_f32:.4} CPU s from f32 ({:.2} GB/s)", rate(from_f32));
        print!(", {from_bf16:.4} from bf16 ({:.2} GB/s)", rate(from_bf16) / 2.0);
        if let Some(theirs) = ggml_seconds {
            print!(
                "; ggml {theirs:.4} CPU s ({:.3} GB/s), {:.1} times as much, bytes equal",
                rate(theirs),
                theirs / from_f32
            );
        }
        println!();
        results.push(json!({ "type": dtype.to_string(), "values": values.len(), "f32_cpu_seconds": from_f32,
            "f32_gb_per_s": rate(from_f32), "bf16_cpu_seconds": from_bf16, "bf16_gb_per_s": rate(from_bf16) / 2.0,
            "ggml_f32_cpu_seconds": ggml_seconds, "ratio": ggml_seconds.map(|theirs| theirs / from_f32), "bytes_equal": equal }));
    }
    let peer = theirs.map(|theirs| format!("llama-cpp-python {}", theirs["version"].as_str().unwrap_or_default()));
    let input = option("--model").map_or("random", |_| "model");
    common::record("ggml_blocks", json!({ "peer": peer, "input": input, "types": results }));
}

/// What ggml makes of the values, as files in `folder`, and its times.
fn peer(python: &str, folder: &Path, values: &[f32], repeat: usize, types: &[Dtype]) -> Value {
    let rows = folder.join("rows.f32");
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    fs::write(&rows, bytes).expect("room for the rows");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/quantize_ggml.py");
    let output = Command::new(python)
        .arg(script)
        .args([&rows, Path::new(&COLUMNS.to_string()), &folder.join("blocks"), Path::new(&repeat.to_string())])
        .args(types.iter().map(Dtype::to_string))
        .output()
        .expect("the interpreter runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}
