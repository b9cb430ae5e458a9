//! Models whose weights share a pool: run from it, trained further, made by recipes and sweeps, and damaged.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    scruple,
    support::{Model, Place, Run, assert_same_files, json_file, program},
};

const PROJECT: &str = "share project --min-values 1 --allow-lossy";

#[test]
fn a_model_runs_from_its_pool_as_it_does_expanded() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let (pool, dense, own) = (place.path("pool"), place.path("dense"), place.path("own"));
    scruple![PROJECT, "--rate 2", model, "-o", pool].succeeds();
    scruple!["share expand", pool, "-o", dense].succeeds();
    let text = place.text("text", 200);
    let eval = |folder: &Path, threads: &str| {
        let found = scruple![threads, "eval --json --window 16 --max-tokens 96", folder, "--text", text].json();
        (found["perplexity"].clone(), found["bits_per_weight"].as_f64().unwrap())
    };
    let (from_pool, expanded) = (eval(&pool, "--threads 2"), eval(&dense, "--threads 1"));
    assert_eq!(from_pool.0, expanded.0);
    assert_eq!((from_pool.1, expanded.1), (16.0, 32.0));
    let generate = |folder: &Path| {
        scruple!["generate --json --max-tokens 12 --prompt", "w3 w9".to_string(), folder].json()["tokens"].clone()
    };
    assert_eq!(generate(&pool), generate(&dense));
    // Of pools of one tensor each as well.
    scruple![PROJECT, "--rate 2 --pools per-tensor", model, "-o", own].succeeds();
    let own_dense = place.path("own-dense");
    scruple!["share expand", own, "-o", own_dense].succeeds();
    assert_eq!(generate(&own), generate(&own_dense));
    assert_ne!(eval(&own, "").0, from_pool.0);
    let compressed = scruple!["compress --method rtn --group-size 32", pool, "-o", place.out("rtn")];
    assert!(compressed.code == Some(2) && compressed.stderr.contains("share expand"), "{}", compressed.stderr);
}

#[test]
fn memory_grows_with_the_pool_and_not_with_the_weights() {
    const VOCAB: usize = 48_000;
    let place = Place::new();
    let model = Model::sized(1, 256, 256)
        .config("vocab_size", VOCAB)
        .config("tie_word_embeddings", true)
        .without("lm_head.weight")
        .shape("model.embed_tokens.weight", &[VOCAB, 256])
        .write(place.path("model"));
    let pool = place.path("pool");
    scruple!["share project --allow-lossy --rate 64", model, "-o", pool].succeeds();
    let peak = |folder: &Path, name: &str| {
        let out = place.out(name);
        // By way of a shell that forks: a process begins with the peak of the one it was forked from, here the tests' own.
        let mut shell = Command::new("sh");
        shell.args(["-c", "\"$0\" \"$@\"; exit $?", env!("CARGO_BIN_EXE_scruple")]);
        shell.args(["--threads", "1", "generate", "--max-tokens", "2", "--prompt", "w3", "-o"]).arg(&out).arg(folder);
        Run::of(&mut shell).succeeds();
        json_file(&out.join("run.json"))["peak_rss_bytes"].as_u64().unwrap()
    };
    let (dense, shared) = (peak(&model, "dense"), peak(&pool, "shared"));
    let table = (4 * 256 * VOCAB) as u64; // 49 MB
    assert!(dense > table && shared + table * 3 / 4 < dense, "{shared} bytes from the pool, {dense} dense");
}

#[test]
fn a_language_model_is_trained_over_its_pool_and_a_stopped_run_goes_on() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let (text, pool) = (place.text("text", 600), place.path("pool"));
    scruple![PROJECT, "--rate 2", model, "-o", pool].succeeds();
    let finetune = |threads: &str, more: &str, out: &Path| {
        let options = "share finetune --json --steps 24 --windows 4 --window 16 --learning-rate 0.01 --max-tokens 96";
        scruple![threads, options, more, pool, "--teacher", model, "--text", text, "--test-text", text, "-o", out]
    };
    let (whole, stopped) = (place.out("whole"), place.out("stopped"));
    let found = finetune("--threads 1", "", &whole).json();
    let waits = finetune("--threads 2", "--stop-after 9", &stopped).json();
    assert_eq!((&waits["step"], &waits["steps"]), (&json!(9), &json!(24)));
    assert!(!stopped.exists());
    let other = finetune("--threads 2", "--seed 5", &stopped);
    assert!(other.code == Some(2) && other.stderr.contains("a saved run of another recipe"), "{}", other.stderr);
    let resumed = finetune("--threads 2", "", &stopped).succeeds();
    assert!(resumed.stderr.contains("went on after step 9 of 24"), "{}", resumed.stderr);
    assert_same_files(&whole, &stopped);
    assert_eq!(place.results(), ["stopped", "whole"]); // nothing of the saved run is left
    let perplexity = |at: &str| found[at]["perplexity"].as_f64().unwrap();
    assert!(perplexity("after") < 0.8 * perplexity("before"), "{found:#}");
    scruple!["share verify", whole].succeeds();
    scruple!["share expand", whole, "-o", place.out("dense")].succeeds();
    let wrong = scruple!["share finetune", pool, "--data glyphs -o", place.out("x")];
    assert!(wrong.code == Some(2) && wrong.stderr.contains("give --text FILE"), "{}", wrong.stderr);
}

#[test]
fn a_net_is_projected_and_trained_beside_the_dense_one() {
    let place = Place::new();
    let (trained, dense, pool) = (place.path("trained"), place.path("dense"), place.path("pool"));
    scruple!["share train --net mlp --width 32 --epochs 2 --rate 1 -o", trained].succeeds();
    scruple!["share expand", trained, "-o", dense].succeeds();
    scruple![PROJECT, "--rate 4", dense, "-o", pool].succeeds();
    let finetune = |more: &str, out: &Path| {
        let options = "share finetune --json --net mlp --width 32 --epochs 2 --save-every 40";
        scruple![options, more, pool, "--teacher", dense, "-o", out]
    };
    let (whole, stopped) = (place.out("whole"), place.out("stopped"));
    let found = finetune("", &whole).json();
    finetune("--stop-after 77", &stopped).succeeds();
    finetune("", &stopped).succeeds();
    assert_same_files(&whole, &stopped);
    let accuracy = |at: &str| found[at]["accuracy"].as_f64().unwrap();
    assert!(accuracy("after") > 0.5 && accuracy("after") > accuracy("before") + 0.2, "{found:#}");
    let verified = scruple!["share verify --json --test glyphs", whole].json();
    assert_eq!(verified["test_accuracy"].as_f64(), Some(accuracy("after")));
    // A second run knows the net from the first one's record, and how it was fed images.
    let again = scruple!["share finetune --json --epochs 1 --stop-after 1", whole, "-o", place.out("again")].json();
    assert_eq!(again["step"], 1);
    let (mut record, scaling) = (json_file(&whole.join("share.json")), json!({ "mean": [0.5], "deviation": [0.75] }));
    record["recipe"]["scaling"] = scaling.clone();
    fs::write(whole.join("share.json"), record.to_string()).unwrap();
    let fed = scruple!["share finetune --json --epochs 1", whole, "-o", place.out("fed")].json();
    assert_eq!(fed["recipe"]["scaling"], scaling);
}

#[test]
fn sharing_is_a_method_of_recipes_with_the_honest_words() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 300);
    let rps = "compress --method rps --param rate=4 --param min_values=1";
    let refused = scruple![rps, model, "-o", place.out("pool")];
    assert!(
        refused.code == Some(2) && refused.stderr.contains("have it evaluated by --text FILE"),
        "{}",
        refused.stderr
    );
    let dry = scruple![rps, model, "--dry-run"].succeeds().stdout;
    assert!(dry.contains("a starting point for fine-tuning, not a usable model"), "{dry}");
    assert!(dry.contains("in the pool's bytes 4 bits is") && dry.contains("without training prefer 4 bits"), "{dry}");
    assert!(place.results().is_empty());

    let out = place.out("pool");
    let made = scruple![rps, "--max-tokens 96 --text", text, model, "-o", out].succeeds().stdout;
    assert!(made.contains("relative error 0.6") && made.contains("the dense model's"), "{made}");
    let record = json_file(&out.join("share.json"));
    assert_eq!(record["projected"]["advice"]["rivals"][0]["name"], "4 bits");
    assert!(json_file(&out.join("eval.json"))["against"]["dense_perplexity"].as_f64().is_some());
    scruple!["verify", out, "--against", model].succeeds();

    let (recipe, tuned) = (place.path("r.toml"), place.out("tuned"));
    let params = "rate = 4\nmin_values = 1\nsteps = 12\nwindows = 2\nwindow = 16\nlearning_rate = 0.01\n";
    fs::write(&recipe, format!("[[stage]]\nmethod = \"rps\"\n[stage.params]\n{params}")).unwrap();
    let run = scruple![
        "compress --json --max-tokens 96",
        model,
        "--recipe",
        recipe,
        "--calibration",
        text,
        "--text",
        text,
        "-o",
        tuned
    ]
    .json();
    let perplexity = |record: &Value| record["perplexity"].as_f64().unwrap();
    assert!(perplexity(&run["evaluation"]) < perplexity(&json_file(&out.join("eval.json"))), "{run:#}");
    assert_eq!(run["made"]["tuned"]["steps"], 12);
    let methods = scruple!["methods --json"].json();
    let rps = methods.as_array().unwrap().iter().find(|method| method["name"] == "rps").unwrap();
    assert_eq!((&rps["kind"], &rps["parameters"]["rate"]), (&json!("shares"), &json!(8.0)));
}

#[test]
fn a_killed_recipe_goes_on_with_its_training() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 300);
    let params = "rate = 4\nmin_values = 1\nsteps = 400\nwindows = 2\nwindow = 16\nlearning_rate = 0.01\n";
    let recipe = place.file("r.toml", format!("[[stage]]\nmethod = \"rps\"\n[stage.params]\n{params}"));
    let command = |out: &Path| {
        let mut command = program();
        command.arg("compress").arg(&model).arg("--recipe").arg(&recipe).arg("--calibration").arg(&text);
        command.arg("--text").arg(&text).args(["--max-tokens", "96", "-o"]).arg(out);
        command
    };
    let whole = place.out("whole");
    Run::of(&mut command(&whole)).succeeds();
    let saved =
        |out: &Path| out.with_file_name(format!(".{}.finetune.safetensors", out.file_name().unwrap().display()));
    // A run that ends before it is killed shows nothing; another one is begun.
    let killed = (0..9).map(|attempt| place.out(&format!("killed-{attempt}"))).find(|out| {
        let mut child = command(out).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !saved(out).is_file() && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        child.wait().unwrap().signal() == Some(9) && saved(out).is_file() && !out.exists()
    });
    let killed = killed.expect("one of nine runs is killed between its first saving and its end");
    let resumed = Run::of(&mut command(&killed)).succeeds();
    assert!(resumed.stderr.contains("of 400"), "{}", resumed.stderr);
    assert_same_files(&whole, &killed);
    assert!(!saved(&killed).exists());
}

#[test]
fn the_rate_of_sharing_is_an_axis_of_a_sweep() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    place.text("text", 300);
    let item = |i: usize| {
        json!({
            "id": format!("e{i}"), "part": "part", "cluster": format!("c{i}"), "prompt": { "plain": format!("w{i} w3") },
            "ask": { "choose": { "options": [" w11", " w12"], "gold": i % 2 } },
        })
    };
    fs::create_dir(place.path("items")).unwrap();
    place.file("items/machine-ethics.jsonl", (0..12).map(|i| format!("{}\n", item(i))).collect::<String>());
    let sweep = place.file(
        "sweep.toml",
        "text = { file = \"text\", window = 32, windows = 2 }\ncalibration = { file = \"text\" }\n\
         bootstrap = { replicates = 100 }\n[[suite]]\npath = \"items\"\n\
         [[point]]\nmethod = \"rps\"\nrate = [1, 4]\nmin_values = 1\n\
         [[point]]\nmethod = \"rps\"\nname = \"tuned\"\nrate = 4\nmin_values = 1\nsteps = 10\nwindows = 2\nwindow = 16\n\
         learning_rate = 0.01\n",
    );
    let out = place.out("sweep");
    scruple!["curve", model, "--sweep", sweep, "-o", out].succeeds();
    let curve = json_file(&out.join("curve.json"));
    let points = curve["points"].as_array().unwrap();
    let of =
        |name: &str| points.iter().find(|point| point["name"] == name).unwrap_or_else(|| panic!("{name}: {curve:#}"));
    let perplexity = |name: &str| of(name)["perplexity"].as_f64().unwrap();
    assert_eq!((&of("rps-4")["kind"], &of("rps-4")["rate"]), (&json!("shared"), &json!("4 × shared")));
    assert_eq!(
        (of("rps-1")["bits_per_weight"].as_f64(), of("rps-4")["bits_per_weight"].as_f64()),
        (Some(32.0), Some(8.0))
    );
    assert!(perplexity("tuned-4") < perplexity("rps-4"), "{points:#?}");
    assert_eq!(perplexity("rps-1"), curve["dense"]["perplexity"].as_f64().unwrap());
}

#[test]
fn configurations_that_cannot_be_are_told_in_one_sentence() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    for (options, parts) in [
        ("--slots 900000", ["a pool of 900000 slots is larger than the", "weights that would share it"]),
        ("--rate 0.5", ["the rate is 0.5", "expected 1"]),
        ("--include model.layer.*", ["the pattern `model.layer.*` matches none of the", "`scruple inspect` lists"]),
        ("--exclude *.nothing", ["the pattern `*.nothing` matches none", "tensors"]),
        ("--min-values 999999", ["no tensor is left to share", "selected by name"]),
        ("--align 8", ["the alignment is 8", "expected 16 or 64"]),
    ] {
        let run = scruple!["share project --allow-lossy", options, model, "-o", place.out("pool")];
        let one_line = run.stderr.trim().lines().count() == 1;
        assert!(run.code == Some(2) && one_line && parts.iter().all(|part| run.stderr.contains(part)), "{run:#?}");
        assert!(place.results().is_empty());
    }

    // A pool whose description was changed afterwards.
    let pool = place.path("pool");
    scruple![PROJECT, "--rate 2 --seed 5", model, "-o", pool].succeeds();
    let file = pool.join("model.rps.safetensors");
    let whole = fs::read(&file).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&whole[8..8 + length]).unwrap();
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 6] = [
        (|said| said["tensors"][0]["lambda_bits"] = json!("0x7fc00000"), "has scale NaN, expected a number above 0"),
        (|said| said["tensors"][1] = said["tensors"][0].clone(), "stands in the file more than once"),
        (|said| said["tied"] = json!([{ "name": "x", "of": "y" }]), "is tied to `y`, which does not share"),
        (|said| said["n"] = json!(7), "says n = 7, its tensors have"),
        (|said| said["tensors"][0]["name"] = json!("model.embed.weight"), "`model.embed_tokens.weight` is missing"),
        (|said| said["seed"] = json!("6"), "expands to SHA-256"),
    ];
    for (change, part) in changes {
        let mut header = header.clone();
        let mut said: Value = serde_json::from_str(header["__metadata__"]["rps"].as_str().unwrap()).unwrap();
        change(&mut said);
        header["__metadata__"]["rps"] = said.to_string().into();
        let mut text = header.to_string();
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.extend(&whole[8 + length..]);
        fs::write(&file, bytes).unwrap();
        let generated = scruple!["generate --max-tokens 1 --prompt w1", pool];
        let verified = scruple!["share verify", pool];
        let said = format!("{}{}{}", generated.stderr, verified.stdout, verified.stderr);
        assert!(verified.code != Some(0) || generated.code == Some(2), "{part}: was accepted");
        assert!(said.contains(part), "{part}: {said}");
    }
}
