//! Many sequences in one run: rows laid end to end, so that every linear is one large product, with attention sequence by
//! sequence and nothing padded.
//!
//! Sequences that begin alike are *branches* of one path: in the order of their tokens each follows the first so many
//! positions of the one before it, and what they share is run once. Keys and values live no longer than the block they
//! belong to is being run, but for the paths a caller asks to keep.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Block, BlockCache, Decoder, KvCache};
use crate::{
    Error, Result,
    kernel::tensor::with_f32,
    model::{block::Rows, experts::take_rows, rope::Turns},
};

/// Rows whose attention one task works on, roughly. A task first copies the keys its branches follow, so it should have
/// some more to do.
const ROWS_PER_TASK: usize = 256;

/// Tokens of a sequence that follow the first `start` positions of the path. The path begins as what the caller holds;
/// each stretch cuts it there and goes on from there, so that it is the path of the next.
#[derive(Debug, Clone, Copy)]
pub struct Stretch<'a> {
    /// Positions of the path that stay.
    pub start: usize,
    /// The tokens that follow them.
    pub ids: &'a [u32],
    /// Length of the whole sequence these tokens are a part of: rotary positions that switch with the length go by it.
    pub whole: usize,
    /// Give back the path as it is behind these tokens.
    pub keep: bool,
}

impl Stretch<'_> {
    fn end(&self) -> usize {
        self.start + self.ids.len()
    }
}

/// Where a piece of a path lies.
#[derive(Debug, Clone)]
enum Piece {
    /// Among the positions held.
    Held(Range<usize>),
    /// Among the rows of this run.
    Run(Range<usize>),
}

impl Piece {
    fn range(&mut self) -> &mut Range<usize> {
        match self {
            Self::Held(range) | Self::Run(range) => range,
        }
    }
}

/// Cuts a path to `positions`.
fn cut(path: &mut Vec<Piece>, positions: usize) {
    let mut at = 0;
    path.retain_mut(|piece| {
        let range = piece.range();
        range.end = range.end.min(range.start + positions.saturating_sub(at));
        at += range.len();
        range.start < range.end
    });
}

/// Stretches whose attention one thread works on, one after the other.
struct Task {
    stretches: Range<usize>,
    /// The path that the first of them follows.
    path: Vec<Piece>,
}

/// The rows of each stretch, and the tasks.
fn plan(stretches: &[Stretch<'_>], held: usize) -> (Vec<Range<usize>>, Vec<Task>) {
    let mut path = vec![Piece::Held(0..held)];
    let (mut rows, mut tasks) = (Vec::with_capacity(stretches.len()), Vec::<Task>::new());
    let (mut row, mut in_task) = (0, usize::MAX);
    for (index, stretch) in stretches.iter().enumerate() {
        cut(&mut path, stretch.start);
        match tasks.last_mut().filter(|_| in_task < ROWS_PER_TASK) {
            Some(task) => task.stretches.end += 1,
            None => {
                tasks.push(Task { stretches: index..index + 1, path: path.clone() });
                in_task = 0;
            }
        }
        let range = row..row + stretch.ids.len();
        path.push(Piece::Run(range.clone()));
        (row, in_task) = (range.end, in_task + range.len());
        rows.push(range);
    }
    (rows, tasks)
}

impl Decoder {
    /// Last hidden states (rows.len(), hidden), normed, of those of the stretches' tokens that `rows` names, counted over
    /// all stretches; and the paths to keep, in the order of their stretches. `path` is what the first stretch follows.
    ///
    /// The numbers are those of [`Decoder::hidden`] on each sequence, but for the rounding of sums whose order depends on
    /// how many rows a product has (those of a few rows go another way than those of many). They depend on the stretches,
    /// not on the number of threads.
    ///
    /// # Errors
    /// If a stretch follows more than there is, or, where rotary positions switch with the length, a path that was turned
    /// for sequences of the other kind; a token outside the vocabulary, a position outside the learned ones.
    pub fn hidden_branches(
        &self,
        stretches: &[Stretch<'_>],
        path: &KvCache,
        rows: &[usize],
    ) -> Result<(Tensor, Vec<KvCache>)> {
        let mut kept = self.follow(stretches, path)?;
        let ids: Vec<u32> = stretches.iter().flat_map(|stretch| stretch.ids).copied().collect();
        let places = stretches.iter().flat_map(|s| (s.start..s.end()).map(|position| (position, s.whole)));
        let mut x = self.ends.embed_at(&ids, places.clone().map(|(position, _)| position))?;
        let mut turns = Turns::new(places.collect());
        let (ranges, tasks) = plan(stretches, path.positions());
        let nothing = BlockCache::default();
        for (index, block) in self.blocks.iter().enumerate() {
            let held = path.blocks.get(index).unwrap_or(&nothing);
            let mut ends = Vec::new();
            x = block.forward_rows(&x, &mut turns, |rows, out| {
                ends = attend(stretches, &ranges, &tasks, held, rows, out);
            })?;
            kept.iter_mut().zip(ends).for_each(|(kept, end)| kept.blocks.push(end));
        }
        let chosen = with_f32(&x, |x| take_rows(x, self.config.hidden_size, rows.iter().copied()))??;
        Ok((self.finish(&chosen)?, kept))
    }

    /// The kept paths' tokens, after checking that each stretch can follow what is there.
    fn follow(&self, stretches: &[Stretch<'_>], path: &KvCache) -> Result<Vec<KvCache>> {
        let (mut ids, mut turned_as) = (path.ids.clone(), path.turned_as);
        let mut kept = Vec::new();
        for stretch in stretches {
            let Stretch { start, whole, .. } = *stretch;
            if start > ids.len() || stretch.ids.is_empty() || whole < stretch.end() {
                return Err(Error::Model(format!(
                    "{} tokens of a sequence of {whole} were to follow the first {start} of {} positions",
                    stretch.ids.len(),
                    ids.len()
                )));
            }
            if start > 0 && self.switches(turned_as, whole) {
                return Err(Error::Model(format!(
                    "a sequence of {whole} tokens was to follow one of {turned_as}, whose rotary positions are others"
                )));
            }
            ids.truncate(start);
            ids.extend_from_slice(stretch.ids);
            turned_as = whole;
            if stretch.keep {
                kept.push(KvCache { blocks: Vec::with_capacity(self.blocks.len()), ids: ids.clone(), turned_as });
            }
        }
        Ok(kept)
    }

    /// Last hidden states, normed, of the last token of each of `ids`, (sequences, hidden); each sequence follows what is
    /// in its own cache.
    ///
    /// # Errors
    /// A token outside the vocabulary, a position outside the learned ones.
    ///
    /// # Panics
    /// If there are not as many caches as sequences, or a sequence has no tokens.
    pub fn last_hidden_batch(&self, ids: &[&[u32]], caches: &mut [&mut KvCache]) -> Result<Tensor> {
        assert_eq!(ids.len(), caches.len());
        let mut whole: Vec<Vec<u32>> = Vec::with_capacity(ids.len());
        for (ids, cache) in ids.iter().zip(&mut *caches) {
            let all = cache.positions() + ids.len();
            let mut run = Vec::new();
            if cache.positions() > 0 && self.switches(cache.turned_as, all) {
                // From here on the whole sequence is turned otherwise, and every cached number with it.
                run = std::mem::take(&mut **cache).ids;
            }
            run.extend_from_slice(ids);
            cache.turned_as = all;
            cache.blocks.resize_with(self.blocks.len(), BlockCache::default);
            whole.push(run);
        }
        let flat: Vec<u32> = whole.iter().flatten().copied().collect();
        let places = whole.iter().zip(&*caches).flat_map(|(ids, cache)| {
            let (first, all) = (cache.positions(), cache.turned_as);
            (first..first + ids.len()).map(move |position| (position, all))
        });
        let places: Vec<(usize, usize)> = places.collect();
        let mut x = self.ends.embed_at(&flat, places.iter().map(|&(position, _)| position))?;
        let mut turns = Turns::new(places);
        for (index, block) in self.blocks.iter().enumerate() {
            let mut blocks: Vec<&mut BlockCache> = caches.iter_mut().map(|cache| &mut cache.blocks[index]).collect();
            x = block.forward_rows(&x, &mut turns, |rows, out| extend(&whole, &mut blocks, rows, out))?;
        }
        let mut last = Vec::with_capacity(whole.len());
        let mut row = 0;
        for (ids, cache) in whole.iter().zip(caches) {
            row += ids.len();
            last.push(row - 1);
            cache.ids.extend_from_slice(ids);
        }
        let chosen = with_f32(&x, |x| take_rows(x, self.config.hidden_size, last.into_iter()))??;
        self.finish(&chosen)
    }

    /// Residual stream (tokens, hidden) that the first block reads, of whole `sequences` one after the other.
    ///
    /// # Errors
    /// A token outside the vocabulary, a sequence longer than the learned positions.
    pub fn embed_sequences(&self, sequences: &[&[u32]]) -> Result<Tensor> {
        let ids: Vec<u32> = sequences.iter().copied().flatten().copied().collect();
        let positions: Vec<usize> = sequences.iter().flat_map(|ids| 0..ids.len()).collect();
        self.ends.embed_at(&ids, positions.iter().copied())
    }

    /// Block `index` over whole sequences one after the other, of `lengths`: residual stream (rows, hidden) in and out.
    /// `turns` are those of the same rows.
    pub(crate) fn run_block(&self, index: usize, x: &Tensor, turns: &mut Turns, lengths: &[usize]) -> Result<Tensor> {
        self.blocks[index].forward_rows(x, turns, |rows, out| {
            let width = rows.heads.n_heads * rows.heads.head_dim;
            let mut first = 0;
            let ranges: Vec<Range<usize>> = lengths
                .iter()
                .map(|length| {
                    first += length;
                    first - length..first
                })
                .collect();
            let outs = parts(out, width, lengths.iter().copied());
            outs.into_par_iter().zip(ranges).for_each(|(out, range)| {
                let mut cache = BlockCache::with_room(rows.heads, range.len());
                cache.push(rows, range.clone());
                cache.attend(rows, range, out);
            });
        })
    }

    /// The rotations of whole sequences of `lengths` one after the other.
    pub(crate) fn turns(lengths: &[usize]) -> Turns {
        Turns::new(lengths.iter().flat_map(|&length| (0..length).map(move |position| (position, length))).collect())
    }

    /// Bytes of keys and values that one position takes, all blocks together.
    pub fn cache_bytes_per_position(&self) -> usize {
        let width = |block: &Block| block.spec().attention.n_kv_heads * block.spec().attention.head_dim;
        self.blocks.iter().map(|block| 2 * width(block) * size_of::<f32>()).sum()
    }
}

/// `out` cut into the parts of `lengths` rows.
fn parts(mut out: &mut [f32], width: usize, lengths: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    let part = |length| {
        let (part, rest) = std::mem::take(&mut out).split_at_mut(length * width);
        out = rest;
        part
    };
    lengths.map(part).collect()
}

/// Heads' outputs of all stretches, by one block; and the paths to keep, of that block.
fn attend(
    stretches: &[Stretch<'_>],
    ranges: &[Range<usize>],
    tasks: &[Task],
    held: &BlockCache,
    rows: &Rows,
    out: &mut [f32],
) -> Vec<BlockCache> {
    let heads = rows.heads;
    let width = heads.n_heads * heads.head_dim;
    let lengths = tasks.iter().map(|task| ranges[task.stretches.clone()].iter().map(Range::len).sum());
    let outs = parts(out, width, lengths);
    let run = |(task, mut out): (&Task, &mut [f32])| {
        let of_task = &stretches[task.stretches.clone()];
        let longest = of_task.iter().map(Stretch::end).max().unwrap_or(0);
        let mut path = BlockCache::with_room(heads, longest);
        for piece in &task.path {
            match piece {
                Piece::Held(positions) => path.copy(held, heads, positions.clone()),
                Piece::Run(range) => path.push(rows, range.clone()),
            }
        }
        let mut kept = Vec::new();
        let mut held = of_task[0].start;
        for (stretch, range) in of_task.iter().zip(&ranges[task.stretches.clone()]) {
            path.truncate(stretch.start, held);
            path.push(rows, range.clone());
            held = stretch.end();
            let (part, rest) = std::mem::take(&mut out).split_at_mut(range.len() * width);
            path.attend(rows, range.clone(), part);
            out = rest;
            if stretch.keep {
                kept.push(path.clone());
            }
        }
        kept
    };
    let kept: Vec<Vec<BlockCache>> = tasks.par_iter().zip(outs).map(run).collect();
    kept.into_iter().flatten().collect()
}

/// Heads' outputs of sequences that each follow a cache, to which they are added.
fn extend(sequences: &[Vec<u32>], caches: &mut [&mut BlockCache], rows: &Rows, out: &mut [f32]) {
    let width = rows.heads.n_heads * rows.heads.head_dim;
    let outs = parts(out, width, sequences.iter().map(Vec::len));
    let mut first = 0;
    let ranges: Vec<Range<usize>> = sequences
        .iter()
        .map(|ids| {
            first += ids.len();
            first - ids.len()..first
        })
        .collect();
    caches.par_iter_mut().zip(outs).zip(ranges).for_each(|((cache, out), range)| {
        cache.push(rows, range.clone());
        cache.attend(rows, range, out);
    });
}
