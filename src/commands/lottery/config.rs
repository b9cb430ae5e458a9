//! What is asked of an experiment: a TOML file.
//!
//! ```toml
//! name = "cifar10"
//! seeds = [1, 2, 3, 4, 5]      # paired: weights, order and augmentation of all arms of a seed are drawn by it
//! margin = 1.0                 # ξ of non-inferiority, points
//! score_images = 10            # images of each class that criteria see
//! random = 3                   # draws of `random` a seed
//! save_seconds = 20            # between checkpoints within a training; 0 for every epoch
//!
//! [data]                       # files of images, or `glyphs`: pictures that come with the program
//! train = "${DATA}/train.bin.gz"
//! test = "${DATA}/test.bin.gz"
//! train_images = 10000         # the first so many
//!
//! [recipe]
//! epochs = 30
//! rate = 0.05
//!
//! [robustness]
//! images = 1000
//!
//! [carbon]                     # stated, never guessed from where the machine is
//! intensity = 480.0            # g/kWh
//!
//! [[net]]
//! name = "resnet32"
//! architecture = { kind = "resnet", blocks = [5, 5, 5], width = 8, shortcut = "slice" }
//! minimum = 2                  # blocks a stage keeps at least
//!
//! [[setting]]
//! name = "resnet32-p5"
//! net = "resnet32"
//! remove = 5
//! criteria = ["snip", "random", "uniform"]   # `best`: that of the first setting
//! ```
//!
//! Paths are relative to the file's own folder; `${NAME}` stands for a variable of the environment.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use scruple_compress::{
    data::{glyphs::glyphs, images::ImageSet},
    lottery::{
        Allocation, Stages, criteria,
        criteria::State,
        energy::Circumstances,
        filters::{FilterCriterion, Matching},
    },
    nn::{
        Architecture, Input, Recipe, Spec,
        optimiser::{Curve, Rule, Schedule},
        train::Augmentation,
    },
};
use serde::{Deserialize, Serialize};

use crate::curve::{place, sweep};

/// The experiment.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub name: String,
    pub seeds: Vec<u64>,
    #[serde(default = "usual_margin")]
    pub margin: f64,
    #[serde(default = "usual_score_images")]
    pub score_images: usize,
    #[serde(default = "usual_random")]
    pub random: usize,
    #[serde(default = "usual_save_seconds")]
    pub save_seconds: f64,
    pub data: Data,
    pub recipe: RecipeKeys,
    #[serde(default)]
    pub robustness: Robustness,
    #[serde(default)]
    pub carbon: Circumstances,
    #[serde(rename = "net")]
    pub nets: Vec<NetKeys>,
    #[serde(rename = "setting", default)]
    pub settings: Vec<Setting>,
}

fn usual_margin() -> f64 {
    1.0
}

fn usual_score_images() -> usize {
    10
}

fn usual_random() -> usize {
    3
}

fn usual_save_seconds() -> f64 {
    20.0
}

/// Where images come from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    pub train: PathBuf,
    pub test: PathBuf,
    /// Labels, where the files of images do not have them beside.
    pub train_labels: Option<PathBuf>,
    pub test_labels: Option<PathBuf>,
    pub train_images: Option<usize>,
    pub test_images: Option<usize>,
    /// Pixels along an edge of glyphs.
    #[serde(default = "usual_side")]
    pub side: usize,
}

fn usual_side() -> usize {
    16
}

/// The images.
#[derive(Debug)]
pub struct Images {
    pub train: ImageSet,
    pub test: ImageSet,
}

/// Images of glyphs where the file does not say how many.
const GLYPHS: (usize, usize) = (10_000, 2_000);

impl Data {
    /// Reads the images.
    pub fn load(&self) -> Result<Images> {
        let read =
            |file: &Path, labels: Option<&Path>, count: Option<usize>, seed: u64, usual: usize| -> Result<ImageSet> {
                if file.as_os_str() == "glyphs" {
                    ensure!((4..=256).contains(&self.side), "`side` is {}, expected 4 to 256", self.side);
                    let count = count.unwrap_or(usual);
                    ensure!((1..=1 << 17).contains(&count), "{count} glyphs are asked for, expected 1 to {}", 1 << 17);
                    return Ok(ImageSet::of_glyphs(glyphs(seed, count, self.side)));
                }
                let all = ImageSet::read(file, labels)?;
                let count = count.unwrap_or(all.len());
                ensure!(
                    (1..=all.len()).contains(&count),
                    "{}: {count} images are asked for, the file has {}",
                    file.display(),
                    all.len()
                );
                Ok(all.select(0..count))
            };
        let train = read(&self.train, self.train_labels.as_deref(), self.train_images, 1, GLYPHS.0)?;
        let test = read(&self.test, self.test_labels.as_deref(), self.test_images, 2, GLYPHS.1)?;
        ensure!(
            (test.height, test.width, test.channels, test.classes)
                == (train.height, train.width, train.channels, train.classes),
            "the test images are {} × {} pixels of {} channels in {} classes, those to train on {} × {} of {} in {}",
            test.height,
            test.width,
            test.channels,
            test.classes,
            train.height,
            train.width,
            train.channels,
            train.classes
        );
        Ok(Images { train, test })
    }
}

/// How nets are trained: SGD with Nesterov's momentum down a cosine, the same for every arm.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeKeys {
    pub epochs: u64,
    #[serde(default = "usual_batch")]
    pub batch: usize,
    pub rate: f64,
    #[serde(default = "one")]
    pub warmup_epochs: f64,
    #[serde(default = "usual_momentum")]
    pub momentum: f64,
    #[serde(default = "usual_decay")]
    pub weight_decay: f64,
    /// Pixels an image may move.
    #[serde(default)]
    pub shift: usize,
    #[serde(default)]
    pub flip: bool,
}

fn usual_batch() -> usize {
    64
}

fn one() -> f64 {
    1.0
}

fn usual_momentum() -> f64 {
    0.9
}

fn usual_decay() -> f64 {
    1e-4
}

impl RecipeKeys {
    /// The recipe of `epochs` for one seed.
    pub fn recipe(&self, seed: u64, epochs: u64, images: &ImageSet) -> Recipe {
        Recipe {
            seed,
            epochs,
            batch: self.batch,
            rule: Rule::Sgd { momentum: self.momentum, nesterov: self.momentum > 0.0, weight_decay: self.weight_decay },
            decay_vectors: false,
            schedule: Schedule { peak: self.rate, warmup_epochs: self.warmup_epochs, curve: Curve::Cosine },
            label_smoothing: 0.0,
            augmentation: Augmentation { shift: self.shift, flip: self.flip },
            scaling: images.scaling(),
        }
    }
}

/// What trained nets go through beside the clean test.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Robustness {
    /// The first so many test images, under every corruption and FGSM; 0 for none.
    pub images: usize,
    /// ε of FGSM, 255ths.
    pub epsilons: Vec<f64>,
    /// Images of PGD-10; 0 for none.
    pub pgd_images: usize,
    /// Its ε, 255ths.
    pub pgd_epsilon: f64,
}

impl Default for Robustness {
    fn default() -> Self {
        Self { images: 1000, epsilons: vec![1.0, 2.0, 4.0, 8.0], pgd_images: 200, pgd_epsilon: 2.0 }
    }
}

/// A dense net.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetKeys {
    pub name: String,
    pub architecture: Architecture,
    #[serde(default = "usual_minimum")]
    pub minimum: usize,
}

fn usual_minimum() -> usize {
    2
}

impl NetKeys {
    /// The net for images like these.
    pub fn spec(&self, images: &ImageSet) -> Spec {
        let input = Input { height: images.height, width: images.width, channels: images.channels };
        Spec { architecture: self.architecture.clone(), input, classes: images.classes }
    }
}

/// So many blocks out of one net, and what is tried.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    pub name: String,
    pub net: String,
    /// Blocks that go.
    pub remove: usize,
    /// Criteria before training; `random` is always among them. The first but `random` leads: controls are of its tickets.
    pub criteria: Vec<String>,
    /// Criteria after training (the paper's algorithm 1), with every way of `rewind` and `finetune`.
    #[serde(default)]
    pub trained: Vec<String>,
    /// Epochs whose weights the tickets of trained nets go back to; 0 is the start.
    #[serde(default)]
    pub rewind: Vec<u64>,
    /// Epochs of fine-tuning the final weights of tickets of trained nets, at the last learning rates of the run; the dense net is
    /// given as many more.
    pub finetune: Option<u64>,
    /// The leading ticket with the very blocks that were chosen, in place of the first of each stage.
    #[serde(default)]
    pub own_blocks: bool,
    /// The leading ticket with fresh weights.
    #[serde(default)]
    pub reinit: bool,
    /// Filter tickets as large as the leading one, by these criteria, in each of `matchings`.
    #[serde(default)]
    pub filters: Vec<FilterCriterion>,
    /// What as large means: as many filters, as many multiply-adds, as much time a step by this machine's clock.
    #[serde(default = "by_count_and_macs")]
    pub matchings: Vec<Matching>,
    /// The leading ticket for the dense net's multiply-adds, and the dense net for the ticket's.
    #[serde(default)]
    pub equal_compute: bool,
    /// Successive halving over all allocations.
    #[serde(default)]
    pub halving: bool,
}

/// The matchings that come to the same on every machine.
fn by_count_and_macs() -> Vec<Matching> {
    vec![Matching::Count, Matching::Macs]
}

/// The criterion that stands for the best of the first setting.
pub const BEST: &str = "best";

/// More trainings of one kind than anybody waits for are a slip of the pen.
const MOST: usize = 1000;

impl Config {
    /// The experiment that comes with the program.
    pub fn smoke() -> Result<Self> {
        Self::parse(include_str!("smoke.toml"), Path::new("")).context("the smoke experiment")
    }

    /// Reads `file`.
    pub fn read(file: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("{}: cannot read the file", file.display()))?;
        let folder = file.parent().unwrap_or(Path::new(""));
        Self::parse(&text, folder).with_context(|| file.display().to_string())
    }

    fn parse(text: &str, folder: &Path) -> Result<Self> {
        let mut config: Self = toml::from_str(text)?;
        let data = &mut config.data;
        let files =
            [Some(&mut data.train), Some(&mut data.test), data.train_labels.as_mut(), data.test_labels.as_mut()];
        for file in files.into_iter().flatten().filter(|file| file.as_os_str() != "glyphs") {
            *file = sweep::place(folder, file)?;
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.seeds.is_empty() && self.seeds.len() <= MOST, "give 1 to {MOST} `seeds`");
        let mut seeds = self.seeds.clone();
        seeds.sort_unstable();
        seeds.dedup();
        ensure!(seeds.len() == self.seeds.len(), "a seed stands twice in `seeds`: a run is not evidence for itself");
        ensure!(
            self.margin >= 0.0 && self.margin.is_finite(),
            "`margin` is {}, expected 0 or more points",
            self.margin
        );
        ensure!(
            (1..=MOST).contains(&self.score_images),
            "`score_images` is {}, expected 1 to {MOST}",
            self.score_images
        );
        ensure!((1..=MOST).contains(&self.random), "`random` is {}, expected 1 to {MOST} draws", self.random);
        ensure!(self.save_seconds >= 0.0, "`save_seconds` is {}, expected 0 or more", self.save_seconds);
        let file_name = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        ensure!(!self.nets.is_empty(), "there is no `[[net]]`");
        for (at, net) in self.nets.iter().enumerate() {
            ensure!(
                file_name(&net.name),
                "net `{}`: a net's name is part of files' names: letters, digits, - and _",
                net.name
            );
            ensure!(self.nets[..at].iter().all(|other| other.name != net.name), "two nets are called `{}`", net.name);
        }
        for net in &self.nets {
            self.blocks(net).with_context(|| format!("net `{}`", net.name))?;
        }
        let robustness = &self.robustness;
        let epsilons = robustness.epsilons.iter().chain([&robustness.pgd_epsilon]);
        for epsilon in epsilons {
            ensure!(
                (0.0..=255.0).contains(epsilon),
                "an ε of `[robustness]` is {epsilon}, expected 0 to 255 of 255ths"
            );
        }
        let carbon = &self.carbon;
        for (name, value) in [
            ("intensity", carbon.intensity),
            ("pue", carbon.pue),
            ("tdp_watts", carbon.tdp_watts),
            ("memory_gib", carbon.memory_gib),
        ] {
            ensure!(value >= 0.0 && value.is_finite(), "`{name}` of `[carbon]` is {value}, expected 0 or more");
        }
        for (at, setting) in self.settings.iter().enumerate() {
            self.check_setting(setting, at).with_context(|| format!("setting `{}`", setting.name))?;
            let other = self.settings[..at]
                .iter()
                .find(|other| place::file_name(&other.name) == place::file_name(&setting.name));
            ensure!(
                other.is_none(),
                "the settings `{}` and `{}` would have files of the same names",
                other.map_or("", |other| &other.name),
                setting.name
            );
        }
        Ok(())
    }

    /// Blocks a stage of a net.
    fn blocks(&self, net: &NetKeys) -> Result<Vec<usize>> {
        // Images of any size will do.
        let input = Input { height: 8, width: 8, channels: 1 };
        let spec = Spec { architecture: net.architecture.clone(), input, classes: 2 };
        spec.check()?;
        Ok(Stages::of(&spec)?.blocks)
    }

    fn check_setting(&self, setting: &Setting, at: usize) -> Result<()> {
        let net = self.net(&setting.net)?;
        Allocation::all(&self.blocks(net)?, setting.remove, net.minimum)?;
        ensure!(
            setting.criteria.iter().any(|name| name != "random"),
            "there are no `criteria` beside `random`; the first of them leads"
        );
        for name in &setting.criteria {
            if name == BEST {
                ensure!(at > 0, "`{BEST}` stands for the best criterion of the first setting, which is this one");
                continue;
            }
            ensure!(
                criteria::find(name)?.state() != State::Trained,
                "`{name}` scores trained nets; list it under `trained`"
            );
        }
        for name in &setting.trained {
            let state = criteria::find(name)?.state();
            ensure!(state != State::Untrained, "`{name}` scores untrained nets; list it under `criteria`");
        }
        let epochs = self.recipe.epochs;
        let last = setting.rewind.iter().chain(&setting.finetune).find(|&&epoch| epoch >= epochs);
        ensure!(
            last.is_none(),
            "epoch {} of `rewind` or `finetune` is not within a run of {epochs}",
            last.unwrap_or(&0)
        );
        ensure!(setting.finetune != Some(0), "`finetune` is 0, expected 1 epoch or more");
        ensure!(
            setting.trained.is_empty() || !setting.rewind.is_empty() || setting.finetune.is_some(),
            "criteria after training need `rewind` or `finetune`"
        );
        ensure!(
            setting.filters.is_empty() || matches!(net.architecture, Architecture::ResNet { .. }),
            "filters can be taken out of residual nets of convolutions alone"
        );
        let twice = setting.matchings.iter().enumerate().find(|(at, one)| setting.matchings[..*at].contains(one));
        ensure!(twice.is_none(), "a matching stands twice in `matchings`");
        ensure!(
            setting.filters.is_empty() || !setting.matchings.is_empty(),
            "`filters` need `matchings`: \"count\", \"macs\" or \"time\""
        );
        Ok(())
    }

    /// The net called so.
    pub fn net(&self, name: &str) -> Result<&NetKeys> {
        self.nets.iter().find(|net| net.name == name).with_context(|| format!("there is no net called `{name}`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smoke_experiment_holds_together_and_slips_are_named() {
        let text = include_str!("smoke.toml");
        let criteria = text.lines().find(|line| line.starts_with("criteria = ")).unwrap();
        assert_eq!(Config::smoke().unwrap().settings.len(), 1);
        for (from, to, part) in [
            ("margin = 1.0", "margn = 1.0", "unknown field `margn`"),
            ("seeds = [1, 2, 3]", "seeds = [1, 2, 1]", "stands twice"),
            ("remove = 1", "remove = 4", "1 to 3 can"),
            ("\"snip-mean\"", "\"snap\"", "no criterion is called `snap`"),
            ("\"snip-mean\"", "\"hrank\"", "scores trained nets"),
            ("trained = [\"kl\", ", "trained = [\"snip\", ", "scores untrained nets"),
            ("rewind = [1]", "rewind = [3]", "not within a run of 3"),
            ("net = \"resnet20\"\nremove", "net = \"other\"\nremove", "no net called `other`"),
            ("\"grad-flow\", ", "\"best\", ", "which is this one"),
            ("name = \"resnet20\"\n", "name = \"../x\"\n", "part of files' names"),
            (criteria, "criteria = [\"random\"]", "no `criteria` beside `random`"),
            ("finetune = 1", "finetune = 0", "expected 1 epoch or more"),
            ("epsilons = [4.0", "epsilons = [-4.0", "an ε of `[robustness]` is -4"),
            ("pgd_epsilon = 16.0", "pgd_epsilon = nan", "is NaN"),
            ("[data]", "[carbon]\npue = -1.0\n\n[data]", "`pue` of `[carbon]` is -1"),
            ("blocks = [3, 3, 3]", "blocks = []", "net `resnet20`: "),
            ("filters = [\"l1\"]", "filters = [\"l1\"]\nmatchings = []", "need `matchings`"),
            ("filters = [\"l1\"]", "filters = [\"l1\"]\nmatchings = [\"time\", \"time\"]", "stands twice"),
        ] {
            assert!(text.contains(from), "{from}");
            let error = Config::parse(&text.replacen(from, to, 1), Path::new("")).unwrap_err();
            assert!(format!("{error:#}").contains(part), "{part}: {error:#}");
        }
    }
}
