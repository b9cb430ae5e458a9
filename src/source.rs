//! The models that arguments name: on disk, or of a hub, and then fetched with a bar.

use std::{path::Path, time::Duration};

use anyhow::Result;
use scruple_weights::{
    ModelSource,
    hub::{Want, Watch},
    source::Located,
};

use crate::printer::{self, Progress};

/// Shorter pauses are not worth a line.
const TOLD_WAIT: Duration = Duration::from_secs(2);

/// Shows on stderr how fetching goes on.
#[derive(Default)]
pub struct Bar(Option<Progress>);

impl Watch for Bar {
    fn begins(&mut self, files: usize, bytes: u64) {
        printer::say(format!("fetching {files} files, {:.1} MB", bytes as f64 / 1e6));
        self.0 = Some(Progress::bytes("fetch", bytes));
    }

    fn at(&mut self, bytes: u64, file: &str) {
        if let Some(progress) = &mut self.0 {
            progress.at(bytes, file);
        }
    }

    fn waits(&mut self, why: &str, wait: Duration) {
        if wait >= TOLD_WAIT {
            printer::say(format!("{why}; trying again in {} s", wait.as_secs()));
        }
    }

    fn ends(&mut self) {
        self.0 = None;
    }

    fn warn(&mut self, what: &str) {
        printer::warn(what);
    }
}

/// The model that `argument` names, on this machine: a path, or `org/name[@revision][:file]`.
pub fn locate(argument: &Path) -> Result<Located> {
    locate_as(argument, &Want::Model)
}

/// As [`locate`], where what is wanted of the model differs.
pub fn locate_as(argument: &Path, want: &Want) -> Result<Located> {
    Ok(ModelSource::parse(argument)?.locate(want, &mut Bar::default())?)
}
