//! Bit streams: codes of 2, 3, 4 or 8 bits in 32-bit words, as other tools read them.
//!
//! One stream serves every format: value `i` of a run occupies bits `b·i .. b·(i+1)` of the run's little-endian words,
//! lowest bit first. The formats differ in which dimension a run follows and how the words are laid out:
//!
//! | what | source | runs along | words |
//! |---|---|---|---|
//! | compressed-tensors `weight_packed` | codes (out, in) | in | (out, in·b/32): [`pack_rows`] |
//! | GPTQ `qweight` | codes (out, in) | in | (in·b/32, out): [`pack_rows_transposed`] |
//! | compressed-tensors `weight_zero_point` | zeros (out, groups) | out | (out·b/32, groups): [`pack_columns`] |
//! | GPTQ `qzeros` | zeros (out, groups) | out | (groups, out·b/32): [`pack_columns_transposed`] |
//!
//! The three-bit layout of GPTQ files ("10, split, 10, split, 10") is this dense stream: 32 values in 3 words.
//! A run that does not fill its last word is refused: readers disagree about the padding.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Bits a code may have.
pub const WIDTHS: [u32; 4] = [2, 3, 4, 8];

/// How a GPTQ file stores zero points (`checkpoint_format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GptqVersion {
    /// `"gptq"`: zero − 1, modulo 2^bits. A zero point of 0 cannot be held safely: some readers add 1 without masking.
    #[serde(rename = "gptq")]
    V1,
    /// `"gptq_v2"`: the zero point itself.
    #[serde(rename = "gptq_v2")]
    V2,
}

/// Words a run of `values` codes of `bits` takes.
///
/// Refuses widths other than [`WIDTHS`] and runs that do not fill whole words.
pub fn words_for(values: usize, bits: u32) -> Result<usize> {
    if !WIDTHS.contains(&bits) {
        return Err(Error::Recipe(format!("codes of {bits} bits cannot be packed, only of 2, 3, 4 or 8")));
    }
    let total = values * bits as usize;
    if !total.is_multiple_of(32) {
        let step = if bits == 3 { 32 } else { 32 / bits as usize };
        return Err(Error::Recipe(format!(
            "{values} codes of {bits} bits do not fill 32-bit words, only a multiple of {step} does"
        )));
    }
    Ok(total / 32)
}

/// Packs `codes` (rows, columns) along the columns into words (rows, columns·b/32).
pub fn pack_rows(codes: &[u8], rows: usize, columns: usize, bits: u32) -> Result<Vec<u32>> {
    let words = prepare(codes, rows, columns, columns, bits)?;
    let mut out = vec![0; rows * words];
    if words > 0 {
        for (run, out) in codes.chunks_exact(columns).zip(out.chunks_exact_mut(words)) {
            pack_run(run, bits, out);
        }
    }
    Ok(out)
}

/// The reverse of [`pack_rows`].
pub fn unpack_rows(words: &[u32], rows: usize, columns: usize, bits: u32) -> Result<Vec<u8>> {
    let run = checked_words(words, rows, columns, bits)?;
    let mut codes = vec![0; rows * columns];
    if run > 0 {
        for (words, codes) in words.chunks_exact(run).zip(codes.chunks_exact_mut(columns)) {
            unpack_run(words, bits, codes);
        }
    }
    Ok(codes)
}

/// Packs `codes` (rows, columns) along the columns into words (columns·b/32, rows): GPTQ's `qweight`.
pub fn pack_rows_transposed(codes: &[u8], rows: usize, columns: usize, bits: u32) -> Result<Vec<u32>> {
    let words = pack_rows(codes, rows, columns, bits)?;
    Ok(transpose(&words, rows, words_for(columns, bits)?))
}

/// The reverse of [`pack_rows_transposed`].
pub fn unpack_rows_transposed(words: &[u32], rows: usize, columns: usize, bits: u32) -> Result<Vec<u8>> {
    let run = checked_words(words, rows, columns, bits)?;
    unpack_rows(&transpose(words, run, rows), rows, columns, bits)
}

/// Packs `codes` (rows, columns) along the rows into words (rows·b/32, columns): `weight_zero_point`.
pub fn pack_columns(codes: &[u8], rows: usize, columns: usize, bits: u32) -> Result<Vec<u32>> {
    if !bits.is_power_of_two() {
        // A code may lie across two words.
        let words = pack_columns_transposed(codes, rows, columns, bits)?;
        return Ok(transpose(&words, columns, words_for(rows, bits)?));
    }
    prepare(codes, rows, columns, rows, bits)?;
    let mut words = vec![0u32; words_for(rows, bits)? * columns];
    let a_word = (32 / bits) as usize;
    if columns > 0 {
        for (words, codes) in words.chunks_exact_mut(columns).zip(codes.chunks_exact(a_word * columns)) {
            for (i, codes) in codes.chunks_exact(columns).enumerate() {
                words.iter_mut().zip(codes).for_each(|(word, &code)| *word |= u32::from(code) << (bits * i as u32));
            }
        }
    }
    Ok(words)
}

/// The reverse of [`pack_columns`].
pub fn unpack_columns(words: &[u32], rows: usize, columns: usize, bits: u32) -> Result<Vec<u8>> {
    let run = checked_words(words, columns, rows, bits)?;
    unpack_columns_transposed(&transpose(words, run, columns), rows, columns, bits)
}

/// Packs `codes` (rows, columns) along the rows into words (columns, rows·b/32).
pub fn pack_columns_transposed(codes: &[u8], rows: usize, columns: usize, bits: u32) -> Result<Vec<u32>> {
    prepare(codes, rows, columns, rows, bits)?;
    pack_rows(&transpose(codes, rows, columns), columns, rows, bits)
}

/// The reverse of [`pack_columns_transposed`].
pub fn unpack_columns_transposed(words: &[u32], rows: usize, columns: usize, bits: u32) -> Result<Vec<u8>> {
    Ok(transpose(&unpack_rows(words, columns, rows, bits)?, columns, rows))
}

/// GPTQ's `qzeros`: `zeros` (out, groups) along the outputs into words (groups, out·b/32).
///
/// Refuses a zero point of 0 in [`GptqVersion::V1`].
pub fn pack_zeros(
    zeros: &[u8],
    out_features: usize,
    groups: usize,
    bits: u32,
    version: GptqVersion,
) -> Result<Vec<u32>> {
    match version {
        GptqVersion::V2 => pack_columns_transposed(zeros, out_features, groups, bits),
        GptqVersion::V1 => {
            prepare(zeros, out_features, groups, out_features, bits)?;
            if let Some(at) = zeros.iter().position(|&zero| zero == 0) {
                return Err(Error::Numeric(format!(
                    "the zero point of row {} in group {} is 0, which a GPTQ file of version 1 cannot hold safely; \
                     write version 2",
                    at / groups,
                    at % groups
                )));
            }
            let stored: Vec<u8> = zeros.iter().map(|zero| zero - 1).collect();
            pack_columns_transposed(&stored, out_features, groups, bits)
        }
    }
}

/// The reverse of [`pack_zeros`]; a version 1 field of 2^bits − 1 is a zero point of 0.
pub fn unpack_zeros(
    words: &[u32],
    out_features: usize,
    groups: usize,
    bits: u32,
    version: GptqVersion,
) -> Result<Vec<u8>> {
    let mut zeros = unpack_columns_transposed(words, out_features, groups, bits)?;
    if version == GptqVersion::V1 {
        let mask = mask(bits) as u8;
        zeros.iter_mut().for_each(|zero| *zero = zero.wrapping_add(1) & mask);
    }
    Ok(zeros)
}

/// Packs one run; `codes.len() · bits` is `32 · words.len()` and no code exceeds `bits` bits.
///
/// # Panics
/// If the lengths do not fit.
pub fn pack_run(codes: &[u8], bits: u32, words: &mut [u32]) {
    assert_eq!(codes.len() * bits as usize, words.len() * 32, "codes and words of a run differ");
    match bits {
        4 => {
            for (codes, word) in codes.chunks_exact(8).zip(words) {
                *word = pack_8_nibbles(u64::from_le_bytes(codes.try_into().expect("eight codes")));
            }
        }
        8 => {
            for (codes, word) in codes.chunks_exact(4).zip(words) {
                *word = u32::from_le_bytes(codes.try_into().expect("four codes"));
            }
        }
        _ => {
            let (mut held, mut filled) = (0u64, 0);
            let mut words = words.iter_mut();
            for &code in codes {
                held |= u64::from(code) << filled;
                filled += bits;
                if filled >= 32 {
                    *words.next().expect("as many words as bits fill") = held as u32;
                    held >>= 32;
                    filled -= 32;
                }
            }
        }
    }
}

/// Unpacks one run; `codes.len() · bits` is `32 · words.len()`.
///
/// # Panics
/// If the lengths do not fit.
pub fn unpack_run(words: &[u32], bits: u32, codes: &mut [u8]) {
    assert_eq!(codes.len() * bits as usize, words.len() * 32, "codes and words of a run differ");
    match bits {
        4 => unpack_nibbles(words, codes),
        8 => {
            for (codes, word) in codes.chunks_exact_mut(4).zip(words) {
                codes.copy_from_slice(&word.to_le_bytes());
            }
        }
        _ => {
            let (mut held, mut filled) = (0u64, 0);
            let mut words = words.iter();
            for code in codes {
                if filled < bits {
                    held |= u64::from(*words.next().expect("as many words as bits fill")) << filled;
                    filled += 32;
                }
                *code = (held & mask(bits)) as u8;
                held >>= bits;
                filled -= bits;
            }
        }
    }
}

crate::kernel::dispatch! { fn unpack_nibbles(words: &[u32], codes: &mut [u8]) = unpack_nibbles_body }

#[inline(always)]
fn unpack_nibbles_body(words: &[u32], codes: &mut [u8]) {
    for (codes, &word) in codes.chunks_exact_mut(8).zip(words) {
        codes.copy_from_slice(&unpack_8_nibbles(word).to_le_bytes());
    }
}

/// Eight codes, one a byte (lowest first), to eight nibbles.
#[inline(always)]
pub(crate) fn pack_8_nibbles(bytes: u64) -> u32 {
    let x = (bytes | (bytes >> 4)) & 0x00FF_00FF_00FF_00FF;
    let x = (x | (x >> 8)) & 0x0000_FFFF_0000_FFFF;
    (x | (x >> 16)) as u32
}

/// The reverse of [`pack_8_nibbles`].
#[inline(always)]
pub(crate) fn unpack_8_nibbles(word: u32) -> u64 {
    let x = u64::from(word);
    let x = (x | (x << 16)) & 0x0000_FFFF_0000_FFFF;
    let x = (x | (x << 8)) & 0x00FF_00FF_00FF_00FF;
    (x | (x << 4)) & 0x0F0F_0F0F_0F0F_0F0F
}

const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// Checks a source of `rows` × `columns` codes for runs of `run` and gives the words of one run.
fn prepare(codes: &[u8], rows: usize, columns: usize, run: usize, bits: u32) -> Result<usize> {
    if codes.len() != rows * columns {
        return Err(Error::Numeric(format!("{} codes are not a matrix of {rows} × {columns}", codes.len())));
    }
    let words = words_for(run, bits)?;
    let largest = codes.iter().copied().max().unwrap_or(0);
    if u64::from(largest) > mask(bits) {
        return Err(Error::Numeric(format!("the code {largest} does not fit in {bits} bits")));
    }
    Ok(words)
}

/// Checks `runs` runs of `run` codes and gives the words of one run.
fn checked_words(words: &[u32], runs: usize, run: usize, bits: u32) -> Result<usize> {
    let per_run = words_for(run, bits)?;
    if words.len() != runs * per_run {
        return Err(Error::Numeric(format!(
            "{} words do not hold {runs} × {run} codes of {bits} bits, {} do",
            words.len(),
            runs * per_run
        )));
    }
    Ok(per_run)
}

/// (rows, columns) to (columns, rows).
fn transpose<T: Copy + Default>(from: &[T], rows: usize, columns: usize) -> Vec<T> {
    const TILE: usize = 32;
    let mut to = vec![T::default(); from.len()];
    for row in (0..rows).step_by(TILE) {
        for column in (0..columns).step_by(TILE) {
            for i in row..(row + TILE).min(rows) {
                for j in column..(column + TILE).min(columns) {
                    to[j * rows + i] = from[i * columns + j];
                }
            }
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: bit `b·i + j` of the stream is bit `j` of value `i`.
    fn naive(codes: &[u8], bits: u32) -> Vec<u32> {
        let mut words = vec![0u32; codes.len() * bits as usize / 32];
        for (i, &code) in codes.iter().enumerate() {
            for j in 0..bits as usize {
                let at = i * bits as usize + j;
                words[at / 32] |= u32::from(code >> j & 1) << (at % 32);
            }
        }
        words
    }

    fn cycle(period: u8, n: usize) -> Vec<u8> {
        (0..n).map(|i| i as u8 % period).collect()
    }

    // What AutoGPTQ 0.7's and GPTQModel's packers write for the same values.
    #[test]
    fn words_are_those_of_gptq_files() {
        let pack = |codes: &[u8], bits| pack_rows_transposed(codes, 1, codes.len(), bits).unwrap();
        assert_eq!(pack(&cycle(8, 8), 4), [0x7654_3210]);
        assert_eq!(pack(&cycle(4, 16), 2), [0xE4E4_E4E4]);
        assert_eq!(pack(&cycle(4, 4), 8), [0x0302_0100]);
        assert_eq!(pack(&cycle(8, 32), 3), [0x88FA_C688, 0xC688_FAC6, 0xFAC6_88FA]);
    }

    #[test]
    fn symmetric_zero_words_are_those_of_gptq_files() {
        let zeros = |bits, version| pack_zeros(&[1u8 << (bits - 1); 32], 32, 1, bits, version).unwrap();
        use GptqVersion::{V1, V2};
        assert_eq!(zeros(4, V1), [0x7777_7777; 4]);
        assert_eq!(zeros(4, V2), [0x8888_8888; 4]);
        assert_eq!(zeros(2, V1), [0x5555_5555; 2]);
        assert_eq!(zeros(2, V2), [0xAAAA_AAAA; 2]);
        assert_eq!(zeros(8, V1), [0x7F7F_7F7F; 8]);
        assert_eq!(zeros(8, V2), [0x8080_8080; 8]);
        assert_eq!(zeros(3, V2), [0x2492_4924, 0x4924_9249, 0x9249_2492]);
        assert_eq!(zeros(3, V1), [0xDB6D_B6DB, 0xB6DB_6DB6, 0x6DB6_DB6D]);
    }

    // compressed-tensors stores value + 2^(bits − 1): −8..−1 are the codes 0..8.
    #[test]
    fn words_are_those_of_compressed_tensors() {
        let codes: Vec<u8> = (-8i8..0).map(|value| (value + 8) as u8).collect();
        assert_eq!(pack_rows(&codes, 1, 8, 4).unwrap(), [0x7654_3210]);
    }

    #[test]
    fn version_2_words_are_version_1_words_plus_one_a_field() {
        let zeros: Vec<u8> = (1..16).chain(1..16).chain([8, 8]).collect();
        let v1 = pack_zeros(&zeros, 32, 1, 4, GptqVersion::V1).unwrap();
        let v2 = pack_zeros(&zeros, 32, 1, 4, GptqVersion::V2).unwrap();
        for (v1, v2) in v1.iter().zip(&v2) {
            assert_eq!(v1.wrapping_add(0x1111_1111), *v2);
        }
    }

    #[test]
    fn a_zero_point_of_0_is_refused_in_version_1_and_read_from_it() {
        let mut zeros = [8u8; 16];
        zeros[11] = 0;
        let error = pack_zeros(&zeros, 8, 2, 4, GptqVersion::V1).unwrap_err().to_string();
        assert!(error.contains("row 5 in group 1"), "{error}");
        assert_eq!(unpack_zeros(&[0x7777_777F], 8, 1, 4, GptqVersion::V1).unwrap()[0], 0);
    }

    #[test]
    fn layouts_place_words_as_documented() {
        // Two rows of 16 codes of 4 bits: two words a row.
        let codes: Vec<u8> = (0..16).chain((0..16).rev()).collect();
        let [a, b, c, d] = [0x7654_3210, 0xFEDC_BA98, 0x89AB_CDEF, 0x0123_4567];
        assert_eq!(pack_rows(&codes, 2, 16, 4).unwrap(), [a, b, c, d]);
        assert_eq!(pack_rows_transposed(&codes, 2, 16, 4).unwrap(), [a, c, b, d]);
        let columns = transpose(&codes, 2, 16); // (16, 2): runs go down
        assert_eq!(pack_columns(&columns, 16, 2, 4).unwrap(), [a, c, b, d]);
        assert_eq!(pack_columns_transposed(&columns, 16, 2, 4).unwrap(), [a, b, c, d]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let message = |result: Result<Vec<u32>>| result.unwrap_err().to_string();
        assert_eq!(
            message(pack_rows(&[0; 31], 1, 31, 3)),
            "31 codes of 3 bits do not fill 32-bit words, only a multiple of 32 does"
        );
        assert!(message(pack_rows(&[0; 12], 1, 12, 4)).contains("multiple of 8"));
        assert!(message(pack_zeros(&[1; 12], 12, 1, 4, GptqVersion::V1)).contains("multiple of 8"));
        assert!(message(pack_rows(&[0; 32], 1, 32, 5)).contains("5 bits"));
        assert!(message(pack_rows(&[16; 8], 1, 8, 4)).contains("16 does not fit in 4 bits"));
        assert!(message(pack_rows(&[0; 8], 2, 8, 4)).contains("2 × 8"));
        assert!(unpack_rows(&[0; 3], 1, 16, 4).unwrap_err().to_string().contains("3 words"));
        assert!(pack_rows(&[], 0, 8, 4).unwrap().is_empty());
        assert!(pack_rows(&[], 5, 0, 4).unwrap().is_empty());
    }

    fn matrices() -> impl Strategy<Value = (u32, usize, usize, Vec<u8>)> {
        (proptest::sample::select(&WIDTHS[..]), 1usize..4, 1usize..4).prop_flat_map(|(bits, rows, columns)| {
            let (rows, columns) = (rows * 32, columns * 32);
            let codes = proptest::collection::vec(0..=mask(bits) as u8, rows * columns);
            codes.prop_map(move |codes| (bits, rows, columns, codes))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_layout_round_trips((bits, rows, columns, codes) in matrices()) {
            let words = pack_rows(&codes, rows, columns, bits).unwrap();
            prop_assert_eq!(&words[..columns * bits as usize / 32], naive(&codes[..columns], bits));
            prop_assert_eq!(&unpack_rows(&words, rows, columns, bits).unwrap(), &codes);
            let words = pack_rows_transposed(&codes, rows, columns, bits).unwrap();
            prop_assert_eq!(&unpack_rows_transposed(&words, rows, columns, bits).unwrap(), &codes);
            let words = pack_columns(&codes, rows, columns, bits).unwrap();
            prop_assert_eq!(&unpack_columns(&words, rows, columns, bits).unwrap(), &codes);
            let words = pack_zeros(&codes, rows, columns, bits, GptqVersion::V2).unwrap();
            prop_assert_eq!(&unpack_zeros(&words, rows, columns, bits, GptqVersion::V2).unwrap(), &codes);
            let positive: Vec<u8> = codes.iter().map(|&code| code.max(1)).collect();
            let words = pack_zeros(&positive, rows, columns, bits, GptqVersion::V1).unwrap();
            prop_assert_eq!(&unpack_zeros(&words, rows, columns, bits, GptqVersion::V1).unwrap(), &positive);
        }
    }
}
