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

use rayon::prelude::*;

use crate::grid::{self, GridSpec};
use crate::kernel::cholesky::Factor;
use crate::kernel::tile::{Aligned, Columns, DEPTH, Kernel, Rows, SLIVER, TILE};
use crate::{Error, Result};

/// Where a position's scale and zero point come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Groups<'a> {
    /// Fitted before, on the original weight: (rows, groups), by the column's place in the checkpoint.
    Static { scales: &'a [f32], zeros: &'a [u8] },
    /// Fitted when a group is reached, on the weights as they then stand; groups follow the processing order.
    Fresh,
}

/// What [`solve`] needs to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Problem<'a> {
    /// The factor of the Hessian with its ridge.
    pub(super) factor: &'a Factor,
    /// `order[p]` is the column processed p-th.
    pub(super) order: &'a [u32],
    /// What was added to the diagonal of the Hessian, by column.
    pub(super) ridge: &'a [f32],
    /// The grid.
    pub(super) spec: &'a GridSpec,
    /// Columns that share a scale.
    pub(super) group_size: usize,
    /// Where scales come from.
    pub(super) groups: Groups<'a>,
    /// Columns quantised before all later ones are brought up to date, with static groups.
    pub(super) column_block: usize,
}

/// The codes of a weight.
#[derive(Debug)]
pub(super) struct Solved {
    /// (rows, columns), in the checkpoint's column order.
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

/// Quantises `weight` (rows, n).
///
/// Fails with [`Error::Numeric`] where a fresh group's scale lies beyond its type, naming row and group.
pub(super) fn solve(weight: &[f32], problem: &Problem<'_>) -> Result<Solved> {
    let n = problem.order.len();
    let rows = weight.len() / n;
    let groups = n / problem.group_size;
    let fresh = matches!(problem.groups, Groups::Fresh);
    let mut codes = vec![0; rows * n];
    let mut scales = vec![0.0; if fresh { rows * groups } else { 0 }];
    let mut zeros = vec![0; if fresh { rows * groups } else { 0 }];
    let chunk_rows = rows.div_ceil(TILE).div_ceil(8).clamp(1, MAX_CHUNK_TILES) * TILE;
    // Fixed pieces of whole rows; a fresh piece gets its own part of the scales.
    let mut parts = Vec::new();
    {
        let (mut scales, mut zeros) = (&mut scales[..], &mut zeros[..]);
        for (weight, codes) in weight.chunks(chunk_rows * n).zip(codes.chunks_mut(chunk_rows * n)) {
            let count = if fresh { weight.len() / n * groups } else { 0 };
            let (here, rest) = std::mem::take(&mut scales).split_at_mut(count);
            scales = rest;
            let (zeros_here, rest) = std::mem::take(&mut zeros).split_at_mut(count);
            zeros = rest;
            parts.push((weight, codes, here, zeros_here));
        }
    }
    let errors: Vec<Result<f64>> = parts
        .into_par_iter()
        .enumerate()
        .map(|(chunk, (weight, codes, scales, zeros))| {
            Chunk::new(problem, weight, chunk * chunk_rows).solve(codes, scales, zeros)
        })
        .collect();
    let mut error = 0.0;
    for part in errors {
        error += part?;
    }
    if !error.is_finite() {
        return Err(Error::Numeric("the error feedback left the range of f32".to_owned()));
    }
    Ok(Solved { codes, scales, zeros, error })
}

/// Some tiles of rows on their way through the columns.
struct Chunk<'a> {
    problem: &'a Problem<'a>,
    kernel: Kernel,
    /// The first row, in the whole weight.
    first_row: usize,
    rows: usize,
    /// By tile: (positions, 48): the weight where a position is still to come, `W − Q` where it is done.
    state: Aligned,
    /// By tile: (positions of the block, 48): `Σ_s E_s L[s][r]` over positions s of earlier blocks.
    owed: Aligned,
    /// By tile: (groups, 48) of the current grids.
    scales: Vec<Lanes>,
    zeros: Vec<Lanes>,
}

/// One number for each row of a tile.
type Lanes = [f32; TILE];

impl<'a> Chunk<'a> {
    fn new(problem: &'a Problem<'a>, weight: &[f32], first_row: usize) -> Self {
        let n = problem.order.len();
        let rows = weight.len() / n;
        let tiles = rows.div_ceil(TILE);
        let groups = n / problem.group_size;
        let mut state = Aligned::zeros(tiles * n * TILE);
        for (tile, weight) in weight.chunks(TILE * n).enumerate() {
            turn(weight, problem.order, &mut state[tile * n * TILE..][..n * TILE]);
        }
        let mut scales = vec![[1.0; TILE]; tiles * groups];
        let mut zeros = vec![[0.0; TILE]; tiles * groups];
        if let Groups::Static { scales: all, zeros: all_zeros } = problem.groups {
            for row in 0..rows {
                for group in 0..groups {
                    let at = (first_row + row) * groups + group;
                    scales[row / TILE * groups + group][row % TILE] = all[at];
                    zeros[row / TILE * groups + group][row % TILE] = f32::from(all_zeros[at]);
                }
            }
        }
        let owed = Aligned::zeros(tiles * (problem.block() + 2 * SLIVER) * TILE);
        Self { problem, kernel: Kernel::new(), first_row, rows, state, owed, scales, zeros }
    }

    /// Runs through all columns; gives the chunk's `tr(Δ H Δᵀ)`.
    fn solve(mut self, codes: &mut [u8], scales: &mut [f32], zeros: &mut [u8]) -> Result<f64> {
        let n = self.problem.order.len();
        let block = self.problem.block();
        let fresh = matches!(self.problem.groups, Groups::Fresh);
        let mut block_codes = vec![[0u8; TILE]; block];
        let mut error = 0.0;
        let mut end = n;
        while end > 0 {
            // Static blocks begin at multiples of the block; fresh ones are the groups, counted from the first processed.
            let start = if fresh { end - block } else { (end - 1) / block * block };
            self.collect_owed(start, end);
            for tile in 0..self.rows.div_ceil(TILE) {
                if fresh {
                    self.fit(tile, start, end, scales, zeros)?;
                }
                error += self.quantise(tile, start, end, &mut block_codes);
                self.place(tile, start, end, &block_codes, codes);
            }
            end = start;
        }
        Ok(error)
    }

    /// Fills `owed` of positions start..end from all positions ≥ end.
    fn collect_owed(&mut self, start: usize, end: usize) {
        let n = self.problem.order.len();
        let factor = self.problem.factor;
        let tiles = self.rows.div_ceil(TILE);
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

    /// Quantises positions start..end of one tile, last first; gives its share of the error.
    fn quantise(&mut self, tile: usize, start: usize, end: usize, codes: &mut [[u8; TILE]]) -> f64 {
        let problem = self.problem;
        let n = problem.order.len();
        let groups = n / problem.group_size;
        let (_, width) = slivers(start, end);
        let state = &mut self.state[(tile * n + start) * TILE..][..(end - start) * TILE];
        let owed = &mut self.owed[tile * width * TILE..][..width * TILE];
        let mut errors = [0.0; TILE];
        let (scales, zeros) = (&self.scales[tile * groups..][..groups], &self.zeros[tile * groups..][..groups]);
        descend(self.kernel, problem.factor, start, end, state, owed, |part| {
            let mut grids = [0; SLIVER];
            let mut ridge = [0.0; SLIVER];
            for (i, position) in (part.first..part.first + part.state.len()).enumerate() {
                let column = problem.order[n - 1 - position] as usize;
                ridge[i] = problem.ridge[column];
                grids[i] = match problem.groups {
                    Groups::Static { .. } => column / problem.group_size,
                    Groups::Fresh => (n - 1 - position) / problem.group_size,
                };
            }
            let codes = &mut codes[part.first - start..][..part.state.len()];
            let grids = Grids { scales, zeros, which: &grids, max: f32::from(problem.spec.max_code()) };
            quantise_part(part, &grids, &ridge, codes, &mut errors);
        });
        let rows = TILE.min(self.rows - tile * TILE);
        errors[..rows].iter().sum()
    }

    /// Fits the grids of the group at positions start..end to the weights as they stand: those that would make up for all
    /// errors so far if they were not to be quantised themselves.
    fn fit(&mut self, tile: usize, start: usize, end: usize, scales: &mut [f32], zeros: &mut [u8]) -> Result<()> {
        let n = self.problem.order.len();
        let groups = n / self.problem.group_size;
        let group = (n - end) / self.problem.group_size;
        let (_, width) = slivers(start, end);
        let mut state = self.state[(tile * n + start) * TILE..][..(end - start) * TILE].to_vec();
        let mut owed = self.owed[tile * width * TILE..][..width * TILE].to_vec();
        let mut current = vec![[0.0; TILE]; end - start];
        descend(self.kernel, self.problem.factor, start, end, &mut state, &mut owed, |part| {
            let current = &mut current[part.first - start..][..part.state.len()];
            catch_up_part(part, current);
        });
        let mut values = vec![0.0; end - start];
        for lane in 0..TILE.min(self.rows - tile * TILE) {
            // In processing order, which without activation order is the checkpoint's.
            values.iter_mut().zip(current.iter().rev()).for_each(|(value, current)| *value = current[lane]);
            let row = tile * TILE + lane;
            let (scale, zero) = grid::fit_group(&values, self.problem.spec)
                .map_err(|cause| Error::Numeric(format!("row {}, group {group}: {cause}", self.first_row + row)))?;
            (scales[row * groups + group], zeros[row * groups + group]) = (scale, zero);
            self.scales[tile * groups + group][lane] = scale;
            self.zeros[tile * groups + group][lane] = f32::from(zero);
        }
        Ok(())
    }

    /// Moves the codes of positions start..end to their rows and columns.
    fn place(&self, tile: usize, start: usize, end: usize, block: &[[u8; TILE]], codes: &mut [u8]) {
        let order = self.problem.order;
        let n = order.len();
        for lane in 0..TILE.min(self.rows - tile * TILE) {
            let codes = &mut codes[(tile * TILE + lane) * n..][..n];
            for (position, block) in (start..end).zip(block) {
                codes[order[n - 1 - position] as usize] = block[lane];
            }
        }
    }
}

impl Problem<'_> {
    /// Positions of a block: the column block in whole slivers, or with fresh groups a group.
    fn block(&self) -> usize {
        match self.groups {
            Groups::Static { .. } => self.column_block.next_multiple_of(SLIVER),
            Groups::Fresh => self.group_size,
        }
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

/// Some positions of one tile of which everything owed from outside is known.
struct Part<'a> {
    /// The first position.
    first: usize,
    /// By position: the weight, to become `W − Q`.
    state: &'a mut [Lanes],
    /// By position: what is owed, to be added to.
    owed: &'a mut [Lanes],
    /// `L[s][r]` at `(s − first) · 48 + (r − first)`, for s > r.
    triangle: &'a [f32],
    /// By position: `L[r][r]`.
    diagonal: &'a [f32],
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
    mut finish: impl FnMut(Part<'_>),
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
        finish(Part {
            first,
            state: pending[(first - start) * TILE..].as_chunks_mut().0,
            owed: owed[(first - base) * TILE..][..(last - first) * TILE].as_chunks_mut().0,
            triangle: &factor.tiles[triangle..][..(last - first - 1) * TILE + last - first],
            diagonal: &factor.diagonal[first..last],
        });
    }
}

/// The grids of one tile.
struct Grids<'a> {
    /// By group.
    scales: &'a [Lanes],
    zeros: &'a [Lanes],
    /// The group of each position of a part.
    which: &'a [usize; SLIVER],
    max: f32,
}

crate::kernel::dispatch! {
    /// Quantises a part, last position first, and adds `L[r][r]² (F − Q)² − ridge (W − Q)²` to `errors`.
    fn quantise_part(part: Part<'_>, grids: &Grids<'_>, ridge: &[f32; SLIVER], codes: &mut [[u8; TILE]], errors: &mut [f64; TILE])
        = quantise_part_body
}

#[inline(always)]
fn quantise_part_body(
    part: Part<'_>,
    grids: &Grids<'_>,
    ridge: &[f32; SLIVER],
    codes: &mut [[u8; TILE]],
    errors: &mut [f64; TILE],
) {
    let mut lost = [0.0f32; TILE];
    for r in (0..part.state.len()).rev() {
        let (scale, zero) = (&grids.scales[grids.which[r]], &grids.zeros[grids.which[r]]);
        let inverse = 1.0 / part.diagonal[r];
        let mut error = [0.0f32; TILE]; // W − Q
        for a in 0..TILE {
            let weight = part.state[r][a];
            let exact = part.owed[r][a].mul_add(inverse, weight); // F
            let code = grid::code(exact, scale[a], zero[a], grids.max).max(0.0); // NaN to 0: `solve` refuses the sum
            // SAFETY: `code` is clamped to 0..=255, and the maximum with 0 is not NaN.
            codes[r][a] = unsafe { code.to_int_unchecked::<i32>() } as u8;
            let value = scale[a] * (code - zero[a]);
            let residual = (exact - value) * part.diagonal[r];
            error[a] = weight - value;
            lost[a] += residual * residual - ridge[r] * error[a] * error[a];
        }
        part.state[r] = error;
        for before in 0..r {
            let factor = part.triangle[r * TILE + before];
            for a in 0..TILE {
                part.owed[before][a] = error[a].mul_add(factor, part.owed[before][a]);
            }
        }
    }
    for a in 0..TILE {
        errors[a] += f64::from(lost[a]);
    }
}

crate::kernel::dispatch! {
    /// The values at which the positions of a part would make up for everything they owe.
    fn catch_up_part(part: Part<'_>, current: &mut [Lanes]) = catch_up_part_body
}

#[inline(always)]
fn catch_up_part_body(part: Part<'_>, current: &mut [Lanes]) {
    for r in (0..part.state.len()).rev() {
        let inverse = 1.0 / part.diagonal[r];
        let mut error = [0.0f32; TILE];
        for a in 0..TILE {
            current[r][a] = part.owed[r][a].mul_add(inverse, part.state[r][a]);
            error[a] = -(part.owed[r][a] * inverse);
        }
        part.state[r] = error;
        for before in 0..r {
            let factor = part.triangle[r * TILE + before];
            for a in 0..TILE {
                part.owed[before][a] = error[a].mul_add(factor, part.owed[before][a]);
            }
        }
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
