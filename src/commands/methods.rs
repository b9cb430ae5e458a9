//! `scruple methods`: what can be done to weights, and where it comes from.

use std::process::ExitCode;

use anyhow::Result;
use scruple_compress::methods::METHODS;
use serde_json::{Value, json};

use crate::printer::{self, Table};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.json {
        let list: Vec<Value> = METHODS
            .iter()
            .map(|entry| json!({ "name": entry.name, "summary": entry.summary, "paper": entry.paper }))
            .collect();
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
