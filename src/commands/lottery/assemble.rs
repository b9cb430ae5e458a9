//! From trainings to comparisons: every arm against the dense net, and against the arm that says what it owes to what.

use std::collections::BTreeMap;

use super::{
    bench::{Bench, Record},
    plan::{Arm, Family, HALVING, Pick},
    report::{self, Arms, Chosen, Compared, Kind, Tried},
};

/// What a setting left.
pub struct Assembly<'a> {
    /// Where it was done.
    pub bench: &'a Bench<'a>,
    /// Its net.
    pub family: &'a Family<'a>,
    /// Its name.
    pub name: &'a str,
    /// Blocks that went.
    pub removed: usize,
    /// The criterion that controls are of.
    pub lead: &'a str,
    /// What criteria made of nets before training, seed by seed.
    pub before: &'a [Vec<Pick>],
    /// After it; nothing where none was asked.
    pub after: &'a [Vec<Pick>],
    /// Who is compared.
    pub arms: &'a [Arm],
    /// Arms that could not be had, and why.
    pub missing: Vec<(String, String)>,
    /// Every training by its name.
    pub records: &'a BTreeMap<String, Record>,
}

impl<'a> Assembly<'a> {
    /// The setting, compared.
    pub fn tried(mut self) -> Tried {
        let dense: Arms<'_> = self.family.dense.iter().map(|record| vec![record]).collect();
        // What is missing for one seed has nothing to be compared by.
        let (mut whole, part): (Vec<&Arm>, Vec<&Arm>) =
            self.arms.iter().partition(|arm| arm.seeds.iter().all(|names| !names.is_empty()));
        whole.sort_by_key(|arm| Kind::ALL.iter().position(|kind| *kind == arm.kind));
        let mut refused = self.refused();
        for arm in part {
            if !self.missing.iter().any(|(name, _)| *name == arm.name) {
                let seeds = self.seeds_that(|at| arm.seeds[at].is_empty());
                self.missing.push((arm.name.clone(), format!("there is none for {seeds}")));
            }
        }
        refused.append(&mut self.missing);
        let compared = whole.iter().map(|arm| {
            let one = self.compare(arm, ("dense", &dense));
            Compared { note: self.note(arm), ..one }
        });
        let duels = whole.iter().flat_map(|arm| {
            let rivals = whole.iter().filter(|rival| self.are_rivals(arm, rival));
            rivals.map(|rival| self.compare(arm, (&rival.name, &self.of(rival))))
        });
        let (compared, duels) = (compared.collect(), duels.collect());
        let own = Arm { name: "dense".into(), kind: Kind::Dense, criterion: None, seeds: Vec::new() };
        let chosen = [(self.before, false), (self.after, true)];
        Tried {
            name: self.name.into(),
            net: self.family.keys.name.clone(),
            blocks: self.family.blocks.clone(),
            removed: self.removed,
            lead: self.lead.into(),
            chosen: chosen.into_iter().flat_map(|(picks, trained)| self.chosen(picks, trained)).collect(),
            refused,
            dense: self.against(&own, &dense, ("dense", &dense)),
            compared,
            duels,
        }
    }

    fn of(&self, arm: &Arm) -> Arms<'a> {
        arm.seeds.iter().map(|names| names.iter().filter_map(|name| self.records.get(name)).collect()).collect()
    }

    fn compare(&self, arm: &Arm, others: (&str, &Arms<'_>)) -> Compared {
        self.against(arm, &self.of(arm), others)
    }

    fn against(&self, arm: &Arm, arms: &Arms<'_>, others: (&str, &Arms<'_>)) -> Compared {
        let (margin, vacuous) = (self.bench.config.margin, !self.family.gate.pays);
        report::compare((&arm.name, arm.criterion.as_deref(), arm.kind), arms, others, margin, vacuous)
    }

    fn label(&self, name: &str) -> Option<String> {
        self.before.iter().flatten().find(|pick| pick.criterion == name).and_then(|pick| pick.label.clone())
    }

    fn note(&self, arm: &Arm) -> String {
        match (arm.kind, arm.name.as_str(), &arm.criterion) {
            (_, "random", _) => format!("mean of {} draws a seed", self.bench.config.random),
            (_, HALVING, _) => "successive halving over all allocations".into(),
            (_, "shallowest", _) => "no criterion: the gate's net".into(),
            (Kind::Before, _, Some(_)) => "the blocks that were chosen, in place of the first of each stage".into(),
            (Kind::Before, name, None) | (Kind::Baseline, name @ "uniform", None) => {
                self.label(name).unwrap_or_default()
            }
            (Kind::After, ..) | (Kind::Baseline, _, Some(_)) => "after training".into(),
            (Kind::Compute, name, _) if name.starts_with("dense fine") => {
                "as many epochs more as fine-tuned tickets have".into()
            }
            _ => format!("of the tickets of {}", self.lead),
        }
    }

    /// Whether the second arm says what the first owes to its blocks, weights, size or epochs.
    fn are_rivals(&self, arm: &Arm, rival: &Arm) -> bool {
        let lead = arm.name == self.lead && arm.kind == Kind::Before;
        let way = |arm: &Arm| {
            let criterion = arm.criterion.as_deref()?;
            Some(arm.name.strip_prefix(criterion)?.to_string())
        };
        match (rival.kind, rival.name.as_str()) {
            (Kind::Baseline, "random" | "uniform" | "reinit" | HALVING) | (Kind::Filters, _) => lead,
            (Kind::Before, _) => lead && rival.criterion.is_some(),
            (Kind::Compute, "dense, fewer epochs") => lead,
            (Kind::Compute, name) => {
                arm.kind == Kind::After && way(arm) == name.strip_prefix("dense").map(String::from)
            }
            (Kind::Baseline, _) => arm.kind == Kind::After && way(arm).is_some() && way(arm) == way(rival),
            (Kind::Dense | Kind::After, _) => false,
        }
    }

    fn chosen(&self, picks: &[Vec<Pick>], trained: bool) -> Vec<Chosen> {
        let mut found: Vec<Chosen> = Vec::new();
        let drawn = |pick: &Pick| pick.criterion.starts_with("random");
        for pick in picks.iter().flatten().filter(|pick| pick.refused.is_none() && !drawn(pick)) {
            let at = found.iter().position(|chosen| chosen.criterion == pick.criterion).unwrap_or_else(|| {
                let label = self.label(&pick.criterion).filter(|_| !trained);
                found.push(Chosen { criterion: pick.criterion.clone(), trained, label, kept: Vec::new() });
                found.len() - 1
            });
            found[at].kept.push(pick.kept.clone());
        }
        found
    }

    /// Criteria that could not score a net, with the seeds where that was not all of them.
    fn refused(&self) -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = Vec::new();
        for (picks, state) in [(self.before, ""), (self.after, ", trained")] {
            for pick in picks.iter().flatten() {
                let Some(why) = &pick.refused else { continue };
                let name = format!("{}{state}", pick.criterion);
                if found.iter().any(|(known, _)| *known == name) {
                    continue;
                }
                let is_refused = |at: usize| {
                    picks[at].iter().any(|other| other.criterion == pick.criterion && other.refused.is_some())
                };
                let why = match (0..picks.len()).all(is_refused) {
                    true => why.clone(),
                    false => format!("{why} ({})", self.seeds_that(is_refused)),
                };
                found.push((name, why));
            }
        }
        found
    }

    fn seeds_that(&self, is: impl Fn(usize) -> bool) -> String {
        let seeds = self.bench.config.seeds.iter().enumerate().filter(|(at, _)| is(*at));
        let seeds: Vec<String> = seeds.map(|(_, seed)| seed.to_string()).collect();
        format!("seed{} {}", if seeds.len() == 1 { "" } else { "s" }, seeds.join(", "))
    }
}

/// The criterion before training whose tickets are the most accurate, the first of equals.
pub fn best(tried: &Tried) -> Option<String> {
    let is_criterion = |one: &&Compared| one.kind == Kind::Before && one.criterion.is_none();
    // The last of equals is taken.
    let ours = tried.compared.iter().filter(is_criterion).rev();
    ours.max_by(|a, b| a.accuracy.mean.total_cmp(&b.accuracy.mean)).map(|one| one.name.clone())
}
