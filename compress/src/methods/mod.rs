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
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::kernel::test_values::uniform;

    #[test]
    fn names_are_unique_and_kebab_case() {
        let names: BTreeSet<_> = METHODS.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), METHODS.len());
        for name in names {
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{name}");
        }
    }

    #[test]
    fn every_method_has_a_summary_and_a_source() {
        for entry in METHODS {
            assert!(!entry.summary.is_empty() && !entry.summary.ends_with('.'), "{}", entry.name);
            assert!(entry.paper.len() > 10, "{}", entry.name);
        }
    }

    #[test]
    fn defaults_build_and_parameters_build_the_same_again() {
        for entry in METHODS {
            let method = entry.build(toml::Table::new()).unwrap();
            assert_eq!(method.name(), entry.name);
            let again = entry.build(method.parameters()).unwrap();
            assert_eq!(method.parameters(), again.parameters());
            assert_eq!(method.kind(), again.kind());
        }
    }

    #[test]
    fn unknown_names_and_parameters_are_refused() {
        let message = build("gtpq", toml::Table::new()).unwrap_err().to_string();
        assert!(message.starts_with("unknown method `gtpq`, expected `rtn` or `hqq` or `gptq` or"), "{message}");
        for entry in METHODS {
            let typo = "bitts = 4".parse::<toml::Table>().unwrap();
            let message = entry.build(typo).unwrap_err().to_string();
            assert!(message.contains(entry.name) && message.contains("unknown field `bitts`"), "{message}");
            if entry.build(toml::Table::new()).unwrap().grid().is_some() {
                let five = "bits = 5".parse::<toml::Table>().unwrap();
                assert!(entry.build(five).unwrap_err().to_string().contains("5 bits"));
            }
        }
    }

    /// Whether the method prunes if nothing is said.
    fn prunes(entry: &MethodEntry) -> bool {
        entry.build(toml::Table::new()).unwrap().kind() == Kind::Prune
    }

    /// A group of two linears behind one input of 64, with its Hessian.
    fn group() -> (Vec<f32>, Vec<f32>, GroupStats) {
        let (n, t) = (64, 200);
        let x = uniform(t * n, 4);
        let mut hessian = vec![0.0; n * n];
        crate::kernel::gemm::syrk_accumulate(&x, &mut hessian, t, n, 2.0 / t as f32);
        crate::kernel::gemm::symmetrize(&mut hessian, n);
        let energies = (0..n).map(|j| (0..t).map(|i| x[i * n + j] * x[i * n + j]).sum::<f32>() / t as f32);
        let magnitudes = (0..n).map(|j| (0..t).map(|i| x[i * n + j].abs()).sum::<f32>() / t as f32);
        let stats = GroupStats {
            in_features: n,
            hessian: Some(hessian),
            cross: None,
            energies: Some(energies.collect()),
            magnitudes: Some(magnitudes.collect()),
            samples: Some(x.clone()),
            tokens: t,
        };
        (uniform(32 * n, 5), uniform(8 * n, 6), stats)
    }

    /// The method with those of `parameters` that it has.
    fn build_with(entry: &MethodEntry, parameters: &str) -> Box<dyn LayerMethod> {
        let known = entry.build(toml::Table::new()).unwrap().parameters();
        let wanted = parameters.parse::<toml::Table>().unwrap().into_iter();
        entry.build(wanted.filter(|(key, _)| known.contains_key(key)).collect()).unwrap()
    }

    #[test]
    fn every_method_leaves_the_dequantised_weight_and_reports_every_linear() {
        for entry in METHODS {
            let (mut a, mut b, stats) = group();
            let original = a.clone();
            let prunes = prunes(entry);
            let parameters = if prunes { "" } else { "bits = 4\ngroup_size = 32" };
            let method = build_with(entry, parameters);
            let mut group = [
                Weight { name: "a", out_features: 32, in_features: 64, values: &mut a, keep_zeros: false },
                Weight { name: "b", out_features: 8, in_features: 64, values: &mut b, keep_zeros: false },
            ];
            let done = method.compress(&mut group, &stats).unwrap();
            assert_eq!(done.iter().map(|c| c.report.linear.as_str()).collect::<Vec<_>>(), ["a", "b"]);
            assert_eq!(done[0].weight.dequantize(), a);
            assert_eq!(done[1].weight.dequantize(), b);
            assert_eq!(done[0].weight.code(), method.code(64).unwrap());
            // Methods that did not look at the Hessian leave the figure to the loop.
            let error = done[0].report.output_error.or_else(|| stats.output_error(&original, &a)).unwrap();
            assert!(error > 0.0 && error < if prunes { 0.2 } else { 0.02 }, "{}: {error}", entry.name);
            // The report's figure is the definition's.
            let delta: Vec<f32> = a.iter().zip(&original).map(|(a, b)| a - b).collect();
            let form = |w: &[f32]| quadratic_form(w, stats.hessian.as_ref().unwrap(), 64);
            let expected = form(&delta) / form(&original);
            assert!((error / expected - 1.0).abs() < 1e-3, "{}: {error} for {expected}", entry.name);
        }
    }

    #[test]
    fn every_method_refuses_what_is_not_finite_or_misshapen() {
        for entry in METHODS {
            let prunes = prunes(entry);
            let method = match prunes {
                true => entry.build("pattern = \"2:4\"".parse().unwrap()).unwrap(),
                false => build_with(entry, "group_size = 32"),
            };
            let (mut a, _, stats) = group();
            a[70] = f32::NEG_INFINITY;
            let mut weights =
                [Weight { name: "model.a", out_features: 32, in_features: 64, values: &mut a, keep_zeros: false }];
            let message = method.compress(&mut weights, &stats).unwrap_err().to_string();
            assert_eq!(message, "linear `model.a`: the weight in row 1, column 6 is -inf");
            let (mut a, _, stats) = group();
            let mut weights =
                [Weight { name: "a", out_features: 16, in_features: 64, values: &mut a, keep_zeros: false }];
            assert!(method.compress(&mut weights, &stats).is_err());
            if !prunes && method.grid().is_none() {
                continue; // no groups that could fail to divide a row
            }
            let method = match prunes {
                true => entry.build("pattern = \"2:3\"".parse().unwrap()).unwrap(),
                false => build_with(entry, "group_size = 48"),
            };
            let mut weights =
                [Weight { name: "a", out_features: 32, in_features: 64, values: &mut a, keep_zeros: false }];
            let message = method.compress(&mut weights, &stats).unwrap_err().to_string();
            let remedy = if prunes { "64 input features do not divide into groups of 3" } else { "16, 32, 64" };
            assert!(message.contains("`a`") && message.contains(remedy), "{message}");
        }
    }

    #[test]
    fn every_method_that_may_follow_a_pruning_stage_keeps_its_zeros() {
        let settings = ["", "bits = 4", "symmetric = false", "search = \"mse\"", "groups = \"fresh\"", "bits = 2"];
        for entry in METHODS {
            let mut tried = 0;
            for (number, setting) in settings.iter().enumerate() {
                for sizes in ["", "group_size = 32\n", "bits = 3\ngroup_size = 16\nsymmetric = false\n"] {
                    // Settings that this method does not have, or twice the same, do not count.
                    let parameters = format!("{sizes}{setting}").parse::<toml::Table>();
                    let method = parameters.ok().and_then(|parameters| entry.build(parameters).ok());
                    let Some(method) = method.filter(|m| m.kind() == Kind::Quantise && m.keeps_zeros()) else {
                        continue;
                    };
                    if method.code(64).is_err() {
                        continue;
                    }
                    tried += 1;
                    let (mut a, mut b, stats) = group();
                    // Every third weight, a whole group of columns, a whole row; and a matrix of one sign.
                    a.iter_mut().for_each(|w| *w = w.abs() + 0.5);
                    let gone = |i: usize| (i + number).is_multiple_of(3) || i % 64 < 20 || i / 64 == 2;
                    for weight in [&mut a, &mut b] {
                        weight.iter_mut().enumerate().filter(|(i, _)| gone(*i)).for_each(|(_, w)| *w = 0.0);
                    }
                    let mut weights = [
                        Weight { name: "a", out_features: 32, in_features: 64, values: &mut a, keep_zeros: true },
                        Weight { name: "b", out_features: 8, in_features: 64, values: &mut b, keep_zeros: true },
                    ];
                    let done = method.compress(&mut weights, &stats).unwrap();
                    for (values, done) in [(&a, &done[0]), (&b, &done[1])] {
                        assert_eq!(&done.weight.dequantize(), values);
                        let zeros = values.iter().enumerate().filter(|(i, w)| gone(*i) && **w != 0.0).count();
                        assert_eq!(zeros, 0, "{method:?} changed zeros");
                        assert!(values.iter().any(|w| *w != 0.0), "{method:?} left nothing");
                    }
                }
            }
            let default = entry.build(toml::Table::new()).unwrap();
            assert!(
                tried > 0 || default.kind() == Kind::Prune || !default.keeps_zeros(),
                "{} was not tried",
                entry.name
            );
        }
    }

    #[test]
    fn every_pruner_sets_exactly_as_many_to_zero_as_asked() {
        let constant = |rows: usize| vec![0.5f32; rows * 64];
        let nothing = |rows: usize| vec![0.0f32; rows * 64];
        for entry in METHODS.iter().filter(|entry| prunes(entry)) {
            for (parameters, expected) in [
                ("", 1024),
                ("sparsity = 0.3", if entry.name == "wanda" { 32 * 19 } else { 614 }),
                ("sparsity = 0.0", 0),
                ("pattern = \"2:4\"", 1024),
                ("pattern = \"1:4\"", 1536),
                ("pattern = \"3:8\"", 1280),
                ("pattern = \"7:16\"", 1152),
                ("pattern = \"1:64\"", 63 * 32),
            ] {
                let method = entry.build(parameters.parse().unwrap()).unwrap();
                assert_eq!(method.code(64).unwrap(), Code::Dense);
                let (random, _, mut stats) = group();
                let prune = |mut values: Vec<f32>, stats: &GroupStats| {
                    let mut weights = [Weight {
                        name: "a",
                        out_features: 32,
                        in_features: 64,
                        values: &mut values,
                        keep_zeros: false,
                    }];
                    let done = method.compress(&mut weights, stats).unwrap().remove(0);
                    assert_eq!(done.weight.dequantize(), values);
                    values
                };
                let zeros = |values: &[f32]| values.iter().filter(|w| **w == 0.0).count();
                let done = prune(random.clone(), &stats);
                assert_eq!(zeros(&done), expected, "{} {parameters}", entry.name);
                if let Ok(pattern) = method.parameters().get("pattern").and_then(|p| p.as_str()).unwrap_or("").parse() {
                    let pattern: crate::mask::NOfM = pattern;
                    assert!(done.chunks(pattern.of()).all(|group| zeros(group) == pattern.drop()), "{parameters}");
                }
                assert_eq!(zeros(&prune(constant(32), &stats)), expected, "{} {parameters}, constant", entry.name);
                assert_eq!(zeros(&prune(nothing(32), &stats)), 32 * 64);
                // Five inputs that never fired, for whose weights scores are zero.
                let mut hessian = stats.hessian.take().unwrap();
                for j in [0, 3, 4, 17, 63] {
                    (0..64).for_each(|i| (hessian[i * 64 + j], hessian[j * 64 + i]) = (0.0, 0.0));
                    stats.energies.as_mut().unwrap()[j] = 0.0;
                }
                stats.hessian = Some(hessian);
                let done = prune(random.clone(), &stats);
                // SparseGPT takes the weights of dead inputs whatever is asked.
                let taken = (0..32 * 64).filter(|i| [0, 3, 4, 17, 63].contains(&(i % 64)) && done[*i] == 0.0).count();
                match entry.name {
                    "sparsegpt" => assert!(taken == 160 && zeros(&done) >= expected && zeros(&done) <= expected + 160),
                    _ => assert_eq!(zeros(&done), expected),
                }
            }
        }
    }

    #[test]
    fn pruners_say_what_is_wrong_with_their_parameters() {
        for entry in METHODS.iter().filter(|entry| prunes(entry)) {
            let refused = |parameters: &str| entry.build(parameters.parse().unwrap()).unwrap_err().to_string();
            assert!(refused("sparsity = 50.0").contains("the sparsity is 50, expected the fraction"));
            assert!(refused("sparsity = 0.5\npattern = \"2:4\"").contains("give one of them"));
            assert!(refused("pattern = \"4:2\"").contains("the pattern 4:2 keeps every weight"));
        }
        let refused = |name: &str, parameters: &str| build(name, parameters.parse().unwrap()).unwrap_err().to_string();
        assert!(refused("magnitude", "pattern = \"2:4\"\nscope = \"row\"").contains("leave one out"));
        assert!(refused("sparsegpt", "group_size = 64").starts_with("`group_size` is given without `bits`"));
        assert!(refused("sparsegpt", "dampening = -1.0").contains("dampening is -1"));
        assert!(refused("sparsegpt", "column_block = 0").contains("column block is 0"));
        assert!(refused("sparsegpt", "bits = 5").contains("5 bits"));
    }
}
