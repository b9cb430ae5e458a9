//! The probe in f64, element by element, and its gradient by central differences.

use super::super::{
    head::{Choice, Texts},
    net::Net,
    operand::Operand,
    spec::{Activation, Body, Head, View},
};

/// Step of the differences; f64 leaves eight digits.
const STEP: f64 = 1e-5;

/// (rows, inner) · (inner, columns).
fn times(a: &[f64], b: &[f64], inner: usize) -> Vec<f64> {
    let (rows, columns) = (a.len() / inner, b.len() / inner);
    let mut out = vec![0.0; rows * columns];
    for (i, j, k) in (0..rows).flat_map(|i| (0..columns).flat_map(move |j| (0..inner).map(move |k| (i, j, k)))) {
        out[i * columns + j] += a[i * inner + k] * b[k * columns + j];
    }
    out
}

fn turned(a: &[f64], columns: usize) -> Vec<f64> {
    let rows = a.len() / columns;
    (0..a.len()).map(|at| a[at % rows * columns + at / rows]).collect()
}

/// Logits of one model.
fn logits(net: &Net, values: &[f64], x: &[f64], texts: Texts<'_>) -> Vec<f64> {
    let spec = net.spec();
    let section = |name: &str| {
        let sections = spec.sections();
        let found = sections.iter().find(|section| section.name == name).unwrap();
        values[found.range.clone()].to_vec()
    };
    let x: Vec<f64> = x.iter().map(|x| x * f64::from(net.factor)).collect();
    let xt = turned(&x, spec.columns);
    let affine = |weight: &[f64], bias: &[f64], input: &[f64]| -> Vec<f64> {
        let product = times(weight, input, input.len());
        product.iter().zip(bias).map(|(y, b)| y + b).collect()
    };
    let e = match &spec.body {
        Body::Dense => x,
        Body::Probe { views, projection, standardise, activation, .. } => {
            let mut hidden = Vec::new();
            for view in views {
                let u = section(&format!("{}.probes", view.name()));
                let v = section(&format!("{}.projection", view.name()));
                let mut s = match view {
                    View::Xu => times(&x, &u, spec.columns),
                    View::Xtu => times(&xt, &u, spec.rows),
                    View::Xxtu => times(&x, &times(&xt, &u, spec.rows), spec.columns),
                    View::Xtxu => times(&xt, &times(&x, &u, spec.columns), spec.rows),
                };
                if *standardise {
                    let mean = s.iter().sum::<f64>() / s.len() as f64;
                    let deviation = (s.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / s.len() as f64).sqrt();
                    s.iter_mut().for_each(|s| *s = (*s - mean) / (deviation + 1e-8));
                }
                let rows = v.len() / projection;
                let h = turned(&times(&v, &s, rows), s.len() / rows); // (probes, projection)
                hidden.extend(h.into_iter().map(|h| if *activation == Activation::Relu { h.max(0.0) } else { h }));
            }
            affine(&section("encoder.weight"), &section("encoder.bias"), &hidden)
        }
    };
    match spec.head {
        Head::Labels { .. } => affine(&section("head.weight"), &section("head.bias"), &e),
        Head::Text { width, .. } => {
            let factor = section("text.log_factor")[0].exp();
            let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
            let (weight, bias) = (section("text.weight"), section("text.bias"));
            let cosine = |text: &[f32]| {
                let text: Vec<f64> = text.iter().map(|x| f64::from(*x)).collect();
                let q = affine(&weight, &bias, &text);
                factor * e.iter().zip(&q).map(|(e, q)| e * q).sum::<f64>() / length(&e) / length(&q)
            };
            texts.values.chunks_exact(width).map(cosine).collect()
        }
    }
}

fn cost(net: &Net, values: &[f64], models: &[Vec<f64>], truths: &[f32], texts: Texts<'_>, choice: Choice) -> f64 {
    let mut sum = 0.0;
    for (x, truth) in models.iter().zip(truths.chunks_exact(truths.len() / models.len())) {
        let y = logits(net, values, x, texts);
        let pairs = || y.iter().zip(truth).map(|(y, t)| (*y, f64::from(*t)));
        sum += match choice {
            Choice::Several => pairs().map(|(y, t)| (1.0 + y.exp()).ln() - t * y).sum::<f64>() / y.len() as f64,
            Choice::One => {
                let total: f64 = y.iter().map(|y| y.exp()).sum();
                pairs().map(|(y, t)| t * (total.ln() - y)).sum::<f64>()
            }
        };
    }
    sum / models.len() as f64
}

/// Cost, and its gradient by differences.
pub(super) fn gradient(
    net: &Net,
    models: &[Operand<'_>],
    truths: &[f32],
    texts: Texts<'_>,
    choice: Choice,
) -> (f64, Vec<f64>) {
    let shape = (net.spec().rows, net.spec().columns);
    let models: Vec<Vec<f64>> =
        models.iter().map(|model| model.dense(shape).iter().map(|x| f64::from(*x)).collect()).collect();
    let mut values: Vec<f64> = net.values.iter().map(|x| f64::from(*x)).collect();
    let here = cost(net, &values, &models, truths, texts, choice);
    let gradient = (0..values.len())
        .map(|at| {
            let kept = values[at];
            values[at] = kept + STEP;
            let above = cost(net, &values, &models, truths, texts, choice);
            values[at] = kept - STEP;
            let below = cost(net, &values, &models, truths, texts, choice);
            values[at] = kept;
            (above - below) / (2.0 * STEP)
        })
        .collect();
    (here, gradient)
}
