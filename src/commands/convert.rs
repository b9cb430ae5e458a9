//! `scruple convert`: any container to a Hugging Face folder of safetensors, or such a folder to a GGUF file.
//!
//! A GGUF file becomes the model it was made from: names, row order, configuration, tokenizer. Every other container
//! keeps its tensors' names, and the files beside it go along. A model that is quantised becomes the dense one that its
//! codes stand for. An output whose name ends in `.gguf` is a GGUF file, which `gguf` writes.

use std::{
    collections::{HashMap, HashSet},
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result};
use half::{bf16, f16};
use rayon::prelude::*;
use scruple_compress::export::{self, Coded, Quantization};
use scruple_weights::{
    Checkpoint, CheckpointWriter, Dtype, Shard, TensorSpec, TensorView, format,
    gguf_to_hf::{self, HfModel, HfTensor},
    hf_to_gguf::Scheme,
    writer::WriterOptions,
};
use serde_json::{Value, json};

use crate::{
    printer::{self, Progress},
    record::{self, Run},
    source,
};

mod gguf;

/// Values decoded at a time.
const VALUES_AT_ONCE: usize = 1 << 20;

/// Bytes copied at a time.
const BYTES_AT_ONCE: usize = 8 << 20;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The file or the folder to convert, or `org/name[@revision][:file]` of a hub
    input: PathBuf,
    /// Folder to write, or GGUF file (`NAME.gguf`); it must not exist
    #[arg(short, long)]
    output: PathBuf,
    /// Type of the written weights; without it f16 from GGUF, that of config.json (else bf16) for weights that were
    /// quantised, and the type they have for everything else. The q types are for a GGUF file: one type for all
    /// matrices, or (q4_k_s, q4_k_m, q5_k_m) llama.cpp's mixtures
    #[arg(long, value_enum)]
    dtype: Option<Target>,
    /// Go on when a weight is NaN or infinite
    #[arg(long)]
    allow_nonfinite: bool,
    /// Print a record as JSON when done
    #[arg(long)]
    json: bool,
}

/// The types of a folder.
#[derive(Debug, Clone, Copy)]
enum Plain {
    F16,
    Bf16,
    F32,
}

/// What `--dtype` can be.
#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Target {
    F16,
    Bf16,
    F32,
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q4_1")]
    Q4_1,
    #[value(name = "q5_0")]
    Q5_0,
    #[value(name = "q5_1")]
    Q5_1,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q2_k")]
    Q2K,
    #[value(name = "q3_k")]
    Q3K,
    #[value(name = "q4_k")]
    Q4K,
    #[value(name = "q5_k")]
    Q5K,
    #[value(name = "q6_k")]
    Q6K,
    #[value(name = "q4_k_s")]
    Q4KS,
    #[value(name = "q4_k_m")]
    Q4KM,
    #[value(name = "q5_k_m")]
    Q5KM,
}

impl Target {
    /// The type of a folder, if it is one.
    const fn plain(self) -> Option<Plain> {
        match self {
            Self::F16 => Some(Plain::F16),
            Self::Bf16 => Some(Plain::Bf16),
            Self::F32 => Some(Plain::F32),
            _ => None,
        }
    }

    /// What it means for a GGUF file.
    const fn scheme(self) -> Scheme {
        Scheme::Pure(match self {
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
            Self::F32 => Dtype::F32,
            Self::Q4_0 => Dtype::Q4_0,
            Self::Q4_1 => Dtype::Q4_1,
            Self::Q5_0 => Dtype::Q5_0,
            Self::Q5_1 => Dtype::Q5_1,
            Self::Q8_0 => Dtype::Q8_0,
            Self::Q2K => Dtype::Q2K,
            Self::Q3K => Dtype::Q3K,
            Self::Q4K => Dtype::Q4K,
            Self::Q5K => Dtype::Q5K,
            Self::Q6K => Dtype::Q6K,
            Self::Q4KS => return Scheme::Q4KS,
            Self::Q4KM => return Scheme::Q4KM,
            Self::Q5KM => return Scheme::Q5KM,
        })
    }
}

impl Plain {
    const fn dtype(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
            Self::F32 => Dtype::F32,
        }
    }

    /// The type a configuration names.
    fn of_config(config: &Value) -> Option<Self> {
        let name = ["dtype", "torch_dtype"].into_iter().find_map(|key| config.get(key)?.as_str())?;
        [Self::F16, Self::Bf16, Self::F32].into_iter().find(|target| target.torch_name() == name)
    }

    const fn torch_name(self) -> &'static str {
        match self {
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::F32 => "float32",
        }
    }

    /// `values` as bytes of this type, or the index of the first finite one that it cannot hold.
    fn encode(self, values: &[f32], out: &mut Vec<u8>) -> Result<(), usize> {
        out.clear();
        match self {
            Self::F32 => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::Bf16 => out.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes())),
            Self::F16 => out.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes())),
        }
        let lost = |value: f32| match self {
            Self::F32 => false,
            Self::Bf16 => bf16::from_f32(value).is_infinite() && value.is_finite(),
            Self::F16 => f16::from_f32(value).is_infinite() && value.is_finite(),
        };
        match values.iter().position(|&value| lost(value)) {
            Some(index) => Err(index),
            None => Ok(()),
        }
    }
}

/// One tensor to write: where it comes from, and what becomes of it.
struct Item {
    spec: TensorSpec,
    source: Source,
}

enum Source {
    /// Rows under their Hugging Face order.
    Gguf(HfTensor),
    /// Rows as they are, in another type.
    Recast(TensorView),
    /// Bytes as they are.
    Copy(TensorView),
    /// What its codes stand for.
    Coded(Box<CodedSource>),
}

/// A tensor that a quantised checkpoint holds as codes.
struct CodedSource {
    checkpoint: Arc<Checkpoint>,
    quantization: Arc<Quantization>,
    coded: Coded,
    target: Plain,
}

impl Source {
    fn view(&self) -> &TensorView {
        match self {
            Self::Gguf(tensor) => &tensor.source,
            Self::Recast(view) | Self::Copy(view) => view,
            Self::Coded(source) => &source.coded.parts[0], // a mark makes it one, so there is at least that
        }
    }
}

/// What is written beside the tensors.
enum Beside {
    /// Made from the GGUF file's metadata.
    Made(Box<HfModel>),
    /// Copied from the folder; with the type of what was quantised before, if anything was.
    Copied(Arc<Checkpoint>, Option<Plain>),
}

fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    // The kind is asked first: opening a pipe would wait for its writer.
    path.is_file()
        && std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && &magic == b"GGUF"
}

/// The one GGUF file a path leads to, if it leads to one.
fn gguf_file(path: &Path) -> Option<PathBuf> {
    if !path.is_dir() {
        return is_gguf(path).then(|| path.to_path_buf());
    }
    let checkpoint = Checkpoint::open(path).ok()?;
    match checkpoint.shards() {
        [shard] if is_gguf(shard.path()) => Some(shard.path().to_path_buf()),
        _ => None,
    }
}

fn read(input: &Path, dtype: Option<Plain>) -> Result<(Vec<Item>, Beside)> {
    if let Some(file) = gguf_file(input) {
        let mut model = gguf_to_hf::convert(&format::gguf::read(&Shard::open(file)?)?)?;
        let dtype = dtype.unwrap_or(Plain::F16);
        model.config["torch_dtype"] = Value::from(dtype.torch_name());
        let item = |tensor: HfTensor| Item {
            spec: TensorSpec { name: tensor.name.clone(), dtype: dtype.dtype(), shape: tensor.shape().to_vec() },
            source: Source::Gguf(tensor),
        };
        let items = std::mem::take(&mut model.tensors).into_iter().map(item).collect();
        return Ok((items, Beside::Made(Box::new(model))));
    }
    let checkpoint = Arc::new(Checkpoint::open(input)?);
    let quantization = quantization(&checkpoint)?;
    let made_dense = quantization.is_some().then(|| {
        let asked = checkpoint.config().ok().and_then(Plain::of_config);
        dtype.or(asked).unwrap_or(Plain::Bf16)
    });
    let mut coded: HashMap<String, Item> = HashMap::new(); // by the first of the tensors it is stored as
    let mut hidden: HashSet<String> = HashSet::new();
    if let (Some(quantization), Some(target)) = (&quantization, made_dense) {
        for tensor in export::coded(&checkpoint, quantization)? {
            hidden.extend(tensor.parts.iter().map(|view| view.name().to_owned()));
            let first = tensor.parts[0].name().to_owned();
            let spec = TensorSpec { name: tensor.name.clone(), dtype: target.dtype(), shape: tensor.shape.clone() };
            let (checkpoint, quantization) = (checkpoint.clone(), quantization.clone());
            let source = CodedSource { checkpoint, quantization, coded: tensor, target };
            coded.insert(first, Item { spec, source: Source::Coded(Box::new(source)) });
        }
        anyhow::ensure!(
            !coded.is_empty(),
            "{}: the configuration speaks of {}, and no tensor is stored that way; is it the right config.json?",
            input.display(),
            quantization.format
        );
        hidden.extend(
            checkpoint
                .tensors()
                .map(TensorView::name)
                .filter(|name| export::is_leftover(name, quantization))
                .map(str::to_owned),
        );
    }
    let mut item = |view: &TensorView| -> Result<Option<Item>> {
        if let Some(item) = coded.remove(view.name()) {
            return Ok(Some(item));
        }
        if hidden.contains(view.name()) {
            return Ok(None);
        }
        let target = dtype.filter(|target| view.dtype().is_float() && target.dtype() != view.dtype());
        let kept = target.map_or(view.dtype(), Plain::dtype);
        if kept.safetensors_name().is_none() {
            let what = format!("has the type {kept}, which safetensors cannot hold; give --dtype f16, bf16 or f32");
            return Err(view.error(what).into());
        }
        let spec = TensorSpec { name: view.name().to_string(), dtype: kept, shape: view.shape().to_vec() };
        let source = if target.is_some() { Source::Recast(view.clone()) } else { Source::Copy(view.clone()) };
        Ok(Some(Item { spec, source }))
    };
    let items = checkpoint.tensors().filter_map(|view| item(view).transpose()).collect::<Result<_>>()?;
    Ok((items, Beside::Copied(checkpoint, made_dense)))
}

/// How the model is quantised, if it is; files without a configuration are not.
fn quantization(checkpoint: &Checkpoint) -> Result<Option<Arc<Quantization>>> {
    if checkpoint.config().is_err() {
        return Ok(None);
    }
    Ok(export::detect(checkpoint)?.map(Arc::new))
}

fn refuse_nonfinite(view: &TensorView, at: usize, value: f32) -> anyhow::Error {
    let what = format!(
        "has the value {value} at element {at}; the file is damaged, or the model was never sound; --allow-nonfinite \
         writes it all the same"
    );
    view.error(what).into()
}

fn write_item(item: &Item, target: Plain, allow_nonfinite: bool, writer: &mut CheckpointWriter) -> Result<()> {
    let name = &item.spec.name;
    let view = item.source.view();
    if let Source::Copy(view) = &item.source {
        if let Some((at, value)) = view.nonfinite().filter(|_| !allow_nonfinite) {
            return Err(refuse_nonfinite(view, at, value));
        }
        let mut offset = 0;
        for bytes in view.bytes().chunks(BYTES_AT_ONCE) {
            writer.write_at(name, offset, bytes)?;
            offset += bytes.len() as u64;
        }
        view.release();
        return Ok(());
    }
    if let Source::Coded(source) = &item.source {
        return write_coded(source, name, allow_nonfinite, writer);
    }
    let (rows, length) = view.rows();
    let step = (VALUES_AT_ONCE / length.max(1)).max(1);
    let (mut values, mut bytes, mut offset) = (Vec::new(), Vec::new(), 0);
    for start in (0..rows).step_by(step) {
        let end = (start + step).min(rows);
        values.resize((end - start) * length, 0.0);
        match &item.source {
            Source::Gguf(tensor) => tensor.read_rows_f32(start..end, &mut values)?,
            Source::Recast(view) | Source::Copy(view) => view.read_rows(start..end, &mut values)?,
            Source::Coded(_) => unreachable!("written by `write_coded`"),
        }
        let at = |index: usize| start * length + index;
        if let Some(index) = values.iter().position(|value| !value.is_finite()).filter(|_| !allow_nonfinite) {
            return Err(refuse_nonfinite(view, at(index), values[index]));
        }
        target.encode(&values, &mut bytes).map_err(|index| {
            view.error(format!(
                "has {:e}, which {} cannot hold, at element {}; use --dtype bf16 or f32",
                values[index],
                target.torch_name(),
                at(index)
            ))
        })?;
        writer.write_at(name, offset, &bytes)?;
        offset += bytes.len() as u64;
    }
    view.release();
    Ok(())
}

/// Writes the dense tensor `name` that codes stand for, a part at a time.
fn write_coded(source: &CodedSource, name: &str, allow_nonfinite: bool, writer: &CheckpointWriter) -> Result<()> {
    let CodedSource { checkpoint, quantization, coded, target } = source;
    let view = &coded.parts[0];
    let (mut values, mut bytes, mut offset) = (Vec::new(), Vec::new(), 0);
    for slice in 0..coded.slices {
        let weight = coded.decode(checkpoint, quantization, slice)?;
        let (rows, length) = weight.shape();
        let whole = [rows * coded.slices, length];
        anyhow::ensure!(
            whole.iter().product::<usize>() == coded.shape.iter().product::<usize>(),
            "{}: tensor `{name}` decodes to shape {whole:?}, expected {:?}",
            checkpoint.path().display(),
            coded.shape
        );
        let step = (VALUES_AT_ONCE / length.max(1)).max(1);
        for start in (0..rows).step_by(step) {
            let end = (start + step).min(rows);
            values.resize((end - start) * length, 0.0f32);
            let lines = values.par_chunks_exact_mut(length.max(1)).enumerate();
            lines.for_each(|(row, out)| weight.dequantize_row(start + row, out));
            let at = |index: usize| (slice * rows + start) * length + index;
            if let Some(index) = values.iter().position(|value| !value.is_finite()).filter(|_| !allow_nonfinite) {
                return Err(refuse_nonfinite(view, at(index), values[index]));
            }
            target.encode(&values, &mut bytes).map_err(|index| {
                let (value, torch) = (values[index], target.torch_name());
                let at = at(index);
                view.error(format!(
                    "stands for {value:e}, which {torch} cannot hold, at element {at}; use --dtype bf16 or f32"
                ))
            })?;
            writer.write_at(name, offset, &bytes)?;
            offset += bytes.len() as u64;
        }
    }
    coded.release();
    Ok(())
}

/// Writes the files beside the tensors; returns what the model is called.
fn write_beside(beside: &Beside, dtype: Option<Plain>, writer: &mut CheckpointWriter) -> Result<String> {
    let architecture = |config: &Value| config["architectures"][0].as_str().unwrap_or("a model").to_string();
    match beside {
        Beside::Made(model) => {
            writer.add_file("config.json", &record::pretty(&model.config)?)?;
            for (name, bytes) in &model.files {
                writer.add_file(name, bytes)?;
            }
            Ok(architecture(&model.config))
        }
        Beside::Copied(checkpoint, made_dense) => {
            checkpoint.expect_unchanged()?;
            for file in checkpoint.side_files() {
                writer.copy_beside(checkpoint.dir(), &file)?;
            }
            let Ok(config) = checkpoint.config() else {
                return Ok("a model without config.json".to_string());
            };
            let mut config = config.clone();
            if let (Some(_), Value::Object(fields)) = (made_dense, &mut config) {
                fields.shift_remove("quantization_config");
            }
            if let (Some(target), Value::Object(fields)) = (dtype.or(*made_dense), &mut config) {
                let key = if fields.contains_key("dtype") { "dtype" } else { "torch_dtype" };
                fields.insert(key.to_string(), target.torch_name().into());
            }
            writer.add_file("config.json", &record::pretty(&config)?)?;
            Ok(architecture(&config))
        }
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("convert");
    let located = source::locate(&arguments.input)?;
    if arguments.output.extension().is_some_and(|extension| extension == "gguf") {
        anyhow::ensure!(
            gguf_file(located.path()).is_none(),
            "{}: the file is GGUF already; convert it to a folder first, and the folder to GGUF",
            located.path().display()
        );
        let scheme = arguments.dtype.map(Target::scheme);
        let mut summary = gguf::write(located.path(), &arguments.output, scheme, arguments.allow_nonfinite)?;
        if let Some(origin) = located.origin() {
            summary["source"] = serde_json::to_value(origin)?;
        }
        return report(arguments, &summary);
    }
    let dtype = match arguments.dtype.map(|target| (target, target.plain())) {
        None => None,
        Some((_, Some(plain))) => Some(plain),
        Some((target, None)) => anyhow::bail!(
            "{}: a folder cannot hold {}, only a GGUF file can; name the output NAME.gguf, or use `scruple compress`",
            arguments.output.display(),
            clap::ValueEnum::to_possible_value(&target).map(|value| value.get_name().to_string()).unwrap_or_default()
        ),
    };
    let (items, beside) = read(located.path(), dtype)?;
    anyhow::ensure!(!items.is_empty(), "{}: the file holds no tensors; name one that does", located.path().display());
    let metadata = [("format".to_string(), "pt".to_string())].into_iter().collect();
    let options = WriterOptions { metadata, ..WriterOptions::default() };
    let specs = items.iter().map(|item| item.spec.clone()).collect();
    let mut writer = CheckpointWriter::create(&arguments.output, specs, options)?;
    let mut progress = Progress::new("convert", items.len() as u64);
    for (done, item) in items.iter().enumerate() {
        let target = dtype.unwrap_or(Plain::F16);
        write_item(item, target, arguments.allow_nonfinite, &mut writer)?;
        progress.at(done as u64 + 1, &item.spec.name);
    }
    progress.finish();
    let architecture = write_beside(&beside, dtype, &mut writer)
        .with_context(|| format!("{}: cannot write the files beside the weights", arguments.output.display()))?;
    writer.add_file("run.json", &record::pretty(&clock.to_json())?)?;
    let written = writer.finish()?;
    let parameters: usize = items.iter().map(|item| item.spec.shape.iter().product::<usize>()).sum();
    let mut dtypes: Vec<_> = items.iter().map(|item| item.spec.dtype.to_string()).collect();
    dtypes.sort();
    dtypes.dedup();
    let dtypes = dtypes.join(", ");
    let mut summary = json!({
        "output": arguments.output.display().to_string(),
        "architecture": architecture,
        "tensors": items.len(),
        "parameters": parameters,
        "dtype": dtypes,
        "bytes": written.bytes,
    });
    if let Some(origin) = located.origin() {
        summary["source"] = serde_json::to_value(origin)?;
    }
    report(arguments, &summary)
}

/// Says what was written.
fn report(arguments: &Arguments, summary: &Value) -> Result<ExitCode> {
    if arguments.json {
        printer::json(summary)?;
    } else {
        let text = |key: &str| summary[key].as_str().unwrap_or_default().to_string();
        printer::data(format!(
            "{}: {} with {} parameters in {} tensors, {}, {:.1} MB",
            text("output"),
            text("architecture"),
            summary["parameters"],
            summary["tensors"],
            text("dtype"),
            summary["bytes"].as_f64().unwrap_or_default() / 1e6
        ));
    }
    Ok(ExitCode::SUCCESS)
}
