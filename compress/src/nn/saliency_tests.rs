use super::*;
use crate::{
    kernel::test_values::uniform,
    nn::{Architecture, Input, Shortcut, Spec, graph::Graph, reference},
};

/// Largest difference of a score to the definition in f64, over the largest score of its tensor: that of the gradients,
/// and for grasp what f32 leaves of the difference of two gradients.
const MAX_DIFFERENCE: f64 = 3e-3;
const MAX_GRASP_DIFFERENCE: f64 = 2e-2;

fn images(spec: &Spec, count: usize) -> ImageSet {
    let Input { height, width, channels } = spec.input;
    let pixels = uniform(count * height * width * channels, 6).into_iter().map(|x| ((x + 1.0) * 127.0) as u8).collect();
    let labels = (0..count).map(|image| (image * 7 % spec.classes) as u8).collect();
    ImageSet { height, width, channels, classes: spec.classes, white: 255, pixels, labels }
}

fn mlp(hidden: &[usize], norm: bool) -> Spec {
    let architecture = Architecture::Mlp { hidden: hidden.to_vec(), norm };
    Spec { architecture, input: Input { height: 3, width: 4, channels: 1 }, classes: 4 }
}

fn specs() -> Vec<Spec> {
    let architecture =
        Architecture::ResNet { blocks: vec![1, 1], width: 3, shortcut: Shortcut::Slice, inner: Vec::new() };
    let residual = Spec { architecture, input: Input { height: 4, width: 4, channels: 1 }, classes: 3 };
    vec![mlp(&[7, 5], false), mlp(&[6], true), residual]
}

struct Case {
    graph: Graph,
    net: Net,
    weights: Weights,
    images: ImageSet,
    scaling: Scaling,
    /// The images as the net sees them.
    seen: Vec<f64>,
}

impl Case {
    fn new(spec: &Spec) -> Self {
        let graph = spec.graph().unwrap();
        let images = images(spec, 9);
        let scaling = images.scaling();
        let mut seen = vec![0.0f32; images.pixels.len()];
        for (image, out) in seen.chunks_exact_mut(images.values()).enumerate() {
            images.write(image, &scaling, Placement::default(), out);
        }
        let mut weights = Weights::start(&graph, 3);
        weights.values.iter_mut().zip(uniform(graph.layout().len(), 4)).for_each(|(w, noise)| *w += 0.1 * noise);
        let seen = seen.into_iter().map(f64::from).collect();
        Self { net: Net::new(spec, 9).unwrap(), weights, images, scaling, seen, graph }
    }

    fn scores(&mut self, criterion: Criterion) -> Vec<f64> {
        scores(criterion, &mut self.net, &self.weights, &self.images, &self.scaling).unwrap()
    }

    fn wide(&self) -> Vec<f64> {
        self.weights.values.iter().map(|&w| f64::from(w)).collect()
    }

    /// The cost by the definition: class outputs over a temperature are those of a last layer divided by it.
    fn cost(&self, weights: &[f64], temperature: f64) -> f64 {
        let mut weights = weights.to_vec();
        for entry in self.graph.layout().entries().iter().filter(|entry| entry.name.starts_with("linear.")) {
            weights[entry.range()].iter_mut().for_each(|w| *w /= temperature);
        }
        let running: Vec<f64> = self.weights.running.iter().map(|&x| f64::from(x)).collect();
        reference::loss(&self.graph, &weights, &running, &self.seen, (&self.images.labels, 0.0), Mode::Train).0
    }

    fn slopes(weights: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        const STEP: f64 = 1e-6;
        let mut moved = weights.to_vec();
        let mut slope = |at: usize| {
            let mut to = |by: f64| {
                moved[at] = weights[at] + by;
                f(&moved)
            };
            let slope = (to(STEP) - to(-STEP)) / (2.0 * STEP);
            moved[at] = weights[at];
            slope
        };
        (0..weights.len()).map(&mut slope).collect()
    }

    fn check(&self, what: &str, found: &[f64], expected: &[f64], most: f64) {
        assert_eq!(found.len(), expected.len());
        for entry in self.graph.layout().entries() {
            let largest = expected[entry.range()].iter().fold(0.0f64, |most, x| most.max(x.abs()));
            for at in entry.range() {
                let apart = (found[at] - expected[at]).abs();
                let name = &entry.name;
                assert!(apart <= most * largest + 1e-12, "{what}, {name}: {} for {}", found[at], expected[at]);
            }
            assert!(entry.shape.len() == 1 || largest > 0.0, "{what}: every score of {} is 0", entry.name);
        }
    }
}

#[test]
fn snip_and_grasp_match_the_definition_in_f64() {
    for spec in specs() {
        let mut case = Case::new(&spec);
        let what = format!("{:?}", spec.architecture);
        let wide = case.wide();
        let gradient = Case::slopes(&wide, |weights| case.cost(weights, 1.0));
        let snip: Vec<f64> = wide.iter().zip(&gradient).map(|(w, g)| (w * g).abs()).collect();
        let found = case.scores(Criterion::Snip);
        case.check(&what, &found, &snip, MAX_DIFFERENCE);

        let temperature = 20.0;
        let prunable = prunable(case.graph.layout());
        let mut along = Case::slopes(&wide, |weights| case.cost(weights, temperature));
        along.iter_mut().zip(&prunable).for_each(|(g, &prunable)| *g *= f64::from(u8::from(prunable)));
        let size = norm(wide.iter().zip(&prunable).filter(|(_, p)| **p).map(|(w, _)| *w));
        let step = GRASP_STEP * size / norm(along.iter().copied());
        let at = |step: f64| {
            let moved: Vec<f64> = wide.iter().zip(&along).map(|(w, g)| w + step * g).collect();
            Case::slopes(&moved, |weights| case.cost(weights, temperature))
        };
        let (ahead, behind) = (at(step), at(-step));
        let flow = ahead.iter().zip(&behind).map(|(a, b)| (a - b) / (2.0 * step));
        let grasp: Vec<f64> = wide.iter().zip(flow).map(|(w, h)| w * h).collect();
        let found = case.scores(Criterion::Grasp { temperature });
        // Vectors have an inexact part too, but they are not pruned.
        for entry in case.graph.layout().entries().iter().filter(|entry| entry.shape.len() > 1) {
            let largest = grasp[entry.range()].iter().fold(0.0f64, |most, x| most.max(x.abs()));
            for at in entry.range() {
                let apart = (found[at] - grasp[at]).abs();
                assert!(apart <= MAX_GRASP_DIFFERENCE * largest, "{what}, {}: {apart} of {largest}", entry.name);
            }
        }
    }
}

#[test]
fn the_difference_grasp_takes_is_the_hessian_where_that_is_known() {
    // One linear: H g = (1 / n T²) Σ_i (diag p − p pᵀ)(G x_i) x_iᵀ in the matrix, with G the gradient in it.
    let mut case = Case::new(&mlp(&[], false));
    let (temperature, classes, values, count) = (2.0, 4, 12, case.images.len());
    let wide = case.wide();
    let (matrix, bias) = (&case.graph.layout().entries()[0], &case.graph.layout().entries()[1]);
    let product =
        |w: &[f64], x: &[f64], c: usize| w[c * values..][..values].iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
    let softmax = |x: &[f64]| {
        let z: Vec<f64> = (0..classes)
            .map(|c| ((product(&wide[matrix.range()], x, c) + wide[bias.offset + c]) / temperature).exp())
            .collect();
        let sum: f64 = z.iter().sum();
        z.into_iter().map(|z| z / sum).collect::<Vec<f64>>()
    };
    let mut gradient = vec![0.0; classes * values];
    for (x, &label) in case.seen.chunks_exact(values).zip(&case.images.labels) {
        for (c, p) in softmax(x).into_iter().enumerate() {
            let of = (p - f64::from(u8::from(c == usize::from(label)))) / (temperature * count as f64);
            x.iter().enumerate().for_each(|(j, x)| gradient[c * values + j] += of * x);
        }
    }
    let mut expected = vec![0.0; wide.len()];
    for x in case.seen.chunks_exact(values) {
        let (p, moved) = (softmax(x), (0..classes).map(|c| product(&gradient, x, c)).collect::<Vec<f64>>());
        let mean: f64 = p.iter().zip(&moved).map(|(p, m)| p * m).sum();
        for c in 0..classes {
            let of = p[c] * (moved[c] - mean) / (temperature * temperature * count as f64);
            for (j, x) in x.iter().enumerate() {
                expected[matrix.offset + c * values + j] += wide[matrix.offset + c * values + j] * of * x;
            }
        }
    }
    let (matrix, found) = (matrix.range(), case.scores(Criterion::Grasp { temperature }));
    let largest = expected[matrix.clone()].iter().fold(0.0f64, |most, x| most.max(x.abs()));
    for at in matrix {
        assert!((found[at] - expected[at]).abs() <= 1e-3 * largest, "{}, expected {}", found[at], expected[at]);
    }
}

#[test]
fn synflow_matches_the_definition_and_is_conserved_from_layer_to_layer() {
    for spec in specs() {
        let mut case = Case::new(&spec);
        let sizes: Vec<f64> = case.wide().into_iter().map(f64::abs).collect();
        let running: Vec<f64> = case.weights.running.iter().map(|&x| f64::from(x.abs())).collect();
        let ones = vec![1.0; case.images.values()];
        let flow = |weights: &[f64]| {
            let outputs = reference::loss(&case.graph, weights, &running, &ones, (&[0], 0.0), Mode::Evaluate).1;
            outputs.iter().sum::<f64>()
        };
        let slopes = Case::slopes(&sizes, flow);
        let expected: Vec<f64> = sizes.iter().zip(&slopes).map(|(w, g)| w * g).collect();
        let found = case.scores(Criterion::Synflow);
        case.check(&format!("{:?}", spec.architecture), &found, &expected, MAX_DIFFERENCE);
    }
    // Without biases all of R flows through every layer (Tanaka et al. 2020, theorem 2).
    let mut case = Case::new(&mlp(&[7, 5], false));
    for entry in case.graph.layout().entries().iter().filter(|entry| entry.shape.len() == 1) {
        case.weights.values[entry.range()].fill(0.0);
    }
    let found = case.scores(Criterion::Synflow);
    let layers = case.graph.layout().entries().iter().filter(|entry| entry.shape.len() > 1);
    let sums: Vec<f64> = layers.map(|entry| found[entry.range()].iter().sum()).collect();
    assert!(sums.len() == 3 && sums.iter().all(|sum| (sum / sums[0] - 1.0).abs() < 1e-5 && *sum > 0.0), "{sums:?}");
}

#[test]
fn batches_smaller_than_the_set_see_all_of_it() {
    let spec = mlp(&[7, 5], false);
    let mut case = Case::new(&spec);
    let whole = case.scores(Criterion::Snip);
    case.net = Net::new(&spec, 4).unwrap();
    let parts = case.scores(Criterion::Snip);
    case.check("snip in batches of 4", &parts, &whole, 1e-5);
}

#[test]
fn pruning_keeps_as_many_as_asked_and_every_vector() {
    let mut case = Case::new(&mlp(&[7, 5], false));
    let prunable = prunable(case.graph.layout());
    let all = prunable.iter().filter(|&&p| p).count();
    assert_eq!(all, 7 * 12 + 5 * 7 + 4 * 5);
    let before = case.weights.clone();
    for criterion in [
        Criterion::Random { seed: 1 },
        Criterion::Magnitude,
        Criterion::Snip,
        Criterion::Grasp { temperature: GRASP_TEMPERATURE },
        Criterion::Synflow,
    ] {
        let Case { net, weights, images, scaling, .. } = &mut case;
        for kept in [0, 1, 10, all] {
            let keep = prune(criterion, net, weights, images, scaling, kept).unwrap();
            assert!(keep.iter().zip(&prunable).all(|(keep, prunable)| *keep || *prunable), "{criterion:?}");
            assert_eq!(keep.iter().zip(&prunable).filter(|(k, p)| **k && **p).count(), kept, "{criterion:?}");
        }
        if criterion == Criterion::Synflow {
            // The fewest weights that let anything through: one a layer.
            let keep = prune(criterion, net, weights, images, scaling, 3).unwrap();
            for entry in case.graph.layout().entries().iter().filter(|entry| entry.shape.len() > 1) {
                assert!(keep[entry.range()].contains(&true), "synflow cut {} off", entry.name);
            }
        }
    }
    assert_eq!(case.weights, before);
    let random = |case: &mut Case, seed| case.scores(Criterion::Random { seed });
    assert_eq!(random(&mut case, 1), random(&mut case, 1));
    assert_ne!(random(&mut case, 1), random(&mut case, 2));
}

#[test]
fn the_highest_are_those_of_a_sorted_list() {
    for seed in 0..40 {
        // Few distinct values, so that there are equals.
        let scores: Vec<f64> = uniform(50, seed).into_iter().map(|x| f64::from((4.0 * x).round())).collect();
        let among: Vec<bool> = uniform(50, seed + 100).into_iter().map(|x| x > -0.5).collect();
        let mut order: Vec<usize> = (0..50).filter(|&at| among[at]).collect();
        order.sort_by(|a, b| scores[*b].partial_cmp(&scores[*a]).unwrap()); // stable
        let count = (seed as usize * 3) % 50;
        let expected: Vec<bool> = (0..50).map(|at| order[..count.min(order.len())].contains(&at)).collect();
        assert_eq!(highest(&scores, &among, count), expected);
    }
}

#[test]
fn what_cannot_be_scored_is_refused_in_words() {
    let mut case = Case::new(&mlp(&[7, 5], false));
    let Case { net, weights, images, scaling, .. } = &mut case;
    let cold = scores(Criterion::Grasp { temperature: 0.0 }, net, weights, images, scaling).unwrap_err().to_string();
    assert!(cold.contains("the temperature of grasp is 0, expected above 0"), "{cold}");
    let many = prune(Criterion::Magnitude, net, weights, images, scaling, 1000).unwrap_err().to_string();
    assert!(many.contains("1000 weights are to be kept, the net has 139 that can be pruned"), "{many}");
    let other = self::images(&specs()[2], 3);
    let size = scores(Criterion::Snip, net, weights, &other, scaling).unwrap_err().to_string();
    assert!(size.contains("the images are 4 × 4 pixels"), "{size}");
    weights.values[5] = f32::INFINITY;
    let infinite = scores(Criterion::Magnitude, net, weights, images, scaling).unwrap_err().to_string();
    assert!(infinite.contains("the magnitude score of a weight of `fc1.weight` is inf"), "{infinite}");
}
