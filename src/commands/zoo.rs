//! `scruple zoo`: labelled models to learn probes on, made on the spot or found in a folder.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
};

use anyhow::{Context, Result};
use clap::Subcommand;
use scruple_compress::{
    data::{glyphs, images::ImageSet},
    zoo::{PRESETS, Recipe, build, build::planned_count, pictures::Pictures},
};
use scruple_weights::zoo::{INDEX, Index, Split, table};
use serde::Serialize;

use crate::{
    printer::{self, Progress, Table},
    record::{self, Run},
};

/// Glyphs drawn where no images are named, as many as there are UCI digits.
const GLYPHS: usize = 1797;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Train hundreds of small networks from common ancestors, and write them with what they learnt
    Build(BuildArguments),
    /// Index a folder of checkpoints with a table of labels
    Index(IndexArguments),
}

/// The options of `zoo build`.
#[derive(Debug, clap::Args)]
struct BuildArguments {
    /// What is made: digits-small, digits-tiny, fashion, fashion-sets
    #[arg(long, default_value = "digits-small")]
    preset: String,
    /// Images to learn: IDX (labels beside), or digits as comma-separated values, gzipped or not; without it glyphs that
    /// the program draws
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Labels of IDX images, where they do not lie beside them
    #[arg(long, value_name = "FILE", requires = "data")]
    data_labels: Option<PathBuf>,
    /// Names of the images' classes, with commas between
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    classes: Option<Vec<String>>,
    /// Draws all that is random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print a record as JSON
    #[arg(long)]
    json: bool,
    /// The zoo's folder, which must not exist
    #[arg(short, long)]
    output: PathBuf,
}

/// The options of `zoo index`.
#[derive(Debug, clap::Args)]
struct IndexArguments {
    /// Folder with checkpoints in it or below
    folder: PathBuf,
    /// Table of labels (CSV): a column `model`, and a column a label; `tree`, `split` and `kind` may stand beside. A cell
    /// holds one label, several with `|` between, or a list such as ['a', 'b']
    #[arg(long, value_name = "FILE", required_unless_present = "metadata")]
    labels: Option<PathBuf>,
    /// Take the labels from this key of the checkpoints' own metadata
    #[arg(long, value_name = "KEY", conflicts_with = "labels")]
    metadata: Option<String>,
    /// The ancestor of a tree, as TREE=PATH; for a zoo of one tree PATH alone
    #[arg(long, value_name = "TREE=PATH")]
    base: Vec<String>,
    /// Draws which models are for training, validation and test, where the table does not say
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print a record as JSON
    #[arg(long)]
    json: bool,
    /// Where `zoo.json` goes; into the folder of checkpoints without it
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// What a zoo holds: the same bytes for the same inputs.
#[derive(Debug, Serialize)]
struct Record {
    models: usize,
    trees: BTreeMap<String, usize>,
    kinds: BTreeMap<String, usize>,
    splits: BTreeMap<&'static str, usize>,
    labels: BTreeMap<String, usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipe: Option<Recipe>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    /// Share of an ancestor's own training images it knows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ancestors: Vec<f64>,
    /// Mean and least accuracy of the models on images they have not seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<(f64, f64)>,
    /// Checkpoints of the folder without a label.
    #[serde(skip_serializing_if = "Option::is_none")]
    unlabelled: Option<usize>,
}

impl Record {
    fn of(index: &Index) -> Self {
        let (mut trees, mut kinds, mut splits) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for model in &index.models {
            *trees.entry(model.tree.clone()).or_insert(0) += 1;
            *kinds.entry(model.kind.clone()).or_insert(0) += 1;
            let split = match model.split {
                Split::Training => "training",
                Split::Validation => "validation",
                Split::Test => "test",
                Split::HeldOut => "held out",
            };
            *splits.entry(split).or_insert(0) += 1;
        }
        let labels = index.labels.iter().map(|(name, label)| (name.clone(), label.classes.len())).collect();
        let models = index.models.len();
        let (recipe, data, ancestors, accuracy, unlabelled) = (None, None, Vec::new(), None, None);
        Self { models, trees, kinds, splits, labels, recipe, data, ancestors, accuracy, unlabelled }
    }

    fn print(&self) {
        let mut table = Table::new(["what", "models"]);
        table.row(["all".into(), self.models.to_string()]);
        for (name, count) in &self.trees {
            table.row([format!("tree {name}"), count.to_string()]);
        }
        for (name, count) in &self.kinds {
            table.row([format!("kind {name}"), count.to_string()]);
        }
        for (name, count) in &self.splits {
            table.row([format!("for {name}"), count.to_string()]);
        }
        table.print();
        if let Some((mean, least)) = self.accuracy {
            printer::say(format!(
                "the models know {:.1} % of unseen images, the least {:.1} %",
                100.0 * mean,
                100.0 * least
            ));
        }
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.what {
        What::Build(arguments) => make(arguments),
        What::Index(arguments) => find(arguments),
    }
}

fn class_names(arguments: &BuildArguments, set: &ImageSet) -> Result<Vec<String>> {
    let names: Vec<String> = match (&arguments.classes, &arguments.data) {
        (Some(names), _) => names.clone(),
        (None, None) => glyphs::CLASSES.iter().map(|name| (*name).to_string()).collect(),
        (None, Some(_)) => (0..set.classes).map(|class| class.to_string()).collect(),
    };
    anyhow::ensure!(
        names.len() == set.classes,
        "--classes names {} classes, the images have {}",
        names.len(),
        set.classes
    );
    Ok(names)
}

fn make(arguments: &BuildArguments) -> Result<ExitCode> {
    let clock = Run::start("zoo build");
    let recipe = Recipe::preset(&arguments.preset).with_context(|| {
        let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
        format!("there is no preset `{}`; there are {}", arguments.preset.escape_debug(), names.join(", "))
    })?;
    let out = &arguments.output;
    anyhow::ensure!(
        out.symlink_metadata().is_err(),
        "{}: the output exists already; choose another name",
        out.display()
    );
    let set = match &arguments.data {
        Some(file) => ImageSet::read(file, arguments.data_labels.as_deref())?,
        None => ImageSet::of_glyphs(glyphs::glyphs(arguments.seed, GLYPHS.max(recipe.images), 8)),
    };
    let names = class_names(arguments, &set)?;
    let pictures = Pictures::split(&set, recipe.images, arguments.seed)?;
    // The zoo grows beside its place and moves there whole.
    let parent = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).with_context(|| format!("{}: cannot create the folder", parent.display()))?;
    let work = tempfile::Builder::new()
        .prefix(".zoo-")
        .tempdir_in(parent)
        .with_context(|| format!("{}: cannot create a folder", parent.display()))?;
    let progress = Mutex::new(Progress::new("train", planned_count(&recipe) as u64));
    let built = build(&recipe, &pictures, &names, arguments.seed, work.path(), &|done, _| {
        if let Ok(mut progress) = progress.lock() {
            progress.at(done as u64, "models");
        }
    })?;
    drop(progress);
    let record = Record {
        recipe: Some(recipe),
        data: arguments.data.as_ref().and_then(|file| file.file_name()).map(|name| name.to_string_lossy().into_owned()),
        ancestors: built.ancestors,
        accuracy: Some(built.accuracy),
        ..Record::of(&built.index)
    };
    record::save(work.path(), "build", &record, &clock)?;
    let folder = work.keep();
    let moved = set_readable(&folder).and_then(|()| std::fs::rename(&folder, out));
    if let Err(error) = moved {
        std::fs::remove_dir_all(&folder).ok();
        return Err(error).with_context(|| format!("{}: cannot move the zoo to its place", out.display()));
    }
    show(&record, arguments.json)
}

/// Temporary folders are for their owner alone; the zoo gets the modes that a new folder has.
fn set_readable(folder: &Path) -> std::io::Result<()> {
    let permissions = std::fs::metadata(folder.join("models"))?.permissions();
    std::fs::set_permissions(folder, permissions)
}

fn show(record: &Record, json: bool) -> Result<ExitCode> {
    if json {
        printer::json(record)?;
    } else {
        record.print();
    }
    Ok(ExitCode::SUCCESS)
}

fn find(arguments: &IndexArguments) -> Result<ExitCode> {
    let clock = Run::start("zoo index");
    let mut bases = BTreeMap::new();
    for base in &arguments.base {
        let (tree, path) = base.split_once('=').unwrap_or(("tree", base));
        let path = std::path::absolute(path).with_context(|| format!("--base {base}: the path is not usable"))?;
        anyhow::ensure!(path.exists(), "{}: the base of tree `{}` is not there", path.display(), tree.escape_debug());
        anyhow::ensure!(bases.insert(tree.to_string(), path).is_none(), "--base names tree `{tree}` twice");
    }
    let (folder, table, metadata) = (arguments.folder.clone(), arguments.labels.clone(), arguments.metadata.clone());
    let mut indexed = table::index(&table::Wanted { folder, table, metadata, bases, seed: arguments.seed })?;
    let out = arguments.output.as_deref().unwrap_or(&arguments.folder);
    if arguments.output.is_some() {
        let folder = std::path::absolute(&arguments.folder)
            .with_context(|| format!("{}: the path is not usable", arguments.folder.display()))?;
        for model in &mut indexed.index.models {
            model.path = folder.join(&model.path).to_string_lossy().into_owned();
        }
    }
    let record = Record { unlabelled: Some(indexed.unlabelled), ..Record::of(&indexed.index) };
    let folder = record::folder(out)?;
    record::write_whole(&folder.join(INDEX), &record::pretty(&indexed.index)?)?;
    record::save(out, "index", &record, &clock)?;
    if indexed.unlabelled > 0 {
        printer::warn(format!("{} checkpoints have no labels and are left out", indexed.unlabelled));
    }
    show(&record, arguments.json)
}
