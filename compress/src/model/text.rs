//! Text in and out: the checkpoint's tokenizer and its chat template.

use std::path::{Path, PathBuf};

use minijinja::{Environment, ErrorKind, context, syntax::SyntaxConfig};
use scruple_weights::Checkpoint;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::{Error, Result};

/// A checkpoint's tokenizer with its chat template.
pub struct Text {
    file: PathBuf,
    tokenizer: Tokenizer,
    settings: Value, // tokenizer_config.json
    template: Option<String>,
}

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
        let settings = match read_text(&settings_file)? {
            None => Value::Null,
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| Error::Text(format!("{}: not valid JSON: {error}", settings_file.display())))?,
        };
        let template = match read_text(&checkpoint.dir().join("chat_template.jinja"))? {
            Some(template) => Some(template),
            None => match settings.get("chat_template") {
                Some(Value::String(template)) => Some(template.clone()),
                // Several named templates: the one called "default".
                Some(Value::Array(all)) => all
                    .iter()
                    .find(|one| one.get("name").and_then(Value::as_str) == Some("default"))
                    .and_then(|one| one.get("template")?.as_str().map(str::to_string)),
                _ => None,
            },
        };
        Ok(Self { file, tokenizer, settings, template })
    }

    /// Token ids of `text`; `special` adds what the tokenizer puts around a text (often a begin token).
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode_fast(text, special)
            .map_err(|error| Error::Text(format!("{}: cannot tokenise the text: {error}", self.file.display())))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer
            .decode(ids, true)
            .map_err(|error| Error::Text(format!("{}: cannot decode the tokens: {error}", self.file.display())))
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

    fn special(&self, key: &str) -> String {
        match self.settings.get(key) {
            Some(Value::String(token)) => token.clone(),
            Some(Value::Object(token)) => token.get("content").and_then(Value::as_str).unwrap_or_default().to_string(),
            _ => String::new(),
        }
    }

    /// The prompt that asks for an answer to `messages`, by the checkpoint's chat template.
    ///
    /// # Errors
    /// If there is no template, or it refuses the messages.
    pub fn chat(&self, messages: &[Message]) -> Result<String> {
        let shown = self.file.with_file_name("tokenizer_config.json");
        let template = self.template.as_ref().ok_or_else(|| {
            Error::Text(format!("{}: there is no chat template; give the prompt without --chat", shown.display()))
        })?;
        let fail = |error: minijinja::Error| Error::Text(format!("{}: chat template: {error}", shown.display()));
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(fail)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template("chat", template).map_err(fail)?;
        let pair = |key: &str, value: &str| (key.to_string(), minijinja::Value::from(value));
        let turns: Vec<minijinja::Value> = messages
            .iter()
            .map(|m| minijinja::Value::from_pairs([pair("role", &m.role), pair("content", &m.content)]))
            .collect();
        let values = context! {
            messages => turns,
            add_generation_prompt => true,
            bos_token => self.special("bos_token"),
            eos_token => self.special("eos_token"),
        };
        environment.get_template("chat").and_then(|template| template.render(values)).map_err(fail)
    }
}
