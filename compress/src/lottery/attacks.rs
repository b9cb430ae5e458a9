//! Images changed on purpose, within ε of the original in every pixel (0 to 1), against a trained net in inference:
//!
//! ```text
//! FGSM   x' = clip(x + ε sign ∇ₓL)                                              (Goodfellow et al. 2015)
//! PGD    x ← clip_ε(clip(x + α sign ∇ₓL)), ten times from x, α = ε / 4          (Madry et al. 2018, without a random start)
//! ```
//!
//! The attack moves brightness as the eye sees it, before the scaling of a net's inputs; results are not rounded to bytes. If
//! ten steps did not do more than one, gradients would be masked and FGSM would mean nothing: both are reported. A net that
//! tells fewer images right has fewer to lose, so accuracy is given among those it tells right unharmed too.

use crate::{
    Result,
    data::images::{ImageSet, Placement, Scaling},
    nn::{Mode, Net, Weights},
};

/// Steps of PGD.
pub const STEPS: usize = 10;

/// PGD's step as a share of ε.
const STEP: f64 = 0.25;

/// What an attack left.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Attacked {
    /// ε, in 255ths.
    pub epsilon: f64,
    /// Steps: 1 is FGSM.
    pub steps: usize,
    /// Images attacked.
    pub images: usize,
    /// Told right before.
    pub clean_right: usize,
    /// Told right after.
    pub right: usize,
    /// Told right before and after.
    pub both: usize,
}

impl Attacked {
    /// Share told right.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.images as f64
    }

    /// Share told right of those told right before; absent where there are none.
    pub fn given_clean(&self) -> Option<f64> {
        (self.clean_right > 0).then(|| self.both as f64 / self.clean_right as f64)
    }
}

/// Attacks every image of a set with `steps` steps within `epsilon` / 255.
///
/// # Errors
/// If an output is not finite.
pub fn attack(
    net: &mut Net,
    weights: &Weights,
    images: &ImageSet,
    scaling: &Scaling,
    epsilon: f64,
    steps: usize,
) -> Result<Attacked> {
    let mut found = Attacked { epsilon, steps, images: images.len(), clean_right: 0, right: 0, both: 0 };
    let (values, channels) = (images.values(), images.channels);
    let reach = (epsilon / 255.0) as f32;
    let step = if steps > 1 { (STEP * epsilon / 255.0) as f32 } else { reach };
    let mut running = weights.running.clone();
    let mut gradient = vec![0.0; weights.values.len()];
    let mut of_pixels = Vec::new();
    let inputs = |start: &[f32], scaling: &Scaling, out: &mut [f32]| {
        for (at, (out, &pixel)) in out.iter_mut().zip(start).enumerate() {
            *out = (pixel - scaling.mean[at % channels]) / scaling.deviation[at % channels];
        }
    };
    for first in (0..images.len()).step_by(net.capacity()) {
        let count = net.capacity().min(images.len() - first);
        let labels = &images.labels[first..first + count];
        let mut original = vec![0.0f32; count * values];
        let plain = Scaling { mean: vec![0.0; channels], deviation: vec![1.0; channels] };
        for (image, out) in original.chunks_exact_mut(values).enumerate() {
            images.write(first + image, &plain, Placement::default(), out);
        }
        let mut moved = original.clone();
        let mut clean = Vec::new();
        for round in 0..=steps {
            inputs(&moved, scaling, net.input_mut(count));
            net.forward(&weights.values, &mut running, Mode::Evaluate);
            net.loss(labels, 0.0)?;
            let right = |net: &Net| -> Vec<bool> {
                let told = |(image, &label): (usize, &u8)| {
                    let logits = net.logits(image);
                    let best = (1..logits.len())
                        .fold(0, |best, class| if logits[class] > logits[best] { class } else { best });
                    best == usize::from(label)
                };
                labels.iter().enumerate().map(told).collect()
            };
            if round == 0 {
                clean = right(net);
            }
            if round == steps {
                let after = right(net);
                let count = |holds: &dyn Fn(bool, bool) -> bool| {
                    clean.iter().zip(&after).filter(|&(&before, &after)| holds(before, after)).count()
                };
                found.clean_right += count(&|before, _| before);
                found.right += count(&|_, after| after);
                found.both += count(&|before, after| before && after);
                break;
            }
            net.backward(&weights.values, &mut gradient, true);
            for image in 0..count {
                net.input_gradient(image, &mut of_pixels);
                let place = image * values..(image + 1) * values;
                for ((x, &start), &g) in moved[place.clone()].iter_mut().zip(&original[place]).zip(&of_pixels) {
                    let sign = if g > 0.0 {
                        1.0
                    } else if g < 0.0 {
                        -1.0
                    } else {
                        0.0
                    };
                    *x = (*x + step * sign).clamp(start - reach, start + reach).clamp(0.0, 1.0);
                }
            }
        }
    }
    Ok(found)
}
