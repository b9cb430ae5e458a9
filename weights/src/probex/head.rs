//! From representations to logits, to the cost, and back.
//!
//! ```text
//! labels, several      J = mean over models and classes of log(1 + exp(−± y))          (binary cross-entropy)
//! labels, one of       J = mean over models of log Σ_c exp(y_c) − y_true               (cross-entropy)
//! texts                y_c = exp(τ) · cos(e, P t_c + b), J as for one of               (model → text)
//! ```

use serde::{Deserialize, Serialize};

use super::{
    net::{Net, Trace, add_rows, linear, linear_back},
    product::{matrix, product},
    spec::{Body, Head},
};

/// What a model can be: any of the classes at once, or exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// Every class on its own.
    Several,
    /// One class.
    One,
}

/// The class texts' embeddings (classes, width), for a head that compares with texts; empty for one with logits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Texts<'a> {
    /// Row-major.
    pub values: &'a [f32],
    /// Rows.
    pub classes: usize,
}

impl Net {
    /// Logits (models, classes) of the representations in `trace`.
    pub(super) fn logits(&self, trace: &Trace, count: usize, texts: Texts<'_>) -> Vec<f32> {
        match (self.spec.head, &self.spec.body) {
            (Head::Labels { .. }, Body::Dense) => trace.representation.clone(),
            (Head::Labels { classes }, Body::Probe { representation, .. }) => {
                let mut y = Vec::new();
                let (weight, bias) = (self.section("head.weight"), self.section("head.bias"));
                linear(&trace.representation, weight, bias, count, classes, *representation, &mut y);
                y
            }
            (Head::Text { .. }, _) => {
                let e = Unit::of(&trace.representation, self.spec.representation());
                let q = self.texts(texts);
                let mut y = vec![0.0; count * texts.classes];
                let width = self.spec.representation();
                let (e, q) = (matrix(&e.values, count, width), matrix(&q.values, texts.classes, width));
                product(&mut y, e, q.t(), self.text_factor(), false);
                y
            }
        }
    }

    /// exp(τ).
    fn text_factor(&self) -> f32 {
        match self.spec.head {
            Head::Text { temperature: true, .. } => self.section("text.log_factor")[0].exp(),
            _ => 1.0,
        }
    }

    /// What the head makes of texts, (texts, representation), each of length 1; nothing where it compares with none.
    pub fn text_vectors(&self, texts: Texts<'_>) -> Vec<f32> {
        self.texts(texts).values
    }

    /// The texts' projections, of length 1.
    fn texts(&self, texts: Texts<'_>) -> Unit {
        let Head::Text { width, .. } = self.spec.head else { return Unit::of(&[], 1) };
        let (weight, bias) = (self.section("text.weight"), self.section("text.bias"));
        let mut q = Vec::new();
        linear(texts.values, weight, bias, texts.classes, self.spec.representation(), width, &mut q);
        Unit::of(&q, self.spec.representation())
    }

    /// From ∂y to ∂e; gradients of the head are added to `gradient`.
    pub(super) fn head_back(
        &self,
        trace: &Trace,
        count: usize,
        texts: Texts<'_>,
        dy: &[f32],
        gradient: &mut [f32],
    ) -> Vec<f32> {
        let range = |name: &str| {
            let found = self.sections.iter().find(|section| section.name == name);
            found.expect("the head has this section").range.clone()
        };
        let inner = self.spec.representation();
        match self.spec.head {
            Head::Labels { classes } => {
                linear_back(&trace.representation, dy, count, classes, inner, &mut gradient[range("head.weight")]);
                add_rows(dy, &mut gradient[range("head.bias")]);
                let mut de = vec![0.0; count * inner];
                let weight = matrix(self.section("head.weight"), classes, inner);
                product(&mut de, matrix(dy, count, classes), weight, 1.0, false);
                de
            }
            Head::Text { width, temperature } => {
                let (e, q) = (Unit::of(&trace.representation, inner), self.texts(texts));
                let factor = self.text_factor();
                let dy_matrix = matrix(dy, count, texts.classes);
                let (e_matrix, q_matrix) = (matrix(&e.values, count, inner), matrix(&q.values, texts.classes, inner));
                if temperature {
                    let mut y = vec![0.0; count * texts.classes];
                    product(&mut y, e_matrix, q_matrix.t(), factor, false);
                    let along: f32 = y.iter().zip(dy).map(|(y, dy)| y * dy).sum();
                    gradient[range("text.log_factor").start] += along;
                }
                let mut dq = vec![0.0; texts.classes * inner];
                product(&mut dq, dy_matrix.t(), e_matrix, factor, false);
                q.back(&mut dq);
                linear_back(texts.values, &dq, texts.classes, inner, width, &mut gradient[range("text.weight")]);
                add_rows(&dq, &mut gradient[range("text.bias")]);
                let mut de = vec![0.0; count * inner];
                product(&mut de, dy_matrix, q_matrix, factor, false);
                e.back(&mut de);
                de
            }
        }
    }
}

/// Rows brought to length 1, and the lengths they had.
struct Unit {
    values: Vec<f32>,
    lengths: Vec<f32>,
    width: usize,
}

/// Rows shorter than this are divided by it.
pub const SHORTEST: f32 = 1e-12;

impl Unit {
    fn of(rows: &[f32], width: usize) -> Self {
        let mut values = rows.to_vec();
        let mut lengths = Vec::with_capacity(rows.len() / width);
        for row in values.chunks_exact_mut(width) {
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(SHORTEST);
            row.iter_mut().for_each(|x| *x /= length);
            lengths.push(length);
        }
        Self { values, lengths, width }
    }

    /// From the gradient of the unit rows to that of the rows, in place.
    fn back(&self, d: &mut [f32]) {
        let rows = self.values.chunks_exact(self.width).zip(&self.lengths);
        for (d, (unit, length)) in d.chunks_exact_mut(self.width).zip(rows) {
            let along: f32 = d.iter().zip(unit).map(|(d, u)| d * u).sum();
            d.iter_mut().zip(unit).for_each(|(d, u)| *d = (*d - u * along) / length);
        }
    }
}

/// The cost of `logits` (models, classes) against `truths` (the same shape, 0 or 1), and its gradient in their place.
pub(super) fn cost(choice: Choice, logits: &mut [f32], truths: &[f32], classes: usize) -> f64 {
    let mut sum = 0.0;
    match choice {
        Choice::Several => {
            let share = 1.0 / logits.len() as f32;
            for (y, &truth) in logits.iter_mut().zip(truths) {
                // log(1 + exp(y)) − truth · y, without overflow.
                sum += f64::from(y.max(0.0) - truth * *y + (-y.abs()).exp().ln_1p());
                *y = (sigmoid(*y) - truth) * share;
            }
            sum / logits.len() as f64
        }
        Choice::One => {
            let count = logits.len() / classes;
            for (y, truth) in logits.chunks_exact_mut(classes).zip(truths.chunks_exact(classes)) {
                let most = y.iter().fold(f32::NEG_INFINITY, |most, &y| most.max(y));
                let total: f32 = y.iter().map(|y| (y - most).exp()).sum();
                for (y, &truth) in y.iter_mut().zip(truth) {
                    let log = *y - most - total.ln();
                    sum -= f64::from(truth * log);
                    *y = (log.exp() - truth) / count as f32;
                }
            }
            sum / count as f64
        }
    }
}

/// 1 / (1 + exp(−y)).
pub(super) fn sigmoid(y: f32) -> f32 {
    1.0 / (1.0 + (-y).exp())
}

/// Probabilities of `logits` (models, classes) divided by `temperature`.
pub fn probabilities(choice: Choice, logits: &[f32], classes: usize, temperature: f32) -> Vec<f32> {
    match choice {
        Choice::Several => logits.iter().map(|y| sigmoid(y / temperature)).collect(),
        Choice::One => {
            let mut out = Vec::with_capacity(logits.len());
            for y in logits.chunks_exact(classes) {
                let most = y.iter().fold(f32::NEG_INFINITY, |most, &y| most.max(y));
                let start = out.len();
                out.extend(y.iter().map(|y| ((y - most) / temperature).exp()));
                let total: f32 = out[start..].iter().sum();
                out[start..].iter_mut().for_each(|p| *p /= total);
            }
            out
        }
    }
}
