//! A weight kept as codes.

use candle_core::Tensor;

use super::{Linear, check_bias, forward};
use crate::{
    Result,
    grid::Quantised,
    kernel::{packed::PackedMatrix, tensor::from_vec},
};

/// `y = x Ŵᵀ + b` with Ŵ as packed 2, 3, 4 or 8 bit codes, scales in their stored type, zero points and, where groups
/// are not contiguous, an order of columns. Products and sums are f32; the weights used are, to the bit,
/// [`Quantised::dequantize`]'s.
#[derive(Debug, Clone)]
pub struct PackedLinear {
    weight: PackedMatrix,
    bias: Option<Vec<f32>>,
    storage_bits: u64,
}

impl PackedLinear {
    /// Packs `q`; `bias` (out). The storage counted is codes, scales, zero points where not all are the middle code, and
    /// 32 bits a column for a `g_idx`; [`Self::with_storage_bits`] says otherwise.
    ///
    /// # Errors
    /// If `bias` has another length than the weight has rows.
    ///
    /// # Panics
    /// If lengths in `q` contradict its shape.
    pub fn new(q: &Quantised, bias: Option<Vec<f32>>) -> Result<Self> {
        check_bias(bias.as_deref(), q.out_features)?;
        let codes = q.codes.len() as u64 * u64::from(q.bits);
        let scales = q.scales.len() as u64 * u64::from(q.scale_dtype.bits());
        let zeros = if q.symmetric { 0 } else { q.zeros.len() as u64 * u64::from(q.bits) };
        let g_idx = q.g_idx.as_ref().map_or(0, |g_idx| 32 * g_idx.len() as u64);
        Ok(Self { weight: PackedMatrix::new(q), bias, storage_bits: codes + scales + zeros + g_idx })
    }

    /// The same linear, with the bits its tensors take in the file it came from.
    pub fn with_storage_bits(mut self, bits: u64) -> Self {
        self.storage_bits = bits;
        self
    }
}

impl Linear for PackedLinear {
    fn shape(&self) -> (usize, usize) {
        self.weight.shape()
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        forward(self, self.bias.as_deref(), x, |x, tokens, y| self.weight.product(x, tokens, y))
    }

    fn weight(&self) -> Result<Tensor> {
        from_vec(self.weight.dequantize(), self.weight.shape())
    }

    fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    fn storage_bits(&self) -> u64 {
        self.storage_bits
    }
}
