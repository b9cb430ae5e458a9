//! Dense and exact linear algebra: a thin face over faer, which takes the shapes this crate has.
//!
//! Everything here runs on the calling thread; callers work on several matrices at once.

use faer::{
    Accum, Mat, MatMut, MatRef, Par,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{
        evd::tridiag,
        matmul::triangular::{self, BlockStructure},
        qr::no_pivoting::factor::recommended_block_size,
        triangular_solve,
    },
    reborrow::ReborrowMut,
};
use rayon::prelude::*;

/// Solves `L Lᵀ x = b` for each row b of `right` (rows, n), in place; `lower` is L, (n, n) row-major, of which what stands
/// above the diagonal is not read. Rows are independent, so the result does not depend on the number of threads.
///
/// # Panics
/// If lengths contradict `n`.
pub fn solve_by_cholesky(lower: &[f32], n: usize, right: &mut [f32]) {
    /// Rows a thread takes at a time.
    const ROWS: usize = 64;
    assert_eq!(lower.len(), n * n, "the factor is not ({n}, {n})");
    if n == 0 {
        return;
    }
    assert!(right.len().is_multiple_of(n), "the right sides are not rows of {n}");
    let lower = MatRef::from_row_major_slice(lower, n, n);
    right.par_chunks_mut(ROWS * n).for_each(|rows| {
        let columns = rows.len() / n;
        let mut x = MatMut::from_column_major_slice_mut(rows, n, columns);
        triangular_solve::solve_lower_triangular_in_place(lower, x.rb_mut(), Par::Seq);
        triangular_solve::solve_upper_triangular_in_place(lower.transpose(), x, Par::Seq);
    });
}

/// Numbers of a matrix that are widened at a time: 8 MiB of f64.
const PIECE: usize = 1 << 20;

/// The eigenvalues of `WᵀW` or `W Wᵀ`, whichever is smaller, ascending: the squares of the singular values of `w`
/// (rows × columns, row-major).
///
/// They are computed from the smaller Gram matrix, in f64: 2.5 times as fast as a singular value decomposition. The
/// matrix is widened piece by piece, so memory beside it is that of the Gram matrix. Their
/// absolute error is near 1e-16 of the largest eigenvalue times the matrix size, so singular values below about 1e-7
/// of the largest carry no digits; negative eigenvalues (rounding) are given as 0.
///
/// `None` if the iteration does not converge, as with numbers that are not finite.
///
/// # Panics
/// If `w` does not hold rows · columns numbers.
pub fn squared_singular_values(w: &[f32], rows: usize, columns: usize) -> Option<Vec<f64>> {
    assert_eq!(w.len(), rows * columns, "the matrix is not ({rows}, {columns})");
    let n = rows.min(columns);
    if n == 0 {
        return Some(Vec::new());
    }
    let mut gram = vec![0.0; n * n];
    let mut add = |piece: MatRef<'_, f64>| {
        triangular::matmul(
            MatMut::from_column_major_slice_mut(&mut gram, n, n),
            BlockStructure::TriangularLower,
            Accum::Add,
            piece.transpose(),
            BlockStructure::Rectangular,
            piece,
            BlockStructure::Rectangular,
            1.0,
            Par::Seq,
        );
    };
    // A piece is some of the longer side by all of the shorter one.
    let step = PIECE.div_ceil(n);
    let mut wide: Vec<f64> = Vec::with_capacity(step.min(rows.max(columns)) * n);
    for start in (0..rows.max(columns)).step_by(step) {
        let end = (start + step).min(rows.max(columns));
        wide.clear();
        if rows < columns {
            w.chunks_exact(columns).for_each(|row| wide.extend(row[start..end].iter().map(|&x| f64::from(x))));
            add(MatRef::from_row_major_slice(&wide, n, end - start).transpose());
        } else {
            wide.extend(w[start * columns..end * columns].iter().map(|&x| f64::from(x)));
            add(MatRef::from_row_major_slice(&wide, end - start, n));
        }
    }
    let eigenvalues = symmetric_eigenvalues(MatMut::from_column_major_slice_mut(&mut gram, n, n))?;
    Some(eigenvalues.into_iter().map(|x| x.max(0.0)).collect())
}

/// The eigenvalues, ascending, of the symmetric matrix whose lower half `a` holds; `a` is used up.
fn symmetric_eigenvalues(mut a: MatMut<'_, f64>) -> Option<Vec<f64>> {
    let n = a.nrows();
    let mut householder = Mat::zeros(recommended_block_size::<f64>(n, n), n - 1);
    let mut memory = MemBuffer::new(tridiag::tridiag_in_place_scratch::<f64>(n, Par::Seq, Default::default()));
    let stack = MemStack::new(&mut memory);
    tridiag::tridiag_in_place(a.rb_mut(), householder.as_mut(), Par::Seq, stack, Default::default());
    let diagonal = (0..n).map(|i| a[(i, i)]).collect();
    let squares = (0..n).map(|i| if i + 1 < n { a[(i + 1, i)] * a[(i + 1, i)] } else { 0.0 }).collect();
    tridiagonal_eigenvalues(diagonal, squares)
}

/// The eigenvalues, ascending, of a symmetric tridiagonal matrix: its diagonal, and the squares of what stands beside it
/// (the last one 0). The rational QL method (Reinsch 1973, "A stable, rational QL algorithm for the computation of
/// eigenvalues of an Hermitian, tridiagonal matrix"): without square roots in the inner loop, several times as fast as
/// rotations where no vectors are wanted. The absolute error is a few units of rounding of the largest eigenvalue.
fn tridiagonal_eigenvalues(mut d: Vec<f64>, mut e2: Vec<f64>) -> Option<Vec<f64>> {
    /// Sweeps for one eigenvalue; two are usual.
    const MOST_SWEEPS: usize = 50;
    let n = d.len();
    if d.iter().chain(&e2).any(|x| !x.is_finite()) {
        return None;
    }
    let (mut shift, mut size, mut tiny, mut tiny2) = (0.0, 0.0, 0.0, 0.0);
    for l in 0..n {
        let here = d[l].abs() + e2[l].sqrt();
        if size <= here {
            size = here;
            tiny = f64::EPSILON * size;
            tiny2 = tiny * tiny;
        }
        // The last square is 0, so there is an end of the block.
        let m = (l..n).find(|&m| e2[m] <= tiny2)?;
        for sweep in 0.. {
            if m == l {
                break;
            }
            if sweep == MOST_SWEEPS {
                return None;
            }
            // Shift by the eigenvalue of the leading 2 × 2 block.
            let (s, g) = (e2[l].sqrt(), d[l]);
            let p = (d[l + 1] - g) / (2.0 * s);
            d[l] = s / (p + p.hypot(1.0).copysign(p));
            let step = g - d[l];
            d[l + 1..].iter_mut().for_each(|x| *x -= step);
            shift += step;
            let nonzero = |g: f64| if g == 0.0 { tiny } else { g };
            let (mut g, mut s) = (nonzero(d[m]), 0.0);
            let mut h = g;
            for i in (l..m).rev() {
                let p = g * h;
                let r = p + e2[i];
                e2[i + 1] = s * r;
                s = e2[i] / r;
                d[i + 1] = h + s * (h + d[i]);
                g = nonzero(d[i] - e2[i] / g);
                h = g * p / r;
            }
            e2[l] = s * g;
            d[l] = h;
            if h == 0.0 || e2[l].abs() <= (tiny2 / h).abs() {
                break;
            }
            e2[l] *= h;
            if e2[l] == 0.0 {
                break;
            }
        }
        d[l] += shift;
    }
    d.sort_by(f64::total_cmp);
    d.iter().all(|x| x.is_finite()).then_some(d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_matrix_gives_its_singular_values() {
        // diag(3, 1, 2) between two rotations, with two columns of zeros: singular values 1, 2, 3.
        let (c, s) = (0.6f32, 0.8f32);
        let w = [3.0 * c, -s, 0.0, 0.0, 0.0, 3.0 * s, c, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0];
        for (w, rows, columns) in [(w.to_vec(), 3, 5), (transposed(&w, 3, 5), 5, 3)] {
            let found = squared_singular_values(&w, rows, columns).unwrap();
            for (found, exact) in found.iter().zip([1.0, 4.0, 9.0]) {
                assert!((found - exact).abs() < 1e-6, "{found} {exact}");
            }
        }
        assert_eq!(squared_singular_values(&[], 0, 3), Some(vec![]));
        assert_eq!(squared_singular_values(&[f32::NAN; 4], 2, 2), None);
    }

    #[test]
    fn eigenvalues_are_those_of_the_rotations() {
        for n in [1, 2, 3, 17, 64, 200] {
            let mut state = n as u64;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
            };
            // Rows of very different size; every fifth is that before it, so that some eigenvalues are 0.
            let mut a = Mat::zeros(n, n);
            for i in 0..n {
                for j in 0..=i {
                    let x = next() * (-((i + j) as f64) / n as f64 * 6.0).exp();
                    (a[(i, j)], a[(j, i)]) = (x, x);
                }
            }
            for i in (4..n).step_by(5) {
                for j in 0..n {
                    a[(i, j)] = 0.0;
                    a[(j, i)] = 0.0;
                }
            }
            let expected = a.self_adjoint_eigenvalues(faer::Side::Lower).unwrap();
            let size = expected.iter().fold(0.0f64, |size, x| size.max(x.abs()));
            let found = symmetric_eigenvalues(a.as_mut()).unwrap();
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-14 * n as f64 * size, "{n}: {found} {expected}");
            }
        }
        assert_eq!(tridiagonal_eigenvalues(vec![0.0; 4], vec![0.0; 4]), Some(vec![0.0; 4]));
        assert_eq!(tridiagonal_eigenvalues(vec![f64::NAN; 2], vec![0.0; 2]), None);
    }

    #[test]
    fn pieces_add_up_to_the_whole() {
        // More than one piece, the last one cut: 9 × 130,000 numbers whose Gram matrix is known from sums in f64.
        let (n, long) = (9, 130_000);
        let w: Vec<f32> = (0..n * long).map(|at| ((at * 7919 % 1009) as f32 - 504.0) / 512.0).collect();
        let sum: f64 = w.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let wide = squared_singular_values(&w, n, long).unwrap();
        let tall = squared_singular_values(&transposed(&w, n, long), long, n).unwrap();
        assert!((wide.iter().sum::<f64>() / sum - 1.0).abs() < 1e-12);
        for (wide, tall) in wide.iter().zip(&tall) {
            assert!((wide - tall).abs() <= 1e-12 * sum, "{wide} {tall}");
        }
        let product = |i: usize, j: usize| -> f64 {
            (0..long).map(|at| f64::from(w[i * long + at]) * f64::from(w[j * long + at])).sum()
        };
        let gram = Mat::from_fn(n, n, product);
        let expected = gram.self_adjoint_eigenvalues(faer::Side::Lower).unwrap();
        for (wide, expected) in wide.iter().zip(&expected) {
            assert!((wide - expected).abs() <= 1e-12 * sum, "{wide} {expected}");
        }
    }

    fn transposed(w: &[f32], rows: usize, columns: usize) -> Vec<f32> {
        (0..rows * columns).map(|at| w[at % rows * columns + at / rows]).collect()
    }
}
