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
    /// Biases on q, k and v where the config has no `attention_bias`.
    pub qkv_bias: bool,
    /// RMS norm over each head of q and k before the rotation (Qwen3).
    pub qk_norm: bool,
    /// Whether `sliding_window` holds without `use_sliding_window`.
    pub window_by_default: bool,
}

/// The families that run.
pub const FAMILIES: &[Family] = &[
    Family { model_type: "llama", qkv_bias: false, qk_norm: false, window_by_default: false },
    Family { model_type: "mistral", qkv_bias: false, qk_norm: false, window_by_default: true },
    Family { model_type: "qwen2", qkv_bias: true, qk_norm: false, window_by_default: false },
    Family { model_type: "qwen3", qkv_bias: false, qk_norm: true, window_by_default: false },
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
        /// Factor on cos and sin.
        attention_factor: f64,
    },
}

/// A decoder-only transformer: RMS norm, grouped-query attention with rotary positions, SwiGLU.
#[derive(Debug, Clone)]
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

    fn number_or(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match self.object.get(key) {
            None | Some(Value::Null) => {
                default.ok_or_else(|| Error::Model(format!("{}: `{key}` is missing; add it", self.file.display())))
            }
            Some(value) => match value.as_f64() {
                Some(x) if x.is_finite() && x > 0.0 => Ok(x),
                _ => Err(self.complain(key, "a positive number", value)),
            },
        }
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
        let head_dim = fields.count_or("head_dim", Some((hidden_size / n_heads).max(1)))?;
        if n_heads % n_kv_heads != 0 {
            return Err(Error::Model(format!(
                "{shown}: `num_attention_heads` {n_heads} is not a multiple of `num_key_value_heads` {n_kv_heads}"
            )));
        }
        if head_dim % 2 != 0 {
            return Err(Error::Model(format!("{shown}: `head_dim` {head_dim} is odd, rotary positions need pairs")));
        }
        let activation = json.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        if activation != "silu" && activation != "swish" {
            return Err(Error::Model(format!("{shown}: `hidden_act` should be silu, found `{activation}`")));
        }
        let max_positions = fields.count_or("max_position_embeddings", Some(2048))?;
        let (rope_theta, rope_scaling) = rope(&fields, max_positions)?;
        let attention_bias = fields.flag_or("attention_bias", false)?;
        let window = match json.get("sliding_window") {
            None | Some(Value::Null) => None,
            Some(_) => Some(fields.count_or("sliding_window", None)?),
        };
        let windowed = fields.flag_or("use_sliding_window", family.window_by_default)?;
        if windowed
            && window.is_some()
            && json
                .get("layer_types")
                .is_some_and(|types| types.as_array().is_some_and(|types| types.iter().any(|t| t != &types[0])))
        {
            return Err(Error::Model(format!("{shown}: blocks of mixed `layer_types` are not supported")));
        }
        Ok(Self {
            model_type: model_type.to_string(),
            hidden_size,
            intermediate_size: fields.count_or("intermediate_size", None)?,
            n_blocks: fields.count_or("num_hidden_layers", None)?,
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
            o_bias: attention_bias && matches!(model_type, "llama" | "qwen3"),
            mlp_bias: fields.flag_or("mlp_bias", false)?,
            qk_norm: family.qk_norm,
            sliding_window: if windowed { window } else { None },
            eos: fields.token_ids("eos_token_id")?,
            bos: fields.token_ids("bos_token_id")?.first().copied(),
        })
    }
}

/// `rope_theta` and `rope_scaling`, in the old places or in `rope_parameters` (transformers 5).
fn rope(fields: &Fields<'_>, max_positions: usize) -> Result<(f64, RopeScaling)> {
    let shown = fields.file.display();
    let nested = fields.object.get("rope_parameters").or_else(|| fields.object.get("rope_scaling"));
    let nested = nested.filter(|value| !value.is_null());
    let empty = Value::Null;
    let inner = Fields { file: fields.file, object: nested.unwrap_or(&empty) };
    let theta = inner.number_or("rope_theta", Some(fields.number_or("rope_theta", Some(10_000.0))?))?;
    let kind = ["rope_type", "type"].iter().find_map(|key| inner.object.get(key)?.as_str()).unwrap_or("default");
    let partial =
        fields.number_or("partial_rotary_factor", Some(inner.number_or("partial_rotary_factor", Some(1.0))?))?;
    if partial != 1.0 {
        return Err(Error::Model(format!("{shown}: `partial_rotary_factor` {partial} is not supported, only 1")));
    }
    let original = inner.number_or("original_max_position_embeddings", Some(max_positions as f64))?;
    let scaling = match kind {
        "default" | "mrope" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: inner.number_or("factor", None)? },
        "llama3" => RopeScaling::Llama3 {
            factor: inner.number_or("factor", None)?,
            low_freq_factor: inner.number_or("low_freq_factor", None)?,
            high_freq_factor: inner.number_or("high_freq_factor", None)?,
            original: inner.number_or("original_max_position_embeddings", None)?,
        },
        "yarn" => {
            let factor = inner.number_or("factor", None)?;
            RopeScaling::Yarn {
                factor,
                beta_fast: inner.number_or("beta_fast", Some(32.0))?,
                beta_slow: inner.number_or("beta_slow", Some(1.0))?,
                original,
                attention_factor: inner
                    .number_or("attention_factor", Some(if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }))?,
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
            Self::Yarn { factor, beta_fast, beta_slow, original, attention_factor } => {
                let dim_of = |rotations: f64| {
                    head_dim as f64 * (original / (rotations * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
                };
                let low = dim_of(beta_fast).floor().max(0.0);
                let mut high = dim_of(beta_slow).ceil().min(head_dim as f64 - 1.0);
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
