//! `scruple curve`: killed, sharded, asked again and asked wrongly.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    scruple,
    support::{Model, Place, Run, assert_same_files, json_file, names, program},
};

/// Points of [`SWEEP`].
const POINTS: [&str; 7] = ["rtn-4", "rtn-2", "gptq-3", "gptq-3-seed1", "magnitude-2of4", "drop-1", "drop-0-rtn-3"];

const SWEEP: &str = r#"
text = { file = "text", window = 32, windows = 4 }
calibration = { file = "text", n_samples = 4, seq_len = 32 }
bootstrap = { replicates = 200 }

[[suite]]
path = "items"

[[point]]
method = "rtn"
bits = [4, 2]
group_size = 32

[[point]]
method = "gptq"
bits = 3
group_size = 32
seeds = [0, 1]

[[point]]
method = "magnitude"
pattern = "2:4"

[[point]]
layers.drop = "1"

[[point]]
method = "rtn"
bits = 3
group_size = 32
layers.drop = "0"
"#;

struct Case {
    place: Place,
    model: PathBuf,
}

impl Case {
    /// A model, a text, a folder of items and a sweep over them.
    fn new() -> Self {
        let place = Place::new();
        let model = Model::tiny().write(place.path("model"));
        place.text("text", 400);
        let folder = place.path("items");
        fs::create_dir(&folder).unwrap();
        let ethics = |i: usize| {
            let prompt = format!("w{} w{} w3 w4 w5", i % 40, i % 7);
            json!({
                "id": format!("e{i}"), "part": "part", "cluster": format!("c{i}"), "prompt": { "plain": prompt },
                "ask": { "choose": { "options": [" w11", " w12 w13"], "gold": i % 2 } },
            })
        };
        let privacy = |i: usize| {
            json!({
                "id": format!("p{i}"), "part": "part", "cluster": format!("c{}", i / 2),
                "prompt": { "plain": format!("w{} w8", i % 40) },
                "ask": { "continue": { "max_tokens": 4, "expect": ["w3"] } },
            })
        };
        let lines = |item: &dyn Fn(usize) -> Value| (0..40).map(|i| format!("{}\n", item(i))).collect::<String>();
        fs::write(folder.join("machine-ethics.jsonl"), lines(&ethics)).unwrap();
        fs::write(folder.join("privacy.jsonl"), lines(&privacy)).unwrap();
        place.file("sweep.toml", SWEEP);
        Self { place, model }
    }

    fn command(&self, out: &Path) -> Command {
        let mut command = program();
        command.arg("curve").arg(&self.model).arg("--sweep").arg(self.place.path("sweep.toml")).arg("-o").arg(out);
        command
    }

    fn sweep(&self, text: &str) {
        self.place.file("sweep.toml", text);
    }

    fn finish(&self, out: &Path) -> Run {
        Run::of(&mut self.command(out)).succeeds()
    }
}

/// Everything a sweep leaves but what tells of the run.
fn records(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for file in ["curve.json", "dense.json"] {
        found.insert(file.to_string(), fs::read(out.join(file)).unwrap());
    }
    for folder in ["points", "references", "failures", "models"] {
        for name in names(&out.join(folder)) {
            found.insert(format!("{folder}/{name}"), fs::read(out.join(folder).join(&name)).unwrap());
        }
    }
    found
}

#[track_caller]
fn assert_same_records(a: &Path, b: &Path) {
    let (a, b) = (records(a), records(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let differing: Vec<_> = a.iter().filter(|(name, bytes)| b[*name] != **bytes).map(|(name, _)| name).collect();
    assert!(differing.is_empty(), "these records differ: {differing:?}");
}

#[test]
fn a_sweep_killed_again_and_again_ends_in_the_records_of_an_undisturbed_one() {
    let case = Case::new();
    let whole = case.place.out("whole");
    let run = Run::of(case.command(&whole).args(["--threads", "1"])).succeeds();
    assert!(run.stdout.contains("No dimension differs") && run.stdout.contains("gptq-3-seed1"), "{run:#?}");
    let curve = json_file(&whole.join("curve.json"));
    let found: Vec<&str> =
        curve["points"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(found, POINTS);
    assert_eq!(curve["verdict"].as_array().unwrap().len(), 3);
    assert_eq!(curve["settings"][0]["points"], json!(["gptq-3", "gptq-3-seed1"]));
    assert!(names(&whole.join("models")).is_empty(), "models are removed");

    // Killed as soon as something has appeared or gone, at once or a little later.
    let out = case.place.out("killed");
    let mut killed = 0;
    for round in 0..12 {
        let before = walk(&out);
        let mut child = case.command(&out).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        while walk(&out) == before && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(60));
            sleep(Duration::from_micros(200));
        }
        sleep(Duration::from_millis(round % 4 * 25));
        let _ = child.kill(); // it may have ended by itself
        killed += usize::from(child.wait().unwrap().signal() == Some(9));
    }
    assert!(killed >= 6, "only {killed} runs were still there to be killed");
    case.finish(&out);
    assert_same_records(&whole, &out);

    // Once more, and nothing is done.
    let again = case.finish(&out);
    assert!(!again.stderr.contains("lowest") && !again.stderr.contains("items on"), "{again:#?}");
    assert_same_records(&whole, &out);
}

/// All files and folders below `folder`.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            all.extend(walk(&entry.path()));
        }
        all.push(entry.path());
    }
    all.sort();
    all
}

#[test]
fn shards_together_are_the_whole_and_each_says_what_is_missing() {
    let case = Case::new();
    let (whole, out) = (case.place.out("whole"), case.place.out("shards"));
    case.finish(&whole);
    let first = Run::of(case.command(&out).args(["--shard", "1/2", "--json"])).succeeds();
    assert!(first.stderr.contains("3 of 7 models are not measured yet"), "{first:#?}");
    assert_eq!(names(&out.join("points")).len(), 4);
    let second = Run::of(case.command(&out).args(["--shard", "2/2"])).succeeds();
    assert!(!second.stderr.contains("not measured yet"), "{second:#?}");
    assert_same_records(&whole, &out);
    for wrong in ["0/2", "3/2", "2", "a/b", "1/0"] {
        Run::of(case.command(&out).args(["--shard", wrong])).refuses_the_arguments(&["--shard", wrong, "2/8"]);
    }
}

#[test]
fn a_point_that_fails_costs_itself_and_is_tried_again() {
    let case = Case::new();
    let other = Model { tokens: 50, ..Model::tiny() }.config("vocab_size", 50);
    let other = other.shape("model.embed_tokens.weight", &[50, 64]).shape("lm_head.weight", &[50, 64]);
    other.write(case.place.path("other-vocabulary"));
    Model::sized(2, 64, 128).write(case.place.path("other-shape"));
    let source = Model::tiny().set("lm_head.weight", 0, 0.5).write(case.place.path("source"));
    let calibration = "compress --method rtn --bits 4 --group-size 32 --no-speed -o";
    scruple![calibration, case.place.path("of-another"), source].succeeds();
    scruple![calibration, case.place.path("good"), case.model].succeeds();
    let given = ["other-vocabulary", "other-shape", "of-another", "nowhere", "good"];
    let given: String = given.iter().map(|name| format!("[[point]]\nfolder = \"./{name}\"\n")).collect();
    // A group size that no row of the model has fails in the middle of the sweep.
    let bad = "[[point]]\nmethod = \"rtn\"\nbits = 3\ngroup_size = 48\n";
    case.sweep(&format!(
        "{}{bad}{given}[[point]]\nmethod = \"rtn\"\nbits = 8\ngroup_size = 32\n",
        &SWEEP[..SWEEP.find("[[point]]").unwrap()]
    ));
    let out = case.place.out("out");
    let run = Run::of(&mut case.command(&out));
    assert_eq!(run.code, Some(1), "{run:#?}");
    let curve = json_file(&out.join("curve.json"));
    let found: Vec<&str> =
        curve["points"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(found, ["good", "rtn-8"]);
    let failures = curve["failures"].as_array().unwrap();
    let failures: BTreeMap<&str, &str> =
        failures.iter().map(|one| (one["name"].as_str().unwrap(), one["reason"].as_str().unwrap())).collect();
    for (name, words) in [
        ("rtn-3", &["48"][..]),
        ("other-vocabulary", &["50 tokens", "64"]),
        ("other-shape", &["block 0", "128"]),
        ("of-another", &["scruple.json", "another"]),
        ("nowhere", &["nowhere"]),
    ] {
        for word in words {
            assert!(failures[name].contains(word), "{name}: {}", failures[name]);
        }
    }
    assert_eq!(failures.len(), 5);
    assert_eq!(names(&out.join("failures")).len(), 5);
    assert!(names(&out.join("models")).is_empty(), "{:?}", names(&out.join("models")));
    let good = &curve["points"][0];
    assert_eq!((good["kind"].as_str(), good["series"].as_str()), (Some("given"), Some("good")));
    assert!(good["rate"].as_str().unwrap().ends_with("bits"), "{good:#}");

    // What was wrong is put right, and the failure is forgotten.
    fs::remove_dir_all(case.place.path("other-shape")).unwrap();
    crate::support::copy_folder(&case.place.path("good"), case.place.path("other-shape"));
    let again = Run::of(&mut case.command(&out));
    assert_eq!(again.code, Some(1));
    assert_eq!(names(&out.join("failures")).len(), 4);
    assert_eq!(json_file(&out.join("curve.json"))["points"][0]["name"], "other-shape");
}

#[test]
fn a_disk_that_is_too_small_for_one_model_costs_that_point() {
    let case = Case::new();
    let (whole, out) = (case.place.out("whole"), case.place.out("small"));
    case.finish(&whole);
    // A limit on files stands for a full disk: pruned weights stay plain numbers, four times as many bytes as codes and
    // twice as many as with one block of the two.
    let limited = case.command(&out);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -f 540; exec \"$0\" \"$@\""]).arg(limited.get_program()).args(limited.get_args());
    let run = Run::of(&mut shell);
    assert_eq!(run.code, Some(1), "{run:#?}");
    let curve = json_file(&out.join("curve.json"));
    assert_eq!(curve["points"].as_array().unwrap().len(), POINTS.len() - 1, "{run:#?}");
    let failure = &curve["failures"][0];
    assert_eq!(failure["name"], "magnitude-2of4");
    assert!(failure["reason"].as_str().unwrap().contains("magnitude-2of4"), "{failure:#}");
    assert!(names(&out.join("models")).is_empty(), "the next point may need the room");
    case.finish(&out);
    assert_same_records(&whole, &out);
}

#[test]
fn changed_questions_are_asked_again_and_kept_models_stay() {
    let case = Case::new();
    let start = &SWEEP[..SWEEP.find("[[point]]").unwrap()];
    let point = "[[point]]\nmethod = \"rtn\"\nbits = 2\ngroup_size = 32\n";
    case.sweep(&format!("{start}{point}"));
    let out = case.place.out("out");
    Run::of(case.command(&out).arg("--keep")).succeeds();
    assert!(out.join("models/rtn-2/model.safetensors").is_file());
    let before = fs::read(out.join("points/rtn-2.json")).unwrap();
    scruple!["verify", out.join("models/rtn-2"), "--against", case.model].succeeds();
    // Other weights under the same name.
    case.sweep(&format!("{start}{point}").replace("group_size = 32", "group_size = 16"));
    case.finish(&out);
    assert_ne!(fs::read(out.join("points/rtn-2.json")).unwrap(), before);
    // A damaged record is made anew.
    case.sweep(&format!("{start}{point}"));
    fs::write(out.join("points/rtn-2.json"), &before[..before.len() / 2]).unwrap();
    case.finish(&out);
    assert_eq!(fs::read(out.join("points/rtn-2.json")).unwrap(), before);
    assert!(names(&out.join("models")).is_empty());

    // A reference is measured alone; answers of a cache are used.
    let reference = "[[reference]]\nmodel = \"./small\"\nname = \"a smaller one\"\n";
    Model::tiny().set("lm_head.weight", 0, 0.5).write(case.place.path("small"));
    case.sweep(&format!("{start}{point}{reference}"));
    let cache = case.place.path("cache");
    let [one, two] = ["one", "two"].map(|name| {
        let out = case.place.out(name);
        let run = Run::of(case.command(&out).arg("--cache").arg(&cache)).succeeds();
        (out, run)
    });
    assert_same_records(&one.0, &two.0);
    assert_same_files(&one.0.join("references"), &two.0.join("references"));
    let tokens = |out: &Path| json_file(&out.join("run.json"))["run"]["tokens"].as_u64();
    assert!(tokens(&one.0) > Some(0));
    assert_eq!(tokens(&two.0), Some(0), "everything was in the cache");
    assert_eq!(json_file(&one.0.join("curve.json"))["references"][0]["name"], "a smaller one");
}

#[test]
fn what_cannot_be_swept_is_refused_in_a_sentence() {
    let case = Case::new();
    let out = case.place.out("out");
    let refuses = |text: &str, words: &[&str]| {
        case.sweep(text);
        Run::of(&mut case.command(&out)).refuses(words);
    };
    refuses(&SWEEP.replace("group_size = 32", "grp_size = 32"), &["sweep.toml", "point 1", "unknown field `grp_size`"]);
    refuses(&SWEEP.replace("path = \"items\"", "path = \"nowhere\""), &["suite 1", "nowhere", "general, world"]);
    refuses(
        &SWEEP.replace("path = \"items\"", "path = \"items\"\nparts = [\"other\"]"),
        &["suite 1", "no part", "other"],
    );
    refuses(
        &SWEEP.replace("path = \"items\"", "path = \"items\"\ndimensions = [\"fairness\"]"),
        &["suite 1", "holds no `fairness`", "machine-ethics"],
    );
    refuses(&SWEEP.replace("\"text\", n_samples", "\"gone\", n_samples"), &["gone", "cannot read"]);
    refuses(&SWEEP.replace("calibration = {", "# "), &["calibration.file"]);
    case.sweep(SWEEP);
    fs::write(&out, "a file").unwrap();
    Run::of(&mut case.command(&out)).refuses(&["cannot create the folder"]);
}
