//! What calibration needs: token sequences, and the activations they become, kept on disk as bf16 while the model is
//! walked through block by block.

use std::{fs::File, ops::Range, os::unix::fs::FileExt, path::Path, path::PathBuf};

use half::{bf16, slice::HalfFloatSliceExt};
use sha2::{Digest, Sha256};

use candle_core::Tensor;

mod documents;

pub use documents::{Document, read as read_documents};

use crate::{
    Error, Result,
    data::random::Stream,
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

/// Which sequences are taken of the documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sampling {
    /// Sequences are drawn at random by this seed; without one they are the first.
    pub seed: Option<u64>,
    /// Every sequence comes from one document, cut to length, and shorter documents are passed over; otherwise documents
    /// are laid end to end.
    pub whole_documents: bool,
}

impl CalibrationSet {
    /// `n_samples` sequences of `seq_len` tokens of tokenised documents, which are laid end to end with `between` (such as
    /// the end-of-text token) after each but the last, or taken one by one.
    ///
    /// # Errors
    /// As [`Self::from_ids`]; and if no document is as long as a sequence, where each must fill one.
    pub fn from_documents(
        documents: Vec<Vec<u32>>,
        between: Option<u32>,
        source: &Path,
        (n_samples, seq_len): (usize, usize),
        sampling: Sampling,
    ) -> Result<Self> {
        if !sampling.whole_documents {
            let mut ids = Vec::with_capacity(documents.iter().map(Vec::len).sum());
            let last = documents.len().saturating_sub(1);
            for (number, document) in documents.into_iter().enumerate() {
                ids.extend(document);
                ids.extend(between.filter(|_| number < last));
            }
            let windows = ids.len() / seq_len.max(1);
            return match sampling.seed {
                Some(seed) if windows > n_samples => {
                    let chosen = draw(windows, n_samples, seed);
                    let ids = chosen.into_iter().flat_map(|window| ids[window * seq_len..][..seq_len].to_vec());
                    Self::from_ids(ids.collect(), source, n_samples, seq_len)
                }
                _ => Self::from_ids(ids, source, n_samples, seq_len),
            };
        }
        let longest = documents.iter().map(Vec::len).max().unwrap_or(0);
        let mut long: Vec<Vec<u32>> = documents.into_iter().filter(|document| document.len() >= seq_len).collect();
        if long.is_empty() {
            return Err(Error::Text(format!(
                "{}: no document has {seq_len} tokens, the longest has {longest}; give a smaller sequence length, or let \
                 documents be laid end to end",
                source.display()
            )));
        }
        if let Some(seed) = sampling.seed {
            let chosen = draw(long.len(), n_samples.min(long.len()), seed);
            let mut offsets = Stream::new(seed, "calibration offset", 0);
            long = chosen
                .into_iter()
                .map(|number| {
                    let first = offsets.below(long[number].len() - seq_len + 1);
                    long[number][first..][..seq_len].to_vec()
                })
                .collect();
        }
        long.iter_mut().for_each(|document| document.truncate(seq_len));
        Self::from_ids(long.concat(), source, n_samples, seq_len)
    }

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
        let digest = digest(&ids);
        Ok(Self { ids, seq_len, asked: n_samples, digest })
    }

    /// The same sequences with `before` and `after` around each, as an encoder's tokenizer puts special tokens around a
    /// text.
    pub fn framed(self, before: &[u32], after: &[u32]) -> Self {
        let ids: Vec<u32> = self.ids.chunks(self.seq_len).flat_map(|ids| [before, ids, after].concat()).collect();
        let digest = digest(&ids);
        Self { ids, digest, seq_len: self.seq_len + before.len() + after.len(), ..self }
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

/// SHA-256 of token ids (u32, little endian).
fn digest(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    scruple_weights::digest::sha256(&bytes)
}

/// `count` different numbers below `n`, in the order drawn (Fisher and Yates).
fn draw(n: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..n).collect();
    let mut stream = Stream::new(seed, "calibration", 0);
    for at in 0..count {
        let other = at + stream.below(n - at);
        numbers.swap(at, other);
    }
    numbers.truncate(count);
    numbers
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

#[cfg(test)]
mod tests {
    use super::*;

    fn set(lengths: &[(u32, u32)], shape: (usize, usize), sampling: Sampling) -> Result<CalibrationSet> {
        let documents = lengths.iter().map(|&(first, end)| (first..end).collect()).collect();
        CalibrationSet::from_documents(documents, Some(99), Path::new("t.jsonl"), shape, sampling)
    }

    #[test]
    fn documents_are_laid_end_to_end_with_a_token_between() {
        let first = Sampling::default();
        assert_eq!(set(&[(0, 3), (10, 12), (20, 30)], (2, 4), first).unwrap().ids, [0, 1, 2, 99, 10, 11, 99, 20]);
        assert_eq!(set(&[(0, 3)], (1, 3), first).unwrap().ids, [0, 1, 2]);
        assert!(set(&[(0, 3)], (1, 4), first).unwrap_err().to_string().contains("3 tokens"));
    }

    #[test]
    fn a_seed_draws_other_windows_and_the_same_again() {
        let drawn = |seed| set(&[(0, 90)], (4, 5), Sampling { seed, whole_documents: false }).unwrap().ids;
        let (a, b) = (drawn(Some(1)), drawn(Some(2)));
        assert_eq!(a, drawn(Some(1)));
        assert_ne!(a, b);
        assert_ne!(a, drawn(None));
        for ids in [a, b] {
            let starts: std::collections::BTreeSet<u32> = ids.chunks(5).map(|window| window[0]).collect();
            assert_eq!(starts.len(), 4, "no window is drawn twice");
            assert!(ids.chunks(5).all(|window| window.windows(2).all(|pair| pair[1] == pair[0] + 1)));
        }
        // Fewer windows than were asked for: all of them, whatever the seed.
        assert_eq!(set(&[(0, 12)], (4, 5), Sampling { seed: Some(1), whole_documents: false }).unwrap().n_samples(), 2);
    }

    #[test]
    fn whole_documents_fill_a_sequence_each() {
        let sampling = Sampling { seed: None, whole_documents: true };
        assert_eq!(set(&[(0, 3), (10, 15), (20, 27)], (5, 4), sampling).unwrap().ids, [10, 11, 12, 13, 20, 21, 22, 23]);
        let seeded = set(&[(0, 3), (10, 15), (20, 90)], (1, 4), Sampling { seed: Some(3), ..sampling }).unwrap();
        assert!(seeded.ids.windows(2).all(|pair| pair[1] == pair[0] + 1) && seeded.ids[0] >= 10);
        let error = set(&[(0, 3)], (1, 4), sampling).unwrap_err().to_string();
        assert!(error.contains("t.jsonl") && error.contains("longest has 3"), "{error}");
    }
}
