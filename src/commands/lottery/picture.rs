//! Pictures of a report: accuracy against multiply-adds, which blocks criteria keep, and what is left under corruption and
//! attack.

use anyhow::Result;
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    compare::Spread,
    report::{Chosen, Compared, Kind, Report, Tried, UnderAttack, groups, name},
    tell::attack_kind,
};
use crate::{
    curve::{
        place::file_name,
        scene::{COLOURS, glyph},
        words::clip,
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
        let size = (1120, height(tried));
        found.push((format!("accuracy-{name}"), svg(size, |area| accuracy(&area, tried, report.margin))?));
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

/// Colours that stay apart for colour-blind readers too, by what an arm is for.
fn ink(kind: Kind) -> RGBColor {
    let (r, g, b) = match kind {
        Kind::Dense => (40, 40, 46),
        Kind::Before => COLOURS[0],
        Kind::After => COLOURS[1],
        Kind::Baseline => COLOURS[2],
        Kind::Filters => COLOURS[3],
        Kind::Compute => COLOURS[4],
    };
    RGBColor(r, g, b)
}

/// The mark of an arm: a shape a kind, so that it is told in grey too.
fn mark(kind: Kind, (x, y): (i32, i32)) -> Polygon<(i32, i32)> {
    let number = Kind::ALL.iter().position(|one| *one == kind).unwrap_or(0);
    let corner = |(dx, dy): (f64, f64)| (x + dx.round() as i32, y + dy.round() as i32);
    Polygon::new(glyph(number, 5.0).into_iter().map(corner).collect::<Vec<_>>(), ink(kind).filled())
}

/// Percent, wide enough to be told apart, within 0 to 100.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    let room = ((high - low) * 0.06).max(0.5);
    ((low - room).max(0.0), (high + room).min(100.0).max(low + 1.0))
}

/// The interval of the difference around an arm's accuracy, which is what the words go by; the accuracy alone where there is none.
fn ends(one: &Compared) -> (f64, f64) {
    let middle = one.accuracy.mean - one.difference.mean;
    match one.difference.interval {
        Some((low, high)) if one.kind != Kind::Dense => (middle + low, middle + high),
        _ => (one.accuracy.mean, one.accuracy.mean),
    }
}

/// Pixels of a row of the list of arms.
const ROW: i32 = 19;

/// Pixels above and below that list.
const FRAME: i32 = 130;

/// Pixels beside that list for names.
const NAMES: i32 = 250;

/// Characters of a name that fit there.
const LETTERS: usize = 36;

/// How much of the scale of multiply-adds the marks of one kind stand beside those of the next.
const ASIDE: f64 = 0.014;

/// How high the picture of accuracies is: a row an arm, of which several may have come to the same nets.
fn height(tried: &Tried) -> u32 {
    (groups(tried.compared.iter()).len() as i32 * ROW + FRAME).max(420) as u32
}

/// Accuracy against multiply-adds on the left, each arm by its name and interval on the right.
fn accuracy(area: &Area<'_>, tried: &Tried, margin: f64) -> Result<()> {
    area.fill(&WHITE).map_err(fail)?;
    let title = format!("{}: accuracy and the work of a forward pass", tried.name);
    let area = area.margin(8, 0, 0, 0).titled(&title, ("sans-serif", 22)).map_err(fail)?;
    let (panels, foot) = area.split_vertically(area.dim_in_pixel().1 as i32 - 28);
    let (left, right) = panels.split_horizontally(480);
    scatter(&left, tried)?;
    list(&right, tried, margin)?;
    legend(&foot, tried)?;
    area.present().map_err(fail)
}

fn scatter(area: &Area<'_>, tried: &Tried) -> Result<()> {
    let arms: Vec<&Compared> = std::iter::once(&tried.dense).chain(&tried.compared).collect();
    let (low, high) = range(arms.iter().flat_map(|one| [ends(one).0, ends(one).1, one.accuracy.mean]));
    let most = 1.06 * arms.iter().map(|one| one.multiply_adds / 1e6).fold(0.0, f64::max);
    // Arms of all kinds have the same multiply-adds: kinds stand side by side.
    let macs = |one: &Compared| {
        let kind = Kind::ALL.iter().position(|kind| *kind == one.kind).unwrap_or(0) as f64;
        one.multiply_adds / 1e6 + ASIDE * most * (kind - Kind::ALL.len() as f64 / 2.0) * f64::from(u8::from(kind > 0.0))
    };
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..most, low..high)
        .map_err(fail)?;
    chart
        .configure_mesh()
        .x_desc("million multiply-adds an image")
        .y_desc("test accuracy, %")
        .max_light_lines(1)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(228, 228, 234))
        .draw()
        .map_err(fail)?;
    let level = [(0.0, tried.dense.accuracy.mean), (most, tried.dense.accuracy.mean)];
    chart.draw_series(LineSeries::new(level, BLACK.mix(0.5))).map_err(fail)?;
    for one in arms.iter().rev() {
        let (from, to) = ends(one);
        let bar = PathElement::new([(macs(one), from), (macs(one), to)], ink(one.kind).mix(0.45).stroke_width(2));
        chart.draw_series([bar]).map_err(fail)?;
    }
    for one in arms.iter().rev() {
        let mark = EmptyElement::at((macs(one), one.accuracy.mean)) + mark(one.kind, (0, 0));
        chart.draw_series([mark]).map_err(fail)?;
    }
    Ok(())
}

fn list(area: &Area<'_>, tried: &Tried, margin: f64) -> Result<()> {
    let mut groups = groups(tried.compared.iter());
    groups.sort_by(|a, b| b[0].difference.mean.total_cmp(&a[0].difference.mean));
    let arms: Vec<&Compared> = groups.iter().map(|group| group[0]).collect();
    let end = |one: &Compared| one.difference.interval.unwrap_or((one.difference.mean, one.difference.mean));
    let low = arms.iter().map(|one| end(one).0).fold(-margin, f64::min);
    let high = arms.iter().map(|one| end(one).1).fold(0.0, f64::max);
    let room = 0.04 * (high - low).max(1.0);
    let rows = arms.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .margin_left(NAMES + 8)
        .x_label_area_size(46)
        .build_cartesian_2d(low - room..high + room, rows..0.0)
        .map_err(fail)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_desc(format!("points to the dense net, 95 % over seeds; dashed: \u{2212}\u{3be} = \u{2212}{margin}"))
        .max_light_lines(1)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(228, 228, 234))
        .draw()
        .map_err(fail)?;
    chart.draw_series(LineSeries::new([(0.0, 0.0), (0.0, rows)], BLACK.mix(0.5))).map_err(fail)?;
    let dashed = DashedLineSeries::new([(-margin, 0.0), (-margin, rows)], 5, 4, BLACK.mix(0.4).stroke_width(1));
    chart.draw_series(dashed).map_err(fail)?;
    let style = ("sans-serif", 14).into_font().color(&BLACK).pos(Pos::new(HPos::Right, VPos::Center));
    for (row, one) in arms.iter().enumerate() {
        let y = row as f64 + 0.5;
        let (from, to) = end(one);
        let bar = PathElement::new([(from, y), (to, y)], ink(one.kind).stroke_width(2));
        chart.draw_series([bar]).map_err(fail)?;
        let mark = EmptyElement::at((one.difference.mean, y)) + mark(one.kind, (0, 0));
        chart.draw_series([mark]).map_err(fail)?;
        let (_, down) = chart.backend_coord(&(0.0, y));
        let (_, top) = area.get_base_pixel();
        let words = clip(&name(&groups[row]), LETTERS);
        area.draw(&Text::new(words, (NAMES, down - top), style.clone())).map_err(fail)?;
    }
    Ok(())
}

fn legend(area: &Area<'_>, tried: &Tried) -> Result<()> {
    let mut x = 20;
    for kind in Kind::ALL {
        if kind != Kind::Dense && !tried.compared.iter().any(|one| one.kind == kind) {
            continue;
        }
        area.draw(&mark(kind, (x, 10))).map_err(fail)?;
        area.draw(&Text::new(kind.name(), (x + 11, 3), ("sans-serif", 14).into_font())).map_err(fail)?;
        x += 40 + (kind.name().len() as f64 * 7.4) as i32;
    }
    Ok(())
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
    let kind = |chosen: &Chosen| match chosen.trained {
        true => format!("{}, trained", chosen.criterion),
        false => chosen.criterion.clone(),
    };
    Heatmap {
        title: format!("{}: which blocks stay", tried.name),
        subtitle: format!("share of seeds in which a criterion keeps a block; {} go", tried.removed),
        kinds: tried.chosen.iter().map(kind).collect(),
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
    let mut groups = vec![["clean".to_string(), String::new()]];
    groups.extend(tried.dense.corrupted.as_ref().map(|_| ["corruptions".into(), "all severities".into()]));
    groups.extend(tried.dense.attacks.iter().map(|one| [attack_kind(one), format!("{} images", one.images)]));
    let high =
        5.0 + arms.iter().flat_map(|one| under(one)).map(|bar| bar.value.max(bar.interval.1)).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{}: under corruption and attack", tried.name), ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(66)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..groups.len() as f64, 0.0..high.min(100.0))
        .map_err(fail)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .x_desc("attacks: of the images told right unharmed; whiskers: 95 % of the paired difference to the dense net")
        .y_desc("told right, %")
        .max_light_lines(1)
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 15))
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(228, 228, 234))
        .draw()
        .map_err(fail)?;
    let width = 0.8 / arms.len() as f64;
    for (number, one) in arms.iter().enumerate() {
        let ink = ink(BARS[number % BARS.len()]);
        let left = |group: usize| group as f64 + 0.1 + number as f64 * width;
        let bars = under(one).into_iter().enumerate().map(|(group, bar)| {
            Rectangle::new([(left(group), 0.0), (left(group) + width * 0.92, bar.value)], ink.filled())
        });
        chart
            .draw_series(bars)
            .map_err(fail)?
            .label(one.name.clone())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], ink.filled()));
        let whiskers = under(one).into_iter().enumerate().filter(|(_, bar)| bar.interval.0 < bar.interval.1);
        let whiskers = whiskers.map(|(group, bar)| {
            let (low, high) = (bar.interval.0.max(0.0), bar.interval.1.min(100.0));
            let middle = bar.value.clamp(low, high);
            ErrorBar::new_vertical(left(group) + width * 0.46, low, middle, high, BLACK.filled(), 6)
        });
        chart.draw_series(whiskers).map_err(fail)?;
    }
    let centred = ("sans-serif", 13).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
    for (group, lines) in groups.iter().enumerate() {
        let (across, down) = chart.backend_coord(&(group as f64 + 0.5, 0.0));
        for (line, words) in lines.iter().enumerate() {
            let place = (across, down + 6 + 16 * line as i32);
            area.draw(&Text::new(words.clone(), place, centred.clone())).map_err(fail)?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 15))
        .draw()
        .map_err(fail)?;
    area.present().map_err(fail)
}

/// Whose colours the arms of the bars have.
const BARS: [Kind; 4] = [Kind::Dense, Kind::Before, Kind::Baseline, Kind::Compute];

/// One bar: percent, and the interval of the paired difference around it; of no width where there is none.
struct Bar {
    value: f64,
    interval: (f64, f64),
}

impl Bar {
    fn of(value: f64, difference: Option<&Spread>) -> Self {
        let interval =
            difference.and_then(|apart| apart.interval.map(|(low, high)| (low - apart.mean, high - apart.mean)));
        Self { value, interval: interval.map_or((value, value), |(low, high)| (value + low, value + high)) }
    }
}

/// The bars of an arm: unharmed, under corruptions, under each attack.
fn under(one: &Compared) -> Vec<Bar> {
    let is_own = one.kind == Kind::Dense;
    let bar = |value: f64, apart: Option<&Spread>| Bar::of(value, apart.filter(|_| !is_own));
    let corrupted = one.corrupted.iter().map(|(spread, apart)| bar(spread.mean, Some(apart)));
    let attack = |one: &UnderAttack| bar(one.given_clean.unwrap_or(0.0), one.given_clean_difference.as_ref());
    let clean = bar(one.accuracy.mean, Some(&one.difference));
    std::iter::once(clean).chain(corrupted).chain(one.attacks.iter().map(attack)).collect()
}
