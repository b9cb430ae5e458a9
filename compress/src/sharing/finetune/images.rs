//! A small net for images trained on over its pool, beside the dense net it was projected from.

use scruple_weights::Checkpoint;

use super::{Distillation, divergence};
use crate::{
    Error, Result,
    nn::{
        Mode, Net, Spec, Weights,
        loss::{Loss, cross_entropy},
        train::Criterion,
    },
};

/// The loss of a net's labels and of what a dense net says of the same images.
#[derive(Debug)]
pub struct Distil {
    teacher: Net,
    weights: Weights,
    fingerprint: String,
    distillation: Distillation,
    gradient: Vec<f32>,
}

impl Distil {
    /// The dense net of `checkpoint`, of the kind `spec`, for batches of up to `capacity` images.
    ///
    /// # Errors
    /// If the checkpoint does not hold such a net, or a number of `distillation` cannot be.
    pub fn new(spec: &Spec, checkpoint: &Checkpoint, capacity: usize, distillation: Distillation) -> Result<Self> {
        distillation.check()?;
        let teacher = Net::new(spec, capacity)?;
        let weights = Weights::load(teacher.graph(), checkpoint)?;
        Ok(Self { teacher, weights, fingerprint: checkpoint.fingerprint(), distillation, gradient: Vec::new() })
    }
}

impl Criterion for Distil {
    fn identity(&self) -> String {
        let Distillation { share, temperature } = self.distillation;
        format!("{share} of {} at temperature {temperature}", self.fingerprint)
    }

    fn loss(&mut self, net: &mut Net, labels: &[u8], smoothing: f64) -> Result<Loss> {
        let classes = net.spec().classes;
        self.teacher.input_mut(labels.len()).copy_from_slice(net.input());
        self.teacher.forward(&self.weights.values, &mut self.weights.running, Mode::Evaluate);
        self.gradient.clear();
        self.gradient.resize(labels.len() * classes, 0.0);
        let share = 1.0 / labels.len() as f64;
        let Distillation { share: alpha, temperature } = self.distillation;
        let mut total = Loss::default();
        for (image, (&label, gradient)) in labels.iter().zip(self.gradient.chunks_exact_mut(classes)).enumerate() {
            let label = usize::from(label);
            if label >= classes {
                return Err(Error::Recipe(format!(
                    "image {} of the batch has label {label}, the net tells {classes} classes apart",
                    image + 1
                )));
            }
            let logits = net.logits(image);
            let (loss, right) = cross_entropy(logits, label, smoothing, share * (1.0 - alpha), gradient);
            let apart = divergence(logits, self.teacher.logits(image), self.distillation, share, gradient);
            let loss = (1.0 - alpha) * loss + alpha * temperature * temperature * apart;
            if !loss.is_finite() {
                return Err(Error::Numeric(format!(
                    "the loss of image {} of the batch is {loss}: the weights have left what f32 holds; try a lower \
                     learning rate",
                    image + 1
                )));
            }
            total.mean += loss * share;
            total.right += usize::from(right);
        }
        net.set_logit_gradient(&self.gradient);
        Ok(total)
    }
}
