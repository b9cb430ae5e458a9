//! The statistics that paired comparisons are made of, each over plain numbers.

use std::collections::HashMap;

use rayon::prelude::*;
use scruple_compress::data::random::draw;
use serde::Serialize;

/// Version of intervals and p values: records of others are made anew.
pub const VERSION: u32 = 2;

/// How an interval is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bootstrap {
    /// How often the items are drawn anew.
    pub replicates: usize,
    /// Keys the draws, with the number of the replicate.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { replicates: 2000, seed: 0 }
    }
}

/// The middle 95 % of the bootstrap's replicates, in the unit of what was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Quantile of 2.5 %.
    pub low: f64,
    /// Quantile of 97.5 %.
    pub high: f64,
}

impl Interval {
    /// Of replicates in any order; absent without any.
    pub fn of(replicates: &[f64]) -> Option<Self> {
        let mut sorted = replicates.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self { low: quantile(&sorted, 0.025)?, high: quantile(&sorted, 0.975)? })
    }

    /// Of a score, which runs from 0 to 100 and no further.
    pub fn of_score(self) -> Self {
        Self { low: self.low.clamp(0.0, 100.0), high: self.high.clamp(0.0, 100.0) }
    }

    /// Whether `x` lies within, the ends included.
    pub fn contains(&self, x: f64) -> bool {
        (self.low..=self.high).contains(&x)
    }
}

/// The quantile `q` of ascending numbers, linear between the two nearest (Hyndman and Fan 1996, definition 7); absent
/// without any.
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let at = q * sorted.len().checked_sub(1)? as f64;
    let (below, part) = (at.floor() as usize, at.fract());
    let low = sorted[below];
    let high = sorted[(below + 1).min(sorted.len() - 1)];
    // Between equal numbers there is nothing to interpolate, and rounding must not make something of it.
    Some(if low == high { low } else { low + part * (high - low) })
}

/// Items in clusters, clusters in strata: what the bootstrap draws from.
///
/// A draw takes from each stratum as many clusters as the stratum has, with replacement, and every item of a cluster
/// taken. A stratum is what a score sets against or beside others (a group of people, a part of the suite), so that each
/// draw holds as many clusters of it as the suite does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clusters {
    strata: Vec<Vec<Cluster>>,
}

/// Items that vary together.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cluster {
    /// Their positions.
    members: Vec<usize>,
    /// Whether each of their parts has no other cluster.
    alone: bool,
}

/// An item of a draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Drawn {
    /// Its position.
    pub at: usize,
    /// How often its cluster was taken before in this draw, where the cluster is all there is of its part. A mean over parts
    /// counts such a part as often as it was drawn; were it one part still, the draw would vary less than the items do.
    pub copy: usize,
}

impl Clusters {
    /// Of items given by the name of their cluster, their part and their group, where they have one.
    ///
    /// A cluster belongs to the stratum of its items' part and group, or, where its items are of several groups, of their
    /// part. Clusters of several parts are one stratum together, and a stratum of a single cluster joins them: alone it
    /// could not vary.
    pub fn new<'a>(items: impl IntoIterator<Item = (&'a str, &'a str, Option<&'a str>)>) -> Self {
        struct Named<'a> {
            part: Option<&'a str>,
            group: Option<&'a str>,
            parts: Vec<&'a str>,
            members: Vec<usize>,
        }
        let mut clusters: Vec<Named> = Vec::new();
        let mut places = HashMap::new();
        // The clusters of each part: the one there is, or none of several.
        let mut only: HashMap<&str, Option<usize>> = HashMap::new();
        for (position, (cluster, part, group)) in items.into_iter().enumerate() {
            let place = *places.entry(cluster).or_insert_with(|| {
                clusters.push(Named { part: Some(part), group, parts: Vec::new(), members: Vec::new() });
                clusters.len() - 1
            });
            let cluster = &mut clusters[place];
            if cluster.group != group {
                cluster.group = None;
            }
            if cluster.part != Some(part) {
                (cluster.part, cluster.group) = (None, None);
            }
            if !cluster.parts.contains(&part) {
                cluster.parts.push(part);
                only.entry(part).and_modify(|only| *only = None).or_insert(Some(place));
            }
            cluster.members.push(position);
        }
        // In order of first appearance, which is the same for every run.
        let mut strata: Vec<(bool, Vec<Cluster>)> = Vec::new();
        let mut places = HashMap::new();
        for Named { part, group, parts, members } in clusters {
            let place = *places.entry((part, group)).or_insert_with(|| {
                strata.push((part.is_some(), Vec::new()));
                strata.len() - 1
            });
            let alone = parts.iter().all(|part| only[part].is_some());
            strata[place].1.push(Cluster { members, alone });
        }
        let (mut several, others): (Vec<_>, Vec<_>) =
            strata.into_iter().partition(|(of_part, clusters)| *of_part && clusters.len() > 1);
        let mut rest: Vec<_> = others.into_iter().flat_map(|(_, clusters)| clusters).collect();
        match several.first_mut() {
            Some((_, first)) if rest.len() == 1 => first.append(&mut rest),
            _ if rest.is_empty() => {}
            _ => several.push((false, rest)),
        }
        Self { strata: several.into_iter().map(|(_, clusters)| clusters).collect() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.strata.iter().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.strata.is_empty()
    }

    /// Whether every cluster is a single item, so that items are independent.
    pub fn are_single(&self) -> bool {
        self.strata.iter().flatten().all(|cluster| cluster.members.len() == 1)
    }

    /// Whether a draw may hold copies of a part.
    pub fn has_alone(&self) -> bool {
        self.strata.iter().flatten().any(|cluster| cluster.alone)
    }

    /// The items of one replicate: a pure function of the seed and the replicate's number.
    pub fn draw(&self, bootstrap: Bootstrap, replicate: usize) -> Vec<Drawn> {
        let mut drawn = Vec::new();
        let mut index = 0;
        for clusters in &self.strata {
            let mut times = vec![0; clusters.len()];
            for _ in clusters {
                let bits = draw(bootstrap.seed, replicate as u64, index);
                index += 1;
                // Multiply and shift: uniform in 0..len to within len / 2⁶⁴.
                let taken = ((u128::from(bits) * clusters.len() as u128) >> 64) as usize;
                let copy = if clusters[taken].alone { times[taken] } else { 0 };
                times[taken] += 1;
                drawn.extend(clusters[taken].members.iter().map(|&at| Drawn { at, copy }));
            }
        }
        drawn
    }

    /// `statistic` of every replicate, in their order; those it says nothing of (a number that is not finite) are left
    /// out. The same for any number of threads.
    pub fn replicates<const N: usize>(
        &self,
        bootstrap: Bootstrap,
        statistic: impl Fn(&[Drawn]) -> [f64; N] + Sync,
    ) -> Vec<[f64; N]> {
        let of = |replicate| statistic(&self.draw(bootstrap, replicate));
        let all: Vec<[f64; N]> = (0..bootstrap.replicates).into_par_iter().map(of).collect();
        all.into_iter().filter(|values| values.iter().all(|x| x.is_finite())).collect()
    }

    /// Two-sided p value of a paired difference by exchange of the two sides (Fisher's randomisation test): were there no
    /// difference between them, each cluster's answers might as well have been the other side's. `difference` is that of the
    /// items with the flagged ones exchanged; p is the share of exchanges that come to at least the size of the one observed.
    ///
    /// All 2ᵏ exchanges of k clusters where that is no more than the replicates; else so many drawn ones, with the observed
    /// one counted among them. It asks nothing of the shape of the score, so that it holds for one that cannot fall below 0
    /// too; and few clusters cannot make it small. Absent where no exchange has a difference.
    pub fn exchange_p(&self, bootstrap: Bootstrap, difference: impl Fn(&[bool]) -> f64 + Sync) -> Option<f64> {
        let clusters: Vec<&Cluster> = self.strata.iter().flatten().collect();
        let items = clusters.iter().flat_map(|cluster| &cluster.members).max()? + 1;
        let of = |is_exchanged: &dyn Fn(usize) -> bool| {
            let mut exchanged = vec![false; items];
            for (_, cluster) in clusters.iter().enumerate().filter(|(number, _)| is_exchanged(*number)) {
                cluster.members.iter().for_each(|&at| exchanged[at] = true);
            }
            difference(&exchanged).abs()
        };
        let observed = of(&|_| false);
        let all = 1_usize.checked_shl(clusters.len() as u32).filter(|all| *all <= bootstrap.replicates);
        let sizes: Vec<f64> = match all {
            Some(all) => (0..all).into_par_iter().map(|mask| of(&|number| mask >> number & 1 == 1)).collect(),
            None => (0..bootstrap.replicates)
                .into_par_iter()
                .map(|replicate| {
                    let bits = |number: usize| draw(bootstrap.seed ^ EXCHANGES, replicate as u64, number as u64 / 64);
                    let words: Vec<u64> = (0..clusters.len().div_ceil(64)).map(|word| bits(64 * word)).collect();
                    of(&|number| words[number / 64] >> (number % 64) & 1 == 1)
                })
                .collect(),
        };
        let finite: Vec<f64> = sizes.into_iter().filter(|size| size.is_finite()).collect();
        if finite.is_empty() || !observed.is_finite() {
            return None;
        }
        let reached = finite.iter().filter(|size| **size >= observed - EQUAL).count();
        Some(match all {
            Some(_) => reached as f64 / finite.len() as f64,
            None => (reached + 1) as f64 / (finite.len() + 1) as f64,
        })
    }
}

/// Sets the draws of exchanges apart from those of the bootstrap.
const EXCHANGES: u64 = 0x6578_6368_616e_6765;

/// Scores this close, points, differ by rounding alone.
const EQUAL: f64 = 1e-9;

/// McNemar's exact test: how likely a split of `lost + gained` discordant items at least as uneven is, when each falls
/// either way with probability ½ (two-sided: twice the smaller binomial tail, at most 1).
pub fn mcnemar(lost: usize, gained: usize) -> f64 {
    let (n, k) = (lost + gained, lost.min(gained));
    if n == 0 {
        return 1.0;
    }
    // The tail's terms C(n, i) / 2ⁿ from i = k downwards, as shares of the first, which is the largest; that one in logs,
    // since 2ⁿ overflows from n = 1024 on.
    let first: f64 = (1..=k).map(|i| ((n - k + i) as f64 / i as f64).ln()).sum::<f64>() - n as f64 * 2_f64.ln();
    let (mut share, mut sum) = (1.0, 1.0);
    for i in (1..=k).rev() {
        share *= i as f64 / (n - i + 1) as f64;
        sum += share;
        if share < f64::EPSILON * f64::EPSILON {
            break;
        }
    }
    (2.0 * first.exp() * sum).min(1.0)
}

/// P values adjusted so that one family of tests is wrong anywhere with the nominal probability (Holm 1979): the i-th
/// smallest of m is multiplied by m − i + 1, made monotone and cut at 1. In the order given.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = vec![0.0; p.len()];
    let mut largest = 0.0_f64;
    for (rank, &at) in order.iter().enumerate() {
        largest = largest.max(((p.len() - rank) as f64 * p[at]).min(1.0));
        adjusted[at] = largest;
    }
    adjusted
}

/// Sample standard deviation (divided by n − 1); absent with fewer than two numbers.
pub fn deviation(numbers: &[f64]) -> Option<f64> {
    if numbers.len() < 2 {
        return None;
    }
    let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
    let squares: f64 = numbers.iter().map(|x| (x - mean).powi(2)).sum();
    Some((squares / (numbers.len() - 1) as f64).sqrt())
}

/// Kullback–Leibler divergence Σ p ln (p / q), nats. A q that underflowed to 0 counts as the smallest normal number, so that
/// one item cannot make a mean infinite.
pub fn divergence(p: &[f64], q: &[f64]) -> f64 {
    let terms = p.iter().zip(q).filter(|(p, _)| **p > 0.0);
    // Rounded probabilities may sum to a little less than 1; a divergence is never negative.
    terms.map(|(p, q)| p * (p / q.max(f64::MIN_POSITIVE)).ln()).sum::<f64>().max(0.0)
}
