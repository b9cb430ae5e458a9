//! Reads the settings of encoders and vision models from a JSON object, naming the file in each complaint.

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result, kernel::activation::Activation};

/// One JSON object and the file it stands in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings<'a> {
    /// Named in errors.
    pub file: &'a Path,
    /// The object.
    pub object: &'a Value,
}

impl Settings<'_> {
    /// `FILE: WHAT`.
    pub fn refuse(&self, what: impl std::fmt::Display) -> Error {
        Error::Model(format!("{}: {what}", self.file.display()))
    }

    fn complain(&self, key: &str, expected: &str, found: &Value) -> Error {
        self.refuse(format!("`{key}` should be {expected}, found {found}"))
    }

    /// The value of `key`; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// A positive whole number.
    pub fn count(&self, key: &str, default: Option<usize>) -> Result<usize> {
        match self.get(key) {
            None => {
                default.ok_or_else(|| self.refuse(format!("`{key}` is missing; the model cannot be built without it")))
            }
            Some(value) => match value.as_u64() {
                Some(n) if n > 0 && n <= 1 << 24 => Ok(n as usize),
                _ => Err(self.complain(key, "a whole number from 1 to 16777216", value)),
            },
        }
    }

    /// A number ≥ 0.
    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(x) if x.is_finite() && x >= 0.0 => Ok(x),
                _ => Err(self.complain(key, "a number that is not negative", value)),
            },
        }
    }

    /// true or false.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.complain(key, "true or false", value)),
        }
    }

    /// The name of an activation.
    pub fn activation(&self, key: &str, default: Activation) -> Result<Activation> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_str().and_then(Activation::from_name).ok_or_else(|| {
            let names: Vec<_> = Activation::NAMES.iter().map(|(name, _)| *name).collect();
            self.complain(key, &format!("one of {}", names.join(", ")), value)
        })
    }

    /// (height, width): one number for both, or a list of the two.
    pub fn size(&self, key: &str, default: usize) -> Result<(usize, usize)> {
        match self.get(key) {
            Some(Value::Array(pair)) => match pair.iter().map(Value::as_u64).collect::<Option<Vec<_>>>().as_deref() {
                Some(&[height, width]) if (1..=1 << 16).contains(&height) && (1..=1 << 16).contains(&width) => {
                    Ok((height as usize, width as usize))
                }
                _ => Err(self.complain(key, "a size or a list of two", &Value::Array(pair.clone()))),
            },
            _ => {
                let side = self.count(key, Some(default))?;
                if side > 1 << 16 {
                    return Err(self.refuse(format!("`{key}` is {side}, more than the 65536 that are supported")));
                }
                Ok((side, side))
            }
        }
    }
}

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
    pub(crate) fn read(settings: &Settings<'_>, classes: usize) -> Result<Self> {
        let scores = match settings.get("problem_type").map(|kind| (kind, kind.as_str())) {
            Some((_, Some("regression"))) => Scores::Identity,
            Some((_, Some("multi_label_classification"))) => Scores::Sigmoid,
            None | Some((_, Some("single_label_classification"))) => match classes {
                1 => Scores::Sigmoid,
                _ => Scores::Softmax,
            },
            Some((kind, _)) => {
                let known = "regression, single_label_classification or multi_label_classification";
                return Err(settings.complain("problem_type", known, kind));
            }
        };
        let known = settings.get("id2label");
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
    use serde_json::json;

    use super::*;

    fn settings(object: &Value) -> Settings<'_> {
        Settings { file: Path::new("m/config.json"), object }
    }

    #[test]
    fn complaints_name_file_key_expected_and_found() {
        let object = json!({ "a": -1, "b": "maybe", "c": "gelu_10", "d": [1, 2, 3], "e": 0, "f": 1e30 });
        let s = settings(&object);
        for (message, parts) in [
            (s.count("a", None).unwrap_err(), ["`a`", "whole number", "-1"]),
            (s.count("e", Some(3)).unwrap_err(), ["`e`", "whole number", "0"]),
            (s.count("f", None).unwrap_err(), ["`f`", "whole number", "1e+30"]),
            (s.count("z", None).unwrap_err(), ["`z`", "missing", "m/config.json"]),
            (s.flag("b", true).unwrap_err(), ["`b`", "true or false", "maybe"]),
            (s.number("a", 1.0).unwrap_err(), ["`a`", "not negative", "-1"]),
            (s.activation("c", Activation::Relu).unwrap_err(), ["`c`", "quick_gelu", "gelu_10"]),
            (s.size("d", 1).unwrap_err(), ["`d`", "list of two", "[1,2,3]"]),
        ] {
            let message = message.to_string();
            assert!(
                message.starts_with("m/config.json: ") && parts.iter().all(|part| message.contains(part)),
                "{message}"
            );
        }
        assert_eq!(s.size("z", 7).unwrap(), (7, 7));
    }

    #[test]
    fn labels_and_scores_follow_the_problem() {
        let logits = [1.0f32, -2.0, 0.5];
        let object = json!({ "id2label": { "0": "sour", "2": "sweet" } });
        let labels = Labels::read(&settings(&object), 3).unwrap();
        assert_eq!(labels.names, ["sour", "LABEL_1", "sweet"]);
        let scores = labels.scores(&logits);
        let total: f64 = [1.0f64, -2.0, 0.5].iter().map(|x| x.exp()).sum();
        assert!((f64::from(scores[1]) - (-2.0f64).exp() / total).abs() < 1e-7);
        assert_eq!(argmax(&scores), 0);

        let labels = Labels::read(&settings(&json!({ "problem_type": "multi_label_classification" })), 3).unwrap();
        assert!((labels.scores(&logits)[0] - 0.731_058_6).abs() < 1e-6);
        let labels = Labels::read(&settings(&json!({ "problem_type": "regression" })), 1).unwrap();
        assert_eq!(labels.scores(&logits), logits);
        assert_eq!(Labels::read(&settings(&json!({})), 1).unwrap().scores, Scores::Sigmoid);
        let error = Labels::read(&settings(&json!({ "problem_type": "guessing" })), 2).unwrap_err().to_string();
        assert!(error.contains("regression") && error.contains("guessing"), "{error}");
        assert_eq!(argmax(&[0.5, 2.0, 2.0]), 1);
    }
}
