//! A model that runs from its pool: rows of its matrices are recovered where they are used, and nowhere kept.
//!
//! What is recovered is, to the bit, what [`expand`](super::expand()) writes: the product with the scale rounded to f32, and
//! then to the tensor's own type. So a model gives the same logits from its pool as expanded, and takes the pool's memory.

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use scruple_weights::{Checkpoint, Dtype, Error as WeightsError, TensorView};

use super::{
    file::{KEY, SharedFile, Target},
    modules::Sharing,
    pool::recover,
};
use crate::{Error, Result, kernel::dispatch};

/// Weights of a transposed matrix recovered at a time: one word of signs.
const SEGMENT: usize = 64;

/// Refuses a `checkpoint` whose tensors share a pool, where something wants them as they are.
///
/// # Errors
/// [`Error::Model`], with the verb that helps.
pub fn expect_no_pool(checkpoint: &Checkpoint) -> Result<()> {
    match checkpoint.metadata().contains_key(KEY) {
        false => Ok(()),
        true => Err(Error::Model(format!(
            "{}: its tensors share a pool and are not there as such; `scruple share expand` writes them out",
            checkpoint.path().display()
        ))),
    }
}

/// The pool of a checkpoint in memory, with what each tensor of it is.
#[derive(Debug)]
pub struct Pool {
    path: PathBuf,
    sharing: Sharing,
    targets: Vec<Target>,
    psi: Vec<f32>,
    psi_dtype: Dtype,
    /// The module that a tensor is, under its own name and those tied to it.
    by_name: HashMap<String, usize>,
}

impl Pool {
    /// The pool of `checkpoint`, if its tensors share one.
    ///
    /// # Errors
    /// As [`SharedFile::open`], and if a number of the pool is not finite.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        match checkpoint.metadata().contains_key(KEY) {
            true => Self::new(&SharedFile::open(checkpoint.path())?).map(Some),
            false => Ok(None),
        }
    }

    /// The pool of `file`.
    ///
    /// # Errors
    /// If a number of it is not finite.
    pub fn new(file: &SharedFile) -> Result<Self> {
        let sharing = file.sharing().clone();
        let own = sharing.modules.iter().enumerate().map(|(at, module)| (module.name.clone(), at));
        let mut by_name: HashMap<String, usize> = own.collect();
        for tied in file.tied() {
            if let Some(&at) = by_name.get(&tied.of) {
                by_name.insert(tied.name.clone(), at);
            }
        }
        let psi = file.pool()?;
        file.release();
        Ok(Self {
            path: file.path().to_path_buf(),
            targets: file.targets().to_vec(),
            psi,
            psi_dtype: file.psi_dtype(),
            by_name,
            sharing,
        })
    }

    /// Whether the tensor `name` is read from the pool.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The tensor `name` of the shape (rows, columns), or of any that has so many rows; none that does not share.
    ///
    /// # Errors
    /// If it has another shape.
    pub fn matrix(self: &Arc<Self>, name: &str, shape: [usize; 2]) -> Result<Option<PooledMatrix>> {
        let Some(&module) = self.by_name.get(name) else { return Ok(None) };
        let found = &self.sharing.modules[module].shape;
        if *found != shape {
            let what = format!("has shape {found:?}, expected {shape:?} from config.json");
            return Err(WeightsError::tensor(&self.path, name, what).into());
        }
        Ok(Some(PooledMatrix { pool: Arc::clone(self), module, rows: shape[0], columns: shape[1] }))
    }

    /// Bytes of the numbers held: what the model's shared tensors take in memory, all together.
    pub fn bytes(&self) -> usize {
        size_of_val(self.psi.as_slice())
    }

    /// The number and the shape of the module that the tensor `name` is.
    pub(super) fn module(&self, name: &str) -> Option<(usize, &[usize])> {
        let &module = self.by_name.get(name)?;
        Some((module, &self.sharing.modules[module].shape))
    }

    /// Weights `first..first + out.len()` of module `module`, as they expand.
    pub(super) fn recover(&self, module: usize, first: usize, out: &mut [f32]) {
        let described = &self.sharing.modules[module];
        recover(&self.sharing.fold, &self.psi, described.scale, described.offset + first, out);
        match self.targets[module].dtype {
            Dtype::F16 => round_f16(out),
            Dtype::Bf16 => round_bf16(out),
            _ => {}
        }
    }
}

/// A matrix that is read from a pool.
#[derive(Debug, Clone)]
pub struct PooledMatrix {
    pool: Arc<Pool>,
    module: usize,
    rows: usize,
    columns: usize,
}

impl PooledMatrix {
    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// The file of the pool.
    pub fn file(&self) -> &Path {
        &self.pool.path
    }

    /// Bits of the pool that are this matrix's part, by weights.
    pub fn storage_bits(&self) -> u64 {
        let fold = &self.pool.sharing.fold;
        let bits = self.pool.psi_dtype.bytes(fold.slots()).unwrap_or(0) as f64 * 8.0;
        (bits * (self.rows * self.columns) as f64 / fold.weights() as f64).round() as u64
    }

    /// Rows `rows` into `out` (rows, columns).
    ///
    /// # Panics
    /// If `out` has another length, or there are no such rows.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.end <= self.rows && out.len() == rows.len() * self.columns, "rows {rows:?} of {}", self.rows);
        self.pool.recover(self.module, rows.start * self.columns, out);
    }

    /// Columns `columns` as rows into `out` (columns, rows): of a matrix whose transpose is asked for.
    ///
    /// # Panics
    /// If `out` has another length, or there are no such columns.
    pub fn read_columns(&self, columns: Range<usize>, out: &mut [f32]) {
        assert!(columns.end <= self.columns && out.len() == columns.len() * self.rows, "columns {columns:?}");
        let mut segment = [0.0; SEGMENT];
        for first in columns.clone().step_by(SEGMENT) {
            let segment = &mut segment[..SEGMENT.min(columns.end - first)];
            for row in 0..self.rows {
                self.pool.recover(self.module, row * self.columns + first, segment);
                for (at, value) in segment.iter().enumerate() {
                    out[(first - columns.start + at) * self.rows + row] = *value;
                }
            }
        }
    }
}

/// Rows that are looked up one by one: of a tensor of a file, or of a pool.
#[derive(Debug)]
pub enum Table {
    /// As it lies in the file.
    Stored(TensorView),
    /// Of a pool.
    Pooled(PooledMatrix),
}

impl Table {
    /// (rows, columns).
    pub fn rows(&self) -> (usize, usize) {
        match self {
            Self::Stored(view) => view.rows(),
            Self::Pooled(matrix) => matrix.shape(),
        }
    }

    /// The file it comes from.
    pub fn file(&self) -> &Path {
        match self {
            Self::Stored(view) => view.file(),
            Self::Pooled(matrix) => matrix.file(),
        }
    }

    /// Row `row` into `out`.
    ///
    /// # Errors
    /// If the row is not there or cannot be decoded.
    ///
    /// # Panics
    /// If `out` has another length than a row.
    pub fn read_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Stored(view) => Ok(view.read_rows(row..row + 1, out)?),
            Self::Pooled(matrix) if row < matrix.rows => {
                matrix.read_rows(row..row + 1, out);
                Ok(())
            }
            Self::Pooled(matrix) => {
                Err(Error::Model(format!("{}: row {row} of a table of {}", matrix.file().display(), matrix.rows)))
            }
        }
    }
}

dispatch! { fn round_f16(values: &mut [f32]) = round_f16_body }
dispatch! { fn round_bf16(values: &mut [f32]) = round_bf16_body }

/// To the nearest f16, ties to even, without branches: normal numbers by dropping 13 bits, smaller ones by adding a number
/// whose last bit is theirs.
#[inline(always)]
fn round_f16_body(values: &mut [f32]) {
    const LEAST_NORMAL: f32 = 6.103_515_6e-5; // 2⁻¹⁴
    const BEYOND: f32 = 65_520.0; // halfway from the largest number to the next there would be
    for value in values {
        let bits = value.to_bits();
        let size = f32::from_bits(bits & 0x7fff_ffff);
        let rest = size.to_bits();
        let normal = f32::from_bits((rest + 0xfff + (rest >> 13 & 1)) & !0x1fff);
        let small = (size + 0.75) - 0.75; // the last bit of 0.75 is 2⁻²⁴
        let rounded = if size < LEAST_NORMAL { small } else { normal };
        let rounded = if size >= BEYOND { f32::INFINITY } else { rounded };
        *value = f32::from_bits(rounded.to_bits() | bits & 0x8000_0000);
    }
}

#[inline(always)]
fn round_bf16_body(values: &mut [f32]) {
    for value in values {
        let bits = value.to_bits();
        *value = f32::from_bits((bits.wrapping_add(0x7fff + (bits >> 16 & 1))) & 0xffff_0000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sharing::file::rounded;

    #[test]
    fn rounding_is_that_of_the_files() {
        // Every bit pattern's neighbourhood: all exponents, and mantissas about the halves that decide.
        let mut values = Vec::new();
        for exponent in 0..=254u32 {
            for high in [0u32, 1, 0x155, 0x200, 0x3fe, 0x3ff] {
                for low in [0u32, 1, 0xfff, 0x1000, 0x1001, 0x1fff] {
                    let bits = exponent << 23 | high << 13 | low;
                    values.extend([f32::from_bits(bits), -f32::from_bits(bits)]);
                }
            }
        }
        for (dtype, round, plain) in [
            (Dtype::F16, round_f16 as fn(&mut [f32]), round_f16_body as fn(&mut [f32])),
            (Dtype::Bf16, round_bf16, round_bf16_body),
        ] {
            let (mut found, mut slow) = (values.clone(), values.clone());
            round(&mut found);
            plain(&mut slow);
            for ((value, found), slow) in values.iter().zip(&found).zip(&slow) {
                let expected = rounded(dtype, *value);
                assert_eq!(found.to_bits(), expected.to_bits(), "{value:e} as {dtype}");
                assert_eq!(found.to_bits(), slow.to_bits());
            }
        }
    }
}
