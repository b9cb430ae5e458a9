//! The operations of a decoder block that learns beside weights that do not: each computes its own gradient, and none of
//! a frozen weight.
//!
//! candle takes the gradient of both sides of a product, and of what it fuses itself none at all. So the operations in
//! which a block spends its time stand here, each with the gradient of its definition, on one sequence of t rows:
//!
//! ```text
//! linear      y = x Wᵀ + b + s (x Aᵀ) Bᵀ       W, b fixed; A (r, in), B (out, r) learn  (Hu et al. 2021, LoRA, eq. 3)
//! norm        y = w ⊙ (x − μ) / √(σ² + ε)      μ = 0 for root mean squares
//! rotate      rotary positions
//! attention   softmax(scale · Q Kᵀ) V          causal, windowed, capped
//! gate        f(gate) ⊙ up, and f alone
//! ```
//!
//! Work is cut by shapes, and what is summed over pieces is summed in their order: the bytes do not depend on threads.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Error, Layout, Result, Shape, Tensor};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use crate::{
    kernel::{
        SharedMut,
        activation::{
            Activation, add, axpy, dot, layer_norm_row, normal_cdf, rms_norm_row, softcap, softmax_row, tanh,
        },
        attention::{Heads, attention},
    },
    model::rope::Rope,
};

/// Rows and columns of a product that one task makes.
const TASK_ROWS: usize = 512;
const TASK_COLUMNS: usize = 256;

/// Rows of an elementwise operation one task works on.
const ROWS_PER_TASK: usize = 32;

/// Numbers read as a matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `values` (rows, columns), row by row.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of {rows} by {columns}");
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Columns `from..from + columns` of `values`, whose rows are `width` wide.
    fn part(values: &'a [f32], width: usize, from: usize, columns: usize) -> Self {
        let rows = values.len() / width;
        assert!(from + columns <= width && values.len() == rows * width, "columns of a matrix");
        Self { values: &values[from..], rows, columns, row_stride: width, column_stride: 1 }
    }

    /// Rows for columns.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Whether every element lies inside the numbers.
    fn is_inside(&self) -> bool {
        let last = self.rows.saturating_sub(1) * self.row_stride + self.columns.saturating_sub(1) * self.column_stride;
        self.rows == 0 || self.columns == 0 || last < self.values.len()
    }
}

/// `c ← scale · a b`, or with `keep` `c ← c + scale · a b`; `c` (a's rows, b's columns), row by row.
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn product(a: Matrix<'_>, b: Matrix<'_>, scale: f32, keep: bool, c: &mut [f32]) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "a product of {m} by {k} and {} by {n}", b.rows);
    assert_eq!(c.len(), m * n, "a product of {m} by {n}");
    assert!(a.is_inside() && b.is_inside(), "operands of a product");
    if m == 0 || n == 0 {
        return;
    }
    let shared = SharedMut::new(c);
    let (down, across) = (m.div_ceil(TASK_ROWS), n.div_ceil(TASK_COLUMNS));
    (0..down * across).into_par_iter().for_each(|task| {
        let (row, column) = (task / across * TASK_ROWS, task % across * TASK_COLUMNS);
        let (rows, columns) = (TASK_ROWS.min(m - row), TASK_COLUMNS.min(n - column));
        // SAFETY: both operands reach to their last element by `is_inside`, the piece of c lies inside its m · n numbers,
        // and no other task touches it.
        unsafe {
            gemm(
                rows,
                columns,
                k,
                shared.at(row * n + column),
                1,
                n as isize,
                keep,
                a.values.as_ptr().add(row * a.row_stride),
                a.column_stride as isize,
                a.row_stride as isize,
                b.values.as_ptr().add(column * b.column_stride),
                b.column_stride as isize,
                b.row_stride as isize,
                1.0,
                scale,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    });
}

/// The numbers of an operand.
fn operand<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => Err(Error::Msg("an operand does not lie row by row".into()).bt()),
    }
}

fn made(values: Vec<f32>, shape: &Shape) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.clone())
}

fn values(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

fn like(values: Vec<f32>, x: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, x.shape(), x.device())
}

/// A linear whose weight does not learn.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// (out_features, in_features).
    pub weight: Vec<f32>,
    /// (out_features).
    pub bias: Option<Vec<f32>>,
    pub out_features: usize,
    pub in_features: usize,
}

impl Frozen {
    fn weight(&self) -> Matrix<'_> {
        Matrix::new(&self.weight, self.out_features, self.in_features)
    }

    /// `x` (t, in) to (t, out).
    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let t = x.len() / self.in_features;
        let mut y = vec![0.0; t * self.out_features];
        product(Matrix::new(x, t, self.in_features), self.weight().t(), 1.0, false, &mut y);
        if let Some(bias) = &self.bias {
            y.chunks_exact_mut(self.out_features).for_each(|y| add(y, bias));
        }
        y
    }

    /// The gradient in x of that in y.
    fn backward(&self, of_y: &[f32]) -> Vec<f32> {
        let t = of_y.len() / self.out_features;
        let mut of_x = vec![0.0; t * self.in_features];
        product(Matrix::new(of_y, t, self.out_features), self.weight(), 1.0, false, &mut of_x);
        of_x
    }
}

/// What learns beside a frozen linear.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    /// (rank, in_features).
    pub a: Tensor,
    /// (out_features, rank).
    pub b: Tensor,
    /// s.
    pub scale: f32,
}

/// `x` (t, in) through `frozen` and its adapter, where it has one: (t, out).
pub(crate) fn linear(x: &Tensor, frozen: &Arc<Frozen>, adapter: Option<&Adapter>) -> Result<Tensor> {
    match adapter {
        None => x.apply_op1(Plain(frozen.clone())),
        Some(Adapter { a, b, scale }) => x.apply_op3(a, b, Adapted(frozen.clone(), *scale)),
    }
}

struct Plain(Arc<Frozen>);

impl CustomOp1 for Plain {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = operand(x, layout)?;
        Ok(made(self.0.forward(x), &(x.len() / self.0.in_features, self.0.out_features).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, of_y: &Tensor) -> Result<Option<Tensor>> {
        x.track_op().then(|| like(self.0.backward(&values(of_y)?), x)).transpose()
    }
}

struct Adapted(Arc<Frozen>, f32);

impl Adapted {
    /// x Aᵀ, (t, rank).
    fn inner(&self, x: &[f32], a: &[f32]) -> (Vec<f32>, usize, usize) {
        let (t, rank) = (x.len() / self.0.in_features, a.len() / self.0.in_features);
        let mut inner = vec![0.0; t * rank];
        let a = Matrix::new(a, rank, self.0.in_features);
        product(Matrix::new(x, t, self.0.in_features), a.t(), 1.0, false, &mut inner);
        (inner, t, rank)
    }
}

impl CustomOp3 for Adapted {
    fn name(&self) -> &'static str {
        "adapted-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, a, b) = (operand(x, x_layout)?, operand(a, a_layout)?, operand(b, b_layout)?);
        let out_features = self.0.out_features;
        let mut y = self.0.forward(x);
        let (inner, t, rank) = self.inner(x, a);
        product(Matrix::new(&inner, t, rank), Matrix::new(b, out_features, rank).t(), self.1, true, &mut y);
        Ok(made(y, &(t, out_features).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        of_y: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Frozen { out_features, in_features, .. } = *self.0;
        let (x_values, a_values, b_values, of_y) = (values(x)?, values(a)?, values(b)?, values(of_y)?);
        let (inner, t, rank) = self.inner(&x_values, &a_values);
        let of_y_rows = Matrix::new(&of_y, t, out_features);
        let mut of_b = vec![0.0; out_features * rank];
        product(of_y_rows.t(), Matrix::new(&inner, t, rank), self.1, false, &mut of_b);
        let mut of_inner = vec![0.0; t * rank];
        product(of_y_rows, Matrix::new(&b_values, out_features, rank), self.1, false, &mut of_inner);
        let of_inner = Matrix::new(&of_inner, t, rank);
        let mut of_a = vec![0.0; rank * in_features];
        product(of_inner.t(), Matrix::new(&x_values, t, in_features), 1.0, false, &mut of_a);
        let of_x = match x.track_op() {
            true => {
                let mut of_x = self.0.backward(&of_y);
                product(of_inner, Matrix::new(&a_values, rank, in_features), 1.0, true, &mut of_x);
                Some(like(of_x, x)?)
            }
            false => None,
        };
        Ok((of_x, Some(like(of_a, a)?), Some(like(of_b, b)?)))
    }
}

/// `x` (t, features) normed by `weight` (features): less its mean where `centred`.
pub(crate) fn norm(x: &Tensor, weight: &Tensor, centred: bool, eps: f32) -> Result<Tensor> {
    x.apply_op2(weight, Norm { centred, eps })
}

struct Norm {
    centred: bool,
    eps: f32,
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout, w: &CpuStorage, w_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (operand(x, l)?, operand(w, w_layout)?);
        let zeros = vec![0.0; w.len()];
        let mut y = vec![0.0; x.len()];
        let chunk = ROWS_PER_TASK * w.len();
        y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
                match self.centred {
                    true => layer_norm_row(x, w, &zeros, self.eps, y),
                    false => rms_norm_row(x, w, self.eps, y),
                }
            }
        });
        Ok(made(y, l.shape()))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, of_y: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x_values, w, of_y) = (values(x)?, values(weight)?, values(of_y)?);
        let features = w.len();
        let ones = vec![1.0; features];
        let zeros = vec![0.0; features];
        let chunk = ROWS_PER_TASK * features;
        let mut of_x = vec![0.0; x_values.len()];
        let pieces = of_x.par_chunks_mut(chunk).zip(x_values.par_chunks(chunk)).zip(of_y.par_chunks(chunk));
        let of_w: Vec<Vec<f32>> = pieces
            .map(|((of_x, x), of_y)| {
                let (mut of_w, mut unit, mut g) = (vec![0.0; features], zeros.clone(), zeros.clone());
                let rows =
                    of_x.chunks_exact_mut(features).zip(x.chunks_exact(features)).zip(of_y.chunks_exact(features));
                for ((of_x, x), of_y) in rows {
                    let mean = match self.centred {
                        true => x.iter().sum::<f32>() / features as f32,
                        false => 0.0,
                    };
                    let squares: f32 = x.iter().map(|x| (x - mean) * (x - mean)).sum();
                    let scale = 1.0 / (squares / features as f32 + self.eps).sqrt();
                    match self.centred {
                        true => layer_norm_row(x, &ones, &zeros, self.eps, &mut unit),
                        false => rms_norm_row(x, &ones, self.eps, &mut unit),
                    }
                    for (((of_w, g), (&of_y, &w)), &unit) in
                        of_w.iter_mut().zip(&mut g).zip(of_y.iter().zip(&w)).zip(&unit)
                    {
                        *of_w += of_y * unit;
                        *g = of_y * w;
                    }
                    let along = dot(&g, &unit) / features as f32;
                    let level = if self.centred { g.iter().sum::<f32>() / features as f32 } else { 0.0 };
                    for ((of_x, &g), &unit) in of_x.iter_mut().zip(&g).zip(&unit) {
                        *of_x = scale * (g - level - unit * along);
                    }
                }
                of_w
            })
            .collect();
        let mut sum = zeros;
        of_w.iter().for_each(|of_w| add(&mut sum, of_w));
        Ok((Some(like(of_x, x)?), weight.track_op().then(|| like(sum, weight)).transpose()?))
    }
}

/// cos and sin of the positions of a sequence.
#[derive(Debug, Clone)]
pub(crate) struct Turning {
    rope: Rope,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Turning {
    /// Of the first `positions`.
    pub fn new(rope: Rope, positions: usize) -> Self {
        let (cos, sin) = rope.table(0, positions);
        Self { rope, cos, sin }
    }
}

/// Heads of `x` (t, heads · head_dim) turned by their rows' positions.
pub(crate) fn rotate(x: &Tensor, turning: &Arc<Turning>, head_dim: usize) -> Result<Tensor> {
    x.apply_op1(Rotate(turning.clone(), head_dim))
}

struct Rotate(Arc<Turning>, usize);

impl Rotate {
    fn turn(&self, x: &mut [f32], width: usize, sin: &[f32]) {
        let half = self.0.rope.half();
        x.par_chunks_mut(width).enumerate().for_each(|(row, x)| {
            let range = row * half..(row + 1) * half;
            let heads = x.chunks_exact_mut(self.1);
            heads.for_each(|head| self.0.rope.rotate(head, &self.0.cos[range.clone()], &sin[range.clone()]));
        });
    }
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = operand(x, layout)?.to_vec();
        self.turn(&mut y, layout.dims()[1], &self.0.sin);
        Ok(made(y, layout.shape()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, of_y: &Tensor) -> Result<Option<Tensor>> {
        // A turn's gradient is turned back.
        let back: Vec<f32> = self.0.sin.iter().map(|sin| -sin).collect();
        let mut of_x = values(of_y)?;
        self.turn(&mut of_x, x.dim(1)?, &back);
        Ok(Some(like(of_x, x)?))
    }
}

/// Heads' outputs (t, n_heads · head_dim) of one causal sequence: `q` of that shape, `k` and `v` (t, n_kv_heads · head_dim).
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads) -> Result<Tensor> {
    q.apply_op3(k, v, Attend(heads))
}

struct Attend(Heads);

impl Attend {
    /// The weights (t, t) of one head, and with a cap the capped scores.
    fn weights(&self, q: Matrix<'_>, k: Matrix<'_>) -> (Vec<f32>, Option<Vec<f32>>) {
        let Heads { window, scale, softcap: cap, .. } = self.0;
        let t = q.rows;
        let mut scores = vec![0.0; t * t];
        product(q, k.t(), if cap.is_some() { scale } else { 1.0 }, false, &mut scores);
        let capped = cap.map(|cap| {
            softcap(&mut scores, cap);
            scores.clone()
        });
        for (position, row) in scores.chunks_exact_mut(t).enumerate() {
            let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
            row[..first].fill(0.0);
            row[position + 1..].fill(0.0);
            softmax_row(&mut row[first..=position], if cap.is_some() { 1.0 } else { scale });
        }
        (scores, capped)
    }
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Heads { n_kv_heads, head_dim, .. } = self.0;
        let (q, k, v) = (operand(q, q_layout)?, operand(k, k_layout)?, operand(v, v_layout)?);
        let by_head = |x: &[f32]| -> Vec<Vec<f32>> {
            let columns = |head: usize| x.chunks_exact(n_kv_heads * head_dim).map(move |row| &row[head * head_dim..]);
            (0..n_kv_heads).map(|head| columns(head).flat_map(|row| &row[..head_dim]).copied().collect()).collect()
        };
        let mut y = vec![0.0; q.len()];
        attention(self.0, q, &by_head(k), &by_head(v), &mut y);
        Ok(made(y, q_layout.shape()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        of_y: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Heads { n_heads, n_kv_heads, head_dim, scale, softcap: cap, .. } = self.0;
        let (width, kv_width) = (n_heads * head_dim, n_kv_heads * head_dim);
        let shared = n_heads / n_kv_heads;
        let (q_values, k_values, v_values, of_y) = (values(q)?, values(k)?, values(v)?, values(of_y)?);
        let t = q_values.len() / width;
        let gradients: Vec<[Vec<f32>; 3]> = (0..n_heads)
            .into_par_iter()
            .map(|head| {
                let of = |x, width, head| Matrix::part(x, width, head * head_dim, head_dim);
                let (q, of_y) = (of(&q_values, width, head), of(&of_y, width, head));
                let (k, v) = (of(&k_values, kv_width, head / shared), of(&v_values, kv_width, head / shared));
                let (p, capped) = self.weights(q, k);
                let mut of_scores = vec![0.0; t * t];
                product(of_y, v.t(), 1.0, false, &mut of_scores);
                let mut of_v = vec![0.0; t * head_dim];
                product(Matrix::new(&p, t, t).t(), of_y, 1.0, false, &mut of_v);
                // Where nothing is seen p is 0, and with it the gradient.
                for (of_scores, p) in of_scores.chunks_exact_mut(t).zip(p.chunks_exact(t)) {
                    let along = dot(of_scores, p);
                    of_scores.iter_mut().zip(p).for_each(|(of_score, p)| *of_score = p * (*of_score - along));
                }
                if let (Some(capped), Some(cap)) = (&capped, cap) {
                    let slope = |score: f32| 1.0 - (score / cap) * (score / cap);
                    of_scores.iter_mut().zip(capped).for_each(|(of_score, &score)| *of_score *= slope(score));
                }
                let of_scores = Matrix::new(&of_scores, t, t);
                let (mut of_q, mut of_k) = (vec![0.0; t * head_dim], vec![0.0; t * head_dim]);
                product(of_scores, k, scale, false, &mut of_q);
                product(of_scores.t(), q, scale, false, &mut of_k);
                [of_q, of_k, of_v]
            })
            .collect();
        let (mut of_q, mut of_k) = (vec![0.0; q_values.len()], vec![0.0; k_values.len()]);
        let mut of_v = of_k.clone();
        for (head, gradients) in gradients.iter().enumerate() {
            let places =
                [(&mut of_q, width, head), (&mut of_k, kv_width, head / shared), (&mut of_v, kv_width, head / shared)];
            for (gradient, (to, width, head)) in gradients.iter().zip(places) {
                for (to, row) in to.chunks_exact_mut(width).zip(gradient.chunks_exact(head_dim)) {
                    axpy(1.0, row, &mut to[head * head_dim..][..head_dim]);
                }
            }
        }
        Ok((Some(like(of_q, q)?), Some(like(of_k, k)?), Some(like(of_v, v)?)))
    }
}

/// `f(gate) ⊙ up`, element by element.
pub(crate) fn gate(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    gate.apply_op2(up, Gated(activation))
}

/// `f(x)`, element by element.
pub(crate) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    x.apply_op1(Activated(activation))
}

/// Elements one task works on.
const ELEMENTS_PER_TASK: usize = 1 << 14;

/// f'(x).
#[inline(always)]
fn slope(activation: Activation, x: f32) -> f32 {
    let logistic = |x: f32| 0.5 * (1.0 + tanh(0.5 * x));
    match activation {
        Activation::Silu => {
            let s = logistic(x);
            s * (1.0 + x * (1.0 - s))
        }
        Activation::QuickGelu => {
            let s = logistic(1.702 * x);
            s * (1.0 + 1.702 * x * (1.0 - s))
        }
        Activation::GeluTanh => {
            // x σ(2u), u = √(2/π) (x + 0.044715 x³).
            const TWICE_ROOT: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
            let s = logistic(TWICE_ROOT * (x + 0.044_715 * x * x * x));
            s * (1.0 + x * (1.0 - s) * TWICE_ROOT * (1.0 + 3.0 * 0.044_715 * x * x))
        }
        Activation::Gelu => {
            const DENSITY_AT_0: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2 * 0.5;
            normal_cdf(x) + x * DENSITY_AT_0 * (-0.5 * x * x).exp()
        }
        Activation::Relu => f32::from(u8::from(x > 0.0)),
        Activation::Tanh => 1.0 - tanh(x) * tanh(x),
    }
}

struct Gated(Activation);

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout, up: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (mut y, up) = (operand(x, layout)?.to_vec(), operand(up, l)?);
        let pieces = y.par_chunks_mut(ELEMENTS_PER_TASK).zip(up.par_chunks(ELEMENTS_PER_TASK));
        pieces.for_each(|(y, up)| self.0.mul(y, up));
        Ok(made(y, layout.shape()))
    }

    fn bwd(&self, x: &Tensor, up: &Tensor, _: &Tensor, of_y: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut of_x, mut of_up, of_y) = (values(x)?, values(up)?, values(of_y)?);
        let pieces = of_x.par_chunks_mut(ELEMENTS_PER_TASK).zip(of_up.par_chunks_mut(ELEMENTS_PER_TASK));
        pieces.zip(of_y.par_chunks(ELEMENTS_PER_TASK)).for_each(|((x, up), of_y)| {
            let mut f = x.to_vec();
            self.0.apply(&mut f);
            for (((x, up), &of_y), f) in x.iter_mut().zip(up).zip(of_y).zip(f) {
                (*x, *up) = (of_y * *up * slope(self.0, *x), of_y * f);
            }
        });
        Ok((Some(like(of_x, x)?), Some(like(of_up, up)?)))
    }
}

struct Activated(Activation);

impl CustomOp1 for Activated {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = operand(x, layout)?.to_vec();
        y.par_chunks_mut(ELEMENTS_PER_TASK).for_each(|y| self.0.apply(y));
        Ok(made(y, layout.shape()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, of_y: &Tensor) -> Result<Option<Tensor>> {
        let (mut of_x, of_y) = (values(x)?, values(of_y)?);
        of_x.iter_mut().zip(of_y).for_each(|(x, of_y)| *x = of_y * slope(self.0, *x));
        Ok(Some(like(of_x, x)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::test_values::uniform;

    #[test]
    fn products_are_their_definition_in_pieces_too() {
        const MAX_DIFFERENCE: f64 = 1e-4;
        for (m, n, k) in [(3, 5, 7), (1, 300, 2), (600, 3, 40), (530, 270, 33)] {
            let (a, b, c) = (uniform(m * k, 1), uniform(n * k, 2), uniform(m * n, 3));
            let mut out = c.clone();
            product(Matrix::new(&a, m, k), Matrix::new(&b, n, k).t(), 0.5, true, &mut out);
            for (at, (&out, &c)) in out.iter().zip(&c).enumerate() {
                let terms = a[at / n * k..][..k].iter().zip(&b[at % n * k..][..k]);
                let sum: f64 = terms.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                assert!((f64::from(out) - f64::from(c) - 0.5 * sum).abs() < MAX_DIFFERENCE, "({m}, {n}, {k}) at {at}");
            }
        }
    }

    #[test]
    fn slopes_are_those_of_the_functions() {
        const STEP: f32 = 1e-2;
        const LARGEST_DIFFERENCE: f32 = 1e-4;
        for &(name, activation) in Activation::NAMES {
            for x in [-3.0f32, -0.7, -0.1, 0.3, 1.1, 2.5] {
                let mut at = [x - 2.0 * STEP, x - STEP, x + STEP, x + 2.0 * STEP];
                activation.apply(&mut at);
                let expected = (8.0 * (at[2] - at[1]) - (at[3] - at[0])) / (12.0 * STEP);
                let found = slope(activation, x);
                assert!((found - expected).abs() < LARGEST_DIFFERENCE, "{name} at {x}: {found} against {expected}");
            }
        }
    }
}
