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

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::{
        kernel::{
            tensor::{from_vec, with_f32},
            test_values::uniform,
        },
        model::linear::DenseLinear,
    };

    /// Largest difference to a sum in f64, relative to the largest of the Hessian: sums of two dozen products in f32.
    const MAX_ROUNDING: f64 = 1e-5;

    /// What replaced linears change at least, as a share of the Hessian: they are other linears altogether.
    const MIN_LOST: f64 = 0.01;

    /// `x` as it comes back from the disk.
    fn kept(x: &Tensor) -> Tensor {
        let values = with_f32(x, |x| x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect()).unwrap();
        from_vec(values, x.dims2().unwrap()).unwrap()
    }

    /// What the linears of `block` read at its stages of the sequence `x`, and what it leaves of it.
    fn through(block: &dyn StagedBlock, x: &Tensor) -> ([Tensor; 4], Tensor) {
        let read = block.attention_input(x).unwrap();
        let heads = block.attention(&read).unwrap();
        let after = block.attention_output(x, &kept(&heads)).unwrap();
        let of_mlp = block.mlp_input(&after).unwrap();
        // From here on the stream has been on the disk.
        let after = kept(&after);
        let hidden = block.mlp(&block.mlp_input(&after).unwrap(), None).unwrap();
        let out = kept(&block.mlp_output(&after, &kept(&hidden), None).unwrap());
        ([read, heads, of_mlp, hidden], out)
    }

    fn wide(x: &Tensor) -> Vec<f64> {
        with_f32(x, |x| x.iter().map(|&x| f64::from(x)).collect()).unwrap()
    }

    /// Puts another linear in the place of the last at `stage` of a block.
    fn replace_last(block: &mut dyn StagedBlock, network: &Network, stage: Stage) {
        let linears = network.decoder().unwrap().blocks[0].at(stage);
        let (last, shape) = (linears.len() - 1, linears[linears.len() - 1].shape());
        let weight: Vec<f32> = uniform(shape.0 * shape.1, 7).into_iter().map(|w| 0.3 * w).collect();
        block.replace(stage, last, Box::new(DenseLinear::from_f32(&weight, shape, None).unwrap()));
    }

    /// `2/N Σ a bᵀ` of one sequence's rows, added to `sum`.
    fn add_products(sum: &mut [f64], a: &[f64], b: &[f64], sequences: usize) {
        let features = (sum.len() as f64).sqrt() as usize;
        for (a, b) in a.chunks_exact(features).zip(b.chunks_exact(features)) {
            for (at, sum) in sum.iter_mut().enumerate() {
                *sum += 2.0 / sequences as f64 * a[at / features] * b[at % features];
            }
        }
    }

    #[test]
    fn what_compression_has_lost_is_told_by_the_same_tokens_in_the_dense_blocks() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/decoders/llama");
        let checkpoint = Checkpoint::open(&path).unwrap();
        let network = Network::of(&checkpoint).unwrap();
        let (samples, seq_len) = (3, 7);
        let ids = (0..samples * seq_len).map(|id| (id * 13 % 64) as u32).collect();
        let set = CalibrationSet::from_ids(ids, &path, samples, seq_len).unwrap();

        let scratch = tempfile::tempdir().unwrap();
        let mut walk = Walk::open(&checkpoint, &network, &set, scratch.path(), true).unwrap();
        walk.start().unwrap();
        let needs = |_: Stage| Needs { hessian: true, cross: true, ..Needs::default() };
        let mut found = Vec::new();
        for index in 0..2 {
            let block = walk.load().unwrap();
            let mut visit = |block: &mut dyn StagedBlock, stage: Stage, stats: Vec<GroupStats>| {
                found.extend(stats);
                // The first block is compressed, the second is left as it is.
                if index == 0 {
                    replace_last(block, &network, stage);
                }
                Ok(())
            };
            walk.block(block, &needs, &mut visit).unwrap();
        }
        assert_eq!(found.len(), 8);

        let embed = network.embedder(&checkpoint).unwrap();
        let mut streams: Vec<[Tensor; 2]> = Vec::new();
        for ids in set.ids.chunks(seq_len) {
            let x = kept(&embed(ids).unwrap());
            streams.push([x.clone(), x]);
        }
        for (index, found) in found.chunks(4).enumerate() {
            let dense = network.load_block(&checkpoint, index).unwrap();
            let mut compressed = network.load_block(&checkpoint, index).unwrap();
            if index == 0 {
                Stage::ALL.into_iter().for_each(|stage| replace_last(&mut *compressed, &network, stage));
            }
            let zeros = || found.iter().map(|stats| vec![0.0; stats.in_features.pow(2)]).collect::<Vec<_>>();
            let (mut hessians, mut crosses) = (zeros(), zeros());
            for [x_dense, x] in &mut streams {
                let (dense_read, dense_out) = through(&*dense, x_dense);
                let (read, out) = through(&*compressed, x);
                let sums = hessians.iter_mut().zip(&mut crosses);
                for ((dense, x), (hessian, cross)) in dense_read.iter().zip(&read).zip(sums) {
                    let (dense, x) = (wide(dense), wide(x));
                    let lost: Vec<f64> = dense.iter().zip(&x).map(|(dense, x)| dense - x).collect();
                    add_products(hessian, &x, &x, samples);
                    add_products(cross, &lost, &x, samples);
                }
                (*x_dense, *x) = (dense_out, out);
            }
            for (stage, stats) in found.iter().enumerate() {
                let largest = |values: &[f64]| values.iter().fold(0f64, |most, x| most.max(x.abs()));
                let (hessian, cross) = (stats.hessian.as_ref().unwrap(), stats.cross.as_ref().unwrap());
                let size = largest(&hessians[stage]);
                for (name, found, expected) in
                    [("Hessian", hessian, &hessians[stage]), ("cross products", cross, &crosses[stage])]
                {
                    assert_eq!(found.len(), expected.len());
                    for (&found, expected) in found.iter().zip(expected) {
                        let apart = (f64::from(found) - expected).abs();
                        assert!(
                            apart <= MAX_ROUNDING * size,
                            "block {index}, {:?}, {name}: {found} for {expected}",
                            Stage::ALL[stage]
                        );
                    }
                }
                // What q, k and v of the first block read nothing has changed yet.
                let lost = largest(&crosses[stage]);
                match (index, stage) {
                    (0, 0) => assert!(cross.iter().all(|&x| x == 0.0)),
                    _ => assert!(lost > MIN_LOST * size, "block {index}, {:?}: {lost} of {size}", Stage::ALL[stage]),
                }
            }
        }
    }
}
