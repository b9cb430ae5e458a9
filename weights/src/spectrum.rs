//! Spectra of weight matrices: how a layer's singular values are spread, without running the model.
//!
//! For W (m × n), m ≥ n, the eigenvalues λ of WᵀW are the squared singular values. Trained layers have heavy tails,
//! `density(λ) ∝ λ^-α` above some λ_min; α near 2 to 4 goes with well-trained layers (Martin, Peng and Mahoney 2021,
//! "Predicting trends in the quality of state-of-the-art neural networks without access to training or testing data").
//! A random matrix with entries of variance σ² has no eigenvalue beyond σ²(√m + √n)² (Marchenko and Pastur 1967);
//! what lies above are spikes that training put there.

use rayon::prelude::*;
use serde::Serialize;

use crate::{Result, TensorView, linalg, statistics};

/// Matrices whose smaller side is shorter have too few eigenvalues for a fit.
pub const LEAST_SIDE: usize = 8;

/// Matrices of more numbers than this (512 MiB as f32) are refused rather than held in memory.
const MOST_ELEMENTS: usize = 1 << 27;

/// Eigenvalues below this share of the largest are rounding noise of the Gram matrix, not part of a tail.
const NOISE: f64 = 1e-12;

/// Windows of the aspect-ratio correction, across either side.
const WINDOWS: usize = 2;

/// What the singular values of one matrix tell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spectrum {
    /// (rows, columns) of the matrix, see [`statistics::matrix`].
    pub shape: (usize, usize),
    /// The largest singular value.
    pub spectral_norm: f64,
    /// ‖W‖_F² / σ_max²: how many directions of the largest size would carry the same energy.
    pub stable_rank: f64,
    /// exp(entropy of σ / Σσ) (Roy and Vetterli 2007): how many directions are in use.
    pub effective_rank: f64,
    /// The power-law exponent of the eigenvalues' tail.
    pub tail: Option<Tail>,
    /// The same over square windows, which takes the matrix' aspect ratio out, where it was asked for; see
    /// [`windowed_tail`].
    pub windowed: Option<Tail>,
    /// The largest eigenvalue a random matrix of the same shape and energy would have, σ²(√m + √n)² with
    /// σ² = ‖W‖_F² / (m n).
    pub marchenko_pastur_edge: f64,
    /// Eigenvalues beyond that edge.
    pub spikes: usize,
    /// All singular values, descending.
    pub singular_values: Vec<f64>,
}

/// Whether the tail is fitted over square windows as well, which takes half as long again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// The exponent of the matrix as it is, and of its windows.
    Fitted,
    /// The exponent of the matrix as it is.
    Left,
}

/// A power law fitted to the tail of a set of positive numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tail {
    /// The exponent α of the density λ^-α.
    pub alpha: f64,
    /// Where the tail begins.
    pub lambda_min: f64,
    /// Numbers in the tail.
    pub count: usize,
    /// Kolmogorov-Smirnov distance between the tail and the law.
    pub distance: f64,
    /// Standard error of α: (α − 1) / √count.
    pub error: f64,
}

/// The spectrum of `view` as a matrix; `None` where it is none, has a side below [`LEAST_SIDE`], holds numbers that are
/// not finite or only zeros, or is too large to be held in memory (2²⁷ numbers).
///
/// # Errors
/// If the tensor cannot be read.
pub fn spectrum(view: &TensorView, windows: Windows) -> Result<Option<Spectrum>> {
    let (rows, columns) = statistics::matrix(view.shape());
    let short = rows.min(columns);
    if short < LEAST_SIDE || !view.dtype().is_float() || view.elements() > MOST_ELEMENTS {
        return Ok(None);
    }
    let values = view.to_f32()?;
    view.release();
    Ok(of_matrix(&values, rows, columns, windows))
}

/// The spectrum of a matrix in memory (rows × columns, row-major); `None` as in [`spectrum`].
pub fn of_matrix(values: &[f32], rows: usize, columns: usize, windows: Windows) -> Option<Spectrum> {
    let eigenvalues = linalg::squared_singular_values(values, rows, columns)?;
    let largest = *eigenvalues.last().filter(|&&largest| largest > 0.0)?;
    let energy: f64 = eigenvalues.iter().sum();
    let singular_values: Vec<f64> = eigenvalues.iter().rev().map(|x| x.sqrt()).collect();
    let total: f64 = singular_values.iter().sum();
    let entropy: f64 = singular_values.iter().map(|s| s / total).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
    let (m, n) = (rows as f64, columns as f64);
    let edge = energy / (m * n) * (m.sqrt() + n.sqrt()).powi(2);
    Some(Spectrum {
        shape: (rows, columns),
        spectral_norm: largest.sqrt(),
        stable_rank: energy / largest,
        effective_rank: entropy.exp(),
        tail: fit_tail(&eigenvalues),
        windowed: match windows {
            Windows::Fitted => windowed_tail(values, rows, columns),
            Windows::Left => None,
        },
        marchenko_pastur_edge: edge,
        spikes: eigenvalues.iter().filter(|&&x| x > edge).count(),
        singular_values,
    })
}

/// Fits a power law to the tail of `ascending` (Clauset, Shalizi and Newman 2009, "Power-law distributions in empirical
/// data", eq. 3.1 and section 3.3): every number is tried as λ_min, α = 1 + n / Σ ln(λ / λ_min) over the n numbers from
/// there on, and the λ_min whose law lies nearest to the numbers in the Kolmogorov-Smirnov distance is taken.
///
/// `None` for fewer than [`LEAST_SIDE`] numbers above the noise, or if they are all the same.
pub fn fit_tail(ascending: &[f64]) -> Option<Tail> {
    let largest = ascending.last()?;
    let first = ascending.partition_point(|&x| x <= largest * NOISE);
    let values = &ascending[first..];
    if values.len() < LEAST_SIDE {
        return None;
    }
    let logs: Vec<f64> = values.iter().map(|x| x.ln()).collect();
    let mut best: Option<Tail> = None;
    let mut sum = 0.0; // Σ ln λ from here on
    let sums: Vec<f64> = {
        let mut sums: Vec<f64> = logs
            .iter()
            .rev()
            .map(|log| {
                sum += log;
                sum
            })
            .collect();
        sums.reverse();
        sums
    };
    for start in 0..values.len() - 1 {
        let n = (values.len() - start) as f64;
        let spread = sums[start] - n * logs[start];
        let alpha = 1.0 + n / spread;
        if !(spread > 0.0 && alpha.is_finite()) {
            continue;
        }
        // The search for the least distance may stop at the first deviation beyond the best one: exact, and in time
        // linear in most places. Large numbers deviate first.
        let limit = best.map_or(f64::INFINITY, |best| best.distance);
        let mut distance = 0.0f64;
        for at in (start..values.len()).rev() {
            let law = 1.0 - ((1.0 - alpha) * (logs[at] - logs[start])).exp();
            distance = distance.max((law - (at - start) as f64 / n).abs());
            if distance >= limit {
                break;
            }
        }
        if distance < limit {
            let error = (alpha - 1.0) / n.sqrt();
            best = Some(Tail { alpha, lambda_min: values[start], count: values.len() - start, distance, error });
        }
    }
    best
}

/// The exponent without the aspect ratio's share in it. The spectrum of an elongated matrix is narrower whatever it has
/// learnt, which makes its α larger; so all matrices are looked at through windows of one shape, as FARMS does (Hu and
/// others, ICML 2025, "Eigenspectrum analysis of neural networks without aspect ratio bias").
///
/// The windows are squares of half the shorter side: two across the shorter side and two at the ends of
/// the longer. The eigenvalues of all windows together are one sample, to which [`fit_tail`] is applied.
pub fn windowed_tail(w: &[f32], rows: usize, columns: usize) -> Option<Tail> {
    let side = rows.min(columns) / 2;
    if side < LEAST_SIDE {
        return None;
    }
    let places = |length: usize| (0..WINDOWS).map(move |at| at * (length - side) / (WINDOWS - 1));
    let windows: Vec<(usize, usize)> =
        places(rows).flat_map(|row| places(columns).map(move |column| (row, column))).collect();
    let spectra: Option<Vec<Vec<f64>>> = windows
        .into_par_iter()
        .map(|(row, column)| {
            let window: Vec<f32> =
                (row..row + side).flat_map(|row| &w[row * columns + column..][..side]).copied().collect();
            linalg::squared_singular_values(&window, side, side)
        })
        .collect();
    let mut all = spectra?.concat();
    all.sort_by(f64::total_cmp);
    fit_tail(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in (0, 1), evenly spread and shuffled by a multiplier.
    fn uniform(count: usize) -> impl Iterator<Item = f64> {
        (0..count).map(move |i| ((i * 7919 % count) as f64 + 0.5) / count as f64)
    }

    /// The definition of the fit, place by place, without shortcuts.
    fn naive_fit(ascending: &[f64]) -> (f64, f64) {
        let mut best = (f64::INFINITY, 0.0);
        for start in 0..ascending.len() - 1 {
            let tail = &ascending[start..];
            let n = tail.len() as f64;
            let alpha = 1.0 + n / tail.iter().map(|x| (x / tail[0]).ln()).sum::<f64>();
            let distance = tail
                .iter()
                .enumerate()
                .map(|(i, x)| (1.0 - (x / tail[0]).powf(1.0 - alpha) - i as f64 / n).abs())
                .fold(0.0, f64::max);
            if distance < best.0 {
                best = (distance, alpha);
            }
        }
        best
    }

    #[test]
    fn the_fit_is_the_defined_one_and_finds_the_exponent_of_a_power_law() {
        for alpha in [1.7, 2.5, 4.0] {
            let mut values: Vec<f64> = uniform(997).map(|u| (1.0 - u).powf(-1.0 / (alpha - 1.0))).collect();
            values.extend(uniform(300).map(|u| 0.9 * u)); // a bulk below the tail
            values.sort_by(f64::total_cmp);
            let tail = fit_tail(&values).unwrap();
            let (distance, expected) = naive_fit(&values);
            assert!((tail.alpha - expected).abs() < 1e-9 && (tail.distance - distance).abs() < 1e-12, "{tail:?}");
            assert!((tail.alpha - alpha).abs() < 0.1, "{tail:?}");
        }
    }

    #[test]
    fn a_fit_needs_numbers_that_differ() {
        assert_eq!(fit_tail(&[]), None);
        assert_eq!(fit_tail(&[1.0; 7]), None);
        assert_eq!(fit_tail(&[1.0; 70]), None);
        assert_eq!(fit_tail(&[0.0; 70]), None);
    }

    /// About normal numbers: sums of twelve uniforms.
    fn noise(count: usize) -> Vec<f32> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..count).map(|_| (0..12).map(|_| next()).sum::<f32>() - 6.0).collect()
    }

    #[test]
    fn noise_stays_below_the_edge_and_a_planted_direction_sticks_out() {
        let (rows, columns) = (120, 60);
        let mut values = noise(rows * columns);
        let plain = of_matrix(&values, rows, columns, Windows::Left).unwrap();
        assert!(plain.spikes <= 1, "{}", plain.spikes);
        assert!(plain.stable_rank > 15.0 && plain.effective_rank > 45.0);
        // Add 60 u vᵀ with unit vectors.
        for row in 0..rows {
            for column in 0..columns {
                let u = if row % 2 == 0 { 1.0 } else { -1.0 } / (rows as f32).sqrt();
                values[row * columns + column] += 60.0 * u / (columns as f32).sqrt();
            }
        }
        let spiked = of_matrix(&values, rows, columns, Windows::Left).unwrap();
        assert!((spiked.spectral_norm - 60.0).abs() < 3.0, "{}", spiked.spectral_norm);
        assert!(spiked.spikes >= 1 && spiked.stable_rank < 4.0);
        let energy: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
        let squares: f64 = spiked.singular_values.iter().map(|s| s * s).sum();
        assert!((energy / squares - 1.0).abs() < 1e-9);
    }

    #[test]
    fn ranks_and_edge_of_known_singular_values_are_those_of_the_definitions() {
        /// Eigenvalues are near 1e-16 of the largest, which is 4096 times the smallest.
        const MAX_RELATIVE: f64 = 1e-9;
        let close = |name: &str, found: f64, expected: f64| {
            assert!((found / expected - 1.0).abs() < MAX_RELATIVE, "{name}: {found} for {expected}");
        };
        // Halves of halves: shares 1/2, 1/4, … 1/128, 1/128, whose entropy is 2 − 2/128 bits. The energy is
        // (4⁷ − 1) / 3 + 1 = 5462, so the edge is 5462 / (m n) · (m + n + 2 √(m n)).
        let sizes = [64.0f32, 32.0, 16.0, 8.0, 4.0, 2.0, 1.0, 1.0];
        for (rows, columns) in [(12, 8), (8, 12)] {
            let mut values = vec![0.0; 96];
            // Not in order, and one turned round.
            for (at, &size) in sizes.iter().enumerate() {
                let place = (3 * at + 1) % 8;
                values[place * columns + place] = if at == 2 { -size } else { size };
            }
            let found = of_matrix(&values, rows, columns, Windows::Left).unwrap();
            assert_eq!(found.shape, (rows, columns));
            close("norm", found.spectral_norm, 64.0);
            close("stable rank", found.stable_rank, 5462.0 / 4096.0);
            close("effective rank", found.effective_rank, 2f64.powf(2.0 - 2.0 / 128.0));
            close("edge", found.marchenko_pastur_edge, 5462.0 / 96.0 * (20.0 + 2.0 * 96f64.sqrt()));
            // The edge is 2253: of 4096, 1024, … only the first lies beyond.
            assert_eq!(found.spikes, 1);
            assert_eq!(found.singular_values.len(), 8);
            for (found, size) in found.singular_values.iter().zip(sizes) {
                close("singular value", *found, f64::from(size));
            }
        }
        // Nine alike: all ranks are 9, σ² is 3² · 9 / 81 = 1 and the edge (3 + 3)² = 36.
        let mut values = vec![0.0; 81];
        (0..9).for_each(|at| values[10 * at] = 3.0);
        let found = of_matrix(&values, 9, 9, Windows::Left).unwrap();
        close("stable rank", found.stable_rank, 9.0);
        close("effective rank", found.effective_rank, 9.0);
        close("edge", found.marchenko_pastur_edge, 36.0);
        assert_eq!(found.spikes, 0);
    }

    #[test]
    fn windows_take_the_aspect_ratio_out() {
        let alpha = |rows: usize, columns: usize| {
            let spectrum = of_matrix(&noise(rows * columns), rows, columns, Windows::Fitted).unwrap();
            (spectrum.tail.unwrap().alpha, spectrum.windowed.unwrap().alpha)
        };
        let (square, elongated) = (alpha(96, 96), alpha(96, 960));
        assert!(elongated.0 > 2.0 * square.0, "{square:?} {elongated:?}");
        // Fits to noise vary, but most of the difference is gone.
        let difference = |a: f64, b: f64| (a / b).ln().abs();
        assert!(
            difference(elongated.1, square.1) < 0.5 * difference(elongated.0, square.0),
            "{square:?} {elongated:?}"
        );
    }

    #[test]
    fn matrices_without_a_spectrum_have_none() {
        assert_eq!(of_matrix(&[0.0; 400], 20, 20, Windows::Fitted), None);
        assert_eq!(of_matrix(&[f32::NAN; 400], 20, 20, Windows::Fitted), None);
    }
}
