//! What a zoo is made of.

use serde::{Deserialize, Serialize};

/// A zoo's recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The preset's name.
    pub name: String,
    /// Full fine-tunes of each tree.
    pub trees: Vec<usize>,
    /// Networks that each have a random start of their own: a control, of which nothing can be read.
    pub random_starts: usize,
    /// Fine-tunes of the first tree by adapters, kept as adapters.
    pub adapters: usize,
    /// Fine-tunes of the first tree whose matrices were rounded to 8 or 4 bits or half pruned afterwards, each.
    pub compressed: usize,
    /// Hidden sides.
    pub hidden: [usize; 2],
    /// Inner size of adapters.
    pub rank: usize,
    /// Most images used.
    pub images: usize,
    /// Steps and batch of ancestors; their step size is 2e-3.
    pub pretext: (usize, usize),
    /// Classes a fine-tune learns.
    pub classes: usize,
    /// Least and most steps of a fine-tune, of 32 rows.
    pub steps: (usize, usize),
    /// Images of a class a fine-tune sees at most.
    pub images_per_class: usize,
    /// Sets of classes, drawn once, of which each model learns one and by which it is labelled in words; 0 draws classes
    /// anew for each model.
    pub sets: usize,
    /// Sets that no training model learns.
    pub held_out_sets: usize,
}

/// Step sizes of fine-tunes.
pub const RATES: [f32; 4] = [3e-4, 5e-4, 1e-3, 2e-3];

/// Decays of fine-tunes.
pub const DECAYS: [f32; 3] = [0.0, 1e-3, 1e-2];

/// Names of the presets, with what each is for.
pub const PRESETS: [(&str, &str); 4] = [
    ("digits-small", "four trees of 600 fine-tunes on five of ten classes each, and 600 random starts"),
    ("digits-tiny", "two trees, of 160 and 40 fine-tunes, and 20 random starts: seconds"),
    ("fashion", "three trees of 600 fine-tunes on larger images, five of ten classes each, and 200 random starts"),
    ("fashion-sets", "three trees of 800 fine-tunes on 80 sets of three classes described in words, 24 held out"),
];

impl Recipe {
    /// The preset called `name`.
    pub fn preset(name: &str) -> Option<Self> {
        let small = Self {
            name: name.into(),
            trees: vec![600; 4],
            random_starts: 600,
            adapters: 60,
            compressed: 20,
            hidden: [128, 64],
            rank: 4,
            images: 1797,
            pretext: (600, 64),
            classes: 5,
            steps: (80, 240),
            images_per_class: 70,
            sets: 0,
            held_out_sets: 0,
        };
        let large = Self { images: 12_000, pretext: (1500, 64), images_per_class: 300, ..small.clone() };
        match name {
            "digits-small" => Some(small),
            "digits-tiny" => {
                Some(Self { trees: vec![160, 40], random_starts: 20, adapters: 8, compressed: 4, ..small })
            }
            "fashion" => Some(Self { trees: vec![600; 3], random_starts: 200, ..large }),
            "fashion-sets" => Some(Self {
                trees: vec![800; 3],
                random_starts: 0,
                adapters: 0,
                compressed: 0,
                classes: 3,
                sets: 80,
                held_out_sets: 24,
                ..large
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_there() {
        for (name, _) in PRESETS {
            let recipe = Recipe::preset(name).unwrap();
            assert!(recipe.name == name && recipe.held_out_sets <= recipe.sets);
        }
        assert_eq!(Recipe::preset("other"), None);
    }
}
