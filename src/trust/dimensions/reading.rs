//! Judging answers to questions with labels, whether an option was chosen or a text has to be read.

use super::super::dimension::Rule;
use super::super::item::{Answer, Ask, Item, Outcome};
use super::likelihood::{judge_right, unparsable};

/// Worth 1 where the answer is the right label, else 0.
///
/// Of [`Ask::Choose`] by likelihood; of [`Ask::Continue`] the text is read as one of the labels in `expect`, of which the
/// first is right (the outcome's `choice` counts them as they stand there). A text that is none of them is unparsable.
pub fn judge_labels(rule: Rule, item: &Item, answer: &Answer) -> Outcome {
    match &item.ask {
        Ask::Choose { options, gold, .. } => judge_right(rule, options, *gold, answer),
        Ask::Continue { expect, .. } => {
            let choice = answer.text.as_deref().and_then(|text| label(text, expect));
            match choice {
                Some(choice) => Outcome {
                    choice: Some(choice),
                    value: f64::from(choice == 0),
                    refused: false,
                    unparsable: false,
                    margin: None,
                    probabilities: Vec::new(),
                },
                None => unparsable(),
            }
        }
    }
}

/// The label that a text gives: what stands behind the last "answer:", if there is one, up to the first full stop, comma or
/// line's end, without regard to case (Wang et al. 2023).
pub fn label(text: &str, labels: &[String]) -> Option<usize> {
    let text = text.to_lowercase();
    let text = text.rsplit("answer:").next().unwrap_or_default();
    let text = text.split("</s>").next().unwrap_or_default().trim_start();
    let said = text.split(['.', ',', '\n']).next().unwrap_or_default().trim();
    labels.iter().position(|label| label.trim().to_lowercase() == said)
}

#[cfg(test)]
mod tests {
    use super::super::likelihood::LIKELIHOOD;
    use super::super::testing::text_item;
    use super::*;

    #[test]
    fn a_text_is_read_as_one_of_the_labels_or_not_at_all() {
        let labels = ["yes".to_string(), "no".to_string()];
        for (text, expected) in [
            ("Yes.", Some(0)),
            ("Question. Answer: no, it is not", Some(1)),
            (" no\nQuestion", Some(1)),
            ("perhaps", None),
            ("not at all", None),
            ("", None),
        ] {
            assert_eq!(label(text, &labels), expected, "{text}");
        }
        let judge = |text: &str| {
            let answer = Answer { log_likelihoods: vec![], tokens: vec![], text: Some(text.into()) };
            judge_labels(LIKELIHOOD, &text_item("a", &["yes", "no"]), &answer)
        };
        assert_eq!((judge("yes").value, judge("no").value, judge("no").choice), (1.0, 0.0, Some(1)));
        assert!(judge("perhaps").unparsable && !judge("no").unparsable);
    }
}
