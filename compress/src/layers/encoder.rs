//! Layers of an encoder: what taking some out does to the vectors it makes.
//!
//! Blocks of encoders mostly norm the sum of what they read and what they add. Taking one out is then not the same as its
//! adding nothing, so no score of a block alone stands for it: every set is run. Encoders have few blocks, and texts are
//! short.

use std::collections::HashMap;

use scruple_weights::Checkpoint;

use super::{
    Removal,
    search::{Found, Kind, Search, Settings, combinations},
};
use crate::{
    Error, Result,
    measure::Figure,
    model::encoder::SentenceEncoder,
    neighbours::{EmbeddingComparison, compare},
};

/// Scores sets of one encoder's layers on texts.
#[derive(Debug)]
pub struct EncoderJudge<'a> {
    checkpoint: &'a Checkpoint,
    texts: Vec<Vec<u32>>,
    layers: usize,
    dimensions: usize,
    dense: Vec<f32>,
    losses: HashMap<Removal, Vec<f64>>,
}

impl<'a> EncoderJudge<'a> {
    /// On `texts`, as the model's tokenizer gives them.
    ///
    /// # Errors
    /// If the checkpoint is no encoder, or there are fewer than three texts.
    pub fn new(checkpoint: &'a Checkpoint, texts: Vec<Vec<u32>>) -> Result<Self> {
        if texts.len() < 3 {
            return Err(Error::Text(format!(
                "{} texts were given; at least 3 are needed to have neighbours",
                texts.len()
            )));
        }
        let encoder = SentenceEncoder::open(checkpoint)?;
        Ok(Self {
            dense: encoder.embed(&texts, |_| {})?,
            layers: encoder.encoder().config().n_blocks,
            dimensions: encoder.dimensions(),
            checkpoint,
            texts,
            losses: HashMap::new(),
        })
    }

    /// Layers the model has.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Texts it judges by.
    pub fn texts(&self) -> usize {
        self.texts.len()
    }

    /// The vectors (texts, dimensions) without the layers `set`.
    fn embed(&self, set: &Removal) -> Result<Vec<f32>> {
        let mut encoder = SentenceEncoder::open(self.checkpoint)?;
        encoder.keep_blocks(&set.kept(self.layers))?;
        encoder.embed(&self.texts, |_| {})
    }

    /// How the vectors without the layers `set` compare with the dense model's: cosines, and neighbours that stay.
    ///
    /// # Errors
    /// If the set does not fit the model.
    pub fn compare(&self, set: &Removal) -> Result<EmbeddingComparison> {
        compare(&self.dense, &self.embed(set)?, self.dimensions)
    }

    /// 1 − the cosine of a text's vectors with and without the layers, text by text.
    ///
    /// # Errors
    /// If the set does not fit the model.
    pub fn losses(&mut self, set: &Removal) -> Result<Vec<f64>> {
        if let Some(known) = self.losses.get(set) {
            return Ok(known.clone());
        }
        let pruned = self.embed(set)?;
        let rows = self.dense.chunks_exact(self.dimensions).zip(pruned.chunks_exact(self.dimensions));
        let loss = |(a, b): (&[f32], &[f32])| {
            let inner = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            1.0 - inner(a, b) / (inner(a, a) * inner(b, b)).sqrt().max(f64::MIN_POSITIVE)
        };
        let losses: Vec<f64> = rows.map(loss).collect();
        self.losses.insert(set.clone(), losses.clone());
        Ok(losses)
    }

    /// The best of `candidates`, with those that two standard errors of the paired difference do not part from it.
    fn best(&mut self, k: usize, candidates: &[Removal]) -> Result<Found> {
        let mut scored = Vec::with_capacity(candidates.len());
        for set in candidates {
            scored.push((self.losses(set)?, set.clone()));
        }
        let mean = |losses: &[f64]| Figure::mean(losses).value;
        scored.sort_by(|a, b| mean(&a.0).total_cmp(&mean(&b.0)).then_with(|| b.1.cmp(&a.1)));
        let Some((best, set)) = scored.first() else {
            return Err(Error::Recipe(format!("there is no set of {k} layers to choose from")));
        };
        let ties = scored[1..].iter().filter(|(losses, _)| {
            let differences: Vec<f64> = losses.iter().zip(best).map(|(a, b)| a - b).collect();
            let figure = Figure::mean(&differences);
            figure.value - 2.0 * figure.stderr.unwrap_or(0.0) <= 0.0
        });
        let figure = Figure::mean(best);
        Ok(Found {
            k,
            removed: set.clone(),
            loss: figure.value,
            stderr: figure.stderr,
            ties: ties.map(|(_, set)| set.clone()).collect(),
        })
    }

    /// Runs `search`: greedy, window or exhaustive.
    ///
    /// # Errors
    /// Another search, or sizes that do not fit the model.
    pub fn search(&mut self, search: &Search, settings: &Settings) -> Result<Vec<Found>> {
        let removable = settings.removable(self.layers)?;
        let mut found = Vec::new();
        match search.kind {
            _ if search.swap => return Err(unsupported(search)),
            Kind::Greedy => {
                let mut gone = Removal::default();
                for k in 1..=settings.sizes.last().copied().unwrap_or(0) {
                    let candidates: Vec<Removal> =
                        removable.iter().filter(|&&l| !gone.contains(l)).map(|&l| gone.with(l)).collect();
                    let best = self.best(k, &candidates)?;
                    gone = best.removed.clone();
                    found.push(best);
                }
            }
            Kind::Window => {
                for &k in &settings.sizes {
                    let windows: Vec<Removal> = removable.windows(k).map(|w| w.iter().copied().collect()).collect();
                    found.push(self.best(k, &windows)?);
                }
            }
            Kind::Exhaustive => {
                for &k in &settings.sizes {
                    let sets = combinations(&removable, k);
                    if sets.len() as u64 > settings.exhaustive_limit {
                        return Err(Error::Recipe(format!(
                            "there are {} sets of {k} layers, more than the {} that are gone through; search otherwise, or \
                             raise --exhaustive-limit",
                            sets.len(),
                            settings.exhaustive_limit
                        )));
                    }
                    found.push(self.best(k, &sets)?);
                }
            }
            Kind::Dp | Kind::Beam(_) | Kind::Evolve => return Err(unsupported(search)),
        }
        found.retain(|found| settings.sizes.contains(&found.k));
        Ok(found)
    }
}

fn unsupported(search: &Search) -> Error {
    Error::Recipe(format!(
        "the layers of an encoder are searched by greedy, window or exhaustive, found `{}`",
        search.name()
    ))
}
