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

use std::ops::Range;

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
    let mut pixels = Vec::new();
    for first in (0..images.len()).step_by(net.capacity()) {
        let which = first..images.len().min(first + net.capacity());
        let (before, after) = attack_batch(net, weights, (images, which), scaling, (epsilon, steps), &mut pixels)?;
        let count = |holds: &dyn Fn(bool, bool) -> bool| {
            before.iter().zip(&after).filter(|&(&before, &after)| holds(before, after)).count()
        };
        found.clean_right += count(&|before, _| before);
        found.right += count(&|_, after| after);
        found.both += count(&|before, after| before && after);
    }
    Ok(found)
}

/// Attacks some images of a set at once, and leaves what they have become in `pixels`, 0 to 1, (images, height, width,
/// channels). Which of them were told right before, and which are after.
fn attack_batch(
    net: &mut Net,
    weights: &Weights,
    (images, which): (&ImageSet, Range<usize>),
    scaling: &Scaling,
    (epsilon, steps): (f64, usize),
    pixels: &mut Vec<f32>,
) -> Result<(Vec<bool>, Vec<bool>)> {
    let (values, channels, count) = (images.values(), images.channels, which.len());
    let labels = &images.labels[which.clone()];
    let reach = (epsilon / 255.0) as f32;
    let step = if steps > 1 { (STEP * epsilon / 255.0) as f32 } else { reach };
    let mut running = weights.running.clone();
    let mut gradient = vec![0.0; weights.values.len()];
    let mut of_pixels = Vec::new();
    let plain = Scaling { mean: vec![0.0; channels], deviation: vec![1.0; channels] };
    let mut original = vec![0.0f32; count * values];
    for (image, out) in which.zip(original.chunks_exact_mut(values)) {
        images.write(image, &plain, Placement::default(), out);
    }
    pixels.clone_from(&original);
    let mut before = Vec::new();
    for round in 0..=steps {
        for (at, (out, &pixel)) in net.input_mut(count).iter_mut().zip(&*pixels).enumerate() {
            *out = (pixel - scaling.mean[at % channels]) / scaling.deviation[at % channels];
        }
        net.forward(&weights.values, &mut running, Mode::Evaluate);
        net.loss(labels, 0.0)?;
        if round == 0 {
            before = told_right(net, labels);
        }
        if round == steps {
            break;
        }
        net.backward(&weights.values, &mut gradient, true);
        for image in 0..count {
            net.input_gradient(image, &mut of_pixels);
            let place = image * values..(image + 1) * values;
            for ((x, &start), &g) in pixels[place.clone()].iter_mut().zip(&original[place]).zip(&of_pixels) {
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
    Ok((before, told_right(net, labels)))
}

/// Which images of the batch last run are told right.
fn told_right(net: &Net, labels: &[u8]) -> Vec<bool> {
    let told = |(image, &label): (usize, &u8)| {
        let logits = net.logits(image);
        let best = (1..logits.len()).fold(0, |best, class| if logits[class] > logits[best] { class } else { best });
        best == usize::from(label)
    };
    labels.iter().enumerate().map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::glyphs::glyphs,
        nn::{Architecture, Input, Spec},
    };

    /// Rounding of numbers up to 1 in f32.
    const MAX_ROUNDING: f32 = 1e-6;

    #[test]
    fn attacks_are_their_definitions_and_stay_within_reach() {
        let images = ImageSet::of_glyphs(glyphs(3, 30, 8));
        let scaling = images.scaling();
        let input = Input { height: 8, width: 8, channels: 1 };
        let spec = Spec { architecture: Architecture::Cnn { widths: vec![8, 8] }, input, classes: 10 };
        let weights = Weights::start(&spec.graph().unwrap(), 1);
        let mut net = Net::new(&spec, images.len()).unwrap();
        let start: Vec<f32> = images.pixels.iter().map(|&byte| f32::from(byte) * (1.0 / 255.0)).collect();
        // The loss at some pixels and its gradient in them.
        let mut slopes = |pixels: &[f32]| {
            let seen = pixels.iter().map(|pixel| (pixel - scaling.mean[0]) / scaling.deviation[0]);
            net.input_mut(images.len()).iter_mut().zip(seen).for_each(|(x, seen)| *x = seen);
            net.forward(&weights.values, &mut weights.running.clone(), Mode::Evaluate);
            let loss = net.loss(&images.labels, 0.0).unwrap().mean;
            net.backward(&weights.values, &mut vec![0.0; weights.values.len()], true);
            let (mut all, mut one) = (Vec::new(), Vec::new());
            for image in 0..images.len() {
                net.input_gradient(image, &mut one);
                all.extend_from_slice(&one);
            }
            (loss, all)
        };
        let epsilon = 8.0;
        let [reach, quarter] = [epsilon, epsilon / 4.0].map(|by| (by / 255.0) as f32);
        let (clean, _) = slopes(&start);
        for (steps, step) in [(1, reach), (STEPS, quarter)] {
            let mut expected = start.clone();
            for _ in 0..steps {
                let (_, gradient) = slopes(&expected);
                for ((x, start), g) in expected.iter_mut().zip(&start).zip(gradient) {
                    let moved = if g == 0.0 { *x } else { *x + step * g.signum() };
                    *x = moved.max(start - reach).min(start + reach).clamp(0.0, 1.0);
                }
            }
            assert!(slopes(&expected).0 > clean, "{steps} steps did not raise the loss");

            let mut own = Net::new(&spec, images.len()).unwrap();
            let (all, mut pixels) = ((&images, 0..images.len()), Vec::new());
            attack_batch(&mut own, &weights, all, &scaling, (epsilon, steps), &mut pixels).unwrap();
            assert_eq!(pixels.len(), start.len());
            let mut at_the_border = 0;
            for (at, ((&found, &start), &expected)) in pixels.iter().zip(&start).zip(&expected).enumerate() {
                assert!((found - start).abs() <= reach + MAX_ROUNDING, "{steps} steps: {start} became {found}");
                assert!((0.0..=1.0).contains(&found), "{steps} steps: {start} became {found}");
                assert!((found - expected).abs() <= MAX_ROUNDING, "pixel {at}: {found} for {expected}");
                at_the_border += usize::from((found - start).abs() > reach - MAX_ROUNDING);
            }
            assert!(at_the_border > start.len() / 10, "{steps} steps: only {at_the_border} pixels went all the way");
        }
    }
}
