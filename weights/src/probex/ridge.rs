//! Ridge regression on one layer in closed form: the plainest expert, and the best one where models are few.
//!
//! With X the training models' layers less their mean (n, d_H · d_W) and Y their classes as ± 1 less their means (n, C):
//!
//! ```text
//! K = X Xᵀ      A = (K + λ I)⁻¹ Y      W = Aᵀ X      b = ȳ − W x̄
//! ```
//!
//! (Saunders, Gammerman and Vovk 1998). λ is chosen on the validation models. X is read in pieces of its columns, of which
//! an adapter's are formed each time.

use faer::{Mat, Side, linalg::solvers::Solve};

use super::{
    head::{Choice, Texts, cost},
    net::Net,
    operand::Operand,
    product::{matrix, product},
    spec::{Body, Head, Spec},
    train::{Models, Part, Trained, right},
};

/// λ as shares of the mean of K's diagonal.
const PENALTIES: [f64; 6] = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];

/// Columns of X held at a time.
const PIECE: usize = 1 << 13;

/// Columns `first..` of the models' layers, and their means; the means are taken off `rows`.
fn piece(sources: &[Operand<'_>], columns: usize, first: usize, width: usize) -> (Vec<f32>, Vec<f32>) {
    let mut rows = Vec::with_capacity(sources.len() * width);
    sources.iter().for_each(|source| rows.extend_from_slice(&source.part(columns, first..first + width)));
    let mut sums = vec![0.0f64; width];
    rows.chunks_exact(width).for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x)));
    let means: Vec<f32> = sums.into_iter().map(|sum| (sum / sources.len() as f64) as f32).collect();
    rows.chunks_exact_mut(width).for_each(|row| row.iter_mut().zip(&means).for_each(|(x, mean)| *x -= mean));
    (rows, means)
}

/// The expert, or `None` where no λ gives a positive definite system (all layers alike).
///
/// # Panics
/// As [`train`](super::train::train).
pub fn ridge(
    (rows, columns, factor): (usize, usize, f32),
    models: &dyn Models,
    (train, validation): (Part<'_>, Part<'_>),
    choice: Choice,
) -> Option<Trained> {
    let (n, elements, classes) = (train.models.len(), rows * columns, train.classes);
    let sources: Vec<Operand<'_>> = train.models.iter().map(|&at| models.layer(at, 0)).collect();
    let mut kernel = Mat::<f64>::zeros(n, n);
    let mut part = vec![0.0f32; n * n];
    let mut means = Vec::with_capacity(elements);
    for first in (0..elements).step_by(PIECE) {
        let width = PIECE.min(elements - first);
        let (x, mean) = piece(&sources, columns, first, width);
        let x = matrix(&x, n, width);
        product(&mut part, x, x.t(), factor * factor, false);
        for (at, value) in part.iter().enumerate() {
            kernel[(at / n, at % n)] += f64::from(*value);
        }
        means.extend(mean);
    }
    let shares: Vec<f64> = (0..classes)
        .map(|class| (0..n).map(|at| f64::from(2.0 * train.truths[at * classes + class] - 1.0)).sum::<f64>() / n as f64)
        .collect();
    let sides =
        Mat::from_fn(n, classes, |at, class| f64::from(2.0 * train.truths[at * classes + class] - 1.0) - shares[class]);
    let diagonal = (0..n).map(|at| kernel[(at, at)]).sum::<f64>() / n as f64;
    let seen: Vec<Operand<'_>> = validation.models.iter().map(|&at| models.layer(at, 0)).collect();
    let spec = Spec { rows, columns, body: Body::Dense, head: Head::Labels { classes } };
    let mut best: Option<Trained> = None;
    for penalty in PENALTIES {
        let mut system = kernel.clone();
        (0..n).for_each(|at| system[(at, at)] += penalty * diagonal.max(f64::MIN_POSITIVE));
        let Ok(solver) = system.llt(Side::Lower) else { continue };
        let answer = solver.solve(&sides);
        let turned: Vec<f32> = (0..classes)
            .flat_map(|class| (0..n).map(move |at| (class, at)))
            .map(|(class, at)| answer[(at, class)] as f32)
            .collect();
        let mut values = vec![0.0f32; classes * elements];
        for first in (0..elements).step_by(PIECE) {
            let width = PIECE.min(elements - first);
            let (x, _) = piece(&sources, columns, first, width);
            let mut out = vec![0.0f32; classes * width];
            product(&mut out, matrix(&turned, classes, n), matrix(&x, n, width), factor, false);
            for (class, out) in out.chunks_exact(width).enumerate() {
                values[class * elements + first..][..width].copy_from_slice(out);
            }
        }
        for class in 0..classes {
            let weight = &values[class * elements..][..elements];
            let at_mean: f64 = weight.iter().zip(&means).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            values.push((shares[class] - at_mean * f64::from(factor)) as f32);
        }
        let net = Net::new(spec.clone(), values, factor);
        let (mut logits, _) = net.look_at(&seen, Texts::default());
        let share = right(choice, &logits, validation.truths, classes);
        let cost = cost(choice, &mut logits, validation.truths, classes);
        let better = best.as_ref().is_none_or(|best| (share, -cost) > (best.validation.0, -best.validation.1));
        if better {
            best = Some(Trained { net, epoch: 0, validation: (share, cost), costs: Vec::new() });
        }
    }
    best
}
