//! One file, mapped into memory. The only `unsafe` of the crate's readers is here.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::{Error, Result};

/// A whole file mapped read-only; cheap to clone.
#[derive(Debug, Clone)]
pub struct Shard {
    path: Arc<Path>,
    map: Arc<Mmap>,
    /// Open as long as the map is.
    file: Arc<File>,
}

impl Shard {
    /// Maps `path`. Empty files, folders and unreadable files are refused with their name.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path: PathBuf = path.into();
        // Opening a pipe would wait for its writer, so the kind is asked first.
        let metadata = std::fs::metadata(&path).map_err(|source| Error::io(&path, "open the file", source))?;
        if !metadata.is_file() {
            return Err(Error::file(path, "expected a regular file, found a folder, pipe or device"));
        }
        let file = File::open(&path).map_err(|source| Error::io(&path, "open the file", source))?;
        let metadata = file.metadata().map_err(|source| Error::io(&path, "read the file's size", source))?;
        if metadata.len() == 0 {
            return Err(Error::file(path, "the file is empty (0 bytes); fetch or write it again"));
        }
        // SAFETY: the map is read-only and private to this process; the bytes are only ever read as plain numbers, for
        // which every bit pattern is valid. What the map cannot exclude is another program truncating the file while
        // it is mapped; writers of this project never do that (they write a sibling file and rename it).
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io(&path, "map the file", source))?;
        Ok(Self { path: path.into(), map: Arc::new(map), file: Arc::new(file) })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Tells the system that `range` is read next (ignored where unsupported).
    pub fn will_need(&self, range: std::ops::Range<usize>) {
        if range.end <= self.map.len() && !range.is_empty() {
            let _ = self.map.advise_range(Advice::WillNeed, range.start, range.len());
        }
    }

    /// Copies `out.len()` bytes from byte `start` of the file on. Where every byte is looked at once this is cheaper than
    /// the map, whose pages are entered and removed one by one.
    ///
    /// # Errors
    /// If the file cannot be read, or has become shorter since it was opened.
    pub fn read_at(&self, start: usize, out: &mut [u8]) -> Result<()> {
        let length = out.len();
        #[cfg(unix)]
        let read = std::os::unix::fs::FileExt::read_exact_at(&*self.file, out, start as u64);
        #[cfg(not(unix))]
        let read = match self.map.get(start..).and_then(|bytes| bytes.get(..length)) {
            Some(bytes) => Ok(out.copy_from_slice(bytes)),
            None => Err(std::io::ErrorKind::UnexpectedEof.into()),
        };
        read.map_err(|source| Error::io(&*self.path, format!("read {length} bytes at byte {start}"), source))
    }

    /// Gives the resident pages of `range` back to the system; reading them again maps them from the page cache.
    /// This keeps the process small while it walks through a model larger than memory.
    pub fn release(&self, range: std::ops::Range<usize>) {
        if range.end <= self.map.len() && !range.is_empty() {
            // SAFETY: the map is a read-only view of a file, so dropping its pages loses nothing: the next read brings
            // the same bytes back from the file.
            let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
    }
}
