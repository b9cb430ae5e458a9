//! Opening a checkpoint of many tensors: CPU seconds and peak memory of reading and checking a header.
//!
//! ```text
//! cargo bench --bench open_header -- [--tensors 200000] [--repeat 5]
//! ```
//!
//! The file is a safetensors file of small tensors under names as large models have them. Each opening is a process of
//! its own, so that its peak is that of nothing else; the limits are 0.15 s and 100 MiB for 200,000 tensors.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    process::Command,
};

use common::{flag, median, option, timed};
use scruple_weights::Checkpoint;
use serde_json::json;

/// Tensors in a block of the model that the names are of.
const PARTS: [&str; 8] = [
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "post_attention_layernorm.weight",
];

fn name(index: usize) -> String {
    format!("model.layers.{}.experts.{}.{}", index / 1024, index / 8 % 128, PARTS[index % 8])
}

fn main() {
    if flag("--test") || flag("--list") {
        return; // run as a test harness: nothing to do
    }
    match option("--open") {
        Some(path) => open(Path::new(&path)),
        None => run(),
    }
}

/// Opens `path`, looks at it, and prints how long that took and how much memory the process ever had.
fn open(path: &Path) {
    let (checkpoint, seconds) = timed(|| Checkpoint::open(path).expect("a checkpoint"));
    let last = checkpoint.tensors().len() - 1;
    let tensor = checkpoint.tensor(&name(last)).expect("the last tensor");
    assert_eq!((tensor.shape(), tensor.bytes()), (&[2, 2][..], &(last as u64).to_le_bytes()[..]));
    let status = std::fs::read_to_string("/proc/self/status").expect("the process's status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kib: f64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    println!("{} {seconds} {kib}", last + 1);
}

fn run() {
    let tensors: usize = option("--tensors").map_or(200_000, |value| value.parse().expect("a number"));
    let repeat: usize = option("--repeat").map_or(5, |value| value.parse().expect("a number"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    let mut header = String::from("{\"__metadata__\":{\"format\":\"pt\"}");
    for index in 0..tensors {
        let (begin, end) = (8 * index, 8 * index + 8);
        header +=
            &format!(",{:?}:{{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[{begin},{end}]}}", name(index));
    }
    header += "}";
    let mut file = BufWriter::new(File::create(&path).expect("room for the input"));
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("room for the input");
    file.write_all(header.as_bytes()).expect("room for the input");
    for index in 0..tensors as u64 {
        file.write_all(&index.to_le_bytes()).expect("room for the input");
    }
    file.into_inner().expect("room for the input").sync_all().expect("room for the input");

    let program = std::env::current_exe().expect("this program");
    let (mut seconds, mut mib) = (Vec::new(), Vec::new());
    for _ in 0..repeat {
        let out = Command::new(&program).arg("--open").arg(&path).output().expect("the program runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).expect("numbers");
        let numbers: Vec<f64> = text.split_whitespace().map(|number| number.parse().expect("a number")).collect();
        assert_eq!(numbers[0] as usize, tensors);
        seconds.push(numbers[1]);
        mib.push(numbers[2] / 1024.0);
    }
    let (seconds, mib) = (median(seconds), median(mib));
    let header_mib = header.len() as f64 / (1 << 20) as f64;
    println!("{tensors} tensors, a header of {header_mib:.1} MiB: {seconds:.3} s, {mib:.0} MiB at most");
    common::record(
        "open_header",
        json!([{ "what": "open", "tensors": tensors, "header_mib": header_mib, "seconds": seconds, "peak_mib": mib }]),
    );
}
