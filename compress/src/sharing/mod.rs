//! Many weights in few numbers: randomised parameter sharing (Desai and Shrivastava 2023, "In defense of parameter sharing
//! for model-compression", STABLE-RPS).
//!
//! n weights of any number of tensors, one after the other in a flat array, are read from a pool of m ≤ n numbers:
//!
//! ```text
//! w_i = λ_l(i) · g(i) · ψ_h(i)        slot h(i) in 0..m, sign g(i) = ±1, scale λ of the tensor
//! w = S ψ,     SᵀS = diag(d),  d_j = Σ over i in slot j of λ_i²
//! ```
//!
//! Slots and signs are functions of one seed and are never stored. A [`fold`] says which they are, the [`baselines`] what
//! older methods choose; [`modules`] lays tensors out with their scales; the [`pool`] holds the arithmetic of S and Sᵀ;
//! [`parametrise`] trains a net over a pool, and [`matrix`] multiplies by a shared matrix without ever making it. On disk a
//! model is a [`file`](mod@file) that [`project`](mod@project) makes of a dense checkpoint and [`expand`](mod@expand) turns
//! back into one, bit for bit; a trained [`net`] is written and read in the same form; [`report`] says what it takes,
//! and [`bench`](mod@bench) what it is worth.
//!
//! Sharing makes a model smaller, not cheaper: the number of multiplications stays what it was.

pub mod fold;

pub mod baselines;

pub mod modules;

pub mod pool;

pub mod matrix;

pub mod parametrise;

pub mod report;

pub mod file;

pub mod project;

pub mod expand;

pub mod net;

pub mod bench;

pub use expand::{Expanded, Findings, expand, verify};
pub use file::SharedFile;
pub use fold::Fold;
pub use matrix::SharedMatrix;
pub use modules::{Module, Scales, Sharing};
pub use parametrise::Shared;
pub use project::{Options, Projected, project};

#[cfg(test)]
mod file_tests;
