//! Products with weights stored as f32, f16 or bf16: few tokens straight from the stored bytes, many by panels of
//! widened rows.
//!
//! `y = x Wᵀ`, `x` (tokens, in), `W` (out, in), `y` (tokens, out); products and sums in f32. Each output is summed in an
//! order that depends on `in` and on whether there are more than [`FEW_TOKENS`] tokens, and on nothing else: a token's outputs
//! are the same among any others, for any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::SharedMut;

/// Up to this many tokens the product is bound by reading the weights, and the memory-bound form reads them once.
pub const FEW_TOKENS: usize = 4;

/// Rows widened together before they meet the activations: a panel of 4096 columns is 1 MiB, a core's share of cache.
const PANEL_ROWS: usize = 64;

/// Columns multiplied at a time, at most. The crate that multiplies would cut longer rows where the number of tokens and the
/// machine's caches suggest, and sums would end in other bits.
const DEPTH: usize = 512;

/// Rows made at once where few tokens meet them: they are read back from the core's nearest caches.
const MADE_ROWS: usize = 8;

/// Weights one task handles, roughly: enough to outweigh the cost of starting it.
const TASK_WEIGHTS: usize = 1 << 18;

/// Partial sums that one 512-bit register holds.
const LANES: usize = 16;

/// The number a stored element is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The same type in a file's terms.
    pub const fn dtype(self) -> scruple_weights::Dtype {
        match self {
            Self::F32 => scruple_weights::Dtype::F32,
            Self::F16 => scruple_weights::Dtype::F16,
            Self::Bf16 => scruple_weights::Dtype::Bf16,
        }
    }

    /// The element of a file's type, if the kernels read it in place.
    pub const fn from_dtype(dtype: scruple_weights::Dtype) -> Option<Self> {
        match dtype {
            scruple_weights::Dtype::F32 => Some(Self::F32),
            scruple_weights::Dtype::F16 => Some(Self::F16),
            scruple_weights::Dtype::Bf16 => Some(Self::Bf16),
            _ => None,
        }
    }
}

/// A weight as it lies in memory: little endian, row-major (out, in), at any alignment.
#[derive(Debug, Clone, Copy)]
pub struct DenseMatrix<'a> {
    /// The type of an element.
    pub element: Element,
    /// out × in elements.
    pub bytes: &'a [u8],
    /// Rows.
    pub out_features: usize,
    /// Columns.
    pub in_features: usize,
}

impl<'a> DenseMatrix<'a> {
    /// The bytes of `rows` rows from `row` on.
    fn rows(&self, row: usize, rows: usize) -> &'a [u8] {
        let stride = self.in_features * self.element.bytes();
        &self.bytes[row * stride..][..rows * stride]
    }
}

/// `y` = `x` Wᵀ, `x` (tokens, in), `y` (tokens, out).
///
/// # Panics
/// If a slice has another length than its shape says.
pub fn product(weight: DenseMatrix<'_>, x: &[f32], tokens: usize, y: &mut [f32]) {
    assert_eq!(weight.bytes.len(), weight.out_features * weight.in_features * weight.element.bytes());
    if tokens <= FEW_TOKENS {
        return few_tokens(weight, x, tokens, y);
    }
    let shape = (weight.out_features, weight.in_features);
    match bytemuck::try_cast_slice::<u8, f32>(weight.bytes) {
        Ok(values) if weight.element == Element::F32 && cfg!(target_endian = "little") => {
            panels(shape, x, tokens, y, |_, rows, multiply| {
                multiply(&values[rows.start * shape.1..rows.end * shape.1])
            });
        }
        _ => by_panels(shape, x, tokens, y, |rows, panel| {
            widen(weight.element, weight.rows(rows.start, rows.len()), panel);
        }),
    }
}

/// `y` = `x` Wᵀ for a W that is not stored as numbers: `fill(rows, panel)` writes those rows of W, (rows, in).
pub(crate) fn by_panels(
    shape: (usize, usize),
    x: &[f32],
    tokens: usize,
    y: &mut [f32],
    fill: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    panels(shape, x, tokens, y, |scratch, rows, multiply| {
        scratch.resize(scratch.len().max(rows.len() * shape.1), 0.0);
        let panel = &mut scratch[..rows.len() * shape.1];
        fill(rows, panel);
        multiply(panel);
    });
}

/// `y` = `x` Wᵀ for a W whose rows are made where they are used: `fill(rows, panel)` writes those rows of W, (rows, in). To
/// the bit what [`product`] gives where the same numbers are stored.
pub(crate) fn product_of(
    shape: (usize, usize),
    x: &[f32],
    tokens: usize,
    y: &mut [f32],
    fill: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    if tokens > FEW_TOKENS {
        return by_panels(shape, x, tokens, y, fill);
    }
    let k = shape.1;
    row_tasks(shape, x, tokens, y, |rows, products| {
        let mut made = vec![0.0f32; MADE_ROWS.min(rows.len()) * k];
        for (first, products) in rows.step_by(MADE_ROWS).zip(products.chunks_mut(MADE_ROWS * tokens)) {
            let count = products.len() / tokens;
            let made = &mut made[..count * k];
            fill(first..first + count, made);
            dots_f32(bytemuck::cast_slice(made), x, products, k);
        }
    });
}

/// Cuts W (out, in) into panels of rows and hands each, on some thread, to `job(scratch, rows, multiply)`, which must
/// call `multiply` with those rows' values; that writes their columns of `y` (tokens, out).
fn panels(
    (out_features, in_features): (usize, usize),
    x: &[f32],
    tokens: usize,
    y: &mut [f32],
    job: impl Fn(&mut Vec<f32>, Range<usize>, &dyn Fn(&[f32])) + Sync,
) {
    assert_eq!(x.len(), tokens * in_features);
    assert_eq!(y.len(), tokens * out_features);
    let y = SharedMut::new(y);
    // What is left over goes to the last panel: products of few rows are summed in another order.
    let count = (out_features / PANEL_ROWS).max(1);
    (0..count).into_par_iter().with_max_len(1).for_each_init(Vec::new, |scratch, panel| {
        let end = if panel + 1 == count { out_features } else { (panel + 1) * PANEL_ROWS };
        let rows = panel * PANEL_ROWS..end;
        let multiply = |panel: &[f32]| {
            assert_eq!(panel.len(), rows.len() * in_features);
            if rows.len() < PANEL_ROWS {
                return narrow_panel(panel, x, (tokens, in_features), rows.len(), |token, row, value| {
                    // SAFETY: inside (tokens, out), which stays borrowed; this is the only panel.
                    unsafe { *y.at(token * out_features + row) = value };
                });
            }
            let (along_in, along_out) = (in_features as isize, out_features as isize);
            let depth = in_features.div_ceil(in_features.div_ceil(DEPTH).max(1)).max(1);
            for first in (0..in_features.max(1)).step_by(depth) {
                let here = depth.min(in_features - first);
                // SAFETY: the strides describe (tokens, here), (here, rows) and (tokens, rows) inside slices whose lengths
                // were checked; the columns `rows` of `y`, which stays borrowed, are written by this panel alone, and read
                // from the second part on.
                unsafe {
                    gemm::gemm(
                        tokens,
                        rows.len(),
                        here,
                        y.at(rows.start),
                        1,
                        along_out,
                        first > 0,
                        x.as_ptr().add(first),
                        1,
                        along_in,
                        panel.as_ptr().add(first),
                        along_in,
                        1,
                        1.0f32,
                        1.0f32,
                        false,
                        false,
                        false,
                        gemm::Parallelism::None,
                    );
                }
            }
        };
        job(scratch, rows.clone(), &multiply);
    });
}

/// `x` (tokens, in) times a panel (rows, in) of fewer than [`PANEL_ROWS`] rows, a few tokens at a time; `put(token, row, y)`.
fn narrow_panel(
    panel: &[f32],
    x: &[f32],
    (tokens, in_features): (usize, usize),
    rows: usize,
    mut put: impl FnMut(usize, usize, f32),
) {
    if in_features == 0 {
        (0..tokens).for_each(|token| (0..rows).for_each(|row| put(token, row, 0.0)));
        return;
    }
    let mut products = vec![0.0f32; rows * FEW_TOKENS];
    for (part, x) in x.chunks(FEW_TOKENS * in_features).enumerate() {
        let few = x.len() / in_features;
        let products = &mut products[..rows * few];
        dots_f32(bytemuck::cast_slice(panel), x, products, in_features);
        for (row, products) in products.chunks_exact(few).enumerate() {
            products.iter().enumerate().for_each(|(token, &value)| put(part * FEW_TOKENS + token, row, value));
        }
    }
}

/// `y` = `x` Wᵀ for at most [`FEW_TOKENS`] tokens, reading each weight once.
fn few_tokens(weight: DenseMatrix<'_>, x: &[f32], tokens: usize, y: &mut [f32]) {
    let k = weight.in_features;
    row_tasks((weight.out_features, k), x, tokens, y, |rows, products| {
        let bytes = weight.rows(rows.start, rows.len());
        match weight.element {
            Element::F32 => dots_f32(bytes, x, products, k),
            Element::F16 => dots_f16(bytes, x, products, k),
            Element::Bf16 => dots_bf16(bytes, x, products, k),
        }
    });
}

/// Cuts W (out, in) into runs of rows, the same for any number of threads, and has `dot(rows, products)` write the
/// products (rows, tokens) of each; puts them into `y` (tokens, out).
pub(crate) fn row_tasks(
    (out_features, in_features): (usize, usize),
    x: &[f32],
    tokens: usize,
    y: &mut [f32],
    dot: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    assert_eq!(x.len(), tokens * in_features);
    assert_eq!(y.len(), tokens * out_features);
    if y.is_empty() || in_features == 0 {
        return y.fill(0.0);
    }
    let rows_per_task = (TASK_WEIGHTS / in_features.max(1)).next_multiple_of(4).max(4);
    let run = |products: &mut [f32]| {
        if rows_per_task >= out_features {
            return dot(0..out_features, products);
        }
        products.par_chunks_mut(rows_per_task * tokens).enumerate().for_each(|(task, products)| {
            let start = task * rows_per_task;
            dot(start..start + products.len() / tokens, products);
        });
    };
    if tokens == 1 {
        return run(y);
    }
    let mut products = vec![0.0; y.len()]; // (out, tokens)
    run(&mut products);
    for (token, y) in y.chunks_exact_mut(out_features).enumerate() {
        for (row, y) in y.iter_mut().enumerate() {
            *y = products[row * tokens + token];
        }
    }
}

super::dispatch! { pub(crate) fn dots_f32(w: &[u8], x: &[f32], out: &mut [f32], k: usize) = dots_f32_body }
super::dispatch! { fn dots_f16(w: &[u8], x: &[f32], out: &mut [f32], k: usize) = dots_f16_body }
super::dispatch! { fn dots_bf16(w: &[u8], x: &[f32], out: &mut [f32], k: usize) = dots_bf16_body }

#[inline(always)]
fn dots_f32_body(w: &[u8], x: &[f32], out: &mut [f32], k: usize) {
    dots(w.as_chunks::<4>().0, f32::from_le_bytes, x, out, k);
}

#[inline(always)]
fn dots_f16_body(w: &[u8], x: &[f32], out: &mut [f32], k: usize) {
    dots(w.as_chunks::<2>().0, wide_f16, x, out, k);
}

#[inline(always)]
fn dots_bf16_body(w: &[u8], x: &[f32], out: &mut [f32], k: usize) {
    dots(w.as_chunks::<2>().0, wide_bf16, x, out, k);
}

/// `out` (rows, t) = the dot products of every row of `w` (rows, k) with every row of `x` (t, k).
#[inline(always)]
fn dots<T: Copy>(w: &[T], wide: impl Fn(T) -> f32 + Copy, x: &[f32], out: &mut [f32], k: usize) {
    let tokens = x.len() / k;
    for (w, out) in w.chunks_exact(k).zip(out.chunks_exact_mut(tokens)) {
        let x = |token: usize| &x[token * k..][..k];
        match tokens {
            1 => out.copy_from_slice(&row_dots(w, wide, [x(0)])),
            2 => out.copy_from_slice(&row_dots(w, wide, [x(0), x(1)])),
            3 => out.copy_from_slice(&row_dots(w, wide, [x(0), x(1), x(2)])),
            _ => out.copy_from_slice(&row_dots(w, wide, [x(0), x(1), x(2), x(3)])),
        }
    }
}

/// The dot products of `w` with each of `x`, each in four times sixteen partial sums whatever N (1 to 4) is.
#[inline(always)]
fn row_dots<T: Copy, const N: usize>(w: &[T], wide: impl Fn(T) -> f32 + Copy, x: [&[f32]; N]) -> [f32; N] {
    let (steps, rest) = w.as_chunks::<{ 4 * LANES }>();
    let inputs = x.map(|x| &x.as_chunks::<{ 4 * LANES }>().0[..steps.len()]);
    let mut sums = [[0.0f32; 4 * LANES]; N];
    for (step, w) in steps.iter().enumerate() {
        super::prefetch(w);
        for n in 0..N {
            let x = &inputs[n][step];
            for lane in 0..4 * LANES {
                sums[n][lane] = x[lane].mul_add(wide(w[lane]), sums[n][lane]);
            }
        }
    }
    // Written out, since a loop over N would keep the sums in memory rather than in registers.
    let finish = |n: usize| finish_dot(&sums[n], rest, wide, &x[n][w.len() - rest.len()..]);
    let mut out = [finish(0); N];
    if N > 1 {
        out[1] = finish(1);
    }
    if N > 2 {
        out[2] = finish(2);
    }
    if N > 3 {
        out[3] = finish(3);
    }
    out
}

/// Adds up the partial sums of a dot product and its last elements.
#[inline(always)]
fn finish_dot<T: Copy>(sums: &[f32; 4 * LANES], w: &[T], wide: impl Fn(T) -> f32, x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for lane in 0..LANES {
        lanes[lane] = (sums[lane] + sums[LANES + lane]) + (sums[2 * LANES + lane] + sums[3 * LANES + lane]);
    }
    for (i, (&w, &x)) in w.iter().zip(x).enumerate() {
        lanes[i % LANES] = x.mul_add(wide(w), lanes[i % LANES]);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn wide_bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// Exact, and without branches, so that it runs in vectors: the exponent is moved by a product (which also normalises
/// subnormals), and infinities and NaNs get all its bits.
#[inline(always)]
fn wide_f16(bytes: [u8; 2]) -> f32 {
    let half = u32::from(u16::from_le_bytes(bytes));
    let (sign, rest) = ((half & 0x8000) << 16, (half & 0x7FFF) << 13);
    let finite = (f32::from_bits(rest) * f32::from_bits((127 + 127 - 15) << 23)).to_bits();
    let special = rest | 0x7F80_0000;
    f32::from_bits(sign | if rest >= 0x0F80_0000 { special } else { finite })
}

/// `bytes` as f32.
///
/// # Panics
/// If `bytes` does not hold `out.len()` elements.
pub fn widen(element: Element, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * element.bytes());
    match element {
        Element::F32 => widen_f32(bytes, out),
        Element::F16 => widen_f16(bytes, out),
        Element::Bf16 => widen_bf16(bytes, out),
    }
}

super::dispatch! { fn widen_f32(bytes: &[u8], out: &mut [f32]) = widen_f32_body }
super::dispatch! { fn widen_f16(bytes: &[u8], out: &mut [f32]) = widen_f16_body }
super::dispatch! { fn widen_bf16(bytes: &[u8], out: &mut [f32]) = widen_bf16_body }

#[inline(always)]
fn widen_f32_body(bytes: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(value, bytes)| *value = f32::from_le_bytes(*bytes));
}

#[inline(always)]
fn widen_f16_body(bytes: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(value, bytes)| *value = wide_f16(*bytes));
}

#[inline(always)]
fn widen_bf16_body(bytes: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(value, bytes)| *value = wide_bf16(*bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::test_values::uniform;

    /// `name(w, x, out, k)`.
    type Dots = fn(&[u8], &[f32], &mut [f32], usize);

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let forms: [(Dots, Dots, usize); 3] =
            [(dots_f32, dots_f32_body, 4), (dots_f16, dots_f16_body, 2), (dots_bf16, dots_bf16_body, 2)];
        for (chosen, baseline, size) in forms {
            for k in [1, 15, 16, 64, 130] {
                let values = uniform(5 * k, 1);
                let bytes: Vec<u8> = match size {
                    4 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    _ => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
                };
                for tokens in 1..=FEW_TOKENS {
                    let x = uniform(tokens * k, 2);
                    let [mut a, mut b] = [vec![0.0; 5 * tokens], vec![0.0; 5 * tokens]];
                    chosen(&bytes, &x, &mut a, k);
                    baseline(&bytes, &x, &mut b, k);
                    assert_eq!(a, b, "{size} bytes, {k} columns, {tokens} tokens");
                }
            }
        }
    }

    #[test]
    fn a_tokens_outputs_do_not_depend_on_its_company() {
        // Panels that are whole, with something left over, and too few rows for one; depths of one, two and three parts.
        for (out_features, in_features) in [(64, 576), (150, 1030), (200, 64), (7, 700), (1, 40), (63, 513)] {
            let weights = uniform(out_features * in_features, 3);
            let bytes = bytemuck::cast_slice(&weights);
            let matrix = DenseMatrix { element: Element::F32, bytes, out_features, in_features };
            let x = uniform(130 * in_features, 4);
            let mut all = vec![0.0; 130 * out_features];
            product(matrix, &x, 130, &mut all);
            for tokens in [5, 6, 17, 63, 64, 65, 128] {
                for first in [0, 130 - tokens] {
                    let mut some = vec![7.0; tokens * out_features];
                    product(matrix, &x[first * in_features..][..tokens * in_features], tokens, &mut some);
                    let expected = &all[first * out_features..][..some.len()];
                    assert!(some == expected, "({out_features}, {in_features}), {tokens} tokens from {first}");
                }
            }
            let naive = |token: usize, row: usize| -> f64 {
                let x = &x[token * in_features..][..in_features];
                let w = &weights[row * in_features..][..in_features];
                x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum()
            };
            for (at, &value) in all.iter().enumerate().step_by(37) {
                let expected = naive(at / out_features, at % out_features);
                // Rounding of f32 sums grows with the root of their length.
                let close = 1e-6 * (in_features as f64).sqrt();
                assert!((f64::from(value) - expected).abs() < close, "{value} for {expected}");
            }
        }
    }
}
