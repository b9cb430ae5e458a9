//! What a compression says of itself: its plan before, its account after.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use scruple_compress::{
    layers::Dropped,
    plan::{Forecast, Plan},
    scaling::ScalingRecord,
    sequential::{LinearRecord, Outcome},
};
use scruple_weights::Checkpoint;
use serde_json::{Value, json};

use super::{Arguments, cost::Cost};
use crate::{
    commands::embed,
    printer::{self, Table},
};

/// What would be written, of every linear, and what it takes.
pub fn dry_run(arguments: &Arguments, plan: &Plan, forecast: &Forecast, dropped: Option<&Dropped>) -> Result<()> {
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
        let mut record = json!({
            "forecast": forecast, "format": plan.format, "linears": linears, "left_dense": plan.left_dense,
        });
        if let Some(dropped) = dropped {
            record["layers"] = serde_json::to_value(dropped)?;
        }
        return printer::json(&record);
    }
    if let Some(Dropped { provenance, .. }) = dropped {
        printer::data(format!(
            "without layers {} of {}; what is left is numbered anew, as the names below are",
            provenance.removed, provenance.source_layers
        ));
        provenance.config_changes.iter().for_each(|change| printer::data(format!("config.json: {change}")));
        printer::data("");
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
    Ok(())
}

/// Says once how many experts' linears were calibrated on fewer tokens than they have inputs.
pub fn warn_of_experts(linears: &[LinearRecord]) {
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

/// What was done to the inputs of linears, where a method scales any, and which it left as they are.
fn report_scalings(plan: &Plan, scalings: &[ScalingRecord]) {
    if plan.scalings.is_empty() && plan.unscaled.is_empty() {
        return;
    }
    printer::data("");
    let scaled = scalings.iter().filter(|record| record.duo || record.ratio > 0.0).count();
    printer::data(format!("inputs scaled: {scaled} of {} whose scales the layer before can take up", scalings.len()));
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for left in &plan.unscaled {
        reasons.entry(&left.reason).or_default().extend(left.linears.iter().map(String::as_str));
    }
    for (reason, linears) in reasons {
        printer::data(format!(
            "inputs left as they are: of {} linears, first `{}`: {reason}",
            linears.len(),
            linears[0]
        ));
    }
}

/// What had to be changed on the way, each with the linears it was the same for, in the order of the first.
fn escalations(linears: &[LinearRecord]) -> Vec<(String, Vec<&str>)> {
    let mut all: Vec<(String, Vec<&str>)> = Vec::new();
    for record in linears.iter().filter(|record| !record.report.escalations.is_empty()) {
        let steps = record.report.escalations.iter();
        let steps: Vec<_> = steps.map(|step| format!("with dampening {}, {}", step.dampening, step.reason)).collect();
        let (steps, linear) = (steps.join("; "), record.report.linear.as_str());
        match all.iter_mut().find(|(known, _)| *known == steps) {
            Some((_, linears)) => linears.push(linear),
            None => all.push((steps, vec![linear])),
        }
    }
    all
}

/// What was made of every linear, and what it cost.
pub fn report(
    arguments: &Arguments,
    plan: &Plan,
    outcome: &Outcome,
    checkpoint: &Checkpoint,
    (written, checked): (u64, Option<usize>),
    cost: &Cost,
    out: &Path,
) -> Result<()> {
    let dense_bytes: u64 = checkpoint.shards().iter().map(|shard| shard.bytes().len() as u64).sum();
    let (weights, bits) = outcome
        .linears
        .iter()
        .fold((0, 0), |(weights, bits), record| (weights + record.weights, bits + record.storage_bits));
    let compressed = Checkpoint::open(out)?;
    if arguments.json {
        return printer::json(&json!({
            "output": out.display().to_string(),
            "linears": outcome.linears,
            "scalings": outcome.scalings,
            "unscaled": plan.unscaled,
            "bits_per_weight": bits as f64 / weights as f64,
            "dense_bytes": dense_bytes,
            "output_bytes": written,
            "evaluation": cost.evaluation,
            "embeddings": cost.embeddings,
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
    report_scalings(plan, &outcome.scalings);
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
        let note = match dense.blocks < plan.network.blocks() {
            true => format!(" (from {} of {} blocks)", dense.blocks, plan.network.blocks()),
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
    if let Some(e) = &cost.embeddings {
        embed::embedding_rows(e, &mut table);
    }
    if let Some(a) = cost.answers {
        let share = |n: usize| format!("{n} of {}", a.questions);
        table.row(["questions answered right".into(), share(a.dense_right), share(a.compressed_right)]);
        table.row(["same answers".into(), share(a.questions), share(a.same)]);
    }
    table.print();
    printer::data("");
    for (steps, linears) in escalations(&outcome.linears) {
        match linears[..] {
            [linear] => printer::warn(format!("linear `{linear}`: {steps}")),
            _ => printer::warn(format!("{} linears, first `{}`: {steps}", linears.len(), linears[0])),
        }
    }
    match checked {
        Some(checked) => printer::data(format!("verified: {checked} linears read back from the file bit for bit")),
        None => printer::data("not verified: --no-proof left the hashes and the reading back out"),
    }
    let picture = out.join("errors.png");
    if picture.is_file() {
        printer::data(format!("picture: {}", picture.display()));
    }
    printer::data(format!("written: {}", out.display()));
    Ok(())
}
