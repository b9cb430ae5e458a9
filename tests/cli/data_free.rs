//! Methods that need no data, the formats they are written in, and models that are quantised when they come in.

use std::{collections::BTreeSet, fs, path::Path};

use scruple_compress::export;
use scruple_weights::{Checkpoint, Dtype};
use serde_json::{Value, json};

use crate::{
    scruple,
    support::{Model, Place, assert_same_files, copy_folder, json_file, numbers},
};

const LINEAR: &str = "model.layers.1.mlp.up_proj";

/// A recipe file of one stage.
fn recipe(place: &Place, name: &str, method: &str, params: &str) -> std::path::PathBuf {
    place.file(&format!("{name}.toml"), format!("[[stage]]\nmethod = \"{method}\"\n[stage.params]\n{params}\n"))
}

/// Name, method, parameters, the format it is written in without one asked for, and bits a weight may take.
const RUNS: [(&str, &str, &str, &str, f64); 8] = [
    ("hqq4", "hqq", "group_size = 32", "gptq", 5.1),
    ("hqq2", "hqq", "bits = 2\ngroup_size = 32\nsymmetric = false", "gptq", 3.2),
    ("tensor", "fp8", "scales = \"tensor\"", "compressed-tensors", 8.1),
    ("channel", "fp8", "scales = \"channel\"", "compressed-tensors", 8.3),
    ("block", "fp8", "scales = \"block\"", "compressed-tensors", 8.1),
    ("nf4", "nf4", "", "bitsandbytes", 5.0),
    ("nested", "nf4", "double_quant = true", "bitsandbytes", 7.5),
    ("rtn", "rtn", "group_size = 32", "gptq", 5.1),
];

/// The weight of `LINEAR` in a folder, dequantised.
fn dequantised(folder: &Path) -> Vec<f32> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let quantization = export::detect(&checkpoint).unwrap().unwrap();
    export::decode(&checkpoint, LINEAR, &quantization).unwrap().dequantize()
}

#[test]
fn each_is_written_run_verified_and_made_dense_again_the_same_by_one_and_two_threads() {
    let place = Place::new();
    let model =
        Model::sized(2, 64, 160).dtype(Dtype::Bf16).config("torch_dtype", "bfloat16").write(place.path("model"));
    let text = place.text("text", 200);
    for (name, method, params, format, most) in RUNS {
        let recipe = recipe(&place, name, method, params);
        let [one, two] = ["1", "2"].map(|threads| {
            let out = place.out(&format!("{name}-{threads}"));
            scruple!["compress --threads", threads, model, "--recipe", recipe, "-o", out, "--no-speed"].succeeds();
            out
        });
        assert_same_files(&one, &two);
        let method_of = json_file(&one.join("config.json"))["quantization_config"]["quant_method"].clone();
        assert_eq!(method_of, format, "{name}");
        scruple!["verify", one, "--against", model].succeeds();
        let record = scruple!["eval --json --window 50", one, "--text", text, "--against", model].json();
        let bits = record["bits_per_weight"].as_f64().unwrap();
        assert!(bits > 2.0 && bits < most, "{name}: {bits} bits a weight");
        scruple!["generate", one, "--prompt", "w1 w2".to_string(), "--max-tokens 4"].succeeds();

        // Dense again: the very numbers, in the model's type, and a model that may be compressed.
        let dense = place.out(&format!("{name}-dense"));
        scruple!["convert", one, "-o", dense].succeeds();
        let rounded: Vec<f32> = dequantised(&one).iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
        assert_eq!(numbers(&dense, &format!("{LINEAR}.weight")), rounded, "{name}");
        let (config, original) = (json_file(&dense.join("config.json")), json_file(&model.join("config.json")));
        assert_eq!(config, original, "{name}");
        let [names, dense_names] = [&model, &dense].map(|folder| {
            let checkpoint = Checkpoint::open(folder).unwrap();
            checkpoint.tensors().map(|view| view.name().to_owned()).collect::<BTreeSet<_>>()
        });
        assert_eq!(names, dense_names, "{name}");
        scruple![
            "compress",
            dense,
            "--method rtn --group-size 32 -o",
            place.out(&format!("{name}-again")),
            "--no-speed"
        ]
        .succeeds();
        scruple!["compress", one, "--method rtn -o", place.out("no")]
            .refuses(&["quantised already", "scruple convert MODEL -o DENSE"]);

        // And the difference of the two is what rounding to the model's type makes.
        let found = scruple!["diff", one, dense, "--json"];
        let found: Value = serde_json::from_str(&found.stdout).unwrap();
        assert_eq!(found["tensors"].as_array().map(Vec::len), Some(names.len()), "{name}: {}", found["sentence"]);
    }
}

#[test]
fn the_embedded_model_keeps_its_answers() {
    let place = Place::new();
    for (method, kept) in [("hqq", 0.98), ("fp8", 0.99), ("nf4", 0.98)] {
        let report =
            scruple!["compress --no-speed --json --max-tokens 1024 --method", method, "-o", place.out(method)].json();
        let answers = &report["answers"];
        let same = answers["same"].as_f64().unwrap() / answers["questions"].as_f64().unwrap();
        assert!(same >= kept, "{method}: {same} {answers}");
    }
}

#[test]
fn formats_refuse_what_they_cannot_hold_before_any_work() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    for (method, format, words) in [
        ("nf4", "gptq", "codes on uniform grids only"),
        ("fp8", "gptq", "fp8, a scale a row"),
        ("nf4", "compressed-tensors", "nf4, blocks of 64"),
        ("fp8", "bitsandbytes", "NF4 in blocks of 64 only"),
        ("rtn --group-size 32", "bitsandbytes", "use the method nf4"),
    ] {
        scruple!["compress", model, "--method", method, "--format", format, "-o", place.out("no")].refuses(&[
            "model.layers.0.self_attn.q_proj",
            format,
            words,
        ]);
        assert_eq!(place.results(), [""; 0]);
    }
    for (method, format) in [("nf4", "dense"), ("fp8", "dense"), ("hqq --group-size 32", "compressed-tensors")] {
        let out = place.out(format);
        scruple!["compress", model, "--method", method, "--format", format, "-o", out, "--no-speed"].succeeds();
        scruple!["verify", out, "--against", model].succeeds();
        fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn files_of_other_tools_are_made_dense() {
    let place = Place::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quantised");
    for (name, tensor) in [
        ("mxfp4", "model.layers.0.mlp.experts.down_proj"),
        ("ct-int8-asymmetric", "model.layers.0.mlp.up_proj.weight"),
        ("bnb-nf4-nested", "model.layers.0.mlp.up_proj.weight"),
        ("fp8-blocks", "model.layers.0.mlp.up_proj.weight"),
    ] {
        let input = place.path(name);
        fs::create_dir(&input).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(fixtures.join(name).join(file), input.join(file)).unwrap();
        }
        let out = place.out(name);
        scruple!["convert", input, "-o", out].succeeds();
        let expected = Checkpoint::open(fixtures.join(name).join("expected.safetensors")).unwrap();
        let expected = expected.tensor(tensor).unwrap();
        let found = Checkpoint::open(&out).unwrap();
        assert_eq!(found.tensors().map(|view| view.name().to_owned()).collect::<Vec<_>>(), [tensor]);
        let found = found.tensor(tensor).unwrap();
        assert_eq!((found.dtype(), found.shape()), (Dtype::Bf16, expected.shape()));
        let rounded = expected.to_f32().unwrap().into_iter().map(|x| half::bf16::from_f32(x).to_f32());
        assert_eq!(found.to_f32().unwrap(), rounded.collect::<Vec<_>>(), "{name}");
        assert_eq!(json_file(&out.join("config.json")), json!({ "model_type": "llama", "torch_dtype": "bfloat16" }));
        scruple!["inspect --json", input].json();
    }
}

#[test]
fn what_cannot_be_read_is_refused_in_a_sentence() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let out = place.out("fp8");
    scruple!["compress", model, "--method fp8 -o", out, "--no-speed"].succeeds();
    let change = |name: &str, change: &dyn Fn(&mut Value)| {
        let folder = copy_folder(&out, place.path(name));
        let mut config = json_file(&folder.join("config.json"));
        change(&mut config);
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        folder
    };
    let text = place.text("text", 100);
    let unknown = change("unknown", &|c| c["quantization_config"]["quant_method"] = "eetq".into());
    let undescribed = change("undescribed", &|c| {
        c["quantization_config"]["config_groups"]["group_0"]["weights"] =
            json!({ "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32 })
    });
    let no = place.out("no");
    scruple!["convert", unknown, "-o", no].refuses(&["config.json", "\"eetq\"", "not read here"]);
    scruple!["eval", unknown, "--text", text].refuses(&["config.json", "\"eetq\""]);
    scruple!["convert", undescribed, "-o", no].refuses(&["weight_scale", "no eight-bit floats"]);
    scruple!["generate", undescribed, "--prompt w1"].refuses(&["weight_scale", "no eight-bit floats"]);
    let none_coded = copy_folder(&model, place.path("none"));
    let mut config = json_file(&none_coded.join("config.json"));
    config["quantization_config"] = json!({ "quant_method": "fp8", "fmt": "e4m3" });
    fs::write(none_coded.join("config.json"), config.to_string()).unwrap();
    scruple!["convert", none_coded, "-o", no].refuses(&["speaks of fp8", "no tensor is stored that way"]);
}

#[test]
fn activations_that_are_asked_to_be_rounded_are_spoken_of() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let out = place.out("fp8");
    scruple!["compress", model, "--method fp8 -o", out, "--no-speed"].succeeds();
    let text = place.text("text", 100);
    let quiet = scruple!["eval", out, "--text", text].succeeds();
    assert!(!quiet.stderr.contains("activations"), "{quiet:#?}");
    let mut config = json_file(&out.join("config.json"));
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"] =
        json!({ "num_bits": 8, "type": "float", "strategy": "token", "dynamic": true });
    fs::write(out.join("config.json"), config.to_string()).unwrap();
    let told = scruple!["eval", out, "--text", text].succeeds();
    assert!(told.stderr.contains("quantised activations"), "{told:#?}");
}
