//! Products with weights kept as 2, 3, 4 or 8 bit codes.
//!
//! `y = x Ŵᵀ` with `Ŵ[o, i] = scale[o, g] · (q[o, i] − zero[o, g])`, `g = i / group_size`. A row's codes are one dense
//! little-endian bit stream. For a few tokens each vector of sixteen codes becomes sixteen weights by one table look-up
//! (the group's `2^bits` values fit a register) on its way into the sum; for many, panels of rows are widened first.
//! The weights are the same numbers [`Quantised::dequantize`](crate::grid::Quantised::dequantize) gives, to the bit.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::dense::{self, FEW_TOKENS};
use crate::grid::{Quantised, ScaleDtype};

/// Bytes after the last code, so that a vector may be read from any code on.
const PADDING: usize = 16;

/// Scales in the type they are stored in.
#[derive(Debug, Clone)]
enum Scales {
    F16(Vec<half::f16>),
    Bf16(Vec<half::bf16>),
    F32(Vec<f32>),
}

impl Scales {
    /// `range` of them as f32.
    fn widen(&self, range: Range<usize>, out: &mut [f32]) {
        match self {
            Self::F16(scales) => scales[range].convert_to_f32_slice(out),
            Self::Bf16(scales) => scales[range].convert_to_f32_slice(out),
            Self::F32(scales) => out.copy_from_slice(&scales[range]),
        }
    }
}

/// A weight (out, in) as packed codes, scales and zero points.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    out_features: usize,
    in_features: usize,
    bits: u32,
    group_size: usize,
    /// (out, stride) bytes and [`PADDING`]; the columns of a group lie together.
    codes: Vec<u8>,
    /// Bytes of one row's codes.
    stride: usize,
    /// (out, groups).
    scales: Scales,
    /// (out, groups); absent where all are `2^(bits − 1)`.
    zeros: Option<Vec<u8>>,
    /// Where the groups are not contiguous in the checkpoint: stored column `j` is the checkpoint's `columns[j]`.
    columns: Option<Vec<u32>>,
}

impl PackedMatrix {
    /// Packs `q`.
    ///
    /// # Panics
    /// If the lengths in `q` contradict its shape, or a `g_idx` does not give every group `group_size` columns.
    pub fn new(q: &Quantised) -> Self {
        let (out_features, in_features, bits) = (q.out_features, q.in_features, q.bits);
        assert!(matches!(bits, 2 | 3 | 4 | 8), "{bits} bits");
        assert!(q.group_size > 0 && in_features.is_multiple_of(q.group_size));
        let groups = q.groups();
        assert_eq!(q.codes.len(), out_features * in_features);
        assert_eq!((q.scales.len(), q.zeros.len()), (out_features * groups, out_features * groups));
        let columns = q.g_idx.as_deref().map(|g_idx| columns_by_group(g_idx, groups));
        let stride = (in_features * bits as usize).div_ceil(8);
        let mut codes = vec![0; out_features * stride + PADDING];
        let rows = codes[..out_features * stride].par_chunks_exact_mut(stride.max(1));
        rows.zip(q.codes.par_chunks_exact(in_features.max(1))).for_each(|(packed, codes)| match &columns {
            Some(columns) => pack_row(columns.iter().map(|&column| codes[column as usize]), bits, packed),
            None => pack_row(codes.iter().copied(), bits, packed),
        });
        let scales = match q.scale_dtype {
            ScaleDtype::F16 => Scales::F16(q.scales.iter().map(|&s| half::f16::from_f32(s)).collect()),
            ScaleDtype::Bf16 => Scales::Bf16(q.scales.iter().map(|&s| half::bf16::from_f32(s)).collect()),
            ScaleDtype::F32 => Scales::F32(q.scales.clone()),
        };
        let middle = 1u8 << (bits - 1);
        let zeros = q.zeros.iter().any(|&zero| zero != middle).then(|| q.zeros.clone());
        // In ascending order the permutation is the identity.
        let columns = columns.filter(|columns| !columns.is_sorted());
        Self { out_features, in_features, bits, group_size: q.group_size, codes, stride, scales, zeros, columns }
    }

    /// (out_features, in_features).
    pub fn shape(&self) -> (usize, usize) {
        (self.out_features, self.in_features)
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::F16(scales) => 2 * scales.len(),
            Scales::Bf16(scales) => 2 * scales.len(),
            Scales::F32(scales) => 4 * scales.len(),
        };
        let zeros = self.zeros.as_ref().map_or(0, Vec::len);
        let columns = self.columns.as_ref().map_or(0, |columns| 4 * columns.len());
        self.codes.len() + scales + zeros + columns
    }

    /// `y` = `x` Ŵᵀ, `x` (tokens, in), `y` (tokens, out), f32 throughout. Each output is summed in an order that depends
    /// on the shapes alone, so the result is the same for any number of threads.
    ///
    /// # Panics
    /// If a slice has another length than its shape says.
    pub fn product(&self, x: &[f32], tokens: usize, y: &mut [f32]) {
        assert_eq!(x.len(), tokens * self.in_features);
        if let Some(columns) = &self.columns {
            let mut gathered = Vec::with_capacity(x.len());
            for x in x.chunks_exact(self.in_features.max(1)) {
                gathered.extend(columns.iter().map(|&column| x[column as usize]));
            }
            return self.product_in_stored_order(&gathered, tokens, y);
        }
        self.product_in_stored_order(x, tokens, y);
    }

    fn product_in_stored_order(&self, x: &[f32], tokens: usize, y: &mut [f32]) {
        if tokens > FEW_TOKENS {
            return dense::by_panels(self.shape(), x, tokens, y, |rows, panel| self.widen_rows(rows, panel));
        }
        dense::row_tasks(self.shape(), x, tokens, y, |rows, products| {
            #[cfg(target_arch = "x86_64")]
            if avx512::serves(self) {
                // SAFETY: the processor has the features; `row_tasks` compared the lengths.
                unsafe { avx512::dot_rows(self, rows, x, tokens, products) };
                return;
            }
            self.dot_rows(rows, x, products);
        });
    }

    /// `products` (rows, tokens): the plain form.
    fn dot_rows(&self, rows: Range<usize>, x: &[f32], products: &mut [f32]) {
        let tokens = x.len() / self.in_features;
        let mut weights = vec![0.0; self.in_features];
        for (row, products) in rows.zip(products.chunks_exact_mut(tokens)) {
            self.widen_row(row, &mut weights);
            dense::dots_f32(bytemuck::cast_slice(&weights), x, products, self.in_features);
        }
    }

    /// Rows of Ŵ in stored column order, (rows, in).
    fn widen_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if avx512::serves(self) {
            // SAFETY: the processor has the features.
            unsafe { avx512::widen_rows(self, rows, out) };
            return;
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(self.in_features)) {
            self.widen_row(row, out);
        }
    }

    /// One row of Ŵ in stored column order: the plain form.
    fn widen_row(&self, row: usize, out: &mut [f32]) {
        let groups = self.in_features / self.group_size;
        let codes = &self.codes[row * self.stride..][..self.stride];
        let mut scales = vec![0.0; groups];
        self.scales.widen(row * groups..(row + 1) * groups, &mut scales);
        let mask = (1u32 << self.bits) - 1;
        for (group, (out, scale)) in out.chunks_exact_mut(self.group_size).zip(scales).enumerate() {
            let zero = self.zero(row * groups + group);
            for (i, value) in out.iter_mut().enumerate() {
                let bit = (group * self.group_size + i) * self.bits as usize;
                let low = u32::from(codes[bit / 8]);
                let high = codes.get(bit / 8 + 1).map_or(0, |&byte| u32::from(byte) << 8);
                let code = ((low | high) >> (bit % 8)) & mask;
                *value = scale * (code as i32 - zero) as f32;
            }
        }
    }

    fn zero(&self, group: usize) -> i32 {
        self.zeros.as_ref().map_or(1 << (self.bits - 1), |zeros| i32::from(zeros[group]))
    }

    /// Ŵ (out, in) in the checkpoint's column order.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.out_features * self.in_features];
        if out.is_empty() {
            return out;
        }
        out.par_chunks_exact_mut(self.in_features).enumerate().for_each_init(
            || vec![0.0; self.in_features],
            |stored, (row, out)| match &self.columns {
                None => self.widen_rows(row..row + 1, out),
                Some(columns) => {
                    self.widen_rows(row..row + 1, stored);
                    for (&column, &value) in columns.iter().zip(stored.iter()) {
                        out[column as usize] = value;
                    }
                }
            },
        );
        out
    }
}

/// The columns of group 0 in ascending order, then those of group 1, …
fn columns_by_group(g_idx: &[u32], groups: usize) -> Vec<u32> {
    let group_size = g_idx.len() / groups.max(1);
    let mut columns: Vec<u32> = (0..g_idx.len() as u32).collect();
    columns.sort_by_key(|&column| g_idx[column as usize]);
    for (place, &column) in columns.iter().enumerate() {
        let group = g_idx[column as usize] as usize;
        assert_eq!(group, place / group_size, "every group must have {group_size} columns");
    }
    columns
}

/// Codes as one little-endian bit stream.
fn pack_row(codes: impl Iterator<Item = u8>, bits: u32, packed: &mut [u8]) {
    let (mut word, mut filled, mut at) = (0u32, 0, 0);
    for code in codes {
        debug_assert!(u32::from(code) < 1 << bits);
        word |= u32::from(code) << filled;
        filled += bits;
        while filled >= 8 {
            packed[at] = word as u8;
            (word, filled, at) = (word >> 8, filled - 8, at + 1);
        }
    }
    if filled > 0 {
        packed[at] = word as u8;
    }
}

/// The same on processors with AVX-512, for groups of a multiple of sixteen columns.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::{arch::x86_64::*, ops::Range};

    use super::{PADDING, PackedMatrix};
    use crate::kernel::{Isa, isa};

    /// Whether the functions of this module may be called for `matrix`.
    pub(super) fn serves(matrix: &PackedMatrix) -> bool {
        matrix.group_size.is_multiple_of(16) && isa() == Isa::Avx512
    }

    /// How sixteen codes of BITS bits spread over sixteen lanes.
    struct Spread<const BITS: usize> {
        /// For each lane, which two bytes hold its code.
        bytes: __m512i,
        /// For each lane, the code's first bit in those.
        shifts: __m512i,
        /// 0..2^BITS as f32, repeated to sixteen (fewer than eight bits).
        levels: __m512,
    }

    impl<const BITS: usize> Spread<BITS> {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        fn new() -> Self {
            let mut bytes = [0x80u8; 64]; // 0x80 selects a zero byte
            let mut shifts = [0i32; 16];
            let mut levels = [0.0f32; 16];
            for lane in 0..16 {
                bytes[4 * lane] = (lane * BITS / 8) as u8;
                bytes[4 * lane + 1] = (lane * BITS / 8 + 1) as u8;
                shifts[lane] = (lane * BITS % 8) as i32;
                levels[lane] = (lane % (1 << BITS)) as f32;
            }
            // SAFETY: the arrays hold 64 bytes each.
            unsafe {
                Self {
                    bytes: _mm512_loadu_si512(bytes.as_ptr().cast()),
                    shifts: _mm512_loadu_si512(shifts.as_ptr().cast()),
                    levels: _mm512_loadu_ps(levels.as_ptr()),
                }
            }
        }

        /// What [`Self::weights`] needs of a group: the values of all codes, or for 8 bit the scale; and the zero point.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        fn group(&self, scale: f32, zero: i32) -> (__m512, __m512i) {
            if BITS == 8 {
                return (_mm512_set1_ps(scale), _mm512_set1_epi32(zero));
            }
            let centred = _mm512_sub_ps(self.levels, _mm512_set1_ps(zero as f32));
            (_mm512_mul_ps(centred, _mm512_set1_ps(scale)), _mm512_setzero_si512())
        }

        /// Sixteen weights from the codes at `at`.
        ///
        /// # Safety
        /// `at` may be read for sixteen bytes.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        unsafe fn weights(&self, at: *const u8, (table, zero): (__m512, __m512i)) -> __m512 {
            // SAFETY: the caller's.
            let codes = unsafe { _mm_loadu_si128(at.cast()) };
            if BITS == 8 {
                let centred = _mm512_sub_epi32(_mm512_cvtepu8_epi32(codes), zero);
                return _mm512_mul_ps(_mm512_cvtepi32_ps(centred), table);
            }
            let pairs = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(codes), self.bytes);
            // Only the low four bits of a lane select, and the table repeats every 2^BITS entries.
            _mm512_permutexvar_ps(_mm512_srlv_epi32(pairs, self.shifts), table)
        }
    }

    macro_rules! by_bits {
        ($matrix:ident, $function:ident [$($tokens:literal)?] $arguments:tt) => {
            match $matrix.bits {
                2 => $function::<2, $($tokens)?> $arguments,
                3 => $function::<3, $($tokens)?> $arguments,
                4 => $function::<4, $($tokens)?> $arguments,
                8 => $function::<8, $($tokens)?> $arguments,
                bits => unreachable!("{bits} bits"),
            }
        };
    }

    /// Rows of Ŵ in stored column order, (rows, in).
    ///
    /// # Safety
    /// The processor has the features.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn widen_rows(matrix: &PackedMatrix, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.end <= matrix.out_features);
        assert_eq!(out.len(), rows.len() * matrix.in_features);
        // SAFETY: the lengths were checked above.
        unsafe { by_bits!(matrix, widen[](matrix, rows, out)) }
    }

    /// # Safety
    /// The processor has the features; `rows` lie in `matrix`, `out` holds (rows, in).
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn widen<const BITS: usize>(matrix: &PackedMatrix, rows: Range<usize>, out: &mut [f32]) {
        let spread = Spread::<BITS>::new();
        let groups = matrix.in_features / matrix.group_size;
        let mut scales = vec![0.0; groups];
        for (row, out) in rows.zip(out.chunks_exact_mut(matrix.in_features)) {
            matrix.scales.widen(row * groups..(row + 1) * groups, &mut scales);
            for group in 0..groups {
                let parameters = spread.group(scales[group], matrix.zero(row * groups + group));
                for column in (group * matrix.group_size..(group + 1) * matrix.group_size).step_by(16) {
                    // SAFETY: sixteen columns from `column` on lie in the row, and PADDING bytes after the last code.
                    unsafe {
                        let at = matrix.codes.as_ptr().add(row * matrix.stride + column * BITS / 8);
                        _mm512_storeu_ps(out.as_mut_ptr().add(column), spread.weights(at, parameters));
                    }
                }
            }
        }
    }

    /// `products` (rows, tokens) with `x` (tokens, in), at most four tokens.
    ///
    /// # Safety
    /// The processor has the features.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn dot_rows(
        matrix: &PackedMatrix,
        rows: Range<usize>,
        x: &[f32],
        tokens: usize,
        products: &mut [f32],
    ) {
        assert!(rows.end <= matrix.out_features);
        assert_eq!((x.len(), products.len()), (tokens * matrix.in_features, rows.len() * tokens));
        // SAFETY: the lengths were checked above.
        unsafe {
            match tokens {
                1 => by_bits!(matrix, dot[1](matrix, rows, x, products)),
                2 => by_bits!(matrix, dot[2](matrix, rows, x, products)),
                3 => by_bits!(matrix, dot[3](matrix, rows, x, products)),
                4 => by_bits!(matrix, dot[4](matrix, rows, x, products)),
                _ => unreachable!("at most FEW_TOKENS tokens"),
            }
        }
    }

    /// # Safety
    /// The processor has the features; `rows` lie in `matrix`, `x` holds (TOKENS, in), `products` (rows, TOKENS).
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn dot<const BITS: usize, const TOKENS: usize>(
        matrix: &PackedMatrix,
        rows: Range<usize>,
        x: &[f32],
        products: &mut [f32],
    ) {
        let groups = matrix.in_features / matrix.group_size;
        let mut scales = vec![0.0; 4 * groups];
        let mut row = rows.start;
        while row < rows.end {
            let products = &mut products[(row - rows.start) * TOKENS..];
            let count = if rows.end - row >= 4 { 4 } else { 1 };
            let scales = &mut scales[..count * groups];
            matrix.scales.widen(row * groups..(row + count) * groups, scales);
            // SAFETY: the tile lies inside the matrix.
            unsafe {
                match count {
                    4 => tile::<BITS, TOKENS, 4>(matrix, row, scales, x, products),
                    _ => tile::<BITS, TOKENS, 1>(matrix, row, scales, x, products),
                }
            }
            row += count;
        }
    }

    /// ROWS rows at once, so that a load of `x` serves them all. Every sum runs over columns sixteen apart, whatever
    /// ROWS and TOKENS are.
    ///
    /// # Safety
    /// The processor has the features; rows `row..row + ROWS` lie in `matrix`, `x` holds (TOKENS, in).
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn tile<const BITS: usize, const TOKENS: usize, const ROWS: usize>(
        matrix: &PackedMatrix,
        row: usize,
        scales: &[f32],
        x: &[f32],
        products: &mut [f32],
    ) {
        const { assert!(PADDING >= 16) };
        let (n, stride, group_size) = (matrix.in_features, matrix.stride, matrix.group_size);
        let groups = n / group_size;
        let spread = Spread::<BITS>::new();
        let codes = matrix.codes[row * stride..].as_ptr();
        let mut sums = [[_mm512_setzero_ps(); TOKENS]; ROWS];
        for group in 0..groups {
            let mut parameters = [(_mm512_setzero_ps(), _mm512_setzero_si512()); ROWS];
            for r in 0..ROWS {
                let zero = matrix.zero((row + r) * groups + group);
                parameters[r] = spread.group(scales[r * groups + group], zero);
            }
            let mut column = group * group_size;
            let end = column + group_size;
            while column < end {
                // SAFETY: sixteen columns from `column` on lie in every row, and PADDING bytes after the last code.
                unsafe {
                    let mut inputs = [_mm512_setzero_ps(); TOKENS];
                    for token in 0..TOKENS {
                        inputs[token] = _mm512_loadu_ps(x.as_ptr().add(token * n + column));
                    }
                    for r in 0..ROWS {
                        let weights = spread.weights(codes.add(r * stride + column * BITS / 8), parameters[r]);
                        for token in 0..TOKENS {
                            sums[r][token] = _mm512_fmadd_ps(weights, inputs[token], sums[r][token]);
                        }
                    }
                }
                column += 16;
            }
        }
        for r in 0..ROWS {
            for token in 0..TOKENS {
                products[r * TOKENS + token] = _mm512_reduce_add_ps(sums[r][token]);
            }
        }
    }
}
