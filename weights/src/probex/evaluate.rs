//! An expert on labelled models: those of its tree, of other trees, and compressed copies.

use std::path::PathBuf;

use rayon::prelude::*;

use super::{
    damage::Damage,
    expert::Expert,
    fit::Members,
    head::{Choice, probabilities},
    layer::Values,
    metrics::{Figures, Judged, largest},
};
use crate::{Checkpoint, Result, zoo::Zoo};

/// Models read at a time.
const TOGETHER: usize = 64;

/// Probabilities and truths of models, (models, classes) each.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What may hold at once.
    pub choice: Choice,
    /// In 0..1.
    pub probabilities: Vec<f32>,
    /// 0 or 1.
    pub truths: Vec<f32>,
    /// Columns.
    pub classes: usize,
}

impl Outcome {
    /// All figures.
    pub fn figures(&self, seed: u64) -> Figures {
        let Self { choice, classes, .. } = *self;
        Judged { choice, probabilities: &self.probabilities, truths: &self.truths, classes }.figures(seed)
    }

    /// Share of right decisions on each model.
    pub fn by_model(&self) -> Vec<f64> {
        let rows = self.probabilities.chunks_exact(self.classes).zip(self.truths.chunks_exact(self.classes));
        rows.map(|(p, t)| match self.choice {
            Choice::Several => {
                p.iter().zip(t).filter(|(p, t)| (**p > 0.5) == (**t > 0.5)).count() as f64 / p.len() as f64
            }
            Choice::One => f64::from(t[largest(p)] > 0.5),
        })
        .collect()
    }
}

/// What `expert` says of the models at `places` of `members`, each made small by `damage` first and read as a model of
/// the tree whose centre is `centre` (the expert's own where `None`).
///
/// # Errors
/// If a model cannot be read, or the zoo lacks the expert's label.
pub fn judge(
    expert: &Expert,
    zoo: &Zoo,
    (members, places): (&Members, &[usize]),
    damage: Option<Damage>,
    centre: Option<&[f32]>,
) -> Result<Outcome> {
    let (_, label) = zoo.label(Some(&expert.about.label))?;
    let classes = expert.about.classes.len();
    let files: Vec<PathBuf> = places.iter().map(|&at| zoo.path(&zoo.index.models[members.all[at]])).collect();
    let (logits, _) = look(expert, &files, damage, centre)?;
    let probabilities = probabilities(expert.about.choice, &logits, classes, expert.about.temperature);
    let truths = members.truths(zoo, (&expert.about.label, label), places);
    Ok(Outcome { choice: expert.about.choice, probabilities, truths, classes })
}

/// Logits (models, classes) and representations (models, r_T) that `expert` gives the models in `files`, each made small by
/// `damage` first and read as a model of the tree whose centre is `centre` (the expert's own where `None`).
///
/// # Errors
/// If a model cannot be read.
pub fn look(
    expert: &Expert,
    files: &[PathBuf],
    damage: Option<Damage>,
    centre: Option<&[f32]>,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let layer = &expert.about.layer;
    let centre = centre.unwrap_or(&expert.centre);
    let (mut logits, mut representations) = (Vec::new(), Vec::new());
    for files in files.chunks(TOGETHER) {
        let read = |file: &PathBuf| -> Result<Values> {
            let values = layer.read(&Checkpoint::open(file)?)?;
            Ok(super::cache::damaged(values, layer, centre, damage))
        };
        let values: Vec<Values> = files.par_iter().map(read).collect::<Result<_>>()?;
        let operands: Vec<_> = values.iter().map(Values::operand).collect();
        let found = expert.net.look_at(&operands, expert.class_texts());
        logits.extend(found.0);
        representations.extend(found.1);
    }
    Ok((logits, representations))
}
