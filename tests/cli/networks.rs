//! Encoders and vision nets: texts to vectors and classes, images to classes.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;

use crate::{
    scruple,
    support::{Model, Place, Run, assert_same_files, json_file, program},
};

/// Largest difference between a number printed and the golden's: f32 sums in another order, and six digits kept.
const MAX_DIFFERENCE: f64 = 1e-5;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn texts(golden: &Value) -> String {
    golden["texts"].as_array().unwrap().iter().map(|entry| format!("{}\n", entry["text"].as_str().unwrap())).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() < MAX_DIFFERENCE, "{a} for {b}");
    }
}

#[test]
fn embed_prints_one_vector_a_line_from_a_file_or_standard_input() {
    let place = Place::new();
    let model = fixture("encoders/bert");
    let golden = json_file(&model.join("golden.json"));
    let file = place.file("texts.txt", texts(&golden));
    let run = scruple!["embed", &model, "--text", &file].succeeds();
    assert!(run.stderr.contains("2 of 4 texts were cut to the 12 tokens the model takes"), "{}", run.stderr);
    let lines: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let entries = golden["texts"].as_array().unwrap();
    assert_eq!(lines.len(), entries.len());
    for (line, entry) in lines.iter().zip(entries) {
        assert_close(&numbers(line), &numbers(&entry["embedding"]));
    }

    let mut child = program()
        .args(["embed", "--stdin"])
        .arg(&model)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(texts(&golden).as_bytes()).unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, run.stdout.as_bytes());

    let record = scruple!["embed --json", &model, "--text", &file].json();
    assert_eq!(record["dimensions"], 24);
    assert_eq!((&record["pooling"], &record["normalised"]), (&"mean".into(), &true.into()));
    assert_eq!((record["texts"].as_u64(), record["cut"].as_u64()), (Some(4), Some(2)));
    for (found, line) in record["embeddings"].as_array().unwrap().iter().zip(&lines) {
        assert_eq!(found, line);
    }
}

#[test]
fn embed_writes_the_same_array_whatever_the_threads() {
    let place = Place::new();
    let model = fixture("encoders/mpnet");
    fs::create_dir(place.path("model")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(model.join(name), place.path("model").join(name)).unwrap();
    }
    fs::copy(fixture("encoders/bert/tokenizer.json"), place.path("model/tokenizer.json")).unwrap();
    let file = place.file("texts.txt", "a lemon is sour\nhoney tea\n\nthe warm coffee tastes very cold\n");
    for threads in ["1", "2"] {
        let run = scruple!["embed --threads", threads, place.path("model"), "--text", &file, "-o", place.out(threads)];
        assert_eq!(run.succeeds().stdout, "");
    }
    assert_same_files(&place.out("1"), &place.out("2"));
    let bytes = fs::read(place.out("1").join("embeddings.npy")).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!(bytes.len() - header, 4 * 4 * 24);
    let rows: Vec<f64> =
        bytes[header..].chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
    for row in rows.chunks(24) {
        assert!((row.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-6);
    }
    let record = json_file(&place.out("1").join("embed.json"));
    assert_eq!((record["texts"].as_u64(), record["model_type"].as_str()), (Some(4), Some("mpnet")));
}

#[test]
fn classify_gives_texts_labels_with_probabilities() {
    let place = Place::new();
    let model = fixture("encoders/bert-classifier");
    let golden = json_file(&model.join("golden.json"));
    let file = place.file("texts.txt", texts(&golden));
    let record = scruple!["classify --json", &model, "--text", &file].json();
    let labels = ["sour", "sweet", "bitter"];
    for (answer, entry) in record["answers"].as_array().unwrap().iter().zip(golden["texts"].as_array().unwrap()) {
        let logits = numbers(&entry["logits"]);
        let total: f64 = logits.iter().map(|x| x.exp()).sum();
        let scores: Vec<f64> = logits.iter().map(|x| x.exp() / total).collect();
        assert_close(&numbers(&answer["scores"]), &scores);
        let best = (0..3).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
        assert_eq!(answer["label"], labels[best]);
    }
    assert!(record.get("accuracy").is_none());
    let run = scruple!["classify", &model, "--text", &file, "--limit 2"].succeeds();
    let first = &record["answers"][0];
    let expected = format!("{}\t{:.4}", first["label"].as_str().unwrap(), first["score"].as_f64().unwrap());
    assert_eq!(run.stdout.lines().count(), 2);
    assert_eq!(run.stdout.lines().next().unwrap(), expected);
}

/// CIFAR-10 records with these labels, of pixels that differ from image to image.
fn cifar(labels: &[u8]) -> Vec<u8> {
    let record = |(image, &label): (usize, &u8)| {
        let pixels = (0..3072).map(move |pixel| ((pixel * (image + 3)) / 7 + 41 * image) as u8);
        std::iter::once(label).chain(pixels)
    };
    labels.iter().enumerate().flat_map(record).collect()
}

#[test]
fn classify_counts_what_is_right_among_images_with_labels() {
    let place = Place::new();
    let model = fixture("vision/vit-classifier");
    let names = json_file(&model.join("config.json"))["id2label"].clone();
    let first = place.file("first.bin", cifar(&[0; 12]));
    let record = scruple!["classify --json", &model, "--images", &first].json();
    let guesses: Vec<u8> = record["answers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|answer| (0..10).find(|class| names[class.to_string()] == answer["label"]).unwrap())
        .collect();
    assert_eq!(record["accuracy"]["right"].as_u64().unwrap() as usize, guesses.iter().filter(|g| **g == 0).count());

    // The same images under the labels the model gave them, but for two.
    let mut labels = guesses;
    labels[3] = (labels[3] + 1) % 10;
    labels[7] = (labels[7] + 1) % 10;
    let second = place.file("second.bin", cifar(&labels));
    let out = place.out("two");
    let run = scruple!["classify", &model, "--images", &second, "-o", &out].succeeds();
    assert!(run.stdout.contains("10 of 12") && run.stdout.contains("83.33"), "{}", run.stdout);
    let record = json_file(&out.join("classify.json"));
    assert_eq!(record["accuracy"]["right"], 10);
    let interval = numbers(&record["accuracy"]["interval"]);
    assert_close(&interval, &[0.551_969, 0.953_035]);
    let run = scruple!["classify --threads 2", &model, "--images", &second, "-o", place.out("again")];
    assert_eq!(run.succeeds().code, Some(0));
    assert_same_files(&out, &place.out("again"));

    // Other statistics of the pixels are other images.
    let other = scruple!["classify --json --mean 0.1,0.2,0.9 --std 1,1,1", &model, "--images", &second].json();
    assert_ne!(other["answers"], record["answers"]);
    let three = scruple!["classify --json --limit 3", &model, "--images", &second].json();
    assert_eq!(three["accuracy"]["of"], 3);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let place = Place::new();
    let decoder = Model::tiny().write(place.path("decoder"));
    let text = place.file("texts.txt", "a lemon\n");
    let images = place.file("images.bin", cifar(&[1, 2]));
    let (bert, classifier) = (fixture("encoders/bert"), fixture("encoders/bert-classifier"));
    let (vit, wide) = (fixture("vision/vit"), fixture("vision/vit-classifier"));
    let net = fixture("vision/resnet-a");

    scruple!["embed", &decoder, "--text", &text]
        .refuses(&["the model is a decoder", "embed takes text encoders: bert"]);
    scruple!["embed", &net, "--text", &text].refuses(&["a residual net for images", "text encoders"]);
    scruple!["embed", &bert].refuses(&["no texts were given", "--text", "--stdin"]);
    scruple!["embed", &bert, "--text", place.path("none")].refuses(&["none: cannot read the texts"]);
    scruple!["embed", &bert, "--text", place.file("empty", "")].refuses(&["empty: there are no lines"]);
    scruple!["embed", &bert, "--text", place.file("latin", b"ab\xe9c")].refuses(&["latin: ", "not UTF-8 at byte 2"]);
    scruple!["embed", &bert, "--stdin --text", &text].refuses_the_arguments(&["--stdin", "--text"]);

    scruple!["classify", &decoder, "--text", &text].refuses(&["the model is a decoder", "it has no classes"]);
    scruple!["classify", &bert, "--text", &text].refuses(&["no classification head", "scruple embed"]);
    scruple!["classify", &classifier, "--images", &images].refuses(&["an encoder of text", "--text"]);
    scruple!["classify", &classifier].refuses(&["an encoder of text", "--stdin"]);
    scruple!["classify", &wide, "--text", &text].refuses(&["a vision transformer", "--images"]);
    scruple!["classify", &vit, "--images", &images].refuses(&["images of 12 × 12 pixels", "32 × 32"]);
    scruple!["classify", &net, "--images", &images]
        .refuses(&["5 classes (LABEL_0, LABEL_1, LABEL_2) are not CIFAR-10's"]);
    scruple!["classify", &wide, "--images", &text].refuses(&["texts.txt: image 1 has 8 of 3073 bytes"]);
    scruple!["classify --limit 0", &wide, "--images", &images].refuses(&["--limit should be at least 1"]);
    scruple!["classify --std 1,0,1", &wide, "--images", &images].refuses(&["--std should be three positive numbers"]);
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let place = Place::new();
    let from = fixture("encoders/bert");
    fs::create_dir(place.path("model")).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(from.join(name), place.path("model").join(name)).unwrap();
    }
    let mut bytes = fs::read(from.join("model.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let name = "encoder.layer.1.output.dense.weight";
    let start = 8 + header_len + header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(place.path("model/model.safetensors"), bytes).unwrap();
    let run: Run = scruple!["embed", place.path("model"), "--text", place.file("texts.txt", "honey\n")];
    run.refuses(&[name]);
}
