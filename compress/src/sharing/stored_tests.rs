//! Models that run from their pools beside the same models expanded.

use std::path::Path;

use scruple_weights::Checkpoint;

use super::{
    Options, Projected,
    expand::expand,
    file::SharedFile,
    modules::{Choice, Size},
    project::project,
    stored::Pool,
};
use crate::model::{Decoder, decoder::KvCache};

/// Rotary and learned positions, transposed and fused linears, tied and untied heads, experts, embeddings of another width.
const FAMILIES: [&str; 9] =
    ["llama", "gpt2", "opt", "opt-projected", "gpt-neox", "falcon-new", "gemma2", "qwen3", "mixtral"];

/// A decoder of the fixtures projected, and the folder of the pool expanded.
fn pool_and_dense(family: &str, folder: &Path) -> (Checkpoint, Checkpoint) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/decoders").join(family);
    let source = Checkpoint::open(source).unwrap();
    let (pool, dense) = (folder.join("pool"), folder.join("dense"));
    let choice = Choice { least_values: 64, ..Choice::default() };
    // So close to 1 that numbers stay as large as the model's own.
    let options = Options { choice, size: Size::Rate(1.3), allow_lossy: true, seed: 3, ..Options::default() };
    project(&source, Some(&pool), &options, &|_: &Projected| Ok(Vec::new()), &mut |_, _| {}).unwrap();
    expand(&SharedFile::open(&pool).unwrap(), &dense, &mut |_, _| {}).unwrap();
    (Checkpoint::open(&pool).unwrap(), Checkpoint::open(&dense).unwrap())
}

#[test]
fn a_decoder_gives_the_same_bits_from_its_pool_and_expanded() {
    for family in FAMILIES {
        let folder = tempfile::tempdir().unwrap();
        let (pool, dense) = pool_and_dense(family, folder.path());
        let (from_pool, expanded) = (Decoder::open(&pool).unwrap(), Decoder::open(&dense).unwrap());
        let ids: Vec<u32> = (0..11).map(|id| id * 7 % from_pool.config().vocab_size as u32).collect();
        let run = |model: &Decoder| {
            let mut cache = KvCache::default();
            let mut logits = vec![model.next_logits(&ids, &mut cache).unwrap()]; // many tokens, then one, then three
            logits.push(model.next_logits(&[1], &mut cache).unwrap());
            logits.push(model.next_logits(&[2, 0, 5], &mut cache).unwrap());
            logits
        };
        let (found, expected) = (run(&from_pool), run(&expanded));
        assert!(expected.iter().flatten().all(|value| value.is_finite()), "{family}");
        assert_eq!(found, expected, "{family}");
    }
}

#[test]
fn what_is_held_is_the_pool_and_not_the_matrices() {
    let folder = tempfile::tempdir().unwrap();
    let (pool, dense) = pool_and_dense(FAMILIES[0], folder.path());
    let held = Pool::of(&pool).unwrap().unwrap();
    let file = SharedFile::open(&folder.path().join("pool")).unwrap();
    assert_eq!(held.bytes(), 4 * file.sharing().fold.slots());
    assert!(Pool::of(&dense).unwrap().is_none());
    let (bits, weights) = Decoder::open(&pool).unwrap().linear_bits();
    let a_weight = bits as f64 / weights as f64;
    assert!((a_weight - 32.0 / 1.3).abs() < 0.01, "{a_weight} bits a weight");
}

#[test]
fn what_needs_the_tensors_says_which_verb_writes_them() {
    let folder = tempfile::tempdir().unwrap();
    let (pool, _) = pool_and_dense(FAMILIES[0], folder.path());
    let recipe = crate::recipe::Recipe::parse(Path::new("r.toml"), "[[stage]]\nmethod = \"rtn\"\n").unwrap();
    let error = crate::plan::Plan::new(recipe, &pool).unwrap_err().to_string();
    assert!(error.contains("its tensors share a pool") && error.contains("scruple share expand"), "{error}");
}
