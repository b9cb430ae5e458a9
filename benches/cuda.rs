//! Probe training and GPTQ's calibration on a GPU, against this machine's processor with all its threads, in one run.
//!
//!     cargo bench --features cuda --bench cuda -- [--device cuda:0] [--model DIR --text FILE]
//!
//! What both sides answer is compared before anything is timed. Wall seconds, since a GPU has no CPU clock. Calibration is
//! timed by what more tokens cost: reading, choosing codes, writing and proving are the same for few tokens and for many.
//! `--device candle-cpu` runs the same without a GPU, to see that the benchmark works; its record says so.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::{path::Path, process::Command, time::Instant};

use scruple_compress::{device::DeviceName, probe::Trainer};
use scruple_weights::probex::{
    Net, Preset, Spec,
    head::{Choice, Texts},
    operand::Operand,
    spec::Head,
    train::{Engine, Learner, Models, Part, Task, Training},
};
use serde_json::{Value, json};

const ROWS: usize = 768;
const COLUMNS: usize = 768;
/// Probes, projection, representation.
const RANKS: (usize, usize, usize) = (128, 128, 512);
const CLASSES: usize = 100;
const MODELS: usize = 512;
/// Passes whose costs are compared.
const COMPARED: usize = 3;
/// Passes that are timed, in each of [`RUNS`].
const TIMED: usize = 3;
const RUNS: usize = 3;
/// Costs may differ by this share.
const MAX_COST_DIFFERENCE: f64 = 1e-4;

/// Calibration sequences of the two runs whose difference is timed, and their tokens.
const SAMPLES: [usize; 2] = [16, 128];
const SEQ_LEN: usize = 512;
/// A linear's output error may differ by this share: a sum's last bit can turn a rounding, and feedback carries it on.
const MAX_ERROR_DIFFERENCE: f64 = 0.05;
/// The mean of all linears by this.
const MAX_MEAN_ERROR_DIFFERENCE: f64 = 0.005;

struct Layers(Vec<f32>);

impl Models for Layers {
    fn len(&self) -> usize {
        MODELS
    }

    fn copies(&self) -> usize {
        1
    }

    fn layer(&self, at: usize, _: usize) -> Operand<'_> {
        Operand::Dense(&self.0[at * ROWS * COLUMNS..][..ROWS * COLUMNS])
    }
}

fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

/// Models a second of both sides.
fn probe(trainer: &Trainer) -> Value {
    let mut random = common::Random(7);
    let layers = Layers((0..MODELS * ROWS * COLUMNS).map(|_| 0.02 * random.normal()).collect());
    let truths: Vec<f32> = (0..MODELS * CLASSES).map(|_| (random.bits() & 1) as f32).collect();
    let (body, head) = (Preset::Probex.body(RANKS), Head::Labels { classes: CLASSES });
    let start = Net::start(Spec { rows: ROWS, columns: COLUMNS, body, head }, 1, 1.0);
    let training = Training::default();
    let places: Vec<usize> = (0..MODELS).collect();
    let part = Part { models: &places, truths: &truths, classes: CLASSES };
    // The validation part is only held, so one model is enough.
    let validation = Part { models: &places[..1], truths: &truths[..CLASSES], classes: CLASSES };
    let (texts, choice) = (Texts::default(), Choice::Several);
    let task = Task { models: &layers, train: part, validation, texts, choice, training: &training };

    let operands: Vec<Operand<'_>> = places.iter().map(|&at| layers.layer(at, 0)).collect();
    let entries: Vec<(usize, usize)> = places.iter().map(|&at| (at, 0)).collect();
    let (mut processor, mut device) = (Vec::new(), Vec::new());
    let mut upload = 0.0;
    for _ in 0..RUNS {
        let mut learner = Learner::new(start.clone());
        let mut by_kernels = || -> f64 {
            let parts = operands.chunks(training.batch).zip(truths.chunks(training.batch * CLASSES));
            let costs = parts.map(|(m, t)| learner.step(m, t, texts, choice, &training) * m.len() as f64);
            costs.sum::<f64>() / MODELS as f64
        };
        let mut steps = None;
        upload = seconds(|| steps = Some(trainer.start(&start, task).expect("the device holds the layers")));
        let mut steps = steps.expect("started");
        let mut by_device = || -> f64 {
            entries.chunks(training.batch).for_each(|batch| steps.step(batch).expect("a step"));
            steps.costs().expect("costs") / MODELS as f64
        };
        for pass in 0..COMPARED {
            let (expected, found) = (by_kernels(), by_device());
            let apart = (found - expected).abs();
            assert!(apart < MAX_COST_DIFFERENCE * expected, "pass {pass} costs {found} there, {expected} here");
        }
        let speed = |passes: Vec<f64>| MODELS as f64 / common::median(passes);
        processor.push(speed((0..TIMED).map(|_| seconds(|| _ = by_kernels())).collect()));
        // Costs are asked for at a pass's end, so that its time is that of the arithmetic and not of its dispatch.
        device.push(speed((0..TIMED).map(|_| seconds(|| _ = by_device())).collect()));
    }
    let (here, there) = (common::median(processor.clone()), common::median(device.clone()));
    println!(
        "probe training: {here:.0} models/s on the processor, {there:.0} on the device, ratio {:.1}",
        there / here
    );
    json!({
        "layer": [ROWS, COLUMNS], "ranks": [RANKS.0, RANKS.1, RANKS.2], "models": MODELS, "batch": training.batch,
        "models_per_second_processor": processor, "models_per_second_device": device, "upload_seconds": upload,
        "ratio": there / here,
    })
}

/// Output errors of all linears, and wall seconds, of one GPTQ run.
fn compress(model: &str, text: &str, device: &str, samples: usize, out: &Path) -> (Vec<f64>, f64) {
    let started = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_scruple"))
        .args(["compress", model, "--method", "gptq", "--bits", "4", "--group-size", "64", "--calibration", text])
        .args(["--n-samples", &samples.to_string(), "--seq-len", &SEQ_LEN.to_string(), "--no-speed", "--no-proof"])
        .args(["--json", "--device", device, "-o"])
        .arg(out)
        .output()
        .expect("the program runs");
    let seconds = started.elapsed().as_secs_f64();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let linears = report["linears"].as_array().expect("linears");
    (linears.iter().map(|linear| linear["output_error"].as_f64().expect("an error")).collect(), seconds)
}

/// Calibration tokens a second of both sides.
fn calibration(model: &str, text: &str, device: DeviceName) -> Value {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let tokens = ((SAMPLES[1] - SAMPLES[0]) * SEQ_LEN) as f64;
    let run = |device: &str| {
        let [few, many] = SAMPLES
            .map(|samples| compress(model, text, device, samples, &folder.path().join(format!("{device}-{samples}"))));
        let speed = tokens / (many.1 - few.1).max(1e-9);
        (many.0, speed, [few.1, many.1])
    };
    let (expected, here, seconds_here) = run("cpu");
    let (found, there, seconds_there) = run(&device.to_string());
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let apart = (found - expected).abs();
        assert!(apart <= MAX_ERROR_DIFFERENCE * expected, "linear {at} loses {found} there, {expected} here");
    }
    let mean = |errors: &[f64]| errors.iter().sum::<f64>() / errors.len() as f64;
    let (found, expected) = (mean(&found), mean(&expected));
    let apart = (found - expected).abs();
    assert!(apart <= MAX_MEAN_ERROR_DIFFERENCE * expected, "linears lose {found} there, {expected} here");
    println!(
        "GPTQ calibration: {here:.0} tokens/s on the processor, {there:.0} on the device, ratio {:.1}",
        there / here
    );
    json!({
        "samples": SAMPLES, "seq_len": SEQ_LEN, "tokens_per_second_processor": here, "tokens_per_second_device": there,
        "ratio": there / here, "whole_seconds_processor": seconds_here, "whole_seconds_device": seconds_there,
        "mean_output_error_processor": expected, "mean_output_error_device": found,
    })
}

fn main() {
    let name = common::option("--device").unwrap_or_else(|| "cuda".into());
    let name: DeviceName = name.parse().unwrap_or_else(|error| panic!("{error}"));
    let device = match name.open() {
        Ok(Some(device)) => device,
        Ok(None) => panic!("--device {name} is the processor itself; give cuda, or candle-cpu"),
        Err(error) => {
            println!("cuda: skipped: {error}");
            return;
        }
    };
    let gpus = Command::new("nvidia-smi").arg("-L").output().ok();
    let gpus =
        gpus.map(|output| String::from_utf8_lossy(&output.stdout).lines().map(str::to_string).collect::<Vec<_>>());
    let mut result = json!({ "device": name.to_string(), "gpus": gpus, "threads": rayon::current_num_threads() });
    result["probe"] = probe(&Trainer::new(device));
    match (common::option("--model"), common::option("--text")) {
        (Some(model), Some(text)) => result["calibration"] = calibration(&model, &text, name),
        _ => println!("GPTQ calibration: skipped, for want of --model and --text"),
    }
    common::record("cuda", result);
}
