//! The same compression with several calibration seeds: how far its results depend on which text was looked at.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
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

/// `folder` with `.seed-N` at the end of its name.
fn with_seed(folder: &Path, seed: u64) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".seed-{seed}"));
    folder.with_file_name(name)
}

/// Compresses with `count` seeds, one after the other; the first seed's folder becomes `out`, of the others the figures
/// are kept, in `seeds.json` there. `compress` carries out one run; a run that an earlier, interrupted call has finished
/// is not repeated.
pub fn run(arguments: &Arguments, out: &Path, count: u64, compress: impl Fn(&Arguments) -> Result<()>) -> Result<()> {
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
        let file = folder.join("eval.json");
        if file.is_file() {
            printer::say(format!("{}: finished by an earlier run", folder.display()));
        } else {
            printer::say(format!("seed {seed} ({} of {count})", seed - first + 1));
            compress(&one)?;
        }
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
    for seed in first + 1..first + count {
        let folder = with_seed(out, seed);
        std::fs::remove_dir_all(&folder).with_context(|| format!("{}: cannot be removed", folder.display()))?;
    }
    if arguments.json {
        return printer::json(&report);
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
