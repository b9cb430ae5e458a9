//! The pattern of zeros that pruning leaves.

use serde::Serialize;

use super::{grid::Side, pair::Pair};
use crate::Result;

/// At most `keep` of every `of` neighbours in a row are not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NOfM {
    /// Values kept.
    pub keep: usize,
    /// Length of a run.
    pub of: usize,
}

/// The zeros of a pruned tensor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mask {
    /// Share of the elements that are zero.
    pub sparsity: f64,
    /// The pattern n:m, if every run keeps to it and nearly every one is full.
    pub n_of_m: Option<NOfM>,
    /// Rows that are all zero.
    pub zero_rows: usize,
    /// Columns that are all zero.
    pub zero_columns: usize,
    /// Whole rows and columns make up all the zeros.
    pub structured: bool,
}

impl Mask {
    /// Whether the zeros are whole rows and nothing else. Such rows may have been there first (tokens not in use yet, say), and
    /// been trained in the other model.
    pub fn is_of_rows(&self) -> bool {
        self.structured && self.zero_columns == 0
    }
}

/// Lengths of a run that are looked for; the shortest that fits is the pattern (2:4 is a 4:8 too).
const RUNS: [usize; 4] = [2, 4, 8, 16];
/// Share of runs that must be full. A mask of the same sparsity without a pattern fills far fewer.
const MIN_FULL: f64 = 0.9;

/// Counts of runs by the number of values they keep, for one length.
type Kept = [usize; 17];

struct Counts {
    zeros: usize,
    zero_rows: usize,
    runs: [Kept; RUNS.len()],
    alive: Vec<bool>,
}

/// The pattern of zeros of `side`.
pub(super) fn find(pair: &Pair<'_>, side: Side) -> Result<Mask> {
    let columns = pair.columns;
    let empty = || Counts { zeros: 0, zero_rows: 0, runs: [[0; 17]; RUNS.len()], alive: vec![false; columns] };
    let mut all = empty();
    pair.walk(
        |piece| {
            let mut counts = empty();
            for row in if side == Side::A { piece.a } else { piece.b }.chunks_exact(columns) {
                let zeros = row.iter().filter(|value| **value == 0.0).count();
                counts.zeros += zeros;
                counts.zero_rows += usize::from(zeros == columns);
                for (alive, value) in counts.alive.iter_mut().zip(row) {
                    *alive |= *value != 0.0;
                }
                if zeros == columns {
                    continue; // says nothing about runs
                }
                for (length, kept) in RUNS.into_iter().zip(&mut counts.runs) {
                    for run in row.chunks_exact(length) {
                        kept[run.iter().filter(|value| **value != 0.0).count()] += 1;
                    }
                }
            }
            counts
        },
        |part| {
            all.zeros += part.zeros;
            all.zero_rows += part.zero_rows;
            for (all, part) in all.runs.iter_mut().flatten().zip(part.runs.iter().flatten()) {
                *all += part;
            }
            for (all, part) in all.alive.iter_mut().zip(part.alive) {
                *all |= part;
            }
        },
    )?;
    let pattern = |(length, kept): (usize, &Kept)| {
        let runs: usize = kept.iter().sum();
        let keep = kept.iter().rposition(|&count| count > 0)?;
        let full = kept[keep] as f64 >= MIN_FULL * runs as f64;
        (full && keep > 0 && keep < length && columns.is_multiple_of(length)).then_some(NOfM { keep, of: length })
    };
    let zero_columns = if all.zeros == pair.elements() { 0 } else { all.alive.iter().filter(|alive| !**alive).count() };
    let whole = all.zero_rows * columns + zero_columns * (pair.rows - all.zero_rows);
    let structured = whole == all.zeros && whole > 0;
    Ok(Mask {
        sparsity: all.zeros as f64 / pair.elements() as f64,
        n_of_m: if structured { None } else { RUNS.into_iter().zip(&all.runs).find_map(pattern) },
        zero_rows: all.zero_rows,
        zero_columns,
        structured,
    })
}
