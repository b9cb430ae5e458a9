//! Rows of 4 bits by AVX-512: the grids of sixteen groups at once, and their codes straight from the stored values.

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
    let mut grids = Grids { scales: [0.0; GROUPS], inverses: [0.0; GROUPS], least: [0.0; GROUPS], most: [0.0; GROUPS] };
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
