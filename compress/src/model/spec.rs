//! A block as data: its norms, attention, MLP, residual wiring, and the linears that stand at its [`Stage`]s.
//!
//! A family's adapter (`family/`) builds one [`BlockSpec`] a block from `config.json`; [`Block`](super::block::Block)
//! interprets it. Names in the checkpoint, fusions and transposes are said here and nowhere else.

use super::rope::RopeSpec;
use crate::kernel::activation::Activation;

/// The points of a block at which a group of linears reads its input, in the order of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// q, k and v read the stream, normed where the block norms before.
    Attention,
    /// o reads the heads' outputs.
    AttentionOutput,
    /// gate and up (or the first linear) read the stream; of a mixture of experts, each expert reads its own tokens.
    Mlp,
    /// down (or the second linear) reads the activations between.
    MlpOutput,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 4] = [Self::Attention, Self::AttentionOutput, Self::Mlp, Self::MlpOutput];
}

/// One linear of a block.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearSpec {
    /// Name within the block, without `.weight`.
    pub name: String,
    /// Where it reads its input.
    pub stage: Stage,
    /// The expert it belongs to.
    pub expert: Option<usize>,
    /// Rows of the weight.
    pub out_features: usize,
    /// Columns of the weight.
    pub in_features: usize,
    /// There is a bias (out_features).
    pub bias: bool,
    /// The checkpoint holds the weight as (in_features, out_features): GPT-2's `Conv1D`.
    pub transposed: bool,
}

impl LinearSpec {
    /// (out_features, in_features).
    pub fn shape(&self) -> (usize, usize) {
        (self.out_features, self.in_features)
    }

    /// Number of weights.
    pub fn weights(&self) -> u64 {
        (self.out_features * self.in_features) as u64
    }
}

/// What a norm divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// The root of the mean square.
    Rms,
    /// The same, by weights stored less one (Gemma).
    RmsFromOne,
    /// Mean and deviation, with weight and bias.
    Layer,
    /// Mean and deviation alone: no tensors.
    LayerPlain,
}

/// A norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Name of the module; empty where it has no tensors.
    pub name: &'static str,
    /// What it does.
    pub kind: NormKind,
    /// ε.
    pub eps: f32,
}

/// The norms around attention or MLP: `x ← after(x + added(f(before(x))))`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Norms {
    /// Of what it reads (pre-norm).
    pub before: Option<NormSpec>,
    /// Of what it adds to the stream (Gemma 2, OLMo 2).
    pub added: Option<NormSpec>,
    /// Of the sum (the first transformers, OPT-350M).
    pub after: Option<NormSpec>,
}

/// How q, k and v come out of their linears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projection {
    /// Three linears.
    Separate,
    /// One linear; its outputs are all of q, all of k, all of v.
    Fused,
    /// One linear; its outputs are, for each key/value head in turn, the query heads that share it, its k and its v.
    Grouped,
}

/// Norms on q and k before the rotation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum QkNorm {
    /// One weight of a head's width for all heads.
    Heads(NormSpec, NormSpec),
    /// One weight over the whole width of q, one over that of k (OLMo 2).
    Whole(NormSpec, NormSpec),
}

/// Attention of one block.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// How q, k and v come out of their linears.
    pub projection: Projection,
    /// Norms on q and k.
    pub qk_norm: Option<QkNorm>,
    /// Rotary positions; none where positions are learned.
    pub rope: Option<RopeSpec>,
    /// A query sees this many latest keys only (itself included).
    pub window: Option<usize>,
    /// Factor on the products of queries and keys.
    pub scale: f32,
    /// A scaled score s becomes `cap · tanh(s / cap)`.
    pub softcap: Option<f32>,
}

/// How an MLP's first linears make its hidden numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// f(gate) · up, by two linears.
    Separate,
    /// The same by one linear: its outputs are all of gate, all of up.
    Fused,
    /// f(first), by one linear.
    None,
}

/// A mixture of experts: each token runs through the `top_k` it is routed to.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsSpec {
    /// Name of the router within the block, a linear (experts, hidden) that stays dense.
    pub router: &'static str,
    /// Experts.
    pub count: usize,
    /// Experts a token runs through.
    pub top_k: usize,
    /// The weights of a token's experts are divided by their sum.
    pub normalised: bool,
}

/// MLP of one block.
#[derive(Debug, Clone, PartialEq)]
pub struct MlpSpec {
    /// f.
    pub activation: Activation,
    /// How it is used.
    pub gate: Gate,
    /// Hidden numbers, of one expert where there are several.
    pub width: usize,
    /// The experts, if there are any.
    pub experts: Option<ExpertsSpec>,
}

/// One decoder block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSpec {
    /// Attention.
    pub attention: AttentionSpec,
    /// Norms around it.
    pub attention_norms: Norms,
    /// MLP.
    pub mlp: MlpSpec,
    /// Norms around it.
    pub mlp_norms: Norms,
    /// The MLP reads what attention reads, not what it leaves: both add to the same stream.
    pub parallel: bool,
    /// The linears, in the order of the stages and, within one, of the experts.
    pub linears: Vec<LinearSpec>,
}

impl BlockSpec {
    /// The linears that read their input at `stage`.
    pub fn at(&self, stage: Stage) -> &[LinearSpec] {
        &self.linears[self.range(stage)]
    }

    /// Their places in [`Self::linears`].
    pub fn range(&self, stage: Stage) -> std::ops::Range<usize> {
        let start = self.linears.partition_point(|linear| linear.stage < stage);
        start..self.linears.partition_point(|linear| linear.stage <= stage)
    }

    /// Width of the input at `stage`; of one expert's.
    pub fn in_features(&self, stage: Stage) -> usize {
        self.at(stage)[0].in_features
    }

    /// Numbers a token has at `stage`: the input's width, that of all its experts where they differ.
    pub fn token_width(&self, stage: Stage) -> usize {
        let experts = self.mlp.experts.as_ref().filter(|_| stage == Stage::MlpOutput);
        self.in_features(stage) * experts.map_or(1, |experts| experts.top_k)
    }

    /// Experts whose inputs at `stage` are gathered apart; 1 where all linears read the same.
    pub fn groups(&self, stage: Stage) -> usize {
        let experts = self.mlp.experts.as_ref().filter(|_| stage >= Stage::Mlp);
        experts.map_or(1, |experts| experts.count)
    }
}

/// Positions added to the embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionsSpec {
    /// Name of the table after the model's base.
    pub name: &'static str,
    /// Rows before that of position 0.
    pub offset: usize,
}

/// What stands before the blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingSpec {
    /// Name of the table after the model's base, without `.weight`.
    pub name: &'static str,
    /// Its width; the stream's but where `projected`.
    pub width: usize,
    /// Factor on its rows.
    pub scale: f32,
    /// Learned positions.
    pub positions: Option<PositionsSpec>,
    /// `project_in` and `project_out` stand between it and the stream (OPT-350M).
    pub projected: bool,
}

/// What stands behind the blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadSpec {
    /// The norm of the last stream.
    pub norm: Option<NormSpec>,
    /// The output projection is the embedding.
    pub tied: bool,
    /// Name of the output projection where it is not.
    pub name: String,
    /// A logit l becomes `cap · tanh(l / cap)`.
    pub softcap: Option<f32>,
}
