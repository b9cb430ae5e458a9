//! Tokenizer and chat templates. What a template should give was printed by jinja2 set up as `transformers` does
//! (`fixtures/interop/render_chat_templates.py`).

use std::{fs, path::Path};

use scruple_compress::{
    data::tokenizer::{BOS, Bpe},
    model::text::{Message, Text},
};
use scruple_weights::Checkpoint;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

const TRAINING_TEXT: &str = "The lamp of Tarn is green. The lamp of Bel is red. The river of Tarn runs north to Bel.";

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

/// A checkpoint folder with a small byte-level tokenizer.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let weights = fixtures().join("decoders/llama/model.safetensors");
    fs::copy(weights, folder.path().join("model.safetensors")).unwrap();
    Bpe::learn(TRAINING_TEXT, 280).unwrap().write(folder.path(), 128).unwrap();
    folder
}

fn open(folder: &TempDir) -> Text {
    Text::open(&Checkpoint::open(folder.path()).unwrap()).unwrap()
}

/// Puts `changes` into a JSON file of the folder; null takes a key out.
fn change(folder: &TempDir, file: &str, changes: Value) {
    let path = folder.path().join(file);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => json.as_object_mut().unwrap().remove(key),
            value => json.as_object_mut().unwrap().insert(key.clone(), value.clone()),
        };
    }
    fs::write(path, json.to_string()).unwrap();
}

fn turn(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

#[test]
fn any_text_comes_back_from_its_tokens() {
    let text = open(&folder());
    for sample in ["The lamp of Tarn", "", " two  blanks\n\nand\ttabs ", "1984", "日本 😀 é\u{301}", "\u{0}\u{fffd}"]
    {
        let ids = text.encode(sample, false).unwrap();
        assert_eq!(text.decode(&ids).unwrap(), sample);
        assert_eq!(text.encode(sample, true).unwrap(), [&[BOS], ids.as_slice()].concat());
        assert!(ids.iter().all(|&id| (id as usize) < text.vocab_size()));
    }
}

#[test]
fn special_tokens_are_found_in_a_text_and_left_out_of_it() {
    let text = open(&folder());
    let ids = text.encode("The<eos>lamp", false).unwrap();
    let eos = text.token_id("<eos>").unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == eos).count(), 1);
    assert_eq!(text.decode(&ids).unwrap(), "Thelamp");
    assert_eq!(text.token_id("<no such token>"), None);
}

#[test]
fn padding_and_truncation_of_the_training_are_not_applied() {
    let folder = folder();
    let plain = open(&folder).encode(TRAINING_TEXT, true).unwrap();
    change(
        &folder,
        "tokenizer.json",
        json!({
            "truncation": { "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0 },
            "padding": {
                "strategy": { "Fixed": 512 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 3,
                "pad_type_id": 0, "pad_token": "<pad>",
            },
        }),
    );
    assert_eq!(open(&folder).encode(TRAINING_TEXT, true).unwrap(), plain);
}

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<Turn>,
    rendered: Option<String>,
    raises: Option<String>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: String,
}

#[test]
fn chat_templates_give_what_jinja2_gives() {
    let folder = folder();
    // The goldens were made with these two only; a template can ask whether another is defined.
    change(&folder, "tokenizer_config.json", json!({ "pad_token": null, "unk_token": null }));
    change(&folder, "special_tokens_map.json", json!({ "pad_token": null, "unk_token": null }));
    let golden = fs::read(fixtures().join("chat/golden.json")).unwrap();
    let golden: Golden = serde_json::from_slice(&golden).unwrap();
    let mut wrong = Vec::new();
    for (index, case) in golden.cases.iter().enumerate() {
        let template = fixtures().join(format!("chat/{}.jinja", case.template));
        fs::copy(template, folder.path().join("chat_template.jinja")).unwrap();
        let messages: Vec<Message> = case.messages.iter().map(|m| turn(&m.role, &m.content)).collect();
        let found = open(&folder).chat(&messages);
        let what = format!("case {index}, {}", case.template);
        match (found, &case.rendered, &case.raises) {
            (Ok(found), Some(expected), _) if found == *expected => {}
            (Ok(found), Some(expected), _) => {
                for (line, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
                    if found != expected {
                        wrong.push(format!("{what}, line {}: found {found:?}, expected {expected:?}", line + 1));
                    }
                }
                wrong.push(format!("{what}: found {} bytes, expected {}", found.len(), expected.len()));
            }
            (Err(error), None, Some(raises)) if error.to_string().contains(raises) => {}
            (found, _, _) => wrong.push(format!("{what}: found {found:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_template_is_found_in_each_of_its_places() {
    let folder = folder();
    let question = [turn("user", "Where?")];
    let with = |template: Value| {
        change(&folder, "tokenizer_config.json", json!({ "chat_template": template }));
        open(&folder)
    };
    assert_eq!(with(json!("A{{ messages[0].content }}")).chat(&question).unwrap(), "AWhere?");
    let several =
        json!([{ "name": "tool_use", "template": "T" }, { "name": "default", "template": "D{{ bos_token }}" }]);
    assert_eq!(with(several).chat(&question).unwrap(), "D<bos>");
    fs::write(folder.path().join("chat_template.jinja"), "F\n").unwrap();
    assert_eq!(open(&folder).chat(&question).unwrap(), "F");

    fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    let none = with(Value::Null);
    assert!(!none.has_template());
    let error = none.chat(&question).unwrap_err().to_string();
    assert!(error.ends_with("tokenizer_config.json: there is no chat template; give the prompt without --chat"));
}

#[test]
fn special_tokens_come_from_either_file_and_either_form() {
    let folder = folder();
    let question = [turn("user", "Where?")];
    change(
        &folder,
        "tokenizer_config.json",
        json!({
            "chat_template": "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}", "bos_token": null,
            "eos_token": { "content": "<end>", "lstrip": false }, "pad_token": null,
        }),
    );
    change(&folder, "special_tokens_map.json", json!({ "bos_token": "<begin>", "pad_token": null }));
    assert_eq!(open(&folder).chat(&question).unwrap(), "<begin><end>False");
}

#[test]
fn a_template_that_fails_says_why_and_where() {
    let folder = folder();
    let message = |template: &str| {
        fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        let error = open(&folder).chat(&[turn("user", "Where?")]).unwrap_err().to_string();
        let (file, message) = error.split_once(": ").unwrap();
        assert!(file.ends_with("chat_template.jinja"), "{error}");
        assert!(!message.contains('\n'), "{error}");
        message.to_string()
    };
    assert_eq!(
        message("{{ raise_exception('No system turn') }}"),
        "chat template: invalid operation: No system turn (in chat:1)"
    );
    assert_eq!(
        message("\n{{ strftime_now('%c') }}"),
        "chat template: invalid operation: strftime_now: the field `%c` of `%c` is not supported (in chat:2)"
    );
    assert!(message("{% for %}").starts_with("chat template: syntax error: "));
    assert!(message("{{ messages[0].content.encode() }}").contains("encode"));
}

#[test]
fn a_folder_without_a_readable_tokenizer_is_refused() {
    let folder = folder();
    fs::write(folder.path().join("tokenizer_config.json"), "{").unwrap();
    let open = || Text::open(&Checkpoint::open(folder.path()).unwrap()).unwrap_err().to_string();
    assert!(open().contains("tokenizer_config.json: not valid JSON"));
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(open().contains("tokenizer.json: "));
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert!(open().contains(
        "tokenizer.json: the file is missing; text cannot be tokenised without it, so put the model's tokenizer.json there"
    ));
}
