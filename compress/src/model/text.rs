//! Text in and out: the checkpoint's tokenizer and its chat template.

use std::path::{Path, PathBuf};

use minijinja::{
    Environment, ErrorKind,
    syntax::SyntaxConfig,
    value::{Kwargs, Value as Jinja, ValueKind},
};
use scruple_weights::Checkpoint;
use serde_json::Value;
use tokenizers::{Tokenizer, TruncationParams};

use crate::{Error, Result};

/// A checkpoint's tokenizer with its chat template.
pub struct Text {
    file: PathBuf,
    tokenizer: Tokenizer,
    /// The special tokens a chat template may name: `bos_token` and its like, with their texts.
    specials: Vec<(&'static str, String)>,
    /// The chat template and the file it stands in.
    template: Option<(PathBuf, String)>,
}

/// What `tokenizer_config.json` or `special_tokens_map.json` may name.
const SPECIALS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Text").field("file", &self.file).finish_non_exhaustive()
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

fn read_text(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::Text(format!("{}: cannot read the file: {error}", path.display()))),
    }
}

impl Text {
    /// Opens `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` of the checkpoint's folder.
    ///
    /// # Errors
    /// If there is no readable `tokenizer.json`.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        let file = checkpoint.dir().join("tokenizer.json");
        if !file.is_file() {
            return Err(Error::Text(format!(
                "{}: the file is missing; text cannot be tokenised without it, so put the model's tokenizer.json there",
                file.display()
            )));
        }
        let mut tokenizer = Tokenizer::from_file(&file).map_err(|error| {
            Error::Text(format!("{}: not a readable tokenizer: {error}; fetch the file again", file.display()))
        })?;
        // A checkpoint may carry the settings of its training; texts are measured whole.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| Error::Text(format!("{}: {error}", file.display())))?;
        let settings_file = checkpoint.dir().join("tokenizer_config.json");
        let settings = read_json(&settings_file)?;
        let map = read_json(&checkpoint.dir().join("special_tokens_map.json"))?;
        let special = |key| {
            let token = [&settings, &map].into_iter().find_map(|all| token_text(all.get(key)?))?;
            Some((key, token))
        };
        let template_file = checkpoint.dir().join("chat_template.jinja");
        let template = match read_text(&template_file)? {
            Some(template) => Some((template_file, template)),
            None => match settings.get("chat_template") {
                Some(Value::String(template)) => Some((settings_file, template.clone())),
                // Several named templates: the one called "default".
                Some(Value::Array(all)) => all
                    .iter()
                    .find(|one| one.get("name").and_then(Value::as_str) == Some("default"))
                    .and_then(|one| Some((settings_file, one.get("template")?.as_str()?.to_string()))),
                _ => None,
            },
        };
        Ok(Self { file, tokenizer, specials: SPECIALS.into_iter().filter_map(special).collect(), template })
    }

    /// Token ids of `text`; `special` adds what the tokenizer puts around a text (often a begin token).
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode_fast(text, special)
            .map_err(|error| Error::Text(format!("{}: cannot tokenise the text: {error}", self.file.display())))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// From now on texts are cut to `max_tokens` tokens, those that are put around them included.
    ///
    /// # Errors
    /// If nothing of a text would be left.
    pub fn truncate_to(&mut self, max_tokens: usize) -> Result<()> {
        let around = self.encode("", true)?.len();
        let fail = |what: String| {
            Error::Text(format!("{}: cannot cut texts to {max_tokens} tokens: {what}", self.file.display()))
        };
        if max_tokens <= around {
            return Err(fail(format!("the tokenizer puts {around} around each, so nothing would be left")));
        }
        let parameters = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        match self.tokenizer.with_truncation(Some(parameters)) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::Text(format!("{}: cannot cut texts: {error}", self.file.display()))),
        }
    }

    /// Token ids of `text` with what the tokenizer puts around a text, and whether the text was cut.
    pub fn encode_cut(&self, text: &str) -> Result<(Vec<u32>, bool)> {
        let encoding = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(|error| Error::Text(format!("{}: cannot tokenise the text: {error}", self.file.display())))?;
        Ok((encoding.get_ids().to_vec(), !encoding.get_overflowing().is_empty()))
    }

    /// Text of token ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer
            .decode(ids, true)
            .map_err(|error| Error::Text(format!("{}: cannot decode the tokens: {error}", self.file.display())))
    }

    /// The token that ends a text, if the checkpoint names one.
    pub fn end_of_text(&self) -> Option<u32> {
        let (_, token) = self.specials.iter().find(|(key, _)| *key == "eos_token")?;
        self.token_id(token)
    }

    /// Number of entries, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Id of a token given by its text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Whether the checkpoint has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The prompt that asks for an answer to `messages`, by the checkpoint's chat template, as `transformers` renders it:
    /// Jinja with `trim_blocks`, `lstrip_blocks`, `break` and `continue`, with `raise_exception`, `strftime_now` and a
    /// `tojson` that escapes no HTML.
    ///
    /// `strftime_now` tells the same day always, [`DAY`], so that a prompt gives the same tokens tomorrow.
    ///
    /// # Errors
    /// If there is no template, or it refuses the messages.
    pub fn chat(&self, messages: &[Message]) -> Result<String> {
        self.render(messages, true)
    }

    /// A whole conversation by the checkpoint's chat template, as a model in training sees it; otherwise as
    /// [`Self::chat`].
    ///
    /// # Errors
    /// As [`Self::chat`].
    pub fn conversation(&self, messages: &[Message]) -> Result<String> {
        self.render(messages, false)
    }

    fn render(&self, messages: &[Message], asks: bool) -> Result<String> {
        let (file, template) = self.template.as_ref().ok_or_else(|| {
            let file = self.file.with_file_name("tokenizer_config.json");
            Error::Text(format!("{}: there is no chat template; give the prompt without --chat", file.display()))
        })?;
        let fail = |error: minijinja::Error| Error::Text(format!("{}: chat template: {error}", file.display()));
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(fail)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime);
        environment.add_filter("tojson", to_json);
        environment.add_template("chat", template).map_err(fail)?;
        let pair = |key: &str, value: &str| (key.to_string(), Jinja::from(value));
        let turns: Vec<Jinja> =
            messages.iter().map(|m| Jinja::from_pairs([pair("role", &m.role), pair("content", &m.content)])).collect();
        let specials = self.specials.iter().map(|(key, token)| pair(key, token));
        let values = specials.chain([
            ("messages".to_string(), Jinja::from(turns)),
            ("tools".to_string(), Jinja::from(())),
            ("documents".to_string(), Jinja::from(())),
            ("add_generation_prompt".to_string(), Jinja::from(asks)),
        ]);
        let values = Jinja::from_pairs(values);
        environment.get_template("chat").and_then(|template| template.render(values)).map_err(fail)
    }
}

fn read_json(path: &Path) -> Result<Value> {
    match read_text(path)? {
        None => Ok(Value::Null),
        Some(text) => serde_json::from_str(&text)
            .map_err(|error| Error::Text(format!("{}: not valid JSON: {error}", path.display()))),
    }
}

/// A special token's text, given as itself or as an object with `content`.
fn token_text(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_string)
}

/// The day chat templates are told: 26 July 2024, the one Llama 3's template falls back to.
pub const DAY: (u32, u32, u32) = (2024, 7, 26);

/// `strftime` of [`DAY`] at midnight, for the fields that templates ask for.
fn strftime(format: &str) -> Result<String, minijinja::Error> {
    let (year, month, day) = DAY;
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += "July",
            Some('b') => out += "Jul",
            Some('A') => out += "Friday",
            Some('a') => out += "Fri",
            Some('H' | 'M' | 'S') => out += "00",
            Some('%') => out.push('%'),
            other => {
                let field = other.map_or("%".to_string(), |field| format!("%{field}"));
                let message = format!("strftime_now: the field `{field}` of `{format}` is not supported");
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(out)
}

/// `tojson` as `transformers` defines it: Python's `json.dumps` with `ensure_ascii=False`.
fn to_json(value: &Jinja, options: Kwargs) -> Result<String, minijinja::Error> {
    let style = JsonStyle {
        indent: options.get::<Option<usize>>("indent")?,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

struct JsonStyle {
    indent: Option<usize>,
    sort_keys: bool,
    ascii: bool,
}

impl JsonStyle {
    fn write(&self, value: &Jinja, depth: usize, out: &mut String) -> Result<(), minijinja::Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Jinja> = value.try_iter()?.collect();
                self.items(('[', ']'), &items, depth, out, |item, out| self.write(item, depth + 1, out))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Jinja> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.items(('{', '}'), &keys, depth, out, |key, out| {
                    self.string(&key.to_string(), out);
                    out.push_str(": ");
                    self.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            kind => {
                let message = format!("tojson: a value of kind {kind} has no JSON form");
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn items(
        &self,
        (open, close): (char, char),
        items: &[Jinja],
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(&Jinja, &mut String) -> Result<(), minijinja::Error>,
    ) -> Result<(), minijinja::Error> {
        let line = |depth: usize| self.indent.map(|indent| format!("\n{}", " ".repeat(indent * depth)));
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            match line(depth + 1) {
                Some(line) => out.extend([if index > 0 { "," } else { "" }, &line]),
                None => out.push_str(if index > 0 { ", " } else { "" }),
            }
            write(item, out)?;
        }
        if !items.is_empty() {
            out.push_str(&line(depth).unwrap_or_default());
        }
        out.push(close);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        let quoted = Value::from(text).to_string();
        if !self.ascii {
            out.push_str(&quoted);
            return;
        }
        for character in quoted.chars() {
            if character.is_ascii() {
                out.push(character);
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
}
