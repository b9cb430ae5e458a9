//! Our masks against those of the papers' own code on a fixed linear: `fixtures/interop/make_prune_goldens.py` made the
//! numbers, and says how.

use serde_json::Value;

use super::{GroupStats, Weight, build};
use crate::kernel::test_values::uniform;

const ROWS: usize = 48;
const N: usize = 256;
const TOKENS: usize = 256;

/// Masks that must be equal, and the factor our error may be worse by.
const MIN_EQUAL_MASKS: f64 = 0.999;
const MAX_ERROR_RATIO: f64 = 1.001;

/// The linear of the script: a weight and the Hessian of correlated inputs, whose sums are exact in f32.
fn problem() -> (Vec<f32>, Vec<f32>) {
    let steps = |count, seed| uniform(count, seed).into_iter().map(|x| (4.0 * x).round_ties_even());
    let (own, shared): (Vec<f32>, Vec<f32>) = (steps(TOKENS * N, 2).collect(), steps(TOKENS * 16, 3).collect());
    let x = |t: usize, j: usize| own[t * N + j] + shared[t * 16 + j % 16] * (1 + j % 3) as f32;
    let entry = |i: usize| (0..TOKENS).map(|t| x(t, i / N) * x(t, i % N)).sum::<f32>() * (2.0 / TOKENS as f32);
    (uniform(ROWS * N, 1), (0..N * N).map(entry).collect())
}

/// `tr(Δ H Δᵀ)` in f64.
fn lost(weight: &[f32], pruned: &[f32], hessian: &[f32]) -> f64 {
    let delta: Vec<f64> = weight.iter().zip(pruned).map(|(w, p)| f64::from(*p) - f64::from(*w)).collect();
    let form = |row: &[f64]| -> f64 {
        let product = |i: usize| hessian[i * N..][..N].iter().zip(row).map(|(h, d)| f64::from(*h) * d).sum::<f64>();
        (0..N).map(|i| row[i] * product(i)).sum()
    };
    delta.chunks(N).map(form).sum()
}

#[test]
fn masks_are_those_of_the_papers_code_but_for_the_one_weight_too_many_that_it_prunes() {
    let goldens: Value = serde_json::from_str(include_str!("../../../fixtures/interop/prune_goldens.json")).unwrap();
    let (weight, hessian) = problem();
    let sum = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>();
    assert!((sum(&weight) - goldens["sums"]["weight"].as_f64().unwrap()).abs() < 1e-6, "another weight");
    assert!((sum(&hessian) - goldens["sums"]["hessian"].as_f64().unwrap()).abs() < 1e-2, "another Hessian");
    let energies = (0..N).map(|j| hessian[j * N + j]).collect();
    let stats = GroupStats {
        in_features: N,
        hessian: Some(hessian.clone()),
        energies: Some(energies),
        tokens: TOKENS,
        ..GroupStats::default()
    };
    let cases = goldens["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 11);
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let [peer, method, amount] = name.split('/').collect::<Vec<_>>()[..] else { panic!("{name}") };
        let parameters = match amount.contains(':') {
            true => format!("pattern = \"{amount}\""),
            false => format!("sparsity = {amount}"),
        };
        let mut ours = weight.clone();
        let mut group = [Weight { name, out_features: ROWS, in_features: N, values: &mut ours, keep_zeros: false }];
        build(method, parameters.parse().unwrap()).unwrap().compress(&mut group, &stats).unwrap();

        let hex = case["mask"].as_str().unwrap();
        let bytes: Vec<u8> = (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..][..2], 16).unwrap()).collect();
        let gone = |i: usize| bytes[i / 8] >> (i % 8) & 1 == 1;
        // The papers' threshold takes one weight too many of every unit it looks at: the matrix, or a block of 128 columns.
        let too_many = match (peer, method, amount) {
            ("locuslab", "magnitude", "0.5") => 1,
            (_, "sparsegpt", "0.5") => N / 128,
            _ => 0,
        };
        let zeros = ours.iter().filter(|w| **w == 0.0).count();
        assert_eq!(zeros, ROWS * N / 2, "{name}");
        assert_eq!(case["gone"].as_u64().unwrap() as usize, zeros + too_many, "{name}");
        let differ = (0..ROWS * N).filter(|&i| gone(i) != (ours[i] == 0.0)).count();
        assert!(1.0 - differ as f64 / (ROWS * N) as f64 >= MIN_EQUAL_MASKS, "{name}: {differ} masks differ");
        if method != "sparsegpt" {
            // Without updates the masks are the same but for those.
            assert_eq!(differ, too_many, "{name}");
        }
        let ratio = lost(&weight, &ours, &hessian) / case["error"].as_f64().unwrap();
        assert!(ratio <= MAX_ERROR_RATIO && ratio > 0.99, "{name}: {ratio}");
    }
}
