//! Data the toolkit makes itself, each a pure function of a seed: a closed little world of facts to train and question a
//! language model on, the tokenizer for it, and glyph images for vision models. And readers of sets made by others.

pub use scruple_weights::random;

pub mod world;

pub mod tokenizer;

pub mod glyphs;

pub mod cifar;

pub mod images;
