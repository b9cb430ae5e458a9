//! Layers taken out of toy models and of tiny models of every family.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use candle_core::Tensor;
use scruple_weights::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, WriterOptions};
use serde_json::{Value, json};

use super::{
    DropOptions, Removal, drop_layers,
    evaluate::{Corpus, Evaluator, Objective, Race},
    heal::refit_norms,
    scan,
    search::{self, Search, Settings},
    sweep::{self, Work, applications},
    verify,
    write::provenance,
};
use crate::{
    Result,
    data::random::draw,
    kernel::{activation::log_sum_exp, tensor::with_f32, test_values::uniform},
    model::{Decoder, Encoder, decoder::BlockCache},
};

const HIDDEN: usize = 32;
const VOCAB: usize = 64;

/// A loss by another way through the same kernels differs by rounding.
const MAX_LOSS_DIFFERENCE: f64 = 1e-5;

/// The dense model's log-probabilities are kept in f32: KL of a model to itself is not quite 0.
const LOG_P_ROUNDING: f64 = 1e-6;

/// Scores are had from products of 32 numbers in f32, whose rounding the arc cosine magnifies tenfold where the stream
/// turns least.
const MAX_SCORE_DIFFERENCE: f64 = 1e-5;

/// A fitted norm differs by the rounding of norms in f32.
const MAX_NORM_DIFFERENCE: f64 = 1e-5;

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
    toy_of(folder, layers, idle, (VOCAB, 1.0))
}

/// The same with another vocabulary, embedded as `gain` times numbers in −1..1.
fn toy_of(folder: &Path, layers: usize, idle: &[usize], (vocab, gain): (usize, f32)) -> PathBuf {
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": vocab, "rms_norm_eps": 1e-5,
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
    push("model.embed_tokens.weight".into(), &[vocab, HIDDEN], gain);
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

/// KL(p ‖ q) with all but the likeliest tokens of p that are kept taken as one.
fn coarse(p: &[f64], q: &[f64]) -> f64 {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a])); // stable
    let (kept, rest) = order.split_at(sweep::TOP.min(p.len()));
    let share = |log: &[f64], ids: &[usize]| ids.iter().map(|&id| log[id].exp()).sum::<f64>();
    let of_kept: f64 = kept.iter().map(|&id| p[id].exp() * (p[id] - q[id])).sum();
    let of_rest = if rest.is_empty() { 0.0 } else { share(p, rest) * (share(p, rest) / share(q, rest)).ln() };
    of_kept + of_rest
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
            kl += coarse(&p, &q);
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
fn of_a_vocabulary_beyond_the_tokens_kept_the_rest_counts_as_one() {
    let folder = tempfile::tempdir().unwrap();
    // Embedded so weakly that the rest has a share of a twentieth, whose term in KL is 0.03 and more.
    let source = Checkpoint::open(toy_of(folder.path(), 6, &[], (700, 0.3))).unwrap();
    let dense = Decoder::open(&source).unwrap();
    let corpus = corpus(24, 48, 0.5);
    let sets = ["1", "4", "2-3"].map(|set| Removal::parse(set).unwrap());
    let sequences: Vec<_> = corpus.sequences().iter().collect();
    let mut work = Work::default();
    let references = sweep::references(&dense, &sequences, &mut work).unwrap();
    let references: Vec<_> = references.iter().collect();
    let losses = sweep::losses(&dense, &sets, &sequences, &references, &mut work).unwrap();
    for (set, losses) in sets.iter().zip(&losses) {
        let model = pruned(&source, set, &folder.path().join(set.to_string())).unwrap();
        let expected = by_definition(&Decoder::open(&model).unwrap(), &dense, &corpus);
        for (loss, (nll, kl)) in losses.iter().zip(expected) {
            assert!((loss.nll - nll).abs() < MAX_LOSS_DIFFERENCE, "{set}: {} against {nll}", loss.nll);
            assert!((loss.kl - kl).abs() < MAX_LOSS_DIFFERENCE, "{set}: {} against {kl}", loss.kl);
        }
    }
    // The dense model is no distance from itself, whatever is kept.
    let itself = sweep::losses(&dense, &[Removal::default()], &sequences, &references, &mut work).unwrap();
    assert!(itself[0].iter().all(|loss| loss.kl < LOG_P_ROUNDING), "{itself:?}");
}

/// The rows of a stream.
fn rows(x: &Tensor) -> Vec<Vec<f64>> {
    with_f32(x, |x| x.chunks(HIDDEN).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect()).unwrap()
}

/// The streams of one sequence before each block and behind the last, and those between attention and MLP.
struct Streams {
    blocks: Vec<Vec<Vec<f64>>>,
    middles: Vec<Vec<Vec<f64>>>,
}

impl Streams {
    fn new(model: &Decoder, ids: &[u32]) -> Self {
        let mut x = model.embed(ids, 0).unwrap();
        let mut streams = Self { blocks: vec![rows(&x)], middles: Vec::new() };
        for block in model.blocks() {
            let middle = block.attention_step(&x, &mut BlockCache::default()).unwrap();
            x = block.mlp_step(&middle).unwrap();
            streams.middles.push(rows(&middle));
            streams.blocks.push(rows(&x));
        }
        streams
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖) of two sets of rows less their means (Kornblith et al. 2019, eq. 4).
fn alignment(x: &[&[f64]], y: &[&[f64]]) -> f64 {
    let columns = |rows: &[&[f64]]| -> Vec<Vec<f64>> {
        let column = |j: usize| -> Vec<f64> {
            let mean = rows.iter().map(|row| row[j]).sum::<f64>() / rows.len() as f64;
            rows.iter().map(|row| row[j] - mean).collect()
        };
        (0..HIDDEN).map(column).collect()
    };
    let squares = |a: &[Vec<f64>], b: &[Vec<f64>]| -> f64 {
        a.iter().map(|a| b.iter().map(|b| dot(a, b).powi(2)).sum::<f64>()).sum()
    };
    let (x, y) = (columns(x), columns(y));
    squares(&y, &x) / (squares(&x, &x) * squares(&y, &y)).sqrt()
}

#[test]
fn the_scores_of_a_scan_are_their_formulas() {
    const LAYERS: usize = 4;
    const SKIP: usize = 3;
    let folder = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(toy(folder.path(), LAYERS, &[])).unwrap();
    let model = Decoder::open(&source).unwrap();
    let corpus = corpus(16, 64, 1.0);
    let scanned = scan::scan(&model, corpus.sequences(), SKIP, true, &mut |_| {}).unwrap();
    assert_eq!((scanned.tokens, scanned.skipped), (4 * 13, SKIP));
    let all: Vec<Streams> = corpus.sequences().iter().map(|sequence| Streams::new(&model, &sequence.ids)).collect();
    // Windows are of one length, so the mean over sequences of means over tokens is that over tokens.
    let mean = |tokens: std::ops::Range<usize>, score: &dyn Fn(&Streams, usize) -> f64| -> f64 {
        let scores = all.iter().flat_map(|of| tokens.clone().map(move |token| score(of, token)));
        scores.sum::<f64>() / (all.len() * tokens.len()) as f64
    };
    let (every, last) = (SKIP..16, 15..16);
    let expect = |name: &str, found: f64, expected: f64| {
        assert!((found - expected).abs() < MAX_SCORE_DIFFERENCE, "{name}: {found} against {expected}");
    };
    for (l, scores) in scanned.layers.iter().enumerate() {
        let influence = |of: &Streams, t: usize| 1.0 - cosine(&of.blocks[l][t], &of.blocks[l + 1][t]);
        expect("influence", scores.influence.value, mean(every.clone(), &influence));
        expect("influence of the last", scores.influence_last.value, mean(last.clone(), &influence));
        let update = |of: &Streams, t: usize| {
            let (x, y) = (&of.blocks[l][t], &of.blocks[l + 1][t]);
            let step: Vec<f64> = x.iter().zip(y).map(|(x, y)| y - x).collect();
            (dot(&step, &step) / dot(x, x)).sqrt()
        };
        expect("update", scores.relative_update.value, mean(every.clone(), &update));
        let attention = |of: &Streams, t: usize| 1.0 - cosine(&of.blocks[l][t], &of.middles[l][t]);
        expect("attention", scores.attention.value, mean(every.clone(), &attention));
        let mlp = |of: &Streams, t: usize| 1.0 - cosine(&of.middles[l][t], &of.blocks[l + 1][t]);
        expect("MLP", scores.mlp.value, mean(every.clone(), &mlp));
        let states = |layer: usize| -> Vec<&[f64]> {
            all.iter().flat_map(|of| of.blocks[layer][SKIP..].iter().map(Vec::as_slice)).collect()
        };
        expect("CKA", scores.cka, alignment(&states(l), &states(l + 1)));
        let linears = source.tensors().filter(|view| view.name().contains(&format!("layers.{l}.")));
        let linears: Vec<f32> =
            linears.filter(|view| view.shape().len() == 2).flat_map(|view| view.to_f32().unwrap()).collect();
        let squares: f64 = linears.iter().map(|&w| f64::from(w).powi(2)).sum();
        expect("weights", scores.weight_rms, (squares / linears.len() as f64).sqrt());
        for n in 1..=LAYERS - l {
            let angle =
                |of: &Streams, t: usize| cosine(&of.blocks[l][t], &of.blocks[l + n][t]).acos() / std::f64::consts::PI;
            expect("angle", scanned.angular.distance(l, n), mean(every.clone(), &angle));
            expect("angle of the last", scanned.angular_last.distance(l, n), mean(last.clone(), &angle));
        }
    }
}

#[test]
fn norms_are_fitted_anew_by_least_squares_each_on_what_those_before_it_leave() {
    /// The share of Σ b² that holds a factor to 1.
    const RIDGE: f64 = 0.01;
    /// Both models'.
    const EPSILON: f64 = 1e-5;
    let folder = tempfile::tempdir().unwrap();
    let gemma = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/decoders/gemma");
    let corpus = corpus(16, 64, 1.0);
    // Gemma's norms count from one.
    for (model, drop, one, fitted) in [(toy(folder.path(), 6, &[]), "2-3", 0.0, 5), (gemma, "0", 1.0, 3)] {
        let source = Checkpoint::open(&model).unwrap();
        let removed = Removal::parse(drop).unwrap();
        let out = folder.path().join(format!("without-{drop}"));
        let pruned = pruned(&source, &removed, &out).unwrap();
        let about = provenance(&out).unwrap();
        let replaced = refit_norms(&pruned, &source, &about, corpus.sequences(), &mut |_| {}).unwrap();
        assert_eq!(replaced.len(), fitted, "{:?}", replaced.keys());
        let healed: Vec<_> = pruned
            .tensors()
            .map(|view| {
                let values = replaced.get(view.name()).cloned().unwrap_or_else(|| view.to_f32().unwrap());
                (view.name().to_owned(), view.shape().to_vec(), values)
            })
            .collect();
        let path = folder.path().join(format!("healed-{drop}"));
        write(&path, pruned.config().unwrap(), &healed);
        let (dense, healed) =
            (Decoder::open(&source).unwrap(), Decoder::open(&Checkpoint::open(&path).unwrap()).unwrap());
        let streams = |model: &Decoder| -> Vec<Streams> {
            corpus.sequences().iter().map(|sequence| Streams::new(model, &sequence.ids)).collect()
        };
        let (whole, lacking) = (streams(&dense), streams(&healed));
        // Which norm, by its name here and in the source, and the streams that the two read.
        let check = |here: &str, there: &str, read: &dyn Fn(&Streams, bool) -> Vec<Vec<f64>>| {
            let weight = |checkpoint: &Checkpoint, name: &str| -> Vec<f64> {
                let stored = checkpoint.tensor(name).unwrap().to_f32().unwrap();
                stored.iter().map(|&w| f64::from(w) + one).collect()
            };
            let (weight_a, weight_b) = (weight(&source, there), weight(&pruned, here));
            let (mut ab, mut bb) = (vec![0.0; HIDDEN], vec![0.0; HIDDEN]);
            for (whole, lacking) in whole.iter().zip(&lacking) {
                for (x, y) in read(whole, true).iter().zip(read(lacking, false)) {
                    let size = |x: &[f64]| (dot(x, x) / HIDDEN as f64 + EPSILON).sqrt();
                    for j in 0..HIDDEN {
                        let (a, b) = (x[j] / size(x) * weight_a[j], y[j] / size(&y) * weight_b[j]);
                        ab[j] += a * b;
                        bb[j] += b * b;
                    }
                }
            }
            for (j, &found) in replaced[here].iter().enumerate() {
                let factor = (ab[j] + RIDGE * bb[j]) / (bb[j] + RIDGE * bb[j]);
                let expected = weight_b[j] * factor - one;
                assert!(
                    (f64::from(found) - expected).abs() < MAX_NORM_DIFFERENCE,
                    "{here} {j}: {found} for {expected}"
                );
            }
        };
        let first = removed.layers()[0];
        for (place, &layer) in about.kept.iter().enumerate().filter(|(_, layer)| **layer > first) {
            let of = |whole: bool| if whole { layer } else { place };
            let names = |norm: &str| [place, layer].map(|number| format!("model.layers.{number}.{norm}.weight"));
            let [here, there] = names("input_layernorm");
            check(&here, &there, &|streams, whole| streams.blocks[of(whole)].clone());
            let [here, there] = names("post_attention_layernorm");
            check(&here, &there, &|streams, whole| streams.middles[of(whole)].clone());
        }
        let name = "model.norm.weight";
        check(name, name, &|streams, _| streams.blocks[streams.blocks.len() - 1].clone());
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
