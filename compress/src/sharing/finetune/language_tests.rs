use super::*;
use crate::sharing::{
    Options, Projected,
    expand::verify,
    modules::{Choice, Size},
    project::project,
};

/// The smallest Llama of the fixtures over a pool.
fn pool(folder: &Path) -> (Checkpoint, SharedFile) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/decoders/llama");
    let source = Checkpoint::open(source).unwrap();
    let out = folder.join("pool");
    let choice = Choice { least_values: 64, ..Choice::default() };
    let options = Options { choice, size: Size::Rate(2.0), allow_lossy: true, ..Options::default() };
    project(&source, Some(&out), &options, &|_: &Projected| Ok(Vec::new()), &mut |_, _| {}).unwrap();
    (source, SharedFile::open(&out).unwrap())
}

fn recipe(distillation: Option<Distillation>) -> Recipe {
    Recipe {
        seed: 1,
        steps: 30,
        windows: 2,
        window: 12,
        learning_rate: 0.01,
        warmup: 3,
        weight_decay: 0.0,
        clip: 1.0,
        distillation,
    }
}

fn tokens(vocab: usize) -> Vec<u32> {
    (0..400).map(|n| (n * n / 3 % 7 % vocab) as u32).collect()
}

#[test]
fn the_loss_falls_and_a_stopped_run_ends_as_a_whole_one() {
    let folder = tempfile::tempdir().unwrap();
    let (dense, file) = pool(folder.path());
    let teacher = Decoder::open(&dense).unwrap();
    let tokens = tokens(teacher.config().vocab_size);
    let teacher = Teacher { decoder: &teacher, fingerprint: "dense" };
    let recipe = recipe(Some(Distillation { share: 0.3, temperature: 1.5 }));
    let new = || Tuner::new(&file, recipe.clone(), &tokens, Some(teacher)).unwrap();

    let (mut whole, mut found) = (new(), Vec::new());
    while whole.step_number() < whole.steps() {
        found.push(whole.step().unwrap());
    }
    assert!(found[29].nll < 0.7 * found[0].nll, "{found:?}");
    assert!(found.iter().all(|now| now.divergence.is_some_and(|divergence| divergence > 0.0)));
    assert!(whole.step().unwrap_err().to_string().contains("all of them are done"));

    let saved = folder.path().join("run.safetensors");
    let mut first = new();
    (0..11).for_each(|_| assert!(first.step().is_ok()));
    first.save(&saved).unwrap();
    let mut second = new();
    second.resume(&saved).unwrap();
    let threads = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    threads.install(|| {
        while second.step_number() < second.steps() {
            second.step().unwrap();
        }
    });
    assert_eq!(second.trainable, whole.trainable);

    let out = folder.path().join("tuned");
    whole.write(&out, &[("share.json", b"{}\n".to_vec())]).unwrap();
    let tuned = SharedFile::open(&out).unwrap();
    assert!(verify(&tuned, None, &|_| {}).unwrap().faults.is_empty());
    assert_eq!(tuned.sharing(), file.sharing());
    // What was written is what was trained, and it runs from its pool.
    let before = Tuner::new(&file, recipe.clone(), &tokens, Some(teacher)).unwrap().step().unwrap().nll;
    let after = Tuner::new(&tuned, recipe.clone(), &tokens, Some(teacher)).unwrap().step().unwrap().nll;
    assert!(after < 0.7 * before, "{after} after {before}");
    let mut other = Tuner::new(&tuned, recipe.clone(), &tokens, Some(teacher)).unwrap();
    let error = other.resume(&saved).unwrap_err().to_string();
    assert!(error.contains("is a saved run of another model"), "{error}");
}

#[test]
fn the_gradient_of_the_coordinates_is_the_slope_of_the_loss() {
    let folder = tempfile::tempdir().unwrap();
    let (dense, file) = pool(folder.path());
    let teacher = Decoder::open(&dense).unwrap();
    let tokens = tokens(teacher.config().vocab_size);
    let distillation = Distillation { share: 0.4, temperature: 2.0 };
    let teacher = Teacher { decoder: &teacher, fingerprint: "dense" };
    let recipe = Recipe { clip: 1e9, ..recipe(Some(distillation)) };
    let loss = |moved: Option<(usize, f32)>| {
        let mut tuner = Tuner::new(&file, recipe.clone(), &tokens, Some(teacher)).unwrap();
        if let Some((slot, step)) = moved {
            tuner.trainable[slot] += step;
        }
        // A step leaves its gradient as the optimiser's first memory, times 1 − β₁.
        let now = tuner.step().unwrap();
        let loss = 0.6 * now.nll + 0.4 * 4.0 * now.divergence.unwrap();
        (loss, tuner.optimiser.memories()[0].iter().map(|m| m / 0.1).collect::<Vec<f32>>())
    };
    let (_, gradient) = loss(None);
    let mut by_size: Vec<usize> = (0..gradient.len()).collect();
    by_size.sort_by(|&a, &b| gradient[b].abs().total_cmp(&gradient[a].abs()));
    for &slot in &by_size[..4] {
        let slope = (loss(Some((slot, 0.01))).0 - loss(Some((slot, -0.01))).0) / 0.02;
        let expected = f64::from(gradient[slot]);
        assert!((slope - expected).abs() < 0.02 * expected.abs(), "slot {slot}: {slope} against {expected}");
    }
}

#[test]
fn runs_that_cannot_be_are_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let (_, file) = pool(folder.path());
    let tokens = tokens(32);
    let refused = |recipe: Recipe| Tuner::new(&file, recipe, &tokens, None).unwrap_err().to_string();
    for (recipe, part) in [
        (Recipe { window: 400, ..recipe(None) }, "the text has 400 tokens, too few for a window of 400"),
        (Recipe { learning_rate: f64::NAN, ..recipe(None) }, "the learning rate is NaN"),
        (Recipe { steps: 0, ..recipe(None) }, "a run of 0 steps"),
        (recipe(Some(Distillation::default())), "belong together"),
    ] {
        let error = refused(recipe);
        assert!(error.contains(part), "{error}");
    }
}
