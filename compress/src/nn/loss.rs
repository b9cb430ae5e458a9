//! Cross-entropy of the softmax with smoothed labels (Szegedy et al. 2016, section 7).
//!
//! ```text
//! loss = −(1 / n) Σ_i Σ_c t_ic log p_ic        t_ic = (1 − ε) [c = label i] + ε / classes,   p_i = softmax(logits i)
//! ∂logits_ic = (p_ic − t_ic) / n
//! ```

use super::net::Net;
use crate::{Error, Result};

/// What a batch cost.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Loss {
    /// Mean over the images.
    pub mean: f64,
    /// Images whose largest output is their label's.
    pub right: usize,
}

/// Cost of one image's `logits`; what each adds to the gradient goes to `gradient`, times `share`.
pub(crate) fn cross_entropy(
    logits: &[f32],
    label: usize,
    smoothing: f64,
    share: f64,
    gradient: &mut [f32],
) -> (f64, bool) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
    let even = smoothing / logits.len() as f64;
    let mut loss = 0.0;
    for (class, (&x, gradient)) in logits.iter().zip(gradient).enumerate() {
        let shifted = f64::from(x - most);
        let target = even + if class == label { 1.0 - smoothing } else { 0.0 };
        loss -= target * (shifted - sum.ln());
        *gradient = (share * (shifted.exp() / sum - target)) as f32;
    }
    // The first of equals is the answer, as everywhere.
    (loss, logits.iter().position(|&x| x == most) == Some(label))
}

impl Net {
    /// The cost of the last forward pass against `labels`, one an image; [`Net::backward`] starts from its gradient.
    ///
    /// # Errors
    /// If a label has no class or the cost is not finite, which names the first such image.
    ///
    /// # Panics
    /// If there are not as many labels as images.
    pub fn loss(&mut self, labels: &[u8], smoothing: f64) -> Result<Loss> {
        assert_eq!(labels.len(), self.count, "{} labels for {} images", labels.len(), self.count);
        let (classes, last) = (self.spec().classes, self.values.len() - 1);
        let stride = self.graph.slots[last].stride;
        let gradient = self.gradients[self.gradient_of[last]].rows_mut(0..self.count);
        let logits = self.values[last].rows(0..self.count);
        let mut total = Loss::default();
        let rows = logits.chunks_exact(stride).zip(gradient.chunks_exact_mut(stride));
        for (image, ((logits, gradient), &label)) in rows.zip(labels).enumerate() {
            if usize::from(label) >= classes {
                return Err(Error::Recipe(format!(
                    "image {} of the batch has label {label}, the net tells {classes} classes apart",
                    image + 1
                )));
            }
            gradient[classes..].fill(0.0);
            let share = 1.0 / labels.len() as f64;
            let (loss, right) =
                cross_entropy(&logits[..classes], usize::from(label), smoothing, share, &mut gradient[..classes]);
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
        self.loss_ready = true;
        Ok(total)
    }
}
