//! `scruple trust`: what a model does in the dimensions of trust, and what compression changed about it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use scruple_compress::{
    measure::{self, Against, Evaluation, Windows},
    model::{Decoder, text::Text},
};
use scruple_weights::{Checkpoint, hub::Origin};
use serde::Serialize;

use super::eval::{blame, note_quantisation, predicted_bytes, tokens_of};
use crate::{
    fixture::Fixture,
    printer::{self, Progress, Table},
    record::{self as records, Run},
    source,
    trust::{
        dimension::{self, DIMENSIONS, Dimension, Rule},
        dimensions::Toxicity,
        item::{Answer, Ask, Item, Outcome},
        language_model::{Chat, Counts, LanguageModel, Put, Running},
        paired::{self, Comparison, Constant, Measured, Summary},
        readers::{self, Limits},
        record::{self, Answered, Header, Journal, ModelHashes, RuleName},
        statistics::Bootstrap,
        suite::{self, Suite},
        toxicity::{self, Agreement, ToxicityScorer, classifier::Classifier, ngrams::Ngrams},
    },
};

/// Tokens predicted in a window of `--text`.
const WINDOW: usize = 512;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file of the model, or `org/name[@revision][:file]` of a hub; without it, the small one that comes with
    /// the program
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

/// One model on one dimension.
#[derive(Debug, Serialize)]
struct Single {
    dimension: &'static str,
    rule: Rule,
    items: usize,
    chance: Option<f64>,
    /// Whether the interval leaves chance out.
    informative: Option<bool>,
    #[serde(flatten)]
    measured: Measured,
    parts: Vec<Part>,
}

/// Two models on one dimension.
#[derive(Debug, Serialize)]
struct Paired {
    #[serde(flatten)]
    comparison: Comparison,
    parts: Vec<Part>,
}

/// A figure beside a dimension's score.
#[derive(Debug, Serialize)]
struct Part {
    name: String,
    score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dense: Option<f64>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Found {
    Alone(Box<Single>),
    Paired(Box<Paired>),
}

/// A model that was asked.
#[derive(Debug, Serialize)]
struct Asked {
    #[serde(flatten)]
    hashes: ModelHashes,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Origin>,
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

/// A model and where its answers are kept.
struct Side {
    name: &'static str,
    checkpoint: Checkpoint,
    model: LanguageModel,
    hashes: ModelHashes,
    origin: Option<Origin>,
}

impl Side {
    fn open(name: &'static str, path: &Path, chat: Chat) -> Result<Self> {
        let located = source::locate(path)?;
        let checkpoint = located.open()?;
        let model = LanguageModel::open(&checkpoint, chat, Running::default())?;
        note_quantisation(&checkpoint)?;
        let hashes = ModelHashes::of(&checkpoint, model.uses_template())?;
        Ok(Self { name, hashes, model, origin: located.origin().cloned(), checkpoint })
    }

    fn asked(&self) -> Asked {
        Asked { hashes: self.hashes.clone(), source: self.origin.clone() }
    }
}

/// One dimension's part of the suite.
struct Topic<'a> {
    dimension: &'static dyn Dimension,
    rule: Rule,
    items: Vec<Item>,
    /// Of the dimension whose texts are scored by a model of their own.
    scorer: Option<&'a dyn ToxicityScorer>,
}

impl Topic<'_> {
    fn judge(&self, item: &Item, answer: &Answer) -> Result<Outcome> {
        match (&self.scorer, &item.ask, &answer.text) {
            (Some(scorer), Ask::Continue { .. }, Some(text)) => toxicity::judge(*scorer, text),
            _ => Ok(self.dimension.judge(self.rule, item, answer)),
        }
    }

    /// The rule's name, with the scorer's where texts are scored by one.
    fn rule_name(&self) -> RuleName {
        let RuleName { name, version } = self.rule.into();
        match &self.scorer {
            Some(scorer) => {
                RuleName { name: format!("{name}, texts by {} {}", scorer.name(), scorer.version()), version }
            }
            None => RuleName { name, version },
        }
    }
}

/// What scores the texts of a dimension's items, where they are scored for toxicity.
fn scorer<'a>(own: Option<&'a Classifier>, name: &str, items: &[Item]) -> Result<Option<&'a dyn ToxicityScorer>> {
    let texts = items.iter().any(|item| matches!(item.ask, Ask::Continue { .. }));
    Ok(match own {
        _ if name != Toxicity.name() || !texts => None,
        Some(own) => Some(own),
        None => Some(Ngrams::embedded()?),
    })
}

fn known_names() -> String {
    DIMENSIONS.iter().map(|dimension| dimension.name()).collect::<Vec<_>>().join(", ")
}

/// The items asked for, and files that were passed over.
fn suite_of(arguments: &Arguments) -> Result<(Suite, Vec<PathBuf>)> {
    if let Some(name) = arguments.dimensions.iter().find(|name| dimension::named(name).is_none()) {
        anyhow::bail!("--dimension: there is no dimension `{name}`; there are {}", known_names());
    }
    let usual = [PathBuf::from(if arguments.model.is_none() { "world" } else { "general" })];
    let names = if arguments.suite.is_empty() { usual.as_slice() } else { &arguments.suite };
    let (mut shown, mut unknown) = (Vec::new(), Vec::new());
    let mut found: Vec<Vec<Item>> = vec![Vec::new(); DIMENSIONS.len()];
    for name in names {
        let (name, dimensions) = match name.to_str().and_then(suite::named) {
            Some(suite) => (suite.name, suite.dimensions),
            None => {
                let (file, read) = readers::locate(name, Limits::default())?;
                unknown.extend(read.unknown);
                (file, read.dimensions.into_iter().map(|(name, items)| (name.to_string(), items)).collect())
            }
        };
        for (dimension, items) in dimensions {
            let place = DIMENSIONS.iter().position(|known| known.name() == dimension);
            found[place.with_context(|| format!("{name}: there is no dimension `{dimension}`"))?].extend(items);
        }
        shown.push(name);
    }
    let wanted = |name: &str| arguments.dimensions.is_empty() || arguments.dimensions.iter().any(|one| one == name);
    let mut suite = Suite { name: shown.join("+"), dimensions: Vec::new() };
    for (dimension, items) in DIMENSIONS.iter().zip(found) {
        if items.is_empty() || !wanted(dimension.name()) {
            continue;
        }
        let mut ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
        ids.sort_unstable();
        if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            anyhow::bail!("{}: {} has two items called `{}`", suite.name, dimension.name(), twice[0]);
        }
        suite.dimensions.push((dimension.name().to_string(), items));
    }
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

/// The dimensions to measure with the rules to judge by.
fn topics<'a>(arguments: &Arguments, suite: &Suite, classifier: Option<&'a Classifier>) -> Result<Vec<Topic<'a>>> {
    let mut chosen: Vec<(&'static str, Rule)> = Vec::new();
    for text in &arguments.rules {
        let (name, rule) = text.split_once('=').with_context(|| {
            format!("--rule should be a dimension and a rule, as in stereotype=official, found `{text}`")
        })?;
        let dimension = dimension::named(name)
            .with_context(|| format!("--rule: there is no dimension `{name}`; there are {}", known_names()))?;
        let rules = dimension.rules();
        let found = rules.iter().find(|known| known.name == rule).with_context(|| {
            let names: Vec<_> = rules.iter().map(|rule| rule.name).collect();
            format!("--rule: {name} has no rule `{rule}`; it has {}", names.join(", "))
        })?;
        chosen.push((dimension.name(), *found));
    }
    let topic = |(name, items): &(String, Vec<Item>)| {
        let dimension = dimension::named(name).with_context(|| format!("there is no dimension `{name}`"))?;
        let rule = chosen.iter().rev().find(|(known, _)| known == name).map(|(_, rule)| *rule);
        let scorer = scorer(classifier, name, items)?;
        Ok(Topic { dimension, rule: rule.unwrap_or(dimension.rules()[0]), items: items.clone(), scorer })
    };
    suite.dimensions.iter().map(topic).collect()
}

/// Runs a model on a topic, going on from `journal`'s chunks where there is one; all answers in the items' order.
fn ask(
    side: &Side,
    put: &[Put],
    journal: Option<(&Path, &Header)>,
    counts: &mut Counts,
    tell: &mut dyn FnMut(usize),
) -> Result<Vec<Answered>> {
    let chunks = side.model.chunks(put);
    let sizes: Vec<usize> = chunks.iter().map(Vec::len).collect();
    let (mut journal, done) = match journal {
        Some((file, header)) => {
            let (journal, done) = Journal::open(file, header, &sizes)?;
            (Some(journal), done)
        }
        None => (None, Vec::new()),
    };
    if !done.is_empty() {
        printer::say(format!("went on after {} of {} parts of an interrupted run", done.len(), chunks.len()));
    }
    let mut answers: Vec<Option<Answered>> = vec![None; put.len()];
    let mut done = done.into_iter();
    for chunk in &chunks {
        let found = match done.next() {
            Some(found) => found,
            None => {
                let found = side.model.answer(put, chunk, counts).map_err(|error| blame(error, &side.checkpoint))?;
                if let Some(journal) = &mut journal {
                    journal.push(&found)?;
                }
                found
            }
        };
        for (&at, answer) in chunk.iter().zip(found) {
            let Put { prompt_sha256, cut, .. } = &put[at];
            answers[at] = Some(Answered { prompt_sha256: prompt_sha256.clone(), cut: *cut, answer });
        }
        tell(chunk.len());
    }
    answers.into_iter().collect::<Option<_>>().context("a chunk of items was left out")
}

/// What a model made of a topic.
struct Judged {
    outcomes: Vec<Outcome>,
    cut: usize,
}

/// The answers of a model to a topic, kept or new, judged.
fn judged(
    arguments: &Arguments,
    side: &Side,
    topic: &Topic<'_>,
    suite: (&str, &str),
    put: &[Put],
    counts: &mut Counts,
    tell: &mut dyn FnMut(usize),
) -> Result<Judged> {
    let Topic { dimension, items, .. } = topic;
    let header = Header::new(dimension.name(), topic.rule_name(), side.hashes.clone(), suite, items)?;
    let own = arguments.output.as_ref();
    let own = own.map(|out| out.join(side.name).join(format!("{}.jsonl", dimension.name())));
    let shared = arguments.cache.as_ref().map(|cache| header.place().map(|place| cache.join(place))).transpose()?;
    let places: Vec<PathBuf> = own.into_iter().chain(shared).collect();
    let mut found = None;
    for place in &places {
        if found.is_none() {
            found = record::read(place, &header, items, arguments.rejudge)?;
        }
    }
    let answers = match found {
        Some(answers) => {
            tell(items.len());
            answers
        }
        // The journal lies where most runs would find it.
        None => ask(side, put, places.last().map(|place| (place.as_path(), &header)), counts, tell)?,
    };
    let outcomes: Vec<Outcome> =
        items.iter().zip(&answers).map(|(item, kept)| topic.judge(item, &kept.answer)).collect::<Result<_>>()?;
    for place in &places {
        record::write(place, &header, items, &answers, &outcomes)?;
    }
    Ok(Judged { outcomes, cut: answers.iter().filter(|answered| answered.cut).count() })
}

/// A dimension's figures beside the score.
fn parts(topic: &Topic<'_>, outcomes: &[Outcome], dense: Option<&[Outcome]>) -> Vec<Part> {
    let of = |outcomes: &[Outcome]| {
        let judged: Vec<(&Item, &Outcome)> = topic.items.iter().zip(outcomes).collect();
        topic.dimension.parts(topic.rule, &judged)
    };
    let finite = |score: f64| score.is_finite().then_some(score);
    let dense = dense.map(of);
    let part = |(name, score): (String, f64)| {
        let dense = dense.as_ref().and_then(|dense| dense.iter().find(|(known, _)| *known == name));
        Part { score: finite(score), dense: dense.and_then(|(_, score)| finite(*score)), name }
    };
    of(outcomes).into_iter().map(part).collect()
}

fn constant(dimension: &str, who: &str, constant: Option<Constant>) -> Option<String> {
    let Constant { option, percent } = constant?;
    Some(format!(
        "{dimension}: {who} takes option {} in {percent:.0} % of its answers; such scores say nothing",
        option + 1
    ))
}

/// Perplexity on `file`, beside the dense model's where both read the same tokens.
fn perplexity(side: &Side, dense: Option<&Side>, file: &Path) -> Result<Evaluation> {
    let text = Text::open(&side.checkpoint)?;
    let (ids, string) = tokens_of(&text, file)?;
    let window = WINDOW.min(side.model.decoder().config().max_positions);
    let windows = Windows::new(&ids, window, None).with_context(|| file.display().to_string())?;
    let bytes = predicted_bytes(&text, &ids, windows.targets(), &string);
    let alike = |dense: &&Side| -> bool {
        dense.model.decoder().config().vocab_size == side.model.decoder().config().vocab_size
            && Text::open(&dense.checkpoint).and_then(|text| text.encode(&string, false)).is_ok_and(|own| own == ids)
    };
    let dense: Option<&Decoder> = dense.filter(alike).map(|dense| dense.model.decoder());
    let mut progress = Progress::new("perplexity", windows.targets() as u64);
    measure::evaluate(side.model.decoder(), dense.map(Against::Model), &windows, bytes, &mut |done| {
        progress.at(done as u64, "tokens");
    })
    .map_err(|error| blame(error, &side.checkpoint))
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut clock = Run::start("trust");
    anyhow::ensure!(arguments.bootstrap > 0, "--bootstrap should be at least 1, found 0");
    anyhow::ensure!(arguments.items != Some(0), "--items should be at least 1, found 0");
    let (suite, unknown) = suite_of(arguments)?;
    let classifier = arguments.toxicity_classifier.as_deref();
    let classifier = classifier.map(|path| Classifier::open(source::locate(path)?.path())).transpose()?;
    let topics = topics(arguments, &suite, classifier.as_ref())?;
    let hash = suite.hash();
    let fixture = arguments.model.is_none().then(Fixture::unpack).transpose()?;
    let path = match (&arguments.model, &fixture) {
        (Some(path), _) => path.as_path(),
        (None, Some(fixture)) => fixture.path(),
        (None, None) => anyhow::bail!("no model was given"),
    };
    let side = Side::open("model", path, arguments.chat)?;
    let dense = arguments.against.as_ref().map(|path| Side::open("dense", path, arguments.chat)).transpose()?;
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
        let mut judge = |side: &Side, put: &[Put]| {
            let mut tell = |items: usize| {
                done += items as u64;
                progress.at(done, &format!("items, {} {name}", side.name));
            };
            let judged = judged(arguments, side, topic, (&suite.name, &hash), put, &mut counts, &mut tell)?;
            if judged.cut > 0 {
                let of = topic.items.len();
                let what = format!("{} of {of} prompts are longer than the {} model's context", judged.cut, side.name);
                warnings.push(format!("{name}: {what}; their beginnings were cut off"));
            }
            Ok::<_, anyhow::Error>(judged)
        };
        let put_to = |side: &Side| side.model.put(&topic.items).with_context(|| name.to_string());
        let put = put_to(&side)?;
        let Some(dense) = &dense else {
            let judged = judge(&side, &put)?;
            let measured = paired::measure(topic.dimension, topic.rule, &topic.items, &judged.outcomes, bootstrap)?;
            let chance = topic.dimension.chance(topic.rule, &topic.items);
            warnings.extend(constant(name, "the model", measured.constant));
            dimensions.push(Found::Alone(Box::new(Single {
                dimension: name,
                rule: topic.rule,
                items: topic.items.len(),
                informative: chance.zip(measured.interval).map(|(chance, interval)| !interval.contains(chance)),
                chance,
                parts: parts(topic, &judged.outcomes, None),
                measured,
            })));
            continue;
        };
        let dense_put = put_to(dense)?;
        let before = judge(dense, &dense_put)?;
        let after = judge(&side, &put)?;
        let mut comparison =
            paired::compare(topic.dimension, topic.rule, &topic.items, &before.outcomes, &after.outcomes, bootstrap)?;
        if !put.iter().zip(&dense_put).all(|(one, other)| one.same_tokens(other)) {
            (comparison.kl, comparison.margin_change) = (None, None);
            other_tokens.push(name);
        }
        if comparison.refusal_shift {
            warnings.push(format!(
                "{name}: refusals went from {:.1} to {:.1} %; the two scores are not comparable",
                comparison.dense.refusal_rate, comparison.other.refusal_rate
            ));
        }
        warnings.extend(constant(name, "the dense model", comparison.dense.constant));
        warnings.extend(constant(name, "the compressed model", comparison.other.constant));
        let parts = parts(topic, &after.outcomes, Some(&before.outcomes));
        dimensions.push(Found::Paired(Box::new(Paired { comparison, parts })));
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
    let perplexity = arguments.text.as_deref().map(|file| perplexity(&side, dense.as_ref(), file)).transpose()?;
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
        printer::data(match &scorer.agreement {
            Some(agreement) => format!(
                "toxicity of texts by {} {}: AUC {:.3} [{:.3}, {:.3}] against {} on {} texts",
                scorer.name,
                scorer.version,
                agreement.auc.value,
                agreement.auc.low,
                agreement.auc.high,
                agreement.reference,
                agreement.texts
            ),
            None => format!("toxicity of texts by {}: agreement with a reference was not measured", scorer.name),
        });
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
