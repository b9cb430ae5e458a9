//! A weight that is read from a pool it shares with others.

use candle_core::Tensor;

use super::{Linear, check_bias, forward};
use crate::{
    Result,
    kernel::{dense::product_of, tensor::from_vec},
    sharing::stored::PooledMatrix,
};

/// `y = x Wᵀ + b` with W in a pool, recovered a few rows at a time on their way into the product: the numbers of the
/// expanded weight and the sums of [`super::DenseLinear`], bit for bit.
#[derive(Debug, Clone)]
pub struct PooledLinear {
    matrix: PooledMatrix,
    /// The pool holds the weight as (in, out).
    transposed: bool,
    bias: Option<Vec<f32>>,
}

impl PooledLinear {
    /// The linear of `matrix`, which is (out, in), or (in, out) if `transposed`; `bias` (out).
    ///
    /// # Errors
    /// If `bias` has another length than the weight has rows.
    pub fn new(matrix: PooledMatrix, transposed: bool, bias: Option<Vec<f32>>) -> Result<Self> {
        let linear = Self { matrix, transposed, bias };
        check_bias(linear.bias.as_deref(), linear.shape().0)?;
        Ok(linear)
    }

    fn read_rows(&self, rows: std::ops::Range<usize>, out: &mut [f32]) {
        match self.transposed {
            false => self.matrix.read_rows(rows, out),
            true => self.matrix.read_columns(rows, out),
        }
    }
}

impl Linear for PooledLinear {
    fn shape(&self) -> (usize, usize) {
        let (rows, columns) = self.matrix.shape();
        if self.transposed { (columns, rows) } else { (rows, columns) }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        forward(self, self.bias.as_deref(), x, |x, tokens, y| {
            product_of(self.shape(), x, tokens, y, |rows, panel| self.read_rows(rows, panel));
        })
    }

    fn weight(&self) -> Result<Tensor> {
        let (out_features, in_features) = self.shape();
        let mut values = vec![0.0; out_features * in_features];
        self.read_rows(0..out_features, &mut values);
        from_vec(values, (out_features, in_features))
    }

    fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    fn storage_bits(&self) -> u64 {
        self.matrix.storage_bits()
    }
}
