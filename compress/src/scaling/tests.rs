use std::path::PathBuf;

use candle_core::Tensor;
use scruple_weights::Checkpoint;

use super::*;
use crate::{
    kernel::{
        tensor::{from_vec, with_f32},
        test_values::uniform,
    },
    model::{
        DecoderConfig,
        block::{Block, BlockCache},
        linear::DenseLinear,
        spec::Stage,
    },
};

/// Largest accepted difference of a block's outputs, relative to the largest of what it adds: f32 rounding, which
/// attention scores of ±20 magnify.
const MAX_RELATIVE_DIFFERENCE: f32 = 5e-5;

const TOKENS: usize = 12;

fn fixtures() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/decoders");
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.join("config.json").is_file());
    found.sort();
    found
}

fn flat(x: &Tensor) -> Vec<f32> {
    with_f32(x, <[f32]>::to_vec).unwrap()
}

/// Block `index` with every one of its input groups scaled at random, and how many were.
fn scaled_block(checkpoint: &Checkpoint, config: &DecoderConfig, index: usize) -> (Block, usize) {
    let mut block = Block::load(checkpoint, config, None, index).unwrap();
    let spec = block.spec().clone();
    let name = |place: usize| config.linear_name(index, &spec.linears[place].name);
    let mut found = BlockScales::default();
    let (groups, _) = input_groups(&spec);
    for (number, group) in groups.iter().enumerate() {
        let count = group.classes.iter().max().unwrap() + 1;
        let mut scales: Vec<f32> = uniform(count as usize, number as u64).iter().map(|u| (1.4 * u).exp()).collect();
        match &group.fold {
            Fold::Norm(norm) => {
                let path = format!("{}.{}", config.block_path(index), norm.name);
                let mut folded = FoldedNorm::load(checkpoint, &path, norm.kind).unwrap();
                // A bias rounded to the stored type anew would be all that differs.
                folded.bias.iter_mut().for_each(|(_, dtype)| *dtype = ScaleDtype::F32);
                let asked = scales.clone();
                folded.settle(&mut scales);
                // Rounding to the stored type moves a scale by a few of its last places.
                let moved = asked.iter().zip(&scales).filter(|(a, b)| (*a / *b - 1.0).abs() > 0.1).count();
                assert!(moved <= count as usize / 8, "{path}: {moved} of {count} scales were moved");
                let weight: Vec<f32> = (0..scales.len()).map(|class| folded.divided(class, scales[class])).collect();
                let bias = folded.bias(&scales);
                block.set_norm(norm.name, &weight, bias.as_ref().map(|(bias, _)| bias.as_slice()));
            }
            Fold::Rows { linear, rows } => {
                found.add_rows(&name(*linear), spec.linears[*linear].out_features, rows, &scales);
            }
        }
        group.readers.iter().for_each(|&reader| found.add_columns(&name(reader), &group.classes, &scales));
    }
    for stage in Stage::ALL {
        for (number, place) in spec.range(stage).enumerate() {
            let linear = &spec.linears[place];
            let mut values = flat(&block.all_linears()[place].weight().unwrap());
            found.apply(&name(place), &mut values);
            let bias = checkpoint.get(&format!("{}.bias", name(place))).map(|view| view.to_f32().unwrap());
            let bias = bias.map(|mut bias| {
                found.apply_to_bias(&name(place), &mut bias, Some(ScaleDtype::F32));
                bias
            });
            let dense = DenseLinear::from_f32(&values, linear.shape(), bias).unwrap();
            block.replace(stage, number, Box::new(dense));
        }
    }
    (block, groups.len())
}

#[test]
fn scaled_and_folded_blocks_compute_the_same_in_every_family() {
    let mut scaled = 0;
    for folder in fixtures() {
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
        for index in 0..config.n_blocks {
            let dense = Block::load(&checkpoint, &config, None, index).unwrap();
            let (folded, groups) = scaled_block(&checkpoint, &config, index);
            scaled += groups;
            let x = from_vec(uniform(TOKENS * config.hidden_size, 5), (TOKENS, config.hidden_size)).unwrap();
            let [a, b] = [&dense, &folded].map(|block| flat(&block.forward(&x, &mut BlockCache::default()).unwrap()));
            let added = a.iter().zip(flat(&x)).fold(0.0f32, |largest, (y, x)| largest.max((y - x).abs()));
            let worst = a.iter().zip(&b).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs())) / added;
            assert!(worst < MAX_RELATIVE_DIFFERENCE, "{}, block {index}: {worst:.1e}", folder.display());
        }
    }
    assert!(scaled > 150, "only {scaled} groups of inputs were scaled");
}

fn of(name: &str) -> (Vec<InputGroup>, Vec<LeftAlone>) {
    let folder = fixtures().into_iter().find(|path| path.ends_with(name)).unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    input_groups(&DecoderConfig::from_checkpoint(&checkpoint).unwrap().blocks[0])
}

#[test]
fn what_can_be_scaled_follows_from_the_wiring() {
    let reasons = |left: &[LeftAlone]| left.iter().map(|(_, reason)| *reason).collect::<Vec<_>>();
    let (groups, left) = of("llama");
    assert_eq!((groups.len(), left.len()), (4, 0));
    let (groups, left) = of("olmo2"); // norms behind attention and MLP alone
    assert_eq!((groups.len(), reasons(&left)), (2, vec!["no norm stands before it"; 2]));
    let (groups, left) = of("gpt2");
    assert_eq!((groups.len(), left.len()), (3, 1));
    assert!(reasons(&left)[0].contains("activation"));
    let (groups, left) = of("opt"); // ReLU
    assert_eq!((groups.len(), left.len()), (4, 0));
    let (groups, left) = of("falcon"); // one norm for both
    assert_eq!((groups.len(), left.len()), (2, 1));
    assert_eq!(groups[0].readers.len(), 2, "{:?}", groups[0]);
    let (groups, left) = of("mixtral");
    assert!(groups.iter().any(|group| group.expert == Some(1)) && reasons(&left)[0].contains("router"));
}

#[test]
fn query_heads_that_read_one_value_head_share_scales() {
    let (groups, _) = of("llama");
    let output = groups.iter().find(|group| group.stage == Stage::AttentionOutput).unwrap();
    let count = output.classes.iter().max().unwrap() + 1;
    assert!((count as usize) < output.classes.len(), "the fixture has grouped queries");
    let Fold::Rows { rows, .. } = &output.fold else { panic!("{:?}", output.fold) };
    assert_eq!(rows.len(), count as usize);
}

#[test]
fn a_norm_gives_back_the_scales_it_was_divided_by() {
    let weight: Vec<f32> = uniform(64, 1).iter().map(|w| ScaleDtype::Bf16.round(*w)).collect();
    for offset in [0.0, 1.0] {
        let mut weight = weight.clone();
        weight[5] = -offset; // an input that is always zero
        let norm = FoldedNorm { offset, weight, dtype: ScaleDtype::Bf16, bias: None };
        let mut scales: Vec<f32> = uniform(64, 2).iter().map(|u| (3.0 * u).exp()).collect();
        scales[9] = 1.0;
        norm.settle(&mut scales);
        assert_eq!((scales[5], scales[9]), (1.0, 1.0));
        for (class, &scale) in scales.iter().enumerate() {
            let new = norm.divided(class, scale);
            assert_eq!(ScaleDtype::Bf16.round(new), new);
            assert_eq!(norm.between(class, new).to_bits(), scale.to_bits(), "class {class}");
        }
    }
}
