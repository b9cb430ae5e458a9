//! Proof that a checkpoint is another without some of its layers: names, bytes, configuration, and logits.

use std::collections::BTreeMap;

use scruple_weights::Checkpoint;
use serde::Serialize;

use super::{
    rewrite,
    write::{Provenance, provenance},
};
use crate::{
    Error, Result,
    data::random::draw,
    kernel::tensor::with_f32,
    model::{AnyModel, Decoder},
};

/// Tokens that both models are run on.
const TOKENS: usize = 16;

/// Stream of their draws.
const TOKEN_STREAM: u64 = 0x6c61_7965;

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Findings {
    /// What is not as it should be.
    pub faults: Vec<String>,
    /// Which layers were dropped.
    pub provenance: Provenance,
    /// Tensors whose bytes equal the source's.
    pub tensors: usize,
    /// Largest difference between the logits of the checkpoint and those of the source with the same layers taken out in
    /// memory, on 16 tokens; `None` where the model does not run here.
    pub largest_logit_difference: Option<f32>,
    /// Why the model was not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_run: Option<String>,
}

/// Holds the checkpoint `pruned` against `source`, by what its provenance says.
///
/// # Errors
/// If there is no provenance, or the source is of another model altogether; what merely differs is a fault in the
/// findings.
pub fn verify(pruned: &Checkpoint, source: &Checkpoint) -> Result<Findings> {
    let provenance = provenance(pruned.dir())?;
    let mut faults = Vec::new();
    let fingerprint = source.fingerprint();
    if fingerprint != provenance.source_fingerprint {
        faults.push(format!(
            "{}: the source's fingerprint is {fingerprint}, the layers were taken out of {}",
            source.path().display(),
            provenance.source_fingerprint
        ));
    }
    let plan = rewrite::plan(source, &provenance.removed, Some(&provenance.stack), provenance.forced)?;
    let name = |view: &str| format!("{}: tensor `{view}`", pruned.path().display());

    // Names by a template of their own: what a layer has of tensors, its source has.
    let suffixes = |checkpoint: &Checkpoint| {
        let mut layers: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for view in checkpoint.tensors() {
            if let Some(layer) = plan.stack.layer_of(view.name()).filter(|_| !plan.stack.shared) {
                let suffix = view.name().splitn(plan.stack.name.split('.').count() + 2, '.').last().unwrap_or_default();
                layers.entry(layer).or_default().push(suffix.to_owned());
            }
        }
        layers.values_mut().for_each(|suffixes| suffixes.sort());
        layers
    };
    let (before, after) = (suffixes(source), suffixes(pruned));
    for (new, old) in provenance.kept.iter().enumerate().filter(|_| !plan.stack.shared) {
        let special = |suffix: &&String| !suffix.ends_with("relative_attention_bias.weight");
        let of = |layers: &BTreeMap<usize, Vec<String>>, layer| -> Option<Vec<String>> {
            layers.get(&layer).map(|suffixes| suffixes.iter().filter(special).cloned().collect())
        };
        if of(&after, new) != of(&before, *old) {
            faults.push(format!(
                "{}: layer {new} of `{}` has other tensors than layer {old} of the source, which it should be",
                pruned.path().display(),
                plan.stack.name
            ));
        }
    }

    let healed: Vec<&str> = provenance.healed.iter().flat_map(|healed| &healed.tensors).map(String::as_str).collect();
    let mut equal = 0;
    for (old, new) in &plan.tensors {
        let original = source.tensor(old)?;
        match pruned.get(new) {
            None => faults.push(format!("{} is missing", name(new))),
            Some(view) if view.dtype() != original.dtype() || view.shape() != original.shape() => faults.push(format!(
                "{} is {} {:?}, expected {} {:?}",
                name(new),
                view.dtype(),
                view.shape(),
                original.dtype(),
                original.shape()
            )),
            Some(_) if healed.contains(&new.as_str()) => {}
            Some(view) if view.bytes() != original.bytes() => {
                faults.push(format!("{} should hold the bytes of the source's `{old}`, and does not", name(new)));
            }
            Some(_) => equal += 1,
        }
    }
    let expected: std::collections::BTreeSet<&str> = plan.tensors.iter().map(|(_, new)| new.as_str()).collect();
    for view in pruned.tensors().filter(|view| !expected.contains(view.name())) {
        faults.push(format!("{} does not belong there", name(view.name())));
    }
    if pruned.config()? != &plan.config {
        faults.push(format!(
            "{}: is not what the source's configuration becomes without these layers",
            pruned.dir().join("config.json").display()
        ));
    }

    let (mut difference, mut not_run) = (None, None);
    // Without layers that see images, the text is read as before.
    match outputs(pruned, source, plan.stack.is_text().then_some(&provenance.kept)) {
        Ok(_) if !healed.is_empty() => {
            not_run =
                Some(format!("{} of its tensors were healed, so its logits are meant to be others", healed.len()));
        }
        Ok(largest) => {
            difference = Some(largest);
            if largest != 0.0 {
                faults.push(format!(
                    "{}: its logits differ by up to {largest:e} from those of the source with the same layers taken out in \
                     memory",
                    pruned.path().display()
                ));
            }
        }
        Err(error) => not_run = Some(error.to_string()),
    }
    Ok(Findings { faults, provenance, tensors: equal, largest_logit_difference: difference, not_run })
}

/// Largest difference of what the models give on [`TOKENS`] tokens.
fn outputs(pruned: &Checkpoint, source: &Checkpoint, kept: Option<&Vec<usize>>) -> Result<f32> {
    let largest = |a: &[f32], b: &[f32]| -> Result<f32> {
        if a.len() != b.len() {
            return Err(Error::Model(format!("the models give {} and {} numbers", a.len(), b.len())));
        }
        let differences = a.iter().zip(b).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() });
        Ok(differences.fold(0.0, |largest, d| if d.is_nan() || d > largest { d } else { largest }))
    };
    let ids = |vocab: usize| -> Vec<u32> {
        (0..TOKENS as u64).map(|index| (draw(0, TOKEN_STREAM, index) % vocab as u64) as u32).collect()
    };
    match (AnyModel::open(pruned)?, AnyModel::open(source)?) {
        (AnyModel::Decoder(pruned), AnyModel::Decoder(mut source)) => {
            kept.map_or(Ok(()), |kept| source.keep_blocks(kept))?;
            let ids = ids(source.config().vocab_size);
            let logits = |model: &Decoder| -> Result<Vec<f32>> {
                with_f32(&model.logits(&model.hidden_once(&ids)?)?, <[f32]>::to_vec)
            };
            largest(&logits(&pruned)?, &logits(&source)?)
        }
        (AnyModel::Encoder(pruned), AnyModel::Encoder(mut source)) => {
            kept.map_or(Ok(()), |kept| source.keep_blocks(kept))?;
            let ids = [ids(source.config().vocab_size)];
            let hidden = |model: &crate::model::Encoder| with_f32(&model.hidden(&ids)?, <[f32]>::to_vec);
            largest(&hidden(&pruned)?, &hidden(&source)?)
        }
        _ => Err(Error::Model("models of this kind are not run for the proof, only decoders and encoders are".into())),
    }
}
