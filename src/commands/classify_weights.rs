//! `scruple classify MODEL… --registry DIR`: what models were trained on, read from their weights.

mod card;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use scruple_weights::{
    Checkpoint,
    probex::registry::{Distance, Registry},
};
use serde::Serialize;

use crate::{
    printer::{self, Table},
    record::{self, Run},
    source,
};

/// Models looked at before their answers are on disk.
const TOGETHER: usize = 64;

/// The options that weights alone take.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Read from the weights alone what the models were trained on, by the experts in this folder (`scruple probe train`)
    #[arg(long, value_name = "DIR", conflicts_with_all = ["text", "stdin", "images"])]
    pub registry: Option<PathBuf>,
    /// Chance with which the label sets hold all true labels
    #[arg(long, default_value_t = 0.9, requires = "registry")]
    pub coverage: f64,
    /// Documented models to name for each, the nearest first
    #[arg(long, default_value_t = 5, requires = "registry")]
    pub nearest: usize,
    /// Take part i of n of the models, so that n machines share them
    #[arg(long, value_name = "I/N", requires = "registry")]
    pub shard: Option<String>,
    /// Write an answer a line as JSON into this file, and go on where an earlier run stopped; a model that cannot be read
    /// gets a line with the reason, and the program then ends with 1
    #[arg(long, value_name = "FILE", requires = "registry")]
    pub jsonl: Option<PathBuf>,
}

/// A label with its probability.
#[derive(Debug, Serialize)]
struct Probability {
    label: String,
    probability: f32,
}

/// A documented model near by.
#[derive(Debug, Serialize)]
struct Near {
    model: String,
    distance: f32,
    labels: Vec<String>,
}

/// What one expert says.
#[derive(Debug, Serialize)]
struct Finding {
    /// What is told.
    label: String,
    /// The layer that was read.
    layer: String,
    /// Labels above 0.5, or the most likely one.
    predicted: Vec<String>,
    /// Labels that hold all true ones with the chance asked for.
    set: Vec<String>,
    /// Every label, in the expert's order.
    probabilities: Vec<Probability>,
    /// Documented models, nearest first.
    nearest: Vec<Near>,
    /// Share of right answers on the expert's own test models (validation models where it had none).
    expert_accuracy: f64,
}

/// What is said of one model.
#[derive(Debug, Serialize)]
struct Answer {
    model: String,
    /// The tree it belongs to; none where it is of no known tree.
    tree: Option<String>,
    /// Why no tree is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
    /// To every expert's tree.
    distances: Vec<Distance>,
    findings: Vec<Finding>,
}

/// A model that could not be read, among many.
#[derive(Debug, Serialize)]
struct Unread {
    model: String,
    error: String,
}

/// The findings: the same bytes for the same models and registry.
#[derive(Debug, Serialize)]
struct Record {
    coverage: f64,
    experts: usize,
    known: usize,
    unknown: usize,
    answers: Vec<Answer>,
}

/// Which part of the models is taken: (i, n).
fn shard(text: Option<&str>) -> Result<(usize, usize)> {
    let Some(text) = text else { return Ok((0, 1)) };
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((i, n)) if (1..=n).contains(&i) => Ok((i - 1, n)),
        _ => anyhow::bail!("--shard should be such as 1/4 (part 1 of 4), found `{}`", text.escape_debug()),
    }
}

fn answer(registry: &Registry, options: &Options, path: &Path, checkpoint: &Checkpoint) -> Result<Answer> {
    let route = registry.route(checkpoint)?;
    let mut findings = Vec::new();
    let mut tree = None;
    for (at, values) in route.known {
        let expert = &registry.experts[at].1;
        let about = &expert.about;
        tree.get_or_insert_with(|| about.tree.clone());
        let names = |classes: &[usize]| classes.iter().map(|&class| about.classes[class].clone()).collect();
        for said in expert.answers(vec![values], options.coverage, options.nearest) {
            let with_names = about.classes.iter().zip(&said.probabilities);
            findings.push(Finding {
                label: about.label.clone(),
                layer: about.layer.name.clone(),
                predicted: names(&said.decided),
                set: names(&said.set),
                probabilities: with_names
                    .map(|(label, &probability)| Probability { label: label.clone(), probability })
                    .collect(),
                nearest: said
                    .nearest
                    .iter()
                    .map(|&(near, distance)| {
                        let (model, classes) = &about.documented[near];
                        Near { model: model.clone(), distance, labels: names(classes) }
                    })
                    .collect(),
                expert_accuracy: about.test.as_ref().unwrap_or(&about.validation).accuracy.value,
            });
        }
    }
    let model = path.display().to_string();
    Ok(Answer { model, tree, unknown: route.why, distances: route.distances, findings })
}

/// Runs the verb on weights.
pub fn run(models: &[PathBuf], options: &Options, json: bool, output: Option<&Path>) -> Result<ExitCode> {
    let mut clock = Run::start("classify");
    let folder = options.registry.as_deref().context("there is no registry")?;
    anyhow::ensure!(
        options.coverage > 0.0 && options.coverage < 1.0,
        "--coverage should lie between 0 and 1, found {}",
        options.coverage
    );
    let (part, parts) = shard(options.shard.as_deref())?;
    let registry = Registry::open(folder)?;
    let mine: Vec<&PathBuf> = models.iter().skip(part).step_by(parts).collect();
    if let Some(file) = &options.jsonl {
        return stream(&registry, options, &mine, file);
    }
    let mut answers = Vec::with_capacity(mine.len());
    for path in mine {
        let checkpoint = source::locate(path)?.open()?;
        answers.push(answer(&registry, options, path, &checkpoint)?);
    }
    let known = answers.iter().filter(|answer| answer.tree.is_some()).count();
    let unknown = answers.len() - known;
    let record = Record { coverage: options.coverage, experts: registry.experts.len(), known, unknown, answers };
    clock.extra.insert("registry".into(), folder.display().to_string().into());
    if let Some(out) = output {
        record::save(out, "classify", &record, &clock)?;
        record::write_whole(&out.join("card.html"), card::page(&record).as_bytes())?;
    }
    if json {
        printer::json(&record)?;
    } else {
        record.answers.iter().for_each(print);
    }
    Ok(ExitCode::SUCCESS)
}

/// Answers line by line, behind those that are there.
fn stream(registry: &Registry, options: &Options, models: &[&PathBuf], file: &Path) -> Result<ExitCode> {
    use std::io::Write;
    let fail = || format!("{}: cannot write the answers", file.display());
    let before = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("{}: cannot read the answers", file.display())),
    };
    // A line that was cut by a kill is done again.
    let whole = &before[..before.rfind('\n').map_or(0, |end| end + 1)];
    let mut done = std::collections::HashSet::new();
    for (number, line) in whole.lines().enumerate() {
        let value: serde_json::Value = serde_json::from_str(line)
            .with_context(|| format!("{}: line {} is no answer", file.display(), number + 1))?;
        done.extend(value["model"].as_str().map(str::to_string));
    }
    let mut out = std::fs::OpenOptions::new().create(true).write(true).truncate(false).open(file).with_context(fail)?;
    out.set_len(whole.len() as u64).with_context(fail)?;
    std::io::Seek::seek(&mut out, std::io::SeekFrom::End(0)).with_context(fail)?;
    let left: Vec<&&PathBuf> = models.iter().filter(|path| !done.contains(&path.display().to_string())).collect();
    let mut unread = 0;
    let mut progress = printer::Progress::new("classify", left.len() as u64);
    for (chunk, paths) in left.chunks(TOGETHER).enumerate() {
        use rayon::prelude::*;
        let answers: Vec<Result<Answer>> =
            paths.par_iter().map(|path| answer(registry, options, path, &source::locate(path)?.open()?)).collect();
        let mut lines = Vec::new();
        for (path, answer) in paths.iter().zip(answers) {
            match answer {
                Ok(answer) => serde_json::to_writer(&mut lines, &answer)?,
                Err(error) => {
                    unread += 1;
                    let (model, error) = (path.display().to_string(), printer::sentence(&error));
                    serde_json::to_writer(&mut lines, &Unread { model, error })?;
                }
            }
            lines.push(b'\n');
        }
        out.write_all(&lines).and_then(|()| out.sync_data()).with_context(fail)?;
        progress.at((chunk * TOGETHER + paths.len()) as u64, "models");
    }
    progress.finish();
    printer::say(format!("{} answers, {} of them from before", models.len(), models.len() - left.len()));
    if unread > 0 {
        printer::warn(format!("{unread} models could not be read; their lines say why"));
    }
    Ok(ExitCode::from(u8::from(unread > 0)))
}

fn print(answer: &Answer) {
    match (&answer.tree, &answer.unknown) {
        (Some(tree), _) => printer::data(format!("{}: tree {tree}", answer.model)),
        (None, why) => {
            printer::data(format!(
                "{}: unknown tree; {}",
                answer.model,
                why.as_deref().unwrap_or("no expert knows it")
            ));
            let mut table = Table::new(["tree", "layer", "distance", "accepted up to"]);
            for d in &answer.distances {
                let distance = d.distance.map_or("no such layer".into(), |distance| format!("{distance:.4}"));
                table.row([d.tree.clone(), d.layer.clone(), distance, format!("{:.4}", d.limit)]);
            }
            table.print();
        }
    }
    for finding in &answer.findings {
        let right = 100.0 * finding.expert_accuracy;
        printer::data(format!("  {} (read from {}, {right:.1} % right on test models)", finding.label, finding.layer));
        let mut table = Table::new(["  label", "probability", "predicted", "in the set"]);
        let mut order: Vec<&Probability> = finding.probabilities.iter().collect();
        order.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        for p in order.into_iter().take(20) {
            let yes = |list: &[String]| if list.contains(&p.label) { "yes" } else { "" }.to_string();
            let probability = format!("{:.3}", p.probability);
            table.row([format!("  {}", p.label), probability, yes(&finding.predicted), yes(&finding.set)]);
        }
        table.print();
        for near in &finding.nearest {
            printer::data(format!("  near {} ({:.3}): {}", near.model, near.distance, near.labels.join(", ")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_numbered_from_one() {
        assert_eq!(shard(None).unwrap(), (0, 1));
        assert_eq!(shard(Some("2/4")).unwrap(), (1, 4));
        for wrong in ["0/4", "5/4", "2", "a/b", "1/0"] {
            assert!(shard(Some(wrong)).unwrap_err().to_string().contains("1/4"), "{wrong}");
        }
    }
}
