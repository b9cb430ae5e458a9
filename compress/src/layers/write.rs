//! A checkpoint without some of its layers, streamed from one folder to another: no tensor is ever whole in memory, and
//! no model is run.

use std::{collections::BTreeSet, path::Path};

use half::{bf16, f16};
use scruple_weights::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, TensorView, WriterOptions};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Removal,
    heal::Healed,
    rewrite::{self, Rewrite},
};
use crate::{Error, Result};

/// The file in which a checkpoint says which layers of which model it is.
pub const PROVENANCE: &str = "layers.json";

/// Bytes copied at a time.
const BYTES_AT_ONCE: usize = 8 << 20;

/// How layers are dropped.
#[derive(Debug, Clone, Default)]
pub struct DropOptions {
    /// The list of layers, by what its tensors' names begin with; needed only where several could be meant.
    pub stack: Option<String>,
    /// Leave what is not understood in the configuration as it is, in place of refusing it.
    pub force: bool,
    /// What led to the set: a search's method, objective, tokens and losses.
    pub chosen_by: Option<Value>,
    /// Write `mergekit.yaml`, which names the source by this.
    pub mergekit_source: Option<String>,
    /// Further files: names and contents.
    pub files: Vec<(String, Vec<u8>)>,
}

/// What a pruned checkpoint says of itself in [`PROVENANCE`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of the program.
    pub version: String,
    /// The list of layers.
    pub stack: String,
    /// Layers the source has.
    pub source_layers: usize,
    /// Those that were dropped, by the source's numbers.
    pub removed: Removal,
    /// Those that stayed: layer `i` is the source's `kept[i]`.
    pub kept: Vec<usize>,
    /// Hash of the source's tensors; see [`Checkpoint::fingerprint`].
    pub source_fingerprint: String,
    /// Whether what was not understood was left as it is.
    pub forced: bool,
    /// What was changed in `config.json`.
    pub config_changes: Vec<String>,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// The same set for `llama-quantize` of llama.cpp.
    pub llama_cpp: String,
    /// What led to the set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_by: Option<Value>,
    /// What was done to heal it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healed: Option<Healed>,
}

impl Provenance {
    /// Whether `other` is the same model without the same layers, healed or not.
    pub fn lacks_the_same(&self, other: &Self) -> bool {
        let set = |of: &Self| (of.source_fingerprint.clone(), of.stack.clone(), of.removed.clone());
        set(self) == set(other)
    }
}

/// What [`drop_layers`] wrote.
#[derive(Debug, Clone, Serialize)]
pub struct Dropped {
    /// What the checkpoint says of itself.
    pub provenance: Provenance,
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of the source's tensors.
    pub source_bytes: u64,
    /// Bytes of the tensors written.
    pub bytes: u64,
    /// Numbers in the source's tensors.
    pub source_parameters: u64,
    /// Numbers in the tensors written.
    pub parameters: u64,
}

/// What [`drop_layers`] would write, and nothing written.
///
/// # Errors
/// As [`drop_layers`], but for those of writing.
pub fn preview(checkpoint: &Checkpoint, removal: &Removal, options: &DropOptions) -> Result<Dropped> {
    let rewrite = rewrite::plan(checkpoint, removal, options.stack.as_deref(), options.force)?;
    Ok(describe(checkpoint, &rewrite, options, String::new()))
}

/// `checkpoint` without the layers `removal`, over the same maps: tensor for tensor and byte for byte what [`drop_layers`]
/// would write, and nothing is written. What it says of itself names no fingerprint, which would read every byte.
///
/// # Errors
/// As [`drop_layers`], but for those of writing.
pub fn without_layers(
    checkpoint: &Checkpoint,
    removal: &Removal,
    options: &DropOptions,
) -> Result<(Checkpoint, Dropped)> {
    let rewrite = rewrite::plan(checkpoint, removal, options.stack.as_deref(), options.force)?;
    let dropped = describe(checkpoint, &rewrite, options, String::new());
    Ok((checkpoint.renamed(&rewrite.tensors, rewrite.config)?, dropped))
}

/// Writes `checkpoint` without the layers `removal` into the folder `out`, which must not exist: tensors renumbered, their
/// bytes as they were; the configuration rewritten ([`rewrite`](mod@rewrite) says how); tokenizer, licence and other
/// files beside it as they were, unless they name layers; [`PROVENANCE`]. Nothing appears under the name `out` before all of it is on disk.
///
/// `progress` hears (bytes done, bytes in all).
///
/// # Errors
/// A set that does not fit the model; a configuration that is not understood (one sentence, naming the key), unless
/// forced; an output that exists or does not fit on its disk.
pub fn drop_layers(
    checkpoint: &Checkpoint,
    removal: &Removal,
    out: &Path,
    options: &DropOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Dropped> {
    let rewrite = rewrite::plan(checkpoint, removal, options.stack.as_deref(), options.force)?;
    let mut writer = start(checkpoint, &rewrite, out)?;
    let total: u64 =
        rewrite.tensors.iter().filter_map(|(old, _)| checkpoint.get(old)).map(|v| v.bytes().len() as u64).sum();
    let mut done = 0;
    for (old, new) in &rewrite.tensors {
        let view = checkpoint.tensor(old)?;
        view.will_need();
        let mut offset = 0;
        for bytes in view.bytes().chunks(BYTES_AT_ONCE) {
            writer.write_at(new, offset, bytes)?;
            offset += bytes.len() as u64;
            done += bytes.len() as u64;
            progress(done, total);
        }
        view.release();
    }
    let fingerprint = checkpoint.fingerprint();
    checkpoint.release_all();
    checkpoint.expect_unchanged()?;
    let dropped = describe(checkpoint, &rewrite, options, fingerprint);
    let rewritten = |file: &Path| rewrite.beside.iter().any(|(name, _)| file == checkpoint.dir().join(name));
    for file in checkpoint.side_files().iter().filter(|file| !rewritten(file)) {
        writer.copy_beside(checkpoint.dir(), file)?;
    }
    for (name, value) in &rewrite.beside {
        writer.add_file(name, &pretty(value)?)?;
    }
    writer.add_file("config.json", &pretty(&rewrite.config)?)?;
    writer.add_file(PROVENANCE, &pretty(&dropped.provenance)?)?;
    if let Some(source) = &options.mergekit_source {
        let dtype = ["dtype", "torch_dtype"].into_iter().find_map(|key| rewrite.config.get(key)?.as_str());
        let yaml = removal.mergekit(rewrite.stack.layers, source, dtype.unwrap_or("bfloat16"));
        writer.add_file("mergekit.yaml", yaml.as_bytes())?;
    }
    for (name, bytes) in &options.files {
        writer.add_file(name, bytes)?;
    }
    writer.finish()?;
    Ok(dropped)
}

/// Writes `pruned`, a checkpoint that [`drop_layers`] wrote, into `out` with other numbers in the tensors that `healed`
/// names, each in the type it has; says so in [`PROVENANCE`]. `replaced` gives a tensor's numbers, one tensor at a time.
///
/// # Errors
/// A name that is not there, a number its type cannot hold, an output that exists or does not fit on its disk.
pub fn write_healed(
    pruned: &Checkpoint,
    replaced: &dyn Fn(&TensorView) -> Option<Vec<f32>>,
    healed: Healed,
    files: &[(&str, Vec<u8>)],
    out: &Path,
) -> Result<Provenance> {
    let mut provenance = provenance(pruned.dir())?;
    if let Some(name) = healed.tensors.iter().find(|name| !pruned.contains(name)) {
        return Err(pruned.tensor(name).map_or_else(Error::from, |view| view.error("cannot be healed").into()));
    }
    let named: BTreeSet<&str> = healed.tensors.iter().map(String::as_str).collect();
    let specs =
        pruned.tensors().map(|view| TensorSpec::new(view.name(), view.dtype(), view.shape().to_vec())).collect();
    let options = WriterOptions { metadata: pruned.metadata().clone(), ..WriterOptions::default() };
    let mut writer = CheckpointWriter::create(out, specs, options)?;
    for view in pruned.tensors() {
        let Some(values) = named.contains(view.name()).then(|| replaced(view)).flatten() else {
            let mut offset = 0;
            for bytes in view.bytes().chunks(BYTES_AT_ONCE) {
                writer.write_at(view.name(), offset, bytes)?;
                offset += bytes.len() as u64;
            }
            view.release();
            continue;
        };
        if values.len() != view.elements() {
            return Err(view.error(format!("has {} elements, {} were made", view.elements(), values.len())).into());
        }
        writer.write(view.name(), &encode(view.dtype(), &values).map_err(|what| view.error(what))?)?;
    }
    provenance.healed = Some(healed);
    pruned.expect_unchanged()?;
    for file in pruned.side_files() {
        writer.copy_beside(pruned.dir(), &file)?;
    }
    writer.add_file("config.json", &pretty(pruned.config()?)?)?;
    writer.add_file(PROVENANCE, &pretty(&provenance)?)?;
    for (name, bytes) in files {
        writer.add_file(name, bytes)?;
    }
    writer.finish()?;
    Ok(provenance)
}

/// `values` as bytes of `dtype`.
fn encode(dtype: Dtype, values: &[f32]) -> Result<Vec<u8>, String> {
    let bytes = match dtype {
        Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        other => return Err(format!("has the type {other}; only tensors of plain numbers can be healed")),
    };
    let lost = |value: &f32| !value.is_finite() || dtype == Dtype::F16 && f16::from_f32(*value).is_infinite();
    match values.iter().find(|value| lost(value)) {
        Some(value) => Err(format!("would have to hold {value}, which its type {dtype} cannot")),
        None => Ok(bytes),
    }
}

/// The writer of everything that stays.
fn start(checkpoint: &Checkpoint, rewrite: &Rewrite, out: &Path) -> Result<CheckpointWriter> {
    let mut specs = Vec::with_capacity(rewrite.tensors.len());
    for (old, new) in &rewrite.tensors {
        let view = checkpoint.tensor(old)?;
        if view.dtype().safetensors_name().is_none() {
            let what = format!(
                "has the type {}, which safetensors cannot hold; turn the model into a folder with `scruple convert` first",
                view.dtype()
            );
            return Err(view.error(what).into());
        }
        specs.push(TensorSpec::new(new.clone(), view.dtype(), view.shape().to_vec()));
    }
    let mut metadata = checkpoint.metadata().clone();
    metadata.insert("format".into(), "pt".into());
    Ok(CheckpointWriter::create(out, specs, WriterOptions { metadata, ..WriterOptions::default() })?)
}

fn describe(checkpoint: &Checkpoint, rewrite: &Rewrite, options: &DropOptions, fingerprint: String) -> Dropped {
    let kept = || rewrite.tensors.iter().filter_map(|(old, _)| checkpoint.get(old));
    Dropped {
        provenance: Provenance {
            version: env!("CARGO_PKG_VERSION").into(),
            stack: rewrite.stack.name.clone(),
            source_layers: rewrite.stack.layers,
            removed: rewrite.removal.clone(),
            kept: rewrite.kept.clone(),
            source_fingerprint: fingerprint,
            forced: options.force,
            config_changes: rewrite.changes.clone(),
            notes: rewrite.notes.clone(),
            llama_cpp: rewrite.removal.llama_cpp(),
            chosen_by: options.chosen_by.clone(),
            healed: None,
        },
        tensors: rewrite.tensors.len(),
        source_bytes: checkpoint.bytes(),
        bytes: kept().map(|view| view.bytes().len() as u64).sum(),
        source_parameters: checkpoint.parameters(),
        parameters: kept().map(|view| view.elements() as u64).sum(),
    }
}

/// `value` as JSON text for a file.
pub(crate) fn pretty(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::Model(format!("cannot be written as JSON: {error}")))?;
    text.push(b'\n');
    Ok(text)
}

/// Reads the [`PROVENANCE`] in `folder`.
///
/// # Errors
/// If there is none, or it is not one.
pub fn provenance(folder: &Path) -> Result<Provenance> {
    let file = folder.join(PROVENANCE);
    let text = std::fs::read(&file).map_err(|error| {
        Error::Model(format!(
            "{}: cannot read which layers were dropped ({error}); the folder should be one that `scruple layers prune` wrote",
            file.display()
        ))
    })?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::Model(format!("{}: does not say which layers were dropped: {error}", file.display())))
}
