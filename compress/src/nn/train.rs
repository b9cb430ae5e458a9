//! Training: a run is a function of its description, its data and its seed alone.
//!
//! The order of the images depends on (seed, epoch), how an image is moved on (seed, epoch, image), so a step can be
//! computed without those before it having been drawn; with the arithmetic of [`super::net`] the weights after a step do
//! not depend on threads, and a run that was stopped goes on from its file to the same end.

use std::{ops::ControlFlow, path::Path};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    Mode, Net, Spec,
    forward::Source,
    loss::Loss,
    optimiser::{Optimiser, Rule, Schedule},
    parametrise::Parametrise,
    saved::{self, Saved},
    weights::Weights,
};
use crate::{
    Error, Result,
    data::{
        images::{ImageSet, Placement, Scaling},
        random::Stream,
    },
};

/// How images are changed each time they are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    /// Pixels an image may move in each direction, black coming in: 4 is usual for CIFAR-10.
    #[serde(default)]
    pub shift: usize,
    /// Whether every second one is turned left for right.
    #[serde(default)]
    pub flip: bool,
}

impl Augmentation {
    /// How `image` is placed in `epoch`.
    pub fn placement(&self, seed: u64, epoch: u64, image: usize) -> Placement {
        if *self == Self::default() {
            return Placement::default();
        }
        // A stream of each epoch's own, in which an image has its own number.
        let mut stream = Stream::new(seed ^ epoch.wrapping_mul(0x9E37_79B9_7F4A_7C15), "nn/augment", image as u64);
        let mut shift = || stream.below(2 * self.shift + 1) as isize - self.shift as isize;
        let (down, right) = (shift(), shift());
        Placement { down, right, flipped: self.flip && stream.bits() >> 63 == 1 }
    }
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Of the first weights, the order and the augmentation.
    pub seed: u64,
    /// Times every image is seen.
    pub epochs: u64,
    /// Images a step; the last one of an epoch may have fewer.
    pub batch: usize,
    /// The rule of a step.
    pub rule: Rule,
    /// Whether norms and biases decay like all else.
    #[serde(default)]
    pub decay_vectors: bool,
    /// The learning rate.
    pub schedule: Schedule,
    /// ε of [`super::loss`].
    #[serde(default)]
    pub label_smoothing: f64,
    /// How images are changed.
    #[serde(default)]
    pub augmentation: Augmentation,
    /// How bytes become numbers.
    pub scaling: Scaling,
}

impl Recipe {
    /// Checks every number against the images.
    ///
    /// # Errors
    /// If one cannot be; the message says which.
    pub fn check(&self, images: &ImageSet) -> Result<()> {
        let refuse = |what: String| Err(Error::Recipe(what));
        if self.epochs == 0 || self.batch == 0 {
            return refuse(format!(
                "a run of {} epochs in batches of {}; both need 1 or more",
                self.epochs, self.batch
            ));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return refuse(format!("label_smoothing is {}, expected 0 or more and below 1", self.label_smoothing));
        }
        let Scaling { mean, deviation } = &self.scaling;
        let positive = deviation.iter().all(|value| *value > 0.0 && value.is_finite());
        if mean.len() != images.channels || deviation.len() != images.channels || !positive {
            return refuse(format!(
                "the scaling has means {mean:?} and deviations {deviation:?}, expected one of each for {} channels, the \
                 deviations above 0",
                images.channels
            ));
        }
        self.rule.check()?;
        self.schedule.check()
    }
}

/// Where a run is, after a step: all that an estimate of the time left needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Epochs done, whole ones.
    pub epoch: u64,
    /// Epochs of the run.
    pub epochs: u64,
    /// Images of this step.
    pub images: usize,
    /// Mean cost of the step's images.
    pub loss: f64,
    /// The step's images told right.
    pub right: usize,
    /// The step's learning rate.
    pub rate: f64,
    /// Mean cost and share told right of the images seen in this epoch so far.
    pub epoch_loss: f64,
    /// The share told right.
    pub epoch_accuracy: f64,
}

/// What an epoch has summed up so far.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Sums {
    images: u64,
    loss: f64,
    right: u64,
}

/// What a file of a run says beside its tensors.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    spec: Spec,
    recipe: Recipe,
    data: String,
    /// Of the weights the run began with; nothing in files of programs that did not ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start: Option<String>,
    parametrisation: String,
    step: u64,
    sums: Sums,
}

/// The version of [`State`].
const VERSION: u32 = 1;

/// The metadata key of [`State`].
const STATE: &str = "scruple.training";

/// A loss in place of that of the labels alone.
pub trait Criterion {
    /// What distinguishes it from others, for saved runs.
    fn identity(&self) -> String;

    /// The cost of the last forward pass of `net`, whose gradient it leaves there as [`Net::loss`] does.
    ///
    /// # Errors
    /// As [`Net::loss`].
    fn loss(&mut self, net: &mut Net, labels: &[u8], smoothing: f64) -> Result<Loss>;
}

/// A run in progress.
pub struct Trainer<'a> {
    net: Net,
    recipe: Recipe,
    images: &'a ImageSet,
    parametrise: Option<&'a dyn Parametrise>,
    criterion: Option<&'a mut dyn Criterion>,
    weights: Weights,
    /// Hash of the weights the run begins with.
    start: String,
    /// What the optimiser moves, where that is not the weights.
    trainable: Vec<f32>,
    gradient: Vec<f32>,
    of_trainable: Vec<f32>,
    optimiser: Optimiser,
    step: u64,
    order: Vec<u32>,
    /// The epoch `order` belongs to.
    ordered: Option<u64>,
    labels: Vec<u8>,
    sums: Sums,
}

impl std::fmt::Debug for Trainer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trainer(step {} of {})", self.step, self.steps())
    }
}

impl<'a> Trainer<'a> {
    /// A run from its start: weights from the recipe's seed.
    ///
    /// # Errors
    /// If the description, the recipe and the images do not fit each other.
    pub fn new(spec: &Spec, recipe: Recipe, images: &'a ImageSet) -> Result<Self> {
        let start = Weights::start(&spec.graph()?, recipe.seed);
        Self::from_weights(spec, recipe, images, start, None)
    }

    /// A run from `weights`, such as another run's or a part of them. With `parametrise` the optimiser moves what stands
    /// behind the weights, starting from what it says.
    ///
    /// # Errors
    /// If the description, the recipe, the weights and the images do not fit each other.
    pub fn from_weights(
        spec: &Spec,
        recipe: Recipe,
        images: &'a ImageSet,
        weights: Weights,
        parametrise: Option<&'a dyn Parametrise>,
    ) -> Result<Self> {
        recipe.check(images)?;
        fits(spec, images)?;
        let net = Net::new(spec, recipe.batch.min(images.len()))?;
        let (layout, running) = (net.graph().layout(), net.graph().running());
        if weights.values.len() != layout.len() || weights.running.len() != running.len() {
            return Err(Error::Recipe(format!(
                "{} weights and {} running moments were given, the net has {} and {}",
                weights.values.len(),
                weights.running.len(),
                layout.len(),
                running.len()
            )));
        }
        let trainable = match parametrise {
            Some(with) => with.start(&weights.values),
            None => Vec::new(),
        };
        let optimiser = match parametrise {
            Some(_) => Optimiser::flat(recipe.rule, trainable.len()),
            None => Optimiser::new(recipe.rule, layout, recipe.decay_vectors),
        };
        let gradient = vec![0.0; weights.values.len()];
        let mut trainer = Self {
            of_trainable: vec![0.0; trainable.len()],
            net,
            images,
            parametrise,
            criterion: None,
            start: fingerprint_of_weights(&weights),
            weights,
            trainable,
            gradient,
            optimiser,
            step: 0,
            order: (0..images.len() as u32).collect(),
            ordered: None,
            labels: Vec::with_capacity(recipe.batch),
            recipe,
            sums: Sums::default(),
        };
        trainer.expand();
        Ok(trainer)
    }

    /// The same run with another loss.
    pub fn with_criterion(mut self, criterion: &'a mut dyn Criterion) -> Self {
        self.criterion = Some(criterion);
        self
    }

    /// Steps of an epoch.
    pub fn epoch_steps(&self) -> u64 {
        self.images.len().div_ceil(self.recipe.batch) as u64
    }

    /// Steps of the run.
    pub fn steps(&self) -> u64 {
        self.recipe.epochs * self.epoch_steps()
    }

    /// Steps done.
    pub fn step_number(&self) -> u64 {
        self.step
    }

    /// Takes the run up before epoch `epoch`, counted from 0, with the order of the images and the learning rate of the
    /// epochs from there on: rewinding (Renda, Frankle and Carbin 2020). The optimiser starts without a memory.
    ///
    /// # Errors
    /// If the run has begun, or has no epoch left there.
    pub fn start_at(&mut self, epoch: u64) -> Result<()> {
        if self.step > 0 || epoch >= self.recipe.epochs {
            return Err(Error::Recipe(format!(
                "a run of {} epochs, {} steps of which are done, cannot be taken up before epoch {}",
                self.recipe.epochs,
                self.step,
                epoch + 1
            )));
        }
        self.step = epoch * self.epoch_steps();
        Ok(())
    }

    /// Whether all steps are done.
    pub fn is_done(&self) -> bool {
        self.step >= self.steps()
    }

    /// The weights as they are.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// What stands behind the weights; empty where nothing does.
    pub fn trainable(&self) -> &[f32] {
        &self.trainable
    }

    /// The net, whose batch is the last step's.
    pub fn net(&self) -> &Net {
        &self.net
    }

    fn expand(&mut self) {
        if let Some(with) = self.parametrise {
            with.expand(&self.trainable, &mut self.weights.values);
        }
    }

    /// The next step.
    ///
    /// # Errors
    /// [`Error::Numeric`] if the cost is not finite; [`Error::Recipe`] if all steps are done.
    pub fn step(&mut self) -> Result<Progress> {
        let (each, steps) = (self.epoch_steps(), self.steps());
        if self.step >= steps {
            return Err(Error::Recipe(format!("the run has {steps} steps, and all of them are done")));
        }
        let (epoch, within) = (self.step / each, (self.step % each) as usize);
        if self.ordered != Some(epoch) {
            self.order.iter_mut().enumerate().for_each(|(at, image)| *image = at as u32);
            Stream::new(self.recipe.seed, "nn/order", epoch).shuffle(&mut self.order);
            self.ordered = Some(epoch);
        }
        if within == 0 {
            self.sums = Sums::default();
        }
        let chosen = &self.order[within * self.recipe.batch..self.images.len().min((within + 1) * self.recipe.batch)];
        self.labels.clear();
        self.labels.extend(chosen.iter().map(|&image| self.images.labels[image as usize]));
        let (images, recipe, values) = (self.images, &self.recipe, self.images.values());
        let input = self.net.input_mut(chosen.len());
        input.par_chunks_exact_mut(values).zip(chosen).for_each(|(out, &image)| {
            let placement = recipe.augmentation.placement(recipe.seed, epoch, image as usize);
            images.write(image as usize, &recipe.scaling, placement, out);
        });
        self.net.forward(&self.weights.values, &mut self.weights.running, Mode::Train);
        let smoothing = self.recipe.label_smoothing;
        let loss = match &mut self.criterion {
            None => self.net.loss(&self.labels, smoothing),
            Some(criterion) => criterion.loss(&mut self.net, &self.labels, smoothing),
        };
        let loss = loss.map_err(|error| match error {
            Error::Numeric(what) => Error::Numeric(format!("step {}: {what}", self.step + 1)),
            other => other,
        })?;
        self.net.backward(&self.weights.values, &mut self.gradient, false);
        let rate = self.recipe.schedule.rate(self.step, steps, each);
        match self.parametrise {
            None => self.optimiser.step(&mut self.weights.values, &mut self.gradient, rate),
            Some(with) => {
                with.fold(&self.gradient, &mut self.of_trainable);
                self.optimiser.step(&mut self.trainable, &mut self.of_trainable, rate);
                self.expand();
            }
        }
        self.step += 1;
        let count = self.labels.len();
        self.sums.images += count as u64;
        self.sums.loss += loss.mean * count as f64;
        self.sums.right += loss.right as u64;
        Ok(Progress {
            step: self.step,
            steps,
            epoch: self.step / each,
            epochs: self.recipe.epochs,
            images: count,
            loss: loss.mean,
            right: loss.right,
            rate,
            epoch_loss: self.sums.loss / self.sums.images as f64,
            epoch_accuracy: self.sums.right as f64 / self.sums.images as f64,
        })
    }

    /// The steps up to step `until` of the run, or all that are left; `progress` hears of each and may stop.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn run(&mut self, until: u64, progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>) -> Result<()> {
        while self.step < until.min(self.steps()) {
            let now = self.step()?;
            if progress(&now).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Writes everything the run needs to go on into `file`, in one rename.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, file: &Path) -> Result<()> {
        let mut tensors = self.weights.tensors(self.net.graph());
        if self.parametrise.is_some() {
            tensors.push(("trainable".into(), vec![self.trainable.len()], &self.trainable));
        }
        saved::write(file, (STATE, &self.state()), tensors, &self.optimiser)
    }

    fn state(&self) -> State {
        State {
            version: VERSION,
            spec: self.net.spec().clone(),
            recipe: self.recipe.clone(),
            data: fingerprint(self.images),
            start: Some(self.start.clone()),
            parametrisation: self.parametrisation(),
            step: self.step,
            sums: self.sums,
        }
    }

    fn parametrisation(&self) -> String {
        let identity = self.parametrise.map_or_else(String::new, |with| with.identity());
        match &self.criterion {
            None => identity,
            Some(criterion) => format!("{identity}; {}", criterion.identity()),
        }
    }

    /// Takes up the run that was saved in `file`; it must be this one: the same net, recipe, images, first weights and
    /// parametrisation. A file of an older program does not say which weights its run began with, and is believed.
    ///
    /// # Errors
    /// If the file cannot be read, is not a run's, or is another run's; the message says in what they differ.
    pub fn resume(&mut self, file: &Path) -> Result<()> {
        let saved = Saved::<State>::open(file, STATE)?;
        let (state, own) = (&saved.state, self.state());
        let same = [
            ("version of the file", state.version == own.version),
            ("net", state.spec == own.spec),
            ("recipe", state.recipe == own.recipe),
            ("images", state.data == own.data),
            ("start, from other weights", state.start.is_none() || state.start == own.start),
            ("parametrisation", state.parametrisation == own.parametrisation),
        ];
        saved.is_of(&same, state.step, self.steps())?;
        let weights = Weights::load(self.net.graph(), &saved.checkpoint)?;
        let memories = saved.memories(&self.optimiser)?;
        if self.parametrise.is_some() {
            self.trainable = saved.flat("trainable", self.trainable.len())?;
        }
        self.weights = weights;
        self.optimiser.restore(memories, state.step);
        self.step = state.step;
        self.sums = state.sums;
        self.ordered = None;
        Ok(())
    }
}

/// What stands for the images in a saved run: every label and pixel.
pub(crate) fn fingerprint(images: &ImageSet) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for size in [images.height, images.width, images.channels, images.classes, images.len()] {
        hash.update((size as u64).to_le_bytes());
    }
    hash.update([images.white]);
    hash.update(&images.labels);
    hash.update(&images.pixels);
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What stands for the weights a run begins with in a saved run.
fn fingerprint_of_weights(weights: &Weights) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for values in [&weights.values, &weights.running] {
        hash.update((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| hash.update(value.to_le_bytes()));
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the images are of the size, and have no more classes than, the net was made for.
pub(super) fn fits(spec: &Spec, images: &ImageSet) -> Result<()> {
    let input = spec.input;
    if (input.height, input.width, input.channels) != (images.height, images.width, images.channels) {
        return Err(Error::Recipe(format!(
            "the images are {} × {} pixels of {} channels, the net is for {} × {} pixels of {}",
            images.height, images.width, images.channels, input.height, input.width, input.channels
        )));
    }
    let labels = images.labels.iter().copied().max().map_or(0, |most| usize::from(most) + 1);
    if labels > spec.classes {
        return Err(Error::Recipe(format!(
            "the images have labels up to {}, the net {} classes",
            labels - 1,
            spec.classes
        )));
    }
    if images.is_empty() {
        return Err(Error::Recipe("there are no images".into()));
    }
    Ok(())
}

/// What a net makes of images.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Mean cost, without smoothing.
    pub loss: f64,
    /// Images told right.
    pub right: usize,
    /// The answer to each image.
    pub answers: Vec<u8>,
}

impl Evaluation {
    /// The share told right.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.answers.len() as f64
    }
}

/// Runs all `images` through `net` in inference.
///
/// # Errors
/// If the images are of another size, or an output is not finite.
pub fn evaluate(net: &mut Net, weights: &Weights, images: &ImageSet, scaling: &Scaling) -> Result<Evaluation> {
    evaluate_from(net, &weights.values.as_slice(), &weights.running, images, scaling)
}

/// [`evaluate`] with weights that are read where they are used.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_from(
    net: &mut Net,
    weights: &dyn Source,
    running: &[f32],
    images: &ImageSet,
    scaling: &Scaling,
) -> Result<Evaluation> {
    fits(net.spec(), images)?;
    let (classes, values) = (net.spec().classes, images.values());
    let mut running = running.to_vec(); // inference leaves them as they are
    let mut evaluation = Evaluation { loss: 0.0, right: 0, answers: Vec::with_capacity(images.len()) };
    for first in (0..images.len()).step_by(net.capacity()) {
        let count = net.capacity().min(images.len() - first);
        net.input_mut(count).par_chunks_exact_mut(values).enumerate().for_each(|(image, out)| {
            images.write(first + image, scaling, Placement::default(), out);
        });
        net.forward_from(weights, &mut running, Mode::Evaluate);
        let loss = net.loss(&images.labels[first..first + count], 0.0)?;
        evaluation.loss += loss.mean * count as f64 / images.len() as f64;
        evaluation.right += loss.right;
        evaluation.answers.extend((0..count).map(|image| {
            let logits = net.logits(image);
            let best = (1..classes).fold(0, |best, class| if logits[class] > logits[best] { class } else { best });
            best as u8
        }));
    }
    Ok(evaluation)
}

#[cfg(test)]
#[path = "train_tests.rs"]
mod tests;
