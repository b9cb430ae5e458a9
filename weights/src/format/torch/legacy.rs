//! The form of `torch.save` before zip archives: five pickles, then the storages one after the other.

use std::collections::HashMap;

use super::{Place, bytes, contents, pickle, value::Value};
use crate::{Error, Result, Shard, format::Contents, format::shown};

/// The number that the first pickle returns, as bytes.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Whether `bytes` begin with a pickle of the magic number.
pub(super) fn recognise(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(64)];
    head.first() == Some(&0x80) && head.windows(MAGIC.len()).any(|window| window == MAGIC)
}

/// Reads the whole file.
pub(super) fn read(shard: &Shard) -> Result<Contents> {
    let file = shard.bytes();
    let refuse = |what: String| Error::file(shard.path(), what);
    if !recognise(file) {
        return Err(refuse("expected a PyTorch checkpoint (a zip archive with `data.pkl`, or the older pickle of `torch.save`), found another file: truncated, damaged or not a checkpoint; fetch it again".into()));
    }
    let mut at = 0;
    let mut next = |what: &str| {
        let built = pickle::run(&file[at..]).map_err(|why| refuse(format!("{what}: {why}")))?;
        at += built.end;
        Ok::<_, Error>((built, at))
    };
    next("the magic number")?;
    let (protocol, _) = next("the protocol version")?;
    if protocol.result != Value::Int(1001) {
        return Err(refuse(
            "the file is of another version of torch's format than 1001; save it again with a newer torch".into(),
        ));
    }
    let (system, _) = next("the description of the system")?;
    let big = system
        .pairs(system.result)
        .unwrap_or_default()
        .iter()
        .any(|&(key, value)| system.as_text(key) == Some("little_endian") && value == Value::Bool(false));
    if big {
        return Err(refuse(
            "the file was written on a big-endian machine; save it again on a little-endian one".into(),
        ));
    }
    let (built, _) = next("the checkpoint")?;
    let (keys, mut at) = next("the list of storages")?;

    // How many bytes a storage has, only the pickle says.
    let mut sizes = HashMap::new();
    for storage in built.storages() {
        let key = built.text(storage.key);
        let known = sizes.entry(key).or_insert(storage);
        if (known.dtype, known.len) != (storage.dtype, storage.len) {
            return Err(refuse(format!("storage `{}` has two different sizes in the pickle: damaged", shown(key))));
        }
    }
    let mut places = HashMap::new();
    let list = keys.items(keys.result).ok_or_else(|| refuse("the list of storages is no list: damaged".into()))?;
    for &key in list {
        let key = keys.as_text(key).ok_or_else(|| refuse("a storage has a key that is no text: damaged".into()))?;
        let name = shown(key);
        let storage = sizes
            .get(key)
            .ok_or_else(|| refuse(format!("storage `{name}` is listed, but the pickle never names it: damaged")))?;
        let cut = || refuse(format!("storage `{name}` at byte {at} is cut: the file is truncated, fetch it again"));
        let (len, rest) = file[at..].split_first_chunk::<8>().ok_or_else(cut)?;
        let len = i64::from_le_bytes(*len);
        if u64::try_from(len) != Ok(storage.len) {
            let what = format!("storage `{name}` has {len} elements where the pickle says {}: damaged", storage.len);
            return Err(refuse(what));
        }
        let size = bytes(storage).filter(|&size| size <= rest.len()).ok_or_else(cut)?;
        let start = at + 8;
        at = start + size;
        if places.insert(key, Place { shard: shard.clone(), range: start..at }).is_some() {
            return Err(refuse(format!("storage `{name}` is listed twice: damaged")));
        }
    }
    contents(shard, &built, "PyTorch (before 1.6)", &mut |key, _| Ok(places.get(key).cloned()))
}
