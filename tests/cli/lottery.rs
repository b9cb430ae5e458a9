//! `scruple lottery`: killed, on one and two threads, asked again and asked wrongly.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, SystemTime},
};

use serde_json::Value;

use crate::{
    scruple,
    support::{Place, Run, json_file, names, program},
};

/// A net that is trained in moments, with every kind of arm that needs another's weights.
const SMALL: &str = r#"
name = "small"
seeds = [1, 2]
score_images = 3
random = 1
save_seconds = 0.0

[data]
train = "glyphs"
test = "glyphs"
train_images = 200
test_images = 60
side = 8

[recipe]
epochs = 6
batch = 20
rate = 0.1

[robustness]
images = 20
epsilons = [8.0]
pgd_images = 10
pgd_epsilon = 8.0

[[net]]
name = "mlp"
architecture = { kind = "residual-mlp", width = 16, blocks = 3 }
minimum = 1

[[setting]]
name = "one block of three"
net = "mlp"
remove = 1
criteria = ["loss-drop", "snip-signed"]
reinit = true
trained = ["expectabs", "hrank"]
rewind = [0, 1]
finetune = 1
"#;

/// Everything an experiment leaves that is the same each time.
fn records(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for file in ["lottery.json", "runs.jsonl"] {
        found.insert(file.to_string(), fs::read(out.join(file)).unwrap());
    }
    for folder in ["runs", "scores", "weights"] {
        for name in names(&out.join(folder)) {
            found.insert(format!("{folder}/{name}"), fs::read(out.join(folder).join(&name)).unwrap());
        }
    }
    found
}

fn duel(one: &Value) -> (&str, &str) {
    (one["name"].as_str().unwrap(), one["against"].as_str().unwrap())
}

fn command(config: &Path, out: &Path, threads: usize) -> Command {
    let mut command = program();
    command.arg("lottery").arg("--config").arg(config).arg("-o").arg(out).arg("--threads").arg(threads.to_string());
    command
}

#[test]
fn the_smoke_experiment_opens_with_the_depth_gain() {
    let place = Place::new();
    let out = place.out("smoke");
    let run = scruple!["lottery --smoke -o", &out].succeeds();
    let first = run.stdout.lines().next().unwrap();
    assert!(first.starts_with("depth gain of resnet20, 3-3-3 over 2-2-2: "), "{run:#?}");
    assert!(first.contains("VACUOUS") || first.contains("depth pays here"), "{run:#?}");
    for words in ["method ", "480 g/kWh", "grad-flow", "filters by l1, equal macs", "kl rewound to 1", "halving"] {
        assert!(run.stdout.contains(words), "{words}: {run:#?}");
    }
    let report = json_file(&out.join("lottery.json"));
    let gate = &report["gates"][0];
    assert_eq!(gate["depth_gain"]["values"].as_array().unwrap().len(), 3);
    assert!(report["verdict"][0].as_str().unwrap() == first);
    let tried = &report["settings"][0];
    let arms: Vec<&str> =
        tried["compared"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert!(arms.len() >= 17, "{arms:?}");
    // What says what a ticket owes to its blocks, its weights, its criterion, its epochs.
    let duels: Vec<(&str, &str)> = tried["duels"].as_array().unwrap().iter().map(duel).collect();
    for duel in [
        ("grad-flow", "own blocks of grad-flow"),
        ("grad-flow", "reinit"),
        ("grad-flow", "random"),
        ("kl rewound to 1", "random rewound to 1"),
        ("kl fine-tuned 1", "dense fine-tuned 1"),
    ] {
        assert!(duels.contains(&duel), "{duel:?}: {duels:?}");
    }
    // One training counts once, though a ticket of a trained net needs that net's.
    let search = json_file(&out.join("costs.json"))["searches"].clone();
    let after = search.as_array().unwrap().iter().find(|one| one["criterion"] == "kl rewound to 1").unwrap().clone();
    assert!(after["cpu_seconds"].as_f64().unwrap() > 0.0 && after["break_even"].as_f64().is_none_or(|runs| runs > 1.0));
    // Behind a shut gate no ticket is awarded anything.
    let vacuous = !gate["pays"].as_bool().unwrap();
    assert!(tried["compared"].as_array().unwrap().iter().all(|one| one["vacuous"].as_bool() == Some(vacuous)));
    assert_eq!(vacuous, run.stdout.contains("vacuous ("), "{run:#?}");
    // Every criterion went by what batch norm leaves of it.
    assert!(report["identities"][0]["signed_snip"].as_f64().unwrap() < 1e-3, "{}", report["identities"]);
    // Each allocation is trained once a seed.
    let trainings: Vec<&str> =
        report["trainings"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let mut once = trainings.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), trainings.len());
    assert_eq!(fs::read_to_string(out.join("runs.jsonl")).unwrap().lines().count(), trainings.len());

    let page = fs::read_to_string(out.join("lottery.html")).unwrap();
    assert!(page.contains("depth gain of resnet20") && page.contains("<svg") && !page.contains("<script"));
    for kind in ["accuracy", "allocation", "robustness"] {
        let svg = fs::read_to_string(out.join(format!("{kind}-resnet20--one-block.svg"))).unwrap();
        assert!(svg.starts_with("<svg"), "{kind}");
    }
    // Asked again, it trains nothing and says the same.
    let before = fs::read(out.join("lottery.json")).unwrap();
    let again: Value = scruple!["lottery --smoke --json -o", &out].json();
    assert_eq!(again, serde_json::from_slice::<Value>(&before).unwrap());
    assert_eq!(json_file(&out.join("run.json"))["trained"], 0);
    assert_eq!(fs::read(out.join("lottery.json")).unwrap(), before);
}

/// A residual net of convolutions, and filter tickets by the clock alone.
const TIMED: &str = r#"
name = "timed"
seeds = [1]
score_images = 2
random = 1

[data]
train = "glyphs"
test = "glyphs"
train_images = 400
test_images = 40
side = 8

[recipe]
epochs = 1
batch = 20
rate = 0.1

[[net]]
name = "resnet20"
architecture = { kind = "resnet", blocks = [3, 3, 3], width = 4, shortcut = "slice" }
minimum = 2

[[setting]]
name = "one block"
net = "resnet20"
remove = 1
criteria = ["uniform"]
filters = ["random"]
matchings = ["time"]
"#;

#[test]
fn thinner_nets_of_equal_time_are_looked_for_once() {
    let place = Place::new();
    let (config, out) = (place.file("timed.toml", TIMED), place.out("timed"));
    let run = Run::of(&mut command(&config, &out, 1)).succeeds();
    let timed = names(&out.join("timed"));
    assert_eq!(timed.len(), 1, "{timed:?}");
    let file = out.join("timed").join(&timed[0]);
    let found = json_file(&file);
    let ratio = found["ratio"].as_f64().unwrap();
    // Which of the two it is depends on the machine; both are told.
    let trained = names(&out.join("runs")).iter().any(|name| name.starts_with("resnet20-filters-time-random-for-"));
    match found["filters"].is_null() {
        true => assert!(ratio > 1.0 && !trained && run.stderr.contains("takes"), "{found}: {run:#?}"),
        false => {
            assert!(
                ratio <= 1.0 && trained && run.stdout.contains("filters by random, equal time"),
                "{found}: {run:#?}"
            );
        }
    }
    let (kept, report) = (fs::read(&file).unwrap(), fs::read(out.join("lottery.json")).unwrap());
    Run::of(&mut command(&config, &out, 1)).succeeds();
    assert_eq!(fs::read(&file).unwrap(), kept, "the clock is asked once");
    assert_eq!(fs::read(out.join("lottery.json")).unwrap(), report);
}

#[test]
fn bytes_depend_neither_on_threads_nor_on_being_killed() {
    let place = Place::new();
    let config = place.file("small.toml", SMALL);
    let whole = |name: &str, threads: usize| -> PathBuf {
        let out = place.out(name);
        Run::of(&mut command(&config, &out, threads)).succeeds();
        out
    };
    let (one, two) = (whole("one", 1), whole("two", 2));
    let expected = records(&one);
    assert!(expected == records(&two));
    let report = json_file(&one.join("lottery.json"));
    let arms = report["settings"][0]["compared"].as_array().unwrap();
    let has = |name: &str| arms.iter().any(|one| one["name"] == name);
    assert!(
        has("expectabs rewound to 0")
            && has("expectabs rewound to 1")
            && has("expectabs fine-tuned 1")
            && has("reinit")
    );
    // What can mean nothing of this net is refused in words and does not stop the others.
    assert!(!has("snip-signed") && !has("hrank rewound to 0"), "{arms:#?}");
    assert!(report["settings"][0]["refused"][0][1].as_str().unwrap().contains("rounding noise"));

    // Killed five times, each right after a training has saved itself.
    let out = place.out("killed");
    let saved = || -> Vec<(String, SystemTime)> {
        let files = fs::read_dir(out.join("work")).into_iter().flatten().flatten();
        let files = files.filter(|file| file.file_name().to_string_lossy().ends_with(".safetensors"));
        let file = |file: fs::DirEntry| {
            Some((file.file_name().to_string_lossy().into_owned(), file.metadata().ok()?.modified().ok()?))
        };
        files.filter_map(file).collect()
    };
    let (mut kills, mut within) = (0, 0);
    loop {
        let before = saved();
        let mut child = command(&config, &out, 2).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let new = || kills < 5 && saved().iter().any(|file| !before.contains(file));
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if new() => break None,
                None => sleep(Duration::from_micros(300)),
            }
        };
        if let Some(status) = status {
            assert!(status.success(), "{status}");
            break;
        }
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        within += usize::from(!saved().is_empty());
        kills += 1;
    }
    assert!(kills > 0 && within > 0, "{kills} kills, {within} of them within a training that had saved itself");
    assert!(records(&out) == expected);
    assert!(names(&out.join("work")).iter().all(|name| name == "lock"), "{:?}", names(&out.join("work")));

    // The records are enough: without the weights of dense nets nothing is trained, and where a ticket needs them again, its
    // dense net is trained anew to the same ones.
    let weights = out.join("weights");
    fs::remove_dir_all(&weights).unwrap();
    Run::of(&mut command(&config, &out, 2)).succeeds();
    assert_eq!(json_file(&out.join("run.json"))["trained"], 0);
    assert!(names(&weights).is_empty());
    let rewound = |name: &String| name.contains("-rewind1-");
    let gone: Vec<String> = names(&out.join("runs")).into_iter().filter(rewound).collect();
    assert_eq!(gone.len(), 2, "{gone:?}");
    gone.iter().for_each(|name| fs::remove_file(out.join("runs").join(name)).unwrap());
    let run = Run::of(&mut command(&config, &out, 2)).succeeds();
    assert_eq!(json_file(&out.join("run.json"))["trained"], 4, "two tickets and their dense nets");
    assert!(run.stderr.contains("mlp-dense-s1: its weights are gone, so it is trained again"), "{run:#?}");
    assert!(records(&out) == expected);
    // A record that names other weights is told of.
    let dense = out.join("runs/mlp-dense-s1.json");
    let kept = fs::read_to_string(&dense).unwrap();
    let hash = json_file(&dense)["weights_sha256"].as_str().unwrap().to_string();
    fs::write(&dense, kept.replace(&hash, &"0".repeat(hash.len()))).unwrap();
    fs::remove_dir_all(&weights).unwrap();
    gone.iter().for_each(|name| fs::remove_file(out.join("runs").join(name)).unwrap());
    let refused: [&str; 2] = ["mlp-dense-s1", "trained again, the net ends in other weights than its record names"];
    Run::of(&mut command(&config, &out, 1)).refuses(&refused);
    Run::of(&mut command(&config, &out, 1)).refuses(&refused);
    fs::write(&dense, kept).unwrap();

    // Records of another experiment are not mixed in.
    let other = place.file("other.toml", SMALL.replace("rate = 0.1", "rate = 0.05"));
    let run = Run::of(&mut command(&other, &out, 2));
    run.refuses(&["mlp-dense-s1.json", "is of an experiment with other data, recipe or tests"]);
}

#[test]
fn what_two_nets_have_in_common_is_trained_once() {
    let place = Place::new();
    let (nets, _) = SMALL.split_once("[[setting]]").unwrap();
    let two = format!("{nets}{}", &nets[nets.find("[[net]]").unwrap()..])
        .replacen("name = \"mlp\"", "name = \"three\"", 1)
        .replacen("name = \"mlp\"", "name = \"two\"", 1);
    let at = two.rfind("blocks = 3").unwrap();
    let config = place.file("two.toml", format!("{}blocks = 2{}", &two[..at], &two[at + 10..]));
    let out = place.out("two");
    Run::of(&mut command(&config, &out, 2)).succeeds();
    // Two seeds of three blocks, of two, and of the one block that both are left with.
    assert_eq!(json_file(&out.join("run.json"))["trained"], 6);
    assert_eq!(names(&out.join("runs")).len(), 8);
    for seed in [1, 2] {
        let [three, two] = ["three", "two"].map(|net| out.join("runs").join(format!("{net}-1-s{seed}.json")));
        let text = fs::read_to_string(three).unwrap();
        assert_eq!(text.replace("\"net\": \"three\"", "\"net\": \"two\""), fs::read_to_string(two).unwrap());
        assert!(out.join(format!("costs/two-1-s{seed}.json")).exists());
    }
}

#[test]
fn the_first_of_equal_criteria_is_the_best_and_the_gate_has_files_of_its_own() {
    let place = Place::new();
    // With one stage there is one allocation, so that all criteria come to the same net.
    let (nets, _) = SMALL.split_once("[[setting]]").unwrap();
    let setting = |name: &str, criteria: &str| {
        format!("[[setting]]\nname = \"{name}\"\nnet = \"mlp\"\nremove = 1\ncriteria = {criteria}\n")
    };
    let both = setting("first", r#"["loss-drop", "l1", "synflow"]"#) + &setting("second", r#"["best"]"#);
    let config = place.file("best.toml", format!("{nets}{both}"));
    let out = place.out("best");
    let run = Run::of(&mut command(&config, &out, 2)).succeeds();
    assert!(run.stdout.contains("undecided loss-drop = l1 = synflow"), "{run:#?}");
    assert!(run.stdout.contains("second: loss-drop against random: the same answers in every seed."), "{run:#?}");
    let report = fs::read(out.join("lottery.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&report).unwrap()["settings"][1]["lead"], "loss-drop");
    Run::of(command(&config, &out, 2).arg("--gate")).succeeds();
    assert_eq!(fs::read(out.join("lottery.json")).unwrap(), report);
    assert_eq!(json_file(&out.join("gate.json"))["settings"].as_array().unwrap().len(), 0);
}

#[test]
fn seconds_of_two_processors_are_not_compared() {
    let place = Place::new();
    let (config, out) = (place.file("small.toml", SMALL), place.out("small"));
    Run::of(&mut command(&config, &out, 1)).succeeds();
    let took = |arm: &str, seed: u64| json_file(&out.join(format!("costs/mlp-{arm}-s{seed}.json")));
    let file = out.join("costs/mlp-dense-s1.json");
    let mut moved = took("dense", 1);
    let here = moved["cpu"].clone();
    moved["cpu"] = "another".into();
    moved["cpu_seconds"] = 1e6.into();
    fs::write(&file, moved.to_string()).unwrap();
    let run = Run::of(&mut command(&config, &out, 1)).succeeds();
    assert!(run.stdout.contains("a training on another, or interrupted, is left out"), "{run:#?}");

    let costs = json_file(&out.join("costs.json"));
    assert_eq!((&costs["cpu"], &costs["left_out"]), (&here, &1.into()));
    let of = |name: &str| costs["arms"].as_array().unwrap().iter().find(|arm| arm["name"] == name).unwrap().clone();
    let seconds = |cost: Value| cost["cpu_seconds"].as_f64().unwrap();
    assert_eq!(seconds(of("dense")), seconds(took("dense", 2)));
    // The ratio is of the seed that both were timed in here; the arm's own mean has both.
    let report = json_file(&out.join("lottery.json"));
    let compared = report["settings"][0]["compared"].as_array().unwrap();
    let arms = &compared.iter().find(|one| one["name"] == "reinit").unwrap()["arms"];
    let [first, second] = [0, 1].map(|at| seconds(took(arms[at][0].as_str().unwrap(), at as u64 + 1)));
    let arm = of("reinit");
    assert_eq!(arm["time_ratio"].as_f64().unwrap(), second / seconds(took("dense", 2)));
    assert_eq!(seconds(arm), (first + second) / 2.0);
}

#[test]
fn what_cannot_be_done_is_said_in_one_sentence() {
    let place = Place::new();
    let out = place.out("out");
    for (from, to, words) in [
        ("remove = 1", "remove = 3", "3 blocks cannot go"),
        ("criteria = [\"loss-drop\"", "criteria = [\"magic\"", "no criterion is called `magic`"),
        ("train = \"glyphs\"", "train = \"none.bin\"", "none.bin"),
        ("train = \"glyphs\"", "train = \"${NOT_SET_HERE}/x\"", "no variable `NOT_SET_HERE`"),
        ("epochs = 6", "epochs = 6\nmomentun = 0.9", "unknown field `momentun`"),
        ("kind = \"residual-mlp\", width = 16, blocks = 3", "kind = \"mlp\", hidden = [4]", "no residual blocks"),
    ] {
        assert!(SMALL.contains(from), "{from}");
        let config = place.file("wrong.toml", SMALL.replacen(from, to, 1));
        Run::of(&mut command(&config, &out, 1)).refuses(&[words]);
    }
    scruple!["lottery -o", &out].refuses(&["give --config FILE, or --smoke"]);
}
