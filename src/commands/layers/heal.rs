//! `scruple layers heal`: what can be won back of a checkpoint without some of its layers, in closed form. Often that is
//! nothing: the exit code is 1 where the result is further from the dense model on held-out text than before.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use scruple_compress::{
    layers::{
        evaluate::Corpus,
        heal::{Healed, merge, refit_norms},
        write::{provenance, write_healed},
    },
    measure::{self, Against, Evaluation, Windows},
    model::{Decoder, text::Text},
};
use scruple_weights::Checkpoint;
use serde_json::json;

use super::text;
use crate::{
    printer::{self, Progress, Table},
    source,
};

/// How a checkpoint is healed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Method {
    /// The norms behind the first layer that is gone are fitted to what the dense model's hand on
    Norms,
    /// Layers that are gone are added to the one before them
    Merge,
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
    /// Text to fit on: plain, JSON lines or Parquet
    #[arg(long)]
    calibration: PathBuf,
    /// Text to measure on, before and after
    #[arg(long)]
    holdout: PathBuf,
    /// Tokens of --calibration
    #[arg(long, default_value_t = 4096)]
    tokens: usize,
    /// Tokens of --holdout
    #[arg(long, default_value_t = 16384)]
    holdout_tokens: usize,
    /// Tokens of a window; each window is run on its own
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Folder to write; it must not exist
    #[arg(short, long)]
    output: PathBuf,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
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
    let shape = (arguments.window, arguments.tokens);
    let ids = text::tokens(&tokenizer, &arguments.calibration, arguments.tokens)?;
    let corpus: Corpus =
        text::windows(&ids, 0, shape, 1.0, 0).with_context(|| arguments.calibration.display().to_string())?;
    let held = text::tokens(&tokenizer, &arguments.holdout, arguments.holdout_tokens)?;
    let windows = Windows::new(&held, arguments.window, Some(arguments.holdout_tokens))
        .with_context(|| arguments.holdout.display().to_string())?;

    let (replaced, name, digest) = match arguments.method {
        Method::Norms => {
            let mut progress = Progress::new("heal", before.source_layers as u64);
            let fitted = refit_norms(&pruned, &dense, &before, corpus.sequences(), &mut |done| {
                progress.at(done as u64, "layers");
            })?;
            (fitted, "norms", Some(corpus.digest()))
        }
        Method::Merge => (merge(&dense, &before)?, "merge", None),
    };
    let tensors = replaced.keys().cloned().collect();
    let healed = Healed { method: name.into(), text_digest: digest, tensors };
    let written = write_healed(&pruned, &replaced, healed, &arguments.output)?;

    let whole = Decoder::open(&dense)?;
    let figures = |folder: &Path| -> Result<Evaluation> {
        let model = Decoder::open(&Checkpoint::open(folder)?)?;
        let mut progress = Progress::new("measure", windows.targets() as u64);
        let against = Some(Against::Model(&whole));
        Ok(measure::evaluate(&model, against, &windows, None, &mut |done| progress.at(done as u64, "tokens"))?)
    };
    let (without, with) = (figures(pruned.dir())?, figures(&arguments.output)?);
    let kl = |figures: &Evaluation| figures.against.as_ref().map_or(f64::NAN, |against| against.kl_mean.value);
    let helped = kl(&with) < kl(&without);
    let record = json!({ "provenance": written, "helped": helped, "without": without, "with": with });
    if arguments.json {
        printer::json(&record)?;
    } else {
        let mut table =
            Table::new(["", "perplexity", "± error", "nats over dense", "± error", "KL to dense", "± error"]);
        for (name, figures) in [("pruned", &without), ("healed", &with)] {
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
        let healed = written.healed.map_or(0, |healed| healed.tensors.len());
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
