//! Training, small and plain: candle's autograd over primitive operations, AdamW, and a loop that depends on its seed
//! alone.
//!
//! [`adapted`] is a decoder of any family that learns beside its own frozen weights, by the gradients in `ops`; the rest
//! makes the models that come with the program: [`llama`] is the network with its loss, [`adamw`] the step, [`language`] the loop over text; [`channels`] makes the
//! result as uneven as large models are; [`answer`] asks the trained
//! model the world's questions, and [`mod@file`] puts it on disk in Hugging Face's names. Nothing here prints.

pub mod llama;

pub(crate) mod ops;

pub mod adapted;

pub mod adamw;

pub mod language;

pub mod channels;

pub mod answer;

pub mod file;

pub use llama::{LlamaConfig, reference_forward};
