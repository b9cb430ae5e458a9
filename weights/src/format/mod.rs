//! Containers: which tensors lie where in a file. One container a module.

pub mod gguf;
