//! The fold's ancestors in training: slots by independent hashes or by hashed tiles, in the same coordinates, so that it is
//! the map from weights to slots alone that differs.
//!
//! A baseline that is only measured may keep its slots in memory, as the published code does; its sizes are counted as if
//! it did not.

use std::ops::Range;

use super::super::{
    baselines::{Baseline, Matrix, Method},
    fold::Words,
};
use crate::{
    Result,
    data::random::Stream,
    nn::{graph::Layout, parametrise::Parametrise},
};

/// What [`Words`] of a seed are drawn for; 1 to 4 are taken.
const SIGNS: u64 = 5;

/// One tensor of a net.
#[derive(Debug)]
struct Piece {
    place: Range<usize>,
    /// The slot of each weight, or where a tensor that does not share begins.
    slots: Vec<u32>,
    /// g λ / √d of each weight.
    factors: Vec<f32>,
    /// g λ of each weight.
    scales: Vec<f32>,
}

/// The matrices of a net over a pool, slots by a hash.
#[derive(Debug)]
pub struct Hashed {
    method: Method,
    slots: usize,
    seed: u64,
    pieces: Vec<Piece>,
    rest: Vec<Range<usize>>,
    used: usize,
}

impl Hashed {
    /// Shares all matrices of `layout` over `slots` slots by `method`; scales are the root mean squares of `weights`.
    ///
    /// # Errors
    /// If the pool is too small for the method's tiles.
    pub fn new(layout: &Layout, weights: &[f32], method: Method, slots: usize, seed: u64) -> Result<Self> {
        let baseline = Baseline::new(method, slots, seed)?;
        let words = Words::new(seed, SIGNS);
        let (mut pieces, mut rest, mut offset) = (Vec::new(), Vec::new(), 0);
        let mut squares = vec![0.0f64; slots];
        for entry in layout.entries() {
            let place = entry.range();
            if entry.shape.len() < 2 {
                rest.push(place);
                continue;
            }
            let values = &weights[place.clone()];
            let sum: f64 = values.iter().map(|&w| f64::from(w).powi(2)).sum();
            let scale = (sum / values.len() as f64).sqrt();
            let columns = values.len() / entry.shape[0];
            let matrix = Matrix { rows: entry.shape[0], columns, offset };
            let at = (0..values.len()).map(|at| baseline.slot(matrix, at / columns, at % columns) as u32);
            let at: Vec<u32> = at.collect();
            at.iter().for_each(|&slot| squares[slot as usize] += scale * scale);
            let signed = (0..values.len()).map(|at| {
                let negative = words.word((offset + at) / 64) >> ((offset + at) % 64) & 1 == 1;
                if negative { -scale as f32 } else { scale as f32 }
            });
            let signed: Vec<f32> = signed.collect();
            pieces.push(Piece { place, slots: at, factors: Vec::new(), scales: signed });
            offset += values.len();
        }
        for piece in &mut pieces {
            let factor = |(scale, &slot): (&f32, &u32)| (f64::from(*scale) / squares[slot as usize].sqrt()) as f32;
            piece.factors = piece.scales.iter().zip(&piece.slots).map(factor).collect();
        }
        let used = squares.iter().filter(|&&square| square > 0.0).count();
        Ok(Self { method, slots, seed, pieces, rest, used })
    }

    /// The share of the slots that some weight reads.
    pub fn load_factor(&self) -> f64 {
        self.used as f64 / self.slots as f64
    }

    /// Fills the shared tensors as a pool of standard normal numbers makes them.
    pub fn begin(&self, weights: &mut [f32], seed: u64) {
        let mut stream = Stream::new(seed, "sharing/pool", 0);
        let pool: Vec<f32> = (0..self.slots).map(|_| stream.normal() as f32).collect();
        for piece in &self.pieces {
            let read = piece.slots.iter().zip(&piece.scales).map(|(&slot, scale)| scale * pool[slot as usize]);
            weights[piece.place.clone()].iter_mut().zip(read).for_each(|(weight, read)| *weight = read);
        }
    }
}

impl Parametrise for Hashed {
    fn identity(&self) -> String {
        format!("hashed by {:?} over {} seed {}", self.method, self.slots, self.seed)
    }

    fn start(&self, weights: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; self.slots + self.rest.iter().map(Range::len).sum::<usize>()];
        self.fold(weights, &mut out);
        out
    }

    fn expand(&self, trainable: &[f32], weights: &mut [f32]) {
        let (pool, mut tail) = trainable.split_at(self.slots);
        for piece in &self.pieces {
            let read = piece.slots.iter().zip(&piece.factors).map(|(&slot, factor)| factor * pool[slot as usize]);
            weights[piece.place.clone()].iter_mut().zip(read).for_each(|(weight, read)| *weight = read);
        }
        for range in &self.rest {
            let (from, left) = tail.split_at(range.len());
            weights[range.clone()].copy_from_slice(from);
            tail = left;
        }
    }

    fn fold(&self, gradient: &[f32], of_trainable: &mut [f32]) {
        let (pool, mut tail) = of_trainable.split_at_mut(self.slots);
        pool.fill(0.0);
        for piece in &self.pieces {
            for ((&slot, factor), value) in piece.slots.iter().zip(&piece.factors).zip(&gradient[piece.place.clone()]) {
                pool[slot as usize] += factor * value;
            }
        }
        for range in &self.rest {
            let (to, left) = tail.split_at_mut(range.len());
            to.copy_from_slice(&gradient[range.clone()]);
            tail = left;
        }
    }
}
