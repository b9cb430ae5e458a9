//! One panel: values and levels become shapes. Direct labels stand right of the plot, each near the end of its line and
//! none on another.

use super::axis::{Horizontal, Place, Vertical};
use crate::curve::{
    scene::{Anchor, Ink, Scene, Shape, Spot},
    words,
};

/// Size of a panel, without its heading.
pub const WIDTH: f64 = 360.0;
/// See [`WIDTH`].
pub const HEIGHT: f64 = 236.0;
/// Ends of the plot in a panel.
const LEFT: f64 = 36.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = HEIGHT - 38.0;
/// Height of labels, and their distance.
const LABEL: f64 = 11.0;
const PITCH: f64 = 13.5;
/// About the width of a letter of a label, in the widest of fonts that are common.
const LETTER: f64 = 6.9;
/// Letters of a label at most.
const LETTERS: usize = 13;
/// From the plot's end to the words of a label.
const LEAD: f64 = 25.0;
/// From a mean to its seeds.
const BESIDE: f64 = 6.6;
/// Labels that fit beside a plot.
pub const MOST_LABELS: usize = ((BOTTOM - TOP) / PITCH) as usize;

/// A value of one line.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Where it stands.
    pub place: Place,
    /// The value.
    pub y: f64,
    /// Its interval.
    pub band: Option<(f64, f64)>,
    /// Not to be compared.
    pub hollow: bool,
    /// See [`Spot::name`].
    pub name: String,
    /// See [`Spot::tip`].
    pub tip: Vec<String>,
    /// What the value is the mean of: name, value, tip.
    pub seeds: Vec<(String, f64, Vec<String>)>,
}

/// Values that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What stands beside its end; nothing for lines whose colour says all.
    pub label: Option<String>,
    /// Its colour.
    pub ink: Ink,
    /// Shape of its points.
    pub glyph: usize,
    /// Place among the series that stand side by side; none stands in the middle.
    pub slot: Option<usize>,
    /// Whether its values are joined by lines.
    pub joined: bool,
    /// From little to much compression.
    pub values: Vec<Value>,
}

/// What a level stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// The model before compression.
    Dense,
    /// A model that knows nothing.
    Chance,
    /// Another dense model.
    Reference,
}

/// A value that holds for all rates.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// The value.
    pub y: f64,
    /// Its interval.
    pub band: Option<(f64, f64)>,
    /// What stands beside it.
    pub label: String,
    /// What it stands for.
    pub means: Means,
}

/// Everything in a panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    /// From bottom to top.
    pub scale: Vertical,
    /// Under the lines.
    pub levels: Vec<Level>,
    /// The lines.
    pub series: Vec<Series>,
    /// The dimension says nothing: the plot's ground is grey.
    pub grey: bool,
    /// What stands under the axis.
    pub axis: &'static str,
}

/// The width of the plot when the longest of these labels stands beside it.
pub fn right<'a>(labels: impl IntoIterator<Item = &'a str>) -> f64 {
    let letters = labels.into_iter().map(|label| label.chars().count().min(LETTERS)).max().unwrap_or(0);
    WIDTH - LEAD - LETTER * letters.max(6) as f64
}

/// Left end of the plot.
pub fn left() -> f64 {
    LEFT
}

/// A label beside the plot.
struct Label {
    y: f64,
    text: String,
    mark: Option<(Ink, usize)>,
    leader: Option<Ink>,
}

/// Draws a panel whose plot ends at `right`.
pub fn draw(content: &Content, horizontal: &Horizontal, right: f64) -> Scene {
    let y = |value: f64| BOTTOM - 6.0 - content.scale.share(value) * (BOTTOM - TOP - 12.0);
    let mut scene = Scene { width: WIDTH, height: HEIGHT, ..Scene::default() };
    let line = |points: Vec<(f64, f64)>, ink, width, dash| Shape::Line { points, ink, width, dash };
    let text = |at, text: String, size, ink, anchor| Shape::Text { at, text, size, ink, anchor };
    let rectangle = |top: f64, bottom: f64| vec![(LEFT, top), (right, top), (right, bottom), (LEFT, bottom)];
    if content.grey {
        scene.shapes.push(Shape::Area { points: rectangle(TOP, BOTTOM), ink: Ink::Rule, opacity: 0.35 });
    }
    for (value, label) in &content.scale.ticks {
        scene.shapes.push(line(vec![(LEFT, y(*value)), (right, y(*value))], Ink::Rule, 1.0, None));
        scene.shapes.push(text((LEFT - 6.0, y(*value)), label.clone(), LABEL - 0.5, Ink::Faint, Anchor::End));
    }
    scene.shapes.push(line(vec![(LEFT, BOTTOM), (right, BOTTOM)], Ink::Faint, 1.0, None));
    if let Some(x) = horizontal.divide() {
        scene.shapes.push(line(vec![(x, TOP), (x, BOTTOM)], Ink::Rule, 1.0, None));
    }
    for (x, label) in horizontal.ticks() {
        scene.shapes.push(line(vec![(x, BOTTOM), (x, BOTTOM + 4.0)], Ink::Faint, 1.0, None));
        scene.shapes.push(text((x, BOTTOM + 13.0), label, LABEL - 0.5, Ink::Faint, Anchor::Middle));
    }
    let middle = (LEFT + right) / 2.0;
    scene.shapes.push(text((middle, BOTTOM + 29.0), content.axis.into(), LABEL, Ink::Faint, Anchor::Middle));

    let mut labels = Vec::new();
    for level in &content.levels {
        if let Some((low, high)) = level.band {
            scene.shapes.push(Shape::Area { points: rectangle(y(high), y(low)), ink: Ink::Dense, opacity: 0.09 });
        }
        let (ink, width, dash) = match level.means {
            Means::Dense => (Ink::Dense, 1.4, None),
            Means::Chance => (Ink::Faint, 1.2, Some((1.5, 3.0))),
            Means::Reference => (Ink::Faint, 1.0, Some((7.0, 3.5))),
        };
        let at = y(level.y);
        scene.shapes.push(line(vec![(LEFT, at), (right, at)], ink, width, dash));
        labels.push(Label { y: at, text: level.label.clone(), mark: None, leader: Some(ink) });
    }
    for (number, series) in content.series.iter().enumerate() {
        let place = |value: &Value| Some((horizontal.x(&value.place, series.slot)?, y(value.y)));
        let placed: Vec<(f64, f64, &Value)> =
            series.values.iter().filter_map(|value| place(value).map(|(x, at)| (x, at, value))).collect();
        let strong = series.ink != Ink::Published;
        // Patterns are no steps of one scale: nothing joins them.
        let run: Vec<_> = placed.iter().filter(|(.., value)| matches!(value.place, Place::At(_))).collect();
        if series.joined {
            let band = |(x, _, value): &&(f64, f64, &Value)| value.band.map(|(low, high)| (*x, y(low), y(high)));
            let banded: Vec<_> = run.iter().filter_map(band).collect();
            if banded.len() > 1 {
                let upper = banded.iter().map(|(x, _, high)| (*x, *high));
                let lower = banded.iter().rev().map(|(x, low, _)| (*x, *low));
                let points = upper.chain(lower).collect();
                scene.shapes.push(Shape::Area { points, ink: series.ink, opacity: 0.1 });
            }
            if run.len() > 1 {
                let points = run.iter().map(|(x, at, _)| (*x, *at)).collect();
                scene.shapes.push(line(points, series.ink, if strong { 1.8 } else { 0.9 }, None));
            }
        }
        for &(x, at, value) in &placed {
            if let Some((low, high)) = value.band {
                scene.shapes.push(line(vec![(x, y(low)), (x, y(high))], series.ink, 1.1, None));
            }
            let spot = |at, radius, hollow, name: &str, tip: &[String]| Spot {
                at,
                glyph: series.glyph,
                radius,
                ink: series.ink,
                hollow,
                name: name.into(),
                line: number,
                tip: tip.to_vec(),
            };
            let radius = if strong { 4.2 } else { 2.6 };
            scene.spots.push(spot((x, at), radius, value.hollow || !strong, &value.name, &value.tip));
            for (name, value, tip) in &value.seeds {
                scene.spots.push(spot((x + BESIDE, y(*value)), 1.9, false, name, tip));
            }
        }
        if let (Some(label), Some(&(x, at, _))) = (&series.label, placed.last()) {
            let leader = (right - x < 60.0).then_some(series.ink);
            labels.push(Label { y: at, text: label.clone(), mark: Some((series.ink, series.glyph)), leader });
        }
    }
    for (label, at) in spread(labels) {
        if let Some(ink) = label.leader {
            scene.shapes.push(line(vec![(right + 1.0, label.y), (right + 10.0, at)], ink, 0.7, None));
        }
        if let Some((ink, glyph)) = label.mark {
            scene.shapes.push(Shape::Glyph { at: (right + 16.0, at), glyph, radius: 3.4, ink });
        }
        let start = right + if label.mark.is_some() { LEAD - 1.0 } else { 12.5 };
        let ink = if label.mark.is_some() { Ink::Text } else { Ink::Faint };
        let words = words::clip(&words::clean(&label.text), LETTERS);
        scene.shapes.push(text((start, at), words, LABEL, ink, Anchor::Start));
    }
    scene
}

/// Moves labels up and down until none stands on another, as little as their order allows.
fn spread(mut labels: Vec<Label>) -> Vec<(Label, f64)> {
    labels.sort_by(|a, b| a.y.total_cmp(&b.y));
    let count = labels.len();
    let pitch = PITCH.min((BOTTOM - TOP) / count.max(1) as f64);
    let lowest = |at: usize| BOTTOM - 4.0 - pitch * (count - 1 - at) as f64;
    // Groups of touching labels, each around the mean of where its labels want to be.
    let mut groups: Vec<(f64, usize)> = Vec::new();
    for label in &labels {
        groups.push((label.y, 1));
        while let [.., (above, n), (below, m)] = groups[..]
            && below - above < pitch * (n + m) as f64 / 2.0
        {
            groups.truncate(groups.len() - 2);
            let centre = (above * n as f64 + below * m as f64) / (n + m) as f64;
            groups.push((centre, n + m));
        }
    }
    let mut places = Vec::with_capacity(count);
    for (centre, n) in groups {
        places.extend((0..n).map(|at| centre + pitch * (at as f64 - (n - 1) as f64 / 2.0)));
    }
    let mut least = TOP + 2.0;
    for (at, place) in places.iter_mut().enumerate() {
        *place = place.max(least).min(lowest(at).max(least));
        least = *place + pitch;
    }
    labels.into_iter().zip(places).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_their_order_and_their_distance() {
        for wishes in
            [vec![50.0; 6], vec![0.0, 1.0, 2.0], vec![300.0, 299.0, 10.0], vec![80.0, 20.0, 81.0, 150.0, 82.0]]
        {
            let label = |y: f64| Label { y, text: y.to_string(), mark: None, leader: None };
            let placed = spread(wishes.iter().map(|y| label(*y)).collect());
            for pair in placed.windows(2) {
                assert!(pair[0].0.y <= pair[1].0.y);
                assert!(pair[1].1 - pair[0].1 >= PITCH - 1e-9, "{wishes:?}");
            }
            assert!(placed.iter().all(|(_, at)| (TOP..=BOTTOM).contains(at)), "{wishes:?}");
        }
        let far = spread(vec![Label { y: 90.0, text: String::new(), mark: None, leader: None }]);
        assert_eq!(far[0].1, 90.0, "a label alone stays where it wants to be");
    }
}
