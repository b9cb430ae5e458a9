//! The probe over tensors held to the kernels, whose gradients are held to finite differences where they are.

use candle_core::{Device, Tensor};
use scruple_weights::probex::{
    head::{Choice, Texts},
    net::Net,
    operand::Operand,
    spec::{ALL_VIEWS, Activation, Body, Head, Preset, Spec, View},
    train::{Engine, Learner, Models, Part, Task, Training, train, train_on},
};

use super::Trainer;
use crate::kernel::test_values::uniform;

/// Largest difference of a gradient to the kernels', relative to the largest of the section's: sums of some hundred products
/// of f32 in another order.
const MAX_GRADIENT_DIFFERENCE: f32 = 2e-5;

/// The same of a cost.
const MAX_COST_DIFFERENCE: f64 = 2e-6;

/// Largest difference of a parameter after some steps, in step sizes: Adam divides by the gradient's size, so that where
/// that is all rounding, a step may go either way. Most agree far better, which [`MOST_DIFFER_BY`] says.
const MAX_STEPS_APART: f32 = 2.0;

/// The root of the mean square of the differences after some steps, in step sizes.
const MOST_DIFFER_BY: f32 = 0.02;

const ROWS: usize = 9;
const COLUMNS: usize = 7;
const CLASSES: usize = 3;
const TEXT: usize = 5;
/// Ranks of the adapters of two trees, learnt together.
const RANKS: [usize; 2] = [2, 3];

/// Models in memory, with a second form of each.
struct Zoo {
    low_rank: bool,
    values: Vec<Vec<f32>>,
    copies: usize,
}

impl Zoo {
    fn new(count: usize, copies: usize, low_rank: bool) -> Self {
        let size = |at: usize| match low_rank {
            true => RANKS[at % 2] * (ROWS + COLUMNS),
            false => ROWS * COLUMNS,
        };
        let values = (0..count * copies).map(|at| uniform(size(at % count), 100 + at as u64)).collect();
        Self { low_rank, values, copies }
    }
}

impl Models for Zoo {
    fn len(&self) -> usize {
        self.values.len() / self.copies
    }

    fn copies(&self) -> usize {
        self.copies
    }

    fn layer(&self, at: usize, copy: usize) -> Operand<'_> {
        let values = &self.values[copy * self.len() + at];
        if !self.low_rank {
            return Operand::Dense(values);
        }
        let rank = RANKS[at % 2];
        let (up, down) = values.split_at(ROWS * rank);
        Operand::LowRank { up, down, rank }
    }
}

/// Truths (count, classes): several of the classes, or one.
fn truths(count: usize, choice: Choice) -> Vec<f32> {
    let holds = |model: usize, class: usize| match choice {
        Choice::Several => (model * 5 + class * 3) % 4 < 2,
        Choice::One => model % CLASSES == class,
    };
    (0..count).flat_map(|model| (0..CLASSES).map(move |class| f32::from(u8::from(holds(model, class))))).collect()
}

fn bodies() -> Vec<Body> {
    let views: [&[View]; 5] = [&[View::Xu], &[View::Xtu], &[View::Xxtu], &[View::Xtxu], &ALL_VIEWS];
    let mut bodies = vec![Body::Dense];
    for views in views {
        for (standardise, activation) in
            [(false, Activation::None), (false, Activation::Relu), (true, Activation::Relu), (true, Activation::None)]
        {
            let (probes, projection, representation) = (3, 4, 6);
            let views = views.to_vec();
            bodies.push(Body::Probe { views, probes, projection, representation, standardise, activation });
        }
    }
    bodies
}

fn heads(body: &Body) -> Vec<Head> {
    let mut heads = vec![Head::Labels { classes: CLASSES }];
    if *body != Body::Dense {
        heads.extend([true, false].map(|temperature| Head::Text { width: TEXT, temperature }));
    }
    heads
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// What a test trains with, by the kernels and by tensors.
struct Case {
    zoo: Zoo,
    spec: Spec,
    choice: Choice,
    truths: Vec<f32>,
    texts: Vec<f32>,
    training: Training,
    places: Vec<usize>,
}

impl Case {
    fn new(body: Body, head: Head, choice: Choice, low_rank: bool, models: usize, copies: usize) -> Self {
        let texts = match head {
            Head::Labels { .. } => Vec::new(),
            Head::Text { width, .. } => uniform(CLASSES * width, 5),
        };
        let training = Training { rate: 1e-3, batch: 5, epochs: 4, every: 2, ..Training::default() };
        Self {
            zoo: Zoo::new(models, copies, low_rank),
            spec: Spec { rows: ROWS, columns: COLUMNS, body, head },
            choice,
            truths: truths(models, choice),
            texts,
            training,
            places: (0..models).collect(),
        }
    }

    fn texts(&self) -> Texts<'_> {
        Texts { values: &self.texts, classes: if self.texts.is_empty() { 0 } else { CLASSES } }
    }

    /// The last quarter of the models chooses.
    fn task(&self) -> Task<'_> {
        let known = self.places.len() * 3 / 4;
        let part = |from: usize, to: usize| Part {
            models: &self.places[from..to],
            truths: &self.truths[from * CLASSES..to * CLASSES],
            classes: CLASSES,
        };
        Task {
            models: &self.zoo,
            train: part(0, known),
            validation: part(known, self.places.len()),
            texts: self.texts(),
            choice: self.choice,
            training: &self.training,
        }
    }
}

fn trainer() -> Trainer {
    Trainer::new(Device::Cpu)
}

#[test]
fn costs_and_gradients_are_those_of_the_kernels() {
    for body in bodies() {
        for head in heads(&body) {
            for low_rank in [false, true] {
                for choice in [Choice::Several, Choice::One] {
                    let case = Case::new(body.clone(), head, choice, low_rank, 8, 2);
                    let name = format!("{body:?} {head:?} {choice:?} low rank {low_rank}");
                    let net = Net::start(case.spec.clone(), 9, 0.7);
                    let task = case.task();
                    let batch = [(3, 0), (0, 1), (5, 1), (3, 1)];
                    let trainer = trainer();
                    let learner = super::Learner::new(&trainer, &net, task).unwrap();
                    let (cost, gradient) = learner.gradient(&batch).unwrap();
                    let (cost, gradient) = (f64::from(numbers(&cost)[0]), numbers(&gradient));

                    let operands: Vec<Operand<'_>> =
                        batch.iter().map(|&(entry, copy)| case.zoo.layer(task.train.models[entry], copy)).collect();
                    let truths: Vec<f32> = batch
                        .iter()
                        .flat_map(|&(entry, _)| &case.truths[entry * CLASSES..(entry + 1) * CLASSES])
                        .copied()
                        .collect();
                    let mut kernels = Learner::new(net.clone());
                    let (expected, by_kernels) = kernels.gradient(&operands, &truths, case.texts(), choice);
                    assert!((cost - expected).abs() <= MAX_COST_DIFFERENCE * expected, "{name}: {cost} for {expected}");
                    for section in case.spec.sections() {
                        let expected = &by_kernels[section.range.clone()];
                        let size = expected.iter().fold(0f32, |size, g| size.max(g.abs()));
                        assert!(size > 0.0, "{name}: {} has no gradient to compare", section.name);
                        for (found, expected) in gradient[section.range.clone()].iter().zip(expected) {
                            assert!(
                                (found - expected).abs() <= MAX_GRADIENT_DIFFERENCE * size,
                                "{name}: {}: {found} for {expected}, the largest is {size}",
                                section.name
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn training_is_that_of_the_kernels() {
    let presets = [Preset::Dense, Preset::Linear, Preset::Probex, Preset::Delta, Preset::Mvprobe];
    for (preset, low_rank, copies) in
        presets.into_iter().flat_map(|preset| [(preset, false, 1), (preset, true, 1), (preset, false, 3)])
    {
        let body = preset.body((4, 4, 8));
        for head in heads(&body) {
            let choice = if matches!(head, Head::Text { .. }) { Choice::One } else { Choice::Several };
            let case = Case::new(body.clone(), head, choice, low_rank, 24, copies);
            let name = format!("{} {head:?} low rank {low_rank} {copies} forms", preset.name());
            let task = case.task();
            let (spec, training) = (case.spec.clone(), &case.training);
            let parts = (task.train, task.validation);
            let expected = train((spec.clone(), 0.7), &case.zoo, parts, (task.texts, choice), training, &mut |_, _| {});
            let mut told = 0;
            let found = train_on(&trainer(), (spec, 0.7), task, &mut |_, _| told += 1).unwrap();
            assert_eq!((told, found.epoch), (training.epochs, expected.epoch), "{name}");
            for (found, expected) in found.costs.iter().zip(&expected.costs) {
                assert!((found - expected).abs() < 1e-4 * expected, "{name}: cost {found} for {expected}");
            }
            assert_eq!(found.validation.0, expected.validation.0, "{name}");
            assert!((found.validation.1 - expected.validation.1).abs() < 1e-4 * expected.validation.1, "{name}");
            let apart: Vec<f32> =
                found.net.values.iter().zip(&expected.net.values).map(|(a, b)| (a - b).abs() / training.rate).collect();
            let most = apart.iter().fold(0f32, |most, d| most.max(*d));
            let usual = (apart.iter().map(|d| d * d).sum::<f32>() / apart.len() as f32).sqrt();
            assert!(most < MAX_STEPS_APART && usual < MOST_DIFFER_BY, "{name}: {most} and {usual} steps apart");
        }
    }
}

#[test]
fn large_sets_are_picked_from_without_counting_in_32_bits() {
    for low_rank in [false, true] {
        let case = Case::new(
            Preset::Mvprobe.body((3, 4, 6)),
            Head::Labels { classes: CLASSES },
            Choice::Several,
            low_rank,
            9,
            2,
        );
        let net = Net::start(case.spec.clone(), 1, 1.0);
        let (usual, few) = (trainer(), Trainer { counted: 2 * ROWS * COLUMNS, ..trainer() });
        let gradient = |trainer: &Trainer| {
            let learner = super::Learner::new(trainer, &net, case.task()).unwrap();
            numbers(&learner.gradient(&[(2, 1), (2, 0), (0, 1)]).unwrap().1)
        };
        assert_eq!(gradient(&usual), gradient(&few));
        let error = few.start(&net, case.task()).err().unwrap().to_string();
        assert!(error.contains("a --batch of at most 2") && !error.contains('\n'), "{error}");
    }
}

#[test]
fn responses_that_are_all_equal_have_no_gradient() {
    // Layers of zeros: every response is 0, its deviation too.
    let mut case =
        Case::new(Preset::Delta.body((3, 4, 6)), Head::Labels { classes: CLASSES }, Choice::Several, false, 8, 1);
    case.zoo.values.iter_mut().flatten().for_each(|x| *x = 0.0);
    let net = Net::start(case.spec.clone(), 1, 1.0);
    let trainer = trainer();
    let mut steps = trainer.start(&net, case.task()).unwrap();
    steps.step(&[(0, 0), (1, 0)]).unwrap();
    assert!(steps.values().unwrap().iter().all(|value| value.is_finite()));
    assert!(steps.costs().unwrap() > 0.0);
    assert_eq!(steps.costs().unwrap(), 0.0, "costs are told once");
}
