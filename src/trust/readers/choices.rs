//! Plain multiple choice, as many test sets are published: {query, choices, gold} a line.

use anyhow::Result;

use super::{
    Format, Found, Source,
    source::{Row, hyphenated, item},
};

/// Questions with choices.
pub const FORMAT: Format = Format {
    name: "query-choices-gold",
    about: "JSON lines {query, choices, gold}",
    fits: |source| source.has(&["query", "choices", "gold"]),
    read,
};

fn read(source: &Source) -> Result<Vec<Found>> {
    let part = hyphenated(&source.stem);
    let of = |(at, row): (usize, &Row)| {
        let query = row.text("query")?;
        let prompt = match query.starts_with("Question:") && !query.ends_with("Answer:") {
            true => format!("{query}\nAnswer:"),
            false => query.to_string(),
        };
        let ask = row.choice(&row.texts("choices")?, Some(row.whole("gold")?))?;
        Ok(("knowledge", item(format!("{part}/{at}"), part.clone(), format!("{part}-{at}"), prompt, ask)))
    };
    source.rows()?.iter().enumerate().map(of).collect()
}
