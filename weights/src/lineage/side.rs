//! The two sides of a comparison: named arrays that give their numbers by rows, however they are stored.

use std::{fmt, ops::Range, sync::Arc};

use half::{bf16, f16};

use crate::{Checkpoint, Dtype, Result, TensorView};

/// Weights stored in a form this crate does not read, such as codes and scales in tensors of their own.
pub trait Packed: Send + Sync {
    /// All its numbers, in the order of the shape its [`Array`] was given.
    ///
    /// # Errors
    /// If what is stored cannot be decoded, or gives another number of values than the shape.
    fn decode(&self) -> Result<Vec<f32>>;
}

/// One array of a model. Cheap to clone; reads nothing until compared.
#[derive(Clone)]
pub struct Array {
    name: Arc<str>,
    shape: Arc<[usize]>,
    stored: Arc<str>,
    source: Source,
}

#[derive(Clone)]
enum Source {
    View(TensorView),
    Packed(Arc<dyn Packed>),
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.name, self.stored, self.shape)
    }
}

impl From<TensorView> for Array {
    fn from(view: TensorView) -> Self {
        Self {
            name: view.name.clone(),
            shape: view.shape.clone(),
            stored: view.dtype().to_string().into(),
            source: Source::View(view),
        }
    }
}

impl Array {
    /// An array that `packed` decodes; `stored` says in a few words how it is stored.
    pub fn packed(name: &str, shape: &[usize], stored: &str, packed: Arc<dyn Packed>) -> Self {
        Self { name: name.into(), shape: shape.into(), stored: stored.into(), source: Source::Packed(packed) }
    }

    /// Its name in the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its shape, slowest dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How it is stored: the name of a type, or of a packing.
    pub fn stored(&self) -> &str {
        &self.stored
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// (rows, columns) of the matrix it is looked at as. A vector is one row; a filter bank (out, in, 3, 3) has a row a
    /// filter; a stack of matrices with long rows, such as experts (n, out, in), has all their rows.
    pub fn matrix(&self) -> (usize, usize) {
        const LONG_ROW: usize = 32;
        match *self.shape {
            [] => (1, 1),
            [n] => (1, n),
            [rows, .., last] if last < LONG_ROW => (rows, self.shape[1..].iter().product()),
            [ref rows @ .., last] => (rows.iter().product(), last),
        }
    }

    /// The view behind it, if its bytes lie in a file as they are.
    pub(super) fn view(&self) -> Option<&TensorView> {
        match &self.source {
            Source::View(view) => Some(view),
            Source::Packed(_) => None,
        }
    }

    /// Whether it is stored as codes and scales.
    pub(super) fn is_coded(&self) -> bool {
        self.view().is_none_or(|view| view.dtype().block().0 > 1)
    }

    /// What a number of it was rounded to. A blocked or packed number is computed in f32.
    pub(super) fn precision(&self) -> Precision {
        match self.view().map(TensorView::dtype) {
            Some(Dtype::F16) => Precision::F16,
            Some(Dtype::Bf16) => Precision::Bf16,
            Some(Dtype::F8E4M3) => Precision::F8E4M3,
            Some(Dtype::F8E5M2) => Precision::F8E5M2,
            _ => Precision::F32,
        }
    }

    /// Makes it ready to be read.
    pub(super) fn open(&self) -> Result<Opened<'_>> {
        let decoded = match &self.source {
            Source::View(_) => None,
            Source::Packed(packed) => Some(packed.decode()?),
        };
        Ok(Opened { array: self, decoded })
    }
}

/// A model as a list of arrays.
#[derive(Debug, Clone, Default)]
pub struct Model {
    arrays: Vec<Array>,
}

impl Model {
    /// A model of these arrays.
    pub fn new(arrays: Vec<Array>) -> Self {
        Self { arrays }
    }

    /// Every tensor of `checkpoint` as it is stored.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        Self::new(checkpoint.tensors().cloned().map(Array::from).collect())
    }

    /// Its arrays.
    pub fn arrays(&self) -> &[Array] {
        &self.arrays
    }

    /// Elements of all arrays.
    pub fn parameters(&self) -> u64 {
        self.arrays.iter().map(|array| array.elements() as u64).sum()
    }
}

/// An array whose rows can be read; a packed one is held decoded.
pub(super) struct Opened<'a> {
    pub array: &'a Array,
    decoded: Option<Vec<f32>>,
}

impl Opened<'_> {
    /// Rows `rows` of the matrix, as f32, into `out`.
    pub fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (_, columns) = self.array.matrix();
        match (&self.decoded, &self.array.source) {
            (Some(values), _) => out.copy_from_slice(&values[rows.start * columns..rows.end * columns]),
            (None, Source::View(view)) => {
                // A row of the matrix is one or more of the rows the view counts.
                let (_, length) = view.rows();
                let per_row = columns.checked_div(length).unwrap_or(0);
                view.read_rows(rows.start * per_row..rows.end * per_row, out)?;
            }
            (None, Source::Packed(_)) => unreachable!("a packed array is opened by decoding it"),
        }
        Ok(())
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        if let Some(view) = self.array.view() {
            view.release();
        }
    }
}

/// The floating-point type numbers were rounded to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    F32,
    F16,
    Bf16,
    F8E4M3,
    F8E5M2,
}

impl Precision {
    /// Digits of the significand, the hidden one included.
    pub fn digits(self) -> i32 {
        match self {
            Self::F32 => 24,
            Self::F16 => 11,
            Self::Bf16 => 8,
            Self::F8E4M3 => 4,
            Self::F8E5M2 => 3,
        }
    }

    /// Largest relative error of rounding to nearest: half a unit in the last place.
    pub fn unit(self) -> f64 {
        2f64.powi(-self.digits())
    }

    /// The exponent below which numbers are spaced evenly.
    fn least_exponent(self) -> i32 {
        match self {
            Self::F32 | Self::Bf16 => -126,
            Self::F16 | Self::F8E5M2 => -14,
            Self::F8E4M3 => -6,
        }
    }

    /// The distance of neighbouring numbers around `value`, a finite number.
    #[inline]
    pub fn spacing(self, value: f32) -> f64 {
        let exponent = ((value.to_bits() >> 23 & 0xff) as i32 - 127).max(self.least_exponent());
        f64::from_bits(((exponent - self.digits() + 1 + 1023) as u64) << 52)
    }

    /// `value` rounded to nearest, or `None` for the 8-bit types, whose rounding differs from writer to writer.
    #[inline]
    pub fn round(self, value: f32) -> Option<f32> {
        match self {
            Self::F32 => Some(value),
            Self::F16 => Some(f16::from_f32(value).to_f32()),
            Self::Bf16 => Some(bf16::from_f32(value).to_f32()),
            Self::F8E4M3 | Self::F8E5M2 => None,
        }
    }
}
