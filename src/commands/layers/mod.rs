//! `scruple layers`: which whole layers of a model can go, and the checkpoint without them. One sub-verb a file.

use std::process::ExitCode;

use anyhow::Result;

mod text;

mod scan;

mod search;

mod report;

pub(crate) mod prune;

mod heal;

mod encoder;

mod verify;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// What each layer does to the residual stream, from one forward pass
    Scan(scan::Arguments),
    /// Search for layers that can go, by exact losses of whole sets
    Search(Box<search::Arguments>),
    /// Write a checkpoint without some of its layers; the model is not run
    Prune(prune::Arguments),
    /// Win back what can be, in closed form or by distillation, and say how much that is
    Heal(heal::Arguments),
    /// Prove that a checkpoint is another without some of its layers
    Verify(verify::Arguments),
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.verb {
        Verb::Scan(arguments) => scan::run(arguments),
        Verb::Search(arguments) => search::run(arguments),
        Verb::Prune(arguments) => prune::run(arguments),
        Verb::Heal(arguments) => heal::run(arguments),
        Verb::Verify(arguments) => verify::run(arguments),
    }
}
