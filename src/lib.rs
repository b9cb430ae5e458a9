//! The `scruple` program: one verb a file in [`commands`], data on stdout, talk on stderr.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub mod commands;

pub mod curve;

pub mod fixture;

pub mod plot;

pub mod printer;

pub mod record;

pub mod sides;

pub mod source;

pub mod trust;

/// Makes neural-network weights small, and measures what that costs.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 120)]
pub struct Arguments {
    /// Worker threads; all cores without it. The results do not depend on it.
    #[arg(long, global = true)]
    threads: Option<usize>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Bring a model of a hub to this machine (all verbs do so where they are given one)
    Fetch(commands::fetch::Arguments),
    /// Quantise a checkpoint; without a model, the small one that comes with the program
    Compress(Box<commands::compress::Arguments>),
    /// Perplexity of a model on a text, and its distance to a dense model
    Eval(commands::eval::Arguments),
    /// What a model does in the dimensions of trust, and what compression changed about it; without a model, the small one
    /// that comes with the program
    Trust(Box<commands::trust::Arguments>),
    /// What each method and rate of compression does to trust, over a whole sweep; without a model, for the small one that
    /// comes with the program
    Curve(commands::curve::Arguments),
    /// Continue a prompt
    Generate(commands::generate::Arguments),
    /// Say what a model is and how its weights are; without a model, the small one that comes with the program
    Inspect(commands::inspect::Arguments),
    /// Turn texts into vectors
    Embed(commands::embed::Arguments),
    /// Sort texts or images into classes; with `--registry`, say from weights alone what models were trained on
    Classify(commands::classify::Arguments),
    /// Labelled models to learn probes on: train hundreds of small ones, or index a folder
    Zoo(commands::zoo::Arguments),
    /// Learn and measure probes that read from weights what a model was trained on
    Probe(commands::probe::Arguments),
    /// Find documented models by words, in experts that compare with texts
    Search(commands::search::Arguments),
    /// Turn any container into a Hugging Face folder, or a folder into a GGUF file
    Convert(commands::convert::Arguments),
    /// Prove that a compressed checkpoint is the one that was made and measured
    Verify(commands::verify::Arguments),
    /// What changed between two checkpoints, tensor by tensor and in one sentence
    Diff(commands::diff::Arguments),
    /// Which of many models was made from which, and how: trees with their edges' kinds and confidences
    Lineage(commands::lineage::Arguments),
    /// Which whole layers of a model can go, and the checkpoint without them
    Layers(commands::layers::Arguments),
    /// What nets are worth that lose whole layers before they are trained: tickets against the dense net and controls
    Lottery(commands::lottery::Arguments),
    /// Read many weights from one small pool
    Share(commands::share::Arguments),
    /// List the methods with their papers and parameters
    Methods(commands::methods::Arguments),
    /// List the model families that run, and what checked them
    Families(commands::families::Arguments),
}

/// Runs one verb.
///
/// # Errors
/// Whatever keeps the verb from being done; `main` prints it and exits with 2.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if let Some(threads) = arguments.threads {
        anyhow::ensure!(threads > 0, "--threads should be at least 1, found 0");
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    match arguments.verb {
        Verb::Fetch(arguments) => commands::fetch::run(&arguments),
        Verb::Compress(arguments) => commands::compress::run(&arguments),
        Verb::Eval(arguments) => commands::eval::run(&arguments),
        Verb::Trust(arguments) => commands::trust::run(&arguments),
        Verb::Curve(arguments) => commands::curve::run(&arguments),
        Verb::Generate(arguments) => commands::generate::run(&arguments),
        Verb::Inspect(arguments) => commands::inspect::run(&arguments),
        Verb::Embed(arguments) => commands::embed::run(&arguments),
        Verb::Classify(arguments) => commands::classify::run(&arguments),
        Verb::Zoo(arguments) => commands::zoo::run(&arguments),
        Verb::Probe(arguments) => commands::probe::run(&arguments),
        Verb::Search(arguments) => commands::search::run(&arguments),
        Verb::Convert(arguments) => commands::convert::run(&arguments),
        Verb::Verify(arguments) => commands::verify::run(&arguments),
        Verb::Diff(arguments) => commands::diff::run(&arguments),
        Verb::Lineage(arguments) => commands::lineage::run(&arguments),
        Verb::Layers(arguments) => commands::layers::run(&arguments),
        Verb::Lottery(arguments) => commands::lottery::run(&arguments),
        Verb::Share(arguments) => commands::share::run(&arguments),
        Verb::Methods(arguments) => commands::methods::run(&arguments),
        Verb::Families(arguments) => commands::families::run(&arguments),
    }
}
