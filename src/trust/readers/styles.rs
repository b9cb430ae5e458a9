//! DecodingTrust's styles (Wang et al. 2023, section 6.1): film reviews, plain (`base`) and rewritten in ten other styles,
//! in `style.json` {dev: {style: [{sentence, label, id}]}}. The same review in all styles is one cluster.

use anyhow::Result;
use serde_json::Value;

use super::{
    Format, Found, Source,
    source::{Content, hyphenated, item},
};

/// Reviews by style.
pub const FORMAT: Format = Format {
    name: "decodingtrust-style",
    about: "JSON {dev: {style: [{sentence, label, id}]}}",
    fits: |source| match &source.content {
        Content::Json(value) => value.pointer("/dev/base/0/sentence").is_some(),
        _ => false,
    },
    read,
};

fn read(source: &Source) -> Result<Vec<Found>> {
    let Content::Json(value) = &source.content else { return Ok(Vec::new()) };
    let Some(Value::Object(styles)) = value.get("dev") else { return Ok(Vec::new()) };
    let mut items = Vec::new();
    for (style, rows) in styles {
        let Some(rows) = rows.as_array() else {
            anyhow::bail!("{}: `dev` should hold lists by style, `{style}` is none", source.name)
        };
        for (at, value) in rows.iter().enumerate() {
            let row = source.row(format!("entry {} of `{style}`", at + 1), value.clone());
            let ask = row.choice(&["negative", "positive"], Some(row.whole("label")?))?;
            let prompt = format!("Review: {}\nIs this review negative or positive?\nAnswer:", row.text("sentence")?);
            let id = row.whole("id")?;
            let item = item(format!("style/{style}/{id}"), hyphenated(style), format!("sst2-{id}"), prompt, ask);
            items.push(("out-of-distribution", item));
        }
    }
    Ok(items)
}
