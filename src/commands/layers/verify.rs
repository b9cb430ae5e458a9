//! `scruple layers verify`: proof that a checkpoint is another without some of its layers.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use scruple_compress::layers::verify;
use scruple_weights::Checkpoint;
use serde_json::json;

use crate::{
    printer,
    record::{self, Run},
    source,
};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder that `layers prune` wrote, or `org/name[@revision]` of a hub that holds one
    model: PathBuf,
    /// The model the layers were taken out of
    #[arg(long)]
    against: PathBuf,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Write `verify.json` and `run.json` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("layers verify");
    let model = source::locate(&arguments.model)?;
    let against = source::locate(&arguments.against)?;
    let findings = verify::verify(&Checkpoint::open(model.path())?, &Checkpoint::open(against.path())?)?;
    let verified = findings.faults.is_empty();
    let mut record = json!({ "verified": verified });
    if let (Some(record), serde_json::Value::Object(more)) = (record.as_object_mut(), serde_json::to_value(&findings)?)
    {
        record.extend(more);
    }
    if let Some(out) = &arguments.output {
        record::save(out, "verify", &record, &clock)?;
    }
    if arguments.json {
        printer::json(&record)?;
    } else if verified {
        let provenance = &findings.provenance;
        let ran = match (&findings.largest_logit_difference, &findings.not_run) {
            (Some(_), _) => {
                "and it gives the very logits of the source with these layers taken out in memory".to_string()
            }
            (None, why) => format!("and was not run: {}", why.as_deref().unwrap_or_default()),
        };
        printer::data(format!(
            "verified: {} of {} layers of `{}` are there ({} dropped), {} tensors hold the source's bytes, the configuration \
             is what it should be, {ran}",
            provenance.kept.len(),
            provenance.source_layers,
            provenance.stack,
            provenance.removed,
            findings.tensors
        ));
    } else {
        findings.faults.iter().for_each(printer::data);
    }
    Ok(if verified { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
