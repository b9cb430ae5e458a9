//! `--device`: what runs elsewhere gives what the processor's kernels give, and what cannot run there says so.
//!
//! No GPU is needed: `candle-cpu` runs the code of GPUs on the processor.

use std::path::Path;

use serde_json::Value;

use crate::{
    probex::made,
    scruple,
    support::{Model, Place, json_file},
};

/// Largest difference of a linear's output error, as a share of it: sums differ in their last bits, which can turn a
/// rounding, and feedback carries it on through the row.
const MAX_ERROR_DIFFERENCE: f64 = 0.05;

/// Largest difference of a probe's share of right decisions: of 8 models and 10 classes, one decision.
const ONE_DECISION: f64 = 1.0 / 80.0 + 1e-9;

fn errors(folder: &Path) -> Vec<f64> {
    let record = json_file(&folder.join("scruple.json"));
    record["linears"].as_array().unwrap().iter().map(|linear| linear["output_error"].as_f64().unwrap()).collect()
}

#[test]
fn calibration_on_a_device_finds_what_the_kernels_find() {
    let place = Place::new();
    let model = Model::sized(2, 128, 160).write(place.path("model"));
    let text = place.text("text", 16 * 64);
    for options in ["--param asymmetric_calibration=0.25", "--bits 3 --asymmetric", "--method awq --asymmetric"] {
        let rest = "--group-size 32 --n-samples 16 --seq-len 64 --no-speed --calibration";
        let [here, there] = ["cpu", "candle-cpu"].map(|device| {
            let out = place.out(&format!("{device}-{}", place.results().len()));
            scruple!["compress", model, "--device", device, options, rest, text, "-o", out].succeeds();
            scruple!["verify", out, "--against", model].succeeds();
            out
        });
        let (here, there_errors) = (errors(&here), errors(&there));
        assert_eq!((here.len(), there_errors.len()), (14, 14));
        for (expected, found) in here.iter().zip(&there_errors) {
            assert!((found - expected).abs() <= MAX_ERROR_DIFFERENCE * expected, "{options}: {found} for {expected}");
        }
        assert_eq!(json_file(&there.join("scruple.json"))["device"], "candle-cpu");
    }
}

#[test]
fn probes_trained_on_a_device_are_those_of_the_kernels() {
    let place = Place::new();
    let zoo = &made().zoo;
    let [here, there] = ["cpu", "candle-cpu"].map(|device| {
        let out = place.out(device);
        let options = "--tree tree1 --layer fc1.weight --preset mvprobe --epochs 3 --json -o";
        scruple!["probe train", zoo, "--device", device, options, out].json()
    });
    let of = |record: &Value, figure: &str| record["experts"][0]["validation"][figure]["value"].as_f64().unwrap();
    assert!((of(&here, "accuracy") - of(&there, "accuracy")).abs() <= ONE_DECISION, "{here:#} {there:#}");
    let run = json_file(&place.out("candle-cpu").join("run.json"));
    assert!(run.to_string().contains("\"device\":\"candle-cpu\""), "{run:#}");
}

#[test]
fn devices_that_cannot_be_had_are_refused_in_a_sentence() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 400);
    let zoo = &made().zoo;
    let out = place.out("none");
    // With the feature there is no such GPU; without it there is none at all.
    let words = ["device cuda:999: ", "leave --device out"];
    let asked = "--device cuda:999 --group-size 32 --no-speed --calibration";
    scruple!["compress", model, asked, text, "-o", out].refuses(&words);
    scruple!["probe train", zoo, "--device cuda:999 -o", out].refuses(&words);
    scruple!["compress", model, "--device gpu", "-o", out].refuses_the_arguments(&["a device is cpu, cuda or cuda:N"]);

    let no_calibration = ["asks for no calibration", "leave --device out"];
    scruple!["compress", model, "--method rtn --group-size 32 --device candle-cpu -o", out].refuses(&no_calibration);
    let closed_form = ["solved in closed form", "leave --device out"];
    scruple!["probe train", zoo, "--preset ridge --device candle-cpu -o", out].refuses(&closed_form);
    assert_eq!(place.results(), Vec::<String>::new());
}
