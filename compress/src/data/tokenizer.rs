//! A byte-level BPE tokenizer, learnt from word counts and written as Hugging Face files.
//!
//! Byte pair encoding (Sennrich, Haddow and Birch 2016): start from bytes, and as long as there is room in the vocabulary
//! join the most frequent pair of neighbours inside a word to one new token. All 256 bytes are tokens, so any text can be
//! said and `<unk>` never occurs. Digits stand alone; a word carries the blank in front of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::{Error, Result};

/// The special tokens; the position is the id.
pub const SPECIALS: [&str; 4] = ["<unk>", "<bos>", "<eos>", "<pad>"];
/// The id of `<bos>`.
pub const BOS: u32 = 1;
/// The id of `<eos>`.
pub const EOS: u32 = 2;
/// The id of `<pad>`.
pub const PAD: u32 = 3;

/// Asks and answers as the world's text does, each exchange a document of its own:
/// `<bos>Question: where is Tarn? Answer: north.<eos>`
const CHAT_TEMPLATE: &str = "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token }}\
Question: {{ message['content'] }} Answer:{% elif message['role'] == 'assistant' %} {{ message['content'] }}\
{{ eos_token }}{% endif %}{% endfor %}";

/// A learnt vocabulary: tokens by id, and the joins in the order they were learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bpe {
    /// Tokens in the byte alphabet, specials first.
    pub tokens: Vec<String>,
    /// Pairs joined, most frequent first.
    pub merges: Vec<(String, String)>,
}

impl Bpe {
    /// Learns a vocabulary of exactly `size` tokens from `text`; [`Error::Text`] if the text has too few pairs for it.
    pub fn learn(text: &str, size: usize) -> Result<Self> {
        let alphabet = byte_alphabet();
        let mut tokens: Vec<String> = SPECIALS.iter().map(ToString::to_string).collect();
        tokens.extend(alphabet.iter().map(char::to_string));
        if size < tokens.len() {
            return Err(Error::Text(format!(
                "a vocabulary of {size} cannot hold 256 bytes and {} specials",
                SPECIALS.len()
            )));
        }

        // Ordered by word: the counts below must not depend on a hash map's order.
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for word in words(text) {
            *counts.entry(word).or_default() += 1;
        }
        let first = SPECIALS.len() as u32;
        let mut words: Vec<(Vec<u32>, u64)> = counts
            .into_iter()
            .map(|(word, count)| (word.bytes().map(|byte| first + u32::from(byte)).collect(), count))
            .collect();

        let mut merges = Vec::new();
        while tokens.len() < size {
            let mut pairs: BTreeMap<(u32, u32), u64> = BTreeMap::new();
            for (ids, count) in &words {
                for pair in ids.windows(2) {
                    *pairs.entry((pair[0], pair[1])).or_default() += count;
                }
            }
            // Ties go to the pair with the smaller ids.
            let Some((&(left, right), _)) =
                pairs.iter().max_by_key(|&(&pair, &count)| (count, std::cmp::Reverse(pair)))
            else {
                return Err(Error::Text(format!(
                    "the text has words for {} tokens only, not for {size}",
                    tokens.len()
                )));
            };
            let joined = tokens.len() as u32;
            tokens.push(format!("{}{}", tokens[left as usize], tokens[right as usize]));
            merges.push((tokens[left as usize].clone(), tokens[right as usize].clone()));
            for (ids, _) in &mut words {
                join(ids, (left, right), joined);
            }
        }
        Ok(Self { tokens, merges })
    }

    /// The `tokenizer.json` of this vocabulary. Encoding with special tokens puts `<bos>` in front.
    pub fn to_json(&self) -> Value {
        let special = |(id, token): (usize, &&str)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        };
        let vocab: serde_json::Map<String, Value> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
        let (bos, a) = (json!({ "SpecialToken": { "id": "<bos>", "type_id": 0 } }), "A");
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": SPECIALS.iter().enumerate().map(special).collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{ "type": "Digits", "individual_digits": true }, bytes],
            },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [bos, { "Sequence": { "id": a, "type_id": 0 } }],
                "pair": [
                    bos, { "Sequence": { "id": a, "type_id": 0 } },
                    { "SpecialToken": { "id": "<bos>", "type_id": 1 } }, { "Sequence": { "id": "B", "type_id": 1 } },
                ],
                "special_tokens": { "<bos>": { "id": "<bos>", "ids": [BOS], "tokens": ["<bos>"] } },
            },
            "decoder": bytes,
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": "<unk>",
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": false,
                "vocab": vocab,
                "merges": self.merges.iter().map(|(left, right)| json!([left, right])).collect::<Vec<_>>(),
            },
        })
    }

    /// The tokenizer, ready to encode.
    pub fn tokenizer(&self) -> Result<tokenizers::Tokenizer> {
        let text = self.to_json().to_string();
        tokenizers::Tokenizer::from_bytes(text).map_err(|error| Error::Text(format!("tokenizer.json: {error}")))
    }

    /// The id of a token, spelt in the byte alphabet.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokens.iter().position(|known| known == token).map(|id| id as u32)
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `generation_config.json`.
    ///
    /// A generated answer ends with `<eos>` or with its line.
    pub fn write(&self, folder: &Path, max_length: usize) -> Result<()> {
        let newline = self.id("Ċ").expect("every byte is a token");
        let decoder: serde_json::Map<String, Value> = SPECIALS
            .iter()
            .enumerate()
            .map(|(id, token)| {
                let entry = json!({
                    "content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false,
                    "special": true,
                });
                (id.to_string(), entry)
            })
            .collect();
        let specials = json!({
            "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
        });
        let mut config = json!({
            "add_bos_token": true,
            "add_eos_token": false,
            "added_tokens_decoder": decoder,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": false,
            "model_max_length": max_length,
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        for (name, token) in specials.as_object().expect("an object") {
            config[name] = token.clone();
        }
        let generation = json!({
            "bos_token_id": BOS, "eos_token_id": [EOS, newline], "pad_token_id": PAD, "do_sample": false,
        });
        save(&folder.join("tokenizer.json"), &self.to_json())?;
        save(&folder.join("tokenizer_config.json"), &config)?;
        save(&folder.join("special_tokens_map.json"), &specials)?;
        save(&folder.join("generation_config.json"), &generation)
    }
}

/// Replaces every `pair` of neighbours in `ids` by `joined`, from the left.
fn join(ids: &mut Vec<u32>, pair: (u32, u32), joined: u32) {
    let (mut read, mut write) = (0, 0);
    while read < ids.len() {
        if read + 1 < ids.len() && (ids[read], ids[read + 1]) == pair {
            ids[write] = joined;
            read += 2;
        } else {
            ids[write] = ids[read];
            read += 1;
        }
        write += 1;
    }
    ids.truncate(write);
}

/// Cuts `text` as the pre-tokenizer in `tokenizer.json` does, for text of ASCII letters, digits, blanks and punctuation:
/// runs of letters and of punctuation take one blank along, a digit stands alone.
fn words(text: &str) -> impl Iterator<Item = &str> {
    fn class(byte: u8) -> u8 {
        match byte {
            b' ' | b'\n' | b'\t' | b'\r' => 0,
            b'a'..=b'z' | b'A'..=b'Z' | 128.. => 1,
            b'0'..=b'9' => 2,
            _ => 3,
        }
    }
    let bytes = text.as_bytes();
    let mut start = 0;
    std::iter::from_fn(move || {
        let begin = start;
        let first = *bytes.get(begin)?;
        let mut end = begin + 1;
        let mut kind = class(first);
        if first == b' ' && bytes.get(end).is_some_and(|&next| matches!(class(next), 1 | 3)) {
            kind = class(bytes[end]);
            end += 1;
        }
        while kind != 2 && kind != 0 && bytes.get(end).is_some_and(|&next| class(next) == kind) {
            end += 1;
        }
        start = end;
        Some(&text[begin..end])
    })
}

/// The printable character that stands for each byte in a byte-level vocabulary: itself where it is printable in
/// Latin-1, else the next free character from U+0100 on.
fn byte_alphabet() -> [char; 256] {
    let mut spare = 0x100;
    std::array::from_fn(|byte| {
        let own = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if own {
            byte as u32
        } else {
            spare += 1;
            spare - 1
        };
        char::from_u32(code).expect("below the surrogates")
    })
}

/// `text` as ids, without `<bos>`.
pub fn encode(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, false).map_err(|error| Error::Text(error.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}

/// The tokenizer of a `tokenizer.json`.
pub fn open(path: &Path) -> Result<tokenizers::Tokenizer> {
    tokenizers::Tokenizer::from_file(path).map_err(|error| Error::Text(format!("{}: {error}", path.display())))
}

fn save(path: &Path, value: &Value) -> Result<()> {
    let fail = |what: String| Error::Text(format!("{}: {what}", path.display()));
    let text = serde_json::to_string_pretty(value).map_err(|error| fail(error.to_string()))?;
    fs::write(path, text + "\n").map_err(|error| fail(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::world::World;

    #[test]
    fn merges_follow_the_counts() {
        // "ab" stands six times, "abc" four times; then " a" + "b" … by hand.
        let bpe = Bpe::learn("abc abc abc abc ab ab", 256 + 4 + 3).unwrap();
        let merges: Vec<String> = bpe.merges.iter().map(|(left, right)| format!("{left}+{right}")).collect();
        assert_eq!(merges, ["a+b", "Ġ+ab", "Ġab+c"]);
        let error = Bpe::learn("ab", 300).unwrap_err().to_string();
        assert_eq!(error, "the text has words for 261 tokens only, not for 300");
    }

    #[test]
    fn the_world_is_covered_and_comes_back() {
        let world = World::new(1);
        let text = world.corpus(20_000);
        let bpe = Bpe::learn(&text, 1024).unwrap();
        let tokenizer = bpe.tokenizer().unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), 1024);
        let mut tokens = 0;
        for sentence in world.sentences() {
            let ids = encode(&tokenizer, sentence).unwrap();
            assert!(ids.iter().all(|&id| id as usize >= SPECIALS.len()), "{sentence}: {ids:?}");
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), sentence);
            tokens += ids.len();
        }
        let words: usize = world.sentences().map(|sentence| words(sentence).count()).sum();
        assert!(tokens < words * 5 / 4, "{tokens} tokens for {words} words");
    }

    #[test]
    fn our_cutting_into_words_is_the_files() {
        let tokenizer = Bpe::learn("a", 260).unwrap().tokenizer().unwrap();
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
        for text in ["One day, Miro has 12 nuts.\nQuestion: why? Answer: no.\n", "a: b (c) 3.5 -- x", "Ünder änderem"]
        {
            let mut cut = PreTokenizedString::from(text);
            tokenizer.get_pre_tokenizer().unwrap().pre_tokenize(&mut cut).unwrap();
            let theirs: Vec<&str> = cut
                .get_splits(OffsetReferential::Original, OffsetType::Byte)
                .into_iter()
                .map(|(_, (from, to), _)| &text[from..to])
                .collect();
            assert_eq!(words(text).collect::<Vec<_>>(), theirs);
        }
    }

    #[test]
    fn any_text_survives_and_bos_is_put_in_front() {
        let tokenizer = Bpe::learn("some text", 262).unwrap().tokenizer().unwrap();
        let text = "Hej, 1024 — ¿qué? 你好\t🙂\r\n";
        let ids = encode(&tokenizer, text).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        assert_eq!(tokenizer.encode(text, true).unwrap().get_ids()[0], BOS);
        assert_eq!(encode(&tokenizer, "<eos><pad>").unwrap(), [EOS, PAD]);
    }
}
