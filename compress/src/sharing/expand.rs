//! From a pool back to an ordinary checkpoint, bit for bit, and the proof of it.

use std::{collections::HashMap, convert::Infallible, path::Path};

use rayon::prelude::*;
use scruple_weights::{Checkpoint, CheckpointWriter, TensorSpec, WriterOptions, digest};
use serde::Serialize;

use super::file::{KEY, SharedFile, expand_tensor};
use crate::{Error, Result};

/// Bytes of an untouched tensor copied at a time.
const BYTES_AT_ONCE: usize = 8 << 20;

/// What [`expand`] wrote.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Expanded {
    /// Tensors that were recovered from the pool, tied ones included.
    pub recovered: usize,
    /// Tensors that were copied.
    pub copied: usize,
    /// Bytes of the tensors written.
    pub bytes: u64,
    /// Bytes of the tensors they came from.
    pub source_bytes: u64,
}

/// Writes the dense checkpoint that `file` stands for into the folder `out`, which must not exist. Every recovered tensor is
/// held to its SHA-256; nothing appears under the name `out` unless all are right. `progress` hears (bytes done, bytes in
/// all).
///
/// # Errors
/// A damaged file (the tensor is named), an output that exists or does not fit on its disk.
pub fn expand(file: &SharedFile, out: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Expanded> {
    let checkpoint = file.checkpoint();
    let pool = file.pool()?;
    let mut names: HashMap<&str, Vec<&str>> = HashMap::new();
    file.sharing().modules.iter().for_each(|module| names.entry(&module.name).or_default().push(&module.name));
    file.tied().iter().for_each(|tied| names.entry(&tied.of).or_default().push(&tied.name));
    let mut specs = Vec::new();
    for (module, target) in file.sharing().modules.iter().zip(file.targets()) {
        let names = &names[module.name.as_str()];
        specs.extend(names.iter().map(|name| TensorSpec::new(*name, target.dtype, module.shape.clone())));
    }
    let recovered = specs.len();
    specs.extend(file.untouched().map(|view| TensorSpec::new(view.name(), view.dtype(), view.shape().to_vec())));
    let copied = specs.len() - recovered;
    let size = |spec: &TensorSpec| {
        spec.shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side)).and_then(|n| spec.dtype.bytes(n))
    };
    let total: u64 = specs.iter().filter_map(size).map(|bytes| bytes as u64).sum();
    let mut metadata = checkpoint.metadata().clone();
    metadata.remove(KEY);
    metadata.insert("format".into(), "pt".into());
    let mut writer = CheckpointWriter::create(out, specs, WriterOptions { metadata, ..WriterOptions::default() })?;

    let mut done = 0;
    for (module, target) in file.sharing().modules.iter().zip(file.targets()) {
        let width = target.dtype.bytes(1).unwrap_or(1) as u64;
        let sha256 = expand_tensor(file.sharing(), &pool, module, target.dtype, |first, bytes| {
            for name in &names[module.name.as_str()] {
                writer.write_at(name, first as u64 * width, bytes)?;
                done += bytes.len() as u64;
            }
            progress(done, total);
            Ok::<(), Error>(())
        })?;
        if sha256 != target.sha256 {
            return Err(Error::Weights(scruple_weights::Error::tensor(
                file.path(),
                &module.name,
                differs(&sha256, &target.sha256),
            )));
        }
    }
    for view in file.untouched() {
        let mut offset = 0;
        for bytes in view.bytes().chunks(BYTES_AT_ONCE) {
            writer.write_at(view.name(), offset, bytes)?;
            offset += bytes.len() as u64;
            done += bytes.len() as u64;
            progress(done, total);
        }
        view.release();
    }
    checkpoint.expect_unchanged()?;
    copy_beside(checkpoint, &mut writer)?;
    writer.finish()?;
    Ok(Expanded { recovered, copied, bytes: total, source_bytes: checkpoint.bytes() })
}

/// Copies the configuration and what else belongs to the model.
pub(super) fn copy_beside(checkpoint: &Checkpoint, writer: &mut CheckpointWriter) -> Result<()> {
    let config = checkpoint.dir().join("config.json");
    let files = checkpoint.side_files();
    for file in std::iter::once(config).filter(|file| file.is_file()).chain(files) {
        writer.copy_beside(checkpoint.dir(), &file)?;
    }
    Ok(())
}

fn differs(found: &str, expected: &str) -> String {
    format!(
        "expands to SHA-256 {found}, expected {expected}; the pool, a scale, the seed or the shapes are not those it \
             was written with, fetch the file again"
    )
}

/// What was checked of a model with a pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Findings {
    /// What is not as it should be, one sentence each.
    pub faults: Vec<String>,
    /// Tensors that were recovered and held to their SHA-256.
    pub recovered: usize,
    /// Untouched tensors held to the dense model's bytes.
    pub compared: usize,
    /// Whether all tensors are the dense model's bit for bit; only where one was given.
    pub lossless: Option<bool>,
}

/// Holds every tensor of `file` to its SHA-256, and where a `dense` model is given, names, shapes and types to it, and to its
/// bytes what does not share.
///
/// # Errors
/// If the pool cannot be read.
pub fn verify(file: &SharedFile, dense: Option<&Checkpoint>, progress: &(dyn Fn(&str) + Sync)) -> Result<Findings> {
    let pool = file.pool()?;
    let sharing = file.sharing();
    let checked: Vec<String> = sharing
        .modules
        .par_iter()
        .zip(file.targets())
        .map(|(module, target)| {
            let Ok(sha256) = expand_tensor(sharing, &pool, module, target.dtype, |_, _| Ok::<(), Infallible>(()));
            progress(&module.name);
            sha256
        })
        .collect();
    let mut findings = Findings { recovered: checked.len(), ..Findings::default() };
    let mut fault = |tensor: &str, what: String| {
        findings.faults.push(format!("{}: tensor `{tensor}` {what}", file.path().display()));
    };
    for ((module, target), sha256) in sharing.modules.iter().zip(file.targets()).zip(&checked) {
        if *sha256 != target.sha256 {
            fault(&module.name, differs(sha256, &target.sha256));
        }
    }
    let Some(dense) = dense else {
        return Ok(findings);
    };
    let (mut lossless, mut compared, mut known) = (true, 0, 0);
    let modules = sharing.modules.iter().enumerate().map(|(at, module)| (module.name.as_str(), at));
    let modules: HashMap<&str, usize> = modules.collect();
    let twins = file.tied().iter().filter_map(|tied| Some((tied.name.as_str(), *modules.get(tied.of.as_str())?)));
    let twins: HashMap<&str, usize> = twins.collect();
    for view in dense.tensors() {
        if let Some(&at) = modules.get(view.name()).or_else(|| twins.get(view.name())) {
            known += 1;
            let (module, target) = (&sharing.modules[at], &file.targets()[at]);
            if module.shape != view.shape() || target.dtype != view.dtype() {
                let (shape, dtype) = (view.shape(), view.dtype());
                fault(
                    view.name(),
                    format!("is {} {:?}, the dense model's is {dtype} {shape:?}", target.dtype, module.shape),
                );
            }
            lossless &= digest::sha256(view.bytes()) == checked[at];
            view.release();
        } else if let Some(written) = file.checkpoint().get(view.name()) {
            known += 1;
            compared += 1;
            let same =
                (written.dtype(), written.shape(), written.bytes()) == (view.dtype(), view.shape(), view.bytes());
            if !same {
                fault(view.name(), "should be a copy of the dense model's, and differs".into());
            }
            lossless &= same;
            view.release();
        } else {
            fault(view.name(), "is missing, the dense model has it".into());
        }
    }
    let all = sharing.modules.len() + file.tied().len() + file.untouched().count();
    if known < all {
        findings
            .faults
            .push(format!("{}: stands for {all} tensors, the dense model has {known} of them", file.path().display()));
    }
    (findings.compared, findings.lossless) = (compared, Some(lossless && findings.faults.is_empty()));
    Ok(findings)
}
