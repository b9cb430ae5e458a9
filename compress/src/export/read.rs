//! What a checkpoint says of its quantisation, and its linears read back.

use std::{borrow::Cow, path::PathBuf};

use scruple_weights::{Checkpoint, Dtype, TensorView};
use serde_json::Value;

use super::{Format, More, coded, error, expect_scales, expect_shape, is_coded, runnable, words};
use crate::{
    Error, Result,
    grid::ScaleDtype,
    model::linear::{DenseLinear, Linear},
    pack::{self, GptqVersion},
    weight::CompressedWeight,
};

/// How a checkpoint on disk is quantised, from its configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantization {
    /// How its linears are stored.
    pub format: Format,
    /// The different settings of its linears on grids.
    pub settings: Vec<Setting>,
    /// How a GPTQ file stores zero points.
    pub(super) gptq_version: Option<GptqVersion>,
    pub(super) more: More,
}

impl Quantization {
    /// What running the weights alone leaves out, as a sentence; `None` if nothing.
    pub fn note(&self) -> Option<&'static str> {
        let note = "the model asks for quantised activations as well; here they stay as they are, so the figures are those of \
                    its weights alone";
        self.more.rounds_activations.then_some(note)
    }
}

/// The numbers a linear was quantised with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// 2, 3, 4 or 8.
    pub bits: u32,
    /// `None` for one scale a row.
    pub group_size: Option<usize>,
    /// All zero points are `2^(bits − 1)`.
    pub symmetric: bool,
}

/// How the linears of `checkpoint` are quantised, from `quantization_config` in `config.json` or, for old GPTQ files,
/// from `quantize_config.json`; `None` for a checkpoint that is not quantised.
///
/// # Errors
/// If a file is not JSON, the method is not one of [`Format`]'s, or a field is missing or means something that is not
/// read here. One sentence names the file and the field.
pub fn detect(checkpoint: &Checkpoint) -> Result<Option<Quantization>> {
    let file = checkpoint.dir().join("config.json");
    if let Some(config) = checkpoint.config()?.get("quantization_config").filter(|config| !config.is_null()) {
        return read_config(config, None).map(Some).map_err(|what| config_error(file, &what));
    }
    let file = checkpoint.dir().join("quantize_config.json");
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(scruple_weights::Error::io(file, "read the file", error).into()),
    };
    serde_json::from_slice(&text)
        .map_err(|error| format!("is not valid JSON: {error}"))
        .and_then(|config| read_config(&config, Some("gptq")))
        .map(Some)
        .map_err(|what| config_error(file, &what))
}

fn config_error(file: PathBuf, what: &str) -> Error {
    scruple_weights::Error::file(file, format!("the quantisation configuration {what}")).into()
}

pub(super) fn read_config(config: &Value, default_method: Option<&str>) -> Result<Quantization, String> {
    let method = config.get("quant_method").and_then(Value::as_str).or(default_method);
    let names = || Format::READ.map(|format| format!("\"{}\"", format.name())).join(", ");
    let method = method.ok_or_else(|| format!("has no `quant_method`, expected one of {}", names()))?;
    let format = Format::READ.into_iter().find(|format| format.name() == method);
    let format =
        format.ok_or_else(|| format!("has quant_method \"{method}\", which is not read here, only {} are", names()))?;
    let (settings, gptq_version) = format.rules().settings(config)?;
    let more = format.rules().more(config)?;
    for &Setting { bits, group_size, .. } in &settings {
        if !pack::WIDTHS.contains(&bits) {
            return Err(format!("asks for {bits} bits, expected 2, 3, 4 or 8"));
        }
        if group_size == Some(0) {
            return Err("asks for groups of 0, expected a positive number, or -1 for one scale a row".into());
        }
    }
    Ok(Quantization { format, settings, gptq_version, more })
}

/// The quantised linear `linear` of `checkpoint`.
///
/// # Errors
/// If a tensor is missing, has another type or shape than `quantization` implies, or holds what cannot be: a scale that
/// is not a positive number, a group that does not exist. One sentence names the file, the tensor, what was expected and
/// what was found.
pub fn decode(checkpoint: &Checkpoint, linear: &str, quantization: &Quantization) -> Result<CompressedWeight> {
    quantization.format.rules().decode(&Source { checkpoint, linear, quantization })
}

/// The linear `linear` of `checkpoint` with its bias, ready to run: dense if there is a `weight` of plain numbers, else in
/// the form `quantization` says.
///
/// # Errors
/// As [`decode`]; and if there is neither.
pub fn load_linear(
    checkpoint: &Checkpoint,
    linear: &str,
    quantization: Option<&Quantization>,
) -> Result<Box<dyn Linear>> {
    let bias = checkpoint.get(&format!("{linear}.bias")).map(|bias| bias.to_f32()).transpose()?;
    let weight = format!("{linear}.weight");
    let Some(quantization) = quantization.filter(|quantization| is_coded(checkpoint, linear, quantization)) else {
        return Ok(Box::new(DenseLinear::from_view(checkpoint.tensor(&weight)?, bias)?));
    };
    let weight = decode(checkpoint, linear, quantization)?;
    let views: Vec<TensorView> = coded::parts(checkpoint, linear, quantization).collect();
    let bits = views.iter().map(|view| 8 * view.bytes().len() as u64).sum();
    views.iter().for_each(TensorView::release); // the codes are in memory now
    runnable(Cow::Owned(weight), bias, bits)
}

/// One linear of a checkpoint that is being decoded.
pub(super) struct Source<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) linear: &'a str,
    pub(super) quantization: &'a Quantization,
}

impl Source<'_> {
    /// The tensor `{linear}.{part}`, if there is one.
    pub(super) fn get(&self, part: &str) -> Option<TensorView> {
        self.checkpoint.get(&format!("{}.{part}", self.linear))
    }

    /// The tensor `{linear}.{part}`, of type `dtype`.
    pub(super) fn tensor(&self, part: &str, dtype: Dtype) -> Result<TensorView> {
        let tensor = self.checkpoint.tensor(&format!("{}.{part}", self.linear))?;
        if tensor.dtype() != dtype {
            return Err(error(&tensor, format!("has type {}, expected {dtype}", tensor.dtype())));
        }
        Ok(tensor)
    }

    /// The two dimensions of the tensor `{linear}.{part}` of type `dtype`.
    pub(super) fn matrix(&self, part: &str, dtype: Dtype) -> Result<(TensorView, usize, usize)> {
        let tensor = self.tensor(part, dtype)?;
        match *tensor.shape() {
            [rows, columns] if rows > 0 && columns > 0 => Ok((tensor, rows, columns)),
            _ => Err(error(&tensor, format!("has shape {:?}, expected two dimensions", tensor.shape()))),
        }
    }

    /// The setting that says `bits` and `group_size` columns of `in_features` a scale; `tensor` is at fault if none does.
    pub(super) fn setting(
        &self,
        bits: u32,
        group_size: usize,
        in_features: usize,
        tensor: &TensorView,
    ) -> Result<Setting> {
        let size = |setting: &Setting| setting.group_size.unwrap_or(in_features);
        let fits = |setting: &&Setting| setting.bits == bits && size(setting) == group_size;
        self.quantization.settings.iter().find(fits).copied().ok_or_else(|| {
            let known = self.quantization.settings.iter();
            let known: Vec<_> =
                known.map(|known| format!("{} bits in groups of {}", known.bits, size(known))).collect();
            let what = format!(
                "has shape {:?}: with the tensors beside it that is {bits} bits in groups of {group_size}, but the \
                 configuration says {}",
                tensor.shape(),
                known.join(" or ")
            );
            error(tensor, what)
        })
    }

    /// The positive finite scales in `{linear}.{part}` of shape (rows, columns), and their stored type.
    pub(super) fn scales(&self, part: &str, shape: [usize; 2]) -> Result<(Vec<f32>, ScaleDtype)> {
        let tensor = self.checkpoint.tensor(&format!("{}.{part}", self.linear))?;
        let dtype = match tensor.dtype() {
            Dtype::F16 => ScaleDtype::F16,
            Dtype::Bf16 => ScaleDtype::Bf16,
            Dtype::F32 => ScaleDtype::F32,
            other => return Err(error(&tensor, format!("has type {other}, expected F16, BF16 or F32"))),
        };
        expect_shape(&tensor, &shape)?;
        let scales = tensor.to_f32()?;
        expect_scales(&tensor, &scales, shape[1])?;
        Ok((scales, dtype))
    }

    /// The group of each column from `{linear}.{part}`, if there is such a tensor and the groups are not contiguous.
    pub(super) fn g_idx(&self, part: &str, in_features: usize, group_size: usize) -> Result<Option<Vec<u32>>> {
        if self.get(part).is_none() {
            return Ok(None);
        }
        let tensor = self.tensor(part, Dtype::I32)?;
        expect_shape(&tensor, &[in_features])?;
        let groups = in_features / group_size;
        let mut columns = vec![0usize; groups];
        let mut g_idx = Vec::with_capacity(in_features);
        for (column, word) in words(&tensor).into_iter().enumerate() {
            if word as usize >= groups {
                let what = format!("puts column {column} into group {}, expected 0 to {}", word as i32, groups - 1);
                return Err(error(&tensor, what));
            }
            columns[word as usize] += 1;
            g_idx.push(word);
        }
        if let Some(group) = columns.iter().position(|&count| count != group_size) {
            let what = format!("gives group {group} {} columns, expected {group_size}", columns[group]);
            return Err(error(&tensor, what));
        }
        let contiguous = g_idx.iter().enumerate().all(|(column, &group)| column / group_size == group as usize);
        Ok((!contiguous).then_some(g_idx))
    }
}
