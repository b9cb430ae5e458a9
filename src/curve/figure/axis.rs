//! Where a value stands: rates from left to right, from little to much compression, and scores from bottom to top.

use crate::curve::{data, words};

/// What the panels of a figure share from left to right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Bits per weight on a logarithmic scale, fewer to the right.
    Bits,
    /// Share of zeros without a pattern, and beside it the patterns n:m.
    Sparsity,
    /// Layers taken out.
    Layers,
}

/// A place on an [`Axis`].
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// A number.
    At(f64),
    /// A pattern of zeros, as people say it, with its share of zeros.
    Pattern(String, f64),
}

/// From fewest to most bits that a scale can hold.
const BITS: std::ops::RangeInclusive<f64> = 0.01..=64.0;

/// A given model with so many zeros is one of zeros, unless its bits fell too.
const GIVEN_IS_SPARSE: f64 = 0.05;

impl Axis {
    /// All of them, in the order they are shown.
    pub const ALL: [Self; 3] = [Self::Bits, Self::Sparsity, Self::Layers];

    /// What a figure is called in file names and anchors.
    pub fn file(self) -> &'static str {
        match self {
            Self::Bits => "curve",
            Self::Sparsity => "sparsity",
            Self::Layers => "layers",
        }
    }

    /// What a figure is called in headings.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Bits => "Fewer bits",
            Self::Sparsity => "More zeros",
            Self::Layers => "Fewer layers",
        }
    }

    /// What stands under the axis.
    pub fn label(self) -> &'static str {
        match self {
            Self::Bits => "bits per weight (fewer →)",
            Self::Sparsity => "zeros among weights (more →)",
            Self::Layers => "layers taken out",
        }
    }

    /// The axis `point` belongs to and its place there; none where the record has no rate that can be drawn.
    pub fn of(point: &data::Point, dense_bits: f64) -> Option<(Self, Place)> {
        let bits = || words::finite(point.bits_per_weight).filter(|bits| BITS.contains(bits));
        let sparsity = || words::finite(point.sparsity).filter(|share| (0.0..=1.0).contains(share));
        let by_bits = || Some((Self::Bits, Place::At(bits()?)));
        let by_zeros = || {
            let share = sparsity()?;
            let place =
                if is_pattern(&point.rate) { Place::Pattern(point.rate.clone(), share) } else { Place::At(share) };
            Some((Self::Sparsity, place))
        };
        match point.kind {
            data::Kind::Quantised | data::Kind::Shared => by_bits(),
            data::Kind::Sparse => by_zeros(),
            data::Kind::Layers => Some((Self::Layers, Place::At(point.layers_dropped? as f64))),
            data::Kind::Given => {
                let fewer_bits = bits().is_some_and(|bits| bits < 0.9 * dense_bits);
                if sparsity().is_some_and(|share| share >= GIVEN_IS_SPARSE) && !fewer_bits {
                    by_zeros()
                } else {
                    by_bits()
                }
            }
        }
    }
}

/// Whether a rate is one of n:m, such as `2:4`.
pub fn is_pattern(rate: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.len() <= 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    rate.split_once(':').is_some_and(|(keep, of)| number(keep) && number(of))
}

/// Places of one axis between two ends, in pixels.
#[derive(Debug, Clone)]
pub struct Horizontal {
    axis: Axis,
    /// Least and largest number, and the pixels they stand at.
    numbers: Option<((f64, f64), (f64, f64))>,
    /// All numbers, from least to largest.
    values: Vec<f64>,
    /// Patterns, and the middle of the first one's column.
    patterns: Vec<String>,
    first: f64,
    column: f64,
    /// Distance between two series at the same place.
    dodge: f64,
    series: usize,
}

/// Room between the numbers and the patterns.
const GAP: f64 = 12.0;

impl Horizontal {
    /// An axis for all of `places` between `left` and `right`, on which `series` points may stand side by side.
    pub fn new<'a>(
        axis: Axis,
        places: impl IntoIterator<Item = &'a Place>,
        series: usize,
        left: f64,
        right: f64,
    ) -> Self {
        let mut numbers: Option<(f64, f64)> = None;
        let mut values = Vec::new();
        let mut patterns: Vec<(f64, usize, String)> = Vec::new();
        for place in places {
            match place {
                Place::At(value) => {
                    let (low, high) = numbers.unwrap_or((*value, *value));
                    numbers = Some((low.min(*value), high.max(*value)));
                    values.push(*value);
                }
                Place::Pattern(name, share) if !patterns.iter().any(|(.., known)| known == name) => {
                    // Larger groups leave more choice, so 4:8 comes before 2:4.
                    let of = name.split_once(':').and_then(|(_, of)| of.parse().ok()).unwrap_or(0);
                    patterns.push((*share, of, name.clone()));
                }
                Place::Pattern(..) => {}
            }
        }
        patterns.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)));
        let series = series.max(1);
        let width = right - left;
        let share = if numbers.is_some() { 0.55 } else { 1.0 };
        let most = if numbers.is_some() { 44.0 } else { 90.0 };
        let column = (width * share / patterns.len().max(1) as f64).min(most);
        let taken = column * patterns.len() as f64;
        let room = if patterns.is_empty() { 24.0 } else { column * 0.7 };
        let dodge = (room / series as f64).min(6.0);
        let inner = 9.0 + dodge * series as f64 / 2.0;
        let end = if patterns.is_empty() { right } else { right - taken - GAP };
        let first = if numbers.is_some() { right - taken } else { (left + right - taken) / 2.0 } + column / 2.0;
        let numbers = numbers.map(|ends| (ends, (left + inner, end - inner)));
        values.sort_by(f64::total_cmp);
        values.dedup();
        Self {
            axis,
            numbers,
            values,
            patterns: patterns.into_iter().map(|(.., name)| name).collect(),
            first,
            column,
            dodge,
            series,
        }
    }

    fn scaled(&self, value: f64) -> f64 {
        if self.axis == Axis::Bits { -value.log2() } else { value }
    }

    fn at(&self, value: f64) -> Option<f64> {
        let ((low, high), (left, right)) = self.numbers?;
        let (mut from, mut to) = (self.scaled(low), self.scaled(high));
        if from > to {
            (from, to) = (to, from);
        }
        let share = if to > from { (self.scaled(value) - from) / (to - from) } else { 0.5 };
        Some(left + share * (right - left))
    }

    /// Where series `slot` stands at `place`; no series stands in the middle.
    pub fn x(&self, place: &Place, slot: Option<usize>) -> Option<f64> {
        let middle = match place {
            Place::At(value) => self.at(*value)?,
            Place::Pattern(name, _) => {
                let at = self.patterns.iter().position(|known| known == name)?;
                self.first + at as f64 * self.column
            }
        };
        let aside = slot.map_or(0.0, |slot| slot as f64 - (self.series - 1) as f64 / 2.0);
        Some(middle + aside * self.dodge)
    }

    /// The pixel between numbers and patterns, where both are.
    pub fn divide(&self) -> Option<f64> {
        (self.numbers.is_some() && !self.patterns.is_empty()).then(|| self.first - self.column / 2.0 - GAP / 2.0)
    }

    /// Labels and their pixels; no two are closer than their widths.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        let mut ticks: Vec<(f64, String)> = Vec::new();
        if let Some(((low, high), _)) = self.numbers {
            // Round numbers of bits, which methods only come near to; elsewhere the very numbers there are.
            let round: &[f64] = match self.axis {
                Axis::Bits => &[32.0, 16.0, 12.0, 8.0, 6.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.5, 0.25, 0.1],
                Axis::Sparsity | Axis::Layers => &self.values,
            };
            let slack = if self.axis == Axis::Bits { 0.02 * high } else { 0.0 };
            let held = |value: &f64| (low - slack..=high + slack).contains(value);
            let mut chosen: Vec<f64> = round.iter().copied().filter(held).collect();
            if chosen.len() < 2 {
                chosen = vec![low, high];
            }
            chosen.sort_by(|a, b| self.scaled(*a).total_cmp(&self.scaled(*b)));
            for value in chosen {
                let label = match self.axis {
                    Axis::Bits => words::bits(value),
                    Axis::Sparsity => format!("{} %", words::bits((value * 1000.0).round() / 10.0)),
                    Axis::Layers => words::number(value, 0),
                };
                let Some(x) = self.at(value) else { continue };
                let room = |text: &str| 3.4 * text.chars().count() as f64 + 4.0;
                if ticks.last().is_none_or(|(last, text)| x - last >= room(text) + room(&label)) {
                    ticks.push((x, label));
                }
            }
        }
        for (at, name) in self.patterns.iter().enumerate() {
            ticks.push((self.first + at as f64 * self.column, name.clone()));
        }
        ticks
    }
}

/// Values from bottom to top.
#[derive(Debug, Clone, PartialEq)]
pub struct Vertical {
    low: f64,
    high: f64,
    logarithmic: bool,
    /// Values that get a line, and their labels.
    pub ticks: Vec<(f64, String)>,
}

/// Scores run to here.
const FULL: f64 = 100.0;

impl Vertical {
    /// How much of the 100 points the widest of these ranges takes, with some room, in tens.
    pub fn common_span(ranges: impl IntoIterator<Item = (f64, f64)>) -> f64 {
        let widest = ranges.into_iter().fold(0.0f64, |widest, (low, high)| widest.max(high - low));
        ((widest / 10.0).ceil() * 10.0 + 10.0).clamp(20.0, FULL)
    }

    /// Scores: `span` points around `low` to `high`, inside of 0 to 100.
    pub fn scores((low, high): (f64, f64), span: f64) -> Self {
        let start = (((low + high - span) / 2.0 / 5.0).floor() * 5.0).clamp(0.0, FULL - span);
        let step = if span <= 40.0 { 10.0 } else { 20.0 };
        let first = (start / step).ceil() * step;
        let ticks = (0..=10).map(|at| first + f64::from(at) * step).filter(|value| *value <= start + span);
        let ticks = ticks.map(|value| (value, words::number(value, 0))).collect();
        Self { low: start, high: start + span, logarithmic: false, ticks }
    }

    /// Any values on an even scale with a few round ticks.
    pub fn even((low, high): (f64, f64), signed: bool) -> Self {
        let span = (high - low).max(1.0);
        let (low, high) = (low - 0.04 * span, high + 0.04 * span);
        let raw = (high - low) / 5.0;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= raw).unwrap_or(raw);
        let first = (low / step).ceil() * step;
        let digits = usize::from(step < 1.0);
        let label = |value: f64| {
            let text = words::number(value, digits);
            if signed && value > step / 2.0 { format!("+{text}") } else { text }
        };
        let ticks = (0..=6).map(|at| first + f64::from(at) * step).filter(|value| *value <= high);
        Self { low, high, logarithmic: false, ticks: ticks.map(|value| (value, label(value))).collect() }
    }

    /// Values above 0 whose ratios count.
    pub fn ratios((low, high): (f64, f64)) -> Self {
        if high < 3.0 * low {
            return Self::even((low, high), false);
        }
        let mut ticks = Vec::new();
        let decades = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
        let every = (decades.clone().count() / 6).max(1);
        for decade in decades.clone().step_by(every) {
            for digit in if decades.clone().count() <= 3 { vec![1.0, 2.0, 5.0] } else { vec![1.0] } {
                let value = digit * 10f64.powi(decade);
                if (low / 1.1..=high * 1.1).contains(&value) {
                    ticks.push((value, short(value)));
                }
            }
        }
        Self { low: low / 1.1, high: high * 1.1, logarithmic: true, ticks }
    }

    /// Where `value` stands between bottom 0 and top 1; what is beyond stands at the end.
    pub fn share(&self, value: f64) -> f64 {
        let scaled = |value: f64| if self.logarithmic { value.max(1e-300).ln() } else { value };
        let (low, high) = (scaled(self.low), scaled(self.high));
        if high > low { ((scaled(value) - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 }
    }
}

/// A large round number in few characters.
fn short(value: f64) -> String {
    match value {
        value if value < 1.0 => format!("{value}"),
        value if value < 9_999.0 => format!("{value:.0}"),
        value if value < 999_999.0 => format!("{:.0}k", value / 1e3),
        value => format!("{value:.0e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_bits_stand_to_the_right_in_even_steps_of_halving() {
        let places = [2.0, 4.0, 8.0].map(Place::At);
        let axis = Horizontal::new(Axis::Bits, &places, 1, 0.0, 200.0);
        let [two, four, eight] = places.each_ref().map(|place| axis.x(place, None).unwrap());
        assert!(eight < four && four < two && (0.0..=200.0).contains(&eight) && two <= 200.0);
        assert!(((four - eight) - (two - four)).abs() < 1e-9);
        let labels: Vec<_> = axis.ticks().into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, ["8", "6", "4", "3", "2"]);
    }

    #[test]
    fn patterns_stand_apart_from_shares_of_the_same_size() {
        let places =
            [Place::At(0.3), Place::At(0.5), Place::Pattern("2:4".into(), 0.5), Place::Pattern("4:8".into(), 0.5)];
        let axis = Horizontal::new(Axis::Sparsity, &places, 3, 0.0, 220.0);
        let x: Vec<f64> = places.iter().map(|place| axis.x(place, Some(1)).unwrap()).collect();
        let divide = axis.divide().unwrap();
        assert!(x[0] < x[1] && x[1] < divide && divide < x[3] && x[3] < x[2], "{x:?} {divide}");
        assert_eq!(axis.ticks().last().unwrap().1, "2:4");
        assert!(axis.x(&places[0], Some(0)).unwrap() < axis.x(&places[0], Some(2)).unwrap());
        let alone = Horizontal::new(Axis::Sparsity, &places[2..], 1, 0.0, 220.0);
        assert!(alone.divide().is_none() && alone.x(&places[0], None).is_none());
    }

    #[test]
    fn one_place_stands_in_the_middle() {
        let place = Place::At(4.25);
        let axis = Horizontal::new(Axis::Bits, [&place], 1, 0.0, 100.0);
        assert_eq!(axis.x(&place, Some(0)), Some(50.0));
        assert_eq!(axis.ticks(), [(50.0, "4.25".to_string())]);
    }

    #[test]
    fn every_scale_holds_its_values_and_ends() {
        for (low, high) in [(0.0, 0.0), (44.0, 99.0), (99.5, 100.0), (0.0, 100.0), (3.0, 3.1)] {
            let span = Vertical::common_span([(low, high)]);
            let scale = Vertical::scores((low, high), span);
            assert!(scale.low <= low && scale.high >= high && scale.low >= 0.0 && scale.high <= 100.0, "{scale:?}");
            assert!((1..=11).contains(&scale.ticks.len()), "{scale:?}");
        }
        for (low, high) in [(0.0, 0.0), (-47.0, 0.0), (-0.3, 12.0), (-1e9, 1e12), (21.0, 22.0)] {
            let scale = Vertical::even((low, high), true);
            assert!(
                scale.low < low.max(low + 1e-9) && scale.high >= high && (1..=7).contains(&scale.ticks.len()),
                "{scale:?}"
            );
        }
        for (low, high) in [(20.0, 25.0), (20.0, 90.0), (20.0, 9000.0), (3.0, 1e300)] {
            let scale = Vertical::ratios((low, high));
            assert!((1..=8).contains(&scale.ticks.len()), "{scale:?}");
            assert!(scale.share(low) < scale.share(high));
        }
    }

    #[test]
    fn patterns_are_two_short_numbers() {
        assert!(is_pattern("2:4") && is_pattern("16:32"));
        assert!(!is_pattern("50 %") && !is_pattern(":4") && !is_pattern("2:") && !is_pattern("a:b"));
    }
}
