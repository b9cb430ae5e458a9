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
fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += chunk[i];
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += value;
    }
    tree(lanes)
}

#[inline(always)]
fn layer_norm_row_body(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let mean = sum(x) / x.len() as f32;
    for (out, &x) in out.iter_mut().zip(x) {
        *out = x - mean;
    }
    let scale = 1.0 / (sum_of_squares(out) / x.len() as f32 + eps).sqrt();
    for ((out, &w), &b) in out.iter_mut().zip(weight).zip(bias) {
        *out = *out * scale * w + b;
    }
}
dispatch! {
    /// `out = (x − mean(x)) / sqrt(var(x) + eps) · weight + bias`, one row (Ba, Kiros & Hinton 2016, eq. 4); all slices
    /// are of one length.
    pub fn layer_norm_row(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) = layer_norm_row_body
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

/// Largest error of [`tanh`] against the exact function, absolute: one rounding near 1, and that of [`exp`].
pub const TANH_MAX_ERROR: f32 = 2e-7;

/// tanh x, branch-free: (1 − e) / (1 + e) with e = e^(−2|x|), and the sign of x.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    ((1.0 - e) / (1.0 + e)).copysign(x)
}

/// Largest error of [`normal_cdf`] against the exact function, absolute: 3.6e-8 of the fit below, the rest rounding.
pub const NORMAL_CDF_MAX_ERROR: f32 = 2e-7;

/// Φ(x), the share of a standard normal distribution below x: erfc(−x/√2) / 2, branch-free.
///
/// erfc(z) = t·exp(P(t) − z²) for z ≥ 0 and t = 1 / (1 + z/2), the form of Press et al. (Numerical Recipes, 6.2); P is the
/// Chebyshev fit of degree 9 of ln(erfc(z)·e^(z²) / t) over 0 ≤ z ≤ 8, whose error is 3.6e-8.
#[inline(always)]
pub fn normal_cdf(x: f32) -> f32 {
    const P: [f32; 10] = [
        0.124_151_99,
        -0.566_005_5,
        0.881_987_1,
        -0.323_510_4,
        -0.395_447_83,
        0.173_041_46,
        -0.025_577_439,
        0.399_673_94,
        0.997_053_3,
        -1.265_366_6,
    ];
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    let mut p = P[0];
    for coefficient in &P[1..] {
        p = p * t + coefficient;
    }
    let tail = 0.5 * t * exp(p - z * z);
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// The functions between the two linears of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x Φ(x) (Hendrycks & Gimpel 2016).
    Gelu,
    /// x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))), its approximation in the same paper.
    GeluTanh,
    /// x σ(1.702 x), the other one.
    QuickGelu,
    /// max(x, 0).
    Relu,
    /// x σ(x).
    Silu,
    /// tanh x.
    Tanh,
}

impl Activation {
    /// The names Hugging Face's configurations use, with what they mean.
    pub const NAMES: &[(&str, Self)] = &[
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("gelu_fast", Self::GeluTanh),
        ("quick_gelu", Self::QuickGelu),
        ("relu", Self::Relu),
        ("silu", Self::Silu),
        ("swish", Self::Silu),
        ("tanh", Self::Tanh),
    ];

    /// The function of that name in a configuration.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, activation)| *activation)
    }

    /// `x ← f(x)`.
    pub fn apply(self, x: &mut [f32]) {
        match self {
            Self::Gelu => gelu(x),
            Self::GeluTanh => gelu_tanh(x),
            Self::QuickGelu => quick_gelu(x),
            Self::Relu => relu(x),
            Self::Silu => silu(x),
            Self::Tanh => tanh_row(x),
        }
    }

    /// `gate ← f(gate) · up`.
    pub fn mul(self, gate: &mut [f32], up: &[f32]) {
        match self {
            Self::Silu => silu_mul(gate, up),
            _ => {
                self.apply(gate);
                multiply(gate, up);
            }
        }
    }
}

#[inline(always)]
fn gelu_body(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x *= normal_cdf(*x));
}
dispatch! {
    /// [`Activation::Gelu`].
    fn gelu(x: &mut [f32]) = gelu_body
}

/// x σ(y), which is x/2 · (1 + tanh(y/2)).
#[inline(always)]
fn gated(x: f32, y: f32) -> f32 {
    x / (1.0 + exp(-y))
}

#[inline(always)]
fn gelu_tanh_body(x: &mut [f32]) {
    const TWICE_ROOT_2_OVER_PI: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
    x.iter_mut().for_each(|x| *x = gated(*x, TWICE_ROOT_2_OVER_PI * (*x + 0.044_715 * *x * *x * *x)));
}
dispatch! {
    /// [`Activation::GeluTanh`].
    fn gelu_tanh(x: &mut [f32]) = gelu_tanh_body
}

#[inline(always)]
fn quick_gelu_body(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = gated(*x, 1.702 * *x));
}
dispatch! {
    /// [`Activation::QuickGelu`].
    fn quick_gelu(x: &mut [f32]) = quick_gelu_body
}

#[inline(always)]
fn relu_body(x: &mut [f32]) {
    // Written so that a NaN stays one.
    x.iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x });
}
dispatch! {
    /// [`Activation::Relu`].
    pub fn relu(x: &mut [f32]) = relu_body
}

#[inline(always)]
fn silu_body(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = gated(*x, *x));
}
dispatch! {
    /// [`Activation::Silu`].
    fn silu(x: &mut [f32]) = silu_body
}

#[inline(always)]
fn tanh_body(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = tanh(*x));
}
dispatch! {
    /// [`Activation::Tanh`].
    fn tanh_row(x: &mut [f32]) = tanh_body
}

#[inline(always)]
fn softcap_body(x: &mut [f32], cap: f32) {
    let inverse = 1.0 / cap;
    x.iter_mut().for_each(|x| *x = cap * tanh(*x * inverse));
}
dispatch! {
    /// `x ← cap · tanh(x / cap)`: scores and logits held inside ±cap (Gemma 2).
    pub fn softcap(x: &mut [f32], cap: f32) = softcap_body
}

#[inline(always)]
fn multiply_body(x: &mut [f32], y: &[f32]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x *= y;
    }
}
dispatch! {
    /// `x ← x · y`, element by element.
    pub fn multiply(x: &mut [f32], y: &[f32]) = multiply_body
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
fn kl_gradient_body(p: &[f32], p_lse: f64, q: &mut [f32], q_lse: f64, scale: f32) {
    let (p_shift, q_shift) = (p_lse as f32, q_lse as f32);
    for (q, &p) in q.iter_mut().zip(p) {
        *q = scale * (exp(*q - q_shift) - exp(p - p_shift));
    }
}
dispatch! {
    /// `q ← scale · (softmax(q) − softmax(p))`: the gradient in q of `scale` times [`kl_divergence`].
    pub fn kl_gradient_row(p: &[f32], p_lse: f64, q: &mut [f32], q_lse: f64, scale: f32) = kl_gradient_body
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
            let bias: Vec<f32> = (0..n).map(|i| ((i * 29 + 3) % 83) as f32 / 20.0).collect();
            layer_norm_row(&x, &y, &bias, 1e-5, &mut normed);
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
            let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
            for i in 0..n {
                let exact = (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt() * f64::from(y[i]) + f64::from(bias[i]);
                assert!((f64::from(normed[i]) - exact).abs() < 1e-5, "layer norm of {n}");
            }
            let mut gate = x.clone();
            silu_mul(&mut gate, &y);
            for i in 0..n {
                let g = f64::from(x[i]);
                assert!((f64::from(gate[i]) - g / (1.0 + (-g).exp()) * f64::from(y[i])).abs() < 1e-5);
            }
        }
    }

    /// Largest error of an activation, relative to 1 + |x|: that of Φ or exp with a rounding or two.
    const ACTIVATION_MAX_ERROR: f64 = 5e-7;

    /// erfc by its series below 3 and its continued fraction above, in f64.
    fn erfc(z: f64) -> f64 {
        if z < 0.0 {
            return 2.0 - erfc(-z);
        }
        let scale = (-z * z).exp() / std::f64::consts::PI.sqrt();
        if z < 3.0 {
            let (mut term, mut sum) = (z, z);
            for n in 1..200 {
                term *= 2.0 * z * z / f64::from(2 * n + 1);
                sum += term;
            }
            return 1.0 - 2.0 * scale * sum;
        }
        let fraction = (1..200).rev().fold(z, |f, n| z + f64::from(n) / 2.0 / f);
        scale / fraction
    }

    fn exact(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Gelu => x * 0.5 * erfc(-x / 2f64.sqrt()),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
            Activation::Relu => x.max(0.0),
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Tanh => x.tanh(),
        }
    }

    #[test]
    fn activations_are_within_their_stated_errors() {
        // Known to more digits than are asked for: erfc(0.5), erfc(2), erfc(4).
        for (z, value) in
            [(0.5, 0.479_500_122_186_953_5), (2.0, 0.004_677_734_981_047_266), (4.0, 1.541_725_790_028e-8)]
        {
            assert!((erfc(z) / value - 1.0).abs() < 1e-10, "erfc({z})");
        }
        let x: Vec<f32> = (-120_000..=120_000).map(|i| i as f32 * 1e-4).collect();
        let (mut worst_cdf, mut worst_tanh) = (0.0f64, 0.0f64);
        for &x in &x {
            let cdf = 0.5 * erfc(-f64::from(x) / 2f64.sqrt());
            worst_cdf = worst_cdf.max((f64::from(normal_cdf(x)) - cdf).abs());
            worst_tanh = worst_tanh.max((f64::from(tanh(x)) - f64::from(x).tanh()).abs());
        }
        assert!(worst_cdf < f64::from(NORMAL_CDF_MAX_ERROR), "Φ is off by {worst_cdf:e}");
        assert!(worst_tanh < f64::from(TANH_MAX_ERROR), "tanh is off by {worst_tanh:e}");
        let up: Vec<f32> = x.iter().map(|x| 0.5 - x / 20.0).collect();
        for &(name, activation) in Activation::NAMES {
            let (mut applied, mut multiplied) = (x.clone(), x.clone());
            activation.apply(&mut applied);
            activation.mul(&mut multiplied, &up);
            for (i, &x) in x.iter().enumerate() {
                let x = f64::from(x);
                let allowed = ACTIVATION_MAX_ERROR * (1.0 + x.abs());
                let expected = exact(activation, x);
                assert!((f64::from(applied[i]) - expected).abs() <= allowed, "{name}({x}) = {}", applied[i]);
                let expected = expected * f64::from(up[i]);
                assert!((f64::from(multiplied[i]) - expected).abs() <= 2.0 * allowed, "{name}({x}) · {}", up[i]);
            }
        }
        let mut capped = vec![-90.0, 0.0, 3.0, 90.0];
        softcap(&mut capped, 30.0);
        for (found, x) in capped.iter().zip([-90.0f64, 0.0, 3.0, 90.0]) {
            assert!((f64::from(*found) - 30.0 * (x / 30.0).tanh()).abs() < 1e-5, "softcap of {x}");
        }
    }

    #[test]
    fn activations_have_names_and_keep_what_is_not_finite() {
        assert_eq!(Activation::from_name("gelu_pytorch_tanh"), Some(Activation::GeluTanh));
        assert_eq!(Activation::from_name("gelu_10"), None);
        for &(name, activation) in Activation::NAMES {
            let mut x = [f32::NAN, 0.0, 1e30];
            activation.apply(&mut x);
            assert!(x[0].is_nan() && x[1] == 0.0, "{name}: {x:?}");
            assert_eq!(x[2], if activation == Activation::Tanh { 1.0 } else { 1e30 }, "{name}");
        }
    }
}
