//! RandomFold: which slot of the pool each weight reads, and with which sign (Desai and Shrivastava 2023).
//!
//! The flat array of n weights is cut into partitions as long as the pool, and each is laid over it, turned by its own
//! random amount:
//!
//! ```text
//! k = ⌊p / m⌋,  o = p mod m,   slot(p) = (u(k) + o) mod m,   u(k) = align · (h(k) below max(1, ⌊m / align⌋))
//! ```
//!
//! Within a partition no two weights meet, so slots serve ⌊n/m⌋ or ⌈n/m⌉ weights whatever n and m are, none is unused, and
//! m = n is a bijection. One seed serves the whole array: with a seed for each tensor the last property would be lost.
//!
//! Where every tensor has a pool of its own, the array and the pool are cut into as many parts, each is folded by itself,
//! and the words of part l are numbered from l · 2³² on. That is worse than one pool for all in theory and in practice
//! (Desai, Zhou and Shrivastava 2023), and there to be compared with, or where a part must be read alone.
//!
//! The hash is part of the file format and stands here in full. With the SplitMix64 finaliser `mix` and
//! G = 0x9e3779b97f4a7c15, all in wrapping 64-bit arithmetic:
//!
//! ```text
//! key(purpose) = mix(mix(seed + G) ^ (purpose · G + G))
//! h(k)         = mix(key(1) + (l · 2³² + k + 1) · G)            "splitmix64-fold-v1"; l = 0 for one pool
//! word(q)      = mix(key(2) + (q + 1) · G)                     "splitmix64-bit-v1": weight p is negated if bit p mod 64
//!                                                              of word ⌊p / 64⌋ is set
//! ```

use std::{ops::Range, sync::Arc};

use crate::{Error, Result};

/// Weights a word of signs covers.
pub const WORD: usize = 64;

/// The name of the slots' hash in files.
pub const FOLD_HASH: &str = "splitmix64-fold-v1";

/// The name of the signs' hash in files.
pub const SIGN_HASH: &str = "splitmix64-bit-v1";

/// Rotations are multiples of so many slots unless another number is asked for: a cache line of f32.
pub const ALIGN: usize = 16;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The SplitMix64 finaliser (Steele, Lea and Flood 2014).
#[inline(always)]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Random words by number under one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words(u64);

impl Words {
    /// The words of `seed` for one `purpose`.
    pub fn new(seed: u64, purpose: u64) -> Self {
        Self(mix(mix(seed.wrapping_add(GOLDEN)) ^ purpose.wrapping_mul(GOLDEN).wrapping_add(GOLDEN)))
    }

    /// Word `number`.
    #[inline(always)]
    pub fn word(self, number: usize) -> u64 {
        mix(self.0.wrapping_add((number as u64).wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// Word `number` brought below `end`, which is not 0 (multiply and shift).
    pub fn below(self, number: usize, end: usize) -> usize {
        ((u128::from(self.word(number)) * end as u128) >> 64) as usize
    }
}

/// A stretch of the array with a stretch of the pool of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    weights: Range2,
    slots: Range2,
}

/// First and end.
type Range2 = (usize, usize);

/// The map from weights to slots and signs; see the [module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    weights: usize,
    slots: usize,
    align: usize,
    seed: u64,
    rotations: Words,
    signs: Words,
    /// In order and without gaps, where there is more than one pool.
    parts: Option<Arc<[Part]>>,
}

/// Weights that follow each other in the array and in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first weight.
    pub weight: usize,
    /// Its slot.
    pub slot: usize,
    /// How many there are; never 0.
    pub len: usize,
}

impl Fold {
    /// `weights` weights over `slots` slots, rotations being multiples of `align`.
    ///
    /// # Errors
    /// If there is nothing to share, or the pool is larger than the weights, or `align` is 0.
    pub fn new(weights: usize, slots: usize, align: usize, seed: u64) -> Result<Self> {
        if weights == 0 || slots == 0 || align == 0 {
            let what =
                format!("sharing {weights} weights over {slots} slots at an alignment of {align}; none may be 0");
            return Err(Error::Recipe(what));
        }
        if slots > weights {
            return Err(Error::Recipe(format!(
                "a pool of {slots} slots is larger than the {weights} weights that would share it; ask for {weights} slots \
                 (a rate of 1) or fewer"
            )));
        }
        let (rotations, signs) = (Words::new(seed, 1), Words::new(seed, 2));
        Ok(Self { weights, slots, align, seed, rotations, signs, parts: None })
    }

    /// Stretches of the array, each over a stretch of the pool of its own: (weights, slots) of each, in order.
    ///
    /// # Errors
    /// As [`Self::new`] for each of them; those without weights have no slots.
    pub fn apart(sizes: &[(usize, usize)], align: usize, seed: u64) -> Result<Self> {
        let (mut parts, mut weights, mut slots) = (Vec::with_capacity(sizes.len()), 0usize, 0usize);
        for &(own, pool) in sizes {
            if (own, pool) != (0, 0) {
                Self::new(own, pool, align, seed)?;
            }
            let ends = weights.checked_add(own).zip(slots.checked_add(pool));
            let Some(ends) = ends else {
                return Err(Error::Recipe(format!("{} pools have more weights than can be counted", sizes.len())));
            };
            parts.push(Part { weights: (weights, ends.0), slots: (slots, ends.1) });
            (weights, slots) = ends;
        }
        Ok(Self { parts: Some(parts.into()), ..Self::new(weights, slots, align, seed)? })
    }

    /// Pools there are: one for all, or one for each of as many tensors.
    pub fn pools(&self) -> usize {
        self.parts.as_ref().map_or(1, |parts| parts.len())
    }

    /// Slots of the part that `weights` weights from `first` on are.
    pub(super) fn slots_of(&self, first: usize, weights: usize) -> usize {
        if weights == 0 { 0 } else { self.part(first).2 }
    }

    /// Whether tensors have pools of their own.
    pub fn is_apart(&self) -> bool {
        self.parts.is_some()
    }

    /// The part that `weight` is of: its number, its first weight, its slots and where they begin.
    fn part(&self, weight: usize) -> (usize, usize, usize, usize) {
        match &self.parts {
            None => (0, 0, self.slots, 0),
            Some(parts) => {
                let at = parts.partition_point(|part| part.weights.1 <= weight);
                let Part { weights, slots } = parts[at];
                (at, weights.0, slots.1 - slots.0, slots.0)
            }
        }
    }

    /// n: weights in the flat array.
    pub fn weights(&self) -> usize {
        self.weights
    }

    /// m: slots of the pool.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// What rotations are multiples of.
    pub fn align(&self) -> usize {
        self.align
    }

    /// The one seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// c = n / m.
    pub fn rate(&self) -> f64 {
        self.weights as f64 / self.slots as f64
    }

    /// The relative error √(1 − 1/c) that a least-squares projection of any weights is expected to have where all scales
    /// are equal: signs are independent of the weights, so no structure helps.
    pub fn expected_error(&self) -> f64 {
        (1.0 - self.slots as f64 / self.weights as f64).sqrt()
    }

    /// u(k): how far partition `k` of part `part` is turned over `slots` slots.
    fn rotation(&self, part: usize, partition: usize, slots: usize) -> usize {
        let number = (part << 32) + partition;
        self.align * self.rotations.below(number, (slots / self.align).max(1))
    }

    /// The slot of `weight`: the definition, one weight at a time.
    pub fn slot(&self, weight: usize) -> usize {
        let (part, first, slots, start) = self.part(weight);
        let within = weight - first;
        start + (self.rotation(part, within / slots, slots) + within % slots) % slots
    }

    /// Whether `weight` is read negated: the definition, one weight at a time.
    pub fn is_negative(&self, weight: usize) -> bool {
        self.signs.word(weight / WORD) >> (weight % WORD) & 1 == 1
    }

    /// The signs, [`WORD`] weights a word.
    pub fn signs(&self) -> Words {
        self.signs
    }

    /// The runs that `weights` consist of, in order: a partition has at most two, and none leaves its part.
    ///
    /// # Panics
    /// If the range leaves the array.
    pub fn runs(&self, weights: Range<usize>) -> Runs<'_> {
        assert!(weights.end <= self.weights, "weights {weights:?} of {}", self.weights);
        Runs { fold: self, left: weights }
    }
}

/// The iterator of [`Fold::runs`].
#[derive(Debug, Clone)]
pub struct Runs<'a> {
    fold: &'a Fold,
    left: Range<usize>,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if self.left.is_empty() {
            return None;
        }
        let weight = self.left.start;
        let (part, first, slots, start) = self.fold.part(weight);
        let (partition, within) = ((weight - first) / slots, (weight - first) % slots);
        let turned = self.fold.rotation(part, partition, slots) + within; // below 2 m
        let slot = if turned >= slots { turned - slots } else { turned };
        let end = match &self.fold.parts {
            None => self.fold.weights,
            Some(parts) => parts[part].weights.1,
        };
        let len = (slots - within).min(slots - slot).min(self.left.len()).min(end - weight);
        self.left.start += len;
        Some(Run { weight, slot: start + slot, len })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Array, pool, alignment and seed of any sizes that can be.
    pub(crate) fn folds() -> impl Strategy<Value = Fold> {
        let slots = |weights: usize, share: f64| (1 + (share * weights as f64) as usize).min(weights);
        let align = || prop::sample::select(vec![1usize, 3, 16, 64]);
        let one = (1usize..3_000, 0.0f64..1.0, align(), any::<u64>());
        let one = one.prop_map(move |(weights, share, align, seed)| {
            Fold::new(weights, slots(weights, share), align, seed).unwrap()
        });
        let sizes = prop::collection::vec((0usize..900, 0.0f64..1.0), 0..6).prop_map(move |mut sizes| {
            sizes.push((70, 0.4)); // at least one has weights
            sizes.into_iter().map(|(weights, share)| (weights, slots(weights, share))).collect::<Vec<_>>()
        });
        let apart =
            (sizes, align(), any::<u64>()).prop_map(|(sizes, align, seed)| Fold::apart(&sizes, align, seed).unwrap());
        prop_oneof![2 => one, 1 => apart]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn every_slot_serves_a_fair_share(fold in folds()) {
            let mut counts = vec![0usize; fold.slots()];
            (0..fold.weights()).for_each(|weight| counts[fold.slot(weight)] += 1);
            let whole = [Part { weights: (0, fold.weights()), slots: (0, fold.slots()) }];
            for part in fold.parts.as_deref().unwrap_or(&whole).iter().filter(|part| part.weights.0 < part.weights.1) {
                let (weights, slots) = (part.weights.1 - part.weights.0, part.slots.1 - part.slots.0);
                let (floor, ceil) = (weights / slots, weights.div_ceil(slots));
                let counts = &counts[part.slots.0..part.slots.1];
                prop_assert!(counts.iter().all(|&count| count == floor || count == ceil));
            }
        }

        #[test]
        fn runs_are_the_definition(fold in folds(), ends in (0.0f64..1.0, 0.0f64..1.0)) {
            let at = |share: f64| (share * (fold.weights() + 1) as f64) as usize;
            let range = at(ends.0.min(ends.1))..at(ends.0.max(ends.1));
            let mut next = range.start;
            for run in fold.runs(range.clone()) {
                prop_assert!(run.weight == next && run.len > 0 && run.slot + run.len <= fold.slots());
                for step in 0..run.len {
                    prop_assert_eq!(fold.slot(run.weight + step), run.slot + step);
                }
                next += run.len;
            }
            prop_assert_eq!(next, range.end);
        }
    }

    #[test]
    fn a_pool_as_large_as_the_array_is_a_bijection_with_signs_both_ways() {
        let fold = Fold::new(33_920, 33_920, ALIGN, 7).unwrap();
        let mut seen = vec![false; fold.slots()];
        (0..fold.weights()).for_each(|weight| assert!(!std::mem::replace(&mut seen[fold.slot(weight)], true)));
        let negative = (0..fold.weights()).filter(|&weight| fold.is_negative(weight)).count();
        // Standard deviation 92; five of them.
        assert!(negative.abs_diff(33_920 / 2) < 460, "{negative}");
    }

    #[test]
    fn one_part_is_one_pool_and_parts_are_told_apart() {
        let (whole, apart) = (Fold::new(900, 128, ALIGN, 7).unwrap(), Fold::apart(&[(900, 128)], ALIGN, 7).unwrap());
        assert!((0..900).all(|weight| whole.slot(weight) == apart.slot(weight)));
        assert_eq!((whole.pools(), apart.pools(), apart.is_apart()), (1, 1, true));
        let two = Fold::apart(&[(900, 128), (0, 0), (900, 128)], ALIGN, 7).unwrap();
        assert_eq!((two.weights(), two.slots(), two.pools()), (1_800, 256, 3));
        assert!((0..900).all(|weight| two.slot(weight) == whole.slot(weight) && two.slot(900 + weight) >= 128));
        assert!((0..900).any(|weight| two.slot(900 + weight) != 128 + whole.slot(weight)), "parts turn alike");
        let error = Fold::apart(&[(9, 4), (3, 4)], ALIGN, 7).unwrap_err().to_string();
        assert!(error.contains("4 slots is larger than the 3 weights"), "{error}");
    }

    #[test]
    fn rotations_differ_and_are_aligned() {
        let fold = Fold::new(1 << 20, 1 << 12, ALIGN, 3).unwrap();
        let turns: Vec<usize> = (0..256).map(|partition| fold.rotation(0, partition, fold.slots())).collect();
        assert!(turns.iter().all(|turn| turn % ALIGN == 0 && *turn < fold.slots()));
        let mut distinct = turns.clone();
        distinct.sort_unstable();
        distinct.dedup();
        // 256 draws of 256 places: 162 of them differ on average.
        assert!((130..200).contains(&distinct.len()), "{}", distinct.len());
    }

    #[test]
    fn the_hash_is_what_files_rely_on() {
        // Golden, Python 3: M = 2**64 - 1; G = 0x9e3779b97f4a7c15
        // def mix(z): z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9 & M; z = (z ^ z >> 27) * 0x94d049bb133111eb & M; return z ^ z >> 31
        // key = lambda seed, use: mix(mix(seed + G & M) ^ (use * G + G & M))
        // [mix(key(42, use) + (number + 1) * G & M) for use, number in [(1, 0), (1, 5), (2, 0), (2, 1 << 40)]]
        let words =
            [(1, 0), (1, 5), (2, 0), (2, 1 << 40)].map(|(purpose, number)| Words::new(42, purpose).word(number));
        assert_eq!(words, GOLDENS);
    }

    const GOLDENS: [u64; 4] =
        [14_706_407_064_374_521_535, 14_532_897_198_006_566_115, 6_101_272_531_674_957_665, 8_142_277_422_934_225_657];

    #[test]
    fn the_turns_of_parts_are_what_files_rely_on() {
        // Golden, Python 3 after the lines above; where each partition of each part begins:
        // k = key(42, 1); first = 0
        // for l, (n, m) in enumerate(SIZES):
        //     turn = lambda p: 16 * (mix(k + ((l << 32) + p + 1) * G & M) * max(1, m // 16) >> 64)
        //     print([first + turn(p) for p in range(-(-n // m) if n else 0)]); first += m
        let sizes = [(5_000, 1_600), (0, 0), (4_000, 1_024), (900, 900), (3_000, 500)];
        let expected: [&[usize]; 5] = [
            &[1_264, 96, 1_472, 240],
            &[],
            &[2_272, 2_400, 1_648, 2_336],
            &[3_040],
            &[3_620, 3_972, 3_700, 3_828, 3_652, 3_668],
        ];
        let fold = Fold::apart(&sizes, ALIGN, 42).unwrap();
        let mut first = 0;
        for ((weights, slots), expected) in sizes.into_iter().zip(expected) {
            let found: Vec<usize> =
                (first..first + weights).step_by(slots.max(1)).map(|weight| fold.slot(weight)).collect();
            assert_eq!(found, expected);
            first += weights;
        }
    }

    #[test]
    fn pools_that_cannot_be_are_refused_in_words() {
        let error = Fold::new(10, 11, 16, 0).unwrap_err().to_string();
        assert!(error.contains("11 slots is larger than the 10 weights"), "{error}");
        assert!(Fold::new(0, 0, 16, 0).unwrap_err().to_string().contains("none may be 0"));
    }
}
