//! Residual nets of the CIFAR kind (He et al. 2016, section 4.2), read off the names and shapes of their tensors: there is
//! no `config.json`.
//!
//! `conv1`, `bn1`; stages `layer1` … of blocks `layerS.B.{conv1, bn1, conv2, bn2}`; the mean over all places; `linear`. The
//! first block of every stage but the first steps by two. Where a block changes the number of channels, the way around
//! it slices every second pixel and adds zero channels on both sides (option A), or is a 1×1 convolution with its norm
//! (option B, `shortcut.0` and `shortcut.1`). Names may begin with `module.`.

use rayon::prelude::*;
use scruple_weights::Checkpoint;

use super::{
    linear::{self, Linear, expect_shape},
    norm::vector,
    vit::Images,
};
use crate::{
    Error, Result,
    kernel::{
        activation::{add, relu},
        conv::Conv2d,
        tensor::from_vec,
    },
};

/// Added to the variance in a batch norm: torch's default, which these nets are trained with.
const BATCH_NORM_EPS: f64 = 1e-5;

/// Most stages and blocks a net may have, far beyond the deepest published (1202 layers are 200 blocks a stage).
const MOST: usize = 4096;

/// Channels times numbers plus numbers: what a batch norm is in inference.
#[derive(Debug, Clone)]
struct Affine {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Affine {
    /// γ (x − μ) / √(σ² + ε) + β (Ioffe & Szegedy 2015, algorithm 2) as a factor and a summand a channel.
    fn load(checkpoint: &Checkpoint, name: &str, channels: usize) -> Result<Self> {
        let part = |part: &str| vector(checkpoint, &format!("{name}.{part}"), channels);
        let (gamma, beta, mean, variance) =
            (part("weight")?, part("bias")?, part("running_mean")?, part("running_var")?);
        let factor = |i: usize| f64::from(gamma[i]) / (f64::from(variance[i]) + BATCH_NORM_EPS).sqrt();
        Ok(Self {
            scale: (0..channels).map(|i| factor(i) as f32).collect(),
            shift: (0..channels).map(|i| (f64::from(beta[i]) - f64::from(mean[i]) * factor(i)) as f32).collect(),
        })
    }

    fn apply(&self, x: &mut [f32]) {
        let places = x.len() / self.scale.len();
        for (i, x) in x.chunks_exact_mut(places).enumerate() {
            let (scale, shift) = (self.scale[i], self.shift[i]);
            x.iter_mut().for_each(|x| *x = *x * scale + shift);
        }
    }
}

/// A convolution and its norm.
#[derive(Debug, Clone)]
struct Layer {
    conv: Conv2d,
    norm: Option<Affine>,
}

impl Layer {
    fn load(checkpoint: &Checkpoint, conv: &str, norm: &str, inputs: usize, stride: usize) -> Result<Self> {
        let view = checkpoint.tensor(&format!("{conv}.weight"))?;
        let &[outputs, found, kernel, width] = view.shape() else {
            let what = format!("has shape {:?}, expected (outputs, inputs, kernel, kernel)", view.shape());
            return Err(view.error(what).into());
        };
        if found != inputs || kernel != width || kernel.is_multiple_of(2) || outputs == 0 {
            let what = format!("has shape {:?}, expected ({outputs}, {inputs}, k, k) with k odd", view.shape());
            return Err(view.error(what).into());
        }
        let conv = Conv2d { outputs, inputs, kernel, stride, weight: view.to_f32()?, bias: vec![0.0; outputs] };
        Ok(Self { conv, norm: Some(Affine::load(checkpoint, norm, outputs)?) })
    }

    /// Puts the norm's factors into the weights and its summands into the bias.
    fn fold(&mut self) {
        let Some(Affine { scale, shift }) = self.norm.take() else { return };
        let each = self.conv.weight.len() / scale.len();
        for (weights, scale) in self.conv.weight.chunks_exact_mut(each).zip(&scale) {
            weights.iter_mut().for_each(|w| *w *= scale);
        }
        self.conv.bias = shift;
    }

    fn forward(&self, x: &[f32], size: (usize, usize), columns: &mut Vec<f32>, y: &mut Vec<f32>) {
        self.conv.forward(x, size, columns, y);
        if let Some(norm) = &self.norm {
            norm.apply(y);
        }
    }
}

/// The way around a block's convolutions.
#[derive(Debug, Clone)]
enum Shortcut {
    /// Every `stride`-th pixel, with zero channels on both sides.
    Slice,
    /// A 1×1 convolution.
    Project(Layer),
}

/// relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).
#[derive(Debug, Clone)]
struct Block {
    first: Layer,
    second: Layer,
    shortcut: Shortcut,
}

/// What one thread needs to run images through the net.
#[derive(Debug, Default)]
struct Scratch {
    columns: Vec<f32>,
    inner: Vec<f32>,
    outer: Vec<f32>,
    around: Vec<f32>,
}

impl Block {
    fn load(checkpoint: &Checkpoint, path: &str, inputs: usize, stride: usize) -> Result<Self> {
        let full = |name: &str| format!("{path}.{name}");
        let first = Layer::load(checkpoint, &full("conv1"), &full("bn1"), inputs, stride)?;
        let channels = first.conv.outputs;
        let second = Layer::load(checkpoint, &full("conv2"), &full("bn2"), channels, 1)?;
        let refuse = |what: String| Error::Model(format!("{}: block `{path}` {what}", checkpoint.path().display()));
        if second.conv.outputs != channels {
            return Err(refuse(format!("has {channels} channels inside and {} outside", second.conv.outputs)));
        }
        if checkpoint.contains(&full("conv3.weight")) {
            return Err(refuse("has a third convolution; only blocks of two run".into()));
        }
        let shortcut = if checkpoint.contains(&full("shortcut.0.weight")) {
            let project = Layer::load(checkpoint, &full("shortcut.0"), &full("shortcut.1"), inputs, stride)?;
            if project.conv.outputs != channels {
                return Err(refuse(format!("has {channels} channels, its shortcut {}", project.conv.outputs)));
            }
            Shortcut::Project(project)
        } else {
            if channels < inputs || !(channels - inputs).is_multiple_of(2) {
                return Err(refuse(format!("goes from {inputs} to {channels} channels without a shortcut's weights")));
            }
            Shortcut::Slice
        };
        Ok(Self { first, second, shortcut })
    }

    /// `x` (channels, height, width) in place to (channels', …); the new (height, width).
    fn forward(&self, x: &mut Vec<f32>, size: (usize, usize), s: &mut Scratch) -> (usize, usize) {
        let out = self.first.conv.output_size(size);
        self.first.forward(x, size, &mut s.columns, &mut s.inner);
        relu(&mut s.inner);
        self.second.forward(&s.inner, out, &mut s.columns, &mut s.outer);
        match &self.shortcut {
            Shortcut::Project(project) => {
                project.forward(x, size, &mut s.columns, &mut s.around);
                add(&mut s.outer, &s.around);
            }
            Shortcut::Slice => {
                let (inputs, stride) = (self.first.conv.inputs, self.first.conv.stride);
                let places = out.0 * out.1;
                let below = (self.second.conv.outputs - inputs) / 2;
                let inside = &mut s.outer[below * places..(below + inputs) * places];
                if stride == 1 {
                    add(inside, x);
                } else {
                    let (height, width) = size;
                    for (y, x) in inside.chunks_exact_mut(places).zip(x.chunks_exact(height * width)) {
                        for (y, x) in y.chunks_exact_mut(out.1).zip(x.chunks_exact(width).step_by(stride)) {
                            y.iter_mut().zip(x.iter().step_by(stride)).for_each(|(y, x)| *y += x);
                        }
                    }
                }
            }
        }
        relu(&mut s.outer);
        std::mem::swap(x, &mut s.outer);
        out
    }
}

/// A residual net that runs.
#[derive(Debug)]
pub struct ResNet {
    first: Layer,
    blocks: Vec<Block>,
    linear: Box<dyn Linear>,
    stages: Vec<usize>,
    file: std::path::PathBuf,
}

/// With what the results of residual nets were compared.
pub const CHECKED_BY: &str =
    "torch on tiny seeded nets with both shortcuts; ResNet-20, -32, -44 and -56 on the CIFAR-10 test images";

impl ResNet {
    /// Whether the tensors of `checkpoint` are named as such a net's.
    pub fn recognises(checkpoint: &Checkpoint) -> bool {
        ["", "module."].iter().any(|prefix| {
            ["conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "linear.weight"]
                .iter()
                .all(|name| checkpoint.contains(&format!("{prefix}{name}")))
        })
    }

    /// Builds the net of `checkpoint`: stages, blocks and widths follow from names and shapes.
    ///
    /// # Errors
    /// If the tensors are not a residual net's, or do not fit each other.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        let file = checkpoint.path().to_path_buf();
        if !Self::recognises(checkpoint) {
            return Err(Error::Model(format!(
                "{}: the tensors are not those of a residual net of the CIFAR kind; expected conv1, bn1, layer1.0.conv1 and \
                 linear among them",
                file.display()
            )));
        }
        let prefix = if checkpoint.contains("conv1.weight") { "" } else { "module." };
        let name = |name: &str| format!("{prefix}{name}");
        let channels = checkpoint.tensor(&name("conv1.weight"))?.shape().get(1).copied().unwrap_or(0);
        let first = Layer::load(checkpoint, &name("conv1"), &name("bn1"), channels, 1)?;
        let (mut blocks, mut stages): (Vec<Block>, Vec<usize>) = (Vec::new(), Vec::new());
        let mut width = first.conv.outputs;
        for stage in 1..MOST {
            let mut count = 0;
            while count < MOST {
                let path = name(&format!("layer{stage}.{count}"));
                if !checkpoint.contains(&format!("{path}.conv1.weight")) {
                    break;
                }
                let stride = if stage > 1 && count == 0 { 2 } else { 1 };
                let block = Block::load(checkpoint, &path, width, stride)?;
                width = block.second.conv.outputs;
                blocks.push(block);
                count += 1;
            }
            if count == 0 {
                break;
            }
            stages.push(count);
        }
        let weight = checkpoint.tensor(&name("linear.weight"))?;
        let classes = weight.shape().first().copied().unwrap_or(0).max(1);
        expect_shape(&weight, &[classes, width])?;
        let linear = linear::load_shaped(checkpoint, &name("linear"), (classes, width, true), None)?;
        Ok(Self { first, blocks, linear, stages, file })
    }

    /// Puts every norm into the convolution before it: a third less memory traffic, and sums that differ in their last
    /// bits.
    pub fn fold_norms(&mut self) {
        self.first.fold();
        for block in &mut self.blocks {
            block.first.fold();
            block.second.fold();
            if let Shortcut::Project(project) = &mut block.shortcut {
                project.fold();
            }
        }
    }

    /// Convolutions on the longest way and the last linear: 20 for a ResNet-20.
    pub fn depth(&self) -> usize {
        2 * self.blocks.len() + 2
    }

    /// Blocks of each stage.
    pub fn stages(&self) -> &[usize] {
        &self.stages
    }

    /// Classes.
    pub fn classes(&self) -> usize {
        self.linear.shape().0
    }

    /// Channels of an image.
    pub fn channels(&self) -> usize {
        self.first.conv.inputs
    }

    /// Class outputs of each image. Each image is worked on by one thread.
    ///
    /// # Errors
    /// If the images have another number of channels or no pixels.
    pub fn logits(&self, images: Images<'_>) -> Result<Vec<Vec<f32>>> {
        let (channels, size) = (images.channels, images.size);
        if channels != self.channels() || size.0 == 0 || size.1 == 0 {
            return Err(Error::Model(format!(
                "{}: the model takes images of {} channels, found {channels} channels of {size:?} pixels",
                self.file.display(),
                self.channels()
            )));
        }
        let width = self.linear.shape().1;
        let mut means = vec![0.0; images.count() * width];
        let each = channels * size.0 * size.1;
        means.par_chunks_exact_mut(width).zip(images.pixels.par_chunks_exact(each)).for_each_init(
            || (Scratch::default(), Vec::new()),
            |(scratch, x), (means, image)| {
                let mut size = size;
                self.first.forward(image, size, &mut scratch.columns, x);
                relu(x);
                for block in &self.blocks {
                    size = block.forward(x, size, scratch);
                }
                let places = size.0 * size.1;
                for (mean, x) in means.iter_mut().zip(x.chunks_exact(places)) {
                    *mean = (x.iter().map(|&x| f64::from(x)).sum::<f64>() / places as f64) as f32;
                }
            },
        );
        Ok(self.linear.forward(&from_vec(means, (images.count(), width))?)?.to_vec2()?)
    }
}
