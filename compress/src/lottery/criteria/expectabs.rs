//! expectABS (Tan and Motani 2020, DropNet; over blocks by Jordao et al. 2023): the mean size of what a block makes. The
//! lowest go.

use super::{Criterion, Removes, State};
use crate::{Result, lottery::scene::Scene};

#[derive(Debug)]
pub struct ExpectAbs;

impl Criterion for ExpectAbs {
    fn name(&self) -> &'static str {
        "expectabs"
    }

    fn formula(&self) -> &'static str {
        "mean |output of the block|  (Tan and Motani 2020)"
    }

    fn removes(&self) -> Removes {
        Removes::Lowest
    }

    fn state(&self) -> State {
        State::Trained
    }

    fn scores(&self, scene: &mut Scene<'_>) -> Result<Vec<Option<f64>>> {
        scene.dense()?;
        let images = scene.images.len();
        let mean = |block: usize| {
            let of = |image: usize| {
                let (_, values) = scene.net.block_output(block, image);
                values.iter().map(|value| f64::from(value.abs())).sum::<f64>() / values.len() as f64
            };
            (0..images).map(of).sum::<f64>() / images as f64
        };
        Ok(scene.blocks.iter().enumerate().map(|(at, block)| block.stays.is_none().then(|| mean(at))).collect())
    }
}
