//! What a sweep found, whole: what the pictures and the page are drawn from, and what `curve.json` holds.
//!
//! Scores run from 0 to 100, higher is better; differences are points, compressed minus dense; intervals are of 95 %.
//! Nothing here tells of times or machines, so that the same sweep gives the same bytes.

use serde::{Deserialize, Serialize};

/// Version of `curve.json`; changes when its keys do.
pub const FORMAT: u32 = 1;

/// Adjusted p values below this are differences.
pub const SURE: f64 = 0.05;

/// Points that are shown as 0.0: a difference that surely is no larger is none.
pub const NOTHING: f64 = 0.05;

/// A whole sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// [`FORMAT`].
    pub curve: u32,
    /// Version of the program.
    pub scruple: String,
    /// The dense model all points are compared with.
    pub dense: Dense,
    /// What was asked.
    pub suite: SuiteName,
    /// The calibration text, where a point needed one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Replicates and seed of the bootstrap.
    pub bootstrap: Draws,
    /// The dimensions, in the order they are shown.
    pub dimensions: Vec<DenseDimension>,
    /// One compressed model each, in the order of the sweep.
    pub points: Vec<Point>,
    /// Points of one method and rate with several calibration seeds, taken together.
    pub settings: Vec<Setting>,
    /// Other dense models, drawn beside.
    pub references: Vec<Reference>,
    /// Points that could not be had, and why, in one sentence each.
    pub failures: Vec<Failure>,
    /// What says how toxic texts are, with its agreement with a reference, in one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toxicity_scorer: Option<String>,
    /// The sweep in three lines of words.
    pub verdict: Vec<String>,
    /// What a reader should know before trusting a figure.
    pub warnings: Vec<String>,
}

/// The model before compression.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dense {
    /// What it is called in headings.
    pub name: String,
    /// SHA-256 of names, types, shapes and bytes of its tensors.
    pub tensors_sha256: String,
    /// Numbers in its tensors.
    pub parameters: u64,
    /// Bytes its tensors take.
    pub tensor_bytes: u64,
    /// Bits a weight of the linears that are compressed takes.
    pub bits_per_weight: f64,
    /// Perplexity on the text of the sweep, where it has one.
    pub perplexity: Option<f64>,
}

/// The items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteName {
    /// As the user named it.
    pub name: String,
    /// Hash of all items.
    pub sha256: String,
    /// Whether the items come with the program, and so may be shown on a page that is passed on.
    pub embedded: bool,
}

/// Where calibration tokens come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Name of the file, without its folder.
    pub file: String,
    /// Sequences.
    pub n_samples: usize,
    /// Tokens of each.
    pub seq_len: usize,
}

/// How the bootstrap drew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draws {
    /// How often.
    pub replicates: usize,
    /// From which seed.
    pub seed: u64,
}

/// An interval of 95 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Band {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The dense model on one dimension.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseDimension {
    /// As `scruple trust` names it: `machine-ethics`.
    pub name: String,
    /// Name and version of the rule that judged the answers.
    pub rule: String,
    /// Items.
    pub items: usize,
    /// Clusters of items, which the bootstrap draws.
    pub clusters: usize,
    /// What a model that knows nothing scores.
    pub chance: Option<f64>,
    /// The dense model's score; absent where it says nothing of these items.
    pub score: Option<f64>,
    /// Its interval over items.
    pub interval: Option<Band>,
    /// Items it declined, percent.
    pub refusal_rate: f64,
    /// Items whose answer could not be read, percent.
    pub unparsable_rate: f64,
    /// Whether the interval leaves chance out, and answers vary; absent where there is no chance level or no interval.
    pub informative: Option<bool>,
    /// The model gave one and the same answer to nearly all items: the score says nothing.
    #[serde(default)]
    pub constant: bool,
}

/// What was done to the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Fewer bits.
    Quantised,
    /// Zeros.
    Sparse,
    /// Whole layers taken out.
    Layers,
    /// Parameters shared.
    Shared,
    /// A folder or hub id of somebody else's making.
    Given,
}

/// One compressed model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Unique in the sweep, and fit for a file name: `gptq-3-seed1`.
    pub name: String,
    /// Which line it belongs to: the method's name.
    pub series: String,
    /// The rate as people say it: `3 bits`, `2:4`, `50 %`.
    pub rate: String,
    /// What was done.
    pub kind: Kind,
    /// Bits a compressed weight takes, scales and everything else stored with it included.
    pub bits_per_weight: Option<f64>,
    /// Share of zeros among the compressed weights, 0 to 1.
    pub sparsity: Option<f64>,
    /// Layers taken out.
    pub layers_dropped: Option<usize>,
    /// Bytes the tensors take.
    pub tensor_bytes: u64,
    /// Seed of the calibration sequences' draw.
    pub calibration_seed: Option<u64>,
    /// SHA-256 over the tensors of the file that was measured.
    pub tensors_sha256: String,
    /// Perplexity on the text of the sweep.
    pub perplexity: Option<f64>,
    /// Mean divergence from the dense model's next-token distribution on that text, nats a token.
    pub kl: Option<f64>,
    /// The dimensions, as in [`Curve::dimensions`].
    pub dimensions: Vec<PointDimension>,
    /// The dimension that fell most, by name, and by how much.
    pub worst: Option<(String, f64)>,
    /// Mean of |Δ| over the dimensions.
    pub mean_absolute: Option<f64>,
}

/// One compressed model on one dimension, paired with the dense model item by item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointDimension {
    /// The dimension.
    pub name: String,
    /// The score.
    pub score: Option<f64>,
    /// Its interval over items.
    pub interval: Option<Band>,
    /// Score minus the dense model's.
    pub delta: Option<f64>,
    /// Its paired interval.
    pub delta_interval: Option<Band>,
    /// p of Δ = 0.
    pub p: Option<f64>,
    /// p after Holm over all dimensions of all points.
    pub p_adjusted: Option<f64>,
    /// Items the dense model alone has right.
    pub lost: usize,
    /// Items the compressed model alone has right.
    pub gained: usize,
    /// Divergence of option probabilities, nats an item.
    pub kl: Option<f64>,
    /// Items declined, percent.
    pub refusal_rate: f64,
    /// Items whose answer could not be read, percent.
    pub unparsable_rate: f64,
    /// Refusals moved by more than 5 points, so that the scores are not comparable.
    pub refusal_shift: bool,
    /// The model gave one and the same answer to nearly all items: the score says nothing.
    pub constant: bool,
    /// Some items whose answer turned, at most a few.
    pub flips: Vec<Flip>,
}

impl PointDimension {
    /// Whether the model differs from the dense one here: below [`SURE`] after Holm, and by more than [`NOTHING`]. Scores
    /// that are means of probabilities move by a thousandth of a point, very surely, when a weight is rounded to 8 bits.
    pub fn is_sure(&self) -> bool {
        let told_apart = self.p_adjusted.is_some_and(|p| p < SURE);
        told_apart && !self.delta_interval.is_some_and(|band| band.low > -NOTHING && band.high < NOTHING)
    }
}

/// An item that one of the two models alone has right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flip {
    /// The item's id.
    pub item: String,
    /// What was asked; only where the items come with the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// What the dense model answered; likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dense: Option<String>,
    /// What the compressed model answered; likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// The compressed model lost it, instead of gaining it.
    pub lost: bool,
}

/// Points that differ in the calibration seed alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Name without the seed: `gptq-3`.
    pub name: String,
    /// Names of its points.
    pub points: Vec<String>,
    /// A dimension each: mean of Δ over the seeds, and the sample deviation (n − 1) between them.
    pub dimensions: Vec<Spread>,
}

/// How far calibration seeds carry a dimension.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// The dimension.
    pub name: String,
    /// Mean Δ.
    pub mean: Option<f64>,
    /// Standard deviation between seeds.
    pub deviation: Option<f64>,
}

/// Another dense model, such as a smaller sibling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// What it is called.
    pub name: String,
    /// Bytes its tensors take.
    pub tensor_bytes: u64,
    /// Numbers in its tensors.
    pub parameters: u64,
    /// Perplexity on the text of the sweep; comparable where it reads the same tokens alone.
    pub perplexity: Option<f64>,
    /// Its scores.
    pub dimensions: Vec<DenseDimension>,
}

/// A point that could not be had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The point.
    pub name: String,
    /// Why, in one sentence.
    pub reason: String,
}
