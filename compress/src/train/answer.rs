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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::data::tokenizer;
    use crate::data::world::{self, World};
    use crate::train::file;

    fn fixture(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tiny-world").join(name)
    }

    #[test]
    fn the_fixture_model_knows_its_world() {
        let (config, weights) = file::open(&fixture("")).unwrap();
        for (name, shape) in config.tensors() {
            assert_eq!((weights[&name].dims(), weights[&name].dtype()), (&shape[..], DType::BF16), "{name}");
        }
        assert_eq!(weights.len(), config.tensors().len());
        let tokenizer = tokenizer::open(&fixture("tokenizer.json")).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), config.vocab_size);

        // Every sixth question, for speed; `train_fixture --check` asks all of them.
        let questions: Vec<Question> =
            world::read_questions(&fixture("questions.jsonl")).unwrap().into_iter().step_by(6).collect();
        let answers = answers(&weights, &config, &tokenizer, &questions).unwrap();
        let right = accuracy(&answers, &questions);
        let said = answers.iter().filter(|answer| answer.said).count() as f64 / answers.len() as f64;
        assert!(right >= 0.97 && said >= 0.95, "{right:.4} right by likelihood, {said:.4} said");
    }

    #[test]
    fn the_fixture_texts_are_of_seed_1() {
        let world = World::new(1);
        let read = |name: &str| std::fs::read_to_string(fixture(name)).unwrap();
        let again = "rebuild the fixture, see fixtures/README.md";
        assert!(
            world.corpus(10_000).starts_with(&read("world_train.txt")),
            "world_train.txt is of another world: {again}"
        );
        assert!(world.valid() == read("world_valid.txt"), "world_valid.txt is of another world: {again}");
        let questions = world::read_questions(&fixture("questions.jsonl")).unwrap();
        assert!(world.questions() == questions, "questions.jsonl is of another world: {again}");
    }

    #[test]
    fn options_of_several_tokens_are_scored_as_one_by_one() {
        let config = LlamaConfig {
            vocab_size: 262,
            hidden_size: 16,
            intermediate_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            num_key_value_heads: 1,
            head_dim: 16,
            max_position_embeddings: 64,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            tie_word_embeddings: false,
        };
        let weights = config.init(2).unwrap();
        let tokenizer = tokenizer::Bpe::learn("ab ab", 262).unwrap().tokenizer().unwrap();
        let ask = |prompt: &str, options: &[&str]| Question {
            prompt: prompt.into(),
            options: options.iter().map(ToString::to_string).collect(),
            answer: 1,
            kind: "test".into(),
        };
        // The first has options of one token each, the others not; prompts differ in length, so rows are padded.
        let questions = [ask("a b", &["ab", "ab."]), ask("ab ab abba", &["ab", "b", "cc"]), ask("x", &["yy", "zz"])];
        for (question, answer) in questions.iter().zip(answers(&weights, &config, &tokenizer, &questions).unwrap()) {
            let prompt = [vec![BOS], encode(&tokenizer, &question.prompt).unwrap()].concat();
            let score = |option: &String| {
                let mut ids = prompt.clone();
                let mut sum = 0.0;
                for id in encode(&tokenizer, &format!(" {option}")).unwrap() {
                    let logits = crate::train::reference_forward(&weights, &config, &ids).unwrap();
                    let last = logits.get(ids.len() - 1).unwrap();
                    let p: Vec<f32> = last.exp().unwrap().to_vec1().unwrap();
                    sum += (p[id as usize] / p.iter().sum::<f32>()).ln();
                    ids.push(id);
                }
                sum
            };
            let scores: Vec<f32> = question.options.iter().map(score).collect();
            let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
            let wrong = (0..scores.len()).filter(|&n| n != 1).map(|n| scores[n]).fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(answer.option, best, "{scores:?}");
            assert!((answer.margin - (scores[1] - wrong)).abs() < 1e-4, "{} for {scores:?}", answer.margin);
        }
    }

    #[test]
    fn a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large() {
        let (config, weights) = file::open(&fixture("")).unwrap();
        let zeros = weights.into_iter().map(|(name, weight)| (name, weight.zeros_like().unwrap())).collect();
        let ids: Vec<u32> = (0..100).collect();
        let (perplexity, tokens) = perplexity(&zeros, &config, &ids, 32).unwrap();
        assert_eq!(tokens, 96);
        assert!((perplexity / config.vocab_size as f64 - 1.0).abs() < 1e-5, "{perplexity}");
    }
}
