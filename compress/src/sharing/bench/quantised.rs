//! What was trained, rounded: each row of a matrix to a grid of its own, symmetric about zero.
//!
//! q = round(w / s), s = max |w| / (2^(bits − 1) − 1); s is kept in f32. No data, no error fed back: the plainest form
//! there is, and still hard to beat without training.

use crate::nn::{Weights, graph::Layout};

/// `weights` as `bits` bits a matrix value make them.
pub fn rounded(layout: &Layout, weights: &Weights, bits: u32) -> Weights {
    let mut out = weights.clone();
    let most = ((1u32 << (bits - 1)) - 1) as f32;
    for entry in layout.entries().iter().filter(|entry| entry.shape.len() > 1) {
        let columns = entry.values() / entry.shape[0];
        for row in out.values[entry.range()].chunks_exact_mut(columns) {
            let largest = row.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
            let step = largest / most;
            if step > 0.0 {
                row.iter_mut().for_each(|w| *w = (*w / step).round().clamp(-most, most) * step);
            }
        }
    }
    out
}

/// Bytes of all matrices in `bits` bits a value, with their steps.
pub fn bytes(layout: &Layout, bits: u32) -> u64 {
    let matrices = layout.entries().iter().filter(|entry| entry.shape.len() > 1);
    matrices.map(|entry| (entry.values() as u64 * u64::from(bits)).div_ceil(8) + 4 * entry.shape[0] as u64).sum()
}
