//! Sharing as a method of recipes: a projection, and where steps are asked for, the fine-tuning that follows it.
//!
//! Other methods decide over the linears of one group at a time; this one lays all matrices of a model over one pool, so a
//! recipe with it has this one stage. What it makes is a folder with `model.rps.safetensors`, which runs from its pool.

use std::path::Path;

use scruple_weights::{Dtype, PathFilter};
use serde::{Deserialize, Serialize};

use super::{
    finetune::{Distillation, language},
    modules::{Choice, LEAST_VALUES, Scales, Size},
    project::Options,
};
use crate::{
    Error, Result,
    recipe::{Recipe, StageRecipe},
};

/// The name in recipes.
pub const NAME: &str = "rps";

/// One line on what it does.
pub const SUMMARY: &str =
    "reads all matrices from one small pool; without steps of fine-tuning a starting point, not a usable model";

/// Where it comes from.
pub const PAPER: &str = "Desai and Shrivastava 2023, In defense of parameter sharing for model-compression, https://arxiv.org/abs/2310.11611";

/// Share of the steps in which the learning rate rises.
const WARMUP: f64 = 0.1;

/// The type the pool is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum PoolType {
    F32,
    F16,
    Bf16,
}

impl From<PoolType> for Dtype {
    fn from(kind: PoolType) -> Self {
        match kind {
            PoolType::F32 => Self::F32,
            PoolType::F16 => Self::F16,
            PoolType::Bf16 => Self::Bf16,
        }
    }
}

/// Whose a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pools {
    /// One for all tensors: better, and the usual.
    Global,
    /// One for each tensor.
    PerTensor,
}

impl Pools {
    /// The size of pools at this rate.
    pub fn size(self, rate: f64) -> Size {
        match self {
            Self::Global => Size::Rate(rate),
            Self::PerTensor => Size::RateOfEach(rate),
        }
    }
}

/// The method's parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rps {
    /// c: weights a slot of the pool serves.
    pub rate: f64,
    /// One pool for all, or one for each tensor.
    pub pools: Pools,
    /// The one seed of slots and signs; and of the windows of text, where it is fine-tuned.
    pub seed: u64,
    /// Tensors of fewer values do not share.
    pub min_values: usize,
    /// What rotations are multiples of: 16 or 64.
    pub align: usize,
    /// How scales follow from weights.
    pub scales: Scales,
    /// What the pool is stored in.
    pub pool_type: PoolType,
    /// Whether a model that nobody evaluates may be written.
    pub allow_lossy: bool,
    /// Steps of fine-tuning on the calibration text; 0 for the projection alone.
    pub steps: u64,
    /// Windows of text a step.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// How much of the loss is the dense model's word.
    pub teacher_share: f64,
    /// The temperature at which the two are compared.
    pub temperature: f64,
}

impl Default for Rps {
    fn default() -> Self {
        let (options, distillation) = (Options::default(), Distillation::default());
        Self {
            rate: 8.0,
            pools: Pools::Global,
            seed: options.seed,
            min_values: LEAST_VALUES,
            align: options.align,
            scales: options.scales,
            pool_type: PoolType::F32,
            allow_lossy: false,
            steps: 0,
            windows: 8,
            window: 128,
            learning_rate: 1e-3,
            teacher_share: distillation.share,
            temperature: distillation.temperature,
        }
    }
}

impl Rps {
    /// The method with these parameters; missing ones take their defaults.
    ///
    /// # Errors
    /// [`Error::Recipe`] for an unknown parameter or a number that cannot be.
    pub fn build(parameters: toml::Table) -> Result<Self> {
        // Whole numbers are rates too.
        let whole = |value: toml::Value| value.as_integer().map_or(value.clone(), |value| (value as f64).into());
        let reals = ["rate", "learning_rate", "teacher_share", "temperature"];
        let parameters = parameters.into_iter();
        let parameters = parameters
            .map(|(key, value)| if reals.contains(&key.as_str()) { (key, whole(value)) } else { (key, value) });
        let method: Self = parameters
            .collect::<toml::Table>()
            .try_into()
            .map_err(|cause: toml::de::Error| Error::Recipe(format!("method `{NAME}`: {}", cause.message())))?;
        Size::Rate(method.rate).slots(1)?;
        if method.steps > 0 {
            method.distillation().check()?;
        }
        Ok(method)
    }

    /// The method of `recipe`, if this is it.
    ///
    /// # Errors
    /// As [`Self::build`], and if the recipe has more than this stage, a format or a budget, which do not go with it.
    pub fn of(recipe: &Recipe) -> Result<Option<(Self, &StageRecipe)>> {
        let Some(at) = recipe.stages.iter().position(|stage| stage.method == NAME) else { return Ok(None) };
        let refuse = |what: &str| Err(Error::Recipe(format!("{}: {what}", recipe.stage_name(at))));
        if recipe.layers.is_some() {
            return refuse("takes a model that lies on disk; take the layers out with `scruple layers prune` first");
        }
        if recipe.stages.len() > 1 {
            return refuse("all matrices share one pool, so it is the only stage of its recipe");
        }
        if recipe.export.format.is_some() {
            return refuse("it is written in a form of its own; leave the format away");
        }
        if recipe.budget.is_some() {
            return refuse("its size follows from its rate; leave the budget away");
        }
        let stage = &recipe.stages[at];
        let method = Self::build(stage.params.clone())
            .map_err(|error| Error::Recipe(format!("{}: {error}", recipe.stage_name(at))))?;
        Ok(Some((method, stage)))
    }

    fn distillation(&self) -> Distillation {
        Distillation { share: self.teacher_share, temperature: self.temperature }
    }

    /// How a model is projected, of the linears that the globs `targets` name and `ignore` does not.
    ///
    /// # Errors
    /// If a glob cannot be read.
    pub fn options(&self, targets: &[String], ignore: &[String]) -> Result<Options> {
        // Stages name linears, a pool serves tensors.
        let of_tensor = |glob: &String| match glob.ends_with('*') || glob.ends_with(".weight") {
            true => glob.clone(),
            false => format!("{glob}.weight"),
        };
        let globs = |globs: &[String]| globs.iter().map(of_tensor).collect::<Vec<_>>();
        let include = if targets.iter().any(|glob| glob == "*") { Vec::new() } else { globs(targets) };
        Ok(Options {
            choice: Choice { filter: PathFilter::new(include, globs(ignore))?, least_values: self.min_values },
            size: self.pools.size(self.rate),
            align: self.align,
            seed: self.seed,
            scales: self.scales,
            psi_dtype: self.pool_type.into(),
            allow_lossy: self.allow_lossy,
            advise: true,
        })
    }

    /// The fine-tuning that follows the projection, if one was asked for.
    pub fn tuning(&self) -> Option<language::Recipe> {
        (self.steps > 0).then(|| language::Recipe {
            seed: self.seed,
            steps: self.steps,
            windows: self.windows,
            window: self.window,
            learning_rate: self.learning_rate,
            warmup: (WARMUP * self.steps as f64) as u64,
            weight_decay: 0.0,
            clip: 1.0,
            distillation: Some(self.distillation()),
        })
    }

    /// Refuses to write to `out` what nobody will evaluate and nobody allowed.
    ///
    /// # Errors
    /// [`Error::Recipe`], with what to do.
    pub fn expect_allowed(&self, out: &Path, evaluated: bool) -> Result<()> {
        if self.allow_lossy || evaluated || self.rate <= 1.0 {
            return Ok(());
        }
        Err(Error::Recipe(format!(
            "{}: method `{NAME}` at rate {} makes a starting point for fine-tuning and not a usable model; have it \
             evaluated by --text FILE, or pass --param allow_lossy=true",
            out.display(),
            self.rate
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Result<Recipe> {
        Recipe::parse(Path::new("r.toml"), text)
    }

    #[test]
    fn a_recipe_names_it_with_its_parameters() {
        let text = "[[stage]]\nmethod = \"rps\"\ntargets = [\"model.layers.*\", \"lm_head\"]\n[stage.params]\nrate = 4\n\
                    steps = 20\npool_type = \"bf16\"\n";
        let recipe = recipe(text).unwrap();
        let (method, stage) = Rps::of(&recipe).unwrap().unwrap();
        assert_eq!((method.rate, method.steps), (4.0, 20));
        let options = method.options(&stage.targets, &stage.ignore).unwrap();
        assert!(options.choice.filter.matches("lm_head.weight") && !options.choice.filter.matches("embed.weight"));
        assert_eq!((options.psi_dtype, options.size), (Dtype::Bf16, Size::Rate(4.0)));
        let tuning = method.tuning().unwrap();
        assert_eq!((tuning.steps, tuning.warmup), (20, 2));
        let again = Rps::build(toml::Table::try_from(&method).unwrap()).unwrap();
        assert_eq!(again, method);
        assert!(Rps::default().tuning().is_none());
        let dense = "[[stage]]\nmethod = \"rtn\"\n";
        assert!(Rps::of(&Recipe::parse(Path::new("r"), dense).unwrap()).unwrap().is_none());
    }

    #[test]
    fn what_does_not_go_with_it_is_refused() {
        for (text, part) in [
            (
                "[[stage]]\nmethod = \"rps\"\n[[stage]]\nmethod = \"rtn\"\n",
                "stage 1 (`rps`): all matrices share one pool",
            ),
            ("[[stage]]\nmethod = \"rps\"\n[stage.params]\nrte = 4\n", "unknown field `rte`"),
            ("[[stage]]\nmethod = \"rps\"\n[stage.params]\nrate = 0.5\n", "the rate is 0.5"),
            ("[export]\nformat = \"gptq\"\n[[stage]]\nmethod = \"rps\"\n", "leave the format away"),
            ("[budget]\nbits_per_weight = 3.0\n[[stage]]\nmethod = \"rps\"\n", "leave the budget away"),
        ] {
            let error = recipe(text).unwrap_err().to_string();
            assert!(error.contains(part) && error.starts_with("in recipe `r.toml`"), "{error}");
        }
        let method = Rps::default();
        let error = method.expect_allowed(Path::new("out"), false).unwrap_err().to_string();
        assert!(error.contains("not a usable model") && error.contains("--text"), "{error}");
        assert!(method.expect_allowed(Path::new("out"), true).is_ok());
    }
}
