//! CPU seconds and memory of a whole GPTQ run, against llm-compressor on the same model and text in the same run.
//!
//!     cargo bench --bench whole_gptq -- --model DIR --text FILE --python PYTHON [--dtype float32|bfloat16]
//!
//! Both use one thread, 128 × 512 tokens, 4 bits, groups of 64, symmetric. `PYTHON` is an interpreter with
//! `llmcompressor==0.14.0.1`; its side is `fixtures/interop/peer_gptq_smollm2.py`. Without `--python` only ours is run.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::{path::Path, process::Command};

use serde_json::{Value, json};

/// CPU seconds and peak kilobytes of a child that must succeed.
fn timed(program: &str, arguments: &[&str]) -> (f64, u64, String) {
    let output = Command::new("/usr/bin/time")
        .args(["-f", "time %U %S %M", program])
        .args(arguments)
        .env("OMP_NUM_THREADS", "1")
        .env("RAYON_NUM_THREADS", "1")
        .output()
        .expect("GNU time is installed");
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{talk}");
    let line = talk.lines().rev().find_map(|line| line.strip_prefix("time ")).expect("the line asked for");
    let fields: Vec<f64> = line.split(' ').map(|field| field.parse().expect("a number")).collect();
    (fields[0] + fields[1], fields[2] as u64, String::from_utf8_lossy(&output.stdout).into_owned())
}

fn main() {
    let (Some(model), Some(text)) = (common::option("--model"), common::option("--text")) else {
        println!("whole_gptq: skipped, for want of --model and --text");
        return;
    };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_string();
    let out = path("ours");
    let options = ["--bits", "4", "--group-size", "64", "--calibration", &text, "--threads", "1", "--no-speed"];
    let (seconds, kilobytes, _) =
        timed(env!("CARGO_BIN_EXE_scruple"), &[&["compress", &model, "-o", &out][..], &options[..]].concat());
    println!("ours: {seconds:.1} CPU s, peak {:.0} MB", kilobytes as f64 / 1e3);
    let mut result = json!({ "cpu_seconds": seconds, "peak_kilobytes": kilobytes });
    if let Some(python) = common::option("--python") {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/interop/peer_gptq_smollm2.py");
        let dtype = common::option("--dtype").unwrap_or_else(|| "float32".into());
        let script = script.to_str().expect("UTF-8");
        let (peer, peer_kilobytes, _) = timed(&python, &[script, &model, &text, &path("peer"), "--dtype", &dtype]);
        println!("llm-compressor, {dtype}: {peer:.1} CPU s, peak {:.0} MB", peer_kilobytes as f64 / 1e3);
        println!("ratio {:.2}", peer / seconds);
        result["peer"] = json!({ "dtype": dtype, "cpu_seconds": peer, "peak_kilobytes": peer_kilobytes });
        result["ratio"] = Value::from(peer / seconds);
    }
    common::record("whole_gptq", result);
}
