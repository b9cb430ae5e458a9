//! The same bytes for the same inputs, whatever the number of threads.

use scruple_weights::Dtype;

use crate::{
    scruple,
    support::{Model, Place, assert_same_files, json_file},
};

const RUNS: [&str; 6] = [
    "--method gptq --bits 4",
    "--method gptq --bits 2 --asymmetric",
    "--method gptq --bits 4 --asymmetric --format compressed-tensors",
    "--method gptq --bits 3 --format dense",
    "--method rtn --bits 3",
    "--method rtn --bits 8 --format compressed-tensors",
];

#[test]
fn one_and_two_threads_and_two_runs_write_the_same_bytes() {
    let place = Place::new();
    let model = Model::sized(2, 256, 320).dtype(Dtype::Bf16).write(place.path("model"));
    let text = place.text("text", 16 * 64);
    for (number, options) in RUNS.into_iter().enumerate() {
        let calibration = "--group-size 64 --n-samples 16 --seq-len 64 --no-speed --calibration";
        let [one, two, again] = ["1", "2", "2"].map(|threads| {
            let out = place.out(&format!("{number}-{}", place.results().len()));
            scruple!["compress --threads", threads, model, options, calibration, text, "-o", out].succeeds();
            out
        });
        assert_same_files(&one, &two);
        assert_same_files(&two, &again);
        scruple!["verify", one, "--against", model].succeeds();
    }
}

/// Words that only belong into `run.json`.
const CIRCUMSTANCES: [&str; 9] =
    ["seconds", "_unix", "date", "host", "rss", "\"threads", "per_second", "output\"", "/tmp"];

#[test]
fn records_tell_nothing_of_times_and_machines_and_run_json_does() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 300);
    for (run, threads) in [("a", "1"), ("b", "2")] {
        let out = place.out(run);
        let calibration = "--group-size 32 --seq-len 32 --max-tokens 100 --calibration";
        scruple!["compress --threads", threads, model, calibration, text, "--text", text, "-o", out].succeeds();
        let records = place.out(&format!("records-{run}"));
        scruple!["eval", out, "--text", text, "--against", model, "--window 50 -o", records].succeeds();
        scruple!["generate", out, "--prompt", "w1 w2".to_string(), "--max-tokens 5 -o", records].succeeds();
        scruple!["verify", out, "--against", model, "-o", records].succeeds();
    }
    assert_same_files(&place.out("a"), &place.out("b"));
    assert_same_files(&place.out("records-a"), &place.out("records-b"));
    for file in ["a/scruple.json", "a/eval.json", "records-a/eval.json", "records-a/verify.json"] {
        let text = json_file(&place.out(file)).to_string();
        for word in CIRCUMSTANCES {
            assert!(!text.contains(word), "{file} holds `{word}`: {text}");
        }
    }
    let run = json_file(&place.out("a/run.json"));
    for key in ["finished_unix", "wall_seconds", "cpu_seconds", "peak_rss_bytes", "threads", "host", "forecast"] {
        assert!(!run[key].is_null(), "run.json lacks `{key}`: {run}");
    }
}
