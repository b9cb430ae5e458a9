//! The scaling of rotary embedding, as `config.json` says it.
//!
//! GGUF names linear and YaRN scaling in its metadata. Llama 3's scaling it applies beforehand: the tensor
//! `rope_freqs.weight` (head_dim / 2) holds the number each frequency is divided by, and the four parameters behind it
//! are gone. They are found again by trial: a candidate counts only if it gives back the whole tensor.

use std::f64::consts::TAU;

use serde_json::{Map, Value as Json, json};

use super::Facts;
use crate::format::gguf::{Value, dequantize};

/// `rope_scaling` of `config.json`: null, or an object with `rope_type`. What cannot be expressed is noted as a problem.
pub(super) fn scaling(
    facts: &mut Facts<'_>,
    architecture: &str,
    theta: f64,
    head_dim: usize,
    context_length: usize,
) -> Json {
    let key = |suffix: &str| format!("{architecture}.rope.{suffix}");
    let kind = facts.optional(&key("scaling.type"), "a name", Value::as_str).unwrap_or("none");
    let factor = facts.optional_positive(&key("scaling.factor"));
    let older = facts.optional_positive(&key("scale_linear"));
    let original = facts.optional_size(&key("scaling.original_context_length"));
    let divisors = divisors(facts, head_dim);

    if let Some(divisors) = divisors.filter(|divisors| divisors.iter().any(|&divisor| divisor != 1.0)) {
        if kind != "none" {
            facts.problem(
                Some("rope_freqs.weight"),
                format!("scales the rotary embedding, which `{}` = {kind} does again", key("scaling.type")),
            );
        }
        return match llama3(&divisors, theta, original) {
            Some(parameters) => parameters,
            None => {
                facts.problem(
                    Some("rope_freqs.weight"),
                    "is not a rope scaling of the llama3 kind with known parameters, so config.json cannot express it",
                );
                Json::Null
            }
        };
    }
    match (kind, factor.or(older)) {
        ("none", None | Some(1.0)) => Json::Null,
        // Before `scaling.type` existed, a factor alone meant linear scaling.
        ("none" | "linear", Some(factor)) => json!({ "factor": factor, "rope_type": "linear" }),
        ("yarn", Some(factor)) => {
            let mut yarn = Map::new();
            for (suffix, hf) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
                if let Some(value) = facts.optional_positive(&key(&format!("scaling.{suffix}"))) {
                    yarn.insert(hf.to_owned(), json!(value));
                }
            }
            for suffix in ["attn_factor", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier"] {
                let key = key(&format!("scaling.{suffix}"));
                if let Some(value) = facts.gguf.get(&key).filter(|value| value.as_f64() != Some(1.0)) {
                    let found = value.summary();
                    facts.problem(None, format!("metadata `{key}` is {found}, which config.json cannot express"));
                }
            }
            yarn.insert("factor".to_owned(), json!(factor));
            yarn.insert("original_max_position_embeddings".to_owned(), json!(original.unwrap_or(context_length)));
            yarn.insert("rope_type".to_owned(), json!("yarn"));
            yarn.into()
        }
        ("linear" | "yarn", None) => {
            facts.problem(None, format!("metadata `{}` is missing, expected a positive number", key("scaling.factor")));
            Json::Null
        }
        _ => {
            let kind = kind.escape_debug();
            facts.problem(None, format!("the rope scaling `{kind}` cannot be converted, only linear, yarn and llama3"));
            Json::Null
        }
    }
}

/// `rope_freqs.weight`, if the file has it and it is sound.
fn divisors(facts: &mut Facts<'_>, head_dim: usize) -> Option<Vec<f64>> {
    const NAME: &str = super::architecture::ROPE_FREQS;
    let tensor = facts.gguf.tensor(NAME)?;
    if tensor.shape() != [head_dim / 2] || !tensor.dtype().is_float() {
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        facts.problem(Some(NAME), format!("is {dtype} {shape:?}, expected F32 [{}]", head_dim / 2));
        return None;
    }
    let mut values = vec![0.0; head_dim / 2];
    dequantize(tensor.dtype(), tensor.bytes(), &mut values);
    if values.iter().any(|&value| value.is_nan() || value < 1.0) {
        facts.problem(Some(NAME), "holds a divisor below 1, which no rope scaling has");
        return None;
    }
    Some(values.into_iter().map(f64::from).collect())
}

/// Llama 3's frequency factors: high ones (λ < context / HIGH) stay, low ones (λ > context / LOW) are divided by
/// `factor`, those between are blended.
fn llama3(divisors: &[f64], theta: f64, original: Option<usize>) -> Option<Json> {
    // Only context / (HIGH − LOW) and LOW / (HIGH − LOW) show in the result, so fixing both loses nothing.
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    // Every published model has 8192; the others are tried for those to come.
    const CONTEXTS: [usize; 8] = [8192, 2048, 4096, 16384, 32768, 65536, 131_072, 262_144];
    /// The tensor is f32, and some writers computed it in f32 too.
    const CLOSE: f64 = 1e-4;

    let factor = divisors.iter().copied().fold(1.0, f64::max);
    let explains = |context: usize| {
        let expected = llama3_divisors(theta, divisors.len(), factor, LOW, HIGH, context as f64);
        divisors.iter().zip(expected).all(|(divisor, expected)| (divisor - expected).abs() <= CLOSE * expected)
    };
    let context = original.into_iter().chain(CONTEXTS).find(|&context| explains(context))?;
    Some(json!({
        "factor": factor,
        "high_freq_factor": HIGH,
        "low_freq_factor": LOW,
        "original_max_position_embeddings": context,
        "rope_type": "llama3",
    }))
}

/// What llama3's scaling divides each of `count` frequencies by.
pub(crate) fn llama3_divisors(theta: f64, count: usize, factor: f64, low: f64, high: f64, context: f64) -> Vec<f64> {
    (0..count)
        .map(|i| {
            let wavelength = TAU * theta.powf(i as f64 / count as f64);
            let blend = ((context / wavelength - low) / (high - low)).clamp(0.0, 1.0);
            1.0 / ((1.0 - blend) / factor + blend)
        })
        .collect()
}
