//! The residual blocks of a net: where they stand, what they hold, and which can go.

use std::ops::Range;

use crate::{
    Error, Result,
    nn::{Architecture, Spec, graph::Graph},
};

/// How many blocks each stage of a net has, and how their tensors are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// `layer{stage + 1}.{block}.`; the first block of a stage changes the shape, or is counted with those that do.
    ResNet,
    /// `blocks.{block}.`
    ResidualMlp,
}

/// The stages of a residual net.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stages {
    /// Blocks of each.
    pub blocks: Vec<usize>,
    family: Family,
}

/// One residual block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its stage, from 0 on.
    pub stage: usize,
    /// Its number in the stage, from 0 on.
    pub index: usize,
    /// Why it cannot go; absent where it can.
    pub stays: Option<&'static str>,
    /// Where its matrices and convolutions lie among the net's weights, vectors left out.
    pub matrices: Vec<Range<usize>>,
}

impl Stages {
    /// The stages of `spec`.
    ///
    /// # Errors
    /// If it has no residual blocks.
    pub fn of(spec: &Spec) -> Result<Self> {
        match &spec.architecture {
            Architecture::ResNet { blocks, .. } => Ok(Self { blocks: blocks.clone(), family: Family::ResNet }),
            Architecture::ResidualMlp { blocks, .. } => Ok(Self { blocks: vec![*blocks], family: Family::ResidualMlp }),
            Architecture::Mlp { .. } | Architecture::Cnn { .. } => Err(Error::Recipe(
                "the net has no residual blocks, so no layer of it can go; give a resnet or a residual-mlp".into(),
            )),
        }
    }

    /// What the names of the tensors of a block begin with.
    pub fn prefix(&self, stage: usize, block: usize) -> String {
        match self.family {
            Family::ResNet => format!("layer{}.{block}.", stage + 1),
            Family::ResidualMlp => format!("blocks.{block}."),
        }
    }

    /// Where a tensor's name stands: its stage, its block, and what is left of the name; none outside of blocks.
    pub fn place<'a>(&self, name: &'a str) -> Option<(usize, usize, &'a str)> {
        let (stage, rest) = match self.family {
            Family::ResNet => {
                let (stage, rest) = name.strip_prefix("layer")?.split_once('.')?;
                (stage.parse::<usize>().ok()?.checked_sub(1)?, rest)
            }
            Family::ResidualMlp => (0, name.strip_prefix("blocks.")?),
        };
        let (block, rest) = rest.split_once('.')?;
        Some((stage, block.parse().ok()?, rest))
    }

    /// `spec` with so many blocks a stage; inner widths are those of the blocks in `kept`.
    pub(super) fn with(&self, spec: &Spec, kept: &[Vec<usize>]) -> Spec {
        let mut spec = spec.clone();
        match &mut spec.architecture {
            Architecture::ResNet { blocks, inner, .. } => {
                *blocks = kept.iter().map(Vec::len).collect();
                for (widths, kept) in inner.iter_mut().zip(kept) {
                    *widths = kept.iter().map(|&block| widths[block]).collect();
                }
            }
            Architecture::ResidualMlp { blocks, .. } => *blocks = kept[0].len(),
            Architecture::Mlp { .. } | Architecture::Cnn { .. } => {}
        }
        spec
    }

    /// Every block, stage by stage. The first of each stage of a residual net of convolutions stays: it makes the stage's
    /// shape, or (in the first stage) is what is counted as doing so in the released code of the paper's authors.
    pub fn list(&self, graph: &Graph) -> Vec<Block> {
        let mut list = Vec::new();
        for (stage, &count) in self.blocks.iter().enumerate() {
            for index in 0..count {
                let prefix = self.prefix(stage, index);
                let inside = graph.layout().entries().iter().filter(|entry| entry.name.starts_with(&prefix));
                let matrices = inside.filter(|entry| entry.shape.len() > 1).map(|entry| entry.range()).collect();
                let first = self.family == Family::ResNet && index == 0;
                let stays = first.then_some("the first block of a stage makes its shape");
                list.push(Block { stage, index, stays, matrices });
            }
        }
        list
    }
}
