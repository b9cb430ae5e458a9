//! Two sums that batch norm fixes, so that a score made of them says less than it seems to.
//!
//! What a convolution makes is normed, so its size does not matter: L(c w) = L(w). The first derivative in c at 1 gives
//! Σ w g = 0; a second one along any direction d gives (w, 0)ᵀ H d = −g · d of that layer, and with d = g
//!
//! ```text
//! Σ w g = 0                        signed SNIP of the layer is rounding noise
//! Σ −w (H g) = ‖g‖²                GraSP of the layer is the squared norm of its gradient
//! ```
//!
//! The small number added to the variance bends both a little, and the difference that stands for H g bends the second.

use serde::Serialize;

use super::scene::Scene;
use crate::{Result, nn::saliency};

/// How far the weights go along ±g, as a length, so that H g is the central difference (g(θ + t g) − g(θ − t g)) / 2t with
/// t = this / ‖g‖: shorter than the step that scores take, since here the limit is meant; f32 rounds shorter ones away.
const STEP: f64 = 3e-3;

/// The two sums of one matrix or convolution.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Identity {
    /// Its name.
    pub tensor: String,
    /// Whether what it makes is normed.
    pub normed: bool,
    /// Σ w g.
    pub signed: f64,
    /// Σ |w g|, to see the former beside.
    pub absolute: f64,
    /// Σ −w (H g).
    pub grasp: f64,
    /// ‖g‖².
    pub squared_gradient: f64,
}

/// The sums of every matrix and convolution of the scene's net, of the loss itself (outputs over 1).
///
/// # Errors
/// If an output is not finite.
pub fn identities(scene: &mut Scene<'_>) -> Result<Vec<Identity>> {
    let gradient = scene.gradient()?;
    let matrices = saliency::prunable(scene.net.graph().layout());
    let along: Vec<f64> =
        gradient.iter().zip(matrices).map(|(&g, matrix)| if matrix { f64::from(g) } else { 0.0 }).collect();
    let steep = along.iter().map(|g| g * g).sum::<f64>().sqrt();
    let step = STEP / steep.max(f64::MIN_POSITIVE);
    let mut moved = |by: f64| {
        let mut weights = scene.weights.clone();
        weights.values.iter_mut().zip(&along).for_each(|(w, g)| *w = (f64::from(*w) + by * g) as f32);
        scene.gradient_at(&weights)
    };
    let (ahead, behind) = (moved(step)?, moved(-step)?);
    let flow = ahead.iter().zip(&behind).map(|(ahead, behind)| f64::from(ahead - behind) / (2.0 * step));
    let flow: Vec<f64> = flow.zip(&scene.weights.values).map(|(hg, &w)| f64::from(w) * hg).collect();
    let graph = scene.net.graph();
    let products: Vec<f64> =
        scene.weights.values.iter().zip(&gradient).map(|(&w, &g)| f64::from(w) * f64::from(g)).collect();
    let of = |entry: &crate::nn::graph::Entry| {
        let products = &products[entry.range()];
        Identity {
            tensor: entry.name.clone(),
            normed: graph.is_normed(&entry.name),
            signed: products.iter().sum(),
            absolute: products.iter().map(|product| product.abs()).sum(),
            grasp: -flow[entry.range()].iter().sum::<f64>(),
            squared_gradient: gradient[entry.range()].iter().map(|&g| f64::from(g).powi(2)).sum(),
        }
    };
    Ok(graph.layout().entries().iter().filter(|entry| entry.shape.len() > 1).map(of).collect())
}
