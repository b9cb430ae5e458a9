//! Round to nearest straight into packed words: quantises a stored weight a group at a time, without an unpacked copy.
//!
//! The results are bit for bit those of [`crate::grid::round_to_nearest`] followed by [`crate::pack::pack_rows`], and what
//! was lost is summed on the way as [`row_loss`] does; buffers are the caller's and are used again, since fresh pages cost
//! more than the arithmetic.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;
use scruple_weights::{Dtype, TensorView};

use super::loss::{Loss, row_loss};
use crate::grid::{self, GridSpec, ScaleDtype, Search};
use crate::pack;
use crate::{Error, Result};

/// A weight as stored, (out_features, in_features).
#[derive(Debug, Clone, Copy)]
pub enum Stored<'a> {
    /// bf16, widened exactly.
    Bf16(&'a [bf16]),
    /// f16, widened exactly.
    F16(&'a [f16]),
    /// f32.
    F32(&'a [f32]),
}

impl<'a> Stored<'a> {
    fn len(self) -> usize {
        match self {
            Self::Bf16(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    fn part(self, from: usize, len: usize) -> Stored<'a> {
        match self {
            Self::Bf16(values) => Self::Bf16(&values[from..][..len]),
            Self::F16(values) => Self::F16(&values[from..][..len]),
            Self::F32(values) => Self::F32(&values[from..][..len]),
        }
    }
}

/// Where the rows of a weight come from.
pub trait Rows: Sync {
    /// (out_features, in_features).
    fn shape(&self) -> (usize, usize);

    /// The rows of that range, in `buffer` if they have to be put somewhere.
    ///
    /// # Errors
    /// If they cannot be read.
    fn rows<'a>(&'a self, rows: Range<usize>, buffer: &'a mut Vec<u64>) -> Result<Stored<'a>>;
}

/// A weight in memory, with its row length.
impl Rows for (Stored<'_>, usize) {
    fn shape(&self) -> (usize, usize) {
        let (weight, in_features) = self;
        (weight.len().checked_div(*in_features).unwrap_or(0), *in_features)
    }

    fn rows<'a>(&'a self, rows: Range<usize>, _: &'a mut Vec<u64>) -> Result<Stored<'a>> {
        let (weight, in_features) = self;
        Ok(weight.part(rows.start * in_features, rows.len() * in_features))
    }
}

/// A matrix in a file, of a type that [`Stored`] has; each thread reads what it is about to pack, so that the values are
/// in its cache when they are looked at.
#[derive(Debug, Clone, Copy)]
pub struct InFile<'a>(&'a TensorView);

impl<'a> InFile<'a> {
    /// The matrix `view`; `None` where its type is another.
    pub fn of(view: &'a TensorView) -> Option<Self> {
        let stored = matches!(view.dtype(), Dtype::Bf16 | Dtype::F16 | Dtype::F32);
        (stored && cfg!(target_endian = "little")).then_some(Self(view))
    }
}

impl Rows for InFile<'_> {
    fn shape(&self) -> (usize, usize) {
        self.0.rows()
    }

    fn rows<'a>(&'a self, rows: Range<usize>, buffer: &'a mut Vec<u64>) -> Result<Stored<'a>> {
        let Self(view) = self;
        let size = if view.dtype() == Dtype::F32 { 4 } else { 2 };
        let row = size * view.rows().1;
        let bytes = row * rows.len();
        buffer.resize(bytes.div_ceil(8), 0);
        let bytes = &mut bytemuck::cast_slice_mut(buffer)[..bytes];
        view.read_at(row * rows.start, bytes)?;
        Ok(match view.dtype() {
            Dtype::F32 => Stored::F32(bytemuck::cast_slice(bytes)),
            Dtype::F16 => Stored::F16(bytemuck::cast_slice(bytes)),
            _ => Stored::Bf16(bytemuck::cast_slice(bytes)),
        })
    }
}

/// A packed weight; make one and use it for many.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Packed {
    /// (out_features, in_features · bits / 32), lowest bits first along the input.
    pub words: Vec<u32>,
    /// The bits of f16 or bf16 scales, (out_features, groups).
    pub scales: Vec<u16>,
    /// Zero points, (out_features, groups), unpacked.
    pub zeros: Vec<u8>,
    /// What each row lost, (out_features).
    pub losses: Vec<Loss>,
}

impl Packed {
    /// What the whole weight lost: the rows' sums, first to last.
    pub fn loss(&self) -> Loss {
        self.losses.iter().copied().sum()
    }
}

/// Rows one thread takes at once.
const ROWS: usize = 16;

/// Quantises `weight` (out_features, in_features) to the nearest points of its groups' grids and packs the codes along the
/// input into `out`, whose buffers are used again.
///
/// # Errors
/// What [`crate::grid::round_to_nearest`] and [`crate::pack::pack_rows`] refuse, f32 scales, and what `weight` has.
pub fn rtn_pack(weight: &impl Rows, spec: &GridSpec, out: &mut Packed) -> Result<()> {
    let (out_features, in_features) = weight.shape();
    let group_size = spec.group_size_for(in_features)?;
    let words = pack::words_for(in_features, spec.bits)?;
    if spec.scale_dtype == ScaleDtype::F32 {
        return Err(Error::Recipe("packed scales are F16 or BF16, not F32".to_owned()));
    }
    let groups = in_features / group_size.max(1);
    out.words.resize(out_features * words, 0);
    out.scales.resize(out_features * groups, 0);
    out.zeros.resize(out_features * groups, 0);
    out.losses.resize(out_features, Loss::default());
    if out.words.is_empty() {
        return Ok(());
    }
    let failed = out
        .words
        .par_chunks_mut(ROWS * words)
        .zip(out.scales.par_chunks_mut(ROWS * groups).zip(out.zeros.par_chunks_mut(ROWS * groups)))
        .zip(out.losses.par_chunks_mut(ROWS))
        .enumerate()
        .map_init(Kept::default, |scratch, (chunk, ((word_rows, (scale_rows, zero_rows)), losses))| {
            let rows = word_rows.chunks_exact_mut(words);
            let grids = scale_rows.chunks_exact_mut(groups).zip(zero_rows.chunks_exact_mut(groups));
            let first = chunk * ROWS;
            let (rows_here, stored) = (losses.len(), &mut scratch.stored);
            let weight = match weight.rows(first..first + rows_here, stored) {
                Ok(weight) => weight,
                Err(error) => return Some(error),
            };
            let rows = rows.zip(grids).zip(losses).enumerate();
            for (within, ((words, (scales, zeros)), loss)) in rows {
                let values = weight.part(within * in_features, in_features);
                match pack_row(values, group_size, spec, &mut scratch.room, words, scales, zeros) {
                    Ok(lost) => *loss = lost,
                    Err((group, cause)) => {
                        let row = first + within;
                        return Some(Error::Numeric(format!("row {row}, group {group}: {cause}")));
                    }
                }
            }
            None
        })
        .find_first(Option::is_some);
    match failed.flatten() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// What a thread keeps from chunk to chunk.
#[derive(Default)]
struct Kept {
    stored: Vec<u64>,
    room: Scratch,
}

/// Room for a row on the general path.
#[derive(Default)]
struct Scratch {
    values: Vec<f32>,
    codes: Vec<u8>,
    /// What the codes stand for.
    back: Vec<f32>,
}

/// One row: what it lost, or the group that fails.
fn pack_row(
    weight: Stored<'_>,
    group_size: usize,
    spec: &GridSpec,
    scratch: &mut Scratch,
    words: &mut [u32],
    scales: &mut [u16],
    zeros: &mut [u8],
) -> Result<Loss, (usize, Error)> {
    #[cfg(target_arch = "x86_64")]
    if spec.bits == 4
        && spec.search == Search::None
        && group_size.is_multiple_of(avx512::STEP)
        && super::isa() == super::Isa::Avx512
        && let Some(loss) = pack_row_avx512(weight, group_size, spec, words, scales, zeros)
    {
        return Ok(loss);
    }
    let wide = match weight {
        Stored::F32(values) => values,
        Stored::Bf16(values) => {
            scratch.values.resize(values.len(), 0.0);
            super::gemm::widen_bf16(values, &mut scratch.values);
            &scratch.values
        }
        Stored::F16(values) => {
            scratch.values.resize(values.len(), 0.0);
            half::slice::HalfFloatSliceExt::convert_to_f32_slice(values, &mut scratch.values);
            &scratch.values
        }
    };
    // Groups need not fill words here; rows do.
    scratch.codes.resize(wide.len(), 0);
    scratch.back.resize(wide.len(), 0.0);
    let max_code = spec.max_code();
    for group in 0..scales.len() {
        let columns = group * group_size..(group + 1) * group_size;
        let (scale, zero) = grid::fit_group(&wide[columns.clone()], spec).map_err(|cause| (group, cause))?;
        let codes = &mut scratch.codes[columns.clone()];
        grid::quantize_group(&wide[columns.clone()], scale, zero, max_code, codes);
        grid::dequantize_group(codes, scale, zero, &mut scratch.back[columns]);
        scales[group] = bits_of(scale, spec.scale_dtype);
        zeros[group] = zero;
    }
    pack::pack_run(&scratch.codes, spec.bits, words);
    Ok(row_loss(&scratch.back, wide))
}

/// One row of 4 bits whose groups are whole steps; `None` where a group cannot be coded, which the general path names.
#[cfg(target_arch = "x86_64")]
fn pack_row_avx512(
    weight: Stored<'_>,
    group_size: usize,
    spec: &GridSpec,
    words: &mut [u32],
    scales: &mut [u16],
    zeros: &mut [u8],
) -> Option<Loss> {
    use avx512::{BF16, F16, F32};
    let mut sums = avx512::Sums::default();
    for first in (0..scales.len()).step_by(avx512::GROUPS) {
        let groups = avx512::GROUPS.min(scales.len() - first);
        let values = weight.part(first * group_size, groups * group_size);
        let out = avx512::Out {
            words: &mut words[first * group_size / 8..][..groups * group_size / 8],
            scales: &mut scales[first..first + groups],
            zeros: &mut zeros[first..first + groups],
        };
        // SAFETY: AVX-512 was detected; `values` are whole steps a group, and `out` has room for them.
        unsafe {
            match values {
                Stored::Bf16(values) => avx512::groups::<BF16>(values.as_ptr().cast(), spec, out, &mut sums)?,
                Stored::F16(values) => avx512::groups::<F16>(values.as_ptr().cast(), spec, out, &mut sums)?,
                Stored::F32(values) => avx512::groups::<F32>(values.as_ptr().cast(), spec, out, &mut sums)?,
            }
        }
    }
    Some(sums.loss())
}

/// The bits of a scale that is already a value of `dtype`.
fn bits_of(scale: f32, dtype: ScaleDtype) -> u16 {
    match dtype {
        ScaleDtype::F16 => f16::from_f32(scale).to_bits(),
        _ => (scale.to_bits() >> 16) as u16,
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use crate::{
        grid::{GridSpec, ScaleDtype},
        kernel::loss::{LANES, Loss},
    };

    /// Groups are multiples of so many values; twice as many, 32 bytes of nibbles, are packed at once where there are.
    pub(super) const STEP: usize = 32;

    /// Groups whose grids are fitted at once.
    pub(super) const GROUPS: usize = 16;

    /// A quotient by way of the inverse that is nearer than this to a whole number rounds as the division does: quotients
    /// that are not clamped afterwards are below 32, so both are less than 32 · 2⁻²² < 1e-5 apart.
    const CLEAR: f32 = 0.49998;

    /// How a weight is stored.
    pub(super) const F32: u8 = 0;
    pub(super) const BF16: u8 = 1;
    pub(super) const F16: u8 = 2;

    /// The sums of [`crate::kernel::loss::row_loss`], lane by lane, while a row is coded.
    #[derive(Default)]
    pub(super) struct Sums {
        lost: [f32; LANES],
        energy: [f32; LANES],
        zeros: u64,
    }

    impl Sums {
        /// Of the values seen.
        pub(super) fn loss(&self) -> Loss {
            Loss::of_lanes(&self.lost, &self.energy, self.zeros)
        }
    }

    /// Sixteen values from place `at` on.
    ///
    /// # Safety
    /// `at + 16` values are readable.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load<const STORED: u8>(values: *const u8, at: usize) -> __m512 {
        // SAFETY: the contract, for elements of 2 or 4 bytes.
        unsafe {
            match STORED {
                F32 => _mm512_loadu_ps(values.add(4 * at).cast()),
                F16 => _mm512_cvtph_ps(_mm256_loadu_si256(values.add(2 * at).cast())),
                _ => {
                    let halves = _mm256_loadu_si256(values.add(2 * at).cast());
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
                }
            }
        }
    }

    /// Where the codes and grids of up to [`GROUPS`] groups go: an eighth as many words as there are values, and a scale
    /// and a zero point a group.
    pub(super) struct Out<'a> {
        pub(super) words: &'a mut [u32],
        pub(super) scales: &'a mut [u16],
        pub(super) zeros: &'a mut [u8],
    }

    /// Fits the grids of some groups and packs their codes of 4 bits; nothing if a value is not finite or a scale is beyond
    /// its type, and then nothing useful is in `out` and `sums`.
    ///
    /// # Safety
    /// `values` points to 8 · words.len() values of the type `STORED`, a multiple of [`STEP`] for each group; the groups are
    /// from 1 to [`GROUPS`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
    pub(super) unsafe fn groups<const STORED: u8>(
        values: *const u8,
        spec: &GridSpec,
        out: Out<'_>,
        sums: &mut Sums,
    ) -> Option<()> {
        let Out { words, scales, zeros } = out;
        let groups = scales.len();
        let len = words.len() * 8 / groups;
        let size = if STORED == F32 { 4 } else { 2 };
        // What the places beyond `groups` hold is not used.
        let (lo, hi) = if STORED != F32 && len == STEP && groups == GROUPS {
            // SAFETY: sixteen groups of 32 values of 16 bits each.
            unsafe { extremes_of_groups::<STORED>(values)? }
        } else {
            let (mut lo, mut hi) = ([0.0f32; GROUPS], [0.0f32; GROUPS]);
            for group in 0..groups {
                // SAFETY: every load stays inside the `len` values of the group.
                (lo[group], hi[group]) = unsafe { extremes::<STORED>(values.add(size * len * group), len)? };
            }
            // SAFETY: sixteen floats each.
            unsafe { (_mm512_loadu_ps(lo.as_ptr()), _mm512_loadu_ps(hi.as_ptr())) }
        };
        let (scale, zero) = fit(lo, hi, spec);
        let here = u16::MAX >> (GROUPS - groups);
        if _mm512_mask_cmp_ps_mask::<_CMP_GT_OQ>(here, scale, _mm512_set1_ps(largest(spec.scale_dtype))) != 0 {
            return None;
        }
        let bits = match spec.scale_dtype {
            ScaleDtype::F16 => _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(scale),
            _ => _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_castps_si512(scale))),
        };
        let mut grids =
            Grids { scales: [0.0; GROUPS], inverses: [0.0; GROUPS], least: [0.0; GROUPS], most: [0.0; GROUPS] };
        let mut points = [0u8; GROUPS];
        // SAFETY: sixteen floats or bytes each, and of the slices the first `groups` elements.
        unsafe {
            _mm256_mask_storeu_epi16(scales.as_mut_ptr().cast(), here, bits);
            _mm_storeu_si128(points.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(zero)));
            _mm512_storeu_ps(grids.scales.as_mut_ptr(), scale);
            _mm512_storeu_ps(grids.inverses.as_mut_ptr(), _mm512_div_ps(_mm512_set1_ps(1.0), scale));
            _mm512_storeu_ps(grids.least.as_mut_ptr(), _mm512_sub_ps(_mm512_setzero_ps(), zero));
            _mm512_storeu_ps(grids.most.as_mut_ptr(), _mm512_sub_ps(_mm512_set1_ps(15.0), zero));
        }
        zeros.copy_from_slice(&points[..groups]);
        // SAFETY: sixteen floats each.
        let mut lanes = unsafe {
            Lanes { lost: _mm512_loadu_ps(sums.lost.as_ptr()), energy: _mm512_loadu_ps(sums.energy.as_ptr()), zeros: 0 }
        };
        let grid = |group: usize| Grid {
            scale: _mm512_set1_ps(grids.scales[group]),
            inverse: _mm512_set1_ps(grids.inverses[group]),
            least: _mm512_set1_ps(grids.least[group]),
            most: _mm512_set1_ps(grids.most[group]),
            zero: _mm256_set1_epi8(points[group] as i8),
        };
        if len == STEP {
            // Two groups at once.
            let mut pairs = words.chunks_exact_mut(STEP / 4);
            for (pair, words) in (&mut pairs).enumerate() {
                // SAFETY: 64 of the values; `words` is 8 words, 32 bytes.
                unsafe {
                    let packed =
                        codes::<STORED, 4>(values, 2 * STEP * pair, [&grid(2 * pair), &grid(2 * pair + 1)], &mut lanes);
                    _mm256_storeu_si256(words.as_mut_ptr().cast(), packed);
                }
            }
            let rest = pairs.into_remainder();
            if !rest.is_empty() {
                let grid = grid(groups - 1);
                // SAFETY: the last 32 of the values; `rest` is 4 words, 16 bytes.
                unsafe {
                    let packed = codes::<STORED, 2>(values, STEP * (groups - 1), [&grid; 2], &mut lanes);
                    _mm_storeu_si128(rest.as_mut_ptr().cast(), _mm256_castsi256_si128(packed));
                }
            }
        } else {
            for (group, words) in words.chunks_exact_mut(len / 8).enumerate() {
                let grid = grid(group);
                // SAFETY: the first value of the group.
                let values = unsafe { values.add(size * len * group) };
                let mut pairs = words.chunks_exact_mut(STEP / 4);
                let mut at = 0;
                for words in &mut pairs {
                    // SAFETY: 64 of the `len` values; `words` is 8 words, 32 bytes.
                    unsafe {
                        let packed = codes::<STORED, 4>(values, at, [&grid; 2], &mut lanes);
                        _mm256_storeu_si256(words.as_mut_ptr().cast(), packed);
                    }
                    at += 2 * STEP;
                }
                let rest = pairs.into_remainder();
                if !rest.is_empty() {
                    // SAFETY: the last 32 of the `len` values; `rest` is 4 words, 16 bytes.
                    unsafe {
                        let packed = codes::<STORED, 2>(values, at, [&grid; 2], &mut lanes);
                        _mm_storeu_si128(rest.as_mut_ptr().cast(), _mm256_castsi256_si128(packed));
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe {
            _mm512_storeu_ps(sums.lost.as_mut_ptr(), lanes.lost);
            _mm512_storeu_ps(sums.energy.as_mut_ptr(), lanes.energy);
        }
        sums.zeros += lanes.zeros;
        Some(())
    }

    /// The grids of up to [`GROUPS`] groups, as [`Grid`] has them.
    struct Grids {
        scales: [f32; GROUPS],
        inverses: [f32; GROUPS],
        least: [f32; GROUPS],
        most: [f32; GROUPS],
    }

    /// The largest scale of that type.
    fn largest(dtype: ScaleDtype) -> f32 {
        match dtype {
            ScaleDtype::F16 => half::f16::MAX.to_f32(),
            _ => half::bf16::MAX.to_f32(),
        }
    }

    /// Scales and zero points from the smallest and the largest values of sixteen groups, as `grid::fit_group` has them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn fit(lo: __m512, hi: __m512, spec: &GridSpec) -> (__m512, __m512) {
        let none = _mm512_setzero_ps();
        let (lo, hi) = (_mm512_min_ps(lo, none), _mm512_max_ps(hi, none));
        let flat = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(lo, none) & _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(hi, none);
        let lo = _mm512_mask_mov_ps(lo, flat, _mm512_set1_ps(-1.0));
        let hi = _mm512_mask_mov_ps(hi, flat, _mm512_set1_ps(1.0));
        let (lo, hi) = if spec.symmetric {
            let most = _mm512_max_ps(hi, _mm512_sub_ps(none, lo));
            (_mm512_sub_ps(none, most), most)
        } else {
            (lo, hi)
        };
        let exact = _mm512_div_ps(_mm512_sub_ps(hi, lo), _mm512_set1_ps(15.0));
        let scale = match spec.scale_dtype {
            ScaleDtype::F16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(exact)),
            dtype => {
                let mut scales = [0.0f32; GROUPS];
                // SAFETY: sixteen floats.
                unsafe { _mm512_storeu_ps(scales.as_mut_ptr(), exact) };
                scales.iter_mut().for_each(|scale| *scale = dtype.round(*scale));
                // SAFETY: sixteen floats.
                unsafe { _mm512_loadu_ps(scales.as_ptr()) }
            }
        };
        let vanished = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(scale, none);
        let scale = _mm512_mask_mov_ps(scale, vanished, _mm512_set1_ps(spec.scale_dtype.smallest()));
        let zero = if spec.symmetric {
            _mm512_set1_ps(8.0)
        } else {
            let exact = _mm512_div_ps(_mm512_sub_ps(none, lo), scale);
            let rounded = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(exact);
            _mm512_min_ps(_mm512_max_ps(rounded, none), _mm512_set1_ps(15.0))
        };
        (scale, zero)
    }

    /// The grid of one group, spread over registers.
    struct Grid {
        scale: __m512,
        /// 1 / scale, rounded.
        inverse: __m512,
        /// The codes 0 and 15, less the zero point.
        least: __m512,
        most: __m512,
        /// The zero point, in each of 32 bytes.
        zero: __m256i,
    }

    /// [`Sums`] in registers.
    struct Lanes {
        lost: __m512,
        energy: __m512,
        zeros: u64,
    }

    /// The codes of `VECTORS` times sixteen values from place `at` on, two a byte; those of fewer than four come first.
    /// The first two vectors are of the one grid, the others of the other.
    ///
    /// What is rounded is the product with the inverse of the scale, which is off from the quotient by less than 2⁻²² of
    /// it. That matters only close to a half; where one of the values is there, or where an inverse or product leaves the
    /// normal numbers, all are divided after all.
    ///
    /// # Safety
    /// The values are readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
    unsafe fn codes<const STORED: u8, const VECTORS: usize>(
        values: *const u8,
        at: usize,
        grids: [&Grid; 2],
        lanes: &mut Lanes,
    ) -> __m256i {
        const MODE: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        let none = _mm512_setzero_ps();
        let (mut value, mut steps, mut unclear) = ([none; 4], [none; 4], 0);
        for v in 0..VECTORS {
            // SAFETY: by the contract.
            value[v] = unsafe { load::<STORED>(values, at + v * 16) };
            let quotient = _mm512_mul_ps(value[v], grids[v / 2].inverse);
            steps[v] = _mm512_roundscale_ps::<MODE>(quotient);
            let off = _mm512_abs_ps(_mm512_sub_ps(quotient, steps[v]));
            // Not "greater": a NaN, from an infinite inverse, is unclear too.
            unclear |= _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(off, _mm512_set1_ps(CLEAR));
        }
        if unclear != 0 {
            for v in 0..VECTORS {
                steps[v] = _mm512_roundscale_ps::<MODE>(_mm512_div_ps(value[v], grids[v / 2].scale));
            }
        }
        let mut codes = [_mm512_setzero_si512(); 4];
        for v in 0..VECTORS {
            let Grid { scale, least, most, .. } = *grids[v / 2];
            let steps = _mm512_min_ps(_mm512_max_ps(steps[v], least), most);
            codes[v] = _mm512_cvtps_epi32(steps);
            let delta = _mm512_sub_ps(_mm512_mul_ps(scale, steps), value[v]);
            lanes.lost = _mm512_fmadd_ps(delta, delta, lanes.lost);
            lanes.energy = _mm512_fmadd_ps(value[v], value[v], lanes.energy);
        }
        // Packing to bytes works in 128-bit lanes: byte 4·(4l + v) + b of the result is value 16·v + 4·l + b.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let bytes = _mm512_packs_epi16(_mm512_packs_epi32(codes[0], codes[1]), _mm512_packs_epi32(codes[2], codes[3]));
        let bytes = _mm512_permutexvar_epi32(order, bytes);
        let used = u64::MAX >> (64 - 16 * VECTORS);
        lanes.zeros += u64::from((_mm512_testn_epi8_mask(bytes, bytes) & used).count_ones());
        let zero = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(grids[0].zero), grids[1].zero);
        let bytes = _mm512_add_epi8(bytes, zero);
        _mm512_cvtepi16_epi8(_mm512_maddubs_epi16(bytes, _mm512_set1_epi16(0x1001))) // low code + 16 · high code
    }

    /// The smallest and the largest values of [`GROUPS`] groups of 32, or nothing if one is not finite: [`extremes`] of
    /// all groups in one tree, of which each level halves the vectors and puts two groups side by side.
    ///
    /// # Safety
    /// 32 · 16 values of 16 bits are readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn extremes_of_groups<const STORED: u8>(values: *const u8) -> Option<(__m512, __m512)> {
        let mut keys = [_mm512_setzero_si512(); GROUPS];
        for (group, key) in keys.iter_mut().enumerate() {
            // SAFETY: by the contract.
            *key = ordered(unsafe { _mm512_loadu_si512(values.add(64 * group).cast()) });
        }
        let least = tree(&keys, |a, b| _mm512_min_epi16(a, b));
        let most = tree(&keys, |a, b| _mm512_max_epi16(a, b));
        let (lo, hi) = (widen_ordered::<STORED>(least), widen_ordered::<STORED>(most));
        let sick = _mm512_fpclass_ps_mask::<0x99>(lo) | _mm512_fpclass_ps_mask::<0x99>(hi);
        (sick == 0).then_some((lo, hi))
    }

    /// From 32 candidates each of sixteen groups to one each, in the groups' order.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn tree(groups: &[__m512i; GROUPS], best: impl Fn(__m512i, __m512i) -> __m512i) -> __m256i {
        let mut eight = [_mm512_setzero_si512(); 8];
        for (to, pair) in eight.iter_mut().zip(groups.as_chunks::<2>().0) {
            *to = best(_mm512_unpacklo_epi16(pair[0], pair[1]), _mm512_unpackhi_epi16(pair[0], pair[1]));
        }
        let mut four = [_mm512_setzero_si512(); 4];
        for (to, pair) in four.iter_mut().zip(eight.as_chunks::<2>().0) {
            *to = best(_mm512_unpacklo_epi32(pair[0], pair[1]), _mm512_unpackhi_epi32(pair[0], pair[1]));
        }
        let mut two = [_mm512_setzero_si512(); 2];
        for (to, pair) in two.iter_mut().zip(four.as_chunks::<2>().0) {
            *to = best(_mm512_unpacklo_epi64(pair[0], pair[1]), _mm512_unpackhi_epi64(pair[0], pair[1]));
        }
        // Lanes of 128 bits hold eight groups each now: four lanes of the first eight, and four of the others.
        let [a, b] = two;
        let both = best(_mm512_shuffle_i64x2::<0b01_00_01_00>(a, b), _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b));
        let one =
            best(_mm512_shuffle_i64x2::<0b10_00_10_00>(both, both), _mm512_shuffle_i64x2::<0b11_01_11_01>(both, both));
        _mm512_castsi512_si256(one)
    }

    /// Values of 16 bits as integers whose order is that of the values: negative ones have their magnitude bits inverted.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn ordered(bits: __m512i) -> __m512i {
        _mm512_xor_si512(bits, _mm512_and_si512(_mm512_srai_epi16::<15>(bits), _mm512_set1_epi16(0x7FFF)))
    }

    /// The values that sixteen integers of [`ordered`] stand for.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn widen_ordered<const STORED: u8>(keys: __m256i) -> __m512 {
        let magnitude = _mm256_and_si256(_mm256_srai_epi16::<15>(keys), _mm256_set1_epi16(0x7FFF));
        let bits = _mm256_xor_si256(keys, magnitude);
        match STORED {
            F16 => _mm512_cvtph_ps(bits),
            _ => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits))),
        }
    }

    /// The smallest and the largest value, or nothing if one is not finite.
    ///
    /// # Safety
    /// `len` values are readable; `len` is a positive multiple of [`STEP`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    unsafe fn extremes<const STORED: u8>(values: *const u8, len: usize) -> Option<(f32, f32)> {
        if STORED != F32 {
            let mut lo = _mm512_set1_epi16(i16::MAX);
            let mut hi = _mm512_set1_epi16(i16::MIN);
            for at in (0..len).step_by(32) {
                // SAFETY: 32 of the `len` values.
                let key = ordered(unsafe { _mm512_loadu_si512(values.add(2 * at).cast()) });
                lo = _mm512_min_epi16(lo, key);
                hi = _mm512_max_epi16(hi, key);
            }
            let (lo, hi) = (least_i16(lo), greatest_i16(hi));
            let value = |key: i16| {
                let bits = (key ^ ((key >> 15) & 0x7FFF)) as u16;
                match STORED {
                    F16 => half::f16::from_bits(bits).to_f32(),
                    _ => half::bf16::from_bits(bits).to_f32(),
                }
            };
            let (lo, hi) = (value(lo), value(hi));
            return (lo.is_finite() && hi.is_finite()).then_some((lo, hi));
        }
        // SAFETY: the first of the `len` values.
        let first = unsafe { load::<F32>(values, 0) };
        let (mut lo, mut hi) = (first, first);
        let mut sick = 0;
        for at in (0..len).step_by(16) {
            // SAFETY: 16 of the `len` values.
            let value = unsafe { load::<F32>(values, at) };
            lo = _mm512_min_ps(lo, value);
            hi = _mm512_max_ps(hi, value);
            sick |= _mm512_fpclass_ps_mask::<0x99>(value); // quiet and signalling NaN, both infinities
        }
        (sick == 0).then(|| (_mm512_reduce_min_ps(lo), _mm512_reduce_max_ps(hi)))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn least_i16(values: __m512i) -> i16 {
        let half = _mm256_min_epi16(_mm512_castsi512_si256(values), _mm512_extracti64x4_epi64::<1>(values));
        let quarter = _mm_min_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
        // The one horizontal minimum there is takes unsigned values.
        let shifted = _mm_xor_si128(quarter, _mm_set1_epi16(i16::MIN));
        (_mm_extract_epi16::<0>(_mm_minpos_epu16(shifted)) as u16 ^ 0x8000) as i16
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn greatest_i16(values: __m512i) -> i16 {
        !least_i16(_mm512_xor_si512(values, _mm512_set1_epi16(-1)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::test_values::uniform;
    use super::*;

    fn assert_equals_the_general_path(values: &[f32], rows: usize, columns: usize, spec: &GridSpec) {
        let narrow: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
        let wide: Vec<f32> = narrow.iter().map(|value| value.to_f32()).collect();
        let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
        let of_halves: Vec<f32> = halves.iter().map(|value| value.to_f32()).collect();
        let all = [(Stored::F32(values), values), (Stored::Bf16(&narrow), &wide), (Stored::F16(&halves), &of_halves)];
        for (stored, values) in all {
            let expected = grid::round_to_nearest(values, rows, columns, spec).unwrap();
            let mut out = Packed { words: vec![7; 3], scales: vec![7; 1], zeros: vec![7; 9], losses: Vec::new() };
            rtn_pack(&(stored, columns), spec, &mut out).unwrap();
            let losses: Vec<Loss> = expected
                .dequantize()
                .chunks_exact(columns)
                .zip(values.chunks_exact(columns))
                .map(|(back, values)| row_loss(back, values))
                .collect();
            assert_eq!(out.losses, losses);
            assert_eq!(out.words, pack::pack_rows(&expected.codes, rows, columns, spec.bits).unwrap());
            assert_eq!(out.zeros, expected.zeros);
            let scales: Vec<f32> = out
                .scales
                .iter()
                .map(|&bits| match spec.scale_dtype {
                    ScaleDtype::F16 => f16::from_bits(bits).to_f32(),
                    _ => bf16::from_bits(bits).to_f32(),
                })
                .collect();
            assert_eq!(scales, expected.scales);
        }
    }

    proptest! {
        #[test]
        fn packs_what_the_general_path_does(
            bits in proptest::sample::select(vec![2u32, 3, 4, 8]),
            group_size in proptest::sample::select(vec![0usize, 32, 48, 64, 96, 128, 192]),
            symmetric: bool,
            f16: bool,
            search in 0u8..4,
            magnitude in proptest::sample::select(vec![1e-30f32, 1e-9, 1e-3, 1.0, 1e4]),
            shift in -1i8..2,
            rows in 1usize..20,
            seed: u64,
        ) {
            let columns = 384;
            let values: Vec<f32> = uniform(rows * columns, seed)
                .into_iter()
                .enumerate()
                .map(|(i, x)| if i / columns % 5 == 4 { 0.0 } else { magnitude * (x.powi(3) + f32::from(shift)) })
                .collect();
            let spec = GridSpec {
                bits,
                group_size,
                symmetric,
                scale_dtype: if f16 { ScaleDtype::F16 } else { ScaleDtype::Bf16 },
                search: if search == 0 { Search::Mse } else { Search::None },
            };
            assert_equals_the_general_path(&values, rows, columns, &spec);
        }
    }

    #[test]
    fn refuses_what_the_general_path_does_in_the_same_words() {
        let spec =
            GridSpec { bits: 4, group_size: 64, symmetric: true, scale_dtype: ScaleDtype::F16, search: Search::None };
        for sick in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
            let mut values = uniform(3 * 128, 1);
            values[2 * 128 + 70] = sick;
            let expected = grid::round_to_nearest(&values, 3, 128, &spec).unwrap_err().to_string();
            let mut out = Packed::default();
            let found = rtn_pack(&(Stored::F32(&values), 128), &spec, &mut out).unwrap_err().to_string();
            assert_eq!(found, expected);
            let narrow: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
            let found = rtn_pack(&(Stored::Bf16(&narrow), 128), &spec, &mut out).unwrap_err().to_string();
            assert!(found.starts_with("row 2, group 1: "), "{found}");
        }
        let f32_scales = GridSpec { scale_dtype: ScaleDtype::F32, ..spec };
        assert!(rtn_pack(&(Stored::F32(&[0.0; 64]), 64), &f32_scales, &mut Packed::default()).is_err());
        let ragged = GridSpec { group_size: 0, ..spec };
        assert!(rtn_pack(&(Stored::F32(&[0.0; 60]), 60), &ragged, &mut Packed::default()).is_err());
    }
}
