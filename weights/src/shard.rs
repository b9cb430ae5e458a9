//! One file, mapped into memory, or bytes that were made from one. The only `unsafe` of the crate's readers is here.

use std::{
    fs::{File, Metadata},
    ops::Deref,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::{
    Error, Result,
    guard::{self, Watched},
};

/// A whole file mapped read-only, or bytes in memory that stand for (a part of) one: what was unpacked or put in another
/// order because it did not lie in the file as a tensor does. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mapped),
    Owned(Vec<u8>),
}

/// The map and the watch over it, which ends first: the address may belong to something else a moment later.
#[derive(Debug)]
struct Mapped {
    _watched: Watched,
    map: Mmap,
    /// Open as long as the map is.
    file: File,
    opened: Identity,
}

/// Which file it is, and in what state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    len: u64,
    modified: Option<SystemTime>,
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        let (device, inode) = (metadata.dev(), metadata.ino());
        Self { device, inode, len: metadata.len(), modified: metadata.modified().ok() }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapped) => &mapped.map,
            Self::Owned(bytes) => bytes,
        }
    }
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
        // it is mapped; writers of this project never do that (they write a sibling file and rename it), and the guard
        // says so in words when others do.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io(&path, "map the file", source))?;
        let mapped = Mapped { _watched: guard::watch(&map, &path), map, file, opened: Identity::of(&metadata) };
        Ok(Self(Arc::new(Inner { path, bytes: Bytes::Mapped(mapped) })))
    }

    /// Bytes in memory under the name of the file they come from; errors name that file.
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Self {
        Self(Arc::new(Inner { path: name.into(), bytes: Bytes::Owned(bytes) }))
    }

    /// Whether the bytes lie in the file itself, as against in memory of this process.
    pub fn is_mapped(&self) -> bool {
        matches!(self.0.bytes, Bytes::Mapped(_))
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Refuses a file that was written to since it was opened: what was read from it may be a mix of old and new.
    ///
    /// # Errors
    /// [`Error::File`] if its size or time of change differ. A file that was moved, deleted or replaced by a new one
    /// under its name is unharmed: the map holds on to the old one.
    pub fn expect_unchanged(&self) -> Result<()> {
        let Bytes::Mapped(Mapped { opened, .. }) = &self.0.bytes else { return Ok(()) };
        let Ok(now) = std::fs::metadata(self.path()).as_ref().map(Identity::of) else { return Ok(()) };
        if now == *opened || (now.device, now.inode) != (opened.device, opened.inode) {
            return Ok(());
        }
        let what = match (opened.len, now.len) {
            (before, after) if before != after => {
                format!("the file had {before} bytes when it was opened and has {after} now")
            }
            _ => "the file was written to while it was being read".to_string(),
        };
        Err(Error::file(self.path(), format!("{what}; what was read is not to be trusted, start anew")))
    }

    /// Which state of which file this is, as far as the system tells without reading it: path, device and number, length,
    /// time of the last change. What is held in memory is known by its hash.
    pub fn identity(&self) -> String {
        match &self.0.bytes {
            Bytes::Mapped(Mapped { opened, .. }) => format!("{} {opened:?}", self.path().display()),
            Bytes::Owned(bytes) => format!("{} {}", self.path().display(), crate::digest::sha256(bytes)),
        }
    }

    /// Tells the system that `range` is read next (ignored where unsupported).
    pub fn will_need(&self, range: std::ops::Range<usize>) {
        if let Bytes::Mapped(Mapped { map, .. }) = &self.0.bytes
            && range.end <= map.len()
            && !range.is_empty()
        {
            let _ = map.advise_range(Advice::WillNeed, range.start, range.len());
        }
    }

    /// Copies `out.len()` bytes from byte `start` of the file on. Where every byte is looked at once this is cheaper than
    /// the map, whose pages are entered and removed one by one.
    ///
    /// # Errors
    /// If the file cannot be read, or has become shorter since it was opened.
    pub fn read_at(&self, start: usize, out: &mut [u8]) -> Result<()> {
        let length = out.len();
        let read = match &self.0.bytes {
            Bytes::Mapped(Mapped { file, .. }) => file.read_exact_at(out, start as u64),
            Bytes::Owned(bytes) => match bytes.get(start..).and_then(|bytes| bytes.get(..length)) {
                Some(bytes) => {
                    out.copy_from_slice(bytes);
                    Ok(())
                }
                None => Err(std::io::ErrorKind::UnexpectedEof.into()),
            },
        };
        read.map_err(|source| Error::io(self.path(), format!("read {length} bytes at byte {start}"), source))
    }

    /// Gives the resident pages of `range` back to the system; reading them again maps them from the page cache.
    /// This keeps the process small while it walks through a model larger than memory. Bytes in memory stay.
    pub fn release(&self, range: std::ops::Range<usize>) {
        if let Bytes::Mapped(Mapped { map, .. }) = &self.0.bytes
            && range.end <= map.len()
            && !range.is_empty()
        {
            // SAFETY: the map is a read-only view of a file, so dropping its pages loses nothing: the next read brings
            // the same bytes back from the file.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
    }
}
