//! The first stage of a recipe where it takes layers out: the other stages work on what is left, over the dense model's
//! own maps, so that no second model lies on the disk meanwhile.

use anyhow::{Context, Result};
use scruple_compress::{
    layers::{DropOptions, Dropped, Removal, without_layers, write::Provenance},
    recipe::{LayersRecipe, Recipe},
};
use scruple_weights::Checkpoint;

use crate::{commands::layers::prune, printer};

/// `dense` without the layers that `recipe` takes out, if it takes any; the recipe then says which they are, where a search
/// had to be asked.
///
/// # Errors
/// A search without such a set; layers that the model does not have, or all of them; a family that is not understood.
pub fn take_out(recipe: &mut Recipe, dense: &Checkpoint) -> Result<Option<(Checkpoint, Dropped)>> {
    let Some(LayersRecipe { drop, from, k }) = &recipe.layers else { return Ok(None) };
    let (removal, chosen_by) = match (drop, from) {
        (Some(drop), _) => (Removal::parse(drop)?, None),
        (None, Some(from)) => {
            let (removal, by) = prune::read_set(from, *k).context("stage 1 (`layers.from`)")?;
            prune::expect_searched(dense, &by);
            (removal, Some(by))
        }
        (None, None) => anyhow::bail!("stage 1: `layers` says nothing; give `layers.drop` or `layers.from`"),
    };
    let options = DropOptions { chosen_by, ..DropOptions::default() };
    let fewer = without_layers(dense, &removal, &options).context("stage 1 (`layers.drop`)")?;
    fewer.1.provenance.notes.iter().for_each(printer::warn);
    recipe.layers = Some(LayersRecipe::of(&removal));
    Ok(Some(fewer))
}

/// `dense` as the recipe of a result with this provenance saw it: without the layers it took out.
///
/// # Errors
/// As [`take_out`].
pub fn as_compressed(dense: Checkpoint, layers: Option<&Provenance>) -> Result<Checkpoint> {
    match layers {
        None => Ok(dense),
        Some(layers) => {
            let stack = Some(layers.stack.clone());
            Ok(without_layers(&dense, &layers.removed, &DropOptions { stack, ..DropOptions::default() })?.0)
        }
    }
}
