//! One training: which net, from which weights, for how long.

use scruple_compress::{lottery::filters::FilterCriterion, nn::Spec};
use serde::{Deserialize, Serialize};

/// Which weights a training starts with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Start {
    /// The first weights of the seed. Each tensor's are a function of the seed and its name, so those of a shallower net are
    /// the dense net's: the ticket that keeps the first blocks of each stage.
    Theta0,
    /// Fresh ones of another seed; order and augmentation stay.
    Reinit,
    /// The dense net's first weights, thinned to the filters a criterion keeps.
    Filters {
        /// By what.
        criterion: FilterCriterion,
    },
    /// Some blocks of the dense net as it was at an epoch.
    Rewound {
        /// Its epoch; the end of its run where it is not said.
        epoch: Option<u64>,
        /// The blocks of each stage.
        kept: Vec<Vec<usize>>,
    },
}

/// A training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The dense net it belongs to.
    pub net: String,
    /// What is trained, in a word.
    pub arm: String,
    /// Of everything that is drawn.
    pub seed: u64,
    /// The net.
    pub spec: Spec,
    /// Its first weights.
    pub start: Start,
    /// Epochs the schedule spans.
    pub epochs: u64,
    /// The epoch it is taken up at.
    pub from_epoch: u64,
    /// Whether a tenth of the images to train on is held out and takes the place of the test, for choosing by.
    pub held_out: bool,
}

impl Job {
    /// The name of its record's file.
    pub fn name(&self) -> String {
        format!("{}-{}-s{}", self.net, self.arm, self.seed)
    }
}
