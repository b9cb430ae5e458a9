use super::*;
use crate::{
    data::glyphs::glyphs,
    nn::{Architecture, Input, Shortcut, optimiser::Curve, parametrise::Masked},
};

fn set(seed: u64, count: usize) -> ImageSet {
    ImageSet::of_glyphs(glyphs(seed, count, 16))
}

fn spec(architecture: Architecture) -> Spec {
    Spec { architecture, input: Input { height: 16, width: 16, channels: 1 }, classes: 10 }
}

fn resnet(width: usize) -> Spec {
    spec(Architecture::ResNet { blocks: vec![1, 1, 1], width, shortcut: Shortcut::Slice, inner: Vec::new() })
}

fn recipe(images: &ImageSet, epochs: u64, peak: f64) -> Recipe {
    Recipe {
        seed: 1,
        epochs,
        batch: 32,
        rule: Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 5e-4 },
        decay_vectors: false,
        schedule: Schedule { peak, warmup_epochs: 0.2, curve: Curve::Cosine },
        label_smoothing: 0.05,
        augmentation: Augmentation { shift: 1, flip: false },
        scaling: images.scaling(),
    }
}

fn go_on(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn two_epochs_on_glyphs_reach_a_stated_accuracy() {
    let (train, test) = (set(1, 2_000), set(2, 500));
    let adamw = Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };
    let mlp = spec(Architecture::Mlp { hidden: vec![128], norm: true });
    let cnn = spec(Architecture::Cnn { widths: vec![16, 32, 64] });
    for (spec, rule, peak, at_least) in [
        (resnet(8), None, 0.1, RESNET_ACCURACY),
        (cnn, Some(adamw), 0.01, CNN_ACCURACY),
        (mlp, Some(adamw), 0.01, MLP_ACCURACY),
    ] {
        let mut recipe = recipe(&train, 2, peak);
        recipe.rule = rule.unwrap_or(recipe.rule);
        let scaling = recipe.scaling.clone();
        let mut trainer = Trainer::new(&spec, recipe, &train).unwrap();
        let mut last = None;
        trainer
            .run(u64::MAX, &mut |now| {
                last = Some(*now);
                go_on(now)
            })
            .unwrap();
        let last = last.unwrap();
        assert!(trainer.is_done() && (last.step, last.epoch, last.images) == (126, 2, 16));
        let mut net = Net::new(&spec, 100).unwrap();
        let evaluation = evaluate(&mut net, trainer.weights(), &test, &scaling).unwrap();
        assert!(evaluation.accuracy() >= at_least, "{:?}: {}", spec.architecture, evaluation.accuracy());
        let right = evaluation.answers.iter().zip(&test.labels).filter(|(a, b)| a == b).count();
        assert_eq!(right, evaluation.right);
    }
}

/// Of ten signs, after two epochs of 2,000 pictures. Three seeds gave 0.95 to 0.98, 0.90 to 0.93 and 0.82 to 0.86.
const RESNET_ACCURACY: f64 = 0.92;
const CNN_ACCURACY: f64 = 0.86;
const MLP_ACCURACY: f64 = 0.76;

/// The weights after a run on `threads` threads that is saved and taken up again after each of `stops` steps.
fn weights(threads: usize, stops: &[u64]) -> Weights {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let images = set(1, 300);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.safetensors");
    pool.install(|| {
        let new = || Trainer::new(&resnet(8), recipe(&images, 2, 0.1), &images).unwrap();
        let mut trainer = new();
        for &stop in stops {
            trainer.run(stop, &mut go_on).unwrap();
            trainer.save(&file).unwrap();
            trainer.run(stop + 1, &mut go_on).unwrap(); // lost with the process
            trainer = new();
            trainer.resume(&file).unwrap();
            assert_eq!(trainer.step_number(), stop);
        }
        trainer.run(u64::MAX, &mut go_on).unwrap();
        trainer.weights().clone()
    })
}

#[test]
fn the_bytes_do_not_depend_on_threads_or_interruptions() {
    let expected = weights(1, &[]);
    assert_eq!(weights(2, &[]), expected);
    assert_eq!(weights(1, &[3, 10, 13]), expected);
}

#[test]
fn a_saved_run_of_something_else_is_refused_in_words() {
    let images = set(1, 64);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.safetensors");
    let recipe = recipe(&images, 1, 0.1);
    let trainer = Trainer::new(&resnet(8), recipe.clone(), &images).unwrap();
    trainer.save(&file).unwrap();
    let others = set(2, 64);
    let mut changed = recipe.clone();
    changed.epochs = 2;
    let keep = vec![true; trainer.weights().values.len()];
    let masked = Masked::new(keep);
    let elsewhere = Weights::start(trainer.net().graph(), 2);
    let mut runs = [
        (Trainer::new(&resnet(4), recipe.clone(), &images).unwrap(), "another net"),
        (Trainer::new(&resnet(8), changed, &images).unwrap(), "another recipe"),
        (Trainer::new(&resnet(8), recipe.clone(), &others).unwrap(), "another images"),
        (
            Trainer::from_weights(&resnet(8), recipe.clone(), &images, trainer.weights().clone(), Some(&masked))
                .unwrap(),
            "another parametrisation",
        ),
        (
            Trainer::from_weights(&resnet(8), recipe.clone(), &images, elsewhere, None).unwrap(),
            "another start, from other weights",
        ),
    ];
    for (run, part) in &mut runs {
        let error = run.resume(&file).unwrap_err().to_string();
        assert!(error.contains("run.safetensors") && error.contains(*part), "{error}");
    }
    // A file that does not say where its run began is believed.
    let silent = State { start: None, ..trainer.state() };
    saved::write(&file, (STATE, &silent), trainer.weights().tensors(trainer.net().graph()), &trainer.optimiser)
        .unwrap();
    assert!(runs.last_mut().unwrap().0.resume(&file).is_ok());
    trainer.weights().write(trainer.net().graph(), &file).unwrap();
    let error = runs[0].0.resume(&file).unwrap_err().to_string();
    assert!(error.contains("is not a saved run"), "{error}");
}

#[test]
fn a_mask_keeps_its_zeros_through_training_and_a_full_one_changes_nothing() {
    let images = set(1, 200);
    let spec = spec(Architecture::Cnn { widths: vec![8, 8] });
    let mut recipe = recipe(&images, 1, 0.05);
    (recipe.decay_vectors, recipe.label_smoothing) = (true, 0.0);
    let start = Weights::start(&spec.graph().unwrap(), 5);
    let run = |mask: Option<&Masked>| {
        let with = mask.map(|mask| mask as &dyn Parametrise);
        let mut trainer = Trainer::from_weights(&spec, recipe.clone(), &images, start.clone(), with).unwrap();
        trainer.run(u64::MAX, &mut go_on).unwrap();
        trainer.weights().clone()
    };
    let all = start.values.len();
    assert_eq!(run(Some(&Masked::new(vec![true; all]))), run(None));
    let keep: Vec<bool> = (0..all).map(|at| at % 3 != 0).collect();
    let sparse = run(Some(&Masked::new(keep.clone())));
    assert!(sparse.values.iter().zip(&keep).all(|(value, keep)| *keep || *value == 0.0));
    assert!(sparse.values.iter().zip(&start.values).filter(|(a, b)| a != b).count() > all / 2);
}

#[test]
fn images_are_seen_in_the_order_and_places_of_their_seed() {
    let augmentation = Augmentation { shift: 4, flip: true };
    let placements: Vec<Placement> = (0..2_000).map(|image| augmentation.placement(3, 1, image)).collect();
    assert!(placements.iter().all(|place| place.down.abs() <= 4 && place.right.abs() <= 4));
    let count = |holds: &dyn Fn(&Placement) -> bool| placements.iter().filter(|place| holds(place)).count();
    assert!((900..1_100).contains(&count(&|place| place.flipped)));
    // A ninth of 2,000, five standard deviations.
    assert!(
        (150..300).contains(&count(&|place| place.down == -4))
            && (150..300).contains(&count(&|place| place.right == 4))
    );
    assert_eq!(augmentation.placement(3, 1, 7), placements[7]);
    assert!((0..50).any(|image| augmentation.placement(3, 2, image) != placements[image]));
    assert_eq!(Augmentation::default().placement(3, 1, 7), Placement::default());
}

#[test]
fn a_run_that_cannot_be_is_refused_in_words() {
    let images = set(1, 64);
    let good = recipe(&images, 1, 0.1);
    let with = |change: &dyn Fn(&mut Recipe)| {
        let mut recipe = good.clone();
        change(&mut recipe);
        Trainer::new(&resnet(8), recipe, &images).unwrap_err().to_string()
    };
    assert!(with(&|r| r.batch = 0).contains("batches of 0"));
    assert!(with(&|r| r.label_smoothing = 1.0).contains("label_smoothing is 1"));
    assert!(with(&|r| r.scaling.deviation[0] = 0.0).contains("deviations above 0"));
    let mut wide = resnet(8);
    wide.input.width = 32;
    let error = Trainer::new(&wide, good.clone(), &images).unwrap_err().to_string();
    assert_eq!(error, "the images are 16 × 16 pixels of 1 channels, the net is for 16 × 32 pixels of 1");
    let mut few = resnet(8);
    few.classes = 9;
    let error = Trainer::new(&few, good.clone(), &images).unwrap_err().to_string();
    assert_eq!(error, "the images have labels up to 9, the net 9 classes");
    let mut runaway = good;
    runaway.schedule.peak = 1e30;
    let mut trainer = Trainer::new(&resnet(8), runaway, &images).unwrap();
    let error = trainer.run(u64::MAX, &mut go_on).unwrap_err().to_string();
    assert!(error.starts_with("step 2: the loss of image 1 of the batch is"), "{error}");
}
