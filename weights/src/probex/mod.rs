//! ProbeX and beyond: what a model was trained on, read from one layer of its weights.
//!
//! Horwitz et al. 2025, "Learning on Model Weights using Tree Experts": within a tree of models that share an ancestor, a
//! light probe on one layer tells the training classes; across trees it tells nothing. So an expert knows one tree, a
//! router finds the tree, and a model of no known tree is said to be unknown.
//!
//! In the order the data flows: a [`layer`] is read from checkpoints into a [`cache`]; a probe's [`spec`] says which sides
//! of it are looked at; the [`net`] turns an [`operand`] into a representation and the [`head`] that into logits; [`mod@train`]
//! (or [`ridge`], in closed form) finds the numbers; [`metrics`] and [`calibration`] say what its probabilities are worth,
//! and [`neighbours`] what models near by are;
//! an [`expert`] is all of that in one [`file`](mod@file); [`fit`] makes experts of a zoo, and a [`registry`] routes models
//! to experts. [`baseline`]s and [`damage`] are what it is held against.
//!
//! Everything is here and not in the crate that runs models, because nothing is run: products go through faer, which this
//! crate has for its spectra.

pub mod layer;

pub mod damage;

pub mod cache;

pub mod spec;

pub mod operand;

mod product;

pub mod net;

pub mod head;

pub mod train;

pub mod ridge;

pub mod metrics;

pub mod calibration;

pub mod neighbours;

pub mod expert;

pub mod file;

pub mod fit;

pub mod evaluate;

pub mod registry;

pub mod baseline;

pub use expert::{About, Answer, Expert};
pub use net::Net;
pub use spec::{Preset, Spec};

#[cfg(test)]
mod tests;
