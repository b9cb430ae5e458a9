//! The narrow seam between a model and the format its weights are stored in: a model file is written once, and every
//! dense, quantised, sparse or shared weight implements [`Linear`].

use candle_core::Tensor;
use scruple_weights::{Checkpoint, TensorView};

use crate::{
    Error, Result,
    export::{self, Quantization},
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

/// The linear `name` of `checkpoint`: from `name.weight` where that is there, else from the packed tensors that
/// `quantization` describes. `shape` is (out_features, in_features, has a bias) as the configuration asks for.
///
/// # Errors
/// A missing tensor, or one of another shape.
pub fn load(
    checkpoint: &Checkpoint,
    name: &str,
    (out_features, in_features, has_bias): (usize, usize, bool),
    quantization: Option<&Quantization>,
) -> Result<Box<dyn Linear>> {
    let bias = match checkpoint.get(&format!("{name}.bias")) {
        Some(view) => {
            expect_shape(&view, &[out_features])?;
            Some(view.to_f32()?)
        }
        None if has_bias => return Err(checkpoint.tensor(&format!("{name}.bias")).unwrap_err().into()),
        None => None,
    };
    let weight = format!("{name}.weight");
    if let Some(quantization) = quantization.filter(|_| !checkpoint.contains(&weight)) {
        let weight = export::decode(checkpoint, name, quantization)?;
        if (weight.out_features, weight.in_features) != (out_features, in_features) {
            return Err(Error::Model(format!(
                "{}: linear `{name}` has shape [{}, {}], expected [{out_features}, {in_features}] from config.json",
                checkpoint.path().display(),
                weight.out_features,
                weight.in_features
            )));
        }
        return Ok(Box::new(PackedLinear::new(&weight, bias)?));
    }
    let view = checkpoint.tensor(&weight)?;
    expect_shape(&view, &[out_features, in_features])?;
    Ok(Box::new(DenseLinear::from_view(view, bias)?))
}

/// Refuses a tensor whose shape is not what the configuration asks for.
pub fn expect_shape(view: &TensorView, shape: &[usize]) -> Result<()> {
    if view.shape() == shape {
        return Ok(());
    }
    Err(Error::Model(format!(
        "{}: tensor `{}` has shape {:?}, expected {shape:?} from config.json",
        view.file().display(),
        view.name(),
        view.shape()
    )))
}
