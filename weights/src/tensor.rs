//! A tensor on disk, decoded to f32 by rows.

use std::{ops::Range, path::Path, sync::Arc};

use half::bf16;

use crate::{Dtype, Error, Result, Shard, decode, digest};

/// One tensor of a checkpoint: a name, a type, a shape, and bytes in a mapped file. Cheap to clone; reads nothing until
/// asked. The bytes' length was checked against type and shape when the checkpoint was opened, and so was that the rows
/// of a blocked type are whole blocks.
#[derive(Debug, Clone)]
pub struct TensorView {
    pub(crate) name: Arc<str>,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Arc<[usize]>,
    pub(crate) shard: Shard,
    pub(crate) range: Range<usize>,
}

impl TensorView {
    /// The tensor's name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its element type on disk.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its shape, slowest dimension first: a linear weight is (out_features, in_features).
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The file it lies in.
    pub fn file(&self) -> &Path {
        self.shard.path()
    }

    /// Its bytes, as they lie on disk (little endian, not necessarily aligned).
    pub fn bytes(&self) -> &[u8] {
        &self.shard.bytes()[self.range.clone()]
    }

    /// Copies bytes `start..` of the tensor into `out`, by reading its file: where every byte is looked at once, and soon,
    /// this is cheaper than the map.
    ///
    /// # Errors
    /// As [`Shard::read_at`].
    ///
    /// # Panics
    /// If the tensor ends before `out` is full.
    pub fn read_at(&self, start: usize, out: &mut [u8]) -> Result<()> {
        assert!(start + out.len() <= self.range.len(), "bytes beyond tensor `{}`", self.name);
        self.shard.read_at(self.range.start + start, out)
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// (rows, row length): all dimensions but the last, and the last. A scalar is (1, 1), a vector (1, n).
    pub fn rows(&self) -> (usize, usize) {
        match self.shape.split_last() {
            None => (1, 1),
            Some((&last, rest)) => (rest.iter().product(), last),
        }
    }

    /// Tells the system that this tensor is read next.
    pub fn will_need(&self) {
        self.shard.will_need(self.range.clone());
    }

    /// Gives its resident pages back to the system.
    pub fn release(&self) {
        self.shard.release(self.range.clone());
    }

    /// A fault of this tensor, for whoever finds that it cannot be used as intended: `what` follows the file's and the
    /// tensor's name.
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::tensor(self.file(), self.name(), what)
    }

    /// Decodes rows `rows` into `out` (rows.len() × row length, f32). Integers are converted to the nearest f32, a
    /// bool is 0 or 1.
    ///
    /// # Errors
    /// If the rows lie outside the tensor, or `out` has another length.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let bytes = self.row_bytes(rows, out.len())?;
        decode::to_f32(self.dtype, bytes, out).map_err(|what| self.error(what))
    }

    /// Decodes rows `rows` into `out` (rows.len() × row length, bf16), rounding to nearest even. A bf16 tensor is
    /// copied bit for bit.
    ///
    /// # Errors
    /// As [`read_rows`](Self::read_rows).
    pub fn read_rows_bf16(&self, rows: Range<usize>, out: &mut [bf16]) -> Result<()> {
        let bytes = self.row_bytes(rows, out.len())?;
        decode::to_bf16(self.dtype, bytes, out).map_err(|what| self.error(what))
    }

    /// Decodes the whole tensor to f32.
    ///
    /// # Errors
    /// As [`read_rows`](Self::read_rows).
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.elements()];
        self.read_rows(0..self.rows().0, &mut out)?;
        Ok(out)
    }

    /// The first element that is not a finite f32 (NaN, infinite, or an f64 too large): its index in the flattened
    /// tensor and its value. `None` for integers and bools.
    pub fn nonfinite(&self) -> Option<(usize, f32)> {
        decode::nonfinite(self.dtype, self.bytes())
    }

    /// The SHA-256 of its bytes, in hexadecimal.
    pub fn sha256(&self) -> String {
        digest::sha256(self.bytes())
    }

    /// The bytes of `rows`, after checking them against the tensor and the output's length.
    fn row_bytes(&self, rows: Range<usize>, out: usize) -> Result<&[u8]> {
        let (count, len) = self.rows();
        if rows.start > rows.end || rows.end > count {
            return Err(self.error(format!("has {count} rows, asked for rows {}..{}", rows.start, rows.end)));
        }
        let elements = rows.len() * len; // at most the elements of the tensor, which do not overflow
        if out != elements {
            return Err(self.error(format!(
                "has {elements} elements in rows {}..{}, the output has room for {out}",
                rows.start, rows.end
            )));
        }
        let offset = |row: usize| self.dtype.bytes(row * len);
        match (offset(rows.start), offset(rows.end)) {
            (Some(start), Some(end)) => Ok(&self.bytes()[start..end]),
            _ => Err(self.error(format!("has rows of {len} elements, which are no whole {} blocks", self.dtype))),
        }
    }
}
