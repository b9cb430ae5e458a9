//! `scruple lottery`: what nets are worth that lose whole layers before they are trained.
//!
//! In the order the data flows: a `config` says what is asked; a `job` is one training, which a `bench` carries out and
//! keeps the record of; the `plan` asks for trainings in their order, first the gate; `assemble` holds arms against each
//! other, and `compare` makes differences over paired seeds into words; the `report` is told (`tell`), drawn (`picture`) and written as a `page`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;

use crate::{
    printer,
    record::{self, Run},
};

mod config;

mod job;

mod bench;

mod plan;

mod assemble;

mod compare;

mod report;

mod tell;

mod picture;

mod page;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The whole experiment in seconds, on pictures that come with the program, to see what it does
    #[arg(long, conflicts_with = "config")]
    smoke: bool,
    /// File that says which nets, data, criteria and controls
    #[arg(long, value_name = "TOML")]
    config: Option<PathBuf>,
    /// Only dense nets and the shallowest of their families: whether depth pays at all
    #[arg(long)]
    gate: bool,
    /// Folder of the records; trainings that are in it already are not done again
    #[arg(short, long)]
    output: PathBuf,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut clock = Run::start("lottery");
    let config = match &arguments.config {
        Some(file) => config::Config::read(file)?,
        None if arguments.smoke => config::Config::smoke()?,
        None => anyhow::bail!("nothing is asked: give --config FILE, or --smoke for an experiment of seconds"),
    };
    let data = config.data.load()?;
    let bench = bench::Bench::open(&config, &data, &arguments.output)?;
    let report = plan::run(&bench, arguments.gate)?;
    let costs = report::costs(&report, &bench)?;

    let out = record::folder(&arguments.output)?;
    // The gate alone leaves the report of a whole experiment as it is.
    let (name, part) = if arguments.gate { ("gate", "gate-") } else { ("lottery", "") };
    record::write_whole(&out.join(format!("{part}runs.jsonl")), &bench.lines(&report.trainings)?)?;
    let page = out.join(format!("{name}.html"));
    record::write_whole(&page, page::html(&report, &costs)?.as_bytes())?;
    let mut drawn = vec![page];
    for (name, svg) in picture::all(&report)? {
        let file = out.join(format!("{name}.svg"));
        record::write_whole(&file, svg.as_bytes())?;
        drawn.push(file);
    }
    record::write_whole(&out.join(format!("{part}costs.json")), &record::pretty(&costs)?)?;
    clock.extra.insert("trained".into(), bench.trained().into());
    record::save(&out, name, &report, &clock)?;
    match arguments.json {
        true => printer::json(&report)?,
        false => tell::print(&report, &costs, &drawn),
    }
    Ok(ExitCode::SUCCESS)
}
