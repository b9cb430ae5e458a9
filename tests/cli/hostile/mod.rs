//! Files that are damaged, mistaken for something else, or made to do harm. Each is generated here, and has the exit code
//! and the words that the program must answer with: one sentence on stderr, nothing on stdout, nothing written, no signal,
//! within the memory and time of a small program.

mod arrays;
mod config;
mod gguf;
mod index;
mod places;
mod recipe;
mod safetensors;

use std::{
    fs,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::support::program;

/// Address space of the program: a refusal needs none to speak of, an allocation by a lying size dies of it.
const MEMORY: libc::rlim_t = 1 << 30;

/// Far more than any refusal takes on a busy machine; a loop without end is stopped here.
const PATIENCE: Duration = Duration::from_secs(20);

/// The smallest corpus that counts as one.
const FEWEST: usize = 300;

/// What the program is asked to do with the files.
#[derive(Debug, Clone)]
pub enum Verb {
    /// Open the path and write it anew.
    Convert,
    /// Read configuration, tokenizer and weights, and run.
    Generate,
    /// Read recipe and model, and plan.
    Plan,
}

/// One case of the corpus.
#[derive(Debug, Clone)]
pub struct Case {
    /// What is wrong, in words.
    pub name: String,
    /// Files to lay out, by name.
    pub files: Vec<(String, Vec<u8>)>,
    /// Makes what is not a plain file, in the folder of the case.
    pub extra: Option<fn(&Path)>,
    /// What is opened, relative to the folder of the case; empty for the folder.
    pub open: String,
    pub verb: Verb,
    /// Expected exit code.
    pub code: i32,
    /// Words of the sentence on stderr.
    pub words: Vec<String>,
}

impl Case {
    /// A single file that `convert` refuses.
    pub fn file(name: impl Into<String>, file: &str, bytes: Vec<u8>, words: &[&str]) -> Self {
        Self::folder(name, vec![(file.to_string(), bytes)], words).opening(file)
    }

    /// A folder that `convert` refuses.
    pub fn folder(name: impl Into<String>, files: Vec<(String, Vec<u8>)>, words: &[&str]) -> Self {
        let words = words.iter().map(|word| (*word).to_string()).collect();
        Self { name: name.into(), files, extra: None, open: String::new(), verb: Verb::Convert, code: 2, words }
    }

    pub fn opening(mut self, open: &str) -> Self {
        self.open = open.to_string();
        self
    }

    pub fn by(mut self, verb: Verb) -> Self {
        self.verb = verb;
        self
    }

    pub fn with(mut self, extra: fn(&Path)) -> Self {
        self.extra = Some(extra);
        self
    }

    /// The files are unusual, but right.
    pub fn accepted(mut self) -> Self {
        self.code = 0;
        self
    }

    fn command(&self, folder: &Path, out: &Path) -> Command {
        let path = if self.open.is_empty() { folder.to_path_buf() } else { folder.join(&self.open) };
        let mut command = program();
        match self.verb {
            Verb::Convert => command.arg("convert").arg(path).arg("-o").arg(out),
            Verb::Generate => command.arg("generate").arg(path).args(["--prompt", "w1", "--max-tokens", "1"]),
            Verb::Plan => {
                command.arg("compress").arg(path).args(["--dry-run", "--recipe"]).arg(folder.join("recipe.toml"))
            }
        };
        command
    }

    /// What went otherwise than expected, if anything.
    fn fault(&self) -> Option<String> {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("case");
        fs::create_dir(&folder).unwrap();
        for (name, bytes) in &self.files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        if let Some(extra) = self.extra {
            extra(&folder);
        }
        let out = place.path().join("out");
        let before = listing(place.path());
        let mut command = self.command(&folder, &out);
        // SAFETY: setrlimit is safe to call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit { rlim_cur: MEMORY, rlim_max: MEMORY };
                libc::setrlimit(libc::RLIMIT_AS, &limit);
                Ok(())
            });
        }
        let mut child = command
            .env("RAYON_NUM_THREADS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if started.elapsed() > PATIENCE {
                child.kill().unwrap();
                return Some(format!("{}: still running after {PATIENCE:?}", self.name));
            }
            thread::sleep(Duration::from_millis(2));
        }
        let run = child.wait_with_output().unwrap();
        let (said, printed) = (String::from_utf8_lossy(&run.stderr), String::from_utf8_lossy(&run.stdout));
        let fault = |what: String| Some(format!("{}: {what}\n    said: {}", self.name, said.trim_end()));
        if let Some(signal) = run.status.signal() {
            return fault(format!("died of signal {signal}"));
        }
        if run.status.code() != Some(self.code) {
            return fault(format!("ended with {:?}, expected {}", run.status.code(), self.code));
        }
        if self.code == 0 {
            return None;
        }
        if !said.starts_with("error: ") || said.trim_end().lines().count() != 1 {
            return fault("expected one line that begins with `error: `".to_string());
        }
        if said.len() > 20_000 {
            return fault(format!("the sentence has {} bytes", said.len()));
        }
        if !printed.is_empty() {
            return fault(format!("printed {printed:?}"));
        }
        if let Some(word) = self.words.iter().find(|word| !said.contains(*word)) {
            return fault(format!("`{word}` is missing"));
        }
        let after = listing(place.path());
        (after != before).then(|| format!("{}: left {after:?} behind", self.name))
    }
}

fn listing(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn corpus() -> Vec<Case> {
    [
        arrays::cases(),
        safetensors::cases(),
        index::cases(),
        gguf::cases(),
        config::cases(),
        recipe::cases(),
        places::cases(),
    ]
    .concat()
}

#[test]
fn every_hostile_input_gets_its_exit_code_and_its_sentence() {
    let cases = corpus();
    let mut names: Vec<_> = cases.iter().map(|case| case.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        panic!("two cases are called `{}`", twice[0]);
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut faults = Vec::new();
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            faults.extend(case.fault());
        }
        faults
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let faults: Vec<String> = thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        running.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(faults.is_empty(), "{} of {} cases:\n{}", faults.len(), cases.len(), faults.join("\n"));
    assert!(cases.len() >= FEWEST, "the corpus has shrunk to {} cases", cases.len());
}
