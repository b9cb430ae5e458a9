//! What calibration asks of a block: the inputs of its linears, stage by stage, whatever the network.

use std::fmt;

use candle_core::Tensor;

use super::{block, experts::Routing, linear::Linear, spec::Stage};
use crate::Result;

/// A block whose linears read their inputs at the [`Stage`]s. All tensors are (tokens, width) of one sequence.
pub trait StagedBlock: fmt::Debug + Send + Sync {
    /// Width of the input at `stage`; of one expert's.
    fn in_features(&self, stage: Stage) -> usize;

    /// Numbers a token has at `stage`: the input's width, that of all its experts where they differ.
    fn token_width(&self, stage: Stage) -> usize;

    /// Experts whose inputs at `stage` are gathered apart; 1 where all linears read the same.
    fn groups(&self, stage: Stage) -> usize;

    /// The MLP reads what attention reads, not what it leaves.
    fn is_parallel(&self) -> bool;

    /// Input of q, k and v, from the stream.
    fn attention_input(&self, x: &Tensor) -> Result<Tensor>;

    /// The heads' outputs, from the input of q, k and v.
    fn attention(&self, h: &Tensor) -> Result<Tensor>;

    /// The stream after attention.
    fn attention_output(&self, x: &Tensor, heads: &Tensor) -> Result<Tensor>;

    /// Input of the MLP's first linears, from the stream it reads.
    fn mlp_input(&self, x: &Tensor) -> Result<Tensor>;

    /// Where the tokens of the MLP's input go; `None` without experts.
    fn routing(&self, h: &Tensor) -> Result<Option<Routing>>;

    /// Input of the MLP's last linears, from that of its first.
    fn mlp(&self, h: &Tensor, routing: Option<&Routing>) -> Result<Tensor>;

    /// The stream after the MLP.
    fn mlp_output(&self, x: &Tensor, hidden: &Tensor, routing: Option<&Routing>) -> Result<Tensor>;

    /// Puts `linear` in the place of number `index` of those at `stage`.
    fn replace(&mut self, stage: Stage, index: usize, linear: Box<dyn Linear>);

    /// The block of a decoder, if it is one.
    fn as_decoder(&mut self) -> Option<&mut block::Block> {
        None
    }
}

impl StagedBlock for block::Block {
    fn in_features(&self, stage: Stage) -> usize {
        self.spec().in_features(stage)
    }

    fn token_width(&self, stage: Stage) -> usize {
        self.spec().token_width(stage)
    }

    fn groups(&self, stage: Stage) -> usize {
        self.spec().groups(stage)
    }

    fn is_parallel(&self) -> bool {
        self.spec().parallel
    }

    fn attention_input(&self, x: &Tensor) -> Result<Tensor> {
        self.attention_input(x)
    }

    fn attention(&self, h: &Tensor) -> Result<Tensor> {
        self.attention(h, &mut block::BlockCache::default())
    }

    fn attention_output(&self, x: &Tensor, heads: &Tensor) -> Result<Tensor> {
        self.attention_output(x, heads)
    }

    fn mlp_input(&self, x: &Tensor) -> Result<Tensor> {
        self.mlp_input(x)
    }

    fn routing(&self, h: &Tensor) -> Result<Option<Routing>> {
        self.routing(h)
    }

    fn mlp(&self, h: &Tensor, routing: Option<&Routing>) -> Result<Tensor> {
        self.mlp(h, routing)
    }

    fn mlp_output(&self, x: &Tensor, hidden: &Tensor, routing: Option<&Routing>) -> Result<Tensor> {
        self.mlp_output(x, hidden, routing)
    }

    fn replace(&mut self, stage: Stage, index: usize, linear: Box<dyn Linear>) {
        self.replace(stage, index, linear);
    }

    fn as_decoder(&mut self) -> Option<&mut block::Block> {
        Some(self)
    }
}
