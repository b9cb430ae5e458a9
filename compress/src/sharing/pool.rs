//! The arithmetic of S and Sᵀ: reading weights from the pool, and adding what concerns weights into it.
//!
//! ```text
//! recover      w_i = sign(i) xor round(λ · ψ_slot(i))            one multiplication, no fused add: exact on every machine
//! accumulate   a_j += Σ over i in slot j of λ · sign(i) · v_i    in the order of i
//! ```
//!
//! Both go by runs of neighbouring slots, so that memory is read and written as it lies; no index is stored or computed
//! for a single weight. Sums are taken by threads that own a part of the slots each, every slot in the order of the flat
//! array: the bytes do not depend on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::fold::{Fold, WORD, Words};
use crate::kernel::dispatch;
#[cfg(target_arch = "x86_64")]
use crate::kernel::{Isa, isa};

#[cfg(target_arch = "x86_64")]
mod avx512;

/// Slots that a thread owns while weights are added up.
const OWNED: usize = 1 << 15;

/// Weights below which one thread is enough.
const WORTH_THREADS: usize = 1 << 16;

/// Lanes of a 512-bit register of f32.
#[cfg(target_arch = "x86_64")]
const LANES: usize = 16;

/// `value`, negated if the highest bit of `sign` is set; the others are not.
#[inline(always)]
fn flip(value: f32, sign: u32) -> f32 {
    f32::from_bits(value.to_bits() ^ sign)
}

/// The signs of `word` one by one, for [`flip`]. An array of their own, and one loop over all: compilers make vectors of
/// these, and numbers one at a time of a shift within the arithmetic.
#[inline(always)]
fn spread(word: u64) -> [u32; WORD] {
    let mut signs = [0u32; WORD];
    for (i, sign) in signs.iter_mut().enumerate() {
        *sign = ((word >> i) as u32) << 31;
    }
    signs
}

/// Weights `first..first + out.len()` of scale `scale` from `pool` into `out`.
///
/// # Panics
/// If the pool is of another size, or the weights leave the array.
pub fn recover(fold: &Fold, pool: &[f32], scale: f32, first: usize, out: &mut [f32]) {
    assert_eq!(pool.len(), fold.slots(), "the pool is of another fold");
    for run in fold.runs(first..first + out.len()) {
        let out = &mut out[run.weight - first..][..run.len];
        recover_run(&pool[run.slot..][..run.len], scale, run.weight, fold.signs(), out);
    }
}

fn recover_run(pool: &[f32], scale: f32, weight: usize, signs: Words, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Avx512 {
        // SAFETY: AVX-512 was detected.
        return unsafe { avx512::recover(pool, scale, weight, signs, out) };
    }
    recover_plain(pool, scale, weight, signs, out);
}

dispatch! {
    fn recover_plain(pool: &[f32], scale: f32, weight: usize, signs: Words, out: &mut [f32]) = recover_body
}

#[inline(always)]
fn recover_body(pool: &[f32], scale: f32, weight: usize, signs: Words, out: &mut [f32]) {
    let mut at = 0;
    while at < out.len() {
        let place = (weight + at) % WORD;
        let word = signs.word((weight + at) / WORD) >> place;
        let len = (WORD - place).min(out.len() - at);
        let (from, to) = (&pool[at..][..len], &mut out[at..][..len]);
        if let (Ok(from), Ok(to)) = (<&[f32; WORD]>::try_from(from), <&mut [f32; WORD]>::try_from(&mut *to)) {
            let signs = spread(word);
            for i in 0..WORD {
                to[i] = flip(scale * from[i], signs[i]);
            }
        } else {
            for i in 0..len {
                to[i] = flip(scale * from[i], ((word >> i) as u32) << 31);
            }
        }
        at += len;
    }
}

/// A number sums are kept in.
pub trait Sum: Copy + Send {
    /// `self + sign · (scale · value)`; the product is rounded to this type first.
    fn plus(self, scale: f32, value: f32, sign: u32) -> Self;
}

impl Sum for f32 {
    #[inline(always)]
    fn plus(self, scale: f32, value: f32, sign: u32) -> Self {
        self + flip(scale * value, sign)
    }
}

impl Sum for f64 {
    #[inline(always)]
    fn plus(self, scale: f32, value: f32, sign: u32) -> Self {
        self + f64::from(scale) * f64::from(flip(value, sign))
    }
}

/// Adds λ · sign · value of the weights `first..first + values.len()` to their slots in `sums`.
///
/// # Panics
/// If `sums` is of another fold, or the weights leave the array.
pub fn accumulate(fold: &Fold, values: &[f32], scale: f32, first: usize, sums: &mut [f32]) {
    add(fold, values, scale, first, sums, add_f32);
}

/// [`accumulate`] in f64, for sums of which an exact result is wanted.
///
/// # Panics
/// As [`accumulate`].
pub fn accumulate_f64(fold: &Fold, values: &[f32], scale: f32, first: usize, sums: &mut [f64]) {
    add(fold, values, scale, first, sums, add_f64);
}

fn add_f32(values: &[f32], scale: f32, weight: usize, signs: Words, sums: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Avx512 {
        // SAFETY: AVX-512 was detected.
        return unsafe { avx512::add(values, scale, weight, signs, sums) };
    }
    add_plain(values, scale, weight, signs, sums);
}

dispatch! {
    fn add_plain(values: &[f32], scale: f32, weight: usize, signs: Words, sums: &mut [f32]) = add_body::<f32>
}
dispatch! {
    fn add_f64(values: &[f32], scale: f32, weight: usize, signs: Words, sums: &mut [f64]) = add_body::<f64>
}

fn add<T: Sum>(
    fold: &Fold,
    values: &[f32],
    scale: f32,
    first: usize,
    sums: &mut [T],
    add_run: fn(&[f32], f32, usize, Words, &mut [T]),
) {
    assert_eq!(sums.len(), fold.slots(), "the sums are of another fold");
    let weights = first..first + values.len();
    let owned = |slots: Range<usize>, sums: &mut [T]| {
        for run in fold.runs(weights.clone()) {
            let (from, to) = (run.slot.max(slots.start), (run.slot + run.len).min(slots.end));
            if from < to {
                let weight = run.weight + (from - run.slot);
                let values = &values[weight - first..][..to - from];
                add_run(values, scale, weight, fold.signs(), &mut sums[from - slots.start..][..to - from]);
            }
        }
    };
    if values.len() < WORTH_THREADS {
        return owned(0..fold.slots(), sums);
    }
    sums.par_chunks_mut(OWNED).enumerate().for_each(|(part, sums)| {
        let start = part * OWNED;
        owned(start..start + sums.len(), sums);
    });
}

#[inline(always)]
fn add_body<T: Sum>(values: &[f32], scale: f32, weight: usize, signs: Words, sums: &mut [T]) {
    let mut at = 0;
    while at < sums.len() {
        let place = (weight + at) % WORD;
        let word = signs.word((weight + at) / WORD) >> place;
        let len = (WORD - place).min(sums.len() - at);
        let (from, to) = (&values[at..][..len], &mut sums[at..][..len]);
        if let (Ok(from), Ok(to)) = (<&[f32; WORD]>::try_from(from), <&mut [T; WORD]>::try_from(&mut *to)) {
            let signs = spread(word);
            for i in 0..WORD {
                to[i] = to[i].plus(scale, from[i], signs[i]);
            }
        } else {
            for i in 0..len {
                to[i] = to[i].plus(scale, from[i], ((word >> i) as u32) << 31);
            }
        }
        at += len;
    }
}

/// Σ_i x_i · sign · ψ of row after row: `out.len()` rows of `x.len()` weights each, which follow each other from `first` on,
/// times `x`, before their scale.
///
/// # Panics
/// If the pool is of another size, or the weights leave the array.
pub fn dots(fold: &Fold, pool: &[f32], first: usize, x: &[f32], out: &mut [f32]) {
    assert_eq!(pool.len(), fold.slots(), "the pool is of another fold");
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Avx512 {
        // SAFETY: AVX-512 was detected.
        return unsafe { avx512::dots(fold, pool, first, x, out) };
    }
    dots_plain(fold, pool, first, x, out);
}

dispatch! {
    fn dots_plain(fold: &Fold, pool: &[f32], first: usize, x: &[f32], out: &mut [f32]) = dots_body
}

#[inline(always)]
fn dots_body(fold: &Fold, pool: &[f32], first: usize, x: &[f32], out: &mut [f32]) {
    by_rows(fold, pool, first, x, out, dot_body);
}

/// [`dots`], with `dot` to add the products of the weights of one run to [`WORD`] sums.
#[inline(always)]
fn by_rows(
    fold: &Fold,
    pool: &[f32],
    first: usize,
    x: &[f32],
    out: &mut [f32],
    dot: impl Fn(&[f32], &[f32], usize, Words, &mut [f32; WORD]),
) {
    let mut sums = [0.0; WORD];
    let (mut row, mut column) = (0, 0);
    for run in fold.runs(first..first + out.len() * x.len()) {
        let mut at = 0;
        while at < run.len {
            let len = (x.len() - column).min(run.len - at);
            dot(&pool[run.slot + at..][..len], &x[column..][..len], run.weight + at, fold.signs(), &mut sums);
            (at, column) = (at + len, column + len);
            if column == x.len() {
                out[row] = total(sums);
                (sums, row, column) = ([0.0; WORD], row + 1, 0);
            }
        }
    }
    out[row..].fill(0.0); // of rows without weights
}

/// The sum of `sums`, by halves.
#[inline(always)]
fn total(mut sums: [f32; WORD]) -> f32 {
    let mut half = WORD / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

#[inline(always)]
fn dot_body(pool: &[f32], x: &[f32], weight: usize, signs: Words, sums: &mut [f32; WORD]) {
    let mut kept = *sums; // in registers, not behind the reference
    let mut at = 0;
    while at < x.len() {
        let place = (weight + at) % WORD;
        let word = signs.word((weight + at) / WORD) >> place;
        let len = (WORD - place).min(x.len() - at);
        let (from, x) = (&pool[at..][..len], &x[at..][..len]);
        if let (Ok(from), Ok(x)) = (<&[f32; WORD]>::try_from(from), <&[f32; WORD]>::try_from(x)) {
            let signs = spread(word);
            for i in 0..WORD {
                kept[i] = x[i].mul_add(flip(from[i], signs[i]), kept[i]);
            }
        } else {
            for i in 0..len {
                kept[i] = x[i].mul_add(flip(from[i], ((word >> i) as u32) << 31), kept[i]);
            }
        }
        at += len;
    }
    *sums = kept;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{kernel::test_values::uniform, sharing::fold::tests::folds};

    fn sign(fold: &Fold, weight: usize) -> f32 {
        if fold.is_negative(weight) { -1.0 } else { 1.0 }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn all_three_match_the_definition(fold in folds(), ends in (0.0f64..1.0, 0.0f64..1.0)) {
            let at = |share: f64| (share * (fold.weights() + 1) as f64) as usize;
            let range = at(ends.0.min(ends.1))..at(ends.0.max(ends.1));
            let (pool, scale) = (uniform(fold.slots(), fold.seed()), 0.37f32);
            let mut found = vec![f32::NAN; range.len()];
            recover(&fold, &pool, scale, range.start, &mut found);
            let expected: Vec<f32> = range.clone().map(|i| sign(&fold, i) * (scale * pool[fold.slot(i)])).collect();
            prop_assert_eq!(&found, &expected);

            let values = uniform(range.len(), 2);
            let (mut sums, mut wide) = (uniform(fold.slots(), 3), vec![0.0f64; fold.slots()]);
            let (mut expected, mut expected_wide) = (sums.clone(), wide.clone());
            for (i, &value) in range.clone().zip(&values) {
                expected[fold.slot(i)] += sign(&fold, i) * (scale * value);
                expected_wide[fold.slot(i)] += f64::from(scale) * f64::from(sign(&fold, i) * value);
            }
            accumulate(&fold, &values, scale, range.start, &mut sums);
            accumulate_f64(&fold, &values, scale, range.start, &mut wide);
            prop_assert_eq!(sums, expected);
            prop_assert_eq!(wide, expected_wide);

            // As one row, and as rows of as many weights as go into the range.
            for columns in [range.len(), 1 + range.len() / 3] {
                let rows = range.len() / columns.max(1);
                let mut found = vec![f32::NAN; rows];
                dots(&fold, &pool, range.start, &values[..columns.min(range.len())], &mut found);
                for (row, found) in found.into_iter().enumerate() {
                    let exact: f64 = (0..columns).map(|column| {
                        let i = range.start + row * columns + column;
                        f64::from(values[column]) * f64::from(sign(&fold, i) * pool[fold.slot(i)])
                    }).sum();
                    prop_assert!((f64::from(found) - exact).abs() < 1e-4, "{} against {}", found, exact);
                }
            }
        }
    }

    #[test]
    fn the_instruction_sets_give_the_same_bits() {
        let fold = Fold::new(5_000, 1_000, 1, 9).unwrap();
        let (signs, pool, x) = (fold.signs(), uniform(900, 1), uniform(900, 2));
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        for (weight, len) in [(0, 900), (17, 700), (63, 1), (64, 64), (100, 129), (5, 20), (70, 58), (1, 63)] {
            let (pool, x) = (&pool[..len], &x[..len]);
            // Through the fastest there is, through what compilers make of the loops for it, and one number at a time.
            let [mut fast, mut compiled, mut plain] = [(); 3].map(|()| vec![0.0; len]);
            recover_run(pool, 0.3, weight, signs, &mut fast);
            recover_plain(pool, 0.3, weight, signs, &mut compiled);
            recover_body(pool, 0.3, weight, signs, &mut plain);
            assert_eq!((bits(&fast), bits(&compiled)), (bits(&plain), bits(&plain)));
            add_f32(x, 0.7, weight, signs, &mut fast);
            add_plain(x, 0.7, weight, signs, &mut compiled);
            add_body(x, 0.7, weight, signs, &mut plain);
            assert_eq!((bits(&fast), bits(&compiled)), (bits(&plain), bits(&plain)));
        }
        // Rows that end within runs, and the other way round.
        let pool = uniform(1_000, 3);
        for (weight, columns, rows) in [(0, 900, 5), (17, 700, 6), (63, 1, 40), (64, 64, 9), (1, 65, 70), (5, 20, 0)] {
            let [mut fast, mut compiled, mut plain] = [(); 3].map(|()| vec![f32::NAN; rows]);
            dots(&fold, &pool, weight, &x[..columns], &mut fast);
            dots_plain(&fold, &pool, weight, &x[..columns], &mut compiled);
            dots_body(&fold, &pool, weight, &x[..columns], &mut plain);
            assert_eq!((bits(&fast), bits(&compiled)), (bits(&plain), bits(&plain)));
        }
    }

    #[test]
    fn recovering_and_accumulating_are_adjoint_and_threads_do_not_matter() {
        let fold = Fold::new(400_000, 70_001, 16, 4).unwrap();
        let (pool, v) = (uniform(fold.slots(), 1), uniform(fold.weights(), 2));
        let mut w = vec![0.0; fold.weights()];
        recover(&fold, &pool, 0.5, 0, &mut w);
        let sums = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut sums = vec![0.0; fold.slots()];
            pool.install(|| accumulate(&fold, &v, 0.5, 0, &mut sums));
            sums
        };
        let one = sums(1);
        assert_eq!(one, sums(3));
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let (left, right) = (product(&w, &v), product(&pool, &one));
        assert!((left - right).abs() < 1e-3 * left.abs().max(1.0), "⟨Sψ, v⟩ = {left}, ⟨ψ, Sᵀv⟩ = {right}");
    }
}
