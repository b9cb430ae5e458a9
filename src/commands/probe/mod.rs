//! `scruple probe`: experts that read from weights what a model was trained on.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

pub mod study;
pub mod train;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Learn experts from a zoo of labelled models, one file a tree
    Train(Box<train::Arguments>),
    /// Measure what can and cannot be read from a zoo: presets, baselines, other trees, controls, compressed copies
    Study(study::Arguments),
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.what {
        What::Train(arguments) => train::run(arguments),
        What::Study(arguments) => study::run(arguments),
    }
}
