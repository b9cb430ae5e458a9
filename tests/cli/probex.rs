//! What models were trained on, read from their weights: zoo, experts, answers.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use parquet::{
    file::reader::SerializedFileReader,
    record::{Field, Row},
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
    let (mut members, mut strangers) = (Vec::new(), Vec::new());
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
        // By hand: what more than two of the five nearest have.
        let near = |label: &Value| {
            let all = finding["nearest"].as_array().unwrap().iter();
            all.filter(|near| near["labels"].as_array().unwrap().contains(label)).count()
        };
        let voted = finding["vote"].as_array().unwrap();
        assert!(all.iter().all(|p| voted.contains(&p["label"]) == (near(&p["label"]) > 2)), "{finding:#}");
        for fit in finding["belongs"].as_array().unwrap() {
            let (p, distance) = (fit["p"].as_f64().unwrap(), fit["distance"].as_f64().unwrap());
            assert!(p > 0.0 && p <= 1.0 && distance >= finding["nearest"][0]["distance"].as_f64().unwrap());
            (if held.contains(&fit["label"]) { &mut members } else { &mut strangers }).push(p);
        }
    }
    // Models lie nearer those of their own classes; a p below 0.1 is as rare among them as it says.
    let mean = |list: &[f64]| list.iter().sum::<f64>() / list.len() as f64;
    assert!(mean(&members) > mean(&strangers), "{} {}", mean(&members), mean(&strangers));
    let low = members.iter().filter(|p| **p <= 0.1).count();
    assert!(low * 5 < members.len(), "{low} of {} are said not to belong", members.len());
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
    let refused = |options: &str, words: &[&str]| {
        let mut arguments = crate::arguments!["classify --registry", registry, "--jsonl", all, options];
        arguments.extend(paths.iter().map(Into::into));
        crate::support::run(&arguments).refuses(words);
        assert_eq!(fs::read_to_string(&all).unwrap(), whole);
    };
    refused("--coverage 0.8", &["all.jsonl", "by other --coverage", "another file"]);
    refused("--nearest 3", &["by other --nearest"]);
    let (identity, moved) = (place.path("all.jsonl.identity"), place.path("moved"));
    fs::rename(&identity, &moved).unwrap();
    refused("", &["nothing says by which experts"]);
    let said = fs::read_to_string(&moved).unwrap();
    fs::write(&identity, said.replacen("{\"experts\":[\"", "{\"experts\":[\"0", 1)).unwrap();
    refused("", &["by other experts"]);
    // A model that could not be read is tried again; its line stays in its place.
    fs::write(&identity, said).unwrap();
    let second = serde_json::json!({ "model": paths[1].display().to_string(), "error": "no such disk" });
    let mut lines: Vec<String> = whole.lines().map(str::to_string).collect();
    lines[1] = second.to_string();
    fs::write(&all, lines.join("\n") + "\n").unwrap();
    run(&all, "");
    assert_eq!(fs::read_to_string(&all).unwrap(), whole);
    // What is no file of answers is left alone.
    let foreign = place.file("thesis.txt", "one line");
    let mut arguments = crate::arguments!["classify --registry", registry, "--jsonl", foreign];
    arguments.push(paths[0].clone().into());
    crate::support::run(&arguments).refuses(&["thesis.txt", "no answer"]);
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "one line");
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
fn many_answers_become_one_parquet_file() {
    let Made { zoo, registry, .. } = made();
    let place = Place::new();
    let broken = place.file("broken.safetensors", "no");
    let mut paths: Vec<PathBuf> =
        models(zoo, |model| model["split"] == "test").iter().map(|m| zoo.join(m["path"].as_str().unwrap())).collect();
    paths.insert(3, broken);
    let run = |options: &str| {
        let (table, out) = (place.path("a.parquet"), place.path("out"));
        let mut arguments = crate::arguments!["classify --registry", registry, options, "--parquet", table, "-o", out];
        arguments.extend(paths.iter().map(Into::into));
        crate::support::run(&arguments)
    };
    let said = run("--threads 1");
    assert_eq!(said.code, Some(1), "one model cannot be read: {}", said.stderr);
    let summary = json_file(&place.path("out/classify.json"));
    assert_eq!(summary["unread"], 1);
    let whole = fs::read_to_string(place.path("a.parquet.jsonl")).unwrap();
    let lines: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let known = lines.iter().filter(|line| line["tree"].is_string()).count();
    assert_eq!((lines.len(), summary["known"].as_u64()), (paths.len(), Some(known as u64)));
    let bytes = fs::read(place.path("a.parquet")).unwrap();
    let rows: Vec<Row> = SerializedFileReader::try_from(place.path("a.parquet").as_path())
        .unwrap()
        .into_iter()
        .map(|row| row.unwrap())
        .collect();
    assert_eq!(rows.len(), lines.len());
    for (row, line) in rows.iter().zip(&lines) {
        let columns: Vec<(&String, &Field)> = row.get_column_iter().collect();
        let column = |name: &str| columns.iter().find(|(column, _)| *column == name).unwrap().1;
        let text = |field: &Field| if let Field::Str(text) = field { Some(text.clone()) } else { None };
        for name in ["model", "error", "tree", "unknown"] {
            assert_eq!(text(column(name)).as_deref(), line[name].as_str(), "{name}");
        }
        let Field::ListInternal(findings) = column("findings") else { continue };
        assert_eq!(findings.elements().len(), line["findings"].as_array().unwrap().len());
        let Some(Field::Group(finding)) = findings.elements().first() else { continue };
        let expected = &line["findings"][0];
        let (_, Field::ListInternal(found)) =
            finding.get_column_iter().find(|(name, _)| *name == "probabilities").unwrap()
        else {
            panic!("probabilities are a list")
        };
        for (found, expected) in found.elements().iter().zip(expected["probabilities"].as_array().unwrap()) {
            let Field::Group(found) = found else { panic!("{found:?} is no label") };
            let fields: Vec<&Field> = found.get_column_iter().map(|(_, field)| field).collect();
            assert_eq!(fields[0], &Field::Str(expected["label"].as_str().unwrap().into()));
            assert_eq!(fields[1], &Field::Float(expected["probability"].as_f64().unwrap() as f32));
        }
    }
    // Resumed from half of the lines, on more threads: the same bytes.
    let half: String = whole.split_inclusive('\n').take(30).collect();
    fs::write(place.path("a.parquet.jsonl"), half).unwrap();
    fs::remove_file(place.path("a.parquet")).unwrap();
    run("--threads 3");
    assert_eq!(fs::read(place.path("a.parquet")).unwrap(), bytes);
}

#[test]
fn a_card_is_a_page_and_a_picture() {
    let Made { zoo, registry, .. } = made();
    let place = Place::new();
    let chosen = models(zoo, |model| is(model, "full", "test"));
    let path = |at: usize| zoo.join(chosen[at]["path"].as_str().unwrap());
    scruple!["classify", path(0), "--registry", registry, "-o", place.path("one")].succeeds();
    let page = fs::read_to_string(place.path("one/card.html")).unwrap();
    assert!(page.contains("belongs") && page.contains("vote of the 5 nearest"), "{page}");
    assert_eq!(&fs::read(place.path("one/card.png")).unwrap()[1..4], b"PNG");
    scruple!["classify", path(0), path(1), "--registry", registry, "-o", place.path("two")].succeeds();
    let two = [1, 2].map(|at| fs::read(place.path(&format!("two/card-{at}.png"))).unwrap());
    assert_ne!(two[0], two[1]);
    assert_eq!(fs::read(place.path("one/card.png")).unwrap(), two[0], "the same model has the same picture");
}

#[test]
fn models_are_told_by_their_neighbours() {
    let Made { zoo, .. } = made();
    let study = |options: &str| {
        let options = format!("--part neighbours --layer fc1.weight --epochs 20 {options}");
        scruple!["probe study --json", zoo, options.as_str()].json()
    };
    let found = study("--neighbours 5");
    let value = |what: &str| {
        let all = found["findings"].as_array().unwrap();
        let of = all.iter().find(|f| f["tree"] == "tree0" && f["what"].as_str().unwrap() == what);
        of.unwrap_or_else(|| panic!("{what} is not in {found:#}"))["accuracy"]["value"].as_f64().unwrap()
    };
    // Half is chance; a deviation of 320 decisions is 0.03.
    assert!(value("mvprobe, vote of the 5 nearest") > 0.6);
    assert!((value("mvprobe, shuffled labels, vote of the 5 nearest") - 0.5).abs() < 0.1);
    for score in ["the distance to the two nearest of a class", "the deviations from a class"] {
        assert!(value(&format!("mvprobe, AUROC of {score}")) > 0.6, "{score}");
        assert!((value(&format!("mvprobe, shuffled labels, AUROC of {score}")) - 0.5).abs() < 0.12, "{score}");
    }
    assert_eq!(study("--neighbours 5 --threads 3"), found);
}

#[test]
fn experts_do_not_depend_on_the_number_of_threads() {
    let Made { zoo, .. } = made();
    let place = Place::new();
    let registries = ["1", "3"].map(|threads| {
        let registry = place.out(threads);
        train(zoo, &registry, &format!("--tree tree1 --preset mvprobe --augment int4,prune50 --threads {threads}"));
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
fn a_zoo_without_test_models_is_not_studied() {
    let Made { zoo, .. } = made();
    let place = Place::new();
    let without = place.out("without");
    fs::create_dir_all(&without).unwrap();
    let mut index = json_file(&zoo.join("zoo.json"));
    index["models"].as_array_mut().unwrap().retain(|model| model["split"] != "test");
    fs::write(without.join("zoo.json"), index.to_string()).unwrap();
    scruple!["probe study --part baselines --layer fc1.weight", without].refuses(&["nothing to study", "test model"]);
}

#[test]
fn the_expert_of_another_tree_is_not_written_over() {
    let Made { zoo, registry, .. } = made();
    let place = Place::new();
    let other = place.out("registry");
    fs::create_dir_all(&other).unwrap();
    let expert = fs::read(registry.join("tree0.classes.safetensors")).unwrap();
    fs::write(other.join("tree1.classes.safetensors"), &expert).unwrap();
    scruple!["probe train", zoo, "--preset ridge --layer fc1.weight --tree tree1 -o", other].refuses(&[
        "tree1.classes.safetensors",
        "another tree than `tree1`",
        "move it away",
    ]);
    assert_eq!(fs::read(other.join("tree1.classes.safetensors")).unwrap(), expert);
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
    scruple!["classify", model, "--registry", registry, "--parquet", empty].refuses(&["empty: is a folder"]);
    scruple!["probe study --neighbours 0", zoo].refuses(&["--neighbours should be at least 1"]);
    scruple!["classify", model, model].refuses(&["one model at a time"]);
    scruple!["probe train", zoo, "--preset best -o", place.out("b")].refuses(&["no preset `best`", "mvprobe"]);
    scruple!["probe train", zoo, "--label colour -o", place.out("c")].refuses(&["no label `colour`", "classes"]);
    scruple!["zoo build --preset large -o", place.out("d")].refuses(&["no preset `large`", "digits-small"]);
    scruple!["zoo build -o", zoo].refuses(&["exists already"]);
    place.file("zoo.json", r#"{"format":1,"labels":{},"bases":{},"models":[]}"#);
    scruple!["probe train", place.path("zoo.json"), "-o", place.out("e")].refuses(&["holds no models"]);
    assert!(!place.results().iter().any(|name| name.starts_with('d')));
}
