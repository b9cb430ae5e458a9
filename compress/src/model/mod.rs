//! Networks that run, built from a checkpoint.

mod fields;

pub mod rope;

pub mod spec;

pub mod family;

pub mod config;

pub mod linear;

pub mod norm;

pub mod experts;

pub mod block;

pub mod decoder;

pub mod text;

pub mod generate;

pub use config::DecoderConfig;
pub use decoder::Decoder;
