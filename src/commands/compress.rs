//! `scruple compress`: a smaller copy of a checkpoint, with an account of what it cost.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result};
use scruple_compress::{
    Error,
    calibration::CalibrationSet,
    data::world::Question,
    export::Format,
    measure::Evaluation,
    memory,
    model::{
        Decoder, DecoderConfig,
        decoder::{KvCache, expect_ids},
        text::Text,
    },
    plan::{Around, Forecast, Plan},
    recipe::{CalibrationRecipe, ExportRecipe, Recipe, StageRecipe},
    sequential::{self, LinearRecord, Outcome},
};
use scruple_weights::{Checkpoint, CheckpointWriter, WriterOptions, hub::Origin};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{eval, verify};
use crate::{
    fixture::{self, Fixture},
    plot,
    printer::{self, Progress, Table},
    record::{self, Run},
    source,
};

/// Bytes of dense block weights that the speed report runs: beyond the caches, yet small against a large model, whose
/// speed is scaled from its first blocks.
const SPEED_BYTES: u64 = 96 << 20;

/// Tokens of the speed report: one prompt, then one at a time.
const PREFILL_TOKENS: usize = 256;
const DECODE_TOKENS: usize = 16;

/// Predicted tokens of a window of --text.
const EVALUATION_WINDOW: usize = 512;

/// What to compress, and how.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file of the model, or `org/name[@revision][:file]` of a hub; without it, the small one that comes with the program
    model: Option<PathBuf>,
    /// How codes are chosen: see `scruple methods`
    #[arg(long, default_value = "gptq")]
    method: String,
    /// Bits of a code: 2, 3, 4 or 8; 4 without it
    #[arg(long)]
    bits: Option<u32>,
    /// Weights of a row that share a scale; 0 for the whole row; 128 without it
    #[arg(long)]
    group_size: Option<usize>,
    /// Zero points of their own instead of symmetric grids
    #[arg(long)]
    asymmetric: bool,
    /// Fraction of the weights set to zero, for methods that prune; 0.5 without it and --pattern
    #[arg(long)]
    sparsity: Option<f64>,
    /// Weights kept of every few neighbours in a row, as 2:4, instead of a sparsity
    #[arg(long, conflicts_with = "sparsity")]
    pattern: Option<String>,
    /// Text to calibrate on
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Sequences of the calibration text
    #[arg(long, default_value_t = CalibrationRecipe::default().n_samples)]
    n_samples: usize,
    /// Tokens of a sequence
    #[arg(long, default_value_t = CalibrationRecipe::default().seq_len)]
    seq_len: usize,
    /// How the result is written, see `scruple methods`; without it the first format that can hold what the method makes
    #[arg(long)]
    format: Option<String>,
    /// A recipe file instead of the options above
    #[arg(long, conflicts_with_all = ["method", "bits", "group_size", "asymmetric", "sparsity", "pattern", "format", "n_samples", "seq_len"])]
    recipe: Option<PathBuf>,
    /// Print the plan and what it will take, and stop
    #[arg(long)]
    dry_run: bool,
    /// Measure perplexity and divergence on this text afterwards
    #[arg(long)]
    text: Option<PathBuf>,
    /// Tokens of --text to measure, at most
    #[arg(long, default_value_t = 16_384)]
    max_tokens: usize,
    /// Skip the measurement of tokens a second
    #[arg(long)]
    no_speed: bool,
    /// Let NaN and infinite weights through
    #[arg(long)]
    allow_nonfinite: bool,
    /// Folder to write; it must not exist
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Print the records as JSON
    #[arg(long)]
    json: bool,
}

/// What `scruple.json` beside the weights says: where they come from. The same bytes for the same inputs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Provenance {
    /// Of the program.
    pub version: String,
    /// Hash of the dense model's tensors: names, types, shapes, bytes.
    pub source_fingerprint: String,
    /// Where a dense model of a hub came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Origin>,
    /// What was asked for.
    pub recipe: Recipe,
    /// Samples, their length, and the SHA-256 of the token ids.
    pub calibration: Option<Value>,
    /// Linears of the blocks that stayed dense.
    pub left_dense: Vec<String>,
    /// Bits a compressed weight takes, scales included.
    pub bits_per_weight: f64,
    /// What was done to each linear.
    pub linears: Vec<LinearRecord>,
}

/// Speeds of one model, tokens a second.
#[derive(Debug, Clone, Copy, Serialize)]
struct Speed {
    prefill: f64,
    decode: f64,
    /// Blocks that were run, of all.
    blocks: usize,
}

impl Arguments {
    fn recipe(&self) -> Result<Recipe> {
        if let Some(file) = &self.recipe {
            return Ok(Recipe::read(file)?);
        }
        // Only what was said: the rest is the method's own to choose.
        let mut params = toml::Table::new();
        if let Some(bits) = self.bits {
            params.insert("bits".into(), i64::from(bits).into());
        }
        if let Some(group_size) = self.group_size {
            params.insert("group_size".into(), (group_size as i64).into());
        }
        if self.asymmetric {
            params.insert("symmetric".into(), false.into());
        }
        if let Some(sparsity) = self.sparsity {
            params.insert("sparsity".into(), sparsity.into());
        }
        if let Some(pattern) = &self.pattern {
            params.insert("pattern".into(), pattern.clone().into());
        }
        let stage = StageRecipe { method: self.method.clone(), targets: vec!["*".into()], ignore: Vec::new(), params };
        let format = self.format.as_ref().map(|name| name.parse::<Format>()).transpose().map_err(anyhow::Error::msg)?;
        let recipe = Recipe {
            stages: vec![stage],
            calibration: CalibrationRecipe { n_samples: self.n_samples, seq_len: self.seq_len },
            export: ExportRecipe { format },
        };
        recipe.methods()?; // unknown methods and parameters, before a model is opened
        Ok(recipe)
    }
}

fn file_bytes(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |metadata| metadata.len())
}

/// What the model in `path` is called: the name of its folder or file, also where the path is `.` or ends in `..`.
fn name_of(path: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    name(path).or_else(|| name(&path.canonicalize().ok()?)).unwrap_or_else(|| "model".into())
}

/// `NAME`, or `NAME-2`, … : the first that is free in the current folder.
fn free_folder(name: &str) -> PathBuf {
    let candidates = std::iter::once(name.to_string()).chain((2..).map(|n| format!("{name}-{n}")));
    candidates.map(PathBuf::from).find(|path| !path.exists()).unwrap_or_default()
}

fn calibration_set(checkpoint: &Checkpoint, plan: &Plan, file: &Path) -> Result<CalibrationSet> {
    let text = Text::open(checkpoint)?;
    let (ids, _) = eval::tokens_of(&text, file)?;
    expect_ids(checkpoint.path(), &ids, plan.config.vocab_size)?;
    let wanted = &plan.recipe.calibration;
    let set = CalibrationSet::from_ids(ids, file, wanted.n_samples, wanted.seq_len)?;
    drop(text);
    memory::give_back();
    if set.n_samples() < set.asked {
        printer::warn(format!(
            "{}: the text holds {} sequences of {} tokens, {} were asked for",
            file.display(),
            set.n_samples(),
            set.seq_len,
            set.asked
        ));
    }
    Ok(set)
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut clock = Run::start("compress");
    let recipe = arguments.recipe()?;
    let embedded = match &arguments.model {
        None => Some(Fixture::unpack()?),
        Some(_) => None,
    };
    let located = match (&arguments.model, &embedded) {
        (Some(model), _) => source::locate(model)?,
        (None, Some(fixture)) => source::locate(fixture.path())?,
        (None, None) => unreachable!("a model is given or embedded"),
    };
    let model = located.path();
    let name = match (&arguments.model, located.name()) {
        (None, _) => fixture::NAME.to_string(),
        (_, Some(name)) => name.to_string(),
        (Some(model), None) => name_of(model),
    };
    let calibration_file = arguments.calibration.clone().or_else(|| embedded.as_ref().map(Fixture::calibration));
    let text = arguments.text.clone().or_else(|| embedded.as_ref().map(Fixture::text));

    let checkpoint = located.open()?;
    let plan = Plan::new(recipe, &checkpoint);
    let mut plan = match &arguments.recipe {
        Some(file) => plan.with_context(|| file.display().to_string())?,
        None => plan?,
    };
    plan.allow_nonfinite = arguments.allow_nonfinite;
    if let Some(text) = &text {
        anyhow::ensure!(arguments.max_tokens > 0, "--max-tokens should be at least 1, found 0");
        eval::expect_text(&checkpoint, text, plan.config.vocab_size)?;
    }
    let set = match &calibration_file {
        Some(file) if plan.needs_calibration() => Some(calibration_set(&checkpoint, &plan, file)?),
        None if plan.needs_calibration() => {
            let method = plan.calibrated_method().map_or("of the recipe", |method| method.name());
            anyhow::bail!("method `{method}` needs a text to calibrate on; give --calibration FILE")
        }
        _ => None,
    };
    let (n_samples, seq_len) = set.as_ref().map_or((0, 0), |set| (set.n_samples(), set.seq_len));
    let forecast = plan.forecast(
        &checkpoint,
        Around {
            n_samples,
            seq_len,
            text_bytes: calibration_file.as_ref().filter(|_| set.is_some()).map_or(0, |file| file_bytes(file)),
            speed_bytes: if arguments.no_speed { 0 } else { SPEED_BYTES },
            evaluates: text.is_some(),
        },
    );
    if arguments.dry_run {
        return dry_run(arguments, &plan, &forecast);
    }
    if plan.needs_calibration() {
        printer::say(format!(
            "calibrating on {} tokens; their activations take {:.0} MB on disk (bf16)",
            n_samples * seq_len,
            forecast.activation_bytes as f64 / 1e6
        ));
    }

    let out = match &arguments.output {
        Some(out) => out.clone(),
        None => free_folder(&format!("{}-{}", name_of(Path::new(&name)), plan.recipe.stages[0].method)),
    };
    if !arguments.allow_nonfinite {
        // Before the work: in the last block it would show after hours.
        for view in checkpoint.tensors() {
            sequential::refuse_nonfinite(view)?;
            view.release();
        }
    }
    let hashing = Instant::now();
    let source_fingerprint = checkpoint.fingerprint();
    checkpoint.release_all();
    clock.extra.insert("source_hash_seconds".into(), hashing.elapsed().as_secs_f64().into());
    let calibration = set
        .as_ref()
        .map(|set| json!({ "n_samples": set.n_samples(), "seq_len": set.seq_len, "tokens_sha256": set.digest }));
    let run_fingerprint = scruple_weights::digest::sha256(&serde_json::to_vec(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "source": source_fingerprint,
        "recipe": plan.recipe,
        "calibration": calibration,
    }))?);
    let metadata: BTreeMap<String, String> =
        [("format", "pt"), ("scruple", env!("CARGO_PKG_VERSION")), ("source", source_fingerprint.as_str())]
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .into();
    let mut writer = CheckpointWriter::resume_or_create(
        &out,
        plan.tensors.clone(),
        WriterOptions { metadata, ..WriterOptions::default() },
        &run_fingerprint,
        &CheckpointWriter::work_folder(&out)?,
    )?;
    let mut progress = Progress::new("compress", plan.linears.len() as u64);
    let outcome = sequential::compress(&checkpoint, &plan, set.as_ref(), &mut writer, &mut |done, _, name| {
        progress.at(done as u64, name);
    });
    progress.finish();
    let outcome = match outcome {
        // The same input would fail in the same way, so there is nothing to go on from.
        Err(error @ (Error::Numeric(_) | Error::Model(_) | Error::Text(_))) => {
            writer.discard();
            return Err(error.into());
        }
        outcome => outcome?,
    };
    drop(set);
    checkpoint.release_all();
    if let Err(error) = checkpoint.expect_unchanged() {
        writer.discard();
        return Err(error.into());
    }
    if outcome.resumed_blocks > 0 {
        printer::say(format!("went on after {} blocks that an earlier run had finished", outcome.resumed_blocks));
    }

    let provenance = Provenance {
        version: env!("CARGO_PKG_VERSION").into(),
        source_fingerprint,
        source: located.origin().cloned(),
        recipe: plan.recipe.clone(),
        calibration,
        left_dense: plan.left_dense.clone(),
        bits_per_weight: forecast.bits_per_weight,
        linears: outcome.linears.clone(),
    };
    side_files(&checkpoint, &plan, &name, &provenance, &mut writer)?;
    if let Some(picture) = picture(&name, &plan, &outcome)? {
        writer.add_file("errors.png", &picture)?;
    }
    let written = writer.finish()?;

    clock.extra.insert("forecast".into(), serde_json::to_value(forecast)?);
    clock.extra.insert("phases".into(), serde_json::to_value(outcome.phases)?);
    clock.extra.insert("seconds_by_linear".into(), outcome.seconds.iter().cloned().collect());
    clock.extra.insert("compress_peak_rss_bytes".into(), record::peak_rss().into());
    record::write_whole(&out.join("run.json"), &record::pretty(&clock.to_json())?)?;

    memory::give_back();
    let cost = Cost::measure(arguments, model, &out, text.as_deref(), embedded.as_ref())?;
    if let Some((dense, compressed)) = cost.speeds {
        clock.extra.insert("tokens_per_second".into(), json!({ "dense": dense, "compressed": compressed }));
    }
    record::write_whole(&out.join("run.json"), &record::pretty(&clock.to_json())?)?;
    if let Some(evaluation) = &cost.evaluation {
        record::write_whole(&out.join("eval.json"), &record::pretty(evaluation)?)?;
    }
    report(arguments, &plan, &outcome, &checkpoint, written.bytes, &cost, &out)?;
    Ok(ExitCode::SUCCESS)
}

fn dry_run(arguments: &Arguments, plan: &Plan, forecast: &Forecast) -> Result<ExitCode> {
    if arguments.json {
        let linears: Vec<Value> = plan
            .linears
            .iter()
            .map(|linear| {
                json!({
                    "name": linear.name,
                    "method": plan.method_name(linear),
                    "stored": linear.layout.code,
                    "shape": [linear.layout.out_features, linear.layout.in_features],
                    "storage_bits": plan.storage_bits(linear),
                })
            })
            .collect();
        printer::json(&json!({
            "forecast": forecast, "format": plan.format, "linears": linears, "left_dense": plan.left_dense,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["linear", "method", "shape", "stored as"]);
    for linear in &plan.linears {
        table.row([
            linear.name.clone(),
            plan.method_name(linear),
            format!("{} x {}", linear.layout.out_features, linear.layout.in_features),
            linear.layout.code.describe(),
        ]);
    }
    table.print();
    let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    printer::data("");
    let mut table = Table::new(["forecast", ""]);
    table.row(["tensors, dense".into(), mb(forecast.dense_bytes)]);
    table.row(["tensors, compressed".into(), mb(forecast.output_bytes)]);
    table.row(["bits a weight of the linears".into(), format!("{:.3}", forecast.bits_per_weight)]);
    table.row(["peak memory".into(), mb(forecast.peak_rss_bytes)]);
    table.row(["activations on disk".into(), mb(forecast.activation_bytes)]);
    table.print();
    Ok(ExitCode::SUCCESS)
}

/// Everything that belongs beside the weights.
fn side_files(
    checkpoint: &Checkpoint,
    plan: &Plan,
    name: &str,
    provenance: &Provenance,
    writer: &mut CheckpointWriter,
) -> Result<()> {
    let mut config = checkpoint.config()?.clone();
    let quantisation = plan.quantisation()?;
    if let Some(content) = quantisation.config {
        config["quantization_config"] = content;
    }
    for (name, content) in quantisation.files {
        writer.add_file(&name, &record::pretty(&content)?)?;
    }
    writer.add_file("config.json", &record::pretty(&config)?)?;
    let mut source_card = None;
    for path in checkpoint.side_files() {
        if path.file_name().is_some_and(|name| name == "README.md") {
            source_card = std::fs::read_to_string(&path).ok();
        } else {
            writer.copy_file(&path)?;
        }
    }
    writer.add_file("README.md", model_card(name, plan, provenance, source_card.as_deref()).as_bytes())?;
    writer.add_file("scruple.json", &record::pretty(provenance)?)?;
    Ok(())
}

/// The value of `key` in the front matter of a model card.
fn front_matter<'a>(card: &'a str, key: &str) -> Option<&'a str> {
    let body = card.strip_prefix("---\n")?;
    let end = body.find("\n---")?;
    body[..end].lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
}

fn model_card(name: &str, plan: &Plan, provenance: &Provenance, source: Option<&str>) -> String {
    let license = source.and_then(|card| front_matter(card, "license"));
    let mut card = String::from("---\n");
    if let Some(license) = license {
        card.push_str(&format!("license: {license}\n"));
    }
    card.push_str(&format!("base_model: {name}\ntags:\n- scruple\n- {}\n---\n\n", plan.format));
    card.push_str(&format!("# {name}, compressed\n\n"));
    card.push_str(&format!(
        "Made from the dense checkpoint `{name}` ({}tensors' fingerprint `{}`) by scruple {}.\n\n",
        provenance.source.as_ref().map(|origin| format!("commit `{}`, ", origin.commit)).unwrap_or_default(),
        provenance.source_fingerprint,
        provenance.version
    ));
    card.push_str(&format!(
        "{} of the decoder blocks' linears are stored in the format `{}` at {:.3} bits a weight, scales included; all \
         other tensors are copies. `scruple.json` holds the recipe, and for each linear its error and the SHA-256 of the \
         weight it dequantises to; `scruple verify` checks them.\n\n",
        provenance.linears.len(),
        plan.format,
        provenance.bits_per_weight
    ));
    for (index, stage) in plan.recipe.stages.iter().enumerate() {
        card.push_str(&format!(
            "* stage {}: `{}`, {}\n",
            index + 1,
            stage.method,
            Value::from_iter(stage.params.iter().map(|(key, value)| (key.clone(), value.to_string())))
        ));
    }
    if let Some(calibration) = &provenance.calibration {
        card.push_str(&format!(
            "* calibration: {} sequences of {} tokens, token ids' SHA-256 `{}`\n",
            calibration["n_samples"],
            calibration["seq_len"],
            calibration["tokens_sha256"].as_str().unwrap_or_default()
        ));
    }
    card.push_str("\n## Licence\n\n");
    card.push_str(&match license {
        Some(license) => format!("As the dense model: {license}.\n"),
        None => "The dense checkpoint names no licence; its terms hold for this copy too.\n".to_string(),
    });
    card
}

/// The picture of the errors by block, as PNG bytes; none where no linear has one.
fn picture(name: &str, plan: &Plan, outcome: &Outcome) -> Result<Option<Vec<u8>>> {
    let mut lines: Vec<plot::Line> = Vec::new();
    for (linear, record) in plan.linears.iter().zip(&outcome.linears) {
        let Some(error) = record.report.output_error else { continue };
        let kind = linear.name.rsplit('.').next().unwrap_or_default().trim_end_matches("_proj").to_string();
        let point = (linear.block as f64, error);
        match lines.iter_mut().find(|line| line.name == kind) {
            Some(line) => line.points.push(point),
            None => lines.push(plot::Line { name: kind, points: vec![point] }),
        }
    }
    if lines.iter().flat_map(|line| &line.points).all(|(_, error)| *error <= 0.0) {
        return Ok(None);
    }
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("errors.png");
    let how =
        plan.linears.first().map(|linear| format!("{}, {}", plan.method_name(linear), linear.layout.code.describe()));
    plot::errors_by_block(
        &path,
        &format!("{name}: {}; error of each linear's output", how.unwrap_or_default()),
        &lines,
    )?;
    Ok(Some(std::fs::read(&path)?))
}

/// What compression cost, read from the written folder.
struct Cost {
    speeds: Option<(Speed, Speed)>,
    evaluation: Option<Evaluation>,
    answers: Option<Answers>,
}

/// Answers of two models to the same questions.
#[derive(Debug, Clone, Copy, Serialize)]
struct Answers {
    questions: usize,
    dense_right: usize,
    compressed_right: usize,
    same: usize,
}

impl Cost {
    fn measure(
        arguments: &Arguments,
        dense: &Path,
        out: &Path,
        text: Option<&Path>,
        embedded: Option<&Fixture>,
    ) -> Result<Self> {
        let speeds = match arguments.no_speed {
            true => None,
            false => {
                let blocks = speed_blocks(&Checkpoint::open(dense)?)?;
                Some((speed(dense, blocks)?, speed(out, blocks)?))
            }
        };
        // A model of learned positions has no others.
        let config = DecoderConfig::from_checkpoint(&Checkpoint::open(dense)?)?;
        let window = match config.embedding.positions {
            Some(_) => EVALUATION_WINDOW.min(config.max_positions),
            None => EVALUATION_WINDOW,
        };
        let evaluation = text
            .map(|text| eval::evaluate(out, Some(dense), text, window, Some(arguments.max_tokens), None))
            .transpose()?
            .map(|record| record.evaluation);
        let answers = embedded.map(|fixture| answers(dense, out, &fixture.questions()?)).transpose()?;
        Ok(Self { speeds, evaluation, answers })
    }
}

/// How many blocks of a dense model the speed report runs.
fn speed_blocks(dense: &Checkpoint) -> Result<usize> {
    let config = DecoderConfig::from_checkpoint(dense)?;
    let first = format!("{}.", config.block_path(0));
    let per_block = dense.tensors().filter(|view| view.name().starts_with(&first)).map(|view| view.bytes().len());
    let per_block = per_block.sum::<usize>().max(1) as u64;
    Ok(((SPEED_BYTES / per_block) as usize).clamp(1, config.n_blocks))
}

/// Tokens a second of the model in `folder`, scaled from its first `blocks` blocks.
fn speed(folder: &Path, blocks: usize) -> Result<Speed> {
    let checkpoint = Checkpoint::open(folder)?;
    let config = DecoderConfig::from_checkpoint(&checkpoint)?;
    let model = Decoder::open_first(&checkpoint, blocks)?;
    let tokens = PREFILL_TOKENS.min(config.max_positions / 2).max(DECODE_TOKENS);
    let ids: Vec<u32> = (0..tokens).map(|i| (i * 7919 % config.vocab_size) as u32).collect();
    let scale = config.n_blocks as f64 / blocks as f64;
    let mut cache = KvCache::default();
    model.hidden(&ids[..1], &mut cache)?; // brings the weights in
    let timed = |work: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
        let started = Instant::now();
        work()?;
        Ok(started.elapsed().as_secs_f64())
    };
    let mut cache = KvCache::default();
    let mut hidden = None;
    let blocks_time = timed(&mut || {
        hidden = Some(model.hidden(&ids, &mut cache)?);
        Ok(())
    })?;
    let hidden = hidden.context("the prompt was run")?;
    let last = hidden.narrow(0, ids.len() - 1, 1)?;
    model.logits(&last)?;
    let head = timed(&mut || model.logits(&last).map(drop).map_err(Into::into))?;
    let decode = timed(&mut || {
        for i in 0..DECODE_TOKENS {
            model.hidden(&ids[i..=i], &mut cache)?;
        }
        Ok(())
    })? / DECODE_TOKENS as f64;
    Ok(Speed {
        prefill: ids.len() as f64 / (blocks_time * scale + head),
        decode: 1.0 / (decode * scale + head),
        blocks,
    })
}

/// The option each model finds likeliest after each prompt, by the mean log-likelihood of its tokens.
fn answers(dense: &Path, compressed: &Path, questions: &[Question]) -> Result<Answers> {
    let open = |folder: &Path| -> Result<(Decoder, Text)> {
        let checkpoint = Checkpoint::open(folder)?;
        Ok((Decoder::open(&checkpoint)?, Text::open(&checkpoint)?))
    };
    let (dense, text) = open(dense)?;
    let (compressed, _) = open(compressed)?;
    let mut result = Answers { questions: questions.len(), dense_right: 0, compressed_right: 0, same: 0 };
    for question in questions {
        let choose = |model: &Decoder| {
            scruple_compress::measure::likeliest_option(model, &text, &question.prompt, &question.options)
        };
        let (a, b) = (choose(&dense)?, choose(&compressed)?);
        result.dense_right += usize::from(a == question.answer);
        result.compressed_right += usize::from(b == question.answer);
        result.same += usize::from(a == b);
    }
    Ok(result)
}

/// Says once how many experts' linears were calibrated on fewer tokens than they have inputs.
fn warn_of_experts(linears: &[LinearRecord]) {
    let short: Vec<&LinearRecord> = linears.iter().filter(|record| record.warning.is_some()).collect();
    if let Some(worst) = short.iter().min_by_key(|record| record.calibration_tokens) {
        printer::warn(format!(
            "{} linears of experts saw fewer calibration tokens than they have inputs, fewest `{}` ({}); a longer \
             --calibration text or more --n-samples reach them, and scruple.json tells each one's tokens",
            short.len(),
            worst.report.linear,
            worst.calibration_tokens.unwrap_or(0)
        ));
    }
}

fn report(
    arguments: &Arguments,
    plan: &Plan,
    outcome: &Outcome,
    checkpoint: &Checkpoint,
    written: u64,
    cost: &Cost,
    out: &Path,
) -> Result<()> {
    let dense_bytes: u64 = checkpoint.shards().iter().map(|shard| shard.bytes().len() as u64).sum();
    let (weights, bits) = outcome
        .linears
        .iter()
        .fold((0, 0), |(weights, bits), record| (weights + record.weights, bits + record.storage_bits));
    let compressed = Checkpoint::open(out)?;
    let (faults, checked, _) = verify::check(out, None)?;
    anyhow::ensure!(
        faults.is_empty(),
        "{}: the written file is not what was made: {}",
        out.display(),
        faults.join("; ")
    );
    warn_of_experts(&outcome.linears);
    if arguments.json {
        return printer::json(&json!({
            "output": out.display().to_string(),
            "linears": outcome.linears,
            "bits_per_weight": bits as f64 / weights as f64,
            "dense_bytes": dense_bytes,
            "output_bytes": written,
            "evaluation": cost.evaluation,
            "answers": cost.answers,
        }));
    }
    let seconds: BTreeMap<&str, f64> = outcome.seconds.iter().map(|(name, s)| (name.as_str(), *s)).collect();
    let mut table =
        Table::new(["linear", "method", "stored as", "zeros, %", "output error", "weight error", "seconds"]);
    for (linear, record) in plan.linears.iter().zip(&outcome.linears) {
        table.row([
            record.report.linear.clone(),
            record.report.method.clone(),
            linear.layout.code.describe(),
            format!("{:.1}", 100.0 * record.zeros as f64 / record.weights.max(1) as f64),
            record.report.output_error.map_or("-".into(), |error| format!("{error:.6}")),
            record.weight_error.map_or("-".into(), |error| format!("{error:.6}")),
            seconds.get(record.report.linear.as_str()).map_or("-".into(), |seconds| format!("{seconds:.2}")),
        ]);
    }
    table.print();
    printer::data("");
    let mb = |bytes: u64| format!("{:.2}", bytes as f64 / 1e6);
    let mut table = Table::new(["", "dense", "compressed"]);
    table.row(["files, MB".into(), mb(dense_bytes), mb(written)]);
    table.row(["weights in RAM, MB".into(), mb(checkpoint.bytes()), mb(compressed.bytes())]);
    table.row([
        "bits a weight (linears)".into(),
        format!("{}", plan.weight_dtype.bits()),
        format!("{:.3}", bits as f64 / weights as f64),
    ]);
    if let Some((dense, compressed)) = cost.speeds {
        let note = match dense.blocks < plan.config.n_blocks {
            true => format!(" (from {} of {} blocks)", dense.blocks, plan.config.n_blocks),
            false => String::new(),
        };
        table.row([
            format!("prefill, tokens/s{note}"),
            format!("{:.0}", dense.prefill),
            format!("{:.0}", compressed.prefill),
        ]);
        table.row([
            format!("decode, tokens/s{note}"),
            format!("{:.1}", dense.decode),
            format!("{:.1}", compressed.decode),
        ]);
    }
    if let Some(e) = &cost.evaluation
        && let Some(c) = &e.against
    {
        table.row(["perplexity".into(), format!("{:.4}", c.dense_perplexity), format!("{:.4}", e.perplexity)]);
        table.row([
            "KL to dense, nats a token".into(),
            "0".into(),
            c.kl_mean.stderr.map_or(format!("{:.5}", c.kl_mean.value), |s| format!("{:.5} ± {s:.5}", c.kl_mean.value)),
        ]);
        table.row(["same top token, %".into(), "100".into(), format!("{:.2}", 100.0 * c.same_top.value)]);
    }
    if let Some(a) = cost.answers {
        let share = |n: usize| format!("{n} of {}", a.questions);
        table.row(["questions answered right".into(), share(a.dense_right), share(a.compressed_right)]);
        table.row(["same answers".into(), share(a.questions), share(a.same)]);
    }
    table.print();
    printer::data("");
    let escalated: Vec<&LinearRecord> =
        outcome.linears.iter().filter(|record| !record.report.escalations.is_empty()).collect();
    for record in escalated {
        let steps = record.report.escalations.iter();
        let steps: Vec<_> = steps.map(|step| format!("with dampening {}, {}", step.dampening, step.reason)).collect();
        printer::warn(format!("linear `{}`: {}", record.report.linear, steps.join("; ")));
    }
    printer::data(format!("verified: {checked} linears read back from the file bit for bit"));
    let picture = out.join("errors.png");
    if picture.is_file() {
        printer::data(format!("picture: {}", picture.display()));
    }
    printer::data(format!("written: {}", out.display()));
    Ok(())
}
