//! How far two sketched models lie apart.
//!
//! Tensors are paired by what they are and their shape; where two models have different numbers of blocks, a block of the
//! shorter belongs to the block of the longer that it correlates with most. A tensor that only one model has counts as if
//! the other had zeros there, so that distances stay those of points in one space: what is d² apart by one training and e²
//! by another, independent one, is d² + e² apart by both.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    super::matching::Key,
    sketch::{Part, Sketch},
};

/// Parts that the tensors of a collection are divided into for resampling.
pub(super) const GROUPS: usize = 32;
/// Correlation from which a block is held for the other's.
const ALIKE: f64 = 0.3;

/// Which group each tensor belongs to: dealt out in the order of names over all models, so that tensors of a block go to
/// different groups.
#[derive(Debug)]
pub(super) struct Groups<'s>(HashMap<&'s Key, usize>);

impl<'s> Groups<'s> {
    pub fn of(sketches: &[&'s Sketch]) -> Self {
        let keys: BTreeSet<&Key> = sketches.iter().flat_map(|sketch| sketch.parts.keys()).collect();
        Self(keys.into_iter().enumerate().map(|(at, key)| (key, at % GROUPS)).collect())
    }

    fn get(&self, key: &Key) -> usize {
        self.0.get(key).copied().unwrap_or(0)
    }
}

/// The tensors of two models, side by side.
pub(super) struct Sides<'s> {
    pub both: Vec<(&'s Key, &'s Part, &'s Part)>,
    pub only: Vec<(&'s Key, &'s Part)>,
}

pub(super) fn sides<'s>(a: &'s Sketch, b: &'s Sketch) -> Sides<'s> {
    let mut both = Vec::new();
    let mut only = Vec::new();
    let moved = moved_blocks(a, b);
    let mut used: BTreeSet<&Key> = BTreeSet::new();
    for (key, part) in &b.parts {
        // The name it would have in A.
        let from = match key.block.and_then(|block| moved.get(&(key.stack.as_str(), block))) {
            None => Some(a.parts.get_key_value(key)),
            Some(None) => None,
            Some(&Some(block)) => Some(a.parts.get_key_value(&Key { block: Some(block), ..key.clone() })),
        };
        match from.flatten().filter(|(known, other)| other.shape == part.shape && !used.contains(*known)) {
            Some((known, other)) => {
                used.insert(known);
                both.push((known, other, part));
            }
            None => only.push((key, part)),
        }
    }
    only.extend(a.parts.iter().filter(|(key, _)| !used.contains(*key)));
    Sides { both, only }
}

/// For stacks with different numbers of blocks: the block of A that each block of B comes from.
fn moved_blocks<'s>(a: &'s Sketch, b: &'s Sketch) -> HashMap<(&'s str, usize), Option<usize>> {
    type Blocks<'s> = BTreeMap<&'s str, BTreeMap<usize, BTreeMap<(&'s str, Option<usize>), &'s Part>>>;
    let stacks = |sketch: &'s Sketch| -> Blocks<'s> {
        let mut stacks: Blocks<'s> = BTreeMap::new();
        for (key, part) in &sketch.parts {
            if let Some(block) = key.block {
                let stack = stacks.entry(&key.stack).or_default();
                stack.entry(block).or_default().insert((&key.kind, key.expert), part);
            }
        }
        stacks
    };
    let numbers = |sketch: &'s Sketch| -> BTreeMap<&'s str, BTreeSet<usize>> {
        let mut numbers: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        for key in sketch.parts.keys() {
            numbers.entry(&key.stack).or_default().extend(key.block);
        }
        numbers
    };
    let mut moved = HashMap::new();
    // Almost every pair has the same blocks, which is soon seen.
    let (of_a, of_b) = (numbers(a), numbers(b));
    if of_b.iter().all(|(stack, blocks)| of_a.get(stack).is_none_or(|others| others == blocks)) {
        return moved;
    }
    let stacks_a = stacks(a);
    for (stack, blocks_b) in stacks(b) {
        let Some(blocks_a) = stacks_a.get(stack).filter(|blocks_a| !blocks_a.keys().eq(blocks_b.keys())) else {
            continue;
        };
        let (long, short) = if blocks_a.len() < blocks_b.len() { (&blocks_b, blocks_a) } else { (blocks_a, &blocks_b) };
        let mut from: Vec<(usize, Option<usize>)> = Vec::new();
        for (&number, block) in short {
            let mut best: Option<(f64, usize)> = None;
            for (&other, parts) in long {
                let pairs = block.iter().filter(|(_, part)| part.matrix);
                let alike = pairs.filter_map(|(kind, part)| {
                    part.correlation(parts.get(kind).filter(|other| other.shape == part.shape)?)
                });
                let (sum, n) = alike.fold((0.0, 0), |(sum, n), alike| (sum + alike, n + 1));
                let mean = if n == 0 { 0.0 } else { sum / f64::from(n) };
                if mean > best.map_or(ALIKE, |(best, _)| best) {
                    best = Some((mean, other));
                }
            }
            from.push((number, best.map(|(_, other)| other)));
        }
        if std::ptr::eq(short, &blocks_b) {
            moved.extend(from.into_iter().map(|(number, other)| ((stack, number), other)));
        } else {
            moved.extend(blocks_b.keys().map(|&number| ((stack, number), None)));
            moved.extend(from.into_iter().filter_map(|(number, other)| Some(((stack, other?), Some(number)))));
        }
    }
    moved
}

/// What is known of every pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Likeness {
    /// Mean correlation of the matrices that both have, weighted by elements; 0 if they have none.
    pub correlation: f64,
    /// Elements of those matrices over the elements of the smaller model's matrices.
    pub common: f64,
}

impl Likeness {
    pub fn of(a: &Sketch, b: &Sketch) -> Self {
        let (mut sum, mut weight, mut common) = (0.0, 0.0, 0.0);
        for (_, x, y) in sides(a, b).both.into_iter().filter(|(_, x, _)| x.matrix) {
            let elements = x.finite.max(y.finite) as f64;
            common += elements;
            if let Some(correlation) = x.correlation(y) {
                sum += elements * correlation;
                weight += elements;
            }
        }
        let elements = |sketch: &Sketch| -> f64 {
            sketch.parts.values().filter(|part| part.matrix).map(|part| part.finite as f64).sum()
        };
        let smaller = elements(a).min(elements(b));
        Self {
            correlation: if weight > 0.0 { sum / weight } else { 0.0 },
            common: if smaller > 0.0 { (common / smaller).min(1.0) } else { 0.0 },
        }
    }

    /// The distance for clustering: that of two unit vectors with this correlation, √2 for strangers.
    pub fn distance(self) -> f64 {
        // A few small tensors in common, such as the norms of two widths, make no relatives.
        let correlation = if self.common < 0.1 { 0.0 } else { self.correlation };
        (2.0 * (1.0 - correlation.clamp(-1.0, 1.0))).sqrt()
    }
}

/// ‖a − b‖² by groups.
pub(super) type ByGroup = [f64; GROUPS];

pub(super) fn squared(a: &Sketch, b: &Sketch, groups: &Groups<'_>) -> ByGroup {
    let mut sums = [0.0; GROUPS];
    let sides = sides(a, b);
    for (key, x, y) in sides.both {
        sums[groups.get(key)] += x.distance(y);
    }
    for (key, part) in sides.only {
        sums[groups.get(key)] += part.squares;
    }
    // Sums of squares of hostile numbers may be infinite; the largest finite one orders them as well.
    sums.map(|sum| if sum.is_finite() { sum } else { f64::MAX / (4.0 * GROUPS as f64) })
}

/// What may tell the older of two models, by groups: of the matrices that differ, Σ of votes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Votes {
    /// κ(a) − κ(b): positive where b, if younger, has the lower kurtosis.
    pub kurtosis: ByGroup,
    /// ‖b‖² − ‖a‖² over ‖b − a‖²: 1 if the step from a to b is at right angles to a, −1 the other way round.
    pub norm: ByGroup,
}

pub(super) fn votes(a: &Sketch, b: &Sketch, groups: &Groups<'_>) -> Votes {
    let mut votes = Votes { kurtosis: [0.0; GROUPS], norm: [0.0; GROUPS] };
    for (key, x, y) in sides(a, b).both.into_iter().filter(|(_, x, _)| x.matrix) {
        let distance = x.distance(y);
        if distance == 0.0 || !distance.is_finite() {
            continue;
        }
        let group = groups.get(key);
        if let (Some(of_a), Some(of_b)) = (x.kurtosis, y.kurtosis) {
            votes.kurtosis[group] += of_a - of_b;
        }
        let growth = (y.squares - x.squares) / distance;
        votes.norm[group] += if growth.is_finite() { growth.clamp(-2.0, 2.0) } else { 0.0 };
    }
    votes
}
