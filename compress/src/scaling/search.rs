//! The scales of a block: what its inputs were, the search by each method, and what is written of it.

use scruple_weights::{Checkpoint, CheckpointWriter};

use super::{BlockScales, Fold, FoldedNorm, PlannedScaling, ScalingRecord, digest, stored};
use crate::{
    Error, Result,
    calibration::{ActivationStore, CalibrationSet},
    export::float_bytes,
    gather::is_sampled,
    kernel::tensor::with_f32,
    methods::{GroupStats, Scales},
    model::{
        block::{Block, BlockCache},
        spec::Stage,
    },
    plan::Plan,
    sequential::read_weight,
};

/// Searches the scales of the dense block `index`, whose inputs are in `input`; folds them into its norms, which it writes,
/// and tells what they change in its linears.
pub(crate) fn search(
    checkpoint: &Checkpoint,
    plan: &Plan,
    set: &CalibrationSet,
    index: usize,
    block: &mut Block,
    input: &ActivationStore,
    writer: &CheckpointWriter,
) -> Result<(BlockScales, Vec<ScalingRecord>)> {
    let planned: Vec<&PlannedScaling> = plan.scalings.iter().filter(|planned| planned.block == index).collect();
    let (mut found, mut records) = (BlockScales::default(), Vec::new());
    if planned.is_empty() {
        return Ok((found, records));
    }
    let stats = observe(set, block, input, &planned)?;
    for (planned, stats) in planned.into_iter().zip(stats) {
        let group = &planned.group;
        let read = |name: &String| {
            let linear = plan.linears.iter().find(|linear| linear.name == *name);
            let linear = linear.ok_or_else(|| Error::Model(format!("linear `{name}` is not in the plan")))?;
            read_weight(checkpoint, linear, plan.allow_nonfinite)
        };
        let weights: Vec<Vec<f32>> = planned.linears.iter().map(read).collect::<Result<_>>()?;
        let weights: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
        let scaling = plan.scaling(planned.method)?;
        let search = |settle: &dyn Fn(&mut [f32])| -> Result<Scales> {
            scaling.search(&weights, &stats, &group.classes, settle).map_err(|cause| match cause {
                Error::Numeric(what) => Error::Numeric(format!("the input of `{}`: {what}", planned.linears[0])),
                other => other,
            })
        };
        let (scales, told) = match &group.fold {
            Fold::Norm(spec) => {
                let norm = FoldedNorm::load(checkpoint, &planned.folded_into, spec.kind)?;
                let scales = search(&|scales| norm.settle(scales))?;
                let weight: Vec<f32> =
                    scales.scales.iter().enumerate().map(|(class, &scale)| norm.divided(class, scale)).collect();
                let bias = norm.bias(&scales.scales);
                writer.write(&format!("{}.weight", planned.folded_into), &float_bytes(&weight, norm.dtype))?;
                if let Some((bias, dtype)) = &bias {
                    writer.write(&format!("{}.bias", planned.folded_into), &float_bytes(bias, *dtype))?;
                }
                block.set_norm(spec.name, &weight, bias.as_ref().map(|(bias, _)| bias.as_slice()));
                (scales, None)
            }
            Fold::Rows { linear, rows } => {
                let bias = match planned.tensors.first() {
                    Some(name) => Some(stored(checkpoint, name)?),
                    None => None,
                };
                let scales = search(&|scales| {
                    if let Some((bias, dtype)) = &bias {
                        let holds = |row: u32, scale: f32| dtype.round(bias[row as usize] / scale).is_finite();
                        rows.iter().zip(scales).filter(|(row, s)| !holds(**row, **s)).for_each(|(_, s)| *s = 1.0);
                    }
                })?;
                let out_features = block.spec().linears[*linear].out_features;
                found.add_rows(&planned.folded_into, out_features, rows, &scales.scales);
                let told = bias.is_some().then(|| scales.scales.clone());
                if let (Some((mut bias, dtype)), Some(name)) = (bias, planned.tensors.first()) {
                    found.apply_to_bias(&planned.folded_into, &mut bias, Some(dtype));
                    writer.write(name, &float_bytes(&bias, dtype))?;
                }
                (scales, told)
            }
        };
        planned.linears.iter().for_each(|name| found.add_columns(name, &group.classes, &scales.scales));
        records.push(ScalingRecord {
            block: index,
            linears: planned.linears.clone(),
            folded_into: planned.folded_into.clone(),
            ratio: scales.ratio,
            duo: scales.duo,
            output_error: scales.error,
            unscaled_error: scales.unscaled,
            scales_sha256: digest(&scales.scales),
            scales: told,
        });
    }
    Ok((found, records))
}

/// What one group's inputs were.
#[derive(Default)]
struct Observed {
    /// Σ |x| of each column.
    sizes: Vec<f64>,
    samples: Vec<f32>,
    tokens: usize,
}

impl Observed {
    fn add(&mut self, x: &[f32], sampled: bool) {
        self.sizes.resize(x.len(), 0.0);
        self.sizes.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(x.abs()));
        if sampled {
            self.samples.extend_from_slice(x);
        }
        self.tokens += 1;
    }
}

/// Runs the dense block once and gathers what the inputs of each of `planned` were.
fn observe(
    set: &CalibrationSet,
    block: &Block,
    input: &ActivationStore,
    planned: &[&PlannedScaling],
) -> Result<Vec<GroupStats>> {
    let mut seen: Vec<Observed> = Vec::new();
    seen.resize_with(planned.len(), Observed::default);
    let last = planned.iter().map(|planned| planned.group.stage).max();
    let tokens = set.tokens();
    for first in (0..tokens).step_by(set.seq_len) {
        // `slots`: the rows of each expert, `per_token` of them a token.
        let mut see = |stage: Stage, x: &candle_core::Tensor, slots: Option<(&[Vec<usize>], usize)>| {
            with_f32(x, |x| {
                for (planned, seen) in planned.iter().zip(&mut seen).filter(|(p, _)| p.group.stage == stage) {
                    let width = planned.group.classes.len();
                    match slots.zip(planned.group.expert) {
                        Some(((slots, per_token), expert)) => {
                            for &slot in &slots[expert] {
                                let sampled = is_sampled(first + slot / per_token, tokens);
                                seen.add(&x[slot * width..][..width], sampled);
                            }
                        }
                        None => {
                            let rows = x.chunks_exact(width).enumerate();
                            rows.for_each(|(row, x)| seen.add(x, is_sampled(first + row, tokens)));
                        }
                    }
                }
            })
        };
        let x = input.read(first..first + set.seq_len)?;
        let h = block.attention_input(&x)?;
        see(Stage::Attention, &h, None)?;
        if last <= Some(Stage::Attention) {
            continue;
        }
        let heads = block.attention(&h, &mut BlockCache::default())?;
        see(Stage::AttentionOutput, &heads, None)?;
        if last <= Some(Stage::AttentionOutput) {
            continue;
        }
        let after = block.attention_output(&x, &heads)?;
        let h = block.mlp_input(block.mlp_reads(&x, &after))?;
        see(Stage::Mlp, &h, None)?;
        if last <= Some(Stage::Mlp) {
            continue;
        }
        let routing = block.routing(&h)?;
        let between = block.mlp(&h, routing.as_ref())?;
        let experts = block.spec().groups(Stage::MlpOutput);
        let slots = routing.as_ref().map(|routing| (routing.slots(experts), routing.top_k));
        see(Stage::MlpOutput, &between, slots.as_ref().map(|(slots, per_token)| (slots.as_slice(), *per_token)))?;
    }
    let finish = |(planned, mut seen): (&&PlannedScaling, Observed)| {
        seen.sizes.resize(planned.group.classes.len(), 0.0);
        let mean = |sum: f64| (sum / seen.tokens.max(1) as f64) as f32;
        GroupStats {
            in_features: planned.group.classes.len(),
            magnitudes: Some(seen.sizes.into_iter().map(mean).collect()),
            samples: Some(seen.samples),
            tokens: seen.tokens,
            ..GroupStats::default()
        }
    };
    Ok(planned.iter().zip(seen).map(finish).collect())
}
