//! How far the numbers that stand for a row are from it: sums whose order, and so whose bits, are the same on every path.

use std::{iter::Sum, ops::Add};

/// Sums run in so many lanes, element `i` in lane `i mod LANES`.
pub const LANES: usize = 16;

/// What was lost where one array stands for another.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loss {
    /// Σ (stored − dense)².
    pub lost: f64,
    /// Σ dense².
    pub energy: f64,
    /// How many of the stored are zero.
    pub zeros: u64,
}

impl Loss {
    /// From the lanes of a row.
    pub fn of_lanes(lost: &[f32; LANES], energy: &[f32; LANES], zeros: u64) -> Self {
        let sum = |lanes: &[f32; LANES]| lanes.iter().copied().map(f64::from).sum();
        Self { lost: sum(lost), energy: sum(energy), zeros }
    }

    /// `lost / energy`; none of zeros.
    pub fn relative(self) -> Option<f64> {
        (self.energy > 0.0).then(|| self.lost / self.energy)
    }
}

impl Add for Loss {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { lost: self.lost + other.lost, energy: self.energy + other.energy, zeros: self.zeros + other.zeros }
    }
}

impl Sum for Loss {
    fn sum<I: Iterator<Item = Self>>(losses: I) -> Self {
        losses.fold(Self::default(), Add::add)
    }
}

super::dispatch! {
    /// What `stored` lost of `dense`, two rows of one length.
    pub fn row_loss(stored: &[f32], dense: &[f32]) -> Loss = row_loss_body
}

#[inline(always)]
fn row_loss_body(stored: &[f32], dense: &[f32]) -> Loss {
    let (mut lost, mut energy, mut zeros) = ([0f32; LANES], [0f32; LANES], [0u32; LANES]);
    let mut add = |stored: &[f32], dense: &[f32]| {
        for (lane, (&q, &w)) in stored.iter().zip(dense).enumerate() {
            let delta = q - w;
            lost[lane] = delta.mul_add(delta, lost[lane]);
            energy[lane] = w.mul_add(w, energy[lane]);
            zeros[lane] += u32::from(q == 0.0);
        }
    };
    let (lines, rest) = stored.as_chunks::<LANES>();
    let (dense_lines, dense_rest) = dense.as_chunks::<LANES>();
    lines.iter().zip(dense_lines).for_each(|(stored, dense)| add(stored, dense));
    add(rest, dense_rest);
    Loss::of_lanes(&lost, &energy, zeros.into_iter().map(u64::from).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_definition() {
        let stored: Vec<f32> = (0..75).map(|i| if i % 9 == 0 { 0.0 } else { i as f32 * 0.5 }).collect();
        let dense: Vec<f32> = (0..75).map(|i| i as f32 * 0.5 - 0.125).collect();
        let loss = row_loss(&stored, &dense);
        let lost: f64 = stored.iter().zip(&dense).map(|(q, w)| f64::from(q - w).powi(2)).sum();
        let energy: f64 = dense.iter().map(|&w| f64::from(w).powi(2)).sum();
        assert!((loss.lost - lost).abs() < 1e-6 * lost && (loss.energy - energy).abs() < 1e-6 * energy, "{loss:?}");
        assert_eq!(loss.zeros, 9);
        assert_eq!(Loss::default().relative(), None);
    }
}
