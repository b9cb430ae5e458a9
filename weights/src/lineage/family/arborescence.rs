//! The cheapest directed tree: Chu and Liu 1965, Edmonds 1967.
//!
//! Each node but the root takes its cheapest incoming arc. If these make a cycle, it is contracted to one node, an arc into
//! node v of it costing what it adds, c(u→v) − c(π(v)→v), the rest is solved, and the cycle opened where the solution
//! enters it. All cycles are contracted at once, so that there are few rounds of O(n²).

/// The parent of each node of the arborescence of least cost over all of `n` nodes, with any root; the root has none.
/// `cost` is (n, n) row-major, from row to column; infinite where there is no arc. `None` if no node reaches all others.
///
/// Ties go to the lower number, so the result depends on nothing but the costs.
pub(super) fn arborescence(n: usize, cost: &[f64], root_cost: &[f64]) -> Option<Vec<Option<usize>>> {
    if n == 0 {
        return Some(Vec::new());
    }
    // A node above all, whose arcs are so dear that one is used; what a second would cost is never worth it.
    let dear: f64 =
        1.0 + cost.iter().chain(root_cost).filter(|cost| cost.is_finite()).map(|cost| cost.abs()).sum::<f64>();
    let all = n + 1;
    let mut costs = vec![f64::INFINITY; all * all];
    for from in 0..n {
        for to in (0..n).filter(|&to| to != from) {
            costs[from * all + to] = cost[from * n + to];
        }
        costs[n * all + from] = dear + root_cost[from];
    }
    let parents = solve(all, &costs, n)?;
    let roots = parents[..n].iter().filter(|parent| **parent == n).count();
    (roots == 1).then(|| parents[..n].iter().map(|&parent| (parent != n).then_some(parent)).collect())
}

/// The parents of the cheapest arborescence from `root` (whose own entry means nothing).
fn solve(n: usize, cost: &[f64], root: usize) -> Option<Vec<usize>> {
    let mut parents = vec![root; n];
    for node in (0..n).filter(|&node| node != root) {
        let into = |from: usize| cost[from * n + node];
        let cheapest = (0..n).filter(|&from| from != node).min_by(|&x, &y| into(x).total_cmp(&into(y)));
        parents[node] = cheapest.filter(|&from| into(from).is_finite())?;
    }
    let (of, m, in_cycle) = contracted(&parents, root);
    if m == n {
        return Some(parents);
    }
    // All cycles at once, each as one node; of the arcs from one node to another the one that adds least.
    let mut smaller = vec![f64::INFINITY; m * m];
    let mut arcs = vec![(root, root); m * m];
    for from in 0..n {
        for to in (0..n).filter(|&to| of[to] != of[from]) {
            let saved = if in_cycle[to] { cost[parents[to] * n + to] } else { 0.0 };
            let (adds, place) = (cost[from * n + to] - saved, of[from] * m + of[to]);
            if adds < smaller[place] {
                (smaller[place], arcs[place]) = (adds, (from, to));
            }
        }
    }
    let solved = solve(m, &smaller, of[root])?;
    for node in (0..m).filter(|&node| node != of[root]) {
        let (from, to) = arcs[solved[node] * m + node];
        parents[to] = from;
    }
    Some(parents)
}

/// For each node the number of the node it becomes when every cycle among `parents` becomes one, how many there are then,
/// and whether it is on a cycle.
fn contracted(parents: &[usize], root: usize) -> (Vec<usize>, usize, Vec<bool>) {
    let n = parents.len();
    let (mut seen, mut in_cycle, mut of) = (vec![usize::MAX; n], vec![false; n], vec![usize::MAX; n]);
    let mut count = 0;
    for start in 0..n {
        let mut node = start;
        while node != root && seen[node] == usize::MAX {
            seen[node] = start;
            node = parents[node];
        }
        // Back on this very walk, and not on an earlier one: a cycle.
        if node != root && seen[node] == start && !in_cycle[node] {
            while !in_cycle[node] {
                (in_cycle[node], of[node]) = (true, count);
                node = parents[node];
            }
            count += 1;
        }
    }
    for of in of.iter_mut().filter(|of| **of == usize::MAX) {
        (*of, count) = (count, count + 1);
    }
    (of, count, in_cycle)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The least cost over all choices of a root and of parents that make a tree.
    fn exhaustive(n: usize, cost: &[f64], root_cost: &[f64]) -> Option<f64> {
        let mut best: Option<f64> = None;
        for code in 0..(n + 1).pow(n as u32) {
            let parents: Vec<usize> = (0..n).map(|node| code / (n + 1).pow(node as u32) % (n + 1)).collect();
            let reaches = |mut node: usize| {
                for _ in 0..=n {
                    if parents[node] == n {
                        return true;
                    }
                    node = parents[node];
                }
                false
            };
            if parents.iter().filter(|&&parent| parent == n).count() != 1 || !(0..n).all(reaches) {
                continue;
            }
            let total = total(n, cost, root_cost, &parents.iter().map(|&p| (p < n).then_some(p)).collect::<Vec<_>>());
            if total.is_finite() && best.is_none_or(|best| total < best) {
                best = Some(total);
            }
        }
        best
    }

    fn total(n: usize, cost: &[f64], root_cost: &[f64], parents: &[Option<usize>]) -> f64 {
        parents.iter().enumerate().map(|(node, p)| p.map_or(root_cost[node], |p| cost[p * n + node])).sum()
    }

    proptest! {
        #[test]
        fn matches_the_exhaustive_search(
            n in 1usize..6,
            costs in prop::collection::vec(prop_oneof![4 => (0.0f64..10.0).boxed(), 1 => Just(f64::INFINITY).boxed()], 25),
            roots in prop::collection::vec(0.0f64..3.0, 5),
        ) {
            let cost: Vec<f64> = (0..n * n).map(|at| costs[at / n * 5 + at % n]).collect();
            let found = arborescence(n, &cost, &roots[..n]);
            let expected = exhaustive(n, &cost, &roots[..n]);
            prop_assert_eq!(found.is_some(), expected.is_some());
            if let (Some(found), Some(expected)) = (found, expected) {
                prop_assert!((total(n, &cost, &roots[..n], &found) - expected).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn a_cycle_of_cheap_arcs_is_opened() {
        // 1 and 2 are near each other, 0 can only be the root.
        let cost = [0.0, 5.0, 6.0, f64::INFINITY, 0.0, 1.0, f64::INFINITY, 1.0, 0.0];
        assert_eq!(arborescence(3, &cost, &[0.0; 3]), Some(vec![None, Some(0), Some(1)]));
        assert_eq!(arborescence(0, &[], &[]), Some(vec![]));
        assert_eq!(arborescence(2, &[0.0, f64::INFINITY, f64::INFINITY, 0.0], &[0.0; 2]), None);
    }
}
