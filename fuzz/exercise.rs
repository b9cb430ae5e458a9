//! What is done with the bytes of a fuzzer, and with the files of the kept corpora in the ordinary tests: the reader under
//! test reads them, and whatever it accepts is used as the program would use it.
#![allow(dead_code)] // each user takes what it needs

use std::path::Path;

use scruple_weights::{Checkpoint, Shard, TensorView, format, gguf_to_hf};

/// Values read of each tensor.
const VALUES: usize = 4096;

/// Reads `bytes` as the container called `name` in [`format::FORMATS`], and walks over what it finds.
pub fn container(name: &str, bytes: &[u8]) {
    let reader = format::FORMATS.iter().find(|format| format.name == name).expect("no such container");
    let shard = Shard::from_bytes("fuzz", bytes.to_vec());
    match (reader.read)(&shard) {
        Ok(contents) => contents.tensors.iter().for_each(walk),
        Err(error) => says_where(&error),
    }
    // The way a user comes, where it is another: by whatever the content looks like.
    if !(reader.recognise)(&shard)
        && let Err(error) = format::read(&shard)
    {
        says_where(&error);
    }
}

/// A refusal must name the file and stay readable.
fn says_where(error: &scruple_weights::Error) {
    let said = error.to_string();
    assert!(said.contains("fuzz"), "no file is named: {said}");
    assert!(said.len() < 100_000, "a sentence of {} bytes", said.len());
}

fn walk(view: &TensorView) {
    let (rows, length) = view.rows();
    let expected = view.dtype().bytes(view.elements()).expect("an accepted tensor fills whole blocks");
    assert_eq!(view.bytes().len(), expected, "`{}`", view.name());
    let some = rows.min(VALUES / length.max(1));
    let mut values = vec![0.0; some * length];
    let _ = view.read_rows(0..some, &mut values);
    if view.elements() <= VALUES {
        let _ = view.nonfinite();
    }
}

/// The whole way from a GGUF file to a Hugging Face folder.
pub fn gguf_to_hf(bytes: &[u8]) {
    let Ok(file) = format::gguf::read(&Shard::from_bytes("fuzz", bytes.to_vec())) else { return };
    match gguf_to_hf::convert(&file) {
        Ok(model) => {
            for tensor in &model.tensors {
                let (rows, length) = tensor.rows();
                let some = rows.min(VALUES / length.max(1));
                tensor.read_rows_f32(0..some, &mut vec![0.0; some * length]).expect("rows of an accepted tensor");
            }
        }
        Err(error) => says_where(&error),
    }
}

/// A folder whose index is `bytes`, beside one good shard.
pub fn index(bytes: &[u8]) {
    thread_local! {
        static FOLDER: tempfile::TempDir = {
            let folder = tempfile::Builder::new().prefix("fuzz").tempdir().expect("a temporary folder");
            let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
            let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
            std::fs::write(folder.path().join("m.safetensors"), file).expect("a shard");
            folder
        };
    }
    FOLDER.with(|folder| {
        let index = folder.path().join("model.safetensors.index.json");
        std::fs::write(&index, bytes).expect("the index");
        match Checkpoint::open(folder.path()) {
            // Nothing but the shard beside the index can have been opened.
            Ok(checkpoint) => assert!(checkpoint.shards().iter().all(|shard| inside(shard.path(), folder.path()))),
            Err(error) => says_where(&error),
        }
    });
}

fn inside(path: &Path, folder: &Path) -> bool {
    path.canonicalize().is_ok_and(|path| folder.canonicalize().is_ok_and(|folder| path.starts_with(folder)))
}
