//! Data sets: below a folder of their own at the hub and in the cache, of which only what is read is fetched.

use std::{fs, path::Path};

use scruple_weights::{
    HubFault, Result,
    hub::{Hub, HubRepo, Origin, Plan, Settings, Want},
};

use crate::{
    Listener, Place, assert_refused, names,
    server::{Reply, Repo, Server, bytes, commit, tag},
};

/// Lines of JSON, and tables of groups beside them.
const WANT: Want = Want::Data {
    reads: |path| path.ends_with(".jsonl") || path.ends_with(".npy"),
    beside: |path| vec![path.rsplit('/').next().unwrap_or(path).replace(".jsonl", ".npy")],
};

fn repo() -> Repo {
    Repo::new([
        ("README.md", b"# Data\n".to_vec()),
        (".hidden/a.jsonl", b"{}\n".to_vec()),
        ("adult/test.jsonl", bytes(1, 2000)),
        ("adult/test.npy", bytes(2, 30)),
        ("more/deep/er.jsonl", b"{\"x\":1}\n".to_vec()),
        ("more/weights.safetensors", bytes(3, 5000)),
    ])
}

fn server() -> Server {
    let server = Server::new(Repo::tiny());
    server.publish_dataset(repo());
    server
}

fn data(text: &str) -> HubRepo {
    HubRepo::dataset(text).unwrap()
}

fn fetch(settings: Settings, text: &str) -> Result<Plan> {
    Hub::new(settings).fetch(&data(text), &WANT, &mut ())
}

fn paths(plan: &Plan) -> Vec<&str> {
    plan.files.iter().map(|file| file.path.as_str()).collect()
}

#[test]
fn a_data_set_lies_beside_a_model_of_its_name_and_comes_once() {
    let (server, place) = (server(), Place::new());
    let plan = fetch(place.settings(&server.address()), "org/tiny").unwrap();
    assert_eq!(paths(&plan), ["adult/test.jsonl", "adult/test.npy", "more/deep/er.jsonl"]);
    let origin = Origin { repo: "org/tiny".into(), revision: "main".into(), commit: commit('1'), file: None };
    assert_eq!(plan.origin, origin);
    let cache = place.folder.path().join("hub/datasets--org--tiny");
    assert_eq!(
        (plan.open.as_path(), names(&cache.join("blobs")).len()),
        (&*cache.join("snapshots").join(commit('1')), 3)
    );
    // The large file has the SHA-256 of its bytes as its name, as a model's has.
    let link = fs::read_link(plan.open.join("adult/test.jsonl")).unwrap();
    assert_eq!(link, Path::new("../../../blobs").join(tag(&bytes(1, 2000))));
    assert!(!place.folder.path().join("hub/models--org--tiny").exists());
    let asked = server.requests();
    assert!(asked[0].is_for("/api/datasets/org/tiny/revision/main?"), "{asked:#?}");
    assert!(asked[1].is_for(&format!("/datasets/org/tiny/resolve/{}/adult/test.jsonl", commit('1'))), "{asked:#?}");

    assert_eq!(fetch(place.settings(&server.address()), "org/tiny@main").unwrap().missing(), (0, 0));
    assert_eq!(server.requests().len(), 1);
    let mut heard = Listener::default();
    let offline = place.offline().fetch(&data("org/tiny"), &WANT, &mut heard).unwrap();
    assert_eq!((paths(&offline), server.requests().len()), (paths(&plan), 0));
    assert_eq!(
        heard.warnings,
        ["org/tiny: of commit 1111111 the 3 files that the cache holds are read; the hub may have more"]
    );
}

#[test]
fn a_file_comes_with_what_lies_beside_it_and_a_folder_with_what_is_in_it() {
    let (server, place) = (server(), Place::new());
    let one = fetch(place.settings(&server.address()), "org/tiny:adult/test.jsonl").unwrap();
    assert_eq!(paths(&one), ["adult/test.npy", "adult/test.jsonl"]);
    assert_eq!(one.open, one.snapshot.join("adult/test.jsonl"));
    let other = fetch(place.settings(&server.address()), "org/tiny@main:more").unwrap();
    assert_eq!((paths(&other), &other.open), (vec!["more/deep/er.jsonl"], &other.snapshot.join("more")));
    let place = Place::new();
    let planned = Hub::new(place.settings(&server.address())).plan(&data("org/tiny"), &WANT, &mut ()).unwrap();
    assert_eq!((planned.missing(), names(place.folder.path())), ((3, 2038), vec![]));
}

#[test]
fn a_cut_file_is_continued_and_a_damaged_one_is_not_kept() {
    let server =
        Server::with(Repo::tiny(), |request, reply| match request.is_for("/cdn/") && request.range.is_none() {
            true => reply.cut(700),
            false => reply,
        });
    server.publish_dataset(repo());
    let place = Place::new();
    fetch(place.settings(&server.address()), "org/tiny").unwrap();
    let large = server.requests().into_iter().filter(|request| request.is_for("/cdn/"));
    assert_eq!(large.filter_map(|request| request.range).collect::<Vec<_>>(), ["bytes=700-"]);
    let server = Server::with(Repo::tiny(), |request, mut reply| {
        if request.is_for("/cdn/") {
            reply.body[5] ^= 1;
        }
        reply
    });
    server.publish_dataset(repo());
    let place = Place::new();
    let words = ["`adult/test.jsonl` arrived with checksum", "has been removed"];
    assert_refused(fetch(place.settings(&server.address()), "org/tiny"), HubFault::Untrusted, &words);
}

#[test]
fn what_cannot_be_had_is_said_of_a_data_set() {
    let (server, place) = (server(), Place::new());
    let settings = || place.settings(&server.address());
    let page = format!("{}/datasets/org/tiny", server.address());
    let words = ["nosuch/data: there is no such file or folder here", "no such data set"];
    assert_refused(fetch(settings(), "nosuch/data"), HubFault::NoModel, &words);
    let words = ["the data set has no revision `v2`", &page];
    assert_refused(fetch(settings(), "org/tiny@v2"), HubFault::NoRevision, &words);
    assert_refused(
        fetch(settings(), "org/tiny:adult/tset.jsonl"),
        HubFault::NoFile,
        &["did you mean `adult/test.jsonl`"],
    );
    let words = ["no file that can be read here", "it has `.hidden/a.jsonl`, `README.md`"];
    let none: Want = Want::Data { reads: |_| false, beside: |_| Vec::new() };
    assert_refused(Hub::new(settings()).fetch(&data("org/tiny"), &none, &mut ()), HubFault::NoFile, &words);
    let words = ["`more/weights.safetensors` is of no kind that can be read here", "`adult/test.jsonl`"];
    assert_refused(fetch(settings(), "org/tiny:more/weights.safetensors"), HubFault::NoFile, &words);
    let words = ["HF_HUB_OFFLINE is set", "nothing of this data set"];
    assert_refused(place.offline().fetch(&data("org/tiny"), &WANT, &mut ()), HubFault::Offline, &words);

    let gated = Server::with(Repo::tiny(), |_, _| Reply::status(401).header("X-Error-Code", "GatedRepo"));
    let page =
        format!("the data set is gated: accept its terms at {}/datasets/org/tiny, then set HF_TOKEN", gated.address());
    assert_refused(fetch(place.settings(&gated.address()), "org/tiny"), HubFault::Gated, &[&page]);
    let token = Some("hf_secret".to_string());
    let settings = Settings { token, ..place.settings(&gated.address()) };
    assert_refused(fetch(settings, "org/tiny"), HubFault::Gated, &["the token's account has no access"]);
    assert!(
        gated.requests().iter().skip(1).all(|request| request.authorization.as_deref() == Some("Bearer hf_secret"))
    );
}
