//! The loop that trains a language model on text: seeded windows, loss, step.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor, Var};

use super::adamw::{AdamW, AdamWConfig, warmup_cosine};
use super::llama::{LlamaConfig, cross_entropy, forward};
use crate::data::random::Stream;
use crate::data::tokenizer::{self, BOS, EOS};
use crate::{Error, Result};

/// How to train. The same recipe and tokens give the same weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Decides the first weights and which windows are seen.
    pub seed: u64,
    /// Tokens a step, over all its windows.
    pub batch_tokens: usize,
    /// Window lengths, each for as many steps as stated. Short windows are cheaper, long ones teach long positions.
    pub phases: Vec<Phase>,
    /// Highest learning rate; see [`warmup_cosine`].
    pub learning_rate: f64,
    /// Steps until it is reached.
    pub warmup: usize,
    /// The step itself.
    pub optimiser: AdamWConfig,
}

/// Some steps with windows of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// How many steps.
    pub steps: usize,
    /// Tokens of a window; divides the tokens of a step.
    pub window: usize,
}

/// What a step says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Steps done, from 1.
    pub step: usize,
    /// Steps to do in all.
    pub steps: usize,
    /// Mean negative log-likelihood of this step's tokens, before the step.
    pub loss: f32,
    /// The gradient's norm before clipping.
    pub norm: f64,
    /// Since the first step began.
    pub elapsed: Duration,
    /// Until the last step ends, if the rest goes on as the steps so far.
    pub remaining: Duration,
}

/// Text as training tokens: documents one after the other, each after the first `<bos>` of the stream.
///
/// Documents are the lines of `text`. Half of them (the seed says which) end with their newline, as they do in a file, the
/// others with `<eos> <bos>`, as they do in a prompt: so the model knows both.
pub fn tokens(tokenizer: &tokenizers::Tokenizer, text: &str, seed: u64) -> Result<Vec<u32>> {
    let mut stream = Stream::new(seed, "train/boundaries", 0);
    let mut ids = vec![BOS];
    for line in text.lines() {
        if stream.below(2) == 0 {
            ids.extend(tokenizer::encode(tokenizer, &format!("{line}\n"))?);
        } else {
            ids.extend(tokenizer::encode(tokenizer, line)?);
            ids.extend([EOS, BOS]);
        }
    }
    Ok(ids)
}

/// Trains fresh weights on `tokens` and returns them in f32, with Hugging Face's names. `progress` hears of every step.
pub fn train(
    config: &LlamaConfig,
    recipe: &Recipe,
    tokens: &[u32],
    mut progress: impl FnMut(Progress),
) -> Result<HashMap<String, Tensor>> {
    let steps = recipe.phases.iter().map(|phase| phase.steps).sum();
    for phase in &recipe.phases {
        if tokens.len() <= phase.window {
            return Err(Error::Text(format!(
                "the text has {} tokens, too few for a window of {} and its last target",
                tokens.len(),
                phase.window
            )));
        }
        if recipe.batch_tokens == 0 || !recipe.batch_tokens.is_multiple_of(phase.window) {
            return Err(Error::Recipe(format!(
                "a step of {} tokens cannot be cut into windows of {}",
                recipe.batch_tokens, phase.window
            )));
        }
    }
    let starts: Vec<usize> = (0..tokens.len()).filter(|&at| tokens[at] == BOS).collect();

    let mut weights = config.init(recipe.seed)?;
    let mut vars = Vec::new();
    for (name, _) in config.tensors() {
        let var = Var::from_tensor(&weights[&name])?;
        weights.insert(name, var.as_tensor().clone());
        vars.push(var);
    }
    let mut optimiser = AdamW::new(vars, recipe.optimiser);

    let began = Instant::now();
    let windows = recipe.phases.iter().flat_map(|phase| std::iter::repeat_n(phase.window, phase.steps));
    for (step, window) in windows.enumerate() {
        let mut stream = Stream::new(recipe.seed, "train/windows", step as u64);
        let (mut ids, mut targets): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        while ids.len() < recipe.batch_tokens {
            // Half of the windows begin a document, as prompts do; the others anywhere, as pieces of a long text do.
            let aligned = stream.below(2) == 0 && !starts.is_empty();
            let at = if aligned { *stream.pick(&starts) } else { stream.below(tokens.len() - window) };
            let at = at.min(tokens.len() - window - 1);
            ids.extend(&tokens[at..at + window]);
            targets.extend(&tokens[at + 1..at + window + 1]);
        }
        let shape = (recipe.batch_tokens / window, window);
        let ids = Tensor::from_vec(ids, shape, &Device::Cpu)?;
        let targets = Tensor::from_vec(targets, shape, &Device::Cpu)?;
        let loss = cross_entropy(&forward(&weights, config, &ids)?, &targets)?;
        let grads = loss.backward()?;
        let rate = warmup_cosine(step, steps, recipe.warmup, recipe.learning_rate);
        let norm = optimiser.step(&grads, rate)?;
        let elapsed = began.elapsed();
        progress(Progress {
            step: step + 1,
            steps,
            loss: loss.to_scalar()?,
            norm,
            elapsed,
            remaining: elapsed.mul_f64((steps - step - 1) as f64 / (step + 1) as f64),
        });
    }
    Ok(weights.into_iter().map(|(name, weight)| (name, weight.detach())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> LlamaConfig {
        LlamaConfig {
            vocab_size: 16,
            hidden_size: 32,
            intermediate_size: 64,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 16,
            max_position_embeddings: 32,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            tie_word_embeddings: true,
        }
    }

    fn recipe() -> Recipe {
        Recipe {
            seed: 5,
            batch_tokens: 128,
            phases: vec![Phase { steps: 14, window: 16 }, Phase { steps: 6, window: 32 }],
            learning_rate: 1e-2,
            warmup: 4,
            optimiser: AdamWConfig::default(),
        }
    }

    /// 0 1 2 … 15 0 1 …: the next token follows from the last.
    fn counting() -> Vec<u32> {
        (0..500).map(|n| n % 16).collect()
    }

    #[test]
    fn the_loss_falls_in_twenty_steps_and_the_run_repeats() {
        let run = || {
            let mut losses = Vec::new();
            let weights = train(&config(), &recipe(), &counting(), |progress| losses.push(progress.loss)).unwrap();
            (losses, weights["model.norm.weight"].to_vec1::<f32>().unwrap())
        };
        let (losses, norm) = run();
        assert_eq!(losses.len(), 20);
        assert!((losses[0] - 16f32.ln()).abs() < 0.3, "untrained loss {}", losses[0]);
        assert!(losses[19] < 0.6 * losses[0], "{losses:?}");
        assert_eq!((losses, norm), run(), "the same seed, other numbers");
    }

    #[test]
    fn text_too_short_for_a_window_is_refused() {
        let error = train(&config(), &recipe(), &counting()[..20], |_| ()).unwrap_err().to_string();
        assert_eq!(error, "the text has 20 tokens, too few for a window of 32 and its last target");
        let recipe = Recipe { batch_tokens: 100, ..recipe() };
        let error = train(&config(), &recipe, &counting(), |_| ()).unwrap_err().to_string();
        assert_eq!(error, "a step of 100 tokens cannot be cut into windows of 16");
    }
}
