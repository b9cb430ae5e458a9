//! Compression–trust curves: what each method and rate did to each dimension of trust.
//!
//! In the order the data flows: a sweep is compressed and measured point by point into [`data`], from which pictures and a
//! page are drawn.

pub mod data;

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
