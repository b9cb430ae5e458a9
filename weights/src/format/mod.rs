//! Containers: one file that holds several tensors. A container yields names, types, shapes and byte ranges, all of
//! them checked, so that whoever holds an [`Entry`] may slice the file without a further thought.

use std::{collections::BTreeMap, ops::Range, path::Path};

use crate::{Dtype, Result, Shard, TensorView};

pub mod gguf;
pub mod safetensors;

/// One tensor of a container. `range` lies inside the file and is exactly as long as `dtype` and `shape` demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The tensor's name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, slowest dimension first.
    pub shape: Vec<usize>,
    /// Where its bytes lie, counted from the start of the file.
    pub range: Range<usize>,
}

/// String metadata of a container.
pub type Metadata = BTreeMap<String, String>;

/// Number of elements of `shape`, or `None` if it overflows.
pub fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))
}

/// Says what `bytes` (a whole file) are when they are plainly not a safetensors file: a web page saved under the
/// file's name, a git-LFS pointer, JSON, GGUF, a pickle or an archive. The sentence ends with what to do.
pub(crate) fn not_safetensors(path: &Path, bytes: &[u8]) -> Option<String> {
    let text = bytes.trim_ascii_start();
    let starts =
        |prefix: &str| text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()));
    if bytes.starts_with(b"version https://git-lfs.github.com/spec") {
        let size = std::str::from_utf8(&bytes[..bytes.len().min(1024)])
            .ok()
            .and_then(|text| text.lines().find_map(|line| line.strip_prefix("size ")))
            .map(|size| format!(" of {} bytes", size.trim()))
            .unwrap_or_default();
        return Some(format!(
            "this is a git-LFS pointer, not the file{size} it points to; run `git lfs pull` in its folder"
        ));
    }
    if starts("<!doctype") || starts("<html") || starts("<?xml") || starts("<head") {
        return Some("this is a web page (HTML), not a safetensors file; download the file itself".into());
    }
    if bytes.starts_with(b"GGUF") {
        return Some("this is a GGUF file, not safetensors; give it a name that ends in `.gguf`".into());
    }
    if is_pickle(path, bytes) {
        return Some(
            "this is a PyTorch pickle or zip archive, which is not supported yet; convert it to safetensors".into(),
        );
    }
    if bytes.starts_with(&[0x1f, 0x8b]) || bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Some("this is a compressed archive (gzip or zstd), not a safetensors file; unpack it first".into());
    }
    if bytes.starts_with(b"{") && std::str::from_utf8(&bytes[..bytes.len().min(8)]).is_ok() && bytes.get(7) != Some(&0)
    {
        return Some("this is JSON text, not a safetensors file; name the file that holds the weights".into());
    }
    None
}

fn is_pickle(path: &Path, bytes: &[u8]) -> bool {
    let pickle_name = path
        .extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| matches!(extension, "bin" | "pt" | "pth" | "pkl" | "ckpt"));
    let pickle_head = bytes.len() >= 3 && bytes[0] == 0x80 && (2..=5).contains(&bytes[1]) && bytes[2] != 0;
    bytes.starts_with(b"PK\x03\x04") || pickle_name && pickle_head
}

/// Reads the container `shard`: GGUF if its name ends in `.gguf`, safetensors otherwise.
///
/// # Errors
/// If the file is something else, or malformed.
pub fn read(shard: &Shard) -> Result<(Vec<Entry>, Metadata)> {
    if shard.path().extension().is_some_and(|extension| extension == "gguf") {
        let file = gguf::read(shard)?;
        let entry = |tensor: TensorView| Entry {
            name: tensor.name.to_string(),
            dtype: tensor.dtype,
            shape: tensor.shape.to_vec(),
            range: tensor.range,
        };
        // GGUF's metadata is typed; only its texts fit here, and whoever converts the file reads it there.
        let text = |(key, value): (&str, &gguf::Value)| Some((key.to_string(), value.as_str()?.to_string()));
        return Ok((file.tensors().iter().cloned().map(entry).collect(), file.metadata().filter_map(text).collect()));
    }
    safetensors::read(shard)
}
