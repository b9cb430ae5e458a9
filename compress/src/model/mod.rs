//! Networks that run, built from a checkpoint.

pub mod linear;
