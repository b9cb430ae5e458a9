//! Training: Adam over batches read from one memory-mapped layer cache.
//!
//! ```text
//! g ← g + λ w      m ← β₁ m + (1 − β₁) g      v ← β₂ v + (1 − β₂) g²      w ← w − η m̂ / (√v̂ + ε)
//! ```
//!
//! (Kingma and Ba 2015, with the penalty λ inside the gradient, as the authors of ProbeX train.) The state that was right
//! most often on the validation models is kept.
//!
//! The loop is written once; its steps are taken by the kernels of this crate, or by an [`Engine`] that a caller brings.

use std::convert::Infallible;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    head::{Choice, Texts, cost},
    net::{Net, Trace, Work},
    operand::Operand,
    spec::Spec,
};
use crate::{Error, Result, random::Stream};

/// β₁ and β₂ of Adam.
pub const BETAS: (f32, f32) = (0.9, 0.999);

/// ε of Adam.
pub const EPSILON: f32 = 1e-8;

/// Models looked at together where nothing is learnt.
pub const LOOKED_AT: usize = 128;

/// How a probe is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Step size η.
    pub rate: f32,
    /// Penalty λ on the squares of all parameters.
    pub decay: f32,
    /// Models a step.
    pub batch: usize,
    /// Passes over the training models.
    pub epochs: usize,
    /// Passes between two looks at the validation models.
    pub every: usize,
    /// Of the start, and of the order of the models.
    pub seed: u64,
}

impl Default for Training {
    /// The paper's recipe for labels, with fewer epochs: Adam 1e-3, λ 1e-5, batches of 128.
    fn default() -> Self {
        Self { rate: 1e-3, decay: 1e-5, batch: 128, epochs: 200, every: 25, seed: 0 }
    }
}

/// Models with what they are: where training looks them up.
pub trait Models: Sync {
    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The layer of model `at`, in its form number `copy` (0 is the model itself).
    fn layer(&self, at: usize, copy: usize) -> Operand<'_>;

    /// Forms each model has: itself, and its compressed copies.
    fn copies(&self) -> usize;

    /// Makes form `copy` of model `at` anew in `out`, by `stream`; `None` where [`Models::layer`] has the form.
    fn drawn<'a>(&self, _at: usize, _copy: usize, _stream: &mut Stream, _out: &'a mut Vec<f32>) -> Option<Operand<'a>> {
        None
    }
}

/// The layers of a batch of (model, form); forms that are made anew, each by the step's number and the model's, lie in
/// `buffers`.
fn gather<'a>(
    models: &'a dyn Models,
    batch: &[(usize, usize)],
    (seed, step): (u64, u64),
    buffers: &'a mut Vec<Vec<f32>>,
) -> Vec<Operand<'a>> {
    buffers.resize_with(batch.len(), Vec::new);
    let layers = batch.par_iter().zip(buffers.par_iter_mut()).map(|(&(at, copy), buffer)| {
        let mut stream = Stream::new(seed, "probe/copies", (step << 32) + at as u64);
        let drawn = if copy == 0 { None } else { models.drawn(at, copy, &mut stream, buffer) };
        drawn.unwrap_or_else(|| models.layer(at, copy))
    });
    layers.collect()
}

/// A labelled part of the models.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// Their numbers.
    pub models: &'a [usize],
    /// (models of the part, classes), 0 or 1.
    pub truths: &'a [f32],
    /// Columns of `truths`.
    pub classes: usize,
}

impl Part<'_> {
    /// The truths of entry `at`.
    fn truth(&self, at: usize) -> &[f32] {
        &self.truths[at * self.classes..][..self.classes]
    }
}

/// What a probe is trained on, and how.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// Where the layers are.
    pub models: &'a dyn Models,
    /// What is learnt from.
    pub train: Part<'a>,
    /// What chooses the pass whose state is kept.
    pub validation: Part<'a>,
    /// For a head that compares with texts.
    pub texts: Texts<'a>,
    /// What a model can be.
    pub choice: Choice,
    /// The recipe.
    pub training: &'a Training,
}

/// A probe in training.
pub trait Steps {
    /// What can go wrong where its numbers are.
    type Error;

    /// One step on a batch: entries of the training part, and the form of each.
    ///
    /// # Errors
    /// If the arithmetic fails.
    fn step(&mut self, batch: &[(usize, usize)]) -> Result<(), Self::Error>;

    /// Σ of (cost before the step · models of its batch) over the steps since this was last asked.
    ///
    /// # Errors
    /// If the arithmetic fails.
    fn costs(&mut self) -> Result<f64, Self::Error>;

    /// Logits of the validation models (models, classes).
    ///
    /// # Errors
    /// If the arithmetic fails.
    fn look(&mut self) -> Result<Vec<f32>, Self::Error>;

    /// The probe's numbers, as [`Net::values`].
    ///
    /// # Errors
    /// If they cannot be had.
    fn values(&self) -> Result<Vec<f32>, Self::Error>;
}

/// Where steps can be taken instead of by the kernels of this crate: another device.
pub trait Engine: std::fmt::Debug + Sync {
    /// `start` before its first step on `task`.
    ///
    /// # Errors
    /// If the device cannot hold what the task needs.
    fn start<'a>(&'a self, start: &Net, task: Task<'a>) -> Result<Box<dyn Steps<Error = Error> + 'a>>;
}

/// What training found.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The probe that did best on the validation models.
    pub net: Net,
    /// Passes it had seen.
    pub epoch: usize,
    /// Its share of right decisions on the validation models, and its cost there.
    pub validation: (f64, f64),
    /// Mean cost of each pass.
    pub costs: Vec<f64>,
}

/// Adam's memory.
pub struct Adam {
    mean: Vec<f32>,
    square: Vec<f32>,
    steps: i32,
}

impl Adam {
    /// For `parameters` numbers.
    pub fn new(parameters: usize) -> Self {
        Self { mean: vec![0.0; parameters], square: vec![0.0; parameters], steps: 0 }
    }

    /// One step down the gradient.
    pub fn step(&mut self, values: &mut [f32], gradient: &[f32], rate: f32, decay: f32) {
        const CHUNK: usize = 1 << 14;
        self.steps += 1;
        let correct = (1.0 - BETAS.0.powi(self.steps), (1.0 - BETAS.1.powi(self.steps)).sqrt());
        let scale = (rate / correct.0, 1.0 / correct.1, decay);
        let states = self.mean.par_chunks_mut(CHUNK).zip(self.square.par_chunks_mut(CHUNK));
        values.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).zip(states).for_each(|((w, g), (m, v))| {
            adam(w, g, m, v, scale);
        });
    }
}

crate::kernel::dispatch! {
    /// Adam on a run of numbers; `scale` is (η / (1 − β₁ᵗ), 1 / √(1 − β₂ᵗ), λ).
    fn adam(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], scale: (f32, f32, f32)) -> () = adam_body
}

#[inline(always)]
fn adam_body(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], (rate, unbias, decay): (f32, f32, f32)) {
    let n = w.len();
    assert!(g.len() == n && m.len() == n && v.len() == n);
    for at in 0..n {
        let g = g[at] + decay * w[at];
        m[at] = BETAS.0 * m[at] + (1.0 - BETAS.0) * g;
        v[at] = BETAS.1 * v[at] + (1.0 - BETAS.1) * g * g;
        w[at] -= rate * m[at] / (v[at].sqrt() * unbias + EPSILON);
    }
}

/// One probe in training: its numbers, gradient and memory.
pub struct Learner {
    /// The probe.
    pub net: Net,
    adam: Adam,
    gradient: Vec<f32>,
    trace: Trace,
    work: Work,
}

impl Learner {
    /// `net` before its first step.
    pub fn new(net: Net) -> Self {
        let parameters = net.values.len();
        let (trace, work) = (Trace::default(), Work::default());
        Self { net, adam: Adam::new(parameters), gradient: vec![0.0; parameters], trace, work }
    }

    /// Cost and gradient of a batch; `truths` is (models, classes).
    pub fn gradient(
        &mut self,
        models: &[Operand<'_>],
        truths: &[f32],
        texts: Texts<'_>,
        choice: Choice,
    ) -> (f64, &[f32]) {
        self.net.represent(models, &mut self.trace);
        let mut logits = self.net.logits(&self.trace, models.len(), texts);
        let classes = truths.len() / models.len();
        let cost = cost(choice, &mut logits, truths, classes);
        self.gradient.par_chunks_mut(1 << 16).for_each(|part| part.fill(0.0));
        if self.net.sizes().is_none() {
            self.dense_back(models, &logits, classes);
        } else {
            let de = self.net.head_back(&self.trace, models.len(), texts, &logits, &mut self.gradient);
            self.net.back(models, &self.trace, &de, &mut self.gradient, &mut self.work);
        }
        (cost, &self.gradient)
    }

    /// ∂W += ∂yᵀ X, ∂b += Σ ∂y: a dense body has no more.
    fn dense_back(&mut self, models: &[Operand<'_>], dy: &[f32], classes: usize) {
        let (shape, factor) = ((self.net.spec.rows, self.net.spec.columns), self.net.factor);
        let elements = shape.0 * shape.1;
        let (weight, bias) = self.gradient.split_at_mut(classes * elements);
        let layers: Vec<std::borrow::Cow<'_, [f32]>> = models
            .iter()
            .map(|model| match model {
                Operand::Dense(x) => (*x).into(),
                Operand::LowRank { .. } => model.dense(shape).into(),
            })
            .collect();
        weight.par_chunks_mut(elements).enumerate().for_each(|(class, weight)| {
            for (x, dy) in layers.iter().zip(dy.chunks_exact(classes)) {
                let d = dy[class] * factor;
                weight.iter_mut().zip(&**x).for_each(|(w, x)| *w += d * x);
            }
        });
        super::net::add_rows(dy, bias);
    }

    /// One step on a batch; its cost before the step.
    pub fn step(
        &mut self,
        models: &[Operand<'_>],
        truths: &[f32],
        texts: Texts<'_>,
        choice: Choice,
        training: &Training,
    ) -> f64 {
        let (cost, _) = self.gradient(models, truths, texts, choice);
        self.adam.step(&mut self.net.values, &self.gradient, training.rate, training.decay);
        cost
    }
}

/// Share of right decisions of `logits`: of all where several classes may hold, of models where one does.
pub fn right(choice: Choice, logits: &[f32], truths: &[f32], classes: usize) -> f64 {
    match choice {
        Choice::Several => {
            let right = logits.iter().zip(truths).filter(|(y, truth)| (**y > 0.0) == (**truth > 0.5)).count();
            right as f64 / logits.len().max(1) as f64
        }
        Choice::One => {
            let rows = logits.chunks_exact(classes).zip(truths.chunks_exact(classes));
            let right = rows.filter(|(y, truth)| truth[super::metrics::largest(y)] > 0.5).count();
            right as f64 / (logits.len() / classes).max(1) as f64
        }
    }
}

/// Steps by the kernels of this crate.
struct Kernels<'a> {
    task: Task<'a>,
    learner: Learner,
    seen: Vec<Operand<'a>>,
    truths: Vec<f32>,
    /// Room for copies that are made anew.
    buffers: Vec<Vec<f32>>,
    /// Steps taken.
    steps: u64,
    costs: f64,
}

impl<'a> Kernels<'a> {
    fn new(start: Net, task: Task<'a>) -> Self {
        let seen = task.validation.models.iter().map(|&at| task.models.layer(at, 0)).collect();
        let (truths, buffers) = (Vec::new(), Vec::new());
        Self { task, learner: Learner::new(start), seen, truths, buffers, steps: 0, costs: 0.0 }
    }
}

impl Steps for Kernels<'_> {
    type Error = Infallible;

    fn step(&mut self, batch: &[(usize, usize)]) -> Result<(), Infallible> {
        let Task { models, train, texts, choice, training, .. } = self.task;
        self.truths.clear();
        batch.iter().for_each(|&(entry, _)| self.truths.extend_from_slice(train.truth(entry)));
        let forms: Vec<(usize, usize)> = batch.iter().map(|&(entry, copy)| (train.models[entry], copy)).collect();
        let layers = gather(models, &forms, (training.seed, self.steps), &mut self.buffers);
        self.steps += 1;
        self.costs += self.learner.step(&layers, &self.truths, texts, choice, training) * batch.len() as f64;
        Ok(())
    }

    fn costs(&mut self) -> Result<f64, Infallible> {
        Ok(std::mem::take(&mut self.costs))
    }

    fn look(&mut self) -> Result<Vec<f32>, Infallible> {
        Ok(self.learner.net.look_at(&self.seen, self.task.texts).0)
    }

    fn values(&self) -> Result<Vec<f32>, Infallible> {
        Ok(self.learner.net.values.clone())
    }
}

/// Trains a probe of shape `spec` on `train` and keeps what was best on `validation`.
///
/// `told` hears of each pass: its number and mean cost.
///
/// # Panics
/// If a part is empty or names a model that is not there, or its truths have another length.
pub fn train(
    (spec, factor): (Spec, f32),
    models: &dyn Models,
    (train, validation): (Part<'_>, Part<'_>),
    (texts, choice): (Texts<'_>, Choice),
    training: &Training,
    told: &mut dyn FnMut(usize, f64),
) -> Trained {
    let start = Net::start(spec, training.seed, factor);
    let task = Task { models, train, validation, texts, choice, training };
    let Ok(trained) = run(&mut Kernels::new(start.clone(), task), start, task, told);
    trained
}

/// The same with steps taken by `engine`.
///
/// # Errors
/// What the engine says.
///
/// # Panics
/// As [`train()`].
pub fn train_on(
    engine: &dyn Engine,
    (spec, factor): (Spec, f32),
    task: Task<'_>,
    told: &mut dyn FnMut(usize, f64),
) -> Result<Trained> {
    let start = Net::start(spec, task.training.seed, factor);
    let mut steps = engine.start(&start, task)?;
    run(&mut *steps, start, task, told)
}

/// The loop: passes in shuffled order, and looks at the validation models between them.
fn run<S: Steps + ?Sized>(
    steps: &mut S,
    mut net: Net,
    task: Task<'_>,
    told: &mut dyn FnMut(usize, f64),
) -> Result<Trained, S::Error> {
    let Task { models, train, validation, choice, training, .. } = task;
    assert!(!train.models.is_empty() && !validation.models.is_empty(), "a part holds no models");
    let mut order: Vec<usize> = (0..train.models.len()).collect();
    let mut best: Option<(f64, f64, usize, Vec<f32>)> = None;
    let mut costs = Vec::with_capacity(training.epochs);
    let mut batch = Vec::new();
    for epoch in 0..training.epochs {
        let mut stream = Stream::new(training.seed, "probe/order", epoch as u64);
        stream.shuffle(&mut order);
        for chosen in order.chunks(training.batch) {
            batch.clear();
            for &entry in chosen {
                let copy = if models.copies() > 1 { stream.below(models.copies()) } else { 0 };
                batch.push((entry, copy));
            }
            steps.step(&batch)?;
        }
        let mean = steps.costs()? / order.len() as f64;
        costs.push(mean);
        told(epoch, mean);
        if epoch % training.every == 0 || epoch + 1 == training.epochs {
            let mut logits = steps.look()?;
            let share = right(choice, &logits, validation.truths, validation.classes);
            let cost = cost(choice, &mut logits, validation.truths, validation.classes);
            let better = best.as_ref().is_none_or(|(s, c, ..)| share > *s || share == *s && cost < *c);
            if better {
                best = Some((share, cost, epoch + 1, steps.values()?));
            }
        }
    }
    let (share, cost, epoch, values) = best.unwrap_or((0.0, f64::INFINITY, 0, net.values.clone()));
    net.values = values;
    Ok(Trained { net, epoch, validation: (share, cost), costs })
}
