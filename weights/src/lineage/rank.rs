//! The numerical rank of a difference D = B − A (m×n) under the noise of rounding.
//!
//! A merged LoRA adds a matrix of rank r ≤ 64 or so to the weights, and the sum is rounded to the stored type: D is the
//! low-rank matrix plus independent errors whose variances are known, vᵢⱼ = (hₐ² + h_b²)/12 with h the spacing of the
//! numbers of either type around the element. The singular values of such noise end at
//!     √(maxᵢ Σⱼ vᵢⱼ) + √(maxⱼ Σᵢ vᵢⱼ)
//! (Bandeira and van Handel 2016, theorem 1.1; for equal variances this is the edge of Marchenko and Pastur, σ(√m + √n)).
//! Singular values beyond that edge are counted as the rank. If what they leave of ‖D‖² is no more than rounding
//! explains, D is low-rank; else the edge is raised to the noise that is really there, and they only stand out.
//!
//! The leading singular values come from a randomised range finder with one power iteration (Halko, Martinsson and Tropp
//! 2011, algorithm 4.3): four walks over the pair and memory for k rows and columns. The random matrix is fixed, and all
//! products are summed in one order, so the result is the same each time.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use serde::Serialize;

use super::pair::{Pair, Piece};
use crate::Result;

/// Directions sought first, and at most: a LoRA of rank 128 and some to see the edge.
const DIRECTIONS: [usize; 2] = [24, 144];
/// Directions that must remain under the edge for a rank to be believed.
const SPARE: usize = 8;
/// Room over the edge for the finite size and the estimated variances.
const EDGE_ROOM: f64 = 1.1;
/// Room over the rounding energy.
const ROUNDING_ROOM: f64 = 2.0;
/// Relative energy that remains where the low-rank matrix itself was rounded, to bf16 at the coarsest, before it was
/// added: (2⁻⁸)²/3.
const PRODUCT_ROUNDING: f64 = 5.1e-6;

/// What stands out of a difference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spectrum {
    /// Singular values beyond the edge of the noise.
    pub rank: usize,
    /// Share of ‖D‖² they explain.
    pub explained: f64,
    /// Share of what rounding does not explain that they explain.
    pub explained_beyond_rounding: f64,
    /// Energy they leave, over that expected of rounding.
    pub left_over_rounding: f64,
    /// ‖D‖²/σ₁²: the stable rank of the whole difference.
    pub stable_rank: f64,
    /// The largest singular values of D, up to 16.
    pub singular_values: Vec<f64>,
    /// Nothing but rounding remains beside them.
    #[serde(skip)]
    pub low_rank: bool,
}

/// The spectrum of B − A; `None` if the matrix is too small to tell a low rank from a full one.
pub(super) fn find(pair: &Pair<'_>, rounding: f64) -> Result<Option<Spectrum>> {
    let least = pair.rows.min(pair.columns);
    if least < 12 {
        return Ok(None);
    }
    let edges = edges(pair)?;
    let mut found = None;
    for directions in DIRECTIONS {
        let k = directions.min(least);
        let values = singular_values(pair, k)?;
        let (spectrum, settled) = judge(&values, k == least, least, &edges, rounding);
        found = Some(spectrum);
        if settled || k == least {
            break;
        }
    }
    Ok(found)
}

/// The edge of the rounding noise, and ‖D‖².
struct Edges {
    noise: f64,
    energy: f64,
}

/// `values`: the leading singular values, descending; whether the judgement would not change with more of them.
fn judge(values: &[f64], all: bool, least: usize, edges: &Edges, rounding: f64) -> (Spectrum, bool) {
    let energy = edges.energy;
    let left = |rank: usize| (energy - values[..rank].iter().map(|s| s * s).sum::<f64>()).max(0.0);
    let beyond = |edge: f64| values.iter().take_while(|&&value| value > edge).count();
    // Products in f64 of f32 numbers leave far less than this.
    let floor = 1e-7 * values.first().copied().unwrap_or(0.0);
    let edge = |times: f64| (EDGE_ROOM * edges.noise * times.sqrt()).max(floor);
    let mut rank = beyond(edge(1.0));
    let settled = all || rank + SPARE <= values.len();
    // The noise may be more than rounding; then it ends later, and fewer values stand out of it.
    loop {
        let times = (left(rank) / rounding.max(f64::MIN_POSITIVE)).max(1.0);
        let fewer = beyond(edge(times)).min(rank);
        if fewer == rank {
            break;
        }
        rank = fewer;
    }
    let rest = left(rank);
    let only_rounding = rest <= (ROUNDING_ROOM * rounding).max(PRODUCT_ROUNDING * energy);
    let spectrum = Spectrum {
        rank,
        explained: 1.0 - rest / energy,
        explained_beyond_rounding: ((energy - rest) / (energy - rounding).max(energy - rest)).clamp(0.0, 1.0),
        left_over_rounding: rest / rounding.max(f64::MIN_POSITIVE),
        stable_rank: energy / values.first().map_or(energy, |s| s * s).max(f64::MIN_POSITIVE),
        singular_values: values.iter().copied().take(16).collect(),
        low_rank: only_rounding && rank > 0 && rank <= least / 4 && (all || rank + SPARE <= values.len()),
    };
    // With everything explained or the noise far above rounding, more directions change nothing.
    let settled = settled || !only_rounding && rank + SPARE <= values.len() / 2;
    (spectrum, settled)
}

fn edges(pair: &Pair<'_>) -> Result<Edges> {
    let (a, b) = (pair.a.array.precision(), pair.b.array.precision());
    let (mut largest_row, mut columns, mut energy) = (0.0f64, vec![0.0; pair.columns], 0.0);
    pair.walk(
        |piece| {
            let (mut largest_row, mut columns, mut energy) = (0.0f64, vec![0.0; pair.columns], 0.0);
            for (row_a, row_b) in piece.a.chunks_exact(pair.columns).zip(piece.b.chunks_exact(pair.columns)) {
                let mut row = 0.0;
                for ((&x, &y), column) in row_a.iter().zip(row_b).zip(&mut columns) {
                    let (spacing_a, spacing_b) = (a.spacing(x), b.spacing(y));
                    let variance = (spacing_a * spacing_a + spacing_b * spacing_b) / 12.0;
                    row += variance;
                    *column += variance;
                    energy += (f64::from(y) - f64::from(x)).powi(2);
                }
                largest_row = largest_row.max(row);
            }
            (largest_row, columns, energy)
        },
        |part| {
            largest_row = largest_row.max(part.0);
            columns.iter_mut().zip(part.1).for_each(|(column, part)| *column += part);
            energy += part.2;
        },
    )?;
    let largest_column = columns.into_iter().fold(0.0, f64::max);
    Ok(Edges { noise: largest_row.sqrt() + largest_column.sqrt(), energy })
}

/// The `k` leading singular values of B − A, descending; the later ones are lower bounds.
fn singular_values(pair: &Pair<'_>, k: usize) -> Result<Vec<f64>> {
    let (m, n) = (pair.rows, pair.columns);
    let mut right = Columns::random(n, k);
    right.orthonormalise();
    let mut left = Columns::zero(m, k);
    for last in [false, true] {
        times(pair, &right, &mut left)?; // D·right, (m, k)
        left.orthonormalise();
        transposed_times(pair, &left, &mut right)?; // Dᵀ·left, (n, k)
        if !last {
            right.orthonormalise();
        }
    }
    // The singular values of leftᵀ D are the roots of the eigenvalues of its Gram matrix.
    let mut gram = vec![0.0; k * k];
    matmul(
        MatMut::from_column_major_slice_mut(&mut gram, k, k),
        Accum::Replace,
        right.as_ref().transpose(),
        right.as_ref(),
        1.0,
        Par::Seq,
    );
    let mut values: Vec<f64> = eigenvalues(gram, k).into_iter().map(|value| value.max(0.0).sqrt()).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    Ok(values)
}

fn difference(piece: &Piece<'_>) -> Vec<f64> {
    piece.a.iter().zip(piece.b).map(|(&a, &b)| f64::from(b) - f64::from(a)).collect()
}

/// `out` = D·x.
fn times(pair: &Pair<'_>, x: &Columns, out: &mut Columns) -> Result<()> {
    let k = x.count;
    pair.walk(
        |piece| {
            let d = difference(piece);
            let mut product = vec![0.0; piece.rows.len() * k];
            matmul(
                MatMut::from_column_major_slice_mut(&mut product, piece.rows.len(), k),
                Accum::Replace,
                MatRef::from_row_major_slice(&d, piece.rows.len(), pair.columns),
                x.as_ref(),
                1.0,
                Par::Seq,
            );
            (piece.rows.clone(), product)
        },
        |(rows, product)| {
            for (column, part) in product.chunks_exact(rows.len()).enumerate() {
                out.column(column)[rows.clone()].copy_from_slice(part);
            }
        },
    )
}

/// `out` = Dᵀ·x.
fn transposed_times(pair: &Pair<'_>, x: &Columns, out: &mut Columns) -> Result<()> {
    let (n, k) = (pair.columns, x.count);
    out.values.fill(0.0);
    pair.walk(
        |piece| {
            let d = difference(piece);
            let mut product = vec![0.0; n * k];
            matmul(
                MatMut::from_column_major_slice_mut(&mut product, n, k),
                Accum::Replace,
                MatRef::from_row_major_slice(&d, piece.rows.len(), n).transpose(),
                x.as_ref().subrows(piece.rows.start, piece.rows.len()),
                1.0,
                Par::Seq,
            );
            product
        },
        |product| out.values.iter_mut().zip(product).for_each(|(out, part)| *out += part),
    )
}

/// `count` vectors of length `length`, one after the other.
struct Columns {
    length: usize,
    count: usize,
    values: Vec<f64>,
}

impl Columns {
    fn zero(length: usize, count: usize) -> Self {
        Self { length, count, values: vec![0.0; length * count] }
    }

    /// Uniform numbers of mean 0, always the same; any isotropic enough matrix finds the range.
    fn random(length: usize, count: usize) -> Self {
        let mut state = 0x5eed_u64;
        let values = (0..length * count).map(|_| uniform(&mut state) - 0.5).collect();
        Self { length, count, values }
    }

    fn as_ref(&self) -> MatRef<'_, f64> {
        MatRef::from_column_major_slice(&self.values, self.length, self.count)
    }

    fn column(&mut self, at: usize) -> &mut [f64] {
        &mut self.values[at * self.length..][..self.length]
    }

    /// Gram and Schmidt, twice, which is enough. What has no direction of its own becomes zero.
    fn orthonormalise(&mut self) {
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let largest = self.values.chunks_exact(self.length).map(norm).fold(0.0, f64::max);
        for at in 0..self.count {
            let (before, rest) = self.values.split_at_mut(at * self.length);
            let column = &mut rest[..self.length];
            for _ in 0..2 {
                for known in before.chunks_exact(self.length) {
                    let dot: f64 = known.iter().zip(&*column).map(|(a, b)| a * b).sum();
                    column.iter_mut().zip(known).for_each(|(x, known)| *x -= dot * known);
                }
            }
            let length = norm(column);
            let scale = if length > 1e-13 * largest { 1.0 / length } else { 0.0 };
            column.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014), as a number in [0, 1).
pub(super) fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// The eigenvalues of a symmetric matrix (k×k) by Jacobi's rotations, in no order.
fn eigenvalues(mut g: Vec<f64>, k: usize) -> Vec<f64> {
    const MOST_SWEEPS: usize = 30; // ten are plenty in practice
    for _ in 0..MOST_SWEEPS {
        let diagonal: f64 = (0..k).map(|i| g[i * k + i].powi(2)).sum();
        let off: f64 = (0..k).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| g[i * k + j].powi(2)).sum();
        if off <= 1e-30 * diagonal {
            break;
        }
        for p in 0..k {
            for q in p + 1..k {
                let entry = g[p * k + q];
                if entry == 0.0 {
                    continue;
                }
                let theta = (g[q * k + q] - g[p * k + p]) / (2.0 * entry);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for i in 0..k {
                    let (x, y) = (g[i * k + p], g[i * k + q]);
                    g[i * k + p] = c * x - s * y;
                    g[i * k + q] = s * x + c * y;
                }
                for i in 0..k {
                    let (x, y) = (g[p * k + i], g[q * k + i]);
                    g[p * k + i] = c * x - s * y;
                    g[q * k + i] = s * x + c * y;
                }
            }
        }
    }
    (0..k).map(|i| g[i * k + i]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jacobi_finds_the_eigenvalues_of_a_known_matrix() {
        // The second difference matrix of size k has eigenvalues 2 − 2 cos(πj/(k + 1)).
        let k = 9;
        let mut g = vec![0.0; k * k];
        for i in 0..k {
            g[i * k + i] = 2.0;
            if i > 0 {
                g[i * k + i - 1] = -1.0;
                g[(i - 1) * k + i] = -1.0;
            }
        }
        let mut found = eigenvalues(g, k);
        found.sort_by(f64::total_cmp);
        for (j, value) in found.into_iter().enumerate() {
            let expected = 2.0 - 2.0 * (std::f64::consts::PI * (j + 1) as f64 / (k + 1) as f64).cos();
            assert!((value - expected).abs() < 1e-12, "{value} {expected}");
        }
    }
}
