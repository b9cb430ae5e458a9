//! A zoo of a folder of checkpoints: the models' labels from a table (CSV), or from their own metadata.
//!
//! The table's first line names the columns. `model` is the checkpoint (a file or folder, relative to the zoo's folder);
//! `tree`, `split` and `kind` may stand beside it; every other column is a label, whose cells are read by
//! [`labels::parse`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::{Entry, Index, Label, Split, labels, splits};
use crate::{Checkpoint, Error, Result, probex::head::Choice};

/// Largest table read.
const MOST_BYTES: u64 = 1 << 30;

/// Deepest folder looked into for checkpoints.
const DEEPEST: usize = 8;

/// What an index is made of.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where the checkpoints lie.
    pub folder: PathBuf,
    /// The table of labels.
    pub table: Option<PathBuf>,
    /// The metadata key that holds each model's labels, where there is no table.
    pub metadata: Option<String>,
    /// Ancestors, by tree.
    pub bases: BTreeMap<String, PathBuf>,
    /// Draws the parts where the table has none.
    pub seed: u64,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Indexed {
    /// The index, paths absolute or relative to the folder.
    pub index: Index,
    /// Checkpoints of the folder that the table does not name.
    pub unlabelled: usize,
}

/// Cells of a table (RFC 4180: quotes around cells with commas, doubled inside), with the number of each line.
fn cells(text: &str) -> std::result::Result<Vec<(usize, Vec<String>)>, String> {
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    let (mut quoted, mut was_quoted, mut line, mut start) = (false, false, 1, 1);
    let mut chars = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\n' {
            line += 1;
        }
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if cell.is_empty() && !was_quoted => (quoted, was_quoted) = (true, true),
            ',' if !quoted => {
                row.push(std::mem::take(&mut cell));
                was_quoted = false;
            }
            '\r' if !quoted => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut cell));
                was_quoted = false;
                if row.iter().any(|cell| !cell.is_empty()) {
                    rows.push((start, std::mem::take(&mut row)));
                }
                row.clear();
                start = line;
            }
            c => cell.push(c),
        }
    }
    if quoted {
        return Err(format!("line {start}: a quoted cell does not end"));
    }
    row.push(cell);
    if row.iter().any(|cell| !cell.is_empty()) {
        rows.push((start, row));
    }
    Ok(rows)
}

fn split_of(text: &str) -> std::result::Result<Split, String> {
    match text {
        "train" | "training" => Ok(Split::Training),
        "val" | "validation" => Ok(Split::Validation),
        "test" => Ok(Split::Test),
        "held-out" | "held_out" | "holdout" => Ok(Split::HeldOut),
        _ => Err(format!("split `{}`; expected training, validation, test or held-out", text.escape_debug())),
    }
}

/// Checkpoints in `folder` and below: files with weights, and folders that hold a checkpoint of their own, by name.
fn checkpoints(folder: &Path) -> Result<Vec<String>> {
    fn walk(root: &Path, folder: &Path, depth: usize, found: &mut BTreeSet<String>) -> Result<()> {
        let fail = |source| Error::io(folder, "list the folder", source);
        for entry in fs::read_dir(folder).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with('.') {
                continue;
            }
            let relative = || path.strip_prefix(root).ok().and_then(Path::to_str).map(str::to_string);
            if path.is_dir() {
                if path.join("config.json").is_file() {
                    found.extend(relative());
                } else if depth < DEEPEST {
                    walk(root, &path, depth + 1, found)?;
                }
            } else if ["safetensors", "pt", "pth", "bin", "gguf", "npz", "traineddata"]
                .iter()
                .any(|ending| path.extension().is_some_and(|e| e == *ending))
            {
                found.extend(relative());
            }
        }
        Ok(())
    }
    let mut found = BTreeSet::new();
    walk(folder, folder, 0, &mut found)?;
    Ok(found.into_iter().collect())
}

/// One model before its part is known.
struct Row {
    entry: Entry,
    split: Option<Split>,
}

/// Makes an index.
///
/// # Errors
/// One sentence with the file and the line: an unknown model, a label that is no name, a model named twice, no models.
pub fn index(wanted: &Wanted) -> Result<Indexed> {
    let there = checkpoints(&wanted.folder)?;
    if there.is_empty() {
        return Err(Error::file(&wanted.folder, "holds no checkpoints (safetensors, pt, gguf …), so there is no zoo"));
    }
    let rows = match (&wanted.table, &wanted.metadata) {
        (Some(table), _) => from_table(wanted, table)?,
        (None, Some(key)) => from_metadata(wanted, &there, key)?,
        (None, None) => {
            return Err(Error::file(&wanted.folder, "needs labels: name a table of them, or a metadata key"));
        }
    };
    let named: BTreeSet<&str> = rows.iter().map(|row| row.entry.path.as_str()).collect();
    let unlabelled = there.iter().filter(|path| !named.contains(path.as_str())).count();
    let mut index = Index::new();
    let mut classes: BTreeMap<String, (BTreeSet<String>, bool)> = BTreeMap::new();
    for (name, held) in rows.iter().flat_map(|row| &row.entry.labels) {
        let (all, one) = classes.entry(name.clone()).or_insert((BTreeSet::new(), true));
        all.extend(held.iter().cloned());
        *one &= held.len() == 1;
    }
    for (name, (classes, one)) in classes {
        let choice = if one { Choice::One } else { Choice::Several };
        let mut classes: Vec<String> = classes.into_iter().collect();
        if classes.iter().all(|class| class.parse::<u64>().is_ok()) {
            classes.sort_by_key(|class| class.parse::<u64>().unwrap_or(u64::MAX));
        }
        index.labels.insert(name, Label { choice, classes });
    }
    let mut trees: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, row) in rows.iter().enumerate().filter(|(_, row)| row.split.is_none()) {
        trees.entry(row.entry.tree.clone()).or_default().push(at);
    }
    let mut rows = rows;
    for (number, members) in trees.values().enumerate() {
        for (&at, split) in members.iter().zip(splits(members.len(), number as u64, wanted.seed)) {
            rows[at].split = Some(split);
        }
    }
    index.models =
        rows.into_iter().map(|row| Entry { split: row.split.unwrap_or(row.entry.split), ..row.entry }).collect();
    for (tree, base) in &wanted.bases {
        if !index.models.iter().any(|model| model.tree == *tree) {
            let what = format!("is named as the base of tree `{}`, which has no models", tree.escape_debug());
            return Err(Error::file(base, what));
        }
        index.bases.insert(tree.clone(), base.to_string_lossy().into_owned());
    }
    index.check(&wanted.folder)?;
    Ok(Indexed { index, unlabelled })
}

fn from_table(wanted: &Wanted, table: &Path) -> Result<Vec<Row>> {
    let refuse = |what: String| Error::file(table, what);
    let length = fs::metadata(table).map_err(|source| Error::io(table, "open the table of labels", source))?.len();
    if length > MOST_BYTES {
        return Err(refuse(format!("has {length} bytes, a table of labels at most {MOST_BYTES}")));
    }
    let text = fs::read_to_string(table).map_err(|source| Error::io(table, "read the table of labels", source))?;
    let mut lines = cells(&text).map_err(refuse)?.into_iter();
    let Some((_, heads)) = lines.next() else { return Err(refuse("is empty; its first line names columns".into())) };
    let heads: Vec<String> = heads.iter().map(|head| head.trim().to_string()).collect();
    let place = |name: &str| heads.iter().position(|head| head == name);
    let Some(model) = place("model") else {
        return Err(refuse(format!("has no column `model`; its first line is `{}`", heads.join(",").escape_debug())));
    };
    let special = [Some(model), place("tree"), place("split"), place("kind")];
    for (at, head) in heads.iter().enumerate() {
        labels::check(head).map_err(|what| refuse(format!("the name of a column {what}")))?;
        if heads[..at].contains(head) {
            return Err(refuse(format!("has column `{head}` twice")));
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    let mut seen = BTreeSet::new();
    for (line, row) in lines {
        let wrong = |what: String| refuse(format!("line {line}: {what}"));
        if row.len() != heads.len() {
            return Err(wrong(format!("has {} cells, the first line has {}", row.len(), heads.len())));
        }
        let cell = |at: Option<usize>| at.map(|at| row[at].trim()).filter(|cell| !cell.is_empty());
        let path = cell(Some(model)).ok_or_else(|| wrong("names no model".into()))?.to_string();
        if !seen.insert(path.clone()) {
            return Err(wrong(format!("model `{}` stands in the table twice", path.escape_debug())));
        }
        if !wanted.folder.join(&path).exists() {
            return Err(wrong(format!("there is no model `{}` in {}", path.escape_debug(), wanted.folder.display())));
        }
        let mut held = BTreeMap::new();
        for (at, head) in heads.iter().enumerate().filter(|(at, _)| !special.contains(&Some(*at))) {
            let found = labels::parse(&row[at]).map_err(|what| wrong(format!("column `{head}`: {what}")))?;
            held.insert(head.clone(), found);
        }
        let split = cell(special[2]).map(split_of).transpose().map_err(wrong)?;
        let named = |at: usize, otherwise: &str| cell(special[at]).unwrap_or(otherwise).to_string();
        let (tree, kind, recipe) = (named(1, "tree"), named(3, "full"), BTreeMap::new());
        let entry = Entry { path, tree, split: Split::Training, kind, labels: held, recipe };
        rows.push(Row { entry, split });
    }
    if rows.is_empty() {
        return Err(refuse("names no models".into()));
    }
    Ok(rows)
}

fn from_metadata(wanted: &Wanted, there: &[String], key: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for path in there {
        let file = wanted.folder.join(path);
        let checkpoint = Checkpoint::open(&file)?;
        let Some(text) = checkpoint.metadata().get(key) else { continue };
        let found = labels::parse(text)
            .map_err(|what| Error::file(&file, format!("metadata `{}`: {what}", key.escape_debug())))?;
        let entry = Entry {
            path: path.clone(),
            tree: "tree".into(),
            split: Split::Training,
            kind: "full".into(),
            labels: BTreeMap::from([(key.to_string(), found)]),
            recipe: BTreeMap::new(),
        };
        rows.push(Row { entry, split: None });
    }
    match rows.is_empty() {
        true => {
            Err(Error::file(&wanted.folder, format!("no checkpoint has the metadata key `{}`", key.escape_debug())))
        }
        false => Ok(rows),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_keep_quotes_commas_and_line_ends() {
        let rows = cells("a,b\r\n\"x, \"\"y\"\"\nz\",2\n\n3,\n").unwrap();
        let rows: Vec<(usize, Vec<&str>)> =
            rows.iter().map(|(line, row)| (*line, row.iter().map(String::as_str).collect())).collect();
        assert_eq!(rows, [(1, vec!["a", "b"]), (2, vec!["x, \"y\"\nz", "2"]), (5, vec!["3", ""])]);
        assert!(cells("a\n\"b").is_err());
    }
}
