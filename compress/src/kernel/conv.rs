//! Convolution of images, as one matrix product an image: the pixels under the kernel are copied into columns (im2col;
//! Chellapilla, Puri & Simard 2006), and each output channel is a row of weights times the columns.

use gemm::{Parallelism, gemm};

/// A two-dimensional convolution with a square kernel, zeros around the image, and a bias.
#[derive(Debug, Clone)]
pub struct Conv2d {
    /// Channels of the output.
    pub outputs: usize,
    /// Channels of the input.
    pub inputs: usize,
    /// Side of the kernel; odd.
    pub kernel: usize,
    /// Step between places of the output.
    pub stride: usize,
    /// (outputs, inputs, kernel, kernel).
    pub weight: Vec<f32>,
    /// (outputs).
    pub bias: Vec<f32>,
}

impl Conv2d {
    /// (height, width) of the output for an image of (height, width): the kernel's middle stays on the image.
    pub fn output_size(&self, (height, width): (usize, usize)) -> (usize, usize) {
        (height.div_ceil(self.stride), width.div_ceil(self.stride))
    }

    /// `x` (inputs, height, width) to `y` (outputs, …), which is resized and overwritten; `columns` is scratch.
    ///
    /// # Panics
    /// If `x` or the weights are of another length.
    pub fn forward(&self, x: &[f32], size: (usize, usize), columns: &mut Vec<f32>, y: &mut Vec<f32>) {
        let (height, width) = size;
        assert_eq!(x.len(), self.inputs * height * width, "x is not ({}, {height}, {width})", self.inputs);
        let depth = self.inputs * self.kernel * self.kernel;
        assert_eq!(self.weight.len(), self.outputs * depth, "the weight is not ({}, {depth})", self.outputs);
        let (rows, row) = self.output_size(size);
        let places = rows * row;
        columns.resize(depth * places, 0.0);
        self.fill(x, size, columns);
        y.resize(self.outputs * places, 0.0);
        for (y, &bias) in y.chunks_exact_mut(places).zip(&self.bias) {
            y.fill(bias);
        }
        // SAFETY: y is (outputs, places), the weight (outputs, depth) and columns (depth, places), row-major, as checked
        // or resized above. The flag says that y is added to.
        unsafe {
            gemm(
                self.outputs,
                places,
                depth,
                y.as_mut_ptr(),
                1,
                places as isize,
                true,
                self.weight.as_ptr(),
                1,
                depth as isize,
                columns.as_ptr(),
                1,
                places as isize,
                1.0f32,
                1.0f32,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }

    /// Row (input channel, ky, kx) of `columns` holds what that place of the kernel sees at every output place.
    fn fill(&self, x: &[f32], (height, width): (usize, usize), columns: &mut [f32]) {
        let (stride, reach) = (self.stride, self.kernel / 2);
        let (_, row) = self.output_size((height, width));
        let places = columns.len() / (self.inputs * self.kernel * self.kernel);
        for (at, out) in columns.chunks_exact_mut(places).enumerate() {
            let (channel, ky, kx) = (at / self.kernel / self.kernel, at / self.kernel % self.kernel, at % self.kernel);
            let x = &x[channel * height * width..][..height * width];
            // Output columns whose pixel lies on the image: 0 ≤ stride · column + kx − reach < width.
            let first = reach.saturating_sub(kx).div_ceil(stride).min(row);
            let end = (width + reach).saturating_sub(kx).div_ceil(stride).clamp(first, row);
            for (line, out) in out.chunks_exact_mut(row).enumerate() {
                let Some(source) = (stride * line + ky).checked_sub(reach).filter(|source| *source < height) else {
                    out.fill(0.0);
                    continue;
                };
                let x = &x[source * width..][..width];
                out[..first].fill(0.0);
                out[end..].fill(0.0);
                if first == end {
                    continue;
                }
                let start = stride * first + kx - reach;
                if stride == 1 {
                    out[first..end].copy_from_slice(&x[start..start + end - first]);
                } else {
                    let seen = x[start..].iter().step_by(stride);
                    out[first..end].iter_mut().zip(seen).for_each(|(out, x)| *out = *x);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::test_values::uniform;

    /// Largest difference to the definition relative to Σ|x·w| + |b|: sums of at most 63 products in f32.
    const MAX_RELATIVE_DIFFERENCE: f64 = 2e-6;

    /// The definition, one output at a time: (value, size of the summands).
    fn naive(conv: &Conv2d, x: &[f32], (height, width): (usize, usize)) -> Vec<(f64, f64)> {
        let (rows, row) = conv.output_size((height, width));
        let reach = (conv.kernel / 2) as isize;
        let mut y = Vec::new();
        for output in 0..conv.outputs {
            for place in 0..rows * row {
                let bias = f64::from(conv.bias[output]);
                let (mut value, mut size) = (bias, bias.abs());
                for input in 0..conv.inputs {
                    for ky in 0..conv.kernel {
                        for kx in 0..conv.kernel {
                            let at = |place: usize, k: usize| (place * conv.stride + k) as isize - reach;
                            let (i, j) = (at(place / row, ky), at(place % row, kx));
                            if i < 0 || j < 0 || i >= height as isize || j >= width as isize {
                                continue;
                            }
                            let x = x[(input * height + i as usize) * width + j as usize];
                            let w = conv.weight[((output * conv.inputs + input) * conv.kernel + ky) * conv.kernel + kx];
                            let product = f64::from(x) * f64::from(w);
                            (value, size) = (value + product, size + product.abs());
                        }
                    }
                }
                y.push((value, size));
            }
        }
        y
    }

    #[test]
    fn equals_the_definition() {
        let (mut columns, mut y) = (vec![7.0; 3], vec![f32::NAN; 5]);
        for (inputs, outputs) in [(1, 1), (3, 5), (7, 4)] {
            for kernel in [1, 3] {
                for stride in [1, 2, 3] {
                    for size in [(1, 1), (2, 3), (8, 8), (7, 9)] {
                        let weight = uniform(outputs * inputs * kernel * kernel, 1);
                        let conv = Conv2d { outputs, inputs, kernel, stride, weight, bias: uniform(outputs, 2) };
                        let x = uniform(inputs * size.0 * size.1, 3);
                        conv.forward(&x, size, &mut columns, &mut y);
                        let expected = naive(&conv, &x, size);
                        assert_eq!(y.len(), expected.len());
                        for (i, (found, (value, size_of))) in y.iter().zip(&expected).enumerate() {
                            let difference = (f64::from(*found) - value).abs();
                            assert!(
                                difference.total_cmp(&(MAX_RELATIVE_DIFFERENCE * size_of)).is_le(),
                                "kernel {kernel}, stride {stride}, {size:?}, place {i}: {found} for {value}"
                            );
                        }
                    }
                }
            }
        }
    }
}
