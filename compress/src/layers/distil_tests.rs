use super::*;
use crate::layers::{DropOptions, Removal, drop_layers, tests::toy, write::provenance};

fn recipe() -> Recipe {
    Recipe { tokens: 480, window: 12, windows: 2, learning_rate: 0.02, rank: 2, alpha: 4.0, ..Recipe::default() }
}

struct Models {
    pruned: Checkpoint,
    dense: Checkpoint,
    teacher: Decoder,
    provenance: Provenance,
}

/// A toy of six layers without `drop`.
fn models(folder: &Path, drop: &str) -> Models {
    let dense = Checkpoint::open(toy(folder, 6, &[])).unwrap();
    let out = folder.join(format!("without-{drop}"));
    drop_layers(&dense, &Removal::parse(drop).unwrap(), &out, &DropOptions::default(), &mut |_, _| {}).unwrap();
    let teacher = Decoder::open(&dense).unwrap();
    Models { pruned: Checkpoint::open(&out).unwrap(), dense, teacher, provenance: provenance(&out).unwrap() }
}

fn distiller<'a>(models: &'a Models, recipe: Recipe, tokens: &'a [u32]) -> Result<Distiller<'a>> {
    Distiller::new(&models.pruned, (&models.dense, &models.teacher), &models.provenance, recipe, tokens)
}

fn tokens() -> Vec<u32> {
    (0..130u32).map(|n| (n * n / 3 + n) % 64).collect()
}

#[test]
fn the_divergence_falls_and_a_stopped_run_ends_as_a_whole_one() {
    let folder = tempfile::tempdir().unwrap();
    let models = models(folder.path(), "2-3");
    let tokens = tokens();
    let mut whole = distiller(&models, recipe(), &tokens).unwrap();
    assert_eq!((whole.steps(), whole.windows(0).len()), (20, 2));
    // Ten windows of the text: each of them once before any comes again.
    let mut seen: Vec<usize> = (0..5).flat_map(|step| whole.windows(step)).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..10).map(|window| window * 12).collect::<Vec<_>>());
    let found: Vec<Progress> = (0..20).map(|_| whole.step().unwrap()).collect();
    let mean = |steps: &[Progress]| steps.iter().map(|step| step.divergence).sum::<f64>() / steps.len() as f64;
    assert!(mean(&found[15..]) < 0.5 * mean(&found[..5]), "{found:?}");
    assert!(whole.step().unwrap_err().to_string().contains("all of them are done"));

    let saved = folder.path().join("run.safetensors");
    let mut first = distiller(&models, recipe(), &tokens).unwrap();
    (0..7).for_each(|_| assert!(first.step().is_ok()));
    first.save(&saved).unwrap();
    let mut second = distiller(&models, recipe(), &tokens).unwrap();
    second.resume(&saved).unwrap();
    rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(|| {
        while second.step_number() < second.steps() {
            second.step().unwrap();
        }
    });
    assert_eq!(second.learned, whole.learned);
    let mut other = distiller(&models, Recipe { seed: 2, ..recipe() }, &tokens).unwrap();
    let error = other.resume(&saved).unwrap_err().to_string();
    assert!(error.contains("is a saved run of another recipe"), "{error}");
    // The same bytes under another configuration are another model.
    let config = models.pruned.dir().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replacen('{', "{\"rope_theta\": 500.0,", 1)).unwrap();
    let pruned = Checkpoint::open(models.pruned.dir()).unwrap();
    let both = (&models.dense, &models.teacher);
    let mut changed = Distiller::new(&pruned, both, &models.provenance, recipe(), &tokens).unwrap();
    let error = changed.resume(&saved).unwrap_err().to_string();
    assert!(error.contains("is a saved run of another pruned model"), "{error}");
    assert!(other.resume(models.pruned.path()).unwrap_err().to_string().contains("is not a saved run"));

    // Every tensor that is said to change does, and no other.
    let named = whole.tensors();
    for view in models.pruned.tensors() {
        let replaced = whole.replaced(view);
        assert_eq!(replaced.is_some(), named.iter().any(|name| name == view.name()), "{}", view.name());
        assert!(replaced.is_none_or(|values| values.len() == view.elements() && values != view.to_f32().unwrap()));
    }
}

#[test]
fn only_blocks_near_a_seam_learn_where_that_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = tokens();
    for (drop, near, blocks) in
        [("2-3", 1, vec![1, 2]), ("0,3", 1, vec![0, 1, 2]), ("5", 1, vec![4]), ("2", 2, vec![0, 1, 2, 3])]
    {
        let models = models(folder.path(), drop);
        let recipe = Recipe { near: Some(near), targets: vec!["*.down_proj".into()], norms: false, ..recipe() };
        let expected: Vec<String> =
            blocks.iter().map(|block| format!("model.layers.{block}.mlp.down_proj.weight")).collect();
        assert_eq!(distiller(&models, recipe, &tokens).unwrap().tensors(), expected, "{drop}");
        let out = folder.path().join(format!("without-{drop}"));
        std::fs::remove_dir_all(out).unwrap();
        std::fs::remove_dir_all(models.dense.path()).unwrap();
    }
}

#[test]
fn what_cannot_be_distilled_is_said_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let models = models(folder.path(), "2-3");
    let tokens = tokens();
    let usual = recipe();
    for (recipe, words) in [
        (Recipe { tokens: 0, ..usual.clone() }, "a run of 0 tokens"),
        (Recipe { window: 129, ..usual.clone() }, "longer than the model's 128 positions"),
        (Recipe { learning_rate: f64::NAN, ..usual.clone() }, "the learning rate is NaN"),
        (Recipe { temperature: 0.0, ..usual.clone() }, "the temperature is 0"),
        (Recipe { weight_decay: -1.0, ..usual.clone() }, "the weight decay is -1"),
        (Recipe { rank: 0, norms: false, ..usual.clone() }, "neither adapters nor norms learn"),
        (Recipe { targets: vec!["*.qkv".into()], ..usual.clone() }, "names look like model.layers.0.self_attn.q_proj"),
    ] {
        let error = distiller(&models, recipe, &tokens).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = distiller(&models, usual.clone(), &tokens[..11]).unwrap_err().to_string();
    assert!(error.contains("the text has 11 tokens, fewer than a window of 12"), "{error}");
    let error = distiller(&models, usual, &[64; 12]).unwrap_err().to_string();
    assert!(error.contains("token id 64 is outside the vocabulary of 64"), "{error}");
}
