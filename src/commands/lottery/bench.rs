//! Trainings carried out: one thread each, so that the bytes do not depend on how many there are; each leaves one record in
//! one rename, and saves itself as it goes.
//!
//! ```text
//! runs/NAME.json               what a training ended in: the same bytes each time
//! costs/NAME.json              what it took, apart
//! scores/NET-sSEED.json        what criteria made of the net before training
//! weights/NET-dense-sSEED-*    dense nets at the epochs that tickets go back to
//! timed/NET-ALLOCATION.json    thinner nets that take no more time, by this machine's clock
//! work/NAME.safetensors        a training in progress
//! ```

use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result};
use scruple_compress::{
    data::images::ImageSet,
    lottery::{
        Ticket,
        attacks::{Attacked, STEPS, attack},
        corruptions::{Corruption, SEVERITIES},
        energy::{Meter, Method},
        filters,
        scene::{Scene, of_each_class},
    },
    nn::{Net, Spec, Trainer, Weights, evaluate},
};
use scruple_weights::Checkpoint;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    config::{Config, Images, Setting},
    job::{Job, Start},
};
use crate::{printer, record};

mod timed;

/// Images a batch of the evaluation.
const EVALUATED: usize = 100;

/// The arm of a dense net in its full run, whose weights tickets go back to.
pub const DENSE: &str = "dense";

/// Added to a seed for weights that are drawn afresh.
const FRESH: u64 = 1_000_003;

/// Of the images to train on, one in so many is held out where there is something to choose by them.
const HELD_OUT: usize = 10;

/// What a training ended in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What was trained.
    pub job: Job,
    /// Hash of data, recipe and tests: records of another experiment are not mixed in.
    pub experiment: String,
    /// Multiply-adds of one image forward: convolutions and linears.
    pub multiply_adds: usize,
    /// Trained numbers.
    pub parameters: usize,
    /// What a batch of training keeps of its images on the way through, bytes.
    pub activation_bytes: usize,
    /// Mean cost on the test.
    pub loss: f64,
    /// Test images.
    pub images: usize,
    /// Of them told right.
    pub right: usize,
    /// Which: a bit an image, the first the highest of the first two letters.
    pub told: String,
    /// Under corruptions: kind, images told right by severity.
    pub corruptions: Vec<(String, Vec<usize>)>,
    /// Images under each corruption, and under FGSM.
    pub robust_images: usize,
    /// Under attack.
    pub attacks: Vec<Attacked>,
    /// SHA-256 of the final weights and running moments, f32 little-endian.
    pub weights_sha256: String,
}

impl Record {
    /// Percent told right.
    pub fn accuracy(&self) -> f64 {
        100.0 * self.right as f64 / self.images as f64
    }

    /// Percent of the images under corruptions that are told right without.
    pub fn unharmed(&self) -> f64 {
        let right = self.bits().into_iter().take(self.robust_images).filter(|right| *right).count();
        100.0 * right as f64 / self.robust_images.max(1) as f64
    }

    /// Percent told right over all corruptions and severities.
    pub fn corrupted(&self) -> Option<f64> {
        let all: usize = self.corruptions.iter().flat_map(|(_, right)| right).sum();
        let count = self.corruptions.iter().map(|(_, right)| right.len()).sum::<usize>() * self.robust_images;
        (count > 0).then(|| 100.0 * all as f64 / count as f64)
    }

    /// Whether each test image was told right.
    pub fn bits(&self) -> Vec<bool> {
        let digits = self.told.chars().filter_map(|c| c.to_digit(16));
        let bits = digits.flat_map(|digit| (0..4).rev().map(move |at| digit >> at & 1 == 1));
        bits.take(self.images).collect()
    }
}

fn bits_of(told: impl Iterator<Item = bool>) -> String {
    let told: Vec<bool> = told.collect();
    let four = |bits: &[bool]| (0..4).fold(0, |digit, at| digit << 1 | u32::from(bits.get(at) == Some(&true)));
    told.chunks(4).filter_map(|bits| char::from_digit(four(bits), 16)).collect()
}

/// What a training took on this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// CPU seconds of training.
    pub cpu_seconds: f64,
    /// Median wall seconds an epoch; absent where all of it came from a record of an interrupted run.
    pub epoch_seconds: Option<f64>,
    /// Joules.
    pub joules: f64,
    /// By what meter.
    pub method: String,
    /// Whether the training was interrupted, so that only its last part was seen.
    pub partial: bool,
    /// The processor it was done on: seconds of different ones are not compared. Absent where that is not known, or where it was
    /// more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// The same training under another net, whose record this one's is; it was paid for once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
}

/// Where trainings are done.
#[derive(Debug)]
pub struct Bench<'a> {
    /// What is asked.
    pub config: &'a Config,
    /// The images.
    pub images: &'a Images,
    out: PathBuf,
    experiment: String,
    /// The first images of each class, for criteria.
    pub scored: ImageSet,
    held: (ImageSet, ImageSet),
    robust: ImageSet,
    corrupted: Vec<(Corruption, Vec<ImageSet>)>,
    trained: AtomicUsize,
    /// Held while a dense net is trained again for weights that are gone.
    again: Mutex<()>,
    /// Trainings at once, which share the machine's memory.
    workers: usize,
    _lock: File,
}

fn hex(bytes: impl IntoIterator<Item = u8>) -> String {
    bytes.into_iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read<T: DeserializeOwned>(file: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("{}: cannot read the file", file.display()))?,
    };
    let what = || format!("{}: is not a record of this experiment; delete it to do its training again", file.display());
    serde_json::from_slice(&bytes).map(Some).with_context(what)
}

/// CPU seconds of the calling thread.
fn thread_seconds() -> f64 {
    // SAFETY: timespec is plain numbers, for which zero is valid, and clock_gettime only writes to it.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time);
        time
    };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

impl<'a> Bench<'a> {
    /// Makes the folder what it has to be.
    pub fn open(config: &'a Config, images: &'a Images, out: &Path) -> Result<Self> {
        for folder in ["runs", "costs", "scores", "weights", "work"] {
            let folder = out.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("{}: cannot create the folder", folder.display()))?;
        }
        let file = out.join("work/lock");
        let lock = File::create(&file).with_context(|| format!("{}: cannot create the file", file.display()))?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            anyhow::bail!("{}: another run is at work here; wait for it, or give another folder", out.display());
        }
        let mut hash = Sha256::new();
        for set in [&images.train, &images.test] {
            for size in [set.height, set.width, set.channels, set.classes, set.len()] {
                hash.update((size as u64).to_le_bytes());
            }
            hash.update(&set.labels);
            hash.update(&set.pixels);
        }
        hash.update(serde_json::to_vec(&(&config.recipe, &config.robustness, config.score_images))?);
        let experiment = hex(hash.finalize().into_iter().take(16));
        let robust = images.test.select(0..images.test.len().min(config.robustness.images));
        let at_all =
            |kind: Corruption| (kind, (1..=SEVERITIES).map(|severity| kind.apply(severity, &robust)).collect());
        let corrupted = if robust.is_empty() { Vec::new() } else { Corruption::ALL.map(at_all).into() };
        let held = images.train.split((images.train.len() / HELD_OUT).max(1), 0)?;
        let scored = of_each_class(&images.train, config.score_images);
        let (trained, again, workers) = (AtomicUsize::new(0), Mutex::new(()), rayon::current_num_threads());
        let out = out.to_path_buf();
        Ok(Self {
            config,
            images,
            out,
            experiment,
            scored,
            held,
            robust,
            corrupted,
            trained,
            again,
            workers,
            _lock: lock,
        })
    }

    /// Trainings this run has done.
    pub fn trained(&self) -> usize {
        self.trained.load(Ordering::Relaxed)
    }

    /// Where a dense net's weights at the end of so many epochs are; at the end of its run without a number.
    fn weights_file(&self, net: &str, seed: u64, epoch: Option<u64>) -> PathBuf {
        let epoch = epoch.map_or("final".into(), |epoch| format!("e{epoch}"));
        self.out.join("weights").join(format!("{net}-dense-s{seed}-{epoch}.safetensors"))
    }

    /// A dense net's weights at an epoch it was asked to keep. Where they are gone it is trained again, and has to end in the
    /// weights its record names.
    pub fn dense_weights(&self, net: &str, spec: &Spec, seed: u64, epoch: Option<u64>) -> Result<Weights> {
        let file = self.weights_file(net, seed, epoch);
        // Only who finds them gone waits, and looks again.
        let again = (!file.exists()).then(|| self.again.lock().unwrap_or_else(PoisonError::into_inner));
        if !file.exists() {
            let job = self.dense_job(net, seed)?;
            printer::say(format!("{}: its weights are gone, so it is trained again", job.name()));
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().context("no thread to train on")?;
            pool.install(|| self.one(&job)).with_context(|| job.name())?;
        }
        drop(again);
        Ok(Weights::load(&spec.graph()?, &Checkpoint::open(&file)?)?)
    }

    /// The full run of a dense net.
    pub fn dense_job(&self, net: &str, seed: u64) -> Result<Job> {
        Ok(Job {
            net: net.into(),
            arm: DENSE.into(),
            seed,
            spec: self.dense(net)?,
            start: Start::Theta0,
            epochs: self.config.recipe.epochs,
            from_epoch: 0,
            held_out: false,
        })
    }

    /// Epochs at whose beginning a training leaves its weights: of dense nets the start, and what tickets go back to.
    fn kept_epochs(&self, job: &Job) -> Vec<u64> {
        let of_net = |setting: &&Setting| setting.net == job.net && !setting.trained.is_empty();
        let mut epochs: Vec<u64> = match job.arm == DENSE {
            true => self.config.settings.iter().filter(of_net).flat_map(|it| it.rewind.iter().copied()).collect(),
            false => return Vec::new(),
        };
        epochs.push(0);
        epochs.sort_unstable();
        epochs.dedup();
        epochs
    }

    /// The dense net of a name.
    pub fn dense(&self, net: &str) -> Result<Spec> {
        Ok(self.config.net(net)?.spec(&self.images.train))
    }

    /// Carries out what of `jobs` has no record yet, as many at once as there are threads; the records in the order asked.
    pub fn train(&self, jobs: &[Job]) -> Result<Vec<Record>> {
        let mut open = BTreeSet::new();
        let mut order = Vec::new();
        for job in jobs {
            let name = job.name();
            if self.known(job)?.is_none() && !self.twin(job)? && open.insert(name) {
                order.push(job);
            }
        }
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<anyhow::Error>> = Mutex::new(None);
        let work = || {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
            loop {
                let stop = || failed.lock().map_or(true, |failed| failed.is_some());
                let Some(job) = order.get(next.fetch_add(1, Ordering::Relaxed)).filter(|_| !stop()) else { return };
                let done = match &pool {
                    Ok(pool) => pool.install(|| self.one(job)).with_context(|| job.name()),
                    Err(error) => Err(anyhow::anyhow!("no thread to train on: {error}")),
                };
                if let (Err(error), Ok(mut failed)) = (done, failed.lock()) {
                    failed.get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.workers.min(order.len()) {
                scope.spawn(work);
            }
        });
        if let Some(error) = failed.into_inner().ok().flatten() {
            return Err(error);
        }
        let found =
            |job: &Job| self.known(job)?.with_context(|| format!("{}: the training left no record", job.name()));
        jobs.iter().map(found).collect()
    }

    /// The record of a training that is done.
    fn known(&self, job: &Job) -> Result<Option<Record>> {
        let file = self.out.join("runs").join(format!("{}.json", job.name()));
        let Some(record) = read::<Record>(&file)? else { return Ok(None) };
        anyhow::ensure!(
            record.experiment == self.experiment && record.job == *job,
            "{}: is of an experiment with other data, recipe or tests; give another folder, or delete the file",
            file.display()
        );
        Ok(Some(record))
    }

    /// Takes over the record of the same training under another dense net, if there is one: what is left of a family's nets in
    /// the end is one net.
    fn twin(&self, job: &Job) -> Result<bool> {
        if job.start != Start::Theta0 || job.arm == DENSE {
            return Ok(false);
        }
        for net in self.config.nets.iter().filter(|net| net.name != job.net) {
            let name = Job { net: net.name.clone(), ..job.clone() }.name();
            let file = |folder: &str, name: &str| self.out.join(folder).join(format!("{name}.json"));
            let Some(found) = read::<Record>(&file("runs", &name))? else { continue };
            let record = Record { job: Job { net: job.net.clone(), ..found.job }, ..found };
            if record.experiment != self.experiment || record.job != *job {
                continue;
            }
            if let Some(cost) = self.cost(&name)? {
                let cost = Cost { same_as: Some(name), ..cost };
                record::write_whole(&file("costs", &job.name()), &record::pretty(&cost)?)?;
            }
            record::write_whole(&file("runs", &job.name()), &record::pretty(&record)?)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn start(&self, job: &Job) -> Result<Weights> {
        let dense = self.dense(&job.net)?;
        let graph = job.spec.graph()?;
        Ok(match &job.start {
            Start::Theta0 => Weights::start(&graph, job.seed),
            Start::Reinit => Weights::start(&graph, job.seed + FRESH),
            Start::Filters { criterion } => {
                let weights = Weights::start(&dense.graph()?, job.seed);
                let scaling = self.images.train.scaling();
                let mut scene = Scene::new(&dense, &weights, false, &self.scored, &scaling, job.seed)?;
                let chosen = filters::choose(*criterion, &mut scene, &job.spec)?;
                filters::weights(&dense, &weights, &job.spec, &chosen)?
            }
            Start::Rewound { epoch, kept } => {
                let weights = self.dense_weights(&job.net, &dense, job.seed, *epoch)?;
                Ticket::keeping(&dense, kept.clone())?.weights(&dense.graph()?, &weights)?
            }
        })
    }

    /// One training, on this thread alone.
    fn one(&self, job: &Job) -> Result<()> {
        let name = job.name();
        let keep = self.kept_epochs(job);
        let (train, test) =
            if job.held_out { (&self.held.0, &self.held.1) } else { (&self.images.train, &self.images.test) };
        let recipe = self.config.recipe.recipe(job.seed, job.epochs, train);
        let scaling = recipe.scaling.clone();
        let mut trainer = Trainer::from_weights(&job.spec, recipe, train, self.start(job)?, None)?;
        let saved = self.out.join("work").join(format!("{name}.safetensors"));
        let partial = saved.exists();
        match partial {
            true => trainer.resume(&saved)?,
            false if job.from_epoch > 0 => trainer.start_at(job.from_epoch)?,
            false => {}
        }
        let (meter, cpu) = (Meter::start(self.config.carbon, false), thread_seconds());
        let mut epochs = Vec::new();
        let mut told = Instant::now();
        loop {
            let epoch = trainer.step_number() / trainer.epoch_steps();
            let whole = trainer.step_number().is_multiple_of(trainer.epoch_steps());
            if whole && keep.contains(&epoch) && !trainer.is_done() {
                trainer.weights().write(trainer.net().graph(), &self.weights_file(&job.net, job.seed, Some(epoch)))?;
            }
            if trainer.is_done() {
                break;
            }
            let started = Instant::now();
            let until = (epoch + 1) * trainer.epoch_steps();
            trainer.run(until, &mut |_| ControlFlow::Continue(()))?;
            epochs.push(started.elapsed().as_secs_f64());
            if told.elapsed().as_secs_f64() >= self.config.save_seconds && !trainer.is_done() {
                trainer.save(&saved)?;
                printer::say(format!("{name}: {} of {} epochs", epoch + 1, job.epochs));
                told = Instant::now();
            }
        }
        let cpu = thread_seconds() - cpu;
        let energy = meter.read();
        let joules = match energy.method {
            Method::Estimate => self.config.carbon.estimate(cpu, energy.wall_seconds / self.workers as f64),
            // Trainings beside it draw too: by their share of the CPU time.
            _ => energy.joules * cpu / energy.cpu_seconds.max(cpu),
        };
        epochs.sort_by(f64::total_cmp);
        let method = serde_json::to_value(energy.method)?.as_str().unwrap_or_default().to_string();
        let epoch_seconds = epochs.get(epochs.len() / 2).copied();
        let processor = record::cpu_model();
        let cost = Cost { cpu_seconds: cpu, epoch_seconds, joules, method, partial, cpu: processor, same_as: None };
        let record = self.measure(job, trainer.weights(), test, &scaling)?;
        if self.known(job)?.is_some_and(|before| before.weights_sha256 != record.weights_sha256) {
            // Nothing is left that a ticket could start with.
            let left = keep.into_iter().map(|epoch| self.weights_file(&job.net, job.seed, Some(epoch)));
            for file in left.chain([saved]).filter(|file| file.exists()) {
                fs::remove_file(&file).with_context(|| format!("{}: cannot remove the file", file.display()))?;
            }
            anyhow::bail!(
                "trained again, the net ends in other weights than its record names, so tickets of both cannot be compared; give \
                 another folder"
            );
        }
        if !keep.is_empty() {
            trainer.weights().write(trainer.net().graph(), &self.weights_file(&job.net, job.seed, None))?;
        }
        let (costs, runs) = (self.out.join("costs"), self.out.join("runs"));
        record::write_whole(&costs.join(format!("{name}.json")), &record::pretty(&cost)?)?;
        record::write_whole(&runs.join(format!("{name}.json")), &record::pretty(&record)?)?;
        if saved.exists() {
            fs::remove_file(&saved).with_context(|| format!("{}: cannot remove the file", saved.display()))?;
        }
        self.trained.fetch_add(1, Ordering::Relaxed);
        printer::say(format!("{name}: {:.2} % right, {cpu:.0} s", record.accuracy()));
        Ok(())
    }

    fn measure(
        &self,
        job: &Job,
        weights: &Weights,
        test: &ImageSet,
        scaling: &scruple_compress::data::images::Scaling,
    ) -> Result<Record> {
        let mut net = Net::new(&job.spec, EVALUATED.min(test.len()))?;
        let clean = evaluate(&mut net, weights, test, scaling)?;
        let mut corruptions = Vec::new();
        let mut attacks = Vec::new();
        if !job.held_out {
            for (kind, sets) in &self.corrupted {
                let right = |set: &ImageSet| -> Result<usize> { Ok(evaluate(&mut net, weights, set, scaling)?.right) };
                corruptions.push((kind.name().to_string(), sets.iter().map(right).collect::<Result<Vec<_>>>()?));
            }
            let robustness = &self.config.robustness;
            if !self.robust.is_empty() {
                for &epsilon in &robustness.epsilons {
                    attacks.push(attack(&mut net, weights, &self.robust, scaling, epsilon, 1)?);
                }
            }
            let few = test.select(0..test.len().min(robustness.pgd_images));
            if !few.is_empty() {
                attacks.push(attack(&mut net, weights, &few, scaling, robustness.pgd_epsilon, 1)?);
                attacks.push(attack(&mut net, weights, &few, scaling, robustness.pgd_epsilon, STEPS)?);
            }
        }
        let graph = net.graph();
        let mut hash = Sha256::new();
        weights.values.iter().chain(&weights.running).for_each(|value| hash.update(value.to_le_bytes()));
        Ok(Record {
            job: job.clone(),
            experiment: self.experiment.clone(),
            multiply_adds: graph.multiply_adds(),
            parameters: graph.layout().len(),
            activation_bytes: 4 * graph.activations() * self.config.recipe.batch,
            loss: clean.loss,
            images: test.len(),
            right: clean.right,
            told: bits_of(clean.answers.iter().zip(&test.labels).map(|(answer, label)| answer == label)),
            corruptions,
            robust_images: self.robust.len(),
            attacks,
            weights_sha256: hex(hash.finalize()),
        })
    }

    /// What a training took, if it was seen.
    pub fn cost(&self, name: &str) -> Result<Option<Cost>> {
        read(&self.out.join("costs").join(format!("{name}.json")))
    }

    /// Notes CPU seconds that something other than a training took, on this processor.
    pub fn spent(&self, name: &str, cpu_seconds: f64, cpu: Option<String>) -> Result<()> {
        let joules = self.config.carbon.estimate(cpu_seconds, 0.0);
        let method = "estimate".into();
        let cost = Cost { cpu_seconds, epoch_seconds: None, joules, method, partial: false, cpu, same_as: None };
        record::write_whole(&self.out.join("costs").join(format!("{name}.json")), &record::pretty(&cost)?)
    }

    /// The records of these trainings, one a line.
    pub fn lines(&self, names: &[String]) -> Result<Vec<u8>> {
        let mut lines = Vec::new();
        for name in names {
            let file = self.out.join("runs").join(format!("{name}.json"));
            if let Some(record) = read::<Record>(&file)? {
                lines.extend(serde_json::to_vec(&record)?);
                lines.push(b'\n');
            }
        }
        Ok(lines)
    }

    /// What `make` gives of `kind` for a net and a seed, kept in a file; `asked` is what it depends on.
    pub fn remember<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        asked: &impl Serialize,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        #[derive(Serialize, Deserialize)]
        struct Kept<T> {
            experiment: String,
            asked: serde_json::Value,
            found: T,
        }
        let file = self.out.join("scores").join(format!("{name}.json"));
        let asked = serde_json::to_value(asked)?;
        if let Some(kept) = read::<Kept<T>>(&file)?
            && kept.experiment == self.experiment
            && kept.asked == asked
        {
            return Ok(kept.found);
        }
        let kept = Kept { experiment: self.experiment.clone(), asked, found: make()? };
        record::write_whole(&file, &record::pretty(&kept)?)?;
        Ok(kept.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_right_reads_back() {
        for count in [1, 4, 7, 12] {
            let told: Vec<bool> = (0..count).map(|at| at % 3 == 0).collect();
            let record = Record {
                job: Job {
                    net: "n".into(),
                    arm: "a".into(),
                    seed: 1,
                    spec: serde_json::from_str(
                        r#"{"architecture": {"kind": "mlp", "hidden": []},
                            "input": {"height": 1, "width": 1, "channels": 1}, "classes": 2}"#,
                    )
                    .unwrap(),
                    start: Start::Theta0,
                    epochs: 1,
                    from_epoch: 0,
                    held_out: false,
                },
                experiment: String::new(),
                multiply_adds: 0,
                parameters: 0,
                activation_bytes: 0,
                loss: 0.0,
                images: count,
                right: 0,
                told: bits_of(told.iter().copied()),
                corruptions: Vec::new(),
                robust_images: 0,
                attacks: Vec::new(),
                weights_sha256: String::new(),
            };
            assert_eq!(record.bits(), told);
        }
    }
}
