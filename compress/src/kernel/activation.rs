//! Elementwise functions and row reductions, written so that the compiler vectorises them.
//!
//! Sums run over 16 fixed lanes that are added in a fixed tree, so a result does not depend on the instruction set's
//! width nor on the number of threads.

use super::dispatch;

/// Largest relative error of [`exp`] against the exact function: the Taylor polynomial's remainder
/// (ln 2 / 2)⁸ / 8! = 5·10⁻⁹ is below one rounding, the rest is a handful of f32 roundings.
pub const EXP_MAX_RELATIVE_ERROR: f32 = 4e-7;

/// eˣ, branch-free: x = n ln 2 + r, a Taylor polynomial of degree 7 in r, times 2ⁿ. Below −87 it is 0.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first with enough zero bits that n·LN2_HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let n = (clamped * LOG2_E).round_ties_even();
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let scale = f32::from_bits((((n as i32) + 127) << 23) as u32);
    if x < -87.0 { 0.0 } else { p * scale }
}

const LANES: usize = 16;

#[inline(always)]
fn tree(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += chunk[i] * chunk[i];
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += value * value;
    }
    tree(lanes)
}

#[inline(always)]
fn rms_norm_row_body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = 1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt();
    for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * w;
    }
}
dispatch! {
    /// `out = x / sqrt(mean(x²) + eps) · weight`, one row (Zhang & Sennrich 2019, eq. 4).
    pub fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_row_body
}

#[inline(always)]
fn silu_mul_body(gate: &mut [f32], up: &[f32]) {
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}
dispatch! {
    /// `gate ← gate · σ(gate) · up` (Shazeer 2020, SwiGLU without its projections).
    pub fn silu_mul(gate: &mut [f32], up: &[f32]) = silu_mul_body
}

#[inline(always)]
fn softmax_row_body(row: &mut [f32], scale: f32) {
    let mut max = f32::NEG_INFINITY;
    for &x in row.iter() {
        max = if x > max { x } else { max };
    }
    let shift = max * scale;
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp(chunk[i] * scale - shift);
            lanes[i] += chunk[i];
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *value = exp(*value * scale - shift);
        *lane += *value;
    }
    let inverse = 1.0 / tree(lanes);
    for x in row.iter_mut() {
        *x *= inverse;
    }
}
dispatch! {
    /// `row ← softmax(scale · row)`, one row.
    pub fn softmax_row(row: &mut [f32], scale: f32) = softmax_row_body
}

#[inline(always)]
fn log_sum_exp_body(row: &[f32]) -> f64 {
    let mut max = f32::NEG_INFINITY;
    for &x in row {
        max = if x > max { x } else { max };
    }
    let mut sum = 0.0f64;
    // Partial sums of 1024 in f32 lanes, joined in f64: a vocabulary of 200,000 loses nothing.
    for part in row.chunks(1024) {
        let mut lanes = [0.0; LANES];
        let (chunks, rest) = part.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                lanes[i] += exp(chunk[i] - max);
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(rest) {
            *lane += exp(value - max);
        }
        sum += f64::from(tree(lanes));
    }
    f64::from(max) + sum.ln()
}
dispatch! {
    /// ln Σ exp(row), one row of logits.
    pub fn log_sum_exp(row: &[f32]) -> f64 = log_sum_exp_body
}

#[inline(always)]
fn kl_body(p: &[f32], p_lse: f64, q: &[f32], q_lse: f64) -> f64 {
    let (p_shift, q_shift) = (p_lse as f32, q_lse as f32);
    let mut sum = 0.0f64;
    for (p, q) in p.chunks(1024).zip(q.chunks(1024)) {
        let mut lanes = [0.0; LANES];
        let (p_chunks, p_rest) = p.as_chunks::<LANES>();
        let (q_chunks, q_rest) = q.as_chunks::<LANES>();
        for (p, q) in p_chunks.iter().zip(q_chunks) {
            for i in 0..LANES {
                let log_p = p[i] - p_shift;
                lanes[i] += exp(log_p) * (log_p - (q[i] - q_shift));
            }
        }
        for ((lane, &p), &q) in lanes.iter_mut().zip(p_rest).zip(q_rest) {
            let log_p = p - p_shift;
            *lane += exp(log_p) * (log_p - (q - q_shift));
        }
        sum += f64::from(tree(lanes));
    }
    sum
}
dispatch! {
    /// KL(p ‖ q) in nats of two rows of logits with their log-sum-exps.
    pub fn kl_divergence(p: &[f32], p_lse: f64, q: &[f32], q_lse: f64) -> f64 = kl_body
}

#[inline(always)]
fn add_body(x: &mut [f32], y: &[f32]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
dispatch! {
    /// `x ← x + y`.
    pub fn add(x: &mut [f32], y: &[f32]) = add_body
}

#[inline(always)]
fn dot_body(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    let (y_chunks, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x_chunks.iter().zip(y_chunks) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *lane += x * y;
    }
    tree(lanes)
}
dispatch! {
    /// Σ x y.
    pub fn dot(x: &[f32], y: &[f32]) -> f32 = dot_body
}

#[inline(always)]
fn axpy_body(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}
dispatch! {
    /// `y ← y + a x`.
    pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) = axpy_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_its_stated_error() {
        let mut worst = 0.0f64;
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - exact) / exact).abs());
        }
        assert!(worst < f64::from(EXP_MAX_RELATIVE_ERROR), "worst relative error {worst:e}");
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn row_functions_equal_their_definitions() {
        for n in [1usize, 15, 16, 17, 100, 3000] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37 + 11) % 101) as f32 / 10.0 - 5.0).collect();
            let y: Vec<f32> = (0..n).map(|i| ((i * 53 + 7) % 97) as f32 / 10.0 - 5.0).collect();
            let lse = x.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
            assert!((log_sum_exp(&x) - lse).abs() < 1e-6, "log-sum-exp of {n}");
            let mut soft = x.clone();
            softmax_row(&mut soft, 0.5);
            let total: f64 = x.iter().map(|&v| (0.5 * f64::from(v)).exp()).sum();
            for (s, &v) in soft.iter().zip(&x) {
                assert!((f64::from(*s) - (0.5 * f64::from(v)).exp() / total).abs() < 1e-6);
            }
            let y_lse = y.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
            let kl: f64 = x
                .iter()
                .zip(&y)
                .map(|(&p, &q)| {
                    let log_p = f64::from(p) - lse;
                    log_p.exp() * (log_p - f64::from(q) + y_lse)
                })
                .sum();
            assert!((kl_divergence(&x, lse, &y, y_lse) - kl).abs() < 2e-6 * (1.0 + kl), "KL of {n}");
            let mut normed = vec![0.0; n];
            rms_norm_row(&x, &y, 1e-5, &mut normed);
            let rms = (x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n as f64 + 1e-5).sqrt();
            for i in 0..n {
                assert!((f64::from(normed[i]) - f64::from(x[i]) / rms * f64::from(y[i])).abs() < 1e-5);
            }
            let mut gate = x.clone();
            silu_mul(&mut gate, &y);
            for i in 0..n {
                let g = f64::from(x[i]);
                assert!((f64::from(gate[i]) - g / (1.0 + (-g).exp()) * f64::from(y[i])).abs() < 1e-5);
            }
        }
    }
}
