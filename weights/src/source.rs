//! Where a model comes from: a folder, a file, or a hub. Whatever exists on disk is meant before anything else.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    Checkpoint, Error, Result,
    hub::{Hub, HubRepo, Kind, Origin, Plan, Settings, Want, Watch},
};

/// Endings of files: `org/name` with one of these is a mistyped path, not a model of a hub.
const FILE_ENDINGS: [&str; 8] = ["safetensors", "gguf", "bin", "pt", "pth", "ckpt", "json", "npz"];

/// What an argument names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder of the file system.
    Folder(PathBuf),
    /// A file: weights, or an index.
    File(PathBuf),
    /// A model of a hub.
    Hub(HubRepo),
}

/// A model that lies on this machine, ready to be opened.
#[derive(Debug, Clone)]
pub struct Located {
    path: PathBuf,
    folder: PathBuf,
    name: Option<String>,
    origin: Option<Origin>,
}

impl ModelSource {
    /// Reads an argument: a path that exists; else `org/name`, `org/name@revision` or `org/name@revision:file`, or an
    /// address of a model (`hf://…`, `https://…`).
    ///
    /// # Errors
    /// [`Error::Io`] if it is a path that does not exist and no model's name; [`Error::Hub`] if it is an address, or has a
    /// revision or file, that is not well formed.
    pub fn parse(argument: impl AsRef<Path>) -> Result<Self> {
        let path = argument.as_ref();
        if let Ok(metadata) = path.symlink_metadata() {
            // A link that leads nowhere is a file that cannot be opened, which opening it says.
            let is_folder = if metadata.is_symlink() { path.is_dir() } else { metadata.is_dir() };
            return Ok(if is_folder { Self::Folder(path.into()) } else { Self::File(path.into()) });
        }
        // The system's own words, with its number.
        let missing = || {
            let error = path.symlink_metadata().err().unwrap_or_else(|| io::ErrorKind::NotFound.into());
            Error::io(path, "open the checkpoint", error)
        };
        let text = path.to_str().ok_or_else(missing)?;
        if text.contains("://") {
            return HubRepo::from_address(text, Kind::Model).map(Self::Hub);
        }
        // `org/name` and what begins like it; all else can only have been meant as a path.
        let id = text.split(['@', ':']).next().unwrap_or_default();
        let ending = Path::new(id).extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if crate::hub::RepoId::new(id).is_err() || FILE_ENDINGS.contains(&ending) {
            return Err(missing());
        }
        text.parse().map(Self::Hub)
    }

    /// Brings the model to this machine, with the environment's settings if it is one of a hub.
    ///
    /// # Errors
    /// As [`Settings::from_env`] and [`Hub::fetch`].
    pub fn locate(&self, want: &Want, watch: &mut dyn Watch) -> Result<Located> {
        match self {
            Self::Hub(_) => self.locate_in(&Hub::new(Settings::from_env()?), want, watch),
            Self::Folder(path) => Ok(Located { path: path.clone(), folder: path.clone(), name: None, origin: None }),
            Self::File(path) => {
                let folder = path.parent().filter(|folder| *folder != Path::new(""));
                let folder = folder.unwrap_or(Path::new(".")).to_path_buf();
                Ok(Located { path: path.clone(), folder, name: None, origin: None })
            }
        }
    }

    /// As [`locate`](Self::locate) with a given hub.
    ///
    /// # Errors
    /// As [`Hub::fetch`].
    pub fn locate_in(&self, hub: &Hub, want: &Want, watch: &mut dyn Watch) -> Result<Located> {
        match self {
            Self::Hub(model) => Ok(Located::new(model, hub.fetch(model, want, watch)?)),
            _ => self.locate(want, watch),
        }
    }

    /// The checkpoint itself.
    ///
    /// # Errors
    /// As [`locate`](Self::locate) and [`Checkpoint::open`].
    pub fn open(&self, watch: &mut dyn Watch) -> Result<Checkpoint> {
        self.locate(&Want::Model, watch)?.open()
    }
}

impl Located {
    fn new(model: &HubRepo, plan: Plan) -> Self {
        let name = Some(model.repo.to_string());
        Self { path: plan.open, folder: plan.folder, name, origin: Some(plan.origin) }
    }

    /// What to open: a folder, or a file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that holds the model.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `org/name` of a model of a hub.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Where a model of a hub came from.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Opens the checkpoint.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open(&self) -> Result<Checkpoint> {
        Checkpoint::open(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::HubFault;

    #[test]
    fn what_exists_is_meant_before_all_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        fs::write(&file, "x").unwrap();
        assert_eq!(ModelSource::parse(folder.path()).unwrap(), ModelSource::Folder(folder.path().into()));
        assert_eq!(ModelSource::parse(&file).unwrap(), ModelSource::File(file));
        // The crate's own folder holds `src/hub`, which also reads as a model's name.
        assert_eq!(ModelSource::parse("src/hub").unwrap(), ModelSource::Folder("src/hub".into()));
    }

    #[test]
    fn names_of_models_are_told_from_mistyped_paths() {
        for text in ["org/name", "org/name@dev", "org/name:q4.gguf", "src/hubb", "hf://org/name"] {
            assert!(matches!(ModelSource::parse(text), Ok(ModelSource::Hub(_))), "{text}");
        }
        for text in ["nothing", "./org/name", "/org/name", "a/b/c", "org/model.safetensors", "org/", "models/q4.gguf"] {
            let error = ModelSource::parse(text).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{text}: {error}");
        }
        let error = ModelSource::parse("org/name@../x").unwrap_err();
        assert!(matches!(error, Error::Hub { fault: HubFault::Request, .. }), "{error}");
    }
}
