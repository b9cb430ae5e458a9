//! `scruple probe train`: a zoo to experts.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use scruple_compress::{device::DeviceName, model::encoder::SentenceEncoder, probe::Trainer, zoo::build::NO_TREE};
use scruple_weights::{
    Checkpoint,
    probex::{
        Expert,
        cache::Copies,
        damage::Damage,
        expert::{Candidate, Radius},
        fit::{ClassTexts, Job, Members},
        layer::layers,
        metrics::{Figure, Figures},
        spec::{Input, PRESETS, Preset},
        train::{Engine, Training},
    },
    zoo::Zoo,
};
use serde::Serialize;

use crate::{
    commands::embed::tokenise,
    printer::{self, Table},
    record::{self, Run},
    source,
};

/// What `auto` tries: the closed form, one view and four of what fine-tuning changed.
const AUTO: [Preset; 3] = [Preset::Ridge, Preset::Delta, Preset::Mvprobe];

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder of a zoo (`zoo.json`)
    zoo: PathBuf,
    /// What is to be told of models; the zoo's first label without it
    #[arg(long)]
    label: Option<String>,
    /// Trees to learn; all but random starts without it
    #[arg(long, value_name = "TREE")]
    tree: Vec<String>,
    /// Learn all trees together, each minus its own base
    #[arg(long)]
    joint: bool,
    /// ridge, dense, linear, probex (the paper's), delta, mvprobe, or auto: what is best on the validation models
    #[arg(long, default_value = "auto")]
    preset: String,
    /// Layers to try; all that the models have in common without it
    #[arg(long, value_name = "NAME")]
    layer: Vec<String>,
    /// Probes, projection and representation of the probe, with commas between; by the layer's size without it
    #[arg(long, value_name = "U,V,T", value_delimiter = ',')]
    ranks: Option<Vec<usize>>,
    /// What is taken off the layer: raw (nothing), centroid, base; the preset's own choice without it
    #[arg(long)]
    input: Option<String>,
    /// Kinds of models to learn from
    #[arg(long, value_name = "KIND", default_value = "full", value_delimiter = ',')]
    kind: Vec<String>,
    /// Learn from compressed copies too: int8, int4, prune50 …, with commas between
    #[arg(long, value_name = "KINDS", value_delimiter = ',')]
    augment: Vec<String>,
    /// Make each compressed copy once, instead of anew (rounded by chance, pruned by a share near the named one) in each pass
    #[arg(long, requires = "augment")]
    keep_copies: bool,
    /// Models of each tree to learn from at most
    #[arg(long, value_name = "N")]
    models: Option<usize>,
    /// Passes over the training models
    #[arg(long, default_value_t = 200)]
    epochs: usize,
    /// Step size
    #[arg(long, default_value_t = 1e-3)]
    rate: f32,
    /// Penalty on the squares of all parameters
    #[arg(long, default_value_t = 1e-5)]
    decay: f32,
    /// Models a step
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Of the start and the order of the models
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Compare with texts instead of telling labels apart: a text encoder such as all-MiniLM-L6-v2 reads the classes'
    /// names, so that classes no model was trained on can be found, and `scruple search` looks for any words
    #[arg(long, value_name = "MODEL")]
    texts: Option<PathBuf>,
    /// Where probes are trained: cpu, or cuda[:N] in a build with CUDA; what is closed-form (ridge) or looks at finished
    /// probes stays on the processor
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: DeviceName,
    /// Let the training models change their labels among each other: a control that must come out as chance
    #[arg(long)]
    shuffle_labels: bool,
    /// Print a record as JSON
    #[arg(long)]
    json: bool,
    /// The registry: a folder that gets one file an expert, and `train.json` and `run.json`
    #[arg(short, long)]
    output: PathBuf,
}

/// What is said of an expert.
#[derive(Debug, Serialize)]
struct Line {
    file: String,
    tree: String,
    label: String,
    layer: String,
    preset: Preset,
    input: Input,
    parameters: usize,
    trained_on: usize,
    radius: Radius,
    temperature: f32,
    validation: Figures,
    #[serde(skip_serializing_if = "Option::is_none")]
    test: Option<Figures>,
    /// Share of test models whose label sets of 90 % hold all their classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    covered: Option<f64>,
    /// On models of classes never seen, among those classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    zero_shot: Option<Figures>,
    candidates: Vec<Candidate>,
}

/// The findings.
#[derive(Debug, Serialize)]
struct Record {
    label: String,
    shuffled_labels: bool,
    experts: Vec<Line>,
}

/// A preset by name.
pub fn presets(name: &str) -> Result<Vec<Preset>> {
    if name == "auto" {
        return Ok(AUTO.to_vec());
    }
    let found = PRESETS.into_iter().find(|preset| preset.name() == name);
    found.map(|preset| vec![preset]).with_context(|| {
        let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name()).collect();
        format!("there is no preset `{}`; there are auto, {}", name.escape_debug(), names.join(", "))
    })
}

/// Compressions by name.
pub fn damages(names: &[String]) -> Result<Vec<Damage>> {
    names.iter().map(|name| name.parse::<Damage>().map_err(anyhow::Error::msg)).collect()
}

fn ranks(given: Option<&[usize]>) -> Result<Option<(usize, usize, usize)>> {
    match given {
        None => Ok(None),
        Some(&[u, v, t]) if [u, v, t].iter().all(|rank| (1..=1 << 16).contains(rank)) => Ok(Some((u, v, t))),
        Some(other) => anyhow::bail!("--ranks should be three numbers from 1 to 65536, found {other:?}"),
    }
}

fn input(given: Option<&str>) -> Result<Option<Input>> {
    Ok(Some(match given {
        None => return Ok(None),
        Some("raw") => Input::Raw,
        Some("centroid") => Input::Centroid,
        Some("base") => Input::Base,
        Some(other) => anyhow::bail!("--input should be raw, centroid or base, found `{}`", other.escape_debug()),
    }))
}

impl Arguments {
    fn training(&self) -> Result<Training> {
        anyhow::ensure!(self.epochs > 0, "--epochs should be at least 1, found 0");
        anyhow::ensure!(self.batch > 0, "--batch should be at least 1, found 0");
        let sound = self.rate.is_finite() && self.rate > 0.0 && self.decay.is_finite() && self.decay >= 0.0;
        anyhow::ensure!(
            sound,
            "--rate should be above 0 and --decay not below, found {} and {}",
            self.rate,
            self.decay
        );
        Ok(Training {
            rate: self.rate,
            decay: self.decay,
            batch: self.batch,
            epochs: self.epochs,
            seed: self.seed,
            ..Training::default()
        })
    }
}

/// The embeddings of `names` by the text encoder at `encoder`.
pub fn class_texts(encoder: &Path, names: &[String]) -> Result<ClassTexts> {
    let checkpoint = source::locate(encoder)?.open()?;
    let model = SentenceEncoder::open(&checkpoint)
        .with_context(|| format!("{}: --texts takes a text encoder", encoder.display()))?;
    let (ids, _) = tokenise(&model, names)?;
    let values = model.embed(&ids, |_| {})?;
    Ok(ClassTexts { values, width: model.dimensions(), encoder: checkpoint.fingerprint() })
}

/// A file name of plain characters for an expert, another one for every tree, label and kind: other characters stand as
/// `%` and their bytes, dots too, since they part the three. Experts of adapters stand beside those of whole models.
pub fn file_name(tree: &str, label: &str, adapters: bool) -> String {
    let plain = |name: &str| -> String {
        let escaped = |c: char| c.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        name.chars()
            .map(|c| if c.is_alphanumeric() || "-_".contains(c) { String::from(c) } else { escaped(c) })
            .collect()
    };
    let kind = if adapters { ".adapters" } else { "" };
    format!("{}.{}{kind}.safetensors", plain(tree), plain(label))
}

/// Refuses to write over an expert in `out` of another tree: `tree` of another zoo, or one whose name came out alike.
fn expect_same_tree(out: &Path, zoo: &Zoo, (tree, label): (&str, &str), kinds: &[String]) -> Result<()> {
    let members = Members::of(zoo, tree, kinds, Some(1));
    let Some(&first) = members.training.first() else { return Ok(()) };
    let model = Checkpoint::open(&members.files(zoo)[first])?;
    for adapters in [false, true] {
        let file = out.join(file_name(tree, label, adapters));
        if !file.exists() || !layers(&model).iter().any(|layer| layer.adapter == adapters) {
            continue;
        }
        let advice =
            || format!("{}: would be written over; move it away, or name another folder by -o", file.display());
        let known = Expert::read(&file).with_context(advice)?;
        let (layer, limit) = (&known.about.layer, known.about.radius.limit);
        let same_name = (known.about.tree.as_str(), known.about.label.as_str()) == (tree, label);
        let is_near = layer.is_in(&model) && known.distance(&layer.read(&model)?) <= limit;
        anyhow::ensure!(
            same_name && is_near,
            "{}: is the expert of another tree than `{}` of this zoo; move it away, or name another folder by -o",
            file.display(),
            tree.escape_debug()
        );
    }
    Ok(())
}

/// `0.972 (0.955–0.985)`.
pub fn shown(figure: &Figure) -> String {
    format!("{:.3} ({:.3}–{:.3})", figure.value, figure.low, figure.high)
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut clock = Run::start("probe train");
    let trainer = arguments.device.open()?.map(Trainer::new);
    anyhow::ensure!(
        trainer.is_none() || presets(&arguments.preset)?.iter().any(|preset| *preset != Preset::Ridge),
        "the preset ridge is solved in closed form on the processor; leave --device out"
    );
    anyhow::ensure!(
        trainer.is_none() || arguments.augment.is_empty() || arguments.keep_copies,
        "compressed copies are made anew on the processor; on a device give --keep-copies, or leave --device out"
    );
    let zoo = Zoo::open(&arguments.zoo)?;
    let (label, of) = zoo.label(arguments.label.as_deref())?;
    let trees: Vec<String> = match arguments.tree.as_slice() {
        [] => zoo.trees().into_iter().filter(|tree| *tree != NO_TREE).map(str::to_string).collect(),
        named => named.to_vec(),
    };
    let groups: Vec<Vec<String>> = match arguments.joint {
        true => vec![trees],
        false => trees.into_iter().map(|tree| vec![tree]).collect(),
    };
    let out = record::folder(&arguments.output)?;
    let work = tempfile::Builder::new()
        .prefix(".layers-")
        .tempdir_in(&out)
        .with_context(|| format!("{}: cannot create a folder", out.display()))?;
    let texts = match &arguments.texts {
        Some(encoder) => Some(class_texts(encoder, &of.classes)?),
        None => None,
    };
    for tree in groups.iter().flatten() {
        expect_same_tree(&out, &zoo, (tree, label), &arguments.kind)?;
    }
    let mut record =
        Record { label: label.to_string(), shuffled_labels: arguments.shuffle_labels, experts: Vec::new() };
    for trees in groups {
        let job = Job {
            zoo: &zoo,
            label,
            trees: trees.clone(),
            kinds: arguments.kind.clone(),
            layers: arguments.layer.clone(),
            presets: presets(&arguments.preset)?,
            ranks: ranks(arguments.ranks.as_deref())?,
            input: input(arguments.input.as_deref())?,
            training: arguments.training()?,
            augment: Copies { damages: damages(&arguments.augment)?, anew: !arguments.keep_copies },
            most: arguments.models,
            shuffle: arguments.shuffle_labels,
            texts: texts.clone(),
            work: work.path(),
            engine: trainer.as_ref().map(|trainer| trainer as &dyn Engine),
        };
        let experts = job.run(&mut |candidate| {
            printer::say(format!(
                "{}: {} with {} ({} parameters): {:.3} right on validation models",
                trees.join(" and "),
                candidate.layer.escape_debug(),
                candidate.preset.name(),
                candidate.parameters,
                candidate.validation.0
            ));
        })?;
        for expert in experts {
            let file = file_name(&expert.about.tree, &expert.about.label, expert.about.layer.adapter);
            expert.write(&out.join(&file))?;
            record.experts.push(line(file, expert));
        }
    }
    drop(work);
    clock.extra.insert("zoo".into(), arguments.zoo.display().to_string().into());
    clock.extra.insert("device".into(), arguments.device.to_string().into());
    record::save(&out, "train", &record, &clock)?;
    if arguments.json {
        printer::json(&record)?;
    } else {
        print(&record);
    }
    Ok(ExitCode::SUCCESS)
}

fn line(file: String, expert: Expert) -> Line {
    let about = expert.about;
    Line {
        file,
        tree: about.tree,
        label: about.label,
        layer: about.layer.name,
        preset: about.preset,
        input: about.input,
        parameters: about.spec.parameters(),
        trained_on: about.trained_on,
        radius: about.radius,
        temperature: about.temperature,
        validation: about.validation,
        test: about.test,
        covered: about.covered,
        zero_shot: about.zero_shot,
        candidates: about.candidates,
    }
}

fn print(record: &Record) {
    let mut table =
        Table::new(["expert", "layer", "probe", "input", "accuracy", "on models of", "AUROC", "exact sets"]);
    for line in &record.experts {
        let figures = line.test.as_ref().unwrap_or(&line.validation);
        table.row([
            line.file.clone(),
            line.layer.clone(),
            line.preset.name().into(),
            line.input.name().into(),
            shown(&figures.accuracy),
            if line.test.is_some() { "test" } else { "validation" }.into(),
            figures.auroc.as_ref().map_or("-".into(), |auroc| format!("{:.3}", auroc.value)),
            format!("{:.3}", figures.exact.value),
        ]);
    }
    table.print();
    for line in &record.experts {
        if let Some(zero_shot) = &line.zero_shot {
            let accuracy = shown(&zero_shot.accuracy);
            printer::say(format!(
                "{}: {accuracy} right on {} models of classes never seen",
                line.file, zero_shot.models
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_of_different_names_have_different_files() {
        assert_eq!(file_name("tree1", "classes", false), "tree1.classes.safetensors");
        assert_eq!(file_name("a/b", "c", true), "a%2Fb.c.adapters.safetensors");
        let names = [
            ("a/b", "c", false),
            ("a_b", "c", false),
            ("a b", "c", false),
            ("a", "b.c", false),
            ("a.b", "c", false),
            ("a%2Fb", "c", false),
            ("a", "b.adapters", false),
            ("a", "b", true),
        ];
        let files: std::collections::BTreeSet<String> =
            names.iter().map(|&(tree, label, adapters)| file_name(tree, label, adapters)).collect();
        assert_eq!(files.len(), names.len());
    }
}
