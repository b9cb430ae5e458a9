//! Model weights on disk: opened by memory map, read by rows, written by stream.
//!
//! The modules stand in the order the data meets them: an [`Error`] names what is wrong with a file,
//! a [`Shard`] is a mapped file, a container [`format`](mod@format) says which tensors lie where in it, a [`ModelSource`] says where a
//! model comes from (the [`hub`] fetches it), a [`Checkpoint`] joins the shards of one model, a [`TensorView`] decodes one tensor, and the [`CheckpointWriter`] puts a new model on disk.
//!
//! ```
//! use scruple_weights::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, WriterOptions};
//!
//! # fn main() -> scruple_weights::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! let out = folder.path().join("model");
//! let tensors = vec![TensorSpec::new("norm.weight", Dtype::F32, [2])];
//! let writer = CheckpointWriter::create(&out, tensors, WriterOptions::default())?;
//! writer.write("norm.weight", &[0, 0, 128, 63, 0, 0, 0, 64])?; // 1.0 and 2.0, little endian
//! writer.finish()?; // nothing was under the name `model` until now
//!
//! let checkpoint = Checkpoint::open(&out)?;
//! assert_eq!(checkpoint.tensor("norm.weight")?.to_f32()?, [1.0, 2.0]);
//! # Ok(())
//! # }
//! ```

pub mod error;

pub mod dtype;

pub mod guard;

pub mod shard;

pub mod format;

mod decode;

pub mod tensor;

pub mod digest;

pub mod hub;

pub mod source;

pub mod checkpoint;

pub mod name;

pub mod writer;

pub mod ggml;

pub mod gguf_to_hf;

pub mod hf_to_gguf;

#[doc(hidden)] // shared with the crate that runs models
pub mod kernel;

pub mod statistics;

pub mod linalg;

pub mod spectrum;

pub mod anatomy;

pub mod lineage;

pub mod random;

pub mod zoo;

pub mod probex;

pub use checkpoint::Checkpoint;
pub use dtype::Dtype;
pub use error::{Error, HubFault, Problem, Result};
pub use name::{PathFilter, Place, place};
pub use shard::Shard;
pub use source::ModelSource;
pub use tensor::TensorView;
pub use writer::{CheckpointWriter, TensorSpec, WriterOptions, Written};
