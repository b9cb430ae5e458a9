use proptest::prelude::*;

use super::{
    fit::{SEARCH_STEPS, power_2_4},
    *,
};
use crate::kernel::test_values::uniform;

fn spec(bits: u32, symmetric: bool) -> GridSpec {
    GridSpec { bits, group_size: 0, symmetric, scale_dtype: ScaleDtype::F16, search: Search::None }
}

/// The definition, value by value.
fn naive_fit(values: &[f32], p: f32, spec: &GridSpec) -> (f32, u8) {
    let max = 2f32.powi(spec.bits as i32) - 1.0;
    let mut lo = values.iter().fold(0.0, |a: f32, &b| a.min(b));
    let mut hi = values.iter().fold(0.0, |a: f32, &b| a.max(b));
    if lo == 0.0 && hi == 0.0 {
        (lo, hi) = (-1.0, 1.0);
    }
    if spec.symmetric {
        hi = hi.max(lo.abs());
        lo = -hi;
    }
    let (lo, hi) = (lo * p, hi * p);
    let mut scale = spec.scale_dtype.round((hi - lo) / max);
    if scale == 0.0 {
        scale = spec.scale_dtype.smallest();
    }
    let zero = if spec.symmetric { (max + 1.0) / 2.0 } else { (-lo / scale).round_ties_even().clamp(0.0, max) };
    (scale, zero as u8)
}

fn naive_code(value: f32, scale: f32, zero: u8, max: u8) -> u8 {
    ((value / scale).round_ties_even() + f32::from(zero)).max(0.0).min(f32::from(max)) as u8
}

fn naive_loss(values: &[f32], scale: f32, zero: u8, max: u8) -> f64 {
    let error = |&x: &f32| {
        let q = naive_code(x, scale, zero, max);
        f64::from(scale) * (f64::from(q) - f64::from(zero)) - f64::from(x)
    };
    values.iter().map(|x| error(x).abs().powf(2.4)).sum()
}

fn relative_error(values: &[f32], scale: f32, zero: u8, max: u8) -> f64 {
    let error = |&x: &f32| {
        let q = naive_code(x, scale, zero, max);
        (f64::from(scale * (f32::from(q) - f32::from(zero))) - f64::from(x)).powi(2)
    };
    let energy: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
    (values.iter().map(error).sum::<f64>() / energy).sqrt()
}

/// The search compares losses good to 1.1e-4; its choice may cost twice that over the best.
const SEARCH_SLACK: f64 = 1.0005;

fn groups() -> impl Strategy<Value = Vec<f32>> {
    let magnitude = proptest::sample::select(vec![1e-30f32, 1e-7, 1e-3, 1.0, 3e4]);
    let sign = proptest::sample::select(vec![(-1.0f32, 1.0f32), (0.0, 1.0), (-1.0, 0.0), (0.3, 0.3)]);
    (1usize..70, magnitude, sign, any::<u64>()).prop_map(|(n, magnitude, (lo, hi), seed)| {
        uniform(n, seed).into_iter().map(|x| magnitude * (lo + (hi - lo) * (x + 1.0) / 2.0).powi(3)).collect()
    })
}

fn specs() -> impl Strategy<Value = GridSpec> {
    let dtype = proptest::sample::select(vec![ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F32]);
    (proptest::sample::select(vec![2u32, 3, 4, 8]), any::<bool>(), dtype)
        .prop_map(|(bits, symmetric, scale_dtype)| GridSpec { scale_dtype, ..spec(bits, symmetric) })
}

proptest! {
    #[test]
    fn a_fit_matches_the_definition((values, spec) in (groups(), specs())) {
        let (scale, zero) = fit_group(&values, &spec).unwrap();
        prop_assert_eq!((scale, zero), naive_fit(&values, 1.0, &spec));
        let mut codes = vec![0; values.len()];
        quantize_group(&values, scale, zero, spec.max_code(), &mut codes);
        for (&value, &code) in values.iter().zip(&codes) {
            prop_assert_eq!(code, naive_code(value, scale, zero, spec.max_code()));
        }
    }

    #[test]
    fn the_search_finds_the_least_loss((values, spec) in (groups(), specs())) {
        let spec = GridSpec { search: Search::Mse, ..spec };
        let (scale, zero) = fit_group(&values, &spec).unwrap();
        let found = naive_loss(&values, scale, zero, spec.max_code());
        for i in 0..SEARCH_STEPS {
            let (scale, zero) = naive_fit(&values, 1.0 - i as f32 / 100.0, &spec);
            let loss = naive_loss(&values, scale, zero, spec.max_code());
            // Losses of 1e-30^2.4 are compared in f64; a group hit exactly leaves only rounding.
            let rounding = values.len() as f64 * (f64::from(scale) * 1e-4).powf(2.4);
            prop_assert!(found <= loss * SEARCH_SLACK + rounding, "{found:e} but {loss:e} at step {i}");
        }
    }
}

#[test]
fn the_power_is_as_exact_as_it_says() {
    for i in 0..20_000 {
        let x = 1.001f32.powi(i - 10_000);
        let exact = f64::from(x).powf(2.4);
        let error = |approximate: f32| (f64::from(approximate) / exact - 1.0).abs();
        assert!(error(power_2_4::<2>(x)) < 1.1e-4, "{x}: {}", error(power_2_4::<2>(x)));
        assert!(error(power_2_4::<3>(x)) < 2e-6, "{x}: {}", error(power_2_4::<3>(x)));
    }
    assert_eq!(power_2_4::<2>(0.0), 0.0);
}

#[test]
fn scales_are_rounded_as_the_types_round() {
    for i in 0..2_000_000u32 {
        let x = f32::from_bits(i.wrapping_mul(2_654_435_769));
        for (dtype, expected) in [
            (ScaleDtype::F16, half::f16::from_f32(x).to_f32()),
            (ScaleDtype::Bf16, half::bf16::from_f32(x).to_f32()),
            (ScaleDtype::F32, x),
        ] {
            let rounded = dtype.round(x);
            assert!(rounded.to_bits() == expected.to_bits() || (rounded.is_nan() && x.is_nan()), "{x:e} {dtype:?}");
        }
    }
    for dtype in [ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F32] {
        assert_eq!(dtype.round(dtype.smallest()), dtype.smallest());
        assert_eq!(dtype.round(dtype.smallest() * 0.49), 0.0);
    }
}

#[test]
fn special_groups() {
    let zero_row = [0.0; 8];
    for symmetric in [true, false] {
        let spec = spec(4, symmetric);
        let (scale, zero) = fit_group(&zero_row, &spec).unwrap();
        let mut codes = [0; 8];
        quantize_group(&zero_row, scale, zero, 15, &mut codes);
        assert!(scale > 0.0);
        assert_eq!(codes, [zero; 8], "a zero stays a zero");
        for single in [3.5f32, -3.5] {
            let (scale, zero) = fit_group(&[single], &spec).unwrap();
            assert!(relative_error(&[single], scale, zero, 15) < 0.067, "{single}: half a step of 15");
        }
    }
    assert_eq!(fit_group(&[0.25, 0.5, 0.75], &spec(4, false)).unwrap().1, 0, "all positive");
    assert_eq!(fit_group(&[-0.25, -0.5, -0.75], &spec(4, false)).unwrap().1, 15, "all negative");
}

#[test]
fn a_group_without_negatives_keeps_its_range() {
    let values: Vec<f32> = (0..32).map(|i| (i as f32 + 0.5) / 32.0).collect();
    let (scale, zero) = fit_group(&values, &spec(4, true)).unwrap();
    let ours = relative_error(&values, scale, zero, 15);
    let quirk = relative_error(&values, scale / 2.0, zero, 15); // lo = 0: half the step, the upper half clipped
    assert!(ours < 0.12 && quirk > 0.3, "{ours} against {quirk}");
}

#[test]
fn scales_stay_within_their_type() {
    let tiny = [1e-9f32, -1e-9];
    assert_eq!(fit_group(&tiny, &spec(4, true)).unwrap().0, 2f32.powi(-24));
    let error = fit_group(&[1e6, -1e6], &spec(4, true)).unwrap_err().to_string();
    assert!(error.contains("beyond the range of F16"), "{error}");
    let bf16 = GridSpec { scale_dtype: ScaleDtype::Bf16, ..spec(4, true) };
    assert!(fit_group(&[1e6, -1e6], &bf16).is_ok());
    assert!(fit_group(&[f32::MAX, f32::MIN], &bf16).unwrap_err().to_string().contains("BF16"));
    assert!(fit_group(&[1e-44, -1e-44], &GridSpec { search: Search::Mse, ..bf16 }).is_ok());
}

#[test]
fn values_that_are_not_finite_are_refused_with_their_place() {
    let mut weight = vec![1.0; 4 * 32];
    weight[2 * 32 + 20] = f32::NAN;
    let spec = GridSpec { group_size: 16, ..spec(4, true) };
    let error = round_to_nearest(&weight, 4, 32, &spec).unwrap_err().to_string();
    assert_eq!(error, "row 2, group 1: the value NaN at place 4 of a group is not finite");
}

#[test]
fn a_group_size_that_does_not_divide_is_refused_with_those_that_do() {
    let error = GridSpec { group_size: 128, ..spec(4, true) }.group_size_for(576).unwrap_err().to_string();
    assert!(error.contains("576") && error.contains("16, 32, 48, 64, 96, 144, 192, 288"), "{error}");
    assert!(GridSpec { bits: 5, ..spec(4, true) }.group_size_for(64).is_err());
    assert_eq!(spec(4, true).group_size_for(77).unwrap(), 77);
}

#[test]
fn nearest_codes_dequantize_to_within_half_a_step() {
    let weight = uniform(6 * 64, 9);
    let spec = GridSpec { group_size: 32, ..spec(4, false) };
    let quantised = round_to_nearest(&weight, 6, 64, &spec).unwrap();
    assert_eq!(quantised.scales.len(), 12);
    for (i, (&w, q)) in weight.iter().zip(quantised.dequantize()).enumerate() {
        let scale = quantised.scales[i / 32];
        // Half a step, and half a step more where the rounded zero point shifts the range past an end.
        assert!((w - q).abs() <= scale * 1.01, "element {i}: {w} became {q} on a step of {scale}");
    }
}
