//! Trained residual nets through the training engine's forward pass, where `SCRUPLE_DATA` names the data pack: how many of
//! the first CIFAR-10 test images they get right is known from torch.

#![allow(clippy::print_stdout)] // what was measured or skipped

use std::path::PathBuf;

use scruple_compress::{
    data::images::{ImageSet, Scaling},
    nn::{Net, Spec, Weights, evaluate},
};
use scruple_weights::Checkpoint;

/// Images run at a time.
const BATCH: usize = 100;

/// (file, depth, right of the first 1,000, of all 10,000).
const NETS: [(&str, usize, usize, usize); 4] = [
    ("resnet20-12fca82f.th", 20, 914, 9_173),
    ("resnet32-d509ac18.th", 32, 928, 9_263),
    ("resnet44-014dd654.th", 44, 933, 9_310),
    ("resnet56-4bfd9763.th", 56, 926, 9_339),
];

/// So many images may fall on the other side: sums in another order tip those that are nearly undecided.
const MAX_TIPPED: usize = 3;

/// The first 1,000 images, or all where `SCRUPLE_ALL_IMAGES` is set (`just resnet-all`).
fn check(depth: usize) {
    let Some(data) = std::env::var_os("SCRUPLE_DATA").map(PathBuf::from) else {
        println!("skipped: SCRUPLE_DATA does not name the data pack");
        return;
    };
    let all = std::env::var_os("SCRUPLE_ALL_IMAGES").is_some();
    let (file, _, of_1000, of_all) = NETS.iter().find(|net| net.1 == depth).unwrap();
    let checkpoint = Checkpoint::open(data.join("models/resnet_cifar10").join(file)).unwrap();
    let images = ImageSet::read(&data.join("images/cifar10/test.bin.gz"), None).unwrap();
    assert_eq!((images.len(), images.classes), (10_000, 10));
    let images = if all { images } else { images.select(0..1_000) };
    // ImageNet's moments, with which the nets were trained.
    let scaling = Scaling { mean: vec![0.485, 0.456, 0.406], deviation: vec![0.229, 0.224, 0.225] };
    let spec = Spec::of_resnet(&checkpoint, (images.height, images.width)).unwrap();
    let mut net = Net::new(&spec, BATCH).unwrap();
    let weights = Weights::load(net.graph(), &checkpoint).unwrap();
    let found = evaluate(&mut net, &weights, &images, &scaling).unwrap();
    println!("ResNet-{depth}: {} right of {}, mean cost {:.4}", found.right, images.len(), found.loss);
    let expected = if all { *of_all } else { *of_1000 };
    assert!(found.right.abs_diff(expected) <= MAX_TIPPED, "{} right, expected {expected}", found.right);
}

#[test]
fn resnet20_in_the_engine_gets_the_known_count_right() {
    check(20);
}

#[test]
fn resnet32_in_the_engine_gets_the_known_count_right() {
    check(32);
}

#[test]
fn resnet44_in_the_engine_gets_the_known_count_right() {
    check(44);
}

#[test]
fn resnet56_in_the_engine_gets_the_known_count_right() {
    check(56);
}
