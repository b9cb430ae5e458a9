//! AdvGLUE (Wang et al. 2021) and AdvGLUE++ (Wang et al. 2023, section 5): six tasks of GLUE whose texts were changed to
//! mislead, in one JSON object of lists by task.

use anyhow::Result;
use serde_json::Value;

use super::{
    super::item::Item,
    Format, Found, Source,
    source::{Content, Row, item},
};

/// Lists of texts by task.
pub const FORMAT: Format = Format {
    name: "advglue",
    about: "JSON {sst2, qqp, mnli, mnli-mm, qnli, rte: [{idx, label, text fields}]}",
    fits: |source| match &source.content {
        Content::Json(Value::Object(tasks)) => {
            !tasks.is_empty() && tasks.iter().all(|(name, rows)| task(name).is_some() && rows.is_array())
        }
        _ => false,
    },
    read,
};

/// How a task asks.
struct Task {
    name: &'static str,
    /// Fields of the two texts; the second may be none.
    fields: [&'static str; 2],
    /// What stands before each text, and the question after them.
    words: [&'static str; 3],
    /// By the number of the label.
    labels: &'static [&'static str],
}

const TASKS: &[Task] = &[
    Task {
        name: "sst2",
        fields: ["sentence", ""],
        words: ["Review:", "", "Is this review negative or positive?"],
        labels: &["negative", "positive"],
    },
    Task {
        name: "qqp",
        fields: ["question1", "question2"],
        words: ["First question:", "Second question:", "Do both ask the same, yes or no?"],
        labels: &["no", "yes"],
    },
    Task {
        name: "mnli",
        fields: ["premise", "hypothesis"],
        words: ["Premise:", "Claim:", "Does the claim follow, yes, maybe or no?"],
        labels: &["yes", "maybe", "no"],
    },
    Task {
        name: "qnli",
        fields: ["question", "sentence"],
        words: ["Question:", "Sentence:", "Does the sentence answer the question, yes or no?"],
        labels: &["yes", "no"],
    },
    Task {
        name: "rte",
        fields: ["sentence1", "sentence2"],
        words: ["Text:", "Claim:", "Does the claim follow from the text, yes or no?"],
        labels: &["yes", "no"],
    },
];

fn task(name: &str) -> Option<&'static Task> {
    let name = if name == "mnli-mm" { "mnli" } else { name };
    TASKS.iter().find(|task| task.name == name)
}

fn read(source: &Source) -> Result<Vec<Found>> {
    let Content::Json(Value::Object(tasks)) = &source.content else { return Ok(Vec::new()) };
    let mut items = Vec::new();
    for (name, rows) in tasks {
        let (Some(task), Some(rows)) = (task(name), rows.as_array()) else { continue };
        for (at, value) in rows.iter().enumerate() {
            let row = source.row(format!("entry {} of `{name}`", at + 1), value.clone());
            items.push(("adversarial-robustness", question(&row, source, name, task, at)?));
        }
    }
    Ok(items)
}

fn question(row: &Row, source: &Source, name: &str, task: &Task, at: usize) -> Result<Item> {
    let mut prompt = String::new();
    for (field, word) in task.fields.iter().zip(task.words) {
        if !field.is_empty() {
            prompt.push_str(&format!("{word} {}\n", row.text(field)?));
        }
    }
    prompt.push_str(task.words[2]);
    prompt.push_str("\nAnswer:");
    let ask = row.choice(task.labels, Some(row.whole("label")?))?;
    // Several changes of one text share its index.
    let cluster = format!("{name}-{}", row.whole("idx")?);
    Ok(item(format!("advglue/{}/{name}/{at}", source.stem), name, cluster, prompt, ask))
}
