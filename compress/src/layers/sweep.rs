//! Exact losses of many sets of removed layers at once, by *stacked states*.
//!
//! A set is a way through the layers: at each it goes through or past. Two sets that agree on the first `i` layers have the
//! same residual stream there, so one state stands for both until they part:
//!
//! ```text
//! S = { all sets: embed(batch) }
//! for l in layers, in order:
//!     a state whose sets part at l becomes two: one stays as it is (past l), one goes through
//!     S' = layer_l of all states that go through, stacked into wide products
//! score every state with the head
//! ```
//!
//! For all m removals of one layer this takes m (m + 1) / 2 applications of a layer in place of m (m − 1), and each
//! layer's weights are touched once. It is no approximation: the numbers are those of the models themselves.

use candle_core::Tensor;
use rayon::prelude::*;

use super::Removal;
use crate::{
    Error, Result,
    kernel::{
        activation::log_sum_exp,
        tensor::{from_vec, with_f32},
    },
    model::Decoder,
};

/// Rows that one application of a layer is given at a time: enough for wide products, few enough for the caches.
const ROWS: usize = 4096;

/// Rows of logits held at a time: 256 rows of a vocabulary of 150,000 are 154 MB.
const LOGIT_ROWS: usize = 256;

/// Likeliest tokens a position keeps of the dense model; the rest counts as one.
pub const TOP: usize = 512;

/// A text to score: the model reads `ids`, and at `rows` is asked for `targets`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Tokens.
    pub ids: Vec<u32>,
    /// Positions at which it is scored, in order.
    pub rows: Vec<usize>,
    /// The token that follows each of those.
    pub targets: Vec<u32>,
}

/// Loss of one set on one position, or on one sequence: then means over the positions scored. In nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// KL(dense ‖ pruned); 0 where no dense model is known.
    pub kl: f64,
    /// Negative log-likelihood of the targets.
    pub nll: f64,
    /// Share of the positions at which the target is the likeliest token.
    pub hits: f64,
}

/// What was computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Work {
    /// Applications of a layer to a token.
    pub layer_tokens: u64,
    /// Applications of the head to a token.
    pub head_tokens: u64,
}

/// The dense model's likeliest tokens at every position scored of one sequence.
#[derive(Debug, Clone)]
pub struct Reference {
    k: usize,
    ids: Vec<u32>,
    log_p: Vec<f32>,
}

/// A state of the walk: the stream of some sets.
struct State {
    x: Vec<f32>,
    sets: Vec<usize>,
}

/// The last residual stream (tokens, hidden) of every one of `sets` on `sequences`, laid end to end; and for each stream
/// the places in `sets` it belongs to. Equal sets share one.
///
/// # Errors
/// A token or position that the model does not have.
pub fn streams(
    model: &Decoder,
    sets: &[Removal],
    sequences: &[&[u32]],
    work: &mut Work,
) -> Result<Vec<(Vec<usize>, Vec<f32>)>> {
    let lengths: Vec<usize> = sequences.iter().map(|ids| ids.len()).collect();
    let tokens: usize = lengths.iter().sum();
    let hidden = model.config().hidden_size;
    let x = with_f32(&model.embed_sequences(sequences)?, <[f32]>::to_vec)?;
    let mut states = vec![State { x, sets: (0..sets.len()).collect() }];
    // Stacks of so many states have the same rows, so the same rotations.
    let stacked = (ROWS / tokens.max(1)).max(1);
    let mut turns: Vec<Option<_>> = (0..=stacked).map(|_| None).collect();
    for layer in 0..model.blocks().len() {
        let mut through = Vec::with_capacity(states.len());
        let mut past = Vec::new();
        for state in states {
            let (out, stay): (Vec<usize>, Vec<usize>) = state.sets.iter().partition(|&&set| sets[set].contains(layer));
            match (stay.is_empty(), out.is_empty()) {
                (true, _) => past.push(state),
                (false, true) => through.push(state),
                (false, false) => {
                    past.push(State { x: state.x.clone(), sets: out });
                    through.push(State { x: state.x, sets: stay });
                }
            }
        }
        for stack in through.chunks_mut(stacked) {
            let lengths = lengths.repeat(stack.len());
            let turns = turns[stack.len()].get_or_insert_with(|| Decoder::turns(&lengths));
            let rows = stack.len() * tokens;
            let mut x = std::mem::take(&mut stack[0].x);
            x.reserve_exact((stack.len() - 1) * tokens * hidden);
            stack[1..].iter().for_each(|state| x.extend_from_slice(&state.x));
            let y = model.run_block(layer, &from_vec(x, (rows, hidden))?, turns, &lengths)?;
            with_f32(&y, |y| {
                for (state, y) in stack.iter_mut().zip(y.chunks_exact(tokens * hidden)) {
                    state.x.clear();
                    state.x.extend_from_slice(y);
                }
            })?;
            work.layer_tokens += rows as u64;
        }
        past.append(&mut through);
        states = past;
    }
    Ok(states.into_iter().map(|state| (state.sets, state.x)).collect())
}

/// Applications of a layer that [`streams`] needs for `sets` of a model of `layers`, a token.
pub fn applications(sets: &[Removal], layers: usize) -> u64 {
    // In the order of their ways, what a set shares with any set before it, it shares with the one just before.
    let mut ways: Vec<Vec<bool>> =
        sets.iter().map(|set| (0..layers).map(|layer| set.contains(layer)).collect()).collect();
    ways.sort();
    let mut total = 0;
    for (at, way) in ways.iter().enumerate() {
        let parting = |before: &Vec<bool>| (0..layers).find(|&layer| before[layer] != way[layer]).unwrap_or(layers);
        let shared = at.checked_sub(1).map_or(0, |before| parting(&ways[before]));
        total += way[shared..].iter().filter(|out| !**out).count() as u64;
    }
    total
}

/// The rows of `stream` at which `sequences` are scored, as what the head reads (rows, hidden).
fn scored(model: &Decoder, stream: &[f32], sequences: &[&Sequence]) -> Vec<f32> {
    let hidden = model.config().hidden_size;
    let mut rows = Vec::with_capacity(sequences.iter().map(|s| s.rows.len()).sum::<usize>() * hidden);
    let mut first = 0;
    for sequence in sequences {
        for row in &sequence.rows {
            rows.extend_from_slice(&stream[(first + row) * hidden..][..hidden]);
        }
        first += sequence.ids.len();
    }
    rows
}

/// Calls `f` with logits (rows, vocab) of all of `hidden`'s rows, a part at a time, and the first row's number.
fn head(
    model: &Decoder,
    rows: Vec<f32>,
    work: &mut Work,
    mut f: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    let hidden = model.config().hidden_size;
    let count = rows.len() / hidden;
    let finished: Tensor = model.finish(&from_vec(rows, (count, hidden))?)?;
    for start in (0..count).step_by(LOGIT_ROWS) {
        let part = finished.narrow(0, start, LOGIT_ROWS.min(count - start))?;
        with_f32(&model.logits(&part)?, |logits| f(start, logits))??;
    }
    work.head_tokens += count as u64;
    Ok(())
}

/// What the dense model expects at the positions scored of each of `sequences`.
///
/// # Errors
/// As [`streams`]; logits that are not finite.
pub fn references(model: &Decoder, sequences: &[&Sequence], work: &mut Work) -> Result<Vec<Reference>> {
    let ids: Vec<&[u32]> = sequences.iter().map(|sequence| sequence.ids.as_slice()).collect();
    let streams = streams(model, &[Removal::default()], &ids, work)?;
    let vocab = model.config().vocab_size;
    let k = TOP.min(vocab);
    let (mut top_ids, mut log_p) = (Vec::new(), Vec::new());
    head(model, scored(model, &streams[0].1, sequences), work, |_, logits| {
        let kept: Vec<(Vec<u32>, Vec<f32>)> = logits
            .par_chunks(vocab)
            .map(|row| {
                let lse = log_sum_exp(row);
                let mut ids: Vec<u32> = (0..vocab as u32).collect();
                let order = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
                if k < vocab {
                    ids.select_nth_unstable_by(k, order);
                    ids.truncate(k);
                }
                ids.sort_unstable();
                let log_p = ids.iter().map(|&id| (f64::from(row[id as usize]) - lse) as f32).collect();
                (ids, log_p)
            })
            .collect();
        for (ids, values) in kept {
            expect_finite(values.iter().map(|&value| f64::from(value)))?;
            top_ids.extend(ids);
            log_p.extend(values);
        }
        Ok(())
    })?;
    let mut first = 0;
    let cut = |sequence: &&Sequence| {
        let range = first * k..(first + sequence.rows.len()) * k;
        first += sequence.rows.len();
        Reference { k, ids: top_ids[range.clone()].to_vec(), log_p: log_p[range].to_vec() }
    };
    Ok(sequences.iter().map(cut).collect())
}

fn expect_finite(mut values: impl Iterator<Item = f64>) -> Result<()> {
    match values.any(f64::is_nan) {
        false => Ok(()),
        true => {
            Err(Error::Numeric("the model's logits are not finite; its weights or its configuration are broken".into()))
        }
    }
}

/// KL(dense ‖ this) over the tokens kept and the rest as one.
fn divergence(ids: &[u32], log_p: &[f32], row: &[f32], lse: f64) -> f64 {
    let (mut kl, mut p_kept, mut q_kept) = (0.0, 0.0, 0.0);
    for (&id, &log_p) in ids.iter().zip(log_p) {
        let (log_p, log_q) = (f64::from(log_p), f64::from(row[id as usize]) - lse);
        kl += log_p.exp() * (log_p - log_q);
        p_kept += log_p.exp();
        q_kept += log_q.exp();
    }
    let (p_rest, q_rest) = (1.0 - p_kept, 1.0 - q_kept);
    if ids.len() < row.len() && p_rest > 1e-9 && q_rest > 1e-9 {
        kl += p_rest * (p_rest / q_rest).ln();
    }
    kl.max(0.0)
}

/// The loss of every one of `sets` on every one of `sequences`: `[set][sequence]`. `dense` is what [`references`] gave, or
/// empty.
///
/// # Errors
/// As [`references`].
pub fn losses(
    model: &Decoder,
    sets: &[Removal],
    sequences: &[&Sequence],
    dense: &[&Reference],
    work: &mut Work,
) -> Result<Vec<Vec<Loss>>> {
    let ids: Vec<&[u32]> = sequences.iter().map(|sequence| sequence.ids.as_slice()).collect();
    let streams = streams(model, sets, &ids, work)?;
    let vocab = model.config().vocab_size;
    // Where each scored row lies: sequence, number within it.
    let places: Vec<(usize, usize)> = sequences
        .iter()
        .enumerate()
        .flat_map(|(s, sequence)| (0..sequence.rows.len()).map(move |row| (s, row)))
        .collect();
    let mut out = vec![Vec::new(); sets.len()];
    // As many states at a time as fill the head's products.
    let together = (LOGIT_ROWS / places.len().max(1)).max(1);
    let mut streams = streams.into_iter().peekable();
    while streams.peek().is_some() {
        let (mut owners, mut rows) = (Vec::new(), Vec::new());
        for (sets, stream) in streams.by_ref().take(together) {
            rows.extend(scored(model, &stream, sequences));
            owners.push(sets);
        }
        let mut values: Vec<Loss> = Vec::with_capacity(owners.len() * places.len());
        head(model, rows, work, |first, logits| {
            let part: Vec<Loss> = logits
                .par_chunks(vocab)
                .enumerate()
                .map(|(at, row)| {
                    let (s, number) = places[(first + at) % places.len()];
                    let lse = log_sum_exp(row);
                    let nll = lse - f64::from(row[sequences[s].targets[number] as usize]);
                    let kl = dense.get(s).map_or(0.0, |dense| {
                        let range = number * dense.k..(number + 1) * dense.k;
                        divergence(&dense.ids[range.clone()], &dense.log_p[range], row, lse)
                    });
                    let target = row[sequences[s].targets[number] as usize];
                    // Of equals the target is not the one.
                    let hit = row.iter().filter(|&&logit| logit >= target).count() == 1;
                    Loss { kl, nll, hits: f64::from(u8::from(hit)) }
                })
                .collect();
            expect_finite(part.iter().map(|loss| loss.kl + loss.nll))?;
            values.extend(part);
            Ok(())
        })?;
        for (owners, values) in owners.iter().zip(values.chunks_exact(places.len().max(1))) {
            let mut of_sequence = Vec::with_capacity(sequences.len());
            let mut first = 0;
            for sequence in sequences {
                let rows = &values[first..first + sequence.rows.len()];
                let mean = |value: fn(&Loss) -> f64| rows.iter().map(value).sum::<f64>() / rows.len().max(1) as f64;
                of_sequence.push(Loss { kl: mean(|row| row.kl), nll: mean(|row| row.nll), hits: mean(|row| row.hits) });
                first += rows.len();
            }
            owners.iter().for_each(|&set| out[set].clone_from(&of_sequence));
        }
    }
    Ok(out)
}
