//! Speed of a linear by storage format, next to what the memory allows: `cargo run --release -p scruple-compress
//! --example linear_speed`. `RAYON_NUM_THREADS` sets the threads. Every answer is checked before it is timed.
//!
//! Decode (one token) is bound by reading the weight: GB/s of stored weight, and tokens/s relative to bf16. Prefill (512
//! tokens) is bound by arithmetic: GFLOP/s at 2 · tokens · in · out. The limit is a sum over 1 GiB read by all threads.
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

fn main() {
    println!("threads {}", rayon::current_num_threads());
    println!("memory  {:.1} GB/s read", memory_limit());
    println!("{:>12} {:>6} {:>9} {:>9} {:>9} {:>9}", "out × in", "format", "µs", "GB/s", "× bf16", "GFLOP/s");
    for (out_features, in_features) in [(576, 1536), (1536, 576), (2048, 2048), (4096, 4096), (11008, 4096)] {
        measure(out_features, in_features);
    }
}

/// GB/s of summing 1 GiB.
fn memory_limit() -> f64 {
    let words = vec![1u64; 1 << 27];
    let seconds = best(|| {
        let sum: u64 = words.par_chunks(1 << 16).map(|words| words.iter().sum::<u64>()).sum();
        assert_eq!(sum, 1 << 27);
    });
    (8u64 << 27) as f64 / seconds / 1e9
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

fn measure(out_features: usize, in_features: usize) {
    const TOKENS: usize = 512;
    let elements = out_features * in_features;
    let shape = format!("{out_features}×{in_features}");
    let x: Vec<f32> = numbers(TOKENS * in_features, 1).collect();
    let bf16: Vec<u8> = numbers(elements, 2).flat_map(|w| half::bf16::from_f32(w).to_le_bytes()).collect();
    let dense = DenseMatrix { element: Element::Bf16, bytes: &bf16, out_features, in_features };
    let mut weight = vec![0.0; elements];
    dense::widen(Element::Bf16, &bf16, &mut weight);
    let mut bf16_seconds = 0.0;
    let mut line = |name: &str, weight: &[f32], bytes: usize, product: &dyn Fn(&[f32], usize, &mut [f32])| {
        let mut y = vec![0.0; TOKENS * out_features];
        product(&x[..in_features], 1, &mut y[..out_features]);
        check(name, weight, &x[..in_features], 1, &y[..out_features], out_features);
        let decode = best(|| product(black_box(&x[..in_features]), 1, &mut y[..out_features]));
        product(&x, TOKENS, &mut y);
        check(name, weight, &x, TOKENS, &y, out_features);
        let prefill = best(|| product(black_box(&x), TOKENS, &mut y));
        if name == "bf16" {
            bf16_seconds = decode;
        }
        println!(
            "{shape:>12} {name:>6} {:>9.1} {:>9.1} {:>9.2} {:>9.1}",
            decode * 1e6,
            bytes as f64 / decode / 1e9,
            bf16_seconds / decode,
            2.0 * (TOKENS * elements) as f64 / prefill / 1e9
        );
    };
    line("bf16", &weight, bf16.len(), &|x, tokens, y| dense::product(dense, x, tokens, y));
    for bits in [2u32, 3, 4, 8] {
        let group_size = if in_features % 128 == 0 { 128 } else { 64 };
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
