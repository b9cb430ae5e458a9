//! From the best probe to experts: the tree's radius, calibration, figures, documented models.

use std::path::PathBuf;

use super::{Best, Job, Tree};
use crate::{
    Checkpoint, Result,
    probex::{
        cache::mean,
        calibration,
        expert::{About, Candidate, Expert, Radius},
        file::FORMAT,
        fit::Members,
        head::{Choice, Texts, probabilities},
        layer::Layer,
        metrics::Judged,
        operand::Operand,
        train::Models,
    },
    zoo::Label,
};

/// Models of each other tree whose distances are looked at for the radius.
const OTHERS: usize = 100;

/// Coverage at which sets are counted.
const COVERAGE: f64 = 0.9;

/// Draws of the figures' intervals.
const SEED: u64 = 0;

impl Job<'_> {
    /// The experts of the best probe, one for each tree, calibrated each on its own models.
    pub(super) fn experts(
        &self,
        trees: &[Tree],
        best: &Best,
        (label, choice, seen): (&Label, Choice, &[usize]),
        candidates: &[Candidate],
    ) -> Result<Vec<Expert>> {
        let mut experts = Vec::new();
        for ((name, tree), centre) in self.trees.iter().zip(trees).zip(&best.centres) {
            let members = &tree.members;
            let Some(cache) = tree.cache(best.input) else { continue };
            let texts = self.texts.as_ref().map(|texts| texts.values.clone()).unwrap_or_default();
            let classes = label.classes.len();
            let all = Texts { values: &texts, classes: if texts.is_empty() { 0 } else { classes } };
            let look = |places: &[usize]| {
                let models: Vec<Operand<'_>> = places.iter().map(|&at| Models::layer(cache, at, 0)).collect();
                best.trained.net.look_at(&models, all)
            };
            let truths = |places: &[usize]| members.truths(self.zoo, (self.label, label), places);
            let (chosen, _) = look(&members.selection);
            let temperature = calibration::temperature(choice, &chosen, &truths(&members.selection), classes);
            let (logits, _) = look(&members.calibration);
            let scores = calibration::scores(choice, &logits, &truths(&members.calibration), classes, temperature);
            let judged = |places: &[usize]| {
                let p = probabilities(choice, &look(places).0, classes, temperature);
                Judged { choice, probabilities: &p, truths: &truths(places), classes }.figures(SEED)
            };
            let validation: Vec<usize> = [members.selection.as_slice(), &members.calibration].concat();
            let threshold = calibration::threshold(&scores, COVERAGE);
            let test_scores =
                calibration::scores(choice, &look(&members.test).0, &truths(&members.test), classes, temperature);
            let covered = test_scores.iter().filter(|score| **score <= threshold).count() as f64;
            let documented: Vec<usize> = [members.training.as_slice(), &validation].concat();
            let held = |at: usize| {
                let row = truths(&[at]);
                let classes = (0..classes).filter(|&class| row[class] > 0.5).collect();
                (self.zoo.index.models[members.all[at]].path.clone(), classes)
            };
            let unseen: Vec<usize> = (0..classes).filter(|class| !seen.contains(class)).collect();
            let zero_shot = (all.classes > 0 && unseen.len() > 1 && !members.held_out.is_empty()).then(|| {
                let logits = columns(&look(&members.held_out).0, classes, &unseen);
                let truths = columns(&truths(&members.held_out), classes, &unseen);
                let p = probabilities(choice, &logits, unseen.len(), temperature);
                Judged { choice, probabilities: &p, truths: &truths, classes: unseen.len() }.figures(SEED)
            });
            let (centroid, radius) = self.radius(name, tree, &best.layer)?;
            let figures = judged(&validation);
            let about = About {
                format: FORMAT,
                tree: name.clone(),
                label: self.label.to_string(),
                choice,
                classes: label.classes.clone(),
                layer: best.layer.clone(),
                input: best.input,
                spec: best.trained.net.spec().clone(),
                factor: best.trained.net.factor,
                preset: best.preset,
                radius,
                temperature,
                conformal: scores,
                documented: documented.iter().map(|&at| held(at)).collect(),
                validation: figures,
                test: (!members.test.is_empty()).then(|| judged(&members.test)),
                covered: (!members.test.is_empty()).then(|| covered / members.test.len() as f64),
                zero_shot,
                encoder: self.texts.as_ref().map(|texts| texts.encoder.clone()),
                trained_on: members.training.len(),
                training: self.training.clone(),
                augmented: self.augment.damages.clone(),
                seen: seen.to_vec(),
                candidates: candidates.to_vec(),
            };
            let (_, representations) = look(&documented);
            let net = best.trained.net.clone();
            experts.push(Expert { about, net, centre: centre.clone(), centroid, representations, texts });
        }
        Ok(experts)
    }

    /// The tree's middle on this layer, and how far its models and those of others lie from it.
    fn radius(&self, name: &str, tree: &Tree, layer: &Layer) -> Result<(Vec<f32>, Radius)> {
        let members = &tree.members;
        let files = |places: &[usize]| -> Vec<PathBuf> { places.iter().map(|&at| tree.files[at].clone()).collect() };
        let centroid = if layer.adapter { Vec::new() } else { mean(layer, &files(&members.training))? };
        let distance = |file: &PathBuf| -> Result<Option<f64>> {
            let checkpoint = Checkpoint::open(file)?;
            if !layer.is_in(&checkpoint) {
                return Ok(None);
            }
            Ok(Some(layer.read(&checkpoint)?.distance((layer.rows, layer.columns), &centroid)))
        };
        let all = |files: Vec<PathBuf>| -> Result<Vec<f64>> {
            Ok(files.iter().map(distance).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        };
        let own = all(files(&[members.training.as_slice(), &members.selection, &members.calibration].concat()))?;
        let mut others = Vec::new();
        for other in self.zoo.trees().into_iter().filter(|other| *other != name) {
            let members = Members::of(self.zoo, other, &self.kinds, Some(OTHERS));
            let training = members.training.iter().map(|&at| self.zoo.path(&self.zoo.index.models[members.all[at]]));
            others.extend(all(training.collect())?);
        }
        Ok((centroid, Radius::of(&own, &others)))
    }
}

/// The columns `which` of `values`, whose rows are `width` long.
fn columns(values: &[f32], width: usize, which: &[usize]) -> Vec<f32> {
    values.chunks_exact(width).flat_map(|row| which.iter().map(move |&at| row[at])).collect()
}
