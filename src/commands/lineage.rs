//! `scruple lineage`: which of many models was made from which, and how.

use std::{
    collections::BTreeSet,
    fmt::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
};

use anyhow::{Context, Result, ensure};
use scruple_compress::layers::write::PROVENANCE;
use scruple_weights::{
    Checkpoint,
    lineage::{
        self,
        family::{self, Direction, Family, Kind, Member, Sketch},
    },
    source::Located,
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    plot,
    printer::{self, Progress, Table},
    record::{self, Run},
    sides, source,
};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Models: folders, files, `org/name[@revision][:file]` of a hub, or folders that hold many models
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Write `lineage.json`, `lineage.dot`, `run.json` and the pictures `lineage.png` and `lineage.svg` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// A model that could not be read.
#[derive(Debug, Serialize)]
struct Unread {
    model: String,
    why: String,
}

/// The findings: the same bytes for the same models.
#[derive(Debug, Serialize)]
struct Record {
    #[serde(flatten)]
    family: Family,
    /// Models left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unread: Vec<Unread>,
    /// Models whose packed linears could not be decoded and are taken as stored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    undecoded: Vec<String>,
}

/// Endings of files that hold weights.
const WEIGHTS: [&str; 7] = ["safetensors", "gguf", "bin", "pt", "pth", "ckpt", "npz"];

fn has_weights(path: &Path) -> bool {
    path.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| WEIGHTS.contains(&ending))
}

/// The entries of a folder by name, hidden ones left out.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed = std::fs::read_dir(folder).with_context(|| format!("{}: cannot list the folder", folder.display()))?;
    let mut paths: Vec<PathBuf> = listed.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.retain(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')));
    paths.sort();
    Ok(paths)
}

/// What `argument` names: itself, or the models in a folder of many. A folder is one model if it has a configuration, an
/// index, or one file of weights; else each file of weights and each folder in it that has one is a model.
fn expanded(argument: &Path) -> Result<Vec<PathBuf>> {
    if !argument.is_dir() {
        return Ok(vec![argument.into()]);
    }
    let inside = entries(argument)?;
    let files: Vec<&PathBuf> = inside.iter().filter(|path| path.is_file()).collect();
    let describes = |path: &&PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name == "config.json" || name.ends_with(".index.json")
    };
    let weights = files.iter().filter(|path| has_weights(path)).count();
    let folders: Vec<&PathBuf> = inside.iter().filter(|path| path.is_dir()).collect();
    if files.iter().copied().any(|path| describes(&path)) || weights == 1 && folders.is_empty() {
        return Ok(vec![argument.into()]);
    }
    let mut models = Vec::new();
    for path in &inside {
        let is_model = match path.is_dir() {
            true => entries(path)?.iter().any(|path| has_weights(path) || describes(&path)),
            false => has_weights(path),
        };
        if is_model {
            models.push(path.clone());
        }
    }
    // What holds no models is opened as one, whose error says what is missing.
    Ok(if models.is_empty() { vec![argument.into()] } else { models })
}

/// What a model's own files say of where it comes from.
#[derive(Debug, Default)]
struct Said {
    /// The fingerprint of the model it was made from.
    made_from: Option<String>,
    /// Names.
    declared: Vec<String>,
}

/// Reads the provenance, the configuration and the card in the model's folder. They are hints of others' making, so what
/// is unreadable says nothing.
fn said(located: &Located, checkpoint: &Checkpoint) -> Said {
    /// A card has its heading in its first bytes.
    const CARD: usize = 1 << 16;
    let mut said = Said::default();
    // A file among many in one folder has no files of its own.
    if located.path() != located.folder() {
        return said;
    }
    for name in ["scruple.json", PROVENANCE] {
        let read = std::fs::read(located.folder().join(name)).ok();
        let value: Option<Value> = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let found = value.as_ref().and_then(|value| value.get("source_fingerprint")).and_then(Value::as_str);
        said.made_from = said.made_from.or(found.map(str::to_string));
    }
    if let Some(name) = checkpoint.config().ok().and_then(|config| config.get("_name_or_path")).and_then(Value::as_str)
    {
        said.declared.push(name.into());
    }
    if let Ok(card) = std::fs::read(located.folder().join("README.md")) {
        let card = String::from_utf8_lossy(&card[..card.len().min(CARD)]).into_owned();
        said.declared.extend(base_models(&card));
    }
    said.declared.retain(|name| !name.trim().is_empty());
    said.declared.dedup();
    said
}

/// `base_model` of a card's heading: one name, or a list.
fn base_models(card: &str) -> Vec<String> {
    let plain = |text: &str| text.trim().trim_matches(['"', '\'']).to_string();
    let mut lines = card.lines();
    if lines.next().map(str::trim) != Some("---") {
        return Vec::new();
    }
    let mut names = Vec::new();
    let mut in_list = false;
    for line in lines.take_while(|line| line.trim() != "---") {
        if let Some(value) = line.strip_prefix("base_model:") {
            let value = value.trim();
            in_list = value.is_empty();
            let several = value.strip_prefix('[').and_then(|value| value.strip_suffix(']'));
            match several {
                Some(several) => names.extend(several.split(',').map(plain)),
                None if !in_list => names.push(plain(value)),
                None => {}
            }
        } else if let Some(item) = line.trim_start().strip_prefix("- ").filter(|_| in_list) {
            names.push(plain(item));
        } else {
            in_list = false;
        }
    }
    names
}

/// A model that could be read.
struct Read {
    located: Located,
    member: Member,
    undecoded: bool,
}

fn read(argument: &Path) -> Result<Read> {
    let located = source::locate(argument)?;
    let checkpoint = located.open()?;
    let Said { made_from, declared } = said(&located, &checkpoint);
    let (model, why) = sides::model(checkpoint)?;
    if let Some(why) = &why {
        printer::warn(format!("{}: taken as it is stored, codes and scales: {why}", argument.display()));
    }
    let last = argument.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = located.name().map(str::to_string).or(last).unwrap_or_else(|| argument.display().to_string());
    let member = Member { name, sketch: Sketch::of(&model)?, fingerprint: None, made_from, declared };
    Ok(Read { located, member, undecoded: why.is_some() })
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut clock = Run::start("lineage");
    let mut paths = Vec::new();
    for argument in &arguments.models {
        paths.extend(expanded(argument)?);
    }
    ensure!(
        paths.len() > 1,
        "{}: lineage needs two models or more, found one; name several, or a folder that holds them",
        arguments.models[0].display()
    );
    let mut models: Vec<Read> = Vec::new();
    let mut unread = Vec::new();
    let mut taken = Vec::new();
    let mut progress = Progress::new("sketches", paths.len() as u64);
    for (at, path) in paths.iter().enumerate() {
        progress.at(at as u64, &path.display().to_string());
        match read(path) {
            Ok(read) => {
                models.push(read);
                taken.push(path);
            }
            Err(error) => {
                let why = printer::sentence(&error);
                printer::warn(format!("left out: {why}"));
                unread.push(Unread { model: path.display().to_string(), why });
            }
        }
    }
    drop(progress);
    ensure!(models.len() > 1, "of {} models {} can be read, lineage needs two or more", paths.len(), models.len());
    // Equal last parts of paths become whole paths.
    let names: Vec<String> = models.iter().map(|model| model.member.name.clone()).collect();
    for (model, path) in models.iter_mut().zip(taken) {
        if names.iter().filter(|name| **name == model.member.name).count() > 1 {
            model.member.name = path.display().to_string();
        }
    }
    // Hashing reads everything again, which is only worth it where a record names a hash.
    if models.iter().any(|model| model.member.made_from.is_some()) {
        for model in &mut models {
            model.member.fingerprint = Some(model.located.open()?.fingerprint());
        }
    }
    let undecoded = models.iter().filter(|model| model.undecoded).map(|model| model.member.name.clone()).collect();
    let (located, members): (Vec<Located>, Vec<Member>) =
        models.into_iter().map(|model| (model.located, model.member)).unzip();
    let mut judge = |a: usize, b: usize| -> Result<lineage::Diff, String> {
        let open = |at: usize| -> Result<lineage::Model> { Ok(sides::model(located[at].open()?)?.0) };
        let diff = || -> Result<lineage::Diff> { Ok(lineage::diff(&open(a)?, &open(b)?, &|_, _| {})?) };
        diff().map_err(|error| printer::sentence(&error))
    };
    let bar: Mutex<Option<(String, Progress)>> = Mutex::new(None);
    let tell = |what: &str, done: usize, of: usize| {
        if let Ok(mut bar) = bar.lock() {
            if bar.as_ref().is_none_or(|(known, _)| known != what) {
                *bar = Some((what.into(), Progress::new(what, of as u64)));
            }
            if let Some((_, progress)) = bar.as_mut() {
                progress.at(done as u64, "");
            }
        }
    };
    let family = family::family(&members, &mut judge, &tell);
    drop(bar);
    let record = Record { family, unread, undecoded };
    let given: Vec<String> = arguments.models.iter().map(|model| model.display().to_string()).collect();
    clock.extra.insert("models".into(), given.into());
    if let Some(out) = &arguments.output {
        record::save(out, "lineage", &record, &clock)?;
        record::write_whole(&out.join("lineage.dot"), dot(&record.family).as_bytes())?;
        for name in ["lineage.png", "lineage.svg"] {
            plot::family::draw(&out.join(name), &record.family)?;
        }
    }
    if arguments.json {
        printer::json(&record)?;
    } else {
        print(&record.family);
    }
    let failed = !record.unread.is_empty() || record.family.edges.iter().any(|edge| edge.kind == Kind::Unread);
    Ok(ExitCode::from(u8::from(failed)))
}

fn print(family: &Family) {
    let name = |model: usize| family.models[model].name.clone();
    for (number, tree) in family.trees.iter().enumerate().filter(|(_, tree)| tree.models.len() > 1) {
        let (root, sure) = (name(tree.root), plot::family::share(tree.root_confidence));
        printer::data(format!("tree {}: {} models, root {root} ({sure})", number + 1, tree.models.len()));
        let mut table = Table::new(["parent", "", "child", "what", "‖Δ‖/‖parent‖", "edge", "direction", "why"]);
        let of: BTreeSet<usize> = tree.models.iter().copied().collect();
        for edge in family.edges.iter().filter(|edge| of.contains(&edge.from)) {
            let (arrow, direction) = match edge.direction {
                Direction::Certain => ("→", "certain".into()),
                Direction::Likely => ("→", plot::family::share(edge.direction_confidence)),
                Direction::Undirected => {
                    ("–", format!("undirected ({})", plot::family::share(edge.direction_confidence)))
                }
            };
            table.row([
                name(edge.from),
                arrow.into(),
                name(edge.to),
                plot::family::what(edge),
                if edge.relative < 1e-3 && edge.relative > 0.0 {
                    format!("{:.1e}", edge.relative)
                } else {
                    format!("{:.4}", edge.relative)
                },
                plot::family::share(edge.confidence),
                direction,
                edge.evidence.join("; "),
            ]);
        }
        table.print();
        printer::data("");
    }
    for tree in family.trees.iter().filter(|tree| tree.models.len() == 1) {
        let model = &family.models[tree.models[0]];
        let nearest = model.nearest.map_or(String::new(), |near| match near.common > 0.0 {
            true => format!(": nearest {}, correlation {:.3}", name(near.model), near.correlation),
            false => ": another architecture, no matrix of one name and shape with any other".into(),
        });
        printer::data(format!("{} has no relative among these models{nearest}", model.name));
    }
}

/// The family in the language of Graphviz.
fn dot(family: &Family) -> String {
    let quoted = |text: &str| {
        let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        format!("\"{}\"", plain.replace('\\', "\\\\").replace('"', "\\\""))
    };
    let mut out = String::from("digraph lineage {\n  rankdir=LR;\n  node [shape=box];\n");
    for (at, model) in family.models.iter().enumerate() {
        let _ = writeln!(out, "  m{at} [label={}];", quoted(&model.name));
    }
    for edge in &family.edges {
        let style = match edge.direction {
            Direction::Certain => "penwidth=2",
            Direction::Likely => "penwidth=1",
            Direction::Undirected => "dir=none, style=dashed",
        };
        let label = format!(
            "{} (edge {}, direction {})",
            plot::family::what(edge),
            plot::family::share(edge.confidence),
            plot::family::share(edge.direction_confidence)
        );
        let _ = writeln!(out, "  m{} -> m{} [label={}, {style}];", edge.from, edge.to, quoted(&label));
    }
    out.push_str("}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_name_one_base_or_several() {
        assert_eq!(base_models("---\nbase_model: org/a\ntags:\n- x\n---\n"), ["org/a"]);
        assert_eq!(
            base_models("---\nbase_model:\n  - org/a\n- \"org/b\"\nlicense: mit\n- no\n---\n"),
            ["org/a", "org/b"]
        );
        assert_eq!(base_models("---\nbase_model: [org/a, 'org/b']\n---\n"), ["org/a", "org/b"]);
        assert!(base_models("base_model: org/a\n").is_empty() && base_models("").is_empty());
    }
}
