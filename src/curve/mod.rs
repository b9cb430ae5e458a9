//! Compression–trust curves: what each method and rate did to each dimension of trust.
//!
//! In the order the data flows: a [`sweep`] says which models are asked for; to [`run`] it is to make and measure one after
//! the other at a [`mod@bench`] that all share, each landing as the record of a [`point`] in its [`place`]; records are
//! [`assemble`]d into [`data`], of which the [`verdict`] says in words what pictures and a page
//! show, beside what was [`published`].

pub mod data;

pub mod sweep;

pub mod place;

pub mod point;

pub mod bench;

pub mod run;

pub mod assemble;

pub mod verdict;

pub mod published;
