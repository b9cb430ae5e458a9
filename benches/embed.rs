//! Texts embedded a CPU second, against transformers on the same texts in the same run.
//!
//!     RAYON_NUM_THREADS=1 cargo bench --bench embed -- --model DIR --text FILE [--texts N] --python PYTHON
//!
//! The texts are the first N lines of the file that hold more than a word. Both sides tokenise, run and pool on one
//! thread; runs alternate, and the median of the paired ratios is what counts. The vectors must agree.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::{path::Path, process::Command};

use scruple_compress::model::encoder::SentenceEncoder;
use scruple_weights::Checkpoint;
use serde_json::{Value, json};

/// Paired runs.
const RUNS: usize = 3;

/// Texts, where the command line does not say.
const TEXTS: usize = 256;

/// Largest cosine distance between the two sides' vectors of a text: f32 sums in another order.
const MAX_COSINE_DISTANCE: f64 = 1e-5;

fn main() {
    let (Some(model), Some(file)) = (common::option("--model"), common::option("--text")) else {
        println!("embed: skipped, for want of --model and --text");
        return;
    };
    let count = common::option("--texts").map_or(TEXTS, |n| n.parse().expect("a number of texts"));
    let text = std::fs::read_to_string(&file).expect("the texts");
    let texts: Vec<&str> = text.lines().map(str::trim).filter(|line| line.contains(' ')).take(count).collect();
    let encoder = SentenceEncoder::open(&Checkpoint::open(&model).expect("a checkpoint")).expect("an encoder");
    let run = || {
        common::timed(|| {
            let ids: Vec<Vec<u32>> = texts.iter().map(|text| encoder.tokens(text).expect("tokens").ids).collect();
            let vectors = encoder.embed(&ids, |_| ()).expect("vectors");
            (ids.iter().map(Vec::len).sum::<usize>(), vectors)
        })
    };
    run(); // brings the weights in

    let listed = tempfile::NamedTempFile::new().expect("a temporary file");
    serde_json::to_writer(&listed, &texts).expect("the texts as JSON");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/embed_transformers.py");
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut furthest, mut tokens) = (0.0f64, 0);
    for _ in 0..RUNS {
        let ((run_tokens, vectors), seconds) = run();
        tokens = run_tokens;
        ours.push(texts.len() as f64 / seconds);
        let Some(python) = common::option("--python") else { continue };
        let output = Command::new(python)
            .arg(&script)
            .args([&model, &listed.path().display().to_string(), &encoder.max_tokens().to_string()])
            .output()
            .expect("the peer runs");
        let report: Value = serde_json::from_slice(&output.stdout).expect("the peer prints JSON");
        let peer: Vec<Vec<f64>> = serde_json::from_value(report["vectors"].clone()).expect("vectors");
        assert_eq!(peer.len(), texts.len());
        for (ours, theirs) in vectors.chunks(encoder.dimensions()).zip(&peer) {
            let dot: f64 = ours.iter().zip(theirs).map(|(a, b)| f64::from(*a) * b).sum();
            furthest = furthest.max((1.0 - dot).abs());
        }
        assert!(furthest < MAX_COSINE_DISTANCE, "the peer's vectors differ: cosine distance {furthest:e}");
        let peer_speed = texts.len() as f64 / report["cpu_seconds"].as_f64().expect("seconds");
        theirs.push(peer_speed);
        ratios.push(texts.len() as f64 / seconds / peer_speed);
    }
    let each = tokens as f64 / texts.len() as f64;
    println!("ours: {:.1} texts a CPU second, {each:.1} tokens each", common::median(ours.clone()));
    if !ratios.is_empty() {
        println!(
            "peer: {:.1}, ratio {:.2}, furthest vectors {furthest:.1e} apart",
            common::median(theirs.clone()),
            common::median(ratios.clone())
        );
    }
    common::record(
        "embed",
        json!({ "texts": texts.len(), "tokens_a_text": each, "texts_per_cpu_second": ours,
                "peer_texts_per_cpu_second": theirs, "ratios": ratios, "furthest_cosine_distance": furthest,
                "threads": rayon::current_num_threads() }),
    );
}
