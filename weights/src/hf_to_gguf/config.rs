//! The network as `config.json` says it, and its metadata.

use serde_json::{Map, Value as Json};

use super::Notes;
use crate::{
    gguf_to_hf::{
        TokenIds,
        architecture::{Bias, FAMILIES, Network},
        rope,
    },
    writer::gguf::GgufMetadata,
};

/// Settings that change the mathematics in ways none of the families has; null, false, 0 and an empty list are "off".
const REFUSED: &[&str] = &[
    "alibi",
    "attention_multiplier",
    "attn_temperature_tuning",
    "embedding_multiplier",
    "logit_scale",
    "logits_scaling",
    "no_rope_layers",
    "num_experts",
    "num_local_experts",
    "residual_multiplier",
    "use_bidirectional_attention",
];

/// Keys that a reader writes and that do not tell one model from another.
const INDIFFERENT: &[&str] = &[
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "initializer_range",
    "layer_types",
    "max_window_layers",
    "model_type",
    "pad_token_id",
    "pretraining_tp",
    "rope_local_base_freq",
    "rope_scaling",
    "rope_theta",
    "use_cache",
];

/// `config.json` asked by key; what is wrong is noted.
struct Fields<'a, 'b, 'c> {
    notes: &'a mut Notes<'b>,
    object: &'c Map<String, Json>,
}

impl Fields<'_, '_, '_> {
    fn get(&self, key: &str) -> Option<&Json> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// A size: an integer from 1 to 2^31 − 1.
    fn optional_size(&mut self, key: &str) -> Option<usize> {
        let value = self.get(key)?.clone();
        let size = value.as_u64().filter(|&size| size > 0 && size <= i32::MAX as u64);
        if size.is_none() {
            self.notes.problem(None, format!("`{key}` is {value}, expected a positive integer"));
        }
        size.map(|size| size as usize)
    }

    fn size(&mut self, key: &str) -> Option<usize> {
        if self.get(key).is_none() {
            self.notes.problem(None, format!("`{key}` is missing, expected a positive integer"));
        }
        self.optional_size(key)
    }

    fn optional_number(&mut self, key: &str) -> Option<f64> {
        let value = self.get(key)?.clone();
        let number = value.as_f64().filter(|number| *number > 0.0 && number.is_finite());
        if number.is_none() {
            self.notes.problem(None, format!("`{key}` is {value}, expected a positive number"));
        }
        number
    }

    fn flag(&mut self, key: &str, otherwise: bool) -> bool {
        match self.get(key).cloned() {
            None => otherwise,
            Some(Json::Bool(flag)) => flag,
            Some(other) => {
                self.notes.problem(None, format!("`{key}` is {other}, expected true or false"));
                otherwise
            }
        }
    }
}

/// Reads the network off `config.json`; `shape` gives the shape of a tensor of the folder. `None` if a problem (noted)
/// leaves nothing to go on with.
pub(super) fn network<'t>(notes: &mut Notes<'_>, shape: &dyn Fn(&str) -> Option<&'t [usize]>) -> Option<Network> {
    let config = notes.folder.config;
    let Some(object) = config.as_object() else {
        notes.problem(None, "is not a JSON object");
        return None;
    };
    let model_type = object.get("model_type").and_then(Json::as_str).unwrap_or_default();
    let family = FAMILIES.iter().find(|family| family.model_type == model_type || family.also.contains(&model_type));
    let Some(family) = family else {
        let known: Vec<&str> = FAMILIES
            .iter()
            .flat_map(|family| [family.model_type].into_iter().chain(family.also.iter().copied()))
            .collect();
        let (found, known) = (crate::format::shown(model_type), known.join(", "));
        notes.problem(None, format!("the model type `{found}` cannot be written as GGUF, only {known} can"));
        return None;
    };
    let mut fields = Fields { notes, object };
    for key in REFUSED {
        if let Some(value) = fields.get(key).filter(|value| !is_off(value)).cloned() {
            let text = crate::format::shown(&value.to_string());
            fields
                .notes
                .problem(None, format!("`{key}` is {text}, which GGUF's architecture `{}` does not have", family.gguf));
        }
    }
    let gemma = family.has.contains(&"attention.sliding_window");
    let layers = fields.size("num_hidden_layers");
    let hidden_size = fields.size("hidden_size");
    let intermediate_size = fields.size("intermediate_size");
    let heads = fields.size("num_attention_heads");
    let kv_heads = fields.optional_size("num_key_value_heads");
    let head_dim = fields.optional_size("head_dim");
    let vocab_size = fields.size("vocab_size");
    let context_length = fields.size("max_position_embeddings");
    let eps = fields.optional_number("rms_norm_eps");
    let window = fields.optional_size("sliding_window").filter(|_| fields_window_used(object, gemma));
    let (layers, hidden_size, heads) = (layers?, hidden_size?, heads?);
    let (vocab_size, context_length) = (vocab_size?, context_length?);
    if !gemma && window.is_some_and(|window| window < context_length) {
        let what = format!(
            "`sliding_window` is {}, which GGUF's architecture `{}` does not have",
            window.unwrap_or_default(),
            family.gguf
        );
        fields.notes.problem(None, what);
    }
    // Transformers' own defaults of the families that have one.
    let head_dim = head_dim.unwrap_or(match model_type {
        "qwen3" => 128,
        "gemma3_text" => 256,
        _ => hidden_size / heads,
    });
    let (theta, local_theta, scaling) = rope_fields(&mut fields, gemma);
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        fields.notes.problem(None, format!("the head size {head_dim} is odd or 0, but rotary embedding turns pairs"));
        return None;
    }
    // No loop may follow a number that the folder does not justify.
    if layers > 1 << 16 || shape(&format!("model.layers.{}.input_layernorm.weight", layers - 1)).is_none() {
        fields
            .notes
            .problem(None, format!("`num_hidden_layers` is {layers}, but the folder has no layer {}", layers - 1));
        return None;
    }
    let period = if gemma && window.is_some() { period(&mut fields, layers) } else { Some(0) };
    let attention_bias = match family.qkv_bias {
        Bias::Always => true,
        Bias::Maybe => shape("model.layers.0.self_attn.q_proj.bias").is_some(),
        Bias::Never => false,
    };
    let tied_by_default = gemma;
    Some(Network {
        family,
        layers,
        hidden_size,
        intermediate_size: intermediate_size?,
        heads,
        kv_heads: kv_heads.unwrap_or(heads),
        head_dim,
        vocab_size,
        context_length,
        rms_norm_eps: eps.unwrap_or(1e-6),
        rope_theta: theta,
        rope_scaling: scaling,
        attention_bias,
        mlp_bias: family.mlp_bias && shape("model.layers.0.mlp.gate_proj.bias").is_some(),
        tied: fields.flag("tie_word_embeddings", tied_by_default),
        window: if gemma { window.unwrap_or(0) } else { 0 },
        window_period: period?,
        window_rope_theta: local_theta,
        tensors: Vec::new(),
    })
}

/// Whether `sliding_window` has any effect.
fn fields_window_used(object: &Map<String, Json>, gemma: bool) -> bool {
    gemma || object.get("use_sliding_window") != Some(&Json::Bool(false))
}

/// Whether a setting is not used.
fn is_off(value: &Json) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::Number(number) => number.as_f64() == Some(0.0),
        Json::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// Base of the rotation, base in sliding layers, and the scaling as older releases write it (`rope_scaling`).
fn rope_fields(fields: &mut Fields<'_, '_, '_>, gemma: bool) -> (f64, f64, Json) {
    let default_theta = if gemma { 1e6 } else { 1e4 };
    let outer_theta = fields.optional_number("rope_theta");
    let outer_local = fields.optional_number("rope_local_base_freq");
    let nested = ["rope_parameters", "rope_scaling"].into_iter().find_map(|key| fields.get(key)?.as_object()).cloned();
    let nested = nested.unwrap_or_default();
    // Transformers 5 names the kinds of layers where they differ.
    let kind = |name: &str| nested.get(name).and_then(Json::as_object).cloned();
    let local = kind("sliding_attention").unwrap_or_default();
    let full = kind("full_attention").unwrap_or(nested);
    let number = |object: &Map<String, Json>, key: &str| object.get(key).and_then(Json::as_f64);
    let theta = number(&full, "rope_theta").or(outer_theta).unwrap_or(default_theta);
    let local_theta = number(&local, "rope_theta").or(outer_local).unwrap_or(1e4);
    for (object, allowed) in [(&full, &["default", "linear", "yarn", "llama3"][..]), (&local, &["default"][..])] {
        let name = ["rope_type", "type"].into_iter().find_map(|key| object.get(key)?.as_str()).unwrap_or("default");
        if !allowed.contains(&name) {
            let name = crate::format::shown(name);
            fields
                .notes
                .problem(None, format!("the rope type `{name}` cannot be written, only {}", allowed.join(", ")));
        }
    }
    let name = ["rope_type", "type"].into_iter().find_map(|key| full.get(key)?.as_str()).unwrap_or("default");
    let scaling: Map<String, Json> = if name == "default" {
        Map::new()
    } else {
        let mut scaling = full.clone();
        scaling.retain(|key, value| !value.is_null() && key != "rope_theta" && key != "type");
        scaling.insert("rope_type".into(), name.into());
        scaling
    };
    let known: &[&str] = match name {
        "linear" => &["rope_type", "factor"],
        "yarn" => &["rope_type", "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"],
        _ => &["rope_type", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"],
    };
    for (key, value) in &scaling {
        let fine = match key.as_str() {
            "rope_type" => true,
            "truncate" => value == &Json::Bool(true),
            _ => value.as_f64().is_some_and(|number| number > 0.0),
        };
        if !known.contains(&key.as_str()) || !fine {
            let value = crate::format::shown(&value.to_string());
            fields.notes.problem(None, format!("`{key}` = {value} of the rope scaling `{name}` has no place in GGUF"));
        }
    }
    if !scaling.is_empty() && !scaling.contains_key("factor") {
        fields.notes.problem(None, format!("the rope scaling `{name}` has no `factor`"));
    }
    (theta, local_theta, if scaling.is_empty() { Json::Null } else { scaling.into() })
}

/// Every how many layers one does not slide.
fn period(fields: &mut Fields<'_, '_, '_>, layers: usize) -> Option<usize> {
    let named =
        ["sliding_window_pattern", "_sliding_window_pattern"].into_iter().find_map(|key| fields.optional_size(key));
    let Some(types) = fields.get("layer_types").and_then(Json::as_array).cloned() else {
        return Some(named.unwrap_or(6));
    };
    let full: Vec<bool> = types.iter().map(|kind| kind.as_str() == Some("full_attention")).collect();
    let period = full.iter().position(|&full| full).map_or(named.unwrap_or(layers + 1), |first| first + 1);
    if full.len() != layers || full.iter().enumerate().any(|(layer, &full)| full != (layer + 1).is_multiple_of(period))
    {
        fields
            .notes
            .problem(None, "`layer_types` is not one full layer after equally many sliding ones, as GGUF has them");
        return None;
    }
    Some(period)
}

/// Writes the network's keys; gives the divisors of rope's frequencies where a tensor holds the scaling.
pub(super) fn metadata(notes: &mut Notes<'_>, network: &Network, metadata: &mut GgufMetadata) -> Option<Vec<f32>> {
    let key = |suffix: &str| format!("{}.{suffix}", network.family.gguf);
    for (suffix, size) in [
        ("vocab_size", network.vocab_size),
        ("context_length", network.context_length),
        ("embedding_length", network.hidden_size),
        ("block_count", network.layers),
        ("feed_forward_length", network.intermediate_size),
        ("attention.head_count", network.heads),
        ("attention.head_count_kv", network.kv_heads),
        ("attention.key_length", network.head_dim),
        ("attention.value_length", network.head_dim),
        ("rope.dimension_count", network.head_dim),
    ] {
        metadata.u32(&key(suffix), size as u32); // at most i32::MAX
    }
    metadata.f32(&key("attention.layer_norm_rms_epsilon"), network.rms_norm_eps as f32);
    metadata.f32(&key("rope.freq_base"), network.rope_theta as f32);
    if network.window > 0 {
        metadata.u32(&key("attention.sliding_window"), network.window as u32);
        metadata.u32(&key("attention.sliding_window_pattern"), network.window_period as u32);
        metadata.f32(&key("rope.freq_base_swa"), network.window_rope_theta as f32);
    }
    let number = |name: &str| network.rope_scaling.get(name).and_then(Json::as_f64);
    let kind = network.rope_scaling.get("rope_type").and_then(Json::as_str)?;
    let factor = number("factor")?; // its absence is noted
    let original = number("original_max_position_embeddings");
    if kind == "llama3" {
        let (Some(low), Some(high), Some(context)) = (number("low_freq_factor"), number("high_freq_factor"), original)
        else {
            notes.problem(None, "the rope scaling `llama3` is not complete: it has low_freq_factor, high_freq_factor and original_max_position_embeddings");
            return None;
        };
        metadata.u32(&key("rope.scaling.original_context_length"), context as u32);
        let divisors = rope::llama3_divisors(network.rope_theta, network.head_dim / 2, factor, low, high, context);
        return Some(divisors.into_iter().map(|divisor| divisor as f32).collect());
    }
    metadata.text(&key("rope.scaling.type"), kind);
    metadata.f32(&key("rope.scaling.factor"), factor as f32);
    if kind == "yarn" {
        metadata.u32(
            &key("rope.scaling.original_context_length"),
            original.map_or(network.context_length, |original| original as usize) as u32,
        );
        for (suffix, name) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
            if let Some(value) = number(name) {
                metadata.f32(&key(&format!("rope.scaling.{suffix}")), value as f32);
            }
        }
    }
    None
}

/// Compares what a reader would make of the metadata with what `config.json` says.
pub(super) fn compare(notes: &mut Notes<'_>, network: &Network, ids: &TokenIds) {
    if network.window == 0 && network.family.has.contains(&"attention.sliding_window") {
        notes.problem(None, "`sliding_window` is missing, which GGUF's architecture `gemma3` needs");
        return;
    }
    let config = notes.folder.config;
    let Json::Object(read) = network.config(ids) else { return };
    for (key, read) in read.iter().filter(|(key, _)| !INDIFFERENT.contains(&key.as_str())) {
        let Some(ours) = config.get(key) else { continue };
        let equal = match (ours.as_f64(), read.as_f64()) {
            (Some(ours), Some(read)) => ours == read,
            // A window that is switched off may have a size.
            _ if key == "sliding_window" && network.window == 0 => true,
            _ => ours == read || (is_off(ours) && is_off(read)),
        };
        if !equal {
            let ours = crate::format::shown(&ours.to_string());
            let gguf = network.family.gguf;
            notes.problem(None, format!("`{key}` is {ours}, but in GGUF's architecture `{gguf}` it is {read}"));
        }
    }
}
