//! From GGUF to a Hugging Face folder and back: the file that comes out says what the file that went in said.

use std::{fs, path::Path};

use scruple_weights::{
    CheckpointWriter, Dtype, Shard, TensorSpec, WriterOptions,
    format::gguf::{self, Gguf, dequantize},
    ggml,
    gguf_to_hf::HfModel,
    hf_to_gguf::{self, Folder, Plan, Scheme},
    writer::gguf::{GgufMetadata, GgufWriter},
};
use serde_json::{Value, json};

use crate::{
    convert::{HEAD_DIM, HIDDEN, QKV_BIASES, convert, in_every_layer, llama3_divisors, tensor, tiny, tiny_llama},
    tokenizer::tiny_sentence_piece,
    writer::Writer,
};

/// The model's folder.
fn write_folder(model: &HfModel, path: &Path) {
    let specs = model.tensors.iter().map(|tensor| TensorSpec::new(&tensor.name, Dtype::F32, tensor.shape())).collect();
    let mut writer = CheckpointWriter::create(path, specs, WriterOptions::default()).unwrap();
    for tensor in &model.tensors {
        let bytes: Vec<u8> = tensor.to_f32().unwrap().iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.write(&tensor.name, &bytes).unwrap();
    }
    for (name, bytes) in &model.files {
        writer.add_file(name, bytes).unwrap();
    }
    writer.finish().unwrap();
}

fn shapes(model: &HfModel) -> Vec<(String, Vec<usize>)> {
    model.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape().to_vec())).collect()
}

fn plan(model: &HfModel, config: &Value, scheme: Scheme) -> scruple_weights::Result<Plan> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("folder");
    write_folder(model, &path);
    hf_to_gguf::plan(Folder { path: &path, config }, &shapes(model), scheme)
}

fn write(model: &HfModel, plan: &Plan) -> (Vec<u8>, Gguf) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("again.gguf");
    let specs: Vec<TensorSpec> = plan.tensors.iter().map(|tensor| tensor.spec()).collect();
    let mut writer = GgufWriter::create(&path, &plan.metadata, &specs).unwrap();
    for tensor in &plan.tensors {
        let source = model.tensors.iter().find(|source| source.name == tensor.hf);
        let (rows, length) = tensor.rows();
        let mut values = vec![f32::NAN; rows * length];
        tensor.read_rows(0..rows, &mut values, |rows, out| source.unwrap().read_rows_f32(rows, out)).unwrap();
        let mut bytes = vec![0; tensor.dtype.bytes(values.len()).unwrap()];
        ggml::quantize(tensor.dtype, &values, &mut bytes).unwrap();
        // In two pieces, as a stream.
        let (first, second) = bytes.split_at(bytes.len() / 2);
        writer.append(first).unwrap();
        writer.append(second).unwrap();
    }
    assert!(!path.exists());
    assert_eq!(writer.finish().unwrap(), fs::metadata(&path).unwrap().len());
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "something is left beside the file");
    (fs::read(&path).unwrap(), gguf::read(&Shard::open(path).unwrap()).unwrap())
}

/// Converts there and back, and compares everything.
#[track_caller]
fn there_and_back(writer: &Writer) -> Gguf {
    let (before, model) = (writer.gguf(), convert(writer));
    let planned = plan(&model, &model.config, Scheme::Pure(Dtype::F32)).unwrap();
    let (bytes, after) = write(&model, &planned);
    assert_eq!(bytes, write(&model, &planned).0, "the same plan gives other bytes");
    for (key, value) in before.metadata() {
        assert_eq!(after.get(key), Some(value), "{key}");
    }
    assert_eq!(after.tensors().len(), before.tensors().len());
    let numbers = |gguf: &Gguf, name: &str| {
        let tensor = gguf.tensor(name).unwrap_or_else(|| panic!("no {name}"));
        let mut values = vec![0.0; tensor.elements()];
        dequantize(tensor.dtype(), tensor.bytes(), &mut values);
        (tensor.shape().to_vec(), values)
    };
    for tensor in before.tensors() {
        let (expected, found) = (numbers(&before, tensor.name()), numbers(&after, tensor.name()));
        assert_eq!(expected.0, found.0, "{}", tensor.name());
        // Gemma's norms lose a bit when 1 is taken away and added again.
        let far = expected.1.iter().zip(&found.1).find(|(a, b)| (*a - *b).abs() > 1.2e-7);
        assert_eq!(far, None, "{}", tensor.name());
    }
    after
}

fn gemma3() -> Writer {
    let norms = [
        ("post_attention_norm.weight", HIDDEN),
        ("post_ffw_norm.weight", HIDDEN),
        ("attn_q_norm.weight", HEAD_DIM),
        ("attn_k_norm.weight", HEAD_DIM),
    ];
    let writer = tiny("gemma3")
        .u32("gemma3.attention.sliding_window", 16)
        .u32("gemma3.attention.sliding_window_pattern", 2)
        .f32("gemma3.rope.freq_base_swa", 1e4);
    in_every_layer(writer, &norms)
}

#[test]
fn every_family_comes_back() {
    there_and_back(&tiny_llama());
    there_and_back(&tensor(tiny_llama(), "output.weight", &[8, HIDDEN]));
    there_and_back(&in_every_layer(in_every_layer(tiny_llama(), &QKV_BIASES), &[("attn_output.bias", HIDDEN)]));
    there_and_back(&in_every_layer(tiny("qwen2"), &QKV_BIASES));
    there_and_back(&in_every_layer(
        tiny("qwen3"),
        &[("attn_q_norm.weight", HEAD_DIM), ("attn_k_norm.weight", HEAD_DIM)],
    ));
    there_and_back(&gemma3());
}

#[test]
fn every_tokenizer_comes_back() {
    for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2"] {
        there_and_back(&tiny_llama().string("tokenizer.ggml.pre", pre).bool("tokenizer.ggml.add_bos_token", false));
    }
    let whole = tiny_llama()
        .u32("tokenizer.ggml.bos_token_id", 7)
        .u32("tokenizer.ggml.eot_token_id", 7)
        .u32("tokenizer.ggml.eom_token_id", 2)
        .bool("tokenizer.ggml.add_bos_token", true)
        .string("tokenizer.chat_template", "{{ messages }}");
    there_and_back(&whole.i32s("tokenizer.ggml.token_type", &[3, 1, 1, 1, 1, 1, 1, 3]));
    for prefix in [true, false] {
        let pieces = tiny_sentence_piece()
            .string("tokenizer.ggml.pre", "default")
            .without("tokenizer.ggml.merges")
            .bool("tokenizer.ggml.add_space_prefix", prefix);
        // The scores that the order of the merges gives.
        let scores = [0.0, 0.0, 0.0, -3.0, -3.0, -2.0, 0.0, -1.0];
        there_and_back(&pieces.f32s("tokenizer.ggml.scores", &scores));
    }
}

#[test]
fn every_rope_scaling_comes_back() {
    let scaled =
        |kind: &str| tiny_llama().string("llama.rope.scaling.type", kind).f32("llama.rope.scaling.factor", 4.0);
    there_and_back(&scaled("linear"));
    let yarn = scaled("yarn").u32("llama.rope.scaling.original_context_length", 128);
    there_and_back(&yarn.f32("llama.rope.scaling.yarn_beta_fast", 16.0));
    let divisors = llama3_divisors(HEAD_DIM, 8.0, 8192.0);
    there_and_back(&tiny_llama().floats("rope_freqs.weight", &[HEAD_DIM / 2], &divisors));
}

#[test]
fn tokens_are_filled_up_to_the_embedding() {
    let writer = tensor(tiny_llama().without_tensor("token_embd.weight"), "token_embd.weight", &[10, HIDDEN]);
    let model = convert(&writer);
    let (_, after) = write(&model, &plan(&model, &model.config, Scheme::Pure(Dtype::F16)).unwrap());
    let tokens = after.get("tokenizer.ggml.tokens").unwrap().as_strings().unwrap();
    assert_eq!(tokens.iter().collect::<Vec<_>>()[7..], ["<|user|>", "[PAD8]", "[PAD9]"]);
    // The type of every matrix, and F32 for vectors.
    assert!(after.tensors().iter().all(|tensor| (tensor.dtype() == Dtype::F32) == (tensor.shape().len() == 1)));
    assert_eq!(after.get("general.file_type").unwrap().as_u64(), Some(1));
}

#[test]
fn what_gguf_cannot_say_is_refused() {
    #[track_caller]
    fn refused(model: &HfModel, key: &str, value: Value, words: &[&str]) {
        let mut config = model.config.clone();
        config[key] = value;
        let message = plan(model, &config, Scheme::Pure(Dtype::F16)).expect_err("accepted").to_string();
        assert!(message.contains("config.json: "), "{message}");
        for word in words {
            assert!(message.contains(word), "`{word}` is not in: {message}");
        }
    }
    let (llama, gemma) = (convert(&tiny_llama()), convert(&gemma3()));
    refused(&llama, "model_type", json!("falcon"), &["`falcon` cannot be written as GGUF, only llama, mistral, qwen2"]);
    refused(&llama, "num_local_experts", json!(8), &["`num_local_experts` is 8"]);
    refused(&llama, "sliding_window", json!(16), &["`sliding_window` is 16"]);
    refused(&llama, "hidden_act", json!("gelu"), &["`hidden_act` is", "gelu", "it is \"silu\""]);
    refused(&llama, "num_hidden_layers", json!(u32::MAX), &["`num_hidden_layers` is 4294967295"]);
    refused(&llama, "num_hidden_layers", json!(60_000), &["`num_hidden_layers` is 60000", "no layer 59999"]);
    refused(&llama, "vocab_size", json!(null), &["`vocab_size` is missing"]);
    refused(&llama, "rope_scaling", json!({ "rope_type": "dynamic", "factor": 2.0 }), &["rope type `dynamic`"]);
    refused(&llama, "rope_scaling", json!({ "rope_type": "linear" }), &["has no `factor`"]);
    refused(
        &llama,
        "rope_scaling",
        json!({ "rope_type": "yarn", "factor": 2.0, "mscale": 0.5 }),
        &["`mscale` = 0.5 of the rope scaling `yarn`"],
    );
    refused(&gemma, "query_pre_attn_scalar", json!(99), &["`query_pre_attn_scalar` is 99", "it is 6"]);
    refused(&gemma, "layer_types", json!(["full_attention", "sliding_attention"]), &["`layer_types`"]);
}

#[test]
fn tensors_of_other_shapes_or_names_are_named() {
    let mut model = convert(&tiny_llama());
    let mut config = model.config.clone();
    config["intermediate_size"] = json!(21);
    let message = plan(&model, &config, Scheme::Pure(Dtype::F16)).unwrap_err().to_string();
    assert!(message.contains("mlp.up_proj.weight` has shape [20, 12], expected [21, 12]"), "{message}");
    model.tensors[4].name = "model.layers.0.self_attn.other.weight".into();
    let message = plan(&model, &model.config, Scheme::Pure(Dtype::F16)).unwrap_err().to_string();
    assert!(message.contains("`model.layers.0.self_attn.v_proj.weight` is missing"), "{message}");
    assert!(message.contains("`model.layers.0.self_attn.other.weight` has no place"), "{message}");
}

#[test]
fn other_tokenizers_are_refused() {
    let refused = |edit: fn(&mut Value), words: &str| {
        let mut model = convert(&tiny_llama());
        let (_, bytes) = model.files.iter_mut().find(|(name, _)| name == "tokenizer.json").unwrap();
        let mut tokenizer: Value = serde_json::from_slice(bytes).unwrap();
        edit(&mut tokenizer);
        *bytes = serde_json::to_vec(&tokenizer).unwrap();
        let message = plan(&model, &model.config, Scheme::Pure(Dtype::F16)).expect_err("accepted").to_string();
        assert!(message.contains("tokenizer.json: ") && message.contains(words), "`{words}` is not in: {message}");
    };
    refused(|json| json["model"]["type"] = "WordPiece".into(), "the tokenizer model `WordPiece`");
    refused(|json| json["pre_tokenizer"] = json!({ "type": "Whitespace" }), "the pre-tokenizer (Whitespace)");
    refused(|json| json["normalizer"] = json!({ "type": "Lowercase" }), "the normalizer is not NFC");
    refused(|json| json["model"]["ignore_merges"] = true.into(), "no name in GGUF");
    refused(|json| json["model"]["vocab"]["far"] = 99.into(), "token `far` has the id 99");
    refused(|json| json["model"]["vocab"]["twice"] = 1.into(), "not the only one");
    refused(|json| json["model"]["merges"] = json!([["b", "c"]]), "merge 0");
    refused(|json| json["post_processor"] = json!({ "type": "RobertaProcessing" }), "`RobertaProcessing`");

    let mut pieces = convert(&tiny_sentence_piece());
    let (_, bytes) = pieces.files.iter_mut().find(|(name, _)| name == "tokenizer.json").unwrap();
    let mut tokenizer: Value = serde_json::from_slice(bytes).unwrap();
    tokenizer["model"]["merges"].as_array_mut().unwrap().pop();
    *bytes = serde_json::to_vec(&tokenizer).unwrap();
    let message = plan(&pieces, &pieces.config, Scheme::Pure(Dtype::F16)).unwrap_err().to_string();
    assert!(message.contains("the merges are not those of SentencePiece"), "{message}");
}

#[test]
fn a_file_that_is_not_complete_never_appears() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.gguf");
    let specs = [TensorSpec::new("a", Dtype::Q8_0, [2, 32]), TensorSpec::new("b", Dtype::F32, [3])];
    let create = || GgufWriter::create(&path, &GgufMetadata::default(), &specs);
    let mut writer = create().unwrap();
    writer.append(&[0; 68]).unwrap();
    let message = writer.append(&[0; 13]).unwrap_err().to_string();
    assert!(message.contains("`b` takes 12 bytes, was given 13"), "{message}");
    let message = writer.finish().unwrap_err().to_string();
    assert!(message.contains("`b` is not complete: 0 of 12 bytes"), "{message}");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);

    drop(create().unwrap());
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    let wrong = [TensorSpec::new("a", Dtype::Q8_0, [2, 33])];
    let message = GgufWriter::create(&path, &GgufMetadata::default(), &wrong).unwrap_err().to_string();
    assert!(message.contains("`a` with shape [2, 33] cannot be stored as Q8_0"), "{message}");
    fs::write(&path, "mine").unwrap();
    assert!(create().unwrap_err().to_string().contains("exists already"));
}
