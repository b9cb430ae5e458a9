//! Sums of powers of a block of numbers, in vector lanes.
//!
//! Powers are summed of y = (x − pivot) · scale, with a pivot near the mean and a power of two near 1/std: neither the
//! subtraction of large sums (norm weights lie around 1) nor small or large numbers cost digits. Within a block of
//! [`BLOCK`] numbers the sums are f32, in [`LANES`] lanes; blocks are added up in f64. The relative error of a moment
//! of even order is then below 1e-6 (measured in the tests against f64).

use crate::kernel::dispatch;

/// Numbers summed in f32 before they are added to the f64 sums.
pub(super) const BLOCK: usize = 8192;

/// Sums kept apart within a block, the same on every processor.
pub(super) const LANES: usize = 64;

/// Where the numbers lie: y = x · scale + offset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Frame {
    /// A power of two.
    pub scale: f32,
    /// −pivot · scale.
    pub offset: f32,
}

impl Frame {
    /// The frame that suits numbers like `sample`; any numbers may follow.
    pub fn of(sample: &[f32]) -> Self {
        let finite = || sample.iter().map(|&x| f64::from(x)).filter(|x| x.is_finite());
        let count = finite().count().max(1) as f64;
        let mean = finite().sum::<f64>() / count;
        let variance = finite().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
        // 2^±100 keeps the product with any f32 that is not out of all proportion finite.
        let exponent = if variance > 0.0 { (-0.5 * variance.log2()).round().clamp(-100.0, 100.0) } else { 0.0 };
        let scale = 2f64.powi(exponent as i32);
        let offset = -(mean as f32 as f64) * scale;
        let offset = if offset.abs() < 1e30 { offset as f32 } else { 0.0 };
        Self { scale: scale as f32, offset }
    }
}

/// What was summed; all counts and sums are of finite numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums {
    pub count: u64,
    pub nan: u64,
    pub infinite: u64,
    pub zeros: u64,
    pub denormals: u64,
    /// Of y, y², y³, y⁴.
    pub powers: [f64; 4],
    /// Of |x|.
    pub l1: f64,
    pub min: f32,
    pub max: f32,
}

impl Sums {
    pub const NONE: Self = Self {
        count: 0,
        nan: 0,
        infinite: 0,
        zeros: 0,
        denormals: 0,
        powers: [0.0; 4],
        l1: 0.0,
        min: f32::INFINITY,
        max: f32::NEG_INFINITY,
    };

    /// Adds `values`, block by block.
    pub fn add(&mut self, values: &[f32], frame: Frame) {
        for values in values.chunks(BLOCK) {
            let block = block(values, frame);
            // A NaN or an infinity makes these sums one too, and so does a number too large for f32 powers.
            let sound = block.powers.iter().all(|sum| sum.is_finite()) && block.l1.is_finite();
            self.merge(&if sound { block } else { careful(values, frame) });
        }
    }

    /// Adds what another part of the same tensor gave.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.nan += other.nan;
        self.infinite += other.infinite;
        self.zeros += other.zeros;
        self.denormals += other.denormals;
        for (sum, other) in self.powers.iter_mut().zip(other.powers) {
            *sum += other;
        }
        self.l1 += other.l1;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }
}

dispatch! {
    /// The sums of one block of any numbers; not finite if the numbers are not, or have no f32 powers.
    fn block(values: &[f32], frame: Frame) -> Sums = block_body
}

#[inline(always)]
fn block_body(values: &[f32], frame: Frame) -> Sums {
    let (lines, rest) = values.as_chunks::<LANES>();
    // Two walks over a block in the first-level cache: all sums at once would not fit into the registers.
    let (mut s1, mut s2, mut s3, mut s4) = ([0f32; LANES], [0f32; LANES], [0f32; LANES], [0f32; LANES]);
    macro_rules! add_powers {
        ($line:expr) => {
            for (i, x) in $line.iter().enumerate() {
                let y = x.mul_add(frame.scale, frame.offset);
                let square = y * y;
                s1[i] += y;
                s2[i] += square;
                s3[i] = square.mul_add(y, s3[i]);
                s4[i] = square.mul_add(square, s4[i]);
            }
        };
    }
    for line in lines {
        add_powers!(line);
    }
    add_powers!(rest);
    let mut l1 = [0f32; LANES];
    let mut least = [f32::INFINITY; LANES]; // of |x|
    let (mut min, mut max) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    macro_rules! add_extremes {
        ($line:expr) => {
            for (i, &x) in $line.iter().enumerate() {
                l1[i] += x.abs();
                least[i] = if x.abs() < least[i] { x.abs() } else { least[i] };
                min[i] = if x < min[i] { x } else { min[i] };
                max[i] = if x > max[i] { x } else { max[i] };
            }
        };
    }
    for line in lines {
        add_extremes!(line);
    }
    add_extremes!(rest);
    let (mut zeros, mut denormals) = (0, 0);
    if fold(least, f32::min) < f32::MIN_POSITIVE {
        zeros = values.iter().map(|x| u32::from(*x == 0.0)).sum();
        denormals = values.iter().map(|x| u32::from(x.abs() < f32::MIN_POSITIVE)).sum::<u32>() - zeros;
    }
    Sums {
        count: values.len() as u64,
        nan: 0,
        infinite: 0,
        zeros: zeros.into(),
        denormals: denormals.into(),
        powers: [s1, s2, s3, s4].map(|sums| f64::from(fold(sums, |a, b| a + b))),
        l1: fold(l1, |a, b| a + b).into(),
        min: fold(min, |a, b| if b < a { b } else { a }),
        max: fold(max, |a, b| if b > a { b } else { a }),
    }
}

/// One number of all lanes, by halves.
#[inline(always)]
pub(super) fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = join(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The same in f64, number by number, leaving out what is not finite.
fn careful(values: &[f32], frame: Frame) -> Sums {
    let mut sums = Sums::NONE;
    for &x in values {
        if !x.is_finite() {
            *(if x.is_nan() { &mut sums.nan } else { &mut sums.infinite }) += 1;
            continue;
        }
        let y = f64::from(x) * f64::from(frame.scale) + f64::from(frame.offset);
        sums.count += 1;
        sums.zeros += u64::from(x == 0.0);
        sums.denormals += u64::from(x.is_subnormal());
        for (sum, power) in sums.powers.iter_mut().zip([y, y * y, y * y * y, y * y * y * y]) {
            *sum += power;
        }
        sums.l1 += f64::from(x.abs());
        sums.min = sums.min.min(x);
        sums.max = sums.max.max(x);
    }
    sums
}

dispatch! {
    /// bf16 as stored, widened to f32.
    pub(super) fn widen_bf16(bytes: &[u8], out: &mut [f32]) = widen_bf16_body
}

#[inline(always)]
fn widen_bf16_body(bytes: &[u8], out: &mut [f32]) {
    for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any f32 that a checkpoint may hold: mostly weights, sometimes the odd ones.
    pub(in super::super) fn number() -> impl Strategy<Value = f32> {
        prop_oneof![
            40 => -1f32..1.0,
            2 => any::<f32>(),
            1 => Just(0.0f32),
            1 => Just(-0.0f32),
            1 => (1u32..0x80_0000).prop_map(f32::from_bits),
            1 => Just(f32::NAN),
            1 => Just(f32::INFINITY),
            1 => Just(f32::NEG_INFINITY),
        ]
    }

    fn close(a: f64, b: f64, size: f64) -> bool {
        (a - b).abs() <= 1e-5 * size.abs()
    }

    proptest! {
        #[test]
        fn blocks_agree_with_the_definition_in_f64(
            values in proptest::collection::vec(-8f32..8.0, 0..3 * BLOCK), mean in -100f32..100.0, power in -30i32..30,
        ) {
            let values: Vec<f32> = values.iter().map(|x| (x + mean) * 2f32.powi(power)).collect();
            let frame = Frame::of(&values);
            let (mut fast, slow) = (Sums::NONE, careful(&values, frame));
            fast.add(&values, frame);
            prop_assert_eq!((fast.count, fast.zeros, fast.denormals), (slow.count, slow.zeros, slow.denormals));
            prop_assert_eq!((fast.min, fast.max), (slow.min, slow.max));
            prop_assert!(close(fast.l1, slow.l1, slow.l1));
            for (order, (fast, exact)) in fast.powers.iter().zip(slow.powers).enumerate() {
                // Odd powers cancel: their error is measured by the even power beside them.
                let size = if order % 2 == 0 { slow.powers[order + 1] + slow.count as f64 } else { exact };
                prop_assert!(close(*fast, exact, size), "power {}: {fast} {exact}", order + 1);
            }
        }

        #[test]
        fn every_instruction_set_gives_the_same_bits(values in proptest::collection::vec(number(), 0..300)) {
            let frame = Frame { scale: 4.0, offset: -0.5 };
            let bits = |sums: Sums| (sums.powers.map(f64::to_bits), sums.l1.to_bits(), sums.zeros, sums.denormals);
            let (fast, plain) = (block(&values, frame), block_body(&values, frame));
            if fast.powers.iter().all(|sum| sum.is_finite()) {
                prop_assert_eq!(bits(fast), bits(plain));
                prop_assert_eq!((fast.min, fast.max), (plain.min, plain.max));
            } else {
                prop_assert!(plain.powers.iter().any(|sum| !sum.is_finite()));
            }
        }

        #[test]
        fn odd_numbers_are_counted_and_left_out(values in proptest::collection::vec(number(), 0..300)) {
            let frame = Frame::of(&values);
            let mut sums = Sums::NONE;
            sums.add(&values, frame);
            let count = |test: fn(f32) -> bool| values.iter().filter(|&&x| test(x)).count() as u64;
            prop_assert_eq!(sums.nan, count(f32::is_nan));
            prop_assert_eq!(sums.infinite, count(f32::is_infinite));
            prop_assert_eq!(sums.zeros, count(|x| x == 0.0));
            prop_assert_eq!(sums.denormals, count(f32::is_subnormal));
            prop_assert_eq!(sums.count + sums.nan + sums.infinite, values.len() as u64);
            prop_assert!(sums.powers.iter().all(|sum| sum.is_finite()));
        }
    }

    #[test]
    fn bf16_is_widened_exactly() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![0.0; 1 << 16];
        widen_bf16(&bytes, &mut out);
        assert!(out.iter().enumerate().all(|(code, x)| x.to_bits() == (code as u32) << 16));
    }
}
