//! The model that comes with the program: 4 bits do not hurt it, 2 bits do.

use serde_json::Value;

use crate::{scruple, support::Place};

/// Share of the world's answers that GPTQ at 4 bits keeps, at least.
const KEPT_AT_4_BITS: f64 = 0.99;

/// Share of them that rounding to 2 bits changes, at least.
const CHANGED_AT_2_BITS: f64 = 0.30;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn it_knows_its_world_keeps_it_at_4_bits_and_loses_it_at_2() {
    let place = Place::new();
    let four = scruple!["compress --no-speed --json --max-tokens 2048 -o", place.out("four")].json();
    let answers = &four["answers"];
    let questions = number(&answers["questions"]);
    assert!(questions >= 300.0);
    assert!(number(&answers["dense_right"]) / questions > 0.97, "{answers}");
    assert!(number(&answers["same"]) / questions >= KEPT_AT_4_BITS, "{answers}");

    let two =
        scruple!["compress --method rtn --bits 2 --no-speed --json --max-tokens 2048 -o", place.out("two")].json();
    let changed = 1.0 - number(&two["answers"]["same"]) / questions;
    assert!(changed >= CHANGED_AT_2_BITS, "{}", two["answers"]);
    let perplexity = |report: &Value| number(&report["evaluation"]["perplexity"]);
    assert!(perplexity(&two) > 1.5 * perplexity(&four));
}

#[test]
fn awq_stays_closer_to_it_than_rounding_at_3_bits() {
    let place = Place::new();
    let divergence = |method: &str| {
        let recipe = place.file(
            &format!("{method}.toml"),
            format!(
                "[[stage]]\nmethod = \"{method}\"\nparams = {{ bits = 3, group_size = 64, symmetric = false }}\n\
                 [calibration]\nn_samples = 16\nseq_len = 256\n[export]\nformat = \"gptq\""
            ),
        );
        let out = place.out(method);
        let report = scruple!["compress --no-speed --json --max-tokens 2048 --recipe", recipe, "-o", out].json();
        number(&report["evaluation"]["against"]["kl_mean"]["value"])
    };
    let (rtn, awq) = (divergence("rtn"), divergence("awq"));
    assert!(awq < rtn, "{awq} with AWQ, {rtn} without");
}
