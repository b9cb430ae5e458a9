//! Runs that are saved as they go: one file of what they learn, what their optimiser remembers, and what they are runs of.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use scruple_weights::{Checkpoint, Error as WeightsError};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    optimiser::Optimiser,
    weights::{NamedTensor, write_safetensors},
};
use crate::{Error, Result};

/// Writes a run's `tensors`, the memories of its `optimiser`, and its `state` under the metadata key `key` into `file`, in
/// one rename.
pub(crate) fn write<'a>(
    file: &Path,
    (key, state): (&str, &impl Serialize),
    mut tensors: Vec<NamedTensor<'a>>,
    optimiser: &'a Optimiser,
) -> Result<()> {
    for (number, memory) in optimiser.memories().iter().enumerate() {
        tensors.push((memory_name(number), vec![memory.len()], memory));
    }
    let state = serde_json::to_string(state).map_err(|error| Error::Recipe(error.to_string()))?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string()), (key.to_string(), state)]);
    write_safetensors(file, &tensors, &metadata)
}

fn memory_name(number: usize) -> String {
    format!("optimiser.{number}")
}

/// A run's file.
#[derive(Debug)]
pub(crate) struct Saved<S> {
    file: PathBuf,
    /// Its tensors.
    pub checkpoint: Checkpoint,
    /// What it says beside them.
    pub state: S,
}

impl<S: DeserializeOwned> Saved<S> {
    /// Opens `file`, whose state is under the metadata key `key`.
    ///
    /// # Errors
    /// If it cannot be read, or is no such run's.
    pub fn open(file: &Path, key: &str) -> Result<Self> {
        let refuse = |what: String| Error::Weights(WeightsError::file(file, what));
        let checkpoint = Checkpoint::open(file)?;
        let state = checkpoint.metadata().get(key);
        let state = state.ok_or_else(|| refuse(format!("is not a saved run: its metadata has no `{key}`")))?;
        let state = serde_json::from_str(state).map_err(|error| refuse(format!("`{key}` cannot be read: {error}")))?;
        Ok(Self { file: file.to_path_buf(), checkpoint, state })
    }
}

impl<S> Saved<S> {
    /// Checks that it is `this` run, by everything that makes a run another one, and at `step` of its `steps`.
    ///
    /// # Errors
    /// If not; the message says in what they differ.
    pub fn is_of(&self, this: &[(&str, bool)], step: u64, steps: u64) -> Result<()> {
        let refuse = |what: String| Err(Error::Weights(WeightsError::file(&self.file, what)));
        if let Some((what, _)) = this.iter().find(|(_, same)| !same) {
            return refuse(format!("is a saved run of another {what}; delete the file to begin anew"));
        }
        if step > steps {
            return refuse(format!("is a saved run at step {step} of {steps}"));
        }
        Ok(())
    }

    /// The `len` numbers of a tensor without shape.
    ///
    /// # Errors
    /// If there are not so many.
    pub fn flat(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let view = self.checkpoint.tensor(name)?;
        if view.shape() != [len] {
            return Err(view.error(format!("has shape {:?}, expected [{len}]", view.shape())).into());
        }
        Ok(view.to_f32()?)
    }

    /// What an optimiser like this one remembered, as [`Optimiser::restore`] takes it.
    ///
    /// # Errors
    /// If it is another's.
    pub fn memories(&self, optimiser: &Optimiser) -> Result<Vec<Vec<f32>>> {
        let memories = optimiser.memories().iter().enumerate();
        memories.map(|(number, memory)| self.flat(&memory_name(number), memory.len())).collect()
    }
}
