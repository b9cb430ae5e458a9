//! A shared matrix of 4096 × 4096 against the dense one and against independent hashes: product with one row, with 128
//! rows, and the gradient of the pool.
//!
//! `RAYON_NUM_THREADS=1 cargo bench --bench share_kernels`. Dense and shared runs alternate, and the best of each counts.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::hint::black_box;

use common::{Random, record, timed};
use scruple_compress::{
    kernel::gemm::matmul_nt,
    sharing::{
        SharedMatrix, Sharing,
        baselines::{Baseline, Matrix, Method},
        modules::Size,
        pool::{accumulate, recover},
    },
};
use serde_json::{Value, json};

const SIDE: usize = 4096;
const BATCH: usize = 128;
const SCALE: f32 = 0.02;

/// Products with one row that follow each other, as of the layers of a net: one pool serves them all and stays in the
/// cache, a dense matrix is larger than it and is read from memory each time.
const LAYERS: usize = 4;

/// The best CPU seconds of each of two runs, taken in turn.
fn race(rounds: usize, mut a: impl FnMut(), mut b: impl FnMut()) -> (f64, f64) {
    let mut best = (f64::MAX, f64::MAX);
    for _ in 0..rounds {
        best.0 = best.0.min(timed(&mut a).1);
        best.1 = best.1.min(timed(&mut b).1);
    }
    best
}

fn close(found: &[f32], expected: &[f32], what: &str) {
    let most = expected.iter().fold(1e-6f32, |most, value| most.max(value.abs()));
    let far = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    assert!(far < 1e-4 * most, "{what}: {far} off, the largest value is {most}");
}

fn at_rate(rate: usize, x: &[f32], dense: &mut [f32]) -> Value {
    let sharing = Sharing::new(vec![("w".into(), vec![SIDE, SIDE], SCALE)], Size::Rate(rate as f64), 16, 1)
        .expect("a matrix can share");
    let (fold, matrix) = (&sharing.fold, SharedMatrix::new(&sharing, &sharing.modules[0]));
    let mut random = Random(rate as u64);
    let pool: Vec<f32> = (0..fold.slots()).map(|_| random.normal()).collect();
    recover(fold, &pool, SCALE, 0, dense);
    let dense = &*dense;

    // Both give the same before either is timed.
    let (mut y, mut expected) = (vec![0.0; BATCH * SIDE], vec![0.0; BATCH * SIDE]);
    for t in [1, BATCH] {
        matrix.forward(&pool, &x[..t * SIDE], &mut y[..t * SIDE], t);
        matmul_nt(&x[..t * SIDE], dense, &mut expected[..t * SIDE], t, SIDE, SIDE);
        close(&y[..t * SIDE], &expected[..t * SIDE], "a product");
    }
    let (gemv_dense, gemv) = race(
        15,
        || (0..LAYERS).for_each(|_| matmul_nt(&x[..SIDE], dense, black_box(&mut expected[..SIDE]), 1, SIDE, SIDE)),
        || (0..LAYERS).for_each(|_| matrix.forward(&pool, &x[..SIDE], black_box(&mut y[..SIDE]), 1)),
    );
    let (gemv_dense, gemv) = (gemv_dense / LAYERS as f64, gemv / LAYERS as f64);
    let (gemm_dense, gemm) = race(
        5,
        || matmul_nt(x, dense, black_box(&mut expected), BATCH, SIDE, SIDE),
        || matrix.forward(&pool, x, black_box(&mut y), BATCH),
    );

    // Independent hashes: every weight looks up its slot.
    let hashed = Baseline::new(Method::HashedNet, fold.slots(), 1).expect("any pool");
    let whole = Matrix { rows: SIDE, columns: SIDE, offset: 0 };
    let (gemv_hashed, scatter) = {
        let product = || {
            for (row, y) in y[..SIDE].iter_mut().enumerate() {
                let sum = |column: usize| x[column] * pool[hashed.slot(whole, row, column)];
                *y = SCALE * (0..SIDE).map(sum).sum::<f32>();
            }
        };
        let mut sums = vec![0.0f32; fold.slots()];
        let scatter = || {
            for row in 0..SIDE {
                for (column, value) in dense[row * SIDE..][..SIDE].iter().enumerate() {
                    sums[hashed.slot(whole, row, column)] += SCALE * value;
                }
            }
            black_box(&sums);
        };
        race(5, product, scatter)
    };
    let mut sums = vec![0.0f32; fold.slots()];
    let mut scratch = vec![0.0f32; SIDE * SIDE];
    let (backward, recovery) = race(
        5,
        || accumulate(fold, dense, SCALE, 0, black_box(&mut sums)),
        || recover(fold, &pool, SCALE, 0, black_box(&mut scratch)),
    );
    let figures = json!({
        "rate": rate,
        "pool_bytes": 4 * fold.slots(),
        "gemv_dense_ms": 1e3 * gemv_dense, "gemv_shared_ms": 1e3 * gemv, "gemv_hashed_ms": 1e3 * gemv_hashed,
        "gemv_times_dense_speed": gemv_dense / gemv, "gemv_times_hashed_speed": gemv_hashed / gemv,
        "gemm_dense_ms": 1e3 * gemm_dense, "gemm_shared_ms": 1e3 * gemm, "gemm_times_dense_speed": gemm_dense / gemm,
        "backward_fold_ms": 1e3 * backward, "backward_hashed_ms": 1e3 * scatter,
        "backward_times_hashed_speed": scatter / backward,
        "recover_ms": 1e3 * recovery,
    });
    println!("{figures:#}");
    figures
}

fn main() {
    let mut random = Random(7);
    let x: Vec<f32> = (0..BATCH * SIDE).map(|_| random.normal()).collect();
    let mut dense = vec![0.0; SIDE * SIDE];
    // Within the pool of threads, so that waking one is not part of a product.
    let results: Vec<Value> =
        rayon::scope(|_| [4, 16, 64, 256].into_iter().map(|rate| at_rate(rate, &x, &mut dense)).collect());
    record(
        "share_kernels",
        json!({ "side": SIDE, "batch": BATCH, "threads": rayon::current_num_threads(), "rates": results }),
    );
}
