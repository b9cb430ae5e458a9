//! Lines over a logarithmic axis with their intervals, as bands where a line is drawn broad and as bars elsewhere: accuracy against size, accuracy against a scale.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::{coord::Shift, prelude::*};

use super::{MANY, fail, register};

/// Room for the names of the lines.
const LEGEND: u32 = 190;

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Shown beside the picture.
    pub name: String,
    /// Drawn broad, its intervals as a band.
    pub strong: bool,
    /// (x above 0, y), x rising.
    pub points: Vec<(f64, f64)>,
    /// (x, low, high) where known.
    pub band: Vec<(f64, f64, f64)>,
    /// Points drawn as crosses: runs that did not end.
    pub crosses: Vec<(f64, f64)>,
}

/// Lines that share axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// The lines; those of one place have one colour in all panels, and are named once.
    pub lines: Vec<Line>,
}

/// What stands at the axes.
#[derive(Debug, Clone, Copy)]
pub struct Axes<'a> {
    /// Below.
    pub x: &'a str,
    /// At the left.
    pub y: &'a str,
    /// How a number of the lower axis is written.
    pub label: fn(f64) -> String,
}

/// Draws `panels` side by side, PNG or SVG by the file's ending.
///
/// # Errors
/// If nothing can be drawn, or the file cannot be written.
pub fn draw(path: &Path, title: &str, panels: &[Panel], axes: Axes<'_>) -> Result<()> {
    register()?;
    let size = (LEGEND + 40 + 720 / panels.len().clamp(1, 2) as u32 * panels.len() as u32, 560);
    let drawn = if path.extension().is_some_and(|ending| ending == "svg") {
        all(&SVGBackend::new(path, size).into_drawing_area(), title, panels, axes)
    } else {
        all(&BitMapBackend::new(path, size).into_drawing_area(), title, panels, axes)
    };
    drawn.with_context(|| path.display().to_string())
}

fn colour(line: usize) -> RGBColor {
    MANY[line % MANY.len()]
}

fn all<B: DrawingBackend>(area: &DrawingArea<B, Shift>, title: &str, panels: &[Panel], axes: Axes<'_>) -> Result<()> {
    let points =
        || panels.iter().flat_map(|panel| &panel.lines).flat_map(|line| line.points.iter().chain(&line.crosses));
    let (low, high) = points().fold((f64::INFINITY, 0.0f64), |(low, high), (x, _)| (low.min(*x), high.max(*x)));
    if !(low > 0.0 && high.is_finite() && low <= high) {
        return Err(fail("there are no points with a size above 0"));
    }
    area.fill(&WHITE).map_err(fail)?;
    let area = area.margin(8, 0, 0, 0);
    let area = area.titled(title, ("sans-serif", 21)).map_err(fail)?;
    let width = area.dim_in_pixel().0.saturating_sub(LEGEND);
    let (left, right) = area.split_horizontally(width);
    for (panel, area) in panels.iter().zip(left.split_evenly((1, panels.len().max(1)))) {
        one(&area, panel, (low / 1.15, high * 1.15), axes)?;
    }
    let named = panels.first().map_or(&[][..], |panel| &panel.lines);
    for (at, line) in named.iter().enumerate() {
        let y = 42 + 24 * at as i32;
        let stroke = colour(at).stroke_width(if line.strong { 4 } else { 2 });
        right.draw(&PathElement::new([(4, y), (30, y)], stroke)).map_err(fail)?;
        right.draw(&Text::new(line.name.clone(), (38, y - 8), ("sans-serif", 15))).map_err(fail)?;
    }
    area.present().map_err(fail)
}

/// Whether a number is 1, 2 or 5 times a power of ten: what a logarithmic axis has room for.
fn is_round(x: f64) -> bool {
    let leading = x / 10f64.powf(x.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().any(|round| (leading / round - 1.0).abs() < 1e-6)
}

fn one<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    panel: &Panel,
    (low, high): (f64, f64),
    axes: Axes<'_>,
) -> Result<()> {
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(46)
        .y_label_area_size(60)
        .build_cartesian_2d((low..high).log_scale(), 0.0..1.0)
        .map_err(fail)?;
    chart
        .configure_mesh()
        .x_desc(axes.x)
        .y_desc(axes.y)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 16))
        .light_line_style(RGBColor(240, 240, 240))
        .bold_line_style(RGBColor(220, 220, 220))
        .x_label_formatter(&|x| if is_round(*x) { (axes.label)(*x) } else { String::new() })
        .disable_x_mesh()
        .y_label_formatter(&|y| format!("{y:.1}"))
        .y_labels(11)
        .draw()
        .map_err(fail)?;
    for (at, line) in panel.lines.iter().enumerate().filter(|(_, line)| line.strong) {
        let there = line.band.iter().map(|(x, _, high)| (*x, high.min(1.0)));
        let back = line.band.iter().rev().map(|(x, low, _)| (*x, low.max(0.0)));
        let outline: Vec<(f64, f64)> = there.chain(back).collect();
        if outline.len() > 2 {
            chart.draw_series([Polygon::new(outline, colour(at).mix(0.22))]).map_err(fail)?;
        }
    }
    for (at, line) in panel.lines.iter().enumerate() {
        let stroke = colour(at).stroke_width(if line.strong { 3 } else { 1 });
        chart.draw_series(LineSeries::new(line.points.iter().copied(), stroke)).map_err(fail)?;
        if !line.strong {
            let bars = line.band.iter().map(|(x, low, high)| [(*x, low.max(0.0)), (*x, high.min(1.0))]);
            let bars = bars.map(|bar| PathElement::new(bar, colour(at).mix(0.5).stroke_width(1)));
            chart.draw_series(bars).map_err(fail)?;
        }
        let size = if line.strong { 4 } else { 3 };
        let dots = line.points.iter().filter(|point| !line.crosses.contains(point));
        chart.draw_series(dots.map(|point| Circle::new(*point, size, colour(at).filled()))).map_err(fail)?;
        let crosses = line.crosses.iter().map(|point| Cross::new(*point, 6, colour(at).stroke_width(2)));
        chart.draw_series(crosses).map_err(fail)?;
    }
    Ok(())
}
