use super::{Architecture, Input, Mode, Net, Shortcut, Spec, reference};
use crate::kernel::{image::lane::Path, test_values::uniform};

/// Largest difference of a class output to the definition in f64: some hundred f32 sums one after the other.
const MAX_LOGIT_DIFFERENCE: f64 = 2e-4;

/// Largest difference of a gradient to finite differences, over the largest gradient of its tensor.
const MAX_GRADIENT_DIFFERENCE: f64 = 2e-3;

/// Step of the finite differences, in f64: too small to meet the kink of a rectifier often.
const STEP: f64 = 1e-6;

/// Nets that have every operation, in odd sizes.
fn nets() -> Vec<Spec> {
    let resnet = |blocks: &[usize], width, shortcut, inner: &[Vec<usize>]| Architecture::ResNet {
        blocks: blocks.to_vec(),
        width,
        shortcut,
        inner: inner.to_vec(),
    };
    let image = |height, width, channels| Input { height, width, channels };
    let spec = |architecture, input, classes| Spec { architecture, input, classes };
    vec![
        spec(resnet(&[1, 2], 8, Shortcut::Slice, &[]), image(7, 9, 3), 5),
        spec(resnet(&[2, 1, 1], 5, Shortcut::Slice, &[vec![3, 7], vec![9], vec![21]]), image(9, 6, 1), 3),
        spec(resnet(&[1, 1], 16, Shortcut::Project, &[]), image(6, 5, 3), 10),
        spec(Architecture::Cnn { widths: vec![6, 17, 9] }, image(9, 11, 2), 4),
        spec(Architecture::Mlp { hidden: vec![13, 20], norm: false }, image(4, 5, 2), 10),
        spec(Architecture::Mlp { hidden: vec![11], norm: true }, image(3, 3, 1), 2),
        spec(Architecture::Mlp { hidden: vec![], norm: false }, image(3, 5, 1), 3),
        spec(Architecture::ResidualMlp { width: 12, blocks: 2 }, image(4, 4, 1), 3),
    ]
}

struct Case {
    spec: Spec,
    weights: Vec<f32>,
    running: Vec<f32>,
    images: Vec<f32>,
    labels: Vec<u8>,
}

impl Case {
    fn new(spec: Spec, count: usize) -> Self {
        let graph = spec.graph().unwrap();
        let mut weights = graph.layout().start(3);
        // Norms and biases away from their first values, so that a mistake in them shows.
        weights.iter_mut().zip(uniform(graph.layout().len(), 4)).for_each(|(w, noise)| *w += 0.2 * noise);
        let mut running = graph.running().start(0);
        running.iter_mut().zip(uniform(graph.running().len(), 5)).for_each(|(moment, noise)| *moment += 0.3 * noise);
        let images = uniform(count * graph.slots[0].values(), 6);
        let labels = (0..count).map(|image| (image * 7 % spec.classes) as u8).collect();
        Self { spec, weights, running, images, labels }
    }

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&x| f64::from(x)).collect()
    }

    /// (cost, class outputs) by the definition, with a weight or a pixel moved.
    fn reference(
        &self,
        mode: Mode,
        move_weight: Option<(usize, f64)>,
        move_pixel: Option<(usize, f64)>,
    ) -> (f64, Vec<f64>) {
        let (mut weights, mut images) = (Self::wide(&self.weights), Self::wide(&self.images));
        if let Some((at, by)) = move_weight {
            weights[at] += by;
        }
        if let Some((at, by)) = move_pixel {
            images[at] += by;
        }
        let graph = self.spec.graph().unwrap();
        reference::loss(&graph, &weights, &Self::wide(&self.running), &images, (&self.labels, 0.1), mode)
    }

    /// (cost, class outputs, gradient, gradient of the pixels) by the engine.
    fn engine(&self, path: Path, mode: Mode) -> (f64, Vec<f32>, Vec<f32>, Vec<f32>) {
        let mut net = Net::on(&self.spec, self.labels.len() + 3, path).unwrap();
        let mut running = self.running.clone();
        net.input_mut(self.labels.len()).copy_from_slice(&self.images);
        net.forward(&self.weights, &mut running, mode);
        let loss = net.loss(&self.labels, 0.1).unwrap();
        let mut gradient = vec![f32::NAN; self.weights.len()];
        net.backward(&self.weights, &mut gradient, true);
        let logits = (0..self.labels.len()).flat_map(|image| net.logits(image).to_vec()).collect();
        let (mut pixels, mut one) = (Vec::new(), Vec::new());
        for image in 0..self.labels.len() {
            net.input_gradient(image, &mut one);
            pixels.extend_from_slice(&one);
        }
        if mode == Mode::Evaluate {
            assert_eq!(running, self.running, "evaluation moved the running moments");
        }
        (loss.mean, logits, gradient, pixels)
    }
}

#[test]
fn every_operation_matches_its_definition_and_finite_differences() {
    for spec in nets() {
        let case = Case::new(spec, 5);
        let graph = case.spec.graph().unwrap();
        for mode in [Mode::Train, Mode::Evaluate] {
            let (expected, expected_logits) = case.reference(mode, None, None);
            for path in Path::all() {
                let what = format!("{:?} {mode:?} {path:?}", case.spec.architecture);
                let (loss, logits, gradient, pixels) = case.engine(path, mode);
                assert!((loss - expected).abs() < MAX_LOGIT_DIFFERENCE, "{what}: cost {loss}, expected {expected}");
                for (found, expected) in logits.iter().zip(&expected_logits) {
                    assert!(
                        (f64::from(*found) - expected).abs() < MAX_LOGIT_DIFFERENCE,
                        "{what}: {found} for {expected}"
                    );
                }
                let check = |name: &str, found: &[f32], places: &[usize], moved: &dyn Fn(usize, f64) -> f64| {
                    let most = found.iter().fold(0.0f64, |most, &g| most.max(f64::from(g).abs()));
                    assert!(most > 0.0, "{what}: no gradient reaches {name}");
                    for &at in places {
                        let slope = (moved(at, STEP) - moved(at, -STEP)) / (2.0 * STEP);
                        let apart = (f64::from(found[at]) - slope).abs();
                        assert!(
                            apart <= MAX_GRADIENT_DIFFERENCE * most,
                            "{what}: {name} at {at}: {}, expected {slope}, the largest is {most}",
                            found[at]
                        );
                    }
                };
                // The other instruction sets are held to the first one below.
                if path != Path::best() {
                    continue;
                }
                for entry in graph.layout().entries() {
                    let places: Vec<usize> = (0..entry.values()).step_by((entry.values() / 4).max(1)).collect();
                    check(&entry.name, &gradient[entry.range()], &places, &|at, by| {
                        case.reference(mode, Some((entry.offset + at, by)), None).0
                    });
                }
                let places: Vec<usize> = (0..pixels.len()).step_by(pixels.len() / 8).collect();
                check("the images", &pixels, &places, &|at, by| case.reference(mode, None, Some((at, by))).0);
            }
        }
    }
}

#[test]
fn instruction_sets_agree() {
    /// Largest difference of two instruction sets' gradients over the largest of the tensor: fused against plain products.
    const MAX_DIFFERENCE: f64 = 1e-3;

    for spec in nets() {
        let case = Case::new(spec, 6);
        let graph = case.spec.graph().unwrap();
        let (_, _, expected, expected_pixels) = case.engine(Path::best(), Mode::Train);
        for path in Path::all() {
            let (_, _, gradient, pixels) = case.engine(path, Mode::Train);
            let close = |name: &str, found: &[f32], expected: &[f32]| {
                let most = expected.iter().fold(0.0f64, |most, &g| most.max(f64::from(g).abs()));
                for (found, expected) in found.iter().zip(expected) {
                    let apart = f64::from((found - expected).abs());
                    assert!(apart <= MAX_DIFFERENCE * most, "{path:?} {name}: {found}, expected {expected}");
                }
            };
            for entry in graph.layout().entries() {
                close(&entry.name, &gradient[entry.range()], &expected[entry.range()]);
            }
            close("the images", &pixels, &expected_pixels);
        }
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads_nor_on_the_capacity() {
    for spec in nets() {
        let case = Case::new(spec, 37);
        let run = |threads: usize, capacity: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut net = Net::new(&case.spec, capacity).unwrap();
                let (mut running, mut gradient) = (case.running.clone(), vec![0.0; case.weights.len()]);
                for _ in 0..2 {
                    net.input_mut(37).copy_from_slice(&case.images);
                    net.forward(&case.weights, &mut running, Mode::Train);
                    net.loss(&case.labels, 0.0).unwrap();
                    net.backward(&case.weights, &mut gradient, false);
                }
                (gradient, running)
            })
        };
        let expected = run(1, 37);
        assert_eq!(run(2, 37), expected);
        assert_eq!(run(3, 64), expected);
    }
}

#[test]
fn a_loss_that_is_not_finite_and_a_label_without_a_class_are_told() {
    let case = Case::new(nets().swap_remove(4), 3);
    let mut net = Net::new(&case.spec, 3).unwrap();
    let mut running = case.running.clone();
    net.input_mut(3).copy_from_slice(&case.images);
    net.forward(&case.weights, &mut running, Mode::Train);
    let error = net.loss(&[0, 10, 1], 0.0).unwrap_err().to_string();
    assert_eq!(error, "image 2 of the batch has label 10, the net tells 10 classes apart");
    net.input_mut(3)[0] = f32::NAN;
    net.forward(&case.weights, &mut running, Mode::Train);
    assert!(net.logits(0)[0].is_nan());
    let error = net.loss(&[0, 1, 2], 0.0).unwrap_err().to_string();
    assert!(error.starts_with("the loss of image 1 of the batch is NaN"), "{error}");
}
