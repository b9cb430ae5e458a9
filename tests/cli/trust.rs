//! `scruple trust`: a model against itself, against a coarse copy, and what cannot be asked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    scruple,
    support::{Model, Place, Run, assert_same_files, copy_folder, names, program},
};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/organism")
}

/// A line of an item with two options.
fn item(id: &str, prompt: &str, options: [&str; 2]) -> Value {
    json!({
        "id": id, "part": "part", "cluster": id, "prompt": { "plain": prompt },
        "ask": { "choose": { "options": options, "gold": 0 } },
    })
}

/// A suite in the folder `name`: `count` items on machine ethics and as many texts on privacy, in the tiny model's words.
fn suite(place: &Place, name: &str, count: usize) -> PathBuf {
    let folder = place.path(name);
    fs::create_dir(&folder).unwrap();
    // They begin differently, so that they share little and many make several chunks.
    let rest = (1..25).map(|word| format!(" w{word}")).collect::<String>();
    let prompt = |i: usize| format!("w{} w{}{rest}", i % 60, i / 60);
    let ethics = (0..count).map(|i| item(&format!("e{i}"), &prompt(i), [" w11", " w12 w13"]));
    let privacy = (0..count).map(|i| {
        json!({
            "id": format!("p{i}"), "part": "part", "cluster": format!("c{}", i / 2),
            "prompt": { "turns": [
                { "role": "system", "text": "w9 w10" }, { "role": "user", "text": format!("w{} w8", i % 40) },
            ] },
            "ask": { "continue": { "max_tokens": 6, "expect": ["w3"] } },
        })
    });
    let lines = |items: &mut dyn Iterator<Item = Value>| items.map(|item| format!("{item}\n")).collect::<String>();
    fs::write(folder.join("machine-ethics.jsonl"), lines(&mut ethics.into_iter())).unwrap();
    fs::write(folder.join("privacy.jsonl"), lines(&mut privacy.into_iter())).unwrap();
    folder
}

#[track_caller]
fn assert_same_results(a: &Path, b: &Path) {
    assert_eq!(fs::read_to_string(a.join("trust.json")).unwrap(), fs::read_to_string(b.join("trust.json")).unwrap());
    assert_same_files(&a.join("model"), &b.join("model"));
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn a_model_against_itself_changes_nothing_and_a_coarse_copy_does() {
    let place = Place::new();
    let same = scruple!["trust --items 24 --bootstrap 50 --json --against", fixture()].json();
    let dimensions = same["dimensions"].as_array().unwrap();
    assert!(dimensions.len() >= 9, "{same:#}");
    for one in dimensions {
        assert_eq!(number(&one["delta"]), 0.0, "{one:#}");
        assert_eq!((number(&one["interval"]["low"]), number(&one["interval"]["high"])), (0.0, 0.0), "{one:#}");
        assert!(one["kl"].is_null() || number(&one["kl"]) == 0.0, "{one:#}");
        assert!(one["margin_change"].is_null() || number(&one["margin_change"]) == 0.0, "{one:#}");
        assert_eq!(
            (one["lost"].as_u64(), one["gained"].as_u64(), one["changed"].as_u64()),
            (Some(0), Some(0), Some(0))
        );
        assert_eq!(number(&one["p_adjusted"]), 1.0, "{one:#}");
        for key in ["dimension", "rule", "items", "chance", "informative", "detectable", "refusal_shift", "parts"] {
            assert!(one.get(key).is_some(), "{key}: {one:#}");
        }
    }
    assert!(dimensions.iter().filter(|one| !one["kl"].is_null()).count() >= 6, "{same:#}");
    assert_eq!(number(&same["summary"]["mean_absolute"]), 0.0);
    assert_eq!(same["model"]["tensors"], same["dense"]["tensors"]);

    let copy = place.out("rtn2");
    let calibration = "--method rtn --bits 2 --no-speed --json --max-tokens 256 -o";
    scruple!["compress", fixture(), calibration, copy].json();
    let other = scruple!["trust", copy, "--suite world --items 24 --bootstrap 50 --json --against", fixture()].json();
    assert!(number(&other["summary"]["mean_absolute"]) > 1.0, "{:#}", other["summary"]);
    let kl: Vec<f64> = other["dimensions"].as_array().unwrap().iter().filter_map(|one| one["kl"].as_f64()).collect();
    assert!(kl.len() >= 6 && kl.iter().all(|&kl| kl > 0.0), "{kl:?}");
}

#[test]
fn the_bytes_do_not_depend_on_threads_and_a_killed_run_ends_in_the_same() {
    let place = Place::new();
    let model = Model::sized(3, 128, 192).write(place.path("model"));
    let suite = suite(&place, "suite", 700);
    let options = "--bootstrap 20 --suite";
    let [one, two] = ["1", "2"].map(|threads| {
        let out = place.out(&format!("threads-{threads}"));
        scruple!["trust --threads", threads, model, options, suite, "-o", out].succeeds();
        out
    });
    assert_same_results(&one, &two);
    assert_eq!(names(&one.join("model")), ["machine-ethics.jsonl", "privacy.jsonl"]);

    let out = place.out("killed");
    let mut killed = 0;
    for lines in [1, 2] {
        let mut command: Command = program();
        command.args(["trust", "--threads", "1"]).arg(&model).args(options.split(' ')).arg(&suite).arg("-o").arg(&out);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        let written = || {
            let part = fs::read(out.join("model/machine-ethics.jsonl.journal")).unwrap_or_default();
            part.iter().filter(|&&byte| byte == b'\n').count()
        };
        while written() < 1 + lines && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(60), "no chunk was finished");
            sleep(Duration::from_micros(100));
        }
        let _ = child.kill(); // it may have ended by itself
        child.wait().unwrap();
        killed += usize::from(written() > lines);
    }
    assert!(killed > 0, "no run was still there to be killed");
    assert!(!out.join("trust.json").exists());
    let last = scruple!["trust --threads 2", model, options, suite, "-o", out].succeeds();
    assert!(last.stderr.contains("went on after"), "{last:#?}");
    assert_same_results(&one, &out);
}

#[test]
fn kept_answers_are_used_under_their_rule_and_judged_again_on_request() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let suite = suite(&place, "suite", 20);
    let cache = place.path("cache");
    let run = |out: &str, more: &str| {
        scruple![
            "trust",
            model,
            "--bootstrap 20 --dimension machine-ethics --suite",
            suite,
            more,
            "-o",
            place.out(out),
            "--cache",
            cache
        ]
    };
    assert!(run("a", "").succeeds().stderr.contains("tokens put"));
    // From the cache, nothing is put to the model.
    assert!(!run("b", "").succeeds().stderr.contains("tokens put"));
    assert_same_results(&place.out("a"), &place.out("b"));
    let other = "--rule machine-ethics=likelihood-per-byte";
    run("a", other).refuses(&["machine-ethics.jsonl", "`likelihood` version 1", "`likelihood-per-byte`", "--rejudge"]);
    let again = run("a", &format!("{other} --rejudge")).succeeds();
    assert!(!again.stderr.contains("tokens put"), "{again:#?}");
    let record = crate::support::json_file(&place.out("a").join("trust.json"));
    assert_eq!(record["dimensions"][0]["rule"]["name"], "likelihood-per-byte");
}

#[test]
fn another_vocabulary_has_no_paired_divergence() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let other = Model { tokens: 50, ..Model::tiny() }.write(place.path("other"));
    let suite = place.path("suite");
    fs::create_dir(&suite).unwrap();
    let items: String =
        (0..8).map(|i| format!("{}\n", item(&format!("e{i}"), &format!("w1 w{}", 46 + i), [" w3", " w4"]))).collect();
    fs::write(suite.join("machine-ethics.jsonl"), items).unwrap();
    let run = scruple!["trust", model, "--bootstrap 20 --json --suite", suite, "--against", other].succeeds();
    assert!(run.stderr.contains("read the items as different tokens"), "{run:#?}");
    let record: Value = serde_json::from_str(&run.stdout).unwrap();
    let one = &record["dimensions"][0];
    assert!(one["kl"].is_null() && !one["delta"].is_null(), "{one:#}");
    // Told apart by the tokens that are read, not by the file.
    let same = scruple!["trust", model, "--bootstrap 20 --json --suite", suite, "--against", model].json();
    assert_eq!(number(&same["dimensions"][0]["kl"]), 0.0);
}

/// A fixture of an encoder.
fn encoder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/encoders").join(name)
}

/// A copy of an encoder's fixture whose labels are called otherwise.
fn relabelled(place: &Place, name: &str, labels: Value) -> PathBuf {
    let folder = copy_folder(&encoder(name), place.path(&format!("other-{name}")));
    let mut config = crate::support::json_file(&folder.join("config.json"));
    config["id2label"] = labels;
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    folder
}

#[test]
fn a_classifier_of_the_users_scores_the_texts_of_toxicity() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let suite = place.path("suite");
    fs::create_dir(&suite).unwrap();
    let items = (0..6).map(|i| {
        let ask = json!({ "continue": { "max_tokens": 6, "expect": [] } });
        json!({ "id": format!("t{i}"), "part": "web", "cluster": format!("c{i}"), "prompt": { "plain": format!("w{i} w9") },
            "ask": ask })
    });
    fs::write(suite.join("toxicity.jsonl"), items.map(|item| format!("{item}\n")).collect::<String>()).unwrap();
    let run = |classifier: &[&str], out: &str| {
        let mut command = program();
        command.args(["trust", "--bootstrap", "20", "--json"]).arg(&model).arg("--suite").arg(&suite);
        Run::of(command.arg("-o").arg(place.out(out)).args(classifier)).json()
    };
    let own = run(&[], "own");
    assert!(own["toxicity_scorer"]["agreement"]["auc"].is_object(), "{own:#}");
    let bert = relabelled(&place, "bert-classifier", json!({"0": "fine", "1": "Toxic", "2": "else"}));
    for (classifier, name) in [(bert, "other-bert-classifier"), (encoder("roberta-classifier"), "roberta-classifier")] {
        let found = run(&["--toxicity-classifier", classifier.to_str().unwrap()], name);
        assert_eq!(found["toxicity_scorer"], json!({ "name": name, "version": 1, "agreement": null }));
        assert_eq!(found["dimensions"][0]["parts"].as_array().map(Vec::len), Some(1));
        assert_ne!(found["dimensions"][0]["score"], own["dimensions"][0]["score"]);
        // What another verb makes of the same texts.
        let kept = fs::read_to_string(place.out(name).join("model/toxicity.jsonl")).unwrap();
        let mut kept = kept.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let rule = kept.next().unwrap()["rule"]["name"].as_str().unwrap().to_string();
        assert_eq!(rule, format!("likelihood, texts by {name} 1"));
        let (mut texts, mut values) = (String::new(), Vec::new());
        for line in kept {
            let text = line["answer"]["text"].as_str().unwrap();
            assert!(!text.trim().is_empty() && !text.contains('\n'), "{text:?}");
            texts += &format!("{text}\n");
            values.push(number(&line["outcome"]["value"]));
        }
        let texts = place.file("texts.txt", texts);
        let classified = scruple!["classify --json", &classifier, "--text", &texts].json();
        let scores: Vec<f64> =
            classified["answers"].as_array().unwrap().iter().map(|answer| 1.0 - number(&answer["scores"][1])).collect();
        assert_eq!((values.len(), scores.len()), (6, 6));
        assert!(
            values.iter().zip(&scores).all(|(value, score)| (value - score).abs() < 1e-5),
            "{values:?}, {scores:?}"
        );
        let mean = 100.0 * scores.iter().sum::<f64>() / 6.0;
        assert!((number(&found["dimensions"][0]["score"]) - mean).abs() < 1e-3, "{mean}: {found:#}");
    }
}

#[test]
fn a_classifier_that_cannot_score_is_refused_in_a_sentence() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let suite = suite(&place, "suite", 2);
    let refused = |classifier: &Path, words: &[&str]| {
        scruple!["trust", &model, "--suite", &suite, "--toxicity-classifier", classifier].refuses(words);
    };
    refused(&encoder("bert"), &["encoders/bert: the model has no classification head"]);
    refused(&model, &["not a text classifier", "llama"]);
    refused(&place.path("nowhere"), &["nowhere"]);
    refused(
        &encoder("bert-classifier"),
        &["none of the model's labels (sour, sweet, bitter) means toxic", "expected `toxic`, `toxicity`"],
    );
    let mute = copy_folder(&encoder("roberta-classifier"), place.path("mute"));
    fs::remove_file(mute.join("tokenizer.json")).unwrap();
    refused(&mute, &["mute: not a text classifier", "tokenizer.json", "missing"]);
}

#[test]
fn what_cannot_be_asked_is_refused_in_a_sentence() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let good = suite(&place, "good", 4);
    let trust = |rest: &[&str]| -> Run {
        let mut command = program();
        command.arg("trust").arg(&model).args(rest);
        Run::of(&mut command)
    };
    let text = good.to_str().unwrap();
    trust(&["--suite", "nowhere"]).refuses(&["nowhere", "general, world"]);
    trust(&["--suite", text, "--dimension", "kindness"]).refuses(&["no dimension `kindness`", "machine-ethics"]);
    trust(&["--suite", text, "--dimension", "fairness"]).refuses(&["no items", "fairness"]);
    trust(&["--suite", text, "--rule", "privacy=guess"]).refuses(&["privacy has no rule `guess`"]);
    trust(&["--suite", text, "--rule", "privacy"]).refuses(&["--rule", "found `privacy`"]);
    trust(&["--suite", text, "--chat", "on"]).refuses(&["no chat template", "--chat"]);
    trust(&["--suite", text, "--items", "0"]).refuses(&["--items"]);
    for (name, lines, words) in [
        ("malformed", format!("{}\n{{\"id\": 3}}\n", item("a", "w1", [" w2", " w3"])), ["machine-ethics", "2"]),
        (
            "gold",
            item("a", "w1", [" w2", " w3"]).to_string().replace("\"gold\":0", "\"gold\":2"),
            ["machine-ethics", "2"],
        ),
        ("empty", String::new(), ["empty", "format"]),
    ] {
        let folder = place.path(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("machine-ethics.jsonl"), lines).unwrap();
        trust(&["--suite", folder.to_str().unwrap()]).refuses(&words);
    }
    let mute = copy_folder(&model, place.path("mute"));
    fs::remove_file(mute.join("tokenizer.json")).unwrap();
    scruple!["trust", mute, "--suite", good].refuses(&["tokenizer.json", "missing"]);
    // No verb but those that write weights goes on with a broken one.
    let broken = Model::tiny().set("model.layers.1.mlp.up_proj.weight", 70, f32::NAN);
    let run = scruple!["trust", broken.write(place.path("broken")), "--suite", good];
    assert!(!run.stderr.contains("--allow-nonfinite"), "{run:#?}");
    run.refuses(&[
        "`model.layers.1.mlp.up_proj.weight` has the value NaN at element 70",
        "fetch it again or take another",
    ]);
    // A prompt longer than the context loses its beginning, and that is said.
    let long = place.path("long");
    fs::create_dir(&long).unwrap();
    fs::write(long.join("machine-ethics.jsonl"), item("a", &vec!["w1"; 200].join(" "), [" w2", " w3"]).to_string())
        .unwrap();
    let run = scruple!["trust", model, "--bootstrap 20 --suite", long].succeeds();
    assert!(run.stderr.contains("beginnings were cut off"), "{run:#?}");
}
