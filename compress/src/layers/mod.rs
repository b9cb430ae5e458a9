//! Whole layers: which can go, and how a checkpoint without them is written.
//!
//! In the order of the work: a [`removal`] is a set of layers and its notations; a [`scan`] tells in one pass what each
//! layer does; a [`sweep`] gives the exact losses of many sets at once on a [`corpus`], [`evaluate`] remembers and
//! compares them, [`questions`] ask what perplexity does not, and a [`search`] goes by all that ([`mod@encoder`] for models
//! that make vectors); [`rewrite`] says what a checkpoint without the layers is called and configured like,
//! [`write`](mod@write) puts it on disk, [`heal`] wins back what it can in
//! closed form and [`distil`] what the whole model can teach, [`verify`] proves what is there.
//!
//! "Layer" is what the literature calls a decoder or encoder block here: attention and MLP together.

pub mod removal;

pub mod scan;

pub mod sweep;

pub mod corpus;

pub mod evaluate;

pub mod questions;

pub mod search;

pub mod encoder;

pub mod rewrite;

pub mod write;

pub mod heal;

pub mod distil;

pub mod verify;

pub use removal::Removal;
pub use write::{DropOptions, Dropped, drop_layers, without_layers};

#[cfg(test)]
mod tests;
