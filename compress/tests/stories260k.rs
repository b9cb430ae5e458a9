//! stories260K, a Llama of a quarter of a million weights in llama2.c's own container, held to the text its author
//! published (karpathy/llama2.c, `doc/stories260K.md`).
//!
//! The model is not in the repository: `SCRUPLE_DATA` names the folder with `models/stories260K`. Without it the test
//! says so and passes.

#![allow(clippy::print_stdout)] // what was skipped, shown by `--nocapture`

use std::{env, path::Path};

use scruple_compress::model::{
    Decoder,
    generate::{Sampling, generate},
};
use scruple_weights::{Checkpoint, digest, format::llama2c};

/// Begins a text.
const BOS: u32 = 1;

/// Length and SHA-256 of the published text: what greedy decoding of 256 positions gives, the first space left out.
const PUBLISHED: (usize, &str) = (565, "30b2ffb07967932a");

/// The text of `ids`: `<0x0A>` stands for one byte, and the space that every text begins with goes.
fn text(vocabulary: &llama2c::Vocabulary, ids: &[u32]) -> Vec<u8> {
    let mut text = Vec::new();
    for &id in ids {
        let (bytes, _) = &vocabulary.tokens[id as usize];
        let one = bytes.strip_prefix(b"<0x").and_then(|rest| rest.strip_suffix(b">"));
        match one.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()) {
            Some(byte) => text.push(byte),
            None => text.extend_from_slice(bytes),
        }
    }
    text.strip_prefix(b" ").map_or(text.clone(), <[u8]>::to_vec)
}

#[test]
fn greedy_text_of_stories260k_is_the_published_one() {
    let Some(data) = env::var_os("SCRUPLE_DATA") else {
        println!("skipped: SCRUPLE_DATA does not name the data folder");
        return;
    };
    let folder = Path::new(&data).join("models/stories260K");
    let checkpoint = Checkpoint::open(folder.join("stories260K.bin")).unwrap();
    assert_eq!(checkpoint.parameters(), 260_032);
    let model = Decoder::open(&checkpoint).unwrap();
    let vocabulary = llama2c::read_vocabulary(&folder.join("tok512.bin")).unwrap();
    // Position 0 holds BOS, so 256 steps give 256 tokens.
    let ids = generate(&model, &[BOS], 256, Sampling::GREEDY, &[], |_| true).unwrap();
    let text = text(&vocabulary, &ids);
    println!("{}", String::from_utf8_lossy(&text));
    assert_eq!((text.len(), &digest::sha256(&text)[..16]), PUBLISHED, "{}", String::from_utf8_lossy(&text));
}
