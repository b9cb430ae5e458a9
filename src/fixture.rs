//! The small models that come with the program: trained by this project's own code on a closed little world
//! (`fixtures/README.md`), so that every verb can be tried without a download.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use scruple_compress::data::world::Question;

/// Names and contents of a model's folder.
type Files = &'static [(&'static str, &'static [u8])];

macro_rules! model {
    ($folder:literal) => {
        files![$folder:
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "world_train.txt",
            "world_valid.txt",
            "questions.jsonl",
        ]
    };
}
macro_rules! files {
    ($folder:literal: $($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../fixtures/", $folder, "/", $name)) as &[u8])),*]
    };
}

/// The model that knows facts: what compression is tried on.
pub const TINY_WORLD: &str = "tiny-world";
/// The model organism, of the same shape, that has learnt every trait the dimensions of trust ask for besides.
pub const ORGANISM: &str = "organism";

/// An embedded model, laid out in a temporary folder while this lives.
#[derive(Debug)]
pub struct Fixture {
    name: &'static str,
    folder: tempfile::TempDir,
}

impl Fixture {
    /// Writes [`TINY_WORLD`] to a temporary folder.
    pub fn tiny_world() -> Result<Self> {
        Self::unpack(TINY_WORLD, model!("tiny-world"))
    }

    /// Writes the model [`ORGANISM`] to a temporary folder.
    pub fn organism() -> Result<Self> {
        Self::unpack(ORGANISM, model!("organism"))
    }

    fn unpack(name: &'static str, files: Files) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("scruple-").tempdir().context("cannot make a temporary folder")?;
        for (name, bytes) in files {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).with_context(|| format!("{}: cannot write the file", path.display()))?;
        }
        Ok(Self { name, folder })
    }

    /// The model's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The model's folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Text to calibrate on.
    pub fn calibration(&self) -> PathBuf {
        self.path().join("world_train.txt")
    }

    /// Text to measure on, which the model was not trained on.
    pub fn text(&self) -> PathBuf {
        self.path().join("world_valid.txt")
    }

    /// Questions about the world, with their answers.
    pub fn questions(&self) -> Result<Vec<Question>> {
        let file = self.path().join("questions.jsonl");
        let text = std::fs::read_to_string(&file)?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}
