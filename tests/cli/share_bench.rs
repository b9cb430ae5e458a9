//! What sharing is worth, measured in its smallest form: records, tables and pictures.

use std::fs;

use crate::{
    scruple,
    support::{Place, assert_same_files, json_file, names},
};

#[test]
fn at_rate_1_a_pool_trains_as_the_dense_net_does() {
    let place = Place::new();
    let out = place.path("equality");
    let found = scruple!["share bench --suite equality --preset small --json -o", out].json();
    assert_eq!(found, json_file(&out.join("equality.json")));
    let found = &found["found"];
    assert!(found["passes"] == true && found["load_factor"] == 1.0, "{found:#}");
    for pair in found["pairs"].as_array().unwrap() {
        assert!(pair["steps"].as_u64().unwrap() >= 1_000 && pair["moved"].as_f64().unwrap() > 0.1, "{pair:#}");
    }
    let used = found["ancestors"][0]["load_factor"].as_f64().unwrap();
    assert!((used - 0.632).abs() < 0.02, "{used}"); // 1 − 1/e
    let printed = scruple!["share bench --suite equality --preset small -o", out].succeeds();
    assert!(printed.stdout.contains("trains as the dense net does"), "{}", printed.stdout);
}

#[test]
fn the_size_a_pool_begins_at_matters_without_the_coordinates_alone() {
    let place = Place::new();
    let out = place.path("stability");
    let bench = scruple!["share bench --suite stability --preset small -o", out].succeeds();
    assert!(bench.stdout.contains("stable: the largest spread in the coordinates is"), "{}", bench.stdout);
    let found = json_file(&out.join("stability.json"))["found"].clone();
    assert!(found["diverged"].as_u64().unwrap() > 0 && found["spread"].as_f64().unwrap() < 0.01, "{found:#}");
    assert!(fs::read(out.join("stability.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(fs::read_to_string(out.join("stability.svg")).unwrap().contains("</svg>"));
}

#[test]
fn every_contestant_is_measured_and_a_suite_goes_on_where_it_was_stopped() {
    let place = Place::new();
    let bench = "share bench --suite pareto --preset small -o";
    let (one, two) = (place.path("one"), place.path("two"));
    let printed = scruple!["--threads 1", bench, one].succeeds();
    for part in ["at equal numbers", "at equal bytes", "lottery", "grasp", "int4", "tickets of the lottery"] {
        assert!(printed.stdout.contains(part), "no `{part}` in:\n{}", printed.stdout);
    }
    let record = json_file(&one.join("pareto.json"));
    let rows = record["found"]["rows"].as_array().unwrap();
    let bytes = |row: &&serde_json::Value| row["accounting"] == "bytes";
    let pool = |rate: f64| rows.iter().find(|row| row["method"] == "fold" && row["rate"] == rate).unwrap();
    assert_eq!(rows.iter().filter(bytes).count(), 6 * 2); // all that keep weights with their places
    for row in rows.iter().filter(bytes) {
        let pool = pool(row["rate"].as_f64().unwrap());
        assert!(row["bytes"].as_u64() <= pool["bytes"].as_u64() && row["values"].as_u64() < pool["values"].as_u64());
        assert_eq!(row["accuracy"]["runs"].as_array().unwrap().len(), 2);
    }
    let dense = rows.iter().find(|row| row["method"] == "dense").unwrap();
    assert!(dense["accuracy"]["mean"].as_f64().unwrap() > 0.4, "{dense:#}");

    // Stopped half-way: some records are not there yet.
    scruple!["--threads 2", bench, two].succeeds();
    assert_same_files(&one.join("runs/pareto"), &two.join("runs/pareto"));
    let runs = two.join("runs/pareto");
    for name in names(&runs).iter().filter(|name| *name != "ground.json").step_by(3) {
        fs::remove_file(runs.join(name)).unwrap();
    }
    fs::remove_file(two.join("pareto.json")).unwrap();
    scruple!["--threads 2", bench, two].succeeds();
    assert_same_files(&runs, &one.join("runs/pareto"));
    for name in ["pareto.json", "pareto-bytes.svg", "pareto-bytes.png", "pareto-values.svg", "pareto-values.png"] {
        assert!(fs::read(one.join(name)).unwrap() == fs::read(two.join(name)).unwrap(), "{name} differs");
    }
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_sentence() {
    let place = Place::new();
    let out = place.out("out");
    let digits = place.file("digits.csv", "1,2,3\n");
    for (arguments, parts) in [
        ("--suite pareto --rates 4,0.5", &["--rates has 0.5, expected 1"] as &[&str]),
        ("--suite pareto --rates nan", &["--rates has NaN"]),
        ("--suite equality --rates 4", &["equality is about rate 1"]),
        ("--suite stability --methods fold", &["--methods belongs to --suite pareto"]),
        ("--suite equality --seeds 3", &["--seeds belongs to --suite pareto"]),
        ("--suite pareto --seeds 0", &["--seeds is 0, expected 1 to 31"]),
        ("--suite pareto --methods fold,lotery", &["--methods has `lotery`, expected of dense, fold,"]),
        ("--suite pareto --test images", &["--data is `glyphs`"]),
        ("--suite pareto --data no/such/file", &["no/such/file"]),
    ] {
        let run = scruple!["share bench", arguments, "-o", out].refuses(parts);
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    }
    scruple!["share bench --suite pareto --data", digits, "-o", out].refuses(&["digits.csv"]);
    assert!(place.results().is_empty());

    let out = place.path("mixed");
    scruple!["share bench --suite pareto --preset small --methods dense --seeds 1 -o", out].succeeds();
    let other = scruple!["share bench --suite pareto --preset full --methods dense --seeds 1 -o", out];
    other.refuses(&["ground.json", "another net or another schedule", "another folder"]);
}
