//! Fetching from a hub: a server on the loopback interface that speaks the hub's interface, and misbehaves on demand.

mod server;

mod datasets;
mod fetch;
mod refuse;
mod trouble;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use scruple_weights::{
    Error, HubFault, Result,
    hub::{Hub, HubRepo, Plan, Retries, Settings, Want, Watch},
};

/// A cache of its own, and settings that wait for nothing.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn settings(&self, endpoint: &str) -> Settings {
        Settings {
            endpoint: endpoint.to_string(),
            token: None,
            cache: self.folder.path().join("hub"),
            offline: false,
            retries: Retries {
                attempts: 4,
                first_wait: Duration::from_millis(1),
                longest_wait: Duration::from_millis(1500),
            },
            silence: Duration::from_millis(2000),
            roots: None,
            proxy: false,
        }
    }

    fn offline(&self) -> Hub {
        // Nothing listens on the discard port; a request would fail, and be counted as one.
        Hub::new(Settings { offline: true, ..self.settings("http://127.0.0.1:9") })
    }

    /// The cache's part of `org/tiny`.
    fn cache(&self, name: &str) -> PathBuf {
        self.folder.path().join("hub/models--org--tiny").join(name)
    }

    fn blobs(&self) -> Vec<String> {
        names(&self.cache("blobs"))
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn model(text: &str) -> HubRepo {
    text.parse().unwrap()
}

/// Fetches `text` as a model.
fn fetch(settings: Settings, text: &str) -> Result<Plan> {
    Hub::new(settings).fetch(&model(text), &Want::Model, &mut ())
}

/// The fault and the sentence of a refusal.
#[track_caller]
fn refused(result: Result<Plan>) -> (HubFault, String) {
    match result {
        Err(error @ Error::Hub { fault, .. }) => (fault, error.to_string()),
        other => panic!("expected a refusal by the hub, found {other:?}"),
    }
}

#[track_caller]
fn assert_refused(result: Result<Plan>, expected: HubFault, words: &[&str]) {
    let (fault, what) = refused(result);
    assert_eq!(fault, expected, "{what}");
    for word in words {
        assert!(what.contains(word), "`{word}` is not in: {what}");
    }
    assert!(!what.contains('\n'), "{what}");
}

/// Collects what is told.
#[derive(Default)]
struct Listener {
    begun: Option<(usize, u64)>,
    steps: Vec<u64>,
    warnings: Vec<String>,
    waits: Vec<(String, Duration)>,
}

impl Watch for Listener {
    fn begins(&mut self, files: usize, bytes: u64) {
        self.begun = Some((files, bytes));
    }

    fn at(&mut self, bytes: u64, _: &str) {
        self.steps.push(bytes);
    }

    fn waits(&mut self, why: &str, wait: Duration) {
        self.waits.push((why.to_string(), wait));
    }

    fn warn(&mut self, what: &str) {
        self.warnings.push(what.to_string());
    }
}
