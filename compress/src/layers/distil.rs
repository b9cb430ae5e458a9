//! Healing by distillation: what is left of a model learns to say what the whole model says.
//!
//! ```text
//! loss = T² · KL(softmax(dense logits / T) ‖ softmax(logits / T))      a mean over all positions of a step
//! ```
//!
//! (Hinton, Vinyals and Dean 2015, section 2.) What learns are the norms and low-rank adapters of linears (LoRA, Hu et al.
//! 2021) of all blocks, or of those near where layers are gone; they are added to the weights when the model is written.
//! The whole model's word is computed as it is needed and not kept. Windows of the text are gone through in an order drawn
//! by the seed, each once before any comes again, so a run is a function of the two models, the text and the recipe alone:
//! the same bytes for any number of threads, and through a stop and a start.

use std::{collections::HashMap, path::Path};

use candle_core::{Device, Tensor, Var};
use scruple_weights::{Checkpoint, TensorView, name::PathFilter};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{corpus::hex, write::Provenance};
use crate::{
    Error, Result,
    data::random::Stream,
    kernel::tensor::with_f32,
    model::Decoder,
    nn::{
        graph::Layout,
        optimiser::{Optimiser, Rule, clip},
        saved::{self, Saved},
    },
    train::{
        adamw::warmup_cosine,
        adapted::{Adapted, Choice, LORA_A, LORA_B},
    },
};

/// Tokens by which the network that learns is held to the one that runs.
const COMPARED: usize = 8;

/// Share of the steps in which the learning rate rises.
const WARMUP: f64 = 0.1;

/// How to distil. The same recipe, models and tokens give the same weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Decides how adapters begin and in which order windows are seen.
    pub seed: u64,
    /// Tokens seen in all; the last step may go beyond.
    pub tokens: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Windows a step.
    pub windows: usize,
    /// Highest learning rate; see [`warmup_cosine`].
    pub learning_rate: f64,
    /// Apart from the gradient.
    pub weight_decay: f64,
    /// The gradient's norm is held to this.
    pub clip: f64,
    /// T.
    pub temperature: f64,
    /// Rank of the adapters; 0 for norms alone.
    pub rank: usize,
    /// α: an adapter counts α / rank times.
    pub alpha: f64,
    /// Globs over the names of linears that have adapters.
    pub targets: Vec<String>,
    /// Globs over the names of linears that have none.
    pub ignore: Vec<String>,
    /// Only blocks this near to where layers are gone learn, the next ones being 1 away; all without it.
    pub near: Option<usize>,
    /// The norms learn too.
    pub norms: bool,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            seed: 1,
            tokens: 1 << 17,
            window: 256,
            windows: 4,
            learning_rate: 1e-3,
            weight_decay: 0.0,
            clip: 1.0,
            temperature: 1.0,
            rank: 8,
            alpha: 16.0,
            targets: vec!["*".into()],
            ignore: Vec::new(),
            near: None,
            norms: true,
        }
    }
}

impl Recipe {
    /// Steps of the run.
    pub fn steps(&self) -> u64 {
        self.tokens.div_ceil((self.window * self.windows).max(1)) as u64
    }

    fn check(&self, tokens: usize, positions: usize) -> Result<()> {
        let refuse = |what: String| Err(Error::Recipe(what));
        if self.tokens == 0 || self.window == 0 || self.windows == 0 {
            return refuse(format!(
                "a run of {} tokens in steps of {} windows of {}; all three need 1 or more",
                self.tokens, self.windows, self.window
            ));
        }
        if self.window > positions {
            return refuse(format!(
                "a window of {} tokens is longer than the model's {positions} positions",
                self.window
            ));
        }
        let above = [
            ("learning rate", self.learning_rate),
            ("norm the gradient is clipped to", self.clip),
            ("temperature", self.temperature),
            ("adapters' alpha", self.alpha),
        ];
        if let Some((what, value)) = above.into_iter().find(|(_, value)| !(*value > 0.0 && value.is_finite())) {
            return refuse(format!("the {what} is {value}, expected a number above 0"));
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return refuse(format!("the weight decay is {}, expected 0 or more", self.weight_decay));
        }
        if self.rank == 0 && !self.norms {
            return refuse("neither adapters nor norms learn; give a rank above 0 or let the norms learn".into());
        }
        if tokens < self.window {
            return Err(Error::Text(format!(
                "the text has {tokens} tokens, fewer than a window of {}; give a longer text or a shorter window",
                self.window
            )));
        }
        Ok(())
    }

    /// Whether block `block` learns, of a model that kept the source's layers `kept`.
    fn learns(&self, block: usize, provenance: &Provenance) -> bool {
        let Some(near) = self.near else { return true };
        let kept = &provenance.kept;
        // The seam `at` lies before block `at`: where the source's numbers jump, begin late or end early.
        let gap = |at: usize| {
            let before = at.checked_sub(1).map_or(0, |at| kept[at] + 1);
            kept.get(at).copied().unwrap_or(provenance.source_layers) != before
        };
        let distance = |at: usize| if block < at { at - block } else { block - at + 1 };
        (0..=kept.len()).filter(|&at| gap(at)).any(|at| distance(at) <= near)
    }
}

/// What a step says of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Steps done, from 1.
    pub step: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Mean KL to the dense model over the step's tokens, before the step, at the recipe's temperature; nats.
    pub divergence: f64,
    /// The gradient's norm before clipping.
    pub norm: f64,
}

/// What a file of a run says beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    version: u32,
    recipe: Recipe,
    /// Of the tensors and the configuration of each model.
    model: String,
    dense: String,
    text: String,
    step: u64,
}

/// The version of [`State`]: since 2 configurations count.
const VERSION: u32 = 2;

/// The metadata key of [`State`].
const STATE: &str = "scruple.distillation";

/// A run in progress.
#[derive(Debug)]
pub struct Distiller<'a> {
    student: Adapted,
    teacher: &'a Decoder,
    recipe: Recipe,
    tokens: &'a [u32],
    layout: Layout,
    learned: Vec<f32>,
    optimiser: Optimiser,
    /// Everything but the step.
    identity: State,
    step: u64,
}

impl<'a> Distiller<'a> {
    /// A run of `pruned`, of which `provenance` tells, beside `teacher`, the decoder of `dense`, on `tokens`.
    ///
    /// # Errors
    /// A number of the recipe that cannot be, targets that name no linear, a text that is too short, a model that does not
    /// learn here ([`Adapted::open`]).
    pub fn new(
        pruned: &Checkpoint,
        (dense, teacher): (&Checkpoint, &'a Decoder),
        provenance: &Provenance,
        recipe: Recipe,
        tokens: &'a [u32],
    ) -> Result<Self> {
        let positions = teacher.config().max_positions;
        recipe.check(tokens.len(), positions)?;
        let scale = if recipe.rank == 0 { 0.0 } else { recipe.alpha / recipe.rank as f64 };
        let student = Adapted::open(pruned, scale as f32)?;
        let targets = PathFilter::new(recipe.targets.clone(), recipe.ignore.clone())?;
        let blocks: Vec<usize> = (0..provenance.kept.len()).filter(|&block| recipe.learns(block, provenance)).collect();
        let choice = Choice { rank: recipe.rank, targets: &targets, norms: recipe.norms, blocks: &blocks };
        let all = student.learned(&choice)?;
        let adapters = all.iter().any(|learned| learned.name.ends_with(LORA_A));
        if recipe.rank > 0 && !adapters {
            return Err(Error::Recipe(format!(
                "no linear has an adapter: the targets are {:?} without {:?}, names look like {}",
                recipe.targets,
                recipe.ignore,
                student.decoder().config().linear_name(0, &student.decoder().config().blocks[0].linears[0].name)
            )));
        }
        let mut learned = Vec::new();
        for (number, tensor) in all.iter().enumerate() {
            match (&tensor.start, tensor.shape.as_slice()) {
                (Some(start), _) => learned.extend_from_slice(start),
                (None, shape) => {
                    let stream = &mut Stream::new(recipe.seed, "heal/adapters", number as u64);
                    let deviation = 1.0 / (*shape.last().unwrap_or(&1) as f64).sqrt();
                    learned.extend((0..shape.iter().product()).map(|_| (deviation * stream.normal()) as f32));
                }
            }
        }
        let mut text = Sha256::new();
        tokens.iter().for_each(|id| text.update(id.to_le_bytes()));
        let rule = Rule::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: recipe.weight_decay };
        let distiller = Self {
            optimiser: Optimiser::flat(rule, learned.len()),
            layout: Layout::of(all.into_iter().map(|learned| (learned.name, learned.shape))),
            identity: State {
                version: VERSION,
                recipe: recipe.clone(),
                model: pruned.fingerprint_with_config()?,
                dense: dense.fingerprint_with_config()?,
                text: hex(&text.finalize()),
                step: 0,
            },
            step: 0,
            student,
            teacher,
            recipe,
            tokens,
            learned,
        };
        teacher.expect_ids(tokens)?;
        let first = &tokens[..COMPARED.min(tokens.len()).min(positions)];
        distiller.student.compare(first, &distiller.variables()?)?;
        Ok(distiller)
    }

    /// Steps of the run.
    pub fn steps(&self) -> u64 {
        self.recipe.steps()
    }

    /// Steps done.
    pub fn step_number(&self) -> u64 {
        self.step
    }

    /// Numbers that learn.
    pub fn learning(&self) -> usize {
        self.learned.len()
    }

    /// Bytes of the frozen weights (f32), of what learns, its gradient and the optimiser's memory; activations of one window
    /// and some rows of logits come on top.
    pub fn bytes(&self) -> u64 {
        4 * (self.student.parameters() + 4 * self.learned.len()) as u64
    }

    /// SHA-256 of the tokens.
    pub fn text_digest(&self) -> &str {
        &self.identity.text
    }

    /// What learns, as variables.
    fn variables(&self) -> Result<HashMap<String, Tensor>> {
        let var = |entry: &crate::nn::graph::Entry| -> Result<(String, Tensor)> {
            let values = &self.learned[entry.range()];
            let var = Var::from_slice(values, entry.shape.as_slice(), &Device::Cpu)?;
            Ok((entry.name.clone(), var.into_inner()))
        };
        self.layout.entries().iter().map(var).collect()
    }

    /// Where the windows of step `step` begin.
    fn windows(&self, step: u64) -> Vec<usize> {
        let Recipe { window, windows, seed, .. } = self.recipe;
        let count = self.tokens.len() / window;
        let mut order: (Option<usize>, Vec<usize>) = (None, Vec::new());
        let mut place = |number: usize| {
            let epoch = number / count;
            if order.0 != Some(epoch) {
                order = (Some(epoch), (0..count).collect());
                Stream::new(seed, "heal/windows", epoch as u64).shuffle(&mut order.1);
            }
            order.1[number % count] * window
        };
        (0..windows).map(|at| place(step as usize * windows + at)).collect()
    }

    /// The next step.
    ///
    /// # Errors
    /// [`Error::Numeric`] if the loss is not finite; [`Error::Recipe`] if all steps are done.
    pub fn step(&mut self) -> Result<Progress> {
        let steps = self.steps();
        if self.step >= steps {
            return Err(Error::Recipe(format!("the run has {steps} steps, and all of them are done")));
        }
        let starts = self.windows(self.step);
        let share = 1.0 / (starts.len() * self.recipe.window) as f64;
        let variables = self.variables()?;
        let mut gradient = vec![0.0f32; self.learned.len()];
        let mut divergence = 0.0;
        for start in starts {
            let ids = &self.tokens[start..start + self.recipe.window];
            let taught = self.teacher.hidden_once(ids)?;
            let hidden = self.student.hidden(ids, &variables)?;
            let temperature = self.recipe.temperature as f32;
            let (apart, of_hidden) = self.student.divergence(&hidden, self.teacher, &taught, temperature, share)?;
            divergence += apart * share;
            // The gradient of ⟨hidden, g⟩ with g constant is that of the loss.
            let grads = (hidden * of_hidden)?.sum_all()?.backward()?;
            for entry in self.layout.entries() {
                let Some(grad) = grads.get(&variables[&entry.name]) else { continue };
                let sum = &mut gradient[entry.range()];
                with_f32(&grad.flatten_all()?, |grad| sum.iter_mut().zip(grad).for_each(|(sum, grad)| *sum += grad))?;
            }
        }
        let norm = clip(self.step + 1, divergence, &mut gradient, self.recipe.clip)?;
        let whole = |steps: u64| usize::try_from(steps).unwrap_or(usize::MAX);
        let warmup = (WARMUP * steps as f64) as usize;
        let rate = warmup_cosine(whole(self.step), whole(steps), warmup, self.recipe.learning_rate);
        self.optimiser.step(&mut self.learned, &mut gradient, rate);
        self.step += 1;
        Ok(Progress { step: self.step, steps, divergence, norm })
    }

    /// Names of the checkpoint's tensors that hold other numbers in the end, in the order of the data.
    pub fn tensors(&self) -> Vec<String> {
        let changed = self.layout.entries().iter().filter(|entry| !entry.name.ends_with(LORA_A));
        let name = |entry: &crate::nn::graph::Entry| match entry.name.strip_suffix(LORA_B) {
            Some(linear) => format!("{linear}.weight"),
            None => entry.name.clone(),
        };
        changed.map(name).collect()
    }

    /// The numbers that `view`, a tensor of the checkpoint, is to hold; nothing where it stays as it is.
    pub fn replaced(&self, view: &TensorView) -> Option<Vec<f32>> {
        let values = |name: &str| Some(&self.learned[self.layout.entry(name)?.range()]);
        if let Some(values) = values(view.name()) {
            return Some(values.to_vec());
        }
        let linear = view.name().strip_suffix(".weight")?;
        self.student.merged(linear, values(&format!("{linear}{LORA_A}"))?, values(&format!("{linear}{LORA_B}"))?)
    }

    /// Writes everything the run needs to go on into `file`, in one rename.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, file: &Path) -> Result<()> {
        let learned = ("learned".to_string(), vec![self.learned.len()], self.learned.as_slice());
        let state = State { step: self.step, ..self.identity.clone() };
        saved::write(file, (STATE, &state), vec![learned], &self.optimiser)
    }

    /// Takes up the run that was saved in `file`; it must be this one.
    ///
    /// # Errors
    /// If the file cannot be read, is not a run's, or is another run's; the message says in what they differ.
    pub fn resume(&mut self, file: &Path) -> Result<()> {
        let saved = Saved::<State>::open(file, STATE)?;
        let (state, own) = (&saved.state, &self.identity);
        let same = [
            ("version of the file", state.version == own.version),
            ("pruned model", state.model == own.model),
            ("dense model", state.dense == own.dense),
            ("recipe", state.recipe == own.recipe),
            ("text", state.text == own.text),
        ];
        saved.is_of(&same, state.step, self.steps())?;
        let memories = saved.memories(&self.optimiser)?;
        self.learned = saved.flat("learned", self.learned.len())?;
        self.optimiser.restore(memories, state.step);
        self.step = state.step;
        Ok(())
    }
}

#[cfg(test)]
#[path = "distil_tests.rs"]
mod tests;
