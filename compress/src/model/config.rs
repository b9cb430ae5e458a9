//! What a decoder is, read from a Hugging Face `config.json`.
//!
//! Families differ in data, not in code: [`FAMILIES`] lists, per `model_type`, the switches in which their mathematics
//! differs from Llama's.

use std::path::Path;

use scruple_weights::Checkpoint;
use serde_json::Value;

use crate::{Error, Result};

/// One model family: the switches its `config.json` leaves unsaid.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Biases on q, k and v, whatever the config says.
    pub qkv_bias: bool,
    /// `attention_bias` puts biases on q, k, v and o; other families do not read it.
    pub attention_bias: bool,
    /// RMS norm over each head of q and k before the rotation (Qwen3).
    pub qk_norm: bool,
    /// The sliding window where the config has none, for families that always slide; the others need
    /// `use_sliding_window`.
    pub default_window: Option<usize>,
    /// Width of a head where the config has none; hidden size over heads for most.
    pub default_head_dim: Option<usize>,
}

impl Family {
    const LLAMA: Self = Self {
        model_type: "llama",
        qkv_bias: false,
        attention_bias: true,
        qk_norm: false,
        default_window: None,
        default_head_dim: None,
    };
}

/// The families that run.
pub const FAMILIES: &[Family] = &[
    Family::LLAMA,
    Family { model_type: "mistral", attention_bias: false, default_window: Some(4096), ..Family::LLAMA },
    Family { model_type: "qwen2", qkv_bias: true, attention_bias: false, ..Family::LLAMA },
    Family { model_type: "qwen3", qk_norm: true, default_head_dim: Some(128), ..Family::LLAMA },
];

/// How the rotation frequencies are stretched for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// > 0.
        factor: f64,
    },
    /// Llama 3.1: long waves divided by `factor`, short ones kept, smooth between.
    Llama3 {
        /// Divisor of the long waves.
        factor: f64,
        /// Waves longer than `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Waves shorter than `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the pre-training.
        original: f64,
    },
    /// YaRN (Peng et al. 2023): interpolation by wavelength, with a factor on the attention scores.
    Yarn {
        /// Divisor of the long waves.
        factor: f64,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Context length of the pre-training.
        original: f64,
        /// The bounds of the blend are rounded outwards to whole dimensions.
        truncate: bool,
        /// Factor on cos and sin.
        attention_factor: f64,
    },
}

/// A decoder-only transformer: RMS norm, grouped-query attention with rotary positions, SwiGLU.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// `model_type`.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub n_blocks: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens.
    pub vocab_size: usize,
    /// Longest context trained for.
    pub max_positions: usize,
    /// ε of the RMS norms.
    pub norm_eps: f32,
    /// Base of the rotation frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotation frequencies.
    pub rope_scaling: RopeScaling,
    /// The output projection is the embedding.
    pub tied_embeddings: bool,
    /// Biases on q, k, v.
    pub qkv_bias: bool,
    /// Bias on the attention output.
    pub o_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// RMS norm on the heads of q and k.
    pub qk_norm: bool,
    /// A query sees this many latest keys only (itself included).
    pub sliding_window: Option<usize>,
    /// Tokens that end a generation.
    pub eos: Vec<u32>,
    /// Token a sequence begins with, where the config names one.
    pub bos: Option<u32>,
}

/// Reads fields of one JSON object, naming the file in each complaint.
struct Fields<'a> {
    file: &'a Path,
    object: &'a Value,
}

impl Fields<'_> {
    fn complain(&self, key: &str, expected: &str, found: &Value) -> Error {
        Error::Model(format!("{}: `{key}` should be {expected}, found {found}", self.file.display()))
    }

    fn count_or(&self, key: &str, default: Option<usize>) -> Result<usize> {
        match self.object.get(key) {
            None | Some(Value::Null) => default.ok_or_else(|| {
                Error::Model(format!(
                    "{}: `{key}` is missing; a decoder cannot be built without it",
                    self.file.display()
                ))
            }),
            Some(value) => match value.as_u64() {
                Some(n) if n > 0 && n <= 1 << 32 => Ok(n as usize),
                _ => Err(self.complain(key, "a positive whole number", value)),
            },
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
                _ => Err(self.complain(key, "a positive number", value)),
            },
        }
    }

    fn number_or(&self, key: &str, default: Option<f64>) -> Result<f64> {
        self.number(key)?
            .or(default)
            .ok_or_else(|| Error::Model(format!("{}: `{key}` is missing; add it", self.file.display())))
    }

    fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.complain(key, "true or false", value)),
        }
    }

    fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| {
            value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| self.complain(key, "a token id", value))
        };
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }
}

impl DecoderConfig {
    /// Reads the checkpoint's `config.json`.
    ///
    /// # Errors
    /// An unknown `model_type` (the known ones are listed), a missing or impossible field.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        Self::from_json(&checkpoint.dir().join("config.json"), checkpoint.config()?)
    }

    /// Reads a parsed `config.json`; `file` is only named in errors.
    pub fn from_json(file: &Path, json: &Value) -> Result<Self> {
        let shown = file.display();
        let fields = Fields { file, object: json };
        let model_type = json
            .get("model_type")
            .and_then(Value::as_str)
            .ok_or_else(|| Error::Model(format!("{shown}: `model_type` is missing, so the model family is unknown")))?;
        let family = FAMILIES.iter().find(|family| family.model_type == model_type).ok_or_else(|| {
            let known: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
            Error::Model(format!(
                "{shown}: model type `{model_type}` is not one that runs here; the families that run are {}",
                known.join(", ")
            ))
        })?;

        let hidden_size = fields.count_or("hidden_size", None)?;
        let n_heads = fields.count_or("num_attention_heads", None)?;
        let n_kv_heads = fields.count_or("num_key_value_heads", Some(n_heads))?;
        let given = fields.object.get("head_dim").is_some_and(|value| !value.is_null());
        if !given && family.default_head_dim.is_none() && hidden_size % n_heads != 0 {
            return Err(Error::Model(format!(
                "{shown}: `hidden_size` {hidden_size} is not a multiple of `num_attention_heads` {n_heads}, and there is \
                 no `head_dim`"
            )));
        }
        let head_dim = fields.count_or("head_dim", Some(family.default_head_dim.unwrap_or(hidden_size / n_heads)))?;
        if n_heads % n_kv_heads != 0 {
            return Err(Error::Model(format!(
                "{shown}: `num_attention_heads` {n_heads} is not a multiple of `num_key_value_heads` {n_kv_heads}"
            )));
        }
        if head_dim % 2 != 0 {
            return Err(Error::Model(format!("{shown}: `head_dim` {head_dim} is odd, rotary positions need pairs")));
        }
        match json.get("hidden_act") {
            None | Some(Value::Null) => {}
            Some(Value::String(activation)) if activation == "silu" || activation == "swish" => {}
            Some(other) => return Err(fields.complain("hidden_act", "\"silu\"", other)),
        }
        let max_positions = fields.count_or("max_position_embeddings", Some(2048))?;
        let n_blocks = fields.count_or("num_hidden_layers", None)?;
        let (rope_theta, rope_scaling) = rope(&fields, max_positions)?;
        let attention_bias = family.attention_bias && fields.flag_or("attention_bias", false)?;
        Ok(Self {
            model_type: model_type.to_string(),
            hidden_size,
            intermediate_size: fields.count_or("intermediate_size", None)?,
            n_blocks,
            n_heads,
            n_kv_heads,
            head_dim,
            vocab_size: fields.count_or("vocab_size", None)?,
            max_positions,
            norm_eps: fields.number_or("rms_norm_eps", Some(1e-6))? as f32,
            rope_theta,
            rope_scaling,
            tied_embeddings: fields.flag_or("tie_word_embeddings", false)?,
            qkv_bias: attention_bias || family.qkv_bias,
            o_bias: attention_bias,
            mlp_bias: fields.flag_or("mlp_bias", false)?,
            qk_norm: family.qk_norm,
            sliding_window: sliding_window(&fields, family, n_blocks)?,
            eos: fields.token_ids("eos_token_id")?,
            bos: fields.token_ids("bos_token_id")?.first().copied(),
        })
    }
}

/// The window of all blocks, if they slide.
fn sliding_window(fields: &Fields<'_>, family: &Family, n_blocks: usize) -> Result<Option<usize>> {
    let window = match fields.object.get("sliding_window") {
        None => family.default_window,
        Some(Value::Null) => None,
        Some(_) => Some(fields.count_or("sliding_window", None)?),
    };
    if window.is_none() || !fields.flag_or("use_sliding_window", family.default_window.is_some())? {
        return Ok(None);
    }
    // Which blocks slide: by name, or all from the `max_window_layers`-th on.
    let sliding = match fields.object.get("layer_types") {
        Some(Value::Array(types)) => types.iter().filter(|kind| *kind == "sliding_attention").count(),
        _ if family.default_window.is_some() => n_blocks,
        _ => n_blocks.saturating_sub(match fields.object.get("max_window_layers") {
            Some(Value::Number(first)) if first.as_u64() == Some(0) => 0,
            _ => fields.count_or("max_window_layers", Some(28))?,
        }),
    };
    match sliding {
        0 => Ok(None),
        all if all == n_blocks => Ok(window),
        some => Err(Error::Model(format!(
            "{}: {some} of {n_blocks} blocks have a sliding window; only all or none is supported",
            fields.file.display()
        ))),
    }
}

/// `rope_theta` and the scaling: in `rope_parameters` (transformers 5), or as `rope_theta` and `rope_scaling`.
fn rope(fields: &Fields<'_>, max_positions: usize) -> Result<(f64, RopeScaling)> {
    let shown = fields.file.display();
    let nested = ["rope_scaling", "rope_parameters"].iter().find_map(|key| fields.object.get(key)?.as_object());
    if nested.is_some_and(|nested| nested.values().any(Value::is_object)) {
        return Err(Error::Model(format!(
            "{shown}: rotary positions that differ from block to block are not supported"
        )));
    }
    let nested = nested.map_or(Value::Null, |nested| Value::Object(nested.clone()));
    let inner = Fields { file: fields.file, object: &nested };
    let either = |key: &str| Ok::<_, Error>(inner.number(key)?.or(fields.number(key)?));
    let theta = either("rope_theta")?.unwrap_or(10_000.0);
    let kind = ["rope_type", "type"].iter().find_map(|key| inner.object.get(key)?.as_str()).unwrap_or("default");
    let partial = either("partial_rotary_factor")?.unwrap_or(1.0);
    if partial != 1.0 {
        return Err(Error::Model(format!("{shown}: `partial_rotary_factor` {partial} is not supported, only 1")));
    }
    let original = "original_max_position_embeddings";
    let original = fields.number(original)?.or(inner.number(original)?).unwrap_or(max_positions as f64);
    let scaling = match kind {
        // Of the three positions of `mrope`, a text's are equal.
        "default" | "mrope" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: inner.number_or("factor", None)? },
        "llama3" => RopeScaling::Llama3 {
            factor: inner.number_or("factor", None)?,
            low_freq_factor: inner.number_or("low_freq_factor", None)?,
            high_freq_factor: inner.number_or("high_freq_factor", None)?,
            original,
        },
        "yarn" => {
            let factor = inner.number_or("factor", Some(max_positions as f64 / original))?;
            let scale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
            let attention_factor = match (inner.number("mscale")?, inner.number("mscale_all_dim")?) {
                (Some(one), Some(all)) => scale(one) / scale(all),
                _ => scale(1.0),
            };
            RopeScaling::Yarn {
                factor,
                beta_fast: inner.number_or("beta_fast", Some(32.0))?,
                beta_slow: inner.number_or("beta_slow", Some(1.0))?,
                original,
                truncate: inner.flag_or("truncate", true)?,
                attention_factor: inner.number_or("attention_factor", Some(attention_factor))?,
            }
        }
        // The dynamic rule changes nothing up to the trained context, which is all that is run here.
        "dynamic" => RopeScaling::None,
        other => {
            return Err(Error::Model(format!(
                "{shown}: rope type `{other}` is not supported; supported are default, linear, dynamic (up to the \
                 trained context), llama3, yarn"
            )));
        }
    };
    Ok((theta, scaling))
}

impl RopeScaling {
    /// Rotation frequencies, (head_dim / 2), and the factor on cos and sin.
    pub fn frequencies(&self, theta: f64, head_dim: usize) -> (Vec<f64>, f64) {
        let half = head_dim / 2;
        let base = (0..half).map(|i| theta.powf(-((2 * i) as f64) / head_dim as f64));
        match *self {
            Self::None => (base.collect(), 1.0),
            Self::Linear { factor } => (base.map(|f| f / factor).collect(), 1.0),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let stretch = |f: f64| {
                    let wavelength = std::f64::consts::TAU / f;
                    if wavelength < original / high_freq_factor {
                        f
                    } else if wavelength > original / low_freq_factor {
                        f / factor
                    } else {
                        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                (base.map(stretch).collect(), 1.0)
            }
            Self::Yarn { factor, beta_fast, beta_slow, original, truncate, attention_factor } => {
                let dim_of = |rotations: f64| {
                    head_dim as f64 * (original / (rotations * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
                };
                let (low, high) = (dim_of(beta_fast), dim_of(beta_slow));
                let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, mut high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let blend = |(i, f): (usize, f64)| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                };
                (base.enumerate().map(blend).collect(), attention_factor)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn llama() -> Value {
        json!({
            "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu",
        })
    }

    /// The Llama config with `changes` put in; null takes a field out.
    fn read(changes: Value) -> Result<DecoderConfig> {
        let mut config = llama();
        for (key, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => config.as_object_mut().unwrap().remove(key),
                value => config.as_object_mut().unwrap().insert(key.clone(), value.clone()),
            };
        }
        DecoderConfig::from_json(Path::new("config.json"), &config)
    }

    #[test]
    fn what_does_not_run_is_refused_in_one_sentence() {
        let cases = [
            (
                json!({ "model_type": "gpt2" }),
                "config.json: model type `gpt2` is not one that runs here; the families that run are llama, mistral, \
                 qwen2, qwen3",
            ),
            (json!({ "model_type": null }), "config.json: `model_type` is missing, so the model family is unknown"),
            (
                json!({ "hidden_size": null }),
                "config.json: `hidden_size` is missing; a decoder cannot be built without it",
            ),
            (
                json!({ "vocab_size": null }),
                "config.json: `vocab_size` is missing; a decoder cannot be built without it",
            ),
            (
                json!({ "num_hidden_layers": -1 }),
                "config.json: `num_hidden_layers` should be a positive whole number, found -1",
            ),
            (json!({ "head_dim": 7 }), "config.json: `head_dim` 7 is odd, rotary positions need pairs"),
            (
                json!({ "num_key_value_heads": 3 }),
                "config.json: `num_attention_heads` 4 is not a multiple of `num_key_value_heads` 3",
            ),
            (
                json!({ "hidden_size": 30 }),
                "config.json: `hidden_size` 30 is not a multiple of `num_attention_heads` 4, and there is no `head_dim`",
            ),
            (json!({ "hidden_act": "gelu" }), "config.json: `hidden_act` should be \"silu\", found \"gelu\""),
            (
                json!({ "tie_word_embeddings": 1 }),
                "config.json: `tie_word_embeddings` should be true or false, found 1",
            ),
            (json!({ "rms_norm_eps": 0.0 }), "config.json: `rms_norm_eps` should be a positive number, found 0.0"),
            (json!({ "eos_token_id": [2, "x"] }), "config.json: `eos_token_id` should be a token id, found \"x\""),
            (
                json!({ "rope_parameters": { "rope_type": "longrope", "rope_theta": 10000.0 } }),
                "config.json: rope type `longrope` is not supported; supported are default, linear, dynamic (up to the \
                 trained context), llama3, yarn",
            ),
            (json!({ "rope_scaling": { "type": "linear" } }), "config.json: `factor` is missing; add it"),
            (
                json!({ "rope_scaling": { "rope_type": "llama3", "factor": 8.0 } }),
                "config.json: `low_freq_factor` is missing; add it",
            ),
            (
                json!({ "rope_parameters": { "full_attention": { "rope_type": "default" } } }),
                "config.json: rotary positions that differ from block to block are not supported",
            ),
            (
                json!({ "partial_rotary_factor": 0.5 }),
                "config.json: `partial_rotary_factor` 0.5 is not supported, only 1",
            ),
            (
                json!({
                    "model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8,
                    "layer_types": ["full_attention", "sliding_attention"],
                }),
                "config.json: 1 of 2 blocks have a sliding window; only all or none is supported",
            ),
        ];
        for (changes, message) in cases {
            match read(changes.clone()) {
                Err(error) => assert_eq!(error.to_string(), message),
                Ok(_) => panic!("{changes} was accepted"),
            }
        }
    }

    #[test]
    fn families_fill_in_what_the_config_leaves_unsaid() {
        let llama = read(json!({})).unwrap();
        assert_eq!((llama.head_dim, llama.qkv_bias, llama.o_bias, llama.sliding_window), (8, false, false, None));
        let biased = read(json!({ "attention_bias": true })).unwrap();
        assert!(biased.qkv_bias && biased.o_bias && !biased.mlp_bias);
        let qwen2 = read(json!({ "model_type": "qwen2", "attention_bias": true })).unwrap();
        assert!(qwen2.qkv_bias && !qwen2.o_bias);
        let qwen3 = read(json!({ "model_type": "qwen3" })).unwrap();
        assert!(qwen3.qk_norm && qwen3.head_dim == 128);
        assert_eq!(read(json!({ "model_type": "mistral" })).unwrap().sliding_window, Some(4096));
    }

    #[test]
    fn a_window_holds_where_the_family_says() {
        let window = |changes: Value| read(changes).unwrap().sliding_window;
        // Llama reads no window; Qwen only with `use_sliding_window`, from block `max_window_layers` on.
        assert_eq!(window(json!({ "sliding_window": 8 })), None);
        assert_eq!(window(json!({ "model_type": "mistral", "sliding_window": 8 })), Some(8));
        assert_eq!(window(json!({ "model_type": "qwen2", "sliding_window": 8 })), None);
        let qwen = |last: usize| {
            window(json!({
                "model_type": "qwen2", "sliding_window": 8, "use_sliding_window": true, "max_window_layers": last,
            }))
        };
        assert_eq!((qwen(0), qwen(2), qwen(28)), (Some(8), None, None));
    }
}
