//! A sweep in three lines of words: how far each method goes unpunished, the worst that happened, and what says nothing.
//! Every claim comes with its interval.

use super::{
    assemble::shown,
    data::{Curve, DenseDimension, Point, PointDimension, SURE},
    words::points,
};

/// Points named one by one; of more, how many there are.
const NAMED: usize = 3;

/// The three lines.
pub fn of(curve: &Curve) -> Vec<String> {
    vec![free(curve), worst(curve), silent(curve)]
}

/// Whether a dimension differs from the dense model's after Holm.
fn differs(dimension: &PointDimension) -> bool {
    dimension.is_sure()
}

/// A Δ with its interval and its dimension: `stereotype −3.2 [−5.0, −1.1]`.
fn told(dimension: &PointDimension) -> Option<String> {
    let (delta, interval) = (dimension.delta?, dimension.delta_interval?);
    let constant = if dimension.constant { ", one answer to nearly all" } else { "" };
    Some(format!("{} {} {}{constant}", dimension.name, points(delta), shown(interval)))
}

/// The dimension with the largest |Δ| that has an interval, of those of which `counts` says so.
fn farthest<'a>(points: &[&'a Point], counts: fn(&PointDimension) -> bool) -> Option<&'a PointDimension> {
    let dimensions = points.iter().flat_map(|point| &point.dimensions).filter(|one| counts(one));
    let moved = dimensions.filter_map(|one| Some((one, one.delta.filter(|_| one.delta_interval.is_some())?.abs())));
    moved
        .fold(None, |best: Option<(&PointDimension, f64)>, next| match best {
            Some(best) if best.1 >= next.1 => Some(best),
            _ => Some(next),
        })
        .map(|(dimension, _)| dimension)
}

/// What is left of a weight: bits, less those of zeros.
fn left(point: &Point) -> f64 {
    point.bits_per_weight.unwrap_or(f64::INFINITY) * (1.0 - point.sparsity.unwrap_or(0.0))
}

/// Neighbours among which a pattern chooses: fewer leave less choice. None without a pattern.
fn neighbours(rate: &str) -> usize {
    rate.split_once(':').and_then(|(_, of)| of.parse().ok()).unwrap_or(usize::MAX)
}

/// The points of one series at one rate: one, or one a calibration seed.
struct Rate<'a> {
    rate: &'a str,
    points: Vec<&'a Point>,
}

impl Rate<'_> {
    fn is_free(&self) -> bool {
        !self.points.iter().flat_map(|point| &point.dimensions).any(differs)
    }

    /// The dimension that moved farthest, of those that differ where some do.
    fn farthest(&self) -> String {
        let counts = if self.is_free() { |_: &PointDimension| true } else { differs };
        farthest(&self.points, counts).and_then(told).map_or(String::new(), |told| format!(" (farthest {told})"))
    }
}

/// How far each series goes before a dimension differs.
fn free(curve: &Curve) -> String {
    let mut series: Vec<(&str, Vec<Rate<'_>>)> = Vec::new();
    let measured = curve.points.iter().filter(|point| point.dimensions.iter().any(|one| one.p_adjusted.is_some()));
    for point in measured {
        let place = series.iter().position(|(name, _)| *name == point.series).unwrap_or_else(|| {
            series.push((&point.series, Vec::new()));
            series.len() - 1
        });
        let rates = &mut series[place].1;
        match rates.iter_mut().find(|rate| rate.rate == point.rate) {
            Some(rate) => rate.points.push(point),
            None => rates.push(Rate { rate: &point.rate, points: vec![point] }),
        }
    }
    if series.is_empty() {
        return "Nothing was compared, so nothing can be said of any method.".into();
    }
    let mut parts = Vec::new();
    for (name, mut rates) in series {
        // From the mildest on; of equals, in the order of the sweep.
        rates.sort_by(|a, b| {
            let dropped = |rate: &Rate<'_>| rate.points[0].layers_dropped.unwrap_or(0);
            let more_left = left(b.points[0]).total_cmp(&left(a.points[0]));
            dropped(a).cmp(&dropped(b)).then(more_left).then_with(|| neighbours(b.rate).cmp(&neighbours(a.rate)))
        });
        parts.push(match rates.iter().rposition(Rate::is_free) {
            Some(at) => {
                let milder: Vec<&str> =
                    rates[..at].iter().filter(|rate| !rate.is_free()).map(|rate| rate.rate).collect();
                let though =
                    if milder.is_empty() { String::new() } else { format!(", though not at {}", milder.join(", ")) };
                format!("{name} to {}{}{though}", rates[at].rate, rates[at].farthest())
            }
            None => format!("{name} at no rate, {} already{}", rates[0].rate, rates[0].farthest()),
        });
    }
    format!("No dimension differs from the dense model after Holm: {}.", parts.join("; "))
}

/// The worst fall that is sure, or without one the worst of all, and what an average makes of it.
fn worst(curve: &Curve) -> String {
    let fell = |one: &&PointDimension| one.delta_interval.is_some() && one.delta.is_some_and(|delta| delta < 0.0);
    let falls =
        || curve.points.iter().flat_map(|point| point.dimensions.iter().filter(fell).map(move |one| (point, one)));
    let delta = |(_, one): &(&Point, &PointDimension)| one.delta.unwrap_or(0.0);
    let lowest = falls().min_by(|a, b| delta(a).total_cmp(&delta(b)));
    let sure = falls().filter(|(_, one)| one.is_sure()).min_by(|a, b| delta(a).total_cmp(&delta(b)));
    let (Some(lowest), Some((point, one))) = (lowest, sure.or(lowest)) else {
        return "No dimension fell at any point.".into();
    };
    let fall = one.delta.unwrap_or(0.0);
    let how = match one.p_adjusted {
        Some(p) if p < 1e-4 => "p below 0.0001 after Holm".into(),
        Some(p) if p < SURE => format!("p {p:.4} after Holm"),
        Some(p) => format!("which chance alone may have made, p {p:.2} after Holm"),
        None => "without a p value".into(),
    };
    let shift = if one.refusal_shift { ", while refusals moved by more than 5 points" } else { "" };
    let deltas: Vec<f64> = point.dimensions.iter().filter_map(|one| one.delta).collect();
    let count = deltas.len() as f64;
    let mean = deltas.iter().sum::<f64>() / count;
    let absolute = deltas.iter().map(|delta| delta.abs()).sum::<f64>() / count;
    let hides =
        |points: f64| if points >= 0.05 { format!(", which hides {points:.1} points of it") } else { String::new() };
    let average = match mean {
        mean if mean > 0.0 => format!(", and mean Δ is {mean:.1}, a rise"),
        mean if mean + absolute < 0.05 => ", all of it downwards".into(),
        mean => format!(", and mean Δ is {}{}", points(mean), hides(mean - fall)),
    };
    let larger = match delta(&lowest) < fall {
        true => {
            format!("; lower, but not sure after Holm, is {} at {}", told(lowest.1).unwrap_or_default(), lowest.0.name)
        }
        false => String::new(),
    };
    format!(
        "The worst fall is {} points at {}, {how}{shift}; there mean |Δ| over {} dimensions is {absolute:.1}{}\
         {average}{larger}.",
        told(one).unwrap_or_default(),
        point.name,
        deltas.len(),
        hides(-fall - absolute),
    )
}

/// The dimensions of which `holds` says so at some points, each with the first of these points: `privacy at gptq-2, rtn-2
/// and 3 more`.
fn places(curve: &Curve, holds: fn(&PointDimension) -> bool) -> String {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for point in &curve.points {
        for one in point.dimensions.iter().filter(|one| holds(one)) {
            match found.iter_mut().find(|(name, _)| *name == one.name) {
                Some((_, points)) => points.push(&point.name),
                None => found.push((&one.name, vec![&point.name])),
            }
        }
    }
    let told = |(name, points): &(&str, Vec<&str>)| {
        let more = points.len().saturating_sub(NAMED);
        let first = points[..points.len() - more].join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{name} at {first}{more}")
    };
    found.iter().map(told).collect::<Vec<_>>().join(", ")
}

/// What says nothing.
fn silent(curve: &Curve) -> String {
    let mut parts = Vec::new();
    let blind = |one: &DenseDimension| {
        let (score, interval, chance) = (one.score?, one.interval?, one.chance?);
        (one.informative == Some(false) && !one.constant)
            .then(|| format!("{} {score:.1} {} at chance {chance:.1}", one.name, shown(interval)))
    };
    let blind: Vec<String> = curve.dimensions.iter().filter_map(blind).collect();
    parts.push(match blind.is_empty() {
        true => "no dimension of the dense model covers chance".to_string(),
        false => format!("the dense model knows no more than chance of {}", blind.join(", ")),
    });
    let same: Vec<&str> = curve.dimensions.iter().filter(|one| one.constant).map(|one| one.name.as_str()).collect();
    if !same.is_empty() {
        parts.push(format!("the dense model gives one and the same answer to nearly all items of {}", same.join(", ")));
    }
    let refused = places(curve, |one| one.refusal_shift);
    parts.push(match refused.is_empty() {
        true => "refusals nowhere moved by more than 5 points".to_string(),
        false => format!("refusals moved by more than 5 points, so that scores are not comparable, in {refused}"),
    });
    let constant = places(curve, |one| one.constant);
    if !constant.is_empty() {
        parts.push(format!("one and the same answer to nearly all items in {constant}"));
    }
    format!("Says nothing: {}.", parts.join("; "))
}

#[cfg(test)]
mod tests;
