//! Scenes as vector graphics of the page, whose points can be pointed at, stepped through by keyboard and read aloud.

use std::fmt::Write;

use crate::{
    curve::{
        data::Curve,
        figure::{self, Figure, Panel},
        published::{Kind, Published},
        scene::{Anchor, COLOURS, Ink, Scene, Shape, Spot, glyph, glyph_of},
        words::{change, clip, counted, escape, score},
    },
    trust::paired::Summary,
};

fn class(ink: Ink) -> String {
    match ink {
        Ink::Text => "i-text".into(),
        Ink::Faint => "i-faint".into(),
        Ink::Rule => "i-rule".into(),
        Ink::Dense => "i-dense".into(),
        Ink::Published => "i-pub".into(),
        Ink::Series(number) => format!("i-s{}", number % COLOURS.len()),
    }
}

/// Corners as the page writes them: tenths of a unit.
fn corners(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    let pairs = points.into_iter().map(|(x, y)| format!("{x:.1},{y:.1}"));
    pairs.collect::<Vec<_>>().join(" ")
}

fn mark(kind: usize, radius: f64, (x, y): (f64, f64), class: &str) -> String {
    if kind == 0 {
        return format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>");
    }
    let around = glyph(kind, radius).into_iter().map(|(dx, dy)| (x + dx, y + dy));
    format!("<polygon class=\"{class}\" points=\"{}\"/>", corners(around))
}

fn shape(shape: &Shape) -> String {
    match shape {
        Shape::Area { points, ink, opacity } => {
            format!(
                "<polygon class=\"fill {}\" opacity=\"{opacity}\" points=\"{}\"/>",
                class(*ink),
                corners(points.iter().copied())
            )
        }
        Shape::Line { points, ink, width, dash } => {
            let dash = dash.map_or(String::new(), |(dash, gap)| format!(" stroke-dasharray=\"{dash} {gap}\""));
            let points = corners(points.iter().copied());
            format!("<polyline class=\"line {}\" stroke-width=\"{width}\"{dash} points=\"{points}\"/>", class(*ink))
        }
        Shape::Glyph { at, glyph, radius, ink } => mark(*glyph, *radius, *at, &format!("fill {}", class(*ink))),
        Shape::Text { at: (x, y), text, size, ink, anchor } => {
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            format!(
                "<text class=\"fill {}\" x=\"{x:.1}\" y=\"{:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\">{}</text>",
                class(*ink),
                y + size * 0.35,
                escape(text)
            )
        }
    }
}

fn spot(spot: &Spot) -> String {
    let Spot { at: (x, y), glyph, radius, ink, hollow, name, line, tip } = spot;
    let look = if *hollow { "mark hollow" } else { "mark" };
    format!(
        "<g class=\"spot {}\" role=\"img\" data-name=\"{}\" data-line=\"{line}\"><title>{}</title>\
         <circle class=\"hit\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{}\"/>{}</g>",
        class(*ink),
        escape(name),
        escape(&tip.join("\n")),
        (radius + 5.0).max(8.0),
        mark(*glyph, *radius, (*x, *y), look)
    )
}

fn svg(scene: &Scene, alternative: &str) -> String {
    let mut svg = format!(
        "<svg class=\"plot\" viewBox=\"0 0 {} {}\" role=\"group\" aria-label=\"{}\">\n",
        scene.width,
        scene.height,
        escape(alternative)
    );
    for one in &scene.shapes {
        svg += &shape(one);
        svg.push('\n');
    }
    for one in &scene.spots {
        svg += &spot(one);
        svg.push('\n');
    }
    svg + "</svg>\n"
}

fn panel(panel: &Panel) -> String {
    let caution = panel.caution.as_ref();
    let caution = caution.map_or(String::new(), |words| format!("<p class=\"caution\">{}</p>", escape(words)));
    format!(
        "<figure class=\"panel\" data-panel=\"{}\">\n<figcaption><h3>{}</h3><p>{}</p>{caution}</figcaption>\n{}</figure>\n",
        escape(&panel.name),
        escape(&clip(&panel.title, 60)),
        escape(&clip(&panel.note, 90)),
        svg(&panel.scene, &panel.alternative)
    )
}

fn grid(figure: &Figure) -> String {
    let panels: String = figure.panels.iter().map(panel).collect();
    format!("<div class=\"grid\">\n{panels}</div>\n")
}

/// A small plot of its own for a legend.
fn sample(shapes: &str) -> String {
    format!("<svg class=\"sample\" viewBox=\"0 0 34 16\" aria-hidden=\"true\">{shapes}</svg>")
}

/// What the marks mean, of those that occur.
fn legend(curve: &Curve) -> String {
    let level = |more: &str| format!("<polyline class=\"line {more} points=\"0,8 34,8\"/>");
    let band = "<polygon class=\"fill i-accent\" opacity=\"0.15\" points=\"0,3 34,5 34,15 0,12\"/>";
    let line = "<polyline class=\"line i-accent\" stroke-width=\"1.8\" points=\"0,7 34,10\"/>";
    let bar = "<polyline class=\"line i-accent\" stroke-width=\"1.1\" points=\"17,3 17,14\"/>";
    let dense = "<polygon class=\"fill i-dense\" opacity=\"0.09\" points=\"0,3 34,3 34,13 0,13\"/>";
    let seed = |y: usize| format!("<circle class=\"fill i-accent\" cx=\"17\" cy=\"{y}\" r=\"1.9\"/>");
    let mut entries = vec![
        (
            format!("{band}{line}{bar}{}", mark(0, 4.0, (17.0, 8.5), "fill i-accent")),
            "score, with 95 % of the paired difference around it",
        ),
        (format!("{dense}{}", level("i-dense\" stroke-width=\"1.4\"")), "dense model, with its own 95 %"),
        (level("i-faint\" stroke-width=\"1.2\" stroke-dasharray=\"1.5 3\""), "what chance scores"),
    ];
    if !curve.references.is_empty() {
        entries.push((level("i-faint\" stroke-width=\"1\" stroke-dasharray=\"7 3.5\""), "another dense model"));
    }
    let mut found = curve.points.iter().flat_map(|point| &point.dimensions);
    if found.any(|found| found.refusal_shift || found.constant) {
        let hollow = format!("<g class=\"i-accent\">{}</g>", mark(0, 4.0, (17.0, 8.0), "mark hollow"));
        entries.push((hollow, "not to be compared: refusals shifted, or one answer to everything"));
    }
    if !curve.settings.is_empty() {
        entries.push((format!("{}{}{}", seed(3), seed(8), seed(13)), "single calibration seeds"));
    }
    let entries = entries.iter().map(|(shapes, words)| format!("<li>{}{words}</li>", sample(shapes)));
    format!("<ul class=\"legend\">{}</ul>\n", entries.collect::<String>())
}

/// Names of lines that are too many to stand beside each plot.
fn key(figure: &Figure, ink: impl Fn(usize) -> Ink, shape: impl Fn(usize) -> usize) -> String {
    let entry = |(name, number): &(String, usize)| {
        let ink = ink(*number);
        let look = if ink == Ink::Published { "mark hollow" } else { "mark" };
        let mark = format!("<g class=\"{}\">{}</g>", class(ink), mark(shape(*number), 4.2, (8.0, 8.0), look));
        let svg = format!("<svg class=\"dot\" viewBox=\"0 0 16 16\" aria-hidden=\"true\">{mark}</svg>");
        format!("<li>{svg}{}</li>", escape(&clip(name, 40)))
    };
    format!("<ul class=\"legend key\">{}</ul>\n", figure.key.iter().map(entry).collect::<String>())
}

/// One way of compression.
pub fn section(curve: &Curve, figure: &Figure, first: bool) -> String {
    let mut html = String::new();
    if first {
        html += "<p>Scores run from 0 to 100, higher is better, and compression grows to the right. All panels of dimensions \
                 span the same number of points, so that slopes compare. Point at a value, or step through a plot with the \
                 arrow keys, to read its figures.</p>\n";
        html += &legend(curve);
        let undrawn = figure::undrawn(curve);
        if !undrawn.is_empty() {
            let names = undrawn.iter().take(20).map(|name| escape(&clip(name, 60))).collect::<Vec<_>>().join(", ");
            let _ = writeln!(
                html,
                "<p class=\"caution\">{} without a rate to draw, in the tables alone: {names}</p>",
                counted(undrawn.len(), "point")
            );
        }
    }
    if !figure.key.is_empty() {
        html += &key(figure, Ink::Series, glyph_of);
    }
    html + &grid(figure)
}

/// The published results.
pub fn published(curve: &Curve, published: &Published, figures: &[Figure]) -> String {
    let mut html = format!(
        "<p><b>These are other models, other items and other scorers.</b> Grey marks are the published table <b>{}</b> \
         (Hong et al. 2024, <i>Decoding Compressed Trust</i>, arXiv 2403.15447): models of 7 to 70 billion parameters, each \
         differenced against its own dense parent. Coloured marks are {} of this page. What compares is the shape of the \
         damage, not the height of a point. The table counts nominal bits, without scales, and gives no intervals.</p>\n",
        escape(&clip(&published.file, 80)),
        escape(&clip(&curve.dense.name, 80))
    );
    for figure in figures {
        let _ = writeln!(html, "<h3 class=\"part\">{}</h3>", figure.axis.heading());
        html += &key(figure, |_| Ink::Published, |number| number);
        html += &grid(figure);
    }
    let mut table = String::from(
        "<table>\n<thead><tr><th scope=\"col\">Model</th><th scope=\"col\" class=\"w\">Method</th><th scope=\"col\" class=\"w\">Rate</th>\
         <th scope=\"col\">Seed</th><th scope=\"col\" class=\"w\">Worst</th><th scope=\"col\">Δ</th><th scope=\"col\" class=\"w\">Best</th>\
         <th scope=\"col\">Δ</th><th scope=\"col\">Mean |Δ|</th><th scope=\"col\">Knowledge</th></tr></thead>\n<tbody>\n",
    );
    let changes = published.changes();
    for found in &changes {
        let names = super::super::published::DIMENSIONS.iter().zip(found.deltas).take(8);
        let Some(sum) = Summary::of(names.filter_map(|((_, name), delta)| Some((*name, delta?)))) else { continue };
        let row = found.row;
        let seed = row.seed.map_or(super::super::words::NONE.into(), |seed| seed.to_string());
        let words = |name: &str| escape(&name.replace('-', " "));
        let _ = writeln!(
            table,
            "<tr><th scope=\"row\">{}</th><td class=\"w\">{}</td><td class=\"w\">{}</td><td>{seed}</td><td class=\"w\">{}</td>\
             <td>{}</td><td class=\"w\">{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&row.model),
            escape(&row.method),
            escape(&row.rate),
            words(&sum.worst),
            change(Some(sum.worst_delta)),
            words(&sum.best),
            change(Some(sum.best_delta)),
            score(Some(sum.mean_absolute)),
            change(found.deltas[8])
        );
    }
    table += "</tbody>\n</table>\n";
    let dense = published.rows.iter().filter(|row| row.kind == Kind::Dense).count();
    let _ = writeln!(
        html,
        "<details><summary>The published table, differenced: {} against {}</summary>\n{}</details>",
        counted(changes.len(), "compressed model"),
        counted(dense, "dense one"),
        super::boxed("Published changes", &table)
    );
    html
}
