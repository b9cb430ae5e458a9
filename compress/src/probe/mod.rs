//! Probes of weights trained on another device than the processor, over candle's tensors.
//!
//! The probe itself, its file and the loop of training are in `scruple_weights::probex`, with kernels for the processor;
//! here its steps are written once more, over tensors, for any device candle has. The way of the data: the `layers` of all
//! models go to the device once and batches are picked there; the `net` is the forward pass and its derivative, both
//! written out, because several of candle's fused operations stop gradients without a word; then Adam, on one array of all
//! parameters. Only costs come back, once a pass, and the numbers of a probe that is to be kept.
//!
//! Sums run in another order than the kernels', so results agree with theirs to rounding and not to the bit.

use candle_core::{Device, Tensor};
use scruple_weights::{
    Error, Result,
    probex::{
        net::Net,
        train::{BETAS, EPSILON, Engine, LOOKED_AT, Steps, Task},
    },
};

mod layers;

mod net;

#[cfg(test)]
mod tests;

use layers::Layers;
use net::{Probe, cost};

use crate::device::first_line;

/// Numbers that candle's kernels count in 32 bits.
const COUNTED: usize = u32::MAX as usize;

/// Trains probes on `device`.
#[derive(Debug, Clone)]
pub struct Trainer {
    device: Device,
    counted: usize,
}

impl Trainer {
    /// A trainer on `device`, which may be candle's processor.
    pub fn new(device: Device) -> Self {
        Self { device, counted: COUNTED }
    }

    fn fail(&self, doing: &str, error: &candle_core::Error) -> Error {
        let device = match &self.device {
            Device::Cpu => "candle's processor",
            _ => "the GPU",
        };
        Error::Device(format!(
            "{device} could not {doing} ({}); a smaller --batch, fewer --models or no --device need less of it",
            first_line(error)
        ))
    }
}

impl Engine for Trainer {
    fn start<'a>(&'a self, start: &Net, task: Task<'a>) -> Result<Box<dyn Steps<Error = Error> + 'a>> {
        let spec = start.spec();
        let batch = task.training.batch.min(task.train.models.len());
        let most = self.counted / (spec.rows * spec.columns).max(1);
        if batch > most {
            let remedy = match most {
                0 => "leave --device out".to_string(),
                most => format!("give a --batch of at most {most}"),
            };
            return Err(Error::Device(format!(
                "{batch} layers of {} x {} are more numbers than a GPU's kernels count; {remedy}",
                spec.rows, spec.columns
            )));
        }
        let learner = Learner::new(self, start, task);
        let layers = task.models.copies() * task.train.models.len() + task.validation.models.len();
        let doing = format!("hold {layers} layers of {} x {}", spec.rows, spec.columns);
        Ok(Box::new(learner.map_err(|error| self.fail(&doing, &error))?))
    }
}

/// One probe in training on a device.
struct Learner<'a> {
    trainer: &'a Trainer,
    task: Task<'a>,
    probe: Probe,
    /// Every form of every training model, form after form; then the validation models.
    layers: Layers,
    /// Truths of the training models (models, classes).
    truths: Tensor,
    /// The class texts' embeddings (classes, width).
    texts: Option<Tensor>,
    /// All parameters, (parameters).
    values: Tensor,
    adam: Adam,
    /// cost · models of each step since the costs were asked for, (1) each, not yet waited for.
    costs: Vec<Tensor>,
}

impl<'a> Learner<'a> {
    fn new(trainer: &'a Trainer, start: &Net, task: Task<'a>) -> candle_core::Result<Self> {
        let device = &trainer.device;
        let (train, texts) = (task.train, task.texts);
        let forms = (0..task.models.copies()).flat_map(|copy| train.models.iter().map(move |&at| (at, copy)));
        let places: Vec<(usize, usize)> = forms.chain(task.validation.models.iter().map(|&at| (at, 0))).collect();
        let shape = (start.spec().rows, start.spec().columns);
        let layers = Layers::upload(task.models, &places, shape, trainer.counted, device)?;
        let truths = Tensor::from_slice(train.truths, (train.models.len(), train.classes), device)?;
        let texts = match texts.classes {
            0 => None,
            classes => Some(Tensor::from_slice(texts.values, (classes, texts.values.len() / classes), device)?),
        };
        let values = Tensor::from_slice(&start.values, start.values.len(), device)?;
        let adam = Adam::new(&values)?;
        let probe = Probe::new(start.spec().clone(), start.factor);
        Ok(Self { trainer, task, probe, layers, truths, texts, values, adam, costs: Vec::new() })
    }

    /// Cost (1) and gradient (parameters) of a batch.
    fn gradient(&self, batch: &[(usize, usize)]) -> candle_core::Result<(Tensor, Tensor)> {
        let models = self.task.train.models.len();
        let rows: Vec<usize> = batch.iter().map(|&(entry, copy)| copy * models + entry).collect();
        let layers = self.layers.pick(&rows)?;
        let entries: Vec<u32> = batch.iter().map(|&(entry, _)| entry as u32).collect();
        let entries = Tensor::from_vec(entries, batch.len(), &self.trainer.device)?;
        let truths = self.truths.index_select(&entries, 0)?;
        let (logits, pass) = self.probe.logits(&self.values, &layers, self.texts.as_ref())?;
        let (cost, dy) = cost(self.task.choice, &logits, &truths)?;
        let gradient = self.probe.gradient(&self.values, &layers, self.texts.as_ref(), &pass, &dy)?;
        Ok((cost, gradient))
    }

    fn try_step(&mut self, batch: &[(usize, usize)]) -> candle_core::Result<()> {
        let (cost, gradient) = self.gradient(batch)?;
        self.costs.push((cost * batch.len() as f64)?);
        let training = self.task.training;
        self.values = self.adam.step(&self.values, &gradient, training.rate, training.decay)?;
        Ok(())
    }

    fn try_look(&self) -> candle_core::Result<Vec<f32>> {
        let before = self.task.models.copies() * self.task.train.models.len();
        let models = self.task.validation.models.len();
        // Together no more than a batch, whose numbers were found to be few enough.
        let together = LOOKED_AT.min(self.task.training.batch).min(self.task.train.models.len());
        let mut logits = Vec::new();
        for first in (0..models).step_by(together) {
            let layers = self.layers.slice(before + first, together.min(models - first))?;
            let (y, _) = self.probe.logits(&self.values, &layers, self.texts.as_ref())?;
            logits.extend(y.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(logits)
    }
}

impl Steps for Learner<'_> {
    type Error = Error;

    fn step(&mut self, batch: &[(usize, usize)]) -> Result<()> {
        self.try_step(batch).map_err(|error| self.trainer.fail(&format!("learn from {} models", batch.len()), &error))
    }

    fn costs(&mut self) -> Result<f64> {
        let costs = std::mem::take(&mut self.costs);
        if costs.is_empty() {
            return Ok(0.0);
        }
        let costs = Tensor::cat(&costs, 0).and_then(|costs| costs.to_vec1::<f32>());
        let costs = costs.map_err(|error| self.trainer.fail("say what the steps cost", &error))?;
        Ok(costs.into_iter().map(f64::from).sum())
    }

    fn look(&mut self) -> Result<Vec<f32>> {
        self.try_look().map_err(|error| self.trainer.fail("look at the validation models", &error))
    }

    fn values(&self) -> Result<Vec<f32>> {
        self.values.to_vec1::<f32>().map_err(|error| self.trainer.fail("give the probe back", &error))
    }
}

/// Adam's memory, (parameters) each.
struct Adam {
    mean: Tensor,
    square: Tensor,
    steps: i32,
}

impl Adam {
    fn new(values: &Tensor) -> candle_core::Result<Self> {
        Ok(Self { mean: values.zeros_like()?, square: values.zeros_like()?, steps: 0 })
    }

    /// `values` after one step down the gradient, by the formula of `scruple_weights::probex::train`.
    fn step(&mut self, values: &Tensor, gradient: &Tensor, rate: f32, decay: f32) -> candle_core::Result<Tensor> {
        self.steps += 1;
        let rate = rate / (1.0 - BETAS.0.powi(self.steps));
        let unbias = 1.0 / (1.0 - BETAS.1.powi(self.steps)).sqrt();
        let gradient = (gradient + (values * f64::from(decay))?)?;
        self.mean = ((&self.mean * f64::from(BETAS.0))? + (&gradient * f64::from(1.0 - BETAS.0))?)?;
        self.square = ((&self.square * f64::from(BETAS.1))? + (gradient.sqr()? * f64::from(1.0 - BETAS.1))?)?;
        let below = self.square.sqrt()?.affine(f64::from(unbias), f64::from(EPSILON))?;
        values - ((&self.mean / below)? * f64::from(rate))?
    }
}
