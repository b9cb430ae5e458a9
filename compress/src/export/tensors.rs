//! What the formats share: tensors' shapes and bytes, numbers that can be stored, and fields of a configuration.

use scruple_weights::TensorView;
use serde_json::Value;

use crate::{
    Error, Result,
    grid::{Quantised, ScaleDtype},
    kernel::dense::Element,
    weight::CompressedWeight,
};

/// The codes of `weight`, for a format that stores nothing else.
pub(super) fn on_grid<'a>(linear: &str, weight: &'a CompressedWeight) -> Result<&'a Quantised> {
    let refuse = || Error::Model(format!("`{linear}` is {}, expected codes on a grid", weight.code().describe()));
    weight.quantised().ok_or_else(refuse)
}

/// Refuses `scales` read from `tensor` in rows of `columns` that are not positive finite numbers.
pub(super) fn expect_scales(tensor: &TensorView, scales: &[f32], columns: usize) -> Result<()> {
    let Some(at) = scales.iter().position(|&scale| !is_scale(scale)) else { return Ok(()) };
    let (row, column) = (at / columns, at % columns);
    Err(error(tensor, format!("holds {} at [{row}, {column}], expected a scale above zero", scales[at])))
}

/// A fault of one tensor.
pub(super) fn error(tensor: &TensorView, what: impl Into<String>) -> Error {
    scruple_weights::Error::tensor(tensor.file(), tensor.name(), what).into()
}

pub(super) fn expect_shape(tensor: &TensorView, expected: &[usize]) -> Result<()> {
    if tensor.shape() != expected {
        return Err(error(tensor, format!("has shape {:?}, expected {expected:?}", tensor.shape())));
    }
    Ok(())
}

/// The 32-bit words of `tensor`.
pub(super) fn words(tensor: &TensorView) -> Vec<u32> {
    tensor.bytes().as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

/// Words as little-endian bytes.
pub(super) fn word_bytes(words: &[u32]) -> Vec<u8> {
    let mut bytes = vec![0; 4 * words.len()];
    bytes.as_chunks_mut::<4>().0.iter_mut().zip(words).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
    bytes
}

/// Floats as little-endian bytes of `dtype`, rounded to it.
pub(crate) fn float_bytes(values: &[f32], dtype: ScaleDtype) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * element(dtype).bytes()];
    write_floats(values, dtype, &mut bytes);
    bytes
}

/// [`float_bytes`] into `bytes`, which has room for just them.
pub(super) fn write_floats(values: &[f32], dtype: ScaleDtype, bytes: &mut [u8]) {
    fn convert<const N: usize>(values: &[f32], bytes: &mut [u8], to_bytes: impl Fn(f32) -> [u8; N]) {
        bytes.as_chunks_mut::<N>().0.iter_mut().zip(values).for_each(|(bytes, value)| *bytes = to_bytes(*value));
    }
    match dtype {
        ScaleDtype::F16 => convert(values, bytes, |value| half::f16::from_f32(value).to_le_bytes()),
        ScaleDtype::Bf16 => convert(values, bytes, |value| half::bf16::from_f32(value).to_le_bytes()),
        ScaleDtype::F32 => convert(values, bytes, f32::to_le_bytes),
    }
}

/// The kernels' name of a type of floats.
pub(super) const fn element(dtype: ScaleDtype) -> Element {
    match dtype {
        ScaleDtype::F16 => Element::F16,
        ScaleDtype::Bf16 => Element::Bf16,
        ScaleDtype::F32 => Element::F32,
    }
}

fn is_scale(scale: f32) -> bool {
    scale.is_finite() && scale > 0.0
}

/// What `q` promises and does not hold.
pub(super) fn check_numbers(q: &Quantised, scale_dtype: ScaleDtype) -> Result<(), String> {
    let (weights, scales) = (q.out_features * q.in_features, q.out_features * q.groups());
    if (q.codes.len(), q.scales.len(), q.zeros.len()) != (weights, scales, scales) {
        return Err(format!(
            "{} codes, {} scales and {} zero points, expected {weights}, {scales} and {scales}",
            q.codes.len(),
            q.scales.len(),
            q.zeros.len()
        ));
    }
    let limit = (1u32 << q.bits) - 1;
    // The maximum runs in vectors; the search is for the message only.
    if q.codes.iter().copied().max().is_some_and(|code| u32::from(code) > limit)
        && let Some(at) = q.codes.iter().position(|&code| u32::from(code) > limit)
    {
        let (row, column) = (at / q.in_features, at % q.in_features);
        return Err(format!("the code at [{row}, {column}] is {}, above the largest of {} bits", q.codes[at], q.bits));
    }
    let middle = 1u8 << (q.bits - 1);
    let zero_is_wrong = |&zero: &u8| u32::from(zero) > limit || (q.symmetric && zero != middle);
    if let Some(at) = q.zeros.iter().position(zero_is_wrong) {
        let expected = if q.symmetric { format!("{middle}") } else { format!("at most {limit}") };
        return Err(format!("the zero point of row {} is {}, expected {expected}", at / q.groups(), q.zeros[at]));
    }
    let scale_is_wrong = |&scale: &f32| !is_scale(scale) || scale_dtype.round(scale) != scale;
    if let Some(at) = q.scales.iter().position(scale_is_wrong) {
        return Err(format!(
            "the scale of row {}, group {} is {:e}, expected a number above zero that {scale_dtype:?} holds exactly",
            at / q.groups(),
            at % q.groups(),
            q.scales[at]
        ));
    }
    let Some(g_idx) = &q.g_idx else { return Ok(()) };
    let mut columns = vec![0usize; q.groups()];
    for &group in g_idx {
        *columns.get_mut(group as usize).ok_or(format!("there is no group {group} of {}", q.groups()))? += 1;
    }
    match columns.iter().position(|&count| count != q.group_size) {
        Some(group) => Err(format!("group {group} has {} columns, expected {}", columns[group], q.group_size)),
        None => Ok(()),
    }
}

/// Group sizes in use that divide `in_features`, as a phrase.
pub(super) fn group_sizes(in_features: usize) -> String {
    let mut sizes: Vec<_> = [32, 64, 128, 256].into_iter().filter(|size| in_features.is_multiple_of(*size)).collect();
    sizes.push(in_features);
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// A field of a configuration, absent and null alike.
pub(super) fn field<'a>(config: &'a Value, name: &str) -> Option<&'a Value> {
    config.get(name).filter(|value| !value.is_null())
}

/// A whole number in a configuration.
pub(super) fn whole_number(config: &Value, name: &str) -> Result<Option<i64>, String> {
    let wrong = |value: &Value| format!("has `{name}` {value}, expected a whole number");
    field(config, name).map(|value| value.as_i64().ok_or_else(|| wrong(value))).transpose()
}

/// A yes or no in a configuration.
pub(super) fn flag(config: &Value, name: &str, default: bool) -> Result<bool, String> {
    let wrong = |value: &Value| format!("has `{name}` {value}, expected true or false");
    field(config, name).map_or(Ok(default), |value| value.as_bool().ok_or_else(|| wrong(value)))
}

/// −1 for one scale a row, else a positive number.
pub(super) fn group_size(size: i64) -> Result<Option<usize>, String> {
    match size {
        -1 => Ok(None),
        1.. => Ok(Some(size as usize)),
        _ => Err(format!("has `group_size` {size}, expected a positive number, or -1 for one scale a row")),
    }
}
