use std::io::Write;

use super::*;
use crate::data::glyphs::glyphs;

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// Writes files into a folder and reads the first.
fn read(files: &[(&str, Vec<u8>)]) -> Result<ImageSet> {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    ImageSet::read(&folder.path().join(files[0].0), None)
}

fn idx(dimensions: &[u32], values: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0, 8, dimensions.len() as u8];
    dimensions.iter().for_each(|size| out.extend(size.to_be_bytes()));
    out.extend(values);
    out
}

fn npy(descr: &str, shape: &str, values: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.bytes());
    out.extend(values);
    out
}

fn cifar(labels: &[&[u8]]) -> Vec<u8> {
    let record = |(i, label): (usize, &&[u8])| {
        let pixels = (0..3072usize).map(move |p| (p * 7 + i * 31) as u8);
        label.iter().copied().chain(pixels).collect::<Vec<u8>>()
    };
    labels.iter().enumerate().flat_map(record).collect()
}

#[test]
fn every_form_gives_its_images_plain_or_gzipped() {
    let pixels: Vec<u8> = (0..24).collect();
    let images = idx(&[2, 3, 4], &pixels);
    let labels = idx(&[2], &[7, 0]);
    for (name, beside, images, labels) in [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", images.clone(), labels.clone()),
        ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", gzipped(&images), gzipped(&labels)),
        ("a-images.gz", "a-labels", gzipped(&images), labels.clone()),
    ] {
        let set = read(&[(name, images), (beside, labels)]).unwrap();
        assert_eq!((set.len(), set.height, set.width, set.channels, set.white), (2, 3, 4, 1, 255));
        assert_eq!((&set.labels[..], set.image(1)), (&[7u8, 0][..], &pixels[12..]));
    }

    let set = read(&[("batch.bin", cifar(&[&[3], &[9]]))]).unwrap();
    assert_eq!((set.classes, &set.labels[..]), (10, &[3u8, 9][..]));
    // Red, green and blue of the second pixel of the second image.
    assert_eq!(set.image(1)[3..6], [7 + 31, (1025 * 7 + 31) as u8, (2049 * 7 + 31) as u8]);
    let set = read(&[("train.bin", gzipped(&cifar(&[&[19, 99], &[0, 5]])))]).unwrap();
    assert_eq!((set.classes, &set.labels[..]), (100, &[99u8, 5][..]));

    let digits = "0,1,2,16,5,6,7,8,3\n1,1,1,1,1,1,1,1,1\n".replace("0,1,2,16,5,6,7,8,", &"0,16,".repeat(32));
    let digits = digits.replace("1,1,1,1,1,1,1,1,1", &format!("{}9", "4.0,".repeat(64)));
    let set = read(&[("digits.csv", digits.into_bytes())]).unwrap();
    assert_eq!((set.height, set.white, &set.labels[..]), (8, 16, &[3u8, 9][..]));
    assert_eq!(set.image(0)[..2], [0, 16]);

    let set = read(&[
        ("fog.npy", npy("|u1", "(2, 1, 2, 3)", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])),
        ("labels.npy", npy("<i8", "(2,)", &[4, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0])),
    ]);
    let set = set.unwrap();
    assert_eq!((set.width, set.image(1), &set.labels[..]), (2, &[7u8, 8, 9, 10, 11, 12][..], &[4u8, 9][..]));

    let set = ImageSet::of_glyphs(glyphs(1, 20, 16));
    assert_eq!((set.len(), set.classes, set.values()), (20, 10, 256));
}

#[test]
fn what_is_wrong_with_a_file_is_one_sentence() {
    let images = idx(&[2, 3, 4], &[0; 24]);
    let name = "x-images-idx3-ubyte";
    let label_name = "x-labels-idx1-ubyte";
    let good_labels = idx(&[2], &[1, 2]);
    let with_labels = |labels: Vec<u8>| vec![(name, images.clone()), (label_name, labels)];
    let mut kind = images.clone();
    kind[2] = 0x0d;
    let mut huge = images.clone();
    huge[4..16].fill(0xff);
    for (files, part) in [
        (vec![(name, kind), (label_name, good_labels.clone())], "IDX values of kind 0x0d, expected 0x08"),
        (
            vec![(name, images[..30].to_vec()), (label_name, good_labels.clone())],
            "breaks off: 2 images of 3 × 4 pixels take 24 bytes, found 14",
        ),
        (vec![(name, [&images[..], &[1]].concat()), (label_name, good_labels.clone())], "goes on after its end"),
        (vec![(name, huge), (label_name, good_labels.clone())], "claims 4294967295 images"),
        (vec![(name, images[..6].to_vec())], "breaks off in its header of 3 dimensions"),
        (vec![(name, idx(&[2, 12], &[0; 24]))], "has 2 dimensions, expected 3"),
        (vec![(label_name, good_labels.clone())], "holds labels (one dimension), not images"),
        (vec![("pictures", images.clone())], "is not called …images-idx3…"),
        (with_labels(idx(&[2], &[1, 10])), "x-labels-idx1-ubyte: image 2 has label 10, expected 0 to 9"),
        (with_labels(idx(&[3], &[1, 2, 3])), "holds 3 labels for 2 images"),
        (with_labels(idx(&[2], &[1])), "breaks off: 2 labels take 2 bytes, found 1"),
        (with_labels(b"<html>".to_vec()), "begins with [3c, 68, 74, 6d], expected IDX labels"),
        (vec![("a.bin", cifar(&[&[3], &[10]]))], "image 2 has label 10, expected 0 to 9"),
        (vec![("a.bin", cifar(&[&[3], &[9]])[..4000].to_vec())], "holds 4000 bytes, beginning with [03, 00, 07, 0e]"),
        (vec![("a.bin", Vec::new())], "holds 0 bytes"),
        (vec![("a.bin", b"<html>".to_vec())], "neither IDX, a numpy array nor comma-separated values"),
        (vec![("a.bin", gzipped(&cifar(&[&[3]]))[..200].to_vec())], "cannot read the images"),
        (vec![("d.csv", b"1,2,3,4,5\n1,2,3,4\n".to_vec())], "line 2: has 4 values, the first line has 5"),
        (vec![("d.csv", b"1,2,3,4,11\n".to_vec())], "line 1: has label 11, expected 0 to 9"),
        (vec![("d.csv", b"1,2,3,300,1\n".to_vec())], "line 1: `300` is not a whole number of 0 to 255"),
        (vec![("d.csv", b"1,2,3,4,5,6\n".to_vec())], "has 5 values and a label a line, expected a square"),
        (vec![("a.npy", npy("<f4", "(1, 1, 1, 1)", &[0; 4]))], "values of type `<f4`, expected bytes"),
        (vec![("a.npy", npy("|u1", "(4,)", &[0; 4]))], "has shape [4], expected (images, height, width, channels)"),
        (
            vec![("a.npy", npy("|u1", "(1, 1, 1, 3)", &[0; 2]))],
            "breaks off: 1 images of 1 × 1 × 3 values take 3 bytes, found 2",
        ),
        (vec![("a.npy", npy("|u1", "(1, 1, 1, 1)", &[0]))], "labels.npy: cannot open the images"),
    ] {
        let error = read(&files).unwrap_err().to_string();
        assert!(error.contains(files[0].0) || error.contains("labels"), "{error}");
        assert!(error.contains(part), "{error}, expected {part}");
    }
}

#[test]
fn images_are_moved_turned_and_scaled() {
    let set = ImageSet {
        height: 2,
        width: 3,
        channels: 1,
        classes: 2,
        white: 10,
        pixels: vec![0, 1, 2, 3, 4, 5],
        labels: vec![0],
    };
    let scaling = Scaling { mean: vec![0.0], deviation: vec![0.1] };
    let written = |down, right, flipped| {
        let mut out = vec![f32::NAN; 6];
        set.write(0, &scaling, Placement { down, right, flipped }, &mut out);
        out.iter().map(|value| value.round() as u8).collect::<Vec<u8>>()
    };
    assert_eq!(written(0, 0, false), [0, 1, 2, 3, 4, 5]);
    assert_eq!(written(0, 0, true), [2, 1, 0, 5, 4, 3]);
    assert_eq!(written(1, 0, false), [0, 0, 0, 0, 1, 2]);
    assert_eq!(written(-1, 1, false), [0, 3, 4, 0, 0, 0]);
    // First moved, then turned.
    assert_eq!(written(0, 1, true), [1, 0, 0, 4, 3, 0]);
    let scaling = set.scaling();
    assert!(
        (scaling.mean[0] - 0.25).abs() < 1e-6 && (scaling.deviation[0] - (35.0f32 / 12.0).sqrt() / 10.0).abs() < 1e-6
    );
    let (first, second) = ImageSet::of_glyphs(glyphs(1, 30, 16)).split(10, 3).unwrap();
    assert_eq!((first.len(), second.len()), (20, 10));
}
