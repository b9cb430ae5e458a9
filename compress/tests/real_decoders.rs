//! Published models, held to what `transformers` makes of the same weights (`fixtures/interop/goldens.py`).
//!
//! The models are not in the repository: each variable of [`MODELS`] names the folder that `scruple convert --dtype f32`
//! wrote from the model's GGUF, `SCRUPLE_DATA` the folder with `text/wikitext-2/valid.txt`. What is not there is said to be
//! skipped.

#![allow(clippy::print_stdout)] // what was skipped, and differences, shown by `--nocapture`

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use scruple_compress::{
    measure::{Windows, evaluate},
    model::{
        Decoder,
        decoder::KvCache,
        generate::{Sampling, generate},
        text::{Message, Text},
    },
};
use scruple_weights::{Checkpoint, Dtype};
use serde::Deserialize;

/// Variable that names the folder, and the goldens.
const MODELS: [(&str, &str); 2] =
    [("SCRUPLE_SMOLLM2", "smollm2_goldens.json"), ("SCRUPLE_GEMMA3", "gemma3_270m_goldens.json")];

/// Both sides compute in f32 over 30 blocks; the sums have up to 1536 terms in another order. 2e-5 is seen.
const MAX_LOGIT_DIFFERENCE: f32 = 1e-3;

/// Of the perplexity over the four windows; 1.5e-4 is seen.
const MAX_PERPLEXITY_DIFFERENCE: f64 = 0.005;

#[derive(Deserialize)]
struct Golden {
    windows: usize,
    window: usize,
    perplexity: f64,
    window_nll: Vec<f64>,
    first_ids: Vec<u32>,
    prompt: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    greedy_text: String,
    last_logits_top10: Vec<(usize, f32)>,
    last_logits_first16: Vec<f32>,
    token_counts: std::collections::HashMap<String, usize>,
    /// None of a model without a chat template.
    chat: Option<Chat>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Turn>,
    rendered: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: String,
}

fn folder(variable: &str) -> Option<PathBuf> {
    let folder = env::var_os(variable).map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: {variable} is not set");
    }
    folder
}

/// The models that are there.
fn models() -> impl Iterator<Item = (Decoder, Text, Golden)> {
    MODELS.iter().filter_map(|(variable, golden)| {
        let checkpoint = Checkpoint::open(folder(variable)?).unwrap();
        let dtype = checkpoint.tensor("model.embed_tokens.weight").unwrap().dtype();
        assert_eq!(dtype, Dtype::F32, "the goldens are those of f32 weights: convert with --dtype f32");
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/interop").join(golden);
        let golden = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
        Some((Decoder::open(&checkpoint).unwrap(), Text::open(&checkpoint).unwrap(), golden))
    })
}

#[test]
fn the_prompt_has_the_same_tokens_logits_and_continuation() {
    for (model, text, golden) in models() {
        let ids = text.encode(&golden.prompt, false).unwrap();
        assert_eq!(ids, golden.prompt_ids);

        let logits = model.next_logits(&ids, &mut KvCache::default()).unwrap();
        let expected =
            golden.last_logits_first16.iter().copied().enumerate().chain(golden.last_logits_top10.iter().copied());
        let (worst, id) = expected
            .map(|(id, expected)| ((logits[id] - expected).abs(), id))
            .fold((0.0, 0), |worst, this| if this.0 > worst.0 { this } else { worst });
        println!("largest difference of a logit {worst:.2e}, of token {id}");
        assert!(worst <= MAX_LOGIT_DIFFERENCE, "token {id} is off by {worst}");

        let made = generate(&model, &ids, golden.greedy_ids.len(), Sampling::GREEDY, &[], |_| true).unwrap();
        assert_eq!(made, golden.greedy_ids);
        assert_eq!(text.decode(&made).unwrap(), golden.greedy_text);
    }
}

#[test]
fn the_chat_template_gives_the_same_tokens() {
    for (_, text, golden) in models() {
        let Some(chat) = golden.chat else { continue };
        let turns = chat.messages.iter().map(|m| Message { role: m.role.clone(), content: m.content.clone() });
        let rendered = text.chat(&turns.collect::<Vec<_>>()).unwrap();
        assert_eq!(rendered, chat.rendered);
        assert_eq!(text.encode(&rendered, false).unwrap(), chat.ids);
    }
}

#[test]
fn the_perplexity_of_wikitext_is_the_same() {
    let Some(data) = folder("SCRUPLE_DATA") else { return };
    for (model, text, golden) in models() {
        let wikitext = fs::read_to_string(data.join("text/wikitext-2/valid.txt")).unwrap();
        let ids = text.encode(&wikitext, false).unwrap();
        assert_eq!(ids[..golden.first_ids.len()], golden.first_ids);
        assert_eq!(ids.len(), golden.token_counts["valid.txt"]);

        let windows = Windows::new(&ids, golden.window, Some(golden.windows * golden.window)).unwrap();
        assert_eq!((windows.iter().len(), golden.window_nll.len()), (golden.windows, golden.windows));
        let found = evaluate(&model, None, &windows, None, &mut |_| {}).unwrap();
        println!("perplexity {:.5}, expected {:.5}", found.perplexity, golden.perplexity);
        assert!((found.perplexity - golden.perplexity).abs() <= MAX_PERPLEXITY_DIFFERENCE);
    }
}
