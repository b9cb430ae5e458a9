//! Which tensors of a quantised checkpoint stand for which dense ones.

use std::collections::BTreeMap;

use scruple_weights::{Checkpoint, Dtype, TensorView};

use super::{Format, Quantization, Source};
use crate::{Result, weight::CompressedWeight};

/// A tensor that a quantised checkpoint holds as codes.
#[derive(Debug, Clone)]
pub struct Coded {
    /// What the codes belong to, as [`super::decode`] takes it.
    pub linear: String,
    /// The name the dense tensor has in a model that is not quantised.
    pub name: String,
    /// The dense tensor's shape.
    pub shape: Vec<usize>,
    /// What is stored for it, in the file's order.
    pub parts: Vec<TensorView>,
    /// In how many parts it is decoded, of equally many rows (of all but the last dimension).
    pub slices: usize,
}

impl Coded {
    /// Part `slice` of the tensor.
    ///
    /// # Errors
    /// As [`super::decode`].
    pub fn decode(
        &self,
        checkpoint: &Checkpoint,
        quantization: &Quantization,
        slice: usize,
    ) -> Result<CompressedWeight> {
        let source = Source { checkpoint, linear: &self.linear, quantization };
        quantization.format.rules().decode_slice(&source, slice)
    }

    /// Gives the resident pages of what is stored back to the system.
    pub fn release(&self) {
        self.parts.iter().for_each(TensorView::release);
    }
}

/// Whether `linear` is stored as codes: a tensor says so, or there is no `weight` of plain numbers.
pub fn is_coded(checkpoint: &Checkpoint, linear: &str, quantization: &Quantization) -> bool {
    let rules = quantization.format.rules();
    let marked = |mark: &&str| checkpoint.contains(&format!("{linear}{}{mark}", rules.joint()));
    let plain = |view: TensorView| matches!(view.dtype(), Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16);
    rules.marks().iter().any(marked) || !checkpoint.get(&format!("{linear}.weight")).is_some_and(plain)
}

/// Whether tensor `name` of a quantised checkpoint serves the quantisation and no linear: scales of cached keys and values.
pub fn is_leftover(name: &str, quantization: &Quantization) -> bool {
    const OF_CACHES: [&str; 6] =
        [".k_scale", ".v_scale", ".q_scale", ".k_zero_point", ".v_zero_point", ".q_zero_point"];
    quantization.format == Format::CompressedTensors && OF_CACHES.iter().any(|end| name.ends_with(end))
}

/// What is stored for `linear`.
pub(super) fn parts<'a>(
    checkpoint: &'a Checkpoint,
    linear: &'a str,
    quantization: &Quantization,
) -> impl Iterator<Item = TensorView> + 'a {
    let rules = quantization.format.rules();
    let joint = rules.joint();
    rules.parts().iter().filter_map(move |part| checkpoint.get(&format!("{linear}{joint}{part}")))
}

/// `shape` if as many codes of 2 to 8 bits, in rows of whole words, take as many bytes as `codes`.
pub(super) fn fitting(shape: [usize; 2], codes: &TensorView) -> Option<Vec<usize>> {
    let bytes = codes.bytes().len();
    let weights = shape[0].checked_mul(shape[1]).filter(|&weights| weights > 0)?;
    (weights / 4 <= bytes && bytes <= weights.checked_add(shape[0].checked_mul(4)?)?).then(|| shape.to_vec())
}

/// Every tensor that `checkpoint` holds as codes, in the file's order.
///
/// # Errors
/// If a shape cannot be read off the stored tensors, as [`super::decode`].
pub fn coded(checkpoint: &Checkpoint, quantization: &Quantization) -> Result<Vec<Coded>> {
    let rules = quantization.format.rules();
    let order: BTreeMap<&str, usize> = checkpoint.tensors().enumerate().map(|(at, view)| (view.name(), at)).collect();
    let mut linears: Vec<&str> = Vec::new();
    for view in checkpoint.tensors() {
        let of = |mark: &&'static str| view.name().strip_suffix(mark)?.strip_suffix(rules.joint());
        linears.extend(rules.marks().iter().find_map(of));
    }
    linears.sort_unstable();
    linears.dedup();
    let mut all = Vec::new();
    for linear in linears {
        let mut parts: Vec<TensorView> = parts(checkpoint, linear, quantization).collect();
        parts.sort_by_key(|view| order.get(view.name()));
        let shape = rules.shape(&Source { checkpoint, linear, quantization })?;
        let slices = rules.slices(&shape);
        all.push(Coded { linear: linear.into(), name: rules.dense_name(linear), shape, parts, slices });
    }
    all.sort_by_key(|coded| coded.parts.first().and_then(|view| order.get(view.name())));
    Ok(all)
}
