//! Experts on disk, and the way to them.

use std::{collections::BTreeMap, fs, path::Path};

use super::{Planted, SIDE, normal};
use crate::{
    Checkpoint,
    probex::{
        Expert,
        cache::{Centre, Copies, Joined, LayerCache, Model},
        damage::Damage,
        evaluate::judge,
        file::write_arrays,
        fit::{ClassTexts, Job, Members},
        head::Choice,
        layer::{Layer, Values},
        operand::Operand,
        registry::Registry,
        spec::{Input, Preset},
        train::{Models, Training},
    },
    random::Stream,
    zoo::{Entry, INDEX, Index, Label, Split, Zoo, splits},
};

const MODELS: usize = 120;

fn write_model(file: &Path, layer: &[f32]) {
    let bias = vec![0.0f32; SIDE];
    let arrays = [
        ("hidden.weight".to_string(), vec![SIDE, SIDE], layer),
        ("hidden.bias".to_string(), vec![SIDE], bias.as_slice()),
    ];
    write_arrays(file, &arrays, &BTreeMap::new(), false).unwrap();
}

/// Two trees of models: their base, and a change that tells their classes.
fn zoo(folder: &Path) -> Zoo {
    let mut index = Index::new();
    let classes = vec!["red".to_string(), "round".to_string()];
    index.labels.insert("is".into(), Label { choice: Choice::Several, classes: classes.clone() });
    for (number, tree) in ["oak", "elm"].into_iter().enumerate() {
        let base: Vec<f32> = normal(SIDE * SIDE, 50 + number as u64).iter().map(|x| 10.0 * x).collect();
        let planted = Planted::new(MODELS, 60 + number as u64);
        write_model(&folder.join(format!("{tree}.safetensors")), &base);
        index.bases.insert(tree.into(), format!("{tree}.safetensors"));
        for (at, split) in splits(MODELS, number as u64, 0).into_iter().enumerate() {
            let change = &planted.values[at * SIDE * SIDE..][..SIDE * SIDE];
            let layer: Vec<f32> = base.iter().zip(change).map(|(b, c)| b + c).collect();
            let path = format!("{tree}-{at}.safetensors");
            write_model(&folder.join(&path), &layer);
            let held = classes.iter().zip(&planted.truths[2 * at..]).filter(|(_, t)| **t > 0.5);
            let labels = BTreeMap::from([("is".to_string(), held.map(|(class, _)| class.clone()).collect())]);
            let (tree, kind, recipe) = (tree.to_string(), "full".to_string(), BTreeMap::new());
            index.models.push(Entry { path, tree, split, kind, labels, recipe });
        }
    }
    fs::write(folder.join(INDEX), serde_json::to_vec(&index).unwrap()).unwrap();
    Zoo::open(folder).unwrap()
}

fn job<'a>(zoo: &'a Zoo, trees: &[&str], preset: Preset, work: &'a Path) -> Job<'a> {
    Job {
        zoo,
        label: "is",
        trees: trees.iter().map(|tree| tree.to_string()).collect(),
        kinds: vec!["full".into()],
        layers: Vec::new(),
        presets: vec![preset],
        ranks: None,
        input: None,
        training: Training { rate: 3e-3, batch: 32, epochs: 30, every: 10, ..Training::default() },
        augment: Copies::default(),
        most: None,
        shuffle: false,
        texts: None,
        work,
        engine: None,
    }
}

fn experts(zoo: &Zoo, trees: &[&str], preset: Preset) -> Vec<Expert> {
    let work = tempfile::tempdir().unwrap();
    let experts = job(zoo, trees, preset, work.path()).run(&mut |_| {}).unwrap();
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0, "layer caches are deleted");
    experts
}

#[test]
fn an_expert_learns_is_read_back_and_knows_its_tree() {
    let folder = tempfile::tempdir().unwrap();
    let zoo = zoo(folder.path());
    let registry = tempfile::tempdir().unwrap();
    for tree in ["oak", "elm"] {
        let expert = experts(&zoo, &[tree], Preset::Mvprobe).remove(0);
        let about = &expert.about;
        assert_eq!((about.layer.name.as_str(), about.input), ("hidden.weight", Input::Base));
        let figures = about.test.as_ref().unwrap();
        assert!(figures.accuracy.value > 0.9, "{tree}: {figures:?}");
        assert!(about.covered.unwrap() > 0.5 && about.conformal.len() == 6, "{about:?}");
        let file = registry.path().join(format!("{tree}.safetensors"));
        expert.write(&file).unwrap();
        assert_eq!(Expert::read(&file).unwrap(), expert);
    }
    let registry = Registry::open(registry.path()).unwrap();
    for tree in ["oak", "elm"] {
        let members = Members::of(&zoo, tree, &["full".into()], None);
        let files = members.files(&zoo);
        for &at in &members.test {
            let route = registry.route(&Checkpoint::open(&files[at]).unwrap()).unwrap();
            let (expert, values) = &route.known[0];
            let expert = &registry.experts[*expert].1;
            assert_eq!(expert.about.tree, tree);
            let answer = expert.answers(vec![values.clone()], 0.9, 3).remove(0);
            assert!(answer.nearest.len() == 3 && answer.nearest[0].1 <= answer.nearest[1].1);
            assert!(answer.decided.iter().all(|class| answer.probabilities[*class] > 0.5));
        }
        // The same figures come out of the files as came out of training.
        let expert = &registry.experts.iter().find(|(_, expert)| expert.about.tree == tree).unwrap().1;
        let outcome = judge(expert, &zoo, (&members, &members.test), None, None).unwrap();
        assert_eq!(outcome.figures(0).accuracy, expert.about.test.as_ref().unwrap().accuracy);
        let rounded = judge(expert, &zoo, (&members, &members.test), Some(Damage::Bits(16)), None).unwrap();
        assert!((rounded.figures(0).accuracy.value - outcome.figures(0).accuracy.value).abs() < 0.03);
    }
    let stranger = folder.path().join("stranger.safetensors");
    write_model(&stranger, &normal(SIDE * SIDE, 99));
    let route = registry.route(&Checkpoint::open(&stranger).unwrap()).unwrap();
    assert!(route.known.is_empty() && route.why.unwrap().contains("accepts up to"));
    assert!(route.distances.iter().all(|d| d.distance.unwrap() > d.limit));
    let other = folder.path().join("other.safetensors");
    let array = [("hidden.weight".to_string(), vec![2, 3], &[0.0; 6][..])];
    write_arrays(&other, &array, &BTreeMap::new(), false).unwrap();
    let route = registry.route(&Checkpoint::open(&other).unwrap()).unwrap();
    assert!(route.why.unwrap().contains("none of the layers"));
}

#[test]
fn a_layer_that_the_base_lacks_is_read_minus_the_centroid() {
    let folder = tempfile::tempdir().unwrap();
    let zoo = zoo(folder.path());
    let other = [("hidden.weight".to_string(), vec![2, 3], &[0.0; 6][..])];
    write_arrays(&folder.path().join("oak.safetensors"), &other, &BTreeMap::new(), false).unwrap();
    let expert = experts(&zoo, &["oak"], Preset::Ridge).remove(0);
    assert_eq!((expert.about.input, &expert.centre), (Input::Centroid, &expert.centroid));
    assert!(expert.about.test.unwrap().accuracy.value > 0.9);
}

#[test]
fn trees_learnt_together_share_a_probe_and_keep_their_centres() {
    let folder = tempfile::tempdir().unwrap();
    let zoo = zoo(folder.path());
    let experts = experts(&zoo, &["oak", "elm"], Preset::Mvprobe);
    assert_eq!(experts[0].net, experts[1].net);
    assert_ne!(experts[0].centre, experts[1].centre);
    for expert in &experts {
        assert!(expert.about.test.as_ref().unwrap().accuracy.value > 0.9, "{:?}", expert.about.test);
    }
}

#[test]
fn copies_are_kept_or_drawn_anew_from_the_layer_itself() {
    let folder = tempfile::tempdir().unwrap();
    let zoo = zoo(folder.path());
    let members = Members::of(&zoo, "oak", &["full".into()], None);
    let layer = Layer { name: "hidden.weight".into(), rows: SIDE, columns: SIDE, adapter: false };
    let models: Vec<Model> = members.files(&zoo).into_iter().take(5).map(|file| (file, None)).collect();
    let centre = normal(SIDE * SIDE, 9);
    let damages = vec![Damage::Bits(3), Damage::Prune(50)];
    let place = folder.path().join("cache");
    let cache = |anew, models: &[Model]| {
        let copies = Copies { damages: damages.clone(), anew };
        LayerCache::build(&place, &layer, models, &[0, 1], Centre::Given(centre.clone()), &copies).unwrap()
    };
    let dense = |operand: Operand<'_>| operand.dense((SIDE, SIDE));
    let expected = |at: usize, damage: &dyn Fn(&mut [f32])| -> Vec<f32> {
        let values = layer.read(&Checkpoint::open(&models[at].0).unwrap()).unwrap();
        let mut x = dense(values.operand());
        damage(&mut x);
        x.iter().zip(&centre).map(|(x, c)| x - c).collect()
    };
    let kept = cache(false, &models);
    assert_eq!((kept.len(), kept.copies()), (5, 3));
    for (at, copy) in (0..5).flat_map(|at| [(at, 1), (at, 2)]) {
        let expected = expected(at, &|x| damages[copy - 1].apply(x, SIDE));
        assert_eq!(dense(Models::layer(&kept, at, copy)), expected);
        assert!(kept.drawn(at, copy, &mut Stream::new(1, "test", 0), &mut Vec::new()).is_none());
    }
    let mut marked = models.clone();
    marked[3].1 = Some(damages[1]);
    let anew = cache(true, &marked);
    assert_eq!(dense(Models::layer(&anew, 3, 0)), expected(3, &|x| damages[1].apply(x, SIDE)));
    let draw = |number: u64| {
        let mut out = Vec::new();
        dense(Joined(vec![&anew]).drawn(1, 1, &mut Stream::new(number, "test", 0), &mut out).unwrap())
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    // The cache gives the layer back by adding what was taken off, so that a level may be missed by a rounding error.
    let by_hand = expected(1, &|x| damages[0].apply_anew(x, SIDE, &mut Stream::new(1, "test", 0)));
    let same = draw(1).iter().zip(&by_hand).filter(|(a, b)| (*a - *b).abs() < 1e-4).count();
    assert!(same + 2 >= by_hand.len(), "{same} of {}", by_hand.len());

    let train = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let work = tempfile::tempdir().unwrap();
        let mut job = job(&zoo, &["oak", "elm"], Preset::Delta, work.path());
        (job.augment, job.training.epochs) = (Copies { damages: damages.clone(), anew: true }, 5);
        pool.install(|| job.run(&mut |_| {})).unwrap()
    };
    let experts = train(1);
    assert_eq!(experts, train(3));
    assert_eq!(experts[0].about.augmented, damages);
}

#[test]
fn two_trees_at_one_distance_are_not_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let zoo = zoo(folder.path());
    let oak = experts(&zoo, &["oak"], Preset::Ridge).remove(0);
    let mut twin = oak.clone();
    twin.about.tree = "twin".into();
    let layer = Layer { ..oak.about.layer.clone() };
    let registry = Registry { experts: vec![("a".into(), oak), ("b".into(), twin)] };
    let model = Checkpoint::open(folder.path().join("oak-0.safetensors")).unwrap();
    let route = registry.route(&model).unwrap();
    let why = route.why.unwrap();
    assert!(route.known.is_empty() && why.contains("`oak` and `twin` are equally near"), "{why}");
    assert!(matches!(layer.read(&model).unwrap(), Values::Dense(_)));
}

#[test]
fn trees_of_adapters_are_not_told_apart_by_the_size_of_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    // As the zoo of `oak`, but each model is the factors of its change: the whole, and one.
    let one: Vec<f32> = (0..SIDE * SIDE).map(|at| f32::from(u8::from(at % (SIDE + 1) == 0))).collect();
    let mut index = Index::new();
    let classes = vec!["red".to_string(), "round".to_string()];
    index.labels.insert("is".into(), Label { choice: Choice::Several, classes: classes.clone() });
    let planted = Planted::new(MODELS, 60);
    for (at, split) in splits(MODELS, 0, 0).into_iter().enumerate() {
        let path = format!("oak-{at}.safetensors");
        let arrays = [
            ("hidden.lora_A.weight".to_string(), vec![SIDE, SIDE], one.as_slice()),
            ("hidden.lora_B.weight".to_string(), vec![SIDE, SIDE], &planted.values[at * SIDE * SIDE..][..SIDE * SIDE]),
        ];
        write_arrays(&folder.path().join(&path), &arrays, &BTreeMap::new(), false).unwrap();
        let held = classes.iter().zip(&planted.truths[2 * at..]).filter(|(_, t)| **t > 0.5);
        let labels = BTreeMap::from([("is".to_string(), held.map(|(class, _)| class.clone()).collect())]);
        let (tree, kind) = ("oak".to_string(), "full".to_string());
        index.models.push(Entry { path, tree, split, kind, labels, recipe: BTreeMap::new() });
    }
    fs::write(folder.path().join(INDEX), serde_json::to_vec(&index).unwrap()).unwrap();
    let oak = experts(&Zoo::open(folder.path()).unwrap(), &["oak"], Preset::Ridge).remove(0);
    assert!(oak.about.layer.adapter && oak.about.test.as_ref().unwrap().accuracy.value > 0.9);
    let mut elm = oak.clone();
    elm.about.tree = "elm".into();
    elm.about.radius.limit *= 1.5;
    let mut ash = oak.clone();
    ash.about.tree = "ash".into();
    ash.about.radius.limit *= 1e-3;
    let model = Checkpoint::open(folder.path().join("oak-0.safetensors")).unwrap();
    let route = |experts: &[&Expert]| {
        let named = |expert: &&Expert| (std::path::PathBuf::from(&expert.about.tree), (*expert).clone());
        Registry { experts: experts.iter().map(named).collect() }.route(&model).unwrap()
    };
    // By size alone the larger tree would be the nearer.
    let both = route(&[&oak, &elm]);
    let why = both.why.unwrap();
    assert!(both.known.is_empty() && why.contains("trees `elm` and `oak` both accept it"), "{why}");
    // A size that a tree does not have speaks against it; that of the one left is assumed.
    for experts in [vec![&oak], vec![&oak, &ash]] {
        let one = route(&experts);
        assert!(one.known.len() == 1 && one.assumed.unwrap().contains("`oak` is the only tree"));
    }
    assert!(route(&[&ash]).why.unwrap().contains("accepts up to"));
}

#[test]
fn what_cannot_be_learnt_is_said_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let mut zoo = zoo(folder.path());
    let work = tempfile::tempdir().unwrap();
    let said = |zoo: &Zoo, change: &dyn Fn(&mut Job<'_>)| -> String {
        let mut job = job(zoo, &["oak"], Preset::Delta, work.path());
        change(&mut job);
        let error = job.run(&mut |_| {}).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    };
    let error = said(&zoo, &|job| job.layers = vec!["absent".into()]);
    assert!(error.contains("`absent` is not in every model") && error.contains("hidden.weight"), "{error}");
    let error = said(&zoo, &|job| job.trees = vec!["ash".into()]);
    assert!(error.contains("`ash` has 0 training"), "{error}");
    let error = said(&zoo, &|job| job.label = "colour");
    assert!(error.contains("no label `colour`; it has is"), "{error}");
    for model in &mut zoo.index.models {
        model.labels.insert("is".into(), vec!["red".into()]);
    }
    let error = said(&zoo, &|_| {});
    assert!(error.contains("says the same of every training model"), "{error}");
    zoo.index.labels.insert("is".into(), Label { choice: Choice::Several, classes: vec!["red".into()] });
    let error = said(&zoo, &|_| {});
    assert!(error.contains("has one class only (`red`)"), "{error}");
    let zoo = Zoo::open(folder.path()).unwrap();
    fs::write(folder.path().join("oak-3.safetensors"), b"no").unwrap();
    let error = said(&zoo, &|_| {});
    assert!(error.contains("oak-3.safetensors"), "{error}");
}

#[test]
fn damaged_experts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let zoo = zoo(folder.path());
    let expert = experts(&zoo, &["oak"], Preset::Delta).remove(0);
    let file = folder.path().join("expert");
    let refused = |change: &dyn Fn(&mut Expert), expected: &str| {
        let mut changed = expert.clone();
        change(&mut changed);
        changed.write(&file).unwrap();
        let error = Expert::read(&file).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    };
    refused(&|e| e.about.format = 9, "form 9");
    refused(&|e| e.about.spec.rows = 9, "the probe reads 9 × 8, its layer has 8 × 8");
    refused(&|e| e.about.classes.push("more".into()), "2 outputs for 3 classes");
    refused(&|e| e.about.documented[0].1 = vec![7], "beyond the expert's");
    refused(&|e| e.about.temperature = 0.0, "temperature");
    refused(&|e| e.about.conformal = vec![0.5, 0.1], "in order");
    refused(&|e| e.about.spec.rows = 1 << 40, "between 1 and");
    refused(&|e| e.net.values[0] = f32::NAN, "NaN");
    refused(&|e| _ = e.about.documented.pop(), "documented");
    let bytes = {
        expert.write(&file).unwrap();
        fs::read(&file).unwrap()
    };
    for cut in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&file, &bytes[..cut]).unwrap();
        assert!(Expert::read(&file).is_err(), "{cut} of {} bytes", bytes.len());
    }
    write_model(&file, &normal(SIDE * SIDE, 1));
    assert!(Expert::read(&file).unwrap_err().to_string().contains("is no expert"));
}

#[test]
fn classes_never_seen_are_found_by_their_names() {
    const CLASSES: usize = 16;
    const WIDTH: usize = 3;
    let folder = tempfile::tempdir().unwrap();
    let texts = normal(CLASSES * WIDTH, 31);
    let directions = normal(WIDTH * SIDE * SIDE, 32);
    let classes: Vec<String> = (0..CLASSES).map(|class| format!("class {class}")).collect();
    let mut index = Index::new();
    index.labels.insert("is".into(), Label { choice: Choice::One, classes: classes.clone() });
    let parts = splits(240, 0, 0);
    for at in 0..240 {
        let class = at % CLASSES;
        let mut layer: Vec<f32> = normal(SIDE * SIDE, 1000 + at as u64).iter().map(|x| 0.2 * x).collect();
        let text = &texts[class * WIDTH..][..WIDTH];
        for (direction, t) in directions.chunks_exact(SIDE * SIDE).zip(text) {
            layer.iter_mut().zip(direction).for_each(|(x, d)| *x += 0.5 * t * d);
        }
        let path = format!("{at}.safetensors");
        write_model(&folder.path().join(&path), &layer);
        let split = if class < 4 { Split::HeldOut } else { parts[at] };
        let labels = BTreeMap::from([("is".to_string(), vec![classes[class].clone()])]);
        let (tree, kind, recipe) = ("oak".to_string(), "full".to_string(), BTreeMap::new());
        index.models.push(Entry { path, tree, split, kind, labels, recipe });
    }
    fs::write(folder.path().join(INDEX), serde_json::to_vec(&index).unwrap()).unwrap();
    let zoo = Zoo::open(folder.path()).unwrap();
    let work = tempfile::tempdir().unwrap();
    let mut job = job(&zoo, &["oak"], Preset::Mvprobe, work.path());
    job.training.epochs = 60;
    job.texts = Some(ClassTexts { values: texts.clone(), width: WIDTH, encoder: "an encoder".into() });
    let expert = job.run(&mut |_| {}).unwrap().remove(0);
    assert_eq!(expert.about.seen, (4..CLASSES).collect::<Vec<_>>());
    let zero_shot = expert.about.zero_shot.as_ref().unwrap();
    // Four classes, so a quarter is chance.
    assert!(zero_shot.models == 60 && zero_shot.accuracy.value > 0.7, "{zero_shot:?}");
    let file = folder.path().join("expert");
    expert.write(&file).unwrap();
    assert_eq!(Expert::read(&file).unwrap(), expert);
    // The words of a class find its models first.
    let found = expert.search(&texts[9 * WIDTH..][..WIDTH], 3);
    assert!(found.iter().filter(|(at, _)| expert.about.documented[*at].1 == [9]).count() >= 2, "{found:?}");
    assert!(found[0].1 >= found[2].1 && found[0].1 <= 1.0 + 1e-5);
}
