//! The kept corpora of the fuzzer for configurations and recipes, run as ordinary files.

use std::{fs, path::Path};

#[path = "../../fuzz/exercise_models.rs"]
mod exercise;

/// Runs `with` over every file of the corpus of `target`.
fn run(target: &str, with: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut count = 0;
    for file in files {
        with(&fs::read(file.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 2, "{}: only {count} files", folder.display());
}

#[test]
fn config() {
    run("config", exercise::config);
}

#[test]
fn recipe() {
    run("recipe", exercise::recipe);
}
