//! Items as the tokens a model reads: prompts with each of their options, or alone where they are gone on with.

use anyhow::{Context, Result};
use rayon::prelude::*;
use scruple_compress::model::text::Message;
use scruple_weights::digest::sha256;

use super::{
    super::item::{Ask, Item, Prompt, Role, Turn},
    LanguageModel,
};

/// Tokens of one sequence that ends in what is scored or gone on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sequence {
    pub(super) ids: Vec<u32>,
    /// The first token that is scored; the number of tokens where the sequence is gone on with.
    pub(super) scored_from: usize,
}

impl Sequence {
    /// The tokens the model reads: the last of an option is only predicted.
    pub(super) fn read(&self) -> &[u32] {
        &self.ids[..self.ids.len() - usize::from(self.scored_from < self.ids.len())]
    }
}

/// An item as one model reads it.
#[derive(Debug, Clone)]
pub struct Put {
    /// SHA-256 of the prompt as rendered.
    pub prompt_sha256: String,
    /// Its beginning was cut off, since it is longer than the model's context.
    pub cut: bool,
    pub(super) sequences: Vec<Sequence>,
    /// Tokens to make, for texts.
    pub(super) max_tokens: Option<usize>,
}

impl Put {
    /// The tokens of each sequence, and the number of the first that is scored.
    pub fn sequences(&self) -> impl Iterator<Item = (&[u32], usize)> {
        self.sequences.iter().map(|sequence| (sequence.ids.as_slice(), sequence.scored_from))
    }

    /// Whether two models read an item as the same tokens.
    pub fn same_tokens(&self, other: &Self) -> bool {
        self.sequences == other.sequences
    }
}

pub(super) fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}

/// Turns as plain text: a line for the system's and for each user's, the answer behind it after a blank.
pub(super) fn plain(turns: &[Turn]) -> String {
    let mut out = String::new();
    for (index, turn) in turns.iter().enumerate() {
        let after_user = index > 0 && turns[index - 1].role == Role::User;
        if index > 0 {
            out.push(if turn.role == Role::Assistant && after_user { ' ' } else { '\n' });
        }
        out.push_str(&turn.text);
    }
    out
}

impl LanguageModel {
    /// The prompt as text, and whether the chat template made it.
    pub(super) fn render(&self, prompt: &Prompt) -> Result<(String, bool)> {
        let turns = match prompt {
            Prompt::Plain(text) => return Ok((text.clone(), false)),
            Prompt::Turns(turns) => turns,
        };
        anyhow::ensure!(!turns.is_empty(), "the conversation has no turns");
        if !self.by_template {
            return Ok((plain(turns), false));
        }
        // An answer that is to be gone on with stands behind the template's request for one.
        let (last, asked) = match turns.split_last() {
            Some((last, before)) if last.role == Role::Assistant => (last.text.as_str(), before),
            _ => ("", turns.as_slice()),
        };
        let mut messages: Vec<Message> = Vec::with_capacity(asked.len());
        let mut pending = String::new();
        for turn in asked {
            if turn.role == Role::System && !self.system_apart {
                pending.push_str(&turn.text);
                pending.push_str("\n\n");
            } else if turn.role == Role::User {
                messages.push(message("user", &(std::mem::take(&mut pending) + &turn.text)));
            } else {
                messages.push(message(role(turn.role), &turn.text));
            }
        }
        Ok((self.text.chat(&messages)? + last, true))
    }

    /// A prompt's tokens go on with `option`.
    fn sequence(&self, context: &str, option: &str, by_template: bool) -> Result<Sequence> {
        anyhow::ensure!(!option.is_empty(), "the option is empty");
        let stem = context.trim_end();
        let whole = self.text.encode(&format!("{context}{option}"), false)?;
        let mut ids = if by_template { Vec::new() } else { self.begin.clone() };
        if stem.is_empty() && ids.is_empty() {
            ids.extend(self.stand_in);
        }
        let from = ids.len() + if stem.is_empty() { 0 } else { self.text.encode(stem, false)?.len() };
        ids.extend(whole);
        anyhow::ensure!(ids.len() > 1, "the option `{option}` has one token, and there is none before it");
        // Where prompt and option melt into one token, that one is scored.
        let scored_from = from.clamp(1, ids.len() - 1);
        Ok(Sequence { ids, scored_from })
    }

    /// Cuts a sequence that is read to more than `most` tokens, from the left, behind what begins every text.
    fn shorten(&self, sequence: &mut Sequence, most: usize) -> Result<bool> {
        let over = sequence.read().len().saturating_sub(most);
        if over == 0 {
            return Ok(false);
        }
        let begin = if sequence.ids.starts_with(&self.begin) { self.begin.len() } else { 0 };
        anyhow::ensure!(
            begin + over < sequence.scored_from,
            "what is to be scored has more tokens than the model's context, which holds {}",
            self.decoder.config().max_positions
        );
        sequence.ids.drain(begin..begin + over);
        sequence.scored_from -= over;
        Ok(true)
    }

    fn put_one(&self, item: &Item) -> Result<Put> {
        let (prompt, by_template) = self.render(&item.prompt)?;
        let room = self.decoder.config().max_positions;
        let (mut sequences, max_tokens, room) = match &item.ask {
            Ask::Choose { options, before, .. } => {
                anyhow::ensure!(!options.is_empty(), "there are no options");
                anyhow::ensure!(
                    before.is_empty() || before.len() == options.len(),
                    "there are {} texts before {} options; give one an option, or none",
                    before.len(),
                    options.len()
                );
                let one = |(index, option): (usize, &String)| {
                    let context = prompt.clone() + before.get(index).map_or("", String::as_str);
                    // A template ends where the answer begins, after blanks of its own.
                    let bare = by_template && context.ends_with(char::is_whitespace);
                    self.sequence(&context, if bare { option.trim_start() } else { option }, by_template)
                };
                (options.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?, None, room)
            }
            Ask::Continue { max_tokens, .. } => {
                anyhow::ensure!(*max_tokens > 0, "`max_tokens` should be at least 1, found 0");
                let mut ids = if by_template { Vec::new() } else { self.begin.clone() };
                ids.extend(self.text.encode(&prompt, false)?);
                if ids.is_empty() {
                    ids.extend(self.stand_in);
                }
                anyhow::ensure!(!ids.is_empty(), "the prompt has no tokens to go on from");
                let scored_from = ids.len();
                let made = (*max_tokens).min(room.saturating_sub(1));
                (vec![Sequence { ids, scored_from }], Some(made), room - made)
            }
        };
        let mut cut = false;
        for sequence in &mut sequences {
            cut |= self.shorten(sequence, room)?;
            self.decoder.expect_ids(&sequence.ids)?;
        }
        Ok(Put { prompt_sha256: sha256(prompt.as_bytes()), cut, sequences, max_tokens })
    }

    /// The items as this model reads them.
    ///
    /// # Errors
    /// Names the item that cannot be put: by the chat template's rules, without tokens, or with options longer than the
    /// model's context.
    pub fn put(&self, items: &[Item]) -> Result<Vec<Put>> {
        let one = |item: &Item| self.put_one(item).with_context(|| format!("item `{}`", item.id));
        items.par_iter().map(one).collect()
    }
}
