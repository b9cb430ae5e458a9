//! `scruple methods`: what can be done to weights, and where it comes from.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use scruple_compress::methods::METHODS;
use serde_json::{Value, json};

use crate::{
    printer::{self, Table},
    record::{self, Run},
};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
    /// Write `methods.json` and `run.json` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("methods");
    let list: Vec<Value> = METHODS
        .iter()
        .map(|entry| json!({ "name": entry.name, "summary": entry.summary, "paper": entry.paper }))
        .collect();
    if let Some(out) = &arguments.output {
        record::save(out, "methods", &list, &clock)?;
    }
    if arguments.json {
        printer::json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["method", "what it does", "paper"]);
    for entry in METHODS {
        table.row([entry.name.into(), entry.summary.into(), entry.paper.into()]);
    }
    table.print();
    Ok(ExitCode::SUCCESS)
}
