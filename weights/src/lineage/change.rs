//! What happened to one tensor: the kinds of change, from the plainest to the vaguest, each tried only if no plainer one
//! explains the pair.

use serde::Serialize;

use super::{
    arrange,
    grid::{self, Grid, Side},
    mask::{self, Mask},
    pair::{Arrangement, Pair},
    rank::{self, Spectrum},
    scale::{self, Rescaling},
    side::Array,
    stats::Stats,
};
use crate::Result;

/// Correlation under which two tensors are not held for relatives, whatever its significance: tensors of two trainings
/// share the spread of their rows and columns, which alone correlates them a little.
const UNRELATED: f64 = 0.05;
/// Standard deviations of chance that a correlation must exceed.
const SIGNIFICANT: f64 = 5.0;
/// Correlation a quantised or pruned copy has at least; rounding to one bit leaves 0.8.
const COPY: f64 = 0.5;
/// Share of elements newly zero that make a pruned copy although the others changed too; fewer come by rounding.
const PRUNED: f64 = 0.2;
/// Share of elements zeroed across more than a step that a grid alone does not do.
const ZEROED: f64 = 0.03;
/// Share of rows up to which rows of zeros on one side are rows that changed, either way: tokens that came into use are
/// more common than a pruning of so little.
const FEW_ROWS: f64 = 0.05;
/// Rows listed by number.
const LISTED: usize = 16;

/// How one type became the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// Every value is the same number.
    Exact,
    /// B is A rounded to nearest.
    Nearest,
    /// B is A with its last digits cut off.
    Truncated,
    /// A is B rounded to nearest.
    Reverse,
}

/// What happened to a tensor between A and B.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Change {
    /// The same values, as f32, in the same type.
    Equal,
    /// The same values in another type, up to that type's rounding.
    Retyped {
        /// How.
        rounding: Rounding,
    },
    /// A factor, or one a row or column.
    Rescaled {
        /// The factors.
        #[serde(flatten)]
        scales: Rescaling,
    },
    /// Zeros in one where the other has none.
    Pruned {
        /// Which side has the zeros.
        copy: Side,
        /// Where they are.
        #[serde(flatten)]
        mask: Mask,
        /// What is not zero is the same in both.
        kept_equal: bool,
    },
    /// The values of one side lie on a grid.
    Quantised {
        /// Which side.
        copy: Side,
        /// The grid.
        #[serde(flatten)]
        grid: Grid,
        /// Its zeros, if there are more than the grid itself makes.
        #[serde(skip_serializing_if = "Option::is_none")]
        pruned: Option<Mask>,
        /// The grid of the other side, if that is on one too.
        #[serde(skip_serializing_if = "Option::is_none")]
        origin: Option<Grid>,
    },
    /// Some rows differ, all others are equal.
    Rows {
        /// Rows that differ.
        changed: usize,
        /// Rows in all.
        of: usize,
        /// The first of them.
        first: Vec<usize>,
    },
    /// B − A is a matrix of low rank, up to rounding: a merged adapter.
    LowRank {
        /// Its spectrum.
        #[serde(flatten)]
        spectrum: Spectrum,
    },
    /// A relative of A, changed throughout.
    Retrained {
        /// The spectrum of the difference, for matrices.
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        spectrum: Option<Spectrum>,
    },
    /// No more alike than chance, or hardly.
    Unrelated {
        /// The correlation in standard deviations of that of independent values, 1/√n.
        z: f64,
    },
    /// Another shape that nothing explains.
    Reshaped,
}

impl Change {
    /// Its name, as records have it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Retyped { .. } => "retyped",
            Self::Rescaled { .. } => "rescaled",
            Self::Pruned { .. } => "pruned",
            Self::Quantised { .. } => "quantised",
            Self::Rows { .. } => "rows",
            Self::LowRank { .. } => "low-rank",
            Self::Retrained { .. } => "retrained",
            Self::Unrelated { .. } => "unrelated",
            Self::Reshaped => "reshaped",
        }
    }

    /// Whether the values are the same.
    pub fn is_equal(&self) -> bool {
        matches!(self, Self::Equal | Self::Retyped { rounding: Rounding::Exact })
    }
}

/// Figures of the difference, whatever its kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measured {
    /// ‖B − A‖ / ‖A‖ (Frobenius); `None` if A is all zero.
    pub relative: Option<f64>,
    /// Cosine of the angle between A and B; `None` if one is all zero.
    pub cosine: Option<f64>,
    /// Pearson's correlation of the elements; `None` if one is constant.
    pub correlation: Option<f64>,
    /// Share of the elements that differ.
    pub changed: f64,
    /// Largest |b − a|.
    pub largest: f64,
    /// Elements that are NaN or infinite on one side and something else on the other.
    pub nonfinite: usize,
}

impl Measured {
    fn of(stats: &Stats) -> Self {
        Self {
            relative: stats.relative(),
            cosine: stats.cosine(),
            correlation: stats.correlation(),
            changed: (stats.elements - stats.identical) as f64 / stats.elements as f64,
            largest: stats.largest,
            nonfinite: stats.nonfinite,
        }
    }
}

/// What a comparison of two arrays found.
#[derive(Debug, Clone)]
pub(super) struct Compared {
    pub change: Change,
    pub arrangement: Arrangement,
    pub measured: Option<Measured>,
    /// Bytes that differ although every value is the same as f32.
    pub bytes_differ: usize,
}

/// Compares `b` with `a`, whose rows are supposed to stand as `arrangement` says.
pub(super) fn compare(a: &Array, b: &Array, arrangement: Arrangement) -> Result<Compared> {
    let plain = |change, arrangement| Compared { change, arrangement, measured: None, bytes_differ: 0 };
    if arrangement == Arrangement::Same && same_bytes(a, b) {
        return Ok(plain(Change::Equal, arrangement));
    }
    let arrangement = match arrangement {
        Arrangement::Same if a.shape() != b.shape() => other_shape(a, b),
        known => Some(known),
    };
    let Some(mut pair) = arrangement.map(|arrangement| Pair::new(a, b, arrangement)).transpose()?.flatten() else {
        // Two empty arrays of one shape hold the same nothing.
        let change = if a.shape() == b.shape() && a.elements() == 0 { Change::Equal } else { Change::Reshaped };
        return Ok(plain(change, Arrangement::Same));
    };
    let mut stats = Stats::of(&pair)?;
    if pair.arrangement == Arrangement::Same
        && stats.identical < stats.elements
        && stats.cosine().is_some_and(|cosine| cosine < 0.95)
    {
        stats = rearranged(&mut pair, stats)?;
    }
    let change = judge(&pair, &stats)?;
    let turned = pair.arrangement == Arrangement::Transposed && a.shape() != b.shape();
    if turned && matches!(change, Change::Unrelated { .. }) {
        return Ok(plain(Change::Reshaped, Arrangement::Same));
    }
    let lie_alike = change == Change::Equal && pair.arrangement == Arrangement::Same;
    let bytes_differ = if lie_alike { differing_bytes(a, b) } else { 0 };
    let (arrangement, measured) = (pair.arrangement.clone(), Some(Measured::of(&stats)));
    Ok(Compared { change, arrangement, measured, bytes_differ })
}

/// Whether the two are byte for byte the same, without decoding.
fn same_bytes(a: &Array, b: &Array) -> bool {
    let (Some(x), Some(y)) = (a.view(), b.view()) else { return false };
    if x.dtype() != y.dtype() || x.shape() != y.shape() {
        return false;
    }
    let same = x.bytes() == y.bytes();
    x.release();
    y.release();
    same
}

/// Bytes in which two views of one type differ: values are compared as f32, which has no room for all of F64 and of wide
/// integers and makes one number of +0 and −0.
fn differing_bytes(a: &Array, b: &Array) -> usize {
    let (Some(x), Some(y)) = (a.view(), b.view()) else { return 0 };
    if x.dtype() != y.dtype() {
        return 0;
    }
    let differ = x.bytes().iter().zip(y.bytes().iter()).filter(|(x, y)| x != y).count();
    x.release();
    y.release();
    differ
}

/// How arrays of different shapes may lie in each other.
fn other_shape(a: &Array, b: &Array) -> Option<Arrangement> {
    let ((rows_a, columns_a), (rows_b, columns_b)) = (a.matrix(), b.matrix());
    if a.elements() == b.elements() && columns_a == columns_b {
        return Some(Arrangement::Same); // (1, n) and (n), and the like
    }
    if a.shape().len() == 2 && b.shape().len() == 2 {
        if (rows_a, columns_a) == (columns_b, rows_b) {
            return Some(Arrangement::Transposed);
        }
        if columns_a == columns_b {
            return Some(Arrangement::FirstRows { a: rows_a, b: rows_b });
        }
    }
    None
}

/// Tries other orders of the rows, and the transposed matrix where it is square; the figures of the best order.
fn rearranged(pair: &mut Pair<'_>, stats: Stats) -> Result<Stats> {
    let cosine = stats.cosine().unwrap_or(0.0);
    if arrange::find(pair, cosine)? {
        let better = Stats::of(pair)?;
        if better.cosine().is_some_and(|better| better > cosine.max(0.2) + 0.1) {
            return Ok(better);
        }
        pair.arrangement = Arrangement::Same;
    }
    if pair.rows == pair.columns && pair.rows > 1 && cosine < 0.3 {
        pair.arrangement = Arrangement::Transposed;
        let turned = Stats::of(pair)?;
        if turned.cosine().is_some_and(|turned| turned > cosine.max(0.2) + 0.1) {
            return Ok(turned);
        }
        pair.arrangement = Arrangement::Same;
    }
    Ok(stats)
}

fn judge(pair: &Pair<'_>, stats: &Stats) -> Result<Change> {
    let n = stats.elements;
    if stats.identical == n {
        let same_type = pair.a.array.stored() == pair.b.array.stored();
        return Ok(if same_type { Change::Equal } else { Change::Retyped { rounding: Rounding::Exact } });
    }
    if pair.a.array.precision() != pair.b.array.precision() {
        for (count, rounding) in [
            (stats.b_rounds_a, Rounding::Nearest),
            (stats.a_rounds_b, Rounding::Reverse),
            (stats.b_cuts_a, Rounding::Truncated),
        ] {
            if count == n {
                return Ok(Change::Retyped { rounding });
            }
        }
    }
    let correlation = stats.correlation().unwrap_or(0.0);
    let cosine = stats.cosine().unwrap_or(0.0);
    for (copy, zeros, others, kept) in [
        (Side::B, stats.zeros_b, stats.zeros_a, stats.kept_in_b),
        (Side::A, stats.zeros_a, stats.zeros_b, stats.kept_in_a),
    ] {
        let kept_equal = kept == n - zeros;
        if zeros > others && kept_equal && kept > 0 {
            let mask = mask::find(pair, copy)?;
            if pair.rows >= 8 && mask.is_of_rows() && mask.sparsity <= FEW_ROWS {
                return rows(pair, stats.rows_changed);
            }
            return Ok(Change::Pruned { copy, mask, kept_equal });
        }
    }
    if stats.nonfinite == 0
        && let Some(scales) = scale::find(pair, stats)?
    {
        return Ok(Change::Rescaled { scales });
    }
    if stats.nonfinite == 0 && correlation > COPY && pair.rows > 1 {
        if let Some(change) = quantised(pair)? {
            return Ok(change);
        }
        for (copy, zeros, others) in [(Side::B, stats.zeros_b, stats.zeros_a), (Side::A, stats.zeros_a, stats.zeros_b)]
        {
            if zeros as f64 > others as f64 + PRUNED * n as f64 {
                return Ok(Change::Pruned { copy, mask: mask::find(pair, copy)?, kept_equal: false });
            }
        }
    }
    if pair.rows >= 8 && stats.rows_changed * 4 <= pair.rows {
        return rows(pair, stats.rows_changed);
    }
    let z = correlation * (n as f64).sqrt();
    if correlation.abs() < UNRELATED && cosine.abs() < 0.5 || z.abs() < SIGNIFICANT && cosine.abs() < 0.5 {
        return Ok(Change::Unrelated { z });
    }
    if stats.nonfinite > 0 {
        return Ok(Change::Retrained { spectrum: None });
    }
    let spectrum = rank::find(pair, stats.rounding)?;
    Ok(match spectrum {
        Some(spectrum) if spectrum.low_rank => Change::LowRank { spectrum },
        spectrum => Change::Retrained { spectrum },
    })
}

/// A copy on a grid, on whichever side it is. Where both are, the copy is the one that is stored in codes, or else the
/// one that is rather the other's rounding.
fn quantised(pair: &Pair<'_>) -> Result<Option<Change>> {
    let (a, b) = (grid::find(pair, Side::A)?, grid::find(pair, Side::B)?);
    let (copy, grid, origin) = match (a, b) {
        (None, None) => return Ok(None),
        (None, Some(b)) => (Side::B, b, None),
        (Some(a), None) => (Side::A, a, None),
        (Some(a), Some(b)) => {
            let a_is_copy = match (pair.a.array.is_coded(), pair.b.array.is_coded()) {
                (true, false) => true,
                (false, true) => false,
                _ => a.nearest > b.nearest,
            };
            if a_is_copy { (Side::A, a, Some(b)) } else { (Side::B, b, Some(a)) }
        }
    };
    let mask = mask::find(pair, copy)?;
    let pruned = grid.zeroed >= ZEROED || mask.n_of_m.is_some() || mask.structured;
    Ok(Some(Change::Quantised { copy, grid, pruned: pruned.then_some(mask), origin }))
}

fn rows(pair: &Pair<'_>, changed: usize) -> Result<Change> {
    let mut first = Vec::new();
    pair.walk(
        |piece| {
            let lines = piece.a.chunks_exact(pair.columns).zip(piece.b.chunks_exact(pair.columns));
            let differs = |(a, b): (&[f32], &[f32])| a.iter().zip(b).any(|(a, b)| a != b && a.to_bits() != b.to_bits());
            let differing = piece.rows.clone().zip(lines).filter(|(_, line)| differs(*line)).map(|(row, _)| row);
            differing.take(LISTED).collect::<Vec<_>>()
        },
        |part| first.extend(part.into_iter().take(LISTED - first.len().min(LISTED))),
    )?;
    Ok(Change::Rows { changed, of: pair.rows, first })
}
