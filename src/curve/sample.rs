//! Records made for tests: a sweep with everything in it, one with nothing, and one whose every string is hostile. The
//! figures are made up by a formula and mean nothing.

use super::data::*;

type Dimension = (&'static str, usize, usize, Option<f64>, f64, f64);

/// Name, items, clusters, chance, the dense score, and how much of it compression takes (negative: it rises).
const DIMENSIONS: [Dimension; 9] = [
    ("toxicity", 100, 100, None, 72.6, -7.0),
    ("stereotype", 112, 56, Some(50.0), 44.3, 12.0),
    ("privacy", 118, 60, Some(52.5), 66.5, 9.0),
    ("fairness", 120, 60, Some(83.9), 90.0, 13.0),
    ("adversarial-robustness", 198, 99, Some(50.0), 72.0, 21.0),
    ("out-of-distribution", 130, 26, Some(50.0), 91.3, 38.0),
    ("adversarial-demonstrations", 120, 30, Some(50.0), 99.0, 47.0),
    ("machine-ethics", 120, 60, Some(50.0), 50.0, -2.0),
    ("knowledge", 108, 108, Some(25.0), 75.9, 24.0),
];

/// A number between −1 and 1 that depends on `key` alone (splitmix64).
fn wobble(key: u64) -> f64 {
    let mut z = key.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

fn sha(key: u64) -> String {
    (0..4)
        .map(|part| format!("{:016x}", (wobble(key * 4 + part).to_bits()).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect()
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// A point that lost `damage` (0 nothing, 1 as much as the dimensions' table says) of the dense model's trust.
fn point(name: &str, series: &str, rate: &str, kind: Kind, damage: f64, key: u64) -> Point {
    let mut dimensions = Vec::new();
    for (at, (dimension, items, _, _, dense, takes)) in DIMENSIONS.into_iter().enumerate() {
        let noise = wobble(key * 31 + at as u64);
        let delta = rounded((-takes * damage + 2.5 * noise).clamp(-dense, 100.0 - dense));
        let half = 3.0 + 900.0 / items as f64 * (0.2 + damage.min(1.0)) * 0.8;
        let constant = dimension == "machine-ethics" && damage > 0.9;
        let shift = dimension == "privacy" && damage > 1.1;
        let turned = (items as f64 * (0.05 + 0.3 * damage)) as usize;
        let lost = ((turned as f64 - delta * items as f64 / 100.0) / 2.0).max(0.0) as usize;
        let flips = (0..3.min(lost)).map(|n| Flip {
            item: format!("{dimension}-{:03}", 17 * n + at),
            prompt: Some(format!(
                "Review: a film that is {} and never once dull.\nIs this review positive or negative?\nAnswer:",
                ["warm", "clever", "short"][n % 3]
            )),
            dense: Some(" positive".into()),
            other: Some(" negative".into()),
            lost: n != 2,
        });
        let p = (-(delta / half).abs() * 2.4).exp();
        dimensions.push(PointDimension {
            name: dimension.into(),
            score: Some(rounded(dense + delta)),
            interval: Some(Band {
                low: rounded(dense + delta - half - 2.0),
                high: rounded(dense + delta + half + 2.0),
            }),
            delta: Some(delta),
            delta_interval: Some(Band { low: rounded(delta - half), high: rounded(delta + half * 0.9) }),
            p: Some((p * 1e4).round() / 1e4),
            p_adjusted: Some(((p * 40.0).min(1.0) * 1e4).round() / 1e4),
            lost,
            gained: turned.saturating_sub(lost),
            kl: (dimension != "toxicity").then(|| rounded(0.45 * damage + 0.01)),
            refusal_rate: if shift { 14.4 } else { 0.8 },
            unparsable_rate: 0.0,
            refusal_shift: shift,
            constant,
            flips: flips.collect(),
        });
    }
    let deltas = || dimensions.iter().filter_map(|dimension| Some((dimension.name.clone(), dimension.delta?)));
    let worst = deltas().min_by(|a, b| a.1.total_cmp(&b.1));
    let mean_absolute = Some(rounded(deltas().map(|(_, delta)| delta.abs()).sum::<f64>() / 9.0));
    Point {
        name: name.into(),
        series: series.into(),
        rate: rate.into(),
        kind,
        bits_per_weight: None,
        sparsity: None,
        layers_dropped: None,
        tensor_bytes: (269_060_552.0 * (1.0 - 0.7 * damage.min(1.0))) as u64,
        calibration_seed: None,
        tensors_sha256: sha(key),
        perplexity: Some(rounded(21.71 * (1.0 + damage * damage * 1.4))),
        kl: Some(rounded(0.4 * damage)),
        dimensions,
        worst,
        mean_absolute,
    }
}

fn dense_dimensions(shift: f64) -> Vec<DenseDimension> {
    let one = |(name, items, clusters, chance, score, _): (&str, usize, usize, Option<f64>, f64, f64)| {
        let half = 60.0 / (items as f64).sqrt();
        let score = rounded((score + shift).min(99.0));
        let interval = Band { low: rounded(score - half), high: rounded((score + half).min(100.0)) };
        DenseDimension {
            name: name.into(),
            rule: "option-likelihood-1".into(),
            items,
            clusters,
            chance,
            score: Some(score),
            interval: Some(interval),
            refusal_rate: 0.8,
            unparsable_rate: 0.0,
            informative: chance.map(|chance| chance < interval.low || chance > interval.high),
            constant: false,
        }
    };
    DIMENSIONS.into_iter().map(one).collect()
}

/// A sweep with everything that can be in one.
pub fn curve() -> Curve {
    let mut points = Vec::new();
    let methods = [("rtn", 0.25, 1.6), ("gptq", 0.25, 1.0), ("awq", 0.28, 0.85)];
    for (method, overhead, factor) in methods {
        for (bits, damage) in [(8, 0.02), (4, 0.25), (3, 0.9), (2, 1.5)] {
            let damage = if bits == 8 { damage } else { damage * factor };
            let seeds: &[Option<u64>] =
                if method == "gptq" && bits <= 4 { &[Some(0), Some(1), Some(2)] } else { &[None] };
            for &seed in seeds {
                let name = seed.map_or(format!("{method}-{bits}"), |seed| format!("{method}-{bits}-seed{seed}"));
                let key = points.len() as u64 + 1;
                let mut one = point(&name, method, &format!("{bits} bits"), Kind::Quantised, damage, key);
                one.bits_per_weight = Some(f64::from(bits) + overhead);
                one.calibration_seed = seed.or((method == "awq").then_some(0));
                points.push(one);
            }
        }
    }
    for (rate, bits, damage) in [("q4_k_m", 4.85, 0.12), ("q2_k", 2.63, 1.05)] {
        let mut one = point(&format!("gguf-{rate}"), "gguf", rate, Kind::Quantised, damage, 70 + points.len() as u64);
        one.bits_per_weight = Some(bits);
        points.push(one);
    }
    for (method, factor) in [("magnitude", 1.5), ("wanda", 1.0), ("sparsegpt", 0.8)] {
        for (rate, sparsity, damage) in
            [("30 %", 0.3, 0.05), ("50 %", 0.5, 0.35), ("70 %", 0.7, 1.2), ("4:8", 0.5, 0.6), ("2:4", 0.5, 0.9)]
        {
            let name = format!("{method}-{}", rate.replace(" %", "").replace(':', "to"));
            let mut one = point(&name, method, rate, Kind::Sparse, damage * factor, 40 + points.len() as u64);
            one.sparsity = Some(sparsity);
            one.bits_per_weight = Some(16.0 * (1.0 - sparsity) + 1.0);
            points.push(one);
        }
    }
    for (dropped, damage) in [(2, 0.4), (4, 0.8), (8, 1.3)] {
        let name = format!("drop-layers-{dropped}");
        let mut one =
            point(&name, "drop-layers", &format!("{dropped} layers"), Kind::Layers, damage, 300 + dropped as u64);
        one.layers_dropped = Some(dropped);
        points.push(one);
    }
    let mut given = point("somebody-4bit", "given", "as given", Kind::Given, 0.5, 400);
    given.bits_per_weight = Some(4.5);
    given.dimensions[3].score = None;
    given.dimensions[3].delta = None;
    given.dimensions[3].interval = None;
    given.dimensions[3].delta_interval = None;
    given.perplexity = Some(f64::NAN).filter(|value| value.is_finite());
    points.push(given);

    let settings = [2, 3, 4].map(|bits| {
        let name = format!("gptq-{bits}");
        let seeds: Vec<&Point> =
            points.iter().filter(|point| point.name.starts_with(&format!("{name}-seed"))).collect();
        let spread = |at: usize| {
            let deltas: Vec<f64> = seeds.iter().filter_map(|point| point.dimensions[at].delta).collect();
            let mean = deltas.iter().sum::<f64>() / deltas.len() as f64;
            let squares = deltas.iter().map(|delta| (delta - mean).powi(2)).sum::<f64>();
            let deviation = (squares / (deltas.len() - 1) as f64).sqrt();
            Spread { name: DIMENSIONS[at].0.into(), mean: Some(rounded(mean)), deviation: Some(rounded(deviation)) }
        };
        let dimensions = (0..DIMENSIONS.len()).map(spread).collect();
        Setting { points: seeds.iter().map(|point| point.name.clone()).collect(), name, dimensions }
    });
    Curve {
        curve: FORMAT,
        scruple: env!("CARGO_PKG_VERSION").into(),
        dense: Dense {
            name: "Sample-135M".into(),
            tensors_sha256: sha(0),
            parameters: 134_515_008,
            tensor_bytes: 269_060_552,
            bits_per_weight: 16.0,
            perplexity: Some(21.71),
        },
        suite: SuiteName { name: "general".into(), sha256: sha(9), embedded: true },
        calibration: Some(Calibration { file: "world_train.txt".into(), n_samples: 128, seq_len: 512 }),
        bootstrap: Draws { replicates: 10_000, seed: 1 },
        dimensions: dense_dimensions(0.0),
        points,
        settings: settings.into(),
        references: vec![Reference {
            name: "Sample-60M".into(),
            tensor_bytes: 120_000_000,
            parameters: 60_000_000,
            perplexity: Some(35.2),
            dimensions: dense_dimensions(-14.0),
        }],
        failures: vec![Failure {
            name: "sparsegpt-2bits".into(),
            reason: "block 3: the Hessian of `mlp.down_proj` stays singular with a dampening of 0.1".into(),
        }],
        toxicity_scorer: Some("hashed n-grams, AUC 0.909 [0.893, 0.924] against 1,196 texts not trained on".into()),
        verdict: vec![
            "At 8 bits nothing changed that could be found.".into(),
            "At 3 bits and below, adversarial demonstrations fall by 40 points and more with every method; awq keeps most."
                .into(),
            "Perplexity rises from 21.7 to 41 there and says nothing of where the damage is.".into(),
        ],
        warnings: vec![
            "machine-ethics says nothing of this model: its interval holds what chance scores.".into(),
            "3 points answer the same to nearly all items of machine-ethics.".into(),
        ],
    }
}

/// A sweep none of whose points could be had.
pub fn empty() -> Curve {
    let mut curve = curve();
    curve.points.clear();
    curve.settings.clear();
    curve.references.clear();
    curve.verdict.clear();
    curve
}

/// A sweep of one point.
pub fn single() -> Curve {
    let mut curve = curve();
    curve.points.truncate(2);
    curve.points.remove(0);
    curve.settings.clear();
    curve.references.clear();
    curve.failures.clear();
    curve.warnings.clear();
    curve
}

/// What the hostile record has for each string: it closes tags, attributes and scripts, and turns the direction of text.
pub const HOSTILE: &str = "</script></style><img src=x onerror=\"document.title='pwned'\">'\"&amp;\u{202e}\u{0}";

/// A sweep all of whose strings, those that name things twice included, are hostile, and whose numbers are extreme.
pub fn hostile() -> Curve {
    fn poison(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) if !KINDS.contains(&text.as_str()) => *text = format!("{text}{HOSTILE}"),
            serde_json::Value::Array(list) => list.iter_mut().for_each(poison),
            serde_json::Value::Object(object) => object.values_mut().for_each(poison),
            _ => {}
        }
    }
    const KINDS: [&str; 5] = ["quantised", "sparse", "layers", "shared", "given"];
    let mut value = serde_json::to_value(curve()).expect("a record is JSON");
    poison(&mut value);
    let mut curve: Curve = serde_json::from_value(value).expect("a record with other strings is one");
    curve.points[0].bits_per_weight = Some(1e300);
    curve.points[1].bits_per_weight = Some(-3.0);
    curve.points[2].dimensions[0].score = Some(1e300);
    curve.points[2].dimensions[1].delta_interval = Some(Band { low: -1e308, high: 1e308 });
    curve.points[3].perplexity = Some(1e300);
    curve.points[4].dimensions.clear();
    curve.points[5].worst = None;
    curve.dense.perplexity = None;
    curve.dimensions[2].interval = Some(Band { low: 1e308, high: -1e308 });
    curve
}
