//! What calibration needs: token sequences, and the activations they become, kept on disk as bf16 while the model is
//! walked through block by block.

use std::{fs::File, ops::Range, os::unix::fs::FileExt, path::Path, path::PathBuf};

use half::{bf16, slice::HalfFloatSliceExt};
use sha2::{Digest, Sha256};

use candle_core::Tensor;

use crate::{
    Error, Result,
    kernel::tensor::{from_vec, with_f32},
};

/// Token sequences of one length, and where they come from.
#[derive(Debug, Clone)]
pub struct CalibrationSet {
    /// Tokens, (n_samples · seq_len).
    pub ids: Vec<u32>,
    /// Length of a sequence.
    pub seq_len: usize,
    /// Samples asked for; fewer are held where the text is short.
    pub asked: usize,
    /// SHA-256 of the ids (u32, little endian).
    pub digest: String,
}

impl CalibrationSet {
    /// The first `n_samples` sequences of `seq_len` tokens of a tokenised text.
    ///
    /// # Errors
    /// If the text is shorter than one sequence.
    pub fn from_ids(mut ids: Vec<u32>, source: &Path, n_samples: usize, seq_len: usize) -> Result<Self> {
        if n_samples == 0 || seq_len < 2 {
            return Err(Error::Recipe(format!(
                "calibration needs at least 1 sequence of at least 2 tokens, found {n_samples} of {seq_len}"
            )));
        }
        let held = (ids.len() / seq_len).min(n_samples);
        if held == 0 {
            return Err(Error::Text(format!(
                "{}: the calibration text has {} tokens, shorter than one sequence of {seq_len}; give a longer text or a \
                 smaller sequence length",
                source.display(),
                ids.len()
            )));
        }
        ids.truncate(held * seq_len);
        let mut hash = Sha256::new();
        for id in &ids {
            hash.update(id.to_le_bytes());
        }
        let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { ids, seq_len, asked: n_samples, digest })
    }

    /// Sequences held.
    pub fn n_samples(&self) -> usize {
        self.ids.len() / self.seq_len
    }

    /// Tokens held.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}

/// Activations of all calibration tokens, (tokens, width), as bf16 in a file read and written by rows: the page cache
/// holds them where there is room, the process does not.
#[derive(Debug)]
pub struct ActivationStore {
    path: PathBuf,
    file: File,
    width: usize,
}

impl ActivationStore {
    /// Opens or creates the file at `path` for rows of `width`.
    pub fn open(path: PathBuf, width: usize) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| scruple_weights::Error::io(&path, "create the activations file", source))?;
        Ok(Self { path, file, width })
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes the store takes for `tokens` rows of `width`.
    pub fn bytes(tokens: usize, width: usize) -> u64 {
        (tokens * width * size_of::<bf16>()) as u64
    }

    /// Writes `x` (rows, width) at row `first`, rounded to bf16.
    pub fn write(&self, first: usize, x: &Tensor) -> Result<()> {
        with_f32(x, |x| {
            let mut rounded = vec![bf16::ZERO; x.len()];
            rounded.convert_from_f32_slice(x);
            let offset = (first * self.width * size_of::<bf16>()) as u64;
            self.file.write_all_at(bytemuck::cast_slice(&rounded), offset).map_err(|source| {
                let bytes = rounded.len() * size_of::<bf16>();
                scruple_weights::Error::write(
                    &self.path,
                    format!("write {bytes} bytes of activations"),
                    bytes as u64,
                    source,
                )
            })
        })??;
        Ok(())
    }

    /// Rows `rows`, (rows, width) f32.
    pub fn read(&self, rows: Range<usize>) -> Result<Tensor> {
        let mut stored = vec![bf16::ZERO; rows.len() * self.width];
        let offset = (rows.start * self.width * size_of::<bf16>()) as u64;
        self.file
            .read_exact_at(bytemuck::cast_slice_mut(&mut stored), offset)
            .map_err(|source| scruple_weights::Error::io(&self.path, "read activations", source))?;
        let mut values = vec![0.0f32; stored.len()];
        stored.convert_to_f32_slice(&mut values);
        from_vec(values, (rows.len(), self.width))
    }

    /// SHA-256 of the first `tokens` rows: recorded with each finished block, checked when a run is resumed.
    pub fn digest(&self, tokens: usize) -> Result<String> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0u8; 1 << 20];
        let (mut offset, end) = (0, Self::bytes(tokens, self.width));
        while offset < end {
            let n = buffer.len().min((end - offset) as usize);
            self.file
                .read_exact_at(&mut buffer[..n], offset)
                .map_err(|source| scruple_weights::Error::io(&self.path, "read activations", source))?;
            hash.update(&buffer[..n]);
            offset += n as u64;
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}
