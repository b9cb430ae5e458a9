//! What compression did to trust: items are put to a model, answers are judged by a rule with a version, and two models
//! are compared item by item.
//!
//! In the order the data flows: an [`item`] is one thing put to a model; a [`dimension`] says how an answer is judged,
//! where it is text by one of the [`rules`], and what a model scores; [`statistics`] over plain numbers make the [`paired`]
//! comparison of two models.

pub mod item;

pub mod dimension;

pub mod rules;

pub mod statistics;

pub mod paired;
