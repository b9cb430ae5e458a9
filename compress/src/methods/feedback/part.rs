//! The innermost step of error feedback: at most eight positions of one tile, of which all that is owed from outside is
//! known.

use std::ops::Range;

use crate::grid;
use crate::kernel::tile::{SLIVER, TILE};

/// One number for each row of a tile.
pub(super) type Lanes = [f32; TILE];

/// Some positions of one tile of which everything owed from outside is known.
pub(super) struct Part<'a> {
    /// The first position.
    pub(super) first: usize,
    /// By position: the weight, to become `W − Q`.
    pub(super) state: &'a mut [Lanes],
    /// By position: what is owed, to be added to.
    pub(super) owed: &'a mut [Lanes],
    /// `L[s][r]` at `(s − first) · 48 + (r − first)`, for s > r.
    pub(super) triangle: &'a [f32],
    /// By position: `L[r][r]`.
    pub(super) diagonal: &'a [f32],
}

impl Part<'_> {
    /// Lets the positions of `before` know that the position `r` above them has this error.
    #[inline(always)]
    fn owe(&mut self, before: Range<usize>, r: usize, error: &Lanes) {
        for before in before {
            let factor = self.triangle[r * TILE + before];
            for a in 0..TILE {
                self.owed[before][a] = error[a].mul_add(factor, self.owed[before][a]);
            }
        }
    }
}

/// The grids of one tile.
pub(super) struct Grids<'a> {
    /// By group.
    pub(super) scales: &'a [Lanes],
    pub(super) zeros: &'a [Lanes],
    /// The group of each position of a part.
    pub(super) which: &'a [usize; SLIVER],
    pub(super) max: f32,
}

/// Which weights stay; the others become zero.
#[derive(Clone, Copy)]
pub(super) struct Kept<'a> {
    /// By position of the part: 1 for weights that stay, else 0; without marks all stay.
    pub(super) marks: Option<&'a [Lanes]>,
    /// Weights that are zero do not.
    pub(super) zeros: bool,
}

impl Kept<'_> {
    /// 1 or 0 for each row at position `r`, whose weight this is.
    #[inline(always)]
    fn at(self, r: usize, weight: &Lanes) -> Lanes {
        let mut kept = self.marks.map_or([1.0; TILE], |marks| marks[r]);
        if self.zeros {
            for a in 0..TILE {
                kept[a] = if weight[a] == 0.0 { 0.0 } else { kept[a] };
            }
        }
        kept
    }
}

crate::kernel::dispatch! {
    /// Quantises the positions `span` of a part, last first, and adds `L[r][r]² (F − Q)² − ridge (W − Q)²` to `errors`.
    pub(super) fn quantise_part(
        part: &mut Part<'_>,
        span: Range<usize>,
        grids: &Grids<'_>,
        kept: Kept<'_>,
        ridge: &[f32; SLIVER],
        codes: &mut [[u8; TILE]],
        errors: &mut [f64; TILE],
    ) = quantise_part_body
}

#[inline(always)]
fn quantise_part_body(
    part: &mut Part<'_>,
    span: Range<usize>,
    grids: &Grids<'_>,
    kept: Kept<'_>,
    ridge: &[f32; SLIVER],
    codes: &mut [[u8; TILE]],
    errors: &mut [f64; TILE],
) {
    let mut lost = [0.0f32; TILE];
    for r in span.rev() {
        let (scale, zero) = (&grids.scales[grids.which[r]], &grids.zeros[grids.which[r]]);
        let kept = kept.at(r, &part.state[r]);
        let inverse = 1.0 / part.diagonal[r];
        let mut error = [0.0f32; TILE]; // W − Q
        for a in 0..TILE {
            let weight = part.state[r][a];
            let exact = part.owed[r][a].mul_add(inverse, weight); // F
            let code = grid::code(exact, scale[a], zero[a], grids.max).max(0.0); // NaN to 0: `solve` refuses the sum
            let code = if kept[a] != 0.0 { code } else { zero[a] };
            // SAFETY: `code` is clamped to 0..=255, and the maximum with 0 is not NaN; nor is a zero point.
            codes[r][a] = unsafe { code.to_int_unchecked::<i32>() } as u8;
            let value = scale[a] * (code - zero[a]);
            let residual = (exact - value) * part.diagonal[r];
            error[a] = weight - value;
            lost[a] += residual * residual - ridge[r] * error[a] * error[a];
        }
        part.state[r] = error;
        part.owe(0..r, r, &error);
    }
    for a in 0..TILE {
        errors[a] += f64::from(lost[a]);
    }
}

crate::kernel::dispatch! {
    /// The same with `Q` zero for weights that go and `F` for those that stay.
    pub(super) fn prune_part(
        part: &mut Part<'_>,
        span: Range<usize>,
        kept: Kept<'_>,
        ridge: &[f32; SLIVER],
        values: &mut [Lanes],
        errors: &mut [f64; TILE],
    ) = prune_part_body
}

#[inline(always)]
fn prune_part_body(
    part: &mut Part<'_>,
    span: Range<usize>,
    kept: Kept<'_>,
    ridge: &[f32; SLIVER],
    values: &mut [Lanes],
    errors: &mut [f64; TILE],
) {
    let mut lost = [0.0f32; TILE];
    for r in span.rev() {
        let kept = kept.at(r, &part.state[r]);
        let inverse = 1.0 / part.diagonal[r];
        let mut error = [0.0f32; TILE]; // W − Q
        for a in 0..TILE {
            let weight = part.state[r][a];
            let exact = part.owed[r][a].mul_add(inverse, weight); // F
            let value = if kept[a] != 0.0 { exact } else { 0.0 };
            let residual = (exact - value) * part.diagonal[r]; // NaN where F is not finite: `solve` refuses the sum
            values[r][a] = value;
            error[a] = weight - value;
            lost[a] += residual * residual - ridge[r] * error[a] * error[a];
        }
        part.state[r] = error;
        part.owe(0..r, r, &error);
    }
    for a in 0..TILE {
        errors[a] += f64::from(lost[a]);
    }
}

crate::kernel::dispatch! {
    /// The values at which the positions `span` of a part would make up for everything they owe; `keep_zeros` holds weights
    /// that are zero at zero.
    pub(super) fn catch_up_part(part: &mut Part<'_>, span: Range<usize>, keep_zeros: bool, current: &mut [Lanes])
        = catch_up_part_body
}

#[inline(always)]
fn catch_up_part_body(part: &mut Part<'_>, span: Range<usize>, keep_zeros: bool, current: &mut [Lanes]) {
    let first = span.start;
    for r in span.rev() {
        let kept = Kept { marks: None, zeros: keep_zeros }.at(r, &part.state[r]);
        let inverse = 1.0 / part.diagonal[r];
        let mut error = [0.0f32; TILE];
        for a in 0..TILE {
            let exact = part.owed[r][a].mul_add(inverse, part.state[r][a]);
            current[r][a] = if kept[a] != 0.0 { exact } else { 0.0 };
            error[a] = if kept[a] != 0.0 { -(part.owed[r][a] * inverse) } else { 0.0 };
        }
        part.state[r] = error;
        part.owe(first..r, r, &error);
    }
}

crate::kernel::dispatch! {
    /// Marks with 0 the `drop` positions of `span` in each row whose weights as they stand have the smallest `|F| L[r][r]`,
    /// from the last position down where they tie, and the others with 1.
    pub(super) fn mark_part(
        part: &Part<'_>,
        span: Range<usize>,
        drop: usize,
        keep_zeros: bool,
        marks: &mut [Lanes; SLIVER],
    ) = mark_part_body
}

#[inline(always)]
fn mark_part_body(part: &Part<'_>, span: Range<usize>, drop: usize, keep_zeros: bool, marks: &mut [Lanes; SLIVER]) {
    let (mut state, mut owed, mut scores) = ([[0.0; TILE]; SLIVER], [[0.0; TILE]; SLIVER], [[0.0; TILE]; SLIVER]);
    state[span.clone()].copy_from_slice(&part.state[span.clone()]);
    owed[span.clone()].copy_from_slice(&part.owed[span.clone()]);
    let mut copy = Part {
        first: part.first,
        state: &mut state,
        owed: &mut owed,
        triangle: part.triangle,
        diagonal: part.diagonal,
    };
    catch_up_part_body(&mut copy, span.clone(), false, &mut scores);
    for r in span.clone() {
        for a in 0..TILE {
            // A weight that has to stay zero scores 0, and no other does.
            let score = (scores[r][a] * part.diagonal[r]).abs();
            scores[r][a] = match keep_zeros {
                true if part.state[r][a] == 0.0 => 0.0,
                true => score.max(f32::from_bits(1)),
                false => score,
            };
        }
    }
    for r in span.clone() {
        let mut rank = [0i32; TILE];
        for other in span.clone() {
            for a in 0..TILE {
                let first = if other > r { scores[other][a] <= scores[r][a] } else { scores[other][a] < scores[r][a] };
                rank[a] += i32::from(first && other != r);
            }
        }
        for a in 0..TILE {
            marks[r][a] = f32::from(u8::from(rank[a] >= drop as i32));
        }
    }
}
