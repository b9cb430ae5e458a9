//! The program as its users meet it: the real binary, tiny models, whole folders.

#[path = "../support/mod.rs"]
mod support;

#[path = "../../weights/tests/gguf/writer.rs"]
#[allow(dead_code)] // its own tests use all of it
mod gguf_writer;

mod bad_input;
mod determinism;
mod embedded;
mod inspect;
mod measure;
mod recipes;
mod resume;
mod verify;
