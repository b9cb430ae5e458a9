//! `scruple layers search`: which layers can go, and what that costs.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use scruple_compress::{
    layers::{
        Removal,
        evaluate::{Corpus, Evaluator, Objective, Race},
        questions, scan,
        search::{self, Baseline, Search, Settings},
    },
    model::{Decoder, any, text::Text},
};
use scruple_weights::Checkpoint;

use super::{
    report::{self, Curve, Holdout, Judge, SearchRecord},
    text,
};
use crate::{
    commands::eval::blame,
    printer::{self, Progress},
    record::{self, Run},
    source,
};

/// Batches that a race goes over; nobody is dropped before half of them. With sixteen, and dropping from a quarter on, greedy
/// lost a better set of SmolLM2's layers at k = 8 (KL 1.16 in place of 1.09).
const RACE_BATCHES: usize = 8;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file of a decoder or a text encoder, or `org/name[@revision][:file]` of a hub
    model: PathBuf,
    /// How many layers to take out: a number, a list, or a range with both ends such as 1..8
    #[arg(long)]
    remove: String,
    /// How sets are searched: greedy, window, dp, beam:WIDTH, evolve, exhaustive, each with or without +swap; several with
    /// commas. For an encoder greedy, window and exhaustive
    #[arg(long, default_value = "greedy")]
    search: String,
    /// What a set is judged by: kl (to the dense model), nll (of the text), or mc:FILE (multiple-choice questions as JSON
    /// lines). With a second one after a comma, sets that no other beats in both are listed
    #[arg(long, default_value = "kl")]
    objective: String,
    /// Text to search on: plain, JSON lines or Parquet
    #[arg(long)]
    calibration: PathBuf,
    /// Text to measure on what was found, which the search does not see; without it, or where it is the same file, what
    /// follows in --calibration
    #[arg(long)]
    holdout: Option<PathBuf>,
    /// Tokens of --calibration that a candidate is scored on at most
    #[arg(long, default_value_t = 4096)]
    budget_tokens: usize,
    /// Tokens of the held-out text
    #[arg(long, default_value_t = 16384)]
    holdout_tokens: usize,
    /// Tokens of a window; each window is run on its own
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Share of the search text's positions that the head is applied to
    #[arg(long, default_value_t = 0.25)]
    head_positions: f64,
    /// Drop a candidate when it is behind by so many standard errors of the paired difference; 0 scores all on everything
    #[arg(long, default_value_t = 3.0)]
    race: f64,
    /// After the first round of greedy and beam, only the so many layers that cost least alone
    #[arg(long)]
    shortlist: Option<usize>,
    /// Layers at the beginning and the end that stay
    #[arg(long, default_value = "first:1,last:1")]
    protect: String,
    /// Sets that `exhaustive` goes through at most, of one size
    #[arg(long, default_value_t = 20_000)]
    exhaustive_limit: u64,
    /// Generations of `evolve` at most, of one size
    #[arg(long, default_value_t = 40)]
    generations: usize,
    /// Seed of everything drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Leave out the canaries: sums and brackets
    #[arg(long)]
    no_canaries: bool,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
    /// Write `search.json`, `search.svg` and `run.json` into this folder, and keep scores there: an interrupted search goes
    /// on, and one that was done costs nothing
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// Reads `4`, `2,4` or `1..8`.
fn sizes(text: &str) -> Result<BTreeSet<usize>> {
    let wrong = || format!("--remove should be a number, a list or a range such as 1..8, found `{text}`");
    let mut sizes = BTreeSet::new();
    for part in text.split(',') {
        match part.split_once("..") {
            None => _ = sizes.insert(part.trim().parse().with_context(wrong)?),
            Some((first, last)) => {
                let (first, last): (usize, usize) = (
                    first.trim().parse().with_context(wrong)?,
                    last.trim_start_matches('=').trim().parse().with_context(wrong)?,
                );
                anyhow::ensure!(first <= last && last < 10_000, wrong());
                sizes.extend(first..=last);
            }
        }
    }
    anyhow::ensure!(!sizes.contains(&0), "--remove counts layers that are taken out, from 1; found `{text}`");
    Ok(sizes)
}

/// Reads `first:1,last:1`.
fn protect(text: &str) -> Result<(usize, usize)> {
    let (mut first, mut last) = (0, 0);
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let number = |digits: &str| digits.parse::<usize>().ok();
        match part.split_once(':').map(|(end, digits)| (end, number(digits))) {
            Some(("first", Some(count))) => first = count,
            Some(("last", Some(count))) => last = count,
            _ => anyhow::bail!("--protect should be first:COUNT,last:COUNT, found `{text}`"),
        }
    }
    Ok((first, last))
}

/// One objective, and the questions it is about.
fn objective(name: &str) -> Result<(Objective, Option<PathBuf>)> {
    match name {
        "kl" => Ok((Objective::Kl, None)),
        "nll" => Ok((Objective::Nll, None)),
        _ => match name.strip_prefix("mc:") {
            Some(file) if !file.is_empty() => Ok((Objective::Choices, Some(file.into()))),
            _ => anyhow::bail!("an objective should be kl, nll or mc:FILE, found `{name}`"),
        },
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut clock = Run::start("layers search");
    let searches: Vec<Search> = arguments.search.split(',').map(Search::parse).collect::<Result<_, _>>()?;
    let objectives: Vec<(Objective, Option<PathBuf>)> =
        arguments.objective.split(',').map(objective).collect::<Result<_>>()?;
    anyhow::ensure!(objectives.len() <= 2, "--objective takes one or two, found {}", objectives.len());
    anyhow::ensure!(arguments.race >= 0.0, "--race should not be negative, found {}", arguments.race);
    let (protect_first, protect_last) = protect(&arguments.protect)?;
    let settings = Settings {
        sizes: sizes(&arguments.remove)?,
        protect_first,
        protect_last,
        race: Race {
            errors: arguments.race,
            batch: (arguments.budget_tokens / arguments.window.max(1) / RACE_BATCHES).max(1),
        },
        shortlist: arguments.shortlist,
        exhaustive_limit: arguments.exhaustive_limit,
        generations: arguments.generations,
        seed: arguments.seed,
    };
    let located = source::locate(&arguments.model)?;
    let checkpoint = Checkpoint::open(located.path())?;
    if matches!(any::kind(&checkpoint)?, any::Kind::Encoder) {
        return encoder(arguments, &checkpoint, &searches, &settings, clock);
    }
    let model = Decoder::open(&checkpoint)?;
    settings.removable(model.blocks().len())?;
    let tokenizer = Text::open(&checkpoint)?;
    let (calibration, holdout) = texts(arguments, &tokenizer)?;
    let fingerprint = checkpoint.fingerprint();
    let folder = arguments.output.as_deref().map(record::folder).transpose()?;
    let whole = checkpoint.fingerprint_with_config()?;
    let judge = Judge { model: &model, folder: folder.as_deref(), fingerprint: &whole };

    let mut found = look(&settings, &searches, &objectives, &judge, &calibration, &tokenizer)
        .map_err(|error| blame_any(error, &checkpoint))?;
    let holdout = measure(arguments, &judge, holdout, &tokenizer, &mut found.curves)
        .map_err(|error| blame_any(error, &checkpoint))?;
    checkpoint.expect_unchanged()?;

    let record = SearchRecord::new(
        &checkpoint,
        fingerprint.clone(),
        arguments.objective.clone(),
        &settings,
        &calibration,
        holdout,
        found,
    )?;
    clock.extra.insert("model".into(), arguments.model.display().to_string().into());
    if let Some(out) = &folder {
        record::write_whole(&out.join("search.svg"), &report::picture(&record)?)?;
        record::save(out, "search", &record, &clock)?;
    }
    if arguments.json {
        printer::json(&record)?;
    } else {
        report::print(&record, &arguments.model.display().to_string());
    }
    Ok(ExitCode::SUCCESS)
}

/// The same for an encoder.
fn encoder(
    arguments: &Arguments,
    checkpoint: &Checkpoint,
    searches: &[Search],
    settings: &Settings,
    mut clock: Run,
) -> Result<ExitCode> {
    anyhow::ensure!(
        arguments.objective == "kl",
        "--objective is for decoders; sets of an encoder's layers are judged by the cosine of its vectors"
    );
    let record =
        super::encoder::search(checkpoint, searches, settings, &arguments.calibration, arguments.holdout.as_deref())?;
    clock.extra.insert("model".into(), arguments.model.display().to_string().into());
    if let Some(out) = &arguments.output {
        record::save(out, "search", &record, &clock)?;
    }
    if arguments.json {
        printer::json(&record)?;
    } else {
        super::encoder::print(&record);
    }
    Ok(ExitCode::SUCCESS)
}

/// `error`, or the tensor that is to blame for numbers that went wrong.
fn blame_any(error: anyhow::Error, checkpoint: &Checkpoint) -> anyhow::Error {
    match error.downcast::<scruple_compress::Error>() {
        Ok(error) => blame(error, checkpoint),
        Err(error) => error,
    }
}

/// Whether two paths lead to one file.
pub(super) fn same_file(a: &Path, b: &Path) -> bool {
    let canonical = |path: &Path| path.canonicalize().ok();
    a == b || canonical(a).is_some_and(|a| canonical(b) == Some(a))
}

/// The search's text and the held-out one, which share no window.
fn texts(arguments: &Arguments, tokenizer: &Text) -> Result<(Corpus, Corpus)> {
    let Arguments { budget_tokens, holdout_tokens, window, head_positions, seed, .. } = *arguments;
    let limit = budget_tokens.saturating_add(holdout_tokens).saturating_add(window);
    let ids = text::tokens(tokenizer, &arguments.calibration, limit)?;
    let named = |file: &Path| file.display().to_string();
    let other = arguments.holdout.as_deref().filter(|file| !same_file(file, &arguments.calibration));
    // Of one file the search gets half at most.
    let budget = if other.is_some() { budget_tokens } else { budget_tokens.min(ids.len() / 2) };
    let calibration = text::windows(&ids, 0, (window, budget), head_positions, seed)
        .with_context(|| named(&arguments.calibration))?;
    let (held, start) = match other {
        Some(file) => (text::tokens(tokenizer, file, limit)?, 0),
        None => {
            printer::say(format!(
                "{}: the search sees its first {} tokens, what follows is held out",
                named(&arguments.calibration),
                calibration.tokens()
            ));
            (ids, calibration.tokens() + 1)
        }
    };
    let file = other.unwrap_or(&arguments.calibration);
    let holdout = text::windows(&held, start, (window, holdout_tokens), 1.0, seed).with_context(|| named(file))?;
    let seen: BTreeSet<&[u32]> = calibration.sequences().iter().map(|sequence| sequence.ids.as_slice()).collect();
    if let Some(same) = holdout.sequences().iter().position(|sequence| seen.contains(sequence.ids.as_slice())) {
        anyhow::bail!(
            "{}: its window {same} is one that the search sees too, so it would not measure what was found; give another text",
            named(file)
        );
    }
    Ok((calibration, holdout))
}

/// What the searches found, before it is measured.
pub struct Looked {
    /// The searches' curves, then those of the baselines.
    pub curves: Vec<Curve>,
    /// Work of the walks, and of the same candidate by candidate.
    pub work: [scruple_compress::layers::sweep::Work; 2],
    /// Sets scored.
    pub sets: usize,
    /// Whether a second objective was asked for.
    pub second: bool,
}

/// Runs the searches and the baselines.
fn look(
    settings: &Settings,
    searches: &[Search],
    objectives: &[(Objective, Option<PathBuf>)],
    judge: &Judge<'_>,
    calibration: &Corpus,
    tokenizer: &Text,
) -> Result<Looked> {
    let layers = judge.model.blocks().len();
    let removable = settings.removable(layers)?;
    let mut progress = Progress::new("scan", calibration.tokens() as u64);
    let scanned =
        scan::scan(judge.model, calibration.sequences(), 0, false, &mut |done| progress.at(done as u64, "tokens"))?;
    progress.finish();
    let influence: Vec<f64> = scanned.layers.iter().map(|layer| layer.influence.value).collect();

    let evaluator = |(objective, file): &(Objective, Option<PathBuf>)| -> Result<Evaluator<'_>> {
        let corpus = match file {
            None => calibration.clone(),
            Some(file) => {
                let asked = questions::read(file)?;
                Corpus::questions(&text::questions(tokenizer, &asked)?).with_context(|| file.display().to_string())?
            }
        };
        judge.evaluator(corpus, *objective)
    };
    let mut first = evaluator(&objectives[0])?;
    let mut curves = Vec::new();
    let baselines = search::baselines(layers, settings, &removable, &influence, &scanned.angular);
    let rules = baselines.iter().filter(|one| ["influence", "angular-window"].contains(&one.name.as_str()));
    let starts: Vec<Removal> = rules.flat_map(|one| one.sets.iter().flatten().cloned()).collect();
    for search in searches {
        printer::say(format!("search: {}", search.name()));
        let found = search::run(&mut first, search, settings, &scanned.angular, &starts)?;
        curves.push(Curve::found(&search.name(), found));
    }
    let work = first.work();
    let sets = first.sets();
    for Baseline { name, sets } in baselines {
        let wanted = settings.sizes.iter().filter_map(|&k| sets.get(k - 1).cloned().flatten());
        curves.push(Curve::baseline(&name, wanted.collect()));
    }
    let mut second = false;
    if let Some(objective) = objectives.get(1) {
        let mut other = evaluator(objective)?;
        curves.iter_mut().try_for_each(|curve| curve.judge_first(&mut first))?;
        curves.iter_mut().try_for_each(|curve| curve.judge_again(&mut other))?;
        second = true;
    }
    Ok(Looked { curves, work: [work.0, work.1], sets, second })
}

/// Measures the dense model and every set of the curves on the held-out text, and by the canaries.
fn measure<'a>(
    arguments: &Arguments,
    judge: &Judge<'a>,
    corpus: Corpus,
    tokenizer: &Text,
    curves: &mut [Curve],
) -> Result<Holdout<'a>> {
    let mut sets: BTreeSet<Removal> =
        curves.iter().flat_map(|curve| curve.points.iter().map(|p| p.removed.clone())).collect();
    sets.insert(Removal::default());
    let sets: Vec<Removal> = sets.into_iter().collect();
    let total = (corpus.tokens() * sets.len()) as u64;
    let mut progress = Progress::new("held-out", total);
    let mut evaluator = Evaluator::new(judge.model, corpus, Objective::Nll)
        .beside_dense()
        .with_progress(|done| progress.at(done, "set-tokens"));
    if let Some(folder) = judge.folder {
        evaluator = evaluator.remember_in(folder, judge.fingerprint)?;
    }
    let units = evaluator.corpus().units();
    evaluator.ensure(&sets, 0..units)?;
    let mut holdout = Holdout::new(&evaluator);
    if !arguments.no_canaries {
        for (name, documents) in
            [("sums", questions::sums(arguments.seed)), ("brackets", questions::brackets(arguments.seed))]
        {
            let Some(texts) = questions::canary(tokenizer, &documents)? else {
                printer::warn(format!("the tokenizer has no tokens for the canary `{name}`; it is left out"));
                continue;
            };
            let mut canary = judge.evaluator(Corpus::texts(texts)?, Objective::Nll)?;
            canary.ensure(&sets, 0..canary.corpus().units())?;
            holdout.canaries.push((name.to_string(), canary));
        }
    }
    curves.iter_mut().for_each(|curve| curve.measure(&evaluator, &holdout));
    let dense = holdout.of(&evaluator, &Removal::default());
    holdout.dense = Some(dense);
    Ok(holdout)
}
