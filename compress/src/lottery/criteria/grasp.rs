//! GraSP over blocks (Wang, Zhang and Grosse 2020, equation 8, summed): Σ −θ (H g), the highest go.
//!
//! H g is a difference of gradients; see [`crate::nn::saliency`], whose scores have the other sign.

use super::{Criterion, Removes, of_blocks};
use crate::{
    Result,
    lottery::scene::Scene,
    nn::saliency::{self, Criterion as Saliency, GRASP_TEMPERATURE},
};

#[derive(Debug)]
pub struct Grasp;

impl Criterion for Grasp {
    fn name(&self) -> &'static str {
        "grasp"
    }

    fn formula(&self) -> &'static str {
        "Σ −θ (H g), outputs over 200  (Wang et al. 2020)"
    }

    fn removes(&self) -> Removes {
        Removes::Highest
    }

    fn label(&self, scene: &Scene<'_>) -> Option<&'static str> {
        scene.blocks_are_normed().then_some(
            "under batch norm this is the squared norm of the block's gradient, ‖g‖², up to the step of its difference",
        )
    }

    fn scores(&self, scene: &mut Scene<'_>) -> Result<Vec<Option<f64>>> {
        let criterion = Saliency::Grasp { temperature: GRASP_TEMPERATURE };
        let found = saliency::scores(criterion, &mut scene.net, scene.weights, scene.images, scene.scaling)?;
        Ok(of_blocks(scene, &found, false).into_iter().map(|score| score.map(|score| -score)).collect())
    }
}
