//! Round to nearest straight into packed words: quantises a stored weight a group at a time, without an unpacked copy.
//!
//! The results are bit for bit those of [`crate::grid::round_to_nearest`] followed by [`crate::pack::pack_rows`], and what
//! was lost is summed on the way as [`row_loss`] does; buffers are the caller's and are used again, since fresh pages cost
//! more than the arithmetic.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;
use scruple_weights::{Dtype, TensorView};

use super::loss::{Loss, row_loss};
use crate::grid::{self, GridSpec, ScaleDtype, Search};
use crate::pack;
use crate::{Error, Result};

#[cfg(target_arch = "x86_64")]
mod avx512;

/// A weight as stored, (out_features, in_features).
#[derive(Debug, Clone, Copy)]
pub enum Stored<'a> {
    /// bf16, widened exactly.
    Bf16(&'a [bf16]),
    /// f16, widened exactly.
    F16(&'a [f16]),
    /// f32.
    F32(&'a [f32]),
}

impl<'a> Stored<'a> {
    fn len(self) -> usize {
        match self {
            Self::Bf16(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    fn part(self, from: usize, len: usize) -> Stored<'a> {
        match self {
            Self::Bf16(values) => Self::Bf16(&values[from..][..len]),
            Self::F16(values) => Self::F16(&values[from..][..len]),
            Self::F32(values) => Self::F32(&values[from..][..len]),
        }
    }
}

/// Where the rows of a weight come from.
pub trait Rows: Sync {
    /// (out_features, in_features).
    fn shape(&self) -> (usize, usize);

    /// The rows of that range, in `buffer` if they have to be put somewhere.
    ///
    /// # Errors
    /// If they cannot be read.
    fn rows<'a>(&'a self, rows: Range<usize>, buffer: &'a mut Vec<u64>) -> Result<Stored<'a>>;
}

/// A weight in memory, with its row length.
impl Rows for (Stored<'_>, usize) {
    fn shape(&self) -> (usize, usize) {
        let (weight, in_features) = self;
        (weight.len().checked_div(*in_features).unwrap_or(0), *in_features)
    }

    fn rows<'a>(&'a self, rows: Range<usize>, _: &'a mut Vec<u64>) -> Result<Stored<'a>> {
        let (weight, in_features) = self;
        Ok(weight.part(rows.start * in_features, rows.len() * in_features))
    }
}

/// A matrix in a file, of a type that [`Stored`] has; each thread reads what it is about to pack, so that the values are
/// in its cache when they are looked at.
#[derive(Debug, Clone, Copy)]
pub struct InFile<'a>(&'a TensorView);

impl<'a> InFile<'a> {
    /// The matrix `view`; `None` where its type is another.
    pub fn of(view: &'a TensorView) -> Option<Self> {
        let stored = matches!(view.dtype(), Dtype::Bf16 | Dtype::F16 | Dtype::F32);
        (stored && cfg!(target_endian = "little")).then_some(Self(view))
    }
}

impl Rows for InFile<'_> {
    fn shape(&self) -> (usize, usize) {
        self.0.rows()
    }

    fn rows<'a>(&'a self, rows: Range<usize>, buffer: &'a mut Vec<u64>) -> Result<Stored<'a>> {
        let Self(view) = self;
        let size = if view.dtype() == Dtype::F32 { 4 } else { 2 };
        let row = size * view.rows().1;
        let bytes = row * rows.len();
        buffer.resize(bytes.div_ceil(8), 0);
        let bytes = &mut bytemuck::cast_slice_mut(buffer)[..bytes];
        view.read_at(row * rows.start, bytes)?;
        Ok(match view.dtype() {
            Dtype::F32 => Stored::F32(bytemuck::cast_slice(bytes)),
            Dtype::F16 => Stored::F16(bytemuck::cast_slice(bytes)),
            _ => Stored::Bf16(bytemuck::cast_slice(bytes)),
        })
    }
}

/// A packed weight; make one and use it for many.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Packed {
    /// (out_features, in_features · bits / 32), lowest bits first along the input.
    pub words: Vec<u32>,
    /// The bits of f16 or bf16 scales, (out_features, groups).
    pub scales: Vec<u16>,
    /// Zero points, (out_features, groups), unpacked.
    pub zeros: Vec<u8>,
    /// What each row lost, (out_features).
    pub losses: Vec<Loss>,
}

impl Packed {
    /// What the whole weight lost: the rows' sums, first to last.
    pub fn loss(&self) -> Loss {
        self.losses.iter().copied().sum()
    }
}

/// Rows one thread takes at once.
const ROWS: usize = 16;

/// Quantises `weight` (out_features, in_features) to the nearest points of its groups' grids and packs the codes along the
/// input into `out`, whose buffers are used again.
///
/// # Errors
/// What [`crate::grid::round_to_nearest`] and [`crate::pack::pack_rows`] refuse, f32 scales, and what `weight` has.
pub fn rtn_pack(weight: &impl Rows, spec: &GridSpec, out: &mut Packed) -> Result<()> {
    let (out_features, in_features) = weight.shape();
    let group_size = spec.group_size_for(in_features)?;
    let words = pack::words_for(in_features, spec.bits)?;
    if spec.scale_dtype == ScaleDtype::F32 {
        return Err(Error::Recipe("packed scales are F16 or BF16, not F32".to_owned()));
    }
    let groups = in_features / group_size.max(1);
    out.words.resize(out_features * words, 0);
    out.scales.resize(out_features * groups, 0);
    out.zeros.resize(out_features * groups, 0);
    out.losses.resize(out_features, Loss::default());
    if out.words.is_empty() {
        return Ok(());
    }
    let failed = out
        .words
        .par_chunks_mut(ROWS * words)
        .zip(out.scales.par_chunks_mut(ROWS * groups).zip(out.zeros.par_chunks_mut(ROWS * groups)))
        .zip(out.losses.par_chunks_mut(ROWS))
        .enumerate()
        .map_init(Kept::default, |scratch, (chunk, ((word_rows, (scale_rows, zero_rows)), losses))| {
            let rows = word_rows.chunks_exact_mut(words);
            let grids = scale_rows.chunks_exact_mut(groups).zip(zero_rows.chunks_exact_mut(groups));
            let first = chunk * ROWS;
            let (rows_here, stored) = (losses.len(), &mut scratch.stored);
            let weight = match weight.rows(first..first + rows_here, stored) {
                Ok(weight) => weight,
                Err(error) => return Some(error),
            };
            let rows = rows.zip(grids).zip(losses).enumerate();
            for (within, ((words, (scales, zeros)), loss)) in rows {
                let values = weight.part(within * in_features, in_features);
                match pack_row(values, group_size, spec, &mut scratch.room, words, scales, zeros) {
                    Ok(lost) => *loss = lost,
                    Err((group, cause)) => {
                        let row = first + within;
                        return Some(Error::Numeric(format!("row {row}, group {group}: {cause}")));
                    }
                }
            }
            None
        })
        .find_first(Option::is_some);
    match failed.flatten() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// What a thread keeps from chunk to chunk.
#[derive(Default)]
struct Kept {
    stored: Vec<u64>,
    room: Scratch,
}

/// Room for a row on the general path.
#[derive(Default)]
struct Scratch {
    values: Vec<f32>,
    codes: Vec<u8>,
    /// What the codes stand for.
    back: Vec<f32>,
}

/// One row: what it lost, or the group that fails.
fn pack_row(
    weight: Stored<'_>,
    group_size: usize,
    spec: &GridSpec,
    scratch: &mut Scratch,
    words: &mut [u32],
    scales: &mut [u16],
    zeros: &mut [u8],
) -> Result<Loss, (usize, Error)> {
    #[cfg(target_arch = "x86_64")]
    if spec.bits == 4
        && spec.search == Search::None
        && group_size.is_multiple_of(avx512::STEP)
        && super::isa() == super::Isa::Avx512
        && let Some(loss) = pack_row_avx512(weight, group_size, spec, words, scales, zeros)
    {
        return Ok(loss);
    }
    let wide = match weight {
        Stored::F32(values) => values,
        Stored::Bf16(values) => {
            scratch.values.resize(values.len(), 0.0);
            super::gemm::widen_bf16(values, &mut scratch.values);
            &scratch.values
        }
        Stored::F16(values) => {
            scratch.values.resize(values.len(), 0.0);
            half::slice::HalfFloatSliceExt::convert_to_f32_slice(values, &mut scratch.values);
            &scratch.values
        }
    };
    // Groups need not fill words here; rows do.
    scratch.codes.resize(wide.len(), 0);
    scratch.back.resize(wide.len(), 0.0);
    let max_code = spec.max_code();
    for group in 0..scales.len() {
        let columns = group * group_size..(group + 1) * group_size;
        let (scale, zero) = grid::fit_group(&wide[columns.clone()], spec).map_err(|cause| (group, cause))?;
        let codes = &mut scratch.codes[columns.clone()];
        grid::quantize_group(&wide[columns.clone()], scale, zero, max_code, codes);
        grid::dequantize_group(codes, scale, zero, &mut scratch.back[columns]);
        scales[group] = bits_of(scale, spec.scale_dtype);
        zeros[group] = zero;
    }
    pack::pack_run(&scratch.codes, spec.bits, words);
    Ok(row_loss(&scratch.back, wide))
}

/// One row of 4 bits whose groups are whole steps; `None` where a group cannot be coded, which the general path names.
#[cfg(target_arch = "x86_64")]
fn pack_row_avx512(
    weight: Stored<'_>,
    group_size: usize,
    spec: &GridSpec,
    words: &mut [u32],
    scales: &mut [u16],
    zeros: &mut [u8],
) -> Option<Loss> {
    use avx512::{BF16, F16, F32};
    let mut sums = avx512::Sums::default();
    for first in (0..scales.len()).step_by(avx512::GROUPS) {
        let groups = avx512::GROUPS.min(scales.len() - first);
        let values = weight.part(first * group_size, groups * group_size);
        let out = avx512::Out {
            words: &mut words[first * group_size / 8..][..groups * group_size / 8],
            scales: &mut scales[first..first + groups],
            zeros: &mut zeros[first..first + groups],
        };
        // SAFETY: AVX-512 was detected; `values` are whole steps a group, and `out` has room for them.
        unsafe {
            match values {
                Stored::Bf16(values) => avx512::groups::<BF16>(values.as_ptr().cast(), spec, out, &mut sums)?,
                Stored::F16(values) => avx512::groups::<F16>(values.as_ptr().cast(), spec, out, &mut sums)?,
                Stored::F32(values) => avx512::groups::<F32>(values.as_ptr().cast(), spec, out, &mut sums)?,
            }
        }
    }
    Some(sums.loss())
}

/// The bits of a scale that is already a value of `dtype`.
fn bits_of(scale: f32, dtype: ScaleDtype) -> u16 {
    match dtype {
        ScaleDtype::F16 => f16::from_f32(scale).to_bits(),
        _ => (scale.to_bits() >> 16) as u16,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::test_values::uniform;
    use super::*;

    fn assert_equals_the_general_path(values: &[f32], rows: usize, columns: usize, spec: &GridSpec) {
        let narrow: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
        let wide: Vec<f32> = narrow.iter().map(|value| value.to_f32()).collect();
        let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
        let of_halves: Vec<f32> = halves.iter().map(|value| value.to_f32()).collect();
        let all = [(Stored::F32(values), values), (Stored::Bf16(&narrow), &wide), (Stored::F16(&halves), &of_halves)];
        for (stored, values) in all {
            let expected = grid::round_to_nearest(values, rows, columns, spec).unwrap();
            let mut out = Packed { words: vec![7; 3], scales: vec![7; 1], zeros: vec![7; 9], losses: Vec::new() };
            rtn_pack(&(stored, columns), spec, &mut out).unwrap();
            let losses: Vec<Loss> = expected
                .dequantize()
                .chunks_exact(columns)
                .zip(values.chunks_exact(columns))
                .map(|(back, values)| row_loss(back, values))
                .collect();
            assert_eq!(out.losses, losses);
            assert_eq!(out.words, pack::pack_rows(&expected.codes, rows, columns, spec.bits).unwrap());
            assert_eq!(out.zeros, expected.zeros);
            let scales: Vec<f32> = out
                .scales
                .iter()
                .map(|&bits| match spec.scale_dtype {
                    ScaleDtype::F16 => f16::from_bits(bits).to_f32(),
                    _ => bf16::from_bits(bits).to_f32(),
                })
                .collect();
            assert_eq!(scales, expected.scales);
        }
    }

    proptest! {
        #[test]
        fn packs_what_the_general_path_does(
            bits in proptest::sample::select(vec![2u32, 3, 4, 8]),
            group_size in proptest::sample::select(vec![0usize, 32, 48, 64, 96, 128, 192]),
            symmetric: bool,
            f16: bool,
            search in 0u8..4,
            magnitude in proptest::sample::select(vec![1e-30f32, 1e-9, 1e-3, 1.0, 1e4]),
            shift in -1i8..2,
            rows in 1usize..20,
            seed: u64,
        ) {
            let columns = 384;
            let values: Vec<f32> = uniform(rows * columns, seed)
                .into_iter()
                .enumerate()
                .map(|(i, x)| if i / columns % 5 == 4 { 0.0 } else { magnitude * (x.powi(3) + f32::from(shift)) })
                .collect();
            let spec = GridSpec {
                bits,
                group_size,
                symmetric,
                scale_dtype: if f16 { ScaleDtype::F16 } else { ScaleDtype::Bf16 },
                search: if search == 0 { Search::Mse } else { Search::None },
            };
            assert_equals_the_general_path(&values, rows, columns, &spec);
        }
    }

    #[test]
    fn refuses_what_the_general_path_does_in_the_same_words() {
        let spec =
            GridSpec { bits: 4, group_size: 64, symmetric: true, scale_dtype: ScaleDtype::F16, search: Search::None };
        for sick in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
            let mut values = uniform(3 * 128, 1);
            values[2 * 128 + 70] = sick;
            let expected = grid::round_to_nearest(&values, 3, 128, &spec).unwrap_err().to_string();
            let mut out = Packed::default();
            let found = rtn_pack(&(Stored::F32(&values), 128), &spec, &mut out).unwrap_err().to_string();
            assert_eq!(found, expected);
            let narrow: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
            let found = rtn_pack(&(Stored::Bf16(&narrow), 128), &spec, &mut out).unwrap_err().to_string();
            assert!(found.starts_with("row 2, group 1: "), "{found}");
        }
        let f32_scales = GridSpec { scale_dtype: ScaleDtype::F32, ..spec };
        assert!(rtn_pack(&(Stored::F32(&[0.0; 64]), 64), &f32_scales, &mut Packed::default()).is_err());
        let ragged = GridSpec { group_size: 0, ..spec };
        assert!(rtn_pack(&(Stored::F32(&[0.0; 60]), 60), &ragged, &mut Packed::default()).is_err());
    }
}
