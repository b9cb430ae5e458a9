//! One page that holds everything of a sweep and fetches nothing: plots with values to point at, tables, items whose answer
//! turned, and where it all comes from. It reads without its script, at the width of a phone and on paper.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::{
    data::Curve,
    figure::{Figure, axis::Axis},
    published::Published,
    words::{clip, counted, escape},
};

mod plots;

mod tables;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page.
pub fn html(curve: &Curve, published: Option<&Published>) -> String {
    let name = clip(&curve.dense.name, 80);
    let figures: Vec<Figure> = Axis::ALL.into_iter().filter_map(|axis| Figure::of(curve, axis)).collect();
    let sections = Sections::of(curve, published, &figures);
    let mut page = head(&name);
    page += "<header>\n";
    let _ = writeln!(page, "<h1>What compression did to <span class=\"name\">{}</span></h1>", escape(&name));
    let items: usize = curve.dimensions.iter().map(|dimension| dimension.items).sum();
    let _ = writeln!(
        page,
        "<p class=\"sub\">{}, {} of trust, {} of the suite <b>{}</b></p>",
        counted(curve.points.len(), "compressed model"),
        counted(curve.dimensions.len(), "dimension"),
        counted(items, "item"),
        escape(&clip(&curve.suite.name, 80))
    );
    page += &verdict(curve);
    page += &sections.navigation();
    page += "</header>\n<main>\n";
    for section in &sections.0 {
        let _ =
            writeln!(page, "<section id=\"{}\">\n<h2>{}</h2>\n{}</section>", section.id, section.title, section.body);
    }
    page += "</main>\n<footer><p>";
    let _ = write!(
        page,
        "Drawn by scruple {} from a record that holds every figure of this page.",
        env!("CARGO_PKG_VERSION")
    );
    let _ = write!(page, "</p></footer>\n<script>{SCRIPT}</script>\n</body>\n</html>\n");
    page
}

/// Everything before the header. The policy lets the page load nothing, and run no script but its own, by its hash.
fn head(name: &str) -> String {
    let policy = format!(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        base64(&Sha256::digest(SCRIPT.as_bytes()))
    );
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>What compression did to {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        escape(name)
    )
}

/// `bytes` in the letters of RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for at in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= three.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

/// The sweep in words, and how much there is to be careful about.
fn verdict(curve: &Curve) -> String {
    let mut html = String::new();
    if !curve.verdict.is_empty() {
        html += "<div class=\"verdict\">\n";
        for line in &curve.verdict {
            let _ = writeln!(html, "<p>{}</p>", escape(line));
        }
        html += "</div>\n";
    }
    let mut parts = Vec::new();
    if !curve.warnings.is_empty() {
        parts.push(counted(curve.warnings.len(), "warning"));
    }
    if !curve.failures.is_empty() {
        parts.push(format!("{} that could not be had", counted(curve.failures.len(), "point")));
    }
    if !parts.is_empty() {
        let _ = writeln!(html, "<p class=\"care\"><a href=\"#cautions\">{}</a></p>", parts.join(", "));
    }
    html
}

struct Section {
    id: &'static str,
    /// In the navigation.
    short: &'static str,
    title: String,
    body: String,
}

/// What there is to show, in the order it is shown.
struct Sections(Vec<Section>);

impl Sections {
    fn of(curve: &Curve, published: Option<&Published>, figures: &[Figure]) -> Self {
        let mut all = Self(Vec::new());
        for (at, figure) in figures.iter().enumerate() {
            let short = figure.axis.heading();
            all.push(figure.axis.file(), short, short, plots::section(curve, figure, at == 0));
        }
        if curve.points.is_empty() {
            let body = "<p>No point of this sweep could be had, so there is nothing to draw.</p>\n".into();
            all.push("curve", "Curves", "Curves", body);
        } else {
            all.push("table", "Table", "All changes at a glance", tables::glance(curve));
            all.push("points", "Points", "Point by point", tables::points(curve));
        }
        if !curve.settings.is_empty() {
            all.push("seeds", "Seeds", "What the calibration seed does", tables::seeds(curve));
        }
        if !curve.references.is_empty() {
            all.push("references", "References", "Other dense models", tables::references(curve));
        }
        if !curve.warnings.is_empty() || !curve.failures.is_empty() {
            all.push("cautions", "Warnings", "Warnings and failures", tables::cautions(curve));
        }
        if let Some(published) = published {
            let beside = Axis::ALL.into_iter().filter_map(|axis| Figure::beside(curve, published, axis));
            let body = plots::published(curve, published, &beside.collect::<Vec<_>>());
            all.push("published", "Published", "Published results, beside ours", body);
        }
        all.push("provenance", "Provenance", "Where this comes from", tables::provenance(curve));
        all.push("reading", "How to read", "How to read this", tables::reading());
        all
    }

    fn push(&mut self, id: &'static str, short: &'static str, title: &str, body: String) {
        self.0.push(Section { id, short, title: title.into(), body });
    }

    fn navigation(&self) -> String {
        let links = self.0.iter().map(|section| format!("<a href=\"#{}\">{}</a>", section.id, section.short));
        format!("<nav aria-label=\"Sections\">{}</nav>\n", links.collect::<Vec<_>>().join(" "))
    }
}

/// A table that scrolls inside of its own box, by keyboard too.
fn boxed(label: &str, table: &str) -> String {
    format!("<div class=\"box\" role=\"region\" aria-label=\"{}\" tabindex=\"0\">\n{table}</div>\n", escape(label))
}

/// What a point is called in tables: method, rate and, where there is one, the seed.
fn point_title(point: &super::data::Point) -> String {
    let name = if point.kind == super::data::Kind::Given { &point.name } else { &point.series };
    let seed = point.calibration_seed.map_or(String::new(), |seed| format!(", seed {seed}"));
    format!("{}, {}{seed}", clip(name, 60), clip(&point.rate, 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn style_and_script_end_where_the_page_ends_them_and_fetch_nothing() {
        for part in [STYLE, SCRIPT] {
            assert!(
                !part.contains("</") && !part.contains("http") && !part.contains("@import") && !part.contains("url(")
            );
            assert!(!part.contains("fetch(") && !part.contains("innerHTML") && part.is_ascii());
        }
    }
}
