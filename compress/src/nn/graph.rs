//! The arithmetic of a net: operations between slots, and the tensors they use.
//!
//! A slot holds what an operation made of a batch; its norm and rectifier are not operations but how every reader sees it.
//! Names and shapes of tensors are torch's, so that files are exchanged as they are.

use super::spec::Input;
use crate::{
    data::random::Stream,
    kernel::image::conv::{Convolution, padded},
};

/// What a tensor holds before training.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Start {
    /// Normal with variance 2 / fan-in (He et al. 2015).
    He { inputs: usize },
    /// Uniform within ±1 / √fan-in (LeCun et al. 1998; torch's linear).
    Uniform { inputs: usize },
    /// One number.
    All(f32),
}

/// One tensor among all.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// torch's name.
    pub name: String,
    /// torch's shape.
    pub shape: Vec<usize>,
    /// Where it begins.
    pub offset: usize,
    start: Start,
}

impl Entry {
    /// Values it holds.
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// Where its values lie.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.values()
    }
}

/// The tensors of a net, one after the other in a flat array.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Layout {
    entries: Vec<Entry>,
    values: usize,
}

impl Layout {
    /// The tensors in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensor called `name`.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Values of all tensors.
    pub fn len(&self) -> usize {
        self.values
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.values == 0
    }

    /// Tensors of any other network, names and shapes; before training all are zero.
    pub fn of(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Self {
        let mut layout = Self::default();
        for (name, shape) in tensors {
            layout.add(name, shape, Start::All(0.0));
        }
        layout
    }

    fn add(&mut self, name: String, shape: Vec<usize>, start: Start) -> usize {
        let entry = Entry { name, shape, offset: self.values, start };
        self.values += entry.values();
        self.entries.push(entry);
        self.entries.len() - 1
    }

    /// The values before training: a function of the seed and of each tensor's name alone.
    pub fn start(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; self.values];
        for entry in &self.entries {
            let out = &mut values[entry.range()];
            let mut stream = Stream::new(seed, &format!("nn/start/{}", entry.name), 0);
            match entry.start {
                Start::All(value) => out.fill(value),
                Start::He { inputs } => {
                    let deviation = (2.0 / inputs as f64).sqrt();
                    out.iter_mut().for_each(|value| *value = (deviation * stream.normal()) as f32);
                }
                Start::Uniform { inputs } => {
                    let bound = 1.0 / (inputs as f64).sqrt();
                    out.iter_mut().for_each(|value| *value = stream.between(-bound, bound) as f32);
                }
            }
        }
        values
    }
}

/// What an operation made.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Height and width.
    pub size: (usize, usize),
    /// Channels.
    pub channels: usize,
    /// Values of a pixel: the channels, up to a multiple of eight but in the input.
    pub stride: usize,
    /// Its norm over the batch.
    pub norm: Option<usize>,
    /// Whether readers see values below zero as zero.
    pub relu: bool,
    /// Whether it is stored after its rectifier.
    pub rectified: bool,
}

impl Slot {
    /// Values of one image.
    pub fn values(&self) -> usize {
        self.size.0 * self.size.1 * self.stride
    }
}

/// The tensors of a norm, numbers of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Norm {
    pub slot: usize,
    pub gamma: usize,
    pub beta: usize,
    pub mean: usize,
    pub variance: usize,
}

/// How a residual block is led around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Around {
    /// As it is.
    Same,
    /// Every `stride`-th pixel, its channels after `below` zeros.
    Slice { stride: usize, below: usize },
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    Conv {
        from: usize,
        to: usize,
        conv: Convolution,
        weight: usize,
    },
    Linear {
        from: usize,
        to: usize,
        weight: usize,
        bias: Option<usize>,
    },
    /// relu(main + around).
    Join {
        main: usize,
        around: usize,
        to: usize,
        way: Around,
    },
    /// The mean over all pixels.
    Pool {
        from: usize,
        to: usize,
    },
}

impl Op {
    /// The slot it makes.
    pub fn to(&self) -> usize {
        match *self {
            Self::Conv { to, .. } | Self::Linear { to, .. } | Self::Join { to, .. } | Self::Pool { to, .. } => to,
        }
    }

    /// The slots it reads.
    pub fn from(&self) -> [Option<usize>; 2] {
        match *self {
            Self::Conv { from, .. } | Self::Linear { from, .. } | Self::Pool { from, .. } => [Some(from), None],
            Self::Join { main, around, .. } => [Some(main), Some(around)],
        }
    }
}

/// The operations of a net in order; the first slot is the input, the last the class outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    pub(super) slots: Vec<Slot>,
    pub(super) ops: Vec<Op>,
    pub(super) norms: Vec<Norm>,
    layout: Layout,
    running: Layout,
}

impl Graph {
    /// The tensors that are trained.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The moments the norms gather while training, for inference.
    pub fn running(&self) -> &Layout {
        &self.running
    }

    /// Multiply-adds of one image forward: convolutions and linears.
    pub fn multiply_adds(&self) -> usize {
        let of = |op: &Op| match op {
            Op::Conv { from, conv, .. } => conv.multiply_adds(self.slots[*from].size),
            Op::Linear { weight, .. } => self.layout.entries[*weight].values(),
            Op::Join { .. } | Op::Pool { .. } => 0,
        };
        self.ops.iter().map(of).sum()
    }

    /// Whether what the matrix or convolution `name` makes is normed over the batch, so that in training its size does not
    /// matter to what follows.
    pub fn is_normed(&self, name: &str) -> bool {
        let weight_of = |op: &Op| match op {
            Op::Conv { to, weight, .. } => Some((*to, *weight)),
            // A bias would be another way out.
            Op::Linear { to, weight, bias: None, .. } => Some((*to, *weight)),
            Op::Linear { .. } | Op::Join { .. } | Op::Pool { .. } => None,
        };
        let mut made = self.ops.iter().filter_map(weight_of);
        made.any(|(to, weight)| self.layout.entries[weight].name == name && self.slots[to].norm.is_some())
    }

    /// Values of all slots for one image: what a batch of training keeps, times its images.
    pub fn activations(&self) -> usize {
        self.slots.iter().map(Slot::values).sum()
    }
}

/// Builds a graph from the input on.
pub(super) struct Builder {
    graph: Graph,
}

impl Builder {
    pub fn new(input: Input) -> Self {
        let Input { height, width, channels } = input;
        let slot =
            Slot { size: (height, width), channels, stride: channels, norm: None, relu: false, rectified: false };
        let (layout, running) = (Layout::default(), Layout::default());
        Self { graph: Graph { slots: vec![slot], ops: Vec::new(), norms: Vec::new(), layout, running } }
    }

    /// The slot of the images.
    pub fn input(&self) -> usize {
        0
    }

    fn slot(&mut self, size: (usize, usize), channels: usize, rectified: bool) -> usize {
        let stride = padded(channels);
        self.graph.slots.push(Slot { size, channels, stride, norm: None, relu: false, rectified });
        self.graph.slots.len() - 1
    }

    /// A convolution without a bias.
    pub fn conv(&mut self, name: &str, from: usize, outputs: usize, kernel: usize, stride: usize) -> usize {
        let Slot { size, channels: inputs, .. } = self.graph.slots[from];
        let conv = Convolution { inputs, outputs, kernel, stride };
        let shape = vec![outputs, inputs, kernel, kernel];
        let start = Start::He { inputs: inputs * kernel * kernel };
        let weight = self.graph.layout.add(format!("{name}.weight"), shape, start);
        let to = self.slot(conv.output_size(size), outputs, false);
        self.graph.ops.push(Op::Conv { from, to, conv, weight });
        to
    }

    /// A linear of all values of an image: of the input, pixel by pixel, or of a slot of one pixel.
    pub fn linear(&mut self, name: &str, from: usize, outputs: usize, bias: bool) -> usize {
        let Slot { size, channels, .. } = self.graph.slots[from];
        assert!(from == 0 || size == (1, 1), "a linear reads the images or one pixel");
        let inputs = size.0 * size.1 * channels;
        let weight = self.graph.layout.add(format!("{name}.weight"), vec![outputs, inputs], Start::Uniform { inputs });
        let bias = bias.then(|| self.graph.layout.add(format!("{name}.bias"), vec![outputs], Start::All(0.0)));
        let to = self.slot((1, 1), outputs, false);
        self.graph.ops.push(Op::Linear { from, to, weight, bias });
        to
    }

    /// Norms what was just made over the batch.
    pub fn norm(&mut self, name: &str, slot: usize) {
        let shape = || vec![self.graph.slots[slot].channels];
        let gamma = self.graph.layout.add(format!("{name}.weight"), shape(), Start::All(1.0));
        let beta = self.graph.layout.add(format!("{name}.bias"), shape(), Start::All(0.0));
        let mean = self.graph.running.add(format!("{name}.running_mean"), shape(), Start::All(0.0));
        let variance = self.graph.running.add(format!("{name}.running_var"), shape(), Start::All(1.0));
        self.graph.slots[slot].norm = Some(self.graph.norms.len());
        self.graph.norms.push(Norm { slot, gamma, beta, mean, variance });
    }

    /// Puts a rectifier behind what was just made.
    pub fn relu(&mut self, slot: usize) {
        self.graph.slots[slot].relu = true;
    }

    /// relu(main + around).
    pub fn join(&mut self, main: usize, around: usize, way: Around) -> usize {
        let Slot { size, channels, .. } = self.graph.slots[main];
        let to = self.slot(size, channels, true);
        self.graph.ops.push(Op::Join { main, around, to, way });
        to
    }

    /// The mean over all pixels.
    pub fn pool(&mut self, from: usize) -> usize {
        let channels = self.graph.slots[from].channels;
        let to = self.slot((1, 1), channels, false);
        self.graph.ops.push(Op::Pool { from, to });
        to
    }

    pub fn finish(self) -> Graph {
        self.graph
    }
}
