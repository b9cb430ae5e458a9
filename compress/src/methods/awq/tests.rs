//! Held to the definition in f64, to llm-awq and to llm-compressor.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::kernel::test_values::uniform;

/// Of a loss in f64 over that of the choice made in f32, at most: sums of f32 products are good to about 1e-5.
const SLACK: f64 = 1.0002;

/// Inputs (tokens, n) of unequal sizes, as `fixtures/interop/make_awq_goldens.py` makes them.
fn inputs(tokens: usize, n: usize, seed: u64) -> Vec<f32> {
    let size: Vec<f32> = uniform(n, seed + 1).iter().map(|u| (1.1 + u) * (1.1 + u)).map(|s| s * s).collect();
    uniform(tokens * n, seed).iter().enumerate().map(|(at, x)| x * size[at % n]).collect()
}

fn stats(x: Vec<f32>, n: usize) -> GroupStats {
    let tokens = x.len() / n;
    let mean = |j: usize| (x.iter().skip(j).step_by(n).map(|x| f64::from(x.abs())).sum::<f64>() / tokens as f64) as f32;
    let mut hessian = vec![0.0; n * n];
    syrk_accumulate(&x, &mut hessian, tokens, n, 2.0);
    symmetrize(&mut hessian, n);
    GroupStats {
        in_features: n,
        hessian: Some(hessian),
        magnitudes: Some((0..n).map(mean).collect()),
        samples: Some(x),
        tokens,
        ..GroupStats::default()
    }
}

fn classes(n: usize) -> Vec<u32> {
    (0..n as u32).collect()
}

fn compress(method: &Awq, name: &str, weight: &[f32], stats: &GroupStats) -> Quantised {
    let mut values = weight.to_vec();
    let (n, rows) = (stats.in_features, weight.len() / stats.in_features);
    let mut group = [Weight { name, out_features: rows, in_features: n, values: &mut values, keep_zeros: false }];
    let done = method.compress(&mut group, stats).unwrap().remove(0);
    done.weight.quantised().expect("codes").clone()
}

/// `Σ ‖x δᵀ‖²` in f64, one row at a time.
fn naive_energy(x: &[f32], delta: &[f64]) -> f64 {
    let n = delta.len();
    x.chunks_exact(n).map(|x| x.iter().zip(delta).map(|(x, d)| f64::from(*x) * d).sum::<f64>().powi(2)).sum()
}

/// The weight that a group's values become, by the definition. In f32, as it is defined: a range clipped on both sides
/// has its zero point half way between two codes, which no other arithmetic would round alike.
fn naive_group(values: &[f64], bits: u32) -> Vec<f64> {
    let values = values.iter().map(|v| *v as f32);
    let (lo, hi) = values.clone().fold((0.0f32, 0.0f32), |(lo, hi), v| (lo.min(v), hi.max(v)));
    let max = 2f32.powi(bits as i32) - 1.0;
    let scale = (hi - lo) / max;
    let zero = (-lo / scale).round_ties_even().clamp(0.0, max);
    let stored = |v: f32| (((v / scale).round_ties_even() + zero).clamp(0.0, max) - zero) * scale;
    values.map(|v| f64::from(stored(v))).collect()
}

fn naive_loss(method: &Awq, weights: &[&[f32]], x: &[f32], scales: &[f32]) -> f64 {
    let n = scales.len();
    let row_loss = |row: &[f32]| {
        let scaled: Vec<f64> = row.iter().zip(scales).map(|(w, s)| f64::from(w * s)).collect();
        let stored: Vec<f64> =
            scaled.chunks(method.group_size).flat_map(|values| naive_group(values, method.bits)).collect();
        let delta = stored.iter().zip(scales).zip(row).map(|((q, s), w)| q / f64::from(*s) - f64::from(*w));
        naive_energy(x, &delta.collect::<Vec<_>>())
    };
    weights.iter().flat_map(|weight| weight.chunks_exact(n)).map(row_loss).sum()
}

/// All candidates, by the formulas.
fn naive_candidates(method: &Awq, weights: &[&[f32]], stats: &GroupStats) -> Vec<Vec<f32>> {
    let n = stats.in_features;
    let sizes = stats.magnitudes.as_ref().unwrap();
    let rows: usize = weights.iter().map(|weight| weight.len() / n).sum();
    let share = |j: usize| {
        let group = j / method.group_size * method.group_size;
        let of = |row: &[f32]| {
            let largest = row[group..][..method.group_size].iter().fold(0.0f32, |a, w| a.max(w.abs()));
            f64::from(row[j].abs() / (largest + 1e-6))
        };
        weights.iter().flat_map(|weight| weight.chunks_exact(n)).map(of).sum::<f64>() / rows as f64
    };
    let shares: Vec<f64> = (0..n).map(share).collect();
    let mut all = vec![vec![1.0; n]];
    for step in 0..method.steps {
        let ratio = f64::from(step) / f64::from(method.steps);
        for duo in [false, true] {
            let scale = |j: usize| {
                let plain = f64::from(sizes[j]).powf(ratio);
                (if duo { plain / (shares[j].powf(1.0 - ratio) + 1e-4) } else { plain }).max(1e-4)
            };
            let scales: Vec<f64> = (0..n).map(scale).collect();
            let (lo, hi) = scales.iter().fold((f64::MAX, 0.0f64), |(lo, hi), s| (lo.min(*s), hi.max(*s)));
            all.push(scales.iter().map(|s| (s / (lo * hi).sqrt()) as f32).collect());
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn the_best_of_all_candidates_is_found(seed in 0u64..1000, bits in 3u32..5, tokens in 8usize..60) {
        let n = 32;
        let method = Awq { bits, group_size: 16, scale_dtype: ScaleDtype::F32, ..Awq::default() };
        let stats = stats(inputs(tokens, n, seed), n);
        let (a, b) = (uniform(24 * n, seed + 7), uniform(8 * n, seed + 8));
        let found = method.search(&[&a, &b], &stats, &classes(n), &|_| {}).unwrap();
        let loss = |scales: &[f32]| naive_loss(&method, &[&a, &b], stats.samples.as_ref().unwrap(), scales);
        let all = naive_candidates(&method, &[&a, &b], &stats);
        let least = all.iter().map(|scales| loss(scales)).fold(f64::INFINITY, f64::min);
        prop_assert!(loss(&found.scales) <= least * SLACK, "{} for {least}", loss(&found.scales));
        prop_assert!(loss(&found.scales) <= loss(&all[0]) * SLACK);
        prop_assert!(found.error <= found.unscaled);
    }

    #[test]
    fn the_best_bound_of_each_group_is_found(seed in 0u64..1000, tokens in 4usize..40, bits in 2u32..5) {
        let (n, g) = (48, 16);
        let method =
            Awq { bits, group_size: g, scale_dtype: ScaleDtype::F32, scales: InputScales::None, ..Awq::default() };
        let x = inputs(tokens, n, seed);
        // Cubed: a few weights far out, which clipping is for.
        let weight: Vec<f32> = uniform(6 * n, seed + 7).iter().map(|w| w * w * w).collect();
        let stored = compress(&method, "v_proj", &weight, &stats(x.clone(), n)).dequantize();
        for (row, stored) in weight.chunks(n).zip(stored.chunks(n)) {
            for first in (0..n).step_by(g) {
                let x: Vec<f32> = x.chunks(n).flat_map(|x| &x[first..first + g]).copied().collect();
                let values: Vec<f64> = row[first..first + g].iter().map(|w| f64::from(*w)).collect();
                let error = |stored: &[f64]| {
                    naive_energy(&x, &stored.iter().zip(&values).map(|(q, w)| q - w).collect::<Vec<_>>())
                };
                let largest = values.iter().fold(0.0f32, |a, w| a.max(w.abs() as f32));
                let tried = (0..10).map(|i| f64::from(largest * (1.0 - i as f32 / 20.0)));
                let clipped = tried.map(|b| values.iter().map(|w| w.clamp(-b, b)).collect::<Vec<_>>());
                let least = clipped.map(|v| error(&naive_group(&v, bits))).fold(f64::INFINITY, f64::min);
                let found = error(&stored[first..first + g].iter().map(|q| f64::from(*q)).collect::<Vec<_>>());
                prop_assert!(found <= least * SLACK + 1e-9, "{found} for {least}");
            }
        }
    }
}

fn golden() -> Value {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/interop/awq_goldens.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

/// A case of the goldens: the method, the inputs, and the weights of q, k and v.
fn case(golden: &Value, case: &Value, scales: InputScales) -> (Awq, GroupStats, Vec<Vec<f32>>) {
    let [tokens, n, rows] = ["tokens", "inputs", "rows"].map(|key| number(&golden[key]));
    let seed = number(&case["seed"]) as u64;
    let method = Awq {
        bits: number(&case["bits"]) as u32,
        group_size: number(&case["group_size"]),
        scale_dtype: ScaleDtype::F32,
        scales,
        ..Awq::default()
    };
    let weights = (0..3).map(|i| uniform(rows * n, seed + 2 + i)).collect();
    (method, stats(inputs(tokens, n, seed), n), weights)
}

#[test]
fn exponents_codes_and_errors_are_those_of_llm_awq() {
    let golden = golden();
    for theirs in golden["llm-awq"].as_array().unwrap() {
        let (method, mut stats, mut weights) = case(&golden, theirs, InputScales::Plain);
        let n = stats.in_features;
        let views: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
        let found = method.search(&views, &stats, &classes(n), &|_| {}).unwrap();
        assert_eq!(Some(found.ratio), theirs["ratio"].as_f64());
        let x = stats.samples.clone().unwrap();
        let original = weights.clone();
        let scaled = |values: &mut [f32], by: fn(&mut f32, f32)| {
            values.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(&found.scales).for_each(|(v, s)| by(v, *s)));
        };
        scaled(stats.samples.as_mut().unwrap(), |x, s| *x /= s);
        for ((name, weight), original) in ["q_proj", "k_proj", "v_proj"].into_iter().zip(&mut weights).zip(&original) {
            scaled(weight, |w, s| *w *= s);
            let q = compress(&method, name, weight, &stats);
            let codes = theirs[name].as_str().unwrap().bytes().map(|c| (c as char).to_digit(16).unwrap() as u8);
            let same = q.codes.iter().zip(codes).filter(|(a, b)| **a == *b).count();
            assert!(same as f64 >= 0.999 * q.codes.len() as f64, "{name}: {same} of {}", q.codes.len());
            let error: f64 = q
                .dequantize()
                .chunks(n)
                .zip(original.chunks(n))
                .map(|(q, w)| {
                    let delta = q.iter().zip(&found.scales).zip(w).map(|((q, s), w)| f64::from(q / s) - f64::from(*w));
                    naive_energy(&x, &delta.collect::<Vec<_>>())
                })
                .sum();
            let theirs = theirs[format!("{name}_error")].as_f64().unwrap();
            assert!(error <= 1.001 * theirs, "{name}: {error} for {theirs}");
        }
    }
}

#[test]
fn exponents_and_losses_are_those_of_llm_compressor() {
    let golden = golden();
    for theirs in golden["llm-compressor"].as_array().unwrap() {
        let (method, stats, weights) = case(&golden, theirs, InputScales::Duo);
        let views: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
        let found = method.search(&views, &stats, &classes(stats.in_features), &|_| {}).unwrap();
        assert_eq!((Some(found.ratio), found.duo), (theirs["ratio"].as_f64(), true));
        let losses: Vec<f64> = theirs["losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
        let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
        let gain = found.error.unwrap() / found.unscaled.unwrap();
        assert!((gain / (least / losses[0]) - 1.0).abs() < 1e-3, "{gain} for {}", least / losses[0]);
    }
}

#[test]
fn without_scales_and_clipping_it_rounds_to_nearest() {
    let stats = stats(inputs(20, 64, 3), 64);
    let weight = uniform(16 * 64, 4);
    for symmetric in [false, true] {
        let method = Awq { group_size: 32, symmetric, clip: false, scales: InputScales::None, ..Awq::default() };
        assert!(!method.needs().any() && method.scaling().is_none());
        let expected = grid::round_to_nearest(&weight, 16, 64, &method.spec()).unwrap();
        assert_eq!(compress(&method, "up_proj", &weight, &stats), expected);
        let clipping = Awq { clip: true, ..method.clone() };
        assert_eq!(compress(&clipping, "a.k_proj", &weight, &stats), expected, "keys are not clipped");
        assert_ne!(compress(&clipping, "a.up_proj", &weight, &stats), expected);
    }
}

#[test]
fn what_makes_queries_or_keys_is_told_by_the_last_name() {
    for name in ["a.q_proj", "k_proj", "x.query_key_value", "h.0.attn.c_attn", "a.qkv_proj", "m.Wqkv"] {
        assert!(makes_scores(name), "{name}");
    }
    for name in ["a.v_proj", "block_sparse_moe.experts.0.w1", "mlp.up_proj", "q_former.dense"] {
        assert!(!makes_scores(name), "{name}");
    }
}

// The reference shifts such a group by a zero point that it then clamps to 0, and cuts its largest weights off.
#[test]
fn a_group_without_negatives_keeps_its_largest_weights() {
    let weight: Vec<f32> = uniform(32, 5).iter().map(|w| 1.5 + 0.5 * w).collect();
    let method = Awq { group_size: 32, clip: false, scales: InputScales::None, ..Awq::default() };
    let stored = compress(&method, "v_proj", &weight, &stats(inputs(8, 32, 1), 32)).dequantize();
    let worst = stored.iter().zip(&weight).map(|(q, w)| (q - w).abs()).fold(0.0, f32::max);
    assert!(worst <= 2.0 / 15.0 / 2.0 + 1e-3, "{worst}");
}

#[test]
fn columns_of_a_class_share_a_scale_and_silent_ones_take_the_smallest() {
    let n = 32;
    let mut x = inputs(40, n, 2);
    x.iter_mut().skip(3).step_by(n).for_each(|x| *x = 0.0);
    let method = Awq { group_size: 16, ..Awq::default() };
    let weight = uniform(16 * n, 9);
    let found = method.search(&[&weight], &stats(x.clone(), n), &classes(n), &|_| {}).unwrap();
    assert!(found.ratio > 0.0 || found.duo);
    assert_eq!(found.scales[3], found.scales.iter().copied().fold(f32::INFINITY, f32::min));
    let halves: Vec<u32> = (0..n as u32).map(|column| column % 16).collect();
    let found = method.search(&[&weight], &stats(x, n), &halves, &|_| {}).unwrap();
    assert_eq!(found.scales.len(), 16);
    let silent = method.search(&[&weight], &stats(vec![0.0; 4 * n], n), &classes(n), &|_| {}).unwrap();
    assert_eq!((silent.scales, silent.error), (vec![1.0; n], None));
    let unseen = GroupStats { samples: Some(Vec::new()), ..stats(inputs(4, n, 2), n) };
    assert_eq!(method.search(&[&weight], &unseen, &classes(n), &|_| {}).unwrap().scales, vec![1.0; n]);
}

#[test]
fn feedback_on_the_clipped_grid_loses_less() {
    let n = 64;
    let stats = stats(inputs(200, n, 6), n);
    let weight = uniform(32 * n, 7);
    let nearest = Awq { bits: 3, group_size: 32, ..Awq::default() };
    let feedback = Awq { rounding: Rounding::Gptq, ..nearest.clone() };
    let [a, b] = [&nearest, &feedback].map(|method| compress(method, "up_proj", &weight, &stats));
    assert_eq!((&a.scales, &a.zeros), (&b.scales, &b.zeros));
    let error = |q: &Quantised| stats.output_error(&weight, &q.dequantize()).unwrap();
    assert!(error(&b) < 0.9 * error(&a), "{} for {}", error(&b), error(&a));
    let mut values = weight.clone();
    let mut group = [Weight { name: "a", out_features: 32, in_features: n, values: &mut values, keep_zeros: true }];
    assert!(feedback.compress(&mut group, &stats).unwrap_err().to_string().contains("pruned"));
}
