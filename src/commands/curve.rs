//! `scruple curve`: what each method and rate of compression does to trust, over a whole sweep.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use serde_json::Value;

use crate::{
    curve::{
        assemble::{self, shown},
        data::{Curve, DenseDimension, PointDimension},
        place::Shard,
        published::Published,
        report,
        run::{self, Job},
        sweep::Sweep,
        verdict,
    },
    printer::{self, Table},
    record::Run,
    trust::language_model::Counts,
};

/// The sweep of the model that comes with the program.
const EMBEDDED: &str = include_str!("../curve/sweeps/embedded.toml");

/// The sweep of a model that is given without one: methods that need no text, on plain English.
const PLAIN: &str = include_str!("../curve/sweeps/plain.toml");

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file of the dense model, or `org/name[@revision][:file]` of a hub; without it, that of the sweep, or the
    /// organism that comes with the program, which has every trait that is asked for
    model: Option<PathBuf>,
    /// File that says which methods and rates, on which items
    #[arg(long)]
    sweep: Option<PathBuf>,
    /// Folder of the records; points that are in it already are not measured again
    #[arg(short, long)]
    output: PathBuf,
    /// Only every n-th point, from the i-th on; runs over one folder share the work
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    shard: Shard,
    /// Keep the compressed models, in `models/` of the folder
    #[arg(long)]
    keep: bool,
    /// Keep answers in this folder, which sweeps may share, so that a dense model is asked once (shards only read it)
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// The published table of compressed models' trust (`num_sheet.csv` of the study's site), to be shown beside
    #[arg(long, value_name = "CSV")]
    published: Option<PathBuf>,
    /// Draw pictures and page of this `curve.json` again, measuring nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "sweep", "shard", "keep", "cache"])]
    from: Option<PathBuf>,
    /// Print the sweep's results as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let published = arguments.published.as_deref().map(Published::read).transpose()?;
    if let Some(file) = &arguments.from {
        let mut curve = Curve::read(file)?;
        // In the words of this program, as everything that is drawn from the record.
        curve.verdict = verdict::of(&curve);
        let drawn = report::write(&curve, published.as_ref(), &arguments.output)?;
        return tell(arguments, &curve, &drawn).map(|()| ExitCode::SUCCESS);
    }
    let mut clock = Run::start("curve");
    let sweep = match (&arguments.sweep, &arguments.model) {
        (Some(file), _) => Sweep::read(file)?,
        (None, None) => Sweep::parse("embedded", EMBEDDED, "".as_ref())?,
        (None, Some(_)) => Sweep::parse("plain", PLAIN, "".as_ref())?,
    };
    let job = Job {
        model: arguments.model.clone().or_else(|| sweep.model.clone()),
        sweep,
        out: arguments.output.clone(),
        shard: arguments.shard,
        keep: arguments.keep,
        cache: arguments.cache.clone(),
    };
    let records = run::run(&job)?;
    let curve = assemble::curve(&job, &records);
    let place = &records.place;
    place.land(&place.out.join("curve.json"), &curve)?;
    clock.extra.insert("run".into(), serde_json::to_value(records.counts)?);
    clock.extra.insert("shard".into(), Value::from(job.shard.name()));
    let name = if job.shard == Shard::default() { "run.json".into() } else { format!("run-{}.json", job.shard.name()) };
    place.land(&place.out.join(name), &clock.to_json())?;
    let drawn = report::write(&curve, published.as_ref(), &place.out)?;
    if records.counts.tokens > 0 {
        let Counts { tokens, tokens_saved, tokens_made } = records.counts;
        let share = 100.0 * tokens_saved as f64 / tokens as f64;
        printer::say(format!("{tokens} tokens put, {share:.0} % of them shared with others, {tokens_made} made"));
    }
    tell(arguments, &curve, &drawn)?;
    Ok(if records.failed > 0 { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// The account of a sweep: warnings apart, then JSON, or tables, the verdict, and where the pictures and the page are.
fn tell(arguments: &Arguments, curve: &Curve, drawn: &[PathBuf]) -> Result<()> {
    curve.warnings.iter().for_each(printer::warn);
    if arguments.json {
        return printer::json(curve);
    }
    print(curve);
    printer::data("");
    curve.verdict.iter().for_each(printer::data);
    for path in drawn {
        printer::data(path.display().to_string());
    }
    Ok(())
}

/// A dimension's name as a table's head.
fn head(dimension: &str) -> String {
    match dimension {
        "adversarial-robustness" => "robustness",
        "out-of-distribution" => "OOD",
        "adversarial-demonstrations" => "demonstrations",
        "machine-ethics" => "ethics",
        other => other,
    }
    .into()
}

fn number(value: Option<f64>, digits: usize) -> String {
    let text = value.map_or("-".into(), |value| format!("{value:.digits$}"));
    // No minus before a zero.
    match text.strip_prefix('-') {
        Some(zero) if zero.starts_with('0') && zero.chars().all(|c| matches!(c, '0' | '.')) => zero.into(),
        _ => text,
    }
}

/// Δ, marked where it stays a difference after Holm, where refusals moved, and where answers are constant.
fn delta(one: &PointDimension) -> String {
    let sure = if one.is_sure() { "*" } else { "" };
    let refusals = if one.refusal_shift { "r" } else { "" };
    let constant = if one.constant { "c" } else { "" };
    format!("{}{sure}{refusals}{constant}", number(one.delta, 1))
}

fn dense_table(title: &str, dimensions: &[DenseDimension]) {
    let mut table = Table::new([title, "items", "chance", "score", "95 %", "refused %", "unparsable %", "informative"]);
    for one in dimensions {
        table.row([
            one.name.clone(),
            one.items.to_string(),
            number(one.chance, 1),
            number(one.score, 1),
            one.interval.map_or("-".into(), shown),
            format!("{:.1}", one.refusal_rate),
            format!("{:.1}", one.unparsable_rate),
            one.informative.map_or("-", |informative| if informative { "yes" } else { "no" }).into(),
        ]);
    }
    table.print();
    printer::data("");
}

fn print(curve: &Curve) {
    dense_table(&curve.dense.name, &curve.dimensions);
    for reference in &curve.references {
        dense_table(&reference.name, &reference.dimensions);
    }
    let heads = || curve.dimensions.iter().map(|dimension| head(&dimension.name));
    if !curve.points.is_empty() {
        let mut rows: Vec<Vec<String>> = vec![Vec::new()];
        rows[0].extend(["Δ, points", "bits", "zeros %", "MB", "perplexity", "KL"].map(String::from));
        rows[0].extend(heads());
        rows[0].push("mean |Δ|".into());
        for point in &curve.points {
            let mut row = vec![
                point.name.clone(),
                number(point.bits_per_weight, 2),
                number(point.sparsity.map(|share| 100.0 * share), 1),
                format!("{:.1}", point.tensor_bytes as f64 / 1e6),
                number(point.perplexity, 2),
                number(point.kl, 4),
            ];
            row.extend(point.dimensions.iter().map(delta));
            row.push(number(point.mean_absolute, 1));
            rows.push(row);
        }
        Table::of(rows).print();
        printer::data("* a difference after Holm; r refusals moved, scores not comparable; c one and the same answer");
        printer::data("");
    }
    if !curve.settings.is_empty() {
        let mut rows: Vec<Vec<String>> = vec![vec!["mean Δ ± deviation between seeds".into(), "seeds".into()]];
        rows[0].extend(heads());
        for setting in &curve.settings {
            let mut row = vec![setting.name.clone(), setting.points.len().to_string()];
            row.extend(setting.dimensions.iter().map(|one| match one.deviation {
                Some(_) => format!("{} ± {}", number(one.mean, 1), number(one.deviation, 1)),
                None => number(one.mean, 1),
            }));
            rows.push(row);
        }
        Table::of(rows).print();
        printer::data("");
    }
    if !curve.failures.is_empty() {
        let mut table = Table::new(["could not be had", "why"]);
        curve.failures.iter().for_each(|failure| table.row([failure.name.clone(), failure.reason.clone()]));
        table.print();
        printer::data("");
    }
    if let Some(scorer) = &curve.toxicity_scorer {
        printer::data(scorer);
    }
}
