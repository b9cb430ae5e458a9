//! The verbs, one file each: arguments, and what is done with them.

pub mod classify;
pub mod classify_weights;
pub mod compress;
pub mod convert;
pub mod curve;
pub mod diff;
pub mod embed;
pub mod eval;
pub mod families;
pub mod fetch;
pub mod generate;
pub mod inspect;
pub mod layers;
pub mod lineage;
pub mod lottery;
pub mod methods;
pub mod probe;
pub mod search;
pub mod share;
pub mod trust;
pub mod verify;
pub mod zoo;
