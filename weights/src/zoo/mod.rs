//! A model zoo: checkpoints with what is known of them, in one index file.
//!
//! `zoo.json` lists models with their tree, their part (training, validation, test), their kind and their labels. It is
//! written by the zoo builder, or from a folder of checkpoints and a table ([`table`]). Labels are data: they are read by
//! a strict parser ([`labels`]) and never run.

pub mod labels;

pub mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, probex::head::Choice, random::Stream};

/// The index's file name.
pub const INDEX: &str = "zoo.json";

/// The index's form.
const FORMAT: u32 = 1;

/// Largest index read: some ten million models would take more.
const MOST_BYTES: u64 = 1 << 31;

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// The probe learns from it.
    Training,
    /// It chooses among probes and calibrates them.
    Validation,
    /// It says how good the probe is.
    Test,
    /// Its classes were kept from training: for texts of classes never seen.
    HeldOut,
}

/// What models are labelled with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// What may hold at once.
    pub choice: Choice,
    /// The classes' names, in the order of an expert's outputs.
    pub classes: Vec<String>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Where it lies: relative to the index, or absolute.
    pub path: String,
    /// Which ancestor it comes from.
    pub tree: String,
    /// What it is for.
    pub split: Split,
    /// `full`, or what else was done: `lora`, `int8`, `prune50` …
    pub kind: String,
    /// Classes that hold, by label.
    pub labels: BTreeMap<String, Vec<String>>,
    /// How it was trained, where that is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub recipe: BTreeMap<String, String>,
}

/// The index as it is on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// The form.
    pub format: u32,
    /// What models are labelled with, by name.
    pub labels: BTreeMap<String, Label>,
    /// The ancestor's own checkpoint, by tree.
    #[serde(default)]
    pub bases: BTreeMap<String, String>,
    /// The models, in the order in which they are trained on.
    pub models: Vec<Entry>,
}

/// An opened zoo.
#[derive(Debug, Clone)]
pub struct Zoo {
    /// The folder of the index.
    pub folder: PathBuf,
    /// What it says.
    pub index: Index,
}

impl Index {
    /// An index without models.
    pub fn new() -> Self {
        Self { format: FORMAT, labels: BTreeMap::new(), bases: BTreeMap::new(), models: Vec::new() }
    }

    /// Checks what the parser does not.
    fn check(&self, file: &Path) -> Result<()> {
        let refuse = |what: String| Err(Error::file(file, what));
        if self.format != FORMAT {
            return refuse(format!("the zoo is of form {}, expected {FORMAT}; index it again", self.format));
        }
        if self.models.is_empty() {
            return refuse("the zoo holds no models; index a folder of checkpoints or build one".into());
        }
        for (name, label) in &self.labels {
            labels::check(name).map_err(|what| Error::file(file, format!("label {what}")))?;
            let mut seen = BTreeSet::new();
            for class in &label.classes {
                labels::check(class).map_err(|what| Error::file(file, format!("a class of label `{name}` {what}")))?;
                if !seen.insert(class) {
                    return refuse(format!("label `{name}` has class `{class}` twice"));
                }
            }
        }
        let mut paths = BTreeSet::new();
        for model in &self.models {
            let shown = model.path.escape_debug();
            if !paths.insert(&model.path) {
                return refuse(format!("model `{shown}` stands in the zoo twice"));
            }
            labels::check(&model.tree).map_err(|what| Error::file(file, format!("the tree of `{shown}` {what}")))?;
            for (name, classes) in &model.labels {
                let Some(label) = self.labels.get(name) else {
                    return refuse(format!(
                        "model `{shown}` has label `{}`, which the zoo does not name",
                        name.escape_debug()
                    ));
                };
                if let Some(unknown) = classes.iter().find(|class| !label.classes.contains(class)) {
                    let unknown = unknown.escape_debug();
                    return refuse(format!(
                        "model `{shown}` has class `{unknown}`, which label `{name}` does not name"
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Default for Index {
    fn default() -> Self {
        Self::new()
    }
}

impl Zoo {
    /// Opens the zoo in `place`: its folder, or its index.
    ///
    /// # Errors
    /// If there is no index, or it is not a zoo's.
    pub fn open(place: &Path) -> Result<Self> {
        let file = if place.is_dir() { place.join(INDEX) } else { place.to_path_buf() };
        let length = fs::metadata(&file).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::file(
                place,
                format!("there is no {INDEX}; make one by `scruple zoo build` or `scruple zoo index`"),
            ),
            _ => Error::io(&file, "open the zoo's index", source),
        })?;
        if length.len() > MOST_BYTES {
            return Err(Error::file(&file, format!("has {} bytes, a zoo's index at most {MOST_BYTES}", length.len())));
        }
        let text = fs::read(&file).map_err(|source| Error::io(&file, "read the zoo's index", source))?;
        let index: Index = serde_json::from_slice(&text)
            .map_err(|error| Error::file(&file, format!("is not a zoo's index: {error}")))?;
        index.check(&file)?;
        let folder = match file.parent() {
            Some(parent) if parent != Path::new("") => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        Ok(Self { folder, index })
    }

    /// Where the model of `entry` lies.
    pub fn path(&self, entry: &Entry) -> PathBuf {
        self.folder.join(&entry.path)
    }

    /// The ancestor's checkpoint of `tree`, where the zoo names it.
    pub fn base(&self, tree: &str) -> Option<PathBuf> {
        self.index.bases.get(tree).map(|path| self.folder.join(path))
    }

    /// The trees, by name.
    pub fn trees(&self) -> Vec<&str> {
        let trees: BTreeSet<&str> = self.index.models.iter().map(|model| model.tree.as_str()).collect();
        trees.into_iter().collect()
    }

    /// The label called `name`; without a name the only one, or the first by name.
    ///
    /// # Errors
    /// If there is none; the message names those there are.
    pub fn label(&self, name: Option<&str>) -> Result<(&str, &Label)> {
        let found = match name {
            Some(name) => self.index.labels.get_key_value(name),
            None => self.index.labels.iter().next(),
        };
        found.map(|(name, label)| (name.as_str(), label)).ok_or_else(|| {
            let there: Vec<&str> = self.index.labels.keys().map(String::as_str).collect();
            let what = match name {
                Some(name) => format!("has no label `{}`; it has {}", name.escape_debug(), there.join(", ")),
                None => "has no labels; index it with a table that has a column beside `model`".into(),
            };
            Error::file(self.folder.join(INDEX), what)
        })
    }

    /// The rows (1 where a class holds) of `models` for `label`.
    pub fn truths(&self, name: &str, label: &Label, models: &[usize]) -> Vec<f32> {
        let mut rows = Vec::with_capacity(models.len() * label.classes.len());
        for &at in models {
            let held = self.index.models[at].labels.get(name);
            rows.extend(label.classes.iter().map(|class| f32::from(u8::from(held.is_some_and(|h| h.contains(class))))));
        }
        rows
    }
}

/// Parts for `count` models of a tree: 70 % training, 10 % validation, 20 % test, in an order drawn by `seed`; at least
/// one of each where there are three.
pub fn splits(count: usize, tree: u64, seed: u64) -> Vec<Split> {
    let validation = (count / 10).max(usize::from(count >= 2));
    let test = (count / 5).max(usize::from(count >= 3));
    let mut parts: Vec<Split> = (0..count)
        .map(|at| match at {
            at if at < validation => Split::Validation,
            at if at < validation + test => Split::Test,
            _ => Split::Training,
        })
        .collect();
    Stream::new(seed, "zoo/split", tree).shuffle(&mut parts);
    parts
}
