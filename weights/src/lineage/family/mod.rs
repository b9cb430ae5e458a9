//! The family of many models: which descend from one origin, from which each was made, and how.
//!
//! The data flows through these steps, one a file. Each model is read once and kept as a sketch of a few hundred kilobytes
//! (`sketch`), from which distances between all pairs follow (`distance`). Clustering them finds the trees, and the models
//! that are strangers to all others (`cluster`). Within a tree, mixtures are found from distances alone (`merge`); of the rest
//! the cheapest arborescence (`arborescence`) under arcs that are known to be impossible gives the candidate edges. Only
//! their pairs are compared exactly, weight by weight, which says what was done and may rule out a direction (`kind`),
//! until no edge changes. At last the root, and with it all directions, gets a posterior (`direction`), and everything is
//! found again in resamples of the tensors: that share is an edge's confidence.

mod arborescence;
mod cluster;
mod direction;
mod distance;
mod kind;
mod merge;
mod sketch;
mod tree;

use rayon::prelude::*;
use serde::Serialize;

pub use cluster::Join;
pub use kind::Kind;
pub use sketch::Sketch;

use distance::{Groups, Likeness};
use tree::Grown;

use super::Diff;

/// Distance of clusters up to which they are of one tree. Strangers are √2 = 1.414 apart, and a little less where
/// trainings on like data leave like rows and columns; a mean correlation of 0.2 gives 1.265.
pub const CUT: f64 = 1.25;
/// Probability of a direction from which it is told.
pub const LIKELY: f64 = 0.75;
/// Probability from which it is certain: nothing but certain evidence reaches it.
const SURE: f64 = 0.9999;

/// A model among others.
#[derive(Debug, Clone)]
pub struct Member {
    /// What it is called in records and pictures.
    pub name: String,
    /// What is known of its weights.
    pub sketch: Sketch,
    /// The fingerprint of its tensors ([`Checkpoint::fingerprint`](crate::Checkpoint::fingerprint)).
    pub fingerprint: Option<String>,
    /// The fingerprint of the model it was made from, if its maker recorded it: certain evidence.
    pub made_from: Option<String>,
    /// Names of models that it is said to come from: a hint.
    pub declared: Vec<String>,
}

/// How sure the direction of an edge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// What was done cannot be undone, or a record says so, or it follows from an edge of which that is true.
    Certain,
    /// As probable as the figure beside it says.
    Likely,
    /// Nobody can tell from the weights; `from` and `to` are in the likelier order.
    Undirected,
}

/// An exact comparison behind an edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// The model called A in the sentence.
    pub a: usize,
    /// The model called B.
    pub b: usize,
    /// What was found.
    pub sentence: String,
}

/// A step of descent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Edge {
    /// The parent, by its number among the models.
    pub from: usize,
    /// The child.
    pub to: usize,
    /// What was done.
    pub kind: Kind,
    /// Figures of it: a rank, a number of bits, a share of zeros.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The parent's part in a merge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coefficient: Option<f64>,
    /// ‖to − from‖ / ‖from‖, with zeros for tensors that one of them lacks.
    pub relative: f64,
    /// Share of the resamples in which these two are neighbours.
    pub confidence: f64,
    /// How sure the direction is.
    pub direction: Direction,
    /// Probability of the direction, given the edge.
    pub direction_confidence: f64,
    /// What speaks for or against the direction, in words.
    pub evidence: Vec<String>,
    /// The exact comparison, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
}

/// Models of one origin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tree {
    /// Its models, in ascending order.
    pub models: Vec<usize>,
    /// The oldest of them.
    pub root: usize,
    /// Probability that it is.
    pub root_confidence: f64,
}

/// The nearest other model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Nearest {
    /// Which.
    pub model: usize,
    /// Mean correlation of the matrices both have; that of strangers is near 0.
    pub correlation: f64,
    /// Share of the smaller one's weights in matrices that both have; 0 between different architectures.
    pub common: f64,
}

/// A model, as the record has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Elements of its tensors.
    pub parameters: u64,
    /// The number of its tree.
    pub tree: usize,
    /// The nearest other model, whether related or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Nearest>,
    /// What it is said to come from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub declared: Vec<String>,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Family {
    /// The models, in the order given.
    pub models: Vec<Entry>,
    /// The trees; a tree of one model is a stranger to all others.
    pub trees: Vec<Tree>,
    /// The edges, tree by tree.
    pub edges: Vec<Edge>,
    /// The dendrogram.
    pub joins: Vec<Join>,
    /// The height it was cut at.
    pub cut: f64,
}

/// What is being done, for a bar: a word, how many are done, and of how many.
pub type Progress<'p> = dyn Fn(&str, usize, usize) + Sync + 'p;

/// Finds the family of `members`. `judge` compares two of them exactly, by their numbers; where it cannot, it says why, and
/// the edge is [`Kind::Unread`]. It is called about once for each model that has a relative.
///
/// Time is O(n²) in the number of models and their sketches, and one exact comparison an edge; memory beside the sketches is
/// 16 bytes a pair, and 300 bytes a pair within the largest tree. The result depends on nothing but the arguments.
pub fn family(
    members: &[Member],
    judge: &mut dyn FnMut(usize, usize) -> Result<Diff, String>,
    progress: &Progress<'_>,
) -> Family {
    let n = members.len();
    let mut likeness = vec![Likeness { correlation: 0.0, common: 0.0 }; n * n];
    progress("distances", 0, n);
    let rows: Vec<Vec<Likeness>> = (0..n)
        .into_par_iter()
        .map(|a| (0..a).map(|b| Likeness::of(&members[b].sketch, &members[a].sketch)).collect())
        .collect();
    for (a, row) in rows.into_iter().enumerate() {
        for (b, found) in row.into_iter().enumerate() {
            (likeness[a * n + b], likeness[b * n + a]) = (found, found);
        }
    }
    let heights: Vec<f64> = likeness.iter().map(|likeness| likeness.distance()).collect();
    let joins = cluster::average_linkage(n, &heights);
    let clusters = cluster::cut(n, &joins, CUT);
    let mut grown: Vec<Grown> = Vec::new();
    for (at, models) in clusters.iter().enumerate() {
        progress("trees", at, clusters.len());
        let sketches: Vec<&Sketch> = models.iter().map(|&model| &members[model].sketch).collect();
        grown.push(Grown::of(members, models, &Groups::of(&sketches), judge, progress));
    }
    // What is known of directions in one tree helps in the others.
    let tallies: Vec<direction::Tally> = grown.iter().map(Grown::known_votes).collect();
    let mut trees = Vec::new();
    let mut edges = Vec::new();
    let mut of = vec![0; n];
    for (at, grown) in grown.iter().enumerate() {
        progress("resamples", at, clusters.len());
        let mut elsewhere: direction::Tally = [[0.0; 2]; 2];
        for (_, tally) in tallies.iter().enumerate().filter(|(other, _)| *other != at) {
            elsewhere.iter_mut().flatten().zip(tally.iter().flatten()).for_each(|(sum, votes)| *sum += votes);
        }
        let (tree, found) = grown.directed(&elsewhere);
        tree.models.iter().for_each(|&model| of[model] = at);
        trees.push(tree);
        edges.extend(found);
    }
    let nearest = |a: usize| {
        let best = (0..n).filter(|&b| b != a).min_by(|&x, &y| heights[a * n + x].total_cmp(&heights[a * n + y]))?;
        let Likeness { correlation, common } = likeness[a * n + best];
        Some(Nearest { model: best, correlation, common })
    };
    let entry = |(at, member): (usize, &Member)| Entry {
        name: member.name.clone(),
        parameters: member.sketch.parameters(),
        tree: of[at],
        nearest: nearest(at),
        declared: member.declared.clone(),
    };
    Family { models: members.iter().enumerate().map(entry).collect(), trees, edges, joins, cut: CUT }
}
