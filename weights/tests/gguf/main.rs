//! GGUF: blocks against the Python package, hostile files, and conversion to a Hugging Face folder and back.

mod back;
mod blocks;
mod convert;
mod hostile;
mod tokenizer;
mod writer;
