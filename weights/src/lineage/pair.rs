//! A pair of arrays laid side by side: the rows of A brought into B's order, both walked through in pieces.
//!
//! Pieces are cut by size alone and their results are joined in order, so that every sum is the same for any number of
//! threads.

use std::ops::Range;

use rayon::prelude::*;
use serde::Serialize;

use super::side::{Array, Opened};
use crate::Result;

/// Elements of a piece.
const PIECE: usize = 1 << 18;
/// Pieces in flight, which bounds the memory of a walk.
const WAVE: usize = 8;
/// Elements of a piece where every piece reads the whole of A.
const TRANSPOSED_PIECE: usize = 1 << 23;

/// How the rows of B lie in A.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Arrangement {
    /// Row by row.
    Same,
    /// B is A transposed.
    Transposed,
    /// Within each head, HF keeps the two halves of rotated pairs apart, GGUF beside each other.
    Rope {
        /// Rows of a head.
        head_dim: usize,
        /// B has them beside each other, A apart.
        interleaved: bool,
    },
    /// The rows of B are those of A in another order.
    PermutedRows {
        /// Rows that stand at another place.
        moved: usize,
    },
    /// Only the first rows are compared, as one has more.
    FirstRows {
        /// Rows of A.
        a: usize,
        /// Rows of B.
        b: usize,
    },
    /// B is a run of rows of A (A is fused).
    RowsOfA {
        /// The first row.
        from: usize,
    },
    /// A is a run of rows of B (B is fused).
    RowsOfB {
        /// The first row.
        from: usize,
    },
}

/// The row of A that is row `row` of B under [`Arrangement::Rope`].
pub(super) fn rope_row(row: usize, head_dim: usize, interleaved: bool) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    let source = if interleaved {
        within % 2 * half + within / 2 // B's (k, half) is A's (half, k)
    } else {
        within % half * 2 + within / half
    };
    head * head_dim + source
}

/// Two opened arrays and what to compare of them.
pub(super) struct Pair<'a> {
    pub a: Opened<'a>,
    pub b: Opened<'a>,
    /// Rows and columns compared, in B's order.
    pub rows: usize,
    pub columns: usize,
    pub arrangement: Arrangement,
    /// For [`Arrangement::PermutedRows`]: the row of A for each of B.
    pub permutation: Vec<usize>,
}

/// Sides of a piece: the rows it covers, A's numbers, B's numbers, both row-major.
pub(super) struct Piece<'p> {
    pub rows: Range<usize>,
    pub a: &'p [f32],
    pub b: &'p [f32],
}

impl<'a> Pair<'a> {
    /// The two side by side as `arrangement` says, or `None` if their shapes do not allow it.
    pub fn new(a: &'a Array, b: &'a Array, arrangement: Arrangement) -> Result<Option<Self>> {
        let ((a_rows, a_columns), (b_rows, columns)) = (a.matrix(), b.matrix());
        let (rows, fits) = match arrangement {
            Arrangement::Transposed => (b_rows, (a_rows, a_columns) == (columns, b_rows)),
            Arrangement::FirstRows { .. } => (a_rows.min(b_rows), a_columns == columns),
            Arrangement::RowsOfA { from } => (b_rows, a_columns == columns && from + b_rows <= a_rows),
            Arrangement::RowsOfB { from } => (a_rows, a_columns == columns && from + a_rows <= b_rows),
            _ => (b_rows, (a_rows, a_columns) == (b_rows, columns)),
        };
        if !fits || rows == 0 || columns == 0 {
            return Ok(None);
        }
        Ok(Some(Self { a: a.open()?, b: b.open()?, rows, columns, arrangement, permutation: Vec::new() }))
    }

    pub fn elements(&self) -> usize {
        self.rows * self.columns
    }

    /// Rows `rows` of B's order from A.
    pub fn read_a(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let each = |source: &dyn Fn(usize) -> usize, out: &mut [f32]| {
            rows.clone().zip(out.chunks_exact_mut(self.columns)).try_for_each(|(row, out)| {
                let row = source(row);
                self.a.read(row..row + 1, out)
            })
        };
        match self.arrangement {
            Arrangement::Same | Arrangement::FirstRows { .. } | Arrangement::RowsOfB { .. } => self.a.read(rows, out),
            Arrangement::RowsOfA { from } => self.a.read(rows.start + from..rows.end + from, out),
            Arrangement::Rope { head_dim, interleaved } => each(&|row| rope_row(row, head_dim, interleaved), out),
            Arrangement::PermutedRows { .. } => each(&|row| self.permutation[row], out),
            Arrangement::Transposed => {
                let mut stored = vec![0.0; self.rows]; // a row of A is a column of B
                for column in 0..self.columns {
                    self.a.read(column..column + 1, &mut stored)?;
                    for (at, row) in rows.clone().enumerate() {
                        out[at * self.columns + column] = stored[row];
                    }
                }
                Ok(())
            }
        }
    }

    /// Rows `rows` of B.
    pub fn read_b(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        match self.arrangement {
            Arrangement::RowsOfB { from } => self.b.read(rows.start + from..rows.end + from, out),
            _ => self.b.read(rows, out),
        }
    }

    /// Walks through all rows: `work` on the pieces in parallel, `join` on its results in order.
    pub fn walk<T: Send>(&self, work: impl Fn(&Piece<'_>) -> T + Sync, mut join: impl FnMut(T)) -> Result<()> {
        let transposed = self.arrangement == Arrangement::Transposed;
        let size = if transposed { TRANSPOSED_PIECE } else { PIECE };
        let step = (size / self.columns).max(1);
        let starts: Vec<usize> = (0..self.rows).step_by(step).collect();
        for wave in starts.chunks(WAVE) {
            let results: Vec<Result<T>> = wave
                .par_iter()
                .map_init(
                    || (Vec::new(), Vec::new()),
                    |(a, b), &start| {
                        let rows = start..(start + step).min(self.rows);
                        let elements = rows.len() * self.columns;
                        a.resize(elements, 0.0);
                        b.resize(elements, 0.0);
                        self.read_a(rows.clone(), a)?;
                        self.read_b(rows.clone(), b)?;
                        Ok(work(&Piece { rows, a, b }))
                    },
                )
                .collect();
            for result in results {
                join(result?);
            }
        }
        Ok(())
    }
}
