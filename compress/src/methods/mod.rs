//! Compression methods, one file each, and the one list of them.
//!
//! A method's struct is its parameters. To add one: a file, a `mod` line and a line in [`METHODS`].

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::grid::GridSpec;
use crate::kernel::gemm::{matmul_nt, quadratic_form};
use crate::weight::{Code, CompressedWeight, GridCode};
use crate::{Error, Result};

pub mod rtn;

pub mod gptq;

pub mod awq;

mod feedback;

/// Every method, in the order they are listed to users.
pub const METHODS: &[MethodEntry] = &[entry::<rtn::Rtn>(), entry::<gptq::Gptq>(), entry::<awq::Awq>()];

/// The statistics of a group's inputs a method asks for. Methods that look at weights alone ask for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// [`GroupStats::hessian`].
    pub hessian: bool,
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
    /// [`LayerMethod::name`].
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

/// A method that decides over the linears of one group at a time: those that read the same input.
pub trait LayerMethod: fmt::Debug + Send + Sync {
    /// The name in recipes.
    fn name(&self) -> &'static str;

    /// The parameters, defaults filled in, as a recipe would give them.
    fn parameters(&self) -> toml::Table;

    /// Which statistics the loop must collect.
    fn needs(&self) -> Needs;

    /// What it does to a weight; a linear may be pruned by one stage and then quantised by another.
    fn kind(&self) -> Kind {
        Kind::Quantise
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
pub trait Described: LayerMethod + DeserializeOwned + Sized + 'static {
    /// The name in recipes, kebab-case.
    const NAME: &'static str;
    /// One line on what it does.
    const SUMMARY: &'static str;
    /// Where it comes from.
    const PAPER: &'static str;

    /// Refuses parameters that make no sense.
    fn validate(&self) -> Result<()>;
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

const fn entry<M: Described>() -> MethodEntry {
    MethodEntry { name: M::NAME, summary: M::SUMMARY, paper: M::PAPER, build: build_as::<M> }
}

fn build_as<M: Described>(parameters: toml::Table) -> Result<Box<dyn LayerMethod>> {
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
        None => {
            let names: Vec<String> = METHODS.iter().map(|entry| format!("`{}`", entry.name)).collect();
            Err(Error::Recipe(format!("unknown method `{name}`, expected {}", names.join(" or "))))
        }
    }
}

/// `cause` with the linear it concerns in front.
fn in_linear(name: &str, cause: Error) -> Error {
    match cause {
        Error::Numeric(message) => Error::Numeric(format!("linear `{name}`: {message}")),
        Error::Recipe(message) => Error::Recipe(format!("linear `{name}`: {message}")),
        other => other,
    }
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
            assert_eq!(format!("{method:?}"), format!("{again:?}"));
        }
    }

    #[test]
    fn unknown_names_and_parameters_are_refused() {
        let message = build("gtpq", toml::Table::new()).unwrap_err().to_string();
        assert_eq!(message, "unknown method `gtpq`, expected `rtn` or `gptq` or `awq`");
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
            energies: Some(energies.collect()),
            magnitudes: Some(magnitudes.collect()),
            samples: Some(x.clone()),
            tokens: t,
        };
        (uniform(32 * n, 5), uniform(8 * n, 6), stats)
    }

    #[test]
    fn every_method_leaves_the_dequantised_weight_and_reports_every_linear() {
        for entry in METHODS {
            let (mut a, mut b, stats) = group();
            let original = a.clone();
            let parameters = "bits = 4\ngroup_size = 32".parse::<toml::Table>().unwrap();
            let method = entry.build(parameters).unwrap();
            let mut group = [
                Weight { name: "a", out_features: 32, in_features: 64, values: &mut a, keep_zeros: false },
                Weight { name: "b", out_features: 8, in_features: 64, values: &mut b, keep_zeros: false },
            ];
            let done = method.compress(&mut group, &stats).unwrap();
            assert_eq!(done.iter().map(|c| c.report.linear.as_str()).collect::<Vec<_>>(), ["a", "b"]);
            assert_eq!(done[0].weight.dequantize(), a);
            assert_eq!(done[1].weight.dequantize(), b);
            assert_eq!(done[0].weight.code(), method.code(64).unwrap());
            let error = done[0].report.output_error.unwrap();
            assert!(error > 0.0 && error < 0.02, "{}: {error}", entry.name);
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
            let method = entry.build("group_size = 32".parse().unwrap()).unwrap();
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
            let method = entry.build("group_size = 48".parse().unwrap()).unwrap();
            let mut weights =
                [Weight { name: "a", out_features: 32, in_features: 64, values: &mut a, keep_zeros: false }];
            let message = method.compress(&mut weights, &stats).unwrap_err().to_string();
            assert!(message.contains("`a`") && message.contains("16, 32, 64"), "{message}");
        }
    }
}
