//! A weight kept in the type it is stored in.

use candle_core::Tensor;
use scruple_weights::{Error as WeightsError, TensorView};

use super::{Linear, check_bias, forward};
use crate::{
    Error, Result,
    kernel::{
        dense::{self, DenseMatrix, Element},
        tensor::from_vec,
    },
};

/// `y = x Wᵀ + b` with W as bf16, f16 or f32, in memory or in the mapped file it came from. It is widened to f32 on its
/// way into the product; sums are f32.
#[derive(Debug, Clone)]
pub struct DenseLinear {
    weight: Weight,
    element: Element,
    shape: (usize, usize),
    bias: Option<Vec<f32>>,
    storage_bits: u64,
}

#[derive(Debug, Clone)]
enum Weight {
    /// Little endian.
    Owned(Vec<u8>),
    Mapped(TensorView),
}

impl DenseLinear {
    /// The weight `view` (out, in), read from its file whenever it is used if it is f32, f16 or bf16, and decoded to f32
    /// in memory if it is of another type; `bias` (out).
    ///
    /// # Errors
    /// If the tensor is not a matrix, cannot be decoded, or `bias` has another length.
    pub fn from_view(view: TensorView, bias: Option<Vec<f32>>) -> Result<Self> {
        let &[out_features, in_features] = view.shape() else {
            let what = format!("has shape {:?}, expected two dimensions (out_features, in_features)", view.shape());
            return Err(WeightsError::tensor(view.file(), view.name(), what).into());
        };
        check_bias(bias.as_deref(), out_features)?;
        let storage_bits = 8 * view.bytes().len() as u64;
        let shape = (out_features, in_features);
        Ok(match Element::from_dtype(view.dtype()) {
            Some(element) => Self { weight: Weight::Mapped(view), element, shape, bias, storage_bits },
            None => {
                let bytes = view.to_f32()?.iter().flat_map(|value| value.to_le_bytes()).collect();
                Self { weight: Weight::Owned(bytes), element: Element::F32, shape, bias, storage_bits }
            }
        })
    }

    /// The weight in `bytes` (little endian, row-major (out, in)); `bias` (out).
    ///
    /// # Errors
    /// If a length contradicts the shape.
    pub fn from_bytes(element: Element, bytes: Vec<u8>, shape: (usize, usize), bias: Option<Vec<f32>>) -> Result<Self> {
        check_bias(bias.as_deref(), shape.0)?;
        let expected = shape.0 * shape.1 * element.bytes();
        if bytes.len() != expected {
            return Err(Error::Model(format!(
                "a {} weight of shape {shape:?} was given {} bytes, expected {expected}",
                element.dtype(),
                bytes.len()
            )));
        }
        Ok(Self { storage_bits: 8 * bytes.len() as u64, weight: Weight::Owned(bytes), element, shape, bias })
    }

    /// The weight `values` (out, in) kept as f32; `bias` (out).
    ///
    /// # Errors
    /// If a length contradicts the shape.
    pub fn from_f32(values: &[f32], shape: (usize, usize), bias: Option<Vec<f32>>) -> Result<Self> {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::from_bytes(Element::F32, bytes, shape, bias)
    }

    /// The same linear with its weight copied into memory, so that its file may go.
    pub fn into_memory(mut self) -> Self {
        if let Weight::Mapped(view) = &self.weight {
            let bytes = view.bytes().to_vec();
            view.release();
            self.weight = Weight::Owned(bytes);
        }
        self
    }

    /// The same linear, with the bits its tensors take in the file it came from.
    pub fn with_storage_bits(mut self, bits: u64) -> Self {
        self.storage_bits = bits;
        self
    }

    fn matrix(&self) -> DenseMatrix<'_> {
        let bytes = match &self.weight {
            Weight::Owned(bytes) => bytes,
            Weight::Mapped(view) => view.bytes(),
        };
        DenseMatrix { element: self.element, bytes, out_features: self.shape.0, in_features: self.shape.1 }
    }
}

impl Linear for DenseLinear {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        forward(self, self.bias.as_deref(), x, |x, tokens, y| dense::product(self.matrix(), x, tokens, y))
    }

    fn weight(&self) -> Result<Tensor> {
        let mut values = vec![0.0; self.shape.0 * self.shape.1];
        dense::widen(self.element, self.matrix().bytes, &mut values);
        from_vec(values, self.shape)
    }

    fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    fn storage_bits(&self) -> u64 {
        self.storage_bits
    }
}
