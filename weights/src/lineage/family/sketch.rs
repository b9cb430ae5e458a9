//! A model in a few hundred kilobytes, from which distances to other models can be told.
//!
//! Every tensor `w` of n numbers becomes k cells: with a hash that gives each index e a cell h(e) and a sign s(e),
//!     cell_c = Σ_{e: h(e) = c} s(e) · w_e
//! (the count sketch of Charikar, Chen and Farach-Colton 2002). The map is linear, so a sketch of a difference is the
//! difference of sketches, and Σ_c (a_c − b_c)² is an unbiased estimate of ‖a − b‖² with a relative variance of at most
//! 2/k. Unlike a sample of the values it misses no change, however few elements changed. Over T tensors of like size the
//! distance of two models has a relative error near 1/√(2·k·T), half a percent for the usual 32,768 cells.
//!
//! The hash depends on what a tensor is in its block and on its shape, not on the block's number, so that blocks can be
//! found again under other numbers. Cells of k and of k/2 agree: the half has the sums of c and c + k/2.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::super::{
    matching::{self, Key},
    side::{Array, Model},
};
use crate::Result;

/// Cells of a model, shared among its tensors.
const CELLS: usize = 1 << 15;
/// Cells of a tensor at least, however many there are, and at most.
const CELLS_OF_TENSOR: [usize; 2] = [8, 1024];
/// Elements of a piece; pieces of a tensor are read side by side and joined in order.
const PIECE: usize = 1 << 18;
/// Pieces in flight.
const WAVE: usize = 4;

/// One tensor.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub shape: Box<[usize]>,
    /// Numbers that are finite.
    pub finite: u64,
    /// More than one row and column: the tensors that tell relatives from strangers.
    pub matrix: bool,
    pub sum: f64,
    pub squares: f64,
    /// Fisher's kurtosis, n Σ(x−μ)⁴ / (Σ(x−μ)²)² − 3; `None` for a constant.
    pub kurtosis: Option<f64>,
    pub cells: Box<[f32]>,
}

/// What is kept of a model.
#[derive(Debug, Clone)]
pub struct Sketch {
    pub(super) parts: BTreeMap<Key, Part>,
    pub(super) parameters: u64,
}

impl Sketch {
    /// Reads all numbers of `model` once. Numbers that are not finite count as 0.
    ///
    /// Memory beside the sketch is a few pieces a thread, and packed tensors decoded whole, one a thread; the same
    /// numbers come out for any number of threads.
    ///
    /// # Errors
    /// If an array cannot be read or decoded.
    pub fn of(model: &Model) -> Result<Self> {
        let keys = matching::keys(model);
        let share = CELLS / model.arrays().len().max(1);
        let cells = match share {
            0 => CELLS_OF_TENSOR[0],
            share => (1 << share.ilog2()).clamp(CELLS_OF_TENSOR[0], CELLS_OF_TENSOR[1]),
        };
        let part = |(key, array): (&Key, &Array)| Ok((key.clone(), Part::of(key, array, cells)?));
        let parts: Result<Vec<(Key, Part)>> = keys.par_iter().zip(model.arrays()).map(part).collect();
        Ok(Self { parts: parts?.into_iter().collect(), parameters: model.parameters() })
    }

    /// Elements of all tensors.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Bytes of the numbers kept.
    pub fn bytes(&self) -> usize {
        self.parts.values().map(|part| size_of::<Part>() + size_of_val(&*part.cells)).sum()
    }
}

/// SplitMix64's output function.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The hash's start for a tensor: the same for that tensor of every block.
fn seed(key: &Key, shape: &[usize]) -> u64 {
    let mut state = 0x5c2a_91e7_u64;
    let mut take = |word: u64| state = mix(state.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word);
    key.kind.bytes().for_each(|byte| take(u64::from(byte)));
    take(key.expert.map_or(0, |expert| expert as u64 + 1));
    shape.iter().for_each(|&n| take(n as u64));
    state
}

/// Sums over a piece.
struct Sums {
    finite: u64,
    powers: [f64; 4],
    cells: Vec<f64>,
}

impl Sums {
    fn of(values: &[f32], first: usize, seed: u64, cells: usize) -> Self {
        let mut sums = Self { finite: 0, powers: [0.0; 4], cells: vec![0.0; cells] };
        for (at, &value) in (first as u64..).zip(values) {
            if !value.is_finite() {
                continue;
            }
            let value = f64::from(value);
            let square = value * value;
            sums.finite += 1;
            for (sum, power) in sums.powers.iter_mut().zip([value, square, square * value, square * square]) {
                *sum += power;
            }
            let hash = mix(seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            let signed = if hash >> 63 == 0 { value } else { -value };
            sums.cells[hash as usize & (cells - 1)] += signed;
        }
        sums
    }

    fn add(&mut self, other: &Self) {
        self.finite += other.finite;
        self.powers.iter_mut().zip(other.powers).for_each(|(sum, other)| *sum += other);
        self.cells.iter_mut().zip(&other.cells).for_each(|(sum, other)| *sum += other);
    }

    fn kurtosis(&self) -> Option<f64> {
        let n = self.finite as f64;
        let [s1, s2, s3, s4] = self.powers.map(|sum| sum / n);
        let variance = s2 - s1 * s1;
        let fourth = s4 - 4.0 * s1 * s3 + 6.0 * s1 * s1 * s2 - 3.0 * s1.powi(4);
        // Of a constant only rounding is left.
        let spread = variance > 1e-12 * s2;
        Some(fourth / (variance * variance) - 3.0).filter(|kurtosis| spread && kurtosis.is_finite())
    }
}

impl Part {
    fn of(key: &Key, array: &Array, cells: usize) -> Result<Self> {
        let (rows, columns) = array.matrix();
        let seed = seed(key, array.shape());
        let mut all = Sums { finite: 0, powers: [0.0; 4], cells: vec![0.0; cells] };
        if rows > 0 && columns > 0 {
            let opened = array.open()?;
            let step = (PIECE / columns).max(1);
            let starts: Vec<usize> = (0..rows).step_by(step).collect();
            for wave in starts.chunks(WAVE) {
                let read = |&start: &usize| -> Result<Sums> {
                    let end = (start + step).min(rows);
                    let mut values = vec![0.0; (end - start) * columns];
                    opened.read(start..end, &mut values)?;
                    Ok(Sums::of(&values, start * columns, seed, cells))
                };
                let sums: Vec<Result<Sums>> = wave.par_iter().map(read).collect();
                for sums in sums {
                    all.add(&sums?);
                }
            }
        }
        // Beyond the range of f32 there are only numbers that no training gives.
        let cell = |&cell: &f64| cell.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
        Ok(Self {
            shape: array.shape().into(),
            finite: all.finite,
            matrix: rows > 1 && columns > 1,
            sum: all.powers[0],
            squares: all.powers[1],
            kurtosis: all.kurtosis(),
            cells: all.cells.iter().map(cell).collect(),
        })
    }

    /// Σ (a_c − b_c)², the estimate of ‖a − b‖².
    pub fn distance(&self, other: &Self) -> f64 {
        let square = |a: f64, b: f64| (a - b) * (a - b);
        let (a, b) = (&self.cells, &other.cells);
        if a.len() == b.len() {
            return a.iter().zip(b).map(|(&a, &b)| square(f64::from(a), f64::from(b))).sum();
        }
        let cells = a.len().min(b.len());
        let folded = |of: &[f32], at: usize| -> f64 { of.iter().skip(at).step_by(cells).map(|&c| f64::from(c)).sum() };
        (0..cells).map(|at| square(folded(a, at), folded(b, at))).sum()
    }

    /// Pearson's correlation of the elements of two tensors of one shape, as far as the sketches tell it.
    pub fn correlation(&self, other: &Self) -> Option<f64> {
        let n = self.finite.min(other.finite) as f64;
        let product = (self.squares + other.squares - self.distance(other)) / 2.0;
        let variance = |part: &Self| part.squares - part.sum * part.sum / part.finite as f64;
        let spread = (variance(self) * variance(other)).sqrt();
        let found = (product - self.sum * other.sum / n) / spread;
        Some(found.clamp(-1.0, 1.0)).filter(|_| spread > 0.0 && spread.is_finite() && found.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(n: usize, seed: u64) -> Vec<f32> {
        let uniform =
            |at: u64| (mix(seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15))) >> 40) as f32 / 16_777_216.0;
        // A sum of twelve uniform numbers is near enough to normal here.
        (0..n as u64).map(|at| (0..12).map(|part| uniform(12 * at + part)).sum::<f32>() - 6.0).collect()
    }

    fn part(values: &[f32], cells: usize) -> Part {
        let sums = Sums::of(values, 0, 7, cells);
        Part {
            shape: [2, values.len() / 2].into(),
            finite: sums.finite,
            matrix: true,
            sum: sums.powers[0],
            squares: sums.powers[1],
            kurtosis: sums.kurtosis(),
            cells: sums.cells.iter().map(|&cell| cell as f32).collect(),
        }
    }

    /// The definitions, element by element.
    #[test]
    fn sketches_tell_distances_and_kurtosis() {
        let (a, noise) = (normal(40_000, 1), normal(40_000, 2));
        let b: Vec<f32> = a.iter().zip(&noise).map(|(a, n)| a + 0.1 * n).collect();
        let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let (x, y) = (part(&a, 1024), part(&b, 1024));
        // The relative error is normal with deviation √(2/1024) = 0.044.
        assert!((x.distance(&y) / exact - 1.0).abs() < 0.15);
        assert!((x.correlation(&y).unwrap() - 1.0 / 1.01f64.sqrt()).abs() < 0.01);
        assert!(x.correlation(&part(&noise, 1024)).unwrap().abs() < 0.15);
        let mean = a.iter().map(|&x| f64::from(x)).sum::<f64>() / 40_000.0;
        let moment = |power| a.iter().map(|&x| (f64::from(x) - mean).powi(power)).sum::<f64>() / 40_000.0;
        assert!((x.kurtosis.unwrap() - (moment(4) / moment(2).powi(2) - 3.0)).abs() < 1e-9);
    }

    #[test]
    fn a_single_changed_element_is_not_missed() {
        let a = normal(10_000, 3);
        let mut b = a.clone();
        b[7777] += 0.5;
        let found = part(&a, 64).distance(&part(&b, 64));
        assert!((found - 0.25).abs() < 1e-3, "{found}");
    }

    #[test]
    fn sketches_of_different_sizes_are_folded() {
        let (a, b) = (normal(5000, 4), normal(5000, 5));
        let (small, folded) = (part(&a, 64).distance(&part(&b, 64)), part(&a, 256).distance(&part(&b, 64)));
        assert!((small - folded).abs() < 1e-3 * small);
    }

    #[test]
    fn numbers_that_are_not_finite_and_constants_do_no_harm() {
        let hostile = part(&[f32::NAN, f32::INFINITY, 1.0, f32::MAX, f32::MAX, -0.0], 8);
        assert_eq!(hostile.finite, 4);
        assert!(hostile.distance(&hostile) == 0.0);
        let constant = part(&[3.5; 100], 8);
        assert!(constant.kurtosis.is_none() && constant.correlation(&hostile).is_none());
    }
}
