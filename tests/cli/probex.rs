//! What models were trained on, read from their weights: zoo, experts, answers.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use scruple_weights::Dtype;
use serde_json::Value;

use crate::{
    scruple,
    support::{Model, Place, assert_same_files, json_file},
};

/// A small zoo and experts for it, made once for all tests here.
pub(crate) struct Made {
    _place: Place,
    pub zoo: PathBuf,
    registry: PathBuf,
}

pub(crate) fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let place = Place::new();
        let (zoo, registry) = (place.out("zoo"), place.out("registry"));
        scruple!["zoo build --preset digits-tiny -o", zoo].succeeds();
        train(&zoo, &registry, "--preset ridge");
        Made { _place: place, zoo, registry }
    })
}

fn train(zoo: &Path, registry: &Path, options: &str) {
    scruple!["probe train", zoo, "--layer fc1.weight --epochs 30", options, "-o", registry].succeeds();
}

/// Models of the zoo's index that `chosen` takes.
fn models(zoo: &Path, chosen: impl Fn(&Value) -> bool) -> Vec<Value> {
    let index = json_file(&zoo.join("zoo.json"));
    index["models"].as_array().unwrap().iter().filter(|model| chosen(model)).cloned().collect()
}

fn is(model: &Value, kind: &str, split: &str) -> bool {
    model["kind"] == kind && model["split"] == split
}

#[test]
fn a_model_is_classified_from_its_weights_alone() {
    let Made { zoo, registry, .. } = made();
    let chosen = models(zoo, |model| is(model, "full", "test"));
    assert_eq!(chosen.len(), 32 + 8);
    let paths: Vec<PathBuf> = chosen.iter().map(|model| zoo.join(model["path"].as_str().unwrap())).collect();
    let mut arguments = crate::arguments!["classify --json --registry", registry];
    arguments.extend(paths.iter().map(Into::into));
    let found = crate::support::run(&arguments).json();
    assert_eq!(found["known"], 40, "every test model is of a known tree");
    let (mut right, mut covered) = (0, 0);
    for (answer, model) in found["answers"].as_array().unwrap().iter().zip(&chosen) {
        assert_eq!(answer["tree"], model["tree"]);
        let finding = &answer["findings"][0];
        assert_eq!(finding["layer"], "fc1.weight");
        let held = model["labels"]["classes"].as_array().unwrap();
        let predicted = finding["predicted"].as_array().unwrap();
        let all = finding["probabilities"].as_array().unwrap();
        right += all.iter().filter(|p| held.contains(&p["label"]) == predicted.contains(&p["label"])).count();
        let set = finding["set"].as_array().unwrap();
        covered += usize::from(held.iter().all(|label| set.contains(label)));
        assert!(all.iter().all(|p| (0.0..=1.0).contains(&p["probability"].as_f64().unwrap())));
        assert_eq!(finding["nearest"].as_array().unwrap().len(), 5);
    }
    // Half is chance, with a deviation of 10 decisions; few models are enough for the first layer.
    assert!(right > 320, "{right} of 400 decisions are right");
    assert!(covered >= 32, "sets of 90 % hold all labels of {covered} of 40 models");
}

#[test]
fn a_random_start_and_another_architecture_are_unknown() {
    let Made { zoo, registry, .. } = made();
    for model in models(zoo, |model| model["kind"] == "random-start").iter().take(3) {
        let path = zoo.join(model["path"].as_str().unwrap());
        let found = scruple!["classify --json", path, "--registry", registry].json();
        assert_eq!(found["unknown"], 1, "{found:#}");
        let answer = &found["answers"][0];
        assert!(answer["tree"].is_null() && answer["unknown"].as_str().unwrap().contains("accepts up to"));
        assert_eq!(answer["distances"].as_array().unwrap().len(), 2);
    }
    let place = Place::new();
    let other = Model::tiny().dtype(Dtype::F32).write(place.path("other"));
    let said = scruple!["classify", other, "--registry", registry].succeeds();
    assert!(said.stdout.contains("none of the layers the experts read"), "{}", said.stdout);
}

#[test]
fn many_models_are_answered_line_by_line_in_parts_and_resumed() {
    let Made { zoo, registry, .. } = made();
    let place = Place::new();
    let paths: Vec<PathBuf> = models(zoo, |model| is(model, "full", "test"))
        .iter()
        .take(9)
        .map(|model| zoo.join(model["path"].as_str().unwrap()))
        .collect();
    let run = |file: &Path, options: &str| {
        let mut arguments = crate::arguments!["classify --registry", registry, "--jsonl", file, options];
        arguments.extend(paths.iter().map(Into::into));
        crate::support::run(&arguments).succeeds()
    };
    let all = place.path("all.jsonl");
    run(&all, "");
    let whole = fs::read_to_string(&all).unwrap();
    assert_eq!(whole.lines().count(), 9);
    // A run that was killed in the middle of a line.
    let cut = whole.lines().take(4).map(|line| format!("{line}\n")).collect::<String>() + "{\"model\":";
    fs::write(&all, cut).unwrap();
    let again = run(&all, "");
    assert!(again.stderr.contains("9 answers, 4 of them from before"), "{}", again.stderr);
    assert_eq!(fs::read_to_string(&all).unwrap(), whole);
    let parts: Vec<PathBuf> = (1..=2).map(|part| place.path(&format!("{part}.jsonl"))).collect();
    parts.iter().enumerate().for_each(|(at, file)| _ = run(file, &format!("--shard {}/2", at + 1)));
    let mut lines: Vec<String> = parts
        .iter()
        .flat_map(|file| fs::read_to_string(file).unwrap().lines().map(str::to_string).collect::<Vec<_>>())
        .collect();
    let mut expected: Vec<String> = whole.lines().map(str::to_string).collect();
    lines.sort();
    expected.sort();
    assert_eq!(lines, expected);
}

#[test]
fn experts_do_not_depend_on_the_number_of_threads() {
    let Made { zoo, .. } = made();
    let place = Place::new();
    let registries = ["1", "3"].map(|threads| {
        let registry = place.out(threads);
        train(zoo, &registry, &format!("--tree tree1 --preset mvprobe --threads {threads}"));
        registry
    });
    assert_same_files(&registries[0], &registries[1]);
}

#[test]
fn without_options_every_layer_and_preset_is_tried() {
    let Made { zoo, .. } = made();
    let place = Place::new();
    let found = scruple!["probe train --json --epochs 20 --tree tree1", zoo, "-o", place.out("r")].json();
    let expert = &found["experts"][0];
    assert_eq!(expert["candidates"].as_array().unwrap().len(), 9, "three layers and three presets");
    // The rows of the head stand in another order in each model, and its base has another one: nothing to be read.
    assert_ne!(expert["layer"], "linear.weight");
    assert!(!expert["test"].is_null() && expert["radius"]["limit"].as_f64() > expert["radius"]["own"].as_f64());
}

#[test]
fn a_folder_of_checkpoints_becomes_a_zoo() {
    let Made { zoo, .. } = made();
    let place = Place::new();
    let chosen = models(zoo, |model| model["tree"] == "tree1");
    let mut table = String::from("model,learnt\n");
    for model in &chosen {
        let labels: Vec<&str> =
            model["labels"]["classes"].as_array().unwrap().iter().map(|label| label.as_str().unwrap()).collect();
        table += &format!("{},\"['{}']\"\n", model["path"].as_str().unwrap(), labels.join("', '"));
    }
    let labels = place.file("labels.csv", &table);
    let base = zoo.join("bases/tree1.safetensors");
    let indexed = place.out("indexed");
    let made = scruple!["zoo index --json", zoo, "--labels", labels, "--base", base, "-o", indexed].json();
    assert_eq!((made["models"].as_u64(), made["labels"]["learnt"].as_u64()), (Some(40), Some(10)));
    let found = scruple!["probe train --json --preset ridge --layer fc1.weight", indexed, "-o", place.out("r")].json();
    assert_eq!(found["experts"][0]["input"], "base");
    let from_metadata = place.out("metadata");
    let made = scruple!["zoo index --json", zoo, "--metadata classes -o", from_metadata].json();
    assert_eq!(made["labels"]["classes"], 10);

    let code =
        |cell: &str| place.file("code.csv", format!("model,learnt\n{},{cell}\n", chosen[0]["path"].as_str().unwrap()));
    let refused = |table: PathBuf, words: &[&str]| {
        scruple!["zoo index", zoo, "--labels", table, "-o", place.out("refused")].refuses(words);
    };
    refused(code("__import__('os').system('true')"), &["code.csv", "line 2", "plain names"]);
    refused(code("\"['a'] + ['b']\""), &["line 2", "more after its end"]);
    refused(
        place.file("unknown.csv", "model,learnt\nabsent.safetensors,a\n"),
        &["line 2", "no model `absent.safetensors`"],
    );
    refused(place.file("empty.csv", "model,learnt\n"), &["empty.csv", "names no models"]);
    refused(place.file("head.csv", "name,learnt\na,b\n"), &["no column `model`"]);
}

#[test]
fn what_is_no_zoo_no_registry_or_no_expert_is_said_so() {
    let Made { zoo, registry, .. } = made();
    let place = Place::new();
    let empty = place.path("empty");
    fs::create_dir(&empty).unwrap();
    let model = zoo.join("bases/tree0.safetensors");
    scruple!["probe train", empty, "-o", place.out("a")].refuses(&["there is no zoo.json"]);
    scruple!["classify", model, "--registry", empty].refuses(&["holds no experts"]);
    scruple!["classify", model, "--registry", zoo.join("models")].refuses(&["is no expert"]);
    scruple!["classify", model, "--registry", registry, "--coverage 1.5"].refuses(&["--coverage", "between 0 and 1"]);
    scruple!["classify", model, model].refuses(&["one model at a time"]);
    scruple!["probe train", zoo, "--preset best -o", place.out("b")].refuses(&["no preset `best`", "mvprobe"]);
    scruple!["probe train", zoo, "--label colour -o", place.out("c")].refuses(&["no label `colour`", "classes"]);
    scruple!["zoo build --preset large -o", place.out("d")].refuses(&["no preset `large`", "digits-small"]);
    scruple!["zoo build -o", zoo].refuses(&["exists already"]);
    place.file("zoo.json", r#"{"format":1,"labels":{},"bases":{},"models":[]}"#);
    scruple!["probe train", place.path("zoo.json"), "-o", place.out("e")].refuses(&["holds no models"]);
    assert!(!place.results().iter().any(|name| name.starts_with('d')));
}
