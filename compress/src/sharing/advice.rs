//! What a projection competes with: codes and thin factors of the same weights in the same bytes.
//!
//! A pool without training loses a share of 1 − m/n of the squared norm. Rounding to a few bits and cutting small singular
//! values look at the weights, and lose less at every rate that was tried; this says how much, for the weights at hand.

use rayon::prelude::*;
use scruple_weights::{TensorView, linalg};
use serde::Serialize;

use super::project::{by_pieces, by_pieces_of};
use crate::{
    Result,
    grid::{self, GridSpec, ScaleDtype, Search},
};

/// Widths of codes, widest first.
const WIDTHS: [u32; 4] = [8, 4, 3, 2];

/// Weights that share a scale of a code, where they divide a row.
const GROUP: usize = 128;

/// Multiply-adds of all Gram matrices together up to which singular values are computed: a few seconds.
const MOST_WORK: u128 = 10_000_000_000;

/// Another form of the weights that share, in no more bytes than the pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rival {
    /// What it is: `4 bits`, `low rank`.
    pub name: String,
    /// Bytes it takes.
    pub bytes: u64,
    /// ‖w − ŵ‖ / ‖w‖ over all of them.
    pub relative_error: f64,
}

/// What stands beside a projection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Advice {
    /// Bytes of the pool.
    pub pool_bytes: u64,
    /// The relative error of the projection.
    pub relative_error: f64,
    /// Others in no more bytes; empty where none is as small.
    pub rivals: Vec<Rival>,
}

impl Advice {
    /// The rival that is nearest to the weights, if it is nearer than the projection.
    pub fn better(&self) -> Option<&Rival> {
        let best = self.rivals.iter().min_by(|a, b| a.relative_error.total_cmp(&b.relative_error));
        best.filter(|best| best.relative_error < self.relative_error)
    }

    /// The advice in a sentence.
    pub fn sentence(&self) -> String {
        let others =
            self.rivals.iter().map(|rival| format!("{} is {:.1} % off", rival.name, 100.0 * rival.relative_error));
        let others: Vec<String> = others.collect();
        let sharing = format!("the pool is {:.1} % off", 100.0 * self.relative_error);
        match (self.better(), others.is_empty()) {
            (Some(better), _) => {
                format!("in the pool's bytes {}, {sharing}: without training prefer {}", others.join(", "), better.name)
            }
            (None, false) => format!("in the pool's bytes {}, {sharing}", others.join(", ")),
            (None, true) => format!("no code of 2 or more bits is as small as the pool; {sharing}"),
        }
    }
}

/// Rows and columns that a tensor has as codes and factors see it.
fn matrix(view: &TensorView) -> (usize, usize) {
    let rows = view.shape().first().copied().unwrap_or(1).max(1);
    (rows, view.elements() / rows)
}

/// Bytes of codes of `bits` bits with their scales in f16.
fn code_bytes(view: &TensorView, bits: u32) -> u64 {
    let (rows, columns) = matrix(view);
    let group = group_of(columns);
    (rows * columns) as u64 * u64::from(bits) / 8 + 2 * (rows * columns.div_ceil(group)) as u64
}

fn group_of(columns: usize) -> usize {
    if columns.is_multiple_of(GROUP) { GROUP } else { columns.max(1) }
}

/// Squared error of rounding to `bits`.
fn code_error(view: &TensorView, bits: u32) -> Result<f64> {
    let (rows, columns) = matrix(view);
    // Groups run through all dimensions but the first, so pieces hold whole rows of the matrix.
    let together = (view.rows().0 / rows).max(1);
    let spec = GridSpec {
        bits,
        group_size: group_of(columns),
        symmetric: true,
        scale_dtype: ScaleDtype::F16,
        search: Search::None,
    };
    let mut error = 0.0;
    by_pieces_of(view, together, |_, values| {
        let rounded = grid::round_to_nearest(values, values.len() / columns, columns, &spec)?.dequantize();
        error += values.iter().zip(&rounded).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
        Ok(())
    })?;
    view.release();
    Ok(error)
}

/// Squared error and bytes of the best factors of `view` in `bytes`, stored as widely as the pool's numbers.
fn rank_error(view: &TensorView, bytes: f64, width: usize) -> Result<Option<(f64, u64)>> {
    let (rows, columns) = matrix(view);
    let rank = ((bytes / (width * (rows + columns)) as f64) as usize).min(rows.min(columns));
    let values = view.to_f32()?;
    view.release();
    let Some(mut squares) = linalg::squared_singular_values(&values, rows, columns) else { return Ok(None) };
    squares.sort_by(|a, b| b.total_cmp(a));
    let error = squares[rank.min(squares.len())..].iter().map(|square| square.max(0.0)).sum();
    Ok(Some((error, (rank * (rows + columns) * width) as u64)))
}

/// Puts rivals beside the projection of `views` on a pool of `pool_bytes`, numbers of `width` bytes, which is
/// `relative_error` away from them.
///
/// # Errors
/// If a tensor cannot be decoded.
pub fn advise(views: &[TensorView], pool_bytes: u64, width: usize, relative_error: f64) -> Result<Advice> {
    let mut norm = 0.0;
    for view in views {
        by_pieces(view, |_, values| {
            norm += values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
            Ok(())
        })?;
    }
    let relative = |error: f64| if norm > 0.0 { (error / norm).sqrt() } else { 0.0 };
    let mut rivals = Vec::new();
    let size = |bits: u32| views.iter().map(|view| code_bytes(view, bits)).sum::<u64>();
    if let Some(bits) = WIDTHS.into_iter().find(|&bits| size(bits) <= pool_bytes) {
        let errors = views.par_iter().map(|view| code_error(view, bits)).collect::<Result<Vec<f64>>>()?;
        let relative_error = relative(errors.iter().sum());
        rivals.push(Rival { name: format!("{bits} bits"), bytes: size(bits), relative_error });
    }
    let work = |view: &TensorView| {
        let (rows, columns) = matrix(view);
        rows as u128 * columns as u128 * rows.min(columns) as u128
    };
    if views.iter().map(work).sum::<u128>() <= MOST_WORK {
        let all: usize = views.iter().map(TensorView::elements).sum();
        let found = views
            .par_iter()
            .map(|view| rank_error(view, pool_bytes as f64 * view.elements() as f64 / all.max(1) as f64, width));
        let found = found.collect::<Result<Option<Vec<(f64, u64)>>>>()?;
        if let Some(found) = found {
            let (error, bytes) = found.iter().fold((0.0, 0), |(error, bytes), one| (error + one.0, bytes + one.1));
            rivals.push(Rival { name: "low rank".into(), bytes, relative_error: relative(error) });
        }
    }
    Ok(Advice { pool_bytes, relative_error, rivals })
}

#[cfg(test)]
mod tests {
    use scruple_weights::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, WriterOptions};

    use super::*;
    use crate::data::random::Stream;

    fn views(folder: &std::path::Path, tensors: &[(&[usize], Vec<f32>)]) -> Vec<TensorView> {
        let name = |at: usize| format!("w{at}.weight");
        let specs = tensors.iter().enumerate();
        let specs = specs.map(|(at, (shape, _))| TensorSpec::new(name(at), Dtype::F32, shape.to_vec()));
        let writer = CheckpointWriter::create(folder, specs.collect(), WriterOptions::default()).unwrap();
        for (at, (_, values)) in tensors.iter().enumerate() {
            writer.write(&name(at), bytemuck::cast_slice(values)).unwrap();
        }
        writer.finish().unwrap();
        Checkpoint::open(folder).unwrap().tensors().cloned().collect()
    }

    fn normal(count: usize, number: u64) -> Vec<f32> {
        let mut stream = Stream::new(1, "sharing/advice", number);
        (0..count).map(|_| stream.normal() as f32).collect()
    }

    #[test]
    fn codes_win_where_they_fit_and_factors_where_the_weights_are_thin() {
        let folder = tempfile::tempdir().unwrap();
        let (rows, columns) = (96, 256);
        let dense = views(&folder.path().join("a"), &[(&[rows, columns], normal(rows * columns, 1))]);
        // f32 over c = 4 is a byte a weight: 8-bit codes need a little more, 4-bit ones fit.
        let advice = advise(&dense, (rows * columns) as u64, 4, 0.87).unwrap();
        let names: Vec<&str> = advice.rivals.iter().map(|rival| rival.name.as_str()).collect();
        assert_eq!(names, ["4 bits", "low rank"]);
        assert!(advice.rivals.iter().all(|rival| rival.bytes <= advice.pool_bytes), "{advice:?}");
        assert_eq!(advice.better().unwrap().name, "4 bits");
        assert!(advice.sentence().ends_with("without training prefer 4 bits"), "{}", advice.sentence());
        // Of independent weights, c = 4 leaves rank 17 of 96.
        let low = advice.rivals[1].relative_error;
        assert!((0.6..0.85).contains(&low), "{low}");

        // An outer product is its own factors.
        let (u, v) = (normal(rows, 2), normal(columns, 3));
        let thin = u.iter().flat_map(|u| v.iter().map(move |v| u * v)).collect();
        let thin = views(&folder.path().join("b"), &[(&[rows, columns], thin)]);
        let advice = advise(&thin, (rows * columns) as u64, 4, 0.87).unwrap();
        assert!(advice.rivals[1].relative_error < 1e-3, "{advice:?}");
        assert_eq!(advice.better().unwrap().name, "low rank");

        // At c = 64 no code is as small, and thin factors have no rank left.
        let advice = advise(&dense, (rows * columns) as u64 / 16, 4, 0.99).unwrap();
        assert_eq!(advice.rivals.len(), 1);
        assert_eq!(Advice { rivals: Vec::new(), ..advice }.better(), None);
    }

    #[test]
    fn a_convolution_in_more_than_one_piece_is_rounded_as_its_matrix_is() {
        let folder = tempfile::tempdir().unwrap();
        let values = normal(256 * 128 * 9, 4);
        let views = views(folder.path().join("a").as_path(), &[(&[256, 128, 3, 3], values.clone())]);
        let spec = GridSpec {
            bits: 4,
            group_size: GROUP,
            symmetric: true,
            scale_dtype: ScaleDtype::F16,
            search: Search::None,
        };
        let rounded = grid::round_to_nearest(&values, 256, 128 * 9, &spec).unwrap().dequantize();
        let expected: f64 = values.iter().zip(&rounded).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        let found = code_error(&views[0], 4).unwrap();
        assert!((found - expected).abs() < 1e-9 * expected, "{found} and {expected}");
    }
}
