//! What a projection lost, won back as far as it goes: training goes on over the pool of a model that was trained densely,
//! on data and on what the dense model says of it.
//!
//! ```text
//! loss = (1 − α) · cross-entropy of the labels + α · T² · KL(p_T of the dense model ‖ p_T)      p_T = softmax(logits / T)
//! ```
//!
//! (Hinton, Vinyals and Dean 2015, section 2.) What moves are the pool's orthonormal coordinates and the tensors that do
//! not share; see [`parametrise`](super::parametrise). A run is a function of the model, the data and its recipe alone: the
//! same bytes for any number of threads, and through a stop and a start. [`language`] trains decoders on text, [`images`]
//! small nets on images.

pub mod language;

pub mod images;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How much of the loss is the dense model's word.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distillation {
    /// α: 0 looks at the labels alone, 1 at the dense model alone.
    pub share: f64,
    /// T.
    pub temperature: f64,
}

impl Default for Distillation {
    fn default() -> Self {
        Self { share: 0.5, temperature: 2.0 }
    }
}

impl Distillation {
    /// Checks both numbers.
    ///
    /// # Errors
    /// If one cannot be; the message says which.
    pub fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.share) {
            return Err(Error::Recipe(format!(
                "the dense model's share of the loss is {}, expected 0 to 1",
                self.share
            )));
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            let what =
                format!("the temperature of the distillation is {}, expected a number above 0", self.temperature);
            return Err(Error::Recipe(what));
        }
        Ok(())
    }
}

/// Adds to `gradient`, which holds (1 − α) of the gradient of another loss in `logits`, that of `share` of α T² KL of the
/// distributions of `teacher` and `logits` at temperature T; gives the divergence.
pub(crate) fn divergence(
    logits: &[f32],
    teacher: &[f32],
    distillation: Distillation,
    share: f64,
    gradient: &mut [f32],
) -> f64 {
    let Distillation { share: alpha, temperature } = distillation;
    let logs = |logits: &[f32]| -> (f64, f64) {
        let most = logits.iter().fold(f64::NEG_INFINITY, |most, &x| most.max(f64::from(x) / temperature));
        let sum: f64 = logits.iter().map(|&x| (f64::from(x) / temperature - most).exp()).sum();
        (most, sum.ln())
    };
    let ((most, log), (most_teacher, log_teacher)) = (logs(logits), logs(teacher));
    let mut sum = 0.0;
    for ((&x, &t), gradient) in logits.iter().zip(teacher).zip(gradient) {
        let q = f64::from(x) / temperature - most - log;
        let p = f64::from(t) / temperature - most_teacher - log_teacher;
        sum += p.exp() * (p - q);
        // ∂ of T² KL is T (q − p).
        *gradient += (share * alpha * temperature * (q.exp() - p.exp())) as f32;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::test_values::uniform;

    #[test]
    fn the_gradient_of_the_divergence_is_its_slope() {
        let (logits, teacher) = (uniform(7, 1), uniform(7, 2));
        let distillation = Distillation { share: 0.3, temperature: 2.5 };
        let value = |logits: &[f32]| {
            let kl = divergence(logits, &teacher, distillation, 1.0, &mut [0.0; 7]);
            0.3 * 2.5 * 2.5 * kl
        };
        let mut gradient = [0.0; 7];
        assert!(divergence(&logits, &teacher, distillation, 1.0, &mut gradient) > 0.0);
        for at in 0..7 {
            let moved = |step: f32| {
                let mut logits = logits.clone();
                logits[at] += step;
                value(&logits)
            };
            let slope = (moved(0.01) - moved(-0.01)) / 0.02;
            assert!((slope - f64::from(gradient[at])).abs() < 1e-4, "{at}: {slope} against {}", gradient[at]);
        }
        assert!(divergence(&teacher, &teacher, distillation, 1.0, &mut gradient).abs() < 1e-12);
    }

    #[test]
    fn shares_and_temperatures_that_cannot_be_are_named() {
        let check = |share, temperature| Distillation { share, temperature }.check().unwrap_err().to_string();
        assert!(check(1.5, 1.0).contains("share of the loss is 1.5"));
        assert!(check(0.5, 0.0).contains("temperature of the distillation is 0"));
        assert!(check(f64::NAN, 1.0).contains("NaN"));
    }
}
