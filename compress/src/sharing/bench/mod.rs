//! What sharing is worth, measured: against dense training, against the size its pool begins at, and against every other
//! way to make a small net smaller, at equal numbers and at equal bytes.
//!
//! A [`ground`] is what all runs have in common: [`data`], a net, a schedule. [`train`](mod@train) is one run on it, over
//! whatever stands behind the weights: the fold, its [`psi`] without the coordinates, the [`hashed`] ancestors, factors of
//! [`low_rank`], a mask; [`quantised`] rounds what was trained, [`lottery`] prunes it round by round. The three suites are
//! [`equality`], [`stability`] and [`pareto`], whose sizes are counted as [`contestant`] says.
//!
//! Every run is a function of its description alone. What it found is one [`record`] in a folder, written when it is done,
//! so that a suite that was stopped goes on where it was; [`interval`] sums runs of several seeds up.

pub mod data;

pub mod ground;

pub mod record;

pub mod train;

pub mod psi;

pub mod hashed;

pub mod low_rank;

pub mod quantised;

pub mod contestant;

pub mod lottery;

pub mod interval;

pub mod equality;

pub mod stability;

pub mod pareto;

pub use contestant::{Accounting, Method};
pub use data::Data;
pub use ground::Ground;
pub use record::Store;

#[cfg(test)]
mod tests;
