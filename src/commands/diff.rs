//! `scruple diff`: what changed between two checkpoints.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
};

use anyhow::Result;
use scruple_weights::lineage::{self, Change, Diff, Matched, Model, TensorDiff, ranges};
use serde::Serialize;

use crate::{
    plot,
    printer::{self, Progress, Table},
    record::{self, Run},
    sides, source,
};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file of the model to compare with, or `org/name[@revision][:file]` of a hub
    a: PathBuf,
    /// The model that may descend from it, named likewise
    b: PathBuf,
    /// List every tensor instead of groups
    #[arg(long)]
    all: bool,
    /// Exit with 1 if anything differs, names and types included
    #[arg(long)]
    exit_code: bool,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Write `diff.json`, `run.json` and the pictures `diff.png` and `diff.svg` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// The findings: the same bytes for the same checkpoints.
#[derive(Debug, Serialize)]
struct Record {
    #[serde(flatten)]
    diff: Diff,
    /// Sides whose packed linears could not be decoded and are compared as stored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    undecoded: Vec<&'static str>,
}

fn open(path: &Path, side: &'static str, undecoded: &mut Vec<&'static str>) -> Result<Model> {
    let (model, why) = sides::model(source::locate(path)?.open()?)?;
    if let Some(why) = why {
        printer::warn(format!("{side} is compared as it is stored, codes and scales: {why}"));
        undecoded.push(side);
    }
    Ok(model)
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut clock = Run::start("diff");
    let mut undecoded = Vec::new();
    let a = open(&arguments.a, "A", &mut undecoded)?;
    let b = open(&arguments.b, "B", &mut undecoded)?;
    let progress = Mutex::new(Progress::new("diff", b.arrays().len() as u64));
    let tell = |done: usize, _| {
        if let Ok(mut progress) = progress.lock() {
            progress.at(done as u64, "tensors");
        }
    };
    let diff = lineage::diff(&a, &b, &tell)?;
    drop(progress);
    let record = Record { diff, undecoded };
    clock.extra.insert("a".into(), arguments.a.display().to_string().into());
    clock.extra.insert("b".into(), arguments.b.display().to_string().into());
    if let Some(out) = &arguments.output {
        record::save(out, "diff", &record, &clock)?;
        for name in ["diff.png", "diff.svg"] {
            plot::diff::draw(&out.join(name), &record.diff)?;
        }
    }
    if arguments.json {
        printer::json(&record)?;
    } else {
        print(&record.diff, arguments.all);
    }
    let differs = arguments.exit_code && !record.diff.identical;
    Ok(ExitCode::from(u8::from(differs)))
}

/// Numbers as a table shows them.
fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        small if small < 1e-3 => format!("{value:.1e}"),
        _ => format!("{value:.4}"),
    }
}

/// `0.01`, or `0.01–0.03` where the values differ in what is shown of them.
fn span(values: impl Iterator<Item = f64>, show: impl Fn(f64) -> String) -> String {
    let (least, most) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)));
    if least > most {
        return String::new();
    }
    let (least, most) = (show(least), show(most));
    if least == most { least } else { format!("{least}–{most}") }
}

fn relative(tensor: &TensorDiff) -> Option<f64> {
    tensor.measured.and_then(|measured| measured.relative).filter(|_| tensor.change != Change::Equal)
}

/// Figures that belong to one kind of change.
fn detail(tensors: &[&TensorDiff]) -> String {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let whole = |value: f64| format!("{value:.0}");
    let of = |take: &dyn Fn(&Change) -> Option<f64>| tensors.iter().filter_map(|t| take(&t.change)).collect::<Vec<_>>();
    match &tensors[0].change {
        Change::LowRank { .. } => {
            let rank = of(&|change| match change {
                Change::LowRank { spectrum } => Some(spectrum.rank as f64),
                _ => None,
            });
            let explained = of(&|change| match change {
                Change::LowRank { spectrum } => Some(spectrum.explained_beyond_rounding),
                _ => None,
            });
            let share = explained.into_iter().fold(1.0, f64::min);
            // Rounded down, so that 100 % is all.
            let share = (1000.0 * share).floor() / 1000.0;
            format!("rank {}, at least {} of what rounding leaves", span(rank.into_iter(), whole), percent(share))
        }
        Change::Quantised { .. } => {
            let nearest = of(&|change| match change {
                Change::Quantised { grid, .. } => Some(grid.nearest),
                _ => None,
            });
            let zeros = of(&|change| match change {
                Change::Quantised { pruned: Some(mask), .. } => Some(mask.sparsity),
                _ => None,
            });
            let zeros = span(zeros.into_iter(), percent);
            let zeros = if zeros.is_empty() { zeros } else { format!(", zeros {zeros}") };
            format!("nearest level in {}{zeros}", span(nearest.into_iter(), percent))
        }
        Change::Pruned { .. } => {
            let zeros = of(&|change| match change {
                Change::Pruned { mask, .. } => Some(mask.sparsity),
                _ => None,
            });
            format!("zeros {}", span(zeros.into_iter(), percent))
        }
        Change::Rescaled { .. } => {
            let ends = tensors.iter().flat_map(|tensor| match &tensor.change {
                Change::Rescaled { scales } => vec![scales.least, scales.most],
                _ => Vec::new(),
            });
            format!("by {}", span(ends, figure))
        }
        Change::Rows { .. } => {
            let rows = of(&|change| match change {
                Change::Rows { changed, .. } => Some(*changed as f64),
                _ => None,
            });
            format!("{} rows", span(rows.into_iter(), whole))
        }
        Change::Retrained { .. } => {
            let stable = of(&|change| match change {
                Change::Retrained { spectrum: Some(spectrum) } => Some(spectrum.stable_rank),
                _ => None,
            });
            if stable.is_empty() { String::new() } else { format!("stable rank {}", span(stable.into_iter(), whole)) }
        }
        Change::Unrelated { .. } => {
            let z = of(&|change| match change {
                Change::Unrelated { z } => Some(*z),
                _ => None,
            });
            format!("z {}", span(z.into_iter(), |z| format!("{z:.1}")))
        }
        Change::Equal | Change::Retyped { .. } | Change::Reshaped => String::new(),
    }
}

fn how(matched: Matched) -> &'static str {
    match matched {
        Matched::Name => "name",
        Matched::Renumbered => "renumbered",
        Matched::Prefix => "prefix",
        Matched::Convention => "convention",
        Matched::Fused => "fused",
        Matched::Content => "content",
        Matched::Sibling => "sibling",
    }
}

fn types(tensor: &TensorDiff) -> String {
    if tensor.stored_a == tensor.stored_b {
        tensor.stored_a.clone()
    } else {
        format!("{} → {}", tensor.stored_a, tensor.stored_b)
    }
}

fn print(diff: &Diff, all: bool) {
    const LONE: usize = 12;
    printer::data(printer::plain(&diff.verdict.sentence));
    printer::data("");
    let mut counts: Vec<(&str, usize, f64)> = Vec::new();
    for tensor in &diff.tensors {
        let elements: f64 = tensor.shape_b.iter().map(|&n| n as f64).product();
        match counts.iter_mut().find(|(name, ..)| *name == tensor.change.name()) {
            Some((_, count, weights)) => (*count, *weights) = (*count + 1, *weights + elements),
            None => counts.push((tensor.change.name(), 1, elements)),
        }
    }
    counts.sort_by(|x, y| y.2.total_cmp(&x.2));
    let mut table = Table::new(["change", "tensors", "weights"]);
    for (name, count, weights) in counts {
        table.row([name.into(), count.to_string(), format!("{weights:.0}")]);
    }
    for (name, lone) in [("only in A", &diff.missing), ("only in B", &diff.added)] {
        if !lone.is_empty() {
            let weights: f64 = lone.iter().map(|lone| lone.shape.iter().map(|&n| n as f64).product::<f64>()).sum();
            table.row([name.into(), lone.len().to_string(), format!("{weights:.0}")]);
        }
    }
    table.print();
    if !diff.tensors.is_empty() {
        printer::data("");
        if all { every(diff) } else { grouped(diff) }
    }
    for (name, lone) in [("only in A", &diff.missing), ("only in B", &diff.added)] {
        if lone.is_empty() {
            continue;
        }
        printer::data("");
        let shown = if all { lone.len() } else { LONE };
        for lone in lone.iter().take(shown) {
            printer::data(format!("{name}: {} {:?}", printer::plain(&lone.name), lone.shape));
        }
        if lone.len() > shown {
            printer::data(format!("{name}: and {} more (--all lists them)", lone.len() - shown));
        }
    }
}

fn every(diff: &Diff) {
    let mut table = Table::new(["tensor", "in A", "matched by", "type", "change", "‖B−A‖/‖A‖", "cosine"]);
    for tensor in &diff.tensors {
        let cosine = tensor.measured.and_then(|measured| measured.cosine);
        table.row([
            tensor.b.clone(),
            if tensor.a == tensor.b { "=".into() } else { tensor.a.clone() },
            how(tensor.matched).into(),
            types(tensor),
            tensor.phrase(),
            relative(tensor).map_or("-".into(), figure),
            cosine.map_or("-".into(), |cosine| format!("{cosine:.5}")),
        ]);
    }
    table.print();
}

/// Tensors of one place, one change and one type are a line.
fn grouped(diff: &Diff) {
    /// Stack, module, change, type, and how it was matched.
    type Key<'d> = (&'d str, &'d str, String, String, Matched);
    let mut groups: Vec<(Key<'_>, Vec<&TensorDiff>)> = Vec::new();
    for tensor in &diff.tensors {
        // The same words for every block that was renumbered or not.
        let matched = if tensor.matched == Matched::Renumbered { Matched::Name } else { tensor.matched };
        let key = (tensor.stack.as_str(), tensor.module.as_str(), tensor.class(), types(tensor), matched);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, tensors)) => tensors.push(tensor),
            None => groups.push((key, vec![tensor])),
        }
    }
    groups.sort_by_key(|(key, _)| {
        (key.0, diff.tensors.iter().position(|t| (t.stack.as_str(), t.module.as_str()) == (key.0, key.1)))
    });
    let several = diff.blocks.len() > 1;
    let mut table = Table::new(["tensors", "blocks", "n", "type", "change", "‖B−A‖/‖A‖", "detail"]);
    for ((stack, module, class, types, matched), tensors) in groups {
        let mut blocks: Vec<usize> = tensors.iter().filter_map(|tensor| tensor.block).collect();
        blocks.sort_unstable();
        blocks.dedup();
        let by = if matched == Matched::Name { String::new() } else { format!(" (by {})", how(matched)) };
        let stack = if several && !stack.is_empty() { format!("{stack}.*.") } else { String::new() };
        let change = span(tensors.iter().filter_map(|tensor| relative(tensor)), figure);
        table.row([
            format!("{stack}{module}{by}"),
            if blocks.is_empty() { "-".into() } else { ranges(&blocks) },
            tensors.len().to_string(),
            types,
            class,
            if change.is_empty() { "-".into() } else { change },
            detail(&tensors),
        ]);
    }
    table.print();
}
