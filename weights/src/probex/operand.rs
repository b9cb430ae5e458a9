//! The layer a probe looks at: a matrix, or the product of an adapter's two factors, which is never formed.

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
            Self::LowRank { .. } => self.dense((rows, columns)).iter().map(|&x| f64::from(x) * f64::from(x)).sum(),
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
