//! How generated text is read, by rules with a name and a version: a number compares only under one of them.
//!
//! The phrase lists are facts of the published rules; each file says where they stand.

pub mod stereotype;

pub mod refusal;

pub mod answer;
