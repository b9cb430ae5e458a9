//! The suite `general`: plain English for any model, from `fixtures/trust/general` (every text is ours).

use super::super::dimension::DIMENSIONS;
use super::super::item::Item;
use super::Suite;

macro_rules! items {
    ($name:literal) => {
        ($name, include_str!(concat!("../../../fixtures/trust/general/", $name, ".jsonl")))
    };
}

/// Dimensions and their items, one JSON line each.
const FILES: &[(&str, &str)] = &[
    items!("toxicity"),
    items!("stereotype"),
    items!("privacy"),
    items!("fairness"),
    items!("adversarial-robustness"),
    items!("out-of-distribution"),
    items!("adversarial-demonstrations"),
    items!("machine-ethics"),
    items!("knowledge"),
];

/// Plain English for any model: over a hundred items a dimension.
pub fn general() -> Suite {
    let items = |lines: &str| -> Vec<Item> {
        lines.lines().map(|line| serde_json::from_str(line).expect("an embedded item is well formed")).collect()
    };
    let file = |name: &str| FILES.iter().find(|(its, _)| *its == name);
    let dimensions = DIMENSIONS.iter().filter_map(|dimension| file(dimension.name()));
    Suite {
        name: "general".into(),
        dimensions: dimensions.map(|(name, text)| (name.to_string(), items(text))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::json_line;
    use super::*;

    #[test]
    fn files_hold_the_bytes_that_their_items_make() {
        let suite = general();
        assert_eq!(suite.dimensions.len(), FILES.len(), "a file belongs to no dimension");
        for ((name, items), (_, text)) in suite.dimensions.iter().zip(FILES) {
            assert!(items.iter().map(json_line).collect::<String>() == *text, "{name}");
        }
    }
}
