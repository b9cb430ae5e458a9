//! Scales of the inputs that a group of linears reads, and the place where they are undone: `y = (x/s) (W s)ᵀ`, with the
//! `1/s` folded into the weights of the layer before, so that the model computes what it did and only rounding differs.
//!
//! [`input_groups`] says for a block which inputs can be scaled. Where the layer before is a norm, its weight (and bias) is
//! divided; where it is a linear, its rows (and bias) are. Values reach the output projection through attention, which is
//! linear in them, so its columns are paid by the values' rows; query heads that read one value head then share their
//! scales. A gated MLP is linear in `up`; one without a gate only where its activation lets a positive factor through
//! (ReLU). What has no such place stays as it is: inputs without a norm of their own, those that a router reads too,
//! activations that are not homogeneous.
//!
//! Scales are such as the norm's stored type holds: the norm is divided and rounded first, and the scale is what then
//! stands between the old weight and the new, so that only a bias is rounded anew.

use std::collections::{BTreeMap, HashMap};

use scruple_weights::{Checkpoint, CheckpointWriter, Dtype};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    calibration::{ActivationStore, CalibrationSet},
    export::float_bytes,
    gather::is_sampled,
    grid::ScaleDtype,
    kernel::{activation::Activation, tensor::with_f32},
    methods::{GroupStats, Kind, LayerMethod, Scales},
    model::{
        DecoderConfig,
        block::{Block, BlockCache},
        spec::{BlockSpec, Gate, NormKind, NormSpec, Projection, Stage},
    },
    plan::{Plan, PlannedLinear},
    sequential::read_weight,
};

/// Inputs that can be scaled: those that some linears of a block share.
#[derive(Debug, Clone, PartialEq)]
pub struct InputGroup {
    /// Where they are read, first where that is at several stages.
    pub stage: Stage,
    /// The expert whose inputs they are.
    pub expert: Option<usize>,
    /// All linears that read them, by their places in [`BlockSpec::linears`].
    pub readers: Vec<usize>,
    /// The class of each column, from 0: columns of one class share a scale.
    pub classes: Vec<u32>,
    /// Where the scales are undone.
    pub fold: Fold,
}

/// Where scales of inputs are undone.
#[derive(Debug, Clone, PartialEq)]
pub enum Fold {
    /// In the weight and bias of a norm, one number a class.
    Norm(NormSpec),
    /// In rows of a linear before: the row of each class.
    Rows {
        /// Its place in [`BlockSpec::linears`].
        linear: usize,
        /// The row of each class.
        rows: Vec<u32>,
    },
}

/// Linears whose inputs stay as they are, by their places in [`BlockSpec::linears`], and why.
pub type LeftAlone = (Vec<usize>, &'static str);

fn each(n: usize) -> Vec<u32> {
    (0..n as u32).collect()
}

/// The inputs of a block that can be scaled, and the linears whose inputs cannot.
pub fn input_groups(spec: &BlockSpec) -> (Vec<InputGroup>, Vec<LeftAlone>) {
    let (mut groups, mut left) = (Vec::new(), Vec::new());
    let at = |stage: Stage| spec.range(stage).collect::<Vec<_>>();
    let shared = match (spec.attention_norms.before, spec.mlp_norms.before) {
        (Some(attention), Some(mlp)) => spec.parallel && attention.name == mlp.name,
        _ => false,
    };
    let mut behind_norm = |stage: Stage, readers: Vec<usize>, norm: Option<NormSpec>| match norm {
        _ if stage == Stage::Mlp && spec.mlp.experts.is_some() => {
            left.push((readers, "the router of the experts reads the same input"));
        }
        None => left.push((readers, "no norm stands before it")),
        Some(NormSpec { kind: NormKind::LayerPlain, .. }) => left.push((readers, "the norm before it has no weight")),
        Some(norm) => {
            let classes = each(spec.in_features(stage));
            groups.push(InputGroup { stage, expert: None, readers, classes, fold: Fold::Norm(norm) });
        }
    };
    if shared && spec.mlp.experts.is_none() {
        // One norm feeds both: one scale serves all who read it.
        let readers = [at(Stage::Attention), at(Stage::Mlp)].concat();
        behind_norm(Stage::Attention, readers, spec.attention_norms.before);
    } else if shared {
        left.push((at(Stage::Attention), "the router of the experts reads the same input"));
        left.push((at(Stage::Mlp), "the router of the experts reads the same input"));
    } else {
        behind_norm(Stage::Attention, at(Stage::Attention), spec.attention_norms.before);
        behind_norm(Stage::Mlp, at(Stage::Mlp), spec.mlp_norms.before);
    }

    let a = &spec.attention;
    let shares = a.n_heads / a.n_kv_heads.max(1);
    let qkv = spec.range(Stage::Attention).start;
    // The value head's place among the heads of the linear that makes it.
    let (linear, place): (usize, Box<dyn Fn(usize) -> usize>) = match a.projection {
        Projection::Separate => (qkv + 2, Box::new(|head| head)),
        Projection::Fused => (qkv, Box::new(|head| a.n_heads + a.n_kv_heads + head)),
        Projection::Grouped => (qkv, Box::new(|head| head * (shares + 2) + shares + 1)),
    };
    let rows = (0..a.n_kv_heads * a.head_dim).map(|class| place(class / a.head_dim) * a.head_dim + class % a.head_dim);
    let class = |column: usize| column / a.head_dim / shares * a.head_dim + column % a.head_dim;
    groups.push(InputGroup {
        stage: Stage::AttentionOutput,
        expert: None,
        readers: at(Stage::AttentionOutput),
        classes: (0..a.n_heads * a.head_dim).map(|column| class(column) as u32).collect(),
        fold: Fold::Rows { linear, rows: rows.map(|row| row as u32).collect() },
    });

    let width = spec.mlp.width;
    let first_row = match spec.mlp.gate {
        Gate::Separate => Some((1, 0)),
        Gate::Fused => Some((0, width)),
        Gate::None if spec.mlp.activation == Activation::Relu => Some((0, 0)),
        Gate::None => None,
    };
    for expert in 0..spec.groups(Stage::MlpOutput) {
        let of = |stage: Stage| {
            let mine = |&linear: &usize| spec.linears[linear].expert.is_none_or(|e| e == expert);
            spec.range(stage).filter(mine).collect::<Vec<_>>()
        };
        let readers = of(Stage::MlpOutput);
        match first_row {
            None => left.push((readers, "the activation before it does not let a factor through")),
            Some((index, first)) => groups.push(InputGroup {
                stage: Stage::MlpOutput,
                expert: spec.mlp.experts.as_ref().map(|_| expert),
                readers,
                classes: each(width),
                fold: Fold::Rows {
                    linear: of(Stage::Mlp)[index],
                    rows: (first..first + width).map(|r| r as u32).collect(),
                },
            }),
        }
    }
    (groups, left)
}

/// Inputs whose scales a run will search.
#[derive(Debug, Clone)]
pub struct PlannedScaling {
    /// Index of the block.
    pub block: usize,
    /// The inputs.
    pub group: InputGroup,
    /// The method that searches.
    pub method: usize,
    /// Full names of the readers.
    pub linears: Vec<String>,
    /// Full name of the norm or linear that the scales are folded into.
    pub folded_into: String,
    /// The tensors that change with it beside those of compressed linears: the norm's, or the linear's bias.
    pub tensors: Vec<String>,
}

/// Linears whose inputs a method would scale and cannot, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unscaled {
    /// Their full names.
    pub linears: Vec<String>,
    /// What stands in the way.
    pub reason: String,
}

fn float_dtype(dtype: Dtype) -> Option<ScaleDtype> {
    match dtype {
        Dtype::F16 => Some(ScaleDtype::F16),
        Dtype::Bf16 => Some(ScaleDtype::Bf16),
        Dtype::F32 => Some(ScaleDtype::F32),
        _ => None,
    }
}

/// What of a model's inputs will be scaled by the `methods` of its `linears`.
pub(crate) fn resolve(
    checkpoint: &Checkpoint,
    config: &DecoderConfig,
    linears: &[PlannedLinear],
    methods: &[Box<dyn LayerMethod>],
) -> (Vec<PlannedScaling>, Vec<Unscaled>) {
    let (mut planned, mut unscaled) = (Vec::new(), Vec::new());
    if methods.iter().all(|method| method.scaling().is_none()) {
        return (planned, unscaled);
    }
    for (block, spec) in config.blocks.iter().enumerate() {
        let places: HashMap<usize, &PlannedLinear> = linears
            .iter()
            .filter(|linear| linear.block == block)
            .filter_map(|linear| linear.site.map(|site| (spec.range(site.stage).start + site.index, linear)))
            .collect();
        let quantises_alone = |place: &usize| {
            let linear = places.get(place)?;
            match linear.methods[..] {
                [method] if methods[method].kind() == Kind::Quantise => Some(method),
                _ => None,
            }
        };
        let scales = |place: &usize| quantises_alone(place).filter(|&method| methods[method].scaling().is_some());
        let names = |places: &[usize]| -> Vec<String> {
            places.iter().map(|&place| config.linear_name(block, &spec.linears[place].name)).collect()
        };
        let asks = |place: &&usize| {
            places.get(*place).is_some_and(|linear| linear.methods.iter().any(|&m| methods[m].scaling().is_some()))
        };
        let mut leave = |readers: &[usize], reason: &str| {
            let asking: Vec<usize> = readers.iter().filter(asks).copied().collect();
            if !asking.is_empty() {
                unscaled.push(Unscaled { linears: names(&asking), reason: reason.into() });
            }
        };
        let (groups, left) = input_groups(spec);
        left.iter().for_each(|(readers, reason)| leave(readers, reason));
        for group in groups {
            let method = group.readers.first().and_then(scales);
            let Some(method) = method.filter(|method| group.readers.iter().all(|r| scales(r) == Some(*method))) else {
                leave(&group.readers, "not all that read the same input are quantised by the same stage alone");
                continue;
            };
            let prefix = config.block_path(block);
            let (folded_into, mut tensors) = match &group.fold {
                Fold::Norm(norm) => {
                    let name = format!("{prefix}.{}", norm.name);
                    (name.clone(), vec![format!("{name}.weight"), format!("{name}.bias")])
                }
                Fold::Rows { linear, .. } if quantises_alone(linear).is_none() => {
                    leave(&group.readers, "the linear before it is not quantised, or is pruned");
                    continue;
                }
                Fold::Rows { linear, .. } => {
                    let name = config.linear_name(block, &spec.linears[*linear].name);
                    (name.clone(), vec![format!("{name}.bias")])
                }
            };
            tensors.retain(|name| checkpoint.contains(name));
            let stored = |name: &String| checkpoint.get(name).and_then(|view| float_dtype(view.dtype()));
            if tensors.iter().any(|name| stored(name).is_none()) {
                leave(&group.readers, "the layer before it is stored in a type that is not written here");
                continue;
            }
            let linears = names(&group.readers);
            planned.push(PlannedScaling { block, group, method, linears, folded_into, tensors });
        }
    }
    (planned, unscaled)
}

/// What was done to one group of inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScalingRecord {
    /// Index of the block.
    pub block: usize,
    /// The linears that read the inputs.
    pub linears: Vec<String>,
    /// The norm or linear that was divided by the scales.
    pub folded_into: String,
    /// The exponent of the scales; 0 without `duo` where none was better.
    pub ratio: f64,
    /// They were made from inputs and weights.
    pub duo: bool,
    /// The share of the sampled outputs' energy that rounding loses with them.
    pub output_error: Option<f64>,
    /// The same without them.
    pub unscaled_error: Option<f64>,
    /// SHA-256 of the scales, one a class of columns (f32, little endian).
    pub scales_sha256: String,
    /// The scales themselves where the written tensors do not tell: of a linear whose bias was divided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scales: Option<Vec<f32>>,
}

fn digest(scales: &[f32]) -> String {
    scruple_weights::digest::sha256(&float_bytes(scales, ScaleDtype::F32))
}

/// A norm that scales are folded into, as it is stored.
struct FoldedNorm {
    /// What is added to the stored weight.
    offset: f32,
    weight: Vec<f32>,
    dtype: ScaleDtype,
    bias: Option<(Vec<f32>, ScaleDtype)>,
}

impl FoldedNorm {
    fn load(checkpoint: &Checkpoint, name: &str, kind: NormKind) -> Result<Self> {
        let read = |part: &str| stored(checkpoint, &format!("{name}.{part}"));
        let (weight, dtype) = read("weight")?;
        let bias = if kind == NormKind::Layer { Some(read("bias")?) } else { None };
        let offset = if kind == NormKind::RmsFromOne { 1.0 } else { 0.0 };
        Ok(Self { offset, weight, dtype, bias })
    }

    /// The scale between the stored weight `class` and `new` in its place; 1 where there is none.
    fn between(&self, class: usize, new: f32) -> f32 {
        let old = self.weight[class];
        let scale = (self.offset + old) / (self.offset + new);
        if old == new || !(scale.is_finite() && scale > 0.0) { 1.0 } else { scale }
    }

    /// The weight that stands for `class` divided by about `scale`.
    fn divided(&self, class: usize, scale: f32) -> f32 {
        let old = self.weight[class];
        if scale == 1.0 {
            return old;
        }
        let new = self.dtype.round((self.offset + old) / scale - self.offset);
        let between = (self.offset + old) / (self.offset + new);
        let bias = self.bias.as_ref().map_or(0.0, |(bias, dtype)| dtype.round(bias[class] / between));
        let holds = between.is_finite() && between > 0.0 && new.is_finite() && bias.is_finite();
        if holds { new } else { old }
    }

    /// Moves `scales` to such as the stored weight can be divided by.
    fn settle(&self, scales: &mut [f32]) {
        for (class, scale) in scales.iter_mut().enumerate() {
            *scale = self.between(class, self.divided(class, *scale));
        }
    }

    /// The bias divided by `scales`.
    fn bias(&self, scales: &[f32]) -> Option<(Vec<f32>, ScaleDtype)> {
        let (bias, dtype) = self.bias.as_ref()?;
        Some((bias.iter().zip(scales).map(|(bias, scale)| dtype.round(bias / scale)).collect(), *dtype))
    }
}

/// The floats of a tensor, and what they are stored as.
fn stored(checkpoint: &Checkpoint, name: &str) -> Result<(Vec<f32>, ScaleDtype)> {
    let view = checkpoint.tensor(name)?;
    let dtype = float_dtype(view.dtype()).ok_or_else(|| {
        let what = format!("has type {}, expected F16, BF16 or F32", view.dtype());
        Error::from(scruple_weights::Error::tensor(view.file(), name, what))
    })?;
    Ok((view.to_f32()?, dtype))
}

/// What the scales of a block change in its linears, by their full names.
#[derive(Debug, Default)]
pub(crate) struct BlockScales {
    /// What each column is multiplied by.
    columns: HashMap<String, Vec<f32>>,
    /// What each row, and the bias, is divided by.
    rows: HashMap<String, Vec<f32>>,
}

impl BlockScales {
    /// Scales the weight (out, in) of the linear called `name`.
    pub fn apply(&self, name: &str, values: &mut [f32]) {
        if let Some(scales) = self.columns.get(name) {
            for row in values.chunks_exact_mut(scales.len()) {
                row.iter_mut().zip(scales).for_each(|(w, s)| *w *= s);
            }
        }
        if let Some(scales) = self.rows.get(name) {
            let width = values.len() / scales.len();
            for (row, scale) in values.chunks_exact_mut(width).zip(scales).filter(|(_, scale)| **scale != 1.0) {
                row.iter_mut().for_each(|w| *w /= scale);
            }
        }
    }

    /// Divides the bias of the linear called `name`, which is stored as `dtype`.
    pub fn apply_to_bias(&self, name: &str, bias: &mut [f32], dtype: Option<ScaleDtype>) {
        let (Some(scales), Some(dtype)) = (self.rows.get(name), dtype) else { return };
        bias.iter_mut().zip(scales).for_each(|(b, s)| *b = dtype.round(*b / s));
    }

    /// The bias of the linear called `name`, if it has one, as it will be read back.
    pub fn bias(&self, checkpoint: &Checkpoint, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(view) = checkpoint.get(&format!("{name}.bias")) else { return Ok(None) };
        let mut bias = view.to_f32()?;
        self.apply_to_bias(name, &mut bias, float_dtype(view.dtype()));
        Ok(Some(bias))
    }

    /// Takes note of the `scales` of a group whose fold changes the rows of a linear of `out_features`.
    fn add_rows(&mut self, name: &str, out_features: usize, rows: &[u32], scales: &[f32]) {
        let divisors = self.rows.entry(name.into()).or_insert_with(|| vec![1.0; out_features]);
        rows.iter().zip(scales).for_each(|(&row, &scale)| divisors[row as usize] = scale);
    }

    fn add_columns(&mut self, name: &str, classes: &[u32], scales: &[f32]) {
        self.columns.insert(name.into(), classes.iter().map(|&class| scales[class as usize]).collect());
    }
}

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

/// Proof that the tensors of `written` that scales were folded into are those of `dense` divided by the recorded scales:
/// the faults found, and how many tensors were checked.
///
/// # Errors
/// Tensors of `dense` that are missing or cannot be read.
pub fn verify(
    plan: &Plan,
    records: &[ScalingRecord],
    dense: &Checkpoint,
    written: &Checkpoint,
) -> Result<(Vec<String>, usize)> {
    let (mut faults, mut checked) = (Vec::new(), 0);
    let file = written.path().display();
    let by_name: BTreeMap<&str, &ScalingRecord> =
        records.iter().map(|record| (record.folded_into.as_str(), record)).collect();
    for planned in &plan.scalings {
        let name = &planned.folded_into;
        let Some(record) = by_name.get(name.as_str()) else {
            faults.push(format!("{file}: scruple.json says nothing of the scales in `{name}`"));
            continue;
        };
        let mut expect_bias = |expected: Vec<f32>, dtype: ScaleDtype| -> Result<()> {
            checked += 1;
            if written.tensor(&format!("{name}.bias"))?.bytes() != float_bytes(&expected, dtype) {
                faults.push(format!("{file}: tensor `{name}.bias` is not the dense model's divided by the scales"));
            }
            Ok(())
        };
        let scales = match &planned.group.fold {
            Fold::Norm(spec) => {
                let norm = FoldedNorm::load(dense, name, spec.kind)?;
                let (new, _) = stored(written, &format!("{name}.weight"))?;
                let scales: Vec<f32> = new.iter().enumerate().map(|(class, &new)| norm.between(class, new)).collect();
                if let Some((bias, dtype)) = norm.bias(&scales) {
                    expect_bias(bias, dtype)?;
                }
                checked += 1;
                Some(scales)
            }
            Fold::Rows { rows, .. } if !planned.tensors.is_empty() => {
                let scales = record.scales.clone().unwrap_or_default();
                let (mut bias, dtype) = stored(dense, &format!("{name}.bias"))?;
                for (&row, scale) in rows.iter().zip(&scales) {
                    bias[row as usize] = dtype.round(bias[row as usize] / scale);
                }
                expect_bias(bias, dtype)?;
                Some(scales)
            }
            // The linear's own SHA-256 speaks for its rows.
            Fold::Rows { .. } => None,
        };
        if scales.is_some_and(|scales| digest(&scales) != record.scales_sha256) {
            faults.push(format!(
                "{file}: `{name}` is not the dense model's divided by the scales whose SHA-256 scruple.json holds"
            ));
        }
    }
    Ok((faults, checked))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use candle_core::Tensor;

    use super::*;
    use crate::{
        kernel::{tensor::from_vec, test_values::uniform},
        model::linear::DenseLinear,
    };

    /// Largest accepted difference of a block's outputs, relative to the largest of what it adds: f32 rounding, which
    /// attention scores of ±20 magnify.
    const MAX_RELATIVE_DIFFERENCE: f32 = 5e-5;

    const TOKENS: usize = 12;

    fn fixtures() -> Vec<PathBuf> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/decoders");
        let mut found: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.retain(|path| path.join("config.json").is_file());
        found.sort();
        found
    }

    fn flat(x: &Tensor) -> Vec<f32> {
        with_f32(x, <[f32]>::to_vec).unwrap()
    }

    /// Block `index` with every one of its input groups scaled at random, and how many were.
    fn scaled_block(checkpoint: &Checkpoint, config: &DecoderConfig, index: usize) -> (Block, usize) {
        let mut block = Block::load(checkpoint, config, None, index).unwrap();
        let spec = block.spec().clone();
        let name = |place: usize| config.linear_name(index, &spec.linears[place].name);
        let mut found = BlockScales::default();
        let (groups, _) = input_groups(&spec);
        for (number, group) in groups.iter().enumerate() {
            let count = group.classes.iter().max().unwrap() + 1;
            let mut scales: Vec<f32> = uniform(count as usize, number as u64).iter().map(|u| (1.4 * u).exp()).collect();
            match &group.fold {
                Fold::Norm(norm) => {
                    let path = format!("{}.{}", config.block_path(index), norm.name);
                    let mut folded = FoldedNorm::load(checkpoint, &path, norm.kind).unwrap();
                    // A bias rounded to the stored type anew would be all that differs.
                    folded.bias.iter_mut().for_each(|(_, dtype)| *dtype = ScaleDtype::F32);
                    let asked = scales.clone();
                    folded.settle(&mut scales);
                    // Rounding to the stored type moves a scale by a few of its last places.
                    let moved = asked.iter().zip(&scales).filter(|(a, b)| (*a / *b - 1.0).abs() > 0.1).count();
                    assert!(moved <= count as usize / 8, "{path}: {moved} of {count} scales were moved");
                    let weight: Vec<f32> =
                        (0..scales.len()).map(|class| folded.divided(class, scales[class])).collect();
                    let bias = folded.bias(&scales);
                    block.set_norm(norm.name, &weight, bias.as_ref().map(|(bias, _)| bias.as_slice()));
                }
                Fold::Rows { linear, rows } => {
                    found.add_rows(&name(*linear), spec.linears[*linear].out_features, rows, &scales);
                }
            }
            group.readers.iter().for_each(|&reader| found.add_columns(&name(reader), &group.classes, &scales));
        }
        for stage in Stage::ALL {
            for (number, place) in spec.range(stage).enumerate() {
                let linear = &spec.linears[place];
                let mut values = flat(&block.all_linears()[place].weight().unwrap());
                found.apply(&name(place), &mut values);
                let bias = checkpoint.get(&format!("{}.bias", name(place))).map(|view| view.to_f32().unwrap());
                let bias = bias.map(|mut bias| {
                    found.apply_to_bias(&name(place), &mut bias, Some(ScaleDtype::F32));
                    bias
                });
                let dense = DenseLinear::from_f32(&values, linear.shape(), bias).unwrap();
                block.replace(stage, number, Box::new(dense));
            }
        }
        (block, groups.len())
    }

    #[test]
    fn scaled_and_folded_blocks_compute_the_same_in_every_family() {
        let mut scaled = 0;
        for folder in fixtures() {
            let checkpoint = Checkpoint::open(&folder).unwrap();
            let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
            for index in 0..config.n_blocks {
                let dense = Block::load(&checkpoint, &config, None, index).unwrap();
                let (folded, groups) = scaled_block(&checkpoint, &config, index);
                scaled += groups;
                let x = from_vec(uniform(TOKENS * config.hidden_size, 5), (TOKENS, config.hidden_size)).unwrap();
                let [a, b] =
                    [&dense, &folded].map(|block| flat(&block.forward(&x, &mut BlockCache::default()).unwrap()));
                let added = a.iter().zip(flat(&x)).fold(0.0f32, |largest, (y, x)| largest.max((y - x).abs()));
                let worst = a.iter().zip(&b).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs())) / added;
                assert!(worst < MAX_RELATIVE_DIFFERENCE, "{}, block {index}: {worst:.1e}", folder.display());
            }
        }
        assert!(scaled > 150, "only {scaled} groups of inputs were scaled");
    }

    fn of(name: &str) -> (Vec<InputGroup>, Vec<LeftAlone>) {
        let folder = fixtures().into_iter().find(|path| path.ends_with(name)).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        input_groups(&DecoderConfig::from_checkpoint(&checkpoint).unwrap().blocks[0])
    }

    #[test]
    fn what_can_be_scaled_follows_from_the_wiring() {
        let reasons = |left: &[LeftAlone]| left.iter().map(|(_, reason)| *reason).collect::<Vec<_>>();
        let (groups, left) = of("llama");
        assert_eq!((groups.len(), left.len()), (4, 0));
        let (groups, left) = of("olmo2"); // norms behind attention and MLP alone
        assert_eq!((groups.len(), reasons(&left)), (2, vec!["no norm stands before it"; 2]));
        let (groups, left) = of("gpt2");
        assert_eq!((groups.len(), left.len()), (3, 1));
        assert!(reasons(&left)[0].contains("activation"));
        let (groups, left) = of("opt"); // ReLU
        assert_eq!((groups.len(), left.len()), (4, 0));
        let (groups, left) = of("falcon"); // one norm for both
        assert_eq!((groups.len(), left.len()), (2, 1));
        assert_eq!(groups[0].readers.len(), 2, "{:?}", groups[0]);
        let (groups, left) = of("mixtral");
        assert!(groups.iter().any(|group| group.expert == Some(1)) && reasons(&left)[0].contains("router"));
    }

    #[test]
    fn query_heads_that_read_one_value_head_share_scales() {
        let (groups, _) = of("llama");
        let output = groups.iter().find(|group| group.stage == Stage::AttentionOutput).unwrap();
        let count = output.classes.iter().max().unwrap() + 1;
        assert!((count as usize) < output.classes.len(), "the fixture has grouped queries");
        let Fold::Rows { rows, .. } = &output.fold else { panic!("{:?}", output.fold) };
        assert_eq!(rows.len(), count as usize);
    }

    #[test]
    fn a_norm_gives_back_the_scales_it_was_divided_by() {
        let weight: Vec<f32> = uniform(64, 1).iter().map(|w| ScaleDtype::Bf16.round(*w)).collect();
        for offset in [0.0, 1.0] {
            let mut weight = weight.clone();
            weight[5] = -offset; // an input that is always zero
            let norm = FoldedNorm { offset, weight, dtype: ScaleDtype::Bf16, bias: None };
            let mut scales: Vec<f32> = uniform(64, 2).iter().map(|u| (3.0 * u).exp()).collect();
            scales[9] = 1.0;
            norm.settle(&mut scales);
            assert_eq!((scales[5], scales[9]), (1.0, 1.0));
            for (class, &scale) in scales.iter().enumerate() {
                let new = norm.divided(class, scale);
                assert_eq!(ScaleDtype::Bf16.round(new), new);
                assert_eq!(norm.between(class, new).to_bits(), scale.to_bits(), "class {class}");
            }
        }
    }
}
