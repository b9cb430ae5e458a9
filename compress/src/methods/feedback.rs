//! Error feedback in LDLQ form: quantises the columns of a weight one after the other, each at the value that makes up
//! best for the errors of those before it.
//!
//! With `H = V Vᵀ`, `V` upper triangular, `tr(Δ H Δᵀ) = ‖(W − Q) V‖²` (Chee et al. 2023, "QuIP", section 3.2). Column k
//! of `(W − Q) V` is `V_kk (F_k − Q_k)` with
//!
//! ```text
//!     F_k = W_k + Σ_{i<k} (W_i − Q_i) V_ik / V_kk
//! ```
//!
//! so `Q_k = quantise(F_k)`, and the objective is had for nothing: `Σ_k V_kk² ‖F_k − Q_k‖²`.
//!
//! Rows are independent. They are taken in tiles of 48, turned so that a position's 48 rows lie side by side, in the
//! reversed positions of [`Factor`]: position r depends on the positions above it, `L[s][r]` standing for `V_ik`. A
//! column block of positions first receives what all earlier blocks owe it, as one matrix product; inside it, eight
//! positions at a time do the same on a small scale.

//!
//! Pruning is the same walk with zero in place of the nearest code. SparseGPT (Frantar and Alistarh 2023, algorithm 1)
//! factors `H⁻¹ = Uᵀ U` with `U` upper, updates the weights to come, and scores a weight by `w² / U_jj²`. Since
//! `H = V Vᵀ` gives `H⁻¹ = V⁻ᵀ V⁻¹`, `U` is `V⁻¹` and `U_jj = 1 / V_jj`; its updated weight at column j is `F_j`. Weights
//! that stay take the value `F_j` itself, at no cost to the objective, and those that go cost exactly their score,
//! `(F_j V_jj)²`. A mask that is chosen ahead, for a block or a group of columns, looks at the weights as they stand when
//! it is reached: the `F` that the recursion gives if nothing from there on has an error of its own.

mod part;

use rayon::prelude::*;

use self::part::{Grids, Kept, Lanes, Part, catch_up_part, mark_part, prune_part, quantise_part};
use super::prepared::Prepared;
use crate::grid::{self, GridSpec};
use crate::kernel::cholesky::Factor;
use crate::kernel::tile::{Aligned, Columns, DEPTH, Kernel, Rows, SLIVER, TILE};
use crate::mask::{self, Amount, NOfM, Threshold};
use crate::{Error, Result};

/// Where a position's scale and zero point come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Groups<'a> {
    /// Fitted before, on the original weight: (rows, groups), by the column's place in the checkpoint.
    Static { scales: &'a [f32], zeros: &'a [u8] },
    /// Fitted when a group is reached, on the weights as they then stand; groups follow the processing order.
    Fresh,
}

/// The grid that weights are rounded to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid<'a> {
    pub(super) spec: &'a GridSpec,
    /// Columns that share a scale.
    pub(super) group_size: usize,
    /// Where scales come from.
    pub(super) groups: Groups<'a>,
}

/// What [`solve`] needs to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Problem<'a> {
    /// The factor of the Hessian with its ridge.
    factor: &'a Factor,
    /// `order[p]` is the column processed p-th.
    order: &'a [u32],
    /// What was added to the diagonal of the Hessian, by column.
    ridge: &'a [f32],
    /// What weights that stay are rounded to; nothing for plain numbers.
    grid: Option<Grid<'a>>,
    /// What is set to zero on the way: a share of every column block, over all rows, or all but some of each group of a
    /// row, for which columns must be processed from left to right. With static groups only.
    pub(super) prune: Option<Amount>,
    /// Weights that are zero stay zero.
    pub(super) keep_zeros: bool,
    /// Columns finished before all later ones are brought up to date, except with fresh groups and wide patterns.
    column_block: usize,
}

/// What a weight has become.
#[derive(Debug)]
pub(super) struct Solved {
    /// With a grid, (rows, columns), in the checkpoint's column order; else empty.
    pub(super) codes: Vec<u8>,
    /// (rows, groups), of fresh groups; else empty.
    pub(super) scales: Vec<f32>,
    /// (rows, groups), of fresh groups; else empty.
    pub(super) zeros: Vec<u8>,
    /// `tr(Δ H Δᵀ)`, without the ridge.
    pub(super) error: f64,
}

/// Tiles of rows one unit of work takes through all columns: enough to repay reading the factor.
const MAX_CHUNK_TILES: usize = 16;

/// Solves for `weight` (rows, n): codes with a grid; without one the weight itself becomes the result.
///
/// Fails with [`Error::Numeric`] where a fresh group's scale lies beyond its type, naming row and group.
pub(super) fn solve(weight: &mut [f32], problem: &Problem<'_>) -> Result<Solved> {
    let n = problem.order.len();
    let rows = weight.len() / n;
    let groups = problem.grid_groups();
    let fresh = problem.is_fresh();
    let mut codes = vec![0; if problem.grid.is_some() { rows * n } else { 0 }];
    let mut scales = vec![0.0; if fresh { rows * groups } else { 0 }];
    let mut zeros = vec![0; if fresh { rows * groups } else { 0 }];
    let chunk_rows = rows.div_ceil(TILE).div_ceil(8).clamp(1, MAX_CHUNK_TILES) * TILE;
    // Fixed pieces of whole rows, each with its own part of what is made.
    let mut pieces = Vec::new();
    {
        let (mut codes, mut scales, mut zeros) = (&mut codes[..], &mut scales[..], &mut zeros[..]);
        for (chunk, weight) in weight.chunks_mut(chunk_rows * n).enumerate() {
            let of_codes = if problem.grid.is_some() { weight.len() } else { 0 };
            let of_scales = if fresh { weight.len() / n * groups } else { 0 };
            pieces.push(Piece {
                first_row: chunk * chunk_rows,
                codes: codes.split_off_mut(..of_codes).unwrap_or_default(),
                scales: scales.split_off_mut(..of_scales).unwrap_or_default(),
                zeros: zeros.split_off_mut(..of_scales).unwrap_or_default(),
                weight,
            });
        }
    }
    let error = match problem.prune {
        Some(Amount::Share(share)) => in_step(problem, pieces, rows, share)?,
        _ => {
            let errors: Vec<Result<f64>> =
                pieces.into_par_iter().map(|piece| Chunk::new(problem, piece).solve()).collect();
            let mut error = 0.0;
            for part in errors {
                error += part?;
            }
            error
        }
    };
    if !error.is_finite() {
        return Err(Error::Numeric("the error feedback left the range of f32".to_owned()));
    }
    Ok(Solved { codes, scales, zeros, error })
}

/// Takes all rows through the columns together, block by block, `share` of each block going; gives `tr(Δ H Δᵀ)`.
fn in_step(problem: &Problem<'_>, pieces: Vec<Piece<'_>>, rows: usize, share: f64) -> Result<f64> {
    let n = problem.order.len();
    let mut chunks: Vec<Chunk<'_>> = pieces.into_par_iter().map(|piece| Chunk::new(problem, piece)).collect();
    let Some(chunk_tiles) = chunks.first().map(Chunk::tiles) else { return Ok(0.0) };
    let tiles = rows.div_ceil(TILE);
    let mut marks = vec![[0.0; TILE]; tiles * problem.column_block.min(n)];
    let (mut error, mut end) = (0.0, n);
    while end > 0 {
        let start = problem.start(end);
        let marks = &mut marks[..tiles * (end - start)];
        let parts = marks.par_chunks_mut(chunk_tiles * (end - start));
        chunks.par_iter_mut().zip(parts).for_each(|(chunk, marks)| {
            chunk.collect_owed(start, end);
            chunk.score(start, end, marks);
        });
        mark_smallest(marks, rows, end - start, mask::budget(share, rows * (end - start)));
        let parts = marks.par_chunks(chunk_tiles * (end - start));
        let errors: Vec<f64> = chunks
            .par_iter_mut()
            .zip(parts)
            .map(|(chunk, marks)| chunk.finish(start, end, Some(marks)))
            .collect::<Result<_>>()?;
        error += errors.into_iter().sum::<f64>();
        end = start;
    }
    Ok(error)
}

/// Turns the scores of a block, (tiles, width, 48), into marks: 0 for the `k` smallest of its first `rows` rows, 1 for the
/// others. Ties go by row, then by column: from the last position down.
fn mark_smallest(scores: &mut [Lanes], rows: usize, width: usize, k: usize) {
    let Threshold { bits, mut ties } = mask::threshold(scores.as_flattened(), k);
    for row in 0..if ties > 0 { rows } else { 0 } {
        for position in (0..width).rev() {
            let score = &mut scores[row / TILE * width + position][row % TILE];
            if ties > 0 && mask::size_bits(*score) == bits {
                *score = -1.0; // no score is negative
                ties -= 1;
            }
        }
    }
    let mark = |score: &mut f32| *score = f32::from(u8::from(*score != -1.0 && mask::size_bits(*score) >= bits));
    scores.as_flattened_mut().par_chunks_mut(1 << 16).for_each(|scores| scores.iter_mut().for_each(mark));
}

/// Some tiles of rows, and where what becomes of them is put.
struct Piece<'a> {
    /// The first row, in the whole weight.
    first_row: usize,
    weight: &'a mut [f32],
    codes: &'a mut [u8],
    scales: &'a mut [f32],
    zeros: &'a mut [u8],
}

/// Some tiles of rows on their way through the columns.
struct Chunk<'a> {
    problem: &'a Problem<'a>,
    piece: Piece<'a>,
    kernel: Kernel,
    rows: usize,
    /// By tile: (positions, 48): the weight where a position is still to come, `W − Q` where it is done.
    state: Aligned,
    /// By tile: (positions of the block, 48): `Σ_s E_s L[s][r]` over positions s of earlier blocks.
    owed: Aligned,
    /// By tile: (groups, 48) of the current grids.
    scales: Vec<Lanes>,
    zeros: Vec<Lanes>,
    /// What became of the block of one tile: codes, or without a grid values.
    codes: Vec<[u8; TILE]>,
    values: Vec<Lanes>,
}

impl<'a> Chunk<'a> {
    fn new(problem: &'a Problem<'a>, piece: Piece<'a>) -> Self {
        let n = problem.order.len();
        let rows = piece.weight.len() / n;
        let tiles = rows.div_ceil(TILE);
        let groups = problem.grid_groups();
        let mut state = Aligned::zeros(tiles * n * TILE);
        for (tile, weight) in piece.weight.chunks(TILE * n).enumerate() {
            turn(weight, problem.order, &mut state[tile * n * TILE..][..n * TILE]);
        }
        let mut scales = vec![[1.0; TILE]; tiles * groups];
        let mut zeros = vec![[0.0; TILE]; tiles * groups];
        if let Some(Grid { groups: Groups::Static { scales: all, zeros: all_zeros }, .. }) = problem.grid {
            for row in 0..rows {
                for group in 0..groups {
                    let at = (piece.first_row + row) * groups + group;
                    scales[row / TILE * groups + group][row % TILE] = all[at];
                    zeros[row / TILE * groups + group][row % TILE] = f32::from(all_zeros[at]);
                }
            }
        }
        let block = problem.block();
        let owed = Aligned::zeros(tiles * (block + 2 * SLIVER) * TILE);
        let (codes, values) = match problem.grid {
            Some(_) => (vec![[0; TILE]; block], Vec::new()),
            None => (Vec::new(), vec![[0.0; TILE]; block]),
        };
        Self { problem, piece, kernel: Kernel::new(), rows, state, owed, scales, zeros, codes, values }
    }

    fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// Runs through all columns; gives the chunk's `tr(Δ H Δᵀ)`.
    fn solve(mut self) -> Result<f64> {
        let wide = self.problem.wide_pattern();
        let mut marks = vec![[0.0; TILE]; wide.map_or(0, |pattern| self.tiles() * pattern.of())];
        let (mut error, mut end) = (0.0, self.problem.order.len());
        while end > 0 {
            let start = self.problem.start(end);
            self.collect_owed(start, end);
            if let Some(pattern) = wide {
                self.score(start, end, &mut marks);
                for marks in marks.chunks_exact_mut(pattern.of()) {
                    mark_each_row(marks, pattern.drop());
                }
            }
            error += self.finish(start, end, wide.map(|_| &marks[..]))?;
            end = start;
        }
        Ok(error)
    }

    /// Fills `owed` of positions start..end from all positions ≥ end.
    fn collect_owed(&mut self, start: usize, end: usize) {
        let n = self.problem.order.len();
        let factor = self.problem.factor;
        let tiles = self.tiles();
        let (base, width) = slivers(start, end);
        self.owed[..tiles * width * TILE].fill(0.0);
        for from in (end..n).step_by(DEPTH) {
            let depth = DEPTH.min(n - from);
            let rows = Rows {
                a: self.state[from * TILE..].as_ptr(),
                a_stride: n * TILE,
                c: self.owed.as_mut_ptr(),
                c_stride: width * TILE,
                c_step: TILE,
                tiles,
            };
            let columns = Columns {
                b: factor.tiles[(base / TILE * factor.padded + from) * TILE..].as_ptr(),
                b_stride: factor.padded * TILE,
                first: base % TILE,
                slivers: width / SLIVER,
            };
            // SAFETY: `state` holds n positions a tile, so `depth` from `from` on; `owed` holds `width` positions a tile; the
            // factor holds `padded` ≥ from + depth columns a tile for every tile up to that of position end − 1.
            unsafe { self.kernel.panel(depth, rows, columns, 1.0) };
        }
    }

    /// Scores positions start..end as they stand, by tile: (positions, 48). Missing rows score NaN; weights that have to
    /// stay zero score 0, and no other does.
    fn score(&self, start: usize, end: usize, scores: &mut [Lanes]) {
        let smallest = f32::from_bits(1);
        let n = self.problem.order.len();
        for (tile, scores) in scores.chunks_exact_mut(end - start).enumerate() {
            self.catch_up(tile, start, end, false, scores);
            let weight = self.state[(tile * n + start) * TILE..].as_chunks::<TILE>().0;
            let rows = TILE.min(self.rows - tile * TILE);
            let diagonal = &self.problem.factor.diagonal[start..end];
            for ((scores, &diagonal), weight) in scores.iter_mut().zip(diagonal).zip(weight) {
                scores.iter_mut().for_each(|score| *score = (*score * diagonal).abs());
                if self.problem.keep_zeros {
                    scores.iter_mut().zip(weight).for_each(|(score, &weight)| {
                        *score = if weight == 0.0 { 0.0 } else { score.max(smallest) };
                    });
                }
                scores[rows..].fill(f32::NAN);
            }
        }
    }

    /// The weights at positions start..end of one tile as they stand: those that would make up for all errors so far if
    /// they had none themselves; with `keep_zeros` weights that are zero stay zero, and those after them make up for them.
    fn catch_up(&self, tile: usize, start: usize, end: usize, keep_zeros: bool, current: &mut [Lanes]) {
        let n = self.problem.order.len();
        let (_, width) = slivers(start, end);
        let mut state = self.state[(tile * n + start) * TILE..][..(end - start) * TILE].to_vec();
        let mut owed = self.owed[tile * width * TILE..][..width * TILE].to_vec();
        descend(self.kernel, self.problem.factor, start, end, &mut state, &mut owed, |part| {
            let span = 0..part.state.len();
            let current = &mut current[part.first - start..][..part.state.len()];
            catch_up_part(part, span, keep_zeros, current);
        });
    }

    /// Decides over positions start..end, whose `owed` is known; gives their share of the error. `marks`, by tile
    /// (positions, 48), say what stays.
    fn finish(&mut self, start: usize, end: usize, marks: Option<&[Lanes]>) -> Result<f64> {
        let width = end - start;
        let mut error = 0.0;
        for tile in 0..self.tiles() {
            if self.problem.is_fresh() {
                self.fit(tile, start, end)?;
            }
            error += self.decide(tile, start, end, marks.map(|marks| &marks[tile * width..][..width]));
            self.place(tile, start, end);
        }
        Ok(error)
    }

    /// Quantises or prunes positions start..end of one tile, last first; gives its share of the error.
    fn decide(&mut self, tile: usize, start: usize, end: usize, marks: Option<&[Lanes]>) -> f64 {
        let problem = self.problem;
        let n = problem.order.len();
        let groups = problem.grid_groups();
        let (_, width) = slivers(start, end);
        let state = &mut self.state[(tile * n + start) * TILE..][..(end - start) * TILE];
        let owed = &mut self.owed[tile * width * TILE..][..width * TILE];
        let mut errors = [0.0; TILE];
        let (scales, zeros) = (&self.scales[tile * groups..][..groups], &self.zeros[tile * groups..][..groups]);
        let (codes, values) = (&mut self.codes, &mut self.values);
        descend(self.kernel, problem.factor, start, end, state, owed, |part| {
            let (from, len) = (part.first - start, part.state.len());
            let mut grids = [0; SLIVER];
            let mut ridge = [0.0; SLIVER];
            for (i, position) in (part.first..part.first + len).enumerate() {
                let column = problem.order[n - 1 - position] as usize;
                ridge[i] = problem.ridge[column];
                if let Some(Grid { group_size, groups, .. }) = problem.grid {
                    grids[i] = match groups {
                        Groups::Static { .. } => column / group_size,
                        Groups::Fresh => (n - 1 - position) / group_size,
                    };
                }
            }
            let narrow = problem.narrow_pattern();
            let step = narrow.map_or(len, NOfM::of);
            for first in (0..len).step_by(step).rev() {
                let span = first..first + step;
                let mut own = [[1.0; TILE]; SLIVER];
                if let Some(pattern) = narrow {
                    mark_part(part, span.clone(), pattern.drop(), problem.keep_zeros, &mut own);
                }
                let marks = match narrow {
                    Some(_) => Some(&own[..len]),
                    None => marks.map(|marks| &marks[from..][..len]),
                };
                let kept = Kept { marks, zeros: problem.keep_zeros };
                match problem.grid {
                    Some(Grid { spec, .. }) => {
                        let grids = Grids { scales, zeros, which: &grids, max: f32::from(spec.max_code()) };
                        quantise_part(part, span, &grids, kept, &ridge, &mut codes[from..][..len], &mut errors);
                    }
                    None => prune_part(part, span, kept, &ridge, &mut values[from..][..len], &mut errors),
                }
            }
        });
        let rows = TILE.min(self.rows - tile * TILE);
        errors[..rows].iter().sum()
    }

    /// Fits the grids of the group at positions start..end to the weights as they stand.
    fn fit(&mut self, tile: usize, start: usize, end: usize) -> Result<()> {
        let Some(Grid { spec, group_size, .. }) = self.problem.grid else { return Ok(()) };
        let n = self.problem.order.len();
        let groups = n / group_size;
        let group = (n - end) / group_size;
        let mut current = vec![[0.0; TILE]; end - start];
        self.catch_up(tile, start, end, self.problem.keep_zeros, &mut current);
        let mut values = vec![0.0; end - start];
        for lane in 0..TILE.min(self.rows - tile * TILE) {
            // In processing order, which without activation order is the checkpoint's.
            values.iter_mut().zip(current.iter().rev()).for_each(|(value, current)| *value = current[lane]);
            let row = tile * TILE + lane;
            let (scale, zero) = grid::fit_group(&values, spec).map_err(|cause| {
                Error::Numeric(format!("row {}, group {group}: {cause}", self.piece.first_row + row))
            })?;
            (self.piece.scales[row * groups + group], self.piece.zeros[row * groups + group]) = (scale, zero);
            self.scales[tile * groups + group][lane] = scale;
            self.zeros[tile * groups + group][lane] = f32::from(zero);
        }
        Ok(())
    }

    /// Moves what became of positions start..end to its rows and columns.
    fn place(&mut self, tile: usize, start: usize, end: usize) {
        /// One lane of `block` at positions start..end into a row.
        fn scatter<T: Copy>(row: &mut [T], order: &[u32], start: usize, end: usize, block: &[[T; TILE]], lane: usize) {
            let n = order.len();
            for (position, block) in (start..end).zip(block) {
                row[order[n - 1 - position] as usize] = block[lane];
            }
        }
        let order = self.problem.order;
        let n = order.len();
        for lane in 0..TILE.min(self.rows - tile * TILE) {
            let at = (tile * TILE + lane) * n;
            match self.problem.grid {
                Some(_) => scatter(&mut self.piece.codes[at..][..n], order, start, end, &self.codes, lane),
                None => scatter(&mut self.piece.weight[at..][..n], order, start, end, &self.values, lane),
            }
        }
    }
}

/// Turns the scores of a group, (positions, 48), into marks: in each row 0 for the `drop` smallest, from the last position
/// down where they tie, and 1 for the others.
fn mark_each_row(scores: &mut [Lanes], drop: usize) {
    let mut row = vec![0.0; scores.len()];
    for lane in 0..TILE {
        row.iter_mut().zip(scores.iter().rev()).for_each(|(to, scores)| *to = scores[lane]);
        let Threshold { bits, mut ties } = mask::threshold(&row, drop);
        for (scores, &score) in scores.iter_mut().rev().zip(&row) {
            let tie = ties > 0 && mask::size_bits(score) == bits;
            ties -= usize::from(tie);
            scores[lane] = f32::from(u8::from(!tie && mask::size_bits(score) >= bits));
        }
    }
}

impl<'a> Problem<'a> {
    /// Feedback through the factor of `prepared`, without pruning.
    pub(super) fn new(prepared: &'a Prepared, grid: Option<Grid<'a>>, column_block: usize) -> Self {
        let Prepared { factor, order, ridge, .. } = prepared;
        Self { factor, order, ridge, grid, prune: None, keep_zeros: false, column_block }
    }

    fn is_fresh(&self) -> bool {
        matches!(self.grid, Some(Grid { groups: Groups::Fresh, .. }))
    }

    /// Scales of a row.
    fn grid_groups(&self) -> usize {
        self.grid.map_or(0, |grid| self.order.len() / grid.group_size)
    }

    /// A pattern whose groups never straddle slivers: its masks are chosen on the way.
    fn narrow_pattern(&self) -> Option<NOfM> {
        match self.prune {
            Some(Amount::Pattern(pattern)) if SLIVER.is_multiple_of(pattern.of()) => Some(pattern),
            _ => None,
        }
    }

    /// Any other pattern: its groups are blocks.
    fn wide_pattern(&self) -> Option<NOfM> {
        match self.prune {
            Some(Amount::Pattern(pattern)) if !SLIVER.is_multiple_of(pattern.of()) => Some(pattern),
            _ => None,
        }
    }

    /// Positions of a block, at most.
    fn block(&self) -> usize {
        match (self.grid, self.wide_pattern(), self.prune) {
            (Some(Grid { groups: Groups::Fresh, group_size, .. }), ..) => group_size,
            (_, Some(pattern), _) => pattern.of(),
            (.., Some(Amount::Share(_))) => self.column_block,
            _ => self.column_block.next_multiple_of(SLIVER),
        }
    }

    /// The first position of the block before `end`. Blocks that mean something are counted from the first column
    /// processed, the last position; others begin at multiples of their size, in whole slivers.
    fn start(&self, end: usize) -> usize {
        let block = self.block();
        let counted = self.is_fresh() || self.wide_pattern().is_some() || matches!(self.prune, Some(Amount::Share(_)));
        if counted { end.saturating_sub(block) } else { (end - 1) / block * block }
    }
}

/// The first position of the first sliver that touches start..end, and how many positions all such slivers have.
fn slivers(start: usize, end: usize) -> (usize, usize) {
    let base = start / SLIVER * SLIVER;
    (base, end.next_multiple_of(SLIVER) - base)
}

/// `L[s][r]` for the eight positions r of `sliver` and `depth` positions s from `from` on: s by s, 48 apart.
fn right_operand(factor: &Factor, sliver: usize, from: usize, depth: usize) -> *const f32 {
    let padded = factor.padded;
    assert!(sliver.is_multiple_of(SLIVER) && depth > 0);
    factor.tiles[(sliver / TILE * padded + from) * TILE + sliver % TILE..][..(depth - 1) * TILE + SLIVER].as_ptr()
}

/// Goes through positions start..end, last first, at most eight at a time, all in one sliver; before each, what the
/// positions above it (up to `end`) owe it is added to `owed`.
fn descend(
    kernel: Kernel,
    factor: &Factor,
    start: usize,
    end: usize,
    state: &mut [f32],
    owed: &mut [f32],
    mut finish: impl FnMut(&mut Part<'_>),
) {
    let (base, _) = slivers(start, end);
    for sliver in (base..end).step_by(SLIVER).rev() {
        let (first, last) = (sliver.max(start), (sliver + SLIVER).min(end));
        let depth = end - last;
        let triangle = (first / TILE * factor.padded + first) * TILE + first % TILE;
        let (pending, done) = state.split_at_mut((last - start) * TILE);
        if depth > 0 {
            let owed = owed[(sliver - base) * TILE..][..SLIVER * TILE].as_mut_ptr();
            // SAFETY: `done` holds end − last = depth positions, `owed` eight.
            unsafe { kernel.sliver(depth, done.as_ptr(), right_operand(factor, sliver, last, depth), owed, 1.0) };
        }
        finish(&mut Part {
            first,
            state: pending[(first - start) * TILE..].as_chunks_mut().0,
            owed: owed[(first - base) * TILE..][..(last - first) * TILE].as_chunks_mut().0,
            triangle: &factor.tiles[triangle..][..(last - first - 1) * TILE + last - first],
            diagonal: &factor.diagonal[first..last],
        });
    }
}

/// Up to 48 rows of a weight into (positions, 48), in reversed processing order; missing rows stay zero.
fn turn(weight: &[f32], order: &[u32], state: &mut [f32]) {
    /// Rows turned together: their scattered reads stay in the second-level cache, the writes fill a line.
    const ROWS: usize = 16;
    let n = order.len();
    for (block, weight) in weight.chunks(ROWS * n).enumerate() {
        let first = block * ROWS;
        for (state, &column) in state.chunks_exact_mut(TILE).zip(order.iter().rev()) {
            for (row, to) in (0..weight.len() / n).zip(&mut state[first..]) {
                *to = weight[row * n + column as usize];
            }
        }
    }
}
