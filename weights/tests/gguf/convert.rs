//! From GGUF's names, row order and metadata to Hugging Face's.

use scruple_weights::{
    Dtype,
    gguf_to_hf::{self, HfModel, HfTensor},
};
use serde_json::{Value, json};

use crate::writer::{Tensor, Writer};

pub const HIDDEN: usize = 12;
const INTERMEDIATE: usize = 20;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 6;
pub const LAYERS: usize = 2;
pub const TOKENS: [&str; 8] = ["<|end|>", "a", "b", "c", "Ġ", "ab", "Ġa", "<|user|>"];

/// Numbers that differ everywhere, reproducibly.
fn values(name: &str, count: usize) -> Vec<f32> {
    let start = name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    (0..count as u32)
        .map(|i| (start.wrapping_add(i).wrapping_mul(2_654_435_761) >> 8) as f32 / 2f32.powi(23) - 1.0)
        .collect()
}

pub fn tensor(writer: Writer, name: &str, shape: &[usize]) -> Writer {
    let values = values(name, shape.iter().product());
    writer.floats(name, shape, &values)
}

/// Metadata, tokenizer and tensors that all families have, with an own head size.
pub fn tiny(architecture: &str) -> Writer {
    sized(architecture, HIDDEN)
}

fn sized(architecture: &str, hidden: usize) -> Writer {
    let key = |suffix: &str| format!("{architecture}.{suffix}");
    let mut writer = Writer::new()
        .string("general.architecture", architecture)
        .u32(&key("block_count"), LAYERS as u32)
        .u32(&key("context_length"), 512)
        .u32(&key("embedding_length"), hidden as u32)
        .u32(&key("feed_forward_length"), INTERMEDIATE as u32)
        .u32(&key("attention.head_count"), HEADS as u32)
        .u32(&key("attention.head_count_kv"), KV_HEADS as u32)
        .u32(&key("attention.key_length"), HEAD_DIM as u32)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .f32(&key("rope.freq_base"), 5e5)
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "smollm")
        .strings("tokenizer.ggml.tokens", &TOKENS)
        .i32s("tokenizer.ggml.token_type", &[3, 1, 1, 1, 1, 1, 1, 4])
        .strings("tokenizer.ggml.merges", &["a b", "Ġ a"])
        .u32("tokenizer.ggml.eos_token_id", 0);
    writer = tensor(writer, "token_embd.weight", &[TOKENS.len(), hidden]);
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("attn_norm", &[hidden][..]),
            ("attn_q", &[HEADS * HEAD_DIM, hidden]),
            ("attn_k", &[KV_HEADS * HEAD_DIM, hidden]),
            ("attn_v", &[KV_HEADS * HEAD_DIM, hidden]),
            ("attn_output", &[hidden, HEADS * HEAD_DIM]),
            ("ffn_norm", &[hidden]),
            ("ffn_gate", &[INTERMEDIATE, hidden]),
            ("ffn_up", &[INTERMEDIATE, hidden]),
            ("ffn_down", &[hidden, INTERMEDIATE]),
        ] {
            writer = tensor(writer, &format!("blk.{layer}.{name}.weight"), shape);
        }
    }
    tensor(writer, "output_norm.weight", &[hidden])
}

pub fn tiny_llama() -> Writer {
    tiny("llama")
}

pub fn in_every_layer(mut writer: Writer, tensors: &[(&str, usize)]) -> Writer {
    for layer in 0..LAYERS {
        for (name, size) in tensors {
            writer = tensor(writer, &format!("blk.{layer}.{name}"), &[*size]);
        }
    }
    writer
}

pub const QKV_BIASES: [(&str, usize); 3] =
    [("attn_q.bias", HEADS * HEAD_DIM), ("attn_k.bias", KV_HEADS * HEAD_DIM), ("attn_v.bias", KV_HEADS * HEAD_DIM)];

pub fn convert(writer: &Writer) -> HfModel {
    gguf_to_hf::convert(&writer.gguf()).unwrap_or_else(|error| panic!("{error}"))
}

/// The refusal, which must name the file and hold these words.
#[track_caller]
pub fn refused(writer: &Writer, words: &[&str]) {
    let message = gguf_to_hf::convert(&writer.gguf()).expect_err("accepted").to_string();
    assert!(message.contains("model.gguf: "), "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

fn find<'a>(model: &'a HfModel, name: &str) -> &'a HfTensor {
    model.tensors.iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("no {name}"))
}

pub fn file(model: &HfModel, name: &str) -> Value {
    let (_, bytes) = model.files.iter().find(|(file, _)| file == name).unwrap_or_else(|| panic!("no {name}"));
    serde_json::from_slice(bytes).unwrap()
}

/// `w` (rows × x.len()) times `x`.
fn times(w: &[f32], x: &[f32]) -> Vec<f64> {
    let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
    w.chunks_exact(x.len()).map(dot).collect()
}

/// Turns a head by its position; `partner(k)` gives the two elements that pair k consists of.
fn rotate(head: &[f64], position: f64, partner: impl Fn(usize) -> (usize, usize)) -> Vec<f64> {
    let mut out = head.to_vec();
    for k in 0..head.len() / 2 {
        let (sin, cos) = (position * 5e5f64.powf(-2.0 * k as f64 / head.len() as f64)).sin_cos();
        let (i, j) = partner(k);
        (out[i], out[j]) = (head[i] * cos - head[j] * sin, head[j] * cos + head[i] * sin);
    }
    out
}

/// The meaning of the row order: with the stored rows turned as llama.cpp turns them (neighbours), and the converted
/// rows turned as transformers turns them (halves), every attention score is the same.
#[test]
fn llama_rows_turned_by_halves_score_as_stored_rows_turned_by_neighbours() {
    let writer = in_every_layer(tiny("llama"), &QKV_BIASES);
    let model = convert(&in_every_layer(writer, &[("attn_output.bias", HIDDEN)]));
    let stored = |name: &str, bias: &str, x: &[f32]| -> Vec<f64> {
        let rows = values(bias, 0).len() + find(&model, name).shape()[0];
        let gguf = &find(&model, name).source;
        let w: Vec<f32> = gguf.bytes().as_chunks::<4>().0.iter().map(|&v| f32::from_le_bytes(v)).collect();
        times(&w, x).into_iter().zip(values(bias, rows)).map(|(y, b)| y + f64::from(b)).collect()
    };
    let converted = |name: &str, x: &[f32]| -> Vec<f64> {
        let (w, b) = (find(&model, &format!("{name}.weight")), find(&model, &format!("{name}.bias")));
        times(&w.to_f32().unwrap(), x).into_iter().zip(b.to_f32().unwrap()).map(|(y, b)| y + f64::from(b)).collect()
    };
    let (x, y) = (values("x", HIDDEN), values("y", HIDDEN));
    for layer in 0..LAYERS {
        let (q, k) =
            (format!("model.layers.{layer}.self_attn.q_proj"), format!("model.layers.{layer}.self_attn.k_proj"));
        let q_stored = stored(&format!("{q}.weight"), &format!("blk.{layer}.attn_q.bias"), &x);
        let k_stored = stored(&format!("{k}.weight"), &format!("blk.{layer}.attn_k.bias"), &y);
        let (q_converted, k_converted) = (converted(&q, &x), converted(&k, &y));
        assert_ne!(q_stored, q_converted);
        for head in 0..HEADS {
            let of = |rows: &[f64], head: usize| rows[head * HEAD_DIM..(head + 1) * HEAD_DIM].to_vec();
            let score = |q: &[f64], k: &[f64], partner: fn(usize) -> (usize, usize)| -> f64 {
                let q = rotate(&of(q, head), 5.0, partner);
                let k = rotate(&of(k, head * KV_HEADS / HEADS), 2.0, partner);
                q.iter().zip(&k).map(|(q, k)| q * k).sum()
            };
            let neighbours = score(&q_stored, &k_stored, |k| (2 * k, 2 * k + 1));
            let halves = score(&q_converted, &k_converted, |k| (k, k + HEAD_DIM / 2));
            assert!((neighbours - halves).abs() < 1e-12, "layer {layer} head {head}: {neighbours} and {halves}");
        }
    }
}

#[test]
fn rows_come_in_any_range() {
    let model = convert(&tiny_llama());
    for tensor in &model.tensors {
        let (rows, length) = tensor.rows();
        let whole = tensor.to_f32().unwrap();
        assert_eq!(whole.len(), tensor.shape().iter().product::<usize>());
        for (start, end) in [(0, rows), (rows / 2, rows), (rows / 3, rows / 3), (rows - 1, rows)] {
            let mut some = vec![f32::NAN; (end - start) * length];
            tensor.read_rows_f32(start..end, &mut some).unwrap();
            assert_eq!(some, whole[start * length..end * length], "{} rows {start}..{end}", tensor.name);
        }
        let message = tensor.read_rows_f32(0..rows + 1, &mut []).unwrap_err().to_string();
        assert!(message.contains(&format!("has {rows} rows")), "{message}");
        let message = tensor.read_rows_f32(0..rows, &mut [0.0]).unwrap_err().to_string();
        assert!(message.contains("not 1 values"), "{message}");
    }
}

#[test]
fn llama_becomes_llama() {
    let model = convert(&tiny_llama().u32("tokenizer.ggml.bos_token_id", 7).u32("tokenizer.ggml.eot_token_id", 7));
    assert_eq!(
        model.config,
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": 7,
            "eos_token_id": 0,
            "head_dim": 6,
            "hidden_act": "silu",
            "hidden_size": 12,
            "initializer_range": 0.02,
            "intermediate_size": 20,
            "max_position_embeddings": 512,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "pad_token_id": null,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-5,
            "rope_scaling": null,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": true,
            "use_cache": true,
            "vocab_size": 8,
        })
    );
    assert_eq!(file(&model, "generation_config.json"), json!({ "bos_token_id": 7, "eos_token_id": [0, 7] }));
    let names: Vec<&str> = model.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names.len(), 2 + 9 * LAYERS);
    assert_eq!(
        names[..3],
        [
            "model.embed_tokens.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.self_attn.q_proj.weight"
        ]
    );
    assert_eq!(names[names.len() - 2..], ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"]);
    assert_eq!(find(&model, "model.layers.1.mlp.down_proj.weight").shape(), [HIDDEN, INTERMEDIATE]);
}

#[test]
fn an_output_matrix_unties_the_embeddings() {
    let model = convert(&tensor(tiny_llama(), "output.weight", &[TOKENS.len(), HIDDEN]));
    assert_eq!(model.config["tie_word_embeddings"], false);
    assert_eq!(model.tensors.last().unwrap().name, "lm_head.weight");
}

#[test]
fn qwen2_keeps_its_rows_and_has_biases() {
    let model = convert(&in_every_layer(tiny("qwen2"), &QKV_BIASES));
    assert_eq!(model.config["architectures"], json!(["Qwen2ForCausalLM"]));
    assert_eq!(model.config["use_sliding_window"], false);
    for (hf, gguf) in [("q_proj.weight", "attn_q.weight"), ("k_proj.bias", "attn_k.bias")] {
        let tensor = find(&model, &format!("model.layers.1.self_attn.{hf}"));
        assert_eq!(tensor.to_f32().unwrap(), values(&format!("blk.1.{gguf}"), tensor.source.elements()));
    }
    refused(&tiny("qwen2"), &["tensor `blk.0.attn_q.bias` is missing, expected with shape [24]", "blk.1.attn_v.bias"]);
}

#[test]
fn qwen3_has_norms_of_q_and_k() {
    let norms = [("attn_q_norm.weight", HEAD_DIM), ("attn_k_norm.weight", HEAD_DIM)];
    let model = convert(&in_every_layer(tiny("qwen3"), &norms));
    assert_eq!(model.config["model_type"], "qwen3");
    assert_eq!((&model.config["head_dim"], &model.config["attention_bias"]), (&json!(6), &json!(false)));
    assert_eq!(find(&model, "model.layers.1.self_attn.k_norm.weight").shape(), [HEAD_DIM]);
    let q = find(&model, "model.layers.0.self_attn.q_proj.weight");
    assert_eq!(q.to_f32().unwrap(), values("blk.0.attn_q.weight", q.source.elements()));
    refused(&tiny("qwen3"), &["blk.0.attn_q_norm.weight"]);
}

#[test]
fn blocks_are_put_in_order_by_rows() {
    // Q8_0 rows of 32 with scale 1, every code the number of its row.
    let rows = HEADS * HEAD_DIM;
    let name = "blk.0.attn_q.weight";
    let model = convert(&sized("llama", 32).without_tensor(name).tensor(Tensor {
        name: name.into(),
        sizes: vec![32, rows as u64],
        kind: 8,
        offset: None,
        data: (0..rows as u8).flat_map(|row| [&[0x00, 0x3c][..], &[row; 32]].concat()).collect(),
    }));
    let q = find(&model, "model.layers.0.self_attn.q_proj.weight");
    assert_eq!(q.source_dtype(), Dtype::Q8_0);
    let values = q.to_f32().unwrap();
    let order: Vec<f32> = values.chunks_exact(32).map(|row| row[31]).collect();
    // The even rows of a head first, then the odd ones.
    assert_eq!(order[..2 * HEAD_DIM], [0.0, 2.0, 4.0, 1.0, 3.0, 5.0, 6.0, 8.0, 10.0, 7.0, 9.0, 11.0]);
    let mut some = vec![0.0; 3 * 32];
    q.read_rows_f32(7..10, &mut some).unwrap();
    assert_eq!(some, values[7 * 32..10 * 32]);
}

#[test]
fn refuses_other_architectures_politely() {
    refused(&tiny("mamba"), &["architecture `mamba` cannot be converted, only llama, qwen2, qwen3"]);
    refused(&Writer::new(), &["`general.architecture` is missing"]);
    refused(&tiny_llama().u32("llama.expert_count", 8), &["`llama.expert_count` is the number 8"]);
    convert(&tiny_llama().u32("llama.expert_count", 0));
    refused(&tiny_llama().string("general.type", "adapter"), &["adapter"]);
    refused(&tiny_llama().u32("split.count", 3), &["one of 3 parts"]);
}

#[test]
fn reports_all_missing_and_wrong_metadata_together() {
    let writer = tiny_llama()
        .without("llama.block_count")
        .string("llama.context_length", "long")
        .u32("llama.embedding_length", 0)
        .f32("llama.rope.freq_base", f32::NAN);
    refused(
        &writer,
        &[
            "`llama.block_count` is missing",
            "`llama.context_length` is the text `long`, expected a positive integer",
            "`llama.embedding_length` is the number 0",
            "`llama.rope.freq_base` is the number NaN",
        ],
    );
    refused(&tiny_llama().u32("llama.block_count", u32::MAX), &["`llama.block_count`"]);
    refused(&tiny_llama().u32("llama.block_count", 1 << 30), &["is 1073741824, but the file has 20 tensors"]);
    refused(&tiny_llama().u32("llama.attention.head_count_kv", 3), &["3 key/value heads do not divide 4"]);
    refused(&tiny_llama().u32("llama.attention.key_length", 5), &["head size 5 is odd"]);
    refused(&tiny_llama().u32("llama.rope.dimension_count", 4), &["`llama.rope.dimension_count` is 4", "head size 6"]);
    refused(&tiny_llama().u32("llama.attention.value_length", 4), &["value_length"]);
}

#[test]
fn sizes_may_be_given_by_layer_if_all_are_equal() {
    let model = convert(&tiny_llama().i32s("llama.attention.head_count", &[4, 4]));
    assert_eq!(model.config["num_attention_heads"], 4);
    refused(&tiny_llama().i32s("llama.attention.head_count", &[4, 2]), &["the same for all layers"]);
}

#[test]
fn reports_all_missing_surplus_and_misshapen_tensors_together() {
    let writer = tiny_llama().without_tensor("blk.1.attn_v.weight").without_tensor("blk.0.ffn_up.weight");
    let writer = tensor(writer, "blk.0.ffn_up.weight", &[HIDDEN, INTERMEDIATE]);
    refused(
        &tensor(writer, "blk.0.attn_sinks.weight", &[3]),
        &[
            "tensor `blk.1.attn_v.weight` is missing, expected with shape [12, 12]",
            "tensor `blk.0.ffn_up.weight` has shape [12, 20], expected [20, 12]",
            "tensor `blk.0.attn_sinks.weight` has no place in LlamaForCausalLM",
        ],
    );
    refused(
        &tiny_llama().without_tensor("token_embd.weight"),
        &["tensor `token_embd.weight` is missing, expected with shape [8, 12]"],
    );
}

/// Llama 3's divisors as llama.cpp's converter computes them: by wavelength, in three cases.
pub fn llama3_divisors(head_dim: usize, factor: f64, context: f64) -> Vec<f32> {
    let (low, high) = (1.0, 4.0);
    (0..head_dim / 2)
        .map(|i| {
            let wavelength = std::f64::consts::TAU * 5e5f64.powf(2.0 * i as f64 / head_dim as f64);
            if wavelength < context / high {
                1.0
            } else if wavelength > context / low {
                factor as f32
            } else {
                let smooth = (context / wavelength - low) / (high - low);
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            }
        })
        .collect()
}

#[test]
fn llama3_scaling_is_found_again() {
    let wide = || -> Writer {
        // A head of 64 has several frequencies in each of the three ranges.
        let mut writer = tiny_llama().u32("llama.attention.key_length", 64);
        for layer in 0..LAYERS {
            for (name, shape) in [
                ("attn_q", [HEADS * 64, HIDDEN]),
                ("attn_k", [KV_HEADS * 64, HIDDEN]),
                ("attn_v", [KV_HEADS * 64, HIDDEN]),
                ("attn_output", [HIDDEN, HEADS * 64]),
            ] {
                let name = format!("blk.{layer}.{name}.weight");
                writer = tensor(writer.without_tensor(&name), &name, &shape);
            }
        }
        writer
    };
    for (factor, context) in [(8.0, 8192), (32.0, 8192), (16.0, 4096)] {
        let divisors = llama3_divisors(64, factor, f64::from(context));
        assert!(divisors.iter().any(|&d| d > 1.0 && d < factor as f32), "no frequency between the ranges");
        let model = convert(&wide().floats("rope_freqs.weight", &[32], &divisors));
        let expected = json!({
            "factor": factor,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": context,
            "rope_type": "llama3",
        });
        assert_eq!(model.config["rope_scaling"], expected);
    }
    let mut bent = llama3_divisors(64, 8.0, 8192.0);
    bent[15] *= 1.01;
    refused(&wide().floats("rope_freqs.weight", &[32], &bent), &["`rope_freqs.weight` is not a rope scaling"]);
    refused(&wide().floats("rope_freqs.weight", &[32], &[f32::NAN; 32]), &["divisor below 1"]);
    refused(&wide().floats("rope_freqs.weight", &[16], &[1.0; 16]), &["expected F32 [32]"]);
    let none = convert(&wide().floats("rope_freqs.weight", &[32], &[1.0; 32]));
    assert_eq!(none.config["rope_scaling"], Value::Null);
}

#[test]
fn named_scalings_become_config() {
    let scaled =
        |kind: &str| tiny_llama().string("llama.rope.scaling.type", kind).f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(convert(&scaled("linear")).config["rope_scaling"], json!({ "factor": 4.0, "rope_type": "linear" }));
    let yarn = scaled("yarn").u32("llama.rope.scaling.original_context_length", 128);
    assert_eq!(
        convert(&yarn).config["rope_scaling"],
        json!({ "factor": 4.0, "original_max_position_embeddings": 128, "rope_type": "yarn" })
    );
    refused(&yarn.f32("llama.rope.scaling.attn_factor", 0.5), &["attn_factor"]);
    refused(&scaled("longrope"), &["rope scaling `longrope` cannot be converted"]);
    refused(&scaled("linear").without("llama.rope.scaling.factor"), &["`llama.rope.scaling.factor` is missing"]);
}

#[test]
fn gemma3_has_four_norms_a_layer_whose_weights_count_from_zero() {
    let gemma3 = || {
        let norms = [
            ("post_attention_norm.weight", HIDDEN),
            ("post_ffw_norm.weight", HIDDEN),
            ("attn_q_norm.weight", HEAD_DIM),
            ("attn_k_norm.weight", HEAD_DIM),
        ];
        in_every_layer(tiny("gemma3").u32("gemma3.attention.sliding_window", 16), &norms)
    };
    let model = convert(&gemma3().u32("gemma3.attention.sliding_window_pattern", 2));
    assert_eq!(model.config["model_type"], "gemma3_text");
    assert_eq!(model.config["hidden_activation"], "gelu_pytorch_tanh");
    assert_eq!(model.config["layer_types"], json!(["sliding_attention", "full_attention"]));
    assert_eq!(
        (&model.config["sliding_window"], &model.config["query_pre_attn_scalar"]),
        (&json!(16), &json!(HEAD_DIM))
    );
    assert_eq!((&model.config["rope_theta"], &model.config["rope_local_base_freq"]), (&json!(5e5), &json!(1e4)));
    assert_eq!(model.config["tie_word_embeddings"], true);
    for (hf, gguf) in [
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("self_attn.q_norm", "attn_q_norm"),
    ] {
        let converted = find(&model, &format!("model.layers.1.{hf}.weight"));
        let stored = values(&format!("blk.1.{gguf}.weight"), converted.source.elements());
        assert_eq!(converted.to_f32().unwrap(), stored.iter().map(|value| value - 1.0).collect::<Vec<_>>(), "{hf}");
    }
    let q = find(&model, "model.layers.0.self_attn.q_proj.weight");
    assert_eq!(q.to_f32().unwrap(), values("blk.0.attn_q.weight", HEADS * HEAD_DIM * HIDDEN));

    refused(&gemma3().without("gemma3.attention.sliding_window"), &["`gemma3.attention.sliding_window` is missing"]);
    refused(
        &gemma3().f32("gemma3.final_logit_softcapping", 30.0),
        &["`gemma3.final_logit_softcapping` is the number 30"],
    );
    refused(
        &gemma3().without_tensor("blk.1.post_ffw_norm.weight"),
        &["tensor `blk.1.post_ffw_norm.weight` is missing"],
    );
}
