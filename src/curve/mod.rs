//! Compression–trust curves: what each method and rate did to each dimension of trust.
//!
//! In the order the data flows: a [`sweep`] says which models are asked for; to [`run`] it is to make and measure one after
//! the other at a [`mod@bench`] that all share, each landing as the record of a [`point`] in its [`place`]; records are
//! [`assemble`]d into [`data`], of which the [`verdict`] says in words what is to be seen. [`read`] brings such a record
//! back. Beside what was [`published`], in plain [`words`], it becomes a [`scene`] of [`figure`]s, drawn as a [`picture`] and
//! as a [`page`]: together the [`report`].

pub mod sweep;

pub mod place;

pub mod point;

pub mod bench;

pub mod run;

pub mod assemble;

pub mod data;

pub mod verdict;

pub mod read;

pub mod published;

pub mod words;

pub mod scene;

pub mod figure;

pub mod picture;

pub mod page;

pub mod report;

#[cfg(test)]
mod sample;
