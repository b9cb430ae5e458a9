//! Matrix products on plain row-major slices: `y = x wᵀ` for linears, `H += XᵀX` for calibration.
//!
//! The inner kernel is the `gemm` crate's, one thread a panel; panels are fixed by the shapes and spread by rayon.

use half::bf16;
use rayon::prelude::*;

use super::SharedMut;
use super::gemv;

/// Rows of `x` up to which a product is bound by reading the weight once, and [`gemv`] is faster than a packed product.
pub const GEMV_MAX_ROWS: usize = 4;

/// Output columns a thread computes at once: wide enough to repay packing `x` again for every panel, narrow enough to
/// leave something for a second core. A function of the shape alone.
fn panel_width(n: usize) -> usize {
    n.div_ceil(8).next_multiple_of(64).clamp(128, 1024)
}

/// `y = x wᵀ` with `x` (t, k), `w` (n, k) and `y` (t, n), all f32; `y` is overwritten.
///
/// # Panics
/// If a slice is not as long as its shape says.
pub fn matmul_nt(x: &[f32], w: &[f32], y: &mut [f32], t: usize, n: usize, k: usize) {
    check(x.len(), w.len(), y.len(), t, n, k);
    if t == 0 || n == 0 {
        return;
    }
    if t <= GEMV_MAX_ROWS {
        return gemv::gemv_nt(x, w, y, t, n, k);
    }
    let width = panel_width(n);
    let shared = SharedMut::new(y);
    (0..n.div_ceil(width)).into_par_iter().for_each(|panel| {
        let first = panel * width;
        let columns = width.min(n - first);
        // SAFETY: this panel's columns first..first+columns of every row of y are written by no other panel; x (t, k) and
        // w (n, k) have the lengths checked above.
        unsafe { panel_nt(x, &w[first * k..][..columns * k], shared.at(first), t, columns, k, n) };
    });
}

/// `y = x wᵀ` with `w` (n, k) in bf16, widened a panel at a time: no f32 copy of the whole weight is made.
///
/// # Panics
/// If a slice is not as long as its shape says.
pub fn matmul_nt_bf16(x: &[f32], w: &[bf16], y: &mut [f32], t: usize, n: usize, k: usize) {
    check(x.len(), w.len(), y.len(), t, n, k);
    if t == 0 || n == 0 {
        return;
    }
    if t <= GEMV_MAX_ROWS {
        return gemv::gemv_nt_bf16(x, w, y, t, n, k);
    }
    let width = panel_width(n);
    let shared = SharedMut::new(y);
    (0..n.div_ceil(width)).into_par_iter().for_each_init(Vec::new, |scratch: &mut Vec<f32>, panel| {
        let first = panel * width;
        let columns = width.min(n - first);
        scratch.resize(width * k, 0.0);
        let widened = &mut scratch[..columns * k];
        widen_bf16(&w[first * k..][..columns * k], widened);
        // SAFETY: as in `matmul_nt`; `widened` is (columns, k).
        unsafe { panel_nt(x, widened, shared.at(first), t, columns, k, n) };
    });
}

/// `y[:, ..n] = x wᵀ` with `x` (t, k), `w` (n, k), rows of `y` `stride` apart, on this thread.
///
/// # Safety
/// `y` points to `t` rows of at least `n` writable elements, `stride` apart; `x` and `w` hold t·k and n·k elements.
unsafe fn panel_nt(x: &[f32], w: &[f32], y: *mut f32, t: usize, n: usize, k: usize, stride: usize) {
    // SAFETY: dst is (t, n) with the strides of y, lhs (t, k), rhs (k, n) = wᵀ: all within the slices by the contract.
    unsafe {
        gemm::gemm(
            t,
            n,
            k,
            y,
            1,
            stride as isize,
            false,
            x.as_ptr(),
            1,
            k as isize,
            w.as_ptr(),
            k as isize,
            1,
            0.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

super::dispatch! {
    /// `out[i] = from[i]` as f32, exactly.
    pub fn widen_bf16(from: &[bf16], out: &mut [f32]) = widen_bf16_body
}

#[inline(always)]
fn widen_bf16_body(from: &[bf16], out: &mut [f32]) {
    assert_eq!(from.len(), out.len());
    for (out, value) in out.iter_mut().zip(from) {
        *out = f32::from_bits(u32::from(value.to_bits()) << 16);
    }
}

/// Columns of one tile of [`syrk_accumulate`].
const SYRK_TILE: usize = 512;

/// `H += scale · XᵀX` with `x` (t, k); only the upper triangle of `h` (k, k) is kept valid ([`symmetrize`] fills the
/// rest). Costs about t·k² FLOP, half of the full product.
///
/// # Panics
/// If a slice is not as long as its shape says.
pub fn syrk_accumulate(x: &[f32], h: &mut [f32], t: usize, k: usize, scale: f32) {
    assert_eq!(x.len(), t * k, "x is not ({t}, {k})");
    assert_eq!(h.len(), k * k, "h is not ({k}, {k})");
    if t == 0 || k == 0 {
        return;
    }
    // Narrow matrices still make several tiles, so that two cores have work; again by the shape alone.
    let tile = (k.div_ceil(4)).next_multiple_of(64).clamp(64, SYRK_TILE);
    let tiles = k.div_ceil(tile);
    let jobs: Vec<(usize, usize)> = (0..tiles).flat_map(|i| (i..tiles).map(move |j| (i, j))).collect();
    let shared = SharedMut::new(h);
    jobs.into_par_iter().for_each(|(i, j)| {
        let (row, column) = (i * tile, j * tile);
        let (rows, columns) = (tile.min(k - row), tile.min(k - column));
        // SAFETY: tile (i, j) of h is written by this job alone; x is (t, k), so its columns row.. and column.. are valid
        // with stride k for t rows.
        unsafe {
            gemm::gemm(
                rows,
                columns,
                t,
                shared.at(row * k + column),
                1,
                k as isize,
                true,
                x.as_ptr().add(row),
                k as isize,
                1,
                x.as_ptr().add(column),
                1,
                k as isize,
                1.0f32,
                scale,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    });
}

/// Copies the upper triangle of `h` (k, k) over the lower one.
///
/// # Panics
/// If `h` does not hold k·k elements.
pub fn symmetrize(h: &mut [f32], k: usize) {
    assert_eq!(h.len(), k * k, "h is not ({k}, {k})");
    const TILE: usize = 32; // two tiles of 4 KiB stay in the first-level cache
    for row in (0..k).step_by(TILE) {
        for column in (row..k).step_by(TILE) {
            for i in row..(row + TILE).min(k) {
                for j in column.max(i + 1)..(column + TILE).min(k) {
                    h[j * k + i] = h[i * k + j];
                }
            }
        }
    }
}

/// Rows of `w` and columns of `h` of one product of [`quadratic_form`].
const FORM_BLOCK: usize = 256;

/// `tr(W H Wᵀ) = Σ_r w_r H w_rᵀ` for `w` (rows, n) and a symmetric `h` (n, n), products in f32, sums in f64. Costs about
/// rows·n² FLOP: only the blocks on and below the diagonal of `h` are multiplied, and those below count twice.
///
/// # Panics
/// If `w` is not whole rows of n or `h` not (n, n).
pub fn quadratic_form(w: &[f32], h: &[f32], n: usize) -> f64 {
    assert_eq!(h.len(), n * n, "h is not ({n}, {n})");
    if w.is_empty() {
        return 0.0;
    }
    assert!(w.len().is_multiple_of(n), "w is not whole rows of {n}");
    let parts: Vec<f64> = w
        .par_chunks(FORM_BLOCK * n)
        .map_init(Vec::new, |product: &mut Vec<f32>, w| {
            let rows = w.len() / n;
            product.resize(FORM_BLOCK * FORM_BLOCK, 0.0);
            let mut sum = 0.0;
            for first in (0..n).step_by(FORM_BLOCK) {
                let columns = FORM_BLOCK.min(n - first);
                for (from, to, weight) in [(first, first + columns, 1.0), (first + columns, n, 2.0)] {
                    if from == to {
                        continue;
                    }
                    // SAFETY: dst is (rows, columns) inside `product`, lhs columns from..to of w (rows, n), rhs rows
                    // from..to and columns first.. of h (n, n).
                    unsafe {
                        gemm::gemm(
                            rows,
                            columns,
                            to - from,
                            product.as_mut_ptr(),
                            1,
                            FORM_BLOCK as isize,
                            false,
                            w.as_ptr().add(from),
                            1,
                            n as isize,
                            h.as_ptr().add(from * n + first),
                            1,
                            n as isize,
                            0.0f32,
                            1.0f32,
                            false,
                            false,
                            false,
                            gemm::Parallelism::None,
                        );
                    }
                    for row in 0..rows {
                        let w = &w[row * n + first..][..columns];
                        let product = &product[row * FORM_BLOCK..][..columns];
                        let dot: f64 = w.iter().zip(product).map(|(w, p)| f64::from(*w) * f64::from(*p)).sum();
                        sum += weight * dot;
                    }
                }
            }
            sum
        })
        .collect();
    parts.iter().sum()
}

fn check(x: usize, w: usize, y: usize, t: usize, n: usize, k: usize) {
    assert_eq!(x, t * k, "x is not ({t}, {k})");
    assert_eq!(w, n * k, "w is not ({n}, {k})");
    assert_eq!(y, t * n, "y is not ({t}, {n})");
}

#[cfg(test)]
mod tests {
    use super::super::test_values::uniform;
    use super::*;

    /// |error| of one f32 product of length k over √k, for values in −1..1: a few units in the last place of a random
    /// walk (2⁻²⁴ · √k · 1/3, times ten).
    const MAX_ERROR_OVER_ROOT_K: f64 = 1e-6;

    fn naive_nt(x: &[f32], w: &[f32], t: usize, n: usize, k: usize) -> Vec<f64> {
        let mut y = vec![0.0; t * n];
        for i in 0..t {
            for j in 0..n {
                y[i * n + j] = (0..k).map(|l| f64::from(x[i * k + l]) * f64::from(w[j * k + l])).sum();
            }
        }
        y
    }

    fn assert_close(y: &[f32], expected: &[f64], k: usize) {
        let tolerance = MAX_ERROR_OVER_ROOT_K * (k as f64).sqrt();
        for (i, (&y, &e)) in y.iter().zip(expected).enumerate() {
            assert!((f64::from(y) - e).abs() <= tolerance, "element {i}: {y} for {e}");
        }
    }

    const SHAPES: &[(usize, usize, usize)] = &[
        (1, 1, 1),
        (1, 300, 77),
        (3, 130, 64),
        (4, 257, 33),
        (5, 7, 3),
        (17, 300, 65),
        (64, 1100, 100),
        (130, 129, 200),
    ];

    #[test]
    fn products_match_the_definition() {
        for &(t, n, k) in SHAPES {
            let (x, w) = (uniform(t * k, 1), uniform(n * k, 2));
            let mut y = vec![f32::NAN; t * n];
            matmul_nt(&x, &w, &mut y, t, n, k);
            assert_close(&y, &naive_nt(&x, &w, t, n, k), k);

            let narrow: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
            let wide: Vec<f32> = narrow.iter().map(|v| v.to_f32()).collect();
            y.fill(f32::NAN);
            matmul_nt_bf16(&x, &narrow, &mut y, t, n, k);
            assert_close(&y, &naive_nt(&x, &wide, t, n, k), k);
        }
    }

    #[test]
    fn an_empty_inner_dimension_gives_zeros() {
        let mut y = vec![f32::NAN; 6 * 2];
        matmul_nt(&[], &[], &mut y, 6, 2, 0);
        assert_eq!(y, [0.0; 12]);
    }

    #[test]
    fn syrk_matches_the_definition_and_adds() {
        for &(t, k) in &[(1, 1), (3, 70), (40, 129), (100, 600)] {
            let x = uniform(t * k, 3);
            let start = uniform(k * k, 4);
            let mut h = start.clone();
            syrk_accumulate(&x, &mut h, t, k, 0.5);
            symmetrize(&mut h, k);
            for i in 0..k {
                for j in 0..k {
                    let (a, b) = (i.min(j), i.max(j));
                    let sum: f64 = (0..t).map(|s| f64::from(x[s * k + i]) * f64::from(x[s * k + j])).sum();
                    let expected = f64::from(start[a * k + b]) + 0.5 * sum;
                    let tolerance = MAX_ERROR_OVER_ROOT_K * (t as f64 + 1.0).sqrt();
                    assert!((f64::from(h[i * k + j]) - expected).abs() <= tolerance, "({i}, {j}) of {k}");
                }
            }
        }
    }

    #[test]
    fn the_quadratic_form_matches_the_definition() {
        for &(rows, n) in &[(1, 1), (3, 40), (300, 70), (5, 600)] {
            let (w, x) = (uniform(rows * n, 1), uniform(n * n, 2));
            let mut h = vec![0.0; n * n];
            syrk_accumulate(&x, &mut h, n, n, 1.0);
            symmetrize(&mut h, n);
            let mut expected = 0.0;
            for r in 0..rows {
                for i in 0..n {
                    for j in 0..n {
                        expected += f64::from(w[r * n + i]) * f64::from(h[i * n + j]) * f64::from(w[r * n + j]);
                    }
                }
            }
            assert!((quadratic_form(&w, &h, n) / expected - 1.0).abs() < 1e-5, "{rows} × {n}");
        }
    }

    #[test]
    fn bytes_do_not_depend_on_the_number_of_threads() {
        let (t, n, k) = (70, 1500, 96);
        let (x, w) = (uniform(t * k, 5), uniform(n * k, 6));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut y, mut h) = (vec![0.0; t * n], vec![0.0; k * k]);
            pool.install(|| {
                matmul_nt(&x, &w, &mut y, t, n, k);
                syrk_accumulate(&x, &mut h, t, k, 1.0);
            });
            (y, h)
        };
        assert_eq!(run(1), run(2));
    }
}
