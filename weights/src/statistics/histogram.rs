//! Counts of 16-bit patterns, and what follows from them.
//!
//! A bf16 or f16 tensor has at most 65,536 different values, so the counts of its patterns say everything about it but
//! the order: quantiles are exact, and moments are sums over patterns, in f64. An f32 is counted under its upper half,
//! which is a bf16 rounded towards zero: quantiles are then known to within one bin, 2⁻⁷ of the value, and interpolated
//! inside it; where all lower halves are zero they are exact again.

use half::{bf16, f16};

use super::moments::{Frame, Sums};

/// Patterns of 16 bits.
const CODES: usize = 1 << 16;

/// What the patterns mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codes {
    Bf16,
    F16,
    /// The upper half of an f32.
    Upper,
}

/// The largest error of an interpolated quantile, as a share of its value.
pub(super) const BIN: f64 = 1.0 / 128.0;

impl Codes {
    /// The value of `code`; for an upper half, that of the f32 with a lower half of zeros.
    fn value(self, code: u16) -> f32 {
        match self {
            Self::F16 => f16::from_bits(code).to_f32(),
            Self::Bf16 | Self::Upper => bf16::from_bits(code).to_f32(),
        }
    }

    /// The pattern of +∞; beyond it lie the NaN.
    const fn infinity(self) -> u16 {
        match self {
            Self::F16 => 0x7c00,
            Self::Bf16 | Self::Upper => 0x7f80,
        }
    }
}

/// How often each pattern occurs, while counting. Made once and used for many parts.
#[derive(Debug)]
pub(super) struct Histogram {
    counts: Box<[u32; CODES]>,
    /// All lower halves or-ed, for [`Codes::Upper`].
    lower: u32,
}

impl Default for Histogram {
    fn default() -> Self {
        // On the heap from the start: a quarter of a megabyte has no room on a small stack.
        Self { counts: vec![0; CODES].into_boxed_slice().try_into().expect("as many as there are codes"), lower: 0 }
    }
}

impl Histogram {
    /// Counts numbers of 16 bits as they are stored. At most 2³² − 1 numbers may be counted between two calls of
    /// [`move_to`](Self::move_to).
    pub fn add_codes(&mut self, bytes: &[u8]) {
        let counts = &mut *self.counts;
        // That the counts do not overflow is the caller's part; a check for each number would cost more than the count.
        let mut count = |code: u16| counts[usize::from(code)] = counts[usize::from(code)].wrapping_add(1);
        let (words, rest) = bytes.as_chunks::<8>();
        for &word in words {
            let word = u64::from_le_bytes(word);
            count(word as u16);
            count((word >> 16) as u16);
            count((word >> 32) as u16);
            count((word >> 48) as u16);
        }
        for &code in rest.as_chunks::<2>().0 {
            count(u16::from_le_bytes(code));
        }
    }

    /// Counts f32 numbers by their upper halves.
    pub fn add_upper(&mut self, values: &[f32]) {
        for x in values {
            self.counts[(x.to_bits() >> 16) as usize] += 1;
        }
        self.lower |= values.iter().fold(0, |all, x| all | x.to_bits()) & 0xffff;
    }

    /// Adds the counts to `totals`, and starts again from zero.
    pub fn move_to(&mut self, totals: &mut Totals) {
        for (total, count) in totals.counts.iter_mut().zip(&mut *self.counts) {
            *total += u64::from(std::mem::take(count));
        }
        totals.lower |= std::mem::take(&mut self.lower);
    }
}

/// How often each pattern occurs in a whole tensor.
#[derive(Debug, Clone)]
pub(super) struct Totals {
    codes: Codes,
    counts: Vec<u64>,
    lower: u32,
}

impl Totals {
    pub fn new(codes: Codes) -> Self {
        Self { codes, counts: vec![0; CODES], lower: 0 }
    }

    /// The patterns of finite numbers, from the least number to the greatest.
    fn finite(&self) -> impl Iterator<Item = (u16, u64)> {
        let infinity = self.codes.infinity();
        let ascending = (0x8000..0x8000 + infinity).rev().chain(0..infinity);
        ascending.map(|code| (code, self.counts[usize::from(code)])).filter(|(_, count)| *count > 0)
    }

    /// The sums of a tensor whose patterns are its values.
    pub fn sums(&self, frame: Frame) -> Sums {
        let infinity = usize::from(self.codes.infinity());
        let mut sums = Sums::NONE;
        for half in self.counts.chunks(1 << 15) {
            sums.infinite += half[infinity];
            sums.nan += half[infinity + 1..].iter().sum::<u64>();
        }
        let normal = match self.codes {
            Codes::F16 => f32::from(f16::MIN_POSITIVE),
            Codes::Bf16 | Codes::Upper => f32::MIN_POSITIVE,
        };
        for (code, count) in self.finite() {
            let x = self.codes.value(code);
            let (y, n) = (f64::from(x) * f64::from(frame.scale) + f64::from(frame.offset), count as f64);
            sums.count += count;
            if x == 0.0 {
                sums.zeros += count;
            } else if x.abs() < normal {
                sums.denormals += count;
            }
            for (sum, power) in sums.powers.iter_mut().zip([y, y * y, y * y * y, y * y * y * y]) {
                *sum += n * power;
            }
            sums.l1 += n * f64::from(x.abs());
            sums.min = sums.min.min(x);
            sums.max = sums.max.max(x);
        }
        sums
    }

    /// Whether [`quantiles`](Self::quantiles) are exact.
    pub fn is_exact(&self) -> bool {
        self.codes != Codes::Upper || self.lower == 0
    }

    /// For each of `levels` (ascending) the least finite number with at least that share of all finite ones at or below
    /// it; empty if there are none.
    pub fn quantiles(&self, levels: &[f64]) -> Vec<f64> {
        let total: u64 = self.finite().map(|(_, count)| count).sum();
        let mut quantiles = Vec::with_capacity(levels.len());
        let mut below = 0;
        for (code, count) in self.finite() {
            while let Some(level) = levels.get(quantiles.len()) {
                let rank = super::rank(*level, total);
                if rank >= below + count {
                    break;
                }
                let value = f64::from(self.codes.value(code));
                quantiles.push(if self.is_exact() || code & 0x7fff == 0 {
                    value
                } else {
                    let end = f64::from(f32::from_bits((u32::from(code) << 16) + 0xffff));
                    let place = ((rank - below) as f64 + 0.5) / count as f64;
                    // Patterns of negative numbers grow away from zero.
                    if value < 0.0 { end + (value - end) * place } else { value + (end - value) * place }
                });
            }
            below += count;
        }
        quantiles
    }
}
