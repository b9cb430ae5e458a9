//! Suite 3: accuracy against size, for every way to make the net small.
//!
//! Learning rates are chosen on a part of the images for training that is set apart, by going up from the dense one by
//! factors of two until it has not got better twice, and down from it where it was the best; every contestant at every
//! rate has its own. Then every contestant is trained on all images for training, with several seeds, and measured on the
//! test images once. Test images choose nothing.
//!
//! A pruned net is measured twice at each rate: with as many numbers as the pool, and with as many bytes. It takes the
//! learning rate chosen at equal numbers for both. A chain of tickets has one learning rate, chosen on the average over
//! all sizes, of which fewer are tried.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    contestant::{self, Accounting, Measured, Method, kept},
    ground::{Descent, Ground, start},
    interval::Interval,
    lottery, quantised,
    record::{Job, Store, work},
    train::{Course, End, Part, Score, measure, train},
};
use crate::{Error, Result};

/// Doublings of the dense learning rate that are tried.
pub const DOUBLINGS: u32 = 6;

/// Halvings that are tried where the dense learning rate is the best of those.
pub const HALVINGS: u32 = 4;

/// Of the doublings, those tried on chains of tickets.
const LOTTERY_DOUBLINGS: u32 = 3;

/// The seed of the runs that choose; those that measure have 1, 2, ….
const CHOOSING_SEED: u64 = 0;

/// Who is measured at which sizes, how often.
#[derive(Debug, Clone, PartialEq)]
pub struct Extent {
    /// Who.
    pub methods: Vec<Method>,
    /// c, rising.
    pub rates: Vec<f64>,
    /// Runs of each.
    pub seeds: u64,
}

/// One contestant at one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Who.
    pub method: Method,
    /// c of the pool it stands beside; absent where the size is given by the net's.
    pub rate: Option<f64>,
    /// What is equal to the pool's; absent where nothing has to be.
    pub accounting: Option<Accounting>,
    /// Numbers in place of the weights.
    pub values: usize,
    /// Bytes of all it keeps.
    pub bytes: u64,
    /// The learning rate it was trained with.
    pub learning_rate: f64,
    /// Accuracy on the test images.
    pub accuracy: Interval,
    /// Runs whose cost was no longer finite; they count as chance.
    pub diverged: usize,
}

/// From where on the fold is better than tickets of the lottery.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Crossover {
    /// What is equal.
    pub accounting: Accounting,
    /// The rate at which the means cross, between two measured ones in their logarithm; absent where they do not.
    pub rate: Option<f64>,
    /// The lowest rate from which on the fold's mean is above at all rates measured.
    pub ahead_from: Option<f64>,
    /// The lowest from which on the intervals do not overlap either.
    pub clear_from: Option<f64>,
    /// The same in words.
    pub sentence: String,
}

/// What the suite found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pareto {
    /// Where the images are from.
    pub data: String,
    /// Weights that compete for memory.
    pub weights: usize,
    /// Numbers all keep beside them.
    pub rest: usize,
    /// Seeds.
    pub seeds: u64,
    /// By method, rate, accounting.
    pub rows: Vec<Row>,
    /// The fold against tickets, by both accountings, where both were measured.
    pub crossovers: Vec<Crossover>,
}

/// The dense net, and what rounding makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Dense {
    dense: Score,
    int8: Score,
    int4: Score,
}

/// Runs the suite.
///
/// # Errors
/// If records cannot be read or written, or a rate does not suit.
pub fn run(ground: &Ground, store: &Store<'_>, extent: &Extent) -> Result<Pareto> {
    let suite = Suite { ground, store, extent };
    suite.work(&suite.to_choose(), |choice| suite.choose(choice).map(drop))?;
    let chosen = suite.to_choose().into_iter().map(|choice| Ok((choice.key(), suite.choose(choice)?)));
    let chosen = chosen.collect::<Result<BTreeMap<String, f64>>>()?;
    let runs = suite.to_measure();
    suite.work(&runs, |run| suite.measure(run, &chosen).map(drop))?;

    let mut cells: Vec<(Cell, Vec<Measured>)> = Vec::new();
    for run in runs {
        for (cell, measured) in suite.measure(run, &chosen)? {
            match cells.iter_mut().find(|(other, _)| other.same(&cell)) {
                Some((_, runs)) => runs.push(measured),
                None => cells.push((cell, vec![measured])),
            }
        }
    }
    let rows = cells.into_iter().filter_map(|(cell, runs)| {
        let accuracy = Interval::of(runs.iter().map(|run| run.score.accuracy()).collect())?;
        let diverged = runs.iter().filter(|run| run.score.diverged.is_some()).count();
        let Cell { method, rate, accounting, learning_rate } = cell;
        let Measured { values, bytes, .. } = runs[0];
        Some(Row { method, rate, accounting, values, bytes, learning_rate, accuracy, diverged })
    });
    let mut rows: Vec<Row> = rows.collect();
    let place = |row: &Row| {
        let method = Method::ALL.iter().position(|method| *method == row.method);
        (row.accounting == Some(Accounting::Bytes), method, row.rate.map_or(0, f64::to_bits))
    };
    rows.sort_by_key(place);
    let crossovers = [Accounting::Values, Accounting::Bytes].map(|accounting| crossover(&rows, accounting));
    Ok(Pareto {
        data: ground.data.name.clone(),
        weights: ground.weights(),
        rest: ground.rest(),
        seeds: extent.seeds,
        rows,
        crossovers: crossovers.into_iter().flatten().collect(),
    })
}

/// A learning rate to choose.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Choice {
    method: Method,
    /// Absent where one serves all sizes.
    rate: Option<f64>,
}

impl Choice {
    fn key(&self) -> String {
        match self.rate {
            Some(rate) => format!("{}-rate{rate}", self.method.name()),
            None => self.method.name().to_string(),
        }
    }
}

/// Runs to measure, as far as they are made by one piece of work.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Run {
    choice: Choice,
    accounting: Accounting,
    seed: u64,
}

/// What runs of several seeds have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cell {
    method: Method,
    rate: Option<f64>,
    accounting: Option<Accounting>,
    learning_rate: f64,
}

impl Cell {
    fn same(&self, other: &Self) -> bool {
        (self.method, self.rate, self.accounting) == (other.method, other.rate, other.accounting)
    }
}

struct Suite<'a> {
    ground: &'a Ground,
    store: &'a Store<'a>,
    extent: &'a Extent,
}

impl Suite<'_> {
    fn work<T: Copy + Sync + Send>(&self, what: &[T], one: impl Fn(T) -> Result<()> + Sync + Send) -> Result<()> {
        let one = &one;
        work(&what.iter().map(|&what| Box::new(move || one(what)) as Job<'_>).collect::<Vec<Job<'_>>>())
    }

    fn has(&self, method: Method) -> bool {
        self.extent.methods.contains(&method)
    }

    /// Methods that are trained at each rate by a run of their own.
    fn single(&self) -> impl Iterator<Item = Method> {
        self.extent.methods.iter().copied().filter(|method| !method.is_fixed() && *method != Method::Lottery)
    }

    /// The dearest first, so that no thread is left with them at the end.
    fn to_choose(&self) -> Vec<Choice> {
        let once = |method| Choice { method, rate: None };
        let lottery = self.has(Method::Lottery).then(|| once(Method::Lottery));
        let dense = self.extent.methods.iter().any(|method| method.is_fixed()).then(|| once(Method::Dense));
        let rates = &self.extent.rates;
        let single =
            self.single().flat_map(|method| rates.iter().map(move |&rate| Choice { method, rate: Some(rate) }));
        lottery.into_iter().chain(dense).chain(single).collect()
    }

    fn to_measure(&self) -> Vec<Run> {
        let mut runs = Vec::new();
        for choice in self.to_choose() {
            let twice = choice.method.is_sparse() && choice.method != Method::Lottery;
            for seed in 1..=self.extent.seeds {
                runs.push(Run { choice, accounting: Accounting::Values, seed });
                if twice {
                    runs.push(Run { choice, accounting: Accounting::Bytes, seed });
                }
            }
        }
        runs
    }

    /// The learning rate that is best on images set apart; of equals the one tried first.
    fn choose(&self, choice: Choice) -> Result<f64> {
        let dense = self.ground.schooling.sgd_peak;
        let (mut best, mut worse) = ((dense, -1.0), 0);
        let doublings = if choice.method == Method::Lottery { LOTTERY_DOUBLINGS } else { DOUBLINGS };
        for peak in (0..doublings).map(|times| dense * f64::from(1u32 << times)) {
            let Some(found) = self.tried(choice, peak)? else { return Ok(dense) }; // nothing of it is that small
            (best, worse) = if found > best.1 { ((peak, found), 0) } else { (best, worse + 1) };
            if worse == 2 {
                break;
            }
        }
        // Where the lowest was best, lower ones may be better still.
        for peak in (1..=HALVINGS).map(|times| dense / f64::from(1u32 << times)) {
            if best.0 != 2.0 * peak {
                break;
            }
            if let Some(found) = self.tried(choice, peak)?.filter(|found| *found > best.1) {
                best = (peak, found);
            }
        }
        Ok(best.0)
    }

    /// The accuracy at learning rate `peak` on images set apart, 0 of a run that did not end: chance, which it counts as
    /// elsewhere, may be above what a net on its way learns. Absent where nothing of the method is that small.
    fn tried(&self, choice: Choice, peak: f64) -> Result<Option<f64>> {
        let course = Course { part: Part::Choosing, descent: Descent::Sgd, peak, seed: CHOOSING_SEED };
        let ended = |score: &Score| score.diverged.map_or(score.accuracy(), |_| 0.0);
        if choice.method == Method::Lottery {
            let sizes: Vec<usize> = self.sizes(&[Accounting::Values])?.iter().map(|(.., kept)| *kept).collect();
            let tickets = lottery::tickets(self.ground, self.store, course, &sizes)?;
            return Ok(Some(tickets.iter().map(|one| ended(&one.score)).sum::<f64>() / tickets.len() as f64));
        }
        let name = format!("choosing-{}-lr{peak}", choice.key());
        let rate = choice.rate.unwrap_or(1.0);
        let run = || contestant::run(self.ground, choice.method, rate, Accounting::Values, course);
        Ok(self.store.once(&name, run)?.map(|found| ended(&found.score)))
    }

    /// Sizes of tickets: rate, accounting, weights left.
    fn sizes(&self, accountings: &[Accounting]) -> Result<Vec<(f64, Accounting, usize)>> {
        let mut sizes = Vec::new();
        for &accounting in accountings {
            for &rate in &self.extent.rates {
                sizes.push((rate, accounting, kept(self.ground, rate, accounting)?));
            }
        }
        Ok(sizes)
    }

    fn measure(&self, run: Run, chosen: &BTreeMap<String, f64>) -> Result<Vec<(Cell, Measured)>> {
        let Run { choice, accounting, seed } = run;
        let Some(&peak) = chosen.get(&choice.key()) else {
            return Err(Error::Recipe(format!("no learning rate was chosen for {}", choice.key())));
        };
        let course = Course { part: Part::Final, descent: Descent::Sgd, peak, seed };
        let cell = |method: Method, rate, accounting| Cell { method, rate, accounting, learning_rate: peak };
        let name = format!("final-{}-seed{seed}-lr{peak}", choice.key());
        Ok(match choice.method {
            Method::Dense => {
                let found = self.store.once(&name, || self.dense(course))?;
                let (weights, layout) = (self.ground.weights(), self.ground.graph.layout());
                let rest = 4 * self.ground.rest() as u64;
                let of = |method, score, bytes| {
                    (cell(method, None, None), Measured { values: weights, bytes: bytes + rest, score })
                };
                let all = [
                    of(Method::Dense, found.dense, 4 * weights as u64),
                    of(Method::Int8, found.int8, quantised::bytes(layout, 8)),
                    of(Method::Int4, found.int4, quantised::bytes(layout, 4)),
                ];
                all.into_iter().filter(|(cell, _)| self.has(cell.method)).collect()
            }
            Method::Lottery => {
                let sizes = self.sizes(&[Accounting::Values, Accounting::Bytes])?;
                let kept: Vec<usize> = sizes.iter().map(|(.., kept)| *kept).collect();
                let tickets = lottery::tickets(self.ground, self.store, course, &kept)?;
                let named = sizes.into_iter().zip(tickets);
                named.map(|((rate, by, _), found)| (cell(Method::Lottery, Some(rate), Some(by)), found)).collect()
            }
            method => {
                let rate = choice.rate.unwrap_or(1.0);
                let name = format!("{name}-{}", accounting.name());
                let run = || contestant::run(self.ground, method, rate, accounting, course);
                let found = self.store.once(&name, run)?;
                let by = method.is_sparse().then_some(accounting);
                found.map(|found| (cell(method, Some(rate), by), found)).into_iter().collect()
            }
        })
    }

    fn dense(&self, course: Course) -> Result<Dense> {
        let ground = self.ground;
        let begin = start(&ground.graph, course.seed);
        Ok(match train(ground, &ground.spec, course, begin, None, 0)? {
            End::Trained { weights, .. } => {
                let of = |bits| quantised::rounded(ground.graph.layout(), &weights, bits);
                let measure = |weights| measure(ground, &ground.spec, weights, course.part);
                Dense { dense: measure(&weights)?, int8: measure(&of(8))?, int4: measure(&of(4))? }
            }
            End::Diverged(step) => {
                let score = Score::diverged(ground, course.part, step);
                Dense { dense: score, int8: score, int4: score }
            }
        })
    }
}

/// Where the fold passes tickets of equal size, by `rows`; absent where one of them was not measured.
pub fn crossover(rows: &[Row], accounting: Accounting) -> Option<Crossover> {
    let fold = rows.iter().filter(|row| row.method == Method::Fold);
    let pairs = fold.filter_map(|fold| {
        let ticket = rows
            .iter()
            .find(|row| row.method == Method::Lottery && row.accounting == Some(accounting) && row.rate == fold.rate)?;
        Some((fold.rate?, &fold.accuracy, &ticket.accuracy))
    });
    let pairs: Vec<(f64, &Interval, &Interval)> = pairs.collect();
    let (last, _, _) = pairs.last()?;
    let ahead = |(_, fold, ticket): &(f64, &Interval, &Interval)| fold.mean - ticket.mean;
    let clear = |(_, fold, ticket): &(f64, &Interval, &Interval)| matches!((fold.low, ticket.high), (Some(a), Some(b)) if a > b);
    let from = |holds: &dyn Fn(&(f64, &Interval, &Interval)) -> bool| {
        let first = pairs.iter().rposition(|pair| !holds(pair)).map_or(0, |at| at + 1);
        (first < pairs.len()).then_some(first)
    };
    let (first, clear) = (from(&|pair| ahead(pair) > 0.0), from(&|pair| clear(pair)));
    let rate = first.and_then(|first| {
        let (before, after) = (pairs.get(first.checked_sub(1)?)?, &pairs[first]);
        let (below, above) = (ahead(before), ahead(after));
        let share = -below / (above - below);
        Some((before.0.ln() + share * (after.0.ln() - before.0.ln())).exp())
    });
    let what = match accounting {
        Accounting::Values => "at equal numbers (the paper's accounting)",
        Accounting::Bytes => "at equal bytes",
    };
    let sentence = match (first, rate) {
        (None, _) => format!("{what} tickets of the lottery are better up to {last}x, the highest rate measured"),
        (Some(first), None) => {
            format!("{what} the fold is better at every rate measured, from {}x to {last}x", pairs[first].0)
        }
        (Some(first), Some(rate)) => format!(
            "{what} tickets of the lottery are better below and the fold above about {rate:.0}x: it leads from {}x on, {}",
            pairs[first].0,
            match clear {
                Some(clear) => format!("with intervals apart from {}x on", pairs[clear].0),
                None => "with intervals that overlap".to_string(),
            }
        ),
    };
    let at = |place: Option<usize>| place.map(|place| pairs[place].0);
    Some(Crossover { accounting, rate, ahead_from: at(first), clear_from: at(clear), sentence })
}
