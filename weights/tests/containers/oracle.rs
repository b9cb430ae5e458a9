//! Files written by PyTorch, NumPy and ONNX (`fixtures/containers/make.py`): names, types, shapes and bytes are theirs.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use scruple_weights::{Checkpoint, CheckpointWriter, Shard, TensorSpec, WriterOptions, digest, format};

type Expected = BTreeMap<String, BTreeMap<String, (String, Vec<usize>, String)>>;

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/containers")
}

fn expected() -> Expected {
    serde_json::from_slice(&fs::read(fixtures().join("expected.json")).unwrap()).unwrap()
}

#[test]
fn every_tensor_is_what_its_library_wrote() {
    let expected = expected();
    assert!(expected.len() >= 25);
    for (file, tensors) in expected {
        let checkpoint = Checkpoint::open(fixtures().join(&file)).unwrap();
        let mut found: BTreeMap<_, _> = checkpoint
            .tensors()
            .map(|tensor| {
                assert_eq!(tensor.bytes().len(), tensor.dtype().bytes(tensor.elements()).unwrap());
                (tensor.name().to_owned(), (tensor.dtype().to_string(), tensor.shape().to_vec(), tensor.sha256()))
            })
            .collect();
        assert_eq!(found.len(), checkpoint.tensors().len(), "{file}");
        if file == "script.jit" {
            // Attributes that are no parameters or buffers are found too; this module has none.
            found.retain(|name, _| tensors.contains_key(name));
        }
        assert_eq!(found.keys().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>(), "{file}");
        for (name, tensor) in tensors {
            assert_eq!(found[&name], tensor, "{file}: {name}");
        }
    }
}

#[test]
fn tensors_that_lie_in_the_file_are_not_copied() {
    let place = |file: &str, name: &str| {
        let path = fixtures().join(file);
        let shard = Shard::open(&path).unwrap();
        let tensor = format::read(&shard).unwrap().tensors.into_iter().find(|tensor| tensor.name() == name).unwrap();
        let file = shard.bytes().as_ptr_range();
        file.contains(&tensor.bytes().as_ptr())
    };
    for name in ["base", "rows", "one_row", "alias"] {
        assert!(place("views.pt", name) && place("views_legacy.pt", name), "{name}");
    }
    for name in ["transposed", "columns", "every_other", "permuted", "expanded", "channels_last"] {
        assert!(!place("views.pt", name) && !place("views_legacy.pt", name), "{name}");
    }
    assert!(!place("deflated.pt", "0.weight"));
    assert!(place("arrays.npz", "f4") && !place("arrays.npz", "big") && !place("arrays_compressed.npz", "f4"));
    assert!(place("graph.onnx", "raw") && place("graph.onnx", "floats") && !place("graph.onnx", "int8s"));
    assert!(place("llama2c.bin", "model.layers.1.self_attn.v_proj.weight"));
    assert!(!place("llama2c.bin", "model.layers.1.self_attn.k_proj.weight"));
}

#[test]
fn views_of_one_storage_share_its_bytes() {
    let checkpoint = Checkpoint::open(fixtures().join("views.pt")).unwrap();
    let at = |name: &str| checkpoint.tensor(name).unwrap().bytes().as_ptr() as usize;
    assert_eq!(at("base"), at("alias"));
    assert_eq!(at("rows"), at("base") + 2 * 5 * 4);
}

#[test]
fn metadata_say_what_was_looked_through_and_left_out() {
    let metadata = |file: &str| Checkpoint::open(fixtures().join(file)).unwrap().metadata().clone();
    let training = metadata("training.pt");
    for (key, value) in [
        ("container", "PyTorch"),
        ("looked_through", "state_dict"),
        ("common_prefix", "module."),
        ("epoch", "3"),
        ("best_prec1", "91.5"),
        ("arch", "tiny"),
    ] {
        assert_eq!(training[key], value);
    }
    assert_eq!(metadata("model_legacy.pt")["looked_through"], "model");
    assert!(!metadata("views.pt").contains_key("looked_through"));
    assert_eq!(metadata("script.jit")["container"], "TorchScript");
    assert!(metadata("with_objects.npz")["left_out"].contains("`bad` holds Python objects"));
    assert!(metadata("graph.onnx")["left_out"].contains("`words`, whose elements are texts"));
}

#[test]
fn a_llama2c_file_states_its_configuration() {
    for (file, tied) in [("llama2c.bin", true), ("llama2c_untied.bin", false)] {
        let checkpoint = Checkpoint::open(fixtures().join(file)).unwrap();
        let config = checkpoint.config().unwrap();
        assert_eq!(config["architectures"][0], "LlamaForCausalLM");
        for (key, value) in [("hidden_size", 8), ("intermediate_size", 6), ("num_hidden_layers", 2), ("head_dim", 4)] {
            assert_eq!(config[key], value, "{key}");
        }
        assert_eq!((&config["num_key_value_heads"], &config["vocab_size"]), (&1.into(), &5.into()));
        assert_eq!(config["tie_word_embeddings"], tied);
        assert_eq!(checkpoint.contains("lm_head.weight"), !tied);
    }
}

#[test]
fn a_fingerprint_does_not_depend_on_the_container() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["views.pt", "arrays.npz", "graph.onnx", "deflated.pt", "llama2c.bin"] {
        let checkpoint = Checkpoint::open(fixtures().join(file)).unwrap();
        let spec =
            |tensor: &scruple_weights::TensorView| TensorSpec::new(tensor.name(), tensor.dtype(), tensor.shape());
        let out = folder.path().join(file);
        let writer =
            CheckpointWriter::create(&out, checkpoint.tensors().map(spec).collect(), WriterOptions::default()).unwrap();
        for tensor in checkpoint.tensors() {
            tensor.will_need();
            writer.write(tensor.name(), tensor.bytes()).unwrap();
            tensor.release(); // bytes in memory must survive this
            assert_eq!(digest::sha256(tensor.bytes()), tensor.sha256());
        }
        writer.finish().unwrap();
        checkpoint.release_all();
        assert_eq!(Checkpoint::open(&out).unwrap().fingerprint(), checkpoint.fingerprint(), "{file}");
    }
}
