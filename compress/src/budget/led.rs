//! What a narrower set of linears costs the whole model: a block's outputs with the set at that width are led through the
//! dense blocks behind it, and what comes out at the end is held against what the dense model makes of the same tokens.

use std::{fs::File, os::unix::fs::FileExt, path::Path, path::PathBuf};

use candle_core::Tensor;
use rayon::prelude::*;
use scruple_weights::Checkpoint;

use crate::{
    Result,
    calibration::CalibrationSet,
    kernel::{
        activation::{kl_divergence, log_sum_exp},
        tensor::{from_vec, with_f32},
    },
    model::{decoder::Ends, staged::StagedBlock},
    plan::Network,
};

/// Tokens a model is tried on.
const TOKENS: usize = 256;

/// Tokens of one sequence, of a decoder: what stands behind them is nothing to those before.
const SEQUENCE: usize = 128;

/// Of so many tokens the predictions of one are compared: the head of a small model costs as much as its blocks.
const EVERY: usize = 4;

/// Which set of linears a stream is of, and how many bits they have in it.
pub(super) type Narrowed = (usize, u32);

/// The dense streams at the block that has been reached, and those of narrowed sets, in a file.
#[derive(Debug)]
pub(super) struct Led {
    /// Of each sequence (tokens, hidden).
    dense: Vec<Tensor>,
    /// (tokens, hidden) of one sequence.
    shape: (usize, usize),
    path: PathBuf,
    file: File,
    narrowed: Vec<Narrowed>,
}

impl Led {
    /// The first tokens of `set`, embedded; streams go to a file in the folder `scratch`.
    pub(super) fn start(
        checkpoint: &Checkpoint,
        network: &Network,
        set: &CalibrationSet,
        scratch: &Path,
    ) -> Result<Self> {
        // Tokens of an encoder read those behind them too, so that its sequences stay whole.
        let tokens = if network.encoder().is_some() { set.seq_len } else { set.seq_len.min(SEQUENCE) };
        let count = TOKENS.div_ceil(tokens).min(set.n_samples());
        let embed = network.embedder(checkpoint)?;
        let dense = set.ids.chunks(set.seq_len).take(count).map(|ids| embed(&ids[..tokens])).collect::<Result<_>>()?;
        let path = scratch.join("led");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(|source| scruple_weights::Error::io(&path, "create the file of streams", source))?;
        Ok(Self { dense, shape: (tokens, network.hidden_size()), path, file, narrowed: Vec::new() })
    }

    /// Numbers of one stream.
    fn len(&self) -> usize {
        self.dense.len() * self.shape.0 * self.shape.1
    }

    fn read(&self, number: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0f32; self.len()];
        let offset = (4 * number * self.len()) as u64;
        self.file
            .read_exact_at(bytemuck::cast_slice_mut(&mut values), offset)
            .map_err(|source| scruple_weights::Error::io(&self.path, "read a stream", source))?;
        Ok(values)
    }

    fn write(&self, number: usize, values: &[f32]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let offset = (4 * number * self.len()) as u64;
        self.file.write_all_at(bytes, offset).map_err(|source| {
            let what = format!("write {} bytes of streams", bytes.len());
            scruple_weights::Error::write(&self.path, what, bytes.len() as u64, source)
        })?;
        Ok(())
    }

    /// What `block` makes of the dense streams, sequence by sequence, as one list.
    pub(super) fn outputs(&self, block: &dyn StagedBlock) -> Result<Vec<f32>> {
        through(block, &self.dense)
    }

    /// Leads all streams through the dense `block`, of whose outputs of the dense ones `outputs` are.
    pub(super) fn pass(&mut self, block: &dyn StagedBlock, outputs: &[f32]) -> Result<()> {
        (0..self.narrowed.len()).into_par_iter().try_for_each(|number| {
            let sequences = self.sequences(&self.read(number)?)?;
            self.write(number, &through(block, &sequences)?)
        })?;
        self.dense = self.sequences(outputs)?;
        Ok(())
    }

    /// Adds the stream of `narrowed`, which leaves the block that has been passed `apart` from the dense one.
    pub(super) fn add(&mut self, narrowed: Narrowed, apart: &[f32]) -> Result<()> {
        let mut values = Vec::with_capacity(self.len());
        for dense in &self.dense {
            with_f32(dense, |x| values.extend_from_slice(x))?;
        }
        values.iter_mut().zip(apart).for_each(|(x, apart)| *x += apart);
        self.write(self.narrowed.len(), &values)?;
        self.narrowed.push(narrowed);
        Ok(())
    }

    fn sequences(&self, values: &[f32]) -> Result<Vec<Tensor>> {
        values.chunks_exact(self.shape.0 * self.shape.1).map(|one| from_vec(one.to_vec(), self.shape)).collect()
    }

    /// Behind the last block, what each narrowed set costs: the mean KL divergence of predictions from the dense model's in
    /// nats; of an encoder the mean of `‖Δy‖² / ‖y‖²` over its tokens.
    pub(super) fn losses(&self, checkpoint: &Checkpoint, network: &Network) -> Result<Vec<(Narrowed, f64)>> {
        let hidden = self.shape.1;
        let rows = |sequences: &[Tensor], every: usize| -> Result<Vec<f32>> {
            let mut kept = Vec::new();
            for x in sequences {
                with_f32(x, |x| {
                    x.chunks_exact(hidden).skip(every - 1).step_by(every).for_each(|row| kept.extend(row))
                })?;
            }
            Ok(kept)
        };
        let of_all = |loss: &(dyn Fn(&[Tensor]) -> Result<f64> + Sync)| -> Result<Vec<(Narrowed, f64)>> {
            let one =
                |(number, narrowed): (usize, &Narrowed)| Ok((*narrowed, loss(&self.sequences(&self.read(number)?)?)?));
            self.narrowed.par_iter().enumerate().map(one).collect()
        };
        let Network::Decoder(config) = network else {
            let expected = rows(&self.dense, 1)?;
            return of_all(&|sequences| Ok(share_lost(&expected, &rows(sequences, 1)?, hidden)));
        };
        let ends = Ends::load(checkpoint, config, None)?;
        let logits = |sequences: &[Tensor]| -> Result<(Vec<f32>, usize)> {
            let kept = rows(sequences, EVERY)?;
            let shape = (kept.len() / hidden, hidden);
            let logits = ends.logits(&ends.finish(&from_vec(kept, shape)?)?)?;
            Ok((with_f32(&logits, <[f32]>::to_vec)?, logits.dim(1)?))
        };
        let (p, vocab) = logits(&self.dense)?;
        let p_sums: Vec<f64> = p.par_chunks_exact(vocab).map(log_sum_exp).collect();
        of_all(&|sequences| {
            let (q, _) = logits(sequences)?;
            let each = p.chunks_exact(vocab).zip(&p_sums).zip(q.chunks_exact(vocab));
            let sum: f64 = each.map(|((p, &p_sum), q)| kl_divergence(p, p_sum, q, log_sum_exp(q)).max(0.0)).sum();
            Ok(sum / p_sums.len().max(1) as f64)
        })
    }
}

/// The mean over the tokens of `‖Δy‖² / ‖y‖²`.
pub(super) fn share_lost(expected: &[f32], found: &[f32], width: usize) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let token = |(expected, found): (&[f32], &[f32])| {
        let whole: f64 = expected.iter().map(|&y| square(y)).sum();
        let lost: f64 = expected.iter().zip(found).map(|(y, x)| square(x - y)).sum();
        if whole > 0.0 { lost / whole } else { 0.0 }
    };
    let tokens = expected.len() / width.max(1);
    expected.chunks_exact(width).zip(found.chunks_exact(width)).map(token).sum::<f64>() / tokens.max(1) as f64
}

fn through(block: &dyn StagedBlock, sequences: &[Tensor]) -> Result<Vec<f32>> {
    let mut outputs = Vec::new();
    for x in sequences {
        with_f32(&run(block, x)?, |y| outputs.extend_from_slice(y))?;
    }
    Ok(outputs)
}

/// What `block` makes of the stream `x` (tokens, hidden) of one sequence.
fn run(block: &dyn StagedBlock, x: &Tensor) -> Result<Tensor> {
    let heads = block.attention(&block.attention_input(x)?)?;
    let after = block.attention_output(x, &heads)?;
    let h = block.mlp_input(if block.is_parallel() { x } else { &after })?;
    let routing = block.routing(&h)?;
    let hidden = block.mlp(&h, routing.as_ref())?;
    block.mlp_output(&after, &hidden, routing.as_ref())
}
