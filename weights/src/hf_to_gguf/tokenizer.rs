//! GGUF's vocabulary from `tokenizer.json` and its companions.
//!
//! Byte-level BPE becomes `gpt2`: tokens, merges, and the one word for how text is cut, found in the table that the other
//! direction reads. SentencePiece's BPE becomes `llama`: its scores are the order of the merges, and that the scores give
//! back all the merges is checked. Everything else is refused: a tokenizer that cuts otherwise makes a model that answers
//! wrongly and says nothing.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value as Json};

use super::Notes;
use crate::{
    Result,
    format::shown,
    gguf_to_hf::{
        TokenIds,
        tokenizer::{Cut, Kind, PRES},
    },
    writer::gguf::GgufMetadata,
};

const FILE: &str = "tokenizer.json";

/// Writes the tokenizer's keys; gives the ids that the configuration has too, or `None` if a problem (noted) is in the way.
///
/// # Errors
/// If a file is there and cannot be read.
pub(super) fn metadata(
    notes: &mut Notes<'_>,
    vocab_size: usize,
    metadata: &mut GgufMetadata,
) -> Result<Option<TokenIds>> {
    let Some(tokenizer) = notes.file(FILE)? else {
        notes.problem_in(FILE, None, "is missing; GGUF holds the tokenizer in the model's file");
        return Ok(None);
    };
    let config = notes.file("tokenizer_config.json")?.unwrap_or_default();
    let generation = notes.file("generation_config.json")?.unwrap_or_default();
    let template = template(notes, &config)?;
    let pieces = tokenizer["model"]["byte_fallback"] == true || is_sentence_piece(&tokenizer);
    let Some(vocabulary) = Vocabulary::new(notes, &tokenizer, vocab_size, pieces) else { return Ok(None) };
    let known = match pieces {
        false => byte_level(notes, &tokenizer, &vocabulary, metadata),
        true => sentence_piece(notes, &tokenizer, &vocabulary, metadata),
    };
    if known.is_none() {
        return Ok(None);
    }
    let ids = special(notes, &tokenizer, &config, &generation, &vocabulary, metadata);
    write_template(&template, metadata);
    Ok(ids)
}

/// A text field of a step.
fn text<'a>(step: &'a Json, key: &str) -> &'a str {
    step[key].as_str().unwrap_or_default()
}

/// The steps of a sequence, or the one step there is; none for null.
fn steps<'a>(step: &'a Json, list: &str) -> Vec<&'a Json> {
    match (step, text(step, "type")) {
        (Json::Null, _) => Vec::new(),
        (_, "Sequence") => step[list].as_array().into_iter().flatten().collect(),
        _ => vec![step],
    }
}

struct Vocabulary<'a> {
    /// By id; what the embedding has beyond the tokenizer's tokens is filled up.
    tokens: Vec<String>,
    kinds: Vec<Kind>,
    ids: HashMap<&'a str, usize>,
    merges: Vec<(&'a str, &'a str)>,
}

impl<'a> Vocabulary<'a> {
    fn new(notes: &mut Notes<'_>, tokenizer: &'a Json, vocab_size: usize, pieces: bool) -> Option<Self> {
        let model = &tokenizer["model"];
        let (Some(vocab), "BPE") = (model["vocab"].as_object(), text(model, "type")) else {
            let found = shown(text(model, "type"));
            notes.problem_in(
                FILE,
                None,
                format!("the tokenizer model `{found}` cannot be written as GGUF, only BPE can"),
            );
            return None;
        };
        for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
            if !matches!(&model[key], Json::Null) && model[key] != "" {
                notes.problem_in(FILE, None, format!("`model.{key}` is set, which GGUF has no place for"));
                return None;
            }
        }
        let unk = model["unk_token"].as_str();
        let mut tokens: Vec<Option<&str>> = vec![None; vocab_size];
        let mut kinds = vec![Kind::Unused; vocab_size];
        let mut ids = HashMap::with_capacity(vocab.len());
        let id_of = |value: &Json| value.as_u64().filter(|&id| id < vocab_size as u64).map(|id| id as usize);
        let added = tokenizer["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut entries: Vec<(&str, &Json, Kind)> = Vec::with_capacity(vocab.len() + added.len());
        for (token, id) in vocab {
            let kind = if pieces && is_byte(token) { Kind::Byte } else { Kind::Normal };
            entries.push((token, id, kind));
        }
        for token in added {
            let content = text(token, "content");
            let kind = match token["special"].as_bool() {
                _ if pieces && Some(content) == unk => Kind::Unknown,
                Some(true) => Kind::Control,
                _ => Kind::UserDefined,
            };
            entries.push((content, &token["id"], kind));
        }
        for (token, id, kind) in entries {
            let Some(id) = id_of(id) else {
                let token = shown(token);
                notes.problem_in(
                    FILE,
                    None,
                    format!("token `{token}` has the id {id}, but the embedding has {vocab_size} rows"),
                );
                return None;
            };
            if tokens[id].is_some_and(|other| other != token) || ids.insert(token, id).is_some_and(|other| other != id)
            {
                notes.problem_in(
                    FILE,
                    None,
                    format!("token {id} (`{}`) is not the only one of its id or its text", shown(token)),
                );
                return None;
            }
            tokens[id] = Some(token);
            kinds[id] = kind;
        }
        let mut merges = Vec::new();
        for (number, merge) in model["merges"].as_array().into_iter().flatten().enumerate() {
            let pair = match merge {
                Json::String(merge) => merge.split_once(' '),
                _ => merge[0].as_str().zip(merge[1].as_str()),
            };
            let Some((left, right)) = pair.filter(|(left, right)| ids.contains_key([*left, *right].concat().as_str()))
            else {
                notes.problem_in(FILE, None, format!("merge {number} is not two texts that make a token"));
                return None;
            };
            merges.push((left, right));
        }
        let filled = |(id, token): (usize, Option<&str>)| token.map_or_else(|| format!("[PAD{id}]"), str::to_owned);
        let tokens = tokens.into_iter().enumerate().map(filled).collect();
        Some(Self { tokens, kinds, ids, merges })
    }

    fn write(&self, model: &str, pre: &str, metadata: &mut GgufMetadata) {
        metadata.text("tokenizer.ggml.model", model);
        metadata.text("tokenizer.ggml.pre", pre);
        metadata.texts("tokenizer.ggml.tokens", &self.tokens);
        let kinds: Vec<i32> = self.kinds.iter().map(|&kind| kind as i32).collect();
        metadata.i32s("tokenizer.ggml.token_type", &kinds);
    }
}

/// Whether a token stands for one byte: `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// How a byte-level tokenizer cuts, or what it is instead.
fn cut(step: &Json) -> Result<Cut<'_>, String> {
    let steps = steps(step, "pretokenizers");
    let byte_level = |step: &Json, regex: bool| {
        text(step, "type") == "ByteLevel"
            && step["add_prefix_space"] != true
            && step["use_regex"].as_bool().unwrap_or(true) == regex
    };
    match steps[..] {
        [only] if byte_level(only, true) => Ok(Cut::ByteLevel),
        [first, last]
            if byte_level(last, true) && text(first, "type") == "Digits" && first["individual_digits"] == true =>
        {
            Ok(Cut::DigitsThenByteLevel)
        }
        [first, last]
            if byte_level(last, false)
                && text(first, "type") == "Split"
                && text(first, "behavior") == "Isolated"
                && first["invert"] != true
                && first["pattern"]["Regex"].is_string() =>
        {
            Ok(Cut::Pattern(text(&first["pattern"], "Regex")))
        }
        _ => Err(steps.iter().map(|step| text(step, "type")).collect::<Vec<_>>().join(", ")),
    }
}

fn byte_level(
    notes: &mut Notes<'_>,
    tokenizer: &Json,
    vocabulary: &Vocabulary<'_>,
    metadata: &mut GgufMetadata,
) -> Option<()> {
    let cut = match cut(&tokenizer["pre_tokenizer"]) {
        Ok(cut) => cut,
        Err(found) => {
            let found = shown(&found);
            notes.problem_in(FILE, None, format!("the pre-tokenizer ({found}) has no name in GGUF that is known here"));
            return None;
        }
    };
    let normalizers = steps(&tokenizer["normalizer"], "normalizers");
    let nfc = match normalizers[..] {
        [] => false,
        [only] if text(only, "type") == "NFC" => true,
        _ => {
            notes.problem_in(
                FILE,
                None,
                "the normalizer is not NFC, and no other has a name in GGUF that is known here",
            );
            return None;
        }
    };
    let ignore_merges = tokenizer["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let pre = PRES.iter().find(|pre| pre.cut == cut && pre.nfc == nfc && pre.ignore_merges == ignore_merges);
    let Some(pre) = pre else {
        let known: Vec<&str> = PRES.iter().map(|pre| pre.names[0]).collect();
        let known = known.join(", ");
        notes.problem_in(
            FILE,
            None,
            format!("text is cut in a way that has no name in GGUF that is known here ({known})"),
        );
        return None;
    };
    if vocabulary.merges.iter().any(|(left, right)| left.contains(' ') || right.contains(' ')) {
        notes.problem_in(FILE, None, "a merge holds a space, which byte-level tokens never do");
        return None;
    }
    vocabulary.write("gpt2", pre.names[0], metadata);
    let merges: Vec<String> = vocabulary.merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    metadata.texts("tokenizer.ggml.merges", &merges);
    Some(())
}

/// Whether spaces become `▁`, as SentencePiece has them.
fn is_sentence_piece(tokenizer: &Json) -> bool {
    let replaces = |step: &&Json| text(step, "type") == "Replace" && step["content"] == "▁";
    let metaspace = |step: &&Json| text(step, "type") == "Metaspace";
    steps(&tokenizer["normalizer"], "normalizers").iter().any(replaces)
        || steps(&tokenizer["pre_tokenizer"], "pretokenizers").iter().any(metaspace)
}

/// Whether a text gets a space in front, if the steps before the merging are SentencePiece's at all.
fn space_prefix(tokenizer: &Json) -> Option<bool> {
    let replaces =
        |step: &Json| text(step, "type") == "Replace" && step["pattern"]["String"] == " " && step["content"] == "▁";
    let normalizers = steps(&tokenizer["normalizer"], "normalizers");
    let prefix = match normalizers[..] {
        [] => None,
        [only] if replaces(only) => Some(false),
        [first, last] if replaces(last) && text(first, "type") == "Prepend" && first["prepend"] == "▁" => Some(true),
        _ => return None,
    };
    let pre = steps(&tokenizer["pre_tokenizer"], "pretokenizers");
    match (prefix, &pre[..]) {
        (Some(prefix), []) => Some(prefix),
        // Cuts at spaces, of which none is left.
        (Some(prefix), [only]) if text(only, "type") == "Split" && only["pattern"]["String"] == " " => Some(prefix),
        (None, [only]) if text(only, "type") == "Metaspace" && only["split"] == false && only["replacement"] == "▁" => {
            match text(only, "prepend_scheme") {
                "first" | "always" => Some(true),
                "never" => Some(false),
                _ => None,
            }
        }
        _ => None,
    }
}

fn sentence_piece(
    notes: &mut Notes<'_>,
    tokenizer: &Json,
    vocabulary: &Vocabulary<'_>,
    metadata: &mut GgufMetadata,
) -> Option<()> {
    let Some(prefix) = space_prefix(tokenizer) else {
        notes.problem_in(
            FILE,
            None,
            "text is prepared in another way than SentencePiece does, which GGUF has no name for",
        );
        return None;
    };
    let Some(scores) = scores(vocabulary) else {
        notes.problem_in(
            FILE,
            None,
            "the merges are not those of SentencePiece (every split of every token, best token first), so GGUF's scores cannot express them",
        );
        return None;
    };
    vocabulary.write("llama", "default", metadata);
    metadata.f32s("tokenizer.ggml.scores", &scores);
    metadata.bool("tokenizer.ggml.add_space_prefix", prefix);
    Some(())
}

/// Lengths (left, right) of the first and the last of merges whose lengths nowhere rise.
#[derive(Clone, Copy)]
struct Fall {
    first: (usize, usize),
    last: (usize, usize),
}

impl Fall {
    /// Both, one after the other, if the lengths do not rise between them.
    fn then(self, next: Self) -> Option<Self> {
        (next.first <= self.last).then_some(Self { first: self.first, last: next.last })
    }
}

/// The score of each token: minus its place in the order in which the merges make tokens. Tokens of one score, such as
/// runs of blanks, stand among each other in that order, their merges sorted by length, longest first; they share a place.
/// `None` if a token is made at two places for another reason, or a merge is missing that SentencePiece would make.
fn scores(vocabulary: &Vocabulary<'_>) -> Option<Vec<f32>> {
    /// Real pieces are at most tens of bytes; the work grows with the square of this.
    const LONGEST: usize = 256;
    let mut numbers: HashMap<usize, usize> = HashMap::new(); // of tokens, in the order they are first made
    let mut shared: Vec<usize> = Vec::new(); // the number of the first token of each place
    let mut lengths: Vec<Option<Fall>> = Vec::new(); // of the merges of each place, while they fall
    let mut last = None;
    for &(left, right) in &vocabulary.merges {
        let id = vocabulary.ids[[left, right].concat().as_str()];
        let length = (left.chars().count(), right.chars().count());
        let only = Fall { first: length, last: length };
        let next = numbers.len();
        let number = *numbers.entry(id).or_insert(next);
        if number == next {
            shared.push(number);
            lengths.push(Some(only));
        } else {
            let again = last != Some(id);
            while shared.last().is_some_and(|&first| first > number) {
                shared.pop();
                let after = lengths.pop()?;
                let before = lengths.last_mut()?;
                *before = before.zip(after).and_then(|(before, after)| before.then(after));
            }
            let all = lengths.last_mut()?;
            *all = all.and_then(|all| all.then(only));
            if again && all.is_none() {
                return None;
            }
        }
        last = Some(id);
    }
    // A place counts the tokens before it, so that it is the same whether or not others share theirs.
    let place = |number: usize| shared[shared.partition_point(|&first| first <= number) - 1];
    let places: HashMap<usize, usize> = numbers.iter().map(|(&id, &number)| (id, place(number))).collect();
    let merges: HashSet<(&str, &str)> = vocabulary.merges.iter().copied().collect();
    let mergeable = |id: usize| matches!(vocabulary.kinds[id], Kind::Normal | Kind::UserDefined | Kind::Unused);
    let part = |token: &str| vocabulary.ids.get(token).is_some_and(|&id| mergeable(id));
    let mut splits = 0;
    for (&token, _) in vocabulary.ids.iter().filter(|&(_, &id)| mergeable(id)) {
        if token.len() > LONGEST {
            return None;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if part(left) && part(right) {
                if !merges.contains(&(left, right)) {
                    return None;
                }
                splits += 1;
            }
        }
    }
    // No merge is there that SentencePiece would not make, either.
    if splits != merges.len() {
        return None;
    }
    let unmade = -(places.len() as f32);
    let score = |(id, kind): (usize, &Kind)| match (places.get(&id), kind) {
        (Some(&place), _) => 0.0 - place as f32, // the first has +0, not −0
        (None, Kind::Normal) => unmade,
        (None, _) => 0.0,
    };
    Some(vocabulary.kinds.iter().enumerate().map(score).collect())
}

/// The tokens with a meaning of their own, and whether BOS and EOS are added.
fn special(
    notes: &mut Notes<'_>,
    tokenizer: &Json,
    config: &Json,
    generation: &Json,
    vocabulary: &Vocabulary<'_>,
    metadata: &mut GgufMetadata,
) -> Option<TokenIds> {
    let model = notes.folder.config;
    let named = |name: &str| {
        let value = &config[format!("{name}_token")];
        let token = value.as_str().or(value["content"].as_str())?;
        vocabulary.ids.get(token).map(|&id| id as u64)
    };
    let number = |value: &Json| value.as_u64().filter(|&id| id < vocabulary.tokens.len() as u64);
    let numbers = |value: &Json| match value {
        Json::Array(list) => list.iter().filter_map(number).collect(),
        value => number(value).into_iter().collect::<Vec<u64>>(),
    };
    let first = |name: &str| numbers(&model[format!("{name}_token_id")]).first().copied();
    let id = |name: &str| named(name).or_else(|| first(name));
    let (bos, eos, pad) = (id("bos"), id("eos"), id("pad"));
    let unk = tokenizer["model"]["unk_token"]
        .as_str()
        .and_then(|unk| vocabulary.ids.get(unk))
        .map(|&id| id as u64)
        .or(named("unk"));
    let mut ends: Vec<u64> = eos.into_iter().collect();
    for end in [&generation["eos_token_id"], &model["eos_token_id"]].into_iter().flat_map(numbers) {
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    // GGUF has three names for tokens that end an answer.
    let ends_at = |at: usize| ends.get(at).copied().filter(|_| eos.is_some());
    let all =
        [("bos", bos), ("eos", eos), ("eot", ends_at(1)), ("eom", ends_at(2)), ("unknown", unk), ("padding", pad)];
    for (name, id) in all {
        if let Some(id) = id {
            metadata.u32(&format!("tokenizer.ggml.{name}_token_id"), id as u32); // below the tokens' number
        }
    }
    if ends.len() > 3 {
        notes.remarks.push(format!("{} tokens end an answer, of which GGUF can name 3", ends.len()));
    }
    let added = match added(&tokenizer["post_processor"], bos, eos) {
        Ok(added) => added,
        Err(what) => {
            notes.problem_in(FILE, None, what);
            return None;
        }
    };
    metadata.bool("tokenizer.ggml.add_bos_token", added.0);
    metadata.bool("tokenizer.ggml.add_eos_token", added.1);
    Some(TokenIds { bos, eos, pad, ends })
}

/// Whether BOS stands before a text and EOS behind it.
fn added(post_processor: &Json, bos: Option<u64>, eos: Option<u64>) -> Result<(bool, bool), String> {
    let mut found = (false, false);
    for step in steps(post_processor, "processors") {
        match text(step, "type") {
            "ByteLevel" => {}
            "TemplateProcessing" => {
                let parts = step["single"].as_array().map(Vec::as_slice).unwrap_or_default();
                let Some(text_at) = parts.iter().position(|part| part.get("Sequence").is_some()) else {
                    return Err("the post-processor has no place for the text".into());
                };
                let id = |part: &Json| {
                    let name = part["SpecialToken"]["id"].as_str()?;
                    step["special_tokens"][name]["ids"][0].as_u64()
                };
                let before: Vec<Option<u64>> = parts[..text_at].iter().map(id).collect();
                let behind: Vec<Option<u64>> = parts[text_at + 1..].iter().map(id).collect();
                let is = |found: &[Option<u64>], token: Option<u64>| match found {
                    [] => Some(false),
                    [only] if only.is_some() && *only == token => Some(true),
                    _ => None,
                };
                let (Some(before), Some(behind)) = (is(&before, bos), is(&behind, eos)) else {
                    return Err("the post-processor adds other tokens than BOS before and EOS behind a text, which GGUF has no place for".into());
                };
                found = (before, behind);
            }
            other => {
                let other = shown(other);
                return Err(format!(
                    "the post-processor `{other}` has no place in GGUF, only TemplateProcessing and ByteLevel"
                ));
            }
        }
    }
    Ok(found)
}

/// The chat templates: name (empty for the default) and text.
fn template(notes: &Notes<'_>, config: &Json) -> Result<Vec<(String, String)>> {
    let path = notes.folder.path.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(text) => return Ok(vec![(String::new(), text)]),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(crate::Error::io(path, "read the chat template", error)),
    }
    Ok(match &config["chat_template"] {
        Json::String(text) => vec![(String::new(), text.clone())],
        Json::Array(list) => {
            let named = |entry: &Map<String, Json>| {
                let name = entry.get("name")?.as_str()?;
                let name = if name == "default" { "" } else { name };
                Some((name.to_owned(), entry.get("template")?.as_str()?.to_owned()))
            };
            list.iter().filter_map(Json::as_object).filter_map(named).collect()
        }
        _ => Vec::new(),
    })
}

fn write_template(templates: &[(String, String)], metadata: &mut GgufMetadata) {
    let names: Vec<&str> = templates.iter().map(|(name, _)| name.as_str()).filter(|name| !name.is_empty()).collect();
    if !names.is_empty() {
        metadata.texts("tokenizer.chat_templates", &names);
    }
    for (name, text) in templates {
        match name.as_str() {
            "" => metadata.text("tokenizer.chat_template", text),
            name => metadata.text(&format!("tokenizer.chat_template.{name}"), text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores_of(tokens: &[&str], merges: &[(&str, &str)]) -> Option<Vec<f32>> {
        scores(&Vocabulary {
            tokens: tokens.iter().map(|token| token.to_string()).collect(),
            kinds: tokens.iter().map(|_| Kind::Normal).collect(),
            ids: tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect(),
            merges: merges.to_vec(),
        })
    }

    #[test]
    fn tokens_whose_merges_stand_among_each_other_share_a_score() {
        let tokens = ["-", "--", "---", "+", "++", "+++", "-+"];
        // Best first; of one score by the lengths of both parts, as transformers sorts the merges of a SentencePiece file.
        let merges = [("-", "+"), ("--", "-"), ("++", "+"), ("-", "--"), ("+", "++"), ("-", "-"), ("+", "+")];
        let found = scores_of(&tokens, &merges).expect("scores");
        assert_eq!(found, [-5.0, -3.0, -1.0, -5.0, -4.0, -1.0, 0.0]);

        // The same merges in an order that no scores explain.
        let mixed = [("-", "+"), ("-", "--"), ("++", "+"), ("--", "-"), ("+", "++"), ("-", "-"), ("+", "+")];
        assert_eq!(scores_of(&tokens, &mixed), None);
        // One that SentencePiece would make is missing.
        assert_eq!(scores_of(&tokens, &merges[..6]), None);
    }
}
