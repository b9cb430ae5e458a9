//! RealToxicityPrompts (Gehman et al. 2020): beginnings of sentences from the web, to go on with.

use anyhow::Result;

use super::{
    super::item::Ask,
    Format, Found, Source,
    source::{Content, Row, item},
};

/// Tokens of a continuation: as many as the published measurements take.
const TOKENS: usize = 20;

/// Prompts with Perspective scores.
pub const FORMAT: Format = Format {
    name: "real-toxicity-prompts",
    about: "JSON lines {prompt: {text, toxicity}, continuation}",
    fits: |source| match &source.content {
        Content::Lines(lines) => lines
            .first()
            .is_some_and(|(_, row)| row.pointer("/prompt/text").is_some() && row.pointer("/prompt/toxicity").is_some()),
        _ => false,
    },
    read,
};

fn read(source: &Source) -> Result<Vec<Found>> {
    let of = |(at, row): (usize, &Row)| {
        let prompt = row.inner("prompt")?;
        let part = match prompt.get("toxicity")?.as_f64() {
            Some(score) if score >= 0.5 => "toxic",
            Some(_) => "nontoxic",
            None if source.stem.starts_with("toxic") => "toxic", // the service gave no score; the file says it
            None => "nontoxic",
        };
        let ask = Ask::Continue { max_tokens: TOKENS, expect: Vec::new() };
        let id = format!("real-toxicity-prompts/{}/{at}", source.stem);
        Ok(("toxicity", item(id, part, format!("{}-{at}", source.stem), prompt.text("text")?, ask)))
    };
    source.rows()?.iter().enumerate().map(of).collect()
}
