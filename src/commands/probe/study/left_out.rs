//! Each tree told by what was learnt of all the others.
//!
//! Weights of two trees cannot be compared one by one, and layers of one name may have other shapes in another tree. What is
//! left are statistics of the tensors that all models have by name. Beside them stands what the others' classes alone say.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::Result;
use rayon::prelude::*;
use scruple_weights::{
    Checkpoint,
    probex::{
        baseline::{Features, boosted, logistic, statistics_of},
        evaluate::Outcome,
        fit::Members,
        head::probabilities,
        train::Part,
    },
};

use super::Study;

/// One of so many models of the other trees chooses when training ends.
const SELECTS: usize = 5;

impl Study<'_> {
    /// Every tree in its turn; the last figures are of all models together.
    pub(super) fn left_out(&mut self) -> Result<()> {
        let mut members = Members::default();
        let mut tree_of = Vec::new();
        for (number, tree) in self.trees.iter().enumerate() {
            members.all.extend(self.members(tree, "full").all);
            tree_of.resize(members.all.len(), number);
        }
        let files = members.files(self.zoo);
        let names = shared_names(&files)?;
        let rows = files.par_iter().map(|file| Ok(statistics_of(&Checkpoint::open(file)?, &names)?));
        let rows = rows.collect::<Result<Vec<_>>>()?;

        let mut together: Vec<(&str, Option<Outcome>)> = Vec::new();
        for (number, tree) in self.trees.clone().into_iter().enumerate() {
            let (test, others): (Vec<usize>, Vec<usize>) =
                (0..files.len()).partition(|&model| tree_of[model] == number);
            if others.len() < 2 * SELECTS {
                continue;
            }
            let selects = |at: usize| at % SELECTS == SELECTS - 1;
            let pick = |wanted: bool| -> Vec<usize> {
                others.iter().enumerate().filter(|(at, _)| selects(*at) == wanted).map(|(_, &model)| model).collect()
            };
            for (what, outcome) in self.told(&members, &rows, (&pick(false), &pick(true), &test)) {
                self.note(
                    "left out",
                    &tree,
                    "all tensors",
                    what.into(),
                    (vec![outcome.by_model()], outcome.figures(0)),
                );
                match together.iter_mut().find(|(known, _)| *known == what) {
                    Some((_, Some(all))) => {
                        all.probabilities.extend(outcome.probabilities);
                        all.truths.extend(outcome.truths);
                    }
                    _ => together.push((what, Some(outcome))),
                }
            }
        }
        for (what, outcome) in together {
            let Some(outcome) = outcome else { continue };
            self.note("left out", "each", "all tensors", what.into(), (vec![outcome.by_model()], outcome.figures(0)));
        }
        Ok(())
    }

    /// What learners and the mere frequencies of the training models' classes say of the test models.
    fn told(
        &self,
        members: &Members,
        rows: &[Vec<f32>],
        (training, selection, test): (&[usize], &[usize], &[usize]),
    ) -> [(&'static str, Outcome); 3] {
        let features = Features::new(rows, training);
        let truths = |places: &[usize]| members.truths(self.zoo, (self.label, self.of), places);
        let (known, chosen, asked) = (truths(training), truths(selection), truths(test));
        let (classes, choice) = (self.of.classes.len(), self.of.choice);
        let train = Part { models: training, truths: &known, classes };
        let select = Part { models: selection, truths: &chosen, classes };
        let outcome = |probabilities| Outcome { choice, probabilities, truths: asked.clone(), classes };
        let learnt = |logits: Vec<f32>| outcome(probabilities(choice, &logits, classes, 1.0));
        let share = |class: usize| known.iter().skip(class).step_by(classes).sum::<f32>() / training.len() as f32;
        let frequencies: Vec<f32> = (0..classes).map(share).collect();
        [
            ("statistics, logistic", learnt(logistic(&features, (train, select), choice, 0, test))),
            ("statistics, boosted trees", learnt(boosted(&features, train, test))),
            ("the others' commonest", outcome(frequencies.repeat(test.len()))),
        ]
    }
}

/// Names of tensors that every file has, whatever their shapes.
pub(super) fn shared_names(files: &[PathBuf]) -> Result<BTreeSet<String>> {
    let mut shared: Option<BTreeSet<String>> = None;
    for file in files {
        let checkpoint = Checkpoint::open(file)?;
        let here = checkpoint.tensors().map(|tensor| tensor.name().to_string());
        shared = Some(match shared {
            None => here.collect(),
            Some(before) => here.filter(|name| before.contains(name)).collect(),
        });
    }
    let shared = shared.unwrap_or_default();
    anyhow::ensure!(!shared.is_empty(), "the zoo's models have no tensor's name in common, so statistics tell nothing");
    Ok(shared)
}
