//! `y = x wᵀ` for a few rows of `x`: decoding reads every weight once, so this runs at the memory's speed.

use half::bf16;
use rayon::prelude::*;

use super::tile::TILE;

/// Rows of the weight a thread takes at once: some 100 KiB of bf16 at usual widths, so that handing out work costs nothing.
const ROWS: usize = 32;

/// Partial sums of one dot product; the lanes of one 512-bit register.
const LANES: usize = 16;

/// `y = x wᵀ` with `x` (t, k), `w` (n, k) and `y` (t, n), meant for t ≤ 4.
///
/// # Panics
/// If a slice is not as long as its shape says.
pub fn gemv_nt(x: &[f32], w: &[f32], y: &mut [f32], t: usize, n: usize, k: usize) {
    assert_eq!((x.len(), w.len(), y.len()), (t * k, n * k, t * n));
    by_rows(y, t, n, |first, rows, out| rows_f32(x, &w[first * k..][..rows * k], out, t, k));
}

/// `y = x wᵀ` with `w` (n, k) in bf16, meant for t ≤ 4.
///
/// # Panics
/// If a slice is not as long as its shape says.
pub fn gemv_nt_bf16(x: &[f32], w: &[bf16], y: &mut [f32], t: usize, n: usize, k: usize) {
    assert_eq!((x.len(), w.len(), y.len()), (t * k, n * k, t * n));
    by_rows(y, t, n, |first, rows, out| rows_bf16(x, &w[first * k..][..rows * k], out, t, k));
}

/// Runs `compute(first row, rows, out (rows, t))` over fixed runs of weight rows and lays the results out as (t, n).
fn by_rows(y: &mut [f32], t: usize, n: usize, compute: impl Fn(usize, usize, &mut [f32]) + Sync) {
    if t == 0 || n == 0 {
        return;
    }
    if t == 1 {
        y.par_chunks_mut(ROWS).enumerate().for_each(|(chunk, out)| compute(chunk * ROWS, out.len(), out));
        return;
    }
    let mut transposed = vec![0.0; n * t]; // (n, t)
    transposed.par_chunks_mut(ROWS * t).enumerate().for_each(|(chunk, out)| compute(chunk * ROWS, out.len() / t, out));
    for (row, values) in transposed.chunks_exact(t).enumerate() {
        for (s, &value) in values.iter().enumerate() {
            y[s * n + row] = value;
        }
    }
}

super::dispatch! { fn rows_f32(x: &[f32], w: &[f32], out: &mut [f32], t: usize, k: usize) = rows_body::<f32> }
super::dispatch! { fn rows_bf16(x: &[f32], w: &[bf16], out: &mut [f32], t: usize, k: usize) = rows_body::<bf16> }

/// A stored weight value: f32, or bf16, the only one of two bytes.
pub(crate) trait Stored: Copy + Send + Sync {
    /// The value as f32, exactly.
    fn wide(self) -> f32;
}

impl Stored for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Places rows of a matrix side by side, as a tile: `to[l · 48 + row] = from[row · stride + l]` for `l` in `0..depth`, zeros
/// for rows beyond `rows`.
///
/// # Panics
/// If `from` does not hold `rows` ≤ 48 such rows or `to` not depth · 48 values.
pub(crate) fn turn<T: Stored>(from: &[T], rows: usize, stride: usize, depth: usize, to: &mut [f32]) {
    assert!(to.len() == depth * TILE && rows <= TILE && (rows == 0 || (rows - 1) * stride + depth <= from.len()));
    #[cfg(target_arch = "x86_64")]
    if super::isa() == super::Isa::Avx512 {
        // SAFETY: AVX-512 was detected, and the lengths were checked.
        return unsafe { turn_avx512(from.as_ptr(), rows, stride, depth, to.as_mut_ptr()) };
    }
    turn_plain(from, rows, stride, depth, to);
}

/// The definition of [`turn`].
fn turn_plain<T: Stored>(from: &[T], rows: usize, stride: usize, depth: usize, to: &mut [f32]) {
    for (l, to) in to.chunks_exact_mut(TILE).enumerate().take(depth) {
        for (row, to) in to.iter_mut().enumerate() {
            *to = if row < rows { from[row * stride + l].wide() } else { 0.0 };
        }
    }
}

/// [`turn_plain`] by blocks of 16 × 16 that are turned in registers.
///
/// # Safety
/// `from` holds `rows` ≤ 48 rows of at least `depth` values, `stride` apart; `to` holds depth · 48.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn turn_avx512<T: Stored>(from: *const T, rows: usize, stride: usize, depth: usize, to: *mut f32) {
    use std::arch::x86_64::{
        _mm256_maskz_loadu_epi16, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_maskz_loadu_ps,
        _mm512_permutex2var_ps, _mm512_setr_epi32, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
    };
    // Interleaves the lower, or the upper, halves of two registers. Four rounds of it over rows i and i + 8 make every row
    // a column.
    let lower = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let upper = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    for first in (0..TILE).step_by(LANES) {
        let here = rows.saturating_sub(first).min(LANES);
        for place in (0..depth).step_by(LANES) {
            let width = LANES.min(depth - place);
            let mask = ((1u32 << width) - 1) as u16;
            let mut block = [_mm512_setzero_ps(); LANES];
            for row in 0..here {
                // SAFETY: `width` values of row first + row < rows; masked places are not read.
                block[row] = unsafe {
                    let from = from.add((first + row) * stride + place);
                    match size_of::<T>() {
                        2 => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(
                            _mm256_maskz_loadu_epi16(mask, from.cast()),
                        ))),
                        _ => _mm512_maskz_loadu_ps(mask, from.cast()),
                    }
                };
            }
            for _ in 0..4 {
                let mut next = block;
                for i in 0..LANES / 2 {
                    next[2 * i] = _mm512_permutex2var_ps(block[i], lower, block[i + 8]);
                    next[2 * i + 1] = _mm512_permutex2var_ps(block[i], upper, block[i + 8]);
                }
                block = next;
            }
            for column in 0..width {
                // SAFETY: place + column < depth and first + 16 ≤ 48.
                unsafe { _mm512_storeu_ps(to.add((place + column) * TILE + first), block[column]) };
            }
        }
    }
}

/// `out` (rows, t) = the dot products of every row of `w` (rows, k) with every row of `x` (t, k).
#[inline(always)]
fn rows_body<T: Stored>(x: &[f32], w: &[T], out: &mut [f32], t: usize, k: usize) {
    for (row, out) in out.chunks_exact_mut(t).enumerate() {
        let w = &w[row * k..][..k];
        let mut s = 0;
        while s + 2 <= t {
            let [a, b] = dots([&x[s * k..][..k], &x[(s + 1) * k..][..k]], w);
            (out[s], out[s + 1]) = (a, b);
            s += 2;
        }
        if s < t {
            [out[s]] = dots([&x[s * k..][..k]], w);
        }
    }
}

/// The dot products of `w` with each of `x`, in four times [`LANES`] partial sums.
#[inline(always)]
fn dots<T: Stored, const N: usize>(x: [&[f32]; N], w: &[T]) -> [f32; N] {
    const STEP: usize = 4 * LANES;
    let mut sums = [[[0.0f32; LANES]; 4]; N];
    let whole = w.len() / STEP * STEP;
    let mut at = 0;
    while at < whole {
        super::prefetch(&w[at..][..STEP]);
        for part in 0..4 {
            let from = at + part * LANES;
            let w = &w[from..][..LANES];
            for s in 0..N {
                let x = &x[s][from..][..LANES];
                for lane in 0..LANES {
                    sums[s][part][lane] = x[lane].mul_add(w[lane].wide(), sums[s][part][lane]);
                }
            }
        }
        at += STEP;
    }
    let mut out = [0.0; N];
    for s in 0..N {
        let mut lanes = [0.0f32; LANES];
        for lane in 0..LANES {
            lanes[lane] = (sums[s][0][lane] + sums[s][1][lane]) + (sums[s][2][lane] + sums[s][3][lane]);
        }
        for i in whole..w.len() {
            lanes[i % LANES] = x[s][i].mul_add(w[i].wide(), lanes[i % LANES]);
        }
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
            half /= 2;
        }
        out[s] = lanes[0];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::test_values::uniform;
    use super::*;

    #[test]
    fn tiles_are_turned_as_defined() {
        for (rows, stride, depth) in [(48, 20, 20), (1, 1, 1), (47, 40, 33), (16, 16, 16), (0, 5, 5), (20, 100, 64)] {
            let from = uniform(48 * stride, 8);
            let narrow: Vec<bf16> = from.iter().map(|&v| bf16::from_f32(v)).collect();
            let (mut fast, mut plain) = (vec![f32::NAN; depth * TILE], vec![f32::NAN; depth * TILE]);
            turn(&from, rows, stride, depth, &mut fast);
            turn_plain(&from, rows, stride, depth, &mut plain);
            assert_eq!(fast, plain);
            turn(&narrow, rows, stride, depth, &mut fast);
            turn_plain(&narrow, rows, stride, depth, &mut plain);
            assert_eq!(fast, plain);
        }
    }

    #[test]
    fn the_instruction_sets_give_the_same_bits() {
        for k in [1, 63, 64, 200, 576] {
            let (x, w) = (uniform(3 * k, 1), uniform(5 * k, 2));
            let narrow: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
            let (mut fast, mut plain) = (vec![0.0; 15], vec![0.0; 15]);
            rows_f32(&x, &w, &mut fast, 3, k);
            rows_body::<f32>(&x, &w, &mut plain, 3, k);
            assert_eq!(fast, plain);
            rows_bf16(&x, &narrow, &mut fast, 3, k);
            rows_body::<bf16>(&x, &narrow, &mut plain, 3, k);
            assert_eq!(fast, plain);
        }
    }
}
