//! Vision transformers: ViT (Dosovitskiy et al. 2021), which DINO's are too, and DINOv2 (Oquab et al. 2024) with and
//! without register tokens (Darcet et al. 2024).
//!
//! An image is cut into patches, each of which a linear turns into a token; class and register tokens stand before them.
//! Blocks are normed before attention and MLP, and DINOv2 scales what they add.

use candle_core::Tensor;
use scruple_weights::Checkpoint;

use super::{
    fields::Fields,
    labels::Labels,
    linear::{self, DenseLinear, Linear, expect_shape},
    norm::{LayerNorm, vector},
    self_attention::{Mlp, SelfAttention, sum},
};
use crate::{
    Error, Result,
    export::Quantization,
    kernel::{
        activation::{Activation, add, multiply},
        tensor::{from_vec, with_f32},
    },
};

/// One family of vision transformers.
#[derive(Debug, Clone, Copy)]
pub struct VitFamily {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// What the tensors of the encoder begin with in a checkpoint that has a head too.
    pub prefix: &'static str,
    /// Names and switches of DINOv2: factors on what a block adds, the width of the MLP as a ratio, and a head that
    /// reads the mean over the patches beside the class token.
    pub dinov2: bool,
    /// Register tokens stand between class token and patches.
    pub registers: bool,
    /// ε of the layer norms where the configuration has none.
    pub default_eps: f64,
    /// Side of a patch where the configuration has none.
    pub default_patch: usize,
    /// With what its results were compared.
    pub checked_by: &'static str,
}

/// The families of vision transformers that run.
pub const FAMILIES: &[VitFamily] = &[
    VitFamily {
        model_type: "vit",
        prefix: "vit.",
        dinov2: false,
        registers: false,
        default_eps: 1e-12,
        default_patch: 16,
        checked_by: "transformers 5.17 on tiny seeded models, images of other sizes too",
    },
    VitFamily {
        model_type: "dinov2",
        prefix: "dinov2.",
        dinov2: true,
        registers: false,
        default_eps: 1e-6,
        default_patch: 14,
        checked_by: "transformers 5.17 on tiny seeded models, images of other sizes too",
    },
    VitFamily {
        model_type: "dinov2_with_registers",
        prefix: "dinov2_with_registers.",
        dinov2: true,
        registers: true,
        default_eps: 1e-6,
        default_patch: 14,
        checked_by: "transformers 5.17 on a tiny seeded classifier with gated MLPs, images of other sizes too",
    },
];

/// What a vision transformer is, read from `config.json`.
#[derive(Debug, Clone)]
pub struct VitConfig {
    /// Its family.
    pub family: &'static VitFamily,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub n_blocks: usize,
    /// Heads; divides `hidden_size`.
    pub n_heads: usize,
    /// Channels of an image.
    pub channels: usize,
    /// (height, width) of the images it was trained on.
    pub image_size: (usize, usize),
    /// (height, width) of a patch.
    pub patch_size: (usize, usize),
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// The MLP is gated (SwiGLU).
    pub gated: bool,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Register tokens.
    pub n_registers: usize,
    /// ε of the layer norms.
    pub norm_eps: f32,
}

impl VitConfig {
    /// Reads the checkpoint's `config.json`.
    ///
    /// # Errors
    /// A `model_type` that is no vision transformer, a missing or impossible field.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        let file = checkpoint.dir().join("config.json");
        let fields = Fields::new(&file, checkpoint.config()?);
        let model_type = fields.get("model_type").and_then(serde_json::Value::as_str).unwrap_or_default();
        let family = FAMILIES.iter().find(|family| family.model_type == model_type).ok_or_else(|| {
            let known: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
            fields.refuse(format!(
                "model type `{model_type}` is not a vision transformer that runs here; those that run are {}",
                known.join(", ")
            ))
        })?;
        let (hidden_size, n_heads) =
            (fields.count_or("hidden_size", Some(768))?, fields.count_or("num_attention_heads", Some(12))?);
        if hidden_size % n_heads != 0 {
            let what = format!("`hidden_size` {hidden_size} is not a multiple of `num_attention_heads` {n_heads}");
            return Err(fields.refuse(what));
        }
        let gated = family.dinov2 && fields.flag_or("use_swiglu_ffn", false)?;
        let intermediate_size = match family.dinov2 {
            false => fields.count_or("intermediate_size", Some(3072))?,
            true => {
                let wide = hidden_size as f64 * fields.number_from_zero("mlp_ratio", 4.0)?;
                if !(1.0..=f64::from(1 << 24)).contains(&wide) {
                    return Err(fields.refuse(format!("`mlp_ratio` makes an MLP of width {wide}")));
                }
                // Two thirds, so that three matrices weigh as much as two; then a multiple of eight.
                let wide = wide as usize;
                if gated { (wide * 2 / 3).next_multiple_of(8) } else { wide }
            }
        };
        let (image_size, patch_size) =
            (fields.size("image_size", 224)?, fields.size("patch_size", family.default_patch)?);
        if image_size.0 < patch_size.0 || image_size.1 < patch_size.1 {
            return Err(
                fields.refuse(format!("`image_size` {image_size:?} is smaller than `patch_size` {patch_size:?}"))
            );
        }
        Ok(Self {
            family,
            hidden_size,
            intermediate_size,
            n_heads,
            n_blocks: fields.count_or("num_hidden_layers", Some(12))?,
            channels: fields.count_or("num_channels", Some(3))?,
            image_size,
            patch_size,
            qkv_bias: fields.flag_or("qkv_bias", true)?,
            gated,
            activation: match gated {
                true => Activation::Silu,
                false => fields.any_activation("hidden_act", "gelu")?,
            },
            n_registers: if family.registers { fields.count_or("num_register_tokens", Some(4))? } else { 0 },
            norm_eps: fields.number_from_zero("layer_norm_eps", family.default_eps)? as f32,
        })
    }

    /// (rows, columns) of patches of an image of (height, width); what is left over at the edges is not seen.
    fn grid(&self, (height, width): (usize, usize)) -> (usize, usize) {
        (height / self.patch_size.0, width / self.patch_size.1)
    }
}

/// One block.
#[derive(Debug)]
struct Block {
    attention_norm: LayerNorm,
    attention: SelfAttention,
    attention_scale: Option<Vec<f32>>,
    mlp_norm: LayerNorm,
    mlp: Mlp,
    mlp_scale: Option<Vec<f32>>,
}

impl Block {
    fn load(
        checkpoint: &Checkpoint,
        config: &VitConfig,
        prefix: &str,
        quantization: Option<&Quantization>,
        index: usize,
    ) -> Result<Self> {
        let hidden = config.hidden_size;
        let full = |name: &str| format!("{prefix}encoder.layer.{index}.{name}");
        let norm = |name: &str| LayerNorm::load(checkpoint, &full(name), hidden, true, config.norm_eps);
        let scale = |name: &str| -> Result<Option<Vec<f32>>> {
            config.family.dinov2.then(|| vector(checkpoint, &full(name), hidden)).transpose()
        };
        let [attention_norm, mlp_norm, up, down] = match (config.family.dinov2, config.gated) {
            (false, _) => ["layernorm_before", "layernorm_after", "intermediate.dense", "output.dense"],
            (true, false) => ["norm1", "norm2", "mlp.fc1", "mlp.fc2"],
            (true, true) => ["norm1", "norm2", "mlp.weights_in", "mlp.weights_out"],
        };
        let names = ["attention.query", "attention.key", "attention.value", "output.dense"];
        let [q, k, v, o] = names.map(|name| full(&format!("attention.{name}")));
        let (up, down) = (full(up), full(down));
        let widths = (hidden, config.intermediate_size);
        Ok(Self {
            attention_norm: norm(attention_norm)?,
            attention: SelfAttention::load(
                checkpoint,
                [&q, &k, &v, &o],
                hidden,
                config.n_heads,
                config.qkv_bias,
                quantization,
            )?,
            attention_scale: scale("layer_scale1.lambda1")?,
            mlp_norm: norm(mlp_norm)?,
            mlp: Mlp::load(checkpoint, [&up, &down], widths, config.activation, config.gated, quantization)?,
            mlp_scale: scale("layer_scale2.lambda1")?,
        })
    }

    fn forward(&self, x: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let added = self.attention.forward(&self.attention_norm.forward(x)?, lengths, None)?;
        let x = sum(x, &scaled(added, self.attention_scale.as_deref())?)?;
        let added = self.mlp.forward(&self.mlp_norm.forward(&x)?)?;
        sum(&x, &scaled(added, self.mlp_scale.as_deref())?)
    }
}

/// Each row of `x` (rows, features) times `factors` (features).
fn scaled(x: Tensor, factors: Option<&[f32]>) -> Result<Tensor> {
    let Some(factors) = factors else { return Ok(x) };
    let mut out = with_f32(&x, <[f32]>::to_vec)?;
    out.chunks_exact_mut(factors.len()).for_each(|row| multiply(row, factors));
    from_vec(out, x.dims2()?)
}

/// Mean and deviation of each channel of pixels from 0 to 1, as `preprocessor_config.json` gives them; `None` without
/// that file.
///
/// # Errors
/// If the file is not readable, or treats pixels in another way.
pub fn pixel_statistics(checkpoint: &Checkpoint) -> Result<Option<([f32; 3], [f32; 3])>> {
    let file = checkpoint.dir().join("preprocessor_config.json");
    let bytes = match std::fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(scruple_weights::Error::io(file, "read the file", error).into()),
    };
    let object = serde_json::from_slice(&bytes)
        .map_err(|error| scruple_weights::Error::file(&file, format!("not valid JSON: {error}")))?;
    let fields = Fields::new(&file, &object);
    let factor = fields.number_from_zero("rescale_factor", 1.0 / 255.0)?;
    if !fields.flag_or("do_rescale", true)? || (factor * 255.0 - 1.0).abs() > 1e-6 {
        return Err(fields.refuse("only pixels scaled by 1/255 are supported"));
    }
    if !fields.flag_or("do_normalize", true)? {
        return Ok(Some(([0.0; 3], [1.0; 3])));
    }
    let three = |key: &str, positive: bool| -> Result<[f32; 3]> {
        let list = fields.get(key).and_then(|value| value.as_array());
        let numbers: Option<Vec<f32>> =
            list.and_then(|list| list.iter().map(|x| x.as_f64().map(|x| x as f32)).collect());
        let three = numbers.and_then(|numbers| <[f32; 3]>::try_from(numbers).ok());
        three
            .filter(|three| three.iter().all(|x| x.is_finite() && (*x > 0.0 || !positive)))
            .ok_or_else(|| fields.refuse(format!("`{key}` should be a list of three numbers")))
    };
    Ok(Some((three("image_mean", false)?, three("image_std", true)?)))
}

/// Images of one size.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    /// (images, channels, height, width) flat, normalised as the model was trained.
    pub pixels: &'a [f32],
    /// Channels of each.
    pub channels: usize,
    /// Height and width of each.
    pub size: (usize, usize),
}

impl Images<'_> {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.pixels.len() / (self.channels * self.size.0 * self.size.1)
    }
}

/// A vision transformer that runs, with its classification head where the checkpoint has one.
#[derive(Debug)]
pub struct Vit {
    config: VitConfig,
    file: std::path::PathBuf,
    patches: DenseLinear,
    /// The class token with its position added, then the register tokens: (tokens, hidden).
    first: Vec<f32>,
    positions: Vec<f32>, // (patches, hidden)
    blocks: Vec<Block>,
    norm: LayerNorm,
    classifier: Option<(Box<dyn Linear>, Labels)>,
}

impl Vit {
    /// Builds the network of `checkpoint`: checks that every tensor the configuration asks for is there with its shape.
    ///
    /// # Errors
    /// As [`VitConfig::from_checkpoint`]; a missing tensor, or one of another shape.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        let config = VitConfig::from_checkpoint(checkpoint)?;
        let quantization = crate::export::detect(checkpoint)?;
        let (family, hidden) = (config.family, config.hidden_size);
        let prefix = if checkpoint.contains("embeddings.cls_token") { "" } else { family.prefix };
        let tensor = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
            let view = checkpoint.tensor(&format!("{prefix}{name}"))?;
            expect_shape(&view, shape)?;
            Ok(view.to_f32()?)
        };
        let (rows, columns) = config.grid(config.image_size);
        let (height, width) = config.patch_size;
        // The kernel of the patch convolution is a linear over the pixels of a patch, channel by channel.
        let kernel =
            tensor("embeddings.patch_embeddings.projection.weight", &[hidden, config.channels, height, width])?;
        let bias = tensor("embeddings.patch_embeddings.projection.bias", &[hidden])?;
        let patches = DenseLinear::from_f32(&kernel, (hidden, config.channels * height * width), Some(bias))?;
        let mut first = tensor("embeddings.cls_token", &[1, 1, hidden])?;
        let positions = tensor("embeddings.position_embeddings", &[1, 1 + rows * columns, hidden])?;
        add(&mut first, &positions[..hidden]);
        if family.registers {
            first.extend(tensor("embeddings.register_tokens", &[1, config.n_registers, hidden])?);
        }
        let blocks = (0..config.n_blocks)
            .map(|index| Block::load(checkpoint, &config, prefix, quantization.as_ref(), index))
            .collect::<Result<_>>()?;
        let norm = LayerNorm::load(checkpoint, &format!("{prefix}layernorm"), hidden, true, config.norm_eps)?;
        let classifier = match checkpoint.get("classifier.weight") {
            None => None,
            Some(weight) => {
                let file = checkpoint.dir().join("config.json");
                let fields = Fields::new(&file, checkpoint.config()?);
                let classes = weight.shape().first().copied().unwrap_or(0).max(1);
                let inputs = if family.dinov2 { 2 * hidden } else { hidden };
                let shape = (classes, inputs, true);
                let output = linear::load_shaped(checkpoint, "classifier", shape, quantization.as_ref())?;
                Some((output, Labels::read(&fields, classes)?))
            }
        };
        let file = checkpoint.path().to_path_buf();
        Ok(Self { file, patches, first, positions: positions[hidden..].to_vec(), blocks, norm, classifier, config })
    }

    /// What was read from `config.json`.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// The labels, where there is a classification head.
    pub fn labels(&self) -> Option<&Labels> {
        self.classifier.as_ref().map(|(_, labels)| labels)
    }

    /// Last hidden states (images · tokens, hidden), normed; each image's tokens are its class token, its register
    /// tokens and its patches row by row. Where the images are of another size than those of the training, the position
    /// embeddings are interpolated.
    ///
    /// # Errors
    /// If the images have another number of channels, or are smaller than a patch.
    pub fn hidden(&self, images: Images<'_>) -> Result<Tensor> {
        let config = &self.config;
        let hidden = config.hidden_size;
        let refuse = |what: String| Error::Model(format!("{}: {what}", self.file.display()));
        if images.channels != config.channels {
            let what = format!("the model takes images of {} channels, found {}", config.channels, images.channels);
            return Err(refuse(what));
        }
        let (rows, columns) = config.grid(images.size);
        if rows == 0 || columns == 0 {
            let what = format!("images of {:?} are smaller than a patch of {:?}", images.size, config.patch_size);
            return Err(refuse(what));
        }
        let count = images.count();
        let tokens = self.first.len() / hidden + rows * columns;
        let patches = self.patches.forward(&self.patch_rows(images, (rows, columns))?)?;
        let positions = self.positions_of((rows, columns), images.size);
        let mut x = vec![0.0; count * tokens * hidden];
        with_f32(&patches, |patches| {
            let each = rows * columns * hidden;
            for (x, patches) in x.chunks_exact_mut(tokens * hidden).zip(patches.chunks_exact(each)) {
                let (first, rest) = x.split_at_mut(self.first.len());
                first.copy_from_slice(&self.first);
                rest.copy_from_slice(patches);
                add(rest, &positions);
            }
        })?;
        let mut x = from_vec(x, (count * tokens, hidden))?;
        let lengths = vec![tokens; count];
        for block in &self.blocks {
            x = block.forward(&x, &lengths)?;
        }
        self.norm.forward(&x)
    }

    /// Class outputs (images, classes).
    ///
    /// # Errors
    /// As [`Vit::hidden`], and if the model has no classification head.
    pub fn logits(&self, images: Images<'_>) -> Result<Tensor> {
        let Some((output, _)) = &self.classifier else {
            return Err(Error::Model(format!("{}: the model has no classification head", self.file.display())));
        };
        let states = self.hidden(images)?;
        let (hidden, count) = (self.config.hidden_size, images.count());
        let inputs = output.shape().1;
        let each = states.dim(0)? / count.max(1) * hidden;
        let mut read = Vec::with_capacity(count * inputs);
        with_f32(&states, |states| {
            for states in states.chunks_exact(each.max(1)) {
                read.extend_from_slice(&states[..hidden]);
                if inputs > hidden {
                    let patches = &states[self.first.len()..];
                    let mut sums = vec![0.0f64; hidden];
                    for row in patches.chunks_exact(hidden) {
                        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
                    }
                    let patches = (patches.len() / hidden) as f64;
                    read.extend(sums.iter().map(|sum| (sum / patches) as f32));
                }
            }
        })?;
        output.forward(&from_vec(read, (count, inputs))?)
    }

    /// The pixels of every patch as a row: (images · patches, channels · height · width).
    fn patch_rows(&self, images: Images<'_>, (rows, columns): (usize, usize)) -> Result<Tensor> {
        let ((patch_height, patch_width), channels) = (self.config.patch_size, images.channels);
        let (height, width) = images.size;
        let mut out = Vec::with_capacity(images.count() * channels * rows * columns * patch_height * patch_width);
        for image in images.pixels.chunks_exact(channels * height * width) {
            for patch in 0..rows * columns {
                let (top, left) = (patch / columns * patch_height, patch % columns * patch_width);
                for channel in image.chunks_exact(height * width) {
                    for row in channel.chunks_exact(width).skip(top).take(patch_height) {
                        out.extend_from_slice(&row[left..left + patch_width]);
                    }
                }
            }
        }
        from_vec(out, (images.count() * rows * columns, channels * patch_height * patch_width))
    }

    /// Position embeddings of a grid of patches: those of the training, or interpolated from them as transformers does.
    fn positions_of(&self, grid: (usize, usize), size: (usize, usize)) -> Vec<f32> {
        let trained = self.config.grid(self.config.image_size);
        if grid == trained && (size == self.config.image_size || size.0 == size.1) {
            return self.positions.clone();
        }
        bicubic(&self.positions, trained, grid, self.config.family.registers)
    }
}

/// `values` (rows, columns, features) resampled to another grid by cubic convolution (Keys 1981), corners not aligned:
/// torch's `interpolate(mode="bicubic")`. With `antialias`, the kernel is widened where the grid shrinks, its parameter
/// is −1/2 instead of −3/4, and at the edges the weights are scaled to sum to 1 instead of repeating the edge.
fn bicubic(values: &[f32], from: (usize, usize), to: (usize, usize), antialias: bool) -> Vec<f32> {
    let features = values.len() / (from.0 * from.1);
    let (vertical, horizontal) = (taps(from.0, to.0, antialias), taps(from.1, to.1, antialias));
    let mut out = vec![0.0; to.0 * to.1 * features];
    for (at, out) in out.chunks_exact_mut(features).enumerate() {
        let mut sums = vec![0.0f64; features];
        for &(row, row_weight) in &vertical[at / to.1] {
            for &(column, weight) in &horizontal[at % to.1] {
                let weight = row_weight * weight;
                let source = &values[(row * from.1 + column) * features..][..features];
                sums.iter_mut().zip(source).for_each(|(sum, x)| *sum += weight * f64::from(*x));
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
    }
    out
}

/// For each of `to` places, the (source, weight) pairs it is made of.
fn taps(from: usize, to: usize, antialias: bool) -> Vec<Vec<(usize, f64)>> {
    let scale = from as f64 / to as f64;
    let cubic = |x: f64, a: f64| match x.abs() {
        x if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
        _ => 0.0,
    };
    (0..to)
        .map(|place| {
            let centre = scale * (place as f64 + 0.5);
            if !antialias {
                let left = (centre - 0.5).floor();
                let tap = |step: i32| {
                    let source = (left + f64::from(step)).clamp(0.0, from as f64 - 1.0) as usize;
                    (source, cubic(centre - 0.5 - left - f64::from(step), -0.75))
                };
                return (-1..3).map(tap).collect();
            }
            let widening = scale.max(1.0);
            let first = (centre - 2.0 * widening + 0.5).max(0.0) as usize;
            let last = ((centre + 2.0 * widening + 0.5) as usize).min(from);
            let weight = |source: usize| cubic((source as f64 - centre + 0.5) / widening, -0.5);
            let total: f64 = (first..last).map(weight).sum();
            (first..last).map(|source| (source, weight(source) / total)).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolation_keeps_constants_and_the_same_grid() {
        let flat = vec![2.5; 3 * 4 * 2];
        for antialias in [false, true] {
            for to in [(3, 4), (7, 5), (1, 2)] {
                let out = bicubic(&flat, (3, 4), to, antialias);
                assert_eq!(out.len(), to.0 * to.1 * 2);
                assert!(out.iter().all(|x| (x - 2.5).abs() < 1e-6), "{to:?}");
            }
            let values: Vec<f32> = (0..24).map(|i| (i * i % 7) as f32).collect();
            let same = bicubic(&values, (3, 4), (3, 4), antialias);
            assert!(same.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
}
