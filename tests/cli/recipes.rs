//! Recipes with several stages, and linears that are left alone.

use scruple_weights::Checkpoint;
use serde_json::Value;

use crate::{
    scruple,
    support::{Model, Place, json_file, numbers},
};

/// Bits by the linear's name within its block, from what the run recorded.
fn bits(record: &Value) -> Vec<(String, u64)> {
    let linears = record["linears"].as_array().unwrap().iter();
    linears.map(|linear| (linear["linear"].as_str().unwrap().into(), linear["bits"].as_u64().unwrap())).collect()
}

#[test]
fn attention_and_mlp_can_have_different_bits() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 200);
    let recipe = place.file(
        "recipe.toml",
        r#"
        [[stage]]
        method = "gptq"
        targets = ["model.layers.*.self_attn.*"]
        params = { bits = 8, group_size = 32 }

        [[stage]]
        method = "rtn"
        params = { bits = 3, group_size = 0 }

        [calibration]
        n_samples = 4
        seq_len = 32
        "#,
    );
    let out = place.out("out");
    scruple!["compress", model, "--recipe", recipe, "--calibration", text, "-o", out, "--no-speed"].succeeds();
    for (linear, bits) in bits(&json_file(&out.join("scruple.json"))) {
        assert_eq!(bits, if linear.contains("self_attn") { 8 } else { 3 }, "{linear}");
    }
    let config = json_file(&out.join("config.json"));
    let dynamic = &config["quantization_config"]["dynamic"];
    let other = dynamic["+:^model\\.layers\\.1\\.mlp\\.down_proj$"].clone();
    assert_eq!(other, serde_json::json!({ "bits": 3, "group_size": -1, "sym": true }), "{config:#}");
    assert_eq!(config["quantization_config"], json_file(&out.join("quantize_config.json")));
    scruple!["verify", out, "--against", model].succeeds();
    scruple!["eval", out, "--text", text].succeeds();
}

#[test]
fn linears_of_one_input_can_belong_to_different_stages() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 200);
    let recipe = place.file(
        "recipe.toml",
        r#"
        [[stage]]
        method = "gptq"
        targets = ["*.k_proj", "*.up_proj"]
        params = { bits = 8, group_size = 64 }

        [[stage]]
        method = "gptq"
        params = { bits = 4, group_size = 32 }

        [calibration]
        n_samples = 4
        seq_len = 32

        [export]
        format = "compressed-tensors"
        "#,
    );
    let out = place.out("out");
    scruple!["compress", model, "--recipe", recipe, "--calibration", text, "-o", out, "--no-speed"].succeeds();
    let found = bits(&json_file(&out.join("scruple.json")));
    let short: Vec<&str> = found[..7].iter().map(|(name, _)| name.rsplit('.').next().unwrap()).collect();
    let order = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    assert_eq!(short, order, "the order of the data, not of the stages");
    for (linear, bits) in found {
        let is_first = linear.ends_with("k_proj") || linear.ends_with("up_proj");
        assert_eq!(bits, if is_first { 8 } else { 4 }, "{linear}");
    }
    scruple!["verify", out, "--against", model].succeeds();
    scruple!["eval", out, "--text", text].succeeds();
}

#[test]
fn ignored_linears_stay_dense_and_the_configuration_says_so() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    for format in ["gptq", "compressed-tensors"] {
        let recipe = place.file(
            "recipe.toml",
            format!(
                "[[stage]]\nmethod = \"rtn\"\nignore = [\"*.down_proj\", \"model.layers.0.self_attn.o_proj\"]\n\
                 params = {{ group_size = 32 }}\n[export]\nformat = \"{format}\"\n"
            ),
        );
        let out = place.out(format);
        scruple!["compress", model, "--recipe", recipe, "-o", out, "--no-speed"].succeeds();
        let dense = ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"];
        let record = json_file(&out.join("scruple.json"));
        assert_eq!(record["left_dense"], serde_json::json!(dense));
        assert_eq!(bits(&record).len(), 11);
        let config = json_file(&out.join("config.json"))["quantization_config"].clone();
        let checkpoint = Checkpoint::open(&out).unwrap();
        for name in dense {
            let weight = format!("{name}.weight");
            assert_eq!(numbers(&out, &weight), numbers(&model, &weight));
            assert!(!checkpoint.contains(&format!("{name}.qweight")));
            match format {
                "gptq" => {
                    let key = format!("-:^{}$", name.replace('.', "\\."));
                    assert!(config["dynamic"][&key].is_object(), "{key} is not in {config:#}");
                }
                _ => assert!(config["ignore"].as_array().unwrap().contains(&name.into()), "{config:#}"),
            }
        }
        scruple!["verify", out, "--against", model].succeeds();
        scruple!["generate", out, "--prompt w1 --max-tokens 3"].succeeds();
    }
}
