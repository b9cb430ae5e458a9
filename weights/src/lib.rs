//! Model weights on disk: opened by memory map, read by rows, written by stream.
//!
//! The modules stand in the order the data meets them: an [`Error`] names what is wrong with a file,
//! a [`Shard`] is a mapped file, a container [`format`] says which tensors lie where in it, a [`Checkpoint`] joins the
//! shards of one model, a [`TensorView`] decodes one tensor, and the [`CheckpointWriter`] puts a new model on disk.

pub mod error;

pub mod dtype;

pub mod shard;

pub mod format;

mod decode;

pub mod tensor;

pub mod digest;

pub mod checkpoint;

pub mod name;

pub mod writer;

pub mod gguf_to_hf;

pub use checkpoint::Checkpoint;
pub use dtype::Dtype;
pub use error::{Error, Problem, Result};
pub use name::PathFilter;
pub use shard::Shard;
pub use tensor::TensorView;
pub use writer::{CheckpointWriter, TensorSpec, WriterOptions, Written};
