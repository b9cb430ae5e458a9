//! A decoder-only transformer that runs from a checkpoint, block by block.
//!
//! Linears stand behind [`Linear`], so the same code runs dense and packed weights. A block's way is cut into the four
//! [`Stage`]s at which its linear groups read their inputs; calibration walks through the stages, inference runs them in
//! a row.

use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use scruple_weights::{Checkpoint, TensorView};

use super::{
    config::DecoderConfig,
    linear::{self, Linear, expect_shape},
    norm::RmsNorm,
};
use crate::{
    Error, Result,
    export::Quantization,
    kernel::{
        activation::{add, silu_mul},
        attention::{Heads, attention},
        tensor::{from_vec, with_f32},
    },
};

/// Rows of an elementwise operation one task works on.
const ROWS_PER_TASK: usize = 32;

/// cos and sin of the rotations (Su et al. 2021, eq. 34, with the halves of a head paired as Hugging Face stores them).
#[derive(Debug, Clone)]
pub struct Rope {
    head_dim: usize,
    frequencies: Vec<f64>,
    factor: f64,
}

impl Rope {
    fn new(config: &DecoderConfig) -> Self {
        let (frequencies, factor) = config.rope_scaling.frequencies(config.rope_theta, config.head_dim);
        Self { head_dim: config.head_dim, frequencies, factor }
    }

    /// cos and sin, each (positions, head_dim / 2), of the positions from `first`.
    fn table(&self, first: usize, positions: usize) -> (Vec<f32>, Vec<f32>) {
        // The angle is formed in f32, as the implementations these weights were trained with do.
        let angle = |p: usize| self.frequencies.iter().map(move |&f| f64::from((first + p) as f32 * f as f32));
        let cos = (0..positions).flat_map(|p| angle(p).map(|a| (a.cos() * self.factor) as f32)).collect();
        let sin = (0..positions).flat_map(|p| angle(p).map(|a| (a.sin() * self.factor) as f32)).collect();
        (cos, sin)
    }

    fn rotate(&self, head: &mut [f32], cos: &[f32], sin: &[f32]) {
        let (low, high) = head.split_at_mut(self.head_dim / 2);
        for i in 0..low.len() {
            let (x, y) = (low[i], high[i]);
            low[i] = x * cos[i] - y * sin[i];
            high[i] = y * cos[i] + x * sin[i];
        }
    }
}

/// Keys and values of the positions seen so far: one (positions, head_dim) array a key/value head.
#[derive(Debug, Clone, Default)]
pub struct BlockCache {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

/// The caches of all blocks.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    blocks: Vec<BlockCache>,
    positions: usize,
}

impl KvCache {
    /// Positions held.
    pub fn positions(&self) -> usize {
        self.positions
    }
}

/// The points of a block at which a group of linears reads its input, in the order of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// q, k and v read the normed residual stream.
    Attention,
    /// o reads the heads' outputs.
    AttentionOutput,
    /// gate and up read the normed residual stream.
    Mlp,
    /// down reads the gated product.
    MlpOutput,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 4] = [Self::Attention, Self::AttentionOutput, Self::Mlp, Self::MlpOutput];

    /// Names within a block of the linears that read their input here.
    pub const fn linears(self) -> &'static [&'static str] {
        match self {
            Self::Attention => &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            Self::AttentionOutput => &["self_attn.o_proj"],
            Self::Mlp => &["mlp.gate_proj", "mlp.up_proj"],
            Self::MlpOutput => &["mlp.down_proj"],
        }
    }

    /// Width of the input.
    pub fn in_features(self, config: &DecoderConfig) -> usize {
        match self {
            Self::Attention | Self::Mlp => config.hidden_size,
            Self::AttentionOutput => config.n_heads * config.head_dim,
            Self::MlpOutput => config.intermediate_size,
        }
    }
}

/// (out_features, in_features, has a bias) of a block's linear, by its name within the block.
pub fn linear_shape(config: &DecoderConfig, name: &str) -> (usize, usize, bool) {
    let (d, i, h) = (config.hidden_size, config.intermediate_size, config.head_dim);
    match name {
        "self_attn.q_proj" => (config.n_heads * h, d, config.qkv_bias),
        "self_attn.k_proj" | "self_attn.v_proj" => (config.n_kv_heads * h, d, config.qkv_bias),
        "self_attn.o_proj" => (d, config.n_heads * h, config.o_bias),
        "mlp.gate_proj" | "mlp.up_proj" => (i, d, config.mlp_bias),
        "mlp.down_proj" => (d, i, config.mlp_bias),
        _ => unreachable!("a block has no linear `{name}`"),
    }
}

/// One decoder block.
#[derive(Debug)]
pub struct Block {
    heads: Heads,
    rope: Rope,
    attention_norm: RmsNorm,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    mlp_norm: RmsNorm,
    linears: Vec<Box<dyn Linear>>, // in the order of Stage::ALL × Stage::linears
}

const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const O: usize = 3;
const GATE: usize = 4;
const UP: usize = 5;
const DOWN: usize = 6;

impl Block {
    /// Block `index` of `checkpoint`; weights stay in the mapped file until they are used.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &DecoderConfig,
        quantization: Option<&Quantization>,
        index: usize,
    ) -> Result<Self> {
        let path = format!("model.layers.{index}");
        let norm = |name: &str, features| {
            RmsNorm::load(checkpoint, &format!("{path}.{name}.weight"), features, config.norm_eps)
        };
        let mut linears = Vec::new();
        for name in Stage::ALL.iter().flat_map(|stage| stage.linears()) {
            linears.push(linear::load(
                checkpoint,
                &format!("{path}.{name}"),
                linear_shape(config, name),
                quantization,
            )?);
        }
        let head_norm = |name: &str| if config.qk_norm { norm(name, config.head_dim).map(Some) } else { Ok(None) };
        Ok(Self {
            heads: Heads {
                window: config.sliding_window,
                ..Heads::causal(config.n_heads, config.n_kv_heads, config.head_dim)
            },
            rope: Rope::new(config),
            attention_norm: norm("input_layernorm", config.hidden_size)?,
            q_norm: head_norm("self_attn.q_norm")?,
            k_norm: head_norm("self_attn.k_norm")?,
            mlp_norm: norm("post_attention_layernorm", config.hidden_size)?,
            linears,
        })
    }

    /// The linears that read their input at `stage`.
    pub fn linears(&self, stage: Stage) -> &[Box<dyn Linear>] {
        &self.linears[Self::range(stage)]
    }

    /// Puts another weight in place of the `index`-th linear of `stage`.
    pub fn replace(&mut self, stage: Stage, index: usize, linear: Box<dyn Linear>) {
        let at = Self::range(stage).start + index;
        self.linears[at] = linear;
    }

    fn range(stage: Stage) -> std::ops::Range<usize> {
        match stage {
            Stage::Attention => Q..O,
            Stage::AttentionOutput => O..GATE,
            Stage::Mlp => GATE..DOWN,
            Stage::MlpOutput => DOWN..DOWN + 1,
        }
    }

    /// Input of q, k and v, from the residual stream `x` (tokens, hidden).
    pub fn attention_input(&self, x: &Tensor) -> Result<Tensor> {
        self.attention_norm.forward(x)
    }

    /// Heads' outputs (tokens, heads · head_dim), from the input of q, k and v. The tokens follow those in `cache`.
    pub fn attention(&self, h: &Tensor, cache: &mut BlockCache) -> Result<Tensor> {
        let Heads { n_heads, n_kv_heads, head_dim, .. } = self.heads;
        let tokens = h.dim(0)?;
        let past = cache.keys.first().map_or(0, |keys| keys.len() / head_dim);
        let (cos, sin) = self.rope.table(past, tokens);
        let half = head_dim / 2;
        let turn = |head: &mut [f32], token: usize| {
            self.rope.rotate(head, &cos[token * half..][..half], &sin[token * half..][..half]);
        };

        let mut q = with_f32(&self.linears[Q].forward(h)?, <[f32]>::to_vec)?; // (tokens, n_heads · head_dim)
        q.par_chunks_mut(n_heads * head_dim).enumerate().for_each(|(token, heads)| {
            if let Some(norm) = &self.q_norm {
                norm.in_place(heads);
            }
            heads.chunks_exact_mut(head_dim).for_each(|head| turn(head, token));
        });
        cache.keys.resize_with(n_kv_heads, Vec::new);
        cache.values.resize_with(n_kv_heads, Vec::new);
        let width = n_kv_heads * head_dim;
        let k = self.linears[K].forward(h)?; // (tokens, n_kv_heads · head_dim)
        with_f32(&k, |k| {
            cache.keys.par_iter_mut().enumerate().for_each(|(head, keys)| {
                keys.reserve(tokens * head_dim);
                for (token, row) in k.chunks_exact(width).enumerate() {
                    let start = keys.len();
                    keys.extend_from_slice(&row[head * head_dim..][..head_dim]);
                    if let Some(norm) = &self.k_norm {
                        norm.in_place(&mut keys[start..]);
                    }
                    turn(&mut keys[start..], token);
                }
            });
        })?;
        let v = self.linears[V].forward(h)?; // (tokens, n_kv_heads · head_dim)
        with_f32(&v, |v| {
            cache.values.par_iter_mut().enumerate().for_each(|(head, values)| {
                values.reserve(tokens * head_dim);
                for row in v.chunks_exact(width) {
                    values.extend_from_slice(&row[head * head_dim..][..head_dim]);
                }
            });
        })?;
        let mut out = vec![0.0; q.len()];
        attention(self.heads, &q, &cache.keys, &cache.values, &mut out);
        from_vec(out, (tokens, n_heads * head_dim))
    }

    /// The residual stream after attention: `x` + o(heads).
    pub fn attention_output(&self, x: &Tensor, heads: &Tensor) -> Result<Tensor> {
        sum(x, &self.linears[O].forward(heads)?)
    }

    /// Input of gate and up, from the residual stream.
    pub fn mlp_input(&self, x: &Tensor) -> Result<Tensor> {
        self.mlp_norm.forward(x)
    }

    /// Input of down, (tokens, intermediate), from the input of gate and up.
    pub fn mlp(&self, h: &Tensor) -> Result<Tensor> {
        let gate = self.linears[GATE].forward(h)?;
        let up = self.linears[UP].forward(h)?;
        let shape = gate.dims2()?;
        let mut gate = with_f32(&gate, <[f32]>::to_vec)?;
        with_f32(&up, |up| {
            let chunk = ROWS_PER_TASK * shape.1;
            gate.par_chunks_mut(chunk).zip(up.par_chunks(chunk)).for_each(|(gate, up)| silu_mul(gate, up));
        })?;
        from_vec(gate, shape)
    }

    /// The residual stream after the MLP: `x` + down(hidden).
    pub fn mlp_output(&self, x: &Tensor, hidden: &Tensor) -> Result<Tensor> {
        sum(x, &self.linears[DOWN].forward(hidden)?)
    }

    /// The whole block: residual stream (tokens, hidden) in and out.
    pub fn forward(&self, x: &Tensor, cache: &mut BlockCache) -> Result<Tensor> {
        let heads = self.attention(&self.attention_input(x)?, cache)?;
        let x = self.attention_output(x, &heads)?;
        let hidden = self.mlp(&self.mlp_input(&x)?)?;
        self.mlp_output(&x, &hidden)
    }
}

fn sum(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let mut out = with_f32(x, <[f32]>::to_vec)?;
    with_f32(y, |y| add(&mut out, y))?;
    from_vec(out, x.dims2()?)
}

/// A whole decoder: embedding, blocks, output projection.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    embedding: TensorView,
    blocks: Vec<Block>,
    norm: RmsNorm,
    output: Box<dyn Linear>,
}

/// The tensors outside the blocks: embedding, last norm, output projection.
fn ends(
    checkpoint: &Checkpoint,
    config: &DecoderConfig,
    quantization: Option<&Quantization>,
) -> Result<(TensorView, RmsNorm, Box<dyn Linear>)> {
    let embedding = checkpoint.tensor("model.embed_tokens.weight")?;
    expect_shape(&embedding, &[config.vocab_size, config.hidden_size])?;
    let norm = RmsNorm::load(checkpoint, "model.norm.weight", config.hidden_size, config.norm_eps)?;
    let shape = (config.vocab_size, config.hidden_size, false);
    let name = if config.tied_embeddings { "model.embed_tokens" } else { "lm_head" };
    let output = linear::load(checkpoint, name, shape, quantization)?;
    Ok((embedding, norm, output))
}

/// Residual stream (tokens, hidden) a sequence of token ids begins with.
pub fn embed(embedding: &TensorView, ids: &[u32]) -> Result<Tensor> {
    let (vocab, hidden) = embedding.rows();
    expect_ids(embedding.file(), ids, vocab)?;
    let mut out = vec![0.0; ids.len() * hidden];
    for (&id, row) in ids.iter().zip(out.chunks_exact_mut(hidden)) {
        embedding.read_rows(id as usize..id as usize + 1, row)?;
    }
    from_vec(out, (ids.len(), hidden))
}

/// Refuses token ids that a model of `vocab` tokens does not have; `file` is its weights.
pub fn expect_ids(file: &Path, ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::Text(format!(
            "{}: token id {id} is outside the vocabulary of {vocab}; tokenizer and weights do not belong together",
            file.display()
        ))),
    }
}

impl Decoder {
    /// Builds the decoder of `checkpoint`: checks that every tensor the configuration asks for is there with its shape.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        Self::open_first(checkpoint, usize::MAX)
    }

    /// As [`Decoder::open`], with the first `blocks` blocks only: what a part of a large model does in a second tells
    /// what the whole does.
    pub fn open_first(checkpoint: &Checkpoint, blocks: usize) -> Result<Self> {
        let config = DecoderConfig::from_checkpoint(checkpoint)?;
        let quantization = crate::export::detect(checkpoint)?;
        let blocks = (0..config.n_blocks.min(blocks))
            .map(|index| Block::load(checkpoint, &config, quantization.as_ref(), index))
            .collect::<Result<_>>()?;
        let (embedding, norm, output) = ends(checkpoint, &config, quantization.as_ref())?;
        Ok(Self { config, embedding, blocks, norm, output })
    }

    /// Refuses a dense `checkpoint` that lacks a tensor `config` asks for, or has it in another shape. Blocks are opened
    /// one at a time, so the memory this takes does not grow with the model.
    pub fn check(checkpoint: &Checkpoint, config: &DecoderConfig) -> Result<()> {
        for index in 0..config.n_blocks {
            Block::load(checkpoint, config, None, index)?;
        }
        ends(checkpoint, config, None).map(drop)
    }

    /// Refuses token ids that this model does not have.
    pub fn expect_ids(&self, ids: &[u32]) -> Result<()> {
        expect_ids(self.embedding.file(), ids, self.config.vocab_size)
    }

    /// What was read from `config.json`.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The blocks, first to last.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Last hidden states (tokens, hidden), normed, of `ids` following what is in `cache`.
    pub fn hidden(&self, ids: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        cache.blocks.resize_with(self.blocks.len(), BlockCache::default);
        let mut x = embed(&self.embedding, ids)?;
        for (block, cache) in self.blocks.iter().zip(&mut cache.blocks) {
            x = block.forward(&x, cache)?;
        }
        cache.positions += ids.len();
        self.norm.forward(&x)
    }

    /// Hidden states of a sequence on its own; no cache is kept beyond one block.
    pub fn hidden_once(&self, ids: &[u32]) -> Result<Tensor> {
        let mut x = embed(&self.embedding, ids)?;
        for block in &self.blocks {
            x = block.forward(&x, &mut BlockCache::default())?;
        }
        self.norm.forward(&x)
    }

    /// Logits (rows, vocab) of rows of [`Decoder::hidden`].
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.output.forward(hidden)
    }

    /// Logits of the last of `ids`, following what is in `cache`.
    pub fn next_logits(&self, ids: &[u32], cache: &mut KvCache) -> Result<Vec<f32>> {
        let hidden = self.hidden(ids, cache)?;
        let last = hidden.narrow(0, hidden.dim(0)? - 1, 1)?;
        with_f32(&self.logits(&last)?, <[f32]>::to_vec)
    }

    /// Bits of the blocks' linears on disk, with scales and indices, and their number of weights.
    pub fn linear_bits(&self) -> (u64, u64) {
        let all = self.blocks.iter().flat_map(|block| &block.linears);
        all.fold((0, 0), |(bits, weights), linear| {
            let (out_features, in_features) = linear.shape();
            (bits + linear.storage_bits(), weights + (out_features * in_features) as u64)
        })
    }

    /// Where the tensors of this model live.
    pub fn device(&self) -> &Device {
        &Device::Cpu
    }
}

/// The parts of a decoder the block-by-block loop needs beside the blocks.
pub struct Ends {
    /// (vocab, hidden), as stored.
    pub embedding: TensorView,
    /// The norm before the output projection.
    pub norm: RmsNorm,
    /// The output projection.
    pub output: Box<dyn Linear>,
}

impl Ends {
    /// Opens embedding, last norm and output projection of a dense checkpoint.
    pub fn load(checkpoint: &Checkpoint, config: &DecoderConfig) -> Result<Self> {
        let (embedding, norm, output) = ends(checkpoint, config, None)?;
        Ok(Self { embedding, norm, output })
    }
}
