//! Layers taken out of toy models and of tiny models of every family.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use scruple_weights::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, WriterOptions};
use serde_json::{Value, json};

use super::{
    DropOptions, Removal, drop_layers,
    evaluate::{Corpus, Evaluator, Objective, Race},
    scan,
    search::{self, Search, Settings},
    sweep::{self, Work, applications},
    verify,
};
use crate::{
    Result,
    data::random::draw,
    kernel::{activation::log_sum_exp, tensor::with_f32, test_values::uniform},
    model::{Decoder, Encoder},
};

const HIDDEN: usize = 32;
const VOCAB: usize = 64;

/// A loss by another way through the same kernels differs by rounding.
const MAX_LOSS_DIFFERENCE: f64 = 1e-5;

/// The dense model's log-probabilities are kept in f32: KL of a model to itself is not quite 0.
const LOG_P_ROUNDING: f64 = 1e-6;

/// Writes a folder of tensors in f32 with `config`.
fn write(folder: &Path, config: &Value, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let specs = tensors.iter().map(|(name, shape, _)| TensorSpec::new(name, Dtype::F32, shape.clone())).collect();
    let mut writer = CheckpointWriter::create(folder, specs, WriterOptions::default()).unwrap();
    for (name, _, values) in tensors {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.write(name, &bytes).unwrap();
    }
    writer.add_file("config.json", config.to_string().as_bytes()).unwrap();
    writer.finish().unwrap();
}

/// A Llama of `layers` layers; those of `idle` add nothing to the stream.
pub(super) fn toy(folder: &Path, layers: usize, idle: &[usize]) -> PathBuf {
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true, "max_position_embeddings": 128,
    });
    let mut tensors = Vec::new();
    let mut push = |name: String, shape: &[usize], gain: f32| {
        let seed = name.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let count = shape.iter().product();
        let values = uniform(count, seed).into_iter().map(|x| match shape {
            [_] => 1.0 + 0.1 * x,
            _ => x * gain,
        });
        tensors.push((name, shape.to_vec(), values.collect::<Vec<f32>>()));
    };
    push("model.embed_tokens.weight".into(), &[VOCAB, HIDDEN], 1.0);
    for layer in 0..layers {
        // Layers of different weight, so that some can go and others cannot.
        let gain = if idle.contains(&layer) { 0.0 } else { 0.05 + 0.03 * ((layer * 5) % 7) as f32 };
        for (name, shape, gain) in [
            ("input_layernorm", &[HIDDEN][..], 1.0),
            ("self_attn.q_proj", &[HIDDEN, HIDDEN], 0.3),
            ("self_attn.k_proj", &[HIDDEN / 2, HIDDEN], 0.3),
            ("self_attn.v_proj", &[HIDDEN / 2, HIDDEN], 0.3),
            ("self_attn.o_proj", &[HIDDEN, HIDDEN], gain),
            ("post_attention_layernorm", &[HIDDEN], 1.0),
            ("mlp.gate_proj", &[48, HIDDEN], 0.3),
            ("mlp.up_proj", &[48, HIDDEN], 0.3),
            ("mlp.down_proj", &[HIDDEN, 48], gain),
        ] {
            push(format!("model.layers.{layer}.{name}.weight"), shape, gain);
        }
    }
    push("model.norm.weight".into(), &[HIDDEN], 1.0);
    let path = folder.join(format!("toy-{layers}-{}", idle.len()));
    write(&path, &config, &tensors);
    path
}

fn ids(count: usize) -> Vec<u32> {
    (0..count as u64).map(|index| (draw(3, 9, index) % VOCAB as u64) as u32).collect()
}

fn corpus(window: usize, tokens: usize, share: f64) -> Corpus {
    Corpus::windows(&ids(tokens + 1), window, tokens, share, 5).unwrap()
}

fn settings(sizes: impl IntoIterator<Item = usize>, race: f64) -> Settings {
    Settings {
        sizes: sizes.into_iter().collect(),
        protect_first: 0,
        protect_last: 0,
        race: Race { errors: race, batch: 1 },
        shortlist: None,
        exhaustive_limit: 1000,
        generations: 20,
        seed: 1,
    }
}

fn pruned(source: &Checkpoint, removal: &Removal, out: &Path) -> Result<Checkpoint> {
    drop_layers(source, removal, out, &DropOptions::default(), &mut |_, _| {})?;
    Ok(Checkpoint::open(out)?)
}

/// Mean negative log-likelihood and KL to `dense` of a model on its own, by the definitions.
fn by_definition(model: &Decoder, dense: &Decoder, corpus: &Corpus) -> Vec<(f64, f64)> {
    let log_p = |model: &Decoder, ids: &[u32], row: usize| -> Vec<f64> {
        let hidden = model.hidden_once(ids).unwrap().narrow(0, row, 1).unwrap();
        with_f32(&model.logits(&hidden).unwrap(), |logits| {
            let lse = log_sum_exp(logits);
            logits.iter().map(|&logit| f64::from(logit) - lse).collect()
        })
        .unwrap()
    };
    let of = |sequence: &sweep::Sequence| {
        let (mut nll, mut kl) = (0.0, 0.0);
        for (&row, &target) in sequence.rows.iter().zip(&sequence.targets) {
            let (p, q) = (log_p(dense, &sequence.ids, row), log_p(model, &sequence.ids, row));
            nll -= q[target as usize];
            kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        }
        (nll / sequence.rows.len() as f64, kl / sequence.rows.len() as f64)
    };
    corpus.sequences().iter().map(of).collect()
}

#[test]
fn a_sweep_gives_the_losses_of_the_models_written_without_the_layers() {
    let folder = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(toy(folder.path(), 6, &[])).unwrap();
    let dense = Decoder::open(&source).unwrap();
    let corpus = corpus(24, 48, 0.5);
    let windows = (0..6).flat_map(|first| (1..=6 - first).map(move |n| (first..first + n).collect::<Removal>()));
    let mut sets: Vec<Removal> = windows.filter(|set| set.len() < 6).collect();
    sets.push(Removal::from(vec![0, 2, 5]));
    let sequences: Vec<_> = corpus.sequences().iter().collect();
    let mut work = Work::default();
    let references = sweep::references(&dense, &sequences, &mut work).unwrap();
    let references: Vec<_> = references.iter().collect();
    let mut work = Work::default();
    let losses = sweep::losses(&dense, &sets, &sequences, &references, &mut work).unwrap();
    assert_eq!(work.layer_tokens, applications(&sets, 6) * 48);
    for (number, (set, losses)) in sets.iter().zip(&losses).enumerate() {
        let model = pruned(&source, set, &folder.path().join(number.to_string())).unwrap();
        let expected = by_definition(&Decoder::open(&model).unwrap(), &dense, &corpus);
        for (loss, (nll, kl)) in losses.iter().zip(expected) {
            assert!((loss.nll - nll).abs() < MAX_LOSS_DIFFERENCE, "{set}: {} against {nll}", loss.nll);
            assert!((loss.kl - kl).abs() < MAX_LOSS_DIFFERENCE, "{set}: {} against {kl}", loss.kl);
        }
        // A set among others is the set alone, to the last bit: what is remembered does not depend on the company.
        let alone = sweep::losses(&dense, std::slice::from_ref(set), &sequences, &references, &mut work).unwrap();
        assert_eq!(alone[0], *losses, "{set}");
    }
}

#[test]
fn windows_are_of_one_length() {
    // Every token counts alike in a mean over windows, so none is shorter than the others, unless it is alone.
    for (tokens, lengths) in [(64, vec![24, 24]), (72, vec![24; 3]), (47, vec![24]), (20, vec![20]), (1, vec![1])] {
        let corpus = Corpus::windows(&ids(tokens + 1), 24, tokens.max(2), 1.0, 5).unwrap();
        assert_eq!(corpus.sequences().iter().map(|s| s.ids.len()).collect::<Vec<_>>(), lengths, "{tokens}");
    }
}

#[test]
fn a_sweep_shares_what_sets_share() {
    let singles: Vec<Removal> = (0..10).map(|layer| Removal::from(vec![layer])).collect();
    // One layer less to apply at each further removal, and the dense way is not among them.
    assert_eq!(applications(&singles, 10), 10 * 9 / 2 + 9);
    assert_eq!(applications(&[Removal::default()], 10), 10);
    let mut with_dense = singles;
    with_dense.push(Removal::default());
    assert_eq!(applications(&with_dense, 10), 10 * 11 / 2);
    assert_eq!(applications(&[], 10), 0);
}

#[test]
fn searches_end_no_worse_than_those_they_contain() {
    let folder = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(toy(folder.path(), 7, &[])).unwrap();
    let model = Decoder::open(&source).unwrap();
    let mut evaluator = Evaluator::new(&model, corpus(16, 64, 1.0), Objective::Kl);
    let scanned = scan::scan(&model, evaluator.corpus().sequences(), 0, false, &mut |_| {}).unwrap();
    let settings = settings(1..=5, 0.0);
    let mut best = Vec::new();
    let mut losses = |name: &str| -> Vec<f64> {
        let search = Search::parse(name).unwrap();
        let found = search::run(&mut evaluator, &search, &settings, &scanned.angular, &best).unwrap();
        assert_eq!(found.iter().map(|found| found.removed.len()).collect::<Vec<_>>(), [1, 2, 3, 4, 5], "{name}");
        if search.kind == search::Kind::Exhaustive {
            best = found.iter().map(|found| found.removed.clone()).collect();
        }
        found.iter().map(|found| found.loss).collect()
    };
    let (greedy_first, plain) = (losses("greedy"), losses("beam:3"));
    let [exhaustive, beam, greedy, swapped, window, dp, evolved] =
        ["exhaustive", "beam:3", "greedy", "greedy+swap", "window", "dp", "evolve"].map(&mut losses);
    for k in 0..5 {
        assert!(exhaustive[k] <= plain[k] && plain[k] <= greedy[k], "{k}: {exhaustive:?} {plain:?} {greedy:?}");
        assert!(exhaustive[k] <= swapped[k] && swapped[k] <= greedy[k], "{k}: {swapped:?}");
        assert!(exhaustive[k] <= window[k] && exhaustive[k] <= dp[k] && exhaustive[k] <= evolved[k]);
        assert!(evolved[k] <= greedy[k] && evolved[k] <= window[k] && evolved[k] <= dp[k], "{k}: {evolved:?}");
    }
    assert_eq!(exhaustive[0], greedy[0]);
    // What is known beforehand helps a beam, and greedy stays what it is called.
    assert_eq!((beam, greedy), (exhaustive, greedy_first));
    // A limit that is too low is said before anything is scored.
    let few = Settings { exhaustive_limit: 5, ..settings };
    let error =
        search::run(&mut evaluator, &Search::parse("exhaustive").unwrap(), &few, &scanned.angular, &[]).unwrap_err();
    assert!(error.to_string().contains("--exhaustive-limit"), "{error}");
}

#[test]
fn idle_layers_are_found_by_every_search() {
    let folder = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(toy(folder.path(), 8, &[3, 4])).unwrap();
    let model = Decoder::open(&source).unwrap();
    for race in [0.0, 2.0] {
        let mut evaluator = Evaluator::new(&model, corpus(16, 128, 0.5), Objective::Kl);
        let scanned = scan::scan(&model, evaluator.corpus().sequences(), 0, false, &mut |_| {}).unwrap();
        // Off by one, it would be a neighbour whose influence is 0.
        let still: Vec<usize> = (0..8).filter(|&layer| scanned.layers[layer].influence.value == 0.0).collect();
        assert_eq!(still, [3, 4]);
        assert_eq!((scanned.angular.distance(3, 1), scanned.angular.distance(3, 2)), (0.0, 0.0));
        assert_eq!(scanned.groups[0], [4, 3]);
        for name in ["greedy", "window", "dp", "beam:2", "evolve", "exhaustive"] {
            let searched = Search::parse(name).unwrap();
            let found = search::run(&mut evaluator, &searched, &settings([2], race), &scanned.angular, &[]).unwrap();
            assert_eq!(found[0].removed.to_string(), "3-4", "{name}");
            assert!(found[0].loss.abs() < LOG_P_ROUNDING, "{name}: {}", found[0].loss);
        }
    }
}

#[test]
fn what_was_scored_is_not_scored_again() {
    let folder = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(toy(folder.path(), 6, &[])).unwrap();
    let model = Decoder::open(&source).unwrap();
    let journal = folder.path().join("journal");
    fs::create_dir(&journal).unwrap();
    let scores = || {
        let names = fs::read_dir(&journal).unwrap().map(|entry| entry.unwrap().path());
        names.collect::<Vec<_>>().pop().unwrap()
    };
    let search = || {
        let mut walked = 0;
        let mut evaluator = Evaluator::new(&model, corpus(16, 96, 0.5), Objective::Kl)
            .with_progress(|done| walked = done)
            .remember_in(&journal, "toy")
            .unwrap();
        let angular = scan::Angular::new(6, |_, n| n as f64);
        let found =
            search::run(&mut evaluator, &Search::parse("beam:2").unwrap(), &settings(1..=3, 2.0), &angular, &[])
                .unwrap();
        let work = evaluator.work();
        drop(evaluator);
        ((found, work), walked)
    };
    let (whole, walked) = search();
    assert!(walked > 0);
    assert_eq!(search(), (whole.clone(), 0));
    // Killed at any byte, it goes on to the same end.
    let bytes = fs::read(scores()).unwrap();
    for share in [0.0, 0.3, 0.55, 0.9, 0.99] {
        fs::write(scores(), &bytes[..(bytes.len() as f64 * share) as usize]).unwrap();
        let (again, rest) = search();
        assert_eq!(again, whole);
        assert!(rest > 0 && rest <= walked);
        assert_eq!(fs::read(scores()).unwrap(), bytes);
    }
}

#[test]
fn a_race_drops_only_what_is_behind() {
    let folder = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(toy(folder.path(), 8, &[5])).unwrap();
    let model = Decoder::open(&source).unwrap();
    let candidates: Vec<Removal> = (0..8).map(|layer| Removal::from(vec![layer])).collect();
    let select = |errors: f64| {
        let mut evaluator = Evaluator::new(&model, corpus(16, 256, 1.0), Objective::Kl);
        evaluator.select(&candidates, 1, Race { errors, batch: 1 }).unwrap()
    };
    let (all, raced) = (select(0.0), select(2.0));
    assert_eq!((all[0].set.to_string(), raced[0].set.to_string()), ("5".into(), "5".into()));
    assert!(all.iter().all(|one| one.units == 16));
    assert!(raced[1..].iter().any(|one| one.units < 16), "{raced:?}");
    assert!(!all[1].ties(2.0) && all[0].ties(2.0));
}

/// Tiny models of every family, by both forms of their configuration.
fn fixtures(kind: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(kind);
    let folders = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    folders.collect::<BTreeSet<_>>().into_iter().collect()
}

#[test]
fn every_family_does_without_a_layer_what_it_did_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mut written, mut refused) = (0, Vec::new());
    for fixture in fixtures("decoders") {
        let name = fixture.file_name().unwrap().to_string_lossy().into_owned();
        for form in ["config.json", "config_v4.json"] {
            let model = folder.path().join(format!("{name}-{form}"));
            fs::create_dir(&model).unwrap();
            fs::copy(fixture.join("model.safetensors"), model.join("model.safetensors")).unwrap();
            fs::copy(fixture.join(form), model.join("config.json")).unwrap();
            let source = Checkpoint::open(&model).unwrap();
            let layers = Decoder::open(&source).unwrap().blocks().len();
            for layer in 0..layers {
                let out = folder.path().join(format!("{name}-{form}-{layer}"));
                match pruned(&source, &vec![layer].into(), &out) {
                    Ok(pruned) => {
                        let found = verify::verify(&pruned, &source).unwrap();
                        assert_eq!(found.faults, [""; 0], "{name} without {layer}");
                        assert_eq!(found.largest_logit_difference, Some(0.0), "{name} without {layer}");
                        written += 1;
                    }
                    Err(error) => {
                        assert!(!out.exists());
                        refused.push((name.clone(), layer, error.to_string()));
                    }
                }
            }
        }
    }
    assert!(written > 100, "{written}");
    // Only what GPT-2 makes of a layer's number cannot be said; the last layer can go.
    assert!(refused.iter().all(|(name, layer, _)| name == "gpt2-inverse" && *layer == 0), "{refused:?}");
    assert_eq!(refused.len(), 2);
    for fixture in fixtures("encoders") {
        let name = fixture.file_name().unwrap().to_string_lossy().into_owned();
        let source = Checkpoint::open(&fixture).unwrap();
        let out = folder.path().join(format!("encoder-{name}"));
        let found = verify::verify(&pruned(&source, &vec![0].into(), &out).unwrap(), &source).unwrap();
        assert_eq!((found.faults, found.largest_logit_difference), (Vec::new(), Some(0.0)), "{name}");
    }
}

/// The largest difference between a model without layer `layer` and the same with the outputs of its halves set to zero.
fn zeroed(fixture: &Path, layer: usize, outputs: &[&str]) -> f32 {
    let folder = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(fixture).unwrap();
    let tensors: Vec<_> = source
        .tensors()
        .map(|view| {
            let mut values = view.to_f32().unwrap();
            let of_layer = view.name().contains(&format!(".{layer}."));
            if of_layer && outputs.iter().any(|output| view.name().contains(output)) {
                values.fill(0.0);
            }
            (view.name().to_owned(), view.shape().to_vec(), values)
        })
        .collect();
    let path = folder.path().join("zeroed");
    write(&path, source.config().unwrap(), &tensors);
    let zeroed = Checkpoint::open(&path).unwrap();
    let without = pruned(&source, &vec![layer].into(), &folder.path().join("without")).unwrap();
    let ids: Vec<u32> = (0..16).map(|id| 5 + id * 2).collect();
    let out = |checkpoint: &Checkpoint| -> Vec<f32> {
        let x = match Decoder::open(checkpoint) {
            Ok(model) => model.logits(&model.hidden_once(&ids).unwrap()).unwrap(),
            Err(_) => Encoder::open(checkpoint).unwrap().hidden(&[&ids[..]]).unwrap(),
        };
        with_f32(&x, <[f32]>::to_vec).unwrap()
    };
    out(&zeroed).iter().zip(out(&without)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_layer_whose_halves_write_nothing_is_no_layer_unless_norms_come_after() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    for name in ["llama", "qwen3", "gemma2", "phi3", "qwen2"] {
        let largest = zeroed(&root.join("decoders").join(name), 0, &["o_proj", "down_proj"]);
        assert!(largest <= 1e-6, "{name}: {largest}");
    }
    // Norms of the sum remain, and move the stream.
    let largest = zeroed(&root.join("encoders/bert"), 0, &["attention.output.dense", ".output.dense"]);
    assert!(largest > 1e-3, "{largest}");
}

#[test]
fn numbers_are_read_segment_by_segment() {
    let folder = tempfile::tempdir().unwrap();
    let names = |names: &[&str]| -> Vec<(String, Vec<usize>, Vec<f32>)> {
        names.iter().map(|name| ((*name).to_owned(), vec![1], vec![name.len() as f32])).collect()
    };
    let kept = |config: Value, old: &[&str], removal: &str, out: &str| -> Vec<String> {
        let path = folder.path().join(out);
        write(&path, &config, &names(old));
        let pruned =
            pruned(&Checkpoint::open(&path).unwrap(), &Removal::parse(removal).unwrap(), &path.join("out")).unwrap();
        pruned.tensors().map(|view| view.name().to_owned()).collect()
    };
    let all: Vec<String> = (0..12).map(|layer| format!("model.layers.{layer}.mlp.experts.1.w1.weight")).collect();
    let mut old: Vec<&str> = all.iter().map(String::as_str).collect();
    old.extend(["model.layers.12.embed.weight", "vision_tower.layers.1.fc.weight", "lm_head.weight"]);
    let config = json!({ "model_type": "deepseek_v3", "num_hidden_layers": 12, "num_nextn_predict_layers": 1 });
    let new: BTreeSet<String> = kept(config, &old, "1-2", "moe").into_iter().collect();
    let mut expected: BTreeSet<String> =
        (0..10).map(|layer| format!("model.layers.{layer}.mlp.experts.1.w1.weight")).collect();
    // The layer behind the last predicts a further token, and follows.
    expected.extend(
        ["model.layers.10.embed.weight", "vision_tower.layers.1.fc.weight", "lm_head.weight"].map(String::from),
    );
    assert_eq!(new, expected);

    // T5 keeps the relative positions of all layers in the first.
    let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    let old =
        [bias, "encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.block.1.layer.0.SelfAttention.q.weight"];
    let new = kept(json!({ "model_type": "t5", "num_layers": 2 }), &old, "0", "t5");
    assert_eq!(new.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([bias.to_owned(), old[1].to_owned()]));
}

/// Writes a model of names alone.
fn named(folder: &Path, config: &Value, names: impl IntoIterator<Item = String>) -> Checkpoint {
    let tensors: Vec<_> = names.into_iter().map(|name| (name, vec![1], vec![1.0])).collect();
    write(folder, config, &tensors);
    Checkpoint::open(folder).unwrap()
}

#[test]
fn heads_that_align_words_with_sound_follow_their_layers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whisper");
    let config = json!({ "model_type": "whisper", "encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4 });
    let layers = ["encoder", "decoder"].into_iter().flat_map(|side| (0..4).map(move |layer| (side, layer)));
    let source = named(&path, &config, layers.map(|(side, layer)| format!("model.{side}.layers.{layer}.fc1.weight")));
    let generation = json!({ "alignment_heads": [[1, 0], [2, 3], [3, 1]], "max_length": 448 });
    fs::write(path.join("generation_config.json"), generation.to_string()).unwrap();
    for (number, (side, drop, expected)) in [
        ("decoder", "1", json!({ "alignment_heads": [[1, 3], [2, 1]], "max_length": 448 })),
        ("decoder", "1-3", json!({ "max_length": 448 })),
        ("encoder", "1", generation.clone()),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(number.to_string());
        let options = DropOptions { stack: Some(format!("model.{side}.layers")), ..DropOptions::default() };
        drop_layers(&source, &Removal::parse(drop).unwrap(), &out, &options, &mut |_, _| {}).unwrap();
        let found: Value = serde_json::from_slice(&fs::read(out.join("generation_config.json")).unwrap()).unwrap();
        assert_eq!(found, expected, "{side} without {drop}");
    }
}

#[test]
fn layers_that_see_images_go_whatever_the_text_does_by_number() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/decoders/gemma3-vision/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(fixture).unwrap()).unwrap();
    config["vision_config"]["num_hidden_layers"] = json!(2);
    let (text, vision) = ("language_model.model.layers", "vision_tower.encoder.layers");
    let stacks = [text, vision].into_iter().flat_map(|stack| (0..2).map(move |layer| (stack, layer)));
    let names = stacks.map(|(stack, layer)| format!("{stack}.{layer}.mlp.weight"));
    let source = named(&folder.path().join("model"), &config, names);
    // The text's two layers differ, of which the first stays the first.
    let plan = super::rewrite::plan(&source, &vec![0].into(), Some(vision), false).unwrap();
    assert_eq!(plan.config["vision_config"]["num_hidden_layers"], 1);
    assert_eq!(plan.config["text_config"], config["text_config"]);
}

#[test]
fn a_checkpoint_that_was_changed_does_not_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path = toy(folder.path(), 4, &[]);
    let source = Checkpoint::open(&path).unwrap();
    let out = folder.path().join("out");
    drop(pruned(&source, &Removal::parse("1-2").unwrap(), &out).unwrap());
    let whole = verify::verify(&Checkpoint::open(&out).unwrap(), &source).unwrap();
    assert_eq!((whole.faults.len(), whole.tensors), (0, 20));
    let faults = |change: &dyn Fn()| -> String {
        let (config, weights) = (out.join("config.json"), out.join("model.safetensors"));
        let before = (fs::read(&config).unwrap(), fs::read(&weights).unwrap());
        change();
        let faults = verify::verify(&Checkpoint::open(&out).unwrap(), &source).unwrap().faults.join("\n");
        fs::write(config, before.0).unwrap();
        fs::write(weights, before.1).unwrap();
        faults
    };
    let flip = || {
        let mut bytes = fs::read(out.join("model.safetensors")).unwrap();
        let last = bytes.len() - 1;
        bytes[last - 2] ^= 64;
        fs::write(out.join("model.safetensors"), bytes).unwrap();
    };
    let found = faults(&flip);
    assert!(found.contains("should hold the bytes of the source's"), "{found}");
    let epsilon = || {
        let mut config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        config["rms_norm_eps"] = json!(0.5);
        fs::write(out.join("config.json"), config.to_string()).unwrap();
    };
    let found = faults(&epsilon);
    assert!(found.contains("config.json") && found.contains("logits differ"), "{found}");
    // Against another model.
    let other = Checkpoint::open(toy(folder.path(), 4, &[1])).unwrap();
    let found = verify::verify(&Checkpoint::open(&out).unwrap(), &other).unwrap().faults.join("\n");
    assert!(found.contains("fingerprint"), "{found}");
}
