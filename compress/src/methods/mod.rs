//! Compression methods, one file each, and the one list of them.
//!
//! A method's struct is its parameters. To add one: a file, a `mod` line and a line in [`METHODS`].

use std::fmt;
use std::time::Instant;

use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::grid::GridSpec;
use crate::kernel::gemm::{matmul_nt, quadratic_form};
use crate::weight::{Code, CompressedWeight, DenseWeight, GridCode};
use crate::{Error, Result};

pub mod rtn;

pub mod gptq;

pub mod awq;

pub mod magnitude;

pub mod wanda;

pub mod sparsegpt;

pub mod hqq;

pub mod fp8;

pub mod nf4;

mod feedback;

pub mod prepared;

#[cfg(test)]
mod prune_goldens;

/// Every method, in the order they are listed to users.
pub const METHODS: &[MethodEntry] = &[
    entry::<rtn::Rtn>(),
    entry::<hqq::Hqq>(),
    entry::<gptq::Gptq>(),
    entry::<awq::Awq>(),
    entry::<fp8::Fp8>(),
    entry::<nf4::Nf4>(),
    entry::<magnitude::Magnitude>(),
    entry::<wanda::Wanda>(),
    entry::<sparsegpt::SparseGpt>(),
];

/// The statistics of a group's inputs a method asks for. Methods that look at weights alone ask for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// [`GroupStats::hessian`].
    pub hessian: bool,
    /// [`GroupStats::cross`].
    pub cross: bool,
    /// [`GroupStats::energies`].
    pub energies: bool,
    /// [`GroupStats::magnitudes`].
    pub magnitudes: bool,
    /// [`GroupStats::samples`].
    pub samples: bool,
}

impl Needs {
    /// Whether any calibration is needed.
    pub fn any(self) -> bool {
        self != Self::default()
    }

    /// What either asks for.
    pub fn and(self, other: Self) -> Self {
        Self {
            hessian: self.hessian || other.hessian,
            cross: self.cross || other.cross,
            energies: self.energies || other.energies,
            magnitudes: self.magnitudes || other.magnitudes,
            samples: self.samples || other.samples,
        }
    }
}

/// Inputs kept in [`GroupStats::samples`], at most.
pub const SAMPLES: usize = 512;

/// What was observed at the input that the linears of one group share.
#[derive(Debug, Clone, Default)]
pub struct GroupStats {
    /// Columns of the weights.
    pub in_features: usize,
    /// `H = 2/N Σ x xᵀ`, full and symmetric, (in_features, in_features); present if a method needs it.
    pub hessian: Option<Vec<f32>>,
    /// `2/N Σ (x̃ − x) xᵀ` with x̃ what the dense model's linears read in the same place, (in_features, in_features);
    /// present if a method needs it, but for experts, whose tokens may be others.
    pub cross: Option<Vec<f32>>,
    /// `Σ x_j² / N` over N sequences, (in_features); present if a method needs it.
    pub energies: Option<Vec<f32>>,
    /// Mean of `|x_j|` over all tokens, (in_features); present if a method needs it.
    pub magnitudes: Option<Vec<f32>>,
    /// At most [`SAMPLES`] inputs, evenly spread over all tokens, (samples, in_features); present if a method needs it.
    pub samples: Option<Vec<f32>>,
    /// Inputs observed.
    pub tokens: usize,
}

impl GroupStats {
    /// The share of the outputs' energy that is lost where `original` becomes `compressed`, both (out, in): over all
    /// inputs by the Hessian, over the sampled ones without it; none where neither was gathered or all outputs are zero.
    pub fn output_error(&self, original: &[f32], compressed: &[f32]) -> Option<f64> {
        let n = self.in_features;
        let delta: Vec<f32> = compressed.iter().zip(original).map(|(c, w)| c - w).collect();
        if let Some(hessian) = &self.hessian {
            return share(quadratic_form(&delta, hessian, n), quadratic_form(original, hessian, n));
        }
        let samples = self.samples.as_ref().filter(|samples| !samples.is_empty())?;
        let energy = |weight: &[f32]| -> f64 {
            let (tokens, rows) = (samples.len() / n, weight.len() / n);
            let mut outputs = vec![0.0; tokens * rows];
            matmul_nt(samples, weight, &mut outputs, tokens, rows, n);
            outputs.iter().map(|&y| f64::from(y) * f64::from(y)).sum()
        };
        share(energy(&delta), energy(original))
    }
}

/// One linear of a group.
#[derive(Debug)]
pub struct Weight<'a> {
    /// The tensor's name in the checkpoint, for reports and messages.
    pub name: &'a str,
    /// Rows.
    pub out_features: usize,
    /// Columns.
    pub in_features: usize,
    /// (out_features, in_features). A method leaves the dequantised weight here, bit for bit that of [`Compressed::weight`]
    /// (before it is rounded to the model's type, where it is stored as plain numbers).
    pub values: &'a mut [f32],
    /// An earlier stage has pruned it: weights that are zero stay zero.
    pub keep_zeros: bool,
}

/// What a linear became, and what that cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Compressed {
    /// What is stored for it.
    pub weight: CompressedWeight,
    /// Its line in the report.
    pub report: LinearReport,
}

/// One linear's line in the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinearReport {
    /// The tensor's name.
    pub linear: String,
    /// [`Named::name`].
    pub method: String,
    /// `tr(Δ H Δᵀ) / tr(W H Wᵀ)`, the share of the calibration outputs' energy that was lost; measured on
    /// [`SAMPLES`] inputs by methods without a Hessian; absent without calibration or where the outputs were all zero.
    pub output_error: Option<f64>,
    /// The dampening that was used at last, as a fraction of the mean of diag(H).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dampening: Option<f64>,
    /// What had to be changed on the way, in order; empty if nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub escalations: Vec<Escalation>,
    /// Inputs that were zero throughout calibration; their weights are set to zero.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dead_inputs: usize,
    /// Wall seconds; kept out of records that are compared byte for byte.
    #[serde(skip)]
    pub seconds: f64,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl LinearReport {
    /// The report of `method` on `linear`, with nothing to say.
    pub fn new(linear: &str, method: &str) -> Self {
        Self {
            linear: linear.to_owned(),
            method: method.to_owned(),
            output_error: None,
            dampening: None,
            escalations: Vec::new(),
            dead_inputs: 0,
            seconds: 0.0,
        }
    }
}

/// A remedy that was needed, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Escalation {
    /// The dampening that failed.
    pub dampening: f64,
    /// What failed, and what was done.
    pub reason: String,
}

/// What a method does to a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Sets weights to zero; the others stay plain numbers.
    Prune,
    /// Makes codes of the weights.
    Quantise,
}

/// Scales of the inputs that some linears share: `y = (x/s) (W s)ᵀ`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    /// One for each class of columns; positive, finite.
    pub scales: Vec<f32>,
    /// The exponent they were made with; 0 without `duo` is no scaling.
    pub ratio: f64,
    /// They were made from the weights too.
    pub duo: bool,
    /// The share of the sampled outputs' energy that rounding loses with them; none where there was nothing to look at.
    pub error: Option<f64>,
    /// The same without them.
    pub unscaled: Option<f64>,
}

/// The search for scales of inputs, before anything is rounded.
pub trait Scaling: Sync {
    /// The best scales for `weights`, each (out_features, in_features), which share the inputs of `stats` (mean
    /// sizes and samples). Columns of one
    /// class (`classes[column]`, from 0) get one scale; `settle` moves the scales of the classes to such as can be folded
    /// into the layer before.
    ///
    /// # Errors
    /// A group size that does not divide the row, weights that no scale of the stored type fits.
    fn search(
        &self,
        weights: &[&[f32]],
        stats: &GroupStats,
        classes: &[u32],
        settle: &dyn Fn(&mut [f32]),
    ) -> Result<Scales>;
}

/// How a method is named and what it was given; every method has it by its description.
pub trait Named {
    /// The name in recipes.
    fn name(&self) -> &'static str;

    /// The parameters, defaults filled in, as a recipe would give them.
    fn parameters(&self) -> toml::Table;
}

impl<M: Described> Named for M {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn parameters(&self) -> toml::Table {
        toml::Table::try_from(self.filled()).expect("plain fields make a table")
    }
}

/// A method that decides over the linears of one group at a time: those that read the same input.
pub trait LayerMethod: Named + fmt::Debug + Send + Sync {
    /// Which statistics the loop must collect.
    fn needs(&self) -> Needs;

    /// What it does to a weight; a linear may be pruned by one stage and then quantised by another.
    fn kind(&self) -> Kind {
        Kind::Quantise
    }

    /// Whether it honours [`Weight::keep_zeros`], so that it may follow a stage that prunes.
    fn keeps_zeros(&self) -> bool {
        true
    }

    /// The uniform grid the codes will be on, for methods that have one.
    fn grid(&self) -> Option<GridSpec> {
        None
    }

    /// Whether results carry [`Quantised::g_idx`](crate::grid::Quantised::g_idx).
    fn stores_g_idx(&self) -> bool {
        false
    }

    /// The search for scales of its inputs, for methods that have one: they are found and folded before it compresses.
    fn scaling(&self) -> Option<&dyn Scaling> {
        None
    }

    /// The way a weight of `in_features` columns will be stored: its grid, or plain numbers for a method without one.
    ///
    /// Fails with [`Error::Recipe`] where the parameters do not suit the row.
    fn code(&self, in_features: usize) -> Result<Code> {
        let Some(grid) = self.grid() else { return Ok(Code::Dense) };
        Ok(Code::Grid(GridCode {
            bits: grid.bits,
            group_size: grid.group_size_for(in_features)?,
            symmetric: grid.symmetric,
            has_g_idx: self.stores_g_idx(),
        }))
    }

    /// Compresses every linear of a group, in order.
    ///
    /// Fails with [`Error::Numeric`], naming the linear, on values that are not finite or a Hessian that stays indefinite,
    /// and with [`Error::Recipe`] on a group size that does not divide the row.
    fn compress(&self, group: &mut [Weight<'_>], stats: &GroupStats) -> Result<Vec<Compressed>>;
}

/// What is known of a method before its parameters are.
pub trait Described: Serialize + DeserializeOwned + Clone + 'static {
    /// The name in recipes, kebab-case.
    const NAME: &'static str;
    /// One line on what it does.
    const SUMMARY: &'static str;
    /// Where it comes from.
    const PAPER: &'static str;

    /// Refuses parameters that make no sense.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Itself with the defaults filled in that depend on other parameters.
    fn filled(&self) -> Self {
        self.clone()
    }
}

/// A line of [`METHODS`].
#[derive(Debug, Clone, Copy)]
pub struct MethodEntry {
    /// [`Described::NAME`].
    pub name: &'static str,
    /// [`Described::SUMMARY`].
    pub summary: &'static str,
    /// [`Described::PAPER`].
    pub paper: &'static str,
    build: fn(toml::Table) -> Result<Box<dyn LayerMethod>>,
}

impl MethodEntry {
    /// The method with these parameters; missing ones take their defaults, unknown ones are refused.
    pub fn build(&self, parameters: toml::Table) -> Result<Box<dyn LayerMethod>> {
        (self.build)(parameters)
    }
}

const fn entry<M: Described + LayerMethod>() -> MethodEntry {
    MethodEntry { name: M::NAME, summary: M::SUMMARY, paper: M::PAPER, build: build_as::<M> }
}

fn build_as<M: Described + LayerMethod>(parameters: toml::Table) -> Result<Box<dyn LayerMethod>> {
    let method: M = parameters
        .try_into()
        .map_err(|cause: toml::de::Error| Error::Recipe(format!("method `{}`: {}", M::NAME, cause.message())))?;
    method.validate()?;
    Ok(Box::new(method))
}

/// The method called `name` with these parameters.
pub fn build(name: &str, parameters: toml::Table) -> Result<Box<dyn LayerMethod>> {
    match METHODS.iter().find(|entry| entry.name == name) {
        Some(entry) => entry.build(parameters),
        None if name == crate::sharing::method::NAME => {
            Err(Error::Recipe(format!("method `{name}` decides over a whole model and not over one linear at a time")))
        }
        None => {
            let names: Vec<String> = METHODS.iter().map(|entry| format!("`{}`", entry.name)).collect();
            Err(Error::Recipe(format!("unknown method `{name}`, expected {}", names.join(" or "))))
        }
    }
}

/// The weight as it now is, stored as plain numbers.
fn plain(weight: &Weight<'_>) -> CompressedWeight {
    let (out_features, in_features) = (weight.out_features, weight.in_features);
    DenseWeight { out_features, in_features, values: weight.values.to_vec() }.into()
}

/// `cause` with the linear it concerns in front.
fn in_linear(name: &str, cause: Error) -> Error {
    match cause {
        Error::Numeric(message) => Error::Numeric(format!("linear `{name}`: {message}")),
        Error::Recipe(message) => Error::Recipe(format!("linear `{name}`: {message}")),
        other => other,
    }
}

/// What a method without data makes of a linear: leaves the dequantised weight, and reports the error on `stats`, if any.
fn finish(
    weight: &mut Weight<'_>,
    compressed: CompressedWeight,
    method: &str,
    stats: &GroupStats,
    start: Instant,
) -> Compressed {
    let original = stats.hessian.is_some().then(|| weight.values.to_vec());
    if weight.in_features > 0 {
        let rows = weight.values.par_chunks_mut(weight.in_features).enumerate();
        rows.for_each(|(row, values)| compressed.dequantize_row(row, values));
    }
    let report = LinearReport {
        output_error: original.and_then(|original| stats.output_error(&original, weight.values)),
        seconds: start.elapsed().as_secs_f64(),
        ..LinearReport::new(weight.name, method)
    };
    Compressed { weight: compressed, report }
}

/// Refuses a weight whose shape is not that of the statistics or that holds values that are not finite.
fn check(weight: &Weight<'_>, stats: &GroupStats) -> Result<()> {
    let expected = weight.out_features * weight.in_features;
    if weight.values.len() != expected || weight.in_features != stats.in_features {
        return Err(Error::Model(format!(
            "linear `{}` of shape [{}, {}] holds {} values and reads statistics of {} inputs",
            weight.name,
            weight.out_features,
            weight.in_features,
            weight.values.len(),
            stats.in_features
        )));
    }
    if let Some(hessian) = &stats.hessian
        && hessian.len() != stats.in_features * stats.in_features
    {
        return Err(Error::Model(format!(
            "linear `{}` reads a Hessian of {} values, expected {} × {}",
            weight.name,
            hessian.len(),
            stats.in_features,
            stats.in_features
        )));
    }
    if let Some(at) = first_not_finite(weight.values) {
        let (row, column) = (at / weight.in_features, at % weight.in_features);
        return Err(Error::Numeric(format!(
            "linear `{}`: the weight in row {row}, column {column} is {}",
            weight.name, weight.values[at]
        )));
    }
    Ok(())
}

/// Where the first NaN or infinity is.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    const STRIDE: usize = 4096;
    let stride = values.chunks(STRIDE).position(|values| !crate::grid::extremes(values).2)?;
    let within = values[stride * STRIDE..].iter().position(|value| !value.is_finite())?;
    Some(stride * STRIDE + within)
}

/// `lost / whole` where that says something.
fn share(lost: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then_some(lost.max(0.0) / whole)
}

#[cfg(test)]
mod tests;
