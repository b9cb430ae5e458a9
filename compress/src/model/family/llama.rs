//! Families of Llama's shape: RMS norms, rotary grouped-query attention and a gated MLP, each family a row of switches.

use serde_json::Value;

use super::Family;
use crate::{
    Result,
    kernel::activation::Activation,
    model::{
        config::{DecoderConfig, MAX_BLOCKS, MAX_EXPERTS},
        fields::Fields,
        rope::{self, RopeRules, RopeScaling, RopeSpec},
        spec::{
            AttentionSpec, BlockSpec, EmbeddingSpec, ExpertsSpec, Gate, HeadSpec, LinearSpec, MlpSpec, NormKind,
            NormSpec, Norms, Projection, QkNorm, Stage,
        },
    },
};

/// Where a block norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placement {
    /// What attention and MLP read.
    Before,
    /// What they read and what they add.
    Around,
    /// What they add.
    Added,
}

/// Which blocks see a window only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Window {
    /// None, whatever the config says.
    Never,
    /// All, where there is a `sliding_window`, or this one where the config has no such field.
    Always(Option<usize>),
    /// Those of `layer_types`, or from `max_window_layers` on, with `use_sliding_window`.
    FromSome,
    /// All, with `use_sliding_window`.
    AllIfUsed,
    /// Those of `layer_types`, or all but every so many-th.
    AllBut(usize),
}

/// Norms on q and k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QkNorms {
    None,
    Heads,
    Whole,
}

/// Mixtures of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Experts {
    None,
    Mixtral,
    Qwen,
}

/// The switches in which a family differs from Llama.
#[derive(Debug, Clone, Copy)]
pub(super) struct Switches {
    norm: NormKind,
    eps: f64,
    placement: Placement,
    /// q, k, v in one linear, gate and up in one.
    fused: bool,
    /// Biases on q, k and v, whatever the config says.
    qkv_bias: bool,
    /// `attention_bias` puts biases on q, k, v and o.
    attention_bias: bool,
    qk_norm: QkNorms,
    window: Window,
    /// Width of a head where the config has none; hidden size over heads for most.
    head_dim: Option<usize>,
    rope: RopeRules,
    /// Blocks with a window turn by `rope_local_base_freq`.
    local_rope: bool,
    /// Scores are scaled by `query_pre_attn_scalar`, not by the width of a head.
    query_scalar: bool,
    /// Caps of scores and logits where the config has no such fields; `None` for families that do not read them.
    caps: Option<(Option<f64>, Option<f64>)>,
    /// Rows of the embedding are multiplied by the root of their width.
    scaled_embedding: bool,
    /// The output projection is the embedding where the config does not say.
    tied: bool,
    experts: Experts,
    activation: &'static [&'static str],
}

pub(super) const LLAMA: Switches = Switches {
    norm: NormKind::Rms,
    eps: 1e-6,
    placement: Placement::Before,
    fused: false,
    qkv_bias: false,
    attention_bias: true,
    qk_norm: QkNorms::None,
    window: Window::Never,
    head_dim: None,
    rope: RopeRules::USUAL,
    local_rope: false,
    query_scalar: false,
    caps: None,
    scaled_embedding: false,
    tied: false,
    experts: Experts::None,
    activation: &["silu", "swish"],
};

pub(super) const MISTRAL: Switches = Switches { attention_bias: false, window: Window::Always(Some(4096)), ..LLAMA };

pub(super) const QWEN2: Switches =
    Switches { qkv_bias: true, attention_bias: false, window: Window::FromSome, ..LLAMA };

pub(super) const QWEN3: Switches =
    Switches { qk_norm: QkNorms::Heads, window: Window::FromSome, head_dim: Some(128), ..LLAMA };

pub(super) const OLMO2: Switches =
    Switches { eps: 1e-5, placement: Placement::Added, qk_norm: QkNorms::Whole, ..LLAMA };

pub(super) const PHI3: Switches = Switches {
    eps: 1e-5,
    fused: true,
    attention_bias: false,
    window: Window::Always(None),
    rope: RopeRules { partial: true, ..RopeRules::USUAL },
    ..LLAMA
};

pub(super) const MIXTRAL: Switches = Switches {
    eps: 1e-5,
    attention_bias: false,
    window: Window::Always(None),
    rope: RopeRules { theta: 1e6, ..RopeRules::USUAL },
    experts: Experts::Mixtral,
    ..LLAMA
};

pub(super) const QWEN3_MOE: Switches =
    Switches { qk_norm: QkNorms::Heads, window: Window::AllIfUsed, experts: Experts::Qwen, ..LLAMA };

pub(super) const GEMMA: Switches = Switches {
    norm: NormKind::RmsFromOne,
    head_dim: Some(256),
    scaled_embedding: true,
    tied: true,
    activation: &["gelu_pytorch_tanh", "gelu", "gelu_new"],
    ..LLAMA
};

pub(super) const GEMMA2: Switches = Switches {
    placement: Placement::Around,
    window: Window::AllBut(2),
    query_scalar: true,
    caps: Some((Some(50.0), Some(30.0))),
    ..GEMMA
};

pub(super) const GEMMA3: Switches = Switches {
    qk_norm: QkNorms::Heads,
    window: Window::AllBut(6),
    rope: RopeRules { theta: 1e6, ..RopeRules::USUAL },
    local_rope: true,
    caps: Some((None, None)),
    ..GEMMA2
};

/// Shapes that all blocks share.
struct Shapes {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
    max_positions: usize,
}

/// The configuration of a model of `switches`' family.
pub(super) fn read(
    fields: &Fields<'_>,
    family: &'static Family,
    model_type: &str,
    switches: &Switches,
) -> Result<DecoderConfig> {
    let hidden = fields.count_or("hidden_size", None)?;
    let heads = fields.count_or("num_attention_heads", None)?;
    if fields.get("head_dim").is_none() && switches.head_dim.is_none() && hidden % heads != 0 {
        return Err(fields.refuse(format!(
            "`hidden_size` {hidden} is not a multiple of `num_attention_heads` {heads}, and there is no `head_dim`"
        )));
    }
    if fields.flag_or("use_bidirectional_attention", false)? {
        return Err(fields
            .refuse("`use_bidirectional_attention` is true: the model is an encoder, and only decoders are run here"));
    }
    let shapes = Shapes {
        hidden,
        heads,
        kv_heads: fields.count_or("num_key_value_heads", Some(heads))?,
        head_dim: fields.count_or("head_dim", Some(switches.head_dim.unwrap_or(hidden / heads)))?,
        intermediate: fields.count_or("intermediate_size", None)?,
        max_positions: fields.count_or("max_position_embeddings", Some(2048))?,
    };
    let n_blocks = fields.limited_count("num_hidden_layers", MAX_BLOCKS)?;
    let eps = fields.number_or("rms_norm_eps", Some(switches.eps))? as f32;
    let activation = activation(fields, switches)?;
    let windows = windows(fields, switches, n_blocks)?;
    let (score_cap, logit_cap) = caps(fields, switches)?;
    let experts = Mixture::read(fields, switches, n_blocks, &shapes)?;
    let bias = Biases::read(fields, switches)?;
    let norm = |name: &'static str| NormSpec { name, kind: switches.norm, eps };
    let scale = match switches.query_scalar {
        true => 1.0 / fields.number_or("query_pre_attn_scalar", Some(256.0))?.sqrt(),
        false => 1.0 / (shapes.head_dim as f64).sqrt(),
    };
    let (attention_norms, mlp_norms) = norms(switches, norm);
    let qk_norm = match switches.qk_norm {
        QkNorms::None => None,
        QkNorms::Heads => Some(QkNorm::Heads(norm("self_attn.q_norm"), norm("self_attn.k_norm"))),
        QkNorms::Whole => Some(QkNorm::Whole(norm("self_attn.q_norm"), norm("self_attn.k_norm"))),
    };

    let mut blocks = Vec::with_capacity(n_blocks);
    for (index, window) in windows.into_iter().enumerate() {
        let mixture = experts.as_ref().filter(|mixture| mixture.blocks[index]);
        let width = mixture.map_or(shapes.intermediate, |mixture| mixture.width);
        let mut linears = attention_linears(&shapes, switches, bias);
        match mixture {
            Some(mixture) => linears.extend(mixture.linears(shapes.hidden)),
            None => linears.extend(mlp_linears(&shapes, switches, bias)),
        }
        blocks.push(BlockSpec {
            attention: AttentionSpec {
                n_heads: shapes.heads,
                n_kv_heads: shapes.kv_heads,
                head_dim: shapes.head_dim,
                projection: if switches.fused { Projection::Fused } else { Projection::Separate },
                qk_norm,
                rope: Some(block_rope(fields, switches, window.is_some(), &shapes)?),
                window,
                scale: scale as f32,
                softcap: score_cap,
            },
            attention_norms,
            mlp: MlpSpec {
                activation,
                gate: if switches.fused { Gate::Fused } else { Gate::Separate },
                width,
                experts: mixture.map(|mixture| mixture.spec.clone()),
            },
            mlp_norms,
            parallel: false,
            linears,
        });
    }
    Ok(DecoderConfig {
        model_type: model_type.to_string(),
        hidden_size: hidden,
        vocab_size: fields.count_or("vocab_size", None)?,
        max_positions: shapes.max_positions,
        n_blocks,
        base: family.bases[0].to_string(),
        layers: "layers",
        embedding: EmbeddingSpec {
            name: "embed_tokens",
            width: hidden,
            scale: if switches.scaled_embedding { (hidden as f64).sqrt() as f32 } else { 1.0 },
            positions: None,
            projected: false,
        },
        blocks,
        head: HeadSpec {
            norm: Some(norm("norm")),
            tied: fields.flag_or("tie_word_embeddings", switches.tied)?,
            name: "lm_head".into(),
            softcap: logit_cap,
        },
        eos: fields.token_ids("eos_token_id")?,
        bos: fields.token_ids("bos_token_id")?.first().copied(),
        text_part: false,
        bases: family.bases,
    })
}

/// The activation: Gemma names it `hidden_activation`, and its first configurations say `gelu` in `hidden_act` and mean
/// the tanh form they were trained with.
fn activation(fields: &Fields<'_>, switches: &Switches) -> Result<Activation> {
    let allowed = switches.activation;
    if switches.norm != NormKind::RmsFromOne {
        return fields.activation("hidden_act", allowed[0], allowed);
    }
    if fields.get("hidden_activation").is_some() {
        return fields.activation("hidden_activation", allowed[0], allowed);
    }
    match fields.activation("hidden_act", allowed[0], allowed)? {
        Activation::Gelu => Ok(Activation::GeluTanh),
        other => Ok(other),
    }
}

/// Norms around attention and MLP.
fn norms(switches: &Switches, norm: impl Fn(&'static str) -> NormSpec) -> (Norms, Norms) {
    let before = |name| Norms { before: Some(norm(name)), ..Norms::default() };
    let added = |name| Norms { added: Some(norm(name)), ..Norms::default() };
    match switches.placement {
        Placement::Before => (before("input_layernorm"), before("post_attention_layernorm")),
        Placement::Added => (added("post_attention_layernorm"), added("post_feedforward_layernorm")),
        Placement::Around => (
            Norms { added: Some(norm("post_attention_layernorm")), ..before("input_layernorm") },
            Norms { added: Some(norm("post_feedforward_layernorm")), ..before("pre_feedforward_layernorm") },
        ),
    }
}

/// The window of each block.
fn windows(fields: &Fields<'_>, switches: &Switches, n_blocks: usize) -> Result<Vec<Option<usize>>> {
    let key = "sliding_window";
    let class = fields.defaults.iter().any(|(name, _)| *name == key);
    let (default, used) = match switches.window {
        Window::Never => return Ok(vec![None; n_blocks]),
        Window::Always(default) => (default, true),
        Window::FromSome | Window::AllIfUsed => (None, false),
        Window::AllBut(_) => (Some(4096), true),
    };
    let window = match fields.object.get(key) {
        Some(Value::Null) => None,
        None if !class => default,
        _ => Some(fields.count_or(key, None)?),
    };
    if window.is_none() || !fields.flag_or("use_sliding_window", used)? {
        return Ok(vec![None; n_blocks]);
    }
    let listed = fields.sliding_blocks(n_blocks)?;
    let slides: Vec<bool> = match (listed, switches.window) {
        (Some(listed), _) => listed,
        (None, Window::FromSome) => {
            let first = match fields.get("max_window_layers") {
                Some(value) if value.as_u64() == Some(0) => 0,
                _ => fields.count_or("max_window_layers", Some(28))?,
            };
            (0..n_blocks).map(|index| index >= first).collect()
        }
        (None, Window::AllBut(every)) => {
            let keys = ["sliding_window_pattern", "_sliding_window_pattern"];
            let key = keys.into_iter().find(|key| fields.get(key).is_some()).unwrap_or(keys[0]);
            let every = fields.count_or(key, Some(every))?;
            (0..n_blocks).map(|index| (index + 1) % every != 0).collect()
        }
        _ => vec![true; n_blocks],
    };
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}

/// Caps of attention scores and logits.
fn caps(fields: &Fields<'_>, switches: &Switches) -> Result<(Option<f32>, Option<f32>)> {
    let Some((scores, logits)) = switches.caps else { return Ok((None, None)) };
    let cap = |key: &str, default: Option<f64>| match fields.object.get(key) {
        None => Ok(default),
        Some(_) => fields.number(key),
    };
    let score_cap = cap("attn_logit_softcapping", scores)?;
    if switches.local_rope && score_cap.is_some() {
        // Gemma 3 has the field and trained without it; transformers reads and does not apply it.
        return Err(fields.refuse("`attn_logit_softcapping` is set, which no released model of this family has"));
    }
    Ok((score_cap.map(|cap| cap as f32), cap("final_logit_softcapping", logits)?.map(|cap| cap as f32)))
}

fn block_rope(fields: &Fields<'_>, switches: &Switches, slides: bool, shapes: &Shapes) -> Result<RopeSpec> {
    if switches.local_rope && slides && !rope::differs_by_kind(fields) {
        let theta = fields.number_or("rope_local_base_freq", Some(10_000.0))?;
        return Ok(RopeSpec { theta, scaling: RopeScaling::None, width: shapes.head_dim });
    }
    let kind = if slides { "sliding_attention" } else { "full_attention" };
    rope::read(fields, switches.rope, kind, shapes.head_dim, shapes.max_positions)
}

#[derive(Debug, Clone, Copy)]
struct Biases {
    qkv: bool,
    output: bool,
    mlp: bool,
}

impl Biases {
    fn read(fields: &Fields<'_>, switches: &Switches) -> Result<Self> {
        let attention = switches.attention_bias && fields.flag_or("attention_bias", false)?;
        let mlp = fields.flag_or("mlp_bias", false)?;
        Ok(Self { qkv: attention || switches.qkv_bias, output: attention, mlp })
    }
}

/// A linear of a dense block.
fn linear(name: &str, stage: Stage, (out_features, in_features): (usize, usize), bias: bool) -> LinearSpec {
    LinearSpec { name: name.into(), stage, expert: None, out_features, in_features, bias, transposed: false }
}

fn attention_linears(shapes: &Shapes, switches: &Switches, bias: Biases) -> Vec<LinearSpec> {
    // A damaged file's numbers may be too large for their product; the tensors' shapes will contradict them.
    let width = |heads: usize| heads.saturating_mul(shapes.head_dim);
    let (queries, keys) = (width(shapes.heads), width(shapes.kv_heads));
    let read = |name, rows| linear(name, Stage::Attention, (rows, shapes.hidden), bias.qkv);
    let mut linears = match switches.fused {
        true => vec![read("self_attn.qkv_proj", queries.saturating_add(keys).saturating_add(keys))],
        false => {
            vec![read("self_attn.q_proj", queries), read("self_attn.k_proj", keys), read("self_attn.v_proj", keys)]
        }
    };
    linears.push(linear("self_attn.o_proj", Stage::AttentionOutput, (shapes.hidden, queries), bias.output));
    linears
}

fn mlp_linears(shapes: &Shapes, switches: &Switches, bias: Biases) -> Vec<LinearSpec> {
    let (hidden, width) = (shapes.hidden, shapes.intermediate);
    let mut linears = match switches.fused {
        true => vec![linear("mlp.gate_up_proj", Stage::Mlp, (2 * width, hidden), bias.mlp)],
        false => vec![
            linear("mlp.gate_proj", Stage::Mlp, (width, hidden), bias.mlp),
            linear("mlp.up_proj", Stage::Mlp, (width, hidden), bias.mlp),
        ],
    };
    linears.push(linear("mlp.down_proj", Stage::MlpOutput, (hidden, width), bias.mlp));
    linears
}

/// The mixtures of experts of a model.
struct Mixture {
    spec: ExpertsSpec,
    width: usize,
    /// Which blocks have one.
    blocks: Vec<bool>,
    /// Names of an expert's gate, up and down, after its number.
    names: [&'static str; 3],
    path: &'static str,
}

impl Mixture {
    fn read(fields: &Fields<'_>, switches: &Switches, n_blocks: usize, shapes: &Shapes) -> Result<Option<Self>> {
        let (router, path, names) = match switches.experts {
            Experts::None => return Ok(None),
            Experts::Mixtral => ("block_sparse_moe.gate", "block_sparse_moe.experts", ["w1", "w3", "w2"]),
            Experts::Qwen => ("mlp.gate", "mlp.experts", ["gate_proj", "up_proj", "down_proj"]),
        };
        let key = ["num_local_experts", "num_experts"].into_iter().find(|key| fields.get(key).is_some());
        let count = fields.limited_count(key.unwrap_or("num_local_experts"), MAX_EXPERTS)?;
        let qwen = switches.experts == Experts::Qwen;
        let top_k = fields.count_or("num_experts_per_tok", Some(if qwen { 8 } else { 2 }))?;
        if top_k > count {
            return Err(fields.refuse(format!("`num_experts_per_tok` is {top_k}, of {count} experts")));
        }
        let mut blocks = vec![true; n_blocks];
        let (mut width, mut normalised) = (shapes.intermediate, true);
        if qwen {
            let step = fields.count_or("decoder_sparse_step", Some(1))?;
            (0..n_blocks).for_each(|index| blocks[index] = (index + 1) % step == 0);
            fields.block_indices("mlp_only_layers", n_blocks)?.into_iter().for_each(|index| blocks[index] = false);
            width = fields.count_or("moe_intermediate_size", None)?;
            normalised = fields.flag_or("norm_topk_prob", false)?;
        }
        let spec = ExpertsSpec { router, count, top_k, normalised };
        Ok(Some(Self { spec, width, blocks, names, path }))
    }

    fn linears(&self, hidden: usize) -> Vec<LinearSpec> {
        let [gate, up, down] = self.names;
        let linear = |expert: usize, name: &str, stage, shape| LinearSpec {
            expert: Some(expert),
            ..linear(&format!("{}.{expert}.{name}", self.path), stage, shape, false)
        };
        let first = (0..self.spec.count)
            .flat_map(|expert| [gate, up].map(|name| linear(expert, name, Stage::Mlp, (self.width, hidden))));
        let second = (0..self.spec.count).map(|expert| linear(expert, down, Stage::MlpOutput, (hidden, self.width)));
        first.chain(second).collect()
    }
}
