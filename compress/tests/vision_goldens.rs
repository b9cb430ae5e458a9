//! Tiny vision transformers and residual nets, held to what `transformers` and torch give
//! (`fixtures/interop/make_encoder_goldens.py`).

#![allow(clippy::print_stdout)] // differences, shown by `--nocapture`

use std::{
    fs,
    path::{Path, PathBuf},
};

use scruple_compress::model::{ResNet, Vit, vit::Images};
use scruple_weights::Checkpoint;
use serde::Deserialize;
use serde_json::{Value, json};

/// Largest accepted difference of a hidden state or logit, relative to the largest of its image. Both sides compute in
/// f32 but add in another order: 2e-6 is seen; the goldens are rounded to 5e-7.
const MAX_RELATIVE_DIFFERENCE: f32 = 2e-5;

/// Smallest relative difference that a changed setting must make, so that the goldens can tell.
const MIN_RELATIVE_CHANGE: f32 = 2e-3;

const VITS: [&str; 5] = ["vit", "vit-classifier", "dinov2", "dinov2-classifier", "dinov2-registers"];

const RESNETS: [&str; 2] = ["resnet-a", "resnet-b"];

#[derive(Deserialize)]
struct Golden {
    images: Vec<Image>,
    #[serde(default)]
    changes: Vec<Value>,
}

#[derive(Deserialize)]
struct Image {
    height: usize,
    width: usize,
    pixels: Vec<f32>, // (3, height, width)
    hidden: Option<Vec<Vec<f32>>>,
    logits: Option<Vec<f32>>,
}

impl Image {
    fn view(&self) -> Images<'_> {
        Images { pixels: &self.pixels, channels: 3, size: (self.height, self.width) }
    }
}

fn vision() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/vision")
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

fn golden(name: &str) -> Golden {
    read_json(&vision().join(name).join("golden.json"))
}

fn checkpoint(name: &str) -> Checkpoint {
    Checkpoint::open(vision().join(name)).unwrap()
}

fn relative_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    // In the total order a NaN is the largest, so that none passes.
    found.iter().zip(expected).map(|(a, b)| (a - b).abs() / largest).max_by(f32::total_cmp).unwrap_or(f32::NAN)
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    let difference = relative_difference(found, expected);
    println!("{what}: largest relative difference {difference:.2e}");
    assert!(difference <= MAX_RELATIVE_DIFFERENCE, "{what}: off by {difference:.2e}");
}

#[test]
fn hidden_states_and_logits_equal_the_goldens_for_every_size_of_image() {
    for name in VITS {
        let (model, golden) = (Vit::open(&checkpoint(name)).unwrap(), golden(name));
        for image in &golden.images {
            let what = format!("{name} at {} by {}", image.height, image.width);
            let found = model.hidden(image.view()).unwrap().to_vec2::<f32>().unwrap();
            assert_close(&what, &found.concat(), &image.hidden.as_ref().unwrap().concat());
            assert_eq!(model.labels().is_some(), image.logits.is_some());
            if let Some(logits) = &image.logits {
                let found = model.logits(image.view()).unwrap().to_vec2::<f32>().unwrap();
                assert_close(&format!("{what}, logits"), &found[0], logits);
            }
        }
    }
}

#[test]
fn images_do_not_see_each_other_and_threads_do_not_show() {
    for name in ["vit-classifier", "dinov2-registers"] {
        let (model, golden) = (Vit::open(&checkpoint(name)).unwrap(), golden(name));
        let image = &golden.images[0];
        let mut pixels = image.pixels.clone();
        pixels.extend(image.pixels.iter().rev());
        pixels.extend(&image.pixels);
        let images = Images { pixels: &pixels, ..image.view() };
        let [one, two] = [1, 2].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| model.logits(images).unwrap().to_vec2::<f32>().unwrap())
        });
        assert!(one == two, "{name}");
        assert_close(name, &one[0], image.logits.as_ref().unwrap());
        assert_close(name, &one[2], image.logits.as_ref().unwrap());
        assert!(relative_difference(&one[1], image.logits.as_ref().unwrap()) > MIN_RELATIVE_CHANGE);
    }
}

/// The folder `name` copied, with `changes` put into its config.
fn changed(name: &str, changes: &Value) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let from = vision().join(name);
    fs::copy(from.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    let mut config: Value = read_json(&from.join("config.json"));
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    copy
}

#[test]
fn the_goldens_can_tell_a_setting_that_is_ignored() {
    for name in VITS {
        let golden = golden(name);
        assert!(!golden.changes.is_empty());
        for change in &golden.changes {
            let folder = changed(name, change);
            let model = Vit::open(&Checkpoint::open(folder.path()).unwrap()).unwrap();
            let image = &golden.images[0];
            let found = model.hidden(image.view()).unwrap().to_vec2::<f32>().unwrap().concat();
            let difference = relative_difference(&found, &image.hidden.as_ref().unwrap().concat());
            assert!(difference > MIN_RELATIVE_CHANGE, "{name} with {change}: {difference}");
        }
    }
}

#[test]
fn what_cannot_run_is_refused_in_one_sentence() {
    for (name, change, part) in [
        ("vit", json!({ "model_type": "swin" }), "`swin` is not a vision transformer that runs here"),
        ("vit", json!({ "patch_size": 13 }), "`image_size` (12, 12) is smaller than `patch_size` (13, 13)"),
        ("vit", json!({ "patch_size": [4, 4, 4] }), "`patch_size` should be a size from 1 to 65536, or a list of two"),
        ("vit", json!({ "image_size": 16 }), "shape [1, 10, 24], expected [1, 17, 24]"),
        ("dinov2", json!({ "mlp_ratio": 1e30 }), "`mlp_ratio` makes an MLP of width 24000"),
        ("dinov2", json!({ "use_swiglu_ffn": true }), "mlp.weights_in"),
        ("dinov2-registers", json!({ "num_register_tokens": 4 }), "shape [1, 3, 24], expected [1, 4, 24]"),
    ] {
        let folder = changed(name, &change);
        let error = Vit::open(&Checkpoint::open(folder.path()).unwrap()).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    }
    let model = Vit::open(&checkpoint("vit")).unwrap();
    let error = model.hidden(Images { pixels: &[0.0; 9], channels: 1, size: (3, 3) }).unwrap_err().to_string();
    assert!(error.contains("takes images of 3 channels, found 1"), "{error}");
    let error = model.hidden(Images { pixels: &[0.0; 27], channels: 3, size: (3, 3) }).unwrap_err().to_string();
    assert!(error.contains("images of (3, 3) are smaller than a patch of (4, 4)"), "{error}");
    let error = model.logits(golden("vit").images[0].view()).unwrap_err().to_string();
    assert!(error.ends_with("the model has no classification head"), "{error}");
}

#[test]
fn residual_nets_with_either_shortcut_equal_the_goldens_folded_or_not() {
    for name in RESNETS {
        let golden = golden(name);
        for fold in [false, true] {
            let mut model = ResNet::open(&checkpoint(name)).unwrap();
            if fold {
                model.fold_norms();
            }
            for image in &golden.images {
                let found = model.logits(image.view()).unwrap();
                let what = format!("{name} at {} by {}, folded: {fold}", image.height, image.width);
                assert_close(&what, &found[0], image.logits.as_ref().unwrap());
            }
        }
    }
    let model = ResNet::open(&checkpoint("resnet-a")).unwrap();
    assert_eq!((model.depth(), model.stages(), model.classes()), (10, [1, 2, 1].as_slice(), 5));
}

#[test]
fn every_tensor_of_a_residual_net_is_read() {
    for name in RESNETS {
        let golden = golden(name);
        let image = &golden.images[0];
        let bytes = fs::read(vision().join(name).join("model.safetensors")).unwrap();
        let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        for (tensor, entry) in header.as_object().unwrap() {
            if tensor.ends_with("num_batches_tracked") {
                continue; // counts the training steps
            }
            let start = 8 + header_len + entry["data_offsets"][0].as_u64().unwrap() as usize;
            let end = 8 + header_len + entry["data_offsets"][1].as_u64().unwrap() as usize;
            let mut other = bytes.clone();
            for value in other[start..end].chunks_exact_mut(4) {
                let changed = f32::from_le_bytes(value.try_into().unwrap()) * 1.25 + 0.25;
                value.copy_from_slice(&changed.to_le_bytes());
            }
            fs::write(&file, other).unwrap();
            let model = ResNet::open(&Checkpoint::open(folder.path()).unwrap()).unwrap();
            let difference =
                relative_difference(&model.logits(image.view()).unwrap()[0], image.logits.as_ref().unwrap());
            assert!(difference > MIN_RELATIVE_CHANGE, "{name}: `{tensor}` does not matter ({difference})");
        }
    }
}

#[test]
fn images_of_other_channels_and_other_nets_are_refused() {
    let model = ResNet::open(&checkpoint("resnet-a")).unwrap();
    let error = model.logits(Images { pixels: &[0.0; 16], channels: 1, size: (4, 4) }).unwrap_err().to_string();
    assert!(error.contains("takes images of 3 channels, found 1 channels"), "{error}");
    let error = ResNet::open(&checkpoint("vit")).unwrap_err().to_string();
    assert!(error.contains("not those of a residual net of the CIFAR kind"), "{error}");
}
