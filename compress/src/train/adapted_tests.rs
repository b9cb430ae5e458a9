use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::Var;

use super::*;
use crate::data::random::Stream;

/// Tiny models of every family, each as its current configuration says.
fn fixtures(folder: &Path) -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/decoders");
    let mut all = Vec::new();
    for fixture in fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        all.push((fixture.file_name().unwrap().to_string_lossy().into_owned(), fixture));
    }
    all.sort();
    assert!(folder.is_dir() && all.len() > 20);
    all
}

fn everything() -> PathFilter {
    PathFilter::new(vec!["*".into()], Vec::new()).unwrap()
}

/// What learns of `model`, drawn so that no gradient is 0: `by` times the numbers of a stream on top of how it begins.
fn drawn(model: &Adapted, rank: usize, by: f64) -> Vec<(Learned, Vec<f32>)> {
    let targets = everything();
    let choice = Choice { rank, targets: &targets, norms: true, blocks: &[0, 1, 2, 3, 4, 5, 6, 7] };
    let learned = model.learned(&choice).unwrap();
    let draw = |(number, learned): (usize, Learned)| {
        let stream = &mut Stream::new(1, "test", number as u64);
        let start = learned.start.clone().unwrap_or_else(|| vec![0.0; learned.shape.iter().product()]);
        let values = start.iter().map(|x| x + (by * stream.normal()) as f32).collect();
        (learned, values)
    };
    learned.into_iter().enumerate().map(draw).collect()
}

fn tensors(learned: &[(Learned, Vec<f32>)]) -> HashMap<String, Tensor> {
    let var = |(learned, values): &(Learned, Vec<f32>)| {
        let var = Var::from_slice(values, learned.shape.as_slice(), &Device::Cpu).unwrap();
        (learned.name.clone(), var.into_inner())
    };
    learned.iter().map(var).collect()
}

fn ids(model: &Adapted, count: usize) -> Vec<u32> {
    (0..count).map(|n| (n * n * 7 % 31 % model.config.vocab_size) as u32).collect()
}

#[test]
fn every_family_says_what_its_decoder_says_or_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut refused = Vec::new();
    for (name, path) in fixtures(folder.path()) {
        match Adapted::open(&Checkpoint::open(&path).unwrap(), 0.5) {
            Ok(model) => {
                // Adapters that begin at nothing change nothing.
                let learned = tensors(&drawn(&model, 2, 0.0));
                model.compare(&ids(&model, 19), &learned).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            Err(error) => refused.push((name, error.to_string())),
        }
    }
    let names: Vec<&str> = refused.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["mixtral", "opt-projected", "qwen3-moe", "qwen3-moe-raw"], "{refused:?}");
}

#[test]
fn gradients_equal_finite_differences() {
    // The loss is near 1 with rounding of 1e-6; over such a step that is 1e-4 in the slope of a direction of length 1.
    const STEP: f32 = 5e-3;
    const LARGEST_DIFFERENCE: f64 = 2e-3;
    let families = ["llama", "gemma2", "gpt2", "gpt-neox", "falcon", "olmo2", "qwen3", "phi3", "opt", "mistral-window"];
    let folder = tempfile::tempdir().unwrap();
    for (name, path) in fixtures(folder.path()).into_iter().filter(|(name, _)| families.contains(&name.as_str())) {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let model = Adapted::open(&checkpoint, 0.5).unwrap();
        let start = drawn(&model, 2, 0.2);
        let ids = ids(&model, 11);
        let taught = model.decoder.hidden_once(&ids).unwrap();
        let loss = |learned: &HashMap<String, Tensor>| {
            let hidden = model.hidden(&ids, learned).unwrap();
            let (sum, gradient) = model.divergence(&hidden, &model.decoder, &taught, 2.0, 1.0 / 11.0).unwrap();
            (4.0 * sum / 11.0, (hidden, gradient))
        };
        let vars = tensors(&start);
        let (_, (hidden, gradient)) = loss(&vars);
        let grads = (hidden * gradient).unwrap().sum_all().unwrap().backward().unwrap();
        let mut largest = 0.0f64;
        for (at, (learned, values)) in start.iter().enumerate() {
            let grad = grads.get(&vars[&learned.name]);
            let grad = grad.unwrap_or_else(|| panic!("{name}: `{}` has no gradient", learned.name));
            let grad: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
            // Along a direction of length 1 that is none of the axes.
            let stream = &mut Stream::new(2, "direction", at as u64);
            let direction: Vec<f64> = values.iter().map(|_| stream.normal()).collect();
            let length = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
            let moved = |steps: f32| {
                let mut moved = start.clone();
                let by = |(x, d): (&mut f32, &f64)| *x += steps * STEP * (d / length) as f32;
                moved[at].1.iter_mut().zip(&direction).for_each(by);
                loss(&tensors(&moved)).0
            };
            let slope = (8.0 * (moved(1.0) - moved(-1.0)) - (moved(2.0) - moved(-2.0))) / (12.0 * f64::from(STEP));
            let found: f64 = grad.iter().zip(&direction).map(|(g, d)| f64::from(*g) * d / length).sum();
            let difference = (slope - found).abs() / slope.abs().max(1.0);
            assert!(difference < LARGEST_DIFFERENCE, "{name}, {}: {found}, slope {slope}", learned.name);
            largest = largest.max(found.abs());
        }
        assert!(largest > 0.01, "{name}: gradients of nothing, {largest}");
    }
}

#[test]
fn only_what_is_chosen_learns_and_an_adapter_is_merged_as_it_ran() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/decoders");
    for (name, linear) in [("llama", "model.layers.1.mlp.up_proj"), ("gpt2", "transformer.h.1.mlp.c_fc")] {
        let checkpoint = Checkpoint::open(root.join(name)).unwrap();
        let model = Adapted::open(&checkpoint, 0.5).unwrap();
        let targets = PathFilter::new(vec![linear.into()], Vec::new()).unwrap();
        let choice = Choice { rank: 2, targets: &targets, norms: false, blocks: &[0, 1, 2, 3, 4, 5, 6, 7] };
        let learned = model.learned(&choice).unwrap();
        let names: Vec<&str> = learned.iter().map(|learned| learned.name.as_str()).collect();
        assert_eq!(names, [format!("{linear}.lora_a"), format!("{linear}.lora_b")]);
        let none = Choice { blocks: &[0], ..choice };
        assert!(model.learned(&none).unwrap().is_empty());
        // x (W + s B A)ᵀ by the merged weight and by the adapter.
        let start: Vec<(Learned, Vec<f32>)> =
            drawn(&model, 2, 0.3).into_iter().filter(|(learned, _)| names.contains(&learned.name.as_str())).collect();
        let merged = model.merged(linear, &start[0].1, &start[1].1).unwrap();
        let view = checkpoint.tensor(&format!("{linear}.weight")).unwrap();
        let before = view.to_f32().unwrap();
        let (out, inner) = (start[1].0.shape[0], start[0].0.shape[1]);
        let at = |row: usize, column: usize| match view.shape() == [out, inner] {
            true => row * inner + column,
            false => column * out + row,
        };
        for (row, column) in [(0, 0), (1, 3), (out - 1, inner - 2)] {
            let product: f32 = (0..2).map(|r| start[1].1[row * 2 + r] * start[0].1[r * inner + column]).sum();
            let expected = before[at(row, column)] + 0.5 * product;
            assert!((merged[at(row, column)] - expected).abs() < 1e-6, "{name} at ({row}, {column})");
        }
        assert!(model.merged("model.layers.9.mlp.up_proj", &start[0].1, &start[1].1).is_none());
    }
}
