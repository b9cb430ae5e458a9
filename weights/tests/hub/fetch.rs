//! What is fetched, where it lies, and how often it is asked for.

use std::{fs, path::Path, thread};

use scruple_weights::{
    HubFault, ModelSource, PathFilter,
    hub::{Hub, Origin, Settings, Want},
};

use crate::{
    Listener, Place, assert_refused, fetch, model, names,
    server::{Repo, Server, bytes, commit, tag},
};

fn paths(plan: &scruple_weights::hub::Plan) -> Vec<&str> {
    plan.files.iter().map(|file| file.path.as_str()).collect()
}

#[test]
fn a_model_is_fetched_once_then_asked_for_once_then_not_at_all() {
    let (server, place) = (Server::new(Repo::tiny()), Place::new());
    let mut heard = Listener::default();
    let hub = Hub::new(place.settings(&server.address()));
    let plan = hub.fetch(&model("org/tiny"), &Want::Model, &mut heard).unwrap();

    assert_eq!(paths(&plan), ["README.md", "config.json", "tokenizer.json", "model.safetensors"]);
    let origin = Origin { repo: "org/tiny".into(), revision: "main".into(), commit: commit('1'), file: None };
    assert_eq!(plan.origin, origin);
    assert_eq!(plan.open, place.cache("snapshots").join(commit('1')));
    let total = plan.bytes();
    assert_eq!((heard.begun, heard.steps.last()), (Some((4, total)), Some(&total)));
    assert!(heard.steps.is_sorted(), "{:?}", heard.steps);

    // The layout of `huggingface_hub`: blobs by tag, relative links to them, and the branch's commit.
    for (path, content) in Repo::tiny().files.iter().filter(|(path, _)| *path != "flax_model.msgpack") {
        let link = plan.snapshot.join(path);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("../../blobs").join(tag(content)));
        assert_eq!(fs::read(&link).unwrap(), *content);
    }
    assert_eq!(place.blobs().len(), 4);
    assert_eq!(fs::read_to_string(place.cache("refs/main")).unwrap(), commit('1'));
    let first = server.requests();
    assert_eq!(first.iter().filter(|request| request.is_for("/api/")).count(), 1);
    assert_eq!(first.len(), 1 + 3 + 2, "the listing, three small files, a large one behind a redirect: {first:#?}");

    let again = fetch(place.settings(&server.address()), "org/tiny@main").unwrap();
    assert_eq!(again.missing(), (0, 0));
    let requests = server.requests();
    assert_eq!(requests.len(), 1, "{requests:#?}");

    let offline = place.offline().fetch(&model("org/tiny"), &Want::Model, &mut ()).unwrap();
    assert_eq!((paths(&offline), offline.bytes()), (paths(&plan), total));
    let online_settings = Settings { offline: true, ..place.settings(&server.address()) };
    assert_eq!(fetch(online_settings, "org/tiny").unwrap().origin, plan.origin);
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn a_new_commit_brings_only_what_changed() {
    let (server, place) = (Server::new(Repo::tiny()), Place::new());
    fetch(place.settings(&server.address()), "org/tiny").unwrap();
    server.requests();
    let mut repo = Repo::tiny().commit('2');
    repo.files.insert("config.json".into(), b"{\"new\": true}".to_vec());
    server.publish(repo);

    let plan = fetch(place.settings(&server.address()), "org/tiny").unwrap();
    assert_eq!(plan.origin.commit, commit('2'));
    assert_eq!(fs::read(plan.open.join("config.json")).unwrap(), b"{\"new\": true}");
    let fetched: Vec<String> =
        server.requests().into_iter().map(|request| request.path).filter(|path| !path.contains("/api/")).collect();
    assert_eq!(fetched, [format!("/org/tiny/resolve/{}/config.json", commit('2'))]);

    // The commit before is still there under its own name.
    let offline = place.offline();
    let old = offline.fetch(&model(&format!("org/tiny@{}", commit('1'))), &Want::Model, &mut ()).unwrap();
    assert_eq!(fs::read(old.open.join("config.json")).unwrap(), b"{}\n");
    assert_eq!(offline.fetch(&model("org/tiny"), &Want::Model, &mut ()).unwrap().origin.commit, commit('2'));
}

#[test]
fn a_revision_with_slashes_is_one_name() {
    let (server, place) = (Server::new(Repo::tiny()), Place::new());
    let plan = fetch(place.settings(&server.address()), "org/tiny@refs/pr/1").unwrap();
    assert_eq!(plan.origin.revision, "refs/pr/1");
    assert!(server.requests()[0].is_for("/api/models/org/tiny/revision/refs%2Fpr%2F1?"));
    assert_eq!(fs::read_to_string(place.cache("refs/refs/pr/1")).unwrap(), commit('1'));
    place.offline().fetch(&model("org/tiny@refs/pr/1"), &Want::Model, &mut ()).unwrap();
}

/// Two shards and their index, as `ending` files.
fn sharded(index: &str, ending: &str) -> Repo {
    let [a, b] = [1, 2].map(|number| format!("model-0000{number}-of-00002.{ending}"));
    let map = format!(r#"{{"metadata":{{}},"weight_map":{{"x":"{a}","y":"{b}","z":"{a}"}}}}"#);
    Repo::new([
        ("config.json", b"{}".to_vec()),
        (index, map.into_bytes()),
        (&a, bytes(1, 2000)),
        (&b, bytes(2, 3000)),
        ("original/consolidated.00.pth", bytes(3, 2000)),
    ])
}

#[test]
fn the_index_says_which_shards_are_needed() {
    for (index, ending) in [("model.safetensors.index.json", "safetensors"), ("pytorch_model.bin.index.json", "bin")] {
        let (server, place) = (Server::new(sharded(index, ending)), Place::new());
        let plan = fetch(place.settings(&server.address()), "org/tiny").unwrap();
        let [a, b] = [1, 2].map(|number| format!("model-0000{number}-of-00002.{ending}"));
        assert_eq!(paths(&plan), ["config.json", index, &a, &b]);
        assert_eq!(names(&plan.open), ["config.json", &a, &b, index]);

        // Offline the index shows that something is missing, and what.
        fs::remove_file(plan.open.join(&b)).unwrap();
        let offline = place.offline().fetch(&model("org/tiny"), &Want::Model, &mut ());
        assert_refused(offline, HubFault::Offline, &[&b, "1111111", "HF_HUB_OFFLINE"]);
        fetch(place.settings(&server.address()), "org/tiny").unwrap();
        assert!(plan.open.join(&b).exists());
    }
}

#[test]
fn a_model_of_pickles_alone_brings_its_pickle() {
    let repo = Repo::new([("config.json", "{}"), ("pytorch_model.bin", "PK"), ("rust_model.ot", "x")]);
    let (server, place) = (Server::new(repo), Place::new());
    let plan = fetch(place.settings(&server.address()), "org/tiny").unwrap();
    assert_eq!(names(&plan.open), ["config.json", "pytorch_model.bin"]);
}

#[test]
fn one_of_several_ggufs_is_named_behind_a_colon() {
    let repo = Repo::new([("README.md", "x"), ("q4.gguf", "GGUF4"), ("sub/q8.gguf", "GGUF8")]);
    let (server, place) = (Server::new(repo), Place::new());
    let settings = || place.settings(&server.address());
    assert_refused(
        fetch(settings(), "org/tiny"),
        HubFault::Ambiguous,
        &["2 GGUF files", "`:q4.gguf`", "`sub/q8.gguf`"],
    );
    let plan = fetch(settings(), "org/tiny@main:sub/q8.gguf").unwrap();
    assert_eq!(fs::read(&plan.open).unwrap(), b"GGUF8");
    assert_eq!(plan.origin.file.as_deref(), Some("sub/q8.gguf"));
    assert_refused(
        fetch(settings(), "org/tiny:q5.gguf"),
        HubFault::NoFile,
        &["org/tiny:q5.gguf", "did you mean `q4.gguf`"],
    );
    // The link leads two folders further up.
    assert_eq!(fs::read_link(&plan.open).unwrap(), Path::new("../../../blobs").join(tag(b"GGUF8")));
}

#[test]
fn a_pattern_fetches_what_matches_and_a_plan_fetches_nothing() {
    let (server, place) = (Server::new(Repo::tiny()), Place::new());
    let hub = Hub::new(place.settings(&server.address()));
    let want = Want::Matching(PathFilter::new(vec!["*.json".into()], Vec::new()).unwrap());
    let plan = hub.plan(&model("org/tiny"), &want, &mut ()).unwrap();
    assert_eq!((paths(&plan), plan.missing().0), (vec!["config.json", "tokenizer.json"], 2));
    assert_eq!(place.blobs().len(), 0);
    let plan = hub.fetch(&model("org/tiny"), &want, &mut ()).unwrap();
    assert_eq!(names(&plan.snapshot), ["config.json", "tokenizer.json"]);
}

#[test]
fn a_hub_that_lists_only_names_is_asked_for_each_file() {
    let server = Server::with(Repo::tiny(), |request, mut reply| {
        if request.is_for("/api/") {
            let mut info: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
            for sibling in info["siblings"].as_array_mut().unwrap() {
                *sibling = serde_json::json!({ "rfilename": sibling["rfilename"] });
            }
            reply.body = info.to_string().into_bytes();
        }
        reply
    });
    let place = Place::new();
    let plan = fetch(place.settings(&server.address()), "org/tiny").unwrap();
    let mut expected: Vec<String> = paths(&plan).iter().map(|path| tag(&Repo::tiny().files[*path])).collect();
    expected.sort();
    assert_eq!(place.blobs(), expected);
    let heads = server.requests().iter().filter(|request| request.method == "HEAD").count();
    assert_eq!(heads, 4, "one for each file, and none for the redirect of the large one");
}

#[test]
fn two_at_once_fetch_a_file_once() {
    let (server, place) = (Server::new(Repo::tiny()), Place::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| fetch(place.settings(&server.address()), "org/tiny").unwrap());
        }
    });
    let large = server.requests().iter().filter(|request| request.is_for("/cdn/")).count();
    assert_eq!(large, 1);
    assert_eq!(place.blobs().len(), 4, "nothing half done is left: {:?}", place.blobs());
}

#[test]
fn a_cache_that_cannot_be_written_serves_what_it_has() {
    let (server, place) = (Server::new(Repo::tiny()), Place::new());
    fetch(place.settings(&server.address()), "org/tiny").unwrap();
    // A file where the folder should be keeps everyone from noting a revision, root too.
    fs::remove_dir_all(place.cache("refs")).unwrap();
    fs::write(place.cache("refs"), "").unwrap();
    let plan = fetch(place.settings(&server.address()), "org/tiny");
    assert_eq!(plan.unwrap().missing(), (0, 0));
}

#[test]
fn addresses_belong_to_the_hub_that_is_asked() {
    let (server, place) = (Server::new(Repo::tiny()), Place::new());
    let hub = Hub::new(place.settings(&server.address()));
    let open = |address: &str| match ModelSource::parse(address).unwrap() {
        ModelSource::Hub(model) => hub.fetch(&model, &Want::Model, &mut ()),
        other => panic!("{other:?}"),
    };
    let address = format!("{}/org/tiny/tree/main", server.address());
    assert_eq!(open(&address).unwrap().origin.commit, commit('1'));
    // The public hub's addresses are what people copy, also where a mirror is asked.
    assert_eq!(open("https://huggingface.co/org/tiny").unwrap().origin.commit, commit('1'));
    assert_refused(open("https://other.example/org/tiny"), HubFault::Request, &["other.example", "HF_ENDPOINT"]);
}
