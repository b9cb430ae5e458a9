//! Scores against their formulas in f64, one number at a time, and the end of them that goes.

use super::{CRITERIA, Removes, find, score};
use crate::{
    data::images::{ImageSet, Placement, Scaling},
    kernel::test_values::uniform,
    lottery::scene::Scene,
    nn::{
        Architecture, Input, Mode, Shortcut, Spec, Weights,
        graph::{Entry, Graph, Layout},
        reference,
        saliency::{GRASP_STEP, GRASP_TEMPERATURE},
    },
};

/// Largest difference of a score to its formula, over the largest of the net: that of gradients in f32, and for grasp what
/// f32 leaves of the difference of two.
const MAX_DIFFERENCE: f64 = 3e-3;
const MAX_GRASP_DIFFERENCE: f64 = 2e-2;

/// Step of the finite differences, in f64.
const STEP: f64 = 1e-6;

const BLOCKS: usize = 3;

#[test]
fn every_criterion_takes_blocks_from_the_end_its_formula_says() {
    use Removes::{Highest, Lowest};
    let ends: Vec<(&str, Removes)> = CRITERIA.iter().map(|criterion| (criterion.name(), criterion.removes())).collect();
    let expected = [
        ("random", Lowest),
        ("uniform", Highest),
        ("snip", Lowest),
        ("snip-mean", Lowest),
        ("snip-signed", Lowest),
        ("grasp", Highest),
        ("grad-flow", Highest),
        ("loss-drop", Lowest),
        ("synflow", Lowest),
        ("cka", Lowest),
        ("l1", Lowest),
        ("l1-mean", Lowest),
        ("expectabs", Lowest),
        ("kl", Lowest),
        ("hrank", Lowest),
    ];
    assert_eq!(ends, expected);
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

fn spec(blocks: usize) -> Spec {
    let input = Input { height: 3, width: 4, channels: 1 };
    Spec { architecture: Architecture::ResidualMlp { width: 6, blocks }, input, classes: 4 }
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|z| z.exp()).sum();
    logits.iter().map(|z| z.exp() / sum).collect()
}

/// d f(x + a along) / da at 0.
fn slope(x: &[f64], along: &[f64], f: impl Fn(&[f64]) -> f64) -> f64 {
    let at = |a: f64| f(&x.iter().zip(along).map(|(x, along)| x + a * along).collect::<Vec<f64>>());
    (at(STEP) - at(-STEP)) / (2.0 * STEP)
}

fn gradient(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let unit = |at: usize| (0..x.len()).map(|i| f64::from(u8::from(i == at))).collect::<Vec<f64>>();
    (0..x.len()).map(|at| slope(x, &unit(at), &f)).collect()
}

/// A net of the definition.
struct Defined {
    graph: Graph,
    weights: Vec<f64>,
    running: Vec<f64>,
}

struct Case {
    spec: Spec,
    graph: Graph,
    weights: Weights,
    images: ImageSet,
    scaling: Scaling,
    /// The images as the net sees them.
    seen: Vec<f64>,
    mode: Mode,
}

impl Case {
    fn new(mode: Mode) -> Self {
        let spec = spec(BLOCKS);
        let graph = spec.graph().unwrap();
        let mut weights = Weights::start(&graph, 0);
        let noise = uniform(graph.layout().len(), 4);
        for entry in graph.layout().entries() {
            for at in entry.range() {
                weights.values[at] = match (entry.shape.len(), entry.name.ends_with("weight")) {
                    (1, true) => 1.0 + 0.3 * noise[at],
                    (1, false) => 0.3 * noise[at],
                    _ => 0.6 * noise[at],
                };
            }
        }
        weights.running.iter_mut().zip(uniform(graph.running().len(), 5)).for_each(|(x, noise)| *x += 0.3 * noise);
        let pixels = uniform(9 * 12, 6).into_iter().map(|x| ((x + 1.0) * 127.0) as u8).collect();
        let labels = (0..9).map(|image| (image * 7 % 4) as u8).collect();
        let images = ImageSet { height: 3, width: 4, channels: 1, classes: 4, white: 255, pixels, labels };
        let scaling = images.scaling();
        let mut seen = vec![0.0f32; images.pixels.len()];
        for (image, out) in seen.chunks_exact_mut(images.values()).enumerate() {
            images.write(image, &scaling, Placement::default(), out);
        }
        Self { seen: wide(&seen), spec, graph, weights, images, scaling, mode }
    }

    /// The net with all blocks, or all but one.
    fn net(&self, gone: Option<usize>) -> Defined {
        let stays = |entry: &&Entry| gone.is_none_or(|block| !entry.name.starts_with(&format!("blocks.{block}.")));
        let left = |layout: &Layout, values: &[f32]| -> Vec<f64> {
            layout.entries().iter().filter(stays).flat_map(|entry| wide(&values[entry.range()])).collect()
        };
        Defined {
            graph: spec(BLOCKS - usize::from(gone.is_some())).graph().unwrap(),
            weights: left(self.graph.layout(), &self.weights.values),
            running: left(self.graph.running(), &self.weights.running),
        }
    }

    /// Mean cost and class outputs of `net`, were its weights these.
    fn loss(&self, net: &Defined, weights: &[f64]) -> (f64, Vec<f64>) {
        reference::loss(&net.graph, weights, &net.running, &self.seen, (&self.images.labels, 0.0), self.mode)
    }

    fn gradient(&self, net: &Defined) -> Vec<f64> {
        gradient(&net.weights, |weights| self.loss(net, weights).0)
    }

    /// What each block of `net` makes of the images.
    fn outputs(&self, net: &Defined) -> Vec<Vec<f64>> {
        reference::blocks(&net.graph, &net.weights, &net.running, (&self.seen, self.images.len()), self.mode)
    }

    /// `values`, one a weight, with zeros outside of the matrices of `block`, or where none is given of all.
    fn matrices(&self, values: &[f64], block: Option<usize>) -> Vec<f64> {
        let mut out = vec![0.0; values.len()];
        for entry in self.graph.layout().entries().iter().filter(|entry| entry.shape.len() > 1) {
            if block.is_none_or(|block| entry.name.starts_with(&format!("blocks.{block}."))) {
                out[entry.range()].copy_from_slice(&values[entry.range()]);
            }
        }
        out
    }

    /// Σ of one number a weight over the matrices of each block.
    fn sums(&self, values: &[f64]) -> Vec<f64> {
        (0..BLOCKS).map(|block| self.matrices(values, Some(block)).iter().sum()).collect()
    }

    /// `ask` of the net without each block.
    fn without_each(&self, ask: impl Fn(usize, &Defined) -> f64) -> Vec<f64> {
        (0..BLOCKS).map(|block| ask(block, &self.net(Some(block)))).collect()
    }

    /// Checks the scores of the criterion `name`, and that the block goes which they put at the end that is taken.
    #[track_caller]
    fn check(&self, name: &str, expected: &[f64]) {
        let trained = self.mode == Mode::Evaluate;
        let mut scene = Scene::new(&self.spec, &self.weights, trained, &self.images, &self.scaling, 1).unwrap();
        let criterion = find(name).unwrap();
        let scores = score(criterion, &mut scene).unwrap();
        let found: Vec<f64> = scores.scores.iter().map(|score| score.unwrap()).collect();
        let largest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
        let most = if name == "grasp" { MAX_GRASP_DIFFERENCE } else { MAX_DIFFERENCE };
        assert_eq!(found.len(), expected.len(), "{name}");
        for (found_one, expected_one) in found.iter().zip(expected) {
            let apart = (found_one - expected_one).abs();
            assert!(largest > 0.0 && apart <= most * largest, "{name}: {found:?} for {expected:?}");
        }
        let mut order: Vec<usize> = (0..BLOCKS).collect();
        order.sort_by(|&a, &b| found[a].total_cmp(&found[b]));
        let gone = if criterion.removes() == Removes::Lowest { order[0] } else { order[BLOCKS - 1] };
        let kept: Vec<usize> = (0..BLOCKS).filter(|&block| block != gone).collect();
        assert_eq!(scores.choose(1, 1).unwrap(), [kept], "{name}: {found:?}");
    }
}

fn squares(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum()
}

#[test]
fn scores_by_gradients_match_their_formulas_in_f64() {
    let case = Case::new(Mode::Train);
    let dense = case.net(None);
    let of_dense = case.gradient(&dense);
    let snip: Vec<f64> = dense.weights.iter().zip(&of_dense).map(|(w, g)| (w * g).abs()).collect();
    case.check("snip", &case.sums(&snip));
    // Two matrices of 6 × 6 a block.
    case.check("snip-mean", &case.sums(&snip).iter().map(|sum| sum / 72.0).collect::<Vec<f64>>());

    let grad_flow = case.without_each(|block, net| {
        // All that stays, its vectors included.
        let staying = case.graph.layout().entries().iter().filter(|e| !e.name.starts_with(&format!("blocks.{block}.")));
        squares(&case.gradient(net)) - staying.map(|entry| squares(&of_dense[entry.range()])).sum::<f64>()
    });
    case.check("grad-flow", &grad_flow);

    // Σ −θ (H g): how the slope along the block's weights changes on the way along g, outputs over a temperature.
    let cost = |weights: &[f64]| {
        let mut warm = weights.to_vec();
        for entry in case.graph.layout().entries().iter().filter(|entry| entry.name.starts_with("linear.")) {
            warm[entry.range()].iter_mut().for_each(|w| *w /= GRASP_TEMPERATURE);
        }
        case.loss(&dense, &warm).0
    };
    let along = case.matrices(&gradient(&dense.weights, cost), None);
    let step = GRASP_STEP * (squares(&case.matrices(&dense.weights, None)) / squares(&along)).sqrt();
    let at = |by: f64| dense.weights.iter().zip(&along).map(|(w, g)| w + by * g).collect::<Vec<f64>>();
    let (ahead, behind) = (at(step), at(-step));
    let grasp = |block: usize| {
        let inside = case.matrices(&dense.weights, Some(block));
        -(slope(&ahead, &inside, cost) - slope(&behind, &inside, cost)) / (2.0 * step)
    };
    case.check("grasp", &(0..BLOCKS).map(grasp).collect::<Vec<f64>>());

    // Σ θ ∂R/∂θ: the slope of R along the block's weights.
    let sizes: Vec<f64> = dense.weights.iter().map(|w| w.abs()).collect();
    let running: Vec<f64> = dense.running.iter().map(|x| x.abs()).collect();
    let flow = |weights: &[f64]| -> f64 {
        reference::loss(&dense.graph, weights, &running, &[1.0; 12], (&[0], 0.0), Mode::Evaluate).1.iter().sum()
    };
    let synflow = |block: usize| slope(&sizes, &case.matrices(&sizes, Some(block)), flow);
    case.check("synflow", &(0..BLOCKS).map(synflow).collect::<Vec<f64>>());
}

#[test]
fn scores_by_weights_and_outputs_match_their_formulas_in_f64() {
    for mode in [Mode::Train, Mode::Evaluate] {
        let case = Case::new(mode);
        let images = case.images.len();
        let dense = case.net(None);
        let (cost, logits) = case.loss(&dense, &dense.weights);
        let sizes: Vec<f64> = dense.weights.iter().map(|w| w.abs()).collect();
        case.check("uniform", &[0.0, 1.0, 2.0]);
        case.check("l1", &case.sums(&sizes));
        case.check("l1-mean", &case.sums(&sizes).iter().map(|sum| sum / 72.0).collect::<Vec<f64>>());
        case.check("loss-drop", &case.without_each(|_, net| (case.loss(net, &net.weights).0 - cost).abs()));

        // CKA by the products of every two images' features: ⟨K, L⟩ / ‖K‖ ‖L‖.
        let products = |net: &Defined| -> Vec<f64> {
            let mut features = case.outputs(net).pop().unwrap();
            for column in 0..6 {
                let mean = features.iter().skip(column).step_by(6).sum::<f64>() / images as f64;
                features.iter_mut().skip(column).step_by(6).for_each(|x| *x -= mean);
            }
            let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            features.chunks(6).flat_map(|a| features.chunks(6).map(|b| product(a, b)).collect::<Vec<f64>>()).collect()
        };
        let with = products(&dense);
        let cka = case.without_each(|_, net| {
            let without = products(net);
            let both: f64 = with.iter().zip(&without).map(|(k, l)| k * l).sum();
            1.0 - both / (squares(&with) * squares(&without)).sqrt()
        });
        case.check("cka", &cka);
        if mode == Mode::Train {
            continue;
        }

        let outputs = case.outputs(&dense);
        let mean_size = |values: &Vec<f64>| values.iter().map(|x| x.abs()).sum::<f64>() / values.len() as f64;
        case.check("expectabs", &outputs.iter().map(mean_size).collect::<Vec<f64>>());

        // Σ p ln (p / q), p the answers with the block and q those without.
        let kl = case.without_each(|_, net| {
            let without = case.loss(net, &net.weights).1;
            let of_image = |(with, without): (&[f64], &[f64])| {
                softmax(with).iter().zip(softmax(without)).map(|(p, q)| p * (p / q).ln()).sum::<f64>()
            };
            logits.chunks(4).zip(without.chunks(4)).map(of_image).sum::<f64>() / images as f64
        });
        case.check("kl", &kl);
    }
}

#[test]
fn hrank_is_the_mean_rank_of_a_blocks_maps() {
    let architecture = Architecture::ResNet { blocks: vec![3], width: 4, shortcut: Shortcut::Slice, inner: Vec::new() };
    let spec = Spec { architecture, input: Input { height: 6, width: 5, channels: 1 }, classes: 2 };
    let graph = spec.graph().unwrap();
    let mut weights = Weights::start(&graph, 0);
    let mut set = |name: &str, at: &dyn Fn(usize) -> f32| {
        let range = graph.layout().entry(name).unwrap().range();
        weights.values[range].iter_mut().enumerate().for_each(|(place, value)| *value = at(place));
    };
    // The first convolution leaves the image as it is in each of four channels, and blocks add nothing to it but a number a
    // channel, one so low that it leaves the channel black.
    set("conv1.weight", &|place| if place % 9 == 4 { 1.0 } else { 0.0 });
    for (block, black) in [(0, &[][..]), (1, &[2][..]), (2, &[0, 1][..])] {
        set(&format!("layer1.{block}.conv2.weight"), &|_| 0.0);
        set(&format!("layer1.{block}.bn2.bias"), &|channel| if black.contains(&channel) { -2.0 } else { 0.0 });
    }
    // An image of rank 3 and one of rank 1; the largest rank there can be is 5.
    let mut pixels = vec![0; 60];
    for place in [0, 6, 12, 30 + 17] {
        pixels[place] = 200;
    }
    let images = ImageSet { height: 6, width: 5, channels: 1, classes: 2, white: 255, pixels, labels: vec![0, 1] };
    let scaling = Scaling { mean: vec![0.0], deviation: vec![1.0] };
    let mut scene = Scene::new(&spec, &weights, true, &images, &scaling, 1).unwrap();
    let scores = score(find("hrank").unwrap(), &mut scene).unwrap();
    // Three channels are left behind the second block, and one behind the third.
    let of = |channels: f64| channels * (3.0 + 1.0) / (4.0 * 2.0 * 5.0);
    assert_eq!(scores.scores, [None, Some(of(3.0)), Some(of(1.0))]);
    assert_eq!(scores.choose(1, 1).unwrap(), [[0, 1]]);
}
