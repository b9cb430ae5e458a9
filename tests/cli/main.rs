//! The program as its users meet it: the real binary, tiny models, whole folders.

#[path = "../support/mod.rs"]
mod support;

#[path = "../../weights/tests/gguf/writer.rs"]
#[allow(dead_code)] // its own tests use all of it
mod gguf_writer;

#[path = "../../weights/tests/containers/zip.rs"]
#[allow(dead_code)] // its own tests use all of it
mod zip_writer;

#[path = "../../weights/tests/hub/server.rs"]
#[allow(dead_code)] // its own tests use all of it
mod hub_server;

mod bad_input;
mod budget;
mod changed_inputs;
mod convert;
mod curve;
mod data_free;
mod determinism;
mod device;
mod diff;
mod embedded;
mod families;
mod gguf_out;
mod hostile;
mod hub;
mod inspect;
mod layers;
mod lineage;
mod lottery;
mod measure;
mod networks;
mod organism;
mod probex;
mod prune;
mod recipes;
mod resume;
mod share;
mod share_bench;
mod share_run;
mod trust;
mod verify;
