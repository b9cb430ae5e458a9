//! Grouped-query attention of one sequence, causal or looking both ways.

use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::activation::{axpy, dot, softcap, softmax_row};

/// Query rows worked on at a time: their scores stay in the second-level cache, and keys behind the last of them are
/// never touched.
const QUERY_ROWS: usize = 64;

/// Shapes and switches of one attention call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// A query sees the keys less than this many positions away, itself included.
    pub window: Option<usize>,
    /// A query sees no key behind its own position; otherwise it sees both ways.
    pub causal: bool,
    /// Factor on the products of queries and keys.
    pub scale: f32,
    /// A scaled score s becomes `cap · tanh(s / cap)` (Gemma 2), before any bias.
    pub softcap: Option<f32>,
}

impl Heads {
    /// Causal heads as most decoders have them: all past keys seen, scores scaled by 1/√head_dim, no cap.
    pub fn causal(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self { n_heads, n_kv_heads, head_dim, window: None, causal: true, scale, softcap: None }
    }

    /// Heads as most encoders have them: every query sees every key, as many key heads as query heads.
    pub fn bidirectional(n_heads: usize, head_dim: usize) -> Self {
        Self { causal: false, ..Self::causal(n_heads, n_heads, head_dim) }
    }

    /// Keys that the queries at positions `from..to` see together, of `positions`.
    fn seen(&self, from: usize, to: usize, positions: usize) -> std::ops::Range<usize> {
        let first = self.window.map_or(0, |window| (from + 1).saturating_sub(window));
        let last = match (self.causal, self.window) {
            (true, _) => to,
            (false, None) => positions,
            (false, Some(window)) => positions.min(to.saturating_add(window) - 1),
        };
        first..last
    }
}

/// Numbers added to the scaled scores, by head and by key position − query position: learned relative positions
/// (Shaw et al. 2018), or slopes over the distance (Press et al. 2022, ALiBi).
#[derive(Debug, Clone, PartialEq)]
pub struct DistanceBias {
    reach: usize,
    values: Vec<f32>, // (heads, 2 · reach − 1)
}

impl DistanceBias {
    /// `bias(head, key − query)` for `n_heads` heads and distances smaller than `reach` both ways.
    pub fn new(n_heads: usize, reach: usize, bias: impl Fn(usize, isize) -> f32) -> Self {
        let distances = |head| (1..2 * reach).map(move |at| (head, at as isize - reach as isize));
        Self { reach, values: (0..n_heads).flat_map(distances).map(|(head, distance)| bias(head, distance)).collect() }
    }

    /// The biases of `head` for the query at `position` and the keys from `first` on.
    fn row(&self, head: usize, position: usize, first: usize) -> &[f32] {
        let width = 2 * self.reach - 1;
        &self.values[head * width..][..width][self.reach - 1 + first - position..]
    }
}

/// softmax(scale · Q Kᵀ, masked) V (Vaswani et al. 2017, eq. 1; Ainslie et al. 2023 for shared heads).
///
/// * `q`: (queries, n_heads · head_dim), the last `queries` positions of the sequence;
/// * `keys`, `values`: one (positions, head_dim) array a key/value head, `positions ≥ queries`;
/// * `out`: (queries, n_heads · head_dim).
pub fn attention(heads: Heads, q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>], out: &mut [f32]) {
    attention_with_bias(heads, None, q, keys, values, out);
}

/// [`attention`] with `bias` added to the scaled scores.
///
/// # Panics
/// If the sequence is longer than the bias reaches.
pub fn attention_with_bias(
    heads: Heads,
    bias: Option<&DistanceBias>,
    q: &[f32],
    keys: &[Vec<f32>],
    values: &[Vec<f32>],
    out: &mut [f32],
) {
    let Heads { n_heads, n_kv_heads, head_dim, .. } = heads;
    let width = n_heads * head_dim;
    let queries = q.len() / width;
    let positions = keys[0].len() / head_dim;
    let past = positions - queries;
    let shared = n_heads / n_kv_heads;
    assert!(bias.is_none_or(|bias| positions <= bias.reach), "{positions} positions are more than the bias reaches");

    // Weights of the keys from `first` on for the query at `position`, in place of their products.
    let weigh = |scores: &mut [f32], head: usize, position: usize, first: usize| {
        if heads.softcap.is_none() && bias.is_none() {
            return softmax_row(scores, heads.scale);
        }
        scores.iter_mut().for_each(|score| *score *= heads.scale);
        if let Some(cap) = heads.softcap {
            softcap(scores, cap);
        }
        if let Some(bias) = bias {
            scores.iter_mut().zip(bias.row(head, position, first)).for_each(|(score, bias)| *score += bias);
        }
        softmax_row(scores, 1.0);
    };

    if queries == 1 {
        let seen = heads.seen(past, positions, positions);
        out.par_chunks_exact_mut(head_dim).enumerate().for_each(|(head, out)| {
            let (k, v) = (&keys[head / shared], &values[head / shared]);
            let q = &q[head * head_dim..][..head_dim];
            let mut scores: Vec<f32> = k.chunks_exact(head_dim).skip(seen.start).map(|k| dot(q, k)).collect();
            weigh(&mut scores, head, past, seen.start);
            out.fill(0.0);
            for (&weight, v) in scores.iter().zip(v.chunks_exact(head_dim).skip(seen.start)) {
                axpy(weight, v, out);
            }
        });
        return;
    }

    // Each task owns one block of query rows over all columns, and walks through the heads.
    out.par_chunks_mut(QUERY_ROWS * width).enumerate().for_each(|(block, out)| {
        let first_row = block * QUERY_ROWS;
        let rows = out.len() / width;
        let keys_seen = heads.seen(past + first_row, past + first_row + rows, positions);
        let (first_key, span) = (keys_seen.start, keys_seen.len());
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
                let seen = heads.seen(position, position + 1, positions);
                let (start, end) = (seen.start - first_key, seen.end - first_key);
                scores[..start].fill(0.0);
                scores[end..].fill(0.0);
                weigh(&mut scores[start..end], head, position, seen.start);
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

    /// Largest difference to the definition: outputs are averages of numbers up to 1 with weights from scores of a few
    /// units, each off by some 1e-6.
    const MAX_DIFFERENCE: f64 = 1e-5;

    /// Definition, one query and one head at a time, in f64.
    fn naive(
        heads: Heads,
        bias: impl Fn(usize, isize) -> f32,
        q: &[f32],
        keys: &[Vec<f32>],
        values: &[Vec<f32>],
    ) -> Vec<f64> {
        let Heads { n_heads, n_kv_heads, head_dim, window, causal, scale, softcap } = heads;
        let queries = q.len() / (n_heads * head_dim);
        let positions = keys[0].len() / head_dim;
        let mut out = vec![0.0; q.len()];
        for i in 0..queries {
            let position = positions - queries + i;
            for head in 0..n_heads {
                let kv = head * n_kv_heads / n_heads;
                let seen = |j: usize| (j <= position || !causal) && window.is_none_or(|w| position.abs_diff(j) < w);
                let score = |j: usize| -> f64 {
                    let at = |d: usize| {
                        f64::from(q[(i * n_heads + head) * head_dim + d]) * f64::from(keys[kv][j * head_dim + d])
                    };
                    let score = (0..head_dim).map(at).sum::<f64>() * f64::from(scale);
                    let score = softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
                    score + f64::from(bias(head, j as isize - position as isize))
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
        let slope = |head: usize, distance: isize| (head + 1) as f32 * 0.03 * distance as f32;
        let flat = |_: usize, _: isize| 0.0;
        for (queries, past, window) in [
            (1, 0, None),
            (1, 77, None),
            (1, 77, Some(10)),
            (70, 0, None),
            (130, 9, None),
            (130, 9, Some(20)),
            (5, 3, Some(1)),
        ] {
            for (causal, softcap, scale, biased) in [
                (true, None, None, false),
                (false, None, None, false),
                (true, Some(0.7), Some(0.9), false),
                (false, None, None, true),
                (true, Some(0.7), None, true),
            ] {
                let usual = Heads::causal(4, 2, 6);
                let heads = Heads { window, causal, softcap, scale: scale.unwrap_or(usual.scale), ..usual };
                let positions = queries + past;
                let q = pattern(queries * 24, 31);
                let keys = vec![pattern(positions * 6, 17), pattern(positions * 6, 23)];
                let values = vec![pattern(positions * 6, 41), pattern(positions * 6, 7)];
                let mut out = vec![f32::NAN; queries * 24];
                let expected = if biased {
                    let bias = DistanceBias::new(4, positions + 3, slope);
                    attention_with_bias(heads, Some(&bias), &q, &keys, &values, &mut out);
                    naive(heads, slope, &q, &keys, &values)
                } else {
                    attention(heads, &q, &keys, &values, &mut out);
                    naive(heads, flat, &q, &keys, &values)
                };
                for (i, (got, want)) in out.iter().zip(&expected).enumerate() {
                    let difference = (f64::from(*got) - want).abs();
                    assert!(
                        difference.total_cmp(&MAX_DIFFERENCE).is_lt(),
                        "{queries} queries, {heads:?}, element {i}: {got} against {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_usual_heads_scale_by_the_root_of_their_width() {
        let heads = Heads::causal(8, 2, 64);
        assert_eq!((heads.scale, heads.causal, heads.softcap, heads.window), (0.125, true, None, None));
        let heads = Heads::bidirectional(12, 32);
        assert_eq!((heads.n_kv_heads, heads.causal, heads.scale), (12, false, 1.0 / 32.0f32.sqrt()));
    }
}
