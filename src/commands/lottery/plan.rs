//! Which trainings are asked for, and in which order: the gate on every net, then setting by setting.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use scruple_compress::{
    clock::cpu_seconds,
    lottery::{
        Allocation, Stages, Ticket, criteria,
        filters::{self, Matching},
        identities::identities,
        scene::Scene,
    },
    nn::{Spec, Weights},
};
use serde::{Deserialize, Serialize};

use super::{
    assemble::{self, Assembly},
    bench::{Bench, DENSE, Record},
    compare::{LEAST_SEEDS, Spread},
    config::{BEST, NetKeys, Setting},
    job::{Job, Start},
    report::{self, Compared, Gate, Kind, Report, SearchCost, Sums, Tried},
};
use crate::{curve::place::file_name, printer, record};

/// What a criterion made of one net.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pick {
    /// The criterion.
    pub criterion: String,
    /// What to know of its scores.
    pub label: Option<String>,
    /// Why there is nothing.
    pub refused: Option<String>,
    /// The blocks it keeps of each stage.
    pub kept: Vec<Vec<usize>>,
    /// Its number for each block, stage by stage; nothing for those that stay in any case.
    pub scores: Vec<Option<f64>>,
}

/// A net, and what of it is trained in any case.
pub struct Family<'a> {
    /// What was asked.
    pub keys: &'a NetKeys,
    /// The dense net.
    pub spec: Spec,
    /// Its blocks a stage.
    pub blocks: Vec<usize>,
    /// Its trainings, seed by seed.
    pub dense: Vec<Record>,
    /// Whether depth pays.
    pub gate: Gate,
}

/// Carries out the experiment; only the gate, where that is asked.
pub fn run(bench: &Bench<'_>, gate_only: bool) -> Result<Report> {
    let config = bench.config;
    let mut trainings = Vec::new();
    let mut families = Vec::new();
    for keys in &config.nets {
        families.push(gate(bench, keys, &mut trainings)?);
    }
    let mut settings: Vec<Tried> = Vec::new();
    let mut sums = Vec::new();
    if !gate_only {
        for family in &families {
            sums.push(normed_sums(bench, family)?);
        }
        let mut best = None;
        for setting in &config.settings {
            let family = families.iter().find(|family| family.keys.name == setting.net).context("a net is missing")?;
            let tried = Trial { bench, setting, family, best: best.as_deref() }.run(&mut trainings)?;
            if best.is_none() {
                best = assemble::best(&tried);
            }
            settings.push(tried);
        }
    }
    let gates: Vec<Gate> = families.into_iter().map(|family| family.gate).collect();
    let mut verdict: Vec<String> = gates.iter().map(Gate::told).collect();
    verdict.extend(settings.iter().flat_map(report::told));
    let (train, test) = (&bench.images.train, &bench.images.test);
    trainings.dedup();
    Ok(Report {
        scruple: env!("CARGO_PKG_VERSION"),
        name: config.name.clone(),
        data: format!(
            "{} images to train on, {} to test, {} × {} × {}",
            train.len(),
            test.len(),
            train.height,
            train.width,
            train.channels
        ),
        epochs: config.recipe.epochs,
        seeds: config.seeds.clone(),
        margin: config.margin,
        gates,
        settings,
        identities: sums,
        verdict,
        trainings,
    })
}

fn allocated(bench: &Bench<'_>, net: &str, dense: &Spec, allocation: &Allocation, seed: u64) -> Result<Job> {
    let whole = bench.dense_job(net, seed)?;
    Ok(match Stages::of(dense)?.blocks == allocation.0 {
        true => whole,
        false => Job { arm: allocation.to_string(), spec: Ticket::keeping(dense, allocation.first())?.spec, ..whole },
    })
}

fn note(trainings: &mut Vec<String>, jobs: &[Job]) {
    for name in jobs.iter().map(Job::name) {
        if !trainings.contains(&name) {
            trainings.push(name);
        }
    }
}

/// Trains a dense net and the shallowest of its family over all seeds.
fn gate<'a>(bench: &Bench<'_>, keys: &'a NetKeys, trainings: &mut Vec<String>) -> Result<Family<'a>> {
    let spec = bench.dense(&keys.name)?;
    let blocks = Stages::of(&spec)?.blocks;
    let shallowest = Allocation::shallowest(&blocks, keys.minimum);
    let seeds = &bench.config.seeds;
    let jobs = |allocation: &Allocation| -> Result<Vec<Job>> {
        seeds.iter().map(|&seed| allocated(bench, &keys.name, &spec, allocation, seed)).collect()
    };
    let (dense_jobs, shallow_jobs) = (jobs(&Allocation(blocks.clone()))?, jobs(&shallowest)?);
    // Pair by pair, so that a run that is stopped leaves whole ones.
    let pairs: Vec<Job> = dense_jobs.iter().zip(&shallow_jobs).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    let records = bench.train(&pairs)?;
    let (dense, shallow): (Vec<Record>, Vec<Record>) =
        records.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).unzip();
    note(trainings, &dense_jobs);
    note(trainings, &shallow_jobs);
    let accuracy = |records: &[Record]| Spread::of(records.iter().map(Record::accuracy).collect());
    let gain = dense.iter().zip(&shallow).map(|(dense, shallow)| dense.accuracy() - shallow.accuracy());
    let depth_gain = Spread::of(gain.collect());
    let pays = depth_gain.values.len() >= LEAST_SEEDS && depth_gain.interval.is_some_and(|(low, _)| low > 0.0);
    let gate = Gate {
        net: keys.name.clone(),
        dense: Allocation(blocks.clone()).to_string(),
        shallow: shallowest.to_string(),
        dense_accuracy: accuracy(&dense),
        shallow_accuracy: accuracy(&shallow),
        depth_gain,
        pays,
    };
    printer::say(gate.told());
    Ok(Family { keys, spec, blocks, dense, gate })
}

/// The identities of batch norm on the user's own net and images.
fn normed_sums(bench: &Bench<'_>, family: &Family<'_>) -> Result<Sums> {
    let weights = Weights::start(&family.spec.graph()?, bench.config.seeds[0]);
    let scaling = bench.images.train.scaling();
    let mut scene = Scene::new(&family.spec, &weights, false, &bench.scored, &scaling, 0)?;
    let found = identities(&mut scene)?;
    let normed = || found.iter().filter(|layer| layer.normed);
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    Ok(Sums {
        net: family.keys.name.clone(),
        layers: normed().count(),
        signed_snip: most(&mut normed().map(|layer| layer.signed.abs() / layer.absolute.max(f64::MIN_POSITIVE))),
        grasp_apart: most(
            &mut normed().map(|layer| {
                (layer.grasp - layer.squared_gradient).abs() / layer.squared_gradient.max(f64::MIN_POSITIVE)
            }),
        ),
    })
}

/// The name of what a criterion's scoring took.
fn search_file(setting: &str, state: &str, criterion: &str, seed: u64) -> String {
    format!("search-{}-{state}-{}-s{seed}", file_name(setting), file_name(criterion))
}

/// What a state is called in files.
fn state_name(trained: bool) -> &'static str {
    if trained { "trained" } else { "start" }
}

/// What choosing an arm took on a processor, where it was chosen: the mean over seeds. Scores of trained nets alone, without the
/// training.
pub fn search_costs(
    bench: &Bench<'_>,
    tried: &Tried,
    one: &Compared,
    cpu: &Option<String>,
) -> Result<Option<SearchCost>> {
    let mut found = Vec::new();
    let (name, criterion) = (&one.name, one.criterion.as_deref().unwrap_or(&one.name));
    for &seed in &bench.config.seeds {
        let file = search_file(&tried.name, state_name(one.kind == Kind::After), criterion, seed);
        let cost = bench.cost(&file)?.filter(|cost| cost.cpu == *cpu);
        found.extend(cost.map(|cost| cost.cpu_seconds));
    }
    let cpu_seconds = found.iter().sum::<f64>() / found.len().max(1) as f64;
    let (setting, criterion) = (tried.name.clone(), name.clone());
    Ok((!found.is_empty()).then_some(SearchCost { setting, criterion, cpu_seconds, break_even: None }))
}

/// One setting in the making.
struct Trial<'a> {
    bench: &'a Bench<'a>,
    setting: &'a Setting,
    family: &'a Family<'a>,
    best: Option<&'a str>,
}

/// What is compared, before it is trained.
pub struct Arm {
    /// What it is called.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// The criterion that chose it, where its name says more.
    pub criterion: Option<String>,
    /// Names of trainings, seed by seed.
    pub seeds: Vec<Vec<String>>,
}

/// A training and whose it is.
struct Asked {
    kind: Kind,
    name: String,
    criterion: Option<String>,
    job: Job,
}

impl Asked {
    fn new(kind: Kind, name: impl Into<String>, job: Job) -> Self {
        Self { kind, name: name.into(), criterion: None, job }
    }

    fn by(self, criterion: &str) -> Self {
        Self { criterion: Some(criterion.into()), ..self }
    }
}

/// Draws of `random` beside the others, as their seeds.
const DRAWS: u64 = 1000;

/// What successive halving is called.
pub const HALVING: &str = "halving";

/// Version of the criteria: scores of another are not taken over.
const FORMULAS: usize = 1;

impl Trial<'_> {
    fn seeds(&self) -> &[u64] {
        &self.bench.config.seeds
    }

    fn epochs(&self) -> u64 {
        self.bench.config.recipe.epochs
    }

    /// The setting's criteria before training, `best` by its name, `random` last.
    fn criteria(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let asked =
            self.setting.criteria.iter().map(|name| if name == BEST { self.best.unwrap_or("uniform") } else { name });
        for name in asked.filter(|&name| name != "random") {
            if !names.iter().any(|known| known == name) {
                names.push(name.into());
            }
        }
        names
    }

    /// Which blocks each criterion keeps of one seed's net, before training or after; draws of `random` one by one.
    fn picks(&self, seed: u64, names: &[String], trained: bool) -> Result<Vec<Pick>> {
        let state = state_name(trained);
        let file = format!("{}-{state}-s{seed}", file_name(&self.setting.name));
        let draws = if trained { 0 } else { self.bench.config.random };
        let of_seed = || self.family.dense.iter().find(|record| record.job.seed == seed);
        let weights = of_seed().filter(|_| trained).map(|record| &record.weights_sha256);
        let (spec, remove, minimum) = (&self.family.spec, self.setting.remove, self.family.keys.minimum);
        let asked = (FORMULAS, spec, weights, names, remove, minimum, draws);
        self.bench.remember(&file, &asked, || {
            let weights = match trained {
                true => self.bench.dense_weights(&self.setting.net, spec, seed, None)?,
                false => Weights::start(&spec.graph()?, seed),
            };
            let scaling = self.bench.images.train.scaling();
            let mut picks = Vec::new();
            let draws = (1..=draws).map(|draw| (format!("random-{draw}"), seed * DRAWS + draw as u64));
            for (name, drawn) in names.iter().map(|name| (name.clone(), seed)).chain(draws) {
                let criterion = criteria::find(if name.starts_with("random-") { "random" } else { &name })?;
                let started = cpu_seconds();
                let mut scene = Scene::new(spec, &weights, trained, &self.bench.scored, &scaling, drawn)?;
                let found = criteria::score(criterion, &mut scene);
                let mut pick =
                    Pick { criterion: name.clone(), label: None, refused: None, kept: Vec::new(), scores: Vec::new() };
                match found {
                    Ok(scores) => {
                        pick.kept = scores.choose(self.setting.remove, self.family.keys.minimum)?;
                        (pick.label, pick.scores) = (scores.label.map(String::from), scores.scores);
                        let spent = cpu_seconds() - started;
                        self.bench.spent(
                            &search_file(&self.setting.name, state, &name, seed),
                            spent,
                            record::cpu_model(),
                        )?;
                    }
                    // What cannot be scored is told; the others go on.
                    Err(error) => pick.refused = Some(error.to_string()),
                }
                picks.push(pick);
            }
            Ok(picks)
        })
    }

    fn job(&self, allocation: &Allocation, seed: u64) -> Result<Job> {
        allocated(self.bench, &self.setting.net, &self.family.spec, allocation, seed)
    }

    /// The allocation that successive halving (η = 3) leaves for a seed: all for a ninth of the epochs, the best third for a
    /// third, by images held out of those to train on.
    fn halved(&self, seed: u64, trainings: &mut Vec<String>) -> Result<Allocation> {
        let mut left = Allocation::all(&self.family.blocks, self.setting.remove, self.family.keys.minimum)?;
        let (mut spent, mut processors, mut counted) = (0.0, BTreeSet::new(), BTreeSet::new());
        for (part, keep) in [(9, left.len().div_ceil(3)), (3, 1)] {
            let epochs = self.epochs().div_ceil(part);
            let job = |allocation: &Allocation| -> Result<Job> {
                let job = self.job(allocation, seed)?;
                Ok(Job { arm: format!("{allocation}-halving-e{epochs}"), epochs, held_out: true, ..job })
            };
            let jobs = left.iter().map(job).collect::<Result<Vec<Job>>>()?;
            let records = self.bench.train(&jobs)?;
            note(trainings, &jobs);
            for name in jobs.iter().map(Job::name) {
                let cost = self.bench.cost(&name)?.filter(|cost| !cost.partial);
                // Where both rounds come to one epoch they are the same trainings.
                if counted.insert(name) {
                    spent += cost.as_ref().map_or(0.0, |cost| cost.cpu_seconds);
                    processors.insert(cost.and_then(|cost| cost.cpu));
                }
            }
            let mut order: Vec<usize> = (0..left.len()).collect();
            order.sort_by_key(|&at| std::cmp::Reverse(records[at].right));
            left = order.into_iter().take(keep).map(|at| left[at].clone()).collect();
        }
        // Trials on several processors, or interrupted ones, have no sum.
        let cpu = processors.pop_first().flatten().filter(|_| processors.is_empty());
        self.bench.spent(&search_file(&self.setting.name, state_name(false), HALVING, seed), spent, cpu)?;
        left.pop().context("successive halving left nothing")
    }

    /// Every training of the setting by the name of its arm, seed by seed.
    fn run(&self, trainings: &mut Vec<String>) -> Result<Tried> {
        let (setting, family) = (self.setting, self.family);
        let names = self.criteria();
        let lead = names.first().cloned().context("`random` leads nobody: give another criterion")?;
        let mut picks: Vec<Vec<Pick>> = Vec::new();
        for &seed in self.seeds() {
            picks.push(self.picks(seed, &names, false)?);
        }
        let (mut jobs, mut arms, mut after): (Vec<Job>, Vec<Arm>, Vec<Vec<Pick>>) = Default::default();
        let mut missing = Vec::new();
        for (at, &seed) in self.seeds().iter().enumerate() {
            let mut asked = Vec::new();
            for pick in picks[at].iter().filter(|pick| pick.refused.is_none()) {
                let (kind, arm) = match pick.criterion.as_str() {
                    random if random.starts_with("random-") => (Kind::Baseline, "random"),
                    "uniform" => (Kind::Baseline, "uniform"),
                    criterion => (Kind::Before, criterion),
                };
                asked.push(Asked::new(kind, arm, self.job(&Allocation::of(&pick.kept), seed)?));
            }
            let shallowest = self.job(&Allocation::shallowest(&family.blocks, family.keys.minimum), seed)?;
            asked.push(Asked::new(Kind::Baseline, "shallowest", shallowest));
            let leading = picks[at].iter().find(|pick| pick.criterion == lead);
            let leading = leading.filter(|pick| pick.refused.is_none());
            let leading = leading.with_context(|| format!("the leading criterion `{lead}` does not score this net"))?;
            asked.extend(self.controls(&leading.kept, &lead, seed, &mut missing)?);
            if setting.halving {
                let halved = self.job(&self.halved(seed, trainings)?, seed)?;
                asked.push(Asked::new(Kind::Baseline, HALVING, halved));
            }
            if !setting.trained.is_empty() {
                let picks = self.picks(seed, &setting.trained, true)?;
                asked.extend(self.after_training(seed, &picks)?);
                after.push(picks);
            }
            for Asked { kind, name, criterion, job } in asked {
                let found = arms.iter().position(|arm| arm.name == name).unwrap_or_else(|| {
                    arms.push(Arm { name, kind, criterion, seeds: vec![Vec::new(); self.seeds().len()] });
                    arms.len() - 1
                });
                arms[found].seeds[at].push(job.name());
                jobs.push(job);
            }
        }
        let records = self.bench.train(&jobs)?;
        note(trainings, &jobs);
        let records = jobs.iter().map(Job::name).zip(records).collect();
        let assembly = Assembly {
            bench: self.bench,
            family,
            name: &setting.name,
            removed: setting.remove,
            lead: &lead,
            before: &picks,
            after: &after,
            arms: &arms,
            missing,
            records: &records,
        };
        Ok(assembly.tried())
    }

    /// The rivals of the leading ticket, which keeps these blocks; what cannot be had is told in `missing`.
    fn controls(
        &self,
        kept: &[Vec<usize>],
        lead: &str,
        seed: u64,
        missing: &mut Vec<(String, String)>,
    ) -> Result<Vec<Asked>> {
        let allocation = Allocation::of(kept);
        let ticket = self.job(&allocation, seed)?;
        let macs = |spec: &Spec| -> Result<f64> { Ok(spec.graph()?.multiply_adds() as f64) };
        let mut asked = Vec::new();
        if self.setting.own_blocks {
            let own = match kept == allocation.first() {
                true => ticket.clone(),
                false => self.rewound(seed, kept, Some(0), 0)?,
            };
            asked.push(Asked::new(Kind::Before, format!("own blocks of {lead}"), own).by(lead));
        }
        if self.setting.reinit {
            let fresh = Job { arm: format!("{allocation}-reinit"), start: Start::Reinit, ..ticket.clone() };
            asked.push(Asked::new(Kind::Baseline, "reinit", fresh));
        }
        for &matching in self.setting.matchings.iter().filter(|_| !self.setting.filters.is_empty()) {
            let thinned = self.thinned(&allocation, &ticket.spec, matching)?;
            for &criterion in &self.setting.filters {
                let (word, start) = (matching.name(), Start::Filters { criterion });
                let arm = format!("filters-{word}-{}-for-{allocation}", criterion.name());
                let name = format!("filters by {}, equal {word}", criterion.name());
                let spec = match &thinned {
                    Ok(spec) => spec,
                    Err(why) => {
                        let why = format!("no filter ticket is as large as {allocation}: {why}");
                        printer::warn(format!("{}: {name}: {why}", self.setting.name));
                        missing.push((name, why));
                        continue;
                    }
                };
                asked.push(Asked::new(Kind::Filters, name, Job { arm, spec: spec.clone(), start, ..ticket.clone() }));
            }
        }
        if self.setting.equal_compute {
            let ratio = macs(&ticket.spec)? / macs(&self.family.spec)?;
            let epochs = |factor: f64| ((self.epochs() as f64 * factor).round() as u64).max(1);
            let (longer, shorter) = (epochs(1.0 / ratio), epochs(ratio));
            let ticket = Job { arm: format!("{allocation}-e{longer}"), epochs: longer, ..ticket };
            asked.push(Asked::new(Kind::Compute, "ticket, more epochs", ticket));
            let dense = self.job(&Allocation(self.family.blocks.clone()), seed)?;
            let dense = Job { arm: format!("dense-e{shorter}"), epochs: shorter, ..dense };
            asked.push(Asked::new(Kind::Compute, "dense, fewer epochs", dense));
        }
        Ok(asked)
    }

    /// The filter ticket that is as large as a layer ticket; where the thinnest one is still larger, how much.
    fn thinned(&self, allocation: &Allocation, ticket: &Spec, matching: Matching) -> Result<Result<Spec, String>> {
        let dense = &self.family.spec;
        Ok(match matching {
            Matching::Count => filters::of_equal_count(dense, ticket)?
                .ok_or_else(|| "there are not as many filters between convolutions".into()),
            Matching::Macs => {
                let most = ticket.graph()?.multiply_adds();
                filters::largest_that(dense, |thin| Ok(thin.graph()?.multiply_adds() <= most))?
                    .ok_or_else(|| "one filter a block has more multiply-adds".into())
            }
            Matching::Time => self
                .bench
                .as_quick(&self.setting.net, &allocation.to_string(), dense, ticket)?
                .map_err(|ratio| format!("one filter a block takes {ratio:.2} times its time on this machine")),
        })
    }

    /// Blocks of the dense net as they were at an epoch (at the end without one), trained from `from_epoch` of the schedule on.
    fn rewound(&self, seed: u64, kept: &[Vec<usize>], epoch: Option<u64>, from_epoch: u64) -> Result<Job> {
        let spec = &self.family.spec;
        let word =
            epoch.map_or_else(|| format!("finetune{}", self.epochs() - from_epoch), |epoch| format!("rewind{epoch}"));
        let whole = *kept == Allocation(self.family.blocks.clone()).first();
        let blocks = |kept: &Vec<usize>| kept.iter().map(usize::to_string).collect::<Vec<_>>().join(".");
        let blocks = kept.iter().map(blocks).collect::<Vec<_>>().join("-");
        let arm = if whole { format!("{DENSE}-{word}") } else { format!("kept-{blocks}-{word}") };
        let spec = if whole { spec.clone() } else { Ticket::keeping(spec, kept.to_vec())?.spec };
        let start = Start::Rewound { epoch, kept: kept.to_vec() };
        Ok(Job { arm, spec, start, from_epoch, ..self.bench.dense_job(&self.setting.net, seed)? })
    }

    /// Tickets of trained nets: the paper's algorithm 1; and where they are fine-tuned, the dense net with as many epochs more.
    fn after_training(&self, seed: u64, picks: &[Pick]) -> Result<Vec<Asked>> {
        let mut asked = Vec::new();
        for pick in picks {
            let name = &pick.criterion;
            if let Some(why) = &pick.refused {
                printer::warn(format!("{name}: {why}"));
                continue;
            }
            let kind = if matches!(name.as_str(), "random" | "uniform") { Kind::Baseline } else { Kind::After };
            for &epoch in &self.setting.rewind {
                let job = self.rewound(seed, &pick.kept, Some(epoch), epoch)?;
                asked.push(Asked::new(kind, format!("{name} rewound to {epoch}"), job).by(name));
            }
            if let Some(tuned) = self.setting.finetune {
                let job = self.rewound(seed, &pick.kept, None, self.epochs() - tuned)?;
                asked.push(Asked::new(kind, format!("{name} fine-tuned {tuned}"), job).by(name));
            }
        }
        if let Some(tuned) = self.setting.finetune {
            let job =
                self.rewound(seed, &Allocation(self.family.blocks.clone()).first(), None, self.epochs() - tuned)?;
            asked.push(Asked::new(Kind::Compute, format!("dense fine-tuned {tuned}"), job));
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use scruple_compress::lottery::criteria::State;

    use super::*;

    #[test]
    fn states_of_criteria_are_those_the_plan_relies_on() {
        for name in ["random", "uniform"] {
            assert_eq!(criteria::find(name).unwrap().state(), State::Any);
        }
    }
}
