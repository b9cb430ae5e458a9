//! A decoder that learns beside its own frozen weights: low-rank adapters on its linears, and its norms.
//!
//! The network is built from the same [`BlockSpec`]s the decoder runs by, so whatever family runs here can learn here; what
//! has no gradient yet (mixtures of experts, a projected embedding) is refused. Embedding and output projection stay as
//! they are. One sequence is run at a time: a step over many windows adds up their gradients.

use std::{collections::HashMap, sync::Arc};

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use scruple_weights::{Checkpoint, name::PathFilter};

use super::ops::{self, Adapter, Frozen, Matrix, Turning, product};
use crate::{
    Error, Result,
    kernel::{
        activation::{kl_divergence, kl_gradient_row, log_sum_exp, softcap},
        attention::Heads,
        tensor::{from_vec, with_f32},
    },
    model::{
        Decoder,
        config::DecoderConfig,
        rope::Rope,
        spec::{BlockSpec, Gate, LinearSpec, NormKind, NormSpec, Norms, Projection, QkNorm, Stage},
    },
};

/// Rows of logits held at a time.
const LOGIT_ROWS: usize = 128;

/// How far logits of this network and of the decoder may be apart, relative to the largest: both sum in f32, in other
/// orders.
const MAX_RELATIVE_DIFFERENCE: f32 = 1e-3;

/// What learns.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// Rank of the adapters; 0 for none.
    pub rank: usize,
    /// Names of linears that have adapters.
    pub targets: &'a PathFilter,
    /// The norms learn too.
    pub norms: bool,
    /// The blocks of which something learns, by their numbers; what stands behind the blocks learns with any of them.
    pub blocks: &'a [usize],
}

/// A tensor of what learns: name, shape, and how it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Learned {
    /// `LINEAR.lora_a` (rank, in), `LINEAR.lora_b` (out, rank), or a norm's own name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Its first numbers; `None` for an adapter's inner matrix, which is drawn.
    pub start: Option<Vec<f32>>,
}

/// Suffix of an adapter's inner matrix.
pub const LORA_A: &str = ".lora_a";

/// Suffix of an adapter's outer matrix.
pub const LORA_B: &str = ".lora_b";

/// The frozen part.
#[derive(Debug)]
pub struct Adapted {
    config: DecoderConfig,
    decoder: Decoder,
    blocks: Vec<Vec<Arc<Frozen>>>,
    /// Weights and biases of norms, by name.
    vectors: HashMap<String, Tensor>,
    /// (vocabulary, hidden).
    head: Vec<f32>,
    scale: f32,
}

impl Adapted {
    /// The network of `checkpoint`, with everything in f32: 4 bytes a parameter. An adapter's part counts `scale` times.
    ///
    /// # Errors
    /// A family whose network has parts that do not learn here, a quantised model, a missing tensor.
    pub fn open(checkpoint: &Checkpoint, scale: f32) -> Result<Self> {
        let path = checkpoint.path().display();
        let refuse = |what: &str| Err(Error::Model(format!("{path}: {what}")));
        if crate::export::detect(checkpoint)?.is_some() {
            return refuse(
                "the model is quantised, and codes do not learn; heal the dense model and quantise the result",
            );
        }
        crate::sharing::stored::expect_no_pool(checkpoint)?;
        let decoder = Decoder::open(checkpoint)?;
        let config = decoder.config().clone();
        if config.blocks.iter().any(|block| block.mlp.experts.is_some()) {
            return refuse("models with a mixture of experts do not learn here; heal them by --method norms or merge");
        }
        if config.embedding.projected {
            return refuse(
                "models whose embedding is projected do not learn here; heal them by --method norms or merge",
            );
        }
        let mut vectors = HashMap::new();
        let mut keep = |name: String, features: usize| -> Result<()> {
            let values = checkpoint.tensor(&name)?.to_f32()?;
            if values.len() != features {
                return Err(checkpoint.tensor(&name)?.error(format!("should have {features} numbers")).into());
            }
            vectors.insert(name, Tensor::from_vec(values, features, &Device::Cpu)?);
            Ok(())
        };
        let mut blocks = Vec::with_capacity(config.n_blocks);
        for (index, spec) in config.blocks.iter().enumerate() {
            let prefix = format!("{}.", config.block_path(index));
            for (norm, features) in norms_of(spec, config.hidden_size) {
                for name in tensors_of(&prefix, &norm) {
                    keep(name, features)?;
                }
            }
            let load = |linear: &LinearSpec| frozen(checkpoint, &format!("{prefix}{}", linear.name), linear);
            blocks.push(spec.linears.iter().map(load).collect::<Result<Vec<_>>>()?);
        }
        if let Some(norm) = &config.head.norm {
            for name in tensors_of(&config.base, norm) {
                keep(name, config.hidden_size)?;
            }
        }
        let head = match config.head.tied {
            true => format!("{}{}.weight", config.base, config.embedding.name),
            false => format!("{}.weight", config.head.name),
        };
        let view = checkpoint.tensor(&head)?;
        let head = view.to_f32()?;
        view.release();
        Ok(Self { config, decoder, blocks, vectors, head, scale })
    }

    /// The decoder of the same checkpoint.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Frozen numbers held.
    pub fn parameters(&self) -> usize {
        self.head.len() + self.blocks.iter().flatten().map(|linear| linear.weight.len()).sum::<usize>()
    }

    /// Everything that learns by `choice`, in the order of the data.
    pub fn learned(&self, choice: &Choice<'_>) -> Result<Vec<Learned>> {
        let mut learned = Vec::new();
        let mut norm = |names: Vec<String>| -> Result<()> {
            for name in names {
                let values = self.vectors[&name].to_vec1::<f32>()?;
                learned.push(Learned { name, shape: vec![values.len()], start: Some(values) });
            }
            Ok(())
        };
        for (index, spec) in self.config.blocks.iter().enumerate().filter(|(index, _)| choice.blocks.contains(index)) {
            let prefix = format!("{}.", self.config.block_path(index));
            if choice.norms {
                let norms = norms_of(spec, self.config.hidden_size);
                norm(norms.iter().flat_map(|(norm, _)| tensors_of(&prefix, norm)).collect())?;
            }
        }
        if choice.norms {
            norm(self.config.head.norm.iter().flat_map(|norm| tensors_of(&self.config.base, norm)).collect())?;
        }
        for (index, spec) in self.config.blocks.iter().enumerate().filter(|(index, _)| choice.blocks.contains(index)) {
            for linear in spec.linears.iter().filter(|_| choice.rank > 0) {
                let name = self.config.linear_name(index, &linear.name);
                if !choice.targets.matches(&name) {
                    continue;
                }
                let (out_features, in_features) = linear.shape();
                let outer = vec![out_features, choice.rank];
                learned.push(Learned {
                    name: format!("{name}{LORA_A}"),
                    shape: vec![choice.rank, in_features],
                    start: None,
                });
                let start = Some(vec![0.0; out_features * choice.rank]);
                learned.push(Learned { name: format!("{name}{LORA_B}"), shape: outer, start });
            }
        }
        Ok(learned)
    }

    /// What the output projection reads (tokens, hidden), of one sequence. `learned` holds tensors by the names of
    /// [`Learned`]; gradients flow to those that are variables.
    ///
    /// # Errors
    /// A token that the model does not have.
    pub fn hidden(&self, ids: &[u32], learned: &HashMap<String, Tensor>) -> Result<Tensor> {
        let mut turnings: Vec<(Rope, Arc<Turning>)> = Vec::new();
        let mut x = self.decoder.embed(ids, 0)?;
        for (index, spec) in self.config.blocks.iter().enumerate() {
            let turning = spec.attention.rope.as_ref().map(|rope| {
                let rope = Rope::new(rope);
                let known = turnings.iter().find(|(known, _)| *known == rope).map(|(_, turning)| turning.clone());
                known.unwrap_or_else(|| {
                    let turning = Arc::new(Turning::new(rope.clone(), ids.len()));
                    turnings.push((rope, turning.clone()));
                    turning
                })
            });
            let prefix = format!("{}.", self.config.block_path(index));
            x = BlockPass { adapted: self, learned, spec, linears: &self.blocks[index], prefix }.run(&x, turning)?;
        }
        match &self.config.head.norm {
            Some(norm) => self.norm(&x, &self.config.base, norm, learned),
            None => Ok(x),
        }
    }

    /// `x` (rows, features) through a norm whose tensors' names begin with `prefix`.
    fn norm(&self, x: &Tensor, prefix: &str, spec: &NormSpec, learned: &HashMap<String, Tensor>) -> Result<Tensor> {
        let vector = |name: &str| {
            let name = format!("{prefix}{}.{name}", spec.name);
            let found = learned.get(&name).or_else(|| self.vectors.get(&name)).cloned();
            found.ok_or_else(|| Error::Model(format!("the norm `{name}` was not loaded")))
        };
        Ok(match spec.kind {
            NormKind::Rms => ops::norm(x, &vector("weight")?, false, spec.eps)?,
            NormKind::RmsFromOne => ops::norm(x, &(vector("weight")? + 1.0)?, false, spec.eps)?,
            NormKind::Layer => ops::norm(x, &vector("weight")?, true, spec.eps)?.broadcast_add(&vector("bias")?)?,
            NormKind::LayerPlain => {
                let ones = Tensor::from_vec(vec![1f32; x.dim(1)?], x.dim(1)?, x.device())?;
                ops::norm(x, &ones, true, spec.eps)?
            }
        })
    }

    /// Logits (rows, vocabulary) of rows of [`Self::hidden`].
    fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let (vocab, width) = (self.config.vocab_size, self.config.hidden_size);
        let rows = hidden.len() / width;
        let mut logits = vec![0.0; rows * vocab];
        let head = Matrix::new(&self.head, vocab, width);
        product(Matrix::new(hidden, rows, width), head.t(), 1.0, false, &mut logits);
        if let Some(cap) = self.config.head.softcap {
            logits.par_chunks_mut(vocab).for_each(|row| softcap(row, cap));
        }
        logits
    }

    /// Σ over rows of KL(p ‖ q) at temperature T, p of `teacher` by its hidden states `taught`, q of this network by
    /// `hidden`, both (rows, hidden); and the gradient in `hidden` of `share` · T² of that sum (Hinton et al. 2015).
    ///
    /// Logits are held for some rows at a time.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn divergence(
        &self,
        hidden: &Tensor,
        teacher: &Decoder,
        taught: &Tensor,
        temperature: f32,
        share: f64,
    ) -> Result<(f64, Tensor)> {
        let (vocab, width) = (self.config.vocab_size, self.config.hidden_size);
        let (rows, cap) = (hidden.dim(0)?, self.config.head.softcap);
        let mut of_hidden = vec![0.0; rows * width];
        let mut total = 0.0;
        for first in (0..rows).step_by(LOGIT_ROWS) {
            let count = LOGIT_ROWS.min(rows - first);
            let mut logits = with_f32(&hidden.narrow(0, first, count)?, |hidden| self.logits(hidden))?;
            let taught = teacher.logits(&taught.narrow(0, first, count)?)?;
            let apart: Vec<f64> = with_f32(&taught, |taught| {
                let pairs = logits.par_chunks_mut(vocab).zip(taught.par_chunks(vocab));
                pairs
                    .map(|(row, taught)| {
                        let slopes: Option<Vec<f32>> =
                            cap.map(|cap| row.iter().map(|&l| 1.0 - (l / cap) * (l / cap)).collect());
                        let cold: Vec<f32> = taught.iter().map(|&l| l / temperature).collect();
                        row.iter_mut().for_each(|l| *l /= temperature);
                        let (p_lse, q_lse) = (log_sum_exp(&cold), log_sum_exp(row));
                        let apart = kl_divergence(&cold, p_lse, row, q_lse);
                        // ∂ of T² KL in a logit is T (q − p).
                        kl_gradient_row(&cold, p_lse, row, q_lse, (share * f64::from(temperature)) as f32);
                        if let Some(slopes) = slopes {
                            row.iter_mut().zip(slopes).for_each(|(gradient, slope)| *gradient *= slope);
                        }
                        apart
                    })
                    .collect()
            })?;
            total += apart.iter().sum::<f64>();
            let gradient = Matrix::new(&logits, count, vocab);
            let out = &mut of_hidden[first * width..][..count * width];
            product(gradient, Matrix::new(&self.head, vocab, width), 1.0, false, out);
        }
        Ok((total, from_vec(of_hidden, (rows, width))?))
    }

    /// Holds this network, with what `learned` begins with, to the decoder that runs, on the tokens `ids`.
    ///
    /// # Errors
    /// If their logits are apart: the configuration has something that is not known here.
    pub fn compare(&self, ids: &[u32], learned: &HashMap<String, Tensor>) -> Result<()> {
        let expected = with_f32(&self.decoder.logits(&self.decoder.hidden_once(ids)?)?, <[f32]>::to_vec)?;
        let found = with_f32(&self.hidden(ids, learned)?, |hidden| self.logits(hidden))?;
        let most = expected.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()));
        let far = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        match far <= MAX_RELATIVE_DIFFERENCE * most {
            true => Ok(()),
            false => Err(Error::Model(format!(
                "the network that learns gives logits {far} away from those of the decoder (largest {most}); this \
                 configuration is not one it knows"
            ))),
        }
    }

    /// The weight of the linear called `name`, as its checkpoint lays it out, with the adapter of inner matrix `a` and outer
    /// matrix `b` added; nothing if there is no such linear.
    pub fn merged(&self, name: &str, a: &[f32], b: &[f32]) -> Option<Vec<f32>> {
        let (index, at) = self.config.blocks.iter().enumerate().find_map(|(index, spec)| {
            let at = spec.linears.iter().position(|linear| self.config.linear_name(index, &linear.name) == name)?;
            Some((index, at))
        })?;
        let Frozen { weight, out_features, in_features, .. } = &*self.blocks[index][at];
        let rank = a.len() / in_features;
        let mut merged = weight.clone();
        let (a, b) = (Matrix::new(a, rank, *in_features), Matrix::new(b, *out_features, rank));
        product(b, a, self.scale, true, &mut merged);
        Some(match self.config.blocks[index].linears[at].transposed {
            true => turned(&merged, *out_features, *in_features),
            false => merged,
        })
    }
}

/// The norms of a block with their widths, in the order of the data.
fn norms_of(spec: &BlockSpec, hidden: usize) -> Vec<(NormSpec, usize)> {
    let a = &spec.attention;
    let around = |norms: &Norms| [norms.before, norms.added, norms.after];
    let of_heads = match a.qk_norm {
        None => Vec::new(),
        Some(QkNorm::Heads(q, k)) => vec![(q, a.head_dim), (k, a.head_dim)],
        Some(QkNorm::Whole(q, k)) => vec![(q, a.n_heads * a.head_dim), (k, a.n_kv_heads * a.head_dim)],
    };
    let [before, added, after] = around(&spec.attention_norms).map(|norm| norm.map(|norm| (norm, hidden)));
    let mlp = around(&spec.mlp_norms).map(|norm| norm.map(|norm| (norm, hidden)));
    let mut norms: Vec<(NormSpec, usize)> = before.into_iter().chain(of_heads).chain(added).chain(after).collect();
    norms.extend(mlp.into_iter().flatten().filter(|mlp| Some(*mlp) != before));
    norms
}

/// Names of a norm's tensors.
fn tensors_of(prefix: &str, norm: &NormSpec) -> Vec<String> {
    let kinds: &[&str] = match norm.kind {
        NormKind::Rms | NormKind::RmsFromOne => &["weight"],
        NormKind::Layer => &["weight", "bias"],
        NormKind::LayerPlain => &[],
    };
    kinds.iter().map(|kind| format!("{prefix}{}.{kind}", norm.name)).collect()
}

/// (rows, columns) to (columns, rows).
fn turned(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

fn frozen(checkpoint: &Checkpoint, name: &str, spec: &LinearSpec) -> Result<Arc<Frozen>> {
    let (out_features, in_features) = spec.shape();
    let view = checkpoint.tensor(&format!("{name}.weight"))?;
    if !view.dtype().is_float() {
        return Err(view.error("is not of plain numbers, and codes do not learn").into());
    }
    let mut weight = view.to_f32()?;
    view.release();
    if spec.transposed {
        weight = turned(&weight, in_features, out_features);
    }
    let bias = spec.bias.then(|| checkpoint.tensor(&format!("{name}.bias"))?.to_f32()).transpose()?;
    Ok(Arc::new(Frozen { weight, bias, out_features, in_features }))
}

/// One block's way for one sequence.
struct BlockPass<'a> {
    adapted: &'a Adapted,
    learned: &'a HashMap<String, Tensor>,
    spec: &'a BlockSpec,
    linears: &'a [Arc<Frozen>],
    prefix: String,
}

impl BlockPass<'_> {
    fn run(&self, x: &Tensor, turning: Option<Arc<Turning>>) -> Result<Tensor> {
        let read = self.read(x, &self.spec.attention_norms)?;
        let heads = self.attention(&read, turning)?;
        let after = self.write(x, &self.linear(Stage::AttentionOutput, 0, &heads)?, &self.spec.attention_norms)?;
        let read = self.read(if self.spec.parallel { x } else { &after }, &self.spec.mlp_norms)?;
        self.write(&after, &self.linear(Stage::MlpOutput, 0, &self.mlp(&read)?)?, &self.spec.mlp_norms)
    }

    fn norm(&self, x: &Tensor, spec: &NormSpec) -> Result<Tensor> {
        self.adapted.norm(x, &self.prefix, spec, self.learned)
    }

    fn read(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        norms.before.as_ref().map_or_else(|| Ok(x.clone()), |norm| self.norm(x, norm))
    }

    fn write(&self, x: &Tensor, y: &Tensor, norms: &Norms) -> Result<Tensor> {
        let sum = match &norms.added {
            Some(norm) => (x + self.norm(y, norm)?)?,
            None => (x + y)?,
        };
        norms.after.as_ref().map_or_else(|| Ok(sum.clone()), |norm| self.norm(&sum, norm))
    }

    /// The `index`-th linear of `stage`, with its adapter.
    fn linear(&self, stage: Stage, index: usize, x: &Tensor) -> Result<Tensor> {
        let at = self.spec.range(stage).start + index;
        let name = format!("{}{}", self.prefix, self.spec.linears[at].name);
        let matrix = |suffix: &str| self.learned.get(&format!("{name}{suffix}")).cloned();
        let adapter = matrix(LORA_A).zip(matrix(LORA_B)).map(|(a, b)| Adapter { a, b, scale: self.adapted.scale });
        Ok(ops::linear(x, &self.linears[at], adapter.as_ref())?)
    }

    /// Heads' outputs, from the input of q, k and v.
    fn attention(&self, h: &Tensor, turning: Option<Arc<Turning>>) -> Result<Tensor> {
        let a = &self.spec.attention;
        let (n, kv, d, t) = (a.n_heads, a.n_kv_heads, a.head_dim, h.dim(0)?);
        let [mut q, mut k, v] = match a.projection {
            Projection::Separate => {
                let part = |index| self.linear(Stage::Attention, index, h);
                [part(0)?, part(1)?, part(2)?]
            }
            Projection::Fused => {
                let all = self.linear(Stage::Attention, 0, h)?;
                let part = |first: usize, heads: usize| all.narrow(1, first * d, heads * d)?.contiguous();
                [part(0, n)?, part(n, kv)?, part(n + kv, kv)?]
            }
            Projection::Grouped => {
                let all = self.linear(Stage::Attention, 0, h)?.reshape((t, kv, n / kv + 2, d))?;
                let part = |first: usize, heads: usize| {
                    all.narrow(2, first, heads)?.contiguous()?.reshape((t, kv * heads * d))
                };
                [part(0, n / kv)?, part(n / kv, 1)?, part(n / kv + 1, 1)?]
            }
        };
        match &a.qk_norm {
            None => {}
            Some(QkNorm::Whole(of_q, of_k)) => (q, k) = (self.norm(&q, of_q)?, self.norm(&k, of_k)?),
            Some(QkNorm::Heads(of_q, of_k)) => {
                let by_head = |x: &Tensor, heads: usize, norm: &NormSpec| -> Result<Tensor> {
                    Ok(self.norm(&x.reshape((t * heads, d))?, norm)?.reshape((t, heads * d))?)
                };
                (q, k) = (by_head(&q, n, of_q)?, by_head(&k, kv, of_k)?);
            }
        }
        if let Some(turning) = &turning {
            (q, k) = (ops::rotate(&q, turning, d)?, ops::rotate(&k, turning, d)?);
        }
        let heads = Heads { window: a.window, scale: a.scale, softcap: a.softcap, ..Heads::causal(n, kv, d) };
        Ok(ops::attend(&q, &k, &v, heads)?)
    }

    /// What the MLP's last linear reads.
    fn mlp(&self, h: &Tensor) -> Result<Tensor> {
        let (activation, width) = (self.spec.mlp.activation, self.spec.mlp.width);
        let first = self.linear(Stage::Mlp, 0, h)?;
        Ok(match self.spec.mlp.gate {
            Gate::Separate => ops::gate(&first, &self.linear(Stage::Mlp, 1, h)?, activation)?,
            Gate::Fused => {
                let part = |from: usize| first.narrow(1, from, width)?.contiguous();
                ops::gate(&part(0)?, &part(width)?, activation)?
            }
            Gate::None => ops::activate(&first, activation)?,
        })
    }
}

#[cfg(test)]
#[path = "adapted_tests.rs"]
mod tests;
