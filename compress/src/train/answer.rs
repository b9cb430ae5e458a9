//! Asking a model the world's questions, and how well it foretells a text.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};

use super::llama::{LlamaConfig, forward};
use crate::data::tokenizer::{BOS, PAD, encode};
use crate::data::world::Question;
use crate::{Error, Result};

/// Rows a forward pass takes at once.
const BATCH: usize = 64;

/// What a model answered to one question.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// The option whose tokens are most likely after the prompt (summed log-likelihood; the first of equals).
    pub option: usize,
    /// By how much the true option's log-likelihood exceeds the best wrong one's: negative where the answer is wrong.
    pub margin: f32,
    /// The model, left to go on with its likeliest token each time, says the true option word for word.
    pub said: bool,
}

/// The model's answer to each question, asked behind `<bos>`.
pub fn answers(
    weights: &HashMap<String, Tensor>,
    config: &LlamaConfig,
    tokenizer: &tokenizers::Tokenizer,
    questions: &[Question],
) -> Result<Vec<Answer>> {
    /// A prompt with one option behind it.
    struct Row {
        question: usize,
        option: usize,
        ids: Vec<u32>,
        prompt: usize,
    }
    let mut rows = Vec::new();
    let mut singles: Vec<Option<Vec<u32>>> = Vec::new(); // the options' tokens where all are of one token
    for (question, asked) in questions.iter().enumerate() {
        let mut prompt = vec![BOS];
        prompt.extend(encode(tokenizer, &asked.prompt)?);
        let options: Vec<Vec<u32>> =
            asked.options.iter().map(|option| encode(tokenizer, &format!(" {option}"))).collect::<Result<_>>()?;
        let single = options.iter().all(|ids| ids.len() == 1);
        for (option, ids) in options.iter().enumerate().filter(|&(option, _)| !single || option == asked.answer) {
            rows.push(Row { question, option, prompt: prompt.len(), ids: [&prompt[..], ids].concat() });
        }
        singles.push(single.then(|| options.concat()));
    }
    rows.sort_by_key(|row| row.ids.len()); // stable; rows of a batch differ little in length

    let mut scores: Vec<Vec<f32>> = questions.iter().map(|question| vec![0.0; question.options.len()]).collect();
    let mut said = vec![false; questions.len()];
    for batch in rows.chunks(BATCH) {
        // The last token of a row is never an input; later pads are seen by nothing that is read.
        let width = batch.iter().map(|row| row.ids.len() - 1).max().unwrap_or(0);
        let ids: Vec<u32> = batch
            .iter()
            .flat_map(|row| (0..width).map(|at| *row.ids[..row.ids.len() - 1].get(at).unwrap_or(&PAD)))
            .collect();
        let logits = forward(weights, config, &Tensor::from_vec(ids, (batch.len(), width), &Device::Cpu)?)?;
        for (number, row) in batch.iter().enumerate() {
            let at: Vec<Vec<f32>> =
                log_softmax(&logits.get(number)?.narrow(0, row.prompt - 1, row.ids.len() - row.prompt)?)?.to_vec2()?;
            let continuation = &row.ids[row.prompt..];
            if row.option == questions[row.question].answer {
                let likeliest = |row: &Vec<f32>, id: u32| row.iter().all(|&p| p <= row[id as usize]);
                said[row.question] = at.iter().zip(continuation).all(|(row, &id)| likeliest(row, id));
            }
            match &singles[row.question] {
                Some(ids) => scores[row.question] = ids.iter().map(|&id| at[0][id as usize]).collect(),
                None => {
                    scores[row.question][row.option] =
                        at.iter().zip(continuation).map(|(row, &id)| row[id as usize]).sum();
                }
            }
        }
    }

    let answer = |((scores, question), said): ((Vec<f32>, &Question), bool)| {
        let best = |skip: Option<usize>| {
            let options = (0..scores.len()).filter(|&option| Some(option) != skip);
            options.reduce(|best, option| if scores[option] > scores[best] { option } else { best }).unwrap_or(0)
        };
        let margin = scores[question.answer] - scores[best(Some(question.answer))];
        Answer { option: best(None), margin, said }
    };
    Ok(scores.into_iter().zip(questions).zip(said).map(answer).collect())
}

/// The share of `answers` that are right.
pub fn accuracy(answers: &[Answer], questions: &[Question]) -> f64 {
    let right = answers.iter().zip(questions).filter(|(answer, question)| answer.option == question.answer);
    right.count() as f64 / questions.len().max(1) as f64
}

/// Perplexity of `ids` in windows of `window` tokens that do not overlap, each behind its own `<bos>`, and the number of
/// tokens foretold. A last piece shorter than a window is left out.
pub fn perplexity(
    weights: &HashMap<String, Tensor>,
    config: &LlamaConfig,
    ids: &[u32],
    window: usize,
) -> Result<(f64, usize)> {
    let windows: Vec<&[u32]> = ids.chunks_exact(window).collect();
    if windows.is_empty() {
        return Err(Error::Text(format!("the text has {} tokens, fewer than a window of {window}", ids.len())));
    }
    let mut sum = 0.0;
    for batch in windows.chunks((4096 / window).max(1)) {
        let inputs: Vec<u32> =
            batch.iter().flat_map(|ids| std::iter::once(BOS).chain(ids[..window - 1].iter().copied())).collect();
        let inputs = Tensor::from_vec(inputs, (batch.len(), window), &Device::Cpu)?;
        let targets = Tensor::from_vec(batch.concat(), (batch.len(), window, 1), &Device::Cpu)?;
        let log_p = log_softmax(&forward(weights, config, &inputs)?)?.gather(&targets, 2)?;
        sum += log_p.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
    }
    let tokens = windows.len() * window;
    Ok(((-sum / tokens as f64).exp(), tokens))
}

/// Log-probabilities over the last axis.
fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}
