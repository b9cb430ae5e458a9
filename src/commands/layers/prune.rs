//! `scruple layers prune`: a checkpoint without some of its layers.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use scruple_compress::layers::{
    Removal,
    write::{DropOptions, Dropped, drop_layers, preview},
};
use scruple_weights::Checkpoint;
use serde_json::{Value, json};

use crate::{
    printer::{self, Progress},
    record::{self, Run},
    source,
};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file of the model, or `org/name[@revision][:file]` of a hub
    model: PathBuf,
    /// Layers to drop, the first being 0: numbers and ranges such as 3,7,21-28
    #[arg(long, required_unless_present = "from", conflicts_with = "from")]
    drop: Option<String>,
    /// Take the set from this file of `layers search`, or from the folder it wrote
    #[arg(long)]
    from: Option<PathBuf>,
    /// Of --from, the set that drops this many layers; without it the largest
    #[arg(long, requires = "from")]
    k: Option<usize>,
    /// Folder to write; it must not exist
    #[arg(short, long, required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// What the names of the layers begin with, such as `model.layers`; needed where several lists could be meant
    #[arg(long)]
    stack: Option<String>,
    /// Write `mergekit.yaml` beside the model: the slices that make the same model with mergekit
    #[arg(long)]
    mergekit: bool,
    /// Leave what is not understood in the configuration as it is, in place of refusing
    #[arg(long)]
    force: bool,
    /// Say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
}

/// The set that `from`, a file of `layers search` or its folder, holds for `k`; and how it was found.
pub(crate) fn read_set(from: &Path, k: Option<usize>) -> Result<(Removal, Value)> {
    let mut file = if from.is_dir() { from.join("search.json") } else { from.to_path_buf() };
    let read = |file: &Path| -> Result<Value> {
        let text = std::fs::read(file).with_context(|| format!("{}: cannot read the set of layers", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{}: not JSON", file.display()))
    };
    let mut found = read(&file)?;
    let beside = file.with_file_name("search.json");
    if found.get("chosen").is_none() && found.get("verb").is_some() && beside.is_file() {
        // `run.json`, the circumstances of the search; what it found lies beside it.
        (found, file) = (read(&beside)?, beside);
    }
    let sets = found["chosen"].as_array().with_context(|| {
        format!("{}: has no list `chosen` of sets of layers; give the `search.json` of `layers search`", file.display())
    })?;
    let size = |set: &Value| set["removed"].as_array().map(Vec::len);
    let set = match k {
        Some(k) => sets.iter().find(|set| size(set) == Some(k)),
        None => sets.iter().max_by_key(|set| size(set)),
    };
    let set = set.with_context(|| {
        let there: Vec<String> = sets.iter().filter_map(size).map(|k| k.to_string()).collect();
        let wanted = k.map_or_else(String::new, |k| format!(" of {k} layers"));
        format!("{}: holds no set{wanted}, but of {}", file.display(), there.join(", "))
    })?;
    let removal: Removal = serde_json::from_value(set["removed"].clone())
        .with_context(|| format!("{}: `removed` should be a list of layers' numbers", file.display()))?;
    let mut by = set.clone();
    for key in ["objective", "search_tokens", "holdout_tokens", "model_fingerprint"] {
        if let (Some(by), Some(value)) = (by.as_object_mut(), found.get(key)) {
            by.insert(key.to_string(), value.clone());
        }
    }
    Ok((removal, by))
}

/// Warns where what was found `by` a search was found on another model than `checkpoint`.
pub(crate) fn expect_searched(checkpoint: &Checkpoint, by: &Value) {
    let searched = by.get("model_fingerprint").and_then(Value::as_str);
    if let Some(searched) = searched.filter(|searched| *searched != checkpoint.fingerprint()) {
        printer::warn(format!(
            "{}: its tensors' fingerprint is not {searched}, of the model that was searched; the set may not suit it",
            checkpoint.path().display()
        ));
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("layers prune");
    let located = source::locate(&arguments.model)?;
    let checkpoint = Checkpoint::open(located.path())?;
    let (removal, chosen_by) = match (&arguments.drop, &arguments.from) {
        (Some(drop), _) => (Removal::parse(drop)?, None),
        (None, Some(from)) => {
            let (removal, by) = read_set(from, arguments.k)?;
            (removal, Some(by))
        }
        (None, None) => anyhow::bail!("give --drop or --from"),
    };
    if let Some(by) = &chosen_by {
        expect_searched(&checkpoint, by);
    }
    let mut options = DropOptions {
        stack: arguments.stack.clone(),
        force: arguments.force,
        chosen_by,
        mergekit_source: arguments.mergekit.then(|| arguments.model.display().to_string()),
        files: Vec::new(),
    };
    let out = arguments.output.as_deref().filter(|_| !arguments.dry_run);
    let dropped = match out {
        None => preview(&checkpoint, &removal, &options)?,
        Some(out) => {
            options.files.push(("run.json".into(), record::pretty(&clock.to_json())?));
            let mut progress = Progress::bytes("prune", checkpoint.bytes());
            drop_layers(&checkpoint, &removal, out, &options, &mut |done, _| progress.at(done, "copied"))?
        }
    };
    report(arguments, &checkpoint, &removal, &dropped, out)?;
    Ok(ExitCode::SUCCESS)
}

/// Says what was written.
fn report(
    arguments: &Arguments,
    checkpoint: &Checkpoint,
    removal: &Removal,
    dropped: &Dropped,
    out: Option<&Path>,
) -> Result<()> {
    let provenance = &dropped.provenance;
    let dtype = checkpoint.config().ok().and_then(|config| {
        ["dtype", "torch_dtype"].into_iter().find_map(|key| config.get(key)?.as_str().map(str::to_owned))
    });
    let mergekit = removal.mergekit(
        provenance.source_layers,
        &arguments.model.display().to_string(),
        dtype.as_deref().unwrap_or("bfloat16"),
    );
    if arguments.json {
        let mut record = json!({ "output": out.map(|out| out.display().to_string()), "mergekit": mergekit });
        if let (Some(record), Value::Object(more)) = (record.as_object_mut(), serde_json::to_value(dropped)?) {
            record.extend(more);
        }
        return printer::json(&record);
    }
    let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    printer::data(format!(
        "{}: {} of {} layers of `{}`, without {}; {:.1} MB of {:.1} ({:.1} %), {} of {} parameters",
        out.map_or_else(|| "nothing written".to_string(), |out| out.display().to_string()),
        provenance.kept.len(),
        provenance.source_layers,
        provenance.stack,
        removal,
        dropped.bytes as f64 / 1e6,
        dropped.source_bytes as f64 / 1e6,
        share(dropped.bytes, dropped.source_bytes),
        dropped.parameters,
        dropped.source_parameters,
    ));
    provenance.config_changes.iter().for_each(|change| printer::data(format!("config.json: {change}")));
    printer::data(format!("llama.cpp: llama-quantize {} IN.gguf OUT.gguf TYPE", provenance.llama_cpp));
    printer::data(format!("mergekit:\n{}", mergekit.trim_end()));
    provenance.notes.iter().for_each(printer::warn);
    Ok(())
}
