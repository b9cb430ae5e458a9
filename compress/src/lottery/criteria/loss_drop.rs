//! How far the loss moves when a block really goes, either way: SNIP by removal. The lowest go.

use super::{Criterion, Removes, State};
use crate::{Result, lottery::scene::Scene};

#[derive(Debug)]
pub struct LossDrop;

impl Criterion for LossDrop {
    fn name(&self) -> &'static str {
        "loss-drop"
    }

    fn formula(&self) -> &'static str {
        "|L without the block − L|"
    }

    fn removes(&self) -> Removes {
        Removes::Lowest
    }

    fn state(&self) -> State {
        State::Any
    }

    fn scores(&self, scene: &mut Scene<'_>) -> Result<Vec<Option<f64>>> {
        let dense = scene.dense()?.mean;
        scene.without_each(|_, _, _, loss| Ok((loss.mean - dense).abs()))
    }
}
