//! One tree: from distances to edges, from edges to a root, and how often both come out the same.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::{
    super::{Diff, Side},
    Comparison, Direction, Edge, LIKELY, Member, Progress, SURE, Tree,
    arborescence::arborescence,
    direction::{self, Link, Tally},
    distance::{self, ByGroup, GROUPS, Groups},
    kind::{self, Finding, Kind},
    merge::{self, Merge},
    sketch::mix,
};

/// Resamples of the tensors.
const RESAMPLES: u64 = 100;
/// Rounds of arborescence and comparison; each rules out directions, so few are needed.
const ROUNDS: usize = 8;

/// Probabilities of directions that no posterior gives: a mixture could be one of its parents' origin by rare chance, and
/// a model near it could have been there before.
const MERGED: f64 = 0.99;
const FROM_MERGE: f64 = 0.95;

/// The exact comparison of a pair.
#[derive(Debug, Clone)]
struct Judged {
    finding: Finding,
    /// The sides of the comparison.
    a: usize,
    b: usize,
}

impl Judged {
    /// The parent and the child, if `side` is the copy.
    fn order(&self, side: Option<Side>) -> Option<(usize, usize)> {
        match side? {
            Side::A => Some((self.b, self.a)),
            Side::B => Some((self.a, self.b)),
        }
    }

    /// The parent and the child, if what was done says so.
    fn certain(&self) -> Option<(usize, usize)> {
        self.order(self.finding.copy)
    }

    /// The same, where it only leans to it.
    fn leans(&self) -> Option<(usize, usize)> {
        self.order(self.finding.leans)
    }
}

/// A tree whose edges are found. Models have local numbers here, places in `models`.
pub(super) struct Grown {
    models: Vec<usize>,
    /// Squared distances of pairs i > j at i (i − 1) / 2 + j.
    squared: Vec<ByGroup>,
    /// ‖w‖² of each model.
    norms: Vec<f64>,
    merges: Vec<Merge>,
    /// Models that are no merges.
    plain: Vec<usize>,
    forbidden: BTreeSet<(usize, usize)>,
    links: Vec<Link>,
    judged: BTreeMap<(usize, usize), Judged>,
    /// Pairs (parent, child) that a maker's record proves.
    recorded: BTreeSet<(usize, usize)>,
    /// Models that hang from a merge: (merge, model).
    adopted: Vec<(usize, usize)>,
}

fn ordered(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

/// Whether `declared` means the model `name`: the same, or the same last part.
fn means(declared: &str, name: &str) -> bool {
    let last = |text: &str| text.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase();
    !last(declared).is_empty() && last(declared) == last(name)
}

impl Grown {
    /// Finds the edges among `models`, numbers into `members`.
    pub fn of(
        members: &[Member],
        models: &[usize],
        groups: &Groups<'_>,
        judge: &mut dyn FnMut(usize, usize) -> Result<Diff, String>,
        progress: &Progress<'_>,
    ) -> Self {
        let n = models.len();
        let member = |at: usize| &members[models[at]];
        let pairs: Vec<(usize, usize)> = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).collect();
        let squared: Vec<ByGroup> =
            pairs.par_iter().map(|&(i, j)| distance::squared(&member(j).sketch, &member(i).sketch, groups)).collect();
        let norm = |at: usize| member(at).sketch.parts.values().map(|part| part.squares).sum::<f64>();
        let mut tree = Self {
            models: models.to_vec(),
            squared,
            norms: (0..n).map(norm).collect(),
            merges: Vec::new(),
            plain: Vec::new(),
            forbidden: BTreeSet::new(),
            links: Vec::new(),
            judged: BTreeMap::new(),
            recorded: BTreeSet::new(),
            adopted: Vec::new(),
        };
        tree.heed_records(members);
        let d = tree.distances(&[1.0; GROUPS]);
        let recorded: BTreeSet<usize> = tree.recorded.iter().map(|(_, child)| *child).collect();
        tree.merges = merge::find(n, &d).into_iter().filter(|merge| !recorded.contains(&merge.child)).collect();
        let merges: Vec<Merge> = tree.merges.clone();
        let is_merge = |at: usize| merges.iter().any(|merge| merge.child == at);
        for model in (0..n).filter(|&at| !is_merge(at) && !recorded.contains(&at)) {
            let near = merges.iter().filter(|merge| is_satellite(n, &d, merge, model));
            let own = near.min_by(|x, y| d[x.child * n + model].total_cmp(&d[y.child * n + model]));
            tree.adopted.extend(own.map(|merge| (merge.child, model)));
        }
        let adopted = |at: usize| tree.adopted.iter().any(|(_, model)| *model == at);
        tree.plain = (0..n).filter(|&at| !is_merge(at) && !adopted(at)).collect();
        let mut compare = |tree: &mut Self, pair: (usize, usize)| {
            if !tree.judged.contains_key(&pair) {
                progress("comparing", tree.judged.len(), n - 1);
                let judged = judged(members, models, pair, judge);
                if let Some((parent, child)) = judged.certain() {
                    tree.forbidden.insert((child, parent));
                }
                tree.judged.insert(pair, judged);
            }
        };
        let mut edges = Vec::new();
        for _ in 0..ROUNDS {
            let known = tree.judged.len();
            edges = tree.neighbours(&d);
            edges.iter().for_each(|&pair| compare(&mut tree, pair));
            if tree.judged.len() == known {
                break;
            }
        }
        let declared = |a: usize, b: usize| {
            let says = |child: usize, parent: usize| {
                let own = |declared: &&String| !means(declared, &member(child).name);
                member(child).declared.iter().filter(own).any(|declared| means(declared, &member(parent).name))
            };
            match (says(b, a), says(a, b)) {
                (true, false) => Some(true),
                (false, true) => Some(false),
                _ => None,
            }
        };
        for (a, b) in edges {
            let judged = &tree.judged[&(a, b)];
            let certain = match (tree.recorded.contains(&(a, b)), tree.recorded.contains(&(b, a))) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                _ => judged.certain().map(|(parent, _)| parent == a),
            };
            let votes = judged.finding.kind.is_training();
            let votes = votes.then(|| distance::votes(&member(a).sketch, &member(b).sketch, groups));
            let leans = judged.leans().map(|(parent, _)| parent == a);
            tree.links.push(Link { a, b, certain, leans, declared: declared(a, b), votes });
        }
        for &(merge, model) in &tree.adopted.clone() {
            compare(&mut tree, ordered(merge, model));
        }
        tree
    }

    /// Arcs that the makers' records exclude.
    fn heed_records(&mut self, members: &[Member]) {
        for child in 0..self.models.len() {
            let Some(source) = &members[self.models[child]].made_from else { continue };
            let is_parent = |at: usize| at != child && members[self.models[at]].fingerprint.as_ref() == Some(source);
            let parents: BTreeSet<usize> = (0..self.models.len()).filter(|&at| is_parent(at)).collect();
            if parents.is_empty() {
                continue;
            }
            for other in (0..self.models.len()).filter(|&other| other != child) {
                match parents.contains(&other) {
                    true => drop(self.recorded.insert((other, child))),
                    false => drop(self.forbidden.insert((other, child))),
                }
            }
            self.forbidden.extend(parents.into_iter().map(|parent| (child, parent)));
        }
    }

    fn square(&self, a: usize, b: usize, weights: &[f64; GROUPS]) -> f64 {
        let (low, high) = ordered(a, b);
        match low == high {
            true => 0.0,
            false => self.squared[high * (high - 1) / 2 + low].iter().zip(weights).map(|(d, weight)| d * weight).sum(),
        }
    }

    /// All squared distances, (n, n) row-major.
    fn distances(&self, weights: &[f64; GROUPS]) -> Vec<f64> {
        let n = self.models.len();
        let mut d = vec![0.0; n * n];
        for high in 0..n {
            for low in 0..high {
                let square = self.square(low, high, weights);
                (d[low * n + high], d[high * n + low]) = (square, square);
            }
        }
        d
    }

    /// The pairs of the cheapest arborescence over the models that are no merges, without directions.
    fn neighbours(&self, d: &[f64]) -> Vec<(usize, usize)> {
        let (n, m) = (self.models.len(), self.plain.len());
        let dear = 1.0 + d.iter().map(|d| d.sqrt()).fold(0.0, f64::max) * m as f64;
        let cost: Vec<f64> = (0..m * m)
            .map(|at| {
                let (from, to) = (self.plain[at / m.max(1)], self.plain[at % m.max(1)]);
                let dear = if self.forbidden.contains(&(from, to)) { dear } else { 0.0 };
                d[from * n + to].sqrt() + dear
            })
            .collect();
        // Records may contradict each other; what is dear is taken where there is nothing else.
        let parents = arborescence(m, &cost, &vec![0.0; m]).unwrap_or_default();
        let pair = |(child, parent): (usize, Option<usize>)| Some(ordered(self.plain[child], self.plain[parent?]));
        let mut pairs: Vec<(usize, usize)> = parents.into_iter().enumerate().filter_map(pair).collect();
        pairs.sort_unstable();
        pairs
    }

    /// Votes of edges whose direction is known.
    pub fn known_votes(&self) -> Tally {
        let mut tally: Tally = [[0.0; 2]; 2];
        for link in &self.links {
            if let (Some(votes), Some(forwards)) = (&link.votes, link.certain.or(link.declared)) {
                direction::tally(direction::strengths(votes, &[1.0; GROUPS]), forwards, &mut tally);
            }
        }
        tally
    }

    /// The tree with its root, and its edges with their confidences.
    pub fn directed(&self, elsewhere: &Tally) -> (Tree, Vec<Edge>) {
        let resamples: Vec<Resample> = (0..RESAMPLES).into_par_iter().map(|seed| self.resample(seed)).collect();
        let share =
            |of: &dyn Fn(&Resample) -> bool| resamples.iter().filter(|r| of(r)).count() as f64 / RESAMPLES as f64;
        let mut edges = Vec::new();
        let (component, links) = (&self.plain, &self.links);
        let mut roots = vec![0.0; component.len()];
        for resample in &resamples {
            let found = direction::roots(component, links, &resample.weights, elsewhere);
            roots.iter_mut().zip(found).for_each(|(sum, found)| *sum += found / RESAMPLES as f64);
        }
        // The models on the side of each edge's a, and the probability that the root is there.
        let sides: Vec<BTreeSet<usize>> =
            (0..links.len()).map(|at| direction::beyond(links, at, links[at].a)).collect();
        let mass = |side: &BTreeSet<usize>| -> f64 {
            component.iter().zip(&roots).filter(|(model, _)| side.contains(model)).map(|(_, p)| p).sum()
        };
        let forwards: Vec<f64> = sides.iter().map(|side| mass(side).clamp(0.0, 1.0)).collect();
        // The root under which most edges may be expected to be right.
        let expected = |root: usize| -> f64 {
            sides.iter().zip(&forwards).map(|(side, p)| if side.contains(&root) { *p } else { 1.0 - p }).sum()
        };
        let best = component.iter().enumerate().map(|(at, &model)| (at, expected(model)));
        let best = best.max_by(|x, y| x.1.total_cmp(&y.1).then(roots[x.0].total_cmp(&roots[y.0])).then(y.0.cmp(&x.0)));
        let root = best.map_or(0, |(at, _)| at);
        for (at, link) in links.iter().enumerate() {
            let away = sides[at].contains(&component[root]);
            let (from, to) = if away { (link.a, link.b) } else { (link.b, link.a) };
            let p = if away { forwards[at] } else { 1.0 - forwards[at] };
            let confidence = share(&|resample| resample.pairs.contains(&(link.a, link.b)));
            edges.push(self.edge(from, to, confidence, p, self.evidence(link, from == link.a, p)));
        }
        for &(merge, model) in &self.adopted {
            let confidence = share(&|resample| resample.adopts.contains(&(merge, model)));
            let why = vec!["far nearer to the merge than what it was made from".into()];
            edges.push(self.edge(merge, model, confidence, FROM_MERGE, why));
        }
        for merge in &self.merges {
            let confidence = share(&|resample| resample.merges.contains(&merge.child));
            for &(parent, coefficient) in &merge.parents {
                let left =
                    format!("{:.1} % of the squared distance to the nearest parent remains", 100.0 * merge.remains);
                let edge = self.edge(parent, merge.child, confidence, MERGED, vec![left]);
                edges.push(Edge {
                    kind: Kind::Merge,
                    detail: Some(format!("part {coefficient:.2}")),
                    coefficient: Some(coefficient),
                    ..edge
                });
            }
        }
        edges.sort_by_key(|edge| (edge.to, edge.from));
        let oldest = component.get(root).copied().unwrap_or(0);
        let root_confidence = roots.get(root).copied().unwrap_or(1.0);
        (Tree { models: self.models.clone(), root: self.models[oldest], root_confidence }, edges)
    }

    fn edge(&self, from: usize, to: usize, confidence: f64, p: f64, evidence: Vec<String>) -> Edge {
        let judged = self.judged.get(&ordered(from, to));
        let relative = (self.square(from, to, &[1.0; GROUPS]) / self.norms[from]).sqrt();
        Edge {
            from: self.models[from],
            to: self.models[to],
            kind: judged.map_or(Kind::Other, |judged| judged.finding.kind),
            detail: judged.and_then(|judged| judged.finding.detail.clone()),
            coefficient: None,
            relative: if relative.is_finite() { relative } else { 0.0 },
            confidence,
            direction: match p {
                // Of two equal models neither is the older.
                p if p < SURE && judged.is_some_and(|judged| judged.finding.kind == Kind::Equal) => {
                    Direction::Undirected
                }
                p if p >= SURE => Direction::Certain,
                p if p >= LIKELY => Direction::Likely,
                _ => Direction::Undirected,
            },
            direction_confidence: p,
            evidence,
            comparison: judged.map(|judged| Comparison {
                a: self.models[judged.a],
                b: self.models[judged.b],
                sentence: judged.finding.sentence.clone(),
            }),
        }
    }

    /// What speaks for the direction of `link`, which was found to run from its a to its b if `forwards`.
    fn evidence(&self, link: &Link, forwards: bool, p: f64) -> Vec<String> {
        let pair = if forwards { (link.a, link.b) } else { (link.b, link.a) };
        let mut evidence = Vec::new();
        if self.recorded.contains(&pair) {
            evidence.push("the child's own record has the parent's fingerprint".into());
        }
        let judged = self.judged.get(&ordered(link.a, link.b));
        if judged.and_then(Judged::certain) == Some(pair) {
            evidence.push("what was done cannot be undone".into());
        }
        match link.declared {
            Some(declared) if declared == forwards => {
                evidence.push("the child's files name the parent (a hint)".into())
            }
            Some(_) => evidence.push("against it: the parent's files name the child (a hint)".into()),
            None => {}
        }
        if evidence.is_empty() && p >= SURE {
            evidence.push("follows from a certain edge".into());
        }
        if let Some(votes) = &link.votes {
            for (strength, what) in
                direction::strengths(votes, &[1.0; GROUPS]).into_iter().zip(["lower kurtosis", "larger norm"])
            {
                if strength.abs() >= 0.3 {
                    let which = if (strength > 0.0) == forwards { "child" } else { "parent" };
                    evidence.push(format!("the {which} has the {what}"));
                }
            }
        }
        evidence
    }

    fn resample(&self, seed: u64) -> Resample {
        let mut weights = [0.0; GROUPS];
        for draw in 0..GROUPS as u64 {
            let hash = mix((seed << 8 | draw).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            weights[(hash >> 32) as usize % GROUPS] += 1.0;
        }
        let n = self.models.len();
        let d = self.distances(&weights);
        let holds = |merge: &&Merge| {
            let parents: Vec<usize> = merge.parents.iter().map(|(parent, _)| *parent).collect();
            merge::fit(n, &d, merge.child, &parents).is_some_and(|(alpha, remains)| {
                let signs = alpha.iter().zip(&merge.parents).all(|(alpha, (_, known))| alpha * known > 0.0);
                signs && merge::explains(remains)
            })
        };
        let mut pairs = self.neighbours(&d);
        let stays = |(child, model): &&(usize, usize)| {
            self.merges.iter().any(|merge| merge.child == *child && is_satellite(n, &d, merge, *model))
        };
        let adopts = self.adopted.iter().filter(stays).copied().collect();
        pairs.sort_unstable();
        let merges = self.merges.iter().filter(holds).map(|merge| merge.child).collect();
        Resample { weights, pairs, adopts, merges }
    }
}

/// Whether `model` lies so near to `merge` that it was made from it. The common origin of k parents that went equally far
/// is 1/(k − 1) as far from their mean, squared, as they are: half of that is the limit.
fn is_satellite(n: usize, d: &[f64], merge: &Merge, model: usize) -> bool {
    let own = merge.parents.iter().map(|(parent, _)| *parent);
    let nearest = own.clone().map(|parent| d[merge.child * n + parent]).fold(f64::INFINITY, f64::min);
    let limit = 0.5 * nearest / (merge.parents.len() as f64 - 1.0).max(1.0);
    own.clone().all(|parent| parent != model) && d[merge.child * n + model] < limit
}

/// What comes out with tensors drawn anew.
struct Resample {
    weights: [f64; GROUPS],
    pairs: Vec<(usize, usize)>,
    adopts: Vec<(usize, usize)>,
    merges: Vec<usize>,
}

/// Compares a pair exactly, the larger model as A.
fn judged(
    members: &[Member],
    models: &[usize],
    pair: (usize, usize),
    judge: &mut dyn FnMut(usize, usize) -> Result<Diff, String>,
) -> Judged {
    let size = |at: usize| members[models[at]].sketch.parameters();
    let (a, b) = if size(pair.1) > size(pair.0) { (pair.1, pair.0) } else { pair };
    let unread = |why: String| Judged {
        finding: Finding { kind: Kind::Unread, copy: None, leans: None, sentence: why, detail: None },
        a,
        b,
    };
    let diff = match judge(models[a], models[b]) {
        Ok(diff) => diff,
        Err(why) => return unread(why),
    };
    let finding = kind::read(&diff);
    if finding.kind != Kind::LayersRemoved {
        return Judged { finding, a, b };
    }
    // A model that has blocks twice was made from the one that has them once.
    match judge(models[b], models[a]) {
        Err(why) => unread(why),
        Ok(back) => {
            let repeated: usize = back.blocks.iter().map(|stack| stack.repeated.len()).sum();
            if repeated == 0 {
                return Judged { finding, a, b };
            }
            let detail = Some(format!("{repeated} of {} blocks", back.blocks.iter().map(|b| b.b).sum::<usize>()));
            let sentence = back.verdict.sentence;
            Judged {
                finding: Finding { kind: Kind::LayersRepeated, copy: Some(Side::B), leans: None, sentence, detail },
                a: b,
                b: a,
            }
        }
    }
}
