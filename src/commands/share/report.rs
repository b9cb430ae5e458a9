//! `scruple share report`: what a pool takes and saves.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use scruple_compress::sharing::{SharedFile, report::Report};

use crate::{
    printer::{self, Table},
    record::{self, Run},
    source,
};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file that another `share` verb wrote
    model: PathBuf,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Write `share.json` and `run.json` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// Prints the figures of a whole pool.
pub(super) fn print(report: &Report) {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    printer::data(format!(
        "{} weights over {} slots, {:.3} a slot; load factor {}",
        report.weights, report.slots, report.rate, report.load_factor
    ));
    for bucket in &report.buckets {
        printer::data(format!("{} slots serve {} weights each", bucket.slots, bucket.weights));
    }
    printer::data(format!(
        "{:.2} MB: pool {:.2}, {} tensors that do not share {:.2}; the expanded model has {:.2} MB",
        mb(report.bytes),
        mb(report.pool_bytes),
        report.untouched_tensors,
        mb(report.untouched_bytes),
        mb(report.dense_bytes)
    ));
    if report.bytes >= report.dense_bytes {
        printer::warn(
            "the model with the pool is no smaller than the dense one; raise the rate or narrow the pool's type",
        );
    }
    printer::data(format!(
        "a pruned model of the pool's bytes keeps {} of the weights, or {} where only values are counted as in the paper",
        report.pruned.kept, report.pruned.kept_values_only
    ));
    for tied in &report.tied {
        printer::data(format!("`{}` equals `{}` and is stored once", tied.name, tied.of));
    }
    printer::data("sharing does not reduce the number of multiplications");
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("share report");
    let report = Report::of(&SharedFile::open(source::locate(&arguments.model)?.path())?);
    if let Some(out) = &arguments.output {
        record::save(out, "share", &report, &clock)?;
    }
    if arguments.json {
        printer::json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["tensor", "shape", "weights", "scale", "dense bytes", "of the pool"]);
    for tensor in &report.tensors {
        table.row([
            tensor.name.clone(),
            format!("{:?}", tensor.shape),
            tensor.weights.to_string(),
            tensor.scale.to_string(),
            tensor.dense_bytes.to_string(),
            format!("{:.0}", tensor.pool_bytes),
        ]);
    }
    table.print();
    print(&report);
    Ok(ExitCode::SUCCESS)
}
