//! Items put to a decoder: log-likelihoods of options, and greedy texts.
//!
//! A prompt and an option are tokenised together and parted by the length of the prompt's own tokens, trailing blanks of
//! the prompt counting as the option's (as lm-evaluation-harness does). What the tokenizer puts before a text stands before
//! it here; where that is nothing, an option after an empty prompt follows the end-of-text token, and where there is none
//! either, its first token is read and not scored.
//!
//! Sequences are run in the order of their tokens: those that begin alike (demonstrations, an instruction, a prompt under
//! its options) are neighbours then, and what they share is run once. Only the path of the current sequence is held from
//! one run to the next, so that live keys and values take at most the memory of one longest sequence, and, while texts are
//! made, [`CACHE_BYTES`]. Rows are laid end to end and nothing is padded, so there is nothing to gain from lengths that are
//! alike. Items are cut into chunks by their content alone: a chunk gives the same bits whenever it is run, and on any
//! number of threads. Another selection of items may move the last bits.

use anyhow::{Context, Result};
use rayon::prelude::*;
use scruple_compress::{
    Error,
    kernel::{activation::log_sum_exp, tensor::with_f32},
    model::{
        Decoder,
        decoder::{KvCache, Stretch},
        generate::Sampling,
        text::{Message, Text},
    },
};
use scruple_weights::{Checkpoint, digest::sha256};
use serde::Serialize;

use super::item::{Answer, Ask, Item, Prompt, Role, Turn};
use crate::commands::generate::end_tokens;

/// Shorter beginnings are run again rather than shared.
const MIN_SHARED: usize = 4;

/// Rows of one run, where the options do not say: enough for full speed of the products.
const ROWS: usize = 1024;

/// Tokens after which a chunk of items ends, those that are shared with what stands before them not counted: what a killed
/// run loses at most.
const CHUNK_TOKENS: usize = 8192;

/// All tokens of a chunk, shared ones too, are at most so many times [`CHUNK_TOKENS`]: their places are held in memory.
const MOST_SHARED: usize = 64;

/// Keys and values that texts in the making hold together, one text at least.
pub const CACHE_BYTES: usize = 256 << 20;

/// Bytes of logits held at a time.
const LOGIT_BYTES: usize = 64 << 20;

/// When conversations go through the model's chat template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Chat {
    /// Where the checkpoint has a template.
    Auto,
    /// Always: a checkpoint without one is refused.
    On,
    /// Never: turns are put as plain text.
    Off,
}

/// How items are run; the answers are the same up to rounding.
#[derive(Debug, Clone, Copy)]
pub struct Running {
    /// Run shared beginnings once.
    pub reuse: bool,
    /// Rows of one run.
    pub rows: usize,
}

impl Default for Running {
    fn default() -> Self {
        Self { reuse: true, rows: ROWS }
    }
}

/// Tokens of one sequence that ends in what is scored or gone on with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sequence {
    ids: Vec<u32>,
    /// The first token that is scored; the number of tokens where the sequence is gone on with.
    scored_from: usize,
}

impl Sequence {
    /// The tokens the model reads: the last of an option is only predicted.
    fn read(&self) -> &[u32] {
        &self.ids[..self.ids.len() - usize::from(self.scored_from < self.ids.len())]
    }
}

/// An item as one model reads it.
#[derive(Debug, Clone)]
pub struct Put {
    /// SHA-256 of the prompt as rendered.
    pub prompt_sha256: String,
    /// Its beginning was cut off, since it is longer than the model's context.
    pub cut: bool,
    sequences: Vec<Sequence>,
    /// Tokens to make, for texts.
    max_tokens: Option<usize>,
}

impl Put {
    /// The tokens of each sequence, and the number of the first that is scored.
    pub fn sequences(&self) -> impl Iterator<Item = (&[u32], usize)> {
        self.sequences.iter().map(|sequence| (sequence.ids.as_slice(), sequence.scored_from))
    }

    /// Whether two models read an item as the same tokens.
    pub fn same_tokens(&self, other: &Self) -> bool {
        self.sequences == other.sequences
    }
}

/// What was run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Tokens of all sequences.
    pub tokens: u64,
    /// Of these, what shared beginnings saved.
    pub tokens_saved: u64,
    /// Tokens made.
    pub tokens_made: u64,
}

/// A decoder with its tokenizer, ready to be asked.
#[derive(Debug)]
pub struct LanguageModel {
    decoder: Decoder,
    text: Text,
    /// What the tokenizer puts before a text.
    begin: Vec<u32>,
    /// Stands before an option without a prompt, where `begin` is empty.
    stand_in: Option<u32>,
    ends: Vec<u32>,
    by_template: bool,
    /// The template takes a system turn; otherwise its text goes before the first user's.
    system_apart: bool,
    running: Running,
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}

/// Turns as plain text: a line for the system's and for each user's, the answer behind it after a blank.
fn plain(turns: &[Turn]) -> String {
    let mut out = String::new();
    for (index, turn) in turns.iter().enumerate() {
        let after_user = index > 0 && turns[index - 1].role == Role::User;
        if index > 0 {
            out.push(if turn.role == Role::Assistant && after_user { ' ' } else { '\n' });
        }
        out.push_str(&turn.text);
    }
    out
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl LanguageModel {
    /// Opens the decoder and tokenizer of `checkpoint`.
    ///
    /// # Errors
    /// A model that is no decoder or cannot be read, no tokenizer, or no chat template where one is asked for.
    pub fn open(checkpoint: &Checkpoint, chat: Chat, running: Running) -> Result<Self> {
        let text = Text::open(checkpoint)?;
        let decoder = Decoder::open(checkpoint)?;
        let by_template = match chat {
            Chat::Auto => text.has_template(),
            Chat::Off => false,
            Chat::On => {
                anyhow::ensure!(
                    text.has_template(),
                    "{}: there is no chat template; give --chat auto or off",
                    checkpoint.dir().display()
                );
                true
            }
        };
        let system_apart = by_template && text.chat(&[message("system", "a"), message("user", "b")]).is_ok();
        // What stands before the text, whatever may stand behind it.
        let (whole, bare) = (text.encode("a", true)?, text.encode("a", false)?);
        let at = whole.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
        let begin = whole[..at].to_vec();
        let stand_in = text.end_of_text().filter(|_| begin.is_empty());
        let ends = end_tokens(checkpoint, &decoder);
        Ok(Self { decoder, text, begin, stand_in, ends, by_template, system_apart, running })
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Whether conversations go through the chat template.
    pub fn uses_template(&self) -> bool {
        self.by_template
    }

    /// The prompt as text, and whether the chat template made it.
    fn render(&self, prompt: &Prompt) -> Result<(String, bool)> {
        let turns = match prompt {
            Prompt::Plain(text) => return Ok((text.clone(), false)),
            Prompt::Turns(turns) => turns,
        };
        anyhow::ensure!(!turns.is_empty(), "the conversation has no turns");
        if !self.by_template {
            return Ok((plain(turns), false));
        }
        // An answer that is to be gone on with stands behind the template's request for one.
        let (last, asked) = match turns.split_last() {
            Some((last, before)) if last.role == Role::Assistant => (last.text.as_str(), before),
            _ => ("", turns.as_slice()),
        };
        let mut messages: Vec<Message> = Vec::with_capacity(asked.len());
        let mut pending = String::new();
        for turn in asked {
            if turn.role == Role::System && !self.system_apart {
                pending.push_str(&turn.text);
                pending.push_str("\n\n");
            } else if turn.role == Role::User {
                messages.push(message("user", &(std::mem::take(&mut pending) + &turn.text)));
            } else {
                messages.push(message(role(turn.role), &turn.text));
            }
        }
        Ok((self.text.chat(&messages)? + last, true))
    }

    /// A prompt's tokens go on with `option`.
    fn sequence(&self, context: &str, option: &str, by_template: bool) -> Result<Sequence> {
        anyhow::ensure!(!option.is_empty(), "the option is empty");
        let stem = context.trim_end();
        let whole = self.text.encode(&format!("{context}{option}"), false)?;
        let mut ids = if by_template { Vec::new() } else { self.begin.clone() };
        if stem.is_empty() && ids.is_empty() {
            ids.extend(self.stand_in);
        }
        let from = ids.len() + if stem.is_empty() { 0 } else { self.text.encode(stem, false)?.len() };
        ids.extend(whole);
        anyhow::ensure!(ids.len() > 1, "the option `{option}` has one token, and there is none before it");
        // Where prompt and option melt into one token, that one is scored.
        let scored_from = from.clamp(1, ids.len() - 1);
        Ok(Sequence { ids, scored_from })
    }

    /// Cuts a sequence that is read to more than `most` tokens, from the left, behind what begins every text.
    fn shorten(&self, sequence: &mut Sequence, most: usize) -> Result<bool> {
        let over = sequence.read().len().saturating_sub(most);
        if over == 0 {
            return Ok(false);
        }
        let begin = if sequence.ids.starts_with(&self.begin) { self.begin.len() } else { 0 };
        anyhow::ensure!(
            begin + over < sequence.scored_from,
            "what is to be scored has more tokens than the model's context, which holds {}",
            self.decoder.config().max_positions
        );
        sequence.ids.drain(begin..begin + over);
        sequence.scored_from -= over;
        Ok(true)
    }

    fn put_one(&self, item: &Item) -> Result<Put> {
        let (prompt, by_template) = self.render(&item.prompt)?;
        let room = self.decoder.config().max_positions;
        let (mut sequences, max_tokens, room) = match &item.ask {
            Ask::Choose { options, before, .. } => {
                anyhow::ensure!(!options.is_empty(), "there are no options");
                anyhow::ensure!(
                    before.is_empty() || before.len() == options.len(),
                    "there are {} texts before {} options; give one an option, or none",
                    before.len(),
                    options.len()
                );
                let one = |(index, option): (usize, &String)| {
                    let context = prompt.clone() + before.get(index).map_or("", String::as_str);
                    // A template ends where the answer begins, after blanks of its own.
                    let bare = by_template && context.ends_with(char::is_whitespace);
                    self.sequence(&context, if bare { option.trim_start() } else { option }, by_template)
                };
                (options.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?, None, room)
            }
            Ask::Continue { max_tokens, .. } => {
                anyhow::ensure!(*max_tokens > 0, "`max_tokens` should be at least 1, found 0");
                let mut ids = if by_template { Vec::new() } else { self.begin.clone() };
                ids.extend(self.text.encode(&prompt, false)?);
                if ids.is_empty() {
                    ids.extend(self.stand_in);
                }
                anyhow::ensure!(!ids.is_empty(), "the prompt has no tokens to go on from");
                let scored_from = ids.len();
                let made = (*max_tokens).min(room.saturating_sub(1));
                (vec![Sequence { ids, scored_from }], Some(made), room - made)
            }
        };
        let mut cut = false;
        for sequence in &mut sequences {
            cut |= self.shorten(sequence, room)?;
            self.decoder.expect_ids(&sequence.ids)?;
        }
        Ok(Put { prompt_sha256: sha256(prompt.as_bytes()), cut, sequences, max_tokens })
    }

    /// The items as this model reads them.
    ///
    /// # Errors
    /// Names the item that cannot be put: by the chat template's rules, without tokens, or with options longer than the
    /// model's context.
    pub fn put(&self, items: &[Item]) -> Result<Vec<Put>> {
        let one = |item: &Item| self.put_one(item).with_context(|| format!("item `{}`", item.id));
        items.par_iter().map(one).collect()
    }

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

    /// The answers to one of [`Self::chunks`], in its order.
    ///
    /// # Errors
    /// If the model's numbers are not finite.
    pub fn answer(&self, put: &[Put], chunk: &[usize], counts: &mut Counts) -> scruple_compress::Result<Vec<Answer>> {
        if chunk.iter().any(|&at| put[at].max_tokens.is_some()) {
            return self.go_on(put, chunk, counts);
        }
        let sequences: Vec<&Sequence> = chunk.iter().flat_map(|&at| &put[at].sequences).collect();
        let mut scores = self.score(&sequences, counts)?.into_iter();
        let one = |&at: &usize| {
            let own = &put[at].sequences;
            Answer {
                log_likelihoods: scores.by_ref().take(own.len()).collect(),
                tokens: own.iter().map(|sequence| sequence.ids.len() - sequence.scored_from).collect(),
                text: None,
            }
        };
        Ok(chunk.iter().map(one).collect())
    }

    /// Which rows are run for `sequences`, in the order of their tokens.
    fn plan<'a>(&self, sequences: &[&'a [u32]]) -> Plan<'a> {
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

    /// Runs `plan`, in runs of so many rows, and hands the last hidden states of the `wanted` rows (ascending) to `each`
    /// with the place of the first among them.
    fn run(
        &self,
        plan: &Plan<'_>,
        wanted: &[usize],
        mut each: impl FnMut(usize, &candle_core::Tensor) -> scruple_compress::Result<()>,
    ) -> scruple_compress::Result<()> {
        let runs = plan.runs(self.running.rows);
        let mut path = KvCache::default();
        let (mut first, mut served) = (0, 0);
        for (index, run) in runs.iter().enumerate() {
            let next = runs.get(index + 1).map_or(0, |next| next[0].start);
            let mut stretches: Vec<Stretch<'_>> =
                run.iter().map(|&Step { start, ids, whole }| Stretch { start, ids, whole, keep: false }).collect();
            let rows: usize = run.iter().map(|step| step.ids.len()).sum();
            if let Some(last) = stretches.last_mut() {
                last.keep = next > 0;
            }
            let here = wanted[served..].partition_point(|&row| row < first + rows);
            let chosen: Vec<usize> = wanted[served..served + here].iter().map(|row| row - first).collect();
            let (hidden, mut kept) = self.decoder.hidden_branches(&stretches, &path, &chosen)?;
            path = kept.pop().unwrap_or_default();
            path.truncate(next);
            if here > 0 {
                each(served, &hidden)?;
            }
            (first, served) = (first + rows, served + here);
        }
        Ok(())
    }

    /// The log-likelihood of each sequence's scored tokens.
    fn score(&self, sequences: &[&Sequence], counts: &mut Counts) -> scruple_compress::Result<Vec<f64>> {
        let read: Vec<&[u32]> = sequences.iter().map(|sequence| sequence.read()).collect();
        let plan = self.plan(&read);
        let tokens: usize = read.iter().map(|ids| ids.len()).sum();
        counts.tokens += tokens as u64;
        counts.tokens_saved += (tokens - plan.rows) as u64;
        // (row, target, sequence): the state at a row predicts the token behind it.
        let mut targets: Vec<(usize, u32, usize)> = Vec::new();
        for (at, sequence) in sequences.iter().enumerate() {
            let scored = sequence.scored_from..sequence.ids.len();
            targets.extend(scored.map(|position| (plan.places[at][position - 1], sequence.ids[position], at)));
        }
        targets.sort_unstable();
        let mut wanted: Vec<usize> = targets.iter().map(|target| target.0).collect();
        wanted.dedup();

        let mut scores = vec![0.0; sequences.len()];
        let vocab = self.decoder.config().vocab_size;
        let at_once = (LOGIT_BYTES / (size_of::<f32>() * vocab)).max(8);
        let mut served = 0;
        self.run(&plan, &wanted, |place, hidden| {
            let count = hidden.dim(0)?;
            for part in (0..count).step_by(at_once) {
                let rows = at_once.min(count - part);
                let logits = self.decoder.logits(&hidden.narrow(0, part, rows)?)?;
                let until = wanted.get(place + part + rows).copied().unwrap_or(usize::MAX);
                let here = &targets[served..served + targets[served..].partition_point(|target| target.0 < until)];
                let of_part = &wanted[place + part..place + part + rows];
                with_f32(&logits, |logits| {
                    let totals: Vec<f64> = logits.par_chunks(vocab).map(log_sum_exp).collect();
                    for &(row, target, sequence) in here {
                        let index = of_part.partition_point(|&known| known < row);
                        scores[sequence] += f64::from(logits[index * vocab + target as usize]) - totals[index];
                    }
                })?;
                served += here.len();
            }
            Ok(())
        })?;
        match scores.iter().any(|score| !score.is_finite()) {
            true => Err(Error::Numeric(
                "a log-likelihood is not finite; the model's weights or its configuration are broken".into(),
            )),
            false => Ok(scores),
        }
    }

    /// Greedy texts of one chunk, all of them a token at a time.
    fn go_on(&self, put: &[Put], chunk: &[usize], counts: &mut Counts) -> scruple_compress::Result<Vec<Answer>> {
        let read: Vec<&[u32]> = chunk.iter().map(|&at| put[at].sequences[0].ids.as_slice()).collect();
        let (caches, mut next) = self.begin_texts(&read, counts)?;
        let mut live: Vec<(usize, KvCache)> = caches.into_iter().enumerate().collect();
        let mut made: Vec<Vec<u32>> = vec![Vec::new(); chunk.len()];
        loop {
            let mut chosen = next.iter();
            live.retain(|(at, _)| {
                let id = chosen.next().copied().filter(|id| !self.ends.contains(id));
                made[*at].extend(id);
                id.is_some() && made[*at].len() < put[chunk[*at]].max_tokens.unwrap_or(0)
            });
            if live.is_empty() {
                break;
            }
            let ids: Vec<[u32; 1]> = live.iter().filter_map(|(at, _)| Some([*made[*at].last()?])).collect();
            let ids: Vec<&[u32]> = ids.iter().map(<[u32; 1]>::as_slice).collect();
            let mut caches: Vec<&mut KvCache> = live.iter_mut().map(|(_, cache)| cache).collect();
            counts.tokens += ids.len() as u64;
            let hidden = self.decoder.last_hidden_batch(&ids, &mut caches)?;
            next = self.likeliest(&hidden)?;
        }
        counts.tokens_made += made.iter().map(|ids| ids.len() as u64).sum::<u64>();
        let answer = |ids: Vec<u32>| {
            Ok(Answer { log_likelihoods: Vec::new(), tokens: Vec::new(), text: Some(self.text.decode(&ids)?) })
        };
        made.into_iter().map(answer).collect()
    }

    /// The caches behind the prompts, and the likeliest token after each.
    fn begin_texts(
        &self,
        prompts: &[&[u32]],
        counts: &mut Counts,
    ) -> scruple_compress::Result<(Vec<KvCache>, Vec<u32>)> {
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        let far = |at: usize| self.decoder.switches(prompts[at].len(), 1);
        order.sort_by(|&a, &b| (far(a), prompts[a], a).cmp(&(far(b), prompts[b], b)));
        let mut caches = vec![KvCache::default(); prompts.len()];
        let mut next = vec![0; prompts.len()];
        let mut path = KvCache::default();
        let mut first = 0;
        while first < order.len() {
            let (mut stretches, mut last_rows, mut rows) = (Vec::new(), Vec::new(), 0);
            let mut until = first;
            while until < order.len() && (until == first || rows < self.running.rows) {
                let (at, before) = (order[until], until.checked_sub(1).map(|before| order[before]));
                let prompt = prompts[at];
                let before = before.filter(|&before| self.running.reuse && far(before) == far(at));
                let shared = before.map_or(0, |before| common(prompts[before], prompt)).min(prompt.len() - 1);
                let start = if shared < MIN_SHARED { 0 } else { shared };
                stretches.push(Stretch { start, ids: &prompt[start..], whole: prompt.len(), keep: true });
                rows += prompt.len() - start;
                last_rows.push(rows - 1);
                counts.tokens += prompt.len() as u64;
                counts.tokens_saved += start as u64;
                until += 1;
            }
            let (hidden, kept) = self.decoder.hidden_branches(&stretches, &path, &last_rows)?;
            for ((at, cache), id) in order[first..until].iter().zip(kept).zip(self.likeliest(&hidden)?) {
                caches[*at] = cache;
                next[*at] = id;
            }
            // The next run follows the last prompt of this one.
            path = if until < order.len() { caches[order[until - 1]].clone() } else { KvCache::default() };
            first = until;
        }
        Ok((caches, next))
    }

    /// The likeliest next token after each row of hidden states.
    fn likeliest(&self, hidden: &candle_core::Tensor) -> scruple_compress::Result<Vec<u32>> {
        let vocab = self.decoder.config().vocab_size;
        let logits = self.decoder.logits(hidden)?;
        with_f32(&logits, |logits| match logits.iter().all(|logit| logit.is_finite()) {
            true => Ok(logits.par_chunks(vocab).map(|row| Sampling::GREEDY.choose(row, 0)).collect()),
            false => Err(Error::Numeric(
                "the model's logits are not finite; its weights or its configuration are broken".into(),
            )),
        })?
    }
}

/// Tokens that follow the first `start` of the sequence before; see [`Stretch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step<'a> {
    start: usize,
    ids: &'a [u32],
    whole: usize,
}

/// What is run for some sequences.
#[derive(Debug)]
struct Plan<'a> {
    steps: Vec<Step<'a>>,
    /// For each sequence, the row of each of its positions.
    places: Vec<Vec<usize>>,
    rows: usize,
}

impl<'a> Plan<'a> {
    /// The steps in runs of at most `most` rows; a step is cut where it alone is longer.
    fn runs(&self, most: usize) -> Vec<Vec<Step<'a>>> {
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

#[cfg(test)]
mod tests {
    use scruple_compress::model::generate::generate;

    use super::*;
    use crate::{
        fixture::Fixture,
        trust::{item::Ask, suite},
    };

    /// Largest accepted difference of a log-likelihood to the definition's, nats: both ways compute in f32 and add in
    /// another order; a dozen scored tokens of a few nats are off by some 1e-6 each.
    const MAX_DIFFERENCE: f64 = 1e-4;

    fn turn(role: Role, text: &str) -> Turn {
        Turn { role, text: text.into() }
    }

    fn item(prompt: Prompt, ask: Ask) -> Item {
        Item { id: "i".into(), part: "p".into(), cluster: "c".into(), group: None, prompt, ask }
    }

    fn choose(prompt: &str, options: &[&str]) -> Item {
        let options = options.iter().map(|option| option.to_string()).collect();
        item(Prompt::Plain(prompt.into()), Ask::Choose { options, before: vec![], gold: None })
    }

    fn open(checkpoint: &Checkpoint, running: Running) -> LanguageModel {
        LanguageModel::open(checkpoint, Chat::Auto, running).unwrap()
    }

    /// The items of the small world that have options, some, and texts of several lengths.
    fn items() -> (Vec<Item>, Vec<Item>) {
        let suite = suite::named("world").unwrap().limit(6);
        let all: Vec<Item> = suite.dimensions.into_iter().flat_map(|(_, items)| items).collect();
        let choices: Vec<Item> = all.into_iter().filter(|item| matches!(item.ask, Ask::Choose { .. })).collect();
        assert!(choices.len() > 25);
        let text = |(at, item): (usize, &Item)| Item {
            ask: Ask::Continue { max_tokens: 3 + at % 9, expect: vec![] },
            ..item.clone()
        };
        let texts = choices.iter().step_by(3).enumerate().map(text).collect();
        (choices, texts)
    }

    fn answers(model: &LanguageModel, items: &[Item]) -> (Vec<Answer>, Counts) {
        let put = model.put(items).unwrap();
        let mut counts = Counts::default();
        let mut all: Vec<Option<Answer>> = vec![None; items.len()];
        for chunk in model.chunks(&put) {
            for (at, answer) in chunk.iter().zip(model.answer(&put, &chunk, &mut counts).unwrap()) {
                all[*at] = Some(answer);
            }
        }
        (all.into_iter().map(Option::unwrap).collect(), counts)
    }

    #[test]
    fn shared_and_batched_scores_equal_each_sequence_on_its_own() {
        let fixture = Fixture::unpack().unwrap();
        let checkpoint = Checkpoint::open(fixture.path()).unwrap();
        let (choices, _) = items();
        let model = open(&checkpoint, Running::default());
        let expected: Vec<Vec<f64>> = model
            .put(&choices)
            .unwrap()
            .iter()
            .map(|put| {
                let score = |(ids, from): (&[u32], usize)| -> f64 {
                    let hidden = model.decoder.hidden_once(&ids[..ids.len() - 1]).unwrap();
                    let logits: Vec<Vec<f32>> = model.decoder.logits(&hidden).unwrap().to_vec2().unwrap();
                    let of = |at: usize| {
                        let total: f64 = logits[at - 1].iter().map(|&logit| f64::from(logit).exp()).sum();
                        f64::from(logits[at - 1][ids[at] as usize]) - total.ln()
                    };
                    (from..ids.len()).map(of).sum()
                };
                put.sequences().map(score).collect()
            })
            .collect();
        let mut computed = Vec::new();
        for (reuse, rows) in [(true, ROWS), (true, 13), (false, ROWS), (false, 40)] {
            let (found, counts) = answers(&open(&checkpoint, Running { reuse, rows }), &choices);
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.log_likelihoods.len(), expected.len());
                for (found, expected) in found.log_likelihoods.iter().zip(expected) {
                    let difference = (found - expected).abs();
                    assert!(difference <= MAX_DIFFERENCE, "{reuse} {rows}: {found}, expected {expected}");
                }
            }
            assert_eq!(counts.tokens_saved > 0, reuse);
            computed.push(counts.tokens - counts.tokens_saved);
        }
        assert_eq!((computed[0], computed[2]), (computed[1], computed[3]));
        assert!(2 * computed[0] < computed[2], "{computed:?}");
    }

    #[test]
    fn what_items_share_does_not_fill_chunks() {
        let fixture = Fixture::unpack().unwrap();
        let checkpoint = Checkpoint::open(fixture.path()).unwrap();
        let start = "the old king of the hill ".repeat(12);
        let items: Vec<Item> = (0..200).map(|i| choose(&format!("{start}{i}"), &[" one", " two"])).collect();
        let [shared, apart] = [true, false].map(|reuse| {
            let model = open(&checkpoint, Running { reuse, rows: ROWS });
            let put = model.put(&items).unwrap();
            let tokens: usize = put.iter().flat_map(Put::sequences).map(|(ids, _)| ids.len()).sum();
            let chunks = model.chunks(&put);
            let mut all = chunks.concat();
            all.sort_unstable();
            assert_eq!(all, (0..items.len()).collect::<Vec<_>>());
            (chunks.len(), tokens)
        });
        assert_eq!(shared.0, 1, "of {} tokens", shared.1);
        assert!(apart.0 >= apart.1.div_ceil(CHUNK_TOKENS) && apart.0 > 2, "{apart:?}");
    }

    #[test]
    fn texts_made_together_equal_those_made_one_by_one() {
        let fixture = Fixture::unpack().unwrap();
        let checkpoint = Checkpoint::open(fixture.path()).unwrap();
        let (_, mut texts) = items();
        texts.push(texts[0].clone()); // a prompt that is wholly shared
        for running in [Running::default(), Running { reuse: true, rows: 30 }] {
            let model = open(&checkpoint, running);
            let (found, counts) = answers(&model, &texts);
            let mut made = 0;
            for (put, found) in model.put(&texts).unwrap().iter().zip(found) {
                let (prompt, _) = put.sequences().next().unwrap();
                let most = put.max_tokens.unwrap();
                let ids = generate(&model.decoder, prompt, most, Sampling::GREEDY, &model.ends, |_| true).unwrap();
                assert_eq!(found.text, Some(model.text.decode(&ids).unwrap()));
                made += ids.len() as u64;
            }
            assert_eq!(counts.tokens_made, made);
        }
    }

    #[test]
    fn prompts_and_options_part_where_the_prompts_own_tokens_end() {
        let fixture = Fixture::unpack().unwrap();
        let model = open(&Checkpoint::open(fixture.path()).unwrap(), Running::default());
        let put = |item: Item| model.put(&[item]).unwrap().remove(0);
        let ids = |text: &str| model.text.encode(text, false).unwrap();
        let one = put(choose("the king of", &[" the land"]));
        let whole = [model.begin.clone(), ids("the king of the land")].concat();
        assert_eq!(one.sequences().next().unwrap(), (&whole[..], model.begin.len() + ids("the king of").len()));
        // Blanks behind the prompt count as the option's.
        assert!(put(choose("the king of ", &["the land"])).same_tokens(&one));
        // Without a prompt the whole option is scored, behind what begins a text or stands in for it.
        let bare = put(choose("", &["the land"]));
        let (found, from) = bare.sequences().next().unwrap();
        assert_eq!((&found[from..], from), (&ids("the land")[..], 1));
        // A text before the option is read, and not scored.
        let before = Ask::Choose { options: vec![" land".into()], before: vec![" the".into()], gold: None };
        let apart = put(item(Prompt::Plain("the king of".into()), before));
        let (found, from) = apart.sequences().next().unwrap();
        assert_eq!((found, from), (&whole[..], model.begin.len() + ids("the king of the").len()));
    }

    #[test]
    fn conversations_without_a_template_are_lines() {
        let turns = [
            turn(Role::System, "Be brief."),
            turn(Role::User, "One?"),
            turn(Role::Assistant, "Yes."),
            turn(Role::User, "Two?"),
        ];
        assert_eq!(plain(&turns), "Be brief.\nOne? Yes.\nTwo?");
        assert_eq!(plain(&turns[1..]), "One? Yes.\nTwo?");
    }

    #[test]
    fn conversations_go_through_the_template_and_begun_answers_stand_behind_it() {
        let fixture = Fixture::unpack().unwrap();
        let checkpoint = Checkpoint::open(fixture.path()).unwrap();
        let model = open(&checkpoint, Running::default());
        let asked = model.text.chat(&[message("user", "who is the king")]).unwrap();
        let turns = [turn(Role::User, "who is the king"), turn(Role::Assistant, "it is")];
        assert_eq!(model.render(&Prompt::Turns(turns[..1].to_vec())).unwrap(), (asked.clone(), true));
        assert_eq!(model.render(&Prompt::Turns(turns.to_vec())).unwrap(), (format!("{asked}it is"), true));
        // What the tokenizer would put before a text is the template's to write.
        let ask = choose("", &["the land"]).ask;
        let put = model.put(&[item(Prompt::Turns(turns.to_vec()), ask.clone())]).unwrap().remove(0);
        let (ids, from) = put.sequences().next().unwrap();
        assert_eq!(ids, model.text.encode(&format!("{asked}it isthe land"), false).unwrap());
        assert_eq!(from, model.text.encode(&format!("{asked}it is"), false).unwrap().len());
        let off = LanguageModel::open(&checkpoint, Chat::Off, Running::default()).unwrap();
        assert_eq!(off.render(&Prompt::Turns(turns.to_vec())).unwrap(), ("who is the king it is".into(), false));
    }

    #[test]
    fn items_that_cannot_be_put_are_refused_by_name() {
        let fixture = Fixture::unpack().unwrap();
        let checkpoint = Checkpoint::open(fixture.path()).unwrap();
        let model = open(&checkpoint, Running::default());
        let most = model.decoder.config().max_positions;
        let long = " land".repeat(most + 2);
        let refused = |item: Item, word: &str| {
            let error = format!("{:#}", model.put(&[item]).unwrap_err());
            assert!(error.contains("item `i`") && error.contains(word), "{error}");
        };
        refused(choose("the king", &[""]), "empty");
        refused(choose("the king", &[]), "no options");
        refused(choose("the king", &[&long]), "context");
        refused(item(Prompt::Turns(vec![]), choose("", &[" a"]).ask), "no turns");
        let none = Ask::Continue { max_tokens: 0, expect: vec![] };
        refused(item(Prompt::Plain("the king".into()), none), "max_tokens");
        // A long prompt loses its beginning and keeps what begins every text.
        let cut = model.put(&[choose(&long, &[" the king"])]).unwrap().remove(0);
        let (ids, _) = cut.sequences().next().unwrap();
        assert!(cut.cut && ids.len() == most + 1 && ids.starts_with(&model.begin));
    }
}
