use proptest::prelude::*;

use super::{
    conv::{Convolution, Plan, forward, grad_input, grad_weight, padded},
    lane::Path,
    pixels::{self, Activation, Backward, Frame},
};
use crate::kernel::test_values::uniform;

/// Largest difference to the definition, relative to the size of the summands: a few hundred products in f32.
const MAX_RELATIVE_DIFFERENCE: f64 = 4e-6;

/// Largest difference of two instruction sets in the same measure: one rounds every product, others only sums.
const MAX_PATH_DIFFERENCE: f64 = 4e-6;

/// Step of the finite differences; sums are linear in each operand, so any step is exact but for rounding in f64.
const STEP: f64 = 0.5;

/// An image (height, width, stride) with zeros around, from its values (height, width, channels).
fn framed(
    values: &[f32],
    (height, width): (usize, usize),
    (channels, stride): (usize, usize),
    reach: usize,
) -> Vec<f32> {
    let mut out = vec![0.0; (height + 2 * reach) * (width + 2 * reach) * stride];
    for (at, &value) in values.iter().enumerate() {
        let (channel, column, row) = (at % channels, at / channels % width, at / channels / width);
        out[((row + reach) * (width + 2 * reach) + column + reach) * stride + channel] = value;
    }
    out
}

/// The definition: (y, sizes of the summands), both (rows, columns, outputs), of x (height, width, inputs).
fn naive(conv: Convolution, x: &[f64], size: (usize, usize), w: &[f64]) -> Vec<(f64, f64)> {
    let (rows, columns) = conv.output_size(size);
    let (k, reach) = (conv.kernel, conv.reach());
    let mut y = vec![(0.0, 0.0); rows * columns * conv.outputs];
    for (at, y) in y.iter_mut().enumerate() {
        let (o, j, i) = (at % conv.outputs, at / conv.outputs % columns, at / conv.outputs / columns);
        for (a, b) in (0..k * k).map(|tap| (tap / k, tap % k)) {
            let row = (conv.stride * i + a).checked_sub(reach).filter(|row| *row < size.0);
            let column = (conv.stride * j + b).checked_sub(reach).filter(|column| *column < size.1);
            let (Some(row), Some(column)) = (row, column) else { continue };
            for c in 0..conv.inputs {
                let product = x[(row * size.1 + column) * conv.inputs + c] * w[((o * conv.inputs + c) * k + a) * k + b];
                *y = (y.0 + product, y.1 + product.abs());
            }
        }
    }
    y
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// What every path makes of one convolution: (y, ∂x, ∂w), without padding.
fn run(path: Path, conv: Convolution, size: (usize, usize), x: &[f32], w: &[f32], dy: &[f32]) -> [Vec<f32>; 3] {
    let x_stride = if conv.inputs.is_multiple_of(3) { conv.inputs } else { padded(conv.inputs) };
    let plan = Plan::new(conv, size, x_stride);
    let (mut ahead, mut back) = (vec![f32::NAN; plan.packed_forward()], vec![f32::NAN; plan.packed_backward()]);
    plan.pack_forward(path, w, &mut ahead);
    plan.pack_backward(path, w, &mut back);
    let x = framed(x, size, (conv.inputs, x_stride), conv.reach());
    let dy = framed(dy, plan.output_size(), (conv.outputs, padded(conv.outputs)), conv.reach());
    let mut y = vec![f32::NAN; plan.output()];
    forward(path, &plan, &x, &ahead, &mut y);
    let mut dx = vec![f32::NAN; plan.input_gradient()];
    grad_input(path, &plan, &dy, &back, &mut dx, false);
    let once = dx.clone();
    grad_input(path, &plan, &dy, &back, &mut dx, true);
    assert!(dx.iter().zip(&once).all(|(twice, once)| (twice - 2.0 * once).abs() <= 1e-5 * (1.0 + once.abs())));
    let mut gathered = vec![0.0; plan.packed_forward()];
    grad_weight(path, &plan, &x, &dy, &mut gathered);
    let mut dw = vec![0.0; conv.weights()];
    plan.add_gradient(&gathered, &mut dw);
    let bare = |values: &[f32], channels: usize| -> Vec<f32> {
        let pixels = values.chunks_exact(padded(channels));
        pixels
            .clone()
            .for_each(|pixel| assert!(pixel[channels..].iter().all(|&value| value == 0.0), "padding is not 0"));
        pixels.flat_map(|pixel| pixel[..channels].to_vec()).collect()
    };
    [bare(&y, conv.outputs), bare(&once, conv.inputs), dw]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn convolutions_match_the_definition_and_finite_differences_on_every_path(
        inputs in prop_oneof![1usize..9, 9usize..36],
        outputs in prop_oneof![1usize..9, 9usize..50],
        (height, width) in (1usize..12, 1usize..36),
        kernel in prop_oneof![Just(1usize), Just(3), Just(3), Just(5)],
        stride in prop_oneof![Just(1usize), Just(1), Just(2), Just(3)],
        seed in 0u64..1000,
    ) {
        let conv = Convolution { inputs, outputs, kernel, stride };
        let size = (height, width);
        let (rows, columns) = conv.output_size(size);
        let x = uniform(height * width * inputs, seed);
        let w = uniform(conv.weights(), seed + 1);
        let dy = uniform(rows * columns * outputs, seed + 2);
        let (x64, w64, dy64) = (wide(&x), wide(&w), wide(&dy));
        let expected = naive(conv, &x64, size, &w64);
        // Σ ∂y · y, of which the gradients are the slopes.
        let total = |x: &[f64], w: &[f64]| -> (f64, f64) {
            let y = naive(conv, x, size, w);
            y.iter().zip(&dy64).fold((0.0, 0.0), |sum, (y, dy)| (sum.0 + y.0 * dy, sum.1 + y.1 * dy.abs()))
        };
        let results: Vec<[Vec<f32>; 3]> = Path::all().into_iter().map(|path| run(path, conv, size, &x, &w, &dy)).collect();
        for (path, [y, dx, dw]) in Path::all().into_iter().zip(&results) {
            for (y, (expected, summands)) in y.iter().zip(&expected) {
                prop_assert!((f64::from(*y) - expected).abs() <= MAX_RELATIVE_DIFFERENCE * (summands + 1e-3), "{path:?} y");
            }
            for (name, gradient, values) in [("x", dx, &x64), ("w", dw, &w64)] {
                for at in (0..gradient.len()).step_by(gradient.len() / 2 + 1) {
                    let moved = |by: f64| {
                        let mut values = values.clone();
                        values[at] += by;
                        if name == "x" { total(&values, &w64) } else { total(&x64, &values) }
                    };
                    let ((more, summands), (less, _)) = (moved(STEP), moved(-STEP));
                    let slope = (more - less) / (2.0 * STEP);
                    let apart = (f64::from(gradient[at]) - slope).abs();
                    // The gradient's own summands are at most those of the whole sum.
                    prop_assert!(apart <= MAX_RELATIVE_DIFFERENCE * (slope.abs() + summands.sqrt() + 1.0) * 4.0,
                        "{path:?} ∂{name} at {at}: {}, expected {slope}", gradient[at]);
                }
            }
        }
        for others in &results[1..] {
            for (first, other) in results[0].iter().zip(others) {
                let most = first.iter().fold(0.0f64, |most, value| most.max(f64::from(value.abs())));
                for (a, b) in first.iter().zip(other) {
                    prop_assert!(f64::from((a - b).abs()) <= MAX_PATH_DIFFERENCE * (4.0 * most + 1.0), "{a} and {b}");
                }
            }
        }
    }

    #[test]
    fn what_lies_between_convolutions_matches_its_definition_on_every_path(
        runs in 1usize..6,
        (rows, columns, reach) in (1usize..5, 1usize..6, 0usize..3),
        (affine, relu, normed) in (any::<bool>(), any::<bool>(), any::<bool>()),
        seed in 0u64..1000,
    ) {
        let stride = 8 * runs;
        let frame = Frame { rows, columns, stride, reach };
        let (z, x, dy) = (uniform(frame.values(), seed), uniform(frame.values(), seed + 1), uniform(frame.values(), seed + 2));
        let [scale, shift, slope, offset, mean] = [3, 4, 5, 6, 7].map(|more| uniform(stride, seed + more));
        let activation = Activation { affine: affine.then_some((&scale[..], &shift[..])), relu };
        let mapped = |at: usize, z: f32| if affine { z * scale[at % stride] + shift[at % stride] } else { z };
        let seen = |at: usize, z: f32| { let u = mapped(at, z); if relu { u.max(0.0) } else { u } };
        let passed = |at: usize| if relu && mapped(at, z[at]) <= 0.0 { 0.0 } else { dy[at] };
        let in_frame = |values: &[f32]| framed(values, (rows, columns), (stride, stride), reach);
        let close = |found: &[f32], expected: &[f32]| found.len() == expected.len()
            && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs()));
        let each = |of: &dyn Fn(usize) -> f32| (0..z.len()).map(of).collect::<Vec<f32>>();
        let sums = |of: &dyn Fn(usize) -> f32| -> Vec<f32> {
            (0..stride).map(|c| (c..z.len()).step_by(stride).map(of).sum()).collect()
        };
        // Values next to a rectifier's kink may round to either side.
        prop_assume!((0..z.len()).all(|at| mapped(at, z[at]).abs() > 1e-5));
        for path in Path::all() {
            let mut out = vec![f32::NAN; frame.framed()];
            pixels::place(path, &z, activation, frame, &mut out);
            prop_assert!(close(&out, &in_frame(&each(&|at| seen(at, z[at])))), "{path:?} place");

            let norm = Backward { scale: &scale, slope: &slope, offset: &offset };
            let norm = (normed && affine).then_some(norm);
            if norm.is_some() || !affine {
                pixels::place_gradient(path, &dy, &z, activation, norm, frame, &mut out);
                let back = |at: usize| match norm {
                    Some(_) => scale[at % stride] * passed(at) + slope[at % stride] * z[at] + offset[at % stride],
                    None => passed(at),
                };
                prop_assert!(close(&out, &in_frame(&each(&back))), "{path:?} place_gradient");
            }

            let (mut first, mut second) = (vec![f32::NAN; stride], vec![f32::NAN; stride]);
            pixels::gradient_sums(path, &dy, &z, activation, &mean, &mut first, &mut second);
            prop_assert!(close(&first, &sums(&passed)), "{path:?} sums");
            prop_assert!(close(&second, &sums(&|at| passed(at) * (z[at] - mean[at % stride]))), "{path:?} products");

            pixels::moments(path, &z, &mut first, &mut second);
            let centre = sums(&|at| z[at] / (rows * columns) as f32);
            prop_assert!(close(&first, &centre), "{path:?} means");
            prop_assert!(close(&second, &sums(&|at| (z[at] - centre[at % stride]).powi(2))), "{path:?} squares");

            let mut y = vec![f32::NAN; z.len()];
            pixels::join(path, &z, activation, &x, Activation { affine: None, relu: true }, stride, true, &mut y);
            prop_assert!(close(&y, &each(&|at| (seen(at, z[at]) + x[at].max(0.0)).max(0.0))), "{path:?} join");

            let mut gradient = dy.clone();
            pixels::rectify(path, &mut gradient, &y);
            prop_assert!(close(&gradient, &each(&|at| if y[at] > 0.0 { dy[at] } else { 0.0 })), "{path:?} rectify");

            pixels::mean(path, &z, activation, &mut first);
            prop_assert!(close(&first, &sums(&|at| seen(at, z[at]) / (rows * columns) as f32)), "{path:?} mean");
        }
    }
}

#[test]
fn a_value_that_is_not_a_number_stays_one() {
    for path in Path::all() {
        let frame = Frame { rows: 1, columns: 1, stride: 8, reach: 0 };
        let mut out = [0.0; 8];
        pixels::place(path, &[f32::NAN; 8], Activation { affine: None, relu: true }, frame, &mut out);
        assert!(out.iter().all(|value| value.is_nan()), "{path:?}");
    }
}
