//! Which trainings are asked for, and in which order: the gate on every net, then setting by setting.

use std::collections::{BTreeMap, BTreeSet};

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
    bench::{Bench, Record},
    compare::{LEAST_SEEDS, Spread},
    config::{BEST, NetKeys, Setting},
    job::{Job, Start},
    report::{self, Arms, Chosen, Gate, Kind, Report, SearchCost, Sums, Tried},
};
use crate::{curve::place::file_name, printer, record};

/// What a criterion made of one net.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pick {
    criterion: String,
    label: Option<String>,
    /// Why there is nothing.
    refused: Option<String>,
    kept: Vec<Vec<usize>>,
    scores: Vec<Option<f64>>,
}

/// A net, and what of it is trained in any case.
struct Family<'a> {
    keys: &'a NetKeys,
    spec: Spec,
    blocks: Vec<usize>,
    dense: Vec<Record>,
    gate: Gate,
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
                let ours = tried.compared.iter().filter(|one| one.kind == Kind::Before);
                best = ours.max_by(|a, b| a.accuracy.mean.total_cmp(&b.accuracy.mean)).map(|one| one.name.clone());
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
fn search_file(setting: &str, criterion: &str, seed: u64) -> String {
    format!("search-{}-{}-s{seed}", file_name(setting), file_name(criterion))
}

/// What choosing took on a processor, where an arm of this name was chosen: the mean over seeds.
pub fn search_costs(bench: &Bench<'_>, tried: &Tried, name: &str, cpu: &Option<String>) -> Result<Option<SearchCost>> {
    let mut found = Vec::new();
    for &seed in &bench.config.seeds {
        let cost = bench.cost(&search_file(&tried.name, name, seed))?.filter(|cost| cost.cpu == *cpu);
        found.extend(cost.map(|cost| cost.cpu_seconds));
    }
    let cpu_seconds = found.iter().sum::<f64>() / found.len().max(1) as f64;
    let (setting, criterion) = (tried.name.clone(), name.to_string());
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
struct Arm {
    name: String,
    kind: Kind,
    /// Names of trainings, seed by seed.
    seeds: Vec<Vec<String>>,
}

/// Draws of `random` beside the others, as their seeds.
const DRAWS: u64 = 1000;

/// What successive halving is called.
const HALVING: &str = "halving";

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
        let state = if trained { "trained" } else { "start" };
        let file = format!("{}-{state}-s{seed}", file_name(&self.setting.name));
        let draws = if trained { 0 } else { self.bench.config.random };
        let asked = (&self.setting.net, names, self.setting.remove, self.family.keys.minimum, draws);
        self.bench.remember(&file, &asked, || {
            let spec = &self.family.spec;
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
                        self.bench.spent(&search_file(&self.setting.name, &name, seed), spent, record::cpu_model())?;
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
    fn halved(&self, seed: u64) -> Result<Allocation> {
        let mut left = Allocation::all(&self.family.blocks, self.setting.remove, self.family.keys.minimum)?;
        let (mut spent, mut processors) = (0.0, BTreeSet::new());
        for (part, keep) in [(9, left.len().div_ceil(3)), (3, 1)] {
            let epochs = self.epochs().div_ceil(part);
            let job = |allocation: &Allocation| -> Result<Job> {
                let job = self.job(allocation, seed)?;
                Ok(Job { arm: format!("{allocation}-halving-e{epochs}"), epochs, held_out: true, ..job })
            };
            let jobs = left.iter().map(job).collect::<Result<Vec<Job>>>()?;
            let records = self.bench.train(&jobs)?;
            for job in &jobs {
                let cost = self.bench.cost(&job.name())?;
                spent += cost.as_ref().map_or(0.0, |cost| cost.cpu_seconds);
                processors.insert(cost.and_then(|cost| cost.cpu));
            }
            let mut order: Vec<usize> = (0..left.len()).collect();
            order.sort_by_key(|&at| std::cmp::Reverse(records[at].right));
            left = order.into_iter().take(keep).map(|at| left[at].clone()).collect();
        }
        let cpu = processors.pop_first().flatten().filter(|_| processors.is_empty());
        self.bench.spent(&search_file(&self.setting.name, HALVING, seed), spent, cpu)?;
        left.pop().context("successive halving left nothing")
    }

    /// Every training of the setting by the name of its arm, seed by seed.
    fn run(&self, trainings: &mut Vec<String>) -> Result<Tried> {
        let (setting, family) = (self.setting, self.family);
        let names = self.criteria();
        let lead = names.first().cloned().unwrap_or_else(|| "random".into());
        let mut picks: Vec<Vec<Pick>> = Vec::new();
        for &seed in self.seeds() {
            picks.push(self.picks(seed, &names, false)?);
        }
        let (mut jobs, mut arms): (Vec<Job>, Vec<Arm>) = Default::default();
        let mut ask = |kind: Kind, name: &str, seed_at: usize, job: Job| {
            let at = arms.iter().position(|arm| arm.name == name).unwrap_or_else(|| {
                arms.push(Arm { name: name.into(), kind, seeds: vec![Vec::new(); self.seeds().len()] });
                arms.len() - 1
            });
            arms[at].seeds[seed_at].push(job.name());
            jobs.push(job);
        };
        let mut after = Vec::new();
        for (at, &seed) in self.seeds().iter().enumerate() {
            for pick in picks[at].iter().filter(|pick| pick.refused.is_none()) {
                let (kind, arm) = match pick.criterion.as_str() {
                    random if random.starts_with("random-") => (Kind::Baseline, "random"),
                    "uniform" => (Kind::Baseline, "uniform"),
                    criterion => (Kind::Before, criterion),
                };
                ask(kind, arm, at, self.job(&Allocation::of(&pick.kept), seed)?);
            }
            let shallowest = self.job(&Allocation::shallowest(&family.blocks, family.keys.minimum), seed)?;
            ask(Kind::Baseline, "shallowest", at, shallowest);
            let leading = picks[at].iter().find(|pick| pick.criterion == lead || lead == "random");
            let leading = leading.filter(|pick| pick.refused.is_none());
            let leading = leading.with_context(|| format!("the leading criterion `{lead}` does not score this net"))?;
            self.controls(&Allocation::of(&leading.kept), at, seed, &mut ask)?;
            if setting.halving {
                ask(Kind::Baseline, HALVING, at, self.job(&self.halved(seed)?, seed)?);
            }
            after.push(self.after_training(at, seed, &mut ask)?);
        }
        let records = self.bench.train(&jobs)?;
        note(trainings, &jobs);
        let by_name: BTreeMap<String, Record> = jobs.iter().map(Job::name).zip(records).collect();
        self.assemble(&lead, (&picks, &after), &arms, &by_name)
    }

    /// The rivals of the leading ticket.
    fn controls(
        &self,
        allocation: &Allocation,
        at: usize,
        seed: u64,
        ask: &mut impl FnMut(Kind, &str, usize, Job),
    ) -> Result<()> {
        let ticket = self.job(allocation, seed)?;
        let macs = |spec: &Spec| -> Result<f64> { Ok(spec.graph()?.multiply_adds() as f64) };
        if self.setting.reinit {
            let fresh = Job { arm: format!("{allocation}-reinit"), start: Start::Reinit, ..ticket.clone() };
            ask(Kind::Baseline, "reinit", at, fresh);
        }
        for &matching in self.setting.matchings.iter().filter(|_| !self.setting.filters.is_empty()) {
            let Some(spec) = self.thinned(allocation, &ticket.spec, matching)? else { continue };
            for &criterion in &self.setting.filters {
                let (word, start) = (matching.name(), Start::Filters { criterion });
                let arm = format!("filters-{word}-{}-for-{allocation}", criterion.name());
                let name = format!("filters by {}, equal {word}", criterion.name());
                ask(Kind::Filters, &name, at, Job { arm, spec: spec.clone(), start, ..ticket.clone() });
            }
        }
        if self.setting.equal_compute {
            let ratio = macs(&ticket.spec)? / macs(&self.family.spec)?;
            let epochs = |factor: f64| ((self.epochs() as f64 * factor).round() as u64).max(1);
            let (longer, shorter) = (epochs(1.0 / ratio), epochs(ratio));
            let ticket = Job { arm: format!("{allocation}-e{longer}"), epochs: longer, ..ticket };
            ask(Kind::Compute, "ticket, more epochs", at, ticket);
            let dense = self.job(&Allocation(self.family.blocks.clone()), seed)?;
            let dense = Job { arm: format!("dense-e{shorter}"), epochs: shorter, ..dense };
            ask(Kind::Compute, "dense, fewer epochs", at, dense);
        }
        Ok(())
    }

    /// The filter ticket that is as large as a layer ticket; none where the thinnest one is still larger.
    fn thinned(&self, allocation: &Allocation, ticket: &Spec, matching: Matching) -> Result<Option<Spec>> {
        let dense = &self.family.spec;
        let missing = |why: String| {
            printer::warn(format!("{}: no filter ticket is as large as {allocation}: {why}", self.setting.name));
        };
        match matching {
            Matching::Count => Ok(Some(filters::of_equal_count(dense, ticket)?)),
            Matching::Macs => {
                let most = ticket.graph()?.multiply_adds();
                let found = filters::largest_that(dense, |thin| Ok(thin.graph()?.multiply_adds() <= most))?;
                if found.is_none() {
                    missing("one filter a block has more multiply-adds".into());
                }
                Ok(found)
            }
            Matching::Time => match self.bench.as_quick(&self.setting.net, &allocation.to_string(), dense, ticket)? {
                Ok(found) => Ok(Some(found)),
                Err(ratio) => {
                    missing(format!("one filter a block takes {ratio:.2} times its time on this machine"));
                    Ok(None)
                }
            },
        }
    }

    /// Tickets of trained nets: the paper's algorithm 1. Gives the blocks that were kept.
    fn after_training(&self, at: usize, seed: u64, ask: &mut impl FnMut(Kind, &str, usize, Job)) -> Result<Vec<Pick>> {
        if self.setting.trained.is_empty() {
            return Ok(Vec::new());
        }
        let picks = self.picks(seed, &self.setting.trained, true)?;
        for pick in &picks {
            if let Some(why) = &pick.refused {
                printer::warn(format!("{}: {why}", pick.criterion));
                continue;
            }
            let spec = Ticket::keeping(&self.family.spec, pick.kept.clone())?.spec;
            let blocks = |kept: &Vec<usize>| kept.iter().map(usize::to_string).collect::<Vec<_>>().join(".");
            let kept = pick.kept.iter().map(blocks).collect::<Vec<_>>().join("-");
            let mut from = |word: String, name: String, epoch: Option<u64>, from_epoch: u64| {
                let start = Start::Rewound { epoch, kept: pick.kept.clone() };
                let (net, epochs) = (self.setting.net.clone(), self.epochs());
                let job = Job {
                    net,
                    arm: format!("kept-{kept}-{word}"),
                    seed,
                    spec: spec.clone(),
                    start,
                    epochs,
                    from_epoch,
                    held_out: false,
                };
                ask(Kind::After, &name, at, job);
            };
            for &epoch in &self.setting.rewind {
                from(format!("rewind{epoch}"), format!("{} rewound to {epoch}", pick.criterion), Some(epoch), epoch);
            }
            if let Some(tuned) = self.setting.finetune {
                let from_epoch = self.epochs() - tuned;
                from(format!("finetune{tuned}"), format!("{} fine-tuned {tuned}", pick.criterion), None, from_epoch);
            }
        }
        Ok(picks)
    }

    fn assemble(
        &self,
        lead: &str,
        (before, after): (&[Vec<Pick>], &[Vec<Pick>]),
        arms: &[Arm],
        records: &BTreeMap<String, Record>,
    ) -> Result<Tried> {
        let margin = self.bench.config.margin;
        let vacuous = !self.family.gate.pays;
        let of = |arm: &Arm| -> Arms<'_> {
            let of_seed = |names: &Vec<String>| names.iter().filter_map(|name| records.get(name)).collect::<Vec<_>>();
            arm.seeds.iter().map(of_seed).collect()
        };
        let label =
            |name: &str| before[0].iter().find(|pick| pick.criterion == name).and_then(|pick| pick.label.clone());
        let note = |arm: &Arm| match (arm.kind, arm.name.as_str()) {
            (_, "random") => format!("mean of {} draws a seed", self.bench.config.random),
            (_, HALVING) => "successive halving over all allocations".into(),
            (_, "shallowest") => "no criterion: the gate's net".into(),
            (Kind::Before, name) | (Kind::Baseline, name @ "uniform") => label(name).unwrap_or_default(),
            (Kind::After, _) => "after training".into(),
            _ => format!("of the tickets of {lead}"),
        };
        let dense: Arms<'_> = self.family.dense.iter().map(|record| vec![record]).collect();
        let against_dense = |name: &str, note: &str, kind: Kind, arms: &Arms<'_>| {
            report::compare((name, note, kind), arms, ("dense", &dense), margin, vacuous)
        };
        // A criterion that was refused for one seed has nothing to be compared by.
        let mut whole: Vec<&Arm> = arms.iter().filter(|arm| arm.seeds.iter().all(|names| !names.is_empty())).collect();
        whole.sort_by_key(|arm| Kind::ALL.iter().position(|kind| *kind == arm.kind));
        let compared = whole.iter().map(|arm| against_dense(&arm.name, &note(arm), arm.kind, &of(arm))).collect();
        let mut duels = Vec::new();
        if let Some(leading) = whole.iter().find(|arm| arm.name == lead) {
            for rival in whole.iter().filter(|arm| is_rival(&arm.name) && arm.name != lead) {
                let duel = (lead, "", leading.kind);
                duels.push(report::compare(duel, &of(leading), (&rival.name, &of(rival)), margin, vacuous));
            }
        }
        let chosen = |(picks, trained): (&[Vec<Pick>], bool)| -> Vec<Chosen> {
            let first = picks.first().map_or(&[][..], Vec::as_slice).iter();
            let scored = first.filter(|pick| pick.refused.is_none() && !pick.criterion.starts_with("random-"));
            let kept_of = |name: &str| Chosen {
                criterion: name.into(),
                trained,
                label: label(name).filter(|_| !trained),
                kept: picks
                    .iter()
                    .flatten()
                    .filter(|pick| pick.criterion == name)
                    .map(|pick| pick.kept.clone())
                    .collect(),
            };
            scored.map(|pick| kept_of(&pick.criterion)).collect()
        };
        let refused = before[0].iter().filter_map(|pick| Some((pick.criterion.clone(), pick.refused.clone()?)));
        Ok(Tried {
            name: self.setting.name.clone(),
            net: self.setting.net.clone(),
            blocks: self.family.blocks.clone(),
            removed: self.setting.remove,
            lead: lead.into(),
            chosen: [(before, false), (after, true)].into_iter().flat_map(chosen).collect(),
            refused: refused.collect(),
            dense: against_dense("dense", "", Kind::Dense, &dense),
            compared,
            duels,
        })
    }
}

/// Whether the leading ticket is held against an arm of this name.
fn is_rival(name: &str) -> bool {
    matches!(name, "random" | "uniform" | "reinit" | "dense, fewer epochs" | HALVING) || name.starts_with("filters")
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
        assert!(is_rival("filters by l1, equal macs") && !is_rival("kl rewound to 1"));
    }
}
