//! Healing in closed form: what can be won back without training.
//!
//! * [`refit_norms`]: behind the first layer that is gone, every norm reads a stream that lacks something. Its weight is
//!   fitted anew so that what it hands on is as near as a diagonal map can bring it to what the dense model's norm hands
//!   on there: s_j = Σ a_j b_j / Σ b_j², with `a` the dense model's and `b` the pruned one's output of feature j over all
//!   tokens, and the weight times s. Layers are gone through in order, each reading what the healed ones before it leave.
//!   It costs two forward passes and no byte.
//! * [`merge`]: the layers of a run that is gone are added to the layer before it, θ_l + Σ (θ_{l+k} − θ_l) (LaCo, Yang et
//!   al. 2024, eq. 1).

use std::collections::BTreeMap;

use candle_core::Tensor;
use scruple_weights::Checkpoint;
use serde::{Deserialize, Serialize};

use super::{distil, rewrite::Stack, sweep::Sequence, write::Provenance};
use crate::{
    Error, Result,
    kernel::tensor::with_f32,
    model::{
        Decoder,
        decoder::BlockCache,
        spec::{NormKind, NormSpec},
    },
};

/// How strongly s is held to 1: the share of Σ b_j² that is added on both sides.
const RIDGE: f64 = 0.01;

/// What was done to heal a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Healed {
    /// `norms`, `merge` or `distil`.
    pub method: String,
    /// How it was distilled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<distil::Recipe>,
    /// SHA-256 of the text it was done on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_digest: Option<String>,
    /// Tensors that no longer hold the source's bytes.
    pub tensors: Vec<String>,
}

/// New numbers of tensors, by name.
pub type Replaced = BTreeMap<String, Vec<f32>>;

/// Sums of products of what two norms hand on, by feature.
struct Fit {
    ab: Vec<f64>,
    bb: Vec<f64>,
}

impl Fit {
    fn new(features: usize) -> Self {
        Self { ab: vec![0.0; features], bb: vec![0.0; features] }
    }

    fn add(&mut self, a: &Tensor, b: &Tensor) -> Result<()> {
        let features = self.ab.len();
        with_f32(a, |a| {
            with_f32(b, |b| {
                for (a, b) in a.chunks_exact(features).zip(b.chunks_exact(features)) {
                    for ((ab, bb), (&a, &b)) in self.ab.iter_mut().zip(&mut self.bb).zip(a.iter().zip(b)) {
                        *ab += f64::from(a) * f64::from(b);
                        *bb += f64::from(b) * f64::from(b);
                    }
                }
            })
        })?
    }

    /// The factor of each feature.
    fn factors(&self) -> impl Iterator<Item = f64> {
        self.ab.iter().zip(&self.bb).map(|(ab, bb)| match *bb > 0.0 {
            true => (ab + RIDGE * bb) / (bb + RIDGE * bb),
            false => 1.0,
        })
    }
}

/// Weight and factors to the new weight as it is stored: a norm that counts from one stores one less.
fn scaled(stored: &[f32], spec: &NormSpec, fit: &Fit) -> Vec<f32> {
    let one = if spec.kind == NormKind::RmsFromOne { 1.0 } else { 0.0 };
    stored.iter().zip(fit.factors()).map(|(&w, s)| ((f64::from(w) + one) * s - one) as f32).collect()
}

/// Fits the norms of `pruned`, a checkpoint without some layers of `source`, on `sequences`; gives their new weights by
/// their names in `pruned`.
///
/// # Errors
/// A model whose blocks do not norm what they read by root mean squares.
pub fn refit_norms(
    pruned: &Checkpoint,
    source: &Checkpoint,
    provenance: &Provenance,
    sequences: &[Sequence],
    progress: &mut dyn FnMut(usize),
) -> Result<Replaced> {
    let dense = Decoder::open(source)?;
    let mut model = Decoder::open(pruned)?;
    let config = model.config().clone();
    let Some(first) = (0..provenance.source_layers).find(|layer| provenance.removed.contains(*layer)) else {
        return Ok(Replaced::new());
    };
    let mut replaced = Replaced::new();
    let embed = |sequence: &Sequence| dense.embed(&sequence.ids, 0);
    let mut whole: Vec<Tensor> = sequences.iter().map(embed).collect::<Result<_>>()?;
    let mut lacking = whole.clone();
    for layer in 0..provenance.source_layers {
        let block = &dense.blocks()[layer];
        let middle: Vec<Tensor> =
            whole.iter().map(|x| block.attention_step(x, &mut BlockCache::default())).collect::<Result<_>>()?;
        if let Ok(place) = provenance.kept.binary_search(&layer) {
            let spec = model.blocks()[place].spec().clone();
            if layer > first {
                let norm = expect_rms(spec.attention_norms.before.as_ref(), pruned)?;
                let mut fit = Fit::new(config.hidden_size);
                for (a, b) in whole.iter().zip(&lacking) {
                    fit.add(&block.attention_input(a)?, &model.blocks()[place].attention_input(b)?)?;
                }
                refit(pruned, &mut model, (place, &norm), &fit, &mut replaced)?;
            }
            let block_here = &model.blocks()[place];
            let after: Vec<Tensor> = lacking
                .iter()
                .map(|x| block_here.attention_step(x, &mut BlockCache::default()))
                .collect::<Result<_>>()?;
            // Where both halves read the same through the same norm, that is fitted already.
            let shared =
                spec.mlp_norms.before.map(|norm| norm.name) == spec.attention_norms.before.map(|norm| norm.name);
            if layer > first && !shared {
                let norm = expect_rms(spec.mlp_norms.before.as_ref(), pruned)?;
                let mut fit = Fit::new(config.hidden_size);
                for ((whole, middle), (lacking, after)) in whole.iter().zip(&middle).zip(lacking.iter().zip(&after)) {
                    let a = block.mlp_reads(whole, middle);
                    let b = block_here.mlp_reads(lacking, after);
                    fit.add(&block.mlp_input(a)?, &block_here.mlp_input(b)?)?;
                }
                refit(pruned, &mut model, (place, &norm), &fit, &mut replaced)?;
            }
            lacking = step(&model.blocks()[place], lacking, after)?;
        }
        whole = step(block, whole, middle)?;
        progress(layer + 1);
    }
    if let Some(norm) = &config.head.norm {
        let norm = expect_rms(Some(norm), pruned)?;
        let mut fit = Fit::new(config.hidden_size);
        for (a, b) in whole.iter().zip(&lacking) {
            fit.add(&dense.finish(a)?, &model.finish(b)?)?;
        }
        let name = format!("{}{}.weight", config.base, norm.name);
        let stored = pruned.tensor(&name)?.to_f32()?;
        replaced.insert(name, scaled(&stored, &norm, &fit));
    }
    Ok(replaced)
}

/// The rest of a block after its attention.
fn step(block: &crate::model::decoder::Block, before: Vec<Tensor>, middle: Vec<Tensor>) -> Result<Vec<Tensor>> {
    let rest = |(x, middle): (Tensor, Tensor)| match block.spec().parallel {
        true => block.forward(&x, &mut BlockCache::default()),
        false => block.mlp_step(&middle),
    };
    before.into_iter().zip(middle).map(rest).collect()
}

fn expect_rms(norm: Option<&NormSpec>, checkpoint: &Checkpoint) -> Result<NormSpec> {
    match norm {
        Some(norm) if matches!(norm.kind, NormKind::Rms | NormKind::RmsFromOne) => Ok(*norm),
        _ => Err(Error::Recipe(format!(
            "{}: norms are fitted anew where blocks norm what they read by root mean squares, and this family does not",
            checkpoint.path().display()
        ))),
    }
}

/// Puts the fitted norm of block `place` in its place.
fn refit(
    pruned: &Checkpoint,
    model: &mut Decoder,
    (place, norm): (usize, &NormSpec),
    fit: &Fit,
    replaced: &mut Replaced,
) -> Result<()> {
    let name = format!("{}.{}.weight", model.config().block_path(place), norm.name);
    let weight = scaled(&pruned.tensor(&name)?.to_f32()?, norm, fit);
    model.set_norm(place, norm.name, &weight);
    replaced.insert(name, weight);
    Ok(())
}

/// The tensors of every layer before a run that is gone, with the run's added: by their names in the pruned checkpoint.
///
/// # Errors
/// If a layer that is gone has other tensors than the one it is added to, or tensors are not plain numbers.
pub fn merge(source: &Checkpoint, provenance: &Provenance) -> Result<Replaced> {
    let stack = Stack::find(source, source.config()?, Some(&provenance.stack))?;
    let mut replaced = Replaced::new();
    for (new, &layer) in provenance.kept.iter().enumerate() {
        let end = provenance.kept.get(new + 1).copied().unwrap_or(provenance.source_layers);
        if end == layer + 1 {
            continue;
        }
        for view in source.tensors().filter(|view| stack.layer_of(view.name()) == Some(layer)) {
            if !view.dtype().is_float() {
                return Err(view
                    .error("is not of plain numbers, so layers cannot be added; merge the dense model")
                    .into());
            }
            let own = view.to_f32()?;
            // In f64, and always from the first layer's own weights: adding up in place would end at the last layer's.
            let mut sum: Vec<f64> = own.iter().map(|&w| f64::from(w)).collect();
            for gone in layer + 1..end {
                let other = source.tensor(&stack.rename(view.name(), gone))?;
                if other.shape() != view.shape() {
                    return Err(other.error("has another shape than that of the layer it would be added to").into());
                }
                for ((sum, w), first) in sum.iter_mut().zip(other.to_f32()?).zip(&own) {
                    *sum += f64::from(w) - f64::from(*first);
                }
                other.release();
            }
            view.release();
            replaced.insert(stack.rename(view.name(), new), sum.into_iter().map(|w| w as f32).collect());
        }
    }
    Ok(replaced)
}
