use proptest::prelude::*;

use super::{WRITTEN, half_bits, naive, quantize};
use crate::{Dtype, digest, format::gguf::dequantize};

fn blocks() -> impl Iterator<Item = Dtype> {
    WRITTEN.into_iter().filter(|dtype| dtype.block().0 > 1)
}

fn encoded(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let mut out = vec![0xa5; dtype.bytes(values.len()).unwrap()];
    quantize(dtype, values, &mut out).unwrap();
    out
}

/// Numbers by a formula that any language can repeat: the upper 24 bits of a linear congruential generator, centred, times
/// a size that differs from block to block.
fn formula(count: usize) -> Vec<f32> {
    let mut state = 12345u32;
    (0..count)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let centred = (state >> 8) as f32 / 8_388_608.0 - 1.0;
            centred * (1 + i / 32 % 7) as f32 * 0.015625
        })
        .collect()
}

/// A value of a kind that weights have, or of one that finds the odd corners.
fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -1.0f32..1.0,
        2 => prop::sample::select(vec![0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 0.25, 3.0, -8.0, 8.0, 127.0]),
        1 => -1e-3f32..1e-3,
        1 => -60_000f32..60_000.0,
    ]
}

/// 512 values of one temper each: any, rounded to few bits, constant in runs, tiny, one-sided.
fn values() -> impl Strategy<Value = Vec<f32>> {
    let any = prop::collection::vec(value(), 512);
    (any, 0..7usize, prop::sample::select(vec![1.0f32, 0.02, 1e-6, 1e-12, 1e-20, 1e-37, 1e-39])).prop_map(
        |(mut values, temper, size)| {
            for (i, value) in values.iter_mut().enumerate() {
                *value *= size;
                match temper {
                    1 => *value = half::bf16::from_f32(*value).to_f32(),
                    2 => *value = if i % 64 < 32 { 0.0 } else { *value },
                    3 => *value = value.abs(),
                    4 => *value = -value.abs(),
                    5 => *value = value.signum() * size,
                    _ => {}
                }
            }
            if temper == 6 {
                (0..512).for_each(|i| values[i] = values[i / 16 * 16]);
            }
            values
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn every_type_matches_its_twin(values in values()) {
        for dtype in blocks() {
            let mut expected = vec![0; dtype.bytes(values.len()).unwrap()];
            naive::quantize(dtype, &values, &mut expected);
            let found = encoded(dtype, &values);
            let size = dtype.block().1;
            let first = found.chunks(size).zip(expected.chunks(size)).position(|(found, expected)| found != expected);
            prop_assert!(first.is_none(), "{dtype}: block {first:?} of {values:?}: {found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn f16_bits_are_those_of_the_half_crate(bits in any::<u32>()) {
        let value = f32::from_bits(bits);
        let (found, expected) = (half_bits::f16_bits(value), half::f16::from_f32(value));
        prop_assert!(found == expected.to_bits() || value.is_nan() && half::f16::from_bits(found).is_nan(), "{value:e}");
    }
}

#[test]
fn f16_bits_round_ties_to_even_around_every_f16() {
    for bits in 0..0x7c00u16 {
        let (low, high) = (half::f16::from_bits(bits).to_f32(), half::f16::from_bits(bits + 1).to_f32());
        for value in [low, low + (high - low) * 0.5, low + (high - low) * 0.500_001, low + (high - low) * 0.25] {
            for value in [value, -value] {
                assert_eq!(half_bits::f16_bits(value), half::f16::from_f32(value).to_bits(), "{value:e}");
            }
        }
    }
}

/// The error of each type on numbers of one size, as a fraction of theirs: a half step of a grid over ±1 is 1/30 for 4
/// bits, its rms 1/√3 of that, and so on; what is asked is a little more than what was found.
#[test]
fn what_is_decoded_is_near_what_was_encoded() {
    let values = formula(4096);
    let power: f32 = values.iter().map(|x| x * x).sum();
    for (dtype, most) in [
        (Dtype::F32, 1e-12),
        (Dtype::F16, 3e-4),
        (Dtype::Bf16, 3e-3),
        (Dtype::Q8_0, 0.005),
        (Dtype::Q6K, 0.02),
        (Dtype::Q5_1, 0.031),
        (Dtype::Q5K, 0.031),
        (Dtype::Q5_0, 0.035),
        (Dtype::Q4_1, 0.065),
        (Dtype::Q4K, 0.065),
        (Dtype::Q4_0, 0.08),
        (Dtype::Q3K, 0.15),
        (Dtype::Q2K, 0.28),
    ] {
        let mut back = vec![0.0; values.len()];
        dequantize(dtype, &encoded(dtype, &values), &mut back);
        let error: f32 = values.iter().zip(&back).map(|(x, y)| (x - y) * (x - y)).sum();
        let relative = (error / power).sqrt();
        assert!(relative <= most, "{dtype}: {relative} of the numbers' size, expected at most {most}");
    }
}

#[test]
fn says_where_a_value_is_too_large() {
    let mut values = formula(1024);
    values[700] = 3e8;
    for dtype in WRITTEN {
        let expected = match dtype {
            Dtype::F32 | Dtype::Bf16 => Ok(()),
            Dtype::F16 => Err(700),
            _ => Err(700 / dtype.block().0 * dtype.block().0),
        };
        let mut out = vec![0; dtype.bytes(values.len()).unwrap()];
        assert_eq!(quantize(dtype, &values, &mut out), expected, "{dtype}");
    }
}

/// The beginning of the SHA-256 of what ggml's own quantiser (llama-cpp-python 0.3.36, `ggml_quantize_chunk`, 16 rows of
/// 256, no importance matrix) makes of the numbers of [`formula`]:
///
/// ```text
/// state = 12345; values = []
/// for i in range(4096):
///     state = (state * 1664525 + 1013904223) % 2**32
///     values.append(((state >> 8) / 8388608 - 1) * (1 + i // 32 % 7) * 0.015625)
/// x = np.array(values, np.float32)
/// n = lib.ggml_quantize_chunk(kind, x.ctypes.data, out.ctypes.data, 0, 16, 256, None)
/// print(hashlib.sha256(out[:n].tobytes()).hexdigest()[:16])
/// ```
#[test]
fn the_bytes_are_those_of_ggml() {
    let values = formula(4096);
    for (dtype, expected) in [
        (Dtype::Q4_0, "166012bf9d060475"),
        (Dtype::Q4_1, "a3a9b108f239b984"),
        (Dtype::Q5_0, "c7915dcdb46712f6"),
        (Dtype::Q5_1, "086d526bb395d783"),
        (Dtype::Q8_0, "7171cc8b1dd69b12"),
        (Dtype::Q2K, "373ed9a5c106ed62"),
        (Dtype::Q3K, "d5760a700578882a"),
        (Dtype::Q4K, "edc2fec6fc453b01"),
        (Dtype::Q5K, "5515e0ead26f6998"),
        (Dtype::Q6K, "37ff4a8aa9e5da8f"),
    ] {
        assert_eq!(digest::sha256(&encoded(dtype, &values))[..16], *expected, "{dtype}");
    }
}

#[test]
fn integers_are_written_as_they_are() {
    let integers: [i8; 32] = std::array::from_fn(|i| i as i8 / 2 - 8);
    let scale = half::f16::from_f32(0.0625);
    for dtype in [Dtype::Q4_0, Dtype::Q5_0, Dtype::Q8_0] {
        let mut block = vec![0; dtype.block().1];
        assert!(super::write_integers(dtype, scale.to_bits(), &integers, &mut block), "{dtype}");
        let mut back = [0.0; 32];
        dequantize(dtype, &block, &mut back);
        assert_eq!(back, integers.map(|integer| 0.0625 * f32::from(integer)), "{dtype}");
    }
    let large = integers.map(|integer| integer * 2);
    assert!(!super::write_integers(Dtype::Q4_0, scale.to_bits(), &large, &mut [0; 18]));
    assert!(!super::write_integers(Dtype::Q4_1, scale.to_bits(), &integers, &mut [0; 20]));
}
