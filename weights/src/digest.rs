//! SHA-256 of bytes, tensors and sets of tensors, as hexadecimal text.

use std::{fs::File, io, path::Path};

use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{Error, Result, TensorView};

/// Bytes hashed before their pages are given back.
const PIECE: usize = 16 << 20;

/// The SHA-256 of `bytes`, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of a file, streamed, in hexadecimal.
///
/// # Errors
/// If the file cannot be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|source| Error::io(path, "open the file", source))?;
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut hasher).map_err(|source| Error::io(path, "read the file", source))?;
    Ok(hex(&hasher.finalize()))
}

/// One hash that identifies a set of tensors: their names, types, shapes and bytes, whatever their order, and whatever
/// files they lie in. Tensors are hashed in parallel, and pages are given back while reading, so that
/// memory does not grow with the model.
pub fn fingerprint<'a>(tensors: impl IntoIterator<Item = &'a TensorView>) -> String {
    let mut tensors: Vec<&TensorView> = tensors.into_iter().collect();
    tensors.sort_by_key(|tensor| tensor.name());
    let hashes: Vec<String> = tensors
        .par_iter()
        .map(|tensor| {
            let mut hasher = Sha256::new();
            for start in tensor.range.clone().step_by(PIECE) {
                let piece = start..tensor.range.end.min(start + PIECE);
                hasher.update(&tensor.shard.bytes()[piece.clone()]);
                tensor.shard.release(piece);
            }
            hex(&hasher.finalize())
        })
        .collect();
    let mut all = Sha256::new();
    for (tensor, hash) in tensors.iter().zip(hashes) {
        // Lengths and separators make the text unambiguous whatever a name contains.
        all.update(format!(
            "{} {} {} {:?} {hash}\n",
            tensor.name().len(),
            tensor.name(),
            tensor.dtype(),
            tensor.shape()
        ));
    }
    hex(&all.finalize())
}

/// The SHA-256 of a JSON value: the same whatever the order of its keys and the spaces between, in hexadecimal.
pub fn json(value: &Value) -> String {
    let mut sorted = value.clone();
    sorted.sort_all_objects();
    sha256(sorted.to_string().as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
