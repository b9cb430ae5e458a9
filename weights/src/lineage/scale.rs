//! Finds one factor, or a factor a row or column, that turns A into B.
//!
//! The factor that fits best in the least-squares sense is c = ⟨a, b⟩/⟨a, a⟩, and leaves ‖b − c·a‖² = ⟨b, b⟩ − ⟨a, b⟩²/⟨a, a⟩.
//! A is rescaled where what is left is no more than rounding both to their types explains.

use serde::Serialize;

use super::{pair::Pair, stats::Stats};
use crate::Result;

/// What has a factor of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaled {
    /// The whole tensor.
    Tensor,
    /// Each row, as where a norm behind it was folded in.
    Rows,
    /// Each column, as where a norm before it was folded in.
    Columns,
}

/// The factors that turn A into B.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rescaling {
    /// What has a factor of its own.
    pub of: Scaled,
    /// Smallest factor.
    pub least: f64,
    /// Largest factor.
    pub most: f64,
    /// ‖B − scaled A‖ / ‖B‖.
    pub residual: f64,
}

/// Room over the expected rounding energy: its expectation is a bound only on average.
const ROUNDING_ROOM: f64 = 4.0;
/// Relative energy that the subtraction of sums of squares may leave in f64.
const ARITHMETIC: f64 = 1e-12;
/// How much less of the difference must be left than without factors.
const GAIN: f64 = 16.0;
/// Rows or columns below which a factor each could fit anything.
const MIN_LINES: usize = 8;

/// ⟨a, a⟩, ⟨b, b⟩ and ⟨a, b⟩.
#[derive(Clone, Copy, Default)]
struct Products {
    aa: f64,
    bb: f64,
    ab: f64,
}

impl Products {
    fn add(&mut self, a: f32, b: f32) {
        let (a, b) = (f64::from(a), f64::from(b));
        self.aa += a * a;
        self.bb += b * b;
        self.ab += a * b;
    }

    fn join(&mut self, other: &Self) {
        self.aa += other.aa;
        self.bb += other.bb;
        self.ab += other.ab;
    }

    fn left(&self) -> f64 {
        if self.aa > 0.0 { (self.bb - self.ab * self.ab / self.aa).max(0.0) } else { self.bb }
    }
}

/// The fewest factors that turn A into B, if any do.
pub(super) fn find(pair: &Pair<'_>, stats: &Stats) -> Result<Option<Rescaling>> {
    let whole = Products { aa: stats.aa, bb: stats.bb, ab: stats.ab };
    if stats.nonfinite > 0 || stats.aa == 0.0 || stats.bb == 0.0 {
        return Ok(None);
    }
    let allowed = ROUNDING_ROOM * stats.rounding_scaled + ARITHMETIC * stats.bb;
    let found = |of, lines: &[Products]| {
        let left: f64 = lines.iter().map(Products::left).sum();
        (left <= allowed && left * GAIN <= stats.dd).then(|| {
            let factors = lines.iter().filter(|line| line.aa > 0.0).map(|line| line.ab / line.aa);
            let (least, most) = factors.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), factor| {
                (least.min(factor), most.max(factor))
            });
            Rescaling { of, least, most, residual: (left / stats.bb).sqrt() }
        })
    };
    if pair.elements() >= MIN_LINES
        && let Some(rescaling) = found(Scaled::Tensor, &[whole])
    {
        return Ok(Some(rescaling));
    }
    if pair.rows < MIN_LINES || pair.columns < MIN_LINES {
        return Ok(None);
    }
    // The remainder of a factor a line is at most that of one factor, so a pair that is far off is not walked again.
    let mut rows = Vec::with_capacity(pair.rows);
    let mut columns = vec![Products::default(); pair.columns];
    pair.walk(
        |piece| {
            let mut rows = Vec::new();
            let mut columns = vec![Products::default(); pair.columns];
            for (a, b) in piece.a.chunks_exact(pair.columns).zip(piece.b.chunks_exact(pair.columns)) {
                let mut row = Products::default();
                for ((&a, &b), column) in a.iter().zip(b).zip(&mut columns) {
                    row.add(a, b);
                    column.add(a, b);
                }
                rows.push(row);
            }
            (rows, columns)
        },
        |(part_rows, part_columns)| {
            rows.extend(part_rows);
            columns.iter_mut().zip(&part_columns).for_each(|(column, part)| column.join(part));
        },
    )?;
    Ok(found(Scaled::Rows, &rows).or_else(|| found(Scaled::Columns, &columns)))
}
