//! Pruning of one linear whose Hessian is given: CPU seconds of one thread, against the machine and against other programs.
//!
//! ```text
//! cargo bench --bench prune -- [--shape 4096x4096,4096x11008] [--repeat 3] [--python PYTHON [--wanda-repo DIR]
//!     [--sparsegpt-repo DIR]]
//! ```
//!
//! The limit of SparseGPT is the core's multiply-add rate on `n³/3 + R n²` of them, that of 2:4 without data the memory:
//! a copy of the matrix in the same run. Peers (`benches/peers/prune_layer.py`) read the same file; runs alternate, and the
//! median of the paired ratios is what counts. Before times, answers: at least 99.9 % of the masks must be the peer's, and
//! the error at most 1.001 times its. Ours stands for the whole method: checks, result and its copy for the file.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::linear::{generate, load, save};
use common::{flag, median, option, timed};
use scruple_compress::kernel::gemm::quadratic_form;
use scruple_compress::mask;
use scruple_compress::methods::{self, GroupStats, Weight, sparsegpt::SparseGpt};
use serde_json::{Value, json};

/// Masks that must be equal, and the factor our error may be worse by.
const MIN_EQUAL_MASKS: f64 = 0.999;
const MAX_ERROR_RATIO: f64 = 1.001;

fn main() {
    if flag("--test") || flag("--list") {
        return; // run as a test harness: nothing to do
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(run);
}

/// One linear, and what is known of its inputs.
struct Problem {
    rows: usize,
    n: usize,
    weight: Vec<f32>,
    hessian: Vec<f32>,
}

impl Problem {
    /// `tr(Δ H Δᵀ)`.
    fn error(&self, pruned: &[f32]) -> f64 {
        let delta: Vec<f32> = pruned.iter().zip(&self.weight).map(|(p, w)| p - w).collect();
        quadratic_form(&delta, &self.hessian, self.n)
    }

    /// The pruned weight and the CPU seconds it took.
    fn prune(&self, method: &str, amount: &str) -> (Vec<f32>, f64) {
        let key = if amount.contains(':') { "pattern" } else { "sparsity" };
        let value = if key == "pattern" { format!("\"{amount}\"") } else { amount.to_owned() };
        let parameters = format!("{key} = {value}").parse().expect("parameters");
        let mut values = self.weight.clone();
        if method == "sparsegpt" {
            let method: SparseGpt = toml::Table::try_into(parameters).expect("parameters of SparseGPT");
            // As in the peers: the factorisation and the solution, without the energy of the outputs that the report needs.
            let (_, seconds) = timed(|| {
                let prepared = method.prepare(&self.hessian, self.n).expect("a positive definite Hessian");
                method.solve(&mut values, &prepared, false).expect("finite weights")
            });
            return (values, seconds);
        }
        let energies = (0..self.n).map(|j| self.hessian[j * self.n + j]).collect();
        let stats = GroupStats { in_features: self.n, energies: Some(energies), tokens: 1, ..GroupStats::default() };
        let method = methods::build(method, parameters).expect("a method");
        let mut group = [Weight {
            name: "w",
            out_features: self.rows,
            in_features: self.n,
            values: &mut values,
            keep_zeros: false,
        }];
        let (_, seconds) = timed(|| method.compress(&mut group, &stats).expect("finite weights"));
        (values, seconds)
    }
}

/// The peers' program, waiting for requests.
struct Peers {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    names: Vec<String>,
}

impl Peers {
    fn start(python: &str, file: &Path) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/prune_layer.py");
        let mut command = Command::new(python);
        command.arg(script).arg(file).env("OMP_NUM_THREADS", "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        for name in ["--wanda-repo", "--sparsegpt-repo"] {
            if let Some(folder) = option(name) {
                command.args([name, &folder]);
            }
        }
        let mut child = command.spawn().expect("the peers start");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let first = lines.next().expect("the peers' names").expect("text");
        let names = serde_json::from_str(&first).expect("a JSON list");
        Self { child, lines, names }
    }

    fn run(&mut self, name: &str, out: &str) -> f64 {
        writeln!(self.child.stdin.as_mut().expect("a pipe"), "{name} {out}").expect("the peers listen");
        self.lines.next().expect("an answer").expect("text").parse().expect("seconds")
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait(); // it ends with its input
    }
}

fn run() {
    let repeat: usize = option("--repeat").map_or(3, |value| value.parse().expect("a number"));
    let shapes = option("--shape").unwrap_or_else(|| "4096x4096,4096x11008".to_owned());
    let mut results = Vec::new();
    for shape in shapes.split(',') {
        let (rows, n) = shape.split_once('x').expect("OUTxIN");
        let (rows, n): (usize, usize) = (rows.parse().expect("rows"), n.parse().expect("columns"));
        let (weight, hessian) = generate(rows, n);
        let problem = Problem { rows, n, weight, hessian };
        let rate = common::multiply_add_limit().unwrap_or(f64::NAN);
        let arithmetic = ((n as f64).powi(3) / 3.0 + rows as f64 * (n as f64).powi(2)) / rate / 1e9;
        let bytes = 4.0 * problem.weight.len() as f64;
        let mut copy = vec![1.0f32; problem.weight.len()];
        let memory = median((0..5).map(|_| timed(|| copy.copy_from_slice(&problem.weight)).1).collect());
        println!(
            "{rows} × {n}: one thread, {rate:.0} GFLOP/s of multiply-adds, a copy at {:.1} GB/s",
            bytes / memory / 1e9
        );
        // The bare choice of 2:4, in place.
        let two_of_four = "2:4".parse().expect("a pattern");
        let bare = median(
            (0..5)
                .map(|_| {
                    copy.copy_from_slice(&problem.weight);
                    timed(|| mask::clear_groups(&mut copy, n, None, two_of_four)).1
                })
                .collect(),
        );
        drop(copy);
        println!("  2:4 in place: {bare:.4} s, {:.1} GB/s of weights", bytes / bare / 1e9);
        results.push(json!({
            "shape": [rows, n], "case": "2:4 in place", "cpu_seconds": bare, "gb_per_s": bytes / bare / 1e9,
            "copy_gb_per_s": bytes / memory / 1e9,
        }));

        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut peers = option("--python").map(|python| {
            let file = folder.path().join("linear.safetensors");
            let path = file.display().to_string();
            save(&path, &[("weight", [rows, n], &problem.weight), ("hessian", [n, n], &problem.hessian)]);
            Peers::start(&python, &file)
        });
        for method in ["magnitude", "wanda", "sparsegpt"] {
            for amount in ["0.5", "2:4"] {
                let case = format!("{method}/{amount}");
                let limit = if method == "sparsegpt" { arithmetic } else { memory };
                let (pruned, _) = problem.prune(method, amount); // brings everything in
                let error = problem.error(&pruned);
                let names: Vec<String> =
                    peers.iter().flat_map(|peers| &peers.names).filter(|name| name.ends_with(&case)).cloned().collect();
                let mut answers = Vec::new();
                for name in &names {
                    let Some(peers) = &mut peers else { continue };
                    let out = folder.path().join("pruned.safetensors").display().to_string();
                    peers.run(name, &out);
                    answers.push(compare(&problem, name, &pruned, error, &load_weight(&out)));
                }
                drop(pruned);
                let (mut ours, mut theirs) = (Vec::new(), vec![Vec::new(); names.len()]);
                for _ in 0..repeat {
                    ours.push(problem.prune(method, amount).1);
                    for (name, theirs) in names.iter().zip(&mut theirs) {
                        theirs.extend(peers.as_mut().map(|peers| peers.run(name, "-")));
                    }
                }
                let seconds = median(ours.clone());
                println!("  {case}: {seconds:.4} s, {:.1} times the limit of {limit:.4} s", seconds / limit);
                let mut of_peers = Vec::new();
                for ((name, theirs), answer) in names.iter().zip(theirs).zip(answers) {
                    let ratio = median(theirs.iter().zip(&ours).map(|(theirs, ours)| theirs / ours).collect());
                    let theirs = median(theirs);
                    println!("    {name}: {theirs:.3} s, {ratio:.1} times ours; {answer}");
                    of_peers
                        .push(json!({ "peer": name, "cpu_seconds": theirs, "over_ours": ratio, "answers": answer }));
                }
                results.push(json!({
                    "shape": [rows, n], "case": case, "cpu_seconds": seconds, "limit_cpu_seconds": limit, "error": error,
                    "peers": of_peers,
                }));
            }
        }
    }
    common::record("prune", json!(results));
}

fn load_weight(path: &str) -> Vec<f32> {
    let (weight, ..) = load(path, false);
    weight
}

/// How far a peer's answer is from ours; both must be the same but for what is known.
fn compare(problem: &Problem, name: &str, ours: &[f32], ours_error: f64, theirs: &[f32]) -> Value {
    assert_eq!(ours.len(), theirs.len());
    let equal =
        ours.iter().zip(theirs).filter(|(a, b)| (**a == 0.0) == (**b == 0.0)).count() as f64 / ours.len() as f64;
    let zeros = |values: &[f32]| values.iter().filter(|value| **value == 0.0).count();
    let ratio = ours_error / problem.error(theirs);
    assert!(equal >= MIN_EQUAL_MASKS, "{name}: {equal} of the masks are equal");
    assert!(ratio <= MAX_ERROR_RATIO, "{name}: our error is {ratio} of its");
    json!({ "equal_masks": equal, "error_of_ours_over_its": ratio, "zeros": zeros(ours), "its_zeros": zeros(theirs) })
}
