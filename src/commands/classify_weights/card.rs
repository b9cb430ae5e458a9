//! The findings as one page that needs nothing beside it.

use super::{Answer, Finding, Record};

/// Labels shown of each finding, the most likely first.
const SHOWN: usize = 24;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem;overflow-wrap:anywhere}table{border-collapse:collapse}\
td,th{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:middle}\
.bar{background:#e8ecf0;width:14rem;height:.8rem}.bar div{background:#0072b2;height:100%}\
.in{font-weight:600}.quiet{color:#666}.unknown{border-left:4px solid #d55e00;padding-left:.8rem}";

/// Text as HTML shows it.
fn text(plain: &str) -> String {
    let mut out = String::with_capacity(plain.len());
    for c in plain.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// The page.
pub fn page(record: &Record) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Models by their weights</title>\
         <style>{STYLE}</style></head><body>\n<h1>What the weights say</h1>\n<p>{} models, {} of known trees, {} of unknown \
         ones. Predictions hold inside a registered tree only. Sets hold all true labels with a chance of {:.0} %, for \
         models fine-tuned as the documented ones were.</p>\n",
        record.answers.len(),
        record.known,
        record.unknown,
        100.0 * record.coverage
    );
    record.answers.iter().for_each(|answer| model(answer, &mut out));
    out.push_str("</body></html>\n");
    out
}

fn model(answer: &Answer, out: &mut String) {
    out.push_str(&format!("<h2>{}</h2>\n", text(&answer.model)));
    match (&answer.tree, &answer.unknown) {
        (Some(tree), _) => out.push_str(&format!("<p>Tree <b>{}</b></p>\n", text(tree))),
        (None, why) => {
            let why = why.as_deref().unwrap_or("no expert knows it");
            out.push_str(&format!("<p class=\"unknown\">Unknown tree: {}</p>\n", text(why)));
        }
    }
    answer.findings.iter().for_each(|found| finding(found, out));
    out.push_str("<table><tr><th>tree</th><th>layer</th><th>distance</th><th>accepted up to</th></tr>\n");
    for d in &answer.distances {
        let distance = d.distance.map_or("no such layer".into(), |distance| format!("{distance:.4}"));
        let (tree, layer) = (text(&d.tree), text(&d.layer));
        out.push_str(&format!("<tr><td>{tree}</td><td>{layer}</td><td>{distance}</td><td>{:.4}</td></tr>\n", d.limit));
    }
    out.push_str("</table>\n");
}

fn finding(found: &Finding, out: &mut String) {
    out.push_str(&format!(
        "<p>{}, read from <code>{}</code> <span class=\"quiet\">({:.1} % right on test models)</span></p>\n<table>\
         <tr><th>label</th><th></th><th>probability</th><th>predicted</th><th>in the set</th></tr>\n",
        text(&found.label),
        text(&found.layer),
        100.0 * found.expert_accuracy
    ));
    let mut order: Vec<_> = found.probabilities.iter().collect();
    order.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    for p in order.into_iter().take(SHOWN) {
        let mark = |list: &[String]| if list.contains(&p.label) { "●" } else { "" };
        out.push_str(&format!(
            "<tr><td{}>{}</td><td><div class=\"bar\"><div style=\"width:{:.1}%\"></div></div></td><td>{:.3}</td>\
             <td>{}</td><td>{}</td></tr>\n",
            if found.predicted.contains(&p.label) { " class=\"in\"" } else { "" },
            text(&p.label),
            100.0 * p.probability,
            p.probability,
            mark(&found.predicted),
            mark(&found.set)
        ));
    }
    out.push_str("</table>\n");
    if !found.nearest.is_empty() {
        out.push_str("<p>Nearest documented models</p><ul>\n");
        for near in &found.nearest {
            let labels = text(&near.labels.join(", "));
            out.push_str(&format!(
                "<li>{} <span class=\"quiet\">({:.3})</span>: {labels}</li>\n",
                text(&near.model),
                near.distance
            ));
        }
        out.push_str("</ul>\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let answer = Answer {
            model: "<script>alert('a')</script>&\"\u{7}".into(),
            tree: None,
            unknown: Some("<b>".into()),
            distances: Vec::new(),
            findings: Vec::new(),
        };
        let page = page(&Record { coverage: 0.9, experts: 1, known: 0, unknown: 1, answers: vec![answer] });
        assert!(page.contains("&lt;script&gt;alert(&#39;a&#39;)&lt;/script&gt;&amp;&quot; </h2>"), "{page}");
        assert!(!page.contains("<script") && page.contains("Unknown tree: &lt;b&gt;"));
    }
}
