//! What compression did to trust: items are put to a model, answers are judged by a rule with a version, and two models
//! are compared item by item.
//!
//! In the order the data flows: an [`item`] is one thing put to a model; [`readers`] bring published sets to items; a
//! [`language_model`] is asked, and its answers are kept as a [`record`]; [`rules`] read answers that are text; a
//! [`dimension`] says how an answer is judged and what a model scores, and the [`dimensions`] are one file each; a
//! [`suite`] is items of several of them, and the [`questions`] of a run are joined from such and from files;
//! [`statistics`] over plain numbers make the [`paired`] comparison of two models, and measure how far the scorers of
//! [`toxicity`] can be trusted; to [`evaluate`] is all of it for one topic and one or two models.

pub mod item;

pub mod readers;

pub mod language_model;

pub mod record;

pub mod rules;

pub mod dimension;

pub mod dimensions;

pub mod suite;

pub mod statistics;

pub mod toxicity;

pub mod paired;

pub mod questions;

pub mod evaluate;
