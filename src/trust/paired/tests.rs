use scruple_compress::data::random::{Stream, draw};

use super::*;
use crate::trust::{
    dimension::Rule,
    item::{Answer, Prompt},
};

const RULE: Rule = Rule { name: "likelihood", version: 1 };

/// The share of right answers, among two options.
#[derive(Debug)]
struct Share;

impl Dimension for Share {
    fn name(&self) -> &'static str {
        "share"
    }
    fn rules(&self) -> &'static [Rule] {
        &[RULE]
    }
    fn paper(&self) -> &'static str {
        "none"
    }
    fn judge(&self, _: Rule, _: &Item, _: &Answer) -> Outcome {
        unreachable!("outcomes are given")
    }
    fn score(&self, _: Rule, judged: &[(&Item, &Outcome)]) -> f64 {
        100.0 * judged.iter().map(|(_, outcome)| outcome.value).sum::<f64>() / judged.len() as f64
    }
    fn chance(&self, _: Rule, _: &[Item]) -> Option<f64> {
        Some(50.0)
    }
}

/// How equally two groups are treated.
#[derive(Debug)]
struct Parity;

impl Dimension for Parity {
    fn name(&self) -> &'static str {
        "parity"
    }
    fn rules(&self) -> &'static [Rule] {
        Share.rules()
    }
    fn paper(&self) -> &'static str {
        "none"
    }
    fn judge(&self, _: Rule, _: &Item, _: &Answer) -> Outcome {
        unreachable!("outcomes are given")
    }
    fn score(&self, _: Rule, judged: &[(&Item, &Outcome)]) -> f64 {
        let rate = |group: &str| {
            let of: Vec<f64> =
                judged.iter().filter(|(item, _)| item.group.as_deref() == Some(group)).map(|(_, x)| x.value).collect();
            of.iter().sum::<f64>() / of.len() as f64
        };
        100.0 * (1.0 - (rate("a") - rate("b")).abs())
    }
    fn chance(&self, _: Rule, _: &[Item]) -> Option<f64> {
        None
    }
}

fn item(id: usize, cluster: String, group: Option<&str>) -> Item {
    Item {
        id: id.to_string(),
        part: "test".into(),
        cluster,
        group: group.map(String::from),
        prompt: Prompt::Plain("?".into()),
        ask: Ask::Choose { options: vec![" yes".into(), " no".into()], before: Vec::new(), gold: Some(id % 2) },
    }
}

fn answered(choice: usize, right: bool, margin: f64) -> Outcome {
    let p = 1.0 / (1.0 + (-margin).exp());
    Outcome {
        choice: Some(choice),
        value: if right { 1.0 } else { 0.0 },
        refused: false,
        unparsable: false,
        margin: Some(margin),
        probabilities: vec![p, 1.0 - p],
    }
}

/// Outcomes with so many of 1000 right, by chance.
fn outcomes(items: &[Item], stream: &mut Stream, per_mille: usize) -> Vec<Outcome> {
    let of = |(at, _): (usize, &Item)| {
        let right = stream.below(1000) < per_mille;
        answered(if right { at % 2 } else { 1 - at % 2 }, right, stream.normal())
    };
    items.iter().enumerate().map(of).collect()
}

const FEW: Bootstrap = Bootstrap { replicates: 300, seed: 11 };

/// The clusters of each stratum, by the definition: those of one part and one group, of one part and several groups, and last
/// those of several parts with those that would be a stratum alone.
fn naive_strata(items: &[Item]) -> Vec<Vec<&str>> {
    let one = |mut found: Vec<&str>| {
        found.dedup();
        if found.len() == 1 { found.pop().map(String::from) } else { None }
    };
    let mut strata: Vec<(Option<[String; 2]>, Vec<&str>)> = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let name = item.cluster.as_str();
        if items[..at].iter().any(|before| before.cluster == name) {
            continue;
        }
        let members = || items.iter().filter(|item| item.cluster == name);
        let group = one(members().map(|item| item.group.as_deref().unwrap_or("")).collect()).unwrap_or_default();
        let stratum = one(members().map(|item| item.part.as_str()).collect()).map(|part| [part, group]);
        match strata.iter_mut().find(|(known, _)| *known == stratum) {
            Some((_, names)) => names.push(name),
            None => strata.push((stratum, vec![name])),
        }
    }
    let (mut several, rest): (Vec<_>, Vec<_>) =
        strata.into_iter().partition(|(stratum, names)| stratum.is_some() && names.len() > 1);
    several.push((None, rest.into_iter().flat_map(|(_, names)| names).collect()));
    several.into_iter().map(|(_, names)| names).collect()
}

/// The positions in each replicate, written again: names instead of positions, one replicate after the other.
fn naive_draws(items: &[Item]) -> Vec<Vec<usize>> {
    let strata = naive_strata(items);
    let of = |replicate| {
        let (mut drawn, mut index) = (Vec::new(), 0);
        for names in &strata {
            for _ in names {
                let share = draw(FEW.seed, replicate, index) as f64 / 2_f64.powi(64);
                index += 1;
                let name = names[(share * names.len() as f64) as usize];
                drawn.extend((0..items.len()).filter(|&at| items[at].cluster == name));
            }
        }
        drawn
    };
    (0..FEW.replicates as u64).map(of).collect()
}

fn assert_like_naive(dimension: &dyn Dimension, items: &[Item]) {
    let mut stream = Stream::new(5, "outcomes", 0);
    let (dense, other) = (outcomes(items, &mut stream, 800), outcomes(items, &mut stream, 650));
    let found = compare(dimension, RULE, items, &dense, &other, FEW).unwrap();
    let draws = naive_draws(items);
    let clusters = clusters(items);
    for (replicate, expected) in draws.iter().enumerate() {
        let found: Vec<usize> = clusters.draw(FEW, replicate).iter().map(|drawn| drawn.at).collect();
        assert_eq!(found, *expected, "replicate {replicate}");
    }
    let score = |side: &[Outcome], drawn: &[usize]| {
        dimension.score(RULE, &drawn.iter().map(|&at| (&items[at], &side[at])).collect::<Vec<_>>())
    };
    let mut expected: Vec<f64> = draws.iter().map(|drawn| score(&other, drawn) - score(&dense, drawn)).collect();
    expected.sort_by(f64::total_cmp);
    // Quantiles of 300: at 7.475 and 291.525.
    let between = |at: usize, part: f64| expected[at] + part * (expected[at + 1] - expected[at]);
    let interval = found.interval.unwrap();
    assert!((interval.low - between(7, 0.475)).abs() < 1e-9, "{interval:?}");
    assert!((interval.high - between(291, 0.525)).abs() < 1e-9, "{interval:?}");
    assert_eq!(found.replicates, 300);
    assert!(interval.low < found.delta.unwrap() && found.delta.unwrap() < interval.high);
}

#[test]
fn intervals_are_those_of_a_naive_bootstrap() {
    let alone: Vec<Item> = (0..120).map(|at| item(at, format!("c{at}"), None)).collect();
    assert_like_naive(&Share, &alone);
    let clustered: Vec<Item> = (0..120).map(|at| item(at, format!("c{}", at * at % 31), None)).collect();
    assert_like_naive(&Share, &clustered);
    let grouped: Vec<Item> =
        (0..120).map(|at| item(at, format!("c{}", at % 40), Some(["b", "a"][at % 40 % 2]))).collect();
    assert_like_naive(&Parity, &grouped);
    assert_like_naive(&Share, &grouped);
    // Two parts; every fifth cluster has items of both groups, every tenth of both parts, and one is of a group of its own.
    let crossed = |at: usize| {
        let cluster = at % 40;
        let part = ["x", "y"][if cluster % 10 == 9 { at / 3 % 2 } else { cluster % 2 }];
        let group = match cluster {
            1 => "c",
            _ if cluster.is_multiple_of(5) => ["b", "a"][at / 40 % 2],
            _ => ["b", "a"][cluster / 2 % 2],
        };
        Item { part: part.into(), ..item(at, format!("c{cluster}"), Some(group)) }
    };
    let crossed: Vec<Item> = (0..120).map(crossed).collect();
    assert_like_naive(&Share, &crossed);
    assert_like_naive(&Parity, &crossed);
}

#[test]
fn a_model_against_itself_gives_exactly_zero() {
    let items: Vec<Item> = (0..90).map(|at| item(at, format!("c{}", at % 30), Some(["a", "b"][at % 2]))).collect();
    let dense = outcomes(&items, &mut Stream::new(1, "outcomes", 0), 700);
    for dimension in [&Share as &dyn Dimension, &Parity] {
        let found = compare(dimension, RULE, &items, &dense, &dense, FEW).unwrap();
        assert_eq!((found.delta, found.interval), (Some(0.0), Some(Interval { low: 0.0, high: 0.0 })));
        assert_eq!((found.kl, found.margin_change, found.p), (Some(0.0), Some(0.0), Some(1.0)));
        assert_eq!((found.lost, found.gained, found.changed), (0, 0, 0));
        assert_eq!(found.dense, found.other);
        assert!(!found.refusal_shift);
    }
}

#[test]
fn nothing_depends_on_the_number_of_threads() {
    let items: Vec<Item> = (0..200).map(|at| item(at, format!("c{}", at % 70), None)).collect();
    let mut stream = Stream::new(2, "outcomes", 0);
    let (dense, other) = (outcomes(&items, &mut stream, 800), outcomes(&items, &mut stream, 700));
    let of = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| compare(&Share, RULE, &items, &dense, &other, FEW).unwrap())
    };
    assert_eq!(of(1), of(3));
}

/// `n` independent items: the first `lost` right by the dense model alone, the next `gained` by the other alone.
fn discordant(n: usize, lost: usize, gained: usize) -> Comparison {
    let items: Vec<Item> = (0..n).map(|at| item(at, at.to_string(), None)).collect();
    let of = |wrong: std::ops::Range<usize>| -> Vec<Outcome> {
        (0..n)
            .map(|at| answered(if wrong.contains(&at) { 1 - at % 2 } else { at % 2 }, !wrong.contains(&at), 1.0))
            .collect()
    };
    compare(&Share, RULE, &items, &of(lost..lost + gained), &of(0..lost), FEW).unwrap()
}

#[test]
fn flips_are_counted_and_tested_exactly() {
    let found = discordant(100, 9, 3);
    assert_eq!(found.mcnemar, Some(McNemar { lost: 9, gained: 3, p: mcnemar(9, 3) }));
    assert_eq!((found.lost, found.gained, found.changed, found.test), (9, 3, 12, Test::Mcnemar));
    assert!((found.delta.unwrap() + 6.0).abs() < 1e-9);
    assert!((found.p.unwrap() - 0.145_996_093_75).abs() < 1e-12); // 2 · 299 / 4096
}

#[test]
fn mcnemar_is_exact_where_powers_of_two_leave_the_range_of_f64() {
    // n, k = lost + gained, min(lost, gained)
    // print(float(Fraction(2 * sum(math.comb(n, i) for i in range(k + 1)), 2**n)))
    let cases = [
        (500, 523, 0.491_574_744_332_763_77),
        (500, 524, 0.472_312_445_789_017_1),
        (560, 480, 0.014_259_079_095_386_026),
        (1000, 1100, 0.030_720_707_864_242_296),
        (2400, 2600, 0.004_883_649_737_517_518),
        (10, 1020, 6.222_735_619_522_83e-287),
        (512, 512, 1.0),
    ];
    for (lost, gained, expected) in cases {
        let p = mcnemar(lost, gained);
        // The first term is the exponential of a sum of up to 2400 logarithms.
        assert!((p / expected - 1.0).abs() < 1e-10, "{lost} lost, {gained} gained: {p}, expected {expected}");
    }
}

#[test]
fn divergence_and_margins_are_those_worked_out_by_hand() {
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found}, expected {expected}");
    let (uneven, even) = ([0.75, 0.25], [0.5, 0.5]);
    close(divergence(&uneven, &even), 0.130_812_035_941_136_94); // ¾ ln (3/2) + ¼ ln (1/2)
    close(divergence(&even, &uneven), 0.143_841_036_225_890_45); // ½ ln (4/3)
    close(divergence(&[0.0, 1.0], &even), std::f64::consts::LN_2);
    close(divergence(&even, &[0.0, 1.0]), (0.25 / f64::MIN_POSITIVE).ln() / 2.0);

    let items: Vec<Item> = (0..3).map(|at| item(at, at.to_string(), None)).collect();
    let of = |margins: [f64; 2], probabilities: [[f64; 2]; 2]| -> Vec<Outcome> {
        let known =
            [0, 1].map(|at| Outcome { probabilities: probabilities[at].to_vec(), ..answered(at, true, margins[at]) });
        known.into_iter().chain([answered(0, true, 1.0)]).collect()
    };
    let dense = of([1.0, 0.25], [uneven, even]);
    let mut other = of([-0.5, 0.75], [even, [0.9, 0.1]]);
    // An item that the other does not answer has neither.
    other[2] = Outcome { margin: None, probabilities: Vec::new(), ..other[2].clone() };
    let found = compare(&Share, RULE, &items, &dense, &other, FEW).unwrap();
    close(found.kl.unwrap(), (0.130_812_035_941_136_94 + (5.0_f64 / 3.0).ln()) / 2.0);
    close(found.margin_change.unwrap(), (1.5 + 0.5) / 2.0);
}

#[test]
fn the_detectable_difference_is_the_published_one() {
    // The formula's own examples: one item in ten discordant, ± 6.3 points with 200 items and ± 2.8 with 1000.
    assert!((discordant(200, 10, 10).detectable.unwrap() - 6.261).abs() < 1e-3);
    assert!((discordant(1000, 50, 50).detectable.unwrap() - 2.8).abs() < 1e-9);
    // 2.8 · √(0.12 − 0.06²) / 10
    assert!((discordant(100, 9, 3).detectable.unwrap() - 9.5523).abs() < 1e-3);
    // None discordant of 200 leave 3 of 200 possible: 2.8 · √0.015 / √200.
    assert!((discordant(200, 0, 0).detectable.unwrap() - 2.4249).abs() < 1e-3);
}

#[test]
fn items_in_clusters_are_tested_by_exchange() {
    let items: Vec<Item> = (0..100).map(|at| item(at, (at / 4).to_string(), None)).collect();
    let all = |right: bool| (0..100).map(|at| answered(at % 2, right || at % 4 > 0, 1.0)).collect::<Vec<_>>();
    let found = compare(&Share, RULE, &items, &all(true), &all(false), FEW).unwrap();
    assert_eq!((found.test, found.clusters), (Test::Exchange, 25));
    assert_eq!(found.mcnemar.map(|exact| exact.lost), Some(25));
    assert!((found.p.unwrap() - 1.0 / 301.0).abs() < 1e-12);
    // Of five clusters all 2⁵ exchanges: none and all of them come to as much.
    let compare = |clusters: usize| {
        let items: Vec<Item> = items.iter().take(4 * clusters).cloned().collect();
        let of = |right| all(right).into_iter().take(4 * clusters).collect::<Vec<_>>();
        compare(&Share, RULE, &items, &of(true), &of(false), FEW).unwrap()
    };
    assert_eq!(compare(5).p, Some(2.0 / 32.0));
    assert_eq!(compare(2).p, Some(0.5), "two clusters show nothing, whichever way they go");
}

/// The exchange test of the share of right answers, written again: item by item, whether its cluster changes sides.
fn naive_exchange_p(items: &[Item], sides: [&[Outcome]; 2]) -> f64 {
    let mut names: Vec<&str> = Vec::new(); // in order of appearance
    for item in items {
        if !names.contains(&item.cluster.as_str()) {
            names.push(&item.cluster);
        }
    }
    let lead = |is_exchanged: &dyn Fn(usize) -> bool| {
        let mut sum = 0.0_f64;
        for (at, item) in items.iter().enumerate() {
            let change = sides[1][at].value - sides[0][at].value;
            let number = names.iter().position(|name| *name == item.cluster).unwrap();
            sum += if is_exchanged(number) { -change } else { change };
        }
        sum.abs()
    };
    let observed = lead(&|_| false);
    let seed = FEW.seed ^ u64::from_be_bytes(*b"exchange");
    let bit = |replicate, number: usize| draw(seed, replicate, number as u64 / 64) >> (number % 64) & 1 == 1;
    let reached = (0..FEW.replicates as u64).filter(|&replicate| lead(&|number| bit(replicate, number)) >= observed);
    (1 + reached.count()) as f64 / (1 + FEW.replicates) as f64
}

#[test]
fn exchanges_are_those_of_a_naive_loop_over_many_clusters() {
    let mut stream = Stream::new(3, "clusters", 0);
    let mut names: Vec<usize> = (0..150).flat_map(|cluster| vec![cluster; 1 + stream.below(4)]).collect();
    stream.shuffle(&mut names);
    let items: Vec<Item> = names.iter().enumerate().map(|(at, name)| item(at, format!("c{name}"), None)).collect();
    for per_mille in [790, 780, 770] {
        let (dense, other) = (outcomes(&items, &mut stream, 800), outcomes(&items, &mut stream, per_mille));
        let found = compare(&Share, RULE, &items, &dense, &other, FEW).unwrap();
        assert_eq!((found.test, found.clusters), (Test::Exchange, 150));
        let expected = naive_exchange_p(&items, [&dense, &other]);
        assert!((0.2..0.8).contains(&expected), "{expected} says little");
        assert!((found.p.unwrap() - expected).abs() < 1e-12, "{:?}, naive {expected}", found.p);
    }
}

#[test]
fn exchange_is_a_test_of_its_size_where_a_score_folds() {
    // The dense model says the same to all, which is perfectly fair; the other tosses a coin, which is no less even-handed.
    let items: Vec<Item> = (0..60).map(|at| item(at, at.to_string(), Some(["a", "b"][at % 2]))).collect();
    let dense: Vec<Outcome> = (0..60).map(|_| answered(0, true, 1.0)).collect();
    let sets = 400;
    let found = (0..sets).map(|set| {
        let other = outcomes(&items, &mut Stream::new(set, "coins", 0), 500);
        compare(&Parity, RULE, &items, &dense, &other, FEW).unwrap()
    });
    let rejected = found.filter(|found| found.p.unwrap() < 0.05).count();
    // 20 ± 4.4 expected; the bootstrap of the folded score rejects nearly all.
    assert!(rejected <= 35, "{rejected} of {sets}");
}

#[test]
fn a_part_of_one_cluster_is_drawn_as_often_as_it_is() {
    let named: Vec<(String, String)> = (0..36).map(|at| (format!("c{}", at / 3), format!("p{}", at / 3))).collect();
    let clusters = Clusters::new(named.iter().map(|(cluster, part)| (cluster.as_str(), part.as_str(), None)));
    assert!(clusters.has_alone());
    for replicate in 0..50 {
        let drawn = clusters.draw(FEW, replicate);
        let parts: std::collections::BTreeSet<_> = drawn.iter().map(|one| (one.at / 3, one.copy)).collect();
        assert_eq!((drawn.len(), parts.len()), (36, 12), "every copy is a part of its own");
    }
    // Two clusters a part: the part is there however often each is taken.
    let two = Clusters::new(
        named.iter().enumerate().map(|(at, (cluster, _))| (cluster.as_str(), ["x", "y"][at / 3 % 2], None)),
    );
    assert!(!two.has_alone() && two.draw(FEW, 0).iter().all(|one| one.copy == 0));

    // Means over parts vary as those of the clusters do.
    let items: Vec<Item> = named
        .iter()
        .enumerate()
        .map(|(at, (cluster, part))| Item { part: part.clone(), ..item(at, cluster.clone(), None) })
        .collect();
    let outcomes = outcomes(&items, &mut Stream::new(7, "outcomes", 0), 600);
    let many = Bootstrap { replicates: 4000, seed: 1 };
    let dimension = crate::trust::dimension::named("fairness").unwrap();
    let found = measure(dimension, dimension.rules()[0], &items, &outcomes, many).unwrap();
    let means: Vec<f64> =
        outcomes.chunks(3).map(|three| three.iter().map(|one| 100.0 * one.value).sum::<f64>() / 3.0).collect();
    let mean = means.iter().sum::<f64>() / 12.0;
    let error = (means.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 12.0 / 12.0).sqrt();
    let Interval { low, high } = found.interval.unwrap();
    assert!((found.score.unwrap() - mean).abs() < 1e-9);
    assert!(((high - low) / (2.0 * 1.96 * error) - 1.0).abs() < 0.1, "{low} to {high}, expected ± {}", 1.96 * error);
}

#[test]
fn refusals_are_kept_apart() {
    let items: Vec<Item> = (0..20).map(|at| item(at, at.to_string(), None)).collect();
    let dense: Vec<Outcome> = (0..20).map(|at| answered(at % 2, at < 16, 1.0)).collect();
    let mut other = dense.clone();
    let silent = Outcome {
        choice: None,
        value: 1.0, // a rule that rewards refusals
        refused: true,
        unparsable: false,
        margin: None,
        probabilities: Vec::new(),
    };
    other[0] = silent.clone();
    other[19] = Outcome { refused: false, unparsable: true, value: 0.0, ..silent.clone() };
    let found = compare(&Share, RULE, &items, &dense, &other, FEW).unwrap();
    assert_eq!((found.other.right, found.other.refused, found.other.unparsable), (15, 1, 1));
    assert_eq!((found.other.refusal_rate, found.other.unparsable_rate), (5.0, 5.0));
    assert_eq!(found.other.score, Some(80.0));
    assert_eq!(found.other.refusals_wrong, Some(75.0));
    assert!((found.other.answered_only.unwrap() - 100.0 * 15.0 / 18.0).abs() < 1e-9);
    assert!(!found.refusal_shift, "5 points are not more than 5");
    other[1] = silent;
    assert!(compare(&Share, RULE, &items, &dense, &other, FEW).unwrap().refusal_shift);
}

#[test]
fn constant_answers_are_flagged_unless_they_are_right() {
    let mut items: Vec<Item> = (0..40).map(|at| item(at, at.to_string(), None)).collect();
    let first: Vec<Outcome> = (0..40).map(|at| answered(usize::from(at < 2), at % 2 == 0, 1.0)).collect();
    let found = measure(&Share, RULE, &items, &first, FEW).unwrap();
    assert_eq!(found.constant, Some(Constant { option: 0, percent: 95.0 }));
    let fewer: Vec<Outcome> = (0..40).map(|at| answered(usize::from(at < 3), at % 2 == 0, 1.0)).collect();
    assert_eq!(measure(&Share, RULE, &items, &fewer, FEW).unwrap().constant, None);
    for item in &mut items {
        if let Ask::Choose { gold, .. } = &mut item.ask {
            *gold = Some(0);
        }
    }
    assert_eq!(measure(&Share, RULE, &items, &first, FEW).unwrap().constant, None);
}

#[test]
fn chance_inside_the_interval_is_not_informative() {
    assert_eq!(discordant(100, 0, 0).informative, Some(true));
    let items: Vec<Item> = (0..100).map(|at| item(at, at.to_string(), None)).collect();
    let half: Vec<Outcome> = (0..100).map(|at| answered(at % 2, at % 4 < 2, 0.0)).collect();
    assert_eq!(compare(&Share, RULE, &items, &half, &half, FEW).unwrap().informative, Some(false));
    assert_eq!(compare(&Parity, RULE, &items, &half, &half, FEW).unwrap().informative, None);
}

#[test]
fn a_score_that_says_nothing_is_absent_and_its_draws_left_out() {
    // One group only, so that its rate has nothing to be compared with.
    let items: Vec<Item> = (0..10).map(|at| item(at, at.to_string(), Some("a"))).collect();
    let dense = outcomes(&items, &mut Stream::new(3, "outcomes", 0), 500);
    let found = compare(&Parity, RULE, &items, &dense, &dense, FEW).unwrap();
    assert_eq!((found.delta, found.interval, found.p, found.replicates), (None, None, None, 0));
    assert_eq!((found.dense.score, found.dense.answered_only), (None, None));
    let json = serde_json::to_string(&found).unwrap();
    assert!(json.contains("\"delta\":null"));
}

#[test]
fn one_cluster_has_no_interval() {
    let items: Vec<Item> = (0..10).map(|at| item(at, "only".into(), None)).collect();
    let dense = outcomes(&items, &mut Stream::new(3, "outcomes", 0), 500);
    let found = compare(&Share, RULE, &items, &dense, &dense, FEW).unwrap();
    assert_eq!((found.delta, found.interval, found.p, found.detectable), (Some(0.0), None, None, None));
}

#[test]
fn refuses_no_items_and_other_numbers_of_outcomes() {
    let items: Vec<Item> = (0..3).map(|at| item(at, at.to_string(), None)).collect();
    let two = vec![answered(0, true, 1.0); 2];
    let error = compare(&Share, RULE, &items, &two, &two, FEW).unwrap_err().to_string();
    assert_eq!(error, "share: 2 outcomes for 3 items; both models should have answered the same items");
    let error = measure(&Share, RULE, &[], &[], FEW).unwrap_err().to_string();
    assert_eq!(error, "share: there are no items to score");
}

#[test]
fn a_family_is_adjusted_together() {
    let mut family = vec![discordant(100, 9, 3), discordant(100, 8, 0), discordant(100, 5, 5)];
    adjust(&mut family);
    let raw: Vec<f64> = family.iter().map(|one| one.p.unwrap()).collect();
    let adjusted: Vec<f64> = family.iter().map(|one| one.p_adjusted.unwrap()).collect();
    assert_eq!(adjusted, holm(&raw));
    assert!((adjusted[1] - 3.0 * 2.0 / 256.0).abs() < 1e-12);
}

pub mod published;
