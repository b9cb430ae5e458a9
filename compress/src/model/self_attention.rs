//! What encoders and vision transformers share: attention that looks both ways over sequences laid end to end, and an
//! MLP.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;
use scruple_weights::Checkpoint;

use super::linear::{self, Linear};
use crate::{
    Result,
    export::Quantization,
    kernel::{
        activation::{Activation, add},
        attention::{DistanceBias, Heads, attention_with_bias},
        tensor::{from_vec, with_f32},
    },
};

/// Rows of an elementwise operation one task works on.
const ROWS_PER_TASK: usize = 32;

/// The four projections of an attention layer.
#[derive(Debug)]
pub(crate) struct SelfAttention {
    heads: Heads,
    q: Box<dyn Linear>,
    k: Box<dyn Linear>,
    v: Box<dyn Linear>,
    o: Box<dyn Linear>,
}

impl SelfAttention {
    /// Opens q, k, v and the output, all (hidden, hidden), by their `names`.
    pub fn load(
        checkpoint: &Checkpoint,
        names: [&str; 4],
        hidden: usize,
        n_heads: usize,
        qkv_bias: bool,
        quantization: Option<&Quantization>,
    ) -> Result<Self> {
        let [q, k, v, o] = names;
        let load = |name: &str, bias| linear::load_shaped(checkpoint, name, (hidden, hidden, bias), quantization);
        Ok(Self {
            heads: Heads::bidirectional(n_heads, hidden / n_heads),
            q: load(q, qkv_bias)?,
            k: load(k, qkv_bias)?,
            v: load(v, qkv_bias)?,
            o: load(o, true)?,
        })
    }

    /// The linears, in the order q, k, v, output.
    pub fn linears(&self) -> [&dyn Linear; 4] {
        [&*self.q, &*self.k, &*self.v, &*self.o]
    }

    /// `x` (tokens, hidden) holds sequences of these lengths, each of which attends to itself alone. To the same shape.
    pub fn forward(&self, x: &Tensor, lengths: &[usize], bias: Option<&DistanceBias>) -> Result<Tensor> {
        self.output(&self.heads(x, lengths, bias)?)
    }

    /// What the output projection makes of the heads' outputs.
    pub fn output(&self, heads: &Tensor) -> Result<Tensor> {
        self.o.forward(heads)
    }

    /// Puts `linear` in the place of q, k, v or the output, by number.
    pub fn replace(&mut self, index: usize, linear: Box<dyn Linear>) {
        *[&mut self.q, &mut self.k, &mut self.v, &mut self.o][index] = linear;
    }

    /// The heads' outputs, (tokens, hidden): the input of the output projection.
    pub fn heads(&self, x: &Tensor, lengths: &[usize], bias: Option<&DistanceBias>) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let [q, k, v] = [self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?];
        let mut out = vec![0.0; tokens * width];
        with_f32(&q, |q| {
            with_f32(&k, |k| {
                with_f32(&v, |v| {
                    let mut rest = out.as_mut_slice();
                    let mut sequences = Vec::with_capacity(lengths.len());
                    let mut first = 0;
                    for length in lengths {
                        let (part, tail) = rest.split_at_mut(length * width);
                        sequences.push((first * width..(first + length) * width, part));
                        rest = tail;
                        first += length;
                    }
                    sequences.into_par_iter().for_each(|(rows, out)| {
                        let keys = self.by_head(&k[rows.clone()]);
                        let values = self.by_head(&v[rows.clone()]);
                        attention_with_bias(self.heads, bias, &q[rows], &keys, &values, out);
                    });
                })
            })
        })???;
        from_vec(out, (tokens, width))
    }

    /// (tokens, heads · head_dim) to one (tokens, head_dim) a head.
    fn by_head(&self, x: &[f32]) -> Vec<Vec<f32>> {
        let Heads { n_heads, head_dim, .. } = self.heads;
        let columns = |head: usize| -> Range<usize> { head * head_dim..(head + 1) * head_dim };
        (0..n_heads)
            .map(|head| {
                let mut out = Vec::with_capacity(x.len() / n_heads);
                for row in x.chunks_exact(n_heads * head_dim) {
                    out.extend_from_slice(&row[columns(head)]);
                }
                out
            })
            .collect()
    }
}

/// `down(f(up(x)))`, or `down(f(gate) · up)` where one linear holds gate and up one after the other.
#[derive(Debug)]
pub(crate) struct Mlp {
    up: Box<dyn Linear>,
    down: Box<dyn Linear>,
    activation: Activation,
    gated: bool,
}

impl Mlp {
    /// Opens the two linears by their `names`; a `gated` one has 2 · `intermediate` outputs in the first.
    pub fn load(
        checkpoint: &Checkpoint,
        names: [&str; 2],
        (hidden, intermediate): (usize, usize),
        activation: Activation,
        gated: bool,
        quantization: Option<&Quantization>,
    ) -> Result<Self> {
        let [up, down] = names;
        let width = if gated { 2 * intermediate } else { intermediate };
        Ok(Self {
            up: linear::load_shaped(checkpoint, up, (width, hidden, true), quantization)?,
            down: linear::load_shaped(checkpoint, down, (hidden, intermediate, true), quantization)?,
            activation,
            gated,
        })
    }

    /// The linears, up and down.
    pub fn linears(&self) -> [&dyn Linear; 2] {
        [&*self.up, &*self.down]
    }

    /// `x` (tokens, hidden) to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.output(&self.inner(x)?)
    }

    /// What the second linear makes of its input.
    pub fn output(&self, inner: &Tensor) -> Result<Tensor> {
        self.down.forward(inner)
    }

    /// Puts `linear` in the place of up or down, by number.
    pub fn replace(&mut self, index: usize, linear: Box<dyn Linear>) {
        *[&mut self.up, &mut self.down][index] = linear;
    }

    /// (inputs of up, inputs of down).
    pub fn widths(&self) -> (usize, usize) {
        (self.up.shape().1, self.down.shape().1)
    }

    /// The second linear's input.
    pub fn inner(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.up.forward(x)?;
        let (tokens, width) = inner.dims2()?;
        if self.gated {
            let half = width / 2;
            let mut out = vec![0.0; tokens * half];
            with_f32(&inner, |inner| {
                out.par_chunks_mut(half).zip(inner.par_chunks(width)).for_each(|(out, inner)| {
                    out.copy_from_slice(&inner[..half]);
                    self.activation.mul(out, &inner[half..]);
                });
            })?;
            from_vec(out, (tokens, half))
        } else {
            activate(&inner, self.activation)
        }
    }
}

/// f(x), element by element.
pub(crate) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    let shape = x.dims2()?;
    let mut out = with_f32(x, <[f32]>::to_vec)?;
    out.par_chunks_mut(ROWS_PER_TASK * shape.1.max(1)).for_each(|out| activation.apply(out));
    from_vec(out, shape)
}

/// `x + y`, element by element.
pub(crate) fn sum(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let mut out = with_f32(x, <[f32]>::to_vec)?;
    with_f32(y, |y| add(&mut out, y))?;
    from_vec(out, x.dims2()?)
}
