//! A probe with its numbers, forward and back.
//!
//! ```text
//! S_v = view v of X (operand.rs)                      (n_v, r_U)     per model
//! Ŝ   = (S − mean S) / (σ + 1e-8)                     σ² = mean (S − mean S)², over all of S
//! H_v = act(Ŝᵀ Vᵀ)                                    (r_U, r_V)
//! e   = Σ_v M_v vec(H_v) + b                          (r_T)
//! y   = T e + b_T                                     (classes)
//! ```
//!
//! Models are independent up to H; gradients of the probes and projections are summed within 16 parts of a batch,
//! then part by part, so the sums do not depend on the number of threads.

mod look;

use faer::MatMut;
use rayon::prelude::*;

use super::{
    operand::Operand,
    product::{columns_of, matrix, product, product_into},
    spec::{Activation, Body, Head, Section, Spec, View},
};

/// Parts of a batch, each with sums of its own: more than common cores, few enough that their memory does not matter.
const PARTS: usize = 16;

/// Columns of one piece of a product over the whole batch.
const PIECE: usize = 512;

/// Keeps the division of a response that is the same everywhere from being one by zero.
pub const SMALLEST_DEVIATION: f32 = 1e-8;

/// A probe: its shape, its numbers, and the scale of what it reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Net {
    pub(super) spec: Spec,
    pub(super) sections: Vec<Section>,
    /// All parameters, [`Spec::sections`] one after the other.
    pub values: Vec<f32>,
    /// What X is multiplied with before it is read: one over the deviation of the training models' elements.
    pub factor: f32,
}

/// What a forward pass leaves for the way back.
#[derive(Debug, Default)]
pub(super) struct Trace {
    /// Ŝ of each model, view by view.
    responses: Vec<f32>,
    /// σ of each model and view.
    deviations: Vec<f32>,
    /// H (models, views · r_U · r_V).
    hidden: Vec<f32>,
    /// e (models, r_T).
    pub representation: Vec<f32>,
}

/// The sizes of a probing body.
#[derive(Clone, Copy)]
pub(super) struct Sizes<'a> {
    pub views: &'a [View],
    pub probes: usize,
    pub projection: usize,
    pub representation: usize,
    pub standardise: bool,
    pub relu: bool,
}

impl Sizes<'_> {
    /// Numbers of all responses of one model.
    fn responses(&self, rows: usize, columns: usize) -> usize {
        self.views.iter().map(|view| view.response_rows(rows, columns) * self.probes).sum()
    }

    /// Numbers of H of one model.
    fn hidden(&self) -> usize {
        self.views.len() * self.probes * self.projection
    }
}

impl Net {
    /// A probe with the numbers `values`.
    ///
    /// # Panics
    /// If there are not as many as the shape has.
    pub fn new(spec: Spec, values: Vec<f32>, factor: f32) -> Self {
        let sections = spec.sections();
        assert_eq!(values.len(), spec.parameters(), "a probe has another number of parameters");
        Self { spec, sections, values, factor }
    }

    /// A probe before training: each number uniform within ± 1/√fan of its section (the paper's start); the learnt factor
    /// of a text head 1/0.07.
    pub fn start(spec: Spec, seed: u64, factor: f32) -> Self {
        let mut values = Vec::with_capacity(spec.parameters());
        for section in spec.sections() {
            let mut stream = crate::random::Stream::new(seed, &section.name, 0);
            let bound = 1.0 / (section.fan as f64).sqrt();
            match section.name.as_str() {
                "text.log_factor" => values.push((1.0f32 / 0.07).ln()),
                _ => values.extend(section.range.map(|_| stream.between(-bound, bound) as f32)),
            }
        }
        Self::new(spec, values, factor)
    }

    /// Its shape.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The numbers of a section.
    ///
    /// # Panics
    /// If the shape has no such section.
    pub fn section(&self, name: &str) -> &[f32] {
        let found = self.sections.iter().find(|section| section.name == name);
        &self.values[found.expect("the shape has this section").range.clone()]
    }

    pub(super) fn sizes(&self) -> Option<Sizes<'_>> {
        match &self.spec.body {
            Body::Dense => None,
            Body::Probe { views, probes, projection, representation, standardise, activation } => Some(Sizes {
                views,
                probes: *probes,
                projection: *projection,
                representation: *representation,
                standardise: *standardise,
                relu: *activation == Activation::Relu,
            }),
        }
    }

    /// Representations of `models` into `trace`.
    pub(super) fn represent(&self, models: &[Operand<'_>], trace: &mut Trace) {
        let (rows, columns) = (self.spec.rows, self.spec.columns);
        let Some(sizes) = self.sizes() else { return self.represent_dense(models, trace) };
        let (responses, hidden, views) = (sizes.responses(rows, columns), sizes.hidden(), sizes.views.len());
        trace.responses.resize(models.len() * responses, 0.0);
        trace.deviations.resize(models.len() * views, 0.0);
        trace.hidden.resize(models.len() * hidden, 0.0);
        models
            .par_iter()
            .zip(trace.responses.par_chunks_mut(responses))
            .zip(trace.deviations.par_chunks_mut(views))
            .zip(trace.hidden.par_chunks_mut(hidden))
            .for_each_init(Scratch::default, |scratch, (((model, responses), deviations), hidden)| {
                self.look(sizes, model, (responses, deviations, hidden), scratch);
            });
        let (weight, bias) = (self.section("encoder.weight"), self.section("encoder.bias"));
        linear(&trace.hidden, weight, bias, models.len(), sizes.representation, hidden, &mut trace.representation);
    }

    /// The logits of a dense body stand in place of a representation.
    fn represent_dense(&self, models: &[Operand<'_>], trace: &mut Trace) {
        let (rows, columns) = (self.spec.rows, self.spec.columns);
        match self.spec.head {
            Head::Labels { classes } => {
                let (weight, bias) = (self.section("head.weight"), self.section("head.bias"));
                trace.representation.resize(models.len() * classes, 0.0);
                models.par_iter().zip(trace.representation.par_chunks_mut(classes)).for_each(|(model, out)| {
                    let formed;
                    let x = match model {
                        Operand::Dense(x) => *x,
                        Operand::LowRank { .. } => {
                            formed = model.dense((rows, columns));
                            &formed
                        }
                    };
                    product(
                        out,
                        matrix(x, 1, rows * columns),
                        matrix(weight, classes, rows * columns).t(),
                        self.factor,
                        false,
                    );
                    out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
                });
            }
            Head::Text { .. } => {
                trace.representation.clear();
                for model in models {
                    let x = model.dense((rows, columns));
                    trace.representation.extend(x.iter().map(|x| x * self.factor));
                }
            }
        }
    }

    /// Responses and hidden values of one model.
    fn look(
        &self,
        sizes: Sizes<'_>,
        model: &Operand<'_>,
        (mut responses, deviations, hidden): (&mut [f32], &mut [f32], &mut [f32]),
        scratch: &mut Scratch,
    ) {
        let shape = (self.spec.rows, self.spec.columns);
        let (probes, projection) = (sizes.probes, sizes.projection);
        for (at, (view, hidden)) in sizes.views.iter().zip(hidden.chunks_exact_mut(probes * projection)).enumerate() {
            let rows = view.response_rows(shape.0, shape.1);
            let (s, rest) = responses.split_at_mut(rows * probes);
            responses = rest;
            let u = &self.values[self.sections[at].range.clone()];
            let v = &self.values[self.sections[sizes.views.len() + at].range.clone()];
            self.view(*view, model, u, s, scratch);
            deviations[at] = if sizes.standardise { standardise(s) } else { 1.0 };
            product(hidden, matrix(s, rows, probes).t(), matrix(v, projection, rows).t(), 1.0, false);
            if sizes.relu {
                relu(hidden);
            }
        }
    }

    /// S of one view of one model: `s = factor^degree · L u`.
    fn view(&self, view: View, model: &Operand<'_>, u: &[f32], s: &mut [f32], scratch: &mut Scratch) {
        let shape = (self.spec.rows, self.spec.columns);
        let factor = self.factor.powi(view.degree());
        let Scratch { between, inner, .. } = scratch;
        match view {
            View::Xu => model.times(shape, u, s, factor, false, inner),
            View::Xtu => model.transposed_times(shape, u, s, factor, false, inner),
            View::Xxtu => {
                between.resize(shape.1 * (u.len() / shape.0), 0.0);
                model.transposed_times(shape, u, between, 1.0, false, inner);
                model.times(shape, between, s, factor, false, inner);
            }
            View::Xtxu => {
                between.resize(shape.0 * (u.len() / shape.1), 0.0);
                model.times(shape, u, between, 1.0, false, inner);
                model.transposed_times(shape, between, s, factor, false, inner);
            }
        }
    }

    /// `du += factor^degree · Lᵀ ds`; both Gram views are symmetric.
    fn view_back(&self, view: View, model: &Operand<'_>, ds: &[f32], du: &mut [f32], scratch: &mut Scratch) {
        let shape = (self.spec.rows, self.spec.columns);
        let factor = self.factor.powi(view.degree());
        let Scratch { between, inner, .. } = scratch;
        match view {
            View::Xu => model.transposed_times(shape, ds, du, factor, true, inner),
            View::Xtu => model.times(shape, ds, du, factor, true, inner),
            View::Xxtu => {
                between.resize(shape.1 * (ds.len() / shape.0), 0.0);
                model.transposed_times(shape, ds, between, 1.0, false, inner);
                model.times(shape, between, du, factor, true, inner);
            }
            View::Xtxu => {
                between.resize(shape.0 * (ds.len() / shape.1), 0.0);
                model.times(shape, ds, between, 1.0, false, inner);
                model.transposed_times(shape, between, du, factor, true, inner);
            }
        }
    }

    /// From ∂e to the gradients of the body, added to `gradient` (as long as the parameters).
    pub(super) fn back(
        &self,
        models: &[Operand<'_>],
        trace: &Trace,
        de: &[f32],
        gradient: &mut [f32],
        work: &mut Work,
    ) {
        let Some(sizes) = self.sizes() else { return };
        let (count, width, representation) = (models.len(), sizes.hidden(), sizes.representation);
        let range = |name: &str| {
            let found = self.sections.iter().find(|section| section.name == name);
            found.expect("a probing body has an encoder").range.clone()
        };
        linear_back(&trace.hidden, de, count, representation, width, &mut gradient[range("encoder.weight")]);
        add_rows(de, &mut gradient[range("encoder.bias")]);
        work.hidden.resize(count * width, 0.0);
        let encoder = &self.values[range("encoder.weight")];
        pieces(&mut work.hidden, count, width, |first, out| {
            let weight = columns_of(encoder, representation, width, first, out.ncols());
            product_into(out, matrix(de, count, representation), weight, 1.0, false);
        });

        let probing = self.sections[2 * sizes.views.len() - 1].range.end;
        let per_part = count.div_ceil(PARTS);
        work.sums.clear();
        work.sums.resize(count.div_ceil(per_part) * probing, 0.0);
        let responses = sizes.responses(self.spec.rows, self.spec.columns);
        let hidden = &work.hidden;
        work.sums.par_chunks_mut(probing).enumerate().for_each_init(Scratch::default, |scratch, (part, sums)| {
            for at in part * per_part..((part + 1) * per_part).min(count) {
                let seen = Seen {
                    responses: &trace.responses[at * responses..][..responses],
                    deviations: &trace.deviations[at * sizes.views.len()..][..sizes.views.len()],
                    hidden: &trace.hidden[at * width..][..width],
                };
                self.look_back(sizes, &models[at], seen, &hidden[at * width..][..width], sums, scratch);
            }
        });
        for sums in work.sums.chunks_exact(probing) {
            gradient[..probing].par_chunks_mut(1 << 14).zip(sums.par_chunks(1 << 14)).for_each(|(to, from)| {
                to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
            });
        }
    }

    /// One model's share of the gradients of probes and projections.
    fn look_back(
        &self,
        sizes: Sizes<'_>,
        model: &Operand<'_>,
        seen: Seen<'_>,
        dh: &[f32],
        sums: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (probes, projection) = (sizes.probes, sizes.projection);
        let mut responses = seen.responses;
        for (at, view) in sizes.views.iter().enumerate() {
            let rows = view.response_rows(self.spec.rows, self.spec.columns);
            let s;
            (s, responses) = responses.split_at(rows * probes);
            let here = at * probes * projection..(at + 1) * probes * projection;
            scratch.dh.clear();
            match sizes.relu {
                true => scratch.dh.extend(
                    dh[here.clone()].iter().zip(&seen.hidden[here]).map(|(d, h)| if *h > 0.0 { *d } else { 0.0 }),
                ),
                false => scratch.dh.extend_from_slice(&dh[here]),
            }
            let mut dh = std::mem::take(&mut scratch.dh);
            let mut ds = std::mem::take(&mut scratch.ds);
            let (u, v) = (self.sections[at].range.clone(), self.sections[sizes.views.len() + at].range.clone());
            let grad = matrix(&dh, probes, projection);
            product(&mut sums[v.clone()], grad.t(), matrix(s, rows, probes).t(), 1.0, true);
            ds.resize(rows * probes, 0.0);
            product(&mut ds, matrix(&self.values[v], projection, rows).t(), grad.t(), 1.0, false);
            if sizes.standardise {
                standardise_back(s, seen.deviations[at], &mut ds);
            }
            self.view_back(*view, model, &ds, &mut sums[u], scratch);
            dh.clear();
            (scratch.dh, scratch.ds) = (dh, ds);
        }
    }
}

/// What one model left behind.
struct Seen<'a> {
    responses: &'a [f32],
    deviations: &'a [f32],
    hidden: &'a [f32],
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    between: Vec<f32>,
    inner: Vec<f32>,
    dh: Vec<f32>,
    ds: Vec<f32>,
}

/// Buffers of the way back.
#[derive(Default)]
pub(super) struct Work {
    hidden: Vec<f32>,
    sums: Vec<f32>,
}

/// `y = x wᵀ + b` over a batch: x (count, inputs), w (outputs, inputs).
pub(super) fn linear(x: &[f32], w: &[f32], b: &[f32], count: usize, outputs: usize, inputs: usize, y: &mut Vec<f32>) {
    y.resize(count * outputs, 0.0);
    pieces(y, count, outputs, |first, out| {
        let columns = out.ncols();
        let weight = matrix(&w[first * inputs..(first + columns) * inputs], columns, inputs).t();
        product_into(out, matrix(x, count, inputs), weight, 1.0, false);
    });
    y.chunks_exact_mut(outputs).for_each(|y| y.iter_mut().zip(b).for_each(|(y, b)| *y += b));
}

/// `dw += dyᵀ x` over a batch.
pub(super) fn linear_back(x: &[f32], dy: &[f32], count: usize, outputs: usize, inputs: usize, dw: &mut [f32]) {
    pieces(dw, outputs, inputs, |first, out| {
        let x = columns_of(x, count, inputs, first, out.ncols());
        product_into(out, matrix(dy, count, outputs).t(), x, 1.0, true);
    });
}

/// `sums += Σ rows`.
pub(super) fn add_rows(rows: &[f32], sums: &mut [f32]) {
    rows.chunks_exact(sums.len()).for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
}

/// Runs `piece(first column, columns of out from there)` for pieces of the columns of `out` (rows, width).
fn pieces(out: &mut [f32], rows: usize, width: usize, piece: impl Fn(usize, MatMut<'_, f32>) + Sync + Send) {
    assert_eq!(out.len(), rows * width, "the matrix is not ({rows}, {width})");
    if rows > 0 && width > 0 {
        let out = MatMut::from_column_major_slice_mut(out, width, rows).transpose_mut();
        out.par_col_chunks_mut(PIECE).enumerate().for_each(|(at, out)| piece(at * PIECE, out));
    }
}

crate::kernel::dispatch! {
    /// Mean 0 and deviation 1 over all of `s`; the deviation it had.
    fn standardise(s: &mut [f32]) -> f32 = standardise_body
}

#[inline(always)]
fn standardise_body(s: &mut [f32]) -> f32 {
    let n = s.len() as f32;
    let mean = sum_by(s, |x| x) / n;
    let deviation = (sum_by(s, |x| (x - mean) * (x - mean)) / n).sqrt();
    let scale = 1.0 / (deviation + SMALLEST_DEVIATION);
    s.iter_mut().for_each(|x| *x = (*x - mean) * scale);
    deviation
}

/// Σ f(x) in 16 sums side by side.
#[inline(always)]
fn sum_by(s: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = s.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += f(*x);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| f(*x)).sum::<f32>()
}

crate::kernel::dispatch! {
    /// From the gradient of the standardised values `s` to that of what they were, whose deviation was `deviation`.
    fn standardise_back(s: &[f32], deviation: f32, ds: &mut [f32]) -> () = standardise_back_body
}

#[inline(always)]
fn standardise_back_body(s: &[f32], deviation: f32, ds: &mut [f32]) {
    let n = s.len() as f32;
    let mean = sum_by(ds, |x| x) / n;
    let mut along = [0.0f32; 16];
    let ((s16, s_rest), (d16, d_rest)) = (s.as_chunks::<16>(), ds.as_chunks::<16>());
    for (s, d) in s16.iter().zip(d16) {
        for lane in 0..16 {
            along[lane] += s[lane] * d[lane];
        }
    }
    let along = along.iter().sum::<f32>() + s_rest.iter().zip(d_rest).map(|(s, d)| s * d).sum::<f32>();
    let scale = 1.0 / (deviation + SMALLEST_DEVIATION);
    let turn = if deviation > 0.0 { along / n * (deviation + SMALLEST_DEVIATION) / deviation } else { 0.0 };
    ds.iter_mut().zip(s).for_each(|(d, s)| *d = scale * (*d - mean - s * turn));
}

fn relu(values: &mut [f32]) {
    values.iter_mut().for_each(|x| *x = x.max(0.0));
}
