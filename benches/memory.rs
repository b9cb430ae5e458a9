//! Peak memory of `compress` as the model grows: it should follow a block, not the model.
//!
//! Synthetic Llama checkpoints (bf16, 1.1 B parameters in full) of few and of all blocks are compressed by GPTQ in child
//! processes; the largest resident set the system saw is printed beside the model's bytes and the program's own forecast.
//!
//!     cargo bench --bench memory [-- --blocks 2,22]

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::{path::Path, process::Command};

use common::synthetic::synthesise;
use serde_json::{Value, json};

/// The largest error of the forecast that passes.
const MAX_FORECAST_ERROR: f64 = 0.20;

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
