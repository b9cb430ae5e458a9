//! A checkpoint as the arrays of a comparison: packed linears decoded, everything else as it is stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use scruple_compress::export::{self, Quantization};
use scruple_weights::{
    Checkpoint, Error, Result, TensorView,
    lineage::{Array, Model, Packed},
};

use crate::printer;

/// The tensors of a packed linear, by their last word; the first one makes it one.
const PARTS: [&str; 9] = [
    "qweight",
    "weight_packed",
    "qzeros",
    "scales",
    "g_idx",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
];

/// A linear that the checkpoint holds as codes and scales.
struct PackedLinear {
    checkpoint: Arc<Checkpoint>,
    quantization: Arc<Quantization>,
    linear: String,
    shape: [usize; 2],
}

impl PackedLinear {
    fn error(&self, what: impl Into<String>) -> Error {
        Error::tensor(self.checkpoint.path(), &self.linear, what)
    }
}

impl Packed for PackedLinear {
    fn decode(&self) -> Result<Vec<f32>> {
        let decoded =
            export::decode(&self.checkpoint, &self.linear, &self.quantization).map_err(|error| match error {
                scruple_compress::Error::Weights(error) => error,
                other => self.error(format!("cannot be decoded: {}", printer::sentence(&other.into()))),
            })?;
        for part in PARTS {
            if let Some(view) = self.checkpoint.get(&format!("{}.{part}", self.linear)) {
                view.release();
            }
        }
        let (out_features, in_features) = decoded.shape();
        let found = [out_features, in_features];
        if found != self.shape {
            return Err(self.error(format!("decodes to shape {found:?}, expected {:?}", self.shape)));
        }
        Ok(decoded.dequantize())
    }
}

/// What of `checkpoint` is to be compared, and why its packed linears could not be decoded, if so: then they are
/// compared as they are stored.
///
/// # Errors
/// If a packed linear's shape cannot be read off its tensors.
pub fn model(checkpoint: Checkpoint) -> Result<(Model, Option<String>)> {
    let mut linears: BTreeMap<String, TensorView> = BTreeMap::new();
    for view in checkpoint.tensors() {
        for part in &PARTS[..2] {
            if let Some(linear) = view.name().strip_suffix(part).and_then(|name| name.strip_suffix('.')) {
                linears.insert(linear.into(), view.clone());
            }
        }
    }
    if linears.is_empty() {
        return Ok((Model::of(&checkpoint), None));
    }
    let quantization = match export::detect(&checkpoint) {
        Ok(Some(quantization)) => Arc::new(quantization),
        Ok(None) => {
            let why = "the checkpoint has packed linears, but no configuration that says how to read them";
            return Ok((Model::of(&checkpoint), Some(why.into())));
        }
        Err(error) => return Ok((Model::of(&checkpoint), Some(printer::sentence(&error.into())))),
    };
    let checkpoint = Arc::new(checkpoint);
    let mut parts: BTreeSet<String> = BTreeSet::new();
    let mut decoded: BTreeMap<String, Array> = BTreeMap::new();
    for (linear, codes) in linears {
        let shape = shape(&checkpoint, &linear, &codes, &quantization)?;
        parts.extend(PARTS.iter().map(|part| format!("{linear}.{part}")));
        let stored = format!("{} ({})", quantization.format.name(), codes.dtype());
        let name = format!("{linear}.weight");
        let packed = PackedLinear { checkpoint: checkpoint.clone(), quantization: quantization.clone(), linear, shape };
        decoded.insert(codes.name().into(), Array::packed(&name, &shape, &stored, Arc::new(packed)));
    }
    // A linear stands where its codes stand in the file.
    let arrays = checkpoint.tensors().filter_map(|view| match decoded.get(view.name()) {
        Some(array) => Some(array.clone()),
        None => (!parts.contains(view.name())).then(|| view.clone().into()),
    });
    Ok((Model::new(arrays.collect()), None))
}

/// (out_features, in_features): GPTQ's g_idx has an entry an input and its codes a column an output, compressed-tensors
/// says both. Where that does not fit the size of the codes, the linear is decoded to know, which also finds what is wrong.
fn shape(
    checkpoint: &Arc<Checkpoint>,
    linear: &str,
    codes: &TensorView,
    quantization: &Arc<Quantization>,
) -> Result<[usize; 2]> {
    let part = |part: &str| checkpoint.get(&format!("{linear}.{part}"));
    let told = if let Some(shape) = part("weight_shape").filter(|view| view.elements() == 2) {
        let numbers = shape.to_f32()?;
        Some([numbers[0] as usize, numbers[1] as usize])
    } else {
        let outputs = codes.shape().last().copied();
        part("g_idx").and_then(|g_idx| Some([outputs?, g_idx.elements()]))
    };
    // 2 to 8 bits a code; rows may be padded to whole words.
    let bytes = codes.bytes().len();
    let fits = |[rows, columns]: [usize; 2]| {
        rows.checked_mul(columns).is_some_and(|n| n > 0 && n / 4 <= bytes && bytes <= n + 4 * rows)
    };
    if let Some(shape) = told.filter(|shape| fits(*shape)) {
        return Ok(shape);
    }
    let decoded = export::decode(checkpoint, linear, quantization)
        .map_err(|error| codes.error(format!("cannot be decoded: {}", printer::sentence(&error.into()))))?;
    let (out_features, in_features) = decoded.shape();
    Ok([out_features, in_features])
}
