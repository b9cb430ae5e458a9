//! Matrix products on plain row-major slices: `y = x wᵀ` for linears, `H += XᵀX` for calibration.
//!
//! Operands are copied into tiles of 48 rows (`kernel/tile.rs`), a piece at a time, widened from bf16 on the way; pieces
//! are fixed by the shapes and spread by rayon. Results are sums of fused multiply-adds in a fixed order, so they depend
//! neither on the number of threads nor on the instruction set.

use half::bf16;
use rayon::prelude::*;

use super::SharedMut;
use super::gemv;
use super::tile::{Aligned, Columns, DEPTH, Kernel, PANEL_TILES, Rows, SLIVER, TILE};

/// Rows of `x` up to which a product is bound by reading the weight once, and [`gemv`] is faster than a packed product.
pub const GEMV_MAX_ROWS: usize = 4;

/// `y = x wᵀ` with `x` (t, k), `w` (n, k) and `y` (t, n), all f32; `y` is overwritten.
///
/// # Panics
/// If a slice is not as long as its shape says.
pub fn matmul_nt(x: &[f32], w: &[f32], y: &mut [f32], t: usize, n: usize, k: usize) {
    check(x.len(), w.len(), y.len(), t, n, k);
    if t <= GEMV_MAX_ROWS {
        return gemv::gemv_nt(x, w, y, t, n, k);
    }
    product(x, w, y, t, n, k);
}

/// `y = x wᵀ` with `w` (n, k) in bf16, widened a piece at a time: no f32 copy of the whole weight is made.
///
/// # Panics
/// If a slice is not as long as its shape says.
pub fn matmul_nt_bf16(x: &[f32], w: &[bf16], y: &mut [f32], t: usize, n: usize, k: usize) {
    check(x.len(), w.len(), y.len(), t, n, k);
    if t <= GEMV_MAX_ROWS {
        return gemv::gemv_nt_bf16(x, w, y, t, n, k);
    }
    product(x, w, y, t, n, k);
}

/// Rows of `x` turned at once: they bound the memory a product takes, and are many enough to repay turning the weight
/// again.
const TURNED_ROWS: usize = 4 * PANEL_TILES * TILE;

/// Tiles of weight rows one unit of work holds: about as many as leave the cache room for a panel of `x`, fewer where a
/// narrow weight would otherwise be one piece.
fn chunk_tiles(n: usize) -> usize {
    n.div_ceil(TILE).div_ceil(4).clamp(1, PANEL_TILES)
}

/// A weight (n, k) as a product reads it, piece by piece.
pub(crate) trait Pieces: Sync {
    /// Columns `from..from + depth` of the rows `first..first + rows`, at most [`TILE`] by [`DEPTH`] of them, as
    /// [`gemv::turn`] leaves them in `to`.
    fn turn(&self, first: usize, rows: usize, from: usize, depth: usize, to: &mut [f32]);
}

/// A weight that lies in memory, with its k.
struct Stored<'a, T>(&'a [T], usize);

impl<T: gemv::Stored> Pieces for Stored<'_, T> {
    fn turn(&self, first: usize, rows: usize, from: usize, depth: usize, to: &mut [f32]) {
        let &Self(w, k) = self;
        gemv::turn(&w[first * k + from..], rows, k, depth, to);
    }
}

/// `y = x wᵀ` for a `w` in memory.
fn product<T: gemv::Stored>(x: &[f32], w: &[T], y: &mut [f32], t: usize, n: usize, k: usize) {
    product_with(x, &Stored(w, k), y, t, n, k);
}

/// `y = x wᵀ` by tiles of `w` against panels of `x`, for a `w` of any kind; `x` (t, k) and `y` (t, n).
///
/// # Panics
/// If a slice is not as long as its shape says.
pub(crate) fn product_with(x: &[f32], w: &impl Pieces, y: &mut [f32], t: usize, n: usize, k: usize) {
    assert_eq!((x.len(), y.len()), (t * k, t * n), "operands are not ({t}, {k}) and ({t}, {n})");
    if t == 0 || n == 0 {
        return;
    }
    if k == 0 {
        return y.fill(0.0);
    }
    for (x, y) in x.chunks(TURNED_ROWS * k).zip(y.chunks_mut(TURNED_ROWS * n)) {
        product_of_rows(x, w, y, y.len() / n, n, k);
    }
}

/// [`product_with`] for some rows of `x`.
fn product_of_rows(x: &[f32], w: &impl Pieces, y: &mut [f32], t: usize, n: usize, k: usize) {
    let kernel = Kernel::new();
    let x_tiles = t.div_ceil(TILE);
    with_scratch(x_tiles * k * TILE, |turned| {
        turned.par_chunks_mut(k * TILE).enumerate().for_each(|(tile, to)| {
            let rows = TILE.min(t - tile * TILE);
            gemv::turn(&x[tile * TILE * k..], rows, k, k, to);
        });
        let turned = &*turned;
        let chunk = chunk_tiles(n);
        let shared = SharedMut::new(y);
        (0..n.div_ceil(TILE * chunk)).into_par_iter().for_each(|piece| {
            let first = piece * chunk * TILE;
            let columns = (chunk * TILE).min(n - first);
            let (whole, part) = (columns / TILE, columns % TILE);
            for row in 0..t {
                // SAFETY: columns first..first+columns of every row of y are this piece's alone.
                unsafe { std::slice::from_raw_parts_mut(shared.at(row * n + first), columns) }.fill(0.0);
            }
            with_scratch(chunk * DEPTH * TILE, |left| {
                for from in (0..k).step_by(DEPTH) {
                    let depth = DEPTH.min(k - from);
                    for tile in 0..columns.div_ceil(TILE) {
                        let rows = TILE.min(columns - tile * TILE);
                        let left = &mut left[tile * depth * TILE..][..depth * TILE];
                        w.turn(first + tile * TILE, rows, from, depth, left);
                    }
                    for panel in (0..x_tiles).step_by(PANEL_TILES) {
                        let rows = (PANEL_TILES * TILE).min(t - panel * TILE);
                        let slivers = rows / SLIVER;
                        let right = Columns {
                            b: turned[(panel * k + from) * TILE..].as_ptr(),
                            b_stride: k * TILE,
                            first: 0,
                            slivers,
                        };
                        let y_offset = panel * TILE * n + first;
                        if whole > 0 && slivers > 0 {
                            // SAFETY: whole tiles of columns and whole slivers of rows lie inside y, and the columns are
                            // this piece's alone; the operands hold `depth` places a tile.
                            unsafe {
                                let left = Rows {
                                    a: left.as_ptr(),
                                    a_stride: depth * TILE,
                                    c: shared.at(y_offset),
                                    c_stride: TILE,
                                    c_step: n,
                                    tiles: whole,
                                };
                                kernel.panel(depth, left, right, 1.0);
                            }
                        }
                        // What is left over goes through a buffer of its own.
                        let corner = usize::from(part > 0) + whole;
                        for tile in 0..corner {
                            let all = if tile < whole { slivers } else { 0 };
                            for sliver in all..rows.div_ceil(SLIVER) {
                                let mut sums = [0.0f32; SLIVER * TILE];
                                let b = turned[((panel + sliver * SLIVER / TILE) * k + from) * TILE..].as_ptr();
                                // SAFETY: padded operands hold whole tiles and slivers; `sums` holds eight columns.
                                unsafe {
                                    let a = left[tile * depth * TILE..].as_ptr();
                                    kernel.sliver(depth, a, b.add(sliver * SLIVER % TILE), sums.as_mut_ptr(), 1.0);
                                }
                                let width = TILE.min(columns - tile * TILE);
                                for j in 0..SLIVER.min(rows - sliver * SLIVER) {
                                    let at = y_offset + (sliver * SLIVER + j) * n + tile * TILE;
                                    // SAFETY: `width` columns of this piece in a row of y.
                                    let y = unsafe { std::slice::from_raw_parts_mut(shared.at(at), width) };
                                    y.iter_mut().zip(&sums[j * TILE..]).for_each(|(y, sum)| *y += sum);
                                }
                            }
                        }
                    }
                }
            });
        });
    });
}

/// Runs with a buffer this thread keeps, since fresh pages cost more than turning the values does; it holds whatever was
/// left there.
fn with_scratch<R>(len: usize, run: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static KEPT: std::cell::RefCell<Vec<Aligned>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    // Taken out while in use: another piece of work may run on this thread meanwhile.
    let kept = KEPT.with_borrow_mut(|kept| {
        let fits = kept.iter().position(|buffer| buffer.len() >= len)?;
        Some(kept.swap_remove(fits))
    });
    let mut buffer = kept.unwrap_or_else(|| Aligned::zeros(len));
    let out = run(&mut buffer[..len]);
    KEPT.with_borrow_mut(|kept| {
        kept.push(buffer);
        // The two largest serve every later call of the same model.
        kept.sort_by_key(|buffer| std::cmp::Reverse(buffer.len()));
        kept.truncate(2);
    });
    out
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
    for x in x.chunks(TURNED_ROWS.next_multiple_of(DEPTH) * k) {
        syrk_of_rows(x, h, x.len() / k, k, scale);
    }
}

/// [`syrk_accumulate`] for some rows of `x`.
fn syrk_of_rows(x: &[f32], h: &mut [f32], t: usize, k: usize, scale: f32) {
    let kernel = Kernel::new();
    let tiles = k.div_ceil(TILE);
    let whole = k / TILE; // tiles without padding
    with_scratch(tiles * t * TILE, |turned| {
        turned.par_chunks_mut(t * TILE).enumerate().for_each(|(tile, to)| {
            let columns = TILE.min(k - tile * TILE);
            for (to, x) in to.as_chunks_mut::<TILE>().0.iter_mut().zip(x.chunks_exact(k)) {
                match x[tile * TILE..].first_chunk() {
                    Some(x) => *to = *x,
                    None => {
                        to[..columns].copy_from_slice(&x[tile * TILE..]);
                        to[columns..].fill(0.0);
                    }
                }
            }
        });
        let turned = &*turned;
        let shared = SharedMut::new(h);
        // A job: a panel of rows of h against a run of tiles of its columns, from the diagonal on.
        let chunk = 2 * PANEL_TILES;
        let panel_tiles = tiles.div_ceil(4).clamp(1, PANEL_TILES);
        let jobs: Vec<(usize, usize)> = (0..tiles)
            .step_by(panel_tiles)
            .flat_map(|panel| (panel..tiles).step_by(chunk).map(move |first| (panel, first)))
            .collect();
        jobs.into_par_iter().for_each(|(panel, first)| {
            let panel_end = (panel + panel_tiles).min(tiles);
            let end = (first + chunk).min(tiles);
            for from in (0..t).step_by(DEPTH) {
                let depth = DEPTH.min(t - from);
                // Tiles on the diagonal one by one, as they need ever more rows; those beyond it together; a padded one last.
                let diagonal = first..end.min(panel_end).max(first);
                let beyond = diagonal.end..end.min(whole).max(diagonal.end);
                let singles = diagonal.chain(beyond.end..end).map(|tile| tile..tile + 1);
                for columns in std::iter::once(beyond).chain(singles).filter(|columns| !columns.is_empty()) {
                    let rows_end = (columns.start + 1).min(panel_end);
                    let rows_end = if columns.start >= panel_end { panel_end } else { rows_end };
                    let rows = (rows_end * TILE).min(k) - panel * TILE;
                    let padded = columns.end > whole;
                    let direct = if padded { 0 } else { rows / SLIVER };
                    let b = turned[(panel * t + from) * TILE..].as_ptr();
                    if direct > 0 {
                        // SAFETY: whole slivers of rows and whole tiles of columns inside h, which this job alone writes; the
                        // operands hold t ≥ from + depth places a tile.
                        unsafe {
                            let left = Rows {
                                a: turned[(columns.start * t + from) * TILE..].as_ptr(),
                                a_stride: t * TILE,
                                c: shared.at(panel * TILE * k + columns.start * TILE),
                                c_stride: TILE,
                                c_step: k,
                                tiles: columns.len(),
                            };
                            let right = Columns { b, b_stride: t * TILE, first: 0, slivers: direct };
                            kernel.panel(depth, left, right, scale);
                        }
                    }
                    for tile in columns {
                        for sliver in direct..rows.div_ceil(SLIVER) {
                            let mut sums = [0.0f32; SLIVER * TILE];
                            let row = panel * TILE + sliver * SLIVER;
                            // SAFETY: padded operands hold whole tiles and slivers; `sums` holds eight columns.
                            unsafe {
                                let a = turned[(tile * t + from) * TILE..].as_ptr();
                                let b = turned[(row / TILE * t + from) * TILE..].as_ptr().add(row % TILE);
                                kernel.sliver(depth, a, b, sums.as_mut_ptr(), scale);
                            }
                            let width = TILE.min(k - tile * TILE);
                            for j in 0..SLIVER.min(k - row) {
                                // SAFETY: `width` places of a row of h that this job alone writes.
                                let h = unsafe {
                                    std::slice::from_raw_parts_mut(shared.at((row + j) * k + tile * TILE), width)
                                };
                                h.iter_mut().zip(&sums[j * TILE..]).for_each(|(h, sum)| *h += sum);
                            }
                        }
                    }
                }
            }
        });
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
        for &(t, k) in &[(1, 1), (3, 70), (40, 129), (100, 600), (1400, 60)] {
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
                    // Squares do not cancel: the sum itself is rounded too.
                    let tolerance = MAX_ERROR_OVER_ROOT_K * ((t as f64 + 1.0).sqrt() + expected.abs());
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
