//! What a layer does by its number, where the configuration does not list it: a table of families and their rules.
//!
//! A rule gives what each layer *effectively* does, an explicit list counting before the pattern as in transformers, and
//! knows how to write that down for the layers that stay. After writing, the rule is asked again: what cannot be written
//! down is thereby found, and refused.

use serde_json::{Map, Value, json};

/// A JSON object of the configuration.
pub(super) type Scope = Map<String, Value>;

/// One thing that may differ from layer to layer.
pub(super) struct Rule {
    /// What it is, for messages.
    pub what: &'static str,
    /// What each of `layers` layers does; `None` where all do the same and nothing needs to be written.
    pub effective: fn(&Scope, usize) -> Option<Vec<Value>>,
    /// Writes what the layers that stay do.
    pub write: fn(&mut Scope, &[Value]),
}

/// The rules of some model types.
pub(super) struct Family {
    pub types: &'static [&'static str],
    pub rules: &'static [Rule],
}

fn number(scope: &Scope, key: &str) -> Option<usize> {
    scope.get(key)?.as_u64().map(|n| n as usize)
}

fn flag(scope: &Scope, key: &str) -> bool {
    scope.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn set(scope: &Scope, key: &str) -> bool {
    scope.get(key).is_some_and(|value| !value.is_null())
}

/// The list `key` of `layers` values, if there is one.
fn list(scope: &Scope, key: &str, layers: usize) -> Option<Vec<Value>> {
    scope.get(key)?.as_array().filter(|list| list.len() == layers).cloned()
}

/// Indices in the list `key`.
fn indices(scope: &Scope, key: &str) -> Option<Vec<usize>> {
    Some(scope.get(key)?.as_array()?.iter().filter_map(|value| value.as_u64().map(|n| n as usize)).collect())
}

fn words(layers: usize, word: impl Fn(usize) -> &'static str) -> Vec<Value> {
    (0..layers).map(|layer| Value::from(word(layer))).collect()
}

fn flags(layers: usize, flag: impl Fn(usize) -> bool) -> Vec<Value> {
    (0..layers).map(|layer| Value::from(flag(layer))).collect()
}

/// Removes the numbers from which a list would follow if it were absent, unless they still say the same.
fn drop_stale(
    scope: &mut Scope,
    keys: &[&str],
    key: &str,
    values: &[Value],
    derive: fn(&Scope, usize) -> Option<Vec<Value>>,
) {
    let mut without = scope.clone();
    without.shift_remove(key);
    if derive(&without, values.len()).as_deref() != Some(values) {
        keys.iter().for_each(|key| drop(scope.shift_remove(*key)));
    }
}

/// `layer_types`: `nth` at every so many-th layer (counted from `shift`), `other` elsewhere.
macro_rules! every {
    ($what:literal, [$($key:literal),*], $default:literal, $shift:literal, $nth:literal, $other:literal, $when:expr) => {
        Rule {
            what: $what,
            effective: {
                fn effective(scope: &Scope, layers: usize) -> Option<Vec<Value>> {
                    let when: fn(&Scope) -> bool = $when;
                    list(scope, "layer_types", layers).or_else(|| {
                        let keys: &[&str] = &[$($key),*];
                        let period = keys.iter().find_map(|key| number(scope, key)).unwrap_or($default);
                        (when(scope) && period > 0)
                            .then(|| words(layers, |i| if (i + $shift) % period == 0 { $nth } else { $other }))
                    })
                }
                effective
            },
            write: {
                fn write(scope: &mut Scope, values: &[Value]) {
                    scope.insert("layer_types".into(), values.into());
                    let derive: fn(&Scope, usize) -> Option<Vec<Value>> = |scope, layers| {
                        let keys: &[&str] = &[$($key),*];
                        let period = keys.iter().find_map(|key| number(scope, key)).unwrap_or($default).max(1);
                        Some(words(layers, |i| if (i + $shift) % period == 0 { $nth } else { $other }))
                    };
                    drop_stale(scope, &[$($key),*], "layer_types", values, derive);
                }
                write
            },
        }
    };
}

/// Every so many-th layer sees everything, the others a window.
macro_rules! windows {
    ([$($key:literal),*], $default:literal, $shift:literal, $when:expr) => {
        every!("attention windows", [$($key),*], $default, $shift, "full_attention", "sliding_attention", $when)
    };
}

const ALWAYS: fn(&Scope) -> bool = |_| true;

/// Qwen 2 and 3: windows from `max_window_layers` on, if they are used at all.
const WINDOWS_FROM: Rule = Rule {
    what: "attention windows",
    effective: |scope, layers| {
        list(scope, "layer_types", layers).or_else(|| {
            let used = flag(scope, "use_sliding_window") && set(scope, "sliding_window");
            let first = number(scope, "max_window_layers").unwrap_or(28);
            used.then(|| words(layers, |i| if i >= first { "sliding_attention" } else { "full_attention" }))
        })
    },
    write: |scope, values| {
        // Releases before `layer_types` read only this number; it says the same, since what stays keeps its order.
        let full = values.iter().filter(|value| *value == "full_attention").count();
        if scope.contains_key("max_window_layers") || flag(scope, "use_sliding_window") {
            scope.insert("max_window_layers".into(), full.into());
        }
        scope.insert("layer_types".into(), values.into());
    },
};

/// dots.llm1: the same without the switch.
const WINDOWS_FROM_SET: Rule = Rule {
    what: "attention windows",
    effective: |scope, layers| {
        list(scope, "layer_types", layers).or_else(|| {
            let first = number(scope, "max_window_layers").unwrap_or(62);
            set(scope, "sliding_window")
                .then(|| words(layers, |i| if i >= first { "sliding_attention" } else { "full_attention" }))
        })
    },
    write: WINDOWS_FROM.write,
};

/// Qwen 2 MoE: every second of the layers below `max_window_layers` has a window, if windows are used.
const WINDOWS_BELOW: Rule = Rule {
    what: "attention windows",
    effective: |scope, layers| {
        list(scope, "layer_types", layers).or_else(|| {
            let last = number(scope, "max_window_layers").unwrap_or(28);
            let word =
                |i: usize| if !(i + 1).is_multiple_of(2) && i < last { "sliding_attention" } else { "full_attention" };
            flag(scope, "use_sliding_window").then(|| words(layers, word))
        })
    },
    write: |scope, values| drop(scope.insert("layer_types".into(), values.into())),
};

/// An explicit list or nothing.
const LAYER_TYPES: Rule = Rule {
    what: "kinds of layers",
    effective: |scope, layers| list(scope, "layer_types", layers),
    write: |scope, values| drop(scope.insert("layer_types".into(), values.into())),
};

/// SmolLM 3 and Llama 4: every so many-th layer has no rotary positions.
const NO_ROPE: Rule = Rule {
    what: "rotary positions",
    effective: |scope, layers| {
        list(scope, "no_rope_layers", layers).or_else(|| {
            let every = number(scope, "no_rope_layer_interval").unwrap_or(4).max(1);
            Some((0..layers).map(|i| Value::from(u8::from((i + 1) % every != 0))).collect())
        })
    },
    write: |scope, values| {
        scope.insert("no_rope_layers".into(), values.into());
        drop_stale(scope, &["no_rope_layer_interval"], "no_rope_layers", values, NO_ROPE.effective);
    },
};

/// SmolLM 3: layers without rotary positions have a window, if windows are used.
const NO_ROPE_WINDOWS: Rule = Rule {
    what: "attention windows",
    effective: |scope, layers| {
        list(scope, "layer_types", layers).or_else(|| {
            let used = flag(scope, "use_sliding_window") && set(scope, "sliding_window");
            let rope = (NO_ROPE.effective)(scope, layers)?;
            used.then(|| words(layers, |i| if rope[i] == 0 { "sliding_attention" } else { "full_attention" }))
        })
    },
    write: |scope, values| drop(scope.insert("layer_types".into(), values.into())),
};

/// Llama 4: layers with rotary positions attend in chunks.
const NO_ROPE_CHUNKS: Rule = Rule {
    what: "attention chunks",
    effective: |scope, layers| {
        list(scope, "layer_types", layers).or_else(|| {
            let rope = (NO_ROPE.effective)(scope, layers)?;
            Some(words(layers, |i| if rope[i] == 0 { "full_attention" } else { "chunked_attention" }))
        })
    },
    write: |scope, values| drop(scope.insert("layer_types".into(), values.into())),
};

/// Llama 4: every so many-th MLP is a mixture of experts.
const INTERLEAVED_EXPERTS: Rule = Rule {
    what: "mixtures of experts",
    effective: |scope, layers| {
        let step = number(scope, "interleave_moe_layer_step").unwrap_or(1).max(1);
        match indices(scope, "moe_layers") {
            Some(listed) => Some(flags(layers, |i| listed.contains(&i))),
            None => Some(flags(layers, |i| (i + 1) % step == 0)),
        }
    },
    write: |scope, values| {
        let listed: Vec<usize> = (0..values.len()).filter(|&i| values[i] == true).collect();
        scope.insert("moe_layers".into(), listed.into());
    },
};

/// Qwen's mixtures: every `decoder_sparse_step`-th layer but those of `mlp_only_layers`.
const SPARSE_STEP: Rule = Rule {
    what: "mixtures of experts",
    effective: |scope, layers| {
        let step = number(scope, "decoder_sparse_step").unwrap_or(1).max(1);
        let dense = indices(scope, "mlp_only_layers").unwrap_or_default();
        Some(flags(layers, |i| (i + 1) % step == 0 && !dense.contains(&i)))
    },
    write: |scope, values| {
        let dense: Vec<usize> = (0..values.len()).filter(|&i| values[i] == false).collect();
        if number(scope, "decoder_sparse_step").unwrap_or(1) != 1 {
            scope.insert("decoder_sparse_step".into(), 1.into());
        }
        if scope.contains_key("mlp_only_layers") || !dense.is_empty() {
            scope.insert("mlp_only_layers".into(), dense.into());
        }
    },
};

/// DeepSeek and its relatives: the first layers are dense, of the others every `moe_layer_freq`-th is a mixture.
const FIRST_DENSE: Rule = Rule {
    what: "mixtures of experts",
    effective: |scope, layers| {
        list(scope, "mlp_layer_types", layers).map(|kinds| flags(layers, |i| kinds[i] == "sparse")).or_else(|| {
            let first = number(scope, "first_k_dense_replace").or(number(scope, "num_dense_layers"))?;
            let every = number(scope, "moe_layer_freq").unwrap_or(1).max(1);
            Some(flags(layers, |i| i >= first && i % every == 0))
        })
    },
    write: |scope, values| {
        let dense = values.iter().take_while(|value| **value == false).count();
        for key in ["first_k_dense_replace", "num_dense_layers"] {
            if scope.contains_key(key) {
                scope.insert(key.into(), dense.into());
            }
        }
    },
};

/// A period and an offset that give `values`; the ones there are tried first.
fn write_period(scope: &mut Scope, (period, offset): (&str, &str), values: &[Value]) {
    let fits = |p: usize, o: usize| (0..values.len()).all(|i| (values[i] == true) == (i % p == o));
    let (p, o) = (number(scope, period).unwrap_or(1).max(1), number(scope, offset).unwrap_or(0));
    if fits(p, o) {
        return;
    }
    // One that never comes round within the layers that are left stands for a single such layer, or none.
    let longest = 2 * values.len().max(p);
    if let Some((p, o)) = (1..=longest).flat_map(|p| (0..p).map(move |o| (p, o))).find(|&(p, o)| fits(p, o)) {
        scope.insert(period.into(), p.into());
        scope.insert(offset.into(), o.into());
    }
}

/// Jamba: attention and experts by period and offset; there is no list to write.
const JAMBA_ATTENTION: Rule = Rule {
    what: "attention among state-space layers",
    effective: |scope, layers| {
        let period = number(scope, "attn_layer_period").unwrap_or(8).max(1);
        let offset = number(scope, "attn_layer_offset").unwrap_or(4);
        Some(flags(layers, |i| i % period == offset))
    },
    write: |scope, values| write_period(scope, ("attn_layer_period", "attn_layer_offset"), values),
};

const JAMBA_EXPERTS: Rule = Rule {
    what: "mixtures of experts",
    effective: |scope, layers| {
        let period = number(scope, "expert_layer_period").unwrap_or(2).max(1);
        let offset = number(scope, "expert_layer_offset").unwrap_or(1);
        Some(flags(layers, |i| i % period == offset))
    },
    write: |scope, values| write_period(scope, ("expert_layer_period", "expert_layer_offset"), values),
};

/// GPT-2: scores divided by the layer's number.
const INVERSE_SCALE: Rule = Rule {
    what: "the scale of attention scores, 1 over the layer's number (`scale_attn_by_inverse_layer_idx`)",
    effective: |scope, layers| {
        flag(scope, "scale_attn_by_inverse_layer_idx").then(|| (0..layers).map(|i| Value::from(i + 1)).collect())
    },
    write: |_, _| {},
};

/// Griffin: a short list of kinds, repeated.
const REPEATED_KINDS: Rule = Rule {
    what: "kinds of layers",
    effective: |scope, layers| {
        let key = if set(scope, "_block_types") { "_block_types" } else { "block_types" };
        let kinds = scope.get(key).and_then(Value::as_array).filter(|kinds| !kinds.is_empty()).cloned();
        let kinds = kinds.unwrap_or_else(|| vec!["recurrent".into(), "recurrent".into(), "attention".into()]);
        Some((0..layers).map(|i| kinds[i % kinds.len()].clone()).collect())
    },
    write: |scope, values| {
        // A list as long as the model is repeated once.
        let key = if set(scope, "_block_types") { "_block_types" } else { "block_types" };
        scope.insert(key.into(), values.into());
    },
};

/// GPT-Neo: kinds with how often they are repeated.
const ATTENTION_TYPES: Rule = Rule {
    what: "local attention",
    effective: |scope, layers| {
        let mut kinds = Vec::new();
        for part in scope.get("attention_types")?.as_array()? {
            let (part, times) = (part.get(0)?.as_array()?, part.get(1)?.as_u64()?);
            (0..times.min(layers as u64 + 1)).for_each(|_| kinds.extend(part.iter().cloned()));
        }
        (kinds.len() == layers).then_some(kinds)
    },
    write: |scope, values| {
        scope.insert("attention_types".into(), json!([[values, 1]]));
        if scope.contains_key("attention_layers") {
            scope.insert("attention_layers".into(), values.into());
        }
    },
};

/// Gemma 3n: the last layers read keys and values of the last one of their kind that makes its own.
const SHARED_KEYS: Rule = Rule {
    what: "shared keys and values (`num_kv_shared_layers`)",
    effective: |scope, layers| {
        let shared = number(scope, "num_kv_shared_layers").filter(|&shared| shared > 0)?;
        Some(flags(layers, |i| i + shared >= layers))
    },
    write: |scope, values| {
        let shared = values.iter().filter(|value| **value == true).count();
        scope.insert("num_kv_shared_layers".into(), shared.into());
    },
};

/// Gemma 3n: the first ten layers' activations are thinned out, where the configuration has no list.
const ACTIVATION_SPARSITY: Rule = Rule {
    what: "sparse activations (`activation_sparsity_pattern`)",
    effective: |scope, layers| {
        list(scope, "activation_sparsity_pattern", layers).or_else(|| {
            let sparse = if layers > 10 { 10 } else { 0 };
            Some((0..layers).map(|i| Value::from(if i < sparse { 0.95 } else { 0.0 })).collect())
        })
    },
    write: |scope, values| drop(scope.insert("activation_sparsity_pattern".into(), values.into())),
};

/// The families whose layers are known. A model type that is in none of them is refused, since what its layers do may
/// follow from their numbers.
pub(super) const FAMILIES: &[Family] = &[
    // Every layer is like every other, or listed.
    Family {
        types: &[
            "llama",
            "mistral",
            "ministral",
            "mixtral",
            "gemma",
            "phi",
            "phi3",
            "phimoe",
            "olmo",
            "olmo2",
            "olmoe",
            "granite",
            "granitemoe",
            "stablelm",
            "starcoder2",
            "cohere",
            "helium",
            "nemotron",
            "persimmon",
            "codegen",
            "gptj",
            "gpt_neox",
            "gpt_bigcode",
            "opt",
            "bloom",
            "mpt",
            "falcon",
            "xglm",
            "biogpt",
            "glm",
            "glm4",
            "seed_oss",
            "smollm",
            "arcee",
            "ernie4_5",
            "exaone",
            "internlm2",
            "mamba",
            "mamba2",
            "falcon_mamba",
            "falcon_h1",
            "qwen2_vl_text",
            "bert",
            "roberta",
            "xlm-roberta",
            "xlm-roberta-xl",
            "camembert",
            "distilbert",
            "electra",
            "mpnet",
            "ernie",
            "esm",
            "deberta",
            "deberta-v2",
            "nomic_bert",
            "vit",
            "deit",
            "clip_vision_model",
            "siglip_vision_model",
            "clip_text_model",
            "bart",
            "mbart",
            "marian",
            "pegasus",
            "whisper",
            "m2m_100",
            "umt5",
            "bitnet",
            "apertus",
        ],
        rules: &[LAYER_TYPES],
    },
    Family { types: &["gpt2"], rules: &[INVERSE_SCALE] },
    Family { types: &["gpt_neo"], rules: &[ATTENTION_TYPES] },
    Family { types: &["t5", "mt5", "albert"], rules: &[] },
    Family { types: &["gemma2", "vaultgemma"], rules: &[windows!([], 2, 1, ALWAYS)] },
    Family {
        types: &["gemma3_text"],
        rules: &[windows!(["sliding_window_pattern", "_sliding_window_pattern"], 6, 1, ALWAYS)],
    },
    Family { types: &["gemma3n_text"], rules: &[windows!([], 5, 1, ALWAYS), SHARED_KEYS, ACTIVATION_SPARSITY] },
    Family {
        types: &["cohere2"],
        rules: &[windows!(["sliding_window_pattern", "_sliding_window_pattern"], 4, 1, ALWAYS)],
    },
    Family { types: &["olmo3"], rules: &[windows!([], 4, 1, ALWAYS)] },
    Family { types: &["gpt_oss"], rules: &[windows!([], 2, 1, ALWAYS)] },
    Family {
        types: &["exaone4"],
        rules: &[windows!(["sliding_window_pattern"], 4, 1, |scope| set(scope, "sliding_window"))],
    },
    Family {
        types: &["modernbert", "modernbert-decoder"],
        rules: &[windows!(["global_attn_every_n_layers"], 3, 0, ALWAYS)],
    },
    Family { types: &["qwen2", "qwen3", "qwen2_5_vl_text"], rules: &[WINDOWS_FROM] },
    Family { types: &["qwen2_moe"], rules: &[WINDOWS_BELOW, SPARSE_STEP] },
    Family { types: &["qwen3_moe", "qwen3_vl_moe_text"], rules: &[LAYER_TYPES, SPARSE_STEP] },
    Family { types: &["qwen3_vl_text"], rules: &[LAYER_TYPES] },
    Family {
        types: &["qwen3_next"],
        rules: &[
            every!("linear attention", ["full_attention_interval"], 4, 1, "full_attention", "linear_attention", ALWAYS),
            SPARSE_STEP,
        ],
    },
    Family {
        types: &["qwen3_5_text", "qwen3_5_moe_text"],
        rules: &[every!(
            "linear attention",
            ["full_attention_interval"],
            4,
            1,
            "full_attention",
            "linear_attention",
            ALWAYS
        )],
    },
    Family { types: &["smollm3"], rules: &[NO_ROPE, NO_ROPE_WINDOWS] },
    Family { types: &["llama4_text"], rules: &[NO_ROPE, NO_ROPE_CHUNKS, INTERLEAVED_EXPERTS] },
    Family { types: &["deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe"], rules: &[LAYER_TYPES, FIRST_DENSE] },
    Family { types: &["dots1"], rules: &[WINDOWS_FROM_SET, FIRST_DENSE] },
    Family { types: &["lfm2", "lfm2_moe"], rules: &[LAYER_TYPES, FIRST_DENSE] },
    Family { types: &["jamba"], rules: &[JAMBA_ATTENTION, JAMBA_EXPERTS] },
    Family { types: &["bamba", "nemotron_h", "granitemoehybrid"], rules: &[LAYER_TYPES] },
    Family { types: &["recurrent_gemma"], rules: &[REPEATED_KINDS] },
];

/// The rules of `model_type`, if it is known.
pub(super) fn rules(model_type: &str) -> Option<&'static [Rule]> {
    FAMILIES.iter().find(|family| family.types.contains(&model_type)).map(|family| family.rules)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_model_type_stands_once() {
        let types: Vec<&str> = FAMILIES.iter().flat_map(|family| family.types).copied().collect();
        assert_eq!(types.iter().collect::<BTreeSet<_>>().len(), types.len());
    }
}
