//! Sixteen sub-blocks side by side: lane `l` of every array belongs to sub-block `l`.

/// Sub-blocks handled at once.
pub(super) const LANES: usize = 16;

/// One number of each sub-block.
pub(super) type Lanes = [f32; LANES];

/// 1.5 · 2²³: adding it leaves the nearest integer (ties to even) in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even, of a number below 2²² in magnitude; of others what its low 23 bits then say, which
/// is what ggml goes on with too.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    (((x + MAGIC).to_bits() & 0x007f_ffff) as i32).wrapping_sub(0x0040_0000)
}

/// The low byte (two's complement) of a number without a fraction, below 2²² in magnitude.
#[inline(always)]
pub(super) fn low_byte(x: f32) -> u8 {
    (x + MAGIC).to_bits() as u8
}

/// [`nearest`], kept between `low` and `high`, as a number again.
#[inline(always)]
pub(super) fn clamped(x: f32, low: i32, high: i32) -> f32 {
    let code = nearest(x);
    let code = if code < high { code } else { high };
    (if code > low { code } else { low }) as f32
}

/// Sub-blocks of `N` values that lie one after the other, as lanes: result\[i\]\[l\] is value i of sub-block l. Lanes
/// without a sub-block are 0.
#[inline(always)]
pub(super) fn across<const N: usize>(values: &[f32]) -> [Lanes; N] {
    let mut lanes = [[0.0; LANES]; N];
    for (l, values) in values.as_chunks::<N>().0.iter().enumerate().take(LANES) {
        for (lanes, &value) in lanes.iter_mut().zip(values) {
            lanes[l] = value;
        }
    }
    lanes
}
