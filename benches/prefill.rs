//! Tokens a CPU second of a prompt with all logits, against another program on the same windows in the same run.
//!
//!     RAYON_NUM_THREADS=1 cargo bench --bench prefill -- --model DIR --windows FILE.json [--peer PROGRAM]
//!
//! `FILE.json` is a list of windows of token ids, each one longer than its number of targets. The peer is called as
//! `PROGRAM DIR FILE.json` and prints JSON with `nll`, `tokens` and `cpu_seconds_forward`; `benches/peers/candle` is one.
//! Runs alternate, and the median of the paired ratios is what counts. Both must agree on the mean log-likelihood.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::process::Command;

use scruple_compress::{
    measure::{Windows, evaluate},
    model::Decoder,
};
use scruple_weights::Checkpoint;
use serde_json::{Value, json};

/// Paired runs.
const RUNS: usize = 3;

/// Largest difference of the two mean log-likelihoods: f32 sums in another order.
const MAX_NLL_DIFFERENCE: f64 = 1e-4;

fn main() {
    let (Some(model), Some(file)) = (common::option("--model"), common::option("--windows")) else {
        println!("prefill: skipped, for want of --model and --windows");
        return;
    };
    let windows: Vec<Vec<u32>> =
        serde_json::from_slice(&std::fs::read(&file).expect("the windows")).expect("lists of token ids");
    let window = windows[0].len() - 1;
    let mut ids = windows[0].clone();
    windows[1..].iter().for_each(|window| ids.extend_from_slice(&window[1..]));
    let windows = Windows::new(&ids, window, None).expect("at least one window");
    let checkpoint = Checkpoint::open(&model).expect("a checkpoint");
    let decoder = Decoder::open(&checkpoint).expect("a decoder");
    let run = || common::timed(|| evaluate(&decoder, None, &windows, None, &mut |_| ()).expect("an evaluation"));
    run(); // brings the weights in

    let mut ours = Vec::new();
    let mut ratios = Vec::new();
    let mut theirs = Vec::new();
    let mut nll = 0.0;
    for _ in 0..RUNS {
        let (evaluation, seconds) = run();
        nll = evaluation.nll.value;
        let speed = windows.targets() as f64 / seconds;
        ours.push(speed);
        if let Some(peer) = common::option("--peer") {
            let output = Command::new(&peer).args([&model, &file]).output().expect("the peer runs");
            let report: Value = serde_json::from_slice(&output.stdout).expect("the peer prints JSON");
            let peer_nll = report["nll"].as_f64().expect("nll");
            assert!((peer_nll - nll).abs() < MAX_NLL_DIFFERENCE, "the peer's nll is {peer_nll}, ours {nll}");
            let peer_speed =
                report["tokens"].as_f64().expect("tokens") / report["cpu_seconds_forward"].as_f64().expect("s");
            theirs.push(peer_speed);
            ratios.push(speed / peer_speed);
        }
    }
    println!("ours: {:.0} tokens a CPU second, nll {nll:.6}", common::median(ours.clone()));
    if !ratios.is_empty() {
        println!("peer: {:.0}, ratio {:.2}", common::median(theirs.clone()), common::median(ratios.clone()));
    }
    common::record(
        "prefill",
        json!({ "nll": nll, "tokens_per_cpu_second": ours, "peer_tokens_per_cpu_second": theirs, "ratios": ratios,
                "threads": rayon::current_num_threads() }),
    );
}
