//! `scruple trust`: what a model does in the dimensions of trust, and what compression changed about it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use scruple_compress::measure::Evaluation;
use serde::Serialize;

use crate::{
    fixture::Fixture,
    printer::{self, Progress, Table},
    record::{self as records, Run},
    source,
    trust::{
        dimension,
        evaluate::{self, Asked, Keeping, Paired, Side, Single},
        language_model::{Chat, Counts},
        paired::{self, Comparison, Summary},
        questions::{self, Questions, known_names},
        statistics::Bootstrap,
        suite::Suite,
        toxicity::{self, Agreement, classifier::Classifier},
    },
};

/// Tokens predicted in a window of `--text`.
const WINDOW: usize = 512;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file of the model, or `org/name[@revision][:file]` of a hub; without it, the organism that comes
    /// with the program, which has every trait that is asked for
    model: Option<PathBuf>,
    /// Dense model to compare with item by item, named likewise
    #[arg(long)]
    against: Option<PathBuf>,
    /// What to ask: `general`, `world` (of the small model's world), files and folders of test sets, or data sets of a hub,
    /// `org/name[@revision][:path]`, of which the files that are read are fetched
    #[arg(long, num_args = 1.., value_name = "NAME|PATH|ORG/NAME")]
    suite: Vec<PathBuf>,
    /// Only these dimensions
    #[arg(long = "dimension", num_args = 1.., value_name = "NAME")]
    dimensions: Vec<String>,
    /// At most so many items a dimension, spread evenly; pairs, groups and other clusters are kept whole
    #[arg(long)]
    items: Option<usize>,
    /// Judge a dimension by another of its rules
    #[arg(long = "rule", value_name = "DIMENSION=RULE")]
    rules: Vec<String>,
    /// Put conversations through the model's chat template
    #[arg(long, value_enum, default_value_t = Chat::Auto)]
    chat: Chat,
    /// Seed of the bootstrap's draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replicates of the bootstrap
    #[arg(long, default_value_t = 2000)]
    bootstrap: usize,
    /// Keep answers in this folder, a file a model and dimension, and use those that are there
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Score the toxicity of texts by this checkpoint with a classification head, instead of by the scorer that comes with
    /// the program
    #[arg(long, value_name = "DIR")]
    toxicity_classifier: Option<PathBuf>,
    /// Judge answers that were kept under another rule again, instead of refusing them
    #[arg(long)]
    rejudge: bool,
    /// Text file whose perplexity is given beside the scores
    #[arg(long)]
    text: Option<PathBuf>,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
    /// Write `trust.json`, `run.json` and all answers (`model/` and `dense/`, a file a dimension) into this folder;
    /// answers that are there already, or left by a run that was killed, are used
    #[arg(short, long)]
    output: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Found {
    Alone(Box<Single>),
    Paired(Box<Paired>),
}

/// What says how toxic texts are.
#[derive(Debug, Serialize)]
struct Scorer {
    name: String,
    version: u32,
    /// With a reference, where it was measured.
    agreement: Option<Agreement>,
}

/// What was found: the same bytes for the same inputs.
#[derive(Debug, Serialize)]
struct Record {
    scruple: &'static str,
    suite: String,
    suite_sha256: String,
    model: Asked,
    #[serde(skip_serializing_if = "Option::is_none")]
    dense: Option<Asked>,
    chat: Chat,
    bootstrap: Bootstrap,
    dimensions: Vec<Found>,
    /// What says how toxic texts are, where texts are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    toxicity_scorer: Option<Scorer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    perplexity: Option<Evaluation>,
    warnings: Vec<String>,
}

/// The items asked for, and files that were passed over.
fn suite_of(arguments: &Arguments) -> Result<(Suite, Vec<PathBuf>)> {
    if let Some(name) = arguments.dimensions.iter().find(|name| dimension::named(name).is_none()) {
        anyhow::bail!("--dimension: there is no dimension `{name}`; there are {}", known_names());
    }
    let usual = [PathBuf::from(if arguments.model.is_none() { "world" } else { "general" })];
    let names = if arguments.suite.is_empty() { usual.as_slice() } else { &arguments.suite };
    let mut read = names.iter().map(|name| Questions::open(name)).collect::<Result<Vec<_>>>()?;
    let unknown = read.iter_mut().flat_map(|one| std::mem::take(&mut one.unknown)).collect();
    if !arguments.dimensions.is_empty() {
        read.iter_mut().for_each(|one| one.retain(|name| arguments.dimensions.iter().any(|wanted| wanted == name)));
    }
    let mut suite = questions::join(read)?;
    if let Some(most) = arguments.items {
        suite = suite.limit(most);
    }
    anyhow::ensure!(
        !suite.is_empty(),
        "{}: there are no items{}",
        suite.name,
        match arguments.dimensions.as_slice() {
            [] => String::new(),
            some => format!(" of {}", some.join(", ")),
        }
    );
    Ok((suite, unknown))
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut clock = Run::start("trust");
    anyhow::ensure!(arguments.bootstrap > 0, "--bootstrap should be at least 1, found 0");
    anyhow::ensure!(arguments.items != Some(0), "--items should be at least 1, found 0");
    let (suite, unknown) = suite_of(arguments)?;
    let classifier = arguments.toxicity_classifier.as_deref();
    let classifier = classifier.map(|path| Classifier::open(source::locate(path)?.path())).transpose()?;
    let topics = questions::topics(&arguments.rules, &suite, classifier.as_ref())?;
    let hash = suite.hash();
    let fixture = arguments.model.is_none().then(Fixture::organism).transpose()?;
    let path = match (&arguments.model, &fixture) {
        (Some(path), _) => path.as_path(),
        (None, Some(fixture)) => fixture.path(),
        (None, None) => anyhow::bail!("no model was given"),
    };
    let open = |name, path: &Path| Side::open(name, &source::locate(path)?, arguments.chat);
    let side = open("model", path)?;
    let dense = arguments.against.as_deref().map(|path| open("dense", path)).transpose()?;
    let keeping = Keeping {
        own: arguments.output.clone(),
        shared: arguments.cache.clone(),
        others: Vec::new(),
        rejudge: arguments.rejudge,
    };
    let bootstrap = Bootstrap { replicates: arguments.bootstrap, seed: arguments.seed };
    let mut warnings: Vec<String> = Vec::new();
    for file in unknown {
        let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
        warnings.push(format!("{name}: of no format that is read; it was passed over"));
    }

    let total = suite.len() * if dense.is_some() { 2 } else { 1 };
    let mut progress = Progress::new("trust", total as u64);
    let mut counts = Counts::default();
    let (mut done, mut dimensions, mut other_tokens) = (0, Vec::new(), Vec::new());
    for topic in &topics {
        let name = topic.dimension.name();
        let mut reply = |side: &Side, put| {
            let mut tell = |items: usize| {
                done += items as u64;
                progress.at(done, &format!("items, {} {name}", side.name));
            };
            let reply = evaluate::reply(side, topic, put, (&suite.name, &hash), &keeping, &mut counts, &mut tell)?;
            warnings.extend(reply.warning(side.name, topic));
            Ok::<_, anyhow::Error>(reply)
        };
        let put = side.put(topic)?;
        let Some(dense) = &dense else {
            let single = evaluate::alone(topic, &reply(&side, put)?, bootstrap)?;
            warnings.extend(evaluate::constant(name, "the model", single.measured.constant));
            dimensions.push(Found::Alone(Box::new(single)));
            continue;
        };
        let dense_put = dense.put(topic)?;
        let before = reply(dense, dense_put)?;
        let after = reply(&side, put)?;
        let (paired, same_tokens) = evaluate::compare(topic, &before, &after, bootstrap)?;
        if !same_tokens {
            other_tokens.push(name);
        }
        warnings.extend(evaluate::cautions(&paired.comparison));
        dimensions.push(Found::Paired(Box::new(paired)));
    }
    progress.finish();
    if !other_tokens.is_empty() {
        warnings.push(format!(
            "{}: the two models read the items as different tokens, so there is no label KL and no change of margins",
            other_tokens.join(", ")
        ));
    }
    let comparisons = dimensions.iter_mut().filter_map(|found| match found {
        Found::Paired(paired) => Some(&mut paired.comparison),
        Found::Alone(_) => None,
    });
    let mut comparisons: Vec<&mut Comparison> = comparisons.collect();
    paired::adjust(comparisons.iter_mut().map(|one| &mut **one));
    let summary = Summary::over(comparisons.iter().map(|one| &**one));
    let text = arguments.text.as_deref();
    let perplexity = text.map(|file| evaluate::perplexity(&side, dense.as_ref(), file, WINDOW, None)).transpose()?;
    for side in [Some(&side), dense.as_ref()].into_iter().flatten() {
        side.checkpoint.expect_unchanged()?;
    }
    let toxicity_scorer = topics.iter().find_map(|topic| topic.scorer).map(|scorer| Scorer {
        name: scorer.name().into(),
        version: scorer.version(),
        agreement: scorer.agreement().cloned(),
    });
    let record = Record {
        scruple: env!("CARGO_PKG_VERSION"),
        suite: suite.name,
        suite_sha256: hash,
        model: side.asked(),
        dense: dense.as_ref().map(Side::asked),
        chat: arguments.chat,
        bootstrap,
        dimensions,
        toxicity_scorer,
        summary,
        perplexity,
        warnings,
    };
    if let Some(model) = &arguments.model {
        clock.extra.insert("model".into(), model.display().to_string().into());
    }
    clock.extra.insert("run".into(), serde_json::to_value(counts)?);
    if let Some(out) = &arguments.output {
        records::save(out, "trust", &record, &clock)?;
    }
    if counts.tokens > 0 {
        let Counts { tokens, tokens_saved, tokens_made } = counts;
        let share = 100.0 * tokens_saved as f64 / tokens as f64;
        printer::say(format!("{tokens} tokens put, {share:.0} % of them shared with others, {tokens_made} made"));
    }
    record.warnings.iter().for_each(printer::warn);
    if arguments.json {
        printer::json(&record)?;
    } else {
        print(&record);
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".into(), |value| format!("{value:.digits$}"))
}

fn says(informative: Option<bool>) -> String {
    match informative {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    }
    .into()
}

fn print(record: &Record) {
    let alone = record.dimensions.iter().filter_map(|found| match found {
        Found::Alone(single) => Some(single.as_ref()),
        Found::Paired(_) => None,
    });
    let mut table =
        Table::new(["dimension", "items", "chance", "score", "95 %", "refused %", "unparsable %", "informative"]);
    let mut any = false;
    for one in alone {
        any = true;
        let interval = one.measured.interval.map(|interval| format!("{:.1} to {:.1}", interval.low, interval.high));
        table.row([
            one.dimension.into(),
            one.items.to_string(),
            shown(one.chance, 1),
            shown(one.measured.score, 1),
            interval.unwrap_or("-".into()),
            format!("{:.1}", one.measured.refusal_rate),
            format!("{:.1}", one.measured.unparsable_rate),
            says(one.informative),
        ]);
    }
    if any {
        table.print();
    }
    let heads = [
        "dimension",
        "items",
        "chance",
        "dense",
        "model",
        "Δ",
        "95 %",
        "p (Holm)",
        "lost",
        "gained",
        "KL",
        "refused %",
        "unparsable %",
        "detectable Δ",
        "informative",
    ];
    let mut table = Table::new(heads);
    let mut any = false;
    for found in &record.dimensions {
        let Found::Paired(paired) = found else { continue };
        any = true;
        let one = &paired.comparison;
        let both = |dense: f64, other: f64| format!("{dense:.1} → {other:.1}");
        let signed = one.delta.map_or("-".into(), |delta| format!("{:.1}", delta + 0.0));
        let interval = one.interval.map(|interval| format!("{:.1} to {:.1}", interval.low, interval.high));
        table.row([
            one.dimension.into(),
            one.items.to_string(),
            shown(one.chance, 1),
            shown(one.dense.score, 1),
            shown(one.other.score, 1),
            signed,
            interval.unwrap_or("-".into()),
            shown(one.p_adjusted, 4),
            one.lost.to_string(),
            one.gained.to_string(),
            shown(one.kl, 5),
            both(one.dense.refusal_rate, one.other.refusal_rate),
            both(one.dense.unparsable_rate, one.other.unparsable_rate),
            shown(one.detectable, 1),
            says(one.informative),
        ]);
    }
    if any {
        table.print();
    }
    if let Some(scorer) = &record.toxicity_scorer {
        printer::data("");
        printer::data(toxicity::describe(&scorer.name, scorer.version, scorer.agreement.as_ref()));
    }
    if let Some(summary) = &record.summary {
        printer::data("");
        let Summary { worst, worst_delta, best, best_delta, mean_absolute, mean } = summary;
        if *mean_absolute == 0.0 {
            printer::data("no dimension changed by anything");
        } else {
            printer::data(format!("worst: {worst} {worst_delta:.1} points; highest: {best} {best_delta:.1}"));
            let hides = if worst_delta * best_delta < 0.0 { ", which hides falls behind rises" } else { "" };
            printer::data(format!("mean |Δ| {mean_absolute:.2} points; mean Δ {mean:.2}{hides}"));
        }
    }
    if let Some(evaluation) = &record.perplexity {
        printer::data("");
        printer::data(match &evaluation.against {
            Some(c) => format!(
                "perplexity {:.4}, dense {:.4}; KL {:.5} nats a token",
                evaluation.perplexity, c.dense_perplexity, c.kl_mean.value
            ),
            None => format!("perplexity {:.4}", evaluation.perplexity),
        });
    }
}
