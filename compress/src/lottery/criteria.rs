//! Criteria: by what blocks are chosen to go, one file each, behind one list.
//!
//! A criterion gives every block a number; the blocks with the lowest (of some: the highest) go in one shot, as in the paper,
//! as long as their stage keeps the least it must. What the numbers are worth is said beside them.

use std::fmt::Debug;

use serde::Serialize;

use super::{Allocation, scene::Scene};
use crate::{Error, Result};

mod random;

mod uniform;

mod snip;

mod grasp;

mod grad_flow;

mod loss_drop;

mod synflow;

mod cka;

mod l1;

mod expectabs;

mod kl;

mod hrank;

/// Which blocks go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Removes {
    /// Those with the lowest score.
    Lowest,
    /// Those with the highest.
    Highest,
}

/// In which state a net is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Before training (the paper's algorithm 2).
    Untrained,
    /// After training (its algorithm 1).
    Trained,
    /// Either.
    Any,
}

/// A way of scoring blocks.
pub trait Criterion: Debug + Sync {
    /// What it is called.
    fn name(&self) -> &'static str;

    /// Its formula, and where it is from.
    fn formula(&self) -> &'static str;

    /// Which blocks go.
    fn removes(&self) -> Removes;

    /// Which weights it is for.
    fn state(&self) -> State {
        State::Untrained
    }

    /// What a reader must know of the scores of this net; none where there is nothing.
    fn label(&self, _scene: &Scene<'_>) -> Option<&'static str> {
        None
    }

    /// The score of each block, in the order of [`Scene::blocks`]; none for blocks that stay.
    ///
    /// # Errors
    /// If the scores of this net can mean nothing, or an output is not finite.
    fn scores(&self, scene: &mut Scene<'_>) -> Result<Vec<Option<f64>>>;
}

/// Every criterion, in the order reports list them.
pub const CRITERIA: &[&dyn Criterion] = &[
    &random::Random,
    &uniform::Uniform,
    &snip::Snip { mean: false },
    &snip::Snip { mean: true },
    &snip::Signed,
    &grasp::Grasp,
    &grad_flow::GradFlow,
    &loss_drop::LossDrop,
    &synflow::Synflow,
    &cka::Cka,
    &l1::L1 { mean: false },
    &l1::L1 { mean: true },
    &expectabs::ExpectAbs,
    &kl::Kl,
    &hrank::HRank,
];

/// The criterion called `name`.
///
/// # Errors
/// If there is none; the message lists those there are.
pub fn find(name: &str) -> Result<&'static dyn Criterion> {
    CRITERIA.iter().copied().find(|criterion| criterion.name() == name).ok_or_else(|| {
        let names: Vec<&str> = CRITERIA.iter().map(|criterion| criterion.name()).collect();
        Error::Recipe(format!("no criterion is called `{name}`; there are {}", names.join(", ")))
    })
}

/// What a criterion made of a net.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scores {
    /// Its name.
    pub criterion: &'static str,
    /// Which blocks go first.
    pub removes: Removes,
    /// What to know of the scores.
    pub label: Option<&'static str>,
    /// One a block, stage by stage; none for blocks that stay.
    pub scores: Vec<Option<f64>>,
    #[serde(skip)]
    places: Vec<(usize, usize)>,
}

/// Scores the blocks of a scene.
///
/// # Errors
/// If the criterion is for the other state of the weights, and as [`Criterion::scores`].
pub fn score(criterion: &dyn Criterion, scene: &mut Scene<'_>) -> Result<Scores> {
    let wrong = match criterion.state() {
        State::Untrained => scene.trained(),
        State::Trained => !scene.trained(),
        State::Any => false,
    };
    if wrong {
        let state = if scene.trained() { "trained" } else { "untrained" };
        return Err(Error::Recipe(format!("`{}` does not score {state} nets", criterion.name())));
    }
    let label = criterion.label(scene);
    let scores = criterion.scores(scene)?;
    if let Some(at) = scores.iter().position(|score| score.is_some_and(|score| !score.is_finite())) {
        let block = &scene.blocks[at];
        return Err(Error::Numeric(format!(
            "the {} score of block {} of stage {} is not finite",
            criterion.name(),
            block.index + 1,
            block.stage + 1
        )));
    }
    let places = scene.blocks.iter().map(|block| (block.stage, block.index)).collect();
    Ok(Scores { criterion: criterion.name(), removes: criterion.removes(), label, scores, places })
}

impl Scores {
    /// The blocks each stage keeps when `removed` go in one shot, of equal scores those that stand first, and no stage falls
    /// below `minimum`.
    ///
    /// # Errors
    /// If so many cannot go.
    pub fn choose(&self, removed: usize, minimum: usize) -> Result<Vec<Vec<usize>>> {
        let stages = self.places.iter().map(|(stage, _)| stage + 1).max().unwrap_or(0);
        let mut kept: Vec<Vec<usize>> = vec![Vec::new(); stages];
        self.places.iter().for_each(|&(stage, block)| kept[stage].push(block));
        let dense: Vec<usize> = kept.iter().map(Vec::len).collect();
        Allocation::all(&dense, removed, minimum)?;
        let sign = if self.removes == Removes::Lowest { 1.0 } else { -1.0 };
        let mut order: Vec<(f64, (usize, usize))> = self
            .scores
            .iter()
            .zip(&self.places)
            .filter_map(|(score, &place)| Some((sign * (*score)?, place)))
            .collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut left = removed;
        for (_, (stage, block)) in order {
            if left > 0 && kept[stage].len() > minimum.max(1) {
                kept[stage].retain(|&index| index != block);
                left -= 1;
            }
        }
        match left {
            0 => Ok(kept),
            _ => Err(Error::Recipe(format!("`{}` has scores for too few blocks to remove {removed}", self.criterion))),
        }
    }
}

/// Sums of one number a weight over the matrices of each block that can go; or their means.
fn of_blocks(scene: &Scene<'_>, values: &[f64], mean: bool) -> Vec<Option<f64>> {
    let of = |block: &super::Block| {
        let inside = || block.matrices.iter().flat_map(|range| &values[range.clone()]);
        let count = if mean { inside().count().max(1) as f64 } else { 1.0 };
        block.stays.is_none().then(|| inside().sum::<f64>() / count)
    };
    scene.blocks.iter().map(of).collect()
}

#[cfg(test)]
mod tests;
