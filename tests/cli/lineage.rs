//! `lineage`: a folder of relatives, strangers and damaged files becomes trees, records and pictures.

use crate::{
    scruple,
    support::{Model, Place, assert_same_files, json_file, names, values},
};

/// The model with another training's worth of change in its blocks.
fn tuned(word: &str, size: f32) -> Model {
    let mut model = Model::sized(2, 128, 192);
    for block in 0..2 {
        for module in ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"] {
            let name = format!("model.layers.{block}.{module}.weight");
            model = model.edit(&name, |w| {
                let steps = values(&format!("{word} {name}"), w.len());
                w.iter_mut().zip(steps).for_each(|(w, step)| *w += size * step);
            });
        }
    }
    model
}

#[test]
fn a_folder_of_models_becomes_trees_for_any_threads() {
    let place = Place::new();
    let zoo = place.path("zoo");
    std::fs::create_dir(&zoo).unwrap();
    let base = Model::sized(2, 128, 192).write(zoo.join("base"));
    tuned("one", 0.1).write(zoo.join("tuned"));
    Model::tiny().write(zoo.join("other"));
    let method = "--no-speed --method rtn --group-size 32 --bits 4 --format gptq -o";
    scruple!["compress", base, method, zoo.join("packed")].succeeds();
    std::fs::create_dir(zoo.join("broken")).unwrap();
    std::fs::write(zoo.join("broken").join("model.safetensors"), [0xff; 64]).unwrap();
    std::fs::create_dir(zoo.join("notes")).unwrap();
    for threads in ["1", "2"] {
        let found = scruple!["lineage --threads", threads, zoo, "-o", place.out(threads)];
        assert_eq!(found.code, Some(1), "{found:#?}");
        assert!(found.stderr.contains("left out") && found.stderr.contains("broken"), "{}", found.stderr);
        assert!(found.stdout.contains("other has no relative among these models"), "{}", found.stdout);
    }
    assert_same_files(&place.out("1"), &place.out("2"));
    let files = ["lineage.dot", "lineage.json", "lineage.png", "lineage.svg", "run.json"];
    assert_eq!(names(&place.out("1")), files);
    let record = json_file(&place.out("1").join("lineage.json"));
    let edges = record["edges"].as_array().unwrap();
    assert_eq!(edges.len(), 2, "{record:#}");
    let name = |at: &serde_json::Value| record["models"][at.as_u64().unwrap() as usize]["name"].as_str().unwrap();
    let packed = edges.iter().find(|edge| edge["kind"] == "quantised").unwrap();
    assert_eq!((name(&packed["from"]), name(&packed["to"])), ("base", "packed"), "{packed:#}");
    assert_eq!((&packed["direction"], &packed["detail"]), (&"certain".into(), &"4 bits".into()), "{packed:#}");
    let why: Vec<&str> = packed["evidence"].as_array().unwrap().iter().map(|why| why.as_str().unwrap()).collect();
    assert!(why.iter().any(|why| why.contains("record")) && why.iter().any(|why| why.contains("undone")), "{why:?}");
    let tuned = edges.iter().find(|edge| edge["kind"] == "frozen-fine-tune").unwrap();
    assert!([name(&tuned["from"]), name(&tuned["to"])].contains(&"base"), "{tuned:#}");
    assert!(record["unread"][0]["model"].as_str().unwrap().ends_with("broken"));
    let dot = std::fs::read_to_string(place.out("1").join("lineage.dot")).unwrap();
    assert!(dot.starts_with("digraph lineage {") && dot.contains("quantised, 4 bits"), "{dot}");
    for word in ["seconds", "threads"] {
        assert!(!record.to_string().contains(word), "{word}");
    }
}

#[test]
fn single_files_copies_and_equal_names() {
    let place = Place::new();
    let a = Model::tiny().write(place.path("a"));
    std::fs::create_dir(place.path("b")).unwrap();
    let b = Model::tiny().write(place.path("b").join("a"));
    let found = scruple!["lineage --json", a.join("model.safetensors"), b].json();
    assert_eq!((&found["edges"][0]["kind"], &found["edges"][0]["direction"]), (&"equal".into(), &"undirected".into()));
    let found = scruple!["lineage --json", a, b].json();
    assert_ne!(found["models"][0]["name"], found["models"][1]["name"], "{found:#}");
}

#[test]
fn one_model_is_no_family_and_unreadable_ones_neither() {
    let place = Place::new();
    let a = Model::tiny().write(place.path("a"));
    scruple!["lineage", a].refuses(&["a", "two models or more, found one"]);
    let junk = place.file("junk.safetensors", [0xff; 64]);
    let refused = scruple!["lineage", a, junk];
    assert_eq!(refused.code, Some(2), "{refused:#?}");
    assert!(refused.stderr.contains("junk.safetensors") && refused.stderr.contains("needs two or more"));
}
