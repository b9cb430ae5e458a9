use super::super::{
    assemble::shown as interval,
    data::{Band, Dense, Draws, FORMAT, Kind, SuiteName},
};
use super::*;

fn dimension(name: &str, delta: f64, half: f64, p: f64) -> PointDimension {
    PointDimension {
        name: name.into(),
        score: Some(50.0 + delta),
        interval: None,
        delta: Some(delta),
        delta_interval: Some(Band { low: delta - half, high: delta + half }),
        p: Some(p),
        p_adjusted: Some(p),
        lost: 0,
        gained: 0,
        kl: None,
        refusal_rate: 0.0,
        unparsable_rate: 0.0,
        refusal_shift: false,
        constant: false,
        flips: Vec::new(),
    }
}

fn point(series: &str, rate: &str, bits: f64, dimensions: Vec<PointDimension>) -> Point {
    Point {
        name: format!("{series}-{}", &rate[..1]),
        series: series.into(),
        rate: rate.into(),
        kind: Kind::Quantised,
        bits_per_weight: Some(bits),
        sparsity: None,
        layers_dropped: None,
        tensor_bytes: 1,
        calibration_seed: None,
        tensors_sha256: String::new(),
        perplexity: None,
        kl: None,
        dimensions,
        worst: None,
        mean_absolute: None,
    }
}

fn curve(points: Vec<Point>) -> Curve {
    Curve {
        curve: FORMAT,
        scruple: "0".into(),
        dense: Dense {
            name: "dense".into(),
            tensors_sha256: String::new(),
            parameters: 1,
            tensor_bytes: 1,
            bits_per_weight: 16.0,
            perplexity: None,
        },
        suite: SuiteName { name: "suite".into(), sha256: String::new(), embedded: true },
        calibration: None,
        bootstrap: Draws { replicates: 1, seed: 0 },
        dimensions: Vec::new(),
        points,
        settings: Vec::new(),
        references: Vec::new(),
        failures: Vec::new(),
        toxicity_scorer: None,
        verdict: Vec::new(),
        warnings: Vec::new(),
    }
}

#[test]
fn each_method_is_followed_to_the_smallest_rate_that_costs_nothing() {
    let ethics = |delta, p| vec![dimension("privacy", 0.5, 1.0, 1.0), dimension("ethics", delta, 2.0, p)];
    let points = vec![
        point("gptq", "2 bits", 2.3, ethics(-9.0, 0.001)),
        point("gptq", "3 bits", 3.3, ethics(-1.0, 0.4)),
        // A second seed at the same rate counts as much as the first.
        point("gptq", "4 bits", 4.3, ethics(0.0, 1.0)),
        point("gptq", "4 bits", 4.3, ethics(-3.0, 0.01)),
        point("rtn", "4 bits", 4.3, ethics(-5.0, 0.001)),
        point("rtn", "3 bits", 3.3, ethics(-7.0, 0.001)),
    ];
    let line = free(&curve(points));
    assert!(line.contains("gptq to 3 bits (farthest ethics -1.0 [-3.0, 1.0]), though not at 4 bits"), "{line}");
    assert!(line.contains("rtn at no rate, 4 bits already (farthest ethics -5.0 [-7.0, -3.0])"), "{line}");
    assert!(free(&curve(Vec::new())).starts_with("Nothing was compared"));
    // A pattern leaves less choice than a share, wherever it stands.
    let points = ["2:4", "50 %", "4:8"]
        .map(|rate| point("wanda", rate, 8.0, ethics(-1.0, if rate == "2:4" { 0.01 } else { 0.4 })));
    let line = free(&curve(points.into()));
    assert!(line.contains("wanda to 4:8 ("), "{line}");
    // To fall into one answer is the worst that can happen.
    let mut constant = dimension("ethics", -9.0, 1.0, 0.001);
    constant.constant = true;
    let line = free(&curve(vec![point("rtn", "4 bits", 4.3, vec![constant, dimension("privacy", 0.5, 1.0, 1.0)])]));
    assert!(
        line.contains("rtn at no rate, 4 bits already (farthest ethics -9.0 [-10.0, -8.0], one answer to nearly all)"),
        "{line}"
    );
    // Fewer layers out are milder, whatever their order in the sweep.
    let drop = |layers: usize, p| Point {
        layers_dropped: Some(layers),
        ..point("drop", &format!("{layers} layers"), 16.0, ethics(-9.0, p))
    };
    let line = free(&curve(vec![drop(8, 0.001), drop(1, 0.4)]));
    assert!(line.contains("drop to 1 layers (") && !line.contains("though"), "{line}");
}

#[test]
fn the_worst_fall_is_told_with_what_an_average_hides() {
    let line = worst(&curve(vec![
        point("a", "4 bits", 4.0, vec![dimension("x", -12.0, 4.0, 0.004), dimension("y", 8.0, 3.0, 0.2)]),
        point("b", "4 bits", 4.0, vec![dimension("x", -3.0, 4.0, 1.0)]),
    ]));
    for words in [
        "x -12.0 [-16.0, -8.0] points at a-4",
        "p 0.0040",
        "mean |Δ| over 2 dimensions is 10.0, which hides 2.0 points",
        "mean Δ is -2.0, which hides 10.0 points of it.",
    ] {
        assert!(line.contains(words), "`{words}` is not in: {line}");
    }
    // A sure fall goes before a lower one that is not, which is told too.
    let unsure =
        vec![dimension("x", -30.0, 40.0, 0.8), dimension("y", -2.0, 1.0, 0.01), dimension("z", 44.0, 50.0, 1.0)];
    let line = worst(&curve(vec![point("a", "4 bits", 4.0, unsure)]));
    for words in [
        "The worst fall is y -2.0 [-3.0, -1.0] points at a-4",
        "is 25.3, and mean Δ is 4.0, a rise",
        "lower, but not sure after Holm, is x -30.0 [-70.0, 10.0] at a-4.",
    ] {
        assert!(line.contains(words), "`{words}` is not in: {line}");
    }
    let line = worst(&curve(vec![point("b", "4 bits", 4.0, vec![dimension("x", -3.0, 4.0, 0.8)])]));
    assert!(line.contains("chance alone may have made, p 0.80"), "{line}");
    let rise = point("b", "4 bits", 4.0, vec![dimension("x", 3.0, 4.0, 0.8)]);
    assert_eq!(worst(&curve(vec![rise])), "No dimension fell at any point.");
}

#[test]
fn what_says_nothing_is_named() {
    let mut shifted = dimension("privacy", 3.0, 1.0, 1.0);
    shifted.refusal_shift = true;
    let mut constant = dimension("ethics", 3.0, 1.0, 1.0);
    constant.constant = true;
    let points = (0..6).map(|_| point("a", "4 bits", 4.0, vec![shifted.clone(), constant.clone()])).collect();
    let mut curve = curve(points);
    curve.dimensions.push(DenseDimension {
        name: "knowledge".into(),
        rule: "likelihood 1".into(),
        items: 10,
        clusters: 10,
        chance: Some(25.0),
        score: Some(27.0),
        interval: Some(Band { low: 20.0, high: 34.0 }),
        refusal_rate: 0.0,
        unparsable_rate: 0.0,
        informative: Some(false),
        constant: false,
    });
    let knowledge = curve.dimensions[0].clone();
    curve.dimensions.push(DenseDimension { name: "fairness".into(), constant: true, ..knowledge });
    let line = silent(&curve);
    for words in [
        "knowledge 27.0 [20.0, 34.0] at chance 25.0",
        "privacy at a-4, a-4, a-4 and 3 more",
        "ethics at a-4",
        "the dense model gives one and the same answer to nearly all items of fairness",
    ] {
        assert!(line.contains(words), "`{words}` is not in: {line}");
    }
    assert_eq!(interval(Band { low: -0.0, high: 0.0 }), "[0.0, 0.0]");
}
