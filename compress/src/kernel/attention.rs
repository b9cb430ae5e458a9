//! Causal grouped-query attention of one sequence.

use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::activation::{axpy, dot, softmax_row};

/// Query rows worked on at a time: their scores stay in the second-level cache, and keys behind the last of them are
/// never touched.
const QUERY_ROWS: usize = 64;

/// Shapes of one attention call.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// A query sees this many latest keys, itself included.
    pub window: Option<usize>,
}

/// softmax(Q Kᵀ / √head_dim, causal) V (Vaswani et al. 2017, eq. 1; Ainslie et al. 2023 for shared heads).
///
/// * `q`: (queries, n_heads · head_dim), the last `queries` positions of the sequence;
/// * `keys`, `values`: one (positions, head_dim) array a key/value head, `positions ≥ queries`;
/// * `out`: (queries, n_heads · head_dim).
pub fn attention(heads: Heads, q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>], out: &mut [f32]) {
    let Heads { n_heads, n_kv_heads, head_dim, window } = heads;
    let width = n_heads * head_dim;
    let queries = q.len() / width;
    let positions = keys[0].len() / head_dim;
    let past = positions - queries;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let shared = n_heads / n_kv_heads;

    if queries == 1 {
        let first = window.map_or(0, |window| positions.saturating_sub(window));
        out.par_chunks_exact_mut(head_dim).enumerate().for_each(|(head, out)| {
            let (k, v) = (&keys[head / shared], &values[head / shared]);
            let q = &q[head * head_dim..][..head_dim];
            let mut scores: Vec<f32> = k.chunks_exact(head_dim).skip(first).map(|k| dot(q, k)).collect();
            softmax_row(&mut scores, scale);
            out.fill(0.0);
            for (&weight, v) in scores.iter().zip(v.chunks_exact(head_dim).skip(first)) {
                axpy(weight, v, out);
            }
        });
        return;
    }

    // Each task owns one block of query rows over all columns, and walks through the heads.
    out.par_chunks_mut(QUERY_ROWS * width).enumerate().for_each(|(block, out)| {
        let first_row = block * QUERY_ROWS;
        let rows = out.len() / width;
        let last_key = past + first_row + rows; // exclusive
        let first_key = window.map_or(0, |window| (past + first_row + 1).saturating_sub(window));
        let span = last_key - first_key;
        let mut scores = vec![0.0f32; rows * span];
        for head in 0..n_heads {
            let (k, v) = (&keys[head / shared], &values[head / shared]);
            let q = &q[first_row * width + head * head_dim..];
            let (k, v) = (&k[first_key * head_dim..], &v[first_key * head_dim..]);
            // SAFETY: all operands lie inside their slices: q has `rows` rows of stride `width` from this head's first
            // column, k and v have `span` rows from `first_key`, scores is (rows, span), out is (rows, width).
            unsafe {
                gemm(
                    rows,
                    span,
                    head_dim,
                    scores.as_mut_ptr(),
                    1,
                    span as isize,
                    false,
                    q.as_ptr(),
                    1,
                    width as isize,
                    k.as_ptr(),
                    head_dim as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    Parallelism::None,
                );
            }
            for (row, scores) in scores.chunks_exact_mut(span).enumerate() {
                let position = past + first_row + row;
                let end = position + 1 - first_key;
                let start = window.map_or(0, |window| (position + 1).saturating_sub(window).saturating_sub(first_key));
                scores[..start].fill(0.0);
                scores[end..].fill(0.0);
                softmax_row(&mut scores[start..end], scale);
            }
            // SAFETY: as above; the output columns of this head start at head · head_dim.
            unsafe {
                gemm(
                    rows,
                    head_dim,
                    span,
                    out.as_mut_ptr().add(head * head_dim),
                    1,
                    width as isize,
                    false,
                    scores.as_ptr(),
                    1,
                    span as isize,
                    v.as_ptr(),
                    1,
                    head_dim as isize,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    Parallelism::None,
                );
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Definition, one query and one head at a time, in f64.
    fn naive(heads: Heads, q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f64> {
        let Heads { n_heads, n_kv_heads, head_dim, window } = heads;
        let queries = q.len() / (n_heads * head_dim);
        let positions = keys[0].len() / head_dim;
        let mut out = vec![0.0; q.len()];
        for i in 0..queries {
            let position = positions - queries + i;
            for head in 0..n_heads {
                let kv = head * n_kv_heads / n_heads;
                let seen = |j: usize| j <= position && window.is_none_or(|w| position - j < w);
                let score = |j: usize| -> f64 {
                    let at = |d: usize| {
                        f64::from(q[(i * n_heads + head) * head_dim + d]) * f64::from(keys[kv][j * head_dim + d])
                    };
                    (0..head_dim).map(at).sum::<f64>() / (head_dim as f64).sqrt()
                };
                let total: f64 = (0..positions).filter(|&j| seen(j)).map(|j| score(j).exp()).sum();
                for j in (0..positions).filter(|&j| seen(j)) {
                    for d in 0..head_dim {
                        out[(i * n_heads + head) * head_dim + d] +=
                            score(j).exp() / total * f64::from(values[kv][j * head_dim + d]);
                    }
                }
            }
        }
        out
    }

    #[test]
    fn equals_the_definition() {
        let pattern = |n: usize, step: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * step + 13) % 89) as f32 / 44.5 - 1.0).collect()
        };
        for (queries, past, window) in [
            (1, 0, None),
            (1, 77, None),
            (1, 77, Some(10)),
            (70, 0, None),
            (130, 9, None),
            (130, 9, Some(20)),
            (5, 3, Some(1)),
        ] {
            let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 6, window };
            let positions = queries + past;
            let q = pattern(queries * 24, 31);
            let keys = vec![pattern(positions * 6, 17), pattern(positions * 6, 23)];
            let values = vec![pattern(positions * 6, 41), pattern(positions * 6, 7)];
            let mut out = vec![f32::NAN; queries * 24];
            attention(heads, &q, &keys, &values, &mut out);
            let expected = naive(heads, &q, &keys, &values);
            for (i, (got, want)) in out.iter().zip(&expected).enumerate() {
                assert!((f64::from(*got) - want).abs() < 1e-5, "{queries} queries, element {i}: {got} against {want}");
            }
        }
    }
}
