//! The texts that sets are scored on.

use std::ops::Range;

use sha2::{Digest, Sha256};

use super::sweep::Sequence;
use crate::{Error, Result, data::random::draw};

/// Stream of the draws of scored positions.
const POSITION_STREAM: u64 = 0x706f_7369;

/// A question: what comes before, and the options, as tokens that go on from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens of each option.
    pub options: Vec<Vec<u32>>,
    /// The right one.
    pub right: usize,
}

/// Texts, cut into units that are independent of each other: windows of a text, or questions.
#[derive(Debug, Clone)]
pub struct Corpus {
    pub(super) sequences: Vec<Sequence>,
    /// The sequences of each unit.
    pub(super) units: Vec<Range<usize>>,
    /// The right one of a unit's sequences, where units are questions.
    pub(super) right: Vec<usize>,
}

impl Corpus {
    /// Windows of `window` tokens over `ids`, `tokens` of them in all at most; each is scored at a `share` of its
    /// positions, drawn by `seed`. Windows count alike in a mean, so a shorter last one is left out unless it is the only
    /// one.
    ///
    /// # Errors
    /// If there is not one window of two tokens.
    pub fn windows(ids: &[u32], window: usize, tokens: usize, share: f64, seed: u64) -> Result<Self> {
        if window < 2 || tokens < 2 || !(share > 0.0 && share <= 1.0) {
            return Err(Error::Recipe(format!(
                "a window and the number of tokens should be at least 2 and the share of scored positions above 0 and at \
                 most 1, found {window}, {tokens} and {share}"
            )));
        }
        let targets = tokens.min(ids.len().saturating_sub(1));
        let mut sequences = Vec::new();
        for start in (0..targets).step_by(window) {
            let end = (start + window).min(targets);
            if end - start < window.min(targets) {
                break;
            }
            let mut rows: Vec<usize> = (0..end - start).collect();
            let scored = ((rows.len() as f64 * share).round() as usize).max(1);
            if scored < rows.len() {
                rows.sort_by_key(|&row| (draw(seed, POSITION_STREAM, (start + row) as u64), row));
                rows.truncate(scored);
                rows.sort_unstable();
            }
            let targets = rows.iter().map(|row| ids[start + row + 1]).collect();
            sequences.push(Sequence { ids: ids[start..end].to_vec(), rows, targets });
        }
        if sequences.is_empty() {
            return Err(Error::Text(format!("the text has {} tokens; at least 2 are needed", ids.len())));
        }
        let units = (0..sequences.len()).map(|at| at..at + 1).collect();
        Ok(Self { sequences, units, right: Vec::new() })
    }

    /// Questions; an option's sequence is scored at its own tokens.
    ///
    /// # Errors
    /// If there are none, or one has no prompt, an empty option, or no right one.
    pub fn questions(questions: &[Question]) -> Result<Self> {
        let (mut sequences, mut units, mut right) = (Vec::new(), Vec::new(), Vec::new());
        for (number, question) in questions.iter().enumerate() {
            let empty = question.options.iter().any(Vec::is_empty);
            if question.prompt.is_empty() || empty || question.right >= question.options.len() {
                return Err(Error::Text(format!(
                    "question {number} should have a prompt, options that are not empty, and the number of the right one"
                )));
            }
            let first = sequences.len();
            for option in &question.options {
                let mut ids = question.prompt.clone();
                ids.extend(option);
                let rows = (question.prompt.len() - 1..ids.len() - 1).collect();
                ids.pop();
                sequences.push(Sequence { ids, rows, targets: option.clone() });
            }
            units.push(first..sequences.len());
            right.push(question.right);
        }
        if units.is_empty() {
            return Err(Error::Text("there are no questions".into()));
        }
        Ok(Self { sequences, units, right })
    }

    /// Whole texts, each scored at the positions given with it: at position i the token behind it is asked for.
    ///
    /// # Errors
    /// If there are none, or a position is not one of its text.
    pub fn texts(texts: Vec<(Vec<u32>, Vec<usize>)>) -> Result<Self> {
        let mut sequences = Vec::with_capacity(texts.len());
        for (mut ids, rows) in texts {
            if rows.is_empty() || rows.iter().any(|row| row + 1 >= ids.len()) {
                return Err(Error::Text(format!(
                    "positions {rows:?} of a text of {} tokens were to be scored",
                    ids.len()
                )));
            }
            let targets = rows.iter().map(|row| ids[row + 1]).collect();
            ids.pop();
            sequences.push(Sequence { ids, rows, targets });
        }
        if sequences.is_empty() {
            return Err(Error::Text("there are no texts".into()));
        }
        let units = (0..sequences.len()).map(|at| at..at + 1).collect();
        Ok(Self { sequences, units, right: Vec::new() })
    }

    /// Windows, texts or questions.
    pub fn units(&self) -> usize {
        self.units.len()
    }

    /// Tokens the model reads.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.ids.len()).sum()
    }

    /// Positions scored.
    pub fn scored(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.rows.len()).sum()
    }

    /// The texts.
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// SHA-256 of texts, positions and targets.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for sequence in &self.sequences {
            for list in [&sequence.ids, &sequence.targets] {
                hash.update((list.len() as u64).to_le_bytes());
                list.iter().for_each(|id| hash.update(id.to_le_bytes()));
            }
            sequence.rows.iter().for_each(|&row| hash.update((row as u64).to_le_bytes()));
        }
        hex(&hash.finalize())
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
