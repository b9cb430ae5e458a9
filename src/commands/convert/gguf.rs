//! A Hugging Face folder to one GGUF file.
//!
//! A batch of rows at a time is decoded, put in GGUF's order and encoded on all threads, then written; memory stays at a
//! batch. Packed linears are dequantised one at a time, except where their codes are GGUF's already: then the codes move.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write,
    ops::Range,
    path::Path,
};

use anyhow::{Context, Result};
use half::f16;
use rayon::prelude::*;
use scruple_compress::{
    export::{self, Coded, Quantization},
    grid::Quantised,
    weight::CompressedWeight,
};
use scruple_weights::{
    Checkpoint, Dtype, TensorSpec, TensorView, ggml,
    hf_to_gguf::{self, Folder, Plan, PlannedTensor, Scheme},
    writer::gguf::GgufWriter,
};
use serde_json::{Value, json};

use crate::printer::{self, Progress};

/// Values one thread decodes at a time: they stay in its cache.
const VALUES_A_PIECE: usize = 1 << 15;

/// Pieces encoded before they are written.
const PIECES_A_BATCH: usize = 64;

/// Where a tensor's numbers come from.
enum Origin {
    /// A tensor of the folder.
    Dense(TensorView),
    /// A linear in packed form.
    Packed(Box<CompressedWeight>),
    /// The configuration.
    Made,
}

/// Writes `output`; gives what the record says of it.
pub(super) fn write(input: &Path, output: &Path, scheme: Option<Scheme>, allow_nonfinite: bool) -> Result<Value> {
    let checkpoint = Checkpoint::open(input)?;
    let config = checkpoint.config()?;
    let quantization = export::detect(&checkpoint)?;
    let packed = match &quantization {
        Some(quantization) => export::coded(&checkpoint, quantization)?,
        None => Vec::new(),
    };
    let tensors = weights(&checkpoint, quantization.as_ref(), &packed);
    let scheme = scheme.unwrap_or_else(|| stored(&checkpoint));
    let folder = Folder { path: checkpoint.dir(), config };
    let plan = hf_to_gguf::plan(folder, &tensors, scheme)?;
    plan.remarks.iter().for_each(printer::warn);
    let fallbacks = fallbacks(&plan);
    if let Some(line) = fallback_line(&fallbacks) {
        printer::warn(line);
    }

    let specs: Vec<TensorSpec> = plan.tensors.iter().map(PlannedTensor::spec).collect();
    let mut writer = GgufWriter::create(output, &plan.metadata, &specs)?;
    let mut progress = Progress::new("convert", specs.len() as u64);
    let mut exact = 0u64;
    for (done, tensor) in plan.tensors.iter().enumerate() {
        let origin = origin(&checkpoint, quantization.as_ref(), &packed, tensor)?;
        if let Origin::Packed(packed) = &origin
            && let Some(bytes) = packed.quantised().and_then(|q| codes(q, tensor))
        {
            writer.append(&bytes)?;
            exact += 1;
        } else {
            encode(tensor, &origin, allow_nonfinite, &mut writer)?;
        }
        if let Origin::Dense(view) = &origin {
            view.release();
        }
        progress.at(done as u64 + 1, &tensor.name);
    }
    progress.finish();
    let bytes = writer.finish().with_context(|| format!("{}: cannot finish the file", output.display()))?;
    let parameters: usize = specs.iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    specs.iter().for_each(|spec| *counts.entry(spec.dtype.to_string()).or_default() += 1);
    Ok(json!({
        "output": output.display().to_string(),
        "architecture": plan.architecture,
        "tensors": specs.len(),
        "parameters": parameters,
        "dtype": counts.keys().cloned().collect::<Vec<_>>().join(", "),
        "dtypes": counts,
        "fallbacks": fallbacks,
        "packed_linears_moved_exactly": exact,
        "bytes": bytes,
    }))
}

/// The type a folder's weights have, for GGUF: bf16 and f32 stay, everything else is f16.
fn stored(checkpoint: &Checkpoint) -> Scheme {
    let embedding = checkpoint.get("model.embed_tokens.weight").map(|view| view.dtype());
    Scheme::Pure(match embedding {
        Some(dtype @ (Dtype::Bf16 | Dtype::F32)) => dtype,
        _ => Dtype::F16,
    })
}

/// Names and shapes of the folder's weights, each packed one as the weight it stands for.
fn weights(
    checkpoint: &Checkpoint,
    quantization: Option<&Quantization>,
    packed: &[Coded],
) -> Vec<(String, Vec<usize>)> {
    let parts: HashSet<&str> = packed.iter().flat_map(|coded| coded.parts.iter().map(TensorView::name)).collect();
    let leftover = |name: &str| quantization.is_some_and(|quantization| export::is_leftover(name, quantization));
    let plain = checkpoint.tensors().filter(|view| !parts.contains(view.name()) && !leftover(view.name()));
    let plain = plain.map(|view| (view.name().to_owned(), view.shape().to_vec()));
    packed.iter().map(|coded| (coded.name.clone(), coded.shape.clone())).chain(plain).collect()
}

fn origin(
    checkpoint: &Checkpoint,
    quantization: Option<&Quantization>,
    packed: &[Coded],
    tensor: &PlannedTensor,
) -> Result<Origin> {
    if tensor.hf.is_empty() {
        return Ok(Origin::Made);
    }
    let coded = packed.iter().find(|coded| coded.name == tensor.hf);
    if let (Some(coded), Some(quantization)) = (coded, quantization) {
        anyhow::ensure!(
            coded.slices == 1,
            "{}: tensor `{}` holds several matrices in codes, which is not written as GGUF; `scruple convert` makes a \
             dense folder of it first",
            checkpoint.path().display(),
            coded.name
        );
        let weight = coded.decode(checkpoint, quantization, 0)?;
        coded.release();
        return Ok(Origin::Packed(Box::new(weight)));
    }
    let view = checkpoint.tensor(&tensor.hf)?;
    view.will_need();
    Ok(Origin::Dense(view))
}

/// The bytes of a packed linear whose numbers d · (q − z) are ones of `tensor`'s type: the scales are numbers of f16, the
/// groups are whole blocks of 32, and every q − z fits. `None` otherwise.
fn codes(q: &Quantised, tensor: &PlannedTensor) -> Option<Vec<u8>> {
    let (block, block_bytes) = tensor.dtype.block();
    let is_grid = matches!(tensor.dtype, Dtype::Q4_0 | Dtype::Q5_0 | Dtype::Q8_0);
    if !is_grid || !tensor.is_unchanged() || q.g_idx.is_some() || !q.group_size.is_multiple_of(block) {
        return None;
    }
    let scales: Vec<u16> = q.scales.iter().map(|&scale| f16::from_f32(scale).to_bits()).collect();
    if q.scales.iter().zip(&scales).any(|(&scale, &bits)| f16::from_bits(bits).to_f32() != scale) {
        return None;
    }
    let (rows, columns) = (q.out_features, q.in_features);
    let row_bytes = tensor.dtype.bytes(columns)?;
    let mut bytes = vec![0; rows * row_bytes];
    let fits = bytes.par_chunks_mut(row_bytes).enumerate().all(|(row, out)| {
        let row = tensor.source_row(row);
        let codes = &q.codes[row * columns..][..columns];
        codes.as_chunks::<32>().0.iter().zip(out.chunks_exact_mut(block_bytes)).enumerate().all(|(at, (codes, out))| {
            let group = row * q.groups() + at * block / q.group_size;
            let differences = codes.map(|code| i16::from(code) - i16::from(q.zeros[group]));
            // At most eight bits either way, so only −255..−129 and 128..255 do not fit.
            differences.iter().all(|&difference| i8::try_from(difference).is_ok())
                && ggml::write_integers(
                    tensor.dtype,
                    scales[group],
                    &differences.map(|difference| difference as i8),
                    out,
                )
        })
    });
    fits.then_some(bytes)
}

/// What is wrong with a piece of a tensor.
enum Fault {
    Read(anyhow::Error),
    /// An element of the file's tensor, and its value.
    NotFinite(usize, f32),
    /// The first element of what does not fit, and a value of it.
    TooLarge(usize, f32),
}

/// Decodes, encodes and writes one tensor.
fn encode(tensor: &PlannedTensor, origin: &Origin, allow_nonfinite: bool, writer: &mut GgufWriter) -> Result<()> {
    let (rows, length) = tensor.rows();
    let row_bytes = tensor.dtype.bytes(length).context("a row of no whole blocks")?;
    // A number that is not finite has no place in a block.
    let allow_nonfinite = allow_nonfinite && tensor.dtype.block().0 == 1;
    let step = (VALUES_A_PIECE / length.max(1)).max(1);
    let mut bytes = Vec::new();
    for start in (0..rows).step_by(step * PIECES_A_BATCH) {
        let end = (start + step * PIECES_A_BATCH).min(rows);
        bytes.resize((end - start) * row_bytes, 0);
        let fault = bytes
            .par_chunks_mut(step * row_bytes)
            .enumerate()
            .map_init(Vec::new, |values, (piece, out)| {
                let first = start + piece * step;
                let rows = first..first + out.len() / row_bytes;
                values.resize(rows.len() * length, 0.0);
                encode_rows(tensor, origin, rows, allow_nonfinite, values, out).err()
            })
            .find_first(Option::is_some);
        match fault.flatten() {
            None => writer.append(&bytes)?,
            Some(Fault::Read(error)) => return Err(error),
            Some(Fault::NotFinite(at, value)) => {
                let (hint, at) = match tensor.dtype.block().0 {
                    1 => ("; --allow-nonfinite writes it all the same", element(tensor, at)),
                    _ => ("", element(tensor, at)),
                };
                let what = format!(
                    "has the value {value} at element {at}; the file is damaged, or the model was never sound{hint}"
                );
                return Err(refuse(tensor, origin, what));
            }
            Some(Fault::TooLarge(at, value)) => {
                let (at, dtype) = (element(tensor, at), tensor.dtype);
                let what = format!(
                    "has numbers that {dtype} cannot hold, such as {value:e}, from element {at} on; use --dtype bf16 or f32"
                );
                return Err(refuse(tensor, origin, what));
            }
        }
    }
    Ok(())
}

fn encode_rows(
    tensor: &PlannedTensor,
    origin: &Origin,
    rows: Range<usize>,
    allow_nonfinite: bool,
    values: &mut [f32],
    out: &mut [u8],
) -> Result<(), Fault> {
    let (_, length) = tensor.rows();
    let first = rows.start * length;
    tensor
        .read_rows(rows, values, |rows, out| -> Result<()> {
            match origin {
                Origin::Dense(view) => view.read_rows(rows, out)?,
                Origin::Packed(q) => {
                    rows.zip(out.chunks_exact_mut(q.shape().1)).for_each(|(row, out)| q.dequantize_row(row, out));
                }
                Origin::Made => {}
            }
            Ok(())
        })
        .map_err(Fault::Read)?;
    // One pass without a way out is a vector loop; the search is for the rare case.
    let finite = values.iter().fold(true, |finite, value| finite & value.is_finite());
    if !finite
        && !allow_nonfinite
        && let Some(at) = values.iter().position(|value| !value.is_finite())
    {
        return Err(Fault::NotFinite(first + at, values[at]));
    }
    ggml::quantize(tensor.dtype, values, out).map_err(|at| {
        let block = &values[at..][..tensor.dtype.block().0];
        let largest = block.iter().copied().fold(0.0, |a: f32, b| if b.abs() > a.abs() { b } else { a });
        Fault::TooLarge(first + at, largest)
    })
}

/// The element of the folder's tensor that is element `at` of the file's.
fn element(tensor: &PlannedTensor, at: usize) -> usize {
    let (_, length) = tensor.rows();
    tensor.source_row(at / length) * length + at % length
}

fn refuse(tensor: &PlannedTensor, origin: &Origin, what: String) -> anyhow::Error {
    match origin {
        Origin::Dense(view) => view.error(what).into(),
        _ => anyhow::anyhow!("tensor `{}` {what}", tensor.hf),
    }
}

/// Tensors whose rows fill no blocks of the type asked for: `Q4_K as Q5_0` and how many there are.
fn fallbacks(plan: &Plan) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for tensor in &plan.tensors {
        if let Some(wanted) = tensor.instead_of {
            *counts.entry(format!("{wanted} as {}", tensor.dtype)).or_default() += 1;
        }
    }
    counts
}

fn fallback_line(fallbacks: &BTreeMap<String, usize>) -> Option<String> {
    let total: usize = fallbacks.values().sum();
    if total == 0 {
        return None;
    }
    let tensors = if total == 1 { "1 tensor has" } else { &format!("{total} tensors have") };
    let mut line = format!("{tensors} rows that fill no whole blocks, and another type:");
    for (at, (what, count)) in fallbacks.iter().enumerate() {
        let _ = write!(line, "{} {count} {what}", if at == 0 { "" } else { "," }); // to a string
    }
    Some(line)
}
