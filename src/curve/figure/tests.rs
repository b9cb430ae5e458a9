//! From records to panels.

use super::*;
use crate::curve::{sample, scene::Shape};

fn figure(curve: &Curve, axis: Axis) -> Figure {
    Figure::of(curve, axis).unwrap()
}

fn panel<'a>(figure: &'a Figure, name: &str) -> &'a Panel {
    figure.panels.iter().find(|panel| panel.name == name).unwrap()
}

fn texts(panel: &Panel) -> Vec<&str> {
    let text = |shape: &'_ Shape| matches!(shape, Shape::Text { .. });
    let words = panel.scene.shapes.iter().filter(|shape| text(shape));
    words.map(|shape| if let Shape::Text { text, .. } = shape { text.as_str() } else { "" }).collect()
}

#[test]
fn a_point_stands_at_its_score_and_its_band_around_it() {
    let mut curve = sample::single();
    curve.points[0].dimensions[4].delta = Some(-20.0);
    curve.points[0].dimensions[4].score = Some(52.0);
    curve.points[0].dimensions[4].delta_interval = Some(Band { low: -30.0, high: -8.0 });
    let figure = figure(&curve, Axis::Bits);
    let scene = &panel(&figure, "adversarial-robustness").scene;
    let [spot] = &scene.spots[..] else { panic!("{} spots", scene.spots.len()) };
    let level = |wanted: Ink, bare: bool| {
        let lines = scene.shapes.iter().filter_map(|shape| match shape {
            Shape::Line { points, ink, dash, .. } if *ink == wanted && dash.is_none() == bare => Some(points.clone()),
            _ => None,
        });
        lines.collect::<Vec<_>>()
    };
    // The dense line is at 72, chance at 50: heights follow in proportion.
    let dense = level(Ink::Dense, true)[0][0].1;
    let chance = level(Ink::Faint, false)[0][0].1;
    let per_point = (chance - dense) / 22.0;
    assert!((spot.at.1 - (dense + 20.0 * per_point)).abs() < 1e-6);
    let bar = &level(Ink::Series(0), true)[0];
    assert!(
        (bar[0].1 - (dense + 30.0 * per_point)).abs() < 1e-6 && (bar[1].1 - (dense + 8.0 * per_point)).abs() < 1e-6
    );
    assert_eq!(spot.tip[0], "rtn, 4 bits");
    assert!(spot.tip.iter().any(|line| line == "Δ −20.0 (−30.0 to −8.0)"), "{:?}", spot.tip);
}

#[test]
fn seeds_are_dots_beside_their_mean() {
    let curve = sample::curve();
    let figure = figure(&curve, Axis::Bits);
    let fairness = panel(&figure, "fairness");
    let of = |name: &str| fairness.scene.spots.iter().find(|spot| spot.name == name).unwrap();
    let seeds = [0, 1, 2].map(|seed| of(&format!("gptq-3-seed{seed}")));
    let mean = of("gptq-3");
    assert!((seeds.iter().map(|seed| seed.at.1).sum::<f64>() / 3.0 - mean.at.1).abs() < 1e-6);
    assert!(seeds.iter().all(|seed| seed.radius < mean.radius && seed.at.0 > mean.at.0));
    assert_eq!(mean.tip[0], "gptq, 3 bits");
    assert_eq!(seeds[1].tip[0], "gptq, 3 bits, seed 1");
}

#[test]
fn what_is_not_to_be_compared_is_hollow() {
    let curve = sample::curve();
    let figure = figure(&curve, Axis::Bits);
    let hollow = |dimension: &str, point: &str| {
        panel(&figure, dimension).scene.spots.iter().find(|spot| spot.name == point).unwrap().hollow
    };
    assert!(hollow("privacy", "rtn-2") && hollow("machine-ethics", "rtn-2"));
    assert!(!hollow("privacy", "rtn-4") && !hollow("fairness", "rtn-2"));
}

#[test]
fn a_dimension_at_chance_says_so_in_words() {
    let curve = sample::curve();
    let figure = figure(&curve, Axis::Bits);
    assert_eq!(panel(&figure, "machine-ethics").caution.as_deref(), Some("Says nothing: the dense model is at chance"));
    assert_eq!(panel(&figure, "knowledge").caution, None);
    assert!(texts(panel(&figure, "knowledge")).contains(&"chance"));
    assert!(!texts(panel(&figure, "toxicity")).contains(&"chance"), "it has no chance level");
    assert!(panel(&figure, "toxicity").note.contains("no chance level"));
}

#[test]
fn every_kind_of_point_finds_its_axis() {
    let curve = sample::curve();
    let names = |axis| lines(&curve, axis).into_iter().map(|line| line.name).collect::<Vec<_>>();
    assert_eq!(names(Axis::Bits), ["rtn", "gptq", "awq", "gguf", "somebody-4bit"]);
    assert_eq!(names(Axis::Sparsity), ["magnitude", "wanda", "sparsegpt"]);
    assert_eq!(names(Axis::Layers), ["drop-layers"]);
    assert!(undrawn(&curve).is_empty());
    let mut curve = curve;
    curve.points[0].bits_per_weight = None;
    curve.points[1].bits_per_weight = Some(f64::NAN);
    assert_eq!(undrawn(&curve), ["rtn-8", "rtn-4"]);
    let given = curve.points.last_mut().unwrap();
    (given.sparsity, given.bits_per_weight) = (Some(0.5), Some(16.0));
    assert_eq!(Axis::of(given, 16.0).unwrap().0, Axis::Sparsity);
    given.bits_per_weight = Some(4.5);
    assert_eq!(Axis::of(given, 16.0).unwrap().0, Axis::Bits);
}

#[test]
fn panels_of_dimensions_span_the_same_number_of_points() {
    let curve = sample::curve();
    let figure = figure(&curve, Axis::Bits);
    let dense = |dimension: &DenseDimension| {
        let scene = &panel(&figure, &dimension.name).scene;
        let spot = scene.spots.iter().find(|spot| spot.name == "rtn-4").unwrap();
        let level = scene.shapes.iter().find_map(|shape| match shape {
            Shape::Line { points, ink: Ink::Dense, .. } => Some(points[0].1),
            _ => None,
        });
        let delta =
            curve.points[1].dimensions.iter().find(|found| found.name == dimension.name).unwrap().delta.unwrap();
        (spot.at.1 - level.unwrap()) / delta
    };
    let each: Vec<f64> = curve.dimensions.iter().map(dense).collect();
    assert!(each.iter().all(|height| (height - each[0]).abs() < 1e-6), "{each:?}");
}

#[test]
fn many_methods_get_a_key_instead_of_labels() {
    let mut curve = sample::curve();
    curve.points.retain(|point| point.kind == Kind::Quantised && point.calibration_seed.is_none());
    for (at, point) in curve.points.iter_mut().enumerate() {
        point.series = format!("method-{at}");
    }
    let more: Vec<Point> =
        curve.points.iter().map(|point| Point { series: format!("{}b", point.series), ..point.clone() }).collect();
    curve.points.extend(more);
    let figure = figure(&curve, Axis::Bits);
    assert_eq!(figure.key.len(), lines(&curve, Axis::Bits).len());
    assert!(texts(&figure.panels[0]).iter().all(|text| !text.starts_with("method-")));
    crate::curve::picture::draw(&curve, &figure, crate::curve::picture::Format::Svg).unwrap();
}

#[test]
fn a_panel_can_be_read_without_seeing_it() {
    let curve = sample::single();
    let figure = figure(&curve, Axis::Bits);
    let words = &panel(&figure, "knowledge").alternative;
    let score = score(curve.points[0].dimensions[8].score);
    assert_eq!(*words, format!("Knowledge. dense 75.9. chance 25.0. rtn: {score} at 4.25."));
}
