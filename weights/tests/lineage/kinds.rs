//! One tensor: each kind of change with its parameters, and no kind where there is none.

use proptest::prelude::*;
use scruple_weights::{
    Dtype,
    lineage::{Arrangement, Change, Group, NOfM, Rounding, Scaled, Side},
};

use crate::support::{Normal, change, pair, quantised, rounded, weights, with_lora};

const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

fn names_of(change: &Change) -> &'static str {
    change.name()
}

#[test]
fn other_types_are_told_from_other_values() {
    let shape = [40, 32];
    let w = weights(40, 32, 1);
    assert_eq!(change(shape, (Dtype::F32, &w), (Dtype::F32, &w)), Change::Equal);
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let small = rounded(&w, dtype);
        for (a, b, rounding) in [
            ((Dtype::F32, &w), (dtype, &w), Rounding::Nearest),
            ((dtype, &w), (Dtype::F32, &w), Rounding::Reverse),
            ((dtype, &w), (Dtype::F32, &small), Rounding::Exact),
            ((Dtype::F32, &small), (dtype, &w), Rounding::Exact),
        ] {
            assert_eq!(change(shape, (a.0, a.1), (b.0, b.1)), Change::Retyped { rounding }, "{a:?} {b:?}");
        }
    }
    let cut: Vec<f32> = w.iter().map(|x| f32::from_bits(x.to_bits() & 0xffff_0000)).collect();
    let truncated = Change::Retyped { rounding: Rounding::Truncated };
    assert_eq!(change(shape, (Dtype::F32, &w), (Dtype::Bf16, &cut)), truncated);
    // One element off by more is no rounding.
    let mut off = rounded(&w, Dtype::Bf16);
    off[77] *= 1.02;
    assert_ne!(names_of(&change(shape, (Dtype::F32, &w), (Dtype::Bf16, &off))), "retyped");
}

#[test]
fn a_merged_lora_is_found_with_its_rank_in_every_type() {
    for (rows, columns) in [(128, 96), (80, 200)] {
        for dtype in FLOATS {
            for (rank, size) in [(1, 0.03), (2, 0.3), (4, 0.05), (8, 0.2), (16, 0.5)] {
                let a = rounded(&weights(rows, columns, 3), dtype);
                let b = with_lora(&a, rows, columns, rank, size, 4);
                let found = pair([rows, columns], (dtype, &a), (dtype, &b));
                let Change::LowRank { spectrum } = &found.change else {
                    panic!("{dtype} {rows}×{columns} rank {rank}: {:?}", found.change)
                };
                assert_eq!(spectrum.rank, rank, "{dtype} {rows}×{columns} size {size}: {spectrum:?}");
                assert!(spectrum.explained_beyond_rounding > 0.99, "{dtype} rank {rank}: {spectrum:?}");
                let relative = found.measured.unwrap().relative.unwrap();
                assert!((relative / size - 1.0).abs() < 0.02, "{relative} for {size}");
            }
        }
    }
}

#[test]
fn a_merged_lora_of_a_high_rank_is_found_too() {
    let (rows, columns) = (320, 300);
    let a = rounded(&weights(rows, columns, 3), Dtype::Bf16);
    let b = with_lora(&a, rows, columns, 64, 0.4, 4);
    let found = change([rows, columns], (Dtype::Bf16, &a), (Dtype::Bf16, &b));
    assert!(matches!(&found, Change::LowRank { spectrum } if spectrum.rank == 64), "{found:?}");
}

#[test]
fn a_low_rank_change_above_real_noise_only_stands_out() {
    let (rows, columns) = (96, 128);
    let a = weights(rows, columns, 5);
    let mut b = with_lora(&a, rows, columns, 2, 0.5, 6);
    let noise = Normal::seeded(7).vector(b.len(), 0.0005);
    b.iter_mut().zip(noise).for_each(|(b, noise)| *b += noise);
    let found = change([rows, columns], (Dtype::Bf16, &a), (Dtype::Bf16, &b));
    let Change::Retrained { spectrum: Some(spectrum) } = &found else { panic!("{found:?}") };
    assert_eq!(spectrum.rank, 2);
    assert!(spectrum.left_over_rounding > 2.0 && spectrum.explained > 0.9, "{spectrum:?}");
}

#[test]
fn grids_are_found_with_bits_and_groups() {
    let (rows, columns) = (24, 256);
    let w = weights(rows, columns, 8);
    let leaning: Vec<f32> = w.iter().map(|x| x + 0.04).collect();
    for bits in [2, 3, 4, 8] {
        for group in [32, 64, 128, columns] {
            for symmetric in [true, false] {
                for dtype in FLOATS {
                    let w = if symmetric { &w } else { &leaning };
                    let q = quantised(w, group, bits, symmetric);
                    let found = change([rows, columns], (Dtype::F32, w), (dtype, &q));
                    let case = format!("{bits} bits, groups of {group}, symmetric {symmetric}, {dtype}: {found:?}");
                    let Change::Quantised { copy: Side::B, grid, pruned: None, origin: None } = found else {
                        panic!("{case}")
                    };
                    assert_eq!(grid.bits, bits, "{case}");
                    let expected = if group == columns { Group::Row } else { Group::Columns(group) };
                    assert_eq!(grid.group, expected, "{case}");
                    assert!(!grid.offset && grid.on_grid > 0.99, "{case}");
                    // Codes −1 to 2 may be symmetric ones of a negative scale.
                    assert!(grid.symmetric == symmetric || !symmetric && bits == 2, "{case}");
                    // A grid of 8 bits is finer than bf16.
                    assert!(grid.nearest > if bits == 8 && dtype == Dtype::Bf16 { 0.5 } else { 0.99 }, "{case}");
                }
            }
        }
    }
    let q = quantised(&w, w.len(), 8, true);
    let found = change([rows, columns], (Dtype::F32, &w), (Dtype::F32, &q));
    assert!(
        matches!(&found, Change::Quantised { grid, .. } if grid.group == Group::Tensor && grid.bits == 8),
        "{found:?}"
    );
}

#[test]
fn the_side_that_is_rounded_is_the_copy_and_compensation_shows() {
    let shape = [32, 128];
    let w = weights(32, 128, 9);
    let q = quantised(&w, 64, 4, true);
    let found = change(shape, (Dtype::F32, &q), (Dtype::F32, &w));
    assert!(matches!(found, Change::Quantised { copy: Side::A, .. }), "{found:?}");
    let mut moved = w.clone();
    moved.iter_mut().zip(Normal::seeded(10).vector(w.len(), 0.01)).for_each(|(w, noise)| *w += noise);
    let found = change(shape, (Dtype::F32, &w), (Dtype::F32, &quantised(&moved, 64, 4, true)));
    assert!(matches!(&found, Change::Quantised { grid, .. } if grid.nearest < 0.9), "{found:?}");
    // A grid with an offset that is no multiple of its step.
    let (step, low) = (0.013f32, -0.1701f32);
    let affine: Vec<f32> = w.iter().map(|x| low + step * ((x - low) / step).round().clamp(0.0, 31.0)).collect();
    let found = change(shape, (Dtype::F32, &w), (Dtype::F32, &affine));
    assert!(matches!(&found, Change::Quantised { grid, .. } if grid.offset && grid.bits == 5), "{found:?}");
}

#[test]
fn masks_are_found_with_their_pattern() {
    let (rows, columns) = (40, 64);
    let w = weights(rows, columns, 11);
    let keep = |mask: &dyn Fn(usize, usize) -> bool| -> Vec<f32> {
        (0..w.len()).map(|at| if mask(at / columns, at % columns) { w[at] } else { 0.0 }).collect()
    };
    let of = |b: &[f32]| match change([rows, columns], (Dtype::Bf16, &w), (Dtype::Bf16, b)) {
        Change::Pruned { copy: Side::B, mask, kept_equal: true } => mask,
        other => panic!("{other:?}"),
    };
    let mask = of(&w.iter().map(|&x| if x.abs() > 0.0337 { x } else { 0.0 }).collect::<Vec<_>>());
    assert!((mask.sparsity - 0.5).abs() < 0.03 && mask.n_of_m.is_none() && !mask.structured, "{mask:?}");
    for (n, m) in [(2, 4), (1, 4), (4, 8), (1, 2)] {
        // The n largest of every m.
        let run = |row: usize, column: usize| {
            let run = &w[row * columns + column / m * m..][..m];
            run.iter().filter(|x| x.abs() > w[row * columns + column].abs()).count() < n
        };
        let mask = of(&keep(&run));
        assert_eq!(mask.n_of_m, Some(NOfM { keep: n, of: m }));
        assert!((mask.sparsity - (1.0 - n as f64 / m as f64)).abs() < 1e-9, "{mask:?}");
    }
    let mask = of(&keep(&|row, column| row % 4 != 1 && column != 9));
    assert_eq!((mask.zero_rows, mask.zero_columns, mask.structured), (10, 1, true));
    assert!(!mask.is_of_rows());
    let mask = of(&keep(&|row, _| row % 4 != 1));
    assert!(mask.is_of_rows() && mask.zero_rows == 10, "{mask:?}");
    // A few rows of zeros may as well have been there first, as those of tokens that nobody had used.
    let few = keep(&|row, _| row != 7 && row != 30);
    for (a, b) in [(&w, &few), (&few, &w)] {
        let found = change([rows, columns], (Dtype::Bf16, a), (Dtype::Bf16, b));
        assert_eq!(found, Change::Rows { changed: 2, of: rows, first: vec![7, 30] });
    }
    // Both: 50 % of the smallest gone, the rest on a grid.
    let pruned = w.iter().map(|&x| if x.abs() > 0.0337 { x } else { 0.0 }).collect::<Vec<_>>();
    let found = change([rows, columns], (Dtype::F32, &w), (Dtype::F32, &quantised(&pruned, 32, 8, true)));
    let Change::Quantised { grid, pruned: Some(mask), .. } = &found else { panic!("{found:?}") };
    assert!(grid.bits == 8 && (mask.sparsity - 0.5).abs() < 0.05, "{found:?}");
    // What is left was changed, as SparseGPT does.
    let mut updated = pruned.clone();
    updated.iter_mut().zip(Normal::seeded(12).vector(w.len(), 0.005)).for_each(|(x, noise)| {
        if *x != 0.0 {
            *x += noise;
        }
    });
    let found = change([rows, columns], (Dtype::F32, &w), (Dtype::F32, &updated));
    assert!(matches!(found, Change::Pruned { kept_equal: false, .. }), "{found:?}");
}

#[test]
fn factors_are_found_for_tensor_rows_and_columns() {
    let (rows, columns) = (48, 40);
    let w = weights(rows, columns, 13);
    let mut normal = Normal::seeded(14);
    let factors: Vec<f32> = (0..rows.max(columns)).map(|_| 0.5 + normal.uniform() as f32).collect();
    for dtype in FLOATS {
        for (of, factor) in [
            (Scaled::Tensor, &(|_| 1.37f32) as &dyn Fn(usize) -> f32),
            (Scaled::Rows, &|at| factors[at / columns]),
            (Scaled::Columns, &|at| factors[at % columns]),
        ] {
            let b: Vec<f32> = w.iter().enumerate().map(|(at, w)| factor(at) * w).collect();
            let found = change([rows, columns], (dtype, &w), (dtype, &b));
            let Change::Rescaled { scales } = &found else { panic!("{dtype} {of:?}: {found:?}") };
            assert_eq!(scales.of, of, "{dtype}");
            assert!(scales.least > 0.49 && scales.most < 1.51 && scales.residual < 0.01, "{scales:?}");
        }
    }
}

#[test]
fn other_orders_of_rows_are_found() {
    let (rows, columns) = (64, 48);
    let w = weights(rows, columns, 15);
    let by = |source: &dyn Fn(usize) -> usize| -> Vec<f32> {
        (0..rows).flat_map(|row| w[source(row) * columns..][..columns].to_vec()).collect()
    };
    // Heads of 16: Hugging Face keeps halves apart, GGUF beside each other.
    let interleave = |row: usize| row / 16 * 16 + row % 2 * 8 + row % 16 / 2;
    let gguf = by(&interleave);
    for (a, b, interleaved) in [(&w, &gguf, true), (&gguf, &w, false)] {
        let found = pair([rows, columns], (Dtype::F32, a), (Dtype::F32, b));
        assert_eq!(found.arrangement, Arrangement::Rope { head_dim: 16, interleaved });
        assert_eq!(found.change, Change::Equal);
    }
    let rounded = quantised(&gguf, 16, 4, true);
    let found = pair([rows, columns], (Dtype::F32, &w), (Dtype::F32, &rounded));
    assert_eq!(found.arrangement, Arrangement::Rope { head_dim: 16, interleaved: true });
    assert_eq!(names_of(&found.change), "quantised");

    let found = pair([rows, columns], (Dtype::F32, &w), (Dtype::F32, &by(&|row| row * 27 % rows)));
    assert!(matches!(found.arrangement, Arrangement::PermutedRows { moved } if moved > 50), "{found:?}");
    assert_eq!(found.change, Change::Equal);

    let transposed: Vec<f32> = (0..w.len()).map(|at| w[at % rows * columns + at / rows]).collect();
    let square = weights(40, 40, 16);
    let turned: Vec<f32> = (0..1600).map(|at| square[at % 40 * 40 + at / 40]).collect();
    let found = pair([40, 40], (Dtype::F32, &square), (Dtype::F32, &turned));
    assert_eq!((found.arrangement, found.change), (Arrangement::Transposed, Change::Equal));
    let tensor = |shape: [usize; 2], values: &[f32]| [crate::support::tensor("w", &shape, Dtype::F32, values.into())];
    let found = crate::support::compare(&tensor([rows, columns], &w), &tensor([columns, rows], &transposed));
    assert_eq!(found.tensors[0].arrangement, Arrangement::Transposed);
    assert_eq!(found.tensors[0].change, Change::Equal);
}

#[test]
fn changed_rows_are_listed() {
    let (rows, columns) = (64, 32);
    let w = weights(rows, columns, 17);
    let mut b = w.clone();
    for row in [3, 40, 63] {
        b[row * columns + 5] += 0.5;
    }
    let found = change([rows, columns], (Dtype::F32, &w), (Dtype::F32, &b));
    assert_eq!(found, Change::Rows { changed: 3, of: 64, first: vec![3, 40, 63] });
}

#[test]
fn strange_numbers_and_shapes_are_compared_too() {
    let w = weights(32, 32, 18);
    let mut b = w.clone();
    b[5] = f32::NAN;
    let found = pair([32, 32], (Dtype::F32, &w), (Dtype::F32, &b));
    assert_eq!(found.measured.unwrap().nonfinite, 1);
    assert_eq!(names_of(&found.change), "rows");
    assert_eq!(change([32, 32], (Dtype::F32, &b), (Dtype::F32, &b)), Change::Equal);
    let all_nan = vec![f32::NAN; 1024];
    let found = pair([32, 32], (Dtype::F32, &w), (Dtype::F32, &all_nan));
    assert_eq!(found.measured.unwrap().nonfinite, 1024);
    for shape in [[0, 3], [3, 0]] {
        assert_eq!(change(shape, (Dtype::F32, &[]), (Dtype::F32, &[])), Change::Equal);
        assert_eq!(change(shape, (Dtype::F32, &[]), (Dtype::F16, &[])), Change::Equal);
    }
    let zero = vec![0.0; 1024];
    let found = pair([32, 32], (Dtype::F32, &zero), (Dtype::F32, &w));
    assert_eq!(found.measured.unwrap().relative, None);
    for (a, b) in [(&zero, &w), (&w, &zero)] {
        let found = change([32, 32], (Dtype::F32, a), (Dtype::F32, b));
        assert_ne!(names_of(&found), "equal");
    }
    // Type extremes must not upset the arithmetic.
    let huge: Vec<f32> = w.iter().map(|x| x * 1e38).collect();
    let tiny: Vec<f32> = w.iter().map(|x| x * 1e-42).collect();
    for (a, b) in [(&huge, &w), (&w, &huge), (&tiny, &w), (&w, &tiny), (&tiny, &huge)] {
        change([32, 32], (Dtype::F32, a), (Dtype::F32, b));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Noise of any size over weights of any type is no adapter, grid, mask or factor.
    #[test]
    fn nothing_is_claimed_of_noise(
        rows in 8usize..90,
        columns in 8usize..140,
        exponent in -4.0f64..0.5,
        type_a in 0usize..3,
        type_b in 0usize..3,
        seed in 0u64..1 << 40,
    ) {
        let (type_a, type_b) = (FLOATS[type_a], FLOATS[type_b]);
        let a = weights(rows, columns, seed);
        let size = 0.05 * 10f64.powf(exponent) as f32;
        let b: Vec<f32> = a.iter().zip(Normal::seeded(seed + 1).vector(a.len(), size)).map(|(a, n)| a + n).collect();
        let found = change([rows, columns], (type_a, &a), (type_b, &b));
        let fine = matches!(
            found,
            Change::Retrained { .. } | Change::Unrelated { .. } | Change::Equal | Change::Rows { .. } | Change::Retyped { .. }
        );
        prop_assert!(fine, "{type_a} {type_b} {rows}×{columns} 10^{exponent}: {found:?}");
    }

    /// Independent tensors are unrelated, whatever their shape: 5 standard deviations are never reached by chance.
    #[test]
    fn independent_tensors_are_unrelated(rows in 4usize..80, columns in 16usize..80, seed in 0u64..1 << 40) {
        let (a, b) = (weights(rows, columns, seed), weights(rows, columns, seed + 1));
        let found = change([rows, columns], (Dtype::Bf16, &a), (Dtype::Bf16, &b));
        prop_assert!(matches!(found, Change::Unrelated { z } if z.abs() < 5.0), "{found:?}");
    }

    #[test]
    fn a_planted_rank_is_the_rank_found(
        rows in 64usize..150,
        columns in 64usize..150,
        rank in 1usize..15,
        size in 0.1f64..1.0,
        dtype in 0usize..3,
        seed in 0u64..1 << 40,
    ) {
        let dtype = FLOATS[dtype];
        let a = rounded(&weights(rows, columns, seed), dtype);
        let b = with_lora(&a, rows, columns, rank, size, seed + 1);
        let found = change([rows, columns], (dtype, &a), (dtype, &b));
        let right = matches!(&found, Change::LowRank { spectrum } if spectrum.rank == rank);
        prop_assert!(right, "{dtype} {rows}×{columns} rank {rank} size {size}: {found:?}");
    }
}
