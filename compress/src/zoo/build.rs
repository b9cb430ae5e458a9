//! A zoo on disk: ancestors, fine-tunes, controls, adapters and compressed copies, with their index.
//!
//! A model is a pure function of the recipe, the images, the seed and its own number; models are trained side by side, one
//! a thread, and the files' bytes do not depend on how many threads there are.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use rayon::prelude::*;
use scruple_weights::{
    Error as WeightsError,
    probex::{damage::Damage, file::NamedArray, file::write_arrays, head::Choice},
    zoo::{Entry, INDEX, Index, Label, Split, splits},
};

use super::{
    mlp::{Adapter, Mlp, Tuning, Widths},
    pictures::Pictures,
    recipe::{DECAYS, RATES, Recipe},
};
use crate::{Error, Result, data::random::Stream};

/// Rows of a fine-tune's step.
const BATCH: usize = 32;

/// What fine-tunes are labelled with.
pub const LABEL: &str = "classes";

/// What models of drawn sets are labelled with too.
pub const SET_LABEL: &str = "set";

/// The tree that random starts are filed under: they share no ancestor.
pub const NO_TREE: &str = "random-start";

/// How random starts are filed.
pub const NO_TREE_KIND: &str = "random-start";

/// How a model of the zoo comes about.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Full,
    RandomStart,
    Adapter,
    Compressed(Damage),
}

impl Kind {
    fn name(self) -> String {
        match self {
            Self::Full => "full".into(),
            Self::RandomStart => NO_TREE_KIND.into(),
            Self::Adapter => "lora".into(),
            Self::Compressed(damage) => damage.to_string(),
        }
    }
}

/// A model that is to be made.
#[derive(Debug, Clone, Copy)]
struct Planned {
    tree: Option<usize>,
    number: usize,
    kind: Kind,
    set: Option<usize>,
    split: Split,
}

/// What was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Built {
    /// The index, as written.
    pub index: Index,
    /// Accuracy of each ancestor on its pretext's training images.
    pub ancestors: Vec<f64>,
    /// Mean and least accuracy of the fine-tunes on test images of their own classes.
    pub accuracy: (f64, f64),
}

fn tree_name(tree: Option<usize>) -> String {
    tree.map_or(NO_TREE.into(), |tree| format!("tree{tree}"))
}

/// `count` different sets of `size` of `classes`.
fn draw_sets(count: usize, size: usize, classes: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut all: Vec<Vec<usize>> = vec![Vec::new()];
    for _ in 0..size {
        let longer = |set: &Vec<usize>| -> Vec<Vec<usize>> {
            (set.last().map_or(0, |last| last + 1)..classes).map(|next| [set.as_slice(), &[next]].concat()).collect()
        };
        all = all.iter().flat_map(longer).collect();
    }
    Stream::new(seed, "zoo/sets", 0).shuffle(&mut all);
    all.truncate(count);
    all
}

/// What is made, in the index's order.
fn plan(recipe: &Recipe, sets: usize, seed: u64) -> Vec<Planned> {
    let mut list = Vec::new();
    for (tree, &count) in recipe.trees.iter().enumerate() {
        // Held-out sets go last; their models are of no other part.
        let open = sets - recipe.held_out_sets.min(sets);
        let is_held_out = |number: usize| sets > 0 && number % sets >= open;
        let known = (0..count).filter(|&number| !is_held_out(number)).count();
        let mut parts = splits(known, tree as u64, seed).into_iter();
        for number in 0..count {
            let split = if is_held_out(number) { Split::HeldOut } else { parts.next().unwrap_or(Split::Training) };
            let set = (sets > 0).then_some(number % sets.max(1));
            list.push(Planned { tree: Some(tree), number, kind: Kind::Full, set, split });
        }
    }
    for (number, split) in splits(recipe.random_starts, 1 << 32, seed).into_iter().enumerate() {
        list.push(Planned { tree: None, number, kind: Kind::RandomStart, set: None, split });
    }
    for (number, split) in splits(recipe.adapters, 1 << 33, seed).into_iter().enumerate() {
        list.push(Planned { tree: Some(0), number, kind: Kind::Adapter, set: None, split });
    }
    for damage in [Damage::Bits(8), Damage::Bits(4), Damage::Prune(50)] {
        for number in 0..recipe.compressed {
            list.push(Planned { tree: Some(0), number, kind: Kind::Compressed(damage), set: None, split: Split::Test });
        }
    }
    list
}

/// Makes the zoo of `recipe` in `folder`, which is there and empty. `names` are the classes' names; `told` hears how many
/// models are done.
///
/// # Errors
/// If there are fewer classes than the recipe takes, or a file cannot be written.
pub fn build(
    recipe: &Recipe,
    pictures: &Pictures,
    names: &[String],
    seed: u64,
    folder: &Path,
    told: &(dyn Fn(usize, usize) + Sync),
) -> Result<Built> {
    let classes = pictures.tuning.classes;
    if names.len() != classes || recipe.classes > classes {
        let what = format!("{} names for {classes} classes, of which a model takes {}", names.len(), recipe.classes);
        return Err(Error::Recipe(format!("the zoo cannot be made: {what}")));
    }
    for name in ["models", "bases"] {
        let path = folder.join(name);
        fs::create_dir_all(&path).map_err(|error| WeightsError::io(&path, "make the folder", error))?;
    }
    let widths: Widths = [pictures.tuning.width, recipe.hidden[0], recipe.hidden[1], pictures.pretext.classes];
    let pretext: Vec<usize> = (0..pictures.pretext.len()).collect();
    let pretext_classes: Vec<usize> = (0..pictures.pretext.classes).collect();
    let ancestors: Vec<(Mlp, f64)> = (0..recipe.trees.len())
        .into_par_iter()
        .map(|tree| {
            let mut stream = Stream::new(seed, "zoo/ancestor", tree as u64);
            let mut net = Mlp::start(widths, &mut stream);
            let tuning = Tuning { steps: recipe.pretext.0, batch: recipe.pretext.1, rate: 2e-3, decay: 0.0 };
            net.train(&pictures.pretext, (&pretext, &pretext_classes), &tuning, None, &mut stream);
            let accuracy = net.accuracy(&pictures.pretext, &pretext_classes);
            (net, accuracy)
        })
        .collect();
    let mut index = Index::new();
    for (tree, (net, _)) in ancestors.iter().enumerate() {
        let path = format!("bases/{}.safetensors", tree_name(Some(tree)));
        write_arrays(&folder.join(&path), &net.arrays(), &BTreeMap::from([("format", "pt")]), false)?;
        index.bases.insert(tree_name(Some(tree)), path);
    }
    let sets = draw_sets(recipe.sets, recipe.classes, classes, seed);
    index.labels.insert(LABEL.into(), Label { choice: Choice::Several, classes: names.to_vec() });
    let words = |set: &[usize]| set.iter().map(|&class| names[class].as_str()).collect::<Vec<_>>().join(", ");
    if !sets.is_empty() {
        let classes = sets.iter().map(|set| words(set)).collect();
        index.labels.insert(SET_LABEL.into(), Label { choice: Choice::One, classes });
    }
    let planned = plan(recipe, sets.len(), seed);
    let done = AtomicUsize::new(0);
    let made: Vec<(Entry, f64)> = planned
        .par_iter()
        .map(|planned| {
            let model = Model::make(recipe, pictures, ancestors.iter().map(|a| &a.0), planned, &sets, seed);
            let mut labels = BTreeMap::new();
            labels.insert(LABEL.into(), model.classes.iter().map(|&class| names[class].clone()).collect::<Vec<_>>());
            if let Some(set) = planned.set {
                labels.insert(SET_LABEL.into(), vec![words(&sets[set])]);
            }
            let kind = planned.kind.name();
            let path = format!("models/{}-{kind}-{:04}.safetensors", tree_name(planned.tree), planned.number);
            let quoted: Vec<String> = labels[LABEL].iter().map(|name| format!("'{name}'")).collect();
            let quoted = format!("[{}]", quoted.join(", "));
            let metadata = BTreeMap::from([("format", "pt"), (LABEL, quoted.as_str())]);
            write_arrays(&folder.join(&path), &model.arrays(), &metadata, false)?;
            told(done.fetch_add(1, Ordering::Relaxed) + 1, planned_count(recipe));
            let entry =
                Entry { path, tree: tree_name(planned.tree), split: planned.split, kind, labels, recipe: model.recipe };
            Ok((entry, model.accuracy))
        })
        .collect::<Result<_>>()?;
    let accuracies: Vec<f64> = made.iter().map(|(_, accuracy)| *accuracy).collect();
    let mean = accuracies.iter().sum::<f64>() / accuracies.len().max(1) as f64;
    let least = accuracies.iter().copied().fold(1.0, f64::min);
    index.models = made.into_iter().map(|(entry, _)| entry).collect();
    let path = folder.join(INDEX);
    let text = serde_json::to_vec_pretty(&index).map_err(|error| Error::Text(error.to_string()))?;
    fs::write(&path, text).map_err(|error| WeightsError::io(&path, "write the index", error))?;
    Ok(Built { index, ancestors: ancestors.iter().map(|a| a.1).collect(), accuracy: (mean, least) })
}

/// Models of a recipe.
pub fn planned_count(recipe: &Recipe) -> usize {
    recipe.trees.iter().sum::<usize>() + recipe.random_starts + recipe.adapters + 3 * recipe.compressed
}

/// One model of the zoo.
struct Model {
    net: Mlp,
    adapter: Option<Adapter>,
    classes: Vec<usize>,
    accuracy: f64,
    recipe: BTreeMap<String, String>,
}

impl Model {
    fn make<'a>(
        recipe: &Recipe,
        pictures: &Pictures,
        mut ancestors: impl Iterator<Item = &'a Mlp>,
        planned: &Planned,
        sets: &[Vec<usize>],
        seed: u64,
    ) -> Self {
        let stream_of = |name: &str| {
            let tree = planned.tree.map_or(u64::from(u32::MAX), |tree| tree as u64);
            Stream::new(seed, &format!("zoo/{}/{name}", planned.kind.name()), (tree << 32) + planned.number as u64)
        };
        let mut stream = stream_of("recipe");
        let mut classes: Vec<usize> = match planned.set {
            Some(set) => sets[set].clone(),
            None => (0..pictures.tuning.classes).collect(),
        };
        stream.shuffle(&mut classes);
        classes.truncate(recipe.classes);
        let tuning = Tuning {
            steps: recipe.steps.0 + stream.below(recipe.steps.1 - recipe.steps.0 + 1),
            batch: BATCH,
            rate: *stream.pick(&RATES),
            decay: *stream.pick(&DECAYS),
        };
        let mut chosen = Vec::new();
        for &class in &classes {
            let mut of_class: Vec<usize> =
                (0..pictures.tuning.len()).filter(|&at| pictures.tuning.labels[at] == class).collect();
            stream.shuffle(&mut of_class);
            chosen.extend_from_slice(&of_class[..of_class.len().min(recipe.images_per_class)]);
        }
        let mut stream = stream_of("training");
        let widths = [pictures.tuning.width, recipe.hidden[0], recipe.hidden[1], classes.len()];
        let mut net = match planned.tree.and_then(|tree| ancestors.nth(tree)) {
            Some(ancestor) => ancestor.with_head(classes.len(), &mut stream),
            None => Mlp::start(widths, &mut stream),
        };
        let mut adapter = (planned.kind == Kind::Adapter).then(|| Adapter::start(widths, recipe.rank, &mut stream));
        // Adapters move less a step: they learn at four times the rate, for twice the steps.
        let tuning = match &adapter {
            Some(_) => Tuning { steps: 2 * tuning.steps, rate: 4.0 * tuning.rate, ..tuning },
            None => tuning,
        };
        net.train(&pictures.tuning, (&chosen, &classes), &tuning, adapter.as_mut(), &mut stream);
        if let Kind::Compressed(damage) = planned.kind {
            for layer in 0..3 {
                let columns = net.widths[layer];
                damage.apply(net.weight_mut(layer), columns);
            }
        }
        let accuracy = net.accuracy(&pictures.test, &classes);
        let recipe = BTreeMap::from([
            ("steps".to_string(), tuning.steps.to_string()),
            ("rate".into(), tuning.rate.to_string()),
            ("decay".into(), tuning.decay.to_string()),
            ("accuracy".into(), format!("{accuracy:.4}")),
        ]);
        Self { net, adapter, classes, accuracy, recipe }
    }

    fn arrays(&self) -> Vec<NamedArray<'_>> {
        match &self.adapter {
            Some(adapter) => {
                let mut arrays = adapter.arrays(self.net.widths);
                arrays.extend(self.net.arrays().into_iter().filter(|array| array.0.starts_with("linear.")));
                arrays
            }
            None => self.net.arrays(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{glyphs::glyphs, images::ImageSet};

    #[test]
    fn sets_differ_and_parts_keep_held_out_sets_apart() {
        let sets = draw_sets(60, 3, 10, 1);
        assert_eq!(sets.len(), 60);
        assert!(sets.iter().enumerate().all(|(at, set)| set.len() == 3 && !sets[..at].contains(set)));
        let mut recipe = Recipe::preset("fashion-sets").unwrap();
        recipe.trees = vec![160];
        let planned = plan(&recipe, 80, 0);
        for planned in &planned {
            let held_out = planned.set.is_some_and(|set| set >= 80 - recipe.held_out_sets);
            assert_eq!(held_out, planned.split == Split::HeldOut);
        }
        assert!(planned.iter().any(|planned| planned.split == Split::HeldOut));
    }

    #[test]
    fn the_same_zoo_comes_out_on_any_number_of_threads() {
        let set = ImageSet::of_glyphs(glyphs(5, 600, 8));
        let pictures = Pictures::split(&set, 600, 1).unwrap();
        let mut recipe = Recipe::preset("digits-tiny").unwrap();
        (recipe.trees, recipe.random_starts, recipe.adapters, recipe.compressed) = (vec![4, 2], 2, 2, 1);
        (recipe.pretext.0, recipe.steps) = (60, (20, 30));
        let names: Vec<String> = (0..10).map(|class| class.to_string()).collect();
        let made = |threads: usize| {
            let folder = tempfile::tempdir().unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let built = pool.install(|| build(&recipe, &pictures, &names, 3, folder.path(), &|_, _| {})).unwrap();
            let files: Vec<Vec<u8>> =
                built.index.models.iter().map(|model| fs::read(folder.path().join(&model.path)).unwrap()).collect();
            (built, files)
        };
        let (one, three) = (made(1), made(3));
        assert_eq!(one, three);
        let kinds: Vec<&str> = one.0.index.models.iter().map(|model| model.kind.as_str()).collect();
        assert_eq!(kinds.len(), planned_count(&recipe));
        for kind in ["full", "random-start", "lora", "int8", "int4", "prune50"] {
            assert!(kinds.contains(&kind), "{kind}");
        }
    }
}
