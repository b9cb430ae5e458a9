//! Rewriting a configuration: counts, lists, patterns.

use std::path::Path;

use serde_json::Value;

use super::{
    Stack,
    families::{self, Scope},
    quantised,
    stack::{part, part_mut},
};
use crate::{Error, Result};

/// Lists with an entry a layer.
const PER_LAYER: &[&str] = &[
    "layer_types",
    "mlp_layer_types",
    "no_rope_layers",
    "indexer_types",
    "intermediate_size",
    "activation_sparsity_pattern",
    "layers_block_type",
    "attention_layers",
    "attention_window",
    "num_attention_heads_per_layer",
    "num_key_value_heads_per_layer",
    "num_attention_heads",
    "num_key_value_heads",
    "num_query_heads",
    "num_kv_heads",
    "ffn_multipliers",
    "block_configs",
    "hybrid_override_pattern",
    "layer_kinds",
    "rope_layers",
    "sliding_window_layers",
];

/// Lists of layers' numbers, and dictionaries by layer.
const INDICES: &[&str] = &[
    "moe_layers",
    "mlp_only_layers",
    "cross_attention_layers",
    "full_attn_idxs",
    "kv_source_layers",
    "deepstack_visual_indexes",
    "window_block_indices",
    "attn_layers",
    "attn_layer_indices",
    "layer_ids",
    "hybrid_layer_ids",
    "per_layer_config",
    "pruned_heads",
];

/// Lists and dictionaries that have nothing to do with layers, however long they are.
const NOT_LAYERS: &[&str] = &[
    "architectures",
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "id2label",
    "label2id",
    "rope_parameters",
    "rope_scaling",
    "mrope_section",
    "short_factor",
    "long_factor",
    "image_mean",
    "image_std",
    "task_specific_params",
    "auto_map",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "attention_types",
    "keys_to_ignore_at_inference",
    "block_types",
    "_block_types",
    "quantization_config",
    "compression_config",
    "time_step_limit",
    "time_step_limits",
    "ssm_multipliers",
    "mlp_multipliers",
    "token_type_ids",
];

/// A configuration without some layers.
pub(super) struct Rewritten {
    pub config: Value,
    pub changes: Vec<String>,
    pub notes: Vec<String>,
}

/// Rewrites `config`, of `file`, for the layers `kept` of `stack`.
pub(super) fn rewrite(file: &Path, config: &Value, stack: &Stack, kept: &[usize], force: bool) -> Result<Rewritten> {
    let refuse = |what: String| Error::Model(format!("{}: {what}", file.display()));
    let mut out = Rewritten { config: config.clone(), changes: Vec::new(), notes: Vec::new() };
    let layers = stack.layers;
    let Some(scope) = part(config, &stack.scope) else {
        return Err(refuse("the configuration is no JSON object".into()));
    };
    let rules = match families::rules(&stack.model_type) {
        Some(rules) => rules,
        None if force => {
            out.notes.push(format!(
                "model type `{}` is not known: what its layers do was taken not to follow from their numbers",
                stack.model_type
            ));
            &[]
        }
        None => {
            return Err(refuse(format!(
                "model type `{}` is not known here, and so neither is whether what a layer does follows from its number; \
                 --force takes it that it does not",
                stack.model_type
            )));
        }
    };
    let before: Vec<_> = rules.iter().map(|rule| (rule.effective)(scope, layers)).collect();
    expect_no_shared_table(scope, stack, kept).map_err(&refuse)?;
    expect_producers(scope, stack, kept).map_err(&refuse)?;

    let Some(new) = part_mut(&mut out.config, &stack.scope) else {
        return Err(refuse("the configuration is no JSON object".into()));
    };
    // 1. Counts.
    for key in &stack.counts {
        new.insert(key.clone(), kept.len().into());
        out.changes.push(format!("`{key}`: {layers} becomes {}", kept.len()));
    }
    if stack.name.split('.').any(|segment| segment == "encoder")
        && stack.counts.iter().any(|key| key == "num_layers")
        && new.get("is_encoder_decoder").and_then(Value::as_bool) == Some(true)
        && !new.contains_key("num_decoder_layers")
    {
        new.insert("num_decoder_layers".into(), layers.into());
        out.changes.push(format!("`num_decoder_layers`: written down as {layers}, which followed from the encoder's"));
    }
    // 2. Lists.
    for key in new.keys().cloned().collect::<Vec<_>>() {
        let Some(value) = new.get_mut(&key) else { continue };
        match slice(&key, value, layers, kept, force) {
            Ok(None) => {}
            Ok(Some(change)) => out.changes.push(change),
            Err(what) => return Err(refuse(what)),
        }
    }
    // 3. What follows from a layer's number.
    for (rule, before) in rules.iter().zip(&before) {
        let Some(before) = before else { continue };
        let wanted: Vec<Value> = kept.iter().map(|&layer| before[layer].clone()).collect();
        let by_itself = (rule.effective)(new, kept.len());
        (rule.write)(new, &wanted);
        if (rule.effective)(new, kept.len()).as_ref() != Some(&wanted) {
            let what = format!(
                "without these layers {} cannot be written down: it follows from a layer's number; choose a set that keeps \
                 the pattern, such as the last layers",
                rule.what
            );
            if !force {
                return Err(refuse(what));
            }
            out.notes.push(what);
        } else if by_itself.as_ref() != Some(&wanted) {
            out.changes.push(format!("{}: written down layer by layer, with what the layers did before", rule.what));
            out.notes.push(format!(
                "{} no longer follow from a layer's number alone: programs that do not read them from the configuration \
                 (llama.cpp, older releases of transformers) would run the model wrongly",
                rule.what
            ));
        }
    }
    quantised::rewrite(&mut out.config, stack, kept, force, &mut out.changes).map_err(refuse)?;
    Ok(out)
}

/// Slices or renumbers the field `key`, if it is about layers; says what was done.
fn slice(key: &str, value: &mut Value, layers: usize, kept: &[usize], force: bool) -> Result<Option<String>, String> {
    if NOT_LAYERS.contains(&key) {
        return Ok(None);
    }
    let renumber = |old: usize| kept.binary_search(&old).ok();
    if INDICES.contains(&key) {
        return match value {
            Value::Array(list) => {
                let number = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
                if !list.iter().all(|value| number(value).is_some()) {
                    return Err(format!(
                        "`{key}` should be a list of layers' numbers, found {}",
                        Value::from(list.clone())
                    ));
                }
                *list = list.iter().filter_map(number).filter_map(renumber).map(Value::from).collect();
                Ok(Some(format!("`{key}`: renumbered")))
            }
            Value::Object(dictionary) => {
                let mut out = Scope::new();
                for (layer, value) in std::mem::take(dictionary) {
                    let old: usize =
                        layer.parse().map_err(|_| format!("`{key}` has `{layer}` for a layer's number"))?;
                    renumber(old).map(|new| out.insert(new.to_string(), value));
                }
                *dictionary = out;
                Ok(Some(format!("`{key}`: renumbered")))
            }
            _ => Ok(None),
        };
    }
    let known = PER_LAYER.contains(&key);
    let length = match value {
        Value::Array(list) => list.len(),
        Value::String(text) if known => text.chars().count(),
        Value::Object(dictionary) => {
            let by_layer = !dictionary.is_empty()
                && dictionary.keys().all(|key| key.parse::<usize>().is_ok_and(|layer| layer < layers));
            if by_layer {
                return match force {
                    true => Ok(None),
                    false => Err(format!(
                        "`{key}` has numbers below {layers} for keys and may be by layer, which is not known here; --force \
                         leaves it as it is"
                    )),
                };
            }
            for (inner, value) in dictionary.iter_mut() {
                // Parts of another model have lists of their own; only what could be about these layers is looked at.
                if let Value::Array(list) = value
                    && list.len() == layers
                    && !NOT_LAYERS.contains(&inner.as_str())
                    && !key.ends_with("_config")
                    && !force
                {
                    return Err(unknown(&format!("{key}.{inner}"), layers));
                }
            }
            return Ok(None);
        }
        _ => return Ok(None),
    };
    if known {
        if length != layers {
            // One entry for all of them, or a broken file.
            return match value {
                Value::Array(_) if force => Ok(None),
                Value::String(_) if force => Ok(None),
                _ => Err(format!("`{key}` has {length} entries, expected one for each of the {layers} layers")),
            };
        }
        match value {
            Value::Array(list) => *list = kept.iter().map(|&layer| list[layer].clone()).collect(),
            Value::String(text) => {
                let letters: Vec<char> = text.chars().collect();
                *text = kept.iter().map(|&layer| letters[layer]).collect();
            }
            _ => {}
        }
        return Ok(Some(format!("`{key}`: cut to the {} layers that stay", kept.len())));
    }
    match length == layers && layers > 1 && !force {
        true => Err(unknown(key, layers)),
        false => Ok(None),
    }
}

fn unknown(key: &str, layers: usize) -> String {
    format!(
        "`{key}` has {layers} entries, as many as there are layers, and is not known here; if it is not about layers, \
         --force leaves it as it is"
    )
}

/// Gemma 3n: one table holds a row's part for every layer, beside the stack, and is not cut here.
fn expect_no_shared_table(scope: &Scope, stack: &Stack, kept: &[usize]) -> Result<(), String> {
    let width = scope.get("hidden_size_per_layer_input").and_then(Value::as_u64).unwrap_or(0);
    match width > 0 && kept.len() < stack.layers {
        true => {
            Err("`hidden_size_per_layer_input` says that one table (`embed_tokens_per_layer`) holds a part for every \
                     layer, which is not cut here; layers of such a model cannot be taken out yet"
                .into())
        }
        false => Ok(()),
    }
}

/// Layers that read the keys and values of others need those to stay.
fn expect_producers(scope: &Scope, stack: &Stack, kept: &[usize]) -> Result<(), String> {
    let shared = scope.get("num_kv_shared_layers").and_then(Value::as_u64).unwrap_or(0) as usize;
    if shared == 0 || shared >= stack.layers {
        return Ok(());
    }
    let first = stack.layers - shared;
    let kinds = families::rules(&stack.model_type)
        .and_then(|rules| rules.iter().find(|rule| rule.what == "attention windows"))
        .and_then(|rule| (rule.effective)(scope, stack.layers));
    let kind = |layer: usize| kinds.as_ref().map(|kinds| &kinds[layer]);
    for &reader in kept.iter().filter(|&&layer| layer >= first) {
        let producer = (0..first).rev().find(|&layer| kind(layer) == kind(reader));
        if let Some(producer) = producer.filter(|producer| !kept.contains(producer)) {
            return Err(format!(
                "layer {reader} reads the keys and values of layer {producer} (`num_kv_shared_layers`), which would be \
                 dropped; keep it, or drop both"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
