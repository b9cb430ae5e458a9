//! Widths by a budget, calibration on documents and over seeds, and networks that do not run.

use std::path::Path;

use scruple_weights::Checkpoint;
use serde_json::{Value, json};

use crate::{
    scruple,
    support::{Model, Place, assert_same_files, json_file},
};

fn bits_per_weight(report: &Value) -> f64 {
    report["forecast"]["bits_per_weight"].as_f64().unwrap()
}

#[test]
fn a_budget_is_kept_and_nearly_used() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 200);
    let plan = |more: &str| {
        let calibration = "--n-samples 4 --seq-len 32 --group-size 32 --dry-run --json --calibration";
        scruple!["compress", model, calibration, text, more].json()
    };
    for target in [3.3, 3.8, 5.0] {
        let widths = |more: &str| -> Vec<u64> {
            let plan = plan(&format!("--target-bpw {target} {more}"));
            let got = bits_per_weight(&plan);
            assert!(got <= target && got > target - 0.3, "{got} for {target}");
            plan["linears"].as_array().unwrap().iter().map(|l| l["stored"]["bits"].as_u64().unwrap()).collect()
        };
        let free = widths("");
        assert!(free.chunks(7).any(|block| block[0] != block[1] || block[0] != block[2]), "{target}: {free:?}");
        let widths = widths("--one-width");
        assert!(widths.iter().any(|bits| *bits != widths[0]), "{target}: one width for all");
        for block in widths.chunks(7) {
            let [q, k, v, _, gate, up, _] = block[..] else { panic!("{widths:?}") };
            assert!(q == k && k == v && gate == up, "{target}: what other programs hold in one differs, {block:?}");
        }
    }
    let refused = |options: &str, words: &[&str]| {
        scruple!["compress", model, "--method rtn --group-size 32 --dry-run", options].refuses(words);
    };
    refused("--target-bpw 1.5", &["1.500 bits a weight", "narrowest"]);
    refused("--target-size 1KB", &["stay as they are take"]);
    refused("--one-width", &["--target-bpw"]);
    refused("--target-size big", &["`big`", "600MB"]);
}

#[test]
fn a_method_of_one_width_cannot_meet_a_budget() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    for method in ["fp8", "nf4"] {
        scruple!["compress", model, "--method", method, "--target-bpw 5 --no-speed -o", place.out(method)]
            .refuses(&[method, "`bits`", "budget"]);
    }
}

#[test]
fn a_budget_gives_a_model_that_runs_and_says_why_each_width() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 200);
    let out = place.out("out");
    scruple!["compress", model, "--method rtn --group-size 32 --target-bpw 3.6 --no-speed -o", out].succeeds();
    scruple!["verify", out, "--against", model].succeeds();
    scruple!["eval", out, "--text", text].succeeds();
    let widths = json_file(&out.join("widths.json"));
    assert_eq!(widths["budget"], json!({ "bits_per_weight": 3.6 }));
    for linear in widths["linears"].as_array().unwrap() {
        let errors: Vec<f64> =
            linear["offers"].as_array().unwrap().iter().map(|offer| offer["error"].as_f64().unwrap()).collect();
        assert_eq!(errors.len(), 4, "{linear}");
        assert!(errors.windows(2).all(|pair| pair[1] < pair[0]), "more bits lose less: {linear}");
    }
}

#[test]
fn json_lines_calibrate_as_the_same_text_does() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 300);
    let lines = place.file("lines.jsonl", json!({ "text": std::fs::read_to_string(&text).unwrap() }).to_string());
    let compress = |name: &str, file: &Path, more: &str| {
        let out = place.out(name);
        let arguments = "--group-size 32 --n-samples 4 --seq-len 32 --no-speed";
        scruple!["compress", model, arguments, "--calibration", file, "-o", out, more].succeeds();
        std::fs::read(out.join("model.safetensors")).unwrap()
    };
    let plain = compress("plain", &text, "");
    assert!(plain == compress("lines", &lines, ""), "one line holds the same text");
    let seeded = compress("seeded", &text, "--calibration-seed 3");
    assert!(plain != seeded);
    assert!(seeded == compress("again", &text, "--calibration-seed 3"));
    let refused = |options: &str, words: &[&str]| {
        scruple!["compress", model, "--group-size 32 --no-speed --calibration", lines, "-o", place.out("no"), options]
            .refuses(words);
    };
    refused("--calibration-field body", &["lines.jsonl", "body", "(it has text)"]);
    refused("--calibration-chat", &["no chat template"]);
}

#[test]
fn whole_documents_are_looked_for_in_the_whole_file() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    // Far more bytes of short documents than the one sequence asked for would take.
    let short = "{\"text\": \"w1 w2\"}\n".repeat(1000);
    let long = json!({ "text": "w3 w4 ".repeat(40) });
    let lines = place.file("lines.jsonl", format!("{short}{long}\n"));
    let options = "--group-size 32 --n-samples 1 --seq-len 32 --whole-documents --no-speed --calibration";
    scruple!["compress", model, options, lines, "-o", place.out("out")].succeeds();
}

#[test]
fn a_recipe_is_drawn_by_the_seed_that_is_given() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 400);
    let recipe = place.file(
        "recipe.toml",
        "[[stage]]\nmethod = \"gptq\"\nparams = { bits = 2, group_size = 32 }\n\
         [calibration]\nn_samples = 4\nseq_len = 32\nseed = 7\n",
    );
    let compress = |name: &str, more: &str| {
        let out = place.out(name);
        scruple!["compress", model, "--no-speed --recipe", recipe, more, "--calibration", text, "-o", out].succeeds();
        let seed = json_file(&out.join("scruple.json"))["recipe"]["calibration"]["seed"].clone();
        (seed, std::fs::read(out.join("model.safetensors")).unwrap())
    };
    let (own, given) = (compress("own", ""), compress("given", "--calibration-seed 8"));
    assert_eq!((&own.0, &given.0), (&json!(7), &json!(8)));
    assert!(own.1 != given.1);
    let options = "--no-speed --json --calibration-seeds 2 --recipe";
    let report =
        scruple!["compress", model, options, recipe, "--calibration", text, "--text", text, "-o", place.out("seeds")];
    assert!(report.json()["figures"][0]["std"].as_f64().unwrap() > 0.0);
    for option in ["--whole-documents", "--calibration-chat", "--calibration-field body"] {
        let name = option.split(' ').next().unwrap();
        scruple!["compress", model, "--dry-run --recipe", recipe, option].refuses_the_arguments(&["--recipe", name]);
    }
}

#[test]
fn seeds_tell_how_far_results_spread() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 400);
    let out = place.out("out");
    let run = || {
        let options = "--group-size 32 --bits 2 --n-samples 4 --seq-len 32 --no-speed --json --calibration-seeds 3";
        scruple!["compress", model, options, "--calibration", text, "--text", text, "-o", out]
    };
    let report = run().json();
    assert_eq!(report["seeds"], json!([0, 1, 2]));
    let figures = report["figures"].as_array().unwrap();
    assert_eq!(figures.len(), 4, "{report:#}");
    for figure in figures {
        let values: Vec<f64> = figure["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(values.len(), 3);
        assert!((values.iter().sum::<f64>() / 3.0 - figure["mean"].as_f64().unwrap()).abs() < 1e-12);
    }
    assert!(figures[0]["std"].as_f64().unwrap() > 0.0);
    assert_eq!(json_file(&out.join("seeds.json")), report);
    scruple!["verify", out, "--against", model].succeeds();
    let left: Vec<_> =
        std::fs::read_dir(out.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("seed-")), "{left:?}");
    run().refuses(&["already exists"]);
}

#[test]
fn an_interrupted_call_over_seeds_goes_on_with_what_is_its_own() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let (text, other) = (place.text("text", 400), place.text("other", 300));
    let run = |name: &str, text: &Path, more: &str| {
        let options = "--group-size 32 --bits 2 --n-samples 4 --seq-len 32 --no-speed --json --calibration-seeds 2";
        scruple!["compress", model, options, more, "--calibration", text, "--text", text, "-o", place.out(name)]
    };
    let whole = run("whole", &text, "").json();
    // A folder in the way of the second seed ends the call after the first, as a kill would.
    let stop = place.out("out.seed-1");
    std::fs::create_dir(&stop).unwrap();
    run("out", &text, "").refuses(&["out.seed-1", "delete it"]);
    std::fs::remove_dir(&stop).unwrap();
    let first = place.out("out.seed-0");
    let made = std::fs::read(first.join("model.safetensors")).unwrap();
    for (text, more) in [(&other, ""), (&text, "--max-tokens 64"), (&text, "--asymmetric")] {
        run("out", text, more).refuses(&["out.seed-0", "delete it"]);
    }
    std::fs::remove_file(first.join("eval.json")).unwrap(); // as a kill while it is measured leaves it
    let rest = run("out", &text, "");
    assert!(rest.stderr.contains("not yet measured, by an earlier run"), "{rest:#?}");
    assert_eq!(rest.json(), whole);
    assert!(std::fs::read(place.out("out").join("model.safetensors")).unwrap() == made);
    assert_same_files(&place.out("whole"), &place.out("out"));
    assert_eq!(place.results(), ["out", "whole"]);
}

#[test]
fn an_encoder_has_no_figures_over_seeds() {
    let place = Place::new();
    let bert = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/encoders/bert");
    let vocabulary = json_file(&bert.join("tokenizer.json"))["model"]["vocab"].as_object().unwrap().clone();
    let words: Vec<&String> = vocabulary.keys().filter(|word| word.chars().all(char::is_alphabetic)).collect();
    let line =
        |from: usize| (0..8).map(|i| words[(from * 3 + i * i) % words.len()].as_str()).collect::<Vec<_>>().join(" ");
    let text = place.file("text", (0..40).map(line).collect::<Vec<_>>().join("\n"));
    let options = "--group-size 0 --format dense --n-samples 2 --seq-len 12 --no-speed --calibration-seeds 2";
    let out = place.out("out");
    let run = scruple!["compress", bert, options, "--calibration", text, "--text", text, "-o", out].succeeds();
    assert!(run.stdout.contains("a text encoder has no figures here"), "{run:#?}");
    assert!(!run.stdout.contains("over the calibration seeds"), "{run:#?}");
}

#[test]
fn a_network_that_does_not_run_is_rounded_by_names() {
    let place = Place::new();
    let vit = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vision/vit");
    let out = place.out("out");
    scruple!["compress", vit, "--method rtn --group-size 0 --format dense --no-speed -o", out].succeeds();
    let record = json_file(&out.join("scruple.json"));
    let linears = record["linears"].as_array().unwrap();
    assert!(!linears.is_empty());
    assert!(linears.iter().all(|linear| linear["linear"].as_str().unwrap().contains("layer")), "{record:#}");
    let (before, after) = (Checkpoint::open(&vit).unwrap(), Checkpoint::open(&out).unwrap());
    for view in before.tensors() {
        let name = view.name().strip_suffix(".weight").unwrap_or_default();
        let changed = linears.iter().any(|linear| linear["linear"] == name);
        assert_eq!(after.tensor(view.name()).unwrap().bytes() != view.bytes(), changed, "{}", view.name());
    }
    scruple!["verify", out, "--against", vit].succeeds();
    let no = place.out("no");
    scruple!["compress", vit, "--method gptq --no-speed -o", no].refuses(&["`gptq` needs a model that runs"]);
}

#[test]
fn an_encoder_is_calibrated_and_its_embeddings_compared() {
    let place = Place::new();
    let bert = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/encoders/bert");
    let vocabulary = json_file(&bert.join("tokenizer.json"))["model"]["vocab"].as_object().unwrap().clone();
    let words: Vec<&String> = vocabulary.keys().filter(|word| word.chars().all(char::is_alphabetic)).collect();
    let line =
        |from: usize| (0..8).map(|i| words[(from * 3 + i * i) % words.len()].as_str()).collect::<Vec<_>>().join(" ");
    let text = place.file("text", (0..40).map(line).collect::<Vec<_>>().join("\n"));
    let compress = |name: &str, method: &str| {
        let out = place.out(name);
        let options = "--bits 3 --group-size 0 --format dense --n-samples 8 --seq-len 20 --no-speed --json -o";
        let report = scruple!["compress", bert, method, options, out, "--calibration", text, "--text", text].json();
        scruple!["verify", out, "--against", bert].succeeds();
        let compared = scruple!["embed", out, "--against", bert, "--text", text, "--json"].json();
        assert_eq!(compared["cosine"], report["embeddings"]["cosine"]);
        assert!(out.join("1_Pooling/config.json").is_file(), "what sentence-transformers read goes along");
        report
    };
    let error = |report: &Value| -> f64 {
        let linears = report["linears"].as_array().unwrap();
        assert_eq!(linears.len(), 12);
        linears.iter().map(|linear| linear["output_error"].as_f64().unwrap()).sum()
    };
    let gptq = compress("gptq", "--method gptq");
    assert_eq!(gptq["embeddings"]["neighbours"], 10);
    let cosine = gptq["embeddings"]["cosine"]["value"].as_f64().unwrap();
    assert!(cosine > 0.9 && cosine < 1.0, "{cosine}");
    // In activation order without any weight of errors, it is rounding: the Hessian must help.
    let rounded = compress("heavy", "--method gptq --param dampening=1e6");
    assert!(error(&gptq) < 0.8 * error(&rounded), "{} and {}", error(&gptq), error(&rounded));
}
