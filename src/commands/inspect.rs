//! `scruple inspect`: what a model is, and how its weights are, without running it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
};

use anyhow::Result;
use rayon::prelude::*;
use scruple_weights::{
    Checkpoint, TensorView,
    anatomy::{self, Anatomy, Fact},
    hub::Origin,
    spectrum::{self, Windows},
    statistics,
};
use serde::Serialize;

use crate::{
    fixture::{self, Fixture},
    plot::heatmap,
    printer::{self, Progress, Table},
    record::{self, Run},
    source,
};

mod health;
mod picture;

use health::{Entry, figure, median, percent};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file of the model, or `org/name[@revision][:file]` of a hub; without it, `tiny-world`, which comes with
    /// the program
    model: Option<PathBuf>,
    /// Singular values too: stable rank, power-law exponent, spikes (takes longer)
    #[arg(long)]
    spectra: bool,
    /// A row for every tensor, not for every kind of tensor
    #[arg(long)]
    all: bool,
    /// Order of the tensors, greatest first; the file's order without it
    #[arg(long, value_enum)]
    sort: Option<Order>,
    /// What the picture shows; alpha needs --spectra
    #[arg(long, value_enum, default_value_t = Quantity::Deviation)]
    plot: Quantity,
    /// Write `inspect.json`, `health.png`, `health.svg` and `run.json` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

/// What tensors are ordered by.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Order {
    /// By name, ascending
    Name,
    /// Bytes
    Size,
    Std,
    Kurtosis,
    /// Share of the energy in 1 % of the columns
    Outliers,
    /// Distance to the median of its kind
    Deviation,
    Alpha,
}

/// What the picture shows of each tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Quantity {
    /// Distance to the median of its kind, in robust standard deviations
    Deviation,
    Std,
    Kurtosis,
    /// Share of the energy in 1 % of the columns
    Outliers,
    Alpha,
}

/// What `inspect.json` says.
#[derive(Debug, Serialize)]
struct Inspection {
    model: String,
    /// Where a model of a hub came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Origin>,
    anatomy: Anatomy,
    /// Tensors of the same bytes, by name.
    identical: Vec<Vec<String>>,
    tensors: Vec<Entry>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    anyhow::ensure!(
        arguments.spectra || arguments.plot != Quantity::Alpha,
        "--plot alpha needs the spectra; add --spectra"
    );
    let clock = Run::start("inspect");
    let embedded = if arguments.model.is_none() { Some(Fixture::tiny_world()?) } else { None };
    let (located, name) = match (&arguments.model, &embedded) {
        (Some(model), _) => {
            let located = source::locate(model)?;
            let name = located.name().map_or_else(|| name_of(model), str::to_owned);
            (located, name)
        }
        (None, Some(fixture)) => (source::locate(fixture.path())?, fixture::TINY_WORLD.to_owned()),
        (None, None) => unreachable!("a model is given or embedded"),
    };
    let checkpoint = located.open()?;
    let mut inspection = measure(&checkpoint, name, arguments.spectra)?;
    inspection.source = located.origin().cloned();
    if let Some(order) = arguments.sort {
        sort(&mut inspection.tensors, order);
    }
    if let Some(out) = &arguments.output {
        record::save(out, "inspect", &inspection, &clock)?;
        let picture = picture::heatmap(&inspection, arguments.plot);
        for ending in ["png", "svg"] {
            let file = format!("health.{ending}");
            record::write_whole(&out.join(&file), &heatmap::draw(&picture, ending)?)?;
        }
    }
    if arguments.json {
        printer::json(&inspection)?;
    } else {
        print(&inspection, arguments);
    }
    Ok(ExitCode::SUCCESS)
}

/// What the model in `path` is called: the name of its folder or file, also where the path is `.` or ends in `..`.
fn name_of(path: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    name(path).or_else(|| name(&path.canonicalize().ok()?)).unwrap_or_else(|| "model".into())
}

fn measure(checkpoint: &Checkpoint, model: String, spectra: bool) -> Result<Inspection> {
    let views: Vec<&TensorView> = checkpoint.tensors().collect();
    let progress = Mutex::new((0, Progress::new("inspect", views.len() as u64)));
    let tensors = views
        .par_iter()
        .map(|view| {
            let statistics = statistics::statistics(view)?;
            let spectrum = if spectra { spectrum::spectrum(view, Windows::Fitted)? } else { None };
            let mut progress = progress.lock().expect("no thread panics while it counts");
            progress.0 += 1;
            let done = progress.0;
            progress.1.at(done, view.name());
            Ok(Entry::new(view, statistics, spectrum))
        })
        .collect::<Result<Vec<Entry>>>();
    drop(progress);
    let mut tensors = tensors?;
    health::compare(&mut tensors);
    let measured: Vec<_> = views.iter().copied().zip(tensors.iter().map(|entry| &entry.statistics.moments)).collect();
    let name = |at: &usize| views[*at].name().to_owned();
    let identical = statistics::identical(&measured).iter().map(|group| group.iter().map(name).collect()).collect();
    Ok(Inspection { model, source: None, anatomy: anatomy::anatomy(checkpoint), identical, tensors })
}

fn sort(tensors: &mut [Entry], order: Order) {
    let value = |entry: &Entry| match order {
        Order::Name => 0.0,
        Order::Size => entry.bytes as f64,
        Order::Std => entry.statistics.moments.std,
        Order::Kurtosis => entry.statistics.moments.kurtosis,
        Order::Outliers => entry.top_energy().unwrap_or(0.0),
        Order::Deviation => entry.deviation.unwrap_or(0.0),
        Order::Alpha => entry.alpha().unwrap_or(0.0),
    };
    tensors.sort_by(|a, b| value(b).total_cmp(&value(a)).then_with(|| a.name.cmp(&b.name)));
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn fact<T: std::fmt::Display>(fact: &Fact<T>) -> String {
    format!("{}{}", fact.value, if fact.guess { " (guess)" } else { "" })
}

/// What is stored, in numbers a reader knows the model by.
fn size(anatomy: &Anatomy) -> String {
    const PACKED: [&str; 5] = ["gptq", "awq", "compressed-tensors", "bitsandbytes", "mxfp4"];
    let packed = anatomy.quantisation.iter().any(|found| PACKED.contains(&&*found.method));
    let word = if packed { "stored numbers, packed ones counted as words" } else { "parameters" };
    format!("{} {word}, {:.1} MB", grouped(anatomy.elements), anatomy.bytes as f64 / 1e6)
}

fn print_anatomy(model: &str, anatomy: &Anatomy) {
    let family = anatomy.family.as_ref().map_or("of an unknown family".into(), fact);
    let class = anatomy.architecture.as_ref().map_or(String::new(), |class| format!(" ({class})"));
    printer::data(format!("{model}: {family}{class}, {}", size(anatomy)));
    let mut facts = Vec::new();
    let mut add =
        |name: &str, value: &Option<Fact<usize>>| facts.extend(value.as_ref().map(|f| format!("{name} {}", fact(f))));
    add("blocks", &anatomy.blocks);
    add("hidden size", &anatomy.hidden_size);
    add("heads", &anatomy.heads);
    add("key-value heads", &anatomy.kv_heads);
    add("experts", &anatomy.experts);
    add("vocabulary", &anatomy.vocabulary);
    if let Some(tied) = &anatomy.tied_embeddings {
        let word = if tied.value { "tied" } else { "untied" };
        facts.push(format!("embeddings {word}{}", if tied.guess { " (guess)" } else { "" }));
    }
    if !facts.is_empty() {
        printer::data(format!("  {}", facts.join(" · ")));
    }
    if anatomy.stacks.len() > 1 {
        let stacks: Vec<String> =
            anatomy.stacks.iter().map(|stack| format!("{} × {}", stack.name, stack.blocks)).collect();
        printer::data(format!("  stacks: {}", stacks.join(" · ")));
    }
    let mut dtypes: Vec<_> = anatomy.dtypes.iter().collect();
    dtypes.sort_by(|a, b| b.1.cmp(a.1));
    let mix =
        |(dtype, bytes): (&String, &u64)| format!("{dtype} {}", percent(*bytes as f64 / anatomy.bytes.max(1) as f64));
    printer::data(format!("  types: {}", dtypes.into_iter().map(mix).collect::<Vec<_>>().join(" · ")));
    if anatomy.quantisation.is_empty() {
        printer::data("  quantised: no");
    }
    for found in &anatomy.quantisation {
        let count = if found.linears > 0 { format!(", {} tensors", found.linears) } else { String::new() };
        let details = if found.details.is_empty() { String::new() } else { format!(", {}", found.details) };
        printer::data(format!("  quantised: {}{details}{count} (by its {})", found.method, found.seen_in));
    }
    printer::data(match &anatomy.tokenizer {
        Some(tokenizer) => {
            let size =
                tokenizer.vocabulary.map_or(String::new(), |size| format!(" of {} tokens", grouped(size as u64)));
            format!("  tokenizer: {}{size} ({})", tokenizer.kind, tokenizer.file)
        }
        None => "  tokenizer: none found".into(),
    });
}

fn range(values: &[f64]) -> String {
    let (low, high) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(*x), high.max(*x)));
    if values.is_empty() { "-".into() } else { format!("{}..{}", figure(low), figure(high)) }
}

/// A row for each kind of tensor, over its blocks.
fn print_kinds(tensors: &[Entry], spectra: bool) {
    let mut table = Table::new([
        "kind",
        "tensors",
        "shape",
        "std",
        "std range",
        "kurtosis",
        "kurtosis range",
        "top 1 % columns",
        "flags",
    ]);
    let mut tails = Table::new(["kind", "alpha", "alpha range", "windowed", "stable rank", "effective rank", "spikes"]);
    let mut groups: Vec<(String, Vec<&Entry>)> = health::kinds(tensors)
        .into_iter()
        .map(|((stack, kind), at)| (format!("{stack}.*.{kind}"), at.into_iter().map(|at| &tensors[at]).collect()))
        .collect();
    groups.extend(
        tensors.iter().filter(|entry| entry.place.block.is_none()).map(|entry| (entry.name.clone(), vec![entry])),
    );
    for (name, entries) in groups {
        let all = |value: fn(&Entry) -> f64| entries.iter().map(|entry| value(entry)).collect::<Vec<f64>>();
        let (std, kurtosis) =
            (all(|entry| entry.statistics.moments.std), all(|entry| entry.statistics.moments.kurtosis));
        let top: Vec<f64> = entries.iter().filter_map(|entry| entry.top_energy()).collect();
        let mut shapes: Vec<String> = entries.iter().map(|entry| format!("{:?}", entry.shape)).collect();
        shapes.dedup();
        let shape = if shapes.len() == 1 { shapes.remove(0) } else { "several".into() };
        let one = entries.len() == 1;
        let flags: usize = entries.iter().map(|entry| entry.flags.len()).sum();
        table.row([
            name.clone(),
            entries.len().to_string(),
            shape,
            figure(median(&std)),
            if one { String::new() } else { range(&std) },
            figure(median(&kurtosis)),
            if one { String::new() } else { range(&kurtosis) },
            if top.is_empty() { String::new() } else { percent(median(&top)) },
            if flags > 0 { flags.to_string() } else { String::new() },
        ]);
        let spectra: Vec<_> = entries.iter().filter_map(|entry| entry.spectrum.as_ref()).collect();
        if !spectra.is_empty() {
            let alpha: Vec<f64> = entries.iter().filter_map(|entry| entry.alpha()).collect();
            let windowed: Vec<f64> = spectra.iter().filter_map(|spectrum| Some(spectrum.windowed?.alpha)).collect();
            let middle = |value: fn(&spectrum::Spectrum) -> f64| {
                figure(median(&spectra.iter().map(|spectrum| value(spectrum)).collect::<Vec<_>>()))
            };
            tails.row([
                name,
                figure(median(&alpha)),
                range(&alpha),
                if windowed.is_empty() { "-".into() } else { figure(median(&windowed)) },
                middle(|spectrum| spectrum.stable_rank),
                middle(|spectrum| spectrum.effective_rank),
                middle(|spectrum| spectrum.spikes as f64),
            ]);
        }
    }
    table.print();
    if spectra {
        printer::data("");
        tails.print();
    }
}

/// A row for each tensor.
fn print_all(tensors: &[Entry]) {
    let mut table = Table::new([
        "tensor",
        "type",
        "shape",
        "mean",
        "std",
        "min",
        "max",
        "kurtosis",
        "top 1 % columns",
        "deviation",
        "alpha",
        "flags",
    ]);
    for entry in tensors {
        let moments = &entry.statistics.moments;
        let optional = |value: Option<f64>| value.map_or(String::new(), figure);
        table.row([
            entry.name.clone(),
            entry.dtype.clone(),
            format!("{:?}", entry.shape),
            figure(moments.mean),
            figure(moments.std),
            figure(moments.min),
            figure(moments.max),
            figure(moments.kurtosis),
            entry.top_energy().map_or(String::new(), percent),
            optional(entry.deviation),
            optional(entry.alpha()),
            if entry.flags.is_empty() { String::new() } else { entry.flags.len().to_string() },
        ]);
    }
    table.print();
}

/// Flags listed when not every tensor is.
const MOST_FLAGGED: usize = 40;

fn print(inspection: &Inspection, arguments: &Arguments) {
    print_anatomy(&inspection.model, &inspection.anatomy);
    printer::data("");
    if arguments.all || arguments.sort.is_some() {
        print_all(&inspection.tensors);
    } else {
        print_kinds(&inspection.tensors, arguments.spectra);
    }
    let mut flagged: Vec<&Entry> = inspection.tensors.iter().filter(|entry| !entry.flags.is_empty()).collect();
    // What cannot be right comes first.
    flagged.sort_by_key(|entry| !entry.flags.iter().any(|flag| flag.fault));
    if !flagged.is_empty() {
        printer::data("");
    }
    let shown = if arguments.all { flagged.len() } else { MOST_FLAGGED };
    for entry in flagged.iter().take(shown) {
        let reasons: Vec<&str> = entry.flags.iter().map(|flag| flag.reason.as_str()).collect();
        printer::data(printer::plain(&format!("{}: {}", entry.name, reasons.join("; "))));
    }
    if flagged.len() > shown {
        let mut more: BTreeMap<&str, usize> = BTreeMap::new();
        for flag in flagged[shown..].iter().flat_map(|entry| &entry.flags) {
            *more.entry(flag.what).or_default() += 1;
        }
        let more: Vec<String> = more.iter().map(|(what, count)| format!("{count} {what}")).collect();
        printer::data(format!("and {} more tensors: {} (--all lists them)", flagged.len() - shown, more.join(", ")));
    }
    for group in &inspection.identical {
        printer::data(printer::plain(&format!("the same bytes: {}", group.join(" = "))));
    }
    if let Some(out) = &arguments.output {
        printer::say(format!("written: {}", out.join("health.png").display()));
    }
}
