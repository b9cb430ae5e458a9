//! Models that belong to one tree: average linkage (Sokal and Michener 1958) on the distances of pairs.
//!
//! The distance of two clusters is the mean over their pairs, d(i∪j, k) = (nᵢ d(i,k) + nⱼ d(j,k)) / (nᵢ + nⱼ). Chains of
//! nearest neighbours find the same hierarchy as always joining the two nearest clusters (Bruynooghe 1977), in O(n²).

use serde::Serialize;

/// One joining of two clusters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Join {
    /// A model of the first cluster: the one named first.
    pub a: usize,
    /// A model of the second.
    pub b: usize,
    /// Their distance: √2 between strangers, 0 between equal models.
    pub height: f64,
}

/// The dendrogram of `n` models, lowest joining first. `distance` is symmetric, (n, n) row-major.
pub(super) fn average_linkage(n: usize, distance: &[f64]) -> Vec<Join> {
    let mut d = distance.to_vec();
    let mut size = vec![1usize; n];
    let mut joins = Vec::with_capacity(n.saturating_sub(1));
    let mut chain: Vec<usize> = Vec::new();
    while joins.len() + 1 < n {
        if chain.is_empty() {
            chain.extend(size.iter().position(|&size| size > 0));
        }
        let Some(&top) = chain.last() else { break };
        let before = chain.len().checked_sub(2).map(|at| chain[at]);
        // Ties go to the chain, so that it ends, and then to the first.
        let others = (0..n).filter(|&other| other != top && size[other] > 0);
        let nearest = others.min_by(|&x, &y| {
            d[top * n + x]
                .total_cmp(&d[top * n + y])
                .then((before != Some(x)).cmp(&(before != Some(y))))
                .then(x.cmp(&y))
        });
        let Some(nearest) = nearest else { break };
        if before != Some(nearest) {
            chain.push(nearest);
            continue;
        }
        chain.truncate(chain.len() - 2);
        let (a, b) = (top.min(nearest), top.max(nearest));
        joins.push(Join { a, b, height: d[a * n + b] });
        let (of_a, of_b) = (size[a] as f64, size[b] as f64);
        for other in (0..n).filter(|&other| other != a && other != b) {
            let mean = (of_a * d[a * n + other] + of_b * d[b * n + other]) / (of_a + of_b);
            (d[a * n + other], d[other * n + a]) = (mean, mean);
        }
        (size[a], size[b]) = (size[a] + size[b], 0);
    }
    // A cluster is known by its first model, so sorting by height, which never falls along a chain, keeps all meaning.
    joins.sort_by(|x, y| x.height.total_cmp(&y.height).then((x.a, x.b).cmp(&(y.a, y.b))));
    joins
}

/// The clusters that joinings up to `cut` make, each in ascending order, ordered by their first model.
pub(super) fn cut(n: usize, joins: &[Join], cut: f64) -> Vec<Vec<usize>> {
    let mut of: Vec<usize> = (0..n).collect();
    for join in joins.iter().filter(|join| join.height <= cut) {
        let (to, from) = (of[join.a].min(of[join.b]), of[join.a].max(of[join.b]));
        of.iter_mut().filter(|cluster| **cluster == from).for_each(|cluster| *cluster = to);
    }
    let members = |cluster: usize| (0..n).filter(|&at| of[at] == cluster).collect::<Vec<_>>();
    (0..n).map(members).filter(|cluster| !cluster.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Joins the two clusters of the least mean distance until one is left: the definition.
    fn naive(n: usize, d: &[f64]) -> Vec<f64> {
        let mut clusters: Vec<Vec<usize>> = (0..n).map(|at| vec![at]).collect();
        let mut heights = Vec::new();
        while clusters.len() > 1 {
            let mut best = (f64::INFINITY, 0, 0);
            for i in 0..clusters.len() {
                for j in i + 1..clusters.len() {
                    let pairs = clusters[i].iter().flat_map(|x| clusters[j].iter().map(move |y| d[x * n + y]));
                    let mean = pairs.sum::<f64>() / (clusters[i].len() * clusters[j].len()) as f64;
                    if mean < best.0 {
                        best = (mean, i, j);
                    }
                }
            }
            let gone = clusters.remove(best.2);
            clusters[best.1].extend(gone);
            heights.push(best.0);
        }
        heights
    }

    proptest! {
        #[test]
        fn matches_the_definition(n in 1usize..9, seed in prop::collection::vec(0.01f64..1.4, 64)) {
            let d: Vec<f64> = (0..n * n)
                .map(|at| if at / n == at % n { 0.0 } else { seed[(at / n).min(at % n) * 8 + (at / n).max(at % n) - 1] })
                .collect();
            let joins = average_linkage(n, &d);
            let expected = naive(n, &d);
            prop_assert_eq!(joins.len(), expected.len());
            for (join, expected) in joins.iter().zip(&expected) {
                prop_assert!((join.height - expected).abs() < 1e-9, "{} {}", join.height, expected);
            }
        }
    }

    #[test]
    fn strangers_and_equals_fall_where_they_belong() {
        // 0 and 2 are equal, 1 and 3 near, all else √2 apart.
        let d = [0.0, 1.414, 0.0, 1.414, 1.414, 0.0, 1.414, 0.1, 0.0, 1.414, 0.0, 1.414, 1.414, 0.1, 1.414, 0.0];
        let joins = average_linkage(4, &d);
        assert_eq!(cut(4, &joins, 1.2), [vec![0, 2], vec![1, 3]]);
        assert_eq!(cut(4, &joins, 2.0), [vec![0, 1, 2, 3]]);
        assert_eq!(cut(1, &average_linkage(1, &[0.0]), 1.2), [vec![0]]);
        assert!(cut(0, &average_linkage(0, &[]), 1.2).is_empty());
    }
}
