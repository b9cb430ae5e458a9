//! Whole layers: which can go, and how a checkpoint without them is written.
//!
//! In the order of the work: a [`removal`] is a set of layers and its notations; a [`scan`] tells in one pass what each
//! layer does; a [`sweep`] gives the exact losses of many sets at once, [`evaluate`] remembers and compares them, and
//! [`search`] goes by them; [`rewrite`] says what a checkpoint without the layers is called and configured like,
//! [`write`](mod@write) puts it on disk, [`verify`] proves it.
//!
//! "Layer" is what the literature calls a decoder or encoder block here: attention and MLP together.

pub mod removal;

pub mod scan;

pub mod sweep;

pub mod evaluate;

pub mod search;

pub mod rewrite;

pub mod write;

pub mod verify;

pub use removal::Removal;
pub use write::{DropOptions, Dropped, drop_layers};
