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

/// Labels of the models found that are told.
const SHOWN: usize = 5;

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
    /// What those have, the commonest first.
    vote: Vec<Share>,
}

/// A label of the models found.
#[derive(Debug, PartialEq, Serialize)]
struct Share {
    label: String,
    /// Of the models found, those that have it.
    models: usize,
}

/// The labels of `models` by how many have them; of equally many the one found first.
fn vote(models: &[Found]) -> Vec<Share> {
    let mut shares: Vec<Share> = Vec::new();
    for label in models.iter().flat_map(|found| &found.labels) {
        match shares.iter_mut().find(|share| share.label == *label) {
            Some(share) => share.models += 1,
            None => shares.push(Share { label: label.clone(), models: 1 }),
        }
    }
    shares.sort_by_key(|share| std::cmp::Reverse(share.models));
    shares
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
    let vote = vote(&models);
    let record = Record { words: arguments.words.clone(), models, vote };
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
        let most = record.vote.iter().take(SHOWN).map(|share| format!("{} ({})", share.label, share.models));
        printer::data(format!("of {} models: {}", record.models.len(), most.collect::<Vec<_>>().join(", ")));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_counted_the_commonest_first() {
        let found = |labels: &[&str]| Found {
            model: "m".into(),
            tree: "t".into(),
            likeness: 0.5,
            labels: labels.iter().map(|label| label.to_string()).collect(),
        };
        let share = |label: &str, models| Share { label: label.into(), models };
        let models = [found(&["a", "b"]), found(&["c"]), found(&["b", "c"]), found(&["c"])];
        assert_eq!(vote(&models), [share("c", 3), share("b", 2), share("a", 1)]);
    }
}
