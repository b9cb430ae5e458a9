//! Trains a small net on a file of labelled images and says how many of others it tells right.
//!
//!     cargo run --release -p scruple-compress --example train_images -- --data FILE --test FILE [--net resnet20]
//!         [--width 16] [--epochs 2] [--batch 64] [--rate 0.1] [--seed 1] [--limit N] [--shift 0] [--flip] [--threads N]
//!         [--run FILE] [--out FILE]
//!
//! `--data glyphs` draws pictures instead. Nets: resnet20 and its kin, cnn, mlp, residual-mlp. With `--run` the run is
//! saved there as it goes, and goes on from there when started again; `--out` gets the weights.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program, not the library

use std::{error::Error, ops::ControlFlow, path::Path, time::Instant};

use scruple_compress::{
    data::{glyphs::glyphs, images::ImageSet},
    nn::{
        Architecture, Input, Net, Recipe, Shortcut, Spec, Trainer, evaluate,
        optimiser::{Curve, Rule, Schedule},
        train::Augmentation,
    },
};

/// Images a batch of the evaluation.
const EVALUATED: usize = 200;

fn option(name: &str) -> Option<String> {
    let mut arguments = std::env::args();
    arguments.find(|argument| argument == name)?;
    arguments.next()
}

fn number<T: std::str::FromStr>(name: &str, otherwise: T) -> Result<T, Box<dyn Error>> {
    match option(name) {
        None => Ok(otherwise),
        Some(text) => text.parse().map_err(|_| format!("{name}: `{text}` is not a number").into()),
    }
}

fn read(name: &str, seed: u64) -> Result<ImageSet, Box<dyn Error>> {
    let file = option(name).ok_or_else(|| format!("{name} names no file of images"))?;
    Ok(match file.as_str() {
        "glyphs" => ImageSet::of_glyphs(glyphs(seed, if name == "--data" { 10_000 } else { 2_000 }, 16)),
        file => ImageSet::read(Path::new(file), None)?,
    })
}

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(2);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let threads = number("--threads", 0)?;
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let (mut train, test) = (read("--data", 1)?, read("--test", 2)?);
    if (test.height, test.width, test.channels) != (train.height, train.width, train.channels) {
        return Err("the images of --test are of another size than those of --data".into());
    }
    train = train.select(0..train.len().min(number("--limit", usize::MAX)?));
    let (name, width) = (option("--net").unwrap_or_else(|| "resnet20".into()), number("--width", 16)?);
    let architecture = match name.as_str() {
        "cnn" => Architecture::Cnn { widths: vec![width, 2 * width, 4 * width] },
        "mlp" => Architecture::Mlp { hidden: vec![width, width], norm: false },
        "residual-mlp" => Architecture::ResidualMlp { width, blocks: 3 },
        name => match name.strip_prefix("resnet").and_then(|depth| depth.parse().ok()) {
            Some(depth) => Architecture::resnet(depth, width, Shortcut::Slice)?,
            None => {
                return Err(format!("no net is called `{name}`; resnet20 and its kin, cnn, mlp or residual-mlp").into());
            }
        },
    };
    let input = Input { height: train.height, width: train.width, channels: train.channels };
    let spec = Spec { architecture, input, classes: train.classes };
    let recipe = Recipe {
        seed: number("--seed", 1)?,
        epochs: number("--epochs", 2)?,
        batch: number("--batch", 64)?,
        rule: Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 5e-4 },
        decay_vectors: false,
        schedule: Schedule { peak: number("--rate", 0.1)?, warmup_epochs: 0.1, curve: Curve::Cosine },
        label_smoothing: 0.0,
        augmentation: Augmentation { shift: number("--shift", 0)?, flip: std::env::args().any(|a| a == "--flip") },
        scaling: train.scaling(),
    };
    let (scaling, run) = (recipe.scaling.clone(), option("--run"));
    let mut trainer = Trainer::new(&spec, recipe, &train)?;
    if let Some(run) = run.as_deref().map(Path::new).filter(|run| run.exists()) {
        trainer.resume(run)?;
        eprintln!("goes on after step {}", trainer.step_number());
    }
    let graph = trainer.net().graph();
    let (parameters, cost) = (graph.layout().len(), graph.multiply_adds());
    eprintln!("{name}: {parameters} parameters, {:.1} million multiply-adds an image", cost as f64 / 1e6);

    let (started, first) = (Instant::now(), trainer.step_number());
    let every = (trainer.epoch_steps() / 10).max(1);
    while !trainer.is_done() {
        let until = trainer.step_number() + every;
        trainer.run(until, &mut |now| {
            if now.step == until || now.step == now.steps {
                let left = started.elapsed().as_secs_f64() / (now.step - first) as f64 * (now.steps - now.step) as f64;
                eprintln!(
                    "step {} of {}: cost {:.4}, {:.1} % right in this epoch, {left:.0} s left",
                    now.step,
                    now.steps,
                    now.epoch_loss,
                    100.0 * now.epoch_accuracy
                );
            }
            ControlFlow::Continue(())
        })?;
        if let Some(run) = &run {
            trainer.save(Path::new(run))?;
        }
    }
    let mut net = Net::new(&spec, EVALUATED)?;
    let evaluation = evaluate(&mut net, trainer.weights(), &test, &scaling)?;
    println!("{} of {} right, {:.2} %", evaluation.right, test.len(), 100.0 * evaluation.accuracy());
    if let Some(out) = option("--out") {
        trainer.weights().write(trainer.net().graph(), Path::new(&out))?;
    }
    Ok(())
}
