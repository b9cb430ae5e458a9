//! What each weight of a net is worth before training: the scores by which pruning at initialisation keeps some.
//!
//! With weights θ, cost L of a few images, g = ∂L/∂θ:
//!
//! ```text
//! random     uniform in [0, 1)                                       what every other score has to beat
//! magnitude  |θ|
//! snip       |θ ⊙ g|                                                 Lee, Ajanthan and Torr 2019, equation 5
//! grasp      θ ⊙ H g,   L of the class outputs over a temperature    Wang, Zhang and Grosse 2020, equation 8, negated
//! synflow    |θ| ⊙ ∂R/∂|θ|,   R = Σ outputs of |θ| on an image of 1  Tanaka et al. 2020, equation 4; 100 rounds
//! ```
//!
//! Higher is worth more, everywhere, and scores of different tensors compete. A score is a number a weight, flat in the
//! order of the net's layout, so that its sum over a tensor or a block means something too (grasp is signed). Matrices and
//! convolutions are pruned; vectors (biases, norms) are scored by the same formulas and always stay.
//!
//! Norms: snip and grasp see a batch as training would, by its own moments. synflow sees the stored moments, and takes
//! the size of everything a net has, norms included, as the published code does; before training that is no norm at all.

use serde::{Deserialize, Serialize};

use super::{Mode, Net, Weights, graph::Layout};
use crate::{
    Error, Result,
    data::{
        images::{ImageSet, Placement, Scaling},
        random::Stream,
    },
};

/// Rounds of synflow, in each of which the same share of what is left goes (Tanaka et al. 2020, algorithm 1).
pub const SYNFLOW_ROUNDS: u32 = 100;

/// What grasp's class outputs are divided by in the published code. At 1 the scores follow the few images that are told
/// worst, and what is kept does not train.
pub const GRASP_TEMPERATURE: f64 = 200.0;

/// How far grasp moves the weights along ±g to see the gradient change, as a share of their norm: H g is the central
/// difference (g(θ + t g) − g(θ − t g)) / 2t with t = this · ‖θ‖ / ‖g‖. Ten times further and rectifiers that open on the
/// way blur what is meant to be a derivative (nets pruned by it to a quarter are .83 right in place of .89, on digits); ten
/// times nearer and the last bits of f32 begin to count.
pub const GRASP_STEP: f64 = 1e-3;

/// By what weights are scored.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Criterion {
    /// By nothing.
    Random {
        /// Of the numbers.
        seed: u64,
    },
    /// By size.
    Magnitude,
    /// By what the cost would change to first order.
    Snip,
    /// By what the flow of the gradient would change.
    Grasp {
        /// What the class outputs are divided by; above 0, usually [`GRASP_TEMPERATURE`].
        temperature: f64,
    },
    /// By what flows through a weight when all are positive; needs no images.
    Synflow,
}

impl Criterion {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Random { .. } => "random",
            Self::Magnitude => "magnitude",
            Self::Snip => "snip",
            Self::Grasp { .. } => "grasp",
            Self::Synflow => "synflow",
        }
    }
}

/// The score of every weight, (values of the layout), higher is worth more. `images` are seen in batches of the net's
/// capacity; neither they nor the scoring change `weights`.
///
/// # Errors
/// If the images do not fit the net, the temperature is not above 0, or a score is not finite.
///
/// # Panics
/// If the weights are another net's.
pub fn scores(
    criterion: Criterion,
    net: &mut Net,
    weights: &Weights,
    images: &ImageSet,
    scaling: &Scaling,
) -> Result<Vec<f64>> {
    let values = &weights.values;
    let times = |gradient: &[f64]| values.iter().zip(gradient).map(|(&w, g)| f64::from(w) * g).collect::<Vec<f64>>();
    let found = match criterion {
        Criterion::Random { seed } => random(net.graph().layout(), seed),
        Criterion::Magnitude => values.iter().map(|&w| f64::from(w.abs())).collect(),
        Criterion::Snip => {
            let gradient = gradient(net, values, &weights.running, (images, scaling), 1.0)?;
            times(&gradient).into_iter().map(f64::abs).collect()
        }
        Criterion::Grasp { temperature } => {
            if !(temperature > 0.0 && temperature.is_finite()) {
                return Err(Error::Recipe(format!("the temperature of grasp is {temperature}, expected above 0")));
            }
            times(&flow_of_gradient(net, weights, (images, scaling), temperature)?)
        }
        Criterion::Synflow => synflow(net, weights),
    };
    match found.iter().position(|score| !score.is_finite()) {
        Some(at) => {
            let entry = net.graph().layout().entries().iter().find(|entry| entry.range().contains(&at));
            let name = entry.map_or("", |entry| entry.name.as_str());
            Err(Error::Numeric(format!(
                "the {} score of a weight of `{name}` is {}: the net is too deep or its weights too large for f32",
                criterion.name(),
                found[at]
            )))
        }
        None => Ok(found),
    }
}

/// The `kept` weights of highest score among those of all matrices and convolutions: `true` = stays, (values of the
/// layout). Synflow asks anew [`SYNFLOW_ROUNDS`] times while fewer and fewer are left, the others once.
///
/// # Errors
/// If more are to be kept than there are, and as [`scores`].
///
/// # Panics
/// As [`scores`].
pub fn prune(
    criterion: Criterion,
    net: &mut Net,
    weights: &Weights,
    images: &ImageSet,
    scaling: &Scaling,
    kept: usize,
) -> Result<Vec<bool>> {
    let prunable = prunable(net.graph().layout());
    let all = prunable.iter().filter(|&&prunable| prunable).count();
    if kept > all {
        return Err(Error::Recipe(format!("{kept} weights are to be kept, the net has {all} that can be pruned")));
    }
    let rounds = if criterion == Criterion::Synflow { SYNFLOW_ROUNDS } else { 1 };
    let (mut left, mut masked) = (prunable.clone(), weights.clone());
    for round in 1..=rounds {
        let share = (kept as f64 / all as f64).powf(f64::from(round) / f64::from(rounds));
        let count = if round == rounds { kept } else { ((share * all as f64).round() as usize).max(kept) };
        left = highest(&scores(criterion, net, &masked, images, scaling)?, &left, count);
        for ((value, &left), &prunable) in masked.values.iter_mut().zip(&left).zip(&prunable) {
            if prunable && !left {
                *value = 0.0;
            }
        }
    }
    Ok(left.iter().zip(prunable).map(|(&left, prunable)| left || !prunable).collect())
}

/// Which weights of a layout can be pruned: those of matrices and convolutions.
pub fn prunable(layout: &Layout) -> Vec<bool> {
    let of = |entry: &super::graph::Entry| std::iter::repeat_n(entry.shape.len() > 1, entry.values());
    layout.entries().iter().flat_map(of).collect()
}

/// The `count` highest of the scores whose weight is `among`; of equals the first.
///
/// # Panics
/// If the lengths differ, or a score is NaN.
pub fn highest(scores: &[f64], among: &[bool], count: usize) -> Vec<bool> {
    assert_eq!(scores.len(), among.len(), "the scores are of other weights");
    let mut order: Vec<usize> = (0..scores.len()).filter(|&at| among[at]).collect();
    let mut keep = vec![false; scores.len()];
    if count < order.len() {
        let better = |a: &usize, b: &usize| {
            scores[*b].partial_cmp(&scores[*a]).expect("scores are numbers").then_with(|| a.cmp(b))
        };
        order.select_nth_unstable_by(count, better);
        order.truncate(count);
    }
    order.into_iter().for_each(|at| keep[at] = true);
    keep
}

fn random(layout: &Layout, seed: u64) -> Vec<f64> {
    let of = |entry: &super::graph::Entry| {
        let mut stream = Stream::new(seed, &format!("nn/saliency/{}", entry.name), 0);
        (0..entry.values()).map(|_| stream.unit()).collect::<Vec<f64>>()
    };
    layout.entries().iter().flat_map(of).collect()
}

/// ∂/∂θ of the mean cost of all images, their class outputs divided by `temperature`.
fn gradient(
    net: &mut Net,
    values: &[f32],
    running: &[f32],
    (images, scaling): (&ImageSet, &Scaling),
    temperature: f64,
) -> Result<Vec<f64>> {
    super::train::fits(net.spec(), images)?;
    let (each, classes, capacity) = (images.values(), net.spec().classes, net.capacity());
    let (mut sum, mut of_batch) = (vec![0.0f64; values.len()], vec![0.0f32; values.len()]);
    let mut of_logits = Vec::new();
    for first in (0..images.len()).step_by(capacity) {
        let count = capacity.min(images.len() - first);
        for (image, out) in net.input_mut(count).chunks_exact_mut(each).enumerate() {
            images.write(first + image, scaling, Placement::default(), out);
        }
        net.forward(values, &mut running.to_vec(), Mode::Train);
        of_logits.resize(count * classes, 0.0);
        for (image, out) in of_logits.chunks_exact_mut(classes).enumerate() {
            let warm: Vec<f32> = net.logits(image).iter().map(|&z| (f64::from(z) / temperature) as f32).collect();
            let label = usize::from(images.labels[first + image]);
            super::loss::cross_entropy(&warm, label, 0.0, 1.0 / (temperature * images.len() as f64), out);
        }
        net.set_logit_gradient(&of_logits);
        net.backward(values, &mut of_batch, false);
        sum.iter_mut().zip(&of_batch).for_each(|(sum, &g)| *sum += f64::from(g));
    }
    Ok(sum)
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// H g, g being the gradient in what can be pruned, by central difference.
fn flow_of_gradient(
    net: &mut Net,
    weights: &Weights,
    images: (&ImageSet, &Scaling),
    temperature: f64,
) -> Result<Vec<f64>> {
    let prunable = prunable(net.graph().layout());
    let mut along = gradient(net, &weights.values, &weights.running, images, temperature)?;
    along.iter_mut().zip(&prunable).filter(|(_, prunable)| !**prunable).for_each(|(g, _)| *g = 0.0);
    let steep = norm(along.iter().copied());
    let size = norm(weights.values.iter().zip(&prunable).filter(|(_, p)| **p).map(|(&w, _)| f64::from(w)));
    if steep == 0.0 || size == 0.0 {
        return Ok(vec![0.0; along.len()]); // flat: nothing flows, whatever goes
    }
    let step = GRASP_STEP * size / steep;
    let mut at = |step: f64| {
        let moved: Vec<f32> =
            weights.values.iter().zip(&along).map(|(&w, g)| (f64::from(w) + step * g) as f32).collect();
        gradient(net, &moved, &weights.running, images, temperature)
    };
    let (ahead, behind) = (at(step)?, at(-step)?);
    Ok(ahead.iter().zip(&behind).map(|(ahead, behind)| (ahead - behind) / (2.0 * step)).collect())
}

fn synflow(net: &mut Net, weights: &Weights) -> Vec<f64> {
    let sizes = |values: &[f32]| values.iter().map(|value| value.abs()).collect::<Vec<f32>>();
    let (values, mut running) = (sizes(&weights.values), sizes(&weights.running));
    net.input_mut(1).fill(1.0);
    net.forward(&values, &mut running, Mode::Evaluate);
    net.set_logit_gradient(&vec![1.0; net.spec().classes]);
    let mut gradient = vec![0.0; values.len()];
    net.backward(&values, &mut gradient, false);
    values.iter().zip(&gradient).map(|(&w, &g)| f64::from(w) * f64::from(g)).collect()
}

#[cfg(test)]
#[path = "saliency_tests.rs"]
mod tests;
