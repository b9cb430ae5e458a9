//! From a zoo to experts: which layer and which probe, chosen on validation models; then the calibration.
//!
//! The validation models are halved: one half chooses (layer, preset, pass, temperature), the other gives the scores of
//! the label sets, so that what the sets promise does not rest on models that were used to choose.

mod experts;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{
    cache::{Centre, Copies, Joined, LayerCache, Model},
    expert::{Candidate, Expert},
    head::{Choice, Texts},
    layer::{Layer, layers},
    ridge::ridge,
    spec::{Head, Input, Preset, Spec, ranks},
    train::{Engine, Part, Task, Trained, Training, train, train_on},
};
use crate::{
    Checkpoint, Error, Result,
    random::Stream,
    zoo::{INDEX, Label, Split, Zoo},
};

/// Training models below which passes are added, so that steps are not too few.
const FEW: usize = 250;

/// What is to be fitted.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// The models.
    pub zoo: &'a Zoo,
    /// The label's name.
    pub label: &'a str,
    /// Trees learnt together, each minus its own centre; an expert comes out for each.
    pub trees: Vec<String>,
    /// Kinds of models taken (`full`).
    pub kinds: Vec<String>,
    /// Layers tried; all that every model has where empty.
    pub layers: Vec<String>,
    /// Presets tried.
    pub presets: Vec<Preset>,
    /// Ranks (r_U, r_V, r_T); by the layer's size where none.
    pub ranks: Option<(usize, usize, usize)>,
    /// What is taken off, where it is not the preset's own choice.
    pub input: Option<Input>,
    /// How to train.
    pub training: Training,
    /// Compressed copies to train on too. The copies of the validation models choose as the models themselves do.
    pub augment: Copies,
    /// Models to train on at most, of each tree.
    pub most: Option<usize>,
    /// Whether the training labels change places between models: a control that must come out as chance.
    pub shuffle: bool,
    /// Embeddings of the label's classes, for a head that compares with texts.
    pub texts: Option<ClassTexts>,
    /// Folder for the layer caches; they are deleted.
    pub work: &'a Path,
    /// What takes the steps of training, where it is not the kernels of this crate; ridge is solved by these all the same.
    pub engine: Option<&'a dyn Engine>,
}

/// Embeddings of the names of a label's classes.
#[derive(Debug, Clone)]
pub struct ClassTexts {
    /// (classes, width).
    pub values: Vec<f32>,
    /// Numbers of an embedding.
    pub width: usize,
    /// Fingerprint of the encoder that made them.
    pub encoder: String,
}

/// The models of one tree, by part.
#[derive(Debug, Clone, Default)]
pub struct Members {
    /// All, as numbers in the zoo's index.
    pub all: Vec<usize>,
    /// Places in `all`.
    pub training: Vec<usize>,
    /// That choose.
    pub selection: Vec<usize>,
    /// That calibrate sets.
    pub calibration: Vec<usize>,
    /// That are judged.
    pub test: Vec<usize>,
    /// Whose classes no training model has.
    pub held_out: Vec<usize>,
}

impl Members {
    /// The models of `tree` of these kinds; at most `most` to train on.
    pub fn of(zoo: &Zoo, tree: &str, kinds: &[String], most: Option<usize>) -> Self {
        let mut members = Self::default();
        let mut validation = 0;
        for (number, model) in zoo.index.models.iter().enumerate() {
            if model.tree != tree || !kinds.contains(&model.kind) {
                continue;
            }
            let at = members.all.len();
            let part = match model.split {
                Split::Training if most.is_some_and(|most| members.training.len() >= most) => continue,
                Split::Training => &mut members.training,
                Split::Validation => {
                    validation += 1;
                    if validation % 2 == 0 { &mut members.calibration } else { &mut members.selection }
                }
                Split::Test => &mut members.test,
                Split::HeldOut => &mut members.held_out,
            };
            part.push(at);
            members.all.push(number);
        }
        members
    }

    /// Where they lie.
    pub fn files(&self, zoo: &Zoo) -> Vec<PathBuf> {
        self.all.iter().map(|&at| zoo.path(&zoo.index.models[at])).collect()
    }

    /// Their truths for a label (places.len(), classes).
    pub fn truths(&self, zoo: &Zoo, (name, label): (&str, &Label), places: &[usize]) -> Vec<f32> {
        let numbers: Vec<usize> = places.iter().map(|&at| self.all[at]).collect();
        zoo.truths(name, label, &numbers)
    }
}

/// The layers that every file has in one shape.
///
/// # Errors
/// If a file cannot be opened.
pub fn common_layers(files: &[PathBuf]) -> Result<Vec<Layer>> {
    let mut common: Option<BTreeSet<Layer>> = None;
    for file in files {
        let here: BTreeSet<Layer> = layers(&Checkpoint::open(file)?).into_iter().collect();
        common = Some(match common {
            None => here,
            Some(before) => before.intersection(&here).cloned().collect(),
        });
    }
    Ok(common.unwrap_or_default().into_iter().collect())
}

/// Whether the zoo names the ancestor of `tree`, and that has `layer` in this shape.
///
/// # Errors
/// If it is named and cannot be opened.
pub fn base_has(zoo: &Zoo, tree: &str, layer: &Layer) -> Result<bool> {
    match zoo.base(tree) {
        Some(base) => Ok(layer.is_in(&Checkpoint::open(base)?)),
        None => Ok(false),
    }
}

/// One tree while a layer is tried.
struct Tree {
    members: Members,
    files: Vec<PathBuf>,
    raw: Option<LayerCache>,
    change: Option<LayerCache>,
}

/// The best so far.
struct Best {
    trained: Trained,
    layer: Layer,
    preset: Preset,
    input: Input,
    centres: Vec<Vec<f32>>,
}

impl Job<'_> {
    fn refuse(&self, what: impl Into<String>) -> Error {
        Error::file(self.zoo.folder.join(INDEX), what)
    }

    /// Trains every candidate and makes experts of the best, one for each tree.
    ///
    /// `told` hears what is tried, and how it did.
    ///
    /// # Errors
    /// If the zoo has too few models or classes for the job, or a model cannot be read. One sentence.
    pub fn run(&self, told: &mut dyn FnMut(&Candidate)) -> Result<Vec<Expert>> {
        let (_, label) = self.zoo.label(Some(self.label))?;
        let mut trees = self.trees()?;
        let seen = self.seen(&trees, label)?;
        let choice = if self.texts.is_some() { Choice::One } else { label.choice };
        let mut candidates = Vec::new();
        let mut best: Option<Best> = None;
        for layer in self.layers_of(&trees)? {
            trees.iter_mut().for_each(|tree| (tree.raw, tree.change) = (None, None));
            for &preset in &self.presets {
                let input = self.input_of(preset, &layer)?;
                self.fill(&mut trees, &layer, input)?;
                let Some(trained) = self.fit(&trees, &layer, preset, input, (label, choice, &seen))? else { continue };
                let candidate = Candidate {
                    layer: layer.name.clone(),
                    preset,
                    parameters: trained.net.values.len(),
                    validation: trained.validation,
                };
                told(&candidate);
                candidates.push(candidate);
                let score = |trained: &Trained| (trained.validation.0, -trained.validation.1);
                if best.as_ref().is_none_or(|best| score(&trained) > score(&best.trained)) {
                    let centre = |tree: &Tree| tree.cache(input).map_or(Vec::new(), |cache| cache.centre.clone());
                    let centres = trees.iter().map(centre).collect();
                    best = Some(Best { trained, layer: layer.clone(), preset, input, centres });
                }
            }
        }
        let best =
            best.ok_or_else(|| self.refuse("no layer of the models can be learnt from: all models are alike"))?;
        trees.iter_mut().for_each(|tree| (tree.raw, tree.change) = (None, None));
        self.fill(&mut trees, &best.layer, best.input)?;
        self.experts(&trees, &best, (label, choice, &seen), &candidates)
    }

    fn trees(&self) -> Result<Vec<Tree>> {
        let mut trees = Vec::new();
        for name in &self.trees {
            let members = Members::of(self.zoo, name, &self.kinds, self.most);
            let (training, validation) = (members.training.len(), members.selection.len());
            if training < 4 || validation < 1 {
                return Err(self.refuse(format!(
                    "tree `{}` has {training} training and {validation} validation models of kind {}; a probe needs at least 4 and 1",
                    name.escape_debug(),
                    self.kinds.join(" or "),
                )));
            }
            let files = members.files(self.zoo);
            trees.push(Tree { members, files, raw: None, change: None });
        }
        Ok(trees)
    }

    /// The classes that training models have: all that can be learnt.
    fn seen(&self, trees: &[Tree], label: &Label) -> Result<Vec<usize>> {
        let classes = label.classes.len();
        let (mut held, mut models) = (vec![0usize; classes], 0);
        for tree in trees {
            let truths = tree.members.truths(self.zoo, (self.label, label), &tree.members.training);
            for row in truths.chunks_exact(classes.max(1)) {
                models += 1;
                held.iter_mut().zip(row).for_each(|(held, t)| *held += usize::from(*t > 0.5));
            }
        }
        let varies = held.iter().filter(|&&count| count > 0 && count < models).count();
        if varies == 0 {
            let what = match label.classes.as_slice() {
                [] => "has no classes".to_string(),
                [one] => format!("has one class only (`{one}`)"),
                _ => "says the same of every training model".to_string(),
            };
            return Err(self.refuse(format!("label `{}` {what}, so there is nothing to tell apart", self.label)));
        }
        match self.texts {
            Some(_) => Ok((0..classes).filter(|&class| held[class] > 0).collect()),
            None => Ok((0..classes).collect()),
        }
    }

    fn layers_of(&self, trees: &[Tree]) -> Result<Vec<Layer>> {
        let files: Vec<PathBuf> = trees.iter().flat_map(|tree| tree.files.iter().cloned()).collect();
        let mut common = common_layers(&files)?;
        if self.layers.is_empty() {
            if common.is_empty() {
                return Err(self.refuse("the models have no layer in common (a matrix of one name and shape)"));
            }
            return Ok(common);
        }
        let there: Vec<String> = common.iter().map(|layer| layer.name.clone()).collect();
        if let Some(missing) = self.layers.iter().find(|name| !there.contains(name)) {
            let (missing, there) = (missing.escape_debug(), there.join(", "));
            return Err(
                self.refuse(format!("layer `{missing}` is not in every model in one shape; these are: {there}"))
            );
        }
        common.retain(|layer| self.layers.contains(&layer.name));
        Ok(common)
    }

    /// What is taken off: the bases where every tree has one with this layer (a head is often another one), else the
    /// centroids.
    fn input_of(&self, preset: Preset, layer: &Layer) -> Result<Input> {
        if layer.adapter {
            return Ok(Input::Raw);
        }
        if let Some(input) = self.input {
            return Ok(input);
        }
        if !preset.on_change() && preset != Preset::Ridge {
            return Ok(Input::Raw);
        }
        for tree in &self.trees {
            if !base_has(self.zoo, tree, layer)? {
                return Ok(Input::Centroid);
            }
        }
        Ok(Input::Base)
    }

    /// Builds the caches of this layer and input, where they are not there.
    fn fill(&self, trees: &mut [Tree], layer: &Layer, input: Input) -> Result<()> {
        for (number, tree) in trees.iter_mut().enumerate() {
            if tree.cache(input).is_some() {
                continue;
            }
            let centre = match input {
                Input::Raw => Centre::Zero,
                Input::Centroid => Centre::Mean,
                Input::Base => {
                    let name = &self.trees[number];
                    let Some(base) = self.zoo.base(name) else {
                        return Err(self.refuse(format!("names no base of tree `{}`", name.escape_debug())));
                    };
                    let values = layer.read(&Checkpoint::open(&base)?)?;
                    Centre::Given(values.operand().dense((layer.rows, layer.columns)))
                }
            };
            let place = self.work.join(format!("layer-{number}-{}", input.name().replace(' ', "-")));
            let _ = std::fs::remove_file(&place);
            let training = &tree.members.training;
            // Behind the models stand the copies that choose, in the order of `fit`.
            let mut models: Vec<Model> = tree.files.iter().map(|file| (file.clone(), None)).collect();
            for &damage in &self.augment.damages {
                models.extend(tree.members.selection.iter().map(|&at| (tree.files[at].clone(), Some(damage))));
            }
            let cache = LayerCache::build(&place, layer, &models, training, centre, &self.augment)?;
            // The map holds on to the file; its name is not needed any more.
            std::fs::remove_file(&place).map_err(|source| Error::io(&place, "delete the layer cache", source))?;
            *(if input == Input::Raw { &mut tree.raw } else { &mut tree.change }) = Some(cache);
        }
        Ok(())
    }

    fn fit(
        &self,
        trees: &[Tree],
        layer: &Layer,
        preset: Preset,
        input: Input,
        (label, choice, seen): (&Label, Choice, &[usize]),
    ) -> Result<Option<Trained>> {
        let caches: Vec<&LayerCache> = trees.iter().filter_map(|tree| tree.cache(input)).collect();
        let deviation = caches.iter().map(|cache| f64::from(cache.deviation)).sum::<f64>() / caches.len() as f64;
        let factor = if deviation > 0.0 { (1.0 / deviation) as f32 } else { return Ok(None) };
        let (mut training, mut selection) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
        let mut before = 0;
        for tree in trees {
            let members = &tree.members;
            for (part, places) in [(&mut training, &members.training), (&mut selection, &members.selection)] {
                part.0.extend(places.iter().map(|at| before + at));
                let truths = members.truths(self.zoo, (self.label, label), places);
                for row in truths.chunks_exact(label.classes.len()) {
                    part.1.extend(seen.iter().map(|&class| row[class]));
                }
            }
            let (models, selected) = (members.all.len(), members.selection.len());
            let copies = selected * self.augment.damages.len();
            selection.0.extend((0..copies).map(|copy| before + models + copy));
            let own = selection.1.len() - selected * seen.len();
            for _ in &self.augment.damages {
                selection.1.extend_from_within(own..own + selected * seen.len());
            }
            before += models + copies;
        }
        let classes = seen.len();
        if self.shuffle {
            let mut rows: Vec<Vec<f32>> = training.1.chunks_exact(classes).map(<[f32]>::to_vec).collect();
            Stream::new(self.training.seed, "probe/shuffled-labels", 0).shuffle(&mut rows);
            training.1 = rows.concat();
        }
        let parts = (
            Part { models: &training.0, truths: &training.1, classes },
            Part { models: &selection.0, truths: &selection.1, classes },
        );
        let models = Joined(caches);
        if preset == Preset::Ridge {
            return Ok(match self.texts {
                Some(_) => None,
                None => ridge((layer.rows, layer.columns, factor), &models, parts, choice),
            });
        }
        let head = match &self.texts {
            Some(texts) => Head::Text { width: texts.width, temperature: true },
            None => Head::Labels { classes },
        };
        let texts: Vec<f32> = self.texts.iter().flat_map(|texts| rows_of(&texts.values, texts.width, seen)).collect();
        let texts = Texts { values: &texts, classes: if texts.is_empty() { 0 } else { classes } };
        let ranks = self.ranks.unwrap_or_else(|| ranks(layer.rows, layer.columns));
        let spec = Spec { rows: layer.rows, columns: layer.columns, body: preset.body(ranks), head };
        if spec.check().is_err() {
            return Ok(None);
        }
        let more = if parts.0.models.len() < FEW { 2 } else { 1 };
        let recipe = Training { epochs: self.training.epochs * more, ..self.training.clone() };
        Ok(Some(match self.engine {
            None => train((spec, factor), &models, parts, (texts, choice), &recipe, &mut |_, _| {}),
            Some(engine) => {
                let (train, validation) = parts;
                let task = Task { models: &models, train, validation, texts, choice, training: &recipe };
                train_on(engine, (spec, factor), task, &mut |_, _| {})?
            }
        }))
    }
}

impl Tree {
    fn cache(&self, input: Input) -> Option<&LayerCache> {
        if input == Input::Raw { self.raw.as_ref() } else { self.change.as_ref() }
    }
}

/// The rows `which` of `values`, whose rows are `width` long.
fn rows_of(values: &[f32], width: usize, which: &[usize]) -> Vec<f32> {
    which.iter().flat_map(|&at| &values[at * width..][..width]).copied().collect()
}
