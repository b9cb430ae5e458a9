//! What a checkpoint is called and configured like without some of its layers, decided from names and configuration
//! alone; nothing here runs a model or reads a weight.
//!
//! 1. The [`Stack`] of layers is found among the tensors' names, and with it the part of the configuration that describes
//!    it.
//! 2. Every tensor gets its new name: segment by segment, so that layer 1 is not taken for layer 10, nor an expert or a
//!    layer of another stack for a layer of this one.
//! 3. The configuration is rewritten: counts; lists with an entry a layer, which are sliced; lists of layers' numbers,
//!    which are renumbered; and what the family derives from a layer's number, which is written down with the values the
//!    layers had *before* they were renumbered. What is not understood is refused by name. Heads that
//!    `generation_config.json` names by their layers are renumbered too.

mod config;

mod families;

mod generation;

mod quantised;

mod stack;

use serde_json::Value;

pub use self::stack::Stack;
use super::Removal;
use crate::{Error, Result};
use scruple_weights::{Checkpoint, place};

/// What becomes of a checkpoint without some of its layers.
#[derive(Debug, Clone)]
pub struct Rewrite {
    /// The layers it is about.
    pub stack: Stack,
    /// Those that go.
    pub removal: Removal,
    /// Those that stay, by their old numbers: the new layer `i` is the old `kept[i]`.
    pub kept: Vec<usize>,
    /// Old and new name of every tensor that stays, in the checkpoint's order.
    pub tensors: Vec<(String, String)>,
    /// The new `config.json`.
    pub config: Value,
    /// Files beside it that name layers, by their names, as they must be.
    pub beside: Vec<(String, Value)>,
    /// What was changed in the configuration, a sentence each.
    pub changes: Vec<String>,
    /// What a reader of the new checkpoint should know.
    pub notes: Vec<String>,
}

/// Says what `checkpoint` becomes without the layers `removal` of its stack, or of the one called `stack`.
///
/// # Errors
/// A set that does not fit, names or a configuration that are not understood; the latter only unless `force`, which leaves
/// what is not understood as it is.
pub fn plan(checkpoint: &Checkpoint, removal: &Removal, stack: Option<&str>, force: bool) -> Result<Rewrite> {
    let file = checkpoint.dir().join("config.json");
    let old = checkpoint.config()?;
    let stack = Stack::find(checkpoint, old, stack)?;
    removal.check(stack.layers)?;
    let kept = removal.kept(stack.layers);
    stack.special_layers(&file, &kept, force)?;
    let tensors = names(checkpoint, &stack, removal, &kept)?;
    let mut rewritten = config::rewrite(&file, old, &stack, &kept, force)?;
    let generation = generation::rewrite(checkpoint.dir(), &stack, &kept, force)?;
    let beside = generation.map(|(value, note)| {
        rewritten.notes.push(note);
        (generation::FILE.to_string(), value)
    });
    let problem = stack.is_text().then(|| differs_here(&file, old, &rewritten.config, &kept)).flatten();
    if let Some(problem) = problem {
        let sentence = format!("{}: {problem}", file.display());
        if !force {
            return Err(Error::Model(sentence));
        }
        rewritten.notes.push(sentence);
    }
    Ok(Rewrite {
        removal: removal.clone(),
        kept,
        tensors,
        config: rewritten.config,
        beside: beside.into_iter().collect(),
        changes: rewritten.changes,
        notes: rewritten.notes,
        stack,
    })
}

/// Old and new names of what stays.
fn names(checkpoint: &Checkpoint, stack: &Stack, removal: &Removal, kept: &[usize]) -> Result<Vec<(String, String)>> {
    let mut names = Vec::with_capacity(checkpoint.tensors().len());
    for view in checkpoint.tensors() {
        let old = view.name();
        let new = match stack.layer_of(old) {
            None => Some(old.to_owned()),
            Some(layer) => {
                let moved = match kept.binary_search(&layer) {
                    Ok(new) => Some(new),
                    // Layers behind the stack's last one: those that predict further tokens move up.
                    Err(_) if layer >= stack.layers => Some(layer - removal.len()),
                    // What the first layer keeps for all of them goes to the new first.
                    Err(_) if layer == 0 && stack.owned_by_first(old) => Some(0),
                    Err(_) => None,
                };
                moved.map(|new| stack.rename(old, new))
            }
        };
        names.extend(new.map(|new| (old.to_owned(), new)));
    }
    Ok(names)
}

/// Where the family runs here, what its adapter makes of both configurations must agree layer by layer: a second opinion
/// on windows, rotary positions and experts. Of layers that see images or hear it knows nothing.
fn differs_here(file: &std::path::Path, old: &Value, new: &Value, kept: &[usize]) -> Option<String> {
    use crate::model::config::DecoderConfig;
    let before = DecoderConfig::from_json(file, old).ok()?;
    let after = match DecoderConfig::from_json(file, new) {
        Ok(after) => after,
        Err(error) => return Some(format!("the rewritten configuration is not understood: {error}")),
    };
    if before.n_blocks <= *kept.last()? {
        return None; // another stack than the one that runs
    }
    let differs = |&(new, &old): &(usize, &usize)| after.blocks.get(new) != Some(&before.blocks[old]);
    kept.iter().enumerate().find(differs).map(|(new, old)| {
        format!(
            "layer {old}, now {new}, would not do what it did: the configuration cannot say so, since it follows from a \
             layer's number; choose a set that keeps the pattern"
        )
    })
}

/// The number of layers of the stack that `name` belongs to, as the name says it.
pub(crate) fn block_of(name: &str) -> Option<(String, usize)> {
    let place = place(name);
    place.block.map(|block| (place.stack, block))
}
