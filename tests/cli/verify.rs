//! `verify`: a good folder passes, a changed one is named.

use std::fs;

use crate::{
    scruple,
    support::{Model, Place, Run, copy_folder, flip, json_file},
};

/// Found a difference: exit code 1, and `words` on stdout.
#[track_caller]
fn finds(run: Run, words: &[&str]) {
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert_eq!(run.stderr, "", "{run:#?}");
    for word in words {
        assert!(run.stdout.contains(word), "`{word}` is not in: {}", run.stdout);
    }
}

#[test]
fn one_changed_bit_is_found_and_its_tensor_named() {
    const Q: &str = "model.layers.0.self_attn.q_proj";
    const DOWN: &str = "model.layers.1.mlp.down_proj";
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    for (format, parts) in [
        ("gptq", &["qweight", "scales", "qzeros", "g_idx"][..]),
        ("compressed-tensors", &["weight_packed", "weight_scale", "weight_shape"]),
        ("awq", &["qweight", "scales", "qzeros"]),
        ("dense", &["weight"]),
    ] {
        let out = place.out(format);
        scruple!["compress", model, "--method rtn --group-size 32 --format", format, "-o", out, "--no-speed"]
            .succeeds();
        let good = scruple!["verify", out, "--against", model].succeeds();
        assert!(good.stdout.contains("14 linears") && good.stdout.contains("7 other tensors"), "{good:#?}");
        for (number, part) in parts.iter().enumerate() {
            let linear = [Q, DOWN][number % 2];
            let bad = copy_folder(&out, place.path(&format!("{format} {part}")));
            flip(&bad, &format!("{linear}.{part}"));
            finds(scruple!["verify", bad], &[linear]);
            let found = scruple!["verify", bad, "--against", model, "--json"];
            assert_eq!(found.code, Some(1));
            let found: serde_json::Value = serde_json::from_str(&found.stdout).unwrap();
            assert_eq!(found["verified"], false);
            assert!(found["faults"].as_array().unwrap().len() == 1, "{found:#}");
        }
        let copied = "model.layers.1.input_layernorm.weight";
        let bad = copy_folder(&out, place.path(&format!("{format} copied")));
        flip(&bad, copied);
        finds(scruple!["verify", bad, "--against", model], &[copied, "should be a copy"]);
    }
}

#[test]
fn norms_that_took_up_scales_are_proved_to_be_the_dense_ones_divided_by_them() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 16 * 64);
    let out = place.out("out");
    let awq = "--method awq --group-size 32 --seq-len 64 --n-samples 16 --no-speed";
    scruple!["compress", model, "--calibration", text, awq, "-o", out].succeeds();
    assert_eq!(json_file(&out.join("config.json"))["quantization_config"]["quant_method"], "awq");
    let good = scruple!["verify", out, "--against", model].succeeds();
    assert!(
        good.stdout.contains("3 other tensors") && good.stdout.contains("4 are the dense model's divided"),
        "{good:#?}"
    );
    let norm = "model.layers.1.post_attention_layernorm";
    let bad = copy_folder(&out, place.path("bad"));
    flip(&bad, &format!("{norm}.weight"));
    scruple!["verify", bad].succeeds(); // the linears are what they were
    finds(scruple!["verify", bad, "--against", model], &[norm, "divided by the scales"]);
    // A record that says nothing of one.
    let file = bad.join("scruple.json");
    let mut record = json_file(&out.join("scruple.json"));
    record["scalings"].as_array_mut().unwrap().retain(|scaling| scaling["folded_into"] != norm);
    fs::write(&file, record.to_string()).unwrap();
    finds(scruple!["verify", bad, "--against", model], &[norm, "says nothing of the scales"]);
}

#[test]
fn another_dense_model_is_told_from_the_right_one() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let out = place.out("out");
    scruple!["compress", model, "--method rtn --group-size 32 -o", out, "--no-speed"].succeeds();
    let other = Model::tiny().set("model.norm.weight", 3, 0.5).write(place.path("other"));
    finds(scruple!["verify", out, "--against", other], &["fingerprint", "model.norm.weight"]);
    let wider = Model::sized(2, 128, 96).write(place.path("wider"));
    finds(scruple!["verify", out, "--against", wider], &["fingerprint"]);
    let taller = Model::sized(3, 64, 96).write(place.path("taller"));
    finds(scruple!["verify", out, "--against", taller], &["fingerprint", "model.layers.2.mlp.up_proj.qweight"]);
}

#[test]
fn a_folder_without_its_provenance_is_refused() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    scruple!["verify", model].refuses(&["scruple.json", "verify takes a folder that `scruple compress` wrote"]);
    let out = place.out("out");
    scruple!["compress", model, "--method rtn --group-size 32 -o", out, "--no-speed"].succeeds();
    assert_eq!(json_file(&out.join("scruple.json"))["linears"].as_array().unwrap().len(), 14);
    fs::write(out.join("scruple.json"), "{}").unwrap();
    scruple!["verify", out].refuses(&["scruple.json", "not the provenance"]);
}

#[test]
fn without_proof_the_weights_are_the_same_and_nothing_can_be_verified() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    for method in ["rtn", "fp8"] {
        let (proved, bare) = (place.out(&format!("{method} proved")), place.out(&format!("{method} bare")));
        let options = if method == "rtn" { "--group-size 32 --no-speed" } else { "--no-speed" };
        scruple!["compress", model, "--method", method, options, "-o", proved].succeeds();
        let run = scruple!["compress", model, "--method", method, options, "--no-proof -o", bare].succeeds();
        assert!(run.stdout.contains("not verified"), "{}", run.stdout);
        let (mut with, without) = (json_file(&proved.join("scruple.json")), json_file(&bare.join("scruple.json")));
        with.as_object_mut().unwrap().remove("source_fingerprint").unwrap();
        for linear in with["linears"].as_array_mut().unwrap() {
            linear.as_object_mut().unwrap().remove("dequantised_sha256").unwrap();
        }
        assert_eq!(with, without);
        scruple!["diff --exit-code", proved, bare].succeeds();
        scruple!["verify", bare].refuses(&["--no-proof", "scruple.json"]);
    }
}
