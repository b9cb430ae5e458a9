//! The way through a net: class outputs from images.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    graph::{Around, Op},
    linear,
    net::{Gives, Mode, NORM_EPSILON, NORM_MOMENTUM, Net, NormState},
};
use crate::kernel::image::{
    conv::{self, Plan},
    pixels::{self, Frame},
};

/// Where a net reads its weights from, layer by layer: an array of all of them, or what they are made of.
pub trait Source {
    /// Weights of all tensors.
    fn values(&self) -> usize;

    /// Rows of a linear that are read together at most.
    fn rows_at_once(&self) -> usize;

    /// The weights `range` of one tensor, as they lie or in `scratch`.
    fn read<'a>(&'a self, range: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32];
}

impl Source for &[f32] {
    fn values(&self) -> usize {
        self.len()
    }

    fn rows_at_once(&self) -> usize {
        usize::MAX
    }

    fn read<'a>(&'a self, range: Range<usize>, _: &'a mut Vec<f32>) -> &'a [f32] {
        &self[range]
    }
}

impl Net {
    /// Runs the batch last put into [`Net::input_mut`] through the net with `weights` ([`super::graph::Graph::layout`]) and
    /// the norms' `running` moments ([`super::graph::Graph::running`]), which follow the batch in [`Mode::Train`].
    ///
    /// # Panics
    /// If a slice has another length than its layout, or no batch was put in.
    pub fn forward(&mut self, weights: &[f32], running: &mut [f32], mode: Mode) {
        self.forward_from(&weights, running, mode);
    }

    /// [`Self::forward`] with weights that are read where they are used; the same bits for the same weights.
    ///
    /// # Panics
    /// As [`Self::forward`].
    pub fn forward_from(&mut self, weights: &dyn Source, running: &mut [f32], mode: Mode) {
        assert_eq!(weights.values(), self.graph.layout().len(), "the weights are of another net");
        let mut scratch = Vec::new();
        assert_eq!(running.len(), self.graph.running().len(), "the running moments are of another net");
        assert!(self.count > 0, "no images were put in");
        self.mode = mode;
        self.loss_ready = false;
        if mode == Mode::Evaluate {
            for norm in 0..self.norms.len() {
                self.take_running_moments(norm, weights, running);
            }
        }
        for at in 0..self.graph.ops.len() {
            match self.graph.ops[at] {
                Op::Conv { to, weight, .. } => {
                    let weight = weights.read(self.graph.layout().entries()[weight].range(), &mut scratch);
                    self.pack(at, weight, mode);
                    self.conv_forward(at);
                    self.norm_forward(to, weights, running);
                }
                Op::Linear { to, weight, bias, .. } => {
                    let range = |entry: usize| self.graph.layout().entries()[entry].range();
                    let (weight, bias) = (range(weight), bias.map(range));
                    self.linear_forward(at, weights, weight, bias, &mut scratch);
                    self.norm_forward(to, weights, running);
                }
                // A convolution or a mean that follows joins image by image, while the image is near.
                Op::Join { .. } if self.joins_for(at + 1) == Some(at) => {}
                Op::Join { .. } => {
                    let (pieces, images) = self.pieces();
                    // SAFETY: every piece is joined by one thread, and nothing else runs.
                    (0..pieces).into_par_iter().for_each(|piece| unsafe { self.join_images(at, images(piece)) });
                }
                Op::Pool { from, to } => self.pool_forward(at, from, to),
            }
        }
    }

    /// The join that operation `at` carries out for itself before it reads an image.
    fn joins_for(&self, at: usize) -> Option<usize> {
        let join = at.checked_sub(1)?;
        match (self.graph.ops.get(at)?, &self.graph.ops[join]) {
            (Op::Conv { from, .. } | Op::Pool { from, .. }, Op::Join { to, .. }) if from == to => Some(join),
            _ => None,
        }
    }

    fn pack(&mut self, at: usize, weight: &[f32], mode: Mode) {
        let tools = &mut self.tools[at];
        let (Some(plan), Some((forward, backward))) = (&tools.plan, &mut tools.packed) else { return };
        plan.pack_forward(self.path, weight, forward.rows_mut(0..1));
        // The gradient of the input is asked for after a training step, and for single batches in inference.
        if self.gives[at] != Gives::Nothing || mode == Mode::Evaluate {
            plan.pack_backward(self.path, weight, backward.rows_mut(0..1));
        }
    }

    fn conv_forward(&mut self, at: usize) {
        let Op::Conv { from, to, .. } = self.graph.ops[at] else { return };
        let normed = self.graph.slots[to].norm.filter(|_| self.mode == Mode::Train);
        if let Some(norm) = normed {
            self.norms[norm].sums.clear();
            self.norms[norm].counts.clear();
        }
        let join = self.joins_for(at);
        let net = &*self;
        let normed = normed.map(|norm| &net.norms[norm]);
        let (Some(plan), Some((packed, _))) = (&net.tools[at].plan, &net.tools[at].packed) else { return };
        let frame = net.frame(from, plan);
        let (pieces, images) = net.pieces();
        (0..pieces).into_par_iter().for_each(|piece| {
            for image in images(piece) {
                // SAFETY: images and rows of this piece alone are written, by this thread alone.
                unsafe {
                    if let Some(join) = join {
                        net.join_images(join, image..image + 1);
                    }
                    let x = &mut net.framed[0].rows_shared(piece..piece + 1)[..plan.padded_input()];
                    let y = net.values[to].rows_shared(image..image + 1);
                    pixels::place(net.path, net.values[from].rows(image..image + 1), net.activation(from), frame, x);
                    conv::forward(net.path, plan, x, packed.rows(0..1), y);
                    if let Some(norm) = normed {
                        net.gather_moments(piece, to, y, norm);
                    }
                }
            }
        });
    }

    /// A slot's image, and the zeros a convolution wants around it.
    pub(super) fn frame(&self, slot: usize, plan: &Plan) -> Frame {
        let slot = &self.graph.slots[slot];
        let reach = plan.convolution().reach();
        Frame { rows: slot.size.0, columns: slot.size.1, stride: slot.stride, reach }
    }

    /// Adds the moments of some pixels to those of their piece (Chan, Golub and LeVeque 1979, equation 2.1).
    ///
    /// # Safety
    /// The piece is this thread's alone.
    unsafe fn gather_moments(&self, piece: usize, slot: usize, y: &[f32], norm: &NormState) {
        let stride = self.graph.slots[slot].stride;
        // SAFETY: the contract.
        let (small, row, count) = unsafe {
            (
                self.small.rows_shared(piece..piece + 1),
                norm.sums.row_shared(piece),
                &mut norm.counts.row_shared(piece)[0],
            )
        };
        let (mean, squares) = small[..2 * stride].split_at_mut(stride);
        pixels::moments(self.path, y, mean, squares);
        let more = (y.len() / stride) as f64;
        let all = *count + more;
        let (means, deviations) = row.split_at_mut(stride);
        for channel in 0..stride {
            let apart = f64::from(mean[channel]) - means[channel];
            means[channel] += apart * more / all;
            deviations[channel] += f64::from(squares[channel]) + apart * apart * *count * more / all;
        }
        *count = all;
    }

    /// In training: the moments of the whole batch from those of the pieces, in order; the map that follows; and the
    /// running moments, with the variance as a sample's.
    fn norm_forward(&mut self, slot: usize, weights: &dyn Source, running: &mut [f32]) {
        let Some(at) = self.graph.slots[slot].norm.filter(|_| self.mode == Mode::Train) else { return };
        let tensors = self.graph.norms[at];
        let (pieces, _) = self.pieces();
        let (channels, stride) = (self.graph.slots[slot].channels, self.graph.slots[slot].stride);
        let [gamma, beta] = [tensors.gamma, tensors.beta].map(|entry| self.graph.layout().entries()[entry].range());
        let (mut gammas, mut betas) = (Vec::new(), Vec::new());
        let (gamma, beta) = (weights.read(gamma, &mut gammas), weights.read(beta, &mut betas));
        let [mean, variance] =
            [tensors.mean, tensors.variance].map(|entry| self.graph.running().entries()[entry].offset);
        let norm = &mut self.norms[at];
        for channel in 0..channels {
            let (mut centre, mut squares, mut count) = (0.0f64, 0.0f64, 0.0f64);
            for piece in 0..pieces {
                let more = norm.counts.row(piece)[0];
                let row = norm.sums.row(piece);
                let apart = row[channel] - centre;
                let all = count + more;
                centre += apart * more / all;
                squares += row[stride + channel] + apart * apart * count * more / all;
                count = all;
            }
            let of_batch = squares / count;
            let of_sample = if count > 1.0 { squares / (count - 1.0) } else { of_batch };
            let follow = |old: &mut f32, new: f64| {
                *old = ((1.0 - NORM_MOMENTUM) * f64::from(*old) + NORM_MOMENTUM * new) as f32;
            };
            follow(&mut running[mean + channel], centre);
            follow(&mut running[variance + channel], of_sample);
            norm.set(channel, centre, of_batch, gamma[channel], beta[channel]);
        }
    }

    /// In inference: the map from the running moments.
    fn take_running_moments(&mut self, at: usize, weights: &dyn Source, running: &[f32]) {
        let tensors = self.graph.norms[at];
        let [gamma, beta] = [tensors.gamma, tensors.beta].map(|entry| self.graph.layout().entries()[entry].range());
        let (mut gammas, mut betas) = (Vec::new(), Vec::new());
        let (gamma, beta) = (weights.read(gamma, &mut gammas), weights.read(beta, &mut betas));
        let [mean, variance] =
            [tensors.mean, tensors.variance].map(|entry| self.graph.running().entries()[entry].offset);
        for channel in 0..self.graph.slots[tensors.slot].channels {
            let (centre, spread) = (f64::from(running[mean + channel]), f64::from(running[variance + channel]));
            self.norms[at].set(channel, centre, spread, gamma[channel], beta[channel]);
        }
    }

    /// Joins some images.
    ///
    /// # Safety
    /// No other thread touches these images of the slot the join makes.
    unsafe fn join_images(&self, at: usize, images: Range<usize>) {
        let Op::Join { main, around, to, way } = self.graph.ops[at] else { return };
        let slot = &self.graph.slots[to];
        for image in images {
            let (z, x) = (self.values[main].rows(image..image + 1), self.values[around].rows(image..image + 1));
            // SAFETY: the contract.
            let y = unsafe { self.values[to].rows_shared(image..image + 1) };
            let (inner, outer) = (self.activation(main), self.activation(around));
            match way {
                Around::Same => pixels::join(self.path, z, inner, x, outer, slot.stride, slot.rectified, y),
                Around::Slice { stride, below } => {
                    let frame = Frame { rows: slot.size.0, columns: slot.size.1, stride: slot.stride, reach: 0 };
                    pixels::place(self.path, z, inner, frame, y);
                    let from = &self.graph.slots[around];
                    for (row, column) in (0..slot.size.0 * slot.size.1).map(|at| (at / slot.size.1, at % slot.size.1)) {
                        let x = &x[(stride * row * from.size.1 + stride * column) * from.stride..][..from.channels];
                        let y = &mut y[(row * slot.size.1 + column) * slot.stride + below..][..from.channels];
                        if outer.affine.is_none() && !outer.relu {
                            y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
                            continue;
                        }
                        for (channel, (y, x)) in y.iter_mut().zip(x).enumerate() {
                            let seen = outer.affine.map_or(*x, |(scale, shift)| scale[channel] * x + shift[channel]);
                            *y += if outer.relu && seen < 0.0 { 0.0 } else { seen };
                        }
                    }
                    // Not `max`, which would hide a NaN.
                    y.iter_mut().for_each(|y| *y = if *y < 0.0 { 0.0 } else { *y });
                }
            }
        }
    }

    fn pool_forward(&mut self, at: usize, from: usize, to: usize) {
        let join = self.joins_for(at);
        let net = &*self;
        let (pieces, images) = net.pieces();
        (0..pieces).into_par_iter().for_each(|piece| {
            for image in images(piece) {
                // SAFETY: images of this piece alone are written, by this thread alone.
                unsafe {
                    if let Some(join) = join {
                        net.join_images(join, image..image + 1);
                    }
                    let y = net.values[to].rows_shared(image..image + 1);
                    pixels::mean(net.path, net.values[from].rows(image..image + 1), net.activation(from), y);
                }
            }
        });
    }

    fn linear_forward(
        &mut self,
        at: usize,
        weights: &dyn Source,
        weight: Range<usize>,
        bias: Option<Range<usize>>,
        scratch: &mut Vec<f32>,
    ) {
        let Op::Linear { from, to, .. } = self.graph.ops[at] else { return };
        let normed = self.graph.slots[to].norm.filter(|_| self.mode == Mode::Train);
        if let Some(norm) = normed {
            self.norms[norm].sums.clear();
            self.norms[norm].counts.clear();
        }
        let net = &*self;
        let normed = normed.map(|norm| &net.norms[norm]);
        let (pieces, images) = net.pieces();
        let (read, made) = (&net.graph.slots[from], &net.graph.slots[to]);
        if let Some(seen) = &net.tools[at].seen {
            (0..pieces).into_par_iter().for_each(|piece| {
                let images = images(piece);
                let frame = Frame { rows: images.len(), columns: 1, stride: read.stride, reach: 0 };
                // SAFETY: rows of this piece alone are written, by this thread alone.
                let to = unsafe { seen.rows_shared(images.clone()) };
                pixels::place(net.path, net.values[from].rows(images), net.activation(from), frame, to);
            });
        }
        let x = net.tools[at].seen.as_ref().unwrap_or(&net.values[from]).rows(0..net.count);
        // SAFETY: nothing else runs while the product is made.
        let y = unsafe { net.values[to].rows_shared(0..net.count) };
        let inputs = weight.len() / made.channels;
        for first in (0..made.channels).step_by(weights.rows_at_once()) {
            let outputs = weights.rows_at_once().min(made.channels - first);
            let rows = weights.read(weight.start + first * inputs..weight.start + (first + outputs) * inputs, scratch);
            let shape = linear::Shape { rows: net.count, inputs, outputs };
            linear::forward(shape, (x, read.values()), rows, (&mut y[first..], made.stride));
        }
        if let Some(bias) = bias {
            let bias = weights.read(bias, scratch);
            for row in y.chunks_exact_mut(made.stride) {
                row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
            }
        }
        if let Some(norm) = normed {
            (0..pieces).into_par_iter().for_each(|piece| {
                let y = net.values[to].rows(images(piece));
                // SAFETY: rows of this piece alone are written, by this thread alone.
                unsafe { net.gather_moments(piece, to, y, norm) };
            });
        }
    }
}

impl NormState {
    /// The map of one channel.
    fn set(&mut self, channel: usize, mean: f64, variance: f64, gamma: f32, beta: f32) {
        let inverse = 1.0 / (variance + NORM_EPSILON).sqrt();
        let scale = f64::from(gamma) * inverse;
        self.mean[channel] = mean as f32;
        self.inverse[channel] = inverse;
        self.scale[channel] = scale as f32;
        self.shift[channel] = (f64::from(beta) - mean * scale) as f32;
    }
}
