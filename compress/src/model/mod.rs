//! Networks that run, built from a checkpoint.

mod fields;

pub mod rope;

pub mod spec;

pub mod family;

pub mod config;

pub mod linear;

pub mod stored;

pub mod norm;

pub mod labels;

mod self_attention;

pub mod experts;

pub mod block;

pub mod decoder;

pub mod staged;

pub mod encoder;

pub mod vit;

pub mod resnet;

pub mod any;

pub mod text;

pub mod generate;

pub use any::AnyModel;
pub use config::DecoderConfig;
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use resnet::ResNet;
pub use vit::Vit;
