//! `scruple families`: which networks run, and what their results were compared with.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use scruple_compress::model::any::{Kind, families};
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
    /// Write `families.json` and `run.json` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
}

const fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Decoder => "decoder",
        Kind::Encoder => "encoder",
        Kind::Vit => "vision transformer",
        Kind::ResNet => "residual net",
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("families");
    let families = families();
    let list: Vec<Value> = families
        .iter()
        .map(|family| json!({ "model_type": family.name, "kind": name(family.kind), "checked_by": family.checked_by }))
        .collect();
    if let Some(out) = &arguments.output {
        record::save(out, "families", &list, &clock)?;
    }
    if arguments.json {
        printer::json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["model_type", "kind", "checked against"]);
    for family in families {
        table.row([family.name.into(), name(family.kind).into(), family.checked_by.into()]);
    }
    table.print();
    Ok(ExitCode::SUCCESS)
}
