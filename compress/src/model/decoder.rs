//! A decoder-only transformer that runs from a checkpoint, block by block.

use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use scruple_weights::Checkpoint;

use super::{
    block::load_norm,
    config::DecoderConfig,
    linear::{self, Linear},
    norm::Norm,
    stored::{Storage, load_plain, load_table},
};
use crate::{
    Error, Result,
    kernel::{
        activation::{add, softcap},
        tensor::{from_vec, with_f32},
    },
    sharing::stored::Table,
};

mod branches;

pub use self::branches::Stretch;
pub use super::{
    block::{Block, BlockCache},
    spec::Stage,
};

/// The caches of all blocks.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    blocks: Vec<BlockCache>,
    ids: Vec<u32>,
    /// Length of the sequence whose rotary positions the keys have, where these switch with the length.
    turned_as: usize,
}

impl KvCache {
    /// Positions held.
    pub fn positions(&self) -> usize {
        self.ids.len()
    }

    /// Drops all positions but the first `positions`.
    pub fn truncate(&mut self, positions: usize) {
        if positions < self.ids.len() {
            for block in &mut self.blocks {
                block.truncate(positions, self.ids.len());
            }
            self.ids.truncate(positions);
        }
    }
}

/// The parts of a decoder before and behind its blocks.
#[derive(Debug)]
pub struct Ends {
    /// (vocab, width), as stored.
    pub embedding: Table,
    scale: f32,
    /// Learned positions, with the row of position 0.
    positions: Option<(Table, usize)>,
    project_in: Option<Box<dyn Linear>>,
    norm: Option<Norm>,
    project_out: Option<Box<dyn Linear>>,
    output: Box<dyn Linear>,
    softcap: Option<f32>,
}

impl Ends {
    /// Opens what stands before and behind the blocks of `checkpoint`.
    ///
    /// # Errors
    /// A missing tensor, or one of another shape.
    pub fn load(checkpoint: &Checkpoint, config: &DecoderConfig, storage: Option<&Storage>) -> Result<Self> {
        let (base, hidden, vocab) = (&config.base, config.hidden_size, config.vocab_size);
        let spec = &config.embedding;
        let named = |name: &str| format!("{base}{name}");
        let embedding = load_table(checkpoint, &named(&format!("{}.weight", spec.name)), [vocab, spec.width], storage)?;
        let positions = match &spec.positions {
            None => None,
            Some(positions) => {
                let shape = [config.max_positions + positions.offset, hidden];
                let table = load_table(checkpoint, &named(&format!("{}.weight", positions.name)), shape, storage)?;
                Some((table, positions.offset))
            }
        };
        let project = |name: &str, shape| -> Result<Option<Box<dyn Linear>>> {
            spec.projected.then(|| load_plain(checkpoint, &named(name), shape, storage)).transpose()
        };
        let norm = config.head.norm.as_ref().map(|norm| load_norm(checkpoint, base, norm, hidden)).transpose()?;
        let output = match config.head.tied {
            true => load_plain(checkpoint, &named(spec.name), (vocab, spec.width), storage)?,
            false => linear::load_shaped_from(checkpoint, &config.head.name, (vocab, spec.width, false), storage)?,
        };
        Ok(Self {
            embedding,
            scale: spec.scale,
            positions,
            project_in: project("project_in", (hidden, spec.width))?,
            norm,
            project_out: project("project_out", (spec.width, hidden))?,
            output,
            softcap: config.head.softcap,
        })
    }

    /// Residual stream (tokens, hidden) of token ids at the positions from `first`.
    ///
    /// # Errors
    /// A token outside the vocabulary, a position outside the learned ones.
    pub fn embed(&self, ids: &[u32], first: usize) -> Result<Tensor> {
        self.embed_at(ids, first..first + ids.len())
    }

    /// Residual stream (tokens, hidden) of token ids, each at its own of `positions`.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn embed_at(&self, ids: &[u32], at: impl Iterator<Item = usize> + Clone) -> Result<Tensor> {
        let (vocab, width) = self.embedding.rows();
        expect_ids(self.embedding.file(), ids, vocab)?;
        let mut x = vec![0.0; ids.len() * width];
        for (&id, row) in ids.iter().zip(x.chunks_exact_mut(width)) {
            self.embedding.read_row(id as usize, row)?;
        }
        if self.scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= self.scale);
        }
        let mut x = from_vec(x, (ids.len(), width))?;
        if let Some(project) = &self.project_in {
            x = project.forward(&x)?;
        }
        let Some((table, offset)) = &self.positions else { return Ok(x) };
        let (rows, hidden) = table.rows();
        let end = at.clone().max().map_or(0, |last| last + 1);
        if end + offset > rows {
            return Err(Error::Text(format!(
                "{}: the text reaches position {end}, the model has learned {}; give a shorter text or window",
                table.file().display(),
                rows - offset
            )));
        }
        let mut positions = vec![0.0; ids.len() * hidden];
        for (position, row) in at.zip(positions.chunks_exact_mut(hidden)) {
            table.read_row(position + offset, row)?;
        }
        with_f32(&x, |x| add(&mut positions, x))?;
        from_vec(positions, (ids.len(), hidden))
    }

    /// What the output projection reads, from the last block's stream (rows, hidden).
    pub fn finish(&self, x: &Tensor) -> Result<Tensor> {
        let normed = match &self.norm {
            Some(norm) => norm.forward(x)?,
            None => x.clone(),
        };
        match &self.project_out {
            Some(project) => project.forward(&normed),
            None => Ok(normed),
        }
    }

    /// Logits (rows, vocab) of rows of [`Self::finish`].
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = self.output.forward(hidden)?;
        let Some(cap) = self.softcap else { return Ok(logits) };
        let shape = logits.dims2()?;
        let mut logits = with_f32(&logits, <[f32]>::to_vec)?;
        logits.par_chunks_mut(shape.1).for_each(|row| softcap(row, cap));
        from_vec(logits, shape)
    }
}

/// Leaves of `blocks` those at `kept`, which are in order.
pub(crate) fn keep<T>(blocks: &mut Vec<T>, kept: &[usize]) -> Result<()> {
    let count = blocks.len();
    if kept.is_empty() || kept.iter().any(|&block| block >= count) || kept.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(Error::Model(format!("of {count} blocks, {kept:?} cannot be kept")));
    }
    let mut index = 0..;
    blocks.retain(|_| index.next().is_some_and(|index| kept.binary_search(&index).is_ok()));
    Ok(())
}

/// Refuses token ids that a model of `vocab` tokens does not have; `file` is its weights.
pub fn expect_ids(file: &Path, ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::Text(format!(
            "{}: token id {id} is outside the vocabulary of {vocab}; tokenizer and weights do not belong together",
            file.display()
        ))),
    }
}

/// A whole decoder: embedding, blocks, output projection.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    ends: Ends,
    blocks: Vec<Block>,
    /// The longest sequence that is turned as short ones are, where longer ones are turned otherwise.
    switches_after: Option<usize>,
}

impl Decoder {
    /// Builds the decoder of `checkpoint`: checks that every tensor the configuration asks for is there with its shape.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        Self::open_first(checkpoint, usize::MAX)
    }

    /// As [`Decoder::open`], with the first `blocks` blocks only: what a part of a large model does in a second tells
    /// what the whole does.
    pub fn open_first(checkpoint: &Checkpoint, blocks: usize) -> Result<Self> {
        let storage = Storage::detect(checkpoint)?;
        let pooled = |name: &str| storage.as_ref().is_some_and(|storage| storage.pool_of(name).is_some());
        let config = DecoderConfig::of_names(checkpoint, |name| checkpoint.contains(name) || pooled(name))?;
        let blocks = (0..config.n_blocks.min(blocks))
            .map(|index| Block::load(checkpoint, &config, storage.as_ref(), index))
            .collect::<Result<_>>()?;
        let ends = Ends::load(checkpoint, &config, storage.as_ref())?;
        let ropes = config.blocks.iter().filter_map(|block| block.attention.rope.as_ref()?.switches_after());
        Ok(Self { switches_after: ropes.min(), config, ends, blocks })
    }

    /// Refuses a dense `checkpoint` that lacks a tensor `config` asks for, or has it in another shape. Blocks are opened
    /// one at a time, so the memory this takes does not grow with the model.
    pub fn check(checkpoint: &Checkpoint, config: &DecoderConfig) -> Result<()> {
        for index in 0..config.n_blocks {
            Block::load(checkpoint, config, None, index)?;
        }
        Ends::load(checkpoint, config, None).map(drop)
    }

    /// Refuses token ids that this model does not have.
    pub fn expect_ids(&self, ids: &[u32]) -> Result<()> {
        expect_ids(self.ends.embedding.file(), ids, self.config.vocab_size)
    }

    /// What was read from `config.json`.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The blocks, first to last.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Takes out every block that is not among `kept`, given in order: block `i` is then what `kept[i]` was.
    ///
    /// # Errors
    /// If `kept` is empty, not in order, or names a block that there is not.
    pub fn keep_blocks(&mut self, kept: &[usize]) -> Result<()> {
        keep(&mut self.blocks, kept)?;
        keep(&mut self.config.blocks, kept)?;
        self.config.n_blocks = kept.len();
        Ok(())
    }

    /// Gives the norm called `name` before a half of block `index` another weight, as it would be stored.
    pub(crate) fn set_norm(&mut self, index: usize, name: &str, weight: &[f32]) {
        self.blocks[index].set_norm(name, weight, None);
    }

    /// Residual stream (tokens, hidden) that the first block reads, of `ids` at the positions from `first`.
    pub fn embed(&self, ids: &[u32], first: usize) -> Result<Tensor> {
        self.ends.embed(ids, first)
    }

    /// The last block's stream, normed: what [`Decoder::logits`] reads.
    pub fn finish(&self, x: &Tensor) -> Result<Tensor> {
        self.ends.finish(x)
    }

    /// Logits (rows, vocab) of rows of [`Decoder::hidden`].
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.ends.logits(hidden)
    }

    /// Last hidden states (tokens, hidden), normed, of `ids` following what is in `cache`.
    pub fn hidden(&self, ids: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        let past = cache.positions();
        let all = past + ids.len();
        if past > 0 && self.switches(cache.turned_as, all) {
            // From here on the whole sequence is turned otherwise, and every cached number with it.
            let mut whole = std::mem::take(cache).ids;
            whole.extend_from_slice(ids);
            return Ok(self.hidden(&whole, cache)?.narrow(0, past, ids.len())?);
        }
        cache.turned_as = all;
        cache.blocks.resize_with(self.blocks.len(), BlockCache::default);
        let mut x = self.embed(ids, past)?;
        for (block, cache) in self.blocks.iter().zip(&mut cache.blocks) {
            x = block.forward(&x, cache)?;
        }
        cache.ids.extend_from_slice(ids);
        self.finish(&x)
    }

    /// Whether sequences of these two lengths are turned by different rotary positions; such share no keys and values.
    pub fn switches(&self, a: usize, b: usize) -> bool {
        self.switches_after.is_some_and(|longest| (a <= longest) != (b <= longest))
    }

    /// Hidden states of a sequence on its own; no cache is kept beyond one block.
    pub fn hidden_once(&self, ids: &[u32]) -> Result<Tensor> {
        let mut x = self.embed(ids, 0)?;
        for block in &self.blocks {
            x = block.forward(&x, &mut BlockCache::default())?;
        }
        self.finish(&x)
    }

    /// Logits of the last of `ids`, following what is in `cache`.
    pub fn next_logits(&self, ids: &[u32], cache: &mut KvCache) -> Result<Vec<f32>> {
        let hidden = self.hidden(ids, cache)?;
        let last = hidden.narrow(0, hidden.dim(0)? - 1, 1)?;
        with_f32(&self.logits(&last)?, <[f32]>::to_vec)
    }

    /// Bits of the blocks' linears on disk, with scales and indices, and their number of weights.
    pub fn linear_bits(&self) -> (u64, u64) {
        let all = self.blocks.iter().flat_map(Block::all_linears);
        all.fold((0, 0), |(bits, weights), linear| {
            let (out_features, in_features) = linear.shape();
            (bits + linear.storage_bits(), weights + (out_features * in_features) as u64)
        })
    }

    /// Where the tensors of this model live.
    pub fn device(&self) -> &Device {
        &Device::Cpu
    }
}
