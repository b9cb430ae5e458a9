//! Where the processor's time goes: products of activations with weights, in the form the weights are stored in.

pub mod dense;

pub mod packed;

pub mod tensor;
