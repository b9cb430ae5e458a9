//! The same compression with several calibration seeds: how far its results depend on which text was looked at.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use scruple_weights::digest;
use serde::Serialize;
use serde_json::{Value, json};

use super::Arguments;
use crate::{
    printer::{self, Table},
    record,
};

/// What the records of the runs are compared by: a name, and where it stands in `eval.json`.
const FIGURES: [(&str, &str); 4] = [
    ("perplexity", "/perplexity"),
    ("nats a token over dense", "/against/nll_increase/value"),
    ("KL to dense, nats a token", "/against/kl_mean/value"),
    ("same top token", "/against/same_top/value"),
];

/// One figure over the seeds.
#[derive(Debug, Serialize)]
struct Spread {
    figure: &'static str,
    /// In the order of the seeds.
    values: Vec<f64>,
    mean: f64,
    /// Sample standard deviation over the seeds.
    std: f64,
}

impl Spread {
    fn of(figure: &'static str, values: Vec<f64>) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let std = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        Self { figure, values, mean, std }
    }
}

/// `folder` with `end` at the end of its name.
fn with_end(folder: &Path, end: &str) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_os_string();
    name.push(end);
    folder.with_file_name(name)
}

/// The folder of one seed.
fn with_seed(folder: &Path, seed: u64) -> PathBuf {
    with_end(folder, &format!(".seed-{seed}"))
}

/// The file beside it that says what it was made of.
fn record_of(folder: &Path) -> PathBuf {
    with_end(folder, ".json")
}

/// How far an earlier, interrupted call has come with a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There is no model.
    New,
    /// The model is there, its figures are not.
    Compressed,
    /// There is nothing left to do.
    Finished,
}

/// How far the model in `folder` is, made of what has the digest `identity` and measured on `max_tokens` of `text`; the
/// file `record` beside it says what it was made of, and is written here where there is no model yet.
///
/// # Errors
/// A model that was made of other things.
pub fn state(record: &Path, folder: &Path, identity: &str, text: Option<&Path>, max_tokens: usize) -> Result<State> {
    let text = text.map(digest::sha256_file).transpose()?;
    let made_of = record::pretty(&json!({ "identity": identity, "text_sha256": text, "max_tokens": max_tokens }))?;
    if !folder.exists() {
        let above = record.parent().unwrap_or(Path::new(""));
        std::fs::create_dir_all(above).with_context(|| format!("{}: cannot be made", above.display()))?;
        record::write_whole(record, &made_of)?;
        return Ok(State::New);
    }
    anyhow::ensure!(
        std::fs::read(record).is_ok_and(|known| known == made_of),
        "{}: it is there already, and nothing says that it was made of this model, recipe and text; delete it",
        folder.display()
    );
    let finished = folder.join("eval.json").is_file();
    let how = if finished { "finished" } else { "compressed, and not yet measured," };
    printer::say(format!("{}: {how} by an earlier run", folder.display()));
    Ok(if finished { State::Finished } else { State::Compressed })
}

/// Compresses with `count` seeds, one after the other; the first seed's folder becomes `out`, of the others the figures
/// are kept, in `seeds.json` there. `compress` carries out one run, with the file that says what it is made of; what an
/// earlier, interrupted call has finished is not repeated.
pub fn run(
    arguments: &Arguments,
    out: &Path,
    count: u64,
    compress: impl Fn(&Arguments, &Path) -> Result<()>,
) -> Result<()> {
    let first = arguments.calibration_seed.unwrap_or(0);
    let mut records: Vec<Value> = Vec::new();
    for seed in first..first + count {
        let folder = with_seed(out, seed);
        let one = Arguments {
            calibration_seed: Some(seed),
            calibration_seeds: None,
            output: Some(folder.clone()),
            ..arguments.clone()
        };
        printer::say(format!("seed {seed} ({} of {count})", seed - first + 1));
        compress(&one, &record_of(&folder))?;
        let file = folder.join("eval.json");
        let text = std::fs::read(&file).with_context(|| format!("{}: cannot read the record", file.display()))?;
        records.push(serde_json::from_slice(&text).with_context(|| file.display().to_string())?);
    }
    let value = |record: &Value, path: &str| record.pointer(path).and_then(Value::as_f64);
    let spreads: Vec<Spread> = FIGURES
        .iter()
        .filter_map(|(name, path)| {
            let values: Option<Vec<f64>> = records.iter().map(|record| value(record, path)).collect();
            Some(Spread::of(name, values?))
        })
        .collect();
    let report = json!({ "seeds": (first..first + count).collect::<Vec<_>>(), "figures": spreads });
    let kept = with_seed(out, first);
    record::write_whole(&kept.join("seeds.json"), &record::pretty(&report)?)?;
    std::fs::rename(&kept, out)
        .with_context(|| format!("{}: cannot be renamed to {}", kept.display(), out.display()))?;
    for seed in first..first + count {
        let folder = with_seed(out, seed);
        let record = record_of(&folder);
        if seed > first {
            std::fs::remove_dir_all(&folder).with_context(|| format!("{}: cannot be removed", folder.display()))?;
        }
        std::fs::remove_file(&record).with_context(|| format!("{}: cannot be removed", record.display()))?;
    }
    if arguments.json {
        return printer::json(&report);
    }
    if spreads.is_empty() {
        printer::data("a text encoder has no figures here: perplexity and divergence are a decoder's");
        printer::data(format!("written: {} (of seed {first})", out.display()));
        return Ok(());
    }
    let mut table = Table::new(["over the calibration seeds", "mean", "standard deviation", "least", "greatest"]);
    for spread in &spreads {
        let least = spread.values.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = spread.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        table.row([
            spread.figure.to_string(),
            format!("{:.5}", spread.mean),
            format!("{:.5}", spread.std),
            format!("{least:.5}"),
            format!("{greatest:.5}"),
        ]);
    }
    table.print();
    printer::data(format!("written: {} (of seed {first})", out.display()));
    Ok(())
}
