//! What was planted between two models is found, with its parameters; and nothing is found in noise.

mod family;
mod kinds;
mod models;
mod support;
