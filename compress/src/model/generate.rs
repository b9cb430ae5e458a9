//! Generation, greedy or sampled, one token at a time.

use super::decoder::{Decoder, KvCache};
use crate::{Error, Result, data::random::draw};

/// Stream of the random numbers that sampling draws.
const SAMPLING_STREAM: u64 = 0x5a3d_11e5;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; 1 samples from the model's distribution.
    pub temperature: f32,
    /// Only the likeliest tokens that together have this probability take part.
    pub top_p: f32,
    /// Only this many likeliest tokens take part; 0 for all.
    pub top_k: usize,
    /// Of the draws.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token, always.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };

    /// The id chosen from `logits` (vocab) for the `index`-th new token.
    pub fn choose(&self, logits: &[f32], index: u64) -> u32 {
        let best = || {
            // The first of equals, so that the choice is the same everywhere.
            (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
        };
        if self.temperature <= 0.0 {
            return best();
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        if self.top_k > 0 {
            order.truncate(self.top_k);
        }
        let top = logits[order[0] as usize];
        let weight = |id: u32| f64::from((logits[id as usize] - top) / self.temperature).exp();
        let total: f64 = order.iter().map(|&id| weight(id)).sum();
        let mut kept = 0.0;
        let mut count = 0;
        for &id in &order {
            kept += weight(id);
            count += 1;
            if kept >= f64::from(self.top_p) * total {
                break;
            }
        }
        let unit = (draw(self.seed, SAMPLING_STREAM, index) >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = unit * kept;
        for &id in &order[..count] {
            left -= weight(id);
            if left < 0.0 {
                return id;
            }
        }
        order[count - 1]
    }
}

/// Continues `prompt` by at most `max_tokens` tokens; `each` sees every new token and returns whether to go on. Stops at
/// an end token, which is not returned.
///
/// # Errors
/// If the prompt is empty or longer than the model's context, or the model's logits are not finite.
pub fn generate(
    model: &Decoder,
    prompt: &[u32],
    max_tokens: usize,
    sampling: Sampling,
    eos: &[u32],
    mut each: impl FnMut(u32) -> bool,
) -> Result<Vec<u32>> {
    let limit = model.config().max_positions;
    if prompt.is_empty() {
        return Err(Error::Text("the prompt has no tokens; give at least one word".into()));
    }
    if prompt.len() > limit {
        return Err(Error::Text(format!(
            "the prompt has {} tokens, the model's context holds {limit}; shorten it",
            prompt.len()
        )));
    }
    let mut cache = KvCache::default();
    let mut logits = model.next_logits(prompt, &mut cache)?;
    let mut ids = Vec::new();
    for index in 0..max_tokens.min(limit - prompt.len()) {
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(Error::Numeric(format!(
                "the model's logits for new token {} are not finite; its weights or its configuration are broken",
                index + 1
            )));
        }
        let id = sampling.choose(&logits, index as u64);
        if eos.contains(&id) {
            break;
        }
        ids.push(id);
        if !each(id) || index + 1 == max_tokens {
            break;
        }
        logits = model.next_logits(&[id], &mut cache)?;
    }
    Ok(ids)
}
