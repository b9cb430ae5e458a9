//! By nothing: what every other criterion has to beat.

use super::{Criterion, Removes, State};
use crate::{Result, data::random::Stream, lottery::scene::Scene};

#[derive(Debug)]
pub struct Random;

impl Criterion for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn formula(&self) -> &'static str {
        "uniform in [0, 1)"
    }

    fn removes(&self) -> Removes {
        Removes::Lowest
    }

    fn state(&self) -> State {
        State::Any
    }

    fn scores(&self, scene: &mut Scene<'_>) -> Result<Vec<Option<f64>>> {
        let mut stream = Stream::new(scene.seed, "lottery/random", 0);
        Ok(scene.blocks.iter().map(|block| block.stays.is_none().then(|| stream.unit())).collect())
    }
}
