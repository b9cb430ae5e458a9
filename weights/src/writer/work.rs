//! The folder beside the output in which it grows: locked while a run uses it, removed when it is of no more use.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use super::disk;
use crate::{Error, Result};

const LOCK: &str = "lock";
const JOURNAL: &str = "journal.jsonl";
const OUTPUT: &str = "output";
const SCRATCH: &str = "scratch";

/// A locked work folder: the output grows in `output/`, the caller's own working files lie in `scratch/`.
#[derive(Debug)]
pub(super) struct WorkFolder {
    path: PathBuf,
    /// Whether it stays when this value is dropped.
    pub keep: bool,
    lock: File,
}

impl WorkFolder {
    /// A new folder beside `out`, under a name that no other run uses.
    pub fn temporary(out: &Path) -> Result<Self> {
        let (parent, name) = parent_and_name(out)?;
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        for _ in 0..100 {
            let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
            let count = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!(".{name}.partial-{:x}-{clock:08x}-{count:x}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(Error::io(path, "make the work folder", error)),
            }
            match lock(&path)? {
                Some(lock) => return Ok(Self { path, keep: false, lock }),
                None => continue, // another run took it for an abandoned one in the moment before it was locked
            }
        }
        Err(Error::file(parent, "found no free name for a work folder"))
    }

    /// The folder of an interrupted run, or a new one. It stays on disk until [`keep`](Self::keep) says otherwise.
    pub fn resumable(path: &Path) -> Result<Self> {
        let exists = path.symlink_metadata().is_ok();
        if exists && !path.join(LOCK).exists() {
            let mut entries = fs::read_dir(path).map_err(|error| Error::io(path, "list the work folder", error))?;
            if entries.next().is_some() {
                return Err(Error::file(
                    path,
                    "expected a work folder of an interrupted run, found a folder with other files; choose another one",
                ));
            }
        }
        for _ in 0..100 {
            fs::create_dir_all(path).map_err(|error| Error::io(path, "make the work folder", error))?;
            if let Some(lock) = lock(path)? {
                return Ok(Self { path: path.to_path_buf(), keep: true, lock });
            }
            if path.join(LOCK).exists() {
                break;
            }
        }
        Err(Error::file(
            path,
            "another run is writing this output; wait until it ends, or choose another output folder",
        ))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn output(&self) -> PathBuf {
        self.path.join(OUTPUT)
    }

    pub fn journal(&self) -> PathBuf {
        self.path.join(JOURNAL)
    }

    pub fn scratch(&self) -> PathBuf {
        self.path.join(SCRATCH)
    }

    /// Removes what a run left that ended before its journal began.
    pub fn clear(&self) -> Result<()> {
        for folder in [self.output(), self.scratch()] {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(folder, "remove the folder", error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.path); // nothing more can be done about it here
        }
        // Closing the file is not enough while a process that is just being started still shares it.
        let _ = self.lock.unlock();
    }
}

/// The lock of the work folder `path`, or `None` if another run holds it or removed it meanwhile.
fn lock(path: &Path) -> Result<Option<File>> {
    let path = path.join(LOCK);
    let file = match File::options().write(true).create(true).truncate(false).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(disk::write_error(&path, "make the lock file".into(), 0, error)),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(Error::io(path, "lock the work folder", error)),
    }
    let links = file.metadata().map_err(|error| Error::io(&path, "read the lock file's state", error))?.nlink();
    Ok((links > 0).then_some(file))
}

/// Removes work folders beside `out` whose runs were killed: their locks are free. One of a resumable run goes only when
/// its output has already moved to its final place.
pub(super) fn remove_abandoned(out: &Path, resumable: &Path) -> Result<()> {
    let (parent, name) = parent_and_name(out)?;
    let prefix = format!(".{name}.partial-");
    let Ok(entries) = fs::read_dir(&parent) else { return Ok(()) };
    let abandoned = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)));
    let moved = resumable.join(JOURNAL).exists() && !resumable.join(OUTPUT).exists();
    for path in abandoned.chain(moved.then(|| resumable.to_path_buf())) {
        if path.join(LOCK).is_file()
            && let Ok(Some(lock)) = lock(&path)
        {
            drop(WorkFolder { path, keep: false, lock });
        }
    }
    Ok(())
}

/// Where interrupted runs that write `out` leave their work: `.{name}.partial` beside it.
pub(super) fn resumable_path(out: &Path) -> Result<PathBuf> {
    let (parent, name) = parent_and_name(out)?;
    Ok(parent.join(format!(".{name}.partial")))
}

/// The folder in which `out` is to appear, and its name there.
pub(super) fn parent_and_name(out: &Path) -> Result<(PathBuf, String)> {
    let name = out
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| Error::file(out, "expected the path of a new folder, whose name is plain text"))?;
    let parent = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    Ok((parent.to_path_buf(), name.to_string()))
}
