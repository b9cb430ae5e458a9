//! By size alone: Σ |θ| or its mean. All it can tell before training is which stage a block is in.

use super::{Criterion, Removes, State, of_blocks};
use crate::{Result, lottery::scene::Scene};

#[derive(Debug)]
pub struct L1 {
    pub mean: bool,
}

impl Criterion for L1 {
    fn name(&self) -> &'static str {
        if self.mean { "l1-mean" } else { "l1" }
    }

    fn formula(&self) -> &'static str {
        if self.mean { "mean |θ|" } else { "Σ |θ|" }
    }

    fn removes(&self) -> Removes {
        Removes::Lowest
    }

    fn state(&self) -> State {
        State::Any
    }

    fn label(&self, scene: &Scene<'_>) -> Option<&'static str> {
        (!scene.trained()).then_some("before training this only says which stage a block is in")
    }

    fn scores(&self, scene: &mut Scene<'_>) -> Result<Vec<Option<f64>>> {
        let sizes: Vec<f64> = scene.weights.values.iter().map(|&w| f64::from(w.abs())).collect();
        Ok(of_blocks(scene, &sizes, self.mean))
    }
}
