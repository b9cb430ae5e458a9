//! Half-quadratic quantisation (Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"):
//! grids that lose little of most weights and let the few large ones go. Needs no data.
//!
//! For one group, HQQ seeks `min Σ |w − ŵ|^p`, `ŵ = s (q − z)`, with p = 0.7, by splitting the error into what is kept,
//! `e`, and a sparse rest:
//!
//! ```text
//!     q = clamp(round(w / s) + z, 0, 2^bits − 1)
//!     e = shrink(w − s (q − z)),    shrink(x) = sign(x) · max(|x| − |x|^(p−1) / β, 0)      (generalised soft threshold)
//!     z = mean(q − (w − e) / s)
//! ```
//!
//! with β = 10, growing by 1 % a round, for 20 rounds. Files of integer codes hold integer zero points, so `z` is rounded
//! (the `round_zero` of the authors' program) and cannot follow its mean closely; the scale, which the authors leave
//! alone, takes its share of the same subproblem (which more than makes up for it at 2 and 3 bits, and costs 1 % at 4): `s = Σ (q − z)(w − e) / Σ (q − z)²`, rounded to its stored type. On a
//! symmetric grid it is all there is to choose. Errors are measured in steps of the starting grid, so that a weight and
//! its double are quantised alike; in the authors' program, which takes them as they are, weights of the usual size never
//! reach the threshold of `shrink`.
//!
//! The start is round-to-nearest's grid, and the best of all rounds is kept: no group ends with a larger `Σ |w − ŵ|^p`
//! than there.
//!
//! That is a statement about weights. A whole zero point hardly moves at a scale that stays, so what is gained is gained by
//! smaller scales, which clip the largest weights, and a model may need those. Measured on SmolLM2-135M-Instruct (groups of
//! 64, 8,192 tokens of wikitext-2, dense perplexity 19.75; weight error ‖Ŵ − W‖² / ‖W‖²):
//!
//! | | weight error, rtn | hqq | perplexity, rtn | hqq |
//! |---|---|---|---|---|
//! | 4 bits, symmetric | 0.0115 | 0.0100 | 29.5 | 31.9 |
//! | 4 bits, asymmetric | 0.0088 | 0.0077 | 24.8 | 28.5 |
//! | 3 bits, symmetric | 0.0526 | 0.0418 | 147.6 | 470.3 |

use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Compressed, Described, GroupStats, LayerMethod, Needs, Weight};
use crate::grid::{self, GridSpec, Quantised, ScaleDtype, Search};
use crate::{Error, Result};

/// The exponent of the loss.
const P: f32 = 0.7;

/// `β` of the first round.
const BETA: f32 = 10.0;

/// What `β` grows by.
const KAPPA: f32 = 1.01;

/// Rounds.
const ROUNDS: usize = 20;

/// Half-quadratic quantisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hqq {
    /// 2, 3, 4 or 8.
    pub bits: u32,
    /// Input columns that share a scale; 0 for one scale a row.
    pub group_size: usize,
    /// Fixed zero points in the middle of the codes: only scales are chosen.
    pub symmetric: bool,
    /// What scales are stored as.
    pub scale_dtype: ScaleDtype,
}

impl Default for Hqq {
    fn default() -> Self {
        Self { bits: 4, group_size: 64, symmetric: true, scale_dtype: ScaleDtype::F16 }
    }
}

impl Described for Hqq {
    const NAME: &'static str = "hqq";
    const SUMMARY: &'static str = "half-quadratic quantisation: grids for most weights, not the largest; needs no data";
    const PAPER: &'static str =
        "Badri and Shaji 2023, Half-Quadratic Quantization, https://mobiusml.github.io/hqq_blog/";

    fn validate(&self) -> Result<()> {
        self.spec().group_size_for(self.group_size).map(|_| ())
    }
}

impl LayerMethod for Hqq {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn grid(&self) -> Option<GridSpec> {
        Some(self.spec())
    }

    fn compress(&self, group: &mut [Weight<'_>], stats: &GroupStats) -> Result<Vec<Compressed>> {
        let one = |weight: &mut Weight<'_>| {
            let start = Instant::now();
            super::check(weight, stats)?;
            let quantised = quantize(weight.values, weight.out_features, weight.in_features, &self.spec())
                .map_err(|cause| super::in_linear(weight.name, cause))?;
            Ok(super::finish(weight, quantised.into(), Self::NAME, stats, start))
        };
        group.iter_mut().map(one).collect()
    }
}

impl Hqq {
    fn spec(&self) -> GridSpec {
        GridSpec {
            bits: self.bits,
            group_size: self.group_size,
            symmetric: self.symmetric,
            scale_dtype: self.scale_dtype,
            search: Search::None,
        }
    }
}

/// Quantises `weight` (out, in) on grids chosen group by group.
fn quantize(weight: &[f32], out_features: usize, in_features: usize, spec: &GridSpec) -> Result<Quantised> {
    let group_size = spec.group_size_for(in_features)?;
    let groups = in_features / group_size.max(1);
    let mut codes = vec![0; weight.len()];
    let (mut scales, mut zeros) = (vec![0.0; out_features * groups], vec![0; out_features * groups]);
    if !weight.is_empty() {
        let rows = weight.par_chunks(in_features).zip(codes.par_chunks_mut(in_features));
        let rows = rows.zip(scales.par_chunks_mut(groups)).zip(zeros.par_chunks_mut(groups)).enumerate();
        let done: Vec<Result<()>> = rows
            .map(|(row, (((values, codes), scales), zeros))| {
                let parts = values.chunks_exact(group_size).zip(codes.chunks_exact_mut(group_size));
                for (group, (values, codes)) in parts.enumerate() {
                    let (scale, zero) = fit_group(values, spec).map_err(|cause| match cause {
                        Error::Numeric(what) => Error::Numeric(format!("row {row}, group {group}: {what}")),
                        other => other,
                    })?;
                    (scales[group], zeros[group]) = (scale, zero);
                    grid::quantize_group(values, scale, zero, spec.max_code(), codes);
                }
                Ok(())
            })
            .collect();
        done.into_iter().collect::<Result<()>>()?; // the first fault, whichever thread met one first
    }
    Ok(Quantised {
        out_features,
        in_features,
        bits: spec.bits,
        group_size,
        symmetric: spec.symmetric,
        scale_dtype: spec.scale_dtype,
        codes,
        scales,
        zeros,
        g_idx: None,
    })
}

/// The scale and the zero point of one group.
fn fit_group(values: &[f32], spec: &GridSpec) -> Result<(f32, u8)> {
    let (scale, zero) = grid::fit_group(values, spec)?;
    let start = Grid { scale, zero: f32::from(zero) };
    let found = improve(values, start, spec);
    let max = f32::from(spec.max_code());
    // The rounds compare sums in f32; what is kept has proved better in f64.
    let kept = match found != start && exact_loss(values, found, max) < exact_loss(values, start, max) {
        true => found,
        false => start,
    };
    Ok((kept.scale, kept.zero as u8))
}

/// A grid; its zero point is whole, but in the authors' own form.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Grid {
    scale: f32,
    zero: f32,
}

/// What one round of a group gives.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// `Σ |w − ŵ|^p` by the grid the round began with, in units.
    loss: f32,
    /// Σ (q − z).
    codes: f32,
    /// Σ (w − e).
    kept: f32,
    /// Σ (q − z)(w − e).
    products: f32,
    /// Σ (q − z)².
    squares: f32,
}

crate::kernel::dispatch! {
    /// The best of the grids that the rounds come to from `start`.
    fn improve(values: &[f32], start: Grid, spec: &GridSpec) -> Grid = improve_body
}

#[inline(always)]
fn improve_body(values: &[f32], start: Grid, spec: &GridSpec) -> Grid {
    let max = f32::from(spec.max_code());
    let unit = 1.0 / start.scale;
    if !unit.is_finite() {
        return start; // weights so small that their scale is subnormal
    }
    let (mut grid, mut best, mut least) = (start, start, f32::INFINITY);
    let mut beta = BETA;
    for _ in 0..ROUNDS {
        let round = look::<false>(values, grid, max, unit, beta);
        if round.loss < least {
            (best, least) = (grid, round.loss);
        }
        let zero = match spec.symmetric {
            true => grid.zero,
            false => next_zero(&round, grid, values.len()).round_ties_even().max(0.0).min(max),
        };
        let moved = zero - grid.zero;
        let count = values.len() as f32;
        let squares = round.squares - 2.0 * moved * round.codes + count * moved * moved;
        let scale = spec.scale_dtype.round((round.products - moved * round.kept) / squares);
        if !(scale.is_finite() && scale > 0.0) {
            break; // all codes at the zero point
        }
        grid = Grid { scale, zero };
        beta *= KAPPA;
    }
    if look::<false>(values, grid, max, unit, beta).loss < least {
        best = grid;
    }
    best
}

/// `mean(q − (w − e) / s)`.
#[inline(always)]
fn next_zero(round: &Round, grid: Grid, count: usize) -> f32 {
    grid.zero + (round.codes - round.kept / grid.scale) / count as f32
}

/// The codes of a group by `grid`, what they lose, and the sums that the next grid is made of. Errors are taken times
/// `unit`. `REAL_ZERO`: the zero point is any number, and is added before rounding.
#[inline(always)]
fn look<const REAL_ZERO: bool>(values: &[f32], grid: Grid, max: f32, unit: f32, beta: f32) -> Round {
    const LANES: usize = 16;
    let back = 1.0 / unit;
    let inverse_beta = 1.0 / beta;
    let [mut loss, mut codes, mut kept, mut products, mut squares] = [[0f32; LANES]; 5];
    let mut take = |values: &[f32]| {
        for (lane, &value) in values.iter().enumerate() {
            let q = match REAL_ZERO {
                true => (value / grid.scale + grid.zero).round_ties_even().max(0.0).min(max),
                false => ((value / grid.scale).round_ties_even() + grid.zero).max(0.0).min(max),
            };
            let steps = q - grid.zero;
            let error = (value - grid.scale * steps) * unit;
            let size = error.abs();
            let power = inverse_power(size);
            let shrunk = size - inverse_beta * power;
            let shrunk = if shrunk > 0.0 { shrunk } else { 0.0 };
            let rest = value - shrunk.copysign(error) * back;
            loss[lane] += size * power;
            codes[lane] += steps;
            kept[lane] += rest;
            products[lane] = steps.mul_add(rest, products[lane]);
            squares[lane] = steps.mul_add(steps, squares[lane]);
        }
    };
    let (lines, tail) = values.as_chunks::<LANES>();
    lines.iter().for_each(|line| take(line));
    take(tail);
    let sum = |lanes: [f32; LANES]| {
        let eight: [f32; 8] = std::array::from_fn(|lane| lanes[lane] + lanes[lane + 8]);
        let four: [f32; 4] = std::array::from_fn(|lane| eight[lane] + eight[lane + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    };
    Round { loss: sum(loss), codes: sum(codes), kept: sum(kept), products: sum(products), squares: sum(squares) }
}

/// `x^(p − 1)` for p = 0.7 and x ≥ 0 to a few units of the last place; finite for 0, too.
///
/// With `a = x³` this is `a^(−1/10)`, by Newton's iteration `y ← y (11 − a y¹⁰) / 10` from a guess by the exponent bits.
#[inline(always)]
fn inverse_power(x: f32) -> f32 {
    /// `11/10 · 2²³ · (127 − 0.043)`, which is best on average.
    const START: f32 = 1_171_491_800.0;
    let a = x * x * x;
    let guess = (a.to_bits() as i32 as f32).mul_add(-0.1, START);
    // SAFETY: for every i32 `b` ≥ 0, START − b/10 lies within 9.5e8 .. 1.18e9, inside i32.
    let guess: i32 = unsafe { guess.to_int_unchecked() };
    let mut y = f32::from_bits(guess as u32);
    for _ in 0..3 {
        let y2 = y * y;
        let y4 = y2 * y2;
        let y10 = y4 * y4 * y2;
        y *= (a * y10).mul_add(-0.1, 1.1);
    }
    y
}

/// `Σ |w − ŵ|^p` in f64.
fn exact_loss(values: &[f32], grid: Grid, max: f32) -> f64 {
    let (scale, zero) = (f64::from(grid.scale), f64::from(grid.zero));
    let term = |&value: &f32| {
        let q = f64::from(grid::code(value, grid.scale, grid.zero, max));
        (f64::from(value) - scale * (q - zero)).abs().powf(f64::from(P))
    };
    values.iter().map(term).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::test_values::uniform;

    fn spec(bits: u32, group_size: usize, symmetric: bool, scale_dtype: ScaleDtype) -> GridSpec {
        GridSpec { bits, group_size, symmetric, scale_dtype, search: Search::None }
    }

    /// Numbers with the tails of real weights.
    fn weights(count: usize, seed: u64) -> Vec<f32> {
        let numbers = uniform(3 * count, seed);
        (0..count).map(|i| 0.03 * (numbers[i] + numbers[count + i]) + 0.1 * numbers[2 * count + i].powi(9)).collect()
    }

    /// The module's formulas as they stand, in f64; stored scales and zero points are rounded as files need them.
    fn naive(values: &[f32], start: Grid, spec: &GridSpec) -> Vec<Grid> {
        let max = f64::from(spec.max_code());
        let shrink = |x: f64, beta: f64| x.signum() * (x.abs() - x.abs().powf(f64::from(P) - 1.0) / beta).max(0.0);
        let (mut grid, mut beta, mut grids) = (start, 10.0, vec![start]);
        let unit = f64::from(start.scale);
        for _ in 0..ROUNDS {
            let (s, z) = (f64::from(grid.scale), f64::from(grid.zero));
            let q: Vec<f64> =
                values.iter().map(|&w| f64::from(grid::code(w, grid.scale, grid.zero, max as f32))).collect();
            let kept: Vec<f64> = q
                .iter()
                .zip(values)
                .map(|(q, &w)| f64::from(w) - unit * shrink((f64::from(w) - s * (q - z)) / unit, beta))
                .collect();
            let mean = q.iter().zip(&kept).map(|(q, kept)| q - kept / s).sum::<f64>() / q.len() as f64;
            let zero = if spec.symmetric { z } else { mean.round_ties_even().clamp(0.0, max) };
            let products: f64 = q.iter().zip(&kept).map(|(q, kept)| (q - zero) * kept).sum();
            let squares: f64 = q.iter().map(|q| (q - zero).powi(2)).sum();
            grid = Grid { scale: spec.scale_dtype.round((products / squares) as f32), zero: zero as f32 };
            grids.push(grid);
            beta *= 1.01;
        }
        grids
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_group_ends_with_the_best_of_the_definition_s_grids(
            bits in prop::sample::select(vec![2u32, 3, 4, 8]),
            count in 1usize..150,
            symmetric: bool,
            dtype in prop::sample::select(vec![ScaleDtype::F16, ScaleDtype::Bf16]),
            size in -2i32..3,
            seed: u64,
        ) {
            let values: Vec<f32> = weights(count, seed).into_iter().map(|x| x * 4f32.powi(size)).collect();
            let spec = spec(bits, 0, symmetric, dtype);
            let (scale, zero) = grid::fit_group(&values, &spec).unwrap();
            let start = Grid { scale, zero: f32::from(zero) };
            let (scale, zero) = fit_group(&values, &spec).unwrap();
            let max = f32::from(spec.max_code());
            let found = exact_loss(&values, Grid { scale, zero: f32::from(zero) }, max);
            prop_assert!(found <= exact_loss(&values, start, max));
            let losses = naive(&values, start, &spec).into_iter().map(|grid| exact_loss(&values, grid, max));
            let least = losses.filter(|loss| loss.is_finite()).fold(f64::INFINITY, f64::min);
            // A sum that lands on the edge between two stored scales may fall to the other side in f32.
            prop_assert!(found <= least * 1.02 + 1e-9, "{found:e} for {least:e}");
        }

        #[test]
        fn the_fast_power_is_the_power(exponent in -8f32..3.0) {
            let x = 10f32.powf(exponent);
            let exact = f64::from(x).powf(-0.3);
            prop_assert!((f64::from(inverse_power(x)) / exact - 1.0).abs() < 1e-6);
        }
    }

    /// One group through twenty rounds of the authors' program, whose zero points are any number and whose scales stay:
    /// bits, whether errors are taken in steps, the zero point after. `fixtures/interop/make_quantised.py` prints them.
    const AUTHORS: [(u32, bool, f32); 6] = [
        (2, false, 0.548_018_3),
        (2, true, 0.513_830_8),
        (3, false, 1.033_917_7),
        (3, true, 1.146_970_7),
        (4, false, 2.865_091_6),
        (4, true, 2.857_590_4),
    ];

    fn authors_group() -> Vec<f32> {
        let value = |i: usize| ((i * 37 + 11) % 64) as f32 - 31.5;
        (0..64).map(|i| value(i) / 400.0 + if i == 5 { 0.4 } else { 0.0 }).collect()
    }

    #[test]
    fn rounds_are_the_authors_rounds() {
        let values = authors_group();
        let (lo, hi, _) = grid::extremes(&values);
        for (bits, in_steps, expected) in AUTHORS {
            let max = f32::from(spec(bits, 0, false, ScaleDtype::F32).max_code());
            let scale = (hi - lo) / max;
            let (mut grid, mut beta) = (Grid { scale, zero: -lo / scale }, BETA);
            let unit = if in_steps { 1.0 / scale } else { 1.0 };
            for _ in 0..ROUNDS {
                let round = look::<true>(&values, grid, max, unit, beta);
                grid.zero = next_zero(&round, grid, values.len());
                beta *= KAPPA;
            }
            assert!((grid.zero - expected).abs() < 1e-4, "{bits} bits, in steps {in_steps}: {}", grid.zero);
        }
    }

    /// What whole zero points cost beside any, and what choosing the scale as well wins back. Over 64 groups of 64: 2 bits
    /// minmax 192.6, any zero point 185.4, whole ones with scales 142.8; 3 bits 106.9, 102.7, 98.2; 4 bits 63.2, 61.1, 61.6.
    #[test]
    fn what_whole_zero_points_lose() {
        let real_loss = |values: &[f32], grid: Grid, max: f32| -> f64 {
            let term = |&w: &f32| {
                let q = (w / grid.scale + grid.zero).round_ties_even().clamp(0.0, max);
                f64::from(w - grid.scale * (q - grid.zero)).abs().powf(f64::from(P))
            };
            values.iter().map(term).sum()
        };
        for (bits, most) in [(2u32, 0.8), (3, 0.97), (4, 1.02)] {
            let spec = spec(bits, 0, false, ScaleDtype::F32);
            let max = f32::from(spec.max_code());
            let (mut ours, mut authors, mut start) = (0.0, 0.0, 0.0);
            for seed in 0..64 {
                let values = weights(64, seed);
                let (lo, hi, _) = grid::extremes(&values);
                let scale = (hi - lo) / max;
                let (mut grid, mut beta, mut best) = (Grid { scale, zero: -lo / scale }, BETA, f64::INFINITY);
                start += real_loss(&values, grid, max);
                for _ in 0..ROUNDS {
                    best = best.min(real_loss(&values, grid, max));
                    grid.zero = next_zero(&look::<true>(&values, grid, max, 1.0 / scale, beta), grid, 64);
                    beta *= KAPPA;
                }
                authors += best.min(real_loss(&values, grid, max));
                let (scale, zero) = fit_group(&values, &spec).unwrap();
                ours += exact_loss(&values, Grid { scale, zero: f32::from(zero) }, max);
            }
            assert!(authors < start && ours < most * authors, "{bits} bits: {ours} for {authors} from {start}");
        }
    }

    #[test]
    fn a_whole_weight_loses_no_more_than_by_round_to_nearest_in_any_group() {
        let weight = weights(24 * 256, 5);
        for bits in [2, 3, 4, 8] {
            for symmetric in [true, false] {
                let spec = spec(bits, 64, symmetric, ScaleDtype::Bf16);
                let hqq = quantize(&weight, 24, 256, &spec).unwrap();
                let rtn = grid::round_to_nearest(&weight, 24, 256, &spec).unwrap();
                let losses = |q: &Quantised| -> Vec<f64> {
                    let terms = |(q, w): (&f32, &f32)| (f64::from(*w) - f64::from(*q)).abs().powf(0.7);
                    let all: Vec<f64> = q.dequantize().iter().zip(&weight).map(terms).collect();
                    all.chunks(64).map(|group| group.iter().sum()).collect()
                };
                let (hqq, rtn) = (losses(&hqq), losses(&rtn));
                // f32 rounds ŵ once more than the loss that was compared.
                assert!(hqq.iter().zip(&rtn).all(|(hqq, rtn)| *hqq <= rtn * (1.0 + 1e-6)), "{bits} bits");
                let [hqq, rtn]: [f64; 2] = [hqq, rtn].map(|losses| losses.iter().sum());
                assert!(bits == 8 || hqq < 0.99 * rtn, "{bits} bits, symmetric {symmetric}: {hqq} for {rtn}");
            }
        }
    }

    #[test]
    fn twice_the_weight_is_twice_the_grid_and_odd_groups_are_left_alone() {
        let values = weights(64, 9);
        let doubled: Vec<f32> = values.iter().map(|x| 2.0 * x).collect();
        let spec = spec(3, 0, false, ScaleDtype::Bf16);
        let (one, two) = (fit_group(&values, &spec).unwrap(), fit_group(&doubled, &spec).unwrap());
        assert_eq!((2.0 * one.0, one.1), two);
        for odd in [vec![0.0; 64], vec![0.25; 64], vec![1e-44; 64], vec![1e38, -1e38]] {
            let spec = GridSpec { scale_dtype: ScaleDtype::F32, ..spec };
            let (scale, zero) = fit_group(&odd, &spec).unwrap();
            assert!(scale.is_finite() && scale > 0.0 && zero <= 7, "{scale} {zero}");
        }
        assert!(fit_group(&[f32::NAN, 1.0], &spec).is_err());
    }
}
