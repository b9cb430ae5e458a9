//! Lists the tensors of any container: name, type, shape and the SHA-256 of the bytes, tab-separated; then the metadata.
//!
//! ```text
//! cargo run --release -p scruple-weights --example tensors -- MODEL
//! ```

#![allow(clippy::print_stdout, reason = "a program that prints its results")]

use scruple_weights::Checkpoint;

fn main() {
    let path = std::env::args_os().nth(1).expect("the path of a checkpoint");
    match Checkpoint::open(path) {
        Ok(checkpoint) => {
            for tensor in checkpoint.tensors() {
                println!("{}\t{}\t{:?}\t{}", tensor.name(), tensor.dtype(), tensor.shape(), tensor.sha256());
            }
            println!(
                "{} tensors, {} parameters, {:?}",
                checkpoint.tensors().len(),
                checkpoint.parameters(),
                checkpoint.metadata()
            );
        }
        Err(error) => {
            println!("{error}");
            std::process::exit(2);
        }
    }
}
