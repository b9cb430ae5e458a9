//! The memory of an interrupted run: a file of JSON lines, appended and synced after every finished unit.
//!
//! The first line says what is being written (a fingerprint of the caller's inputs and one of the layout); each further
//! line is one finished unit with the byte ranges it wrote. A last line without its newline was being written when the
//! run ended and does not count.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::disk;
use crate::{Error, Result};

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Head {
    scruple_journal: u32,
    /// The caller's fingerprint of its inputs.
    fingerprint: String,
    /// The layout's.
    plan: String,
}

/// One finished unit.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unit {
    pub unit: String,
    pub value: Value,
    /// (tensor's number in the plan, first byte, end) of everything written for it.
    pub wrote: Vec<(usize, u64, u64)>,
}

#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Starts a journal; the file appears under its name only when its first line is on disk.
    pub fn create(path: &Path, fingerprint: &str, plan: &str) -> Result<Self> {
        let head = Head { scruple_journal: VERSION, fingerprint: fingerprint.into(), plan: plan.into() };
        let temporary = path.with_extension("new");
        let failed = |error| disk::write_error(path, "start the journal".into(), 1024, error);
        let mut file = File::create(&temporary).map_err(failed)?;
        file.write_all(&line(&head)).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&temporary, path).map_err(failed)?;
        disk::sync_folder(path.parent().unwrap_or(Path::new(".")))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Opens the journal of an interrupted run, or `None` if none was started.
    ///
    /// # Errors
    /// If it belongs to other inputs or another layout, or is damaged anywhere but in its torn last line.
    pub fn open(path: &Path, fingerprint: &str, plan: &str) -> Result<Option<(Self, Vec<Unit>)>> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(path, "read the journal of the interrupted run", error)),
        };
        let remedy = format!(
            "delete the folder {} to start over, or choose another output folder",
            path.parent().unwrap_or(path).display()
        );
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        let mut lines = text[..whole].split_inclusive(|&byte| byte == b'\n');
        let damaged = |number: usize| {
            Error::file(path, format!("line {number} of the interrupted run's journal is damaged; {remedy}"))
        };
        let head: Head = lines.next().and_then(|head| serde_json::from_slice(head).ok()).ok_or_else(|| damaged(1))?;
        let differs = if head.scruple_journal != VERSION {
            Some("a journal of another version of this program")
        } else if head.plan != plan {
            Some("an interrupted run that writes other tensors or shards")
        } else if head.fingerprint != fingerprint {
            Some("an interrupted run with other inputs or settings")
        } else {
            None
        };
        if let Some(differs) = differs {
            return Err(Error::file(path, format!("this is {differs}, so it cannot be continued; {remedy}")));
        }
        let units = lines
            .enumerate()
            .map(|(index, unit)| serde_json::from_slice(unit).map_err(|_| damaged(index + 2)))
            .collect::<Result<Vec<Unit>>>()?;
        let failed = |error| Error::io(path, "open the journal of the interrupted run", error);
        let mut file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        file.set_len(whole as u64).and_then(|()| file.seek(io::SeekFrom::End(0))).map_err(failed)?;
        Ok(Some((Self { path: path.to_path_buf(), file }, units)))
    }

    /// Appends a unit; it is on disk when this returns.
    pub fn append(&mut self, unit: &Unit) -> Result<()> {
        let line = line(unit);
        self.file.write_all(&line).and_then(|()| self.file.sync_data()).map_err(|error| {
            disk::write_error(
                &self.path,
                format!("append {} bytes to the journal", line.len()),
                line.len() as u64,
                error,
            )
        })
    }
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("strings and numbers always serialise");
    line.push(b'\n');
    line
}
