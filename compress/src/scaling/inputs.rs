//! Which inputs of a block can be scaled, where that is undone, and which of them a plan will scale.

use std::collections::HashMap;

use scruple_weights::Checkpoint;
use serde::{Deserialize, Serialize};

use super::fold::float_dtype;
use crate::{
    kernel::activation::Activation,
    methods::{Kind, LayerMethod},
    model::{
        DecoderConfig,
        spec::{BlockSpec, Gate, NormKind, NormSpec, Projection, Stage},
    },
    plan::PlannedLinear,
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
