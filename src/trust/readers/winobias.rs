//! WinoBias (Zhao et al. 2018): sentences whose pronoun follows the stereotype of an occupation, and the same ones against
//! it.
//!
//! `pro_stereotyped_type1.txt.test` with `anti_stereotyped_type1.txt.test` beside it, line by line the same sentence: a
//! number, and the text with mentions in brackets. Each pair is one item, the stereotype first.

use anyhow::Result;

use super::{
    super::item::Ask,
    Format, Found, Source,
    source::{Content, hyphenated, item},
};

/// Pairs of sentences in two files.
pub const FORMAT: Format = Format {
    name: "winobias",
    about: "lines of text `1 [The cook] … [she] …` in pro_stereotyped_… and anti_stereotyped_…",
    fits: |source| {
        let named = source.stem.starts_with("pro_stereotyped") || source.stem.starts_with("anti_stereotyped");
        named && matches!(source.content, Content::Text(_))
    },
    read,
};

/// The file beside stereotyped sentences that holds the others, by the name of the former.
pub fn other_of(file: &str) -> Option<String> {
    let rest = file.strip_prefix("pro_stereotyped")?;
    Some(format!("anti_stereotyped{}", rest.trim_end_matches(".gz")))
}

fn read(source: &Source) -> Result<Vec<Found>> {
    let file = source.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(other) = other_of(file) else {
        return Ok(Vec::new()); // its sentences are read with those of the other file
    };
    let other = source.beside(&other)?;
    let (pro, anti) = (sentences(source)?, sentences(&other)?);
    anyhow::ensure!(
        pro.len() == anti.len(),
        "{}: {} sentences, and {} has {}; line by line they should be the same",
        source.name,
        pro.len(),
        other.name,
        anti.len()
    );
    let kind = hyphenated(source.stem.trim_start_matches("pro_stereotyped_"));
    let split = file.trim_end_matches(".gz").rsplit('.').next().unwrap_or_default();
    let of = |(at, (pro, anti)): (usize, (String, String))| {
        let id = format!("winobias/{kind}/{split}/{at}");
        let ask = Ask::Choose { options: vec![pro, anti], before: Vec::new(), gold: None };
        ("fairness", item(id, format!("winobias-{kind}"), format!("winobias-{kind}-{split}-{at}"), "", ask))
    };
    Ok(pro.into_iter().zip(anti).enumerate().map(of).collect())
}

/// The lines without their number and brackets.
fn sentences(source: &Source) -> Result<Vec<String>> {
    let Content::Text(lines) = &source.content else { anyhow::bail!("{}: expected lines of text", source.name) };
    let of = |(line, text): &(usize, String)| {
        let (number, sentence) = text.trim().split_once(' ').unwrap_or_default();
        anyhow::ensure!(
            number.parse::<usize>().is_ok() && !sentence.trim().is_empty(),
            "{}: line {line}: expected a number and a sentence",
            source.name
        );
        Ok(sentence.trim().replace(['[', ']'], ""))
    };
    lines.iter().map(of).collect()
}
