//! How far the answers move when a block goes: the mean Kullback–Leibler divergence of the class probabilities without it
//! from those with it, Σ p ln (p / q), nats an image. The lowest go.

use super::{Criterion, Removes, State};
use crate::{Result, lottery::scene::Scene};

#[derive(Debug)]
pub struct Kl;

/// ln softmax.
fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&z| f64::from(z - most).exp()).sum();
    logits.iter().map(|&z| f64::from(z - most) - sum.ln()).collect()
}

impl Criterion for Kl {
    fn name(&self) -> &'static str {
        "kl"
    }

    fn formula(&self) -> &'static str {
        "mean KL of the answers without the block from those with it"
    }

    fn removes(&self) -> Removes {
        Removes::Lowest
    }

    fn state(&self) -> State {
        State::Trained
    }

    fn scores(&self, scene: &mut Scene<'_>) -> Result<Vec<Option<f64>>> {
        scene.dense()?;
        let dense: Vec<Vec<f64>> = scene.logits(&scene.net).iter().map(|z| log_probabilities(z)).collect();
        scene.without_each(|_, net, _, _| {
            let without = scene.logits(net).into_iter().map(|z| log_probabilities(&z));
            let divergence =
                |(p, q): (&Vec<f64>, Vec<f64>)| p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            Ok(dense.iter().zip(without).map(divergence).sum::<f64>() / dense.len() as f64)
        })
    }
}
