//! One linear and the Hessian of its inputs, generated or from a file.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use scruple_compress::kernel::gemm::{matmul_nt, symmetrize, syrk_accumulate};

use super::Random;

/// A Gaussian weight, and `2/t XᵀX` of correlated inputs with log-normal sizes.
pub fn generate(rows: usize, n: usize) -> (Vec<f32>, Vec<f32>) {
    let mut random = Random(1);
    let weight = (0..rows * n).map(|_| 0.02 * random.normal()).collect();
    let rank = (n / 16).max(1);
    let mix: Vec<f32> = (0..n * rank).map(|_| random.normal() / (rank as f32).sqrt()).collect(); // (n, rank)
    let size: Vec<f32> = (0..n).map(|_| random.normal().exp()).collect();
    let tokens = n * 5 / 4;
    let mut hessian = vec![0.0; n * n];
    let mut x = Vec::new();
    for start in (0..tokens).step_by(1024) {
        let t = 1024.min(tokens - start);
        let factors: Vec<f32> = (0..t * rank).map(|_| random.normal()).collect();
        x.resize(t * n, 0.0);
        matmul_nt(&factors, &mix, &mut x, t, n, rank);
        for row in x.chunks_exact_mut(n) {
            row.iter_mut().zip(&size).for_each(|(x, size)| *x = (*x + 0.5 * random.normal()) * size);
        }
        syrk_accumulate(&x, &mut hessian, t, n, 2.0 / tokens as f32);
    }
    symmetrize(&mut hessian, n);
    (weight, hessian)
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes matrices to a safetensors file.
pub fn save(path: &str, tensors: &[(&str, [usize; 2], &[f32])]) {
    let data: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| bytes(values)).collect();
    let views = tensors.iter().zip(&data).map(|((name, shape, _), data)| {
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), data).expect("the shape fits the values"))
    });
    safetensors::serialize_to_file(views, None, std::path::Path::new(path)).expect("the file can be written");
}

/// `weight` and the columns of a file, and its `hessian` if asked for.
pub fn load(path: &str, with_hessian: bool) -> (Vec<f32>, Vec<f32>, usize) {
    let file = std::fs::read(path).expect("the file can be read");
    let tensors = SafeTensors::deserialize(&file).expect("a safetensors file");
    let values = |name: &str| -> (Vec<f32>, usize) {
        let tensor = tensors.tensor(name).expect("`weight` and `hessian`");
        assert_eq!(tensor.dtype(), Dtype::F32, "`{name}` is f32");
        let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect();
        (values, tensor.shape()[1])
    };
    let (weight, n) = values("weight");
    let hessian = if with_hessian { values("hessian").0 } else { Vec::new() };
    (weight, hessian, n)
}
