//! Runs a language model on the CPU, and makes its weights small.
//!
//! In the order the data flows: a [`model`] is built from a checkpoint over the [`kernel`]s; [`calibration`] gathers what
//! its linears see; a [`recipe`] says what is wanted and a [`plan`] what that means for this model; the [`sequential`]
//! loop hands each block to the [`methods`], which choose codes on a number [`grid`]; [`pack`] and [`export`] write them
//! in formats other tools load; and [`measure`] says what it cost. [`layers`] takes out whole blocks instead, [`lottery`] before training.
//!
//! [`sharing`] reads many weights from one small pool.
//!
//! [`nn`] trains small nets for images on kernels of its own; [`train`] the language model that comes with the program.
//!
//! A [`device`] other than the processor trains a [`probe`], and gathers what calibration needs.

pub mod error;

pub mod clock;

pub mod memory;

pub mod device;

pub mod kernel;

pub mod data;

pub mod model;

pub mod train;

pub mod nn;

pub mod probe;

pub mod zoo;

pub mod grid;

pub mod weight;

pub mod mask;

pub mod pack;

pub mod methods;

pub mod export;

pub mod calibration;

mod gather;

pub mod scaling;

pub mod recipe;

pub mod plan;

mod walk;

pub mod sequential;

pub mod budget;

pub mod measure;

pub mod neighbours;

pub mod layers;

pub mod lottery;

pub mod sharing;

pub use error::{Error, Result};
