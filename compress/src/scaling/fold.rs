//! Scales in what is stored: norms divided by them, the rows, columns and biases of linears.

use std::collections::HashMap;

use scruple_weights::{Checkpoint, Dtype};

use crate::{Error, Result, grid::ScaleDtype, model::spec::NormKind};

/// A norm that scales are folded into, as it is stored.
pub(super) struct FoldedNorm {
    /// What is added to the stored weight.
    pub(super) offset: f32,
    pub(super) weight: Vec<f32>,
    pub(super) dtype: ScaleDtype,
    pub(super) bias: Option<(Vec<f32>, ScaleDtype)>,
}

impl FoldedNorm {
    pub(super) fn load(checkpoint: &Checkpoint, name: &str, kind: NormKind) -> Result<Self> {
        let read = |part: &str| stored(checkpoint, &format!("{name}.{part}"));
        let (weight, dtype) = read("weight")?;
        let bias = if kind == NormKind::Layer { Some(read("bias")?) } else { None };
        let offset = if kind == NormKind::RmsFromOne { 1.0 } else { 0.0 };
        Ok(Self { offset, weight, dtype, bias })
    }

    /// The scale between the stored weight `class` and `new` in its place; 1 where there is none.
    pub(super) fn between(&self, class: usize, new: f32) -> f32 {
        let old = self.weight[class];
        let scale = (self.offset + old) / (self.offset + new);
        if old == new || !(scale.is_finite() && scale > 0.0) { 1.0 } else { scale }
    }

    /// The weight that stands for `class` divided by about `scale`.
    pub(super) fn divided(&self, class: usize, scale: f32) -> f32 {
        let old = self.weight[class];
        if scale == 1.0 {
            return old;
        }
        let new = self.dtype.round((self.offset + old) / scale - self.offset);
        let between = (self.offset + old) / (self.offset + new);
        let bias = self.bias.as_ref().map_or(0.0, |(bias, dtype)| dtype.round(bias[class] / between));
        let holds = between.is_finite() && between > 0.0 && new.is_finite() && bias.is_finite();
        if holds { new } else { old }
    }

    /// Moves `scales` to such as the stored weight can be divided by.
    pub(super) fn settle(&self, scales: &mut [f32]) {
        for (class, scale) in scales.iter_mut().enumerate() {
            *scale = self.between(class, self.divided(class, *scale));
        }
    }

    /// The bias divided by `scales`.
    pub(super) fn bias(&self, scales: &[f32]) -> Option<(Vec<f32>, ScaleDtype)> {
        let (bias, dtype) = self.bias.as_ref()?;
        Some((bias.iter().zip(scales).map(|(bias, scale)| dtype.round(bias / scale)).collect(), *dtype))
    }
}

/// The floats of a tensor, and what they are stored as.
pub(super) fn stored(checkpoint: &Checkpoint, name: &str) -> Result<(Vec<f32>, ScaleDtype)> {
    let view = checkpoint.tensor(name)?;
    let dtype = float_dtype(view.dtype()).ok_or_else(|| {
        let what = format!("has type {}, expected F16, BF16 or F32", view.dtype());
        Error::from(scruple_weights::Error::tensor(view.file(), name, what))
    })?;
    Ok((view.to_f32()?, dtype))
}

/// What the scales of a block change in its linears, by their full names.
#[derive(Debug, Default)]
pub(crate) struct BlockScales {
    /// What each column is multiplied by.
    columns: HashMap<String, Vec<f32>>,
    /// What each row, and the bias, is divided by.
    rows: HashMap<String, Vec<f32>>,
}

impl BlockScales {
    /// Scales the weight (out, in) of the linear called `name`.
    pub fn apply(&self, name: &str, values: &mut [f32]) {
        if let Some(scales) = self.columns.get(name) {
            for row in values.chunks_exact_mut(scales.len()) {
                row.iter_mut().zip(scales).for_each(|(w, s)| *w *= s);
            }
        }
        if let Some(scales) = self.rows.get(name) {
            let width = values.len() / scales.len();
            for (row, scale) in values.chunks_exact_mut(width).zip(scales).filter(|(_, scale)| **scale != 1.0) {
                row.iter_mut().for_each(|w| *w /= scale);
            }
        }
    }

    /// Divides the bias of the linear called `name`, which is stored as `dtype`.
    pub fn apply_to_bias(&self, name: &str, bias: &mut [f32], dtype: Option<ScaleDtype>) {
        let (Some(scales), Some(dtype)) = (self.rows.get(name), dtype) else { return };
        bias.iter_mut().zip(scales).for_each(|(b, s)| *b = dtype.round(*b / s));
    }

    /// The bias of the linear called `name`, if it has one, as it will be read back.
    pub fn bias(&self, checkpoint: &Checkpoint, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(view) = checkpoint.get(&format!("{name}.bias")) else { return Ok(None) };
        let mut bias = view.to_f32()?;
        self.apply_to_bias(name, &mut bias, float_dtype(view.dtype()));
        Ok(Some(bias))
    }

    /// Takes note of the `scales` of a group whose fold changes the rows of a linear of `out_features`.
    pub(super) fn add_rows(&mut self, name: &str, out_features: usize, rows: &[u32], scales: &[f32]) {
        let divisors = self.rows.entry(name.into()).or_insert_with(|| vec![1.0; out_features]);
        rows.iter().zip(scales).for_each(|(&row, &scale)| divisors[row as usize] = scale);
    }

    pub(super) fn add_columns(&mut self, name: &str, classes: &[u32], scales: &[f32]) {
        self.columns.insert(name.into(), classes.iter().map(|&class| scales[class as usize]).collect());
    }
}

pub(super) fn float_dtype(dtype: Dtype) -> Option<ScaleDtype> {
    match dtype {
        Dtype::F16 => Some(ScaleDtype::F16),
        Dtype::Bf16 => Some(ScaleDtype::Bf16),
        Dtype::F32 => Some(ScaleDtype::F32),
        _ => None,
    }
}
