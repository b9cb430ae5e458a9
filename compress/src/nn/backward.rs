//! The way back: the gradient of every weight, and if asked for of the images.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    graph::{Around, Op},
    linear,
    net::{Gives, Mode, Net},
};
use crate::kernel::image::{
    conv,
    pixels::{self, Frame},
};

impl Net {
    /// Sets the gradient in the class outputs of every image, (images, classes), from which [`Self::backward`] starts: for
    /// losses other than [`Self::loss`].
    ///
    /// # Panics
    /// If the slice has another length.
    pub fn set_logit_gradient(&mut self, gradient: &[f32]) {
        let (classes, last) = (self.spec().classes, self.values.len() - 1);
        assert_eq!(gradient.len(), self.count * classes, "the gradient is not ({}, {classes})", self.count);
        let stride = self.graph.slots[last].stride;
        let rows = self.gradients[self.gradient_of[last]].rows_mut(0..self.count);
        for (to, from) in rows.chunks_exact_mut(stride).zip(gradient.chunks_exact(classes)) {
            to[..classes].copy_from_slice(from);
            to[classes..].fill(0.0);
        }
        self.loss_ready = true;
    }

    /// The gradient of the loss in every weight, into `gradient`, for the batch and the `weights` of the last
    /// [`Self::forward`]; and in the pixels, if `of_input`.
    ///
    /// # Panics
    /// If a slice has another length than the layout, or neither [`Self::loss`] nor [`Self::set_logit_gradient`] came
    /// after the last forward pass.
    pub fn backward(&mut self, weights: &[f32], gradient: &mut [f32], of_input: bool) {
        assert_eq!(weights.len(), self.graph.layout().len(), "the weights are of another net");
        assert_eq!(gradient.len(), self.graph.layout().len(), "the gradient is of another net");
        assert!(std::mem::take(&mut self.loss_ready), "no loss was computed for this batch");
        gradient.fill(0.0);
        for norm in &mut self.norms {
            norm.sums.clear();
        }
        for at in (0..self.graph.ops.len()).rev() {
            let op = self.graph.ops[at].clone();
            self.norm_gradient(op.to(), gradient);
            match op {
                Op::Conv { from, weight, .. } => {
                    let gives = if from == 0 && !of_input { Gives::Nothing } else { self.gives[at] };
                    self.conv_backward(at, gives);
                    let entry = self.graph.layout().entries()[weight].range();
                    self.sum_gathered(at, &mut gradient[entry]);
                }
                Op::Linear { from, weight, bias, .. } => {
                    let gives = if from == 0 && !of_input { Gives::Nothing } else { self.gives[at] };
                    let range = |entry: usize| self.graph.layout().entries()[entry].range();
                    let (weight, bias) = (range(weight), bias.map(range));
                    self.linear_backward(at, gives, (&weights[weight.clone()], weight), bias, gradient);
                }
                Op::Pool { from, to } => self.pool_backward(at, from, to),
                Op::Join { .. } => self.slice_backward(at),
            }
        }
    }

    /// Once the gradient of some images of `slot` is whole: the rectifier of a join, and what the norms of the slot, or of
    /// what was joined into it, need to know of the whole batch.
    ///
    /// # Safety
    /// The piece and its images are this thread's alone.
    unsafe fn complete(&self, piece: usize, slot: usize, images: Range<usize>) {
        // SAFETY: the contract.
        let gradient = unsafe { self.gradients[self.gradient_of[slot]].rows_shared(images.clone()) };
        let described = &self.graph.slots[slot];
        if described.rectified {
            pixels::rectify(self.path, gradient, self.values[slot].rows(images.clone()));
        }
        if let Some(Op::Join { main, around, way, .. }) = self.joined_by[slot].map(|at| &self.graph.ops[at]) {
            let around = (*way == Around::Same).then_some(*around);
            for joined in [Some(*main), around].into_iter().flatten().filter(|&joined| self.read_once[joined]) {
                // SAFETY: the contract.
                unsafe { self.complete(piece, joined, images.clone()) };
            }
        }
        let Some(norm) = described.norm.map(|norm| &self.norms[norm]) else { return };
        let stride = described.stride;
        // SAFETY: the contract.
        let (small, row) = unsafe { (self.small.rows_shared(piece..piece + 1), norm.sums.row_shared(piece)) };
        let (sum, product) = small[..2 * stride].split_at_mut(stride);
        let z = self.values[slot].rows(images);
        pixels::gradient_sums(self.path, gradient, z, self.activation(slot), &norm.mean, sum, product);
        for (total, value) in row.iter_mut().zip(sum.iter().chain(product.iter())) {
            *total += f64::from(*value);
        }
    }

    /// The gradients of γ and β of a slot's norm, and the way back through it, from the sums of the pieces in order.
    fn norm_gradient(&mut self, slot: usize, gradient: &mut [f32]) {
        let Some(at) = self.graph.slots[slot].norm else { return };
        let tensors = self.graph.norms[at];
        let (pieces, _) = self.pieces();
        let described = &self.graph.slots[slot];
        let (channels, stride) = (described.channels, described.stride);
        let count = (self.count * described.size.0 * described.size.1) as f64;
        let [gamma, beta] = [tensors.gamma, tensors.beta].map(|entry| self.graph.layout().entries()[entry].offset);
        let norm = &mut self.norms[at];
        for channel in 0..channels {
            let (mut sum, mut product) = (0.0, 0.0);
            for piece in 0..pieces {
                let row = norm.sums.row(piece);
                sum += row[channel];
                product += row[stride + channel];
            }
            let inverse = norm.inverse[channel];
            gradient[beta + channel] = sum as f32;
            gradient[gamma + channel] = (product * inverse) as f32;
            let scale = f64::from(norm.scale[channel]);
            let (slope, offset) = match self.mode {
                Mode::Evaluate => (0.0, 0.0),
                Mode::Train => {
                    let slope = -scale * inverse * inverse * product / count;
                    (slope, -scale * sum / count - slope * f64::from(norm.mean[channel]))
                }
            };
            norm.slope[channel] = slope as f32;
            norm.offset[channel] = offset as f32;
        }
    }

    fn conv_backward(&mut self, at: usize, gives: Gives) {
        let net = &*self;
        let Op::Conv { from, to, .. } = net.graph.ops[at] else { return };
        let (Some(plan), Some((_, packed))) = (&net.tools[at].plan, &net.tools[at].packed) else { return };
        let (frame, frame_of_dy) = (net.frame(from, plan), net.frame(to, plan));
        let (pieces, images) = net.pieces();
        (0..pieces).into_par_iter().for_each(|piece| {
            // SAFETY: the piece's row is written by this thread alone.
            let gathered = unsafe { net.gathered.rows_shared(piece..piece + 1) };
            let gathered = &mut gathered[..plan.packed_forward()];
            gathered.fill(0.0);
            for image in images(piece) {
                let one = image..image + 1;
                // SAFETY: images and rows of this piece alone are written, by this thread alone. The gradients of the two
                // slots lie in memory of their own.
                unsafe {
                    let x = &mut net.framed[0].rows_shared(piece..piece + 1)[..plan.padded_input()];
                    let dy = &mut net.framed[1].rows_shared(piece..piece + 1)[..plan.padded_output()];
                    pixels::place(net.path, net.values[from].rows(one.clone()), net.activation(from), frame, x);
                    pixels::place_gradient(
                        net.path,
                        net.gradients[net.gradient_of[to]].rows(one.clone()),
                        net.values[to].rows(one.clone()),
                        net.activation(to),
                        net.norm_backward(to),
                        frame_of_dy,
                        dy,
                    );
                    conv::grad_weight(net.path, plan, x, dy, gathered);
                    if gives != Gives::Nothing {
                        let dx = net.gradients[net.gradient_of[from]].rows_shared(one.clone());
                        conv::grad_input(net.path, plan, dy, packed.rows(0..1), dx, gives == Gives::Added);
                        if net.completes[at] && from != 0 {
                            net.complete(piece, from, one);
                        }
                    }
                }
            }
        });
    }

    /// The gradient of a convolution's weight: the pieces' in order.
    fn sum_gathered(&mut self, at: usize, gradient: &mut [f32]) {
        let (pieces, _) = self.pieces();
        let Some(plan) = &self.tools[at].plan else { return };
        let values = plan.packed_forward();
        let each = self.gathered.each();
        let all = self.gathered.rows_mut(0..pieces);
        let (first, others) = all.split_at_mut(each);
        for other in others.chunks_exact(each) {
            first[..values].iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
        }
        plan.add_gradient(&first[..values], gradient);
    }

    fn pool_backward(&mut self, at: usize, from: usize, to: usize) {
        let (gives, completes) = (self.gives[at], self.completes[at]);
        let net = &*self;
        let (pieces, images) = net.pieces();
        (0..pieces).into_par_iter().for_each(|piece| {
            for image in images(piece) {
                // SAFETY: images and rows of this piece alone are written, by this thread alone.
                unsafe {
                    let dx = net.gradients[net.gradient_of[from]].rows_shared(image..image + 1);
                    let of_mean = net.gradients[net.gradient_of[to]].rows(image..image + 1);
                    pixels::spread(of_mean, dx, gives == Gives::Added);
                    if completes {
                        net.complete(piece, from, image..image + 1);
                    }
                }
            }
        });
    }

    /// The gradient of what a join slices; all else a join gives is shared memory.
    fn slice_backward(&mut self, at: usize) {
        let net = &*self;
        let Op::Join { around, to, way: Around::Slice { stride, below }, .. } = net.graph.ops[at] else { return };
        let (from, made) = (&net.graph.slots[around], &net.graph.slots[to]);
        let add = net.gives[at] == Gives::Added;
        let (pieces, images) = net.pieces();
        (0..pieces).into_par_iter().for_each(|piece| {
            for image in images(piece) {
                // SAFETY: images and rows of this piece alone are written, by this thread alone.
                unsafe {
                    let dx = net.gradients[net.gradient_of[around]].rows_shared(image..image + 1);
                    let dy = net.gradients[net.gradient_of[to]].rows(image..image + 1);
                    if !add {
                        dx.fill(0.0);
                    }
                    for (row, column) in (0..made.size.0 * made.size.1).map(|at| (at / made.size.1, at % made.size.1)) {
                        let dx =
                            &mut dx[(stride * row * from.size.1 + stride * column) * from.stride..][..from.channels];
                        let dy = &dy[(row * made.size.1 + column) * made.stride + below..][..from.channels];
                        dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy);
                    }
                    if net.completes[at] {
                        net.complete(piece, around, image..image + 1);
                    }
                }
            }
        });
    }

    fn linear_backward(
        &mut self,
        at: usize,
        gives: Gives,
        (weight, of_weight): (&[f32], Range<usize>),
        of_bias: Option<Range<usize>>,
        gradient: &mut [f32],
    ) {
        let net = &*self;
        let Op::Linear { from, to, .. } = net.graph.ops[at] else { return };
        let (read, made) = (&net.graph.slots[from], &net.graph.slots[to]);
        let (pieces, images) = net.pieces();
        // SAFETY: nothing else uses this memory before it is read below.
        let dy = unsafe { &mut net.of_linear.rows_shared(0..net.count)[..net.count * made.stride] };
        let shared = crate::kernel::SharedMut::new(dy);
        (0..pieces).into_par_iter().for_each(|piece| {
            let images = images(piece);
            let frame = Frame { rows: images.len(), columns: 1, stride: made.stride, reach: 0 };
            // SAFETY: rows of this piece alone are written, by this thread alone.
            let dy = unsafe { std::slice::from_raw_parts_mut(shared.at(images.start * made.stride), frame.values()) };
            pixels::place_gradient(
                net.path,
                net.gradients[net.gradient_of[to]].rows(images.clone()),
                net.values[to].rows(images),
                net.activation(to),
                net.norm_backward(to),
                frame,
                dy,
            );
        });
        if let Some(bias) = of_bias {
            for row in dy.chunks_exact(made.stride) {
                gradient[bias.clone()].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        let shape = linear::Shape { rows: net.count, inputs: weight.len() / made.channels, outputs: made.channels };
        let x = net.tools[at].seen.as_ref().unwrap_or(&net.values[from]).rows(0..net.count);
        linear::grad_weight(shape, (dy, made.stride), (x, read.values()), &mut gradient[of_weight]);
        if gives == Gives::Nothing {
            return;
        }
        let of_x = &net.gradients[net.gradient_of[from]];
        // SAFETY: nothing else runs while the product is made, and it reads other memory.
        let dx = unsafe { of_x.rows_shared(0..net.count) };
        linear::grad_input(shape, (dy, made.stride), weight, (dx, of_x.each()), gives == Gives::Added);
        if net.completes[at] && from != 0 {
            // SAFETY: images and rows of each piece are written by one thread.
            (0..pieces).into_par_iter().for_each(|piece| unsafe { net.complete(piece, from, images(piece)) });
        }
    }
}
