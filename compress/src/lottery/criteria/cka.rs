//! One minus the linear CKA (Kornblith et al. 2019, equation 5 for linear kernels) of the features before the last linear,
//! with and without a block:
//!
//! ```text
//! CKA(X, Y) = ‖Yᵀ X‖²_F / (‖Xᵀ X‖_F ‖Yᵀ Y‖_F)        X, Y (images, features), each feature's mean taken off
//! ```
//!
//! The lowest go: without them the features are most alike (Pons et al. 2024 use it after training).

use super::{Criterion, Removes, State};
use crate::{Result, lottery::scene::Scene};

#[derive(Debug)]
pub struct Cka;

/// Columns with their means taken off.
fn centred(features: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let width = features.first().map_or(0, Vec::len);
    let mean: Vec<f64> = (0..width)
        .map(|at| features.iter().map(|row| f64::from(row[at])).sum::<f64>() / features.len() as f64)
        .collect();
    features.iter().map(|row| row.iter().zip(&mean).map(|(&x, mean)| f64::from(x) - mean).collect()).collect()
}

/// ‖Yᵀ X‖²_F.
fn product(x: &[Vec<f64>], y: &[Vec<f64>]) -> f64 {
    let (width, other) = (x.first().map_or(0, Vec::len), y.first().map_or(0, Vec::len));
    let mut sums = vec![0.0; width * other];
    for (x, y) in x.iter().zip(y) {
        for (a, x) in x.iter().enumerate() {
            sums[a * other..][..other].iter_mut().zip(y).for_each(|(sum, y)| *sum += x * y);
        }
    }
    sums.iter().map(|sum| sum * sum).sum()
}

/// The linear CKA of two representations of the same images; 0 where one of them says the same of all.
pub fn linear_cka(x: &[Vec<f32>], y: &[Vec<f32>]) -> f64 {
    let (x, y) = (centred(x), centred(y));
    let norms = (product(&x, &x) * product(&y, &y)).sqrt();
    if norms > 0.0 { product(&x, &y) / norms } else { 0.0 }
}

impl Criterion for Cka {
    fn name(&self) -> &'static str {
        "cka"
    }

    fn formula(&self) -> &'static str {
        "1 − linear CKA of the features with and without the block"
    }

    fn removes(&self) -> Removes {
        Removes::Lowest
    }

    fn state(&self) -> State {
        State::Any
    }

    fn scores(&self, scene: &mut Scene<'_>) -> Result<Vec<Option<f64>>> {
        scene.dense()?;
        let dense = scene.features(&scene.net);
        scene.without_each(|_, net, _, _| Ok(1.0 - linear_cka(&dense, &scene.features(net))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_does_not_see_scale_shift_or_turns() {
        let x: Vec<Vec<f32>> = (0..12).map(|i| vec![(i * 7 % 5) as f32, (i * 3 % 4) as f32 - 1.0]).collect();
        let turned: Vec<Vec<f32>> = x
            .iter()
            .map(|row| vec![3.0 * (0.6 * row[0] - 0.8 * row[1]) + 5.0, 3.0 * (0.8 * row[0] + 0.6 * row[1])])
            .collect();
        assert!((linear_cka(&x, &x) - 1.0).abs() < 1e-12 && (linear_cka(&x, &turned) - 1.0).abs() < 1e-9);
        let other: Vec<Vec<f32>> = (0..12).map(|i| vec![if i % 2 == 0 { 1.0 } else { -1.0 }]).collect();
        assert!(linear_cka(&x, &other) < 0.5);
        assert_eq!(linear_cka(&x, &vec![vec![2.0]; 12]), 0.0);
    }
}
