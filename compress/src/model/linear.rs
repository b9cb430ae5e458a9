//! The narrow seam between a model and the format its weights are stored in: a model file is written once, and every
//! dense, quantised, sparse or shared weight implements [`Linear`].

use candle_core::Tensor;

use crate::Result;

/// `y = x Wᵀ + b`.
pub trait Linear: Send + Sync + std::fmt::Debug {
    /// (out_features, in_features).
    fn shape(&self) -> (usize, usize);

    /// `x` (tokens, in_features) f32 to (tokens, out_features) f32.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;

    /// The weight as f32, (out_features, in_features): exactly the numbers `forward` uses.
    fn weight(&self) -> Result<Tensor>;

    /// Bits the weight takes on disk, scales and indices included, bias not.
    fn storage_bits(&self) -> u64;
}
