//! The matrix products behind a forward pass and a Hessian: GFLOP/s of one thread, f32 and bf16 weights.
//!
//! ```text
//! cargo bench --bench matmul -- [--repeat 5] [--only 4096]
//! ```
//!
//! Shapes are those of SmolLM2-135M and of a 7-billion-parameter Llama for 512 tokens; one token reads the weight once, so
//! that its figure is GB/s of weight. The limit is the fused multiply-adds of one core in registers.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use common::{Random, flag, median, option, timed};
use half::bf16;
use scruple_compress::kernel::gemm::{matmul_nt, matmul_nt_bf16, syrk_accumulate};
use serde_json::json;

fn main() {
    if flag("--test") || flag("--list") {
        return; // run as a test harness: nothing to do
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(run);
}

fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..n).map(|_| random.normal()).collect()
}

/// Element (row, column) of `x wᵀ`, in f64.
fn element(x: &[f32], w: &[f32], row: usize, column: usize, k: usize) -> f64 {
    (0..k).map(|l| f64::from(x[row * k + l]) * f64::from(w[column * k + l])).sum()
}

fn run() {
    let repeat: usize = option("--repeat").map_or(5, |value| value.parse().expect("a number"));
    let limit = common::multiply_add_limit().unwrap_or(f64::NAN);
    println!("one thread, at most {limit:.0} GFLOP/s of multiply-adds in registers");
    let mut results = vec![json!({ "limit_gflop_per_s": limit })];
    let only: usize = option("--only").map_or(0, |value| value.parse().expect("a number of outputs"));
    for (t, n, k) in [(512, 576, 576), (512, 1536, 576), (512, 576, 1536), (512, 4096, 4096), (512, 11008, 4096)] {
        if only != 0 && n != only {
            continue;
        }
        let (x, w) = (values(t * k, 1), values(n * k, 2));
        let narrow: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
        let wide: Vec<f32> = narrow.iter().map(|w| w.to_f32()).collect();
        let (mut y, mut h) = (vec![0.0; t * n], vec![0.0; k * k]);
        // Before the figures count: some elements against f64.
        for (bf, w) in [(false, &w), (true, &wide)] {
            if bf {
                matmul_nt_bf16(&x, &narrow, &mut y, t, n, k)
            } else {
                matmul_nt(&x, w, &mut y, t, n, k)
            }
            for (row, column) in [(0, 0), (t / 3, n / 2), (t - 1, n - 1)] {
                let error = f64::from(y[row * n + column]) - element(&x, w, row, column, k);
                assert!(error.abs() < 1e-5 * k as f64, "element ({row}, {column}) is off by {error}");
            }
        }
        // Enough work that a clock tick does not show.
        let times = (4_000_000_000 / (2 * t * n * k)).max(1);
        let rate = |flop: usize, run: &mut dyn FnMut()| {
            run();
            let seconds = (0..repeat).map(|_| timed(|| (0..times).for_each(|_| run())).1).collect();
            (flop * times) as f64 / median(seconds) / 1e9
        };
        let full = rate(2 * t * n * k, &mut || matmul_nt(&x, &w, &mut y, t, n, k));
        let half = rate(2 * t * n * k, &mut || matmul_nt_bf16(&x, &narrow, &mut y, t, n, k));
        let gram = rate(t * k * (k + 1), &mut || syrk_accumulate(&x, &mut h, t, k, 1e-3));
        let one = rate(2 * n * k, &mut || matmul_nt_bf16(&x[..k], &narrow, &mut y[..n], 1, n, k));
        println!(
            "{t} × {k} by {n}: f32 {full:.0}, bf16 weight {half:.0}, XᵀX {gram:.0} GFLOP/s; one token {one:.1} GB/s of bf16"
        );
        results.push(json!({ "t": t, "n": n, "k": k, "f32_gflop_per_s": full, "bf16_gflop_per_s": half,
            "syrk_gflop_per_s": gram, "one_token_gb_per_s": one }));
    }
    common::record("matmul", json!(results));
}
