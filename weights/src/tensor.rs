//! A tensor on disk, decoded to f32 by rows.

use std::{ops::Range, path::Path};

use crate::{Dtype, Result, Shard};

/// One tensor of a checkpoint: a name, a type, a shape, and bytes in a mapped file. Cheap to clone; reads nothing until
/// asked. The bytes' length was checked against type and shape when the checkpoint was opened.
#[derive(Debug, Clone)]
pub struct TensorView {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
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

    /// Gives its resident pages back to the system.
    pub fn release(&self) {
        self.shard.release(self.range.clone());
    }

    /// Decodes rows `rows` into `out` (rows.len() × row length, f32).
    ///
    /// # Errors
    /// If the rows lie outside the tensor, or `out` has another length.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let _ = (rows, out);
        todo!("helper: decode every dtype; ggml blocks through format::gguf::dequantize")
    }

    /// Decodes the whole tensor to f32.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.elements()];
        self.read_rows(0..self.rows().0, &mut out)?;
        Ok(out)
    }
}
