//! SynFlow over blocks (Tanaka et al. 2020, equation 4, summed): Σ θ ∂R/∂θ, R what |θ| makes of an image of ones. It sees no
//! data. The lowest go.

use super::{Criterion, Removes, of_blocks};
use crate::{
    Result,
    lottery::scene::Scene,
    nn::saliency::{self, Criterion as Saliency},
};

#[derive(Debug)]
pub struct Synflow;

impl Criterion for Synflow {
    fn name(&self) -> &'static str {
        "synflow"
    }

    fn formula(&self) -> &'static str {
        "Σ θ ∂R/∂θ, R = 1ᵀ Π |θ| 1  (Tanaka et al. 2020)"
    }

    fn removes(&self) -> Removes {
        Removes::Lowest
    }

    fn scores(&self, scene: &mut Scene<'_>) -> Result<Vec<Option<f64>>> {
        let found = saliency::scores(Saliency::Synflow, &mut scene.net, scene.weights, scene.images, scene.scaling)?;
        Ok(of_blocks(scene, &found, false))
    }
}
