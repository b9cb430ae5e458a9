//! `scruple share expand`: a model with a pool as an ordinary checkpoint.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use scruple_compress::sharing::{self, SharedFile};

use crate::{
    printer::{self, Progress},
    source,
};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file that another `share` verb wrote
    model: PathBuf,
    /// Folder to write; it must not exist
    #[arg(short, long)]
    output: PathBuf,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let located = source::locate(&arguments.model)?;
    let file = SharedFile::open(located.path())?;
    let mut progress = None;
    let expanded = sharing::expand(&file, &arguments.output, &mut |done, total| {
        progress.get_or_insert_with(|| Progress::bytes("expand", total)).at(done, "written");
    })?;
    drop(progress);
    if arguments.json {
        printer::json(&expanded)?;
    } else {
        printer::data(format!(
            "{}: {} tensors recovered, each with its SHA-256, {} copied; {:.1} MB from {:.1}",
            arguments.output.display(),
            expanded.recovered,
            expanded.copied,
            expanded.bytes as f64 / 1e6,
            expanded.source_bytes as f64 / 1e6,
        ));
    }
    Ok(ExitCode::SUCCESS)
}
