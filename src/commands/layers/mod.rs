//! `scruple layers`: which whole layers of a model can go, and the checkpoint without them. One sub-verb a file.

use std::process::ExitCode;

use anyhow::Result;

mod prune;

mod verify;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Write a checkpoint without some of its layers; the model is not run
    Prune(prune::Arguments),
    /// Prove that a checkpoint is another without some of its layers
    Verify(verify::Arguments),
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.verb {
        Verb::Prune(arguments) => prune::run(arguments),
        Verb::Verify(arguments) => verify::run(arguments),
    }
}
