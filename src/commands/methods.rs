//! `scruple methods`: what can be done to weights, and where it comes from.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use scruple_compress::{
    export::Format,
    methods::{Kind, METHODS, Needs},
    sharing::{Rps, method},
};
use serde_json::json;

use crate::{
    printer::{self, Table},
    record::{self, Run},
};

/// Inputs of the row that tells how a method stores weights.
const WIDTH: usize = 4096;

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
    let mut list = Vec::new();
    let mut table = Table::new(["method", "kind", "needs", "written as", "what it does", "paper"]);
    for entry in METHODS {
        let method = entry.build(toml::Table::new())?;
        let kind = match method.kind() {
            Kind::Prune => "prunes",
            Kind::Quantise => "quantises",
        };
        let needs = needs(method.needs());
        // By a row that suits every default.
        let code = method.code(WIDTH)?;
        let formats: Vec<&str> =
            Format::ALL.into_iter().filter(|format| format.stores(code)).map(Format::name).collect();
        list.push(json!({
            "name": entry.name, "kind": kind, "needs": needs, "formats": formats, "summary": entry.summary, "paper": entry.paper,
            "parameters": method.parameters(),
        }));
        let needs = if needs.is_empty() { "no data".into() } else { needs.join(", ") };
        let formats = formats.join(", ");
        table.row([entry.name.into(), kind.into(), needs, formats, entry.summary.into(), entry.paper.into()]);
    }
    // The one that decides over a whole model.
    let parameters = toml::Table::try_from(Rps::default())?;
    list.push(json!({
        "name": method::NAME, "kind": "shares", "needs": [], "formats": [method::NAME], "summary": method::SUMMARY,
        "paper": method::PAPER, "parameters": parameters,
    }));
    table.row([method::NAME, "shares", "no data", method::NAME, method::SUMMARY, method::PAPER].map(String::from));
    if let Some(out) = &arguments.output {
        record::save(out, "methods", &list, &clock)?;
    }
    if arguments.json {
        printer::json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    table.print();
    Ok(ExitCode::SUCCESS)
}

/// What must be observed of a linear's inputs on a calibration text.
fn needs(needs: Needs) -> Vec<&'static str> {
    let named = [
        (needs.hessian, "Hessian"),
        (needs.energies, "input norms"),
        (needs.magnitudes, "input sizes"),
        (needs.samples, "sampled inputs"),
    ];
    named.into_iter().filter(|(needed, _)| *needed).map(|(_, name)| name).collect()
}
