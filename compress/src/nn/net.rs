//! A net with the memory it runs in.
//!
//! A batch is cut into at most 16 pieces by its size alone. Each operation runs over the pieces in parallel, one
//! thread a piece, and what concerns the whole batch (the moments of a norm, the gradients of weights) is summed piece by
//! piece in order: the bytes that come out do not depend on the number of threads. All memory is taken when the net is
//! made; a step takes only what the library behind the products of linears packs its operands into.

use std::ops::Range;

use super::{
    buffer::{Buffer, Sums},
    graph::{Around, Graph, Op, Slot},
    spec::Spec,
};
use crate::{
    Error, Result,
    kernel::image::{
        conv::{Plan, padded},
        lane::Path,
        pixels::{Activation, Backward},
    },
};

/// Pieces a batch is cut into at most.
pub(super) const PIECES: usize = 16;

/// Added to the variance in a norm; torch's default.
pub const NORM_EPSILON: f64 = 1e-5;

/// Share of a batch's moments in the running ones; torch's default.
pub const NORM_MOMENTUM: f64 = 0.1;

/// Where a norm takes its moments from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The batch; the running moments follow.
    Train,
    /// The running moments.
    Evaluate,
}

/// A norm's affine map and its gradient's, of as many values as a pixel.
#[derive(Debug)]
pub(super) struct NormState {
    pub mean: Vec<f32>,
    pub inverse: Vec<f64>,
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
    pub slope: Vec<f32>,
    pub offset: Vec<f32>,
    /// (pieces, 2 · stride): means and squared deviations forward, the sums of `gradient_sums` backward.
    pub sums: Sums,
    /// Values a piece has put into its row of `sums`.
    pub counts: Sums,
}

/// How an operation writes the gradient of what it read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gives {
    /// Not at all: nobody asks, or the gradient is shared with the operation's own.
    Nothing,
    /// First of all readers.
    Fresh,
    /// To what other readers gave.
    Added,
}

/// What an operation works with beyond its slots.
#[derive(Debug, Default)]
pub(super) struct Tools {
    pub plan: Option<Plan>,
    /// The weight packed for forward and for the gradient of the input.
    pub packed: Option<(Buffer, Buffer)>,
    /// A linear's input as it sees it, where that is not what is stored.
    pub seen: Option<Buffer>,
}

/// A net that runs and learns; its weights are handed in with each call.
#[derive(Debug)]
pub struct Net {
    spec: Spec,
    pub(super) graph: Graph,
    pub(super) path: Path,
    capacity: usize,
    pub(super) count: usize,
    pub(super) mode: Mode,
    /// A slot's batch.
    pub(super) values: Vec<Buffer>,
    /// Gradients; several slots may share one, at different times or as sums.
    pub(super) gradients: Vec<Buffer>,
    /// The gradient of each slot. That of the input is used only when asked for.
    pub(super) gradient_of: Vec<usize>,
    /// How each operation treats the gradient of what it reads first (a join: of what is led around).
    pub(super) gives: Vec<Gives>,
    /// Whether an operation is the last, backward, to give to what it reads.
    pub(super) completes: Vec<bool>,
    /// The join that makes a slot, and whether a slot is read by nothing else.
    pub(super) joined_by: Vec<Option<usize>>,
    pub(super) read_once: Vec<bool>,
    pub(super) tools: Vec<Tools>,
    pub(super) norms: Vec<NormState>,
    /// Two images a piece, with zeros around: x and ∂y.
    pub(super) framed: [Buffer; 2],
    /// The gradients of a weight, by piece.
    pub(super) gathered: Buffer,
    /// A few values a channel, by piece.
    pub(super) small: Buffer,
    /// The gradient in what a linear made.
    pub(super) of_linear: Buffer,
    pub(super) loss_ready: bool,
}

impl Net {
    /// A net for batches of up to `capacity` images.
    ///
    /// # Errors
    /// If the description does not hold together.
    pub fn new(spec: &Spec, capacity: usize) -> Result<Self> {
        Self::on(spec, capacity, Path::best())
    }

    /// [`Self::new`] with kernels of one instruction set.
    ///
    /// # Errors
    /// If the description does not hold together or no image fits.
    pub fn on(spec: &Spec, capacity: usize, path: Path) -> Result<Self> {
        if capacity == 0 {
            return Err(Error::Recipe("a batch of 0 images cannot be computed; give a batch size of 1 or more".into()));
        }
        let graph = spec.graph()?;
        let values = graph.slots.iter().map(|slot| Buffer::zeros(capacity, slot.values())).collect();
        let tools: Vec<Tools> = graph.ops.iter().map(|op| Tools::new(&graph, op, capacity)).collect();
        let norms = graph.norms.iter().map(|norm| NormState::new(graph.slots[norm.slot].stride)).collect();
        let of_plans =
            |size: fn(&Plan) -> usize| tools.iter().filter_map(|t| t.plan.as_ref().map(size)).max().unwrap_or(0);
        let framed =
            [Buffer::zeros(PIECES, of_plans(Plan::padded_input)), Buffer::zeros(PIECES, of_plans(Plan::padded_output))];
        let gathered = Buffer::zeros(PIECES, of_plans(Plan::packed_forward));
        let widest = graph.slots.iter().map(|slot| slot.stride).max().unwrap_or(0);
        let shared = share_gradients(&graph);
        let gradients = shared.sizes.iter().map(|&each| Buffer::zeros(capacity, each)).collect();
        Ok(Self {
            spec: spec.clone(),
            path,
            capacity,
            count: 0,
            mode: Mode::Evaluate,
            values,
            gradients,
            gradient_of: shared.of_slot,
            gives: shared.gives,
            completes: shared.completes,
            joined_by: shared.joined_by,
            read_once: shared.read_once,
            tools,
            norms,
            framed,
            gathered,
            small: Buffer::zeros(PIECES, 2 * widest),
            of_linear: Buffer::zeros(capacity, widest),
            graph,
            loss_ready: false,
        })
    }

    /// What the net is.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its operations and tensors.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The most images a batch may have.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Values of one image: height · width · channels.
    pub fn image_values(&self) -> usize {
        self.graph.slots[0].values()
    }

    /// Where the next batch of `count` images goes, (count, height, width, channels).
    ///
    /// # Panics
    /// If there are more images than the capacity, or none.
    pub fn input_mut(&mut self, count: usize) -> &mut [f32] {
        assert!((1..=self.capacity).contains(&count), "{count} images for a batch of at most {}", self.capacity);
        self.count = count;
        self.values[0].rows_mut(0..count)
    }

    /// The batch last put in, (count, height, width, channels).
    pub fn input(&self) -> &[f32] {
        self.values[0].rows(0..self.count)
    }

    /// The class outputs of image `image` after a forward pass, (classes).
    ///
    /// # Panics
    /// If the batch has no such image.
    pub fn logits(&self, image: usize) -> &[f32] {
        assert!(image < self.count, "image {image} of a batch of {}", self.count);
        let last = self.values.len() - 1;
        &self.values[last].rows(image..image + 1)[..self.spec.classes]
    }

    /// The features the last linear reads of image `image`, as it sees them.
    ///
    /// # Panics
    /// If the batch has no such image.
    pub fn features(&self, image: usize) -> Vec<f32> {
        assert!(image < self.count, "image {image} of a batch of {}", self.count);
        let last = self.graph.ops.len() - 1;
        let Some(from) = self.graph.ops[last].from()[0] else { return Vec::new() };
        let seen = self.tools[last].seen.as_ref().unwrap_or(&self.values[from]);
        seen.rows(image..image + 1)[..self.graph.slots[from].values()].to_vec()
    }

    /// What residual block `block`, counted over all stages, made of image `image`, (height, width, channels), with its
    /// height and width.
    ///
    /// # Panics
    /// If the net has no such block or the batch no such image.
    pub fn block_output(&self, block: usize, image: usize) -> ((usize, usize), Vec<f32>) {
        assert!(image < self.count, "image {image} of a batch of {}", self.count);
        let mut joined = (0..self.graph.slots.len()).filter(|&slot| self.joined_by[slot].is_some());
        let at = joined.nth(block).expect("the net has such a block");
        let slot = &self.graph.slots[at];
        let pixels = self.values[at].rows(image..image + 1).chunks_exact(slot.stride);
        (slot.size, pixels.flat_map(|pixel| &pixel[..slot.channels]).copied().collect())
    }

    /// The gradient of the loss in the pixels of image `image`, (height, width, channels), after
    /// [`Net::backward`] with the gradient of the input asked for.
    pub fn input_gradient(&self, image: usize, out: &mut Vec<f32>) {
        assert!(image < self.count, "image {image} of a batch of {}", self.count);
        let (channels, stride) = (self.graph.slots[0].channels, self.input_stride());
        let gradient = self.gradients[self.gradient_of[0]].rows(image..image + 1);
        out.clear();
        out.extend(gradient.chunks_exact(stride).flat_map(|pixel| &pixel[..channels]));
    }

    /// Values of a pixel in the gradient of the input: a convolution writes eight at a time.
    fn input_stride(&self) -> usize {
        self.gradients[self.gradient_of[0]].each() / (self.graph.slots[0].size.0 * self.graph.slots[0].size.1)
    }

    /// The pieces of the batch: how many, and the images of each.
    pub(super) fn pieces(&self) -> (usize, impl Fn(usize) -> Range<usize> + Sync + use<>) {
        let (count, each) = (self.count, self.count.div_ceil(PIECES));
        (count.div_ceil(each.max(1)), move |piece| piece * each..((piece + 1) * each).min(count))
    }

    /// How readers see a slot.
    pub(super) fn activation(&self, slot: usize) -> Activation<'_> {
        let &Slot { norm, relu, .. } = &self.graph.slots[slot];
        let affine = norm.map(|norm| (self.norms[norm].scale.as_slice(), self.norms[norm].shift.as_slice()));
        Activation { affine, relu }
    }

    /// The way back through a slot's norm.
    pub(super) fn norm_backward(&self, slot: usize) -> Option<Backward<'_>> {
        let norm = &self.norms[self.graph.slots[slot].norm?];
        Some(Backward { scale: &norm.scale, slope: &norm.slope, offset: &norm.offset })
    }
}

impl NormState {
    fn new(stride: usize) -> Self {
        let zeros = || vec![0.0; stride];
        Self {
            mean: zeros(),
            inverse: vec![0.0; stride],
            scale: zeros(),
            shift: zeros(),
            slope: zeros(),
            offset: zeros(),
            sums: Sums::zeros(PIECES, 2 * stride),
            counts: Sums::zeros(PIECES, 1),
        }
    }
}

impl Tools {
    fn new(graph: &Graph, op: &Op, capacity: usize) -> Self {
        match *op {
            Op::Conv { from, conv, .. } => {
                let slot = &graph.slots[from];
                let plan = Plan::new(conv, slot.size, slot.stride);
                let packed = (Buffer::zeros(1, plan.packed_forward()), Buffer::zeros(1, plan.packed_backward()));
                Self { plan: Some(plan), packed: Some(packed), seen: None }
            }
            Op::Linear { from, .. } => {
                let slot = &graph.slots[from];
                let changed = slot.norm.is_some() || slot.relu;
                Self { seen: changed.then(|| Buffer::zeros(capacity, slot.values())), ..Self::default() }
            }
            Op::Join { .. } | Op::Pool { .. } => Self::default(),
        }
    }
}

/// Which slots share the memory of their gradients.
struct Shared {
    sizes: Vec<usize>,
    of_slot: Vec<usize>,
    gives: Vec<Gives>,
    completes: Vec<bool>,
    joined_by: Vec<Option<usize>>,
    read_once: Vec<bool>,
}

/// Walks the operations backward. A join's gradient is that of both it joined, so they share it; the memory of a gradient
/// that is used up serves the next of its size. The input's gradient has memory of its own.
fn share_gradients(graph: &Graph) -> Shared {
    let Graph { slots, ops, .. } = graph;
    let mut readers = vec![0; slots.len()];
    let mut first_reader = vec![ops.len(); slots.len()];
    let mut joined_by = vec![None; slots.len()];
    for (at, op) in ops.iter().enumerate() {
        for from in op.from().into_iter().flatten() {
            readers[from] += 1;
            first_reader[from] = first_reader[from].min(at);
        }
        if let Op::Join { to, .. } = op {
            joined_by[*to] = Some(at);
        }
    }
    let mut sizes: Vec<usize> = Vec::new();
    let mut users: Vec<usize> = Vec::new();
    let mut of_slot: Vec<Option<usize>> = vec![None; slots.len()];
    let mut take = |users: &mut Vec<usize>, each: usize| {
        let free = (0..sizes.len()).find(|&buffer| users[buffer] == 0 && sizes[buffer] == each);
        let buffer = free.unwrap_or_else(|| {
            sizes.push(each);
            users.push(0);
            sizes.len() - 1
        });
        users[buffer] += 1;
        buffer
    };
    of_slot[slots.len() - 1] = Some(take(&mut users, slots[slots.len() - 1].values()));
    let mut gives = vec![Gives::Nothing; ops.len()];
    for (at, op) in ops.iter().enumerate().rev() {
        let own = of_slot[op.to()].expect("every slot but the last is read by a later operation");
        let mut give = |users: &mut Vec<usize>, of_slot: &mut [Option<usize>], from: usize| match of_slot[from] {
            Some(_) => Gives::Added,
            None => {
                // A whole number of runs a pixel, whatever the input's stride.
                let each = slots[from].size.0 * slots[from].size.1 * padded(slots[from].channels);
                let linear = from == 0 && matches!(op, Op::Linear { .. });
                of_slot[from] = Some(take(users, if linear { slots[from].values() } else { each }));
                Gives::Fresh
            }
        };
        match *op {
            Op::Conv { from, .. } | Op::Linear { from, .. } | Op::Pool { from, .. } => {
                gives[at] = give(&mut users, &mut of_slot, from)
            }
            Op::Join { main, around, way, .. } => {
                of_slot[main] = Some(own);
                users[own] += 1;
                match way {
                    Around::Same => {
                        assert!(of_slot[around].is_none(), "what is led around is read before it is joined");
                        of_slot[around] = Some(own);
                        users[own] += 1;
                    }
                    Around::Slice { .. } => gives[at] = give(&mut users, &mut of_slot, around),
                }
            }
        }
        users[own] -= 1;
    }
    let completes = ops
        .iter()
        .enumerate()
        .map(|(at, op)| match *op {
            Op::Conv { from, .. } | Op::Linear { from, .. } | Op::Pool { from, .. } => first_reader[from] == at,
            Op::Join { around, .. } => first_reader[around] == at,
        })
        .collect();
    Shared {
        sizes,
        of_slot: of_slot.into_iter().map(|buffer| buffer.expect("every slot is read or the last")).collect(),
        gives,
        completes,
        joined_by,
        read_once: readers.iter().map(|&count| count == 1).collect(),
    }
}
