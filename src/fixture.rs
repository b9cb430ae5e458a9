//! The small model that comes with the program: trained by this project's own code on a closed little world
//! (`fixtures/README.md`), so that every verb can be tried without a download.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use scruple_compress::data::world::Question;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../fixtures/tiny-world/", $name)) as &[u8])),*]
    };
}

/// Names and contents of the model's folder.
const FILES: &[(&str, &[u8])] = files![
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "world_train.txt",
    "world_valid.txt",
    "questions.jsonl",
];

/// The model's name.
pub const NAME: &str = "tiny-world";

/// The embedded model, laid out in a temporary folder while this lives.
#[derive(Debug)]
pub struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    /// Writes the model to a temporary folder.
    pub fn unpack() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("scruple-").tempdir().context("cannot make a temporary folder")?;
        for (name, bytes) in FILES {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).with_context(|| format!("{}: cannot write the file", path.display()))?;
        }
        Ok(Self { folder })
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
