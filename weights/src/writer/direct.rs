//! Writing past the page cache: large pieces go from a buffer of ours to the disk.
//!
//! A copy in the page cache costs a processor more than the disk's work does (0.2 to 2 s a GB on Linux, against 0.05 s), and
//! pushes out of memory what others read. It pays off only for what is not read again soon.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use memmap2::MmapMut;

/// What offsets, lengths and buffers are multiples of: enough for every disk in use.
const PAGE: usize = 4096;

/// How a file is opened so, where the system has it.
#[cfg(target_os = "linux")]
const FLAG: Option<i32> = Some(libc::O_DIRECT);
#[cfg(not(target_os = "linux"))]
const FLAG: Option<i32> = None;

/// Bytes written at once: what stays in a core's cache between being copied and being sent.
const CHUNK: usize = 1 << 20;

/// A second way into a file that is open already.
#[derive(Debug)]
pub(super) struct Direct {
    file: File,
    /// A write was refused for its form: this file system opens files so, and cannot write them.
    refused: AtomicBool,
    buffers: Mutex<Vec<MmapMut>>,
}

impl Direct {
    /// Opens `path` for writing past the page cache; `None` where the system or the file system has no such thing.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let file = OpenOptions::new().write(true).custom_flags(FLAG?).open(path).ok()?;
        Some(Self { file, refused: AtomicBool::new(false), buffers: Mutex::default() })
    }

    /// Writes the whole pages among `bytes`, which belong at `offset`; gives how many bytes stand before them and how many
    /// pages' worth were written. The rest is left to the caller; with pieces shorter than a chunk, all of it.
    pub(super) fn write_pages(&self, bytes: &[u8], offset: u64) -> io::Result<(usize, usize)> {
        let before = (offset.next_multiple_of(PAGE as u64) - offset) as usize;
        let pages = bytes.len().saturating_sub(before) / PAGE * PAGE;
        if pages < CHUNK || self.refused.load(Ordering::Relaxed) {
            return Ok((0, 0));
        }
        let lock = || self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lock().pop();
        let mut buffer = match kept {
            Some(buffer) => buffer,
            None => MmapMut::map_anon(CHUNK)?,
        };
        let mut done = 0;
        for chunk in bytes[before..before + pages].chunks(CHUNK) {
            let buffer = &mut buffer[..chunk.len()];
            buffer.copy_from_slice(chunk);
            match self.file.write_all_at(buffer, offset + (before + done) as u64) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.refused.store(true, Ordering::Relaxed);
                    break;
                }
                result => result?,
            }
            done += chunk.len();
        }
        lock().push(buffer);
        Ok((before, done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::print_stdout, reason = "a test says what it could not try")]
    fn writes_the_whole_pages_and_says_which() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let plain = File::create(&path).unwrap();
        plain.set_len(1).unwrap();
        let Some(direct) = Direct::open(&path) else {
            println!("skipped: this file system has no direct writes");
            return;
        };
        let bytes: Vec<u8> = (0..CHUNK * 2 + 3 * PAGE + 77).map(|at| (at * 7 % 251) as u8).collect();
        for offset in [0u64, 1, 4095, 4096, 70_001] {
            let (before, done) = direct.write_pages(&bytes, offset).unwrap();
            if direct.refused.load(Ordering::Relaxed) {
                println!("skipped: this file system refuses direct writes");
                return;
            }
            assert_eq!((offset + before as u64) % PAGE as u64, 0);
            assert!(before < PAGE && bytes.len() - before - done < PAGE);
            plain.write_all_at(&bytes[..before], offset).unwrap();
            plain.write_all_at(&bytes[before + done..], offset + (before + done) as u64).unwrap();
            let found = std::fs::read(&path).unwrap();
            assert!(found[offset as usize..] == bytes[..], "offset {offset}");
        }
        assert_eq!(direct.write_pages(&bytes[..CHUNK - 1], 0).unwrap(), (0, 0));
    }
}
