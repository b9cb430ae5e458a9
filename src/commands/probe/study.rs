//! `scruple probe study`: what can and cannot be read from a zoo.
//!
//! Every figure is of test models, with the interval of 95 % that drawing models (and seeds) anew gives.

mod left_out;

mod neighbours;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use scruple_compress::zoo::build::{NO_TREE, NO_TREE_KIND};
use scruple_weights::{
    Checkpoint,
    probex::{
        Expert,
        baseline::{Features, boosted, logistic, spectrum, statistics_of},
        cache::{Copies, mean},
        damage::Damage,
        evaluate::{Outcome, judge},
        fit::{Job, Members, base_has, common_layers},
        head::{Choice, probabilities},
        layer::Layer,
        metrics::{Figure, Figures, mean_over, recovered},
        registry::Registry,
        spec::{Input, PRESETS, Preset},
        train::{Part, Training},
    },
    zoo::{Label, Zoo},
};
use serde::Serialize;

use super::train::{file_name, shown};
use crate::{
    printer::{self, Table},
    record::{self, Run},
};

/// Compressions experts are tried on.
const DAMAGES: [Damage; 5] = [Damage::Bits(8), Damage::Bits(6), Damage::Bits(4), Damage::Prune(30), Damage::Prune(50)];

/// Compressed copies that augmented experts learn from.
const COPIES: [Damage; 4] = [Damage::Bits(8), Damage::Bits(4), Damage::Prune(30), Damage::Prune(50)];

/// Training models that a tree needs.
const LEAST: usize = 4;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder of a zoo (`zoo.json`)
    zoo: PathBuf,
    /// What is to be told of models; the zoo's first label without it
    #[arg(long)]
    label: Option<String>,
    /// Layers looked at; all that the models have in common without it
    #[arg(long, value_name = "NAME")]
    layer: Vec<String>,
    /// Parts of the study: presets, baselines, other-trees, left-out, controls, router, joint, compression, sizes,
    /// neighbours; all without it
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    part: Vec<String>,
    /// Trainings of each probe, from different starts
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Passes over the training models
    #[arg(long, default_value_t = 200)]
    epochs: usize,
    /// Nearest models that vote, one number or several
    #[arg(long, value_name = "K", value_delimiter = ',', default_values_t = [2, 5, 15])]
    neighbours: Vec<usize>,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Write `study.json` and `run.json` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
}

const PARTS: [&str; 10] = [
    "presets",
    "baselines",
    "other-trees",
    "left-out",
    "controls",
    "router",
    "joint",
    "compression",
    "sizes",
    "neighbours",
];

/// One figure of the study.
#[derive(Debug, Serialize)]
struct Finding {
    part: &'static str,
    tree: String,
    layer: String,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<usize>,
    accuracy: Figure,
    #[serde(skip_serializing_if = "Option::is_none")]
    figures: Option<Figures>,
}

/// The findings: the same bytes for the same zoo and options.
#[derive(Debug, Serialize)]
struct Record {
    label: String,
    seeds: u64,
    epochs: usize,
    findings: Vec<Finding>,
}

/// What all parts share.
struct Study<'a> {
    zoo: &'a Zoo,
    label: &'a str,
    of: &'a Label,
    trees: Vec<String>,
    layers: Vec<Layer>,
    seeds: u64,
    epochs: usize,
    neighbours: Vec<usize>,
    work: tempfile::TempDir,
    findings: Vec<Finding>,
}

/// How a probe is to be made.
#[derive(Clone)]
struct Want {
    trees: Vec<String>,
    kind: &'static str,
    layer: String,
    preset: Preset,
    input: Option<Input>,
    augment: Copies,
    most: Option<usize>,
    shuffle: bool,
}

impl Study<'_> {
    fn want(&self, tree: &str, layer: &Layer, preset: Preset) -> Want {
        Want {
            trees: vec![tree.into()],
            kind: "full",
            layer: layer.name.clone(),
            preset,
            input: None,
            augment: Copies::default(),
            most: None,
            shuffle: false,
        }
    }

    /// The experts of every seed: (seed, tree).
    fn experts(&self, want: &Want) -> Result<Vec<Vec<Expert>>> {
        // The closed form has no start.
        let seeds = if want.preset == Preset::Ridge { 1 } else { self.seeds };
        (0..seeds)
            .map(|seed| {
                let job = Job {
                    zoo: self.zoo,
                    label: self.label,
                    trees: want.trees.clone(),
                    kinds: vec![want.kind.into()],
                    layers: vec![want.layer.clone()],
                    presets: vec![want.preset],
                    ranks: None,
                    input: want.input,
                    training: Training { seed, epochs: self.epochs, ..Training::default() },
                    augment: want.augment.clone(),
                    most: want.most,
                    shuffle: want.shuffle,
                    texts: None,
                    work: self.work.path(),
                    engine: None,
                };
                Ok(job.run(&mut |_| {})?)
            })
            .collect()
    }

    fn members(&self, tree: &str, kind: &str) -> Members {
        Members::of(self.zoo, tree, &[kind.to_string()], None)
    }

    /// Right decisions of each seed's expert number `which` on the test models of `tree`, (seed, model), and the figures of
    /// the first.
    fn judged(
        &self,
        experts: &[Vec<Expert>],
        which: usize,
        (tree, kind): (&str, &str),
        damage: Option<Damage>,
        centre: Option<&[f32]>,
    ) -> Result<(Vec<Vec<f64>>, Figures)> {
        let members = self.members(tree, kind);
        let outcomes: Vec<Outcome> = experts
            .iter()
            .map(|experts| judge(&experts[which], self.zoo, (&members, &members.test), damage, centre))
            .collect::<Result<_, _>>()?;
        Ok((outcomes.iter().map(Outcome::by_model).collect(), outcomes[0].figures(0)))
    }

    fn note(
        &mut self,
        part: &'static str,
        tree: &str,
        layer: &str,
        what: String,
        found: (Vec<Vec<f64>>, Figures),
    ) -> Figure {
        let accuracy = mean_over(&found.0, 0);
        printer::say(format!("{part}: {tree}, {layer}, {what}: {}", shown(&accuracy)));
        self.findings.push(Finding {
            part,
            tree: tree.into(),
            layer: layer.into(),
            what,
            parameters: None,
            accuracy,
            figures: Some(found.1),
        });
        accuracy
    }

    /// Every preset on every layer of every tree, and the paper's probe on what fine-tuning changed.
    fn presets(&mut self) -> Result<()> {
        for layer in self.layers.clone() {
            for tree in self.trees.clone() {
                let mut wants: Vec<(String, Want)> =
                    PRESETS.map(|preset| (preset.name().into(), self.want(&tree, &layer, preset))).into();
                let change = if base_has(self.zoo, &tree, &layer)? { Input::Base } else { Input::Centroid };
                let paper = Want { input: Some(change), ..self.want(&tree, &layer, Preset::Probex) };
                wants.push((format!("probex, {}", change.name()), paper));
                let delta = Want { input: Some(Input::Centroid), ..self.want(&tree, &layer, Preset::Delta) };
                wants.push(("delta, minus centroid".into(), delta));
                for (what, want) in wants {
                    let experts = self.experts(&want)?;
                    let found = self.judged(&experts, 0, (&tree, "full"), None, None)?;
                    self.note("presets", &tree, &layer.name, what, found);
                    if let Some(last) = self.findings.last_mut() {
                        last.parameters = Some(experts[0][0].about.spec.parameters());
                    }
                }
            }
        }
        Ok(())
    }

    /// Statistics of all tensors and spectra of a layer, with plain learners on them.
    fn baselines(&mut self) -> Result<()> {
        for tree in self.trees.clone() {
            let members = self.members(&tree, "full");
            let files = members.files(self.zoo);
            let open = |file: &PathBuf| Checkpoint::open(file);
            let names = left_out::shared_names(&files)?;
            let rows = files.iter().map(|file| statistics_of(&open(file)?, &names)).collect::<Result<Vec<_>, _>>()?;
            self.learners(&tree, "all tensors", "statistics", &members, &rows)?;
            for layer in self.layers.clone() {
                let read = |file: &PathBuf| -> Result<Vec<f32>> {
                    let x = layer.read(&open(file)?)?.operand().dense((layer.rows, layer.columns));
                    Ok(spectrum(&x, layer.rows, layer.columns))
                };
                let rows = files.iter().map(read).collect::<Result<Vec<_>>>()?;
                self.learners(&tree, &layer.name, "spectrum", &members, &rows)?;
            }
        }
        Ok(())
    }

    fn learners(&mut self, tree: &str, layer: &str, what: &str, members: &Members, rows: &[Vec<f32>]) -> Result<()> {
        let features = Features::new(rows, &members.training);
        let truths = |places: &[usize]| members.truths(self.zoo, (self.label, self.of), places);
        let (training, selection, test) =
            (truths(&members.training), truths(&members.selection), truths(&members.test));
        let (classes, choice) = (self.of.classes.len(), self.of.choice);
        let train = Part { models: &members.training, truths: &training, classes };
        let select = Part { models: &members.selection, truths: &selection, classes };
        let found = [
            ("logistic", logistic(&features, (train, select), choice, 0, &members.test)),
            ("boosted trees", boosted(&features, train, &members.test)),
        ];
        for (learner, logits) in found {
            let probabilities = probabilities(choice, &logits, classes, 1.0);
            let outcome = Outcome { choice, probabilities, truths: test.clone(), classes };
            let found = (vec![outcome.by_model()], outcome.figures(0));
            self.note("baselines", tree, layer, format!("{what}, {learner}"), found);
        }
        Ok(())
    }

    /// Experts of the first tree on the test models of the others, each minus the other tree's own base.
    fn other_trees(&mut self) -> Result<()> {
        let first = self.trees[0].clone();
        for layer in self.layers.clone() {
            for preset in [Preset::Ridge, Preset::Dense, Preset::Probex, Preset::Delta] {
                let experts = self.experts(&self.want(&first, &layer, preset))?;
                for at in 1..self.trees.len() {
                    let other = self.trees[at].clone();
                    let centre = self.centre(&experts[0][0], &other, "full")?;
                    let found = self.judged(&experts, 0, (&other, "full"), None, Some(&centre))?;
                    self.note("other trees", &format!("{first} → {other}"), &layer.name, preset.name().into(), found);
                }
            }
        }
        Ok(())
    }

    /// What `expert` would take off models of another tree.
    fn centre(&self, expert: &Expert, tree: &str, kind: &str) -> Result<Vec<f32>> {
        let layer = &expert.about.layer;
        match (expert.about.input, self.zoo.base(tree)) {
            (Input::Raw, _) => Ok(Vec::new()),
            (Input::Base, Some(base)) => {
                Ok(layer.read(&Checkpoint::open(base)?)?.operand().dense((layer.rows, layer.columns)))
            }
            _ => {
                let members = self.members(tree, kind);
                let files = members.files(self.zoo);
                let training: Vec<PathBuf> = members.training.iter().map(|&at| files[at].clone()).collect();
                Ok(mean(layer, &training)?)
            }
        }
    }

    /// What must come out as chance: random starts, and labels that changed places.
    fn controls(&mut self) -> Result<()> {
        for layer in self.layers.clone() {
            for preset in [Preset::Ridge, Preset::Probex, Preset::Delta, Preset::Mvprobe] {
                if lacking(&self.members(NO_TREE, NO_TREE_KIND)).is_none() {
                    let want = Want { kind: NO_TREE_KIND, ..self.want(NO_TREE, &layer, preset) };
                    let experts = self.experts(&want)?;
                    let found = self.judged(&experts, 0, (NO_TREE, NO_TREE_KIND), None, None)?;
                    self.note("controls", NO_TREE, &layer.name, format!("{}, random starts", preset.name()), found);
                }
                let first = self.trees[0].clone();
                let want = Want { shuffle: true, ..self.want(&first, &layer, preset) };
                let experts = self.experts(&want)?;
                let found = self.judged(&experts, 0, (&first, "full"), None, None)?;
                self.note("controls", &first, &layer.name, format!("{}, shuffled labels", preset.name()), found);
            }
        }
        Ok(())
    }

    /// Test models of every tree sent to their tree, and random starts to none.
    fn router(&mut self) -> Result<()> {
        for layer in self.layers.clone() {
            let mut registry = Registry { experts: Vec::new() };
            for tree in self.trees.clone() {
                let want = self.want(&tree, &layer, Preset::Ridge);
                for expert in self.experts(&want)?.remove(0) {
                    registry.experts.push((file_name(&tree, self.label, layer.adapter).into(), expert));
                }
            }
            let kinds = self.trees.iter().map(|tree| (tree.clone(), "full")).chain([(NO_TREE.into(), NO_TREE_KIND)]);
            for (tree, kind) in kinds.collect::<Vec<(String, &str)>>() {
                let members = self.members(&tree, kind);
                if members.test.is_empty() {
                    continue;
                }
                let files = members.files(self.zoo);
                let mut right = Vec::new();
                for &at in &members.test {
                    let route = registry.route(&Checkpoint::open(&files[at])?)?;
                    let to = route.known.first().map(|(expert, _)| registry.experts[*expert].1.about.tree.clone());
                    right.push(f64::from(to == (kind == "full").then(|| tree.clone())));
                }
                let accuracy = mean_over(&[right], 0);
                let what = if kind == "full" { "sent to their tree" } else { "said to be unknown" };
                printer::say(format!("router: {tree}, {}, {what}: {}", layer.name, shown(&accuracy)));
                let (what, layer) = (what.to_string(), layer.name.clone());
                self.findings.push(Finding {
                    part: "router",
                    tree,
                    layer,
                    what,
                    parameters: None,
                    accuracy,
                    figures: None,
                });
            }
        }
        Ok(())
    }

    /// All trees in one probe, raw and each minus its own base.
    fn joint(&mut self) -> Result<()> {
        for layer in self.layers.clone() {
            for preset in [Preset::Probex, Preset::Delta] {
                let want = Want { trees: self.trees.clone(), ..self.want("", &layer, preset) };
                let experts = self.experts(&want)?;
                for (which, tree) in self.trees.clone().into_iter().enumerate() {
                    let found = self.judged(&experts, which, (&tree, "full"), None, None)?;
                    self.note("joint", &tree, &layer.name, format!("{}, all trees together", preset.name()), found);
                }
            }
        }
        Ok(())
    }

    /// Experts on compressed copies, learnt on the models alone and on copies too.
    fn compression(&mut self) -> Result<()> {
        let tree = self.trees[0].clone();
        for layer in self.layers.clone() {
            for preset in [Preset::Probex, Preset::Delta, Preset::Mvprobe] {
                let plain = self.want(&tree, &layer, preset);
                let on =
                    |anew| self.experts(&Want { augment: Copies { damages: COPIES.to_vec(), anew }, ..plain.clone() });
                let learnt = [("learnt on kept copies", on(false)?), ("learnt on copies", on(true)?)];
                let plain = self.experts(&plain)?;
                let whole = self.judged(&plain, 0, (&tree, "full"), None, None)?;
                let before = whole.0.clone();
                let name = preset.name();
                self.note("compression", &tree, &layer.name, format!("{name}, f32"), whole);
                for (how, experts) in &learnt {
                    let found = self.judged(experts, 0, (&tree, "full"), None, None)?;
                    self.note("compression", &tree, &layer.name, format!("{name} {how}, f32"), found);
                }
                for damage in DAMAGES {
                    let lost = self.judged(&plain, 0, (&tree, "full"), Some(damage), None)?;
                    let gone = average(&lost.0);
                    self.note("compression", &tree, &layer.name, format!("{name}, {damage}"), lost);
                    for (how, experts) in &learnt {
                        let won = self.judged(experts, 0, (&tree, "full"), Some(damage), None)?;
                        let share = recovered(&average(&before), &gone, &average(&won.0), 0);
                        self.note("compression", &tree, &layer.name, format!("{name} {how}, {damage}"), won);
                        let Some(accuracy) = share else { continue };
                        let (part, tree, layer) = ("compression", tree.clone(), layer.name.clone());
                        let what = format!("{name} {how}, {damage}: share of the loss won back");
                        printer::say(format!("{part}: {tree}, {layer}, {what}: {}", shown(&accuracy)));
                        self.findings.push(Finding {
                            part,
                            tree,
                            layer,
                            what,
                            parameters: None,
                            accuracy,
                            figures: None,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Few models and many.
    fn sizes(&mut self) -> Result<()> {
        let tree = self.trees[0].clone();
        let all = self.members(&tree, "full").training.len();
        for layer in self.layers.clone() {
            for most in [50, 100, 200, all].into_iter().filter(|&most| most <= all) {
                for preset in [Preset::Ridge, Preset::Probex, Preset::Delta, Preset::Mvprobe] {
                    let want = Want { most: Some(most), ..self.want(&tree, &layer, preset) };
                    let experts = self.experts(&want)?;
                    let found = self.judged(&experts, 0, (&tree, "full"), None, None)?;
                    self.note("sizes", &tree, &layer.name, format!("{}, {most} models", preset.name()), found);
                }
            }
        }
        Ok(())
    }
}

/// What models of a tree lack to be studied.
fn lacking(members: &Members) -> Option<&'static str> {
    match (members.training.len(), members.selection.len(), members.test.len()) {
        (0..LEAST, ..) => Some("fewer than 4 training models"),
        (_, 0, _) => Some("no validation models"),
        (.., 0) => Some("no test models"),
        _ => None,
    }
}

/// Of each model over the seeds.
fn average(seeds: &[Vec<f64>]) -> Vec<f64> {
    let models = seeds.first().map_or(0, Vec::len);
    (0..models).map(|at| seeds.iter().map(|row| row[at]).sum::<f64>() / seeds.len() as f64).collect()
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut clock = Run::start("probe study");
    let zoo = Zoo::open(&arguments.zoo)?;
    let (label, of) = zoo.label(arguments.label.as_deref())?;
    anyhow::ensure!(arguments.seeds > 0, "--seeds should be at least 1, found 0");
    anyhow::ensure!(arguments.epochs > 0, "--epochs should be at least 1, found 0");
    anyhow::ensure!(!arguments.neighbours.contains(&0), "--neighbours should be at least 1, found 0");
    anyhow::ensure!(!(of.choice == Choice::One && of.classes.len() < 2), "label `{label}` has fewer than two classes");
    if let Some(wrong) = arguments.part.iter().find(|part| !PARTS.contains(&part.as_str())) {
        anyhow::bail!("there is no part `{}`; there are {}", wrong.escape_debug(), PARTS.join(", "));
    }
    let mut trees: Vec<String> = zoo.trees().into_iter().filter(|tree| *tree != NO_TREE).map(str::to_string).collect();
    anyhow::ensure!(!trees.is_empty(), "{}: the zoo has no trees", arguments.zoo.display());
    trees.retain(|tree| {
        let lacking = lacking(&Members::of(&zoo, tree, &["full".into()], None));
        if let Some(lacking) = lacking {
            printer::warn(format!("tree `{}` is left out: it has {lacking} of kind full", tree.escape_debug()));
        }
        lacking.is_none()
    });
    anyhow::ensure!(
        !trees.is_empty(),
        "{}: no tree has 4 training, a validation and a test model of kind full, so there is nothing to study",
        arguments.zoo.display()
    );
    let files: Vec<PathBuf> =
        trees.iter().flat_map(|tree| Members::of(&zoo, tree, &["full".into()], None).files(&zoo)).collect();
    let mut layers = common_layers(&files)?;
    if let Some(missing) = arguments.layer.iter().find(|name| !layers.iter().any(|layer| layer.name == **name)) {
        anyhow::bail!("{}: layer `{}` is not in every model", arguments.zoo.display(), missing.escape_debug());
    }
    layers.retain(|layer| arguments.layer.is_empty() || arguments.layer.contains(&layer.name));
    let work = tempfile::tempdir().context("cannot create a folder for layer caches")?;
    let (seeds, epochs) = (arguments.seeds, arguments.epochs);
    let (neighbours, findings) = (arguments.neighbours.clone(), Vec::new());
    let mut study = Study { zoo: &zoo, label, of, trees, layers, seeds, epochs, neighbours, work, findings };
    for part in PARTS.iter().filter(|part| arguments.part.is_empty() || arguments.part.iter().any(|p| p == **part)) {
        match *part {
            "presets" => study.presets()?,
            "baselines" => study.baselines()?,
            "other-trees" => study.other_trees()?,
            "left-out" => study.left_out()?,
            "controls" => study.controls()?,
            "router" => study.router()?,
            "joint" => study.joint()?,
            "compression" => study.compression()?,
            "neighbours" => study.by_example()?,
            _ => study.sizes()?,
        }
    }
    let record = Record { label: label.into(), seeds, epochs, findings: study.findings };
    clock.extra.insert("zoo".into(), arguments.zoo.display().to_string().into());
    if let Some(out) = &arguments.output {
        record::save(out, "study", &record, &clock)?;
    }
    if arguments.json {
        printer::json(&record)?;
    } else {
        let mut table = Table::new(["part", "tree", "layer", "what", "accuracy"]);
        for f in &record.findings {
            table.row([f.part.into(), f.tree.clone(), f.layer.clone(), f.what.clone(), shown(&f.accuracy)]);
        }
        table.print();
    }
    Ok(ExitCode::SUCCESS)
}
