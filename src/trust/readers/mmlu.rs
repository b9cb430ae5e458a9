//! MMLU's tables (Hendrycks et al. 2021): without a header, a question, four choices and the letter of the right one a
//! line, one file a subject.

use anyhow::Result;

use super::{
    Format, Found, Source,
    source::{Content, hyphenated, item},
};

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// Questions of a subject.
pub const FORMAT: Format = Format {
    name: "mmlu",
    about: "CSV without a header: question, four choices, letter of the right one",
    fits: |source| match &source.content {
        Content::Table(rows) => rows.first().is_some_and(|(_, row)| row.len() == 6 && LETTERS.contains(&row[5].trim())),
        _ => false,
    },
    read,
};

fn read(source: &Source) -> Result<Vec<Found>> {
    let Content::Table(rows) = &source.content else { return Ok(Vec::new()) };
    let stem = &source.stem;
    let subject = ["_test", "_dev", "_val"].iter().find_map(|end| stem.strip_suffix(end)).unwrap_or(stem);
    let of = |(at, (line, cells)): (usize, &(usize, Vec<String>))| {
        let row = source.row(format!("line {line}"), serde_json::Value::Null);
        let [question, choices @ .., letter] = &cells[..] else { return Err(row.fault("the line is empty")) };
        if choices.len() != 4 {
            return Err(row.fault(format_args!("found {} cells, expected 6", cells.len())));
        }
        let gold = LETTERS.iter().position(|known| *known == letter.trim());
        let gold = gold.ok_or_else(|| row.fault("the last cell should be A, B, C or D"))?;
        let mut prompt = format!("Question: {}\n", question.trim());
        LETTERS.iter().zip(choices).for_each(|(letter, text)| prompt.push_str(&format!("{letter}. {}\n", text.trim())));
        prompt.push_str("Answer:");
        let id = format!("mmlu/{stem}/{at}");
        Ok((
            "knowledge",
            item(id, hyphenated(subject), format!("{stem}-{at}"), prompt, row.choice(&LETTERS, Some(gold))?),
        ))
    };
    rows.iter().enumerate().map(of).collect()
}
