//! Models asked and judged: answers of one model to a dimension's items, kept or new; one model measured, or two compared.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use scruple_compress::{
    measure::{self, Against, Evaluation, Windows},
    model::{Decoder, text::Text},
};
use scruple_weights::{Checkpoint, hub::Origin, source::Located};
use serde::Serialize;

use super::{
    dimension::Rule,
    item::{Item, Outcome},
    language_model::{Chat, Counts, LanguageModel, Put, Running},
    paired::{self, Comparison, Constant, Measured},
    questions::Topic,
    record::{self, Answered, Header, Journal, ModelHashes},
    statistics::Bootstrap,
};
use crate::{
    commands::eval::{blame, note_quantisation, predicted_bytes, tokens_of},
    printer::{self, Progress},
};

/// One model on one dimension.
#[derive(Debug, Serialize)]
pub struct Single {
    /// The dimension.
    pub dimension: &'static str,
    /// What its answers were judged by.
    pub rule: Rule,
    /// How many items.
    pub items: usize,
    /// What a model that knows nothing scores.
    pub chance: Option<f64>,
    /// Whether the interval leaves chance out.
    pub informative: Option<bool>,
    /// Score, interval, rates and flags.
    #[serde(flatten)]
    pub measured: Measured,
    /// Figures beside the score.
    pub parts: Vec<Part>,
}

/// Two models on one dimension.
#[derive(Debug, Serialize)]
pub struct Paired {
    /// Both scores, and what changed.
    #[serde(flatten)]
    pub comparison: Comparison,
    /// Figures beside the scores.
    pub parts: Vec<Part>,
}

/// A figure beside a dimension's score.
#[derive(Debug, Serialize)]
pub struct Part {
    /// A part's name, or that of an effect.
    pub name: String,
    /// The model's.
    pub score: Option<f64>,
    /// The dense model's, where there are two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dense: Option<f64>,
}

/// A model that was asked.
#[derive(Debug, Serialize)]
pub struct Asked {
    #[serde(flatten)]
    hashes: ModelHashes,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Origin>,
}

/// A model, ready to be asked.
#[derive(Debug)]
pub struct Side {
    /// `model` or `dense`.
    pub name: &'static str,
    /// Its file.
    pub checkpoint: Checkpoint,
    /// The model itself.
    pub model: LanguageModel,
    /// What its answers are kept under.
    pub hashes: ModelHashes,
    /// Where a model of a hub came from.
    pub origin: Option<Origin>,
}

impl Side {
    /// Opens the model at `located`.
    ///
    /// # Errors
    /// As [`LanguageModel::open`].
    pub fn open(name: &'static str, located: &Located, chat: Chat) -> Result<Self> {
        let checkpoint = located.open()?;
        let model = LanguageModel::open(&checkpoint, chat, Running::default())?;
        note_quantisation(&checkpoint)?;
        let hashes = ModelHashes::of(&checkpoint, model.uses_template())?;
        Ok(Self { name, hashes, model, origin: located.origin().cloned(), checkpoint })
    }

    /// What a record says of the model.
    pub fn asked(&self) -> Asked {
        Asked { hashes: self.hashes.clone(), source: self.origin.clone() }
    }

    /// The items of a topic as this model reads them.
    ///
    /// # Errors
    /// As [`LanguageModel::put`].
    pub fn put(&self, topic: &Topic<'_>) -> Result<Vec<Put>> {
        self.model.put(&topic.items).with_context(|| topic.dimension.name().to_string())
    }
}

/// Where answers are kept; nowhere by default.
#[derive(Debug, Default)]
pub struct Keeping {
    /// A folder of one run: `SIDE/DIMENSION.jsonl`.
    pub own: Option<PathBuf>,
    /// A folder that runs share, whose files are named by what they answer ([`Header::place`]). Journals lie there.
    pub shared: Option<PathBuf>,
    /// More such folders, which are only read.
    pub others: Vec<PathBuf>,
    /// Judge answers that were kept under another rule again, instead of refusing them.
    pub rejudge: bool,
}

/// What a model made of a topic.
#[derive(Debug)]
pub struct Reply {
    /// The items as the model read them.
    pub put: Vec<Put>,
    /// Its answers.
    pub answers: Vec<Answered>,
    /// What they were worth.
    pub outcomes: Vec<Outcome>,
}

impl Reply {
    /// Says so where prompts were longer than the model's context.
    pub fn warning(&self, side: &str, topic: &Topic<'_>) -> Option<String> {
        let (cut, of) = (self.answers.iter().filter(|answered| answered.cut).count(), topic.items.len());
        let name = topic.dimension.name();
        (cut > 0).then(|| {
            let what = format!("{cut} of {of} prompts are longer than the {side} model's context");
            format!("{name}: {what}; their beginnings were cut off")
        })
    }
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

/// The answers of a model to a topic, kept or new, judged. `suite` is its name and hash; `tell` hears how many items more
/// are answered.
///
/// # Errors
/// If the model cannot be run, or answers cannot be read or kept.
pub fn reply(
    side: &Side,
    topic: &Topic<'_>,
    put: Vec<Put>,
    suite: (&str, &str),
    keeping: &Keeping,
    counts: &mut Counts,
    tell: &mut dyn FnMut(usize),
) -> Result<Reply> {
    let Topic { dimension, items, .. } = topic;
    let header = Header::new(dimension.name(), topic.rule_name(), side.hashes.clone(), suite, items)?;
    let own = keeping.own.as_ref();
    let own = own.map(|out| out.join(side.name).join(format!("{}.jsonl", dimension.name())));
    let place = header.place()?;
    let shared = keeping.shared.as_ref().map(|cache| cache.join(&place));
    let places: Vec<PathBuf> = own.into_iter().chain(shared).collect();
    let others = keeping.others.iter().map(|cache| cache.join(&place));
    let mut found = None;
    for place in places.iter().cloned().chain(others) {
        if found.is_none() {
            found = record::read(&place, &header, items, keeping.rejudge)?;
        }
    }
    let answers = match found {
        Some(answers) => {
            tell(items.len());
            answers
        }
        // The journal lies where most runs would find it.
        None => ask(side, &put, places.last().map(|place| (place.as_path(), &header)), counts, tell)?,
    };
    let outcomes: Vec<Outcome> =
        items.iter().zip(&answers).map(|(item, kept)| topic.judge(item, &kept.answer)).collect::<Result<_>>()?;
    for place in &places {
        record::write(place, &header, items, &answers, &outcomes)?;
    }
    Ok(Reply { put, answers, outcomes })
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

/// Says so where a model answers nearly always the same.
pub fn constant(dimension: &str, who: &str, constant: Option<Constant>) -> Option<String> {
    let Constant { option, percent } = constant?;
    Some(format!(
        "{dimension}: {who} takes option {} in {percent:.0} % of its answers; such scores say nothing",
        option + 1
    ))
}

/// One model on one topic.
///
/// # Errors
/// As [`paired::measure`].
pub fn alone(topic: &Topic<'_>, reply: &Reply, bootstrap: Bootstrap) -> Result<Single> {
    let measured = paired::measure(topic.dimension, topic.rule, &topic.items, &reply.outcomes, bootstrap)?;
    let chance = topic.dimension.chance(topic.rule, &topic.items);
    Ok(Single {
        dimension: topic.dimension.name(),
        rule: topic.rule,
        items: topic.items.len(),
        informative: paired::informative(chance, &measured),
        chance,
        parts: parts(topic, &reply.outcomes, None),
        measured,
    })
}

/// Two models on one topic, and whether they read its items as the same tokens; where they do not, there is no divergence
/// and no change of margins.
///
/// # Errors
/// As [`paired::compare`].
pub fn compare(topic: &Topic<'_>, dense: &Reply, other: &Reply, bootstrap: Bootstrap) -> Result<(Paired, bool)> {
    let (before, after) = (&dense.outcomes, &other.outcomes);
    let mut comparison = paired::compare(topic.dimension, topic.rule, &topic.items, before, after, bootstrap)?;
    let same_tokens = other.put.iter().zip(&dense.put).all(|(one, other)| one.same_tokens(other));
    if !same_tokens {
        (comparison.kl, comparison.margin_change) = (None, None);
    }
    Ok((Paired { comparison, parts: parts(topic, after, Some(before)) }, same_tokens))
}

/// What a reader of a comparison should know.
pub fn cautions(comparison: &Comparison) -> Vec<String> {
    let name = comparison.dimension;
    let refusals = comparison.refusal_shift.then(|| {
        format!(
            "{name}: refusals went from {:.1} to {:.1} %; the two scores are not comparable",
            comparison.dense.refusal_rate, comparison.other.refusal_rate
        )
    });
    let dense = constant(name, "the dense model", comparison.dense.constant);
    let other = constant(name, "the compressed model", comparison.other.constant);
    refusals.into_iter().chain(dense).chain(other).collect()
}

/// Perplexity on `file` in windows of so many predicted tokens, at most so many in all, beside the dense model's where both
/// read the same tokens.
///
/// # Errors
/// If the text cannot be read, is too short, or the model's numbers are not finite.
pub fn perplexity(
    side: &Side,
    dense: Option<&Side>,
    file: &Path,
    window: usize,
    most: Option<usize>,
) -> Result<Evaluation> {
    let text = Text::open(&side.checkpoint)?;
    let (ids, string) = tokens_of(&text, file)?;
    let window = window.min(side.model.decoder().config().max_positions);
    let windows = Windows::new(&ids, window, most).with_context(|| file.display().to_string())?;
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
