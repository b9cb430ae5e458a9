//! A weight kept as codes for which there is no kernel of their own.

use candle_core::Tensor;

use super::{Linear, check_bias, forward};
use crate::{
    Result,
    kernel::{dense::by_panels, tensor::from_vec},
    weight::CompressedWeight,
};

/// `y = x Ŵᵀ + b` with Ŵ as codes that are turned into f32 a few rows at a time on their way into the product, so that the
/// weight takes no more memory than its codes. The numbers used are, to the bit, [`CompressedWeight::dequantize`]'s.
#[derive(Debug, Clone)]
pub struct CodedLinear {
    weight: CompressedWeight,
    bias: Option<Vec<f32>>,
    storage_bits: u64,
}

impl CodedLinear {
    /// The linear of `weight` with `bias` (out), which takes `storage_bits` in its file.
    ///
    /// # Errors
    /// If `bias` has another length than the weight has rows.
    pub fn new(weight: CompressedWeight, bias: Option<Vec<f32>>, storage_bits: u64) -> Result<Self> {
        check_bias(bias.as_deref(), weight.shape().0)?;
        Ok(Self { weight, bias, storage_bits })
    }
}

impl Linear for CodedLinear {
    fn shape(&self) -> (usize, usize) {
        self.weight.shape()
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (out_features, in_features) = self.shape();
        forward(self, self.bias.as_deref(), x, |x, tokens, y| {
            by_panels((out_features, in_features), x, tokens, y, |rows, panel| {
                for (row, out) in rows.zip(panel.chunks_exact_mut(in_features)) {
                    self.weight.dequantize_row(row, out);
                }
            });
        })
    }

    fn weight(&self) -> Result<Tensor> {
        from_vec(self.weight.dequantize(), self.shape())
    }

    fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    fn storage_bits(&self) -> u64 {
        self.storage_bits
    }
}
