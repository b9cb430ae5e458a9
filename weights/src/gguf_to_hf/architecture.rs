//! Model families as data: which tensors a network has, what they are called on either side, and their shapes.

use std::collections::HashSet;

use serde_json::{Map, Value as Json, json};

use super::{Facts, HfTensor, RowOrder, TokenIds, as_size, rope};
use crate::format::gguf::Value;

/// A model family that is converted, in either direction.
pub(crate) struct Family {
    /// `general.architecture`.
    pub(crate) gguf: &'static str,
    /// `model_type` and `architectures` of `config.json`.
    pub(crate) model_type: &'static str,
    /// A further `model_type` of the same mathematics, read from `config.json` only.
    pub(crate) also: &'static [&'static str],
    pub(crate) class: &'static str,
    /// Whether llama.cpp reorders the rows of Q and K for this architecture.
    pub(crate) adjacent_pairs: bool,
    pub(crate) qkv_bias: Bias,
    /// Whether the output projection has a bias when Q, K and V have.
    pub(crate) output_bias: bool,
    /// Whether the MLP may have biases.
    pub(crate) mlp_bias: bool,
    pub(crate) qk_norm: bool,
    pub(crate) norms: Norms,
    /// What `config.json` calls the activation, and the key it stands under.
    pub(crate) activation: (&'static str, &'static str),
    /// Metadata of the list [`REFUSED`] that this family does have.
    pub(crate) has: &'static [&'static str],
    /// Keys of `config.json` beyond the common ones.
    extra: fn(&Network) -> Vec<(&'static str, Json)>,
}

/// Where a layer has its norms, and how their weights are stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Norms {
    /// Before attention and before the MLP.
    Before,
    /// Before and after each (Gemma). Hugging Face stores weights whose 1 is left out, llama.cpp puts it in.
    AroundFromZero,
}

/// Whether a family has biases on Q, K and V.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    /// The file decides: all layers have them, or none.
    Maybe,
    Always,
    Never,
}

pub(crate) const FAMILIES: &[Family] = &[
    Family {
        gguf: "llama",
        model_type: "llama",
        also: &["mistral"],
        class: "LlamaForCausalLM",
        adjacent_pairs: true,
        qkv_bias: Bias::Maybe,
        output_bias: true,
        mlp_bias: true,
        qk_norm: false,
        norms: Norms::Before,
        activation: ("hidden_act", "silu"),
        has: &[],
        extra: |network| {
            vec![
                ("attention_bias", json!(network.attention_bias)),
                ("head_dim", json!(network.head_dim)),
                ("mlp_bias", json!(network.mlp_bias)),
                ("pretraining_tp", json!(1)),
            ]
        },
    },
    Family {
        gguf: "qwen2",
        model_type: "qwen2",
        also: &[],
        class: "Qwen2ForCausalLM",
        adjacent_pairs: false,
        qkv_bias: Bias::Always,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        norms: Norms::Before,
        activation: ("hidden_act", "silu"),
        has: &[],
        extra: |network| {
            let mut keys = no_window(network);
            if network.head_dim * network.heads != network.hidden_size {
                keys.push(("head_dim", json!(network.head_dim)));
            }
            keys
        },
    },
    Family {
        gguf: "qwen3",
        model_type: "qwen3",
        also: &[],
        class: "Qwen3ForCausalLM",
        adjacent_pairs: false,
        qkv_bias: Bias::Maybe,
        output_bias: true,
        mlp_bias: false,
        qk_norm: true,
        norms: Norms::Before,
        activation: ("hidden_act", "silu"),
        has: &[],
        extra: |network| {
            let mut keys = no_window(network);
            keys.push(("attention_bias", json!(network.attention_bias)));
            keys.push(("head_dim", json!(network.head_dim)));
            keys
        },
    },
    Family {
        gguf: "gemma3",
        model_type: "gemma3_text",
        also: &[],
        class: "Gemma3ForCausalLM",
        adjacent_pairs: false,
        qkv_bias: Bias::Never,
        output_bias: false,
        mlp_bias: false,
        qk_norm: true,
        norms: Norms::AroundFromZero,
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        has: &["attention.sliding_window", "attention.sliding_window_pattern"],
        extra: |network| {
            // The 62-layer model alone scores by the width a head would have without `head_dim`.
            let scalar = if network.layers == 62 { network.hidden_size / network.heads } else { network.head_dim };
            let full = |layer: usize| (layer + 1).is_multiple_of(network.window_period);
            let kind = |layer| if full(layer) { "full_attention" } else { "sliding_attention" };
            vec![
                ("attention_bias", json!(false)),
                ("attn_logit_softcapping", Json::Null),
                ("final_logit_softcapping", Json::Null),
                ("head_dim", json!(network.head_dim)),
                ("layer_types", (0..network.layers).map(kind).collect()),
                ("query_pre_attn_scalar", json!(scalar)),
                ("rope_local_base_freq", json!(network.window_rope_theta)),
                ("sliding_window", json!(network.window)),
            ]
        },
    },
];

/// Qwen's switches for attention windows, off.
fn no_window(network: &Network) -> Vec<(&'static str, Json)> {
    vec![
        ("max_window_layers", json!(network.layers)),
        ("sliding_window", Json::Null),
        ("use_sliding_window", json!(false)),
    ]
}

/// Metadata (after the architecture's name) that changes the mathematics in ways the families above do not have.
const REFUSED: &[&str] = &[
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.output_scale",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.temperature_scale",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_count",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "rope.dimension_sections",
    "use_parallel_residual",
];

/// The divisors of rope's frequencies, which are no weight.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

/// A dimension of an expected shape.
#[derive(Clone, Copy)]
enum Dim {
    Hidden,
    Intermediate,
    /// All query heads together.
    Queries,
    /// All key (or value) heads together.
    Keys,
    /// One head.
    Head,
}

/// When a tensor of the table must be there.
#[derive(Clone, Copy)]
enum When {
    Always,
    QkvBias,
    OutputBias,
    MlpBias,
    QkNorm,
    /// Norms before attention and MLP only.
    NormsBefore,
    /// Norms before and after each.
    NormsAround,
}

/// A tensor of one layer: name after `blk.N.`, name after `model.layers.N.`, shape, condition, whether rope turns it.
type LayerTensor = (&'static str, &'static str, &'static [Dim], When, bool);

#[rustfmt::skip]
const LAYER: &[LayerTensor] = {
    use {Dim::*, When::*};
    &[
        ("attn_norm.weight",   "input_layernorm.weight",          &[Hidden],               Always,     false),
        ("attn_q.weight",      "self_attn.q_proj.weight",         &[Queries, Hidden],      Always,     true),
        ("attn_q.bias",        "self_attn.q_proj.bias",           &[Queries],              QkvBias,    true),
        ("attn_k.weight",      "self_attn.k_proj.weight",         &[Keys, Hidden],         Always,     true),
        ("attn_k.bias",        "self_attn.k_proj.bias",           &[Keys],                 QkvBias,    true),
        ("attn_v.weight",      "self_attn.v_proj.weight",         &[Keys, Hidden],         Always,     false),
        ("attn_v.bias",        "self_attn.v_proj.bias",           &[Keys],                 QkvBias,    false),
        ("attn_q_norm.weight", "self_attn.q_norm.weight",         &[Head],                 QkNorm,     false),
        ("attn_k_norm.weight", "self_attn.k_norm.weight",         &[Head],                 QkNorm,     false),
        ("attn_output.weight", "self_attn.o_proj.weight",         &[Hidden, Queries],      Always,     false),
        ("attn_output.bias",   "self_attn.o_proj.bias",           &[Hidden],               OutputBias, false),
        ("post_attention_norm.weight", "post_attention_layernorm.weight", &[Hidden],       NormsAround, false),
        ("ffn_norm.weight",    "post_attention_layernorm.weight", &[Hidden],               NormsBefore, false),
        ("ffn_norm.weight",    "pre_feedforward_layernorm.weight", &[Hidden],              NormsAround, false),
        ("ffn_gate.weight",    "mlp.gate_proj.weight",            &[Intermediate, Hidden], Always,     false),
        ("ffn_gate.bias",      "mlp.gate_proj.bias",              &[Intermediate],         MlpBias,    false),
        ("ffn_up.weight",      "mlp.up_proj.weight",              &[Intermediate, Hidden], Always,     false),
        ("ffn_up.bias",        "mlp.up_proj.bias",                &[Intermediate],         MlpBias,    false),
        ("ffn_down.weight",    "mlp.down_proj.weight",            &[Hidden, Intermediate], Always,     false),
        ("ffn_down.bias",      "mlp.down_proj.bias",              &[Hidden],               MlpBias,    false),
        ("post_ffw_norm.weight", "post_feedforward_layernorm.weight", &[Hidden],           NormsAround, false),
    ]
};

/// Everything about the network: its sizes, switches and tensors.
pub(crate) struct Network {
    pub(crate) family: &'static Family,
    pub(crate) layers: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) vocab_size: usize,
    pub(crate) context_length: usize,
    pub(crate) rms_norm_eps: f64,
    pub(crate) rope_theta: f64,
    pub(crate) rope_scaling: Json,
    pub(crate) attention_bias: bool,
    pub(crate) mlp_bias: bool,
    pub(crate) tied: bool,
    /// Keys a query of a sliding layer sees; 0 if no layer slides.
    pub(crate) window: usize,
    /// Each layer of this number does not slide; 0 if no layer slides.
    pub(crate) window_period: usize,
    /// Base of the rotation in sliding layers.
    pub(crate) window_rope_theta: f64,
    /// Where it was read off a GGUF file, its tensors.
    pub(crate) tensors: Vec<HfTensor>,
}

/// One tensor of a network under both its names.
pub(crate) struct Place {
    pub(crate) gguf: String,
    pub(crate) hf: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) order: RowOrder,
    /// What Hugging Face's numbers are, less GGUF's.
    pub(crate) shift: f32,
}

/// Reads the network off metadata and tensor table. `None` if a problem (noted) leaves nothing to go on with.
pub(super) fn network(facts: &mut Facts<'_>) -> Option<Network> {
    let gguf = facts.gguf;
    let name = facts.required("general.architecture", "a name", Value::as_str)?;
    let Some(family) = FAMILIES.iter().find(|family| family.gguf == name) else {
        let known: Vec<&str> = FAMILIES.iter().map(|family| family.gguf).collect();
        let known = known.join(", ");
        facts.problem(None, format!("the architecture `{}` cannot be converted, only {known}", name.escape_debug()));
        return None;
    };
    if gguf.get("general.type").and_then(Value::as_str).is_some_and(|kind| kind != "model") {
        facts.problem(None, "the file holds no whole model (`general.type`), but a part of one such as an adapter");
        return None;
    }
    if let Some(parts) = gguf.get("split.count").and_then(Value::as_u64).filter(|&parts| parts > 1) {
        facts.problem(
            None,
            format!("the file is one of {parts} parts; join them first with `llama-gguf-split --merge`"),
        );
        return None;
    }
    let key = |suffix: &str| format!("{name}.{suffix}");
    for suffix in REFUSED.iter().filter(|suffix| !family.has.contains(suffix)) {
        if let Some(value) = gguf.get(&key(suffix)).filter(|value| !is_off(value)) {
            let found = value.summary();
            facts.problem(None, format!("metadata `{}` is {found}, which {} does not have", key(suffix), family.class));
        }
    }

    // Ask for everything before giving up on anything, so that one run tells all.
    let layers = facts.size(&key("block_count"));
    let hidden_size = facts.size(&key("embedding_length"));
    let intermediate_size = facts.required(&key("feed_forward_length"), UNIFORM, as_uniform_size);
    let heads = facts.required(&key("attention.head_count"), UNIFORM, as_uniform_size);
    let kv_heads = facts.optional(&key("attention.head_count_kv"), UNIFORM, as_uniform_size);
    let context_length = facts.size(&key("context_length"));
    let rms_norm_eps =
        facts.required(&key("attention.layer_norm_rms_epsilon"), "a positive number", super::as_positive);
    let rope_theta = facts.optional_positive(&key("rope.freq_base")).unwrap_or(10_000.0);
    let key_length = facts.optional_size(&key("attention.key_length"));
    let value_length = facts.optional_size(&key("attention.value_length"));
    let rotated = facts.optional_size(&key("rope.dimension_count"));
    let slides = family.has.contains(&"attention.sliding_window");
    let window = if slides { facts.size(&key("attention.sliding_window")) } else { Some(0) };
    // What the file does not say is the same in every published model of the family.
    let pattern = if slides { facts.optional_size(&key("attention.sliding_window_pattern")).unwrap_or(6) } else { 0 };
    let window_rope_theta = facts.optional_positive(&key("rope.freq_base_swa")).unwrap_or(10_000.0);

    let (layers, hidden_size, intermediate_size) = (layers?, hidden_size?, intermediate_size?);
    let (heads, context_length, rms_norm_eps) = (heads?, context_length?, rms_norm_eps?);
    let window = window?;
    let kv_heads = kv_heads.unwrap_or(heads);
    let head_dim = key_length.unwrap_or(hidden_size / heads);
    if head_dim == 0 || (key_length.is_none() && hidden_size % heads != 0) {
        facts.problem(None, format!("{heads} attention heads do not divide the embedding length {hidden_size}"));
        return None;
    }
    if heads % kv_heads != 0 {
        facts.problem(None, format!("{kv_heads} key/value heads do not divide {heads} query heads"));
    }
    for (what, found) in [("attention.value_length", value_length), ("rope.dimension_count", rotated)] {
        if let Some(found) = found.filter(|&found| found != head_dim) {
            facts.problem(None, format!("metadata `{}` is {found}, expected the head size {head_dim}", key(what)));
        }
    }
    if !head_dim.is_multiple_of(2) {
        facts.problem(None, format!("the head size {head_dim} is odd, but rotary embedding turns pairs"));
    }
    // Every layer has tensors, so a larger number is a fault, and no loop may follow it.
    if layers > gguf.tensors().len() {
        facts.problem(
            None,
            format!("metadata `{}` is {layers}, but the file has {} tensors", key("block_count"), gguf.tensors().len()),
        );
        return None;
    }
    let rope_scaling = rope::scaling(facts, name, rope_theta, head_dim, context_length);
    if !facts.problems.is_empty() {
        return None;
    }

    // The embedding decides (it may be padded beyond the tokens); without one, the tokens say what is missing.
    let vocab_size = match gguf.tensor("token_embd.weight").map(|tensor| tensor.shape()) {
        Some(&[vocab_size, _]) => vocab_size,
        _ => gguf.get("tokenizer.ggml.tokens").and_then(Value::as_strings).map_or(0, |tokens| tokens.len()),
    };
    let has = |tensor: &str| gguf.tensor(tensor).is_some();
    let mut network = Network {
        family,
        layers,
        hidden_size,
        intermediate_size,
        heads,
        kv_heads,
        head_dim,
        vocab_size,
        context_length,
        rms_norm_eps,
        rope_theta,
        rope_scaling,
        attention_bias: match family.qkv_bias {
            Bias::Always => true,
            Bias::Maybe => has("blk.0.attn_q.bias"),
            Bias::Never => false,
        },
        mlp_bias: family.mlp_bias && has("blk.0.ffn_gate.bias"),
        tied: !has("output.weight"),
        window,
        window_period: pattern,
        window_rope_theta,
        tensors: Vec::with_capacity(gguf.tensors().len()),
    };
    network.collect(facts);
    Some(network)
}

const UNIFORM: &str = "a positive integer (the same for all layers)";

/// A size given once, or once a layer and always the same.
fn as_uniform_size(value: &Value) -> Option<usize> {
    match value.as_numbers() {
        None => as_size(value),
        Some(numbers) => {
            let first = numbers.get(0)?;
            if numbers.iter().all(|number| number == first) { as_size(&first) } else { None }
        }
    }
}

/// Whether a value says "not used".
fn is_off(value: &Value) -> bool {
    value.as_f64() == Some(0.0) || value.as_bool() == Some(false)
}

impl Network {
    /// Every tensor of the network, in its order.
    pub(crate) fn places(&self) -> Vec<Place> {
        let from_zero = self.family.norms == Norms::AroundFromZero;
        let place = |gguf: String, hf: String, shape: Vec<usize>, order| {
            let shift = if from_zero && gguf.ends_with("norm.weight") { -1.0 } else { 0.0 };
            Place { gguf, hf, shape, order, shift }
        };
        let embeddings = vec![self.vocab_size, self.hidden_size];
        let mut places = vec![place(
            "token_embd.weight".into(),
            "model.embed_tokens.weight".into(),
            embeddings.clone(),
            RowOrder::Same,
        )];
        for layer in 0..self.layers {
            for &(gguf, hf, shape, when, rotated) in LAYER {
                let wanted = match when {
                    When::Always => true,
                    When::QkvBias => self.attention_bias,
                    When::OutputBias => self.attention_bias && self.family.output_bias,
                    When::MlpBias => self.mlp_bias,
                    When::QkNorm => self.family.qk_norm,
                    When::NormsBefore => self.family.norms == Norms::Before,
                    When::NormsAround => self.family.norms == Norms::AroundFromZero,
                };
                if !wanted {
                    continue;
                }
                let shape: Vec<usize> = shape
                    .iter()
                    .map(|dim| match dim {
                        Dim::Hidden => self.hidden_size,
                        Dim::Intermediate => self.intermediate_size,
                        Dim::Queries => self.heads * self.head_dim,
                        Dim::Keys => self.kv_heads * self.head_dim,
                        Dim::Head => self.head_dim,
                    })
                    .collect();
                let order = if rotated && self.family.adjacent_pairs {
                    RowOrder::AdjacentPairs { head_dim: self.head_dim }
                } else {
                    RowOrder::Same
                };
                places.push(place(format!("blk.{layer}.{gguf}"), format!("model.layers.{layer}.{hf}"), shape, order));
            }
        }
        let norm = ("output_norm.weight".into(), "model.norm.weight".into());
        places.push(place(norm.0, norm.1, vec![self.hidden_size], RowOrder::Same));
        if !self.tied {
            places.push(place("output.weight".into(), "lm_head.weight".into(), embeddings, RowOrder::Same));
        }
        places
    }

    /// Pairs the file's tensors with the family's table; missing, surplus and misshapen ones are noted.
    fn collect(&mut self, facts: &mut Facts<'_>) {
        let mut used = HashSet::from([ROPE_FREQS.to_owned()]);
        for Place { gguf, hf, shape, order, shift } in self.places() {
            match facts.gguf.tensor(&gguf) {
                None => facts.problem(Some(&gguf), format!("is missing, expected with shape {shape:?}")),
                Some(tensor) if tensor.shape() != shape => {
                    let found = tensor.shape();
                    facts.problem(Some(&gguf), format!("has shape {found:?}, expected {shape:?} from the metadata"));
                }
                Some(tensor) if !tensor.dtype().is_float() => {
                    let dtype = tensor.dtype();
                    facts.problem(Some(&gguf), format!("has the type {dtype}, expected real numbers"));
                }
                Some(tensor) => self.tensors.push(HfTensor { name: hf, source: tensor.clone(), order, shift }),
            }
            used.insert(gguf);
        }
        for tensor in facts.gguf.tensors().iter().filter(|tensor| !used.contains(tensor.name())) {
            facts.problem(Some(tensor.name()), format!("has no place in {}", self.family.class));
        }
    }

    /// `config.json`, keys in alphabetical order as transformers writes them.
    pub(crate) fn config(&self, ids: &TokenIds) -> Json {
        let mut keys = vec![
            ("architectures", json!([self.family.class])),
            ("attention_dropout", json!(0.0)),
            ("bos_token_id", json!(ids.bos)),
            ("eos_token_id", json!(ids.eos)),
            (self.family.activation.0, json!(self.family.activation.1)),
            ("hidden_size", json!(self.hidden_size)),
            ("initializer_range", json!(0.02)),
            ("intermediate_size", json!(self.intermediate_size)),
            ("max_position_embeddings", json!(self.context_length)),
            ("model_type", json!(self.family.model_type)),
            ("num_attention_heads", json!(self.heads)),
            ("num_hidden_layers", json!(self.layers)),
            ("num_key_value_heads", json!(self.kv_heads)),
            ("pad_token_id", json!(ids.pad)),
            ("rms_norm_eps", json!(self.rms_norm_eps)),
            ("rope_scaling", self.rope_scaling.clone()),
            ("rope_theta", json!(self.rope_theta)),
            ("tie_word_embeddings", json!(self.tied)),
            ("use_cache", json!(true)),
            ("vocab_size", json!(self.vocab_size)),
        ];
        keys.extend((self.family.extra)(self));
        keys.sort_by_key(|&(key, _)| key);
        keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>().into()
    }
}
