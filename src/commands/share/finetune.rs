//! `scruple share finetune`: a model with a pool trained further, beside the dense model it came from.

use std::{
    fs,
    io::ErrorKind,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use scruple_compress::{
    model::{Decoder, text::Text},
    nn::{
        Net, Recipe, Source, Spec, Trainer, Weights, evaluate_from,
        optimiser::{Curve, Rule, Schedule},
        train::{Augmentation, Criterion},
    },
    sharing::{
        Shared, SharedFile,
        finetune::{Distillation, images::Distil, language},
        net::{self, PooledNet},
        report::Report,
    },
};
use scruple_weights::Checkpoint;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    report,
    train::{EVALUATED, expect_free, image_sets, scaling_beside, spec_beside},
};
use crate::{
    commands::eval::{self, EvalRecord},
    printer::{self, Progress},
    record::{self, Run},
    source,
};

/// Share of a language model's steps in which the learning rate rises.
const WARMUP: f64 = 0.1;

/// Steps between savings of a run, where nobody asks for another number.
pub const SAVE_EVERY: u64 = 50;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder that `share project` or `share train` wrote
    model: PathBuf,
    /// The dense model, whose word counts beside the data's
    #[arg(long)]
    teacher: Option<PathBuf>,
    /// How much of the loss is the dense model's word, 0 to 1
    #[arg(long, default_value_t = Distillation::default().share)]
    teacher_share: f64,
    /// Temperature at which the two models are compared
    #[arg(long, default_value_t = Distillation::default().temperature)]
    temperature: f64,
    /// Text a language model learns from
    #[arg(long)]
    text: Option<PathBuf>,
    /// Text a language model is judged by, before and after
    #[arg(long)]
    test_text: Option<PathBuf>,
    /// Tokens of --test-text, at most
    #[arg(long, default_value_t = 16_384)]
    max_tokens: usize,
    /// Steps of a language model
    #[arg(long, default_value_t = 200)]
    steps: u64,
    /// Windows of text a step
    #[arg(long, default_value_t = 8)]
    windows: usize,
    /// Tokens of a window
    #[arg(long, default_value_t = 128)]
    window: usize,
    /// Labelled images a net learns from, as in `share train`
    #[arg(long)]
    data: Option<String>,
    /// Labelled images a net is judged by
    #[arg(long, default_value = "glyphs")]
    test: String,
    /// The net, where the folder's share.json does not say
    #[arg(long, default_value = "mlp")]
    net: String,
    /// Features of its first layer, likewise
    #[arg(long, default_value_t = 128)]
    width: usize,
    /// Times a net sees every image
    #[arg(long, default_value_t = 8)]
    epochs: u64,
    /// Images a step
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// The highest learning rate; 0.001 for language models (AdamW) and 0.02 for nets (SGD) without it
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Weight decay; 0 for language models and 1e-4 for nets without it
    #[arg(long)]
    weight_decay: Option<f64>,
    /// Of the windows, or the order of the images
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Steps between savings of the run, which the same command goes on with after a stop
    #[arg(long, default_value_t = SAVE_EVERY, value_parser = clap::value_parser!(u64).range(1..))]
    save_every: u64,
    /// Stop after this many steps, save the run and write no model yet
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    stop_after: Option<u64>,
    /// Folder to write; it must not exist
    #[arg(short, long)]
    output: PathBuf,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
}

/// A net's answers to the images it is judged by.
#[derive(Debug, Clone, Copy, Serialize)]
struct Told {
    loss: f64,
    accuracy: f64,
}

/// What a run found; its measurements are of the files it began with and wrote.
#[derive(Debug, Serialize)]
struct Record {
    /// The net; none of a language model, whose config.json says.
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<Spec>,
    /// How it was trained.
    recipe: Value,
    distillation: Option<Distillation>,
    /// Hash of the tensors of the model it began with.
    source_fingerprint: String,
    /// Of the dense model's.
    teacher_fingerprint: Option<String>,
    /// Of the last step's batch, or the last epoch's images: nats, a mixture for a net that distils.
    train_loss: f64,
    before: Value,
    after: Value,
    teacher: Option<Value>,
    report: Report,
}

/// Where a run that is to end in `out` is saved while it goes on.
///
/// # Errors
/// If `out` has no name.
pub fn saved_run(out: &Path) -> Result<PathBuf> {
    let name = out.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{}: the output has no name", out.display()))?;
    Ok(out.with_file_name(format!(".{name}.finetune.safetensors")))
}

/// Removes a saved run, if there is one.
///
/// # Errors
/// If it cannot be removed.
pub fn forget(state: &Path) -> Result<()> {
    match fs::remove_file(state) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot remove the saved run", state.display()))
        }
        _ => Ok(()),
    }
}

impl Arguments {
    fn distillation(&self) -> Option<Distillation> {
        let distillation = Distillation { share: self.teacher_share, temperature: self.temperature };
        self.teacher.is_some().then_some(distillation)
    }

    fn teacher(&self) -> Result<Option<Checkpoint>> {
        self.teacher.as_deref().map(|path| anyhow::Ok(source::locate(path)?.open()?)).transpose()
    }

    /// Whether the run should be saved at `step`, and whether it ends there.
    fn at(&self, step: u64, steps: u64) -> (bool, bool) {
        let stop = self.stop_after == Some(step) && step < steps;
        (stop || (step.is_multiple_of(self.save_every) && step < steps), stop)
    }

    /// Says that the run waits in `state`.
    fn waits(&self, step: u64, steps: u64, state: &Path) -> Result<ExitCode> {
        if self.json {
            printer::json(&json!({ "step": step, "steps": steps, "state": state.display().to_string() }))?;
        } else {
            printer::data(format!(
                "stopped after {step} of {steps} steps; the same command goes on from {}",
                state.display()
            ));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Puts the record into the written folder and prints it.
    fn finish(&self, found: &Record, state: &Path, lines: &[String]) -> Result<ExitCode> {
        record::write_whole(&self.output.join("share.json"), &record::pretty(found)?)?;
        forget(state)?;
        if self.json {
            printer::json(found)?;
        } else {
            report::print(&found.report);
            lines.iter().for_each(printer::data);
            printer::data(format!("written to {}", self.output.display()));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("share finetune");
    expect_free(&arguments.output)?;
    let located = source::locate(&arguments.model)?;
    let file = SharedFile::open(located.path())?;
    match file.checkpoint().dir().join("config.json").is_file() {
        true => language_model(arguments, &file, &clock),
        false => image_net(arguments, &file, &clock),
    }
}

fn language_model(arguments: &Arguments, file: &SharedFile, clock: &Run) -> Result<ExitCode> {
    let text = arguments
        .text
        .as_deref()
        .with_context(|| format!("{}: is a language model; give --text FILE to learn from", file.path().display()))?;
    anyhow::ensure!(arguments.data.is_none(), "--data is for nets; {} is a language model", file.path().display());
    let tokenizer = Text::open(file.checkpoint())?;
    let (tokens, _) = eval::tokens_of(&tokenizer, text)?;
    let teacher = arguments.teacher()?;
    let decoder = teacher.as_ref().map(Decoder::open).transpose()?;
    let told = teacher.as_ref().map(Checkpoint::fingerprint_with_config).transpose()?;
    let recipe = language::Recipe {
        seed: arguments.seed,
        steps: arguments.steps,
        windows: arguments.windows,
        window: arguments.window,
        learning_rate: arguments.learning_rate.unwrap_or(1e-3),
        warmup: (WARMUP * arguments.steps as f64) as u64,
        weight_decay: arguments.weight_decay.unwrap_or(0.0),
        clip: 1.0,
        distillation: arguments.distillation(),
    };
    let teaches =
        decoder.as_ref().zip(told.as_deref()).map(|(decoder, fingerprint)| language::Teacher { decoder, fingerprint });
    let mut tuner = language::Tuner::new(file, recipe.clone(), &tokens, teaches)
        .with_context(|| format!("{}: cannot be fine-tuned", file.path().display()))?;
    let judge = |model: &Path, against: Option<&Path>| -> Result<Option<EvalRecord>> {
        let judged =
            |text: &PathBuf| eval::evaluate(model, against, text, arguments.window, Some(arguments.max_tokens), None);
        arguments.test_text.as_ref().map(judged).transpose()
    };
    let before = judge(file.checkpoint().path(), None)?;

    let state = saved_run(&arguments.output)?;
    if state.exists() {
        tuner.resume(&state)?;
        printer::say(format!("went on after step {} of {}", tuner.step_number(), tuner.steps()));
    }
    let mut progress = Progress::new("finetune", tuner.steps());
    let mut train_loss = 0.0;
    while tuner.step_number() < tuner.steps() {
        let now = tuner
            .step()
            .map_err(|error| eval::blame_any(error, std::iter::once(file.checkpoint()).chain(teacher.as_ref())))?;
        train_loss = now.nll;
        let apart = now.divergence.map_or(String::new(), |value| format!(", {value:.4} from the dense model"));
        progress.at(now.step, &format!("{:.4} nats a token{apart}", now.nll));
        let (save, stop) = arguments.at(now.step, now.steps);
        if save {
            tuner.save(&state)?;
        }
        if stop {
            progress.finish();
            return arguments.waits(now.step, now.steps, &state);
        }
    }
    progress.finish();
    tuner.write(&arguments.output, &[("run.json", record::pretty(&clock.to_json())?)])?;
    drop(tuner);

    // What is measured is what was written, run from its pool.
    let after = judge(&arguments.output, arguments.teacher.as_deref())?;
    let mut lines = Vec::new();
    if let (Some(before), Some(after)) = (&before, &after) {
        let dense = after.evaluation.against.as_ref();
        lines.push(format!(
            "perplexity {:.4} before, {:.4} after{}",
            before.evaluation.perplexity,
            after.evaluation.perplexity,
            dense.map_or(String::new(), |dense| format!(", {:.4} of the dense model", dense.dense_perplexity))
        ));
    }
    let found = Record {
        spec: None,
        recipe: serde_json::to_value(&recipe)?,
        distillation: arguments.distillation(),
        source_fingerprint: file.checkpoint().fingerprint(),
        teacher_fingerprint: teacher.as_ref().map(Checkpoint::fingerprint),
        train_loss,
        before: serde_json::to_value(before)?,
        after: serde_json::to_value(after)?,
        teacher: None,
        report: Report::of(&SharedFile::open(&arguments.output)?),
    };
    arguments.finish(&found, &state, &lines)
}

fn image_net(arguments: &Arguments, file: &SharedFile, clock: &Run) -> Result<ExitCode> {
    anyhow::ensure!(
        arguments.text.is_none() && arguments.test_text.is_none(),
        "--text is for language models; {} has no config.json beside it",
        file.path().display()
    );
    let data = arguments.data.as_deref().unwrap_or("glyphs");
    let (images, test) = image_sets(data, &arguments.test)?;
    let spec = spec_beside(file, Some((&arguments.net, arguments.width)), &images)?;
    let graph = spec.graph()?;
    let start = net::read(&graph, file)?;
    let shared = Shared::over(file.sharing().clone(), graph.layout())?;
    let recipe = Recipe {
        seed: arguments.seed,
        epochs: arguments.epochs,
        batch: arguments.batch,
        rule: Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: arguments.weight_decay.unwrap_or(1e-4) },
        decay_vectors: true, // all that stands behind shared weights decays alike
        schedule: Schedule { peak: arguments.learning_rate.unwrap_or(0.02), warmup_epochs: 0.0, curve: Curve::Cosine },
        label_smoothing: 0.0,
        augmentation: Augmentation::default(),
        // As the net has known images so far; the dense net, which it came from, is fed the same numbers.
        scaling: scaling_beside(file)?.unwrap_or_else(|| images.scaling()),
    };
    let mut judge = Net::new(&spec, EVALUATED)?;
    let mut told = |weights: &dyn Source, running: &[f32]| -> Result<Told> {
        let found = evaluate_from(&mut judge, weights, running, &test, &recipe.scaling)?;
        Ok(Told { loss: found.loss, accuracy: found.accuracy() })
    };
    let before = told(&start.values.as_slice(), &start.running)?;
    let teacher = arguments.teacher()?;
    let dense = match &teacher {
        Some(teacher) => {
            let weights = Weights::load(&graph, teacher)?;
            Some(told(&weights.values.as_slice(), &weights.running)?)
        }
        None => None,
    };
    let mut distil = match (&teacher, arguments.distillation()) {
        (Some(teacher), Some(distillation)) => Some(Distil::new(&spec, teacher, arguments.batch, distillation)?),
        _ => None,
    };
    let mut trainer = Trainer::from_weights(&spec, recipe.clone(), &images, start, Some(&shared))?;
    if let Some(distil) = &mut distil {
        trainer = trainer.with_criterion(distil as &mut dyn Criterion);
    }
    let state = saved_run(&arguments.output)?;
    if state.exists() {
        trainer.resume(&state)?;
        printer::say(format!("went on after step {} of {}", trainer.step_number(), trainer.steps()));
    }
    let mut progress = Progress::new("finetune", trainer.steps());
    let mut train_loss = 0.0;
    while !trainer.is_done() {
        // Up to where the run is saved next; the trainer cannot be saved while it runs.
        let (step, steps) = (trainer.step_number(), trainer.steps());
        let until = (step + 1..steps).find(|&step| arguments.at(step, steps).0).unwrap_or(steps);
        trainer.run(until, &mut |now| {
            train_loss = now.epoch_loss;
            progress.at(now.step, &format!("cost {:.4}, {:.1} % right", now.epoch_loss, 100.0 * now.epoch_accuracy));
            ControlFlow::Continue(())
        })?;
        let (save, stop) = arguments.at(until, steps);
        if save {
            trainer.save(&state)?;
        }
        if stop {
            progress.finish();
            return arguments.waits(until, steps, &state);
        }
    }
    progress.finish();
    let circumstances = [("run.json", record::pretty(&clock.to_json())?)];
    net::write(&shared, &graph, trainer.trainable(), trainer.weights(), &arguments.output, &circumstances)?;

    let written = SharedFile::open(&arguments.output)?;
    // What is measured is what was written, run from its pool.
    let pooled = PooledNet::open(&graph, &written)?;
    let after = told(&pooled, pooled.running())?;
    let percent = |told: Told| format!("{:.2} %", 100.0 * told.accuracy);
    let line = format!(
        "{} of {} test images told right before, {} after{}",
        percent(before),
        test.len(),
        percent(after),
        dense.map_or(String::new(), |dense| format!(", {} by the dense net", percent(dense)))
    );
    let found = Record {
        spec: Some(spec),
        recipe: serde_json::to_value(&recipe)?,
        distillation: arguments.distillation(),
        source_fingerprint: file.checkpoint().fingerprint(),
        teacher_fingerprint: teacher.as_ref().map(Checkpoint::fingerprint),
        train_loss,
        before: serde_json::to_value(before)?,
        after: serde_json::to_value(after)?,
        teacher: dense.map(serde_json::to_value).transpose()?,
        report: Report::of(&written),
    };
    arguments.finish(&found, &state, &[line])
}
