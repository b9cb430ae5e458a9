//! A pool for a trained model: the least-squares projection of its weights.
//!
//! ```text
//! ψ_j = Σ over i in slot j of λ_i g_i w_i / d_j
//! ```
//!
//! Signs are drawn without a look at the weights, so of any weights a share of about 1 − m/n of their squares is lost: at
//! half the size seven tenths of the norm. What comes out is where fine-tuning may start; it is not a model to use.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    path::Path,
};

use half::{bf16, f16};
use rayon::prelude::*;
use scruple_weights::{Checkpoint, Dtype, TensorView};
use serde::Serialize;

use super::{
    advice::{Advice, advise},
    expand::copy_beside,
    file::{Described, PIECE, PSI, Target, Tied, Untouched, expand_tensor, is_shareable, rounded},
    fold::ALIGN,
    modules::{Choice, Scales, Sharing, Size},
    pool::accumulate_f64,
    report::Report,
};
use crate::{Error, Result};

/// Bytes of a tensor's beginning by which possible twins are told apart before they are read whole.
const BEGINNING: usize = 4096;

/// How a model is projected.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Which tensors share.
    pub choice: Choice,
    /// How large the pool is.
    pub size: Size,
    /// What rotations are multiples of: 16 or 64.
    pub align: usize,
    /// The one seed.
    pub seed: u64,
    /// How scales follow from weights.
    pub scales: Scales,
    /// What ψ is stored in: f32, f16 or bf16.
    pub psi_dtype: Dtype,
    /// Whether a model may be written that nobody evaluated and that is far from its source.
    pub allow_lossy: bool,
    /// Whether codes and factors of the same bytes are tried beside the pool.
    pub advise: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            choice: Choice::default(),
            size: Size::Rate(2.0),
            align: ALIGN,
            seed: 0,
            scales: Scales::default(),
            psi_dtype: Dtype::F32,
            allow_lossy: false,
            advise: true,
        }
    }
}

/// How far a tensor is from its source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorError {
    /// Its name.
    pub name: String,
    /// λ.
    pub scale: f32,
    /// ‖w − ŵ‖ / ‖w‖; 0 for a tensor of zeros.
    pub relative_error: f64,
}

/// What a projection made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Projected {
    /// ‖w − ŵ‖ / ‖w‖ over all weights that share.
    pub relative_error: f64,
    /// √(1 − 1/c), what it is expected to be at equal scales.
    pub expected_error: f64,
    /// Whether every weight came back bit for bit.
    pub lossless: bool,
    /// Of each tensor that shares.
    pub tensors: Vec<TensorError>,
    /// Tensors equal to another that shares; stored once.
    pub tied: Vec<Tied>,
    /// What else the pool's bytes would hold, where weights are lost and it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<Advice>,
    /// Sizes, load and buckets.
    pub report: Report,
    /// Hash of the source's tensors; see [`Checkpoint::fingerprint`].
    pub source_fingerprint: String,
}

/// What makes the files (names and contents) that are written beside a model, from what was found.
pub type Beside<'a> = dyn Fn(&Projected) -> Result<Vec<(String, Vec<u8>)>> + 'a;

/// Projects `checkpoint` on a pool and writes the model with it into the folder `out`, which must not exist; without `out`
/// nothing is written, and the same is said. Files beside the weights are copied, and `files` added. `progress` hears (passes over the weights done, passes in all).
///
/// # Errors
/// Options that do not suit the model, weights that are not finite, a loss that was not allowed, an output that exists or
/// does not fit on its disk.
pub fn project(
    checkpoint: &Checkpoint,
    out: Option<&Path>,
    options: &Options,
    files: &Beside,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Projected> {
    check(options)?;
    let psi_dtype = options.psi_dtype;
    options.choice.check(&checkpoint.tensors().map(TensorView::name).collect::<Vec<_>>())?;
    if let Some(view) = checkpoint.get(PSI) {
        return Err(view.error("already is a pool that weights share; give the dense model").into());
    }
    let takes = |view: &&TensorView| is_shareable(view.dtype()) && options.choice.takes(view.name(), view.shape());
    let (shared, tied) = once(checkpoint.tensors().filter(takes).cloned().collect());
    // A size that does not suit is refused before the weights are read for their scales.
    let tensors = shared.iter().map(|view| (view.name().into(), view.shape().to_vec(), 1.0));
    let mut sharing = Sharing::new(tensors.collect(), options.size, options.align, options.seed)?;
    let scales = shared.par_iter().map(|view| Ok(options.scales.of(rms(view)?))).collect::<Result<Vec<f32>>>()?;
    sharing.modules.iter_mut().zip(scales).for_each(|(module, scale)| module.scale = scale);
    let fold = &sharing.fold;
    if out.is_some() && fold.slots() < fold.weights() && !options.allow_lossy {
        return Err(Error::Recipe(format!(
            "projecting {} weights on {} slots is expected to change them by {:.1} % of their norm, which makes a starting \
             point for fine-tuning and not a usable model; pass --allow-lossy to write it",
            fold.weights(),
            fold.slots(),
            100.0 * fold.expected_error()
        )));
    }
    progress(1, 3);
    let psi = least_squares(&sharing, &shared, psi_dtype)?;
    progress(2, 3);
    let compared = sharing
        .modules
        .par_iter()
        .zip(&shared)
        .map(|(module, view)| compare(&sharing, &psi, module, view))
        .collect::<Result<Vec<Compared>>>()?;
    progress(3, 3);

    let targets: Vec<Target> = shared
        .iter()
        .zip(&compared)
        .map(|(view, found)| Target { dtype: view.dtype(), sha256: found.sha256.clone() })
        .collect();
    let names = shared.iter().map(TensorView::name).chain(tied.iter().map(|tied| tied.name.as_str()));
    let names: HashSet<&str> = names.collect();
    let copied: Vec<&TensorView> = checkpoint.tensors().filter(|view| !names.contains(view.name())).collect();
    let relative = |error: f64, norm: f64| if norm > 0.0 { (error / norm).sqrt() } else { 0.0 };
    let sum = |part: &dyn Fn(&Compared) -> f64| compared.iter().map(part).sum::<f64>();
    let report = Report::new(&sharing, &targets, &tied, psi_dtype, copied.iter().copied());
    let (relative_error, lossless) =
        (relative(sum(&|found| found.error), sum(&|found| found.norm)), compared.iter().all(|found| found.same));
    let advice = match options.advise && !lossless {
        true => Some(advise(&shared, report.pool_bytes, psi_dtype.bytes(1).unwrap_or(1), relative_error)?),
        false => None,
    };
    let projected = Projected {
        relative_error,
        advice,
        expected_error: fold.expected_error(),
        lossless,
        tensors: sharing
            .modules
            .iter()
            .zip(&compared)
            .map(|(module, found)| TensorError {
                name: module.name.clone(),
                scale: module.scale,
                relative_error: relative(found.error, found.norm),
            })
            .collect(),
        report,
        tied,
        source_fingerprint: checkpoint.fingerprint(),
    };
    if let Some(out) = out {
        let untouched = copied.iter().map(|view| Untouched {
            name: view.name().into(),
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: Cow::Borrowed(view.bytes()),
        });
        let described = Described { sharing: &sharing, targets: &targets, tied: &projected.tied, psi: &psi, psi_dtype };
        let mut writer = described.write(out, checkpoint.metadata().clone(), &untouched.collect::<Vec<_>>())?;
        copied.iter().for_each(|view| view.release());
        checkpoint.expect_unchanged()?;
        copy_beside(checkpoint, &mut writer)?;
        for (name, bytes) in files(&projected)? {
            writer.add_file(&name, &bytes)?;
        }
        writer.finish()?;
    }
    Ok(projected)
}

fn check(options: &Options) -> Result<()> {
    if !matches!(options.align, 16 | 64) {
        return Err(Error::Recipe(format!("the alignment is {}, expected 16 or 64", options.align)));
    }
    if !is_shareable(options.psi_dtype) {
        return Err(Error::Recipe(format!(
            "a pool cannot be stored in {}, only in F32, F16 or BF16",
            options.psi_dtype
        )));
    }
    Ok(())
}

/// The tensors that are no copies of an earlier one, and those that are.
fn once(views: Vec<TensorView>) -> (Vec<TensorView>, Vec<Tied>) {
    let mut alike: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (at, view) in views.iter().enumerate() {
        let beginning = &view.bytes()[..view.bytes().len().min(BEGINNING)];
        alike.entry((view.dtype(), view.shape(), beginning)).or_default().push(at);
    }
    let mut same: Vec<Option<usize>> = vec![None; views.len()];
    for candidates in alike.into_values().filter(|candidates| candidates.len() > 1) {
        let mut first: BTreeMap<String, usize> = BTreeMap::new();
        for at in candidates {
            let earlier = *first.entry(views[at].sha256()).or_insert(at);
            same[at] = (earlier != at).then_some(earlier);
        }
    }
    let tied = same
        .iter()
        .enumerate()
        .filter_map(|(at, of)| of.map(|of| Tied { name: views[at].name().into(), of: views[of].name().into() }));
    let tied = tied.collect();
    let kept = views.iter().zip(&same).filter(|(_, of)| of.is_none()).map(|(view, _)| view.clone()).collect();
    (kept, tied)
}

/// Runs `body` over (first weight, values) of `view` by pieces of whole rows.
pub(super) fn by_pieces(view: &TensorView, body: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
    by_pieces_of(view, 1, body)
}

/// The same where `together` rows, of which the tensor has a whole number of times as many, are never parted.
pub(super) fn by_pieces_of(
    view: &TensorView,
    together: usize,
    mut body: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    let (rows, columns) = view.rows();
    let at_once = (PIECE / (together * columns).max(1)).max(1) * together;
    let at_once = at_once.clamp(1, rows.max(1));
    let mut values = vec![0.0; at_once * columns];
    for first in (0..rows).step_by(at_once) {
        let last = rows.min(first + at_once);
        let values = &mut values[..(last - first) * columns];
        view.read_rows(first..last, values)?;
        body(first * columns, values)?;
    }
    Ok(())
}

fn rms(view: &TensorView) -> Result<f64> {
    if let Some((at, value)) = view.nonfinite() {
        let what = format!("holds {value} at index {at}; weights that share must be finite, exclude it or repair it");
        return Err(view.error(what).into());
    }
    let mut squares = 0.0;
    by_pieces(view, |_, values| {
        squares += values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
        Ok(())
    })?;
    Ok((squares / view.elements().max(1) as f64).sqrt())
}

/// ψ as it will be stored.
fn least_squares(sharing: &Sharing, views: &[TensorView], dtype: Dtype) -> Result<Vec<f32>> {
    // Not 0: a slot all of whose weights are −0 keeps their sign, and −0 + x is x for every x.
    let mut sums = vec![-0.0f64; sharing.fold.slots()];
    for (module, view) in sharing.modules.iter().zip(views) {
        by_pieces(view, |first, values| {
            accumulate_f64(&sharing.fold, values, module.scale, module.offset + first, &mut sums);
            Ok(())
        })?;
        view.release();
    }
    let stored = |value: f64| rounded(dtype, value as f32);
    let psi: Vec<f32> = sums.into_iter().zip(sharing.squares()).map(|(sum, square)| stored(sum / square)).collect();
    match psi.iter().position(|value| !value.is_finite()) {
        Some(slot) => Err(Error::Numeric(format!(
            "slot {slot} of the pool would hold a number beyond what {dtype} can; store the pool in F32"
        ))),
        None => Ok(psi),
    }
}

/// A tensor as it expands, beside its source.
struct Compared {
    sha256: String,
    error: f64,
    norm: f64,
    same: bool,
}

fn compare(sharing: &Sharing, psi: &[f32], module: &super::Module, view: &TensorView) -> Result<Compared> {
    let (mut error, mut norm, mut same) = (0.0, 0.0, true);
    let width = view.dtype().bytes(1).unwrap_or(1);
    let sha256 = expand_tensor(sharing, psi, module, view.dtype(), |first, bytes| {
        let source = &view.bytes()[first * width..][..bytes.len()];
        same &= source == bytes;
        for (found, source) in bytes.chunks_exact(width).zip(source.chunks_exact(width)) {
            let (found, source) = (value(view.dtype(), found), value(view.dtype(), source));
            if !found.is_finite() {
                let what = format!("would have to hold {found}, which is no number; share it with tensors of its kind");
                return Err(Error::Weights(view.error(what)));
            }
            error += (source - found).powi(2);
            norm += source * source;
        }
        Ok(())
    })?;
    view.release();
    Ok(Compared { sha256, error, norm, same })
}

/// The number that the bytes of one element are.
fn value(dtype: Dtype, bytes: &[u8]) -> f64 {
    match (dtype, bytes) {
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).into(),
        (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).into(),
        (Dtype::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).into(),
        (other, _) => unreachable!("{other} cannot share"),
    }
}
