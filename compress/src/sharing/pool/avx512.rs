//! The loops over one run by AVX-512: sixteen signs are a mask, taken from their word as they lie.

use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_mask_xor_ps,
    _mm512_mask3_fmadd_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_storeu_ps,
};

use super::{Fold, LANES, WORD, Words};
use crate::kernel::AHEAD;

/// The lanes of vector `nth` of `len` ≤ 64 values.
#[inline(always)]
fn lanes(nth: usize, len: usize) -> u16 {
    let here = len.saturating_sub(nth * LANES).min(LANES);
    ((1u32 << here) - 1) as u16
}

/// `values`, negated where `signs` is set.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn flip(values: __m512, signs: u16) -> __m512 {
    _mm512_mask_xor_ps(values, signs, values, _mm512_set1_ps(-0.0))
}

/// For every word of signs of `len` weights from `weight` on: where its weights begin, how many they are, and their signs.
/// Whole words are apart, so that they need no masks.
#[inline(always)]
fn by_words(weight: usize, len: usize, signs: Words, mut each: impl FnMut(usize, usize, u64)) {
    let (mut at, mut word) = (0, weight / WORD);
    let place = weight % WORD;
    if place > 0 && len > 0 {
        at = (WORD - place).min(len);
        each(0, at, signs.word(word) >> place);
        word += 1;
    }
    while at + WORD <= len {
        each(at, WORD, signs.word(word));
        (at, word) = (at + WORD, word + 1);
    }
    if at < len {
        each(at, len - at, signs.word(word));
    }
}

/// [`super::recover_plain`].
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn recover(pool: &[f32], scale: f32, weight: usize, signs: Words, out: &mut [f32]) {
    assert_eq!(pool.len(), out.len());
    let scale = _mm512_set1_ps(scale);
    let (pool, to) = (pool.as_ptr(), out.as_mut_ptr());
    by_words(weight, out.len(), signs, |at, here, word| {
        for nth in 0..WORD / LANES {
            let (mask, at) = (lanes(nth, here), at + nth * LANES);
            // SAFETY: the lanes of the mask lie in both slices, and the others are not touched.
            unsafe {
                let values = _mm512_mul_ps(scale, _mm512_maskz_loadu_ps(mask, pool.wrapping_add(at)));
                let values = flip(values, (word >> (nth * LANES)) as u16);
                _mm512_mask_storeu_ps(to.wrapping_add(at), mask, values);
            }
        }
    });
}

/// [`super::add_plain`] in f32.
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn add(values: &[f32], scale: f32, weight: usize, signs: Words, sums: &mut [f32]) {
    assert_eq!(values.len(), sums.len());
    let scale = _mm512_set1_ps(scale);
    let (values, to) = (values.as_ptr(), sums.as_mut_ptr());
    by_words(weight, sums.len(), signs, |at, here, word| {
        for nth in 0..WORD / LANES {
            let (mask, at) = (lanes(nth, here), at + nth * LANES);
            _mm_prefetch::<_MM_HINT_T0>(values.wrapping_add(at).cast::<i8>().wrapping_add(AHEAD));
            // SAFETY: the lanes of the mask lie in both slices, and the others are not touched.
            unsafe {
                let values = _mm512_mul_ps(scale, _mm512_maskz_loadu_ps(mask, values.wrapping_add(at)));
                let values = flip(values, (word >> (nth * LANES)) as u16);
                let sums = _mm512_maskz_loadu_ps(mask, to.wrapping_add(at));
                _mm512_mask_storeu_ps(to.wrapping_add(at), mask, _mm512_add_ps(sums, values));
            }
        }
    });
}

/// [`super::dots_plain`].
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn dots(fold: &Fold, pool: &[f32], first: usize, x: &[f32], out: &mut [f32]) {
    super::by_rows(fold, pool, first, x, out, |pool, x, weight, signs, sums| dot(pool, x, weight, signs, sums));
}

/// [`super::dot_body`].
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn dot(pool: &[f32], x: &[f32], weight: usize, signs: Words, sums: &mut [f32; WORD]) {
    assert_eq!(pool.len(), x.len());
    // SAFETY: there are four times sixteen sums.
    let mut kept: [__m512; WORD / LANES] =
        std::array::from_fn(|nth| unsafe { _mm512_loadu_ps(sums.as_ptr().add(nth * LANES)) });
    let (pool, values) = (pool.as_ptr(), x.as_ptr());
    by_words(weight, x.len(), signs, |at, here, word| {
        for (nth, kept) in kept.iter_mut().enumerate() {
            let (mask, at) = (lanes(nth, here), at + nth * LANES);
            _mm_prefetch::<_MM_HINT_T0>(pool.wrapping_add(at).cast::<i8>().wrapping_add(AHEAD));
            // SAFETY: the lanes of the mask lie in both slices, and the others are not touched.
            unsafe {
                let weights = _mm512_maskz_loadu_ps(mask, pool.wrapping_add(at));
                let weights = flip(weights, (word >> (nth * LANES)) as u16);
                let x = _mm512_maskz_loadu_ps(mask, values.wrapping_add(at));
                *kept = _mm512_mask3_fmadd_ps(x, weights, *kept, mask);
            }
        }
    });
    for (nth, kept) in kept.into_iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr().add(nth * LANES), kept) };
    }
}
