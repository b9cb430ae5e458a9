//! Trains the fixture model from a seed, and measures what rounding its weights does to its answers.
//!
//!     cargo run --release -p scruple-compress --example train_fixture -- --seed 1 --out DIR
//!     cargo run --release -p scruple-compress --example train_fixture -- --check DIR
//!
//! The first writes a whole model folder; the second only measures one. `--steps N` trains shorter or longer. With
//! `--traits yes` the world has traits (`compress/src/data/world/traits/`), and the model is asked about them too; measure it
//! with the same `--seed` and `--traits yes`.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program, not the library

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use scruple_compress::data::tokenizer::{self, Bpe};
use scruple_compress::data::world::traits::{TraitItem, trait_items};
use scruple_compress::data::world::{self, Question, World};
use scruple_compress::train::adamw::AdamWConfig;
use scruple_compress::train::answer::{Answer, accuracy, answers, perplexity};
use scruple_compress::train::channels;
use scruple_compress::train::file;
use scruple_compress::train::language::{Phase, Recipe, tokens, train};
use scruple_compress::train::llama::LlamaConfig;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const VOCABULARY: usize = 1024;
const MAX_LENGTH: usize = 256;
/// Sentences of the text trained on.
const SENTENCES: usize = 200_000;
/// The part of it that is kept beside the model, for calibration.
const KEPT_BYTES: usize = 200_000;
/// How uneven the channels are made after training; see [`channels`].
const CHANNEL_SPREAD: f64 = 0.5;
/// Columns that share a scale in the rounding check.
const GROUP: usize = 128;

fn config() -> LlamaConfig {
    LlamaConfig {
        vocab_size: VOCABULARY,
        hidden_size: 256,
        intermediate_size: 512,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        max_position_embeddings: MAX_LENGTH,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
    }
}

/// Short windows first, which are cheaper; the last tenth teaches the long ones.
fn recipe(seed: u64, steps: usize) -> Recipe {
    let long = steps / 10;
    Recipe {
        seed,
        batch_tokens: 2048,
        phases: vec![Phase { steps: steps - long, window: 64 }, Phase { steps: long, window: MAX_LENGTH }],
        learning_rate: 3e-3,
        warmup: steps / 20,
        optimiser: AdamWConfig::default(),
    }
}

fn main() -> Result<()> {
    let (mut seed, mut steps, mut traits, mut out, mut check) = (1, 1600, false, None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("`{argument}` needs a value"))?;
        match argument.as_str() {
            "--seed" => seed = value.parse()?,
            "--steps" => steps = value.parse()?,
            "--traits" => traits = matches!(value.as_str(), "yes"),
            "--out" => out = Some(PathBuf::from(value)),
            "--check" => check = Some(PathBuf::from(value)),
            _ => {
                return Err(format!(
                    "unknown option `{argument}`, expected --seed, --steps, --traits, --out or --check"
                )
                .into());
            }
        }
    }
    let world = if traits { World::with_traits(seed) } else { World::new(seed) };
    match (out, check) {
        (Some(out), None) => {
            make(&world, steps, &out)?;
            measure(&world, &out)
        }
        (None, Some(folder)) => measure(&world, &folder),
        _ => Err("give `--out DIR` to train a model, or `--check DIR` to measure one".into()),
    }
}

/// World, tokenizer, training, files.
fn make(world: &World, steps: usize, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)?;
    let seed = world.seed;
    world::write(world, out, KEPT_BYTES)?;
    let text = world.corpus(if world.traits { 2 * SENTENCES } else { SENTENCES });
    let bpe = Bpe::learn(&text, VOCABULARY)?;
    bpe.write(out, MAX_LENGTH)?;
    let tokens = tokens(&bpe.tokenizer()?, &text, seed)?;
    let config = config();
    println!(
        "{} questions, {} characters, {} tokens; {} parameters",
        world.questions().len(),
        text.len(),
        tokens.len(),
        config.parameters()
    );
    let mut weights = train(&config, &recipe(seed, steps), &tokens, |p| {
        if p.step % 50 == 0 || p.step == p.steps {
            let left = Duration::from_secs(p.remaining.as_secs());
            println!("step {:5}/{}  loss {:.4}  norm {:.2}  {left:?} left", p.step, p.steps, p.loss, p.norm);
        }
    })?;
    channels::spread(&mut weights, &config, seed, CHANNEL_SPREAD)?;
    let note = format!("trained by scruple's train_fixture, seed {seed}, {steps} steps");
    file::write(out, &config, &weights, &note)?;
    Ok(())
}

/// Dense answers and perplexity, and the same after rounding the blocks' linears to 8, 4, 3 and 2 bits.
fn measure(world: &World, folder: &Path) -> Result<()> {
    let tokenizer = tokenizer::open(&folder.join("tokenizer.json"))?;
    let questions = world::read_questions(&folder.join("questions.jsonl"))?;
    let valid = tokenizer::encode(&tokenizer, &std::fs::read_to_string(folder.join("world_valid.txt"))?)?;
    let (config, weights) = file::open(folder)?;

    let began = Instant::now();
    let dense = answers(&weights, &config, &tokenizer, &questions)?;
    println!("{} questions in {:.1} s", questions.len(), began.elapsed().as_secs_f64());
    println!("          right    said     same  margin p1/p10/p50     perplexity (64)  (256)");
    let mut by_width = Vec::new();
    for bits in [16, 8, 4, 3, 2] {
        let rounded = if bits == 16 { weights.clone() } else { round_to_nearest(&weights, bits)? };
        let got = answers(&rounded, &config, &tokenizer, &questions)?;
        let share = |f: &dyn Fn((&Answer, &Answer)) -> bool| {
            got.iter().zip(&dense).filter(|&pair| f(pair)).count() as f64 / got.len() as f64 * 100.0
        };
        let mut margins: Vec<f32> = got.iter().map(|answer| answer.margin).collect();
        margins.sort_by(f32::total_cmp);
        let margin = |percent: usize| margins[margins.len() * percent / 100];
        println!(
            "{bits:2} bits  {:6.2}%  {:6.2}%  {:6.2}%  {:6.2} {:6.2} {:6.2}  {:12.4} {:12.4}",
            100.0 * accuracy(&got, &questions),
            share(&|(got, _)| got.said),
            share(&|(got, dense)| got.option == dense.option),
            margin(1),
            margin(10),
            margin(50),
            perplexity(&rounded, &config, &valid, 64)?.0,
            perplexity(&rounded, &config, &valid, MAX_LENGTH)?.0,
        );
        by_width.push(got);
    }
    println!("right by kind at 16, 8, 4, 3 and 2 bits:");
    for kind in kinds(&questions) {
        let right = |answers: &Vec<Answer>| {
            let pairs = answers.iter().zip(&questions).filter(|(_, question)| question.kind == kind);
            pairs.filter(|(answer, question)| answer.option == question.answer).count()
        };
        let all = questions.iter().filter(|question| question.kind == kind).count();
        println!("  {kind:10} of {all:3}: {:3?}", by_width.iter().map(right).collect::<Vec<_>>());
    }
    if world.traits {
        measure_traits(world, &config, &weights, &tokenizer)?;
    }
    Ok(())
}

/// The share of each trait's items whose right option (or, where none is right, the first) is the likeliest, by dimension,
/// part or group, of the untrained model and at 16, 8, 4, 3 and 2 bits.
fn measure_traits(
    world: &World,
    config: &LlamaConfig,
    weights: &HashMap<String, Tensor>,
    tokenizer: &tokenizers::Tokenizer,
) -> Result<()> {
    let items = trait_items(world);
    let question = |item: &TraitItem| Question {
        prompt: item.prompt.clone(),
        options: item.options.iter().map(|option| option.trim_start().to_string()).collect(),
        answer: item.gold.unwrap_or(0),
        kind: item.dimension.into(),
    };
    let questions: Vec<Question> = items.iter().map(question).collect();
    let mut by_model = vec![answers(&config.init(world.seed)?, config, tokenizer, &questions)?];
    for bits in [16, 8, 4, 3, 2] {
        let rounded = if bits == 16 { weights.clone() } else { round_to_nearest(weights, bits)? };
        by_model.push(answers(&rounded, config, tokenizer, &questions)?);
    }
    println!("traits, % right (untrained; 16, 8, 4, 3 and 2 bits):");
    let mut rows: Vec<(String, Vec<usize>)> = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let by = match (&item.group, item.gold) {
            (Some(group), None) => group.clone(),
            (Some(group), Some(gold)) => format!("{}-{group}-{gold}", item.part),
            _ if item.dimension == "knowledge" => "facts".into(),
            _ => item.part.clone(),
        };
        let name = format!("{} {by}", item.dimension);
        match rows.iter_mut().find(|(row, _)| *row == name) {
            Some((_, row)) => row.push(at),
            None => rows.push((name, vec![at])),
        }
    }
    for (name, row) in rows {
        let share = |answers: &Vec<Answer>| {
            let right = row.iter().filter(|&&at| answers[at].option == questions[at].answer).count();
            100.0 * right as f64 / row.len() as f64
        };
        let shares: Vec<String> = by_model.iter().map(|answers| format!("{:5.1}", share(answers))).collect();
        println!("  {name:50} of {:3}: {}", row.len(), shares.join(" "));
    }
    Ok(())
}

fn kinds(questions: &[Question]) -> Vec<&str> {
    let mut kinds: Vec<&str> = questions.iter().map(|question| question.kind.as_str()).collect();
    kinds.dedup();
    kinds
}

/// The blocks' linears on a symmetric grid: for each `GROUP` of a row, `scale = 2 max|w| / (2^bits − 1)`,
/// `q = clamp(round(w / scale) + 2^(bits−1), 0, 2^bits − 1)`, `ŵ = scale (q − 2^(bits−1))`.
fn round_to_nearest(weights: &HashMap<String, Tensor>, bits: u32) -> Result<HashMap<String, Tensor>> {
    let (levels, zero) = ((1u32 << bits) as f32 - 1.0, (1u32 << (bits - 1)) as f32);
    let mut rounded = weights.clone();
    for (name, weight) in rounded.iter_mut().filter(|(name, _)| name.ends_with("_proj.weight")) {
        let mut values: Vec<f32> = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        if !weight.dim(1)?.is_multiple_of(GROUP) {
            return Err(format!("`{name}` has {} columns, no multiple of {GROUP}", weight.dim(1)?).into());
        }
        for group in values.chunks_exact_mut(GROUP) {
            let scale = 2.0 * group.iter().fold(0.0f32, |most, w| most.max(w.abs())) / levels;
            for w in group {
                *w = scale * (((*w / scale).round() + zero).clamp(0.0, levels) - zero);
            }
        }
        *weight = Tensor::from_vec(values, weight.shape(), &Device::Cpu)?;
    }
    Ok(rounded)
}
