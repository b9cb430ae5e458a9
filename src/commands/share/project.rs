//! `scruple share project`: a pool for a trained model.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use scruple_compress::sharing::{
    Options, Projected, Scales,
    method::Pools,
    modules::{Choice, LEAST_VALUES, Size},
    project,
};
use scruple_weights::{Dtype, PathFilter};

use super::report;
use crate::{
    printer::{self, Progress, Table},
    record::{self, Run},
    source,
};

/// What ψ is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PoolType {
    F32,
    F16,
    Bf16,
}

/// Whose a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum WhosePool {
    /// One for all
    Global,
    /// One for each tensor
    PerTensor,
}

impl From<WhosePool> for Pools {
    fn from(whose: WhosePool) -> Self {
        match whose {
            WhosePool::Global => Self::Global,
            WhosePool::PerTensor => Self::PerTensor,
        }
    }
}

/// How scales follow from weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ScaleRule {
    /// The power of two nearest to the root mean square; at rate 1 nothing is lost
    PowerOfTwo,
    /// The root mean square
    Rms,
}

impl From<ScaleRule> for Scales {
    fn from(rule: ScaleRule) -> Self {
        match rule {
            ScaleRule::PowerOfTwo => Self::PowerOfTwo,
            ScaleRule::Rms => Self::Rms,
        }
    }
}

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file of the model, or `org/name[@revision][:file]` of a hub
    model: PathBuf,
    /// Weights a slot of the pool serves, 1 or more
    #[arg(long, default_value_t = 2.0, conflicts_with = "slots")]
    rate: f64,
    /// Slots of the pool, in place of a rate
    #[arg(long, conflicts_with = "pools")]
    slots: Option<usize>,
    /// Whether all tensors share one pool, or each has its own
    #[arg(long, value_enum, default_value = "global")]
    pools: WhosePool,
    /// The one seed of slots and signs
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Only tensors whose names match one of these globs share
    #[arg(long)]
    include: Vec<String>,
    /// Tensors whose names match one of these globs do not
    #[arg(long)]
    exclude: Vec<String>,
    /// Tensors of fewer values do not share; vectors never do
    #[arg(long, default_value_t = LEAST_VALUES)]
    min_values: usize,
    /// Slots that rotations of the pool are multiples of, 16 or 64
    #[arg(long, default_value_t = 16)]
    align: usize,
    /// How each tensor's scale follows from its weights
    #[arg(long, value_enum, default_value = "power-of-two")]
    scales: ScaleRule,
    /// The type the pool is stored in
    #[arg(long, value_enum, default_value = "f32")]
    pool_type: PoolType,
    /// Write a model that is far from its source and that nobody evaluated
    #[arg(long)]
    allow_lossy: bool,
    /// Folder to write; it must not exist
    #[arg(short, long, required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Say what would be written and how far it is from the source, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    fn options(&self) -> Result<Options> {
        Ok(Options {
            choice: Choice {
                filter: PathFilter::new(self.include.clone(), self.exclude.clone())?,
                least_values: self.min_values,
            },
            size: self.slots.map_or(Pools::from(self.pools).size(self.rate), Size::Slots),
            align: self.align,
            seed: self.seed,
            scales: self.scales.into(),
            psi_dtype: match self.pool_type {
                PoolType::F32 => Dtype::F32,
                PoolType::F16 => Dtype::F16,
                PoolType::Bf16 => Dtype::Bf16,
            },
            allow_lossy: self.allow_lossy,
            advise: true,
        })
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("share project");
    let located = source::locate(&arguments.model)?;
    let checkpoint = located.open()?;
    let out = arguments.output.as_deref().filter(|_| !arguments.dry_run);
    let mut progress = Progress::new("project", 3);
    let files = |projected: &Projected| {
        let json =
            |value: Result<Vec<u8>>| value.map_err(|error| scruple_compress::Error::Model(printer::sentence(&error)));
        let (record, run) = (json(record::pretty(projected))?, json(record::pretty(&clock.to_json()))?);
        Ok(vec![("share.json".to_string(), record), ("run.json".to_string(), run)])
    };
    let projected =
        project(&checkpoint, out, &arguments.options()?, &files, &mut |done, _| progress.at(done, "passes"))
            .with_context(|| format!("{}: cannot be projected", located.path().display()))?;
    progress.finish();
    if arguments.json {
        printer::json(&projected)?;
        return Ok(ExitCode::SUCCESS);
    }
    tell(&projected, out);
    Ok(ExitCode::SUCCESS)
}

/// Prints what a projection made and, in plain words, what that is worth.
pub(super) fn tell(projected: &Projected, out: Option<&Path>) {
    let mut table = Table::new(["tensor", "weights", "scale", "relative error"]);
    for (tensor, shared) in projected.tensors.iter().zip(&projected.report.tensors) {
        table.row([
            tensor.name.clone(),
            shared.weights.to_string(),
            tensor.scale.to_string(),
            format!("{:.4}", tensor.relative_error),
        ]);
    }
    table.print();
    report::print(&projected.report);
    printer::data(format!(
        "relative error {:.4}, expected about √(1 − 1/c) = {:.4}{}",
        projected.relative_error,
        projected.expected_error,
        if projected.lossless { "; every weight comes back bit for bit" } else { "" }
    ));
    if !projected.lossless {
        printer::data("a starting point for fine-tuning, not a usable model unless somebody evaluated it");
    }
    if let Some(advice) = &projected.advice {
        printer::data(advice.sentence());
    }
    printer::data(out.map_or_else(|| "nothing written".to_string(), |out| format!("written to {}", out.display())));
}
