//! `scruple compress`: a smaller copy of a checkpoint, with an account of what it cost.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use scruple_compress::{
    budget::{self, Budget, Offer},
    calibration::{self, CalibrationSet, Sampling},
    device::DeviceName,
    export::Format,
    layers::write::Provenance as LayersProvenance,
    memory,
    model::text::Text,
    plan::{Around, Network, Plan},
    recipe::{CalibrationRecipe, ExportRecipe, Recipe, StageRecipe},
    scaling::{ScalingRecord, Unscaled},
    sequential::LinearRecord,
    sharing::Rps,
};
use scruple_weights::{Checkpoint, hub::Origin};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

mod account;

mod card;

mod cost;

mod seeds;

pub mod layers;

pub mod write;

use account::{dry_run, report, warn_of_experts};
use cost::{Cost, SPEED_BYTES};
use seeds::State;
use write::{Identity, Work, Written};

use super::{eval, share::recipe as shared, verify};
use crate::{
    fixture::{self, Fixture},
    printer::{self, Progress},
    record::{self, Run},
    source,
};

/// Bytes of text read for each token of calibration, where sequences are the first of the file: more than any tokenizer
/// needs, so that the same are taken as if all had been read.
const BYTES_PER_TOKEN: usize = 64;

/// What to compress, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Folder or file of the model, or `org/name[@revision][:file]` of a hub; without it, `tiny-world`, which comes with the program
    model: Option<PathBuf>,
    /// How codes are chosen: see `scruple methods`
    #[arg(long, default_value = "gptq")]
    method: String,
    /// Bits of a code: 2, 3, 4 or 8; 4 without it
    #[arg(long)]
    bits: Option<u32>,
    /// Weights of a row that share a scale; 0 for the whole row; 128 without it
    #[arg(long)]
    group_size: Option<usize>,
    /// Zero points of their own instead of symmetric grids
    #[arg(long)]
    asymmetric: bool,
    /// Fraction of the weights set to zero, for methods that prune; 0.5 without it and --pattern
    #[arg(long)]
    sparsity: Option<f64>,
    /// Weights kept of every few neighbours in a row, as 2:4, instead of a sparsity
    #[arg(long, conflicts_with = "sparsity")]
    pattern: Option<String>,
    /// Text to calibrate on
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Sequences of the calibration text
    #[arg(long, default_value_t = CalibrationRecipe::default().n_samples)]
    n_samples: usize,
    /// Tokens of a sequence
    #[arg(long, default_value_t = CalibrationRecipe::default().seq_len)]
    seq_len: usize,
    /// Draw the sequences at random by this seed, instead of taking the first; instead of a recipe's seed, too
    #[arg(long)]
    calibration_seed: Option<u64>,
    /// Compress with this many seeds, from --calibration-seed on, and report how far the results spread (needs --text)
    #[arg(long, requires = "text", value_parser = clap::value_parser!(u64).range(2..))]
    calibration_seeds: Option<u64>,
    /// Take every sequence from one document (a JSON line, a row), instead of laying documents end to end
    #[arg(long)]
    whole_documents: bool,
    /// Put texts into the model's chat template, as what a user says
    #[arg(long)]
    calibration_chat: bool,
    /// Field of a JSON line, or column of a Parquet file, that holds the text
    #[arg(long)]
    calibration_field: Option<String>,
    /// How the result is written, see `scruple methods`; without it the first format that can hold what the method makes
    #[arg(long)]
    format: Option<String>,
    /// Any other parameter of the method, as in a recipe: dampening=0.05, scales="channel"; may be repeated
    #[arg(long = "param", value_name = "KEY=VALUE")]
    params: Vec<String>,
    /// Choose the bits of each linear by its measured error, so that a weight takes this many on average
    #[arg(long, conflicts_with_all = ["bits", "target_size"])]
    target_bpw: Option<f64>,
    /// The same, so that the file's tensors take this much: 600MB, 1.5GiB
    #[arg(long, conflicts_with = "bits")]
    target_size: Option<String>,
    /// Choose one width for q, k and v, for gate and up, and for all experts of a block, which vLLM holds in one parameter; the
    /// model is worse for it
    #[arg(long)]
    one_width: bool,
    /// A recipe file instead of the options above
    #[arg(long, conflicts_with_all = ["method", "bits", "group_size", "asymmetric", "sparsity", "pattern", "params", "format", "n_samples", "seq_len", "whole_documents", "calibration_chat", "calibration_field", "target_bpw", "target_size", "one_width"])]
    recipe: Option<PathBuf>,
    /// Where blocks run and Hessians are summed while calibrating: cpu, or cuda[:N] in a build with CUDA; codes are chosen
    /// by the processor
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: DeviceName,
    /// Print the plan and what it will take, and stop
    #[arg(long)]
    dry_run: bool,
    /// Measure perplexity and divergence on this text afterwards
    #[arg(long)]
    text: Option<PathBuf>,
    /// Tokens of --text to measure, at most
    #[arg(long, default_value_t = 16_384)]
    max_tokens: usize,
    /// Skip the measurement of tokens a second
    #[arg(long)]
    no_speed: bool,
    /// Leave out the hashes of source and result and the reading back, for speed alone: `verify` has nothing to check then
    #[arg(long)]
    no_proof: bool,
    /// Let NaN and infinite weights through
    #[arg(long)]
    allow_nonfinite: bool,
    /// Folder to write; it must not exist
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Print the records as JSON
    #[arg(long)]
    json: bool,
}

/// What `scruple.json` beside the weights says: where they come from. The same bytes for the same inputs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Provenance {
    /// Of the program.
    pub version: String,
    /// Hash of the dense model's tensors: names, types, shapes, bytes. Absent where no proof was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_fingerprint: Option<String>,
    /// Where a dense model of a hub came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Origin>,
    /// Which layers of which model the recipe took out first; `source_fingerprint` is then of what was left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<LayersProvenance>,
    /// What was asked for.
    pub recipe: Recipe,
    /// Samples, their length, and the SHA-256 of the token ids.
    pub calibration: Option<Value>,
    /// Where calibration ran, if not by the processor's kernels: sums differ there in their last bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Linears of the blocks that stayed dense.
    pub left_dense: Vec<String>,
    /// Linears whose inputs a method would have scaled and could not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unscaled: Vec<Unscaled>,
    /// Bits a compressed weight takes, scales included.
    pub bits_per_weight: f64,
    /// What was done to each linear.
    pub linears: Vec<LinearRecord>,
    /// What was done to their inputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scalings: Vec<ScalingRecord>,
}

impl Provenance {
    /// Hash of the tensors of the model that was given, before layers were taken out of it.
    pub fn dense_fingerprint(&self) -> Option<&str> {
        let before = self.layers.as_ref().map(|layers| &layers.source_fingerprint);
        before.or(self.source_fingerprint.as_ref()).map(String::as_str)
    }
}

impl Arguments {
    fn budget(&self) -> Option<Budget> {
        let (bits_per_weight, size) = (self.target_bpw, self.target_size.clone());
        let budget = Budget { bits_per_weight, size, one_width: self.one_width };
        (budget.bits_per_weight.is_some() || budget.size.is_some()).then_some(budget)
    }

    fn recipe(&self) -> Result<Recipe> {
        anyhow::ensure!(
            !self.one_width || self.budget().is_some(),
            "--one-width is about widths that are chosen; give --target-bpw or --target-size with it"
        );
        if let Some(file) = &self.recipe {
            let mut recipe = Recipe::read(file)?;
            recipe.calibration.seed = self.calibration_seed.or(recipe.calibration.seed);
            return Ok(recipe);
        }
        // Only what was said: the rest is the method's own to choose.
        let mut params = toml::Table::new();
        if let Some(bits) = self.bits {
            params.insert("bits".into(), i64::from(bits).into());
        }
        if let Some(group_size) = self.group_size {
            params.insert("group_size".into(), (group_size as i64).into());
        }
        if self.asymmetric {
            params.insert("symmetric".into(), false.into());
        }
        if let Some(sparsity) = self.sparsity {
            params.insert("sparsity".into(), sparsity.into());
        }
        if let Some(pattern) = &self.pattern {
            params.insert("pattern".into(), pattern.clone().into());
        }
        for text in &self.params {
            let (key, value) = parameter(text)?;
            anyhow::ensure!(!params.contains_key(&key), "`{key}` is given twice; leave one of them away");
            params.insert(key, value);
        }
        let stage = StageRecipe { method: self.method.clone(), targets: vec!["*".into()], ignore: Vec::new(), params };
        let format = self.format.as_ref().map(|name| name.parse::<Format>()).transpose().map_err(anyhow::Error::msg)?;
        let recipe = Recipe {
            layers: None,
            stages: vec![stage],
            calibration: CalibrationRecipe {
                n_samples: self.n_samples,
                seq_len: self.seq_len,
                seed: self.calibration_seed,
                whole_documents: self.whole_documents,
                chat: self.calibration_chat,
                field: self.calibration_field.clone(),
            },
            export: ExportRecipe { format },
            budget: self.budget(),
        };
        recipe.check()?; // unknown methods and parameters, before a model is opened
        Ok(recipe)
    }
}

/// `key=value`, the value as TOML or, where it is none, as text.
fn parameter(text: &str) -> Result<(String, toml::Value)> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.trim().is_empty())
        .with_context(|| format!("--param `{text}` is not of the form key=value, such as dampening=0.05"))?;
    let parsed = format!("v = {value}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("v"));
    Ok((key.trim().to_string(), parsed.unwrap_or_else(|| value.trim().into())))
}

fn file_bytes(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |metadata| metadata.len())
}

/// What the model in `path` is called: the name of its folder or file, also where the path is `.` or ends in `..`.
pub fn name_of(path: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    name(path).or_else(|| name(&path.canonicalize().ok()?)).unwrap_or_else(|| "model".into())
}

/// `NAME`, or `NAME-2`, … : the first that is free in the current folder.
fn free_folder(name: &str) -> PathBuf {
    let candidates = std::iter::once(name.to_string()).chain((2..).map(|n| format!("{name}-{n}")));
    candidates.map(PathBuf::from).find(|path| !path.exists()).unwrap_or_default()
}

fn calibration_set(checkpoint: &Checkpoint, plan: &Plan, file: &Path) -> Result<CalibrationSet> {
    let text = Text::open(checkpoint)?;
    let wanted = &plan.recipe.calibration;
    // Most texts have more than two bytes a token; a draw at random needs all of them, and so do whole documents, of which
    // the short ones are passed over.
    let limit = match wanted.seed {
        Some(_) => usize::MAX,
        None if wanted.whole_documents => usize::MAX,
        None => wanted.n_samples.saturating_mul(wanted.seq_len).saturating_mul(BYTES_PER_TOKEN),
    };
    let mut documents = Vec::new();
    for document in calibration::read_documents(file, wanted.field.as_deref(), limit)? {
        let ids = text.encode(&document.render(&text, wanted.chat)?, false)?;
        plan.network.expect_ids(checkpoint, &ids)?;
        documents.push(ids);
    }
    let sampling = Sampling { seed: wanted.seed, whole_documents: wanted.whole_documents };
    let set = match plan.network.encoder() {
        None => {
            let shape = (wanted.n_samples, wanted.seq_len);
            CalibrationSet::from_documents(documents, text.end_of_text(), file, shape, sampling)?
        }
        // An encoder sees every text between its special tokens, and not beyond its positions.
        Some(config) => {
            let around = text.encode("", true)?;
            let (before, after) = around.split_at(around.len().min(1));
            let seq_len = wanted.seq_len.min(config.max_tokens()).saturating_sub(around.len());
            let shape = (wanted.n_samples, seq_len);
            CalibrationSet::from_documents(documents, None, file, shape, sampling)?.framed(before, after)
        }
    };
    drop(text);
    memory::give_back();
    let widest = plan.linears.iter().map(|linear| linear.layout.in_features).max().unwrap_or(0);
    if plan.needs_hessian() && set.tokens() < widest {
        printer::warn(format!(
            "{}: {} calibration tokens cannot span the {widest} inputs of the widest linear; give more --n-samples or a \
             longer --seq-len",
            file.display(),
            set.tokens()
        ));
    }
    if set.n_samples() < set.asked {
        printer::warn(format!(
            "{}: the text holds {} sequences of {} tokens, {} were asked for",
            file.display(),
            set.n_samples(),
            set.seq_len,
            set.asked
        ));
    }
    Ok(set)
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match arguments.calibration_seeds.filter(|_| !arguments.dry_run) {
        None => compress(arguments, None)?,
        Some(count) => {
            let out = arguments.output.clone();
            let out = out.context("--calibration-seeds needs --output, the folder of the first seed's model")?;
            anyhow::ensure!(!out.exists(), "{}: already exists; give another folder", out.display());
            seeds::run(arguments, &out, count, |arguments, record| compress(arguments, Some(record)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One compression, and its account printed; or that of one seed, of which `record` says in a file what it was made of.
fn compress(arguments: &Arguments, record: Option<&Path>) -> Result<()> {
    let mut clock = Run::start("compress");
    let mut recipe = arguments.recipe()?;
    let embedded = match &arguments.model {
        None => Some(Fixture::tiny_world()?),
        Some(_) => None,
    };
    let located = match (&arguments.model, &embedded) {
        (Some(model), _) => source::locate(model)?,
        (None, Some(fixture)) => source::locate(fixture.path())?,
        (None, None) => unreachable!("a model is given or embedded"),
    };
    let model = located.path();
    let name = match (&arguments.model, located.name()) {
        (None, _) => fixture::TINY_WORLD.to_string(),
        (_, Some(name)) => name.to_string(),
        (Some(model), None) => name_of(model),
    };
    let calibration_file = arguments.calibration.clone().or_else(|| embedded.as_ref().map(Fixture::calibration));
    let text = arguments.text.clone().or_else(|| embedded.as_ref().map(Fixture::text));

    if let Some((method, stage)) = Rps::of(&recipe)? {
        let seeds = record.is_some() || arguments.calibration_seeds.is_some();
        anyhow::ensure!(!seeds, "method `{}` has no calibration seeds", stage.method);
        anyhow::ensure!(
            arguments.device == DeviceName::Cpu,
            "method `{}` asks for no calibration, which is all that runs on a device; leave --device out",
            stage.method
        );
        let out = || free_folder(&format!("{}-{}", name_of(Path::new(&name)), stage.method));
        let asked = shared::Asked {
            calibration: calibration_file.as_deref(),
            text: text.as_deref(),
            max_tokens: arguments.max_tokens,
            out: arguments.output.clone().unwrap_or_else(out),
            dry_run: arguments.dry_run,
            json: arguments.json,
            tell: record.is_none(),
        };
        return shared::compress(&method, stage, &located, &asked, &clock);
    }

    let whole = located.open()?;
    let fewer = layers::take_out(&mut recipe, &whole);
    let fewer = match &arguments.recipe {
        Some(file) => fewer.with_context(|| format!("in recipe `{}`", file.display()))?,
        None => fewer?,
    };
    let checkpoint = fewer.as_ref().map_or(&whole, |(checkpoint, _)| checkpoint);
    let plan = Plan::new(recipe, checkpoint);
    let mut plan = match &arguments.recipe {
        Some(file) => plan.with_context(|| file.display().to_string())?,
        None => plan?,
    };
    plan.allow_nonfinite = arguments.allow_nonfinite;
    plan.proof = !arguments.no_proof;
    plan.calibrate_on(arguments.device)?;
    match (&text, &plan.network) {
        (None, _) => {}
        (Some(text), Network::Encoder(_)) => drop(cost::lines(text)?),
        (Some(text), Network::Decoder(config)) => {
            anyhow::ensure!(arguments.max_tokens > 0, "--max-tokens should be at least 1, found 0");
            eval::expect_text(checkpoint, text, config.vocab_size)?;
        }
        (Some(_), Network::Named(network)) => {
            anyhow::bail!(
                "{}; leave --text away, since a model that does not run cannot be measured on it",
                network.reason
            )
        }
    }
    if let Network::Named(network) = &plan.network {
        printer::warn(format!(
            "{}; its {} linears were chosen by their names, {} matrices in its blocks stay dense",
            network.reason,
            plan.linears.len(),
            plan.left_dense.len()
        ));
        if let Some(reason) = &plan.left_because {
            printer::warn(format!("the first of those that stay dense does so because {reason}"));
        }
    }
    let set = match &calibration_file {
        Some(file) if plan.needs_calibration() => Some(calibration_set(checkpoint, &plan, file)?),
        _ if plan.needs_calibration() => {
            let method = plan.calibrated_method().map_or("of the recipe", |method| method.name());
            anyhow::bail!("method `{method}` needs a text to calibrate on; give --calibration FILE")
        }
        _ => None,
    };
    let widths = match plan.recipe.budget.clone() {
        Some(budget) => {
            let offers = measure_widths(arguments, checkpoint, &plan, set.as_ref())?;
            let recipe = budget::explicit(&plan, &budget, &offers)?;
            let left_because = plan.left_because.take();
            plan = Plan::new(recipe, checkpoint)?;
            plan.allow_nonfinite = arguments.allow_nonfinite;
            plan.proof = !arguments.no_proof;
            plan.calibrate_on(arguments.device)?;
            plan.left_because = left_because;
            if let Some((one, other)) = budget::told_apart(&plan) {
                printer::say(format!(
                    "`{one}` and `{other}` get different widths: vLLM holds them in one parameter and cannot load that, \
                     other programs can; --one-width keeps them alike"
                ));
            }
            Some((budget, offers))
        }
        None => None,
    };
    let runs = plan.network.decoder();
    let (n_samples, seq_len) = set.as_ref().map_or((0, 0), |set| (set.n_samples(), set.seq_len));
    let mut forecast = plan.forecast(
        checkpoint,
        Around {
            n_samples,
            seq_len,
            text_bytes: calibration_file.as_ref().filter(|_| set.is_some()).map_or(0, |file| file_bytes(file)),
            speed_bytes: if arguments.no_speed || runs.is_none() { 0 } else { SPEED_BYTES },
            evaluates: text.is_some(),
        },
    );
    forecast.dense_bytes = whole.bytes();
    let dropped = fewer.as_ref().map(|(_, dropped)| dropped);
    if arguments.dry_run {
        return dry_run(arguments, &plan, &forecast, dropped);
    }
    let dropped = dropped
        .map(|dropped| LayersProvenance { source_fingerprint: whole.fingerprint(), ..dropped.provenance.clone() });
    if plan.needs_calibration() {
        printer::say(format!(
            "calibrating on {} tokens; their activations take {:.0} MB on disk (bf16)",
            n_samples * seq_len,
            forecast.activation_bytes as f64 / 1e6
        ));
    }

    let out = match &arguments.output {
        Some(out) => out.clone(),
        None => free_folder(&format!("{}-{}", name_of(Path::new(&name)), plan.recipe.stages[0].method)),
    };
    let identity = Identity::of(checkpoint, &plan, set.as_ref())?;
    clock.extra.insert("source_hash_seconds".into(), identity.source_hash_seconds.into());
    let state = match record {
        None => State::New,
        Some(record) => seeds::state(record, &out, &identity.digest, text.as_deref(), arguments.max_tokens)?,
    };
    let written = match state {
        State::Finished => return Ok(()),
        State::Compressed => None,
        State::New => Some(write::write(Work {
            checkpoint,
            plan: &plan,
            layers: dropped.as_ref(),
            set,
            identity,
            bits_per_weight: forecast.bits_per_weight,
            name: &name,
            source: located.origin(),
            read_again: text.is_some() || (!arguments.no_speed && runs.is_some()),
            widths: widths.as_ref(),
            out: &out,
        })?),
    };
    clock.extra.insert("forecast".into(), serde_json::to_value(forecast)?);
    if let Some(Written { outcome, .. }) = &written {
        clock.extra.insert("phases".into(), serde_json::to_value(outcome.phases)?);
        clock.extra.insert("seconds_by_linear".into(), outcome.seconds.iter().cloned().collect());
    }
    clock.extra.insert("compress_peak_rss_bytes".into(), record::peak_rss().into());
    record::write_whole(&out.join("run.json"), &record::pretty(&clock.to_json())?)?;

    memory::give_back();
    let cost = match &plan.network {
        Network::Decoder(_) => Cost::measure(arguments, model, &out, text.as_deref(), embedded.as_ref())?,
        Network::Encoder(_) => Cost::of_encoder(model, &out, text.as_deref())?,
        Network::Named(_) => Cost::default(),
    };
    if let Some((dense, compressed)) = cost.speeds {
        clock.extra.insert("tokens_per_second".into(), json!({ "dense": dense, "compressed": compressed }));
    }
    record::write_whole(&out.join("run.json"), &record::pretty(&clock.to_json())?)?;
    let checked = match plan.proof {
        true => {
            let verify::Findings { faults, linears, .. } = verify::check(&out, None)?;
            anyhow::ensure!(
                faults.is_empty(),
                "{}: the written file is not what was made: {}",
                out.display(),
                faults.join("; ")
            );
            Some(linears)
        }
        false => None,
    };
    // Last: figures stand beside a file that was proved to be what they are of.
    if let Some(embeddings) = &cost.embeddings {
        record::write_whole(&out.join("eval.json"), &record::pretty(embeddings)?)?;
    }
    if let Some(evaluation) = &cost.evaluation {
        record::write_whole(&out.join("eval.json"), &record::pretty(evaluation)?)?;
    }
    if let Some(Written { outcome, bytes }) = &written {
        warn_of_experts(&outcome.linears);
        if record.is_none() {
            report(arguments, &plan, outcome, &whole, (*bytes, checked), &cost, &out)?;
        }
    }
    Ok(())
}

/// The error of every linear at every width, measured with activations in a folder beside the output.
fn measure_widths(
    arguments: &Arguments,
    checkpoint: &Checkpoint,
    plan: &Plan,
    set: Option<&CalibrationSet>,
) -> Result<Vec<Vec<Offer>>> {
    let beside = arguments.output.as_deref().and_then(Path::parent).filter(|folder| folder.is_dir());
    let scratch = match beside {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let scratch = scratch.context("cannot make a folder for the activations of the measurement")?;
    let mut progress = Progress::new("measure widths", plan.linears.len() as u64);
    let offers = budget::measure(checkpoint, plan, set, scratch.path(), &mut |done, _, name| {
        progress.at(done as u64, name);
    });
    progress.finish();
    memory::give_back();
    Ok(offers?)
}
