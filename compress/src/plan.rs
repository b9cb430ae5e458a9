//! What a recipe means for one model: every linear with its method and layout, every tensor of the result, the size of
//! the file and the memory the run will take, all before any work.

use std::collections::{HashMap, HashSet};

use scruple_weights::{Checkpoint, Dtype, TensorSpec, TensorView, name::PathFilter};

use crate::{
    Error, Result,
    calibration::ActivationStore,
    export::{Format, Layout, QuantisedModel},
    gather::rows_per_update,
    grid::{GridSpec, ScaleDtype},
    methods::{Described, Kind, LayerMethod, Needs, SAMPLES, Scaling, awq::Awq},
    model::{
        DecoderConfig,
        decoder::{Decoder, Stage},
        spec::{BlockSpec, LinearSpec},
    },
    recipe::Recipe,
    scaling::{self, PlannedScaling, Unscaled},
    weight::Code,
};

/// Memory of the program itself, its threads and tables, bytes (measured; `benches/record/memory.json`).
const FIXED_BYTES: u64 = 24 << 20;

/// Memory the tokenizer takes a byte of text while it works: it keeps where every piece came from (measured).
const BYTES_PER_TEXT_BYTE: u64 = 135;

/// What a run does beside compressing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Around {
    /// Calibration sequences.
    pub n_samples: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Length of the calibration text.
    pub text_bytes: u64,
    /// Bytes of dense blocks run to measure the speed; 0 where it is not measured.
    pub speed_bytes: u64,
    /// Both models are run on a text afterwards.
    pub evaluates: bool,
}

/// One linear and what is to be done to it.
#[derive(Debug, Clone)]
pub struct PlannedLinear {
    /// Full name, without `.weight`.
    pub name: String,
    /// Index of its block.
    pub block: usize,
    /// Where it reads its input.
    pub stage: Stage,
    /// Which of the stage's linears it is.
    pub index: usize,
    /// The expert it belongs to.
    pub expert: Option<usize>,
    /// The checkpoint holds its weight as (in_features, out_features).
    pub transposed: bool,
    /// Its methods (stages of the recipe), in order: at most one that prunes, then at most one that quantises.
    pub methods: Vec<usize>,
    /// Shape, and the way it will be stored.
    pub layout: Layout,
}

/// What a run is expected to take.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Forecast {
    /// Bytes of the written tensors.
    pub output_bytes: u64,
    /// Bytes of the source's tensors.
    pub dense_bytes: u64,
    /// Bits a compressed linear's weight takes on average, scales included.
    pub bits_per_weight: f64,
    /// Resident memory at its peak.
    pub peak_rss_bytes: u64,
    /// Activations on disk while the run lasts.
    pub activation_bytes: u64,
}

/// What a result says about its quantisation.
#[derive(Debug, Clone)]
pub struct Quantisation {
    /// `quantization_config` of `config.json`; none for dense formats.
    pub config: Option<serde_json::Value>,
    /// Names and contents of further files.
    pub files: Vec<(String, serde_json::Value)>,
}

/// A recipe resolved for one model.
#[derive(Debug)]
pub struct Plan {
    /// The recipe as it was given.
    pub recipe: Recipe,
    /// The model.
    pub config: DecoderConfig,
    /// How the result is written.
    pub format: Format,
    /// The model's floats, where the format stores any.
    pub float_dtype: ScaleDtype,
    /// The type of the model's linears in the source.
    pub weight_dtype: Dtype,
    /// All linears that change, in the order of the data.
    pub linears: Vec<PlannedLinear>,
    /// Inputs whose scales are searched, in the order of the data, block by block.
    pub scalings: Vec<PlannedScaling>,
    /// Linears whose inputs a method would scale and cannot.
    pub unscaled: Vec<Unscaled>,
    /// Linears of the blocks that no stage names: they stay dense.
    pub left_dense: Vec<String>,
    /// What stands beside the decoder in a model that reads more than text, by the first name of its path: it stays as it
    /// is.
    pub beside: Vec<String>,
    /// Every tensor of the result, in the source's order.
    pub tensors: Vec<TensorSpec>,
    /// NaN and infinite weights are let through.
    pub allow_nonfinite: bool,
    methods: Vec<Box<dyn LayerMethod>>,
    replaced: HashSet<String>,
}

impl Plan {
    /// Resolves `recipe` for `checkpoint`. All faults of all linears are reported together.
    ///
    /// # Errors
    /// A model that does not run, linears that a method or the format cannot hold (with the settings that would work),
    /// a stage that names no linear.
    pub fn new(mut recipe: Recipe, checkpoint: &Checkpoint) -> Result<Self> {
        let config = DecoderConfig::from_checkpoint(checkpoint)?;
        let folder = checkpoint.dir().display();
        if crate::export::detect(checkpoint)?.is_some() {
            return Err(Error::Recipe(format!(
                "{folder}: the model is quantised already; compress its dense original"
            )));
        }
        Decoder::check(checkpoint, &config)?;
        let first_linear = config.linear_name(0, &config.blocks[0].linears[0].name);
        let weight_dtype = checkpoint.tensor(&format!("{first_linear}.weight"))?.dtype();
        let float_dtype = match weight_dtype {
            Dtype::F16 => ScaleDtype::F16,
            Dtype::F32 | Dtype::F64 => ScaleDtype::F32,
            _ => ScaleDtype::Bf16,
        };
        let format = match recipe.export.format {
            Some(format) => format,
            None => default_format(&recipe.methods()?),
        };
        recipe.export.format = Some(format);
        // Scales are rounded to what the format stores before codes are chosen; a recipe does not choose them.
        let scale_dtype = format.scale_dtype(float_dtype);
        recipe.set_scale_dtype(scale_dtype)?;
        let methods = recipe.methods()?;
        let filters = recipe
            .stages
            .iter()
            .enumerate()
            .map(|(index, stage)| {
                PathFilter::new(stage.targets.clone(), stage.ignore.clone())
                    .map_err(|error| Error::Recipe(format!("stage {} (`{}`): {error}", index + 1, stage.method)))
            })
            .collect::<Result<Vec<_>>>()?;

        let mut linears = Vec::new();
        let mut left_dense = Vec::new();
        let mut problems = Vec::new();
        for (block, spec) in config.blocks.iter().enumerate() {
            if let Some(experts) = &spec.mlp.experts {
                left_dense.push(config.linear_name(block, experts.router)); // small, and it decides over all else
            }
            for stage in Stage::ALL {
                for (index, linear) in spec.at(stage).iter().enumerate() {
                    let name = config.linear_name(block, &linear.name);
                    let &LinearSpec { out_features, in_features, expert, transposed, .. } = linear;
                    let of_kind =
                        |kind| (0..methods.len()).find(|&i| methods[i].kind() == kind && filters[i].matches(&name));
                    let chain: Vec<usize> = [Kind::Prune, Kind::Quantise].into_iter().filter_map(of_kind).collect();
                    let Some(&last) = chain.last() else {
                        left_dense.push(name);
                        continue;
                    };
                    let layout = methods[last].code(in_features).map(|code| Layout {
                        out_features,
                        in_features,
                        code,
                        dtype: float_dtype,
                    });
                    let fits = |layout: Layout| match transposed
                        && format != Format::Dense
                        && layout.code != Code::Dense
                    {
                        true => Err(Error::Recipe(format!(
                            "`{name}` cannot be written as {format}: the model stores it as a Conv1D, (inputs, outputs), \
                             and the loaders of packed formats take no such layer; write dense"
                        ))),
                        false => format.check(&name, &layout).map(|()| layout),
                    };
                    match layout.and_then(fits) {
                        Ok(layout) => linears.push(PlannedLinear {
                            name,
                            block,
                            stage,
                            index,
                            expert,
                            transposed,
                            methods: chain,
                            layout,
                        }),
                        Err(error) if error.to_string().contains(&name) => problems.push(error.to_string()),
                        Err(error) => problems.push(format!("linear `{name}`: {error}")),
                    }
                }
            }
        }
        if let Some(first) = problems.first() {
            let more = match problems.len() {
                1 => String::new(),
                n => format!(" (and so for {} more)", n - 1),
            };
            return Err(Error::Recipe(format!("{folder}: {first}{more}")));
        }
        for (index, stage) in recipe.stages.iter().enumerate() {
            if !linears.iter().any(|linear| linear.methods.contains(&index)) {
                let stage_name = format!("stage {} (`{}`)", index + 1, stage.method);
                let targets = &stage.targets;
                return Err(Error::Recipe(match linears.iter().any(|linear| filters[index].matches(&linear.name)) {
                    true => format!(
                        "{stage_name} is left without a linear: all that its targets {targets:?} name belong to earlier \
                         stages; put the stage with the narrower targets first"
                    ),
                    false => format!(
                        "{stage_name} names no linear of this model: its targets are {targets:?}, names look like \
                         {first_linear}"
                    ),
                }));
            }
        }
        let (scalings, unscaled) = scaling::resolve(checkpoint, &config, &linears, &methods);
        let weights = linears.iter().map(|linear| format!("{}.weight", linear.name));
        let folded = scalings.iter().flat_map(|scaling| scaling.tensors.iter().cloned());
        let replaced: HashSet<String> = weights.chain(folded).collect();
        let by_name: HashMap<&str, usize> =
            linears.iter().enumerate().map(|(index, linear)| (linear.name.as_str(), index)).collect();
        let mut tensors = Vec::new();
        for view in checkpoint.tensors() {
            let linear = view.name().strip_suffix(".weight").and_then(|name| by_name.get(name));
            let linear = linear.map(|index| &linears[*index]);
            match linear {
                Some(linear) => {
                    tensors.extend(format.specs(&linear.name, &linear.layout).into_iter().map(|mut spec| {
                        if linear.transposed {
                            spec.shape.reverse();
                        }
                        spec
                    }))
                }
                None => tensors.push(TensorSpec {
                    name: view.name().to_string(),
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                }),
            }
        }
        let mut beside: Vec<String> = checkpoint
            .tensors()
            .map(TensorView::name)
            .filter(|name| config.text_part && !name.starts_with(&config.base) && !name.starts_with(&config.head.name))
            .filter_map(|name| Some(name.strip_prefix("model.").unwrap_or(name).split_once('.')?.0.to_string()))
            .collect();
        beside.sort();
        beside.dedup();
        let plan = Self {
            recipe,
            beside,
            config,
            format,
            float_dtype,
            weight_dtype,
            linears,
            scalings,
            unscaled,
            left_dense,
            tensors,
            allow_nonfinite: false,
            methods,
            replaced,
        };
        plan.quantisation()?; // settings that cannot stand in one file
        Ok(plan)
    }

    /// Whether tensor `name` is written anew rather than copied.
    pub fn replaces(&self, name: &str) -> bool {
        self.replaced.contains(name)
    }

    /// The search for scales of the recipe's stage `method`.
    pub(crate) fn scaling(&self, method: usize) -> Result<&dyn Scaling> {
        let missing = || Error::Recipe(format!("stage {} searches no scales", method + 1));
        self.methods.get(method).and_then(|method| method.scaling()).ok_or_else(missing)
    }

    /// The methods of `linear`, in order; at least one.
    pub fn methods(&self, linear: &PlannedLinear) -> impl Iterator<Item = &dyn LayerMethod> {
        linear.methods.iter().map(|&index| self.methods[index].as_ref())
    }

    /// The names of the methods of `linear`, joined by `+`.
    pub fn method_name(&self, linear: &PlannedLinear) -> String {
        self.methods(linear).map(LayerMethod::name).collect::<Vec<_>>().join("+")
    }

    /// What the methods of `linear` ask for; inputs to measure the error on, where they ask for anything.
    pub fn needs(&self, linear: &PlannedLinear) -> Needs {
        let needs = self.methods(linear).fold(Needs::default(), |needs, method| needs.and(method.needs()));
        Needs { samples: needs.samples || needs.any() && !needs.hessian, ..needs }
    }

    /// The first method that looks at activations.
    pub fn calibrated_method(&self) -> Option<&dyn LayerMethod> {
        self.methods.iter().map(AsRef::as_ref).find(|method| method.needs().any())
    }

    /// Whether any method looks at activations.
    pub fn needs_calibration(&self) -> bool {
        self.calibrated_method().is_some()
    }

    /// What `config.json` and the files beside it say about the quantisation.
    pub fn quantisation(&self) -> Result<Quantisation> {
        let (coded, plain): (Vec<_>, Vec<_>) =
            self.linears.iter().partition(|linear| linear.layout.code != Code::Dense);
        let linears: Vec<(String, Layout)> =
            coded.into_iter().map(|linear| (linear.name.clone(), linear.layout)).collect();
        let mut dense = self.left_dense.clone();
        dense.extend(plain.into_iter().map(|linear| linear.name.clone()));
        dense.push(self.config.head.name.clone());
        let parameters = |key: &str| self.methods.iter().find_map(|method| method.parameters().get(key).cloned());
        let model = QuantisedModel {
            linears: &linears,
            dense: &dense,
            beside: &self.beside,
            activation_order: parameters("activation_order").and_then(|value| value.as_bool()).unwrap_or(false),
            true_sequential: self.needs_calibration(),
            dampening: parameters("dampening").and_then(|value| value.as_float()),
        };
        Ok(Quantisation { config: self.format.config(&model)?, files: self.format.side_files(&model)? })
    }

    /// Bits `linear` takes on disk.
    pub fn storage_bits(&self, linear: &PlannedLinear) -> u64 {
        self.format.storage_bits(&linear.layout)
    }

    /// What the run will take.
    pub fn forecast(&self, checkpoint: &Checkpoint, around: Around) -> Forecast {
        let bytes = |spec: &TensorSpec| spec.dtype.bytes(spec.shape.iter().product()).unwrap_or(0) as u64;
        let weights: u64 = self.linears.iter().map(|linear| linear.layout.weights()).sum();
        let bits: u64 = self.linears.iter().map(|linear| self.storage_bits(linear)).sum();
        let output_bytes = self.tensors.iter().map(bytes).sum();
        let dense_bytes = checkpoint.bytes();
        let config = &self.config;
        let calibrated = self.needs_calibration();
        let activation_bytes = if calibrated {
            let widest = |stage: Stage| config.blocks.iter().map(|block| block.token_width(stage)).max().unwrap_or(0);
            let width = 2 * config.hidden_size + widest(Stage::AttentionOutput) + widest(Stage::MlpOutput);
            ActivationStore::bytes(around.n_samples * around.seq_len, width)
        } else {
            0
        };

        // Compressing: the group that takes most, either while its Hessian is summed (with the inputs of one update) or
        // while it is solved (Hessian and factor; all its weights as f32 and as codes, the targets of one); beside it the
        // block's linears that are packed already.
        let stage_bytes = |block: &BlockSpec, stage: Stage| {
            let (n, groups) = (block.in_features(stage) as u64, block.groups(stage));
            let (hessian, inputs) = match self.methods.iter().any(|method| method.needs().hessian) {
                true => {
                    let rows = groups * rows_per_update(groups) + 2 * around.seq_len;
                    (4 * n * n, 4 * n * rows as u64)
                }
                false => (0, 0),
            };
            let samples = match self.methods.iter().any(|method| method.needs().samples) {
                true => 4 * (n * groups as u64) * SAMPLES as u64,
                false => 0,
            };
            // The linears of one expert are solved together.
            let group = |linear: &&LinearSpec| linear.expert.unwrap_or(0) == 0;
            let sizes = block.at(stage).iter().filter(group).map(LinearSpec::weights);
            let solving = hessian + sizes.clone().sum::<u64>() * (4 + 1) + sizes.max().unwrap_or(0) * 4;
            groups as u64 * hessian + samples + inputs.max(solving)
        };
        let block_bytes = |block: &BlockSpec| {
            let largest_stage = Stage::ALL.iter().map(|&stage| stage_bytes(block, stage)).max().unwrap_or(0);
            largest_stage + block.linears.iter().map(LinearSpec::weights).sum::<u64>()
        };
        // The samples of a block's inputs are all held while their scales are searched.
        let scaling_bytes = |block: &BlockSpec| match self.scalings.is_empty() {
            true => 0,
            false => Stage::ALL.iter().map(|&stage| 4 * (SAMPLES * block.token_width(stage)) as u64).sum::<u64>(),
        };
        let block_bytes = |block: &BlockSpec| block_bytes(block) + scaling_bytes(block);
        let compressing = config.blocks.iter().map(block_bytes).max().unwrap_or(0);

        // Tokenising before, measuring after.
        let head = (config.vocab_size * config.hidden_size) as u64 * (self.weight_dtype.bits() / 8.0) as u64;
        let measuring = match around.speed_bytes {
            0 => 0,
            limit => (dense_bytes.saturating_sub(head)).min(limit) + head,
        };
        let evaluating = if around.evaluates { dense_bytes + output_bytes } else { 0 };
        let tokenising = around.text_bytes * BYTES_PER_TEXT_BYTE;
        Forecast {
            output_bytes,
            dense_bytes,
            bits_per_weight: bits as f64 / weights.max(1) as f64,
            peak_rss_bytes: FIXED_BYTES + compressing.max(tokenising).max(measuring).max(evaluating),
            activation_bytes,
        }
    }
}

/// The first format that can hold what `methods` make.
fn default_format(methods: &[Box<dyn LayerMethod>]) -> Format {
    // Zero points of their own, which are AWQ's rule: more loaders take them in its own files.
    let zero_points = |grid: GridSpec| grid.bits == 4 && !grid.symmetric;
    let zero_points = methods.iter().all(|method| method.grid().is_some_and(zero_points));
    if zero_points && methods.iter().any(|method| method.name() == Awq::NAME) {
        return Format::Awq;
    }
    match methods.iter().any(|method| method.grid().is_some()) {
        true => Format::Gptq,
        false => Format::Dense,
    }
}
