//! `scruple layers heal`: what can be won back of a checkpoint without some of its layers, in closed form or by
//! distillation. The exit code is 1 where the result is further from the dense model on held-out text than before.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use scruple_compress::{
    layers::{
        distil::{Distiller, Recipe},
        evaluate::Corpus,
        heal::{Healed, merge, refit_norms},
        write::{Provenance, provenance, write_healed},
    },
    measure::{self, Against, Evaluation, Windows},
    model::{Decoder, text::Text},
};
use scruple_weights::Checkpoint;
use serde_json::json;

use super::text;
use crate::{
    commands::eval::blame_any,
    printer::{self, Progress, Table},
    record::{self, Run},
    source,
};

/// Tokens that the closed forms are fitted on unless told otherwise.
const FITTED: usize = 4096;

/// How a checkpoint is healed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Method {
    /// The norms behind the first layer that is gone are fitted to what the dense model's hand on
    Norms,
    /// Layers that are gone are added to the one before them
    Merge,
    /// Norms and low-rank adapters learn what the dense model says of the text, and are added to the weights
    Distil,
}

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder that `layers prune` wrote
    model: PathBuf,
    /// The model the layers were taken out of
    #[arg(long)]
    against: PathBuf,
    /// How
    #[arg(long, value_enum)]
    method: Method,
    /// Text to fit on or to learn from: plain, JSON lines or Parquet
    #[arg(long)]
    calibration: PathBuf,
    /// Text to measure on, before and after
    #[arg(long)]
    holdout: PathBuf,
    /// Tokens of --calibration; 4096 to fit on, 131072 to learn from, where a shorter text is gone through again
    #[arg(long)]
    tokens: Option<usize>,
    /// Tokens of --holdout
    #[arg(long, default_value_t = 16384)]
    holdout_tokens: usize,
    /// Tokens of a window; each window is run on its own
    #[arg(long, default_value_t = 256)]
    window: usize,
    #[command(flatten)]
    learning: Learning,
    /// Folder to write; it must not exist
    #[arg(short, long)]
    output: PathBuf,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
}

/// How `distil` learns.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Distillation")]
struct Learning {
    /// Rank of the adapters of linears; 0 for norms alone
    #[arg(long, default_value_t = Recipe::default().rank)]
    rank: usize,
    /// An adapter counts alpha / rank times
    #[arg(long, default_value_t = Recipe::default().alpha)]
    alpha: f64,
    /// Linears that have adapters, by globs over their names: --targets '*.mlp.*'; may be repeated; all without it
    #[arg(long)]
    targets: Vec<String>,
    /// Linears that have none, likewise
    #[arg(long)]
    ignore: Vec<String>,
    /// Only blocks this near to where layers are gone learn, the next ones being 1 away; all without it
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    near: Option<u32>,
    /// The norms stay as they are
    #[arg(long)]
    no_norms: bool,
    /// The highest learning rate (AdamW; up over a tenth of the steps, then down half a cosine)
    #[arg(long, default_value_t = Recipe::default().learning_rate)]
    learning_rate: f64,
    /// Weight decay
    #[arg(long, default_value_t = Recipe::default().weight_decay)]
    weight_decay: f64,
    /// Windows a step
    #[arg(long, default_value_t = Recipe::default().windows)]
    windows: usize,
    /// Temperature at which the two models are compared
    #[arg(long, default_value_t = Recipe::default().temperature)]
    temperature: f64,
    /// Of the adapters' first numbers and the order of the windows
    #[arg(long, default_value_t = Recipe::default().seed)]
    seed: u64,
    /// Steps between savings of the run, which the same command goes on with after a stop
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    save_every: u64,
}

impl Arguments {
    fn recipe(&self) -> Recipe {
        let Learning { targets, ignore, .. } = &self.learning;
        let usual = Recipe::default();
        Recipe {
            seed: self.learning.seed,
            tokens: self.tokens.unwrap_or(usual.tokens),
            window: self.window,
            windows: self.learning.windows,
            learning_rate: self.learning.learning_rate,
            weight_decay: self.learning.weight_decay,
            temperature: self.learning.temperature,
            rank: self.learning.rank,
            alpha: self.learning.alpha,
            targets: if targets.is_empty() { usual.targets } else { targets.clone() },
            ignore: ignore.clone(),
            near: self.learning.near.map(|near| near as usize),
            norms: !self.learning.no_norms,
            clip: usual.clip,
        }
    }

    /// Where the run is saved while it goes on.
    fn state(&self) -> Result<PathBuf> {
        let name = self.output.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{}: the output has no name", self.output.display()))?;
        Ok(self.output.with_file_name(format!(".{name}.heal.safetensors")))
    }
}

/// The two models of a run.
struct Models {
    pruned: Checkpoint,
    dense: Checkpoint,
    whole: Decoder,
    before: Provenance,
    tokenizer: Text,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("layers heal");
    let pruned = Checkpoint::open(source::locate(&arguments.model)?.path())?;
    let dense = Checkpoint::open(source::locate(&arguments.against)?.path())?;
    let before = provenance(pruned.dir())?;
    anyhow::ensure!(
        dense.fingerprint() == before.source_fingerprint,
        "{}: its fingerprint is not {}, of the model the layers were taken out of",
        dense.path().display(),
        before.source_fingerprint
    );
    anyhow::ensure!(
        before.healed.is_none(),
        "{}: was healed already; heal what `layers prune` wrote",
        pruned.path().display()
    );
    let tokenizer = Text::open(&pruned)?;
    let whole = Decoder::open(&dense)?;
    let models = Models { pruned, dense, whole, before, tokenizer };
    let held = text::tokens(&models.tokenizer, &arguments.holdout, arguments.holdout_tokens)?;
    let windows = Windows::new(&held, arguments.window, Some(arguments.holdout_tokens))
        .with_context(|| arguments.holdout.display().to_string())?;
    let written = match arguments.method {
        Method::Norms | Method::Merge => in_closed_form(arguments, &models, &clock)?,
        Method::Distil => distil(arguments, &models, &clock)?,
    };
    let figures = |folder: &Path| -> Result<Evaluation> {
        let model = Decoder::open(&Checkpoint::open(folder)?)?;
        let mut progress = Progress::new("measure", windows.targets() as u64);
        let against = Some(Against::Model(&models.whole));
        Ok(measure::evaluate(&model, against, &windows, None, &mut |done| progress.at(done as u64, "tokens"))?)
    };
    let (without, with) = (figures(models.pruned.dir())?, figures(&arguments.output)?);
    report(arguments, &written, &without, &with)
}

/// Fits norms, or adds layers up.
fn in_closed_form(arguments: &Arguments, models: &Models, clock: &Run) -> Result<Provenance> {
    let Models { pruned, dense, before, tokenizer, .. } = models;
    let tokens = arguments.tokens.unwrap_or(FITTED);
    let ids = text::tokens(tokenizer, &arguments.calibration, tokens)?;
    let corpus: Corpus = text::windows(&ids, 0, (arguments.window, tokens), 1.0, 0)
        .with_context(|| arguments.calibration.display().to_string())?;
    let (replaced, method, text_digest) = match arguments.method {
        Method::Merge => (merge(dense, before)?, "merge", None),
        _ => {
            let mut progress = Progress::new("heal", before.source_layers as u64);
            let fitted = refit_norms(pruned, dense, before, corpus.sequences(), &mut |done| {
                progress.at(done as u64, "layers");
            })?;
            (fitted, "norms", Some(corpus.digest()))
        }
    };
    let tensors = replaced.keys().cloned().collect();
    let healed = Healed { method: method.into(), recipe: None, text_digest, tensors };
    let files = [("run.json", record::pretty(&clock.to_json())?)];
    Ok(write_healed(pruned, &|view| replaced.get(view.name()).cloned(), healed, &files, &arguments.output)?)
}

/// Learns from the dense model; goes on with what an earlier run has left.
fn distil(arguments: &Arguments, models: &Models, clock: &Run) -> Result<Provenance> {
    let Models { pruned, dense, whole, before, tokenizer } = models;
    let recipe = arguments.recipe();
    // A short text is gone through again, so no more of it is read than can be seen once.
    let mut tokens = text::tokens(tokenizer, &arguments.calibration, recipe.tokens)?;
    tokens.truncate(recipe.tokens.max(recipe.window));
    let mut distiller = Distiller::new(pruned, (dense, whole), before, recipe.clone(), &tokens)
        .with_context(|| format!("{}: cannot be distilled", arguments.model.display()))?;
    let healed = Healed {
        method: "distil".into(),
        recipe: Some(recipe.clone()),
        text_digest: Some(distiller.text_digest().to_string()),
        tensors: distiller.tensors(),
    };
    if arguments.output.exists() {
        let own = |there: &Provenance| there.healed.as_ref() == Some(&healed) && there.lacks_the_same(before);
        let there = provenance(&arguments.output).ok().filter(own);
        let there = there.with_context(|| {
            format!("{}: already exists and is not this run's result; give another folder", arguments.output.display())
        })?;
        printer::say(format!("{}: written by an earlier run", arguments.output.display()));
        return Ok(there);
    }
    let seen = distiller.steps() as usize * recipe.windows * recipe.window;
    printer::say(format!(
        "{} numbers learn in {} steps from {seen} tokens ({} of the text); weights and optimiser take {:.0} MB",
        distiller.learning(),
        distiller.steps(),
        tokens.len(),
        distiller.bytes() as f64 / 1e6
    ));
    let state = arguments.state()?;
    if state.exists() {
        distiller.resume(&state)?;
        printer::say(format!("went on after step {} of {}", distiller.step_number(), distiller.steps()));
    }
    let mut progress = Progress::new("heal", distiller.steps());
    while distiller.step_number() < distiller.steps() {
        let now = distiller.step().map_err(|error| blame_any(error, [pruned, dense]))?;
        progress.at(now.step, &format!("{:.4} nats a token from the dense model", now.divergence));
        if now.step.is_multiple_of(arguments.learning.save_every) && now.step < now.steps {
            distiller.save(&state)?;
        }
    }
    progress.finish();
    let files = [("run.json", record::pretty(&clock.to_json())?)];
    let written = write_healed(pruned, &|view| distiller.replaced(view), healed, &files, &arguments.output)?;
    match std::fs::remove_file(&state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot remove the saved run", state.display()))
        }
        _ => Ok(written),
    }
}

/// Says what was won back; whether anything was is the exit code.
fn report(arguments: &Arguments, written: &Provenance, without: &Evaluation, with: &Evaluation) -> Result<ExitCode> {
    let kl = |figures: &Evaluation| figures.against.as_ref().map_or(f64::NAN, |against| against.kl_mean.value);
    let helped = kl(with) < kl(without);
    let record = json!({ "provenance": written, "helped": helped, "without": without, "with": with });
    record::write_whole(&arguments.output.join("heal.json"), &record::pretty(&record)?)?;
    if arguments.json {
        printer::json(&record)?;
    } else {
        let mut table =
            Table::new(["", "perplexity", "± error", "nats over dense", "± error", "KL to dense", "± error"]);
        for (name, figures) in [("pruned", without), ("healed", with)] {
            let Some(against) = &figures.against else { continue };
            let error = |stderr: Option<f64>| stderr.map_or_else(|| "-".into(), |stderr| format!("{stderr:.4}"));
            table.row([
                name.into(),
                format!("{:.4}", figures.perplexity),
                error(figures.perplexity_stderr),
                format!("{:.4}", against.nll_increase.value),
                error(against.nll_increase.stderr),
                format!("{:.4}", against.kl_mean.value),
                error(against.kl_mean.stderr),
            ]);
        }
        table.print();
        let healed = written.healed.as_ref().map_or(0, |healed| healed.tensors.len());
        printer::say(format!("{}: {healed} tensors hold other numbers", arguments.output.display()));
    }
    if !helped {
        printer::warn(format!(
            "{}: is further from the dense model than what was to be healed; do not use it",
            arguments.output.display()
        ));
    }
    Ok(if helped { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
