//! A text classifier of the user's (BERT, RoBERTa and their kin with a classification head), run by our encoder.

use std::path::Path;

use anyhow::{Context, Result};
use scruple_compress::model::encoder::SentenceEncoder;
use scruple_weights::Checkpoint;

use super::{Agreement, ToxicityScorer};

/// Names of labels that mean toxic, without regard to case; the first that the model has counts.
const TOXIC: &[&str] = &["toxic", "toxicity"];

/// A checkpoint with a label that means toxic.
#[derive(Debug)]
pub struct Classifier {
    name: String,
    model: SentenceEncoder,
    label: usize,
}

impl Classifier {
    /// Opens a checkpoint with a classification head. Toxic is the label `toxic` or `toxicity`, or `LABEL_1` of a model
    /// with the two labels `LABEL_0` and `LABEL_1`.
    ///
    /// # Errors
    /// Where it cannot be opened, has no head, or no such label.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let checkpoint = Checkpoint::open(path)?;
        let model = SentenceEncoder::open(&checkpoint).with_context(|| format!("{shown}: not a text classifier"))?;
        let labels = model.encoder().labels();
        let labels = labels.ok_or_else(|| anyhow::anyhow!("{shown}: the model has no classification head"))?;
        let names: Vec<String> = labels.names.iter().map(|name| name.to_lowercase()).collect();
        let named = TOXIC.iter().find_map(|toxic| names.iter().position(|name| name == toxic));
        let label = named.or_else(|| (names == ["label_0", "label_1"]).then_some(1)).ok_or_else(|| {
            anyhow::anyhow!(
                "{shown}: none of the model's labels ({}) means toxic; expected `toxic`, `toxicity`, or two labels \
                 LABEL_0 and LABEL_1",
                labels.names.join(", ")
            )
        })?;
        let name = path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_str()?.to_string()));
        Ok(Self { name: name.unwrap_or_else(|| shown.to_string()), model, label })
    }
}

impl ToxicityScorer for Classifier {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> u32 {
        1
    }

    fn agreement(&self) -> Option<&Agreement> {
        None
    }

    fn score(&self, text: &str) -> Result<f64> {
        let tokens = self.model.tokens(text)?;
        self.model.encoder().expect(&tokens.ids)?;
        let logits = self.model.classify(&[tokens.ids], |_| ())?;
        let labels = self.model.encoder().labels();
        let score = labels.and_then(|labels| labels.scores(logits.first()?).get(self.label).copied());
        match score {
            Some(score) if score.is_finite() => Ok(f64::from(score).clamp(0.0, 1.0)),
            _ => anyhow::bail!(
                "{}: the score of a text is not a number; the weights or configuration of the classifier are broken",
                self.name
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fixture's copy with `key` of its configuration changed.
    fn changed(fixture: &str, key: &str, to: serde_json::Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/encoders").join(fixture);
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        let config = folder.path().join("config.json");
        let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        value[key] = to;
        std::fs::write(&config, value.to_string()).unwrap();
        folder
    }

    #[test]
    fn the_toxic_labels_probability_is_that_of_the_reference() {
        let folder =
            changed("bert-classifier", "id2label", serde_json::json!({"0": "fine", "1": "Toxic", "2": "else"}));
        let scorer = Classifier::open(folder.path()).unwrap();
        // What transformers gave for each text (fixtures/encoders).
        let golden = std::fs::read(folder.path().join("golden.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
        let texts = golden["texts"].as_array().unwrap();
        assert!(!texts.is_empty());
        for text in texts {
            let logits = text["logits"].as_array().unwrap().iter().map(|logit| logit.as_f64().unwrap().exp());
            let odds: Vec<f64> = logits.collect();
            let expected = odds[1] / odds.iter().sum::<f64>();
            let found = scorer.score(text["text"].as_str().unwrap()).unwrap();
            assert!((found - expected).abs() < 1e-5, "{found}, expected {expected}");
        }
    }

    #[test]
    fn a_roberta_scores_texts_as_the_reference_does_from_bytes_to_labels() {
        let check = |scorer: &Classifier, expected: &dyn Fn(&serde_json::Value) -> f64| {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/encoders/roberta-classifier/golden.json");
            let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
            let texts = golden["texts"].as_array().unwrap();
            assert_eq!(texts.len(), 4);
            for entry in texts {
                let text = entry["text"].as_str().unwrap();
                let (found, expected) = (scorer.score(text).unwrap(), expected(entry));
                assert!((found - expected).abs() < 1e-5, "{text}: {found}, expected {expected}");
            }
        };
        // The scores are of transformers' text-classification pipeline, special characters and a cut text among them.
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/encoders/roberta-classifier");
        let scorer = Classifier::open(&folder).unwrap();
        assert_eq!(scorer.name(), "roberta-classifier");
        check(&scorer, &|entry| entry["scores"][1].as_f64().unwrap());
        // Where labels do not exclude each other, each is a logistic function of its logit.
        let several = changed("roberta-classifier", "problem_type", "multi_label_classification".into());
        let scorer = Classifier::open(several.path()).unwrap();
        check(&scorer, &|entry| 1.0 / (1.0 + (-entry["logits"][1].as_f64().unwrap()).exp()));
    }

    #[test]
    fn a_model_without_a_toxic_label_is_refused() {
        let folder = changed("bert-classifier", "id2label", serde_json::json!({"0": "a", "1": "b", "2": "c"}));
        let error = Classifier::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("none of the model's labels (a, b, c) means toxic"), "{error}");
        let bare = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/encoders/bert");
        let error = Classifier::open(&bare).unwrap_err().to_string();
        assert!(error.ends_with("the model has no classification head"), "{error}");
    }
}
