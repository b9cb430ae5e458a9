//! Files of published test sets, read to items.
//!
//! One file a format, and one line in [`FORMATS`]; which format a file has is told by its columns. The prompts follow the
//! published tasks in our own words, with labels that can be scored by likelihood. Items of one template, pair, row or
//! sentence share a cluster, and their ids are the same on every machine.

mod source;

mod hub;

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
use super::{item::Item, suite::SUITES};

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
    /// Bytes of all files of a data set of a hub.
    pub fetched_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 1 << 28, files: 4096, fetched_bytes: 1 << 30 }
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

/// Reads the test sets that an argument names, and what to call them: a path that exists, by its last name; else a data
/// set of a hub.
///
/// # Errors
/// Where it is neither, the data set cannot be had, or as [`open`].
pub fn locate(argument: &Path, limits: Limits) -> Result<(String, Suite)> {
    if argument.exists() {
        let name = argument.file_name().unwrap_or(argument.as_os_str()).to_string_lossy().into_owned();
        return Ok((name, open(argument, limits)?));
    }
    hub::fetch(argument, limits)?.with_context(|| {
        format!(
            "{}: neither a file or folder, nor `org/name` of a hub, nor one of the suites that come with the program: {}",
            argument.display(),
            SUITES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
        )
    })
}

/// Reads a file, or every file of a folder and the folders in it, in the order of their names.
///
/// # Errors
/// Where a file cannot be read, is of no known format (in a folder: none is), a line is malformed (file and line are
/// named), or two items of a dimension share an id and differ otherwise.
pub fn open(path: &Path, limits: Limits) -> Result<Suite> {
    open_called(path, None, limits)
}

/// As [`open`]; the folder `called.0` has the name `called.1` for readers that look at the names of folders.
pub fn open_called(path: &Path, called: Option<(&Path, &str)>, limits: Limits) -> Result<Suite> {
    let mut suite = Suite::default();
    let mut places: HashMap<(usize, String), usize> = HashMap::new();
    let folder = path.is_dir();
    let mut found = false;
    for file in files(path, limits)? {
        let mut source = Source::open(&file, limits)?;
        if let Some((_, name)) = called.filter(|(folder, _)| file.parent() == Some(folder)) {
            source.folder = Some(name.to_string());
        }
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
    Ok(suite)
}

/// Whether a reader may be able to read the file of that path, by its name alone; hidden ones are not read.
pub fn may_read(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    !name.starts_with('.') && (source::Kind::of(Path::new(name)).is_some() || demonstrations::is_groups(name))
}

/// The names of files that a reader looks for beside the file of that path.
pub fn beside(path: &str) -> Vec<String> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let stem = source::stem(name);
    let plain = [demonstrations::groups_of(stem), enron::names_of(stem), winobias::other_of(name)];
    // Each may be gzipped, whatever the file itself is.
    plain.into_iter().flatten().flat_map(|name| [format!("{name}.gz"), name]).collect()
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
