//! What compression did to trust: items are put to a model, answers are judged by a rule with a version, and two models
//! are compared item by item.
//!
//! In the order the data flows: an [`item`] is one thing put to a model; a [`dimension`] says how an answer is judged and
//! what a model scores;
//! the [`dimensions`] are one file each.

pub mod item;

pub mod rules;

pub mod dimension;

pub mod dimensions;
