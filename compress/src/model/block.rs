//! One decoder block, interpreted from its [`BlockSpec`].
//!
//! Linears stand behind [`Linear`], so the same code runs dense and packed weights. A block's way is cut into the four
//! [`Stage`]s at which its linear groups read their inputs; calibration walks through the stages, inference runs them in
//! a row.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;
use scruple_weights::Checkpoint;

use super::{
    config::DecoderConfig,
    experts::{Routing, take_rows},
    linear::{self, Linear},
    norm::{LayerNorm, Norm, RmsNorm, vector},
    rope::{Rope, Turns},
    spec::{BlockSpec, Gate, NormKind, NormSpec, Norms, Projection, QkNorm, Stage},
    stored::{Storage, load_plain},
};
use crate::{
    Result,
    kernel::{
        activation::{add, axpy},
        attention::{Heads, attention},
        tensor::{from_vec, with_f32},
    },
};

mod device;

pub use device::OnDevice;

/// Rows of an elementwise operation one task works on.
const ROWS_PER_TASK: usize = 32;

/// Queries, keys and values of the rows of one run, ready for attention.
pub(crate) struct Rows {
    pub heads: Heads,
    /// (rows, n_heads · head_dim).
    pub q: Vec<f32>,
    /// (rows, n_kv_heads · head_dim), as `v`.
    k: Vec<f32>,
    v: Vec<f32>,
}

/// Keys and values of the positions seen so far: one (positions, head_dim) array a key/value head.
#[derive(Debug, Clone, Default)]
pub struct BlockCache {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl BlockCache {
    fn positions(&self, heads: Heads) -> usize {
        self.keys.first().map_or(0, |keys| keys.len() / heads.head_dim)
    }

    /// An empty one with room for `positions`.
    pub(crate) fn with_room(heads: Heads, positions: usize) -> Self {
        let array = || vec![Vec::with_capacity(positions * heads.head_dim); heads.n_kv_heads];
        Self { keys: array(), values: array() }
    }

    /// Adds the keys and values of those of `rows` behind the positions held.
    pub(crate) fn push(&mut self, rows: &Rows, range: Range<usize>) {
        let Heads { n_kv_heads, head_dim, .. } = rows.heads;
        let width = n_kv_heads * head_dim;
        for (held, new) in [(&mut self.keys, &rows.k), (&mut self.values, &rows.v)] {
            held.resize_with(n_kv_heads, Vec::new);
            let new = &new[range.start * width..range.end * width];
            for (head, held) in held.iter_mut().enumerate() {
                held.reserve(range.len() * head_dim);
                new.chunks_exact(width).for_each(|row| held.extend_from_slice(&row[head * head_dim..][..head_dim]));
            }
        }
    }

    /// Adds `positions` of another cache of the same block behind those held.
    pub(crate) fn copy(&mut self, from: &Self, heads: Heads, positions: Range<usize>) {
        let range = positions.start * heads.head_dim..positions.end * heads.head_dim;
        for (held, from) in [(&mut self.keys, &from.keys), (&mut self.values, &from.values)] {
            held.resize_with(heads.n_kv_heads, Vec::new);
            held.iter_mut().zip(from).for_each(|(held, from)| held.extend_from_slice(&from[range.clone()]));
        }
    }

    /// Drops all of the `held` positions but the first `positions`.
    pub(crate) fn truncate(&mut self, positions: usize, held: usize) {
        for array in self.keys.iter_mut().chain(&mut self.values) {
            array.truncate(array.len() / held.max(1) * positions);
        }
    }

    /// Heads' outputs of those of `rows`, the last positions held.
    pub(crate) fn attend(&self, rows: &Rows, range: Range<usize>, out: &mut [f32]) {
        let width = rows.heads.n_heads * rows.heads.head_dim;
        attention(rows.heads, &rows.q[range.start * width..range.end * width], &self.keys, &self.values, out);
    }
}

/// The norm `spec` of `features` numbers, its tensors named after `prefix` (its dot included).
pub(crate) fn load_norm(checkpoint: &Checkpoint, prefix: &str, spec: &NormSpec, features: usize) -> Result<Norm> {
    let name = format!("{prefix}{}", spec.name);
    let weight = || vector(checkpoint, &format!("{name}.weight"), features);
    Ok(match spec.kind {
        NormKind::Rms | NormKind::RmsFromOne => norm(spec, weight()?, None),
        NormKind::Layer => Norm::Layer(LayerNorm::load(checkpoint, &name, features, true, spec.eps)?),
        NormKind::LayerPlain => Norm::Layer(LayerNorm::new(vec![1.0; features], None, spec.eps)),
    })
}

/// The norm `spec` with the tensors `weight` and `bias`.
fn norm(spec: &NormSpec, mut weight: Vec<f32>, bias: Option<Vec<f32>>) -> Norm {
    match spec.kind {
        NormKind::Rms => Norm::Rms(RmsNorm::new(weight, spec.eps)),
        NormKind::RmsFromOne => {
            weight.iter_mut().for_each(|weight| *weight += 1.0);
            Norm::Rms(RmsNorm::new(weight, spec.eps))
        }
        NormKind::Layer | NormKind::LayerPlain => Norm::Layer(LayerNorm::new(weight, bias, spec.eps)),
    }
}

/// The loaded form of [`Norms`].
#[derive(Debug)]
struct LoadedNorms {
    before: Option<Norm>,
    added: Option<Norm>,
    after: Option<Norm>,
}

impl LoadedNorms {
    fn load(checkpoint: &Checkpoint, prefix: &str, norms: &Norms, features: usize) -> Result<Self> {
        let load = |spec: &Option<NormSpec>| {
            spec.as_ref().map(|spec| load_norm(checkpoint, prefix, spec, features)).transpose()
        };
        Ok(Self { before: load(&norms.before)?, added: load(&norms.added)?, after: load(&norms.after)? })
    }

    /// What attention or MLP reads of the stream.
    fn read(&self, x: &Tensor) -> Result<Tensor> {
        match &self.before {
            Some(norm) => norm.forward(x),
            None => Ok(x.clone()),
        }
    }

    /// The stream after what it adds.
    fn write(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let sum = match &self.added {
            Some(norm) => sum(x, &norm.forward(y)?)?,
            None => sum(x, y)?,
        };
        match &self.after {
            Some(norm) => norm.forward(&sum),
            None => Ok(sum),
        }
    }
}

fn sum(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let mut out = with_f32(x, <[f32]>::to_vec)?;
    with_f32(y, |y| add(&mut out, y))?;
    from_vec(out, x.dims2()?)
}

/// Norms on q and k, loaded.
#[derive(Debug)]
enum LoadedQkNorm {
    Heads(Norm, Norm),
    Whole(Norm, Norm),
}

/// One of the parts that attention reads.
#[derive(Clone, Copy)]
enum Part {
    Query,
    Key,
    Value,
}

/// One decoder block.
#[derive(Debug)]
pub struct Block {
    spec: BlockSpec,
    heads: Heads,
    rope: Option<Rope>,
    attention_norms: LoadedNorms,
    qk_norm: Option<LoadedQkNorm>,
    mlp_norms: LoadedNorms,
    router: Option<Box<dyn Linear>>,
    linears: Vec<Box<dyn Linear>>, // in the order of the spec's
}

impl Block {
    /// Block `index` of `checkpoint`; weights stay in the mapped file until they are used.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &DecoderConfig,
        storage: Option<&Storage>,
        index: usize,
    ) -> Result<Self> {
        let spec = config.blocks[index].clone();
        let prefix = format!("{}.", config.block_path(index));
        let hidden = config.hidden_size;
        let a = &spec.attention;
        let mut linears = Vec::with_capacity(spec.linears.len());
        for linear in &spec.linears {
            linears.push(linear::load(checkpoint, &format!("{prefix}{}", linear.name), linear, storage)?);
        }
        let router = spec.mlp.experts.as_ref().map(|experts| {
            load_plain(checkpoint, &format!("{prefix}{}", experts.router), (experts.count, hidden), storage)
        });
        let pair = |q: &NormSpec, k: &NormSpec, q_width, k_width| -> Result<(Norm, Norm)> {
            Ok((load_norm(checkpoint, &prefix, q, q_width)?, load_norm(checkpoint, &prefix, k, k_width)?))
        };
        let qk_norm = match &a.qk_norm {
            None => None,
            Some(QkNorm::Heads(q, k)) => {
                let (q, k) = pair(q, k, a.head_dim, a.head_dim)?;
                Some(LoadedQkNorm::Heads(q, k))
            }
            Some(QkNorm::Whole(q, k)) => {
                let (q, k) = pair(q, k, a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim)?;
                Some(LoadedQkNorm::Whole(q, k))
            }
        };
        Ok(Self {
            heads: Heads {
                window: a.window,
                scale: a.scale,
                softcap: a.softcap,
                ..Heads::causal(a.n_heads, a.n_kv_heads, a.head_dim)
            },
            rope: a.rope.as_ref().map(Rope::new),
            attention_norms: LoadedNorms::load(checkpoint, &prefix, &spec.attention_norms, hidden)?,
            qk_norm,
            mlp_norms: LoadedNorms::load(checkpoint, &prefix, &spec.mlp_norms, hidden)?,
            router: router.transpose()?,
            linears,
            spec,
        })
    }

    /// What the block is.
    pub fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    /// The linears that read their input at `stage`, in the order of [`BlockSpec::at`].
    pub fn linears(&self, stage: Stage) -> &[Box<dyn Linear>] {
        &self.linears[self.spec.range(stage)]
    }

    /// All linears of the block.
    pub fn all_linears(&self) -> &[Box<dyn Linear>] {
        &self.linears
    }

    /// Puts another weight in place of the `index`-th linear of `stage`.
    pub fn replace(&mut self, stage: Stage, index: usize, linear: Box<dyn Linear>) {
        let at = self.spec.range(stage).start + index;
        self.linears[at] = linear;
    }

    /// Gives the norm called `name` that stands before attention or MLP, or both where they share it, other tensors.
    pub(crate) fn set_norm(&mut self, name: &str, weight: &[f32], bias: Option<&[f32]>) {
        let specs = [&self.spec.attention_norms, &self.spec.mlp_norms];
        for (spec, loaded) in specs.into_iter().zip([&mut self.attention_norms, &mut self.mlp_norms]) {
            if let Some(spec) = spec.before.filter(|spec| spec.name == name) {
                loaded.before = Some(norm(&spec, weight.to_vec(), bias.map(<[f32]>::to_vec)));
            }
        }
    }

    /// Input of q, k and v, from the residual stream `x` (tokens, hidden).
    pub fn attention_input(&self, x: &Tensor) -> Result<Tensor> {
        self.attention_norms.read(x)
    }

    /// One part of what the linears of [`Stage::Attention`] give, (tokens, heads of the part · head_dim).
    fn part(&self, outputs: &[Tensor], part: Part) -> Result<Vec<f32>> {
        let Heads { n_heads, n_kv_heads, head_dim, .. } = self.heads;
        let count = if matches!(part, Part::Query) { n_heads } else { n_kv_heads };
        // The head a part's head is among those of the one output that holds all.
        let place = |head: usize| match (self.spec.attention.projection, part) {
            (Projection::Separate, _) | (Projection::Fused, Part::Query) => head,
            (Projection::Fused, Part::Key) => n_heads + head,
            (Projection::Fused, Part::Value) => n_heads + n_kv_heads + head,
            (Projection::Grouped, part) => {
                let shared = n_heads / n_kv_heads;
                match part {
                    Part::Query => head / shared * (shared + 2) + head % shared,
                    Part::Key => head * (shared + 2) + shared,
                    Part::Value => head * (shared + 2) + shared + 1,
                }
            }
        };
        if self.spec.attention.projection == Projection::Separate {
            return with_f32(&outputs[part as usize], <[f32]>::to_vec);
        }
        let width = (n_heads + 2 * n_kv_heads) * head_dim;
        with_f32(&outputs[0], |x| {
            let mut out = vec![0.0; x.len() / width * count * head_dim];
            out.par_chunks_exact_mut(count * head_dim).zip(x.par_chunks_exact(width)).for_each(|(out, x)| {
                for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                    out.copy_from_slice(&x[place(head) * head_dim..][..head_dim]);
                }
            });
            out
        })
    }

    /// Queries, keys and values of rows, from the input of q, k and v: normed, and each head turned by `turn(head, row)`.
    fn rows(&self, h: &Tensor, turn: impl Fn(&mut [f32], usize) + Sync) -> Result<Rows> {
        let Heads { n_heads, n_kv_heads, head_dim, .. } = self.heads;
        let outputs: Vec<Tensor> =
            self.linears(Stage::Attention).iter().map(|linear| linear.forward(h)).collect::<Result<_>>()?;
        let mut q = self.part(&outputs, Part::Query)?;
        let mut k = self.part(&outputs, Part::Key)?;
        let v = self.part(&outputs, Part::Value)?;
        drop(outputs);

        let (q_heads, k_heads) = match &self.qk_norm {
            Some(LoadedQkNorm::Heads(q, k)) => (Some(q), Some(k)),
            Some(LoadedQkNorm::Whole(q_norm, k_norm)) => {
                q_norm.in_place(&mut q);
                k_norm.in_place(&mut k);
                (None, None)
            }
            None => (None, None),
        };
        for (x, heads, norm) in [(&mut q, n_heads, q_heads), (&mut k, n_kv_heads, k_heads)] {
            x.par_chunks_mut(heads * head_dim).enumerate().for_each(|(row, heads)| {
                if let Some(norm) = norm {
                    norm.in_place(heads);
                }
                heads.chunks_exact_mut(head_dim).for_each(|head| turn(head, row));
            });
        }
        Ok(Rows { heads: self.heads, q, k, v })
    }

    /// Heads' outputs (tokens, heads · head_dim), from the input of q, k and v. The tokens follow those in `cache`.
    pub fn attention(&self, h: &Tensor, cache: &mut BlockCache) -> Result<Tensor> {
        let tokens = h.dim(0)?;
        let past = cache.positions(self.heads);
        let table = self.rope.as_ref().map(|rope| (rope, rope.table(past, tokens)));
        let rows = self.rows(h, |head, token| {
            if let Some((rope, (cos, sin))) = &table {
                let half = rope.half();
                rope.rotate(head, &cos[token * half..][..half], &sin[token * half..][..half]);
            }
        })?;
        cache.push(&rows, 0..tokens);
        let mut out = vec![0.0; rows.q.len()];
        cache.attend(&rows, 0..tokens, &mut out);
        from_vec(out, (tokens, self.heads.n_heads * self.heads.head_dim))
    }

    /// The whole block over rows of several sequences, each at its place of `turns`: residual stream (rows, hidden) in and
    /// out. `attend` writes the heads' outputs (rows, heads · head_dim).
    pub(crate) fn forward_rows(
        &self,
        x: &Tensor,
        turns: &mut Turns,
        attend: impl FnOnce(&Rows, &mut [f32]),
    ) -> Result<Tensor> {
        let table = self.rope.as_ref().map(|rope| (rope, turns.table(rope)));
        let rows = self.rows(&self.attention_input(x)?, |head, row| {
            if let Some((rope, table)) = &table {
                let (cos, sin) = table.row(row);
                rope.rotate(head, cos, sin);
            }
        })?;
        let mut heads = vec![0.0; rows.q.len()];
        attend(&rows, &mut heads);
        drop(rows);
        let width = self.heads.n_heads * self.heads.head_dim;
        let after = self.attention_output(x, &from_vec(heads, (x.dim(0)?, width))?)?;
        self.mlp_after(&after, self.mlp_reads(x, &after))
    }

    /// The residual stream after attention has added to `x`.
    pub fn attention_output(&self, x: &Tensor, heads: &Tensor) -> Result<Tensor> {
        self.attention_norms.write(x, &self.linears(Stage::AttentionOutput)[0].forward(heads)?)
    }

    /// Of the stream before attention and that after it, the one the MLP reads.
    pub fn mlp_reads<'a, T: ?Sized>(&self, before: &'a T, after: &'a T) -> &'a T {
        if self.spec.parallel { before } else { after }
    }

    /// Input of the MLP's first linears, from the stream it reads.
    pub fn mlp_input(&self, x: &Tensor) -> Result<Tensor> {
        self.mlp_norms.read(x)
    }

    /// Where the tokens of the MLP's input go; `None` without experts.
    pub fn routing(&self, h: &Tensor) -> Result<Option<Routing>> {
        let experts = self.spec.mlp.experts.as_ref().zip(self.router.as_deref());
        experts.map(|(spec, router)| Routing::new(spec, router, h)).transpose()
    }

    /// f(gate) · up or f(first), by the first linears of one MLP.
    fn hidden(&self, first: &[Box<dyn Linear>], h: &Tensor) -> Result<Tensor> {
        let (activation, width) = (self.spec.mlp.activation, self.spec.mlp.width);
        let tokens = h.dim(0)?;
        let chunk = ROWS_PER_TASK * width;
        let y = first[0].forward(h)?;
        let hidden = match self.spec.mlp.gate {
            Gate::Separate => {
                let up = first[1].forward(h)?;
                let mut gate = with_f32(&y, <[f32]>::to_vec)?;
                with_f32(&up, |up| {
                    gate.par_chunks_mut(chunk)
                        .zip(up.par_chunks(chunk))
                        .for_each(|(gate, up)| activation.mul(gate, up));
                })?;
                gate
            }
            Gate::Fused => with_f32(&y, |y| {
                let mut hidden = vec![0.0; tokens * width];
                hidden.par_chunks_exact_mut(width).zip(y.par_chunks_exact(2 * width)).for_each(|(hidden, y)| {
                    let (gate, up) = y.split_at(width);
                    hidden.copy_from_slice(gate);
                    activation.mul(hidden, up);
                });
                hidden
            })?,
            Gate::None => {
                let mut y = with_f32(&y, <[f32]>::to_vec)?;
                y.par_chunks_mut(chunk).for_each(|y| activation.apply(y));
                y
            }
        };
        from_vec(hidden, (tokens, width))
    }

    /// Input of the MLP's last linears, (tokens, width), from that of its first; with experts (tokens, top_k · width), a
    /// token's slots in the order of `routing`, which is [`Self::routing`] of the same input.
    pub fn mlp(&self, h: &Tensor, routing: Option<&Routing>) -> Result<Tensor> {
        let first = self.linears(Stage::Mlp);
        let (Some(experts), Some(routing)) = (&self.spec.mlp.experts, routing) else { return self.hidden(first, h) };
        let (tokens, features) = h.dims2()?;
        let width = self.spec.mlp.width;
        let per_expert = first.len() / experts.count;
        let mut out = vec![0.0; tokens * routing.top_k * width];
        for (expert, slots) in routing.slots(experts.count).iter().enumerate().filter(|(_, slots)| !slots.is_empty()) {
            let x = with_f32(h, |h| take_rows(h, features, slots.iter().map(|slot| slot / routing.top_k)))??;
            let hidden = self.hidden(&first[expert * per_expert..][..per_expert], &x)?;
            with_f32(&hidden, |hidden| {
                for (&slot, row) in slots.iter().zip(hidden.chunks_exact(width)) {
                    out[slot * width..][..width].copy_from_slice(row);
                }
            })?;
        }
        from_vec(out, (tokens, routing.top_k * width))
    }

    /// The residual stream after the MLP has added to `x`; `hidden` is [`Self::mlp`]'s, by the same `routing`.
    pub fn mlp_output(&self, x: &Tensor, hidden: &Tensor, routing: Option<&Routing>) -> Result<Tensor> {
        let last = self.linears(Stage::MlpOutput);
        let (Some(experts), Some(routing)) = (&self.spec.mlp.experts, routing) else {
            return self.mlp_norms.write(x, &last[0].forward(hidden)?);
        };
        let (tokens, features) = x.dims2()?;
        let mut out = vec![0.0; tokens * features];
        for (expert, slots) in routing.slots(experts.count).iter().enumerate().filter(|(_, slots)| !slots.is_empty()) {
            let rows = with_f32(hidden, |hidden| take_rows(hidden, self.spec.mlp.width, slots.iter().copied()))??;
            with_f32(&last[expert].forward(&rows)?, |y| {
                for (&slot, y) in slots.iter().zip(y.chunks_exact(features)) {
                    axpy(routing.weights[slot], y, &mut out[slot / routing.top_k * features..][..features]);
                }
            })?;
        }
        self.mlp_norms.write(x, &from_vec(out, (tokens, features))?)
    }

    /// The stream `x` (tokens, hidden) with what attention alone adds.
    pub fn attention_step(&self, x: &Tensor, cache: &mut BlockCache) -> Result<Tensor> {
        let heads = self.attention(&self.attention_input(x)?, cache)?;
        self.attention_output(x, &heads)
    }

    /// The stream `x` (tokens, hidden) with what the MLP alone adds.
    pub fn mlp_step(&self, x: &Tensor) -> Result<Tensor> {
        self.mlp_after(x, x)
    }

    /// `x` with what the MLP makes of `read`.
    fn mlp_after(&self, x: &Tensor, read: &Tensor) -> Result<Tensor> {
        let h = self.mlp_input(read)?;
        let routing = self.routing(&h)?;
        let hidden = self.mlp(&h, routing.as_ref())?;
        self.mlp_output(x, &hidden, routing.as_ref())
    }

    /// The whole block: residual stream (tokens, hidden) in and out.
    pub fn forward(&self, x: &Tensor, cache: &mut BlockCache) -> Result<Tensor> {
        let after = self.attention_step(x, cache)?;
        self.mlp_after(&after, self.mlp_reads(x, &after))
    }
}
