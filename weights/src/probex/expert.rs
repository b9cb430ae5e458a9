//! An expert: a trained probe with all that is needed to use it on a model nobody documented.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    cache::centred,
    calibration,
    head::{Choice, Texts, probabilities},
    layer::{Layer, Values},
    metrics::Figures,
    neighbours::{self, Members},
    net::Net,
    spec::{Input, Preset, Spec},
    train::Training,
};

/// How far models of the tree lie from its middle, and how far is too far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Radius {
    /// Largest distance of a training or validation model to the centroid, ‖X − centroid‖.
    pub own: f64,
    /// Least distance of a model of another tree of the zoo, where it has one.
    pub nearest_other: Option<f64>,
    /// Distances beyond this are of unknown trees: twice `own`, and where other trees are known at most halfway (in
    /// ratio) to the nearest of their models.
    pub limit: f64,
}

impl Radius {
    /// From the distances of a tree's own models, and of others.
    pub fn of(own: &[f64], others: &[f64]) -> Self {
        let own = own.iter().fold(0.0f64, |most, &d| most.max(d));
        let nearest_other = others.iter().copied().min_by(f64::total_cmp);
        let halfway = nearest_other.filter(|other| *other > own).map(|other| (own * other).sqrt());
        Self { own, nearest_other, limit: halfway.map_or(2.0 * own, |halfway| halfway.min(2.0 * own)) }
    }
}

/// A probe that was tried on the way to the expert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// The layer's name.
    pub layer: String,
    /// What was tried.
    pub preset: Preset,
    /// Numbers it has.
    pub parameters: usize,
    /// Right decisions and cost on the validation models.
    pub validation: (f64, f64),
}

/// All of an expert but its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The form of the file.
    pub format: u32,
    /// Which tree it knows.
    pub tree: String,
    /// What it says of a model.
    pub label: String,
    /// What may hold at once.
    pub choice: Choice,
    /// The classes, in the order of the outputs.
    pub classes: Vec<String>,
    /// The layer it reads.
    pub layer: Layer,
    /// What is taken off the layer.
    pub input: Input,
    /// The probe's shape.
    pub spec: Spec,
    /// What the layer is multiplied with.
    pub factor: f32,
    /// The preset it was made by.
    pub preset: Preset,
    /// How far its models lie.
    pub radius: Radius,
    /// What logits are divided by.
    pub temperature: f32,
    /// Scores of the calibration models, ascending ([`calibration::scores`]).
    pub conformal: Vec<f32>,
    /// Documented models: names, and the classes each has.
    pub documented: Vec<(String, Vec<usize>)>,
    /// Figures on the validation models.
    pub validation: Figures,
    /// Figures on the test models, where the zoo has some.
    pub test: Option<Figures>,
    /// Share of test models whose sets at 90 % coverage hold all their classes.
    pub covered: Option<f64>,
    /// Figures on models of classes that no training model has, among those classes: by their names alone.
    pub zero_shot: Option<Figures>,
    /// Fingerprint of the encoder of the classes' names, where there is one.
    pub encoder: Option<String>,
    /// Models it was trained on.
    pub trained_on: usize,
    /// How.
    pub training: Training,
    /// Compressed copies it was trained on too.
    pub augmented: Vec<super::damage::Damage>,
    /// Classes that training models had; others are known by their names' embeddings alone.
    pub seen: Vec<usize>,
    /// What was tried.
    pub candidates: Vec<Candidate>,
}

/// The expert.
#[derive(Debug, Clone, PartialEq)]
pub struct Expert {
    /// What it is.
    pub about: About,
    /// The probe.
    pub net: Net,
    /// What is taken off the layer (rows · columns); empty for raw input and adapters.
    pub centre: Vec<f32>,
    /// The mean of the training models (rows · columns), by which models are routed; empty for adapters, whose middle is 0.
    pub centroid: Vec<f32>,
    /// Representations of the documented models, (models, representation).
    pub representations: Vec<f32>,
    /// Embeddings of the classes' names (classes, width), for heads that compare with texts.
    pub texts: Vec<f32>,
}

/// What an expert says of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// Each class with its probability, in the expert's order.
    pub probabilities: Vec<f32>,
    /// Classes above 0.5, or the most likely one.
    pub decided: Vec<usize>,
    /// The set that holds all true classes with the coverage asked for.
    pub set: Vec<usize>,
    /// Documented models, nearest first, with the distance of their representation.
    pub nearest: Vec<(usize, f32)>,
    /// Classes that those have by their majority.
    pub vote: Vec<usize>,
    /// Mean distance to the two nearest of the models of each class that the probe learnt from; none where it has fewer.
    pub to_classes: Vec<Option<f32>>,
    /// The model's own representation.
    #[serde(skip)]
    pub representation: Vec<f32>,
}

impl About {
    /// Which models its accuracy is of: `test`, or `validation` where the zoo has no others.
    pub fn judged_on(&self) -> &'static str {
        if self.test.is_some() { "test" } else { "validation" }
    }
}

impl Expert {
    /// ‖X − centroid‖ of a model's layer.
    pub fn distance(&self, values: &Values) -> f64 {
        values.distance((self.about.layer.rows, self.about.layer.columns), &self.centroid)
    }

    /// The class texts.
    pub fn class_texts(&self) -> Texts<'_> {
        let classes = if self.texts.is_empty() { 0 } else { self.about.classes.len() };
        Texts { values: &self.texts, classes }
    }

    /// What the expert says of models' layers; `coverage` is that of the sets, `nearest` how many documented models are
    /// named and vote.
    pub fn answers(&self, models: Vec<Values>, coverage: f64, nearest: usize) -> Vec<Answer> {
        let classes = self.about.classes.len();
        let layers: Vec<Values> =
            models.into_par_iter().map(|values| centred(values, &self.about.layer, &self.centre)).collect();
        let operands: Vec<_> = layers.iter().map(Values::operand).collect();
        let (logits, representations) = self.net.look_at(&operands, self.class_texts());
        let threshold = calibration::threshold(&self.about.conformal, coverage);
        let p = probabilities(self.about.choice, &logits, classes, self.about.temperature);
        let width = self.net.spec().representation();
        let rows = p.par_chunks_exact(classes).zip(representations.par_chunks_exact(width));
        rows.map(|(p, e)| {
            let distances = neighbours::distances(&self.representations, e);
            let nearest = neighbours::nearest(&distances, nearest);
            let held: Vec<&[usize]> = nearest.iter().map(|&(at, _)| self.about.documented[at].1.as_slice()).collect();
            let to_class = |class| neighbours::to_class(&distances[..self.learnt()], self.held(), class, None);
            Answer {
                decided: match self.about.choice {
                    Choice::Several => (0..classes).filter(|&class| p[class] > 0.5).collect(),
                    Choice::One => vec![super::metrics::largest(p)],
                },
                set: (0..classes).filter(|&class| 1.0 - p[class] <= threshold).collect(),
                probabilities: p.to_vec(),
                vote: neighbours::vote(self.about.choice, &held, classes),
                nearest,
                to_classes: (0..classes).map(to_class).collect(),
                representation: e.to_vec(),
            }
        })
        .collect()
    }

    /// The classes of each documented model.
    pub fn held(&self) -> impl Iterator<Item = &[usize]> {
        self.about.documented.iter().map(|(_, classes)| classes.as_slice())
    }

    /// How far the documented models that the probe did not learn from lie from their classes: what
    /// [`Answer::to_classes`] is held against.
    pub fn members(&self) -> Members {
        let (held, width): (Vec<&[usize]>, usize) = (self.held().collect(), self.net.spec().representation());
        let learnt = self.learnt();
        let (known, models) = self.representations.split_at(learnt * width);
        Members::of(width, (known, &held[..learnt]), (models, &held[learnt..]))
    }

    /// Documented models that the probe learnt from: they stand first.
    fn learnt(&self) -> usize {
        self.about.trained_on.min(self.about.documented.len())
    }

    /// The documented models most like a text, by the cosine of their representations to what the head makes of the text's
    /// `embedding`; none where the head compares with no texts.
    pub fn search(&self, embedding: &[f32], count: usize) -> Vec<(usize, f32)> {
        let q = self.net.text_vectors(Texts { values: embedding, classes: 1 });
        let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        let rows = self.representations.chunks_exact(self.net.spec().representation()).enumerate();
        let mut found: Vec<(usize, f32)> = rows
            .filter(|_| !q.is_empty())
            .map(|(at, e)| (at, e.iter().zip(&q).map(|(e, q)| e * q).sum::<f32>() / length(e)))
            .collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        found.truncate(count);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probex::{
        metrics::Figure,
        spec::{Body, Head},
    };

    /// An expert whose logits are the three numbers of a model's layer.
    fn plain(choice: Choice, temperature: f32, conformal: Vec<f32>) -> Expert {
        let spec = Spec { rows: 1, columns: 3, body: Body::Dense, head: Head::Labels { classes: 3 } };
        let (name, nothing) = ("w".to_string(), Figure { value: 0.0, low: 0.0, high: 0.0 });
        let figures = Figures {
            models: 0,
            accuracy: nothing,
            auroc: None,
            calibration_error: 0.0,
            exact: nothing,
            top_k: nothing,
        };
        let about = About {
            format: 1,
            tree: "oak".into(),
            label: "is".into(),
            choice,
            classes: ["a", "b", "c"].map(String::from).to_vec(),
            layer: Layer { name, rows: 1, columns: 3, adapter: false },
            input: Input::Raw,
            spec: spec.clone(),
            factor: 1.0,
            preset: Preset::Dense,
            radius: Radius::of(&[1.0], &[]),
            temperature,
            conformal,
            documented: Vec::new(),
            validation: figures,
            test: None,
            covered: None,
            zero_shot: None,
            encoder: None,
            trained_on: 0,
            training: Training::default(),
            augmented: Vec::new(),
            seen: vec![0, 1, 2],
            candidates: Vec::new(),
        };
        let one = vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0];
        let (centre, centroid, representations, texts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Expert { about, net: Net::new(spec, one, 1.0), centre, centroid, representations, texts }
    }

    #[test]
    fn a_set_holds_the_classes_that_are_no_less_likely_than_the_threshold_allows() {
        // Probabilities 0.9, 0.5 and 0.1 each by itself, and 0.7, 0.2 and 0.1 together; the temperature halves the logits.
        let (alone, together) =
            (vec![2.0 * 9f32.ln(), 0.0, -2.0 * 9f32.ln()], vec![2.0 * 7f32.ln(), 2.0 * 2f32.ln(), 0.0]);
        let nine = vec![0.05, 0.15, 0.25, 0.35, 0.5, 0.6, 0.7, 0.85, 0.95];
        let set = |choice: Choice, logits: &Vec<f32>, coverage: f64| -> Vec<usize> {
            let expert = plain(choice, 2.0, nine.clone());
            expert.answers(vec![Values::Dense(logits.clone())], coverage, 0).remove(0).set
        };
        let cases: [(f64, &[usize], &[usize]); 7] = [
            (0.1, &[], &[]),                // 1 − p up to 0.05
            (0.3, &[0], &[]),               // 0.25
            (0.4, &[0], &[0]),              // 0.35
            (0.5, &[0, 1], &[0]),           // 0.5, which one of them is
            (0.8, &[0, 1], &[0, 1]),        // 0.85
            (0.9, &[0, 1, 2], &[0, 1, 2]),  // 0.95
            (0.95, &[0, 1, 2], &[0, 1, 2]), // 1, since no score says more
        ];
        for (coverage, several, one) in cases {
            assert_eq!(set(Choice::Several, &alone, coverage), several, "{coverage}");
            assert_eq!(set(Choice::One, &together, coverage), one, "{coverage}");
        }
        // The temperature divides: without it the odds are the squares, 49 : 4 : 1.
        let cold = plain(Choice::One, 1.0, nine.clone()).answers(vec![Values::Dense(together)], 0.4, 0).remove(0);
        assert!((cold.probabilities[0] - 49.0 / 54.0).abs() < 1e-6, "{:?}", cold.probabilities);
    }

    #[test]
    fn the_limit_lies_between_own_and_others() {
        assert_eq!(Radius::of(&[1.0, 2.0], &[]).limit, 4.0);
        assert_eq!(Radius::of(&[1.0, 2.0], &[100.0]).limit, 4.0);
        assert_eq!(Radius::of(&[2.0], &[4.5]).limit, 3.0);
        assert_eq!(Radius::of(&[2.0], &[1.5]).limit, 4.0, "trees that overlap cannot be told apart by distance");
    }
}
