//! Weight statistics of a whole checkpoint: CPU seconds of one thread, beside NumPy and WeightWatcher in the same run.
//!
//! ```text
//! cargo bench --bench statistics -- [--python PYTHON] [--folder DIR] [--blocks 22] [--repeat 5] [--spectra MODEL]
//! ```
//!
//! A synthetic Llama of 1.1 B parameters (bf16, 2.2 GB) is written to `--folder` unless it is there already. With
//! `--python`, an interpreter with NumPy, `benches/peers/statistics_numpy.py` measures the same tensors, and every figure
//! is compared before a time counts. `--spectra` takes a model of a Hugging Face folder and, with `--python`, lets
//! WeightWatcher (with torch and transformers) fit the same matrices.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use common::{flag, median, option, synthetic::synthesise, timed};
use scruple_weights::{
    Checkpoint, TensorView,
    spectrum::{self, Windows},
    statistics::{self, Moments, TensorStatistics},
};
use serde_json::{Value, json};

/// The largest difference of a figure from NumPy's f32 arithmetic, relative.
const TOLERANCE: f64 = 2e-4;

fn main() {
    if flag("--test") || flag("--list") {
        return; // run as a test harness: nothing to do
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(run);
}

/// What the peer script prints for one of its tables.
fn peer(script: &str, arguments: &[&str]) -> Option<Value> {
    let python = option("--python")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(script);
    let output = Command::new(python)
        .arg(script)
        .args(arguments)
        .env("OMP_NUM_THREADS", "1")
        .env("OPENBLAS_CORETYPE", "SkylakeX")
        .output()
        .expect("the interpreter runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    // Libraries talk on stdout too; the object is the last line.
    Some(serde_json::from_str(text.lines().next_back().expect("a line")).expect("JSON"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

#[track_caller]
fn expect_near(name: &str, what: &str, ours: f64, theirs: &Value, size: f64) {
    let theirs = number(theirs);
    assert!((ours - theirs).abs() <= TOLERANCE * size.abs().max(theirs.abs()), "{name}: {what} {ours}, NumPy {theirs}");
}

fn compare_moments(name: &str, ours: &Moments, theirs: &Value) {
    expect_near(name, "mean", ours.mean, &theirs["mean"], ours.std);
    for (what, value) in
        [("std", ours.std), ("min", ours.min), ("max", ours.max), ("l2", ours.l2), ("kurtosis", ours.kurtosis)]
    {
        expect_near(name, what, value, &theirs[what], 0.0);
    }
}

fn compare_table(name: &str, ours: &TensorStatistics, theirs: &Value) {
    compare_moments(name, &ours.moments, theirs);
    expect_near(name, "l1", ours.moments.l1, &theirs["l1"], 0.0);
    expect_near(name, "skewness", ours.moments.skewness, &theirs["skewness"], 1.0);
    for (ours, theirs) in ours.quantiles.iter().zip(theirs["quantiles"].as_array().expect("quantiles")) {
        assert_eq!(*ours, number(theirs), "{name}: a quantile");
    }
    assert_eq!(Some(ours.moments.zeros), theirs["zeros"].as_u64(), "{name}: zeros");
    assert_eq!(ours.denormals, theirs["denormals"].as_u64(), "{name}: denormals");
    for (what, ours) in [("rows", &ours.rows), ("columns", &ours.columns)] {
        let Some(ours) = ours else { continue };
        let theirs = &theirs[what];
        assert_eq!(Some(ours.dead.count as u64), theirs["dead"].as_u64(), "{name}: dead {what}");
        assert_eq!(Some(ours.outliers.count as u64), theirs["outliers"].as_u64(), "{name}: outlying {what}");
        expect_near(name, what, ours.top_energy, &theirs["top_energy"], 0.0);
        if let Some(duplicated) = theirs.get("duplicated") {
            assert_eq!(Some(ours.duplicated.count as u64), duplicated.as_u64(), "{name}: equal rows");
        }
    }
}

/// Times `work` over all tensors; gives the answers of the last round, and the median CPU seconds.
fn time<T>(checkpoint: &Checkpoint, repeat: usize, work: impl Fn(&TensorView) -> T) -> (Vec<T>, f64) {
    let mut answers = Vec::new();
    let seconds = (0..repeat)
        .map(|_| {
            let (found, seconds) = timed(|| checkpoint.tensors().map(&work).collect());
            answers = found;
            seconds
        })
        .collect();
    (answers, median(seconds))
}

fn run() {
    let repeat: usize = option("--repeat").map_or(5, |value| value.parse().expect("a number"));
    let blocks: usize = option("--blocks").map_or(22, |value| value.parse().expect("a number"));
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let folder = option("--folder").map_or_else(|| scratch.path().join("model"), PathBuf::from);
    if !folder.exists() {
        synthesise(&folder, blocks);
    }
    let checkpoint = Checkpoint::open(&folder).expect("the synthetic model");
    let gigabytes = checkpoint.bytes() as f64 / 1e9;
    println!("{gigabytes:.2} GB in {} tensors, one thread", checkpoint.tensors().len());

    let mut results = Vec::new();
    let mut report = |what: &str, seconds: f64, theirs: Option<Value>| {
        print!("  {what}: {seconds:.3} CPU s, {:.1} GB/s", gigabytes / seconds);
        let theirs = theirs.map(|theirs| number(&theirs["cpu_seconds"]));
        if let Some(theirs) = theirs {
            print!("; NumPy {theirs:.2} CPU s, {:.0} times as much", theirs / seconds);
        }
        println!();
        results.push(json!({ "what": what, "gb": gigabytes, "cpu_seconds": seconds, "gb_per_s": gigabytes / seconds,
            "numpy_cpu_seconds": theirs, "ratio": theirs.map(|theirs| theirs / seconds) }));
    };
    let path = folder.to_str().expect("UTF-8");

    let (ours, seconds) = time(&checkpoint, repeat, |view| statistics::moments(view).expect("sound"));
    let theirs = peer("statistics_numpy.py", &[path, "moments"]);
    if let Some(theirs) = &theirs {
        for (view, ours) in checkpoint.tensors().zip(&ours) {
            compare_moments(view.name(), ours, &theirs["tensors"][view.name()]);
        }
    }
    report("six statistics", seconds, theirs);

    let (ours, seconds) = time(&checkpoint, repeat, |view| statistics::statistics(view).expect("sound"));
    let theirs = peer("statistics_numpy.py", &[path, "full"]);
    if let Some(theirs) = &theirs {
        for (view, ours) in checkpoint.tensors().zip(&ours) {
            compare_table(view.name(), ours, &theirs["tensors"][view.name()]);
        }
    }
    report("health table", seconds, theirs);
    results.extend(option("--spectra").map(|model| spectra(&model)));
    common::record("statistics", json!(results));
}

/// The largest difference of an exponent from WeightWatcher's.
const ALPHA_TOLERANCE: f64 = 1e-3;

/// Times the spectra of a model's matrices, and compares the exponents.
fn spectra(model: &str) -> Value {
    let checkpoint = Checkpoint::open(model).expect("the model");
    // What WeightWatcher does is compared; `inspect --spectra` fits windows besides.
    let fit = |view: &TensorView, windows: Windows| {
        let tail = spectrum::spectrum(view, windows).expect("a readable tensor").and_then(|spectrum| spectrum.tail);
        tail.map(|tail| (view.name().to_owned(), tail.alpha))
    };
    let (ours, seconds) = time(&checkpoint, 1, |view| fit(view, Windows::Left));
    let (_, with_windows) = time(&checkpoint, 1, |view| fit(view, Windows::Fitted));
    let ours: BTreeMap<String, f64> = ours.into_iter().flatten().collect();
    let theirs = peer("spectra_weightwatcher.py", &[model]);
    let mut compared = 0;
    for (layer, alpha) in theirs.iter().flat_map(|theirs| theirs["alpha"].as_object().expect("exponents")) {
        // An output tied to the embedding has no tensor of its own.
        let Some(ours) = ours.get(&format!("{layer}.weight")) else { continue };
        let difference = (ours - number(alpha)).abs();
        assert!(difference <= ALPHA_TOLERANCE, "{layer}: {ours}, WeightWatcher {alpha}");
        compared += 1;
    }
    let theirs = theirs.map(|theirs| number(&theirs["cpu_seconds"]));
    println!(
        "  spectra of {} matrices: {seconds:.2} CPU s ({with_windows:.2} with windows); WeightWatcher {}, {compared} exponents equal",
        ours.len(),
        theirs.map_or("not run".to_string(), |theirs| format!(
            "{theirs:.2} CPU s, {:.1} times as much",
            theirs / seconds
        ))
    );
    json!({ "what": "spectra", "matrices": ours.len(), "cpu_seconds": seconds,
        "cpu_seconds_with_windows": with_windows, "weightwatcher_cpu_seconds": theirs,
        "ratio": theirs.map(|theirs| theirs / seconds), "exponents_compared": compared })
}
