//! Which way the edges of a tree run: what is certain, what is likely, and what nobody can tell.
//!
//! A tree without directions becomes a family once its root is known, so the posterior is one over roots:
//!     P(root) ∝ R(root) · M(root) · C(root),
//! and an edge's direction has the sum over the roots on its parent's side.
//!
//! * R, rumour centrality (Shah and Zaman 2011): if models are derived one after another from models chosen at random, a
//!   root has as many histories as n! / ∏ |subtree of v|. It favours the middle of fans.
//! * M, moments: training moves the kurtosis of weights, and their norm, mostly one way within a tree, and mostly the
//!   kurtosis downwards (Horwitz et al. 2025). Which way is learnt with the root: with h of the votes for a younger
//!   model's lower kurtosis and m against, M = B(a + h, b + m) / B(a, b), where votes of edges known elsewhere add to a and b.
//! * C: certain directions; a root that denies one is out. Declared parents, and what is seldom done the
//!   other way round, count 19 to 1.

use std::collections::{BTreeMap, BTreeSet};

use super::distance::{GROUPS, Votes};

/// Prior votes that the younger model has the lower kurtosis, and that it has not.
const KURTOSIS: [f64; 2] = [1.2, 0.8];
/// The same of the larger norm: none either way.
const NORM: [f64; 2] = [1.0, 1.0];
/// ln of the weight against a root that denies a certain direction: beyond all votes.
const CERTAIN: f64 = 1e3;
/// ln 19.
const HINT: f64 = 2.944;

/// An edge between models `a` and `b`.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub a: usize,
    pub b: usize,
    /// Known to run from a to b (true) or from b to a.
    pub certain: Option<bool>,
    /// Most likely runs from a to b (true) or from b to a, by what was done.
    pub leans: Option<bool>,
    /// Said to run from a to b (true) or from b to a.
    pub declared: Option<bool>,
    /// Moments, where the two differ by training.
    pub votes: Option<Votes>,
}

/// How strongly, from −1 to 1, each kind of moment says that a is older than b, with `weights` of the groups.
pub(super) fn strengths(votes: &Votes, weights: &[f64; GROUPS]) -> [f64; 2] {
    [&votes.kurtosis, &votes.norm].map(|of| {
        let (sum, squares) = of
            .iter()
            .zip(weights)
            .fold((0.0, 0.0), |(sum, squares), (vote, weight)| (sum + weight * vote, squares + weight * vote * vote));
        // The sum in standard deviations of one whose signs are random; half a vote at one deviation.
        if squares > 0.0 { (sum / squares.sqrt() * 0.55).tanh() } else { 0.0 }
    })
}

/// Votes for and against, for each kind of moment.
pub(super) type Tally = [[f64; 2]; 2];

pub(super) fn tally(strengths: [f64; 2], forwards: bool, tally: &mut Tally) {
    for (of, strength) in tally.iter_mut().zip(strengths) {
        of[usize::from((strength > 0.0) != forwards)] += strength.abs();
    }
}

/// The probability of each of `models` to be the root of the tree that `links` make of them. `elsewhere` are votes of
/// known edges of other trees.
pub(super) fn roots(models: &[usize], links: &[Link], weights: &[f64; GROUPS], elsewhere: &Tally) -> Vec<f64> {
    let place = |model: usize| models.iter().position(|&known| known == model);
    let mut beside: Vec<Vec<(usize, usize, bool)>> = vec![Vec::new(); models.len()];
    for (at, link) in links.iter().enumerate() {
        if let (Some(a), Some(b)) = (place(link.a), place(link.b)) {
            beside[a].push((b, at, true));
            beside[b].push((a, at, false));
        }
    }
    let strengths: Vec<_> =
        links.iter().map(|link| link.votes.as_ref().map(|votes| strengths(votes, weights))).collect();
    let logs: Vec<f64> = (0..models.len())
        .map(|root| {
            // Depth first: the order, and for each node the one above.
            let mut order = vec![(root, root)];
            let mut next = 0;
            let (mut log, mut votes) = (0.0, *elsewhere);
            while let Some(&(node, above)) = order.get(next) {
                next += 1;
                for &(other, at, forwards) in beside[node].iter().filter(|(other, ..)| *other != above) {
                    order.push((other, node));
                    let link = &links[at];
                    log -= if link.certain.is_some_and(|certain| certain != forwards) { CERTAIN } else { 0.0 };
                    for hint in [link.declared, link.leans].into_iter().flatten() {
                        log += if hint == forwards { 0.5 * HINT } else { -0.5 * HINT };
                    }
                    if let Some(strengths) = strengths[at] {
                        tally(strengths, forwards, &mut votes);
                    }
                }
            }
            let mut size = vec![1.0; models.len()];
            for &(node, above) in order[1..].iter().rev() {
                size[above] += size[node];
            }
            log -= size.iter().map(|size: &f64| size.ln()).sum::<f64>();
            for (prior, [with, against]) in [KURTOSIS, NORM].into_iter().zip(votes) {
                log += ln_beta(prior[0] + with, prior[1] + against);
            }
            log
        })
        .collect();
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logs.iter().map(|log| (log - most).exp()).collect();
    let all: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / all).collect()
}

fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

/// ln Γ(x) for x > 0: Stirling's series beyond 8, brought there by Γ(x + 1) = x Γ(x). Its error is below 1e-9.
fn ln_gamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 8.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let series = (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * x * x)) / (x * x)) / x;
    shift + (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series
}

/// The models that can be reached from `side` without the link of number `without`, in ascending order.
pub(super) fn beyond(links: &[Link], without: usize, side: usize) -> BTreeSet<usize> {
    let mut beside: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (_, link) in links.iter().enumerate().filter(|(at, _)| *at != without) {
        beside.entry(link.a).or_default().push(link.b);
        beside.entry(link.b).or_default().push(link.a);
    }
    let mut reached = BTreeSet::from([side]);
    let mut open = vec![side];
    while let Some(model) = open.pop() {
        open.extend(beside.get(&model).into_iter().flatten().filter(|&&other| reached.insert(other)));
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(a: usize, b: usize) -> Link {
        Link { a, b, certain: None, leans: None, declared: None, votes: None }
    }

    fn voting(a: usize, b: usize, kurtosis: f64) -> Link {
        let votes = Votes { kurtosis: [kurtosis; GROUPS], norm: [0.0; GROUPS] };
        Link { votes: Some(votes), ..link(a, b) }
    }

    const EVEN: [f64; GROUPS] = [1.0; GROUPS];
    const NONE: Tally = [[0.0; 2]; 2];

    #[test]
    fn a_fan_speaks_for_its_middle_and_a_pair_for_nothing() {
        assert_eq!(roots(&[4, 9], &[link(4, 9)], &EVEN, &NONE), [0.5, 0.5]);
        // 4!/4 histories from the middle, 4!/(4·3) from each leaf.
        let fan = roots(&[0, 1, 2, 3], &[link(0, 1), link(0, 2), link(0, 3)], &EVEN, &NONE);
        for (found, expected) in fan.iter().zip([0.5, 1.0 / 6.0, 1.0 / 6.0, 1.0 / 6.0]) {
            assert!((found - expected).abs() < 1e-9, "{fan:?}");
        }
    }

    #[test]
    fn one_certain_edge_turns_all_that_lie_behind_it() {
        let mut links = vec![link(0, 1), link(1, 2), link(2, 3)];
        links[0].certain = Some(true);
        let chain = roots(&[0, 1, 2, 3], &links, &EVEN, &NONE);
        assert!(chain[0] > 0.999, "{chain:?}");
    }

    #[test]
    fn the_sign_of_kurtosis_is_learnt_from_known_edges() {
        let unknown = [voting(0, 1, 1.0)];
        let lower = roots(&[0, 1], &unknown, &EVEN, &NONE);
        assert!(lower[0] > 0.55 && lower[0] < 0.65, "{lower:?}");
        let reversed = [[0.0, 8.0], [0.0, 0.0]];
        let learnt = roots(&[0, 1], &unknown, &EVEN, &reversed);
        assert!(learnt[1] > 0.85, "{learnt:?}");
    }

    #[test]
    fn sides_of_an_edge() {
        let links = [link(0, 1), link(1, 2), link(1, 3)];
        assert_eq!(beyond(&links, 1, 2), BTreeSet::from([2]));
        assert_eq!(beyond(&links, 1, 1), BTreeSet::from([0, 1, 3]));
    }

    #[test]
    fn gamma_is_that_of_factorials() {
        for (x, expected) in
            [(1.0, 1.0f64), (2.0, 1.0), (5.0, 24.0), (0.5, std::f64::consts::PI.sqrt()), (11.0, 3_628_800.0)]
        {
            assert!((ln_gamma(x) - expected.ln()).abs() < 1e-9, "{x}");
        }
    }
}
