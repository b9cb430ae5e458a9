//! Families grown here, whose trees are known, are found again.

use std::collections::BTreeMap;

use scruple_weights::{
    Dtype,
    lineage::{
        self,
        family::{Direction, Edge, Family, Kind, Member, Sketch, family},
    },
};

use crate::support::{Normal, Tensor, decoder, model, quantised, rounded, with_blocks, with_lora};

/// A model of a zoo, and what it was made from.
struct Grown {
    tensors: Vec<Tensor>,
    parents: Vec<usize>,
}

fn is_matrix(tensor: &Tensor) -> bool {
    tensor.shape.len() == 2
}

/// The tensors with `change` on the matrices that `which` chooses.
fn edited(
    of: &[Tensor],
    which: impl Fn(&Tensor) -> bool,
    mut change: impl FnMut(usize, &Tensor) -> Vec<f32>,
) -> Vec<Tensor> {
    let mut edit = |(at, tensor): (usize, &Tensor)| match is_matrix(tensor) && which(tensor) {
        true => Tensor { values: rounded(&change(at, tensor), tensor.dtype), ..tensor.clone() },
        false => tensor.clone(),
    };
    of.iter().enumerate().map(&mut edit).collect()
}

/// Weights as a long training leaves them: a few of them far out, with a kurtosis near 3.
fn pretrained(seed: u64) -> Vec<Tensor> {
    let mut normal = Normal::seeded(seed ^ 0xf00d);
    edited(
        &decoder(2, Dtype::F32, seed),
        |_| true,
        |_, tensor| tensor.values.iter().map(|w| w * if normal.uniform() < 0.1 { 3.0 } else { 0.8 }).collect(),
    )
}

/// A training of `size` relative to the weights: steps at random about a direction, of light tails.
fn tuned(of: &[Tensor], size: f64, seed: u64, which: impl Fn(&Tensor) -> bool) -> Vec<Tensor> {
    let mut normal = Normal::seeded(seed);
    edited(of, which, |_, tensor| {
        let spread = (tensor.values.iter().map(|w| w * w).sum::<f32>() / tensor.values.len() as f32).sqrt();
        tensor.values.iter().map(|w| w + size as f32 * spread * normal.next()).collect()
    })
}

fn lora(of: &[Tensor], rank: usize, size: f64, seed: u64) -> Vec<Tensor> {
    edited(
        of,
        |tensor| tensor.name.contains("_proj"),
        |at, tensor| with_lora(&tensor.values, tensor.shape[0], tensor.shape[1], rank, size, seed + at as u64),
    )
}

fn mixed(parts: &[(&[Tensor], f32)]) -> Vec<Tensor> {
    let mut out = parts[0].0.to_vec();
    for (at, tensor) in out.iter_mut().enumerate() {
        for (value, w) in tensor.values.iter_mut().enumerate() {
            *w = parts.iter().map(|(model, part)| part * model[at].values[value]).sum();
        }
    }
    out
}

fn member(name: &str, tensors: &[Tensor]) -> Member {
    Member {
        name: name.into(),
        sketch: Sketch::of(&model(tensors)).unwrap(),
        fingerprint: None,
        made_from: None,
        declared: Vec::new(),
    }
}

fn found_with(zoo: &[Grown], edit: impl Fn(usize, &mut Member)) -> Family {
    let members: Vec<Member> = zoo
        .iter()
        .enumerate()
        .map(|(at, grown)| {
            let mut member = member(&format!("m{at}"), &grown.tensors);
            edit(at, &mut member);
            member
        })
        .collect();
    let models: Vec<lineage::Model> = zoo.iter().map(|grown| model(&grown.tensors)).collect();
    let mut judge = |a: usize, b: usize| lineage::diff(&models[a], &models[b], &|_, _| {}).map_err(|e| e.to_string());
    family(&members, &mut judge, &|_, _, _| {})
}

fn found(zoo: &[Grown]) -> Family {
    found_with(zoo, |_, _| {})
}

fn roots(models: Vec<Vec<Tensor>>) -> Vec<Grown> {
    models.into_iter().map(|tensors| Grown { tensors, parents: Vec::new() }).collect()
}

#[track_caller]
fn edge(family: &Family, from: usize, to: usize) -> &Edge {
    let edge = family.edges.iter().find(|edge| (edge.from, edge.to) == (from, to));
    edge.unwrap_or_else(|| panic!("no edge {from} -> {to} in {:#?}", family.edges))
}

/// A tree of `count` models, each made from a random one by a random operation; what was quantised or pruned stays a leaf.
fn zoo(seed: u64, count: usize) -> Vec<Grown> {
    let mut normal = Normal::seeded(seed);
    let mut zoo = roots(vec![pretrained(seed)]);
    let mut dense = vec![0];
    while zoo.len() < count {
        let parent = dense[(normal.uniform() * dense.len() as f64) as usize];
        let of = &zoo[parent].tensors;
        let step = seed * 100 + zoo.len() as u64;
        let operation = (normal.uniform() * 8.0) as usize;
        if operation < 6 {
            dense.push(zoo.len());
        }
        let tensors = match operation {
            0..3 => tuned(of, 0.1, step, |_| true),
            3 => tuned(of, 0.1, step, |tensor| !tensor.name.contains("layers.0")),
            4 | 5 => lora(of, 3, 0.1, step),
            6 => edited(of, |_| true, |_, tensor| quantised(&tensor.values, 16, 8, true)),
            _ => edited(
                of,
                |_| true,
                |_, tensor| {
                    let mut sizes: Vec<f32> = tensor.values.iter().map(|w| w.abs()).collect();
                    sizes.sort_by(f32::total_cmp);
                    let cut = sizes[sizes.len() / 2];
                    tensor.values.iter().map(|&w| if w.abs() < cut { 0.0 } else { w }).collect()
                },
            ),
        };
        zoo.push(Grown { tensors, parents: vec![parent] });
    }
    zoo
}

/// Edges, those found as pairs, those found with their direction, expected right directions by the figures given, and
/// directions told as certain with those of them that are wrong.
#[derive(Debug, Default)]
struct Score {
    edges: usize,
    pairs: usize,
    directed: usize,
    expected: f64,
    certain: usize,
    wrong: usize,
}

impl Score {
    fn add(&mut self, zoo: &[Grown], family: &Family) {
        for (child, grown) in zoo.iter().enumerate() {
            for &parent in &grown.parents {
                self.edges += 1;
                let pair = family
                    .edges
                    .iter()
                    .find(|e| (e.from, e.to) == (parent, child) || (e.from, e.to) == (child, parent));
                let Some(edge) = pair else { continue };
                self.pairs += 1;
                let right = edge.to == child;
                self.directed += usize::from(right);
                self.expected += edge.direction_confidence;
                if edge.direction == Direction::Certain {
                    self.certain += 1;
                    self.wrong += usize::from(!right);
                }
            }
        }
    }
}

/// Two-sided 95 % interval of a share (Wilson).
fn interval(hits: usize, of: usize) -> (f64, f64) {
    let (n, p, z) = (of as f64, hits as f64 / of as f64, 1.96);
    let middle = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    (middle - half, middle + half)
}

#[test]
#[allow(clippy::print_stdout, reason = "the figures of the documentation")]
fn trees_grown_at_random_are_found_again() {
    let mut score = Score::default();
    for seed in 1..9 {
        let zoo = zoo(seed, 7);
        let family = found(&zoo);
        score.add(&zoo, &family);
        for (child, grown) in zoo.iter().enumerate().skip(1) {
            let found = family.edges.iter().any(|edge| (edge.from, edge.to) == (grown.parents[0], child));
            println!("seed {seed}: {} -> {child} {}", grown.parents[0], if found { "found" } else { "missed" });
        }
        for edge in &family.edges {
            let sure = (edge.direction, edge.direction_confidence);
            println!("  {} -> {} {:?} {:.3} {sure:?}", edge.from, edge.to, edge.kind, edge.confidence);
        }
    }
    let (low, high) = interval(score.directed, score.edges);
    println!("{score:?} directed {:.3} [{low:.3}, {high:.3}]", score.directed as f64 / score.edges as f64);
    // A parent drawn for each child is right in one of six.
    assert!(score.pairs * 100 >= 95 * score.edges, "{score:?}");
    assert!(score.directed * 100 >= 75 * score.edges, "{score:?}");
    assert_eq!(score.wrong, 0, "{score:?}");
    assert!(score.expected < score.directed as f64 + 6.0, "the figures promise too much: {score:?}");
}

#[test]
fn every_operation_has_its_kind_and_only_some_a_sure_direction() {
    let base = pretrained(50);
    let deep = {
        let mut more = decoder(5, Dtype::F32, 5050);
        more.retain(|tensor| is_matrix(tensor) || tensor.name.contains("norm"));
        more
    };
    let zoo = roots(vec![
        lora(&base, 4, 0.1, 1),
        base.clone(),
        tuned(&base, 0.1, 2, |_| true),
        edited(&base, |_| true, |_, tensor| quantised(&tensor.values, 16, 4, true)),
        tuned(&base, 0.1, 3, |tensor| tensor.name.contains("layers.1")),
        with_blocks(&deep, &[0, 1, 4]),
        deep.clone(),
        with_blocks(&deep, &[0, 1, 2, 1, 2, 3, 4]),
        tuned(&deep, 0.05, 4, |_| true),
        decoder(5, Dtype::F32, 7),
    ]);
    let family = found(&zoo);
    assert_eq!(
        family.trees.iter().map(|tree| tree.models.clone()).collect::<Vec<_>>(),
        [vec![0, 1, 2, 3, 4], vec![5, 6, 7, 8], vec![9]]
    );
    assert_eq!((family.trees[0].root, family.trees[1].root), (1, 6));
    assert!(family.models[9].nearest.unwrap().correlation.abs() < 0.1);
    for (from, to, kind, detail, certain) in [
        (1, 0, Kind::MergedLora, Some("rank 4"), false),
        (1, 2, Kind::FineTune, None, false),
        (1, 3, Kind::Quantised, Some("4 bits"), true),
        (1, 4, Kind::FrozenFineTune, None, false),
        (6, 5, Kind::LayersRemoved, Some("2 of 5 blocks"), true),
        (6, 7, Kind::LayersRepeated, Some("2 of 7 blocks"), true),
        (6, 8, Kind::FineTune, None, false),
    ] {
        let edge = edge(&family, from, to);
        assert_eq!(edge.kind, kind, "{edge:#?}");
        assert!(detail.is_none() || edge.detail.as_deref() == detail, "{edge:#?}");
        assert_eq!(edge.direction == Direction::Certain, certain, "{edge:#?}");
        assert!(edge.confidence > 0.8 && edge.direction_confidence > 0.6, "{edge:#?}");
    }
}

#[test]
fn rows_of_zeros_may_have_been_there_first() {
    let grown = pretrained(55);
    let zeroed = |every: usize| {
        edited(
            &grown,
            |tensor| tensor.shape[0] >= 2 * every,
            |_, tensor| {
                let columns = tensor.shape[1];
                let value = |(at, w): (usize, &f32)| if at / columns % every == 0 { 0.0 } else { *w };
                tensor.values.iter().enumerate().map(value).collect()
            },
        )
    };
    for (every, kind) in [(32, Kind::Rows), (4, Kind::Pruned)] {
        let family = found(&roots(vec![zeroed(every), grown.clone()]));
        let [edge] = family.edges.as_slice() else { panic!("{:#?}", family.edges) };
        assert_eq!(edge.kind, kind, "{edge:#?}");
        assert_ne!(edge.direction, Direction::Certain, "{edge:#?}");
    }
    // Columns beside them are a neuron that was taken out.
    let columns = edited(
        &zeroed(4),
        |_| true,
        |_, tensor| {
            let of = tensor.shape[1];
            tensor.values.iter().enumerate().map(|(at, w)| if at % of == 3 { 0.0 } else { *w }).collect()
        },
    );
    let family = found(&roots(vec![columns, grown.clone()]));
    assert_eq!(edge(&family, 1, 0).direction, Direction::Certain);
}

#[test]
fn a_chain_is_no_star_and_a_certain_end_turns_it_all() {
    let mut models = vec![pretrained(60)];
    for step in 0..2 {
        models.push(tuned(&models[step], 0.1, 61 + step as u64, |_| true));
    }
    let last = models[2].clone();
    models.push(edited(&last, |_| true, |_, tensor| quantised(&tensor.values, 16, 8, false)));
    let family = found(&roots(models));
    assert_eq!(family.edges.len(), 3);
    let pairs: Vec<(usize, usize)> = family.edges.iter().map(|e| (e.from.min(e.to), e.from.max(e.to))).collect();
    assert!([(0, 1), (1, 2), (2, 3)].iter().all(|pair| pairs.contains(pair)), "{pairs:?}");
    let last = edge(&family, 2, 3);
    assert_eq!((last.direction, last.evidence[0].as_str()), (Direction::Certain, "what was done cannot be undone"));
}

#[test]
fn what_a_maker_recorded_is_certain_and_what_a_card_says_a_hint() {
    let base = pretrained(70);
    let zoo = roots(vec![tuned(&base, 0.1, 71, |_| true), base]);
    let silent = found(&zoo);
    assert_eq!(silent.edges[0].direction, Direction::Undirected, "{:#?}", silent.edges);
    let recorded = found_with(&zoo, |at, member| match at {
        0 => member.made_from = Some("abc".into()),
        _ => member.fingerprint = Some("abc".into()),
    });
    assert_eq!(edge(&recorded, 1, 0).direction, Direction::Certain);
    let declared = found_with(&zoo, |at, member| {
        if at == 0 {
            member.declared = vec!["somewhere/M1".into()]
        }
    });
    let edge = edge(&declared, 1, 0);
    assert_eq!(edge.direction, Direction::Likely);
    assert!(edge.evidence.iter().any(|words| words.contains("(a hint)")), "{edge:#?}");
}

#[test]
fn merges_have_their_parents_and_parts() {
    let base = pretrained(80);
    let (one, two) = (tuned(&base, 0.1, 81, |_| true), tuned(&base, 0.1, 82, |_| true));
    let even = mixed(&[(&one, 0.5), (&two, 0.5)]);
    let tasks = mixed(&[(&base, -0.3), (&one, 0.8), (&two, 0.5)]);
    let child = tuned(&even, 0.02, 83, |_| true);
    let packed = edited(&base, |_| true, |_, tensor| quantised(&tensor.values, 16, 8, true));
    let family = found(&roots(vec![base, one, two, even, tasks, child, packed]));
    let parts = |to: usize| -> BTreeMap<usize, f64> {
        let edges = family.edges.iter().filter(|edge| edge.to == to && edge.kind == Kind::Merge);
        edges.map(|edge| (edge.from, edge.coefficient.unwrap())).collect()
    };
    let even = parts(3);
    assert_eq!(even.keys().copied().collect::<Vec<_>>(), [1, 2], "{:#?}", family.edges);
    assert!(even.values().all(|part| (part - 0.5).abs() < 0.02), "{even:?}");
    let tasks = parts(4);
    // b + 0.8 (p₁ − b) + 0.5 (p₂ − b); the even merge may stand for one of its parents.
    assert!((tasks[&0] + 0.3).abs() < 0.05 && (tasks.values().sum::<f64>() - 1.0).abs() < 1e-6, "{tasks:?}");
    let adopted = edge(&family, 3, 5);
    assert_eq!(adopted.kind, Kind::FineTune);
    assert!(family.edges.iter().all(|edge| edge.confidence > 0.9 || edge.kind != Kind::Merge));
}

#[test]
fn copies_are_equal_and_nobody_can_tell_which_came_first() {
    let base = pretrained(90);
    let family = found(&roots(vec![base.clone(), base]));
    assert_eq!(family.edges.len(), 1);
    assert_eq!((family.edges[0].kind, family.edges[0].direction), (Kind::Equal, Direction::Undirected));
    assert!((family.edges[0].direction_confidence - 0.5).abs() < 1e-9);
}

#[test]
fn nothing_one_and_strange_models_are_no_trouble() {
    assert!(found(&[]).trees.is_empty());
    let alone = found(&roots(vec![pretrained(95)]));
    assert_eq!((alone.trees.len(), alone.edges.len()), (1, 0));
    let mut broken = pretrained(95);
    broken.iter_mut().flat_map(|tensor| &mut tensor.values).for_each(|w| *w = f32::NAN);
    let mut huge = pretrained(95);
    huge.iter_mut().flat_map(|tensor| &mut tensor.values).for_each(|w| *w *= 1e36);
    let zero: Vec<Tensor> =
        pretrained(95).into_iter().map(|t| Tensor { values: vec![0.0; t.values.len()], ..t }).collect();
    let empty = vec![crate::support::tensor("nothing", &[0, 4], Dtype::F32, Vec::new())];
    let family = found(&roots(vec![broken, huge, zero, empty, pretrained(95)]));
    assert_eq!(family.models.len(), 5);
    for edge in &family.edges {
        assert!(edge.relative.is_finite() && edge.confidence.is_finite() && edge.direction_confidence.is_finite());
    }
}

#[test]
fn a_pair_that_cannot_be_compared_is_said_and_the_rest_goes_on() {
    let base = pretrained(97);
    let zoo = roots(vec![base.clone(), tuned(&base, 0.1, 98, |_| true), tuned(&base, 0.1, 99, |_| true)]);
    let members: Vec<Member> = zoo.iter().map(|grown| member("m", &grown.tensors)).collect();
    let models: Vec<lineage::Model> = zoo.iter().map(|grown| model(&grown.tensors)).collect();
    let mut judge = |a: usize, b: usize| match a.max(b) {
        2 => Err("gone".to_string()),
        _ => lineage::diff(&models[a], &models[b], &|_, _| {}).map_err(|e| e.to_string()),
    };
    let family = family(&members, &mut judge, &|_, _, _| {});
    let kinds: Vec<Kind> = family.edges.iter().map(|edge| edge.kind).collect();
    assert_eq!(kinds.len(), 2);
    assert!(kinds.contains(&Kind::Unread) && kinds.contains(&Kind::FineTune), "{kinds:?}");
}

#[test]
fn the_same_family_for_any_number_of_threads() {
    let zoo = zoo(3, 6);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| serde_json::to_string(&found(&zoo)).unwrap())
    };
    assert_eq!(with(1), with(3));
}
