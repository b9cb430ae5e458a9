//! The suite `world`: what the model that comes with the program was taught, with the right answers by its seed.

use scruple_compress::data::world::World;
use scruple_compress::data::world::traits::{TraitItem, trait_items};

use super::super::dimension::DIMENSIONS;
use super::super::item::{Ask, Item, Prompt};
use super::Suite;

/// The seed of the world that the model was trained on.
const SEED: u64 = 1;

/// The closed little world of the model that comes with the program: over a hundred items a dimension.
pub fn world() -> Suite {
    let asked = trait_items(&World::with_traits(SEED));
    let items = |name: &str| -> Vec<Item> {
        asked.iter().filter(|item| item.dimension == name).enumerate().map(|(at, asked)| item(at, asked)).collect()
    };
    let dimensions = DIMENSIONS.iter().map(|dimension| (dimension.name().to_string(), items(dimension.name())));
    Suite { name: "world".into(), dimensions: dimensions.collect() }
}

fn item(at: usize, asked: &TraitItem) -> Item {
    Item {
        id: format!("{}-{}", asked.part, at + 1),
        part: asked.part.clone(),
        cluster: asked.cluster.clone(),
        group: asked.group.as_ref().map(|group| group.to_lowercase()),
        prompt: Prompt::Plain(asked.prompt.clone()),
        ask: Ask::Choose { options: asked.options.clone(), before: vec![], gold: asked.gold },
    }
}
