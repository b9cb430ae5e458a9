//! BBQ (Parrish et al. 2022): questions about two people, of which the context tells the answer, or does not.
//!
//! Questions of one template share a cluster.

use anyhow::Result;

use super::{
    Format, Found, Source,
    source::{Row, hyphenated, item},
};

/// Questions with three answers.
pub const FORMAT: Format = Format {
    name: "bbq",
    about: "JSON lines {example_id, question_index, context_condition, category, context, question, ans0, ans1, ans2, label}",
    fits: |source| source.has(&["question_index", "context_condition", "category", "context", "ans0", "ans2", "label"]),
    read,
};

fn read(source: &Source) -> Result<Vec<Found>> {
    source.rows()?.iter().map(question).collect()
}

fn question(row: &Row) -> Result<Found> {
    let category = hyphenated(row.text("category")?);
    let condition = row.text("context_condition")?;
    let condition = match condition {
        "ambig" => "ambiguous",
        "disambig" => "told",
        _ => {
            let what = format!("`context_condition` is `{condition}`, expected ambig or disambig");
            return Err(row.fault(what));
        }
    };
    let index = match row.get("question_index")?.as_str() {
        Some(index) => index.trim().to_string(),
        None => row.whole("question_index")?.to_string(),
    };
    let ask = row.choice(&[row.text("ans0")?, row.text("ans1")?, row.text("ans2")?], Some(row.whole("label")?))?;
    let prompt = format!("{}\nQuestion: {}\nAnswer:", row.text("context")?, row.text("question")?);
    let id = format!("bbq/{category}/{}", row.whole("example_id")?);
    Ok(("fairness", item(id, format!("bbq-{category}-{condition}"), format!("bbq-{category}-{index}"), prompt, ask)))
}
