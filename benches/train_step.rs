//! Images trained on a CPU second, against torch with channels last, and against the machine's limit; and how near to it
//! the convolutions come by themselves.
//!
//!     RAYON_NUM_THREADS=1 cargo bench --bench train_step -- --python PYTHON
//!
//! One training step: forward, loss, backward, SGD with momentum; f32, one thread. Both sides start from the same weights
//! and see the same batch, and the costs of their first steps must agree before anything is timed. Runs alternate; the
//! median of the paired ratios is what counts. PYTHON has torch and safetensors.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::process::Command;

use scruple_compress::kernel::image::{
    conv::{self, Convolution, Plan},
    lane::Path,
};
use scruple_compress::nn::{
    Architecture, Input, Mode, Net, Shortcut, Spec, Weights,
    optimiser::{Optimiser, Rule},
};
use serde_json::{Value, json};

/// Paired runs.
const RUNS: usize = 5;

/// Steps whose costs are compared.
const COMPARED: usize = 5;

/// Times a kernel is timed, of which the fastest counts.
const TIMED: usize = 12;

/// The learning rate; low, since every step sees the same batch.
const RATE: f64 = 0.01;

const MOMENTUM: f64 = 0.9;

/// Largest difference of the costs of the first steps, relative: f32 sums in another order, amplified by five steps.
const MAX_COST_DIFFERENCE: f64 = 2e-3;

struct Case {
    name: &'static str,
    spec: Spec,
    batch: usize,
    /// Steps timed in a run, of which the median counts: enough to run warm.
    timed: usize,
}

struct Ours {
    costs: Vec<f64>,
    seconds: f64,
}

fn cases() -> Vec<Case> {
    let cifar = Input { height: 32, width: 32, channels: 3 };
    let grey = Input { height: 28, width: 28, channels: 1 };
    let resnet = |width| Architecture::resnet(20, width, Shortcut::Slice).expect("a ResNet-20");
    let mlp = Architecture::Mlp { hidden: vec![512, 512], norm: false };
    vec![
        Case {
            name: "resnet20",
            spec: Spec { architecture: resnet(16), input: cifar, classes: 10 },
            batch: 64,
            timed: 15,
        },
        Case {
            name: "resnet20-width8",
            spec: Spec { architecture: resnet(8), input: cifar, classes: 10 },
            batch: 64,
            timed: 15,
        },
        Case { name: "mlp-512-512", spec: Spec { architecture: mlp, input: grey, classes: 10 }, batch: 64, timed: 400 },
    ]
}

/// The costs of the first steps, and the median CPU seconds of those after.
fn ours(case: &Case, images: &[f32], labels: &[u8]) -> Ours {
    let mut net = Net::new(&case.spec, case.batch).expect("a net");
    let mut weights = Weights::start(net.graph(), 1);
    let rule = Rule::Sgd { momentum: MOMENTUM, nesterov: false, weight_decay: 0.0 };
    let mut optimiser = Optimiser::new(rule, net.graph().layout(), false);
    let mut gradient = vec![0.0; weights.values.len()];
    let mut step = || {
        net.input_mut(case.batch).copy_from_slice(images);
        net.forward(&weights.values, &mut weights.running, Mode::Train);
        let loss = net.loss(labels, 0.0).expect("a finite cost");
        net.backward(&weights.values, &mut gradient, false);
        optimiser.step(&mut weights.values, &mut gradient, RATE);
        loss.mean
    };
    let costs = (0..COMPARED).map(|_| step()).collect();
    let seconds = common::median((0..case.timed).map(|_| common::timed(&mut step).1).collect());
    Ours { costs, seconds }
}

fn peer(python: &str, case: &Case, folder: &std::path::Path) -> (Vec<f64>, f64) {
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/train_torch.py");
    let Input { height, width, channels } = case.spec.input;
    let output = Command::new(python)
        .arg(script)
        .arg(folder)
        .args([case.batch, height, width, channels, COMPARED, case.timed].map(|number| number.to_string()))
        .args([RATE.to_string(), MOMENTUM.to_string()])
        .env("OMP_NUM_THREADS", "1")
        .output()
        .expect("the peer runs");
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("the peer prints JSON: {error}\n{}", String::from_utf8_lossy(&output.stderr)));
    let costs = serde_json::from_value(report["costs"].clone()).expect("costs");
    (costs, report["cpu_seconds_a_step"].as_f64().expect("seconds"))
}

/// GFLOP/s of a ResNet-20's 3 × 3 convolutions in each stage: forward, gradient of the input, gradient of the weight.
fn kernels(limit: Option<f64>) -> Vec<Value> {
    let path = Path::best();
    let shapes = [(16, 32), (32, 16), (64, 8), (8, 32)];
    let rate = |flop: f64, run: &mut dyn FnMut()| {
        let times = (4e8 / flop) as usize;
        let mut batch = || (0..times).for_each(|_| run());
        let seconds = (0..TIMED).map(|_| common::timed(&mut batch).1).fold(f64::MAX, f64::min);
        flop * times as f64 / seconds / 1e9
    };
    shapes
        .map(|(channels, side)| {
            let conv = Convolution { inputs: channels, outputs: channels, kernel: 3, stride: 1 };
            let plan = Plan::new(conv, (side, side), channels);
            let mut random = common::Random(3);
            let mut values = |count: usize| (0..count).map(|_| random.normal()).collect::<Vec<f32>>();
            let (x, dy, w) = (values(plan.padded_input()), values(plan.padded_output()), values(conv.weights()));
            let (mut ahead, mut back) = (vec![0.0; plan.packed_forward()], vec![0.0; plan.packed_backward()]);
            plan.pack_forward(path, &w, &mut ahead);
            plan.pack_backward(path, &w, &mut back);
            let (mut y, mut dx) = (vec![0.0; plan.output()], vec![0.0; plan.input_gradient()]);
            let mut dw = vec![0.0; plan.packed_forward()];
            let flop = 2.0 * conv.multiply_adds((side, side)) as f64;
            let forward = rate(flop, &mut || conv::forward(path, &plan, &x, &ahead, &mut y));
            let grad_input = rate(flop, &mut || conv::grad_input(path, &plan, &dy, &back, &mut dx, false));
            let grad_weight = rate(flop, &mut || conv::grad_weight(path, &plan, &x, &dy, &mut dw));
            println!(
                "3 × 3, {channels} channels, {side} × {side} pixels: forward {forward:.0}, gradient of the input \
                 {grad_input:.0}, of the weight {grad_weight:.0} GFLOP/s of {:.0}",
                limit.unwrap_or(f64::NAN)
            );
            json!({ "channels": channels, "side": side, "forward": forward, "grad_input": grad_input,
                    "grad_weight": grad_weight })
        })
        .to_vec()
}

fn main() {
    assert_eq!(rayon::current_num_threads(), 1, "set RAYON_NUM_THREADS=1: this compares single threads");
    let python = common::option("--python");
    let limit = common::multiply_add_limit();
    let kernels = kernels(limit);
    let mut results = Vec::new();
    for case in cases() {
        let Input { height, width, channels } = case.spec.input;
        let mut random = common::Random(7);
        let images: Vec<f32> = (0..case.batch * height * width * channels).map(|_| random.normal()).collect();
        let labels: Vec<u8> = (0..case.batch).map(|_| (random.bits() % case.spec.classes as u64) as u8).collect();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let graph = case.spec.graph().expect("a net");
        let bytes: Vec<u8> = images.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(folder.path().join("images"), bytes).expect("the images");
        std::fs::write(folder.path().join("labels"), &labels).expect("the labels");
        Weights::start(&graph, 1).write(&graph, &folder.path().join("weights.safetensors")).expect("the weights");

        let (mut speeds, mut peer_speeds, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let mut costs = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let found = ours(&case, &images, &labels);
            speeds.push(case.batch as f64 / found.seconds);
            costs.0 = found.costs;
            let Some(python) = &python else { continue };
            let (peer_costs, seconds) = peer(python, &case, folder.path());
            for (step, (ours, theirs)) in costs.0.iter().zip(&peer_costs).enumerate() {
                let apart = (ours - theirs).abs() / theirs.abs();
                assert!(
                    apart < MAX_COST_DIFFERENCE,
                    "{}: cost {ours} at step {step}, the peer's is {theirs}",
                    case.name
                );
            }
            peer_speeds.push(case.batch as f64 / seconds);
            ratios.push(seconds / found.seconds);
            costs.1 = peer_costs;
        }
        let speed = common::median(speeds.clone());
        // Forward, and both gradients but that of the images.
        let first = graph.layout().entries()[0].values();
        let first =
            if matches!(case.spec.architecture, Architecture::Mlp { .. }) { first } else { first * height * width };
        let flop = 2.0 * (3 * graph.multiply_adds() - first) as f64;
        let reached = speed * flop / 1e9;
        println!("{}: {speed:.0} images a CPU second, {reached:.0} GFLOP/s", case.name);
        if let Some(limit) = limit {
            println!(
                "    of {:.0} at the limit of {limit:.0} GFLOP/s: {:.0} %",
                limit * 1e9 / flop,
                100.0 * reached / limit
            );
        }
        if !ratios.is_empty() {
            let (theirs, ratio) = (common::median(peer_speeds.clone()), common::median(ratios.clone()));
            println!("    torch, channels last: {theirs:.0}, ratio {ratio:.2}");
        }
        results.push(json!({
            "net": case.name, "batch": case.batch, "flop_an_image": flop,
            "images_per_cpu_second": speeds, "peer_images_per_cpu_second": peer_speeds, "ratios": ratios,
            "median_ratio": (!ratios.is_empty()).then(|| common::median(ratios.clone())),
            "gflop_per_second": reached, "share_of_limit": limit.map(|limit| reached / limit),
            "first_costs": costs.0, "peer_first_costs": costs.1,
        }));
    }
    common::record(
        "train_step",
        json!({ "limit_gflop_per_second": limit, "threads": 1, "kernels": kernels, "nets": results }),
    );
}
