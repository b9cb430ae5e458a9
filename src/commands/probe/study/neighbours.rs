//! Models told by example, on the representations of probes and on the layer itself: the vote of the nearest training
//! models, and how far a model is from those of one class.

use std::path::PathBuf;

use anyhow::Result;
use rayon::prelude::*;
use scruple_weights::{
    Checkpoint,
    probex::{
        evaluate::look,
        fit::{Members, base_has},
        head::Choice,
        layer::Layer,
        metrics::{Figure, Judged, mean_over},
        neighbours::{self, Spread},
        spec::Preset,
    },
    random::Stream,
};

use super::{Finding, Study};
use crate::{commands::probe::train::shown, printer};

/// Numbers of a representation above which covariances are not taken: they are its square.
const WIDEST: usize = 1024;

/// Presets whose representations are compared.
const OF: [Preset; 3] = [Preset::Probex, Preset::Delta, Preset::Mvprobe];

/// Models with their representations and classes.
struct Known {
    /// (models, width).
    rows: Vec<f32>,
    width: usize,
    /// The classes of each.
    held: Vec<Vec<usize>>,
}

impl Known {
    fn row(&self, at: usize) -> &[f32] {
        &self.rows[at * self.width..][..self.width]
    }

    fn held(&self) -> impl Iterator<Item = &[usize]> {
        self.held.iter().map(Vec::as_slice)
    }
}

/// What is asked of models: by others, or by one another, each in its turn.
struct Asked<'a> {
    known: &'a Known,
    asked: &'a Known,
    is_same: bool,
}

impl Asked<'_> {
    /// Distances of model `at` to all known ones; to itself it has none.
    fn distances(&self, at: usize) -> Vec<f32> {
        let mut distances = neighbours::distances(&self.known.rows, self.asked.row(at));
        if self.is_same {
            distances[at] = f32::INFINITY;
        }
        distances
    }

    /// Right decisions of each model by the vote of its `k` nearest: of all classes, or whether the one is found.
    fn votes(&self, k: usize, choice: Choice, classes: usize) -> Vec<f64> {
        let model = |at: usize| {
            let nearest = neighbours::nearest(&self.distances(at), k);
            let held: Vec<&[usize]> = nearest.iter().map(|&(near, _)| self.known.held[near].as_slice()).collect();
            let (said, truth) = (neighbours::vote(choice, &held, classes), &self.asked.held[at]);
            match choice {
                Choice::One => f64::from(said == *truth),
                Choice::Several => {
                    let right = (0..classes).filter(|class| said.contains(class) == truth.contains(class));
                    right.count() as f64 / classes as f64
                }
            }
        };
        (0..self.asked.held.len()).into_par_iter().map(model).collect()
    }

    /// Mean AUROC of each model's `scores` (less is nearer the class) over the classes that can be asked about.
    fn auroc(&self, classes: &[usize], scores: impl Fn(usize) -> Vec<Option<f32>> + Send + Sync) -> Option<Figure> {
        let models = self.asked.held.len();
        let rows: Vec<Vec<Option<f32>>> = (0..models).into_par_iter().map(scores).collect();
        let there: Vec<usize> = (0..classes.len()).filter(|&at| rows.iter().all(|row| row[at].is_some())).collect();
        let near: Vec<f32> =
            rows.iter().flat_map(|row| there.iter().map(|&at| -row[at].unwrap_or(f32::INFINITY))).collect();
        let truth = |at: usize, class: usize| f32::from(u8::from(self.asked.held[at].contains(&classes[class])));
        let truths: Vec<f32> = (0..models).flat_map(|at| there.iter().map(move |&class| truth(at, class))).collect();
        let judged =
            Judged { choice: Choice::Several, probabilities: &near, truths: &truths, classes: there.len().max(1) };
        if there.is_empty() { None } else { judged.auroc(0) }
    }

    fn two_nearest(&self, classes: &[usize]) -> Option<Figure> {
        self.auroc(classes, |at| {
            let (distances, skip) = (self.distances(at), self.is_same.then_some(at));
            classes.iter().map(|&class| neighbours::to_class(&distances, self.known.held(), class, skip)).collect()
        })
    }

    fn spread(&self, classes: &[usize]) -> Option<Figure> {
        let of = |class: usize, but: Option<usize>| {
            let rows =
                (0..self.known.held.len()).filter(|at| self.known.held[*at].contains(&class) && Some(*at) != but);
            Spread::of(&rows.map(|at| self.known.row(at)).collect::<Vec<_>>())
        };
        let whole: Vec<Option<Spread>> = classes.par_iter().map(|&class| of(class, None)).collect();
        self.auroc(classes, |at| {
            let score = |(&class, whole): (&usize, &Option<Spread>)| {
                // A model among those of the class must not have shaped it.
                match self.is_same && self.known.held[at].contains(&class) {
                    true => Some(of(class, Some(at))?.distance(self.asked.row(at))),
                    false => Some(whole.as_ref()?.distance(self.asked.row(at))),
                }
            };
            classes.iter().zip(&whole).map(score).collect()
        })
    }
}

impl Study<'_> {
    /// Votes of `self.neighbours` nearest models, and one-class scores: of test models by training models, and of models of
    /// classes never seen by one another.
    pub(super) fn by_example(&mut self) -> Result<()> {
        for layer in self.layers.clone() {
            for tree in self.trees.clone() {
                let members = self.members(&tree, "full");
                let (known, test) = (self.of_layer(&layer, &tree, &members, &members.training)?, &members.test);
                let asked = self.of_layer(&layer, &tree, &members, test)?;
                self.by_others(&tree, &layer, "the layer itself", &[(known, asked)])?;
                for preset in OF {
                    let experts = self.experts(&self.want(&tree, &layer, preset))?;
                    let files = members.files(self.zoo);
                    let mut seeds = Vec::new();
                    let mut unseen = Vec::new();
                    for expert in experts.iter().map(|experts| &experts[0]) {
                        let known = |places: &[usize]| -> Result<Known> {
                            let files: Vec<PathBuf> = places.iter().map(|&at| files[at].clone()).collect();
                            let rows = look(expert, &files, None, None)?.1;
                            let width = expert.about.spec.representation();
                            Ok(Known { rows, width, held: self.classes_of(&members, places) })
                        };
                        seeds.push((known(&members.training)?, known(&members.test)?));
                        unseen.push(known(&members.held_out)?);
                    }
                    self.by_others(&tree, &layer, preset.name(), &seeds)?;
                    if preset == Preset::Mvprobe && tree == self.trees[0] {
                        seeds.iter_mut().for_each(|(known, _)| {
                            Stream::new(0, "probe/shuffled-labels", 0).shuffle(&mut known.held);
                        });
                        self.by_others(&tree, &layer, &format!("{}, shuffled labels", preset.name()), &seeds)?;
                    }
                    if self.of.choice == Choice::One && !members.held_out.is_empty() {
                        self.by_one_another(&tree, &layer, &format!("{}, classes never seen", preset.name()), &unseen)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The classes that the models at `places` have.
    fn classes_of(&self, members: &Members, places: &[usize]) -> Vec<Vec<usize>> {
        let truths = members.truths(self.zoo, (self.label, self.of), places);
        let rows = truths.chunks_exact(self.of.classes.len().max(1));
        rows.map(|row| (0..row.len()).filter(|&class| row[class] > 0.5).collect()).collect()
    }

    /// The layer less its base (where the zoo names none, as it is) in place of a representation.
    fn of_layer(&self, layer: &Layer, tree: &str, members: &Members, places: &[usize]) -> Result<Known> {
        let read = |file: &PathBuf| -> Result<Vec<f32>> {
            Ok(layer.read(&Checkpoint::open(file)?)?.operand().dense((layer.rows, layer.columns)))
        };
        let base = match (base_has(self.zoo, tree, layer)?, self.zoo.base(tree)) {
            (true, Some(base)) => read(&base)?,
            _ => vec![0.0; layer.elements()],
        };
        let files = members.files(self.zoo);
        let change = |&at: &usize| -> Result<Vec<f32>> {
            let mut x = read(&files[at])?;
            x.iter_mut().zip(&base).for_each(|(x, base)| *x -= base);
            Ok(x)
        };
        let rows = places.par_iter().map(change).collect::<Result<Vec<_>>>()?.concat();
        Ok(Known { rows, width: layer.elements(), held: self.classes_of(members, places) })
    }

    /// Test models by the training models, for each seed.
    fn by_others(&mut self, tree: &str, layer: &Layer, what: &str, seeds: &[(Known, Known)]) -> Result<()> {
        let asked: Vec<Asked<'_>> = seeds.iter().map(|(known, asked)| Asked { known, asked, is_same: false }).collect();
        self.figures(tree, layer, what, &asked)
    }

    /// Models by one another, for each seed.
    fn by_one_another(&mut self, tree: &str, layer: &Layer, what: &str, seeds: &[Known]) -> Result<()> {
        let asked: Vec<Asked<'_>> = seeds.iter().map(|known| Asked { known, asked: known, is_same: true }).collect();
        self.figures(tree, layer, what, &asked)
    }

    /// Votes over all seeds; scores of the first.
    fn figures(&mut self, tree: &str, layer: &Layer, what: &str, seeds: &[Asked<'_>]) -> Result<()> {
        let (choice, classes) = (self.of.choice, self.of.classes.len());
        let Some(first) = seeds.first() else { return Ok(()) };
        for k in self.neighbours.clone() {
            let votes: Vec<Vec<f64>> = seeds.iter().map(|asked| asked.votes(k, choice, classes)).collect();
            let nearest = if k == 1 { "the nearest".into() } else { format!("vote of the {k} nearest") };
            self.example(tree, layer, format!("{what}, {nearest}"), mean_over(&votes, 0));
        }
        let present: Vec<usize> =
            (0..classes).filter(|class| first.asked.held().any(|held| held.contains(class))).collect();
        let mut scores = vec![("AUROC of the distance to the two nearest of a class", first.two_nearest(&present))];
        if first.known.width <= WIDEST {
            scores.push(("AUROC of the deviations from a class", first.spread(&present)));
        }
        for (score, figure) in scores {
            if let Some(figure) = figure {
                self.example(tree, layer, format!("{what}, {score}"), figure);
            }
        }
        Ok(())
    }

    fn example(&mut self, tree: &str, layer: &Layer, what: String, accuracy: Figure) {
        let (part, tree, layer) = ("neighbours", tree.to_string(), layer.name.clone());
        printer::say(format!("{part}: {tree}, {layer}, {what}: {}", shown(&accuracy)));
        self.findings.push(Finding { part, tree, layer, what, parameters: None, accuracy, figures: None });
    }
}
