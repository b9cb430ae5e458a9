//! Weights that share a pool: projected, expanded, proved, and reported.

use std::fs;

use scruple_weights::Dtype;

use crate::{
    scruple,
    support::{Model, Place, assert_same_files, json_file},
};

#[test]
fn at_rate_1_a_model_comes_back_bit_for_bit() {
    let place = Place::new();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let model = Model::tiny().dtype(dtype).write(place.path(&format!("model-{dtype}")));
        let (pool, again) = (place.out(&format!("pool-{dtype}")), place.out(&format!("again-{dtype}")));
        let made = scruple!["share project --rate 1 --min-values 1", model, "-o", pool].succeeds();
        assert!(
            made.stdout.contains("relative error 0.0000") && made.stdout.contains("bit for bit"),
            "{}",
            made.stdout
        );
        let proof = scruple!["share verify", pool, "--against", model].succeeds();
        assert!(proof.stdout.contains("are the dense model's bit for bit"), "{}", proof.stdout);
        scruple!["share expand", pool, "-o", again].succeeds();
        scruple!["diff --exit-code", model, again].succeeds();
        assert!(again.join("config.json").is_file());
    }
}

#[test]
fn a_lossy_projection_says_what_it_is_and_wants_to_be_allowed() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let out = place.out("pool");
    let refused = scruple!["share project --rate 4 --min-values 1", model, "-o", out];
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("not a usable model; pass --allow-lossy"), "{}", refused.stderr);
    let dry = scruple!["share project --rate 4 --min-values 1 --dry-run", model].succeeds();
    assert!(dry.stdout.contains("expected about √(1 − 1/c) = 0.8660"), "{}", dry.stdout);
    assert!(dry.stdout.contains("a starting point for fine-tuning, not a usable model") && place.results().is_empty());

    let project = "share project --rate 4 --min-values 1 --allow-lossy";
    scruple![project, model, "-o", out].succeeds();
    let one = place.out("one-thread");
    scruple!["--threads 1", project, model, "-o", one].succeeds();
    assert_same_files(&out, &one);
    let record = json_file(&out.join("share.json"));
    // The embedding has the largest scale and a part of the array to itself, so that it keeps most of itself.
    assert!(record["relative_error"].as_f64().unwrap() > 0.6 && record["lossless"] == false, "{record:#}");
    let report = scruple!["share report --json", out, "-o", place.out("report")].json();
    assert_eq!((&report["load_factor"], &report["buckets"]), (&1.0.into(), &record["report"]["buckets"]));
    assert_eq!(json_file(&place.out("report").join("share.json")), report);
    let verified = scruple!["share verify --json", out, "--against", model].json();
    assert_eq!((&verified["lossless"], &verified["faults"]), (&false.into(), &serde_json::json!([])));
}

#[test]
fn a_changed_pool_fails_the_proof_and_is_not_expanded() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let pool = place.path("pool");
    scruple!["share project --rate 2 --min-values 1 --allow-lossy", model, "-o", pool].succeeds();
    let file = pool.join("model.rps.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[data + 401] ^= 1; // a number of the pool
    fs::write(&file, bytes).unwrap();
    let verified = scruple!["share verify", pool];
    assert_eq!(verified.code, Some(1));
    assert!(verified.stdout.contains("expands to SHA-256"), "{}", verified.stdout);
    let expanded = scruple!["share expand", pool, "-o", place.out("dense")];
    assert_eq!((expanded.code, place.results().len()), (Some(2), 0));
    let not_a_pool = scruple!["share report", model];
    assert!(not_a_pool.stderr.contains("holds no pool that weights share"), "{}", not_a_pool.stderr);
}

#[test]
fn a_net_is_trained_over_a_pool_and_expands_to_what_was_measured() {
    let place = Place::new();
    let train = "share train --net mlp --width 32 --epochs 3 --rate 4 --json";
    let (one, two) = (place.out("one"), place.out("two"));
    let found = scruple!["--threads 1", train, "-o", one].json();
    scruple!["--threads 2", train, "-o", two].succeeds();
    assert_same_files(&one, &two);
    assert_eq!(found, json_file(&one.join("share.json")));
    assert!(found["test_accuracy"].as_f64().unwrap() > 0.6, "{found:#}");
    let report = &found["report"];
    assert!(report["bytes"].as_u64().unwrap() * 2 < report["dense_bytes"].as_u64().unwrap(), "{report:#}");
    scruple!["share verify", one].succeeds();
    scruple!["share expand", one, "-o", place.out("dense")].succeeds();
    let exists = scruple![train, "-o", one];
    assert!(exists.code == Some(2) && exists.stderr.contains("the output exists already"), "{}", exists.stderr);
}
