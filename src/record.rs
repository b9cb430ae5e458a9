//! Records: what a run found (the same bytes for the same inputs), and apart from it the circumstances of the run
//! (times, memory, host), which differ each time.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use scruple_compress::clock::cpu_seconds;
use serde::Serialize;
use serde_json::{Value, json};

/// The circumstances of a run.
#[derive(Debug)]
pub struct Run {
    verb: &'static str,
    started: Instant,
    cpu: f64,
    /// Further figures that differ from run to run.
    pub extra: serde_json::Map<String, Value>,
}

fn usage() -> libc::rusage {
    // SAFETY: rusage is plain numbers, for which zero is valid, and getrusage only writes to it.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    }
}

/// Largest resident set of this process so far, bytes.
pub fn peak_rss() -> u64 {
    usage().ru_maxrss as u64 * 1024
}

impl Run {
    /// Starts the clock of `verb`.
    pub fn start(verb: &'static str) -> Self {
        Self { verb, started: Instant::now(), cpu: cpu_seconds(), extra: serde_json::Map::new() }
    }

    /// The circumstances so far, as JSON.
    pub fn to_json(&self) -> Value {
        let mut value = json!({
            "verb": self.verb,
            "version": env!("CARGO_PKG_VERSION"),
            "finished_unix": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            "wall_seconds": self.started.elapsed().as_secs_f64(),
            "cpu_seconds": cpu_seconds() - self.cpu,
            "peak_rss_bytes": peak_rss(),
            "threads": rayon::current_num_threads(),
            "host": { "os": std::env::consts::OS, "arch": std::env::consts::ARCH, "cpu": cpu_model() },
        });
        if let Value::Object(object) = &mut value {
            object.extend(self.extra.clone());
        }
        value
    }
}

/// The processor's name with its family and model, where the system tells: virtual machines give different ones the same name.
pub fn cpu_model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let of = |key: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|found| found.trim() == key))?;
        Some(line.split_once(':')?.1.trim())
    };
    let numbers =
        ["cpu family", "model"].map(|key| of(key).map(|value| format!(", {key} {value}")).unwrap_or_default());
    Some(format!("{}{}", of("model name")?, numbers.concat()))
}

/// Writes `bytes` to `path` by way of a sibling file, so that a reader sees the old or the new content, never a part.
pub fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    let part = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&part)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write()
        .inspect_err(|_| drop(fs::remove_file(&part)))
        .with_context(|| format!("{}: cannot write {} bytes", path.display(), bytes.len()))
}

/// Where `-o DIR` puts the record of a verb that makes no checkpoint: creates the folder.
pub fn folder(out: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(out).with_context(|| format!("{}: cannot create the folder", out.display()))?;
    Ok(out.to_path_buf())
}

/// Writes `record` as `NAME.json` and the circumstances as `run.json` into `out`.
pub fn save(out: &Path, name: &str, record: &impl Serialize, run: &Run) -> anyhow::Result<()> {
    let folder = folder(out)?;
    write_whole(&folder.join(format!("{name}.json")), &pretty(record)?)?;
    write_whole(&folder.join("run.json"), &pretty(&run.to_json())?)
}

/// `value` as JSON text for a file, with a line end.
pub fn pretty(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}
