//! The calibration tokens on their way through the model, block by block.
//!
//! A block is walked through once: at each [`Stage`] the inputs of the next group of linears are formed from what the
//! stage before has left on disk, so no linear is run twice (peers run each block twice). Between the stages the caller
//! may replace the linears that have just been looked at, and what follows is calibrated on the replacement.
//!
//! Where a method asks what the inputs would have been without compression ([`Needs::cross`]), the same tokens go
//! through the dense blocks beside the compressed ones.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use scruple_weights::Checkpoint;

use crate::{
    Error, Result,
    calibration::{ActivationStore, CalibrationSet},
    gather::{Inputs, gather},
    methods::{GroupStats, Needs},
    model::{decoder::Stage, staged::StagedBlock},
    plan::Network,
};

/// One pass of the calibration tokens: the residual stream before and after a block, and what lies between its stages.
#[derive(Debug)]
struct Stream {
    /// The stream a block reads, and the one it writes; they change roles after each block.
    residual: [ActivationStore; 2],
    heads: PathBuf,
    hidden: PathBuf,
}

/// A [`Stream`] at one block.
struct Passage<'a> {
    input: &'a ActivationStore,
    output: &'a ActivationStore,
    heads: ActivationStore,
    hidden: ActivationStore,
}

impl Stream {
    fn open(scratch: &Path, prefix: &str, width: usize) -> Result<Self> {
        let file = |name: &str| scratch.join(format!("{prefix}{name}"));
        let store = |name: &str| ActivationStore::open(file(name), width);
        Ok(Self {
            residual: [store("residual-0")?, store("residual-1")?],
            heads: file("heads"),
            hidden: file("hidden"),
        })
    }

    /// The stream that block `index` reads.
    fn input(&self, index: usize) -> &ActivationStore {
        &self.residual[index % 2]
    }

    fn at(&self, index: usize, block: &dyn StagedBlock) -> Result<Passage<'_>> {
        let store = |path: &PathBuf, stage| ActivationStore::open(path.clone(), block.token_width(stage));
        Ok(Passage {
            input: self.input(index),
            output: &self.residual[(index + 1) % 2],
            heads: store(&self.heads, Stage::AttentionOutput)?,
            hidden: store(&self.hidden, Stage::MlpOutput)?,
        })
    }
}

impl Passage<'_> {
    /// What the linears of `block` at `stage` read of the sequence in `rows`; what the stages behind need is kept.
    fn inputs(&self, block: &dyn StagedBlock, stage: Stage, rows: std::ops::Range<usize>) -> Result<Inputs> {
        let groups = block.groups(stage);
        let first = rows.start;
        match stage {
            Stage::Attention => Ok(Inputs::shared(block.attention_input(&self.input.read(rows)?)?)),
            Stage::AttentionOutput => {
                let h = block.attention_input(&self.input.read(rows)?)?;
                let heads = block.attention(&h)?;
                self.heads.write(first, &heads)?;
                Ok(Inputs::shared(heads))
            }
            Stage::Mlp => {
                let before = self.input.read(rows.clone())?;
                let after = block.attention_output(&before, &self.heads.read(rows)?)?;
                self.output.write(first, &after)?;
                let h = block.mlp_input(if block.is_parallel() { &before } else { &after })?;
                let routing = block.routing(&h)?;
                Inputs::routed(h, routing.as_ref(), groups, false)
            }
            Stage::MlpOutput => {
                let h = self.mlp_input(block, rows)?;
                let routing = block.routing(&h)?;
                let between = block.mlp(&h, routing.as_ref())?;
                self.hidden.write(first, &between)?;
                Inputs::routed(between, routing.as_ref(), groups, true)
            }
        }
    }

    fn mlp_input(&self, block: &dyn StagedBlock, rows: std::ops::Range<usize>) -> Result<Tensor> {
        let stream = if block.is_parallel() { self.input } else { self.output };
        block.mlp_input(&stream.read(rows)?)
    }

    /// Adds what the MLP makes of the sequence in `rows` to the stream.
    fn finish(&self, block: &dyn StagedBlock, rows: std::ops::Range<usize>) -> Result<()> {
        let routing = match block.groups(Stage::MlpOutput) {
            1 => None,
            _ => block.routing(&self.mlp_input(block, rows.clone())?)?,
        };
        let between = self.hidden.read(rows.clone())?;
        let x = block.mlp_output(&self.output.read(rows.clone())?, &between, routing.as_ref())?;
        self.output.write(rows.start, &x)
    }
}

/// The walk of a calibration set through a checkpoint.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    checkpoint: &'a Checkpoint,
    network: &'a Network,
    set: &'a CalibrationSet,
    stream: Stream,
    /// The pass through the dense blocks.
    dense: Option<Stream>,
    /// Where blocks run, if not by the kernels.
    device: Option<Device>,
    next: usize,
}

/// What is done at a stage of a block: called with the block, whose linears may be replaced, the stage, and the
/// statistics of each group of its linears.
pub(crate) type Visit<'a> = dyn FnMut(&mut dyn StagedBlock, Stage, Vec<GroupStats>) -> Result<()> + 'a;

impl<'a> Walk<'a> {
    /// A walk of `set` that keeps its activations in the folder `scratch`; `with_dense` sends the tokens through the dense
    /// blocks as well. Nothing is run before [`Self::start`] or [`Self::skip_to`].
    pub fn open(
        checkpoint: &'a Checkpoint,
        network: &'a Network,
        set: &'a CalibrationSet,
        scratch: &Path,
        with_dense: bool,
    ) -> Result<Self> {
        let stream = |prefix| Stream::open(scratch, prefix, network.hidden_size());
        let dense = with_dense.then(|| stream("dense-")).transpose()?;
        Ok(Self { checkpoint, network, set, stream: stream("")?, dense, device: None, next: 0 })
    }

    /// The same walk with blocks on `device`.
    pub fn on(self, device: Option<Device>) -> Self {
        Self { device, ..self }
    }

    /// Embeds the tokens: the first block's input.
    pub fn start(&mut self) -> Result<()> {
        let embed = self.network.embedder(self.checkpoint)?;
        for (sample, ids) in self.set.ids.chunks(self.set.seq_len).enumerate() {
            let x = embed(ids)?;
            for stream in self.streams() {
                stream.input(0).write(sample * self.set.seq_len, &x)?;
            }
        }
        self.checkpoint.release_all();
        Ok(())
    }

    fn streams(&self) -> impl Iterator<Item = &Stream> {
        std::iter::once(&self.stream).chain(&self.dense)
    }

    /// SHA-256 of the next block's inputs.
    pub fn digest(&self) -> Result<String> {
        let digests: Vec<String> =
            self.streams().map(|stream| stream.input(self.next).digest(self.set.tokens())).collect::<Result<_>>()?;
        Ok(digests.join("+"))
    }

    /// Goes on at block `next`; `expected` is the digest of its inputs, where they should be there.
    pub fn skip_to(&mut self, next: usize, expected: Option<&str>) -> Result<()> {
        self.next = next;
        match expected {
            Some(expected) if next < self.network.blocks() && self.digest().ok().as_deref() != Some(expected) => {
                Err(Error::Recipe(format!(
                    "{}: the activations that the interrupted run left for block {next} are damaged; delete its work \
                     folder, which this file lies in, to start over",
                    self.stream.input(next).path().display()
                )))
            }
            _ => Ok(()),
        }
    }

    /// The sequences that are led through.
    pub fn set(&self) -> &'a CalibrationSet {
        self.set
    }

    /// The stream that the next block reads.
    pub fn input(&self) -> &ActivationStore {
        self.stream.input(self.next)
    }

    /// The block that comes next, dense.
    pub fn load(&self) -> Result<Box<dyn StagedBlock>> {
        match &self.device {
            None => self.network.load_block(self.checkpoint, self.next),
            Some(device) => self.network.load_block_on(self.checkpoint, self.next, device),
        }
    }

    /// Leads the tokens through `block`, the next: gathers at each stage what `needs` says of it, calls `visit`, and
    /// leaves the block's outputs, with the linears as `visit` has left them, as the inputs of the one behind.
    pub fn block(
        &mut self,
        mut block: Box<dyn StagedBlock>,
        needs: &dyn Fn(Stage) -> Needs,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        let index = self.next;
        let passage = self.stream.at(index, &*block)?;
        let dense = match &self.dense {
            Some(stream) => {
                let block = self.load()?;
                Some((stream.at(index, &*block)?, block))
            }
            None => None,
        };
        let rows = |first: usize| first..first + self.set.seq_len;
        for stage in Stage::ALL {
            let (features, groups) = (block.in_features(stage), block.groups(stage));
            let stats = gather(self.set, features, groups, needs(stage), self.device.is_some(), |first| {
                let mut inputs = passage.inputs(&*block, stage, rows(first))?;
                if let Some((passage, block)) = &dense {
                    inputs = inputs.beside(passage.inputs(&**block, stage, rows(first))?);
                }
                Ok(inputs)
            })?;
            visit(&mut *block, stage, stats)?;
        }
        for sample in 0..self.set.n_samples() {
            let rows = rows(sample * self.set.seq_len);
            passage.finish(&*block, rows.clone())?;
            if let Some((passage, block)) = &dense {
                passage.finish(&**block, rows)?;
            }
        }
        self.release(index);
        self.next = index + 1;
        Ok(())
    }

    /// Gives the mapped pages of block `index` back.
    fn release(&self, index: usize) {
        let Some(path) = self.network.block_path(self.checkpoint, index) else { return };
        let prefix = format!("{path}.");
        for view in self.checkpoint.tensors().filter(|view| view.name().starts_with(&prefix)) {
            view.release();
        }
    }
}
