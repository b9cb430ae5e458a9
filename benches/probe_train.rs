//! Training a probe of the paper's shape on a layer of ViT-B, against torch on the same numbers.
//!
//! The costs of the first passes are compared before anything is timed. One thread; set RAYON_NUM_THREADS=1.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

use std::{collections::BTreeMap, process::Command};

use scruple_weights::probex::{
    Net, Preset, Spec,
    file::write_arrays,
    head::{Choice, Texts},
    operand::Operand,
    spec::Head,
    train::{Learner, Training},
};
use serde_json::{Value, json};

mod common;

const ROWS: usize = 768;
const COLUMNS: usize = 768;
/// Probes, projection, representation.
const RANKS: (usize, usize, usize) = (128, 128, 512);
const CLASSES: usize = 100;
const MODELS: usize = 256;
const BATCH: usize = 128;
/// Passes whose costs are compared.
const COMPARED: usize = 3;
/// Passes that are timed, in each of [`RUNS`].
const TIMED: usize = 3;
const RUNS: usize = 3;
/// Costs may differ by this share.
const MAX_COST_DIFFERENCE: f64 = 1e-4;

/// Multiply-adds of a step on one model: forward, and back to every parameter.
fn multiply_adds() -> f64 {
    let (u, v, t) = RANKS;
    let probes = ROWS * COLUMNS * u;
    let projection = ROWS * u * v;
    (2 * probes + 3 * (projection + t * u * v + CLASSES * t)) as f64
}

fn main() {
    assert_eq!(rayon::current_num_threads(), 1, "set RAYON_NUM_THREADS=1: this compares single threads");
    let python = common::option("--python");
    let mut random = common::Random(7);
    let layers: Vec<f32> = (0..MODELS * ROWS * COLUMNS).map(|_| 0.02 * random.normal()).collect();
    let truths: Vec<f32> = (0..MODELS * CLASSES).map(|_| (random.bits() & 1) as f32).collect();
    let spec = Spec {
        rows: ROWS,
        columns: COLUMNS,
        body: Preset::Probex.body(RANKS),
        head: Head::Labels { classes: CLASSES },
    };
    let start = Net::start(spec.clone(), 1, 1.0);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let arrays: Vec<_> = spec.sections().into_iter().map(|s| (s.name, s.shape, &start.values[s.range])).collect();
    write_arrays(&folder.path().join("probe.safetensors"), &arrays, &BTreeMap::new(), false).expect("the probe");
    for (name, values) in [("layers", &layers), ("truths", &truths)] {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(folder.path().join(name), bytes).expect("the data");
    }
    let models: Vec<Operand<'_>> = layers.chunks_exact(ROWS * COLUMNS).map(Operand::Dense).collect();
    let training = Training::default();
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let mut learner = Learner::new(start.clone());
        let mut pass = || -> Vec<f64> {
            let parts = models.chunks(BATCH).zip(truths.chunks(BATCH * CLASSES));
            parts.map(|(m, t)| learner.step(m, t, Texts::default(), Choice::Several, &training)).collect()
        };
        let costs: Vec<f64> = (0..COMPARED).flat_map(|_| pass()).collect();
        let seconds = common::median((0..TIMED).map(|_| common::timed(&mut pass).1).collect());
        ours.push(MODELS as f64 / seconds);
        let Some(python) = &python else { continue };
        let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/probe_torch.py");
        let output = Command::new(python)
            .arg(script)
            .arg(folder.path())
            .args([MODELS, ROWS, COLUMNS, CLASSES, BATCH, COMPARED, TIMED].map(|number| number.to_string()))
            .args([training.rate.to_string(), training.decay.to_string()])
            .env("OMP_NUM_THREADS", "1")
            .output()
            .expect("the peer runs");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("the peer prints JSON: {error}\n{}", String::from_utf8_lossy(&output.stderr))
        });
        let peer: Vec<f64> = serde_json::from_value(report["costs"].clone()).expect("costs");
        for (step, (a, b)) in costs.iter().zip(&peer).enumerate() {
            assert!((a - b).abs() < MAX_COST_DIFFERENCE * b, "cost {a} at step {step}, the peer's is {b}");
        }
        let passes: Vec<f64> = serde_json::from_value(report["cpu_seconds_a_pass"].clone()).expect("seconds");
        theirs.push(MODELS as f64 / common::median(passes));
        ratios.push(ours.last().expect("a run") / theirs.last().expect("a run"));
    }
    let speed = common::median(ours.clone());
    println!("{speed:.0} models a CPU second, {:.0} GFLOP/s", speed * 2.0 * multiply_adds() / 1e9);
    if !ratios.is_empty() {
        println!("torch {:.0}, ratio {:.2}", common::median(theirs.clone()), common::median(ratios.clone()));
    }
    common::record(
        "probe_train",
        json!({
            "layer": [ROWS, COLUMNS], "ranks": [RANKS.0, RANKS.1, RANKS.2], "classes": CLASSES, "models": MODELS,
            "batch": BATCH, "models_per_cpu_second": ours, "peer_models_per_cpu_second": theirs, "ratios": ratios,
            "median_ratio": (!ratios.is_empty()).then(|| common::median(ratios.clone())),
            "limit_gflop_per_second": common::multiply_add_limit(),
        }),
    );
}
