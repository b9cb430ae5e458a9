//! `scruple share train`: a small net for images whose weights share a pool from the first step on.

use std::{
    fs,
    io::ErrorKind,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use scruple_compress::{
    data::{
        glyphs::glyphs,
        images::{ImageSet, Scaling},
    },
    nn::{
        Architecture, Input, Net, Recipe, Shortcut, Spec, Trainer, Weights, evaluate_from,
        optimiser::{Curve, Rule, Schedule},
        train::Augmentation,
    },
    sharing::{
        Shared, SharedFile,
        method::Pools,
        modules::{Choice, LEAST_VALUES},
        net::{self, PooledNet},
        report::Report,
    },
};
use scruple_weights::PathFilter;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    project::{ScaleRule, WhosePool},
    report,
};
use crate::{
    printer::{self, Progress},
    record::{self, Run},
};

/// Images a batch of the evaluation.
pub(super) const EVALUATED: usize = 200;

/// Pixels of a side of the glyphs that stand in where no data is given.
const SIDE: usize = 16;

/// A rule of descent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Optimiser {
    /// Momentum 0.9, weight decay 1e-4
    Sgd,
    /// Weight decay 0.01
    Adamw,
}

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Labelled images to train on: IDX, CIFAR in binary form, digits as CSV, numpy; `glyphs` draws some
    #[arg(long, default_value = "glyphs")]
    data: String,
    /// Labelled images to evaluate on; `glyphs` draws others
    #[arg(long, default_value = "glyphs")]
    test: String,
    /// mlp, cnn, residual-mlp, or resnet20 and its kin
    #[arg(long, default_value = "mlp")]
    net: String,
    /// Features of the net's first layer
    #[arg(long, default_value_t = 128)]
    width: usize,
    /// Times every image is seen
    #[arg(long, default_value_t = 12)]
    epochs: u64,
    /// Images a step
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// The rule of a step
    #[arg(long, value_enum, default_value = "sgd")]
    optimiser: Optimiser,
    /// The highest learning rate; 0.05 for SGD and 0.002 for AdamW without it
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Weights a slot of the pool serves, 1 or more
    #[arg(long, default_value_t = 8.0)]
    rate: f64,
    /// Whether all tensors share one pool, or each has its own
    #[arg(long, value_enum, default_value = "global")]
    pools: WhosePool,
    /// Only tensors whose names match one of these globs share
    #[arg(long)]
    include: Vec<String>,
    /// Tensors whose names match one of these globs do not
    #[arg(long)]
    exclude: Vec<String>,
    /// Tensors of fewer values do not share; vectors never do
    #[arg(long, default_value_t = LEAST_VALUES)]
    min_values: usize,
    /// How each tensor's scale follows from the sizes its weights begin with
    #[arg(long, value_enum, default_value = "power-of-two")]
    scales: ScaleRule,
    /// Of the weights, the pool, the order of the images
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder to write; it must not exist
    #[arg(short, long)]
    output: PathBuf,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
}

/// What a run found.
#[derive(Debug, Serialize)]
struct Record {
    spec: Spec,
    recipe: Recipe,
    /// Mean cost and share told right of the last epoch's images, while training.
    train_loss: f64,
    train_accuracy: f64,
    /// Of the weights read back from the file.
    test_images: usize,
    test_loss: f64,
    test_accuracy: f64,
    report: Report,
}

/// The images to learn from and those to be judged by, which are of one kind; `glyphs` are drawn.
pub(super) fn image_sets(data: &str, test: &str) -> Result<(ImageSet, ImageSet)> {
    let images = |name: &str, seed: u64, count: usize| match name {
        "glyphs" => Ok(ImageSet::of_glyphs(glyphs(seed, count, SIDE))),
        file => ImageSet::read(Path::new(file), None),
    };
    let (images, test) = (images(data, 1, 8_000)?, images(test, 2, 2_000)?);
    let sizes = [&images, &test].map(|set| (set.height, set.width, set.channels));
    anyhow::ensure!(
        sizes[0] == sizes[1],
        "the images of --test are {:?} (height, width, channels), those of --data {:?}; give sets of one kind",
        sizes[1],
        sizes[0]
    );
    Ok((images, test))
}

/// The net called `name` whose first layer has `width` features, for `images`.
pub(super) fn spec_of(name: &str, width: usize, images: &ImageSet) -> Result<Spec> {
    let architecture = match name {
        "mlp" => Architecture::Mlp { hidden: vec![width, width.div_ceil(2)], norm: false },
        "cnn" => Architecture::Cnn { widths: vec![width, width.saturating_mul(2), width.saturating_mul(4)] },
        "residual-mlp" => Architecture::ResidualMlp { width, blocks: 3 },
        name => {
            let depth = name.strip_prefix("resnet").and_then(|depth| depth.parse().ok());
            let depth = depth.with_context(|| {
                format!("no net is called `{name}`; choose mlp, cnn, residual-mlp, or resnet20 and its kin")
            })?;
            Architecture::resnet(depth, width, Shortcut::Slice)?
        }
    };
    let input = Input { height: images.height, width: images.width, channels: images.channels };
    Ok(Spec { architecture, input, classes: images.classes })
}

/// What the share.json beside `file` says under `path`, and where it stands.
fn said_beside<T: DeserializeOwned>(file: &SharedFile, path: &str) -> Result<(PathBuf, Option<T>)> {
    let beside = file.checkpoint().dir().join("share.json");
    let whole: Value = match fs::read(&beside) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).with_context(|| format!("{}: is not valid JSON", beside.display()))?
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((beside, None)),
        Err(error) => return Err(error).with_context(|| format!("{}: cannot read the file", beside.display())),
    };
    let said = whole.pointer(path).cloned().map(serde_json::from_value).transpose();
    let said = said.with_context(|| format!("{}: what it says in `{path}` cannot be read", beside.display()))?;
    Ok((beside, said))
}

/// The net of `file` by the share.json beside it, or where that does not say as `named` (name and width), for `images`.
pub(super) fn spec_beside(file: &SharedFile, named: Option<(&str, usize)>, images: &ImageSet) -> Result<Spec> {
    match (said_beside(file, "/spec")?, named) {
        ((_, Some(spec)), _) => Ok(spec),
        ((_, None), Some((name, width))) => spec_of(name, width, images),
        ((beside, None), None) => {
            anyhow::bail!("{}: does not say which net it is, as `share train` writes it", beside.display())
        }
    }
}

/// How bytes of images became numbers while the net of `file` was trained, where the share.json beside it says.
pub(super) fn scaling_beside(file: &SharedFile) -> Result<Option<Scaling>> {
    Ok(said_beside(file, "/recipe/scaling")?.1)
}

/// Refuses an output that exists: before the work, not after it.
pub(super) fn expect_free(out: &Path) -> Result<()> {
    anyhow::ensure!(
        out.symlink_metadata().is_err(),
        "{}: the output exists already; choose another name, or move or delete it first",
        out.display()
    );
    Ok(())
}

impl Arguments {
    fn recipe(&self, images: &ImageSet) -> Recipe {
        let (rule, peak) = match self.optimiser {
            Optimiser::Sgd => (Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-4 }, 0.05),
            Optimiser::Adamw => (Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }, 0.002),
        };
        Recipe {
            seed: self.seed,
            epochs: self.epochs,
            batch: self.batch,
            rule,
            decay_vectors: true, // all that stands behind shared weights decays alike
            schedule: Schedule {
                peak: self.learning_rate.unwrap_or(peak),
                warmup_epochs: 0.0,
                curve: Curve::Step { milestones: vec![0.5, 0.75], factor: 0.1 },
            },
            label_smoothing: 0.0,
            augmentation: Augmentation::default(),
            scaling: images.scaling(),
        }
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("share train");
    expect_free(&arguments.output)?;
    let (images, test) = image_sets(&arguments.data, &arguments.test)?;
    let spec = spec_of(&arguments.net, arguments.width, &images)?;
    let recipe = arguments.recipe(&images);
    let graph = spec.graph()?;
    let mut start = Weights::start(&graph, arguments.seed);
    let choice = Choice {
        filter: PathFilter::new(arguments.include.clone(), arguments.exclude.clone())?,
        least_values: arguments.min_values,
    };
    let (size, align) = (Pools::from(arguments.pools).size(arguments.rate), scruple_compress::sharing::fold::ALIGN);
    let shared =
        Shared::new(graph.layout(), &start.values, &choice, arguments.scales.into(), size, align, arguments.seed)?;
    shared.begin(&mut start.values, arguments.seed);
    if arguments.rate > 1.0 && arguments.learning_rate.is_none() {
        let (hint, of) = match arguments.optimiser {
            Optimiser::Sgd => (arguments.rate.powf(0.6), "c^0.6, measured on one small net"),
            Optimiser::Adamw => (arguments.rate.sqrt(), "√c, derived and untested"),
        };
        printer::say(format!(
            "training at the dense learning rate {}; at this rate of sharing {:.2} may be better (times {of})",
            recipe.schedule.peak,
            recipe.schedule.peak * hint
        ));
    }

    let mut trainer = Trainer::from_weights(&spec, recipe.clone(), &images, start, Some(&shared))?;
    let mut progress = Progress::new("train", trainer.steps());
    let (mut train_loss, mut train_accuracy) = (0.0, 0.0);
    trainer.run(u64::MAX, &mut |now| {
        (train_loss, train_accuracy) = (now.epoch_loss, now.epoch_accuracy);
        progress.at(now.step, &format!("cost {:.4}, {:.1} % right", now.epoch_loss, 100.0 * now.epoch_accuracy));
        ControlFlow::Continue(())
    })?;
    progress.finish();
    let circumstances = [("run.json", record::pretty(&clock.to_json())?)];
    net::write(&shared, &graph, trainer.trainable(), trainer.weights(), &arguments.output, &circumstances)?;

    // What is measured is what was written.
    let file = SharedFile::open(&arguments.output)?;
    let pooled = PooledNet::open(&graph, &file)?;
    let mut judge = Net::new(&spec, EVALUATED)?;
    let evaluation = evaluate_from(&mut judge, &pooled, pooled.running(), &test, &recipe.scaling)?;
    let found = Record {
        spec,
        recipe,
        train_loss,
        train_accuracy,
        test_images: test.len(),
        test_loss: evaluation.loss,
        test_accuracy: evaluation.accuracy(),
        report: Report::of(&file),
    };
    record::write_whole(&arguments.output.join("share.json"), &record::pretty(&found)?)?;
    if arguments.json {
        printer::json(&found)?;
    } else {
        report::print(&found.report);
        printer::data(format!(
            "{} of {} test images told right, {:.2} %",
            evaluation.right,
            test.len(),
            100.0 * found.test_accuracy
        ));
    }
    Ok(ExitCode::SUCCESS)
}
