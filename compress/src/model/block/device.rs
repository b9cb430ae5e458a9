//! A decoder block whose arithmetic is candle's, on another device than the processor: what calibration walks through
//! there. The formulas are those of the block itself; weights are copied to the device when they are first used.

use std::sync::OnceLock;

use candle_core::{D, Device, Tensor};

use super::{
    super::{
        experts::Routing,
        linear::Linear,
        norm::Norm,
        spec::{Gate, Projection, Stage},
        staged::StagedBlock,
    },
    Block, LoadedNorms, LoadedQkNorm,
};
use crate::{Error, Result, kernel::activation::Activation, kernel::attention::Heads};

/// Numbers that candle's kernels count in 32 bits.
const COUNTED: usize = u32::MAX as usize;

/// Attention scores formed together, where one key head has not more: a gigabyte.
const SCORES: usize = 1 << 28;

/// A linear's weight (out, in) and bias (out) on the device.
type Held = (Tensor, Option<Tensor>);

/// A [`Block`] without experts on a device.
#[derive(Debug)]
pub struct OnDevice {
    block: Block,
    device: Device,
    held: Vec<OnceLock<Held>>, // as the block's linears
    /// What is added to scores: 0 where a query sees a key, −∞ elsewhere; of the first length of sequences that came.
    mask: OnceLock<Tensor>,
    /// [`SCORES`].
    scores: usize,
}

impl OnDevice {
    /// `block` on `device`.
    ///
    /// # Errors
    /// If it has experts.
    pub fn new(block: Block, device: Device) -> Result<Self> {
        if block.spec.mlp.experts.is_some() {
            return Err(Error::Model("a block with experts runs on the processor only; leave --device out".into()));
        }
        let held = block.linears.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { block, device, held, mask: OnceLock::new(), scores: SCORES })
    }

    fn here(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.to_device(&self.device)?)
    }

    /// What linear `index` of `stage` makes of `x` (tokens, in): (tokens, out).
    fn linear(&self, stage: Stage, index: usize, x: &Tensor) -> Result<Tensor> {
        let at = self.block.spec.range(stage).start + index;
        let (weight, bias) = match self.held[at].get() {
            Some(held) => held,
            None => {
                let linear = &self.block.linears[at];
                let bias = linear.bias().map(|bias| Tensor::from_slice(bias, bias.len(), &self.device)).transpose()?;
                let weight = linear.weight()?.to_device(&self.device)?;
                self.held[at].get_or_init(|| (weight, bias))
            }
        };
        let y = x.matmul(&weight.t()?)?;
        match bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }

    /// q, k or v of the heads, (tokens, heads of the part, head_dim), of what the first linears give.
    fn parts(&self, h: &Tensor) -> Result<[Tensor; 3]> {
        let Heads { n_heads, n_kv_heads, head_dim, .. } = self.block.heads;
        let tokens = h.dim(0)?;
        let split = |x: Tensor, heads: usize| x.contiguous()?.reshape((tokens, heads, head_dim));
        Ok(match self.block.spec.attention.projection {
            Projection::Separate => {
                let part = |index, heads| Ok::<_, Error>(split(self.linear(Stage::Attention, index, h)?, heads)?);
                [part(0, n_heads)?, part(1, n_kv_heads)?, part(2, n_kv_heads)?]
            }
            Projection::Fused => {
                let x = self.linear(Stage::Attention, 0, h)?;
                let part = |first: usize, heads: usize| split(x.narrow(1, first * head_dim, heads * head_dim)?, heads);
                [part(0, n_heads)?, part(n_heads, n_kv_heads)?, part(n_heads + n_kv_heads, n_kv_heads)?]
            }
            Projection::Grouped => {
                let shared = n_heads / n_kv_heads;
                let x = self.linear(Stage::Attention, 0, h)?;
                let x = x.reshape((tokens, n_kv_heads, (shared + 2) * head_dim))?;
                let part = |first: usize, heads: usize| {
                    split(x.narrow(2, first * head_dim, heads / n_kv_heads * head_dim)?, heads)
                };
                [part(0, n_heads)?, part(shared, n_kv_heads)?, part(shared + 1, n_kv_heads)?]
            }
        })
    }

    /// Each head's leading numbers turned by its token's position; `x` (tokens, heads, head_dim).
    fn turned(&self, x: Tensor) -> Result<Tensor> {
        let Some(rope) = &self.block.rope else { return Ok(x) };
        let (tokens, _, head_dim) = x.dims3()?;
        let half = rope.half();
        let (cos, sin) = rope.table(0, tokens);
        let table = |values: Vec<f32>| Tensor::from_vec(values, (tokens, 1, half), &self.device);
        let (cos, sin) = (table(cos)?, table(sin)?);
        let (low, high) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let by = |x: &Tensor, factor: &Tensor| x.broadcast_mul(factor);
        let mut parts = vec![(by(&low, &cos)? - by(&high, &sin)?)?, (by(&high, &cos)? + by(&low, &sin)?)?];
        if 2 * half < head_dim {
            parts.push(x.narrow(D::Minus1, 2 * half, head_dim - 2 * half)?);
        }
        Ok(Tensor::cat(&parts, 2)?)
    }

    /// The mask of a sequence of `tokens`, (tokens, tokens).
    fn mask(&self, tokens: usize) -> Result<Tensor> {
        if let Some(mask) = self.mask.get().filter(|mask| mask.dims()[0] == tokens) {
            return Ok(mask.clone());
        }
        let window = self.block.heads.window.unwrap_or(tokens);
        let seen = |query: usize, key: usize| key <= query && query - key < window;
        let values: Vec<f32> = (0..tokens * tokens)
            .map(|at| if seen(at / tokens, at % tokens) { 0.0 } else { f32::NEG_INFINITY })
            .collect();
        let mask = Tensor::from_vec(values, (tokens, tokens), &self.device)?;
        let _ = self.mask.set(mask.clone()); // kept unless one of another length is
        Ok(mask)
    }

    /// softmax(scale · Q Kᵀ, masked) V of all heads, (tokens, n_heads · head_dim).
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let Heads { n_heads, n_kv_heads, head_dim, .. } = self.block.heads;
        let (tokens, shared) = (q.dim(0)?, n_heads / n_kv_heads);
        let of_a_key_head = shared * tokens * tokens;
        if of_a_key_head > COUNTED {
            return Err(Error::Recipe(format!(
                "sequences of {tokens} tokens have more attention scores than a GPU's kernels count; give a smaller --seq-len"
            )));
        }
        // The query heads that share keys lie below each other: one product for each key head.
        let q = q.transpose(0, 1)?.contiguous()?.reshape((n_kv_heads, shared * tokens, head_dim))?;
        let (k, v) = (k.transpose(0, 1)?.contiguous()?, v.transpose(0, 1)?.contiguous()?);
        let together = (self.scores / of_a_key_head).clamp(1, n_kv_heads);
        let mut heads = Vec::new();
        for first in (0..n_kv_heads).step_by(together) {
            let count = together.min(n_kv_heads - first);
            let [q, k, v] = [&q, &k, &v].map(|x| x.narrow(0, first, count));
            heads.push(self.attend_some(&q?, &k?, &v?, tokens)?);
        }
        let heads = Tensor::cat(&heads, 0)?.reshape((n_heads, tokens, head_dim))?;
        Ok(heads.transpose(0, 1)?.contiguous()?.reshape((tokens, n_heads * head_dim))?)
    }

    /// The same of some key heads: `q` (key heads, shared · tokens, head_dim) as the result, `k` and `v` (key heads, tokens,
    /// head_dim).
    fn attend_some(&self, q: &Tensor, k: &Tensor, v: &Tensor, tokens: usize) -> Result<Tensor> {
        let Heads { scale, softcap, .. } = self.block.heads;
        let mut scores = (q.matmul(&k.transpose(1, 2)?)? * f64::from(scale))?;
        if let Some(cap) = softcap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        let shape = scores.dims3()?;
        let scores = scores.reshape(((), tokens, tokens))?.broadcast_add(&self.mask(tokens)?)?;
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        Ok(weights.reshape(shape)?.matmul(v)?)
    }

    fn read(&self, norms: &LoadedNorms, x: &Tensor) -> Result<Tensor> {
        let x = self.here(x)?;
        match &norms.before {
            Some(norm) => norm.by_candle(&x),
            None => Ok(x),
        }
    }

    /// The stream `x` after `y` has been added as `norms` say.
    fn write(&self, norms: &LoadedNorms, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let x = self.here(x)?;
        let sum = match &norms.added {
            Some(norm) => (x + norm.by_candle(y)?)?,
            None => (x + y)?,
        };
        match &norms.after {
            Some(norm) => norm.by_candle(&sum),
            None => Ok(sum),
        }
    }
}

/// `norm` over the last numbers of `x` (tokens, heads, head_dim): of each head, or of all heads together.
fn normed(norm: &Norm, x: &Tensor, whole: bool) -> Result<Tensor> {
    let (tokens, heads, head_dim) = x.dims3()?;
    let rows = if whole { (tokens, heads * head_dim) } else { (tokens * heads, head_dim) };
    Ok(norm.by_candle(&x.reshape(rows)?)?.reshape((tokens, heads, head_dim))?)
}

fn activated(activation: Activation, x: &Tensor) -> Result<Tensor> {
    Ok(match activation {
        Activation::Gelu => x.gelu_erf()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::QuickGelu => (x / ((x * -1.702)?.exp()? + 1.0)?)?,
        Activation::Relu => x.relu()?,
        Activation::Silu => x.silu()?,
        Activation::Tanh => x.tanh()?,
    })
}

impl StagedBlock for OnDevice {
    fn in_features(&self, stage: Stage) -> usize {
        self.block.spec.in_features(stage)
    }

    fn token_width(&self, stage: Stage) -> usize {
        self.block.spec.token_width(stage)
    }

    fn groups(&self, _: Stage) -> usize {
        1
    }

    fn is_parallel(&self) -> bool {
        self.block.spec.parallel
    }

    fn attention_input(&self, x: &Tensor) -> Result<Tensor> {
        self.read(&self.block.attention_norms, x)
    }

    fn attention(&self, h: &Tensor) -> Result<Tensor> {
        let [mut q, mut k, v] = self.parts(&self.here(h)?)?;
        match &self.block.qk_norm {
            Some(LoadedQkNorm::Heads(of_q, of_k)) => (q, k) = (normed(of_q, &q, false)?, normed(of_k, &k, false)?),
            Some(LoadedQkNorm::Whole(of_q, of_k)) => (q, k) = (normed(of_q, &q, true)?, normed(of_k, &k, true)?),
            None => {}
        }
        self.attend(&self.turned(q)?, &self.turned(k)?, &v)
    }

    fn attention_output(&self, x: &Tensor, heads: &Tensor) -> Result<Tensor> {
        let y = self.linear(Stage::AttentionOutput, 0, &self.here(heads)?)?;
        self.write(&self.block.attention_norms, x, &y)
    }

    fn mlp_input(&self, x: &Tensor) -> Result<Tensor> {
        self.read(&self.block.mlp_norms, x)
    }

    fn routing(&self, _: &Tensor) -> Result<Option<Routing>> {
        Ok(None)
    }

    fn mlp(&self, h: &Tensor, _: Option<&Routing>) -> Result<Tensor> {
        let h = self.here(h)?;
        let (activation, width) = (self.block.spec.mlp.activation, self.block.spec.mlp.width);
        let y = self.linear(Stage::Mlp, 0, &h)?;
        match self.block.spec.mlp.gate {
            Gate::Separate => Ok((activated(activation, &y)? * self.linear(Stage::Mlp, 1, &h)?)?),
            Gate::Fused => {
                let half = |first| y.narrow(1, first, width)?.contiguous();
                Ok((activated(activation, &half(0)?)? * half(width)?)?)
            }
            Gate::None => activated(activation, &y),
        }
    }

    fn mlp_output(&self, x: &Tensor, hidden: &Tensor, _: Option<&Routing>) -> Result<Tensor> {
        let y = self.linear(Stage::MlpOutput, 0, &self.here(hidden)?)?;
        self.write(&self.block.mlp_norms, x, &y)
    }

    fn replace(&mut self, stage: Stage, index: usize, linear: Box<dyn Linear>) {
        self.held[self.block.spec.range(stage).start + index] = OnceLock::new();
        self.block.replace(stage, index, linear);
    }

    fn as_decoder(&mut self) -> Option<&mut Block> {
        // Whoever asks may change weights: they are copied anew.
        self.held.iter_mut().for_each(|held| *held = OnceLock::new());
        Some(&mut self.block)
    }
}

#[cfg(test)]
mod tests;
