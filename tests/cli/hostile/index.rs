//! Sharded folders: the index and what it says of the shards.

use super::{Case, safetensors};

const INDEX: &str = "model.safetensors.index.json";

/// A shard whose tensors have one element each.
fn shard(tensors: &[&str]) -> Vec<u8> {
    let entry = |(i, name): (usize, &&str)| safetensors::entry(name, "F32", "[1]", 4 * i as u64, 4 * i as u64 + 4);
    let entries: Vec<_> = tensors.iter().enumerate().map(entry).collect();
    safetensors::file(&format!("{{{}}}", entries.join(",")), &vec![0; 4 * tensors.len()])
}

fn index(pairs: &[(&str, &str)]) -> Vec<u8> {
    let pairs: Vec<_> = pairs.iter().map(|(name, file)| format!("{name:?}:\"{file}\"")).collect();
    format!(r#"{{"metadata":{{"total_size":4}},"weight_map":{{{}}}}}"#, pairs.join(",")).into_bytes()
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, files: &[(&str, Vec<u8>)], words: &[&str]| {
        let files = files.iter().map(|(name, bytes)| ((*name).to_string(), bytes.clone())).collect();
        cases.push(Case::folder(format!("index: {name}"), files, words));
    };
    let m = || ("m.safetensors", shard(&["a"]));

    for (name, text, words) in [
        ("empty", "", &["empty"] as &[&str]),
        ("an open brace", "{", &["index is not valid"]),
        ("no weight_map", "{}", &["missing field `weight_map`"]),
        ("a list", "[]", &["index is not valid"]),
        ("no tensors", r#"{"weight_map":{}}"#, &["lists no tensors"]),
        ("weight_map is a list", r#"{"weight_map":[]}"#, &["index is not valid"]),
        ("weight_map is null", r#"{"weight_map":null}"#, &["index is not valid"]),
        ("a file that is a number", r#"{"weight_map":{"a":1}}"#, &["index is not valid"]),
        ("a file that is null", r#"{"weight_map":{"a":null}}"#, &["index is not valid"]),
        ("a tensor twice", r#"{"weight_map":{"a":"m.safetensors","a":"m.safetensors"}}"#, &["`a`", "more than once"]),
        (
            "weight_map twice",
            r#"{"weight_map":{"a":"m.safetensors"},"weight_map":{"a":"m.safetensors"}}"#,
            &["index is not valid"],
        ),
        ("a web page", "<html>", &["web page"]),
        ("an LFS pointer", "version https://git-lfs.github.com/spec/v1\nsize 12\n", &["git-LFS pointer", "12 bytes"]),
        ("a raw NUL", "{\"weight_map\":{\"a\":\"\u{0}\"}}", &["index is not valid"]),
        ("text after the end", r#"{"weight_map":{"a":"m.safetensors"}} x"#, &["index is not valid"]),
    ] {
        add(name, &[m(), (INDEX, text.into())], &[&[INDEX], words].concat());
    }
    let deep = format!("{{\"weight_map\":{}1{}}}", "{\"a\":".repeat(50_000), "}".repeat(50_000));
    add("deep", &[(INDEX, deep.into_bytes())], &["index is not valid"]);
    add("not UTF-8", &[m(), (INDEX, b"{\"weight_map\":{\"a\":\"\xff\"}}".to_vec())], &["index is not valid"]);

    for path in [
        "../m.safetensors",
        "../../x",
        "../../../../../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/mem",
        "sub/../m.safetensors",
        "sub/../../m.safetensors",
        "./../m.safetensors",
        "..",
        ".",
        "",
        "/",
        "x\\u0000y",
        "C:\\\\m.safetensors",
    ] {
        let words = ["tensor `a`", "expected a file inside the checkpoint's folder"];
        add(&format!("a shard at {path:?}"), &[m(), (INDEX, index(&[("a", path)]))], &words);
    }
    for path in
        ["n.safetensors", "M.SAFETENSORS", "m.safetensors ", "sub/m.safetensors", "http://example.org/m.safetensors"]
    {
        add(
            &format!("a missing shard {path:?}"),
            &[m(), (INDEX, index(&[("a", path)]))],
            &["the shard is missing", "fetch it again"],
        );
    }
    let long = "x".repeat(5000);
    add("a name of 5,000 letters", &[m(), (INDEX, index(&[("a", &long)]))], &["name"]);
    add(
        "a tensor its shard lacks",
        &[m(), (INDEX, index(&[("a", "m.safetensors"), ("b", "m.safetensors")]))],
        &["m.safetensors: tensor `b` is missing"],
    );
    add(
        "a tensor it does not list",
        &[("m.safetensors", shard(&["a", "b"])), (INDEX, index(&[("a", "m.safetensors")]))],
        &["tensor `b` is not listed"],
    );
    let two = [("m.safetensors", shard(&["a", "b"])), ("n.safetensors", shard(&["b", "c"]))];
    let all = [("a", "m.safetensors"), ("b", "m.safetensors"), ("c", "n.safetensors")];
    add(
        "a tensor in two shards",
        &[two[0].clone(), two[1].clone(), (INDEX, index(&all))],
        &["tensor `b` also lies in"],
    );
    let crossed = [("a", "n.safetensors"), ("b", "m.safetensors"), ("c", "m.safetensors")];
    add(
        "shards exchanged",
        &[("m.safetensors", shard(&["a"])), ("n.safetensors", shard(&["b", "c"])), (INDEX, index(&crossed))],
        &["tensor `a` lies in"],
    );
    add(
        "a shard that is a web page",
        &[("m.safetensors", b"<html>".to_vec()), (INDEX, index(&[("a", "m.safetensors")]))],
        &["m.safetensors: this is a web page"],
    );
    add(
        "a shard that is empty",
        &[("m.safetensors", vec![]), (INDEX, index(&[("a", "m.safetensors")]))],
        &["m.safetensors", "empty"],
    );
    add(
        "a shard that is cut",
        &[("m.safetensors", shard(&["a"])[..40].to_vec()), (INDEX, index(&[("a", "m.safetensors")]))],
        &["m.safetensors", "missing", "fetch it again"],
    );
    add("the index as a shard", &[(INDEX, index(&[("a", INDEX)]))], &["JSON"]);

    // Without an index.
    add("one tensor in two files", &[two[0].clone(), two[1].clone()], &["n.safetensors: tensor `b` also lies in"]);
    let gap =
        [("model-00001-of-00003.safetensors", shard(&["a"])), ("model-00003-of-00003.safetensors", shard(&["c"]))];
    add("a number missing", &gap, &["model-00002-of-00003.safetensors: the shard is missing"]);
    let billion = [("model-00001-of-99999.safetensors", shard(&["a"]))];
    add("numbered of 99999", &billion, &["the shard is missing"]);
    cases
}
