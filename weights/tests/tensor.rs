//! A tensor read back through a checkpoint: rows, values that are not finite, hashes.

use std::path::Path;

use half::bf16;
use scruple_weights::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, WriterOptions, digest};

/// A checkpoint of `tensors`, sharded after `max_shard_bytes`.
fn checkpoint(out: &Path, tensors: &[(&str, Dtype, &[usize], Vec<u8>)], max_shard_bytes: u64) -> Checkpoint {
    let specs = tensors.iter().map(|(name, dtype, shape, _)| TensorSpec::new(*name, *dtype, *shape)).collect();
    let options = WriterOptions { max_shard_bytes, ..WriterOptions::default() };
    let writer = CheckpointWriter::create(out, specs, options).unwrap();
    for (name, _, _, bytes) in tensors {
        writer.write(name, bytes).unwrap();
    }
    writer.finish().unwrap();
    Checkpoint::open(out).unwrap()
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn rows_are_read_as_f32_and_bf16() {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..24).map(|i| i as f32 / 3.0).collect();
    let tensors = [
        ("x", Dtype::F32, &[3, 2, 4][..], f32_bytes(&values)),
        ("scalar", Dtype::F32, &[], f32_bytes(&[7.0])),
        ("empty", Dtype::F32, &[3, 0], vec![]),
    ];
    let checkpoint = checkpoint(&folder.path().join("model"), &tensors, 1 << 20);
    let x = checkpoint.tensor("x").unwrap();
    assert_eq!(x.rows(), (6, 4));
    let mut rows = [0.0; 8];
    x.read_rows(2..4, &mut rows).unwrap();
    assert_eq!(rows, values[8..16]);
    let mut rows = [bf16::ZERO; 8];
    x.read_rows_bf16(2..4, &mut rows).unwrap();
    assert_eq!(rows.map(bf16::to_bits), std::array::from_fn(|i| bf16::from_f32(values[8 + i]).to_bits()));
    assert_eq!(checkpoint.tensor("scalar").unwrap().to_f32().unwrap(), [7.0]);
    let empty = checkpoint.tensor("empty").unwrap();
    assert!(empty.to_f32().unwrap().is_empty() && empty.nonfinite().is_none());
    x.release();
    checkpoint.release_all();
    assert_eq!(x.to_f32().unwrap(), values); // comes back from the file
}

#[test]
fn a_value_that_is_not_finite_is_found_with_its_index() {
    let folder = tempfile::tempdir().unwrap();
    let mut values = vec![1.0; 10_000];
    values[9_000] = f32::NEG_INFINITY;
    values[9_001] = f32::NAN;
    let tensors = [("x", Dtype::F32, &[100, 100][..], f32_bytes(&values))];
    let checkpoint = checkpoint(&folder.path().join("model"), &tensors, 1 << 20);
    assert_eq!(checkpoint.tensor("x").unwrap().nonfinite(), Some((9_000, f32::NEG_INFINITY)));
}

#[test]
fn a_fingerprint_depends_on_the_tensors_and_on_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let a = ("a", Dtype::F32, &[2][..], f32_bytes(&[1.0, 2.0]));
    let b = ("b", Dtype::U8, &[3][..], vec![1, 2, 3]);
    let fingerprint = |name: &str, tensors: &[_], max_shard_bytes| {
        checkpoint(&folder.path().join(name), tensors, max_shard_bytes).fingerprint()
    };
    let all = fingerprint("one", &[a.clone(), b.clone()], 1000);
    assert_eq!(all, fingerprint("other order, two shards", &[b.clone(), a.clone()], 1));
    for (name, changed) in [
        ("bytes", ("b", Dtype::U8, &[3][..], vec![1, 2, 4])),
        ("name", ("c", Dtype::U8, &[3], vec![1, 2, 3])),
        ("type", ("b", Dtype::I8, &[3], vec![1, 2, 3])),
        ("shape", ("b", Dtype::U8, &[1, 3], vec![1, 2, 3])),
    ] {
        assert_ne!(all, fingerprint(name, &[a.clone(), changed], 1000), "{name}");
    }
    // The configuration counts where it is asked for, its keys' order and spaces do not.
    let configured = |name: &str, config: &str| {
        let folder = folder.path().join(name);
        checkpoint(&folder, &[a.clone(), b.clone()], 1000);
        std::fs::write(folder.join("config.json"), config).unwrap();
        Checkpoint::open(&folder).unwrap().fingerprint_with_config().unwrap()
    };
    let base = configured("base", r#"{"rope": {"theta": 1e4, "type": "x"}, "layers": 2}"#);
    assert!(base.starts_with(&all));
    assert_eq!(configured("sorted", r#"{"layers":2,"rope":{"type":"x","theta":1e4}}"#), base);
    assert_ne!(configured("theta", r#"{"rope": {"theta": 1e5, "type": "x"}, "layers": 2}"#), base);
    // printf abc | sha256sum
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(digest::sha256(b"abc"), abc);
    std::fs::write(folder.path().join("abc"), "abc").unwrap();
    assert_eq!(digest::sha256_file(&folder.path().join("abc")).unwrap(), abc);
}
