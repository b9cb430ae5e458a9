//! A new GGUF file, written by stream: header, then the tensors one after the other.
//!
//! The file grows in a locked work folder beside its final place and moves there when it is complete and durable, so no
//! part of it is ever seen under the final name; dropping the writer removes everything.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use super::{disk, refuse_existing, work, work::WorkFolder};
use crate::{Dtype, Error, Result, TensorSpec, format::gguf};

/// Where the data of each tensor begins is a multiple of this.
const ALIGNMENT: u64 = 32;

/// The metadata of a file in the making: keys stand in the order in which they were given.
#[derive(Debug, Clone, Default)]
pub struct GgufMetadata {
    count: u64,
    bytes: Vec<u8>,
}

impl GgufMetadata {
    fn key(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.count += 1;
        push_text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        &mut self.bytes
    }

    /// An unsigned integer of four bytes.
    pub fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4).extend(value.to_le_bytes());
    }

    /// A number of four bytes.
    pub fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6).extend(value.to_le_bytes());
    }

    /// A boolean.
    pub fn bool(&mut self, key: &str, value: bool) {
        self.key(key, 7).push(u8::from(value));
    }

    /// A text.
    pub fn text(&mut self, key: &str, value: &str) {
        push_text(self.key(key, 8), value);
    }

    /// An array of texts.
    pub fn texts<T: AsRef<str>>(&mut self, key: &str, values: &[T]) {
        let bytes = self.array(key, 8, values.len());
        values.iter().for_each(|value| push_text(bytes, value.as_ref()));
    }

    /// An array of integers of four bytes.
    pub fn i32s(&mut self, key: &str, values: &[i32]) {
        self.array(key, 5, values.len()).extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// An array of numbers of four bytes.
    pub fn f32s(&mut self, key: &str, values: &[f32]) {
        self.array(key, 6, values.len()).extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    fn array(&mut self, key: &str, kind: u32, count: usize) -> &mut Vec<u8> {
        let bytes = self.key(key, 9);
        bytes.extend(kind.to_le_bytes());
        bytes.extend((count as u64).to_le_bytes());
        bytes
    }
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Writes a GGUF file (version 3); see the [module](self).
#[derive(Debug)]
pub struct GgufWriter {
    out: PathBuf,
    path: PathBuf,
    file: File,
    /// Name and bytes of each tensor, and how many of them are written.
    tensors: Vec<(String, u64)>,
    current: usize,
    written: u64,
    bytes: u64,
    _work: WorkFolder, // last: its removal follows the closing of the file in it
}

impl GgufWriter {
    /// Starts the file `out`, which must not exist, with its whole header; `tensors` follow in their order.
    ///
    /// # Errors
    /// If `out` exists, the disk has too little room for all of it, or a tensor cannot be written: a type GGUF has no
    /// number for, rows that are no whole blocks, a size that overflows.
    pub fn create(out: &Path, metadata: &GgufMetadata, tensors: &[TensorSpec]) -> Result<Self> {
        let (parent, _) = work::parent_and_name(out)?;
        work::remove_abandoned(out, &work::resumable_path(out)?)?;
        refuse_existing(out)?;
        fs::create_dir_all(&parent).map_err(|error| Error::io(&parent, "make the folder", error))?;
        let (header, sizes) = header(out, metadata, tensors)?;
        let bytes = header.len() as u64 + sizes.iter().map(|(_, size)| size.next_multiple_of(ALIGNMENT)).sum::<u64>();
        disk::require(&parent, bytes)?;
        let work = WorkFolder::temporary(out)?;
        let path = work.output();
        let failed = |error| {
            let len = header.len();
            disk::write_error(&path, format!("write a header of {len} bytes"), len as u64, error)
        };
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
        disk::preallocate(&file, &path, bytes)?;
        file.write_all(&header).map_err(failed)?;
        Ok(Self { out: out.into(), path, file, tensors: sizes, current: 0, written: 0, bytes, _work: work })
    }

    /// The next bytes of the tensor whose turn it is.
    ///
    /// # Errors
    /// If they reach beyond it, or the disk refuses.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let Some((name, size)) = self.tensors.get(self.current) else {
            return Err(Error::file(&self.out, "was given bytes after its last tensor"));
        };
        let failed = |error| {
            disk::write_error(
                &self.path,
                format!("write {} bytes of tensor `{name}`", bytes.len()),
                bytes.len() as u64,
                error,
            )
        };
        let written = self.written + bytes.len() as u64;
        if written > *size {
            return Err(Error::tensor(&self.out, name, format!("takes {size} bytes, was given {written}")));
        }
        self.file.write_all(bytes).map_err(failed)?;
        self.written = written;
        if written == *size {
            let padding = (size.next_multiple_of(ALIGNMENT) - size) as usize;
            self.file.write_all(&[0; ALIGNMENT as usize][..padding]).map_err(failed)?;
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Makes the file durable and moves it to its final place; gives its size.
    ///
    /// # Errors
    /// If bytes are missing, the disk refuses, or a file of that name has appeared meanwhile. Then nothing is under the
    /// final name.
    pub fn finish(self) -> Result<u64> {
        if let Some((name, size)) = self.tensors.get(self.current) {
            let what = format!("is not complete: {} of {size} bytes were written", self.written);
            return Err(Error::tensor(&self.out, name, what));
        }
        self.file
            .sync_all()
            .map_err(|error| disk::write_error(&self.path, "make the file durable (fsync)".into(), 0, error))?;
        refuse_existing(&self.out)?;
        fs::rename(&self.path, &self.out)
            .map_err(|error| Error::io(&self.out, "move the finished file to its place", error))?;
        let (parent, _) = work::parent_and_name(&self.out)?;
        disk::sync_folder(&parent)?;
        Ok(self.bytes)
    }
}

/// The bytes before the tensors, and where each tensor begins behind them.
type Header = (Vec<u8>, Vec<(String, u64)>);

/// Everything before the data, and the tensors' sizes.
fn header(out: &Path, metadata: &GgufMetadata, tensors: &[TensorSpec]) -> Result<Header> {
    let mut header = b"GGUF".to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(metadata.count.to_le_bytes());
    header.extend(&metadata.bytes);
    let mut offset = 0u64;
    let mut sizes = Vec::with_capacity(tensors.len());
    for TensorSpec { name, dtype, shape } in tensors {
        let size = size(*dtype, shape).zip(gguf::ggml_number(*dtype));
        let next = size.and_then(|(size, _)| offset.checked_add(size.checked_next_multiple_of(ALIGNMENT)?));
        let (Some((size, number)), Some(next)) = (size, next) else {
            return Err(Error::tensor(out, name, format!("with shape {shape:?} cannot be stored as {dtype} in GGUF")));
        };
        push_text(&mut header, name);
        header.extend((shape.len() as u32).to_le_bytes());
        header.extend(shape.iter().rev().flat_map(|&size| (size as u64).to_le_bytes()));
        header.extend(number.to_le_bytes());
        header.extend(offset.to_le_bytes());
        sizes.push((name.clone(), size));
        offset = next;
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
    Ok((header, sizes))
}

/// Bytes of a tensor whose rows are whole blocks and which is not empty.
fn size(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))?;
    dtype.bytes(*shape.last()?)?;
    dtype.bytes(elements).filter(|&bytes| bytes > 0).map(|bytes| bytes as u64)
}
