//! `scruple share verify`: proof that a model with a pool expands to what it was written for.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Mutex, PoisonError},
};

use anyhow::Result;
use scruple_compress::sharing::{self, SharedFile};

use crate::{
    printer::{self, Progress},
    record::{self, Run},
    source,
};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file that `share project` wrote
    model: PathBuf,
    /// The dense model it was made from: names, shapes and types must be its, and what does not share its bytes
    #[arg(long)]
    against: Option<PathBuf>,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Write `verify.json` and `run.json` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("share verify");
    let file = SharedFile::open(source::locate(&arguments.model)?.path())?;
    let dense = arguments.against.as_deref().map(|path| anyhow::Ok(source::locate(path)?.open()?)).transpose()?;
    let progress = Mutex::new((Progress::new("verify", file.sharing().modules.len() as u64), 0));
    let findings = sharing::verify(&file, dense.as_ref(), &|name| {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.1 += 1;
        let done = progress.1;
        progress.0.at(done, name);
    })?;
    drop(progress);
    if let Some(out) = &arguments.output {
        record::save(out, "verify", &findings, &clock)?;
    }
    if arguments.json {
        printer::json(&findings)?;
    } else if findings.faults.is_empty() {
        let against = match findings.lossless {
            Some(true) => format!(
                "; all of them and {} tensors that do not share are the dense model's bit for bit",
                findings.compared
            ),
            Some(false) => format!(
                "; {} tensors that do not share are the dense model's, those that share are near to it as `share project` \
                 said",
                findings.compared
            ),
            None => String::new(),
        };
        printer::data(format!("verified: {} tensors expand to their SHA-256{against}", findings.recovered));
    } else {
        findings.faults.iter().for_each(printer::data);
    }
    Ok(if findings.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
