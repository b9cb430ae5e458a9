//! `scruple share verify`: proof that a model with a pool expands to what it was written for.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Mutex, PoisonError},
};

use anyhow::Result;
use scruple_compress::{
    nn::{Net, evaluate_from},
    sharing::{self, Findings, SharedFile, net::PooledNet},
};
use serde::Serialize;

use super::train::{EVALUATED, image_sets, scaling_beside, spec_beside};

use crate::{
    printer::{self, Progress},
    record::{self, Run},
    source,
};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file that another `share` verb wrote
    model: PathBuf,
    /// The dense model it was made from: names, shapes and types must be its, and what does not share its bytes
    #[arg(long)]
    against: Option<PathBuf>,
    /// Labelled images a net tells apart from its pool, as in `share train`; its share.json says what net it is
    #[arg(long)]
    test: Option<String>,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Write `verify.json` and `run.json` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Record {
    #[serde(flatten)]
    findings: Findings,
    /// Share of the images told right, by the net run from its pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    test_accuracy: Option<f64>,
}

/// Share of the images `test` that the net of `file` tells right, run from its pool.
fn accuracy(file: &SharedFile, test: &str) -> Result<f64> {
    let (_, images) = image_sets(test, test)?;
    let spec = spec_beside(file, None, &images)?;
    let scaling = scaling_beside(file)?.unwrap_or_else(|| images.scaling());
    let pooled = PooledNet::open(&spec.graph()?, file)?;
    Ok(evaluate_from(&mut Net::new(&spec, EVALUATED)?, &pooled, pooled.running(), &images, &scaling)?.accuracy())
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
    let test_accuracy = arguments.test.as_deref().map(|test| accuracy(&file, test)).transpose()?;
    let found = Record { findings, test_accuracy };
    let findings = &found.findings;
    if let Some(out) = &arguments.output {
        record::save(out, "verify", &found, &clock)?;
    }
    if arguments.json {
        printer::json(&found)?;
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
        if let Some(accuracy) = found.test_accuracy {
            printer::data(format!("run from its pool, it tells {:.2} % of the test images right", 100.0 * accuracy));
        }
    } else {
        findings.faults.iter().for_each(printer::data);
    }
    Ok(if findings.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
