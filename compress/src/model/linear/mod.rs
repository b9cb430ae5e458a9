//! The narrow seam between a model and the format its weights are stored in: a model file is written once, and every
//! dense, quantised, sparse or shared weight implements [`Linear`].

use candle_core::Tensor;

use crate::{
    Error, Result,
    kernel::tensor::{from_vec, with_f32},
};

mod dense;

mod packed;

pub use dense::DenseLinear;
pub use packed::PackedLinear;

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

/// `forward` for a linear with a CPU kernel: `product(x, tokens, y)` writes `x Wᵀ` into the zeroed `y`. On another device
/// candle multiplies by `weight()`, copied there.
fn forward(
    linear: &dyn Linear,
    bias: Option<&[f32]>,
    x: &Tensor,
    product: impl FnOnce(&[f32], usize, &mut [f32]),
) -> Result<Tensor> {
    let (out_features, in_features) = linear.shape();
    let (tokens, width) = x.dims2()?;
    if width != in_features {
        return Err(Error::Model(format!(
            "a linear of {in_features} inputs and {out_features} outputs was given activations of width {width}"
        )));
    }
    if !x.device().is_cpu() {
        let y = x.matmul(&linear.weight()?.to_device(x.device())?.t()?)?;
        return match bias {
            Some(bias) => Ok(y.broadcast_add(&Tensor::from_slice(bias, out_features, x.device())?)?),
            None => Ok(y),
        };
    }
    let y = with_f32(x, |x| {
        let mut y = vec![0.0; tokens * out_features]; // fresh pages come zeroed from the system
        product(x, tokens, &mut y);
        if let Some(bias) = bias {
            for y in y.chunks_exact_mut(out_features) {
                y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
        y
    })?;
    from_vec(y, (tokens, out_features))
}

/// Refuses a bias of another length than the weight has rows.
fn check_bias(bias: Option<&[f32]>, out_features: usize) -> Result<()> {
    match bias {
        Some(bias) if bias.len() != out_features => Err(Error::Model(format!(
            "a linear of {out_features} outputs was given a bias of length {}, expected {out_features}",
            bias.len()
        ))),
        _ => Ok(()),
    }
}
