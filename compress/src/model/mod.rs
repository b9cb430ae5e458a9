//! Networks that run, built from a checkpoint.

pub mod config;

pub mod linear;

pub mod norm;

pub mod decoder;

pub mod text;

pub mod generate;

pub use config::DecoderConfig;
pub use decoder::Decoder;
