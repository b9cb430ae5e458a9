//! The kept corpora of the fuzzer, run as ordinary files: what once reached a new corner of a reader goes there again.

use std::{fs, path::Path};

#[path = "../../fuzz/exercise.rs"]
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
    assert!(count > 10, "{}: only {count} files", folder.display());
}

#[test]
fn safetensors() {
    run("safetensors", |bytes| exercise::container("safetensors", bytes));
}

#[test]
fn torch() {
    run("torch", |bytes| exercise::container("PyTorch", bytes));
}

#[test]
fn gguf() {
    run("gguf", |bytes| exercise::container("GGUF", bytes));
    run("gguf_to_hf", exercise::gguf_to_hf);
}

#[test]
fn onnx() {
    run("onnx", |bytes| exercise::container("ONNX", bytes));
}

#[test]
fn numpy() {
    run("npz", |bytes| exercise::container("npz", bytes));
    run("npy", |bytes| exercise::container("npy", bytes));
}

#[test]
fn llama2c() {
    run("llama2c", |bytes| exercise::container("llama2.c", bytes));
}

#[test]
fn hdf5() {
    run("hdf5", |bytes| exercise::container("HDF5", bytes));
}

#[test]
fn traineddata() {
    run("traineddata", |bytes| exercise::container("traineddata", bytes));
}

#[test]
fn index() {
    run("index", exercise::index);
}
