//! A convolution whose weight lies in a pool: its patches meet the shared matrix, which is never made.
//!
//! ```text
//! y[o, p] = Σ over c, i, j of w[o, c, i, j] · x[c, stride · p + (i, j) − padding]          w (out, in, kh, kw)
//! patches (pixels, in · kh · kw) of one image, and W = w as (out, in · kh · kw):     y = W patchesᵀ
//! ∂patches = ∂yᵀ W,     ∂x = patches put back and summed,     ∂ψ += Sᵀ(∂y patches)
//! ```
//!
//! Images are (in, height, width), as in torch. One image at a time is taken apart, so that beside the pool there is memory
//! for the patches of one image; images follow one another in order, and bytes do not depend on the number of threads.

use rayon::prelude::*;

use super::{Module, SharedMatrix, Sharing};
use crate::{Error, Result};

/// How a convolution moves over an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steps {
    /// Pixels from one patch to the next, both ways; 1 or more.
    pub stride: usize,
    /// Zeros around the image, on every side.
    pub padding: usize,
}

/// A convolution of a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedConv {
    matrix: SharedMatrix,
    inputs: usize,
    kernel: (usize, usize),
    steps: Steps,
}

impl SharedConv {
    /// The convolution whose weight `module` of `sharing` is, (out, in, kh, kw).
    ///
    /// # Errors
    /// If the module has another number of dimensions, or the stride is 0.
    pub fn new(sharing: &Sharing, module: &Module, steps: Steps) -> Result<Self> {
        let &[_, inputs, high, wide] = module.shape.as_slice() else {
            return Err(Error::Recipe(format!(
                "tensor `{}` has shape {:?}, a convolution's has four dimensions (out, in, height, width)",
                module.name, module.shape
            )));
        };
        if steps.stride == 0 || module.values() == 0 {
            return Err(Error::Recipe(format!(
                "the convolution `{}` of shape {:?} and stride {} has nothing to do",
                module.name, module.shape, steps.stride
            )));
        }
        Ok(Self { matrix: SharedMatrix::new(sharing, module), inputs, kernel: (high, wide), steps })
    }

    /// Height and width of what an image of (height, width) becomes; none where the kernel is larger than it.
    pub fn output(&self, (height, width): (usize, usize)) -> Option<(usize, usize)> {
        let side = |image: usize, kernel: usize| {
            let room = (image + 2 * self.steps.padding).checked_sub(kernel)?;
            Some(room / self.steps.stride + 1)
        };
        Some((side(height, self.kernel.0)?, side(width, self.kernel.1)?))
    }

    fn sizes(&self, size: (usize, usize), x: usize, y: usize) -> (usize, (usize, usize), usize) {
        let output = self.output(size).unwrap_or_else(|| panic!("no patch of {:?} in {size:?}", self.kernel));
        let (outputs, _) = self.matrix.shape();
        let (of_x, of_y) = (self.inputs * size.0 * size.1, outputs * output.0 * output.1);
        assert!(of_x > 0 && x.is_multiple_of(of_x) && y == x / of_x * of_y, "{x} and {y} values are no such images");
        (x / of_x, output, outputs)
    }

    /// Where the pixel under (i, j) of the patch at (row, column) lies in a channel, if it does.
    fn pixel(&self, size: (usize, usize), (row, column): (usize, usize), (i, j): (usize, usize)) -> Option<usize> {
        let at = |patch: usize, step: usize, side: usize| {
            (self.steps.stride * patch + step).checked_sub(self.steps.padding).filter(|&at| at < side)
        };
        Some(at(row, i, size.0)? * size.1 + at(column, j, size.1)?)
    }

    /// The patches of one image, (pixels, in · kh · kw).
    fn take_apart(&self, x: &[f32], size: (usize, usize), output: (usize, usize), patches: &mut [f32]) {
        let (high, wide) = self.kernel;
        let area = size.0 * size.1;
        patches.par_chunks_exact_mut(self.inputs * high * wide).enumerate().for_each(|(patch, values)| {
            let place = (patch / output.1, patch % output.1);
            for (at, value) in values.iter_mut().enumerate() {
                let (channel, within) = (at / (high * wide), at % (high * wide));
                let pixel = self.pixel(size, place, (within / wide, within % wide));
                *value = pixel.map_or(0.0, |pixel| x[channel * area + pixel]);
            }
        });
    }

    /// Adds patches to the pixels they came from.
    fn put_back(&self, patches: &[f32], size: (usize, usize), output: (usize, usize), dx: &mut [f32]) {
        let (high, wide) = self.kernel;
        let each = self.inputs * high * wide;
        dx.par_chunks_exact_mut(size.0 * size.1).enumerate().for_each(|(channel, dx)| {
            for (patch, values) in patches.chunks_exact(each).enumerate() {
                let place = (patch / output.1, patch % output.1);
                for within in 0..high * wide {
                    if let Some(pixel) = self.pixel(size, place, (within / wide, within % wide)) {
                        dx[pixel] += values[channel * high * wide + within];
                    }
                }
            }
        });
    }

    /// `x` (images, in, height, width) of `size` (height, width) to `y` (images, out, rows, columns).
    ///
    /// # Panics
    /// If a slice is not as long as its shape says, or the kernel is larger than the image.
    pub fn forward(&self, pool: &[f32], x: &[f32], size: (usize, usize), y: &mut [f32]) {
        let (images, output, outputs) = self.sizes(size, x.len(), y.len());
        let pixels = output.0 * output.1;
        let mut patches = vec![0.0; pixels * self.matrix.shape().1];
        let mut by_pixel = vec![0.0; pixels * outputs];
        for image in 0..images {
            self.take_apart(part(x, image, images), size, output, &mut patches);
            self.matrix.forward(pool, &patches, &mut by_pixel, pixels);
            transpose(&by_pixel, pixels, outputs, part_mut(y, image, images));
        }
    }

    /// `∂x` from `∂y`; both as in [`Self::forward`].
    ///
    /// # Panics
    /// As [`Self::forward`].
    pub fn grad_input(&self, pool: &[f32], dy: &[f32], size: (usize, usize), dx: &mut [f32]) {
        let (images, output, outputs) = self.sizes(size, dx.len(), dy.len());
        let pixels = output.0 * output.1;
        let mut patches = vec![0.0; pixels * self.matrix.shape().1];
        let mut by_pixel = vec![0.0; pixels * outputs];
        dx.fill(0.0);
        for image in 0..images {
            transpose(part(dy, image, images), outputs, pixels, &mut by_pixel);
            self.matrix.grad_input(pool, &by_pixel, &mut patches, pixels);
            self.put_back(&patches, size, output, part_mut(dx, image, images));
        }
    }

    /// `∂ψ +=` what `∂y` and `x` say, image by image.
    ///
    /// # Panics
    /// As [`Self::forward`].
    pub fn grad_pool(&self, dy: &[f32], x: &[f32], size: (usize, usize), of_pool: &mut [f32]) {
        let (images, output, outputs) = self.sizes(size, x.len(), dy.len());
        let pixels = output.0 * output.1;
        let mut patches = vec![0.0; pixels * self.matrix.shape().1];
        let mut by_pixel = vec![0.0; pixels * outputs];
        for image in 0..images {
            self.take_apart(part(x, image, images), size, output, &mut patches);
            transpose(part(dy, image, images), outputs, pixels, &mut by_pixel);
            self.matrix.grad_pool(&by_pixel, &patches, pixels, of_pool);
        }
    }
}

/// Piece `at` of `of` equal ones.
fn part(values: &[f32], at: usize, of: usize) -> &[f32] {
    let each = values.len() / of;
    &values[at * each..][..each]
}

fn part_mut(values: &mut [f32], at: usize, of: usize) -> &mut [f32] {
    let each = values.len() / of;
    &mut values[at * each..][..each]
}

/// A (rows, columns) matrix as (columns, rows).
fn transpose(from: &[f32], rows: usize, columns: usize, to: &mut [f32]) {
    to.par_chunks_exact_mut(rows).enumerate().for_each(|(column, to)| {
        to.iter_mut().enumerate().for_each(|(row, to)| *to = from[row * columns + column]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernel::test_values::uniform,
        sharing::{fold::ALIGN, modules::Size},
    };

    struct Case {
        conv: SharedConv,
        pool: Vec<f32>,
        /// By the definition: each weight, its slot and signed scale.
        weights: Vec<(f64, usize, f64)>,
    }

    fn case(shape: [usize; 4], steps: Steps, rate: f64) -> Case {
        let tensors = [("a", vec![9, 7], 0.5), ("conv", shape.to_vec(), 0.3)];
        let tensors = tensors.map(|(name, shape, scale)| (name.to_string(), shape, scale)).to_vec();
        let sharing = Sharing::new(tensors, Size::Rate(rate), ALIGN, 4).unwrap();
        let (fold, module) = (&sharing.fold, &sharing.modules[1]);
        let pool = uniform(fold.slots(), 1);
        let weight = |at: usize| {
            let factor = if fold.is_negative(at) { -1.0 } else { 1.0 } * f64::from(module.scale);
            (factor * f64::from(pool[fold.slot(at)]), fold.slot(at), factor)
        };
        let weights = module.range().map(weight).collect();
        Case { conv: SharedConv::new(&sharing, module, steps).unwrap(), weights, pool }
    }

    /// Every product of the sum: (weight, input, output), places in their arrays.
    fn naive(
        [out, inputs, high, wide]: [usize; 4],
        steps: Steps,
        images: usize,
        size: (usize, usize),
        output: (usize, usize),
        mut visit: impl FnMut(usize, usize, usize),
    ) {
        for image in 0..images {
            for o in 0..out {
                for row in 0..output.0 {
                    for column in 0..output.1 {
                        let y = ((image * out + o) * output.0 + row) * output.1 + column;
                        for c in 0..inputs {
                            for i in 0..high {
                                for j in 0..wide {
                                    let at = |patch: usize, step: usize| {
                                        (patch * steps.stride + step) as isize - steps.padding as isize
                                    };
                                    let (r, k) = (at(row, i), at(column, j));
                                    if r < 0 || k < 0 || r >= size.0 as isize || k >= size.1 as isize {
                                        continue;
                                    }
                                    let x = ((image * inputs + c) * size.0 + r as usize) * size.1 + k as usize;
                                    visit(((o * inputs + c) * high + i) * wide + j, x, y);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn close(found: &[f32], expected: &[f64], what: &str) {
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((f64::from(*found) - expected).abs() < 1e-4, "{what} {at}: {found}, expected {expected}");
        }
    }

    #[test]
    fn all_three_products_match_the_definition() {
        for (shape, stride, padding, size, images, rate) in [
            ([1, 1, 1, 1], 1, 0, (1, 1), 1, 1.0),
            ([5, 3, 3, 3], 1, 1, (6, 5), 2, 3.3),
            ([70, 4, 3, 3], 2, 1, (7, 7), 3, 20.0),
            ([4, 2, 2, 3], 3, 2, (5, 8), 1, 1.0),
        ] {
            let steps = Steps { stride, padding };
            let Case { conv, pool, weights } = case(shape, steps, rate);
            let output = conv.output(size).unwrap();
            let (x, dy) =
                (uniform(images * shape[1] * size.0 * size.1, 2), uniform(images * shape[0] * output.0 * output.1, 3));
            let (mut y, mut dx) = (vec![f32::NAN; dy.len()], vec![f32::NAN; x.len()]);
            let mut of_pool = uniform(pool.len(), 5);
            let mut expected_pool: Vec<f64> = of_pool.iter().map(|&value| f64::from(value)).collect();
            let (mut expected_y, mut expected_dx) = (vec![0.0; y.len()], vec![0.0; x.len()]);
            naive(shape, steps, images, size, output, |w, at_x, at_y| {
                let (value, slot, factor) = weights[w];
                let (x, dy) = (f64::from(x[at_x]), f64::from(dy[at_y]));
                expected_y[at_y] += value * x;
                expected_dx[at_x] += value * dy;
                expected_pool[slot] += factor * x * dy;
            });
            conv.forward(&pool, &x, size, &mut y);
            conv.grad_input(&pool, &dy, size, &mut dx);
            conv.grad_pool(&dy, &x, size, &mut of_pool);
            close(&y, &expected_y, "y");
            close(&dx, &expected_dx, "∂x");
            close(&of_pool, &expected_pool, "∂ψ");

            let run = |threads: usize| {
                let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let (mut y, mut of_pool) = (vec![0.0; dy.len()], vec![0.0; pool.len()]);
                threads.install(|| {
                    conv.forward(&pool, &x, size, &mut y);
                    conv.grad_pool(&dy, &x, size, &mut of_pool);
                });
                (y, of_pool)
            };
            assert_eq!(run(1), run(3));
        }
    }

    #[test]
    fn what_is_no_convolution_is_refused() {
        let tensors = vec![("w".to_string(), vec![4, 9], 1.0)];
        let sharing = Sharing::new(tensors, Size::Rate(1.0), ALIGN, 0).unwrap();
        let steps = Steps { stride: 1, padding: 0 };
        let error = SharedConv::new(&sharing, &sharing.modules[0], steps).unwrap_err().to_string();
        assert!(error.contains("a convolution's has four dimensions"), "{error}");
        let Case { conv, .. } = case([2, 2, 3, 3], steps, 1.0);
        assert_eq!((conv.output((2, 9)), conv.output((3, 9))), (None, Some((1, 7))));
    }
}
