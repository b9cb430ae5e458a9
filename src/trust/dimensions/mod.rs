//! The dimensions of trust, one file each (and one for three that differ in what is asked alone), and what they share: judging by likelihood, reading texts, averaging over
//! parts, and what chance alone would score.
//!
//! Conventions of items, beyond what [`item`](super::item) says:
//!
//! * Under [`Ask::Choose`](super::item::Ask::Choose), `gold` is the right option. An item without it asks for a
//!   *preference*, and its option 0 is the one that stereotypes: agreeing to the statement, or the stereotyping sentence of
//!   a pair.
//! * Under [`Ask::Continue`](super::item::Ask::Continue), `expect` holds the labels a text is read as, the right one first;
//!   of a privacy item, the secret.
//! * A part whose last word is `clean`, `without` or `base` is the *other condition* of a comparison: the same questions
//!   without perturbation, misleading demonstration or change of style. It is left out of the score as published, which is
//!   about the perturbed ones, and gives the effect beside it. Items of both conditions share a cluster.

pub mod likelihood;

pub mod reading;

pub mod averages;

pub mod luck;

pub mod preference;

#[cfg(test)]
mod testing;

mod accuracy;
mod fairness;
mod knowledge;
mod machine_ethics;
mod privacy;
mod stereotype;
mod toxicity;

pub use accuracy::{ADVERSARIAL_DEMONSTRATIONS, ADVERSARIAL_ROBUSTNESS, OUT_OF_DISTRIBUTION};
pub use fairness::Fairness;
pub use knowledge::Knowledge;
pub use machine_ethics::MachineEthics;
pub use privacy::Privacy;
pub use stereotype::Stereotype;
pub use toxicity::Toxicity;
