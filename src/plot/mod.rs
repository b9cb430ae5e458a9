//! Pictures: PNG or SVG by the file's ending, with a bundled font.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::{coord::Shift, prelude::*, style::register_font};

pub mod bands;

pub mod card;

pub mod diff;

pub mod family;

pub mod heatmap;

pub mod layers;

/// One line of a picture: what it is called, and its points (block, value).
#[derive(Debug, Clone)]
pub struct Line {
    /// Shown in the legend.
    pub name: String,
    /// (block, relative error).
    pub points: Vec<(f64, f64)>,
}

/// Colours that stay apart for colour-blind readers too (Okabe & Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// [`COLOURS`] and seven more, for pictures of many lines.
const MANY: [RGBColor; 14] = [
    COLOURS[0],
    COLOURS[1],
    COLOURS[2],
    COLOURS[3],
    COLOURS[4],
    COLOURS[5],
    COLOURS[6],
    RGBColor(150, 110, 60),
    RGBColor(160, 160, 0),
    RGBColor(110, 70, 160),
    RGBColor(0, 0, 0),
    RGBColor(120, 190, 100),
    RGBColor(180, 180, 180),
    RGBColor(230, 60, 60),
];

pub(crate) fn fail(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw the picture: {error}")
}

/// Makes the bundled font known.
pub(crate) fn register() -> Result<()> {
    register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular()).map_err(|_| fail("the font is unreadable"))
}

/// Draws the relative error of each linear over the blocks, on a logarithmic scale.
pub fn errors_by_block(path: &Path, title: &str, lines: &[Line]) -> Result<()> {
    register()?;
    let size = (1000, 560);
    let drawn = if path.extension().is_some_and(|ending| ending == "svg") {
        draw(&SVGBackend::new(path, size).into_drawing_area(), title, lines)
    } else {
        draw(&BitMapBackend::new(path, size).into_drawing_area(), title, lines)
    };
    drawn.with_context(|| path.display().to_string())
}

fn draw<B: DrawingBackend>(area: &DrawingArea<B, Shift>, title: &str, lines: &[Line]) -> Result<()> {
    let points = || lines.iter().flat_map(|line| &line.points).filter(|(_, y)| *y > 0.0);
    let last = points().fold(0.0f64, |last, (x, _)| last.max(*x));
    let (low, high) = points().fold((f64::INFINITY, 0.0f64), |(low, high), (_, y)| (low.min(*y), high.max(*y)));
    if high == 0.0 {
        return Err(fail("no linear has an error above 0"));
    }
    area.fill(&WHITE).map_err(fail)?;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(46)
        .y_label_area_size(84)
        .build_cartesian_2d(-0.3..last + 0.3, (low * 0.7..high * 1.6).log_scale())
        .map_err(fail)?;
    chart
        .configure_mesh()
        .x_desc("block")
        .y_desc("relative error")
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 17))
        .light_line_style(RGBColor(240, 240, 240))
        .bold_line_style(RGBColor(220, 220, 220))
        .x_labels((last as usize + 1).min(16))
        .x_label_formatter(&|x| if (x - x.round()).abs() < 1e-6 { format!("{x:.0}") } else { String::new() })
        .y_label_formatter(&|y| if *y < 0.01 { format!("{y:.0e}") } else { format!("{y:.2}") })
        .draw()
        .map_err(fail)?;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let colour = *colour;
        let drawn = line.points.iter().copied().filter(|(_, y)| *y > 0.0); // the axis is logarithmic
        let series = LineSeries::new(drawn, colour.stroke_width(2)).point_size(3);
        chart
            .draw_series(series)
            .map_err(fail)?
            .label(line.name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 15))
        .draw()
        .map_err(fail)?;
    area.present().map_err(fail)
}
