//! Trained residual nets on the CIFAR-10 test images, where `SCRUPLE_DATA` names the data pack: how many of the first
//! images they get right is known from torch.

#![allow(clippy::print_stdout)] // what was measured or skipped

use std::path::PathBuf;

use scruple_compress::{
    data::cifar::{CHANNELS, Cifar10, SIDE},
    model::{ResNet, labels::argmax, vit::Images},
};
use scruple_weights::Checkpoint;

/// Mean and deviation of the channels the nets were trained with: ImageNet's.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// Images run at a time.
const BATCH: usize = 100;

/// (file, depth, right of the first 200, of the first 1,000, of all 10,000).
const NETS: [(&str, usize, usize, usize, usize); 4] = [
    ("resnet20-12fca82f.th", 20, 181, 914, 9_173),
    ("resnet32-d509ac18.th", 32, 185, 928, 9_263),
    ("resnet44-014dd654.th", 44, 184, 933, 9_310),
    ("resnet56-4bfd9763.th", 56, 189, 926, 9_339),
];

/// Of all 10,000 images, so many may fall on the other side: sums in another order tip those that are nearly undecided.
const MAX_TIPPED: usize = 3;

/// Right answers of the net of `depth` on the first `count` images, or nothing where the data is not there.
fn right(depth: usize, count: usize) -> Option<usize> {
    let Some(data) = std::env::var_os("SCRUPLE_DATA").map(PathBuf::from) else {
        println!("skipped: SCRUPLE_DATA does not name the data pack");
        return None;
    };
    let (file, ..) = NETS.iter().find(|net| net.1 == depth)?;
    let checkpoint = Checkpoint::open(data.join("models/resnet_cifar10").join(file)).unwrap();
    let mut model = ResNet::open(&checkpoint).unwrap();
    assert_eq!(model.depth(), depth);
    model.fold_norms();
    let images = Cifar10::read(&data.join("images/cifar10/test.bin.gz"), Some(count)).unwrap();
    assert_eq!(images.len(), count);
    let mut right = 0;
    for first in (0..count).step_by(BATCH) {
        let range = first..(first + BATCH).min(count);
        let labels = &images.labels()[range.clone()];
        let pixels = images.normalised(range, MEAN, DEVIATION);
        let logits = model.logits(Images { pixels: &pixels, channels: CHANNELS, size: (SIDE, SIDE) }).unwrap();
        right += logits.iter().zip(labels).filter(|(logits, label)| argmax(logits) == usize::from(**label)).count();
    }
    println!("ResNet-{depth}: {right} right of {count}");
    Some(right)
}

fn check(depth: usize, count: usize) {
    let Some(found) = right(depth, count) else { return };
    let (_, _, of_200, of_1000, of_all) = NETS.iter().find(|net| net.1 == depth).unwrap();
    match count {
        200 => assert_eq!(found, *of_200),
        1_000 => assert_eq!(found, *of_1000),
        10_000 => assert!(found.abs_diff(*of_all) <= MAX_TIPPED, "{found} right, expected {of_all}"),
        other => panic!("no count is known for {other} images"),
    }
}

/// The first `few` images, or all where `SCRUPLE_ALL_IMAGES` is set (`just resnet-all`).
fn check_first(depth: usize, few: usize) {
    check(depth, if std::env::var_os("SCRUPLE_ALL_IMAGES").is_some() { 10_000 } else { few });
}

#[test]
fn resnet20_gets_the_known_count_right() {
    check_first(20, 1_000);
}

#[test]
fn resnet32_gets_the_known_count_right() {
    check_first(32, 200);
}

#[test]
fn resnet44_gets_the_known_count_right() {
    check_first(44, 200);
}

#[test]
fn resnet56_gets_the_known_count_right() {
    check_first(56, 200);
}
