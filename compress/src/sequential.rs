//! The one loop: a block's inputs, what its linears see, their compression, and the block's outputs by the compressed
//! weights, which are the next block's inputs.
//!
//! Within a block the order is true-sequential: q, k, v; then o; then gate, up; then down, each calibrated on what the
//! already compressed linears before it produce.
//!
//! Every finished block is a unit of the writer's journal; a run that was stopped goes on after the last one and ends in
//! the same bytes.

use std::{collections::BTreeSet, time::Instant};

use half::{bf16, f16};
use scruple_weights::{Checkpoint, CheckpointWriter, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Error, Result,
    calibration::CalibrationSet,
    clock::cpu_seconds,
    export::{self, Format, Layout, Quantization},
    grid::{Quantised, ScaleDtype, Search},
    kernel::{
        loss::{Loss, row_loss},
        rtn_pack::{InFile, Packed, rtn_pack},
    },
    memory,
    methods::{Compressed, Described, GroupStats, LinearReport, Needs, Weight, rtn::Rtn},
    model::{
        decoder::Stage,
        linear::{self, Linear},
    },
    pack,
    plan::{Plan, PlannedLinear},
    scaling::{self, BlockScales, ScalingRecord},
    walk::Walk,
    weight::{Code, CompressedWeight, GridCode},
};

/// Bytes of a tensor copied at a time.
const COPY_BYTES: usize = 8 << 20;

/// What was done to one linear.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinearRecord {
    /// The method's account, with the linear's name.
    #[serde(flatten)]
    pub report: LinearReport,
    /// The way it is stored.
    #[serde(flatten)]
    pub code: Code,
    /// `‖Ŵ − W‖² / ‖W‖²`, the share of the weight's own energy that was lost; absent where the weight is zero.
    pub weight_error: Option<f64>,
    /// Weights that are zero.
    pub zeros: u64,
    /// Number of weights.
    pub weights: u64,
    /// Bits on disk, scales and indices included.
    pub storage_bits: u64,
    /// SHA-256 of the dequantised weight (f32, little endian, row by row as it is stored): the numbers that were used
    /// from here on. Absent where the plan asked for no proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dequantised_sha256: Option<String>,
    /// Calibration tokens that were routed to it; of experts only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration_tokens: Option<usize>,
    /// What its calibration lacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// What the loop has done.
#[derive(Debug, Default)]
pub struct Outcome {
    /// All linears, in the order of the plan.
    pub linears: Vec<LinearRecord>,
    /// The scales of inputs that were searched, in the order of the plan.
    pub scalings: Vec<ScalingRecord>,
    /// Wall seconds spent on each linear in this run, by name (resumed blocks have none).
    pub seconds: Vec<(String, f64)>,
    /// Where the time went.
    pub phases: Phases,
    /// Blocks that an earlier run had finished.
    pub resumed_blocks: usize,
}

/// Where the time of a run went, CPU seconds of all threads.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Phases {
    /// Running blocks and gathering statistics.
    pub calibrate: f64,
    /// Searching scales of inputs.
    pub scale: f64,
    /// Choosing codes.
    pub solve: f64,
    /// Encoding and writing.
    pub write: f64,
    /// SHA-256 of what was used.
    pub hash: f64,
    /// Copying tensors that stay as they are.
    pub copy: f64,
}

/// What a finished block leaves in the journal.
#[derive(Debug, Serialize, Deserialize)]
struct BlockUnit {
    linears: Vec<LinearRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    scalings: Vec<ScalingRecord>,
    activations: Option<String>,
}

/// Hears what happens: `(linears done, linears in all, name of the last)`.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize, &str);

const REST: &str = "rest";

/// Adds a row of f32 to `hash`, as little-endian bytes.
fn hash_row(hash: &mut Sha256, row: &[f32]) {
    if cfg!(target_endian = "little") {
        hash.update(bytemuck::cast_slice::<f32, u8>(row));
    } else {
        row.iter().for_each(|value| hash.update(value.to_le_bytes()));
    }
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of rows of f32 as little-endian bytes.
fn digest_rows(rows: usize, columns: usize, mut read: impl FnMut(usize, &mut [f32]) -> Result<()>) -> Result<String> {
    let mut hash = Sha256::new();
    let mut row = vec![0.0f32; columns];
    for index in 0..rows {
        read(index, &mut row)?;
        hash_row(&mut hash, &row);
    }
    Ok(hexadecimal(hash))
}

/// What is noted of every compressed weight, as it reads back from its file.
struct Account {
    sha256: Option<String>,
    loss: Loss,
}

impl Account {
    /// Of `weight` as `plan` writes it, `transposed` or not; `original(row, out)` reads the dense one.
    fn of(
        weight: &CompressedWeight,
        plan: &Plan,
        transposed: bool,
        mut original: impl FnMut(usize, &mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        let (rows, columns) = weight.shape();
        let (mut row, mut dense) = (vec![0.0f32; columns], vec![0.0f32; columns]);
        let mut loss = Loss::default();
        let mut hash = plan.proof.then(Sha256::new);
        let mut stored = Vec::new(); // the bytes of a weight whose rows are not those of the file
        for index in 0..rows {
            weight.stored_row(index, plan.float_dtype, &mut row);
            if plan.format == Format::Dense {
                plan.float_dtype.round_slice(&mut row);
            }
            original(index, &mut dense)?;
            loss = loss + row_loss(&row, &dense);
            match &mut hash {
                Some(_) if transposed => stored.extend(row.iter().flat_map(|value| value.to_le_bytes())),
                Some(hash) => hash_row(hash, &row),
                None => {}
            }
        }
        if let Some(hash) = hash.as_mut().filter(|_| transposed) {
            hash.update(linear::transpose(&stored, rows, columns, size_of::<f32>()));
        }
        Ok(Self { sha256: hash.map(hexadecimal), loss })
    }
}

/// SHA-256 of the weight that the written file holds for `linear`, dequantised.
///
/// # Errors
/// If the file does not hold it.
pub fn digest_from_file(checkpoint: &Checkpoint, linear: &str, quantization: Option<&Quantization>) -> Result<String> {
    let coded = quantization.is_some_and(|quantization| export::is_coded(checkpoint, linear, quantization));
    if let Some(view) = checkpoint.get(&format!("{linear}.weight")).filter(|_| !coded) {
        let (rows, columns) = view.rows();
        let digest = digest_rows(rows, columns, |index, row| Ok(view.read_rows(index..index + 1, row)?));
        view.release();
        return digest;
    }
    let Some(quantization) = quantization else {
        return Err(checkpoint.tensor(&format!("{linear}.weight")).unwrap_err().into());
    };
    let q = export::decode(checkpoint, linear, quantization)?;
    checkpoint.release_all(); // the codes are in memory now; a walk through all linears must not map the whole file
    let (rows, columns) = q.shape();
    digest_rows(rows, columns, |index, row| {
        q.dequantize_row(index, row);
        Ok(())
    })
}

/// What to say of a tensor with a NaN or an infinity, by name and index; none where all is finite.
pub fn nonfinite(view: &TensorView) -> Option<String> {
    let (index, value) = view.nonfinite()?;
    Some(format!(
        "{}: tensor `{}` has the value {value} at element {index}; the checkpoint is damaged or its training diverged, so \
         fetch it again or take another",
        view.file().display(),
        view.name()
    ))
}

/// Refuses to compress a tensor with a NaN or an infinity.
pub fn refuse_nonfinite(view: &TensorView) -> Result<()> {
    match nonfinite(view) {
        None => Ok(()),
        Some(what) => Err(Error::Numeric(format!("{what}, or give --allow-nonfinite to go on all the same"))),
    }
}

/// Carries out `plan` on `checkpoint`, writing every tensor of the plan.
///
/// # Errors
/// Non-finite weights, a method that cannot finish, a full disk; finished blocks stay in the writer's folder.
pub fn compress(
    checkpoint: &Checkpoint,
    plan: &Plan,
    calibration: Option<&CalibrationSet>,
    writer: &mut CheckpointWriter,
    progress: Progress<'_>,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let finished = writer.finished_units();
    let total = plan.linears.len();

    if !finished.iter().any(|(unit, _)| unit == REST) {
        let started = cpu_seconds();
        copy_rest(checkpoint, plan, writer)?;
        writer.commit_unit(REST, serde_json::Value::Null)?;
        outcome.phases.copy = cpu_seconds() - started;
    }

    let mut walk = match calibration {
        Some(set) if plan.needs_calibration() => {
            let scratch = writer.scratch()?.to_path_buf();
            let walk = Walk::open(checkpoint, &plan.network, set, &scratch, plan.needs_dense_inputs())?;
            let mut walk = walk.on(plan.candle_device());
            if count_blocks(&finished) == 0 {
                walk.start()?;
            }
            Some(walk)
        }
        None if plan.needs_calibration() => {
            return Err(Error::Recipe("the recipe's methods need a calibration text; give --calibration FILE".into()));
        }
        _ => None,
    };
    let mut packed = Packed::default();
    for index in 0..plan.network.blocks() {
        let unit = format!("block {index}");
        if let Some((_, value)) = finished.iter().find(|(name, _)| *name == unit) {
            let value: BlockUnit = serde_json::from_value(value.clone())
                .map_err(|error| Error::Recipe(format!("the journal's entry for {unit} is unreadable: {error}")))?;
            outcome.linears.extend(value.linears);
            outcome.scalings.extend(value.scalings);
            outcome.resumed_blocks += 1;
            if let Some(walk) = &mut walk {
                let expected = value.activations.filter(|_| index + 1 == count_blocks(&finished));
                walk.skip_to(index + 1, expected.as_deref())?;
            }
            continue;
        }
        let records = match &mut walk {
            Some(walk) => with_statistics(walk, plan, index, checkpoint, writer, &mut outcome, total, progress)?,
            None => without_statistics(checkpoint, plan, index, &mut packed, writer, &mut outcome, total, progress)?,
        };
        let activations = walk.as_ref().map(Walk::digest).transpose()?;
        let scalings = outcome.scalings.iter().filter(|record| record.block == index).cloned().collect();
        let value = serde_json::to_value(BlockUnit { linears: records, scalings, activations })
            .map_err(|error| Error::Recipe(format!("cannot note {unit} in the journal: {error}")))?;
        writer.commit_unit(&unit, value)?;
        memory::give_back();
    }
    Ok(outcome)
}

fn count_blocks(finished: &[(String, serde_json::Value)]) -> usize {
    finished.iter().filter(|(name, _)| name != REST).count()
}

/// Copies every tensor that no method changes.
fn copy_rest(checkpoint: &Checkpoint, plan: &Plan, writer: &mut CheckpointWriter) -> Result<()> {
    for view in checkpoint.tensors().filter(|view| !plan.replaces(view.name())) {
        if !plan.allow_nonfinite {
            refuse_nonfinite(view)?;
        }
        for (index, part) in view.bytes().chunks(COPY_BYTES).enumerate() {
            writer.write_at(view.name(), (index * COPY_BYTES) as u64, part)?;
        }
        view.release();
    }
    Ok(())
}

/// A weight as f32, checked.
pub(crate) fn read_weight(checkpoint: &Checkpoint, linear: &PlannedLinear, allow_nonfinite: bool) -> Result<Vec<f32>> {
    let view = checkpoint.tensor(&format!("{}.weight", linear.name))?;
    if !allow_nonfinite {
        refuse_nonfinite(&view)?;
    }
    let mut values = view.to_f32()?;
    view.release();
    if linear.transposed {
        let Layout { out_features, in_features, .. } = linear.layout;
        let stored = std::mem::take(&mut values);
        let row = |out: usize| (0..in_features).map(move |column| column * out_features + out);
        values = (0..out_features).flat_map(row).map(|at| stored[at]).collect();
    }
    Ok(values)
}

/// Compresses the linears of one group, which have the same methods, with what is known of their (scaled) inputs; writes
/// them, and returns their records and runnable forms.
fn compress_group(
    checkpoint: &Checkpoint,
    plan: &Plan,
    group: &[&PlannedLinear],
    scales: &BlockScales,
    stats: &GroupStats,
    writer: &mut CheckpointWriter,
    outcome: &mut Outcome,
) -> Result<Vec<(LinearRecord, Box<dyn Linear>)>> {
    let Some(first) = group.first() else { return Ok(Vec::new()) };
    let started = cpu_seconds();
    let read = |linear: &PlannedLinear, allow_nonfinite: bool| -> Result<Vec<f32>> {
        let mut values = read_weight(checkpoint, linear, allow_nonfinite)?;
        scales.apply(&linear.name, &mut values);
        Ok(values)
    };
    let mut values: Vec<Vec<f32>> =
        group.iter().map(|linear| read(linear, plan.allow_nonfinite)).collect::<Result<_>>()?;
    let mut compressed: Vec<Compressed> = Vec::new();
    for (turn, method) in plan.methods(first).enumerate() {
        let mut weights: Vec<Weight<'_>> = group
            .iter()
            .zip(&mut values)
            .map(|(linear, values)| Weight {
                name: &linear.name,
                out_features: linear.layout.out_features,
                in_features: linear.layout.in_features,
                values,
                keep_zeros: turn > 0,
            })
            .collect();
        let earlier = std::mem::replace(&mut compressed, method.compress(&mut weights, stats)?);
        for (earlier, now) in earlier.into_iter().zip(&mut compressed) {
            now.report.method = format!("{}+{}", earlier.report.method, now.report.method);
            now.report.seconds += earlier.report.seconds;
            now.report.escalations.splice(0..0, earlier.report.escalations);
            now.report.output_error = None; // it was measured against the pruned weight
        }
    }
    drop(values);
    outcome.phases.solve += cpu_seconds() - started;

    let mut done = Vec::new();
    for (linear, mut compressed) in group.iter().zip(compressed) {
        let started = cpu_seconds();
        for (name, bytes) in plan.format.encode(&linear.name, &compressed.weight, plan.float_dtype)? {
            if linear.transposed {
                let Layout { out_features, in_features, .. } = linear.layout;
                let size = bytes.len() / (out_features * in_features);
                writer.write(&name, &linear::transpose(&bytes, out_features, in_features, size))?;
            } else {
                writer.write(&name, &bytes)?;
            }
        }
        outcome.phases.write += cpu_seconds() - started;
        let started = cpu_seconds();
        let original = read(linear, true)?;
        let columns = linear.layout.in_features;
        let account = Account::of(&compressed.weight, plan, linear.transposed, |row, out| {
            out.copy_from_slice(&original[row * columns..][..columns]);
            Ok(())
        })?;
        if compressed.report.output_error.is_none() && plan.needs(linear).any() {
            compressed.report.output_error = stats.output_error(&original, &compressed.weight.dequantize());
        }
        drop(original);
        let record = LinearRecord {
            report: compressed.report,
            code: linear.layout.code,
            weight_error: account.loss.relative(),
            zeros: account.loss.zeros,
            weights: linear.layout.weights(),
            storage_bits: plan.storage_bits(linear),
            dequantised_sha256: account.sha256,
            calibration_tokens: None,
            warning: None,
        };
        outcome.phases.hash += cpu_seconds() - started;
        outcome.seconds.push((linear.name.clone(), record.report.seconds));
        let bias = scales.bias(checkpoint, &linear.name)?;
        done.push((record, plan.format.linear(&compressed.weight, bias, plan.float_dtype)?));
    }
    Ok(done)
}

/// One block by methods that look at weights alone; `packed` is room that is used again.
fn without_statistics(
    checkpoint: &Checkpoint,
    plan: &Plan,
    index: usize,
    packed: &mut Packed,
    writer: &mut CheckpointWriter,
    outcome: &mut Outcome,
    total: usize,
    progress: Progress<'_>,
) -> Result<Vec<LinearRecord>> {
    let mut records = Vec::new();
    for linear in plan.linears.iter().filter(|linear| linear.block == index) {
        if let Some(record) = round_and_pack(checkpoint, plan, linear, packed, writer, outcome)? {
            outcome.linears.push(record.clone());
            records.push(record);
            progress(outcome.linears.len(), total, &linear.name);
            continue;
        }
        let stats = GroupStats { in_features: linear.layout.in_features, ..GroupStats::default() };
        let done = compress_group(checkpoint, plan, &[linear], &BlockScales::default(), &stats, writer, outcome)?;
        records.extend(done.into_iter().map(|(record, _)| record));
        outcome.linears.push(records[records.len() - 1].clone());
        progress(outcome.linears.len(), total, &linear.name);
    }
    Ok(records)
}

/// The codes and scales of `packed`.
fn unpack(packed: &Packed, layout: &Layout, grid: GridCode, scale_dtype: ScaleDtype) -> Result<CompressedWeight> {
    let scale = |&bits: &u16| match scale_dtype {
        ScaleDtype::F16 => f16::from_bits(bits).to_f32(),
        _ => bf16::from_bits(bits).to_f32(),
    };
    Ok(CompressedWeight::Grid(Quantised {
        out_features: layout.out_features,
        in_features: layout.in_features,
        bits: grid.bits,
        group_size: grid.group_size,
        symmetric: grid.symmetric,
        scale_dtype,
        codes: pack::unpack_rows(&packed.words, layout.out_features, layout.in_features, grid.bits)?,
        scales: packed.scales.iter().map(scale).collect(),
        zeros: packed.zeros.clone(),
        g_idx: None,
    }))
}

/// Rounds a weight to nearest straight from the mapped file into packed words, where method, format and types allow it:
/// the same bytes as by way of [`compress_group`], at the speed of memory. `None` where they do not.
fn round_and_pack(
    checkpoint: &Checkpoint,
    plan: &Plan,
    linear: &PlannedLinear,
    packed: &mut Packed,
    writer: &CheckpointWriter,
    outcome: &mut Outcome,
) -> Result<Option<LinearRecord>> {
    let layout = linear.layout;
    let mut methods = plan.methods(linear);
    let (Some(method), None, Code::Grid(code)) = (methods.next(), methods.next(), layout.code) else { return Ok(None) };
    let Some(grid) = method.grid().filter(|_| method.name() == Rtn::NAME) else { return Ok(None) };
    if grid.search != Search::None
        || plan.format != Format::CompressedTensors
        || grid.scale_dtype == ScaleDtype::F32
        || linear.transposed
    {
        return Ok(None);
    }
    let view = checkpoint.tensor(&format!("{}.weight", linear.name))?;
    let shape = (layout.out_features, layout.in_features);
    let Some(weight) = InFile::of(&view).filter(|_| view.rows() == shape) else { return Ok(None) };
    let (started, wall) = (cpu_seconds(), Instant::now());
    match rtn_pack(&weight, &grid, packed) {
        Ok(()) => {}
        Err(Error::Numeric(error)) => {
            refuse_nonfinite(&view)?;
            return Err(Error::Numeric(format!("{}: linear `{}`: {error}", view.file().display(), linear.name)));
        }
        Err(error) => return Err(error),
    }
    outcome.phases.solve += cpu_seconds() - started;
    let seconds = wall.elapsed().as_secs_f64();
    outcome.seconds.push((linear.name.clone(), seconds));

    let started = cpu_seconds();
    for (name, bytes) in export::packed_tensors(&linear.name, &layout, code, packed)? {
        writer.write(&name, &bytes)?;
    }
    outcome.phases.write += cpu_seconds() - started;

    let started = cpu_seconds();
    let sha256 = plan.proof.then(|| {
        let q = unpack(packed, &layout, code, grid.scale_dtype)?;
        digest_rows(layout.out_features, layout.in_features, |row, out| {
            q.dequantize_row(row, out);
            Ok(())
        })
    });
    let (sha256, loss) = (sha256.transpose()?, packed.loss());
    view.release();
    let record = LinearRecord {
        report: LinearReport { seconds, ..LinearReport::new(&linear.name, method.name()) },
        code: layout.code,
        weight_error: loss.relative(),
        zeros: loss.zeros,
        weights: layout.weights(),
        storage_bits: plan.storage_bits(linear),
        dequantised_sha256: sha256,
        calibration_tokens: None,
        warning: None,
    };
    outcome.phases.hash += cpu_seconds() - started;
    Ok(Some(record))
}

/// Notes in the record of an expert's linear how many tokens it was calibrated on, and whether they can have spanned its
/// inputs: a sum of t products x xᵀ has at most rank t.
fn note_tokens(record: &mut LinearRecord, stats: &GroupStats) {
    record.calibration_tokens = Some(stats.tokens);
    if stats.hessian.is_none() || stats.tokens >= stats.in_features {
        return;
    }
    let inputs = stats.in_features;
    record.warning = Some(match stats.tokens {
        0 => "no calibration token was routed to it, so it was rounded as if all inputs were alike".into(),
        tokens => format!("{tokens} calibration tokens were routed to it, fewer than its {inputs} inputs"),
    });
    if stats.tokens == 0 {
        record.report.output_error = None; // of inputs that were never seen
    }
}

/// Compresses the next block of `walk`, number `index`, and leaves its outputs as those of the compressed block.
fn with_statistics(
    walk: &mut Walk<'_>,
    plan: &Plan,
    index: usize,
    checkpoint: &Checkpoint,
    writer: &mut CheckpointWriter,
    outcome: &mut Outcome,
    total: usize,
    progress: Progress<'_>,
) -> Result<Vec<LinearRecord>> {
    let at = |stage: Stage| plan.linears.iter().filter(move |linear| linear.is_at(index, stage));
    let needs = |stage| at(stage).fold(Needs::default(), |needs, linear| needs.and(plan.needs(linear)));
    let mut records = Vec::new();
    let mut started = cpu_seconds();
    let mut block = walk.load()?;
    let (scales, scalings) = match block.as_decoder() {
        Some(block) => scaling::search(checkpoint, plan, walk.set(), index, block, walk.input(), writer)?,
        None => Default::default(), // the plan has none
    };
    outcome.scalings.extend(scalings);
    outcome.phases.scale += cpu_seconds() - started;
    started = cpu_seconds();
    walk.block(block, &needs, &mut |block, stage, stats| {
        outcome.phases.calibrate += cpu_seconds() - started;
        // One call for each expert and chain of methods: linears of one group share its statistics.
        let expert = |linear: &PlannedLinear| linear.site.and_then(|site| site.expert);
        let parts: BTreeSet<(Option<usize>, &[usize])> =
            at(stage).map(|linear| (expert(linear), &linear.methods[..])).collect();
        let mut finished = Vec::new();
        for (of_expert, methods) in parts {
            let group: Vec<&PlannedLinear> =
                at(stage).filter(|linear| (expert(linear), &linear.methods[..]) == (of_expert, methods)).collect();
            let stats = &stats[of_expert.unwrap_or(0)];
            let done = compress_group(checkpoint, plan, &group, &scales, stats, writer, outcome)?;
            for (linear, (mut record, weight)) in group.iter().zip(done) {
                if of_expert.is_some() {
                    note_tokens(&mut record, stats);
                }
                let index = linear.site.map_or(0, |site| site.index);
                block.replace(stage, index, weight);
                finished.push((index, record));
                progress(outcome.linears.len() + finished.len(), total, &linear.name);
            }
        }
        finished.sort_by_key(|(index, _)| *index); // the plan's order, whatever the methods'
        for (_, record) in finished {
            outcome.linears.push(record.clone());
            records.push(record);
        }
        started = cpu_seconds();
        Ok(())
    })?;
    outcome.phases.calibrate += cpu_seconds() - started;
    Ok(records)
}
