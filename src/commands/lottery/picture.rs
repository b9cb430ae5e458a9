//! Pictures of a report: accuracy against multiply-adds, which blocks criteria keep, and what is left under corruption and
//! attack.

use anyhow::Result;
use plotters::{coord::Shift, prelude::*};

use super::{
    report::{Compared, Report, Tried},
    tell::attack_name,
};
use crate::{
    curve::{
        place::file_name,
        scene::{COLOURS, glyph, glyph_of},
    },
    plot::{
        fail,
        heatmap::{self, Cell, Heatmap, Mark, Stack},
        register,
    },
};

/// Every picture: its file's name, and its drawing.
pub fn all(report: &Report) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for tried in &report.settings {
        let name = file_name(&tried.name);
        found.push((format!("accuracy-{name}"), svg((1000, 620), |area| accuracy(&area, tried))?));
        found.push((format!("allocation-{name}"), String::from_utf8(heatmap::draw(&map(tried), "svg")?)?));
        if tried.dense.corrupted.is_some() || !tried.dense.attacks.is_empty() {
            found.push((format!("robustness-{name}"), svg((1000, 560), |area| robustness(&area, tried))?));
        }
    }
    Ok(found)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn svg(size: (u32, u32), draw: impl FnOnce(Area<'_>) -> Result<()>) -> Result<String> {
    register()?;
    let mut text = String::new();
    draw(SVGBackend::with_string(&mut text, size).into_drawing_area())?;
    Ok(text)
}

fn colour(number: usize) -> RGBColor {
    let (r, g, b) = COLOURS[number % COLOURS.len()];
    RGBColor(r, g, b)
}

/// Percent, wide enough to be told apart, within 0 to 100.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    let room = ((high - low) * 0.08).max(0.5);
    ((low - room).max(0.0), (high + room).min(100.0).max(low + 1.0))
}

fn accuracy(area: &Area<'_>, tried: &Tried) -> Result<()> {
    area.fill(&WHITE).map_err(fail)?;
    let arms: Vec<&Compared> = std::iter::once(&tried.dense).chain(&tried.compared).collect();
    // Intervals of the difference around the arm: what the words go by.
    let ends = |one: &Compared| match one.difference.interval {
        Some((low, high)) if one.name != "dense" => {
            let middle = one.accuracy.mean - one.difference.mean;
            (middle + low, middle + high)
        }
        _ => (one.accuracy.mean, one.accuracy.mean),
    };
    let (low, high) = range(arms.iter().flat_map(|one| [ends(one).0, ends(one).1, one.accuracy.mean]));
    let macs = |one: &Compared| one.multiply_adds / 1e6;
    let most = arms.iter().map(|one| macs(one)).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{}: accuracy against multiply-adds", tried.name), ("sans-serif", 22))
        .margin(16)
        .margin_right(230)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..1.04 * most, low..high)
        .map_err(fail)?;
    chart
        .configure_mesh()
        .x_desc("million multiply-adds an image; bars: 95 % of the paired difference to the dense net")
        .y_desc("test accuracy, %")
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 15))
        .light_line_style(RGBColor(240, 240, 240))
        .bold_line_style(RGBColor(224, 224, 230))
        .draw()
        .map_err(fail)?;
    let level =
        LineSeries::new([(0.0, tried.dense.accuracy.mean), (1.04 * most, tried.dense.accuracy.mean)], BLACK.mix(0.5));
    chart.draw_series(level).map_err(fail)?;
    // Arms of one size stand side by side.
    let middle = (arms.len() as f64 - 1.0) / 2.0;
    let step = most * 0.006;
    let legend = area.dim_in_pixel().0 as i32 - 222;
    for (number, one) in arms.iter().enumerate() {
        let ink = if one.name == "dense" { BLACK } else { colour(number) };
        let x = (macs(one) + (number as f64 - middle) * step).clamp(0.0, 1.04 * most);
        let (from, to) = ends(one);
        if from < to {
            chart
                .draw_series([ErrorBar::new_vertical(x, from, one.accuracy.mean, to, ink.mix(0.7).filled(), 7)])
                .map_err(fail)?;
        }
        // Colours come again before there are shapes for all: both together tell arms apart.
        let size = if one.control { 4.0 } else { 6.0 };
        let mark = |(x, y): (i32, i32)| {
            let corner = |(dx, dy): (f64, f64)| (x + dx.round() as i32, y + dy.round() as i32);
            Polygon::new(glyph(glyph_of(number), size).into_iter().map(corner).collect::<Vec<_>>(), ink.filled())
        };
        chart.draw_series([EmptyElement::at((x, one.accuracy.mean)) + mark((0, 0))]).map_err(fail)?;
        let y = 52 + 19 * number as i32;
        area.draw(&mark((legend, y + 7))).map_err(fail)?;
        let words = crate::curve::words::clip(&one.name, 30);
        area.draw(&Text::new(words, (legend + 12, y), ("sans-serif", 14).into_font())).map_err(fail)?;
    }
    area.present().map_err(fail)
}

/// The share of seeds in which each criterion keeps each block.
fn map(tried: &Tried) -> Heatmap {
    let share = |kept: &[Vec<Vec<usize>>], stage: usize, block: usize| {
        kept.iter().filter(|kept| kept[stage].contains(&block)).count() as f64 / kept.len().max(1) as f64
    };
    let stack = |(stage, &count): (usize, &usize)| Stack {
        name: format!("stage {}", stage + 1),
        blocks: (0..count)
            .map(|block| {
                let cell = |value| Some(Cell { value: Some(value), mark: Mark::No });
                (block, tried.chosen.iter().map(|chosen| cell(share(&chosen.kept, stage, block))).collect())
            })
            .collect(),
    };
    Heatmap {
        title: format!("{}: which blocks stay", tried.name),
        subtitle: format!("share of seeds in which a criterion keeps a block; {} go", tried.removed),
        kinds: tried.chosen.iter().map(|chosen| chosen.criterion.clone()).collect(),
        stacks: tried.blocks.iter().enumerate().map(stack).collect(),
        outside: Vec::new(),
        range: (0.0, 1.0),
        logarithmic: false,
        open_ended: false,
        legend: &[],
    }
}

fn robustness(area: &Area<'_>, tried: &Tried) -> Result<()> {
    area.fill(&WHITE).map_err(fail)?;
    let shown = |one: &&Compared| one.name == tried.lead || matches!(one.name.as_str(), "random" | "shallowest");
    let arms: Vec<&Compared> = std::iter::once(&tried.dense).chain(tried.compared.iter().filter(shown)).collect();
    let mut groups = vec!["clean".to_string()];
    groups.extend(tried.dense.corrupted.as_ref().map(|_| "corruptions".to_string()));
    groups.extend(tried.dense.attacks.iter().map(attack_name));
    let values = |one: &Compared| {
        let corrupted = one.corrupted.as_ref().map(|(spread, _)| spread.mean);
        let attacks = one.attacks.iter().map(|attack| attack.given_clean.unwrap_or(0.0));
        std::iter::once(one.accuracy.mean).chain(corrupted).chain(attacks).collect::<Vec<f64>>()
    };
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{}: under corruption and attack", tried.name), ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..groups.len() as f64, 0.0..108.0)
        .map_err(fail)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .x_desc("attacks: of the images told right unharmed")
        .y_desc("told right, %")
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 15))
        .light_line_style(RGBColor(240, 240, 240))
        .bold_line_style(RGBColor(224, 224, 230))
        .draw()
        .map_err(fail)?;
    let width = 0.8 / arms.len() as f64;
    for (number, one) in arms.iter().enumerate() {
        let ink = if number == 0 { RGBColor(70, 70, 78) } else { colour(number - 1) };
        let bars = values(one).into_iter().enumerate().map(|(group, value)| {
            let left = group as f64 + 0.1 + number as f64 * width;
            Rectangle::new([(left, 0.0), (left + width * 0.92, value)], ink.filled())
        });
        chart
            .draw_series(bars)
            .map_err(fail)?
            .label(one.name.clone())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], ink.filled()));
    }
    let names = groups
        .iter()
        .enumerate()
        .map(|(group, name)| Text::new(name.clone(), (group as f64 + 0.1, 105.0), ("sans-serif", 13).into_font()));
    chart.draw_series(names).map_err(fail)?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 15))
        .draw()
        .map_err(fail)?;
    area.present().map_err(fail)
}
