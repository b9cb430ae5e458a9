//! What compression does to embeddings: how far each vector turns, and how many of its nearest neighbours it keeps.

use rayon::prelude::*;
use serde::Serialize;

use crate::{Error, Result, measure::Figure};

/// Neighbours looked at for each text, where there are as many.
pub const NEIGHBOURS: usize = 10;

/// Two models' embeddings of the same texts.
#[derive(Debug, Clone, Serialize)]
pub struct EmbeddingComparison {
    /// Texts.
    pub texts: usize,
    /// Mean cosine of a text's two vectors.
    pub cosine: Figure,
    /// The least of them.
    pub cosine_least: f64,
    /// Neighbours looked at.
    pub neighbours: usize,
    /// Mean share of a text's nearest neighbours (by cosine, among the other texts) that stay among them.
    pub overlap: Figure,
    /// The share that would stay if the neighbours were drawn at random.
    pub chance: f64,
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

/// The `k` texts nearest to text `of`, ties to the first, sorted by number.
fn nearest(vectors: &[&[f32]], of: usize, k: usize) -> Vec<usize> {
    let mut others: Vec<(f64, usize)> = (0..vectors.len())
        .filter(|&other| other != of)
        .map(|other| (cosine(vectors[of], vectors[other]), other))
        .collect();
    others.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut nearest: Vec<usize> = others.into_iter().take(k).map(|(_, other)| other).collect();
    nearest.sort_unstable();
    nearest
}

/// Compares the embeddings `dense` and `compressed` of the same texts, (texts, `dimensions`) each.
///
/// # Errors
/// If there are fewer than three texts, or the two differ in size.
pub fn compare(dense: &[f32], compressed: &[f32], dimensions: usize) -> Result<EmbeddingComparison> {
    let texts = dense.len() / dimensions.max(1);
    if dense.len() != compressed.len() || texts < 3 {
        return Err(Error::Text(format!(
            "{texts} embeddings of {dimensions} numbers were given, and {} beside them; expected as many, at least 3",
            compressed.len() / dimensions.max(1)
        )));
    }
    let k = NEIGHBOURS.min(texts - 2);
    let rows = |values: &'_ [f32]| -> Vec<Vec<f32>> { values.chunks_exact(dimensions).map(<[f32]>::to_vec).collect() };
    let (dense, compressed) = (rows(dense), rows(compressed));
    let (dense, compressed): (Vec<&[f32]>, Vec<&[f32]>) =
        (dense.iter().map(Vec::as_slice).collect(), compressed.iter().map(Vec::as_slice).collect());
    let cosines: Vec<f64> = dense.iter().zip(&compressed).map(|(a, b)| cosine(a, b)).collect();
    let overlaps: Vec<f64> = (0..texts)
        .into_par_iter()
        .map(|of| {
            let (before, after) = (nearest(&dense, of, k), nearest(&compressed, of, k));
            before.iter().filter(|other| after.binary_search(other).is_ok()).count() as f64 / k as f64
        })
        .collect();
    Ok(EmbeddingComparison {
        texts,
        cosine: Figure::mean(&cosines),
        cosine_least: cosines.iter().copied().fold(f64::INFINITY, f64::min),
        neighbours: k,
        overlap: Figure::mean(&overlaps),
        chance: k as f64 / (texts - 1) as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::test_values::uniform;

    #[test]
    fn the_same_embeddings_keep_all_and_unrelated_ones_what_chance_leaves() {
        let (texts, dimensions) = (300, 16);
        let a = uniform(texts * dimensions, 1);
        let same = compare(&a, &a, dimensions).unwrap();
        assert!((same.cosine.value - 1.0).abs() < 1e-12 && same.overlap.value == 1.0);
        let scaled: Vec<f32> = a.iter().map(|x| 4.0 * x).collect();
        assert_eq!(compare(&a, &scaled, dimensions).unwrap().overlap.value, 1.0);
        let other = compare(&a, &uniform(texts * dimensions, 2), dimensions).unwrap();
        let off = (other.overlap.value - other.chance).abs();
        assert!(off < 4.0 * other.overlap.stderr.unwrap(), "{} for {}", other.overlap.value, other.chance);
        assert!(other.cosine.value.abs() < 0.1);
        assert!(compare(&a, &a[16..], 16).is_err() && compare(&a[..32], &a[..32], 16).is_err());
    }
}
