//! What a hub refuses, and what of a hub is refused: one sentence each, that says what to do.

use scruple_weights::{
    HubFault,
    hub::{Hub, Want},
};

use crate::{
    Listener, Place, assert_refused, fetch, model, names,
    server::{Reply, Repo, Server, commit},
};

/// What `org/tiny` is answered by a server whose listing (or, if `of_files`, whose files) always answers `reply`.
#[track_caller]
fn check(reply: Reply, of_files: bool, token: bool, fault: HubFault, words: &[&str]) {
    let server = Server::with(Repo::tiny(), move |request, usual| match request.is_for("/api/") != of_files {
        true => reply.clone(),
        false => usual,
    });
    let place = Place::new();
    let mut settings = place.settings(&server.address());
    settings.token = token.then(|| "hf_secret".to_string());
    let result = fetch(settings, "org/tiny");
    if let Err(error) = &result {
        assert!(!error.to_string().contains("hf_secret"), "{error}");
    }
    assert_refused(result, fault, words);
    assert_eq!(server.requests().len(), if of_files { 2 } else { 1 }, "trying again is of no use");
    assert!(!place.cache("refs/main").exists());
}

fn code(status: u16, code: &str) -> Reply {
    Reply::status(status).header("X-Error-Code", code)
}

#[test]
fn a_gated_model_says_where_its_terms_are() {
    check(
        code(401, "GatedRepo"),
        true,
        false,
        HubFault::Gated,
        &["gated", "/org/tiny", "accept its terms", "HF_TOKEN"],
    );
    check(code(403, "GatedRepo"), true, true, HubFault::Gated, &["the token's account has no access", "/org/tiny"]);
    check(code(403, "GatedRepo"), false, false, HubFault::Gated, &["accept its terms"]);
}

#[test]
fn a_missing_model_says_both_readings_of_its_name() {
    let words = ["org/tiny: there is no such file or folder here", "no such model", "set HF_TOKEN"];
    check(code(401, "RepoNotFound"), false, false, HubFault::NoModel, &words);
    check(code(404, "RepoNotFound"), false, true, HubFault::NoModel, &["the token may not read it"]);
    check(Reply::status(404), false, false, HubFault::NoModel, &words);
}

#[test]
fn a_refused_token_is_named_as_the_reason() {
    let invalid = Reply::status(401).header("X-Error-Message", "Invalid credentials in Authorization header");
    check(invalid.clone(), false, true, HubFault::Token, &["refuses the token", "Invalid credentials", "renew it"]);
    check(Reply::status(403), true, true, HubFault::Token, &["does not allow it", "HF_TOKEN"]);
}

#[test]
fn missing_revisions_and_files_are_named() {
    let (server, place) = (Server::new(Repo::tiny()), Place::new());
    let fetch = |text: &str| fetch(place.settings(&server.address()), text);
    assert_refused(fetch("org/tiny@dev"), HubFault::NoRevision, &["org/tiny@dev", "no revision `dev`", "/org/tiny"]);
    assert_refused(fetch("org/tiny:nothing.gguf"), HubFault::NoFile, &["org/tiny:nothing.gguf", "`model.safetensors`"]);
    check(code(404, "EntryNotFound"), true, false, HubFault::NoFile, &["no file `README.md`"]);
    server.publish(Repo::new([("README.md", "x"), ("data.csv", "y")]));
    assert_refused(fetch("org/tiny"), HubFault::NoFile, &["no weights", "`README.md`, `data.csv`"]);
}

#[test]
fn a_server_that_is_no_hub_is_told() {
    let page = Reply::status(200).header("Content-Type", "text/html").body("<!DOCTYPE html><p>Sign in</p>");
    check(page, false, false, HubFault::NoHub, &["does not answer like a hub", "web page", "HF_ENDPOINT"]);
    check(Reply::status(200).body("{}"), false, false, HubFault::NoHub, &["sha"]);
    check(
        Reply::status(200).body("{\"sha\":\"../../x\"}"),
        false,
        false,
        HubFault::NoHub,
        &["`../../x` as the commit"],
    );
    check(Reply::status(302), false, false, HubFault::NoHub, &["not where to go"]);
    check(Reply::status(418), false, false, HubFault::NoHub, &["418"]);
}

#[test]
fn endless_redirects_end() {
    let server = Server::with(Repo::tiny(), |_, _| Reply::status(302).header("Location", "/round/and/round"));
    let place = Place::new();
    assert_refused(fetch(place.settings(&server.address()), "org/tiny"), HubFault::NoHub, &["redirects more than 10"]);
    assert_eq!(server.requests().len(), 11);
}

#[test]
fn nobody_there_is_told_at_once() {
    let place = Place::new();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let result = fetch(place.settings(&format!("http://{nobody}")), "org/tiny");
    assert_refused(result, HubFault::Unreachable, &["cannot be reached", "check the network"]);
    // Reserved, so that no resolver knows it.
    let result = fetch(place.settings("http://hub.invalid"), "org/tiny");
    assert_refused(result, HubFault::Unreachable, &["hub.invalid"]);
}

#[test]
fn offline_says_what_is_there() {
    let place = Place::new();
    let offline = place.offline();
    let missing = offline.fetch(&model("org/tiny"), &Want::Model, &mut ());
    assert_refused(
        missing,
        HubFault::Offline,
        &["HF_HUB_OFFLINE is set", "no revision `main`", "nothing of this model"],
    );
    let server = Server::new(Repo::tiny());
    fetch(place.settings(&server.address()), "org/tiny").unwrap();
    let other = offline.fetch(&model("org/tiny@v2"), &Want::Model, &mut ());
    assert_refused(other, HubFault::Offline, &["no revision `v2`", "it holds `main` (commit 1111111, 20"]);
}

#[test]
fn a_renamed_model_is_followed_and_its_new_name_said() {
    let server = Server::with(Repo::tiny(), |request, reply| match request.path.strip_prefix("/api/models/old/name") {
        Some(rest) => Reply::status(307).header("Location", format!("/api/models/org/tiny{rest}")),
        None => match request.path.strip_prefix("/old/name/") {
            Some(rest) => Reply::status(307).header("Location", format!("/org/tiny/{rest}")),
            None => reply,
        },
    });
    let place = Place::new();
    let mut heard = Listener::default();
    let hub = Hub::new(place.settings(&server.address()));
    let plan = hub.fetch(&model("old/name"), &Want::Model, &mut heard).unwrap();
    assert_eq!((plan.origin.repo.as_str(), plan.origin.commit), ("old/name", commit('1')));
    assert_eq!(heard.warnings, ["old/name: the model is called `org/tiny` now"]);
}

#[test]
fn names_that_lead_elsewhere_are_refused_by_name() {
    for bad in ["../../../evil", "/tmp/evil", "a/../../evil", "a\\..\\evil", "C:evil", "a\u{0}b"] {
        let mut repo = Repo::tiny();
        repo.files.insert(bad.to_string(), b"evil".to_vec());
        let (server, place) = (Server::new(repo), Place::new());
        let result = fetch(place.settings(&server.address()), "org/tiny");
        assert_refused(
            result,
            HubFault::Untrusted,
            &["evil", "nothing was fetched"].map(|w| if bad.contains('\0') { "a\\0b" } else { w }),
        );
        assert_eq!(place.blobs().len(), 0);
    }
    // The same in an index, which names files too.
    let map = r#"{"weight_map":{"x":"../../../../evil.safetensors"}}"#;
    let (server, place) = (Server::new(Repo::new([("model.safetensors.index.json", map)])), Place::new());
    let result = fetch(place.settings(&server.address()), "org/tiny");
    assert_refused(result, HubFault::Untrusted, &["../../../../evil.safetensors", "leads out of its folder"]);
}

#[test]
fn tags_that_are_no_file_names_are_refused() {
    for bad in ["../../../../evil", "a/b/c/d/e/f", ".hidden-tag", "x"] {
        let server = Server::with(Repo::tiny(), move |request, mut reply| {
            if request.is_for("/api/") {
                let mut info: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
                for sibling in info["siblings"].as_array_mut().unwrap() {
                    sibling["blobId"] = bad.into();
                }
                reply.body = info.to_string().into_bytes();
            }
            reply
        });
        let place = Place::new();
        let result = fetch(place.settings(&server.address()), "org/tiny");
        assert_refused(result, HubFault::Untrusted, &["README.md", "can be no file's name"]);
        assert_eq!(names(place.folder.path()), [""; 0]);
    }
}
