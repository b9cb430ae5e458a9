//! Curves over the number of layers taken out, with intervals.

use anyhow::Result;
use plotters::{coord::Shift, prelude::*};

use super::{MANY, fail, register};

/// What lies beyond so many times the highest point of the curves that are no baselines is cut off: baselines may be ruined by
/// ten powers of ten, and would press everything else onto one line.
const BEYOND: f64 = 5.0;

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
    let searched = curves.iter().filter(|curve| !curve.faint).flat_map(|curve| &curve.points);
    let searched = searched.map(|point| point.high).filter(|high| high.is_finite()).fold(0.0, f64::max);
    let high = if searched > 0.0 { high.min(BEYOND * searched) } else { high };
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
    let mut kinds: Vec<&str> = Vec::new();
    for (number, curve) in curves.iter().enumerate() {
        let known = kinds.iter().position(|&name| name == kind(&curve.name));
        let place = known.unwrap_or_else(|| {
            kinds.push(kind(&curve.name));
            kinds.len() - 1
        });
        let colour = MANY[place % MANY.len()];
        let width = if curve.faint { 1 } else { 3 };
        let shift = (number as f64 - middle) * 0.02;
        let drawn: Vec<&Point> = curve.points.iter().filter(|p| p.low > 0.0 && p.high.is_finite()).collect();
        let places: Vec<(f64, f64)> = drawn.iter().map(|p| (p.x + shift, p.y)).collect();
        let lines = inside(&places, high).into_iter().map(|line| PathElement::new(line, colour.stroke_width(width)));
        let series = chart.draw_series(lines).map_err(fail)?;
        if known.is_none() {
            series
                .label(kind(&curve.name))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(width)));
        }
        let seen = places.iter().filter(|(_, y)| *y <= high);
        chart.draw_series(seen.map(|&place| Circle::new(place, 2, colour.filled()))).map_err(fail)?;
        let bars = drawn.iter().filter(|p| p.low < p.high && p.y <= high);
        let bars = bars
            .map(|p| ErrorBar::new_vertical(p.x + shift, p.low, p.y, p.high.min(high), colour.mix(0.6).filled(), 6));
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

/// What a curve is called without the number of its draw: `random-2` is `random`.
fn kind(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((kind, number)) if number.parse::<u32>().is_ok() => kind,
        _ => name,
    }
}

/// The parts of the line through `places` (x, y above 0) that lie under `high`, on a logarithmic axis.
fn inside(places: &[(f64, f64)], high: f64) -> Vec<Vec<(f64, f64)>> {
    let mut parts: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut open = false;
    for (at, &(x, y)) in places.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| places[before]);
        let crossing = before.filter(|&(_, y_before)| (y_before <= high) != (y <= high)).map(|(x_before, y_before)| {
            let share = (high.ln() - y_before.ln()) / (y.ln() - y_before.ln());
            (x_before + share * (x - x_before), high)
        });
        if y <= high {
            if !open {
                parts.push(crossing.into_iter().collect());
                open = true;
            }
            parts.last_mut().into_iter().for_each(|part| part.push((x, y)));
        } else if open {
            parts.last_mut().into_iter().for_each(|part| part.extend(crossing));
            open = false;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_where_they_leave_the_picture_and_come_back_where_they_return() {
        let parts = inside(&[(0.0, 1.0), (1.0, 10.0), (2.0, 1000.0), (3.0, 1e5), (4.0, 1.0)], 100.0);
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0][..2], [(0.0, 1.0), (1.0, 10.0)]);
        let near = |(x, y): (f64, f64), (a, b): (f64, f64)| (x - a).abs() < 1e-9 && (y - b).abs() < 1e-9;
        assert!(near(parts[0][2], (1.5, 100.0)) && parts[0].len() == 3, "{parts:?}");
        assert!(near(parts[1][0], (3.6, 100.0)) && parts[1][1] == (4.0, 1.0) && parts[1].len() == 2, "{parts:?}");
        assert_eq!(inside(&[(0.0, 5.0), (1.0, 6.0)], 2.0), Vec::<Vec<(f64, f64)>>::new());
    }

    #[test]
    fn draws_of_one_kind_are_one_kind() {
        assert_eq!(
            ["random-0", "last-but-one", "beam:3", "last"].map(kind),
            ["random", "last-but-one", "beam:3", "last"]
        );
    }
}
