//! The same bytes for the same inputs, whatever the number of threads.

use std::{ffi::OsString, path::Path};

use scruple_weights::Dtype;

use crate::{
    arguments, scruple,
    support::{Model, Place, assert_same_files, json_file},
};

/// (method, bits, format, further options)
const RUNS: [(&str, &str, &str, &[&str]); 6] = [
    ("gptq", "4", "gptq", &[]),
    ("gptq", "2", "gptq", &["--asymmetric"]),
    ("gptq", "4", "compressed-tensors", &["--asymmetric"]),
    ("gptq", "3", "dense", &[]),
    ("rtn", "3", "gptq", &[]),
    ("rtn", "8", "compressed-tensors", &[]),
];

#[test]
fn one_and_two_threads_and_two_runs_write_the_same_bytes() {
    let place = Place::new();
    let model = Model::sized(2, 256, 320).dtype(Dtype::Bf16).write(place.path("model"));
    let text = place.text("text", 16 * 64);
    for (number, (method, bits, format, further)) in RUNS.into_iter().enumerate() {
        let compress = |threads: &str, out: &Path| {
            let mut arguments = arguments![
                "--threads",
                threads,
                "compress",
                model,
                "--method",
                method,
                "--bits",
                bits,
                "--format",
                format,
                "-o",
                out,
                "--group-size",
                "64",
                "--n-samples",
                "16",
                "--seq-len",
                "64",
                "--calibration",
                text,
                "--no-speed",
            ];
            arguments.extend(further.iter().map(OsString::from));
            crate::support::run(&arguments).succeeds();
        };
        let out = ["1", "2", "2"].iter().enumerate().map(|(run, threads)| {
            let out = place.out(&format!("{number}-{run}"));
            compress(threads, &out);
            out
        });
        let out: Vec<_> = out.collect();
        assert_same_files(&out[0], &out[1]);
        assert_same_files(&out[1], &out[2]);
        scruple!["verify", out[0], "--against", &model].succeeds();
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
        scruple![
            "--threads",
            threads,
            "compress",
            model,
            "--group-size",
            "32",
            "--calibration",
            text,
            "--seq-len",
            "32",
            "--text",
            text,
            "--max-tokens",
            "100",
            "-o",
            out,
        ]
        .succeeds();
        let records = place.out(&format!("records-{run}"));
        scruple!["eval", out, "--text", text, "--against", model, "--window", "50", "-o", records].succeeds();
        scruple!["generate", out, "--prompt", "w1 w2", "--max-tokens", "5", "-o", records].succeeds();
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
