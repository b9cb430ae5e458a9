//! What a recipe means for one model: every linear with its method and layout, every tensor of the result, the size of
//! the file and the memory the run will take, all before any work.

use std::collections::{HashMap, HashSet};

use candle_core::Device;
use scruple_weights::{Checkpoint, Dtype, TensorSpec, name::PathFilter};

use crate::{
    Error, Result,
    device::DeviceName,
    export::{Format, Layout, QuantisedModel},
    grid::{GridSpec, ScaleDtype},
    methods::{Described, Kind, LayerMethod, Needs, Scaling, awq::Awq},
    model::decoder::Stage,
    recipe::Recipe,
    scaling::{self, PlannedScaling, Unscaled},
    sharing::stored::expect_no_pool,
    weight::Code,
};

mod network;

mod forecast;

pub use forecast::{Around, Forecast};
pub use network::{NamedNetwork, Network, Site};

use network::Candidate;

/// One linear and what is to be done to it.
#[derive(Debug, Clone)]
pub struct PlannedLinear {
    /// Full name, without `.weight`.
    pub name: String,
    /// Index of its block.
    pub block: usize,
    /// Where it reads its input; unknown in a network that does not run.
    pub site: Option<Site>,
    /// The checkpoint holds its weight as (in_features, out_features).
    pub transposed: bool,
    /// Its methods (stages of the recipe), in order: at most one that prunes, then at most one that quantises.
    pub methods: Vec<usize>,
    /// Shape, and the way it will be stored.
    pub layout: Layout,
}

impl PlannedLinear {
    /// Whether it reads its input at `stage` of block `block`.
    pub fn is_at(&self, block: usize, stage: Stage) -> bool {
        self.block == block && self.site.is_some_and(|site| site.stage == stage)
    }
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
    pub network: Network,
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
    /// Linears that stay dense: those that no stage names, and in a network that does not run those that a stage named
    /// with everything else and its method or the format cannot hold.
    pub left_dense: Vec<String>,
    /// Why the first of the latter stays dense.
    pub left_because: Option<String>,
    /// What stands beside the decoder in a model that reads more than text, by the first name of its path: it stays as it
    /// is.
    pub beside: Vec<String>,
    /// Linears that are no matter of a recipe, and stay as they are: heads, poolers, projections outside of the blocks.
    pub others: Vec<String>,
    /// Every tensor of the result, in the source's order.
    pub tensors: Vec<TensorSpec>,
    /// NaN and infinite weights are let through.
    pub allow_nonfinite: bool,
    /// The hash of every weight is taken, so that what was written can be proved to be what was made.
    pub proof: bool,
    device: Option<(DeviceName, Device)>,
    methods: Vec<Box<dyn LayerMethod>>,
    replaced: HashSet<String>,
}

/// What the stages of a recipe want of a linear.
struct Stages<'a> {
    recipe: &'a Recipe,
    methods: &'a [Box<dyn LayerMethod>],
    filters: Vec<PathFilter>,
    format: Format,
    float_dtype: ScaleDtype,
}

impl Stages<'_> {
    /// Whether stage `index` names `candidate`; a target `*` alone means the usual ones.
    fn names(&self, index: usize, candidate: &Candidate) -> bool {
        let everything = self.recipe.stages[index].targets == ["*"];
        (candidate.usual || !everything) && self.filters[index].matches(&candidate.name)
    }

    /// The methods of `candidate`: the first stage that prunes and the first that quantises, of those that name it.
    fn of(&self, candidate: &Candidate) -> Vec<usize> {
        let first = |kind| {
            (0..self.methods.len()).find(|&index| self.methods[index].kind() == kind && self.names(index, candidate))
        };
        [Kind::Prune, Kind::Quantise].into_iter().filter_map(first).collect()
    }

    /// How `candidate` will be stored after the methods of `chain`.
    fn layout(&self, candidate: &Candidate, chain: &[usize]) -> Result<Layout> {
        let &Candidate { out_features, in_features, transposed, ref name, .. } = candidate;
        let in_linear = |error: Error| match error.to_string().contains(name) {
            true => error,
            false => Error::Recipe(format!("linear `{name}`: {error}")),
        };
        if let [_, last] = chain[..]
            && !self.methods[last].keeps_zeros()
        {
            return Err(Error::Recipe(format!(
                "linear `{name}` is pruned and then quantised by `{}`, whose codes need not keep zeros; quantise it by \
                 another method or prune it alone",
                self.methods[last].name()
            )));
        }
        let code = chain.iter().try_fold(Code::Dense, |_, &method| self.methods[method].code(in_features));
        let code = code.map_err(in_linear)?;
        let layout = Layout { out_features, in_features, code, dtype: self.float_dtype };
        if transposed && self.format != Format::Dense && code != Code::Dense {
            return Err(Error::Recipe(format!(
                "`{name}` cannot be written as {}: the model stores it as a Conv1D, (inputs, outputs), and the loaders of \
                 packed formats take no such layer; write dense",
                self.format
            )));
        }
        self.format.check(name, &layout).map_err(in_linear)?;
        Ok(layout)
    }
}

impl Plan {
    /// Resolves `recipe` for `checkpoint`. All faults of all linears are reported together.
    ///
    /// A network that does not run here is known by names and shapes: methods that look at weights alone can work on it.
    ///
    /// # Errors
    /// A method that needs activations of a model that does not run, linears that a method or the format cannot hold
    /// (with the settings that would work), a stage that names no linear.
    pub fn new(mut recipe: Recipe, checkpoint: &Checkpoint) -> Result<Self> {
        let folder = checkpoint.path().display();
        let has_config = checkpoint.dir().join("config.json").is_file();
        if has_config && crate::export::detect(checkpoint)?.is_some() {
            return Err(Error::Recipe(format!(
                "{folder}: the model is quantised already; compress its dense original, or what `scruple convert MODEL -o \
                 DENSE` makes of it"
            )));
        }
        expect_no_pool(checkpoint)?;
        let network = Network::of(checkpoint)?;
        let calibrated = recipe.methods()?.into_iter().find(|method| method.needs().any());
        if let (Network::Named(network), Some(method)) = (&network, calibrated) {
            return Err(Error::Recipe(format!(
                "{}; method `{}` needs a model that runs, while rtn, magnitude and others that look at weights alone work \
                 on any",
                network.reason,
                method.name()
            )));
        }
        let candidates = network.candidates(checkpoint);
        let Some(first) = candidates.iter().find(|candidate| candidate.usual).or(candidates.first()) else {
            return Err(Error::Recipe(format!(
                "{folder}: there is no matrix of floats called `….weight`, so nothing that could be compressed"
            )));
        };
        let weight_dtype = checkpoint.tensor(&format!("{}.weight", first.name))?.dtype();
        let float_dtype = match weight_dtype {
            Dtype::F16 => ScaleDtype::F16,
            Dtype::F32 | Dtype::F64 => ScaleDtype::F32,
            _ => ScaleDtype::Bf16,
        };
        let format = match recipe.export.format {
            Some(format) => format,
            None => default_format(&recipe.methods()?, first.in_features),
        };
        recipe.export.format = Some(format);
        // Scales are rounded to what the format stores before codes are chosen; a recipe does not choose them.
        recipe.set_scale_dtype(format.scale_dtype(float_dtype))?;
        let methods = recipe.methods()?;
        let filters = recipe
            .stages
            .iter()
            .enumerate()
            .map(|(index, stage)| {
                PathFilter::new(stage.targets.clone(), stage.ignore.clone())
                    .map_err(|error| Error::Recipe(format!("{}: {error}", recipe.stage_name(index))))
            })
            .collect::<Result<Vec<_>>>()?;
        let stages = Stages { recipe: &recipe, methods: &methods, filters, format, float_dtype };

        let (mut linears, mut left_dense, mut problems) = (Vec::new(), network.kept_dense(), Vec::new());
        let mut left_because = None;
        for candidate in &candidates {
            let chain = stages.of(candidate);
            let Some(&last) = chain.last() else {
                if candidate.usual {
                    left_dense.push(candidate.name.clone());
                }
                continue;
            };
            match stages.layout(candidate, &chain) {
                Ok(layout) => linears.push(PlannedLinear {
                    name: candidate.name.clone(),
                    block: candidate.block,
                    site: candidate.site,
                    transposed: candidate.transposed,
                    methods: chain,
                    layout,
                }),
                // Of a network that is only guessed at, what was named with everything else may not fit.
                Err(error) if candidate.site.is_none() && recipe.stages[last].targets == ["*"] => {
                    left_because.get_or_insert(error.to_string());
                    left_dense.push(candidate.name.clone());
                }
                Err(error) => problems.push(error.to_string()),
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
            if linears.iter().any(|linear| linear.methods.contains(&index)) {
                continue;
            }
            let stage_name = recipe.stage_name(index);
            let targets = &stage.targets;
            let taken =
                candidates.iter().any(|candidate| stages.names(index, candidate) && !stages.of(candidate).is_empty());
            return Err(Error::Recipe(match (taken, left_because) {
                (_, Some(reason)) => format!("{folder}: {stage_name} is left without a linear: {reason}"),
                (true, None) => format!(
                    "{stage_name} is left without a linear: all that its targets {targets:?} name belong to earlier \
                     stages; put the stage with the narrower targets first"
                ),
                (false, None) => format!(
                    "{stage_name} names no linear of this model: its targets are {targets:?}, names look like {}",
                    first.name
                ),
            }));
        }
        let (scalings, unscaled) = match network.decoder() {
            Some(config) => scaling::resolve(checkpoint, config, &linears, &methods),
            None => Default::default(),
        };
        let weights = linears.iter().map(|linear| format!("{}.weight", linear.name));
        let folded = scalings.iter().flat_map(|scaling| scaling.tensors.iter().cloned());
        let replaced: HashSet<String> = weights.chain(folded).collect();
        let tensors = tensors(checkpoint, &linears, format);
        let beside = network.beside(checkpoint);
        let known = linears.iter().map(|linear| &linear.name).chain(&left_dense).map(String::as_str).collect();
        let plan = Self {
            others: network::others(checkpoint, &known, &beside),
            beside,
            recipe,
            network,
            format,
            float_dtype,
            weight_dtype,
            linears,
            scalings,
            unscaled,
            left_dense,
            left_because,
            tensors,
            allow_nonfinite: false,
            proof: true,
            device: None,
            methods,
            replaced,
        };
        plan.quantisation()?; // settings that cannot stand in one file
        Ok(plan)
    }

    /// Lets calibration run on the device `name`: blocks, and the products that Hessians are sums of. Codes are chosen by
    /// the processor's kernels all the same.
    ///
    /// # Errors
    /// If the device cannot be had, or nothing of this plan runs there. One sentence.
    pub fn calibrate_on(&mut self, name: DeviceName) -> Result<()> {
        self.device = match name.open()? {
            None => None,
            Some(_) if !self.needs_calibration() => {
                let method = self.methods.first().map_or("the method", |method| method.name());
                return Err(Error::Recipe(format!(
                    "`{method}` asks for no calibration, which is all that runs on a device; leave --device out"
                )));
            }
            Some(device) => {
                self.network.runs_on_devices()?;
                Some((name, device))
            }
        };
        Ok(())
    }

    /// Where calibration runs, if not by the processor's kernels.
    pub fn device(&self) -> Option<DeviceName> {
        self.device.as_ref().map(|(name, _)| *name)
    }

    /// Candle's name of it.
    pub(crate) fn candle_device(&self) -> Option<Device> {
        self.device.as_ref().map(|(_, device)| device.clone())
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
        self.methods(linear).map(|method| method.name()).collect::<Vec<_>>().join("+")
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

    /// Whether any method asks what its inputs would have been without compression.
    pub fn needs_dense_inputs(&self) -> bool {
        self.methods.iter().any(|method| method.needs().cross)
    }

    /// Whether any method weighs errors by a Hessian.
    pub fn needs_hessian(&self) -> bool {
        self.methods.iter().any(|method| method.needs().hessian)
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
        dense.extend(self.others.iter().cloned());
        let head = self.network.decoder().map_or("lm_head", |config| config.head.name.as_str());
        if !dense.iter().any(|name| name == head) {
            dense.push(head.to_string());
        }
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
}

/// Every tensor of the result, in the source's order.
fn tensors(checkpoint: &Checkpoint, linears: &[PlannedLinear], format: Format) -> Vec<TensorSpec> {
    let by_name: HashMap<&str, usize> =
        linears.iter().enumerate().map(|(index, linear)| (linear.name.as_str(), index)).collect();
    let mut tensors = Vec::new();
    for view in checkpoint.tensors() {
        let linear = view.name().strip_suffix(".weight").and_then(|name| by_name.get(name));
        let Some(linear) = linear.map(|index| &linears[*index]) else {
            let shape = view.shape().to_vec();
            tensors.push(TensorSpec { name: view.name().to_string(), dtype: view.dtype(), shape });
            continue;
        };
        for mut spec in format.specs(&linear.name, &linear.layout) {
            if linear.transposed {
                spec.shape.reverse();
            }
            tensors.push(spec);
        }
    }
    tensors
}

/// The first format that can hold what `methods` make of rows of `in_features`.
fn default_format(methods: &[Box<dyn LayerMethod>], in_features: usize) -> Format {
    // Zero points of their own, which are AWQ's rule: more loaders take them in its own files.
    let zero_points = |grid: GridSpec| grid.bits == 4 && !grid.symmetric;
    let zero_points = methods.iter().all(|method| method.grid().is_some_and(zero_points));
    if zero_points && methods.iter().any(|method| method.name() == Awq::NAME) {
        return Format::Awq;
    }
    // A method that refuses the row is heard where the linears are gone through.
    let codes: Vec<Code> = methods.iter().filter_map(|method| method.code(in_features).ok()).collect();
    let plain = codes.iter().all(|&code| code == Code::Dense);
    let fits = |format: &Format| codes.iter().all(|&code| format.stores(code));
    if plain { Format::Dense } else { Format::ALL.into_iter().find(fits).unwrap_or(Format::Dense) }
}
