//! The gradient in the weight: a tile of it stays in registers while the pixels of a strip of rows go by.

use super::{
    super::lane::{Lane, NARROW, Path, paths},
    Convolution, Plan, block_of, padded, slides,
};

/// `gathered` (taps, inputs, padded(outputs)) `+=` the gradient in the weight from one image: `x` with zeros around, `dy`
/// with zeros around.
///
/// # Panics
/// If a slice has another length than the plan says.
pub fn grad_weight(path: Path, plan: &Plan, x: &[f32], dy: &[f32], gathered: &mut [f32]) {
    assert_eq!(x.len(), plan.padded_input(), "x is of another size");
    assert_eq!(dy.len(), plan.padded_output(), "∂y is of another size");
    assert_eq!(gathered.len(), plan.packed_forward(), "the gradient is of another size");
    products(path, plan, x, dy, gathered);
}

/// Values of x and ∂y that stay in a first-level cache.
const CACHED: usize = 8 * 1024;

paths! {
    fn products(plan: &Plan, x: &[f32], dy: &[f32], gathered: &mut [f32]) = products_body
}

#[inline(always)]
unsafe fn products_body<W: Lane, N: Lane>(plan: &Plan, x: &[f32], dy: &[f32], gathered: &mut [f32]) {
    let Convolution { inputs, outputs, kernel, stride } = plan.conv;
    let (reach, outputs) = (plan.conv.reach(), padded(outputs));
    let (rows, columns) = plan.output_size();
    let dy_row = (columns + 2 * reach) * outputs;
    let x_row = (plan.size.1 + 2 * reach) * plan.x_stride;
    // Rows at a time, so that what they read of x and ∂y stays near for every tile of the gradient.
    let strip = (CACHED / (dy_row + stride * x_row)).max(1);
    if W::LANES == 2 * NARROW && outputs == NARROW && slides(&plan.conv) && inputs >= NARROW {
        // SAFETY: the caller's contract.
        return unsafe { narrow_products::<W>(plan, x, dy, gathered) };
    }
    if outputs == W::LANES && slides(&plan.conv) && inputs.is_multiple_of(SLIDING) {
        // SAFETY: the caller's contract.
        return unsafe { sliding_products::<W>(plan, x, dy, gathered) };
    }
    // Where pixels lie close, the places in a row of the kernel follow each other in x and in the gradient alike.
    let (places, values) = if plan.x_stride == inputs { (1, kernel * inputs) } else { (kernel, inputs) };
    for top in (0..rows).step_by(strip) {
        for (a, b) in (0..kernel * places).map(|at| (at / places, at % places)) {
            let mut output = 0;
            while output < outputs {
                let block = block_of::<W>(outputs - output);
                let mut value = 0;
                while value < values {
                    let sums = Sums {
                        rows: strip.min(rows - top),
                        columns,
                        x: x[(top * stride + a) * x_row + b * plan.x_stride + value..].as_ptr(),
                        x_row: stride * x_row,
                        x_step: stride * plan.x_stride,
                        dy: dy[(top + reach) * dy_row + reach * outputs + output..].as_ptr(),
                        dy_row,
                        dy_step: outputs,
                        to: gathered[((a * kernel + b) * inputs + value) * outputs + output..].as_mut_ptr(),
                        to_step: outputs,
                    };
                    // SAFETY: rows top.. of ∂y, the pixels of x they meet, and the tile of the gradient lie inside the
                    // slices, whose lengths the caller has checked.
                    value += unsafe {
                        if block == 2 * W::LANES {
                            run_products::<W, 2>(&sums, values - value)
                        } else if block == W::LANES {
                            run_products::<W, 1>(&sums, values - value)
                        } else {
                            run_products::<N, 1>(&sums, values - value)
                        }
                    };
                }
                output += block;
            }
        }
    }
}

/// Where a tile of the gradient in the weight, of one place of the kernel, comes from and goes to.
struct Sums {
    rows: usize,
    columns: usize,
    /// The pixel the first result meets.
    x: *const f32,
    x_row: usize,
    x_step: usize,
    /// The first result's gradient.
    dy: *const f32,
    dy_row: usize,
    dy_step: usize,
    to: *mut f32,
    to_step: usize,
}

/// Adds the sums of as many values of `x` as registers hold; how many.
#[inline(always)]
unsafe fn run_products<V: Lane, const K: usize>(sums: &Sums, left: usize) -> usize {
    macro_rules! values {
        ($($values:literal)*) => {$(
            if left >= $values && $values * K <= V::RESULTS {
                // SAFETY: the caller's contract, for so many values.
                unsafe { sum_products::<V, $values, K>(sums) };
                return $values;
            }
        )*};
    }
    values!(16 12 9 8 6 4 3 2);
    // SAFETY: as above.
    unsafe { sum_products::<V, 1, K>(sums) };
    1
}

/// C values of each pixel by K registers of outputs.
#[inline(always)]
unsafe fn sum_products<V: Lane, const C: usize, const K: usize>(s: &Sums) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums: [[V; K]; C] =
            std::array::from_fn(|c| std::array::from_fn(|k| V::load(s.to.add(c * s.to_step + k * V::LANES))));
        for row in 0..s.rows {
            let (mut x, mut dy) = (s.x.add(row * s.x_row), s.dy.add(row * s.dy_row));
            for _ in 0..s.columns {
                let gradient: [V; K] = std::array::from_fn(|k| V::load(dy.add(k * V::LANES)));
                for c in 0..C {
                    let value = V::splat(x.add(c));
                    for k in 0..K {
                        sums[c][k] = gradient[k].fma(value, sums[c][k]);
                    }
                }
                x = x.wrapping_add(s.x_step);
                dy = dy.wrapping_add(s.dy_step);
            }
        }
        for c in 0..C {
            for k in 0..K {
                sums[c][k].store(s.to.add(c * s.to_step + k * V::LANES));
            }
        }
    }
}

/// [`products_body`] for eight output channels under a 3 × 3 kernel with step 1: the gradients of two neighbouring results
/// lie side by side and fill a wide run, so that a value of `x` meets two places of the kernel at once.
#[inline(always)]
unsafe fn narrow_products<W: Lane>(plan: &Plan, x: &[f32], dy: &[f32], gathered: &mut [f32]) {
    let inputs = plan.conv.inputs;
    let (rows, columns) = plan.output_size();
    let (x_row, dy_row) = ((columns + 2) * plan.x_stride, (columns + 2) * NARROW);
    for a in 0..3 {
        let mut input = 0;
        while input < inputs {
            let sums = Sums {
                rows,
                columns,
                x: x[a * x_row + plan.x_stride + input..].as_ptr(), // under the middle of the first result
                x_row,
                x_step: plan.x_stride,
                dy: dy[dy_row..].as_ptr(), // the zeros before the first result
                dy_row,
                dy_step: NARROW,
                to: gathered[(a * 3 * inputs + input) * NARROW..].as_mut_ptr(),
                to_step: inputs * NARROW,
            };
            // SAFETY: every row of ∂y has a pixel of zeros on each side and a row of zeros below, so that the two pairs
            // of results around each pixel of x are readable; three places of the kernel lie `to_step` apart.
            input += unsafe {
                match inputs - input {
                    8.. => sum_narrow::<W, 8>(&sums),
                    4.. => sum_narrow::<W, 4>(&sums),
                    _ => sum_narrow::<W, 1>(&sums),
                }
            };
        }
    }
}

/// C values of each pixel by three places in a row of the kernel; C.
#[inline(always)]
unsafe fn sum_narrow<W: Lane, const C: usize>(s: &Sums) -> usize {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[W::all(0.0); 2]; C];
        for row in 0..s.rows {
            let (mut x, mut dy) = (s.x.add(row * s.x_row), s.dy.add(row * s.dy_row));
            for _ in 0..s.columns {
                // The results whose places 2 and 1 this pixel is, and those of place 0 and none.
                let (before, after) = (W::load(dy), W::load(dy.add(2 * NARROW)));
                for c in 0..C {
                    let value = W::splat(x.add(c));
                    sums[c][0] = before.fma(value, sums[c][0]);
                    sums[c][1] = after.fma(value, sums[c][1]);
                }
                x = x.wrapping_add(s.x_step);
                dy = dy.wrapping_add(s.dy_step);
            }
        }
        let mut halves = [0.0f32; 4 * NARROW];
        for c in 0..C {
            sums[c][0].store(halves.as_mut_ptr());
            sums[c][1].store(halves.as_mut_ptr().add(2 * NARROW));
            for (place, half) in [(2, 0), (1, 1), (0, 2)] {
                let to = s.to.add(place * s.to_step + c * NARROW);
                for lane in 0..NARROW {
                    *to.add(lane) += halves[half * NARROW + lane];
                }
            }
        }
    }
    C
}

/// Values of a pixel in one tile of [`sliding_products`]: with three places each they fill twelve registers.
const SLIDING: usize = 4;

/// [`products_body`] for one wide run of output channels under a 3 × 3 kernel with step 1, where each value of `x` would
/// be loaded for every multiply-add: here it meets its three places in a row of the kernel.
#[inline(always)]
unsafe fn sliding_products<W: Lane>(plan: &Plan, x: &[f32], dy: &[f32], gathered: &mut [f32]) {
    let inputs = plan.conv.inputs;
    let (rows, columns) = plan.output_size();
    let (x_row, dy_row) = ((columns + 2) * plan.x_stride, (columns + 2) * W::LANES);
    let strip = (CACHED / (x_row + dy_row)).max(1);
    for top in (0..rows).step_by(strip) {
        for (a, input) in (0..3).flat_map(|a| (0..inputs).step_by(SLIDING).map(move |input| (a, input))) {
            let sums = Sums {
                rows: strip.min(rows - top),
                columns,
                x: x[(top + a) * x_row + plan.x_stride + input..].as_ptr(), // under the middle of the first result
                x_row,
                x_step: plan.x_stride,
                dy: dy[(top + 1) * dy_row..].as_ptr(), // the zeros before the first result
                dy_row,
                dy_step: W::LANES,
                to: gathered[(a * 3 * inputs + input) * W::LANES..].as_mut_ptr(),
                to_step: inputs * W::LANES,
            };
            // SAFETY: every row of ∂y has a pixel of zeros on each side, so that the three results around each pixel of x
            // are readable; three places of the kernel lie `to_step` apart.
            unsafe { sum_sliding::<W>(&sums) };
        }
    }
}

/// A few values of each pixel by three places in a row of the kernel.
#[inline(always)]
unsafe fn sum_sliding<W: Lane>(s: &Sums) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[W::all(0.0); 3]; SLIDING];
        for row in 0..s.rows {
            let (mut x, mut dy) = (s.x.add(row * s.x_row), s.dy.add(row * s.dy_row));
            for _ in 0..s.columns {
                let around: [W; 3] = std::array::from_fn(|place| W::load(dy.add((2 - place) * s.dy_step)));
                for c in 0..SLIDING {
                    let value = W::splat(x.add(c));
                    for place in 0..3 {
                        sums[c][place] = around[place].fma(value, sums[c][place]);
                    }
                }
                x = x.wrapping_add(s.x_step);
                dy = dy.wrapping_add(s.dy_step);
            }
        }
        for c in 0..SLIDING {
            for place in 0..3 {
                let to = s.to.add(place * s.to_step + c * W::LANES);
                W::load(to).add(sums[c][place]).store(to);
            }
        }
    }
}
