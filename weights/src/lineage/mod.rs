//! How two models descend from each other: what changed between two checkpoints, tensor by tensor and as a whole.
//!
//! [`diff`] goes through these steps, one a file. Both models are lists of arrays that give rows of numbers however they
//! are stored (`side`). Tensors are paired by name, by aligned blocks, as parts of fused ones, or by their values
//! (`matching`). A pair is walked through in pieces (`pair`), first for counts and moments (`stats`), then for the order of
//! its rows (`arrange`), for factors (`scale`), grids (`grid`), masks (`mask`) and the rank of the difference (`rank`), until
//! one explains it (`change`). At last the parts make a sentence (`verdict`).
//!
//! Memory is a few pieces of a tensor a thread, besides packed tensors, which are decoded whole, one a thread; the
//! result is the same for any number of threads.

mod arrange;
mod change;
pub mod family;
mod grid;
mod mask;
mod matching;
mod pair;
mod rank;
mod scale;
mod side;
mod stats;
mod verdict;

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::Serialize;

pub use change::{Change, Measured, Rounding};
pub use grid::{Grid, Group, Side};
pub use mask::{Mask, NOfM};
pub use matching::{Blocks, Matched};
pub use pair::Arrangement;
pub use rank::Spectrum;
pub use scale::{Rescaling, Scaled};
pub use side::{Array, Model, Packed};
pub use verdict::{Verdict, ranges};

use crate::Result;

/// Elements from which a tensor has all threads for itself.
const LARGE: usize = 1 << 22;

/// What became of one tensor.
#[derive(Debug, Clone, Serialize)]
pub struct TensorDiff {
    /// Its name in A.
    pub a: String,
    /// Its name in B.
    pub b: String,
    /// How the two were found to belong together.
    pub matched: Matched,
    /// How B's rows lie in A.
    pub arrangement: Arrangement,
    /// How A stores it.
    pub stored_a: String,
    /// How B stores it.
    pub stored_b: String,
    /// A's shape.
    pub shape_a: Vec<usize>,
    /// B's shape.
    pub shape_b: Vec<usize>,
    /// The stack of blocks it belongs to, without prefixes; empty outside of blocks.
    pub stack: String,
    /// Its block in B.
    pub block: Option<usize>,
    /// What it is in its block, in Hugging Face's words.
    pub module: String,
    /// What happened to it.
    pub change: Change,
    /// Figures of the difference; none for equal bytes and for shapes that cannot be laid side by side.
    #[serde(flatten)]
    pub measured: Option<Measured>,
    /// Bytes that differ although all values are equal as f32: digits beyond f32, wide integers, signs of zeros.
    #[serde(skip_serializing_if = "none")]
    pub bytes_differ: usize,
}

fn none(n: &usize) -> bool {
    *n == 0
}

/// A tensor that only one side has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lone {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// Sizes of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Tensors, a packed one counted once.
    pub tensors: usize,
    /// Elements of them.
    pub parameters: u64,
}

/// What changed between two models.
#[derive(Debug, Clone, Serialize)]
pub struct Diff {
    /// The whole in a sentence.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Nothing differs: the same names, types, shapes and values, and no byte of a value.
    pub identical: bool,
    /// Sizes of A.
    pub a: Size,
    /// Sizes of B.
    pub b: Size,
    /// Stacks of blocks that both have, and how B's come from A's.
    pub blocks: Vec<Blocks>,
    /// Every pair, in B's order.
    pub tensors: Vec<TensorDiff>,
    /// What only A has.
    pub missing: Vec<Lone>,
    /// What only B has.
    pub added: Vec<Lone>,
}

/// Compares `b` with `a`. `progress` is told the number of pairs done and of all, from several threads.
///
/// # Errors
/// If an array cannot be read or decoded.
pub fn diff(a: &Model, b: &Model, progress: &(dyn Fn(usize, usize) + Sync)) -> Result<Diff> {
    let matching = matching::find(a, b)?;
    let keys = matching::keys(b);
    let (done, all) = (AtomicUsize::new(0), matching.pairs.len());
    let compare = |pair: &matching::Match| -> Result<TensorDiff> {
        let (x, y) = (&a.arrays()[pair.a], &b.arrays()[pair.b]);
        let compared = change::compare(x, y, pair.arrangement.clone())?;
        progress(done.fetch_add(1, Ordering::Relaxed) + 1, all);
        let key = &keys[pair.b];
        Ok(TensorDiff {
            a: x.name().into(),
            b: y.name().into(),
            matched: pair.how,
            arrangement: compared.arrangement,
            stored_a: x.stored().into(),
            stored_b: y.stored().into(),
            shape_a: x.shape().into(),
            shape_b: y.shape().into(),
            stack: key.stack.clone(),
            block: key.block,
            module: key.kind.clone(),
            change: compared.change,
            measured: compared.measured,
            bytes_differ: compared.bytes_differ,
        })
    };
    // Large tensors one after the other, each by all threads; then the small ones side by side.
    let large = |pair: &matching::Match| a.arrays()[pair.a].elements().max(b.arrays()[pair.b].elements()) >= LARGE;
    let mut found: Vec<Option<TensorDiff>> = matching.pairs.iter().map(|_| None).collect();
    for (slot, pair) in found.iter_mut().zip(&matching.pairs).filter(|(_, pair)| large(pair)) {
        *slot = Some(compare(pair)?);
    }
    found.par_iter_mut().zip(&matching.pairs).filter(|(_, pair)| !large(pair)).try_for_each(|(slot, pair)| {
        *slot = Some(compare(pair)?);
        Ok(())
    })?;
    let tensors: Vec<TensorDiff> = found.into_iter().flatten().collect();
    let lone = |model: &Model, of: &[usize]| -> Vec<Lone> {
        let lone = |array: &Array| Lone { name: array.name().into(), shape: array.shape().into() };
        of.iter().map(|&at| lone(&model.arrays()[at])).collect()
    };
    let (missing, added) = (lone(a, &matching.missing), lone(b, &matching.added));
    let same = |tensor: &TensorDiff| {
        let same_place = tensor.a == tensor.b && tensor.shape_a == tensor.shape_b;
        tensor.change == Change::Equal && tensor.bytes_differ == 0 && same_place
    };
    let identical = missing.is_empty() && added.is_empty() && tensors.iter().all(same);
    let size = |model: &Model| Size { tensors: model.arrays().len(), parameters: model.parameters() };
    let (size_a, size_b) = (size(a), size(b));
    let verdict = verdict::of(&tensors, &matching.blocks, &missing, &added, size_a, size_b);
    Ok(Diff { verdict, identical, a: size_a, b: size_b, blocks: matching.blocks, tensors, missing, added })
}
