//! Losses of sets, asked for again and again: remembered, kept on disk as they come, and compared in pairs.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use super::corpus::{Corpus, Question};
use super::{
    Removal,
    corpus::hex,
    sweep::{self, Loss, Reference, Sequence, Work, applications},
};
use crate::{Error, Result, model::Decoder};

/// Changes when a score of the same set on the same text would.
const VERSION: u32 = 1;

/// Weight of the right option's negative log-likelihood beside the share of wrong answers: it only parts equals.
const TIE_BREAK: f64 = 1e-4;

/// Tokens of a walk: what a killed run loses at most.
const WALK_TOKENS: usize = 1024;

/// Batches before a race drops anybody.
const BATCHES_BEFORE_DROPPING: usize = 4;

/// What a set is judged by; lower is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// KL(dense ‖ pruned), nats a token: the target is the dense model, not the text.
    Kl,
    /// Negative log-likelihood of the text, nats a token.
    Nll,
    /// Share of multiple-choice questions answered wrongly; equals are parted by the right option's likelihood.
    Choices,
}

/// How a race over batches of units drops candidates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Race {
    /// A candidate is dropped when its mean difference to the best is more than so many standard errors above 0; 0 for no
    /// race: everybody is scored on everything.
    pub errors: f64,
    /// Units of a batch.
    pub batch: usize,
}

/// A candidate after a selection.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The set.
    pub set: Removal,
    /// Mean of the objective over the units it was scored on.
    pub mean: f64,
    /// Its standard error.
    pub stderr: Option<f64>,
    /// Units it was scored on.
    pub units: usize,
    /// Mean difference to the best, over the units of both, and its standard error.
    pub behind: (f64, Option<f64>),
}

impl Scored {
    /// Whether it cannot be told from the best by `errors` standard errors of the paired difference.
    pub fn ties(&self, errors: f64) -> bool {
        let (difference, stderr) = self.behind;
        difference - errors * stderr.unwrap_or(0.0) <= 1e-12
    }
}

/// A mean over units with its standard error.
fn mean(values: &[f64]) -> (f64, Option<f64>) {
    let figure = crate::measure::Figure::mean(values);
    (figure.value, figure.stderr)
}

/// One line of the journal: losses of one walk.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    first: usize,
    sets: Vec<Removal>,
    /// (kl, nll, hits) by set and sequence.
    losses: Vec<Vec<(f64, f64, f64)>>,
}

/// Scores sets of one model on one corpus.
pub struct Evaluator<'a> {
    model: &'a Decoder,
    corpus: Corpus,
    objective: Objective,
    with_dense: bool,
    references: Vec<Option<Reference>>,
    memo: HashMap<Removal, Vec<Option<Loss>>>,
    asked: HashSet<(Removal, usize)>,
    journal: Option<(File, PathBuf)>,
    /// Bytes of states held at a time.
    memory: usize,
    work: Work,
    one_by_one: Work,
    progress: Box<dyn FnMut(u64) + 'a>,
    done: u64,
}

impl std::fmt::Debug for Evaluator<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evaluator").field("objective", &self.objective).field("sets", &self.memo.len()).finish()
    }
}

/// Bytes of stacked states unless told otherwise.
const MEMORY: usize = 512 << 20;

impl<'a> Evaluator<'a> {
    /// Scores sets of `model` on `corpus` by `objective`.
    pub fn new(model: &'a Decoder, corpus: Corpus, objective: Objective) -> Self {
        Self {
            model,
            references: vec![None; corpus.sequences.len()],
            with_dense: objective == Objective::Kl,
            corpus,
            objective,
            memo: HashMap::new(),
            asked: HashSet::new(),
            journal: None,
            memory: MEMORY,
            work: Work::default(),
            one_by_one: Work::default(),
            progress: Box::new(|_| {}),
            done: 0,
        }
    }

    /// The same, and the distance to the dense model is taken whatever the objective is.
    pub fn beside_dense(mut self) -> Self {
        self.with_dense = true;
        self
    }

    /// `hear` is told of (set, token) pairs as they are done.
    pub fn with_progress(mut self, hear: impl FnMut(u64) + 'a) -> Self {
        self.progress = Box::new(hear);
        self
    }

    /// Keeps what is found in `folder`, and takes what is there already: a file a model and corpus. The
    /// model is told by `fingerprint`, [`scruple_weights::Checkpoint::fingerprint_with_config`]. A part of a line at its
    /// end, left by a killed run, is cut off.
    ///
    /// # Errors
    /// If the folder cannot be used.
    pub fn remember_in(mut self, folder: &Path, fingerprint: &str) -> Result<Self> {
        let mut hash = Sha256::new();
        for part in [&VERSION.to_string(), fingerprint, &self.corpus.digest(), &self.with_dense.to_string()] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        let path = folder.join(format!("scores-{}.jsonl", &hex(&hash.finalize())[..16]));
        let fail = |action: &str, error: std::io::Error| {
            Error::Weights(scruple_weights::Error::io(&path, action.to_string(), error))
        };
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(|error| fail("open the scores found so far", error))?;
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).map_err(|error| fail("read the scores found so far", error))?;
        file.read_to_end(&mut bytes).map_err(|error| fail("read the scores found so far", error))?;
        let mut sound = 0;
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            if line.last() != Some(&b'\n') {
                break;
            }
            let Ok(line_read) = serde_json::from_slice::<Line>(line) else { break };
            if !self.take(line_read) {
                break;
            }
            sound += line.len();
        }
        if sound < bytes.len() {
            file.set_len(sound as u64).map_err(|error| fail("cut off a half-written line", error))?;
        }
        self.journal = Some((file, path));
        Ok(self)
    }

    /// Takes over a line, unless it does not fit.
    fn take(&mut self, line: Line) -> bool {
        let count = self.corpus.sequences.len();
        let fits = |losses: &Vec<(f64, f64, f64)>| line.first + losses.len() <= count;
        if line.sets.len() != line.losses.len() || !line.losses.iter().all(fits) {
            return false;
        }
        for (set, losses) in line.sets.into_iter().zip(line.losses) {
            let known = self.memo.entry(set).or_insert_with(|| vec![None; count]);
            for (at, (kl, nll, hits)) in losses.into_iter().enumerate() {
                known[line.first + at] = Some(Loss { kl, nll, hits });
            }
        }
        true
    }

    /// The model.
    pub fn model(&self) -> &'a Decoder {
        self.model
    }

    /// The texts.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// What it judges by.
    pub fn objective(&self) -> Objective {
        self.objective
    }

    /// What the walks asked for so far take, and what the same would take candidate by candidate. Both are counted by what
    /// was asked, not by what was remembered, so they do not depend on interruptions.
    pub fn work(&self) -> (Work, Work) {
        (self.work, self.one_by_one)
    }

    /// Sets scored so far, on whatever part of the corpus.
    pub fn sets(&self) -> usize {
        self.memo.len()
    }

    /// Makes sure that all of `sets` are scored on the `units`.
    ///
    /// # Errors
    /// What the model refuses, or the journal's disk.
    pub fn ensure(&mut self, sets: &[Removal], units: Range<usize>) -> Result<()> {
        let sequences = match (self.corpus.units.get(units.start), self.corpus.units[..units.end].last()) {
            (Some(first), Some(last)) if !units.is_empty() => first.start..last.end,
            _ => return Ok(()),
        };
        self.count(sets, &sequences);
        let count = self.corpus.sequences.len();
        let lacks = |set: &&Removal| {
            self.memo.get(*set).is_none_or(|known| known[sequences.clone()].iter().any(Option::is_none))
        };
        let missing: BTreeSet<Removal> = sets.iter().filter(lacks).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let layers = self.model.blocks().len();
        let mut missing: Vec<Removal> = missing.into_iter().collect();
        missing.sort_by_cached_key(|set| (0..layers).map(|layer| set.contains(layer)).collect::<Vec<_>>());
        let longest = self.corpus.sequences[sequences.clone()].iter().map(|s| s.ids.len()).max().unwrap_or(1);
        let state = longest * self.model.config().hidden_size * size_of::<f32>();
        let sets_at_once = (self.memory / state.max(1)).clamp(1, missing.len());
        let at_once = (self.memory / (state * sets_at_once).max(1)).min(WALK_TOKENS / longest).max(1);
        let mut first = sequences.start;
        while first < sequences.end {
            let range = first..(first + at_once).min(sequences.end);
            for sets in missing.chunks(sets_at_once) {
                self.walk(sets, range.clone())?;
            }
            first = range.end;
        }
        debug_assert!(missing.iter().all(|set| self.memo[set].len() == count));
        Ok(())
    }

    /// One walk, remembered.
    fn walk(&mut self, sets: &[Removal], range: Range<usize>) -> Result<()> {
        let mut unused = Work::default();
        let lacking: Vec<usize> =
            range.clone().filter(|&at| self.with_dense && self.references[at].is_none()).collect();
        if !lacking.is_empty() {
            let sequences: Vec<&Sequence> = lacking.iter().map(|&at| &self.corpus.sequences[at]).collect();
            let found = sweep::references(self.model, &sequences, &mut unused)?;
            for (at, reference) in lacking.into_iter().zip(found) {
                self.references[at] = Some(reference);
            }
        }
        let sequences: Vec<&Sequence> = self.corpus.sequences[range.clone()].iter().collect();
        let dense: Vec<&Reference> = self.references[range.clone()].iter().flatten().collect();
        let losses = sweep::losses(self.model, sets, &sequences, &dense, &mut unused)?;
        let pairs = losses.iter().map(|of| of.iter().map(|loss| (loss.kl, loss.nll, loss.hits)).collect()).collect();
        let line = Line { first: range.start, sets: sets.to_vec(), losses: pairs };
        if let Some((file, path)) = &mut self.journal {
            let mut text = serde_json::to_vec(&line).map_err(|error| Error::Model(error.to_string()))?;
            text.push(b'\n');
            file.write_all(&text).map_err(|error| {
                Error::Weights(scruple_weights::Error::write(&*path, "keep scores", text.len() as u64, error))
            })?;
        }
        self.take(line);
        let tokens: usize = sequences_tokens(&self.corpus.sequences[range]);
        self.done += (tokens * sets.len()) as u64;
        (self.progress)(self.done);
        Ok(())
    }

    /// Counts what is asked for the first time.
    fn count(&mut self, sets: &[Removal], sequences: &Range<usize>) {
        let layers = self.model.blocks().len();
        for at in sequences.clone() {
            let new: Vec<Removal> =
                sets.iter().filter(|set| self.asked.insert(((*set).clone(), at))).cloned().collect();
            if new.is_empty() {
                continue;
            }
            let (tokens, scored) =
                (self.corpus.sequences[at].ids.len() as u64, self.corpus.sequences[at].rows.len() as u64);
            self.work.layer_tokens += applications(&new, layers) * tokens;
            let alone: u64 = new.iter().map(|set| (layers - set.len()) as u64).sum();
            self.one_by_one.layer_tokens += alone * tokens;
            self.work.head_tokens += new.len() as u64 * scored;
            self.one_by_one.head_tokens += new.len() as u64 * scored;
        }
    }

    /// Losses of `set` on every sequence, after [`Self::ensure`].
    pub fn losses(&self, set: &Removal) -> Vec<Loss> {
        self.memo.get(set).map(|known| known.iter().flatten().copied().collect()).unwrap_or_default()
    }

    /// The objective of `set` on each of `units`, after [`Self::ensure`].
    pub fn values(&self, set: &Removal, units: Range<usize>) -> Vec<f64> {
        let Some(known) = self.memo.get(set) else { return Vec::new() };
        let value = |unit: usize| -> Option<f64> {
            let range = self.corpus.units[unit].clone();
            match self.objective {
                Objective::Kl => known[range.start].map(|loss| loss.kl),
                Objective::Nll => known[range.start].map(|loss| loss.nll),
                Objective::Choices => {
                    let losses: Option<Vec<f64>> = known[range].iter().map(|loss| loss.map(|loss| loss.nll)).collect();
                    let (losses, right) = (losses?, self.corpus.right[unit]);
                    let best = (0..losses.len()).fold(0, |best, at| if losses[at] < losses[best] { at } else { best });
                    Some(f64::from(u8::from(best != right)) + TIE_BREAK * losses[right])
                }
            }
        };
        units.filter_map(value).collect()
    }

    /// Scores `candidates`, and gives them best first. With a race, those that are behind the `keep`-th best beyond doubt
    /// are dropped on the way, and stand at the end by what they had.
    ///
    /// # Errors
    /// As [`Self::ensure`].
    pub fn select(&mut self, candidates: &[Removal], keep: usize, race: Race) -> Result<Vec<Scored>> {
        let units = self.corpus.units();
        let mut alive: Vec<Removal> = candidates.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let mut dropped: Vec<(Removal, usize)> = Vec::new();
        let step = if race.errors > 0.0 { race.batch.max(1) } else { units };
        let mut at = 0;
        while at < units {
            // A race with as many as are wanted is over, but they are measured on all there is.
            let next = if alive.len() <= keep { units } else { (at + step).min(units) };
            self.ensure(&alive, at..next)?;
            at = next;
            if race.errors > 0.0 && at >= BATCHES_BEFORE_DROPPING * step && at < units && alive.len() > keep {
                let mut order: Vec<(f64, Vec<f64>, Removal)> = alive
                    .iter()
                    .map(|set| (self.values(set, 0..at), set))
                    .map(|(v, s)| (mean(&v).0, v, s.clone()))
                    .collect();
                order.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.2.cmp(&b.2)));
                let mark = order[keep.clamp(1, order.len()) - 1].1.clone();
                alive.clear();
                for (_, values, set) in order {
                    let differences: Vec<f64> = values.iter().zip(&mark).map(|(a, b)| a - b).collect();
                    let (difference, stderr) = mean(&differences);
                    match difference - race.errors * stderr.unwrap_or(f64::INFINITY) > 0.0 {
                        true => dropped.push((set, at)),
                        false => alive.push(set),
                    }
                }
                alive.sort();
            }
        }
        let whole = alive.into_iter().map(|set| (set, units));
        let mut scored: Vec<(Removal, usize, Vec<f64>)> = whole
            .chain(dropped)
            .map(|(set, units)| {
                let values = self.values(&set, 0..units);
                (set, units, values)
            })
            .collect();
        let key = |entry: &(Removal, usize, Vec<f64>)| mean(&entry.2).0;
        scored.sort_by(|a, b| {
            // Those scored on everything first; equals by `prefer`.
            (b.1.cmp(&a.1)).then_with(|| match (key(a) - key(b)).abs() <= 1e-9 {
                true => prefer(&a.0, &b.0),
                false => key(a).total_cmp(&key(b)),
            })
        });
        let best = scored.first().map(|entry| entry.2.clone()).unwrap_or_default();
        let describe = |(set, units, values): (Removal, usize, Vec<f64>)| {
            let differences: Vec<f64> = values.iter().zip(&best).map(|(a, b)| a - b).collect();
            let (mean_value, stderr) = mean(&values);
            Scored { set, mean: mean_value, stderr, units, behind: mean(&differences) }
        };
        Ok(scored.into_iter().map(describe).collect())
    }
}

fn sequences_tokens(sequences: &[Sequence]) -> usize {
    sequences.iter().map(|sequence| sequence.ids.len()).sum()
}

/// Of two sets that score the same, the one in fewer pieces comes first, then the one that goes deeper.
fn prefer(a: &Removal, b: &Removal) -> std::cmp::Ordering {
    let pieces = |set: &Removal| set.layers().windows(2).filter(|pair| pair[0] + 1 != pair[1]).count();
    pieces(a).cmp(&pieces(b)).then_with(|| b.layers().cmp(a.layers()))
}
