//! Dequantised weights in the model's own type, "fake quantisation": loads everywhere, saves nothing.
//!
//! `P.weight` (out, in). The rounding of `scale · (q − zero)` to the stored type is part of this format: reading back
//! gives the stored numbers, which differ from the packed formats' by that rounding. Pruned weights stand here as zeros.

use rayon::prelude::*;
use scruple_weights::TensorSpec;
use serde_json::Value;

use super::{Error, GptqVersion, Layout, QuantisedModel, Result, Rules, Setting, Source, element, write_floats};
use crate::{grid::ScaleDtype, weight::CompressedWeight};

pub(super) struct Dense;

impl Rules for Dense {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn scale_dtype(&self, dtype: ScaleDtype) -> ScaleDtype {
        dtype
    }

    fn check(&self, _: &Layout) -> Result<(), String> {
        Ok(())
    }

    fn specs(&self, linear: &str, layout: &Layout) -> Vec<TensorSpec> {
        let shape = vec![layout.out_features, layout.in_features];
        vec![TensorSpec { name: format!("{linear}.weight"), dtype: element(layout.dtype).dtype(), shape }]
    }

    fn encode(&self, linear: &str, weight: &CompressedWeight, dtype: ScaleDtype) -> Result<Vec<(String, Vec<u8>)>> {
        let (out_features, in_features) = weight.shape();
        let stride = in_features * element(dtype).bytes();
        let mut bytes = vec![0; out_features * stride];
        bytes.par_chunks_exact_mut(stride).enumerate().for_each_init(
            || vec![0.0; in_features],
            |values, (row, bytes)| {
                weight.dequantize_row(row, values);
                write_floats(values, dtype, bytes);
            },
        );
        Ok(vec![(format!("{linear}.weight"), bytes)])
    }

    fn config(&self, _: &QuantisedModel<'_>) -> Result<Option<Value>> {
        Ok(None)
    }

    fn settings(&self, _: &Value) -> Result<(Vec<Setting>, Option<GptqVersion>), String> {
        Err("describes a dense model, which needs none".into())
    }

    fn decode(&self, source: &Source<'_>) -> Result<CompressedWeight> {
        Err(Error::Model(format!("`{}` is stored dense: it has numbers, not codes", source.linear)))
    }
}
