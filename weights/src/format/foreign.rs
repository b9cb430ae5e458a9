//! Files that are no container: each is called by its name, with what to do instead.

use std::path::Path;

/// Says what `bytes` (a whole file) are when they are plainly none of the containers that are read: a web page saved
/// under the file's name, a git-LFS pointer, an archive, another program's format. The sentence ends with what to do.
pub(crate) fn foreign(path: &Path, bytes: &[u8]) -> Option<String> {
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
        return Some("this is a web page (HTML), not a file of weights; download the file itself".into());
    }
    let magic: &[(&[u8], &str)] = &[
        (b"\x1f\x8b", "this is a compressed archive (gzip), not a file of weights; unpack it first"),
        (b"\x28\xb5\x2f\xfd", "this is a compressed archive (zstd), not a file of weights; unpack it first"),
        (b"\xfd7zXZ\0", "this is a compressed archive (xz), not a file of weights; unpack it first"),
        (b"BZh", "this is a compressed archive (bzip2), not a file of weights; unpack it first"),
        (b"7z\xbc\xaf\x27\x1c", "this is a compressed archive (7z), not a file of weights; unpack it first"),
        (b"ggjt", GGML),
        (b"tjgg", GGML),
        (b"lmgg", GGML),
        (b"fmgg", GGML),
        (b"\x7fELF", "this is a program (ELF), not a file of weights; name the file that holds the weights"),
        (b"%PDF", "this is a PDF document, not a file of weights; name the file that holds the weights"),
        (b"PK\x05\x06", "this is an empty zip archive, not a file of weights; fetch or write it again"),
        (
            b"PK\x03\x04",
            "this is a zip archive without a PyTorch pickle (`data.pkl`) and without `.npy` arrays, or a damaged one; unpack it and name the file that holds the weights",
        ),
    ];
    if let Some((_, what)) = magic.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some((*what).to_owned());
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Some("this is a tar archive, not a file of weights; unpack it and name the file inside".into());
    }
    if bytes.get(4..8) == Some(b"TFL3") {
        return Some("this is a TensorFlow Lite model, which is not read; convert it to ONNX or safetensors".into());
    }
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name == "saved_model.pb" || name.contains(".ckpt.data-") || name.contains(".data-00000-of-") {
        return Some("this is a TensorFlow checkpoint, which is not read; convert it to ONNX or safetensors".into());
    }
    if ending == "msgpack" {
        return Some("this is a Flax checkpoint (msgpack), which is not read; convert it to safetensors".into());
    }
    if matches!(bytes, [0x80, 2..=5, third, ..] if *third != 0) {
        return Some(
            "this is a Python pickle that `torch.save` did not write, so it holds no tensors that can be read without running it; load it where it was made and save the tensors as safetensors"
                .into(),
        );
    }
    if bytes.starts_with(b"{") && bytes.get(7) != Some(&0) {
        return Some("this is JSON text, not a file of weights; name the file that holds the weights".into());
    }
    if bytes.len() >= 16 && bytes.iter().take(1 << 16).all(|&byte| byte == 0) {
        return Some(
            "the file begins with nothing but zeros: the download or copy did not finish, fetch it again".into(),
        );
    }
    let head = &bytes[..bytes.len().min(512)];
    if head.len() >= 16 && head.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t')) {
        return Some("this is plain text, not a file of weights; name the file that holds the weights".into());
    }
    None
}

const GGML: &str = "this is a GGML file from before GGUF; convert it with llama.cpp first";
