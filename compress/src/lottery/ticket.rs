//! The net that is left: a shallower (or thinner) description, and the weights it takes from the dense net.

use super::blocks::Stages;
use crate::{
    Error, Result,
    nn::{
        Spec, Weights,
        graph::{Graph, Layout},
    },
};

/// A net made of some blocks of a dense one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// What it is.
    pub spec: Spec,
    /// The dense net's blocks it keeps, stage by stage, in order.
    pub kept: Vec<Vec<usize>>,
    stages: Stages,
}

impl Ticket {
    /// The ticket of `dense` that keeps the blocks `kept` of each stage.
    ///
    /// # Errors
    /// If a block does not exist, stands twice or out of order, or is one that stays and is left out.
    pub fn keeping(dense: &Spec, kept: Vec<Vec<usize>>) -> Result<Self> {
        let stages = Stages::of(dense)?;
        let refuse = |what: String| Err(Error::Recipe(what));
        if kept.len() != stages.blocks.len() {
            return refuse(format!("blocks of {} stages are kept, the net has {}", kept.len(), stages.blocks.len()));
        }
        for (stage, (kept, &count)) in kept.iter().zip(&stages.blocks).enumerate() {
            let rising = kept.is_sorted_by(|a, b| a < b);
            if kept.is_empty() || !rising || kept.iter().any(|&block| block >= count) {
                return refuse(format!("stage {} keeps {kept:?}, expected rising numbers below {count}", stage + 1));
            }
        }
        let graph = dense.graph()?;
        for block in stages.list(&graph) {
            if let Some(why) = block.stays.filter(|_| !kept[block.stage].contains(&block.index)) {
                return refuse(format!("block {} of stage {} cannot go: {why}", block.index + 1, block.stage + 1));
            }
        }
        let spec = stages.with(dense, &kept);
        Ok(Self { spec, kept, stages })
    }

    /// The ticket of `dense` without the one block.
    ///
    /// # Errors
    /// As [`Self::keeping`].
    pub fn without(dense: &Spec, stage: usize, block: usize) -> Result<Self> {
        let mut kept: Vec<Vec<usize>> = Stages::of(dense)?.blocks.iter().map(|&count| (0..count).collect()).collect();
        if let Some(kept) = kept.get_mut(stage) {
            kept.retain(|&index| index != block);
        }
        Self::keeping(dense, kept)
    }

    /// Values of the ticket's tensors from values of the dense net's, such as weights, gradients or moments of one layout.
    fn take(&self, from: (&Layout, &[f32]), to: &Layout) -> Result<Vec<f32>> {
        let mut out = Vec::with_capacity(to.len());
        for entry in to.entries() {
            let name = match self.stages.place(&entry.name) {
                Some((stage, block, rest)) => {
                    format!("{}{rest}", self.stages.prefix(stage, self.kept[stage][block]))
                }
                None => entry.name.clone(),
            };
            match from.0.entry(&name) {
                Some(found) if found.shape == entry.shape => out.extend_from_slice(&from.1[found.range()]),
                _ => {
                    return Err(Error::Recipe(format!(
                        "the dense net has no tensor `{name}` of shape {:?} for the ticket's `{}`",
                        entry.shape, entry.name
                    )));
                }
            }
        }
        Ok(out)
    }

    /// The ticket's part of the dense net's weights.
    ///
    /// # Errors
    /// If the weights are another net's.
    pub fn weights(&self, dense: &Graph, weights: &Weights) -> Result<Weights> {
        let graph = self.spec.graph()?;
        Ok(Weights {
            values: self.take((dense.layout(), &weights.values), graph.layout())?,
            running: self.take((dense.running(), &weights.running), graph.running())?,
        })
    }

    /// The ticket's part of one number a weight of the dense net.
    ///
    /// # Errors
    /// If the numbers are another net's.
    pub fn part(&self, dense: &Graph, values: &[f32]) -> Result<Vec<f32>> {
        self.take((dense.layout(), values), self.spec.graph()?.layout())
    }
}
