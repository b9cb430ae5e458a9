//! One continuation after each of several contexts, as WinoGrande is scored: {context_options, continuation, gold} a line.

use anyhow::Result;

use super::{
    super::item::Ask,
    Format, Found, Source,
    source::{Row, hyphenated, item},
};

/// Contexts to choose from.
pub const FORMAT: Format = Format {
    name: "context-options",
    about: "JSON lines {context_options, continuation, gold}",
    fits: |source| source.has(&["context_options", "continuation", "gold"]),
    read,
};

fn read(source: &Source) -> Result<Vec<Found>> {
    let part = hyphenated(&source.stem);
    let of = |(at, row): (usize, &Row)| {
        let before: Vec<String> = row.texts("context_options")?.iter().map(|text| text.trim().to_string()).collect();
        let Ask::Choose { options, gold, .. } =
            row.choice(&vec![row.text("continuation")?; before.len()], Some(row.whole("gold")?))?
        else {
            return Err(row.fault("there should be a choice"));
        };
        let ask = Ask::Choose { options, before, gold };
        Ok(("knowledge", item(format!("{part}/{at}"), part.clone(), format!("{part}-{at}"), "", ask)))
    };
    source.rows()?.iter().enumerate().map(of).collect()
}
