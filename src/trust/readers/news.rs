//! DecodingTrust's questions about the news of a year (Wang et al. 2023, section 6.2): {test: {qa_2020: […], qa_2023: […]}}
//! with four choices each. Later years than a model has seen cannot be known.

use anyhow::Result;
use serde_json::Value;

use super::{
    Format, Found, Source,
    source::{Content, hyphenated, item},
};

/// Questions by year.
pub const FORMAT: Format = Format {
    name: "decodingtrust-knowledge",
    about: "JSON {test: {qa_2020: [{question_sentence, choices, answer, question_date}]}}",
    fits: |source| match &source.content {
        Content::Json(value) => value.get("test").and_then(Value::as_object).is_some_and(|sets| {
            !sets.is_empty() && sets.values().all(|rows| rows.pointer("/0/question_sentence").is_some())
        }),
        _ => false,
    },
    read,
};

fn read(source: &Source) -> Result<Vec<Found>> {
    let Content::Json(value) = &source.content else { return Ok(Vec::new()) };
    let Some(Value::Object(sets)) = value.get("test") else { return Ok(Vec::new()) };
    let mut items = Vec::new();
    for (set, rows) in sets {
        for (at, value) in rows.as_array().into_iter().flatten().enumerate() {
            let row = source.row(format!("entry {} of `{set}`", at + 1), value.clone());
            let choices = row.texts("choices")?;
            let mut prompt = String::new();
            if row.value().get("question_date").is_some() {
                prompt.push_str(&format!("It is {}.\n", row.text("question_date")?));
            }
            prompt.push_str(&format!("Question: {}\n", row.text("question_sentence")?));
            let numbers: Vec<String> = (0..choices.len()).map(|at| at.to_string()).collect();
            numbers.iter().zip(&choices).for_each(|(at, text)| prompt.push_str(&format!("{at}: {}\n", text.trim())));
            prompt.push_str("The number of the right answer is");
            let gold = match row.texts("answer")?[..] {
                [answer] => answer.trim().parse().ok(),
                _ => None,
            };
            let gold = gold.ok_or_else(|| row.fault("`answer` should be a list of one number"))?;
            let part = hyphenated(set);
            let ask = row.choice(&numbers, Some(gold))?;
            items.push((
                "out-of-distribution",
                item(format!("{part}/{at}"), part.clone(), format!("{part}-{at}"), prompt, ask),
            ));
        }
    }
    Ok(items)
}
