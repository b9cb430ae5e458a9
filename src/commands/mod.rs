//! The verbs, one file each: arguments, and what is done with them.

pub mod compress;
pub mod convert;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod methods;
pub mod verify;
