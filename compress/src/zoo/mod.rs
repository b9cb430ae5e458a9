//! Zoos of small networks made on the spot: hundreds of fine-tunes of a few common ancestors, with what each was trained
//! on, to learn and to test probes on.
//!
//! In the order the data flows: a [`recipe`] says what is made; [`pictures`] are split once; a [`mlp`] learns a pretext
//! and becomes an ancestor, then many short fine-tunes; [`mod@build`] writes them with their index.

pub mod recipe;

pub mod pictures;

pub mod mlp;

pub mod build;

pub use build::build;
pub use recipe::{PRESETS, Recipe};
