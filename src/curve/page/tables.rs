//! What can be read figure by figure: all changes at a glance, each point with its items, seeds, references, warnings and
//! where everything comes from.

use std::fmt::Write;

use super::{boxed, point_title};
use crate::curve::{
    data::{Calibration, Curve, DenseDimension, Flip, Point, PointDimension},
    figure::{self, caution},
    words::{
        NONE, bits, bytes, change, change_interval, clip, count, counted, escape, finite, heading, number, perplexity,
        probability, score,
    },
};

/// Letters of a prompt or an answer at most; a page is no data set.
const MOST_LETTERS: usize = 1200;

fn incomparable(found: &PointDimension) -> bool {
    found.refusal_shift || found.constant
}

fn of<'a>(point: &'a Point, dense: &DenseDimension) -> Option<&'a PointDimension> {
    point.dimensions.iter().find(|found| found.name == dense.name)
}

/// A cell of Δ: its tint says how much, its arrow and weight that it is sure, brackets that it cannot be compared.
fn glance_cell(found: Option<&PointDimension>) -> String {
    let Some(found) = found else { return format!("<td>{NONE}</td>") };
    let Some(delta) = finite(found.delta) else { return format!("<td>{NONE}</td>") };
    let depth = [2.0, 5.0, 10.0, 20.0].iter().filter(|least| delta.abs() >= **least).count();
    let way = if delta < 0.0 { "fall" } else { "rise" };
    let text = change(Some(delta));
    let text = if incomparable(found) { format!("({text})") } else { text };
    if found.is_sure() {
        let arrow = if delta < 0.0 { "▼" } else { "▲" };
        format!("<td class=\"{way}{depth} sure\">{arrow}&nbsp;{text}</td>")
    } else {
        format!("<td class=\"{way}{depth}\">{text}</td>")
    }
}

/// Every point and dimension in one table.
pub fn glance(curve: &Curve) -> String {
    let mut table = String::from(
        "<table class=\"glance\">\n<thead><tr><th scope=\"col\">Model</th><th scope=\"col\">Bits</th>\
         <th scope=\"col\">Zeros</th><th scope=\"col\">Size</th><th scope=\"col\">Perplexity</th>\
         <th scope=\"col\" class=\"t\"><span>mean |Δ|</span></th>",
    );
    for dense in &curve.dimensions {
        let weak = if caution(dense).is_some() { " weak" } else { "" };
        let name = escape(&clip(&dense.name.replace('-', " "), 30));
        let _ = write!(table, "<th scope=\"col\" class=\"t{weak}\"><span>{name}</span></th>");
    }
    table += "</tr></thead>\n<tbody>\n";
    let dense = &curve.dense;
    let _ = write!(
        table,
        "<tr class=\"dense\"><th scope=\"row\">dense (scores)</th><td>{}</td><td>{NONE}</td><td>{}</td><td>{}</td><td>{NONE}</td>",
        bits(dense.bits_per_weight),
        bytes(dense.tensor_bytes),
        perplexity(dense.perplexity)
    );
    for dimension in &curve.dimensions {
        let _ = write!(table, "<td>{}</td>", score(dimension.score));
    }
    table += "</tr>\n";
    for point in &curve.points {
        let zeros = finite(point.sparsity).map_or(NONE.into(), |share| format!("{} %", bits(100.0 * share)));
        let _ = write!(
            table,
            "<tr data-name=\"{}\"><th scope=\"row\">{}</th><td>{}</td><td>{zeros}</td><td>{}</td><td>{}</td><td>{}</td>",
            escape(&point.name),
            escape(&point_title(point)),
            finite(point.bits_per_weight).map_or(NONE.into(), bits),
            bytes(point.tensor_bytes),
            perplexity(point.perplexity),
            score(point.mean_absolute)
        );
        for dense in &curve.dimensions {
            table += &glance_cell(of(point, dense));
        }
        table += "</tr>\n";
    }
    table += "</tbody>\n</table>\n";
    format!(
        "<p>Δ in points against the dense model, whose scores stand in the first row. ▼ and ▲: sure at 5 % after Holm over \
         everything on this page. In brackets: not to be compared. Names in grey italics: the dense model itself says \
         nothing there.</p>\n{}",
        boxed("All changes", &table)
    )
}

/// Every point with all of its figures and the items that turned.
pub fn points(curve: &Curve) -> String {
    let mut html = String::new();
    for point in &curve.points {
        let mut sums = Vec::new();
        if let Some((name, delta)) = &point.worst {
            sums.push(format!("worst {} {}", name.replace('-', " "), change(Some(*delta))));
        }
        if let Some(mean) = finite(point.mean_absolute) {
            sums.push(format!("mean |Δ| {}", score(Some(mean))));
        }
        let _ = writeln!(
            html,
            "<details class=\"point\" data-name=\"{}\"><summary><b>{}</b> <span>{}</span></summary>",
            escape(&point.name),
            escape(&point_title(point)),
            escape(&clip(&sums.join(" · "), 120))
        );
        let mut circumstances = vec![figure::rate(point)];
        circumstances.push(bytes(point.tensor_bytes));
        circumstances.push(format!("perplexity {}", perplexity(point.perplexity)));
        if let Some(kl) = finite(point.kl) {
            circumstances.push(format!("KL {} nats a token", number(kl, 4)));
        }
        circumstances.retain(|part| !part.is_empty());
        let _ = writeln!(html, "<p>{}</p>", escape(&circumstances.join(" · ")));
        html += &boxed(&point_title(point), &point_table(curve, point));
        html += &flips(curve, point);
        html += "</details>\n";
    }
    html
}

fn point_table(curve: &Curve, point: &Point) -> String {
    let mut table = String::from(
        "<table>\n<thead><tr><th scope=\"col\">Dimension</th><th scope=\"col\">Dense</th><th scope=\"col\">Score</th>\
         <th scope=\"col\">Δ</th><th scope=\"col\">95 %</th><th scope=\"col\">p</th><th scope=\"col\">p, Holm</th>\
         <th scope=\"col\">Lost / gained</th><th scope=\"col\">KL</th><th scope=\"col\">Refused</th>\
         <th scope=\"col\">Unreadable</th></tr></thead>\n<tbody>\n",
    );
    for dense in &curve.dimensions {
        let name = escape(&clip(&heading(&dense.name), 60));
        let Some(found) = of(point, dense) else {
            let dashes = format!("<td>{NONE}</td>").repeat(9);
            let _ = writeln!(table, "<tr><th scope=\"row\">{name}</th><td>{}</td>{dashes}</tr>", score(dense.score));
            continue;
        };
        let mut notes = Vec::new();
        if caution(dense).is_some() {
            notes.push("dense says nothing");
        }
        if found.refusal_shift {
            notes.push("refusals shifted");
        }
        if found.constant {
            notes.push("one answer to all");
        }
        let notes = if notes.is_empty() { String::new() } else { format!("<small>{}</small>", notes.join(", ")) };
        let band = figure::interval(found.delta_interval);
        let band = band.map_or(NONE.into(), |(low, high)| change_interval(low, high));
        let strong = if found.is_sure() { " class=\"sure\"" } else { "" };
        let _ = writeln!(
            table,
            "<tr><th scope=\"row\">{name}{notes}</th><td>{}</td><td>{}</td><td{strong}>{}</td><td>{band}</td><td>{}</td>\
             <td{strong}>{}</td><td>{} / {}</td><td>{}</td><td>{} → {} %</td><td>{} → {} %</td></tr>",
            score(dense.score),
            score(found.score),
            change(found.delta),
            escape(&probability(found.p)),
            escape(&probability(found.p_adjusted)),
            found.lost,
            found.gained,
            finite(found.kl).map_or(NONE.into(), |kl| number(kl, 3)),
            score(Some(dense.refusal_rate)),
            score(Some(found.refusal_rate)),
            score(Some(dense.unparsable_rate)),
            score(Some(found.unparsable_rate))
        );
    }
    table + "</tbody>\n</table>\n"
}

fn flips(curve: &Curve, point: &Point) -> String {
    let examples: usize = point.dimensions.iter().map(|found| found.flips.len()).sum();
    if examples == 0 {
        return String::new();
    }
    let mut html = format!(
        "<details class=\"flips\"><summary>Items whose answer turned, {}</summary>\n",
        counted(examples, "example")
    );
    if !curve.suite.embedded {
        html += "<p>The items do not come with the program, so that only their names are shown.</p>\n";
    }
    for found in &point.dimensions {
        for flip in &found.flips {
            html += &one_flip(&found.name, flip);
        }
    }
    html + "</details>\n"
}

fn one_flip(dimension: &str, flip: &Flip) -> String {
    let way = if flip.lost { "lost" } else { "gained" };
    let mut html = format!(
        "<article class=\"flip\"><p><b>{}</b> · {} · <span class=\"{way}\">{way}</span></p>",
        escape(&clip(&heading(dimension), 60)),
        escape(&clip(&flip.item, 120))
    );
    if let Some(prompt) = &flip.prompt {
        let _ = write!(html, "<pre>{}</pre>", escape(&clip(prompt, MOST_LETTERS)));
    }
    let answers = [("dense", &flip.dense), ("compressed", &flip.other)];
    if answers.iter().any(|(_, answer)| answer.is_some()) {
        html += "<dl>";
        for (who, answer) in answers {
            let answer = answer.as_deref().map_or(NONE.into(), |answer| escape(&clip(answer.trim(), MOST_LETTERS)));
            let _ = write!(html, "<dt>{who}</dt><dd>{answer}</dd>");
        }
        html += "</dl>";
    }
    html + "</article>\n"
}

/// How far calibration seeds carry each dimension.
pub fn seeds(curve: &Curve) -> String {
    let mut table = String::from("<table>\n<thead><tr><th scope=\"col\">Dimension</th>");
    for setting in &curve.settings {
        let name = escape(&clip(&setting.name, 40));
        let _ = write!(table, "<th scope=\"col\">{name}<small>{}</small></th>", counted(setting.points.len(), "seed"));
    }
    table += "</tr></thead>\n<tbody>\n";
    for dense in &curve.dimensions {
        let _ = write!(table, "<tr><th scope=\"row\">{}</th>", escape(&clip(&heading(&dense.name), 60)));
        for setting in &curve.settings {
            let spread = setting.dimensions.iter().find(|spread| spread.name == dense.name);
            let mean = change(spread.and_then(|spread| spread.mean));
            let deviation = spread.and_then(|spread| finite(spread.deviation));
            let deviation = deviation.map_or(String::new(), |deviation| format!(" ± {}", number(deviation, 1)));
            let _ = write!(table, "<td>{mean}{deviation}</td>");
        }
        table += "</tr>\n";
    }
    table += "</tbody>\n</table>\n";
    format!(
        "<p>Mean of Δ over seeds ± the standard deviation between them (n − 1): what the draw of calibration texts does, \
         apart from what the draw of items does. A difference of less than two deviations is no finding.</p>\n{}",
        boxed("Seeds", &table)
    )
}

/// Dense models beside the one that was compressed.
pub fn references(curve: &Curve) -> String {
    let mut table = String::from("<table>\n<thead><tr><th scope=\"col\">Dimension</th>");
    let _ = write!(table, "<th scope=\"col\">{}<small>dense</small></th>", escape(&clip(&curve.dense.name, 40)));
    for reference in &curve.references {
        let _ = write!(table, "<th scope=\"col\">{}</th>", escape(&clip(&reference.name, 40)));
    }
    table += "</tr></thead>\n<tbody>\n";
    let mut row = |name: &str, first: String, rest: Vec<String>| {
        let _ = write!(table, "<tr><th scope=\"row\">{name}</th><td>{first}</td>");
        rest.iter().for_each(|cell| table += &format!("<td>{cell}</td>"));
        table += "</tr>\n";
    };
    let all = &curve.references;
    row("Parameters", count(curve.dense.parameters), all.iter().map(|one| count(one.parameters)).collect());
    row("Size", bytes(curve.dense.tensor_bytes), all.iter().map(|one| bytes(one.tensor_bytes)).collect());
    row("Perplexity", perplexity(curve.dense.perplexity), all.iter().map(|one| perplexity(one.perplexity)).collect());
    for dense in &curve.dimensions {
        let theirs = all.iter().map(|one| {
            let found = one.dimensions.iter().find(|found| found.name == dense.name);
            found.map_or(NONE.into(), scored)
        });
        row(&escape(&clip(&heading(&dense.name), 60)), scored(dense), theirs.collect());
    }
    table += "</tbody>\n</table>\n";
    let words = "<p>What another dense model scores on the same items, with its own 95 %. Perplexities compare only between \
                 models that read the same tokens.</p>\n";
    format!("{words}{}", boxed("Other dense models", &table))
}

fn scored(dense: &DenseDimension) -> String {
    let band = figure::interval(dense.interval);
    let band =
        band.map_or(String::new(), |(low, high)| format!(" <small>{} to {}</small>", number(low, 1), number(high, 1)));
    format!("{}{band}", score(dense.score))
}

/// What to know before trusting a figure, and what is missing.
pub fn cautions(curve: &Curve) -> String {
    let mut html = String::new();
    if !curve.warnings.is_empty() {
        let items = curve.warnings.iter().map(|warning| format!("<li>{}</li>\n", escape(warning)));
        let _ = writeln!(html, "<ul>\n{}</ul>", items.collect::<String>());
    }
    if !curve.failures.is_empty() {
        html += "<p>These points could not be had:</p>\n<dl class=\"failures\">\n";
        for failure in &curve.failures {
            let _ = writeln!(html, "<dt>{}</dt><dd>{}</dd>", escape(&clip(&failure.name, 80)), escape(&failure.reason));
        }
        html += "</dl>\n";
    }
    html
}

/// What was measured, exactly.
pub fn provenance(curve: &Curve) -> String {
    let mut list = String::from("<dl class=\"facts\">\n");
    let mut fact = |name: &str, value: String| {
        let _ = writeln!(list, "<dt>{name}</dt><dd>{value}</dd>");
    };
    let dense = &curve.dense;
    fact(
        "Dense model",
        format!(
            "{}, {} parameters, {}, {} bits per weight, perplexity {}",
            escape(&clip(&dense.name, 200)),
            count(dense.parameters),
            bytes(dense.tensor_bytes),
            bits(dense.bits_per_weight),
            perplexity(dense.perplexity)
        ),
    );
    fact("Its tensors, SHA-256", format!("<code>{}</code>", escape(&dense.tensors_sha256)));
    let items: usize = curve.dimensions.iter().map(|dimension| dimension.items).sum();
    let from = if curve.suite.embedded { ", comes with the program" } else { "" };
    fact("Suite", format!("{}, {}{from}", escape(&clip(&curve.suite.name, 200)), counted(items, "item")));
    fact("Its items, SHA-256", format!("<code>{}</code>", escape(&curve.suite.sha256)));
    if let Some(calibration) = &curve.calibration {
        let Calibration { file, n_samples, seq_len } = calibration;
        fact("Calibration", format!("{}, {n_samples} sequences of {seq_len} tokens", escape(&clip(file, 200))));
    }
    let draws = curve.bootstrap;
    fact("Bootstrap", format!("{} replicates from seed {}", count(draws.replicates as u64), draws.seed));
    if let Some(scorer) = &curve.toxicity_scorer {
        fact("Toxicity of texts", escape(scorer));
    }
    fact("Measured by", format!("scruple {}", escape(&clip(&curve.scruple, 40))));
    list += "</dl>\n";

    let mut rules = String::from(
        "<table>\n<thead><tr><th scope=\"col\">Dimension</th><th scope=\"col\" class=\"w\">Rule</th><th scope=\"col\">Items</th>\
         <th scope=\"col\">Clusters</th><th scope=\"col\">Chance</th><th scope=\"col\">Dense</th>\
         <th scope=\"col\">Says something</th></tr></thead>\n<tbody>\n",
    );
    for dense in &curve.dimensions {
        let says = match dense.informative {
            _ if dense.constant => "no, one answer to nearly all",
            Some(true) => "yes",
            Some(false) => "no",
            None => "no chance level",
        };
        let _ = writeln!(
            rules,
            "<tr><th scope=\"row\">{}</th><td class=\"w\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{says}</td></tr>",
            escape(&clip(&heading(&dense.name), 60)),
            escape(&clip(&dense.rule, 80)),
            count(dense.items as u64),
            count(dense.clusters as u64),
            score(dense.chance),
            scored(dense)
        );
    }
    rules += "</tbody>\n</table>\n";
    list += &boxed("Dimensions and rules", &rules);

    if !curve.points.is_empty() {
        let mut files = String::from(
            "<table>\n<thead><tr><th scope=\"col\">Point</th><th scope=\"col\">Size</th>\
             <th scope=\"col\" class=\"w\">SHA-256 of the tensors that were measured</th></tr></thead>\n<tbody>\n",
        );
        for point in &curve.points {
            let _ = writeln!(
                files,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td class=\"w\"><code>{}</code></td></tr>",
                escape(&clip(&point.name, 80)),
                bytes(point.tensor_bytes),
                escape(&point.tensors_sha256)
            );
        }
        files += "</tbody>\n</table>\n";
        let _ = writeln!(
            list,
            "<details><summary>The files that were measured</summary>\n{}</details>",
            boxed("Files", &files)
        );
    }
    list
}

/// What the words and figures mean.
pub fn reading() -> String {
    "<ul>\n\
     <li><b>Paired.</b> Dense and compressed model answer the same items. Δ is compressed minus dense, in points of a score \
     from 0 to 100. Its interval draws clusters of items for both models at once, so that what they share cancels; a plot \
     shows it around the score. Where it leaves the dense line out, the change is sure as far as one test goes.</li>\n\
     <li><b>Holm.</b> With so many tests some come out by chance. The adjusted p allows for all dimensions of all points of \
     this page together.</li>\n\
     <li><b>Lost and gained.</b> Items that only the dense, or only the compressed model has right. Many of both with a Δ \
     near 0 is a change that a score hides.</li>\n\
     <li><b>A rise is no gift.</b> It can come with more refusals, with one answer to everything, or with texts that say \
     nothing. Hollow marks and brackets show where.</li>\n\
     <li><b>Chance.</b> Where the dense model is no better than chance, a Δ near 0 means nothing. Such panels are grey.</li>\n\
     <li><b>Several seeds.</b> The mark is their mean and its interval the mean of theirs: chance in the items. The dots show \
     chance in the calibration.</li>\n\
     <li><b>Worst before mean.</b> A mean can be near 0 while a dimension breaks. That is why the worst one and the mean of \
     |Δ| stand first.</li>\n</ul>\n"
        .into()
}
