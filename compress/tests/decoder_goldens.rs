//! Tiny decoders of every family, held to the logits `transformers` gives (`fixtures/interop/make_decoder_goldens.py`).

#![allow(clippy::print_stdout)] // differences, shown by `--nocapture`

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use scruple_compress::{
    model::{
        Decoder, DecoderConfig,
        decoder::{BlockCache, KvCache},
        generate::{Sampling, generate},
    },
    train::llama::{LlamaConfig, reference_forward},
};
use scruple_weights::Checkpoint;
use serde::Deserialize;
use serde_json::Value;

/// Largest accepted difference of a logit, relative to the largest logit of the model. Both sides compute in f32 but add
/// in another order, which attention scores of ±20 magnify in the softmax: 2e-6 is seen. The goldens are rounded to 5e-7
/// of the largest logit. A wrong rotation or a missing bias shows as 0.1 and more.
const MAX_RELATIVE_DIFFERENCE: f32 = 2e-5;

/// The same between two ways through our own kernels: 1.5e-6 is seen.
const MAX_RELATIVE_DIFFERENCE_CACHED: f32 = 1e-5;

/// Smallest relative difference that a changed setting must make, so that the goldens can tell.
const MIN_RELATIVE_CHANGE: f32 = 0.02;

const CASES: [&str; 30] = [
    "llama",
    "llama-llama3-rope",
    "llama-linear-rope",
    "llama-yarn-rope",
    "llama-biases",
    "mistral-window",
    "qwen2",
    "qwen3",
    "qwen2-some-windows",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3-vision",
    "llava",
    "mistral3",
    "phi3",
    LONG,
    "olmo2",
    "gpt2",
    "gpt2-inverse",
    "gpt-neox",
    "gpt-neox-sequential",
    "opt",
    "opt-projected",
    "falcon",
    "falcon-new",
    "falcon-sequential",
    "mixtral",
    "qwen3-moe",
    "qwen3-moe-raw",
];

/// Its text is longer than the trained context, and every position of a long text is turned otherwise than in a short
/// one: of its goldens, those of a whole text, the first positions are not what a part of the text gives.
const LONG: &str = "phi3-long";
const LONG_TRAINED: usize = 32;

#[derive(Deserialize)]
struct Golden {
    ids: Vec<u32>,
    greedy: Vec<u32>,
    logits: Vec<Vec<f32>>, // (ids, vocab)
}

fn decoders() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/decoders")
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

fn open(name: &str) -> (Decoder, Golden) {
    let folder = decoders().join(name);
    (Decoder::open(&Checkpoint::open(&folder).unwrap()).unwrap(), read_json(&folder.join("golden.json")))
}

fn logits(model: &Decoder, hidden: &Tensor) -> Vec<Vec<f32>> {
    model.logits(hidden).unwrap().to_vec2().unwrap()
}

/// The largest difference relative to the largest magnitude of `expected`, with its place.
fn relative_difference(found: &[Vec<f32>], expected: &[Vec<f32>]) -> (f32, (usize, usize)) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().flatten().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let mut worst = (0.0, (0, 0));
    for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len());
        for (column, (a, b)) in found.iter().zip(expected).enumerate() {
            let difference = (a - b).abs() / largest;
            // In the total order a NaN is the largest, so that none passes.
            if difference.total_cmp(&worst.0).is_gt() {
                worst = (difference, (row, column));
            }
        }
    }
    worst
}

fn assert_close(what: &str, found: &[Vec<f32>], expected: &[Vec<f32>], limit: f32) {
    let (difference, (row, column)) = relative_difference(found, expected);
    println!("{what}: largest relative difference {difference:.2e}");
    assert!(
        difference <= limit,
        "{what}: at position {row}, token {column} found {}, expected {}: {difference:.2e} of the largest logit, allowed {limit:.0e}",
        found[row][column],
        expected[row][column]
    );
}

#[test]
fn logits_in_one_pass_equal_the_goldens() {
    for name in CASES {
        let (model, golden) = open(name);
        let found = logits(&model, &model.hidden_once(&golden.ids).unwrap());
        assert_close(name, &found, &golden.logits, MAX_RELATIVE_DIFFERENCE);
    }
}

#[test]
fn logits_in_pieces_with_a_cache_equal_the_goldens() {
    for name in CASES {
        let (model, golden) = open(name);
        let whole = logits(&model, &model.hidden_once(&golden.ids).unwrap());
        // One by one; in uneven pieces; a long first piece and one token; past the window and past it again.
        for pieces in [[1].as_slice(), &[3, 1, 7, 2], &[47, 1], &[17, 31]] {
            let mut cache = KvCache::default();
            let mut found = Vec::new();
            for length in pieces.iter().cycle() {
                let rest = &golden.ids[found.len()..];
                if rest.is_empty() {
                    break;
                }
                let hidden = model.hidden(&rest[..rest.len().min(*length)], &mut cache).unwrap();
                found.extend(logits(&model, &hidden));
                assert_eq!(cache.positions(), found.len());
            }
            let what = format!("{name} in pieces of {pieces:?}");
            let first = if name == LONG { LONG_TRAINED } else { 0 };
            assert_close(&what, &found[first..], &golden.logits[first..], MAX_RELATIVE_DIFFERENCE);
            assert_close(&what, &found[first..], &whole[first..], MAX_RELATIVE_DIFFERENCE_CACHED);
        }
    }
}

#[test]
fn greedy_generation_is_the_argmax_of_the_whole_prefix() {
    for name in CASES {
        let (model, golden) = open(name);
        let made = generate(&model, &golden.ids, golden.greedy.len(), Sampling::GREEDY, &[], |_| true).unwrap();
        assert_eq!(made, golden.greedy, "{name}");

        let mut stream = golden.ids.clone();
        for _ in &golden.greedy {
            let last = logits(&model, &model.hidden_once(&stream).unwrap()).pop().unwrap();
            let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
            stream.push(best as u32);
        }
        assert_eq!(stream[golden.ids.len()..], golden.greedy, "{name}");
    }
}

#[test]
fn generation_stops_at_an_end_token_at_the_caller_and_at_the_context() {
    let (model, golden) = open("llama-yarn-rope");
    let first_of_its_kind = golden.greedy.iter().position(|id| *id == golden.greedy[3]).unwrap();
    let made = generate(&model, &golden.ids, 12, Sampling::GREEDY, &[golden.greedy[3]], |_| true).unwrap();
    assert_eq!(made, golden.greedy[..first_of_its_kind]);

    let mut seen = Vec::new();
    let each = |id| {
        seen.push(id);
        seen.len() < 2
    };
    assert_eq!(generate(&model, &golden.ids, 12, Sampling::GREEDY, &[], each).unwrap(), golden.greedy[..2]);
    assert_eq!(seen, golden.greedy[..2]);

    let context = model.config().max_positions;
    let made = generate(&model, &golden.ids, 1000, Sampling::GREEDY, &[], |_| true).unwrap();
    assert_eq!(golden.ids.len() + made.len(), context);
    let error = generate(&model, &vec![3; context + 1], 1, Sampling::GREEDY, &[], |_| true).unwrap_err();
    assert_eq!(error.to_string(), "the prompt has 129 tokens, the model's context holds 128; shorten it");
    let error = generate(&model, &[], 1, Sampling::GREEDY, &[], |_| true).unwrap_err();
    assert_eq!(error.to_string(), "the prompt has no tokens; give at least one word");
}

/// The folder `name` copied, with `changes` put into its config; a dot leads into an object.
fn changed(name: &str, changes: Value) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let from = decoders().join(name);
    fs::copy(from.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    let mut config: Value = read_json(&from.join("config.json"));
    for (key, value) in changes.as_object().unwrap() {
        let field = key.split('.').fold(&mut config, |object, key| &mut object[key]);
        *field = value.clone();
    }
    fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    copy
}

#[test]
fn the_goldens_can_tell_a_setting_that_is_ignored() {
    use serde_json::json;
    let plain = json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 10000.0 } });
    let cases = [
        ("llama", json!({ "rope_parameters": { "rope_theta": 9000.0 } })),
        ("llama", json!({ "rms_norm_eps": 1e-1 })),
        ("llama-llama3-rope", plain.clone()),
        ("llama-linear-rope", plain),
        ("llama-yarn-rope", json!({ "rope_parameters": { "rope_theta": 1000.0 } })),
        ("mistral-window", json!({ "sliding_window": null })),
        ("mistral-window", json!({ "sliding_window": 17 })),
        (
            "qwen2",
            json!({ "use_sliding_window": true, "sliding_window": 16, "layer_types": null, "max_window_layers": 0 }),
        ),
        ("qwen2-some-windows", json!({ "layer_types": ["sliding_attention", "full_attention"] })),
        ("gemma", json!({ "rope_parameters.rope_theta": 5000.0 })),
        ("gemma", json!({ "rms_norm_eps": 0.1 })),
        ("gemma2", json!({ "attn_logit_softcapping": null })),
        ("gemma2", json!({ "final_logit_softcapping": null })),
        ("gemma2", json!({ "query_pre_attn_scalar": 16 })),
        ("gemma2", json!({ "layer_types": ["full_attention", "sliding_attention"] })),
        ("gemma3", json!({ "layer_types": vec!["sliding_attention"; 4] })),
        ("gemma3", json!({ "rope_parameters.sliding_attention.rope_theta": 10000.0 })),
        ("gemma3", json!({ "rope_parameters.full_attention.factor": 1.0 })),
        ("gemma3-vision", json!({ "text_config.sliding_window": 40 })),
        ("llava", json!({ "text_config.rope_parameters.rope_theta": 1000.0 })),
        ("mistral3", json!({ "text_config.sliding_window": 8 })),
        ("phi3", json!({ "rope_parameters.rope_type": "default" })),
        ("phi3", json!({ "rope_parameters.attention_factor": 1.0 })),
        ("phi3-long", json!({ "original_max_position_embeddings": 64 })),
        ("olmo2", json!({ "rms_norm_eps": 0.1 })),
        ("gpt2", json!({ "activation_function": "relu" })),
        ("gpt2", json!({ "scale_attn_weights": false })),
        ("gpt2", json!({ "layer_norm_epsilon": 0.1 })),
        ("gpt2-inverse", json!({ "scale_attn_by_inverse_layer_idx": false })),
        ("gpt-neox", json!({ "use_parallel_residual": false })),
        ("gpt-neox", json!({ "rope_parameters.partial_rotary_factor": 1.0 })),
        ("gpt-neox-sequential", json!({ "use_parallel_residual": true })),
        ("opt", json!({ "activation_function": "gelu" })),
        ("falcon", json!({ "activation": "relu" })),
        ("falcon-new", json!({ "rope_parameters.rope_theta": 1000.0 })),
        ("falcon-sequential", json!({ "layer_norm_epsilon": 0.2 })),
        ("mixtral", json!({ "num_experts_per_tok": 1 })),
        ("qwen3-moe", json!({ "norm_topk_prob": false })),
        ("qwen3-moe-raw", json!({ "norm_topk_prob": true })),
        ("qwen3-moe-raw", json!({ "sliding_window": null })),
    ];
    for (name, changes) in cases {
        let folder = changed(name, changes.clone());
        let model = Decoder::open(&Checkpoint::open(folder.path()).unwrap()).unwrap();
        let golden: Golden = read_json(&decoders().join(name).join("golden.json"));
        let found = logits(&model, &model.hidden_once(&golden.ids).unwrap());
        let (difference, _) = relative_difference(&found, &golden.logits);
        assert!(difference > MIN_RELATIVE_CHANGE, "{name} with {changes}: {difference}");
    }
}

#[test]
fn the_steps_of_a_block_make_up_the_block() {
    for name in CASES {
        let (model, golden) = open(name);
        let x = model.embed(&golden.ids, 0).unwrap();
        let rows = |x: &Tensor| x.to_vec2::<f32>().unwrap();
        for block in model.blocks() {
            let whole = block.forward(&x, &mut BlockCache::default()).unwrap();
            let attention = block.attention_step(&x, &mut BlockCache::default()).unwrap();
            let both = match block.spec().parallel {
                true => ((&attention + block.mlp_step(&x).unwrap()).unwrap() - &x).unwrap(),
                false => block.mlp_step(&attention).unwrap(),
            };
            assert_close(name, &rows(&both), &rows(&whole), MAX_RELATIVE_DIFFERENCE_CACHED);
        }
    }
}

#[test]
fn a_text_longer_than_the_learned_positions_is_refused() {
    for name in ["gpt2", "opt"] {
        let (model, golden) = open(name);
        let ids: Vec<u32> = golden.ids.iter().cycle().take(97).copied().collect();
        let error = model.hidden_once(&ids).unwrap_err().to_string();
        let sentence = "the text reaches position 97, the model has learned 96; give a shorter text or window";
        assert!(error.ends_with(sentence), "{error}");
        assert!(model.hidden_once(&ids[..96]).is_ok());
    }
}

#[test]
fn both_forms_of_config_say_the_same() {
    for name in CASES {
        let read = |file: &str| {
            let file = decoders().join(name).join(file);
            DecoderConfig::from_json(&file, &read_json(&file)).unwrap()
        };
        assert_eq!(read("config.json"), read("config_v4.json"), "{name}");
    }
}

/// One line of `rope.json`.
#[derive(Deserialize)]
struct RopeGolden {
    max_position_embeddings: usize,
    head_dim: usize,
    rope_parameters: Value,
    attention_factor: f64,
    frequencies: Vec<f64>,
}

#[test]
fn rotation_frequencies_equal_the_goldens() {
    /// The goldens are f32, from a power, a division and a blend computed in f32.
    const MAX_RELATIVE_ERROR: f64 = 1e-6;
    let goldens: Vec<RopeGolden> = read_json(&decoders().join("rope.json"));
    for golden in goldens {
        let mut json: Value = read_json(&decoders().join("llama/config.json"));
        json["max_position_embeddings"] = golden.max_position_embeddings.into();
        json["head_dim"] = golden.head_dim.into();
        json["rope_parameters"] = golden.rope_parameters.clone();
        let config = DecoderConfig::from_json(Path::new("config.json"), &json).unwrap();
        let (found, factor) = config.blocks[0].attention.rope.as_ref().unwrap().frequencies();
        assert!((factor - golden.attention_factor).abs() < 1e-12, "{}: factor {factor}", golden.rope_parameters);
        assert_eq!(found.len(), golden.frequencies.len());
        for (index, (found, expected)) in found.iter().zip(&golden.frequencies).enumerate() {
            let difference = (found - expected).abs() / expected;
            assert!(
                difference <= MAX_RELATIVE_ERROR,
                "{}: frequency {index} is {found}, expected {expected}",
                golden.rope_parameters
            );
        }
    }
}

#[test]
fn the_unhurried_definition_gives_the_same_logits() {
    let (model, golden) = open("llama");
    let checkpoint = Checkpoint::open(decoders().join("llama")).unwrap();
    let mut config = checkpoint.config().unwrap().clone();
    config["rope_theta"] = config["rope_parameters"]["rope_theta"].clone();
    let config: LlamaConfig = serde_json::from_value(config).unwrap();
    let weights: HashMap<String, Tensor> = checkpoint
        .tensors()
        .map(|view| {
            let tensor = Tensor::from_vec(view.to_f32().unwrap(), view.shape(), &Device::Cpu).unwrap();
            (view.name().to_string(), tensor)
        })
        .collect();
    let reference: Vec<Vec<f32>> = reference_forward(&weights, &config, &golden.ids).unwrap().to_vec2().unwrap();
    assert_close("the definition against transformers", &reference, &golden.logits, MAX_RELATIVE_DIFFERENCE);
    let found = logits(&model, &model.hidden_once(&golden.ids).unwrap());
    assert_close("the decoder against the definition", &found, &reference, MAX_RELATIVE_DIFFERENCE);
}

#[test]
fn a_token_outside_the_vocabulary_is_named() {
    let (model, _) = open("llama");
    let error = model.hidden_once(&[1, 64]).unwrap_err().to_string();
    assert!(
        error.ends_with("token id 64 is outside the vocabulary of 64; tokenizer and weights do not belong together")
    );
}
