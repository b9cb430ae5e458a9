//! Images with their channels last: what small convolutional nets are trained with.

pub mod lane;

pub mod conv;

pub mod pixels;

#[cfg(test)]
mod tests;
