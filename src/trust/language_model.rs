//! Items put to a decoder: log-likelihoods of options, and greedy texts.
//!
//! The modules in the order of the data: items become tokens, tokens an order in which what they share is run once, and
//! that order is run.
//!
//! A prompt and an option are tokenised together and parted by the length of the prompt's own tokens, trailing blanks of
//! the prompt counting as the option's (as lm-evaluation-harness does). What the tokenizer puts before a text stands before
//! it here; where that is nothing, an option after an empty prompt follows the end-of-text token, and where there is none
//! either, its first token is read and not scored.
//!
//! Sequences are run in the order of their tokens: those that begin alike (demonstrations, an instruction, a prompt under
//! its options) are neighbours then, and what they share is run once. Only the path of the current sequence is held from
//! one run to the next, so that live keys and values take at most the memory of one longest sequence, and, while texts are
//! made, [`CACHE_BYTES`]. Rows are laid end to end and nothing is padded, so there is nothing to gain from lengths that are
//! alike. Items are cut into chunks by their content alone: a chunk gives the same bits whenever it is run, and on any
//! number of threads. Another selection of items may move the last bits.

mod rendering;

mod scheduling;

mod running;

use anyhow::Result;
use scruple_compress::model::{Decoder, text::Text};
use scruple_weights::Checkpoint;
use serde::Serialize;

use self::rendering::{Sequence, message};
pub use self::{rendering::Put, scheduling::CACHE_BYTES};
use super::item::Answer;
use crate::commands::generate::end_tokens;

/// Rows of one run, where the options do not say: enough for full speed of the products.
const ROWS: usize = 1024;

/// When conversations go through the model's chat template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Chat {
    /// Where the checkpoint has a template.
    Auto,
    /// Always: a checkpoint without one is refused.
    On,
    /// Never: turns are put as plain text.
    Off,
}

/// How items are run; the answers are the same up to rounding.
#[derive(Debug, Clone, Copy)]
pub struct Running {
    /// Run shared beginnings once.
    pub reuse: bool,
    /// Rows of one run.
    pub rows: usize,
}

impl Default for Running {
    fn default() -> Self {
        Self { reuse: true, rows: ROWS }
    }
}

/// What was run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Tokens of all sequences.
    pub tokens: u64,
    /// Of these, what shared beginnings saved.
    pub tokens_saved: u64,
    /// Tokens made.
    pub tokens_made: u64,
}

/// A decoder with its tokenizer, ready to be asked.
#[derive(Debug)]
pub struct LanguageModel {
    decoder: Decoder,
    text: Text,
    /// What the tokenizer puts before a text.
    begin: Vec<u32>,
    /// Stands before an option without a prompt, where `begin` is empty.
    stand_in: Option<u32>,
    ends: Vec<u32>,
    by_template: bool,
    /// The template takes a system turn; otherwise its text goes before the first user's.
    system_apart: bool,
    running: Running,
}

impl LanguageModel {
    /// Opens the decoder and tokenizer of `checkpoint`.
    ///
    /// # Errors
    /// A model that is no decoder or cannot be read, no tokenizer, or no chat template where one is asked for.
    pub fn open(checkpoint: &Checkpoint, chat: Chat, running: Running) -> Result<Self> {
        let text = Text::open(checkpoint)?;
        let decoder = Decoder::open(checkpoint)?;
        let by_template = match chat {
            Chat::Auto => text.has_template(),
            Chat::Off => false,
            Chat::On => {
                anyhow::ensure!(
                    text.has_template(),
                    "{}: there is no chat template; give --chat auto or off",
                    checkpoint.dir().display()
                );
                true
            }
        };
        let system_apart = by_template && text.chat(&[message("system", "a"), message("user", "b")]).is_ok();
        // What stands before the text, whatever may stand behind it.
        let (whole, bare) = (text.encode("a", true)?, text.encode("a", false)?);
        let at = whole.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
        let begin = whole[..at].to_vec();
        let stand_in = text.end_of_text().filter(|_| begin.is_empty());
        let ends = end_tokens(checkpoint, &decoder);
        Ok(Self { decoder, text, begin, stand_in, ends, by_template, system_apart, running })
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Whether conversations go through the chat template.
    pub fn uses_template(&self) -> bool {
        self.by_template
    }

    /// The answers to one of [`Self::chunks`], in its order.
    ///
    /// # Errors
    /// If the model's numbers are not finite.
    pub fn answer(&self, put: &[Put], chunk: &[usize], counts: &mut Counts) -> scruple_compress::Result<Vec<Answer>> {
        if chunk.iter().any(|&at| put[at].max_tokens.is_some()) {
            return self.go_on(put, chunk, counts);
        }
        let sequences: Vec<&Sequence> = chunk.iter().flat_map(|&at| &put[at].sequences).collect();
        let mut scores = self.score(&sequences, counts)?.into_iter();
        let one = |&at: &usize| {
            let own = &put[at].sequences;
            Answer {
                log_likelihoods: scores.by_ref().take(own.len()).collect(),
                tokens: own.iter().map(|sequence| sequence.ids.len() - sequence.scored_from).collect(),
                text: None,
            }
        };
        Ok(chunk.iter().map(one).collect())
    }
}

#[cfg(test)]
mod tests;
