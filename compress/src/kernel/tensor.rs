//! Candle tensors as slices and back, on the CPU.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};

use crate::Result;

/// Calls `f` with the elements of `x` in row-major order. A contiguous f32 tensor on the CPU is lent without a copy;
/// any other is converted first. `f` runs while candle's read lock on the storage is held, so it must not write to `x`.
///
/// # Errors
/// If the conversion fails.
pub fn with_f32<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    if x.device().is_cpu() && x.dtype() == DType::F32 && x.is_contiguous() {
        let (storage, layout) = x.storage_and_layout();
        if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
            return Ok(f(&values[start..end]));
        }
    }
    let values = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(f(&values))
}

/// `values` as a (rows, columns) f32 tensor on the CPU, without a copy.
///
/// # Errors
/// If `values` does not hold rows × columns numbers.
pub fn from_vec(values: Vec<f32>, (rows, columns): (usize, usize)) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_and_other_types_read_in_row_major_order() {
        let x = from_vec((0..6).map(|i| i as f32).collect(), (2, 3)).unwrap();
        assert_eq!(with_f32(&x, <[f32]>::to_vec).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(with_f32(&x.t().unwrap(), <[f32]>::to_vec).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(with_f32(&x.narrow(0, 1, 1).unwrap(), <[f32]>::to_vec).unwrap(), [3.0, 4.0, 5.0]);
        let halves = x.to_dtype(DType::F16).unwrap();
        assert_eq!(with_f32(&halves, <[f32]>::to_vec).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(from_vec(vec![0.0; 5], (2, 3)).is_err());
    }
}
