//! Options scored a CPU second, against transformers on the same tokens in the same batches in the same run.
//!
//!     RAYON_NUM_THREADS=1 cargo bench --bench trust_scoring -- --model DIR --python PYTHON [--items N]
//!
//! The items are those of the suite `general` that have options. Both sides get the same token ids in the same batches,
//! sorted by length, and neither shares prompts between options; the log-likelihoods must agree. Runs alternate, and the
//! median of the paired ratios is what counts. What sharing gains is measured apart.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::{path::Path, process::Command};

use scruple::trust::{
    item::Ask,
    language_model::{Chat, Counts, LanguageModel, Put, Running},
    suite,
};
use scruple_weights::Checkpoint;
use serde_json::{Value, json};

/// Paired runs.
const RUNS: usize = 3;

/// Items, where the command line does not say.
const ITEMS: usize = 256;

/// Items of a batch.
const BATCH: usize = 16;

/// Largest difference of a log-likelihood, nats: f32 sums in another order over a dozen scored tokens.
const MAX_DIFFERENCE: f64 = 2e-3;

/// The log-likelihoods of all options in the order of the batches, and what was run.
fn score(model: &LanguageModel, put: &[Put], batches: &[Vec<usize>]) -> (Vec<f64>, Counts) {
    let mut counts = Counts::default();
    let answers = batches.iter().flat_map(|batch| model.answer(put, batch, &mut counts).expect("finite scores"));
    let scores = answers.flat_map(|answer| answer.log_likelihoods).collect();
    (scores, counts)
}

/// What the peer gives for `mode`: log-likelihoods, and CPU seconds.
fn peer(python: &str, model: &str, batches: &Path, mode: &str) -> (Vec<f64>, f64) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/trust_transformers.py");
    let output = Command::new(python).arg(script).arg(model).arg(batches).arg(mode).output().expect("the peer runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("the peer prints JSON");
    let scores = serde_json::from_value(report["scores"].clone()).expect("scores");
    (scores, report["cpu_seconds"].as_f64().expect("seconds"))
}

fn furthest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn main() {
    let (Some(model), Some(python)) = (common::option("--model"), common::option("--python")) else {
        println!("trust_scoring: skipped, for want of --model and --python");
        return;
    };
    let count = common::option("--items").map_or(ITEMS, |n| n.parse().expect("a number of items"));
    let suite = suite::named("general").expect("a suite that comes with the program");
    let choices = suite.dimensions.into_iter().flat_map(|(_, items)| items);
    let choices: Vec<_> = choices.filter(|item| matches!(item.ask, Ask::Choose { .. })).collect();
    let step = (choices.len() / count.min(choices.len())).max(1);
    let items: Vec<_> = choices.into_iter().step_by(step).take(count).collect();
    let checkpoint = Checkpoint::open(&model).expect("a checkpoint");
    let open = |reuse| {
        let running = Running { reuse, rows: usize::MAX };
        LanguageModel::open(&checkpoint, Chat::Off, running).expect("a decoder")
    };
    let plain = open(false);
    let put = plain.put(&items).expect("items that fit");
    let mut order: Vec<usize> = (0..put.len()).collect();
    order.sort_by_key(|&at| put[at].sequences().map(|(ids, _)| ids.len()).max());
    let batches: Vec<Vec<usize>> = order.chunks(BATCH).map(<[usize]>::to_vec).collect();
    let listed = tempfile::NamedTempFile::new().expect("a temporary file");
    let sequences: Vec<Vec<(&[u32], usize)>> =
        batches.iter().map(|batch| batch.iter().flat_map(|&at| put[at].sequences()).collect()).collect();
    serde_json::to_writer(&listed, &sequences).expect("tokens as JSON");

    let (expected, counts) = score(&plain, &put, &batches); // brings the weights in
    let tokens = counts.tokens as f64;
    let speed = |seconds: f64| tokens / seconds;
    let modes = ["f32", "f32-scored-rows", "bf16"];
    let (mut ours, mut apart) = (Vec::new(), 0.0f64);
    let (mut theirs, mut ratios) = ([(); 3].map(|()| Vec::new()), [(); 3].map(|()| Vec::new()));
    for _ in 0..RUNS {
        let ((scores, _), seconds) = common::timed(|| score(&plain, &put, &batches));
        assert_eq!(scores, expected, "the same run gives the same bits");
        ours.push(speed(seconds));
        for (mode, name) in modes.into_iter().enumerate() {
            let (scores, peer_seconds) = peer(&python, &model, listed.path(), name);
            if name != "bf16" {
                apart = apart.max(furthest(&scores, &expected));
                assert!(apart < MAX_DIFFERENCE, "the peer's log-likelihoods differ by {apart:e}");
            }
            theirs[mode].push(speed(peer_seconds));
            ratios[mode].push(peer_seconds / seconds);
        }
    }
    // Shared prompts, in the batches the program itself makes.
    let sharing = LanguageModel::open(&checkpoint, Chat::Off, Running::default()).expect("a decoder");
    let chunks = sharing.chunks(&put);
    let ((_, shared), seconds) = common::timed(|| score(&sharing, &put, &chunks));
    let gain = speed(seconds) / common::median(ours.clone());
    let saved = shared.tokens_saved as f64 / shared.tokens as f64;

    println!("ours: {:.0} tokens a CPU second, log-likelihoods {apart:.1e} apart", common::median(ours.clone()));
    for (mode, name) in modes.into_iter().enumerate() {
        let (speed, ratio) = (common::median(theirs[mode].clone()), common::median(ratios[mode].clone()));
        println!("peer in {name}: {speed:.0}, ratio {ratio:.2}");
    }
    println!("sharing beginnings: {:.0} % of the tokens saved, {gain:.2} times the speed", 100.0 * saved);
    let named = |values: [Vec<f64>; 3]| modes.into_iter().zip(values).collect::<std::collections::BTreeMap<_, _>>();
    common::record(
        "trust_scoring",
        json!({ "items": items.len(), "sequences": expected.len(), "tokens": counts.tokens,
                "tokens_per_cpu_second": ours, "peer_tokens_per_cpu_second": named(theirs), "ratios": named(ratios),
                "furthest_log_likelihood": apart, "tokens_saved_by_sharing": saved, "gain_of_sharing": gain,
                "threads": rayon::current_num_threads() }),
    );
}
