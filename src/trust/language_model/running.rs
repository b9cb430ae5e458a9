//! Rows through the decoder: the scores of options, and texts a token at a time.

use rayon::prelude::*;
use scruple_compress::{
    Error, Result,
    kernel::{activation::log_sum_exp, tensor::with_f32},
    model::{
        decoder::{KvCache, Stretch},
        generate::Sampling,
    },
};

use super::{
    super::item::Answer,
    Counts, LanguageModel,
    rendering::{Put, Sequence},
    scheduling::{MIN_SHARED, Plan, Step, common},
};

/// Bytes of logits held at a time.
const LOGIT_BYTES: usize = 64 << 20;

impl LanguageModel {
    /// Runs `plan`, in runs of so many rows, and hands the last hidden states of the `wanted` rows (ascending) to `each`
    /// with the place of the first among them.
    fn run(
        &self,
        plan: &Plan<'_>,
        wanted: &[usize],
        mut each: impl FnMut(usize, &candle_core::Tensor) -> Result<()>,
    ) -> Result<()> {
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
    pub(super) fn score(&self, sequences: &[&Sequence], counts: &mut Counts) -> Result<Vec<f64>> {
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
    pub(super) fn go_on(&self, put: &[Put], chunk: &[usize], counts: &mut Counts) -> Result<Vec<Answer>> {
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
    fn begin_texts(&self, prompts: &[&[u32]], counts: &mut Counts) -> Result<(Vec<KvCache>, Vec<u32>)> {
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
    fn likeliest(&self, hidden: &candle_core::Tensor) -> Result<Vec<u32>> {
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
