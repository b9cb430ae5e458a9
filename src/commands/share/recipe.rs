//! A recipe of sharing carried out: `scruple compress --method rps`, and the points of a sweep.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use scruple_compress::{
    memory,
    model::{Decoder, text::Text},
    recipe::StageRecipe,
    sharing::{self, Projected, Rps, SharedFile, finetune::language, project},
};
use scruple_weights::source::Located;
use serde::Serialize;
use serde_json::json;

use super::{
    finetune::{SAVE_EVERY, forget, saved_run},
    train,
};
use crate::{
    commands::eval,
    printer::{self, Progress},
    record::{self, Run},
};

/// What `share.json` beside a model that a recipe made says.
#[derive(Debug, Serialize)]
pub struct Made {
    /// The recipe's parameters, defaults filled in.
    pub method: Rps,
    /// The projection; of a fine-tuned model, where it began.
    pub projected: Projected,
    /// The fine-tuning that followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuned: Option<language::Recipe>,
    /// Nats a token of the last step's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
}

/// Makes the model that `method` and its `stage` ask for of the one at `located`, in the folder `out`, which must not
/// exist. Fine-tuning goes on from where a run into the same folder was stopped. Whether the model may be is the caller's
/// to know ([`Rps::expect_allowed`]).
///
/// # Errors
/// As [`project()`]; where it is fine-tuned, a missing `text`, and as [`language::Tuner`].
pub fn carry_out(
    method: &Rps,
    stage: &StageRecipe,
    located: &Located,
    text: Option<&Path>,
    out: &Path,
    clock: &Run,
) -> Result<Made> {
    let checkpoint = located.open()?;
    let options = sharing::Options { allow_lossy: true, ..method.options(&stage.targets, &stage.ignore)? };
    let json =
        |value: Result<Vec<u8>>| value.map_err(|error| scruple_compress::Error::Model(printer::sentence(&error)));
    let tuned = method.tuning();
    let mut progress = Progress::new("project", 3);
    let made = |projected: &Projected, train_loss: Option<f64>| Made {
        method: method.clone(),
        projected: projected.clone(),
        tuned: tuned.clone(),
        train_loss,
    };
    let Some(recipe) = tuned.clone() else {
        let files = |projected: &Projected| {
            let record = json(record::pretty(&made(projected, None)))?;
            Ok(vec![
                ("share.json".to_string(), record),
                ("run.json".to_string(), json(record::pretty(&clock.to_json()))?),
            ])
        };
        let projected = project(&checkpoint, Some(out), &options, &files, &mut |done, _| progress.at(done, "passes"))?;
        return Ok(made(&projected, None));
    };

    let text = text.context("fine-tuning (`steps` above 0) needs a text to learn from; give a calibration text")?;
    let beside = out.parent().filter(|folder| folder.is_dir());
    let scratch = beside.map_or_else(tempfile::tempdir, tempfile::tempdir_in);
    let scratch = scratch.context("cannot make a folder for the projected model")?;
    let start = scratch.path().join("pool");
    let projected = project(&checkpoint, Some(&start), &options, &|_| Ok(Vec::new()), &mut |done, _| {
        progress.at(done, "passes");
    })?;
    progress.finish();
    let file = SharedFile::open(&start)?;
    let (tokens, _) = eval::tokens_of(&Text::open(&checkpoint)?, text)?;
    let (teacher, fingerprint) = (Decoder::open(&checkpoint)?, checkpoint.fingerprint_with_config()?);
    let teacher = language::Teacher { decoder: &teacher, fingerprint: &fingerprint };
    let mut tuner = language::Tuner::new(&file, recipe, &tokens, Some(teacher))?;
    // The projection is the same each time; what took steps is kept.
    let state = saved_run(out)?;
    if state.exists() {
        tuner.resume(&state)?;
        printer::say(format!("went on after step {} of {}", tuner.step_number(), tuner.steps()));
    }
    let mut progress = Progress::new("finetune", tuner.steps());
    let mut train_loss = None;
    while tuner.step_number() < tuner.steps() {
        let now = tuner.step().map_err(|error| eval::blame(error, &checkpoint))?;
        train_loss = Some(now.nll);
        progress.at(now.step, &format!("{:.4} nats a token", now.nll));
        if now.step.is_multiple_of(SAVE_EVERY) && now.step < now.steps {
            tuner.save(&state)?;
        }
    }
    progress.finish();
    let made = made(&projected, train_loss);
    let files = [("share.json", record::pretty(&made)?), ("run.json", record::pretty(&clock.to_json())?)];
    tuner.write(out, &files)?;
    forget(&state)?;
    drop(tuner);
    memory::give_back();
    Ok(made)
}

/// What `scruple compress` asks for beside the recipe.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The text that fine-tuning learns from.
    pub calibration: Option<&'a Path>,
    /// The text the result is measured on, and how much of it.
    pub text: Option<&'a Path>,
    /// Tokens of it, at most.
    pub max_tokens: usize,
    /// The folder to be.
    pub out: PathBuf,
    /// Say what would be written, and write nothing.
    pub dry_run: bool,
    /// Print the records as JSON.
    pub json: bool,
    /// Print an account.
    pub tell: bool,
}

/// `scruple compress` by `method`: makes the model, proves the file, and measures it from its pool beside the dense one.
///
/// # Errors
/// As [`carry_out`]; a model that nobody would evaluate and nobody allowed.
pub fn compress(method: &Rps, stage: &StageRecipe, located: &Located, asked: &Asked<'_>, clock: &Run) -> Result<()> {
    let Asked { out, .. } = asked;
    if asked.dry_run {
        let options = method.options(&stage.targets, &stage.ignore)?;
        let projected = project(&located.open()?, None, &options, &|_| Ok(Vec::new()), &mut |_, _| {})?;
        return match asked.json {
            true => printer::json(&projected),
            false => {
                super::project::tell(&projected, None);
                Ok(())
            }
        };
    }
    method.expect_allowed(out, asked.text.is_some())?;
    train::expect_free(out)?;
    let made = carry_out(method, stage, located, asked.calibration, out, clock)?;
    let faults = sharing::verify(&SharedFile::open(out)?, None, &|_| {})?.faults;
    anyhow::ensure!(
        faults.is_empty(),
        "{}: the written file is not what was made: {}",
        out.display(),
        faults.join("; ")
    );
    let judged = |text: &Path| {
        let window = 512.min(Decoder::open(&located.open()?)?.config().max_positions);
        eval::evaluate(out, Some(located.path()), text, window, Some(asked.max_tokens), None)
    };
    let evaluation = asked.text.map(judged).transpose()?;
    if let Some(evaluation) = &evaluation {
        record::write_whole(&out.join("eval.json"), &record::pretty(evaluation)?)?;
    }
    if !asked.tell {
        return Ok(());
    }
    if asked.json {
        let output = out.display().to_string();
        return printer::json(&json!({ "output": output, "made": made, "evaluation": evaluation }));
    }
    super::project::tell(&made.projected, Some(out));
    if let (Some(tuned), Some(loss)) = (&made.tuned, made.train_loss) {
        printer::data(format!("fine-tuned in {} steps from there, {loss:.4} nats a token in the last", tuned.steps));
    }
    if let Some(found) = &evaluation
        && let Some(against) = &found.evaluation.against
    {
        printer::data(format!(
            "perplexity {:.4}, the dense model's {:.4}; same top token in {:.2} %",
            found.evaluation.perplexity,
            against.dense_perplexity,
            100.0 * against.same_top.value
        ));
    }
    Ok(())
}
