//! Which weights of a linear are set to zero: how many, and the choice of those that score least.
//!
//! Scores are compared by the bits of their absolute values, whose order is theirs. A threshold is found by counting how
//! many lie below a trial value, bit by bit from the top, so nothing is sorted; of scores that equal it the first by index
//! go, and so the count is exact, also among ties. (The published scripts prune all scores `≤ sorted[k]`: at least one
//! more than asked, and every tie.)

use std::{fmt, str::FromStr};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Of every `of` neighbouring weights of a row `keep` stay; written `2:4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NOfM {
    keep: usize,
    of: usize,
}

impl NOfM {
    /// Refuses patterns that keep nothing or everything.
    pub fn new(keep: usize, of: usize) -> Result<Self> {
        if keep == 0 || keep >= of {
            return Err(Error::Recipe(format!(
                "the pattern {keep}:{of} keeps {}; expected KEPT:OF with 0 < KEPT < OF, as 2:4",
                if keep == 0 { "nothing" } else { "every weight" }
            )));
        }
        Ok(Self { keep, of })
    }

    /// Weights of a group that stay.
    pub const fn keep(self) -> usize {
        self.keep
    }

    /// Weights of a group.
    pub const fn of(self) -> usize {
        self.of
    }

    /// Weights of a group that go.
    pub const fn drop(self) -> usize {
        self.of - self.keep
    }

    /// Refuses rows that do not divide into groups.
    pub fn check(self, in_features: usize) -> Result<()> {
        match in_features.is_multiple_of(self.of) {
            true => Ok(()),
            false => Err(Error::Recipe(format!(
                "{in_features} input features do not divide into groups of {}, so the pattern {self} does not fit; leave \
                 the linear out or give a sparsity instead",
                self.of
            ))),
        }
    }
}

impl fmt::Display for NOfM {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.keep, self.of)
    }
}

impl FromStr for NOfM {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (keep, of) = text
            .split_once(':')
            .and_then(|(keep, of)| Some((keep.parse().ok()?, of.parse().ok()?)))
            .ok_or_else(|| Error::Recipe(format!("`{text}` is no pattern; expected KEPT:OF, as 2:4")))?;
        Self::new(keep, of)
    }
}

impl TryFrom<String> for NOfM {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<NOfM> for String {
    fn from(pattern: NOfM) -> Self {
        pattern.to_string()
    }
}

/// How much of a weight goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// This fraction, at least 0 and below 1.
    Share(f64),
    /// All but some of every group.
    Pattern(NOfM),
}

impl Amount {
    /// What goes if neither a sparsity nor a pattern is given.
    pub const DEFAULT: Self = Self::Share(0.5);

    /// Of a method's two parameters, of which at most one is given.
    pub fn new(sparsity: Option<f64>, pattern: Option<NOfM>) -> Result<Self> {
        match (sparsity, pattern) {
            (Some(_), Some(_)) => Err(Error::Recipe(
                "both a sparsity and a pattern are given, and a pattern has its own sparsity; give one of them"
                    .to_owned(),
            )),
            (None, Some(pattern)) => Ok(Self::Pattern(pattern)),
            (None, None) => Ok(Self::DEFAULT),
            (Some(share), None) if (0.0..1.0).contains(&share) => Ok(Self::Share(share)),
            (Some(share), None) => Err(Error::Recipe(format!(
                "the sparsity is {share}, expected the fraction set to zero: at least 0 and below 1"
            ))),
        }
    }

    /// The two parameters that give it.
    pub fn parameters(self) -> (Option<f64>, Option<NOfM>) {
        match self {
            Self::Share(share) => (Some(share), None),
            Self::Pattern(pattern) => (None, Some(pattern)),
        }
    }

    /// Refuses a pattern that does not divide the row.
    pub fn check(self, in_features: usize) -> Result<()> {
        match self {
            Self::Share(_) => Ok(()),
            Self::Pattern(pattern) => pattern.check(in_features),
        }
    }
}

/// How many of `count` weights go: `⌊share · count⌋`, the product rounded to f64.
pub fn budget(share: f64, count: usize) -> usize {
    ((share * count as f64) as usize).min(count)
}

/// Where the smallest of some scores end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Threshold {
    /// Scores whose bits are below go.
    pub(crate) bits: u32,
    /// So many of those that equal it go too, the first by index; always fewer than there are.
    pub(crate) ties: usize,
}

/// The bits of an absolute value; NaN counts as larger than all numbers.
#[inline(always)]
pub(crate) fn size_bits(score: f32) -> u32 {
    score.to_bits() & 0x7FFF_FFFF
}

/// Scores that are searched as they are; of more, those near the threshold are collected first.
const DIRECT: usize = 1 << 15;

/// Scores that say where the threshold of many lies about.
const SAMPLE: usize = 1 << 15;

/// Places of the sample that the threshold may be off by: four standard deviations of a median.
const SPREAD: usize = 400;

/// Scores of one unit of work.
const PIECE: usize = 1 << 20;

/// The threshold of the `k` scores that are smallest in absolute value.
///
/// # Panics
/// If there are fewer than `k`.
pub(crate) fn threshold(scores: &[f32], k: usize) -> Threshold {
    assert!(k <= scores.len(), "{k} of {} scores", scores.len());
    if scores.len() <= DIRECT {
        return bisect(scores, k);
    }
    // An even sample brackets the threshold; one pass counts what lies below and collects what lies inside.
    let place = |i: usize, of: usize, among: usize| (i as u128 * of as u128 / among as u128) as usize;
    let sample: Vec<f32> = (0..SAMPLE).map(|i| scores[place(i, scores.len(), SAMPLE)]).collect();
    let rank = place(k, SAMPLE, scores.len());
    let low = bisect(&sample, rank.saturating_sub(SPREAD)).bits;
    let high = if rank + SPREAD < SAMPLE { bisect(&sample, rank + SPREAD).bits + 1 } else { i32::MAX as u32 };
    let parts: Vec<(usize, Vec<f32>)> = scores.par_chunks(PIECE).map(|scores| collect(scores, low, high)).collect();
    let below: usize = parts.iter().map(|(below, _)| below).sum();
    let near: Vec<f32> = parts.into_iter().flat_map(|(_, near)| near).collect();
    match k.checked_sub(below).filter(|k| *k < near.len()) {
        Some(k) => {
            let found = bisect(&near, k);
            Threshold { bits: found.bits.max(low), ..found } // with nothing to take of those inside, all below still go
        }
        None => bisect(scores, k), // the sample was not like the rest
    }
}

/// The threshold, bit by bit from the top.
fn bisect(scores: &[f32], k: usize) -> Threshold {
    let (mut bits, mut below) = (0, 0);
    for bit in (0..31).rev() {
        if below == k {
            break;
        }
        let trial = bits | 1 << bit;
        let count = count_below(scores, trial);
        if count <= k {
            (bits, below) = (trial, count);
        }
    }
    Threshold { bits, ties: k - below }
}

crate::kernel::dispatch! {
    /// How many scores lie below `low`, and those from there on that lie below `high`.
    fn collect(scores: &[f32], low: u32, high: u32) -> (usize, Vec<f32>) = collect_body
}

#[inline(always)]
fn collect_body(scores: &[f32], low: u32, high: u32) -> (usize, Vec<f32>) {
    /// Scores that are sifted at once.
    const STRETCH: usize = 1024;
    let (mut below, mut near) = (0, Vec::new());
    for scores in scores.chunks(STRETCH) {
        below += count_below_body(scores, low);
        // Every score is written, and the next one over it unless it lies inside: no branch to guess.
        let (mut kept, mut len) = ([0.0; STRETCH], 0);
        for &score in scores {
            kept[len] = score;
            len += usize::from(size_bits(score).wrapping_sub(low) < high - low);
        }
        near.extend_from_slice(&kept[..len]);
    }
    (below, near)
}

/// Scores looked at together.
const LANES: usize = 64;

crate::kernel::dispatch! {
    /// How many scores lie below.
    fn count_below(scores: &[f32], bits: u32) -> usize = count_below_body
}

#[inline(always)]
fn count_below_body(scores: &[f32], bits: u32) -> usize {
    let limit = bits as i32; // both have a clear top bit, and signed vectors compare on every processor
    let (lines, rest) = scores.as_chunks::<LANES>();
    let mut total = 0;
    // A lane of one stretch counts at most 2²⁰.
    for lines in lines.chunks(1 << 20) {
        let mut counts = [0i32; LANES];
        for line in lines {
            for lane in 0..LANES {
                counts[lane] += i32::from((size_bits(line[lane]) as i32) < limit);
            }
        }
        total += counts.iter().map(|&count| count as usize).sum::<usize>();
    }
    total + rest.iter().filter(|&&score| (size_bits(score) as i32) < limit).count()
}

crate::kernel::dispatch! {
    /// Sets to zero the values whose scores lie below.
    fn clear_below(values: &mut [f32], scores: &[f32], bits: u32) = clear_below_body
}

#[inline(always)]
fn clear_below_body(values: &mut [f32], scores: &[f32], bits: u32) {
    for (value, &score) in values.iter_mut().zip(scores) {
        *value = if (size_bits(score) as i32) < bits as i32 { 0.0 } else { *value };
    }
}

crate::kernel::dispatch! {
    /// Sets to zero the values that are themselves smaller.
    fn clear_smaller(values: &mut [f32], bits: u32) = clear_smaller_body
}

#[inline(always)]
fn clear_smaller_body(values: &mut [f32], bits: u32) {
    for value in values {
        *value = if (size_bits(*value) as i32) < bits as i32 { 0.0 } else { *value };
    }
}

/// Sets to zero the `k` values of `values` that are smallest in absolute value, the first of those that tie.
///
/// # Panics
/// If there are fewer than `k`.
pub fn clear_smallest(values: &mut [f32], k: usize) {
    let Threshold { bits, mut ties } = threshold(values, k);
    values.par_chunks_mut(PIECE).for_each(|values| clear_smaller(values, bits));
    // What was cleared just now does not tie, or, if the threshold is zero, nothing was.
    for value in values {
        if ties == 0 {
            break;
        }
        if size_bits(*value) == bits {
            *value = 0.0;
            ties -= 1;
        }
    }
}

/// Sets to zero the `k` values of each row of `n` whose `|w_j| · scale_j` are smallest (without a scale, `|w_j|`), the first
/// of those that tie.
///
/// # Panics
/// If `k > n` or `scale` has another length than `n`.
pub fn clear_smallest_of_rows(values: &mut [f32], n: usize, scale: Option<&[f32]>, k: usize) {
    assert!(k <= n && scale.is_none_or(|scale| scale.len() == n), "{k} of rows of {n}");
    if n == 0 {
        return;
    }
    values.par_chunks_mut(n).for_each_init(
        || vec![0.0; n],
        |scores, row| {
            score(row, scale, scores);
            clear_at(row, scores, threshold(scores, k));
        },
    );
}

/// Sets to zero what `threshold` says, ties in order.
fn clear_at(values: &mut [f32], scores: &[f32], threshold: Threshold) {
    let Threshold { bits, mut ties } = threshold;
    clear_below(values, scores, bits);
    for (value, &score) in values.iter_mut().zip(scores) {
        if ties == 0 {
            break;
        }
        if size_bits(score) == bits {
            *value = 0.0;
            ties -= 1;
        }
    }
}

crate::kernel::dispatch! {
    /// `|w_j| · scale_j`.
    fn score(row: &[f32], scale: Option<&[f32]>, scores: &mut [f32]) = score_body
}

#[inline(always)]
fn score_body(row: &[f32], scale: Option<&[f32]>, scores: &mut [f32]) {
    match scale {
        None => scores.copy_from_slice(row),
        Some(scale) => {
            for ((score, &weight), &scale) in scores.iter_mut().zip(row).zip(scale) {
                *score = weight * scale;
            }
        }
    }
}

/// Sets to zero, in every group of `pattern` along rows of `n`, all but the values whose `|w_j| · scale_j` are largest
/// (without a scale, `|w_j|`), the first of those that tie.
///
/// # Panics
/// If the groups do not divide the row or `scale` has another length.
pub fn clear_groups(values: &mut [f32], n: usize, scale: Option<&[f32]>, pattern: NOfM) {
    /// Values of one unit of work.
    const UNIT: usize = 1 << 16;
    assert!(n.is_multiple_of(pattern.of) && scale.is_none_or(|scale| scale.len() == n), "{pattern} of rows of {n}");
    if n == 0 {
        return;
    }
    let drop = pattern.drop();
    values.par_chunks_mut(n * (UNIT / n).max(1)).for_each(|rows| {
        for row in rows.chunks_exact_mut(n) {
            match pattern.of {
                2 => clear_groups_of_2(row, scale, drop),
                4 => clear_groups_of_4(row, scale, drop),
                8 => clear_groups_of_8(row, scale, drop),
                16 => clear_groups_of_16(row, scale, drop),
                of => {
                    let mut scores = vec![0.0; n];
                    score(row, scale, &mut scores);
                    for (values, scores) in row.chunks_exact_mut(of).zip(scores.chunks_exact(of)) {
                        clear_at(values, scores, threshold(scores, drop));
                    }
                }
            }
        }
    });
}

/// Groups of two.
fn clear_groups_of_2(row: &mut [f32], scale: Option<&[f32]>, drop: usize) {
    #[cfg(target_arch = "x86_64")]
    if crate::kernel::isa() == crate::kernel::Isa::Avx512 {
        // SAFETY: the processor has AVX-512 F.
        return unsafe { clear_groups_avx512::<2>(row, scale, drop) };
    }
    clear_groups_body::<2>(row, scale, drop);
}

/// Groups of four.
fn clear_groups_of_4(row: &mut [f32], scale: Option<&[f32]>, drop: usize) {
    #[cfg(target_arch = "x86_64")]
    if crate::kernel::isa() == crate::kernel::Isa::Avx512 {
        // SAFETY: the processor has AVX-512 F.
        return unsafe { clear_groups_avx512::<4>(row, scale, drop) };
    }
    clear_groups_body::<4>(row, scale, drop);
}

crate::kernel::dispatch! {
    fn clear_groups_of_8(row: &mut [f32], scale: Option<&[f32]>, drop: usize) = clear_groups_body::<8>
}

crate::kernel::dispatch! {
    fn clear_groups_of_16(row: &mut [f32], scale: Option<&[f32]>, drop: usize) = clear_groups_body::<16>
}

/// Values of a register.
const WIDTH: usize = 16;

/// Groups of `OF`, a power of two that divides 16.
#[inline(always)]
fn clear_groups_body<const OF: usize>(row: &mut [f32], scale: Option<&[f32]>, drop: usize) {
    each_line(row, scale, |values, scores| clear_line::<OF>(values, scores, drop));
}

/// Calls `clear` for every sixteen values and their scores; a last line is filled up with zeros.
#[inline(always)]
fn each_line(row: &mut [f32], scale: Option<&[f32]>, clear: impl Fn([f32; WIDTH], [f32; WIDTH]) -> [f32; WIDTH]) {
    let (lines, rest) = row.as_chunks_mut::<WIDTH>();
    let done = lines.len() * WIDTH;
    match scale {
        None => lines.iter_mut().for_each(|line| *line = clear(*line, *line)),
        Some(scale) => lines.iter_mut().zip(scale.as_chunks::<WIDTH>().0).for_each(|(line, scale)| {
            *line = clear(*line, std::array::from_fn(|i| line[i] * scale[i]));
        }),
    }
    if !rest.is_empty() {
        let (mut values, mut scores) = ([0.0; WIDTH], [0.0; WIDTH]);
        values[..rest.len()].copy_from_slice(rest);
        for (i, score) in scores.iter_mut().enumerate().take(rest.len()) {
            *score = values[i] * scale.map_or(1.0, |scale| scale[done + i]);
        }
        rest.copy_from_slice(&clear(values, scores)[..rest.len()]);
    }
}

/// `values` without those of each group before which fewer than `drop` come in the order of scores and places: each value
/// is compared with every other of its group.
#[inline(always)]
fn clear_line<const OF: usize>(values: [f32; WIDTH], scores: [f32; WIDTH], drop: usize) -> [f32; WIDTH] {
    let sizes = scores.map(|score| size_bits(score) as i32);
    let mut rank = [0i32; WIDTH];
    for across in 1..OF {
        for i in 0..WIDTH {
            // Of two equal ones the left comes first.
            let left = i32::from(i ^ across < i);
            rank[i] += i32::from(sizes[i ^ across] < sizes[i].wrapping_add(left));
        }
    }
    std::array::from_fn(|i| if rank[i] < drop as i32 { 0.0 } else { values[i] })
}

/// Groups of two or four, all of a register at once: its copies with neighbours exchanged hold each value's rivals.
///
/// # Safety
/// The processor has AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn clear_groups_avx512<const OF: usize>(row: &mut [f32], scale: Option<&[f32]>, drop: usize) {
    use std::arch::x86_64::{
        __m512i, _mm512_add_epi32, _mm512_and_epi32, _mm512_castps_si512, _mm512_cmpge_epi32_mask,
        _mm512_cmplt_epi32_mask, _mm512_loadu_ps, _mm512_mask_add_epi32, _mm512_maskz_mov_ps, _mm512_mul_ps,
        _mm512_set_epi32, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_shuffle_epi32, _mm512_storeu_ps,
    };
    const { assert!(OF == 2 || OF == 4) };
    let (lines, rest) = row.as_chunks_mut::<WIDTH>();
    let done = lines.len() * WIDTH;
    let drops = _mm512_set1_epi32(drop as i32);
    let one = _mm512_set1_epi32(1);
    let magnitude = _mm512_set1_epi32(0x7FFF_FFFF);
    // 1 where the rival lies to the left: with it added `<` reads `≤`, and of two equal ones the left comes first. Lanes are
    // named from the last to the first.
    let left_of_1 = _mm512_set_epi32(1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0);
    let left_of_2 = _mm512_set_epi32(1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0);
    for (index, line) in lines.iter_mut().enumerate() {
        // SAFETY: a line holds sixteen values.
        let values = unsafe { _mm512_loadu_ps(line.as_ptr()) };
        let scores = match scale {
            None => values,
            Some(scale) => {
                let scale = &scale[index * WIDTH..][..WIDTH];
                // SAFETY: sixteen values.
                _mm512_mul_ps(values, unsafe { _mm512_loadu_ps(scale.as_ptr()) })
            }
        };
        let sizes = _mm512_and_epi32(_mm512_castps_si512(scores), magnitude);
        let count = |rank: __m512i, rival: __m512i, left: __m512i| {
            let before = _mm512_cmplt_epi32_mask(rival, _mm512_add_epi32(sizes, left));
            _mm512_mask_add_epi32(rank, before, rank, one)
        };
        let mut rank = count(_mm512_setzero_si512(), _mm512_shuffle_epi32::<0b10_11_00_01>(sizes), left_of_1);
        if OF == 4 {
            rank = count(rank, _mm512_shuffle_epi32::<0b01_00_11_10>(sizes), left_of_2);
            rank = count(rank, _mm512_shuffle_epi32::<0b00_01_10_11>(sizes), left_of_2);
        }
        let kept = _mm512_cmpge_epi32_mask(rank, drops);
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(line.as_mut_ptr(), _mm512_maskz_mov_ps(kept, values)) };
    }
    if !rest.is_empty() {
        clear_groups_body::<OF>(rest, scale.map(|scale| &scale[done..]), drop);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::test_values::uniform;

    /// The definition: a stable sort by score, whose first k go.
    fn by_sorting(values: &[f32], scores: &[f32], k: usize) -> Vec<f32> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| scores[a].abs().total_cmp(&scores[b].abs())); // stable
        let mut out = values.to_vec();
        order[..k].iter().for_each(|&index| out[index] = 0.0);
        out
    }

    /// Values with ties, zeros, subnormals and both signs.
    fn values(len: usize, kind: u8, seed: u64) -> Vec<f32> {
        let plain = uniform(len, seed);
        match kind {
            0 => plain,
            1 => plain.iter().map(|x| (x * 3.0).round()).collect(),
            2 => vec![-0.25; len],
            3 => vec![0.0; len],
            _ => plain.iter().map(|x| x * 1e-42).collect(),
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    proptest! {
        #[test]
        fn a_share_of_a_matrix_or_of_rows_is_that_of_a_stable_sort(
            (rows, n) in (1usize..6, 1usize..300), kind in 0u8..5, share in 0.0f64..1.0, seed in 0u64..1000
        ) {
            let weight = values(rows * n, kind, seed);
            let k = budget(share, rows * n);
            let mut whole = weight.clone();
            clear_smallest(&mut whole, k);
            prop_assert_eq!(bits(&whole), bits(&by_sorting(&weight, &weight, k)));
            let scale = values(n, kind % 4, seed + 1);
            for scale in [None, Some(&scale[..])] {
                let mut done = weight.clone();
                let k = budget(share, n);
                clear_smallest_of_rows(&mut done, n, scale, k);
                for (done, row) in done.chunks(n).zip(weight.chunks(n)) {
                    let scores: Vec<f32> =
                        row.iter().enumerate().map(|(j, w)| w * scale.map_or(1.0, |scale| scale[j])).collect();
                    prop_assert_eq!(bits(done), bits(&by_sorting(row, &scores, k)));
                }
            }
        }

        #[test]
        fn patterns_are_those_of_a_stable_sort_of_each_group(
            (keep, of) in (1usize..20, 2usize..21), groups in 1usize..30, kind in 0u8..5, seed in 0u64..1000
        ) {
            prop_assume!(keep < of);
            let pattern = NOfM::new(keep, of).unwrap();
            let n = groups * of;
            let weight = values(3 * n, kind, seed);
            let scale = values(n, kind % 4, seed + 1);
            for scale in [None, Some(&scale[..])] {
                let mut done = weight.clone();
                clear_groups(&mut done, n, scale, pattern);
                for (group, (done, values)) in done.chunks(of).zip(weight.chunks(of)).enumerate() {
                    let at = |i: usize| scale.map_or(1.0, |scale| scale[(group * of + i) % n]);
                    let scores: Vec<f32> = values.iter().enumerate().map(|(i, w)| w * at(i)).collect();
                    prop_assert_eq!(bits(done), bits(&by_sorting(values, &scores, of - keep)));
                }
            }
        }
    }

    #[test]
    fn large_matrices_are_searched_in_pieces_with_the_same_result() {
        for kind in [0, 1, 2, 4] {
            let weight = values(PIECE + 70_000, kind, 3);
            for k in [0, 1, 500_000, PIECE + 5, weight.len()] {
                let mut done = weight.clone();
                clear_smallest(&mut done, k);
                assert_eq!(bits(&done), bits(&by_sorting(&weight, &weight, k)), "kind {kind}, {k}");
            }
        }
    }

    #[test]
    fn the_scripts_rule_prunes_too_many_and_ours_exactly_as_many_as_asked() {
        // The published scripts: every score that is at most the one at index ⌊s · n⌋ of the sorted ones.
        let theirs = |values: &[f32], share: f64| {
            let mut sorted: Vec<f32> = values.iter().map(|value| value.abs()).collect();
            sorted.sort_by(f32::total_cmp);
            let limit = sorted[(share * values.len() as f64) as usize];
            values.iter().filter(|value| value.abs() <= limit).count()
        };
        let ours = |values: &[f32], share: f64| {
            let mut values = values.to_vec();
            let k = budget(share, values.len());
            clear_smallest(&mut values, k);
            values.iter().filter(|value| **value == 0.0).count()
        };
        let distinct: Vec<f32> = (1..=100).map(|i| i as f32).collect();
        assert_eq!((theirs(&distinct, 0.5), ours(&distinct, 0.5)), (51, 50));
        let constant = vec![1.0; 100];
        assert_eq!((theirs(&constant, 0.5), ours(&constant, 0.5)), (100, 50));
        let few = [1.0, 1.0, 1.0, 2.0];
        assert_eq!((theirs(&few, 0.25), ours(&few, 0.25)), (3, 1));
    }

    #[test]
    fn patterns_and_amounts_are_read_and_refused_with_a_sentence() {
        let pattern: NOfM = "2:4".parse().unwrap();
        assert_eq!((pattern.keep(), pattern.of(), pattern.drop(), pattern.to_string()), (2, 4, 2, "2:4".to_owned()));
        let refused = |text: &str| text.parse::<NOfM>().unwrap_err().to_string();
        assert_eq!(refused("2of4"), "`2of4` is no pattern; expected KEPT:OF, as 2:4");
        assert_eq!(refused("4:4"), "the pattern 4:4 keeps every weight; expected KEPT:OF with 0 < KEPT < OF, as 2:4");
        assert_eq!(refused("0:4"), "the pattern 0:4 keeps nothing; expected KEPT:OF with 0 < KEPT < OF, as 2:4");
        assert!(
            pattern.check(6).unwrap_err().to_string().starts_with("6 input features do not divide into groups of 4")
        );
        assert_eq!(Amount::new(None, None).unwrap(), Amount::Share(0.5));
        for share in [-0.1, 1.0, 50.0, f64::NAN] {
            assert!(Amount::new(Some(share), None).unwrap_err().to_string().contains("below 1"));
        }
        assert!(Amount::new(Some(0.5), Some(pattern)).unwrap_err().to_string().contains("give one of them"));
    }

    #[test]
    fn budgets_are_rounded_down() {
        assert_eq!([budget(0.5, 7), budget(0.0, 7), budget(0.999, 7), budget(0.75, 4)], [3, 0, 6, 3]);
    }
}
