//! What all runs of a suite have in common: the images, the net, the schedule.

use serde::{Deserialize, Serialize};

use super::data::Data;
use crate::{
    Error, Result,
    data::random::Stream,
    nn::{
        Architecture, Input, Recipe, Spec, Weights,
        graph::Graph,
        optimiser::{Curve, Rule, Schedule},
        saliency::prunable,
        train::{Augmentation, fingerprint},
    },
};

/// A rule of descent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Descent {
    /// SGD with momentum 0.9 and weight decay 10⁻⁴.
    Sgd,
    /// AdamW with weight decay 10⁻².
    Adam,
}

impl Descent {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sgd => "sgd",
            Self::Adam => "adam",
        }
    }

    fn rule(self) -> Rule {
        match self {
            Self::Sgd => Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-4 },
            Self::Adam => Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 1e-2 },
        }
    }
}

/// What a suite needs to know beside the images; records hold no run of another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schooling {
    /// The dense net.
    pub architecture: Architecture,
    /// Times every image is seen.
    pub epochs: u64,
    /// Images a step.
    pub batch: usize,
    /// The learning rate of dense SGD, divided by ten at half and three quarters of a run; the lowest that is tried where
    /// it is chosen.
    pub sgd_peak: f64,
    /// That of dense Adam.
    pub adam_peak: f64,
    /// How images are changed.
    pub augmentation: Augmentation,
    /// Images that weights are scored on before training.
    pub scored_on: usize,
    /// The step that tickets are rewound to.
    pub rewind: u64,
    /// The share of the weights that goes with each round of the lottery.
    pub pruned_a_round: f64,
}

/// Images, net and schedule.
#[derive(Debug)]
pub struct Ground {
    /// The images.
    pub data: Data,
    /// The schedule.
    pub schooling: Schooling,
    /// The dense net.
    pub spec: Spec,
    /// Its arithmetic.
    pub graph: Graph,
}

impl Ground {
    /// Puts the parts together.
    ///
    /// # Errors
    /// If the net is not possible, or a number of the schedule is not.
    pub fn new(data: Data, schooling: Schooling) -> Result<Self> {
        let set = &data.train;
        let input = Input { height: set.height, width: set.width, channels: set.channels };
        let spec = Spec { architecture: schooling.architecture.clone(), input, classes: set.classes };
        let graph = spec.graph()?;
        if !(schooling.pruned_a_round > 0.0 && schooling.pruned_a_round < 1.0) {
            return Err(Error::Recipe(format!(
                "the share pruned a round is {}, expected a number between 0 and 1",
                schooling.pruned_a_round
            )));
        }
        let ground = Self { data, schooling, spec, graph };
        ground.recipe(Descent::Sgd, ground.schooling.sgd_peak, 0).check(&ground.data.train)?;
        Ok(ground)
    }

    /// A run at learning rate `peak`. Everything decays, as everything behind shared weights does.
    pub fn recipe(&self, descent: Descent, peak: f64, seed: u64) -> Recipe {
        let Schooling { epochs, batch, augmentation, .. } = self.schooling;
        let curve = Curve::Step { milestones: vec![0.5, 0.75], factor: 0.1 };
        Recipe {
            seed,
            epochs,
            batch,
            rule: descent.rule(),
            decay_vectors: true,
            schedule: Schedule { peak, warmup_epochs: 0.0, curve },
            label_smoothing: 0.0,
            augmentation,
            scaling: self.data.train.scaling(),
        }
    }

    /// Weights that compete for memory: those of matrices and convolutions.
    pub fn weights(&self) -> usize {
        prunable(self.graph.layout()).into_iter().filter(|&prunable| prunable).count()
    }

    /// Numbers every contestant of the dense net's form keeps beside them: vectors, and the moments of norms.
    pub fn rest(&self) -> usize {
        rest(&self.graph)
    }

    /// What distinguishes these runs from others: images, net and schedule.
    pub fn identity(&self) -> Identity {
        let images = [&self.data.train, &self.data.test, &self.data.fit].map(fingerprint);
        Identity { data: self.data.name.clone(), images, schooling: self.schooling.clone(), start: START.into() }
    }
}

/// What distinguishes the runs of one ground from those of another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Where the images are from.
    pub data: String,
    /// What stands for the pixels and labels of the parts.
    pub images: [String; 3],
    /// The schedule.
    pub schooling: Schooling,
    /// How weights begin.
    pub start: String,
}

/// What [`start`] draws.
const START: &str = "he-normal";

/// Numbers of a net that no method makes fewer: vectors, and the moments of norms.
pub fn rest(graph: &Graph) -> usize {
    let vectors = prunable(graph.layout()).into_iter().filter(|&prunable| !prunable).count();
    vectors + graph.running().len()
}

/// The weights of a net before training. Those of linears are normal with the variance of He et al. (2015), 2 / inputs,
/// where no norm would make up for another: as convolutions begin, and as the published comparison begins.
pub fn start(graph: &Graph, seed: u64) -> Weights {
    let mut weights = Weights::start(graph, seed);
    if graph.running().is_empty() {
        for entry in graph.layout().entries().iter().filter(|entry| entry.shape.len() == 2) {
            let mut stream = Stream::new(seed, &format!("sharing/start/{}", entry.name), 0);
            let deviation = (2.0 / entry.shape[1] as f64).sqrt();
            weights.values[entry.range()].fill_with(|| (deviation * stream.normal()) as f32);
        }
    }
    weights
}
