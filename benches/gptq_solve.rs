//! GPTQ of one linear whose Hessian is given: CPU seconds of one thread, against the core's multiply-add limit in the same run.
//!
//! ```text
//! cargo bench --bench gptq_solve -- [--shape 4096x4096] [--repeat 3] [--write FILE | --file FILE] [--ours FILE]
//! ```
//!
//! `--write` saves the generated weight and Hessian for another program to read, `--file` reads them from such a file,
//! `--ours` saves the dequantised result. The settings are those of the peers in `benches/peers`: asymmetric 4 bit, groups
//! of 128, dampening 0.01, columns from left to right; ours uses scales of the original weight ("static" groups).

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use common::linear::{generate, load, save};
use common::{cpu_seconds, flag, median, option, timed};
use scruple_compress::grid::{ScaleDtype, Search, round_to_nearest};
use scruple_compress::kernel::gemm::quadratic_form;
use scruple_compress::methods::LayerMethod;
use scruple_compress::methods::gptq::Gptq;
use serde_json::json;

fn main() {
    if flag("--test") || flag("--list") {
        return; // run as a test harness: nothing to do
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(run);
}

fn run() {
    let repeat: usize = option("--repeat").map_or(3, |value| value.parse().expect("a number"));
    let shapes = option("--shape").unwrap_or_else(|| "4096x4096,4096x11008".to_owned());
    let mut results = Vec::new();
    for shape in shapes.split(',') {
        let (rows, n) = shape.split_once('x').expect("OUTxIN");
        let (mut rows, mut n): (usize, usize) = (rows.parse().expect("rows"), n.parse().expect("columns"));
        let (weight, hessian) = match option("--file") {
            Some(path) => {
                let (weight, hessian, columns) = load(&path, true);
                (rows, n) = (weight.len() / columns, columns);
                (weight, hessian)
            }
            None => generate(rows, n),
        };
        if let Some(path) = option("--write") {
            save(&path, &[("weight", [rows, n], &weight), ("hessian", [n, n], &hessian)]);
        }
        let limit = common::multiply_add_limit().unwrap_or(f64::NAN);
        let peer = Gptq {
            symmetric: false,
            scale_dtype: ScaleDtype::F32,
            search: Search::None,
            activation_order: false,
            ..Gptq::default()
        };
        let error_of = |quantised: &scruple_compress::grid::Quantised| {
            let mut delta = quantised.dequantize();
            delta.iter_mut().zip(&weight).for_each(|(q, w)| *q -= w);
            quadratic_form(&delta, &hessian, n)
        };
        let rounded = error_of(
            &round_to_nearest(&weight, rows, n, &peer.grid().expect("GPTQ has a grid")).expect("finite weights"),
        );
        println!("{rows} × {n}: one thread, at most {limit:.0} GFLOP/s of multiply-adds in registers");
        for (name, method) in [("as the peers", peer), ("default", Gptq::default())] {
            let (mut totals, mut factors, mut solved) = (Vec::new(), Vec::new(), None);
            for _ in 0..repeat {
                let mut values = weight.clone();
                let start = cpu_seconds();
                let (prepared, factor) = timed(|| method.prepare(&hessian, n).expect("a positive definite Hessian"));
                let (quantised, error) = method.solve(&mut values, &prepared, false).expect("finite weights");
                totals.push(cpu_seconds() - start);
                factors.push(factor);
                solved = Some((quantised, error));
            }
            let (quantised, reported) = solved.expect("at least one run");
            // Before the figures count: the error the solver reports is that of the weights it gives, and below rounding's.
            let error = error_of(&quantised);
            assert!((reported / error - 1.0).abs() < 1e-2, "reported {reported}, measured {error}");
            assert!(error < rounded, "worse than rounding to nearest");
            let (seconds, factor) = (median(totals), median(factors));
            let flop = (n as f64).powi(3) / 3.0 + rows as f64 * (n as f64).powi(2);
            let rate = flop / seconds / 1e9;
            println!(
                "  {name}: {seconds:.3} s (factor {factor:.3}), {rate:.0} GFLOP/s = {:.0} % of the limit, error {:.4} of rounding's",
                100.0 * rate / limit,
                error / rounded
            );
            results.push(json!({
                "shape": [rows, n], "settings": name, "cpu_seconds": seconds, "factor_cpu_seconds": factor,
                "gflop_per_s": rate, "limit_gflop_per_s": limit, "error": error, "error_over_rtn": error / rounded,
            }));
            if name == "as the peers"
                && let Some(path) = option("--ours")
            {
                save(&path, &[("weight", [rows, n], &quantised.dequantize())]);
            }
        }
    }
    common::record("gptq_solve", json!(results));
}
