//! By depth alone: stages are made equal, the latest blocks of the deepest stage first. It knows neither weights nor images.

use super::{Criterion, Removes, State};
use crate::{Result, lottery::scene::Scene};

#[derive(Debug)]
pub struct Uniform;

impl Criterion for Uniform {
    fn name(&self) -> &'static str {
        "uniform"
    }

    fn formula(&self) -> &'static str {
        "the block's number in its stage"
    }

    fn removes(&self) -> Removes {
        Removes::Highest
    }

    fn state(&self) -> State {
        State::Any
    }

    fn scores(&self, scene: &mut Scene<'_>) -> Result<Vec<Option<f64>>> {
        Ok(scene.blocks.iter().map(|block| block.stays.is_none().then_some(block.index as f64)).collect())
    }
}
