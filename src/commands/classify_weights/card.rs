//! The findings as one page that needs nothing beside it, and as pictures, one a model.

use std::path::Path;

use anyhow::Result;

use super::{Answer, Distance, Finding, Probability, Record};
use crate::{
    plot::card::{self, Bar, Card, Section},
    printer,
};

/// Labels shown of each finding, the most likely first.
const SHOWN: usize = 24;

/// Pictures drawn.
const PICTURES: usize = 20;

/// Labels and trees in a picture, and what its experts say.
const IN_PICTURE: usize = 12;
const TREES_IN_PICTURE: usize = 8;
const FINDINGS_IN_PICTURE: usize = 3;

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
        (Some(tree), _) => {
            let why = answer.assumed.as_ref().map_or(String::new(), |why| format!(", assumed: {}", text(why)));
            out.push_str(&format!("<p>Tree <b>{}</b>{why}</p>\n", text(tree)));
        }
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
        "<p>{}, read from <code>{}</code> <span class=\"quiet\">({})</span></p>\n<table>\
         <tr><th>label</th><th></th><th>probability</th><th>predicted</th><th>in the set</th><th>belongs (p)</th></tr>\n",
        text(&found.label),
        text(&found.layer),
        found.right()
    ));
    let mut order: Vec<_> = found.probabilities.iter().collect();
    order.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    for p in order.into_iter().take(SHOWN) {
        let mark = |list: &[String]| if list.contains(&p.label) { "●" } else { "" };
        out.push_str(&format!(
            "<tr><td{}>{}</td><td><div class=\"bar\"><div style=\"width:{:.1}%\"></div></div></td><td>{:.3}</td>\
             <td>{}</td><td>{}</td><td>{}</td></tr>\n",
            if found.predicted.contains(&p.label) { " class=\"in\"" } else { "" },
            text(&p.label),
            100.0 * p.probability,
            p.probability,
            mark(&found.predicted),
            mark(&found.set),
            found.belongs(&p.label).map_or("–".into(), |fit| format!("{:.3}", fit.p))
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
        out.push_str(&format!("</ul>\n<p>{}</p>\n", text(&found.vote())));
    }
}

/// Pictures of the first answers: `card.png` of one model, else `card-1.png` and so on.
pub fn pictures(record: &Record, folder: &Path) -> Result<()> {
    for (at, answer) in record.answers.iter().take(PICTURES).enumerate() {
        let name = if record.answers.len() == 1 { "card.png".into() } else { format!("card-{}.png", at + 1) };
        card::draw(&folder.join(name), &picture(answer, record.coverage))?;
    }
    if record.answers.len() > PICTURES {
        printer::say(format!("pictures of the first {PICTURES} models; the page has all {}", record.answers.len()));
    }
    Ok(())
}

fn picture(answer: &Answer, coverage: f64) -> Card {
    let mut near: Vec<&Distance> = answer.distances.iter().collect();
    near.sort_by(|a, b| {
        let share = |d: &Distance| d.share().unwrap_or(f64::INFINITY);
        share(a).total_cmp(&share(b))
    });
    near.dedup_by(|a, b| (&a.tree, &a.layer) == (&b.tree, &b.layer));
    let own = near.first().filter(|_| answer.tree.is_some());
    let why = match (own, &answer.unknown) {
        (Some(own), _) => {
            let assumed = answer.assumed.as_ref().map_or(String::new(), |why| format!("; assumed: {why}"));
            format!(
                "{:.4} from the tree's middle at {}; up to {:.4} is accepted{assumed}",
                own.distance.unwrap_or(f64::NAN),
                own.layer,
                own.limit
            )
        }
        (None, why) => why.clone().unwrap_or_else(|| "no expert knows it".into()),
    };
    let distances = near.iter().take(TREES_IN_PICTURE).map(|d| card::Distance {
        tree: d.tree.clone(),
        text: d.distance.map_or("no such layer".into(), |distance| format!("{distance:.4} of {:.4}", d.limit)),
        share: d.share(),
    });
    Card {
        model: answer.model.clone(),
        tree: answer.tree.clone(),
        why,
        distances: distances.collect(),
        sections: answer.findings.iter().take(FINDINGS_IN_PICTURE).map(section).collect(),
        footer: format!(
            "Read from the weights; the model was not run. Predictions hold inside a registered tree only, for models \
             fine-tuned as the documented ones were. Sets hold all true labels with a chance of {:.0} %. Belongs: the \
             share of validation models that lie as far from a label of their own as this one does.",
            100.0 * coverage
        ),
    }
}

fn section(found: &Finding) -> Section {
    let mut order: Vec<&Probability> = found.probabilities.iter().collect();
    order.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    let bar = |p: &&Probability| Bar {
        name: p.label.clone(),
        probability: f64::from(p.probability),
        predicted: found.predicted.contains(&p.label),
        in_set: found.set.contains(&p.label),
        belongs: found.belongs(&p.label).map(|fit| fit.p),
    };
    let vote = found.vote();
    let (first, rest) = vote.split_at(1);
    Section {
        title: found.label.clone(),
        note: format!("read from {}, {}", found.layer, found.right()),
        bars: order.iter().take(IN_PICTURE).map(bar).collect(),
        more: order.len().saturating_sub(IN_PICTURE),
        near: found
            .nearest
            .iter()
            .take(IN_PICTURE)
            .map(|near| (near.model.clone(), format!("{:.3}", near.distance), near.labels.join(", ")))
            .collect(),
        vote: format!("{}{rest}", first.to_uppercase()),
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
            assumed: None,
            distances: Vec::new(),
            findings: Vec::new(),
        };
        let page = page(&Record { coverage: 0.9, experts: 1, known: 0, unknown: 1, answers: vec![answer] });
        assert!(page.contains("&lt;script&gt;alert(&#39;a&#39;)&lt;/script&gt;&amp;&quot; </h2>"), "{page}");
        assert!(!page.contains("<script") && page.contains("Unknown tree: &lt;b&gt;"));
    }
}
