//! Tickets of blocks and of filters against their definition, and what batch norm makes of scores.

use super::{
    Allocation, Ticket,
    attacks::attack,
    criteria::{self, CRITERIA, Removes, State},
    filters::{self, FilterCriterion},
    identities::identities,
    scene::{Scene, of_each_class},
};
use crate::{
    data::{glyphs::glyphs, images::ImageSet},
    kernel::test_values::uniform,
    nn::{
        Architecture, Input, Mode, Net, Shortcut, Spec, Weights,
        saliency::{self, Criterion as Saliency, GRASP_TEMPERATURE},
    },
};

/// Σ w g of a normed layer over Σ |w g|: f32 sums of products that cancel, and the number added to the variance.
const MAX_SIGNED_SNIP: f64 = 1e-4;

/// Σ −w (H g) of a normed layer against ‖g‖², relative to the latter: a difference over kinks of rectifiers.
const MAX_GRASP_APART: f64 = 0.03;

/// Largest difference of a class output of a net without filters that are zero, over the largest: its f32 sums leave zeros
/// out, and may stand in another order.
const MAX_THIN_APART: f32 = 1e-4;

fn images() -> ImageSet {
    ImageSet::of_glyphs(glyphs(3, 50, 8))
}

fn spec(architecture: Architecture) -> Spec {
    Spec { architecture, input: Input { height: 8, width: 8, channels: 1 }, classes: 10 }
}

fn resnet(blocks: &[usize]) -> Spec {
    spec(Architecture::ResNet { blocks: blocks.to_vec(), width: 8, shortcut: Shortcut::Slice, inner: Vec::new() })
}

/// The class outputs of all images, seen as one batch.
fn logits(spec: &Spec, weights: &Weights, images: &ImageSet, mode: Mode) -> Vec<f32> {
    let (mut net, scaling) = (Net::new(spec, images.len()).unwrap(), images.scaling());
    for (image, out) in net.input_mut(images.len()).chunks_exact_mut(images.values()).enumerate() {
        images.write(image, &scaling, Default::default(), out);
    }
    net.forward(&weights.values, &mut weights.running.clone(), mode);
    (0..images.len()).flat_map(|image| net.logits(image).to_vec()).collect()
}

#[test]
fn batch_norm_makes_signed_snip_zero_and_grasp_the_squared_gradient() {
    let images = images();
    let scaling = images.scaling();
    let spec = resnet(&[2, 2, 2]);
    let weights = Weights::start(&spec.graph().unwrap(), 1);
    let mut scene = Scene::new(&spec, &weights, false, &images, &scaling, 1).unwrap();
    assert!(scene.blocks_are_normed());
    let found = identities(&mut scene).unwrap();
    let (normed, free): (Vec<_>, Vec<_>) = found.iter().partition(|layer| layer.normed);
    assert_eq!((normed.len(), free.len(), free[0].tensor.as_str()), (13, 1, "linear.weight"));
    for layer in &normed {
        assert!(layer.signed.abs() < MAX_SIGNED_SNIP * layer.absolute, "{layer:?}");
        let apart = (layer.grasp - layer.squared_gradient).abs();
        assert!(apart < MAX_GRASP_APART * layer.squared_gradient, "{layer:?}");
    }
    // The last linear feeds no norm: its sums are free, or the test would hold of anything.
    assert!(free[0].signed.abs() > 0.01 * free[0].absolute, "{:?}", free[0]);
    let refused = criteria::score(criteria::find("snip-signed").unwrap(), &mut scene).unwrap_err().to_string();
    assert!(refused.contains("rounding noise"), "{refused}");
    let grasp = criteria::score(criteria::find("grasp").unwrap(), &mut scene).unwrap();
    assert!(grasp.label.unwrap().contains("‖g‖²"));
}

#[test]
fn a_ticket_computes_what_the_dense_net_does_with_the_branch_at_zero() {
    let images = images();
    for dense in [resnet(&[2, 3, 2]), spec(Architecture::ResidualMlp { width: 12, blocks: 3 })] {
        let graph = dense.graph().unwrap();
        let mut weights = Weights::start(&graph, 2);
        let (stage, block, prefix) = match dense.architecture {
            Architecture::ResNet { .. } => (1, 1, "layer2.1.bn2."),
            _ => (0, 1, "blocks.1.bn2."),
        };
        let ticket = Ticket::without(&dense, stage, block).unwrap();
        let small = ticket.weights(&graph, &weights).unwrap();
        // The last norm of the block at zero: what is led around remains.
        for entry in graph.layout().entries().iter().filter(|entry| entry.name.starts_with(prefix)) {
            weights.values[entry.range()].fill(0.0);
        }
        assert_eq!(logits(&dense, &weights, &images, Mode::Train), logits(&ticket.spec, &small, &images, Mode::Train));
    }
}

#[test]
fn tickets_that_cannot_be_are_refused_in_words() {
    let dense = resnet(&[2, 2, 2]);
    for (kept, part) in [
        (vec![vec![0, 1], vec![1], vec![0, 1]], "block 1 of stage 2 cannot go: the first block of a stage"),
        (vec![vec![0, 1], vec![0]], "blocks of 2 stages are kept, the net has 3"),
        (vec![vec![0, 1], vec![0, 2], vec![0]], "stage 2 keeps [0, 2]"),
        (vec![vec![1, 0], vec![0], vec![0]], "stage 1 keeps [1, 0]"),
    ] {
        let error = Ticket::keeping(&dense, kept).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let error = Ticket::without(&spec(Architecture::Mlp { hidden: vec![4], norm: true }), 0, 0).unwrap_err();
    assert!(error.to_string().contains("no residual blocks"), "{error}");
}

#[test]
fn every_criterion_chooses_a_net_that_can_be() {
    let images = images();
    let scaling = images.scaling();
    let dense = resnet(&[3, 3, 2]);
    let weights = Weights::start(&dense.graph().unwrap(), 3);
    let mut names = std::collections::BTreeSet::new();
    for &criterion in CRITERIA {
        assert!(names.insert(criterion.name()) && !criterion.formula().is_empty());
        if criterion.name() == "snip-signed" {
            continue;
        }
        let trained = criterion.state() == State::Trained;
        let mut scene = Scene::new(&dense, &weights, trained, &images, &scaling, 1).unwrap();
        let scores = criteria::score(criterion, &mut scene).unwrap();
        assert_eq!(scores.scores.iter().filter(|score| score.is_none()).count(), 3, "{}", criterion.name());
        let kept = scores.choose(3, 1).unwrap();
        assert_eq!(Allocation::of(&kept).blocks(), 5, "{}", criterion.name());
        Ticket::keeping(&dense, kept).unwrap();
        assert!(scores.choose(6, 1).unwrap_err().to_string().contains("1 to 5 can"));
        if criterion.state() != State::Any {
            let mut other = Scene::new(&dense, &weights, !trained, &images, &scaling, 1).unwrap();
            assert!(criteria::score(criterion, &mut other).unwrap_err().to_string().contains("does not score"));
        }
    }
    assert!(criteria::find("best").unwrap_err().to_string().contains("random, uniform, snip"));
    let uniform = criteria::find("uniform").unwrap();
    let mut scene = Scene::new(&dense, &weights, false, &images, &scaling, 1).unwrap();
    let chosen = Allocation::of(&criteria::score(uniform, &mut scene).unwrap().choose(2, 1).unwrap());
    assert_eq!((uniform.removes(), chosen), (Removes::Highest, Allocation::uniform(&[3, 3, 2], 2, 1).unwrap()));
}

#[test]
fn a_block_that_does_nothing_goes_first() {
    let images = images();
    let scaling = images.scaling();
    let dense = resnet(&[3, 3, 3]);
    let graph = dense.graph().unwrap();
    let mut weights = Weights::start(&graph, 4);
    for entry in graph.layout().entries().iter().filter(|entry| entry.name.starts_with("layer2.2.bn2.")) {
        weights.values[entry.range()].fill(0.0);
    }
    for (name, trained) in
        [("loss-drop", false), ("cka", false), ("snip", false), ("synflow", false), ("kl", true), ("cka", true)]
    {
        let mut scene = Scene::new(&dense, &weights, trained, &images, &scaling, 1).unwrap();
        let kept = criteria::score(criteria::find(name).unwrap(), &mut scene).unwrap().choose(1, 1).unwrap();
        assert_eq!(kept[1], [0, 1], "{name}");
    }
}

#[test]
fn filter_tickets_are_as_large_as_they_say() {
    let images = images();
    let scaling = images.scaling();
    let dense = resnet(&[3, 3, 3]);
    let graph = dense.graph().unwrap();
    let layers = Ticket::keeping(&dense, vec![vec![0, 1], vec![0, 1, 2], vec![0, 1]]).unwrap();
    let count = filters::of_equal_count(&dense, &layers.spec).unwrap().unwrap();
    let Architecture::ResNet { inner, .. } = &count.architecture else { panic!("a resnet") };
    // A block of 8 and one of 32 channels, two convolutions each, out of (8 + 16 + 32) · 3 inner filters.
    assert_eq!(inner.iter().flatten().sum::<usize>(), 56 * 3 - 2 * (8 + 32));
    // 56 · 3 · 2 filters are more than the 56 · 5 between convolutions.
    let deep = resnet(&[5, 5, 5]);
    let few = Ticket::keeping(&deep, vec![vec![0, 1]; 3]).unwrap();
    assert_eq!(filters::of_equal_count(&deep, &few.spec).unwrap(), None);
    let work = |spec: &Spec| spec.graph().unwrap().multiply_adds();
    let most = work(&layers.spec);
    let macs = filters::largest_that(&dense, |thin| Ok(work(thin) <= most)).unwrap().unwrap();
    let found = work(&macs);
    assert!(found <= most && found as f64 > 0.97 * most as f64, "{found} of {most}");

    let weights = Weights::start(&graph, 5);
    let mut scene = Scene::new(&dense, &weights, false, &images, &scaling, 5).unwrap();
    for criterion in [FilterCriterion::Random, FilterCriterion::L1, FilterCriterion::Snip, FilterCriterion::Grasp] {
        let chosen = filters::choose(criterion, &mut scene, &count).unwrap();
        let thin = filters::weights(&dense, &weights, &count, &chosen).unwrap();
        assert_eq!(thin.values.len(), count.graph().unwrap().layout().len());
    }
    // All filters kept: nothing changes.
    let all: Vec<Vec<usize>> = scene.blocks.iter().map(|block| (0..8 << block.stage).collect()).collect();
    assert_eq!(filters::weights(&dense, &weights, &dense, &all).unwrap(), weights);
    let mlp = spec(Architecture::ResidualMlp { width: 4, blocks: 2 });
    assert!(filters::of_equal_count(&mlp, &mlp).is_err());
    assert_eq!(filters::largest_that(&dense, |_| Ok(false)).unwrap(), None);
    assert_eq!(
        filters::largest_that(&dense, |_| Ok(true)).unwrap().unwrap().graph().unwrap().multiply_adds(),
        work(&dense)
    );
}

/// The residual net `dense` with these widths between the convolutions of its blocks.
fn thinned(dense: &Spec, widths: Vec<Vec<usize>>) -> Spec {
    let mut thin = dense.clone();
    if let Architecture::ResNet { inner, .. } = &mut thin.architecture {
        *inner = widths;
    }
    thin
}

#[test]
fn filters_that_do_nothing_are_those_that_go_and_nothing_changes() {
    let images = images();
    let scaling = images.scaling();
    let dense = resnet(&[2, 2]);
    let graph = dense.graph().unwrap();
    let mut weights = Weights::start(&graph, 6);
    // Norms and their moments away from their first values, so that a mistake in them shows.
    for entry in graph.layout().entries().iter().filter(|entry| entry.shape.len() == 1) {
        let noise = uniform(entry.values(), entry.offset as u64);
        weights.values[entry.range()].iter_mut().zip(noise).for_each(|(value, noise)| *value += 0.3 * noise);
    }
    let noise = uniform(weights.running.len(), 1);
    weights.running.iter_mut().zip(noise).for_each(|(moment, noise)| *moment += 0.3 * noise);

    let idle: [(usize, usize, &[usize]); 4] = [(0, 0, &[0, 5]), (0, 1, &[3]), (1, 0, &[2, 7, 11]), (1, 1, &[15])];
    let mut stay = Vec::new();
    for (stage, block, idle) in idle {
        let width = 8 << stage;
        let range =
            |tensor: &str| graph.layout().entry(&format!("layer{}.{block}.{tensor}", stage + 1)).unwrap().range();
        for &filter in idle {
            for tensor in ["conv1.weight", "bn1.weight", "bn1.bias"] {
                let of_block = &mut weights.values[range(tensor)];
                let each = of_block.len() / width;
                of_block[filter * each..][..each].fill(0.0);
            }
            // Its column of 3 × 3 in each filter of the second.
            for of_filter in weights.values[range("conv2.weight")].chunks_exact_mut(9 * width) {
                of_filter[9 * filter..][..9].fill(0.0);
            }
        }
        stay.push((0..width).filter(|filter| !idle.contains(filter)).collect::<Vec<usize>>());
    }
    let thin = thinned(&dense, vec![vec![6, 7], vec![13, 15]]);
    for criterion in [FilterCriterion::L1, FilterCriterion::Snip] {
        let mut scene = Scene::new(&dense, &weights, false, &images, &scaling, 5).unwrap();
        assert_eq!(filters::choose(criterion, &mut scene, &thin).unwrap(), stay, "{criterion:?}");
    }
    let small = filters::weights(&dense, &weights, &thin, &stay).unwrap();
    for mode in [Mode::Train, Mode::Evaluate] {
        let (expected, found) = (logits(&dense, &weights, &images, mode), logits(&thin, &small, &images, mode));
        let largest = expected.iter().fold(0f32, |most, z| most.max(z.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= MAX_THIN_APART * largest, "{mode:?}: {found} for {expected}");
        }
    }
}

#[test]
fn the_filters_of_a_block_that_stay_are_worth_more_than_those_that_go() {
    let images = images();
    let scaling = images.scaling();
    let dense = resnet(&[2, 2]);
    let graph = dense.graph().unwrap();
    let weights = Weights::start(&graph, 6);
    let widths = [3, 5, 8, 10];
    let thin = thinned(&dense, vec![vec![3, 5], vec![8, 10]]);
    for (criterion, of_weights) in [
        (FilterCriterion::L1, Saliency::Magnitude),
        (FilterCriterion::Snip, Saliency::Snip),
        (FilterCriterion::Grasp, Saliency::Grasp { temperature: GRASP_TEMPERATURE }),
    ] {
        let mut scene = Scene::new(&dense, &weights, false, &images, &scaling, 5).unwrap();
        let worth = saliency::scores(of_weights, &mut scene.net, &weights, &images, &scaling).unwrap();
        let chosen = filters::choose(criterion, &mut scene, &thin).unwrap();
        for (at, stay) in chosen.iter().enumerate() {
            let name = format!("layer{}.{}.conv1.weight", at / 2 + 1, at % 2);
            let entry = graph.layout().entry(&name).unwrap();
            let of_filters = worth[entry.range()].chunks(entry.values() / entry.shape[0]);
            let (mut kept, mut gone) = (f64::INFINITY, f64::NEG_INFINITY);
            for (filter, worth) in of_filters.map(|worth| worth.iter().sum::<f64>()).enumerate() {
                match stay.contains(&filter) {
                    true => kept = kept.min(worth),
                    false => gone = gone.max(worth),
                }
            }
            assert!(kept > gone, "{criterion:?}, {name}: {kept} stays and {gone} goes");
            assert!(stay.len() == widths[at] && stay.is_sorted(), "{criterion:?}, {name}: {stay:?}");
        }
    }
}

#[test]
fn attacks_lower_what_is_told_right_and_ten_steps_more_than_one() {
    let images = ImageSet::of_glyphs(glyphs(3, 200, 16));
    let scaling = images.scaling();
    let input = Input { height: 16, width: 16, channels: 1 };
    let spec = Spec { architecture: Architecture::Cnn { widths: vec![16, 32, 32] }, input, classes: 10 };
    let recipe = crate::nn::Recipe {
        seed: 1,
        epochs: 12,
        batch: 20,
        rule: crate::nn::optimiser::Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 1e-4 },
        decay_vectors: false,
        schedule: crate::nn::optimiser::Schedule {
            peak: 0.1,
            warmup_epochs: 0.0,
            curve: crate::nn::optimiser::Curve::Cosine,
        },
        label_smoothing: 0.0,
        augmentation: Default::default(),
        scaling: scaling.clone(),
    };
    let mut trainer = crate::nn::Trainer::new(&spec, recipe, &images).unwrap();
    trainer.run(u64::MAX, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    let mut net = Net::new(&spec, 64).unwrap();
    let mut at =
        |epsilon: f64, steps: usize| attack(&mut net, trainer.weights(), &images, &scaling, epsilon, steps).unwrap();
    let (none, one, ten) = (at(0.0, 1), at(16.0, 1), at(16.0, 10));
    assert!(none.clean_right > 100 && none.right == none.clean_right && none.both == none.right, "{none:?}");
    assert!(one.right < none.right && ten.right <= one.right && one.clean_right == none.clean_right, "{one:?} {ten:?}");
    assert!(ten.both <= ten.right && one.given_clean().unwrap() <= 1.0 && one.accuracy() < none.accuracy());
}

#[test]
fn images_of_each_class_are_taken_evenly() {
    let images = ImageSet::of_glyphs(glyphs(3, 95, 8));
    let few = of_each_class(&images, 4);
    assert_eq!(few.len(), 40);
    assert!((0..10).all(|class| few.labels.iter().filter(|&&label| label == class).count() == 4));
}
