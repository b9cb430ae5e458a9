//! A sweep carried out: each point is compressed, its written file is measured beside the dense model, and its record lands
//! before the next begins. What has landed is not done again; what a killed run has left is gone on with.

use std::{
    cell::OnceCell,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Result;
use scruple_compress::layers::{self, Removal, write::DropOptions};
use scruple_weights::{Checkpoint, source::Located};
use serde_json::json;

use super::{
    bench::{Bench, TextFile, reads_text, suite_of},
    data::{FORMAT, Failure},
    place::{Place, Shard, file_name},
    point::{self, DenseFound, Kept, PointFound, ReferenceFound},
    sweep::{Asked, Sweep, What},
    words::points,
};
use crate::{
    commands::{
        compress::{self, write::by_recipe},
        verify,
    },
    fixture::Fixture,
    printer, source,
    trust::{
        evaluate::{Keeping, Side},
        language_model::Counts,
        questions,
        record::ModelHashes,
        toxicity,
    },
};

/// A sweep, and where it goes.
#[derive(Debug)]
pub struct Job {
    /// What is asked.
    pub sweep: Sweep,
    /// The dense model; the one that comes with the program without it.
    pub model: Option<PathBuf>,
    /// The folder of records.
    pub out: PathBuf,
    /// Which points are this run's.
    pub shard: Shard,
    /// Compressed models stay.
    pub keep: bool,
    /// A folder of answers that sweeps share.
    pub cache: Option<PathBuf>,
}

/// What a run leaves in its folder.
#[derive(Debug)]
pub struct Records {
    /// The folder.
    pub place: Place,
    /// The dense model.
    pub dense: DenseFound,
    /// The points whose records are there, in the order of the sweep.
    pub points: Vec<(Asked, PointFound)>,
    /// The other dense models whose records are there.
    pub references: Vec<ReferenceFound>,
    /// Why others are not.
    pub failures: Vec<Failure>,
    /// Points and references that other shards have not done yet.
    pub missing: usize,
    /// What the suite is called.
    pub suite: String,
    /// Hash of its items.
    pub suite_sha256: String,
    /// The items come with the program.
    pub embedded: bool,
    /// The calibration text, where a point needs one.
    pub calibration: Option<PathBuf>,
    /// What says how toxic texts are.
    pub toxicity_scorer: Option<String>,
    /// Tasks of this run that failed.
    pub failed: usize,
    /// What was run.
    pub counts: Counts,
}

/// One thing to be done.
enum Task<'a> {
    Point(&'a Asked),
    /// Another dense model, called so.
    Reference(&'a Path, String),
}

impl Task<'_> {
    fn name(&self) -> &str {
        match self {
            Task::Point(asked) => &asked.name,
            Task::Reference(_, name) => name,
        }
    }

    /// The name of its records' files.
    fn file(&self) -> String {
        match self {
            Task::Point(asked) => asked.name.clone(),
            Task::Reference(_, name) => format!("reference-{}", file_name(name)),
        }
    }
}

/// What is called like a path that may be a name of a hub.
fn called(path: &Path, located: Option<&Located>) -> String {
    match located.and_then(Located::name) {
        Some(name) => name.to_string(),
        None => compress::name_of(path),
    }
}

/// Carries out the sweep.
///
/// # Errors
/// What concerns all points: the dense model, the items, the texts, the folder. What concerns one of them is a
/// [`Failure`], and the sweep goes on.
pub fn run(job: &Job) -> Result<Records> {
    let Job { sweep, .. } = job;
    let fixture = job.model.is_none().then(Fixture::organism).transpose()?;
    let (located, name) = match (&job.model, &fixture) {
        (Some(path), _) => {
            let located = source::locate(path)?;
            let name = called(path, Some(&located));
            (located, name)
        }
        (None, Some(fixture)) => (source::locate(fixture.path())?, fixture.name().to_string()),
        (None, None) => anyhow::bail!("no model was given"),
    };
    let (suite, embedded, mut suite_warnings) = suite_of(sweep)?;
    let suite_sha256 = suite.hash();
    let topics = questions::topics(&sweep.rules, &suite, None)?;
    let text = match &sweep.text {
        None => None,
        Some(keys) => match (&keys.file, &fixture) {
            (Some(file), _) => Some((TextFile::open(file.clone())?, keys)),
            (None, Some(fixture)) => Some((TextFile::open(fixture.text())?, keys)),
            (None, None) => anyhow::bail!("the sweep's `text` names no `file`"),
        },
    };
    let mut needed = false;
    for asked in &sweep.points {
        if let What::Made { recipe, .. } = &asked.what {
            needed |= reads_text(recipe)?;
        }
    }
    let calibration = match (&sweep.calibration.file, &fixture) {
        _ if !needed => None,
        (Some(file), _) => Some(TextFile::open(file.clone())?),
        (None, Some(fixture)) => Some(TextFile::open(fixture.calibration())?),
        (None, None) => anyhow::bail!("some methods of the sweep read a text; give `calibration.file`"),
    };
    let place = Place::open(&job.out, job.shard)?;
    let mut others = place.other_answers();
    // Journals of one file by two runs would destroy each other: a folder that runs share is only read by shards.
    let shared = match (&job.cache, job.shard.count) {
        (Some(cache), 1) => cache.clone(),
        (cache, _) => {
            others.extend(cache.clone());
            place.answers()
        }
    };
    let bench = Bench {
        sweep,
        name: &name,
        dense: Side::open("dense", &located, sweep.chat)?,
        suite: (&suite.name, &suite_sha256),
        topics: &topics,
        embedded,
        text,
        calibration,
        // Answers hold under any rule: what they are worth is told anew.
        keeping: Keeping { own: None, shared: Some(shared), others, rejudge: true },
        replies: OnceCell::new(),
    };
    let mut counts = Counts::default();
    let key = bench.key(&json!("dense"))?;
    let mut dense = match point::read::<DenseFound>(&place.dense(), Some(&key))? {
        Some(kept) => kept.found,
        None => {
            printer::say(format!("{name}: {} items on {} dimensions", suite.len(), topics.len()));
            let found = bench.measure_dense(&mut counts)?;
            place.land(&place.dense(), &Kept { curve: FORMAT, key, found: found.clone() })?;
            found
        }
    };
    suite_warnings.append(&mut dense.warnings);
    dense.warnings = suite_warnings;

    let references = sweep.references.iter().map(|keys| {
        let name = keys.name.clone().unwrap_or_else(|| called(&keys.model, None));
        Task::Reference(&keys.model, name)
    });
    let tasks: Vec<Task<'_>> = sweep.points.iter().map(Task::Point).chain(references).collect();
    let mut sweeper = Sweeper { job, bench: &bench, located: &located, place: &place, counts };
    let (mut points, mut found_references, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    let (mut missing, mut failed) = (0, 0);
    for (number, task) in tasks.iter().enumerate() {
        let step = format!("[{}/{}] {}", number + 1, tasks.len(), task.name());
        let own = job.shard.has(number).then_some(step.as_str());
        let outcome = match task {
            Task::Point(asked) => sweeper.point(asked, own).map(|found| {
                let there = found.is_some();
                points.extend(found.map(|found| ((*asked).clone(), found)));
                there
            }),
            Task::Reference(path, name) => sweeper.reference(path, (name, &task.file()), own).map(|found| {
                let there = found.is_some();
                found_references.extend(found);
                there
            }),
        };
        match outcome {
            Ok(true) => {}
            Ok(false) => match place.failure_of(&task.file()) {
                Some(failure) => failures.push(failure),
                None => missing += 1,
            },
            Err(error) => {
                let failure = Failure { name: task.name().to_string(), reason: printer::sentence(&error) };
                printer::warn(format!("{step} failed: {}", failure.reason));
                // On a full disk that fails too, and the next run tries the point again in any case.
                let _ = place.land(&place.failure(&task.file()), &failure);
                failed += 1;
                failures.push(failure);
            }
        }
    }
    bench.dense.checkpoint.expect_unchanged()?;
    let scorer = topics.iter().find_map(|topic| topic.scorer);
    Ok(Records {
        dense,
        points,
        references: found_references,
        failures,
        missing,
        failed,
        calibration: bench.calibration.as_ref().map(|file| file.path.clone()),
        toxicity_scorer: scorer.map(|scorer| toxicity::describe(scorer.name(), scorer.version(), scorer.agreement())),
        counts: sweeper.counts,
        embedded,
        suite: suite.name.clone(),
        suite_sha256: suite_sha256.clone(),
        place,
    })
}

/// What does one thing after the other.
struct Sweeper<'a> {
    job: &'a Job,
    bench: &'a Bench<'a>,
    /// The dense model.
    located: &'a Located,
    place: &'a Place,
    counts: Counts,
}

impl Sweeper<'_> {
    /// A point's record; where there is none and `own` is its number and name in words, it is made. Of another shard's
    /// points nothing is made, and none without a record.
    fn point(&mut self, asked: &Asked, own: Option<&str>) -> Result<Option<PointFound>> {
        let given = match &asked.what {
            What::Made { .. } | What::Dropped(_) => None,
            What::Given(path) => match source::locate(path) {
                Err(_) if own.is_none() => return Ok(None),
                located => Some(located?),
            },
        };
        let what = match (&asked.what, &given) {
            (What::Made { recipe, drop: None }, _) => self.bench.made_from(recipe)?,
            (What::Made { recipe, drop: Some(drop) }, _) => json!([drop, self.bench.made_from(recipe)?]),
            (What::Dropped(drop), _) => json!({ "drop": drop }),
            (What::Given(_), Some(located)) => json!(ModelHashes::of(&located.open()?, true)?),
            (What::Given(_), None) => anyhow::bail!("no folder was found"),
        };
        let said = json!([asked.name, asked.setting, asked.series, asked.rate, asked.kind, asked.seed]);
        let key = self.bench.key(&json!([said, what]))?;
        let file = self.place.point(&asked.name);
        if let Some(kept) = point::read(&file, Some(&key))? {
            if own.is_some() && given.is_none() {
                self.place.tidy(&asked.name)?;
            }
            return Ok(Some(kept.found));
        }
        let Some(step) = own else { return Ok(None) };
        let started = Instant::now();
        let found = match (&asked.what, given) {
            (What::Made { .. } | What::Dropped(_), _) => {
                let found = self.made(asked, &key, step);
                if found.is_err() {
                    // Whatever is wrong with it, the next point may need the room.
                    let _ = self.place.clear(&asked.name);
                }
                found?
            }
            (What::Given(_), Some(located)) => {
                printer::say(step);
                self.bench.measure_point(asked, &located, None, &mut self.counts)?
            }
            (What::Given(_), None) => anyhow::bail!("no folder was found"),
        };
        let goes = !self.job.keep && !matches!(asked.what, What::Given(_));
        if goes {
            // Before the record lands: with one beside it, a model that has its key is one that was kept.
            self.place.release(&asked.name)?;
        }
        self.place.land(&file, &Kept { curve: FORMAT, key, found: found.clone() })?;
        self.place.remove(&self.place.failure(&asked.name))?;
        if goes {
            self.place.clear(&asked.name)?;
        }
        let worst = found.point.worst.as_ref();
        let worst =
            worst.map_or(String::new(), |(name, delta)| format!(": lowest Δ {} points in {name}", points(*delta)));
        printer::say(format!("{step}{worst} ({:.0} s)", started.elapsed().as_secs_f64()));
        Ok(Some(found))
    }

    /// A point whose model is made, or was made by a run that was killed.
    fn made(&mut self, asked: &Asked, key: &str, step: &str) -> Result<PointFound> {
        let folder = self.place.model(&asked.name);
        self.place.stamp(&asked.name, key)?;
        let text = self.bench.calibration.as_ref().map(|file| file.path.as_path());
        let there = folder.exists();
        printer::say(if there { format!("{step}: compressed by an earlier run") } else { step.to_string() });
        let mut of = None;
        let faults = match &asked.what {
            What::Made { recipe, drop: None } => {
                if !there {
                    by_recipe(recipe.as_ref().clone(), self.located, self.bench.name, text, &folder)?;
                }
                verify::check(&folder, None)?.faults
            }
            What::Made { recipe, drop: Some(drop) } => {
                let whole = self.place.whole(&asked.name);
                let fewer = self.without(drop, &whole)?;
                of = Some(fewer.fingerprint());
                if !there {
                    by_recipe(recipe.as_ref().clone(), &source::locate(&whole)?, self.bench.name, text, &folder)?;
                }
                verify::check(&folder, None)?.faults
            }
            What::Dropped(drop) => layers::verify::verify(&self.without(drop, &folder)?, &self.located.open()?)?.faults,
            What::Given(path) => anyhow::bail!("{}: a ready folder is not made", path.display()),
        };
        anyhow::ensure!(
            faults.is_empty(),
            "{}: the written file is not what was made: {}",
            folder.display(),
            faults.join("; ")
        );
        let found = self.bench.measure_point(asked, &source::locate(&folder)?, of.as_deref(), &mut self.counts)?;
        self.place.clear_whole(&asked.name)?;
        Ok(found)
    }

    /// The dense model without the layers of `drop`, in `folder`; made where it is not there.
    fn without(&self, drop: &Removal, folder: &Path) -> Result<Checkpoint> {
        if !folder.exists() {
            let dense = self.located.open()?;
            layers::write::drop_layers(&dense, drop, folder, &DropOptions::default(), &mut |_, _| {})?;
        }
        Ok(Checkpoint::open(folder)?)
    }

    /// Another dense model's record, likewise.
    fn reference(
        &mut self,
        path: &Path,
        (name, file): (&str, &str),
        own: Option<&str>,
    ) -> Result<Option<ReferenceFound>> {
        let located = match source::locate(path) {
            Err(_) if own.is_none() => return Ok(None),
            located => located?,
        };
        let key = self.bench.key(&json!(["reference", name, ModelHashes::of(&located.open()?, true)?]))?;
        let record = self.place.reference(file);
        if let Some(kept) = point::read(&record, Some(&key))? {
            return Ok(Some(kept.found));
        }
        let Some(step) = own else { return Ok(None) };
        printer::say(step);
        let found = self.bench.measure_reference(name, &located, &mut self.counts)?;
        self.place.land(&record, &Kept { curve: FORMAT, key, found: found.clone() })?;
        self.place.remove(&self.place.failure(file))?;
        Ok(Some(found))
    }
}
