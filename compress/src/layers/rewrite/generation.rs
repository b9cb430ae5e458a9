//! Rewriting `generation_config.json`: Whisper names the heads there whose attention tells when a word was said.

use std::{fs, path::Path};

use serde_json::Value;

use super::Stack;
use crate::{Error, Result};

/// The file.
pub(super) const FILE: &str = "generation_config.json";

/// The list of (layer, head) of a decoder.
const HEADS: &str = "alignment_heads";

/// What the file in `folder` becomes for the layers `kept` of `stack`, with a note for the reader; nothing where it names
/// no heads of this stack, or cannot be understood and that is to be left so (`force`).
pub(super) fn rewrite(folder: &Path, stack: &Stack, kept: &[usize], force: bool) -> Result<Option<(Value, String)>> {
    let file = folder.join(FILE);
    let whole = fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let Some(mut whole) = whole.filter(|_| stack.is_decoder()) else { return Ok(None) };
    let Some(object) = whole.as_object_mut() else { return Ok(None) };
    let Some(heads) = object.get(HEADS).filter(|heads| !heads.is_null()) else { return Ok(None) };
    let Ok(heads) = serde_json::from_value::<Vec<(usize, usize)>>(heads.clone()) else {
        return match force {
            true => Ok(None),
            false => Err(Error::Model(format!(
                "{}: `{HEADS}` should be a list of pairs of a layer and a head; --force leaves it as it is",
                file.display()
            ))),
        };
    };
    let new = |&(layer, head): &(usize, usize)| Some(Value::from(vec![kept.binary_search(&layer).ok()?, head]));
    let left: Vec<Value> = heads.iter().filter_map(new).collect();
    let note = format!(
        "`{HEADS}` of {FILE}: {} of {} are left, by their new numbers; times of words are told by them",
        left.len(),
        heads.len()
    );
    match left.is_empty() {
        true => drop(object.shift_remove(HEADS)),
        false => drop(object.insert(HEADS.into(), left.into())),
    }
    Ok(Some((whole, note)))
}
