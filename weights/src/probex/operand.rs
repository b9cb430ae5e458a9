//! The layer a probe looks at: a matrix, or the product of an adapter's two factors, of which a few rows at a time are
//! formed at most, save by [`Operand::dense`].

use std::{borrow::Cow, ops::Range};

use super::product::{matrix, product};

/// One model's layer X (rows, columns).
#[derive(Debug, Clone, Copy)]
pub enum Operand<'a> {
    /// The matrix itself, row-major.
    Dense(&'a [f32]),
    /// X = B A of a low-rank adapter. Only the product says what the adapter does: B G and G⁻¹ A are the same adapter.
    LowRank {
        /// B (rows, rank).
        up: &'a [f32],
        /// A (rank, columns).
        down: &'a [f32],
        /// Inner size.
        rank: usize,
    },
}

impl Operand<'_> {
    /// `out = factor · X u` (rows, n) for `u` (columns, n), or `+=` where `add`.
    pub(super) fn times(
        &self,
        (rows, columns): (usize, usize),
        u: &[f32],
        out: &mut [f32],
        factor: f32,
        add: bool,
        inner: &mut Vec<f32>,
    ) {
        let n = u.len() / columns;
        match *self {
            Self::Dense(x) => product(out, matrix(x, rows, columns), matrix(u, columns, n), factor, add),
            Self::LowRank { up, down, rank } => {
                inner.resize(rank * n, 0.0);
                product(inner, matrix(down, rank, columns), matrix(u, columns, n), 1.0, false);
                product(out, matrix(up, rows, rank), matrix(inner, rank, n), factor, add);
            }
        }
    }

    /// `out = factor · Xᵀ u` (columns, n) for `u` (rows, n), or `+=` where `add`.
    pub(super) fn transposed_times(
        &self,
        (rows, columns): (usize, usize),
        u: &[f32],
        out: &mut [f32],
        factor: f32,
        add: bool,
        inner: &mut Vec<f32>,
    ) {
        let n = u.len() / rows;
        match *self {
            Self::Dense(x) => product(out, matrix(x, rows, columns).t(), matrix(u, rows, n), factor, add),
            Self::LowRank { up, down, rank } => {
                inner.resize(rank * n, 0.0);
                product(inner, matrix(up, rows, rank).t(), matrix(u, rows, n), 1.0, false);
                product(out, matrix(down, rank, columns).t(), matrix(inner, rank, n), factor, add);
            }
        }
    }

    /// Σ X².
    pub fn squares(&self, (rows, columns): (usize, usize)) -> f64 {
        let square = |x: &[f32]| x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        match *self {
            Self::Dense(x) => square(x),
            // ‖B A‖² = Σ (Bᵀ B) ∘ (A Aᵀ), both (rank, rank) and symmetric.
            Self::LowRank { up, down, rank } => {
                debug_assert_eq!((up.len(), down.len()), (rows * rank, rank * columns));
                let dot = |a: f32, b: f32| f64::from(a) * f64::from(b);
                let mut sum = 0.0;
                for (i, j) in (0..rank).flat_map(|i| (0..=i).map(move |j| (i, j))) {
                    let ups: f64 = up.chunks_exact(rank).map(|row| dot(row[i], row[j])).sum();
                    let (one, other) = (&down[i * columns..][..columns], &down[j * columns..][..columns]);
                    let downs: f64 = one.iter().zip(other).map(|(&a, &b)| dot(a, b)).sum();
                    sum += if i == j { ups * downs } else { 2.0 * ups * downs };
                }
                sum.max(0.0)
            }
        }
    }

    /// The elements `range` of the row-major matrix; of a product, the rows they lie in are formed.
    pub(super) fn part(&self, columns: usize, range: Range<usize>) -> Cow<'_, [f32]> {
        match *self {
            Self::Dense(x) => x[range].into(),
            Self::LowRank { up, down, rank } => {
                let (first, end) = (range.start / columns, range.end.div_ceil(columns));
                let mut out = vec![0.0; (end - first) * columns];
                let up = matrix(&up[first * rank..end * rank], end - first, rank);
                product(&mut out, up, matrix(down, rank, columns), 1.0, false);
                out[range.start - first * columns..][..range.len()].to_vec().into()
            }
        }
    }

    /// The matrix, formed.
    pub fn dense(&self, (rows, columns): (usize, usize)) -> Vec<f32> {
        match *self {
            Self::Dense(x) => x.to_vec(),
            Self::LowRank { up, down, rank } => {
                let mut out = vec![0.0; rows * columns];
                product(&mut out, matrix(up, rows, rank), matrix(down, rank, columns), 1.0, false);
                out
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    #[test]
    fn a_product_is_measured_and_read_in_parts_as_the_matrix_it_stands_for() {
        let (rows, columns, rank) = (7, 5, 3);
        let mut stream = Stream::new(1, "test", 0);
        let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| stream.below(2001) as f32 / 1000.0 - 1.0).collect() };
        let (up, down) = (random(rows * rank), random(rank * columns));
        let product = Operand::LowRank { up: &up, down: &down, rank };
        let dense = product.dense((rows, columns));
        let expected = Operand::Dense(&dense).squares((rows, columns));
        let found = product.squares((rows, columns));
        assert!((found - expected).abs() <= 1e-6 * expected, "{found} for {expected}");
        for range in [0..35, 0..1, 4..6, 12..31, 34..35] {
            let part = product.part(columns, range.clone());
            let largest = part.iter().zip(&dense[range.clone()]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(part.len() == range.len() && largest <= 1e-6, "{range:?}: {largest}");
        }
    }
}
