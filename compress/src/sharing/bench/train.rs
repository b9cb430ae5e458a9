//! One run: a net trained over whatever stands behind its weights, and measured.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::ground::{Descent, Ground};
use crate::{
    Error, Result,
    data::images::ImageSet,
    nn::{Net, Spec, Trainer, Weights, evaluate, parametrise::Parametrise},
};

/// Images a batch of the evaluation.
const EVALUATED: usize = 200;

/// Which images a run sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A part of those for training, and measured on the rest of them: to choose a learning rate.
    Choosing,
    /// All of those for training, and measured on the test images.
    Final,
}

impl Part {
    /// Its name in those of records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Choosing => "choosing",
            Self::Final => "final",
        }
    }

    /// Images to train on and to measure on.
    pub fn images(self, ground: &Ground) -> (&ImageSet, &ImageSet) {
        let data = &ground.data;
        match self {
            Self::Choosing => (&data.fit, &data.validation),
            Self::Final => (&data.train, &data.test),
        }
    }
}

/// A run's circumstances beside the ground.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Course {
    /// The images.
    pub part: Part,
    /// The rule of a step.
    pub descent: Descent,
    /// The learning rate.
    pub peak: f64,
    /// Of the first weights, the order of the images, the pool.
    pub seed: u64,
}

/// What a net told right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Images told right; those chance would, where the run did not end.
    pub right: usize,
    /// Images.
    pub images: usize,
    /// The step at which the cost was no longer finite.
    pub diverged: Option<u64>,
}

impl Score {
    /// The share told right.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.images as f64
    }

    /// Of a run whose cost was no longer finite at `step`.
    pub fn diverged(ground: &Ground, part: Part, step: u64) -> Self {
        let images = part.images(ground).1.len();
        Self { right: images / ground.spec.classes, images, diverged: Some(step) }
    }
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// With weights, and those at the step asked for.
    Trained {
        /// At the end.
        weights: Weights,
        /// At the step asked for.
        early: Weights,
    },
    /// At this step, with a cost that is not finite.
    Diverged(u64),
}

/// Trains `spec` from `start`, `with` standing behind its weights, and keeps the weights of step `early` too.
///
/// # Errors
/// If the parts do not fit each other.
pub fn train(
    ground: &Ground,
    spec: &Spec,
    course: Course,
    start: Weights,
    with: Option<&dyn Parametrise>,
    early: u64,
) -> Result<End> {
    let recipe = ground.recipe(course.descent, course.peak, course.seed);
    let mut trainer = Trainer::from_weights(spec, recipe, course.part.images(ground).0, start, with)?;
    let mut to = |until: u64| match trainer.run(until, &mut |_| ControlFlow::Continue(())) {
        Ok(()) if trainer.weights().values.iter().all(|value| value.is_finite()) => Ok(Some(trainer.weights().clone())),
        Ok(()) | Err(Error::Numeric(_)) => Ok(None),
        Err(error) => Err(error),
    };
    match (to(early)?, to(u64::MAX)?) {
        (Some(early), Some(weights)) => Ok(End::Trained { weights, early }),
        _ => Ok(End::Diverged(trainer.step_number())),
    }
}

/// What `weights` of `spec` tell right of the images of `part`.
///
/// # Errors
/// If the parts do not fit each other.
pub fn measure(ground: &Ground, spec: &Spec, weights: &Weights, part: Part) -> Result<Score> {
    let images = part.images(ground).1;
    let scaling = ground.data.train.scaling();
    match evaluate(&mut Net::new(spec, EVALUATED.min(images.len()))?, weights, images, &scaling) {
        Ok(found) => Ok(Score { right: found.right, images: images.len(), diverged: None }),
        // The last step led out of f32.
        Err(Error::Numeric(_)) => {
            Ok(Score::diverged(ground, part, ground.schooling.epochs * course_steps(ground, part)))
        }
        Err(error) => Err(error),
    }
}

/// Steps of an epoch on the images of `part`.
fn course_steps(ground: &Ground, part: Part) -> u64 {
    part.images(ground).0.len().div_ceil(ground.schooling.batch) as u64
}

/// [`train()`] and [`measure`].
///
/// # Errors
/// As they.
pub fn score(
    ground: &Ground,
    spec: &Spec,
    course: Course,
    start: Weights,
    with: Option<&dyn Parametrise>,
) -> Result<Score> {
    match train(ground, spec, course, start, with, 0)? {
        End::Trained { weights, .. } => measure(ground, spec, &weights, course.part),
        End::Diverged(step) => Ok(Score::diverged(ground, course.part, step)),
    }
}
