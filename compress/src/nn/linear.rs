//! The three products of a linear layer, on the `gemm` crate, cut into pieces by the shapes alone.
//!
//! ```text
//! y = x wᵀ        ∂x = ∂y w        ∂w += ∂yᵀ x           x (rows, inputs), w (outputs, inputs), y (rows, outputs)
//! ```

use rayon::prelude::*;

use crate::kernel::SharedMut;

/// Results of one piece along the side that is cut.
const PIECE: usize = 128;

/// Multiply-adds below which threads cost more than they bring.
const WORTH_THREADS: usize = 1 << 20;

/// The sides of the products.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
}

/// A matrix to read: values, and how far apart rows and columns lie.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    values: &'a [f32],
    row: usize,
    column: usize,
}

impl Matrix<'_> {
    /// Panics if a matrix of that size would leave the values.
    fn check(&self, rows: usize, columns: usize) {
        let last = (rows - 1) * self.row + (columns - 1) * self.column;
        assert!(last < self.values.len(), "a matrix of {rows} × {columns} in {} values", self.values.len());
    }
}

/// `out (m, n) = a (m, k) · b (k, n)`, or `+=` if `add`; rows of `out` lie `row` values apart. Columns are cut into pieces.
fn product(m: usize, k: usize, n: usize, a: Matrix<'_>, b: Matrix<'_>, (out, row): (&mut [f32], usize), add: bool) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(k > 0 && (m - 1) * row + n <= out.len(), "the product of {m} × {n} does not fit");
    a.check(m, k);
    b.check(k, n);
    let out = SharedMut::new(out);
    let piece = |piece: usize| {
        let first = piece * PIECE;
        let columns = PIECE.min(n - first);
        // SAFETY: all three matrices lie in their slices, as checked above, and these columns of `out` are this piece's.
        unsafe {
            gemm::gemm(
                m,
                columns,
                k,
                out.at(first),
                1,
                row as isize,
                add,
                a.values.as_ptr(),
                a.column as isize,
                a.row as isize,
                b.values.as_ptr().add(first * b.column),
                b.column as isize,
                b.row as isize,
                1.0f32,
                1.0f32,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    };
    match m * k * n >= WORTH_THREADS {
        true => (0..n.div_ceil(PIECE)).into_par_iter().for_each(piece),
        false => (0..n.div_ceil(PIECE)).for_each(piece),
    }
}

/// `y = x wᵀ`; a row of `x` and of `y` lies as far from the next as is given with it.
pub(crate) fn forward(shape: Shape, x: (&[f32], usize), w: &[f32], y: (&mut [f32], usize)) {
    let Shape { rows, inputs, outputs } = shape;
    let a = Matrix { values: x.0, row: x.1, column: 1 };
    let b = Matrix { values: w, row: 1, column: inputs };
    product(rows, inputs, outputs, a, b, y, false);
}

/// `∂x = ∂y w`, or `+=` if `add`.
pub(crate) fn grad_input(shape: Shape, dy: (&[f32], usize), w: &[f32], dx: (&mut [f32], usize), add: bool) {
    let Shape { rows, inputs, outputs } = shape;
    let a = Matrix { values: dy.0, row: dy.1, column: 1 };
    let b = Matrix { values: w, row: inputs, column: 1 };
    product(rows, outputs, inputs, a, b, dx, add);
}

/// `∂w += ∂yᵀ x`.
pub(crate) fn grad_weight(shape: Shape, dy: (&[f32], usize), x: (&[f32], usize), dw: &mut [f32]) {
    let Shape { rows, inputs, outputs } = shape;
    let a = Matrix { values: dy.0, row: 1, column: dy.1 };
    let b = Matrix { values: x.0, row: x.1, column: 1 };
    product(outputs, rows, inputs, a, b, (dw, inputs), true);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::test_values::uniform;

    #[test]
    fn products_match_the_definition_at_any_stride() {
        for (rows, inputs, outputs, gap) in [(1, 1, 1, 0), (5, 7, 3, 2), (3, 300, 150, 0), (40, 130, 260, 5)] {
            let (x_row, y_row) = (inputs + gap, outputs + gap);
            let (x, w, dy) = (uniform(rows * x_row, 1), uniform(outputs * inputs, 2), uniform(rows * y_row, 3));
            let (mut y, mut dx, mut dw) = (vec![9.0; rows * y_row], uniform(rows * x_row, 4), uniform(w.len(), 5));
            let (dx_before, dw_before) = (dx.clone(), dw.clone());
            let shape = Shape { rows, inputs, outputs };
            forward(shape, (&x, x_row), &w, (&mut y, y_row));
            grad_input(shape, (&dy, y_row), &w, (&mut dx, x_row), true);
            grad_weight(shape, (&dy, y_row), (&x, x_row), &mut dw);
            let close = |found: f32, expected: f64| {
                assert!((f64::from(found) - expected).abs() < 1e-4, "{found}, expected {expected}");
            };
            let f = f64::from;
            for row in 0..rows {
                for output in 0..outputs {
                    let sum = (0..inputs).map(|i| f(x[row * x_row + i]) * f(w[output * inputs + i])).sum();
                    close(y[row * y_row + output], sum);
                }
                assert!(y[row * y_row + outputs..(row + 1) * y_row].iter().all(|&untouched| untouched == 9.0));
                for input in 0..inputs {
                    let at = row * x_row + input;
                    let sum: f64 = (0..outputs).map(|o| f(dy[row * y_row + o]) * f(w[o * inputs + input])).sum();
                    close(dx[at], f(dx_before[at]) + sum);
                }
            }
            for (at, (&found, &before)) in dw.iter().zip(&dw_before).enumerate() {
                let (output, input) = (at / inputs, at % inputs);
                let sum: f64 = (0..rows).map(|r| f(dy[r * y_row + output]) * f(x[r * x_row + input])).sum();
                close(found, f(before) + sum);
            }
        }
    }
}
