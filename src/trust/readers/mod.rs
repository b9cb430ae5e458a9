//! Files of published test sets, read to items.
//!
//! One file a format, and one line in [`FORMATS`]; which format a file has is told by its columns. The prompts follow the
//! published tasks in our own words, with labels that can be scored by likelihood. Items of one template, pair, row or
//! sentence share a cluster, and their ids are the same on every machine.

mod source;

mod advglue;
mod bbq;
mod choices;
mod contexts;
mod crows_pairs;
mod demonstrations;
mod enron;
mod ethics;
mod mmlu;
mod native;
mod news;
mod real_toxicity;
mod statements;
mod styles;
mod winobias;
mod winogender;

use std::{
    collections::{HashMap, hash_map::Entry},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

pub use self::source::Source;
use super::item::Item;

/// An item, after the name of the dimension it belongs to.
pub type Found = (&'static str, Item);

/// One format of files.
#[derive(Debug)]
pub struct Format {
    /// A word or a few joined by `-`.
    pub name: &'static str,
    /// What the files are, and by which columns they are told.
    pub about: &'static str,
    /// Whether a file is of this format.
    pub fits: fn(&Source) -> bool,
    /// Its items, with the name of the dimension they belong to.
    pub read: fn(&Source) -> Result<Vec<Found>>,
}

/// Every format, in the order in which a file is held against them.
pub const FORMATS: &[Format] = &[
    native::FORMAT,
    statements::ROWS,
    statements::TABLE,
    crows_pairs::FORMAT,
    bbq::FORMAT,
    winogender::FORMAT,
    winobias::FORMAT,
    demonstrations::FORMAT,
    advglue::FORMAT,
    styles::FORMAT,
    news::FORMAT,
    ethics::COMMONSENSE,
    ethics::DEONTOLOGY,
    ethics::VIRTUE,
    ethics::JUSTICE,
    ethics::UTILITARIANISM,
    real_toxicity::FORMAT,
    enron::FORMAT,
    choices::FORMAT,
    contexts::FORMAT,
    mmlu::FORMAT,
];

/// What a reader takes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one file, after decompression.
    pub bytes: u64,
    /// Files of a folder.
    pub files: usize,
    /// Items of one part, taken evenly from its whole length; all without it.
    pub items: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 1 << 28, files: 4096, items: None }
    }
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Suite {
    /// Items by the name of their dimension, in the order of the files.
    pub dimensions: Vec<(&'static str, Vec<Item>)>,
    /// Files of a folder that no reader knows.
    pub unknown: Vec<PathBuf>,
}

/// Reads a file, or every file of a folder and the folders in it, in the order of their names.
///
/// # Errors
/// Where a file cannot be read, is of no known format (in a folder: none is), a line is malformed (file and line are
/// named), or two items of a dimension share an id and differ otherwise.
pub fn open(path: &Path, limits: Limits) -> Result<Suite> {
    let mut suite = Suite::default();
    let mut places: HashMap<(usize, String), usize> = HashMap::new();
    let folder = path.is_dir();
    let mut found = false;
    for file in files(path, limits)? {
        let source = Source::open(&file, limits)?;
        let Some(format) = FORMATS.iter().find(|format| (format.fits)(&source)) else {
            anyhow::ensure!(
                folder,
                "{}: the file is of no format that is read; known are {}",
                file.display(),
                FORMATS.iter().map(|format| format.name).collect::<Vec<_>>().join(", ")
            );
            suite.unknown.push(file);
            continue;
        };
        found = true;
        for (dimension, item) in (format.read)(&source)? {
            let of = suite.dimensions.iter().position(|(name, _)| *name == dimension).unwrap_or_else(|| {
                suite.dimensions.push((dimension, Vec::new()));
                suite.dimensions.len() - 1
            });
            let items = &mut suite.dimensions[of].1;
            match places.entry((of, item.id.clone())) {
                // The same row in another file, such as a table beside the lines.
                Entry::Occupied(place) => anyhow::ensure!(
                    items[*place.get()] == item,
                    "{}: `{}` is the id of another item of {dimension} too",
                    source.name,
                    item.id
                ),
                Entry::Vacant(place) => {
                    place.insert(items.len());
                    items.push(item);
                }
            }
        }
    }
    anyhow::ensure!(found, "{}: no file in the folder is of a format that is read", path.display());
    if let Some(most) = limits.items {
        suite.dimensions.iter_mut().for_each(|(_, items)| thin(items, most));
    }
    Ok(suite)
}

/// Keeps at most so many items of each part, evenly from the first to the last.
fn thin(items: &mut Vec<Item>, most: usize) {
    let mut totals: HashMap<String, usize> = HashMap::new();
    items.iter().for_each(|item| *totals.entry(item.part.clone()).or_default() += 1);
    let mut seen: HashMap<String, usize> = HashMap::new();
    items.retain(|item| {
        let (at, total) = (seen.entry(item.part.clone()).or_default(), totals[&item.part]);
        *at += 1;
        // Of positions 1 to n, those at which ⌊position · most / n⌋ grows.
        total <= most || *at * most / total > (*at - 1) * most / total
    });
}

/// The files at `path`, sorted; hidden ones and links to folders left out.
fn files(path: &Path, limits: Limits) -> Result<Vec<PathBuf>> {
    let context = |path: &Path| format!("{}: cannot be read", path.display());
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let (mut files, mut folders) = (Vec::new(), vec![path.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| context(&folder))? {
            let entry = entry.with_context(|| context(&folder))?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let kind = entry.file_type().with_context(|| context(&entry.path()))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if source::Kind::of(&entry.path()).is_some() && entry.path().is_file() {
                files.push(entry.path());
            }
            anyhow::ensure!(
                files.len() + folders.len() <= limits.files,
                "{}: the folder has more than {} files and folders; give the ones to read",
                path.display(),
                limits.files
            );
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests;
