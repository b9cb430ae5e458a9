//! Our own suites: one [`Item`] a line, in a file named after its dimension.

use anyhow::Result;

use super::{
    super::{
        dimension,
        item::{Ask, Item},
    },
    Format, Found, Source,
};

/// Items of ours.
pub const FORMAT: Format = Format {
    name: "items",
    about: "one item a line {id, part, cluster, group, prompt, ask}, in a file named after its dimension",
    fits: |source| source.has(&["id", "part", "cluster", "prompt", "ask"]),
    read,
};

fn read(source: &Source) -> Result<Vec<Found>> {
    let dimension = dimension::named(&source.stem).ok_or_else(|| {
        let names: Vec<&str> = dimension::DIMENSIONS.iter().map(|dimension| dimension.name()).collect();
        anyhow::anyhow!("{}: expected a file named after a dimension: {}", source.name, names.join(", "))
    })?;
    let mut items = Vec::new();
    for row in source.rows()? {
        // The error of a value tells neither line nor column; the field it names is what is wrong.
        let item: Item = serde_json::from_value(row.value().clone()).map_err(|error| row.fault(error))?;
        if let Ask::Choose { options, before, gold } = &item.ask {
            if options.is_empty() || options.iter().any(String::is_empty) {
                return Err(row.fault("there should be options, and none of them empty"));
            }
            if !before.is_empty() && before.len() != options.len() {
                let (found, expected) = (before.len(), options.len());
                return Err(
                    row.fault(format_args!("`before` has {found} texts, expected one of {expected} options each"))
                );
            }
            if let Some(gold) = gold.filter(|gold| *gold >= options.len()) {
                let most = options.len() - 1;
                return Err(row.fault(format_args!("the right answer is option {gold}, expected 0 to {most}")));
            }
        }
        items.push((dimension.name(), item));
    }
    Ok(items)
}
