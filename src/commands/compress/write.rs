//! A plan carried out: the compressed checkpoint with everything beside it, as one folder that appears at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Instant,
};

use anyhow::Result;
use scruple_compress::{
    Error,
    budget::{Budget, Offer},
    calibration::CalibrationSet,
    layers::write::Provenance as LayersProvenance,
    memory,
    plan::{Around, Plan},
    recipe::Recipe,
    sequential::{self, Outcome},
    sharing::Rps,
};
use scruple_weights::{Checkpoint, CheckpointWriter, WriterOptions, digest::sha256, hub::Origin, source::Located};
use serde_json::{Value, json};

use super::{Provenance, calibration_set, card, layers};
use crate::{
    commands::share::recipe as shared,
    plot,
    printer::{self, Progress},
    record::{self, Run},
};

/// A model to be compressed and written.
#[derive(Debug)]
pub struct Work<'a> {
    /// The dense model.
    pub checkpoint: &'a Checkpoint,
    /// What becomes of it.
    pub plan: &'a Plan,
    /// Which layers the recipe took out of the dense model first; `checkpoint` lacks them already.
    pub layers: Option<&'a LayersProvenance>,
    /// The text to calibrate on, where a method needs one.
    pub set: Option<CalibrationSet>,
    /// All that decides the result's bytes.
    pub identity: Identity,
    /// What its linears will take, as forecast.
    pub bits_per_weight: f64,
    /// What the dense model is called.
    pub name: &'a str,
    /// Where a dense model of a hub came from.
    pub source: Option<&'a Origin>,
    /// The result is read soon after, for more than the proof.
    pub read_again: bool,
    /// What was asked of the widths, and what each linear offered, where they were chosen by a budget.
    pub widths: Option<&'a (Budget, Vec<Vec<Offer>>)>,
    /// The folder to be; it must not exist. What a killed run has left of it is gone on with.
    pub out: &'a Path,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// What was done to each linear.
    pub outcome: Outcome,
    /// Bytes of the folder's weights.
    pub bytes: u64,
}

/// All that decides the bytes of a result: a stopped run goes on where it is the same.
#[derive(Debug)]
pub struct Identity {
    source_fingerprint: Option<String>,
    calibration: Option<Value>,
    device: Option<String>,
    /// Of all of these.
    pub digest: String,
    /// Wall seconds of hashing the dense model.
    pub source_hash_seconds: f64,
}

impl Identity {
    /// Of `plan` carried out on `checkpoint` with `set`.
    pub fn of(checkpoint: &Checkpoint, plan: &Plan, set: Option<&CalibrationSet>) -> Result<Self> {
        let hashing = Instant::now();
        let source_fingerprint = plan.proof.then(|| checkpoint.fingerprint());
        checkpoint.release_all();
        let source_hash_seconds = hashing.elapsed().as_secs_f64();
        let calibration =
            set.map(|set| json!({ "n_samples": set.n_samples(), "seq_len": set.seq_len, "tokens_sha256": set.digest }));
        let device = plan.device().map(|device| device.to_string());
        let mut identity = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "source": match &source_fingerprint {
                Some(fingerprint) => json!(fingerprint),
                // Which files a stopped run was working on; nothing of this is in the result.
                None => json!(checkpoint.identity()),
            },
            "recipe": plan.recipe,
            "calibration": calibration,
        });
        if let Some(device) = &device {
            identity["device"] = device.as_str().into(); // blocks of two devices do not mix
        }
        if plan.needs_calibration() {
            // What is run is more than its weights: positions, norms' epsilon, numbers of heads.
            identity["config"] = sha256(&serde_json::to_vec(checkpoint.config()?)?).into();
        }
        let digest = sha256(&serde_json::to_vec(&identity)?);
        Ok(Self { source_fingerprint, calibration, device, digest, source_hash_seconds })
    }
}

/// Carries out the plan.
///
/// # Errors
/// Weights that are not finite, a model that changes meanwhile, a folder that exists, a full disk; what a full disk leaves
/// is gone on with by the next run.
pub fn write(work: Work<'_>) -> Result<Written> {
    let Work { checkpoint, plan, layers, set, identity, bits_per_weight, name, source, read_again, widths, out } = work;
    if !plan.allow_nonfinite && plan.needs_calibration() {
        // Before the work: in the last block it would show after hours. Without calibration it shows in seconds.
        for view in checkpoint.tensors() {
            sequential::refuse_nonfinite(view)?;
            view.release();
        }
    }
    let Identity { source_fingerprint, calibration, device, digest, .. } = identity;
    let hashed = source_fingerprint.as_deref().map(|fingerprint| ("source", fingerprint));
    let metadata: BTreeMap<String, String> = [("format", "pt"), ("scruple", env!("CARGO_PKG_VERSION"))]
        .into_iter()
        .chain(hashed)
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect();
    let mut writer = CheckpointWriter::resume_or_create(
        out,
        plan.tensors.clone(),
        WriterOptions { metadata, past_cache: !plan.proof && !read_again, ..WriterOptions::default() },
        &digest,
        &CheckpointWriter::work_folder(out)?,
    )?;
    let mut progress = Progress::new("compress", plan.linears.len() as u64);
    let outcome = sequential::compress(checkpoint, plan, set.as_ref(), &mut writer, &mut |done, _, name| {
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
        source: source.cloned(),
        layers: layers.cloned(),
        recipe: plan.recipe.clone(),
        calibration,
        device,
        left_dense: plan.left_dense.clone(),
        unscaled: plan.unscaled.clone(),
        bits_per_weight,
        linears: outcome.linears.clone(),
        scalings: outcome.scalings.clone(),
    };
    card::side_files(checkpoint, plan, name, &provenance, &mut writer)?;
    if let Some((budget, offers)) = widths {
        let linears: Vec<Value> = plan
            .linears
            .iter()
            .zip(offers)
            .map(|(linear, offers)| json!({ "linear": linear.name, "stored": linear.layout.code, "offers": offers }))
            .collect();
        let widths = json!({ "budget": budget, "linears": linears });
        writer.add_file("widths.json", &record::pretty(&widths)?)?;
    }
    if let Some(picture) = picture(name, plan, &outcome)? {
        writer.add_file("errors.png", &picture)?;
    }
    let bytes = writer.finish()?.bytes;
    Ok(Written { outcome, bytes })
}

/// Compresses the model at `located`, called `name`, by `recipe` into the folder `out`, without an account of it: what one
/// point of a sweep is made by.
///
/// # Errors
/// As [`Plan::new`] and [`write()`]; a method that needs a `calibration` text and has none.
pub fn by_recipe(
    mut recipe: Recipe,
    located: &Located,
    name: &str,
    calibration: Option<&Path>,
    out: &Path,
) -> Result<()> {
    if let Some((method, stage)) = Rps::of(&recipe)? {
        shared::carry_out(&method, stage, located, calibration, out, &Run::start("compress"))?;
        return Ok(());
    }
    let whole = located.open()?;
    let fewer = layers::take_out(&mut recipe, &whole)?;
    let checkpoint = fewer.as_ref().map_or(&whole, |(checkpoint, _)| checkpoint);
    let dropped = fewer
        .as_ref()
        .map(|(_, dropped)| LayersProvenance { source_fingerprint: whole.fingerprint(), ..dropped.provenance.clone() });
    let plan = Plan::new(recipe, checkpoint)?;
    let set = match (plan.calibrated_method(), calibration) {
        (None, _) => None,
        (Some(_), Some(file)) => Some(calibration_set(checkpoint, &plan, file)?),
        (Some(method), None) => anyhow::bail!("method `{}` needs a text to calibrate on", method.name()),
    };
    let (n_samples, seq_len) = set.as_ref().map_or((0, 0), |set| (set.n_samples(), set.seq_len));
    let around = Around { n_samples, seq_len, text_bytes: 0, speed_bytes: 0, evaluates: false };
    let bits_per_weight = plan.forecast(checkpoint, around).bits_per_weight;
    write(Work {
        checkpoint,
        plan: &plan,
        layers: dropped.as_ref(),
        identity: Identity::of(checkpoint, &plan, set.as_ref())?,
        set,
        bits_per_weight,
        name,
        source: located.origin(),
        read_again: true,
        widths: None,
        out,
    })?;
    memory::give_back();
    Ok(())
}

/// The picture of the errors by block, as PNG bytes; none where no linear has one.
fn picture(name: &str, plan: &Plan, outcome: &Outcome) -> Result<Option<Vec<u8>>> {
    // One kind of error throughout.
    let calibrated = outcome.linears.iter().any(|record| record.report.output_error.is_some());
    let of_what = if calibrated { "error of each linear's output" } else { "error of each linear's weight" };
    let mut lines: Vec<plot::Line> = Vec::new();
    for (linear, record) in plan.linears.iter().zip(&outcome.linears) {
        let Some(error) = record.report.output_error.or(record.weight_error.filter(|_| !calibrated)) else { continue };
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
    let ways: BTreeSet<String> = plan
        .linears
        .iter()
        .map(|linear| format!("{}, {}", plan.method_name(linear), linear.layout.code.describe()))
        .collect();
    let how = match ways.len() {
        1 => ways.into_iter().next().unwrap_or_default(),
        n => format!("{n} ways of storing"),
    };
    plot::errors_by_block(&path, &format!("{name}: {how}; {of_what}"), &lines)?;
    Ok(Some(std::fs::read(&path)?))
}
