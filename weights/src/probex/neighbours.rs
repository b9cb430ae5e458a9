//! Models by example: what the nearest documented models are, and how much a model is like those of one class.
//!
//! Representations are compared as they are, by their Euclidean distance d, as the authors of ProbeX do:
//!
//! ```text
//! vote           the classes of the k models of least d
//! two nearest    ½ (d₁ + d₂), the distances to the two nearest models of class c
//! spread         √((e − μ_c)ᵀ Σ_c⁻¹ (e − μ_c)),  Σ_c = (1 − δ) S_c + δ m I,  m = tr S_c / r_T
//! ```
//!
//! μ_c and S_c are mean and covariance of the models of class c, and δ is what brings Σ_c nearest to the covariance they
//! were drawn from (Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices").

use faer::{
    Mat, Side,
    linalg::solvers::{Llt, Solve},
};

use super::{head::Choice, layer::square_distance};

/// Models of a class whose distances are averaged.
const NEAREST: usize = 2;

/// ‖e − row‖ of every row of `rows`.
pub fn distances(rows: &[f32], e: &[f32]) -> Vec<f32> {
    rows.chunks_exact(e.len().max(1)).map(|row| square_distance(row, e).sqrt() as f32).collect()
}

/// The `count` places of least distance, nearest first; of equal ones the first.
pub fn nearest(distances: &[f32], count: usize) -> Vec<(usize, f32)> {
    let mut found: Vec<(usize, f32)> = distances.iter().copied().enumerate().collect();
    let order = |a: &(usize, f32), b: &(usize, f32)| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0));
    if count < found.len() {
        found.select_nth_unstable_by(count, order);
        found.truncate(count);
    }
    found.sort_unstable_by(order);
    found
}

/// What `neighbours` say, each with the classes it has, nearest first: the class most of them have, or every class that
/// more than half have. Where as many say yes as no, or two classes have as many, the nearest that has a say decides.
pub fn vote(choice: Choice, neighbours: &[&[usize]], classes: usize) -> Vec<usize> {
    let Some(first) = neighbours.first() else { return Vec::new() };
    let mut votes = vec![0; classes];
    neighbours.iter().flat_map(|held| held.iter()).for_each(|&class| votes[class] += 1);
    match choice {
        Choice::Several => (0..classes)
            .filter(|&class| match (2 * votes[class]).cmp(&neighbours.len()) {
                std::cmp::Ordering::Equal => first.contains(&class),
                more => more.is_gt(),
            })
            .collect(),
        Choice::One => {
            let most = votes.iter().copied().max().unwrap_or(0);
            let held = neighbours.iter().flat_map(|held| held.iter());
            held.copied().find(|&class| votes[class] == most).into_iter().collect()
        }
    }
}

/// How far a model is from class `class`: the mean distance to its two nearest models, `None` where it has fewer. `skip`
/// is a model that does not count: the one that is asked about, where it is among the documented.
pub fn to_class<'a>(
    distances: &[f32],
    held: impl Iterator<Item = &'a [usize]>,
    class: usize,
    skip: Option<usize>,
) -> Option<f32> {
    let mut near = [f32::INFINITY; NEAREST];
    for (at, (&distance, held)) in distances.iter().zip(held).enumerate() {
        if Some(at) != skip && distance < near[NEAREST - 1] && held.contains(&class) {
            near[NEAREST - 1] = distance;
            near.sort_unstable_by(f32::total_cmp);
        }
    }
    near[NEAREST - 1].is_finite().then(|| near.iter().sum::<f32>() / NEAREST as f32)
}

/// How far models that a probe did not learn from lie from the classes they have: what a model that asks to belong is held
/// against. Models that it learnt from lie nearer, for that is what it learnt.
#[derive(Debug, Clone, PartialEq)]
pub struct Members {
    /// Of every model and class it has, ascending.
    distances: Vec<f32>,
}

/// How well a model would fit among those of a class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Mean distance to the two nearest models of the class.
    pub distance: f32,
    /// Share of the members, this one among them, that lie at least as far from a class they have: to say that a model does
    /// not belong where this is below α is wrong of a share α of members at most, if it was made as they were (conformal:
    /// Vovk et al. 2005; over all classes together).
    pub p: f64,
}

impl Members {
    /// Of `models` and the classes of each, by the models `known` and theirs; rows are `width` long.
    pub fn of(width: usize, known: (&[f32], &[&[usize]]), models: (&[f32], &[&[usize]])) -> Self {
        use rayon::prelude::*;
        let rows = models.0.par_chunks_exact(width.max(1)).zip(models.1);
        let mut distances: Vec<f32> = rows
            .flat_map_iter(|(row, held)| {
                let distances = distances(known.0, row);
                held.iter().filter_map(move |&class| to_class(&distances, known.1.iter().copied(), class, None))
            })
            .collect();
        distances.sort_unstable_by(f32::total_cmp);
        Self { distances }
    }

    /// The fit of a model that lies at `distance` from a class; `None` where there are no members to hold it against.
    pub fn fit(&self, distance: f32) -> Option<Fit> {
        let nearer = self.distances.partition_point(|d| *d < distance);
        let all = self.distances.len();
        (all > 0).then(|| Fit { distance, p: (all - nearer + 1) as f64 / (all + 1) as f64 })
    }
}

/// Mean and covariance of the models of a class.
pub struct Spread {
    mean: Vec<f64>,
    solver: Llt<f64>,
    /// δ.
    pub shrinkage: f64,
}

impl Spread {
    /// Of `rows` (models, width); `None` with fewer than two, or where all are alike.
    pub fn of(rows: &[&[f32]]) -> Option<Self> {
        let width = rows.first()?.len();
        let n = rows.len();
        if n < 2 || width == 0 {
            return None;
        }
        let mean: Vec<f64> =
            (0..width).map(|at| rows.iter().map(|row| f64::from(row[at])).sum::<f64>() / n as f64).collect();
        let x = Mat::from_fn(n, width, |row, at| f64::from(rows[row][at]) - mean[at]);
        let mut sigma = x.transpose() * &x;
        sigma *= faer::Scale(1.0 / n as f64);
        let m = (0..width).map(|at| sigma[(at, at)]).sum::<f64>() / width as f64;
        let squares = |of: &Mat<f64>| of.squared_norm_l2() / width as f64;
        // ‖S − mI‖² and the mean of ‖x xᵀ − S‖² / n, whose terms are ‖x‖⁴ − 2 xᵀ S x + ‖S‖².
        let spread = squares(&sigma) - m * m;
        let sx = &x * &sigma;
        let errors: f64 = (0..n)
            .map(|row| {
                let (mut length, mut along) = (0.0, 0.0);
                for at in 0..width {
                    length += x[(row, at)] * x[(row, at)];
                    along += x[(row, at)] * sx[(row, at)];
                }
                (length * length - 2.0 * along) / width as f64 + squares(&sigma)
            })
            .sum::<f64>()
            / (n * n) as f64;
        let shrinkage = if spread > 0.0 { (errors / spread).clamp(0.0, 1.0) } else { 1.0 };
        sigma *= faer::Scale(1.0 - shrinkage);
        (0..width).for_each(|at| sigma[(at, at)] += shrinkage * m);
        Some(Self { mean, solver: sigma.llt(Side::Lower).ok()?, shrinkage })
    }

    /// How many deviations `e` lies from the mean, along its direction (Mahalanobis 1936).
    pub fn distance(&self, e: &[f32]) -> f32 {
        let x = Mat::from_fn(e.len(), 1, |at, _| f64::from(e[at]) - self.mean[at]);
        let solved = self.solver.solve(&x);
        (0..e.len()).map(|at| x[(at, 0)] * solved[(at, 0)]).sum::<f64>().max(0.0).sqrt() as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    const WIDTH: usize = 3;

    fn rows(count: usize, seed: u64) -> Vec<f32> {
        let mut stream = Stream::new(seed, "test", 0);
        // Two of five lie close together, so that nearest ones are of one kind often enough.
        let row = |at: usize| [0, 1, 2].map(|_| (stream.between(-1.0, 1.0) + (at % 5 / 3) as f64) as f32);
        (0..count).flat_map(row).collect()
    }

    /// Distances by the definition, all of them, sorted whole.
    fn naive(rows: &[f32], e: &[f32]) -> Vec<(f64, usize)> {
        let mut all: Vec<(f64, usize)> = rows
            .chunks(WIDTH)
            .enumerate()
            .map(|(at, row)| {
                ((0..WIDTH).map(|i| (f64::from(row[i]) - f64::from(e[i])).powi(2)).sum::<f64>().sqrt(), at)
            })
            .collect();
        all.sort_by(|a, b| a.partial_cmp(b).unwrap());
        all
    }

    #[test]
    fn the_nearest_are_those_of_a_whole_sort() {
        let (known, asked) = (rows(60, 1), rows(12, 2));
        for e in asked.chunks(WIDTH) {
            let expected = naive(&known, e);
            let distances = distances(&known, e);
            for count in [0, 1, 7, 60, 99] {
                let found = nearest(&distances, count);
                assert_eq!(found.len(), count.min(60));
                for ((at, distance), (d, expected)) in found.into_iter().zip(&expected) {
                    assert!(at == *expected && (f64::from(distance) - d).abs() < 1e-6);
                }
            }
        }
        assert_eq!(nearest(&[1.0, 0.5, 1.0, 0.5], 3), [(1, 0.5), (3, 0.5), (0, 1.0)]);
    }

    #[test]
    fn votes_are_counted_and_ties_go_to_the_nearest() {
        let held: [&[usize]; 5] = [&[0, 2], &[1], &[1, 2], &[3], &[0]];
        assert_eq!(vote(Choice::Several, &held[..3], 4), [1, 2]);
        assert_eq!(vote(Choice::Several, &held[..2], 4), [0, 2], "one of two: the nearest decides");
        assert_eq!(vote(Choice::Several, &held[..4], 4), [2], "two of four have 1 and 2; the nearest has 2");
        assert_eq!(vote(Choice::Several, &[], 4), [0; 0]);
        assert_eq!(vote(Choice::One, &[&[3], &[1], &[2], &[1]], 4), [1]);
        assert_eq!(vote(Choice::One, &[&[2], &[1], &[1], &[2]], 4), [2], "two each: the nearest decides");
        assert_eq!(vote(Choice::One, &[&[], &[1]], 4), [1]);
    }

    #[test]
    fn a_class_is_as_far_as_its_two_nearest_models() {
        let (known, asked) = (rows(40, 3), rows(10, 4));
        let held: Vec<Vec<usize>> = (0..40).map(|at| if at % 5 == 0 { vec![0, 1] } else { vec![1 + at % 2] }).collect();
        let held: Vec<&[usize]> = held.iter().map(Vec::as_slice).collect();
        let has: Vec<Vec<usize>> = (0..10).map(|at| if at < 9 { vec![at % 3] } else { vec![3, 1] }).collect();
        let has: Vec<&[usize]> = has.iter().map(Vec::as_slice).collect();
        let members = Members::of(WIDTH, (&known, &held), (&asked, &has));
        // By the definition: every model of the class, in the order of a whole sort.
        let expected = |e: &[f32], class: usize, skip: Option<usize>| -> Option<f64> {
            let of_class: Vec<f64> = naive(&known, e)
                .into_iter()
                .filter(|(_, at)| held[*at].contains(&class) && Some(*at) != skip)
                .map(|(d, _)| d)
                .collect();
            (of_class.len() > 1).then(|| (of_class[0] + of_class[1]) / 2.0)
        };
        let own: Vec<f64> = (0..10)
            .flat_map(|at| has[at].iter().map(move |&class| (at, class)))
            .filter_map(|(at, class)| expected(&asked[at * WIDTH..][..WIDTH], class, None))
            .collect();
        assert_eq!(own.len(), 10, "no model is known to have class 3");
        for e in rows(20, 8).chunks(WIDTH) {
            let distances = distances(&known, e);
            for (class, skip) in (0..4).flat_map(|class| [(class, None), (class, Some(5)), (class, Some(10))]) {
                let found = to_class(&distances, held.iter().copied(), class, skip);
                let by_hand = expected(e, class, skip);
                assert_eq!(found.is_some(), by_hand.is_some() && class < 3);
                let (Some(found), Some(distance)) = (found, by_hand) else { continue };
                assert!((f64::from(found) - distance).abs() < 1e-6);
                let as_far = own.iter().filter(|own| **own >= distance).count();
                assert_eq!(members.fit(found).unwrap().p, (as_far + 1) as f64 / 11.0);
            }
        }
        assert_eq!(Members::of(WIDTH, (&known, &held), (&[], &[])).fit(1.0), None);
    }

    #[test]
    fn a_spread_is_that_of_the_definition() {
        for (count, seed) in [(4, 5), (30, 6), (400, 7)] {
            let known = rows(count, seed);
            let lines: Vec<&[f32]> = known.chunks(WIDTH).collect();
            let spread = Spread::of(&lines).unwrap();
            // Element by element.
            let n = count as f64;
            let mean: Vec<f64> = (0..WIDTH).map(|i| lines.iter().map(|x| f64::from(x[i])).sum::<f64>() / n).collect();
            let x: Vec<Vec<f64>> =
                lines.iter().map(|line| (0..WIDTH).map(|i| f64::from(line[i]) - mean[i]).collect()).collect();
            let s = |i: usize, j: usize| x.iter().map(|x| x[i] * x[j]).sum::<f64>() / n;
            let pairs = || (0..WIDTH).flat_map(|i| (0..WIDTH).map(move |j| (i, j)));
            let m = (0..WIDTH).map(|i| s(i, i)).sum::<f64>() / WIDTH as f64;
            let identity = |i: usize, j: usize| if i == j { m } else { 0.0 };
            let d2: f64 = pairs().map(|(i, j)| (s(i, j) - identity(i, j)).powi(2)).sum();
            let b2: f64 =
                x.iter().map(|x| pairs().map(|(i, j)| (x[i] * x[j] - s(i, j)).powi(2)).sum::<f64>()).sum::<f64>()
                    / n
                    / n;
            let delta = b2.min(d2) / d2;
            assert!((spread.shrinkage - delta).abs() < 1e-9, "{} and {delta}", spread.shrinkage);
            // z = Σ⁻¹ (e − μ) by Cramer's rule.
            let sigma: Vec<Vec<f64>> = (0..WIDTH)
                .map(|i| (0..WIDTH).map(|j| (1.0 - delta) * s(i, j) + delta * identity(i, j)).collect())
                .collect();
            let determinant = |a: &[Vec<f64>]| -> f64 {
                a[0][0] * (a[1][1] * a[2][2] - a[1][2] * a[2][1]) - a[0][1] * (a[1][0] * a[2][2] - a[1][2] * a[2][0])
                    + a[0][2] * (a[1][0] * a[2][1] - a[1][1] * a[2][0])
            };
            for e in rows(8, seed + 20).chunks(WIDTH) {
                let y: Vec<f64> = (0..WIDTH).map(|i| f64::from(e[i]) - mean[i]).collect();
                let z = (0..WIDTH).map(|column| {
                    let mut a = sigma.clone();
                    (0..WIDTH).for_each(|row| a[row][column] = y[row]);
                    determinant(&a) / determinant(&sigma)
                });
                let expected = z.zip(&y).map(|(z, y)| z * y).sum::<f64>().sqrt();
                assert!((f64::from(spread.distance(e)) - expected).abs() < 1e-5 * expected);
            }
        }
        assert!(Spread::of(&[]).is_none() && Spread::of(&[&[1.0, 2.0]]).is_none());
        assert!(Spread::of(&[&[1.0, 2.0], &[1.0, 2.0]]).is_none(), "all are alike");
    }
}
