//! `scruple search`: documented models of a registry that are about some words.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use scruple_weights::probex::registry::Registry;
use serde::Serialize;

use super::probe::train::class_texts;
use crate::{
    printer::{self, Table},
    record::{self, Run},
};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What is looked for, in words
    words: String,
    /// Folder of experts that were trained with `--texts`
    #[arg(long, value_name = "DIR")]
    registry: PathBuf,
    /// The text encoder they were trained with
    #[arg(long, value_name = "MODEL")]
    texts: PathBuf,
    /// Models named
    #[arg(long, default_value_t = 10)]
    limit: usize,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Write `search.json` and `run.json` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// A model found.
#[derive(Debug, Serialize)]
struct Found {
    model: String,
    tree: String,
    /// Cosine of the model's representation to the words.
    likeness: f32,
    labels: Vec<String>,
}

/// The findings: the same bytes for the same registry and words.
#[derive(Debug, Serialize)]
struct Record {
    words: String,
    models: Vec<Found>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("search");
    anyhow::ensure!(!arguments.words.trim().is_empty(), "there are no words to look for");
    let registry = Registry::open(&arguments.registry)?;
    let query = class_texts(&arguments.texts, std::slice::from_ref(&arguments.words))?;
    let mut models = Vec::new();
    let mut other_encoder = false;
    for (file, expert) in &registry.experts {
        let about = &expert.about;
        match &about.encoder {
            Some(encoder) if *encoder == query.encoder => {}
            Some(_) => {
                other_encoder = true;
                printer::warn(format!("{}: the expert was trained with another text encoder", file.display()));
                continue;
            }
            None => continue,
        }
        for (at, likeness) in expert.search(&query.values, arguments.limit) {
            let (model, classes) = &about.documented[at];
            let labels = classes.iter().map(|&class| about.classes[class].clone()).collect();
            models.push(Found { model: model.clone(), tree: about.tree.clone(), likeness, labels });
        }
    }
    let why = if other_encoder { "with this text encoder" } else { "with --texts" };
    anyhow::ensure!(
        !models.is_empty(),
        "{}: no expert was trained {why}; train one by `scruple probe train ZOO --texts`",
        arguments.registry.display()
    );
    models.sort_by(|a, b| b.likeness.total_cmp(&a.likeness).then_with(|| a.model.cmp(&b.model)));
    models.truncate(arguments.limit);
    let record = Record { words: arguments.words.clone(), models };
    if let Some(out) = &arguments.output {
        record::save(out, "search", &record, &clock)?;
    }
    if arguments.json {
        printer::json(&record)?;
    } else {
        let mut table = Table::new(["model", "tree", "likeness", "labels"]);
        for found in &record.models {
            let likeness = format!("{:.3}", found.likeness);
            table.row([found.model.clone(), found.tree.clone(), likeness, found.labels.join(" | ")]);
        }
        table.print();
    }
    Ok(ExitCode::SUCCESS)
}
