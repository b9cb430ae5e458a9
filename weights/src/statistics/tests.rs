use half::{bf16, f16};
use proptest::prelude::*;

use super::{moments::tests::number, *};
use crate::{Checkpoint, CheckpointWriter, Shard, TensorSpec, WriterOptions};

/// A checkpoint of one tensor `w`, and the folder it lies in.
fn stored(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> (tempfile::TempDir, TensorView) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let spec = vec![TensorSpec::new("w", dtype, shape.to_vec())];
    let writer = CheckpointWriter::create(&out, spec, WriterOptions::default()).unwrap();
    writer.write("w", bytes).unwrap();
    writer.finish().unwrap();
    let view = Checkpoint::open(&out).unwrap().tensor("w").unwrap();
    (folder, view)
}

fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F64 => values.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect(),
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        Dtype::I8 => values.iter().flat_map(|&x| ((x * 100.0) as i8).to_le_bytes()).collect(),
        _ => values.iter().map(|&x| (x * 64.0 + 64.0) as u8).collect(), // any code will do
    }
}

/// The definition, in f64, of what `statistics` finds.
struct Naive {
    finite: Vec<f32>,
    mean: f64,
    std: f64,
    skewness: f64,
    kurtosis: f64,
}

impl Naive {
    fn of(values: &[f32]) -> Self {
        let mut finite: Vec<f32> = values.iter().copied().filter(|x| x.is_finite()).collect();
        finite.sort_by(f32::total_cmp);
        let n = finite.len().max(1) as f64;
        let mean = finite.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let central = |order: i32| finite.iter().map(|&x| (f64::from(x) - mean).powi(order)).sum::<f64>() / n;
        let std = central(2).sqrt();
        let (skewness, kurtosis) = if finite.first() == finite.last() {
            (0.0, 0.0)
        } else {
            (central(3) / std.powi(3), central(4) / std.powi(4))
        };
        Self { finite, mean, std, skewness, kurtosis }
    }
}

#[track_caller]
fn near(found: f64, exact: f64, size: f64, what: &str) {
    assert!((found - exact).abs() <= 2e-5 * size.abs().max(exact.abs()), "{what}: found {found}, exact {exact}");
}

#[track_caller]
fn check(dtype: Dtype, shape: &[usize], values: &[f32]) {
    let (_folder, view) = stored(dtype, shape, &encode(dtype, values));
    let values = view.to_f32().unwrap();
    let naive = Naive::of(&values);
    let found = statistics(&view).unwrap();
    let quick = moments(&view).unwrap();
    let count = |test: fn(f32) -> bool| values.iter().filter(|&&x| test(x)).count() as u64;
    for moments in [found.moments, quick] {
        assert_eq!(moments.count, naive.finite.len() as u64);
        assert_eq!(moments.nan, count(f32::is_nan));
        assert_eq!(moments.infinite, count(f32::is_infinite));
        assert_eq!(moments.zeros, count(|x| x == 0.0));
        if let (Some(min), Some(max)) = (naive.finite.first(), naive.finite.last()) {
            assert_eq!((moments.min, moments.max), (f64::from(*min), f64::from(*max)));
        }
        let size = naive.std + naive.mean.abs();
        near(moments.mean, naive.mean, size, "mean");
        near(moments.std, naive.std, 0.0, "std");
        near(moments.l1, naive.finite.iter().map(|x| f64::from(x.abs())).sum(), 0.0, "l1");
        near(moments.l2, naive.finite.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt(), 0.0, "l2");
        near(moments.skewness, naive.skewness, 1.0 + naive.kurtosis.powf(0.75), "skewness");
        near(moments.kurtosis, naive.kurtosis, 1.0, "kurtosis");
    }
    for (found_quantile, level) in found.quantiles.iter().zip(LEVELS) {
        let exact = naive.finite[((level * naive.finite.len() as f64).ceil() as usize).max(1) - 1];
        let error = (found_quantile - f64::from(exact)).abs();
        assert!(error <= found.quantile_error * f64::from(exact.abs()) + 1e-40, "{level}: {found_quantile} {exact}");
    }
    assert_eq!(found.quantiles.is_empty(), naive.finite.is_empty());
    assert_eq!(found.first_nonfinite, values.iter().position(|x| !x.is_finite()).map(|at| at as u64));
    match dtype {
        Dtype::F32 | Dtype::Bf16 => assert_eq!(found.denormals, Some(count(f32::is_subnormal))),
        Dtype::F16 => {
            let small = values.iter().filter(|x| **x != 0.0 && x.abs() < f32::from(f16::MIN_POSITIVE)).count();
            assert_eq!(found.denormals, Some(small as u64));
        }
        _ => assert_eq!(found.denormals, None),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn statistics_agree_with_the_definition(values in proptest::collection::vec(number(), 1..2000)) {
        // Numbers of extreme size lose digits to each other in any f64 sum: they have tests of their own.
        let values: Vec<f32> = values.iter().map(|x| if x.is_finite() { x.clamp(-1e3, 1e3) } else { *x }).collect();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F64, Dtype::I8, Dtype::U8, Dtype::F8E5M2] {
            check(dtype, &[values.len()], &values);
        }
    }
}

/// Numbers from −1 to 1 (SplitMix64), to the power 3: heavy tails.
fn heavy(count: usize) -> Vec<f32> {
    let mut state = 5u64;
    (0..count)
        .map(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            ((z >> 40) as f32 / (1u64 << 23) as f32 - 1.0).powi(3)
        })
        .collect()
}

#[test]
fn large_tensors_agree_too_by_patterns_and_by_sums() {
    let mut values = heavy(3 * SORTED + 77);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F64, Dtype::I8, Dtype::F8E4M3] {
        check(dtype, &[values.len()], &values);
    }
    values.iter_mut().for_each(|x| *x = 1.0 + 0.01 * *x); // a norm's weights: all digits but two are the mean's
    values[1000] = f32::NAN;
    values[40_000] = f32::NEG_INFINITY;
    values[41_000] = 0.0;
    values[42_000] = -1e-39;
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        check(dtype, &[values.len()], &values);
    }
}

#[test]
fn numbers_of_any_size_are_measured() {
    for power in [-120, -60, 60, 100] {
        let values: Vec<f32> = heavy(20_000).iter().map(|x| x * 2f32.powi(power)).collect();
        check(Dtype::F32, &[values.len()], &values);
        check(Dtype::Bf16, &[values.len()], &values);
    }
}

#[test]
fn tensors_without_numbers_or_spread_give_zeros() {
    for (dtype, shape, values) in [
        (Dtype::F32, vec![0], vec![]),
        (Dtype::Bf16, vec![0, 4], vec![]),
        (Dtype::F32, vec![], vec![2.5]),
        (Dtype::F16, vec![3], vec![f32::NAN; 3]),
        (Dtype::F32, vec![40_000], vec![0.1; 40_000]),
        (Dtype::Bf16, vec![40_000], vec![0.0; 40_000]),
    ] {
        check(dtype, &shape, &values);
    }
}

#[test]
fn the_number_of_threads_does_not_show() {
    let values = heavy(64 * 100_000);
    let (_folder, view) = stored(Dtype::F32, &[64_000, 100], &encode(Dtype::F32, &values));
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| (statistics(&view).unwrap(), moments(&view).unwrap()))
    };
    assert!(segments(&view, 100).len() > 2);
    assert_eq!(with(1), with(3));
}

#[test]
fn quantised_blocks_are_decoded() {
    // Q8_0: an f16 scale of 0.5, then 32 signed codes.
    let mut block = f16::from_f32(0.5).to_le_bytes().to_vec();
    block.extend((0..32).map(|code: i8| (code - 16) as u8));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w");
    std::fs::write(&file, block.repeat(3)).unwrap();
    let shard = Shard::open(&file).unwrap();
    let view = TensorView { name: "w".into(), dtype: Dtype::Q8_0, shape: [3, 32].into(), shard, range: 0..3 * 34 };
    let found = statistics(&view).unwrap();
    assert_eq!((found.moments.min, found.moments.max, found.moments.mean), (-8.0, 7.5, -0.25));
    assert_eq!(found.rows.unwrap().duplicated, Found { count: 2, first: vec![1, 2] });
    assert_eq!(found.columns.unwrap().dead, Found { count: 1, first: vec![16] });
}

#[test]
fn odd_rows_and_columns_are_found() {
    let (rows, columns) = (300, 200);
    let mut values = heavy(rows * columns);
    let mut edit = |row: usize, change: &dyn Fn(usize) -> f32| {
        (0..columns).for_each(|column| values[row * columns + column] = change(column));
    };
    edit(7, &|_| 0.0);
    edit(50, &|column| column as f32 / 100.0 + 0.5);
    edit(211, &|column| column as f32 / 100.0 + 0.5);
    edit(299, &|_| -0.0);
    for row in 0..rows {
        values[row * columns + 13] *= 40.0;
        values[row * columns + 91] = 0.0;
        values[row * columns + 92] *= 1e-22; // whose squares vanish in f32
    }
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let (_folder, view) = stored(dtype, &[rows, columns], &encode(dtype, &values));
        let found = statistics(&view).unwrap();
        let (rows, columns) = (found.rows.unwrap(), found.columns.unwrap());
        assert_eq!(rows.dead, Found { count: 2, first: vec![7, 299] });
        assert_eq!((rows.duplicated.first, rows.originals), (vec![211], vec![50]));
        assert_eq!(columns.dead, Found { count: 1, first: vec![91] });
        assert_eq!(columns.outliers, Found { count: 1, first: vec![13] });
        assert!(columns.outlier_energy > 0.85, "{}", columns.outlier_energy);
        assert!(columns.top_energy >= columns.outlier_energy);
    }
}

#[test]
fn an_infinity_spoils_no_energies() {
    let mut values = heavy(100 * 100);
    values[1234] = f32::INFINITY;
    values[1235] = f32::NAN;
    let (_folder, view) = stored(Dtype::F32, &[100, 100], &encode(Dtype::F32, &values));
    let found = statistics(&view).unwrap();
    assert_eq!(found.first_nonfinite, Some(1234));
    assert_eq!((found.moments.infinite, found.moments.nan), (1, 1));
    assert!(found.columns.unwrap().top_energy < 0.05);
}

#[test]
fn shapes_become_matrices() {
    for (shape, expected) in [
        (&[][..], (1, 1)),
        (&[5], (1, 5)),
        (&[4, 5], (4, 5)),
        (&[16, 3, 3, 3], (16, 27)),
        (&[384, 80, 3], (384, 240)),
        (&[8, 4096, 14336], (8 * 4096, 14336)),
    ] {
        assert_eq!(matrix(shape), expected, "{shape:?}");
    }
}

#[test]
fn tensors_of_the_same_bytes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let specs = ["a", "b", "c", "ones", "units"].map(|name| TensorSpec::new(name, Dtype::F32, vec![50]));
    let writer = CheckpointWriter::create(&out, specs.to_vec(), WriterOptions::default()).unwrap();
    let numbers = heavy(50);
    let mut others = numbers.clone();
    others.swap(3, 4); // the same statistics, other bytes
    for (name, values) in
        [("a", &numbers), ("b", &others), ("c", &numbers), ("ones", &vec![1.0; 50]), ("units", &vec![1.0; 50])]
    {
        writer.write(name, &encode(Dtype::F32, values)).unwrap();
    }
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(&out).unwrap();
    let views: Vec<&TensorView> = checkpoint.tensors().collect();
    let measured: Vec<Moments> = views.iter().map(|view| moments(view).unwrap()).collect();
    let tensors: Vec<_> = views.iter().copied().zip(&measured).collect();
    let groups = identical(&tensors);
    let names: Vec<Vec<&str>> = groups.iter().map(|group| group.iter().map(|&i| views[i].name()).collect()).collect();
    assert_eq!(names, [["a", "c"]]);
}
