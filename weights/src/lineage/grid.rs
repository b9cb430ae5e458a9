//! Finds the grid of quantised weights in their dequantised values.
//!
//! A group of quantised weights holds integer multiples of one step s: w = s·c, or w = m + s·c where the offset m is no
//! multiple of s. The largest magnitude of the group is s·k for some k ≤ 255 (8 bits), so that trying every k tries every
//! step there can be. A value agrees with a step if it lies within t of a multiple, where t, in steps, is what rounding
//! the value and the step to the stored type can do. A continuous value does so with probability 2t, so that of a group
//! with d different values all do with Π 2tᵢ. The inverse of that, times a prior for k, has a mean of at most 1 if there is
//! no grid, and so has the product over groups: it exceeds 10²⁰ by chance once in 10²⁰ tensors (Markov). Small values of a
//! coarse type count for as little as they say.
//!
//! A fine enough step also fits two groups of coarse ones taken together. Of all groupings that fit, the one that would
//! take the fewest bits to store is taken: those of a code, and a scale (and offset) a group.

use serde::Serialize;

use super::{pair::Pair, side::Precision};
use crate::Result;

/// The largest code tried: 8 bits.
const MAX_CODE: u32 = 255;
/// Groups looked for, besides the whole tensor and the row.
const GROUPS: [usize; 16] = [1024, 512, 384, 256, 192, 160, 128, 96, 80, 64, 48, 40, 32, 24, 16, 8];
/// Bits of a scale or an offset, for the choice of a grouping.
const SCALE_BITS: f64 = 16.0;
/// Different values a group has at most: all codes, and both zeros.
const MAX_LEVELS: usize = MAX_CODE as usize + 3;
/// Rows on which the group size is searched; the whole tensor is then held to it.
const SAMPLE_ROWS: usize = 48;
/// Share of groups that must lie on their grid.
const MIN_SHARE: f64 = 0.99;
/// Power of ten that the product over the groups of the sample must reach.
const MIN_EVIDENCE: f64 = 20.0;
/// A value that may differ by this many steps from its code says nothing.
const NO_EVIDENCE: f64 = 0.45;
/// Smallest tolerance in steps: what f32 arithmetic on the way can do.
const LEAST_TOLERANCE: f64 = 2e-5;

/// Weights that share a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// All of the tensor.
    Tensor,
    /// A row.
    Row,
    /// This many neighbours in a row.
    Columns(usize),
}

/// The grid a tensor's values lie on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Grid {
    /// Bits of a code, from the widest range of codes in a group.
    pub bits: u32,
    /// Weights that share a step.
    pub group: Group,
    /// Codes of every group lie around zero.
    pub symmetric: bool,
    /// The grid has an offset that is no multiple of its step, so zero need not be on it.
    pub offset: bool,
    /// Share of the groups that lie on their grid.
    pub on_grid: f64,
    /// Share of the elements that are the grid's nearest level to the other side's value: near 1 for plain rounding,
    /// less where errors were compensated. Values beyond the ends of the range do not count.
    pub nearest: f64,
    /// Share of the elements that are zero although the other side's value is more than a step away.
    #[serde(skip)]
    pub zeroed: f64,
}

/// The step of a group and the range of its codes.
#[derive(Debug, Clone, Copy)]
struct Fit {
    step: f64,
    low: f64,
    high: f64,
    /// log₁₀ of (prior of k / chance that the group fits k so well); of use if all values are different.
    evidence: f64,
}

/// Looks for a grid in the values of one group. `offset` takes them from the smallest value on.
fn fit(values: &[f32], unit: f64, offset: bool) -> Option<Fit> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for &value in values {
        low = low.min(f64::from(value));
        high = high.max(f64::from(value));
    }
    let origin = if offset { low } else { 0.0 };
    let span = if offset { high - low } else { high.abs().max(low.abs()) };
    if !span.is_normal() {
        return None;
    }
    // What rounding can do to a value, and to the span that gives the step.
    let of_value = |value: f64| if offset { unit * (value.abs() + low.abs()) } else { unit * value.abs() };
    let of_span = if offset { unit * (high.abs() + low.abs()) } else { unit * span };
    'codes: for k in 1..=MAX_CODE {
        let step = span / f64::from(k);
        // Every k has the prior 1/(k(k + 1)), and these add up to one.
        let mut evidence = -(f64::from(k) * f64::from(k + 1)).log10();
        let mut ends = 0;
        for &value in values {
            let value = f64::from(value);
            let code = (value - origin) / step;
            let tolerance = ((of_value(value) + code.abs() / f64::from(k) * of_span) / step).max(LEAST_TOLERANCE);
            if tolerance > NO_EVIDENCE {
                continue;
            }
            if (code - code.round()).abs() > tolerance {
                continue 'codes;
            }
            // Zero is on every grid, and the end of the span by construction; but its mirror image is not.
            ends += usize::from((value - origin).abs() == span);
            if value != origin && ((value - origin).abs() < span || ends == 2) {
                evidence -= (2.0 * tolerance).log10();
            }
        }
        let code = |value: f64| ((value - origin) / step).round();
        return Some(Fit { step, low: code(low), high: code(high), evidence });
    }
    None
}

/// The values of `row` group by group.
fn groups(row: &[f32], group: Group) -> impl Iterator<Item = &[f32]> {
    let size = match group {
        Group::Columns(size) => size,
        Group::Row | Group::Tensor => row.len(),
    };
    row.chunks(size)
}

/// Which side of a pair is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The first model.
    A,
    /// The second model.
    B,
}

/// The grid the values of `side` lie on, if they do.
pub(super) fn find(pair: &Pair<'_>, side: Side) -> Result<Option<Grid>> {
    let columns = pair.columns;
    if pair.rows < 2 || columns < 16 {
        return Ok(None);
    }
    let precision = match side {
        Side::A => pair.a.array.precision(),
        Side::B => pair.b.array.precision(),
    };
    let count = pair.rows.min(SAMPLE_ROWS);
    let mut sample = vec![0.0; count * columns];
    for (at, row) in sample.chunks_exact_mut(columns).enumerate() {
        let from = at * pair.rows / count;
        match side {
            Side::A => pair.read_a(from..from + 1, row)?,
            Side::B => pair.read_b(from..from + 1, row)?,
        }
    }
    let sizes = GROUPS.into_iter().filter(|&size| size < columns && columns.is_multiple_of(size)).map(Group::Columns);
    let mut fitting: Vec<(f64, Group, bool)> = Vec::new();
    for group in [Group::Tensor, Group::Row].into_iter().chain(sizes) {
        for offset in [false, true] {
            if let Some(code_bits) = code_bits(&sample, columns, group, offset, precision) {
                let per_group = SCALE_BITS * if offset { 2.0 } else { 1.0 };
                let size = match group {
                    Group::Tensor => pair.elements(),
                    Group::Row => columns,
                    Group::Columns(size) => size,
                };
                fitting.push((code_bits + per_group / size as f64, group, offset));
            }
        }
    }
    fitting.sort_by(|x, y| x.0.total_cmp(&y.0)); // stable: of equals the larger group, without an offset
    for (_, group, offset) in fitting {
        if let Some(grid) = confirm(pair, side, group, offset, precision)? {
            return Ok(Some(grid));
        }
    }
    Ok(None)
}

/// Bits of a code of the sample if its groups lie on grids, and not by chance.
fn code_bits(sample: &[f32], columns: usize, group: Group, offset: bool, precision: Precision) -> Option<f64> {
    let (mut tried, mut fitting, mut evidence, mut levels) = (0usize, 0usize, 0.0, 0.0f64);
    let mut distinct = Vec::new();
    let rows = if group == Group::Tensor { sample.chunks_exact(sample.len()) } else { sample.chunks_exact(columns) };
    for values in rows.flat_map(|row| groups(row, group)) {
        // What occurs twice is evidence once.
        distinct.clear();
        distinct.extend_from_slice(values);
        distinct.sort_unstable_by(f32::total_cmp);
        distinct.dedup();
        if distinct.len() < 2 {
            continue; // a constant lies on any grid
        }
        tried += 1;
        // More values than there are codes need no search.
        let found = if distinct.len() <= MAX_LEVELS { fit(&distinct, precision.unit(), offset) } else { None };
        if let Some(fit) = found {
            fitting += 1;
            evidence += fit.evidence;
            levels = levels.max(fit.high - fit.low + 1.0);
        } else {
            evidence += (1.0 - MIN_SHARE).log10();
        }
        if tried >= 16 && fitting * 2 < tried {
            return None;
        }
    }
    (tried > 0 && fitting as f64 >= MIN_SHARE * tried as f64 && evidence >= MIN_EVIDENCE).then(|| levels.log2().ceil())
}

/// Counts over all groups of the tensor.
#[derive(Default)]
struct Counts {
    groups: usize,
    fitting: usize,
    levels: f64,
    /// Lowest and highest code.
    low: f64,
    high: f64,
    inside: usize,
    nearest: usize,
    zeroed: usize,
}

/// Holds the whole tensor to the grid found on the sample.
fn confirm(pair: &Pair<'_>, side: Side, group: Group, offset: bool, precision: Precision) -> Result<Option<Grid>> {
    let columns = pair.columns;
    let whole = match group {
        Group::Tensor => match whole_tensor(pair, side, offset, precision)? {
            Some(fit) => Some(fit),
            None => return Ok(None),
        },
        _ => None,
    };
    let mut all = Counts::default();
    pair.walk(
        |piece| {
            let mut counts = Counts::default();
            let (copy, other) = match side {
                Side::A => (piece.a, piece.b),
                Side::B => (piece.b, piece.a),
            };
            for (copy, other) in copy.chunks_exact(columns).zip(other.chunks_exact(columns)) {
                for (values, others) in groups(copy, group).zip(groups(other, group)) {
                    if whole.is_none() && values.iter().all(|&value| value == values[0]) {
                        continue;
                    }
                    counts.groups += 1;
                    let Some(fit) = whole.or_else(|| fit(values, precision.unit(), offset)) else { continue };
                    counts.fitting += 1;
                    counts.levels = counts.levels.max(fit.high - fit.low + 1.0);
                    counts.low = counts.low.min(fit.low);
                    counts.high = counts.high.max(fit.high);
                    let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
                    for &value in values {
                        least = least.min(value);
                        most = most.max(value);
                    }
                    for (&value, &source) in values.iter().zip(others) {
                        let away = f64::from((source - value).abs());
                        if source >= least && source <= most {
                            counts.inside += 1;
                            counts.nearest += usize::from(away <= 0.501 * fit.step);
                        }
                        counts.zeroed += usize::from(value == 0.0 && away > fit.step);
                    }
                }
            }
            counts
        },
        |part| {
            all.groups += part.groups;
            all.fitting += part.fitting;
            all.levels = all.levels.max(part.levels);
            all.low = all.low.min(part.low);
            all.high = all.high.max(part.high);
            all.inside += part.inside;
            all.nearest += part.nearest;
            all.zeroed += part.zeroed;
        },
    )?;
    let on_grid = all.fitting as f64 / all.groups.max(1) as f64;
    if on_grid < MIN_SHARE {
        return Ok(None);
    }
    let bits = (1..=8).find(|&bits| all.levels <= f64::from(1u32 << bits)).unwrap_or(9);
    let half = f64::from(1u32 << (bits - 1));
    Ok(Some(Grid {
        bits,
        group,
        symmetric: !offset && all.low >= -half && all.high <= half,
        offset,
        on_grid,
        nearest: all.nearest as f64 / all.inside.max(1) as f64,
        zeroed: all.zeroed as f64 / pair.elements() as f64,
    }))
}

/// The one step of a tensor: found on the levels that occur, which are few if there is one.
fn whole_tensor(pair: &Pair<'_>, side: Side, offset: bool, precision: Precision) -> Result<Option<Fit>> {
    let mut levels: Option<Vec<f32>> = Some(Vec::new());
    let distinct = |mut values: Vec<f32>| {
        values.sort_unstable_by(f32::total_cmp);
        values.dedup();
        (values.len() <= MAX_LEVELS).then_some(values)
    };
    pair.walk(
        |piece| distinct(if side == Side::A { piece.a } else { piece.b }.to_vec()),
        |part| {
            levels = match (levels.take(), part) {
                (Some(mut known), Some(part)) => {
                    known.extend(part);
                    distinct(known)
                }
                _ => None,
            };
        },
    )?;
    Ok(levels.and_then(|levels| fit(&levels, precision.unit(), offset)))
}
