//! Whole layers: searched for, taken out, proved.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use scruple_weights::{Checkpoint, Dtype};
use serde_json::{Value, json};

use crate::{
    arguments, scruple,
    support::{self, Model, Place, Run, contents, json_file, names, numbers},
};

/// Six layers, of which 2 and 3 add nothing to the stream.
fn model(place: &Place) -> PathBuf {
    let mut model = Model::sized(6, 64, 96).config("max_position_embeddings", 512);
    for layer in [2, 3] {
        for name in ["self_attn.o_proj", "mlp.down_proj"] {
            model = model.edit(&format!("model.layers.{layer}.{name}.weight"), |values| values.fill(0.0));
        }
    }
    model.write(place.path("model"))
}

fn search(place: &Place, model: &Path, rest: &str, out: &Path) -> Vec<std::ffi::OsString> {
    let (calibration, holdout) =
        (place.file("search.txt", support::text(600, 1)), place.file("held.txt", support::text(600, 2)));
    arguments![
        "layers search",
        model,
        "--calibration",
        calibration,
        "--holdout",
        holdout,
        "--window 32 --budget-tokens 256",
        "--holdout-tokens 256",
        rest,
        "-o",
        out
    ]
}

#[test]
fn layers_are_searched_for_taken_out_and_proved() {
    let place = Place::new();
    let model = model(&place);
    let run =
        support::run(&search(&place, &model, "--remove 1..3 --search greedy,beam:2", &place.out("run"))).succeeds();
    assert!(run.stdout.contains("perplexity") && run.stderr.contains("the canary `sums`"), "{run:#?}");
    let record = json_file(&place.out("run/search.json"));
    let chosen = record["chosen"].as_array().unwrap();
    assert_eq!(chosen.iter().map(|set| set["k"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(chosen[1]["removed"], json!([2, 3]));
    assert!(chosen[1]["holdout"]["kl"]["value"].as_f64().unwrap() < 1e-6);
    assert_eq!(chosen[1]["holdout"]["perplexity"], record["dense"]["perplexity"]);
    let methods: Vec<&str> =
        record["curves"].as_array().unwrap().iter().map(|curve| curve["method"].as_str().unwrap()).collect();
    let expected = [
        "greedy",
        "beam:2",
        "last",
        "last-but-one",
        "uniform",
        "influence",
        "angular-window",
        "random-0",
        "random-1",
        "random-2",
    ];
    assert_eq!(methods, expected);
    assert!(fs::read_to_string(place.out("run/search.svg")).unwrap().starts_with("<svg"));

    // By the file, by its folder, and by hand the same checkpoint.
    let (by_file, by_folder, by_hand) = (place.out("by-file"), place.out("by-folder"), place.out("by-hand"));
    let file = place.out("run/search.json");
    scruple!["layers prune", &model, "--from", &file, "--k 2 -o", &by_file].succeeds();
    scruple!["layers prune", &model, "--from", place.out("run"), "--k 2 -o", &by_folder].succeeds();
    let run = scruple!["layers prune", &model, "--drop 2-3 --mergekit -o", &by_hand].succeeds();
    assert!(run.stdout.contains("llama-quantize --prune-layers 2,3") && run.stdout.contains("layer_range: [4, 6]"));
    for name in ["model.safetensors", "config.json", "tokenizer.json", "README.md"] {
        let read = |folder: &Path| fs::read(folder.join(name)).unwrap();
        assert!(read(&by_file) == read(&by_folder) && read(&by_file) == read(&by_hand), "{name}");
    }
    assert!(fs::read_to_string(by_hand.join("mergekit.yaml")).unwrap().contains("merge_method: passthrough"));
    assert_eq!(json_file(&by_file.join("config.json"))["num_hidden_layers"], 4);
    assert_eq!(json_file(&by_file.join("layers.json"))["chosen_by"]["method"], "greedy");
    let moved =
        (numbers(&by_file, "model.layers.2.mlp.up_proj.weight"), numbers(&model, "model.layers.4.mlp.up_proj.weight"));
    assert_eq!(moved.0, moved.1);

    let run = scruple!["layers verify", &by_file, "--against", &model].succeeds();
    assert!(run.stdout.starts_with("verified: 4 of 6 layers of `model.layers` are there (2-3 dropped)"), "{run:#?}");
    support::flip(&by_file, "model.layers.2.mlp.up_proj.weight");
    let run = scruple!["layers verify", &by_file, "--against", &model, "--json"];
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(run.stdout.contains("`model.layers.2.mlp.up_proj.weight` should hold the bytes of the source's"));

    // What was taken out can be quantised as any other model.
    let recipe = arguments!["compress", &by_hand, "--method rtn --group-size 32 --no-speed -o", place.out("small")];
    support::run(&recipe).succeeds();
    let text = place.text("text", 100);
    scruple!["eval", place.out("small"), "--text", text].succeeds();
}

#[test]
fn a_killed_search_ends_as_one_that_was_not() {
    let place = Place::new();
    let model = Model::sized(12, 64, 96).config("max_position_embeddings", 512).write(place.path("model"));
    let rest = "--remove 1..6 --search beam:3 --race 0";
    support::run(&search(&place, &model, rest, &place.out("whole"))).succeeds();
    let whole = contents(&place.out("whole"));
    let scores =
        || names(&place.out("killed")).into_iter().filter(|name| name.starts_with("scores-")).collect::<Vec<_>>();
    let command = || {
        let mut command = support::program();
        command.args(search(&place, &model, rest, &place.out("killed"))).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    // Killed again and again, each time after something more is on disk.
    let mut kills = 0;
    for _ in 0..3 {
        let length = |place: &Place| -> u64 {
            let folder = place.out("killed");
            let Ok(entries) = fs::read_dir(&folder) else { return 0 };
            entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|data| data.len()).sum()
        };
        let before = length(&place);
        let mut child = command().spawn().unwrap();
        let started = Instant::now();
        while length(&place) <= before && started.elapsed() < Duration::from_secs(60) {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        if child.kill().is_ok() && !child.wait().unwrap().success() {
            kills += 1;
        }
    }
    assert!(kills > 0 && !scores().is_empty());
    support::run(&search(&place, &model, rest, &place.out("killed"))).succeeds();
    let killed = contents(&place.out("killed"));
    assert_eq!(whole["search.json"], killed["search.json"]);
    // Once more costs nothing: no score is added.
    support::run(&search(&place, &model, rest, &place.out("killed"))).succeeds();
    assert_eq!(contents(&place.out("killed")), killed);
}

#[test]
fn a_scan_says_which_layers_do_little() {
    let place = Place::new();
    let model = model(&place);
    let text = place.file("text", support::text(300, 1));
    let run = scruple!["layers scan", &model, "--calibration", &text, "--tokens 256 --window 32 -o", place.out("scan")]
        .succeeds();
    assert!(run.stdout.contains("least first, layers that cannot be told apart together: 3 2 |"), "{run:#?}");
    let record = json_file(&place.out("scan/scan.json"));
    assert_eq!(record["layers"][2]["influence"]["value"], 0.0);
    assert_eq!((&record["angular"][0][2], &record["angular"][1][2]), (&json!(0.0), &json!(0.0)));
    assert!(record["layers"][2]["cka"].as_f64().unwrap() > 0.999_999);
    assert!(record["layers"][0]["attention"]["value"].as_f64().unwrap() > 0.0);
    assert!(fs::read_to_string(place.out("scan/scan.svg")).unwrap().contains("least of its row"));
}

#[test]
fn one_text_is_cut_in_two() {
    let place = Place::new();
    let model = model(&place);
    let text = place.text("text", 300);
    let rest = "--remove 1..2 --search greedy --window 32 --budget-tokens 4096 --no-canaries";
    for (number, holdout) in [arguments!["--holdout", &text], Vec::new()].into_iter().enumerate() {
        let mut run =
            arguments!["layers search", &model, rest, "--calibration", &text, "-o", place.out(&number.to_string())];
        run.extend(holdout);
        let run = support::run(&run).succeeds();
        assert!(run.stderr.contains("the search sees its first 128 tokens, what follows is held out"), "{run:#?}");
        let record = json_file(&place.out(&number.to_string()).join("search.json"));
        assert_eq!((&record["search_tokens"], &record["holdout_tokens"]), (&json!(128), &json!(160)));
    }
}

#[test]
fn layers_of_an_encoder_are_searched_for_by_its_vectors() {
    let place = Place::new();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/encoders/bert");
    let words = ["the", "lemon", "honey", "coffee", "tastes", "is", "cold", "tea"];
    let line = |n: usize| (0..6).map(|at| words[((n * 997) >> (3 * at)) % 8]).collect::<Vec<_>>().join(" ") + "\n";
    let text = place.file("lines.txt", (0..40).map(line).collect::<String>());
    let rest = "--remove 1 --search greedy,exhaustive --protect first:0,last:0";
    let run = scruple!["layers search", &model, rest, "--calibration", &text, "-o", place.out("run")].succeeds();
    assert!(run.stdout.contains("overlap"), "{run:#?}");
    let record = json_file(&place.out("run/search.json"));
    let chosen = &record["chosen"][0];
    assert_eq!((&chosen["k"], chosen["removed"].as_array().unwrap().len()), (&json!(1), 1));
    assert!(chosen["loss"].as_f64().unwrap() > 0.0 && chosen["holdout"]["overlap"]["value"].as_f64().unwrap() <= 1.0);
    let out = place.out("pruned");
    scruple!["layers prune", &model, "--from", place.out("run"), "-o", &out].succeeds();
    scruple!["layers verify", &out, "--against", &model].succeeds();
    let run =
        scruple!["layers search", &model, "--remove 1 --protect first:0,last:0 --search evolve --calibration", &text];
    assert!(run.code == Some(2) && run.stderr.contains("greedy, window or exhaustive"), "{run:#?}");
}

#[test]
fn healing_says_what_it_wins_back() {
    let place = Place::new();
    let model = Model::sized(6, 64, 96).config("max_position_embeddings", 512).write(place.path("model"));
    let (text, held) = (place.file("text", support::text(600, 1)), place.file("held", support::text(600, 2)));
    let pruned = place.out("pruned");
    scruple!["layers prune", &model, "--drop 2-3 -o", &pruned].succeeds();
    let heal = |method: &str| {
        let out = place.out(method);
        let rest = format!("--method {method} --window 32 --tokens 512 --holdout-tokens 256 --json");
        let run = scruple![
            "layers heal",
            &pruned,
            "--against",
            &model,
            "--calibration",
            &text,
            "--holdout",
            &held,
            rest.as_str(),
            "-o",
            &out
        ];
        let record: Value = serde_json::from_str(&run.stdout).unwrap();
        let kl = |side: &str| record[side]["against"]["kl_mean"]["value"].as_f64().unwrap();
        // The exit code says whether it helped.
        let helped = kl("with") < kl("without");
        assert_eq!((record["helped"].as_bool(), run.code), (Some(helped), Some(i32::from(!helped))), "{run:#?}");
        assert_eq!(run.stderr.contains("do not use it"), !helped);
        scruple!["layers verify", &out, "--against", &model].succeeds();
        (kl("without"), kl("with"), record["provenance"]["healed"]["tensors"].clone())
    };
    let (before, after, tensors) = heal("norms");
    // Least squares makes what a norm hands on no worse; of the divergence at the end it promises nothing.
    assert!(before > 0.0 && after > 0.0 && after != before, "{after} after healing, {before} before");
    // The norms before the gap read what they read before; each behind it has other numbers, and nothing else has.
    let tensors: Vec<&str> = tensors.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let (healed, source) = (Checkpoint::open(place.out("norms")).unwrap(), Checkpoint::open(&pruned).unwrap());
    let changed = source.tensors().filter(|view| healed.tensor(view.name()).unwrap().bytes() != view.bytes());
    let changed: BTreeSet<&str> = changed.map(|view| view.name()).collect();
    let norms = ["input_layernorm", "post_attention_layernorm"];
    let behind = [2, 3].into_iter().flat_map(|layer| norms.map(|norm| format!("model.layers.{layer}.{norm}.weight")));
    let behind: Vec<String> = behind.chain(["model.norm.weight".to_string()]).collect();
    assert_eq!(changed, behind.iter().map(String::as_str).collect::<BTreeSet<_>>());
    assert_eq!(changed, tensors.into_iter().collect::<BTreeSet<_>>());
    let (_, _, tensors) = heal("merge");
    assert!(tensors.as_array().unwrap().iter().all(|name| name.as_str().unwrap().starts_with("model.layers.1.")));
    let name = "mlp.up_proj.weight";
    let of = |layer: usize| numbers(&model, &format!("model.layers.{layer}.{name}"));
    let merged = numbers(&place.out("merge"), &format!("model.layers.1.{name}"));
    let expected = of(1).into_iter().zip(of(2)).zip(of(3)).map(|((a, b), c)| b + c - a);
    assert!(merged.iter().zip(expected).all(|(merged, expected)| (merged - expected).abs() < 1e-6));
}

#[test]
fn distillation_helps_and_a_killed_run_ends_as_one_that_was_not() {
    let place = Place::new();
    let model = Model::sized(6, 64, 96).dtype(Dtype::F16).write(place.path("model"));
    let (text, held) = (place.file("text", support::text(900, 1)), place.file("held", support::text(400, 2)));
    let pruned = place.out("pruned");
    scruple!["layers prune", &model, "--drop 2-3 -o", &pruned].succeeds();
    let heal = |out: &Path, rest: &str| {
        arguments![
            "layers heal",
            &pruned,
            "--against",
            &model,
            "--method distil --calibration",
            &text,
            "--holdout",
            &held,
            "--window 32 --windows 2 --tokens 3840 --holdout-tokens 256 --learning-rate 0.01 --save-every 2 --json",
            rest,
            "-o",
            out
        ]
    };
    let whole = place.out("whole");
    let run = support::run(&heal(&whole, "")).succeeds();
    let record: Value = serde_json::from_str(&run.stdout).unwrap();
    let kl = |side: &str| record[side]["against"]["kl_mean"]["value"].as_f64().unwrap();
    assert!(kl("with") < 0.9 * kl("without"), "{run:#?}");
    assert_eq!(record["provenance"]["healed"]["recipe"]["rank"], 8);
    assert_eq!(json_file(&whole.join("heal.json")), record);
    let name = "model.layers.3.mlp.up_proj.weight";
    assert_ne!(numbers(&whole, name), numbers(&pruned, name));
    scruple!["layers verify", &whole, "--against", &model].succeeds();

    // Killed again and again, each time after something more is saved; other threads, the same bytes.
    let killed = place.out("killed");
    let state = place.out(".killed.heal.safetensors");
    let saved = || fs::metadata(&state).and_then(|data| data.modified()).ok();
    let mut kills = 0;
    for _ in 0..3 {
        let before = saved();
        let mut command = support::program();
        command.args(heal(&killed, "")).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let started = Instant::now();
        while saved() == before && started.elapsed() < Duration::from_secs(60) {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        if child.kill().is_ok() && !child.wait().unwrap().success() {
            kills += 1;
        }
    }
    assert!(kills > 0);
    let other = heal(&place.out("other"), "");
    let run = Run::of(support::program().args(&other).env("RAYON_NUM_THREADS", "3")).succeeds();
    assert!(run.stderr.contains("numbers learn in 60 steps"), "{run:#?}");
    let run = support::run(&heal(&killed, "")).succeeds();
    assert!(run.stderr.contains("went on after step") || run.stderr.contains("by an earlier run"), "{run:#?}");
    for folder in [&killed, &place.out("other")] {
        support::assert_same_files(&whole, folder);
    }
    assert!(!state.exists(), "the saved run lies about");
    // Once more there is nothing to do; another run does not take its folder.
    let again = support::run(&heal(&whole, "")).succeeds();
    assert!(again.stderr.contains("written by an earlier run"), "{again:#?}");
    support::run(&heal(&whole, "--seed 2")).refuses(&["already exists and is not this run's result"]);
    // Nor does the same run of another pruned model, whose tensors have the same names.
    let others = place.out("others");
    scruple!["layers prune", &model, "--drop 3-4 -o", &others].succeeds();
    let mut of_others = heal(&whole, "");
    of_others[2] = others.into_os_string();
    support::run(&of_others).refuses(&["already exists and is not this run's result"]);

    // A number that is none is named where it stands, not where it was felt.
    let file = pruned.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() - 2;
    bytes[at..].copy_from_slice(&0x7e00u16.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let run = support::run(&heal(&place.out("nan"), "")).refuses(&["tensor `", "NaN at element"]);
    assert!(!run.stderr.contains("learning rate"), "{run:#?}");
}

#[test]
fn two_objectives_give_what_no_other_beats() {
    let place = Place::new();
    let model = model(&place);
    let tasks = place.file(
        "tasks.jsonl",
        (0..8)
            .map(|n| {
                json!({ "prompt": format!("w{n} w{}", n + 3), "options": ["w1 w2", "w3 w4", "w5 w6"], "answer": n % 3 })
                    .to_string()
                    + "\n"
            })
            .collect::<String>(),
    );
    let rest = format!("--remove 2 --objective kl,mc:{} --no-canaries --race 0", tasks.display());
    support::run(&search(&place, &model, &rest, &place.out("run"))).succeeds();
    let record = json_file(&place.out("run/search.json"));
    let sets = record["pareto"][0]["sets"].as_array().unwrap();
    let losses: Vec<(f64, f64)> = sets.iter().map(|set| (set[2].as_f64().unwrap(), set[3].as_f64().unwrap())).collect();
    assert_eq!(sets[0][1], json!([2, 3]));
    assert!(losses.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 > pair[1].1), "{losses:?}");
    let rest = format!("--remove 1 --objective mc:{} --no-canaries", tasks.display());
    support::run(&search(&place, &model, &rest, &place.out("by-task"))).succeeds();
}

#[test]
fn what_cannot_be_done_is_said_in_one_sentence() {
    let place = Place::new();
    let folder = model(&place);
    let text = place.text("text", 600);
    let copy = place.text("copy", 600);
    let out = place.out("out");
    let odd = Model::sized(6, 64, 96).config("head_gains", json!([1, 2, 3, 4, 5, 6])).write(place.path("odd"));
    let none = json!({ "chosen": [{ "removed": [1] }] }).to_string();
    let none = place.file("none.json", none);
    let cases: Vec<(Vec<std::ffi::OsString>, &str)> = vec![
        (
            arguments!["layers prune", &folder, "--drop 6 -o", &out],
            "layer 6 cannot be dropped: the model has 6, numbered 0 to 5",
        ),
        (arguments!["layers prune", &folder, "--drop 0-5 -o", &out], "keep at least one"),
        (arguments!["layers prune", &folder, "--drop a -o", &out], "found `a` in `a`"),
        (
            arguments!["layers prune", &folder, "--drop 1 --stack blocks -o", &out],
            "no list of layers has the name `blocks`; there are `model.layers` (6)",
        ),
        (
            arguments!["layers prune", &odd, "--drop 1 -o", &out],
            "`head_gains` has 6 entries, as many as there are layers",
        ),
        (arguments!["layers prune", &folder, "--from", &none, "--k 4 -o", &out], "holds no set of 4 layers, but of 1"),
        (arguments!["layers prune", &folder, "--from", &text, "-o", &out], "not JSON"),
        (
            arguments!["layers verify", &folder, "--against", &folder],
            "the folder should be one that `scruple layers prune` wrote",
        ),
        (search(&place, &folder, "--remove 5", &out), "so 1 to 4 can be removed; found 5"),
        (
            search(&place, &folder, "--remove 3..1", &out),
            "--remove should be a number, a list or a range such as 1..8, found `3..1`",
        ),
        (search(&place, &folder, "--remove 0", &out), "from 1; found `0`"),
        (search(&place, &folder, "--remove 1 --search best", &out), "found `best`"),
        (search(&place, &folder, "--remove 1 --objective speed", &out), "kl, nll or mc:FILE, found `speed`"),
        (search(&place, &folder, "--remove 1 --protect ends", &out), "first:COUNT,last:COUNT, found `ends`"),
        (
            arguments!["layers search", &folder, "--remove 1 --window 32 --calibration", &text, "--holdout", &copy],
            "one that the search sees too",
        ),
    ];
    for (arguments, sentence) in cases {
        let run = support::run(&arguments);
        assert_eq!(run.code, Some(2), "{run:#?}");
        assert!(run.stderr.contains(sentence), "expected `{sentence}`: {run:#?}");
        assert_eq!(run.stderr.matches("error:").count(), 1, "{run:#?}");
        assert!(!out.join("config.json").exists());
    }
    let dry = scruple!["layers prune", &folder, "--drop 1 --dry-run --json"].succeeds();
    let record: Value = serde_json::from_str(&dry.stdout).unwrap();
    assert_eq!((&record["output"], &record["provenance"]["kept"]), (&Value::Null, &json!([0, 2, 3, 4, 5])));
}

#[test]
fn a_recipe_takes_layers_out_and_quantises_what_is_left() {
    let place = Place::new();
    let model = model(&place);
    let text = place.text("text", 400);
    let rest =
        "[[stage]]\nmethod = \"gptq\"\nparams = { group_size = 32 }\n[calibration]\nn_samples = 4\nseq_len = 32\n";
    let recipe = |name: &str, layers: &str| place.file(name, format!("[[stage]]\n{layers}\n{rest}"));
    let compress = |model: &Path, recipe: &Path, out: &Path| {
        scruple!["compress", model, "--recipe", recipe, "--calibration", &text, "--no-speed -o", out].succeeds();
    };
    // In two steps, in one, and by what a search found: the same tensors.
    let (pruned, in_two, in_one) = (place.out("pruned"), place.out("in-two"), place.out("in-one"));
    scruple!["layers prune", &model, "--drop 1,3-4 -o", &pruned].succeeds();
    compress(&pruned, &place.file("rest.toml", rest), &in_two);
    let by_set = recipe("drop.toml", "layers.drop = \"1,3-4\"");
    let dry = scruple!["compress", &model, "--recipe", &by_set, "--calibration", &text, "--dry-run -o", &in_one];
    let dry = dry.succeeds();
    assert!(dry.stdout.contains("without layers 1,3-4 of 6") && dry.stdout.contains("num_hidden_layers"), "{dry:#?}");
    assert!(!in_one.exists());
    compress(&model, &by_set, &in_one);
    let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(&in_one) == weights(&in_two));
    assert_eq!(json_file(&in_one.join("config.json")), json_file(&in_two.join("config.json")));
    assert_eq!(names(&place.path("out")), ["in-one", "in-two", "pruned"], "nothing lies about");
    fs::create_dir(place.path("search")).unwrap();
    let found = json!({ "chosen": [{ "removed": [2] }, { "removed": [1, 3, 4] }], "objective": "kl" });
    place.file("search/search.json", found.to_string());
    let searched = place.out("searched");
    compress(&model, &recipe("from.toml", "layers = { from = \"search\", k = 3 }"), &searched);
    assert!(weights(&searched) == weights(&in_one));

    // Where it comes from is said of both, and can be checked.
    let record = json_file(&searched.join("scruple.json"));
    assert_eq!(record["recipe"]["stage"][0], json!({ "layers": { "drop": "1,3-4" } }));
    assert_eq!(record["layers"], json_file(&searched.join("layers.json")));
    assert_eq!(record["layers"]["chosen_by"]["objective"], "kl");
    assert_eq!(record["layers"]["source_fingerprint"], json_file(&pruned.join("layers.json"))["source_fingerprint"]);
    assert_eq!(record["source_fingerprint"], json_file(&in_two.join("scruple.json"))["source_fingerprint"]);
    scruple!["verify", &in_one, "--against", &model].succeeds();
    assert_eq!(scruple!["verify", &in_one, "--against", &pruned].code, Some(1));
    scruple!["generate", &in_one, "--prompt w1 --max-tokens 3"].succeeds();
    let again = Model::sized(6, 64, 96).write(place.path("again"));
    assert_eq!(scruple!["verify", &in_one, "--against", &again].code, Some(1));

    let odd = Model::sized(6, 64, 96).config("model_type", "none-such").write(place.path("odd"));
    let after = format!("{rest}[[stage]]\nlayers.drop = \"1\"\n");
    let cases: Vec<(&Path, String, &[&str])> = vec![
        (&model, format!("[[stage]]\nlayers.drop = \"6\"\n{rest}"), &["layer 6 cannot be dropped", "numbered 0 to 5"]),
        (&model, format!("[[stage]]\nlayers.drop = \"0-5\"\n{rest}"), &["stage 1", "keep at least one"]),
        (&model, format!("[[stage]]\nlayers.drop = \"a\"\n{rest}"), &["(stage 1)", "found `a` in `a`"]),
        (&model, after, &["stage 2", "make `layers.drop` the first stage"]),
        (&model, "[[stage]]\nlayers.drop = \"1\"\n".into(), &["no stage follows", "layers prune"]),
        (&model, format!("[[stage]]\nlayers.drop = \"1\"\nmethod = \"rtn\"\n{rest}"), &["a stage of its own"]),
        (&model, format!("[[stage]]\nlayers.dorp = \"1\"\n{rest}"), &["unknown field `dorp`", "`drop`"]),
        (&model, format!("[[stage]]\nlayers = {{ from = \"search\", k = 2 }}\n{rest}"), &["holds no set of 2 layers"]),
        (&model, format!("[[stage]]\nlayers = {{ drop = \"1\", k = 2 }}\n{rest}"), &["`layers.k`"]),
        (&model, "[[stage]]\nlayers.drop = \"1\"\n[[stage]]\nmethod = \"rps\"\n".into(), &["stage 2 (`rps`)", "prune"]),
        (
            &model,
            "[[stage]]\nlayers.drop = \"1\"\n[[stage]]\nmethod = \"rtn\"\nparams = { bits = 5 }".into(),
            &["stage 2"],
        ),
        (&odd, format!("[[stage]]\nlayers.drop = \"1\"\n{rest}"), &["stage 1", "none-such"]),
    ];
    for (model, recipe, words) in cases {
        let file = place.file("wrong.toml", recipe);
        let out = place.out("wrong");
        scruple!["compress", model, "--recipe", file, "--calibration", &text, "-o", &out].refuses(words);
        assert!(!out.exists());
    }
}
