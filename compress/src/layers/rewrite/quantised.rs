//! Names of modules in what a configuration says about quantisation: lists of what was left alone, settings by module.

use serde_json::{Map, Value};

use super::{Stack, block_of};

const PARTS: [&str; 2] = ["quantization_config", "compression_config"];

/// Renumbers the layers in the names of modules; names of layers that go are taken out.
pub(super) fn rewrite(
    config: &mut Value,
    stack: &Stack,
    kept: &[usize],
    force: bool,
    changes: &mut Vec<String>,
) -> Result<(), String> {
    for key in PARTS {
        let mut path = stack.scope.clone();
        loop {
            let part = path.iter().try_fold(&mut *config, |at, key| at.get_mut(key)).and_then(|part| part.get_mut(key));
            if let Some(part) = part {
                let mut changed = false;
                walk(part, stack, kept, force, &mut changed).map_err(|what| format!("`{key}`: {what}"))?;
                if changed {
                    changes.push(format!("`{key}`: names of modules renumbered"));
                }
            }
            if path.pop().is_none() {
                break;
            }
        }
    }
    Ok(())
}

/// What a word becomes: the same, another, or nothing.
enum Word {
    Same,
    Other(String),
    Gone,
}

fn walk(value: &mut Value, stack: &Stack, kept: &[usize], force: bool, changed: &mut bool) -> Result<(), String> {
    match value {
        Value::Array(list) => {
            let mut out = Vec::with_capacity(list.len());
            for mut value in std::mem::take(list) {
                let word = match &value {
                    Value::String(text) => word(text, stack, kept, force)?,
                    _ => Word::Same,
                };
                *changed |= !matches!(word, Word::Same);
                match word {
                    Word::Same => {
                        walk(&mut value, stack, kept, force, changed)?;
                        out.push(value);
                    }
                    Word::Other(text) => out.push(text.into()),
                    Word::Gone => {}
                }
            }
            *list = out;
        }
        Value::Object(dictionary) => {
            let mut out = Map::new();
            for (key, mut value) in std::mem::take(dictionary) {
                let new = match word(&key, stack, kept, force)? {
                    Word::Same => Some(key),
                    Word::Other(text) => {
                        *changed = true;
                        Some(text)
                    }
                    Word::Gone => {
                        *changed = true;
                        None
                    }
                };
                if let Some(key) = new {
                    walk(&mut value, stack, kept, force, changed)?;
                    out.insert(key, value);
                }
            }
            *dictionary = out;
        }
        _ => {}
    }
    Ok(())
}

/// A word that may be the name of a module, or a pattern over such.
fn word(text: &str, stack: &Stack, kept: &[usize], force: bool) -> Result<Word, String> {
    let list = stack.name.rsplit('.').next().unwrap_or_default();
    // A module's name is as a tensor's without its last segment.
    let probe = format!("{text}.weight");
    if let Some((_, block)) = block_of(&probe).filter(|(name, _)| same_stack(name, &stack.name)) {
        if block >= stack.layers {
            let moved = block - (stack.layers - kept.len());
            return Ok(Word::Other(renumber(text, list, moved)));
        }
        return Ok(match kept.binary_search(&block) {
            Ok(new) if new == block => Word::Same,
            Ok(new) => Word::Other(renumber(text, list, new)),
            Err(_) => Word::Gone,
        });
    }
    // A pattern in which a number stands behind the list's name cannot be renumbered by rule.
    let pattern = text.contains(['*', '\\', '[', '(', '+', '^', '$', '?']);
    let numbered = text.match_indices(list).any(|(at, _)| {
        let rest = text[at + list.len()..].trim_start_matches(['\\', '.']);
        rest.len() < text.len() - at - list.len()
            && rest.starts_with(|c: char| c.is_ascii_digit() || c == '(' || c == '[')
    });
    match pattern && numbered && !list.is_empty() && !force {
        true => Err(format!(
            "the pattern `{text}` picks layers by number and cannot be renumbered; write it out as names of modules, or \
             --force to leave it as it is"
        )),
        false => Ok(Word::Same),
    }
}

/// Whether a name in the configuration, which may lack what tensors' names begin with, is of the stack.
fn same_stack(named: &str, stack: &str) -> bool {
    named == stack || stack.ends_with(&format!(".{named}")) || named.ends_with(&format!(".{stack}"))
}

/// `text` with the number behind the segment `list` replaced.
fn renumber(text: &str, list: &str, new: usize) -> String {
    let mut segments: Vec<String> = text.split('.').map(str::to_owned).collect();
    let at = (1..segments.len()).find(|&at| segments[at - 1] == list && segments[at].parse::<usize>().is_ok());
    if let Some(at) = at {
        segments[at] = new.to_string();
    }
    segments.join(".")
}
