//! What a suite found, as pictures.

use std::path::Path;

use anyhow::Result;
use scruple_compress::sharing::bench::{
    Accounting, Method,
    pareto::{Pareto, Row},
    stability::{Form, Stability},
};

use crate::{
    plot::bands::{Axes, Line, Panel, draw},
    printer,
};

/// The endings pictures are written with.
const ENDINGS: [&str; 2] = ["png", "svg"];

/// Accuracy against C, a panel a rate.
pub fn stability(found: &Stability, chance: f64, out: &Path) -> Result<()> {
    let mut rates: Vec<f64> = found.lines.iter().map(|line| line.rate).collect();
    rates.dedup();
    let panel = |&rate: &f64| {
        let lines = found.lines.iter().filter(|line| line.rate == rate).map(|line| {
            let what = match line.form {
                Form::Coordinates => "φ",
                Form::Divided => "ψ divided by v1",
                Form::Plain => "ψ",
            };
            let at = |(deviation, score): (&f64, &scruple_compress::sharing::bench::train::Score)| match score.diverged
            {
                Some(_) => (*deviation, chance),
                None => (*deviation, score.accuracy()),
            };
            let ended = line.scores.iter().zip(&found.deviations).filter(|(score, _)| score.diverged.is_some());
            Line {
                name: format!("{what}, {}", line.descent.name()),
                strong: line.form == Form::Coordinates,
                points: found.deviations.iter().zip(&line.scores).map(at).collect(),
                band: Vec::new(),
                crosses: ended.map(|(_, deviation)| (*deviation, chance)).collect(),
            }
        });
        Panel { title: format!("{rate}x"), lines: lines.collect() }
    };
    let panels: Vec<Panel> = rates.iter().map(panel).collect();
    let title = format!("{}: accuracy against the size the pool begins at (× = the run did not end)", found.data);
    let axes = Axes { x: "standard deviation C of the pool at the start", y: "accuracy", label: plain };
    written(out, "stability", |path| draw(path, &title, &panels, axes))
}

/// Accuracy against bytes, and against the count of numbers.
pub fn pareto(found: &Pareto, out: &Path) -> Result<()> {
    let pictures: [Picture; 2] = [
        ("pareto-bytes", "accuracy against bytes", "bytes, all that is kept", |row, _| row.bytes as f64, kilo),
        (
            "pareto-values",
            "accuracy against numbers (the paper's accounting)",
            "numbers kept, biases included",
            |row, rest| (row.values + rest) as f64,
            plain,
        ),
    ];
    for (name, title, x, size, label) in pictures {
        let lines = Method::ALL.iter().filter_map(|&method| line(found, method, size, name == "pareto-values"));
        let panel = Panel { title: String::new(), lines: lines.collect() };
        let seeds = match found.seeds {
            1 => "one seed".to_string(),
            seeds => format!("mean of {seeds} seeds, bands and bars: 95 % intervals"),
        };
        let title = format!("{}: {title}; {seeds}", found.data);
        written(out, name, |path| draw(path, &title, std::slice::from_ref(&panel), Axes { x, y: "accuracy", label }))?;
    }
    Ok(())
}

/// The horizontal place of a row, given the numbers beside the weights.
type Size = fn(&Row, usize) -> f64;

/// File, title, name of the horizontal axis, place on it, label at it.
type Picture = (&'static str, &'static str, &'static str, Size, fn(f64) -> String);

fn line(found: &Pareto, method: Method, size: Size, numbers: bool) -> Option<Line> {
    // 8 and 4 bits make no fewer numbers.
    if numbers && matches!(method, Method::Int8 | Method::Int4) {
        return None;
    }
    let mut rows: Vec<(f64, &Row)> =
        found.rows.iter().filter(|row| row.method == method).map(|row| (size(row, found.rest), row)).collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    rows.dedup_by(|a, b| a.0 == b.0 && a.1.accounting != Some(Accounting::Values));
    let band = rows.iter().filter_map(|(x, row)| Some((*x, row.accuracy.low?, row.accuracy.high?)));
    (!rows.is_empty()).then(|| Line {
        name: method.name().to_string(),
        strong: matches!(method, Method::Fold | Method::Lottery),
        points: rows.iter().map(|(x, row)| (*x, row.accuracy.mean)).collect(),
        band: band.collect(),
        crosses: Vec::new(),
    })
}

fn plain(x: f64) -> String {
    if x >= 1e6 { format!("{:.0e}", x) } else { format!("{x}") }
}

fn kilo(x: f64) -> String {
    if x >= 1e3 { format!("{} kB", x / 1e3) } else { format!("{x} B") }
}

fn written(out: &Path, name: &str, draw: impl Fn(&Path) -> Result<()>) -> Result<()> {
    for ending in ENDINGS {
        let path = out.join(format!("{name}.{ending}"));
        draw(&path)?;
        printer::say(format!("{}: written", path.display()));
    }
    Ok(())
}
