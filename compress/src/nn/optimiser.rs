//! From gradients to the next weights: SGD with momentum, AdamW, and the learning rate over time.
//!
//! ```text
//! SGD:    g ← g + λ w      v ← μ v + g      w ← w − η v            (Nesterov: w ← w − η (g + μ v))
//! AdamW:  m ← β₁ m + (1 − β₁) g      v ← β₂ v + (1 − β₂) g²        (Loshchilov and Hutter 2019, algorithm 2)
//!         w ← w − η (m̂ / (√v̂ + ε) + λ w)      m̂ = m / (1 − β₁ᵗ),   v̂ = v / (1 − β₂ᵗ)
//! ```
//!
//! These are torch's forms. λ acts on matrices and convolutions; on vectors (norms, biases) only where `decay_vectors`.

use serde::{Deserialize, Serialize};

use super::graph::Layout;
use crate::{Error, Result};

/// The rule of a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Rule {
    /// Stochastic gradient descent.
    Sgd {
        /// μ; 0 for none.
        #[serde(default)]
        momentum: f64,
        /// Whether the gradient is looked at ahead of the momentum (Sutskever et al. 2013).
        #[serde(default)]
        nesterov: bool,
        /// λ.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam with the decay of weights apart from the gradient.
    #[serde(rename = "adamw")]
    AdamW {
        /// β₁.
        #[serde(default = "beta1")]
        beta1: f64,
        /// β₂.
        #[serde(default = "beta2")]
        beta2: f64,
        /// ε.
        #[serde(default = "epsilon")]
        epsilon: f64,
        /// λ.
        #[serde(default)]
        weight_decay: f64,
    },
}

fn beta1() -> f64 {
    0.9
}

fn beta2() -> f64 {
    0.999
}

fn epsilon() -> f64 {
    1e-8
}

impl Rule {
    /// Arrays the rule remembers, of as many values as there are weights.
    pub fn memories(&self) -> usize {
        match self {
            Self::Sgd { momentum, .. } => usize::from(*momentum != 0.0),
            Self::AdamW { .. } => 2,
        }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// If one lies outside its range; the message says which.
    pub fn check(&self) -> Result<()> {
        let within = |name: &str, value: f64, end: f64| match (0.0..end).contains(&value) {
            true => Ok(()),
            false => Err(Error::Recipe(format!("{name} is {value}, expected 0 or more and below {end}"))),
        };
        match *self {
            Self::Sgd { momentum, nesterov, weight_decay } => {
                within("momentum", momentum, 1.0)?;
                within("weight_decay", weight_decay, f64::INFINITY)?;
                match nesterov && momentum == 0.0 {
                    true => {
                        Err(Error::Recipe("nesterov is asked for without momentum; give a momentum such as 0.9".into()))
                    }
                    false => Ok(()),
                }
            }
            Self::AdamW { beta1, beta2, epsilon, weight_decay } => {
                within("beta1", beta1, 1.0)?;
                within("beta2", beta2, 1.0)?;
                within("epsilon", epsilon, f64::INFINITY)?;
                within("weight_decay", weight_decay, f64::INFINITY)
            }
        }
    }
}

/// What an optimiser remembers between steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimiser {
    rule: Rule,
    decays: Vec<std::ops::Range<usize>>,
    memories: Vec<Vec<f32>>,
    steps: u64,
}

impl Optimiser {
    /// An optimiser of the tensors of `layout`.
    pub fn new(rule: Rule, layout: &Layout, decay_vectors: bool) -> Self {
        let decays = layout.entries().iter().filter(|entry| decay_vectors || entry.shape.len() > 1);
        Self {
            rule,
            decays: decays.map(super::graph::Entry::range).collect(),
            memories: vec![vec![0.0; layout.len()]; rule.memories()],
            steps: 0,
        }
    }

    /// An optimiser of a flat array of `values` numbers, such as a pool that tensors share; all of them decay.
    pub fn flat(rule: Rule, values: usize) -> Self {
        let decays = std::iter::once(0..values).collect();
        Self { rule, decays, memories: vec![vec![0.0; values]; rule.memories()], steps: 0 }
    }

    /// What is remembered between steps, as [`Self::restore`] takes it.
    pub fn memories(&self) -> &[Vec<f32>] {
        &self.memories
    }

    /// Goes on as after `steps` steps with these `memories`.
    ///
    /// # Panics
    /// If they are not as many, or not as long, as the optimiser's.
    pub fn restore(&mut self, memories: Vec<Vec<f32>>, steps: u64) {
        let lengths = |memories: &[Vec<f32>]| memories.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lengths(&memories), lengths(&self.memories), "another optimiser's memories");
        (self.memories, self.steps) = (memories, steps);
    }

    /// One step of `weights` against `gradient` at learning rate `rate`; the gradient is left changed.
    ///
    /// # Panics
    /// If a slice has another length than what the optimiser was made for.
    pub fn step(&mut self, weights: &mut [f32], gradient: &mut [f32], rate: f64) {
        assert_eq!(weights.len(), gradient.len(), "the gradient is of other weights");
        assert!(self.memories.iter().all(|memory| memory.len() == weights.len()), "the optimiser is of other weights");
        self.steps += 1;
        match self.rule {
            Rule::Sgd { momentum, nesterov, weight_decay } => {
                let (mu, lambda, eta) = (momentum as f32, weight_decay as f32, rate as f32);
                if lambda != 0.0 {
                    for range in &self.decays {
                        let pairs = gradient[range.clone()].iter_mut().zip(&weights[range.clone()]);
                        pairs.for_each(|(g, w)| *g += lambda * w);
                    }
                }
                let Some(memory) = self.memories.first_mut() else {
                    weights.iter_mut().zip(gradient).for_each(|(w, g)| *w -= eta * *g);
                    return;
                };
                for ((w, g), v) in weights.iter_mut().zip(gradient).zip(memory) {
                    *v = mu * *v + *g;
                    *w -= eta * if nesterov { *g + mu * *v } else { *v };
                }
            }
            Rule::AdamW { beta1, beta2, epsilon, weight_decay } => {
                let keep = (1.0 - rate * weight_decay) as f32;
                if weight_decay != 0.0 {
                    for range in &self.decays {
                        weights[range.clone()].iter_mut().for_each(|w| *w *= keep);
                    }
                }
                let steps = self.steps.min(i32::MAX as u64) as i32;
                let correction = (1.0 - beta2.powi(steps)).sqrt();
                let (rate, epsilon) =
                    ((rate * correction / (1.0 - beta1.powi(steps))) as f32, (epsilon * correction) as f32);
                let (beta1, beta2) = (beta1 as f32, beta2 as f32);
                let [m, v] = &mut self.memories[..] else { unreachable!("AdamW remembers two arrays") };
                for ((w, g), (m, v)) in weights.iter_mut().zip(gradient).zip(m.iter_mut().zip(v)) {
                    *m = beta1 * *m + (1.0 - beta1) * *g;
                    *v = beta2 * *v + (1.0 - beta2) * *g * *g;
                    *w -= rate * *m / (v.sqrt() + epsilon);
                }
            }
        }
    }
}

/// The learning rate over the steps of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Curve {
    /// The same all the time.
    Constant,
    /// Half a cosine down to nothing (Loshchilov and Hutter 2017, equation 5, without restarts).
    Cosine,
    /// Times `factor` at each of `milestones`, shares of the run.
    Step {
        /// Shares of the run in 0..1, rising.
        milestones: Vec<f64>,
        /// Usually 0.1.
        factor: f64,
    },
}

/// A curve with its height and its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The highest learning rate.
    pub peak: f64,
    /// Epochs of a straight line up to it.
    #[serde(default)]
    pub warmup_epochs: f64,
    /// What follows.
    pub curve: Curve,
}

impl Schedule {
    /// Checks every number.
    ///
    /// # Errors
    /// If one cannot be; the message says which.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Recipe(what));
        if !(self.peak > 0.0 && self.peak.is_finite()) {
            return refuse(format!("the learning rate is {}, expected a number above 0", self.peak));
        }
        if !(self.warmup_epochs >= 0.0 && self.warmup_epochs.is_finite()) {
            return refuse(format!("warmup_epochs is {}, expected 0 or more", self.warmup_epochs));
        }
        match &self.curve {
            Curve::Step { milestones, factor } => {
                if !(0.0..=1.0).contains(factor) {
                    return refuse(format!("the factor of the steps is {factor}, expected 0 to 1"));
                }
                match milestones.is_sorted() && milestones.iter().all(|at| (0.0..=1.0).contains(at)) {
                    true => Ok(()),
                    false => {
                        refuse(format!("milestones are {milestones:?}, expected rising shares of the run, 0 to 1"))
                    }
                }
            }
            Curve::Constant | Curve::Cosine => Ok(()),
        }
    }

    /// The rate at `step` of `steps`, of which `epoch` make an epoch.
    pub fn rate(&self, step: u64, steps: u64, epoch: u64) -> f64 {
        let warmup = self.warmup_epochs * epoch as f64;
        if (step as f64) < warmup {
            return self.peak * (step + 1) as f64 / warmup.max(1.0).ceil();
        }
        let share = match &self.curve {
            Curve::Constant => 1.0,
            Curve::Cosine => {
                let done = (step as f64 - warmup) / (steps as f64 - warmup).max(1.0);
                0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
            }
            Curve::Step { milestones, factor } => {
                let passed = milestones.iter().filter(|at| step as f64 >= *at * steps as f64).count();
                factor.powi(passed as i32)
            }
        };
        self.peak * share
    }
}

/// Holds the norm of a step's gradient to `most`, and gives what it was (Pascanu et al. 2013).
///
/// # Errors
/// [`Error::Numeric`] if it or the `loss` is not finite.
pub(crate) fn clip(step: u64, loss: f64, gradient: &mut [f32], most: f64) -> Result<f64> {
    let norm = gradient.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    if !(loss.is_finite() && norm.is_finite()) {
        return Err(Error::Numeric(format!(
            "step {step}: the loss is {loss} and its gradient's norm {norm}: the weights have left what f32 holds; try a lower \
             learning rate"
        )));
    }
    if norm > most {
        let scale = (most / norm) as f32;
        gradient.iter_mut().for_each(|value| *value *= scale);
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three steps on f(w) = w² from w = 2.
    fn descend(rule: Rule) -> f32 {
        let mut optimiser = Optimiser::flat(rule, 1);
        let mut w = [2.0f32];
        for _ in 0..3 {
            let mut gradient = [2.0 * w[0]];
            optimiser.step(&mut w, &mut gradient, 0.1);
        }
        w[0]
    }

    #[test]
    fn three_steps_equal_torch() {
        // Golden, torch 2.14: w = torch.tensor([2.0], requires_grad=True); o = torch.optim.SGD([w], 0.1, …) or AdamW([w],
        // 0.1, weight_decay=0.5); three times o.zero_grad(); (w * w).sum().backward(); o.step().
        let sgd = |momentum, nesterov, weight_decay| Rule::Sgd { momentum, nesterov, weight_decay };
        for (rule, expected) in [
            (sgd(0.0, false, 0.0), SGD),
            (sgd(0.9, false, 0.5), SGD_MOMENTUM),
            (sgd(0.9, true, 0.5), SGD_NESTEROV),
            (Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.5 }, ADAMW),
        ] {
            let found = descend(rule);
            assert!((found - expected).abs() < 1e-5, "{rule:?}: {found}, expected {expected}");
        }
    }

    const SGD: f32 = 1.024;
    const SGD_MOMENTUM: f32 = -0.236_249_92;
    const SGD_NESTEROV: f32 = -0.500_343_74;
    const ADAMW: f32 = 1.431_025_1;

    #[test]
    fn schedules_have_their_corners() {
        let schedule = |curve, warmup_epochs| Schedule { peak: 2.0, warmup_epochs, curve };
        let rates = |schedule: &Schedule| (0..100).map(|step| schedule.rate(step, 100, 10)).collect::<Vec<f64>>();
        let cosine = rates(&schedule(Curve::Cosine, 1.0));
        assert!(cosine[..10].is_sorted() && cosine[10..].iter().rev().is_sorted());
        assert_eq!((cosine[0], cosine[9], cosine[10]), (0.2, 2.0, 2.0));
        assert!((cosine[55] - 1.0).abs() < 1e-9 && cosine[99] < 0.01);
        let step = rates(&schedule(Curve::Step { milestones: vec![0.5, 0.75], factor: 0.1 }, 0.0));
        assert_eq!((step[49], step[50], step[75]), (2.0, 0.2, 2.0 * 0.1f64.powi(2)));
        assert_eq!(rates(&schedule(Curve::Constant, 0.0)), [2.0; 100]);
    }

    #[test]
    fn numbers_outside_their_range_are_named() {
        let schedule = |peak, curve| Schedule { peak, warmup_epochs: 0.0, curve };
        for (found, part) in [
            (Rule::Sgd { momentum: 1.0, nesterov: false, weight_decay: 0.0 }.check(), "momentum is 1"),
            (Rule::Sgd { momentum: 0.0, nesterov: true, weight_decay: 0.0 }.check(), "without momentum"),
            (schedule(f64::NAN, Curve::Cosine).check(), "the learning rate is NaN"),
            (
                schedule(1.0, Curve::Step { milestones: vec![0.5, 0.2], factor: 0.1 }).check(),
                "milestones are [0.5, 0.2]",
            ),
        ] {
            assert!(found.unwrap_err().to_string().contains(part), "{part}");
        }
    }
}
