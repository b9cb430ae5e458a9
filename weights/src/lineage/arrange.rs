//! Finds the order in which the rows of B stand in A.

use super::pair::{Arrangement, Pair, rope_row};
use crate::Result;

/// Lengths of an attention head in use.
const HEADS: [usize; 14] = [8, 16, 32, 48, 64, 72, 80, 96, 112, 120, 128, 160, 192, 256];
/// Rows of B that are tried.
const TRIED: usize = 32;
/// Columns that stand for a row. The cosine of unrelated rows then varies by 1/√128 = 0.09.
const SKETCH: usize = 128;
/// Cosine of rows that belong together: seven times that, and met by rows rounded to 2 bits.
const ALIKE: f64 = 0.6;
/// Above this many rows, each is not compared with each.
const MOST_ROWS: usize = 8192;

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

/// Brings the rows of A into another order if B's stand in one: first the orders of rotary embedding, then any.
/// `cosine_now` is the cosine of A and B as they are. Whether `pair` was changed.
pub(super) fn find(pair: &mut Pair<'_>, cosine_now: f64) -> Result<bool> {
    if pair.arrangement != Arrangement::Same || pair.rows < 8 || pair.columns < 8 {
        return Ok(false);
    }
    if let Some(rope) = rope(pair, cosine_now)? {
        pair.arrangement = rope;
        return Ok(true);
    }
    if cosine_now > 0.3 || pair.rows > MOST_ROWS {
        return Ok(false);
    }
    if let Some(permutation) = permutation(pair)? {
        let moved = permutation.iter().enumerate().filter(|(row, source)| row != *source).count();
        pair.permutation = permutation;
        pair.arrangement = Arrangement::PermutedRows { moved };
        return Ok(true);
    }
    Ok(false)
}

fn rope(pair: &Pair<'_>, cosine_now: f64) -> Result<Option<Arrangement>> {
    let (mut a, mut b) = (vec![0.0; pair.columns], vec![0.0; pair.columns]);
    let mut best = (cosine_now.max(0.2) + 0.1, None);
    for head_dim in HEADS.into_iter().filter(|&head_dim| pair.rows.is_multiple_of(head_dim)) {
        for interleaved in [true, false] {
            let source = |row| rope_row(row, head_dim, interleaved);
            let mut rows = (0..pair.rows).filter(|&row| source(row) != row);
            // Spread over the tensor, at distances that are no multiple of a head.
            let stride = (pair.rows / TRIED).max(1) | 1;
            let (mut sum, mut count) = (0.0, 0);
            while let Some(row) = rows.nth(if count == 0 { 0 } else { stride - 1 })
                && count < TRIED
            {
                pair.a.read(source(row)..source(row) + 1, &mut a)?;
                pair.b.read(row..row + 1, &mut b)?;
                sum += cosine(&a, &b);
                count += 1;
            }
            let mean = sum / f64::from(count as u32).max(1.0);
            if mean > best.0 {
                best = (mean, Some(Arrangement::Rope { head_dim, interleaved }));
            }
        }
    }
    Ok(best.1)
}

/// The row of A for each row of B, if each row of B has one that is like it and no two have the same.
fn permutation(pair: &Pair<'_>) -> Result<Option<Vec<usize>>> {
    let step = (pair.columns / SKETCH).max(1);
    let width = pair.columns.div_ceil(step);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    pair.walk(
        |piece| {
            let sketch = |values: &[f32]| -> Vec<f32> {
                let sketch_row = |row: &[f32]| {
                    let mut row: Vec<f32> = row.iter().step_by(step).copied().collect();
                    let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                    row.iter_mut().for_each(|x| *x /= norm.max(f32::MIN_POSITIVE));
                    row
                };
                values.chunks_exact(pair.columns).flat_map(sketch_row).collect()
            };
            (sketch(piece.a), sketch(piece.b))
        },
        |(part_a, part_b)| {
            a.extend(part_a);
            b.extend(part_b);
        },
    )?;
    let nearest = |row: usize| -> Option<usize> {
        let row = &b[row * width..][..width];
        let dots = a.chunks_exact(width).map(|other| row.iter().zip(other).map(|(x, y)| x * y).sum::<f32>());
        let (source, dot) = dots.enumerate().max_by(|x, y| x.1.total_cmp(&y.1).then(y.0.cmp(&x.0)))?;
        (f64::from(dot) > ALIKE).then_some(source)
    };
    let tried = pair.rows.min(TRIED);
    let found = (0..tried).filter(|at| nearest(at * pair.rows / tried).is_some()).count();
    if found * 10 < tried * 9 {
        return Ok(None);
    }
    use rayon::prelude::*;
    let Some(sources) = (0..pair.rows).into_par_iter().map(nearest).collect::<Option<Vec<usize>>>() else {
        return Ok(None);
    };
    let mut used = vec![false; pair.rows];
    let distinct = sources.iter().all(|&source| !std::mem::replace(&mut used[source], true));
    Ok(distinct.then_some(sources))
}
