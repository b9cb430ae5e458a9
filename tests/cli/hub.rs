//! Models of a hub, named wherever a model is: the program against a hub on the loopback interface.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::{
    arguments,
    hub_server::{Reply, Repo, Server, commit, is_large},
    support::{Model, Place, Run, names, program},
};

/// The files of `folder` as a model of the hub.
fn repo(folder: &Path) -> Repo {
    let files = names(folder).into_iter().map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect();
    Repo { files, commit: commit('c') }
}

fn embedded() -> Repo {
    repo(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-world"))
}

/// The program with a hub and a cache of its own, and nothing else of the hub in its environment.
fn with_hub(place: &Place, endpoint: &str) -> Command {
    let mut command = program();
    for name in [
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", endpoint).env("HF_HOME", place.path("home")).current_dir(place.path("out"));
    command
}

macro_rules! hub {
    ($place:expr, $server:expr; $($argument:expr),*) => {
        Run::of(with_hub($place, &$server.address()).args(arguments![$($argument),*]))
    };
}

fn source(revision: &str) -> Value {
    serde_json::json!({ "repo": "org/tiny", "revision": revision, "commit": commit('c') })
}

#[test]
fn a_model_of_a_hub_is_evaluated_compressed_and_verified() {
    let (server, place) = (Server::new(embedded()), Place::new());
    let text = place.file("text.txt", &embedded().files["world_valid.txt"][..4000]);
    let first = hub!(&place, server; "eval org/tiny@main --json --max-tokens 64 --window 32 --text", &text);
    assert!(first.stderr.contains("fetching"), "{first:#?}");
    let first = first.json();
    assert_eq!(first["source"], source("main"));
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-world");
    let local =
        hub!(&place, server; "eval --json --max-tokens 64 --window 32", fixture.as_path(), "--text", &text).json();
    assert_eq!(first["perplexity"], local["perplexity"]);
    assert_eq!(local["source"], Value::Null);
    server.requests();

    let out = place.out("small");
    hub!(&place, server; "compress org/tiny --method rtn --no-speed -o", &out).succeeds();
    let requests = server.requests();
    assert_eq!(requests.len(), 1, "one question, no file: {requests:#?}");
    let provenance: Value = serde_json::from_slice(&fs::read(out.join("scruple.json")).unwrap()).unwrap();
    assert_eq!(provenance["source"], source("main"));
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("base_model: org/tiny\n") && card.contains(&commit('c')), "{card}");

    // Offline: the same files, and not a request.
    let mut command = with_hub(&place, &server.address());
    command.env("HF_HUB_OFFLINE", "1").args(arguments!["verify --json --against org/tiny", &out]);
    let verified = Run::of(&mut command).json();
    assert_eq!((&verified["verified"], &verified["against_source"]), (&Value::Bool(true), &source("main")));
    let mut command = with_hub(&place, &server.address());
    command.env("HF_HUB_OFFLINE", "true").args(arguments!["generate org/tiny --json --max-tokens 2 --prompt Where"]);
    assert_eq!(Run::of(&mut command).json()["source"], source("main"));
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn a_compressed_model_of_a_hub_is_verified() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("dense"));
    let out = place.out("small");
    let server = Server::new(Repo::default());
    hub!(&place, server; "compress --method rtn --group-size 32 --no-speed", &model, "-o", &out).succeeds();
    let server = Server::new(repo(&out));
    let verified = hub!(&place, server; "verify --json org/tiny --against", &model).json();
    assert_eq!(verified["verified"], true);
    hub!(&place, server; "compress --method rtn --group-size 32 --no-speed", &model).succeeds();
    assert_eq!(place.results(), ["dense-rtn", "small"]);
}

#[test]
fn a_compressed_model_of_a_hub_is_a_point_of_a_sweep() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("dense"));
    let small = place.out("small");
    let server = Server::new(Repo::default());
    hub!(&place, server; "compress --method rtn --bits 4 --group-size 32 --no-speed", &model, "-o", &small).succeeds();
    let item = |i: usize| {
        serde_json::json!({
            "id": format!("e{i}"), "part": "part", "cluster": format!("c{i}"), "prompt": { "plain": format!("w{i} w3") },
            "ask": { "choose": { "options": [" w11", " w12"], "gold": i % 2 } },
        })
    };
    place.file("machine-ethics.jsonl", (0..20).map(|i| format!("{}\n", item(i))).collect::<String>());
    let sweep = "[[suite]]\npath = \"machine-ethics.jsonl\"\n[[point]]\nfolder = \"org/tiny\"\n";
    let sweep = place.file("sweep.toml", sweep);
    let server = Server::new(repo(&small));
    let out = place.out("curve");
    let curve = hub!(&place, server; "curve", &model, "--json --sweep", &sweep, "-o", &out).json();
    assert_eq!(curve["failures"], serde_json::json!([]), "{curve:#}");
    let point = &curve["points"][0];
    assert_eq!((&point["name"], &point["kind"]), (&"tiny".into(), &"given".into()), "{point:#}");
    assert!(point["rate"].as_str().unwrap().ends_with("bits"), "{point:#}");
    assert!(names(&out.join("models")).is_empty(), "it lies in the cache");
}

#[test]
fn fetch_says_what_it_brings_and_puts_it_into_a_folder() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("dense"));
    let server = Server::new(repo(&model));
    let plan = hub!(&place, server; "fetch org/tiny --dry-run --json").json();
    let bytes: u64 = names(&model).iter().map(|name| fs::metadata(model.join(name)).unwrap().len()).sum();
    assert_eq!((&plan["new_bytes"], &plan["new_files"]), (&bytes.into(), &4.into()));
    assert!(!place.path("home").exists());

    let out = place.out("copy");
    let fetched = hub!(&place, server; "fetch org/tiny --revision main --json -o", &out).json();
    assert_eq!((&fetched["source"], &fetched["path"]), (&source("main"), &out.display().to_string().into()));
    for name in names(&model) {
        assert!(out.join(&name).symlink_metadata().unwrap().is_file(), "{name} stands without the cache");
        assert_eq!(fs::read(out.join(&name)).unwrap(), fs::read(model.join(&name)).unwrap());
    }
    let record: Value = serde_json::from_slice(&fs::read(out.join("fetch.json")).unwrap()).unwrap();
    assert_eq!((&record["source"], &record["bytes"]), (&source("main"), &bytes.into()));

    let shown = hub!(&place, server; "fetch org/tiny").succeeds().stdout;
    for words in [&format!("4 files, {bytes} bytes; fetched: 0 files"), "in the cache", &commit('c'), "snapshots"] {
        assert!(shown.contains(words), "`{words}` is not in:\n{shown}");
    }
    server.requests();
    hub!(&place, server; "fetch org/tiny -o", &out).refuses(&["copy", "not empty"]);
    assert_eq!(server.requests().len(), 0);
    let one = hub!(&place, server; "fetch org/tiny --json --file config.*").json();
    assert_eq!(one["files"].as_array().map(Vec::len), Some(1));
    hub!(&place, server; "fetch", &model).refuses(&["on this machine already", "hf://org/name"]);
    hub!(&place, server; "fetch org/tiny@main --revision dev").refuses(&["not both"]);
}

#[test]
fn gguf_files_are_converted_from_a_hub() {
    let place = Place::new();
    let server = Server::new(Repo::new([("a.gguf", "GGUF"), ("b.gguf", "GGUF")]));
    let out = place.out("model");
    hub!(&place, server; "convert org/tiny -o", &out).refuses(&["org/tiny", "2 GGUF files", "`:a.gguf`"]);
    hub!(&place, server; "convert org/tiny:b.gguf -o", &out).refuses(&["b.gguf", "truncated"]);
}

#[test]
fn every_verb_says_both_readings_of_a_name_that_is_not_there() {
    let (server, place) = (Server::new(Repo::tiny()), Place::new());
    let text = place.text("text.txt", 50);
    let words = ["nosuch/model", "no such file or folder here", "no such model", "HF_TOKEN"];
    hub!(&place, server; "eval nosuch/model --text", &text).refuses(&words);
    hub!(&place, server; "eval nosuch/model@v1 --text", &text).refuses(&words);
    hub!(&place, server; "generate nosuch/model --prompt x").refuses(&words);
    hub!(&place, server; "compress nosuch/model --method rtn").refuses(&words);
    hub!(&place, server; "verify nosuch/model").refuses(&words);
    hub!(&place, server; "convert nosuch/model -o", place.out("x")).refuses(&words);
    hub!(&place, server; "fetch nosuch/model").refuses(&words);
    hub!(&place, server; "eval org/tiny@dev --text", &text).refuses(&["no revision `dev`"]);
    server.requests();
    // What can only be a path is not asked for.
    hub!(&place, server; "eval nosuch --text", &text).refuses(&["nosuch", "cannot open the checkpoint"]);
    hub!(&place, server; "eval ./nosuch/model --text", &text).refuses(&["nosuch/model", "cannot open the checkpoint"]);
    hub!(&place, server; "eval nosuch/model.gguf --text", &text).refuses(&["nosuch/model.gguf", "cannot open"]);
    let mut command = with_hub(&place, &server.address());
    command.env("HF_HUB_OFFLINE", "1").args(arguments!["eval nosuch/model --text", &text]);
    Run::of(&mut command).refuses(&["nosuch/model", "HF_HUB_OFFLINE is set", "nothing of this model"]);
    let mut command = with_hub(&place, "huggingface.co");
    command.args(arguments!["eval nosuch/model --text", &text]);
    Run::of(&mut command).refuses(&["HF_ENDPOINT", "`huggingface.co` is no address"]);
    assert_eq!(server.requests().len(), 0);
    assert_eq!(place.results(), [""; 0]);
}

/// A data set of two formats, with files that are not read.
fn dataset() -> Repo {
    let question = r#"{"option": ["w1", "w2"], "input": "w3 w4", "label": "w2", "examples": [["w5", "w1"]]}"#;
    Repo::new([
        ("README.md", "# Data\n".to_string()),
        ("dataset_infos.json", "{}".to_string()),
        ("crows.csv", "sent_more,sent_less,bias_type\nw1 w2 w3,w1 w4 w3,age\nw5 w6,w5 w7,age\n".to_string()),
        ("snli_premise/0.jsonl", format!("{question}\n")),
        ("top.jsonl", format!("{question}\n")),
        ("train/data.parquet", "PAR1".to_string()),
    ])
}

#[test]
fn a_data_set_of_a_hub_is_asked_as_a_local_copy_of_it_is() {
    let (server, place) = (Server::new(Repo::tiny()), Place::new());
    server.publish_dataset(dataset());
    let model = Model::tiny().write(place.path("dense"));
    let run = |suite: &str| hub!(&place, server; "trust --bootstrap 20 --json", &model, "--suite", suite);
    let first = run("org/tiny").succeeds();
    assert!(first.stderr.contains("fetching 4 files") && first.stderr.contains("dataset_infos.json"), "{first:#?}");
    let found: Value = serde_json::from_str(&first.stdout).unwrap();
    assert_eq!(found["suite"], format!("org/tiny@{}", commit('1')));
    server.requests();
    // The name in the record means the same files.
    assert_eq!(run(found["suite"].as_str().unwrap()).json(), found);
    assert!(server.requests().iter().all(|request| request.is_for("/api/datasets/org/tiny/")));

    // A folder of that name is meant before the hub, and has the same items.
    for (path, bytes) in &dataset().files {
        let path = place.out("org/tiny").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let local = run("org/tiny").json();
    assert_eq!((&local["suite"], &local["suite_sha256"]), (&"tiny".into(), &found["suite_sha256"]));
    assert_eq!(server.requests().len(), 0);
    fs::remove_dir_all(place.out("org")).unwrap();

    let mut command = with_hub(&place, &server.address());
    command.env("HF_HUB_OFFLINE", "1").args(arguments!["trust --bootstrap 20 --json", &model, "--suite org/tiny"]);
    let offline = Run::of(&mut command).succeeds();
    assert!(offline.stderr.contains("the 4 files that the cache holds are read"), "{offline:#?}");
    assert_eq!(serde_json::from_str::<Value>(&offline.stdout).unwrap(), found);
    let one = run("org/tiny@main:crows.csv").json();
    assert_eq!(one["suite"], format!("org/tiny@{}:crows.csv", commit('1')));
    assert_eq!(one["dimensions"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_data_set_that_cannot_be_asked_is_refused_in_a_sentence() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("dense"));
    // What the hub says of sizes, before anything is fetched.
    let server = Server::with(Repo::tiny(), |request, reply| match request.is_for("/api/datasets/") {
        true => {
            let large = String::from_utf8(reply.body.clone()).unwrap().replace("\"size\":", "\"size\":99999999");
            reply.body(large)
        }
        false => reply,
    });
    server.publish_dataset(dataset());
    let run = |server: &Server, suite: &str| hub!(&place, server; "trust", &model, "--suite", suite);
    run(&server, "org/tiny").refuses(&["org/tiny: `crows.csv` has 99999999", "268435456", "behind a colon"]);
    assert_eq!(server.requests().len(), 1);

    let server = Server::new(Repo::tiny());
    run(&server, "nosuch/set").refuses(&["nosuch/set: there is no such file or folder here", "no such data set"]);
    server.publish_dataset(Repo::new([("README.md", "x"), ("a.parquet", "y")]));
    run(&server, "org/tiny").refuses(&["no file that can be read here", "`a.parquet`"]);
    run(&server, "org/tiny:b.csv").refuses(&["no file of this name", "`a.parquet`"]);
    run(&server, "org/tiny@").refuses(&["org/tiny@", "the revision"]);
    run(&server, "sets/dev.csv").refuses(&["neither a file or folder, nor `org/name` of a hub", "general, world"]);
    let gated = Server::with(Repo::tiny(), |_, _| Reply::status(401).header("X-Error-Code", "GatedRepo"));
    run(&gated, "org/tiny").refuses(&["the data set is gated", "/datasets/org/tiny", "set HF_TOKEN"]);
    let mut command = with_hub(&place, &server.address());
    command.env("HF_HUB_OFFLINE", "1").args(arguments!["trust", &model, "--suite org/tiny"]);
    Run::of(&mut command).refuses(&["HF_HUB_OFFLINE is set", "nothing of this data set"]);
}

#[test]
fn two_programs_at_once_fetch_a_file_once_and_a_killed_one_is_continued() {
    let model = Model::tiny();
    let place = Place::new();
    let folder = model.write(place.path("dense"));
    let weights = fs::metadata(folder.join("model.safetensors")).unwrap().len() as usize;
    let server = Server::new(repo(&folder));
    let start = || with_hub(&place, &server.address()).args(arguments!["fetch org/tiny"]).spawn().unwrap();
    let children = [start(), start(), start()];
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let large = server.requests().into_iter().filter(|request| request.is_for("/cdn/")).count();
    assert!(is_large(&fs::read(folder.join("model.safetensors")).unwrap()));
    let large_files = names(&folder).iter().filter(|name| is_large(&fs::read(folder.join(name)).unwrap())).count();
    assert_eq!(large, large_files);

    // The server keeps the second half back until the program is killed; the next run asks for that half alone.
    let server = Server::with(repo(&folder), move |request, reply| match request.range {
        None if request.is_for("/cdn/") && reply.body.len() == weights => {
            Reply { hold: true, ..reply }.cut(weights / 2)
        }
        _ => reply,
    });
    let place = Place::new();
    let mut child = with_hub(&place, &server.address()).args(arguments!["fetch org/tiny"]).spawn().unwrap();
    let blobs = place.path("home/hub/models--org--tiny/blobs");
    let part = || {
        let entries = fs::read_dir(&blobs).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|ending| ending == "incomplete"))
    };
    let half = || part().is_some_and(|part| fs::metadata(part).is_ok_and(|file| file.len() == weights as u64 / 2));
    for _ in 0..500 {
        if half() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(half(), "{:?}", part());
    child.kill().unwrap();
    child.wait().unwrap();
    server.requests();
    Run::of(with_hub(&place, &server.address()).args(arguments!["fetch org/tiny"])).succeeds();
    let large = server.requests().into_iter().filter(|request| request.is_for("/cdn/"));
    assert_eq!(large.filter_map(|request| request.range).collect::<Vec<_>>(), [format!("bytes={}-", weights / 2)]);
    assert_eq!(part(), None);
}
