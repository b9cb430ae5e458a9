//! Curves over the number of layers taken out, with intervals.

use anyhow::Result;
use plotters::{coord::Shift, prelude::*};

use super::{COLOURS, fail, register};

/// A point with its interval.
#[derive(Debug, Clone)]
pub struct Point {
    /// Layers taken out.
    pub x: f64,
    /// The figure.
    pub y: f64,
    /// Lower end of its interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// One way of choosing layers.
#[derive(Debug, Clone)]
pub struct Curve {
    /// Shown in the legend.
    pub name: String,
    /// Drawn thinner: a baseline.
    pub faint: bool,
    /// From left to right.
    pub points: Vec<Point>,
}

/// Draws `curves` as an SVG file, `y` on a logarithmic scale.
///
/// # Errors
/// If there is nothing to draw, or the font cannot be used.
pub fn draw(title: &str, x: &str, y: &str, curves: &[Curve]) -> Result<Vec<u8>> {
    register()?;
    let mut svg = String::new();
    draw_on(&SVGBackend::with_string(&mut svg, (1000, 620)).into_drawing_area(), title, (x, y), curves)?;
    Ok(svg.into_bytes())
}

fn draw_on<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    (x, y): (&str, &str),
    curves: &[Curve],
) -> Result<()> {
    let points =
        || curves.iter().flat_map(|curve| &curve.points).filter(|point| point.low > 0.0 && point.high.is_finite());
    let last = points().map(|point| point.x).fold(0.0, f64::max);
    let (low, high) = points().fold((f64::INFINITY, 0.0f64), |(low, high), p| (low.min(p.low), high.max(p.high)));
    if high == 0.0 {
        return Err(fail("no curve has a point above 0"));
    }
    area.fill(&WHITE).map_err(fail)?;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(46)
        .y_label_area_size(84)
        .build_cartesian_2d(-0.2..last + 0.3, (low * 0.9..high * 1.1).log_scale())
        .map_err(fail)?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 17))
        .light_line_style(RGBColor(240, 240, 240))
        .bold_line_style(RGBColor(220, 220, 220))
        .x_labels((last as usize + 1).min(20))
        .x_label_formatter(&|x| if (x - x.round()).abs() < 1e-6 { format!("{x:.0}") } else { String::new() })
        .y_label_formatter(&|y| if *y < 10.0 { format!("{y:.1}") } else { format!("{y:.0}") })
        .draw()
        .map_err(fail)?;
    // Neighbouring curves' intervals stand side by side.
    let middle = (curves.len() as f64 - 1.0) / 2.0;
    for (number, (curve, colour)) in curves.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let colour = *colour;
        let width = if curve.faint { 1 } else { 3 };
        let shift = (number as f64 - middle) * 0.02;
        let drawn: Vec<&Point> = curve.points.iter().filter(|p| p.low > 0.0 && p.high.is_finite()).collect();
        let line = LineSeries::new(drawn.iter().map(|p| (p.x + shift, p.y)), colour.stroke_width(width)).point_size(2);
        chart
            .draw_series(line)
            .map_err(fail)?
            .label(curve.name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(width)));
        let bars = drawn.iter().filter(|p| p.low < p.high);
        let bars = bars.map(|p| ErrorBar::new_vertical(p.x + shift, p.low, p.y, p.high, colour.mix(0.6).filled(), 6));
        chart.draw_series(bars).map_err(fail)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 15))
        .draw()
        .map_err(fail)?;
    area.present().map_err(fail)
}
