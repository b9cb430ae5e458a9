//! Weights set to zero, alone and before they are quantised.

use std::{collections::BTreeMap, path::Path};

use scruple_compress::export;
use scruple_weights::Checkpoint;
use serde_json::Value;

use crate::{
    arguments, scruple,
    support::{self, Model, Place, json_file, numbers},
};

/// By name of the linear, its record.
fn records(folder: &Path) -> BTreeMap<String, Value> {
    let record = json_file(&folder.join("scruple.json"));
    let linears = record["linears"].as_array().unwrap().iter();
    linears.map(|linear| (linear["linear"].as_str().unwrap().to_string(), linear.clone())).collect()
}

/// The numbers that a packed file holds for a weight.
fn decoded(folder: &Path, weight: &str) -> Vec<f32> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let quantization = export::detect(&checkpoint).unwrap().expect("a quantised model");
    export::decode(&checkpoint, weight.strip_suffix(".weight").unwrap(), &quantization).unwrap().dequantize()
}

#[test]
fn every_pruner_writes_plain_tensors_with_as_many_zeros_as_asked() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 200);
    for method in ["magnitude", "wanda", "sparsegpt"] {
        for (number, (option, share)) in
            [("--sparsity 0.75", 0.75), ("--pattern 2:4", 0.5), ("", 0.5)].into_iter().enumerate()
        {
            let out = place.out(&format!("{method}-{number}"));
            let rest = "--n-samples 4 --seq-len 32";
            let mut run = arguments!["compress", model, "--method", method, option, rest, "--no-speed", "-o", out];
            if method != "magnitude" {
                run.extend(arguments!["--calibration", text]);
            }
            support::run(&run).succeeds();
            assert!(json_file(&out.join("config.json")).get("quantization_config").is_none());
            for (name, record) in records(&out) {
                let weight = format!("{name}.weight");
                let (dense, pruned) = (numbers(&model, &weight), numbers(&out, &weight));
                assert_eq!(pruned.len(), dense.len());
                let zeros = pruned.iter().filter(|w| **w == 0.0).count();
                assert_eq!(zeros as f64, share * dense.len() as f64, "{method} {option}: {name}");
                assert_eq!(record["zeros"], zeros);
                if option.contains("2:4") {
                    assert!(pruned.chunks(4).all(|group| group.iter().filter(|w| **w == 0.0).count() == 2), "{name}");
                }
                // All but SparseGPT leave the others as they are.
                if method != "sparsegpt" {
                    assert!(dense.iter().zip(&pruned).all(|(w, pruned)| *pruned == 0.0 || w == pruned), "{name}");
                }
                assert_eq!(record["output_error"].is_null(), method == "magnitude", "{record}");
            }
            scruple!["verify", out, "--against", model].succeeds();
            scruple!["eval", out, "--text", text].succeeds();
        }
    }
}

#[test]
fn what_is_pruned_and_then_quantised_keeps_exactly_its_zeros() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 200);
    let calibration = "[calibration]\nn_samples = 4\nseq_len = 32\n";
    let stage = |method: &str, params: &str| format!("[[stage]]\nmethod = \"{method}\"\nparams = {{ {params} }}\n");
    for (pruner, quantiser, params, format) in [
        ("wanda", "gptq", "bits = 4, group_size = 32", "gptq"),
        ("magnitude", "rtn", "bits = 4, group_size = 32, symmetric = false, search = \"mse\"", "compressed-tensors"),
        ("sparsegpt", "gptq", "bits = 3, group_size = 32, groups = \"fresh\", activation_order = false", "gptq"),
        ("wanda", "sparsegpt", "bits = 4, group_size = 32", "gptq"),
    ] {
        let text_of = |stages: &str| format!("{stages}{calibration}");
        let name = format!("{pruner}-{quantiser}");
        let alone = place.file(&format!("{name}-alone.toml"), text_of(&stage(pruner, "pattern = \"2:4\"")));
        let both = format!(
            "{}{}{calibration}[export]\nformat = \"{format}\"\n",
            stage(pruner, "pattern = \"2:4\""),
            stage(quantiser, params)
        );
        let both = place.file(&format!("{name}.toml"), both);
        let (pruned, out) = (place.out(&format!("{name}-alone")), place.out(&name));
        scruple!["compress", model, "--recipe", alone, "--calibration", text, "-o", pruned, "--no-speed"].succeeds();
        scruple!["compress", model, "--recipe", both, "--calibration", text, "-o", out, "--no-speed"].succeeds();
        let first = records(&out).into_iter().next().unwrap();
        assert_eq!(first.1["method"], format!("{pruner}+{quantiser}"), "{}", first.0);
        // The first block's first linears read the same inputs in both runs, so their masks are the same.
        for linear in ["q_proj", "k_proj", "v_proj"] {
            let weight = format!("model.layers.0.self_attn.{linear}.weight");
            let (mask, values) = (numbers(&pruned, &weight), decoded(&out, &weight));
            assert!(mask.iter().zip(&values).all(|(m, v)| *m != 0.0 || *v == 0.0), "{name} {linear} lost zeros");
            assert!(values.iter().filter(|v| **v != 0.0).count() > values.len() / 3);
        }
        for (name, record) in records(&out) {
            let values = decoded(&out, &format!("{name}.weight"));
            assert!(values.chunks(4).all(|group| group.iter().filter(|w| **w == 0.0).count() >= 2), "{name}");
            assert_eq!(record["zeros"], values.iter().filter(|w| **w == 0.0).count());
        }
        scruple!["verify", out, "--against", model].succeeds();
    }
}

#[test]
fn patterns_that_do_not_fit_are_refused_before_any_work() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let out = place.out("out");
    for (options, words) in [
        ("--method magnitude --pattern 2:5", "64 input features do not divide into groups of 5"),
        ("--method magnitude --pattern 4:2", "the pattern 4:2 keeps every weight"),
        ("--method magnitude --sparsity 50", "below 1"),
        ("--method rtn --sparsity 0.5", "unknown field `sparsity`"),
        ("--method wanda", "needs a text to calibrate on"),
    ] {
        scruple!["compress", model, options, "-o", out].refuses(&[words]);
    }
    let both = "--method magnitude --sparsity 0.5 --pattern 2:4";
    scruple!["compress", model, both, "-o", out].refuses_the_arguments(&["cannot be used with"]);
    // In front of a quantiser too.
    let stages = "[[stage]]\nmethod = \"magnitude\"\nparams = { pattern = \"2:3\" }\n\n\
                  [[stage]]\nmethod = \"rtn\"\nparams = { group_size = 32 }\n";
    let recipe = place.file("recipe.toml", stages);
    scruple!["compress", model, "--recipe", recipe, "-o", out].refuses(&["do not divide into groups of 3"]);
    assert!(place.results().is_empty());
}

#[test]
fn the_list_of_methods_says_what_each_needs() {
    let list = scruple!["methods --json"].json();
    let method = |name: &str| list.as_array().unwrap().iter().find(|method| method["name"] == name).unwrap().clone();
    assert_eq!(method("magnitude")["needs"], serde_json::json!([]));
    assert_eq!(method("wanda")["needs"], serde_json::json!(["input norms"]));
    assert_eq!(method("sparsegpt")["needs"], serde_json::json!(["Hessian"]));
    assert_eq!(method("sparsegpt")["kind"], "prunes");
    assert_eq!(method("gptq")["kind"], "quantises");
    assert_eq!(method("wanda")["parameters"], serde_json::json!({ "sparsity": 0.5 }));
}
