//! Convolution of one image with its channels last, and both its gradients, without copying pixels into columns.
//!
//! An image is (height, width, stride) with its channels first in each pixel; outputs hold a multiple of eight of them,
//! what is beyond the last being zero. With zeros around `x`, reach `r = (k − 1) / 2` and step `s`:
//!
//! ```text
//! y[i, j, o]          = Σ_{a, b, c} x[s·i + a − r, s·j + b − r, c] · w[o, c, a, b]      0 ≤ a, b < k
//! ∂x[p, q, c]         = Σ_{a, b, o} ∂y[i, j, o] · w[o, c, a, b]         over s·i + a − r = p, s·j + b − r = q
//! ∂w[o, c, a, b]      = Σ_{i, j}    ∂y[i, j, o] · x[s·i + a − r, s·j + b − r, c]
//! ```
//!
//! The first two are one routine: a tile of neighbouring results and of output channels stays in registers while places of
//! the kernel and input channels go by. For the gradient in `x` the inputs whose places leave the same rest on division by
//! `s` meet the same places of the kernel, so each of the s² rests is a walk of its own. Where neighbours overlap (k = 3,
//! s = 1) a value of `x` is loaded once and used for its three places in a row. The third keeps a tile of `∂w` in registers
//! while the pixels of a strip of rows go by.
//!
//! All sums have a fixed order: the bytes depend on the shape and the instruction set alone.

use super::lane::{Lane, NARROW, Path, paths};

mod products;

pub use products::grad_weight;

/// What a convolution does, whatever the size of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    /// Channels of the input.
    pub inputs: usize,
    /// Channels of the output.
    pub outputs: usize,
    /// Side k of the kernel; odd.
    pub kernel: usize,
    /// Step s between the places of neighbouring outputs.
    pub stride: usize,
}

impl Convolution {
    /// Places the kernel reaches beyond the image on each side.
    pub fn reach(&self) -> usize {
        self.kernel / 2
    }

    /// (height, width) of the output for an image of (height, width).
    pub fn output_size(&self, (height, width): (usize, usize)) -> (usize, usize) {
        (height.div_ceil(self.stride), width.div_ceil(self.stride))
    }

    /// Values of the weight, (outputs, inputs, kernel, kernel).
    pub fn weights(&self) -> usize {
        self.outputs * self.inputs * self.kernel * self.kernel
    }

    /// Multiply-adds of one image of (height, width), forward.
    pub fn multiply_adds(&self, size: (usize, usize)) -> usize {
        let (rows, columns) = self.output_size(size);
        rows * columns * self.weights()
    }
}

/// `channels` up to a multiple of eight.
pub fn padded(channels: usize) -> usize {
    channels.next_multiple_of(NARROW)
}

/// One walk over a grid of results that all meet the same places of the kernel.
#[derive(Debug, Clone)]
struct Walk {
    rows: usize,
    columns: usize,
    /// Values from a result's row to the next, from a column to the next, and to the first, in what is read.
    read: [usize; 3],
    /// The same in what is written.
    write: [usize; 3],
    /// (values from the result's first pixel, place of the kernel) of each pixel a result is made of.
    taps: Vec<(usize, usize)>,
}

/// A convolution of images of one size.
#[derive(Debug, Clone)]
pub struct Plan {
    conv: Convolution,
    size: (usize, usize),
    x_stride: usize,
    forward: Walk,
    backward: Vec<Walk>,
}

impl Plan {
    /// For images of `size` (height, width) that hold a pixel every `x_stride` values.
    ///
    /// # Panics
    /// If a size is zero, the kernel is even, or a pixel's channels do not fit into `x_stride` values.
    pub fn new(conv: Convolution, size: (usize, usize), x_stride: usize) -> Self {
        let Convolution { inputs, outputs, kernel, stride } = conv;
        assert!(inputs > 0 && outputs > 0 && stride > 0 && size.0 > 0 && size.1 > 0, "{conv:?} of {size:?} is empty");
        assert!(!kernel.is_multiple_of(2), "a kernel of {kernel} has no middle");
        assert!(x_stride >= inputs, "{inputs} channels do not fit into {x_stride} values");
        let reach = conv.reach();
        let (rows, columns) = conv.output_size(size);
        let x_row = (size.1 + 2 * reach) * x_stride;
        let taps = (0..kernel * kernel).map(|tap| (tap / kernel * x_row + tap % kernel * x_stride, tap)).collect();
        let y_stride = padded(outputs);
        let forward = Walk {
            rows,
            columns,
            read: [stride * x_row, stride * x_stride, 0],
            write: [columns * y_stride, y_stride, 0],
            taps,
        };

        let dx_stride = padded(inputs);
        let dy_row = (columns + 2 * reach) * y_stride;
        // Along one side: the places of the kernel that inputs of rest `rest` meet, with the output each meets first,
        // counted with the zeros around.
        let meets = |rest: usize| -> Vec<(usize, usize)> {
            let first = |a: usize| rest as isize + reach as isize - a as isize;
            let divides = |a: &usize| first(*a).rem_euclid(stride as isize) == 0;
            (0..kernel)
                .filter(divides)
                .map(|a| (a, (first(a).div_euclid(stride as isize) + reach as isize) as usize))
                .collect()
        };
        let mut backward = Vec::new();
        for (row, column) in (0..stride * stride).map(|rest| (rest / stride, rest % stride)) {
            if row >= size.0 || column >= size.1 {
                continue;
            }
            let mut taps = Vec::new();
            for &(a, i) in &meets(row) {
                for &(b, j) in &meets(column) {
                    taps.push((i * dy_row + j * y_stride, a * kernel + b));
                }
            }
            backward.push(Walk {
                rows: (size.0 - row).div_ceil(stride),
                columns: (size.1 - column).div_ceil(stride),
                read: [dy_row, y_stride, 0],
                write: [stride * size.1 * dx_stride, stride * dx_stride, (row * size.1 + column) * dx_stride],
                taps,
            });
        }
        for walk in &mut backward {
            // The pixel every tap is counted from is the first one any of them reads.
            let first = walk.taps.iter().map(|tap| tap.0).min().unwrap_or(0);
            walk.read[2] = first;
            walk.taps.iter_mut().for_each(|tap| tap.0 -= first);
        }
        Self { conv, size, x_stride, forward, backward }
    }

    /// What is convolved.
    pub fn convolution(&self) -> Convolution {
        self.conv
    }

    /// (height, width) of the output.
    pub fn output_size(&self) -> (usize, usize) {
        self.conv.output_size(self.size)
    }

    /// Values of an input image with its zeros around: (height + 2 r, width + 2 r, x_stride).
    pub fn padded_input(&self) -> usize {
        (self.size.0 + 2 * self.conv.reach()) * (self.size.1 + 2 * self.conv.reach()) * self.x_stride
    }

    /// Values of an output image with zeros around, r on each side: (rows + 2 r, columns + 2 r, padded(outputs)).
    pub fn padded_output(&self) -> usize {
        let (rows, columns) = self.output_size();
        (rows + 2 * self.conv.reach()) * (columns + 2 * self.conv.reach()) * padded(self.conv.outputs)
    }

    /// Values of an output image, (rows, columns, padded(outputs)).
    pub fn output(&self) -> usize {
        let (rows, columns) = self.output_size();
        rows * columns * padded(self.conv.outputs)
    }

    /// Values of the gradient of an input image, (height, width, padded(inputs)).
    pub fn input_gradient(&self) -> usize {
        self.size.0 * self.size.1 * padded(self.conv.inputs)
    }

    /// Values of a weight as [`forward`] takes it.
    pub fn packed_forward(&self) -> usize {
        self.conv.kernel * self.conv.kernel * self.conv.inputs * padded(self.conv.outputs)
    }

    /// Values of a weight as [`grad_input`] takes it.
    pub fn packed_backward(&self) -> usize {
        self.conv.kernel * self.conv.kernel * self.conv.outputs * padded(self.conv.inputs)
    }

    /// Puts `weight` (outputs, inputs, k, k) into the order [`forward`] reads it in.
    ///
    /// # Panics
    /// If a slice has another length.
    pub fn pack_forward(&self, path: Path, weight: &[f32], packed: &mut [f32]) {
        let Convolution { inputs, outputs, kernel, .. } = self.conv;
        assert_eq!(packed.len(), self.packed_forward());
        pack(path, weight, packed, (inputs, inputs * kernel * kernel, kernel * kernel), (outputs, kernel * kernel));
    }

    /// Puts `weight` (outputs, inputs, k, k) into the order [`grad_input`] reads it in.
    ///
    /// # Panics
    /// If a slice has another length.
    pub fn pack_backward(&self, path: Path, weight: &[f32], packed: &mut [f32]) {
        let Convolution { inputs, outputs, kernel, .. } = self.conv;
        assert_eq!(packed.len(), self.packed_backward());
        pack(path, weight, packed, (outputs, kernel * kernel, inputs * kernel * kernel), (inputs, kernel * kernel));
    }

    /// `gradient` (outputs, inputs, k, k) `+=` what [`grad_weight`] gathered.
    ///
    /// # Panics
    /// If a slice has another length.
    pub fn add_gradient(&self, gathered: &[f32], gradient: &mut [f32]) {
        let Convolution { inputs, outputs, kernel, .. } = self.conv;
        let taps = kernel * kernel;
        assert_eq!(gathered.len(), self.packed_forward());
        assert_eq!(gradient.len(), self.conv.weights());
        for (at, row) in gathered.chunks_exact(padded(outputs)).enumerate() {
            let (tap, input) = (at / inputs, at % inputs);
            for (output, value) in row[..outputs].iter().enumerate() {
                gradient[(output * inputs + input) * taps + tap] += value;
            }
        }
    }
}

/// Blocks the written channels are walked in: twice the wide run, the wide run, the narrow one.
#[inline(always)]
fn block_of<W: Lane>(left: usize) -> usize {
    match left {
        left if left >= 2 * W::LANES => 2 * W::LANES,
        left if left >= W::LANES => W::LANES,
        _ => NARROW,
    }
}

paths! {
    /// Blocks of written channels one after the other, each (taps, read channels, block). `read` is (count, weight's
    /// distance between written channels, between read ones); `written` (count, taps).
    fn pack(weight: &[f32], packed: &mut [f32], read: (usize, usize, usize), written: (usize, usize)) = pack_body
}

/// # Safety
/// The processor has the instructions that `W` is made of; lengths are checked here.
#[inline(always)]
unsafe fn pack_body<W: Lane, N: Lane>(
    weight: &[f32],
    packed: &mut [f32],
    (reads, written_step, read_step): (usize, usize, usize),
    (writes, taps): (usize, usize),
) {
    assert_eq!(weight.len(), reads * writes * taps, "the weight has another shape");
    let mut first = 0;
    let mut rest = packed;
    while first < padded(writes) {
        let block = block_of::<W>(padded(writes) - first);
        let (now, later) = rest.split_at_mut(block * taps * reads);
        for (at, row) in now.chunks_exact_mut(block).enumerate() {
            let (tap, read) = (at / reads, at % reads);
            for (lane, value) in row.iter_mut().enumerate() {
                let written = first + lane;
                *value = if written < writes { weight[written * written_step + read * read_step + tap] } else { 0.0 };
            }
        }
        rest = later;
        first += block;
    }
}

/// `y` (rows, columns, padded(outputs)) of one image `x` with zeros around.
///
/// # Panics
/// If a slice has another length than the plan says.
pub fn forward(path: Path, plan: &Plan, x: &[f32], packed: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), plan.padded_input(), "x is of another size");
    assert_eq!(packed.len(), plan.packed_forward(), "the weight is of another size");
    assert_eq!(y.len(), plan.output(), "y is of another size");
    let turned = Turned { taps: plan.conv.kernel * plan.conv.kernel, slides: slides(&plan.conv), flipped: false };
    walk(path, &plan.forward, x, plan.conv.inputs, packed, turned, y, padded(plan.conv.outputs), false);
}

/// `∂x` (height, width, padded(inputs)) of one image from `dy` with zeros around; added to what is there if `add`.
///
/// # Panics
/// If a slice has another length than the plan says.
pub fn grad_input(path: Path, plan: &Plan, dy: &[f32], packed: &[f32], dx: &mut [f32], add: bool) {
    assert_eq!(dy.len(), plan.padded_output(), "∂y is of another size");
    assert_eq!(packed.len(), plan.packed_backward(), "the weight is of another size");
    assert_eq!(dx.len(), plan.input_gradient(), "∂x is of another size");
    let turned = Turned { taps: plan.conv.kernel * plan.conv.kernel, slides: slides(&plan.conv), flipped: true };
    for each in &plan.backward {
        walk(path, each, dy, plan.conv.outputs, packed, turned, dx, padded(plan.conv.inputs), add);
    }
}

/// Whether neighbouring results overlap in the way [`slide`] knows.
fn slides(conv: &Convolution) -> bool {
    conv.kernel == 3 && conv.stride == 1
}

/// How the places of the kernel are met.
#[derive(Debug, Clone, Copy)]
struct Turned {
    /// Places of the whole kernel.
    taps: usize,
    /// Whether three in a row share what they read.
    slides: bool,
    /// Whether they are met from the last to the first.
    flipped: bool,
}

paths! {
    /// One walk: every result of the grid.
    fn walk(
        walk: &Walk,
        x: &[f32],
        inputs: usize,
        packed: &[f32],
        turned: Turned,
        y: &mut [f32],
        outputs: usize,
        add: bool,
    ) = walk_body
}

/// # Safety
/// The processor has the instructions that `W` and `N` are made of.
#[inline(always)]
unsafe fn walk_body<W: Lane, N: Lane>(
    walk: &Walk,
    x: &[f32],
    inputs: usize,
    packed: &[f32],
    turned: Turned,
    y: &mut [f32],
    outputs: usize,
    add: bool,
) {
    // The last pixel read and the last run written lie inside.
    let farthest = |[row, column, first]: [usize; 3]| first + (walk.rows - 1) * row + (walk.columns - 1) * column;
    let reads = walk.taps.iter().map(|tap| tap.0 + inputs).max().unwrap_or(0);
    assert!(farthest(walk.read) + reads <= x.len() && farthest(walk.write) + outputs <= y.len());
    assert!(walk.taps.iter().all(|tap| tap.1 < turned.taps) && packed.len() == turned.taps * inputs * outputs);
    let mut first = 0;
    while first < outputs {
        let block = block_of::<W>(outputs - first);
        let weight = packed[first * turned.taps * inputs..].as_ptr();
        let narrow = block != 2 * W::LANES && block != W::LANES;
        let mut row = 0;
        while row < walk.rows {
            let mut tile = Tile {
                x: x[walk.read[2] + row * walk.read[0]..].as_ptr(),
                x_step: walk.read[1],
                inputs,
                weight,
                block,
                taps: &walk.taps,
                flipped: turned.flipped,
                y: y[walk.write[2] + row * walk.write[0] + first..].as_mut_ptr(),
                y_step: walk.write[1],
                apart: (walk.read[0], walk.write[0]),
                add,
            };
            // SAFETY: every result of the row lies in y and every pixel it reads in x, as asserted above; the packed
            // weight holds `block` values for each place and input from `first` on.
            unsafe {
                if block == 2 * W::LANES {
                    run_row::<W, 2>(&mut tile, walk.columns, turned.slides);
                } else if block == W::LANES {
                    run_row::<W, 1>(&mut tile, walk.columns, turned.slides);
                } else if row + W::Rows::ROWS <= walk.rows {
                    run_row::<W::Rows, 1>(&mut tile, walk.columns, turned.slides);
                } else {
                    run_row::<N, 1>(&mut tile, walk.columns, turned.slides);
                }
            }
            row += if narrow && row + W::Rows::ROWS <= walk.rows { W::Rows::ROWS } else { 1 };
        }
        first += block;
    }
}

/// Where the next results of a row come from and go to.
struct Tile<'a> {
    x: *const f32,
    x_step: usize,
    inputs: usize,
    weight: *const f32,
    block: usize,
    taps: &'a [(usize, usize)],
    flipped: bool,
    y: *mut f32,
    y_step: usize,
    /// Values from a row to the next in x and y, where two are worked on at once.
    apart: (usize, usize),
    add: bool,
}

/// All results of a row, in tiles as wide as the registers allow.
///
/// # Safety
/// The processor has the instructions of `V`, and the columns, with the pixels and weights of their taps,
/// lie inside the arrays the tile points into.
#[inline(always)]
unsafe fn run_row<V: Lane, const K: usize>(tile: &mut Tile<'_>, columns: usize, slides: bool) {
    let mut left = columns;
    macro_rules! tiles {
        ($($places:literal)*) => {$(
            if V::RESULTS >= $places * K {
                while left >= $places {
                    // SAFETY: the caller's contract, for the next results of the row.
                    unsafe {
                        if slides {
                            slide::<V, $places, K>(tile);
                        } else {
                            gather::<V, $places, K>(tile);
                        }
                        tile.x = tile.x.add($places * tile.x_step);
                        tile.y = tile.y.add($places * tile.y_step);
                    }
                    left -= $places;
                }
            }
        )*};
    }
    tiles!(8 4 2 1);
}

/// # Safety
/// The processor has the instructions of `V`, and the P runs of K registers at y
/// lie inside the arrays the tile points into.
#[inline(always)]
unsafe fn start<V: Lane, const P: usize, const K: usize>(tile: &Tile<'_>) -> [[V; K]; P] {
    // SAFETY: P runs of K registers are readable at y, by the caller's contract.
    unsafe {
        let mut sums = [[V::all(0.0); K]; P];
        if tile.add {
            for p in 0..P {
                for k in 0..K {
                    sums[p][k] = V::load_rows(tile.y.add(p * tile.y_step + k * V::LANES), tile.apart.1);
                }
            }
        }
        sums
    }
}

/// # Safety
/// The processor has the instructions of `V`, and the P runs of K registers at y
/// lie inside the arrays the tile points into.
#[inline(always)]
unsafe fn finish<V: Lane, const P: usize, const K: usize>(tile: &Tile<'_>, sums: [[V; K]; P]) {
    // SAFETY: P runs of K registers are writable at y, by the caller's contract.
    unsafe {
        for p in 0..P {
            for k in 0..K {
                sums[p][k].store_rows(tile.y.add(p * tile.y_step + k * V::LANES), tile.apart.1);
            }
        }
    }
}

/// P neighbouring results of any convolution.
///
/// # Safety
/// The processor has the instructions of `V`, and the pixels and weights that the taps name
/// lie inside the arrays the tile points into.
#[inline(always)]
unsafe fn gather<V: Lane, const P: usize, const K: usize>(tile: &Tile<'_>) {
    // SAFETY: the pixels and weights the taps name are readable, by the caller's contract.
    unsafe {
        let mut sums = start::<V, P, K>(tile);
        for &(offset, tap) in tile.taps {
            let mut x = tile.x.add(offset);
            let mut w = tile.weight.add(tap * tile.inputs * tile.block);
            for _ in 0..tile.inputs {
                let weights: [V; K] = std::array::from_fn(|k| V::load(w.add(k * V::LANES)));
                let mut at = x;
                for p in 0..P {
                    let value = V::splat_rows(at, tile.apart.0);
                    for k in 0..K {
                        sums[p][k] = weights[k].fma(value, sums[p][k]);
                    }
                    at = at.wrapping_add(tile.x_step);
                }
                x = x.add(1);
                w = w.add(K * V::LANES);
            }
        }
        finish(tile, sums);
    }
}

/// P neighbouring results of a 3 × 3 convolution with step 1: each value of `x` is loaded once for its three places in a
/// row of the kernel.
#[inline(always)]
unsafe fn slide<V: Lane, const P: usize, const K: usize>(tile: &Tile<'_>) {
    // SAFETY: as in `gather`; the nine taps are in order, the first at the tile's first pixel, three to a row of pixels.
    unsafe {
        let mut sums = start::<V, P, K>(tile);
        // Three multiply-adds in a row to one register would wait for each other where there are few registers.
        let apart = K == 1 && V::RESULTS >= 2 * P;
        let mut others = [[V::all(0.0); K]; P];
        let each = tile.inputs * tile.block;
        let (first, step) = if tile.flipped { (8 * each, -(each as isize)) } else { (0, each as isize) };
        for row in 0..3 {
            // The first place met in this row of pixels.
            let offset = tile.taps[if tile.flipped { 8 - 3 * row } else { 3 * row }].0;
            let mut x = tile.x.add(offset);
            let mut w = tile.weight.add(first).offset(3 * row as isize * step);
            for _ in 0..tile.inputs {
                let weights: [[V; K]; 3] = std::array::from_fn(|b| {
                    std::array::from_fn(|k| V::load(w.offset(b as isize * step).add(k * V::LANES)))
                });
                let mut at = x;
                for q in 0..P + 2 {
                    let value = V::splat_rows(at, tile.apart.0);
                    for b in 0..3 {
                        if q >= b && q - b < P {
                            for k in 0..K {
                                let sum = if apart && b == 1 { &mut others[q - b][k] } else { &mut sums[q - b][k] };
                                *sum = weights[b][k].fma(value, *sum);
                            }
                        }
                    }
                    at = at.wrapping_add(tile.x_step);
                }
                x = x.add(1);
                w = w.add(K * V::LANES);
            }
        }
        if apart {
            for p in 0..P {
                for k in 0..K {
                    sums[p][k] = sums[p][k].add(others[p][k]);
                }
            }
        }
        finish(tile, sums);
    }
}
