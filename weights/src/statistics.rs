//! Statistics of tensors, in one pass over their bytes.
//!
//! ```text
//! TensorView ─ segments of 8 MiB, a thread each ─► patterns counted · sums of powers · energies of rows and columns
//!            ─ merged in order ─► TensorStatistics
//! ```
//!
//! A tensor is split by its shape alone and parts are merged in their order, so the numbers do not depend on how many
//! threads there are. Bytes pass through a small buffer: memory does not grow with the tensor.
//!
//! Everything is computed from the values as f32 (an f64 is rounded first); numbers that are not finite are counted and
//! left out. Integer tensors are taken as the numbers they hold.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    ops::Range,
    sync::Mutex,
};

use rayon::prelude::*;
use serde::Serialize;

use crate::{Dtype, Result, TensorView};

mod histogram;
mod lines;
mod moments;

use histogram::{Codes, Histogram, Totals};
use lines::Energies;
use moments::{BLOCK, Frame, Sums};

/// The shares of [`TensorStatistics::quantiles`].
pub const LEVELS: [f64; 7] = [0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 0.999];

/// A column or row is an outlier from this many times the median energy on: five times the usual magnitude.
pub const OUTLIER_ENERGY: f64 = 25.0;

/// Bytes one thread reads before it takes the next part of a tensor.
const SEGMENT: usize = 8 << 20;

/// Bytes read at a time.
const WINDOW: usize = 256 << 10;

/// Tensors of at most this many numbers are sorted; larger ones are counted by patterns.
const SORTED: usize = 1 << 14;

/// Rows and columns beyond this many are not told apart: their sums would take more memory than they are worth.
const MAX_LINES: usize = 1 << 22;

/// Columns of a matrix below which two equal rows mean nothing.
const LEAST_COLUMNS: usize = 8;

/// Lines listed by number; all are counted.
const LISTED: usize = 16;

thread_local! {
    /// Counts of the segment at hand; zero between segments.
    static HISTOGRAM: RefCell<Histogram> = RefCell::default();

    /// Where a window of a file is read to.
    static WINDOWS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Moments and extremes of the finite numbers of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Moments {
    /// Finite numbers.
    pub count: u64,
    /// NaN.
    pub nan: u64,
    /// Infinities.
    pub infinite: u64,
    /// Zeros of either sign.
    pub zeros: u64,
    /// Mean; like all that follow 0 where there are no finite numbers.
    pub mean: f64,
    /// Standard deviation: √(Σ(x − mean)² / count).
    pub std: f64,
    /// Least number.
    pub min: f64,
    /// Greatest number.
    pub max: f64,
    /// Σ|x|.
    pub l1: f64,
    /// √Σx².
    pub l2: f64,
    /// Third standardised moment; 0 where all numbers are the same.
    pub skewness: f64,
    /// Fourth standardised moment: 3 for normal numbers, 1.8 for uniform ones; 0 where all numbers are the same.
    pub kurtosis: f64,
}

impl Moments {
    fn of(sums: &Sums, frame: Frame) -> Self {
        let mut moments = Self {
            count: sums.count,
            nan: sums.nan,
            infinite: sums.infinite,
            zeros: sums.zeros,
            mean: 0.0,
            std: 0.0,
            min: 0.0,
            max: 0.0,
            l1: sums.l1,
            l2: 0.0,
            skewness: 0.0,
            kurtosis: 0.0,
        };
        if sums.count == 0 {
            return moments;
        }
        moments.min = f64::from(sums.min);
        moments.max = f64::from(sums.max);
        if sums.min == sums.max {
            moments.mean = moments.min;
            moments.l2 = moments.min.abs() * (sums.count as f64).sqrt();
            return moments;
        }
        let [m1, m2, m3, m4] = sums.powers.map(|sum| sum / sums.count as f64);
        let (scale, pivot) = (f64::from(frame.scale), -f64::from(frame.offset) / f64::from(frame.scale));
        let variance = (m2 - m1 * m1).max(0.0);
        moments.mean = m1 / scale + pivot;
        moments.std = variance.sqrt() / scale;
        moments.l2 = (sums.count as f64 * (moments.std * moments.std + moments.mean * moments.mean)).sqrt();
        if variance > 0.0 {
            moments.skewness = (m3 - 3.0 * m1 * m2 + 2.0 * m1.powi(3)) / variance.powf(1.5);
            moments.kurtosis = (m4 - 4.0 * m1 * m3 + 6.0 * m1 * m1 * m2 - 3.0 * m1.powi(4)) / (variance * variance);
        }
        moments
    }
}

/// All that one pass tells about a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorStatistics {
    /// Moments and extremes.
    #[serde(flatten)]
    pub moments: Moments,
    /// Numbers below the least normal one of the tensor's type; known for f32, f16 and bf16.
    pub denormals: Option<u64>,
    /// Index, in the flattened tensor, of the first number that is not finite.
    pub first_nonfinite: Option<u64>,
    /// For each of [`LEVELS`] the least number with at least that share of all at or below it; empty without finite
    /// numbers.
    pub quantiles: Vec<f64>,
    /// Largest error of a quantile as a share of its value; 0 where they are exact.
    pub quantile_error: f64,
    /// Its rows, if it is a matrix of real numbers.
    pub rows: Option<Lines>,
    /// Its columns, likewise.
    pub columns: Option<Lines>,
}

/// What is odd about the rows, or the columns, of a matrix.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Lines {
    /// How many there are.
    pub count: usize,
    /// Those of zeros alone.
    pub dead: Found,
    /// Rows that equal an earlier one, which has the same place in `originals`; not looked for in columns.
    pub duplicated: Found,
    /// The rows that the listed ones of `duplicated` repeat.
    pub originals: Vec<usize>,
    /// Those with more than [`OUTLIER_ENERGY`] times the median energy, greatest first.
    pub outliers: Found,
    /// The share of the tensor's energy (Σx²) that the outliers carry.
    pub outlier_energy: f64,
    /// The share that the most energetic 1 % (at least one line) carry; 0.01 where all are alike.
    pub top_energy: f64,
}

/// Lines with a property: how many, and the first by number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    /// How many there are.
    pub count: usize,
    /// At most the first 16.
    pub first: Vec<usize>,
}

impl Found {
    fn push(&mut self, line: usize) {
        self.count += 1;
        if self.first.len() < LISTED {
            self.first.push(line);
        }
    }
}

/// The tensor as rows: (rows, columns). A convolution's kernel counts as columns, (out, in · height · width); experts
/// fused into one tensor count as more rows.
pub fn matrix(shape: &[usize]) -> (usize, usize) {
    /// Numbers of a kernel (height · width · depth) beyond which the dimensions are not those of a convolution.
    const LARGEST_KERNEL: usize = 512;
    match shape {
        [] => (1, 1),
        [n] => (1, *n),
        [out, inputs, kernel @ ..] if kernel.iter().product::<usize>() <= LARGEST_KERNEL => {
            (*out, inputs * kernel.iter().product::<usize>())
        }
        [rest @ .., last] => (rest.iter().product(), *last),
    }
}

/// Moments and extremes of `view`: the fast part of [`statistics`].
///
/// # Errors
/// If the tensor cannot be decoded.
pub fn moments(view: &TensorView) -> Result<Moments> {
    let frame = frame(view)?;
    let (parts, sums): (Vec<_>, _) = (segments(view, 1), Sums::NONE);
    let parts: Vec<Sums> = parts
        .into_par_iter()
        .map(|segment| {
            let mut sums = Sums::NONE;
            if view.dtype() == Dtype::Bf16 {
                windows(view, segment, BLOCK, |stored| {
                    sums.add_bf16(stored, frame);
                    Ok(())
                })?;
            } else {
                stream(view, segment, 1, |values, _| sums.add(values, frame))?;
            }
            Ok(sums)
        })
        .collect::<Result<_>>()?;
    let sums = parts.iter().fold(sums, |mut sums, part| {
        sums.merge(part);
        sums
    });
    Ok(Moments::of(&sums, frame))
}

/// All statistics of `view`.
///
/// # Errors
/// If the tensor cannot be decoded.
pub fn statistics(view: &TensorView) -> Result<TensorStatistics> {
    let frame = frame(view)?;
    let (rows, columns) = matrix(view.shape());
    let is_matrix = view.dtype().is_float() && rows > 1 && columns > 1 && rows.max(columns) <= MAX_LINES;
    let width = if is_matrix { columns } else { 1 };
    let codes = match view.dtype() {
        _ if view.elements() <= SORTED => None,
        Dtype::F16 => Some(Codes::F16),
        Dtype::Bf16 => Some(Codes::Bf16),
        _ => Some(Codes::Upper),
    };
    // Counts are whole numbers, so the order in which segments add them does not matter.
    let totals = codes.map(|codes| Mutex::new(Totals::new(codes)));
    let parts: Vec<Part> = segments(view, width)
        .into_par_iter()
        .map(|segment| {
            let mut sums = Sums::NONE;
            let mut sorted = Vec::new();
            let mut energies = is_matrix.then(|| Energies::new(columns));
            HISTOGRAM.with_borrow_mut(|histogram| {
                let outcome = stream(view, segment, width, |values, bytes| {
                    match codes {
                        None => sorted.extend_from_slice(values),
                        Some(Codes::Upper) => histogram.add_upper(values),
                        Some(_) => histogram.add_codes(bytes),
                    }
                    if matches!(codes, None | Some(Codes::Upper)) {
                        sums.add(values, frame);
                    }
                    if let Some(energies) = &mut energies {
                        energies.add(values);
                    }
                });
                if let Some(totals) = &totals {
                    histogram.move_to(&mut totals.lock().expect("no thread panics while it adds"));
                }
                outcome
            })?;
            if let Some(energies) = &mut energies {
                energies.finish();
            }
            Ok(Part { sums, sorted, energies })
        })
        .collect::<Result<_>>()?;
    let mut part = parts.into_iter().reduce(Part::merge).expect("a tensor has at least one segment");
    let totals = totals.map(|totals| totals.into_inner().expect("no thread panics while it adds"));

    let (quantiles, exact) = match &totals {
        Some(totals) => (totals.quantiles(&LEVELS), totals.is_exact()),
        None => {
            part.sorted.retain(|x| x.is_finite());
            part.sorted.sort_by(f32::total_cmp);
            let at = |level: &f64| f64::from(part.sorted[rank(*level, part.sorted.len() as u64) as usize]);
            (if part.sorted.is_empty() { Vec::new() } else { LEVELS.iter().map(at).collect() }, true)
        }
    };
    let sums = match &totals {
        Some(totals) if codes != Some(Codes::Upper) => totals.sums(frame),
        _ => part.sums,
    };
    let native = matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::Bf16);
    let denormals = match (&totals, view.dtype()) {
        // Sorted halves were counted as the f32 numbers they became.
        (None, Dtype::F16) => {
            let small = |x: &&f32| x.abs() < f32::from(half::f16::MIN_POSITIVE) && **x != 0.0;
            Some(part.sorted.iter().filter(small).count() as u64)
        }
        _ => native.then_some(sums.denormals),
    };
    let first_nonfinite = if sums.nan + sums.infinite > 0 { view.nonfinite().map(|(at, _)| at as u64) } else { None };
    let (rows, columns) = match part.energies {
        Some(energies) => {
            let mut rows = lines(&energies.rows, &dead(&energies.rows));
            duplicates(view, &energies, &mut rows);
            let dead = dead_columns(view, &energies.columns, width)?;
            (Some(rows), Some(lines(&energies.columns, &dead)))
        }
        None => (None, None),
    };
    Ok(TensorStatistics {
        moments: Moments::of(&sums, frame),
        denormals,
        first_nonfinite,
        quantiles,
        quantile_error: if exact { 0.0 } else { histogram::BIN },
        rows,
        columns,
    })
}

/// What one segment gives.
struct Part {
    sums: Sums,
    sorted: Vec<f32>,
    energies: Option<Energies>,
}

impl Part {
    /// Joins the part that follows.
    fn merge(mut self, following: Self) -> Self {
        self.sums.merge(&following.sums);
        self.sorted.extend(following.sorted);
        if let (Some(energies), Some(other)) = (&mut self.energies, following.energies) {
            energies.merge(other);
        }
        self
    }
}

/// The index, in ascending order, of the least of `total` numbers with at least the share `level` at or below it.
fn rank(level: f64, total: u64) -> u64 {
    ((level * total as f64).ceil() as u64).clamp(1, total.max(1)) - 1
}

/// A frame from numbers spread over the whole tensor.
fn frame(view: &TensorView) -> Result<Frame> {
    const PLACES: usize = 16;
    const NUMBERS: usize = 256; // whole blocks of every type
    let (block, size) = view.dtype().block();
    let elements = view.elements();
    let mut sample = Vec::with_capacity(PLACES * NUMBERS);
    let mut stored = Vec::new();
    for place in 0..PLACES {
        let start = elements / PLACES * place / NUMBERS * NUMBERS;
        let end = (start + NUMBERS).min(elements);
        let at = sample.len();
        sample.resize(at + end - start, 0.0);
        stored.resize((end - start) / block * size, 0);
        view.shard.read_at(view.range.start + start / block * size, &mut stored)?;
        decode(view, &stored, &mut sample[at..])?;
    }
    Ok(Frame::of(&sample))
}

/// The parts of a tensor that threads take, in elements: whole rows of `width`, by its shape alone.
fn segments(view: &TensorView, width: usize) -> Vec<Range<usize>> {
    let elements = view.elements();
    let (block, size) = view.dtype().block();
    let unit = if width == 1 { BLOCK } else { width };
    // Parts hold at most 2³¹ numbers, so that counts of 32 bits suffice, and there are at most 64 of them otherwise.
    let wanted = (SEGMENT / size * block).max(elements / 64).min(1 << 31);
    let step = (wanted / unit).max(1) * unit;
    // Without elements there is one part, which is empty.
    (0..elements.max(1)).step_by(step).map(|start| start..(start + step).min(elements)).collect()
}

/// Reads `segment` of `view` window by window (whole units of `unit` elements) and hands each to `take` as it is stored.
/// What is read at once fits the second-level cache.
fn windows(
    view: &TensorView,
    segment: Range<usize>,
    unit: usize,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let (block, size) = view.dtype().block();
    let bytes = |elements: usize| elements / block * size;
    let window = (WINDOW / size * block / unit).max(1) * unit;
    WINDOWS.with_borrow_mut(|buffer| {
        let length = bytes(window.min(segment.len()));
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        for start in segment.clone().step_by(window) {
            let stored = &mut buffer[..bytes(window.min(segment.end - start))];
            view.shard.read_at(view.range.start + bytes(start), stored)?;
            take(stored)?;
        }
        Ok(())
    })
}

/// Decodes `segment` of `view` piece by piece (whole rows of `width`) and hands each piece to `take`, as f32 and as it
/// is stored. A piece fits the first-level cache, unless a row does not.
fn stream(view: &TensorView, segment: Range<usize>, width: usize, mut take: impl FnMut(&[f32], &[u8])) -> Result<()> {
    let (block, size) = view.dtype().block();
    let (unit, piece) = if width == 1 { (BLOCK, BLOCK) } else { (width, (BLOCK / width).max(1) * width) };
    let mut values = vec![0.0; piece.min(segment.len())];
    windows(view, segment, unit, |stored| {
        for stored in stored.chunks(piece / block * size) {
            let values = &mut values[..stored.len() / size * block];
            decode(view, stored, values)?;
            take(values, stored);
        }
        Ok(())
    })
}

fn decode(view: &TensorView, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    if view.dtype() == Dtype::Bf16 {
        moments::widen_bf16(bytes, out);
        return Ok(());
    }
    crate::decode::to_f32(view.dtype(), bytes, out).map_err(|what| view.error(what))
}

/// Lines without energy.
fn dead(energies: &[f64]) -> Vec<usize> {
    (0..energies.len()).filter(|&line| energies[line] == 0.0).collect()
}

/// Columns of zeros alone. A column's energy can vanish in f32 although its numbers do not, so those without energy are
/// looked at again.
fn dead_columns(view: &TensorView, energies: &[f64], width: usize) -> Result<Vec<usize>> {
    let mut candidates = dead(energies);
    if candidates.is_empty() {
        return Ok(candidates);
    }
    stream(view, 0..view.elements(), width, |values, _| {
        for row in values.chunks_exact(width) {
            candidates.retain(|&column| row[column] == 0.0);
        }
    })?;
    Ok(candidates)
}

/// What the energies of lines tell, given those that are dead.
fn lines(energies: &[f64], dead: &[usize]) -> Lines {
    let mut lines = Lines { count: energies.len(), ..Lines::default() };
    dead.iter().for_each(|&line| lines.dead.push(line));
    let total: f64 = energies.iter().sum();
    let mut order: Vec<usize> = (0..energies.len()).filter(|&line| energies[line] > 0.0).collect();
    if order.is_empty() {
        return lines;
    }
    order.sort_by(|&a, &b| energies[b].total_cmp(&energies[a]).then(a.cmp(&b)));
    let limit = OUTLIER_ENERGY * energies[order[order.len() / 2]];
    let outliers = order.iter().take_while(|&&line| energies[line] > limit).count();
    lines.outliers = Found { count: outliers, first: order[..outliers.min(LISTED)].to_vec() };
    let share = |lines: &[usize]| (lines.iter().map(|&line| energies[line]).sum::<f64>() / total).min(1.0);
    lines.outlier_energy = share(&order[..outliers]);
    lines.top_energy = share(&order[..energies.len().div_ceil(100).min(order.len())]);
    lines
}

/// Finds rows that equal an earlier one. Equal rows have equal energies and sums, to the bit; among such, equal hashes,
/// and then the bytes decide.
fn duplicates(view: &TensorView, energies: &Energies, rows: &mut Lines) {
    let columns = energies.columns.len();
    let Some(size) = view.dtype().bytes(columns).filter(|_| columns >= LEAST_COLUMNS) else { return };
    let row = |at: usize| &view.bytes()[at * size..(at + 1) * size];
    let key = |row: usize| (energies.rows[row].to_bits(), energies.sums[row].to_bits());
    let mut order: Vec<usize> = (0..rows.count).filter(|&row| energies.rows[row] > 0.0).collect();
    order.sort_unstable_by_key(|&row| (key(row), row));
    /// Rows of which each may be compared with each.
    const FEW: usize = 8;
    /// Bytes compared before the pages they lie in are given back.
    const TOUCHED: usize = 16 << 20;
    let (mut found, mut touched) = (Vec::new(), 0);
    for group in order.chunk_by(|&a, &b| key(a) == key(b)).filter(|group| group.len() > 1) {
        let mut seen: HashMap<u64, Vec<usize>> = HashMap::new();
        for &at in group {
            // Few rows are compared at once; many may differ all, such as those of a permutation.
            let mut hasher = DefaultHasher::new();
            if group.len() > FEW {
                row(at).hash(&mut hasher);
            }
            let alike = seen.entry(hasher.finish()).or_default();
            match alike.iter().find(|&&earlier| row(earlier) == row(at)) {
                Some(&earlier) => found.push((at, earlier)),
                None => alike.push(at),
            }
        }
        touched += group.len() * size;
        if touched > TOUCHED {
            view.release();
            touched = 0;
        }
    }
    if touched > 0 {
        view.release();
    }
    found.sort_unstable();
    for (at, earlier) in found {
        rows.duplicated.push(at);
        if rows.originals.len() < LISTED {
            rows.originals.push(earlier);
        }
    }
}

/// Tensors that hold the same bytes, as groups of indices into `tensors`. Only tensors of equal type, shape and moments
/// are hashed. Tensors of one repeated number (norms of ones, biases of zeros) are alike by nature and left out.
pub fn identical(tensors: &[(&TensorView, &Moments)]) -> Vec<Vec<usize>> {
    let mut alike: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (index, (view, moments)) in tensors.iter().enumerate() {
        let repeats = moments.min == moments.max && moments.nan + moments.infinite == 0;
        if view.elements() > 0 && !repeats {
            let figures = [moments.mean, moments.l1, moments.l2, moments.kurtosis].map(f64::to_bits);
            alike.entry((view.dtype(), view.shape(), figures)).or_default().push(index);
        }
    }
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for candidates in alike.into_values().filter(|candidates| candidates.len() > 1) {
        let hashes: Vec<String> = candidates
            .par_iter()
            .map(|&index| {
                let hash = tensors[index].0.sha256();
                tensors[index].0.release();
                hash
            })
            .collect();
        let mut same: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (hash, index) in hashes.iter().zip(candidates) {
            same.entry(hash).or_default().push(index);
        }
        groups.extend(same.into_values().filter(|group| group.len() > 1));
    }
    groups.sort();
    groups
}

#[cfg(test)]
mod tests;
