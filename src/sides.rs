//! A checkpoint as the arrays of a comparison: packed linears decoded, everything else as it is stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use scruple_compress::export::{self, Coded, Quantization};
use scruple_weights::{
    Checkpoint, Error, Result, TensorView,
    lineage::{Array, Model, Packed},
};

use crate::printer;

/// A tensor that the checkpoint holds as codes and scales.
struct PackedTensor {
    checkpoint: Arc<Checkpoint>,
    quantization: Arc<Quantization>,
    coded: Coded,
}

impl PackedTensor {
    fn error(&self, what: impl Into<String>) -> Error {
        Error::tensor(self.checkpoint.path(), &self.coded.linear, what)
    }
}

impl Packed for PackedTensor {
    fn decode(&self) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        for slice in 0..self.coded.slices {
            let decoded = self.coded.decode(&self.checkpoint, &self.quantization, slice);
            let decoded = decoded.map_err(|error| match error {
                scruple_compress::Error::Weights(error) => error,
                other => self.error(format!("cannot be decoded: {}", printer::sentence(&other.into()))),
            })?;
            values.extend(decoded.dequantize());
        }
        self.coded.release();
        let expected = self.coded.shape.iter().product::<usize>();
        if values.len() != expected {
            let (shape, found) = (&self.coded.shape, values.len());
            return Err(self.error(format!("decodes to {found} numbers, expected {expected} of shape {shape:?}")));
        }
        Ok(values)
    }
}

/// What of `checkpoint` is to be compared, and why its packed linears could not be decoded, if so: then they are
/// compared as they are stored.
///
/// # Errors
/// If a packed linear's shape cannot be read off its tensors.
pub fn model(checkpoint: Checkpoint) -> Result<(Model, Option<String>)> {
    // Codes in whole words, which nothing else is stored as.
    let packed = |view: &TensorView| view.name().ends_with(".qweight") || view.name().ends_with(".weight_packed");
    let any_packed = checkpoint.tensors().any(packed);
    let quantization = match checkpoint.config().is_ok() || any_packed {
        true => export::detect(&checkpoint),
        false => Ok(None), // a container without a configuration
    };
    let quantization = match quantization {
        Ok(Some(quantization)) => Arc::new(quantization),
        Ok(None) => {
            let why = "the checkpoint has packed linears, but no configuration that says how to read them";
            return Ok((Model::of(&checkpoint), any_packed.then(|| why.into())));
        }
        Err(error) => return Ok((Model::of(&checkpoint), Some(printer::sentence(&error.into())))),
    };
    let coded = export::coded(&checkpoint, &quantization).map_err(|error| match error {
        scruple_compress::Error::Weights(error) => error,
        other => Error::file(checkpoint.path(), printer::sentence(&other.into())),
    })?;
    let checkpoint = Arc::new(checkpoint);
    let mut parts: BTreeSet<String> = BTreeSet::new();
    let mut decoded: BTreeMap<String, Array> = BTreeMap::new();
    for coded in coded {
        parts.extend(coded.parts.iter().map(|view| view.name().to_owned()));
        let first = coded.parts[0].clone();
        let stored = format!("{} ({})", quantization.format.name(), first.dtype());
        let (name, shape) = (coded.name.clone(), coded.shape.clone());
        let packed = PackedTensor { checkpoint: checkpoint.clone(), quantization: quantization.clone(), coded };
        decoded.insert(first.name().into(), Array::packed(&name, &shape, &stored, Arc::new(packed)));
    }
    // A tensor stands where its codes stand in the file.
    let arrays = checkpoint.tensors().filter_map(|view| match decoded.get(view.name()) {
        Some(array) => Some(array.clone()),
        None => (!parts.contains(view.name()) && !export::is_leftover(view.name(), &quantization))
            .then(|| view.clone().into()),
    });
    Ok((Model::new(arrays.collect()), None))
}
