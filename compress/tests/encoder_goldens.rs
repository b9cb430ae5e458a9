//! Tiny encoders of every family, held to what `transformers` gives (`fixtures/interop/make_encoder_goldens.py`), and two
//! real sentence encoders where their folders are named.

#![allow(clippy::print_stdout)] // differences, shown by `--nocapture`

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use scruple_compress::model::{
    Encoder,
    any::{self, AnyModel, Kind},
    encoder::{FAMILIES, SentenceEncoder, distance_bucket},
};
use scruple_weights::Checkpoint;
use serde::Deserialize;
use serde_json::{Value, json};

/// Largest accepted difference of a hidden state, embedding or logit, relative to the largest of its kind. Both sides
/// compute in f32 but add in another order: 2e-6 is seen; the goldens are rounded to 5e-7.
const MAX_RELATIVE_DIFFERENCE: f32 = 2e-5;

/// Smallest relative difference that a changed setting must make, so that the goldens can tell: the exact and the tanh
/// form of GELU are this close.
const MIN_RELATIVE_CHANGE: f32 = 1e-4;

const CASES: [&str; 9] = [
    "bert",
    "bert-classifier",
    "roberta",
    "xlm-roberta-classifier",
    "distilbert",
    "distilbert-classifier",
    "mpnet",
    "mpnet-classifier",
    "roberta-classifier",
];

#[derive(Deserialize)]
struct Golden {
    sequences: Vec<Sequence>,
    changes: Vec<Value>,
    #[serde(default)]
    texts: Vec<TextGolden>,
    /// MPNet's bucket of each distance from −300 to 300.
    #[serde(default)]
    buckets: Vec<usize>,
}

#[derive(Deserialize)]
struct Sequence {
    ids: Vec<u32>,
    hidden: Option<Vec<Vec<f32>>>, // (ids, hidden)
    #[serde(default)]
    hidden_rows: BTreeMap<usize, Vec<f32>>,
    embedding: Vec<f32>,
    logits: Option<Vec<f32>>,
}

impl Sequence {
    /// Rows of the last hidden states, by position.
    fn rows(&self) -> Vec<(usize, &Vec<f32>)> {
        let whole = self.hidden.iter().flatten().enumerate();
        whole.chain(self.hidden_rows.iter().map(|(row, values)| (*row, values))).collect()
    }
}

#[derive(Deserialize)]
struct TextGolden {
    text: String,
    ids: Vec<u32>,
    embedding: Vec<f32>,
    logits: Option<Vec<f32>>,
}

fn encoders() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/encoders")
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

fn golden(name: &str) -> Golden {
    read_json(&encoders().join(name).join("golden.json"))
}

fn open(folder: &Path) -> Encoder {
    Encoder::open(&Checkpoint::open(folder).unwrap()).unwrap()
}

/// The largest difference relative to the largest magnitude of `expected`.
fn relative_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    // In the total order a NaN is the largest, so that none passes.
    found.iter().zip(expected).map(|(a, b)| (a - b).abs() / largest).max_by(f32::total_cmp).unwrap_or(f32::NAN)
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    let difference = relative_difference(found, expected);
    println!("{what}: largest relative difference {difference:.2e}");
    assert!(difference <= MAX_RELATIVE_DIFFERENCE, "{what}: off by {difference:.2e}, found {found:?}");
}

fn hidden(model: &Encoder, ids: &[u32]) -> Vec<Vec<f32>> {
    model.hidden(&[ids]).unwrap().to_vec2().unwrap()
}

#[test]
fn hidden_states_and_logits_equal_the_goldens() {
    for name in CASES {
        let (model, golden) = (open(&encoders().join(name)), golden(name));
        for (index, sequence) in golden.sequences.iter().enumerate() {
            let found = hidden(&model, &sequence.ids);
            for (row, expected) in sequence.rows() {
                assert_close(&format!("{name}, sequence {index}, row {row}"), &found[row], expected);
            }
            if let Some(logits) = &sequence.logits {
                let found = model.logits(&[&sequence.ids]).unwrap().to_vec2::<f32>().unwrap();
                assert_close(&format!("{name}, logits {index}"), &found[0], logits);
            }
        }
        let has_head = golden.sequences[0].logits.is_some();
        assert_eq!(model.labels().is_some(), has_head, "{name}");
    }
}

#[test]
fn sequences_laid_end_to_end_do_not_see_each_other() {
    for name in CASES {
        let (model, golden) = (open(&encoders().join(name)), golden(name));
        let ids: Vec<&[u32]> = golden.sequences.iter().map(|sequence| sequence.ids.as_slice()).collect();
        let together = model.hidden(&ids).unwrap().to_vec2::<f32>().unwrap();
        let mut at = 0;
        for sequence in &golden.sequences {
            for (row, expected) in sequence.rows() {
                assert_close(&format!("{name} among others, row {row}"), &together[at + row], expected);
            }
            at += sequence.ids.len();
        }
        assert_eq!(at, together.len());
        if golden.sequences[0].logits.is_some() {
            let found = model.logits(&ids).unwrap().to_vec2::<f32>().unwrap();
            for (found, sequence) in found.iter().zip(&golden.sequences) {
                assert_close(&format!("{name}, logits among others"), found, sequence.logits.as_ref().unwrap());
            }
        }
    }
}

#[test]
fn one_and_two_threads_give_the_same_bits() {
    for name in ["bert", "mpnet"] {
        let (model, golden) = (open(&encoders().join(name)), golden(name));
        let ids: Vec<&[u32]> = golden.sequences.iter().map(|sequence| sequence.ids.as_slice()).collect();
        let [one, two] = [1, 2].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| model.hidden(&ids).unwrap().to_vec2::<f32>().unwrap())
        });
        assert!(one == two, "{name}");
    }
}

/// The folder `name` copied, with `changes` put into its config.
fn changed(name: &str, changes: &Value) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let from = encoders().join(name);
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
    for name in CASES {
        let golden = golden(name);
        assert!(!golden.changes.is_empty());
        for change in &golden.changes {
            let folder = changed(name, change);
            let found = hidden(&open(folder.path()), &golden.sequences[0].ids);
            let rows = golden.sequences[0].rows();
            let largest = rows.iter().map(|(row, expected)| relative_difference(&found[*row], expected));
            let largest = largest.max_by(f32::total_cmp).unwrap();
            assert!(largest > MIN_RELATIVE_CHANGE, "{name} with {change}: {largest}");
        }
    }
}

#[test]
fn distances_fall_into_the_buckets_transformers_puts_them_into() {
    let expected = golden("mpnet").buckets;
    let found: Vec<usize> = (-300..=300).map(distance_bucket).collect();
    assert_eq!(found, expected);
}

#[test]
fn texts_are_tokenised_cut_pooled_and_classified_as_the_files_say() {
    for (name, cut, classes) in [
        // Twelve tokens by sentence_bert_config.json.
        ("bert", [false, false, true, true], None),
        ("bert-classifier", [false; 4], Some(&["sour", "sweet", "bitter"][..])),
        ("roberta-classifier", [false, false, false, true], Some(&["neutral", "toxic"])),
    ] {
        let checkpoint = Checkpoint::open(encoders().join(name)).unwrap();
        let model = SentenceEncoder::open(&checkpoint).unwrap();
        let golden = golden(name);
        let tokens: Vec<_> = golden.texts.iter().map(|golden| model.tokens(&golden.text).unwrap()).collect();
        let ids: Vec<&[u32]> = tokens.iter().map(|tokens| tokens.ids.as_slice()).collect();
        let embeddings = model.embed(&ids, |_| ()).unwrap();
        for (index, golden) in golden.texts.iter().enumerate() {
            assert_eq!(ids[index], golden.ids, "{name}: {}", golden.text);
            let found = &embeddings[index * model.dimensions()..][..model.dimensions()];
            assert_close(&format!("{name}, embedding {index}"), found, &golden.embedding);
            let length: f64 = found.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!((length - 1.0).abs() < 1e-6, "a normalised vector of length² {length}");
        }
        assert_eq!(tokens.iter().map(|tokens| tokens.cut).collect::<Vec<_>>(), cut, "{name}");
        if let Some(classes) = classes {
            let found = model.classify(&ids, |_| ()).unwrap();
            for (found, golden) in found.iter().zip(&golden.texts) {
                assert_close(&golden.text, found, golden.logits.as_ref().unwrap());
            }
            let labels = model.encoder().labels().unwrap();
            assert_eq!(labels.names, classes);
        }
    }
}

#[test]
fn embeddings_of_sequences_are_the_mean_of_their_states() {
    for name in CASES {
        let (model, golden) = (open(&encoders().join(name)), golden(name));
        for sequence in &golden.sequences {
            let states = hidden(&model, &sequence.ids);
            let width = states[0].len();
            let mean: Vec<f64> = (0..width).map(|i| states.iter().map(|row| f64::from(row[i])).sum::<f64>()).collect();
            let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
            let found: Vec<f32> = mean.iter().map(|x| (x / length) as f32).collect();
            assert_close(&format!("{name}, mean"), &found, &sequence.embedding);
        }
    }
}

#[test]
fn norms_named_as_tensorflow_does_are_read() {
    let from = encoders().join("bert");
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + header_len]).unwrap();
    let renamed = header.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
    assert_ne!(header, renamed);
    let folder = tempfile::tempdir().unwrap();
    fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
    let mut out = (renamed.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(renamed.as_bytes());
    out.extend_from_slice(&bytes[8 + header_len..]);
    fs::write(folder.path().join("model.safetensors"), out).unwrap();
    let ids = &golden("bert").sequences[0].ids;
    assert_eq!(hidden(&open(folder.path()), ids), hidden(&open(&from), ids));
}

#[test]
fn what_cannot_run_is_refused_in_one_sentence() {
    let refused = |name: &str, change: Value| {
        let folder = changed(name, &change);
        let error = Encoder::open(&Checkpoint::open(folder.path()).unwrap()).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    };
    for (name, change, part) in [
        ("bert", json!({ "model_type": "llama" }), "config.json: model type `llama` is not a text encoder"),
        ("bert", json!({ "num_attention_heads": 5 }), "`hidden_size` 24 is not a multiple of `num_attention_heads` 5"),
        ("bert", json!({ "is_decoder": true }), "only encoders run"),
        ("bert", json!({ "position_embedding_type": "relative_key" }), "\"relative_key\" is not supported"),
        ("bert", json!({ "num_hidden_layers": 3 }), "`encoder.layer.2."),
        ("bert", json!({ "vocab_size": 45 }), "shape [44, 24], expected [45, 24]"),
        ("bert", json!({ "hidden_act": "sine" }), "`hidden_act` should be \"gelu\", \"gelu_new\""),
        ("mpnet", json!({ "relative_attention_num_buckets": 16 }), "should be 32"),
        ("roberta", json!({ "pad_token_id": -1 }), "`pad_token_id` should be a token id, found -1"),
    ] {
        let error = refused(name, change);
        assert!(error.contains(part), "{error}");
    }
    let model = open(&encoders().join("roberta"));
    assert_eq!(model.config().max_tokens(), 38);
    for (ids, part) in [
        (vec![], "a sequence of 0 tokens was given, the model takes 1 to 38"),
        (vec![7; 39], "a sequence of 39 tokens was given, the model takes 1 to 38"),
        (vec![7, 44], "token id 44 is outside the vocabulary of 44"),
    ] {
        let error = model.hidden(&[&ids]).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let error = model.logits(&[[7u32]]).unwrap_err().to_string();
    assert!(error.ends_with("the model has no classification head"), "{error}");
}

#[test]
fn any_model_tells_the_kinds_apart_and_every_encoder_family_is_listed() {
    for (folder, expected) in [
        ("encoders/bert", Kind::Encoder),
        ("vision/vit", Kind::Vit),
        ("vision/resnet-a", Kind::ResNet),
        ("decoders/llama", Kind::Decoder),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(folder);
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(any::kind(&checkpoint).unwrap(), expected);
        assert_eq!(AnyModel::open(&checkpoint).unwrap().kind(), expected);
    }
    let folder = changed("bert", &json!({ "model_type": "wavenet" }));
    let error = AnyModel::open(&Checkpoint::open(folder.path()).unwrap()).unwrap_err().to_string();
    assert!(error.contains("`wavenet` is not one that runs here") && error.contains("mpnet"), "{error}");
    let listed = any::families();
    assert!(FAMILIES.iter().all(|family| listed.iter().any(|other| other.name == family.model_type)));
}

/// Texts of several lengths, scripts and cases; the last is longer than either model takes.
fn sentences() -> Vec<String> {
    let mut out: Vec<String> = [
        "A man is eating food.",
        "The quick brown fox jumps over the lazy dog, twice.",
        "Wie spät ist es? Es ist Viertel vor drei.",
        "今日は天気がいいです。",
        "x",
        "In 1961 the RMS Queen Mary's 2,000 passengers paid £1,250.50 each — or so it's said!",
    ]
    .map(String::from)
    .into();
    out.push("The ship sailed slowly past the harbour while the band played on. ".repeat(40));
    out
}

/// Embeddings by transformers on the same folder, pooled by hand: the peer of `real_model`.
const PEER: &str = r#"
import json, sys, torch
from transformers import AutoModel, AutoTokenizer
folder, limit = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
for text in json.load(sys.stdin):
    batch = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state[0]
    vector = torch.nn.functional.normalize(states.mean(0), dim=0)
    print(json.dumps({"ids": batch["input_ids"][0].tolist(), "vector": vector.tolist()}))
"#;

/// Largest accepted cosine distance to the peer's embedding: f32 sums in another order.
const MAX_COSINE_DISTANCE: f64 = 1e-5;

/// Compares a real model with transformers, where `variable` names its folder and `SCRUPLE_PYTHON` a Python that has it.
fn real_model(variable: &str) {
    let (Some(folder), Some(python)) = (std::env::var_os(variable), std::env::var_os("SCRUPLE_PYTHON")) else {
        println!("skipped: {variable} names no folder, or SCRUPLE_PYTHON no Python with transformers");
        return;
    };
    let model = SentenceEncoder::open(&Checkpoint::open(Path::new(&folder)).unwrap()).unwrap();
    let texts = sentences();
    let tokens: Vec<Vec<u32>> = texts.iter().map(|text| model.tokens(text).unwrap().ids).collect();
    let found = model.embed(&tokens, |_| ()).unwrap();

    let mut peer = Command::new(python)
        .args(["-c", PEER])
        .arg(&folder)
        .arg(model.max_tokens().to_string())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    serde_json::to_writer(peer.stdin.take().unwrap(), &texts).unwrap();
    let output = peer.wait_with_output().unwrap();
    assert!(output.status.success());
    #[derive(Deserialize)]
    struct Line {
        ids: Vec<u32>,
        vector: Vec<f64>,
    }
    let (mut furthest, mut largest) = (0.0f64, 0.0f64);
    let lines = std::str::from_utf8(&output.stdout).unwrap().lines();
    let lines: Vec<Line> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), texts.len());
    for ((line, ids), found) in lines.iter().zip(&tokens).zip(found.chunks(model.dimensions())) {
        assert_eq!(&line.ids, ids);
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let wide = || found.iter().map(|&x| f64::from(x));
        let dot: f64 = wide().zip(&line.vector).map(|(a, b)| a * b).sum();
        let cosine = dot / norm(&mut wide()) / norm(&mut line.vector.iter().copied());
        furthest = furthest.max((1.0 - cosine).abs());
        largest = wide().zip(&line.vector).map(|(a, b)| (a - b).abs()).fold(largest, f64::max);
    }
    println!("{variable}: largest cosine distance {furthest:.1e}, largest difference of a number {largest:.1e}");
    assert!(furthest <= MAX_COSINE_DISTANCE, "{furthest:e}");
    assert!(largest < 1e-5, "{largest:e}");
}

#[test]
fn minilm_embeds_as_transformers_does() {
    real_model("SCRUPLE_MINILM");
}

#[test]
fn mpnet_embeds_as_transformers_does() {
    real_model("SCRUPLE_MPNET");
}
