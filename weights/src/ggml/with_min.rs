//! Q2_K, Q4_K, Q5_K: sub-blocks with a scale and a minimum, which themselves are codes of the block's two f16.
//!
//! ```text
//! x ≈ s q − m            of each sub-block, q from 0 to Q, m ≥ 0
//! fit    for candidate slopes i = (r + 0.1 t + Q) / (max − min), t = 0, 1, …:
//!            q = i (x − min) rounded, kept within 0..Q
//!            s, −m = the weighted least squares line through (q, x); a line with m < 0 goes through 0 instead
//!        and the first of the smallest Σ w |s q − m − x|^p wins, the slope Q / (max − min) itself included;
//!        a line that is better than those before it also gives the candidates after it their min, −m
//! store  d = max s / S, dmin = max m / S, codes of s and m by rounding s (S / max s) and m (S / max m)
//! codes  q = (x + dmin·mc) / (d·sc) rounded, kept within 0..Q
//!
//!         values   Q    S    r      t       w                    p
//! Q2_K    16       3    15   −0.5   0..15   |x|                  1
//! Q4_K    32       15   63   −1     0..20   rms of x + |x|       2
//! Q5_K    32       31   63   −0.5   0..15   rms of x + |x|       2
//! ```
//!
//! A sub-block whose scale is stored as 0 keeps the codes of its fit: they mean nothing, but the bytes are agreed.

use super::{
    half_bits::{f16_bits, is_finite, wide},
    lanes::{LANES, Lanes, across, clamped, nearest},
};
use crate::dispatch;

dispatch! {
    /// Q2_K; false if `d` or `dmin` of a block is beyond f16. So are the others here.
    pub(super) fn q2_k(values: &[f32], out: &mut [u8]) -> bool = q2_k_body
}
dispatch! { pub(super) fn q4_k(values: &[f32], out: &mut [u8]) -> bool = q4_k_body }
dispatch! { pub(super) fn q5_k(values: &[f32], out: &mut [u8]) -> bool = q5_k_body }

/// What one type's fit tries.
struct Search {
    /// The largest code.
    most: i32,
    /// The first candidate's distance from `most`.
    first: f32,
    /// The last candidate's number.
    last: usize,
    /// Whether errors count by magnitude rather than by square.
    absolute: bool,
}

const Q2: Search = Search { most: 3, first: -0.5, last: 15, absolute: true };
const Q4: Search = Search { most: 15, first: -1.0, last: 20, absolute: false };
const Q5: Search = Search { most: 31, first: -0.5, last: 15, absolute: false };

/// The lines of sixteen sub-blocks.
struct Fit {
    scale: Lanes,
    /// What is taken away, so ≥ 0.
    min: Lanes,
    /// The slope and the start whose codes won; a slope of 0 where all codes are 0.
    slope: Lanes,
    start: Lanes,
}

#[inline(always)]
fn fit<const N: usize>(x: &[Lanes; N], w: &[Lanes; N], search: &Search) -> Fit {
    let most = search.most as f32;
    let (mut least, mut greatest, mut sum_w) = (x[0], x[0], w[0]);
    let mut sum_x = [0.0; LANES];
    for l in 0..LANES {
        sum_x[l] = w[0][l] * x[0][l];
    }
    for i in 1..N {
        for l in 0..LANES {
            let (x, w) = (x[i][l], w[i][l]);
            least[l] = if x < least[l] { x } else { least[l] };
            greatest[l] = if x > greatest[l] { x } else { greatest[l] };
            sum_w[l] += w;
            sum_x[l] += w * x;
        }
    }
    let mut slope = [0.0; LANES];
    let mut scale = [0.0; LANES];
    for l in 0..LANES {
        least[l] = if least[l] > 0.0 { 0.0 } else { least[l] };
        slope[l] = most / (greatest[l] - least[l]);
        scale[l] = 1.0 / slope[l];
    }
    let mut best = [0.0; LANES];
    for i in 0..N {
        for l in 0..LANES {
            let code = clamped(slope[l] * (x[i][l] - least[l]), 0, search.most);
            best[l] += w[i][l] * deviation(scale[l] * code + least[l] - x[i][l], search.absolute);
        }
    }

    let smallest = least;
    let mut start = least;
    let mut codes = [[0.0; LANES]; N];
    for step in 0..=search.last {
        let wanted = search.first + 0.1 * step as f32 + most;
        let (mut tried, mut sum_q, mut sum_qq, mut sum_qx) = ([0.0; LANES], [0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for l in 0..LANES {
            tried[l] = wanted / (greatest[l] - least[l]);
        }
        for i in 0..N {
            for l in 0..LANES {
                let code = clamped(tried[l] * (x[i][l] - least[l]), 0, search.most);
                codes[i][l] = code;
                let wq = w[i][l] * code;
                sum_q[l] += wq;
                sum_qq[l] += wq * code;
                sum_qx[l] += wq * x[i][l];
            }
        }
        let (mut determinant, mut a, mut b) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for l in 0..LANES {
            determinant[l] = sum_w[l] * sum_qq[l] - sum_q[l] * sum_q[l];
            a[l] = (sum_w[l] * sum_qx[l] - sum_x[l] * sum_q[l]) / determinant[l];
            b[l] = (sum_qq[l] * sum_x[l] - sum_q[l] * sum_qx[l]) / determinant[l];
            let through_zero = b[l] > 0.0;
            a[l] = if through_zero { sum_qx[l] / sum_qq[l] } else { a[l] };
            b[l] = if through_zero { 0.0 } else { b[l] };
        }
        let mut error = [0.0; LANES];
        for i in 0..N {
            for l in 0..LANES {
                error[l] += w[i][l] * deviation(a[l] * codes[i][l] + b[l] - x[i][l], search.absolute);
            }
        }
        for l in 0..LANES {
            let better = (determinant[l] > 0.0) & (error[l] < best[l]);
            best[l] = if better { error[l] } else { best[l] };
            scale[l] = if better { a[l] } else { scale[l] };
            slope[l] = if better { tried[l] } else { slope[l] };
            start[l] = if better { least[l] } else { start[l] };
            least[l] = if better { b[l] } else { least[l] };
        }
    }
    let mut min = [0.0; LANES];
    for l in 0..LANES {
        let flat = greatest[l] == smallest[l];
        scale[l] = if flat { 0.0 } else { scale[l] };
        slope[l] = if flat { 0.0 } else { slope[l] };
        min[l] = if flat { -smallest[l] } else { -least[l] };
    }
    Fit { scale, min, slope, start }
}

#[inline(always)]
fn deviation(difference: f32, absolute: bool) -> f32 {
    if absolute { difference.abs() } else { difference * difference }
}

impl Fit {
    /// The codes that won in sub-block `l`, whose values are `x`.
    #[inline(always)]
    fn kept(&self, l: usize, x: &[f32], most: i32, codes: &mut [u8]) {
        for (code, &x) in codes.iter_mut().zip(x) {
            let line = if self.slope[l] == 0.0 { 0.0 } else { self.slope[l] * (x - self.start[l]) };
            *code = clamped(line, 0, most) as u8;
        }
    }
}

/// The codes of a sub-block for its stored scale and minimum.
#[inline(always)]
fn code<const N: usize>(x: &[f32; N], d: f32, dm: f32, most: i32, codes: &mut [u8; N]) {
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = clamped((x + dm) / d, 0, most) as u8;
    }
}

#[inline(always)]
fn greatest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |greatest, &value| if value > greatest { value } else { greatest })
}

#[inline(always)]
fn q2_k_body(values: &[f32], out: &mut [u8]) -> bool {
    let mut held = true;
    for (values, out) in values.as_chunks::<256>().0.iter().zip(out.as_chunks_mut::<84>().0) {
        let x = across::<16>(values);
        let fit = fit(&x, &x.map(|x| x.map(f32::abs)), &Q2);
        let (max_scale, max_min) = (greatest(&fit.scale), greatest(&fit.min));
        let (to_scale, to_min) = (15.0 / max_scale, 15.0 / max_min);
        let d = if max_scale > 0.0 { f16_bits(max_scale / 15.0) } else { 0 };
        let dmin = if max_min > 0.0 { f16_bits(max_min / 15.0) } else { 0 };
        let (packed, rest) = out.split_at_mut(16);
        for (l, packed) in packed.iter_mut().enumerate() {
            *packed = if max_scale > 0.0 { nearest(to_scale * fit.scale[l]) as u8 } else { 0 };
            *packed |= if max_min > 0.0 { (nearest(to_min * fit.min[l]) << 4) as u8 } else { 0 };
        }
        let mut codes = [0; 256];
        let (wide_d, wide_dmin) = (wide(d), wide(dmin));
        let subs = values.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
        for (l, (x, codes)) in subs.enumerate() {
            let scale = wide_d * f32::from(packed[l] & 15);
            if scale == 0.0 {
                fit.kept(l, x, 3, codes);
            } else {
                code(x, scale, wide_dmin * f32::from(packed[l] >> 4), 3, codes);
            }
        }
        super::signed::pack_crumbs(&codes, &mut rest[..64]);
        rest[64..66].copy_from_slice(&d.to_le_bytes());
        rest[66..68].copy_from_slice(&dmin.to_le_bytes());
        held &= is_finite(d) && is_finite(dmin);
    }
    held
}

#[inline(always)]
fn q4_k_body(values: &[f32], out: &mut [u8]) -> bool {
    pairs::<144>(values, out, &Q4, |codes, out| {
        for (codes, out) in codes.as_chunks::<64>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            for (j, out) in out.iter_mut().enumerate() {
                *out = codes[j] | codes[j + 32] << 4;
            }
        }
    })
}

#[inline(always)]
fn q5_k_body(values: &[f32], out: &mut [u8]) -> bool {
    pairs::<176>(values, out, &Q5, |codes, out| {
        let (high, low) = out.split_at_mut(32);
        high.fill(0);
        for (g, (codes, low)) in codes.as_chunks::<64>().0.iter().zip(low.as_chunks_mut::<32>().0).enumerate() {
            for (j, low) in low.iter_mut().enumerate() {
                *low = (codes[j] & 15) | codes[j + 32] << 4;
                high[j] |= (codes[j] >> 4) << (2 * g) | (codes[j + 32] >> 4) << (2 * g + 1);
            }
        }
    })
}

/// Q4_K and Q5_K: two blocks of eight sub-blocks at a time, the last one perhaps alone.
#[inline(always)]
fn pairs<const B: usize>(
    values: &[f32],
    out: &mut [u8],
    search: &Search,
    pack: impl Fn(&[u8; 256], &mut [u8]) + Copy,
) -> bool {
    let mut held = true;
    for (values, out) in values.chunks(512).zip(out.chunks_mut(2 * B)) {
        let x = across::<32>(values);
        let mut squares = [0.0; LANES];
        for x in &x {
            for l in 0..LANES {
                squares[l] += x[l] * x[l];
            }
        }
        let mut w = [[0.0; LANES]; 32];
        for (w, x) in w.iter_mut().zip(&x) {
            for l in 0..LANES {
                w[l] = (squares[l] / 32.0).sqrt() + x[l].abs();
            }
        }
        let fit = fit(&x, &w, search);
        let blocks = values.as_chunks::<256>().0.iter().zip(out.as_chunks_mut::<B>().0);
        for (number, (values, out)) in blocks.enumerate() {
            held &= eight(values, out, search.most, &fit, 8 * number, pack);
        }
    }
    held
}

/// One block of eight sub-blocks, whose lines are lanes `first`.. of `fit`.
#[inline(always)]
fn eight<const B: usize>(
    values: &[f32; 256],
    out: &mut [u8; B],
    most: i32,
    fit: &Fit,
    first: usize,
    pack: impl Fn(&[u8; 256], &mut [u8]),
) -> bool {
    let (scales, mins) = (&fit.scale[first..][..8], &fit.min[first..][..8]);
    let (max_scale, max_min) = (greatest(scales), greatest(mins));
    let to_scale = if max_scale > 0.0 { 63.0 / max_scale } else { 0.0 };
    let to_min = if max_min > 0.0 { 63.0 / max_min } else { 0.0 };
    let (d, dmin) = (f16_bits(max_scale / 63.0), f16_bits(max_min / 63.0));
    let (wide_d, wide_dmin) = (wide(d), wide(dmin));
    let packed: &mut [u8] = &mut out[4..16];
    packed.fill(0);
    let mut codes = [0; 256];
    let subs = values.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0);
    for (g, (x, codes)) in subs.enumerate() {
        let sc = (nearest(to_scale * scales[g]) as u8).min(63);
        let m = (nearest(to_min * mins[g]) as u8).min(63);
        if g < 4 {
            packed[g] |= sc;
            packed[g + 4] |= m;
        } else {
            packed[g + 4] = (sc & 15) | (m & 15) << 4;
            packed[g - 4] |= (sc >> 4) << 6;
            packed[g] |= (m >> 4) << 6;
        }
        let scale = wide_d * f32::from(sc);
        if scale == 0.0 {
            fit.kept(first + g, x, most, codes);
        } else {
            code(x, scale, wide_dmin * f32::from(m), most, codes);
        }
    }
    out[..2].copy_from_slice(&d.to_le_bytes());
    out[2..4].copy_from_slice(&dmin.to_le_bytes());
    pack(&codes, &mut out[16..]);
    is_finite(d) && is_finite(dmin)
}
