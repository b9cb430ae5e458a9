//! The cache on disk, laid out as `huggingface_hub` does it, so that both use one another's files:
//!
//! ```text
//! models--org--name/              or datasets--org--name/
//!   blobs/<tag>                     a file's bytes, under the server's tag of it; `<tag>.incomplete` while it comes
//!   refs/<revision>                 the commit that a branch or tag stood for when it was last asked
//!   snapshots/<commit>/<path>       a link to the blob
//! .locks/models--org--name/<tag>.lock
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::name::{self, HubRepo};
use crate::{Error, Result, writer::disk};

/// Folders within folders of a snapshot that are looked into, and files that are listed.
const MAX_DEPTH: usize = 16;
const MAX_FILES: usize = 100_000;

/// One model's or data set's part of the cache.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
    locks: PathBuf,
}

/// What a revision stands for, as far as the cache knows.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub revision: String,
    pub commit: String,
    /// When that was last learnt.
    pub when: SystemTime,
}

impl Cache {
    pub fn of(folder: &Path, repo: &HubRepo) -> Self {
        let name = repo.folder();
        Self { locks: folder.join(".locks").join(&name), root: folder.join(name) }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the folders; a cache that cannot be written is told before anything is fetched.
    pub fn prepare(&self) -> Result<()> {
        for folder in [&self.root.join("blobs"), &self.locks] {
            fs::create_dir_all(folder).map_err(|error| Error::io(folder, "create the folder of the cache", error))?;
        }
        Ok(())
    }

    /// Bytes that may still be written here, where the system says.
    pub fn free_bytes(&self) -> Option<u64> {
        disk::free_bytes(&self.root)
    }

    pub fn blob(&self, tag: &str) -> PathBuf {
        self.root.join("blobs").join(tag)
    }

    /// Where a blob lies while it comes.
    pub fn part(&self, tag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{tag}.incomplete"))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Whether `path` of `commit` is there with `size` bytes.
    pub fn holds(&self, commit: &str, path: &str, size: u64) -> bool {
        has_size(&self.snapshot(commit).join(path), size)
    }

    /// Waits until no other thread or process fetches the blob `tag`. `None` where the file system knows no locks.
    pub fn lock(&self, tag: &str) -> Result<Option<File>> {
        let path = self.locks.join(format!("{tag}.lock"));
        let refuse = |error| Error::io(&path, "lock the file", error);
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(&path).map_err(refuse)?;
        match file.lock() {
            Ok(()) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(refuse(error)),
        }
    }

    /// Makes `path` of `commit` a link to the blob `tag`, or a copy where there are no links.
    pub fn link(&self, commit: &str, path: &str, tag: &str) -> Result<()> {
        let link = self.snapshot(commit).join(path);
        let refuse = |error| Error::io(&link, "put the file into the cache", error);
        let folder = link.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).map_err(refuse)?;
        let up = "../".repeat(2 + path.matches('/').count());
        let fresh = folder.join(format!(".{tag}.{}-{:?}.part", std::process::id(), std::thread::current().id()));
        let _ = fs::remove_file(&fresh);
        if symlink(format!("{up}blobs/{tag}"), &fresh).is_err() {
            fs::copy(self.blob(tag), &fresh).map_err(refuse)?;
        }
        fs::rename(&fresh, &link).map_err(|error| {
            let _ = fs::remove_file(&fresh);
            refuse(error)
        })
    }

    /// What `revision` stood for when the hub was last asked; a commit stands for itself if it is there.
    pub fn resolve(&self, revision: &str) -> Option<Known> {
        let (commit, when) = if name::is_commit(revision) {
            (revision.to_string(), modified(&self.snapshot(revision))?)
        } else {
            let file = self.root.join("refs").join(revision);
            let text = fs::read_to_string(&file).ok()?;
            (text.trim().to_string(), modified(&file)?)
        };
        let known = name::is_commit(&commit) && self.snapshot(&commit).is_dir();
        known.then(|| Known { revision: revision.to_string(), commit, when })
    }

    /// Notes what `revision` stands for.
    pub fn remember(&self, revision: &str, commit: &str) -> Result<()> {
        if name::is_commit(revision) {
            return Ok(());
        }
        let file = self.root.join("refs").join(revision);
        let folder = file.parent().unwrap_or(&self.root);
        let fresh = folder.join(format!(".{}-{:?}.part", std::process::id(), std::thread::current().id()));
        let write = || -> io::Result<()> {
            fs::create_dir_all(folder)?;
            fs::write(&fresh, commit)?;
            fs::rename(&fresh, &file)
        };
        write().map_err(|error| Error::io(&file, "note the revision's commit in the cache", error))
    }

    /// The revisions that are there, whole or in part, by name.
    pub fn revisions(&self) -> Vec<Known> {
        let mut names = Vec::new();
        walk(&self.root.join("refs"), "", 0, &mut names);
        let mut known: Vec<Known> = names.iter().filter_map(|(name, _)| self.resolve(name)).collect();
        let mut commits = Vec::new();
        for entry in fs::read_dir(self.root.join("snapshots")).into_iter().flatten().flatten() {
            commits.extend(entry.file_name().into_string());
        }
        commits.sort();
        commits.retain(|commit| known.iter().all(|known| known.commit != *commit));
        known.extend(commits.iter().filter_map(|commit| self.resolve(commit)));
        known
    }

    /// Paths and sizes of the files of `commit` that are there, sorted.
    pub fn files(&self, commit: &str) -> Vec<(String, u64)> {
        let mut files = Vec::new();
        walk(&self.snapshot(commit), "", 0, &mut files);
        files.sort();
        files
    }
}

/// Whether `path` is a file, or a link to one, of `size` bytes.
pub(super) fn has_size(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

fn walk(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<(String, u64)>) {
    if depth > MAX_DEPTH {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if files.len() >= MAX_FILES {
            return;
        }
        let path = format!("{prefix}{name}");
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), &format!("{path}/"), depth + 1, files);
        } else if !name.ends_with(".part")
            && let Ok(metadata) = fs::metadata(entry.path())
            && metadata.is_file()
        {
            files.push((path, metadata.len()));
        }
    }
}
