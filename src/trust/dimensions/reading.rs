//! Judging answers to questions with labels, whether an option was chosen or a text has to be read.

use super::super::dimension::Rule;
use super::super::item::{Answer, Ask, Item, Outcome};
use super::super::rules::answer::option;
use super::super::rules::refusal::{self, declines};
use super::likelihood::{judge_right, unparsable};

/// Worth 1 where the answer is the right label, else 0.
///
/// Of [`Ask::Choose`] by likelihood; of [`Ask::Continue`] the text is read as one of the labels in `expect`, of which the
/// first is right (the outcome's `choice` counts them as they stand there). A text that is none of them declines or is
/// unparsable.
pub fn judge_labels(rule: Rule, item: &Item, answer: &Answer) -> Outcome {
    match &item.ask {
        Ask::Choose { options, gold, .. } => judge_right(rule, options, *gold, answer),
        Ask::Continue { expect, .. } => {
            let Some(text) = answer.text.as_deref() else { return unparsable() };
            match option(text, expect) {
                Some(choice) => said(text, Some(choice), f64::from(choice == 0)),
                None => said(text, None, 0.0),
            }
        }
    }
}

/// The outcome of a text that was read as that option, or as none: then the model declined, or the text is unparsable.
pub fn said(text: &str, choice: Option<usize>, value: f64) -> Outcome {
    let refused = choice.is_none() && is_refusal(text);
    Outcome {
        choice,
        value,
        refused,
        unparsable: choice.is_none() && !refused,
        margin: None,
        probabilities: Vec::new(),
    }
}

/// Whether a text declines to answer, by our rule.
pub fn is_refusal(text: &str) -> bool {
    declines(refusal::PHRASES, text).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::super::likelihood::LIKELIHOOD;
    use super::super::testing::text_item;
    use super::*;

    #[test]
    fn a_text_is_read_as_one_of_the_labels_or_not_at_all() {
        let judge = |text: &str| {
            let answer = Answer { log_likelihoods: vec![], tokens: vec![], text: Some(text.into()) };
            judge_labels(LIKELIHOOD, &text_item("a", &["yes", "no"]), &answer)
        };
        assert_eq!((judge("yes").value, judge("no").value, judge("no").choice), (1.0, 0.0, Some(1)));
        assert!(judge("perhaps").unparsable && !judge("no").unparsable);
        let declined = judge("I cannot answer that.");
        assert!(declined.refused && !declined.unparsable && declined.value == 0.0);
    }
}
