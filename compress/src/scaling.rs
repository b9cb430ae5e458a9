//! Scales of the inputs that a group of linears reads, and the place where they are undone: `y = (x/s) (W s)ᵀ`, with the
//! `1/s` folded into the weights of the layer before, so that the model computes what it did and only rounding differs.
//!
//! [`input_groups`] says for a block which inputs can be scaled. Where the layer before is a norm, its weight (and bias) is
//! divided; where it is a linear, its rows (and bias) are. Values reach the output projection through attention, which is
//! linear in them, so its columns are paid by the values' rows; query heads that read one value head then share their
//! scales. A gated MLP is linear in `up`; one without a gate only where its activation lets a positive factor through
//! (ReLU). What has no such place stays as it is: inputs without a norm of their own, those that a router reads too,
//! activations that are not homogeneous.
//!
//! Scales are such as the norm's stored type holds: the norm is divided and rounded first, and the scale is what then
//! stands between the old weight and the new, so that only a bias is rounded anew.
//!
//! The modules in the order of the data: which inputs, how scales are folded into what is stored, the search on a block,
//! and the proof that a written checkpoint holds what the record says.

mod inputs;

mod fold;

mod search;

mod verify;

use serde::{Deserialize, Serialize};

use self::fold::{FoldedNorm, stored};
pub(crate) use self::{fold::BlockScales, inputs::resolve, search::search};
pub use self::{
    inputs::{Fold, InputGroup, LeftAlone, PlannedScaling, Unscaled, input_groups},
    verify::verify,
};
use crate::{export::float_bytes, grid::ScaleDtype};

/// What was done to one group of inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScalingRecord {
    /// Index of the block.
    pub block: usize,
    /// The linears that read the inputs.
    pub linears: Vec<String>,
    /// The norm or linear that was divided by the scales.
    pub folded_into: String,
    /// The exponent of the scales; 0 without `duo` where none was better.
    pub ratio: f64,
    /// They were made from inputs and weights.
    pub duo: bool,
    /// The share of the sampled outputs' energy that rounding loses with them.
    pub output_error: Option<f64>,
    /// The same without them.
    pub unscaled_error: Option<f64>,
    /// SHA-256 of the scales, one a class of columns (f32, little endian).
    pub scales_sha256: String,
    /// The scales themselves where the written tensors do not tell: of a linear whose bias was divided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scales: Option<Vec<f32>>,
}

fn digest(scales: &[f32]) -> String {
    scruple_weights::digest::sha256(&float_bytes(scales, ScaleDtype::F32))
}

#[cfg(test)]
mod tests;
