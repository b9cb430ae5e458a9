//! SNIP over blocks (Lee, Ajanthan and Torr 2019, equation 5, summed): Σ |θ g| or its mean.
//!
//! The paper on layers does not say how weights are put together to a block. The sum grows with the number of weights and
//! keeps wide, late stages; the mean keeps narrow, early ones: the rule decides more than the images do.

use super::{Criterion, Removes, of_blocks};
use crate::{
    Error, Result,
    lottery::scene::Scene,
    nn::saliency::{self, Criterion as Saliency},
};

#[derive(Debug)]
pub struct Snip {
    pub mean: bool,
}

impl Criterion for Snip {
    fn name(&self) -> &'static str {
        if self.mean { "snip-mean" } else { "snip" }
    }

    fn formula(&self) -> &'static str {
        if self.mean { "mean |θ g|" } else { "Σ |θ g|  (Lee et al. 2019)" }
    }

    fn removes(&self) -> Removes {
        Removes::Lowest
    }

    fn scores(&self, scene: &mut Scene<'_>) -> Result<Vec<Option<f64>>> {
        let found = saliency::scores(Saliency::Snip, &mut scene.net, scene.weights, scene.images, scene.scaling)?;
        Ok(of_blocks(scene, &found, self.mean))
    }
}

/// |Σ θ g|: to first order what the loss changes by when a block is scaled down. Where the block feeds norms that is zero
/// whatever the images show, and such scores are refused.
#[derive(Debug)]
pub struct Signed;

impl Criterion for Signed {
    fn name(&self) -> &'static str {
        "snip-signed"
    }

    fn formula(&self) -> &'static str {
        "|Σ θ g|"
    }

    fn removes(&self) -> Removes {
        Removes::Lowest
    }

    fn scores(&self, scene: &mut Scene<'_>) -> Result<Vec<Option<f64>>> {
        if scene.blocks_are_normed() {
            return Err(Error::Recipe(
                "`snip-signed` is zero for every block that feeds a batch norm, whatever the weights and images: its \
                 scores would be rounding noise; take `snip`, `loss-drop` or `grad-flow`"
                    .into(),
            ));
        }
        let gradient = scene.gradient()?;
        let products = scene.weights.values.iter().zip(&gradient).map(|(&w, &g)| f64::from(w) * f64::from(g));
        let products: Vec<f64> = products.collect();
        Ok(of_blocks(scene, &products, false).into_iter().map(|score| score.map(f64::abs)).collect())
    }
}
