//! Sums of powers of a block of numbers, in vector lanes.
//!
//! bf16 numbers are summed as they are stored; all others once they are f32.
//!
//! Powers are summed of y = (x − pivot) · scale, with a pivot near the mean and a power of two near 1/std: neither the
//! subtraction of large sums (norm weights lie around 1) nor small or large numbers cost digits. Within a block of
//! [`BLOCK`] numbers the sums are f32, in [`LANES`] lanes; blocks are added up in f64. The relative error of a moment
//! of even order is then below 1e-6 (measured in the tests against f64).

use crate::kernel::dispatch;

/// Numbers summed in f32 before they are added to the f64 sums.
pub(super) const BLOCK: usize = 8192;

/// Sums kept apart within a block, the same on every processor: all sums of this many lanes fit into the 32 registers
/// of AVX-512, and there are enough of them that no addition waits for the one before it.
const LANES: usize = 32;

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
            self.merge(&if block.are_sound() { block } else { careful(values.iter().copied(), frame) });
        }
    }

    /// Adds bf16 numbers as they are stored, block by block.
    pub fn add_bf16(&mut self, bytes: &[u8], frame: Frame) {
        for bytes in bytes.chunks(2 * BLOCK) {
            let (pairs, last) = bytes.split_at(bytes.len() / 4 * 4);
            let block = block_bf16(pairs, frame);
            self.merge(&if block.are_sound() { block } else { careful(bf16_numbers(pairs), frame) });
            // An odd count leaves one number, which is added by itself.
            if !last.is_empty() {
                self.merge(&careful(bf16_numbers(last), frame));
            }
        }
    }

    /// Whether f32 held the sums of a block: a NaN or an infinity makes them one too, and so does a number too large
    /// for f32 powers.
    fn are_sound(&self) -> bool {
        self.powers.iter().all(|sum| sum.is_finite()) && self.l1.is_finite()
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
    let mut powers = Powers::NONE;
    let mut least = [f32::INFINITY; LANES]; // of |x|
    let (mut min, mut max) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    macro_rules! add {
        ($line:expr) => {
            for (i, &x) in $line.iter().enumerate() {
                powers.add(i, x, frame);
                least[i] = if x.abs() < least[i] { x.abs() } else { least[i] };
                min[i] = if x < min[i] { x } else { min[i] };
                max[i] = if x > max[i] { x } else { max[i] };
            }
        };
    }
    for line in lines {
        add!(line);
    }
    add!(rest);
    let (mut zeros, mut denormals) = (0, 0);
    if fold(least, f32::min) < f32::MIN_POSITIVE {
        let mut small = 0u32;
        // Sums that wrap around (a block has too few numbers for that) are vectorised; checked ones are not.
        for x in values {
            zeros = u32::wrapping_add(zeros, u32::from(*x == 0.0));
            small = small.wrapping_add(u32::from(x.abs() < f32::MIN_POSITIVE));
        }
        denormals = small - zeros;
    }
    Sums {
        count: values.len() as u64,
        zeros: zeros.into(),
        denormals: denormals.into(),
        min: fold(min, |a, b| if b < a { b } else { a }),
        max: fold(max, |a, b| if b > a { b } else { a }),
        ..powers.sums()
    }
}

dispatch! {
    /// [`block`] of bf16 as stored, an even count of them.
    fn block_bf16(bytes: &[u8], frame: Frame) -> Sums = block_bf16_body
}

/// Numbers pass through registers only. Two of them are one word of 32 bits, whose upper half is a number as f32 once
/// the lower is cleared, and whose lower half is one once it is moved up. Extremes are those of the 16-bit patterns: as
/// signed numbers they rise with the positive ones, as unsigned numbers the negative ones come after those and rise with
/// their size.
#[inline(always)]
fn block_bf16_body(bytes: &[u8], frame: Frame) -> Sums {
    const WORDS: usize = LANES / 2;
    let (lines, rest) = bytes.as_chunks::<{ 2 * LANES }>();
    let mut powers = Powers::NONE;
    let (mut greatest_signed, mut greatest) = ([i16::MIN; LANES], [0u16; LANES]);
    let (mut least, mut least_size) = ([u16::MAX; LANES], [u16::MAX; LANES]);
    macro_rules! add {
        ($line:expr) => {
            for (i, &word) in $line.as_chunks::<4>().0.iter().enumerate() {
                let word = u32::from_le_bytes(word);
                powers.add(i, f32::from_bits(word << 16), frame);
                powers.add(i + WORDS, f32::from_bits(word & 0xffff_0000), frame);
            }
            for (i, &code) in $line.as_chunks::<2>().0.iter().enumerate() {
                let code = u16::from_le_bytes(code);
                greatest_signed[i] = greatest_signed[i].max(code as i16);
                greatest[i] = greatest[i].max(code);
                least[i] = least[i].min(code);
                least_size[i] = least_size[i].min(code << 1);
            }
        };
    }
    for line in lines {
        add!(line);
    }
    add!(rest);
    let (mut zeros, mut denormals) = (0u16, 0u16);
    const NORMAL: u16 = 0x80 << 1; // the least normal number, without its sign
    if least_size.iter().min() < Some(&NORMAL) {
        // Few blocks of real weights hold any; where they do, a walk of its own costs less than counts in every one. A
        // block has fewer numbers than 16 bits count, which the compiler cannot know: a checked sum is not vectorised.
        let (mut zero, mut small) = (0u16, 0u16);
        for &code in bytes.as_chunks::<2>().0 {
            let size = u16::from_le_bytes(code) << 1;
            zero = zero.wrapping_add(u16::from(size == 0));
            small = small.wrapping_add(u16::from(size < NORMAL));
        }
        (zeros, denormals) = (zero, small - zero);
    }
    let signed = greatest_signed.into_iter().fold(i16::MIN, i16::max);
    let (greatest, least) = (greatest.into_iter().fold(0, u16::max), least.into_iter().fold(u16::MAX, u16::min));
    // Where all numbers have one sign, the end nearer to zero has the least pattern.
    let min = if greatest >> 15 == 1 { greatest } else { least };
    let max = if signed >= 0 { signed as u16 } else { least };
    let number = |code: u16| f32::from_bits(u32::from(code) << 16);
    Sums {
        count: bytes.len() as u64 / 2,
        zeros: zeros.into(),
        denormals: denormals.into(),
        min: number(min),
        max: number(max),
        ..powers.sums()
    }
}

/// The sums that both kinds of block form, lane by lane.
struct Powers {
    /// Of y, y², y³, y⁴.
    y: [[f32; LANES]; 4],
    /// Of |x|.
    l1: [f32; LANES],
}

impl Powers {
    const NONE: Self = Self { y: [[0.0; LANES]; 4], l1: [0.0; LANES] };

    #[inline(always)]
    fn add(&mut self, lane: usize, x: f32, frame: Frame) {
        let y = x.mul_add(frame.scale, frame.offset);
        let square = y * y;
        let [s1, s2, s3, s4] = &mut self.y;
        s1[lane] += y;
        s2[lane] += square;
        s3[lane] = square.mul_add(y, s3[lane]);
        s4[lane] = square.mul_add(square, s4[lane]);
        self.l1[lane] += x.abs();
    }

    /// What is known of a block by these sums alone.
    #[inline(always)]
    fn sums(self) -> Sums {
        Sums {
            powers: self.y.map(|sums| fold(sums, |a, b| a + b).into()),
            l1: fold(self.l1, |a, b| a + b).into(),
            ..Sums::NONE
        }
    }
}

/// One number of all lanes (a power of two), by halves.
#[inline(always)]
pub(super) fn fold<const N: usize>(mut lanes: [f32; N], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = join(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The same in f64, number by number, leaving out what is not finite.
fn careful(values: impl Iterator<Item = f32>, frame: Frame) -> Sums {
    let mut sums = Sums::NONE;
    for x in values {
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

fn bf16_numbers(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks().0.iter().map(|&code| f32::from_bits(u32::from(u16::from_le_bytes(code)) << 16))
}

dispatch! {
    /// bf16 as stored, widened to f32.
    pub(super) fn widen_bf16(bytes: &[u8], out: &mut [f32]) = widen_bf16_body
}

#[inline(always)]
fn widen_bf16_body(bytes: &[u8], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(bf16_numbers(bytes)) {
        *out = x;
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
            let (mut fast, slow) = (Sums::NONE, careful(values.iter().copied(), frame));
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
        fn bf16_as_stored_gives_what_its_numbers_give(
            values in proptest::collection::vec(number(), 0..3 * LANES), sign in 0..3, blocks in 0usize..3,
        ) {
            // Of one sign too: the extremes come from elsewhere then.
            let signed = values.iter().map(|x| match sign { 0 => *x, 1 => x.abs(), _ => -x.abs() });
            let codes: Vec<u16> = signed.map(|x| (x.to_bits() >> 16) as u16).collect();
            let codes = codes.repeat(1 + blocks * BLOCK / codes.len().max(1));
            let bytes: Vec<u8> = codes.iter().flat_map(|code| code.to_le_bytes()).collect();
            let frame = Frame { scale: 4.0, offset: -0.5 };
            let (mut fast, slow) = (Sums::NONE, careful(bf16_numbers(&bytes), frame));
            fast.add_bf16(&bytes, frame);
            let counts = |sums: &Sums| (sums.count, sums.nan, sums.infinite, sums.zeros, sums.denormals);
            prop_assert_eq!(counts(&fast), counts(&slow));
            prop_assert_eq!((fast.min, fast.max), (slow.min, slow.max));
            prop_assert!(close(fast.l1, slow.l1, slow.l1));
            for (order, (fast, exact)) in fast.powers.iter().zip(slow.powers).enumerate() {
                let size = if order % 2 == 0 { slow.powers[order + 1] + slow.count as f64 } else { exact };
                prop_assert!(close(*fast, exact, size), "power {}: {fast} {exact}", order + 1);
            }
            for bytes in bytes.chunks(2 * BLOCK) {
                let (fast, plain) = (block_bf16(bytes, frame), block_bf16_body(bytes, frame));
                let bits = |sums: &Sums| (sums.powers.map(f64::to_bits), sums.l1.to_bits());
                prop_assert!(!plain.are_sound() || bits(&fast) == bits(&plain));
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
