//! The one factorisation behind error feedback: `H = V Vᵀ` with `V` upper triangular.
//!
//! GPTQ (Frantar et al. 2023) takes a Cholesky factor, inverts, and takes the factor of the inverse: 4/3·n³ FLOP. The
//! wanted factor is exactly `V⁻¹`, and in feedback form (LDLQ; Chee et al. 2023, "QuIP", theorem 6) no inverse is needed
//! at all: column k is quantised at `F_k = W_k + Σ_{i<k} (W_i − Q_i) V_ik / V_kk`. One factorisation, n³/3 FLOP.
//!
//! `V` is had as the ordinary lower factor `L` of the matrix with rows and columns reversed: position r here is place
//! n − 1 − r in processing order. Columns are eliminated 288 at a time, left-looking, in tiles of 48 rows.

use rayon::prelude::*;

use super::SharedMut;
use super::tile::{Aligned, Columns, DEPTH, Kernel, PANEL_TILES, Rows, SLIVER, TILE};

/// Tiles of rows in one unit of work.
const CHUNK_TILES: usize = 12;

/// A pivot below this share of its diagonal entry has lost all its f32 digits to cancellation.
const LEAST_PIVOT: f32 = 2.4e-7; // 2⁻²²

/// The reversed Cholesky factor of a Hessian.
#[derive(Debug)]
pub(crate) struct Factor {
    /// The columns of the Hessian up to whole tiles; the matrix is continued by the identity.
    pub(crate) padded: usize,
    /// Tiles of (padded, padded): at (row i, column k) `L[i][k]` for k ≤ i and its mirror `L[k][i]` for k > i.
    pub(crate) tiles: Aligned,
    /// `L[r][r]`, (padded).
    pub(crate) diagonal: Vec<f32>,
}

/// A leading minor that is not positive in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LostPivot {
    /// The column of the Hessian at which the elimination stopped.
    pub(crate) column: usize,
}

impl Factor {
    /// Factors `h` (n, n), symmetric, with `ridge[j]` added to diagonal entry j, its columns taken in `order`
    /// (`order[p]` is the column processed p-th).
    pub(crate) fn new(h: &[f32], order: &[u32], ridge: &[f32]) -> Result<Self, LostPivot> {
        let n = order.len();
        assert_eq!(h.len(), n * n, "h is not ({n}, {n})");
        assert_eq!(ridge.len(), n, "one ridge a column");
        let padded = n.next_multiple_of(TILE);
        let mut tiles = Aligned::zeros(padded * padded);
        gather(h, order, ridge, padded, &mut tiles);
        let before: Vec<f32> = (0..padded).map(|r| tiles[at(padded, r, r)]).collect();
        let mut diagonal = vec![1.0; padded];
        let kernel = Kernel::new();
        let count = padded / TILE;
        for first in (0..count).step_by(PANEL_TILES) {
            let last = (first + PANEL_TILES).min(count);
            update_panel(kernel, &mut tiles, padded, first, last);
            for tile in first..last {
                factor_diagonal(kernel, &mut tiles, padded, first, tile, &before, &mut diagonal)
                    .map_err(|r| LostPivot { column: order[n - 1 - r] as usize })?;
                // The other tiles of the panel come one by one: each needs those above it.
                for below in tile + 1..last {
                    let shared = SharedMut::new(&mut tiles);
                    // SAFETY: only this thread runs; tile rows `below` and `tile` differ.
                    unsafe { solve_tile(kernel, shared, padded, first, tile, below, &diagonal) };
                }
            }
            let shared = SharedMut::new(&mut tiles);
            (last..count).into_par_iter().for_each(|below| {
                for tile in first..last {
                    // SAFETY: each job writes columns of the panel in its own tile row `below`, and reads the panel's tile
                    // rows first..last, which are finished.
                    unsafe { solve_tile(kernel, shared, padded, first, tile, below, &diagonal) };
                }
            });
        }
        mirror(&mut tiles, padded);
        Ok(Self { padded, tiles, diagonal })
    }

    /// The lower factor `L` of the reversed Hessian, (n, n) row-major, zero above the diagonal; position r is the column
    /// processed (n − 1 − r)-th.
    pub(crate) fn lower(&self, n: usize) -> Vec<f32> {
        let mut out = vec![0.0; n * n];
        out.par_chunks_exact_mut(n).enumerate().for_each(|(row, out)| {
            let (below, _) = out.split_at_mut(row + 1);
            below.iter_mut().enumerate().for_each(|(column, value)| *value = self.tiles[at(self.padded, row, column)]);
            out[row] = self.diagonal[row];
        });
        out
    }
}

/// Where element (row, column) of a tiled matrix with `columns` columns lies.
#[inline(always)]
pub(crate) fn at(columns: usize, row: usize, column: usize) -> usize {
    (row / TILE * columns + column) * TILE + row % TILE
}

/// The reversed, reordered Hessian with its ridge into the lower tiles.
fn gather(h: &[f32], order: &[u32], ridge: &[f32], padded: usize, tiles: &mut Aligned) {
    let n = order.len();
    let reversed: Vec<u32> = order.iter().rev().copied().collect();
    let shared = SharedMut::new(tiles);
    (0..n).into_par_iter().with_min_len(16).for_each(|k| {
        let from = &h[reversed[k] as usize * n..][..n];
        for tile in k / TILE..padded / TILE {
            let rows = &reversed[tile * TILE..(tile * TILE + TILE).min(n)];
            // SAFETY: column k of each tile is written by this job alone and lies inside the padded · padded values.
            let to = unsafe { std::slice::from_raw_parts_mut(shared.at((tile * padded + k) * TILE), rows.len()) };
            for (to, &row) in to.iter_mut().zip(rows) {
                *to = from[row as usize];
            }
            if tile == k / TILE {
                to[k % TILE] += ridge[reversed[k] as usize];
            }
        }
    });
    for r in n..padded {
        tiles[at(padded, r, r)] = 1.0;
    }
}

/// Subtracts from tile columns first..last what the columns to their left explain.
fn update_panel(kernel: Kernel, tiles: &mut Aligned, padded: usize, first: usize, last: usize) {
    let known = first * TILE;
    if known == 0 {
        return;
    }
    let count = padded / TILE;
    let shared = SharedMut::new(tiles);
    (0..(count - first).div_ceil(CHUNK_TILES)).into_par_iter().for_each(|chunk| {
        let rows = first + chunk * CHUNK_TILES..(first + (chunk + 1) * CHUNK_TILES).min(count);
        for depth_from in (0..known).step_by(DEPTH) {
            let depth = DEPTH.min(known - depth_from);
            // A tile in the panel itself has columns up to its own.
            for (rows, last) in (rows.start..rows.end.min(last))
                .map(|row| (row..row + 1, row + 1))
                .chain([(rows.start.max(last)..rows.end, last)])
            {
                if rows.is_empty() {
                    continue;
                }
                // SAFETY: writes columns first·48.. of this job's tile rows; reads columns before, which no job writes. All
                // lie inside the padded · padded values.
                unsafe {
                    let left = Rows {
                        a: shared.at((rows.start * padded + depth_from) * TILE),
                        a_stride: padded * TILE,
                        c: shared.at((rows.start * padded + first * TILE) * TILE),
                        c_stride: padded * TILE,
                        c_step: TILE,
                        tiles: rows.len(),
                    };
                    let right = Columns {
                        b: shared.at((first * padded + depth_from) * TILE),
                        b_stride: padded * TILE,
                        first: 0,
                        slivers: (last - first) * TILE / SLIVER,
                    };
                    kernel.panel(depth, left, right, -1.0);
                }
            }
        }
    });
}

/// Factors the 48 × 48 block of `tile` on the diagonal, of which the columns left of the panel are accounted for; gives
/// the position of a pivot that is lost.
fn factor_diagonal(
    kernel: Kernel,
    tiles: &mut Aligned,
    padded: usize,
    panel: usize,
    tile: usize,
    before: &[f32],
    diagonal: &mut [f32],
) -> Result<(), usize> {
    let start = tile * TILE;
    let base = tile * padded * TILE; // of this tile's row of tiles
    for sliver in (0..TILE).step_by(SLIVER) {
        let depth = start + sliver - panel * TILE;
        let shared = SharedMut::new(tiles);
        // SAFETY: one thread; reads columns panel·48 .. start+sliver of this tile row, writes the eight after them.
        unsafe {
            let left = shared.at(base + panel * TILE * TILE);
            kernel.sliver(depth, left, left.add(sliver), shared.at(base + (start + sliver) * TILE), -1.0);
        }
        for c in sliver..sliver + SLIVER {
            let column = base + (start + c) * TILE;
            let r = start + c;
            let pivot = tiles[column + c];
            // Also catches NaN.
            if !(pivot > LEAST_PIVOT * before[r] && pivot.is_finite()) {
                return Err(r);
            }
            let root = pivot.sqrt();
            diagonal[r] = root;
            let inverse = 1.0 / root;
            for a in 0..TILE {
                tiles[column + a] = match a.cmp(&c) {
                    std::cmp::Ordering::Less => 0.0,
                    std::cmp::Ordering::Equal => root,
                    std::cmp::Ordering::Greater => tiles[column + a] * inverse,
                };
            }
            for d in c + 1..sliver + SLIVER {
                let factor = tiles[column + d];
                let to = base + (start + d) * TILE;
                for a in d..TILE {
                    tiles[to + a] = (-factor).mul_add(tiles[column + a], tiles[to + a]);
                }
            }
        }
    }
    Ok(())
}

/// `X L⁻ᵀ` for the 48 × 48 block of tile row `below` in the columns of `tile`, after subtracting what the panel's
/// earlier columns explain.
///
/// # Safety
/// `tiles` are padded · padded values; no other thread writes tile rows `below` or `tile`, which differ, meanwhile.
unsafe fn solve_tile(
    kernel: Kernel,
    tiles: SharedMut<f32>,
    padded: usize,
    panel: usize,
    tile: usize,
    below: usize,
    diagonal: &[f32],
) {
    let start = tile * TILE;
    for sliver in (0..TILE).step_by(SLIVER) {
        let depth = start + sliver - panel * TILE;
        // SAFETY: by the contract the two tile rows are this thread's; the eight columns written follow those read.
        let (to, factors) = unsafe {
            let left = tiles.at((below * padded + panel * TILE) * TILE);
            let to = tiles.at((below * padded + start + sliver) * TILE);
            kernel.sliver(depth, left, tiles.at((tile * padded + panel * TILE) * TILE + sliver), to, -1.0);
            let factors = tiles.at((tile * padded + start + sliver) * TILE + sliver);
            (&mut *to.cast::<[[f32; TILE]; SLIVER]>(), std::slice::from_raw_parts(factors, 7 * TILE + SLIVER))
        };
        finish_sliver(to, factors, &diagonal[start + sliver..][..SLIVER]);
    }
}

super::dispatch! {
    /// Solves the 8 × 8 triangle: `x_d = (x_d − Σ_{c<d} x_c L[d][c]) / L[d][d]`, with `L[d][c]` at `factors[c·48 + d]`.
    fn finish_sliver(x: &mut [[f32; TILE]; SLIVER], factors: &[f32], diagonal: &[f32]) = finish_sliver_body
}

#[inline(always)]
fn finish_sliver_body(x: &mut [[f32; TILE]; SLIVER], factors: &[f32], diagonal: &[f32]) {
    for d in 0..SLIVER {
        let mut sum = x[d];
        for c in 0..d {
            let factor = -factors[c * TILE + d];
            for a in 0..TILE {
                sum[a] = factor.mul_add(x[c][a], sum[a]);
            }
        }
        let inverse = 1.0 / diagonal[d];
        for a in 0..TILE {
            x[d][a] = sum[a] * inverse;
        }
    }
}

/// Copies the blocks below the diagonal, transposed, above it, where the solver reads them as right operands.
fn mirror(tiles: &mut Aligned, padded: usize) {
    let count = padded / TILE;
    let shared = SharedMut::new(tiles);
    (0..count).into_par_iter().for_each(|row| {
        for column in 0..=row {
            for k in 0..TILE {
                for a in (if row == column { k + 1 } else { 0 })..TILE {
                    // SAFETY: this job reads blocks (row, ..=row) below the diagonal and writes their mirror images
                    // above it, which no other job touches; on the diagonal block a > k keeps the two apart.
                    unsafe {
                        let value = *shared.at((row * padded + column * TILE + k) * TILE + a);
                        *shared.at((column * padded + row * TILE + a) * TILE + k) = value;
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::test_values::uniform;
    use super::*;

    fn gram(n: usize, samples: usize, seed: u64) -> Vec<f32> {
        let x = uniform(samples * n, seed);
        let mut h = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                h[i * n + j] = (0..samples).map(|s| x[s * n + i] * x[s * n + j]).sum();
            }
        }
        h
    }

    /// |L Lᵀ − H| over the largest diagonal entry: f32 rounding over sums of a few hundred terms.
    const MAX_RESIDUAL: f32 = 2e-6;

    #[test]
    fn the_factor_multiplies_back_to_the_matrix() {
        for n in [1, 5, 48, 49, 200, 500] {
            let h = gram(n, n + 10, 7);
            let order: Vec<u32> = (0..n as u32).map(|i| (i * 7 + 3) % n as u32).collect();
            let order = if n % 7 == 0 { (0..n as u32).collect() } else { order };
            let factor = Factor::new(&h, &order, &vec![0.5; n]).unwrap();
            let largest = (0..n).map(|i| h[i * n + i]).fold(0.0, f32::max);
            for i in 0..n {
                for j in 0..=i {
                    let product: f32 = (0..=j)
                        .map(|k| factor.tiles[at(factor.padded, i, k)] * factor.tiles[at(factor.padded, j, k)])
                        .sum();
                    let (a, b) = (order[n - 1 - i] as usize, order[n - 1 - j] as usize);
                    let expected = h[a * n + b] + if a == b { 0.5 } else { 0.0 };
                    assert!((product - expected).abs() <= MAX_RESIDUAL * largest, "({i}, {j}) of {n}");
                    assert_eq!(factor.tiles[at(factor.padded, i, j)], factor.tiles[at(factor.padded, j, i)], "mirror");
                }
            }
        }
    }

    #[test]
    fn a_lost_pivot_is_named() {
        let n = 100;
        let mut h = gram(n, 2 * n, 1);
        for i in 0..n {
            h[17 * n + i] = 0.0;
            h[i * n + 17] = 0.0;
        }
        h[17 * n + 17] = -1.0;
        let order: Vec<u32> = (0..n as u32).collect();
        assert_eq!(Factor::new(&h, &order, &vec![0.0; n]).unwrap_err(), LostPivot { column: 17 });
        h[17 * n + 17] = f32::NAN;
        assert!(Factor::new(&h, &order, &vec![0.0; n]).is_err());
    }
}
