//! Small nets for images, trained at the machine's speed.
//!
//! A [`spec`] describes a net; its [`graph`] lists the operations and the tensors; a [`net`] runs them forward, takes a
//! [`loss`], and runs back. An [`optimiser`] moves the [`weights`], or what a parametrisation ([`parametrise`]) makes them
//! of; [`train`] is the run over a set of images. A [`saliency`] says what a weight is worth before it.

pub mod spec;

pub mod graph;

mod buffer;

pub(crate) mod linear;

pub mod net;

mod forward;

pub mod loss;

mod backward;

pub mod optimiser;

pub mod weights;

pub mod parametrise;

pub(crate) mod saved;

pub mod train;

pub mod saliency;

pub use forward::Source;
pub use loss::Loss;
pub use net::{Mode, Net};
pub use spec::{Architecture, Input, Shortcut, Spec};
pub use train::{Evaluation, Progress, Recipe, Trainer, evaluate, evaluate_from};
pub use weights::Weights;

#[cfg(test)]
pub(crate) mod reference;

#[cfg(test)]
mod tests;
