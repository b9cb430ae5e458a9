//! Containers: one file that holds several tensors. A container yields names, types, shapes and bytes, all of them
//! checked, so that whoever holds a [`TensorView`] may slice the file without a further thought.
//!
//! [`FORMATS`] lists every container that is read. A file is recognised by what it holds, not by what it is called: a
//! name is only asked where the content says nothing, and then for a better sentence. Adding a container is one module
//! and one line in that list.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use serde_json::Value;

use crate::{Dtype, Error, Result, Shard, TensorView};

mod foreign;
pub mod gguf;
pub mod hdf5;
pub mod llama2c;
pub mod numpy;
pub mod onnx;
pub mod safetensors;
pub mod torch;
pub mod traineddata;
pub mod zip;

pub(crate) use foreign::foreign;

/// One tensor of a container. `range` lies inside the file and is exactly as long as `dtype` and `shape` demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The tensor's name.
    pub name: Arc<str>,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, slowest dimension first.
    pub shape: Arc<[usize]>,
    /// Where its bytes lie, counted from the start of the file.
    pub range: Range<usize>,
}

/// String metadata of a container.
pub type Metadata = BTreeMap<String, String>;

/// What one file holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Its tensors. Their bytes lie in the mapped file where the file holds them as a tensor does (rows first, little
    /// endian, not compressed), and in memory otherwise.
    pub tensors: Vec<TensorView>,
    /// What it says about itself, and what the reader looked through or left out.
    pub metadata: Metadata,
    /// Other files that its tensors lie in.
    pub parts: Vec<Shard>,
    /// The model's configuration as its `config.json` would say it, where the file states it.
    pub config: Option<Value>,
}

/// A container that is read.
#[derive(Debug)]
pub struct Format {
    /// What it is called in messages and in the metadata key `container`.
    pub name: &'static str,
    /// Endings of names under which a folder is searched for it. Elsewhere they only matter for the sentence about a
    /// file that nothing recognises.
    pub endings: &'static [&'static str],
    /// Whether the content is of this kind, whatever its name.
    pub recognise: fn(&Shard) -> bool,
    /// Reads it.
    pub read: fn(&Shard) -> Result<Contents>,
}

/// Every container, in the order in which a folder is searched for it: the first kind that is there is opened.
pub const FORMATS: &[Format] = &[
    Format {
        name: "safetensors",
        endings: &[".safetensors"],
        recognise: safetensors::recognise,
        read: safetensors::contents,
    },
    Format {
        name: "PyTorch",
        endings: &[".bin", ".pt", ".pth", ".th", ".ckpt", ".jit"],
        recognise: torch::recognise,
        read: torch::read,
    },
    Format { name: "GGUF", endings: &[".gguf"], recognise: gguf::recognise, read: gguf::contents },
    Format { name: "ONNX", endings: &[".onnx"], recognise: onnx::recognise, read: onnx::read },
    Format { name: "HDF5", endings: &[".h5", ".hdf5", ".keras"], recognise: hdf5::recognise, read: hdf5::read },
    Format { name: "npz", endings: &[".npz"], recognise: numpy::recognise_npz, read: numpy::read_npz },
    Format { name: "npy", endings: &[".npy"], recognise: numpy::recognise_npy, read: numpy::read_npy },
    Format {
        name: "traineddata",
        endings: &[".traineddata"],
        recognise: traineddata::recognise,
        read: traineddata::read,
    },
    // Recognised by arithmetic alone, so asked last.
    Format { name: "llama2.c", endings: &[".bin"], recognise: llama2c::recognise, read: llama2c::read },
];

/// Number of elements of `shape`, or `None` if it overflows.
pub fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))
}

/// The container that `shard` is, by its content.
pub fn recognise(shard: &Shard) -> Option<&'static Format> {
    FORMATS.iter().find(|format| (format.recognise)(shard))
}

/// Reads the container `shard`, whichever of [`FORMATS`] it is.
///
/// # Errors
/// If the file is something else (the sentence says what, and what to do), or malformed.
pub fn read(shard: &Shard) -> Result<Contents> {
    if let Some(format) = recognise(shard) {
        return (format.read)(shard);
    }
    if zip::recognise(shard.bytes()) {
        zip::Archive::read(shard)?; // says what is wrong with a damaged one
    }
    if let Some(what) = foreign(shard.path(), shard.bytes()) {
        return Err(Error::file(shard.path(), what));
    }
    // Something unknown, or a damaged file of a kind that only its name tells.
    let named = |format: &&Format| {
        let name = shard.path().to_string_lossy();
        format.endings.iter().any(|ending| name.ends_with(ending))
    };
    match FORMATS.iter().find(named) {
        Some(format) => (format.read)(shard),
        None => safetensors::contents(shard),
    }
}

impl TensorView {
    /// A view of `shard`, or a clause that says why it is none: the one place where a reader's numbers meet the bytes.
    pub(crate) fn place(
        shard: &Shard,
        name: impl Into<Arc<str>>,
        dtype: Dtype,
        shape: impl Into<Arc<[usize]>>,
        start: usize,
    ) -> Result<Self, String> {
        let (name, shape) = (name.into(), shape.into());
        let bytes = elements(&shape)
            .and_then(|elements| dtype.bytes(elements))
            .ok_or_else(|| format!("has shape {shape:?}, whose size in bytes as {dtype} cannot be counted"))?;
        let end = start.checked_add(bytes).filter(|&end| end <= shard.bytes().len()).ok_or_else(|| {
            let len = shard.bytes().len();
            format!(
                "takes {bytes} bytes from byte {start} of {}, which has {len}: truncated or damaged",
                shard.path().display()
            )
        })?;
        Ok(Self { name, dtype, shape, shard: shard.clone(), range: start..end })
    }

    /// [`place`](Self::place) with the file and the tensor named in the error.
    pub(crate) fn new(
        shard: &Shard,
        name: impl Into<Arc<str>>,
        dtype: Dtype,
        shape: impl Into<Arc<[usize]>>,
        start: usize,
    ) -> Result<Self> {
        let name = name.into();
        Self::place(shard, name.clone(), dtype, shape, start)
            .map_err(|what| Error::tensor(shard.path(), name.to_string(), what))
    }

    /// A tensor whose bytes are in memory: exactly `bytes`, which came from the file of `shard`.
    pub(crate) fn owned(
        shard: &Shard,
        name: impl Into<Arc<str>>,
        dtype: Dtype,
        shape: impl Into<Arc<[usize]>>,
        bytes: Vec<u8>,
    ) -> Result<Self> {
        Self::new(&Shard::from_bytes(shard.path(), bytes), name, dtype, shape, 0)
    }
}

/// Puts the bytes of each element in the other order: big endian to little endian. A complex number is two elements.
pub(crate) fn swap_bytes(dtype: Dtype, bytes: &mut [u8]) {
    let size = if dtype == Dtype::C64 { 4 } else { dtype.block().1 };
    for element in bytes.chunks_exact_mut(size) {
        element.reverse();
    }
}

/// Gathers a tensor whose elements lie `strides` (in elements) apart, from element `offset` of `bytes`, into rows-first
/// order. `None` if an element lies outside, or the result's size is beyond the computer.
pub(crate) fn gather(bytes: &[u8], size: usize, offset: usize, shape: &[usize], strides: &[usize]) -> Option<Vec<u8>> {
    let count = elements(shape)?;
    if count == 0 {
        return Some(Vec::new());
    }
    // The element furthest out decides whether all lie inside.
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(offset, |at, (&dim, &stride)| (dim - 1).checked_mul(stride).and_then(|step| at.checked_add(step)))?;
    if last.checked_add(1)?.checked_mul(size)? > bytes.len() {
        return None;
    }
    let mut out = Vec::with_capacity(count.checked_mul(size)?);
    let (row, step) = match (shape.last(), strides.last()) {
        (Some(&row), Some(&step)) => (row, step),
        _ => (1, 1),
    };
    let outer = shape.len().saturating_sub(1);
    let mut index = vec![0; outer];
    let mut start = offset;
    loop {
        if step == 1 {
            out.extend_from_slice(&bytes[start * size..(start + row) * size]);
        } else {
            for at in (0..row).map(|i| (start + i * step) * size) {
                out.extend_from_slice(&bytes[at..at + size]);
            }
        }
        // The next row: count up from the fastest of the outer dimensions.
        let mut dimension = outer;
        loop {
            if dimension == 0 {
                return Some(out);
            }
            dimension -= 1;
            index[dimension] += 1;
            start += strides[dimension];
            if index[dimension] < shape[dimension] {
                break;
            }
            start -= strides[dimension] * shape[dimension];
            index[dimension] = 0;
        }
    }
}

/// The strides of rows-first order, in elements.
pub(crate) fn row_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = strides[dimension].saturating_mul(shape[dimension]);
    }
    strides
}

/// A name from a file as it may stand in a message: escaped and not too long.
pub(crate) fn shown(name: &str) -> String {
    const LONGEST: usize = 100;
    let mut text: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_names_and_endings_of_their_own() {
        for (at, format) in FORMATS.iter().enumerate() {
            assert!(FORMATS[..at].iter().all(|other| other.name != format.name), "{}", format.name);
            assert!(!format.endings.is_empty());
            assert!(format.endings.iter().all(|ending| ending.starts_with('.')), "{}", format.name);
        }
    }

    #[test]
    fn no_format_takes_what_is_nothing() {
        for bytes in [&b""[..], b"x", &[0; 64], &[0xff; 64], b"{}", b"\x80\x02", b"PK\x05\x06", b"\x08\x07"] {
            let shard = Shard::from_bytes("model", bytes.to_vec());
            assert!(recognise(&shard).is_none(), "{bytes:?} as {:?}", recognise(&shard).map(|format| format.name));
            assert!(read(&shard).is_err());
            for format in FORMATS {
                assert!((format.read)(&shard).is_err(), "{} reads {bytes:?}", format.name);
            }
        }
    }

    #[test]
    fn gathering_is_indexing() {
        let bytes: Vec<u8> = (0..60).collect();
        let (shape, strides) = ([2, 3, 2], [1, 10, 4]);
        let mut expected = Vec::new();
        for i in 0..2 {
            for j in 0..3 {
                for k in 0..2 {
                    let at = 2 * (3 + i + 10 * j + 4 * k);
                    expected.extend([bytes[at], bytes[at + 1]]);
                }
            }
        }
        assert_eq!(gather(&bytes, 2, 3, &shape, &strides).unwrap(), expected);
        assert_eq!(gather(&bytes, 2, 4, &[3, 2], &[2, 1]).unwrap(), bytes[8..20]);
        assert_eq!(gather(&bytes, 2, 0, &[3, 2], &[0, 0]).unwrap(), [0, 1].repeat(6)); // an expanded tensor
        assert_eq!(gather(&bytes, 1, 7, &[], &[]).unwrap(), [7]);
        assert_eq!(gather(&bytes, 1, 60, &[], &[]), None);
        assert_eq!(gather(&bytes, 2, 5, &[2, 2], &[24, 1]), None);
        assert_eq!(gather(&bytes, 2, 0, &[2, usize::MAX], &[1, 1]), None);
        assert_eq!(gather(&bytes, 2, 0, &[2], &[usize::MAX]), None);
    }
}
