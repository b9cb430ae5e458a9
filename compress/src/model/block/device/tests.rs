//! Blocks by candle held to blocks by the kernels, which are held to `transformers`: every family of the fixtures.

use std::path::Path;

use candle_core::{Device, Tensor};
use scruple_weights::Checkpoint;

use super::*;
use crate::{
    kernel::{
        tensor::{from_vec, with_f32},
        test_values::uniform,
    },
    model::{DecoderConfig, linear::DenseLinear},
};

/// Largest accepted difference, relative to the largest number of the stage: sums of some dozen products in another order,
/// which attention scores of ±20 magnify. A missing bias or a wrong rotation shows as 0.01 and more.
const MAX_RELATIVE_DIFFERENCE: f32 = 2e-5;

/// More than any window of the fixtures.
const TOKENS: usize = 24;

fn values(x: &Tensor) -> Vec<f32> {
    with_f32(x, <[f32]>::to_vec).unwrap()
}

#[track_caller]
fn assert_close(name: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let (found, expected) = (values(found), values(expected));
    let size = expected.iter().fold(0f32, |size, x| size.max(x.abs()));
    let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(apart <= MAX_RELATIVE_DIFFERENCE * size, "{name}: {apart} apart where the largest is {size}");
}

/// Every stage of `block` on the stream `x`, by name.
fn stages(block: &dyn StagedBlock, x: &Tensor) -> Vec<(&'static str, Tensor)> {
    let h = block.attention_input(x).unwrap();
    let heads = block.attention(&h).unwrap();
    let after = block.attention_output(x, &heads).unwrap();
    let m = block.mlp_input(if block.is_parallel() { x } else { &after }).unwrap();
    let hidden = block.mlp(&m, None).unwrap();
    let out = block.mlp_output(&after, &hidden, None).unwrap();
    vec![("norm", h), ("heads", heads), ("after", after), ("norm 2", m), ("hidden", hidden), ("out", out)]
}

#[test]
fn every_family_runs_as_by_the_kernels() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/decoders");
    let (mut run, mut refused) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
        let mut x = from_vec(uniform(TOKENS * config.hidden_size, 3), (TOKENS, config.hidden_size)).unwrap();
        for index in 0..config.blocks.len() {
            let load = || Block::load(&checkpoint, &config, None, index).unwrap();
            if config.blocks[index].mlp.experts.is_some() {
                let error = OnDevice::new(load(), Device::Cpu).unwrap_err().to_string();
                assert!(error.contains("leave --device out"), "{error}");
                refused += 1;
                continue;
            }
            let (kernels, mut on_device) = (load(), OnDevice::new(load(), Device::Cpu).unwrap());
            if index % 2 == 1 {
                on_device.scores = 1; // one key head after the other
            }
            let (expected, found) = (stages(&kernels, &x), stages(&on_device, &x));
            for ((stage, found), (_, expected)) in found.iter().zip(&expected) {
                assert_close(&format!("{name}, block {index}, {stage}"), found, expected);
            }
            x = expected.into_iter().next_back().unwrap().1;
            run += 1;
        }
    }
    assert!(run >= 50 && refused >= 4, "{run} blocks run, {refused} refused");
}

#[test]
fn replaced_and_shorter_inputs_are_seen() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/decoders/llama");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
    let load = || Block::load(&checkpoint, &config, None, 0).unwrap();
    let (mut kernels, mut on_device) = (load(), OnDevice::new(load(), Device::Cpu).unwrap());
    let x = |tokens: usize| from_vec(uniform(tokens * config.hidden_size, 4), (tokens, config.hidden_size)).unwrap();
    let before = stages(&on_device, &x(9)).pop().unwrap().1;
    for stage in Stage::ALL {
        let spec = kernels.spec.at(stage)[0].clone();
        let weight = uniform(spec.out_features * spec.in_features, 8);
        let linear = || Box::new(DenseLinear::from_f32(&weight, spec.shape(), None).unwrap());
        StagedBlock::replace(&mut kernels, stage, 0, linear());
        on_device.replace(stage, 0, linear());
    }
    for tokens in [9, 5, 12] {
        let (expected, found) = (stages(&kernels, &x(tokens)), stages(&on_device, &x(tokens)));
        assert_close("out", &found[5].1, &expected[5].1);
    }
    let after = stages(&on_device, &x(9)).pop().unwrap().1;
    assert!(values(&before) != values(&after), "the weights did not change");
}
