//! `scruple share bench`: what sharing is worth against dense training, against its own constant, and against every other
//! way to make a small net smaller.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::Result;
use scruple_compress::{
    nn::{Architecture, Shortcut, train::Augmentation},
    sharing::bench::{
        Data, Ground, Method, Store, equality,
        ground::Schooling,
        interval,
        pareto::{self, Extent},
        stability,
    },
};
use serde::Serialize;

use crate::{
    printer,
    record::{self, Run},
};

mod tables;

mod pictures;

/// The seed of suites that need one run.
const SEED: u64 = 1;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Suite {
    /// A pool as large as the weights against dense training
    Equality,
    /// Accuracy against the size the pool begins at
    Stability,
    /// Accuracy against bytes, for every way to make the net small
    Pareto,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Equality => "equality",
            Self::Stability => "stability",
            Self::Pareto => "pareto",
        }
    }
}

/// On what net and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Preset {
    /// A net of some thousand weights, seconds: to see that all works
    Small,
    /// 196-128-64-10 on images of 14 × 14 pixels, 12 epochs, minutes
    Full,
    /// ResNet-20 of width 8, 15 epochs, hours
    Resnet,
}

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What to measure
    #[arg(long, value_enum)]
    suite: Suite,
    /// On what net and for how long
    #[arg(long, value_enum, default_value = "full")]
    preset: Preset,
    /// Labelled images: IDX, CIFAR in binary form, digits as CSV, numpy; `glyphs` draws some
    #[arg(long, default_value = "glyphs")]
    data: String,
    /// Labelled images to test on; a quarter of --data without it
    #[arg(long)]
    test: Option<PathBuf>,
    /// Weights a slot of the pool serves, several with commas; stability and pareto
    #[arg(long, value_delimiter = ',')]
    rates: Vec<f64>,
    /// Contestants, several with commas; pareto
    #[arg(long, value_delimiter = ',')]
    methods: Vec<String>,
    /// Runs of each contestant; pareto
    #[arg(long)]
    seeds: Option<u64>,
    /// Folder for records, tables and pictures; runs it has are not made again
    #[arg(short, long)]
    output: PathBuf,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
}

/// What a suite found, with what it was found on.
#[derive(Debug, Serialize)]
struct Record<T: Serialize> {
    suite: Suite,
    preset: Preset,
    train_images: usize,
    test_images: usize,
    schooling: Schooling,
    found: T,
}

impl Arguments {
    fn check(&self) -> Result<()> {
        let pareto = self.suite == Suite::Pareto;
        anyhow::ensure!(pareto || self.methods.is_empty(), "--methods belongs to --suite pareto");
        anyhow::ensure!(pareto || self.seeds.is_none(), "--seeds belongs to --suite pareto");
        anyhow::ensure!(
            self.suite != Suite::Equality || self.rates.is_empty(),
            "--rates belongs to the other suites: equality is about rate 1"
        );
        if let Some(rate) = self.rates.iter().find(|rate| !(**rate >= 1.0 && rate.is_finite())) {
            anyhow::bail!("--rates has {rate}, expected 1 (a pool as large as the weights) or more");
        }
        if let Some(seeds) = self.seeds.filter(|&seeds| seeds == 0 || seeds > interval::MOST as u64) {
            anyhow::bail!("--seeds is {seeds}, expected 1 to {}", interval::MOST);
        }
        anyhow::ensure!(
            self.data != "glyphs" || self.test.is_none(),
            "--test names a file, but --data is `glyphs`, which come with others to test on; name a file there too"
        );
        Ok(())
    }

    fn data(&self) -> Result<Data> {
        let (train, test) = match self.preset {
            Preset::Small => (400, 1_000),
            Preset::Full | Preset::Resnet => (8_000, 2_700),
        };
        Ok(match self.data.as_str() {
            "glyphs" => Data::glyphs(train, test)?,
            file => Data::read(Path::new(file), self.test.as_deref())?,
        })
    }

    fn schooling(&self, data: &Data) -> Result<Schooling> {
        let mlp = |hidden: &[usize], epochs, batch| Schooling {
            architecture: Architecture::Mlp { hidden: hidden.to_vec(), norm: false },
            epochs,
            batch,
            sgd_peak: 0.05,
            adam_peak: 0.002,
            augmentation: Augmentation::default(),
            scored_on: 1_000,
            rewind: 60,
            pruned_a_round: 0.2,
        };
        Ok(match (self.preset, self.suite) {
            // Equality is about a run of more than a thousand steps.
            (Preset::Small, Suite::Equality) => mlp(&[24], 80, 32),
            (Preset::Small, Suite::Stability) => mlp(&[40, 24], 12, 32),
            (Preset::Small, Suite::Pareto) => Schooling { rewind: 10, pruned_a_round: 0.6, ..mlp(&[24], 4, 32) },
            (Preset::Full, _) => mlp(&[128, 64], 12, 64),
            (Preset::Resnet, _) => {
                let colour = data.train.channels == 3;
                Schooling {
                    architecture: Architecture::resnet(20, 8, Shortcut::Slice)?,
                    // Usual for photographs; signs and digits mean something else when turned around.
                    augmentation: if colour { Augmentation { shift: 4, flip: true } } else { Augmentation::default() },
                    rewind: 157,
                    pruned_a_round: 0.5,
                    ..mlp(&[1], 15, 64)
                }
            }
        })
    }

    fn rates(&self, usual: &[f64]) -> Vec<f64> {
        let mut rates = if self.rates.is_empty() { usual.to_vec() } else { self.rates.clone() };
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        rates
    }

    fn extent(&self) -> Result<Extent> {
        let named = |name: &String| {
            Method::ALL.into_iter().find(|method| method.name() == name).ok_or_else(|| {
                let names: Vec<&str> = Method::ALL.iter().map(|method| method.name()).collect();
                anyhow::anyhow!("--methods has `{name}`, expected of {}", names.join(", "))
            })
        };
        let strongest = || {
            vec![
                Method::Dense,
                Method::Fold,
                Method::Small,
                Method::Synflow,
                Method::Lottery,
                Method::Int8,
                Method::Int4,
            ]
        };
        let (rates, methods, seeds): (&[f64], Vec<Method>, u64) = match self.preset {
            Preset::Small => (&[4.0, 16.0], Method::ALL.to_vec(), 2),
            Preset::Full => (&[2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0], Method::ALL.to_vec(), 3),
            Preset::Resnet => (&[4.0, 16.0, 64.0, 256.0], strongest(), 3),
        };
        let mut methods = match self.methods.is_empty() {
            true => methods,
            false => self.methods.iter().map(named).collect::<Result<Vec<Method>>>()?,
        };
        methods.sort_by_key(|method| Method::ALL.iter().position(|other| other == method));
        methods.dedup();
        Ok(Extent { methods, rates: self.rates(rates), seeds: self.seeds.unwrap_or(seeds) })
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("share bench");
    arguments.check()?;
    let extent = arguments.extent()?;
    let data = arguments.data()?;
    let schooling = arguments.schooling(&data)?;
    let ground = Ground::new(data, schooling)?;
    let told = Told::default();
    let hears = |name: &str| told.hears(name);
    let store = Store::open(&arguments.output, arguments.suite.name(), &ground, &hears)?;
    let chance = 1.0 / ground.spec.classes as f64;
    let passes = match arguments.suite {
        Suite::Equality => {
            let found = equality::run(&ground, &store, SEED)?;
            let passes = found.passes;
            arguments.finish(&ground, &clock, found, tables::equality, |_, _| Ok(()))?;
            passes
        }
        Suite::Stability => {
            let usual: &[f64] = if arguments.preset == Preset::Small { &[8.0] } else { &[1.0, 8.0, 32.0] };
            let found = stability::run(&ground, &store, &arguments.rates(usual), SEED)?;
            let passes = found.passes;
            arguments.finish(&ground, &clock, found, tables::stability, |found, out| {
                pictures::stability(found, chance, out)
            })?;
            passes
        }
        Suite::Pareto => {
            let found = pareto::run(&ground, &store, &extent)?;
            arguments.finish(&ground, &clock, found, tables::pareto, pictures::pareto)?;
            true
        }
    };
    Ok(if passes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Arguments {
    fn finish<T: Serialize>(
        &self,
        ground: &Ground,
        clock: &Run,
        found: T,
        print: impl Fn(&T),
        draw: impl Fn(&T, &Path) -> Result<()>,
    ) -> Result<()> {
        let record = Record {
            suite: self.suite,
            preset: self.preset,
            train_images: ground.data.train.len(),
            test_images: ground.data.test.len(),
            schooling: ground.schooling.clone(),
            found,
        };
        draw(&record.found, &self.output)?;
        record::save(&self.output, self.suite.name(), &record, clock)?;
        if self.json {
            printer::json(&record)
        } else {
            print(&record.found);
            Ok(())
        }
    }
}

/// Says every ten seconds how far a suite is.
struct Told(Mutex<(HashSet<String>, Instant)>);

impl Default for Told {
    fn default() -> Self {
        Self(Mutex::new((HashSet::new(), Instant::now())))
    }
}

impl Told {
    fn hears(&self, name: &str) {
        // Talk that is lost with a thread that panicked is no loss.
        let Ok(mut told) = self.0.lock() else { return };
        told.0.insert(name.to_string());
        if told.1.elapsed() > Duration::from_secs(10) {
            told.1 = Instant::now();
            printer::say(format!("{} runs on record, the latest is {name}", told.0.len()));
        }
    }
}
