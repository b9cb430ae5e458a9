//! What `layers search` found, as record, table and picture.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use scruple_compress::{
    data::random::draw,
    layers::{
        Removal,
        evaluate::{Corpus, Evaluator, Objective},
        search::{Found, Settings},
        sweep::Work,
    },
    measure::Figure,
    model::Decoder,
};
use scruple_weights::Checkpoint;
use serde::Serialize;

use super::search::Looked;
use crate::{
    plot::layers::{self as plot, Curve as Line, Point as Dot},
    printer::{self, Table},
};

/// Resamples of the windows behind the interval of a perplexity.
const RESAMPLES: usize = 1000;

/// Stream of the bootstrap's draws.
const BOOTSTRAP_STREAM: u64 = 0x6c61_7972;

/// The model that is searched, and where its scores are kept.
pub struct Judge<'a> {
    /// It.
    pub model: &'a Decoder,
    /// Where scores are kept.
    pub folder: Option<&'a Path>,
    /// Of its tensors and its configuration.
    pub fingerprint: &'a str,
}

impl<'a> Judge<'a> {
    /// An evaluator that keeps its scores.
    pub fn evaluator(&self, corpus: Corpus, objective: Objective) -> Result<Evaluator<'a>> {
        let evaluator = Evaluator::new(self.model, corpus, objective);
        Ok(match self.folder {
            Some(folder) => evaluator.remember_in(folder, self.fingerprint)?,
            None => evaluator,
        })
    }
}

/// A set on the held-out text.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// exp of the mean negative log-likelihood a token.
    pub perplexity: f64,
    /// Its 95 % interval: bootstrap over windows, percentiles.
    pub perplexity_interval: [f64; 2],
    /// Negative log-likelihood over the dense model's, nats a token, paired.
    pub nll_over_dense: Figure,
    /// KL(dense ‖ pruned), nats a token.
    pub kl: Figure,
    /// Share of the tokens of each canary's endings that are the likeliest; the standard error is over documents.
    pub canaries: BTreeMap<String, Figure>,
}

/// What is measured on, and the canaries.
pub struct Holdout<'a> {
    /// Tokens read of the held-out text.
    pub tokens: usize,
    /// Windows of it.
    pub windows: usize,
    /// SHA-256 of it.
    pub digest: String,
    /// Canaries by name.
    pub canaries: Vec<(String, Evaluator<'a>)>,
    /// The dense model.
    pub dense: Option<Measured>,
}

impl Holdout<'_> {
    /// Of what `evaluator` scores on.
    pub fn new(evaluator: &Evaluator<'_>) -> Self {
        let corpus = evaluator.corpus();
        Self {
            tokens: corpus.tokens(),
            windows: corpus.units(),
            digest: corpus.digest(),
            canaries: Vec::new(),
            dense: None,
        }
    }

    /// What `set` does.
    pub fn of(&self, evaluator: &Evaluator<'_>, set: &Removal) -> Measured {
        let losses = evaluator.losses(set);
        let dense = evaluator.losses(&Removal::default());
        let weights: Vec<f64> = evaluator.corpus().sequences().iter().map(|s| s.rows.len() as f64).collect();
        let nll: Vec<f64> = losses.iter().map(|loss| loss.nll).collect();
        let kl: Vec<f64> = losses.iter().map(|loss| loss.kl).collect();
        let over: Vec<f64> = losses.iter().zip(&dense).map(|(loss, dense)| loss.nll - dense.nll).collect();
        let all: Vec<usize> = (0..nll.len()).collect();
        let canaries = self.canaries.iter().map(|(name, canary)| {
            let hits: Vec<f64> = canary.losses(set).iter().map(|loss| loss.hits).collect();
            (name.clone(), Figure::mean(&hits))
        });
        Measured {
            perplexity: weighted(&nll, &weights, &all).exp(),
            perplexity_interval: interval(&nll, &weights).map(f64::exp),
            nll_over_dense: Figure::mean(&over),
            kl: Figure::mean(&kl),
            canaries: canaries.collect(),
        }
    }
}

/// The mean of `values` at the places `chosen`, by `weights`.
fn weighted(values: &[f64], weights: &[f64], chosen: &[usize]) -> f64 {
    let total: f64 = chosen.iter().map(|&at| weights[at]).sum();
    chosen.iter().map(|&at| values[at] * weights[at]).sum::<f64>() / total
}

/// The 95 % percentile interval of a weighted mean, by a bootstrap over windows.
fn interval(values: &[f64], weights: &[f64]) -> [f64; 2] {
    let n = values.len() as u64;
    let mut means: Vec<f64> = (0..RESAMPLES as u64)
        .map(|resample| {
            let chosen: Vec<usize> =
                (0..n).map(|slot| (draw(0, BOOTSTRAP_STREAM, resample * n + slot) % n) as usize).collect();
            weighted(values, weights, &chosen)
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[((share * RESAMPLES as f64) as usize).min(RESAMPLES - 1)];
    [at(0.025), at(0.975)]
}

/// One set of a curve.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    /// Layers taken out.
    pub k: usize,
    /// Which.
    pub removed: Removal,
    /// The objective on the search's text; baselines are not scored there.
    pub loss: Option<f64>,
    /// Its standard error.
    pub stderr: Option<f64>,
    /// The second objective.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_loss: Option<f64>,
    /// Sets that the search could not tell from this one.
    pub ties: Vec<Removal>,
    /// On the held-out text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holdout: Option<Measured>,
}

/// Sets of growing size by one way of choosing.
#[derive(Debug, Clone, Serialize)]
pub struct Curve {
    /// The search or the baseline.
    pub method: String,
    /// It needed no search.
    pub baseline: bool,
    /// By size.
    pub points: Vec<Point>,
}

impl Curve {
    /// What the search `method` found.
    pub fn found(method: &str, found: Vec<Found>) -> Self {
        let point = |found: Found| Point {
            k: found.k,
            removed: found.removed,
            loss: Some(found.loss),
            stderr: found.stderr,
            second_loss: None,
            ties: found.ties,
            holdout: None,
        };
        Self { method: method.into(), baseline: false, points: found.into_iter().map(point).collect() }
    }

    /// The sets of the baseline `method`.
    pub fn baseline(method: &str, sets: Vec<Removal>) -> Self {
        let point = |set: Removal| Point {
            k: set.len(),
            removed: set,
            loss: None,
            stderr: None,
            second_loss: None,
            ties: Vec::new(),
            holdout: None,
        };
        Self { method: method.into(), baseline: true, points: sets.into_iter().map(point).collect() }
    }

    /// Adds the first objective where it is missing.
    pub fn judge_first(&mut self, evaluator: &mut Evaluator<'_>) -> Result<()> {
        let units = evaluator.corpus().units();
        for point in self.points.iter_mut().filter(|point| point.loss.is_none()) {
            evaluator.ensure(std::slice::from_ref(&point.removed), 0..units)?;
            let figure = Figure::mean(&evaluator.values(&point.removed, 0..units));
            (point.loss, point.stderr) = (Some(figure.value), figure.stderr);
        }
        Ok(())
    }

    /// Adds a second objective.
    pub fn judge_again(&mut self, evaluator: &mut Evaluator<'_>) -> Result<()> {
        let sets: Vec<Removal> = self.points.iter().map(|point| point.removed.clone()).collect();
        let units = evaluator.corpus().units();
        evaluator.ensure(&sets, 0..units)?;
        for point in &mut self.points {
            point.second_loss = Some(Figure::mean(&evaluator.values(&point.removed, 0..units)).value);
        }
        Ok(())
    }

    /// Adds what the held-out text says.
    pub fn measure(&mut self, evaluator: &Evaluator<'_>, holdout: &Holdout<'_>) {
        for point in &mut self.points {
            point.holdout = Some(holdout.of(evaluator, &point.removed));
        }
    }
}

/// The set to take of one size: of the searches, not of the baselines, by the search's text, so that the held-out figures
/// say what they seem to say.
#[derive(Debug, Clone, Serialize)]
pub struct Chosen {
    /// The search that found it.
    pub method: String,
    /// It.
    #[serde(flatten)]
    pub point: Point,
    /// Numbers in the tensors that stay.
    pub parameters: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// For `llama-quantize`.
    pub llama_cpp: String,
}

/// Sets of one size of which no other is better in both objectives.
#[derive(Debug, Clone, Serialize)]
pub struct Pareto {
    /// Layers taken out.
    pub k: usize,
    /// Method, set, and both losses.
    pub sets: Vec<(String, Removal, f64, f64)>,
}

/// What a search found: the same bytes for the same inputs.
#[derive(Debug, Serialize)]
pub struct SearchRecord {
    /// Hash of the model's tensors.
    pub model_fingerprint: String,
    /// Layers it has.
    pub layers: usize,
    /// What sets were judged by.
    pub objective: String,
    /// Layers at the beginning and the end that stayed.
    pub protected: [usize; 2],
    /// The race's standard errors; 0 for none.
    pub race: f64,
    /// Seed of everything drawn.
    pub seed: u64,
    /// Tokens of the search's text.
    pub search_tokens: usize,
    /// Positions of it that were scored.
    pub search_positions: usize,
    /// SHA-256 of it.
    pub search_digest: String,
    /// Tokens of the held-out text.
    pub holdout_tokens: usize,
    /// Windows of it.
    pub holdout_windows: usize,
    /// SHA-256 of it.
    pub holdout_digest: String,
    /// The dense model on the held-out text.
    pub dense: Option<Measured>,
    /// The set to take of each size.
    pub chosen: Vec<Chosen>,
    /// The searches, then the baselines.
    pub curves: Vec<Curve>,
    /// With two objectives: what no other beats in both.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pareto: Vec<Pareto>,
    /// Sets the searches scored.
    pub sets_scored: usize,
    /// Applications of layers and head the searches took.
    pub work: Work,
    /// What scoring the same candidates one by one would take.
    pub work_one_by_one: Work,
}

impl SearchRecord {
    /// Joins what was found.
    pub fn new(
        checkpoint: &Checkpoint,
        fingerprint: String,
        objective: String,
        settings: &Settings,
        calibration: &Corpus,
        holdout: Holdout<'_>,
        looked: Looked,
    ) -> Result<Self> {
        let Looked { curves, work: [work, one_by_one], sets, second } = looked;
        let config = checkpoint.config()?;
        let stack = scruple_compress::layers::rewrite::Stack::find(checkpoint, config, None)?;
        let mut chosen = Vec::new();
        for &k in &settings.sizes {
            let of_size = curves.iter().filter(|curve| !curve.baseline).filter_map(|curve| {
                let point = curve.points.iter().find(|point| point.k == k)?;
                Some((curve, point))
            });
            let Some((curve, point)) =
                of_size.min_by(|a, b| a.1.loss.unwrap_or(f64::INFINITY).total_cmp(&b.1.loss.unwrap_or(f64::INFINITY)))
            else {
                continue;
            };
            let gone = |view: &&scruple_weights::TensorView| {
                stack.layer_of(view.name()).is_none_or(|layer| !point.removed.contains(layer))
            };
            chosen.push(Chosen {
                method: curve.method.clone(),
                parameters: checkpoint.tensors().filter(gone).map(|view| view.elements() as u64).sum(),
                bytes: checkpoint.tensors().filter(gone).map(|view| view.bytes().len() as u64).sum(),
                llama_cpp: point.removed.llama_cpp(),
                point: point.clone(),
            });
        }
        let pareto = match second {
            true => settings.sizes.iter().map(|&k| pareto(k, &curves)).collect(),
            false => Vec::new(),
        };
        Ok(Self {
            model_fingerprint: fingerprint,
            layers: stack.layers,
            objective,
            protected: [settings.protect_first, settings.protect_last],
            race: settings.race.errors,
            seed: settings.seed,
            search_tokens: calibration.tokens(),
            search_positions: calibration.scored(),
            search_digest: calibration.digest(),
            holdout_tokens: holdout.tokens,
            holdout_windows: holdout.windows,
            holdout_digest: holdout.digest,
            dense: holdout.dense,
            chosen,
            curves,
            pareto,
            sets_scored: sets,
            work,
            work_one_by_one: one_by_one,
        })
    }
}

/// Sets of size `k` that no other of that size beats in both losses.
fn pareto(k: usize, curves: &[Curve]) -> Pareto {
    let mut all: Vec<(String, Removal, f64, f64)> = Vec::new();
    for curve in curves {
        for point in curve.points.iter().filter(|point| point.k == k) {
            if !all.iter().any(|(_, set, ..)| *set == point.removed) {
                let losses = point.loss.zip(point.second_loss);
                all.extend(losses.map(|(first, second)| (curve.method.clone(), point.removed.clone(), first, second)));
            }
        }
    }
    let beaten = |one: &(String, Removal, f64, f64)| {
        all.iter().any(|other| other.2 <= one.2 && other.3 <= one.3 && (other.2 < one.2 || other.3 < one.3))
    };
    let mut sets: Vec<_> = all.iter().filter(|one| !beaten(one)).cloned().collect();
    sets.sort_by(|a, b| a.2.total_cmp(&b.2));
    Pareto { k, sets }
}

/// Perplexity over the number of layers taken out, a line a method.
pub fn picture(record: &SearchRecord) -> Result<Vec<u8>> {
    let dot = |k: usize, measured: &Measured| Dot {
        x: k as f64,
        y: measured.perplexity,
        low: measured.perplexity_interval[0],
        high: measured.perplexity_interval[1],
    };
    let dense = record.dense.as_ref().map(|dense| dot(0, dense));
    let line = |curve: &Curve| Line {
        name: curve.method.clone(),
        faint: curve.baseline,
        points: dense
            .iter()
            .cloned()
            .chain(curve.points.iter().filter_map(|p| Some(dot(p.k, p.holdout.as_ref()?))))
            .collect(),
    };
    let lines: Vec<Line> = record.curves.iter().map(line).collect();
    plot::draw("Perplexity of held-out text without k layers", "layers taken out", "perplexity", &lines)
}

/// Prints the table.
pub fn print(record: &SearchRecord, model: &str) {
    let mut table = Table::new([
        "k",
        "method",
        "removed",
        "loss",
        "perplexity",
        "95 % interval",
        "KL to dense",
        "sums",
        "brackets",
        "ties",
    ]);
    let canary = |measured: &Measured, name: &str| {
        measured.canaries.get(name).map_or_else(|| "-".into(), |figure| format!("{:.0} %", 100.0 * figure.value))
    };
    let mut row =
        |k: usize, method: &str, removed: String, loss: Option<f64>, measured: Option<&Measured>, ties: usize| {
            let Some(m) = measured else { return };
            let [low, high] = m.perplexity_interval;
            table.row([
                k.to_string(),
                method.to_string(),
                removed,
                loss.map_or_else(|| "-".into(), |loss| format!("{loss:.4}")),
                format!("{:.2}", m.perplexity),
                format!("{low:.2} to {high:.2}"),
                format!("{:.4}", m.kl.value),
                canary(m, "sums"),
                canary(m, "brackets"),
                ties.to_string(),
            ]);
        };
    row(0, "dense", "-".into(), None, record.dense.as_ref(), 0);
    let sizes: std::collections::BTreeSet<usize> =
        record.curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.k)).collect();
    for k in sizes {
        for curve in &record.curves {
            for point in curve.points.iter().filter(|point| point.k == k) {
                let removed = point.removed.to_string();
                row(k, &curve.method, removed, point.loss, point.holdout.as_ref(), point.ties.len());
            }
        }
    }
    table.print();
    for pareto in &record.pareto {
        let sets: Vec<String> =
            pareto.sets.iter().map(|(method, set, a, b)| format!("{set} ({method}, {a:.4}, {b:.4})")).collect();
        printer::data(format!("k = {}, not beaten in both objectives: {}", pareto.k, sets.join("; ")));
    }
    let ratio = |one: u64, other: u64| other as f64 / one.max(1) as f64;
    printer::say(format!(
        "{} sets on {} tokens; layers were applied {:.2} times less often than candidate by candidate; held out: {} tokens",
        record.sets_scored,
        record.search_tokens,
        ratio(record.work.layer_tokens, record.work_one_by_one.layer_tokens),
        record.holdout_tokens
    ));
    if let Some(chosen) = record.chosen.last() {
        printer::say(format!("to write the last: scruple layers prune {model} --drop {} -o DIR", chosen.point.removed));
    }
}
