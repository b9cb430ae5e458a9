//! A run of training that is killed at any moment and started again ends with the weights of one that was not.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use scruple_compress::{
    data::{glyphs::glyphs, images::ImageSet},
    nn::{
        Architecture, Input, Recipe, Spec, Trainer, Weights,
        optimiser::{Curve, Rule, Schedule},
        train::Augmentation,
    },
};

/// Names the file of the run to the process that is killed.
const RUN: &str = "SCRUPLE_TEST_RUN";

/// Trains to the end, saving to `run` after every step, from where it holds a run.
fn train(run: Option<&Path>) -> Weights {
    let images = ImageSet::of_glyphs(glyphs(1, 640, 16));
    let input = Input { height: 16, width: 16, channels: 1 };
    let spec = Spec { architecture: Architecture::Cnn { widths: vec![16, 32, 64] }, input, classes: 10 };
    let recipe = Recipe {
        seed: 1,
        epochs: 3,
        batch: 16,
        rule: Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 },
        decay_vectors: false,
        schedule: Schedule { peak: 0.01, warmup_epochs: 0.5, curve: Curve::Cosine },
        label_smoothing: 0.0,
        augmentation: Augmentation { shift: 1, flip: true },
        scaling: images.scaling(),
    };
    let mut trainer = Trainer::new(&spec, recipe, &images).unwrap();
    if let Some(run) = run.filter(|run| run.exists()) {
        trainer.resume(run).unwrap();
    }
    while !trainer.is_done() {
        trainer.run(trainer.step_number() + 1, &mut |_| ControlFlow::Continue(())).unwrap();
        if let Some(run) = run {
            trainer.save(run).unwrap();
        }
    }
    trainer.weights().clone()
}

/// What the killed process runs; nothing of its own to test.
#[test]
fn run_named_by_the_environment() {
    if let Some(run) = std::env::var_os(RUN) {
        train(Some(&PathBuf::from(run)));
    }
}

#[test]
fn a_killed_run_ends_with_the_same_weights() {
    let expected = train(None);
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run.safetensors");
    for patience in [15, 40, 5] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "run_named_by_the_environment"])
            .env(RUN, &run)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while !run.exists() && started.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(patience));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        assert!(run.exists(), "the run never saved itself");
    }
    assert_eq!(train(Some(&run)), expected);
}
