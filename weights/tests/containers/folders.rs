//! Which file of a folder is opened.

use std::{fs, path::Path};

use scruple_weights::Checkpoint;

use crate::oracle::fixtures;

/// A folder of these fixtures under these names.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (fixture, name) in files {
        fs::copy(fixtures().join(fixture), folder.path().join(name)).unwrap();
    }
    folder
}

fn container(path: &Path) -> String {
    let checkpoint = Checkpoint::open(path).unwrap();
    checkpoint.metadata().get("container").cloned().unwrap_or("safetensors".into())
}

#[test]
fn the_first_kind_that_is_there_is_opened() {
    let folder = folder(&[
        ("arrays.npz", "arrays.npz"),
        ("fortran.npy", "array.npy"),
        ("graph.onnx", "model.onnx"),
        ("model.pt", "model.pt"),
        ("training.pt", "optimizer.pt"), // what training leaves is not the model
        ("training.pt", "training_args.bin"),
        ("llama2c.bin", "notes.bin"),
    ]);
    let path = folder.path();
    fs::write(path.join("weights.safetensors"), [&2u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
    for (expected, file) in [
        ("safetensors", "weights.safetensors"),
        ("PyTorch", "model.pt"),
        ("ONNX", "model.onnx"),
        ("npz", "arrays.npz"),
        ("npy", "array.npy"),
        ("llama2.c", "notes.bin"),
    ] {
        assert_eq!(container(path), expected);
        fs::remove_file(path.join(file)).unwrap();
    }
    let error = Checkpoint::open(path).unwrap_err().to_string();
    assert!(error.contains("expected *.safetensors, *.bin, *.pt") && error.contains("found none"), "{error}");
}

#[test]
fn several_files_of_one_kind_are_listed() {
    let folder = folder(&[("model.pt", "b.pt"), ("views.pt", "a.pth"), ("graph.onnx", "c.onnx")]);
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("the folder holds 2 PyTorch files (`a.pth`, `b.pt`); name the one to open"), "{error}");
}

#[test]
fn numbered_parts_are_joined_with_and_without_an_index() {
    let parts = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
    let from = |part: &str| format!("sharded/{part}");
    let (first, second) = (from(parts[0]), from(parts[1]));
    let both = folder(&[(&first, parts[0]), (&second, parts[1])]);
    assert_eq!(Checkpoint::open(both.path()).unwrap().tensors().len(), 3);
    let index = fixtures().join("sharded/pytorch_model.bin.index.json");
    let one = folder(&[(&second, parts[1])]);
    for with_index in [false, true] {
        if with_index {
            fs::copy(&index, one.path().join("pytorch_model.bin.index.json")).unwrap();
        }
        let error = Checkpoint::open(one.path()).unwrap_err().to_string();
        assert!(error.contains(parts[0]) && error.contains("the shard is missing"), "{error}");
    }
    let whole = folder(&[("model.pt", "pytorch_model.bin"), ("views.pt", "other.pt")]);
    assert!(Checkpoint::open(whole.path()).unwrap().contains("0.weight"));
}

#[test]
fn a_name_that_says_something_else_does_not_matter() {
    let folder = folder(&[("model.pt", "model.safetensors"), ("arrays.npz", "x"), ("graph.onnx", "y.gguf")]);
    assert_eq!(container(&folder.path().join("model.safetensors")), "PyTorch");
    assert_eq!(container(&folder.path().join("x")), "npz");
    assert_eq!(container(&folder.path().join("y.gguf")), "ONNX");
}
