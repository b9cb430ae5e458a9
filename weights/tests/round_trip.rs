//! What is written is what is read, by us and by the reference implementation.

use std::{collections::BTreeMap, fs, path::Path};

use proptest::prelude::*;
use scruple_weights::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, WriterOptions};

type Tensors = Vec<(TensorSpec, Vec<u8>)>;

fn tensors() -> impl Strategy<Value = Tensors> {
    let tensor = (
        "[a-z\"\\\\é.]{1,12}",
        prop::sample::select(Dtype::SAFETENSORS.to_vec()),
        prop::collection::vec(0usize..5, 0..4),
        any::<u64>(),
    );
    prop::collection::vec(tensor, 0..12).prop_map(|list| {
        let by_name: BTreeMap<_, _> =
            list.into_iter().map(|(name, dtype, shape, seed)| (name, (dtype, shape, seed))).collect();
        let mut tensors: Tensors = by_name
            .into_iter()
            .map(|(name, (dtype, shape, seed))| {
                let block = dtype.block().0;
                let mut shape: Vec<usize> = shape;
                match shape.last_mut() {
                    Some(last) => *last *= block, // rows of packed elements are whole bytes
                    None if block > 1 => shape.push(block),
                    None => {}
                }
                let len = dtype.bytes(shape.iter().product()).unwrap();
                let bytes = (0..len as u64).map(|i| (seed.wrapping_mul(2 * i + 1) >> 31) as u8).collect();
                (TensorSpec::new(name, dtype, shape), bytes)
            })
            .collect();
        tensors.sort_by_key(|(_, bytes)| bytes.len() % 5); // not the order of the names
        tensors
    })
}

fn write(out: &Path, tensors: &Tensors, max_shard_bytes: u64) {
    let specs = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let metadata = BTreeMap::from([("maker".to_string(), "a \"test\"".to_string())]);
    let writer =
        CheckpointWriter::create(out, specs, WriterOptions { max_shard_bytes, metadata, ..WriterOptions::default() })
            .unwrap();
    for (spec, bytes) in tensors.iter().rev() {
        let middle = bytes.len() / 3;
        writer.write_at(&spec.name, middle as u64, &bytes[middle..]).unwrap();
        writer.write_at(&spec.name, 0, &bytes[..middle]).unwrap();
    }
    let written = writer.finish().unwrap();
    let size = |path: &std::path::PathBuf| fs::metadata(path).unwrap().len();
    assert_eq!(written.bytes, written.files.iter().map(size).sum::<u64>());
    assert_eq!(written.files.len(), fs::read_dir(out).unwrap().count());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_written_is_read(tensors in tensors(), max_shard_bytes in 1u64..200) {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("model");
        write(&out, &tensors, max_shard_bytes);

        let checkpoint = Checkpoint::open(&out).unwrap();
        prop_assert_eq!(checkpoint.tensors().len(), tensors.len());
        prop_assert_eq!(checkpoint.metadata()["maker"].as_str(), "a \"test\"");
        for (spec, bytes) in &tensors {
            let tensor = checkpoint.tensor(&spec.name).unwrap();
            prop_assert_eq!((tensor.dtype(), tensor.shape()), (spec.dtype, &spec.shape[..]));
            prop_assert_eq!(tensor.bytes(), &bytes[..]);
        }
        prop_assert_eq!(checkpoint.bytes(), tensors.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());

        let mut found = 0;
        for entry in fs::read_dir(&out).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().unwrap() != "safetensors" {
                continue;
            }
            let file = fs::read(&path).unwrap();
            let oracle = safetensors::SafeTensors::deserialize(&file).unwrap();
            for (name, view) in oracle.tensors() {
                let (spec, bytes) = tensors.iter().find(|(spec, _)| spec.name == name).unwrap();
                prop_assert_eq!(view.dtype().to_string(), spec.dtype.to_string());
                prop_assert_eq!(view.shape(), &spec.shape[..]);
                prop_assert_eq!(view.data(), &bytes[..]);
                let width = if spec.dtype.block().0 == 1 { spec.dtype.block().1 } else { 1 };
                prop_assert_eq!((view.data().as_ptr() as usize - file.as_ptr() as usize) % width, 0);
                found += 1;
            }
        }
        prop_assert_eq!(found, tensors.len());
    }

    #[test]
    fn the_reference_implementation_writes_what_we_read(tensors in tensors()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let views = tensors.iter().map(|(spec, bytes)| {
            let dtype = serde_json::from_str(&format!("\"{}\"", spec.dtype)).unwrap();
            (spec.name.clone(), safetensors::tensor::TensorView::new(dtype, spec.shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        for (spec, bytes) in &tensors {
            let tensor = checkpoint.tensor(&spec.name).unwrap();
            prop_assert_eq!((tensor.dtype(), tensor.shape(), tensor.bytes()), (spec.dtype, &spec.shape[..], &bytes[..]));
        }
    }
}
