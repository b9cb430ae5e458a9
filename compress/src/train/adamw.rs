//! AdamW: Adam with the decay of weights kept apart from the gradient (Loshchilov and Hutter 2019, algorithm 2).
//!
//! ```text
//! m ← β₁ m + (1 − β₁) g          v ← β₂ v + (1 − β₂) g²
//! w ← w − η (m̂ / (√v̂ + ε) + λ w)        m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
//! ```
//!
//! The gradient of all parameters together is clipped to a norm first (Pascanu et al. 2013). Each parameter is one plain
//! loop over its numbers, so the result does not depend on threads.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use crate::{Error, Result};

/// The settings of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// β₁: how slowly the mean of the gradient forgets.
    pub beta1: f64,
    /// β₂: how slowly its square forgets.
    pub beta2: f64,
    /// ε
    pub epsilon: f64,
    /// λ, on matrices; vectors (norms, biases) do not decay.
    pub weight_decay: f64,
    /// The gradient's norm is held to this.
    pub clip: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, clip: 1.0 }
    }
}

/// The parameters, with what the optimiser remembers of each.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    parameters: Vec<Parameter>,
    steps: i32,
}

#[derive(Debug)]
struct Parameter {
    var: Var,
    decays: bool,
    m: Vec<f32>,
    v: Vec<f32>,
}

impl AdamW {
    /// An optimiser of `vars`, all f32.
    pub fn new(vars: Vec<Var>, config: AdamWConfig) -> Self {
        let parameter = |var: Var| {
            let zeros = vec![0.0; var.elem_count()];
            Parameter { decays: var.rank() > 1, var, m: zeros.clone(), v: zeros }
        };
        Self { config, parameters: vars.into_iter().map(parameter).collect(), steps: 0 }
    }

    /// One step at `learning_rate`. Returns the gradient's norm before clipping; [`Error::Numeric`], and no change, if it
    /// is not finite. A parameter without a gradient stays as it is.
    pub fn step(&mut self, grads: &GradStore, learning_rate: f64) -> Result<f64> {
        let grad = |parameter: &Parameter| -> Result<Option<Vec<f32>>> {
            let grad = grads.get(&parameter.var).map(|grad| grad.flatten_all()?.to_vec1());
            Ok(grad.transpose()?)
        };
        let all = self.parameters.iter().map(grad).collect::<Result<Vec<_>>>()?;
        let squares: f64 = all.iter().flatten().flatten().map(|&g| f64::from(g) * f64::from(g)).sum();
        let norm = squares.sqrt();
        if !norm.is_finite() {
            return Err(Error::Numeric(format!("the gradient's norm is {norm} at step {}", self.steps + 1)));
        }

        self.steps += 1;
        let c = self.config;
        let scale = if norm > c.clip { c.clip / norm } else { 1.0 } as f32;
        let (beta1, beta2) = (c.beta1 as f32, c.beta2 as f32);
        // η m̂ / (√v̂ + ε) with the corrections taken out of the loop: rate · m / (√v + epsilon).
        let correction2 = (1.0 - c.beta2.powi(self.steps)).sqrt();
        let rate = (learning_rate * correction2 / (1.0 - c.beta1.powi(self.steps))) as f32;
        let epsilon = (c.epsilon * correction2) as f32;
        for (parameter, grad) in self.parameters.iter_mut().zip(all) {
            let Some(grad) = grad else { continue };
            let keep = if parameter.decays { (1.0 - learning_rate * c.weight_decay) as f32 } else { 1.0 };
            let mut w: Vec<f32> = parameter.var.flatten_all()?.to_vec1()?;
            let memory = parameter.m.iter_mut().zip(&mut parameter.v);
            for ((w, g), (m, v)) in w.iter_mut().zip(grad).zip(memory) {
                let g = scale * g;
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * g * g;
                *w = keep * *w - rate * *m / (v.sqrt() + epsilon);
            }
            parameter.var.set(&Tensor::from_vec(w, parameter.var.shape(), parameter.var.device())?)?;
        }
        Ok(norm)
    }
}

/// The learning rate at `step` of `steps`: up in a straight line over `warmup` steps to `peak`, then down half a cosine to
/// a hundredth of it.
pub fn warmup_cosine(step: usize, steps: usize, warmup: usize, peak: f64) -> f64 {
    const LAST: f64 = 0.01;
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let done = (step - warmup) as f64 / (steps - warmup).max(1) as f64;
    peak * (LAST + (1.0 - LAST) * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn two_steps_equal_the_formula() {
        let config = AdamWConfig { weight_decay: 0.5, clip: 1e9, ..Default::default() };
        let var = Var::new(&[[2.0f32]], &Device::Cpu).unwrap();
        let mut optimiser = AdamW::new(vec![var.clone()], config);
        let (mut w, mut m, mut v) = (2.0f64, 0.0, 0.0);
        for t in 1..=2 {
            let loss = var.sqr().unwrap().sum_all().unwrap(); // gradient 2 w
            let norm = optimiser.step(&loss.backward().unwrap(), 0.1).unwrap();
            let g = 2.0 * w;
            assert!((norm - g.abs()).abs() < 1e-6);
            (m, v) = (0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g);
            let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.95f64.powi(t)));
            w -= 0.1 * (m_hat / (v_hat.sqrt() + 1e-8) + 0.5 * w);
            let got = f64::from(var.to_vec2::<f32>().unwrap()[0][0]);
            assert!((got - w).abs() < 1e-6, "step {t}: {got}, expected {w}");
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let var = Var::new(&[1.0f32], &Device::Cpu).unwrap();
        let mut optimiser = AdamW::new(vec![var.clone()], AdamWConfig::default());
        let loss = (var.as_tensor() * f64::NAN).unwrap().sum_all().unwrap();
        let error = optimiser.step(&loss.backward().unwrap(), 0.1).unwrap_err().to_string();
        assert_eq!(error, "the gradient's norm is NaN at step 1");
        assert_eq!(var.to_vec1::<f32>().unwrap(), [1.0]);
    }

    #[test]
    fn the_rate_rises_then_falls() {
        let rates: Vec<f64> = (0..100).map(|step| warmup_cosine(step, 100, 10, 1.0)).collect();
        assert!(rates[..10].is_sorted() && rates[10..].iter().rev().is_sorted());
        assert_eq!((rates[0], rates[9]), (0.1, 1.0));
        assert!(rates[99] > 0.01 && rates[99] < 0.011);
    }
}
