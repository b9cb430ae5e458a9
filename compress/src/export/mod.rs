//! How a quantised linear is written so that other tools load it, and how it is read back.
//!
//! A format is one file here and one line in [`Format`]. Before any work, [`Format::check`] says whether a linear fits
//! and [`Format::specs`] which tensors it becomes; [`Format::encode`] gives their bytes, and [`Format::config`] what
//! `config.json` says about them. The other way, [`detect`] reads that configuration and [`decode`] one linear.
//! Decoding what was encoded gives the same [`CompressedWeight`], so what runs is what was written. Weights that are
//! plain numbers ([`Code::Dense`]) are stored as such in every format.

use std::{borrow::Cow, fmt, str::FromStr};

use scruple_weights::TensorSpec;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Error, Result,
    grid::ScaleDtype,
    kernel::rtn_pack::Packed,
    model::linear::{CodedLinear, DenseLinear, Linear, PackedLinear},
    pack::{self, GptqVersion},
    weight::{Code, CompressedWeight, Float8Scales, GridCode},
};

mod awq;

mod bitsandbytes;

mod coded;

mod compressed_tensors;

mod dense;

mod fp8;

mod gptq;

mod mxfp4;

mod read;

mod tensors;

#[cfg(test)]
mod tests;

pub(crate) use self::tensors::float_bytes;
pub use self::{
    coded::{Coded, coded, is_coded, is_leftover},
    read::{Quantization, Setting, decode, detect, load_linear},
};
use self::{
    read::Source,
    tensors::{
        check_numbers, element, error, expect_scales, expect_shape, field, flag, group_size, group_sizes, on_grid,
        whole_number, word_bytes, words, write_floats,
    },
};

/// A way to store quantised linears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `qweight`, `qzeros`, `scales`, `g_idx`: AutoGPTQ's and GPTQModel's, version 1 for symmetric weights (every
    /// reader) and 2 for asymmetric ones.
    Gptq,
    /// `weight_packed`, `weight_scale`, `weight_shape`: compressed-tensors' `pack-quantized`, 4 and 8 bit; and its
    /// `float-quantized`, `weight` in FP8 with `weight_scale`.
    CompressedTensors,
    /// `qweight`, `qzeros`, `scales`: AutoAWQ's "GEMM" version, 4 bit.
    Awq,
    /// `weight`, `weight.absmax`, `weight.quant_state…`: bitsandbytes' NF4.
    Bitsandbytes,
    /// `weight`: the dequantised numbers in the model's own type, for any reader; saves nothing.
    Dense,
    /// `weight` in FP8 with `weight_scale_inv`, as DeepSeek and Qwen publish it. Read, not written.
    Fp8,
    /// `…_blocks` and `…_scales`: the microscaling floats of gpt-oss. Read, not written.
    Mxfp4,
}

impl Format {
    /// Every format that is written, in the order they are listed to a user.
    pub const ALL: [Self; 5] = [Self::Gptq, Self::CompressedTensors, Self::Awq, Self::Bitsandbytes, Self::Dense];

    /// Every format that is read by its `quant_method`. A dense export has no configuration.
    const READ: [Self; 6] =
        [Self::Gptq, Self::CompressedTensors, Self::Awq, Self::Bitsandbytes, Self::Fp8, Self::Mxfp4];

    fn rules(self) -> &'static dyn Rules {
        match self {
            Self::Gptq => &gptq::Gptq,
            Self::CompressedTensors => &compressed_tensors::CompressedTensors,
            Self::Awq => &awq::Awq,
            Self::Bitsandbytes => &bitsandbytes::Bitsandbytes,
            Self::Dense => &dense::Dense,
            Self::Fp8 => &fp8::Fp8,
            Self::Mxfp4 => &mxfp4::Mxfp4,
        }
    }

    /// Whether the format stores weights in the way `code` at all; [`Self::check`] says whether it can hold one linear.
    pub fn stores(self, code: Code) -> bool {
        match (self, code) {
            (Self::Fp8 | Self::Mxfp4, _) => false,
            (Self::Dense, _) | (_, Code::Dense) => true,
            (Self::Gptq, code) => matches!(code, Code::Grid(_)),
            (Self::Awq, code) => code.grid().is_some_and(|grid| grid.bits == 4 && !grid.has_g_idx),
            (Self::CompressedTensors, code) => matches!(code, Code::Grid(_) | Code::Float8(_)),
            (Self::Bitsandbytes, code) => matches!(code, Code::Table4(_)),
        }
    }

    /// The rules for a linear stored in the way `code`.
    fn rules_for(self, code: Code) -> &'static dyn Rules {
        if code == Code::Dense { &dense::Dense } else { self.rules() }
    }

    /// What a user calls it.
    pub fn name(self) -> &'static str {
        self.rules().name()
    }

    /// The type scales are stored in, in a model whose floats are `dtype`. Codes must be chosen for scales rounded to it.
    pub fn scale_dtype(self, dtype: ScaleDtype) -> ScaleDtype {
        self.rules().scale_dtype(dtype)
    }

    /// Whether the format can hold such a linear.
    ///
    /// # Errors
    /// [`Error::Recipe`] naming `linear`, what the format cannot hold, and what would work.
    pub fn check(self, linear: &str, layout: &Layout) -> Result<()> {
        let refuse = |what: String| Error::Recipe(format!("`{linear}` cannot be written as {}: {what}", self.name()));
        let Layout { out_features, in_features, code, .. } = *layout;
        if out_features == 0 || in_features == 0 {
            return Err(refuse(format!("its weight is empty, [{out_features}, {in_features}]")));
        }
        if let Code::Grid(GridCode { bits, group_size, .. }) = code {
            if !pack::WIDTHS.contains(&bits) {
                return Err(refuse(format!("{bits} bits were asked for; 2, 3, 4 or 8 can be packed")));
            }
            if group_size == 0 || !in_features.is_multiple_of(group_size) {
                return Err(refuse(format!(
                    "its {in_features} inputs are not a multiple of the group size {group_size}; {} would work",
                    group_sizes(in_features)
                )));
            }
        }
        self.rules_for(code).check(layout).map_err(refuse)
    }

    /// The tensors a linear becomes, in the order [`Self::encode`] gives them. Its bias, if any, is not among them: it
    /// stays as it is.
    pub fn specs(self, linear: &str, layout: &Layout) -> Vec<TensorSpec> {
        self.rules_for(layout.code).specs(linear, layout)
    }

    /// Bits those tensors take.
    pub fn storage_bits(self, layout: &Layout) -> u64 {
        let bytes = |spec: &TensorSpec| spec.dtype.bytes(spec.shape.iter().product()).unwrap_or(0);
        self.specs("", layout).iter().map(|spec| 8 * bytes(spec) as u64).sum()
    }

    /// (tensor name, bytes) for each of [`Self::specs`] of a linear compressed to `weight` in a model whose floats are
    /// `dtype`.
    ///
    /// # Errors
    /// What [`Self::check`] refuses; [`Error::Numeric`] if `weight` is not what its fields promise: another number of
    /// codes, a code out of range, a scale that is not a positive number of [`Self::scale_dtype`].
    pub fn encode(self, linear: &str, weight: &CompressedWeight, dtype: ScaleDtype) -> Result<Vec<(String, Vec<u8>)>> {
        self.check(linear, &Layout::of(weight, dtype))?;
        let expected = self.scale_dtype(dtype);
        let fault = match weight {
            CompressedWeight::Grid(q) => check_numbers(q, expected).err(),
            CompressedWeight::Float8(q) => q.fault().or_else(|| {
                let found = q.scale_dtype;
                (found != expected).then(|| format!("its scales are of type {found:?}, expected {expected:?}"))
            }),
            CompressedWeight::Table4(q) => q.fault(),
            CompressedWeight::Dense(_) => None,
        };
        if let Some(what) = fault {
            return Err(Error::Numeric(format!("`{linear}`: {what}")));
        }
        self.rules_for(weight.code()).encode(linear, weight, dtype)
    }

    /// `quantization_config` for `config.json`; `None` if the format needs none.
    ///
    /// # Errors
    /// [`Error::Recipe`] if the linears cannot stand in one file.
    pub fn config(self, model: &QuantisedModel<'_>) -> Result<Option<Value>> {
        self.rules().config(model)
    }

    /// JSON files that stand beside `config.json`: (name, content).
    ///
    /// # Errors
    /// As [`Self::config`].
    pub fn side_files(self, model: &QuantisedModel<'_>) -> Result<Vec<(String, Value)>> {
        self.rules().side_files(model)
    }

    /// The linear that reading back what [`Self::encode`] writes gives: evaluate this one, and the figures are the
    /// file's.
    ///
    /// # Errors
    /// As [`Self::encode`], and for a `bias` of a length other than out_features.
    pub fn linear(
        self,
        weight: &CompressedWeight,
        bias: Option<Vec<f32>>,
        dtype: ScaleDtype,
    ) -> Result<Box<dyn Linear>> {
        let layout = Layout::of(weight, dtype);
        if self == Self::Dense || layout.code == Code::Dense {
            let (_, bytes) = self.encode("weight", weight, dtype)?.swap_remove(0);
            return Ok(Box::new(DenseLinear::from_bytes(element(dtype), bytes, weight.shape(), bias)?));
        }
        self.check("weight", &layout)?;
        runnable(Cow::Borrowed(weight), bias, self.storage_bits(&layout))
    }
}

/// The linear of `weight` that takes `bits` on disk, its codes packed or as they are.
fn runnable(weight: Cow<'_, CompressedWeight>, bias: Option<Vec<f32>>, bits: u64) -> Result<Box<dyn Linear>> {
    Ok(match &*weight {
        CompressedWeight::Grid(q) => Box::new(PackedLinear::new(q, bias)?.with_storage_bits(bits)),
        CompressedWeight::Float8(_) | CompressedWeight::Table4(_) => {
            Box::new(CodedLinear::new(weight.into_owned(), bias, bits)?)
        }
        CompressedWeight::Dense(_) => {
            Box::new(DenseLinear::from_f32(&weight.dequantize(), weight.shape(), bias)?.with_storage_bits(bits))
        }
    })
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let names = || Self::ALL.map(Self::name).join("`, `");
        let found = Self::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or_else(|| Error::Recipe(format!("unknown format `{name}`, expected one of `{}`", names())))
    }
}

/// Everything about a compressed linear that decides its tensors' names, types and shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Rows of the weight.
    pub out_features: usize,
    /// Columns of the weight.
    pub in_features: usize,
    /// The way the weight is stored.
    pub code: Code,
    /// The model's type of floats: what dense weights are stored in.
    pub dtype: ScaleDtype,
}

impl Layout {
    /// The layout of `weight` in a model whose floats are `dtype`.
    pub fn of(weight: &CompressedWeight, dtype: ScaleDtype) -> Self {
        let (out_features, in_features) = weight.shape();
        Self { out_features, in_features, code: weight.code(), dtype }
    }

    /// Number of weights.
    pub fn weights(&self) -> u64 {
        self.out_features as u64 * self.in_features as u64
    }

    /// The grid, with its groups in a row; for the files of formats that store nothing else.
    fn grid(&self) -> Result<(GridCode, usize), String> {
        let grid = self.code.grid().ok_or_else(|| {
            format!("it is stored as {}, and the format holds codes on uniform grids only", self.code.describe())
        })?;
        Ok((grid, self.in_features / grid.group_size.max(1)))
    }

    /// What two linears share if one description does for both: everything but their shapes and types.
    fn kind(&self) -> (Code, i64) {
        match self.code {
            Code::Grid(grid) => (Code::Grid(GridCode { group_size: 0, ..grid }), self.config_group_size()),
            code => (code, 0),
        }
    }

    /// The group size as configurations write it: −1 for one scale a row.
    fn config_group_size(&self) -> i64 {
        match self.code.grid() {
            Some(grid) if grid.group_size != self.in_features => grid.group_size as i64,
            _ => -1,
        }
    }

    /// What configurations tell apart: bits, group size, symmetric.
    fn setting(&self) -> (u32, i64, bool) {
        let (bits, symmetric) = self.code.grid().map_or((0, true), |grid| (grid.bits, grid.symmetric));
        (bits, self.config_group_size(), symmetric)
    }
}

/// What a configuration says about a whole model.
#[derive(Debug, Clone, Copy)]
pub struct QuantisedModel<'a> {
    /// Every quantised linear, by its name in the checkpoint (`model.layers.0.mlp.up_proj`).
    pub linears: &'a [(String, Layout)],
    /// Every linear left as it was, `lm_head` included.
    pub dense: &'a [String],
    /// Modules beside the decoder, such as a vision tower, by the first name of their path: nothing in them is quantised.
    pub beside: &'a [String],
    /// Columns were quantised by descending diag(H).
    pub activation_order: bool,
    /// The linears of a block were quantised in the order the data meets them, each seeing the ones before quantised.
    pub true_sequential: bool,
    /// Added to diag(H), as a fraction of its mean; `None` for methods without a Hessian.
    pub dampening: Option<f64>,
}

impl QuantisedModel<'_> {
    /// The layout of most linears, ties to the first, and those of another kind.
    fn majority(&self) -> Result<(Layout, Vec<(&str, Layout)>)> {
        let key = Layout::kind;
        let mut counts: Vec<(Layout, usize)> = Vec::new();
        for (_, layout) in self.linears {
            match counts.iter_mut().find(|(known, _)| key(known) == key(layout)) {
                Some((_, count)) => *count += 1,
                None => counts.push((*layout, 1)),
            }
        }
        // `max_by_key` takes the last of equals.
        let Some(&(main, _)) = counts.iter().rev().max_by_key(|(_, count)| *count) else {
            return Err(Error::Recipe("no linear was quantised, so there is no quantisation to describe".into()));
        };
        let others = self.linears.iter().filter(|(_, layout)| key(layout) != key(&main));
        Ok((main, others.map(|(name, layout)| (name.as_str(), *layout)).collect()))
    }

    /// What is dense, for loaders that match the start of a module's name: releases differ in where `model.` stands in a
    /// model that reads more than text.
    fn dense_names(&self) -> Vec<String> {
        let own = self.dense.iter().flat_map(|name| [Some(name.clone()), other_name(name)]).flatten();
        let parts = self.beside.iter().flat_map(|part| [part.clone(), format!("model.{part}")]);
        own.chain(parts).collect()
    }

    fn has_g_idx(&self) -> bool {
        self.linears.iter().filter_map(|(_, layout)| layout.code.grid()).any(|grid| grid.has_g_idx)
    }
}

/// What other releases call the linear `name` of the text part of a model that reads more.
fn other_name(name: &str) -> Option<String> {
    const FORMS: [&str; 2] = ["language_model.model.", "model.language_model."];
    let renamed = |from: usize| Some(format!("{}{}", FORMS[1 - from], name.strip_prefix(FORMS[from])?));
    renamed(0).or_else(|| renamed(1))
}

/// How formats that are only read refuse to be written.
const READ_ONLY: &str = "the format is read here, not written; write compressed-tensors or dense";

/// One format's file.
trait Rules: Sync {
    fn name(&self) -> &'static str;
    fn scale_dtype(&self, _dtype: ScaleDtype) -> ScaleDtype {
        ScaleDtype::F32
    }
    /// What [`Format::check`] has not refused for every format. A format that is only read leaves this and the next three
    /// as they stand.
    fn check(&self, _layout: &Layout) -> Result<(), String> {
        Err(READ_ONLY.into())
    }
    fn specs(&self, _linear: &str, _layout: &Layout) -> Vec<TensorSpec> {
        Vec::new()
    }
    fn encode(&self, linear: &str, _weight: &CompressedWeight, _dtype: ScaleDtype) -> Result<Vec<(String, Vec<u8>)>> {
        Err(Error::Recipe(format!("`{linear}` cannot be written: {READ_ONLY}")))
    }
    fn config(&self, _model: &QuantisedModel<'_>) -> Result<Option<Value>> {
        Err(Error::Recipe(READ_ONLY.into()))
    }
    fn side_files(&self, _model: &QuantisedModel<'_>) -> Result<Vec<(String, Value)>> {
        Ok(Vec::new())
    }
    /// The settings in `config`, a `quantization_config` of this format's `quant_method`.
    fn settings(&self, _config: &Value) -> Result<(Vec<Setting>, Option<GptqVersion>), String> {
        Ok((Vec::new(), None))
    }
    /// What `config` says beyond that.
    fn more(&self, _config: &Value) -> Result<More, String> {
        Ok(More::default())
    }
    fn decode(&self, source: &Source<'_>) -> Result<CompressedWeight>;
    /// The last words of the names of tensors that say that a linear is stored as codes.
    fn marks(&self) -> &'static [&'static str] {
        &["qweight"]
    }
    /// The last words of the names of all tensors such a linear may have, but its bias.
    fn parts(&self) -> &'static [&'static str] {
        &["qweight", "qzeros", "scales", "g_idx"]
    }
    /// What stands between a linear's name and these words.
    fn joint(&self) -> char {
        '.'
    }
    /// The name of the dense tensor that `linear` stands for.
    fn dense_name(&self, linear: &str) -> String {
        format!("{linear}.weight")
    }
    /// The shape of that tensor, without decoding where the stored tensors tell.
    fn shape(&self, source: &Source<'_>) -> Result<Vec<usize>> {
        let (out_features, in_features) = self.decode(source)?.shape();
        Ok(vec![out_features, in_features])
    }
    /// In how many parts, one after the other, that tensor is decoded; one for a linear.
    fn slices(&self, _shape: &[usize]) -> usize {
        1
    }
    /// Part `slice`, of as many rows.
    fn decode_slice(&self, source: &Source<'_>, _slice: usize) -> Result<CompressedWeight> {
        self.decode(source)
    }
}

/// What only some configurations say.
#[derive(Debug, Clone, PartialEq, Default)]
struct More {
    /// How the scales of eight-bit floats are shared out.
    float8: Vec<Float8Scales>,
    /// Its own loaders round activations too.
    rounds_activations: bool,
}

/// (tensor name, bytes) of a linear that stands packed as compressed-tensors stores it: what
/// [`Format::encode`] gives for it, lent where the machine's byte order is the file's.
pub(crate) fn packed_tensors<'a>(
    linear: &str,
    layout: &Layout,
    grid: GridCode,
    packed: &'a Packed,
) -> Result<Vec<(String, Cow<'a, [u8]>)>> {
    let words = match cfg!(target_endian = "little") {
        true => Cow::Borrowed(bytemuck::cast_slice(&packed.words)),
        false => Cow::Owned(word_bytes(&packed.words)),
    };
    let scales = match cfg!(target_endian = "little") {
        true => Cow::Borrowed(bytemuck::cast_slice(&packed.scales)),
        false => Cow::Owned(packed.scales.iter().flat_map(|bits| bits.to_le_bytes()).collect()),
    };
    let shape = [layout.out_features, layout.in_features].iter().flat_map(|&n| (n as i64).to_le_bytes()).collect();
    let mut tensors = vec![
        (format!("{linear}.weight_packed"), words),
        (format!("{linear}.weight_scale"), scales),
        (format!("{linear}.weight_shape"), Cow::Owned(shape)),
    ];
    if !grid.symmetric {
        let groups = layout.in_features / grid.group_size;
        let zeros = pack::pack_columns(&packed.zeros, layout.out_features, groups, grid.bits)?;
        tensors.push((format!("{linear}.weight_zero_point"), Cow::Owned(word_bytes(&zeros))));
    }
    Ok(tensors)
}
