//! A decoder trained on text over its pool, beside the dense model it was projected from.
//!
//! Windows of the text are drawn by the seed and the number of the step, so that a step can be computed without those
//! before it. The network is the differentiable one of [`crate::train::llama`], held at the start to what the decoder
//! that runs elsewhere says.

use std::{borrow::Cow, collections::HashMap, path::Path};

use candle_core::{Device, Tensor, Var};
use rayon::prelude::*;
use scruple_weights::{Checkpoint, Error as WeightsError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Distillation;
use crate::{
    Error, Result,
    data::random::Stream,
    kernel::tensor::with_f32,
    model::Decoder,
    nn::{
        graph::Layout,
        optimiser::{Optimiser, Rule, clip},
        parametrise::Parametrise,
        saved::{self, Saved},
    },
    sharing::{
        Shared, SharedFile,
        expand::copy_beside,
        file::{Described, PSI, Target, Untouched, encode, expand_tensor, is_shareable, rounded},
    },
    train::{
        adamw::warmup_cosine,
        llama::{LlamaConfig, forward},
    },
};

/// Tokens by which the network that learns is held to the one that runs.
const COMPARED: usize = 8;

/// How far their logits may be apart, relative to the largest: both sum in f32, in other orders.
const MAX_RELATIVE_DIFFERENCE: f32 = 1e-3;

/// How to train. The same recipe, model and tokens give the same weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Decides which windows are seen.
    pub seed: u64,
    /// Steps.
    pub steps: u64,
    /// Windows a step.
    pub windows: usize,
    /// Predicted tokens of a window.
    pub window: usize,
    /// Highest learning rate; see [`warmup_cosine`].
    pub learning_rate: f64,
    /// Steps until it is reached.
    pub warmup: u64,
    /// Of the pool's coordinates and of what does not share, apart from the gradient.
    pub weight_decay: f64,
    /// The gradient's norm is held to this.
    pub clip: f64,
    /// The dense model's part, where one is there.
    pub distillation: Option<Distillation>,
}

impl Recipe {
    fn check(&self, tokens: usize) -> Result<()> {
        let refuse = |what: String| Err(Error::Recipe(what));
        if self.steps == 0 || self.windows == 0 || self.window == 0 {
            return refuse(format!(
                "a run of {} steps of {} windows of {} tokens; all three need 1 or more",
                self.steps, self.windows, self.window
            ));
        }
        for (what, value) in [("learning rate", self.learning_rate), ("norm the gradient is clipped to", self.clip)] {
            if !(value > 0.0 && value.is_finite()) {
                return refuse(format!("the {what} is {value}, expected a number above 0"));
            }
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return refuse(format!("the weight decay is {}, expected 0 or more", self.weight_decay));
        }
        if tokens <= self.window {
            return Err(Error::Text(format!(
                "the text has {tokens} tokens, too few for a window of {} and its last target; give a longer text or a \
                 shorter window",
                self.window
            )));
        }
        self.distillation.map_or(Ok(()), |distillation| distillation.check())
    }
}

/// A dense model whose word counts, and what distinguishes it from others.
#[derive(Debug, Clone, Copy)]
pub struct Teacher<'a> {
    /// The model.
    pub decoder: &'a Decoder,
    /// [`Checkpoint::fingerprint_with_config`].
    pub fingerprint: &'a str,
}

/// What a step says of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Steps done, from 1.
    pub step: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Mean negative log-likelihood of the step's tokens, nats.
    pub nll: f64,
    /// Mean divergence from the dense model at the recipe's temperature, nats.
    pub divergence: Option<f64>,
    /// The gradient's norm before clipping.
    pub norm: f64,
}

/// What a file of a run says beside its tensors.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    recipe: Recipe,
    model: String,
    tokens: String,
    teacher: Option<String>,
    step: u64,
}

/// The version of [`State`]: since 2 configurations count.
const VERSION: u32 = 2;

/// The metadata key of [`State`].
const STATE: &str = "scruple.finetuning";

/// A run in progress.
#[derive(Debug)]
pub struct Tuner<'a> {
    file: &'a SharedFile,
    config: LlamaConfig,
    shared: Shared,
    layout: Layout,
    recipe: Recipe,
    tokens: &'a [u32],
    teacher: Option<Teacher<'a>>,
    /// Hashes of the model the run began with and of its configuration.
    model: String,
    weights: Vec<f32>,
    gradient: Vec<f32>,
    trainable: Vec<f32>,
    of_trainable: Vec<f32>,
    optimiser: Optimiser,
    step: u64,
}

impl<'a> Tuner<'a> {
    /// A run from the model in `file` on `tokens`, with a `teacher` where the recipe distils.
    ///
    /// # Errors
    /// If the model is no Llama decoder, tensors are missing or shared in another shape, a number of the recipe cannot be,
    /// or the text is too short.
    pub fn new(file: &'a SharedFile, recipe: Recipe, tokens: &'a [u32], teacher: Option<Teacher<'a>>) -> Result<Self> {
        recipe.check(tokens.len())?;
        let config = llama(file.checkpoint())?;
        if recipe.window > config.max_position_embeddings {
            return Err(Error::Recipe(format!(
                "a window of {} tokens is longer than the {} positions of the model",
                recipe.window, config.max_position_embeddings
            )));
        }
        match (teacher, recipe.distillation) {
            (Some(teacher), Some(_)) if teacher.decoder.config().vocab_size != config.vocab_size => {
                return Err(Error::Recipe(format!(
                    "the dense model has {} tokens, the one with the pool {}; give the one it was projected from",
                    teacher.decoder.config().vocab_size,
                    config.vocab_size
                )));
            }
            (Some(_), Some(_)) | (None, None) => {}
            _ => return Err(Error::Recipe("a dense model and a share of the loss for it belong together".into())),
        }
        // What shares stands first, in the order of the pool's flat array.
        let wanted = config.tensors();
        let shares = |name: &str| file.sharing().modules.iter().any(|module| module.name == name);
        let tied = |name: &str| file.tied().iter().any(|tied| tied.name == name);
        let modules = file.sharing().modules.iter().map(|module| (module.name.clone(), module.shape.clone()));
        let rest = wanted.iter().filter(|(name, _)| !shares(name) && !tied(name)).cloned();
        let layout = Layout::of(modules.chain(rest));
        let pool = file.pool()?;
        let mut weights = Vec::with_capacity(layout.len());
        for (name, shape) in &wanted {
            let (found, _) = file.values(&pool, name)?;
            if found != *shape {
                let what = format!("has shape {found:?}, expected {shape:?} from config.json");
                return Err(WeightsError::tensor(file.path(), name, what).into());
            }
        }
        for entry in layout.entries() {
            weights.extend(file.values(&pool, &entry.name)?.1);
        }
        let shared = Shared::over(file.sharing().clone(), &layout)?;
        let trainable = shared.trainable(&pool, &weights);
        let rule = Rule::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: recipe.weight_decay };
        let mut tuner = Self {
            optimiser: Optimiser::flat(rule, trainable.len()),
            gradient: vec![0.0; weights.len()],
            of_trainable: vec![0.0; trainable.len()],
            model: file.checkpoint().fingerprint_with_config()?,
            step: 0,
            file,
            config,
            shared,
            layout,
            recipe,
            tokens,
            teacher,
            weights,
            trainable,
        };
        tuner.compare()?;
        Ok(tuner)
    }

    /// Holds the network that learns to the decoder that runs, on a few tokens.
    fn compare(&mut self) -> Result<()> {
        let ids = &self.tokens[..COMPARED.min(self.tokens.len()).min(self.config.max_position_embeddings)];
        let decoder = Decoder::open(self.file.checkpoint())?;
        decoder.expect_ids(self.tokens)?;
        let expected = with_f32(&decoder.logits(&decoder.hidden_once(ids)?)?, <[f32]>::to_vec)?;
        let weights = self.tensors(|values, shape| Tensor::from_slice(values, shape, &Device::Cpu))?;
        let found = forward(&weights, &self.config, &Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu)?)?;
        let found: Vec<f32> = found.flatten_all()?.to_vec1()?;
        let most = expected.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()));
        let far = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        match far <= MAX_RELATIVE_DIFFERENCE * most {
            true => Ok(()),
            false => Err(Error::Model(format!(
                "{}: the network that is trained gives logits {far} away from those of the decoder (largest {most}); this \
                 configuration is not one it knows",
                self.file.path().display()
            ))),
        }
    }

    /// Steps of the run.
    pub fn steps(&self) -> u64 {
        self.recipe.steps
    }

    /// Steps done.
    pub fn step_number(&self) -> u64 {
        self.step
    }

    /// Every tensor that the network wants, those that are tied to one that shares among them.
    fn tensors<T>(&self, make: impl Fn(&[f32], &[usize]) -> candle_core::Result<T>) -> Result<HashMap<String, T>>
    where
        T: Clone,
    {
        let mut all = HashMap::new();
        for entry in self.layout.entries() {
            all.insert(entry.name.clone(), make(&self.weights[entry.range()], &entry.shape)?);
        }
        for tied in self.file.tied() {
            if let Some(of) = all.get(&tied.of).cloned() {
                all.insert(tied.name.clone(), of);
            }
        }
        Ok(all)
    }

    /// The next step.
    ///
    /// # Errors
    /// [`Error::Numeric`] if the loss is not finite; [`Error::Recipe`] if all steps are done.
    pub fn step(&mut self) -> Result<Progress> {
        let Recipe { windows, window, .. } = self.recipe;
        if self.step >= self.recipe.steps {
            return Err(Error::Recipe(format!("the run has {} steps, and all of them are done", self.recipe.steps)));
        }
        let mut stream = Stream::new(self.recipe.seed, "sharing/windows", self.step);
        let starts: Vec<usize> = (0..windows).map(|_| stream.below(self.tokens.len() - window)).collect();
        let inputs: Vec<&[u32]> = starts.iter().map(|&at| &self.tokens[at..at + window]).collect();
        let targets: Vec<u32> = starts.iter().flat_map(|&at| &self.tokens[at + 1..=at + window]).copied().collect();

        self.shared.expand(&self.trainable, &mut self.weights);
        let vars = self.tensors(|values, shape| Var::from_slice(values, shape, &Device::Cpu))?;
        let weights = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let ids = Tensor::from_vec(inputs.concat(), (windows, window), &Device::Cpu)?;
        let logits = forward(&weights, &self.config, &ids)?;
        let logits = logits.reshape((windows * window, self.config.vocab_size))?;
        let (nll, divergence, of_logits) = self.loss(&logits, &inputs, &targets)?;
        // The gradient of ⟨logits, g⟩ with g constant is that of the loss.
        let grads = (logits * of_logits)?.sum_all()?.backward()?;
        for entry in self.layout.entries() {
            let out = &mut self.gradient[entry.range()];
            match vars.get(&entry.name).and_then(|var| grads.get(var.as_tensor())) {
                Some(grad) => with_f32(&grad.flatten_all()?, |grad| out.copy_from_slice(grad))?,
                None => out.fill(0.0),
            }
        }
        self.shared.fold(&self.gradient, &mut self.of_trainable);
        let norm = clip(self.step + 1, nll, &mut self.of_trainable, self.recipe.clip)?;
        let whole = |steps: u64| usize::try_from(steps).unwrap_or(usize::MAX);
        let Recipe { steps, warmup, learning_rate, .. } = self.recipe;
        let rate = warmup_cosine(whole(self.step), whole(steps), whole(warmup.min(steps)), learning_rate);
        self.optimiser.step(&mut self.trainable, &mut self.of_trainable, rate);
        self.step += 1;
        Ok(Progress { step: self.step, steps, nll, divergence, norm })
    }

    /// Means of the likelihood and the divergence, and the gradient of the loss in the logits (rows, vocabulary).
    fn loss(&self, logits: &Tensor, inputs: &[&[u32]], targets: &[u32]) -> Result<(f64, Option<f64>, Tensor)> {
        let vocab = self.config.vocab_size;
        let distillation = self.recipe.distillation.unwrap_or(Distillation { share: 0.0, temperature: 1.0 });
        let teacher = match self.teacher {
            None => None,
            Some(teacher) => {
                let decoder = teacher.decoder;
                let all =
                    inputs.iter().map(|ids| with_f32(&decoder.logits(&decoder.hidden_once(ids)?)?, <[f32]>::to_vec));
                Some(all.collect::<Result<Vec<_>>>()?.concat())
            }
        };
        let share = 1.0 / targets.len() as f64;
        let mut gradient = vec![0.0f32; targets.len() * vocab];
        let rows = with_f32(logits, |logits| {
            let rows =
                gradient.par_chunks_exact_mut(vocab).zip(logits.par_chunks_exact(vocab)).zip(targets).enumerate();
            rows.map(|(row, ((gradient, logits), &target))| {
                let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
                for (token, (&x, gradient)) in logits.iter().zip(&mut *gradient).enumerate() {
                    let right = if token == target as usize { 1.0 } else { 0.0 };
                    let p = f64::from(x - most).exp() / sum;
                    *gradient = (share * (1.0 - distillation.share) * (p - right)) as f32;
                }
                let nll = sum.ln() - f64::from(logits[target as usize] - most);
                let of_teacher = teacher.as_ref().map_or(0.0, |teacher| {
                    super::divergence(logits, &teacher[row * vocab..][..vocab], distillation, share, gradient)
                });
                (nll, of_teacher)
            })
            .collect::<Vec<(f64, f64)>>()
        })?;
        let nll = rows.iter().map(|row| row.0).sum::<f64>() * share;
        let divergence = teacher.is_some().then(|| rows.iter().map(|row| row.1).sum::<f64>() * share);
        Ok((nll, divergence, Tensor::from_vec(gradient, (targets.len(), vocab), &Device::Cpu)?))
    }

    fn state(&self) -> State {
        let mut hash = Sha256::new();
        self.tokens.iter().for_each(|id| hash.update(id.to_le_bytes()));
        State {
            version: VERSION,
            recipe: self.recipe.clone(),
            model: self.model.clone(),
            tokens: hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            teacher: self.teacher.map(|teacher| teacher.fingerprint.to_string()),
            step: self.step,
        }
    }

    /// Writes everything the run needs to go on into `file`, in one rename.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, file: &Path) -> Result<()> {
        let trainable = ("trainable".to_string(), vec![self.trainable.len()], self.trainable.as_slice());
        saved::write(file, (STATE, &self.state()), vec![trainable], &self.optimiser)
    }

    /// Takes up the run that was saved in `file`; it must be this one.
    ///
    /// # Errors
    /// If the file cannot be read, is not a run's, or is another run's; the message says in what they differ.
    pub fn resume(&mut self, file: &Path) -> Result<()> {
        let saved = Saved::<State>::open(file, STATE)?;
        let (state, own) = (&saved.state, self.state());
        let same = [
            ("version of the file", state.version == own.version),
            ("model", state.model == own.model),
            ("recipe", state.recipe == own.recipe),
            ("text", state.tokens == own.tokens),
            ("dense model", state.teacher == own.teacher),
        ];
        saved.is_of(&same, state.step, self.recipe.steps)?;
        let memories = saved.memories(&self.optimiser)?;
        self.trainable = saved.flat("trainable", self.trainable.len())?;
        self.optimiser.restore(memories, state.step);
        self.step = state.step;
        Ok(())
    }

    /// Writes the model as it is into the folder `out`, which must not exist: the pool in its type, every other tensor in
    /// its own, all that stands beside the weights, and `files` (names and contents).
    ///
    /// # Errors
    /// If the output exists or does not fit on its disk, or a number has left what its type holds.
    pub fn write(&mut self, out: &Path, files: &[(&str, Vec<u8>)]) -> Result<()> {
        let (file, sharing) = (self.file, self.shared.sharing());
        let stored = |value: f32| rounded(file.psi_dtype(), value);
        let psi: Vec<f32> = self.shared.pool(&self.trainable).into_iter().map(stored).collect();
        if let Some(slot) = psi.iter().position(|value| !value.is_finite()) {
            return Err(Error::Numeric(format!(
                "slot {slot} of the pool has left what {} holds; project with a pool of F32",
                file.psi_dtype()
            )));
        }
        let targets = sharing.modules.par_iter().zip(file.targets()).map(|(module, target)| {
            let sha256 = expand_tensor(sharing, &psi, module, target.dtype, |_, _| Ok::<(), Error>(()))?;
            Ok(Target { dtype: target.dtype, sha256 })
        });
        let targets = targets.collect::<Result<Vec<Target>>>()?;
        self.shared.expand(&self.trainable, &mut self.weights);
        let checkpoint = file.checkpoint();
        let untouched = checkpoint.tensors().filter(|view| view.name() != PSI).map(|view| {
            let bytes = match self.layout.entry(view.name()).filter(|_| is_shareable(view.dtype())) {
                Some(entry) => {
                    let mut bytes = Vec::new();
                    encode(view.dtype(), &self.weights[entry.range()], &mut bytes);
                    Cow::Owned(bytes)
                }
                None => Cow::Borrowed(view.bytes()),
            };
            Untouched { name: view.name().into(), dtype: view.dtype(), shape: view.shape().to_vec(), bytes }
        });
        let untouched: Vec<Untouched<'_>> = untouched.collect();
        let described =
            Described { sharing, targets: &targets, tied: file.tied(), psi: &psi, psi_dtype: file.psi_dtype() };
        let mut writer = described.write(out, checkpoint.metadata().clone(), &untouched)?;
        checkpoint.expect_unchanged()?;
        copy_beside(checkpoint, &mut writer)?;
        for (name, bytes) in files {
            writer.add_file(name, bytes)?;
        }
        writer.finish()?;
        Ok(())
    }
}

/// The configuration of a Llama decoder, as the network that learns wants it.
fn llama(checkpoint: &Checkpoint) -> Result<LlamaConfig> {
    let file = checkpoint.dir().join("config.json");
    let refuse = |what: String| Error::Weights(WeightsError::file(&file, what));
    let config = checkpoint.config()?;
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    if model_type != "llama" {
        return Err(refuse(format!(
            "has model type `{model_type}`; over a pool, decoders of type `llama` are fine-tuned"
        )));
    }
    let is_set = |key: &str| config.get(key).is_some_and(|value| !value.is_null() && value != false);
    if let Some(key) = ["rope_scaling", "attention_bias", "mlp_bias"].into_iter().find(|key| is_set(key)) {
        return Err(refuse(format!("has `{key}`, which the network that is trained here does not know")));
    }
    let number = |key: &str, default: Option<u64>| -> Result<usize> {
        let found = match config.get(key).filter(|value| !value.is_null()) {
            None => default,
            Some(value) => value.as_u64(),
        };
        found
            .filter(|&value| value > 0)
            .and_then(|value| usize::try_from(value).ok())
            .ok_or_else(|| refuse(format!("lacks a whole number above 0 in `{key}`")))
    };
    let real = |key: &str, default: f64| {
        let inner = config.get("rope_parameters").and_then(|inner| inner.get(key));
        config.get(key).or(inner).and_then(Value::as_f64).unwrap_or(default)
    };
    let (hidden, heads) = (number("hidden_size", None)?, number("num_attention_heads", None)?);
    Ok(LlamaConfig {
        vocab_size: number("vocab_size", None)?,
        hidden_size: hidden,
        intermediate_size: number("intermediate_size", None)?,
        num_hidden_layers: number("num_hidden_layers", None)?,
        num_attention_heads: heads,
        num_key_value_heads: number("num_key_value_heads", Some(heads as u64))?,
        head_dim: number("head_dim", Some((hidden / heads) as u64))?,
        max_position_embeddings: number("max_position_embeddings", Some(2048))?,
        rms_norm_eps: real("rms_norm_eps", 1e-6),
        rope_theta: real("rope_theta", 10_000.0),
        tie_word_embeddings: config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
    })
}

#[cfg(test)]
#[path = "language_tests.rs"]
mod tests;
