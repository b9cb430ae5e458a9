//! What a decoder is, read from a Hugging Face `config.json`.
//!
//! Families differ in data: each adapter of [`super::family`] turns the fields of its configurations into the same
//! [`DecoderConfig`], and one interpreter runs them all.

use std::path::Path;

use scruple_weights::Checkpoint;
use serde_json::Value;

use super::{
    family::{self, Family, Wrapper},
    fields::Fields,
    spec::{BlockSpec, EmbeddingSpec, HeadSpec},
};
use crate::{Error, Result};

/// Most blocks of a model that is run; a larger number is a damaged file's.
pub(crate) const MAX_BLOCKS: usize = 4096;

/// Most experts of a block.
pub(crate) const MAX_EXPERTS: usize = 4096;

/// A decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// `model_type`, of the text part where the model has others.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Tokens.
    pub vocab_size: usize,
    /// Longest context trained for.
    pub max_positions: usize,
    /// Number of decoder blocks.
    pub n_blocks: usize,
    /// What the names of embedding, blocks and last norm begin with, its dot included.
    pub base: String,
    /// Name of the list of blocks after the base.
    pub layers: &'static str,
    /// What stands before the blocks.
    pub embedding: EmbeddingSpec,
    /// The blocks, first to last.
    pub blocks: Vec<BlockSpec>,
    /// What stands behind them.
    pub head: HeadSpec,
    /// Tokens that end a generation.
    pub eos: Vec<u32>,
    /// Token a sequence begins with, where the config names one.
    pub bos: Option<u32>,
    /// Only the text part of a model that reads more is run.
    pub text_part: bool,
    /// What the base may be, the likeliest first.
    pub(crate) bases: &'static [&'static str],
}

impl DecoderConfig {
    /// Reads the checkpoint's `config.json`, and finds in its tensors' names what they begin with.
    ///
    /// # Errors
    /// An unknown `model_type` (the known ones are listed), a missing or impossible field.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        Self::of_names(checkpoint, |name| checkpoint.contains(name))
    }

    /// [`Self::from_checkpoint`] of a checkpoint whose weights `contains` knows by name, wherever they are stored.
    ///
    /// # Errors
    /// As [`Self::from_checkpoint`].
    pub fn of_names(checkpoint: &Checkpoint, contains: impl Fn(&str) -> bool) -> Result<Self> {
        let mut config = Self::from_json(&checkpoint.dir().join("config.json"), checkpoint.config()?)?;
        let has = |name: String| contains(&format!("{name}.weight"));
        // Saved without its head, or by another release, a model's names begin otherwise.
        if let Some(base) = config.bases.iter().find(|base| has(format!("{base}{}", config.embedding.name))) {
            config.base = (*base).to_string();
        }
        let wrapped = format!("language_model.{}", config.head.name);
        let heads = [config.head.name.clone(), "lm_head".into(), wrapped];
        if let Some(head) = heads.into_iter().find(|head| has(head.clone())) {
            config.head.name = head;
        }
        Ok(config)
    }

    /// Reads a parsed `config.json`; `file` is only named in errors.
    pub fn from_json(file: &Path, json: &Value) -> Result<Self> {
        let fields = Fields::new(file, json);
        let name = model_type(&fields)?;
        if let Some(wrapper) = family::WRAPPERS.iter().find(|wrapper| wrapper.model_type == name) {
            return Self::of_text_part(&fields, wrapper);
        }
        let family = family_of(&fields, name)?;
        let config = (family.read)(&fields, family, name)?;
        config.check(&fields)?;
        Ok(config)
    }

    /// The text part of a model that reads images or sounds too.
    fn of_text_part(outer: &Fields<'_>, wrapper: &Wrapper) -> Result<Self> {
        let name = wrapper.model_type;
        let Some(text) = outer.get("text_config").filter(|text| text.is_object()) else {
            return Err(outer.refuse(format!(
                "`text_config` is missing; of a model of type `{name}` only the text part is run, and it says what that is"
            )));
        };
        let inner = Fields::new(outer.file, text);
        let text_type = match inner.get("model_type") {
            None => wrapper.default_text,
            Some(_) => model_type(&inner)?,
        };
        let family = family_of(&inner, text_type)?;
        let inner = Fields { defaults: family.class_defaults, ..inner };
        let mut config = (family.read)(&inner, family, text_type)?;
        config.text_part = true;
        config.bases = Wrapper::BASES;
        config.base = config.bases[0].to_string();
        // The whole model's word counts, and its absence leaves the text part's.
        config.head.tied = outer.flag_or("tie_word_embeddings", config.head.tied)?;
        if config.eos.is_empty() {
            config.eos = outer.token_ids("eos_token_id")?;
        }
        config.bos = config.bos.or(outer.token_ids("bos_token_id")?.first().copied());
        config.check(&inner)?;
        Ok(config)
    }

    fn check(&self, fields: &Fields<'_>) -> Result<()> {
        for block in &self.blocks {
            let attention = &block.attention;
            if attention.n_heads % attention.n_kv_heads != 0 {
                return Err(fields.refuse(format!(
                    "`num_attention_heads` {} is not a multiple of `num_key_value_heads` {}",
                    attention.n_heads, attention.n_kv_heads
                )));
            }
        }
        Ok(())
    }

    /// What the names of block `index` begin with, without the last dot.
    pub fn block_path(&self, index: usize) -> String {
        format!("{}{}.{index}", self.base, self.layers)
    }

    /// Full name, without `.weight`, of a linear of block `index`.
    pub fn linear_name(&self, index: usize, linear: &str) -> String {
        format!("{}.{linear}", self.block_path(index))
    }
}

fn model_type<'a>(fields: &Fields<'a>) -> Result<&'a str> {
    let name = fields.object.get("model_type").and_then(Value::as_str);
    name.ok_or_else(|| fields.refuse("`model_type` is missing, so the model family is unknown"))
}

fn family_of(fields: &Fields<'_>, model_type: &str) -> Result<&'static Family> {
    let found = family::FAMILIES.iter().find(|family| family.model_types.contains(&model_type));
    found.ok_or_else(|| -> Error {
        let known: Vec<_> = family::FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
        fields.refuse(format!(
            "model type `{model_type}` is not one that runs here; the families that run are {}",
            known.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::spec::{Projection, QkNorm, Stage};

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
                json!({ "model_type": "bloom" }),
                "config.json: model type `bloom` is not one that runs here; the families that run are llama, mistral, \
                 qwen2, qwen3, gemma, gemma2, gemma3_text, phi3, olmo2, mixtral, qwen3_moe, gpt2, gpt_neox, opt, falcon",
            ),
            (json!({ "model_type": null }), "config.json: `model_type` is missing, so the model family is unknown"),
            (
                json!({ "hidden_size": null }),
                "config.json: `hidden_size` is missing; the model cannot be built without it",
            ),
            (
                json!({ "vocab_size": null }),
                "config.json: `vocab_size` is missing; the model cannot be built without it",
            ),
            (
                json!({ "num_hidden_layers": -1 }),
                "config.json: `num_hidden_layers` should be a positive whole number, found -1",
            ),
            (
                json!({ "num_hidden_layers": 4_000_000_000u64 }),
                "config.json: `num_hidden_layers` is 4000000000, more than the 4096 that are run here",
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
                json!({ "rope_parameters": { "rope_type": "spiral", "rope_theta": 10000.0 } }),
                "config.json: rope type `spiral` is not supported; supported are default, linear, dynamic (up to the \
                 trained context), llama3, yarn, longrope",
            ),
            (
                json!({ "rope_parameters": { "rope_type": "longrope" } }),
                "config.json: `short_factor` is missing; add it",
            ),
            (
                json!({ "rope_parameters": { "rope_type": "su", "short_factor": [1.0], "long_factor": [1.0] } }),
                "config.json: `short_factor` has 1 numbers, expected 4, one a rotation frequency",
            ),
            (json!({ "rope_scaling": { "type": "linear" } }), "config.json: `factor` is missing; add it"),
            (
                json!({ "rope_scaling": { "rope_type": "llama3", "factor": 8.0 } }),
                "config.json: `low_freq_factor` is missing; add it",
            ),
            (
                json!({ "rope_parameters": { "sliding_attention": { "rope_type": "default" } } }),
                "config.json: the rotary positions of `full_attention` blocks are missing",
            ),
            (
                json!({ "partial_rotary_factor": 0.5 }),
                "config.json: `partial_rotary_factor` 0.5 is not supported, only 1",
            ),
            (
                json!({ "model_type": "phi3", "partial_rotary_factor": 0.9 }),
                "config.json: 0.9 of a head's 8 numbers are 7, rotary positions need pairs",
            ),
            (
                json!({
                    "model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8,
                    "layer_types": ["full_attention", "chunked_attention"],
                }),
                "config.json: `layer_types` should be a list of 2 words, each \"full_attention\" or \
                 \"sliding_attention\", found [\"full_attention\",\"chunked_attention\"]",
            ),
            (
                json!({ "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 5 }),
                "config.json: `num_experts_per_tok` is 5, of 4 experts",
            ),
            (
                json!({ "model_type": "qwen3_moe", "num_experts": 9, "mlp_only_layers": [2] }),
                "config.json: `mlp_only_layers` should be a list of block numbers below 2, found [2]",
            ),
            (
                json!({ "model_type": "gemma3_text", "use_bidirectional_attention": true }),
                "config.json: `use_bidirectional_attention` is true: the model is an encoder, and only decoders are run \
                 here",
            ),
            (
                json!({ "model_type": "falcon", "alibi": true }),
                "config.json: `alibi` is true: positions by ALiBi are not run, only rotary ones",
            ),
            (
                json!({ "model_type": "gpt2", "n_inner": 0 }),
                "config.json: `n_inner` should be a positive whole number, found 0",
            ),
            (
                json!({ "model_type": "llava" }),
                "config.json: `text_config` is missing; of a model of type `llava` only the text part is run, and it \
                 says what that is",
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
        let block = |changes: Value| read(changes).unwrap().blocks.swap_remove(0);
        let bias = |changes: Value| {
            let block = block(changes);
            Stage::ALL.map(|stage| block.at(stage)[0].bias)
        };
        let llama = block(json!({}));
        assert_eq!((llama.attention.head_dim, llama.attention.window), (8, None));
        assert_eq!(bias(json!({})), [false; 4]);
        assert_eq!(bias(json!({ "attention_bias": true })), [true, true, false, false]);
        assert_eq!(bias(json!({ "model_type": "qwen2", "attention_bias": true })), [true, false, false, false]);
        let qwen3 = block(json!({ "model_type": "qwen3" })).attention;
        assert!(matches!(qwen3.qk_norm, Some(QkNorm::Heads(..))) && qwen3.head_dim == 128);
        assert_eq!(block(json!({ "model_type": "mistral" })).attention.window, Some(4096));
        let phi3 = block(json!({ "model_type": "phi3" }));
        assert_eq!((phi3.attention.projection, phi3.at(Stage::Attention).len()), (Projection::Fused, 1));
        assert!(read(json!({ "model_type": "gemma", "hidden_act": "gelu" })).unwrap().head.tied);
    }

    #[test]
    fn a_window_holds_where_the_family_says() {
        let windows = |changes: Value| -> Vec<Option<usize>> {
            read(changes).unwrap().blocks.iter().map(|block| block.attention.window).collect()
        };
        // Llama reads no window; Qwen only with `use_sliding_window`, from block `max_window_layers` on.
        assert_eq!(windows(json!({ "sliding_window": 8 })), [None; 2]);
        assert_eq!(windows(json!({ "model_type": "mistral", "sliding_window": 8 })), [Some(8); 2]);
        assert_eq!(windows(json!({ "model_type": "qwen2", "sliding_window": 8 })), [None; 2]);
        let qwen = |last: usize| {
            windows(json!({
                "model_type": "qwen2", "sliding_window": 8, "use_sliding_window": true, "max_window_layers": last,
            }))
        };
        assert_eq!([qwen(0), qwen(1), qwen(28)], [[Some(8); 2], [None, Some(8)], [None; 2]]);
        let gemma = |pattern: Value| {
            windows(json!({
                "model_type": "gemma3_text", "num_hidden_layers": 4, "sliding_window": 8,
                "sliding_window_pattern": pattern, "hidden_act": null,
            }))
        };
        assert_eq!(gemma(Value::Null), [Some(8); 4]);
        assert_eq!(gemma(json!(2)), [Some(8), None, Some(8), None]);
    }

    #[test]
    fn a_text_part_has_its_classs_defaults_and_the_whole_models_word_on_ties() {
        let json = json!({
            "model_type": "gemma3", "eos_token_id": [1, 106],
            "text_config": {
                "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
                "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024,
            },
        });
        let config = DecoderConfig::from_json(Path::new("config.json"), &json).unwrap();
        assert_eq!((config.vocab_size, config.max_positions, config.eos), (262_208, 131_072, vec![1, 106]));
        assert!(config.text_part && config.head.tied && config.base == "language_model.model.");
        let rope = |index: usize| config.blocks[index].attention.rope.clone().unwrap();
        assert_eq!((rope(0).theta, rope(5).theta), (1e4, 1e6));
        assert_eq!((rope(0).frequencies().0[0], rope(5).frequencies().0[0]), (1.0, 0.125));
        let llava = json!({
            "model_type": "llava", "text_config": { "model_type": "llama", "max_position_embeddings": 4096,
            "vocab_size": 32064 }, "tie_word_embeddings": false,
        });
        let config = DecoderConfig::from_json(Path::new("config.json"), &llava).unwrap();
        assert_eq!((config.n_blocks, config.hidden_size, config.blocks[0].mlp.width), (32, 4096, 11008));
    }
}
