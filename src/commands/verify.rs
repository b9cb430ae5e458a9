//! `scruple verify`: proof that a compressed checkpoint holds the numbers that were made and measured.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use scruple_compress::{
    export,
    plan::Plan,
    scaling, sequential,
    sharing::{self, SharedFile},
};
use scruple_weights::{Checkpoint, source::Located};
use serde_json::json;

use super::compress::{Provenance, layers::as_compressed};
use crate::{
    printer::{self, Progress},
    record::{self, Run},
    source,
};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder that `compress` wrote, or `org/name[@revision]` of a hub that holds one
    model: PathBuf,
    /// The dense model it was made from: tensors that stayed as they are must equal its bytes
    #[arg(long)]
    against: Option<PathBuf>,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Write `verify.json` and `run.json` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// Reads the provenance that `compress` left in `folder`.
pub fn provenance(folder: &Path) -> Result<Provenance> {
    let file = folder.join("scruple.json");
    let text = std::fs::read(&file).with_context(|| {
        format!("{}: cannot read the provenance; verify takes a folder that `scruple compress` wrote", file.display())
    })?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{}: not the provenance of a compressed model", file.display()))
}

/// What was checked of a compressed checkpoint.
#[derive(Debug, Default)]
pub struct Findings {
    /// What is not as it should be.
    pub faults: Vec<String>,
    /// Linears whose numbers were compared.
    pub linears: usize,
    /// Tensors compared with the dense model's bytes.
    pub copied: usize,
    /// Tensors compared with the dense model's divided by recorded scales.
    pub folded: usize,
}

/// Checks the compressed checkpoint in `folder`, against the `dense` model where it is given.
pub fn check(folder: &Path, dense: Option<&Path>) -> Result<Findings> {
    let checkpoint = Checkpoint::open(folder)?;
    if checkpoint.metadata().contains_key(sharing::file::KEY) {
        let dense = dense.map(Checkpoint::open).transpose()?;
        let found = sharing::verify(&SharedFile::open(folder)?, dense.as_ref(), &|_| {})?;
        let sharing::Findings { faults, recovered: linears, compared: copied, .. } = found;
        return Ok(Findings { faults, linears, copied, folded: 0 });
    }
    let provenance = provenance(folder)?;
    let quantization = export::detect(&checkpoint)?;
    let mut faults = Vec::new();
    let mut progress = Progress::new("verify", provenance.linears.len() as u64);
    for (done, record) in provenance.linears.iter().enumerate() {
        let linear = &record.report.linear;
        let Some(expected) = &record.dequantised_sha256 else {
            anyhow::bail!(
                "{}: holds no hash of linear `{linear}`, since the model was compressed with --no-proof; compress it \
                 again without that",
                folder.join("scruple.json").display()
            );
        };
        match sequential::digest_from_file(&checkpoint, linear, quantization.as_ref()) {
            Ok(digest) if digest == *expected => {}
            Ok(digest) => faults.push(format!(
                "{}: linear `{linear}` dequantises to SHA-256 {digest}, expected {expected} from scruple.json",
                folder.display(),
            )),
            Err(error) => faults.push(printer::sentence(&error.into())),
        }
        progress.at(done as u64 + 1, linear);
    }
    progress.finish();

    let linears = provenance.linears.len();
    let (mut copied, mut folded) = (0, 0);
    if let Some(dense) = dense {
        let source = Checkpoint::open(dense)?;
        let fingerprint = source.fingerprint();
        if let Some(expected) = provenance.dense_fingerprint().filter(|expected| *expected != fingerprint) {
            faults.push(format!(
                "{}: the dense model's fingerprint is {fingerprint}, the compressed one was made from {expected}",
                dense.display(),
            ));
        }
        let source = match as_compressed(source, provenance.layers.as_ref()) {
            Ok(source) => source,
            Err(error) => {
                faults.push(printer::sentence(&error));
                return Ok(Findings { faults, linears, copied, folded });
            }
        };
        let plan = match Plan::new(provenance.recipe.clone(), &source) {
            Ok(plan) => plan,
            // A model of another architecture: the fingerprint has said so, this says how.
            Err(error) => {
                faults.push(printer::sentence(&error.into()));
                return Ok(Findings { faults, linears, copied, folded });
            }
        };
        for spec in &plan.tensors {
            let written = match checkpoint.tensor(&spec.name) {
                Ok(written) => written,
                Err(error) => {
                    faults.push(printer::sentence(&error.into()));
                    continue;
                }
            };
            if written.dtype() != spec.dtype || written.shape() != spec.shape {
                faults.push(format!(
                    "{}: tensor `{}` is {} {:?}, expected {} {:?}",
                    folder.display(),
                    spec.name,
                    written.dtype(),
                    written.shape(),
                    spec.dtype,
                    spec.shape
                ));
            }
            if let Some(original) = source.get(&spec.name).filter(|view| !plan.replaces(view.name())) {
                copied += 1;
                if original.bytes() != written.bytes() {
                    faults.push(format!(
                        "{}: tensor `{}` should be a copy of the dense model's, its bytes differ",
                        folder.display(),
                        spec.name
                    ));
                }
                original.release();
                written.release();
            }
        }
        match scaling::verify(&plan, &provenance.scalings, &source, &checkpoint) {
            Ok((found, checked)) => {
                faults.extend(found);
                folded = checked;
            }
            Err(error) => faults.push(printer::sentence(&error.into())),
        }
        for view in checkpoint.tensors() {
            if !plan.tensors.iter().any(|spec| spec.name == view.name()) {
                faults.push(format!("{}: tensor `{}` does not belong there", folder.display(), view.name()));
            }
        }
    }
    Ok(Findings { faults, linears, copied, folded })
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("verify");
    let model = source::locate(&arguments.model)?;
    let against = arguments.against.as_deref().map(source::locate).transpose()?;
    let Findings { faults, linears, copied, folded } = check(model.folder(), against.as_ref().map(Located::path))?;
    let mut record = json!({
        "verified": faults.is_empty(),
        "linears": linears,
        "copied_tensors": copied,
        "folded_tensors": folded,
        "faults": faults,
    });
    for (key, located) in [("source", Some(&model)), ("against_source", against.as_ref())] {
        if let Some(origin) = located.and_then(Located::origin) {
            record[key] = serde_json::to_value(origin)?;
        }
    }
    if let Some(out) = &arguments.output {
        record::save(out, "verify", &record, &clock)?;
    }
    if arguments.json {
        printer::json(&record)?;
    } else if faults.is_empty() {
        let divided = match folded {
            0 => String::new(),
            _ => format!(", {folded} are the dense model's divided by the recorded scales"),
        };
        printer::data(format!(
            "verified: {linears} linears dequantise to the very numbers that were used, {copied} other tensors equal the \
             dense model's bytes{divided}"
        ));
    } else {
        for fault in &faults {
            printer::data(fault);
        }
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
