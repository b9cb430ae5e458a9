//! What stands beside the weights of a compressed model: its configuration, its provenance, its card.

use anyhow::Result;
use scruple_compress::{layers::write::PROVENANCE, plan::Plan};
use scruple_weights::{Checkpoint, CheckpointWriter};
use serde_json::{Value, json};

use super::Provenance;
use crate::record;

/// Everything that belongs beside the weights.
pub(super) fn side_files(
    checkpoint: &Checkpoint,
    plan: &Plan,
    name: &str,
    provenance: &Provenance,
    writer: &mut CheckpointWriter,
) -> Result<()> {
    // A file of weights alone has no configuration of its own.
    let mut config = match checkpoint.dir().join("config.json").is_file() {
        true => checkpoint.config()?.clone(),
        false => json!({}),
    };
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
            writer.copy_beside(checkpoint.dir(), &path)?;
        }
    }
    writer.add_file("README.md", model_card(name, plan, provenance, source_card.as_deref()).as_bytes())?;
    if let Some(layers) = &provenance.layers {
        writer.add_file(PROVENANCE, &record::pretty(layers)?)?;
    }
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
    let commit = provenance.source.as_ref().map(|origin| format!("commit `{}`", origin.commit));
    let fingerprint = provenance.dense_fingerprint().map(|hash| format!("tensors' fingerprint `{hash}`"));
    let known: Vec<String> = commit.into_iter().chain(fingerprint).collect();
    card.push_str(&format!(
        "Made from the dense checkpoint `{name}`{} by scruple {}.\n\n",
        if known.is_empty() { String::new() } else { format!(" ({})", known.join(", ")) },
        provenance.version
    ));
    card.push_str(&format!(
        "{} of the linears are stored in the format `{}` at {:.3} bits a weight, scales included; all \
         other tensors are copies{}. `scruple.json` holds the recipe, and for each linear its error{}.\n\n",
        provenance.linears.len(),
        plan.format,
        provenance.bits_per_weight,
        match provenance.scalings.is_empty() {
            true => "",
            false => " but the norms and biases that took up scales of inputs",
        },
        match plan.proof {
            true => " and the SHA-256 of the weight it dequantises to; `scruple verify` checks them",
            false => "",
        }
    ));
    if let Some(layers) = &provenance.layers {
        card.push_str(&format!(
            "* stage 1: without layers {} of {} (`layers.json`)\n",
            layers.removed, layers.source_layers
        ));
    }
    for (index, stage) in plan.recipe.stages.iter().enumerate() {
        card.push_str(&format!(
            "* stage {}: `{}`, {}\n",
            plan.recipe.stage_number(index),
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
