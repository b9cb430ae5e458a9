//! Matrix products on slices, on the calling thread: what the probe is made of.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};

/// A row-major matrix to read, as it lies or transposed.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a>(MatRef<'a, f32>);

/// `values` as (rows, columns).
///
/// # Panics
/// If there are not so many values.
pub(super) fn matrix(values: &[f32], rows: usize, columns: usize) -> Matrix<'_> {
    Matrix(MatRef::from_row_major_slice(values, rows, columns))
}

/// The columns `first..first + columns` of `values`, whose rows are `stride` long.
pub(super) fn columns_of(values: &[f32], rows: usize, stride: usize, first: usize, columns: usize) -> Matrix<'_> {
    Matrix(MatRef::from_row_major_slice(values, rows, stride).subcols(first, columns))
}

impl Matrix<'_> {
    /// Rows for columns.
    pub(super) fn t(self) -> Self {
        Self(self.0.transpose())
    }
}

/// `out = factor · a b`, or `+=` where `add`; `out` is row-major.
///
/// # Panics
/// If the sizes contradict each other.
pub(super) fn product(out: &mut [f32], a: Matrix<'_>, b: Matrix<'_>, factor: f32, add: bool) {
    let (rows, columns) = (a.0.nrows(), b.0.ncols());
    product_into(MatMut::from_column_major_slice_mut(out, columns, rows).transpose_mut(), a, b, factor, add);
}

/// As [`product`], into (a part of) a matrix.
pub(super) fn product_into(out: MatMut<'_, f32>, a: Matrix<'_>, b: Matrix<'_>, factor: f32, add: bool) {
    let accumulate = if add { Accum::Add } else { Accum::Replace };
    matmul(out, accumulate, a.0, b.0, factor, Par::Seq);
}
