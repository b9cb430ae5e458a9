//! `scruple convert`: a GGUF file to a Hugging Face folder.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use half::{bf16, f16};
use scruple_weights::{
    CheckpointWriter, Dtype, Error, Shard, TensorSpec,
    format::gguf,
    gguf_to_hf::{self, HfTensor},
    hub::Want,
    writer::WriterOptions,
};
use serde_json::{Value, json};

use crate::{
    printer::{self, Progress},
    record::{self, Run},
    source,
};

/// Values decoded at a time.
const VALUES_AT_ONCE: usize = 1 << 20;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The GGUF file, or `org/name[@revision][:file]` of a hub
    input: PathBuf,
    /// Folder to write; it must not exist
    #[arg(short, long)]
    output: PathBuf,
    /// Type of the written weights
    #[arg(long, value_enum, default_value_t = Target::F16)]
    dtype: Target,
    /// Print a record as JSON when done
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Target {
    F16,
    Bf16,
    F32,
}

impl Target {
    const fn dtype(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
            Self::F32 => Dtype::F32,
        }
    }

    const fn torch_name(self) -> &'static str {
        match self {
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::F32 => "float32",
        }
    }

    /// `values` as bytes of this type, or the index of the first that it cannot hold.
    fn encode(self, values: &[f32], out: &mut Vec<u8>) -> Result<(), usize> {
        out.clear();
        match self {
            Self::F32 => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::Bf16 => out.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes())),
            Self::F16 => out.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes())),
        }
        let lost = |value: f32| match self {
            Self::F32 => false,
            Self::Bf16 => bf16::from_f32(value).is_infinite(),
            Self::F16 => f16::from_f32(value).is_infinite(),
        };
        match values.iter().position(|&value| lost(value)) {
            Some(index) => Err(index),
            None => Ok(()),
        }
    }
}

fn write_tensor(tensor: &HfTensor, target: Target, writer: &mut CheckpointWriter) -> Result<()> {
    let (rows, length) = tensor.rows();
    let step = (VALUES_AT_ONCE / length.max(1)).max(1);
    let (mut values, mut bytes, mut offset) = (Vec::new(), Vec::new(), 0);
    for start in (0..rows).step_by(step) {
        let end = (start + step).min(rows);
        values.resize((end - start) * length, 0.0);
        tensor.read_rows_f32(start..end, &mut values)?;
        let complain = |index: usize, what: &str| {
            let at = start * length + index;
            Error::tensor(tensor.source.file(), tensor.source.name(), format!("has {what} at element {at}"))
        };
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let what = format!("the value {}; the file is damaged, or the model was never sound", values[index]);
            return Err(complain(index, &what).into());
        }
        target.encode(&values, &mut bytes).map_err(|index| {
            let name = target.torch_name();
            complain(index, &format!("{:e}, which {name} cannot hold; use --dtype bf16 or f32", values[index]))
        })?;
        writer.write_at(&tensor.name, offset, &bytes)?;
        offset += bytes.len() as u64;
    }
    tensor.source.release();
    Ok(())
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let clock = Run::start("convert");
    let located = source::locate_as(&arguments.input, &Want::Gguf)?;
    let file = gguf::read(&Shard::open(located.path())?)?;
    let model = gguf_to_hf::convert(&file)?;
    let spec = |tensor: &HfTensor| TensorSpec {
        name: tensor.name.clone(),
        dtype: arguments.dtype.dtype(),
        shape: tensor.shape().to_vec(),
    };
    let metadata = [("format".to_string(), "pt".to_string())].into_iter().collect();
    let options = WriterOptions { metadata, ..WriterOptions::default() };
    let mut writer = CheckpointWriter::create(&arguments.output, model.tensors.iter().map(spec).collect(), options)?;
    let mut progress = Progress::new("convert", model.tensors.len() as u64);
    for (done, tensor) in model.tensors.iter().enumerate() {
        write_tensor(tensor, arguments.dtype, &mut writer)?;
        progress.at(done as u64 + 1, &tensor.name);
    }
    progress.finish();
    let mut config = model.config;
    config["torch_dtype"] = Value::from(arguments.dtype.torch_name());
    writer.add_file("config.json", &record::pretty(&config)?)?;
    for (name, bytes) in &model.files {
        writer.add_file(name, bytes)?;
    }
    writer.add_file("run.json", &record::pretty(&clock.to_json())?)?;
    let written = writer.finish()?;
    let parameters: usize = model.tensors.iter().map(|tensor| tensor.shape().iter().product::<usize>()).sum();
    let mut summary = json!({
        "output": arguments.output.display().to_string(),
        "architecture": config["architectures"][0],
        "tensors": model.tensors.len(),
        "parameters": parameters,
        "dtype": arguments.dtype.torch_name(),
        "bytes": written.bytes,
    });
    if let Some(origin) = located.origin() {
        summary["source"] = serde_json::to_value(origin)?;
    }
    if arguments.json {
        printer::json(&summary)?;
    } else {
        printer::data(format!(
            "{}: {} with {parameters} parameters in {} tensors, {}, {:.1} MB",
            arguments.output.display(),
            config["architectures"][0].as_str().unwrap_or("a model"),
            model.tensors.len(),
            arguments.dtype.torch_name(),
            written.bytes as f64 / 1e6
        ));
    }
    Ok(ExitCode::SUCCESS)
}
