//! One record a finished run, in a folder; and the threads that make them.
//!
//! A run is asked for by name. If its record is there it is read, otherwise the run is made and its record written beside
//! and then in its place, so that a record is whole or not there. Either way what comes back was read, so that a suite
//! that went on after a stop finds the very numbers one without a stop does.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use scruple_weights::Error as WeightsError;
use serde::{Serialize, de::DeserializeOwned};

use super::ground::Ground;
use crate::{Error, Result};

/// The folder of records within the output.
const RUNS: &str = "runs";

/// Records in a folder.
pub struct Store<'a> {
    folder: PathBuf,
    told: &'a (dyn Fn(&str) + Sync),
}

impl std::fmt::Debug for Store<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.folder.display())
    }
}

impl<'a> Store<'a> {
    /// The records of the suite `suite` in the folder `out`, which is made where it is not; `told` hears the name of every
    /// run that was made or read.
    ///
    /// # Errors
    /// If the folder holds runs on other ground, or cannot be written.
    pub fn open(out: &Path, suite: &str, ground: &Ground, told: &'a (dyn Fn(&str) + Sync)) -> Result<Self> {
        let folder = out.join(RUNS).join(suite);
        let io = |action: &str, path: &Path, error| Error::Weights(WeightsError::io(path, action, error));
        fs::create_dir_all(&folder).map_err(|error| io("create the folder", &folder, error))?;
        let (file, own) = (folder.join("ground.json"), text(&ground.identity())?);
        match fs::read_to_string(&file) {
            Ok(found) if found == own => {}
            Ok(_) => {
                return Err(Error::Weights(WeightsError::file(
                    &file,
                    "is of runs on other images, another net or another schedule; give the options they were made with, \
                     or another folder"
                        .to_string(),
                )));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => write(&file, &own)?,
            Err(error) => return Err(io("read the record", &file, error)),
        }
        Ok(Self { folder, told })
    }

    /// What run `name` found: as it was recorded, or by `run`, recorded now.
    ///
    /// # Errors
    /// If the record cannot be read or written, and those of the run.
    pub fn once<T: Serialize + DeserializeOwned>(&self, name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let file = self.folder.join(format!("{name}.json"));
        if !file.is_file() {
            write(&file, &text(&run()?)?)?;
        }
        let found = fs::read_to_string(&file)
            .map_err(|error| Error::Weights(WeightsError::io(&file, "read the record", error)))?;
        let found = serde_json::from_str(&found).map_err(|error| {
            Error::Weights(WeightsError::file(&file, format!("is no record of this run: {error}; delete it")))
        })?;
        (self.told)(name);
        Ok(found)
    }
}

fn text(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Recipe(error.to_string()))?;
    Ok(text + "\n")
}

fn write(file: &Path, text: &str) -> Result<()> {
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let write = || {
        let mut out = fs::File::create(&part)?;
        std::io::Write::write_all(&mut out, text.as_bytes())?;
        out.sync_all()?;
        fs::rename(&part, file)
    };
    write().map_err(|error| Error::Weights(WeightsError::io(file, "write the record", error)))
}

/// One piece of work that leaves records.
pub type Job<'a> = Box<dyn Fn() -> Result<()> + Send + Sync + 'a>;

/// Does all `jobs`, as many at a time as the pool of threads has, each on one thread: small nets gain nothing from more.
///
/// # Errors
/// The first error in the order of the jobs that were begun; no further ones are then begun.
pub fn work(jobs: &[Job<'_>]) -> Result<()> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let errors = Mutex::new(Vec::new());
    let worker = || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        while !failed.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(at) else { break };
            let done = match &pool {
                Ok(pool) => pool.install(job),
                Err(error) => Err(Error::Recipe(format!("a thread cannot be begun: {error}"))),
            };
            if let Err(error) = done {
                failed.store(true, Ordering::Relaxed);
                errors.lock().expect("no worker panics while it holds the list").push((at, error));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..rayon::current_num_threads().min(jobs.len()) {
            scope.spawn(worker);
        }
    });
    let errors = errors.into_inner().expect("no worker panics while it holds the list");
    errors.into_iter().min_by_key(|(at, _)| *at).map_or(Ok(()), |(_, error)| Err(error))
}
