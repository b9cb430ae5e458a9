//! What a model makes of a text, and what compression changed: perplexity, and the distance to the dense model's
//! distribution token by token.
//!
//! The text is cut into windows of `window` targets; each window is run on its own, and its last target is the token
//! that follows the window, so every token but the first is predicted exactly once. Windows are the unit of all standard
//! errors, since tokens of one window are not independent.

use std::path::Path;

use rayon::prelude::*;
use scruple_weights::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, WriterOptions};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    Error, Result,
    data::random::draw,
    kernel::{
        activation::{kl_divergence, log_sum_exp},
        tensor::with_f32,
    },
    model::{Decoder, decoder::KvCache, text::Text},
};

/// Rows of logits held at a time: 64 rows of a vocabulary of 150,000 are 38 MB.
const LOGIT_ROWS: usize = 64;

/// Resamples of the windows behind the standard errors of percentiles.
const BOOTSTRAP_RESAMPLES: u64 = 200;

/// Stream of the bootstrap's draws.
const BOOTSTRAP_STREAM: u64 = 0xb007_57a9;

/// The targets of a text, in windows.
#[derive(Debug, Clone)]
pub struct Windows<'a> {
    ids: &'a [u32],
    window: usize,
}

impl<'a> Windows<'a> {
    /// Windows of `window` targets over `ids`, at most `max_targets` in all (the last window may be shorter).
    ///
    /// # Errors
    /// If there is nothing to predict.
    pub fn new(ids: &'a [u32], window: usize, max_targets: Option<usize>) -> Result<Self> {
        if window == 0 || max_targets == Some(0) {
            return Err(Error::Text("a window and the number of tokens must be at least 1".into()));
        }
        if ids.len() < 2 {
            return Err(Error::Text(format!(
                "the text has {} tokens; at least 2 are needed to predict one",
                ids.len()
            )));
        }
        let targets = (ids.len() - 1).min(max_targets.unwrap_or(usize::MAX));
        Ok(Self { ids: &ids[..=targets], window })
    }

    /// Number of predicted tokens.
    pub fn targets(&self) -> usize {
        self.ids.len() - 1
    }

    /// (inputs, targets) of each window, the targets being the inputs moved by one.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'a [u32], &'a [u32])> {
        self.ids[..self.targets()].chunks(self.window).zip(self.ids[1..].chunks(self.window))
    }

    /// SHA-256 of window length and ids: what a cached dense run is valid for.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update((self.window as u64).to_le_bytes());
        for id in self.ids {
            hash.update(id.to_le_bytes());
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A figure and its standard error (over windows; absent with a single window).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// The estimate.
    pub value: f64,
    /// Its standard error.
    pub stderr: Option<f64>,
}

impl Figure {
    /// The mean of independent `values` and its standard error.
    pub fn mean(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self { value: mean, stderr: (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt()) }
    }
}

/// What one model makes of a text.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// exp of the mean negative log-likelihood a token.
    pub perplexity: f64,
    /// Its standard error.
    pub perplexity_stderr: Option<f64>,
    /// Mean negative log-likelihood, nats a token.
    pub nll: Figure,
    /// Negative log-likelihood in bits over the bytes of the predicted text.
    pub bits_per_byte: Option<f64>,
    /// Predicted tokens.
    pub tokens: usize,
    /// Windows, and their length.
    pub windows: usize,
    /// Targets in a full window.
    pub window: usize,
    /// Against a dense model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Comparison>,
}

/// What compression changed, token by token.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The dense model's perplexity on the same tokens.
    pub dense_perplexity: f64,
    /// Increase of the negative log-likelihood over the dense model's, paired, nats a token.
    pub nll_increase: Figure,
    /// KL(dense ‖ compressed), nats a token, mean.
    pub kl_mean: Figure,
    /// KL's median.
    pub kl_p50: Figure,
    /// KL's 90th percentile.
    pub kl_p90: Figure,
    /// KL's 99th percentile.
    pub kl_p99: Figure,
    /// Share of tokens whose likeliest next token is the same.
    pub same_top: Figure,
    /// `exact` over the whole vocabulary, or `top-K`: over the K likeliest tokens and the rest as one (a lower bound).
    pub kl_kind: String,
}

/// The dense side of a comparison.
pub enum Against<'a> {
    /// Run beside the model.
    Model(&'a Decoder),
    /// A run kept on disk by [`cache_dense`].
    Cache(&'a DenseCache),
}

/// The dense model's log-probabilities at every target of a text: its target's, and its `k` likeliest tokens'.
#[derive(Debug)]
pub struct DenseCache {
    k: usize,
    target: Vec<f32>,
    ids: Vec<u32>,
    top: Vec<f32>,
}

#[derive(Default)]
struct Tokens {
    nll: Vec<f32>,
    dense_nll: Vec<f32>,
    kl: Vec<f32>,
    same: Vec<bool>,
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// Runs `model` over `windows`; `progress` hears the number of targets done.
///
/// `bytes` is the length of the predicted text, where known.
pub fn evaluate(
    model: &Decoder,
    against: Option<Against<'_>>,
    windows: &Windows<'_>,
    bytes: Option<usize>,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    let vocab = model.config().vocab_size;
    model.expect_ids(windows.ids)?;
    if let Some(Against::Model(dense)) = &against
        && dense.config().vocab_size != vocab
    {
        return Err(Error::Model(format!(
            "the two models have vocabularies of {vocab} and {} tokens; a divergence needs the same one",
            dense.config().vocab_size
        )));
    }
    let mut tokens = Tokens::default();
    for (inputs, targets) in windows.iter() {
        let hidden = model.hidden_once(inputs)?;
        let dense_hidden = match &against {
            Some(Against::Model(dense)) => Some(dense.hidden_once(inputs)?),
            _ => None,
        };
        for start in (0..inputs.len()).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(inputs.len() - start);
            let targets = &targets[start..start + rows];
            let logits = model.logits(&hidden.narrow(0, start, rows)?)?;
            let first = tokens.nll.len();
            match (&against, &dense_hidden) {
                (Some(Against::Model(dense)), Some(dense_hidden)) => {
                    let dense_logits = dense.logits(&dense_hidden.narrow(0, start, rows)?)?;
                    with_f32(&logits, |q| {
                        with_f32(&dense_logits, |p| compare_rows(p, q, targets, vocab, &mut tokens))
                    })??;
                }
                (Some(Against::Cache(cache)), _) => {
                    with_f32(&logits, |q| compare_cached(cache, q, targets, vocab, &mut tokens))?;
                }
                _ => {
                    let nll = with_f32(&logits, |q| -> Vec<f32> {
                        let nll = |(q, &t): (&[f32], &u32)| (log_sum_exp(q) - f64::from(q[t as usize])) as f32;
                        q.par_chunks(vocab).zip(targets).map(nll).collect()
                    })?;
                    tokens.nll.extend(nll);
                }
            }
            if let Some(bad) = tokens.nll[first..].iter().position(|nll| !nll.is_finite()) {
                return Err(Error::Numeric(format!(
                    "the model's logits at token {} of the text are not finite; its weights or its configuration are \
                     broken",
                    first + bad
                )));
            }
        }
        progress(tokens.nll.len());
    }
    Ok(summarise(&tokens, windows, bytes, &against))
}

fn compare_rows(p: &[f32], q: &[f32], targets: &[u32], vocab: usize, tokens: &mut Tokens) {
    let rows: Vec<_> = p
        .par_chunks(vocab)
        .zip(q.par_chunks(vocab))
        .zip(targets)
        .map(|((p, q), &target)| {
            let (p_lse, q_lse) = (log_sum_exp(p), log_sum_exp(q));
            let kl = if p == q { 0.0 } else { kl_divergence(p, p_lse, q, q_lse).max(0.0) };
            let nll = |row: &[f32], lse: f64| (lse - f64::from(row[target as usize])) as f32;
            (nll(q, q_lse), nll(p, p_lse), kl as f32, argmax(p) == argmax(q))
        })
        .collect();
    push(rows, tokens);
}

fn compare_cached(cache: &DenseCache, q: &[f32], targets: &[u32], vocab: usize, tokens: &mut Tokens) {
    let first = tokens.nll.len();
    let rows: Vec<_> = q
        .par_chunks(vocab)
        .zip(targets)
        .enumerate()
        .map(|(i, (q, &target))| {
            let (ids, top) =
                (&cache.ids[(first + i) * cache.k..][..cache.k], &cache.top[(first + i) * cache.k..][..cache.k]);
            let q_lse = log_sum_exp(q);
            let (mut kl, mut p_kept, mut q_kept) = (0.0, 0.0, 0.0);
            for (&id, &log_p) in ids.iter().zip(top) {
                let (log_p, log_q) = (f64::from(log_p), f64::from(q[id as usize]) - q_lse);
                kl += log_p.exp() * (log_p - log_q);
                p_kept += log_p.exp();
                q_kept += log_q.exp();
            }
            let (p_rest, q_rest) = (1.0 - p_kept, 1.0 - q_kept);
            if p_rest > 1e-9 && q_rest > 1e-9 {
                kl += p_rest * (p_rest / q_rest).ln();
            }
            let nll = (q_lse - f64::from(q[target as usize])) as f32;
            (nll, -cache.target[first + i], kl.max(0.0) as f32, argmax(q) == ids[0] as usize)
        })
        .collect();
    push(rows, tokens);
}

fn push(rows: Vec<(f32, f32, f32, bool)>, tokens: &mut Tokens) {
    for (nll, dense_nll, kl, same) in rows {
        tokens.nll.push(nll);
        tokens.dense_nll.push(dense_nll);
        tokens.kl.push(kl);
        tokens.same.push(same);
    }
}

/// Mean of `values` (one a target) with the standard error of a mean over clusters of `window` targets.
fn clustered_mean(values: impl Iterator<Item = f64>, window: usize) -> Figure {
    let values: Vec<f64> = values.collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let windows = values.len().div_ceil(window);
    let spread: f64 = values.chunks(window).map(|w| w.iter().map(|v| v - mean).sum::<f64>().powi(2)).sum();
    let stderr = (windows > 1).then(|| (spread * windows as f64 / (windows - 1) as f64).sqrt() / values.len() as f64);
    Figure { value: mean, stderr }
}

/// The `share` quantile (nearest rank) of `values`, with a bootstrap over windows.
fn clustered_quantile(values: &[f32], window: usize, share: f64) -> Figure {
    let quantile = |mut values: Vec<f32>| {
        let rank = ((share * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1;
        f64::from(*values.select_nth_unstable_by(rank, f32::total_cmp).1)
    };
    let windows: Vec<&[f32]> = values.chunks(window).collect();
    let stderr = (windows.len() > 1).then(|| {
        let resampled: Vec<f64> = (0..BOOTSTRAP_RESAMPLES)
            .into_par_iter()
            .map(|resample| {
                let pick = |slot: usize| {
                    let index = resample * windows.len() as u64 + slot as u64;
                    windows[(draw(0, BOOTSTRAP_STREAM, index) % windows.len() as u64) as usize]
                };
                quantile((0..windows.len()).flat_map(|slot| pick(slot).iter().copied()).collect())
            })
            .collect();
        let mean = resampled.iter().sum::<f64>() / resampled.len() as f64;
        (resampled.iter().map(|q| (q - mean).powi(2)).sum::<f64>() / (resampled.len() - 1) as f64).sqrt()
    });
    Figure { value: quantile(values.to_vec()), stderr }
}

fn summarise(
    tokens: &Tokens,
    windows: &Windows<'_>,
    bytes: Option<usize>,
    against: &Option<Against<'_>>,
) -> Evaluation {
    let window = windows.window;
    let wide = |values: &'_ [f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let nll = clustered_mean(wide(&tokens.nll).into_iter(), window);
    let comparison = against.as_ref().map(|against| {
        let dense = wide(&tokens.dense_nll);
        let increase = tokens.nll.iter().zip(&dense).map(|(&nll, dense)| f64::from(nll) - dense);
        Comparison {
            dense_perplexity: (dense.iter().sum::<f64>() / dense.len() as f64).exp(),
            nll_increase: clustered_mean(increase, window),
            kl_mean: clustered_mean(wide(&tokens.kl).into_iter(), window),
            kl_p50: clustered_quantile(&tokens.kl, window, 0.50),
            kl_p90: clustered_quantile(&tokens.kl, window, 0.90),
            kl_p99: clustered_quantile(&tokens.kl, window, 0.99),
            same_top: clustered_mean(tokens.same.iter().map(|&same| f64::from(u8::from(same))), window),
            kl_kind: match against {
                Against::Model(_) => "exact".into(),
                Against::Cache(cache) => format!("top-{}", cache.k),
            },
        }
    });
    let perplexity = nll.value.exp();
    Evaluation {
        perplexity,
        perplexity_stderr: nll.stderr.map(|stderr| stderr * perplexity),
        nll,
        bits_per_byte: bytes
            .filter(|&bytes| bytes > 0)
            .map(|bytes| nll.value * windows.targets() as f64 / std::f64::consts::LN_2 / bytes as f64),
        tokens: windows.targets(),
        windows: windows.iter().len(),
        window,
        against: comparison,
    }
}

/// Which of `options` the model finds likeliest after `prompt` and a blank: by the mean log-likelihood of the option's
/// tokens, the first of equals. What the options share is run once.
pub fn likeliest_option(model: &Decoder, text: &Text, prompt: &str, options: &[String]) -> Result<usize> {
    let vocab = model.config().vocab_size;
    let mut shared = text.encode(prompt, false)?;
    let tokens: Vec<Vec<u32>> =
        options.iter().map(|option| text.encode(&format!("{prompt} {option}"), false)).collect::<Result<_>>()?;
    for ids in &tokens {
        let same = shared.iter().zip(ids).take_while(|(a, b)| a == b).count();
        shared.truncate(same);
    }
    if shared.is_empty() || tokens.iter().any(|ids| ids.len() == shared.len()) {
        return Err(Error::Text(format!("the options of `{prompt}` share no beginning, or one adds no token to it")));
    }
    let mut cache = KvCache::default();
    let first = model.next_logits(&shared, &mut cache)?;
    let log_p = |row: &[f32], id: u32| f64::from(row[id as usize]) - log_sum_exp(row);
    let mut best = (0, f64::NEG_INFINITY);
    for (index, ids) in tokens.iter().enumerate() {
        let rest = &ids[shared.len()..];
        let mut score = log_p(&first, rest[0]);
        if rest.len() > 1 {
            let hidden = model.hidden(&rest[..rest.len() - 1], &mut cache.clone())?;
            score += with_f32(&model.logits(&hidden)?, |logits| {
                logits.chunks(vocab).zip(&rest[1..]).map(|(row, &id)| log_p(row, id)).sum::<f64>()
            })?;
        }
        if score / rest.len() as f64 > best.1 {
            best = (index, score / rest.len() as f64);
        }
    }
    Ok(best.0)
}

/// Runs the dense model once and keeps, at every target, the target's log-probability and those of the `k` likeliest
/// tokens in the folder `out` (f32 and u32, `8 k + 4` bytes a token).
pub fn cache_dense(
    dense: &Decoder,
    windows: &Windows<'_>,
    k: usize,
    out: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<()> {
    let vocab = dense.config().vocab_size;
    let k = k.min(vocab);
    dense.expect_ids(windows.ids)?;
    let targets = windows.targets();
    let spec = |name: &str, dtype, shape: &[usize]| TensorSpec { name: name.into(), dtype, shape: shape.to_vec() };
    let specs = vec![
        spec("target", Dtype::F32, &[targets]),
        spec("ids", Dtype::U32, &[targets, k]),
        spec("top", Dtype::F32, &[targets, k]),
    ];
    let metadata = [("windows".to_string(), windows.digest()), ("vocab".to_string(), vocab.to_string())];
    let options = WriterOptions { metadata: metadata.into_iter().collect(), ..WriterOptions::default() };
    let writer = CheckpointWriter::create(out, specs, options)?;
    let mut done = 0;
    for (inputs, targets) in windows.iter() {
        let hidden = dense.hidden_once(inputs)?;
        for start in (0..inputs.len()).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(inputs.len() - start);
            let logits = dense.logits(&hidden.narrow(0, start, rows)?)?;
            let kept: Vec<(f32, Vec<u32>, Vec<f32>)> = with_f32(&logits, |logits| {
                let keep = |(row, &target): (&[f32], &u32)| {
                    let lse = log_sum_exp(row);
                    let log_p = |id: u32| (f64::from(row[id as usize]) - lse) as f32;
                    let mut ids: Vec<u32> = (0..vocab as u32).collect();
                    let order = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
                    if k < vocab {
                        ids.select_nth_unstable_by(k, order);
                        ids.truncate(k);
                    }
                    ids.sort_unstable_by(order);
                    let top = ids.iter().map(|&id| log_p(id)).collect();
                    (log_p(target), ids, top)
                };
                logits.par_chunks(vocab).zip(&targets[start..start + rows]).map(keep).collect()
            })?;
            for (target, ids, top) in kept {
                let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
                writer.write_at("target", done as u64 * 4, &target.to_le_bytes())?;
                writer.write_at(
                    "ids",
                    (done * k) as u64 * 4,
                    &ids.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>(),
                )?;
                writer.write_at("top", (done * k) as u64 * 4, &floats(&top))?;
                done += 1;
            }
        }
        progress(done);
    }
    writer.finish()?;
    Ok(())
}

impl DenseCache {
    /// Opens a run kept by [`cache_dense`].
    ///
    /// # Errors
    /// If it was made for other tokens, another window length or another vocabulary.
    pub fn open(path: &Path, windows: &Windows<'_>, vocab: usize) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let metadata = checkpoint.metadata();
        for (key, expected) in [("windows", windows.digest()), ("vocab", vocab.to_string())] {
            if metadata.get(key) != Some(&expected) {
                return Err(Error::Text(format!(
                    "{}: the cached dense run has {key} {}, expected {expected}; it was made for another text, window or \
                     model, so remove it and run again",
                    path.display(),
                    metadata.get(key).map_or("none", String::as_str)
                )));
            }
        }
        let ids_view = checkpoint.tensor("ids")?;
        let (_, k) = ids_view.rows();
        let (ids, _) = ids_view.bytes().as_chunks::<4>();
        let ids: Vec<u32> = ids.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        if ids.iter().any(|&id| id as usize >= vocab) {
            return Err(Error::Text(format!(
                "{}: a cached token id is outside the vocabulary of {vocab}",
                path.display()
            )));
        }
        let cache =
            Self { k, target: checkpoint.tensor("target")?.to_f32()?, ids, top: checkpoint.tensor("top")?.to_f32()? };
        if cache.target.len() != windows.targets() || cache.top.len() != cache.ids.len() || k == 0 {
            return Err(Error::Text(format!(
                "{}: the cached dense run is incomplete; remove it and run again",
                path.display()
            )));
        }
        Ok(cache)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_predicted_once() {
        let ids: Vec<u32> = (0..23).collect();
        let windows = Windows::new(&ids, 5, None).unwrap();
        assert_eq!(windows.targets(), 22);
        let targets: Vec<u32> = windows.iter().flat_map(|(_, targets)| targets.to_vec()).collect();
        assert_eq!(targets, (1..23).collect::<Vec<u32>>());
        for (inputs, targets) in windows.iter() {
            assert_eq!(inputs.len(), targets.len());
            assert_eq!(inputs[0] + 1, targets[0]);
        }
        assert_eq!(Windows::new(&ids, 5, Some(10)).unwrap().iter().len(), 2);
        assert!(Windows::new(&ids[..1], 5, None).is_err());
    }

    #[test]
    fn the_standard_error_is_that_of_window_means() {
        // Four windows of equal length: the clustered error is the ordinary standard error of their means.
        let values = [1.0, 3.0, 2.0, 2.0, 5.0, 7.0, 0.0, 4.0];
        let figure = clustered_mean(values.into_iter(), 2);
        let means = [2.0, 2.0, 6.0, 2.0f64];
        let mean = means.iter().sum::<f64>() / 4.0;
        let variance = means.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / 3.0;
        assert_eq!(figure.value, mean);
        assert!((figure.stderr.unwrap() - (variance / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(clustered_mean(values.into_iter(), 8).stderr, None);
    }

    #[test]
    fn a_cached_run_compares_the_tokens_kept_and_the_rest_as_one() {
        /// Divergences of some ten nats, of log-probabilities that are kept in f32.
        const MAX_DIFFERENCE: f64 = 1e-4;
        const KEPT: usize = 8;
        let open = |name: &str| {
            let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/decoders");
            Decoder::open(&Checkpoint::open(fixtures.join(name)).unwrap()).unwrap()
        };
        // Two models that have nothing in common but the vocabulary.
        let (dense, model) = (open("llama"), open("qwen2"));
        let ids: Vec<u32> = (0..41).map(|i| (7 * i * i + 3 * i) % 64).collect();
        let windows = Windows::new(&ids, 10, None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("dense");
        cache_dense(&dense, &windows, KEPT, &out, &mut |_| {}).unwrap();
        let cache = DenseCache::open(&out, &windows, 64).unwrap();
        let found = evaluate(&model, Some(Against::Cache(&cache)), &windows, None, &mut |_| {}).unwrap();

        let log_p = |model: &Decoder, ids: &[u32]| -> Vec<Vec<f64>> {
            let logits = model.logits(&model.hidden_once(ids).unwrap()).unwrap();
            let log = |row: &[f32]| -> Vec<f64> {
                let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
                row.iter().map(|&logit| f64::from(logit) - sum.ln()).collect()
            };
            with_f32(&logits, |logits| logits.chunks(64).map(log).collect()).unwrap()
        };
        let likeliest = |log: &[f64]| -> Vec<usize> {
            let mut order: Vec<usize> = (0..log.len()).collect();
            order.sort_by(|&a, &b| log[b].total_cmp(&log[a])); // stable
            order
        };
        let (mut kl, mut whole, mut same, mut increase) = (0.0, 0.0, 0.0, 0.0);
        for (inputs, targets) in windows.iter() {
            for ((p, q), &target) in log_p(&dense, inputs).iter().zip(&log_p(&model, inputs)).zip(targets) {
                let order = likeliest(p);
                let (kept, rest) = order.split_at(KEPT);
                let share = |log: &[f64]| rest.iter().map(|&id| log[id].exp()).sum::<f64>();
                kl += kept.iter().map(|&id| p[id].exp() * (p[id] - q[id])).sum::<f64>() / 40.0;
                kl += share(p) * (share(p) / share(q)).ln() / 40.0;
                whole += p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>() / 40.0;
                same += f64::from(u8::from(order[0] == likeliest(q)[0])) / 40.0;
                increase += (p[target as usize] - q[target as usize]) / 40.0;
            }
        }
        let found = found.against.unwrap();
        assert_eq!(found.kl_kind, "top-8");
        assert!((found.kl_mean.value - kl).abs() < MAX_DIFFERENCE, "{} for {kl}", found.kl_mean.value);
        assert!(kl + 100.0 * MAX_DIFFERENCE < whole, "a lower bound, and not the whole: {kl} of {whole}");
        assert!((found.same_top.value - same).abs() < 1e-9, "{} for {same}", found.same_top.value);
        assert!((found.nll_increase.value - increase).abs() < MAX_DIFFERENCE, "{}", found.nll_increase.value);
    }

    #[test]
    fn a_quantile_is_the_nearest_rank() {
        let values: Vec<f32> = (1..=100).map(|v| v as f32).collect();
        assert_eq!(clustered_quantile(&values, 10, 0.5).value, 50.0);
        assert_eq!(clustered_quantile(&values, 10, 0.99).value, 99.0);
        let stderr = clustered_quantile(&values, 10, 0.5).stderr.unwrap();
        assert!(stderr > 5.0 && stderr < 20.0, "{stderr}");
    }
}
