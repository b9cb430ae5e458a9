//! Multiplying by a shared matrix that is never made: its tiles are recovered where they are used, and stay in the cache.
//!
//! ```text
//! linear        y = x Wᵀ      ∂x = ∂y W      ∂ψ += Sᵀ(∂yᵀ x)            x (t, in), W (out, in), y (t, out)
//! embedding     y_i = W[id_i]                ∂ψ += Sᵀ of the rows' gradients
//! ```
//!
//! For one row of `x` the product runs over the pool itself and multiplies by λ once a result. More rows are worth a tile:
//! recovering costs one multiplication a weight, the product `t` of them. Pieces are fixed by the shapes and sums are
//! taken in one order, so that bytes do not depend on the number of threads.

use rayon::prelude::*;

use super::{
    Sharing,
    fold::Fold,
    modules::Module,
    pool::{accumulate, dots, recover},
};
use crate::{
    Error, Result,
    kernel::{
        SharedMut,
        gemm::{Pieces, product_with},
        gemv::turn,
        tile::{DEPTH, TILE},
    },
};

/// Results of a product with one row that a thread takes at once.
const ROWS: usize = 32;

/// Rows of a recovered tile.
const TILE_ROWS: usize = 64;

/// Columns of a tile where the matrix is cut along its rows.
const TILE_COLUMNS: usize = 512;

/// A matrix (rows, columns) whose values lie in a pool: of a linear (out, in), of an embedding (tokens, values).
#[derive(Debug, Clone, PartialEq)]
pub struct SharedMatrix {
    fold: Fold,
    first: usize,
    rows: usize,
    columns: usize,
    scale: f32,
}

/// Two matrices and a third to be their product, by where rows and columns lie: values, row step, column step.
type Strided<'a> = (&'a [f32], usize, usize);

/// `out (m, n) = a (m, k) · b (k, n)`, or `+=` if `add`; rows of `out` lie `row` values apart, from `start` on.
///
/// # Safety
/// No other thread touches those values of `out`, of which there are as many as that needs.
unsafe fn product(
    (m, k, n): (usize, usize, usize),
    a: Strided<'_>,
    b: Strided<'_>,
    (out, start, row): (SharedMut<f32>, usize, usize),
    add: bool,
) {
    for ((values, row, column), rows, columns) in [(a, m, k), (b, k, n)] {
        assert!((rows - 1) * row + (columns - 1) * column < values.len(), "{rows} × {columns} of {}", values.len());
    }
    // SAFETY: `a` and `b` lie in their slices, as was checked; `out` by this function's contract.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.at(start),
            1,
            row as isize,
            add,
            a.0.as_ptr(),
            a.2 as isize,
            a.1 as isize,
            b.0.as_ptr(),
            b.2 as isize,
            b.1 as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A matrix with its pool, as the product of many rows reads it: what it copies into tiles is recovered on the way.
struct Recovered<'a> {
    matrix: &'a SharedMatrix,
    pool: &'a [f32],
}

impl Pieces for Recovered<'_> {
    fn turn(&self, first: usize, rows: usize, from: usize, depth: usize, to: &mut [f32]) {
        let SharedMatrix { fold, first: start, columns, scale, .. } = self.matrix;
        let mut piece = [0.0; TILE * DEPTH];
        let piece = &mut piece[..rows * depth];
        for (row, piece) in piece.chunks_exact_mut(depth).enumerate() {
            recover(fold, self.pool, *scale, start + (first + row) * columns + from, piece);
        }
        turn(piece, rows, depth, depth, to);
    }
}

impl SharedMatrix {
    /// The matrix that `module` of `sharing` is: its first dimension, and all others as columns.
    ///
    /// # Panics
    /// If the module has no weights.
    pub fn new(sharing: &Sharing, module: &Module) -> Self {
        let rows = module.shape.first().copied().unwrap_or(1);
        assert!(module.values() > 0, "`{}` has no weights", module.name);
        let columns = module.values() / rows;
        Self { fold: sharing.fold.clone(), first: module.offset, rows, columns, scale: module.scale }
    }

    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    fn check(&self, pool: usize, x: usize, y: usize, t: usize) {
        assert_eq!(pool, self.fold.slots(), "the pool is of another fold");
        assert_eq!((x, y), (t * self.columns, t * self.rows), "{t} rows of a {} × {} matrix", self.rows, self.columns);
    }

    /// Rows `rows`, columns `first..first + width`, one after the other into `tile`.
    fn recover_tile(&self, pool: &[f32], rows: std::ops::Range<usize>, first: usize, width: usize, tile: &mut [f32]) {
        if width == self.columns {
            return recover(&self.fold, pool, self.scale, self.first + rows.start * self.columns, tile);
        }
        for (row, tile) in rows.zip(tile.chunks_exact_mut(width)) {
            recover(&self.fold, pool, self.scale, self.first + row * self.columns + first, tile);
        }
    }

    /// `y = x Wᵀ` with `x` (t, columns) and `y` (t, rows).
    ///
    /// # Panics
    /// If a slice is not as long as its shape says.
    pub fn forward(&self, pool: &[f32], x: &[f32], y: &mut [f32], t: usize) {
        self.check(pool.len(), x.len(), y.len(), t);
        let (fold, &Self { first, rows, columns, scale, .. }) = (&self.fold, self);
        match t {
            0 => {}
            1 => y.par_chunks_mut(ROWS).enumerate().for_each(|(chunk, y)| {
                dots(fold, pool, first + chunk * ROWS * columns, x, y);
                y.iter_mut().for_each(|y| *y *= scale);
            }),
            _ => product_with(x, &Recovered { matrix: self, pool }, y, t, rows, columns),
        }
    }

    /// `∂x = ∂y W` with `dy` (t, rows) and `dx` (t, columns).
    ///
    /// # Panics
    /// If a slice is not as long as its shape says.
    pub fn grad_input(&self, pool: &[f32], dy: &[f32], dx: &mut [f32], t: usize) {
        self.check(pool.len(), dx.len(), dy.len(), t);
        if t == 0 {
            return;
        }
        let &Self { rows, columns, .. } = self;
        let dx = SharedMut::new(dx);
        (0..columns.div_ceil(TILE_COLUMNS)).into_par_iter().for_each_init(Vec::new, |tile, piece| {
            let first = piece * TILE_COLUMNS;
            let width = TILE_COLUMNS.min(columns - first);
            for start in (0..rows).step_by(TILE_ROWS) {
                let height = TILE_ROWS.min(rows - start);
                tile.resize(height * width, 0.0);
                self.recover_tile(pool, start..start + height, first, width, tile);
                let dy = (&dy[start..], rows, 1);
                // SAFETY: these columns of `dx` are this piece's, and `dx` has t rows of `columns` values.
                unsafe { product((t, height, width), dy, (tile, width, 1), (dx, first, columns), start > 0) };
            }
        });
    }

    /// `∂ψ += Sᵀ(∂yᵀ x)` with `dy` (t, rows) and `x` (t, columns); the gradient of the matrix exists by tiles only.
    ///
    /// # Panics
    /// If a slice is not as long as its shape says.
    pub fn grad_pool(&self, dy: &[f32], x: &[f32], t: usize, of_pool: &mut [f32]) {
        self.check(of_pool.len(), x.len(), dy.len(), t);
        if t == 0 {
            return;
        }
        let (fold, &Self { first, rows, columns, scale, .. }) = (&self.fold, self);
        let mut tile = vec![0.0; TILE_ROWS.min(rows) * columns];
        for start in (0..rows).step_by(TILE_ROWS) {
            let height = TILE_ROWS.min(rows - start);
            let tile = &mut tile[..height * columns];
            let out = SharedMut::new(tile);
            (0..columns.div_ceil(TILE_COLUMNS)).into_par_iter().for_each(|piece| {
                let from = piece * TILE_COLUMNS;
                let width = TILE_COLUMNS.min(columns - from);
                let (dy, x) = ((&dy[start..], 1, rows), (&x[from..], columns, 1));
                // SAFETY: these columns of the tile are this piece's, and the tile has `height` rows of `columns` values.
                unsafe { product((height, t, width), dy, x, (out, from, columns), false) };
            });
            accumulate(fold, tile, scale, first + start * columns, of_pool);
        }
    }

    /// Row `ids[i]` into row i of `out` (ids, columns).
    ///
    /// # Errors
    /// If an id is not below the number of rows.
    ///
    /// # Panics
    /// If `out` is not as long as its shape says.
    pub fn look_up(&self, pool: &[f32], ids: &[u32], out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), ids.len() * self.columns, "{} rows of {} values", ids.len(), self.columns);
        self.check_ids(ids)?;
        out.par_chunks_exact_mut(self.columns).zip(ids).for_each(|(out, &id)| {
            recover(&self.fold, pool, self.scale, self.first + id as usize * self.columns, out);
        });
        Ok(())
    }

    /// `∂ψ += Sᵀ` of the gradients `rows` (ids, columns) of the rows `ids`, in the order of the ids.
    ///
    /// # Errors
    /// If an id is not below the number of rows; nothing is added then.
    ///
    /// # Panics
    /// If a slice is not as long as its shape says.
    pub fn grad_look_up(&self, ids: &[u32], rows: &[f32], of_pool: &mut [f32]) -> Result<()> {
        assert_eq!(rows.len(), ids.len() * self.columns, "{} rows of {} values", ids.len(), self.columns);
        self.check_ids(ids)?;
        for (row, &id) in rows.chunks_exact(self.columns).zip(ids) {
            accumulate(&self.fold, row, self.scale, self.first + id as usize * self.columns, of_pool);
        }
        Ok(())
    }

    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.rows) {
            Some(id) => Err(Error::Recipe(format!("row {id} is asked of an embedding of {} rows", self.rows))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernel::test_values::uniform,
        sharing::{fold::ALIGN, modules::Size},
    };

    /// A matrix in the middle of others, and its values by the definition.
    fn matrix(rows: usize, columns: usize, rate: f64) -> (SharedMatrix, Vec<f32>, Vec<f32>) {
        let tensors = [("a", vec![5, 7], 0.3), ("b", vec![rows, columns], 0.25), ("c", vec![3, 3], 2.0)];
        let tensors = tensors.map(|(name, shape, scale)| (name.to_string(), shape, scale)).to_vec();
        let sharing = Sharing::new(tensors, Size::Rate(rate), ALIGN, 11).unwrap();
        let (fold, module) = (&sharing.fold, &sharing.modules[1]);
        let pool = uniform(fold.slots(), 1);
        let value = |weight: usize| {
            let value = module.scale * pool[fold.slot(weight)];
            if fold.is_negative(weight) { -value } else { value }
        };
        let dense = module.range().map(value).collect();
        (SharedMatrix::new(&sharing, module), pool.clone(), dense)
    }

    fn close(found: &[f32], expected: impl Iterator<Item = f64>) {
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((f64::from(*found) - expected).abs() < 1e-3, "{at}: {found}, expected {expected}");
        }
    }

    fn f(value: f32) -> f64 {
        f64::from(value)
    }

    #[test]
    fn products_match_the_matrix_made_whole() {
        for (rows, columns, rate, t) in [
            (1, 1, 1.0, 1),
            (40, 130, 3.7, 1),
            (130, 600, 9.0, 3),
            (64, 64, 1.0, 5),
            (70, 513, 300.0, 2),
            (3, 9, 2.0, 0),
        ] {
            let (matrix, pool, w) = matrix(rows, columns, rate);
            assert_eq!(matrix.shape(), (rows, columns));
            let (x, dy) = (uniform(t * columns, 2), uniform(t * rows, 3));
            let (mut y, mut dx) = (vec![f32::NAN; t * rows], vec![f32::NAN; t * columns]);
            matrix.forward(&pool, &x, &mut y, t);
            matrix.grad_input(&pool, &dy, &mut dx, t);
            close(
                &y,
                (0..t * rows).map(|at| {
                    let (row, out) = (at / rows, at % rows);
                    (0..columns).map(|l| f(x[row * columns + l]) * f(w[out * columns + l])).sum()
                }),
            );
            close(
                &dx,
                (0..t * columns).map(|at| {
                    let (row, column) = (at / columns, at % columns);
                    (0..rows).map(|out| f(dy[row * rows + out]) * f(w[out * columns + column])).sum()
                }),
            );

            let mut of_pool = uniform(pool.len(), 4);
            let mut expected: Vec<f64> = of_pool.iter().map(|&value| f(value)).collect();
            for at in 0..rows * columns {
                let (out, column) = (at / columns, at % columns);
                let sum: f64 = (0..t).map(|row| f(dy[row * rows + out]) * f(x[row * columns + column])).sum();
                let sign = if matrix.fold.is_negative(matrix.first + at) { -1.0 } else { 1.0 };
                expected[matrix.fold.slot(matrix.first + at)] += sign * f(matrix.scale) * sum;
            }
            matrix.grad_pool(&dy, &x, t, &mut of_pool);
            close(&of_pool, expected.into_iter());
        }
    }

    #[test]
    fn the_gradient_of_the_pool_is_the_derivative() {
        // f(ψ) = ⟨y(ψ), dy⟩ is linear in ψ, so that a step of any size gives its derivative up to rounding.
        let (matrix, pool, _) = matrix(20, 33, 4.0);
        let (x, dy) = (uniform(2 * 33, 5), uniform(2 * 20, 6));
        let mut gradient = vec![0.0; pool.len()];
        matrix.grad_pool(&dy, &x, 2, &mut gradient);
        let value = |pool: &[f32]| -> f64 {
            let mut y = vec![0.0; 40];
            matrix.forward(pool, &x, &mut y, 2);
            y.iter().zip(&dy).map(|(y, dy)| f(*y) * f(*dy)).sum()
        };
        for slot in (0..pool.len()).step_by(13) {
            let mut moved = pool.clone();
            moved[slot] += 0.5;
            let slope = (value(&moved) - value(&pool)) / 0.5;
            assert!((slope - f(gradient[slot])).abs() < 1e-4, "slot {slot}: {slope} against {}", gradient[slot]);
        }
    }

    #[test]
    fn embeddings_are_rows_and_bad_ids_are_refused() {
        let (matrix, pool, w) = matrix(50, 24, 5.0);
        let ids = [3u32, 49, 3, 0];
        let mut out = vec![f32::NAN; 4 * 24];
        matrix.look_up(&pool, &ids, &mut out).unwrap();
        for (row, &id) in out.chunks_exact(24).zip(&ids) {
            assert_eq!(row, &w[id as usize * 24..][..24]);
        }
        let rows = uniform(4 * 24, 8);
        let (mut found, mut expected) = (vec![0.0f32; pool.len()], vec![0.0f32; pool.len()]);
        matrix.grad_look_up(&ids, &rows, &mut found).unwrap();
        for (at, &value) in rows.iter().enumerate() {
            let weight = matrix.first + ids[at / 24] as usize * 24 + at % 24;
            let value = matrix.scale * value;
            expected[matrix.fold.slot(weight)] += if matrix.fold.is_negative(weight) { -value } else { value };
        }
        assert_eq!(found, expected);
        let error = matrix.look_up(&pool, &[50], &mut out[..24]).unwrap_err().to_string();
        assert_eq!(error, "row 50 is asked of an embedding of 50 rows");
    }

    #[test]
    fn the_bytes_do_not_depend_on_threads() {
        let (matrix, pool, _) = matrix(300, 1_100, 6.0);
        let (x, dy) = (uniform(4 * 1_100, 2), uniform(4 * 300, 3));
        let run = |threads: usize| {
            let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut y, mut dx, mut of_pool) = (vec![0.0; 4 * 300], vec![0.0; 4 * 1_100], vec![0.0; pool.len()]);
            threads.install(|| {
                matrix.forward(&pool, &x, &mut y, 4);
                matrix.grad_input(&pool, &dy, &mut dx, 4);
                matrix.grad_pool(&dy, &x, 4, &mut of_pool);
            });
            (y, dx, of_pool)
        };
        assert_eq!(run(1), run(3));
    }
}
