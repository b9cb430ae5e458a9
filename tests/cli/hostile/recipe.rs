//! Recipes that are wrong: found before any work.

use super::{Case, Verb, config};

pub fn cases() -> Vec<Case> {
    let model = config::model();
    let case = |name: &str, text: &[u8], words: &[&str]| {
        let files = model.iter().cloned().chain([("recipe.toml".to_string(), text.to_vec())]).collect();
        Case::folder(format!("recipe: {name}"), files, words).by(Verb::Plan)
    };
    let stage = |body: &str| format!("[[stage]]\nmethod = \"rtn\"\n{body}");
    let params = |body: &str| stage(&format!("[stage.params]\n{body}"));
    let mut cases = Vec::new();
    let mut add = |name: &str, text: &str, words: &[&str]| {
        cases.push(case(name, text.as_bytes(), &[&["recipe.toml"], words].concat()));
    };
    add("empty", "", &[]);
    add("not TOML", "stage: rtn", &[]);
    add("cut", "[[stage]]\nmethod = \"rt", &[]);
    add("no stages", "stage = []", &[]);
    add("stage is a number", "stage = 4", &[]);
    add("a stage without method", "[[stage]]\n", &["method"]);
    add("an unknown method", "[[stage]]\nmethod = \"magic\"", &["magic"]);
    add("an unknown key", "speed = 1\n[[stage]]\nmethod = \"rtn\"", &["speed"]);
    add("an unknown key of a stage", &stage("targts = [\"*\"]"), &["targts"]);
    add("an unknown parameter", &params("btis = 4"), &["btis"]);
    add("a key twice", "[[stage]]\nmethod = \"rtn\"\nmethod = \"gptq\"", &[]);
    for bits in ["0", "1", "5", "9", "-4", "4.5", "\"four\"", "99999999999999999999"] {
        add(&format!("bits = {bits}"), &params(&format!("bits = {bits}")), &[]);
    }
    for group in ["7", "-32", "\"all\"", "1e9"] {
        add(&format!("group_size = {group}"), &params(&format!("bits = 4\ngroup_size = {group}")), &[]);
    }
    add("a target that matches nothing", &stage("targets = [\"nothing.*\"]"), &[]);
    add("a pattern that is none", &stage("targets = [\"[\"]"), &[]);
    add("targets is a text", &stage("targets = 4"), &[]);
    add("deep", &format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000)), &[]);
    cases.push(case("not UTF-8", b"[[stage]]\nmethod = \"\xff\"", &["recipe.toml"]));
    cases.push(case("sound", params("bits = 4\ngroup_size = 32").as_bytes(), &[]).accepted());
    cases
}
