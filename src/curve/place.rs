//! The folder of a sweep, and how records land in it.
//!
//! ```text
//! curve.json                  the whole sweep, from the records that are there
//! dense.json                  the dense model
//! points/NAME.json            a compressed model each
//! references/NAME.json        another dense model each
//! failures/NAME.json          why a point could not be had
//! models/NAME/                a compressed model, while it is measured (or kept)
//! work/SHARD/                 answers and journals of one shard's runs, and files in the making
//! ```
//!
//! Shards write other points' records, and the same bytes into what they share; each has files in the making of its own.

use std::{
    fs::{self, File, TryLockError},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::Serialize;

use super::data::Failure;
use crate::{commands::share::finetune::saved_run, record};

/// `name` with what does not belong into a file's name replaced.
pub fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' }).collect()
}

/// Which of the points one run is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0 on.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { index: 0, count: 1 }
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers: Option<(usize, usize)> =
            text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match numbers {
            Some((index, count)) if 0 < index && index <= count => Ok(Self { index: index - 1, count }),
            _ => Err(format!("`{text}` should be the number of a shard, from 1 on, and how many there are, as in 2/8")),
        }
    }
}

impl Shard {
    /// Whether task `number` is one of this shard's.
    pub fn has(self, number: usize) -> bool {
        number % self.count == self.index
    }

    /// The shard's part of a file's name.
    pub fn name(self) -> String {
        format!("{}-of-{}", self.index + 1, self.count)
    }
}

/// The folder of a sweep.
#[derive(Debug)]
pub struct Place {
    /// The folder itself.
    pub out: PathBuf,
    shard: Shard,
    /// Held as long as this run lives.
    _lock: File,
}

impl Place {
    /// Makes the folder what it has to be.
    ///
    /// # Errors
    /// If it cannot be written, or another run is at work on this shard.
    pub fn open(out: &Path, shard: Shard) -> Result<Self> {
        let work = out.join("work").join(shard.name());
        for folder in
            [work.clone(), out.join("points"), out.join("references"), out.join("failures"), out.join("models")]
        {
            fs::create_dir_all(&folder).with_context(|| format!("{}: cannot create the folder", folder.display()))?;
        }
        let file = work.join("lock");
        let lock = File::create(&file).with_context(|| format!("{}: cannot create the file", file.display()))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                anyhow::bail!("{}: another run is at work here; wait for it, or give another --shard", out.display())
            }
            // A file system without locks: then nobody watches.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        Ok(Self { out: out.to_path_buf(), shard, _lock: lock })
    }

    fn work(&self) -> PathBuf {
        self.out.join("work").join(self.shard.name())
    }

    /// Where this shard keeps answers.
    pub fn answers(&self) -> PathBuf {
        self.work().join("answers")
    }

    /// Where other shards keep theirs, in the order of their names.
    pub fn other_answers(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.out.join("work")).into_iter().flatten().flatten();
        let mut others: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| *path != self.work())
            .map(|path| path.join("answers"))
            .collect();
        others.sort();
        others
    }

    /// The record of the dense model.
    pub fn dense(&self) -> PathBuf {
        self.out.join("dense.json")
    }

    /// The record of a point.
    pub fn point(&self, name: &str) -> PathBuf {
        self.out.join("points").join(format!("{name}.json"))
    }

    /// The record of another dense model.
    pub fn reference(&self, name: &str) -> PathBuf {
        self.out.join("references").join(format!("{name}.json"))
    }

    /// The record of a point's failure.
    pub fn failure(&self, name: &str) -> PathBuf {
        self.out.join("failures").join(format!("{name}.json"))
    }

    /// Why a point could not be had, where a run says so.
    pub fn failure_of(&self, name: &str) -> Option<Failure> {
        let bytes = fs::read(self.failure(name)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// The compressed model of a point.
    pub fn model(&self, name: &str) -> PathBuf {
        self.out.join("models").join(name)
    }

    /// The folder of the dense model without some layers, of which the model of point `name` is made.
    pub fn whole(&self, name: &str) -> PathBuf {
        self.out.join("models").join(format!(".{name}.dense"))
    }

    /// Removes it.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn clear_whole(&self, name: &str) -> Result<()> {
        let whole = self.whole(name);
        gone(&whole, fs::remove_dir_all(&whole))
    }

    /// Writes `value` to `file` as a whole.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn land(&self, file: &Path, value: &impl Serialize) -> Result<()> {
        let bytes = record::pretty(value)?;
        let part = self.work().join("record.part");
        let write = || -> std::io::Result<()> {
            let mut open = File::create(&part)?;
            open.write_all(&bytes)?;
            open.sync_all()?;
            fs::rename(&part, file)
        };
        write()
            .inspect_err(|_| drop(fs::remove_file(&part)))
            .with_context(|| format!("{}: cannot write {} bytes", file.display(), bytes.len()))
    }

    /// Makes sure that what lies where the model of point `name` goes, whole or in part, was made under `key`: anything
    /// else is removed.
    ///
    /// # Errors
    /// If it cannot be removed, or the key not be noted.
    pub fn stamp(&self, name: &str, key: &str) -> Result<()> {
        let file = self.stamp_of(name);
        if fs::read_to_string(&file).is_ok_and(|found| found == key) {
            return Ok(());
        }
        self.clear(name)?;
        record::write_whole(&file, key.as_bytes())
    }

    fn stamp_of(&self, name: &str) -> PathBuf {
        self.out.join("models").join(format!(".{name}.key"))
    }

    /// Makes the model of point `name` one that goes with its record: the next run removes what is left of it.
    ///
    /// # Errors
    /// If its key cannot be removed.
    pub fn release(&self, name: &str) -> Result<()> {
        self.remove(&self.stamp_of(name))
    }

    /// Removes the model of point `name`, whole or in part.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn clear(&self, name: &str) -> Result<()> {
        let model = self.model(name);
        let partial = scruple_weights::CheckpointWriter::work_folder(&model)?;
        // The key goes first: without it, the next run begins by removing what is left.
        self.release(name)?;
        self.remove(&saved_run(&model)?)?;
        for folder in [model, partial, self.whole(name)] {
            gone(&folder, fs::remove_dir_all(&folder))?;
        }
        Ok(())
    }

    /// Removes what a killed run has left of a model that is measured already; one that was kept stays.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn tidy(&self, name: &str) -> Result<()> {
        if self.stamp_of(name).exists() { Ok(()) } else { self.clear(name) }
    }

    /// Removes the file `file`, if it is there.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(&self, file: &Path) -> Result<()> {
        gone(file, fs::remove_file(file))
    }
}

fn gone(path: &Path, removed: std::io::Result<()>) -> Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}
