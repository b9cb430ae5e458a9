//! What the flow of the gradient through the rest of the net gains when a block really goes: ‖∇L without it‖² − ‖∇L‖², both
//! over the weights that stay. What GraSP approximates, without the approximation; the highest go.

use super::{Criterion, Removes};
use crate::{Result, lottery::scene::Scene};

#[derive(Debug)]
pub struct GradFlow;

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value).powi(2)).sum()
}

impl Criterion for GradFlow {
    fn name(&self) -> &'static str {
        "grad-flow"
    }

    fn formula(&self) -> &'static str {
        "‖∇L without the block‖² − ‖∇L‖², over the weights that stay"
    }

    fn removes(&self) -> Removes {
        Removes::Highest
    }

    fn scores(&self, scene: &mut Scene<'_>) -> Result<Vec<Option<f64>>> {
        let dense = scene.gradient()?;
        let graph = scene.net.graph();
        scene.without_each(|ticket, net, weights, _| {
            let mut gradient = vec![0.0; weights.values.len()];
            net.backward(&weights.values, &mut gradient, false);
            Ok(squares(&gradient) - squares(&ticket.part(graph, &dense)?))
        })
    }
}
