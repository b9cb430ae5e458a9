//! Q3_K, Q6_K: sub-blocks of 16 with a scale and no minimum; the scales are signed codes of the block's f16.
//!
//! ```text
//! x ≈ s q                q from −Q to Q − 1, errors weighted with x²
//! Q6_K   Q = 32: for candidate slopes i = −(32 + 0.1 t) / e, t = 0, −9, −8, … 9 (e the extreme, as for Q4_0):
//!            q = i x rounded and kept, s = Σ w x q / Σ w q²; the first of the largest s Σ w x q wins
//!        d = −s* / 128 (s* the scale of largest magnitude), its codes from −128 to 127
//! Q3_K   Q = 4: from the slope −4 / e on, five times over: each q in turn becomes x / s (s without it) rounded, if
//!        that makes (Σ w x q)² / Σ w q² larger
//!        d = −s* / 32, its codes from −32 to 31
//! codes  q = x / (d·sc) rounded and kept
//! ```
//!
//! A sub-block whose scale is stored as 0 keeps the codes of its fit, one without a value above 10⁻¹⁵ the code 0.

use super::{
    half_bits::{f16_bits, is_finite, wide},
    lanes::{LANES, Lanes, across, clamped, nearest},
};
use crate::dispatch;

dispatch! {
    /// Q3_K; false if the scale of a block is beyond f16.
    pub(super) fn q3_k(values: &[f32], out: &mut [u8]) -> bool = q3_k_body
}
dispatch! {
    /// Q6_K; false if the scale of a block is beyond f16.
    pub(super) fn q6_k(values: &[f32], out: &mut [u8]) -> bool = q6_k_body
}

/// Magnitudes below this count as nothing.
const NOTHING: f32 = 1e-15;

/// The value of largest magnitude of each lane, the first of equals, with its sign.
#[inline(always)]
fn extremes(x: &[Lanes; 16]) -> Lanes {
    let mut extreme = [0.0f32; LANES];
    for x in x {
        for l in 0..LANES {
            extreme[l] = if x[l].abs() > extreme[l].abs() { x[l] } else { extreme[l] };
        }
    }
    extreme
}

/// The scales of sixteen sub-blocks of Q6_K, and the slopes whose codes won.
#[inline(always)]
fn fit_q6(x: &[Lanes; 16], extreme: &Lanes) -> (Lanes, Lanes) {
    let (mut scale, mut best, mut slope) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for step in 0..20 {
        let t = if step == 0 { 0 } else { step - 10 };
        if step == 10 {
            continue; // t = 0 came first
        }
        let (mut tried, mut sum_xq, mut sum_qq) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for l in 0..LANES {
            tried[l] = -(32.0 + 0.1 * t as f32) / extreme[l];
        }
        for x in x {
            for l in 0..LANES {
                let code = clamped(tried[l] * x[l], -32, 31);
                let w = x[l] * x[l];
                sum_xq[l] += w * x[l] * code;
                sum_qq[l] += w * code * code;
            }
        }
        for l in 0..LANES {
            let fitted = sum_xq[l] / sum_qq[l];
            let better =
                if step == 0 { true } else { (sum_qq[l] > 0.0) & (sum_xq[l] * sum_xq[l] > best[l] * sum_qq[l]) };
            let fitted = if (step == 0) & (sum_qq[l] == 0.0) { 0.0 } else { fitted };
            scale[l] = if better { fitted } else { scale[l] };
            best[l] = if better { fitted * sum_xq[l] } else { best[l] };
            slope[l] = if better { tried[l] } else { slope[l] };
        }
    }
    for l in 0..LANES {
        scale[l] = if extreme[l].abs() < NOTHING { 0.0 } else { scale[l] };
    }
    (scale, slope)
}

/// The number of largest magnitude, the first of equals.
#[inline(always)]
fn leading(scales: &Lanes) -> f32 {
    scales.iter().fold(0.0f32, |leading, &scale| if scale.abs() > leading.abs() { scale } else { leading })
}

#[inline(always)]
fn q6_k_body(values: &[f32], out: &mut [u8]) -> bool {
    let mut held = true;
    for (values, out) in values.as_chunks::<256>().0.iter().zip(out.as_chunks_mut::<210>().0) {
        let x = across::<16>(values);
        let extreme = extremes(&x);
        let (scale, slope) = fit_q6(&x, &extreme);
        let leading = leading(&scale);
        if leading.abs() < NOTHING {
            out.fill(0);
            continue;
        }
        let to_code = -128.0 / leading;
        let d = f16_bits(1.0 / to_code);
        let wide_d = wide(d);
        let mut codes = [0u8; 256];
        let subs = values.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
        for (l, (x, codes)) in subs.enumerate() {
            let sc = nearest(to_code * scale[l]).min(127) as i8;
            out[192 + l] = sc as u8;
            let scale = wide_d * f32::from(sc);
            if scale != 0.0 {
                for (code, &x) in codes.iter_mut().zip(x) {
                    *code = (clamped(x / scale, -32, 31) + 32.0) as u8;
                }
            } else if extreme[l].abs() >= NOTHING {
                for (code, &x) in codes.iter_mut().zip(x) {
                    *code = (clamped(slope[l] * x, -32, 31) + 32.0) as u8;
                }
            }
        }
        let (low, rest) = out.split_at_mut(128);
        let halves = low.as_chunks_mut::<64>().0.iter_mut().zip(rest.as_chunks_mut::<32>().0);
        for (codes, (low, high)) in codes.as_chunks::<128>().0.iter().zip(halves) {
            for j in 0..32 {
                let [a, b, c, d] = [codes[j], codes[j + 32], codes[j + 64], codes[j + 96]];
                low[j] = (a & 15) | c << 4;
                low[j + 32] = (b & 15) | d << 4;
                high[j] = (a >> 4) | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6;
            }
        }
        out[208..].copy_from_slice(&d.to_le_bytes());
        held &= is_finite(d);
    }
    held
}

/// The scales of sixteen sub-blocks of Q3_K and their codes, from −4 to 3.
#[inline(always)]
fn fit_q3(x: &[Lanes; 16], extreme: &Lanes) -> (Lanes, [Lanes; 16]) {
    let (mut sum_xq, mut sum_qq) = ([0.0; LANES], [0.0; LANES]);
    let mut codes = [[0.0; LANES]; 16];
    for (x, codes) in x.iter().zip(&mut codes) {
        for l in 0..LANES {
            let code = clamped(-4.0 / extreme[l] * x[l], -4, 3);
            codes[l] = code;
            let w = x[l] * x[l];
            sum_xq[l] += w * x[l] * code;
            sum_qq[l] += w * code * code;
        }
    }
    // A lane that a whole round leaves unchanged is left unchanged by the next, too: no need to stop.
    for _ in 0..5 {
        for (x, codes) in x.iter().zip(&mut codes) {
            for l in 0..LANES {
                let (x, code) = (x[l], codes[l]);
                let w = x * x;
                let without_xq = sum_xq[l] - w * x * code;
                let without_qq = sum_qq[l] - w * code * code;
                let wanted = clamped(x * without_qq / without_xq, -4, 3);
                let xq = without_xq + w * x * wanted;
                let qq = without_qq + w * wanted * wanted;
                let better = (without_xq > 0.0)
                    & (wanted != code)
                    & (qq > 0.0)
                    & (xq * xq * sum_qq[l] > sum_xq[l] * sum_xq[l] * qq);
                codes[l] = if better { wanted } else { code };
                sum_xq[l] = if better { xq } else { sum_xq[l] };
                sum_qq[l] = if better { qq } else { sum_qq[l] };
            }
        }
    }
    let mut scale = [0.0; LANES];
    for l in 0..LANES {
        let none = (extreme[l].abs() < NOTHING) | (sum_qq[l] <= 0.0);
        scale[l] = if none { 0.0 } else { sum_xq[l] / sum_qq[l] };
    }
    (scale, codes)
}

#[inline(always)]
fn q3_k_body(values: &[f32], out: &mut [u8]) -> bool {
    let mut held = true;
    for (values, out) in values.as_chunks::<256>().0.iter().zip(out.as_chunks_mut::<110>().0) {
        let x = across::<16>(values);
        let extreme = extremes(&x);
        let (scale, fitted) = fit_q3(&x, &extreme);
        let leading = leading(&scale);
        let to_code = -32.0 / leading;
        let d = if leading != 0.0 { f16_bits(1.0 / to_code) } else { 0 };
        let wide_d = wide(d);
        let (masks, rest) = out.split_at_mut(32);
        let (crumbs, tail) = rest.split_at_mut(64);
        let (packed, last) = tail.split_at_mut(12);
        packed.fill(0);
        let mut codes = [0u8; 256];
        let subs = values.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
        for (l, (x, codes)) in subs.enumerate() {
            // Without any scale the stored bits are all 0, which reads as −32.
            let mut sc = -32;
            if leading != 0.0 {
                sc = (nearest(to_code * scale[l]) as i8).clamp(-32, 31);
                let bits = (sc + 32) as u8;
                packed[l % 8] |= (bits & 15) << (l / 8 * 4);
                packed[8 + l % 4] |= (bits >> 4) << (l / 4 * 2);
            }
            let scale = wide_d * f32::from(sc);
            if scale != 0.0 {
                for (code, &x) in codes.iter_mut().zip(x) {
                    *code = (clamped(x / scale, -4, 3) + 4.0) as u8;
                }
            } else if extreme[l].abs() >= NOTHING {
                for (code, fitted) in codes.iter_mut().zip(&fitted) {
                    *code = (fitted[l] + 4.0) as u8;
                }
            }
        }
        masks.fill(0);
        for (plane, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (mask, code) in masks.iter_mut().zip(codes) {
                *mask |= (*code >> 2) << plane;
                *code &= 3;
            }
        }
        pack_crumbs(&codes, crumbs);
        last.copy_from_slice(&d.to_le_bytes());
        held &= is_finite(d);
    }
    held
}

/// 256 codes of two bits in 64 bytes: each 32 bytes hold 128, the first 32 lowest.
#[inline(always)]
pub(super) fn pack_crumbs(codes: &[u8; 256], out: &mut [u8]) {
    for (codes, out) in codes.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for (j, out) in out.iter_mut().enumerate() {
            *out = codes[j] | codes[j + 32] << 2 | codes[j + 64] << 4 | codes[j + 96] << 6;
        }
    }
}
