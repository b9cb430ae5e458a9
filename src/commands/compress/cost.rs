//! What compression cost: speed, distance to the dense model, answers; read from the written folder.

use std::{path::Path, time::Instant};

use anyhow::{Context, Result};
use scruple_compress::{
    data::world::Question,
    measure::Evaluation,
    model::{Decoder, DecoderConfig, decoder::KvCache, text::Text},
    neighbours::EmbeddingComparison,
};
use scruple_weights::Checkpoint;
use serde::Serialize;

use super::{
    super::{embed, eval},
    Arguments,
};
use crate::fixture::Fixture;

/// Bytes of dense block weights that the speed report runs: beyond the caches, yet small against a large model, whose
/// speed is scaled from its first blocks.
pub(super) const SPEED_BYTES: u64 = 96 << 20;

/// Tokens of the speed report: one prompt, then one at a time.
const PREFILL_TOKENS: usize = 256;
const DECODE_TOKENS: usize = 16;

/// Predicted tokens of a window of --text.
const EVALUATION_WINDOW: usize = 512;

/// Speeds of one model, tokens a second.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Speed {
    pub prefill: f64,
    pub decode: f64,
    /// Blocks that were run, of all.
    pub blocks: usize,
}

/// What compression cost, read from the written folder.
#[derive(Debug, Default)]
pub(super) struct Cost {
    pub speeds: Option<(Speed, Speed)>,
    pub evaluation: Option<Evaluation>,
    /// Of a text encoder.
    pub embeddings: Option<EmbeddingComparison>,
    pub answers: Option<Answers>,
}

/// Answers of two models to the same questions.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Answers {
    pub questions: usize,
    pub dense_right: usize,
    pub compressed_right: usize,
    pub same: usize,
}

impl Cost {
    pub fn measure(
        arguments: &Arguments,
        dense: &Path,
        out: &Path,
        text: Option<&Path>,
        embedded: Option<&Fixture>,
    ) -> Result<Self> {
        let speeds = match arguments.no_speed {
            true => None,
            false => {
                let blocks = speed_blocks(&Checkpoint::open(dense)?)?;
                Some((speed(dense, blocks)?, speed(out, blocks)?))
            }
        };
        // A model of learned positions has no others.
        let config = DecoderConfig::from_checkpoint(&Checkpoint::open(dense)?)?;
        let window = match config.embedding.positions {
            Some(_) => EVALUATION_WINDOW.min(config.max_positions),
            None => EVALUATION_WINDOW,
        };
        let evaluation = text
            .map(|text| eval::evaluate(out, Some(dense), text, window, Some(arguments.max_tokens), None))
            .transpose()?
            .map(|record| record.evaluation);
        let answers = embedded.map(|fixture| answers(dense, out, &fixture.questions()?)).transpose()?;
        Ok(Self { speeds, evaluation, answers, embeddings: None })
    }

    /// Of a text encoder: the embeddings of the lines of `text`.
    pub fn of_encoder(dense: &Path, out: &Path, text: Option<&Path>) -> Result<Self> {
        let Some(text) = text else { return Ok(Self::default()) };
        let (dense, compressed) = (Checkpoint::open(dense)?, Checkpoint::open(out)?);
        Ok(Self { embeddings: Some(embed::compare(&dense, &compressed, &lines(text)?)?), ..Self::default() })
    }
}

/// Lines of a text that embeddings are compared on, at most.
const LINES: usize = 1000;

/// The first lines of `file` that hold words.
pub(super) fn lines(file: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{}: cannot read the text", file.display()))?;
    let lines = text.lines().filter(|line| line.split_whitespace().nth(2).is_some()).take(LINES);
    let lines: Vec<String> = lines.map(str::to_string).collect();
    anyhow::ensure!(
        lines.len() >= 3,
        "{}: there are {} lines of words, expected at least 3",
        file.display(),
        lines.len()
    );
    Ok(lines)
}

/// How many blocks of a dense model the speed report runs.
fn speed_blocks(dense: &Checkpoint) -> Result<usize> {
    let config = DecoderConfig::from_checkpoint(dense)?;
    let first = format!("{}.", config.block_path(0));
    let per_block = dense.tensors().filter(|view| view.name().starts_with(&first)).map(|view| view.bytes().len());
    let per_block = per_block.sum::<usize>().max(1) as u64;
    Ok(((SPEED_BYTES / per_block) as usize).clamp(1, config.n_blocks))
}

/// Tokens a second of the model in `folder`, scaled from its first `blocks` blocks.
fn speed(folder: &Path, blocks: usize) -> Result<Speed> {
    let checkpoint = Checkpoint::open(folder)?;
    let config = DecoderConfig::from_checkpoint(&checkpoint)?;
    let model = Decoder::open_first(&checkpoint, blocks)?;
    let tokens = PREFILL_TOKENS.min(config.max_positions / 2).max(DECODE_TOKENS);
    let ids: Vec<u32> = (0..tokens).map(|i| (i * 7919 % config.vocab_size) as u32).collect();
    let scale = config.n_blocks as f64 / blocks as f64;
    let mut cache = KvCache::default();
    model.hidden(&ids[..1], &mut cache)?; // brings the weights in
    let timed = |work: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
        let started = Instant::now();
        work()?;
        Ok(started.elapsed().as_secs_f64())
    };
    let mut cache = KvCache::default();
    let mut hidden = None;
    let blocks_time = timed(&mut || {
        hidden = Some(model.hidden(&ids, &mut cache)?);
        Ok(())
    })?;
    let hidden = hidden.context("the prompt was run")?;
    let last = hidden.narrow(0, ids.len() - 1, 1)?;
    model.logits(&last)?;
    let head = timed(&mut || model.logits(&last).map(drop).map_err(Into::into))?;
    let decode = timed(&mut || {
        for i in 0..DECODE_TOKENS {
            model.hidden(&ids[i..=i], &mut cache)?;
        }
        Ok(())
    })? / DECODE_TOKENS as f64;
    Ok(Speed {
        prefill: ids.len() as f64 / (blocks_time * scale + head),
        decode: 1.0 / (decode * scale + head),
        blocks,
    })
}

/// The option each model finds likeliest after each prompt, by the mean log-likelihood of its tokens.
fn answers(dense: &Path, compressed: &Path, questions: &[Question]) -> Result<Answers> {
    let open = |folder: &Path| -> Result<(Decoder, Text)> {
        let checkpoint = Checkpoint::open(folder)?;
        Ok((Decoder::open(&checkpoint)?, Text::open(&checkpoint)?))
    };
    let (dense, text) = open(dense)?;
    let (compressed, _) = open(compressed)?;
    let mut result = Answers { questions: questions.len(), dense_right: 0, compressed_right: 0, same: 0 };
    for question in questions {
        let choose = |model: &Decoder| {
            scruple_compress::measure::likeliest_option(model, &text, &question.prompt, &question.options)
        };
        let (a, b) = (choose(&dense)?, choose(&compressed)?);
        result.dense_right += usize::from(a == question.answer);
        result.compressed_right += usize::from(b == question.answer);
        result.same += usize::from(a == b);
    }
    Ok(result)
}
