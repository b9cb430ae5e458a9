//! `tokenizer.json` and its companions from GGUF's vocabulary.
//!
//! Two kinds of tokenizer are converted. `gpt2` is byte-level BPE: tokens and merges are in the file, how text is cut
//! before merging is one word (`tokenizer.ggml.pre`) that a table here spells out. `llama` is SentencePiece's BPE: the
//! file has scores in place of merges, and the merges are all splits of a token into two tokens, best score first.

use std::{cmp::Ordering, collections::HashMap};

use serde::{Serialize, Serializer};
use serde_json::{Map, Value as Json, json};

use super::{Facts, TokenIds, pretty};
use crate::format::gguf::{Strings, Value};

/// The tokenizer's files, and the ids that go into the configurations too.
pub(super) struct Tokenizer {
    pub(super) files: Vec<(String, Vec<u8>)>,
    pub(super) ids: TokenIds,
}

/// How text is cut into words before merging, by GGUF's name.
pub(crate) struct Pre {
    /// `tokenizer.ggml.pre`, the usual name first. llama.cpp has several names for some.
    pub(crate) names: &'static [&'static str],
    pub(crate) cut: Cut<'static>,
    /// Unicode NFC first.
    pub(crate) nfc: bool,
    /// A word that is a token is taken whole, even where the merges would not make it.
    pub(crate) ignore_merges: bool,
    /// Whether a text begins with BOS if the file does not say.
    add_bos: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut<'a> {
    /// GPT-2's pattern, which the byte-level step has built in.
    ByteLevel,
    /// Every digit alone, then GPT-2's pattern.
    DigitsThenByteLevel,
    Pattern(&'a str),
}

/// The pre-tokenizers, after the tokenizer.json of the models that gave them their names. `default` is what a converter
/// writes that did not recognise the model; GPT-2's pattern is what most of those have.
pub(crate) const PRES: &[Pre] = &[
    Pre { names: &["smollm"], cut: Cut::DigitsThenByteLevel, nfc: false, ignore_merges: false, add_bos: false },
    Pre { names: &["gpt-2", "default"], cut: Cut::ByteLevel, nfc: false, ignore_merges: false, add_bos: false },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3"],
        cut: Cut::Pattern(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: false,
        ignore_merges: true,
        add_bos: true,
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen"],
        cut: Cut::Pattern(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: true,
        ignore_merges: false,
        add_bos: false,
    },
];

/// What GGUF says a token is (`tokenizer.ggml.token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal = 1,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// The vocabulary, checked: as many kinds as tokens, no token twice.
struct Vocabulary<'a> {
    tokens: &'a Strings,
    kinds: Vec<Kind>,
    ids: HashMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    fn new(facts: &mut Facts<'a>, vocab_size: usize) -> Option<Self> {
        let tokens = facts.required("tokenizer.ggml.tokens", "an array of strings", Value::as_strings)?;
        let before = facts.problems.len();
        if tokens.is_empty() || tokens.len() > vocab_size {
            let found = tokens.len();
            facts.problem(None, format!("the tokenizer has {found} tokens, the embedding {vocab_size} rows"));
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token, id) {
                facts.problem(None, format!("token {id} (`{}`) is also token {first}", token.escape_debug()));
                break;
            }
        }
        let kinds = match facts.optional("tokenizer.ggml.token_type", "an array of integers", Value::as_numbers) {
            None => vec![Kind::Normal; tokens.len()],
            Some(kinds) => {
                if kinds.len() != tokens.len() {
                    facts.problem(
                        None,
                        format!("`tokenizer.ggml.token_type` has {} entries for {} tokens", kinds.len(), tokens.len()),
                    );
                }
                let kind = |value: Value| match value.as_u64() {
                    Some(1) => Some(Kind::Normal),
                    Some(2) => Some(Kind::Unknown),
                    Some(3) => Some(Kind::Control),
                    Some(4) => Some(Kind::UserDefined),
                    // 0 is "undefined"; such tokens only fill the vocabulary up.
                    Some(0 | 5) => Some(Kind::Unused),
                    Some(6) => Some(Kind::Byte),
                    _ => None,
                };
                let known: Option<Vec<Kind>> = kinds.iter().map(kind).collect();
                if known.is_none() {
                    facts.problem(None, "`tokenizer.ggml.token_type` has an entry outside 0 to 6");
                }
                known?
            }
        };
        (facts.problems.len() == before).then_some(Self { tokens, kinds, ids })
    }

    fn token(&self, id: u64) -> &'a str {
        self.tokens.get(id as usize).unwrap_or_default()
    }
}

/// More merges than any vocabulary has (half a million for a quarter of a million tokens), few enough to hold.
const MAX_MERGES: usize = 4 << 20;

/// tokenizer.json. The long parts borrow from the file, so that a large vocabulary costs little beyond its text.
#[derive(Serialize)]
struct TokenizerJson<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<AddedToken<'a>>,
    normalizer: Json,
    pre_tokenizer: Json,
    post_processor: Json,
    decoder: Json,
    model: Bpe<'a>,
}

/// A token that is found in a text before it is cut.
#[derive(Serialize)]
struct AddedToken<'a> {
    id: usize,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Serialize)]
struct Bpe<'a> {
    r#type: &'static str,
    dropout: (),
    unk_token: Option<&'a str>,
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "by_id")]
    vocab: &'a Strings,
    merges: Vec<(&'a str, &'a str)>,
}

/// Token → id, in the order of the ids.
fn by_id<S: Serializer>(tokens: &Strings, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(tokens.iter().enumerate().map(|(id, token)| (token, id)))
}

/// Makes the tokenizer's files. `None` if a problem (noted) is in the way.
pub(super) fn tokenizer(facts: &mut Facts<'_>, vocab_size: usize, context_length: usize) -> Option<Tokenizer> {
    let model = facts.required("tokenizer.ggml.model", "`gpt2` or `llama`", Value::as_str)?;
    let vocabulary = Vocabulary::new(facts, vocab_size)?;
    let (pipeline, special) = match model {
        "gpt2" => {
            let pre = pre_tokenizer(facts)?;
            let special = Special::new(facts, &vocabulary, pre.add_bos)?;
            (byte_level(facts, &vocabulary, pre)?, special)
        }
        "llama" => {
            let special = Special::new(facts, &vocabulary, true)?;
            (sentence_piece(facts, &vocabulary, special.unk)?, special)
        }
        other => {
            let other = other.escape_debug();
            facts.problem(None, format!("the tokenizer model `{other}` cannot be converted, only `gpt2` and `llama`"));
            return None;
        }
    };

    let tokenizer = TokenizerJson {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens: special.added_tokens(&vocabulary),
        normalizer: pipeline.normalizer,
        pre_tokenizer: pipeline.pre_tokenizer,
        post_processor: special.post_processor(&vocabulary),
        decoder: pipeline.decoder,
        model: pipeline.model,
    };
    let mut tokenizer = serde_json::to_vec(&tokenizer).expect("strings and numbers have a JSON form");
    tokenizer.push(b'\n');
    let config = special.config(&vocabulary, chat_template(facts), context_length);
    let files = vec![
        ("tokenizer.json".to_owned(), tokenizer),
        ("tokenizer_config.json".to_owned(), pretty(&config)),
        ("special_tokens_map.json".to_owned(), pretty(&special.named(&vocabulary).into())),
    ];
    Some(Tokenizer { files, ids: special.ids })
}

/// The steps of tokenizer.json that differ between the two kinds.
struct Pipeline<'a> {
    normalizer: Json,
    pre_tokenizer: Json,
    decoder: Json,
    model: Bpe<'a>,
}

fn pre_tokenizer(facts: &mut Facts<'_>) -> Option<&'static Pre> {
    // Files from before May 2024 do not say, and every reader takes them as `default`.
    let name = facts.optional("tokenizer.ggml.pre", "a name", Value::as_str).unwrap_or("default");
    let pre = PRES.iter().find(|pre| pre.names.contains(&name));
    if pre.is_none() {
        let known: Vec<&str> = PRES.iter().flat_map(|pre| pre.names).copied().collect();
        let (name, known) = (name.escape_debug(), known.join(", "));
        facts.problem(None, format!("the pre-tokenizer `{name}` cannot be converted, only {known}"));
    }
    pre
}

fn byte_level<'a>(facts: &mut Facts<'a>, vocabulary: &Vocabulary<'a>, pre: &Pre) -> Option<Pipeline<'a>> {
    let listed = facts.required("tokenizer.ggml.merges", "an array of strings", Value::as_strings)?;
    if listed.len() > MAX_MERGES {
        facts.problem(None, format!("there are {} merges, expected at most {MAX_MERGES}", listed.len()));
        return None;
    }
    let mut merges = Vec::with_capacity(listed.len());
    let mut joined = String::new();
    for (number, merge) in listed.iter().enumerate() {
        // Byte-level tokens hold no spaces, so the first one (not at the start) divides.
        let parts =
            merge.char_indices().skip(1).find(|&(_, c)| c == ' ').map(|(at, _)| (&merge[..at], &merge[at + 1..]));
        let known = parts.filter(|(left, right)| {
            joined.clear();
            joined.extend([*left, *right]);
            [*left, *right, joined.as_str()].iter().all(|token| vocabulary.ids.contains_key(token))
        });
        let Some((left, right)) = known else {
            let merge: String = merge.chars().take(100).flat_map(char::escape_debug).collect();
            facts.problem(
                None,
                format!("merge {number} (`{merge}`) is not two tokens with a space between that make a third token"),
            );
            return None;
        };
        merges.push((left, right));
    }

    let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let sequence = |steps: [Json; 2]| json!({ "type": "Sequence", "pretokenizers": steps });
    Some(Pipeline {
        normalizer: if pre.nfc { json!({ "type": "NFC" }) } else { Json::Null },
        pre_tokenizer: match pre.cut {
            Cut::ByteLevel => byte_level(true),
            Cut::DigitsThenByteLevel => {
                sequence([json!({ "type": "Digits", "individual_digits": true }), byte_level(true)])
            }
            Cut::Pattern(pattern) => sequence([
                json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false }),
                byte_level(false),
            ]),
        },
        decoder: json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
        model: bpe(vocabulary, merges, None, false, pre.ignore_merges),
    })
}

/// The `model` of tokenizer.json.
fn bpe<'a>(
    vocabulary: &Vocabulary<'a>,
    merges: Vec<(&'a str, &'a str)>,
    unk: Option<&'a str>,
    byte_fallback: bool,
    ignore_merges: bool,
) -> Bpe<'a> {
    Bpe {
        r#type: "BPE",
        dropout: (),
        unk_token: unk,
        continuing_subword_prefix: (),
        end_of_word_suffix: (),
        fuse_unk: unk.is_some(),
        byte_fallback,
        ignore_merges,
        vocab: vocabulary.tokens,
        merges,
    }
}

fn sentence_piece<'a>(facts: &mut Facts<'a>, vocabulary: &Vocabulary<'a>, unk: Option<u64>) -> Option<Pipeline<'a>> {
    let scores = facts.required("tokenizer.ggml.scores", "an array of numbers", Value::as_numbers)?;
    let number = |score: Value| match score {
        Value::F32(score) => Some(f64::from(score)),
        other => other.as_f64(),
    };
    let scores: Option<Vec<f64>> = if scores.len() == vocabulary.tokens.len() {
        scores.iter().map(|score| number(score).filter(|score| !score.is_nan())).collect()
    } else {
        None
    };
    let Some(scores) = scores else {
        let expected = vocabulary.tokens.len();
        facts.problem(None, format!("`tokenizer.ggml.scores` is not {expected} numbers, one for each token"));
        return None;
    };
    let merges = merges_from_scores(facts, vocabulary, &scores)?;
    let prefix = facts.optional("tokenizer.ggml.add_space_prefix", "a boolean", Value::as_bool).unwrap_or(true);

    // A space is `▁` inside; a text begins with one, and loses it again when decoded.
    let mut normalizers = vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let byte_fallback = (0..=255).all(|byte: u8| vocabulary.ids.contains_key(format!("<0x{byte:02X}>").as_str()));
    Some(Pipeline {
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer: Json::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model: bpe(vocabulary, merges, unk.map(|unk| vocabulary.token(unk)), byte_fallback, false),
    })
}

/// SentencePiece merges the pair whose union scores best. As a list of merges: every split of a mergeable token into
/// two tokens, by score, then by longer left part (in characters), longer right part, and the order of the ids.
fn merges_from_scores<'a>(
    facts: &mut Facts<'a>,
    vocabulary: &Vocabulary<'a>,
    scores: &[f64],
) -> Option<Vec<(&'a str, &'a str)>> {
    /// Real pieces are at most tens of bytes; the work grows with the square of this.
    const LONGEST: usize = 256;

    struct Merge<'a> {
        score: f64,
        left: (&'a str, usize),
        right: (&'a str, usize),
    }
    let mergeable = |id: usize| matches!(vocabulary.kinds[id], Kind::Normal | Kind::UserDefined | Kind::Unused);
    let part = |token| vocabulary.ids.get(token).copied().filter(|&id| mergeable(id));
    let mut merges = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate().filter(|&(id, _)| mergeable(id)) {
        if token.len() > LONGEST {
            facts.problem(None, format!("token {id} is {} bytes long, expected at most {LONGEST}", token.len()));
            return None;
        }
        let length = token.chars().count();
        let first = merges.len();
        for (at, (byte, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(byte);
            if part(left).is_some() && part(right).is_some() {
                merges.push(Merge { score: scores[id], left: (left, at), right: (right, length - at) });
            }
        }
        if merges.len() > MAX_MERGES {
            facts.problem(None, format!("the tokens make more than {MAX_MERGES} merges; the vocabulary is damaged"));
            return None;
        }
        merges[first..].sort_by_key(|merge| (vocabulary.ids[merge.left.0], vocabulary.ids[merge.right.0]));
    }
    // Stable, so that equals keep the order of the ids.
    merges.sort_by(|a, b| {
        let by_score = b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal);
        by_score.then(b.left.1.cmp(&a.left.1)).then(b.right.1.cmp(&a.right.1))
    });
    Some(merges.into_iter().map(|merge| (merge.left.0, merge.right.0)).collect())
}

/// The tokens with a meaning of their own.
struct Special {
    ids: TokenIds,
    unk: Option<u64>,
    add_bos: bool,
    add_eos: bool,
}

impl Special {
    fn new(facts: &mut Facts<'_>, vocabulary: &Vocabulary<'_>, add_bos: bool) -> Option<Self> {
        let before = facts.problems.len();
        let mut id = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let id = facts.optional(&key, "a token's number", Value::as_u64)?;
            if id >= vocabulary.tokens.len() as u64 {
                let tokens = vocabulary.tokens.len();
                facts.problem(None, format!("metadata `{key}` is {id}, but there are {tokens} tokens"));
                return None;
            }
            Some(id)
        };
        let (bos, eos) = (id("bos"), id("eos"));
        // Some writers put 0 for "none" here, and 0 may be `!`: an ordinary word is not believed to be either.
        let own = |id: &u64| vocabulary.kinds[*id as usize] != Kind::Normal || Some(*id) == bos || Some(*id) == eos;
        let (unk, pad) = (id("unknown").filter(own), id("padding").filter(own));
        let mut ends: Vec<u64> = Vec::new();
        for end in [eos, id("eot"), id("eom")].into_iter().flatten() {
            if !ends.contains(&end) {
                ends.push(end);
            }
        }
        let unk = unk.or_else(|| vocabulary.kinds.iter().position(|&kind| kind == Kind::Unknown).map(|id| id as u64));
        let mut flag = |key: &str, otherwise| facts.optional(key, "a boolean", Value::as_bool).unwrap_or(otherwise);
        // Without the token there is nothing to add.
        let add_bos = flag("tokenizer.ggml.add_bos_token", add_bos) && bos.is_some();
        let add_eos = flag("tokenizer.ggml.add_eos_token", false) && eos.is_some();
        let ids = TokenIds { bos, eos, pad, ends };
        (facts.problems.len() == before).then_some(Self { ids, unk, add_bos, add_eos })
    }

    /// Tokens that are found in a text before it is cut, by id.
    fn added_tokens<'a>(&self, vocabulary: &Vocabulary<'a>) -> Vec<AddedToken<'a>> {
        let mut added = Vec::new();
        let told = vocabulary.kinds.contains(&Kind::Control);
        for (id, (token, &kind)) in vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate() {
            // A word of the language may end an answer; where the file tells what tokens are, it stays a word.
            let ends = self.ids.ends.contains(&(id as u64)) && !(kind == Kind::Normal && told);
            let named = [self.ids.bos, self.ids.eos, self.ids.pad, self.unk].contains(&Some(id as u64)) || ends;
            let special = named || matches!(kind, Kind::Control | Kind::Unknown);
            // A SentencePiece piece of spaces is written with `▁`, which no text has; its merges find it.
            let plain = kind == Kind::UserDefined && !token.contains('▁');
            if (special || plain) && !token.is_empty() {
                added.push(AddedToken {
                    id,
                    content: token,
                    single_word: false,
                    lstrip: false,
                    rstrip: false,
                    normalized: false,
                    special,
                });
            }
        }
        added
    }

    /// Adds BOS before and EOS after each text, if the model wants them.
    fn post_processor(&self, vocabulary: &Vocabulary<'_>) -> Json {
        let bos = self.ids.bos.filter(|_| self.add_bos);
        let eos = self.ids.eos.filter(|_| self.add_eos);
        if bos.is_none() && eos.is_none() {
            return Json::Null;
        }
        let around = |text: &str, type_id: u64| {
            let special = |id: u64| json!({ "SpecialToken": { "id": vocabulary.token(id), "type_id": type_id } });
            let text = json!({ "Sequence": { "id": text, "type_id": type_id } });
            bos.map(special).into_iter().chain([text]).chain(eos.map(special)).collect::<Vec<Json>>()
        };
        let mut special_tokens = Map::new();
        for id in bos.into_iter().chain(eos) {
            let token = vocabulary.token(id);
            special_tokens.insert(token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] }));
        }
        let pair = [around("A", 0), around("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": around("A", 0),
            "pair": pair,
            "special_tokens": special_tokens,
        })
    }

    /// The names transformers has for some of the tokens.
    fn named(&self, vocabulary: &Vocabulary<'_>) -> Map<String, Json> {
        [("bos_token", self.ids.bos), ("eos_token", self.ids.eos), ("pad_token", self.ids.pad), ("unk_token", self.unk)]
            .into_iter()
            .filter_map(|(name, id)| Some((name.to_owned(), json!(vocabulary.token(id?)))))
            .collect()
    }

    fn config(&self, vocabulary: &Vocabulary<'_>, chat_template: Json, context_length: usize) -> Json {
        let mut config = self.named(vocabulary);
        config.insert("add_bos_token".to_owned(), json!(self.add_bos));
        config.insert("add_eos_token".to_owned(), json!(self.add_eos));
        config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
        config.insert("model_max_length".to_owned(), json!(context_length));
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        if !chat_template.is_null() {
            config.insert("chat_template".to_owned(), chat_template);
        }
        config.sort_keys();
        config.into()
    }
}

/// The chat template: a text, or a list of named ones if there are several; null if there is none.
fn chat_template(facts: &mut Facts<'_>) -> Json {
    let default = facts.optional("tokenizer.chat_template", "a text", Value::as_str);
    let Some(names) = facts.optional("tokenizer.chat_templates", "an array of names", Value::as_strings) else {
        return json!(default);
    };
    let mut templates = vec![];
    if let Some(template) = default {
        templates.push(json!({ "name": "default", "template": template }));
    }
    for name in names.iter().filter(|&name| name != "default") {
        let template = facts.gguf.get(&format!("tokenizer.chat_template.{name}")).and_then(Value::as_str);
        templates.extend(template.map(|template| json!({ "name": name, "template": template })));
    }
    templates.into()
}
