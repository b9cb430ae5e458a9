//! Products with weights stored as f32, f16 or bf16: few tokens straight from the stored bytes, many by panels of
//! widened rows.
//!
//! `y = x Wᵀ`, `x` (tokens, in), `W` (out, in), `y` (tokens, out); products and sums in f32. Each output is summed in an
//! order that depends on `in` alone, so the result is the same for any number of threads.

use std::ops::Range;

use rayon::prelude::*;

/// Up to this many tokens the product is bound by reading the weights, and [`few_tokens`] reads them once.
pub const FEW_TOKENS: usize = 4;

/// Rows widened together before they meet the activations: a panel of 4096 columns is 1 MiB, a core's share of cache.
const PANEL_ROWS: usize = 64;

/// Weights one task handles, roughly: enough to outweigh the cost of starting it.
const TASK_WEIGHTS: usize = 1 << 18;

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
            panels(shape, x, tokens, y, |_, rows, multiply| multiply(&values[rows.start * shape.1..rows.end * shape.1]));
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
        scratch.resize(PANEL_ROWS * shape.1, 0.0);
        let panel = &mut scratch[..rows.len() * shape.1];
        fill(rows, panel);
        multiply(panel);
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
    let y = Columns { start: y.as_mut_ptr(), tokens, out_features };
    let starts: Vec<usize> = (0..out_features).step_by(PANEL_ROWS).collect();
    starts.into_par_iter().with_max_len(1).for_each_init(Vec::new, |scratch, start| {
        let rows = start..(start + PANEL_ROWS).min(out_features);
        // SAFETY: every panel has its own rows, so no two calls write the same columns of `y`, which stays borrowed
        // until the loop is over.
        let multiply = |panel: &[f32]| unsafe { y.multiply(x, panel, rows.clone(), in_features) };
        job(scratch, rows.clone(), &multiply);
    });
}

/// Columns of `y` (tokens, out), for threads that write disjoint ones.
struct Columns {
    start: *mut f32,
    tokens: usize,
    out_features: usize,
}

// SAFETY: the pointer is only written through `multiply`, whose callers keep to disjoint columns.
unsafe impl Sync for Columns {}

impl Columns {
    /// `y[.., rows]` = `x` panelᵀ, `x` (tokens, in), `panel` (rows, in).
    ///
    /// # Safety
    /// `start` points to tokens × out numbers, and nobody else reads or writes the columns `rows` meanwhile.
    unsafe fn multiply(&self, x: &[f32], panel: &[f32], rows: Range<usize>, in_features: usize) {
        assert!(rows.end <= self.out_features);
        assert_eq!(panel.len(), rows.len() * in_features);
        assert_eq!(x.len(), self.tokens * in_features);
        let (along_in, along_out) = (in_features as isize, self.out_features as isize);
        // SAFETY: the strides describe (tokens, in), (in, rows) and (tokens, rows) inside slices whose lengths were
        // checked above, and the columns written are the caller's.
        unsafe {
            gemm::gemm(
                self.tokens,
                rows.len(),
                in_features,
                self.start.add(rows.start),
                1,
                along_out,
                false,
                x.as_ptr(),
                1,
                along_in,
                panel.as_ptr(),
                along_in,
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
}

/// `y` = `x` Wᵀ for at most [`FEW_TOKENS`] tokens, reading each weight once.
fn few_tokens(weight: DenseMatrix<'_>, x: &[f32], tokens: usize, y: &mut [f32]) {
    row_tasks((weight.out_features, weight.in_features), x, tokens, y, |rows, products| {
        let bytes = weight.rows(rows.start, rows.len());
        #[cfg(target_arch = "x86_64")]
        if avx512::available() {
            // SAFETY: the processor has the features, and the lengths agree: `rows` rows of `in` elements, `x` (tokens,
            // in), `products` (rows, tokens).
            unsafe { avx512::dot_rows(weight.element, bytes, weight.in_features, x, tokens, products) };
            return;
        }
        dot_rows(weight.element, bytes, weight.in_features, x, tokens, products);
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
    if y.is_empty() {
        return;
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

/// `products` (rows, tokens) of `bytes` (rows, in) and `x` (tokens, in): the plain form.
pub(crate) fn dot_rows(
    element: Element,
    bytes: &[u8],
    in_features: usize,
    x: &[f32],
    tokens: usize,
    products: &mut [f32],
) {
    let mut row = vec![0.0; in_features];
    for (bytes, products) in
        bytes.chunks_exact(in_features * element.bytes()).zip(products.chunks_exact_mut(tokens))
    {
        widen(element, bytes, &mut row);
        for (x, product) in x.chunks_exact(in_features).zip(products) {
            *product = dot(&row, x);
        }
    }
}

/// `Σ a·b` in 16 interleaved sums, so that the compiler may use vectors.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..16 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] += a * b;
    }
    let mut width = 8;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// `bytes` as f32.
///
/// # Panics
/// If `bytes` does not hold `out.len()` elements.
pub fn widen(element: Element, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * element.bytes());
    match element {
        Element::F32 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        Element::Bf16 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }
        Element::F16 => {
            #[cfg(target_arch = "x86_64")]
            if avx512::available() {
                // SAFETY: the processor has the features; the lengths were compared above.
                unsafe { avx512::widen_f16(bytes.as_ptr(), out) };
                return;
            }
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = half::f16::from_le_bytes(*bytes).to_f32();
            }
        }
    }
}

/// The same on processors with AVX-512.
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512 {
    use std::arch::x86_64::*;

    use super::Element;

    /// Whether the functions of this module may be called.
    pub(crate) fn available() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
    }

    /// Sixteen elements at `at`, or the first `count` of them and zeros.
    ///
    /// # Safety
    /// `at` may be read for `count` elements.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load<const ELEMENT: u8>(at: *const u8, count: usize) -> __m512 {
        let mask: __mmask16 = if count >= 16 { !0 } else { (1 << count) - 1 };
        // SAFETY: masked-off elements are not touched.
        unsafe {
            if ELEMENT == Element::F32 as u8 {
                return _mm512_maskz_loadu_ps(mask, at.cast());
            }
            let halves = if count >= 16 {
                _mm256_loadu_si256(at.cast())
            } else {
                _mm256_maskz_loadu_epi16(mask, at.cast())
            };
            if ELEMENT == Element::Bf16 as u8 {
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
            } else {
                _mm512_cvtph_ps(halves)
            }
        }
    }

    /// f16 at `bytes`, `out.len()` of them, as f32.
    ///
    /// # Safety
    /// The processor has the features, and `bytes` may be read for `out.len()` elements.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn widen_f16(bytes: *const u8, out: &mut [f32]) {
        for start in (0..out.len()).step_by(16) {
            let count = (out.len() - start).min(16);
            // SAFETY: `count` elements are left on both sides.
            unsafe {
                let values = load::<{ Element::F16 as u8 }>(bytes.add(2 * start), count);
                _mm512_mask_storeu_ps(out.as_mut_ptr().add(start), (!0u16) >> (16 - count), values);
            }
        }
    }

    /// `products` (rows, tokens) of `bytes` (rows, in) and `x` (tokens, in), at most four tokens.
    ///
    /// # Safety
    /// The processor has the features.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn dot_rows(
        element: Element,
        bytes: &[u8],
        in_features: usize,
        x: &[f32],
        tokens: usize,
        products: &mut [f32],
    ) {
        let rows = products.len() / tokens;
        assert_eq!(bytes.len(), rows * in_features * element.bytes());
        assert_eq!((x.len(), products.len()), (tokens * in_features, rows * tokens));
        macro_rules! with {
            ($element:ident, $tokens:literal) => {
                // SAFETY: the lengths were checked above.
                unsafe { typed::<{ Element::$element as u8 }, $tokens>(bytes, in_features, x, products) }
            };
            ($element:ident) => {
                match tokens {
                    1 => with!($element, 1),
                    2 => with!($element, 2),
                    3 => with!($element, 3),
                    4 => with!($element, 4),
                    _ => unreachable!("at most FEW_TOKENS tokens"),
                }
            };
        }
        match element {
            Element::F32 => with!(F32),
            Element::F16 => with!(F16),
            Element::Bf16 => with!(Bf16),
        }
    }

    /// # Safety
    /// The processor has the features; `bytes` holds (rows, in), `x` (TOKENS, in), `products` (rows, TOKENS).
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn typed<const ELEMENT: u8, const TOKENS: usize>(
        bytes: &[u8],
        in_features: usize,
        x: &[f32],
        products: &mut [f32],
    ) {
        let stride = in_features * if ELEMENT == Element::F32 as u8 { 4 } else { 2 };
        let rows = products.len() / TOKENS;
        let mut row = 0;
        while row < rows {
            // SAFETY: the tile lies inside the matrix.
            unsafe {
                let at = bytes.as_ptr().add(row * stride);
                if rows - row >= 4 {
                    tile::<ELEMENT, 4, TOKENS>(at, in_features, x.as_ptr(), &mut products[row * TOKENS..][..4 * TOKENS]);
                    row += 4;
                } else {
                    tile::<ELEMENT, 1, TOKENS>(at, in_features, x.as_ptr(), &mut products[row * TOKENS..][..TOKENS]);
                    row += 1;
                }
            }
        }
    }

    /// ROWS rows at once, so that a load of `x` serves them all. Every sum runs over columns 16 apart, whatever ROWS
    /// and TOKENS are.
    ///
    /// # Safety
    /// The processor has the features; `at` may be read for (ROWS, n) elements and `x` for (TOKENS, n).
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn tile<const ELEMENT: u8, const ROWS: usize, const TOKENS: usize>(
        at: *const u8,
        n: usize,
        x: *const f32,
        products: &mut [f32],
    ) {
        let size = if ELEMENT == Element::F32 as u8 { 4 } else { 2 };
        let mut sums = [[_mm512_setzero_ps(); TOKENS]; ROWS];
        let mut step = |column: usize, count: usize| {
            // SAFETY: `count` elements from `column` on lie inside every row.
            unsafe {
                let mut inputs = [_mm512_setzero_ps(); TOKENS];
                for token in 0..TOKENS {
                    inputs[token] = load::<{ Element::F32 as u8 }>(x.add(token * n + column).cast(), count);
                }
                for row in 0..ROWS {
                    let weights = load::<ELEMENT>(at.add((row * n + column) * size), count);
                    for token in 0..TOKENS {
                        sums[row][token] = _mm512_fmadd_ps(weights, inputs[token], sums[row][token]);
                    }
                }
            }
        };
        let whole = n / 16 * 16;
        let mut column = 0;
        while column < whole {
            step(column, 16);
            column += 16;
        }
        if whole < n {
            step(whole, n - whole);
        }
        for row in 0..ROWS {
            for token in 0..TOKENS {
                products[row * TOKENS + token] = _mm512_reduce_add_ps(sums[row][token]);
            }
        }
    }
}
