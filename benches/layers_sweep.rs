//! Greedy removal of K layers by stacked states, against the same candidates one by one: CPU seconds of one thread, in one
//! run and on the same text.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo bench --bench layers_sweep -- --model DIR --text FILE [--tokens 256] [--remove 8]
//! ```
//!
//! Both ways score every layer between the first and the last at every round, take the best, and go on. Both apply the
//! head to the same positions: a quarter of them, then all. One by one means that each candidate is run through all the
//! layers it keeps; weights are mapped and read by both.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use common::{flag, option, timed};
use scruple_compress::{
    layers::{
        Removal,
        evaluate::Corpus,
        sweep::{self, Loss, Work, losses},
    },
    model::{Decoder, text::Text},
};
use scruple_weights::Checkpoint;
use serde_json::json;

fn main() {
    if flag("--test") || flag("--list") {
        return; // run as a test harness: nothing to do
    }
    let number = |name: &str, default: usize| option(name).map_or(default, |value| value.parse().expect("a number"));
    let (tokens, remove) = (number("--tokens", 256), number("--remove", 8));
    let model = option("--model").expect("--model FOLDER");
    let file = option("--text").expect("--text FILE");
    let checkpoint = Checkpoint::open(&model).expect("a model");
    let decoder = Decoder::open(&checkpoint).expect("a decoder");
    let text = Text::open(&checkpoint).expect("a tokenizer");
    let ids = text.encode(&std::fs::read_to_string(file).expect("a text"), false).expect("tokens");
    let layers = decoder.blocks().len();
    let mut results = Vec::new();
    for share in [0.25, 1.0] {
        let corpus = Corpus::windows(&ids, tokens.min(256), tokens, share, 0).expect("a text that is long enough");
        let sequences: Vec<_> = corpus.sequences().iter().collect();
        let dense = sweep::references(&decoder, &sequences, &mut Work::default()).expect("finite logits");
        let dense: Vec<_> = dense.iter().collect();
        let run = |sets: &[Removal], work: &mut Work| -> Vec<Vec<Loss>> {
            losses(&decoder, sets, &sequences, &dense, work).expect("finite logits")
        };
        let (mut stacked, mut single) = ((Work::default(), 0.0), (Work::default(), 0.0));
        let mut gone = Removal::default();
        for _ in 0..remove {
            let candidates: Vec<Removal> =
                (1..layers - 1).filter(|&layer| !gone.contains(layer)).map(|layer| gone.with(layer)).collect();
            let (swept, took) = timed(|| run(&candidates, &mut stacked.0));
            stacked.1 += took;
            let (one_by_one, took) = timed(|| -> Vec<Vec<Loss>> {
                candidates.iter().flat_map(|set| run(std::slice::from_ref(set), &mut single.0)).collect()
            });
            single.1 += took;
            assert_eq!(swept, one_by_one, "both ways give the same numbers");
            let loss = |at: usize| swept[at].iter().map(|loss| loss.kl).sum::<f64>();
            let best = (0..candidates.len()).min_by(|&a, &b| loss(a).total_cmp(&loss(b))).expect("a candidate");
            gone = candidates[best].clone();
        }
        let ratio = single.1 / stacked.1;
        println!(
            "head on {share} of the positions, {remove} of {layers} layers, {tokens} tokens: {:.1} s stacked, {:.1} s one by \
             one, ratio {ratio:.2} ({:.2} by layers applied); removed {gone}",
            stacked.1,
            single.1,
            single.0.layer_tokens as f64 / stacked.0.layer_tokens as f64,
        );
        results.push(json!({
            "head_share": share, "removed": gone, "tokens": tokens, "layers": layers,
            "stacked": { "cpu_seconds": stacked.1, "work": stacked.0 },
            "one_by_one": { "cpu_seconds": single.1, "work": single.0 },
            "ratio": ratio,
        }));
    }
    common::record("layers_sweep", json!(results));
}
