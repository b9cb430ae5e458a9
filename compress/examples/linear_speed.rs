//! Speed of a linear by storage format, next to what the memory allows: `cargo run --release -p scruple-compress
//! --example linear_speed`. `RAYON_NUM_THREADS` sets the threads. Every answer is checked before it is timed.
//!
//! Decode (one token) is bound by reading the weight: the best of many runs, in GB/s of stored weight and relative to
//! bf16. Prefill (512 tokens) is bound by arithmetic: GFLOP at 2 · tokens · in · out for each second a core was busy with
//! it, so that other programs on the machine hardly matter. The limit is the best sum over 32 MiB pieces of 2 GiB.
#![allow(clippy::print_stdout)] // its output is what it is for

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use rayon::prelude::*;
use scruple_compress::{
    grid::{Quantised, ScaleDtype},
    kernel::{
        dense::{self, DenseMatrix, Element},
        packed::PackedMatrix,
    },
};

/// Largest accepted difference to a product in f64, relative to Σ|x·w|: sums of f32 in another order.
const MAX_RELATIVE_DIFFERENCE: f64 = 1e-5;

/// `product(x, tokens, y)`.
type Product<'a> = &'a dyn Fn(&[f32], usize, &mut [f32]);

fn main() {
    let begun = Instant::now();
    println!("threads {}", rayon::current_num_threads());
    println!("memory  {:.1} GB/s read", memory_limit());
    println!("{:>12} {:>6} {:>9} {:>9} {:>9} {:>13}", "out × in", "format", "µs", "GB/s", "× bf16", "GFLOP/s·core");
    for (out_features, in_features) in [(576, 1536), (2048, 2048), (4096, 4096), (11008, 4096)] {
        measure(begun, out_features, in_features);
    }
}

/// GB/s of summing pieces that lie in no cache.
fn memory_limit() -> f64 {
    const PIECE: usize = 1 << 23;
    let values = vec![1.0f32; 1 << 29];
    let pieces = values.chunks_exact(PIECE).cycle().take(256);
    let mut shortest = f64::INFINITY;
    for piece in pieces {
        let start = Instant::now();
        let sum: f32 = piece.par_chunks(1 << 18).map(sum).sum();
        shortest = shortest.min(start.elapsed().as_secs_f64());
        assert_eq!(sum, PIECE as f32);
    }
    (4 * PIECE) as f64 / shortest / 1e9
}

fn sum(values: &[f32]) -> f32 {
    let mut sums = [0.0f32; 64];
    for values in values.as_chunks::<64>().0 {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    sums.iter().sum()
}

/// Seconds all threads of this program have been running, or wall seconds times threads where Linux does not say.
fn busy_seconds(begun: Instant) -> f64 {
    let nanoseconds = |path: std::path::PathBuf| -> Option<f64> {
        std::fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let busy: f64 = tasks.filter_map(|task| nanoseconds(task.path())).sum();
    match busy {
        0.0 => begun.elapsed().as_secs_f64() * rayon::current_num_threads() as f64,
        busy => busy / 1e9,
    }
}

/// Busy seconds of one run, on average over enough of them.
fn busy(begun: Instant, mut job: impl FnMut()) -> f64 {
    let (start, mut runs) = (busy_seconds(begun), 0);
    loop {
        job();
        runs += 1;
        let seconds = busy_seconds(begun) - start;
        if seconds > 0.4 && runs >= 2 {
            return seconds / f64::from(runs);
        }
    }
}

/// The shortest of several runs, in seconds.
fn best(mut job: impl FnMut()) -> f64 {
    let (mut shortest, begun, mut runs) = (f64::INFINITY, Instant::now(), 0);
    while runs < 5 || (begun.elapsed() < Duration::from_millis(400) && runs < 2000) {
        let start = Instant::now();
        job();
        shortest = shortest.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    shortest
}

/// Numbers in −1..1, the same every run.
fn numbers(n: usize, seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed | 1;
    (0..n).map(move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

fn check(name: &str, weight: &[f32], x: &[f32], tokens: usize, y: &[f32], out_features: usize) {
    let in_features = x.len() / tokens;
    for token in [0, tokens - 1] {
        for row in (0..out_features).step_by(97) {
            let pairs = || x[token * in_features..].iter().zip(&weight[row * in_features..][..in_features]);
            let exact: f64 = pairs().map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let size: f64 = pairs().map(|(x, w)| (f64::from(*x) * f64::from(*w)).abs()).sum();
            let found = f64::from(y[token * out_features + row]);
            assert!(
                (found - exact).abs() <= MAX_RELATIVE_DIFFERENCE * size,
                "{name}: token {token}, output {row}: found {found}, expected {exact}"
            );
        }
    }
}

fn measure(begun: Instant, out_features: usize, in_features: usize) {
    const TOKENS: usize = 512;
    let elements = out_features * in_features;
    let shape = format!("{out_features}×{in_features}");
    let x: Vec<f32> = numbers(TOKENS * in_features, 1).collect();
    let bf16: Vec<u8> = numbers(elements, 2).flat_map(|w| half::bf16::from_f32(w).to_le_bytes()).collect();
    let dense = DenseMatrix { element: Element::Bf16, bytes: &bf16, out_features, in_features };
    let mut weight = vec![0.0; elements];
    dense::widen(Element::Bf16, &bf16, &mut weight);
    let mut bf16_seconds = 0.0;
    let mut line = |name: &str, weight: &[f32], bytes: usize, product: Product<'_>| {
        let mut y = vec![0.0; TOKENS * out_features];
        product(&x[..in_features], 1, &mut y[..out_features]);
        check(name, weight, &x[..in_features], 1, &y[..out_features], out_features);
        let decode = best(|| product(black_box(&x[..in_features]), 1, &mut y[..out_features]));
        product(&x, TOKENS, &mut y);
        check(name, weight, &x, TOKENS, &y, out_features);
        let prefill = busy(begun, || product(black_box(&x), TOKENS, &mut y));
        if name == "bf16" {
            bf16_seconds = decode;
        }
        println!(
            "{shape:>12} {name:>6} {:>9.1} {:>9.1} {:>9.2} {:>13.1}",
            decode * 1e6,
            bytes as f64 / decode / 1e9,
            bf16_seconds / decode,
            2.0 * (TOKENS * elements) as f64 / prefill / 1e9
        );
    };
    line("bf16", &weight, bf16.len(), &|x, tokens, y| dense::product(dense, x, tokens, y));
    for bits in [2u32, 3, 4, 8] {
        let group_size = if in_features.is_multiple_of(128) { 128 } else { 64 };
        let groups = elements / group_size;
        let q = Quantised {
            out_features,
            in_features,
            bits,
            group_size,
            symmetric: true,
            scale_dtype: ScaleDtype::F16,
            codes: numbers(elements, 3).map(|x| ((x + 1.0) / 2.0 * (1 << bits) as f32) as u8).collect(),
            scales: numbers(groups, 4).map(|x| ScaleDtype::F16.round(0.01 + 0.001 * x)).collect(),
            zeros: vec![1 << (bits - 1); groups],
            g_idx: None,
        };
        let packed = PackedMatrix::new(&q);
        let name = format!("int{bits}");
        line(&name, &q.dequantize(), packed.bytes(), &|x, tokens, y| packed.product(x, tokens, y));
    }
}
