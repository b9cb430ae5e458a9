//! HDF5: what is left out and refused, and files that were damaged on purpose.

use std::{env, fs, path::PathBuf};

use scruple_weights::{Checkpoint, Shard, format::hdf5};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/containers").join(name)
}

#[test]
fn texts_are_left_out_by_name_and_links_passed_over() {
    let checkpoint = Checkpoint::open(fixture("weights.h5")).unwrap();
    let left_out = &checkpoint.metadata()["left_out"];
    assert!(left_out.contains("`note`") && !left_out.contains("again"), "{left_out}");
    assert!(!checkpoint.contains("again"));
}

#[test]
fn arrays_in_chunks_are_refused_by_name() {
    let error = Checkpoint::open(fixture("chunked.h5")).unwrap_err().to_string();
    assert!(error.contains("tensor `kernel` is stored in chunks") && error.contains("safetensors"), "{error}");
}

/// Every cut and every changed byte is refused, or leaves arrays that lie inside the file.
#[test]
fn no_damage_reaches_outside_the_file() {
    let good = fs::read(fixture("weights.h5")).unwrap();
    let check = |bytes: Vec<u8>| {
        let len = bytes.len();
        if let Ok(contents) = hdf5::read(&Shard::from_bytes("damaged.h5", bytes)) {
            for tensor in &contents.tensors {
                assert!(tensor.bytes().len() <= len);
            }
        }
    };
    for len in (8..good.len()).step_by(211) {
        check(good[..len].to_vec());
    }
    let mut state = 1u64;
    for _ in 0..4000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (state >> 33) as usize % good.len();
        let mut bytes = good.clone();
        bytes[at] = (state >> 20) as u8;
        // Addresses near the ends of numbers.
        if state.is_multiple_of(3) && at + 8 <= bytes.len() {
            bytes[at..at + 8].copy_from_slice(&(u64::MAX - state % 64).to_le_bytes());
        }
        check(bytes);
    }
}

/// A group whose tree holds the group itself.
#[test]
fn a_tree_that_holds_itself_is_refused() {
    let mut bytes = fs::read(fixture("weights.h5")).unwrap();
    let tree = bytes.windows(4).position(|part| part == b"TREE").unwrap();
    // The root's node becomes an inner one, whose first child is itself.
    bytes[tree + 5] = 1;
    bytes[tree + 32..tree + 40].copy_from_slice(&(tree as u64).to_le_bytes());
    let error = hdf5::read(&Shard::from_bytes("round.h5", bytes)).unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
}

/// tox-block's classifier: names, sizes and one known shape, where `SCRUPLE_TOX_BLOCK` names its `.h5`.
#[test]
#[allow(clippy::print_stdout)] // says what was skipped
fn a_real_keras_file_opens() {
    let Some(path) = env::var_os("SCRUPLE_TOX_BLOCK") else {
        println!("skipped: SCRUPLE_TOX_BLOCK does not name tox-block's model file");
        return;
    };
    let checkpoint = Checkpoint::open(PathBuf::from(path)).unwrap();
    let embedding = checkpoint.tensors().find(|tensor| tensor.name().ends_with("embeddings:0")).unwrap();
    assert_eq!(embedding.shape(), [20_000, 50]);
    assert!(checkpoint.tensors().all(|tensor| tensor.nonfinite().is_none()));
}
