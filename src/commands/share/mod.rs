//! `scruple share`: many weights read from one small pool. One sub-verb a file.

use std::process::ExitCode;

use anyhow::Result;

mod train;

mod project;

pub mod finetune;

pub mod recipe;

mod expand;

mod verify;

mod report;

mod bench;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Train a small net for images over a pool: what the method is for
    Train(Box<train::Arguments>),
    /// Project a checkpoint on a pool: where fine-tuning may start, not a model to use
    Project(Box<project::Arguments>),
    /// Train a model with a pool further: on data, and on what the dense model says of it
    Finetune(Box<finetune::Arguments>),
    /// Turn a model with a pool back into an ordinary checkpoint, bit for bit
    Expand(expand::Arguments),
    /// Prove that a model with a pool expands to what it was written for
    Verify(verify::Arguments),
    /// Say what a pool takes and saves, and how it is loaded
    Report(report::Arguments),
    /// Measure sharing: against dense training, against its own constant, against every rival
    Bench(Box<bench::Arguments>),
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.verb {
        Verb::Train(arguments) => train::run(arguments),
        Verb::Project(arguments) => project::run(arguments),
        Verb::Finetune(arguments) => finetune::run(arguments),
        Verb::Expand(arguments) => expand::run(arguments),
        Verb::Verify(arguments) => verify::run(arguments),
        Verb::Report(arguments) => report::run(arguments),
        Verb::Bench(arguments) => bench::run(arguments),
    }
}
