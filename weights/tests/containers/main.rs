//! Every container beside safetensors and GGUF: against the libraries that write them, against damage, and on real files.

mod damaged;
mod folders;
mod hdf5;
mod oracle;
mod real;
mod traineddata;
mod zip;
