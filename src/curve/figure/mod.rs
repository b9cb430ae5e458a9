//! From the record to panels: one a dimension, and three that sum up, on a shared axis of rates.
//!
//! A method is a line, points that differ in the calibration seed alone are one value, their mean, with the seeds as dots.
//! The interval around a value is the paired one of Δ, moved to the score: from dense + Δ low to dense + Δ high. It
//! leaves the dense line out where the change is sure.

pub mod axis;

pub mod panel;

mod published;

use axis::{Axis, Horizontal, Place, Vertical};
use panel::{Content, Level, Means, Series, Value};

use super::{
    data::{Band, Curve, DenseDimension, Kind, Point, PointDimension},
    published::Published,
    scene::{Ink, Scene, glyph_of},
    words::{self, change, change_interval, counted, finite, heading, mean, perplexity, probability, score},
};

/// Panels that share an axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What they share.
    pub axis: Axis,
    /// The lines' names where there are too many to stand beside each plot.
    pub key: Vec<(String, usize)>,
    /// Those that sum up first, then one a dimension.
    pub panels: Vec<Panel>,
}

/// A plot and its heading.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// `worst`, `mean-absolute`, `perplexity` or the dimension's name.
    pub name: String,
    /// Its heading.
    pub title: String,
    /// Under the heading.
    pub note: String,
    /// What keeps it from being taken at its face.
    pub caution: Option<String>,
    /// All of it in words, for who does not see it.
    pub alternative: String,
    /// The plot.
    pub scene: Scene,
}

/// Points of one method and rate.
struct Stop<'a> {
    name: String,
    place: Place,
    points: Vec<&'a Point>,
}

/// One method from little to much compression.
struct Line<'a> {
    name: String,
    joined: bool,
    stops: Vec<Stop<'a>>,
}

impl Stop<'_> {
    /// Where and of what it is, for headings of its values.
    fn title(&self) -> String {
        let point = self.points[0];
        format!("{}, {}", line_name(point), point.rate)
    }
}

/// Models of others' making are no steps of one method.
fn line_name(point: &Point) -> &str {
    if point.kind == Kind::Given { &point.name } else { &point.series }
}

/// The rate in figures: `4.25 bits per weight`.
pub fn rate(point: &Point) -> String {
    let mut parts = Vec::new();
    if let Some(bits) = finite(point.bits_per_weight) {
        parts.push(format!("{} bits per weight", words::bits(bits)));
    }
    if let Some(share) = finite(point.sparsity) {
        parts.push(format!("{} % zeros", words::bits(100.0 * share)));
    }
    if let Some(layers) = point.layers_dropped {
        parts.push(format!("{} taken out", counted(layers, "layer")));
    }
    parts.join(", ")
}

/// The lines of one axis, in the order of the sweep.
fn lines<'a>(curve: &'a Curve, axis: Axis) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    for point in &curve.points {
        let Some((found, place)) = Axis::of(point, curve.dense.bits_per_weight) else { continue };
        if found != axis {
            continue;
        }
        let name = line_name(point);
        let joined = point.kind != Kind::Given;
        let at = lines.iter().position(|line| line.name == name && line.joined == joined);
        let at = at.unwrap_or_else(|| {
            lines.push(Line { name: name.into(), joined, stops: Vec::new() });
            lines.len() - 1
        });
        let setting = curve.settings.iter().find(|setting| setting.points.contains(&point.name));
        let stop = setting.map_or(&point.name, |setting| &setting.name);
        match lines[at].stops.iter_mut().find(|known| known.name == *stop && known.place == place) {
            Some(known) => known.points.push(point),
            None => lines[at].stops.push(Stop { name: stop.clone(), place, points: vec![point] }),
        }
    }
    for line in &mut lines {
        let order = |place: &Place| match place {
            Place::At(value) if axis == Axis::Bits => (0, -value),
            Place::At(value) => (0, *value),
            Place::Pattern(_, share) => (1, *share),
        };
        line.stops.sort_by(|a, b| {
            let (a, b) = (order(&a.place), order(&b.place));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
    }
    lines
}

/// The points of the record that have no rate a figure could show, by name.
pub fn undrawn(curve: &Curve) -> Vec<&str> {
    let outside = |point: &&Point| Axis::of(point, curve.dense.bits_per_weight).is_none();
    curve.points.iter().filter(outside).map(|point| point.name.as_str()).collect()
}

/// What one panel takes from a point: the value, its interval, whether it is not to be compared, and what it says.
struct Taken {
    y: f64,
    band: Option<(f64, f64)>,
    hollow: bool,
    says: Vec<String>,
}

/// The lines as one panel shows them.
fn series(lines: &[Line<'_>], label: bool, unit: &str, take: impl Fn(&Point) -> Option<Taken>) -> Vec<Series> {
    let value = |stop: &Stop<'_>| {
        let taken: Vec<(&Point, Taken)> = stop.points.iter().filter_map(|point| Some((*point, take(point)?))).collect();
        let y = mean(taken.iter().map(|(_, taken)| taken.y))?;
        let tip = |point: &Point, seed: Option<u64>, taken: &Taken| {
            let seed = seed.map_or(String::new(), |seed| format!(", seed {seed}"));
            let head = format!("{}, {}{seed}", line_name(point), point.rate);
            [head].into_iter().chain(taken.says.iter().cloned()).chain([rate(point)]).collect::<Vec<_>>()
        };
        if let [(point, one)] = &taken[..] {
            return Some(Value {
                place: stop.place.clone(),
                y,
                band: one.band,
                hollow: one.hollow,
                name: stop.name.clone(),
                tip: tip(point, None, one),
                seeds: Vec::new(),
            });
        }
        let low = mean(taken.iter().filter_map(|(_, taken)| Some(taken.band?.0)));
        let high = mean(taken.iter().filter_map(|(_, taken)| Some(taken.band?.1)));
        let ends = taken.iter().map(|(_, taken)| taken.y);
        let (least, most) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)));
        let says = vec![
            stop.title(),
            format!("mean of {} seeds: {}{unit}", taken.len(), words::number(y, 1)),
            format!("seeds from {} to {}", words::number(least, 1), words::number(most, 1)),
            rate(stop.points[0]),
        ];
        Some(Value {
            place: stop.place.clone(),
            y,
            band: low.zip(high),
            hollow: taken.iter().any(|(_, taken)| taken.hollow),
            name: stop.name.clone(),
            tip: says,
            seeds: taken
                .iter()
                .map(|(point, one)| (point.name.clone(), one.y, tip(point, point.calibration_seed, one)))
                .collect(),
        })
    };
    let line = |(number, line): (usize, &Line<'_>)| Series {
        label: label.then(|| line.name.clone()),
        ink: Ink::Series(number),
        glyph: glyph_of(number),
        slot: Some(number),
        joined: line.joined,
        values: line.stops.iter().filter_map(value).collect(),
    };
    lines.iter().enumerate().map(line).collect()
}

/// An interval that is one.
pub fn interval(band: Option<Band>) -> Option<(f64, f64)> {
    band.filter(|band| band.low.is_finite() && band.high.is_finite() && band.low <= band.high)
        .map(|band| (band.low, band.high))
}

/// A model this far gone is gone; more would press all others together.
const MOST_PERPLEXITY: f64 = 1e7;

/// A score where a panel can show it.
fn shown(value: f64) -> f64 {
    value.clamp(0.0, 100.0)
}

/// Least and largest of everything that must be seen.
fn range(levels: &[Level], series: &[Series]) -> (f64, f64) {
    let levels = levels.iter().flat_map(|level| [Some(level.y), level.band.map(|b| b.0), level.band.map(|b| b.1)]);
    let values = series.iter().flat_map(|series| &series.values);
    let seeds = values.clone().flat_map(|value| &value.seeds).map(|(_, y, _)| Some(*y));
    let values = values.flat_map(|value| [Some(value.y), value.band.map(|b| b.0), value.band.map(|b| b.1)]);
    let all = levels.chain(seeds).chain(values).flatten();
    let (low, high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)));
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// What a value of a dimension says of itself.
fn dimension_says(found: &PointDimension) -> Vec<String> {
    let mut says = vec![format!("score {}", score(found.score))];
    let band = interval(found.delta_interval)
        .map_or(String::new(), |(low, high)| format!(" ({})", change_interval(low, high)));
    says.push(format!("Δ {}{band}", change(found.delta)));
    says.push(format!("p {} after Holm", probability(found.p_adjusted)));
    says.push(format!("{} lost, {} gained", counted(found.lost, "item"), found.gained));
    if found.refusal_shift {
        says.push(format!("refusals shifted to {} %: not comparable", score(Some(found.refusal_rate))));
    }
    if found.constant {
        says.push("nearly the same answer to every item".into());
    }
    says
}

/// A dimension's panel before its window is chosen.
fn dimension(curve: &Curve, dense: &DenseDimension, lines: &[Line<'_>], label: bool) -> (Vec<Level>, Vec<Series>) {
    let mut levels = Vec::new();
    if let Some(y) = finite(dense.score).map(shown) {
        let band = interval(dense.interval).map(|(low, high)| (shown(low), shown(high)));
        levels.push(Level { y, band, label: "dense".into(), means: Means::Dense });
    }
    if let Some(y) = finite(dense.chance).map(shown) {
        levels.push(Level { y, band: None, label: "chance".into(), means: Means::Chance });
    }
    for reference in &curve.references {
        let found = reference.dimensions.iter().find(|found| found.name == dense.name);
        if let Some(y) = found.and_then(|found| finite(found.score)).map(shown) {
            levels.push(Level { y, band: None, label: reference.name.clone(), means: Means::Reference });
        }
    }
    let take = |point: &Point| {
        let found = point.dimensions.iter().find(|found| found.name == dense.name)?;
        let y = shown(finite(found.score)?);
        let around = |(low, high)| {
            let dense = finite(dense.score)?;
            Some((shown(dense + low), shown(dense + high)))
        };
        let band = interval(found.delta_interval).and_then(around);
        Some(Taken { y, band, hollow: found.refusal_shift || found.constant, says: dimension_says(found) })
    };
    (levels, series(lines, label, "", take))
}

/// Why a dimension of the dense model says nothing, where it does.
pub fn caution(dense: &DenseDimension) -> Option<String> {
    if finite(dense.score).is_none() {
        return Some("The dense model has no score here".into());
    }
    if dense.constant {
        return Some("Says nothing: the dense model gives one answer to nearly all".into());
    }
    (dense.informative == Some(false)).then(|| "Says nothing: the dense model is at chance".into())
}

impl Figure {
    /// The panels of one axis; none where no point of the record has a place on it.
    pub fn of(curve: &Curve, axis: Axis) -> Option<Self> {
        let lines = lines(curve, axis);
        if lines.is_empty() {
            return None;
        }
        let levels = 2 + curve.references.len();
        let beside = lines.len() + levels <= panel::MOST_LABELS;
        let names: Vec<&str> = lines.iter().filter(|_| beside).map(|line| line.name.as_str()).collect();
        let references = curve.references.iter().map(|reference| reference.name.as_str());
        let right = panel::right(names.iter().copied().chain(references).chain(["chance"]));
        let places = || lines.iter().flat_map(|line| line.stops.iter().map(|stop| &stop.place));
        let horizontal = Horizontal::new(axis, places(), lines.len(), panel::left(), right);
        let draw = |content: &Content| panel::draw(content, &horizontal, right);

        let mut panels = sums(curve, axis, &lines, beside)
            .into_iter()
            .map(|(name, title, note, content)| Panel {
                alternative: alternative(&title, &content),
                scene: draw(&content),
                name: name.into(),
                title,
                note,
                caution: None,
            })
            .collect::<Vec<_>>();
        let dimensions: Vec<_> = curve.dimensions.iter().map(|dense| dimension(curve, dense, &lines, beside)).collect();
        let ranges: Vec<_> = dimensions.iter().map(|(levels, series)| range(levels, series)).collect();
        let span = Vertical::common_span(ranges.iter().copied());
        for ((dense, (levels, series)), range) in curve.dimensions.iter().zip(dimensions).zip(ranges) {
            let scale = Vertical::scores(range, span);
            let caution = caution(dense);
            let content = Content { scale, levels, series, grey: caution.is_some(), axis: axis.label() };
            let title = heading(&dense.name);
            let chance = finite(dense.chance)
                .map_or("no chance level".into(), |chance| format!("chance {}", score(Some(chance))));
            let note = format!("{} · dense {} · {chance}", counted(dense.items, "item"), score(dense.score));
            let alternative = alternative(&title, &content);
            panels.push(Panel { name: dense.name.clone(), title, note, caution, alternative, scene: draw(&content) });
        }
        let key =
            lines.iter().enumerate().filter(|_| !beside).map(|(number, line)| (line.name.clone(), number)).collect();
        Some(Self { axis, key, panels })
    }

    /// Differences of ours and of published models in one panel a dimension; none where the table has nothing on `axis`.
    pub fn beside(curve: &Curve, published: &Published, axis: Axis) -> Option<Self> {
        published::figure(curve, published, axis, &lines(curve, axis))
    }
}

/// The panels that sum up: name, title, note and content.
fn sums(curve: &Curve, axis: Axis, lines: &[Line<'_>], label: bool) -> Vec<(&'static str, String, String, Content)> {
    let zero = || Level { y: 0.0, band: None, label: "dense".into(), means: Means::Dense };
    let content = |scale, levels, series| Content { scale, levels, series, grey: false, axis: axis.label() };
    let worst = series(lines, label, " points", |point| {
        let (name, delta) = point.worst.as_ref()?;
        let y = delta.is_finite().then_some(*delta)?.clamp(-100.0, 100.0);
        let says = vec![format!("worst: {}", heading(name).to_lowercase()), format!("Δ {}", change(Some(*delta)))];
        let compared = point.dimensions.iter().find(|found| found.name == *name);
        let hollow = compared.is_some_and(|found| found.refusal_shift || found.constant);
        Some(Taken { y, band: None, hollow, says })
    });
    let mean_absolute = series(lines, label, " points", |point| {
        let y = finite(point.mean_absolute)?;
        let mut says = vec![format!("mean |Δ| {}", score(Some(y)))];
        let doubtful = point.dimensions.iter().filter(|found| found.refusal_shift || found.constant).count();
        if doubtful > 0 {
            says.push(format!("{} not to be compared", counted(doubtful, "dimension")));
        }
        Some(Taken { y: y.clamp(0.0, 100.0), band: None, hollow: false, says })
    });
    let ppl = series(lines, label, "", |point| {
        let y = finite(point.perplexity).filter(|y| *y > 0.0)?;
        let says = vec![format!("perplexity {}", perplexity(Some(y)))];
        Some(Taken { y: y.min(MOST_PERPLEXITY), band: None, hollow: false, says })
    });
    let mut sums = Vec::new();
    let held = |series: &[Series]| series.iter().any(|series| !series.values.is_empty());
    if held(&worst) {
        let scale = Vertical::even(range(&[zero()], &worst), true);
        let note = "points of the dimension that fell most".into();
        sums.push(("worst", "Worst dimension".into(), note, content(scale, vec![zero()], worst)));
    }
    if held(&mean_absolute) {
        let scale = Vertical::even(range(&[zero()], &mean_absolute), false);
        let note = "points up or down, over all dimensions".into();
        sums.push(("mean-absolute", "Mean |Δ|".into(), note, content(scale, vec![zero()], mean_absolute)));
    }
    if held(&ppl) {
        let dense = finite(curve.dense.perplexity).filter(|y| *y > 0.0);
        let level = |y| Level { y, band: None, label: "dense".into(), means: Means::Dense };
        let levels: Vec<Level> = dense.map(level).into_iter().collect();
        let scale = Vertical::ratios(range(&levels, &ppl));
        let note = format!("dense {} · lower is better", perplexity(dense));
        sums.push(("perplexity", "Perplexity".into(), note, content(scale, levels, ppl)));
    }
    sums
}

/// A panel in words.
fn alternative(title: &str, content: &Content) -> String {
    let mut words = format!("{title}.");
    for level in &content.levels {
        words += &format!(" {} {}.", words::clean(&level.label), words::number(level.y, 1));
    }
    for series in content.series.iter().filter(|series| !series.values.is_empty()) {
        let name = series.label.as_deref().unwrap_or_default();
        let values = series.values.iter().map(|value| {
            let rate = match &value.place {
                Place::At(x) if content.axis == Axis::Sparsity.label() => format!("{} %", words::bits(100.0 * x)),
                Place::At(x) => words::bits(*x),
                Place::Pattern(name, _) => words::clean(name),
            };
            format!("{} at {rate}", words::number(value.y, 1))
        });
        words += &format!(" {}: {}.", words::clean(name), values.collect::<Vec<_>>().join(", "));
    }
    words
}

#[cfg(test)]
mod tests;
