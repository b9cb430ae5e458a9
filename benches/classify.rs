//! `scruple classify --registry` on many models with a layer of ViT-B, against reading the bytes of that layer.
//!
//!     cargo bench --bench classify [-- --models 256]
//!
//! One thread, from the page cache. Each file holds a second tensor of the same size, which neither side reads. Before
//! anything is timed, the program's answers are compared with the expert's arithmetic in f64, element by element, on some
//! models, and with the library's answers on all. Beside the ratio to reading stands the time that the probe's products
//! take where every cycle multiplies: what no reader of these weights by a probe of this shape can undercut.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use scruple_weights::{
    Checkpoint,
    probex::{
        About, Expert, Net, Preset, Spec,
        expert::Radius,
        file::{FORMAT, write_arrays},
        head::Choice,
        layer::Layer,
        metrics::{Figure, Figures},
        registry::Registry,
        spec::{Head, Input},
        train::Training,
    },
};
use serde_json::{Value, json};

mod common;

const SIDE: usize = 768;
/// Probes, projection, representation.
const RANKS: (usize, usize, usize) = (128, 128, 128);
const CLASSES: usize = 100;
const DOCUMENTED: usize = 1000;
const LAYER: &str = "encoder.layer.7.attention.output.dense.weight";
/// Models whose answers are computed in f64 too.
const BY_HAND: usize = 2;
const RUNS: usize = 5;
/// Probabilities may differ by this: sums of some ten thousand products in f32.
const MAX_DIFFERENCE: f64 = 2e-4;

fn expert(base: Vec<f32>, random: &mut common::Random) -> Expert {
    let spec =
        Spec { rows: SIDE, columns: SIDE, body: Preset::Delta.body(RANKS), head: Head::Labels { classes: CLASSES } };
    let one = Figure { value: 1.0, low: 1.0, high: 1.0 };
    let figures = Figures { models: 1, accuracy: one, auroc: None, calibration_error: 0.0, exact: one, top_k: one };
    let about = About {
        format: FORMAT,
        tree: "vit".into(),
        label: "classes".into(),
        choice: Choice::Several,
        classes: (0..CLASSES).map(|class| format!("class {class}")).collect(),
        layer: Layer { name: LAYER.into(), rows: SIDE, columns: SIDE, adapter: false },
        input: Input::Base,
        spec: spec.clone(),
        factor: 500.0,
        preset: Preset::Delta,
        radius: Radius { own: 2.0, nearest_other: None, limit: 4.0 },
        temperature: 1.0,
        conformal: (0..30).map(|at| at as f32 / 30.0).collect(),
        documented: (0..DOCUMENTED)
            .map(|at| (format!("model {at}"), vec![at % CLASSES, (7 * at + 3) % CLASSES]))
            .collect(),
        validation: figures,
        test: None,
        covered: None,
        zero_shot: None,
        encoder: None,
        trained_on: DOCUMENTED - 100,
        training: Training::default(),
        augmented: Vec::new(),
        seen: (0..CLASSES).collect(),
        candidates: Vec::new(),
    };
    let net = Net::start(spec, 3, about.factor);
    let representations = (0..DOCUMENTED * RANKS.2).map(|_| random.normal()).collect();
    Expert { about, net, centre: base.clone(), centroid: base, representations, texts: Vec::new() }
}

/// Probabilities of one model by the definition.
fn by_hand(expert: &Expert, x: &[f32]) -> Vec<f64> {
    let section = |name: &str| expert.net.section(name).iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let (u, v, m) = (section("xu.probes"), section("xu.projection"), section("encoder.weight"));
    let (m_bias, t, t_bias) = (section("encoder.bias"), section("head.weight"), section("head.bias"));
    let (probes, projection, representation) = RANKS;
    let change: Vec<f64> =
        x.iter().zip(&expert.centre).map(|(x, c)| f64::from(x - c) * f64::from(expert.net.factor)).collect();
    let mut s = vec![0.0; SIDE * probes];
    for (row, s) in change.chunks(SIDE).zip(s.chunks_mut(probes)) {
        for (x, u) in row.iter().zip(u.chunks(probes)) {
            s.iter_mut().zip(u).for_each(|(s, u)| *s += x * u);
        }
    }
    let mean = s.iter().sum::<f64>() / s.len() as f64;
    let deviation = (s.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / s.len() as f64).sqrt();
    s.iter_mut().for_each(|s| *s = (*s - mean) / (deviation + 1e-8));
    let mut h = vec![0.0; probes * projection];
    for (probe, h) in h.chunks_mut(projection).enumerate() {
        for (v, h) in v.chunks(SIDE).zip(h) {
            *h = v.iter().enumerate().map(|(row, v)| v * s[row * probes + probe]).sum::<f64>().max(0.0);
        }
    }
    let affine = |weight: &[f64], bias: &[f64], x: &[f64]| -> Vec<f64> {
        let rows = weight.chunks(x.len()).zip(bias);
        rows.map(|(w, b)| b + w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()).collect()
    };
    let e = affine(&m, &m_bias, &h);
    assert_eq!(e.len(), representation);
    affine(&t, &t_bias, &e).into_iter().map(|y| 1.0 / (1.0 + (-y).exp())).collect()
}

/// CPU seconds of the children that have ended.
fn children_seconds() -> f64 {
    // SAFETY: rusage is plain numbers, for which zero is valid, and getrusage only writes to it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Runs the program on `files`; its CPU seconds.
fn classify(registry: &Path, lines: &Path, files: &[PathBuf]) -> f64 {
    let _ = std::fs::remove_file(lines);
    let before = children_seconds();
    let output = Command::new(env!("CARGO_BIN_EXE_scruple"))
        .args(["classify", "--threads", "1", "--registry"])
        .arg(registry)
        .arg("--jsonl")
        .arg(lines)
        .args(files)
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    children_seconds() - before
}

/// The probabilities in each line.
fn probabilities(lines: &Path) -> Vec<Vec<f64>> {
    let text = std::fs::read_to_string(lines).expect("the answers");
    let row = |line: &str| -> Vec<f64> {
        let answer: Value = serde_json::from_str(line).expect("an answer");
        let all = answer["findings"][0]["probabilities"].as_array().expect("a finding").clone();
        all.iter().map(|p| p["probability"].as_f64().expect("a number")).collect()
    };
    text.lines().map(row).collect()
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn main() {
    let models: usize = common::option("--models").map_or(256, |n| n.parse().expect("a number"));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let mut random = common::Random(11);
    let base: Vec<f32> = (0..SIDE * SIDE).map(|_| 0.02 * random.normal()).collect();
    let expert = expert(base.clone(), &mut random);
    let registry = folder.path().join("registry");
    std::fs::create_dir(&registry).expect("a folder");
    expert.write(&registry.join("vit.classes.safetensors")).expect("the expert");
    let other: Vec<f32> = base.iter().map(|x| -x).collect();
    let mut files = Vec::new();
    for at in 0..models {
        let layer: Vec<f32> = base.iter().map(|x| x + 0.002 * random.normal()).collect();
        let file = folder.path().join(format!("{at:04}.safetensors"));
        let arrays = [
            ("encoder.layer.6.attention.output.dense.weight".to_string(), vec![SIDE, SIDE], other.as_slice()),
            (LAYER.to_string(), vec![SIDE, SIDE], layer.as_slice()),
        ];
        write_arrays(&file, &arrays, &BTreeMap::new(), false).expect("a model");
        files.push(file);
    }

    let lines = folder.path().join("answers.jsonl");
    classify(&registry, &lines, &files);
    let found = probabilities(&lines);
    let read = Registry::open(&registry).expect("the registry");
    for (at, (file, found)) in files.iter().zip(&found).enumerate() {
        let checkpoint = Checkpoint::open(file).expect("a model");
        let mut route = read.route(&checkpoint).expect("a route");
        assert!(route.known.len() == 1, "{}: {:?}", file.display(), route.why);
        let said = read.experts[0].1.answers(vec![route.known.remove(0).1], 0.9, 5).remove(0);
        let alone: Vec<f64> = said.probabilities.iter().map(|p| f64::from(*p)).collect();
        assert!(apart(found, &alone) < 1e-6, "model {at} is answered differently alone");
        if at < BY_HAND {
            let x = checkpoint.tensor(LAYER).and_then(|view| view.to_f32()).expect("the layer");
            let expected = by_hand(&expert, &x);
            let spread = expected.iter().fold(0.0, |most: f64, p| most.max((p - 0.5).abs()));
            assert!(spread > 0.01, "all probabilities are alike, so comparing them says nothing");
            assert!(apart(found, &expected) < MAX_DIFFERENCE, "model {at}: {}", apart(found, &expected));
        }
    }

    // The layer stands last in its file.
    let bytes = 4 * SIDE * SIDE;
    let mut buffer = vec![0u8; bytes];
    let mut read_all = || {
        let mut sum = 0u64;
        for path in &files {
            let file = File::open(path).expect("a model");
            let length = file.metadata().expect("a model").len();
            file.read_exact_at(&mut buffer, length - bytes as u64).expect("the layer");
            let words = buffer.as_chunks::<8>().0.iter();
            sum = words.fold(sum, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
        }
        std::hint::black_box(sum);
    };
    let peak = common::multiply_add_limit();
    let (u, v, t) = RANKS;
    let flop = 2.0 * (SIDE * SIDE * u + SIDE * u * v + u * v * t + CLASSES * t) as f64;
    let (mut ours, mut limits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let reading = models as f64 / common::timed(&mut read_all).1;
        let speed = models as f64 / classify(&registry, &lines, &files);
        ours.push(speed);
        limits.push(reading);
        ratios.push(speed / reading);
    }
    let (speed, reading) = (common::median(ours.clone()), common::median(limits.clone()));
    println!("{speed:.0} models a CPU second; reading their layers alone {reading:.0}: {:.2} of it", speed / reading);
    let bound = peak.map(|peak| 1.0 / (1.0 / reading + flop / (peak * 1e9)));
    if let Some(bound) = bound {
        println!("reading and multiplying at the machine's limit {bound:.0}: {:.2} of it", speed / bound);
    }
    common::record(
        "classify",
        json!({
            "layer": [SIDE, SIDE], "ranks": [u, v, t], "classes": CLASSES, "documented": DOCUMENTED, "models": models,
            "models_per_cpu_second": ours, "reading_models_per_cpu_second": limits, "ratios_to_reading": ratios,
            "median_ratio_to_reading": common::median(ratios.clone()),
            "flop_per_model": flop, "limit_gflop_per_second": peak,
            "reading_and_multiplying_models_per_cpu_second": bound,
            "ratio_to_reading_and_multiplying": bound.map(|bound| speed / bound),
        }),
    );
}
