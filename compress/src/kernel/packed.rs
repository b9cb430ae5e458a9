//! Products with weights kept as 2, 3, 4 or 8 bit codes.
//!
//! `y = x Ŵᵀ` with `Ŵ[o, i] = scale[o, g] · (q[o, i] − zero[o, g])`, `g = i / group_size`. A row's codes are one dense
//! little-endian bit stream. For a few tokens sixteen codes become sixteen weights by one table look-up (the group's
//! `2^bits` values fit a register) on their way into the sum; for many, panels of rows are widened first.
//! The weights are the same numbers [`Quantised::dequantize`](crate::grid::Quantised::dequantize) gives, to the bit.

use std::{borrow::Cow, ops::Range};

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
    /// The checkpoint's columns in the order the kernels multiply them in, where that is not 0, 1, 2, …
    order: Option<Vec<u32>>,
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
        let group_size = q.group_size;
        let order = kernel_order(in_features, bits, group_size, columns.as_deref());
        Self { out_features, in_features, bits, group_size, codes, stride, scales, zeros, columns, order }
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
        let orders = self.columns.iter().chain(&self.order).map(|order| 4 * order.len()).sum::<usize>();
        self.codes.len() + scales + zeros + orders
    }

    /// `y` = `x` Ŵᵀ, `x` (tokens, in), `y` (tokens, out), f32 throughout. Each output is summed in an order that depends
    /// on the shapes alone, so the result is the same for any number of threads.
    ///
    /// # Panics
    /// If a slice has another length than its shape says.
    pub fn product(&self, x: &[f32], tokens: usize, y: &mut [f32]) {
        assert_eq!(x.len(), tokens * self.in_features);
        let x = self.rearranged(x);
        if tokens > FEW_TOKENS {
            return dense::by_panels(self.shape(), &x, tokens, y, |rows, panel| self.widen_rows(rows, panel));
        }
        dense::row_tasks(self.shape(), &x, tokens, y, |rows, products| {
            #[cfg(target_arch = "x86_64")]
            if let Some(chunk) = self.chunk() {
                // SAFETY: there are chunks, hence the features.
                unsafe { avx512::dot_rows(self, chunk, rows, &x, tokens, products) };
                return;
            }
            self.dot_rows(rows, &x, products);
        });
    }

    /// How many codes the vector kernels take at once, if they serve this matrix on this processor.
    #[cfg(target_arch = "x86_64")]
    fn chunk(&self) -> Option<usize> {
        avx512::chunk(self.bits, self.group_size)
    }

    /// `x` (tokens, in) with its columns in the order the kernels multiply them in.
    fn rearranged<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        let Some(order) = &self.order else { return Cow::Borrowed(x) };
        let mut gathered = Vec::with_capacity(x.len());
        for x in x.chunks_exact(self.in_features.max(1)) {
            gathered.extend(order.iter().map(|&column| x[column as usize]));
        }
        Cow::Owned(gathered)
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

    /// Rows of Ŵ in the column order of [`Self::rearranged`], (rows, in).
    fn widen_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if let Some(chunk) = self.chunk() {
            // SAFETY: there are chunks, hence the features.
            unsafe { avx512::widen_rows(self, chunk, rows, out) };
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
                None => self.widen_row(row, out),
                Some(columns) => {
                    self.widen_row(row, stored);
                    for (&column, &value) in columns.iter().zip(stored.iter()) {
                        out[column as usize] = value;
                    }
                }
            },
        );
        out
    }
}

/// The order the kernels multiply columns in: [`avx512::place`]'s in each chunk where that serves, of the stored columns.
fn kernel_order(in_features: usize, bits: u32, group_size: usize, columns: Option<&[u32]>) -> Option<Vec<u32>> {
    #[cfg(target_arch = "x86_64")]
    if let Some(chunk) = avx512::chunk(bits, group_size).filter(|&chunk| chunk > 16) {
        let stored = (0..in_features).map(|nth| nth / chunk * chunk + avx512::place(bits, chunk, nth % chunk));
        return Some(stored.map(|column| columns.map_or(column as u32, |columns| columns[column])).collect());
    }
    let _ = (in_features, bits, group_size);
    columns.map(<[u32]>::to_vec)
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

/// The same on processors with AVX-512.
///
/// Codes are taken in chunks, sixteen at a time. In a chunk of 2 or 4 bit codes a lane shifts through the codes of one
/// 32-bit word (or of a half or quarter of it, where a chunk is less than sixteen words), so that the sixteen codes at
/// hand lie a fixed distance apart: [`place`] says where, and the activations are put into that order beforehand. A
/// chunk of 3 or 8 bit codes is sixteen in their own order.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::{arch::x86_64::*, ops::Range};

    use super::{PADDING, PackedMatrix};
    use crate::kernel::{Isa, isa};

    /// The codes taken at once: all in one group. `None` if this processor or this group size is not served.
    pub(super) fn chunk(bits: u32, group_size: usize) -> Option<usize> {
        let sizes: &[usize] = if matches!(bits, 2 | 4) { &[128, 64, 32] } else { &[16] };
        let fits = |size: &&usize| group_size.is_multiple_of(**size);
        sizes.iter().find(fits).copied().filter(|_| isa() == Isa::Avx512)
    }

    /// Which code of a chunk comes `nth`, for 2 and 4 bits.
    pub(super) fn place(bits: u32, chunk: usize, nth: usize) -> usize {
        let (step, lane) = (nth / 16, nth % 16);
        let per_word = 32 / bits as usize;
        let words = chunk / per_word;
        lane % words * per_word + lane / words * (chunk / 16) + step
    }

    /// How CODES codes of BITS bits spread over sixteen lanes.
    struct Spread<const BITS: u32, const CODES: usize> {
        /// 3 bit: for each lane, which two bytes hold its code.
        bytes: __m512i,
        /// 2, 3, 4 bit: for each lane, the place of its first code.
        shifts: __m512i,
        /// 2, 3, 4 bit: 0..2^BITS as f32, repeated to sixteen.
        levels: __m512,
    }

    impl<const BITS: u32, const CODES: usize> Spread<BITS, CODES> {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        fn new() -> Self {
            let mut bytes = [0x80u8; 64]; // 0x80 selects a zero byte
            let mut shifts = [0u32; 16];
            let mut levels = [0.0f32; 16];
            for lane in 0..16 {
                let bit = lane as u32 * BITS;
                bytes[4 * lane] = (bit / 8) as u8;
                bytes[4 * lane + 1] = (bit / 8 + 1) as u8;
                let words = CODES * BITS as usize / 32;
                shifts[lane] = if BITS == 3 { bit % 8 } else { (lane / words.max(1) * (CODES / 16)) as u32 * BITS };
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

        /// What [`Self::next`] needs of a group: the values of all codes, or for 8 bit the scale; and the zero point.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        fn group(&self, scale: f32, zero: i32) -> (__m512, __m512i) {
            if BITS == 8 {
                return (_mm512_set1_ps(scale), _mm512_set1_epi32(zero));
            }
            let centred = _mm512_sub_ps(self.levels, _mm512_set1_ps(zero as f32));
            (_mm512_mul_ps(centred, _mm512_set1_ps(scale)), _mm512_setzero_si512())
        }

        /// The chunk at `at`: the low bits of each lane are its first code.
        ///
        /// # Safety
        /// `at` may be read for the chunk's bytes, and for 3 bit for sixteen.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        unsafe fn load(&self, at: *const u8) -> __m512i {
            // SAFETY: the caller's; each arm reads as many bytes as it matches.
            unsafe {
                match (BITS, CODES * BITS as usize / 8) {
                    (8, _) => _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())),
                    (3, _) => {
                        let all = _mm512_broadcast_i32x4(_mm_loadu_si128(at.cast()));
                        _mm512_srlv_epi32(_mm512_shuffle_epi8(all, self.bytes), self.shifts)
                    }
                    (_, 64) => _mm512_loadu_si512(at.cast()),
                    (_, 32) => _mm512_srlv_epi32(_mm512_broadcast_i64x4(_mm256_loadu_si256(at.cast())), self.shifts),
                    (_, 16) => _mm512_srlv_epi32(_mm512_broadcast_i32x4(_mm_loadu_si128(at.cast())), self.shifts),
                    (_, 8) => _mm512_srlv_epi32(_mm512_set1_epi64(at.cast::<i64>().read_unaligned()), self.shifts),
                    _ => unreachable!("chunks have 8 to 64 bytes"),
                }
            }
        }

        /// Sixteen weights from `codes`, which moves on to the next.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        fn next(&self, codes: &mut __m512i, (table, zero): (__m512, __m512i)) -> __m512 {
            if BITS == 8 {
                return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(*codes, zero)), table);
            }
            // Only the low four bits of a lane select, and the table repeats every 2^BITS entries.
            let weights = _mm512_permutexvar_ps(*codes, table);
            *codes = _mm512_srli_epi32::<BITS>(*codes);
            weights
        }
    }

    macro_rules! by_layout {
        ($matrix:ident, $chunk:ident, $function:ident [$($tokens:literal)?] $arguments:tt) => {
            match ($matrix.bits, $chunk) {
                (2, 32) => $function::<2, 32, $($tokens)?> $arguments,
                (2, 64) => $function::<2, 64, $($tokens)?> $arguments,
                (2, 128) => $function::<2, 128, $($tokens)?> $arguments,
                (3, 16) => $function::<3, 16, $($tokens)?> $arguments,
                (4, 32) => $function::<4, 32, $($tokens)?> $arguments,
                (4, 64) => $function::<4, 64, $($tokens)?> $arguments,
                (4, 128) => $function::<4, 128, $($tokens)?> $arguments,
                (8, 16) => $function::<8, 16, $($tokens)?> $arguments,
                (bits, codes) => unreachable!("chunks of {codes} codes of {bits} bits"),
            }
        };
    }

    /// Rows of Ŵ, (rows, in), each chunk in the order of [`place`].
    ///
    /// # Safety
    /// `chunk` is [`chunk`]'s for this matrix.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn widen_rows(matrix: &PackedMatrix, chunk: usize, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.end <= matrix.out_features);
        assert_eq!(out.len(), rows.len() * matrix.in_features);
        // SAFETY: the lengths were checked above.
        unsafe { by_layout!(matrix, chunk, widen[](matrix, rows, out)) }
    }

    /// # Safety
    /// CODES divides the group size; `rows` lie in `matrix`, `out` holds (rows, in).
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn widen<const BITS: u32, const CODES: usize>(matrix: &PackedMatrix, rows: Range<usize>, out: &mut [f32]) {
        let spread = Spread::<BITS, CODES>::new();
        let groups = matrix.in_features / matrix.group_size;
        let mut scales = vec![0.0; groups];
        for (row, out) in rows.zip(out.chunks_exact_mut(matrix.in_features)) {
            matrix.scales.widen(row * groups..(row + 1) * groups, &mut scales);
            for group in 0..groups {
                let parameters = spread.group(scales[group], matrix.zero(row * groups + group));
                for column in (group * matrix.group_size..(group + 1) * matrix.group_size).step_by(CODES) {
                    // SAFETY: the chunk at `column` lies in the row, and PADDING bytes after the last code.
                    unsafe {
                        let at = row * matrix.stride + column * BITS as usize / 8;
                        let mut codes = spread.load(matrix.codes.as_ptr().add(at));
                        for step in 0..CODES / 16 {
                            let weights = spread.next(&mut codes, parameters);
                            _mm512_storeu_ps(out.as_mut_ptr().add(column + 16 * step), weights);
                        }
                    }
                }
            }
        }
    }

    /// `products` (rows, tokens) with the rearranged `x` (tokens, in), at most four tokens.
    ///
    /// # Safety
    /// `chunk` is [`chunk`]'s for this matrix.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn dot_rows(
        matrix: &PackedMatrix,
        chunk: usize,
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
                1 => by_layout!(matrix, chunk, dot[1](matrix, rows, x, products)),
                2 => by_layout!(matrix, chunk, dot[2](matrix, rows, x, products)),
                3 => by_layout!(matrix, chunk, dot[3](matrix, rows, x, products)),
                4 => by_layout!(matrix, chunk, dot[4](matrix, rows, x, products)),
                _ => unreachable!("at most FEW_TOKENS tokens"),
            }
        }
    }

    /// # Safety
    /// CODES divides the group size; `rows` lie in `matrix`, `x` holds (TOKENS, in), `products` (rows, TOKENS).
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn dot<const BITS: u32, const CODES: usize, const TOKENS: usize>(
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
                    4 => tile::<BITS, CODES, TOKENS, 4>(matrix, row, scales, x, products),
                    _ => tile::<BITS, CODES, TOKENS, 1>(matrix, row, scales, x, products),
                }
            }
            row += count;
        }
    }

    /// ROWS rows at once, so that a load of `x` serves them all. Every sum runs over columns sixteen apart, whatever
    /// ROWS and TOKENS are.
    ///
    /// # Safety
    /// CODES divides the group size; rows `row..row + ROWS` lie in `matrix`, `x` holds (TOKENS, in).
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn tile<const BITS: u32, const CODES: usize, const TOKENS: usize, const ROWS: usize>(
        matrix: &PackedMatrix,
        row: usize,
        scales: &[f32],
        x: &[f32],
        products: &mut [f32],
    ) {
        const { assert!(PADDING >= 16) };
        let (n, stride, group_size) = (matrix.in_features, matrix.stride, matrix.group_size);
        let groups = n / group_size;
        let spread = Spread::<BITS, CODES>::new();
        let codes = matrix.codes[row * stride..].as_ptr();
        let line = if BITS == 3 { 128 } else { 512 / BITS as usize }; // columns in (at most) 64 bytes
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
                // SAFETY: the chunk at `column` lies in every row, and PADDING bytes after the last code.
                unsafe {
                    let mut chunks = [_mm512_setzero_si512(); ROWS];
                    for r in 0..ROWS {
                        let at = codes.add(r * stride + column * BITS as usize / 8);
                        chunks[r] = spread.load(at);
                        if column.is_multiple_of(line) {
                            // The same place in the next tile: short rows end before the processor sees a stream. A
                            // prefetch may lie outside the matrix.
                            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ROWS * stride).cast());
                        }
                    }
                    for step in 0..CODES / 16 {
                        let mut inputs = [_mm512_setzero_ps(); TOKENS];
                        for token in 0..TOKENS {
                            inputs[token] = _mm512_loadu_ps(x.as_ptr().add(token * n + column + 16 * step));
                        }
                        for r in 0..ROWS {
                            let weights = spread.next(&mut chunks[r], parameters[r]);
                            for token in 0..TOKENS {
                                sums[r][token] = _mm512_fmadd_ps(weights, inputs[token], sums[r][token]);
                            }
                        }
                    }
                }
                column += CODES;
            }
        }
        for r in 0..ROWS {
            for token in 0..TOKENS {
                products[r * TOKENS + token] = _mm512_reduce_add_ps(sums[r][token]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::test_values::uniform;

    /// Largest accepted difference between the vector kernels and the plain form, relative to Σ|x·w|: two orders of
    /// summing at most 640 products in f32.
    const MAX_RELATIVE_DIFFERENCE: f32 = 4e-6;

    #[test]
    fn the_vector_kernels_match_the_plain_form() {
        for bits in [2, 3, 4, 8] {
            for (in_features, group_size) in [(64, 32), (640, 64), (640, 128), (640, 640), (96, 96), (48, 16)] {
                let (out_features, groups) = (7, in_features / group_size);
                let code = |x: f32| ((x + 1.0) / 2.0 * (1u32 << bits) as f32) as u8;
                let codes = |n, seed| uniform(n, seed).into_iter().map(code).collect::<Vec<_>>();
                let matrix = PackedMatrix::new(&Quantised {
                    out_features,
                    in_features,
                    bits,
                    group_size,
                    symmetric: false,
                    scale_dtype: ScaleDtype::F32,
                    codes: codes(out_features * in_features, 1),
                    scales: uniform(out_features * groups, 2).iter().map(|x| 0.02 + 0.01 * x).collect(),
                    zeros: codes(out_features * groups, 3),
                    g_idx: None,
                });
                let weights = matrix.dequantize();
                for tokens in 1..=FEW_TOKENS + 1 {
                    let x = uniform(tokens * in_features, 4);
                    let mut fast = vec![0.0; tokens * out_features];
                    matrix.product(&x, tokens, &mut fast);
                    for token in 0..tokens {
                        let x = &x[token * in_features..][..in_features];
                        let mut plain = vec![0.0; out_features];
                        matrix.dot_rows(0..out_features, x, &mut plain);
                        for row in 0..out_features {
                            let row_weights = &weights[row * in_features..][..in_features];
                            let size: f32 = x.iter().zip(row_weights).map(|(x, w)| (x * w).abs()).sum();
                            let (fast, plain) = (fast[token * out_features + row], plain[row]);
                            assert!(
                                (fast - plain).abs() <= MAX_RELATIVE_DIFFERENCE * size,
                                "{bits} bits, {in_features} in groups of {group_size}, token {token} of {tokens}, \
                                 row {row}: {fast}, expected {plain}"
                            );
                        }
                    }
                }
            }
        }
    }
}
