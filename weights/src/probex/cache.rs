//! One layer of many models in one memory-mapped file: what training reads, instead of a thousand checkpoints an epoch.
//!
//! The file holds f32, form after form (the model itself, then its compressed copies where those are kept), model after
//! model: X − centre (rows, columns), or the factors of an adapter, B (rows, r) then A (r, columns), padded with zeros to
//! the largest rank of the set. It belongs to one run and lies where the caller says.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::{
    damage::Damage,
    layer::{Layer, Values},
    operand::Operand,
    train::Models,
};
use crate::{Checkpoint, Error, Result, Shard, random::Stream};

/// Models read at a time.
const TOGETHER: usize = 64;

/// What is taken off each model.
#[derive(Debug, Clone)]
pub enum Centre {
    /// Nothing.
    Zero,
    /// The mean of the training models.
    Mean,
    /// This (rows · columns).
    Given(Vec<f32>),
}

/// Compressed copies to learn from beside each model.
#[derive(Debug, Clone, Default)]
pub struct Copies {
    /// Which.
    pub damages: Vec<Damage>,
    /// Whether a copy is made anew each time it is asked for ([`Damage::apply_anew`]); else it is made once and kept.
    pub anew: bool,
}

/// A model of a cache: its file, and how it was made small where it was.
pub type Model = (PathBuf, Option<Damage>);

/// The cache.
#[derive(Debug)]
pub struct LayerCache {
    layer: Layer,
    rank: usize,
    models: usize,
    copies: Copies,
    shard: Shard,
    /// What was taken off (rows · columns); empty where nothing was.
    pub centre: Vec<f32>,
    /// Deviation of the elements of the training models after that, about 0.
    pub deviation: f32,
}

/// Reads `layer` of each of `files`, in order.
fn read(layer: &Layer, files: &[PathBuf]) -> Result<Vec<Values>> {
    files.par_iter().map(|file| layer.read(&Checkpoint::open(file)?)).collect()
}

/// The mean of `layer` over `files` (rows · columns).
///
/// # Errors
/// If a model cannot be read, or there are none.
pub fn mean(layer: &Layer, files: &[PathBuf]) -> Result<Vec<f32>> {
    let mut sums = vec![0.0f64; layer.elements()];
    for files in files.chunks(TOGETHER) {
        for values in read(layer, files)? {
            let dense = values.operand().dense((layer.rows, layer.columns));
            sums.iter_mut().zip(&dense).for_each(|(sum, x)| *sum += f64::from(*x));
        }
    }
    Ok(sums.into_iter().map(|sum| (sum / files.len().max(1) as f64) as f32).collect())
}

impl LayerCache {
    /// Writes `layer` of `models` to `place` and maps it. `training` are the numbers of the models whose mean and deviation
    /// count; `copies` are further forms of each model.
    ///
    /// # Errors
    /// If a model cannot be read or `place` cannot be written.
    pub fn build(
        place: &Path,
        layer: &Layer,
        models: &[Model],
        training: &[usize],
        centre: Centre,
        copies: &Copies,
    ) -> Result<Self> {
        let files: Vec<PathBuf> = models.iter().map(|(file, _)| file.clone()).collect();
        let centre = match centre {
            Centre::Zero => Vec::new(),
            Centre::Given(centre) => centre,
            Centre::Mean => {
                let files: Vec<PathBuf> = training.iter().map(|&at| files[at].clone()).collect();
                mean(layer, &files)?
            }
        };
        let mut rank = 0;
        if layer.adapter {
            for files in files.chunks(TOGETHER) {
                let ranks = read(layer, files)?.into_iter().map(|values| match values {
                    Values::LowRank { rank, .. } => rank,
                    Values::Dense(_) => 0,
                });
                rank = ranks.fold(rank, usize::max);
            }
        }
        let fail = |source| Error::io(place, "write the layer cache", source);
        let mut out = BufWriter::new(File::create(place).map_err(fail)?);
        let mut is_training = vec![false; files.len()];
        training.iter().for_each(|&at| is_training[at] = true);
        let (mut squares, mut counted) = (0.0f64, 0usize);
        let kept: &[Damage] = if copies.anew { &[] } else { &copies.damages };
        for form in 0..=kept.len() {
            for (chunk, files) in files.chunks(TOGETHER).enumerate() {
                for (at, values) in read(layer, files)?.into_iter().enumerate() {
                    let at = chunk * TOGETHER + at;
                    let damage = if form == 0 { models[at].1 } else { Some(kept[form - 1]) };
                    let values = prepared(values, layer, rank, &centre, damage);
                    if form == 0 && is_training[at] {
                        squares += operand(&values, layer, rank).squares((layer.rows, layer.columns));
                        counted += layer.elements();
                    }
                    for value in values {
                        out.write_all(&value.to_le_bytes()).map_err(fail)?;
                    }
                }
            }
        }
        out.flush().map_err(fail)?;
        drop(out);
        let shard = Shard::open(place)?;
        let deviation = (squares / counted.max(1) as f64).sqrt() as f32;
        let (models, copies) = (files.len(), copies.clone());
        Ok(Self { layer: layer.clone(), rank, models, copies, shard, centre, deviation })
    }

    /// The layer.
    pub fn layer(&self) -> &Layer {
        &self.layer
    }

    /// One over the deviation: what a probe multiplies X with.
    pub fn factor(&self) -> f32 {
        if self.deviation > 0.0 { 1.0 / self.deviation } else { 1.0 }
    }
}

/// Numbers of one model.
fn size(layer: &Layer, rank: usize) -> usize {
    if layer.adapter { rank * (layer.rows + layer.columns) } else { layer.elements() }
}

fn operand<'a>(values: &'a [f32], layer: &Layer, rank: usize) -> Operand<'a> {
    match layer.adapter {
        false => Operand::Dense(values),
        true => {
            let (up, down) = values.split_at(layer.rows * rank);
            Operand::LowRank { up, down, rank }
        }
    }
}

/// One model as it stands in the file.
fn prepared(values: Values, layer: &Layer, rank: usize, centre: &[f32], damage: Option<Damage>) -> Vec<f32> {
    match values {
        Values::Dense(mut x) => {
            if let Some(damage) = damage {
                damage.apply(&mut x, layer.columns);
            }
            x.iter_mut().zip(centre).for_each(|(x, centre)| *x -= centre);
            x
        }
        Values::LowRank { mut up, mut down, rank: own } => {
            if let Some(damage) = damage {
                damage.apply(&mut up, own);
                damage.apply(&mut down, layer.columns);
            }
            let mut out = vec![0.0; size(layer, rank)];
            for (row, up) in up.chunks_exact(own).enumerate() {
                out[row * rank..row * rank + own].copy_from_slice(up);
            }
            out[layer.rows * rank..][..down.len()].copy_from_slice(&down);
            out
        }
    }
}

/// A model's layer as a probe with this centre reads it.
pub fn centred(values: Values, layer: &Layer, centre: &[f32]) -> Values {
    damaged(values, layer, centre, None)
}

/// The same of a compressed copy.
pub fn damaged(values: Values, layer: &Layer, centre: &[f32], damage: Option<Damage>) -> Values {
    match values {
        Values::Dense(x) => Values::Dense(prepared(Values::Dense(x), layer, 0, centre, damage)),
        Values::LowRank { rank, .. } => {
            let mut up = prepared(values, layer, rank, centre, damage);
            let down = up.split_off(layer.rows * rank);
            Values::LowRank { up, down, rank }
        }
    }
}

impl Models for LayerCache {
    fn len(&self) -> usize {
        self.models
    }

    fn copies(&self) -> usize {
        1 + self.copies.damages.len()
    }

    fn drawn<'a>(&self, at: usize, copy: usize, stream: &mut Stream, out: &'a mut Vec<f32>) -> Option<Operand<'a>> {
        let damage = *self.copies.damages.get(copy.checked_sub(1)?)?;
        if !self.copies.anew {
            return None;
        }
        out.clear();
        match Models::layer(self, at, 0) {
            Operand::Dense(x) => {
                // It is the layer that is made small, not what fine-tuning changed.
                out.extend_from_slice(x);
                out.iter_mut().zip(&self.centre).for_each(|(x, centre)| *x += centre);
                damage.apply_anew(out, self.layer.columns, stream);
                out.iter_mut().zip(&self.centre).for_each(|(x, centre)| *x -= centre);
            }
            // Zeros that pad a factor are among the smallest elements, and what is pruned of the others is less.
            Operand::LowRank { up, down, rank } => {
                out.extend_from_slice(up);
                damage.apply_anew(out, rank, stream);
                let end = out.len();
                out.extend_from_slice(down);
                damage.apply_anew(&mut out[end..], self.layer.columns, stream);
            }
        }
        Some(operand(out, &self.layer, self.rank))
    }

    fn layer(&self, at: usize, copy: usize) -> Operand<'_> {
        let size = size(&self.layer, self.rank);
        let start = (copy * self.models + at) * size;
        let values: &[f32] = bytemuck::cast_slice(&self.shard.bytes()[4 * start..4 * (start + size)]);
        operand(values, &self.layer, self.rank)
    }
}

/// The models of several caches one after the other: trees that are learnt together, each minus its own centre.
pub struct Joined<'a>(pub Vec<&'a LayerCache>);

impl Models for Joined<'_> {
    fn len(&self) -> usize {
        self.0.iter().map(|cache| cache.len()).sum()
    }

    fn copies(&self) -> usize {
        self.0.iter().map(|cache| cache.copies()).min().unwrap_or(1)
    }

    fn drawn<'a>(&self, mut at: usize, copy: usize, stream: &mut Stream, out: &'a mut Vec<f32>) -> Option<Operand<'a>> {
        for cache in &self.0 {
            if at < cache.len() {
                return cache.drawn(at, copy, stream, out);
            }
            at -= cache.len();
        }
        None
    }

    fn layer(&self, mut at: usize, copy: usize) -> Operand<'_> {
        for cache in &self.0 {
            if at < cache.len() {
                return Models::layer(*cache, at, copy);
            }
            at -= cache.len();
        }
        panic!("the joined caches hold {} models", self.len())
    }
}
