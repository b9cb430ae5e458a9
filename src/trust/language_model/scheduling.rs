//! What is run, in which order: chunks of items, and within them the rows that remain where a shared beginning is run once.

use super::{LanguageModel, rendering::Put};

/// Shorter beginnings are run again rather than shared.
pub(super) const MIN_SHARED: usize = 4;

/// Tokens after which a chunk of items ends, those that are shared with what stands before them not counted: what a killed
/// run loses at most.
pub(super) const CHUNK_TOKENS: usize = 8192;

/// All tokens of a chunk, shared ones too, are at most so many times [`CHUNK_TOKENS`]: their places are held in memory.
const MOST_SHARED: usize = 64;

/// Keys and values that texts in the making hold together, one text at least.
pub const CACHE_BYTES: usize = 256 << 20;

/// Tokens that follow the first `start` of the sequence before; see [`Stretch`](scruple_compress::model::decoder::Stretch).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step<'a> {
    pub(super) start: usize,
    pub(super) ids: &'a [u32],
    pub(super) whole: usize,
}

/// What is run for some sequences.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    steps: Vec<Step<'a>>,
    /// For each sequence, the row of each of its positions.
    pub(super) places: Vec<Vec<usize>>,
    pub(super) rows: usize,
}

impl<'a> Plan<'a> {
    /// The steps in runs of at most `most` rows; a step is cut where it alone is longer.
    pub(super) fn runs(&self, most: usize) -> Vec<Vec<Step<'a>>> {
        let mut runs: Vec<Vec<Step<'a>>> = Vec::new();
        let mut room = 0;
        for &step in &self.steps {
            let (mut start, mut ids) = (step.start, step.ids);
            while !ids.is_empty() {
                if room == 0 || (ids.len() > room && ids.len() <= most) {
                    runs.push(Vec::new());
                    room = most;
                }
                let (now, later) = ids.split_at(ids.len().min(room));
                if let Some(run) = runs.last_mut() {
                    run.push(Step { start, ids: now, whole: step.whole });
                }
                (start, ids, room) = (start + now.len(), later, room - now.len());
            }
        }
        runs
    }
}

pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl LanguageModel {
    /// Tokens of item `at` that are not shared with the sequence before, those of item `before` first.
    fn fresh(&self, put: &[Put], at: usize, before: Option<usize>) -> usize {
        let mut last = before.and_then(|before| put[before].sequences.first()).filter(|_| self.running.reuse);
        let mut count = 0;
        for sequence in &put[at].sequences {
            count += sequence.ids.len() - last.map_or(0, |last| common(&last.ids, &sequence.ids));
            last = Some(sequence).filter(|_| self.running.reuse);
        }
        count
    }

    /// Items by number in the order they are run, in chunks that depend on the items alone.
    pub fn chunks(&self, put: &[Put]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..put.len()).collect();
        order.sort_by(|&a, &b| {
            let key = |at: usize| (put[at].max_tokens.is_some(), &put[at].sequences[0].ids, at);
            key(a).cmp(&key(b))
        });
        let positions = (CACHE_BYTES / self.decoder.cache_bytes_per_position().max(1)).min(CHUNK_TOKENS);
        let mut chunks: Vec<Vec<usize>> = Vec::new();
        let (mut size, mut whole) = (0, 0);
        let mut last: Option<usize> = None;
        for at in order {
            let item = &put[at];
            let all = item.sequences.iter().map(|sequence| sequence.ids.len()).sum::<usize>();
            let cost = |before: Option<usize>| match item.max_tokens {
                Some(made) => all + made,
                None => self.fresh(put, at, before),
            };
            let most = if item.max_tokens.is_some() { positions } else { CHUNK_TOKENS };
            let new_kind = last.is_some_and(|last| put[last].max_tokens.is_some() != item.max_tokens.is_some());
            let mut more = cost(last);
            if last.is_none() || new_kind || size + more > most || whole + all > CHUNK_TOKENS * MOST_SHARED {
                chunks.push(Vec::new());
                (size, whole, more) = (0, 0, cost(None));
            }
            whole += all;
            size += more;
            last = Some(at);
            if let Some(chunk) = chunks.last_mut() {
                chunk.push(at);
            }
        }
        chunks
    }

    /// Which rows are run for `sequences`, in the order of their tokens.
    pub(super) fn plan<'a>(&self, sequences: &[&'a [u32]]) -> Plan<'a> {
        let far = |at: usize| self.decoder.switches(sequences[at].len(), 1);
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by(|&a, &b| (far(a), sequences[a], a).cmp(&(far(b), sequences[b], b)));
        let mut plan = Plan { steps: Vec::new(), places: vec![Vec::new(); sequences.len()], rows: 0 };
        let mut path: Vec<usize> = Vec::new(); // the row of each position
        let mut last: Option<usize> = None;
        for at in order {
            let sequence = sequences[at];
            let shared = last.filter(|&last| self.running.reuse && far(last) == far(at));
            let shared = shared.map_or(0, |last| common(sequences[last], sequence));
            let start = if shared < MIN_SHARED.min(sequence.len()) { 0 } else { shared };
            path.truncate(start);
            if start < sequence.len() {
                let ids = &sequence[start..];
                plan.steps.push(Step { start, ids, whole: sequence.len() });
                path.extend(plan.rows..plan.rows + ids.len());
                plan.rows += ids.len();
            }
            plan.places[at].clone_from(&path);
            last = Some(at);
        }
        plan
    }
}
