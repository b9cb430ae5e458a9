//! As `exercise.rs`, for the readers of the crate that runs models.

use std::path::Path;

use scruple_compress::{model::DecoderConfig, recipe::Recipe};

/// A `config.json`.
pub fn config(bytes: &[u8]) {
    let Ok(json) = serde_json::from_slice(bytes) else { return };
    if let Err(error) = DecoderConfig::from_json(Path::new("fuzz"), &json) {
        let said = error.to_string();
        assert!(said.contains("fuzz") && said.len() < 100_000, "{said}");
    }
}

/// A recipe.
pub fn recipe(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Recipe::parse(Path::new("fuzz"), text) {
        Ok(recipe) => assert!(recipe.methods().is_ok()),
        Err(error) => {
            let said = error.to_string();
            assert!(said.contains("fuzz") && said.len() < 100_000, "{said}");
        }
    }
}
