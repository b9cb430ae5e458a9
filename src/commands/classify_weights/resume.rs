//! What stands beside a file of answers, as `FILE.identity`: by which experts and of which states of which models they are,
//! so that a later run goes on with its own answers only. The first line is of the experts, each further one of a model.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use scruple_weights::{digest, probex::registry::Registry};
use serde::{Deserialize, Serialize};

use super::Options;
use crate::{record, source};

/// How every line of an answer begins.
const BEGINNING: &[u8] = b"{\"model\":";

/// What to do about a file of other answers.
const ADVICE: &str = "give another file, or move this one away with the `.identity` beside it";

/// By what answers are made.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// SHA-256 of each expert's file.
    experts: Vec<String>,
    coverage: String,
    nearest: usize,
}

impl Asked {
    pub fn of(registry: &Registry, options: &Options) -> Result<Self> {
        let experts =
            registry.experts.par_iter().map(|(file, _)| digest::sha256_file(file)).collect::<Result<_, _>>()?;
        Ok(Self { experts, coverage: options.coverage.to_string(), nearest: options.nearest })
    }

    /// What differs from `other`, in a word.
    fn differs(&self, other: &Self) -> Option<&'static str> {
        if self.experts != other.experts {
            return Some("experts");
        }
        if self.coverage != other.coverage {
            return Some("--coverage");
        }
        (self.nearest != other.nearest).then_some("--nearest")
    }
}

/// A model that has a line, or is about to.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    model: String,
    /// The states of its files; none where they cannot be opened.
    identity: Vec<String>,
}

impl Known {
    fn of(path: &Path) -> Self {
        let identity = source::locate(path).and_then(|place| Ok(place.open()?.identity())).unwrap_or_default();
        Self { model: path.display().to_string(), identity }
    }
}

/// The file beside the answers.
#[derive(Debug)]
pub struct Beside {
    answers: PathBuf,
    out: File,
    known: HashMap<String, Vec<String>>,
}

impl Beside {
    /// Reads what stands beside `answers`, or begins it where there are none yet.
    pub fn open(answers: &Path, asked: Asked, has_answers: bool) -> Result<Self> {
        let mut file = answers.as_os_str().to_owned();
        file.push(".identity");
        let file = PathBuf::from(file);
        let mut text = serde_json::to_string(&asked)? + "\n";
        let mut known = HashMap::new();
        if has_answers {
            let before = match fs::read_to_string(&file) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    anyhow::bail!("{}: nothing says by which experts these answers are; {ADVICE}", answers.display())
                }
                read => read.with_context(|| format!("{}: cannot be read", file.display()))?,
            };
            let (first, rest) = before.split_once('\n').unwrap_or((&before, ""));
            let other: Asked = serde_json::from_str(first)
                .with_context(|| format!("{}: does not say by which experts the answers are", file.display()))?;
            if let Some(what) = asked.differs(&other) {
                anyhow::bail!("{}: the answers there are by other {what}; {ADVICE}", answers.display());
            }
            // A line that was cut by a kill is of a model without an answer.
            for line in rest.lines() {
                let Ok(of) = serde_json::from_str::<Known>(line) else { continue };
                text.push_str(&format!("{line}\n"));
                known.insert(of.model, of.identity);
            }
        }
        record::write_whole(&file, text.as_bytes())?;
        let out = OpenOptions::new().append(true).open(&file);
        let out = out.with_context(|| format!("{}: cannot be written", file.display()))?;
        Ok(Self { answers: answers.to_path_buf(), out, known })
    }

    /// Notes models before they are answered.
    pub fn add(&mut self, paths: &[&PathBuf]) -> Result<()> {
        let models: Vec<Known> = paths.par_iter().map(|path| Known::of(path)).collect();
        let mut lines = Vec::new();
        for model in models {
            serde_json::to_writer(&mut lines, &model)?;
            lines.push(b'\n');
        }
        let written = self.out.write_all(&lines).and_then(|()| self.out.sync_data());
        written.with_context(|| format!("{}.identity: cannot be written", self.answers.display()))
    }

    /// Refuses an answer to another state of the model at `path`.
    pub fn expect_same(&self, path: &Path) -> Result<()> {
        let Known { model, identity } = Known::of(path);
        ensure!(
            self.known.get(&model) == Some(&identity),
            "{}: `{model}` is not what it was when it was answered; take its line out, or {ADVICE}",
            self.answers.display()
        );
        Ok(())
    }
}

/// The lines of `bytes` that are whole. What a kill left of the last one may be dropped; anything else may not.
pub fn whole_lines(bytes: &[u8]) -> Result<&str, String> {
    let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let (whole, tail) = bytes.split_at(end);
    let common = tail.len().min(BEGINNING.len());
    if tail[..common] != BEGINNING[..common] {
        return Err("ends in what is no answer, so it is left as it is; name a file of answers, or a new one".into());
    }
    std::str::from_utf8(whole).map_err(|_| "holds what is no text, so it is no file of answers".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cut_answer_is_dropped() {
        let line = "{\"model\":\"a\"}\n";
        assert_eq!(whole_lines(b""), Ok(""));
        for tail in ["", "{", "{\"mod", "{\"model\":\"b"] {
            assert_eq!(whole_lines(format!("{line}{tail}").as_bytes()), Ok(line));
        }
        // In the middle of a letter.
        assert_eq!(whole_lines(&[line.as_bytes(), b"{\"model\":\"\xc3"].concat()), Ok(line));
        for foreign in ["my thesis", "{\"weights\": 1}", "a,b,c"] {
            assert!(whole_lines(foreign.as_bytes()).unwrap_err().contains("no answer"), "{foreign}");
        }
    }
}
