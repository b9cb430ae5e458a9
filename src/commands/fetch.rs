//! `scruple fetch`: a model of a hub to this machine.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use scruple_weights::{
    ModelSource, PathFilter,
    hub::{Hub, Plan, Settings, Want},
};
use serde_json::{Value, json};

use crate::{
    printer::{self, Table},
    record::{self, Run},
    source::Bar,
};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// `org/name[@revision][:file]`, or an address of the model
    model: PathBuf,
    /// Branch, tag or commit, instead of one behind `@`
    #[arg(long)]
    revision: Option<String>,
    /// Fetch the files whose paths match, `*` and `?` being wildcards, instead of what a model needs; may be repeated
    #[arg(long, value_name = "PATTERN")]
    file: Vec<String>,
    /// Say what would be fetched, and stop
    #[arg(long)]
    dry_run: bool,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
    /// Copy the files into this folder, which must not exist or be empty, with `fetch.json` and `run.json`
    #[arg(short, long, conflicts_with = "dry_run")]
    output: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("fetch");
    let ModelSource::Hub(mut model) = ModelSource::parse(&arguments.model)? else {
        anyhow::bail!(
            "{}: this is on this machine already; a model of a hub of the same name is meant by `hf://org/name`",
            arguments.model.display()
        )
    };
    if let Some(revision) = &arguments.revision {
        anyhow::ensure!(model.revision.is_none(), "{model}: give the revision behind `@` or by --revision, not both");
        // Read back, so that the revision is checked as one behind `@` is.
        let inside = model.inside.as_ref().map(|inside| format!(":{inside}")).unwrap_or_default();
        let host = model.host.take();
        model = format!("{}@{revision}{inside}", model.repo).parse()?;
        model.host = host;
    }
    let want = match arguments.file.is_empty() {
        true => Want::Model,
        false => Want::Matching(PathFilter::new(arguments.file.clone(), Vec::new())?),
    };
    if let Some(out) = &arguments.output {
        Plan::expect_free(out)?;
    }
    let hub = Hub::new(Settings::from_env()?);
    let plan = match arguments.dry_run {
        true => hub.plan(&model, &want, &mut Bar::default())?,
        false => hub.fetch(&model, &want, &mut Bar::default())?,
    };
    let path = arguments.output.as_ref().unwrap_or(&plan.open);
    if let Some(out) = &arguments.output {
        plan.copy_to(out)?;
        record::save(out, "fetch", &record_of(&plan), &clock)?;
    }
    let (missing, missing_bytes) = plan.missing();
    if arguments.json {
        let mut value = record_of(&plan);
        value["path"] = path.display().to_string().into();
        value["new_files"] = missing.into();
        value["new_bytes"] = missing_bytes.into();
        printer::json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["file", "bytes", ""]);
    for file in &plan.files {
        let state = match (file.cached, arguments.dry_run) {
            (true, _) => "in the cache",
            (false, true) => "to fetch",
            (false, false) => "fetched",
        };
        table.row([file.path.clone(), file.bytes.to_string(), state.into()]);
    }
    table.print();
    printer::data("");
    let verb = if arguments.dry_run { "to fetch" } else { "fetched" };
    printer::data(format!(
        "{} files, {} bytes; {verb}: {missing} files, {missing_bytes} bytes",
        plan.files.len(),
        plan.bytes()
    ));
    printer::data(format!("commit: {}", plan.origin.commit));
    if !arguments.dry_run {
        printer::data(format!("path: {}", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// What was fetched: the same bytes for the same commit.
fn record_of(plan: &Plan) -> Value {
    let file = |file: &scruple_weights::hub::PlannedFile| json!({ "path": file.path, "bytes": file.bytes });
    json!({
        "source": plan.origin,
        "files": plan.files.iter().map(file).collect::<Vec<_>>(),
        "bytes": plan.bytes(),
    })
}
