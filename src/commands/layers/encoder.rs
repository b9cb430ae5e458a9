//! `layers search` for encoders: sets of layers by what is left of the vectors, measured on other texts.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result};
use scruple_compress::{
    layers::{
        Removal,
        encoder::EncoderJudge,
        search::{Found, Search, Settings},
    },
    model::encoder::SentenceEncoder,
    neighbours::EmbeddingComparison,
};
use scruple_weights::Checkpoint;
use serde::Serialize;

use crate::printer::{self, Table};

/// Texts of each side at most: neighbours are looked for among all pairs.
const MOST_TEXTS: usize = 500;

/// Characters of a text that are read.
const MOST_CHARACTERS: usize = 160;

/// A set on the held-out texts.
#[derive(Debug, Serialize)]
pub struct EncoderPoint {
    /// The search or the baseline.
    pub method: String,
    /// What was found; its loss is 1 − the mean cosine on the search's texts.
    #[serde(flatten)]
    pub found: Found,
    /// Cosines and neighbours on the held-out texts.
    pub holdout: EmbeddingComparison,
}

/// What a search found: the same bytes for the same inputs.
#[derive(Debug, Serialize)]
pub struct EncoderRecord {
    /// Hash of the model's tensors.
    pub model_fingerprint: String,
    /// Layers it has.
    pub layers: usize,
    /// What sets were judged by.
    pub objective: &'static str,
    /// Texts of the search.
    pub search_texts: usize,
    /// Texts measured on.
    pub holdout_texts: usize,
    /// The set to take of each size.
    pub chosen: Vec<EncoderPoint>,
    /// All sets that were measured.
    pub points: Vec<EncoderPoint>,
}

/// Lines of `file` with a few words or more, as the model reads them.
fn lines(encoder: &SentenceEncoder, file: &Path, skip: usize) -> Result<Vec<Vec<u32>>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{}: cannot read the texts", file.display()))?;
    let long = text.lines().map(str::trim).filter(|line| line.split_whitespace().count() >= 4);
    let cut = |line: &str| line.chars().take(MOST_CHARACTERS).collect::<String>();
    long.skip(skip).take(MOST_TEXTS).map(|line| Ok(encoder.tokens(&cut(line))?.ids)).collect()
}

/// Searches the layers of the encoder in `checkpoint`.
pub fn search(
    checkpoint: &Checkpoint,
    searches: &[Search],
    settings: &Settings,
    calibration: &Path,
    holdout: Option<&Path>,
) -> Result<EncoderRecord> {
    let encoder = SentenceEncoder::open(checkpoint)?;
    let mut texts = lines(&encoder, calibration, 0)?;
    let held = match holdout.filter(|file| !super::search::same_file(file, calibration)) {
        Some(file) => lines(&encoder, file, 0)?,
        // Of one file the search gets half at most.
        None => {
            let rest = lines(&encoder, calibration, texts.len())?;
            let half = texts.len().min((texts.len() + rest.len()) / 2);
            texts.split_off(half).into_iter().chain(rest).take(MOST_TEXTS).collect()
        }
    };
    let seen: BTreeSet<&Vec<u32>> = texts.iter().collect();
    let held: Vec<Vec<u32>> = held.iter().filter(|text| !seen.contains(text)).cloned().collect();
    let mut judge = EncoderJudge::new(checkpoint, texts)?;
    let other =
        EncoderJudge::new(checkpoint, held).context("the held-out texts, without those that the search sees")?;
    let layers = judge.layers();
    let removable = settings.removable(layers)?;
    let mut points = Vec::new();
    for search in searches {
        for found in judge.search(search, settings)? {
            let holdout = other.compare(&found.removed)?;
            points.push(EncoderPoint { method: search.name(), found, holdout });
        }
    }
    let mut chosen = Vec::new();
    for &k in &settings.sizes {
        let of_size = points.iter().filter(|point| point.found.k == k);
        if let Some(best) = of_size.min_by(|a, b| a.found.loss.total_cmp(&b.found.loss)) {
            let (method, found, holdout) = (best.method.clone(), best.found.clone(), best.holdout.clone());
            chosen.push(EncoderPoint { method, found, holdout });
        }
    }
    for &k in &settings.sizes {
        let last: Removal = (layers - k..layers).collect();
        let but_one = (layers - 1 - k..layers - 1).collect();
        let spread = (0..k).map(|i| removable[(2 * i + 1) * removable.len() / (2 * k)]).collect();
        for (method, removed) in [("last", last), ("last-but-one", but_one), ("uniform", spread)] {
            let figure = scruple_compress::measure::Figure::mean(&judge.losses(&removed)?);
            let found = Found { k, loss: figure.value, stderr: figure.stderr, ties: Vec::new(), removed };
            let holdout = other.compare(&found.removed)?;
            points.push(EncoderPoint { method: method.into(), found, holdout });
        }
    }
    Ok(EncoderRecord {
        model_fingerprint: checkpoint.fingerprint(),
        layers,
        objective: "cosine",
        search_texts: judge.texts(),
        holdout_texts: other.texts(),
        chosen,
        points,
    })
}

/// Prints the table.
pub fn print(record: &EncoderRecord) {
    let mut table = Table::new(["k", "method", "removed", "loss", "cosine", "± error", "overlap", "± error", "ties"]);
    let mut points: Vec<&EncoderPoint> = record.points.iter().collect();
    points.sort_by_key(|point| point.found.k);
    for point in points {
        let error = |stderr: Option<f64>| stderr.map_or_else(|| "-".into(), |stderr| format!("{stderr:.4}"));
        table.row([
            point.found.k.to_string(),
            point.method.clone(),
            point.found.removed.to_string(),
            format!("{:.4}", point.found.loss),
            format!("{:.4}", point.holdout.cosine.value),
            error(point.holdout.cosine.stderr),
            format!("{:.4}", point.holdout.overlap.value),
            error(point.holdout.overlap.stderr),
            point.found.ties.len().to_string(),
        ]);
    }
    table.print();
    printer::say(format!(
        "neighbours among {} held-out texts; chance would keep {:.3}",
        record.holdout_texts,
        record.points.first().map_or(0.0, |point| point.holdout.chance)
    ));
}
