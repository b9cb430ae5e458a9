//! AWQ's search for the scales of one input: CPU seconds of one thread, and the error it reaches.
//!
//! ```text
//! cargo bench --bench awq_search -- [--shape 3072x576,576x1536] [--repeat 3] [--write FOLDER]
//! ```
//!
//! `--write` saves weights and inputs as FOLDER/OUTxIN.safetensors for `benches/peers/awq_llmcompressor.py`. The shapes are
//! those of SmolLM2-135M's gate and up together and of its down; the settings are the peer's: asymmetric 4 bit, groups of
//! 64, scales by inputs and weights, 512 sampled inputs.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use common::{Random, flag, median, option, timed};
use safetensors::tensor::{Dtype, TensorView};
use scruple_compress::grid::ScaleDtype;
use scruple_compress::kernel::gemm::matmul_nt;
use scruple_compress::methods::awq::{Awq, InputScales};
use scruple_compress::methods::{GroupStats, SAMPLES, Scaling};
use serde_json::json;

/// A Gaussian weight, and correlated inputs whose columns have log-normal sizes.
fn generate(rows: usize, n: usize) -> (Vec<f32>, Vec<f32>) {
    let mut random = Random(1);
    let weight = (0..rows * n).map(|_| 0.02 * random.normal()).collect();
    let rank = (n / 16).max(1);
    let mix: Vec<f32> = (0..n * rank).map(|_| random.normal() / (rank as f32).sqrt()).collect(); // (n, rank)
    let size: Vec<f32> = (0..n).map(|_| random.normal().exp()).collect();
    let factors: Vec<f32> = (0..SAMPLES * rank).map(|_| random.normal()).collect();
    let mut x = vec![0.0; SAMPLES * n];
    matmul_nt(&factors, &mix, &mut x, SAMPLES, n, rank);
    for row in x.chunks_exact_mut(n) {
        row.iter_mut().zip(&size).for_each(|(x, size)| *x = (*x + 0.5 * random.normal()) * size);
    }
    (weight, x)
}

fn save(path: &std::path::Path, tensors: &[(&str, [usize; 2], &[f32])]) {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let data: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| bytes(values)).collect();
    let views = tensors.iter().zip(&data).map(|((name, shape, _), data)| {
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), data).expect("the shape fits the values"))
    });
    safetensors::serialize_to_file(views, None, path).expect("the file can be written");
}

fn main() {
    if flag("--test") || flag("--list") {
        return; // run as a test harness: nothing to do
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(run);
}

fn run() {
    let repeat: usize = option("--repeat").map_or(3, |value| value.parse().expect("a number"));
    let shapes = option("--shape").unwrap_or_else(|| "3072x576,576x1536".to_owned());
    let mut results = Vec::new();
    for shape in shapes.split(',') {
        let (rows, n) = shape.split_once('x').expect("OUTxIN");
        let (rows, n): (usize, usize) = (rows.parse().expect("rows"), n.parse().expect("columns"));
        let (weight, inputs) = generate(rows, n);
        if let Some(folder) = option("--write") {
            let file = std::path::Path::new(&folder).join(format!("{shape}.safetensors"));
            save(&file, &[("weight", [rows, n], &weight), ("inputs", [SAMPLES, n], &inputs)]);
        }
        let mut magnitudes = vec![0.0; n];
        for x in inputs.chunks_exact(n) {
            magnitudes.iter_mut().zip(x).for_each(|(sum, x)| *sum += x.abs() / SAMPLES as f32);
        }
        let stats = GroupStats {
            in_features: n,
            magnitudes: Some(magnitudes),
            samples: Some(inputs),
            tokens: SAMPLES,
            ..GroupStats::default()
        };
        let classes: Vec<u32> = (0..n as u32).collect();
        let method = Awq { group_size: 64, scale_dtype: ScaleDtype::F32, scales: InputScales::Duo, ..Awq::default() };
        let (mut seconds, mut found) = (Vec::new(), None);
        for _ in 0..repeat {
            let (scales, took) =
                timed(|| method.search(&[&weight], &stats, &classes, &|_| {}).expect("finite weights"));
            seconds.push(took);
            found = Some(scales);
        }
        let found = found.expect("at least one run");
        let (error, unscaled) = (found.error.expect("inputs"), found.unscaled.expect("inputs"));
        // Before the time counts: the search must not end worse than it began.
        assert!(error <= unscaled, "{error} with scales, {unscaled} without");
        let seconds = median(seconds);
        println!(
            "{rows} × {n}: {seconds:.3} s, exponent {}, error {error:.6} of the outputs' energy, {:.4} of rounding's",
            found.ratio,
            error / unscaled
        );
        results.push(json!({
            "shape": [rows, n], "cpu_seconds": seconds, "exponent": found.ratio, "duo": found.duo, "error": error,
            "error_over_rtn": error / unscaled,
        }));
    }
    common::record("awq_search", json!(results));
}
