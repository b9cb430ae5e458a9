//! What an experiment found, and in words; what it took is told apart, since that differs each time.

use std::collections::BTreeMap;

use anyhow::Result;
use scruple_compress::lottery::{
    attacks::Attacked,
    energy::{Circumstances, Method},
};
use serde::{Deserialize, Serialize};

use super::{
    bench::{Bench, Cost, Record},
    compare::{LEAST_SEEDS, Pooled, Spread, Verdict},
};

/// The whole experiment. The same bytes each time it is done.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of the program.
    pub scruple: &'static str,
    /// Name of the experiment.
    pub name: String,
    /// Images to train on, to test by, and their size.
    pub data: String,
    /// Epochs of a dense run.
    pub epochs: u64,
    /// Each is one paired run of every arm.
    pub seeds: Vec<u64>,
    /// ξ, points.
    pub margin: f64,
    /// Whether depth pays, net by net: before anything else.
    pub gates: Vec<Gate>,
    /// What was tried.
    pub settings: Vec<Tried>,
    /// What batch norm makes of two sums, net by net.
    pub identities: Vec<Sums>,
    /// All of it in words, the gate first.
    pub verdict: Vec<String>,
    /// Names of the trainings behind it.
    pub trainings: Vec<String>,
}

/// A dense net against the shallowest of its family.
#[derive(Debug, Clone, Serialize)]
pub struct Gate {
    /// The net.
    pub net: String,
    /// Blocks a stage.
    pub dense: String,
    /// Of the shallowest.
    pub shallow: String,
    /// The dense net's accuracy, percent.
    pub dense_accuracy: Spread,
    /// The shallowest's.
    pub shallow_accuracy: Spread,
    /// Dense minus shallowest, points.
    pub depth_gain: Spread,
    /// Whether its whole interval is above 0.
    pub pays: bool,
}

impl Gate {
    /// In words.
    pub fn told(&self) -> String {
        let Self { net, dense, shallow, depth_gain, .. } = self;
        let seeds = depth_gain.values.len();
        let gain = format!(
            "depth gain of {net}, {dense} over {shallow}: {} points over {seeds} seed{}",
            depth_gain.told(),
            if seeds == 1 { "" } else { "s" }
        );
        match self.pays {
            true => format!("{gain}: depth pays here, so a ticket that matches the dense net has been told something"),
            false if seeds < LEAST_SEEDS => {
                format!("{gain}: with fewer than {LEAST_SEEDS} seeds nothing is decided, and no ticket can be awarded")
            }
            false => format!(
                "{gain}: VACUOUS: depth does not pay on this task at this budget. The shallowest net does as well without any \
                 criterion, so \"all tickets win\" would be true here and empty"
            ),
        }
    }
}

/// How batch norm bends two sums over the layers it follows; see the library's `identities`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sums {
    /// The net.
    pub net: String,
    /// Layers that feed a norm.
    pub layers: usize,
    /// Largest |Σ w g| over Σ |w g|: 0 but for rounding.
    pub signed_snip: f64,
    /// Largest |Σ −w (H g) − ‖g‖²| over ‖g‖².
    pub grasp_apart: f64,
}

/// What an arm is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The net that tickets are of.
    Dense,
    /// A ticket chosen before training.
    Before,
    /// A ticket chosen after training.
    After,
    /// What needs no criterion, or no first weights.
    Baseline,
    /// Fewer filters in place of fewer blocks.
    Filters,
    /// The same work in other numbers of epochs.
    Compute,
}

impl Kind {
    /// All of them, in the order they are told.
    pub const ALL: [Self; 6] = [Self::Dense, Self::Before, Self::After, Self::Baseline, Self::Filters, Self::Compute];

    /// What it is called in a legend.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Before => "ticket, before training",
            Self::After => "ticket, after training",
            Self::Baseline => "no criterion, or fresh weights",
            Self::Filters => "fewer filters",
            Self::Compute => "equal compute",
        }
    }

    /// Whether it is a ticket, and no control.
    pub fn is_ticket(self) -> bool {
        matches!(self, Self::Before | Self::After)
    }
}

/// One way to a smaller net, over all seeds.
#[derive(Debug, Clone, Serialize)]
pub struct Compared {
    /// What it is called.
    pub name: String,
    /// The criterion that chose it, where its name says more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub criterion: Option<String>,
    /// What to know of it.
    pub note: String,
    /// What it is for.
    pub kind: Kind,
    /// What it is compared with.
    pub against: String,
    /// Which nets it stands for, seed by seed.
    pub arms: Vec<Vec<String>>,
    /// Epochs trained, without those that were gone back over: mean.
    pub epochs: f64,
    /// Percent told right.
    pub accuracy: Spread,
    /// Minus that of what it is compared with, points.
    pub difference: Spread,
    /// The word for it.
    pub verdict: Verdict,
    /// Whether the gate is shut, so that the word is empty.
    pub vacuous: bool,
    /// Seeds in which the difference is above 0.
    pub plus: usize,
    /// Seeds in which there is a difference: a coin would give half of them a plus.
    pub apart: usize,
    /// Over all answers. It is about these trained nets alone: two seeds of one net differ too.
    pub pooled: Pooled,
    /// Means over seeds.
    pub multiply_adds: f64,
    /// Trained numbers.
    pub parameters: f64,
    /// Bytes a batch of training keeps.
    pub activation_bytes: f64,
    /// Percent told right over all corruptions and severities, and the difference.
    pub corrupted: Option<(Spread, Spread)>,
    /// Percent of the same images told right unharmed, minus that; and the difference: what corruption takes, whatever was there.
    pub lost: Option<(Spread, Spread)>,
    /// Mean corruption error: per kind, errors over the other's errors, percent, averaged.
    pub mce: Option<Spread>,
    /// Under attack.
    pub attacks: Vec<UnderAttack>,
}

/// One attack over all seeds.
#[derive(Debug, Clone, Serialize)]
pub struct UnderAttack {
    /// ε, 255ths.
    pub epsilon: f64,
    /// Steps; 1 is FGSM.
    pub steps: usize,
    /// Images of each training.
    pub images: usize,
    /// Percent told right.
    pub accuracy: f64,
    /// Percent told right of those told right unharmed, over all seeds.
    pub given_clean: Option<f64>,
    /// The latter minus that of what it is compared with, seed by seed.
    pub given_clean_difference: Option<Spread>,
}

/// Blocks a criterion kept.
#[derive(Debug, Clone, Serialize)]
pub struct Chosen {
    /// The criterion.
    pub criterion: String,
    /// Whether it looked at the trained net.
    pub trained: bool,
    /// What to know of its scores.
    pub label: Option<String>,
    /// The blocks kept, seed by seed, stage by stage.
    pub kept: Vec<Vec<Vec<usize>>>,
}

/// One setting.
#[derive(Debug, Clone, Serialize)]
pub struct Tried {
    /// Its name.
    pub name: String,
    /// The net.
    pub net: String,
    /// Blocks a stage of it.
    pub blocks: Vec<usize>,
    /// Blocks taken out.
    pub removed: usize,
    /// The criterion whose tickets controls are of.
    pub lead: String,
    /// Criteria, and what they kept.
    pub chosen: Vec<Chosen>,
    /// Criteria that were refused and arms that could not be had, and why.
    pub refused: Vec<(String, String)>,
    /// The dense net itself.
    pub dense: Compared,
    /// Tickets and controls against the dense net.
    pub compared: Vec<Compared>,
    /// The leading ticket against its controls; tickets of trained nets against blocks drawn at random, and the dense net with as
    /// many epochs more.
    pub duels: Vec<Compared>,
}

impl Compared {
    /// The word for it, which is empty behind a shut gate.
    pub fn word(&self) -> String {
        let word = self.verdict.word();
        if self.vacuous && self.kind.is_ticket() { format!("vacuous ({word})") } else { word.into() }
    }

    /// Seeds with a plus, of those with a difference.
    pub fn pluses(&self) -> String {
        format!("{}/{}", self.plus, self.apart)
    }
}

/// Records of one arm, seed by seed; several where draws are averaged.
pub type Arms<'a> = Vec<Vec<&'a Record>>;

/// Compares arms with others, seed by seed.
pub fn compare(
    (name, criterion, kind): (&str, Option<&str>, Kind),
    arms: &Arms<'_>,
    (against, others): (&str, &Arms<'_>),
    margin: f64,
    vacuous: bool,
) -> Compared {
    let mean = |records: &[&Record], of: &dyn Fn(&Record) -> f64| {
        records.iter().map(|record| of(record)).sum::<f64>() / records.len().max(1) as f64
    };
    let spread = |of: &dyn Fn(&Record) -> f64| Spread::of(arms.iter().map(|arm| mean(arm, of)).collect());
    let apart = |of: &dyn Fn(&Record) -> f64| {
        Spread::of(arms.iter().zip(others).map(|(arm, other)| mean(arm, of) - mean(other, of)).collect())
    };
    let all = || arms.iter().flatten().copied();
    let difference = apart(&Record::accuracy);
    let pairs = arms.iter().zip(others).flat_map(|(arm, other)| {
        other.iter().flat_map(|other| arm.iter().map(|arm| (other.bits(), arm.bits()))).collect::<Vec<_>>()
    });
    let pooled = Pooled::of(pairs.flat_map(|(before, after)| before.into_iter().zip(after)));
    let is_corrupted = all().all(|record| record.corrupted().is_some());
    let under = |of: &dyn Fn(&Record) -> f64| is_corrupted.then(|| (spread(of), apart(of)));
    let corrupted = under(&|record| record.corrupted().unwrap_or(0.0));
    let lost = under(&|record| record.unharmed() - record.corrupted().unwrap_or(0.0));
    let attacks = all().next().map_or(0, |record| record.attacks.len());
    Compared {
        name: name.into(),
        criterion: criterion.map(String::from),
        note: String::new(),
        kind,
        against: against.into(),
        arms: arms.iter().map(|arm| arm.iter().map(|record| record.job.arm.clone()).collect()).collect(),
        epochs: spread(&|record| (record.job.epochs - record.job.from_epoch) as f64).mean,
        accuracy: spread(&Record::accuracy),
        verdict: Verdict::of(&difference, margin),
        vacuous,
        plus: difference.values.iter().filter(|&&value| value > 0.0).count(),
        apart: difference.values.iter().filter(|&&value| value != 0.0).count(),
        difference,
        pooled,
        multiply_adds: spread(&|record| record.multiply_adds as f64).mean,
        parameters: spread(&|record| record.parameters as f64).mean,
        activation_bytes: spread(&|record| record.activation_bytes as f64).mean,
        corrupted,
        lost,
        mce: mean_corruption_error(arms, others),
        attacks: (0..attacks).map(|at| under_attack(arms, others, at)).collect(),
    }
}

/// Of a hundred of the others' errors under each corruption, so many of these arms'; the mean over kinds, seed by seed.
fn mean_corruption_error(arms: &Arms<'_>, others: &Arms<'_>) -> Option<Spread> {
    let wrong = |arm: &[&Record], kind: usize| -> Option<f64> {
        let of = |record: &&Record| {
            let right = &record.corruptions.get(kind)?.1;
            Some((right.len() * record.robust_images - right.iter().sum::<usize>()) as f64)
        };
        // A mean over draws within a seed.
        Some(arm.iter().map(of).sum::<Option<f64>>()? / arm.len() as f64)
    };
    let of_seed = |(arm, other): (&Vec<&Record>, &Vec<&Record>)| -> Option<f64> {
        let kinds = arm.first()?.corruptions.len();
        let ratio = |kind: usize| {
            let others = wrong(other, kind)?;
            (others > 0.0).then_some(100.0 * wrong(arm, kind)? / others)
        };
        let ratios: Vec<f64> = (0..kinds).map(ratio).collect::<Option<_>>()?;
        (kinds > 0).then(|| ratios.iter().sum::<f64>() / kinds as f64)
    };
    arms.iter().zip(others).map(of_seed).collect::<Option<Vec<f64>>>().map(Spread::of)
}

fn under_attack(arms: &Arms<'_>, others: &Arms<'_>, at: usize) -> UnderAttack {
    let of = |records: &[&Record]| -> Option<(Attacked, f64)> {
        let found: Vec<&Attacked> = records.iter().filter_map(|record| record.attacks.get(at)).collect();
        let sum = |of: fn(&Attacked) -> usize| found.iter().map(|one| of(one)).sum::<usize>();
        let first = found.first()?;
        let all = Attacked {
            epsilon: first.epsilon,
            steps: first.steps,
            images: sum(|one| one.images),
            clean_right: sum(|one| one.clean_right),
            right: sum(|one| one.right),
            both: sum(|one| one.both),
        };
        let given = all.given_clean();
        Some((all, 100.0 * given?))
    };
    let every: Vec<&Record> = arms.iter().flatten().copied().collect();
    let whole = of(&every);
    let difference = arms.iter().zip(others).map(|(arm, other)| Some(of(arm)?.1 - of(other)?.1));
    let first = arms.first().and_then(|arm| arm.first()).and_then(|record| record.attacks.get(at));
    let right: usize = every.iter().filter_map(|record| record.attacks.get(at)).map(|one| one.right).sum();
    let images: usize = every.iter().filter_map(|record| record.attacks.get(at)).map(|one| one.images).sum();
    UnderAttack {
        epsilon: first.map_or(0.0, |one| one.epsilon),
        steps: first.map_or(1, |one| one.steps),
        images: first.map_or(0, |one| one.images),
        accuracy: 100.0 * right as f64 / images.max(1) as f64,
        given_clean: whole.map(|(_, given)| given),
        given_clean_difference: difference.collect::<Option<Vec<f64>>>().map(Spread::of),
    }
}

/// Arms that came to the same nets, together, each where the first of them stands.
pub fn groups<'a>(found: impl Iterator<Item = &'a Compared>) -> Vec<Vec<&'a Compared>> {
    let mut groups: Vec<Vec<&Compared>> = Vec::new();
    for one in found {
        match groups.iter_mut().find(|group| group[0].arms == one.arms) {
            Some(group) => group.push(one),
            None => groups.push(vec![one]),
        }
    }
    groups
}

/// Names of arms that came to the same nets: `grad-flow = l1`.
pub fn name(group: &[&Compared]) -> String {
    group.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(" = ")
}

/// Names of several: `snip, grad-flow = l1`.
fn names<'a>(found: impl Iterator<Item = &'a Compared>) -> String {
    groups(found).iter().map(|group| name(group)).collect::<Vec<_>>().join(", ")
}

/// A setting in words.
pub fn told(tried: &Tried) -> Vec<String> {
    let mut lines = Vec::new();
    let tickets = || tried.compared.iter().filter(|one| one.kind.is_ticket());
    let mut parts = Vec::new();
    for verdict in [Verdict::Wins, Verdict::Matches, Verdict::Undecided, Verdict::Loses] {
        let found = names(tickets().filter(|one| one.verdict == verdict));
        if !found.is_empty() {
            parts.push(format!("{} {found}", verdict.word()));
        }
    }
    let vacuous = if tried.dense.vacuous { " (all of it VACUOUS, by the gate)" } else { "" };
    lines.push(format!(
        "{}, {} of {} blocks out, against the dense net: {}{vacuous}.",
        tried.name,
        tried.removed,
        tried.blocks.iter().sum::<usize>(),
        parts.join("; ")
    ));
    for duel in tried.duels.iter().filter(|duel| duel.name == tried.lead) {
        let words = match duel.apart {
            0 => "the same answers in every seed".into(),
            _ => format!("{} points, {}", duel.difference.told(), duel.word()),
        };
        lines.push(format!("{}: {} against {}: {words}.", tried.name, duel.name, duel.against));
    }
    lines
}

/// What an experiment took. Differs each time.
#[derive(Debug, Clone, Serialize)]
pub struct Costs {
    /// By what joules were had, in words.
    pub methods: Vec<String>,
    /// The processor that the figures of arms and searches are of: the one most trainings were done on, whole. Absent where it
    /// was not told.
    pub cpu: Option<String>,
    /// Trainings whose seconds are left out of those figures: done on another processor, or interrupted.
    pub left_out: usize,
    /// What carbon was made of.
    pub carbon: Circumstances,
    /// CPU seconds of all trainings.
    pub cpu_seconds: f64,
    /// Joules of all trainings.
    pub joules: f64,
    /// Grams of CO₂ equivalents.
    pub grams: f64,
    /// Arm by arm.
    pub arms: Vec<ArmCost>,
    /// What choosing took.
    pub searches: Vec<SearchCost>,
}

impl Costs {
    /// Of which trainings the figures of arms and searches are.
    pub fn told(&self) -> String {
        let cpu = self.cpu.as_deref().unwrap_or("a processor without a name");
        let left_out = match self.left_out {
            0 => return format!("seconds on {cpu}"),
            1 => "a training on another, or interrupted, is".into(),
            count => format!("{count} trainings on others, or interrupted, are"),
        };
        format!("seconds on {cpu}; {left_out} left out of these tables")
    }
}

/// What one arm took: means over its trainings.
#[derive(Debug, Clone, Serialize)]
pub struct ArmCost {
    /// The setting.
    pub setting: String,
    /// The arm.
    pub name: String,
    /// CPU seconds a training.
    pub cpu_seconds: f64,
    /// Median wall seconds an epoch.
    pub epoch_seconds: f64,
    /// Joules a training.
    pub joules: f64,
    /// Grams of CO₂ equivalents a training.
    pub grams: f64,
    /// CPU seconds over the dense net's, of the seeds that have both; absent where none has.
    pub time_ratio: Option<f64>,
    /// Share of time saved over share of multiply-adds saved: 1 is what arithmetic alone promises.
    pub of_ideal: Option<f64>,
}

/// What one criterion took for one seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SearchCost {
    /// The setting.
    pub setting: String,
    /// The criterion.
    pub criterion: String,
    /// CPU seconds of scoring, with the training of the dense net where its trained weights are scored; or of trial trainings.
    pub cpu_seconds: f64,
    /// Trainings of the ticket in place of the dense net after which it is paid for; absent where a ticket saves nothing.
    pub break_even: Option<f64>,
}

/// The costs of a report's trainings.
pub fn costs(report: &Report, bench: &Bench<'_>) -> Result<Costs> {
    let carbon = bench.config.carbon;
    let (mut methods, mut cpu_seconds, mut joules) = (Vec::new(), 0.0, 0.0);
    let (mut processors, mut trainings): (BTreeMap<Option<String>, usize>, usize) = Default::default();
    for name in &report.trainings {
        let Some(cost) = bench.cost(name)?.filter(|cost| cost.same_as.is_none()) else { continue };
        cpu_seconds += cost.cpu_seconds;
        joules += cost.joules;
        trainings += 1;
        *processors.entry(cost.cpu).or_default() += usize::from(!cost.partial);
        if !methods.contains(&cost.method) {
            methods.push(cost.method);
        }
    }
    let (cpu, whole) = processors.into_iter().max_by_key(|(_, count)| *count).unwrap_or_default();
    let (mut arms, mut searches) = (Vec::new(), Vec::new());
    for tried in &report.settings {
        let of = |one: &Compared| Taken::of(report, bench, &tried.net, one, &cpu);
        let dense = of(&tried.dense)?;
        for one in &tried.compared {
            let took = of(one)?;
            let Some(mut cost) = took.mean(&tried.name, &one.name, carbon) else { continue };
            let (own, others) = took.paired(&dense);
            cost.time_ratio = (others > 0.0).then_some(own / others);
            let saved = 1.0 - one.multiply_adds / tried.dense.multiply_adds;
            // Arms of other lengths save epochs, not arithmetic.
            let comparable = saved > 0.0 && one.epochs == tried.dense.epochs;
            cost.of_ideal = cost.time_ratio.filter(|_| comparable).map(|ratio| (1.0 - ratio) / saved);
            if let Some(search) = super::plan::search_costs(bench, tried, one, &cpu)? {
                // A ticket of a trained net needs that training first.
                let first = if one.kind == Kind::After { others } else { 0.0 };
                let cpu_seconds = search.cpu_seconds + first;
                let break_even = (others > own).then(|| cpu_seconds / (others - own));
                searches.push(SearchCost { cpu_seconds, break_even, ..search });
            }
            arms.push(cost);
        }
        arms.extend(dense.mean(&tried.name, &tried.dense.name, carbon));
    }
    let methods = methods.iter().map(|method| method_sentence(method)).collect();
    let (grams, left_out) = (carbon.grams(joules), trainings - whole);
    Ok(Costs { cpu, left_out, methods, carbon, cpu_seconds, joules, grams, arms, searches })
}

fn method_sentence(method: &str) -> String {
    match method {
        "nvml" => Method::Nvml,
        "rapl" => Method::Rapl,
        _ => Method::Estimate,
    }
    .sentence()
    .into()
}

/// What the trainings of one arm took, seed by seed: whole ones, on one processor.
struct Taken(Vec<Vec<Cost>>);

impl Taken {
    fn of(report: &Report, bench: &Bench<'_>, net: &str, one: &Compared, cpu: &Option<String>) -> Result<Self> {
        let mut found = Vec::new();
        for (seed, names) in report.seeds.iter().zip(&one.arms) {
            let mut costs = Vec::new();
            for arm in names {
                let cost = bench.cost(&format!("{net}-{arm}-s{seed}"))?;
                costs.extend(cost.filter(|cost| !cost.partial && cost.cpu == *cpu));
            }
            found.push(costs);
        }
        Ok(Self(found))
    }

    /// Mean CPU seconds of this arm and of another, over the seeds that have both; zeros where none has.
    fn paired(&self, other: &Self) -> (f64, f64) {
        let mean = |costs: &[Cost]| costs.iter().map(|cost| cost.cpu_seconds).sum::<f64>() / costs.len() as f64;
        let both = self.0.iter().zip(&other.0).filter(|(own, other)| !own.is_empty() && !other.is_empty());
        let pairs: Vec<(f64, f64)> = both.map(|(own, other)| (mean(own), mean(other))).collect();
        let count = pairs.len().max(1) as f64;
        (pairs.iter().map(|pair| pair.0).sum::<f64>() / count, pairs.iter().map(|pair| pair.1).sum::<f64>() / count)
    }

    /// Means over all of them.
    fn mean(&self, setting: &str, name: &str, carbon: Circumstances) -> Option<ArmCost> {
        let all: Vec<&Cost> = self.0.iter().flatten().collect();
        let mean = |of: &dyn Fn(&Cost) -> f64| all.iter().map(|cost| of(cost)).sum::<f64>() / all.len() as f64;
        (!all.is_empty()).then(|| ArmCost {
            setting: setting.into(),
            name: name.into(),
            cpu_seconds: mean(&|cost| cost.cpu_seconds),
            epoch_seconds: mean(&|cost| cost.epoch_seconds.unwrap_or(0.0)),
            joules: mean(&|cost| cost.joules),
            grams: carbon.grams(mean(&|cost| cost.joules)),
            time_ratio: Some(1.0),
            of_ideal: None,
        })
    }
}
