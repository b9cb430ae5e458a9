use serde_json::{Value, json};

use super::*;

/// `config` without the layers that are not `kept`.
fn without(stack: &str, config: &Value, kept: &[usize]) -> Result<Rewritten> {
    let stack = Stack::describe(stack, config).expect("a stack");
    rewrite(Path::new("config.json"), config, &stack, kept, false)
}

#[track_caller]
fn rewritten(stack: &str, config: Value, kept: &[usize]) -> Value {
    without(stack, &config, kept).map(|rewritten| rewritten.config).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn refused(stack: &str, config: Value, kept: &[usize]) -> String {
    match without(stack, &config, kept) {
        Err(error) => error.to_string(),
        Ok(rewritten) => panic!("written: {}", rewritten.config),
    }
}

const F: &str = "full_attention";
const S: &str = "sliding_attention";

/// One generated configuration a pattern: model type, fields, layers that stay of eight, and what the new configuration
/// must say. Without this, each layer from the first dropped one on would do what its new number says.
#[test]
fn what_follows_from_a_number_is_written_down_before_renumbering() {
    let kept = [0, 1, 3, 4, 7];
    let cases = [
        ("gemma2", json!({}), json!({ "layer_types": [S, F, F, S, F] })),
        (
            "gemma3_text",
            json!({ "sliding_window_pattern": 3 }),
            json!({ "layer_types": [S, S, S, S, S], "sliding_window_pattern": null }),
        ),
        ("gemma3_text", json!({}), json!({ "layer_types": [S, S, S, S, S] })),
        ("gemma3n_text", json!({}), json!({ "layer_types": [S, S, S, F, S] })),
        ("cohere2", json!({ "sliding_window_pattern": 4 }), json!({ "layer_types": [S, S, F, S, F] })),
        ("olmo3", json!({}), json!({ "layer_types": [S, S, F, S, F] })),
        ("gpt_oss", json!({}), json!({ "layer_types": [S, F, F, S, F] })),
        (
            "exaone4",
            json!({ "sliding_window": 8, "sliding_window_pattern": 4 }),
            json!({ "layer_types": [S, S, F, S, F] }),
        ),
        (
            "modernbert",
            json!({ "global_attn_every_n_layers": 3 }),
            json!({ "layer_types": [F, S, F, S, S], "global_attn_every_n_layers": null }),
        ),
        (
            "qwen2",
            json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 4 }),
            json!({ "layer_types": [F, F, F, S, S], "max_window_layers": 3 }),
        ),
        (
            "qwen3",
            json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 2, "layer_types": [F, F, S, S, S, S, S, S] }),
            json!({ "layer_types": [F, F, S, S, S], "max_window_layers": 2 }),
        ),
        (
            "dots1",
            json!({ "sliding_window": 8, "max_window_layers": 4, "first_k_dense_replace": 2 }),
            json!({ "layer_types": [F, F, F, S, S], "first_k_dense_replace": 2, "max_window_layers": 3 }),
        ),
        (
            "qwen2_moe",
            json!({ "use_sliding_window": true, "max_window_layers": 4, "decoder_sparse_step": 2, "num_experts": 4 }),
            json!({ "layer_types": [S, F, F, F, F], "decoder_sparse_step": 1, "mlp_only_layers": [0, 3] }),
        ),
        (
            "qwen3_moe",
            json!({ "decoder_sparse_step": 1, "mlp_only_layers": [2, 4], "num_experts": 4 }),
            json!({ "decoder_sparse_step": 1, "mlp_only_layers": [3] }),
        ),
        (
            "qwen3_next",
            json!({ "full_attention_interval": 4, "num_experts": 4, "decoder_sparse_step": 1 }),
            json!({ "layer_types": ["linear_attention", "linear_attention", F, "linear_attention", F] }),
        ),
        ("smollm3", json!({ "no_rope_layer_interval": 4 }), json!({ "no_rope_layers": [1, 1, 0, 1, 0] })),
        (
            "smollm3",
            json!({ "use_sliding_window": true, "sliding_window": 8 }),
            json!({ "no_rope_layers": [1, 1, 0, 1, 0], "layer_types": [F, F, S, F, S] }),
        ),
        (
            "llama4_text",
            json!({ "interleave_moe_layer_step": 2 }),
            json!({
                "no_rope_layers": [1, 1, 0, 1, 0],
                "layer_types": ["chunked_attention", "chunked_attention", F, "chunked_attention", F],
                "moe_layers": [1, 2, 4],
            }),
        ),
        ("deepseek_v3", json!({ "first_k_dense_replace": 3 }), json!({ "first_k_dense_replace": 2 })),
        ("glm4_moe", json!({ "first_k_dense_replace": 1 }), json!({ "first_k_dense_replace": 1 })),
        ("lfm2", json!({ "full_attn_idxs": [2, 4, 7] }), json!({ "full_attn_idxs": [3, 4] })),
        ("bamba", json!({ "attn_layer_indices": [3] }), json!({ "attn_layer_indices": [2] })),
        (
            "gpt_neo",
            json!({ "attention_types": [[["global", "local"], 4]], "attention_layers": ["global", "local", "global", "local", "global", "local", "global", "local"] }),
            json!({ "attention_types": [[["global", "local", "local", "global", "local"], 1]], "attention_layers": ["global", "local", "local", "global", "local"] }),
        ),
        ("nemotron_h", json!({ "hybrid_override_pattern": "M-M*-MM*" }), json!({ "hybrid_override_pattern": "M-*-*" })),
        (
            "recurrent_gemma",
            json!({ "block_types": ["recurrent", "recurrent", "attention"] }),
            json!({ "block_types": ["recurrent", "recurrent", "recurrent", "recurrent", "recurrent"] }),
        ),
        ("mllama_text_model", json!({}), json!(null)),
        ("llama", json!({ "layer_types": [F, F, S, F, S, F, F, F] }), json!({ "layer_types": [F, F, F, S, F] })),
        (
            "llama",
            json!({ "intermediate_size": [1, 2, 3, 4, 5, 6, 7, 8] }),
            json!({ "intermediate_size": [1, 2, 4, 5, 8] }),
        ),
        (
            "mistral",
            json!({ "per_layer_config": { "2": {}, "3": { "skip": ["mlp"] } } }),
            json!({ "per_layer_config": { "2": { "skip": ["mlp"] } } }),
        ),
    ];
    for (model_type, fields, expected) in cases {
        let mut config = json!({ "model_type": model_type, "num_hidden_layers": 8 });
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let Some(expected) = expected.as_object() else {
            assert!(refused("model.layers", config, &kept).contains("`mllama_text_model` is not known here"));
            continue;
        };
        let new = rewritten("model.layers", config.clone(), &kept);
        assert_eq!(new["num_hidden_layers"], 5);
        for (key, value) in expected {
            assert_eq!(new.get(key).unwrap_or(&Value::Null), value, "{config}: `{key}`");
        }
        // Whatever else was there is still there, as it was.
        let periods = ["sliding_window_pattern", "full_attention_interval", "no_rope_layer_interval"];
        for (key, value) in config.as_object().unwrap().iter().filter(|(key, _)| !expected.contains_key(*key)) {
            // A period that no longer holds is gone, so that nobody goes by it.
            let stale = periods.contains(&key.as_str()) && !new.as_object().unwrap().contains_key(key);
            assert!(key == "num_hidden_layers" || stale || new[key] == *value, "{config}: `{key}`");
        }
    }
}

#[test]
fn a_pattern_that_cannot_be_said_is_refused() {
    let jamba = json!({
        "model_type": "jamba", "num_hidden_layers": 16, "attn_layer_period": 8, "attn_layer_offset": 4,
        "expert_layer_period": 2, "expert_layer_offset": 1,
    });
    // A whole period goes: the same numbers hold. One expert layer goes: nothing says the rest.
    let whole: Vec<usize> = (0..4).chain(12..16).collect();
    let same = rewritten("model.layers", jamba.clone(), &whole);
    assert_eq!((&same["attn_layer_offset"], &same["expert_layer_offset"]), (&json!(4), &json!(1)));
    let first: Vec<usize> = (2..12).collect();
    assert_eq!(rewritten("model.layers", jamba.clone(), &first)["attn_layer_offset"], 2);
    let hole: Vec<usize> = (0..16).filter(|&layer| layer != 5).collect();
    assert!(refused("model.layers", jamba, &hole).contains("mixtures of experts cannot be written down"));
    let gpt2 = json!({ "model_type": "gpt2", "n_layer": 4, "scale_attn_by_inverse_layer_idx": true });
    assert_eq!(rewritten("transformer.h", gpt2.clone(), &[0, 1, 2])["n_layer"], 3);
    let sentence = refused("transformer.h", gpt2, &[0, 2, 3]);
    assert!(
        sentence.contains("`scale_attn_by_inverse_layer_idx`") && sentence.contains("the last layers"),
        "{sentence}"
    );
    let deepseek =
        json!({ "model_type": "deepseek_v2", "num_hidden_layers": 6, "first_k_dense_replace": 1, "moe_layer_freq": 2 });
    assert!(refused("model.layers", deepseek, &[0, 1, 2, 4, 5]).contains("mixtures of experts"));
}

#[test]
fn what_is_not_known_stops_with_its_key() {
    let config = |key: &str, value: Value| {
        let mut config = json!({ "model_type": "llama", "num_hidden_layers": 4 });
        config[key] = value;
        config
    };
    let kept = [0, 1, 3];
    for (key, value) in [
        ("head_gains", json!([1, 2, 3, 4])),
        ("by_layer", json!({ "0": 1, "2": 3 })),
        ("attention", json!({ "gains": [1.0, 1.0, 1.0, 1.0] })),
    ] {
        let sentence = refused("model.layers", config(key, value), &kept);
        assert!(sentence.starts_with("config.json: ") && sentence.contains(&format!("`{key}")), "{sentence}");
    }
    let short = refused("model.layers", config("layer_types", json!(["full_attention"])), &kept);
    assert!(short.contains("`layer_types` has 1 entries, expected one for each of the 4 layers"), "{short}");
    // As long by chance, and known not to be about layers.
    rewritten("model.layers", config("eos_token_id", json!([1, 2, 3, 4])), &kept);
    rewritten("model.layers", config("id2label", json!({ "0": "a", "1": "b" })), &kept);
    let config = config("head_gains", json!([1, 2, 3, 4]));
    let stack = Stack::describe("model.layers", &config).unwrap();
    let forced = rewrite(Path::new("config.json"), &config, &stack, &kept, true).unwrap();
    assert_eq!(forced.config["head_gains"].as_array().unwrap().len(), 4);
}

#[test]
fn counts_are_changed_where_the_file_has_them() {
    let multimodal = json!({
        "model_type": "gemma3", "text_config": { "model_type": "gemma3_text", "num_hidden_layers": 4 },
        "vision_config": { "num_hidden_layers": 4, "model_type": "siglip_vision_model" },
    });
    let new = rewritten("language_model.model.layers", multimodal.clone(), &[0, 3]);
    assert_eq!(new["text_config"]["num_hidden_layers"], 2);
    assert_eq!(new["text_config"]["layer_types"], json!([S, S]));
    assert_eq!(new["vision_config"], multimodal["vision_config"]);
    let vision = rewritten("vision_tower.vision_model.encoder.layers", multimodal, &[0, 3]);
    assert_eq!(vision["vision_config"]["num_hidden_layers"], 2);
    assert_eq!(vision["text_config"]["num_hidden_layers"], 4);

    let bart = json!({ "model_type": "bart", "encoder_layers": 3, "decoder_layers": 3, "num_hidden_layers": 3 });
    let new = rewritten("model.decoder.layers", bart.clone(), &[0, 2]);
    assert_eq!(
        (&new["decoder_layers"], &new["encoder_layers"], &new["num_hidden_layers"]),
        (&json!(2), &json!(3), &json!(3))
    );
    let new = rewritten("model.encoder.layers", bart, &[0, 2]);
    assert_eq!(
        (&new["decoder_layers"], &new["encoder_layers"], &new["num_hidden_layers"]),
        (&json!(3), &json!(2), &json!(2))
    );

    let t5 = json!({ "model_type": "t5", "num_layers": 3, "is_encoder_decoder": true });
    // What the decoder loses is not lost to the encoder, which alone is counted.
    let new = rewritten("decoder.block", t5.clone(), &[0, 2]);
    assert_eq!((&new["num_layers"], &new["num_decoder_layers"]), (&json!(3), &json!(2)));
    let new = rewritten("encoder.block", t5, &[0, 2]);
    assert_eq!((&new["num_layers"], &new["num_decoder_layers"]), (&json!(2), &json!(3)));
}

#[test]
fn shared_keys_need_the_layer_that_makes_them() {
    let config = json!({ "model_type": "gemma3n_text", "num_hidden_layers": 10, "num_kv_shared_layers": 4 });
    // Layers 6 to 8 read from 5, the last before them with a window; 9 sees everything and reads from 4.
    let all_but = |gone: &[usize]| (0..10).filter(|layer| !gone.contains(layer)).collect::<Vec<_>>();
    assert_eq!(rewritten("model.layers", config.clone(), &all_but(&[6, 2]))["num_kv_shared_layers"], 3);
    let sentence = refused("model.layers", config.clone(), &all_but(&[4]));
    assert!(sentence.contains("layer 9 reads the keys and values of layer 4"), "{sentence}");
    rewritten("model.layers", config, &all_but(&[4, 9]));
}

#[test]
fn a_table_with_a_part_for_every_layer_is_not_left_as_it_was() {
    let config = json!({ "model_type": "gemma3n_text", "num_hidden_layers": 10, "hidden_size_per_layer_input": 256 });
    let sentence = refused("model.layers", config, &[0, 1, 2, 3]);
    assert!(sentence.contains("`hidden_size_per_layer_input`"), "{sentence}");
}

#[test]
fn modules_named_for_quantisation_are_renumbered() {
    let quantised =
        |part: Value| json!({ "model_type": "llama", "num_hidden_layers": 12, "quantization_config": part });
    let kept: Vec<usize> = (0..12).filter(|layer| ![1, 2].contains(layer)).collect();
    let new = rewritten(
        "model.layers",
        quantised(json!({
            "ignore": ["lm_head", "model.layers.1.mlp.down_proj", "model.layers.11.mlp.down_proj", "re:.*gate.*"],
            "modules": { "layers.10.self_attn": { "bits": 8 }, "model.visual.blocks.1": {} },
            "bits": 4,
        })),
        &kept,
    );
    assert_eq!(
        new["quantization_config"],
        json!({
            "ignore": ["lm_head", "model.layers.9.mlp.down_proj", "re:.*gate.*"],
            "modules": { "layers.8.self_attn": { "bits": 8 }, "model.visual.blocks.1": {} },
            "bits": 4,
        })
    );
    let pattern = quantised(json!({ "dynamic": { "+:.*\\.layers\\.10\\..*": {} } }));
    assert!(refused("model.layers", pattern, &kept).contains("picks layers by number"));
}
