//! How a quantised linear is written so that other tools load it, and how it is read back.
//!
//! A format is one file here and one line in [`Format`]. Before any work, [`Format::check`] says whether a linear fits
//! and [`Format::specs`] which tensors it becomes; [`Format::encode`] gives their bytes, and [`Format::config`] what
//! `config.json` says about them. The other way, [`detect`] reads that configuration and [`decode`] one linear.
//! Decoding what was encoded gives the same [`CompressedWeight`], so what runs is what was written. Weights that are
//! plain numbers ([`Code::Dense`]) are stored as such in every format.

use std::{borrow::Cow, fmt, path::PathBuf, str::FromStr};

use scruple_weights::{Checkpoint, Dtype, TensorSpec, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Error, Result,
    grid::{Quantised, ScaleDtype},
    kernel::{dense::Element, rtn_pack::Packed},
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

#[cfg(test)]
mod tests;

pub use coded::{Coded, coded, is_coded, is_leftover};

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

    fn has_g_idx(&self) -> bool {
        self.linears.iter().filter_map(|(_, layout)| layout.code.grid()).any(|grid| grid.has_g_idx)
    }
}

/// One format's file.
trait Rules: Sync {
    fn name(&self) -> &'static str;
    fn scale_dtype(&self, dtype: ScaleDtype) -> ScaleDtype;
    /// What [`Format::check`] has not refused for every format.
    fn check(&self, layout: &Layout) -> Result<(), String>;
    fn specs(&self, linear: &str, layout: &Layout) -> Vec<TensorSpec>;
    fn encode(&self, linear: &str, weight: &CompressedWeight, dtype: ScaleDtype) -> Result<Vec<(String, Vec<u8>)>>;
    fn config(&self, model: &QuantisedModel<'_>) -> Result<Option<Value>>;
    fn side_files(&self, _model: &QuantisedModel<'_>) -> Result<Vec<(String, Value)>> {
        Ok(Vec::new())
    }
    /// The settings in `config`, a `quantization_config` of this format's `quant_method`.
    fn settings(&self, config: &Value) -> Result<(Vec<Setting>, Option<GptqVersion>), String>;
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

/// How a checkpoint on disk is quantised, from its configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantization {
    /// How its linears are stored.
    pub format: Format,
    /// The different settings of its linears on grids.
    pub settings: Vec<Setting>,
    /// How a GPTQ file stores zero points.
    gptq_version: Option<GptqVersion>,
    more: More,
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

fn read_config(config: &Value, default_method: Option<&str>) -> Result<Quantization, String> {
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

/// One linear of a checkpoint that is being decoded.
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    linear: &'a str,
    quantization: &'a Quantization,
}

impl Source<'_> {
    /// The tensor `{linear}.{part}`, if there is one.
    fn get(&self, part: &str) -> Option<TensorView> {
        self.checkpoint.get(&format!("{}.{part}", self.linear))
    }

    /// The tensor `{linear}.{part}`, of type `dtype`.
    fn tensor(&self, part: &str, dtype: Dtype) -> Result<TensorView> {
        let tensor = self.checkpoint.tensor(&format!("{}.{part}", self.linear))?;
        if tensor.dtype() != dtype {
            return Err(error(&tensor, format!("has type {}, expected {dtype}", tensor.dtype())));
        }
        Ok(tensor)
    }

    /// The two dimensions of the tensor `{linear}.{part}` of type `dtype`.
    fn matrix(&self, part: &str, dtype: Dtype) -> Result<(TensorView, usize, usize)> {
        let tensor = self.tensor(part, dtype)?;
        match *tensor.shape() {
            [rows, columns] if rows > 0 && columns > 0 => Ok((tensor, rows, columns)),
            _ => Err(error(&tensor, format!("has shape {:?}, expected two dimensions", tensor.shape()))),
        }
    }

    /// The setting that says `bits` and `group_size` columns of `in_features` a scale; `tensor` is at fault if none does.
    fn setting(&self, bits: u32, group_size: usize, in_features: usize, tensor: &TensorView) -> Result<Setting> {
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
    fn scales(&self, part: &str, shape: [usize; 2]) -> Result<(Vec<f32>, ScaleDtype)> {
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
    fn g_idx(&self, part: &str, in_features: usize, group_size: usize) -> Result<Option<Vec<u32>>> {
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

/// The codes of `weight`, for a format that stores nothing else.
fn on_grid<'a>(linear: &str, weight: &'a CompressedWeight) -> Result<&'a Quantised> {
    let refuse = || Error::Model(format!("`{linear}` is {}, expected codes on a grid", weight.code().describe()));
    weight.quantised().ok_or_else(refuse)
}

/// Refuses `scales` read from `tensor` in rows of `columns` that are not positive finite numbers.
fn expect_scales(tensor: &TensorView, scales: &[f32], columns: usize) -> Result<()> {
    let Some(at) = scales.iter().position(|&scale| !is_scale(scale)) else { return Ok(()) };
    let (row, column) = (at / columns, at % columns);
    Err(error(tensor, format!("holds {} at [{row}, {column}], expected a scale above zero", scales[at])))
}

/// A fault of one tensor.
fn error(tensor: &TensorView, what: impl Into<String>) -> Error {
    scruple_weights::Error::tensor(tensor.file(), tensor.name(), what).into()
}

fn expect_shape(tensor: &TensorView, expected: &[usize]) -> Result<()> {
    if tensor.shape() != expected {
        return Err(error(tensor, format!("has shape {:?}, expected {expected:?}", tensor.shape())));
    }
    Ok(())
}

/// The 32-bit words of `tensor`.
fn words(tensor: &TensorView) -> Vec<u32> {
    tensor.bytes().as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

/// Words as little-endian bytes.
fn word_bytes(words: &[u32]) -> Vec<u8> {
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
fn write_floats(values: &[f32], dtype: ScaleDtype, bytes: &mut [u8]) {
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
const fn element(dtype: ScaleDtype) -> Element {
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
fn check_numbers(q: &Quantised, scale_dtype: ScaleDtype) -> Result<(), String> {
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
fn group_sizes(in_features: usize) -> String {
    let mut sizes: Vec<_> = [32, 64, 128, 256].into_iter().filter(|size| in_features.is_multiple_of(*size)).collect();
    sizes.push(in_features);
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// A field of a configuration, absent and null alike.
fn field<'a>(config: &'a Value, name: &str) -> Option<&'a Value> {
    config.get(name).filter(|value| !value.is_null())
}

/// A whole number in a configuration.
fn whole_number(config: &Value, name: &str) -> Result<Option<i64>, String> {
    let wrong = |value: &Value| format!("has `{name}` {value}, expected a whole number");
    field(config, name).map(|value| value.as_i64().ok_or_else(|| wrong(value))).transpose()
}

/// A yes or no in a configuration.
fn flag(config: &Value, name: &str, default: bool) -> Result<bool, String> {
    let wrong = |value: &Value| format!("has `{name}` {value}, expected true or false");
    field(config, name).map_or(Ok(default), |value| value.as_bool().ok_or_else(|| wrong(value)))
}

/// −1 for one scale a row, else a positive number.
fn group_size(size: i64) -> Result<Option<usize>, String> {
    match size {
        -1 => Ok(None),
        1.. => Ok(Some(size as usize)),
        _ => Err(format!("has `group_size` {size}, expected a positive number, or -1 for one scale a row")),
    }
}
