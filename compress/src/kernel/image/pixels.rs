//! What happens to the values of an image between two convolutions, channel by channel: batch normalisation, rectifiers,
//! sums of images, means over all places, and the gradients of each.
//!
//! Pixels hold a multiple of eight values. A batch norm (Ioffe and Szegedy 2015, algorithm 1) is the affine map
//! `u = scale · z + shift` once its moments over the batch are known, `scale = γ / √(σ² + ε)`; it is never a pass of its
//! own: the map, the rectifier behind it and the zeros around the image are put on while an image is copied to where a
//! convolution reads it. Backward, with `∂u` the gradient where the rectifier let pass and N values in the batch,
//!
//! ```text
//! ∂z = scale · (∂u − Σ∂u / N − ẑ · Σ(∂u ẑ) / N)      ẑ = (z − μ) / √(σ² + ε)
//!    = scale · ∂u + slope · z + offset
//! ```

use super::lane::{Lane, NARROW, paths};

/// What a stored value means to whoever reads it: an affine map for each channel, then a rectifier; both may be absent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Activation<'a> {
    /// (scale, shift), each of as many values as a pixel.
    pub affine: Option<(&'a [f32], &'a [f32])>,
    /// Whether values below zero become zero.
    pub relu: bool,
}

/// Rows and columns of an image, the values of a pixel, and the zeros around the image where it is copied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Height.
    pub rows: usize,
    /// Width.
    pub columns: usize,
    /// Values of a pixel.
    pub stride: usize,
    /// Pixels of zeros on each side of the copy.
    pub reach: usize,
}

impl Frame {
    /// Values of the image.
    pub fn values(&self) -> usize {
        self.rows * self.columns * self.stride
    }

    /// Values of the copy.
    pub fn framed(&self) -> usize {
        (self.rows + 2 * self.reach) * (self.columns + 2 * self.reach) * self.stride
    }

    /// Values of a row of the copy.
    fn row(&self) -> usize {
        (self.columns + 2 * self.reach) * self.stride
    }

    /// Where row `row` of the image begins in the copy.
    fn start(&self, row: usize) -> usize {
        (row + self.reach) * self.row() + self.reach * self.stride
    }

    /// Writes the zeros around the image.
    fn clear(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.framed(), "the copy is of another size");
        if self.reach == 0 {
            return;
        }
        let width = self.columns * self.stride;
        out[..self.start(0)].fill(0.0);
        for row in 1..self.rows {
            out[self.start(row - 1) + width..self.start(row)].fill(0.0);
        }
        out[self.start(self.rows - 1) + width..].fill(0.0);
    }
}

/// Calls `run::<V>(…, channel)` for every run of channels of a pixel of `stride` values.
macro_rules! each_run {
    ($stride:expr, $run:ident $(::<$($flag:tt),*>)? ($($arg:expr),* $(,)?)) => {{
        let mut channel = 0;
        while channel < $stride {
            // SAFETY: the callers' slices hold whole pixels of a multiple of eight values.
            unsafe {
                if $stride - channel >= W::LANES {
                    $run::<W $($(, $flag)*)?>($($arg,)* channel);
                    channel += W::LANES;
                } else {
                    $run::<N $($(, $flag)*)?>($($arg,)* channel);
                    channel += NARROW;
                }
            }
        }
    }};
}

fn check(values: usize, stride: usize) {
    assert!(
        stride.is_multiple_of(NARROW) && values.is_multiple_of(stride),
        "{values} values are not pixels of {stride}"
    );
}

fn check_activation(activation: &Activation<'_>, stride: usize) {
    if let Some((scale, shift)) = activation.affine {
        assert!(scale.len() == stride && shift.len() == stride, "the affine map is not of {stride} channels");
    }
}

paths! {
    /// Copies `x`, as its reader sees it, into `out` with zeros around.
    ///
    /// # Panics
    /// If a slice has another length than `frame` says.
    pub fn place(x: &[f32], activation: Activation<'_>, frame: Frame, out: &mut [f32]) = place_body
}

#[inline(always)]
unsafe fn place_body<W: Lane, N: Lane>(x: &[f32], activation: Activation<'_>, frame: Frame, out: &mut [f32]) {
    assert_eq!(x.len(), frame.values(), "the image is of another size");
    frame.clear(out);
    if activation.affine.is_none() && !activation.relu {
        let width = frame.columns * frame.stride;
        for (row, x) in x.chunks_exact(width).enumerate() {
            out[frame.start(row)..][..width].copy_from_slice(x);
        }
        return;
    }
    check(x.len(), frame.stride);
    check_activation(&activation, frame.stride);
    match (activation.affine.is_some(), activation.relu) {
        (true, true) => each_run!(frame.stride, place_run::<true, true>(x, activation, frame, out)),
        (true, false) => each_run!(frame.stride, place_run::<true, false>(x, activation, frame, out)),
        (false, _) => each_run!(frame.stride, place_run::<false, true>(x, activation, frame, out)),
    }
}

#[inline(always)]
unsafe fn place_run<V: Lane, const AFFINE: bool, const RELU: bool>(
    x: &[f32],
    activation: Activation<'_>,
    frame: Frame,
    out: &mut [f32],
    channel: usize,
) {
    // SAFETY: the run lies in every pixel; image and copy have the frame's sizes.
    unsafe {
        let active = Active::<V, AFFINE, RELU>::new(activation, channel);
        for row in 0..frame.rows {
            let x = x.as_ptr().add(row * frame.columns * frame.stride + channel);
            let out = out.as_mut_ptr().add(frame.start(row) + channel);
            for column in 0..frame.columns {
                active.of(V::load(x.add(column * frame.stride))).store(out.add(column * frame.stride));
            }
        }
    }
}

/// An activation of one run of channels.
struct Active<V, const AFFINE: bool, const RELU: bool> {
    scale: V,
    shift: V,
}

impl<V: Lane, const AFFINE: bool, const RELU: bool> Active<V, AFFINE, RELU> {
    #[inline(always)]
    unsafe fn new(activation: Activation<'_>, channel: usize) -> Self {
        // SAFETY: the run lies in the maps, as checked by the callers.
        unsafe {
            match activation.affine {
                Some((scale, shift)) if AFFINE => {
                    Self { scale: V::load(scale.as_ptr().add(channel)), shift: V::load(shift.as_ptr().add(channel)) }
                }
                _ => Self { scale: V::all(1.0), shift: V::all(0.0) },
            }
        }
    }

    /// Before the rectifier.
    #[inline(always)]
    unsafe fn mapped(&self, z: V) -> V {
        // SAFETY: arithmetic alone.
        if AFFINE { unsafe { z.fma(self.scale, self.shift) } } else { z }
    }

    #[inline(always)]
    unsafe fn of(&self, z: V) -> V {
        // SAFETY: arithmetic alone.
        unsafe {
            let u = self.mapped(z);
            if RELU { u.positive() } else { u }
        }
    }

    /// What of the gradient `dy` passes the rectifier.
    #[inline(always)]
    unsafe fn passed(&self, dy: V, z: V) -> V {
        // SAFETY: arithmetic alone.
        unsafe { if RELU { dy.where_positive(self.mapped(z)) } else { dy } }
    }
}

paths! {
    /// Mean and sum of squared deviations of each channel of the pixels `z`, two passes.
    ///
    /// # Panics
    /// If `z` is not whole pixels of as many values as `mean`.
    pub fn moments(z: &[f32], mean: &mut [f32], squares: &mut [f32]) = moments_body
}

#[inline(always)]
unsafe fn moments_body<W: Lane, N: Lane>(z: &[f32], mean: &mut [f32], squares: &mut [f32]) {
    let stride = mean.len();
    check(z.len(), stride);
    assert_eq!(squares.len(), stride);
    each_run!(stride, moments_run(z, mean, squares));
}

/// Sums that are kept apart, so that one addition need not wait for the last.
const APART: usize = 4;

#[inline(always)]
unsafe fn moments_run<V: Lane>(z: &[f32], mean: &mut [f32], squares: &mut [f32], channel: usize) {
    let stride = mean.len();
    let pixels = z.len() / stride;
    // SAFETY: the run lies in every pixel.
    unsafe {
        let at = |pixel: usize| V::load(z.as_ptr().add(pixel * stride + channel));
        let mut sums = [V::all(0.0); APART];
        for pixel in 0..pixels / APART {
            for k in 0..APART {
                sums[k] = sums[k].add(at(pixel * APART + k));
            }
        }
        for pixel in pixels / APART * APART..pixels {
            sums[0] = sums[0].add(at(pixel));
        }
        let sum = sums[0].add(sums[1]).add(sums[2].add(sums[3]));
        let centre = sum.fma(V::all(1.0 / pixels as f32), V::all(0.0));
        let mut sums = [V::all(0.0); APART];
        for pixel in 0..pixels / APART {
            for k in 0..APART {
                let deviation = at(pixel * APART + k).sub(centre);
                sums[k] = deviation.fma(deviation, sums[k]);
            }
        }
        for pixel in pixels / APART * APART..pixels {
            let deviation = at(pixel).sub(centre);
            sums[0] = deviation.fma(deviation, sums[0]);
        }
        centre.store(mean.as_mut_ptr().add(channel));
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).store(squares.as_mut_ptr().add(channel));
    }
}

paths! {
    /// For the pixels `z` under `activation` and the gradient `dy` of what their reader sees: Σ∂u and Σ∂u·(z − mean) of
    /// each channel.
    ///
    /// # Panics
    /// If a slice has another length.
    pub fn gradient_sums(
        dy: &[f32],
        z: &[f32],
        activation: Activation<'_>,
        mean: &[f32],
        sum: &mut [f32],
        product: &mut [f32],
    ) = gradient_sums_body
}

#[inline(always)]
unsafe fn gradient_sums_body<W: Lane, N: Lane>(
    dy: &[f32],
    z: &[f32],
    activation: Activation<'_>,
    mean: &[f32],
    sum: &mut [f32],
    product: &mut [f32],
) {
    let stride = mean.len();
    check(z.len(), stride);
    check_activation(&activation, stride);
    assert!(dy.len() == z.len() && sum.len() == stride && product.len() == stride);
    match (activation.affine.is_some(), activation.relu) {
        (true, true) => each_run!(stride, sums_run::<true, true>(dy, z, activation, mean, sum, product)),
        (false, true) => each_run!(stride, sums_run::<false, true>(dy, z, activation, mean, sum, product)),
        (_, false) => each_run!(stride, sums_run::<false, false>(dy, z, activation, mean, sum, product)),
    }
}

#[inline(always)]
unsafe fn sums_run<V: Lane, const AFFINE: bool, const RELU: bool>(
    dy: &[f32],
    z: &[f32],
    activation: Activation<'_>,
    mean: &[f32],
    sum: &mut [f32],
    product: &mut [f32],
    channel: usize,
) {
    let stride = mean.len();
    let pixels = z.len() / stride;
    // SAFETY: the run lies in every pixel of both.
    unsafe {
        let active = Active::<V, AFFINE, RELU>::new(activation, channel);
        let centre = V::load(mean.as_ptr().add(channel));
        let (mut sums, mut products) = ([V::all(0.0); APART], [V::all(0.0); APART]);
        let mut step = |pixel: usize, k: usize| {
            let z = V::load(z.as_ptr().add(pixel * stride + channel));
            let du = active.passed(V::load(dy.as_ptr().add(pixel * stride + channel)), z);
            sums[k] = sums[k].add(du);
            products[k] = du.fma(z.sub(centre), products[k]);
        };
        for pixel in 0..pixels / APART {
            for k in 0..APART {
                step(pixel * APART + k, k);
            }
        }
        for pixel in pixels / APART * APART..pixels {
            step(pixel, 0);
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).store(sum.as_mut_ptr().add(channel));
        products[0].add(products[1]).add(products[2].add(products[3])).store(product.as_mut_ptr().add(channel));
    }
}

/// The last line of the module's formulas, of as many values as a pixel each.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// Of ∂u.
    pub scale: &'a [f32],
    /// Of z.
    pub slope: &'a [f32],
    /// Alone.
    pub offset: &'a [f32],
}

paths! {
    /// Copies the gradient in the stored values `z` into `out` with zeros around, from the gradient `dy` of what their
    /// reader sees. Without `norm` the map is the identity.
    ///
    /// # Panics
    /// If a slice has another length than `frame` says.
    pub fn place_gradient(
        dy: &[f32],
        z: &[f32],
        activation: Activation<'_>,
        norm: Option<Backward<'_>>,
        frame: Frame,
        out: &mut [f32],
    ) = place_gradient_body
}

#[inline(always)]
unsafe fn place_gradient_body<W: Lane, N: Lane>(
    dy: &[f32],
    z: &[f32],
    activation: Activation<'_>,
    norm: Option<Backward<'_>>,
    frame: Frame,
    out: &mut [f32],
) {
    check(z.len(), frame.stride);
    check_activation(&activation, frame.stride);
    assert!(dy.len() == frame.values() && z.len() == frame.values(), "the image is of another size");
    frame.clear(out);
    let stride = frame.stride;
    if let Some(norm) = norm {
        assert!([norm.scale, norm.slope, norm.offset].iter().all(|values| values.len() == stride));
    }
    match (norm, activation.relu) {
        (Some(norm), true) => each_run!(stride, gradient_run::<true, true>(dy, z, activation, norm, frame, out)),
        (Some(norm), false) => each_run!(stride, gradient_run::<true, false>(dy, z, activation, norm, frame, out)),
        (None, relu) => {
            let norm = Backward { scale: &[], slope: &[], offset: &[] };
            match relu {
                true => each_run!(stride, gradient_run::<false, true>(dy, z, activation, norm, frame, out)),
                false => each_run!(stride, gradient_run::<false, false>(dy, z, activation, norm, frame, out)),
            }
        }
    }
}

#[inline(always)]
unsafe fn gradient_run<V: Lane, const NORM: bool, const RELU: bool>(
    dy: &[f32],
    z: &[f32],
    activation: Activation<'_>,
    norm: Backward<'_>,
    frame: Frame,
    out: &mut [f32],
    channel: usize,
) {
    // SAFETY: the run lies in every pixel; the images and the copy have the frame's sizes.
    unsafe {
        let active = Active::<V, NORM, RELU>::new(activation, channel);
        let load = |values: &[f32]| if NORM { V::load(values.as_ptr().add(channel)) } else { V::all(0.0) };
        let (scale, slope, offset) = (load(norm.scale), load(norm.slope), load(norm.offset));
        for row in 0..frame.rows {
            let from = row * frame.columns * frame.stride + channel;
            let out = out.as_mut_ptr().add(frame.start(row) + channel);
            for column in 0..frame.columns {
                let at = from + column * frame.stride;
                let z = V::load(z.as_ptr().add(at));
                let du = active.passed(V::load(dy.as_ptr().add(at)), z);
                let dz = if NORM { du.fma(scale, z.fma(slope, offset)) } else { du };
                dz.store(out.add(column * frame.stride));
            }
        }
    }
}

paths! {
    /// `y = relu(activation(z) + around(x))`, pixel by pixel; without the rectifier if not `relu`.
    ///
    /// # Panics
    /// If a slice has another length or does not hold whole pixels of `stride` values.
    pub fn join(
        z: &[f32],
        activation: Activation<'_>,
        x: &[f32],
        around: Activation<'_>,
        stride: usize,
        relu: bool,
        y: &mut [f32],
    ) = join_body
}

#[inline(always)]
unsafe fn join_body<W: Lane, N: Lane>(
    z: &[f32],
    activation: Activation<'_>,
    x: &[f32],
    around: Activation<'_>,
    stride: usize,
    relu: bool,
    y: &mut [f32],
) {
    check(z.len(), stride);
    check_activation(&activation, stride);
    check_activation(&around, stride);
    assert!(x.len() == z.len() && y.len() == z.len());
    each_run!(stride, join_run(z, activation, x, around, stride, relu, y));
}

#[inline(always)]
unsafe fn join_run<V: Lane>(
    z: &[f32],
    activation: Activation<'_>,
    x: &[f32],
    around: Activation<'_>,
    stride: usize,
    relu: bool,
    y: &mut [f32],
    channel: usize,
) {
    // SAFETY: the run lies in every pixel of all three. A map that is absent multiplies by one and adds zero.
    unsafe {
        let (main, side) =
            (Active::<V, true, false>::new(activation, channel), Active::<V, true, false>::new(around, channel));
        // Without a rectifier everything is let through.
        let floor = |value: V, on: bool| if on { value.positive() } else { value };
        for at in (channel..z.len()).step_by(stride) {
            let main = floor(main.of(V::load(z.as_ptr().add(at))), activation.relu);
            let side = floor(side.of(V::load(x.as_ptr().add(at))), around.relu);
            floor(main.add(side), relu).store(y.as_mut_ptr().add(at));
        }
    }
}

paths! {
    /// `gradient` becomes zero where `y` is not above zero: the way back through a rectifier whose result is `y`.
    ///
    /// # Panics
    /// If the slices differ in length or do not hold a multiple of eight values.
    pub fn rectify(gradient: &mut [f32], y: &[f32]) = rectify_body
}

#[inline(always)]
unsafe fn rectify_body<W: Lane, N: Lane>(gradient: &mut [f32], y: &[f32]) {
    assert!(gradient.len() == y.len() && y.len().is_multiple_of(NARROW));
    for at in (0..y.len()).step_by(NARROW) {
        // SAFETY: eight values from a multiple of eight below the length.
        unsafe {
            let to = gradient.as_mut_ptr().add(at);
            N::load(to).where_positive(N::load(y.as_ptr().add(at))).store(to);
        }
    }
}

paths! {
    /// The mean over all pixels of `z`, as its reader sees it, of each channel.
    ///
    /// # Panics
    /// If `z` is not whole pixels of as many values as `mean`.
    pub fn mean(z: &[f32], activation: Activation<'_>, mean: &mut [f32]) = mean_body
}

#[inline(always)]
unsafe fn mean_body<W: Lane, N: Lane>(z: &[f32], activation: Activation<'_>, mean: &mut [f32]) {
    check(z.len(), mean.len());
    check_activation(&activation, mean.len());
    match activation.relu {
        true => each_run!(mean.len(), mean_run::<true, true>(z, activation, mean)),
        false => each_run!(mean.len(), mean_run::<true, false>(z, activation, mean)),
    }
}

#[inline(always)]
unsafe fn mean_run<V: Lane, const AFFINE: bool, const RELU: bool>(
    z: &[f32],
    activation: Activation<'_>,
    mean: &mut [f32],
    channel: usize,
) {
    let stride = mean.len();
    // SAFETY: the run lies in every pixel.
    unsafe {
        let active = Active::<V, AFFINE, RELU>::new(activation, channel);
        let mut sum = V::all(0.0);
        for at in (channel..z.len()).step_by(stride) {
            sum = sum.add(active.of(V::load(z.as_ptr().add(at))));
        }
        let share = V::all(stride as f32 / z.len() as f32);
        sum.fma(share, V::all(0.0)).store(mean.as_mut_ptr().add(channel));
    }
}

/// Every pixel of `gradient` becomes (or, if `add`, gains) its share of the gradient `of_mean` of the mean.
///
/// # Panics
/// If `gradient` is not whole pixels of as many values as `of_mean`.
pub fn spread(of_mean: &[f32], gradient: &mut [f32], add: bool) {
    assert!(gradient.len().is_multiple_of(of_mean.len()));
    let share = of_mean.len() as f32 / gradient.len() as f32;
    for pixel in gradient.chunks_exact_mut(of_mean.len()) {
        for (to, value) in pixel.iter_mut().zip(of_mean) {
            *to = if add { *to + share * value } else { share * value };
        }
    }
}
