//! `scruple classify MODEL… --registry DIR`: what models were trained on, read from their weights.

mod card;

mod columns;

mod resume;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::OnceLock,
};

use anyhow::{Context, Result};
use rayon::prelude::*;
use scruple_weights::probex::{
    Answer as Said, Expert,
    neighbours::Members,
    registry::{Distance, Registry, Route},
};
use serde::Serialize;

use self::resume::{Asked, Beside, whole_lines};
use crate::{
    printer::{self, Table},
    record::{self, Run},
    source,
};

/// Models looked at before their answers are on disk, at most:
const TOGETHER: usize = 64;

/// as many as have layers of so many bytes.
const MEMORY: usize = 256 << 20;

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
    /// Write an answer a line as JSON into this file, and go on where an earlier run of the same experts and options stopped
    /// (`FILE.identity` says which they were); a model that cannot be read gets a line with the reason, is tried again by a
    /// later run, and lets the program end with 1
    #[arg(long, value_name = "FILE", requires = "registry")]
    pub jsonl: Option<PathBuf>,
    /// Write the same columns as Parquet when all answers are there; the lines it is made of, from which a later run goes
    /// on, stand in `--jsonl`, or without it beside the file with `.jsonl` behind its name
    #[arg(long, value_name = "FILE", requires = "registry")]
    pub parquet: Option<PathBuf>,
}

impl Options {
    /// Where answers go line by line.
    fn lines(&self) -> Option<PathBuf> {
        self.jsonl.clone().or_else(|| {
            let mut beside = self.parquet.clone()?.into_os_string();
            beside.push(".jsonl");
            Some(beside.into())
        })
    }
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

/// How a model would fit among those of a label.
#[derive(Debug, Serialize)]
struct Belonging {
    label: String,
    /// Mean distance to the two nearest models with the label among those the expert learnt from.
    distance: f32,
    /// Share of validation models that lie at least as far from a label they have: small where the model does not belong.
    p: f64,
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
    /// Labels that those have by their majority.
    vote: Vec<String>,
    /// How the model would fit among the documented models of each label that at least two of them have.
    belongs: Vec<Belonging>,
    /// Share of right answers on the expert's own test models (validation models where it had none).
    expert_accuracy: f64,
    /// Which of the two: `test`, or `validation`, on which the expert was chosen too.
    expert_judged_on: &'static str,
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
    /// Why the tree is assumed, and not told from the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    assumed: Option<String>,
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

/// What is said of many models, whose answers stand in lines of their own.
#[derive(Debug, Default, Serialize)]
struct Summary {
    coverage: f64,
    experts: usize,
    known: usize,
    unknown: usize,
    /// Models that could not be read.
    unread: usize,
}

impl Summary {
    /// Counts the answer to the model at `path`, and puts its line behind `lines`.
    fn add(&mut self, path: &Path, answer: Result<Answer>, lines: &mut Vec<u8>) -> Result<()> {
        match answer {
            Ok(answer) => {
                *(if answer.tree.is_some() { &mut self.known } else { &mut self.unknown }) += 1;
                serde_json::to_writer(&mut *lines, &answer)?;
            }
            Err(error) => {
                self.unread += 1;
                let (model, error) = (path.display().to_string(), printer::sentence(&error));
                serde_json::to_writer(&mut *lines, &Unread { model, error })?;
            }
        }
        lines.push(b'\n');
        Ok(())
    }
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

/// The experts at work.
struct Experts<'a> {
    registry: &'a Registry,
    options: &'a Options,
    /// How far models lie from the labels they have, of each expert from when it is first asked.
    members: Vec<OnceLock<Members>>,
    /// Models looked at together.
    together: usize,
}

impl<'a> Experts<'a> {
    fn new(registry: &'a Registry, options: &'a Options) -> Self {
        let bytes = registry.experts.iter().map(|(_, expert)| 4 * expert.about.layer.elements()).max().unwrap_or(4);
        let together = (MEMORY / bytes.max(1)).clamp(1, TOGETHER);
        Self { registry, options, members: registry.experts.iter().map(|_| OnceLock::new()).collect(), together }
    }

    /// What is said of the models, each on its own: the answer to a model does not depend on those it is asked with.
    fn answers(&self, paths: &[&PathBuf]) -> Vec<Result<Answer>> {
        let route = |path: &&PathBuf| -> Result<Route> { Ok(self.registry.route(&source::locate(path)?.open()?)?) };
        let mut routes: Vec<Result<Route>> = paths.par_iter().map(route).collect();
        let mut findings: Vec<Vec<Finding>> = paths.iter().map(|_| Vec::new()).collect();
        let mut trees = vec![None; paths.len()];
        // An expert reads all its models at once.
        for (number, (_, expert)) in self.registry.experts.iter().enumerate() {
            let (mut models, mut layers) = (Vec::new(), Vec::new());
            for (model, route) in routes.iter_mut().enumerate() {
                let Ok(route) = route else { continue };
                if let Some(at) = route.known.iter().position(|(expert, _)| *expert == number) {
                    models.push(model);
                    layers.push(route.known.swap_remove(at).1);
                }
            }
            if models.is_empty() {
                continue;
            }
            let members = self.members[number].get_or_init(|| expert.members());
            let said = expert.answers(layers, self.options.coverage, self.options.nearest);
            for (model, said) in models.into_iter().zip(said) {
                trees[model].get_or_insert_with(|| expert.about.tree.clone());
                findings[model].push(finding(expert, members, said));
            }
        }
        let all = routes.into_iter().zip(paths).zip(findings.into_iter().zip(trees));
        all.map(|((route, path), (findings, tree))| {
            let Route { distances, why: unknown, assumed, .. } = route?;
            Ok(Answer { model: path.display().to_string(), tree, unknown, assumed, distances, findings })
        })
        .collect()
    }
}

fn finding(expert: &Expert, members: &Members, said: Said) -> Finding {
    let about = &expert.about;
    let names = |classes: &[usize]| classes.iter().map(|&class| about.classes[class].clone()).collect();
    let near = |&(near, distance): &(usize, f32)| {
        let (model, classes) = &about.documented[near];
        Near { model: model.clone(), distance, labels: names(classes) }
    };
    let belonging = |(class, label): (usize, &String)| {
        let fit = members.fit(said.to_classes[class]?)?;
        Some(Belonging { label: label.clone(), distance: fit.distance, p: fit.p })
    };
    let with_names = about.classes.iter().zip(&said.probabilities);
    Finding {
        label: about.label.clone(),
        layer: about.layer.name.clone(),
        predicted: names(&said.decided),
        set: names(&said.set),
        probabilities: with_names
            .map(|(label, &probability)| Probability { label: label.clone(), probability })
            .collect(),
        nearest: said.nearest.iter().map(near).collect(),
        vote: names(&said.vote),
        belongs: about.classes.iter().enumerate().filter_map(belonging).collect(),
        expert_accuracy: about.test.as_ref().unwrap_or(&about.validation).accuracy.value,
        expert_judged_on: about.judged_on(),
    }
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
    if let Some(parquet) = options.parquet.as_ref().filter(|path| path.is_dir()) {
        anyhow::bail!("{}: is a folder; --parquet takes the name of a file", parquet.display());
    }
    let registry = Registry::open(folder)?;
    let mine: Vec<&PathBuf> = models.iter().skip(part).step_by(parts).collect();
    clock.extra.insert("registry".into(), folder.display().to_string().into());
    if let Some(file) = options.lines() {
        let summary = stream(&registry, options, &mine, &file)?;
        if let Some(parquet) = &options.parquet {
            columns::write(&file, parquet)?;
        }
        if let Some(out) = output {
            record::save(out, "classify", &summary, &clock)?;
        }
        if json {
            printer::json(&summary)?;
        }
        if summary.unread > 0 {
            printer::warn(format!("{} models could not be read; their lines say why", summary.unread));
        }
        return Ok(ExitCode::from(u8::from(summary.unread > 0)));
    }
    let experts = Experts::new(&registry, options);
    let mut answers = Vec::with_capacity(mine.len());
    for paths in mine.chunks(experts.together) {
        for answer in experts.answers(paths) {
            answers.push(answer?);
        }
    }
    let known = answers.iter().filter(|answer| answer.tree.is_some()).count();
    let unknown = answers.len() - known;
    let record = Record { coverage: options.coverage, experts: registry.experts.len(), known, unknown, answers };
    if let Some(out) = output {
        record::save(out, "classify", &record, &clock)?;
        record::write_whole(&out.join("card.html"), card::page(&record).as_bytes())?;
        card::pictures(&record, out)?;
    }
    if json {
        printer::json(&record)?;
    } else {
        record.answers.iter().for_each(print);
    }
    Ok(ExitCode::SUCCESS)
}

/// Answers line by line, behind those that are there; what all lines say.
fn stream(registry: &Registry, options: &Options, models: &[&PathBuf], file: &Path) -> Result<Summary> {
    use std::io::Write;
    let fail = || format!("{}: cannot write the answers", file.display());
    let before = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("{}: cannot read the answers", file.display())),
    };
    let whole = whole_lines(&before).map_err(|what| anyhow::anyhow!("{}: {what}", file.display()))?;
    let mut summary = Summary { coverage: options.coverage, experts: registry.experts.len(), ..Summary::default() };
    let mine: HashMap<String, &PathBuf> = models.iter().map(|path| (path.display().to_string(), *path)).collect();
    let mut beside = Beside::open(file, Asked::of(registry, options)?, !whole.is_empty())?;
    let experts = Experts::new(registry, options);
    let mut done = HashSet::new();
    let mut kept = Vec::with_capacity(whole.len());
    for (number, line) in whole.lines().enumerate() {
        let value: serde_json::Value = serde_json::from_str(line)
            .with_context(|| format!("{}: line {} is no answer", file.display(), number + 1))?;
        let model = value["model"].as_str();
        let model = model.with_context(|| format!("{}: line {} is of no model", file.display(), number + 1))?;
        done.insert(model.to_string());
        match (mine.get(model), value.get("error"), value.get("tree").and_then(serde_json::Value::as_str)) {
            // What could not be read is tried again, and has its line in the same place.
            (Some(path), Some(_), _) => {
                beside.add(&[*path])?;
                let answer = experts.answers(&[*path]).remove(0);
                summary.add(path, answer, &mut kept)?;
                continue;
            }
            (None, Some(_), _) => summary.unread += 1,
            (path, None, tree) => {
                path.map_or(Ok(()), |path| beside.expect_same(path))?;
                *(if tree.is_some() { &mut summary.known } else { &mut summary.unknown }) += 1;
            }
        }
        kept.extend_from_slice(line.as_bytes());
        kept.push(b'\n');
    }
    if kept != before {
        record::write_whole(file, &kept)?;
    }
    let mut out = std::fs::OpenOptions::new().create(true).append(true).open(file).with_context(fail)?;
    let left: Vec<&PathBuf> =
        models.iter().copied().filter(|path| !done.contains(&path.display().to_string())).collect();
    let mut progress = printer::Progress::new("classify", left.len() as u64);
    let mut written = 0;
    for paths in left.chunks(experts.together) {
        beside.add(paths)?;
        let mut lines = Vec::new();
        for (path, answer) in paths.iter().zip(experts.answers(paths)) {
            summary.add(path, answer, &mut lines)?;
        }
        out.write_all(&lines).and_then(|()| out.sync_data()).with_context(fail)?;
        written += paths.len();
        progress.at(written as u64, "models");
    }
    progress.finish();
    printer::say(format!("{} answers, {} of them from before", models.len(), models.len() - left.len()));
    Ok(summary)
}

fn print(answer: &Answer) {
    match (&answer.tree, &answer.unknown) {
        (Some(tree), _) => {
            let why = answer.assumed.as_ref().map_or(String::new(), |why| format!(", assumed: {why}"));
            printer::data(format!("{}: tree {tree}{why}", answer.model));
        }
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
        printer::data(format!("  {} (read from {}, {})", finding.label, finding.layer, finding.right()));
        let mut table = Table::new(["  label", "probability", "predicted", "in the set", "belongs (p)"]);
        let mut order: Vec<&Probability> = finding.probabilities.iter().collect();
        order.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        for p in order.into_iter().take(20) {
            let yes = |list: &[String]| if list.contains(&p.label) { "yes" } else { "" }.to_string();
            let (probability, belongs) = (format!("{:.3}", p.probability), finding.belongs(&p.label));
            let belongs = belongs.map_or("-".into(), |fit| format!("{:.3}", fit.p));
            table.row([format!("  {}", p.label), probability, yes(&finding.predicted), yes(&finding.set), belongs]);
        }
        table.print();
        for near in &finding.nearest {
            printer::data(format!("  near {} ({:.3}): {}", near.model, near.distance, near.labels.join(", ")));
        }
        if !finding.nearest.is_empty() {
            printer::data(format!("  {}", finding.vote()));
        }
    }
}

impl Finding {
    fn belongs(&self, label: &str) -> Option<&Belonging> {
        self.belongs.iter().find(|fit| fit.label == label)
    }

    /// How often the expert was right, and on which models.
    fn right(&self) -> String {
        format!("{:.1} % right on {} models", 100.0 * self.expert_accuracy, self.expert_judged_on)
    }

    /// What the nearest documented models are, as a sentence.
    fn vote(&self) -> String {
        let labels = if self.vote.is_empty() { "no label in common".into() } else { self.vote.join(", ") };
        format!("vote of the {} nearest documented models: {labels}", self.nearest.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accuracy_of_models_that_chose_is_not_called_that_of_test_models() {
        let mut finding = Finding {
            label: "l".into(),
            layer: "w".into(),
            predicted: Vec::new(),
            set: Vec::new(),
            probabilities: Vec::new(),
            nearest: Vec::new(),
            vote: Vec::new(),
            belongs: Vec::new(),
            expert_accuracy: 0.975,
            expert_judged_on: "validation",
        };
        assert_eq!(finding.right(), "97.5 % right on validation models");
        finding.expert_judged_on = "test";
        assert_eq!(finding.right(), "97.5 % right on test models");
    }

    #[test]
    fn parts_are_numbered_from_one() {
        assert_eq!(shard(None).unwrap(), (0, 1));
        assert_eq!(shard(Some("2/4")).unwrap(), (1, 4));
        for wrong in ["0/4", "5/4", "2", "a/b", "1/0"] {
            assert!(shard(Some(wrong)).unwrap_err().to_string().contains("1/4"), "{wrong}");
        }
    }
}
