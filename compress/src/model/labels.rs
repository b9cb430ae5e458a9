//! What the outputs of a classifier mean: names and probabilities.

use super::fields::Fields;
use crate::Result;

/// The labels of a classifier and what its outputs mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Labels {
    /// One a class; `LABEL_n` where the configuration has no name.
    pub names: Vec<String>,
    /// How outputs become scores.
    pub scores: Scores,
}

/// How the outputs of a classifier become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scores {
    /// Probabilities of classes of which one is right.
    Softmax,
    /// Probabilities of labels that do not exclude each other, or of one.
    Sigmoid,
    /// Numbers as they are: a regression.
    Identity,
}

impl Labels {
    /// Reads `id2label` and `problem_type` for a classifier of `classes` outputs. As `transformers`' pipelines do, one
    /// output alone is a sigmoid's unless the problem is named a regression.
    pub(crate) fn read(fields: &Fields<'_>, classes: usize) -> Result<Self> {
        let scores = match fields.get("problem_type").map(|kind| (kind, kind.as_str())) {
            Some((_, Some("regression"))) => Scores::Identity,
            Some((_, Some("multi_label_classification"))) => Scores::Sigmoid,
            None | Some((_, Some("single_label_classification"))) => match classes {
                1 => Scores::Sigmoid,
                _ => Scores::Softmax,
            },
            Some((kind, _)) => {
                let known = "regression, single_label_classification or multi_label_classification";
                return Err(fields.complain("problem_type", known, kind));
            }
        };
        let known = fields.get("id2label");
        let name = |class: usize| known?.get(class.to_string())?.as_str().map(str::to_string);
        let names = (0..classes).map(|class| name(class).unwrap_or_else(|| format!("LABEL_{class}"))).collect();
        Ok(Self { names, scores })
    }

    /// The scores of one row of outputs, computed in f64.
    pub fn scores(&self, logits: &[f32]) -> Vec<f32> {
        let wide = logits.iter().map(|&x| f64::from(x));
        match self.scores {
            Scores::Identity => logits.to_vec(),
            Scores::Sigmoid => wide.map(|x| (1.0 / (1.0 + (-x).exp())) as f32).collect(),
            Scores::Softmax => {
                let max = wide.clone().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = wide.clone().map(|x| (x - max).exp()).sum();
                wide.map(|x| ((x - max).exp() / total) as f32).collect()
            }
        }
    }
}

/// Index of the largest of `values`, the first of equals.
pub fn argmax(values: &[f32]) -> usize {
    (1..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn fields(object: &Value) -> Fields<'_> {
        Fields::new(Path::new("m/config.json"), object)
    }

    #[test]
    fn labels_and_scores_follow_the_problem() {
        let logits = [1.0f32, -2.0, 0.5];
        let object = json!({ "id2label": { "0": "sour", "2": "sweet" } });
        let labels = Labels::read(&fields(&object), 3).unwrap();
        assert_eq!(labels.names, ["sour", "LABEL_1", "sweet"]);
        let scores = labels.scores(&logits);
        let total: f64 = [1.0f64, -2.0, 0.5].iter().map(|x| x.exp()).sum();
        assert!((f64::from(scores[1]) - (-2.0f64).exp() / total).abs() < 1e-7);
        assert_eq!(argmax(&scores), 0);

        let labels = Labels::read(&fields(&json!({ "problem_type": "multi_label_classification" })), 3).unwrap();
        assert!((labels.scores(&logits)[0] - 0.731_058_6).abs() < 1e-6);
        let labels = Labels::read(&fields(&json!({ "problem_type": "regression" })), 1).unwrap();
        assert_eq!(labels.scores(&logits), logits);
        assert_eq!(Labels::read(&fields(&json!({})), 1).unwrap().scores, Scores::Sigmoid);
        let error = Labels::read(&fields(&json!({ "problem_type": "guessing" })), 2).unwrap_err().to_string();
        assert!(error.contains("regression") && error.contains("guessing"), "{error}");
        assert_eq!(argmax(&[0.5, 2.0, 2.0]), 1);
    }
}
