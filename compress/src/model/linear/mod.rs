//! The narrow seam between a model and the format its weights are stored in: a model file is written once, and every
//! dense, quantised, sparse or shared weight implements [`Linear`].

use candle_core::Tensor;
use rayon::prelude::*;
use scruple_weights::{Checkpoint, TensorView};

use super::{spec::LinearSpec, stored::Storage};
use crate::{
    Error, Result,
    export::{self, Quantization},
    kernel::{
        dense::Element,
        tensor::{from_vec, with_f32},
    },
};

mod coded;

mod dense;

mod packed;

mod pooled;

pub use coded::CodedLinear;
pub use dense::DenseLinear;
pub use packed::PackedLinear;
pub use pooled::PooledLinear;

/// `y = x Wᵀ + b`.
pub trait Linear: Send + Sync + std::fmt::Debug {
    /// (out_features, in_features).
    fn shape(&self) -> (usize, usize);

    /// `x` (tokens, in_features) f32 to (tokens, out_features) f32.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;

    /// The weight as f32, (out_features, in_features): exactly the numbers `forward` uses.
    fn weight(&self) -> Result<Tensor>;

    /// b (out_features), where there is one.
    fn bias(&self) -> Option<&[f32]>;

    /// Bits the weight takes on disk, scales and indices included, bias not.
    fn storage_bits(&self) -> u64;
}

/// `forward` for a linear with a CPU kernel: `product(x, tokens, y)` writes `x Wᵀ` into the zeroed `y`. On another device
/// candle multiplies by `weight()`, copied there.
fn forward(
    linear: &dyn Linear,
    bias: Option<&[f32]>,
    x: &Tensor,
    product: impl FnOnce(&[f32], usize, &mut [f32]),
) -> Result<Tensor> {
    let (out_features, in_features) = linear.shape();
    let (tokens, width) = x.dims2()?;
    if width != in_features {
        return Err(Error::Model(format!(
            "a linear of {in_features} inputs and {out_features} outputs was given activations of width {width}"
        )));
    }
    if !x.device().is_cpu() {
        let y = x.matmul(&linear.weight()?.to_device(x.device())?.t()?)?;
        return match bias {
            Some(bias) => Ok(y.broadcast_add(&Tensor::from_slice(bias, out_features, x.device())?)?),
            None => Ok(y),
        };
    }
    let y = with_f32(x, |x| {
        let mut y = vec![0.0; tokens * out_features]; // fresh pages come zeroed from the system
        product(x, tokens, &mut y);
        if let Some(bias) = bias {
            for y in y.chunks_exact_mut(out_features) {
                y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
        y
    })?;
    from_vec(y, (tokens, out_features))
}

/// Refuses a bias of another length than the weight has rows.
fn check_bias(bias: Option<&[f32]>, out_features: usize) -> Result<()> {
    match bias {
        Some(bias) if bias.len() != out_features => Err(Error::Model(format!(
            "a linear of {out_features} outputs was given a bias of length {}, expected {out_features}",
            bias.len()
        ))),
        _ => Ok(()),
    }
}

/// The linear `name` of `checkpoint`, dense, packed or pooled as it is stored, as the block's `spec` asks for.
///
/// # Errors
/// A missing tensor, or one of another shape.
pub fn load(
    checkpoint: &Checkpoint,
    name: &str,
    spec: &LinearSpec,
    storage: Option<&Storage>,
) -> Result<Box<dyn Linear>> {
    let shape = (spec.out_features, spec.in_features, spec.bias);
    if !spec.transposed {
        return load_shaped_from(checkpoint, name, shape, storage);
    }
    expect_bias(checkpoint, name, shape)?;
    if let Some(linear) = load_pooled(checkpoint, name, [spec.in_features, spec.out_features], true, storage)? {
        return Ok(linear);
    }
    let view = checkpoint.tensor(&format!("{name}.weight"))?;
    expect_shape(&view, &[spec.in_features, spec.out_features])?;
    let bias = checkpoint.get(&format!("{name}.bias")).map(|bias| bias.to_f32()).transpose()?;
    let linear = match Element::from_dtype(view.dtype()) {
        Some(element) => {
            let bytes = transpose(view.bytes(), spec.in_features, spec.out_features, element.bytes());
            DenseLinear::from_bytes(element, bytes, spec.shape(), bias)?
        }
        None => {
            let bytes: Vec<u8> = view.to_f32()?.iter().flat_map(|value| value.to_le_bytes()).collect();
            let bytes = transpose(&bytes, spec.in_features, spec.out_features, Element::F32.bytes());
            DenseLinear::from_bytes(Element::F32, bytes, spec.shape(), bias)?
        }
    };
    view.release();
    Ok(Box::new(linear))
}

/// [`load_shaped`], or from the pool where the checkpoint's `storage` is one and the weight shares it.
///
/// # Errors
/// As [`load`].
pub fn load_shaped_from(
    checkpoint: &Checkpoint,
    name: &str,
    shape: (usize, usize, bool),
    storage: Option<&Storage>,
) -> Result<Box<dyn Linear>> {
    if let Some(linear) = load_pooled(checkpoint, name, [shape.0, shape.1], false, storage)? {
        expect_bias(checkpoint, name, shape)?;
        return Ok(linear);
    }
    load_shaped(checkpoint, name, shape, storage.and_then(Storage::quantization))
}

/// The linear whose weight of `shape` lies in the pool of `storage`, if it does.
fn load_pooled(
    checkpoint: &Checkpoint,
    name: &str,
    shape: [usize; 2],
    transposed: bool,
    storage: Option<&Storage>,
) -> Result<Option<Box<dyn Linear>>> {
    let weight = format!("{name}.weight");
    let Some(pool) = storage.and_then(|storage| storage.pool_of(&weight)) else { return Ok(None) };
    let Some(matrix) = pool.matrix(&weight, shape)? else { return Ok(None) };
    let bias = checkpoint.get(&format!("{name}.bias")).map(|bias| bias.to_f32()).transpose()?;
    Ok(Some(Box::new(PooledLinear::new(matrix, transposed, bias)?)))
}

/// The linear `name` of `checkpoint`, dense or packed as it is stored: (out_features, in_features, has a bias).
///
/// # Errors
/// As [`load`].
pub fn load_shaped(
    checkpoint: &Checkpoint,
    name: &str,
    shape: (usize, usize, bool),
    quantization: Option<&Quantization>,
) -> Result<Box<dyn Linear>> {
    expect_bias(checkpoint, name, shape)?;
    let (out_features, in_features, _) = shape;
    let coded = quantization.is_some_and(|quantization| export::is_coded(checkpoint, name, quantization));
    if let Some(view) = checkpoint.get(&format!("{name}.weight")).filter(|_| !coded) {
        expect_shape(&view, &[out_features, in_features])?;
    }
    let linear = export::load_linear(checkpoint, name, quantization)?;
    if linear.shape() != (out_features, in_features) {
        return Err(Error::Model(format!(
            "{}: linear `{name}` has shape {:?}, expected ({out_features}, {in_features}) from config.json",
            checkpoint.path().display(),
            linear.shape()
        )));
    }
    Ok(linear)
}

/// Refuses a linear that lacks the bias it should have.
fn expect_bias(checkpoint: &Checkpoint, name: &str, (out_features, _, bias): (usize, usize, bool)) -> Result<()> {
    match bias {
        true => expect_shape(&checkpoint.tensor(&format!("{name}.bias"))?, &[out_features]),
        false => Ok(()),
    }
}

/// The linear `name` of `checkpoint` of shape (out_features, in_features), without a bias, which no format packs.
///
/// # Errors
/// As [`load`].
pub fn load_dense(checkpoint: &Checkpoint, name: &str, (out, inner): (usize, usize)) -> Result<Box<dyn Linear>> {
    load_shaped(checkpoint, name, (out, inner, false), None)
}

/// The elements of `size` bytes of a (rows, columns) matrix as (columns, rows).
pub(crate) fn transpose(bytes: &[u8], rows: usize, columns: usize, size: usize) -> Vec<u8> {
    let mut out = vec![0; bytes.len()];
    out.par_chunks_mut((rows * size).max(1)).enumerate().for_each(|(column, out)| {
        for (row, out) in out.chunks_exact_mut(size).enumerate() {
            out.copy_from_slice(&bytes[(row * columns + column) * size..][..size]);
        }
    });
    out
}

/// Refuses a tensor whose shape is not what the configuration asks for.
pub fn expect_shape(view: &TensorView, shape: &[usize]) -> Result<()> {
    if view.shape() == shape {
        return Ok(());
    }
    Err(Error::Model(format!(
        "{}: tensor `{}` has shape {:?}, expected {shape:?} from config.json",
        view.file().display(),
        view.name(),
        view.shape()
    )))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        grid::{Quantised, ScaleDtype},
        kernel::{dense::Element, test_values::uniform},
    };

    /// Largest accepted difference to a product summed in f64, relative to Σ|x·w|: a sum of n products in f32 is off by
    /// at most about n/lanes roundings of 2⁻²⁴; the matrices here have at most 700 columns.
    const MAX_RELATIVE_DIFFERENCE: f64 = 4e-6;

    fn check(linear: &dyn Linear, bias: Option<&[f32]>, x: &[f32], tokens: usize) {
        let (out_features, in_features) = linear.shape();
        let y = linear.forward(&from_vec(x.to_vec(), (tokens, in_features)).unwrap()).unwrap();
        assert_eq!(y.dims(), [tokens, out_features]);
        let weight = linear.weight().unwrap().to_vec2::<f32>().unwrap();
        for (token, y) in y.to_vec2::<f32>().unwrap().iter().enumerate() {
            for (row, &found) in y.iter().enumerate() {
                let b = bias.map_or(0.0, |bias| f64::from(bias[row]));
                let (mut exact, mut size) = (b, b.abs());
                for (x, w) in x[token * in_features..].iter().zip(&weight[row]) {
                    let product = f64::from(*x) * f64::from(*w);
                    (exact, size) = (exact + product, size + product.abs());
                }
                let difference = (f64::from(found) - exact).abs();
                assert!(
                    difference <= MAX_RELATIVE_DIFFERENCE * size + 1e-30,
                    "token {token} of {tokens}, output {row}: found {found}, expected {exact}"
                );
            }
        }
    }

    fn dense(element: Element, (out_features, in_features): (usize, usize), bias: Option<Vec<f32>>) -> DenseLinear {
        let values = uniform(out_features * in_features, 7);
        let bytes: Vec<u8> = match element {
            Element::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Element::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            Element::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        };
        DenseLinear::from_bytes(element, bytes, (out_features, in_features), bias).unwrap()
    }

    fn quantised(
        (out_features, in_features): (usize, usize),
        bits: u32,
        group_size: usize,
        symmetric: bool,
        scale_dtype: ScaleDtype,
        permuted: bool,
    ) -> Quantised {
        let groups = in_features / group_size;
        let code = |x: f32| ((x + 1.0) / 2.0 * (1u32 << bits) as f32) as u8;
        Quantised {
            out_features,
            in_features,
            bits,
            group_size,
            symmetric,
            scale_dtype,
            codes: uniform(out_features * in_features, 1).into_iter().map(code).collect(),
            scales: uniform(out_features * groups, 2).iter().map(|x| scale_dtype.round(0.02 + 0.01 * x)).collect(),
            zeros: match symmetric {
                true => vec![1 << (bits - 1); out_features * groups],
                false => uniform(out_features * groups, 3).into_iter().map(code).collect(),
            },
            // 7 is coprime to every width used.
            g_idx: permuted.then(|| (0..in_features).map(|i| ((i * 7 % in_features) / group_size) as u32).collect()),
        }
    }

    #[test]
    fn a_dense_product_is_the_sum_of_products() {
        for element in [Element::F32, Element::F16, Element::Bf16] {
            for shape in [(1, 1), (3, 7), (5, 16), (17, 65), (70, 130), (131, 576)] {
                for tokens in [1, 2, 3, 4, 5, 64] {
                    let bias = (tokens % 2 == 1).then(|| uniform(shape.0, 9));
                    let x = uniform(tokens * shape.1, 5);
                    check(&dense(element, shape, bias.clone()), bias.as_deref(), &x, tokens);
                }
            }
        }
    }

    #[test]
    fn a_packed_product_is_the_sum_of_products_with_the_dequantised_weight() {
        for bits in [2, 3, 4, 8] {
            for (shape, group_size) in
                [((1, 8), 8), ((5, 24), 12), ((9, 48), 16), ((67, 576), 64), ((33, 640), 128), ((6, 275), 275)]
            {
                for (symmetric, permuted, scale) in
                    [(true, false, ScaleDtype::F16), (false, true, ScaleDtype::Bf16), (false, false, ScaleDtype::F32)]
                {
                    let q = quantised(shape, bits, group_size, symmetric, scale, permuted);
                    let bias = symmetric.then(|| uniform(shape.0, 9));
                    let linear = PackedLinear::new(&q, bias.clone()).unwrap();
                    let weight = linear.weight().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    assert!(weight == q.dequantize(), "{bits} bit {shape:?}: other weights than the codes mean");
                    for tokens in [1, 2, 3, 4, 5, 64] {
                        check(&linear, bias.as_deref(), &uniform(tokens * shape.1, 5), tokens);
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_shape_packs_to_the_same_weights(
            out_features in 1usize..9,
            groups in 1usize..5,
            group_size in 1usize..70,
            bits in prop::sample::select(vec![2u32, 3, 4, 8]),
            symmetric: bool,
            tokens in 1usize..7,
        ) {
            let shape = (out_features, groups * group_size);
            let permuted = !shape.1.is_multiple_of(7);
            let q = quantised(shape, bits, group_size, symmetric, ScaleDtype::F16, permuted);
            let linear = PackedLinear::new(&q, None).unwrap();
            let weight = linear.weight().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            prop_assert!(weight == q.dequantize());
            check(&linear, None, &uniform(tokens * shape.1, 5), tokens);
        }
    }

    #[test]
    fn one_and_two_threads_give_the_same_bits() {
        let shape = (3000, 576);
        let linears: [Box<dyn Linear>; 3] = [
            Box::new(dense(Element::Bf16, shape, None)),
            Box::new(PackedLinear::new(&quantised(shape, 4, 64, true, ScaleDtype::F16, false), None).unwrap()),
            Box::new(PackedLinear::new(&quantised(shape, 3, 64, false, ScaleDtype::Bf16, true), None).unwrap()),
        ];
        for linear in &linears {
            for tokens in [1, 3, 70] {
                let x = from_vec(uniform(tokens * shape.1, 5), (tokens, shape.1)).unwrap();
                let [one, two] = [1, 2].map(|threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| linear.forward(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
                });
                assert!(one == two, "{tokens} tokens differ");
            }
        }
    }

    #[test]
    fn a_token_gets_the_same_bits_alone_and_among_four() {
        let shape = (50, 640);
        let linears: [Box<dyn Linear>; 2] = [
            Box::new(dense(Element::F16, shape, None)),
            Box::new(PackedLinear::new(&quantised(shape, 4, 128, false, ScaleDtype::F16, false), None).unwrap()),
        ];
        for linear in &linears {
            let x = from_vec(uniform(4 * shape.1, 5), (4, shape.1)).unwrap();
            let together = linear.forward(&x).unwrap();
            for token in 0..4 {
                let alone = linear.forward(&x.narrow(0, token, 1).unwrap()).unwrap().to_vec2::<f32>().unwrap();
                assert_eq!(together.narrow(0, token, 1).unwrap().to_vec2::<f32>().unwrap(), alone);
            }
        }
    }

    #[test]
    fn half_precision_widens_exactly() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut values = vec![0.0; 1 << 16];
        crate::kernel::dense::widen(Element::F16, &bytes, &mut values);
        for (bits, value) in values.iter().enumerate() {
            let expected = half::f16::from_bits(bits as u16).to_f32();
            assert!(value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan(), "{bits:#06x}");
        }
        crate::kernel::dense::widen(Element::Bf16, &bytes, &mut values);
        for (bits, value) in values.iter().enumerate() {
            assert_eq!(value.to_bits(), (bits as u32) << 16);
        }
    }

    #[test]
    fn storage_counts_codes_scales_zeros_and_order() {
        let bits = |symmetric, permuted| {
            let q = quantised((64, 128), 4, 32, symmetric, ScaleDtype::F16, permuted);
            PackedLinear::new(&q, None).unwrap().storage_bits()
        };
        assert_eq!(bits(true, false), 64 * 128 * 4 + 64 * 4 * 16);
        assert_eq!(bits(false, true), 64 * 128 * 4 + 64 * 4 * (16 + 4) + 128 * 32);
        assert_eq!(dense(Element::Bf16, (3, 5), None).storage_bits(), 3 * 5 * 16);
    }

    #[test]
    fn wrong_widths_are_refused_with_both_numbers() {
        let linear = dense(Element::F32, (2, 8), None);
        let x = Tensor::zeros((1, 7), DType::F32, &Device::Cpu).unwrap();
        let error = linear.forward(&x).unwrap_err().to_string();
        assert!(error.contains("width 7") && error.contains("8 inputs"), "{error}");
        let error = DenseLinear::from_f32(&[0.0; 16], (2, 8), Some(vec![0.0; 3])).unwrap_err().to_string();
        assert!(error.contains("length 3") && error.contains("expected 2"), "{error}");
        let error = DenseLinear::from_bytes(Element::F16, vec![0; 31], (2, 8), None).unwrap_err().to_string();
        assert!(error.contains("31 bytes") && error.contains("expected 32"), "{error}");
    }
}
