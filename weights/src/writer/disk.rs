//! What the standard library does not offer: free space, preallocation, folders made durable, and errors that say how
//! many bytes are missing.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::Path,
};

use crate::{Error, Result};

/// Bytes an ordinary user may still write to the disk that holds `path`, or `None` where the system does not say.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is a NUL-terminated string that lives through the call, and `stat` is writable memory of the right
    // type.
    let done = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if done != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so the system filled the structure in.
    let stat = unsafe { stat.assume_init() };
    #[allow(clippy::unnecessary_cast)] // the fields' types differ between systems
    (stat.f_bavail as u64).checked_mul(stat.f_frsize as u64)
}

/// Refuses to begin what cannot end: `needed` more bytes must fit on the disk of `folder`.
pub(crate) fn require(folder: &Path, needed: u64) -> Result<()> {
    match free_bytes(folder) {
        Some(free) if free < needed => Err(full(folder, needed, free)),
        _ => Ok(()),
    }
}

fn full(file: &Path, needed: u64, free: u64) -> Error {
    let what = format!(
        "the disk is too full: the output needs {needed} bytes and {free} are free, so {} bytes are missing; make room or choose another output folder",
        needed.saturating_sub(free)
    );
    Error::DiskFull { file: file.to_path_buf(), what }
}

/// Gives `file` its final length, with its blocks reserved where the file system can do that.
pub(super) fn preallocate(file: &File, path: &Path, len: u64) -> Result<()> {
    #[cfg(target_os = "linux")]
    if len > 0 {
        // SAFETY: a call on an open file descriptor with plain numbers; `len` fits (the plan checked it).
        let done = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len as libc::off_t) };
        let error = io::Error::last_os_error();
        if done == 0 {
            return Ok(());
        }
        if !matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::EINTR)) {
            return Err(write_error(path, format!("reserve {len} bytes"), len, error));
        }
    }
    file.set_len(len).map_err(|error| write_error(path, format!("reserve {len} bytes"), len, error))
}

/// The error of a write of `len` bytes; a full disk is told from everything else.
pub(crate) fn write_error(path: &Path, action: String, len: u64, error: io::Error) -> Error {
    let full = match error.kind() {
        io::ErrorKind::StorageFull => "the disk is full",
        io::ErrorKind::QuotaExceeded => "the disk quota is used up",
        io::ErrorKind::FileTooLarge => "the file is larger than this system or account allows",
        _ => return Error::io(path, action, error),
    };
    let free = path.parent().and_then(free_bytes).map(|free| format!(", {free} bytes are free")).unwrap_or_default();
    let what =
        format!("cannot {action}: {full} ({len} bytes are needed{free}); make room or choose another output folder");
    Error::DiskFull { file: path.to_path_buf(), what }
}

/// Makes names created in, moved to or removed from `folder` survive a power failure.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|file| file.sync_all());
    match synced {
        // Some network file systems cannot sync a folder; their servers decide.
        Err(error) if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTSUP | libc::EBADF)) => {
            Err(Error::io(folder, "make the folder durable (fsync)", error))
        }
        _ => Ok(()),
    }
}
