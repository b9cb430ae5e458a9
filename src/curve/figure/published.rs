//! Published differences in grey behind our own.

use super::{
    Figure, Line, Panel, Taken, alternative,
    axis::{Axis, Horizontal, Place, Vertical},
    dimension_says,
    panel::{self, Content, Level, Means, Series, Value},
    range, series,
};
use crate::curve::{
    data::Curve,
    published::{Change, DIMENSIONS, Kind, Published},
    scene::{GLYPHS, Ink},
    words::{self, change, finite, heading, mean, score},
};

/// Published models of one family, method and rate.
struct Stop<'a> {
    place: Place,
    changes: Vec<Change<'a>>,
}

/// A family and method, from little to much compression.
struct Others<'a> {
    model: &'a str,
    method: &'a str,
    stops: Vec<Stop<'a>>,
}

fn others<'a>(published: &'a Published, axis: Axis) -> Vec<Others<'a>> {
    let mut all: Vec<Others<'a>> = Vec::new();
    for change in published.changes() {
        let place = match (axis, change.row.kind) {
            (Axis::Bits, Kind::Quantised) => change.row.bits.map(Place::At),
            (Axis::Sparsity, Kind::Sparse) => change.row.sparsity.map(|share| {
                if super::axis::is_pattern(&change.row.rate) {
                    Place::Pattern(change.row.rate.clone(), share)
                } else {
                    Place::At(share)
                }
            }),
            _ => None,
        };
        let Some(place) = place else { continue };
        let (model, method) = (change.row.model.as_str(), change.row.method.as_str());
        let at = all.iter().position(|one| one.model == model && one.method == method).unwrap_or_else(|| {
            all.push(Others { model, method, stops: Vec::new() });
            all.len() - 1
        });
        match all[at].stops.iter_mut().find(|stop| stop.place == place) {
            Some(stop) => stop.changes.push(change),
            None => all[at].stops.push(Stop { place, changes: vec![change] }),
        }
    }
    for one in &mut all {
        let order = |place: &Place| match place {
            Place::At(value) if axis == Axis::Bits => -value,
            Place::At(value) | Place::Pattern(_, value) => *value,
        };
        one.stops.sort_by(|a, b| order(&a.place).total_cmp(&order(&b.place)));
    }
    all
}

/// Methods in the order of the table, whose shapes tell them apart.
fn methods<'a>(others: &[Others<'a>]) -> Vec<&'a str> {
    let mut methods = Vec::new();
    for one in others {
        if !methods.contains(&one.method) {
            methods.push(one.method);
        }
    }
    methods
}

fn grey(others: &[Others<'_>], column: usize, slot: usize) -> Vec<Series> {
    let methods = methods(others);
    let line = |one: &Others<'_>| {
        let value = |stop: &Stop<'_>| {
            let y = mean(stop.changes.iter().filter_map(|change| change.deltas[column]))?;
            let first = stop.changes.first()?;
            let seeds = match stop.changes.len() {
                1 => String::new(),
                count => format!(", mean of {count} seeds"),
            };
            let refused = |row: &crate::curve::published::Row| row.refusals.get(column).copied().flatten();
            let mut tip = vec![
                format!("{} {}, {}", one.model, one.method, first.row.rate),
                format!("published: Δ {}{seeds}", change(Some(y))),
                format!("dense {}", score(first.dense.scores[column])),
            ];
            if let (Some(before), Some(after)) =
                (refused(first.dense), mean(stop.changes.iter().filter_map(|c| refused(c.row))))
            {
                tip.push(format!("refusals {} % → {} %", score(Some(before)), score(Some(after))));
            }
            let name = format!("published {} {} {}", one.model, one.method, first.row.rate);
            Some(Value { place: stop.place.clone(), y, band: None, hollow: true, name, tip, seeds: Vec::new() })
        };
        Series {
            label: None,
            ink: Ink::Published,
            glyph: methods.iter().position(|method| *method == one.method).unwrap_or(0) % GLYPHS,
            slot: Some(slot),
            joined: true,
            values: one.stops.iter().filter_map(value).collect(),
        }
    };
    others.iter().map(line).collect()
}

/// See [`Figure::beside`].
pub fn figure(curve: &Curve, published: &Published, axis: Axis, lines: &[Line<'_>]) -> Option<Figure> {
    let others = others(published, axis);
    if others.is_empty() {
        return None;
    }
    let beside = lines.len() < panel::MOST_LABELS;
    let names = lines.iter().filter(|_| beside).map(|line| line.name.as_str());
    let right = panel::right(names.chain(["dense"]));
    let ours = lines.iter().flat_map(|line| line.stops.iter().map(|stop| &stop.place));
    let theirs = others.iter().flat_map(|one| one.stops.iter().map(|stop| &stop.place));
    let horizontal = Horizontal::new(axis, ours.chain(theirs), lines.len() + 1, panel::left(), right);
    let zero = [Level { y: 0.0, band: None, label: "dense".into(), means: Means::Dense }];
    let mut drawn = Vec::new();
    for (column, (theirs, name)) in DIMENSIONS.iter().enumerate() {
        if !curve.dimensions.iter().any(|dense| dense.name == *name) {
            continue;
        }
        let own = series(lines, beside, " points", |point| {
            let found = point.dimensions.iter().find(|found| found.name == *name)?;
            let y = finite(found.delta)?.clamp(-100.0, 100.0);
            // The table has no intervals, and ours are in the panels above.
            Some(Taken { y, band: None, hollow: found.refusal_shift || found.constant, says: dimension_says(found) })
        });
        let mut series = grey(&others, column, lines.len());
        series.extend(own);
        drawn.push((*theirs, *name, series));
    }
    // One scale for all, so that heights compare.
    let ends = drawn.iter().map(|(.., series)| range(&zero, series));
    let ends = ends.reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)))?;
    let panel = |(theirs, name, series): (&str, &str, Vec<Series>)| {
        let scale = Vertical::even(ends, true);
        let content = Content { scale, levels: zero.to_vec(), series, grey: false, axis: axis.label() };
        let title = heading(name);
        let named: Vec<Series> = content.series.iter().filter(|one| one.label.is_some()).cloned().collect();
        Panel {
            name: name.into(),
            note: format!("Δ in points · published as {}", words::clean(theirs)),
            caution: None,
            alternative: alternative(
                &format!("{title}, Δ; ours in words"),
                &Content { series: named, ..content.clone() },
            ),
            scene: panel::draw(&content, &horizontal, right),
            title,
        }
    };
    let key = methods(&others).into_iter().enumerate().map(|(number, method)| (method.to_string(), number)).collect();
    Some(Figure { axis, key, panels: drawn.into_iter().map(panel).collect() })
}
