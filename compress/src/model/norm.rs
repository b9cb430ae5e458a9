//! Normalisation of rows with learned weights.

use candle_core::{D, Tensor};
use rayon::prelude::*;
use scruple_weights::Checkpoint;

use super::linear::expect_shape;
use crate::{
    Result,
    kernel::{
        activation::{layer_norm_row, rms_norm_row},
        tensor::{from_vec, with_f32},
    },
};

/// Rows one task works on.
const ROWS_PER_TASK: usize = 32;

/// RMS norm with its weight, (features).
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Vec<f32>,
    eps: f32,
}

impl RmsNorm {
    /// The norm with these weights.
    pub fn new(weight: Vec<f32>, eps: f32) -> Self {
        Self { weight, eps }
    }

    /// The norm whose weight (features) is the tensor `name`.
    ///
    /// # Errors
    /// If the tensor is missing, of another shape, or cannot be decoded.
    pub fn load(checkpoint: &Checkpoint, name: &str, features: usize, eps: f32) -> Result<Self> {
        Ok(Self::new(vector(checkpoint, name, features)?, eps))
    }

    /// `x` (rows, features) to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        each_row(x, self.weight.len(), |x, out| rms_norm_row(x, &self.weight, self.eps, out))
    }

    /// Each row of `features` numbers of a flat array, in place.
    pub fn in_place(&self, x: &mut [f32]) {
        let features = self.weight.len();
        let mut row = vec![0.0; features];
        for x in x.chunks_exact_mut(features) {
            rms_norm_row(x, &self.weight, self.eps, &mut row);
            x.copy_from_slice(&row);
        }
    }
}

/// Layer norm with its weight and bias, (features) each.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl LayerNorm {
    /// The norm with these weights; without a bias, zeros are added.
    ///
    /// # Panics
    /// If weight and bias differ in length.
    pub fn new(weight: Vec<f32>, bias: Option<Vec<f32>>, eps: f32) -> Self {
        let bias = bias.unwrap_or_else(|| vec![0.0; weight.len()]);
        assert_eq!(weight.len(), bias.len(), "weight and bias of a layer norm differ in length");
        Self { weight, bias, eps }
    }

    /// The norm whose weight (features) is `PREFIX.weight` and, where it `has_bias`, whose bias is `PREFIX.bias`.
    ///
    /// # Errors
    /// If a tensor is missing, of another shape, or cannot be decoded.
    pub fn load(checkpoint: &Checkpoint, prefix: &str, features: usize, has_bias: bool, eps: f32) -> Result<Self> {
        let weight = vector(checkpoint, &format!("{prefix}.weight"), features)?;
        let bias = has_bias.then(|| vector(checkpoint, &format!("{prefix}.bias"), features)).transpose()?;
        Ok(Self::new(weight, bias, eps))
    }

    /// `x` (rows, features) to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        each_row(x, self.weight.len(), |x, out| layer_norm_row(x, &self.weight, &self.bias, self.eps, out))
    }

    /// Each row of `features` numbers of a flat array, in place.
    pub fn in_place(&self, x: &mut [f32]) {
        let features = self.weight.len();
        x.par_chunks_mut(ROWS_PER_TASK * features).for_each(|x| {
            let mut row = vec![0.0; features];
            for x in x.chunks_exact_mut(features) {
                layer_norm_row(x, &self.weight, &self.bias, self.eps, &mut row);
                x.copy_from_slice(&row);
            }
        });
    }
}

/// Either kind, where families differ in it.
#[derive(Debug, Clone)]
pub enum Norm {
    /// By the root of the mean square.
    Rms(RmsNorm),
    /// By mean and variance.
    Layer(LayerNorm),
}

impl Norm {
    /// `x` (rows, features) to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms(norm) => norm.forward(x),
            Self::Layer(norm) => norm.forward(x),
        }
    }

    /// The same by candle's operations, on the device of `x`.
    ///
    /// # Errors
    /// If the arithmetic fails.
    pub fn by_candle(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias, eps) = match self {
            Self::Rms(norm) => (&norm.weight, None, norm.eps),
            Self::Layer(norm) => (&norm.weight, Some(&norm.bias), norm.eps),
        };
        let vector = |values: &[f32]| Tensor::from_slice(values, values.len(), x.device());
        let centred = match bias {
            Some(_) => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
            None => x.clone(),
        };
        let size = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
        let y = centred.broadcast_div(&size)?.broadcast_mul(&vector(weight)?)?;
        match bias {
            Some(bias) => Ok(y.broadcast_add(&vector(bias)?)?),
            None => Ok(y),
        }
    }

    /// Each row of `features` numbers of a flat array, in place.
    pub fn in_place(&self, x: &mut [f32]) {
        match self {
            Self::Rms(norm) => norm.in_place(x),
            Self::Layer(norm) => norm.in_place(x),
        }
    }
}

/// `f` on every row of `x` (rows, features).
fn each_row(x: &Tensor, features: usize, f: impl Fn(&[f32], &mut [f32]) + Sync) -> Result<Tensor> {
    let out = with_f32(x, |x| {
        let mut out = vec![0.0; x.len()];
        let chunk = ROWS_PER_TASK * features;
        out.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(features).zip(x.chunks_exact(features)) {
                f(x, out);
            }
        });
        out
    })?;
    from_vec(out, x.dims2()?)
}

/// The tensor `name`, (features), as f32.
pub(crate) fn vector(checkpoint: &Checkpoint, name: &str, features: usize) -> Result<Vec<f32>> {
    let view = checkpoint.tensor(name)?;
    expect_shape(&view, &[features])?;
    Ok(view.to_f32()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::test_values::uniform;

    #[test]
    fn both_kinds_are_their_definitions_out_of_place_and_in_place() {
        /// A few roundings of numbers around 3.
        const MAX_DIFFERENCE: f64 = 5e-6;
        let (rows, features) = (37, 29);
        let (x, weight, bias) = (uniform(rows * features, 1), uniform(features, 2), uniform(features, 3));
        for (norm, centred, bias) in [
            (Norm::Rms(RmsNorm::new(weight.clone(), 1e-3)), false, vec![0.0; features]),
            (Norm::Layer(LayerNorm::new(weight.clone(), Some(bias.clone()), 1e-3)), true, bias),
            (Norm::Layer(LayerNorm::new(weight.clone(), None, 1e-3)), true, vec![0.0; features]),
        ] {
            let found = norm.forward(&from_vec(x.clone(), (rows, features)).unwrap()).unwrap();
            let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let mut same = x.clone();
            norm.in_place(&mut same);
            assert!(found == same, "the two ways differ");
            let by_candle = norm.by_candle(&from_vec(x.clone(), (rows, features)).unwrap()).unwrap();
            let by_candle = by_candle.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let apart = found.iter().zip(&by_candle).map(|(a, b)| f64::from((a - b).abs()));
            assert!(apart.fold(0.0, f64::max) < MAX_DIFFERENCE, "candle's way differs");
            for (row, found) in x.chunks(features).zip(found.chunks(features)) {
                let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / features as f64;
                let mean = if centred { mean } else { 0.0 };
                let size =
                    (row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / features as f64 + 1e-3).sqrt();
                for i in 0..features {
                    let exact = (f64::from(row[i]) - mean) / size * f64::from(weight[i]) + f64::from(bias[i]);
                    assert!((f64::from(found[i]) - exact).abs() < MAX_DIFFERENCE, "{} for {exact}", found[i]);
                }
            }
        }
    }
}
