//! Connections that break, servers that misbehave, and what is kept of it.

use std::fs;

use scruple_weights::{
    Error, HubFault,
    hub::{Hub, Retries, Want},
};

use crate::{
    Listener, Place, assert_refused, fetch, model,
    server::{Reply, Repo, Request, Server, tag},
};

const SIZE: usize = 300_000;

fn weights() -> Vec<u8> {
    Repo::tiny().files["model.safetensors"].clone()
}

/// A server that spoils the answers with large files.
fn spoiling(hook: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Server {
    Server::with(Repo::tiny(), move |request, reply| if request.is_for("/cdn/") { hook(request, reply) } else { reply })
}

/// Range and bytes sent of each request for the large file.
fn large(server: &Server) -> Vec<(Option<String>, usize)> {
    let requests = server.requests().into_iter().filter(|request| request.is_for("/cdn/"));
    requests.map(|request| (request.range, request.sent)).collect()
}

#[track_caller]
fn assert_whole(place: &Place) {
    assert_eq!(fs::read(place.cache("blobs").join(tag(&weights()))).unwrap(), weights());
    assert!(place.blobs().iter().all(|name| !name.contains("incomplete")), "{:?}", place.blobs());
}

#[test]
fn a_connection_cut_in_the_middle_is_continued_where_it_broke() {
    let server = spoiling(|request, reply| match request.nth {
        0 => reply.cut(100_000),
        1 => reply.cut(50_000),
        _ => reply,
    });
    let place = Place::new();
    fetch(place.settings(&server.address()), "org/tiny").unwrap();
    let range = |from: usize| Some(format!("bytes={from}-"));
    let expected = [(None, 100_000), (range(100_000), 50_000), (range(150_000), 150_000)];
    assert_eq!(large(&server), expected, "no byte twice");
    assert_whole(&place);
}

#[test]
fn a_later_run_continues_what_an_earlier_one_left() {
    let server = spoiling(|request, reply| if request.range.is_none() { reply.cut(123_456) } else { reply });
    let place = Place::new();
    let mut settings = place.settings(&server.address());
    settings.retries.attempts = 1;
    let first = fetch(settings, "org/tiny");
    assert_refused(first, HubFault::Unreachable, &["org/tiny", "`model.safetensors`", "is kept, and continued"]);
    let part = place.cache("blobs").join(format!("{}.incomplete", tag(&weights())));
    assert_eq!(fs::metadata(&part).unwrap().len(), 123_456);
    assert!(!place.cache("refs/main").exists(), "a revision is noted when all of it is there");
    server.requests();
    fetch(place.settings(&server.address()), "org/tiny").unwrap();
    assert_eq!(large(&server), [(Some("bytes=123456-".into()), SIZE - 123_456)]);
    assert_whole(&place);
}

#[test]
fn what_was_left_is_taken_or_thrown_away_by_its_content() {
    let good = weights();
    let wrong: Vec<u8> = good.iter().map(|byte| !byte).collect();
    for (left, expected) in [
        // Complete, but not yet named: not a request.
        (&good[..], vec![]),
        // Complete and wrong, or too long: from the start.
        (&wrong[..], vec![(None, SIZE)]),
        (&[&good[..], b"more"].concat()[..], vec![(None, SIZE)]),
        // A wrong beginning shows at the end.
        (&wrong[..1000], vec![(Some("bytes=1000-".to_string()), SIZE - 1000), (None, SIZE)]),
    ] {
        let (server, place) = (spoiling(|_, reply| reply), Place::new());
        fs::create_dir_all(place.cache("blobs")).unwrap();
        fs::write(place.cache("blobs").join(format!("{}.incomplete", tag(&good))), left).unwrap();
        fetch(place.settings(&server.address()), "org/tiny").unwrap();
        assert_eq!(large(&server), expected);
        assert_whole(&place);
    }
}

#[test]
fn a_server_without_ranges_begins_anew_a_bounded_number_of_times() {
    let server = spoiling(|request, reply| {
        let reply = reply.without_range();
        if request.nth == 0 { reply.cut(100_000) } else { reply }
    });
    let place = Place::new();
    fetch(place.settings(&server.address()), "org/tiny").unwrap();
    assert_eq!(large(&server), [(None, 100_000), (Some("bytes=100000-".into()), SIZE)]);
    assert_whole(&place);

    let server = spoiling(|_, reply| reply.without_range().cut(100_000));
    let place = Place::new();
    assert_refused(fetch(place.settings(&server.address()), "org/tiny"), HubFault::Unreachable, &["model.safetensors"]);
    assert_eq!(large(&server).len(), 4, "the same bytes again are no progress");
}

#[test]
fn other_ranges_than_asked_are_not_appended() {
    let server = spoiling(|request, reply| match request.nth {
        0 => reply.cut(1000),
        1 => {
            let body = reply.whole[500..].to_vec();
            reply.header("Content-Range", format!("bytes 500-{}/{SIZE}", SIZE - 1)).body(body)
        }
        2 => Reply::status(416),
        _ => reply,
    });
    let place = Place::new();
    fetch(place.settings(&server.address()), "org/tiny").unwrap();
    assert_whole(&place);
}

#[test]
fn content_that_is_not_what_was_promised_is_removed() {
    for (path, large) in [("model.safetensors", true), ("config.json", false)] {
        let server = Server::with(Repo::tiny(), move |request, mut reply| {
            if request.is_for(if large { "/cdn/" } else { "config.json" }) {
                reply.body[1] ^= 1;
            }
            reply
        });
        let place = Place::new();
        let result = fetch(place.settings(&server.address()), "org/tiny");
        assert_refused(result, HubFault::Untrusted, &[path, "checksum", "promised", "fetch it again"]);
        let spoilt = tag(&Repo::tiny().files[path]);
        assert!(place.blobs().iter().all(|name| !name.starts_with(&spoilt)), "{:?}", place.blobs());
        assert_eq!(server.requests().iter().filter(|request| request.is_for("/api/")).count(), 1);
    }
}

#[test]
fn a_file_of_another_size_than_promised_is_refused() {
    for body in [&b"short"[..], &vec![7; SIZE + 1]] {
        let body = body.to_vec();
        let server = spoiling(move |_, reply| reply.body(body.clone()));
        let place = Place::new();
        let result = fetch(place.settings(&server.address()), "org/tiny");
        assert_refused(result, HubFault::Untrusted, &["model.safetensors", "300000 were announced"]);
    }
}

#[test]
fn the_token_stays_with_the_hub() {
    let cdn = Server::new(Repo::tiny());
    let server = Server::with_cdn(Repo::tiny(), &cdn);
    let place = Place::new();
    let mut settings = place.settings(&server.address());
    settings.token = Some("hf_secret".into());
    fetch(settings, "org/tiny").unwrap();
    let requests = server.requests();
    assert!(
        requests.iter().all(|request| request.authorization.as_deref() == Some("Bearer hf_secret")),
        "{requests:?}"
    );
    let elsewhere = cdn.requests();
    assert_eq!(elsewhere.len(), 1);
    assert_eq!(elsewhere[0].authorization, None, "another port is another place");
}

#[test]
fn a_busy_hub_is_asked_again_as_it_wishes() {
    let server = Server::with(Repo::tiny(), |request, reply| match (request.is_for("/api/"), request.nth) {
        (true, 0) => Reply::status(503),
        (true, 1) => Reply::status(429).header("Retry-After", "1"),
        (false, 0) => Reply::status(500),
        _ => reply,
    });
    let place = Place::new();
    let mut heard = Listener::default();
    Hub::new(place.settings(&server.address())).fetch(&model("org/tiny"), &Want::Model, &mut heard).unwrap();
    let waits: Vec<u128> = heard.waits.iter().map(|(_, wait)| wait.as_millis()).collect();
    assert_eq!(waits[..3], [1, 1000, 1], "twice as long each time, or as long as is asked for: {:?}", heard.waits);
    assert!(heard.waits[1].0.ends_with("status 429"), "{:?}", heard.waits);

    // There is an end to it, and to how long is waited.
    let server = Server::with(Repo::tiny(), |_, _| Reply::status(502));
    let place = Place::new();
    assert_refused(
        fetch(place.settings(&server.address()), "org/tiny"),
        HubFault::Unreachable,
        &["502", "try again later"],
    );
    assert_eq!(server.requests().len(), 4);
    let limit = |_: &Request, _| Reply::status(429).header("RateLimit", "\"api\";r=0;t=290");
    let server = Server::with(Repo::tiny(), limit);
    let result = fetch(place.settings(&server.address()), "org/tiny");
    assert_refused(result, HubFault::RateLimited, &["290 s", "HF_TOKEN"]);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn without_a_network_a_copy_is_used_and_said_to_be_one() {
    let place = Place::new();
    let server = Server::new(Repo::tiny());
    let address = server.address();
    fetch(place.settings(&address), "org/tiny").unwrap();
    drop(server);
    let mut heard = Listener::default();
    let plan = Hub::new(place.settings(&address)).fetch(&model("org/tiny"), &Want::Model, &mut heard).unwrap();
    assert_eq!(plan.missing(), (0, 0));
    let [warning] = heard.warnings.as_slice() else { panic!("{:?}", heard.warnings) };
    for word in ["cannot be reached", "using commit 1111111 from the cache", "`main`", "on 20"] {
        assert!(warning.contains(word), "`{word}` is not in: {warning}");
    }
    // What is not there cannot be had.
    assert_refused(
        fetch(place.settings(&address), "org/tiny@dev"),
        HubFault::Unreachable,
        &[&address, "check the network"],
    );
    assert_refused(
        fetch(place.settings(&address), "org/tiny:x.gguf"),
        HubFault::Offline,
        &["the hub cannot be reached"],
    );
}

#[test]
fn a_silent_server_is_not_waited_for_forever() {
    let server = spoiling(|_, reply| {
        std::thread::sleep(std::time::Duration::from_millis(500));
        reply
    });
    let place = Place::new();
    let mut settings = place.settings(&server.address());
    settings.silence = std::time::Duration::from_millis(50);
    settings.retries = Retries { attempts: 2, ..settings.retries };
    assert_refused(fetch(settings, "org/tiny"), HubFault::Unreachable, &["model.safetensors", "silent"]);
}

#[test]
fn what_cannot_fit_is_not_begun() {
    let server = Server::with(Repo::tiny(), |request, mut reply| {
        if request.is_for("/api/") {
            let text = String::from_utf8(reply.body).unwrap().replace("300000", "1152921504606846976");
            reply.body = text.into_bytes();
        }
        reply
    });
    let place = Place::new();
    let error = fetch(place.settings(&server.address()), "org/tiny").unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("HF_HUB_CACHE"), "{error}");
    assert_eq!(server.requests().len(), 1);
}
