//! Models that are mixtures of others.
//!
//! A linear merge of models p₀ … p_k is x = Σ αᵢ pᵢ with Σ αᵢ = 1; task arithmetic, b + Σ λᵢ (pᵢ − b), is one with
//! α_b = 1 − Σ λᵢ (Ilharco et al. 2023). With βᵢ = αᵢ for i ≥ 1 the least squares problem has the normal equations
//!     G β = r,   Gᵢⱼ = ⟨pᵢ − p₀, pⱼ − p₀⟩,   rᵢ = ⟨x − p₀, pᵢ − p₀⟩,   ‖x − Σ αᵢ pᵢ‖² = ‖x − p₀‖² − β·r
//! whose inner products follow from distances alone: 2⟨u − w, v − w⟩ = ‖u − w‖² + ‖v − w‖² − ‖u − v‖². So no weights are
//! read. x is held for a merge if next to nothing remains of its distance to the nearest parent. A model between k others
//! by chance (a root amid its children) leaves at least 1/k of it.
//!
//! The relation of x, p₀ … p_k is symmetric; who was made from whom is not. With all αᵢ > 0 the merge is the one amid the
//! others. Else the model whose own coefficients are clearly the smallest is, and where there is none, no merge is claimed.

use serde::Serialize;

/// What may remain of the squared distance to the nearest parent.
const REMAINS: f64 = 0.05;
/// Parents at most.
const PARENTS: usize = 4;
/// Nearest models that are tried as parents.
const NEAREST: usize = 12;
/// A part of a merge is no less than this.
const PART: f64 = 0.02;
/// Sum of magnitudes of coefficients of a merge at most: b + δ₁ + δ₂ has 3.
const SPREAD: f64 = 3.5;
/// How much smaller the coefficients of the merge must be than those of the others seen as merges.
const CLEARLY: f64 = 0.9;

/// A model that others were mixed into.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Merge {
    /// The merge.
    pub child: usize,
    /// What it was made from, with the coefficient of each; they add up to 1.
    pub parents: Vec<(usize, f64)>,
    /// What remains of the squared distance to the nearest parent.
    pub remains: f64,
}

/// The best affine mixture of `parents` for `x`, and the share of the squared distance to the nearest of them that
/// remains. `d` has squared distances, (n, n) row-major. `None` if the parents do not span what their number says.
pub(super) fn fit(n: usize, d: &[f64], x: usize, parents: &[usize]) -> Option<(Vec<f64>, f64)> {
    let p0 = *parents.first()?;
    let at = |a: usize, b: usize| d[a * n + b];
    let inner = |u: usize, v: usize| 0.5 * (at(u, p0) + at(v, p0) - at(u, v));
    let k = parents.len() - 1;
    // (k, k + 1): the Gram matrix, and the right side.
    let mut rows: Vec<Vec<f64>> = parents[1..]
        .iter()
        .map(|&i| parents[1..].iter().map(|&j| inner(i, j)).chain([inner(x, i)]).collect())
        .collect();
    let right: Vec<f64> = rows.iter().map(|row| row[k]).collect();
    for column in 0..k {
        let own = at(parents[column + 1], p0);
        let pivot = (column..k).max_by(|&i, &j| rows[i][column].abs().total_cmp(&rows[j][column].abs()))?;
        rows.swap(column, pivot);
        let size = rows[column][column].abs();
        if size.is_nan() || size <= 1e-6 * own {
            return None;
        }
        let (upper, lower) = rows.split_at_mut(column + 1);
        let top = &upper[column];
        for row in lower {
            let factor = row[column] / top[column];
            row.iter_mut().zip(top).for_each(|(value, top)| *value -= factor * top);
        }
    }
    let mut beta = vec![0.0; k];
    for row in (0..k).rev() {
        let known: f64 = (row + 1..k).map(|at| rows[row][at] * beta[at]).sum();
        beta[row] = (rows[row][k] - known) / rows[row][row];
    }
    let nearest = parents.iter().map(|&p| at(x, p)).fold(f64::INFINITY, f64::min);
    let left = at(x, p0) - beta.iter().zip(&right).map(|(beta, right)| beta * right).sum::<f64>();
    let remains = (left / nearest).max(0.0);
    let alpha = std::iter::once(1.0 - beta.iter().sum::<f64>()).chain(beta).collect();
    remains.is_finite().then_some((alpha, remains))
}

/// Whether so little `remains` that a mixture explains a model.
pub(super) fn explains(remains: f64) -> bool {
    remains < REMAINS
}

/// The merges among `n` models of squared distances `d`.
pub(super) fn find(n: usize, d: &[f64]) -> Vec<Merge> {
    let mut found: Vec<Merge> = (0..n).filter_map(|x| best(n, d, x)).collect();
    // The surest first; a merge is not made from what was made from it.
    found.sort_by(|x, y| x.remains.total_cmp(&y.remains).then(x.child.cmp(&y.child)));
    let mut kept: Vec<Merge> = Vec::new();
    for merge in found {
        let mut above: Vec<usize> = merge.parents.iter().map(|(parent, _)| *parent).collect();
        let mut next = 0;
        while let Some(&model) = above.get(next) {
            let parents = kept.iter().filter(|merge| merge.child == model).flat_map(|merge| &merge.parents);
            let new: Vec<usize> = parents.map(|(parent, _)| *parent).filter(|parent| !above.contains(parent)).collect();
            above.extend(new);
            next += 1;
        }
        if !above.contains(&merge.child) {
            kept.push(merge);
        }
    }
    kept.sort_by_key(|merge| merge.child);
    kept
}

fn best(n: usize, d: &[f64], x: usize) -> Option<Merge> {
    let mut near: Vec<usize> = (0..n).filter(|&p| p != x).collect();
    near.sort_by(|&p, &q| d[x * n + p].total_cmp(&d[x * n + q]).then(p.cmp(&q)));
    if near.len() < 2 || d[x * n + near[0]] == 0.0 {
        return None; // a copy of another model is not made of several
    }
    near.truncate(NEAREST);
    let mut best: Option<(Vec<usize>, Vec<f64>, f64)> = None;
    let consider = |parents: Vec<usize>, best: &mut Option<(Vec<usize>, Vec<f64>, f64)>| {
        if let Some((alpha, remains)) = fit(n, d, x, &parents)
            && best.as_ref().is_none_or(|(_, _, least)| remains < *least)
        {
            *best = Some((parents, alpha, remains));
        }
    };
    for (at, &p) in near.iter().enumerate() {
        near[at + 1..].iter().for_each(|&q| consider(vec![p, q], &mut best));
    }
    for count in 3..=PARENTS {
        let (known, _, remains) = best.clone()?;
        if remains < REMAINS / 10.0 {
            break;
        }
        // Three at once, since a base between its children is in no best pair; a fourth beside the best three.
        let mut more: Option<(Vec<usize>, Vec<f64>, f64)> = None;
        if count == 3 {
            for (at, &p) in near.iter().enumerate() {
                for (next, &q) in near.iter().enumerate().skip(at + 1) {
                    near[next + 1..].iter().for_each(|&r| consider(vec![p, q, r], &mut more));
                }
            }
        } else {
            let others = near.iter().filter(|other| !known.contains(other));
            others.for_each(|&other| consider(known.iter().copied().chain([other]).collect(), &mut more));
        }
        // Another parent must explain much more, or chance has chosen it.
        best = more.filter(|(.., less)| *less < 0.5 * remains).or(best);
    }
    let (parents, alpha, remains) = best?;
    let credible = explains(remains) && alpha.iter().all(|alpha| alpha.abs() > PART);
    let merge = Merge { child: x, parents: parents.into_iter().zip(alpha).collect(), remains };
    (credible && is_child(n, d, &merge)).then_some(merge)
}

/// Whether x, rather than one of the others, is what was made.
fn is_child(n: usize, d: &[f64], merge: &Merge) -> bool {
    let spread = |coefficients: &mut dyn Iterator<Item = f64>| coefficients.map(f64::abs).sum::<f64>();
    let own = spread(&mut merge.parents.iter().map(|(_, alpha)| *alpha));
    if merge.parents.iter().all(|(_, alpha)| *alpha > 0.0) {
        return true;
    }
    let members = || merge.parents.iter().map(|(parent, _)| *parent).chain([merge.child]);
    // Solved for parent p: p = x/α_p − Σ (αᵢ/α_p) pᵢ.
    let solved = |of: f64| (1.0 + own - of.abs()) / of.abs();
    if own > SPREAD {
        return false;
    }
    if merge.parents.iter().all(|(_, alpha)| own < CLEARLY * solved(*alpha)) {
        return true;
    }
    if merge.parents.iter().any(|(_, alpha)| solved(*alpha) < CLEARLY * own) {
        return false;
    }
    // A parallelogram. What was made is far from the models outside of it, which descend from the corner across.
    let outside = |model: usize| {
        (0..n).filter(|&other| members().all(|m| m != other)).map(|other| d[model * n + other]).sum::<f64>()
    };
    let farthest = members().filter(|&m| m != merge.child).map(outside).fold(0.0, f64::max);
    outside(merge.child) > 1.01 * farthest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Squared distances of points on the axes of a space.
    fn squared(points: &[&[f64]]) -> Vec<f64> {
        let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        points.iter().flat_map(|a| points.iter().map(move |b| distance(a, b))).collect()
    }

    #[test]
    fn coefficients_are_those_of_the_mixture() {
        let d = squared(&[&[0.0, 0.0, 0.0], &[1.0, 0.0, 0.0], &[0.0, 2.0, 0.0], &[0.3, 0.8, 0.0], &[0.0, 0.0, 1.0]]);
        let found = find(5, &d);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].child, 3);
        let expected = [(0, 0.3), (1, 0.3), (2, 0.4)];
        for (model, alpha) in expected {
            let (_, found) = found[0].parents.iter().find(|(parent, _)| *parent == model).unwrap();
            assert!((found - alpha).abs() < 1e-9, "{found} {alpha}");
        }
    }

    #[test]
    fn a_root_amid_its_children_is_no_merge_and_a_copy_neither() {
        let star: Vec<Vec<f64>> =
            (0..9).map(|at| (0..8).map(|axis| f64::from(u8::from(at == axis + 1))).collect()).collect();
        let star: Vec<&[f64]> = star.iter().map(Vec::as_slice).collect();
        assert!(find(9, &squared(&star)).is_empty());
        assert!(find(3, &squared(&[&[0.0], &[1.0], &[0.0]])).is_empty());
        assert!(find(2, &squared(&[&[0.0], &[1.0]])).is_empty() && find(0, &[]).is_empty());
    }

    #[test]
    fn a_whole_task_vector_each_is_told_by_the_other_children_of_the_base() {
        let corners: [&[f64]; 4] = [&[0.0, 0.0, 0.0], &[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0], &[1.0, 1.0, 0.0]];
        assert!(find(4, &squared(&corners)).is_empty(), "four corners alone do not tell which was made");
        let with_child: Vec<&[f64]> = corners.into_iter().chain([&[0.0, 0.0, 1.0][..]]).collect();
        let found = find(5, &squared(&with_child));
        assert_eq!(found.iter().map(|merge| merge.child).collect::<Vec<_>>(), [3], "{found:?}");
    }

    #[test]
    fn distances_that_make_no_sense_do_no_harm() {
        let mut d = vec![f64::MAX / 200.0; 25];
        assert!(find(5, &d).len() <= 5);
        d.iter_mut().for_each(|d| *d = f64::NAN);
        assert!(find(5, &d).is_empty());
    }
}
