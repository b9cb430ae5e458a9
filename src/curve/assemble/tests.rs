use super::super::{
    data::{Kind, PointDimension},
    sweep::What,
};
use super::*;

fn dimension(name: &str, delta: Option<f64>, p: Option<f64>) -> PointDimension {
    PointDimension {
        name: name.into(),
        score: delta.map(|delta| 50.0 + delta),
        interval: None,
        delta,
        delta_interval: None,
        p,
        p_adjusted: None,
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

fn point(name: &str, dimensions: Vec<PointDimension>) -> Point {
    Point {
        name: name.into(),
        series: "gptq".into(),
        rate: "3 bits".into(),
        kind: Kind::Quantised,
        bits_per_weight: Some(3.25),
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

fn asked(name: &str, setting: &str, seed: Option<u64>) -> Asked {
    Asked {
        name: name.into(),
        setting: setting.into(),
        series: "gptq".into(),
        rate: None,
        kind: Kind::Quantised,
        seed,
        what: What::Given("x".into()),
    }
}

#[test]
fn seeds_of_a_setting_spread_as_by_hand() {
    let asked = [
        asked("gptq-3", "gptq-3", Some(0)),
        asked("rtn-3", "rtn-3", None),
        asked("gptq-3-seed1", "gptq-3", Some(1)),
        asked("gptq-3-seed2", "gptq-3", Some(2)),
        asked("awq-3", "awq-3", Some(0)),
        // Of that name, and made otherwise.
        Asked { what: What::Given("y".into()), ..asked("gptq-3-seed3", "gptq-3", Some(3)) },
    ];
    let with = |ethics, privacy| vec![dimension("machine-ethics", ethics, None), dimension("privacy", privacy, None)];
    let points = [
        point("gptq-3", with(Some(-1.0), Some(2.0))),
        point("rtn-3", with(Some(9.0), Some(9.0))),
        point("gptq-3-seed1", with(Some(-4.0), None)),
        point("gptq-3-seed2", with(Some(-7.0), None)),
        point("awq-3", with(Some(9.0), Some(9.0))),
        point("gptq-3-seed3", with(Some(9.0), Some(9.0))),
    ];
    let found = settings(&asked.iter().collect::<Vec<_>>(), &points);
    let [setting] = &found[..] else { panic!("{found:?}") };
    assert_eq!((setting.name.as_str(), setting.points.len()), ("gptq-3", 3));
    // Mean of −1, −4, −7; sample deviation √((9 + 0 + 9) / 2).
    assert_eq!((setting.dimensions[0].mean, setting.dimensions[0].deviation), (Some(-4.0), Some(3.0)));
    assert_eq!((setting.dimensions[1].mean, setting.dimensions[1].deviation), (Some(2.0), None));
}

#[test]
fn p_values_are_one_family_over_all_points() {
    let mut points = [
        point("a", vec![dimension("x", Some(1.0), Some(0.01)), dimension("y", Some(1.0), None)]),
        point("b", vec![dimension("x", Some(1.0), Some(0.03)), dimension("y", Some(1.0), Some(0.02))]),
    ];
    adjust(&mut points);
    let adjusted = |point: usize, at: usize| points[point].dimensions[at].p_adjusted;
    // Holm: 3 · 0.01, then 2 · 0.02, and 1 · 0.03 but not below that.
    assert_eq!((adjusted(0, 0), adjusted(1, 1), adjusted(1, 0)), (Some(0.03), Some(0.04), Some(0.04)));
    assert_eq!(adjusted(0, 1), None);
}
