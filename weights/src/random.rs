//! Random numbers by counter: a value is a pure function of (seed, stream, index), so nothing depends on the order or the
//! number of threads in which it is drawn.
//!
//! Each word of the key passes once through the SplitMix64 finaliser (Steele, Lea and Flood 2014, "Fast splittable
//! pseudorandom number generators"), which mixes every input bit into every output bit.

/// The SplitMix64 finaliser.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The 64 random bits at `index` of `stream` under `seed`.
pub fn draw(seed: u64, stream: u64, index: u64) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let key = mix(seed.wrapping_add(GOLDEN));
    let key = mix(key ^ stream.wrapping_mul(GOLDEN).wrapping_add(GOLDEN));
    mix(key.wrapping_add(index.wrapping_mul(GOLDEN)).wrapping_add(GOLDEN))
}

/// A named sequence of draws: [`draw`] with the index counted up.
#[derive(Debug, Clone)]
pub struct Stream {
    seed: u64,
    stream: u64,
    index: u64,
}

impl Stream {
    /// The `number`-th stream of that `name`. Two names, or two numbers, give unrelated draws.
    pub fn new(seed: u64, name: &str, number: u64) -> Self {
        // FNV-1a of the name; `draw` does the mixing.
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Self { seed, stream: draw(hash, 0, number), index: 0 }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.index += 1;
        draw(self.seed, self.stream, self.index)
    }

    /// Uniform in `0..n`; `n` must not be 0. (Multiply and shift: the bias is below n / 2⁶⁴.)
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "a draw below 0");
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Uniform in [0, 1), with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Standard normal (Box and Muller 1958, the cosine half).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Puts `items` in random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_what_they_were() {
        // Golden: the fixtures are functions of these numbers; a change here is a new version of every one of them.
        assert_eq!(draw(0, 0, 0), 2_077_113_891_230_206_638);
        let mut stream = Stream::new(1, "golden", 0);
        assert_eq!([stream.bits(), stream.bits()], [6_254_149_225_155_646_981, 18_006_797_239_026_602_625]);
    }

    #[test]
    fn draws_are_even_and_streams_unrelated() {
        let mut stream = Stream::new(7, "even", 0);
        let mut counts = [0u32; 10];
        for _ in 0..10_000 {
            counts[stream.below(10)] += 1;
        }
        // Standard deviation of a count is 30; five of them.
        assert!(counts.iter().all(|&count| count.abs_diff(1000) < 150), "{counts:?}");
        let (mut mean, mut square) = (0.0, 0.0);
        for _ in 0..10_000 {
            let x = stream.normal();
            mean += x / 1e4;
            square += x * x / 1e4;
        }
        assert!(mean.abs() < 0.05 && (square - 1.0).abs() < 0.08, "mean {mean}, square {square}");
        assert_ne!(Stream::new(7, "even", 1).bits(), Stream::new(7, "even", 0).bits());
        assert_ne!(Stream::new(7, "even", 0).bits(), Stream::new(8, "even", 0).bits());
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<usize> = (0..50).collect();
        Stream::new(3, "shuffle", 0).shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
